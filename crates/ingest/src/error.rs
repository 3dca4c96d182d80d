use datafusion::error::DataFusionError;
use holdfast_lake::{LakeError, describe_store_error, is_store_failure};
use holdfast_types::{BrokenPromise, ErrorKind, InvalidTableName};

/// What can go wrong while files become rows. Messages name places, never values.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// A source contract is wrong.
    #[error("{file}:{line}:{column}: {message}")]
    Contract {
        /// The TOML file.
        file: String,
        /// 1-based line.
        line: usize,
        /// 1-based column, in characters.
        column: usize,
        /// What is wrong there and what to write instead.
        message: String,
    },
    /// A local file or folder could not be read.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, on which path.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The folder that a source names is not there.
    #[error("source {source_name}: folder {folder} does not exist: check --from and the path in the source's contract")]
    MissingFolder {
        /// Which source.
        source_name: String,
        /// The folder, with its store.
        folder: String,
    },
    /// A file does not have the columns of its contract.
    #[error("{file}: {message}")]
    Layout {
        /// Which file.
        file: String,
        /// What does not fit, and what to do.
        message: String,
    },
    /// A file is not in the encoding that is read.
    #[error("{file}: {message}")]
    Encoding {
        /// Which file.
        file: String,
        /// What it looks like, and how to convert it.
        message: String,
    },
    /// A file ends in the middle.
    #[error(
        "{file} appears truncated at byte {offset}: {message}; deliver the whole file again, nothing of this file was stored"
    )]
    Truncated {
        /// Which file.
        file: String,
        /// Where the last thing that could be read ends.
        offset: u64,
        /// What is missing.
        message: String,
    },
    /// A file cannot be decoded at all.
    #[error("{file}: {message}")]
    Unreadable {
        /// Which file.
        file: String,
        /// Why, and what to do.
        message: String,
    },
    /// So many rows of a file are bad that the file is, not the rows.
    #[error(
        "{file}: {refused} of {read} rows were refused, more than max_quarantine_share = {share} allows; first at line {line}: {reason}{remedy}; nothing of this file was stored"
    )]
    TooManyRefused {
        /// Which file.
        file: String,
        /// How many rows were refused.
        refused: u64,
        /// How many rows were read.
        read: u64,
        /// The limit.
        share: f64,
        /// The first refused line.
        line: u64,
        /// Why it was refused.
        reason: String,
        /// The likely cause, with a leading separator, or nothing.
        remedy: String,
    },
    /// A file became another one while it was read.
    #[error(
        "{file} changed or went away while it was read: let its writer finish, then run again; nothing of this file was stored"
    )]
    ChangedWhileRead {
        /// Which file.
        file: String,
    },
    /// Other workers kept taking the batch number.
    #[error("source {source_name}: other workers planned {attempts} batches meanwhile: run again when they are done")]
    Contended {
        /// Which source.
        source_name: String,
        /// How often it was tried.
        attempts: usize,
    },
    /// The object store refused.
    #[error("{what}: {}", describe_store_error(source))]
    Store {
        /// What was being done, on which object.
        what: String,
        /// The store's answer.
        source: object_store::Error,
    },
    /// Record batches that do not fit their source's contract.
    #[error("source {source_name}: {message}")]
    Batch {
        /// Which source.
        source_name: String,
        /// What does not fit, by columns and types.
        message: String,
    },
    /// A name that no stream can have, or not any more.
    #[error("stream `{stream}`: {message}")]
    Stream {
        /// Its name.
        stream: String,
        /// What is wrong with it, and what to do.
        message: String,
    },
    /// A batch's number was used for other rows.
    #[error(
        "batch {batch} of stream `{stream}` is stored already, with other rows: give every load a stream name of its own, and every batch of it a number of its own"
    )]
    BatchTaken {
        /// Which stream.
        stream: String,
        /// Which number.
        batch: u64,
    },
    /// The object store did not answer in time.
    #[error("no answer from the store within {} s while {what} was written: whether it is there is open, send it again", timeout.as_secs_f64())]
    NoAnswer {
        /// Which object.
        what: String,
        /// How long was waited.
        timeout: std::time::Duration,
    },
    /// The books of ingestion cannot be understood.
    #[error("table {table}: {message}")]
    Ledger {
        /// Which table.
        table: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A table of a source cannot be understood.
    #[error("table {table}: {message}")]
    Table {
        /// Which table.
        table: String,
        /// What is wrong with it.
        message: String,
    },
    /// A table could not be had from the store.
    #[error("table {table} cannot be read: {message}")]
    Unread {
        /// Which table.
        table: String,
        /// The store's answer.
        message: String,
    },
    /// The lake refused.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A source's name cannot name a table.
    #[error(transparent)]
    Name(#[from] InvalidTableName),
    /// A promise did not hold.
    #[error(transparent)]
    Promise(#[from] BrokenPromise),
    /// A task of ours ended without an answer.
    #[error("{0} (a mistake in holdfast: please report it)")]
    Internal(String),
}

impl IngestError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Contract { .. } | Self::Name(_) => ErrorKind::InvalidConfig,
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                std::io::ErrorKind::PermissionDenied => ErrorKind::InvalidConfig,
                _ => ErrorKind::Retry,
            },
            Self::MissingFolder { .. } => ErrorKind::NotFound,
            Self::Layout { .. }
            | Self::Encoding { .. }
            | Self::Truncated { .. }
            | Self::Unreadable { .. }
            | Self::Batch { .. }
            | Self::Stream { .. }
            | Self::BatchTaken { .. } => ErrorKind::InvalidInput,
            Self::TooManyRefused { .. } => ErrorKind::Quarantine,
            Self::ChangedWhileRead { .. } | Self::NoAnswer { .. } => ErrorKind::Retry,
            Self::Contended { .. } => ErrorKind::Conflict,
            Self::Store { source, .. } => match source {
                object_store::Error::NotFound { .. } => ErrorKind::NotFound,
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                    ErrorKind::InvalidConfig
                }
                _ => ErrorKind::Retry,
            },
            Self::Ledger { .. } | Self::Table { .. } => ErrorKind::CorruptData,
            Self::Unread { .. } => ErrorKind::Retry,
            Self::Lake(error) => error.kind(),
            Self::Promise(_) | Self::Internal(_) => ErrorKind::Bug,
        }
    }

    /// The file at fault, when it is one file and not the source, the store or the lake.
    pub(crate) fn file(&self) -> Option<&str> {
        match self {
            Self::Layout { file, .. }
            | Self::Encoding { file, .. }
            | Self::Truncated { file, .. }
            | Self::Unreadable { file, .. }
            | Self::TooManyRefused { file, .. }
            | Self::ChangedWhileRead { file } => Some(file),
            _ => None,
        }
    }

    /// For a store that refuses to list, read or look up `what`. A precondition that fails is a file that changed.
    pub(crate) fn store(file: &str) -> impl Fn(object_store::Error) -> Self + use<> {
        let file = file.to_owned();
        move |source| match source {
            object_store::Error::Precondition { .. } => Self::ChangedWhileRead { file: file.clone() },
            source => Self::Store { what: format!("cannot read {file}"), source },
        }
    }

    /// For one of the books that cannot be read.
    pub(crate) fn unread(table: &'static str) -> impl Fn(DataFusionError) -> Self + Copy {
        move |error| {
            let message = error.strip_backtrace();
            if is_store_failure(&error) {
                Self::Unread { table: table.to_owned(), message }
            } else {
                Self::Ledger { table, message: format!("cannot be read: {message}") }
            }
        }
    }

    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(format!("ingestion stopped: {error}"))
    }
}
