//! From snapshots to a model that is calibrated and measured beside its baselines.

use std::collections::{BTreeMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::Float32Type;
use chrono::{DateTime, Utc};
use holdfast_models::hybrid::Ablation;
use holdfast_models::sequence::{SequenceModel, Sequences};
use holdfast_models::{
    Bootstrap, Calibrator, Estimate, Hessboost, Matrix, Measure, Model, Profile, Report, Scores, Signature, Trained,
    TrainingSet, Useless, UselessBecause, report,
};
use serde::{Deserialize, Serialize};

use super::hybrid::history::{Steps, said, with_probabilities};
use super::hybrid::tried::Told;
use super::import::Imported;
use super::moments::Moments;
use super::snapshots::Snapshot;
use super::spec::Spec;
use crate::error::CliError;

/// Rows that are kept with a model, to be replayed before it is trusted.
const EXAMPLES: usize = 32;

/// Resamples of an interval.
const REPLICATES: u32 = 1000;

/// A trained model with all that is known of it.
#[derive(Debug)]
pub(crate) struct Fitted {
    pub(crate) model: Model,
    pub(crate) calibrator: Calibrator,
    /// The sequence model that the trees are told of, where that is better than without, with sequences to be replayed.
    pub(crate) sequence: Option<(SequenceModel, Sequences)>,
    /// What the sequence model adds, where one was tried.
    pub(crate) ablation: Option<Ablation>,
    pub(crate) examples: Vec<Example>,
    pub(crate) judged: Judged,
    pub(crate) measures: Vec<MeasureRow>,
    pub(crate) profile: Vec<FeatureProfile>,
    /// Features that are all null or all equal, with why.
    pub(crate) useless: Vec<(String, String)>,
    pub(crate) counts: Counts,
}

/// Rows by what they were used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) learning: u64,
    pub(crate) stopping: u64,
    pub(crate) calibration: u64,
    pub(crate) test: u64,
    /// Of the rows that judge, those of customers that no other row is of.
    pub(crate) unseen: u64,
}

/// A row of features with what the model said of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Example {
    /// In the order of the signature; null is missing.
    pub(crate) features: Vec<Option<f32>>,
    pub(crate) margin: f32,
    pub(crate) probability: f64,
}

/// What customers and their scores looked like where the model was judged: what later ones are held against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Judged {
    /// Customers a moment.
    pub(crate) customers: u64,
    /// Of calibrated probabilities.
    pub(crate) scores: Profile,
    /// Of each feature, by its name; categories by their codes.
    pub(crate) features: BTreeMap<String, Profile>,
}

/// One measure beside one baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MeasureRow {
    /// `out_of_time`, or `unseen_customers`: of these, customers that nothing was learnt from.
    pub(crate) judged_on: String,
    /// `recency`, `scorecard`, `champion`; the majority class stands in `majority_accuracy` beside all of them.
    pub(crate) baseline: String,
    pub(crate) measure: String,
    pub(crate) rows: i64,
    pub(crate) positives: i64,
    pub(crate) base_rate: f64,
    pub(crate) majority_accuracy: f64,
    pub(crate) value: Option<f64>,
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    pub(crate) baseline_value: Option<f64>,
    pub(crate) baseline_low: Option<f64>,
    pub(crate) baseline_high: Option<f64>,
    pub(crate) difference: Option<f64>,
    pub(crate) difference_low: Option<f64>,
    pub(crate) difference_high: Option<f64>,
}

/// What a feature looked like when the model learnt: what later data is held against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FeatureProfile {
    pub(crate) feature: String,
    pub(crate) rows: u64,
    pub(crate) missing_share: f64,
    /// Of a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mean: Option<f64>,
    /// The minimum, nine deciles and the maximum of a number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) deciles: Vec<f32>,
    /// The shares of a text's values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) shares: Vec<(String, f64)>,
}

/// Another model that the new one is held against, over the same rows.
#[derive(Debug)]
pub(crate) struct Rival {
    pub(crate) model: Model,
    pub(crate) calibrator: Calibrator,
    pub(crate) sequence: Option<SequenceModel>,
}

/// Rows by what they are used for.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) learning: Part,
    pub(crate) stopping: Part,
    pub(crate) calibration: Part,
    pub(crate) test: Part,
}

#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) features: RecordBatch,
    pub(crate) labels: Vec<bool>,
    pub(crate) customers: Vec<u64>,
    /// What the customers did, step by step; nothing where it was not asked, or of nobody.
    pub(crate) sequences: Option<Sequences>,
    /// Empty where it was not asked.
    scorecard: Vec<f64>,
}

