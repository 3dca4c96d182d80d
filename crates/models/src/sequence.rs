//! What the order of events tells: an LSTM over weekly steps of behaviour, for one churn probability a customer.
//!
//! [`Sequences`] are what each customer did, [`SequenceModel::fit`] trains, [`out_of_fold`] scores the training rows by models that have not seen
//! them: that probability can be one feature of boosted trees ([`crate::hybrid`]). Measure whether it helps before it is used: evidence is mixed
//! (Mena et al. 2019 found that it does, later studies of retail that trees alone do as well).

mod cell;
mod fit;
mod folds;
mod history;
mod network;
mod scale;
mod stored;

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::{ModelError, Result};

pub use fit::{Epoch, SequenceTrainingSet, TrainedSequence};
pub use folds::{Fold, Folds, OutOfFold, out_of_fold};
pub use history::{Gaps, SequenceLayout, Sequences};
pub use stored::SequenceArtefact;

use network::Network;
use scale::Scale;

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SequenceParameters {
    /// Units of the LSTM.
    pub hidden: usize,
    /// Times through all rows, at most.
    pub epochs: usize,
    /// Stop when the held-out log-loss has not improved for so many epochs; the model is then the best epoch's, not the last's.
    pub patience: NonZeroUsize,
    /// Rows between two steps of AdamW.
    pub batch: usize,
    /// Step of AdamW (Loshchilov and Hutter 2019).
    pub learning_rate: f64,
    /// Decoupled decay of weights.
    pub weight_decay: f64,
    /// Share of the last state's units that are left out at random in training.
    pub dropout: f64,
    /// Longest gradient over all weights; a longer one is cut to this length.
    pub gradient_norm: f64,
    /// Share of groups that are held out to tell when to stop.
    pub held_out: f64,
    /// Whether channels are taken as sign(x) ln(1 + |x|): counts and money have long tails.
    pub logarithm: bool,
    pub seed: u64,
    /// Threads; all of them without. The model does not depend on it.
    pub threads: Option<NonZeroUsize>,
}

impl Default for SequenceParameters {
    fn default() -> Self {
        Self {
            hidden: 32,
            epochs: 30,
            patience: NonZeroUsize::MIN.saturating_add(3),
            batch: 256,
            learning_rate: 0.005,
            weight_decay: 0.01,
            dropout: 0.1,
            gradient_norm: 1.0,
            held_out: 0.15,
            logarithm: true,
            seed: 0,
            threads: None,
        }
    }
}

impl SequenceParameters {
    /// Refuses parameters out of range.
    ///
    /// # Errors
    ///
    /// The first of them.
    pub fn check(&self) -> Result<()> {
        let wrong = |name, value, range| Err(ModelError::Parameter { name, value, range });
        if !(1..=1024).contains(&self.hidden) {
            return wrong("hidden", self.hidden as f64, "from 1 to 1024");
        }
        if self.epochs == 0 {
            return wrong("epochs", 0.0, "at least 1");
        }
        if self.batch == 0 {
            return wrong("batch", 0.0, "at least 1");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return wrong("learning_rate", self.learning_rate, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.weight_decay) {
            return wrong("weight_decay", self.weight_decay, "from 0 to 1");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return wrong("dropout", self.dropout, "from 0 to below 1");
        }
        if !(self.gradient_norm.is_finite() && self.gradient_norm > 0.0) {
            return wrong("gradient_norm", self.gradient_norm, "finite and above 0");
        }
        if !(self.held_out > 0.0 && self.held_out <= 0.5) {
            return wrong("held_out", self.held_out, "above 0 and at most 0.5");
        }
        Ok(())
    }
}

/// A trained LSTM with the scale of its channels. It answers only for sequences of the same channels and steps.
#[derive(Debug)]
pub struct SequenceModel {
    channels: Vec<String>,
    steps: usize,
    scale: Scale,
    network: Network,
    parameters: SequenceParameters,
    /// Epochs that were gone through for these weights.
    epochs: usize,
}

impl SequenceModel {
    /// Trains a model; `progress` hears of every epoch.
    ///
    /// Equal data, parameters and seed give equal bytes on any number of threads of one kind of processor: other instruction sets add in other orders.
    ///
    /// # Errors
    ///
    /// Labels of one class, fewer than two groups with and two without a positive row, channels of which none varies, parameters out of range.
    pub fn fit(
        train: &SequenceTrainingSet<'_>,
        parameters: &SequenceParameters,
        progress: &mut (dyn FnMut(&Epoch) + Send),
    ) -> Result<TrainedSequence> {
        parameters.check()?;
        on_threads(parameters.threads, || fit::fit(train, parameters, progress))?
    }

    /// The probability of each row, not calibrated; `None` for a row without a step, of which nothing is known.
    ///
    /// # Errors
    ///
    /// Sequences of other channels or steps; a prediction that is no number, with its row.
    pub fn probabilities(&self, sequences: &Sequences) -> Result<Vec<Option<f64>>> {
        let margins = self.margins(sequences)?;
        Ok(margins
            .into_iter()
            .map(|margin| margin.map(|margin| crate::boost::probability(f64::from(margin))))
            .collect())
    }

    /// The log-odds of each row; `None` for a row without a step.
    ///
    /// # Errors
    ///
    /// As for [`SequenceModel::probabilities`].
    pub fn margins(&self, sequences: &Sequences) -> Result<Vec<Option<f32>>> {
        self.check_layout(sequences)?;
        let rows: Vec<usize> = (0..sequences.rows()).filter(|&row| sequences.length(row) > 0).collect();
        let scored = on_threads(self.parameters.threads, || self.network.margins(&self.scale, sequences, &rows))??;
        let mut margins = vec![None; sequences.rows()];
        for (row, margin) in rows.into_iter().zip(scored) {
            if !margin.is_finite() {
                return Err(ModelError::Prediction { row });
            }
            margins[row] = Some(margin);
        }
        Ok(margins)
    }

    /// The channels, in the order of a step's values.
    pub fn channels(&self) -> &[String] {
        &self.channels
    }

    /// Steps of a sequence.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// How it was trained.
    pub fn parameters(&self) -> &SequenceParameters {
        &self.parameters
    }

    /// Epochs that its weights went through: the best one's place, from 1.
    pub fn epochs(&self) -> usize {
        self.epochs
    }

    fn check_layout(&self, sequences: &Sequences) -> Result<()> {
        if self.steps != sequences.steps() {
            let (expected, got) = (self.steps, sequences.steps());
            return Err(ModelError::Signature(format!("sequences have {got} steps where the model has {expected}")));
        }
        if self.channels != sequences.channels() {
            let differs = self.channels.iter().zip(sequences.channels()).position(|(ours, theirs)| ours != theirs);
            return Err(ModelError::Signature(match differs {
                Some(place) => format!(
                    "channel {place} is {:?} where {:?} belongs",
                    sequences.channels()[place],
                    self.channels[place]
                ),
                None => format!(
                    "sequences have {} channels where the model has {}",
                    sequences.channels().len(),
                    self.channels.len()
                ),
            }));
        }
        Ok(())
    }
}

/// Runs on so many threads, or on those that are there.
fn on_threads<T: Send>(threads: Option<NonZeroUsize>, work: impl FnOnce() -> T + Send) -> Result<T> {
    match threads {
        None => Ok(work()),
        Some(threads) => {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build();
            Ok(pool.map_err(|error| ModelError::Network(format!("no threads: {error}")))?.install(work))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
