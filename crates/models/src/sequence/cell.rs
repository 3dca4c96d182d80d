//! One step of an LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000) as one operation with its own derivative: from the gates' sums, the state
//! before and which rows are there, the state after. As single operations of the library, a step is a dozen passes forward and thirty back.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor};

/// Columns are rows of the batch: gates `[4 hidden, batch]` in the order input, forget, cell, output, as PyTorch has them; states `[2 hidden,
/// batch]`, h above c; presence `[batch]`, 1 or 0. A row that is absent keeps its state.
pub(super) struct Cell {
    hidden: usize,
    /// The gates and tanh c after the step, `[5 hidden, batch]`, for the derivative.
    kept: OnceLock<Vec<f32>>,
}

impl Cell {
    /// The state after the step. Its derivative is known where `gates` or `state` depends on a variable.
    pub(super) fn step(gates: &Tensor, state: &Tensor, present: &Tensor) -> Result<Tensor> {
        let cell = Self { hidden: state.dim(0)? / 2, kept: OnceLock::new() };
        if gates.track_op() || state.track_op() {
            gates.apply_op3(state, present, cell)
        } else {
            gates.apply_op3_no_bwd(state, present, &cell)
        }
    }
}

impl CustomOp3 for Cell {
    fn name(&self) -> &'static str {
        "lstm-cell"
    }

    fn cpu_fwd(
        &self,
        gates: &CpuStorage,
        gates_layout: &Layout,
        state: &CpuStorage,
        state_layout: &Layout,
        present: &CpuStorage,
        present_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let gates = slice(gates, gates_layout)?;
        let state = slice(state, state_layout)?;
        let present = slice(present, present_layout)?;
        let batch = present.len();
        let size = self.hidden * batch;
        let mut kept = Vec::with_capacity(5 * size);
        kept.extend_from_slice(gates);
        kept.resize(5 * size, 0.0);
        sigmoid(&mut kept[..2 * size]);
        tanh(&mut kept[2 * size..3 * size]);
        sigmoid(&mut kept[3 * size..4 * size]);
        let (gates, tanh_c) = kept.split_at_mut(4 * size);
        let (before_h, before_c) = state.split_at(size);
        let mut after = vec![0.0; 2 * size];
        let (after_h, after_c) = after.split_at_mut(size);
        for place in 0..size {
            after_c[place] = gates[size + place] * before_c[place] + gates[place] * gates[2 * size + place];
        }
        tanh_c.copy_from_slice(after_c);
        tanh(tanh_c);
        for place in 0..size {
            after_h[place] = gates[3 * size + place] * tanh_c[place];
        }
        if present.iter().any(|&present| present < 0.5) {
            for unit in 0..self.hidden {
                for (row, _) in present.iter().enumerate().filter(|(_, present)| **present < 0.5) {
                    let place = unit * batch + row;
                    after_h[place] = before_h[place];
                    after_c[place] = before_c[place];
                }
            }
        }
        // A second forward pass of the same operation does not happen; if it did, the first one's values would be the same.
        let _ = self.kept.set(kept);
        Ok((CpuStorage::F32(after), Shape::from((2 * self.hidden, batch))))
    }

    fn bwd(
        &self,
        gates: &Tensor,
        state: &Tensor,
        present: &Tensor,
        _after: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.get().ok_or_else(|| Error::Msg("lstm-cell: no forward pass".to_owned()))?;
        let (of_gates, of_state) =
            with_slices([state, present, &gradient.contiguous()?], |[state, present, gradient]| {
                let batch = present.len();
                let size = self.hidden * batch;
                let (input, rest) = kept.split_at(size);
                let (forget, rest) = rest.split_at(size);
                let (cell, rest) = rest.split_at(size);
                let (output, tanh_c) = rest.split_at(size);
                let before_c = &state[size..];
                let mut of_gates = vec![0.0; 4 * size];
                let mut of_state = vec![0.0; 2 * size];
                for unit in 0..self.hidden {
                    for (row, &is_present) in present.iter().enumerate() {
                        let at = unit * batch + row;
                        let (of_h, of_c) = (gradient[at], gradient[size + at]);
                        if is_present < 0.5 {
                            of_state[at] = of_h;
                            of_state[size + at] = of_c;
                            continue;
                        }
                        let of_c = of_c + of_h * output[at] * (1.0 - tanh_c[at] * tanh_c[at]);
                        of_gates[at] = of_c * cell[at] * input[at] * (1.0 - input[at]);
                        of_gates[size + at] = of_c * before_c[at] * forget[at] * (1.0 - forget[at]);
                        of_gates[2 * size + at] = of_c * input[at] * (1.0 - cell[at] * cell[at]);
                        of_gates[3 * size + at] = of_h * tanh_c[at] * output[at] * (1.0 - output[at]);
                        of_state[size + at] = of_c * forget[at];
                    }
                }
                (of_gates, of_state)
            })?;
        let of_gates = Tensor::from_vec(of_gates, gates.shape(), gates.device())?;
        let of_state = Tensor::from_vec(of_state, state.shape(), state.device())?;
        Ok((Some(of_gates), Some(of_state), None))
    }
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(|| Error::Msg("lstm-cell: not contiguous".to_owned()))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The tensors' values without a copy.
fn with_slices<const N: usize, T>(tensors: [&Tensor; N], work: impl FnOnce([&[f32]; N]) -> T) -> Result<T> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (place, (storage, layout)) in guards.iter().enumerate() {
        match &**storage {
            Storage::Cpu(storage) => slices[place] = slice(storage, layout)?,
            _ => return Err(Error::Msg("lstm-cell: not on the processor".to_owned())),
        }
    }
    Ok(work(slices))
}

