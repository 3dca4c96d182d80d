//! The highest likelihood: Nelder and Mead to get near, Newton to get there and to know how sure it is.

use crate::lifetime::{Cohort, RepeatBuying};
use crate::{ModelError, Result};

/// A fitted model.
#[derive(Debug, Clone)]
pub struct Fit<M> {
    pub model: M,
    /// Natural logarithm, over all customers.
    pub log_likelihood: f64,
    pub customers: f64,
    /// Covariance of the logarithms of the parameters, the inverse of the observed information. `None` where the likelihood is flat in some
    /// direction: the data does not tell the parameters apart, though it may tell what to expect of customers.
    pub covariance: Option<Vec<Vec<f64>>>,
}

/// How many groups the first search looks at; from what it finds, few steps over all of them are left.
const START_GROUPS: usize = 4000;

/// Step of finite differences, in logarithms of parameters.
const DIFFERENCE: f64 = 1e-3;

pub(crate) fn fit<M: RepeatBuying>(cohort: &Cohort) -> Result<Fit<M>> {
    if cohort.most_repeats() == 0 {
        return Err(ModelError::NotConverged { model: M::LABEL, problem: "no customer has bought twice" });
    }
    let model = |logs: &[f64]| M::from_parameters(std::array::from_fn(|place| logs[place].exp()));
    let time = cohort.sum(|history| history.observed) / cohort.customers();
    let mut logs = M::start(time).map(f64::ln).to_vec();
    let thinned = cohort.thinned(START_GROUPS);
    let first = thinned.as_ref().unwrap_or(cohort);
    nelder_mead(&mut logs, 0.5, |logs| model(logs).log_likelihood(first));
    let mut covariance = newton(&mut logs, |logs| model(logs).log_likelihood(cohort));
    if covariance.is_none() && thinned.is_some() {
        nelder_mead(&mut logs, 0.1, |logs| model(logs).log_likelihood(cohort));
        covariance = newton(&mut logs, |logs| model(logs).log_likelihood(cohort));
    }
    let model = model(&logs);
    let log_likelihood = model.log_likelihood(cohort);
    if !log_likelihood.is_finite() {
        return Err(ModelError::NotConverged { model: M::LABEL, problem: "the likelihood is no number" });
    }
    Ok(Fit { model, log_likelihood, customers: cohort.customers(), covariance })
}

/// Moves `at` to a maximum of `f` by Nelder and Mead's simplex (1965), begun again until it finds nothing better.
pub(crate) fn nelder_mead(at: &mut Vec<f64>, size: f64, f: impl Fn(&[f64]) -> f64) {
    let cost = |point: &[f64]| {
        let value = -f(point);
        if value.is_nan() { f64::INFINITY } else { value }
    };
    let mut size = size;
    for _ in 0..6 {
        let before = cost(at);
        let mut simplex: Vec<(f64, Vec<f64>)> = vec![(before, at.clone())];
        for axis in 0..at.len() {
            let mut corner = at.clone();
            corner[axis] += size;
            simplex.push((cost(&corner), corner));
        }
        descend(&mut simplex, &cost);
        let (after, best) = simplex.swap_remove(0);
        *at = best;
        if before - after < 1e-10 * (1.0 + after.abs()) {
            return;
        }
        size *= 0.5;
    }
}

/// Reflect, expand, contract, shrink, until all corners are alike; the best comes first.
fn descend(simplex: &mut [(f64, Vec<f64>)], cost: &impl Fn(&[f64]) -> f64) {
    let last = simplex.len() - 1;
    for _ in 0..300 * last {
        simplex.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (best, worst) = (simplex[0].0, simplex[last].0);
        if worst - best <= 1e-11 * (1.0 + best.abs()) {
            return;
        }
        let center: Vec<f64> = (0..last)
            .map(|axis| simplex[..last].iter().map(|corner| corner.1[axis]).sum::<f64>() / last as f64)
            .collect();
        let towards = |by: f64| -> (f64, Vec<f64>) {
            let point = center.iter().zip(&simplex[last].1).map(|(center, worst)| center + by * (worst - center));
            let point: Vec<f64> = point.collect();
            (cost(&point), point)
        };
        let reflected = towards(-1.0);
        let better = if reflected.0 < best {
            let expanded = towards(-2.0);
            Some(if expanded.0 < reflected.0 { expanded } else { reflected })
        } else if reflected.0 < simplex[last - 1].0 {
            Some(reflected)
        } else {
            let contracted = towards(if reflected.0 < worst { -0.5 } else { 0.5 });
            (contracted.0 < worst.min(reflected.0)).then_some(contracted)
        };
        if let Some(better) = better {
            simplex[last] = better;
            continue;
        }
        let (first, others) = simplex.split_at_mut(1);
        for corner in others {
            for (value, best) in corner.1.iter_mut().zip(&first[0].1) {
                *value = 0.5 * (*value + best);
            }
            corner.0 = cost(&corner.1);
        }
    }
    simplex.sort_by(|a, b| a.0.total_cmp(&b.0));
}

