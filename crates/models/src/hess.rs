//! The default engine: `hessboost`, histogram trees in plain Rust.

use std::sync::Arc;

use hessboost::config::{TrainingParams, TreeMethod};
use hessboost::data::{DMatrix, FeatureType};
use hessboost::error::HessboostError;
use hessboost::metric::EvalMetric;
use hessboost::model::{BoostedModel, ModelFormat};
use hessboost::objective::{Objective, RegLoss};
use hessboost::training::Trainer;

use crate::artefact::Format;
use crate::boost::{Booster, Engine, Parameters, TrainingSet};
use crate::siblings;
use crate::{FeatureKind, Matrix, ModelError, Result, Signature};

/// Trains with `hessboost`. Equal data, parameters and seed give the same trees on any number of threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hessboost;

#[derive(Debug)]
struct Trees(BoostedModel);

impl Engine for Hessboost {
    fn fit(
        &self,
        signature: &Signature,
        train: &TrainingSet<'_>,
        validation: Option<&TrainingSet<'_>>,
        parameters: &Parameters,
    ) -> Result<Box<dyn Booster>> {
        let mut builder = TrainingParams::builder()
            .objective(Objective::BinaryLogistic(RegLoss::new(parameters.positive_weight).map_err(refused)?))
            .eval_metric(EvalMetric::LogLoss)
            .tree_method(TreeMethod::Hist)
            .eta(parameters.learning_rate)
            .max_depth(parameters.max_depth)
            .min_child_weight(parameters.min_child_weight)
            .subsample(parameters.subsample)
            .colsample_bytree(parameters.column_sample)
            .lambda(parameters.l2)
            .alpha(parameters.l1)
            .gamma(parameters.min_split_gain)
            .max_bin(parameters.bins)
            .seed(parameters.seed);
        if let Some(threads) = parameters.threads {
            builder = builder.nthread(threads.get());
        }
        let parameters_of_engine = builder.build().map_err(refused)?;
        let data = labelled(signature, train)?;
        let validation = validation.map(|validation| labelled(signature, validation)).transpose()?;
        let mut trainer = Trainer::new(&parameters_of_engine, &data, parameters.rounds);
        if let (Some(validation), Some(rounds)) = (&validation, parameters.stop_after) {
            trainer = trainer.eval(validation, "validation").early_stopping_rounds(rounds);
        }
        let model = trainer.train().map_err(refused)?.model;
        // XGBoost's format does not keep which round was the best: what comes after it is cut off.
        let model = match model.best_iteration() {
            Some(best) => model.slice(..=best, 1).map_err(refused)?,
            None => model,
        };
        let document = model.encode(ModelFormat::XgboostJson).map_err(refused)?;
        let model =
            BoostedModel::decode(&siblings::breadth_first(&document)?, ModelFormat::XgboostJson).map_err(refused)?;
        Ok(Box::new(Trees(model)))
    }

    fn read(&self, artefact: &[u8], format: Format) -> Result<Box<dyn Booster>> {
        let unreadable = |problem| ModelError::Artefact { what: "the model", problem };
        let model = BoostedModel::decode(artefact, format.into()).map_err(|error| unreadable(error.to_string()))?;
        let objective = model.objective().name();
        if !matches!(objective, "binary:logistic" | "reg:logistic") || model.n_outputs() != 1 {
            return Err(unreadable(format!("its objective is {objective}, where binary:logistic is needed")));
        }
        Ok(Box::new(Trees(model)))
    }

    fn read_lightgbm(&self, text: &[u8]) -> Result<Box<dyn Booster>> {
        let unreadable = |error: HessboostError| ModelError::Artefact { what: "the model", problem: error.to_string() };
        let model = BoostedModel::decode(text, ModelFormat::LightgbmText).map_err(unreadable)?;
        let document = model.encode(ModelFormat::XgboostUbjson).map_err(unreadable)?;
        self.read(&document, Format::Ubjson)
    }
}

impl Booster for Trees {
    fn columns(&self) -> usize {
        self.0.n_features()
    }

    fn rounds(&self) -> usize {
        self.0.num_boost_rounds()
    }

    fn margins(&self, features: &Matrix) -> Result<Vec<f32>> {
        Ok(self.0.predict_margin_rows(features.values(), ..).map_err(refused)?.into_vec())
    }

    fn margin(&self, row: &[f32]) -> Result<f32> {
        self.0.predict_margin_row(row, ..).map_err(refused)
    }

    fn contributions(&self, features: &Matrix) -> Result<Vec<f32>> {
        Ok(self.0.predict_contribs(&unlabelled(features)?, ..).map_err(refused)?.into_vec())
    }

    fn write(&self, format: Format) -> Result<Vec<u8>> {
        self.0.encode(format.into()).map_err(refused)
    }
}

impl From<Format> for ModelFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Json => Self::XgboostJson,
            Format::Ubjson => Self::XgboostUbjson,
        }
    }
}

/// The rows without a copy of their values.
fn unlabelled(features: &Matrix) -> Result<DMatrix> {
    struct Shared(Arc<Vec<f32>>);
    impl AsRef<[f32]> for Shared {
        fn as_ref(&self) -> &[f32] {
            &self.0
        }
    }
    let values = Arc::new(Shared(features.shared()));
    DMatrix::from_dense_shared(values, features.rows(), features.columns(), f32::NAN).map_err(refused)
}

fn labelled(signature: &Signature, set: &TrainingSet<'_>) -> Result<DMatrix> {
    let kinds = signature.features().iter().map(|feature| match feature.kind {
        FeatureKind::Number => FeatureType::Numerical,
        FeatureKind::Category(_) | FeatureKind::Code => FeatureType::Categorical,
    });
    let labels: Vec<f32> = set.labels.iter().map(|&label| f32::from(u8::from(label))).collect();
    let data = unlabelled(set.features)?.with_labels(&labels).map_err(refused)?;
    let data = data.with_feature_types(&kinds.collect::<Vec<_>>()).map_err(refused)?;
    match set.weights {
        Some(weights) => data.with_weights(weights).map_err(refused),
        None => Ok(data),
    }
}

fn refused(error: HessboostError) -> ModelError {
    ModelError::Engine(error.to_string())
}
