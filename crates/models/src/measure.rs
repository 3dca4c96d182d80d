//! What a score is worth: each measure is a function of the rows grouped by score, so that ties cannot depend on the order of rows.

use crate::{ModelError, Result};

/// Rows of one score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Group {
    pub score: f64,
    /// How many rows.
    pub rows: f64,
    /// How many of them are labelled true.
    pub positives: f64,
}

/// Scores beside labels: what [`crate::report`] and [`crate::compare`] judge.
#[derive(Debug, Clone)]
pub struct Scores {
    /// Sorted by score, highest first. Some may hold no row in a resample.
    groups: Vec<Group>,
    /// The group of each row, in the order the rows were given.
    group_of: Vec<u32>,
    labels: Vec<bool>,
    are_probabilities: bool,
}

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Measure {
    /// Area under the ROC curve: the chance that a positive row's score is above a negative one's, ties counted half (Hanley and McNeil 1982).
    Auc,
    /// Average precision, Σ (Rₙ − Rₙ₋₁) Pₙ over distinct scores: area under the precision–recall curve without interpolation.
    PrAuc,
    /// Mean squared difference between probability and label (Brier 1950). Lower is better.
    Brier,
    /// 1 − Brier ÷ Brier of the base rate: 0 is no better than saying the base rate of everybody.
    BrierSkill,
    /// Mean negative log-likelihood, natural logarithm, probabilities kept 1e-15 from 0 and 1. Lower is better.
    LogLoss,
    /// Expected calibration error: mean |mean probability − rate of positives| over `bins` bins of equally many rows. Lower is better.
    Ece { bins: u32 },
    /// Rate of positives among the `share` of rows with the highest scores, ÷ base rate.
    Lift { share: f64 },
    /// Share of all positives that are among the `share` of rows with the highest scores.
    Recall { share: f64 },
    /// Rate of positives among rows with a probability of at least `threshold`; none where no row has.
    Precision { threshold: f64 },
    /// Share of all rows with a probability of at least `threshold`.
    Flagged { threshold: f64 },
    /// Share of rows for which "probability ≥ `threshold`" says the label. Means nothing without the majority class's.
    Accuracy { threshold: f64 },
    /// Pearson's correlation of score and label, a row at a time.
    PointBiserial,
    /// Pearson's correlation of mean score and rate of positives over ten bins of equally many rows. Almost any calibrated score is near 1.
    DecileCorrelation,
}

impl Measure {
    /// What a churn model is judged by: ranking, calibration, the tenth most at risk, and the fixed threshold of high risk, 0.70.
    pub const USUAL: [Self; 13] = [
        Self::Auc,
        Self::PrAuc,
        Self::Brier,
        Self::BrierSkill,
        Self::LogLoss,
        Self::Ece { bins: 10 },
        Self::Lift { share: 0.10 },
        Self::Recall { share: 0.10 },
        Self::Precision { threshold: 0.70 },
        Self::Flagged { threshold: 0.70 },
        Self::Accuracy { threshold: 0.50 },
        Self::PointBiserial,
        Self::DecileCorrelation,
    ];

    /// The column name for tables and JSON: `auc`, `lift_at_10_percent`, `precision_at_0.70`.
    pub fn name(self) -> String {
        match self {
            Self::Auc => "auc".to_owned(),
            Self::PrAuc => "pr_auc".to_owned(),
            Self::Brier => "brier".to_owned(),
            Self::BrierSkill => "brier_skill".to_owned(),
            Self::LogLoss => "log_loss".to_owned(),
            Self::Ece { bins } => format!("ece_{bins}_bins"),
            Self::Lift { share } => format!("lift_at_{}_percent", share * 100.0),
            Self::Recall { share } => format!("recall_at_{}_percent", share * 100.0),
            Self::Precision { threshold } => format!("precision_at_{threshold:.2}"),
            Self::Flagged { threshold } => format!("flagged_at_{threshold:.2}"),
            Self::Accuracy { threshold } => format!("accuracy_at_{threshold:.2}"),
            Self::PointBiserial => "point_biserial_r".to_owned(),
            Self::DecileCorrelation => "decile_r".to_owned(),
        }
    }

