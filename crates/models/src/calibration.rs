//! From a model's log-odds to a probability that means what it says.

use serde::{Deserialize, Serialize};

use crate::boost::probability;
use crate::measure::check_labels;
use crate::{ModelError, Result};

/// Below this many rows, isotonic regression fits noise and two parameters do better (Alasalmi et al. 2020: 1,000 to 2,000).
pub const ISOTONIC_ROWS_LEAST: usize = 2000;

/// A non-decreasing map from log-odds to probabilities, learned on rows that the model was not trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", try_from = "Stored", into = "Stored")]
pub enum Calibrator {
    /// 1 ÷ (1 + exp(−(slope · margin + intercept))) (Platt 1999).
    Platt(Platt),
    /// The non-decreasing function nearest to the labels (pool adjacent violators), straight between its knots.
    Isotonic(Isotonic),
}

/// The parameters of Platt's scaling.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Platt {
    slope: f64,
    intercept: f64,
}

/// The knots of isotonic regression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Isotonic {
    /// Log-odds, ascending.
    margins: Vec<f64>,
    /// Probability at each, never falling.
    probabilities: Vec<f64>,
}

/// As stored, before it is checked.
#[derive(Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
enum Stored {
    Platt { slope: f64, intercept: f64 },
    Isotonic { margins: Vec<f64>, probabilities: Vec<f64> },
}

impl Calibrator {
    /// Platt's scaling for fewer than [`ISOTONIC_ROWS_LEAST`] rows, isotonic regression from there on.
    ///
    /// # Errors
    ///
    /// No rows, labels of one class, margins that are not finite, and margins that fall where labels rise.
    pub fn fit(margins: &[f64], labels: &[bool]) -> Result<Self> {
        if margins.len() < ISOTONIC_ROWS_LEAST {
            Platt::fit(margins, labels).map(Self::Platt)
        } else {
            Isotonic::fit(margins, labels).map(Self::Isotonic)
        }
    }

    /// The calibrated probability, above 0 and below 1.
    pub fn probability(&self, margin: f64) -> f64 {
        match self {
            Self::Platt(platt) => platt.probability(margin),
            Self::Isotonic(isotonic) => isotonic.probability(margin),
        }
    }

    /// The calibrated probability of each margin.
    pub fn probabilities(&self, margins: &[f64]) -> Vec<f64> {
        margins.iter().map(|&margin| self.probability(margin)).collect()
    }
}

impl Platt {
    /// The two parameters of highest likelihood, with targets moved off 0 and 1 as Platt does: (n₊+1)/(n₊+2) and 1/(n₋+2). Newton's method with
    /// step halving (Lin, Lin and Weng 2007).
    ///
    /// # Errors
    ///
    /// As for [`Calibrator::fit`].
    pub fn fit(margins: &[f64], labels: &[bool]) -> Result<Self> {
        check(margins, labels)?;
        let positives = labels.iter().filter(|&&label| label).count() as f64;
        let negatives = labels.len() as f64 - positives;
        let high = (positives + 1.0) / (positives + 2.0);
        let low = 1.0 / (negatives + 2.0);
        let rows = || margins.iter().zip(labels).map(|(&margin, &label)| (margin, if label { high } else { low }));
        // −target · ln p − (1 − target) · ln (1 − p), without overflow.
        let loss = |slope: f64, intercept: f64| -> f64 {
            let terms = rows().map(|(margin, target)| {
                let odds = slope * margin + intercept;
                odds.max(0.0) - odds * target + (-odds.abs()).exp().ln_1p()
            });
            terms.sum()
        };
        let mut slope = 0.0;
        let mut intercept = ((positives + 1.0) / (negatives + 1.0)).ln();
        let mut best = loss(slope, intercept);
        for _ in 0..100 {
            let [mut ss, mut si, mut ii, mut s, mut i] = [1e-12, 0.0, 1e-12, 0.0, 0.0];
            for (margin, target) in rows() {
                let p = probability(slope * margin + intercept);
                let curve = p * (1.0 - p);
                ss += margin * margin * curve;
                si += margin * curve;
                ii += curve;
                s += margin * (p - target);
                i += p - target;
            }
            if s.abs() < 1e-9 * labels.len() as f64 && i.abs() < 1e-9 * labels.len() as f64 {
                break;
            }
            let determinant = ss * ii - si * si;
            let (along_slope, along_intercept) = (-(ii * s - si * i) / determinant, -(ss * i - si * s) / determinant);
            let mut step = 1.0;
            let moved = loop {
                let (to_slope, to_intercept) = (slope + step * along_slope, intercept + step * along_intercept);
                let there = loss(to_slope, to_intercept);
                if there < best {
                    (slope, intercept, best) = (to_slope, to_intercept, there);
                    break true;
                }
                step /= 2.0;
                if step < 1e-10 {
                    break false;
                }
            };
            if !moved {
                break;
            }
        }
        if slope < 0.0 {
            return Err(ModelError::Inverted);
        }
        Ok(Self { slope, intercept })
    }

