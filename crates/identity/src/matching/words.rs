//! How two records compare, in words that tell no value.

use holdfast_linkage::{ComparisonModel, Edge, Level, LinkageModel};

use super::model::Model;

/// `full_name sounds the same; birth_date the same; city differs`. What one of the records lacks is left out.
pub(super) fn comparison(model: &LinkageModel, edge: &Edge) -> String {
    let mut parts = Vec::new();
    for (at, one) in model.comparisons.iter().enumerate() {
        let Some(reached) = usize::from(edge.level(at)).checked_sub(1) else { continue };
        let level = one.comparison.levels.get(reached).filter(|level| !is_name(one) || names_agree(one, level));
        let how = level.map_or("differs", in_words);
        parts.push(format!("{} {how}", one.comparison.column));
    }
    parts.join("; ")
}

fn in_words(level: &Level) -> &'static str {
    match level {
        Level::Exact { .. } => "the same",
        Level::SwappedWith { .. } => "the same in another order",
        Level::Pinyin { at_most: 0 } => "sounds the same",
        Level::Pinyin { .. } => "sounds alike",
        Level::DamerauLevenshtein { at_most: 1 } => "one character apart",
        Level::DamerauLevenshtein { .. } => "a few characters apart",
        Level::JaroWinkler { at_least } if *at_least >= NAME_SIMILARITY => "almost the same",
        Level::JaroWinkler { .. } => "alike",
        Level::DateWithin { years: 0, .. } => "near",
        Level::DateWithin { .. } => "not far",
        Level::SamePrefix { .. } | Level::SameWithoutLast { .. } => "begins alike",
        Level::BeginningOf => "the beginning of the other",
        Level::PartOf { .. } => "a part of the other",
        Level::CommonWords { .. } => "has words in common",
    }
}

/// From this similarity on, names differ by a slip of the finger.
const NAME_SIMILARITY: f64 = 0.92;

/// One customer in so many has a twin who is one as well, and of whom all is known alike: about one person in forty is a twin, and one in twenty-five of those shops at the same place from the
/// same address. A guess: nothing in the records tells.
const CUSTOMERS_A_TWIN: f64 = 1000.0;

/// Names that clearly differ are no reason for doubt from these odds on that they are one person's names.
const ODDS_MIN: f64 = 99.0;

/// People who live together have all in common but the given name: one that clearly differs keeps a pair from being joined, whatever else agrees, with two exceptions. A number that is given to
/// one person alone says more; one that is nearly the same does not, since those of twins were given out one after the other. And where the records themselves tell that one person's names often
/// differ that much, a twin is the less likely explanation.
pub(super) fn names_differ(model: &Model, edge: &Edge) -> bool {
    let comparisons = || model.weights.comparisons.iter().enumerate();
    let reached = |at: usize| usize::from(edge.level(at)).checked_sub(1);
    let is_one_number = comparisons().any(|(at, one)| {
        let level = reached(at).and_then(|level| one.comparison.levels.get(level));
        one.comparison.column == "id_number" && matches!(level, Some(Level::Exact { .. }))
    });
    !is_one_number
        && comparisons().filter(|(_, one)| is_name(one)).any(|(at, one)| {
            let differs = |level: usize| one.comparison.levels.get(level).is_none_or(|level| !names_agree(one, level));
            reached(at).is_some_and(differs) && odds_of_one_person(model, one) < ODDS_MIN
        })
}

/// How many records of one person with a name that clearly differs there are for each record of a twin, all else being the same.
fn odds_of_one_person(model: &Model, name: &ComparisonModel) -> f64 {
    // So many others a record has of its person; a twin has as many as a person.
    #[expect(clippy::cast_precision_loss, reason = "a number of records fits")]
    let others = model.weights.match_probability * model.learnt_from.saturating_sub(1) as f64;
    let levels = name.levels.iter().enumerate();
    let differing =
        levels.filter(|(at, _)| name.comparison.levels.get(*at).is_none_or(|level| !names_agree(name, level)));
    let differ: f64 = differing.map(|(_, level)| level.m).sum();
    others / (others + 1.0) * differ * CUSTOMERS_A_TWIN
}

fn is_name(one: &ComparisonModel) -> bool {
    matches!(one.comparison.column.as_str(), "full_name" | "given_name")
}

fn names_agree(one: &ComparisonModel, level: &Level) -> bool {
    match level {
        Level::Exact { .. } | Level::SwappedWith { .. } | Level::Pinyin { at_most: 0 } => true,
        Level::JaroWinkler { at_least } => *at_least >= NAME_SIMILARITY,
        // An initial.
        Level::BeginningOf => one.comparison.column == "given_name",
        _ => false,
    }
}
