//! Whether a feature or a score still looks as it did when the model was trained: population stability index and Kolmogorov–Smirnov distance
//! against a profile that is kept beside the model.

use serde::{Deserialize, Serialize};

use crate::{ModelError, Result};

/// Bins of equally many baseline values; missing values are one bin more.
const BINS: usize = 10;

/// Values that are kept of the baseline, evenly by rank: the distance is then right to a thousandth.
const KEPT_MOST: usize = 1000;

/// 3.09 standard deviations: chance alone is above it once in a thousand times.
const NORMAL_QUANTILE: f64 = 3.090_232;

/// What a feature or a score looked like: what [`Profile::drift`] compares later values with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    rows: u64,
    /// Upper edges of all bins but the last, each belonging to its bin, ascending.
    edges: Vec<f64>,
    /// Rows of each bin, and of missing values last.
    counts: Vec<u64>,
    /// Ascending.
    kept: Vec<f64>,
}

/// How far values have moved from their profile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Drift {
    /// Rows of the profile and of the later values.
    pub rows: [u64; 2],
    /// Σ (p − q) ln(p ÷ q) over the profile's bins and missing values, each share with half a row more, so that none is 0.
    pub psi: f64,
    /// What the index is above once in a thousand times if nothing has moved: (1 ÷ n + 1 ÷ m) × the quantile of χ² with one degree of freedom less
    /// than bins. In small samples it is above the usual bars.
    pub psi_by_chance: f64,
    /// Largest distance of the two distribution functions, missing values aside; none where one side has no value.
    pub ks: Option<f64>,
    /// Share of missing values, before and now.
    pub missing: [f64; 2],
}

/// What to make of a drift, by the usual bars of the index: 0.1 and 0.25.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shift {
    /// Below 0.1, or no more than chance gives.
    None,
    /// From 0.1: look.
    Moderate,
    /// From 0.25: the model is asked about other customers than it was trained on.
    Large,
}

impl Profile {
    /// The profile of values; `None` and NaN are missing.
    ///
    /// # Errors
    ///
    /// No values, an infinite one.
    pub fn of(values: impl IntoIterator<Item = Option<f64>>) -> Result<Self> {
        let (sorted, missing) = sorted(values)?;
        let rows = sorted.len() + missing;
        if rows == 0 {
            return Err(ModelError::Empty { what: "the profile's values" });
        }
        let rank = |part: usize, parts: usize| (part * sorted.len()).div_ceil(parts).saturating_sub(1);
        let mut edges: Vec<f64> = Vec::new();
        if !sorted.is_empty() {
            let ends: Vec<f64> = (1..=BINS).map(|part| sorted[rank(part, BINS)]).collect();
            for run in ends.chunk_by(|one, other| one.total_cmp(other).is_eq()) {
                // A value that fills a bin is a bin alone: what comes to lie on either side of it has moved.
                if run.len() > 1 && edges.last().is_none_or(|&edge| edge < run[0].next_down()) {
                    edges.push(run[0].next_down());
                }
                edges.push(run[0]);
            }
            if ends[BINS - 2] < ends[BINS - 1] {
                edges.pop();
            }
        }
        let parts = sorted.len().min(KEPT_MOST);
        let kept = (1..=parts).map(|part| sorted[rank(part, parts)]).collect();
        let counts = counts(&edges, &sorted, missing);
        Ok(Self { rows: rows as u64, edges, counts, kept })
    }