    /// Whether it reads scores as probabilities, not only their order or scale.
    pub const fn needs_probabilities(self) -> bool {
        matches!(
            self,
            Self::Brier
                | Self::BrierSkill
                | Self::LogLoss
                | Self::Ece { .. }
                | Self::Precision { .. }
                | Self::Flagged { .. }
                | Self::Accuracy { .. }
        )
    }

    /// Refuses parameters that mean nothing.
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Ece { bins: 0 } => Err(ModelError::Parameter { name: "bins", value: 0.0, range: "at least 1" }),
            Self::Lift { share } | Self::Recall { share } if !(share > 0.0 && share <= 1.0) => {
                Err(ModelError::Parameter { name: "share", value: share, range: "above 0 and at most 1" })
            }
            Self::Precision { threshold } | Self::Flagged { threshold } | Self::Accuracy { threshold }
                if !(0.0..=1.0).contains(&threshold) =>
            {
                Err(ModelError::Parameter { name: "threshold", value: threshold, range: "from 0 to 1" })
            }
            _ => Ok(()),
        }
    }

    /// The value over groups sorted by descending score, or `None` where it is not defined: one class only, nobody above the threshold, scores
    /// that are all equal.
    pub(crate) fn of(self, groups: &[Group]) -> Option<f64> {
        let rows: f64 = groups.iter().map(|group| group.rows).sum();
        let positives: f64 = groups.iter().map(|group| group.positives).sum();
        let base_rate = positives / rows;
        if !(rows > 0.0 && positives > 0.0 && positives < rows) {
            return None;
        }
        match self {
            Self::Auc => Some(auc(groups, rows, positives)),
            Self::PrAuc => Some(average_precision(groups, positives)),
            Self::Brier => Some(brier(groups) / rows),
            Self::BrierSkill => Some(1.0 - brier(groups) / rows / (base_rate * (1.0 - base_rate))),
            Self::LogLoss => Some(log_loss(groups) / rows),
            Self::Ece { bins } => {
                let gaps = equal_bins(groups, rows, bins).into_iter().map(|bin| (bin.score - bin.positives).abs());
                Some(gaps.sum::<f64>() / rows)
            }
            Self::Lift { share } => {
                let top = positives_of_top(groups, rows * share);
                Some(top / (rows * share) / base_rate)
            }
            Self::Recall { share } => Some(positives_of_top(groups, rows * share) / positives),
            Self::Precision { threshold } => {
                let (above, hits) = at_least(groups, threshold);
                (above > 0.0).then(|| hits / above)
            }
            Self::Flagged { threshold } => Some(at_least(groups, threshold).0 / rows),
            Self::Accuracy { threshold } => {
                let (above, hits) = at_least(groups, threshold);
                let rejected = rows - above - (positives - hits);
                Some((hits + rejected) / rows)
            }
            Self::PointBiserial => point_biserial(groups, rows, base_rate),
            Self::DecileCorrelation => {
                let bins = equal_bins(groups, rows, 10);
                let means = bins.iter().map(|bin| (bin.score / bin.rows, bin.positives / bin.rows));
                pearson(means.collect::<Vec<_>>().as_slice())
            }
        }
    }
}

impl Scores {
    /// Probabilities that the label is true, one a row.
    ///
    /// # Errors
    ///
    /// Columns of different lengths, no rows, one class only, a probability that is none.
    pub fn probabilities(probabilities: &[f64], labels: &[bool]) -> Result<Self> {
        if let Some(row) = probabilities.iter().position(|p| !(0.0..=1.0).contains(p)) {
            return Err(ModelError::Value { what: "probabilities".to_owned(), row, problem: "is not from 0 to 1" });
        }
        Self::new(probabilities, labels, true)
    }

