use std::path::PathBuf;

use holdfast_engine::EngineError;
use holdfast_features::FeatureError;
use holdfast_lake::LakeError;
use holdfast_types::{BrokenPromise, ErrorKind};

/// What can go wrong between a request for features and its answer. No message holds a key or a value.
#[derive(Debug, thiserror::Error)]
pub enum FeatureStoreError {
    /// A request that cannot be answered.
    #[error("{0}")]
    Request(String),
    /// A view, feature, service or training set that is not there.
    #[error("{0}")]
    NotFound(String),
    /// A spine that cannot be read.
    #[error("the spine {file}: {reason}")]
    Spine {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A file that cannot be read or written.
    #[error("{what} {path}: {source}")]
    File {
        /// What was being done.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A training set that cannot be written.
    #[error("cannot write the training set: {0}")]
    Write(String),
    /// A training set that other versions of the program's libraries would write with other bytes.
    #[error(
        "training set {id} was written by {made_by}, this is {this}: its rows are those of then, its bytes are not; use that version for the same bytes"
    )]
    OtherWriter {
        /// Its id.
        id: String,
        /// What wrote it.
        made_by: String,
        /// What this is.
        this: String,
    },
    /// The point-in-time join refused.
    #[error(transparent)]
    Join(#[from] FeatureError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The lake refused.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// Arrow refused what was checked before.
    #[error("features: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// A promise did not hold.
    #[error(transparent)]
    Promise(#[from] BrokenPromise),
}

impl FeatureStoreError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Request(_) | Self::Spine { .. } | Self::File { .. } | Self::Write(_) => ErrorKind::InvalidInput,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::OtherWriter { .. } => ErrorKind::Conflict,
            Self::Join(error) => error.kind(),
            Self::Engine(error) => error.kind(),
            Self::Lake(error) => error.kind(),
            Self::Arrow(_) | Self::Promise(_) => ErrorKind::Bug,
        }
    }
}
