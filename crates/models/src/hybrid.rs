//! Boosted trees that are also told what a sequence model makes of the order of events, beside trees that are not: the plain model is always
//! trained too, and the hybrid is worth having only where it wins on rows that neither has seen.

use serde::Serialize;

use crate::sequence::{
    Epoch, Folds, OutOfFold, SequenceModel, SequenceParameters, SequenceTrainingSet, Sequences, TrainedSequence,
    out_of_fold,
};
use crate::{
    Bootstrap, Comparison, Engine, Feature, FeatureKind, Matrix, Measure, Model, ModelError, Parameters, Report,
    Result, Scores, Signature, Trained, TrainingSet, compare, report,
};

/// The feature that the sequence model's probability is; missing where a row has no step.
pub const SEQUENCE_FEATURE: &str = "sequence_probability";

/// Rows with both what a customer is and what a customer did.
#[derive(Debug, Clone, Copy)]
pub struct HybridSet<'a> {
    pub features: &'a Matrix,
    pub sequences: &'a Sequences,
    /// One a row; true is what the probability is of.
    pub labels: &'a [bool],
    /// The customer of each row, where customers recur.
    pub groups: Option<&'a [u64]>,
}

/// Both models, and what speaks for which.
#[derive(Debug)]
pub struct Hybrid {
    /// Trained on the features alone.
    pub plain: Trained,
    /// Trained on the features and [`SEQUENCE_FEATURE`], out of fold; its scores need `sequence`.
    pub hybrid: Trained,
    /// Trained on all training rows.
    pub sequence: TrainedSequence,
    pub out_of_fold: OutOfFold,
    pub ablation: Ablation,
}

/// What the sequence model adds, on the test rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ablation {
    pub rows_trained: usize,
    /// The hybrid as `model` beside the plain one as `baseline`.
    pub report: Report,
    /// AUC of the hybrid − AUC of the plain model.
    pub auc: Comparison,
    /// Log-loss of the hybrid − log-loss of the plain model; lower is better.
    pub log_loss: Comparison,
    /// AUC of the sequence model alone, over test rows that have a step.
    pub sequence_auc: Option<f64>,
    /// Whether the hybrid is to be preferred: the interval of the AUC's difference is above zero, and the log-loss is not higher.
    pub hybrid_wins: bool,
}

/// Trains the plain and the hybrid model on `train` with the same parameters, and compares them on `test` by paired bootstrap over the same draws,
/// over customers where `test` names them. For an answer that holds for tomorrow, `test` is later than `train`, purged by gap + horizon, and `folds`
/// are [`Folds::Forward`] where `train` holds several periods. `progress` hears of every epoch with the fold's number, and `None` for the final model.
///
/// # Errors
///
/// As for [`Model::fit`], [`SequenceModel::fit`], [`out_of_fold`] and [`report`]; early stopping of the trees, for which there is no validation set.
#[expect(clippy::too_many_arguments, reason = "each says something else")]
pub fn hybrid(
    engine: &dyn Engine,
    signature: &Signature,
    train: &HybridSet<'_>,
    test: &HybridSet<'_>,
    folds: &Folds,
    trees: &Parameters,
    network: &SequenceParameters,
    bootstrap: &Bootstrap<'_>,
    progress: &mut (dyn FnMut(Option<usize>, &Epoch) + Send),
) -> Result<Hybrid> {
    train.check()?;
    test.check()?;
    let wider = with_sequence(signature)?;
    let plain = Model::fit(engine, signature, &train.trees(train.features), None, trees)?;
    let scored = out_of_fold(&train.network(), folds, network, &mut |fold, epoch| progress(Some(fold), epoch))?;
    let sequence = SequenceModel::fit(&train.network(), network, &mut |epoch| progress(None, epoch))?;
    let features = train.features.with_column(&scored.probabilities)?;
    let hybrid = Model::fit(engine, &wider, &train.trees(&features), None, trees)?;

    let of_sequence = sequence.model.probabilities(test.sequences)?;
    let of_hybrid = hybrid.model.probabilities(&test.features.with_column(&of_sequence)?)?;
    let of_plain = plain.model.probabilities(test.features)?;
    let bootstrap = Bootstrap { customers: test.groups.or(bootstrap.customers), ..bootstrap.clone() };
    let said = Said { hybrid: &of_hybrid, plain: &of_plain, sequence: &of_sequence };
    let ablation = Ablation::of(&said, test.labels, train.labels.len(), &bootstrap)?;
    Ok(Hybrid { plain, hybrid, sequence, out_of_fold: scored, ablation })
}

/// Probabilities of the same rows, which none of the three has seen.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    pub hybrid: &'a [f64],
    pub plain: &'a [f64],
    /// `None` for a row without a step.
    pub sequence: &'a [Option<f64>],
}

impl Ablation {
    /// What the sequence model adds to the trees, of which all learnt from `rows_trained` rows.
    ///
    /// # Errors
    ///
    /// Labels of one class; as for [`report`].
    pub fn of(said: &Said<'_>, labels: &[bool], rows_trained: usize, bootstrap: &Bootstrap<'_>) -> Result<Self> {
        let hybrid = Scores::probabilities(said.hybrid, labels)?;
        let plain = Scores::probabilities(said.plain, labels)?;
        let difference = |measure| {
            compare(&hybrid, &plain, measure, bootstrap)?
                .ok_or(ModelError::Signature(format!("{} is not defined on the test rows", measure.name())))
        };
        let (auc, log_loss) = (difference(Measure::Auc)?, difference(Measure::LogLoss)?);
        Ok(Self {
            rows_trained,
            report: report(&hybrid, &plain, &Measure::USUAL, bootstrap)?,
            auc,
            log_loss,
            sequence_auc: auc_of(said.sequence, labels)?,
            hybrid_wins: auc.difference.low > 0.0 && log_loss.difference.value <= 0.0,
        })
    }
}

/// The signature of a hybrid: the features, and [`SEQUENCE_FEATURE`] last.
///
/// # Errors
///
/// A feature that has this name already.
pub fn with_sequence(signature: &Signature) -> Result<Signature> {
    let mut features = signature.features().to_vec();
    features.push(Feature { name: SEQUENCE_FEATURE.to_owned(), kind: FeatureKind::Number });
    Signature::new(features)
}

fn auc_of(probabilities: &[Option<f64>], labels: &[bool]) -> Result<Option<f64>> {
    let known = probabilities.iter().zip(labels).filter_map(|(probability, &label)| Some(((*probability)?, label)));
    let (probabilities, labels): (Vec<f64>, Vec<bool>) = known.unzip();
    if labels.iter().all(|&label| label) || !labels.contains(&true) {
        return Ok(None);
    }
    Scores::probabilities(&probabilities, &labels)?.measure(Measure::Auc)
}

impl<'a> HybridSet<'a> {
    fn check(&self) -> Result<()> {
        let (expected, got) = (self.features.rows(), self.sequences.rows());
        if expected != got {
            return Err(ModelError::Length { what: "sequences", expected, got });
        }
        if self.labels.len() != expected {
            return Err(ModelError::Length { what: "labels", expected, got: self.labels.len() });
        }
        Ok(())
    }

    fn trees<'b>(&'b self, features: &'b Matrix) -> TrainingSet<'b> {
        TrainingSet { features, labels: self.labels, weights: None }
    }

    fn network(&self) -> SequenceTrainingSet<'a> {
        SequenceTrainingSet { sequences: self.sequences, labels: self.labels, groups: self.groups }
    }
}

#[cfg(test)]
mod tests;
