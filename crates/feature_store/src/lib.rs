//! The feature store: training sets from kept history, and features from memory.
//!
//! ```text
//!  service or features ──► Retrieval: versions of views, their history as one run published it
//!                              ├── spine ──► HistoricalFeatures ──► a training set, recorded under its id
//!                              └── keys ───► OnlineStore: packed rows in memory
//!                                            behind both: on-demand features, expressions over what was found
//! ```
//!
//! What a view is, and how its history is kept, the engine knows; how history is joined with a spine, `holdfast-features`. This crate must not know stages, protocols or the command
//! line.

mod dataset;
mod dataset_rows;
mod error;
mod historical;
mod on_demand;
mod online;
mod retrieval;
mod served;
mod spine;
mod training_set;

pub use dataset::{Dataset, DatasetLabel, DatasetOutput, DatasetSpine, DatasetTable, Datasets};
pub use dataset_rows::{DatasetRows, SentSpine, make_dataset_rows, replay_dataset_rows};
pub use error::FeatureStoreError;
pub use historical::{HistoricalFeatures, HistoricalOptions, Label, ValueStatus, historical_features};
pub use on_demand::{OnDemand, ShownPart};
pub use online::{OnlineColumns, OnlineKeys, OnlinePlan, OnlineShare, OnlineStore, ViewColumns, ViewInMemory};
pub use retrieval::{Asked, ReadFeature, Retrieval, RetrievedView};
pub use served::{ComparedFeature, ServedComparison, ServedLog, compare_served, forget_served};
pub use spine::{Spine, SpineFormat};
pub use training_set::{Made, TrainingSetRequest, make_training_set, replay_training_set};

/// A result of this crate.
pub type Result<T, E = FeatureStoreError> = std::result::Result<T, E>;