impl Rows {
    /// Divides the snapshots: the moments that judge by time, those before them by customer, so that no customer is in two parts.
    pub(crate) fn of(
        spec: &Spec,
        moments: &Moments,
        snapshots: &[Snapshot],
        steps: Option<&Steps>,
    ) -> Result<Self, CliError> {
        let stopping = *spec.file.split.stopping_share.get_ref();
        let calibration = stopping + *spec.file.split.calibration_share.get_ref();
        let seed = spec.file.training.get_ref().seed;
        let share = |customer: u64| share_of(customer, seed);
        let train: Vec<&Snapshot> = snapshots.iter().filter(|snapshot| moments.train.contains(&snapshot.at)).collect();
        let test: Vec<&Snapshot> = snapshots.iter().filter(|snapshot| moments.test.contains(&snapshot.at)).collect();
        Ok(Self {
            learning: Part::of(&train, steps, |customer| share(customer) >= calibration)?,
            stopping: Part::of(&train, steps, |customer| share(customer) < stopping)?,
            calibration: Part::of(&train, steps, |customer| (stopping..calibration).contains(&share(customer)))?,
            test: Part::of(&test, steps, |_| true)?,
        })
    }

    /// Refuses rows from which nothing can be had, before anything is trained.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        self.learning.check("the rows to learn from")?;
        self.stopping.check("the rows that tell when to stop")?;
        self.calibration.check("the rows that calibrate")?;
        self.test.check("the rows that judge")
    }
}

impl Part {
    fn of(snapshots: &[&Snapshot], steps: Option<&Steps>, is_in: impl Fn(u64) -> bool) -> Result<Self, CliError> {
        let mut wanted = Vec::new();
        let (mut labels, mut customers, mut scorecard, mut batches) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for snapshot in snapshots {
            let places: Vec<usize> =
                (0..snapshot.customers.len()).filter(|place| is_in(snapshot.customers[*place])).collect();
            labels.extend(places.iter().map(|place| snapshot.labels[*place]));
            customers.extend(places.iter().map(|place| snapshot.customers[*place]));
            wanted.extend(places.iter().map(|place| (snapshot.customers[*place], snapshot.at.timestamp_micros())));
            scorecard.extend(places.iter().filter_map(|place| snapshot.scorecard.get(*place)));
            let places = UInt64Array::from_iter_values(places.iter().map(|place| *place as u64));
            batches.push(take_record_batch(&snapshot.features, &places)?);
        }
        let schema = match batches.first() {
            Some(first) => first.schema(),
            None => return Err(CliError::Training("there is no moment to look at".to_owned())),
        };
        let sequences = match steps {
            Some(steps) => {
                let histories: Vec<RecordBatch> =
                    snapshots.iter().flat_map(|snapshot| &snapshot.history).cloned().collect();
                steps.sequences(wanted.into_iter(), &histories)?
            }
            None => None,
        };
        Ok(Self { features: concat_batches(&schema, &batches)?, labels, customers, sequences, scorecard })
    }

    /// All rows of a snapshot.
    pub(crate) fn of_snapshot(snapshot: &Snapshot) -> Result<Self, CliError> {
        Self::of(&[snapshot], None, |_| true)
    }

    /// Refuses a part of one class.
    fn check(&self, what: &str) -> Result<(), CliError> {
        let churned = self.labels.iter().filter(|label| **label).count();
        let rows = self.labels.len();
        if churned > 0 && churned < rows {
            return Ok(());
        }
        let found = match (rows, churned) {
            (0, _) => "there is none".to_owned(),
            (rows, 0) => format!("of {rows} nobody has churned"),
            (rows, _) => format!("all {rows} have churned"),
        };
        Err(CliError::Training(format!(
            "{what} need customers of both kinds, and {found}: take a longer history, more customers, or another horizon_days"
        )))
    }
}

