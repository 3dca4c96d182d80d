use std::path::PathBuf;

use holdfast_engine::EngineError;
use holdfast_graph::GraphError;
use holdfast_lake::LakeError;
use holdfast_types::{BrokenPromise, ErrorKind};

/// What can go wrong in identity resolution.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A rule file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A rule file with a mistake.
    #[error("{path}:{line}:{column}: {message}")]
    Rules {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong, and what to do.
        message: String,
    },
    /// The key is not 32 bytes in hexadecimal.
    #[error("{0} does not hold an identity key: 64 hexadecimal digits are expected")]
    Key(PathBuf),
    /// The lake was made with another key.
    #[error(
        "the identifiers in {0} were hashed with another identity key, so no record would find its customer: give the key that the lake was made with (--identity-key FILE, or key_file in [identity] of holdfast.toml)"
    )]
    OtherKey(String),
    /// An identifier's SQL expression does not fit its source.
    #[error("identifiers of source {name}: {reason}")]
    Source {
        /// Which source.
        name: String,
        /// What the planner says.
        reason: String,
    },
    /// Another process resolved identities at the same time.
    #[error("identity was resolved by another process at the same time: run again")]
    Concurrent,
    /// Somebody else decided something first.
    #[error(
        "decision {0} was made by somebody else at the same time: look at it with `holdfast identity decisions`, then decide again"
    )]
    DecidedMeanwhile(i64),
    /// What was asked about does not exist.
    #[error("{0}")]
    Unknown(String),
    /// What was asked for cannot be done.
    #[error("{0}")]
    Refused(String),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The lake refused.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A promise did not hold.
    #[error(transparent)]
    Promise(#[from] BrokenPromise),
    /// What is stored does not make a graph.
    #[error("identity graph: {0}")]
    Graph(Box<GraphError>),
    /// Stored tables that are not as this crate writes them.
    #[error("identity tables are damaged: {0}")]
    Damaged(String),
}

impl IdentityError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreadable { .. } | Self::Rules { .. } | Self::Key(_) | Self::OtherKey(_) | Self::Source { .. } => {
                ErrorKind::InvalidConfig
            }
            Self::Concurrent | Self::DecidedMeanwhile(_) => ErrorKind::Conflict,
            Self::Unknown(_) => ErrorKind::NotFound,
            Self::Refused(_) => ErrorKind::InvalidInput,
            Self::Engine(error) => error.kind(),
            Self::Lake(error) => error.kind(),
            Self::Promise(_) => ErrorKind::Bug,
            // Identifiers and evidence come from tables that this crate wrote.
            Self::Graph(_) | Self::Damaged(_) => ErrorKind::CorruptData,
        }
    }
}

impl From<GraphError> for IdentityError {
    fn from(error: GraphError) -> Self {
        Self::Graph(Box::new(error))
    }
}
