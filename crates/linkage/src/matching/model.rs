use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::blocking::{Candidates, SkippedBlocks, count_pairs};
use super::common::Common;
use super::compare::{Agreement, Comparator, Memory};
use super::edges::{Edge, weight_of};
use super::error::LinkageError;
use super::estimate::{Estimate, Pattern, maximise};
use super::random::Numbers;
use super::recipe;
use super::records::{Quick, Records};
use super::spec::{BlockingRule, Comparison, Level, LinkageSpec};
use super::threads;

/// What was learnt: how often each level is reached by two records of one person (m) and of two people (u), and how many pairs are matches.
///
/// It is stored as TOML, which keeps numbers to the bit, and scores other records of the same columns too. How rare a value is comes from the records that
/// are scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkageModel {
    /// The chance that two random records are one person's.
    pub match_probability: f64,
    /// The comparisons.
    pub comparisons: Vec<ComparisonModel>,
    /// Which pairs are looked at.
    pub blocking: Vec<BlockingRule>,
    /// Blocks with more pairs are skipped.
    pub block_pairs_max: u64,
    /// Pairs from this probability on are links.
    pub link_probability: f64,
    /// Pairs from this probability on are given out.
    pub review_probability: f64,
}

/// One comparison of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonModel {
    /// The comparison.
    pub comparison: Comparison,
    /// Its levels, and last the one that none holds.
    pub levels: Vec<LevelModel>,
}

/// How often a level is reached, of the pairs in which both values are there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelModel {
    /// By two records of one person.
    pub m: f64,
    /// By two records of two people.
    pub u: f64,
}

impl LevelModel {
    /// What the level weighs, in bits: log2 m/u (Fellegi & Sunter 1969).
    pub fn bits(self) -> f64 {
        (self.m / self.u).log2()
    }
}

/// How a fit went.
#[derive(Debug, Clone, PartialEq)]
pub struct FitReport {
    /// Pairs that were learnt from; of very many a part, each counted for those left out.
    pub candidate_pairs: u64,
    /// Pairs per rule, before pairs of several rules are counted once.
    pub rule_pairs: Vec<(String, u64)>,
    /// What was too large to look at.
    pub skipped: Vec<SkippedBlocks>,
    /// Different agreements seen.
    pub patterns: u64,
    /// Steps of the estimation.
    pub steps: u32,
    /// The last step moved no probability by more than the tolerance.
    pub converged: bool,
    /// Matches expected among the pairs that were looked at.
    pub expected_matches: f64,
}

/// Why a pair has its weight: what it starts from, and what each comparison adds.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The weight of a random pair, in bits.
    pub prior_bits: f64,
    /// What the comparisons add, in their order.
    pub steps: Vec<ExplanationStep>,
    /// The sum, in bits.
    pub weight: f64,
    /// The probability that it is one person.
    pub probability: f64,
}

/// What one comparison adds.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplanationStep {
    /// The column.
    pub column: String,
    /// The value of the first record, as it was compared.
    pub left: Option<String>,
    /// The value of the second one.
    pub right: Option<String>,
    /// The level reached, or `missing`, or `none`.
    pub level: String,
    /// How often one person's records reach it; none when a value is missing.
    pub m: Option<f64>,
    /// How often two people's records reach it.
    pub u: Option<f64>,
    /// What the level adds, in bits.
    pub bits: f64,
    /// What is added because the value is rare, or taken away because it is common.
    pub term_bits: f64,
}

/// How threads are used; the result does not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads(usize);

impl Threads {
    /// As many as the machine runs at once.
    pub fn all() -> Self {
        Self(threads::available())
    }

    pub(crate) fn workers(self) -> usize {
        self.0
    }

    /// So many, at least one.
    pub fn count(count: usize) -> Self {
        Self(count.max(1))
    }
}

