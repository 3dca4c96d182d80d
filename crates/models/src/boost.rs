//! Boosted trees: what an engine has to do, and the model around it that checks what goes in and out.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::artefact::{self, Format};
use crate::lightgbm;
use crate::measure::check_labels;
use crate::{Matrix, ModelError, Result, Signature};

/// Rows to learn from.
#[derive(Debug, Clone, Copy)]
pub struct TrainingSet<'a> {
    pub features: &'a Matrix,
    /// One a row; true is what the probability is of.
    pub labels: &'a [bool],
    /// How much a row counts; 1 each without.
    pub weights: Option<&'a [f32]>,
}

/// How to train, in XGBoost's terms and with its defaults, except for fewer, slower rounds of shallower trees: churn data is noisy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Trees at most.
    pub rounds: usize,
    /// What each tree adds (`eta`).
    pub learning_rate: f64,
    pub max_depth: usize,
    /// Least sum of second derivatives in a leaf.
    pub min_child_weight: f64,
    /// Share of rows each tree sees.
    pub subsample: f64,
    /// Share of features each tree sees (`colsample_bytree`).
    pub column_sample: f64,
    /// L2 penalty of leaf weights (`lambda`).
    pub l2: f64,
    /// L1 penalty of leaf weights (`alpha`).
    pub l1: f64,
    /// Least gain of a split (`gamma`).
    pub min_split_gain: f64,
    /// Bins of a feature's histogram (`max_bin`).
    pub bins: usize,
    /// How much more a positive row counts (`scale_pos_weight`). Other than 1, probabilities are no longer those of the data: calibrate.
    pub positive_weight: f64,
    /// Stop when the validation set's log-loss has not improved for so many rounds; the model is then the best one, not the last.
    pub stop_after: Option<NonZeroUsize>,
    pub seed: u64,
    /// Threads; all of them without. The model does not depend on it.
    pub threads: Option<NonZeroUsize>,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            rounds: 200,
            learning_rate: 0.1,
            max_depth: 4,
            min_child_weight: 1.0,
            subsample: 1.0,
            column_sample: 1.0,
            l2: 1.0,
            l1: 0.0,
            min_split_gain: 0.0,
            bins: 256,
            positive_weight: 1.0,
            stop_after: None,
            seed: 0,
            threads: None,
        }
    }
}

/// A library that trains boosted trees for the log-loss of two classes, and reads and writes them as XGBoost does.
pub trait Engine: std::fmt::Debug + Send + Sync {
    /// Trains. What it is handed has been checked.
    ///
    /// # Errors
    ///
    /// A parameter out of range.
    fn fit(
        &self,
        signature: &Signature,
        train: &TrainingSet<'_>,
        validation: Option<&TrainingSet<'_>>,
        parameters: &Parameters,
    ) -> Result<Box<dyn Booster>>;

    /// Reads trees that this engine or XGBoost has written.
    ///
    /// # Errors
    ///
    /// Damaged bytes, and kinds of model that are not trees for two classes.
    fn read(&self, artefact: &[u8], format: Format) -> Result<Box<dyn Booster>>;

    /// Reads trees that LightGBM has written as text, as they are once XGBoost's format has kept them.
    ///
    /// # Errors
    ///
    /// Damaged bytes, and trees that XGBoost's format cannot hold.
    fn read_lightgbm(&self, text: &[u8]) -> Result<Box<dyn Booster>>;
}

/// Trained trees of an engine.
pub trait Booster: std::fmt::Debug + Send + Sync {
    /// How many features a row has.
    fn columns(&self) -> usize;

    /// How many rounds it holds.
    fn rounds(&self) -> usize;

    /// The log-odds of each row.
    ///
    /// # Errors
    ///
    /// What the engine refuses.
    fn margins(&self, features: &Matrix) -> Result<Vec<f32>>;

    /// The log-odds of one row, without allocating.
    ///
    /// # Errors
    ///
    /// What the engine refuses.
    fn margin(&self, row: &[f32]) -> Result<f32>;

    /// SHAP values, row-major, `columns + 1` a row: what each feature adds to the log-odds, and the expected log-odds last. They sum to the margin
    /// (Lundberg and Lee 2017).
    ///
    /// # Errors
    ///
    /// What the engine refuses.
    fn contributions(&self, features: &Matrix) -> Result<Vec<f32>>;

    /// The trees as XGBoost writes them, without names of features.
    ///
    /// # Errors
    ///
    /// What the format cannot hold.
    fn write(&self, format: Format) -> Result<Vec<u8>>;
}

/// Trees with the signature of the data they are for. No answer of it is NaN.
#[derive(Debug)]
pub struct Model {
    signature: Signature,
    booster: Box<dyn Booster>,
}

/// A feature that cannot have told the model anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Useless {
    pub feature: String,
    pub why: UselessBecause,
}

/// Why a feature tells nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UselessBecause {
    /// No row has a value.
    AllMissing,
    /// All rows have the same one.
    Constant,
}

