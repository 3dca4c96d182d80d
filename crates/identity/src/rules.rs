use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug, Formatter};
use std::path::Path;
use std::sync::OnceLock;

use holdfast_graph::{Limit, Rules, TypeRule as GraphRule};
use holdfast_lake::grammar::suggest;
use regex::Regex;
use serde::Deserialize;
use toml::Spanned;

use crate::Result;
use crate::error::IdentityError;
use crate::identifier::normalise_in;
use crate::matching::{Matching, MatchingText, line_and_column};

/// Ranks are counted in a byte, and one is for types that the rules do not know.
const TYPES_MAX: usize = 255;

/// The rules of a pipeline: `identity.toml`.
#[derive(Debug, Clone, PartialEq)]
pub struct IdentityRules {
    /// Identifier types, the one that speaks for a record first.
    pub priority: Vec<String>,
    /// What holds for each type.
    pub types: BTreeMap<String, TypeRule>,
    /// What is nobody's, by type.
    pub blocked: BTreeMap<String, Blocked>,
    /// How records that share no identifier are compared; `None`: not at all.
    pub matching: Option<Matching>,
}

/// What holds for an identifier type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TypeRule {
    /// A person has one value of it at most.
    pub unique: bool,
    /// A value that was seen with more than this many different values of one unique type is shared, and joins nobody. `None` for unique types, which are never shared.
    pub shared_above: Option<u32>,
    /// A value that was seen with more than this many other identifiers of any kind is a hub (a bot, a shop's phone), and joins nobody.
    pub hub_above: Option<u32>,
    /// How many values of it a person may have.
    pub limit: Option<Limit>,
    /// A value may have been given to somebody else when nobody with a unique identifier used it for this many microseconds. `None` for unique types, whose values are never given on.
    pub recycled_after: Option<i64>,
    /// The country of phone numbers without a country code, ISO 3166.
    pub country: Option<String>,
}

/// Values of a type that are nobody's.
#[derive(Clone)]
pub struct Blocked {
    identifier_type: String,
    /// That of the type's numbers without a country code.
    country: Option<String>,
    /// Values as the rules have them.
    entries: BTreeSet<String>,
    /// The same normalised, once somebody asks: what telephone numbers look like in all countries takes longer to read than a run with nothing to do.
    values: OnceLock<BTreeSet<String>>,
    /// What matches a value as it came, or as it is normalised.
    patterns: Vec<Regex>,
}

impl Blocked {
    /// Whether a value is among them.
    pub fn holds(&self, as_it_came: &str, normalised: &str) -> bool {
        self.values().contains(normalised)
            || self.patterns.iter().any(|pattern| pattern.is_match(as_it_came) || pattern.is_match(normalised))
    }

    /// Normalised values. What is no identifier in any case is not among them.
    pub fn values(&self) -> &BTreeSet<String> {
        let normalised = |entry: &String| normalise_in(self.country.as_deref(), &self.identifier_type, entry);
        self.values.get_or_init(|| self.entries.iter().filter_map(normalised).collect())
    }
}

/// What the rules say, whether or not it was normalised meanwhile.
impl Debug for Blocked {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let Self { identifier_type: _, country: _, entries, values: _, patterns } = self;
        formatter.debug_struct("Blocked").field("values", entries).field("patterns", patterns).finish()
    }
}