/// Where a customer falls between 0 and 1, by the seed (SplitMix64).
fn share_of(customer: u64, seed: u64) -> f64 {
    let mut mixed = customer ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// Trains (or takes what was `imported`), calibrates and judges by rows of so many `moments`. Where the spec asks for sequences, trees that are told of them are tried beside trees that are not,
/// and taken where they win. The same rows and the same spec give the same bytes, on any number of threads.
///
/// # Errors
/// Parameters out of range with their line, features of which none varies, and what the model's library refuses.
pub(crate) fn fit(
    spec: &Spec,
    rows: &Rows,
    moments: usize,
    rival: Option<&Rival>,
    imported: Option<&Imported>,
) -> Result<Fitted, CliError> {
    let (model, useless) = match imported {
        Some(imported) => (imported.model()?, Vec::new()),
        None => {
            let trained = trees(spec, rows, &rows.learning.features, &rows.stopping.features)?;
            (trained.model, trained.useless)
        }
    };
    let mut chosen = Candidate::of(model, useless, rows, &rows.calibration.features, &rows.test.features)?;
    let (mut sequence, mut ablation, mut learning) = (None, None, rows.learning.features.clone());
    let tried = if imported.is_some() { None } else { Told::of(spec, rows)? };
    if let Some(tried) = tried {
        let trained = trees(spec, rows, &tried.learning, &tried.stopping)?;
        let hybrid = Candidate::of(trained.model, trained.useless, rows, &tried.calibration, &tried.test)?;
        let seed = spec.file.training.get_ref().seed;
        let bootstrap = Bootstrap { replicates: REPLICATES, seed, ..Bootstrap::default() };
        let found = tried.ablation(rows, &hybrid.probabilities, &chosen.probabilities, &bootstrap)?;
        if found.hybrid_wins {
            chosen = hybrid;
            learning = tried.learning;
            sequence = rows.test.sequences.clone().map(|sequences| (tried.model, sequences));
        }
        ablation = Some(found);
    }
    let Candidate { model, useless, calibrator, test, margins, probabilities } = chosen;
    let signature = model.signature().clone();
    let known: HashSet<u64> = [&rows.learning, &rows.stopping, &rows.calibration]
        .into_iter()
        .flat_map(|part| &part.customers)
        .copied()
        .collect();
    let judge = Judge { spec, test: &rows.test, probabilities: &probabilities, rival };
    let unseen: Vec<usize> =
        (0..rows.test.labels.len()).filter(|row| !known.contains(&rows.test.customers[*row])).collect();
    let mut measures = judge.measures("out_of_time", None)?;
    let unseen_labels: HashSet<bool> = unseen.iter().map(|row| rows.test.labels[*row]).collect();
    if unseen_labels.len() == 2 {
        measures.extend(judge.measures("unseen_customers", Some(&unseen))?);
    }

    let judged = Judged {
        customers: (rows.test.labels.len() / moments.max(1)) as u64,
        scores: Profile::of(probabilities.iter().copied().map(Some))?,
        features: profiles(&signature, &test)?,
    };
    let width = signature.features().len();
    let step = (margins.len() / EXAMPLES).max(1);
    let examples = (0..margins.len()).step_by(step).take(EXAMPLES).map(|row| Example {
        features: test.values()[row * width..(row + 1) * width]
            .iter()
            .map(|value| Some(*value).filter(|value| !value.is_nan()))
            .collect(),
        margin: margins[row],
        probability: probabilities[row],
    });
    Ok(Fitted {
        examples: examples.collect(),
        judged,
        sequence,
        ablation,
        profile: profile(&learning),
        useless: useless.into_iter().map(told).collect(),
        counts: Counts {
            learning: rows.learning.labels.len() as u64,
            stopping: rows.stopping.labels.len() as u64,
            calibration: rows.calibration.labels.len() as u64,
            test: rows.test.labels.len() as u64,
            unseen: unseen.len() as u64,
        },
        model,
        calibrator,
        measures,
    })
}

/// Trees with what they say of the rows that judge.
struct Candidate {
    model: Model,
    useless: Vec<Useless>,
    calibrator: Calibrator,
    test: Matrix,
    margins: Vec<f32>,
    /// Calibrated.
    probabilities: Vec<f64>,
}

impl Candidate {
    /// Calibrates trees by rows as they are told of them, and asks them of the rows that judge.
    fn of(
        model: Model,
        useless: Vec<Useless>,
        rows: &Rows,
        calibration: &RecordBatch,
        test: &RecordBatch,
    ) -> Result<Self, CliError> {
        let signature = model.signature();
        let calibration = signature.matrix(calibration)?;
        let calibrator = Calibrator::fit(&widened(model.margins(&calibration)?), &rows.calibration.labels)?;
        let test = signature.matrix(test)?;
        let margins = model.margins(&test)?;
        let probabilities = calibrator.probabilities(&widened(margins.clone()));
        Ok(Self { model, useless, calibrator, test, margins, probabilities })
    }
}

/// Trees of these rows to learn from, and of these that tell when to stop.
fn trees(spec: &Spec, rows: &Rows, learning: &RecordBatch, stopping: &RecordBatch) -> Result<Trained, CliError> {
    let signature = Signature::of(learning)?;
    let (learning, stopping) = (signature.matrix(learning)?, signature.matrix(stopping)?);
    let train = TrainingSet { features: &learning, labels: &rows.learning.labels, weights: None };
    let stop = TrainingSet { features: &stopping, labels: &rows.stopping.labels, weights: None };
    let trained = Model::fit(&Hessboost, &signature, &train, Some(&stop), spec.file.training.get_ref());
    trained.map_err(|error| spec.of_parameter(error))
}

fn told(useless: Useless) -> (String, String) {
    let why = match useless.why {
        UselessBecause::AllMissing => "has no value in any row",
        UselessBecause::Constant => "has the same value in all rows",
    };
    (useless.feature, why.to_owned())
}

pub(crate) fn widened(margins: Vec<f32>) -> Vec<f64> {
    margins.into_iter().map(f64::from).collect()
}

/// The values of one feature, row by row; not a number where one is missing.
pub(crate) fn column(matrix: &Matrix, place: usize) -> impl Iterator<Item = Option<f64>> + '_ {
    matrix.values().iter().skip(place).step_by(matrix.columns()).map(|value| Some(f64::from(*value)))
}