/// A trained model and what was noticed on the way.
#[derive(Debug)]
pub struct Trained {
    pub model: Model,
    /// Features that are all null or all equal: the model cannot use them, and somebody should know.
    pub useless: Vec<Useless>,
}

impl Model {
    /// Trains a model.
    ///
    /// # Errors
    ///
    /// Labels of one class, weights that are negative or not finite, features of which none varies, early stopping without a validation set,
    /// parameters out of range.
    pub fn fit(
        engine: &dyn Engine,
        signature: &Signature,
        train: &TrainingSet<'_>,
        validation: Option<&TrainingSet<'_>>,
        parameters: &Parameters,
    ) -> Result<Trained> {
        parameters.check(validation.is_some())?;
        train.check("the training set", signature)?;
        if let Some(validation) = validation {
            validation.check("the validation set", signature)?;
        }
        let useless = useless(signature, train.features);
        if useless.len() == signature.features().len() {
            return Err(ModelError::Signature("no feature varies: there is nothing to learn from".to_owned()));
        }
        let booster = engine.fit(signature, train, validation, parameters)?;
        Ok(Trained { model: Self { signature: signature.clone(), booster }, useless })
    }

    /// Reads an artefact that names its features: one of [`Model::write`], of XGBoost trained with `feature_names`, or of LightGBM (text).
    ///
    /// # Errors
    ///
    /// Damaged bytes, another kind of model, no names of features.
    pub fn read(engine: &dyn Engine, artefact: &[u8]) -> Result<Self> {
        let (booster, signature) = read(engine, artefact)?;
        let signature = signature.ok_or_else(|| ModelError::Artefact {
            what: "the model",
            problem: "it does not name its features; train it with feature_names, or give a signature".to_owned(),
        })?;
        Self::checked(booster, signature)
    }

    /// Reads an artefact for data of this signature: the names of features it holds, if any, must be the same in the same order.
    ///
    /// # Errors
    ///
    /// Damaged bytes, another kind of model, other features.
    pub fn read_for(engine: &dyn Engine, artefact: &[u8], signature: &Signature) -> Result<Self> {
        let (booster, stored) = read(engine, artefact)?;
        if let Some(stored) = stored {
            signature.check_names(stored.features().iter().map(|feature| &*feature.name))?;
            for (ours, theirs) in signature.features().iter().zip(stored.features()) {
                if !artefact::same_kind(&ours.kind, &theirs.kind) {
                    return Err(ModelError::Signature(format!("feature {:?} has other categories", ours.name)));
                }
            }
        }
        Self::checked(booster, signature.clone())
    }

    fn checked(booster: Box<dyn Booster>, signature: Signature) -> Result<Self> {
        let (has, names) = (booster.columns(), signature.features().len());
        if has != names {
            return Err(ModelError::Signature(format!("the model has {has} features, {names} are named")));
        }
        Ok(Self { signature, booster })
    }

    /// The model as XGBoost writes it, with names and types of features: `xgboost.Booster(model_file=…)` reads it.
    ///
    /// # Errors
    ///
    /// What the format cannot hold.
    pub fn write(&self, format: Format) -> Result<Vec<u8>> {
        artefact::name_features(self.booster.write(format)?, format, &self.signature)
    }

    /// What the model was trained on.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// How many trees are added up.
    pub fn rounds(&self) -> usize {
        self.booster.rounds()
    }

    /// The log-odds of each row.
    ///
    /// # Errors
    ///
    /// Rows of another width; a prediction that is no number, with its row.
    pub fn margins(&self, features: &Matrix) -> Result<Vec<f32>> {
        self.check_width(features.columns())?;
        finite(self.booster.margins(features)?)
    }

    /// The probability of each row, not calibrated.
    ///
    /// # Errors
    ///
    /// As for [`Model::margins`].
    pub fn probabilities(&self, features: &Matrix) -> Result<Vec<f64>> {
        Ok(self.margins(features)?.into_iter().map(|margin| probability(f64::from(margin))).collect())
    }

    /// The probability of one row of values in the order of the signature, NaN where one is missing; allocates nothing.
    ///
    /// # Errors
    ///
    /// As for [`Model::margins`].
    pub fn probability(&self, row: &[f32]) -> Result<f64> {
        self.check_width(row.len())?;
        let margin = self.booster.margin(row)?;
        if !margin.is_finite() {
            return Err(ModelError::Prediction { row: 0 });
        }
        Ok(probability(f64::from(margin)))
    }

    /// SHAP values in log-odds, row-major, one a feature and the expected log-odds last.
    ///
    /// # Errors
    ///
    /// As for [`Model::margins`].
    pub fn contributions(&self, features: &Matrix) -> Result<Vec<f32>> {
        self.check_width(features.columns())?;
        let width = features.columns() + 1;
        let values = self.booster.contributions(features)?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(place) => Err(ModelError::Prediction { row: place / width }),
            None => Ok(values),
        }
    }

    fn check_width(&self, got: usize) -> Result<()> {
        let expected = self.signature.features().len();
        if got != expected {
            return Err(ModelError::Length { what: "a row of features", expected, got });
        }
        Ok(())
    }
}