impl LinkageModel {
    /// Learns a model from records, without examples.
    ///
    /// How often levels are reached by chance comes from random pairs and from how often values occur; how often one person's records reach them, and how
    /// many matches there are, from expectation maximisation over the pairs of the blocking rules (see [`estimate`](super::estimate)).
    ///
    /// # Errors
    /// [`LinkageError::Rules`] and [`LinkageError::Column`] for specifications that do not fit the records, [`LinkageError::Fit`] when no rule gives a pair.
    pub fn fit(records: &Records, spec: &LinkageSpec, workers: Threads) -> Result<(Self, FitReport), LinkageError> {
        spec.check()?;
        let comparisons = recipe::comparisons(spec);
        let blocking = recipe::blocking(spec, records)?;
        let comparator = Comparator::new(records, &comparisons)?;
        let by_chance = chances(records, &comparator, spec, workers);

        let candidates = Candidates::new(records, &blocking, spec.block_pairs_max, None, workers.0)?;
        let patterns = count_patterns(&comparator, &candidates, workers);
        let candidate_pairs: u64 = patterns.iter().map(|pattern| pattern.pairs).sum();
        if candidate_pairs == 0 {
            return Err(LinkageError::Fit("no blocking rule gives a pair".to_owned()));
        }
        let mut sure_pairs = 1;
        for rule in recipe::deterministic(spec)? {
            sure_pairs = sure_pairs.max(count_pairs(records, &rule, spec.block_pairs_max)?.0);
        }
        let first_guess = (sure_pairs as f64 / records.pairs()).min(0.5);
        let estimate = maximise(&patterns, by_chance, first_guess, records.pairs());
        let report = FitReport {
            candidate_pairs,
            rule_pairs: blocking.iter().map(ToString::to_string).zip(candidates.rule_pairs.iter().copied()).collect(),
            skipped: candidates.skipped.clone(),
            patterns: patterns.len() as u64,
            steps: estimate.steps,
            converged: estimate.converged,
            expected_matches: estimate.expected_matches,
        };
        let Estimate { m, u, match_probability, .. } = estimate;
        let comparisons = comparisons
            .into_iter()
            .zip(m.into_iter().zip(u))
            .map(|(comparison, (m, u))| ComparisonModel {
                comparison,
                levels: m.into_iter().zip(u).map(|(m, u)| LevelModel { m, u }).collect(),
            })
            .collect();
        let model = Self {
            match_probability,
            comparisons,
            blocking,
            block_pairs_max: spec.block_pairs_max,
            link_probability: spec.link_probability,
            review_probability: spec.review_probability,
        };
        Ok((model, report))
    }

    /// The model as text.
    ///
    /// # Errors
    /// [`LinkageError::Syntax`] for numbers that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, LinkageError> {
        toml::to_string(self).map_err(|error| LinkageError::Syntax(error.to_string()))
    }

    /// Reads what [`LinkageModel::to_toml`] wrote.
    ///
    /// # Errors
    /// [`LinkageError::Syntax`] with line and column.
    pub fn from_toml(text: &str) -> Result<Self, LinkageError> {
        toml::from_str(text).map_err(|error| LinkageError::Syntax(error.to_string()))
    }

    /// Gives every pair of the blocking rules with a probability of at least `review_probability` to `take`, in batches, always in the same order. Holds a
    /// few batches at a time, never all pairs.
    ///
    /// # Errors
    /// [`LinkageError::Column`] when the records lack a column of the model.
    pub fn score(
        &self,
        records: &Records,
        workers: Threads,
        take: impl FnMut(&[Edge]),
    ) -> Result<ScoreReport, LinkageError> {
        let candidates = Candidates::new(records, &self.blocking, self.block_pairs_max, None, workers.0)?;
        self.score_candidates(&self.scorer(records)?, &candidates, workers, take)
    }

    /// As [`LinkageModel::score`], but how common values and keys are is what it was when the model was learnt: the weight of a pair, and whether it is looked at, depends on its two
    /// records alone. So records that come later can be compared with those that are there, and the pairs are those of all records at once.
    ///
    /// # Errors
    /// As [`LinkageModel::score`].
    pub fn score_as_learnt(
        &self,
        records: &Records,
        common: &dyn Common,
        workers: Threads,
        take: impl FnMut(&[Edge]),
    ) -> Result<ScoreReport, LinkageError> {
        let mut scorer = self.scorer(records)?;
        scorer.comparator = scorer.comparator.with_terms(common);
        let candidates = Candidates::new(records, &self.blocking, u64::MAX, Some(common), workers.0)?;
        self.score_candidates(&scorer, &candidates, workers, take)
    }

    fn score_candidates(
        &self,
        scorer: &Scorer<'_>,
        candidates: &Candidates,
        workers: Threads,
        mut take: impl FnMut(&[Edge]),
    ) -> Result<ScoreReport, LinkageError> {
        let least = weight_of(self.review_probability);
        let mut memories: Vec<Memory> = (0..workers.0).map(|_| scorer.comparator.memory()).collect();
        let mut report = ScoreReport { pairs: 0, edges: 0, skipped: candidates.skipped.clone() };
        threads::in_order(
            &mut memories,
            candidates.batches(),
            |memory, batch| {
                let (mut pairs, mut edges) = (0_u64, Vec::new());
                candidates.each_pair(batch, |left, right| {
                    pairs += 1;
                    let edge = scorer.edge(memory, left, right);
                    if edge.weight >= least {
                        edges.push(edge);
                    }
                });
                (pairs, edges)
            },
            |_, (pairs, edges)| {
                report.pairs += pairs;
                report.edges += edges.len() as u64;
                take(&edges);
            },
        );
        Ok(report)
    }

    /// The model made ready for records: weighs any pair of them.
    ///
    /// # Errors
    /// [`LinkageError::Column`] when the records lack a column of the model, [`LinkageError::Rules`] when a stored model was changed by hand so that it
    /// has no weights.
    pub fn scorer<'a>(&'a self, records: &'a Records) -> Result<Scorer<'a>, LinkageError> {
        let comparisons: Vec<Comparison> = self.comparisons.iter().map(|one| one.comparison.clone()).collect();
        for (at, one) in self.comparisons.iter().enumerate() {
            if one.levels.len() != one.comparison.levels.len() + 1
                || !one.levels.iter().all(|level| level.bits().is_finite())
            {
                let message = "needs m and u above 0 for each level and for none".to_owned();
                return Err(LinkageError::Rules { key: format!("comparisons[{at}].levels"), message });
            }
        }
        let comparator = Comparator::new(records, &comparisons)?;
        let bits = self
            .comparisons
            .iter()
            .map(|one| std::iter::once(0.0).chain(one.levels.iter().map(|level| level.bits())).collect())
            .collect();
        Ok(Scorer { model: self, records, comparator, bits, prior: weight_of(self.match_probability) })
    }
}