    /// Scores of any scale, one a row, higher where the label is more likely true: a baseline such as days since the last order.
    /// Measures that need probabilities are left out for them.
    ///
    /// # Errors
    ///
    /// Columns of different lengths, no rows, one class only, a score that is not finite.
    pub fn ranking(scores: &[f64], labels: &[bool]) -> Result<Self> {
        if let Some(row) = scores.iter().position(|score| !score.is_finite()) {
            return Err(ModelError::Value { what: "scores".to_owned(), row, problem: "is not finite" });
        }
        Self::new(scores, labels, false)
    }

    fn new(scores: &[f64], labels: &[bool], are_probabilities: bool) -> Result<Self> {
        check_labels("scores", scores.len(), labels)?;
        let rows = u32::try_from(scores.len()).map_err(|_| ModelError::Parameter {
            name: "rows",
            value: scores.len() as f64,
            range: "below 2^32",
        })?;
        let mut order: Vec<u32> = (0..rows).collect();
        order.sort_unstable_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
        let mut groups: Vec<Group> = Vec::new();
        let mut group_of = vec![0; scores.len()];
        let mut current = 0;
        for row in order {
            let row = row as usize;
            // Adding zero makes one group of 0 and −0.
            let score = scores[row] + 0.0;
            if groups.last().is_none_or(|last| last.score.total_cmp(&score).is_ne()) {
                current = u32::try_from(groups.len()).unwrap_or(u32::MAX);
                groups.push(Group { score, rows: 0.0, positives: 0.0 });
            }
            group_of[row] = current;
            let group = &mut groups[current as usize];
            group.rows += 1.0;
            group.positives += f64::from(u8::from(labels[row]));
        }
        Ok(Self { groups, group_of, labels: labels.to_vec(), are_probabilities })
    }