fn profiles(signature: &Signature, matrix: &Matrix) -> Result<BTreeMap<String, Profile>, CliError> {
    let features = signature.features().iter().enumerate();
    features.map(|(place, feature)| Ok((feature.name.clone(), Profile::of(column(matrix, place))?))).collect()
}

/// All measures of probabilities over rows beside those of the spec's baselines.
pub(crate) fn measured(
    spec: &Spec,
    rows: &Part,
    probabilities: &[f64],
    judged_on: &str,
) -> Result<Vec<MeasureRow>, CliError> {
    Judge { spec, test: rows, probabilities, rival: None }.measures(judged_on, None)
}

/// What judges a model: rows it has not seen, beside baselines.
struct Judge<'a> {
    spec: &'a Spec,
    test: &'a Part,
    probabilities: &'a [f64],
    rival: Option<&'a Rival>,
}

impl Judge<'_> {
    /// All measures beside all baselines, over all rows or these.
    fn measures(&self, judged_on: &str, rows: Option<&[usize]>) -> Result<Vec<MeasureRow>, CliError> {
        let labels = picked(&self.test.labels, rows);
        let customers = picked(&self.test.customers, rows);
        let model = Scores::probabilities(&picked(self.probabilities, rows), &labels)?;
        let bootstrap = Bootstrap {
            replicates: REPLICATES,
            seed: self.spec.file.training.get_ref().seed,
            customers: Some(&customers),
            ..Bootstrap::default()
        };
        let mut found = Vec::new();
        for (name, baseline) in self.baselines(&labels, rows)? {
            let report = report(&model, &baseline, &Measure::USUAL, &bootstrap)?;
            found.extend(measure_rows(judged_on, name, &report));
        }
        Ok(found)
    }

    fn baselines(&self, labels: &[bool], rows: Option<&[usize]>) -> Result<Vec<(&'static str, Scores)>, CliError> {
        let mut baselines = Vec::new();
        if let Some(recency) = &self.spec.file.baselines.recency {
            let values = self.test.numbers(recency.get_ref());
            baselines.push(("recency", Scores::ranking(&picked(&values, rows), labels)?));
        }
        if !self.test.scorecard.is_empty() {
            let values = filled(&self.test.scorecard);
            let values = picked(&values, rows);
            let is_probability = values.iter().all(|value| (0.0..=1.0).contains(value));
            let scores =
                if is_probability { Scores::probabilities(&values, labels) } else { Scores::ranking(&values, labels) };
            baselines.push(("scorecard", scores?));
        }
        if let Some(Rival { model, calibrator, sequence }) = self.rival
            && let Ok(features) = self.told_by(sequence.as_ref())
            && let Ok(matrix) = model.signature().matrix(&features)
        {
            let probabilities = calibrator.probabilities(&widened(model.margins(&matrix)?));
            baselines.push(("champion", Scores::probabilities(&picked(&probabilities, rows), labels)?));
        }
        if baselines.is_empty() {
            // Nothing to compare with but the base rate, said of everybody.
            let rate = labels.iter().filter(|label| **label).count() as f64 / labels.len().max(1) as f64;
            baselines.push(("base_rate", Scores::probabilities(&vec![rate; labels.len()], labels)?));
        }
        Ok(baselines)
    }
}

impl Judge<'_> {
    /// The rows that judge as another model is told of them: it must know these steps of these channels.
    fn told_by(&self, sequence: Option<&SequenceModel>) -> Result<RecordBatch, CliError> {
        let Some(model) = sequence else { return Ok(self.test.features.clone()) };
        let said = said(model, self.test.sequences.as_ref(), self.test.labels.len())?;
        with_probabilities(&self.test.features, &said)
    }
}

