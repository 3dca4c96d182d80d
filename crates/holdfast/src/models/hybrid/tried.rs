//! Trees that are told what a sequence model says, tried beside trees that are not.

use arrow::array::RecordBatch;
use holdfast_models::hybrid::{Ablation, Said};
use holdfast_models::sequence::{Folds, SequenceModel, SequenceTrainingSet, out_of_fold};
use holdfast_models::{Bootstrap, ModelError};

use super::history::{said, with_probabilities};
use crate::error::CliError;
use crate::models::fit::{Part, Rows};
use crate::models::spec::Spec;

/// A sequence model with the rows of a training as trees are told of them.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) model: SequenceModel,
    pub(crate) learning: RecordBatch,
    pub(crate) stopping: RecordBatch,
    pub(crate) calibration: RecordBatch,
    pub(crate) test: RecordBatch,
    /// What it says of the rows that judge.
    of_test: Vec<Option<f64>>,
}

impl Told {
    /// Learns from the sequences of the rows to learn from, which are told what networks say that have learnt from other customers; all other rows are told what the network of
    /// all of them says. Nothing where the file asks for no sequences.
    ///
    /// # Errors
    /// Steps of which nobody has any, channels of which none varies, parameters out of range, and what the model's library refuses.
    pub(crate) fn of(spec: &Spec, rows: &Rows) -> Result<Option<Self>, CliError> {
        let (Some(section), Some(sequences)) = (&spec.file.sequence, &rows.learning.sequences) else { return Ok(None) };
        let learning = &rows.learning;
        let train = SequenceTrainingSet { sequences, labels: &learning.labels, groups: Some(&learning.customers) };
        let parameters = section.training.get_ref();
        let failed = |error: ModelError| {
            CliError::Training(format!("the sequence model cannot learn from {}: {error}", section.stage.get_ref()))
        };
        let folds = Folds::Grouped(*section.folds.get_ref());
        let others = out_of_fold(&train, &folds, parameters, &mut |_, _| {}).map_err(failed)?;
        let model = SequenceModel::fit(&train, parameters, &mut |_| {}).map_err(failed)?.model;
        let of = |part: &Part| said(&model, part.sequences.as_ref(), part.labels.len());
        let of_test = of(&rows.test)?;
        Ok(Some(Self {
            learning: with_probabilities(&learning.features, &others.probabilities)?,
            stopping: with_probabilities(&rows.stopping.features, &of(&rows.stopping)?)?,
            calibration: with_probabilities(&rows.calibration.features, &of(&rows.calibration)?)?,
            test: with_probabilities(&rows.test.features, &of_test)?,
            of_test,
            model,
        }))
    }

    /// What it adds: calibrated probabilities of the rows that judge, of trees that are told and of trees that are not.
    ///
    /// # Errors
    /// What the model's library refuses.
    pub(crate) fn ablation(
        &self,
        rows: &Rows,
        hybrid: &[f64],
        plain: &[f64],
        bootstrap: &Bootstrap<'_>,
    ) -> Result<Ablation, CliError> {
        let bootstrap = Bootstrap { customers: Some(&rows.test.customers), ..bootstrap.clone() };
        let said = Said { hybrid, plain, sequence: &self.of_test };
        Ok(Ablation::of(&said, &rows.test.labels, rows.learning.labels.len(), &bootstrap)?)
    }
}
