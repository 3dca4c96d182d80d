//! Probabilistic matching: [`Records`] are compared by the rules of a [`LinkageSpec`], a [`LinkageModel`] is learnt from them and weighs pairs.

mod blocking;
pub mod cluster;
mod common;
mod compare;
mod edges;
mod error;
pub mod estimate;
mod model;
pub mod quality;
mod random;
pub mod recipe;
mod records;
pub mod similarity;
mod spec;
#[cfg(test)]
mod tests;
mod threads;

pub use blocking::SkippedBlocks;
pub use cluster::{Guard, SizePoint, cluster, size_curve, size_suggested};
pub use common::{Common, Term};
pub use edges::{Edge, edge_batch, probability, weight_of};
pub use error::LinkageError;
pub use model::{
    ComparisonModel, Explanation, ExplanationStep, FitReport, LevelModel, LinkageModel, ScoreReport, Scorer, Threads,
};
pub use quality::{ClusterQuality, Quality, cluster_quality};
pub use records::{NamedColumn, Records};
pub use spec::{BlockingKey, BlockingRule, ColumnKind, Comparison, KeyExpression, Level, LinkageSpec};
