//! Expectation maximisation over agreement patterns.
//!
//! Two records of one person reach level l of comparison c with chance m, two people's with chance u, and comparisons are independent given which of the
//! two it is (Fellegi & Sunter 1969, "A Theory for Record Linkage"). u is known beforehand from random pairs, nearly all of which are two people's;
//! m and the share of matches are those under which the patterns are likeliest, found by expectation maximisation (Winkler 1988; Enamorado, Fifield &
//! Imai 2019, "Using a Probabilistic Model to Assist Merging of Large-Scale Administrative Records", whose missing values carry no weight, as here).
//!
//! Pairs that no blocking rule gives count as two people's. The estimate works on counts of patterns in a fixed order, so it is the same to the bit
//! however the counting was shared out.

/// Pairs that agree in the same way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pattern {
    /// The level of each comparison, 0 for missing.
    pub(crate) levels: Vec<u8>,
    /// What the rarity of the values adds, in bits.
    pub(crate) term_bits: f64,
    /// How many pairs.
    pub(crate) pairs: u64,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Estimate {
    /// By comparison and level from 1.
    pub(crate) m: Vec<Vec<f64>>,
    /// The same.
    pub(crate) u: Vec<Vec<f64>>,
    /// The share of all pairs that are matches.
    pub(crate) match_probability: f64,
    pub(crate) expected_matches: f64,
    pub(crate) steps: u32,
    pub(crate) converged: bool,
}

const STEPS_MAX: u32 = 500;
const TOLERANCE: f64 = 1e-6;
/// Pairs added to every level of m, so that no agreement is impossible because these records do not show it.
const SMOOTHING: f64 = 0.5;

/// Finds m and the share of matches; `by_chance` is what random pairs showed, by comparison and level, and sums to 1 in each.
pub(crate) fn maximise(patterns: &[Pattern], by_chance: Vec<Vec<f64>>, first_guess: f64, all_pairs: f64) -> Estimate {
    let mut estimate = Estimate {
        m: by_chance.iter().map(|levels| first_m(levels.len())).collect(),
        u: by_chance.clone(),
        match_probability: first_guess,
        expected_matches: 0.0,
        steps: 0,
        converged: false,
    };
    while estimate.steps < STEPS_MAX && !estimate.converged {
        estimate.steps += 1;
        let bits: Vec<Vec<f64>> = estimate
            .m
            .iter()
            .zip(&estimate.u)
            .map(|(m, u)| m.iter().zip(u).map(|(m, u)| (m / u).log2()).collect())
            .collect();
        let prior = super::edges::weight_of(estimate.match_probability);
        let mut matches = 0.0;
        let mut reached: Vec<Vec<f64>> = estimate.m.iter().map(|levels| vec![SMOOTHING; levels.len()]).collect();
        for pattern in patterns {
            let mut weight = prior + pattern.term_bits;
            for (bits, &level) in bits.iter().zip(&pattern.levels) {
                if level > 0 {
                    weight += bits[usize::from(level) - 1];
                }
            }
            let expected = super::edges::probability(weight) * pattern.pairs as f64;
            matches += expected;
            for (reached, &level) in reached.iter_mut().zip(&pattern.levels) {
                if level > 0 {
                    reached[usize::from(level) - 1] += expected;
                }
            }
        }
        let match_probability = (matches.max(SMOOTHING) / all_pairs).min(0.999_999);
        let mut moved = (match_probability / estimate.match_probability).ln().abs() * 1e-3;
        estimate.match_probability = match_probability;
        estimate.expected_matches = matches;
        for (comparison, reached) in reached.iter().enumerate() {
            let all: f64 = reached.iter().sum();
            for (level, reached) in reached.iter().enumerate() {
                let m = reached / all;
                moved = moved.max((m - estimate.m[comparison][level]).abs());
                estimate.m[comparison][level] = m;
                // Random pairs hold matches too; what is left without them is chance.
                let chance = by_chance[comparison][level];
                estimate.u[comparison][level] =
                    ((chance - match_probability * m) / (1.0 - match_probability)).max(chance * CHANCE_LEAST);
            }
        }
        estimate.converged = moved < TOLERANCE;
    }
    estimate
}

/// Of what random pairs show of a level, at least this share is chance: the difference of two small numbers is not trusted further.
const CHANCE_LEAST: f64 = 0.1;

/// Where the search starts: the first level is by far the likeliest, the others share the rest.
fn first_m(levels: usize) -> Vec<f64> {
    let rest = (levels.max(2) - 1) as f64;
    (0..levels).map(|level| if level == 0 { 0.8 } else { 0.2 / rest }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::random::Numbers;

    #[test]
    fn known_parameters_are_found_again() {
        let m = [vec![0.9, 0.07, 0.03], vec![0.85, 0.15], vec![0.7, 0.2, 0.1], vec![0.95, 0.05]];
        let u = [vec![0.01, 0.04, 0.95], vec![0.02, 0.98], vec![0.05, 0.05, 0.9], vec![0.1, 0.9]];
        let share = 0.01;
        let numbers = Numbers::new(99);
        let pairs = 1_000_000_u32;
        let mut counts = std::collections::BTreeMap::new();
        let mut position = 0;
        let mut draw = |chances: &[f64]| -> usize {
            position += 1;
            let mut left = f64::from(numbers.below(position, 1_000_000_000)) / 1e9;
            for (at, chance) in chances.iter().enumerate() {
                left -= chance;
                if left < 0.0 {
                    return at;
                }
            }
            chances.len() - 1
        };
        for _ in 0..pairs {
            let chances = if draw(&[share, 1.0 - share]) == 0 { &m } else { &u };
            let mut levels: Vec<u8> = chances.iter().map(|chances| u8::try_from(draw(chances) + 1).unwrap()).collect();
            // The last comparison misses a value in a fifth of the pairs.
            if draw(&[0.2, 0.8]) == 0 {
                levels[3] = 0;
            }
            *counts.entry(levels).or_insert(0_u64) += 1;
        }
        let patterns: Vec<Pattern> =
            counts.into_iter().map(|(levels, pairs)| Pattern { levels, term_bits: 0.0, pairs }).collect();
        let by_chance = m
            .iter()
            .zip(&u)
            .map(|(m, u)| m.iter().zip(u).map(|(m, u)| share * m + (1.0 - share) * u).collect())
            .collect();
        let found = maximise(&patterns, by_chance, 0.001, f64::from(pairs));
        assert!(found.converged);
        assert!((found.match_probability - share).abs() < 5e-4, "{found:?}");
        for (known, found) in [(&m, &found.m), (&u, &found.u)] {
            for (known, found) in known.iter().flatten().zip(found.iter().flatten()) {
                assert!((known - found).abs() < 0.015, "{known} {found}");
            }
        }
    }
}