    fn probability(&self, margin: f64) -> f64 {
        inside(probability(self.slope * margin + self.intercept))
    }
}

impl Isotonic {
    /// Pool adjacent violators. Values are kept as far from 0 and 1 as n rows can tell: 1 ÷ (n + 2).
    ///
    /// # Errors
    ///
    /// As for [`Calibrator::fit`].
    pub fn fit(margins: &[f64], labels: &[bool]) -> Result<Self> {
        struct Block {
            first: f64,
            last: f64,
            rows: f64,
            positives: f64,
        }
        check(margins, labels)?;
        let mut rows: Vec<(f64, bool)> =
            margins.iter().map(|margin| margin + 0.0).zip(labels.iter().copied()).collect();
        rows.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut blocks: Vec<Block> = Vec::new();
        for tie in rows.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
            let positives = tie.iter().filter(|row| row.1).count() as f64;
            let mut block = Block { first: tie[0].0, last: tie[0].0, rows: tie.len() as f64, positives };
            while let Some(before) =
                blocks.pop_if(|before| before.positives * block.rows >= block.positives * before.rows)
            {
                block.first = before.first;
                block.rows += before.rows;
                block.positives += before.positives;
            }
            blocks.push(block);
        }
        if let [only] = blocks.as_slice()
            && only.first < only.last
        {
            return Err(ModelError::Inverted);
        }
        let mut isotonic = Self { margins: Vec::new(), probabilities: Vec::new() };
        let edge = 1.0 / (labels.len() as f64 + 2.0);
        for block in &blocks {
            let value = (block.positives / block.rows).clamp(edge, 1.0 - edge);
            isotonic.push(block.first, value);
            if block.last > block.first {
                isotonic.push(block.last, value);
            }
        }
        Ok(isotonic)
    }

    fn push(&mut self, margin: f64, probability: f64) {
        self.margins.push(margin);
        self.probabilities.push(probability);
    }

    fn probability(&self, margin: f64) -> f64 {
        let above = self.margins.partition_point(|&knot| knot <= margin);
        let Some(below) = above.checked_sub(1) else { return self.probabilities[0] };
        let low = self.probabilities[below];
        let (Some(&to), Some(&high)) = (self.margins.get(above), self.probabilities.get(above)) else { return low };
        let from = self.margins[below];
        low + (high - low) * ((margin - from) / (to - from))
    }
}

impl TryFrom<Stored> for Calibrator {
    type Error = ModelError;

    fn try_from(stored: Stored) -> Result<Self> {
        let damaged = |problem: &str| ModelError::Artefact { what: "the calibrator", problem: problem.to_owned() };
        match stored {
            Stored::Platt { slope, intercept } if slope >= 0.0 && slope.is_finite() && intercept.is_finite() => {
                Ok(Self::Platt(Platt { slope, intercept }))
            }
            Stored::Platt { .. } => Err(damaged("its parameters are not finite, or its slope is below 0")),
            Stored::Isotonic { margins, probabilities } => {
                if margins.is_empty() || margins.len() != probabilities.len() {
                    return Err(damaged("its margins and probabilities are not as many"));
                }
                if !margins.is_sorted_by(|a, b| a < b) || margins.iter().any(|margin| !margin.is_finite()) {
                    return Err(damaged("its margins do not ascend"));
                }
                let inside = probabilities.iter().all(|&p| p > 0.0 && p < 1.0);
                if !inside || !probabilities.is_sorted() {
                    return Err(damaged("its probabilities fall, or are not between 0 and 1"));
                }
                Ok(Self::Isotonic(Isotonic { margins, probabilities }))
            }
        }
    }
}