/// What a scoring saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreReport {
    /// Pairs that were compared.
    pub pairs: u64,
    /// Pairs that were given out.
    pub edges: u64,
    /// What was too large to look at.
    pub skipped: Vec<SkippedBlocks>,
}

/// A model and the records it weighs.
#[derive(Debug)]
pub struct Scorer<'a> {
    model: &'a LinkageModel,
    records: &'a Records,
    comparator: Comparator<'a>,
    bits: Vec<Vec<f64>>,
    prior: f64,
}

impl Scorer<'_> {
    pub(crate) fn memory(&self) -> Memory {
        self.comparator.memory()
    }

    pub(crate) fn edge(&self, memory: &mut Memory, left: u32, right: u32) -> Edge {
        let agreement = self.comparator.compare(memory, left, right);
        let mut weight = self.prior;
        for (at, bits) in self.bits.iter().enumerate() {
            weight += bits[usize::from(agreement.level(at))];
        }
        weight += self.comparator.term_bits(agreement, left);
        Edge { left, right, weight, levels: agreement.levels }
    }

    /// Why two records have their weight.
    pub fn explain(&self, left: u32, right: u32) -> Explanation {
        let edge = self.edge(&mut self.memory(), left, right);
        let steps = self
            .model
            .comparisons
            .iter()
            .enumerate()
            .map(|(at, one)| {
                let level = edge.level(at);
                let reached = usize::from(level).checked_sub(1);
                let model = reached.and_then(|reached| one.levels.get(reached));
                let column = &one.comparison.column;
                ExplanationStep {
                    column: column.clone(),
                    left: self.records.value(column, left).map(str::to_owned),
                    right: self.records.value(column, right).map(str::to_owned),
                    level: match reached {
                        None => "missing".to_owned(),
                        Some(reached) => {
                            one.comparison.levels.get(reached).map_or_else(|| "none".to_owned(), Level::to_string)
                        }
                    },
                    m: model.map(|model| model.m),
                    u: model.map(|model| model.u),
                    bits: self.bits[at][usize::from(level)],
                    term_bits: self.comparator.comparisons[at].term_bits_of(level, left),
                }
            })
            .collect();
        Explanation { prior_bits: self.prior, steps, weight: edge.weight, probability: edge.probability() }
    }
}

