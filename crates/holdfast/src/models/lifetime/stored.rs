//! A version of a model of repeat buying: its parameters, and customers that it has to answer for as it did before it is trusted.

use holdfast_models::lifetime::{BgNbd, GammaGamma, History, Horizon, ParetoNbd, RepeatBuying, Spend, lifetime_value};
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::models::kind::Kind;
use crate::models::registry::{Registry, Version, damaged, unwritable};

/// The ending of the file with the parameters.
pub(crate) const ENDING: &str = "json";

/// Repeats, time of the last and time observed, in units, and mean amount, of customers of nobody: what a version is asked when it is kept and when it is read.
const PROBES: [(u32, f64, f64, f64); 5] =
    [(0, 0.0, 30.0, 0.0), (1, 2.0, 40.0, 20.0), (4, 30.0, 39.0, 50.0), (20, 50.0, 52.0, 10.0), (3, 5.0, 200.0, 80.0)];

/// A replayed answer may differ by this share.
const TOLERANCE: f64 = 1e-6;

/// The parameters, as they are kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parameters {
    /// r, α, a and b of BG/NBD; r, α, s and β of Pareto/NBD.
    pub(crate) buying: [f64; 4],
    pub(crate) is_pareto: bool,
    /// p, q and v of the gamma-gamma model.
    pub(crate) amounts: [f64; 3],
    /// Days of a unit of time.
    pub(crate) unit_days: u32,
    /// What value looks at: units ahead, discount rate of a unit, margin.
    pub(crate) units: u32,
    pub(crate) discount: f64,
    pub(crate) margin: f64,
}

/// A version that was read whole, with everything checked that can be.
#[derive(Debug)]
pub(crate) struct LoadedLifetime {
    pub(crate) version: Version,
    pub(crate) parameters: Parameters,
}

impl Parameters {
    /// The probability that a customer has not stopped buying.
    pub(crate) fn alive(&self, history: &History) -> f64 {
        if self.is_pareto { self.pareto().alive(history) } else { self.bg().alive(history) }
    }

    /// Purchases expected in the next `time`.
    pub(crate) fn expected(&self, history: &History, time: f64) -> f64 {
        match self.is_pareto {
            true => self.pareto().expected_purchases(history, time),
            false => self.bg().expected_purchases(history, time),
        }
    }

    /// The probability of no purchase in the next `time`.
    pub(crate) fn none(&self, history: &History, time: f64) -> f64 {
        if self.is_pareto { self.pareto().no_purchase(history, time) } else { self.bg().no_purchase(history, time) }
    }

    /// The margin to come, discounted.
    ///
    /// # Errors
    /// An expected amount that is infinite.
    pub(crate) fn value(&self, history: &History, mean: f64) -> Result<f64, CliError> {
        let [p, q, v] = self.amounts;
        let (amounts, spend) = (GammaGamma { p, q, v }, Spend { repeats: history.repeats, mean });
        let horizon = Horizon { periods: self.units, period: 1.0, discount: self.discount, margin: self.margin };
        let value = match self.is_pareto {
            true => lifetime_value(&self.pareto(), &amounts, history, &spend, &horizon)?,
            false => lifetime_value(&self.bg(), &amounts, history, &spend, &horizon)?,
        };
        Ok(value.value)
    }

