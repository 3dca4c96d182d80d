//! What a model is about, by its file: customers, unless it says otherwise.

use serde::Deserialize;

use super::registry::Version;
use crate::error::CliError;
use crate::project::Project;

/// The kinds of models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Who of the customers will leave.
    #[default]
    Churn,
    /// What texts say.
    Sentiment,
    /// Who buys again, how often and for how much.
    Lifetime,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    kind: Kind,
}

impl Kind {
    /// The kind that a file says. What cannot be read is told by the reader of the whole file.
    pub(crate) fn of(text: &str) -> Self {
        toml::from_str::<Head>(text).map_or(Self::Churn, |head| head.kind)
    }

    /// The kind of a model of the pipeline, or, where there is no such file, the usual one.
    pub(crate) fn of_model(project: &Project, name: &str) -> Result<Self, CliError> {
        let text = std::fs::read_to_string(project.model_folder()?.join(format!("{name}.toml")));
        Ok(text.map_or(Self::Churn, |text| Self::of(&text)))
    }
}

impl Version {
    /// What the model was about when it was trained.
    pub(crate) fn kind(&self) -> Kind {
        Kind::of(&self.spec)
    }
}

impl Kind {
    /// Why a command about who will leave is refused for a model of another kind; nothing of that kind.
    pub(crate) fn other(self, model: &str) -> Option<CliError> {
        let (about, asked) = match self {
            Self::Churn => return None,
            Self::Sentiment => ("texts", "sentiment(text)"),
            Self::Lifetime => ("repeat buying", "p_alive, expected_purchases and clv"),
        };
        Some(CliError::Argument(format!(
            "`{model}` is about {about}: it is trained with `holdfast train --model {model}`, promoted like all others, and asked in SQL, {asked}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_about_customers_unless_it_says_otherwise() {
        assert_eq!(Kind::of("kind = \"sentiment\"\n[texts]\ntable = \"core.reviews\"\n"), Kind::Sentiment);
        assert_eq!(Kind::of("kind = \"lifetime\"\n"), Kind::Lifetime);
        for text in ["kind = \"churn\"\n", "[features]\nstage = \"features.f\"\n", "kind = \"weather\"\n", "not toml"] {
            assert_eq!(Kind::of(text), Kind::Churn, "{text}");
        }
    }
}