/// How often each level is reached by chance: of random pairs, or exactly where value counts tell.
fn chances(records: &Records, comparator: &Comparator<'_>, spec: &LinkageSpec, workers: Threads) -> Vec<Vec<f64>> {
    const PIECE: u32 = 50_000;
    let numbers = Numbers::new(spec.seed);
    let rows = records.rows;
    let counts = comparator.comparisons.iter().map(|comparison| vec![0_u64; comparison.levels() + 1]);
    let mut counts: Vec<Vec<u64>> = counts.collect();
    if records.pairs() < 1.0 {
        return counts.iter().map(|levels| vec![1.0; levels.len() - 1]).collect();
    }
    let mut memories: Vec<Memory> = (0..workers.0).map(|_| comparator.memory()).collect();
    let empty = counts.clone();
    threads::in_order(
        &mut memories,
        spec.sample_pairs.div_ceil(PIECE) as usize,
        |memory, piece| {
            let mut counts = empty.clone();
            let piece = u32::try_from(piece).unwrap_or(u32::MAX);
            for at in piece * PIECE..((piece + 1) * PIECE).min(spec.sample_pairs) {
                let position = u64::from(at) * 2;
                let (one, two) = match records.left_rows {
                    Some(left) => (numbers.below(position, left), left + numbers.below(position + 1, rows - left)),
                    None => {
                        let one = numbers.below(position, rows);
                        let two = numbers.below(position + 1, rows - 1);
                        let two = if two >= one { two + 1 } else { two };
                        (one.min(two), one.max(two))
                    }
                };
                let agreement = comparator.compare(memory, one, two);
                for (at, levels) in counts.iter_mut().enumerate() {
                    levels[usize::from(agreement.level(at))] += 1;
                }
            }
            counts
        },
        |_, piece| {
            for (levels, more) in counts.iter_mut().zip(piece) {
                for (level, more) in levels.iter_mut().zip(more) {
                    *level += more;
                }
            }
        },
    );
    let chances = counts.iter().zip(&comparator.comparisons).map(|(levels, comparison)| {
        let levels: Vec<f64> = levels[1..].iter().map(|count| *count as f64).collect();
        let all: f64 = levels.iter().sum();
        // Half a pair more in each level: what the sample did not show is rare, not impossible.
        let smoothed = |count: f64| (count + 0.5) / (all + 0.5 * f64::from(u32::try_from(levels.len()).unwrap_or(1)));
        let mut chances: Vec<f64> = levels.iter().map(|count| smoothed(*count)).collect();
        for level in 1..=chances.len() {
            if let Some(known) = comparison.known_chance(level) {
                chances[level - 1] = known;
            }
        }
        let sum: f64 = chances.iter().sum();
        chances.iter().map(|chance| chance / sum).collect()
    });
    chances.collect()
}

/// About so many pairs of the blocking rules are enough to learn from.
const FIT_PAIRS_MAX: u64 = 10_000_000;
/// Term bits are counted in steps of a half, from 0 for -64.
const TERM_STEP: f64 = 0.5;

fn count_patterns(comparator: &Comparator<'_>, candidates: &Candidates, workers: Threads) -> Vec<Pattern> {
    type Counts = HashMap<u64, u64, Quick>;
    let mut states: Vec<(Memory, Counts)> = (0..workers.0).map(|_| (comparator.memory(), Counts::default())).collect();
    // Of very many pairs every so-manieth piece is enough, and stands for those left out.
    let step = usize::try_from(candidates.rule_pairs.iter().sum::<u64>().div_ceil(FIT_PAIRS_MAX)).unwrap_or(1).max(1);
    threads::in_order(
        &mut states,
        candidates.batches().div_ceil(step),
        |(memory, counts), batch| {
            candidates.each_pair(batch * step, |left, right| {
                let agreement = comparator.compare(memory, left, right);
                let term = (comparator.term_bits(agreement, left) / TERM_STEP).round().clamp(-128.0, 127.0) + 128.0;
                #[expect(clippy::cast_possible_truncation, reason = "between 0 and 255")]
                let term = term as u64;
                *counts.entry((term << 56) | agreement.levels).or_insert(0) += 1;
            });
        },
        |_, ()| {},
    );
    // Whole numbers: the sum does not depend on which thread counted what.
    let mut all: BTreeMap<u64, u64> = BTreeMap::new();
    for (_, counts) in states {
        for (key, count) in counts {
            *all.entry(key).or_insert(0) += count * step as u64;
        }
    }
    all.into_iter()
        .map(|(key, pairs)| {
            let term = u32::try_from(key >> 56).unwrap_or(128);
            let agreement = Agreement { levels: key & ((1 << 56) - 1) };
            let levels = (0..comparator.comparisons.len()).map(|at| agreement.level(at)).collect();
            Pattern { levels, term_bits: (f64::from(term) - 128.0) * TERM_STEP, pairs }
        })
        .collect()
}
