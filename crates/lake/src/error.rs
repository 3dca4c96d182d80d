use datafusion::error::DataFusionError;
use deltalake_core::DeltaTableError;
use holdfast_types::{BrokenPromise, ErrorKind, InvalidTableName, TableName};

use crate::store::{describe_chain, describe_store_error};

/// What can go wrong in the lake.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// The folder or bucket is not a lake.
    #[error("no lake at {url}: {reason}")]
    NoLake {
        /// Where it was looked for.
        url: String,
        /// What is missing there, and what to do.
        reason: String,
    },
    /// The lake was written by a newer version of Holdfast.
    #[error(
        "the lake at {url} has format {found}, this version of holdfast knows up to {known}: use the version that wrote it, or a newer one"
    )]
    NewerLake {
        /// Which lake.
        url: String,
        /// The format it has.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// A URL that no store answers to.
    #[error("cannot open the object store at {url}: {reason}")]
    InvalidUrl {
        /// The URL as given.
        url: String,
        /// Why.
        reason: String,
    },
    /// A store on which rows could be lost.
    #[error(
        "the object store at {url} cannot keep a lake: {reason}, so that two writers could undo each other's commits; use a store that honours `If-None-Match: *` on PUT, as Amazon S3, Google Cloud Storage, Azure Blob Storage and SeaweedFS do, and leave AWS_CONDITIONAL_PUT unset"
    )]
    UnsafeStore {
        /// Which store.
        url: String,
        /// What it did.
        reason: String,
    },
    /// Credentials that cannot be had.
    #[error("the profile {profile} {reason}")]
    Profile {
        /// Which profile of AWS.
        profile: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The table does not exist in the lake.
    #[error("table {0} does not exist in the lake")]
    NoTable(TableName),
    /// There is no Delta table where one was to be read.
    #[error("there is no Delta table at {url}: check the path, and who may read there")]
    NoForeignTable {
        /// Where it was looked for.
        url: String,
    },
    /// The version asked for is not there (any more).
    #[error("table {table} has no version {version}")]
    NoVersion {
        /// Which table.
        table: TableName,
        /// Which version.
        version: u64,
    },
    /// Nothing was ever run in the environment.
    #[error("there is no environment `{name}`: {hint}; `holdfast run --env {name}` makes it")]
    NoEnvironment {
        /// Which.
        name: String,
        /// Which there are.
        hint: String,
    },
    /// An environment starts from what production has published.
    #[error("no run of {0} was published: an environment reads what production has, so run there first")]
    NotPublished(String),
    /// A table of production was to be changed from an environment.
    #[error("table {table} belongs to production, not to environment `{environment}`, which only reads it")]
    NotOwn {
        /// Which table.
        table: TableName,
        /// Which environment.
        environment: String,
    },
    /// Another worker took over and has committed under the same lease.
    #[error(
        "table {table}: the lease {lease} was taken over by another worker, which has committed since (generation {newest}, this one is {generation}): stop, it goes on from there"
    )]
    Superseded {
        /// Which table.
        table: TableName,
        /// Which lease.
        lease: String,
        /// The generation of the commit that was refused.
        generation: u64,
        /// The newest generation that committed.
        newest: i64,
    },
    /// The lease that a commit was to be made under has ended.
    #[error(
        "table {table}: the lease {lease} has ended, because this process stalled or could not renew it: take it again, then decide again"
    )]
    LeaseOver {
        /// Which table.
        table: TableName,
        /// Which lease.
        lease: String,
    },
    /// The rows do not fit the table.
    #[error("table {table}: {reason}")]
    Schema {
        /// Which table.
        table: String,
        /// What does not fit.
        reason: String,
    },
    /// A name that is not a table name.
    #[error(transparent)]
    Name(#[from] InvalidTableName),
    /// The object store refused.
    #[error("{what}: {}", describe_store_error(source))]
    Store {
        /// What was being done, on which object.
        what: String,
        /// The store's answer.
        source: object_store::Error,
    },
    /// The Delta log refused or could not be read.
    #[error("table {table}: {}", describe_delta_error(source))]
    Delta {
        /// Which table.
        table: String,
        /// The library's answer.
        source: Box<DeltaTableError>,
    },
    /// A data file could not be written or read.
    #[error("table {table}: cannot write a data file: {}", describe_parquet_error(source))]
    Parquet {
        /// Which table.
        table: String,
        /// The library's answer.
        source: parquet::errors::ParquetError,
    },
    /// Data files could not be merged.
    #[error("table {table}: cannot merge data files: {}", describe_merge_error(source))]
    Merge {
        /// Which table.
        table: TableName,
        /// The engine's answer.
        source: Box<DataFusionError>,
    },
    /// A file of the lake's own that cannot be understood.
    #[error("{path} in the lake is damaged: {reason}")]
    Damaged {
        /// Which object.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A promise did not hold.
    #[error(transparent)]
    Promise(#[from] BrokenPromise),
}

impl LakeError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoLake { .. }
            | Self::NoTable(_)
            | Self::NoForeignTable { .. }
            | Self::NoVersion { .. }
            | Self::NoEnvironment { .. }
            | Self::NotPublished(_) => ErrorKind::NotFound,
            Self::NewerLake { .. } | Self::Damaged { .. } => ErrorKind::CorruptData,
            Self::InvalidUrl { .. } | Self::UnsafeStore { .. } | Self::Profile { .. } => ErrorKind::InvalidConfig,
            Self::Superseded { .. } | Self::LeaseOver { .. } => ErrorKind::Conflict,
            Self::Schema { .. } | Self::Name(_) | Self::NotOwn { .. } => ErrorKind::InvalidInput,
            Self::Store { source, .. } => store_kind(source),
            Self::Delta { source, .. } => match source.as_ref() {
                DeltaTableError::ObjectStore { source } => store_kind(source),
                DeltaTableError::Transaction { .. } | DeltaTableError::VersionAlreadyExists(_) => ErrorKind::Conflict,
                DeltaTableError::NotATable(_) => ErrorKind::NotFound,
                DeltaTableError::InvalidJsonLog { .. } | DeltaTableError::InvalidStatsJson { .. } => {
                    ErrorKind::CorruptData
                }
                _ => ErrorKind::Retry,
            },
            Self::Parquet { .. } => ErrorKind::Retry,
            Self::Merge { source, .. } if is_store_failure(source) => ErrorKind::Retry,
            Self::Merge { source, .. } => match source.find_root() {
                DataFusionError::ParquetError(_) | DataFusionError::ArrowError(..) => ErrorKind::CorruptData,
                DataFusionError::Internal(_) => ErrorKind::Bug,
                _ => ErrorKind::Retry,
            },
            Self::Promise(_) => ErrorKind::Bug,
        }
    }

    pub(crate) fn delta(table: impl std::fmt::Display) -> impl FnOnce(DeltaTableError) -> Self {
        move |source| Self::Delta { table: table.to_string(), source: Box::new(source) }
    }

    pub(crate) fn merge(table: &TableName) -> impl FnOnce(DataFusionError) -> Self + use<> {
        let table = table.clone();
        move |source| Self::Merge { table, source: Box::new(source) }
    }

    pub(crate) fn store(what: impl Into<String>) -> impl FnOnce(object_store::Error) -> Self {
        let what = what.into();
        move |source| Self::Store { what, source }
    }
}

