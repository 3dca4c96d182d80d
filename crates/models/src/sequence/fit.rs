//! Training: AdamW on the log-loss, stopped where a held-out slice of customers is read best.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::Serialize;

use crate::measure::check_labels;
use crate::sequence::network::{Inputs, Network, ROWS_TOGETHER, matrix, refused, unit};
use crate::sequence::scale::Scale;
use crate::sequence::{SequenceModel, SequenceParameters, Sequences};
use crate::{ModelError, Result, Useless};

/// Sequences to learn from.
#[derive(Debug, Clone, Copy)]
pub struct SequenceTrainingSet<'a> {
    pub sequences: &'a Sequences,
    /// One a row; true is what the probability is of.
    pub labels: &'a [bool],
    /// The customer of each row where customers recur: a customer's rows are held out together. Without, every row is a customer.
    pub groups: Option<&'a [u64]>,
}

/// One time through the training rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: usize,
    /// Mean log-loss while training, dropout and all.
    pub train_log_loss: f64,
    pub held_out_log_loss: f64,
    /// Whether it is the best so far.
    pub best: bool,
}

/// A trained model and what was noticed on the way.
#[derive(Debug)]
pub struct TrainedSequence {
    pub model: SequenceModel,
    pub epochs: Vec<Epoch>,
    /// Channels that do not vary: the model cannot use them, and somebody should know.
    pub useless: Vec<Useless>,
    /// Rows without a step, which were left out.
    pub without_steps: usize,
}

/// One to learn from and one to stop by.
pub(super) const CUSTOMERS_OF_EACH_CLASS: &str = "customers of each class with a step";

/// Trains with checked parameters, on the threads that are there.
pub(super) fn fit(
    train: &SequenceTrainingSet<'_>,
    parameters: &SequenceParameters,
    progress: &mut (dyn FnMut(&Epoch) + Send),
) -> Result<TrainedSequence> {
    let sequences = train.sequences;
    check_labels("the training sequences", sequences.rows(), train.labels)?;
    if let Some(groups) = train.groups
        && groups.len() != sequences.rows()
    {
        return Err(ModelError::Length { what: "groups", expected: sequences.rows(), got: groups.len() });
    }
    let usable: Vec<usize> = (0..sequences.rows()).filter(|&row| sequences.length(row) > 0).collect();
    if usable.is_empty() {
        return Err(ModelError::Empty { what: "every training sequence" });
    }
    let (mut order, held_out) = hold_out(train, &usable, parameters)?;
    let (scale, useless) = Scale::fit(sequences, &order, parameters.logarithm)?;
    let positives = order.iter().filter(|&&row| train.labels[row]).count();
    let base_rate = positives as f64 / order.len() as f64;
    let network = Network::random(sequences.channels().len(), parameters, base_rate)?;
    let mut descent = Descent::new(&network, parameters)?;
    let mut epochs = Vec::new();
    let mut best = (f64::INFINITY, descent.weights()?, 0);
    for epoch in 1..=parameters.epochs {
        let mut random = ChaCha8Rng::seed_from_u64(parameters.seed);
        random.set_stream(epoch as u64);
        shuffle(&mut order, &mut random);
        let mut loss = 0.0;
        for batch in order.chunks(parameters.batch) {
            loss += descent.step(&network, &scale, train, batch, &mut random)?;
        }
        let margins = network.margins(&scale, sequences, &held_out)?;
        let held_out_log_loss = mean_log_loss(&margins, held_out.iter().map(|&row| train.labels[row]));
        if !held_out_log_loss.is_finite() {
            return Err(ModelError::NotConverged { model: "LSTM", problem: "the loss is not a number" });
        }
        let is_best = held_out_log_loss < best.0;
        if is_best {
            best = (held_out_log_loss, descent.weights()?, epoch);
        }
        let told = Epoch { epoch, train_log_loss: loss / order.len() as f64, held_out_log_loss, best: is_best };
        progress(&told);
        epochs.push(told);
        if epoch - best.2 >= parameters.patience.get() {
            break;
        }
    }
    descent.set(&best.1)?;
    let model = SequenceModel {
        channels: sequences.channels().to_vec(),
        steps: sequences.steps(),
        scale,
        network,
        parameters: parameters.clone(),
        epochs: best.2,
    };
    Ok(TrainedSequence { model, epochs, useless, without_steps: sequences.rows() - usable.len() })
}

/// The rows to train on, and those that tell when to stop: whole groups, of those with a positive row and of those without the same share.
fn hold_out(
    train: &SequenceTrainingSet<'_>,
    usable: &[usize],
    parameters: &SequenceParameters,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let group_of = |row: usize| train.groups.map_or(row as u64, |groups| groups[row]);
    let mut random = ChaCha8Rng::seed_from_u64(parameters.seed);
    let mut held_out: BTreeSet<u64> = BTreeSet::new();
    for mut groups in by_label(usable, train.labels, group_of) {
        if groups.len() < 2 {
            let (name, value) = (CUSTOMERS_OF_EACH_CLASS, groups.len() as f64);
            return Err(ModelError::Parameter { name, value, range: "at least 2" });
        }
        shuffle(&mut groups, &mut random);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
        let share = (parameters.held_out * groups.len() as f64).round() as usize;
        held_out.extend(&groups[..share.clamp(1, groups.len() - 1)]);
    }
    Ok(usable.iter().partition(|&&row| !held_out.contains(&group_of(row))))
}

