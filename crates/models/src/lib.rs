//! Models of churn and lifetime value: measured, trained, calibrated and explained, in memory.
//!
//! [`report`] says what a score is worth beside the majority class and a baseline; [`compare`] whether one is better than another. A [`Model`]
//! is boosted trees of an [`Engine`], with the [`Signature`] of its features, read and written as XGBoost does, and read from LightGBM. A [`Calibrator`] makes
//! probabilities of its log-odds. [`sequence`] holds an LSTM over weekly behaviour, [`hybrid`] trees that are told what it says; [`lifetime`] the
//! models of repeat buying; [`sentiment`] reads texts. A [`Profile`] tells later whether features and scores have moved,
//! [`AlwaysValid`] which of two arms of a test did better.
//!
//! This crate must not know lakes, tables, SQL or files, or the clock: rows are Arrow batches or slices, artefacts are bytes.

mod artefact;
mod boost;
mod bootstrap;
mod calibration;
mod drift;
mod error;
mod hess;
pub mod hybrid;
pub mod lifetime;
mod lightgbm;
mod measure;
pub mod sentiment;
pub mod sequence;
mod sequential;
mod siblings;
mod signature;
#[cfg(test)]
mod testing;
mod ubjson;

pub use artefact::{Format, library_of};
pub use boost::{Booster, Engine, Model, Parameters, Trained, TrainingSet, Useless, UselessBecause};
pub use bootstrap::{Bootstrap, Comparison, Estimate, Line, Report, compare, report};
pub use calibration::{Calibrator, ISOTONIC_ROWS_LEAST, Isotonic, Platt};
pub use drift::{Drift, Profile, Shift};
pub use error::ModelError;
pub use hess::Hessboost;
pub use measure::{Measure, Scores};
pub use sequential::{AlwaysValid, Arm, Look};
pub use signature::{Feature, FeatureKind, Matrix, Signature, labels_of};

/// A result of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;