/// Whether it was the store that failed while a table was read, and not the table: then nothing is wrong with what is stored.
pub fn is_store_failure(error: &DataFusionError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<object_store::Error>() {
            return true;
        }
        cause = error.source();
    }
    // When a file's footer cannot be had, DataFusion keeps no more than the text of the store's answer.
    error.to_string().contains("Object Store error: ")
}

/// Whether a file was not there: vacuum deletes those that no version within the retention has.
pub fn is_missing_file(error: &DataFusionError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<object_store::Error>() {
            return matches!(error, object_store::Error::NotFound { .. });
        }
        cause = error.source();
    }
    let text = error.to_string();
    text.contains("Object Store error: ") && text.contains("not found")
}

fn store_kind(error: &object_store::Error) -> ErrorKind {
    match error {
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => ErrorKind::Conflict,
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. }
        | object_store::Error::UnknownConfigurationKey { .. }
        | object_store::Error::InvalidPath { .. }
        | object_store::Error::NotSupported { .. } => ErrorKind::InvalidConfig,
        _ => ErrorKind::Retry,
    }
}

fn describe_delta_error(error: &DeltaTableError) -> String {
    match error {
        DeltaTableError::ObjectStore { source } => describe_store_error(source),
        other => describe_chain(other),
    }
}

fn describe_merge_error(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::ObjectStore(error) => describe_store_error(error),
        DataFusionError::ResourcesExhausted(text) => format!("not enough memory: {text}"),
        // A kernel quotes the value it could not convert, which may be a customer's.
        DataFusionError::ArrowError(..) => "a column does not hold what the table says it does".to_owned(),
        other => other.strip_backtrace(),
    }
}

fn describe_parquet_error(error: &parquet::errors::ParquetError) -> String {
    describe_chain(error)
}

#[cfg(test)]
mod tests {
    use parquet::errors::ParquetError;

    use super::*;

    #[test]
    fn a_store_that_fails_is_not_a_table_that_is_damaged() {
        let store = || object_store::Error::Generic { store: "s", source: "busy".into() };
        for error in [
            DataFusionError::from(store()),
            DataFusionError::from(ParquetError::External(Box::new(store()))),
            DataFusionError::from(ParquetError::General(format!(
                "Failed to fetch metadata: Object Store error: {}",
                store()
            ))),
        ] {
            assert!(is_store_failure(&error), "{error}");
        }
        assert!(!is_store_failure(&DataFusionError::from(ParquetError::General("no footer".to_owned()))));
    }
}
