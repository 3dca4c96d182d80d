//! Models that rows are asked of: handed in by whoever starts the service, which knows nothing of trees and registries.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Fields, SchemaRef};
use async_trait::async_trait;
use holdfast_engine::Published;
use holdfast_types::ErrorKind;

/// Which version of a model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedVersion {
    /// The one that scores customers.
    Champion,
    /// The one that was trained last.
    Challenger,
    /// The one of this number.
    Number(i32),
}

/// What is asked of which model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedModel {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: AskedVersion,
    /// At most how many features are told that raise a probability, and how many that lower it.
    pub reasons: usize,
}

/// The models of a lake.
#[async_trait]
pub trait RowModels: Debug + Send + Sync {
    /// A version of a model as a run knows it.
    ///
    /// # Errors
    /// A model or version that is not there, that is not about single rows, or whose files are damaged.
    async fn open(&self, run: &Published, asked: &AskedModel) -> Result<Arc<dyn RowModel>, RowModelError>;
}

/// A version of a model that can be asked about rows, one by one.
pub trait RowModel: Debug + Send + Sync {
    /// Its number.
    fn version(&self) -> i32;

    /// Whether it reads a column of this name.
    fn reads(&self, column: &str) -> bool;

    /// Refuses rows of these columns.
    ///
    /// # Errors
    /// All columns that are missing or of a type that it cannot read.
    fn check(&self, columns: &Fields) -> Result<(), RowModelError>;

    /// The columns of its answers.
    fn schema(&self) -> SchemaRef;

    /// One row for each of these, in their order. It computes, and may take its time.
    ///
    /// # Errors
    /// Values that it cannot read, with feature and row.
    fn answer(&self, rows: &RecordBatch) -> Result<RecordBatch, RowModelError>;
}

/// Why a model does not answer, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct RowModelError {
    /// What the caller should do.
    pub kind: ErrorKind,
    /// In words.
    pub text: String,
}
