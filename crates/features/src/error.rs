use std::ops::RangeInclusive;

use arrow::datatypes::DataType;
use holdfast_types::{BrokenPromise, ErrorKind};

/// What can go wrong between a spine, the histories of views and the answer. No message holds a key or a value.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// A view whose definition cannot be kept as history.
    #[error("view {view}: {reason}")]
    View {
        /// Its name.
        view: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A request that cannot be answered, whatever the rows are.
    #[error("{0}")]
    Request(String),
    /// A feature that its view does not have.
    #[error("view {view} has no feature {feature}{suggestion}; it has: {known}", known = .known.join(", "))]
    UnknownFeature {
        /// The view.
        view: String,
        /// What was asked for.
        feature: String,
        /// Either empty or `: did you mean …?`.
        suggestion: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Two columns of the answer that would have one name.
    #[error("two columns of the answer are called {column}: {first} and {second}; {remedy}")]
    Collision {
        /// The name.
        column: String,
        /// Where the first comes from.
        first: String,
        /// Where the second comes from.
        second: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A column that is not there.
    #[error("{place} has no column {column}")]
    MissingColumn {
        /// Spine, changes or a file.
        place: String,
        /// The column.
        column: String,
    },
    /// A column of a type that cannot be used for what it is.
    #[error("{place}: column {column} is {found}, expected {expected}")]
    ColumnType {
        /// Spine, changes or a file.
        place: String,
        /// The column.
        column: String,
        /// What it is.
        found: DataType,
        /// What it should be.
        expected: String,
    },
    /// A row that cannot be used. Rows are counted from 0 over all batches.
    #[error("{place}, row {row}: column {column} {reason}")]
    Row {
        /// Spine or changes.
        place: String,
        /// Which row.
        row: usize,
        /// Which column.
        column: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The spine's own stream failed.
    #[error("the spine cannot be read: {0}")]
    Spine(#[source] arrow::error::ArrowError),
    /// Files of one bucket that hold the same versions.
    #[error(
        "view {view}, bucket {bucket}: files {first} and {second} both hold version {version}; list either what was merged or what it became"
    )]
    VersionsOverlap {
        /// The view.
        view: String,
        /// The bucket.
        bucket: u32,
        /// One file.
        first: String,
        /// The other.
        second: String,
        /// The first version they share.
        version: i64,
    },
    /// Files that cannot be merged into one.
    #[error("view {view}: {reason}")]
    Compaction {
        /// The view.
        view: String,
        /// Why not.
        reason: String,
    },
    /// A file that is not what it was listed as.
    #[error("history file {file}: {reason}")]
    File {
        /// Its path.
        file: String,
        /// What does not fit.
        reason: String,
    },
    /// A file that cannot be read or written.
    #[error("history file {file}: {source}")]
    Parquet {
        /// Its path.
        file: String,
        /// What the library said.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A request for versions that are not there.
    #[error("view {view} as of version {version}: the files begin with version {begin}", begin = .versions.start())]
    VersionGone {
        /// The view.
        view: String,
        /// What was asked for.
        version: i64,
        /// What there is.
        versions: RangeInclusive<i64>,
    },
    /// Even a small part of the spine has too much to answer.
    #[error(
        "{rows} spine rows with their features take more than the {memory_bytes} bytes allowed; ask for fewer features, or allow more"
    )]
    Memory {
        /// How many rows were tried last.
        rows: usize,
        /// What is allowed.
        memory_bytes: usize,
    },
    /// Arrow refused what was checked before.
    #[error("features: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// A task ended early.
    #[error("a part of the lookup ended early: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// A promise did not hold.
    #[error(transparent)]
    Promise(#[from] BrokenPromise),
}

impl FeatureError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::View { .. } => ErrorKind::InvalidConfig,
            Self::UnknownFeature { .. } | Self::VersionGone { .. } => ErrorKind::NotFound,
            Self::Request(_)
            | Self::Collision { .. }
            | Self::MissingColumn { .. }
            | Self::ColumnType { .. }
            | Self::Row { .. }
            | Self::Spine(_)
            | Self::Compaction { .. }
            | Self::Memory { .. } => ErrorKind::InvalidInput,
            Self::VersionsOverlap { .. } | Self::File { .. } => ErrorKind::CorruptData,
            Self::Parquet { source, .. } => parquet_kind(source),
            Self::Arrow(_) | Self::Task(_) | Self::Promise(_) => ErrorKind::Bug,
        }
    }

    pub(crate) fn parquet(file: &object_store::path::Path) -> impl Fn(parquet::errors::ParquetError) -> Self + use<> {
        let file = file.to_string();
        move |source| Self::Parquet { file: file.clone(), source }
    }
}

/// The store's failures arrive wrapped by the Parquet library.
fn parquet_kind(error: &parquet::errors::ParquetError) -> ErrorKind {
    let parquet::errors::ParquetError::External(source) = error else { return ErrorKind::CorruptData };
    match source.downcast_ref::<object_store::Error>() {
        Some(object_store::Error::NotFound { .. }) => ErrorKind::NotFound,
        Some(object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }) => {
            ErrorKind::InvalidConfig
        }
        _ => ErrorKind::Retry,
    }
}
