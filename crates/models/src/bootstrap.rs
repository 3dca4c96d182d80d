//! How sure a measure is: percentile bootstrap over rows or customers, the same draws for every score.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use crate::measure::{Group, Measure, Scores};
use crate::{ModelError, Result};

/// How to resample. Equal settings and data give equal intervals, bit for bit.
#[derive(Debug, Clone)]
pub struct Bootstrap<'a> {
    pub replicates: u32,
    pub seed: u64,
    /// The probability that an interval is made for: 0.95.
    pub level: f64,
    /// The customer of each row where customers recur, as in monthly snapshots: then whole customers are drawn, since their rows are not
    /// independent. Without, rows are.
    pub customers: Option<&'a [u64]>,
}

impl Default for Bootstrap<'_> {
    fn default() -> Self {
        Self { replicates: 1000, seed: 0, level: 0.95, customers: None }
    }
}

/// A value with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// One measure of a report. What is not defined is `None`: measures of probabilities for a baseline that is none, precision where nobody is
/// above the threshold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    pub measure: String,
    pub model: Option<Estimate>,
    pub baseline: Option<Estimate>,
    /// Model − baseline over the same draws: an interval without zero is a difference.
    pub difference: Option<Estimate>,
}

/// A model's measures, never without what they have to be compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub rows: usize,
    pub positives: usize,
    pub base_rate: f64,
    /// Accuracy of saying the more frequent class of everybody.
    pub majority_accuracy: f64,
    pub replicates: u32,
    pub level: f64,
    pub lines: Vec<Line>,
}

/// Measures `model` beside `baseline`, both over the same rows in the same order.
///
/// # Errors
///
/// Scores of different rows, parameters out of range.
pub fn report(model: &Scores, baseline: &Scores, measures: &[Measure], bootstrap: &Bootstrap<'_>) -> Result<Report> {
    if model.labels() != baseline.labels() {
        return Err(ModelError::Signature("model and baseline have different rows or labels".to_owned()));
    }
    for measure in measures {
        measure.check()?;
    }
    let all = vec![1; model.rows()];
    let points = measured(model, baseline, measures, &all, &mut Vec::new());
    let mut draws: Vec<[Vec<f64>; 3]> = vec![Default::default(); measures.len()];
    let mut buffer = Vec::new();
    resample(model.rows(), bootstrap, |counts| {
        for (draw, (model, baseline)) in draws.iter_mut().zip(measured(model, baseline, measures, counts, &mut buffer))
        {
            draw[0].extend(model);
            draw[1].extend(baseline);
            draw[2].extend(model.zip(baseline).map(|(model, baseline)| model - baseline));
        }
    })?;
    let lines = measures.iter().zip(points).zip(draws).map(|((measure, (model, baseline)), [a, b, difference])| {
        let interval = |value: Option<f64>, draws| value.map(|value| estimate(value, draws, bootstrap.level));
        let gap = model.zip(baseline).map(|(model, baseline)| model - baseline);
        Line {
            measure: measure.name(),
            model: interval(model, a),
            baseline: interval(baseline, b),
            difference: interval(gap, difference),
        }
    });
    let lines = lines.collect();
    let base_rate = model.base_rate();
    Ok(Report {
        rows: model.rows(),
        positives: model.positives(),
        base_rate,
        majority_accuracy: base_rate.max(1.0 - base_rate),
        replicates: bootstrap.replicates,
        level: bootstrap.level,
        lines,
    })
}

/// The difference of two scores in one measure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// `a` − `b`.
    pub difference: Estimate,
    /// Share of resamples in which `a` is not above `b`.
    pub not_above: f64,
}

/// Paired bootstrap: is `a` above `b` in `measure`? `None` where the measure is not defined for one of them.
///
/// # Errors
///
/// Scores of different rows, parameters out of range.
pub fn compare(a: &Scores, b: &Scores, measure: Measure, bootstrap: &Bootstrap<'_>) -> Result<Option<Comparison>> {
    if a.labels() != b.labels() {
        return Err(ModelError::Signature("the two scores have different rows or labels".to_owned()));
    }
    let (Some(of_a), Some(of_b)) = (a.measure(measure)?, b.measure(measure)?) else { return Ok(None) };
    let mut draws = Vec::new();
    let mut buffer = Vec::new();
    resample(a.rows(), bootstrap, |counts| {
        let values = measured(a, b, &[measure], counts, &mut buffer);
        draws.extend(values.into_iter().filter_map(|(a, b)| Some(a? - b?)));
    })?;
    let not_above = draws.iter().filter(|&&difference| difference <= 0.0).count() as f64 / draws.len() as f64;
    Ok(Some(Comparison { difference: estimate(of_a - of_b, draws, bootstrap.level), not_above }))
}

