use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::Result;
use crate::error::IdentityError;
use crate::identifier::normalise;

/// The rules of a pipeline: `identity.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityRules {
    /// Identifier types, the one that speaks for a record first.
    pub priority: Vec<String>,
    /// What holds for each type.
    pub types: BTreeMap<String, TypeRule>,
    /// Values that are nobody's, normalised, by type.
    pub blocked: BTreeMap<String, BTreeSet<String>>,
}

/// What holds for an identifier type.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypeRule {
    /// A person has one value of it at most.
    #[serde(default)]
    pub unique: bool,
    /// A value that was seen with more than this many different values of one unique type is shared, and joins nobody.
    #[serde(default = "default_shared_above")]
    pub shared_above: usize,
    /// The country of phone numbers without a country code, ISO 3166.
    pub country: Option<String>,
}

fn default_shared_above() -> usize {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    priority: Vec<String>,
    types: BTreeMap<String, TypeRule>,
    #[serde(default)]
    blocked: BTreeMap<String, Vec<String>>,
}

impl IdentityRules {
    /// Reads a rule file.
    ///
    /// # Errors
    /// [`IdentityError::Rules`] with line and column.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| IdentityError::Unreadable { path: path.to_owned(), source })?;
        let wrong = |offset: usize, message: String| {
            let before = text.get(..offset).unwrap_or_default();
            IdentityError::Rules {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
                message,
            }
        };
        let file: File = toml::from_str(&text)
            .map_err(|error| wrong(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
        for name in &file.priority {
            if !file.types.contains_key(name) {
                let offset = text.find(&format!("\"{name}\"")).unwrap_or(0);
                return Err(wrong(offset, format!("priority names `{name}`, but there is no [types.{name}]")));
            }
        }
        for name in file.types.keys().chain(file.blocked.keys()) {
            if !file.priority.contains(name) {
                let offset = text.find(&format!("types.{name}")).or_else(|| text.find(name)).unwrap_or(0);
                return Err(wrong(offset, format!("`{name}` is missing in priority: every type has a rank")));
            }
        }
        for (name, rule) in &file.types {
            if let Some(country) = &rule.country
                && country.parse::<phonenumber::country::Id>().is_err()
            {
                let offset = text.find(&format!("\"{country}\"")).unwrap_or(0);
                return Err(wrong(offset, format!("`{country}` in [types.{name}] is not a country code such as CN")));
            }
        }
        let mut rules = Self { priority: file.priority, types: file.types, blocked: BTreeMap::new() };
        let blocked = file
            .blocked
            .iter()
            .map(|(name, values)| {
                let values = values.iter().filter_map(|value| normalise(&rules, name, value)).collect();
                (name.clone(), values)
            })
            .collect();
        rules.blocked = blocked;
        Ok(rules)
    }

    /// The rank of a type; 0 speaks first.
    pub fn rank(&self, identifier_type: &str) -> Option<u8> {
        self.priority.iter().position(|name| name == identifier_type).and_then(|rank| u8::try_from(rank).ok())
    }

    /// A text that changes whenever the rules would give other customers.
    pub fn fingerprint(&self) -> String {
        blake3::hash(format!("{self:?}").as_bytes()).to_hex().chars().take(32).collect()
    }
}
