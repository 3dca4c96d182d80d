use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::LinkageError;

/// What to link by. Only `columns` is needed: comparisons, blocking and deterministic rules then follow from the kinds of the columns
/// ([`recipe`](super::recipe)).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkageSpec {
    /// The columns that say something of the person, and what kind of thing.
    pub columns: BTreeMap<String, ColumnKind>,
    /// How columns are compared, in place of the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparisons: Option<Vec<Comparison>>,
    /// Which pairs are looked at: those that agree on all keys of one rule. In place of the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocking: Option<Vec<BlockingRule>>,
    /// Rules that hardly ever join two people, for a first guess at how many matches there are. In place of the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deterministic: Option<Vec<BlockingRule>>,
    /// Pairs from this probability on are links.
    #[serde(default = "default_link")]
    pub link_probability: f64,
    /// Pairs from this probability on are given out, for a person to look at.
    #[serde(default = "default_review")]
    pub review_probability: f64,
    /// Random pairs that show how often values agree by chance.
    #[serde(default = "default_sample")]
    pub sample_pairs: u32,
    /// A block of one rule with more pairs is skipped and reported: a value that so many records share says little.
    #[serde(default = "default_block_pairs_max")]
    pub block_pairs_max: u64,
    /// What the sample is drawn with.
    #[serde(default)]
    pub seed: u64,
}

fn default_link() -> f64 {
    0.5
}

fn default_review() -> f64 {
    0.05
}

fn default_sample() -> u32 {
    1_000_000
}

fn default_block_pairs_max() -> u64 {
    2_000_000
}

/// What a column holds; decides how its values are normalised and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnKind {
    /// A given name.
    Forename,
    /// A family name.
    Surname,
    /// A whole name in any order.
    FullName,
    /// A day of birth in any notation of [`birth_date`](crate::normal::birth_date).
    BirthDate,
    /// A postcode.
    Postcode,
    /// A number that is one person's: of a passport, an insurance, a member.
    IdNumber,
    /// A street, or a whole address.
    Address,
    /// The number of a house.
    HouseNumber,
    /// A town or a country, of birth or of living.
    Place,
    /// A state or a province: few values.
    Region,
    /// One of a list, such as an occupation.
    Category,
    /// An e-mail address.
    Email,
    /// A telephone number.
    Phone,
}

/// One column (or two that may be swapped), compared: the first level that holds counts. Two more exist always: one value is missing, and none holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// The column.
    pub column: String,
    /// From the best agreement to the worst.
    pub levels: Vec<Level>,
}

/// How much two values agree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "level", rename_all = "snake_case", deny_unknown_fields)]
pub enum Level {
    /// The same value.
    Exact {
        /// A rare value weighs more than a common one.
        #[serde(default)]
        term_frequency: bool,
    },
    /// This column is the other record's `column` and the other way round; the comparison of `column` then counts as missing, since that agreement is
    /// counted here.
    SwappedWith {
        /// The other column.
        column: String,
    },
    /// Jaro–Winkler similarity.
    JaroWinkler {
        /// Above 0, up to 1.
        at_least: f64,
    },
    /// Damerau–Levenshtein distance.
    DamerauLevenshtein {
        /// Changes, from 1.
        at_most: u32,
    },
    /// The distance of the readings, where one of the values has hanzi.
    Pinyin {
        /// Changes, from 0.
        at_most: u32,
    },
    /// Both are days, and no further apart than the sum of these.
    DateWithin {
        /// Days.
        #[serde(default)]
        days: u32,
        /// Months of 30.44 days.
        #[serde(default)]
        months: u32,
        /// Years of 365.25 days.
        #[serde(default)]
        years: u32,
    },
    /// The first characters are the same.
    SamePrefix {
        /// How many; shorter values do not agree.
        characters: u32,
    },
    /// What is left without the last characters is the same, and at least two characters.
    SameWithoutLast {
        /// How many are left out.
        characters: u32,
    },
    /// One value is the beginning of the other: an initial, a short form.
    BeginningOf,
    /// One value holds the other somewhere.
    PartOf {
        /// Characters of the shorter one, from 1.
        characters: u32,
    },
    /// The share of the words of the value with fewer words that the other has too.
    CommonWords {
        /// Above 0, up to 1.
        at_least: f64,
    },
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact { .. } => write!(f, "exact"),
            Self::SwappedWith { column } => write!(f, "swapped with {column}"),
            Self::JaroWinkler { at_least } => write!(f, "jaro_winkler >= {at_least}"),
            Self::DamerauLevenshtein { at_most } => write!(f, "damerau_levenshtein <= {at_most}"),
            Self::Pinyin { at_most } => write!(f, "pinyin <= {at_most}"),
            Self::DateWithin { days, months, years } => write!(f, "within {years} y {months} m {days} d"),
            Self::SamePrefix { characters } => write!(f, "first {characters} characters"),
            Self::SameWithoutLast { characters } => write!(f, "all but the last {characters} characters"),
            Self::BeginningOf => write!(f, "beginning of the other"),
            Self::PartOf { characters } => write!(f, "part of the other, from {characters} characters"),
            Self::CommonWords { at_least } => write!(f, "common words >= {at_least}"),
        }
    }
}

