//! Channels on one scale, learned from training rows alone.

use crate::sequence::Sequences;
use crate::{Result, Useless, UselessBecause};

/// Values further from the mean than this many standard deviations count as this far: one outlier must not carry a row away.
const DEVIATIONS_MOST: f32 = 8.0;

/// How a channel's values become numbers around 0: (t(x) − mean) × factor, t the logarithm or nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    pub(super) logarithm: bool,
    pub(super) mean: Vec<f32>,
    /// 1 ÷ standard deviation; 0 for a channel that told nothing in training.
    pub(super) factor: Vec<f32>,
}

impl Scale {
    /// Means and deviations over the steps that are there in `rows`, and the channels that do not vary.
    pub(super) fn fit(sequences: &Sequences, rows: &[usize], logarithm: bool) -> Result<(Self, Vec<Useless>)> {
        let channels = sequences.channels().len();
        let mut count = 0_u64;
        let mut range = vec![(f32::INFINITY, f32::NEG_INFINITY); channels];
        let (mut mean, mut squares) = (vec![0.0_f64; channels], vec![0.0_f64; channels]);
        for &row in rows {
            for (step, _) in sequences.present_steps(row).iter().enumerate().filter(|(_, present)| **present) {
                count += 1;
                // Welford's way: no large squares that cancel.
                for (channel, &value) in sequences.step(row, step).iter().enumerate() {
                    let value = transformed(value, logarithm);
                    range[channel] = (range[channel].0.min(value), range[channel].1.max(value));
                    let gap = f64::from(value) - mean[channel];
                    mean[channel] += gap / count as f64;
                    squares[channel] += gap * (f64::from(value) - mean[channel]);
                }
            }
        }
        let mut useless = Vec::new();
        let mut factor = Vec::with_capacity(channels);
        for (channel, (low, high)) in range.into_iter().enumerate() {
            let deviation = (squares[channel] / count.max(1) as f64).sqrt();
            let varies = low < high && deviation > f64::from(f32::MIN_POSITIVE);
            #[expect(clippy::cast_possible_truncation, reason = "weights are in single precision")]
            factor.push(if varies { (1.0 / deviation) as f32 } else { 0.0 });
            if !varies {
                let feature = sequences.channels()[channel].clone();
                useless.push(Useless { feature, why: UselessBecause::Constant });
            }
        }
        if useless.len() == channels {
            let problem = "no channel of the sequences varies: there is nothing to learn from";
            return Err(crate::ModelError::Signature(problem.to_owned()));
        }
        #[expect(clippy::cast_possible_truncation, reason = "weights are in single precision")]
        let mean = mean.into_iter().map(|mean| mean as f32).collect();
        Ok((Self { logarithm, mean, factor }, useless))
    }

    /// A value of a channel, scaled.
    pub(super) fn apply(&self, channel: usize, value: f32) -> f32 {
        let scaled = (transformed(value, self.logarithm) - self.mean[channel]) * self.factor[channel];
        scaled.clamp(-DEVIATIONS_MOST, DEVIATIONS_MOST)
    }
}

fn transformed(value: f32, logarithm: bool) -> f32 {
    if logarithm { value.abs().ln_1p().copysign(value) } else { value }
}