    /// What the parameters are of.
    pub(crate) const fn label(&self) -> &'static str {
        if self.is_pareto { ParetoNbd::LABEL } else { BgNbd::LABEL }
    }

    fn bg(&self) -> BgNbd {
        BgNbd::from_parameters(self.buying)
    }

    fn pareto(&self) -> ParetoNbd {
        ParetoNbd::from_parameters(self.buying)
    }

    fn check(&self) -> Result<(), String> {
        let all = self.buying.iter().chain(&self.amounts).chain([&self.margin]);
        if all.clone().any(|value| !(value.is_finite() && *value > 0.0)) || self.unit_days == 0 || self.units == 0 {
            return Err("its parameters are none".to_owned());
        }
        Ok(())
    }

    /// What it says of the probes: alive, purchases in ten units, value.
    fn answers(&self) -> Result<Vec<[f64; 3]>, CliError> {
        let answer = |(row, (repeats, last, observed, mean)): (usize, (u32, f64, f64, f64))| {
            let history = History::new(repeats, last, observed, row)?;
            Ok([self.alive(&history), self.expected(&history, 10.0), self.value(&history, mean)?])
        };
        PROBES.into_iter().enumerate().map(answer).collect()
    }

    /// What it says of the probes, as it is kept.
    ///
    /// # Errors
    /// Amounts that have no mean.
    pub(crate) fn probes(&self) -> Result<Vec<u8>, CliError> {
        serde_json::to_vec(&self.answers()?).map_err(unwritable)
    }
}

impl Registry {
    /// Reads a version of a model of repeat buying: files that are what their hashes say, and customers of whom it says what it said.
    ///
    /// # Errors
    /// [`CliError::ModelDamaged`] with what is wrong; a model about something else.
    pub(crate) async fn load_lifetime(&self, version: Version) -> Result<LoadedLifetime, CliError> {
        if version.kind() != Kind::Lifetime {
            return Err(CliError::Argument(format!("`{}` is no model of repeat buying", version.model)));
        }
        let wrong = |what: String| damaged(&version, &what);
        let artefact = self.fetch(&version.artefact, &version.artefact_hash).await.map_err(wrong)?;
        let probes = self.fetch(&version.examples, &version.examples_hash).await.map_err(wrong)?;
        let unreadable = |error: serde_json::Error| wrong(format!("its files cannot be read ({error})"));
        let parameters: Parameters = serde_json::from_slice(&artefact).map_err(unreadable)?;
        let said: Vec<[f64; 3]> = serde_json::from_slice(&probes).map_err(unreadable)?;
        parameters.check().map_err(wrong)?;
        replay(&parameters.answers()?, &said).map_err(wrong)?;
        Ok(LoadedLifetime { version, parameters })
    }
}

fn replay(now: &[[f64; 3]], said: &[[f64; 3]]) -> Result<(), String> {
    if now.len() != said.len() {
        return Err("its examples are others".to_owned());
    }
    // What is no number agrees with nothing.
    let agrees = |(now, said): (&f64, &f64)| (now - said).abs() <= TOLERANCE * said.abs().max(1.0);
    match now.iter().zip(said).position(|(now, said)| !now.iter().zip(said).all(agrees)) {
        Some(row) => {
            Err(format!("of example {} it says something else than it did: its parameters are others", row + 1))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of CDNOW, as published: in weeks.
    fn cdnow() -> Parameters {
        Parameters {
            buying: [0.243, 4.414, 0.793, 2.426],
            is_pareto: false,
            amounts: [6.25, 3.74, 15.44],
            unit_days: 7,
            units: 52,
            discount: 0.002,
            margin: 1.0,
        }
    }

    #[test]
    fn the_published_customer_is_answered_as_published() {
        let history = History::new(2, 30.43, 38.86, 0).unwrap();
        let model = cdnow();
        assert!((model.alive(&history) - 0.7266).abs() < 1e-3);
        assert!((model.expected(&history, 39.0) - 1.226).abs() < 2e-3);
        assert!(model.value(&history, 20.0).unwrap() > 20.0 && model.none(&history, 13.0) > 0.4);
    }

    #[test]
    fn parameters_that_are_others_are_told_with_the_example() {
        let said = cdnow().answers().unwrap();
        replay(&cdnow().answers().unwrap(), &said).unwrap();
        let other = Parameters { buying: [0.243, 4.414, 0.793, 3.0], ..cdnow() };
        assert!(replay(&other.answers().unwrap(), &said).unwrap_err().contains("example 1"));
        assert!(replay(&said[1..], &said).is_err());
        assert!(Parameters { amounts: [6.25, f64::NAN, 15.44], ..cdnow() }.check().is_err());
    }
}