/// Records that agree on all keys are a pair to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockingRule {
    /// All must agree; a missing value agrees with nothing.
    pub keys: Vec<BlockingKey>,
}

/// What must be equal: `surname`, `surname[..4]`, `postcode[2..5]`, `pinyin(name)`, or one expression of the one record and another of the other,
/// `first_name = surname`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockingKey {
    /// Of the one record; in a link of two sets, of the left one.
    pub left: KeyExpression,
    /// Of the other.
    pub right: KeyExpression,
}

/// A value, or characters of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyExpression {
    /// The column.
    pub column: String,
    /// The first character, from 0.
    pub from: usize,
    /// The character after the last one; none: to the end.
    pub to: Option<usize>,
    /// Of the reading in place of the value.
    pub pinyin: bool,
}

impl BlockingRule {
    /// A rule of written keys.
    ///
    /// # Errors
    /// [`LinkageError::Rules`] for a key that cannot be read.
    pub fn new(keys: &[&str]) -> Result<Self, LinkageError> {
        let keys = keys
            .iter()
            .map(|key| {
                BlockingKey::try_from((*key).to_owned())
                    .map_err(|message| LinkageError::Rules { key: "blocking".to_owned(), message })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { keys })
    }
}

impl fmt::Display for BlockingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        write!(f, "{}", keys.join(", "))
    }
}

impl TryFrom<String> for BlockingKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (left, right) = text.split_once('=').unwrap_or((&text, &text));
        Ok(Self { left: left.parse()?, right: right.parse()? })
    }
}

impl From<BlockingKey> for String {
    fn from(key: BlockingKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for BlockingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.left == self.right { write!(f, "{}", self.left) } else { write!(f, "{} = {}", self.left, self.right) }
    }
}

impl std::str::FromStr for KeyExpression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no key: expected column, column[..3], column[2..5] or pinyin(column)");
        let mut rest = text.trim();
        let pinyin = rest.starts_with("pinyin(");
        if pinyin {
            rest = rest.trim_start_matches("pinyin(");
            let (inner, after) = rest.split_once(')').ok_or_else(wrong)?;
            if !after.is_empty() && !after.starts_with('[') {
                return Err(wrong());
            }
            let range = after;
            let (from, to) = range_of(range).ok_or_else(wrong)?;
            return Self { column: inner.trim().to_owned(), from, to, pinyin }.checked().ok_or_else(wrong);
        }
        let at = rest.find('[').unwrap_or(rest.len());
        let (column, range) = rest.split_at(at);
        let (from, to) = range_of(range).ok_or_else(wrong)?;
        Self { column: column.trim().to_owned(), from, to, pinyin }.checked().ok_or_else(wrong)
    }
}

fn range_of(text: &str) -> Option<(usize, Option<usize>)> {
    if text.is_empty() {
        return Some((0, None));
    }
    let (from, to) = text.strip_prefix('[')?.strip_suffix(']')?.split_once("..")?;
    let from = if from.trim().is_empty() { 0 } else { from.trim().parse().ok()? };
    let to = if to.trim().is_empty() { None } else { Some(to.trim().parse().ok()?) };
    to.is_none_or(|to| to > from).then_some((from, to))
}