    /// How far `values` are from the profile.
    ///
    /// # Errors
    ///
    /// No values, an infinite one.
    pub fn drift(&self, values: impl IntoIterator<Item = Option<f64>>) -> Result<Drift> {
        let (sorted, missing) = sorted(values)?;
        let rows = (sorted.len() + missing) as u64;
        if rows == 0 {
            return Err(ModelError::Empty { what: "the values to compare" });
        }
        let now = counts(&self.edges, &sorted, missing);
        let bins = now.len() as f64;
        let share = |count: u64, rows: u64| (count as f64 + 0.5) / (rows as f64 + 0.5 * bins);
        let parts = self.counts.iter().zip(&now).map(|(&before, &now)| {
            let (before, now) = (share(before, self.rows), share(now, rows));
            (now - before) * (now / before).ln()
        });
        let missing_before = self.counts.last().copied().unwrap_or(0);
        // Bins that are empty on both sides are none: a feature without missing values has no bin for them.
        let used = self.counts.iter().zip(&now).filter(|(before, now)| **before + **now > 0).count();
        Ok(Drift {
            rows: [self.rows, rows],
            psi: parts.sum(),
            psi_by_chance: chi_squared_quantile(used.saturating_sub(1)) * (1.0 / self.rows as f64 + 1.0 / rows as f64),
            ks: distance(&self.kept, &sorted),
            missing: [missing_before as f64 / self.rows as f64, missing as f64 / rows as f64],
        })
    }
}

impl Drift {
    /// What to make of it.
    pub fn shift(&self) -> Shift {
        match self.psi {
            psi if psi <= self.psi_by_chance || psi < 0.1 => Shift::None,
            psi if psi < 0.25 => Shift::Moderate,
            _ => Shift::Large,
        }
    }
}

fn sorted(values: impl IntoIterator<Item = Option<f64>>) -> Result<(Vec<f64>, usize)> {
    let mut missing = 0;
    let mut sorted = Vec::new();
    for (row, value) in values.into_iter().enumerate() {
        match value {
            None => missing += 1,
            Some(value) if value.is_nan() => missing += 1,
            Some(value) if value.is_infinite() => {
                return Err(ModelError::Value {
                    what: "a value of the profile".to_owned(),
                    row,
                    problem: "is infinite",
                });
            }
            // −0 and 0 are one value.
            Some(value) => sorted.push(value + 0.0),
        }
    }
    sorted.sort_unstable_by(f64::total_cmp);
    Ok((sorted, missing))
}

fn counts(edges: &[f64], sorted: &[f64], missing: usize) -> Vec<u64> {
    let ends = edges.iter().map(|edge| sorted.partition_point(|value| value <= edge)).chain([sorted.len()]);
    let mut begin = 0;
    let mut counts: Vec<u64> = ends.map(|end| (end - std::mem::replace(&mut begin, end)) as u64).collect();
    counts.push(missing as u64);
    counts
}

/// Largest difference of two empirical distribution functions.
fn distance(one: &[f64], other: &[f64]) -> Option<f64> {
    if one.is_empty() || other.is_empty() {
        return None;
    }
    let (mut i, mut j, mut most) = (0, 0, 0.0_f64);
    while i < one.len() && j < other.len() {
        let value = one[i].min(other[j]);
        i += one[i..].iter().take_while(|&&next| next <= value).count();
        j += other[j..].iter().take_while(|&&next| next <= value).count();
        most = most.max((i as f64 / one.len() as f64 - j as f64 / other.len() as f64).abs());
    }
    Some(most)
}

