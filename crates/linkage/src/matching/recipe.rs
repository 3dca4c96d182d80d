//! What follows from the kinds of columns alone: how they are compared, which pairs are looked at, and which rules hardly err.
//!
//! The recipe is the same for all data; only how many broad rules there are depends on how many pairs they give ([`blocking`]).

use super::blocking::count_pairs;
use super::error::LinkageError;
use super::records::Records;
use super::spec::{BlockingRule, ColumnKind, Comparison, Level, LinkageSpec};

/// Pairs per record that all broad rules together may give; the rules that give fewest come first, and the pairs of those left out are for others to find.
const BROAD_PAIRS_PER_RECORD: u64 = 30;

/// The comparisons of a specification: one for each column.
pub fn comparisons(spec: &LinkageSpec) -> Vec<Comparison> {
    if let Some(comparisons) = &spec.comparisons {
        return comparisons.clone();
    }
    let surname = first_of(spec, ColumnKind::Surname);
    spec.columns
        .iter()
        .map(|(column, kind)| {
            let swapped = surname.filter(|_| Some(column.as_str()) == first_of(spec, ColumnKind::Forename));
            Comparison { column: column.clone(), levels: levels(*kind, swapped) }
        })
        .collect()
}

fn levels(kind: ColumnKind, swapped_with: Option<&str>) -> Vec<Level> {
    let exact = Level::Exact { term_frequency: true };
    let similar = |at_least| Level::JaroWinkler { at_least };
    let changes = |at_most| Level::DamerauLevenshtein { at_most };
    match kind {
        ColumnKind::Forename | ColumnKind::Surname | ColumnKind::FullName => {
            let mut levels = vec![exact];
            levels.extend(swapped_with.map(|column| Level::SwappedWith { column: column.to_owned() }));
            levels.extend([
                Level::Pinyin { at_most: 0 },
                similar(0.92),
                similar(0.88),
                Level::Pinyin { at_most: 1 },
                Level::BeginningOf,
                similar(0.7),
            ]);
            levels
        }
        ColumnKind::BirthDate => vec![
            exact,
            changes(1),
            Level::DateWithin { days: 0, months: 1, years: 0 },
            Level::DateWithin { days: 0, months: 0, years: 1 },
            changes(2),
            Level::DateWithin { days: 0, months: 0, years: 10 },
        ],
        ColumnKind::Postcode => vec![
            exact,
            changes(1),
            Level::SameWithoutLast { characters: 2 },
            Level::SameWithoutLast { characters: 3 },
            changes(2),
            Level::SamePrefix { characters: 2 },
        ],
        ColumnKind::IdNumber | ColumnKind::Phone => vec![exact, changes(1), changes(2)],
        ColumnKind::Address => {
            vec![exact, similar(0.95), similar(0.88), Level::CommonWords { at_least: 0.5 }, similar(0.8)]
        }
        ColumnKind::HouseNumber => vec![exact, changes(1)],
        ColumnKind::Place => vec![exact, similar(0.92), similar(0.8)],
        ColumnKind::Region | ColumnKind::Category => vec![exact, similar(0.92)],
        ColumnKind::Email => vec![exact, changes(1), similar(0.92), similar(0.85)],
    }
}

