//! `feature_services.toml` of a pipeline: which features a model takes, one section a service.

use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::reference::FeatureReference;
use crate::Result;
use crate::diagnostic::Diagnostic;
use crate::toml_file::{self, TomlFile, TomlItem as Item, TomlPlace as Place, is_name};

const KEYS: [&str; 3] = ["description", "owner", "features"];

/// A service as its file says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Its features, in their order.
    pub features: Vec<FeatureReference>,
    pub(crate) place: Place,
    /// Where each of the features is named.
    pub(crate) places: Vec<Place>,
}

/// The services of a pipeline.
#[derive(Debug, Clone)]
pub(crate) struct ServiceFile {
    file: PathBuf,
    text: String,
    pub(crate) services: Vec<ServiceSpec>,
}

impl ServiceFile {
    /// The services in a file; none where there is no such file.
    pub(crate) fn read(file: &Path, mistakes: &mut Vec<Diagnostic>) -> Result<Option<Self>> {
        let Some(text) = toml_file::read(file)? else { return Ok(None) };
        let services = TomlFile { file, text: &text, code: "E0604", mistakes }.services();
        Ok(Some(Self { file: file.to_owned(), text, services }))
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn mistake(&self, message: impl Into<String>, (line, column, width): Place) -> Diagnostic {
        Diagnostic::at("E0605", message, &self.file, &self.text, line, column, width)
    }
}

impl TomlFile<'_> {
    fn services(&mut self) -> Vec<ServiceSpec> {
        let Some(table) = self.table() else { return Vec::new() };
        let mut services: Vec<ServiceSpec> = table
            .get_ref()
            .iter()
            .filter_map(|(name, value)| self.service(name.get_ref(), name.span(), value))
            .collect();
        services.sort_by_key(|service| service.place);
        services
    }

    fn service(&mut self, name: &str, span: std::ops::Range<usize>, value: &Item<'_>) -> Option<ServiceSpec> {
        let Some(said) = value.get_ref().as_table() else {
            let help = "a service is a section: [name], and below it features = [\"view:feature\"]".to_owned();
            self.mistake(&format!("`{name}` is no service"), span, Some(help));
            return None;
        };
        if !is_name(name) {
            let help = "a service has lowercase letters, digits and underscores".to_owned();
            self.mistake(&format!("`{name}` is no name of a service"), span, Some(help));
            return None;
        }
        let place = self.place(span.clone());
        self.check_keys(said, &KEYS, "a service has");
        let description = said.get("description").and_then(|value| self.text_of(value)).unwrap_or_default();
        let owner = said.get("owner").and_then(|value| self.text_of(value));
        let (mut features, mut places) = (Vec::new(), Vec::new());
        match said.get("features").map(|value| (value.get_ref(), value.span())) {
            Some((DeValue::Array(items), _)) if !items.is_empty() => {
                for item in items.iter() {
                    let Some(text) = self.text_of(item) else { continue };
                    match text.parse::<FeatureReference>() {
                        Ok(reference) if features.contains(&reference) => {
                            let help = Some("take one of the two out".to_owned());
                            self.mistake(&format!("`{reference}` is there twice"), item.span(), help);
                        }
                        Ok(reference) => {
                            features.push(reference);
                            places.push(self.place(item.span()));
                        }
                        Err(message) => self.mistake(&message, item.span(), None),
                    }
                }
            }
            Some((_, span)) => {
                let help = Some("write features = [\"view:feature\", \"view\"]".to_owned());
                self.mistake("a list of features is expected here", span, help);
            }
            None => {
                let help = Some("add features = [\"view:feature\", \"view\"]".to_owned());
                self.mistake(&format!("service `{name}` names no features"), span, help);
            }
        }
        Some(ServiceSpec { name: name.to_owned(), description, owner, features, place, places })
    }
}
