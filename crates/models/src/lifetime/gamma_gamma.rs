use crate::lifetime::optimise::{nelder_mead, newton};
use crate::lifetime::special::ln_gamma;
use crate::measure::pearson;
use crate::{ModelError, Result};

/// What a customer has spent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spend {
    /// Purchases after the first.
    pub repeats: u32,
    /// Mean amount of those.
    pub mean: f64,
}

/// Gamma-gamma: a customer's amounts are gamma distributed around a mean of his own, and the means over customers inversely so. It takes for
/// granted that how much is bought does not depend on how often: look at [`GammaGamma::correlation`]. Fader, Hardie and Lee, "RFM and CLV",
/// Journal of Marketing Research 42 (2005).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GammaGamma {
    pub p: f64,
    pub q: f64,
    /// In units of money.
    pub v: f64,
}

impl GammaGamma {
    /// The parameters of the highest likelihood, and its natural logarithm; customers without repeats are left out.
    ///
    /// # Errors
    ///
    /// A mean that is not above 0 and finite; nobody with a repeat; amounts that do not differ.
    pub fn fit(spends: &[Spend]) -> Result<(Self, f64)> {
        if let Some(row) =
            spends.iter().position(|spend| spend.repeats > 0 && !(spend.mean > 0.0 && spend.mean.is_finite()))
        {
            let problem = "has a mean amount that is not above 0: leave refunds out of it";
            return Err(ModelError::Value { what: "amounts".to_owned(), row, problem });
        }
        let repeaters: Vec<Spend> = spends.iter().copied().filter(|spend| spend.repeats > 0).collect();
        let Some(most) = repeaters.iter().map(|spend| spend.repeats).max() else {
            return Err(ModelError::NotConverged { model: "gamma-gamma", problem: "no customer has bought twice" });
        };
        if repeaters.iter().all(|spend| spend.mean.total_cmp(&repeaters[0].mean).is_eq()) {
            return Err(ModelError::NotConverged { model: "gamma-gamma", problem: "all amounts are equal" });
        }
        let mean = repeaters.iter().map(|spend| spend.mean).sum::<f64>() / repeaters.len() as f64;
        let by_repeats = Sums::new(&repeaters, most);
        let model = |logs: &[f64]| Self { p: logs[0].exp(), q: logs[1].exp(), v: logs[2].exp() };
        let mut logs = vec![1.0, 1.0, mean.ln()];
        nelder_mead(&mut logs, 0.5, |logs| model(logs).likelihood(&repeaters, &by_repeats));
        if newton(&mut logs, |logs| model(logs).likelihood(&repeaters, &by_repeats)).is_none() {
            return Err(ModelError::NotConverged {
                model: "gamma-gamma",
                problem: "the amounts do not tell its parameters",
            });
        }
        let model = model(&logs);
        Ok((model, model.likelihood(&repeaters, &by_repeats)))
    }

    /// The amount to expect of a customer's next purchase: between his own mean and everybody's, nearer to his own the more he has bought.
    /// Infinite for a customer without repeats where `q` ≤ 1.
    pub fn expected_amount(&self, spend: &Spend) -> f64 {
        let x = f64::from(spend.repeats);
        let known = if spend.repeats > 0 { x * spend.mean } else { 0.0 };
        let weight = self.p * x + self.q - 1.0;
        if weight <= 0.0 { f64::INFINITY } else { self.p * (self.v + known) / weight }
    }

    /// Pearson's correlation of repeats and mean amount over customers with repeats: the model wants it near 0 (0.11 for CDNOW). `None` where one of
    /// them does not vary.
    pub fn correlation(spends: &[Spend]) -> Option<f64> {
        let repeaters = spends.iter().filter(|spend| spend.repeats > 0);
        pearson(&repeaters.map(|spend| (f64::from(spend.repeats), spend.mean)).collect::<Vec<_>>())
    }

    /// Of spends that are positive and repeated.
    fn likelihood(&self, repeaters: &[Spend], sums: &Sums) -> f64 {
        use rayon::prelude::*;
        let Self { p, q, v } = *self;
        let chunk = |spends: &[Spend]| -> f64 {
            let term = |spend: &Spend| {
                let x = f64::from(spend.repeats);
                (p * x + q) * (v + x * spend.mean).ln()
            };
            spends.iter().map(term).sum()
        };
        let terms: Vec<f64> = repeaters.par_chunks(2048).map(chunk).collect();
        let gammas = sums.counts.iter().zip(0_u32..).filter(|(count, _)| **count > 0.0).map(|(count, x)| {
            let px = p * f64::from(x);
            count * (ln_gamma(px + q) - ln_gamma(px))
        });
        let customers = repeaters.len() as f64;
        gammas.sum::<f64>() + customers * (q * v.ln() - ln_gamma(q)) + p * sums.x_ln_xz
            - sums.ln_z
            - terms.into_iter().sum::<f64>()
    }
}

/// What does not change while the parameters do.
#[derive(Debug)]
struct Sums {
    /// Customers by number of repeats.
    counts: Vec<f64>,
    /// Σ x · (ln x + ln z̄).
    x_ln_xz: f64,
    /// Σ ln z̄.
    ln_z: f64,
}

impl Sums {
    fn new(repeaters: &[Spend], most: u32) -> Self {
        let mut sums = Self { counts: vec![0.0; most as usize + 1], x_ln_xz: 0.0, ln_z: 0.0 };
        for spend in repeaters {
            let x = f64::from(spend.repeats);
            sums.counts[spend.repeats as usize] += 1.0;
            sums.x_ln_xz += x * (x * spend.mean).ln();
            sums.ln_z += spend.mean.ln();
        }
        sums
    }
}
