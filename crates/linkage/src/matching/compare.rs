//! Which level each comparison of two records reaches.

use std::collections::HashMap;

use super::common::Common;
use super::error::LinkageError;
use super::records::{Column, MISSING, Quick, Records};
use super::similarity::{damerau_levenshtein, distance_least, jaro_winkler, similarity_most};
use super::spec::{Comparison, Level};

/// The level of a comparison in which a value is missing; the listed levels follow from 1, the last one is that none holds.
pub(crate) const NULL_LEVEL: u8 = 0;

/// Compares records of one [`Records`] by the comparisons of a specification.
#[derive(Debug)]
pub(crate) struct Comparator<'a> {
    pub(crate) comparisons: Vec<Compiled<'a>>,
}

#[derive(Debug)]
pub(crate) struct Compiled<'a> {
    pub(crate) column: &'a Column,
    levels: Vec<Level>,
    /// The swapped level and the other column with its text of the same value: this column's codes by that column's.
    swapped: Option<Swapped<'a>>,
    /// The comparison that counts a swap, when this one is about its other column.
    counted_by: Option<usize>,
    exact: Option<u8>,
    /// The greatest distance and the least similarity that a level asks for.
    distance_most: u32,
    similarity_least: f64,
    /// By code, the words of each value; empty when no level asks for words.
    words: Vec<Vec<u32>>,
    /// By code, what an exact agreement weighs more or less than one on average, in bits; empty when it does not matter.
    pub(crate) term_bits: Vec<f64>,
    /// Whether it matters how rare a value is.
    counts_terms: bool,
    /// How often two values of this column are equal by chance.
    pub(crate) equal_by_chance: f64,
}

#[derive(Debug)]
struct Swapped<'a> {
    level: u8,
    other: &'a Column,
    /// For each value of this column, the code of the same text in the other one.
    as_other: Vec<u32>,
    by_chance: f64,
}

/// Levels of value pairs that were compared before. Lossy: a place holds the last pair that fell on it, so it never grows.
#[derive(Debug)]
pub(crate) struct Memory {
    tables: Vec<Table>,
}

#[derive(Debug)]
struct Table {
    pairs: Vec<u64>,
    levels: Vec<u8>,
}

const TABLE_BITS: u32 = 15;

impl Memory {
    fn new(count: usize) -> Self {
        let table = || Table { pairs: vec![u64::MAX; 1 << TABLE_BITS], levels: vec![0; 1 << TABLE_BITS] };
        Self { tables: (0..count).map(|_| table()).collect() }
    }
}

/// What two records agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// Four bits for each comparison, the first lowest.
    pub(crate) levels: u64,
}

impl Agreement {
    pub(crate) fn level(self, comparison: usize) -> u8 {
        level_of(self.levels, comparison)
    }
}

/// The level of a comparison in packed levels.
pub(crate) fn level_of(levels: u64, comparison: usize) -> u8 {
    u8::try_from((levels >> (4 * comparison)) & 15).unwrap_or(0)
}

impl<'a> Comparator<'a> {
    pub(crate) fn new(records: &'a Records, comparisons: &[Comparison]) -> Result<Self, LinkageError> {
        let mut compiled = Vec::new();
        for comparison in comparisons {
            compiled.push(Compiled::new(records, comparison)?);
        }
        for at in 0..comparisons.len() {
            let other = comparisons[at].levels.iter().find_map(|level| match level {
                Level::SwappedWith { column } => Some(column),
                _ => None,
            });
            for (place, comparison) in comparisons.iter().enumerate() {
                if place != at && Some(&comparison.column) == other {
                    compiled[place].counted_by = Some(at);
                }
            }
        }
        Ok(Self { comparisons: compiled })
    }

    /// Takes how rare values are from elsewhere in place of these records.
    pub(crate) fn with_terms(mut self, common: &dyn Common) -> Self {
        for compiled in self.comparisons.iter_mut().filter(|compiled| compiled.counts_terms) {
            let column = compiled.column;
            compiled.term_bits = column.values.iter().map(|value| common.term_bits(&column.name, value)).collect();
        }
        self
    }

    pub(crate) fn memory(&self) -> Memory {
        Memory::new(self.comparisons.len())
    }

    pub(crate) fn compare(&self, memory: &mut Memory, one: u32, two: u32) -> Agreement {
        let mut levels = 0_u64;
        // Comparisons whose swapped level was reached.
        let mut swaps = 0_u64;
        let mut swappable = 0_u64;
        for (at, comparison) in self.comparisons.iter().enumerate() {
            let level = comparison.level(&mut memory.tables[at], one, two);
            if let Some(swapped) = &comparison.swapped
                && level == swapped.level
            {
                swaps |= 1 << at;
            }
            swappable |= u64::from(comparison.counted_by.is_some()) << at;
            levels |= u64::from(level) << (4 * at);
        }
        if swaps != 0 && swappable != 0 {
            for (at, comparison) in self.comparisons.iter().enumerate() {
                if comparison.counted_by.is_some_and(|counter| swaps & (1 << counter) != 0) {
                    levels &= !(15 << (4 * at));
                }
            }
        }
        Agreement { levels }
    }

