use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What names features: `view`, `view:feature`, and of a certain version `view@v3`, `view@v3:feature`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FeatureReference {
    /// The view.
    pub view: String,
    /// Its version; the newest where none is said.
    pub version: Option<u32>,
    /// The feature; all of them where none is said.
    pub feature: Option<String>,
}

impl FromStr for FeatureReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (view, feature) = match text.split_once(':') {
            Some((view, feature)) => (view, Some(feature.trim().to_owned())),
            None => (text, None),
        };
        let (view, version) = named(view)?;
        if feature.as_ref().is_some_and(String::is_empty) {
            return Err(format!("`{text}` names no feature behind the colon"));
        }
        Ok(Self { view, version, feature })
    }
}

/// A name, and the version of `name@v3`.
///
/// # Errors
/// In words, when it is no name or no version.
pub fn named(text: &str) -> Result<(String, Option<u32>), String> {
    let (name, version) = match text.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    let number = |version: &str| version.strip_prefix('v')?.parse::<u32>().ok().filter(|version| *version > 0);
    let version = version
        .map(|version| number(version).ok_or_else(|| format!("`@{version}` is no version: write `@v1`")))
        .transpose()?;
    let name = name.trim();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("`{text}` is no name: write view:feature, view, or view@v1:feature"));
    }
    Ok((name.to_owned(), version))
}

impl fmt::Display for FeatureReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.view)?;
        if let Some(version) = self.version {
            write!(f, "@v{version}")?;
        }
        match &self.feature {
            Some(feature) => write!(f, ":{feature}"),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for FeatureReference {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<FeatureReference> for String {
    fn from(reference: FeatureReference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_view_a_version_and_a_feature() {
        for text in ["churn_v1", "churn_v1:spend_90d", "churn_v1@v3", "churn_v1@v3:spend_90d"] {
            assert_eq!(text.parse::<FeatureReference>().unwrap().to_string(), text);
        }
        let full: FeatureReference = "churn@v12:spend".parse().unwrap();
        assert_eq!((full.version, full.feature.as_deref()), (Some(12), Some("spend")));
        for wrong in ["", ":a", "a:", "a@3", "a@v0", "a@v", "a b:c", "a@vx:y"] {
            assert!(wrong.parse::<FeatureReference>().is_err(), "{wrong}");
        }
    }
}