fn picked<T: Copy>(values: &[T], rows: Option<&[usize]>) -> Vec<T> {
    match rows {
        Some(rows) => rows.iter().map(|row| values[*row]).collect(),
        None => values.to_vec(),
    }
}

/// Where nothing was said, the mean of what was.
fn filled(values: &[f64]) -> Vec<f64> {
    let said: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let mean = if said.is_empty() { 0.5 } else { said.iter().sum::<f64>() / said.len() as f64 };
    values.iter().map(|value| if value.is_finite() { *value } else { mean }).collect()
}

/// The lines of a report as rows.
pub(crate) fn measure_rows(judged_on: &str, baseline: &str, report: &Report) -> Vec<MeasureRow> {
    let count = |rows: usize| i64::try_from(rows).unwrap_or(i64::MAX);
    let parts = |estimate: Option<Estimate>| {
        (estimate.map(|of| of.value), estimate.map(|of| of.low), estimate.map(|of| of.high))
    };
    let rows = report.lines.iter().map(|line| {
        let (value, low, high) = parts(line.model);
        let (baseline_value, baseline_low, baseline_high) = parts(line.baseline);
        let (difference, difference_low, difference_high) = parts(line.difference);
        MeasureRow {
            judged_on: judged_on.to_owned(),
            baseline: baseline.to_owned(),
            measure: line.measure.clone(),
            rows: count(report.rows),
            positives: count(report.positives),
            base_rate: report.base_rate,
            majority_accuracy: report.majority_accuracy,
            value,
            low,
            high,
            baseline_value,
            baseline_low,
            baseline_high,
            difference,
            difference_low,
            difference_high,
        }
    });
    rows.collect()
}

impl Part {
    /// A feature's values; the lowest number where one is missing.
    fn numbers(&self, feature: &str) -> Vec<f64> {
        let column = self.features.column_by_name(feature);
        let values = column.and_then(|column| column.as_primitive_opt::<Float32Type>());
        let Some(values) = values else { return vec![0.0; self.labels.len()] };
        let number =
            |value: Option<f32>| value.filter(|value| value.is_finite()).map_or(f64::from(f32::MIN), f64::from);
        values.iter().map(number).collect()
    }
}

/// What each feature looked like.
fn profile(features: &RecordBatch) -> Vec<FeatureProfile> {
    let schema = features.schema();
    let profiles = schema.fields().iter().zip(features.columns()).map(|(field, column)| {
        let rows = column.len();
        let share = |count: usize| count as f64 / rows.max(1) as f64;
        let mut profile = FeatureProfile {
            feature: field.name().clone(),
            rows: rows as u64,
            missing_share: share(column.null_count()),
            mean: None,
            deciles: Vec::new(),
            shares: Vec::new(),
        };
        if let Some(values) = column.as_primitive_opt::<Float32Type>() {
            let mut values: Vec<f32> = values.iter().flatten().filter(|value| value.is_finite()).collect();
            values.sort_unstable_by(f32::total_cmp);
            profile.missing_share = share(rows - values.len());
            if let Some(last) = values.len().checked_sub(1) {
                let sum: f64 = values.iter().copied().map(f64::from).sum();
                profile.mean = Some(sum / values.len() as f64);
                profile.deciles = (0..=10).map(|decile| values[last * decile / 10]).collect();
            }
        } else if let Some(texts) = column.as_string_opt::<i32>() {
            let mut counts = std::collections::BTreeMap::new();
            texts.iter().flatten().for_each(|text| *counts.entry(text.to_owned()).or_insert(0_usize) += 1);
            profile.shares = counts.into_iter().map(|(text, count)| (text, share(count))).collect();
        }
        profile
    });
    profiles.collect()
}

/// When all that the labels of a version looked at had happened: what was trained later may have seen it.
pub(crate) fn labels_end(spec: &Spec, moments: &Moments) -> Option<DateTime<Utc>> {
    moments.train.last().map(|last| *last + spec.gap() + spec.horizon())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customers_fall_evenly_and_by_seed() {
        let shares: Vec<f64> = (0..10_000).map(|customer| share_of(customer, 7)).collect();
        let below = shares.iter().filter(|share| **share < 0.15).count();
        assert!((1_400..1_600).contains(&below), "{below}");
        assert!((0..100).any(|customer| (share_of(customer, 7) < 0.5) != (share_of(customer, 8) < 0.5)));
    }
}
