use crate::lifetime::special::{integral, ln_1p_exp, ln_gamma, ln_gammas};
use crate::lifetime::{Cohort, History, RepeatBuying};

/// Pareto/NBD: customers buy at a Poisson rate that is gamma distributed (shape `r`, rate `alpha`), and live for an exponential time whose rate is
/// gamma distributed (shape `s`, rate `beta`). Schmittlein, Morrison and Colombo, "Counting Your Customers", Management Science 33 (1987).
///
/// The literature writes the likelihood with ₂F₁; here it is the integral that this stands for, over the moment of stopping, by Gauss and
/// Legendre: it neither cancels nor fails to converge for customers with many purchases.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParetoNbd {
    pub r: f64,
    /// In units of time.
    pub alpha: f64,
    pub s: f64,
    /// In units of time.
    pub beta: f64,
}

impl ParetoNbd {
    /// ln of ∫ s (β+τ)^−(s+1) (α+τ)^−(r+x) dτ from `from` to `to`, ÷ ((α+to)^−(r+x) (β+to)^−s): how much likelier it is to have stopped in between
    /// without buying than to be there, silent, at the end. With u = ln(α+τ) the integrand is near an exponential.
    fn ln_stopped_against_silent(&self, x: f64, from: f64, to: f64) -> f64 {
        let Self { r, alpha, s, beta } = *self;
        let shape = r + x;
        let (low, high) = ((alpha + from).ln(), (alpha + to).ln());
        if high <= low {
            return f64::NEG_INFINITY;
        }
        let ln_integrand = |u: f64| (1.0 - shape) * u - (s + 1.0) * (beta - alpha + u.exp()).ln();
        // Relative to where it is highest for all who buy often, so that no number is too large.
        let at_low = ln_integrand(low);
        // What falls by e⁻⁴⁵ adds nothing more.
        let high_that_counts = if shape > 1.0 { high.min(low + 45.0 / (shape - 1.0)) } else { high };
        // A panel holds a few e-folds, so that twelve nodes are enough.
        let folds = (high_that_counts - low) * (shape + s + 1.0);
        let panels = [(6.0, 1), (16.0, 3), (36.0, 6), (90.0, 15)].into_iter().find(|&(most, _)| folds < most);
        let panels = panels.map_or(48, |(_, panels)| panels);
        let area = integral(low, high_that_counts, panels, |u| (ln_integrand(u) - at_low).exp());
        shape * high + s * (beta + to).ln() + at_low + (s * area).ln()
    }

    /// Of the next `time`, how much a customer lives who is alive `now`: (β+now) ÷ (s−1) · [1 − ((β+now) ÷ (β+now+time))^(s−1)].
    fn expected_life(&self, now: f64, time: f64) -> f64 {
        let from = self.beta + now;
        let logarithm = ((from + time) / from).ln();
        let power = self.s - 1.0;
        // The limit for s = 1 is the logarithm itself.
        let share = if power.abs() < 1e-9 { logarithm } else { -(-power * logarithm).exp_m1() / power };
        from * share
    }
}

impl RepeatBuying for ParetoNbd {
    const LABEL: &'static str = "Pareto/NBD";
    const NAMES: [&'static str; 4] = ["r", "alpha", "s", "beta"];

    fn start(time: f64) -> [f64; 4] {
        [0.5, 0.2 * time, 0.5, 0.2 * time]
    }

    fn from_parameters([r, alpha, s, beta]: [f64; 4]) -> Self {
        Self { r, alpha, s, beta }
    }

    fn parameters(&self) -> [f64; 4] {
        [self.r, self.alpha, self.s, self.beta]
    }

    fn log_likelihood(&self, cohort: &Cohort) -> f64 {
        let Self { r, alpha, s, beta } = *self;
        let constant = r * alpha.ln() + s * beta.ln() - ln_gamma(r);
        let by_repeats = ln_gammas(r, cohort.most_repeats());
        cohort.sum(|history| {
            let x = f64::from(history.repeats);
            let silent = -(r + x) * (alpha + history.observed).ln() - s * (beta + history.observed).ln();
            let stopped = self.ln_stopped_against_silent(x, history.last, history.observed);
            constant + by_repeats[history.repeats as usize] + silent + ln_1p_exp(stopped)
        })
    }

    fn alive(&self, history: &History) -> f64 {
        let stopped = self.ln_stopped_against_silent(f64::from(history.repeats), history.last, history.observed);
        1.0 / (1.0 + stopped.exp())
    }

    fn expected_purchases(&self, history: &History, time: f64) -> f64 {
        let rate = (self.r + f64::from(history.repeats)) / (self.alpha + history.observed);
        rate * self.expected_life(history.observed, time) * self.alive(history)
    }

    fn expected_of_new(&self, time: f64) -> f64 {
        self.r / self.alpha * self.expected_life(0.0, time)
    }

    /// Who is alive either buys nothing and lives on, or stops before buying: the likelihood's two terms, from now on.
    fn no_purchase(&self, history: &History, time: f64) -> f64 {
        let x = f64::from(history.repeats);
        let (now, then) = (history.observed, history.observed + time);
        let ln_silent = (self.r + x) * ((self.alpha + now) / (self.alpha + then)).ln()
            + self.s * ((self.beta + now) / (self.beta + then)).ln();
        let none = (ln_silent + ln_1p_exp(self.ln_stopped_against_silent(x, now, then))).exp();
        1.0 - self.alive(history) * (1.0 - none)
    }
}