    /// What exact agreements weigh beside their level's weight because the value is rare or common, in bits.
    pub(crate) fn term_bits(&self, agreement: Agreement, one: u32) -> f64 {
        let mut bits = 0.0;
        for (at, comparison) in self.comparisons.iter().enumerate() {
            bits += comparison.term_bits_of(agreement.level(at), one);
        }
        bits
    }
}

impl<'a> Compiled<'a> {
    fn new(records: &'a Records, comparison: &Comparison) -> Result<Self, LinkageError> {
        let column = &records.columns[records.column_at(&comparison.column)?];
        let mut compiled = Self {
            column,
            levels: comparison.levels.clone(),
            swapped: None,
            counted_by: None,
            exact: None,
            distance_most: 0,
            similarity_least: 1.0,
            words: Vec::new(),
            term_bits: Vec::new(),
            counts_terms: false,
            equal_by_chance: 0.0,
        };
        let filled = column.filled();
        let pairs = filled * (filled - 1.0);
        if pairs > 0.0 {
            let equal: f64 = column.counts.iter().map(|count| f64::from(*count) * (f64::from(*count) - 1.0)).sum();
            // One more pair than there are keeps the chance above zero.
            compiled.equal_by_chance = (equal + 1.0) / (pairs + 1.0);
        }
        for (number, level) in (1..).zip(&comparison.levels) {
            match level {
                Level::Exact { term_frequency } => {
                    compiled.exact = Some(number);
                    compiled.counts_terms = *term_frequency;
                    if *term_frequency && compiled.equal_by_chance > 0.0 {
                        let bits = |count: &u32| (compiled.equal_by_chance * filled / f64::from(*count)).log2();
                        compiled.term_bits = column.counts.iter().map(bits).collect();
                    }
                }
                Level::SwappedWith { column: other } => {
                    let other = &records.columns[records.column_at(other)?];
                    let codes: HashMap<&str, u32> =
                        (0..).zip(&other.values).map(|(code, value)| (value.as_str(), code)).collect();
                    let as_other: Vec<u32> = column
                        .values
                        .iter()
                        .map(|value| codes.get(value.as_str()).copied().unwrap_or(MISSING))
                        .collect();
                    let equal: f64 = (0..)
                        .zip(&as_other)
                        .filter(|(_, code)| **code != MISSING)
                        .map(|(mine, code): (usize, _)| {
                            f64::from(column.counts[mine]) * f64::from(other.counts[*code as usize])
                        })
                        .sum();
                    let chance = (equal + 1.0) / (filled * other.filled() + 1.0);
                    compiled.swapped = Some(Swapped { level: number, other, as_other, by_chance: chance * chance });
                }
                Level::DamerauLevenshtein { at_most } => compiled.distance_most = compiled.distance_most.max(*at_most),
                Level::JaroWinkler { at_least } => compiled.similarity_least = compiled.similarity_least.min(*at_least),
                Level::CommonWords { .. } => compiled.words = words_of(&column.values),
                _ => {}
            }
        }
        Ok(compiled)
    }

    /// How many levels there are with the one for none.
    pub(crate) fn levels(&self) -> usize {
        self.levels.len() + 1
    }

    /// How often a level is reached by chance, where that follows from how often values occur.
    pub(crate) fn known_chance(&self, level: usize) -> Option<f64> {
        if self.exact.map(usize::from) == Some(level) {
            // Of a column without values nothing is known.
            return Some(self.equal_by_chance).filter(|chance| *chance > 0.0);
        }
        self.swapped.as_ref().filter(|swapped| usize::from(swapped.level) == level).map(|swapped| swapped.by_chance)
    }

    pub(crate) fn term_bits_of(&self, level: u8, row: u32) -> f64 {
        if Some(level) != self.exact || self.term_bits.is_empty() {
            return 0.0;
        }
        self.term_bits[self.column.codes[row as usize] as usize]
    }

