//! The network: one LSTM layer, and a line from its last state to the log-odds.

use candle_core::{Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::sequence::cell::Cell;
use crate::sequence::scale::Scale;
use crate::sequence::{SequenceParameters, Sequences};
use crate::{ModelError, Result};

/// Rows that are worked on together. Part of the result: sums over a batch are sums over these, in order, whoever computes them.
pub(super) const ROWS_TOGETHER: usize = 64;

/// Columns a product of matrices has at least: the library takes other ways, with other roundings, for one column.
const ROWS_LEAST: usize = 4;

/// The weights, with PyTorch's shapes but for one bias in place of two: gates are input, forget, cell, output.
#[derive(Debug)]
pub(super) struct Network {
    /// `[4 hidden, channels]`
    pub(super) of_input: Var,
    /// `[4 hidden, hidden]`
    pub(super) of_state: Var,
    /// `[4 hidden, 1]`
    pub(super) bias: Var,
    /// `[1, hidden]`
    pub(super) head: Var,
    /// `[1, 1]`
    pub(super) head_bias: Var,
}

impl Network {
    /// Random weights, uniform within 1 ÷ √hidden as PyTorch has them; forget gates open (Jozefowicz et al. 2015); the base rate for everybody.
    pub(super) fn random(channels: usize, parameters: &SequenceParameters, base_rate: f64) -> Result<Self> {
        let hidden = parameters.hidden;
        let mut random = ChaCha8Rng::seed_from_u64(parameters.seed);
        let bound = 1.0 / (hidden as f64).sqrt();
        let mut uniform = |rows: usize, columns: usize| {
            #[expect(clippy::cast_possible_truncation, reason = "weights are in single precision")]
            let values = (0..rows * columns).map(|_| (bound * (2.0 * unit(&mut random) - 1.0)) as f32);
            matrix(values.collect(), rows, columns)
        };
        let (of_input, of_state) = (uniform(4 * hidden, channels)?, uniform(4 * hidden, hidden)?);
        let head = uniform(1, hidden)?;
        let bias: Vec<f32> =
            (0..4 * hidden).map(|gate| if (hidden..2 * hidden).contains(&gate) { 1.0 } else { 0.0 }).collect();
        #[expect(clippy::cast_possible_truncation, reason = "weights are in single precision")]
        let odds = (base_rate / (1.0 - base_rate)).ln() as f32;
        Self::new([of_input, of_state, matrix(bias, 4 * hidden, 1)?, head, matrix(vec![odds], 1, 1)?])
    }

    /// A network of these weights, in the order of the fields.
    pub(super) fn new(weights: [Tensor; 5]) -> Result<Self> {
        let [of_input, of_state, bias, head, head_bias] = weights;
        let variable = |tensor: &Tensor| Var::from_tensor(tensor).map_err(refused);
        Ok(Self {
            of_input: variable(&of_input)?,
            of_state: variable(&of_state)?,
            bias: variable(&bias)?,
            head: variable(&head)?,
            head_bias: variable(&head_bias)?,
        })
    }

    /// The weights that decay, and those that do not.
    pub(super) fn variables(&self) -> ([&Var; 3], [&Var; 2]) {
        ([&self.of_input, &self.of_state, &self.head], [&self.bias, &self.head_bias])
    }

    /// The log-odds, `[1, rows]`, of inputs. `kept`, `[hidden, rows]`, multiplies the last state: dropout in training.
    pub(super) fn forward(&self, inputs: &Inputs, kept: Option<&Tensor>) -> candle_core::Result<Tensor> {
        let weights = Tensor::cat(&[self.of_input.as_tensor(), self.bias.as_tensor(), self.of_state.as_tensor()], 1)?;
        self.through(&weights, self.head.as_tensor(), self.head_bias.as_tensor(), inputs, kept)
    }

    fn through(
        &self,
        weights: &Tensor,
        head: &Tensor,
        head_bias: &Tensor,
        inputs: &Inputs,
        kept: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let hidden = head.dim(1)?;
        let mut state = Tensor::zeros((2 * hidden, inputs.rows), candle_core::DType::F32, &Device::Cpu)?;
        for (input, present) in &inputs.steps {
            let gates = weights.matmul(&Tensor::cat(&[input, &state.narrow(0, 0, hidden)?], 0)?)?;
            state = Cell::step(&gates, &state, present)?;
        }
        let last = state.narrow(0, 0, hidden)?;
        let last = match kept {
            Some(kept) => (last * kept)?,
            None => last,
        };
        head.matmul(&last)?.broadcast_add(head_bias)
    }

    /// The log-odds of these rows of sequences. A row's does not depend on the others'.
    pub(super) fn margins(&self, scale: &Scale, sequences: &Sequences, rows: &[usize]) -> Result<Vec<f32>> {
        // Without variables nothing is kept for a derivative.
        let weights = Tensor::cat(&[self.of_input.as_tensor(), self.bias.as_tensor(), self.of_state.as_tensor()], 1);
        let weights = weights.map_err(refused)?.detach();
        let (head, head_bias) = (self.head.as_tensor().detach(), self.head_bias.as_tensor().detach());
        let parts = rows.par_chunks(ROWS_TOGETHER).map(|part| {
            let mut padded = part.to_vec();
            padded.resize(part.len().max(ROWS_LEAST), part[0]);
            let inputs = Inputs::new(scale, sequences, &padded)?;
            let margins = self.through(&weights, &head, &head_bias, &inputs, None);
            let margins = margins.and_then(|margins| margins.flatten_all()?.to_vec1::<f32>());
            let mut margins = margins.map_err(refused)?;
            margins.truncate(part.len());
            Ok(margins)
        });
        Ok(parts.collect::<Result<Vec<Vec<f32>>>>()?.concat())
    }
}

/// Some rows of sequences as the network takes them.
pub(super) struct Inputs {
    pub(super) rows: usize,
    /// Of every step in which any of the rows is there: the scaled channels and a line of ones for the bias, `[channels + 1, rows]`, and who is
    /// there, `[rows]`.
    steps: Vec<(Tensor, Tensor)>,
}

impl Inputs {
    pub(super) fn new(scale: &Scale, sequences: &Sequences, rows: &[usize]) -> Result<Self> {
        let channels = sequences.channels().len();
        let mut steps = Vec::with_capacity(sequences.steps());
        for step in 0..sequences.steps() {
            let there: Vec<bool> = rows.iter().map(|&row| sequences.present_steps(row)[step]).collect();
            if !there.contains(&true) {
                continue;
            }
            let mut values = vec![1.0; (channels + 1) * rows.len()];
            for (place, (&row, &there)) in rows.iter().zip(&there).enumerate() {
                for (channel, &value) in sequences.step(row, step).iter().enumerate() {
                    values[channel * rows.len() + place] = if there { scale.apply(channel, value) } else { 0.0 };
                }
            }
            let there: Vec<f32> = there.into_iter().map(|there| f32::from(u8::from(there))).collect();
            let there = Tensor::from_vec(there, rows.len(), &Device::Cpu).map_err(refused)?;
            steps.push((matrix(values, channels + 1, rows.len())?, there));
        }
        Ok(Self { rows: rows.len(), steps })
    }
}

pub(super) fn matrix(values: Vec<f32>, rows: usize, columns: usize) -> Result<Tensor> {
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).map_err(refused)
}

pub(super) fn refused(error: candle_core::Error) -> ModelError {
    ModelError::Network(error.to_string())
}

/// A number from 0 to below 1.
pub(super) fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}
