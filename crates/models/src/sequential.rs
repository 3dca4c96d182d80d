//! Tests of two arms that may be looked at every day: p-values and intervals that hold however often one looks and whenever one stops.
//!
//! The mixture sequential probability ratio test of Johari, Pekelis and Walsh, "Always Valid Inference: Bringing Sequential Analysis to A/B Testing" (2017, arXiv 1512.04922), section 4, after Robbins (1970): with the estimated
//! difference δ, its variance s², and effects that are spread around none with variance τ²,
//!
//! ```text
//! Λ = √(s² / (s² + τ²)) · exp(τ² δ² / (2 s² (s² + τ²)))        p = min(p before, 1 / Λ)
//! ```
//!
//! For arms of n rows each s² is V / n, and Λ the paper's. The interval holds all differences that Λ, taken around them, does not refuse.

use serde::Serialize;

use crate::{ModelError, Result};

/// Above it shares of rows are not those that were asked for: χ² of one degree of freedom, p = 0.001.
const MISMATCH: f64 = 10.828;

/// What is known of an arm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Arm {
    pub rows: u64,
    /// Of these, those that what is counted happened to.
    pub positives: u64,
}

/// What a look at both arms says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Look {
    /// The second arm's share of positives less the first's; none while an arm has no row.
    pub difference: Option<f64>,
    /// The ends of the interval of the difference.
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// The least of all looks.
    pub p: f64,
    /// Whether the arms' sizes are not those that were asked for: something is wrong with who is in which, and nothing else can be believed.
    pub is_mismatched: bool,
}

/// A test that goes on from look to look.
#[derive(Debug, Clone)]
pub struct AlwaysValid {
    /// Standard deviation of the effects that are looked for.
    tau: f64,
    /// One less the confidence of intervals.
    alpha: f64,
    /// The share of rows that is the second arm's.
    share: f64,
    p: f64,
}

impl AlwaysValid {
    /// A test for effects of about `tau`, with intervals of 1 − `alpha`, whose second arm gets `share` of the rows.
    ///
    /// # Errors
    ///
    /// Numbers that are not above 0 and below 1.
    pub fn new(tau: f64, alpha: f64, share: f64) -> Result<Self> {
        for (name, value) in [("tau", tau), ("alpha", alpha), ("share", share)] {
            if !(value > 0.0 && value < 1.0) {
                return Err(ModelError::Parameter { name, value, range: "above 0 and below 1" });
            }
        }
        Ok(Self { tau, alpha, share, p: 1.0 })
    }

    /// Looks at the arms as they are known now: each holds what it held at the look before, and more.
    ///
    /// # Errors
    ///
    /// More positives than rows.
    pub fn look(&mut self, first: Arm, second: Arm) -> Result<Look> {
        for arm in [first, second] {
            if arm.positives > arm.rows {
                let (expected, got) = (arm.rows, arm.positives);
                let length = |count| usize::try_from(count).unwrap_or(usize::MAX);
                return Err(ModelError::Length {
                    what: "positives of an arm",
                    expected: length(expected),
                    got: length(got),
                });
            }
        }
        let is_mismatched = self.is_mismatched(first, second);
        let (Some(of_first), Some(of_second)) = (first.share(), second.share()) else {
            return Ok(Look { difference: None, low: None, high: None, p: self.p, is_mismatched });
        };
        let difference = of_second - of_first;
        let variance = first.variance() + second.variance();
        let spread = variance + self.tau * self.tau;
        let ratio = (variance / spread).sqrt()
            * (self.tau * self.tau * difference * difference / (2.0 * variance * spread)).exp();
        self.p = self.p.min(1.0 / ratio);
        let reach =
            (2.0 * variance * spread / (self.tau * self.tau) * ((spread / variance).sqrt() / self.alpha).ln()).sqrt();
        Ok(Look {
            difference: Some(difference),
            low: Some(difference - reach),
            high: Some(difference + reach),
            p: self.p,
            is_mismatched,
        })
    }

    fn is_mismatched(&self, first: Arm, second: Arm) -> bool {
        let rows = (first.rows + second.rows) as f64;
        let expected = rows * self.share;
        let off = second.rows as f64 - expected;
        rows > 0.0 && off * off / expected + off * off / (rows - expected) > MISMATCH
    }
}

impl Arm {
    fn share(self) -> Option<f64> {
        (self.rows > 0).then(|| self.positives as f64 / self.rows as f64)
    }