/// The blocking rules of a specification. Narrow rules are always there. Broad ones (a birth date, a postcode, a surname alone) are added, those with
/// fewest pairs first, up to [`BROAD_PAIRS_PER_RECORD`]: that depends on how often values occur, not on what is true.
///
/// # Errors
/// [`LinkageError::Column`] when the records lack a column.
pub fn blocking(spec: &LinkageSpec, records: &Records) -> Result<Vec<BlockingRule>, LinkageError> {
    if let Some(rules) = &spec.blocking {
        return Ok(rules.clone());
    }
    let (narrow, broad) = keys(spec);
    let mut rules = Vec::new();
    for keys in narrow {
        rules.push(rule(&keys)?);
    }
    let mut counted = Vec::new();
    for keys in broad {
        let rule = rule(&keys)?;
        let (pairs, skipped) = count_pairs(records, &rule, spec.block_pairs_max)?;
        counted.push((pairs + skipped, rule));
    }
    // Rules with as many pairs keep their order.
    counted.sort_by_key(|(pairs, _)| *pairs);
    let mut left = BROAD_PAIRS_PER_RECORD * u64::from(records.rows());
    for (pairs, rule) in counted {
        if pairs <= left {
            left -= pairs;
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// The narrow rules alone: they do not depend on the records, so they hold for those that are still to come.
///
/// # Errors
/// None in practice: the keys follow from the columns.
pub fn narrow_blocking(spec: &LinkageSpec) -> Result<Vec<BlockingRule>, LinkageError> {
    keys(spec).0.iter().map(|keys| rule(keys)).collect()
}

/// The keys of narrow rules and of broad ones.
fn keys(spec: &LinkageSpec) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let one = |kind| first_of(spec, kind);
    let mut narrow: Vec<Vec<String>> = Vec::new();
    let mut broad: Vec<Vec<String>> = Vec::new();
    for kind in [ColumnKind::IdNumber, ColumnKind::Email, ColumnKind::Phone] {
        for column in all_of(spec, kind) {
            narrow.push(vec![column.to_owned()]);
        }
    }
    let (forename, surname) = (one(ColumnKind::Forename), one(ColumnKind::Surname));
    let (birth, postcode) = (one(ColumnKind::BirthDate), one(ColumnKind::Postcode));
    if let (Some(forename), Some(surname)) = (forename, surname) {
        narrow.push(vec![forename.to_owned(), surname.to_owned()]);
        narrow.push(vec![format!("{forename} = {surname}"), format!("{surname} = {forename}")]);
        narrow.push(vec![format!("{forename}[..3]"), format!("{surname}[..4]")]);
        if let Some(birth) = birth {
            narrow.push(vec![format!("{forename}[..2]"), format!("{surname}[..2]"), format!("{birth}[..4]")]);
        }
    }
    for name in all_of(spec, ColumnKind::FullName) {
        narrow.push(vec![name.to_owned()]);
        narrow.push(vec![format!("pinyin({name})")]);
    }
    let names: Vec<&str> = [forename, surname, one(ColumnKind::FullName)].into_iter().flatten().collect();
    for name in &names {
        if let Some(birth) = birth {
            narrow.push(vec![(*name).to_owned(), birth.to_owned()]);
        }
        if let Some(postcode) = postcode {
            narrow.push(vec![(*name).to_owned(), postcode.to_owned()]);
            broad.push(vec![(*name).to_owned(), format!("{postcode}[..3]")]);
        }
    }
    // A name with a slip of the finger further on.
    for name in all_of(spec, ColumnKind::FullName) {
        if let Some(birth) = birth {
            narrow.push(vec![format!("{name}[..1]"), birth.to_owned()]);
        }
    }
    if let Some(birth) = birth {
        for place in all_of(spec, ColumnKind::Place) {
            narrow.push(vec![birth.to_owned(), place.to_owned()]);
        }
        if let Some(postcode) = postcode {
            narrow.push(vec![birth.to_owned(), format!("{postcode}[..3]")]);
        }
    }
    for address in all_of(spec, ColumnKind::Address) {
        for other in [ColumnKind::HouseNumber, ColumnKind::Region, ColumnKind::Postcode, ColumnKind::Place] {
            for other in all_of(spec, other) {
                narrow.push(vec![address.to_owned(), other.to_owned()]);
            }
        }
    }
    for kind in
        [ColumnKind::BirthDate, ColumnKind::Address, ColumnKind::Postcode, ColumnKind::Surname, ColumnKind::Forename]
    {
        for column in all_of(spec, kind) {
            broad.push(vec![column.to_owned()]);
        }
    }
    if narrow.is_empty() && broad.is_empty() {
        // Nothing but places and categories: all of them together.
        narrow.push(spec.columns.keys().cloned().collect());
    }
    (narrow, broad)
}

/// Rules that hardly ever join two people: an id number; name and birth date; birth date and postcode.
///
/// # Errors
/// As [`blocking`].
pub fn deterministic(spec: &LinkageSpec) -> Result<Vec<BlockingRule>, LinkageError> {
    if let Some(rules) = &spec.deterministic {
        return Ok(rules.clone());
    }
    let one = |kind| first_of(spec, kind).map(str::to_owned);
    let mut rules: Vec<Vec<String>> = Vec::new();
    for kind in [ColumnKind::IdNumber, ColumnKind::Email, ColumnKind::Phone] {
        rules.extend(all_of(spec, kind).map(|column| vec![column.to_owned()]));
    }
    let name: Option<Vec<String>> = match (one(ColumnKind::Forename), one(ColumnKind::Surname)) {
        (Some(forename), Some(surname)) => Some(vec![forename, surname]),
        _ => one(ColumnKind::FullName).map(|name| vec![name]),
    };
    let birth = one(ColumnKind::BirthDate);
    let postcode = one(ColumnKind::Postcode);
    for other in [&birth, &postcode].into_iter().flatten() {
        if let Some(name) = &name {
            rules.push([name.as_slice(), std::slice::from_ref(other)].concat());
        }
    }
    if let (Some(birth), Some(postcode)) = (birth, postcode) {
        rules.push(vec![birth, postcode]);
    }
    if rules.is_empty() {
        rules.push(spec.columns.keys().cloned().collect());
    }
    rules.iter().map(|keys| rule(keys)).collect()
}

fn rule(keys: &[String]) -> Result<BlockingRule, LinkageError> {
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    BlockingRule::new(&keys)
}

fn all_of(spec: &LinkageSpec, kind: ColumnKind) -> impl Iterator<Item = &str> {
    spec.columns.iter().filter(move |(_, one)| **one == kind).map(|(name, _)| name.as_str())
}

fn first_of(spec: &LinkageSpec, kind: ColumnKind) -> Option<&str> {
    all_of(spec, kind).next()
}
