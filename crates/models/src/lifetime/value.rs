//! What customers are worth: purchases to come × amount × margin, discounted, and how sure that is.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::bootstrap::{Estimate, estimate};
use crate::lifetime::optimise::cholesky;
use crate::lifetime::{Fit, GammaGamma, History, RepeatBuying, Spend};
use crate::{ModelError, Result};

/// How far to look ahead, and what money later is worth now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Horizon {
    /// How many periods.
    pub periods: u32,
    /// Length of a period, in the model's unit of time.
    pub period: f64,
    /// Discount rate of one period: 0.01 makes a payment of the first period worth 1 ÷ 1.01.
    pub discount: f64,
    /// Share of an amount that is left as margin.
    pub margin: f64,
}

/// A customer's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Value {
    pub alive: f64,
    /// Over the whole horizon, not discounted.
    pub purchases: f64,
    /// Of one purchase.
    pub amount: f64,
    /// Σ over periods of the purchases expected in it × amount × margin ÷ (1 + discount)^period.
    pub value: f64,
}

impl Horizon {
    fn check(&self) -> Result<()> {
        let wrong = |name, value, range| Err(ModelError::Parameter { name, value, range });
        if self.periods == 0 {
            return wrong("periods", 0.0, "at least 1");
        }
        if !(self.period > 0.0 && self.period.is_finite()) {
            return wrong("period", self.period, "finite and above 0");
        }
        if !(self.discount > -1.0 && self.discount.is_finite()) {
            return wrong("discount", self.discount, "finite and above -1");
        }
        if !(self.margin.is_finite()) {
            return wrong("margin", self.margin, "finite");
        }
        Ok(())
    }
}

/// The value of one customer.
///
/// # Errors
///
/// A horizon that means nothing; an expected amount that is infinite.
pub fn lifetime_value<M: RepeatBuying>(
    model: &M,
    amounts: &GammaGamma,
    history: &History,
    spend: &Spend,
    horizon: &Horizon,
) -> Result<Value> {
    horizon.check()?;
    let amount = amounts.expected_amount(spend);
    if !amount.is_finite() {
        let range = "above 1, so that a new customer's amount has a mean: take more customers";
        return Err(ModelError::Parameter { name: "q", value: amounts.q, range });
    }
    let (purchases, discounted) = purchases(model, history, horizon);
    Ok(Value { alive: model.alive(history), purchases, amount, value: discounted * amount * horizon.margin })
}

/// Purchases expected over the horizon, and discounted.
fn purchases<M: RepeatBuying>(model: &M, history: &History, horizon: &Horizon) -> (f64, f64) {
    let (mut before, mut discounted, mut factor) = (0.0, 0.0, 1.0);
    for period in 1..=horizon.periods {
        factor /= 1.0 + horizon.discount;
        let until = model.expected_purchases(history, f64::from(period) * horizon.period);
        discounted += (until - before) * factor;
        before = until;
    }
    (before, discounted)
}

/// The summed value of customers, each a history and an expected amount of one purchase, with the interval that the uncertainty of the model's
/// parameters makes: `draws` sets of parameters from the normal distribution of their logarithms around the fit. What a single customer does is
/// far less certain than the sum, and no interval of this kind says how far.
///
/// # Errors
///
/// A horizon that means nothing, no draws, or a fit whose parameters the data does not tell.
pub fn total_value<M: RepeatBuying>(
    fit: &Fit<M>,
    customers: &[(History, f64)],
    horizon: &Horizon,
    draws: u32,
    seed: u64,
) -> Result<Estimate> {
    use rayon::prelude::*;
    horizon.check()?;
    if draws == 0 {
        return Err(ModelError::Parameter { name: "draws", value: 0.0, range: "at least 1" });
    }
    let flat = || ModelError::NotConverged { model: M::LABEL, problem: "the data does not tell its parameters apart" };
    let spread = fit.covariance.as_ref().and_then(|covariance| cholesky(covariance)).ok_or_else(flat)?;
    let total = |model: &M| -> f64 {
        let of = |customers: &[(History, f64)]| -> f64 {
            customers.iter().map(|(history, amount)| purchases(model, history, horizon).1 * amount).sum()
        };
        let sums: Vec<f64> = customers.par_chunks(512).map(of).collect();
        horizon.margin * sums.into_iter().sum::<f64>()
    };
    let parameters = fit.model.parameters();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..draws).map(|_| {
        let normal: [f64; 4] = std::array::from_fn(|_| standard_normal(&mut random));
        let moved = |place: usize| {
            let by: f64 = spread[place].iter().zip(&normal).map(|(spread, normal)| spread * normal).sum();
            parameters[place] * by.exp()
        };
        total(&M::from_parameters(std::array::from_fn(moved)))
    });
    Ok(estimate(total(&fit.model), values.collect(), 0.95))
}

/// Box and Muller.
fn standard_normal(random: &mut ChaCha8Rng) -> f64 {
    let mut unit = || ((random.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), std::f64::consts::TAU * unit());
    radius * angle.cos()
}