impl From<Calibrator> for Stored {
    fn from(calibrator: Calibrator) -> Self {
        match calibrator {
            Calibrator::Platt(Platt { slope, intercept }) => Self::Platt { slope, intercept },
            Calibrator::Isotonic(Isotonic { margins, probabilities }) => Self::Isotonic { margins, probabilities },
        }
    }
}

fn check(margins: &[f64], labels: &[bool]) -> Result<()> {
    check_labels("the calibration set", margins.len(), labels)?;
    match margins.iter().position(|margin| !margin.is_finite()) {
        Some(row) => Err(ModelError::Value { what: "margins".to_owned(), row, problem: "is not finite" }),
        None => Ok(()),
    }
}

/// A probability that a logarithm can be taken of.
fn inside(p: f64) -> f64 {
    p.clamp(1e-12, 1.0 - 1e-12)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;
    use crate::{Measure, Scores};

    /// Margins of a normal-like spread, and labels of probability `truth(margin)`.
    fn rows(count: usize, seed: u64, truth: impl Fn(f64) -> f64) -> (Vec<f64>, Vec<bool>) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut unit = move || f64::from(u32::try_from(random.next_u64() >> 32).unwrap()) / f64::from(u32::MAX);
        let rows = (0..count).map(|_| {
            let margin = (0..6).map(|_| unit()).sum::<f64>() * 2.0 - 6.0;
            (margin, unit() < truth(margin))
        });
        rows.unzip()
    }

    fn error(p: &[f64], labels: &[bool]) -> f64 {
        Scores::probabilities(p, labels).unwrap().measure(Measure::Ece { bins: 10 }).unwrap().unwrap()
    }

    #[test]
    fn platt_finds_the_distortion() {
        let (margins, labels) = rows(100_000, 1, |margin| probability(0.5 * margin - 1.0));
        let Platt { slope, intercept } = Platt::fit(&margins, &labels).unwrap();
        assert!((slope - 0.5).abs() < 0.02 && (intercept + 1.0).abs() < 0.02, "{slope}, {intercept}");
    }

    /// What positives weighted ten times do: log-odds that are ln 10 too high.
    #[test]
    fn probabilities_mean_what_they_say_again() {
        let truth = |margin: f64| probability(margin - 10_f64.ln());
        for count in [1000, 20_000] {
            let (margins, labels) = rows(count, 2, truth);
            let calibrator = Calibrator::fit(&margins, &labels).unwrap();
            assert_eq!(matches!(calibrator, Calibrator::Isotonic(_)), count >= ISOTONIC_ROWS_LEAST);
            let (margins, labels) = rows(50_000, 3, truth);
            let raw: Vec<f64> = margins.iter().map(|&margin| probability(margin)).collect();
            let (before, after) = (error(&raw, &labels), error(&calibrator.probabilities(&margins), &labels));
            assert!(before > 0.2 && after < 0.025, "{count} rows: {before} before, {after} after");
            let mean = calibrator.probabilities(&margins).iter().sum::<f64>() / 50_000.0;
            let rate = labels.iter().filter(|&&label| label).count() as f64 / 50_000.0;
            assert!((mean - rate).abs() < 0.02, "{mean} for {rate}");
        }
    }

    /// A distortion that is no straight line in log-odds: isotonic regression follows it, Platt cannot.
    #[test]
    fn isotonic_follows_what_platt_cannot() {
        let truth = |margin: f64| if margin < 0.0 { 0.05 } else { 0.6 };
        let (margins, labels) = rows(20_000, 4, truth);
        let isotonic = Calibrator::Isotonic(Isotonic::fit(&margins, &labels).unwrap());
        let platt = Calibrator::Platt(Platt::fit(&margins, &labels).unwrap());
        let (margins, labels) = rows(50_000, 5, truth);
        let [isotonic, platt] = [isotonic, platt].map(|calibrator| error(&calibrator.probabilities(&margins), &labels));
        assert!(isotonic < 0.015 && platt > 3.0 * isotonic, "{isotonic}, {platt}");
    }

    #[test]
    fn isotonic_equals_what_is_worked_by_hand() {
        let labels = [0, 1, 0, 1, 1, 0, 1].map(|label| label == 1);
        let margins = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        // Blocks {0}, {1, 0}, {1, 1, 0}, {1}; the outer ones are 1 ÷ 9 from the edge.
        let Isotonic { margins, probabilities } = Isotonic::fit(&margins, &labels).unwrap();
        assert_eq!(margins, [1.0, 2.0, 3.0, 4.0, 6.0, 7.0]);
        let edge = 1.0 / 9.0;
        let expected = [edge, 0.5, 0.5, 2.0 / 3.0, 2.0 / 3.0, 1.0 - edge];
        assert!(probabilities.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{probabilities:?}");
        let isotonic = Calibrator::Isotonic(Isotonic { margins, probabilities });
        assert!((isotonic.probability(3.5) - (0.5 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        assert!(
            (isotonic.probability(-9.0) - edge).abs() < 1e-12
                && (isotonic.probability(99.0) - 1.0 + edge).abs() < 1e-12
        );
    }

    #[test]
    fn order_is_kept_and_certainty_is_not_claimed() {
        for count in [500, 5000] {
            let (margins, labels) = rows(count, 6, |margin| probability(3.0 * margin));
            let calibrator = Calibrator::fit(&margins, &labels).unwrap();
            let mut last = 0.0;
            for step in -2000..2000 {
                let p = calibrator.probability(f64::from(step) / 100.0);
                assert!(p >= last && p > 0.0 && p < 1.0);
                last = p;
            }
        }
    }

    #[test]
    fn calibrators_are_stored_and_checked_when_read() {
        for count in [100, 3000] {
            let (margins, labels) = rows(count, 7, probability);
            let calibrator = Calibrator::fit(&margins, &labels).unwrap();
            let text = serde_json::to_string(&calibrator).unwrap();
            assert_eq!(serde_json::from_str::<Calibrator>(&text).unwrap(), calibrator);
        }
        for (damaged, because) in [
            (r#"{"method":"platt","slope":-1.0,"intercept":0.0}"#, "slope is below 0"),
            (r#"{"method":"isotonic","margins":[1.0],"probabilities":[]}"#, "not as many"),
            (r#"{"method":"isotonic","margins":[2.0,1.0],"probabilities":[0.1,0.2]}"#, "do not ascend"),
            (r#"{"method":"isotonic","margins":[1.0,2.0],"probabilities":[0.3,0.2]}"#, "fall"),
            (r#"{"method":"isotonic","margins":[1.0],"probabilities":[1.0]}"#, "not between 0 and 1"),
            (r#"{"method":"other"}"#, "unknown variant"),
        ] {
            let error = serde_json::from_str::<Calibrator>(damaged).unwrap_err().to_string();
            assert!(error.contains(because), "{error}");
        }
    }

    #[test]
    fn scores_that_rank_backwards_are_refused() {
        for count in [500, 5000] {
            let (margins, labels) = rows(count, 8, |margin| if margin > 0.0 { 0.0 } else { 1.0 });
            assert!(matches!(Calibrator::fit(&margins, &labels), Err(ModelError::Inverted)), "{count} rows");
        }
        assert!(Calibrator::fit(&[0.0, f64::NAN], &[true, false]).is_err());
        assert!(matches!(Calibrator::fit(&[0.0, 1.0], &[true, true]), Err(ModelError::OneClass { .. })));
    }
}