/// Moves `at` to the maximum nearby and answers the inverse of the information there; `None` where the function is not curved downwards in all
/// directions.
pub(crate) fn newton(at: &mut Vec<f64>, f: impl Fn(&[f64]) -> f64) -> Option<Vec<Vec<f64>>> {
    for _ in 0..20 {
        let here = f(at);
        let (gradient, information) = derivatives(at, here, &f);
        let inverse = inverse(&information)?;
        let step = inverse.iter().map(|row| row.iter().zip(&gradient).map(|(a, b)| a * b).sum::<f64>());
        let mut step: Vec<f64> = step.collect();
        if step.iter().all(|step| step.abs() < 1e-5) {
            return Some(inverse);
        }
        // Where the parabola does not hold any more, a shorter step in its direction does.
        loop {
            let there: Vec<f64> = at.iter().zip(&step).map(|(at, step)| at + step).collect();
            if f(&there) >= here {
                *at = there;
                break;
            }
            // Nothing is better in this direction: the top is here, as nearly as differences can tell.
            if step.iter().all(|step| step.abs() < 1e-7) {
                return Some(inverse);
            }
            for step in &mut step {
                *step /= 4.0;
            }
        }
    }
    None
}

/// The gradient and minus the second derivatives, all by central differences.
fn derivatives(at: &[f64], here: f64, f: &impl Fn(&[f64]) -> f64) -> (Vec<f64>, Vec<Vec<f64>>) {
    let moved = |axes: &[(usize, f64)]| {
        let mut point = at.to_vec();
        for (axis, by) in axes {
            point[*axis] += by * DIFFERENCE;
        }
        f(&point)
    };
    let size = at.len();
    let up: Vec<f64> = (0..size).map(|axis| moved(&[(axis, 1.0)])).collect();
    let down: Vec<f64> = (0..size).map(|axis| moved(&[(axis, -1.0)])).collect();
    let gradient = up.iter().zip(&down).map(|(up, down)| (up - down) / (2.0 * DIFFERENCE)).collect();
    let mut information = vec![vec![0.0; size]; size];
    for i in 0..size {
        information[i][i] = -(up[i] - 2.0 * here + down[i]) / (DIFFERENCE * DIFFERENCE);
        for j in 0..i {
            let along = moved(&[(i, 1.0), (j, 1.0)]) + moved(&[(i, -1.0), (j, -1.0)]);
            let apart = up[i] + up[j] + down[i] + down[j];
            let mixed = (along - apart + 2.0 * here) / (2.0 * DIFFERENCE * DIFFERENCE);
            information[i][j] = -mixed;
            information[j][i] = -mixed;
        }
    }
    (gradient, information)
}

/// The lower triangle L of L·Lᵀ (Cholesky), where the matrix is positive definite.
pub(crate) fn cholesky(matrix: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
    let size = matrix.len();
    let mut lower = vec![vec![0.0; size]; size];
    for i in 0..size {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| lower[i][k] * lower[j][k]).sum();
            let left = matrix[i][j] - known;
            lower[i][j] = if i == j {
                if left.is_nan() || left <= 1e-10 * matrix[i][i].abs() {
                    return None;
                }
                left.sqrt()
            } else {
                left / lower[j][j]
            };
        }
    }
    Some(lower)
}

fn inverse(matrix: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
    let lower = cholesky(matrix)?;
    let size = matrix.len();
    let columns = (0..size).map(|column| {
        let mut x = vec![0.0; size];
        for i in 0..size {
            let known: f64 = (0..i).map(|k| lower[i][k] * x[k]).sum();
            x[i] = (f64::from(u8::from(i == column)) - known) / lower[i][i];
        }
        for i in (0..size).rev() {
            let known: f64 = (i + 1..size).map(|k| lower[k][i] * x[k]).sum();
            x[i] = (x[i] - known) / lower[i][i];
        }
        x
    });
    Some(columns.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_a_bent_ridge_is_found() {
        // Rosenbrock's function, upside down: its maximum is at (1, 1), where the second derivatives are −802, 400 and −200.
        let f = |x: &[f64]| -(1.0 - x[0]).powi(2) - 100.0 * (x[1] - x[0] * x[0]).powi(2);
        let mut at = vec![-1.2, 1.0];
        nelder_mead(&mut at, 0.5, f);
        assert!((at[0] - 1.0).abs() < 1e-4 && (at[1] - 1.0).abs() < 1e-4, "{at:?}");
        let covariance = newton(&mut at, f).unwrap();
        assert!((at[0] - 1.0).abs() < 1e-4 && (at[1] - 1.0).abs() < 1e-4, "{at:?}");
        // The inverse of [[802, −400], [−400, 200]].
        for (value, expected) in covariance.concat().into_iter().zip([0.5, 1.0, 1.0, 2.005]) {
            assert!((value - expected).abs() < 0.02, "{value}, not {expected}");
        }
    }

    #[test]
    fn a_plain_has_no_top() {
        assert!(newton(&mut vec![0.0, 0.0], |x| -x[0] * x[0]).is_none());
    }
}
