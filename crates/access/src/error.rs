use std::path::PathBuf;
use std::time::Duration;

use holdfast_engine::{Diagnostics, EngineError};
use holdfast_lake::LakeError;
use holdfast_types::ErrorKind;

/// What can go wrong with who may do what.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Mistakes in the policy or the users file.
    #[error("{0}")]
    Mistakes(Diagnostics),
    /// A file that cannot be read or written.
    #[error("{what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something that a person said cannot be.
    #[error("{0}")]
    Invalid(String),
    /// There is no user or token of the name.
    #[error("there is no {what} `{name}`{hint}")]
    NoPrincipal {
        /// A user or a token.
        what: &'static str,
        /// As asked for.
        name: String,
        /// A similar one.
        hint: String,
    },
    /// Nobody came in with this: a wrong name, a wrong password, a token that is unknown or over. Which of them is not said.
    #[error("{0}")]
    Refused(&'static str),
    /// Too many wrong passwords.
    #[error("too many wrong passwords: try again in {} s", .0.as_secs().max(1))]
    TooManyTries(Duration),
    /// The principal may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// A limit of the principal is reached: the same may pass later.
    #[error("{what}: try again in {} s", retry_after.as_secs().max(1))]
    Busy {
        /// Which limit.
        what: String,
        /// When it may pass.
        retry_after: Duration,
    },
    /// A limit of the principal that the same question will reach again.
    #[error("{0}")]
    LimitReached(String),
    /// An access cannot be written down, and it must be.
    #[error("accesses must be written down and cannot be at the moment, so nothing is answered: {0}")]
    NotAudited(String),
    /// The audit log is not as it was written.
    #[error("the audit log is not as it was written: {0}")]
    AuditBroken(String),
    /// The keys of an issuer cannot be had.
    #[error("the keys of the token issuer cannot be read: {0}")]
    NoKeys(String),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The lake refused or failed.
    #[error(transparent)]
    Lake(#[from] LakeError),
}

impl AccessError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Mistakes(_) => ErrorKind::InvalidConfig,
            Self::File { .. } | Self::Invalid(_) | Self::Refused(_) | Self::Forbidden(_) | Self::LimitReached(_) => {
                ErrorKind::InvalidInput
            }
            Self::NoPrincipal { .. } => ErrorKind::NotFound,
            Self::TooManyTries(_) | Self::Busy { .. } | Self::NotAudited(_) | Self::NoKeys(_) => ErrorKind::Retry,
            Self::AuditBroken(_) => ErrorKind::CorruptData,
            Self::Engine(error) => error.kind(),
            Self::Lake(error) => error.kind(),
        }
    }
}