/// The 99.9 % quantile of χ² (Wilson and Hilferty 1931).
fn chi_squared_quantile(freedom: usize) -> f64 {
    if freedom == 0 {
        return 0.0;
    }
    let freedom = freedom as f64;
    let spread = 2.0 / (9.0 * freedom);
    freedom * (1.0 - spread + NORMAL_QUANTILE * spread.sqrt()).powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dice;

    fn normal(rows: usize, mean: f64, missing: f64, dice: &mut Dice) -> Vec<Option<f64>> {
        (0..rows).map(|_| (dice.unit() >= missing).then(|| mean + dice.normal())).collect()
    }

    #[test]
    fn the_index_is_that_of_the_textbook() {
        // Ten bins of 1,000 each; then all of the lowest bin's rows go to the highest.
        let profile = Profile::of((0..10_000).map(|value| Some(f64::from(value)))).unwrap();
        let moved = (0..10_000).map(|value| Some(f64::from(if value < 1000 { 9500 } else { value })));
        let drift = profile.drift(moved).unwrap();
        let share = |count: f64| (count + 0.5) / 10_005.5;
        let expected = (share(0.0) - share(1000.0)) * (share(0.0) / share(1000.0)).ln()
            + (share(2000.0) - share(1000.0)) * (share(2000.0) / share(1000.0)).ln();
        assert!((drift.psi - expected).abs() < 1e-12, "{} and {expected}", drift.psi);
        assert!((drift.ks.unwrap() - 0.1).abs() < 1e-3, "{drift:?}");
        assert_eq!(drift.shift(), Shift::Large);
        let same = profile.drift((0..10_000).map(|value| Some(f64::from(value)))).unwrap();
        assert!(same.psi.abs() < 1e-12 && same.ks.unwrap() < 1e-3 && same.shift() == Shift::None);
    }

    /// Of quiet data, whatever the size, no more than one in a thousand is told to have moved; 3,000 are looked at, seeds 1 to 3.
    #[test]
    fn quiet_data_raises_no_alarm() {
        let mut above = 0;
        let mut alarms = 0;
        for (seed, rows) in [(1, 60), (2, 400), (3, 2500)] {
            let mut dice = Dice::new(seed);
            for _ in 0..1000 {
                let profile = Profile::of(normal(2 * rows, 0.0, 0.1, &mut dice)).unwrap();
                let drift = profile.drift(normal(rows, 0.0, 0.1, &mut dice)).unwrap();
                above += usize::from(drift.psi > drift.psi_by_chance);
                alarms += usize::from(drift.shift() > Shift::None);
            }
        }
        assert!(above <= 12, "{above} of 3000 above what chance gives once in a thousand times");
        assert!(alarms <= 6, "{alarms} of 3000");
    }

    #[test]
    fn what_moved_is_seen() {
        let mut dice = Dice::new(4);
        let profile = Profile::of(normal(20_000, 0.0, 0.05, &mut dice)).unwrap();
        let drift = |mean, missing, dice: &mut Dice| profile.drift(normal(5000, mean, missing, dice)).unwrap();
        assert_eq!(drift(0.4, 0.05, &mut dice).shift(), Shift::Moderate);
        let far = drift(0.8, 0.05, &mut dice);
        assert_eq!(far.shift(), Shift::Large);
        // Φ(0.4) − Φ(−0.4), the distance of two normal distributions 0.8 apart.
        assert!((far.ks.unwrap() - 0.3108).abs() < 0.02, "{far:?}");
        let gone = drift(0.0, 0.4, &mut dice);
        assert!(gone.shift() == Shift::Large && gone.ks.unwrap() < 0.03, "missing values alone have moved: {gone:?}");
        assert!((gone.missing[0] - 0.05).abs() < 0.01 && (gone.missing[1] - 0.4).abs() < 0.03);
    }

    #[test]
    fn counts_flags_and_constants_have_profiles() {
        // Zero fills nine bins of ten.
        let profile = Profile::of((0..1000).map(|row| Some(if row < 930 { 0.0 } else { f64::from(row % 7) }))).unwrap();
        assert!(
            profile.drift((0..1000).map(|row| Some(if row < 930 { -0.0 } else { f64::from(row % 7) }))).unwrap().psi
                < 1e-9
        );
        assert_eq!(profile.drift([Some(3.0); 500]).unwrap().shift(), Shift::Large);
        let constant = Profile::of([Some(7.0); 100]).unwrap();
        assert_eq!(constant.drift([Some(7.0); 50]).unwrap().shift(), Shift::None);
        assert_eq!(constant.drift([Some(9.0); 50]).unwrap().shift(), Shift::Large);
        assert_eq!(constant.drift([Some(6.0); 50]).unwrap().shift(), Shift::Large);
        let nothing = Profile::of([None; 100]).unwrap();
        let drift = nothing.drift([Some(1.0); 100]).unwrap();
        assert!(drift.shift() == Shift::Large && drift.ks.is_none(), "{drift:?}");
        let text = serde_json::to_string(&profile).unwrap();
        assert_eq!(serde_json::from_str::<Profile>(&text).unwrap(), profile);
        assert!(Profile::of([]).is_err() && profile.drift([]).is_err());
        assert!(Profile::of([Some(f64::INFINITY)]).unwrap_err().to_string().contains("row 0 is infinite"));
    }
}