fn read(engine: &dyn Engine, artefact: &[u8]) -> Result<(Box<dyn Booster>, Option<Signature>)> {
    if lightgbm::is_text(artefact) {
        let signature = lightgbm::signature_of(artefact)?;
        return Ok((engine.read_lightgbm(artefact)?, Some(signature)));
    }
    let format = Format::of(artefact)?;
    // The engine first: it says of damaged bytes where the damage is.
    let booster = engine.read(artefact, format)?;
    Ok((booster, artefact::signature_of(artefact, format)?))
}

impl TrainingSet<'_> {
    fn check(&self, what: &'static str, signature: &Signature) -> Result<()> {
        let (expected, got) = (signature.features().len(), self.features.columns());
        if expected != got {
            return Err(ModelError::Length { what: "a row of features", expected, got });
        }
        let rows = self.features.rows();
        check_labels(what, rows, self.labels)?;
        let Some(weights) = self.weights else { return Ok(()) };
        if weights.len() != rows {
            return Err(ModelError::Length { what: "weights", expected: rows, got: weights.len() });
        }
        if let Some(row) = weights.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0)) {
            return Err(ModelError::Value { what: "weights".to_owned(), row, problem: "is negative or not finite" });
        }
        let mut counted = self.labels.iter().zip(weights).filter(|(_, weight)| **weight > 0.0).map(|(&label, _)| label);
        let first = counted.next().ok_or(ModelError::Empty { what })?;
        if counted.all(|label| label == first) {
            return Err(ModelError::OneClass { what, rows, label: u8::from(first) });
        }
        Ok(())
    }
}

impl Parameters {
    /// Refuses parameters out of range, before anything is trained.
    ///
    /// # Errors
    ///
    /// The first of them.
    pub fn check(&self, has_validation: bool) -> Result<()> {
        let wrong = |name, value, range| Err(ModelError::Parameter { name, value, range });
        let share = |value: f64| value > 0.0 && value <= 1.0;
        let penalty = |value: f64| value.is_finite() && value >= 0.0;
        if self.rounds == 0 {
            return wrong("rounds", 0.0, "at least 1");
        }
        if !share(self.learning_rate) {
            return wrong("learning_rate", self.learning_rate, "above 0 and at most 1");
        }
        if !(1..=30).contains(&self.max_depth) {
            return wrong("max_depth", self.max_depth as f64, "from 1 to 30");
        }
        if !(2..=65_535).contains(&self.bins) {
            return wrong("bins", self.bins as f64, "from 2 to 65535");
        }
        if !share(self.subsample) {
            return wrong("subsample", self.subsample, "above 0 and at most 1");
        }
        if !share(self.column_sample) {
            return wrong("column_sample", self.column_sample, "above 0 and at most 1");
        }
        let penalties = [
            ("min_child_weight", self.min_child_weight),
            ("l2", self.l2),
            ("l1", self.l1),
            ("min_split_gain", self.min_split_gain),
        ];
        if let Some((name, value)) = penalties.into_iter().find(|(_, value)| !penalty(*value)) {
            return wrong(name, value, "finite and at least 0");
        }
        if !(self.positive_weight.is_finite() && self.positive_weight > 0.0) {
            return wrong("positive_weight", self.positive_weight, "finite and above 0");
        }
        match self.stop_after {
            Some(rounds) if !has_validation => {
                wrong("stop_after", rounds.get() as f64, "left out where there is no validation set")
            }
            _ => Ok(()),
        }
    }
}

/// Features without a value, or with one alone and no missing ones.
fn useless(signature: &Signature, features: &Matrix) -> Vec<Useless> {
    let columns = features.columns();
    let column = |place: usize| features.values().iter().skip(place).step_by(columns);
    let found = signature.features().iter().enumerate().filter_map(|(place, feature)| {
        let first = column(place).next().copied().unwrap_or(f32::NAN);
        let equal = column(place).all(|value| value.to_bits() == first.to_bits() || (value.is_nan() && first.is_nan()));
        let why = if first.is_nan() { UselessBecause::AllMissing } else { UselessBecause::Constant };
        equal.then(|| Useless { feature: feature.name.clone(), why })
    });
    found.collect()
}

fn finite(margins: Vec<f32>) -> Result<Vec<f32>> {
    match margins.iter().position(|margin| !margin.is_finite()) {
        Some(row) => Err(ModelError::Prediction { row }),
        None => Ok(margins),
    }
}

/// The probability of log-odds.
pub(crate) fn probability(margin: f64) -> f64 {
    1.0 / (1.0 + (-margin).exp())
}

#[cfg(test)]
mod tests;