    /// The variance of the share, from a share that is drawn towards a half by one row: an arm of which all or none are positive is not certain.
    fn variance(self) -> f64 {
        let rows = self.rows as f64;
        let share = (self.positives as f64 + 0.5) / (rows + 1.0);
        share * (1.0 - share) / rows
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    const SEED: u64 = 20_170_601;

    fn uniform(random: &mut ChaCha8Rng) -> f64 {
        (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Sixty days of a test: whether the always-valid p-value, and whether a z-test that is looked at every day, called a difference.
    fn called(random: &mut ChaCha8Rng, rates: [f64; 2], rows_a_day: u64) -> (bool, bool) {
        let mut test = AlwaysValid::new(0.05, 0.05, 0.5).unwrap();
        let mut arms = [Arm::default(); 2];
        let (mut naive, mut last) = (false, 1.0);
        for _ in 0..60 {
            for (arm, rate) in arms.iter_mut().zip(rates) {
                arm.rows += rows_a_day;
                arm.positives += (0..rows_a_day).filter(|_| uniform(random) < rate).count() as u64;
            }
            let look = test.look(arms[0], arms[1]).unwrap();
            assert!(look.p <= last, "it never rises");
            last = look.p;
            let variance = arms[0].variance() + arms[1].variance();
            naive |= look.difference.unwrap().abs() > 1.96 * variance.sqrt();
        }
        (last < 0.05, naive)
    }

    #[test]
    fn looking_every_day_at_two_equal_arms_calls_few_differences_and_a_z_test_calls_many() {
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let runs: Vec<(bool, bool)> = (0..600).map(|_| called(&mut random, [0.3, 0.3], 40)).collect();
        let share = |of: fn(&(bool, bool)) -> bool| runs.iter().filter(|run| of(run)).count() as f64 / 600.0;
        let (always, naive) = (share(|run| run.0), share(|run| run.1));
        assert!(always <= 0.05, "seed {SEED}: {always}");
        assert!(naive > 0.20, "seed {SEED}: {naive}");
    }

    #[test]
    fn a_difference_that_is_there_is_found() {
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        let found = (0..100).filter(|_| called(&mut random, [0.30, 0.36], 60).0).count();
        assert!(found > 80, "seed {SEED}: {found} of 100");
    }

    #[test]
    fn a_look_is_what_the_formula_says() {
        let mut test = AlwaysValid::new(0.1, 0.05, 0.5).unwrap();
        // By hand: 200 rows each, shares 0.4 and 0.5; variances of 80.5/201 and 100.5/201.
        let look = test.look(Arm { rows: 200, positives: 80 }, Arm { rows: 200, positives: 100 }).unwrap();
        let of = |share: f64| share * (1.0 - share) / 200.0;
        let variance = of(80.5 / 201.0) + of(100.5 / 201.0);
        let ratio = (variance / (variance + 0.01)).sqrt() * (0.01 * 0.01 / (2.0 * variance * (variance + 0.01))).exp();
        assert!((look.p - (1.0 / ratio).min(1.0)).abs() < 1e-12, "{look:?} {ratio}");
        assert!((look.difference.unwrap() - 0.1).abs() < 1e-12);
        // The interval's end is the difference at which the test would just refuse.
        let end = look.low.unwrap();
        let off = 0.1 - end;
        let at_end =
            (variance / (variance + 0.01)).sqrt() * (0.01 * off * off / (2.0 * variance * (variance + 0.01))).exp();
        assert!((at_end - 20.0).abs() < 1e-9, "{at_end}");
        assert!(!look.is_mismatched);
        let look = test.look(Arm { rows: 500, positives: 150 }, Arm { rows: 600, positives: 150 }).unwrap();
        assert!(!look.is_mismatched, "{look:?}");
        let look = test.look(Arm { rows: 500, positives: 150 }, Arm { rows: 650, positives: 150 }).unwrap();
        assert!(look.is_mismatched, "{look:?}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(AlwaysValid::new(0.0, 0.05, 0.5).is_err());
        assert!(AlwaysValid::new(0.1, 0.05, 1.0).is_err());
        let mut test = AlwaysValid::new(0.1, 0.05, 0.5).unwrap();
        assert!(test.look(Arm { rows: 1, positives: 2 }, Arm::default()).is_err());
        let look = test.look(Arm { rows: 10, positives: 2 }, Arm::default()).unwrap();
        assert_eq!((look.difference, look.p), (None, 1.0));
    }
}
