//! What `models/sentiment.toml` says: which texts teach, what labels them, how the model is trained.

use std::path::PathBuf;

use holdfast_models::sentiment::SentimentSettings;
use holdfast_types::TableName;
use serde::Deserialize;
use toml::Spanned;

use super::SENTIMENT;
use crate::error::CliError;
use crate::models::kind::Kind;
use crate::models::spec::{of_parameter, unsaid};
use crate::project::{Project, located, parse_toml, read_text};

/// The file of a model of texts, checked as far as it can be without the lake.
#[derive(Debug, Clone)]
pub(crate) struct TextSpec {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// As written: kept with every version.
    pub(crate) text: String,
    pub(crate) file: TextSpecFile,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextSpecFile {
    /// `sentiment`; by it the file was known for one about texts.
    #[serde(rename = "kind")]
    _kind: Kind,
    #[serde(default)]
    pub(crate) description: String,
    pub(crate) texts: TextSection,
    #[serde(default)]
    pub(crate) split: TextSplit,
    #[serde(default = "unsaid")]
    pub(crate) training: Spanned<SentimentSettings>,
}

/// Which texts, and what labels them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextSection {
    /// A table of the lake.
    pub(crate) table: Spanned<TableName>,
    /// Its column with the text.
    pub(crate) text: Spanned<String>,
    /// Its column that says when it was written: the newest texts judge.
    pub(crate) time: Spanned<String>,
    /// SQL over its columns: which texts are content.
    pub(crate) positive: Spanned<String>,
    /// Which are not. What is neither teaches nothing.
    pub(crate) negative: Spanned<String>,
    /// The newest so many are taken.
    #[serde(default = "usual_most")]
    pub(crate) most: Spanned<u32>,
}

fn usual_most() -> Spanned<u32> {
    Spanned::new(0..0, 200_000)
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TextSplit {
    /// The newest share of the distinct texts judges, and nothing else.
    pub(crate) test_share: Spanned<f64>,
}

impl Default for TextSplit {
    fn default() -> Self {
        Self { test_share: Spanned::new(0..0, 0.2) }
    }
}

impl TextSpec {
    /// Reads the file of a model of texts.
    ///
    /// # Errors
    /// Mistakes in it with line and column.
    pub(crate) fn read(project: &Project, name: &str) -> Result<Self, CliError> {
        let path = project.model_folder()?.join(format!("{name}.toml"));
        let text = read_text(&path)?;
        let file: TextSpecFile = parse_toml(&path, &text)?;
        let spec = Self { name: name.to_owned(), path, text, file };
        spec.check()?;
        Ok(spec)
    }

    /// A mistake at this byte of the file.
    pub(crate) fn mistake(&self, offset: usize, message: impl Into<String>) -> CliError {
        located(&self.path, &self.text, offset, message.into())
    }

    fn check(&self) -> Result<(), CliError> {
        if self.name != SENTIMENT {
            let message =
                format!("the function {SENTIMENT}(text) asks the model of that name: call this file {SENTIMENT}.toml");
            return Err(self.mistake(0, message));
        }
        let most = &self.file.texts.most;
        if !(100..=10_000_000).contains(most.get_ref()) {
            return Err(self.mistake(most.span().start, "`most` must be from 100 to 10000000 texts"));
        }
        let share = &self.file.split.test_share;
        if !(*share.get_ref() >= 0.05 && *share.get_ref() <= 0.5) {
            return Err(self.mistake(share.span().start, "the share of texts that judge must be from 0.05 to 0.5"));
        }
        let training = &self.file.training;
        if training.get_ref().version != SentimentSettings::default().version {
            let message = "[training] `version` is the registry's to say: take it out";
            return Err(self.mistake(training.span().start, message));
        }
        let checked = training.get_ref().check();
        checked.map_err(|error| of_parameter(&self.path, &self.text, training.span(), error))
    }
}
