//! Scores of training rows by models that have not seen them: what a model on top of this one may learn from.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::measure::check_labels;
use crate::sequence::fit::{by_label, shuffle};
use crate::sequence::{Epoch, SequenceModel, SequenceParameters, SequenceTrainingSet};
use crate::{ModelError, Result};

/// Which rows a row's model may have seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Folds {
    /// Rows of other groups: customers are dealt to so many folds, those with a positive row evenly. For rows of one period.
    Grouped(usize),
    /// Rows of periods that are at least `purge` earlier, so that their labels were known: gap + horizon of the label, in the unit of the periods.
    /// Rows of the first periods get no score.
    Forward {
        /// One a row.
        periods: Vec<i64>,
        purge: u32,
    },
}

/// What became of one fold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fold {
    pub rows_trained: usize,
    pub rows_scored: usize,
    /// Why its rows have no score, where they have none.
    pub skipped: Option<String>,
}

/// Scores of rows by models that have not seen them.
#[derive(Debug, Clone, PartialEq)]
pub struct OutOfFold {
    /// One a row; `None` for a row without a step, or of a period before which there is not enough to learn from.
    pub probabilities: Vec<Option<f64>>,
    pub folds: Vec<Fold>,
}

/// Scores every training row by a model of rows that exclude it; `progress` hears of every epoch of every fold, counted from 0.
///
/// # Errors
///
/// As for [`SequenceModel::fit`]; fewer than two folds, or more than customers of a class; no purge; no period with enough before it.
pub fn out_of_fold(
    train: &SequenceTrainingSet<'_>,
    folds: &Folds,
    parameters: &SequenceParameters,
    progress: &mut (dyn FnMut(usize, &Epoch) + Send),
) -> Result<OutOfFold> {
    let rows = train.sequences.rows();
    check_labels("the training sequences", rows, train.labels)?;
    if let Some(groups) = train.groups
        && groups.len() != rows
    {
        return Err(ModelError::Length { what: "groups", expected: rows, got: groups.len() });
    }
    let splits = match folds {
        Folds::Grouped(folds) => grouped(train, *folds, parameters.seed)?,
        Folds::Forward { periods, purge } => forward(periods, *purge, rows)?,
    };
    let mut answer = OutOfFold { probabilities: vec![None; rows], folds: Vec::new() };
    let may_skip = matches!(folds, Folds::Forward { .. });
    for (fold, (known, asked)) in splits.into_iter().enumerate() {
        let mut told = Fold { rows_trained: known.len(), rows_scored: 0, skipped: None };
        match score(train, &known, &asked, parameters, &mut |epoch| progress(fold, epoch)) {
            Ok(probabilities) => {
                for (&row, probability) in asked.iter().zip(probabilities) {
                    told.rows_scored += usize::from(probability.is_some());
                    answer.probabilities[row] = probability;
                }
            }
            // What the first periods have before them may be nothing, or of one class.
            Err(error) if may_skip && is_too_little(&error) => {
                told.rows_trained = 0;
                told.skipped = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        answer.folds.push(told);
    }
    if answer.folds.iter().all(|fold| fold.skipped.is_some()) {
        return Err(ModelError::Empty { what: "what comes before every period" });
    }
    Ok(answer)
}

fn is_too_little(error: &ModelError) -> bool {
    match error {
        ModelError::Empty { .. } | ModelError::OneClass { .. } => true,
        ModelError::Parameter { name, .. } => *name == super::fit::CUSTOMERS_OF_EACH_CLASS,
        _ => false,
    }
}

fn score(
    train: &SequenceTrainingSet<'_>,
    known: &[usize],
    asked: &[usize],
    parameters: &SequenceParameters,
    progress: &mut (dyn FnMut(&Epoch) + Send),
) -> Result<Vec<Option<f64>>> {
    let sequences = train.sequences.take(known)?;
    let labels: Vec<bool> = known.iter().map(|&row| train.labels[row]).collect();
    let groups = train.groups.map(|groups| known.iter().map(|&row| groups[row]).collect::<Vec<u64>>());
    let set = SequenceTrainingSet { sequences: &sequences, labels: &labels, groups: groups.as_deref() };
    let model = SequenceModel::fit(&set, parameters, progress)?.model;
    model.probabilities(&train.sequences.take(asked)?)
}

/// Of each fold, the rows to train on and the rows to score.
type Splits = Vec<(Vec<usize>, Vec<usize>)>;

fn grouped(train: &SequenceTrainingSet<'_>, folds: usize, seed: u64) -> Result<Splits> {
    let rows: Vec<usize> = (0..train.labels.len()).collect();
    let group_of = |row: usize| train.groups.map_or(row as u64, |groups| groups[row]);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Not the stream of any epoch.
    random.set_stream(u64::MAX);
    let mut fold_of = std::collections::HashMap::new();
    for mut groups in by_label(&rows, train.labels, group_of) {
        if folds < 2 || folds > groups.len() {
            let range = "at least 2, and no more than there are customers of each class";
            return Err(ModelError::Parameter { name: "folds", value: folds as f64, range });
        }
        shuffle(&mut groups, &mut random);
        fold_of.extend(groups.into_iter().enumerate().map(|(place, group)| (group, place % folds)));
    }
    let split = |fold: usize| rows.iter().partition(|&&row| fold_of[&group_of(row)] != fold);
    Ok((0..folds).map(split).collect())
}

fn forward(periods: &[i64], purge: u32, rows: usize) -> Result<Splits> {
    if periods.len() != rows {
        return Err(ModelError::Length { what: "periods", expected: rows, got: periods.len() });
    }
    if purge == 0 {
        return Err(ModelError::Parameter {
            name: "purge",
            value: 0.0,
            range: "at least 1: gap + horizon of the label",
        });
    }
    let distinct: std::collections::BTreeSet<i64> = periods.iter().copied().collect();
    let split = |period: i64| {
        let known_until = period.saturating_sub(i64::from(purge));
        let rows = |wanted: &dyn Fn(i64) -> bool| (0..rows).filter(|&row| wanted(periods[row])).collect();
        (rows(&|other| other <= known_until), rows(&|other| other == period))
    };
    Ok(distinct.into_iter().map(split).collect())
}
