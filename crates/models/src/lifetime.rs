//! What customers without a contract will still buy: models of repeat buying, fitted to what each customer has done in three numbers.
//!
//! [`BgNbd`] (Fader, Hardie and Lee 2005) and [`ParetoNbd`] (Schmittlein, Morrison and Colombo 1987) say who is still alive and how often they
//! buy; [`GammaGamma`] (Fader, Hardie and Lee 2005) how much they spend; [`lifetime_value`] puts them together. Time is in any one unit, weeks
//! as a rule: all parameters and answers are in it.

mod bg_nbd;
mod gamma_gamma;
mod history;
mod optimise;
mod pareto_nbd;
mod special;
mod value;

pub use bg_nbd::BgNbd;
pub use gamma_gamma::{GammaGamma, Spend};
pub use history::{Cohort, History};
pub use optimise::Fit;
pub use pareto_nbd::ParetoNbd;
pub use value::{Horizon, Value, lifetime_value, total_value};

use crate::Result;

/// A model of when customers buy and when they stop, for one customer at a time.
pub trait RepeatBuying: Copy + std::fmt::Debug + Send + Sync {
    /// What people call it.
    const LABEL: &'static str;

    /// The parameters' names, in the order of [`RepeatBuying::parameters`].
    const NAMES: [&'static str; 4];

    /// Where the search for parameters begins, for customers observed for `time` on average.
    fn start(time: f64) -> [f64; 4];

    /// The model with these parameters, all above 0.
    fn from_parameters(parameters: [f64; 4]) -> Self;

    /// The parameters.
    fn parameters(&self) -> [f64; 4];

    /// The log-likelihood of a cohort, natural logarithm.
    fn log_likelihood(&self, cohort: &Cohort) -> f64;

    /// The probability that the customer has not stopped buying.
    fn alive(&self, history: &History) -> f64;

    /// Purchases expected in the next `time`.
    fn expected_purchases(&self, history: &History, time: f64) -> f64;

    /// Purchases expected of a new customer in the first `time` after the first one.
    fn expected_of_new(&self, time: f64) -> f64;

    /// The probability of no purchase in the next `time`: churn as labels say it.
    fn no_purchase(&self, history: &History, time: f64) -> f64;

    /// The parameters of the highest likelihood.
    ///
    /// # Errors
    ///
    /// A likelihood without a maximum, as of customers who all did the same.
    fn fit(cohort: &Cohort) -> Result<Fit<Self>> {
        optimise::fit(cohort)
    }
}

#[cfg(test)]
mod tests;
