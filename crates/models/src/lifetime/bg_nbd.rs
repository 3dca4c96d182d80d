use crate::lifetime::special::{hypergeometric, ln_1p_exp, ln_gamma, ln_gammas};
use crate::lifetime::{Cohort, History, RepeatBuying};

/// Beta-geometric / NBD: customers buy at a Poisson rate that is gamma distributed (shape `r`, rate `alpha`), and stop after any purchase with a
/// probability that is beta distributed (`a`, `b`). Fader, Hardie and Lee, "Counting Your Customers the Easy Way", Marketing Science 24 (2005);
/// numbers of equations are theirs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BgNbd {
    pub r: f64,
    /// In units of time.
    pub alpha: f64,
    pub a: f64,
    pub b: f64,
}

impl BgNbd {
    /// ln of (b + x − 1)⁻¹ a ((α + T) ÷ (α + tₓ))^(r + x): the odds of having stopped after the last purchase. Without a repeat nobody has.
    fn ln_odds_stopped(&self, history: &History) -> f64 {
        if history.repeats == 0 {
            return f64::NEG_INFINITY;
        }
        let x = f64::from(history.repeats);
        let silence = ((self.alpha + history.observed) / (self.alpha + history.last)).ln();
        (self.a / (self.b + x - 1.0)).ln() + (self.r + x) * silence
    }

    /// `a`, kept off 1, where the expectation is a limit.
    fn a_not_one(&self) -> f64 {
        if (self.a - 1.0).abs() < 1e-7 { 1.0 + 1e-7 } else { self.a }
    }
}

impl RepeatBuying for BgNbd {
    const LABEL: &'static str = "BG/NBD";
    const NAMES: [&'static str; 4] = ["r", "alpha", "a", "b"];

    fn start(time: f64) -> [f64; 4] {
        [0.5, 0.2 * time, 1.0, 2.0]
    }

    fn from_parameters([r, alpha, a, b]: [f64; 4]) -> Self {
        Self { r, alpha, a, b }
    }

    fn parameters(&self) -> [f64; 4] {
        [self.r, self.alpha, self.a, self.b]
    }

    /// Equation 6, with the gamma functions worked out once for each number of repeats.
    fn log_likelihood(&self, cohort: &Cohort) -> f64 {
        let Self { r, alpha, a, b } = *self;
        let most = cohort.most_repeats();
        let constant = r * alpha.ln() - ln_gamma(r) + ln_gamma(a + b) - ln_gamma(b);
        let by_repeats: Vec<f64> = ln_gammas(r, most)
            .into_iter()
            .zip(ln_gammas(b, most))
            .zip(ln_gammas(a + b, most))
            .map(|((r, b), ab)| constant + r + b - ab)
            .collect();
        cohort.sum(|history| {
            let alive = -(r + f64::from(history.repeats)) * (alpha + history.observed).ln();
            by_repeats[history.repeats as usize] + alive + ln_1p_exp(self.ln_odds_stopped(history))
        })
    }

    fn alive(&self, history: &History) -> f64 {
        1.0 / (1.0 + self.ln_odds_stopped(history).exp())
    }

    /// Equation 10.
    fn expected_purchases(&self, history: &History, time: f64) -> f64 {
        let (Self { r, alpha, b, .. }, a) = (*self, self.a_not_one());
        let x = f64::from(history.repeats);
        let c = a + b + x - 1.0;
        let from = alpha + history.observed;
        let missed = ((from / (from + time)).ln() * (r + x)).exp();
        let inner = 1.0 - missed * hypergeometric(r + x, b + x, c, time / (from + time));
        c / (a - 1.0) * inner * self.alive(history)
    }

    /// Equation 9.
    fn expected_of_new(&self, time: f64) -> f64 {
        let new = History { repeats: 0, last: 0.0, observed: 0.0 };
        self.expected_purchases(&new, time)
    }

    /// 1 − P(alive)·[1 − ((α+T) ÷ (α+T+M))^(r+x)]: while alive, the rate is gamma distributed with r + x and α + T, and nobody stops without buying.
    fn no_purchase(&self, history: &History, time: f64) -> f64 {
        let from = self.alpha + history.observed;
        let none = ((from / (from + time)).ln() * (self.r + f64::from(history.repeats))).exp();
        1.0 - self.alive(history) * (1.0 - none)
    }
}