impl KeyExpression {
    fn checked(self) -> Option<Self> {
        let is_name = !self.column.is_empty() && !self.column.contains(|char: char| "()[]=".contains(char));
        is_name.then_some(self)
    }
}

impl fmt::Display for KeyExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pinyin {
            write!(f, "pinyin({})", self.column)?;
        } else {
            write!(f, "{}", self.column)?;
        }
        match (self.from, self.to) {
            (0, None) => Ok(()),
            (0, Some(to)) => write!(f, "[..{to}]"),
            (from, None) => write!(f, "[{from}..]"),
            (from, Some(to)) => write!(f, "[{from}..{to}]"),
        }
    }
}

/// Comparisons and levels fit into 64 bits beside eight for term frequencies.
pub(crate) const COMPARISONS_MAX: usize = 14;
/// Besides missing and none.
pub(crate) const LEVELS_MAX: usize = 14;

impl LinkageSpec {
    /// A specification of columns alone.
    pub fn new<'a>(columns: impl IntoIterator<Item = (&'a str, ColumnKind)>) -> Self {
        Self {
            columns: columns.into_iter().map(|(name, kind)| (name.to_owned(), kind)).collect(),
            comparisons: None,
            blocking: None,
            deterministic: None,
            link_probability: default_link(),
            review_probability: default_review(),
            sample_pairs: default_sample(),
            block_pairs_max: default_block_pairs_max(),
            seed: 0,
        }
    }

    /// Reads a specification.
    ///
    /// # Errors
    /// [`LinkageError::Syntax`] with line and column, [`LinkageError::Rules`] with the key.
    pub fn from_toml(text: &str) -> Result<Self, LinkageError> {
        let spec: Self = toml::from_str(text).map_err(|error| LinkageError::Syntax(error.to_string()))?;
        spec.check()?;
        Ok(spec)
    }

    /// Finds what cannot be meant.
    ///
    /// # Errors
    /// [`LinkageError::Rules`] with the key of the first mistake.
    pub fn check(&self) -> Result<(), LinkageError> {
        let wrong = |key: String, message: String| Err(LinkageError::Rules { key, message });
        if self.columns.is_empty() {
            return wrong("columns".to_owned(), "there are none".to_owned());
        }
        if self.comparisons.is_none() && self.columns.len() > COMPARISONS_MAX {
            return wrong("columns".to_owned(), format!("at most {COMPARISONS_MAX} can be compared: name comparisons"));
        }
        for (key, value) in
            [("link_probability", self.link_probability), ("review_probability", self.review_probability)]
        {
            if !(value > 0.0 && value < 1.0) {
                return wrong(key.to_owned(), format!("{value} is not between 0 and 1"));
            }
        }
        if self.review_probability > self.link_probability {
            return wrong("review_probability".to_owned(), "is above link_probability".to_owned());
        }
        if self.sample_pairs == 0 {
            return wrong("sample_pairs".to_owned(), "must be above 0".to_owned());
        }
        if self.block_pairs_max == 0 {
            return wrong("block_pairs_max".to_owned(), "must be above 0".to_owned());
        }
        let known = |key: &str, column: &str| {
            if self.columns.contains_key(column) {
                Ok(())
            } else {
                let names: Vec<&str> = self.columns.keys().map(String::as_str).collect();
                let message = format!("there is no column `{column}`; columns has {}", names.join(", "));
                Err(LinkageError::Rules { key: key.to_owned(), message })
            }
        };
        if let Some(comparisons) = &self.comparisons {
            if comparisons.is_empty() || comparisons.len() > COMPARISONS_MAX {
                return wrong("comparisons".to_owned(), format!("1 to {COMPARISONS_MAX} are possible"));
            }
            for (at, comparison) in comparisons.iter().enumerate() {
                known(&format!("comparisons[{at}].column"), &comparison.column)?;
                if comparison.levels.is_empty() || comparison.levels.len() > LEVELS_MAX {
                    return wrong(format!("comparisons[{at}].levels"), format!("1 to {LEVELS_MAX} are possible"));
                }
                for (place, level) in comparison.levels.iter().enumerate() {
                    let key = format!("comparisons[{at}].levels[{place}]");
                    match level {
                        Level::JaroWinkler { at_least } | Level::CommonWords { at_least }
                            if !(*at_least > 0.0 && *at_least <= 1.0) =>
                        {
                            return wrong(format!("{key}.at_least"), format!("{at_least} is not above 0 and up to 1"));
                        }
                        Level::DamerauLevenshtein { at_most: 0 } => {
                            return wrong(format!("{key}.at_most"), "0 changes is the level exact".to_owned());
                        }
                        Level::DateWithin { days: 0, months: 0, years: 0 } => {
                            return wrong(key, "needs days, months or years".to_owned());
                        }
                        Level::DateWithin { .. }
                            if self.columns.get(&comparison.column) != Some(&ColumnKind::BirthDate) =>
                        {
                            return wrong(key, format!("column `{}` is no birth_date", comparison.column));
                        }
                        Level::SamePrefix { characters: 0 }
                        | Level::SameWithoutLast { characters: 0 }
                        | Level::PartOf { characters: 0 } => {
                            return wrong(format!("{key}.characters"), "must be above 0".to_owned());
                        }
                        Level::SwappedWith { column } => known(&format!("{key}.column"), column)?,
                        _ => {}
                    }
                }
            }
        }
        for (name, rules) in [("blocking", &self.blocking), ("deterministic", &self.deterministic)] {
            let Some(rules) = rules else { continue };
            if rules.is_empty() {
                return wrong(name.to_owned(), "there are none".to_owned());
            }
            for (at, rule) in rules.iter().enumerate() {
                if rule.keys.is_empty() {
                    return wrong(format!("{name}[{at}]"), "has no keys".to_owned());
                }
                for (place, key) in rule.keys.iter().enumerate() {
                    known(&format!("{name}[{at}][{place}]"), &key.left.column)?;
                    known(&format!("{name}[{at}][{place}]"), &key.right.column)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
blocking = [["surname[..4]", "dob"], ["name = surname", "surname = name"], ["pinyin(name)[1..3]"]]
link_probability = 0.9

[columns]
name = "forename"
surname = "surname"
dob = "birth_date"

[[comparisons]]
column = "name"
levels = [{ level = "exact", term_frequency = true }, { level = "jaro_winkler", at_least = 0.9 }]
"#;

    #[test]
    fn a_specification_is_read_and_written() {
        let spec = LinkageSpec::from_toml(GOOD).expect("good");
        let rules: Vec<String> = spec.blocking.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(rules, ["surname[..4], dob", "name = surname, surname = name", "pinyin(name)[1..3]"]);
        let again = toml::to_string(&spec).expect("written");
        assert_eq!(LinkageSpec::from_toml(&again), Ok(spec));
    }

    #[test]
    fn mistakes_are_told_with_their_key() {
        for (from, to, expected) in [
            ("\"surname[..4]\", \"dob\"", "\"surnam[..4]\"", "blocking[0][0]"),
            ("\"surname[..4]\", \"dob\"", "", "blocking[0]"),
            ("surname[..4]", "surname[4..2]", "surname[4..2]"),
            ("at_least = 0.9", "at_least = 1.9", "comparisons[0].levels[1].at_least"),
            ("jaro_winkler", "jaro", "unknown variant `jaro`"),
            ("column = \"name\"", "column = \"nam\"", "comparisons[0].column"),
            (
                "level = \"jaro_winkler\", at_least = 0.9",
                "level = \"date_within\", days = 3",
                "comparisons[0].levels[1]",
            ),
            ("link_probability = 0.9", "link_probability = 9", "link_probability"),
            ("link_probability = 0.9", "link_probabilty = 0.9", "unknown field `link_probabilty`"),
            ("\"birth_date\"", "\"date\"", "unknown variant `date`"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = LinkageSpec::from_toml(&GOOD.replacen(from, to, 1)).expect_err(to).to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