/// Each measure of both scores where row `i` is there `counts[i]` times.
fn measured(
    a: &Scores,
    b: &Scores,
    measures: &[Measure],
    counts: &[u32],
    groups: &mut Vec<Group>,
) -> Vec<(Option<f64>, Option<f64>)> {
    a.resampled(counts, groups);
    let of_a: Vec<_> = measures.iter().map(|&measure| a.value(measure, groups)).collect();
    b.resampled(counts, groups);
    of_a.into_iter().zip(measures).map(|(of_a, &measure)| (of_a, b.value(measure, groups))).collect()
}

/// Calls `each` with how often every row is in a resample, once a replicate. A resample of one class is passed on: its measures are undefined
/// and left out.
pub(crate) fn resample(rows: usize, bootstrap: &Bootstrap<'_>, mut each: impl FnMut(&[u32])) -> Result<()> {
    if bootstrap.replicates == 0 {
        return Err(ModelError::Parameter { name: "replicates", value: 0.0, range: "at least 1" });
    }
    if !(bootstrap.level > 0.0 && bootstrap.level < 1.0) {
        return Err(ModelError::Parameter { name: "level", value: bootstrap.level, range: "between 0 and 1" });
    }
    let unit_of = match bootstrap.customers {
        Some(customers) if customers.len() != rows => {
            return Err(ModelError::Length { what: "customers", expected: rows, got: customers.len() });
        }
        Some(customers) => Some(dense(customers)),
        None => None,
    };
    let units = unit_of.as_ref().map_or(rows, |(_, units)| *units);
    let mut drawn = vec![0_u32; units];
    let mut counts = vec![0_u32; rows];
    for replicate in 0..bootstrap.replicates {
        let mut random = ChaCha8Rng::seed_from_u64(bootstrap.seed);
        random.set_stream(u64::from(replicate));
        drawn.fill(0);
        for _ in 0..units {
            drawn[below(&mut random, units)] += 1;
        }
        match &unit_of {
            None => each(&drawn),
            Some((unit_of, _)) => {
                for (count, &unit) in counts.iter_mut().zip(unit_of) {
                    *count = drawn[unit];
                }
                each(&counts);
            }
        }
    }
    Ok(())
}

/// Numbers from 0 in place of the customers' own, and how many there are.
fn dense(customers: &[u64]) -> (Vec<usize>, usize) {
    let mut known = std::collections::HashMap::new();
    let numbers = customers.iter().map(|customer| {
        let next = known.len();
        *known.entry(*customer).or_insert(next)
    });
    let numbers: Vec<usize> = numbers.collect();
    (numbers, known.len())
}

/// A number from 0 to `bound` − 1; the bias of multiplying down is below 2⁻³².
fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    let product = u128::from(random.next_u64()) * bound as u128;
    usize::try_from(product >> 64).unwrap_or(0)
}

/// Percentiles with linear interpolation.
pub(crate) fn estimate(value: f64, mut draws: Vec<f64>, level: f64) -> Estimate {
    draws.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - level) / 2.0;
    Estimate {
        value,
        low: quantile(&draws, tail).unwrap_or(value),
        high: quantile(&draws, 1.0 - tail).unwrap_or(value),
    }
}

