//! What `[matching]` in identity.toml says: which sources bring records to compare, and by what.

use std::collections::BTreeMap;
use std::path::PathBuf;

use holdfast_lake::grammar::suggest;
use holdfast_linkage::{ColumnKind, LinkageSpec, recipe, weight_of};
use serde::Deserialize;
use toml::Spanned;

use crate::Result;
use crate::error::IdentityError;

/// A mistake, at a byte of the file.
type Wrong = (usize, String);

/// Pairs that are as likely as this to be one person are joined.
const LINK: f64 = 0.99;
/// Pairs that are as likely as this are for a person to decide.
const REVIEW: f64 = 0.5;

/// A key of a blocking rule that gave more pairs than this when the model was learnt gives none: what so many share says little.
const BLOCK_PAIRS_MAX: u64 = 20_000;

/// What can be said of a person.
pub(super) const ATTRIBUTES: [(&str, ColumnKind); 12] = [
    ("full_name", ColumnKind::FullName),
    ("given_name", ColumnKind::Forename),
    ("family_name", ColumnKind::Surname),
    ("birth_date", ColumnKind::BirthDate),
    ("gender", ColumnKind::Category),
    ("phone", ColumnKind::Phone),
    ("email", ColumnKind::Email),
    ("id_number", ColumnKind::IdNumber),
    ("address", ColumnKind::Address),
    ("postcode", ColumnKind::Postcode),
    ("city", ColumnKind::Place),
    ("region", ColumnKind::Region),
];

/// Records are compared by what they say of a person.
#[derive(Debug, Clone, PartialEq)]
pub struct Matching {
    /// Pairs that are as likely as this to be one person are joined.
    pub link: f64,
    /// Pairs that are as likely as this are for a person to decide.
    pub review: f64,
    /// Names that clearly differ keep a pair from being joined, as twins have all else in common.
    pub twins_apart: bool,
    /// For each source its attributes, each with the SQL expression over the raw table's columns that gives it.
    pub sources: BTreeMap<String, MatchingSource>,
    /// The file, for messages.
    pub(crate) path: PathBuf,
}

/// What the records of a source say of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchingSource {
    /// By name.
    pub attributes: BTreeMap<String, Attribute>,
    place: (usize, usize),
}

/// An attribute of a source's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// A SQL expression.
    pub value: String,
    place: (usize, usize),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MatchingText {
    link: Option<Spanned<f64>>,
    review: Option<Spanned<f64>>,
    twins_apart: Option<bool>,
    sources: BTreeMap<Spanned<String>, BTreeMap<Spanned<String>, Spanned<String>>>,
}

impl Matching {
    pub(crate) fn checked(text: &str, matching: MatchingText) -> Result<Self, Wrong> {
        for (key, value) in [("link", &matching.link), ("review", &matching.review)] {
            if let Some(value) = value.as_ref().filter(|value| !(0.0 < *value.as_ref() && *value.as_ref() < 1.0)) {
                let remedy = "it is the probability that two records are one person's";
                return Err((value.span().start, format!("{key} in [matching] is between 0 and 1: {remedy}")));
            }
        }
        let link = matching.link.as_ref().map_or(LINK, |link| *link.as_ref());
        let review = matching.review.as_ref().map_or(REVIEW.min(link), |review| *review.as_ref());
        if let Some(given) = matching.review.as_ref().filter(|_| review > link) {
            return Err((given.span().start, format!("review in [matching] is above link, which is {link}")));
        }
        let names: Vec<&str> = ATTRIBUTES.iter().map(|(name, _)| *name).collect();
        let mut sources = BTreeMap::new();
        for (source, given) in matching.sources {
            let at = source.span().start;
            let mut attributes = BTreeMap::new();
            for (name, value) in given {
                let at = name.span().start;
                let name = name.into_inner();
                if !names.contains(&name.as_str()) {
                    let hint =
                        suggest(&name, &names).map_or_else(String::new, |known| format!("; did you mean `{known}`?"));
                    let known = names.join(", ");
                    return Err((at, format!("`{name}` is no attribute of a person: there are {known}{hint}")));
                }
                let at = value.span().start;
                let value = value.into_inner();
                if value.trim().is_empty() {
                    return Err((
                        at,
                        format!("{name} is a SQL expression over the source's columns, and this is empty"),
                    ));
                }
                attributes.insert(name, Attribute { value, place: line_and_column(text, at) });
            }
            if attributes.is_empty() {
                let source = source.as_ref();
                return Err((
                    at,
                    format!(
                        "[matching.sources.{source}] names no attribute: leave it out, or name what its records say of a person"
                    ),
                ));
            }
            sources.insert(source.into_inner(), MatchingSource { attributes, place: line_and_column(text, at) });
        }
        let twins_apart = matching.twins_apart.unwrap_or(true);
        let matching = Self { link, review, twins_apart, sources, path: PathBuf::new() };
        matching.spec().map_err(|error| (0, format!("[matching]: {error}")))?;
        Ok(matching)
    }

