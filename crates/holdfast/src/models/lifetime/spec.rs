//! What `models/lifetime.toml` says: which purchases, which model of repeat buying, what money later is worth.

use std::path::PathBuf;

use holdfast_types::TableName;
use serde::Deserialize;
use toml::Spanned;

use super::LIFETIME;
use crate::error::CliError;
use crate::models::kind::Kind;
use crate::project::{Project, located, parse_toml, read_text};

/// The file of a model of repeat buying, checked as far as it can be without the lake.
#[derive(Debug, Clone)]
pub(crate) struct LifetimeSpec {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// As written: kept with every version.
    pub(crate) text: String,
    pub(crate) file: LifetimeSpecFile,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LifetimeSpecFile {
    /// `lifetime`; by it the file was known for one about repeat buying.
    #[serde(rename = "kind")]
    _kind: Kind,
    #[serde(default)]
    pub(crate) description: String,
    pub(crate) purchases: PurchaseSection,
    #[serde(default)]
    pub(crate) model: ModelSection,
    #[serde(default)]
    pub(crate) value: ValueSection,
}

/// Which rows of which table are purchases. Those of one day are one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurchaseSection {
    pub(crate) table: Spanned<TableName>,
    /// Its column that says when.
    pub(crate) time: Spanned<String>,
    /// Its column that says for how much.
    pub(crate) amount: Spanned<String>,
    /// Which of its rows count; all of them without.
    #[serde(rename = "where")]
    pub(crate) condition: Option<Spanned<String>>,
}

/// Which model, and how it is judged.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelSection {
    pub(crate) of: Buying,
    /// Days of the unit in which times are told: 7, weeks.
    pub(crate) unit_days: Spanned<u32>,
    /// The last so many units judge, and nothing is learnt from them.
    pub(crate) judged_units: Spanned<u32>,
}

/// The models of repeat buying.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Buying {
    #[default]
    BgNbd,
    ParetoNbd,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self { of: Buying::default(), unit_days: Spanned::new(0..0, 7), judged_units: Spanned::new(0..0, 13) }
    }
}

/// What `clv` looks at.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ValueSection {
    /// So many units ahead.
    pub(crate) units: Spanned<u32>,
    /// Discount rate of a unit.
    pub(crate) discount: Spanned<f64>,
    /// Share of an amount that is left as margin.
    pub(crate) margin: Spanned<f64>,
}

impl Default for ValueSection {
    fn default() -> Self {
        Self { units: Spanned::new(0..0, 52), discount: Spanned::new(0..0, 0.002), margin: Spanned::new(0..0, 1.0) }
    }
}

impl LifetimeSpec {
    /// Reads the file of a model of repeat buying.
    ///
    /// # Errors
    /// Mistakes in it with line and column.
    pub(crate) fn read(project: &Project, name: &str) -> Result<Self, CliError> {
        let path = project.model_folder()?.join(format!("{name}.toml"));
        let text = read_text(&path)?;
        let file: LifetimeSpecFile = parse_toml(&path, &text)?;
        let spec = Self { name: name.to_owned(), path, text, file };
        spec.check()?;
        Ok(spec)
    }

    /// A mistake at this byte of the file.
    pub(crate) fn mistake(&self, offset: usize, message: impl Into<String>) -> CliError {
        located(&self.path, &self.text, offset, message.into())
    }

    /// Which rows of the table count.
    pub(crate) fn counted(&self) -> String {
        self.file.purchases.condition.as_ref().map_or_else(|| "true".to_owned(), |said| format!("({})", said.get_ref()))
    }

    fn check(&self) -> Result<(), CliError> {
        if self.name != LIFETIME {
            let message =
                format!("p_alive and the other functions ask the model `{LIFETIME}`: call this file {LIFETIME}.toml");
            return Err(self.mistake(0, message));
        }
        let (model, value) = (&self.file.model, &self.file.value);
        for (number, name, most) in [
            (&model.unit_days, "unit_days", 366),
            (&model.judged_units, "judged_units", 1_000),
            (&value.units, "units", 1_000),
        ] {
            if !(1..=most).contains(number.get_ref()) {
                return Err(self.mistake(number.span().start, format!("`{name}` must be from 1 to {most}")));
            }
        }
        if !(*value.discount.get_ref() >= 0.0 && *value.discount.get_ref() < 1.0) {
            return Err(self.mistake(value.discount.span().start, "`discount` must be from 0 to below 1"));
        }
        if !(*value.margin.get_ref() > 0.0 && *value.margin.get_ref() <= 1.0) {
            return Err(self.mistake(value.margin.span().start, "`margin` must be above 0 and at most 1"));
        }
        Ok(())
    }
}