    fn level(&self, table: &mut Table, one: u32, two: u32) -> u8 {
        let (a, b) = (self.column.codes[one as usize], self.column.codes[two as usize]);
        if a == MISSING || b == MISSING {
            return NULL_LEVEL;
        }
        if a == b
            && let Some(exact) = self.exact
        {
            return exact;
        }
        let (a, b) = (a.min(b), a.max(b));
        let pair = (u64::from(a) << 32) | u64::from(b);
        let place = (pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - TABLE_BITS)) as usize;
        let level = if table.pairs[place] == pair {
            table.levels[place]
        } else {
            let level = self.compare_values(a, b);
            table.pairs[place] = pair;
            table.levels[place] = level;
            level
        };
        match &self.swapped {
            Some(swapped) if swapped.level < level && self.is_swapped(swapped, one, two) => swapped.level,
            _ => level,
        }
    }

    fn is_swapped(&self, swapped: &Swapped<'_>, one: u32, two: u32) -> bool {
        let (one, two) = (one as usize, two as usize);
        let as_other = |row: usize| swapped.as_other[self.column.codes[row] as usize];
        let (first, second) = (swapped.other.codes[one], swapped.other.codes[two]);
        first != MISSING && second != MISSING && as_other(one) == second && as_other(two) == first
    }

    fn compare_values(&self, a: u32, b: u32) -> u8 {
        // Codes depend on the order of records, and Jaro's similarity may depend on which value comes first.
        let (a, b) = if self.column.texts.get(a) <= self.column.texts.get(b) { (a, b) } else { (b, a) };
        let (one, two) = (self.column.texts.get(a), self.column.texts.get(b));
        // Both are found once for all levels that ask for them; what cannot reach the last of these is far apart without a look at it.
        let bits = (self.column.texts.bits(a), self.column.texts.bits(b));
        let mut distance = (distance_least(bits) > self.distance_most).then_some(None);
        let mut similarity = (similarity_most(one, two, bits) < self.similarity_least).then_some(0.0);
        for (number, level) in (1..).zip(&self.levels) {
            let holds = match level {
                Level::Exact { .. } => a == b,
                Level::SwappedWith { .. } => false,
                Level::JaroWinkler { at_least } => {
                    *similarity.get_or_insert_with(|| jaro_winkler(one, two)) >= *at_least
                }
                Level::DamerauLevenshtein { at_most } => distance
                    .get_or_insert_with(|| damerau_levenshtein(one, two, self.distance_most))
                    .is_some_and(|distance| distance <= *at_most),
                Level::Pinyin { at_most } => self.readings_within(a, b, *at_most),
                Level::DateWithin { days, months, years } => self.dates_within(a, b, *days, *months, *years),
                Level::SamePrefix { characters } => {
                    let count = *characters as usize;
                    one.len() >= count && two.len() >= count && one[..count] == two[..count]
                }
                Level::SameWithoutLast { characters } => {
                    let keep = |text: &[u32]| text.len().checked_sub(*characters as usize).filter(|keep| *keep >= 2);
                    keep(one).zip(keep(two)).is_some_and(|(x, y)| one[..x] == two[..y])
                }
                Level::BeginningOf => {
                    let (short, long) = if one.len() <= two.len() { (one, two) } else { (two, one) };
                    !short.is_empty() && long.starts_with(short)
                }
                Level::PartOf { characters } => {
                    let (short, long) = if one.len() <= two.len() { (one, two) } else { (two, one) };
                    short.len() >= (*characters as usize).max(1) && long.windows(short.len()).any(|part| part == short)
                }
                Level::CommonWords { at_least } => {
                    common_words(&self.words[a as usize], &self.words[b as usize]) >= *at_least
                }
            };
            if holds {
                return number;
            }
        }
        u8::try_from(self.levels()).unwrap_or(15)
    }

    fn readings_within(&self, a: u32, b: u32, at_most: u32) -> bool {
        let readings = &self.column.readings;
        let has_hanzi = |code: u32| self.column.texts.get(code).iter().any(|char| *char > 0x2fff);
        !readings.is_empty()
            && (has_hanzi(a) || has_hanzi(b))
            && damerau_levenshtein(readings.get(a), readings.get(b), at_most).is_some()
    }

    fn dates_within(&self, a: u32, b: u32, days: u32, months: u32, years: u32) -> bool {
        let days_of = |code: u32| self.column.days.get(code as usize).copied().flatten();
        let most = f64::from(days) + f64::from(months) * 30.44 + f64::from(years) * 365.25;
        days_of(a).zip(days_of(b)).is_some_and(|(x, y)| f64::from(x.abs_diff(y)) <= most)
    }
}

/// The words of each value as numbers, sorted, each once.
fn words_of(values: &[String]) -> Vec<Vec<u32>> {
    let mut numbers: HashMap<&str, u32, Quick> = HashMap::default();
    let words = values.iter().map(|value| {
        let mut words: Vec<u32> = value
            .split(' ')
            .map(|word| {
                let next = u32::try_from(numbers.len()).unwrap_or(MISSING);
                *numbers.entry(word).or_insert(next)
            })
            .collect();
        words.sort_unstable();
        words.dedup();
        words
    });
    words.collect()
}

/// The share of the words of the value with fewer words that the other one has too.
fn common_words(one: &[u32], two: &[u32]) -> f64 {
    let (few, many) = if one.len() <= two.len() { (one, two) } else { (two, one) };
    let (mut common, mut all, mut at) = (0.0, 0.0, 0);
    for word in few {
        all += 1.0;
        while many.get(at).is_some_and(|other| other < word) {
            at += 1;
        }
        common += f64::from(u8::from(many.get(at) == Some(word)));
    }
    if all > 0.0 { common / all } else { 0.0 }
}