    /// The value over all rows, or `None` where the measure is not defined for them.
    ///
    /// # Errors
    ///
    /// A parameter of the measure that means nothing.
    pub fn measure(&self, measure: Measure) -> Result<Option<f64>> {
        measure.check()?;
        Ok(self.value(measure, &self.groups))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Share of rows labelled true.
    pub fn base_rate(&self) -> f64 {
        self.positives() as f64 / self.rows() as f64
    }

    /// Number of rows labelled true.
    pub fn positives(&self) -> usize {
        self.labels.iter().filter(|&&label| label).count()
    }

    pub(crate) fn labels(&self) -> &[bool] {
        &self.labels
    }

    pub(crate) fn value(&self, measure: Measure, groups: &[Group]) -> Option<f64> {
        if measure.needs_probabilities() && !self.are_probabilities {
            return None;
        }
        measure.of(groups)
    }

    /// The groups as if row `i` were there `counts[i]` times, into a buffer that is used again.
    pub(crate) fn resampled(&self, counts: &[u32], groups: &mut Vec<Group>) {
        groups.clear();
        groups.extend(self.groups.iter().map(|group| Group { score: group.score, rows: 0.0, positives: 0.0 }));
        for ((&group, &count), &label) in self.group_of.iter().zip(counts).zip(&self.labels) {
            let group = &mut groups[group as usize];
            group.rows += f64::from(count);
            if label {
                group.positives += f64::from(count);
            }
        }
    }
}

/// Refuses labels that do not fit the rows or hold one class only.
pub(crate) fn check_labels(what: &'static str, rows: usize, labels: &[bool]) -> Result<()> {
    if labels.len() != rows {
        return Err(ModelError::Length { what: "labels", expected: rows, got: labels.len() });
    }
    let Some(&first) = labels.first() else { return Err(ModelError::Empty { what }) };
    if labels.iter().all(|&label| label == first) {
        return Err(ModelError::OneClass { what, rows, label: u8::from(first) });
    }
    Ok(())
}

fn auc(groups: &[Group], rows: f64, positives: f64) -> f64 {
    let mut above = 0.0;
    let mut area = 0.0;
    for group in groups {
        let negatives = group.rows - group.positives;
        area += negatives * (above + 0.5 * group.positives);
        above += group.positives;
    }
    area / (positives * (rows - positives))
}

fn average_precision(groups: &[Group], positives: f64) -> f64 {
    let (mut rows, mut hits, mut sum) = (0.0, 0.0, 0.0);
    for group in groups.iter().filter(|group| group.rows > 0.0) {
        rows += group.rows;
        hits += group.positives;
        sum += group.positives / positives * (hits / rows);
    }
    sum
}

fn brier(groups: &[Group]) -> f64 {
    let squares = |group: &Group| {
        let negatives = group.rows - group.positives;
        group.positives * (1.0 - group.score).powi(2) + negatives * group.score.powi(2)
    };
    groups.iter().map(squares).sum()
}

fn log_loss(groups: &[Group]) -> f64 {
    const EDGE: f64 = 1e-15;
    let loss = |group: &Group| {
        let p = group.score.clamp(EDGE, 1.0 - EDGE);
        -group.positives * p.ln() - (group.rows - group.positives) * (1.0 - p).ln()
    };
    groups.iter().map(loss).sum()
}

/// Positives among the first `wanted` rows; a tie at the edge counts by the share of it that is in.
fn positives_of_top(groups: &[Group], wanted: f64) -> f64 {
    let (mut left, mut hits) = (wanted, 0.0);
    for group in groups.iter().filter(|group| group.rows > 0.0) {
        if left <= group.rows {
            return hits + group.positives * (left / group.rows);
        }
        left -= group.rows;
        hits += group.positives;
    }
    hits
}

fn at_least(groups: &[Group], threshold: f64) -> (f64, f64) {
    let above = groups.iter().take_while(|group| group.score >= threshold);
    above.fold((0.0, 0.0), |(rows, hits), group| (rows + group.rows, hits + group.positives))
}

/// Bins of equally many rows, highest scores first; `score` is the sum of the bin's scores. A tie across an edge is divided in proportion.
fn equal_bins(groups: &[Group], rows: f64, bins: u32) -> Vec<Group> {
    let size = rows / f64::from(bins);
    let empty = Group { score: 0.0, rows: 0.0, positives: 0.0 };
    let mut filled = Vec::new();
    let mut bin = empty;
    for group in groups.iter().filter(|group| group.rows > 0.0) {
        let mut left = group.rows;
        while left > 0.0 {
            let room = size - bin.rows;
            // What rounding leaves over does not make a bin of its own.
            let full = left >= room - size * 1e-9;
            let taken = if full { room.min(left) } else { left };
            bin.rows += taken;
            bin.score += group.score * taken;
            bin.positives += group.positives * (taken / group.rows);
            left -= taken;
            if left < size * 1e-9 {
                left = 0.0;
            }
            if full {
                filled.push(bin);
                bin = empty;
            }
        }
    }
    if bin.rows > size * 1e-6 {
        filled.push(bin);
    }
    filled
}

fn point_biserial(groups: &[Group], rows: f64, base_rate: f64) -> Option<f64> {
    let mean = groups.iter().map(|group| group.rows * group.score).sum::<f64>() / rows;
    let (mut variance, mut covariance) = (0.0, 0.0);
    for group in groups {
        let distance = group.score - mean;
        variance += group.rows * distance * distance;
        covariance += distance * (group.positives - group.rows * base_rate);
    }
    let scale = (variance * rows * base_rate * (1.0 - base_rate)).sqrt();
    (scale > 0.0).then(|| covariance / scale)
}

/// Pearson's correlation; `None` where one side does not vary.
pub(crate) fn pearson(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let mean_x = pairs.iter().map(|pair| pair.0).sum::<f64>() / n;
    let mean_y = pairs.iter().map(|pair| pair.1).sum::<f64>() / n;
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        xx += (x - mean_x) * (x - mean_x);
        yy += (y - mean_y) * (y - mean_y);
        xy += (x - mean_x) * (y - mean_y);
    }
    let scale = (xx * yy).sqrt();
    (scale > 1e-12).then(|| xy / scale)
}

#[cfg(test)]
mod tests;