/// The groups of these rows, each once and in order: those with a positive row, and those without.
pub(super) fn by_label(rows: &[usize], labels: &[bool], group_of: impl Fn(usize) -> u64) -> [Vec<u64>; 2] {
    let mut positive: BTreeMap<u64, bool> = BTreeMap::new();
    for &row in rows {
        *positive.entry(group_of(row)).or_default() |= labels[row];
    }
    let (with, without): (Vec<_>, Vec<_>) = positive.into_iter().partition(|(_, positive)| *positive);
    [with, without].map(|groups| groups.into_iter().map(|(group, _)| group).collect())
}

/// Fisher and Yates.
pub(super) fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        let other = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        items.swap(last, usize::try_from(other).unwrap_or(last));
    }
}

/// Mean negative log-likelihood of log-odds.
pub(super) fn mean_log_loss(margins: &[f32], labels: impl Iterator<Item = bool>) -> f64 {
    let losses = margins.iter().zip(labels).map(|(&margin, label)| {
        let against = f64::from(if label { -margin } else { margin });
        against.max(0.0) + (-against.abs()).exp().ln_1p()
    });
    losses.sum::<f64>() / margins.len() as f64
}

/// The weights on their way down.
struct Descent {
    variables: Vec<Var>,
    weights: AdamW,
    biases: AdamW,
    dropout: f64,
    gradient_norm: f64,
}

impl Descent {
    fn new(network: &Network, parameters: &SequenceParameters) -> Result<Self> {
        let (weights, biases) = network.variables();
        let adam = |variables: &[&Var], weight_decay| {
            let settings = ParamsAdamW { lr: parameters.learning_rate, weight_decay, ..ParamsAdamW::default() };
            AdamW::from_slice(variables, settings).map_err(refused)
        };
        Ok(Self {
            variables: weights.into_iter().chain(biases).cloned().collect(),
            weights: adam(&weights, parameters.weight_decay)?,
            biases: adam(&biases, 0.0)?,
            dropout: parameters.dropout,
            gradient_norm: parameters.gradient_norm,
        })
    }

    /// One step of AdamW on these rows; their summed loss before it.
    fn step(
        &mut self,
        network: &Network,
        scale: &Scale,
        train: &SequenceTrainingSet<'_>,
        batch: &[usize],
        random: &mut ChaCha8Rng,
    ) -> Result<f64> {
        let hidden = network.head.dim(1).map_err(refused)?;
        // Drawn here, in order, whoever computes the part.
        let parts: Vec<(&[usize], Option<Tensor>)> = batch
            .chunks(ROWS_TOGETHER)
            .map(|rows| Ok((rows, self.kept(hidden, rows.len(), random)?)))
            .collect::<Result<_>>()?;
        let parts: Vec<(f64, GradStore)> = parts
            .into_par_iter()
            .map(|(rows, kept)| {
                let inputs = Inputs::new(scale, train.sequences, rows)?;
                let labels = rows.iter().map(|&row| f32::from(u8::from(train.labels[row])));
                let labels = matrix(labels.collect(), 1, rows.len())?;
                let loss =
                    network.forward(&inputs, kept.as_ref()).and_then(|margins| summed_log_loss(&margins, &labels));
                let loss = loss.map_err(refused)?;
                Ok((f64::from(loss.to_scalar::<f32>().map_err(refused)?), loss.backward().map_err(refused)?))
            })
            .collect::<Result<_>>()?;
        // In the order of the parts: sums of floats depend on it.
        let mut loss = 0.0;
        let mut gradients = GradStore::default();
        for (part, of_part) in parts {
            loss += part;
            gradients.extend(of_part).map_err(refused)?;
        }
        self.shorten(&mut gradients, batch.len()).map_err(refused)?;
        self.weights.step(&gradients).map_err(refused)?;
        self.biases.step(&gradients).map_err(refused)?;
        Ok(loss)
    }

    /// What dropout multiplies with: 0, or what keeps the mean.
    fn kept(&self, hidden: usize, rows: usize, random: &mut ChaCha8Rng) -> Result<Option<Tensor>> {
        if self.dropout <= 0.0 {
            return Ok(None);
        }
        #[expect(clippy::cast_possible_truncation, reason = "weights are in single precision")]
        let rest = (1.0 / (1.0 - self.dropout)) as f32;
        let kept = (0..hidden * rows).map(|_| if unit(random) < self.dropout { 0.0 } else { rest });
        matrix(kept.collect(), hidden, rows).map(Some)
    }

    /// Sums become means, and no gradient is longer than the longest (Pascanu et al. 2013).
    fn shorten(&self, gradients: &mut GradStore, rows: usize) -> candle_core::Result<()> {
        let mut squares = 0.0;
        for variable in &self.variables {
            if let Some(gradient) = gradients.get(variable) {
                squares += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let norm = squares.sqrt() / rows as f64;
        let factor = if norm > self.gradient_norm { self.gradient_norm / norm } else { 1.0 } / rows as f64;
        for variable in &self.variables {
            if let Some(gradient) = gradients.remove(variable) {
                gradients.insert(variable, (gradient * factor)?);
            }
        }
        Ok(())
    }

    fn weights(&self) -> Result<Vec<Tensor>> {
        self.variables.iter().map(|variable| variable.as_tensor().copy().map_err(refused)).collect()
    }

    fn set(&self, weights: &[Tensor]) -> Result<()> {
        self.variables.iter().zip(weights).try_for_each(|(variable, weights)| variable.set(weights)).map_err(refused)
    }
}

/// Σ max(z, 0) − z y + ln(1 + e^−|z|): the log-loss without the overflow of its textbook form.
fn summed_log_loss(margins: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
    let tail = (margins.abs()?.neg()?.exp()? + 1.0)?.log()?;
    ((margins.relu()? - (margins * labels)?)? + tail)?.sum_all()
}