impl PartialEq for Blocked {
    fn eq(&self, other: &Self) -> bool {
        let texts = |blocked: &Self| -> Vec<String> { blocked.patterns.iter().map(Regex::to_string).collect() };
        let written = |blocked: &Self| (blocked.country.clone(), blocked.entries.clone());
        (written(self) == written(other) || self.values() == other.values()) && texts(self) == texts(other)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    priority: Vec<Spanned<String>>,
    types: BTreeMap<Spanned<String>, RuleText>,
    #[serde(default)]
    blocked: BTreeMap<Spanned<String>, Vec<Spanned<String>>>,
    matching: Option<MatchingText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    #[serde(default)]
    unique: bool,
    shared_above: Option<Spanned<u32>>,
    hub_above: Option<Spanned<u32>>,
    limit: Option<Spanned<LimitText>>,
    recycled_after: Option<Spanned<String>>,
    country: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitText {
    values: Spanned<u32>,
    within: Option<Spanned<String>>,
}

/// A mistake, at a byte of the file.
type Wrong = (usize, String);

impl IdentityRules {
    /// Reads a rule file.
    ///
    /// # Errors
    /// [`IdentityError::Unreadable`]; [`IdentityError::Rules`] with line and column.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| IdentityError::Unreadable { path: path.to_owned(), source })?;
        let mut rules = Self::parse(&text).map_err(|(offset, message)| {
            let (line, column) = line_and_column(&text, offset);
            IdentityError::Rules { path: path.to_owned(), line, column, message }
        })?;
        if let Some(matching) = &mut rules.matching {
            matching.path = path.to_owned();
        }
        Ok(rules)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, Wrong> {
        let file: File = toml::from_str(text)
            .map_err(|error| (error.span().map_or(0, |span| span.start), with_suggestion(error.message())))?;
        let mut priority: Vec<String> = Vec::with_capacity(file.priority.len());
        let types: Vec<&str> = file.types.keys().map(|name| name.as_ref().as_str()).collect();
        for name in &file.priority {
            let at = name.span().start;
            let name = name.as_ref();
            if !types.contains(&name.as_str()) {
                let hint = did_you_mean(name, &types);
                return Err((at, format!("priority names `{name}`, but there is no [types.{name}]{hint}")));
            }
            if priority.contains(name) {
                return Err((at, format!("priority names `{name}` twice: a type has one rank")));
            }
            priority.push(name.clone());
        }
        if priority.len() > TYPES_MAX {
            return Err((0, format!("there are {} types, at most {TYPES_MAX} are possible", priority.len())));
        }
        let ranked: Vec<&str> = priority.iter().map(String::as_str).collect();
        for name in file.types.keys().chain(file.blocked.keys()) {
            let (at, name) = (name.span().start, name.as_ref());
            if !ranked.contains(&name.as_str()) {
                let hint = did_you_mean(name, &ranked);
                return Err((at, format!("`{name}` is missing in priority: every type has a rank{hint}")));
            }
        }
        let mut rules = Self { priority, types: BTreeMap::new(), blocked: BTreeMap::new(), matching: None };
        for (name, rule) in file.types {
            let rule = checked(name.as_ref(), rule)?;
            rules.types.insert(name.into_inner(), rule);
        }
        for (name, entries) in file.blocked {
            let country = rules.types.get(name.as_ref()).and_then(|rule| rule.country.clone());
            let mut blocked = Blocked {
                identifier_type: name.as_ref().clone(),
                country,
                entries: BTreeSet::new(),
                values: OnceLock::new(),
                patterns: Vec::new(),
            };
            for entry in entries {
                match expression(entry.as_ref()) {
                    Some(expression) => {
                        let pattern = Regex::new(expression).map_err(|error| {
                            let reason = error.to_string();
                            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
                            (entry.span().start, format!("[blocked] {}: {reason}", entry.as_ref()))
                        })?;
                        blocked.patterns.push(pattern);
                    }
                    None => {
                        blocked.entries.insert(entry.into_inner());
                    }
                }
            }
            rules.blocked.insert(name.into_inner(), blocked);
        }
        rules.matching = file.matching.map(|matching| Matching::checked(text, matching)).transpose()?;
        // What is left to be wrong concerns the file as a whole.
        Rules::new(rules.graph_types()).map_err(|error| (0, error.to_string()))?;
        Ok(rules)
    }

    /// The rank of a type; 0 speaks first.
    pub fn rank(&self, identifier_type: &str) -> Option<u8> {
        self.priority.iter().position(|name| name == identifier_type).and_then(|rank| u8::try_from(rank).ok())
    }

    /// The name of a rank; empty for one that there is not.
    pub fn type_of(&self, rank: u8) -> &str {
        self.priority.get(usize::from(rank)).map(String::as_str).unwrap_or_default()
    }

    /// The rank of identifiers whose type the rules no longer know: they are kept, and nothing speaks of them.
    pub(crate) fn resting_rank(&self) -> u8 {
        u8::try_from(self.priority.len()).unwrap_or(u8::MAX)
    }

    /// The rules as the graph knows them: a rule for each rank, and one for the resting.
    pub(crate) fn graph_rules(&self) -> Result<Rules> {
        Ok(Rules::new(self.graph_types())?)
    }

    fn graph_types(&self) -> Vec<GraphRule> {
        let of = |name: &String| self.types.get(name).map(TypeRule::of_graph).unwrap_or_default();
        self.priority.iter().map(of).chain([GraphRule::default()]).collect()
    }

    /// A text that changes whenever the rules would give other customers.
    pub fn fingerprint(&self) -> String {
        let Self { priority, types, blocked, matching } = self;
        let bar = matching.as_ref().map(Matching::bar).unwrap_or_default();
        let text = format!("IdentityRules {{ priority: {priority:?}, types: {types:?}, blocked: {blocked:?} }}{bar}");
        blake3::hash(text.as_bytes()).to_hex().chars().take(32).collect()
    }
}

impl TypeRule {
    fn of_graph(&self) -> GraphRule {
        GraphRule {
            unique: self.unique,
            shared_above: self.shared_above,
            hub_above: self.hub_above,
            limit: self.limit,
            life_gap: self.recycled_after,
        }
    }
}

fn checked(name: &str, rule: RuleText) -> Result<TypeRule, Wrong> {
    if let (true, Some(shared_above)) = (rule.unique, &rule.shared_above) {
        return Err((
            shared_above.span().start,
            format!("[types.{name}] is unique, so its values are never shared: leave out shared_above"),
        ));
    }
    if let (true, Some(recycled_after)) = (rule.unique, &rule.recycled_after) {
        return Err((
            recycled_after.span().start,
            format!(
                "[types.{name}] is unique, so its values are never given to somebody else: leave out recycled_after"
            ),
        ));
    }
    for (key, value) in [("shared_above", &rule.shared_above), ("hub_above", &rule.hub_above)] {
        if let Some(value) = value.as_ref().filter(|value| *value.as_ref() == 0) {
            let remedy = "0 would leave nothing to join; to join nothing by a type, leave it out of the sources";
            return Err((value.span().start, format!("{key} in [types.{name}] is at least 1: {remedy}")));
        }
    }
    if let Some(country) = &rule.country
        && country.as_ref().parse::<phonenumber::country::Id>().is_err()
    {
        let (at, country) = (country.span().start, country.as_ref());
        return Err((at, format!("`{country}` in [types.{name}] is not a country code such as CN")));
    }
    let limit = rule.limit.map(|limit| checked_limit(name, limit.into_inner())).transpose()?;
    let recycled_after = rule.recycled_after.map(|time| checked_time(name, &time)).transpose()?;
    let shared_above = rule.shared_above.map(Spanned::into_inner);
    Ok(TypeRule {
        unique: rule.unique,
        shared_above: if rule.unique { None } else { Some(shared_above.unwrap_or(1)) },
        hub_above: rule.hub_above.map(Spanned::into_inner),
        limit,
        recycled_after,
        country: rule.country.map(Spanned::into_inner),
    })
}

fn checked_limit(name: &str, limit: LimitText) -> Result<Limit, Wrong> {
    if *limit.values.as_ref() == 0 {
        return Err((limit.values.span().start, format!("a limit in [types.{name}] is of at least 1 value")));
    }
    let window = limit.within.map(|within| checked_time(name, &within)).transpose()?;
    Ok(Limit { values: limit.values.into_inner(), window })
}

/// A time in microseconds.
fn checked_time(name: &str, time: &Spanned<String>) -> Result<i64, Wrong> {
    let text = time.as_ref();
    micros(text)
        .ok_or_else(|| (time.span().start, format!("`{text}` in [types.{name}] is not a time: write 365d, 36h or 90m")))
}

/// A time such as 365d, above 0, in microseconds.
fn micros(text: &str) -> Option<i64> {
    let unit = text.char_indices().last().map(|(at, _)| at)?;
    let seconds = match text.get(unit..)? {
        "d" => 86_400,
        "h" => 3_600,
        "m" => 60,
        _ => return None,
    };
    let count: i64 = text.get(..unit)?.trim().parse().ok().filter(|count| *count > 0)?;
    count.checked_mul(seconds)?.checked_mul(1_000_000)
}

/// What stands between the strokes of `/…/`.
fn expression(entry: &str) -> Option<&str> {
    entry.strip_prefix('/')?.strip_suffix('/').filter(|expression| !expression.is_empty())
}

fn did_you_mean(name: &str, known: &[&str]) -> String {
    suggest(name, known).map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

/// A message of the parser, which lists what it knows, with the word that was probably meant.
fn with_suggestion(message: &str) -> String {
    let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match words.split_first() {
        Some((given, known)) if message.starts_with("unknown field") => {
            format!("{message}{}", did_you_mean(given, known))
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str) -> (usize, String) {
        let (offset, message) = IdentityRules::parse(text).unwrap_err();
        (text[..offset].matches('\n').count() + 1, message)
    }

    #[test]
    fn what_the_graph_knows_can_be_said_of_each_type() {
        let rules = IdentityRules::parse(
            "priority = [\"member_id\", \"phone\"]\n[types.member_id]\nunique = true\n\
             [types.phone]\ncountry = \"CN\"\nshared_above = 2\nhub_above = 50\nlimit = { values = 3, within = \"365d\" }\n\
             [blocked]\nphone = [\"138 0013 8000\", \"/^1700/\"]\n",
        )
        .unwrap();
        let phone = &rules.types["phone"];
        assert_eq!((phone.shared_above, phone.hub_above), (Some(2), Some(50)));
        assert_eq!(phone.limit, Some(Limit { values: 3, window: Some(365 * 86_400_000_000) }));
        assert_eq!(rules.types["member_id"].shared_above, None);
        let blocked = &rules.blocked["phone"];
        assert!(blocked.holds("13800138000", "+8613800138000"));
        assert!(blocked.holds("17001234567", "+8617001234567"), "as it came");
        assert!(!blocked.holds("13912345678", "+8613912345678"));
        assert_eq!(rules.graph_rules().unwrap().types().len(), 3);
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_was_meant() {
        let phone = "priority = [\"phone\"]\n[types.phone]\n";
        for (text, line, expected) in [
            (format!("{phone}shard_above = 2\n"), 3, "did you mean `shared_above`?"),
            (format!("{phone}limit = {{ values = 3, within = \"1y\" }}\n"), 3, "`1y` in [types.phone] is not a time"),
            (format!("{phone}limit = {{ values = 0 }}\n"), 3, "at least 1 value"),
            (format!("{phone}hub_above = 0\n"), 3, "hub_above in [types.phone] is at least 1"),
            (format!("{phone}unique = true\nshared_above = 2\n"), 4, "leave out shared_above"),
            (format!("{phone}unique = true\nrecycled_after = \"60d\"\n"), 4, "leave out recycled_after"),
            (format!("{phone}recycled_after = \"2 months\"\n"), 3, "`2 months` in [types.phone] is not a time"),
            (format!("{phone}country = \"China\"\n"), 3, "`China` in [types.phone] is not a country code"),
            (format!("{phone}[blocked]\nphnoe = [\"1\"]\n"), 4, "did you mean `phone`?"),
            (format!("{phone}[blocked]\nphone = [\"/(/\"]\n"), 4, "unclosed group"),
            ("priority = [\"phone\", \"phone\"]\n[types.phone]\n".to_owned(), 1, "`phone` twice"),
            ("priority = [\"phne\"]\n[types.phone]\n".to_owned(), 1, "did you mean `phone`?"),
        ] {
            let (found, message) = mistake(&text);
            assert!(message.contains(expected), "{message}");
            assert_eq!(found, line, "{message}");
        }
    }
}