    /// The weight from which on pairs are joined, in bits.
    #[expect(clippy::cast_possible_truncation, reason = "the logarithm of a probability fits")]
    pub(crate) fn link_weight(&self) -> f32 {
        weight_of(self.link) as f32
    }

    /// The attributes that any source has, with their kinds, in the order of names.
    pub(super) fn columns(&self) -> BTreeMap<&str, ColumnKind> {
        let is_used = |name: &str| self.sources.values().any(|source| source.attributes.contains_key(name));
        ATTRIBUTES.iter().filter(|(name, _)| is_used(name)).map(|(name, kind)| (*name, *kind)).collect()
    }

    /// What the records are compared by. The blocking rules do not depend on the records: those that are still to come are compared by the same.
    pub(super) fn spec(&self) -> Result<LinkageSpec, holdfast_linkage::LinkageError> {
        let mut spec = LinkageSpec::new(self.columns());
        spec.blocking = Some(recipe::narrow_blocking(&spec)?);
        spec.block_pairs_max = BLOCK_PAIRS_MAX;
        spec.link_probability = self.link;
        spec.review_probability = self.review;
        spec.check()?;
        Ok(spec)
    }

    /// A text that changes whenever another model is needed. Where the bar lies is no part of it.
    pub(super) fn fingerprint(&self) -> String {
        let mut text = format!("2 {}", self.review);
        for (name, source) in &self.sources {
            for (attribute, Attribute { value, .. }) in &source.attributes {
                text.push_str(&format!("\n{name} {attribute} {value}"));
            }
        }
        blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
    }

    /// The text that stands for `[matching]` in the fingerprint of the rules.
    pub(crate) fn bar(&self) -> String {
        let twins = if self.twins_apart { "" } else { ", twins too" };
        format!(" matching from {}{twins}", self.link)
    }

    /// A source that the pipeline does not have.
    ///
    /// # Errors
    /// [`IdentityError::Rules`] with its place.
    pub(super) fn check_sources(&self, known: &[&str]) -> Result<()> {
        for (name, source) in &self.sources {
            if !known.contains(&name.as_str()) {
                let hint = suggest(name, known).map_or_else(
                    || format!("there are {}", known.join(", ")),
                    |known| format!("did you mean `{known}`?"),
                );
                return Err(self.wrong(
                    source.place,
                    format!("[matching.sources.{name}]: the pipeline has no such source; {hint}"),
                ));
            }
        }
        Ok(())
    }

    /// A mistake in an attribute's expression.
    pub(super) fn wrong_attribute(&self, attribute: &Attribute, message: String) -> IdentityError {
        self.wrong(attribute.place, message)
    }

    fn wrong(&self, (line, column): (usize, usize), message: String) -> IdentityError {
        IdentityError::Rules { path: self.path.clone(), line, column, message }
    }
}

/// Both from 1.
pub(crate) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or_default();
    (before.matches('\n').count() + 1, before.rsplit('\n').next().unwrap_or_default().chars().count() + 1)
}