/// The quantile of sorted values, between neighbours by linear interpolation.
pub(crate) fn quantile(sorted: &[f64], at: f64) -> Option<f64> {
    let place = at * (sorted.len().checked_sub(1)? as f64);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a slice")]
    let below = place.floor() as usize;
    let low = sorted.get(below)?;
    let high = sorted.get(below + 1).unwrap_or(low);
    Some(low + (high - low) * (place - place.floor()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noisy(rows: usize, noise: f64, seed: u64) -> (Vec<f64>, Vec<bool>) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut unit = || below(&mut random, 1 << 30) as f64 / f64::from(1 << 30);
        let rows = (0..rows).map(|_| {
            let p = unit();
            ((p + noise * (unit() - 0.5)).clamp(0.0, 1.0), unit() < p)
        });
        rows.unzip()
    }

    #[test]
    fn equal_seeds_give_equal_intervals() {
        let (p, y) = noisy(500, 0.3, 1);
        let scores = Scores::probabilities(&p, &y).unwrap();
        let with = |seed| {
            let bootstrap = Bootstrap { replicates: 200, seed, ..Bootstrap::default() };
            report(&scores, &scores, &[Measure::Auc], &bootstrap).unwrap()
        };
        assert_eq!(with(7), with(7));
        assert_ne!(with(7), with(8));
        assert!(
            with(7).lines[0].difference.is_some_and(|d| d.low.abs() + d.high.abs() < 1e-12),
            "a score does not differ from itself"
        );
    }

    /// The true AUC of 400 data sets is inside their 90 % intervals about 360 times.
    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        let (p, y) = noisy(200_000, 0.3, 2);
        let truth = Scores::probabilities(&p, &y).unwrap().measure(Measure::Auc).unwrap().unwrap();
        let inside = (0..400).filter(|seed| {
            let (p, y) = noisy(200, 0.3, 1000 + seed);
            let scores = Scores::probabilities(&p, &y).unwrap();
            let bootstrap = Bootstrap { replicates: 200, seed: *seed, level: 0.9, customers: None };
            let auc = report(&scores, &scores, &[Measure::Auc], &bootstrap).unwrap().lines[0].model.unwrap();
            auc.low <= truth && truth <= auc.high
        });
        let inside = inside.count();
        assert!((340..=378).contains(&inside), "{inside} of 400");
    }

    #[test]
    fn customers_that_recur_make_intervals_wider() {
        let (p, y) = noisy(300, 0.3, 3);
        let (p, y) = (p.repeat(4), y.repeat(4));
        let customers: Vec<u64> = (0..300).collect::<Vec<_>>().repeat(4);
        let scores = Scores::probabilities(&p, &y).unwrap();
        let width = |customers| {
            let bootstrap = Bootstrap { replicates: 400, customers, ..Bootstrap::default() };
            let auc = report(&scores, &scores, &[Measure::Auc], &bootstrap).unwrap().lines[0].model.unwrap();
            auc.high - auc.low
        };
        let ratio = width(Some(&customers[..])) / width(None);
        assert!((1.7..2.3).contains(&ratio), "four copies of each: twice as wide, not {ratio}");
    }

    #[test]
    fn the_better_of_two_scores_is_told_from_the_worse() {
        let (good, y) = noisy(2000, 0.2, 4);
        let (blur, _) = noisy(2000, 0.0, 5);
        let bad: Vec<f64> = good.iter().zip(blur).map(|(p, blur)| 0.5 * (p + blur)).collect();
        let (good, bad) = (Scores::probabilities(&good, &y).unwrap(), Scores::ranking(&bad, &y).unwrap());
        let bootstrap = Bootstrap { replicates: 300, ..Bootstrap::default() };
        let better = compare(&good, &bad, Measure::Auc, &bootstrap).unwrap().unwrap();
        assert!(better.difference.low > 0.0 && better.not_above < 0.01, "{better:?}");
        assert!(compare(&good, &bad, Measure::Brier, &bootstrap).unwrap().is_none(), "a ranking has no Brier score");
        let lines = report(&good, &bad, &Measure::USUAL, &bootstrap).unwrap().lines;
        assert!(
            lines
                .iter()
                .find(|line| line.measure == "brier")
                .is_some_and(|line| line.model.is_some() && line.baseline.is_none())
        );
    }

    #[test]
    fn scores_of_other_rows_are_refused() {
        let a = Scores::ranking(&[1.0, 2.0, 3.0], &[true, false, true]).unwrap();
        let b = Scores::ranking(&[1.0, 2.0, 3.0], &[true, true, false]).unwrap();
        assert!(compare(&a, &b, Measure::Auc, &Bootstrap::default()).is_err());
        assert!(report(&a, &b, &[Measure::Auc], &Bootstrap::default()).is_err());
        let none = Bootstrap { replicates: 0, ..Bootstrap::default() };
        assert!(compare(&a, &a, Measure::Auc, &none).is_err());
    }
}
