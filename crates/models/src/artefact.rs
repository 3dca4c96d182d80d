//! What XGBoost's files say about features: names, types, and, as an attribute of ours, the names of categories.
//!
//! The engine writes and reads trees; this puts the signature into the document around them and takes it out again.

use std::ops::Range;

use serde_json::{Map, Value, json};

use crate::lightgbm;
use crate::ubjson::{self, Document};
use crate::{Feature, FeatureKind, ModelError, Result, Signature};

/// The attribute in which categories are kept: XGBoost keeps attributes and does not read them.
const CATEGORIES: &str = "holdfast_categories";

/// XGBoost's two encodings of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `model.json`.
    Json,
    /// `model.ubj`: smaller and read faster.
    Ubjson,
}

impl Format {
    /// The format of these bytes, by how they begin.
    ///
    /// # Errors
    ///
    /// Bytes that are neither.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let mut visible = bytes.iter().skip_while(|byte| byte.is_ascii_whitespace());
        let first = visible.next();
        let then = visible.find(|byte| !byte.is_ascii_whitespace());
        match (first, then) {
            (Some(b'{'), Some(b'"')) => Ok(Self::Json),
            (Some(b'{'), Some(b'i' | b'U' | b'I' | b'l' | b'L' | b'$' | b'#' | b'N')) => Ok(Self::Ubjson),
            (None, _) => Err(unreadable("it is empty")),
            (Some(0x80), _) => {
                Err(unreadable("it is a Python pickle, which can run any code; save it with save_model"))
            }
            _ => Err(unreadable("it is neither JSON nor UBJSON of XGBoost, nor text of LightGBM")),
        }
    }
}

/// The library whose format an artefact has, by how it begins. Whether it can be read is another question.
pub fn library_of(artefact: &[u8]) -> &'static str {
    if lightgbm::is_text(artefact) { "lightgbm" } else { "xgboost" }
}

/// The document with the signature in it.
pub(crate) fn name_features(document: Vec<u8>, format: Format, signature: &Signature) -> Result<Vec<u8>> {
    let names: Vec<&str> = signature.features().iter().map(|feature| &*feature.name).collect();
    let types = signature.features().iter().map(|feature| match feature.kind {
        FeatureKind::Number => "float",
        FeatureKind::Category(_) | FeatureKind::Code => "c",
    });
    let types: Vec<&str> = types.collect();
    let categories = signature.features().iter().filter_map(|feature| match &feature.kind {
        FeatureKind::Category(names) => Some((feature.name.clone(), json!(names))),
        _ => None,
    });
    let categories: Map<String, Value> = categories.collect();
    let categories = Value::Object(categories).to_string();
    match format {
        Format::Json => {
            let mut root: Value = serde_json::from_slice(&document).map_err(|error| unreadable(error.to_string()))?;
            let learner = root.get_mut("learner").and_then(Value::as_object_mut);
            let learner = learner.ok_or_else(|| unreadable("it has no learner"))?;
            learner.insert("feature_names".to_owned(), json!(names));
            learner.insert("feature_types".to_owned(), json!(types));
            learner.insert("attributes".to_owned(), json!({ CATEGORIES: categories }));
            serde_json::to_vec(&root).map_err(|error| unreadable(error.to_string()))
        }
        Format::Ubjson => {
            let parsed = Document::new(&document);
            let learner = parsed.get(&["learner"]).map_err(unreadable)?;
            let learner = learner.ok_or_else(|| unreadable("it has no learner"))?;
            let mut edits: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
            for (key, value) in [
                ("feature_names", ubjson::strings(&names)),
                ("feature_types", ubjson::strings(&types)),
                ("attributes", ubjson::object(&[(CATEGORIES, &categories)])),
            ] {
                let place = parsed.member(learner.clone(), key).map_err(unreadable)?;
                edits.push((place.ok_or_else(|| unreadable(format!("its learner has no {key}")))?, value));
            }
            // From the back, so that earlier places stay where they are.
            edits.sort_by_key(|(place, _)| std::cmp::Reverse(place.start));
            let mut document = document;
            for (place, value) in edits {
                document.splice(place, value);
            }
            Ok(document)
        }
    }
}

/// The signature that a document holds; `None` where it does not name its features.
pub(crate) fn signature_of(document: &[u8], format: Format) -> Result<Option<Signature>> {
    let (names, types, categories) = match format {
        Format::Json => {
            let root: Value = serde_json::from_slice(document).map_err(|error| unreadable(error.to_string()))?;
            let texts = |key: &str| -> Vec<String> {
                let list = root["learner"][key].as_array().into_iter().flatten();
                list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
            };
            let categories = root["learner"]["attributes"][CATEGORIES].as_str().map(str::to_owned);
            (texts("feature_names"), texts("feature_types"), categories)
        }
        Format::Ubjson => {
            let parsed = Document::new(document);
            let texts = |key: &str| match parsed.get(&["learner", key])? {
                Some(place) => parsed.strings(place),
                None => Ok(Vec::new()),
            };
            let categories = match parsed.get(&["learner", "attributes", CATEGORIES]).map_err(unreadable)? {
                Some(place) => Some(parsed.string(place).map_err(unreadable)?),
                None => None,
            };
            (texts("feature_names").map_err(unreadable)?, texts("feature_types").map_err(unreadable)?, categories)
        }
    };
    if names.is_empty() {
        return Ok(None);
    }
    let mut categories: Map<String, Value> = match categories {
        Some(text) => serde_json::from_str(&text).map_err(|error| unreadable(format!("{CATEGORIES}: {error}")))?,
        None => Map::new(),
    };
    let features = names.into_iter().enumerate().map(|(place, name)| {
        let kind = match (types.get(place).map(String::as_str), categories.remove(&name)) {
            (_, Some(names)) => FeatureKind::Category(
                serde_json::from_value(names).map_err(|error| unreadable(format!("{CATEGORIES}: {error}")))?,
            ),
            (Some("c"), None) => FeatureKind::Code,
            _ => FeatureKind::Number,
        };
        Ok(Feature { name, kind })
    });
    Signature::new(features.collect::<Result<_>>()?).map(Some)
}

/// Whether data of one kind is data of the other: codes may be named.
pub(crate) fn same_kind(ours: &FeatureKind, stored: &FeatureKind) -> bool {
    match (ours, stored) {
        (FeatureKind::Category(_), FeatureKind::Code) => true,
        (ours, stored) => ours == stored,
    }
}

fn unreadable(problem: impl Into<String>) -> ModelError {
    ModelError::Artefact { what: "the model", problem: problem.into() }
}