/// 1 ÷ (1 + e^−x) = ½ + ½ tanh(x ÷ 2).
fn sigmoid(values: &mut [f32]) {
    for value in values {
        *value = 0.5 + 0.5 * tanh_of(0.5 * *value);
    }
}

fn tanh(values: &mut [f32]) {
    for value in values {
        *value = tanh_of(*value);
    }
}

/// Eigen's quotient of polynomials: within 4e-7 of tanh, without branches, so that it becomes vector instructions, and alike on every platform.
#[inline]
#[expect(clippy::excessive_precision, reason = "as published")]
fn tanh_of(x: f32) -> f32 {
    let x = x.clamp(-7.905_311_107_635_498, 7.905_311_107_635_498);
    let square = x * x;
    let mut p = -2.760_768_477_423_55e-16;
    for coefficient in [
        2.000_187_904_824_77e-13,
        -8.604_671_522_137_35e-11,
        5.122_297_090_371_14e-8,
        1.485_722_357_179_79e-5,
        6.372_619_288_754_36e-4,
        4.893_524_558_917_86e-3,
    ] {
        p = p * square + coefficient;
    }
    let mut q = 1.198_258_394_667_02e-6;
    for coefficient in [1.185_347_056_866_54e-4, 2.268_434_632_439_00e-3, 4.893_525_185_543_85e-3] {
        q = q * square + coefficient;
    }
    x * p / q
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn tanh_is_tanh() {
        for place in -100_000..=100_000_i32 {
            let x = place as f32 * 1e-4;
            let difference = (f64::from(tanh_of(x)) - f64::from(x).tanh()).abs();
            assert!(difference < 4e-7, "{x}: {difference}");
        }
        assert!(tanh_of(f32::INFINITY) <= 1.0 && tanh_of(-1e30) >= -1.0 && tanh_of(0.0).abs() < f32::MIN_POSITIVE);
    }

    /// The derivative of a weighted sum of the state after, beside differences.
    #[test]
    fn the_derivative_is_that_of_small_differences() {
        let (hidden, batch) = (3, 4);
        let wave = |count: usize, shift: f32| (0..count).map(|place| (place as f32 * 1.7 + shift).sin()).collect();
        let gates: Vec<f32> = wave(4 * hidden * batch, 0.3);
        let state: Vec<f32> = wave(2 * hidden * batch, 1.1);
        let weights: Vec<f32> = wave(2 * hidden * batch, 2.2);
        let tensor = |values: &[f32], rows| Tensor::from_slice(values, (rows, batch), &Device::Cpu).unwrap();
        let present = Tensor::new(&[1.0_f32, 0.0, 1.0, 1.0], &Device::Cpu).unwrap();
        let sum = |gates: &Tensor, state: &Tensor| {
            let after = Cell::step(gates, state, &present).unwrap();
            (after * tensor(&weights, 2 * hidden)).unwrap().sum_all().unwrap()
        };
        let of = Var::from_tensor(&tensor(&gates, 4 * hidden)).unwrap();
        let before = Var::from_tensor(&tensor(&state, 2 * hidden)).unwrap();
        let gradients = sum(of.as_tensor(), before.as_tensor()).backward().unwrap();
        let analytic =
            |variable: &Var| gradients.get(variable).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let value = |gates: &[f32], state: &[f32]| {
            sum(&tensor(gates, 4 * hidden), &tensor(state, 2 * hidden)).to_scalar::<f32>().unwrap()
        };
        let moved = |values: &[f32], place: usize, by: f32| {
            let mut values = values.to_vec();
            values[place] += by;
            values
        };
        let step = 1e-2;
        for (place, &found) in analytic(&of).iter().enumerate() {
            let [up, down] = [step, -step].map(|by| value(&moved(&gates, place, by), &state));
            assert!(((up - down) / (2.0 * step) - found).abs() < 2e-3, "gate {place}: {found}");
        }
        for (place, &found) in analytic(&before).iter().enumerate() {
            let [up, down] = [step, -step].map(|by| value(&gates, &moved(&state, place, by)));
            assert!(((up - down) / (2.0 * step) - found).abs() < 2e-3, "state {place}: {found}");
        }
    }
}
