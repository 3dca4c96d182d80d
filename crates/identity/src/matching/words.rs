//! How two records compare, in words that tell no value.

use holdfast_linkage::{ComparisonModel, Edge, Level, LinkageModel};

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

/// People who live together have all in common but the given name: one that clearly differs keeps a pair from being joined, whatever else agrees.
pub(super) fn names_differ(model: &LinkageModel, edge: &Edge) -> bool {
    model.comparisons.iter().enumerate().filter(|(_, one)| is_name(one)).any(|(at, one)| {
        let reached = usize::from(edge.level(at)).checked_sub(1);
        reached.is_some_and(|reached| one.comparison.levels.get(reached).is_none_or(|level| !names_agree(one, level)))
    })
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
