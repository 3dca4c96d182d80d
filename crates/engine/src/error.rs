use std::path::PathBuf;

use datafusion::error::DataFusionError;
use holdfast_features::FeatureError;
use holdfast_lake::LakeError;
use holdfast_types::{BrokenPromise, ErrorKind, TableName};

use crate::diagnostic::Diagnostics;
use crate::executor::ExecutorError;

/// What can go wrong in sessions, stages and runs.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Mistakes in stage files.
    #[error("{0}")]
    Mistakes(Diagnostics),
    /// A file or folder that cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A query that cannot be planned, or is not a query.
    #[error("{message}")]
    Query {
        /// What is wrong, with line and column where the planner knows them.
        message: String,
    },
    /// A query or stage that failed while it ran.
    #[error("{what} failed: {}", describe(source))]
    Execution {
        /// What ran.
        what: String,
        /// The engine's answer.
        source: Box<DataFusionError>,
    },
    /// An executor elsewhere did not give the rows of a stage.
    #[error("stage {table} failed: {source}")]
    Elsewhere {
        /// The stage.
        table: TableName,
        /// Why.
        source: ExecutorError,
    },
    /// An expectation marked `fail` was not met: nothing was committed.
    #[error(
        "{table}: expectation `{expectation}` ({condition}) failed for {rows}, so no version was made: look at the rows with `holdfast sql`, mend the data or the expectation"
    )]
    Expectation {
        /// The stage.
        table: TableName,
        /// Its name.
        expectation: String,
        /// Its condition.
        condition: String,
        /// How many rows, in words.
        rows: String,
    },
    /// Another run changed the same tables meanwhile.
    #[error("{table} was changed by another run at the same time: run again")]
    Concurrent {
        /// Which table.
        table: TableName,
    },
    /// A selection that names nothing.
    #[error("no stage is called `{name}`{hint}")]
    NoStage {
        /// As given.
        name: String,
        /// A suggestion, or nothing.
        hint: String,
    },
    /// A selection by a tag that no stage has.
    #[error("no stage has the tag `{tag}`: {hint}")]
    NoTag {
        /// As given.
        tag: String,
        /// What to write instead.
        hint: String,
    },
    /// A selection with a stage whose inputs are not there and not selected either.
    #[error("{stage} reads {input}, which was never built: build it first, or with it (`--select +{stage}`)")]
    NotBuilt {
        /// The stage.
        stage: TableName,
        /// What it reads.
        input: TableName,
    },
    /// There is no published run yet.
    #[error("the lake at {0} has no published run yet: use `holdfast run` first")]
    NothingPublished(String),
    /// A view, feature, service or version that is not there.
    #[error("{0}")]
    NoFeature(String),
    /// Others registered versions again and again.
    #[error("the {what} `{name}` was registered by others each time it was tried: run again")]
    Registering {
        /// View or service.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// Rows that a feature view cannot have.
    #[error("feature view {table}: {reason}")]
    FeatureRows {
        /// The view's table.
        table: TableName,
        /// What is wrong with them, and what to do.
        reason: String,
    },
    /// History could not be kept or read.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// The lake refused.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A promise did not hold.
    #[error(transparent)]
    Promise(#[from] BrokenPromise),
}

impl EngineError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Mistakes(_) | Self::Unreadable { .. } => ErrorKind::InvalidConfig,
            Self::Query { .. } | Self::NotBuilt { .. } => ErrorKind::InvalidInput,
            Self::Execution { source, .. } => execution_kind(source),
            Self::Elsewhere { source, .. } => source.kind(),
            Self::Expectation { .. } => ErrorKind::Quarantine,
            Self::Concurrent { .. } => ErrorKind::Conflict,
            Self::NoStage { .. } | Self::NoTag { .. } | Self::NothingPublished(_) | Self::NoFeature(_) => {
                ErrorKind::NotFound
            }
            Self::Registering { .. } => ErrorKind::Conflict,
            Self::FeatureRows { .. } => ErrorKind::InvalidInput,
            Self::Feature(error) => error.kind(),
            Self::Lake(error) => error.kind(),
            Self::Promise(_) => ErrorKind::Bug,
        }
    }

    /// Whether the plan did not fit into the memory that its session has.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Execution { source, .. } => matches!(source.find_root(), DataFusionError::ResourcesExhausted(_)),
            Self::Elsewhere { source, .. } => matches!(source, ExecutorError::OutOfMemory(_)),
            _ => false,
        }
    }

    pub(crate) fn execution(what: impl Into<String>) -> impl FnOnce(DataFusionError) -> Self {
        let what = what.into();
        move |source| Self::Execution { what, source: Box::new(source) }
    }
}

fn execution_kind(error: &DataFusionError) -> ErrorKind {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(_) | DataFusionError::IoError(_) => ErrorKind::Retry,
        DataFusionError::ObjectStore(_) => ErrorKind::Retry,
        DataFusionError::Internal(_) => ErrorKind::Bug,
        DataFusionError::ParquetError(_) if holdfast_lake::is_store_failure(error) => ErrorKind::Retry,
        DataFusionError::ParquetError(_) => ErrorKind::CorruptData,
        _ => ErrorKind::InvalidInput,
    }
}

/// The root of a DataFusion error without its wrappers and backtraces.
pub(crate) fn describe(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(text) => {
            format!("not enough memory: {text} (raise memory_mb in holdfast.toml)")
        }
        DataFusionError::SchemaError(error, _) => error.to_string(),
        DataFusionError::ObjectStore(error) => holdfast_lake::describe_store_error(error),
        // A kernel quotes the value it could not convert, which may be a customer's.
        DataFusionError::ArrowError(error, _) => without_quoted(&error.to_string()),
        other => other.strip_backtrace(),
    }
}

/// The text with what stands in quotation marks left out: it may be a customer's.
pub fn without_quoted(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for (index, part) in text.split('\'').enumerate() {
        clean.push_str(if index % 2 == 0 { part } else { "'…'" });
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_left_out_of_errors() {
        let error =
            arrow::error::ArrowError::CastError("Cannot cast string 'Wei Zhang' to value of Int64 type".to_owned());
        let shown = describe(&DataFusionError::ArrowError(Box::new(error), None));
        assert!(shown.contains("Int64") && !shown.contains("Wei"), "{shown}");
    }
}
