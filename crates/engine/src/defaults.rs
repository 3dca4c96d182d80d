//! `defaults.toml` in a folder of stages: what its stages say of themselves where they do not say it.
//!
//! One rule: a default counts for a stage that has no directive of the same name (of the same tag). A contract's `pii` goes before both.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_types::PII_KEY;
use toml::de::DeValue;

use crate::Result;
use crate::diagnostic::Diagnostic;
use crate::directive::{StageKind, parse_kind};
use crate::error::EngineError;
use crate::stage::Stage;
use crate::toml_file::{TomlFile, TomlItem as Item, TomlPlace as Place};

const FILE: &str = "defaults.toml";
const KEYS: [&str; 3] = ["owner", "stage", "tags"];

/// What a folder says for its stages.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    file: PathBuf,
    text: String,
    owner: Option<String>,
    kind: Option<(StageKind, Place)>,
    tags: Vec<DefaultTag>,
}

#[derive(Debug, Clone)]
pub(crate) struct DefaultTag {
    pub(crate) name: String,
    pub(crate) columns: Vec<(String, Place)>,
}

impl Defaults {
    /// The defaults of a folder, if it has any.
    pub(crate) fn of_folder(folder: &Path, mistakes: &mut Vec<Diagnostic>) -> Result<Option<Arc<Self>>> {
        let file = folder.join(FILE);
        if !file.is_file() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(&file).map_err(|source| EngineError::Unreadable { path: file.clone(), source })?;
        let mut reader = TomlFile { file: &file, text: &text, code: "E0109", mistakes };
        Ok(reader.defaults().map(Arc::new))
    }

    /// Fills what the stage does not say.
    pub(crate) fn fill(self: &Arc<Self>, stage: &mut Stage) {
        let directives = &mut stage.directives;
        if directives.owner.is_none() {
            directives.owner.clone_from(&self.owner);
        }
        if directives.kind_place.is_none()
            && let Some((kind, _)) = &self.kind
        {
            directives.kind = kind.clone();
        }
        for tag in &self.tags {
            let is_said = directives.tags.iter().any(|(name, _)| *name == tag.name);
            let is_the_contracts = tag.name == PII_KEY && stage.contract.is_some();
            if !is_said && !is_the_contracts {
                directives.tags.push((tag.name.clone(), tag.columns.iter().map(|(name, _)| name.clone()).collect()));
                directives.default_tags.push(tag.name.clone());
            }
        }
        stage.defaults = Some(Arc::clone(self));
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn tags(&self) -> &[DefaultTag] {
        &self.tags
    }

    pub(crate) fn kind_place(&self) -> Place {
        self.kind.as_ref().map_or((1, 1, 1), |(_, place)| *place)
    }

    pub(crate) fn mistake(
        &self,
        code: &'static str,
        message: impl Into<String>,
        (line, column, width): Place,
    ) -> Diagnostic {
        Diagnostic::at(code, message, &self.file, &self.text, line, column, width)
    }
}

impl TomlFile<'_> {
    fn defaults(&mut self) -> Option<Defaults> {
        let table = self.table()?;
        let table = table.get_ref();
        self.check_keys(table, &KEYS, "defaults are");
        let owner = table.get("owner").and_then(|value| self.text_of(value));
        let kind = table.get("stage").and_then(|value| {
            let said = self.text_of(value)?;
            let kind = parse_kind(&said);
            if kind.is_none() {
                let help =
                    "write \"full\", \"append\" or \"incremental key(customer_id)\", as behind `@stage`".to_owned();
                self.mistake("malformed kind of stage", value.span(), Some(help));
            }
            Some((kind?, self.place(value.span())))
        });
        let tags = table.get("tags").map(|value| self.tags(value)).unwrap_or_default();
        Some(Defaults { file: self.file.to_owned(), text: self.text.to_owned(), owner, kind, tags })
    }

    fn tags(&mut self, value: &Item<'_>) -> Vec<DefaultTag> {
        let Some(said) = value.get_ref().as_table() else {
            self.mistake("write the tags as a section `[tags]`", value.span(), None);
            return Vec::new();
        };
        let mut tags = Vec::new();
        for (key, value) in said.iter() {
            let DeValue::Array(items) = value.get_ref() else {
                self.mistake("a list of columns is expected here", value.span(), None);
                continue;
            };
            let columns =
                items.iter().filter_map(|item| Some((self.text_of(item)?, self.place(item.span())))).collect();
            tags.push(DefaultTag { name: key.get_ref().to_string(), columns });
        }
        tags.sort_by(|left, right| left.name.cmp(&right.name));
        tags
    }
}
