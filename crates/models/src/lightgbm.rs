//! LightGBM's text files: what they say about features, and which of them hold trees for two classes.
//!
//! The trees themselves are read by the engine and kept as XGBoost's; the format is that of `Booster.save_model` (LightGBM 4, `version=v4`).

use serde_json::Value;

use crate::{Feature, FeatureKind, ModelError, Result, Signature};

/// Whether an artefact is such a file, by how it begins.
pub(crate) fn is_text(artefact: &[u8]) -> bool {
    artefact.starts_with(b"tree\n") || artefact.starts_with(b"tree\r\n")
}

/// The features that a file names, with the categories that pandas gave it.
///
/// # Errors
///
/// Other objectives than that of two classes, linear trees, categories that cannot be told to features; a file that is cut short.
pub(crate) fn signature_of(artefact: &[u8]) -> Result<Signature> {
    let text = std::str::from_utf8(artefact).map_err(|_| unreadable("it is no UTF-8"))?;
    let said = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let objective = said("objective").and_then(|said| said.split(' ').next()).unwrap_or("a function of its own");
    if !matches!(objective, "binary" | "cross_entropy") {
        return Err(unreadable(format!("its objective is {objective}, where binary is needed")));
    }
    if text.lines().any(|line| line == "is_linear=1") {
        return Err(unreadable(
            "its leaves are linear models, which have no reasons and no place in XGBoost's format; train it without linear_tree",
        ));
    }
    let (Some(names), Some(infos)) = (said("feature_names"), said("feature_infos")) else {
        return Err(unreadable("it does not name its features"));
    };
    let names: Vec<&str> = names.split(' ').collect();
    let infos: Vec<&str> = infos.split(' ').collect();
    if names.len() != infos.len() {
        return Err(unreadable(format!("it names {} features and describes {}", names.len(), infos.len())));
    }
    let listed: Vec<usize> = parameter(text, "categorical_feature")
        .into_iter()
        .flat_map(|places| places.split(','))
        .filter_map(|place| place.parse().ok())
        .collect();
    // A number's values are `[least:most]`, categories are a list, and `none` is one that varies nowhere.
    let is_category =
        |place: usize| listed.contains(&place) || (!infos[place].starts_with('[') && infos[place] != "none");
    let places: Vec<usize> = (0..names.len()).filter(|place| is_category(*place)).collect();
    let categories = categories_of(text)?;
    if !categories.is_empty() && categories.len() != places.len() {
        return Err(unreadable(format!(
            "it has the categories of {} columns and {} features with categories: give all of these pandas' type `category`, or none",
            categories.len(),
            places.len()
        )));
    }
    let mut kinds = vec![FeatureKind::Number; names.len()];
    for (nth, place) in places.into_iter().enumerate() {
        kinds[place] = match categories.get(nth) {
            Some(values) => kind_of(names[place], values)?,
            None => FeatureKind::Code,
        };
    }
    let features = names.iter().zip(kinds).map(|(name, kind)| Feature { name: (*name).to_owned(), kind });
    Signature::new(features.collect())
}

/// A parameter of the training, as the end of the file has it: `[name: value]`.
fn parameter<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix('[')?.strip_prefix(name)?.strip_prefix(": ")?.strip_suffix(']'))
}

/// The categories of pandas' columns, in the order of the columns that have any; a code is a place in them.
fn categories_of(text: &str) -> Result<Vec<Vec<Value>>> {
    let Some(list) = text.lines().rev().find_map(|line| line.strip_prefix("pandas_categorical:")) else {
        return Ok(Vec::new());
    };
    let categories: Option<Vec<Vec<Value>>> =
        serde_json::from_str(list).map_err(|error| unreadable(format!("its pandas_categorical: {error}")))?;
    Ok(categories.unwrap_or_default())
}

/// Texts are names of categories; numbers are their own codes or cannot be known by a value.
fn kind_of(feature: &str, values: &[Value]) -> Result<FeatureKind> {
    let texts: Option<Vec<String>> = values.iter().map(|value| value.as_str().map(str::to_owned)).collect();
    if let Some(texts) = texts {
        return Ok(FeatureKind::Category(texts));
    }
    let is_own_code = |(code, value): (usize, &Value)| value.as_u64() == u64::try_from(code).ok();
    if values.iter().enumerate().all(is_own_code) {
        return Ok(FeatureKind::Code);
    }
    Err(unreadable(format!(
        "the categories of {feature:?} are neither texts nor the numbers 0, 1, 2 and so on: make them texts and train again"
    )))
}

fn unreadable(problem: impl Into<String>) -> ModelError {
    ModelError::Artefact { what: "the model", problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "tree\nversion=v4\nobjective=binary sigmoid:1\nfeature_names=days city flag unused\n\
         feature_infos=[0:90] -1:1:2:0 -1:1:0 none\n\nend of trees\n\n[categorical_feature: 1,2,3]\n";
    const CATEGORIES: &str = "pandas_categorical:[[\"x\", \"y\"], [0, 1], [\"k\"]]\n";

    #[test]
    fn features_have_the_kinds_and_categories_that_the_file_says() {
        let kinds = |text: &str| -> Vec<FeatureKind> {
            let signature = signature_of(text.as_bytes()).unwrap();
            assert_eq!(signature.features()[1].name, "city");
            signature.features().iter().map(|feature| feature.kind.clone()).collect()
        };
        let texts = |texts: &[&str]| FeatureKind::Category(texts.iter().map(|text| (*text).to_owned()).collect());
        let told = kinds(&format!("{HEAD}{CATEGORIES}"));
        assert_eq!(told, [FeatureKind::Number, texts(&["x", "y"]), FeatureKind::Code, texts(&["k"])]);
        for without in ["", "pandas_categorical:null\n", "pandas_categorical:[]\n"] {
            let told = kinds(&format!("{HEAD}{without}"));
            assert_eq!(told, [FeatureKind::Number, FeatureKind::Code, FeatureKind::Code, FeatureKind::Code]);
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_name() {
        let whole = format!("{HEAD}{CATEGORIES}");
        for (from, to, told) in [
            ("=binary sigmoid:1", "=lambdarank", "its objective is lambdarank"),
            ("objective=binary sigmoid:1\n", "", "its objective is a function of its own"),
            ("end of trees", "is_linear=1", "linear_tree"),
            ("feature_names", "names", "does not name its features"),
            (" none\n", "\n", "names 4 features and describes 3"),
            (", [\"k\"]", "", "the categories of 2 columns and 3 features"),
            ("[0, 1]", "[3, 7]", "the categories of \"flag\""),
            ("[[\"x\"", "[[x", "pandas_categorical"),
        ] {
            let error = signature_of(whole.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(told), "{told}: {error}");
        }
    }
}
