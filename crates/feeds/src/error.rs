use holdfast_ingest::IngestError;
use holdfast_lake::{LakeError, describe_store_error};
use holdfast_types::ErrorKind;

use crate::postgres::PostgresError;

/// What can go wrong while a feed is read. Messages name places and positions, never values.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The other side cannot be reached, or broke off.
    #[error("{what}: {reason}")]
    Unreachable {
        /// What was being done, with whom.
        what: String,
        /// What happened.
        reason: String,
    },
    /// The other side does not let us do what the contract asks for, or does not know it.
    #[error("{what}: {reason}")]
    Refused {
        /// What was being done, with whom.
        what: String,
        /// Its answer, and what to do.
        reason: String,
    },
    /// The records that come next are no longer there.
    #[error("{what}: {reason}")]
    Gap {
        /// Which partition.
        what: String,
        /// Where the lake stands, what is still there, and what to do.
        reason: String,
    },
    /// What the other side sent cannot be understood.
    #[error("{what}: {reason}")]
    Unreadable {
        /// Which partition, and at which position.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An object of a feed in the inbox is not what was written there.
    #[error("{path} in the lake is damaged: {reason}")]
    Damaged {
        /// Which object.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The object store refused.
    #[error("{what}: {}", describe_store_error(source))]
    Store {
        /// What was being done, on which object.
        what: String,
        /// The store's answer.
        source: object_store::Error,
    },
    /// The store did not answer.
    #[error("{what}: no answer within {seconds} s")]
    NoAnswer {
        /// What was being done, on which object.
        what: String,
        /// How long it was waited for.
        seconds: f64,
    },
    /// PostgreSQL, or what is kept of it in the lake.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The contract, or the inbox, refused.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The lake refused.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A feed broke the rules of its trait, or a task of ours ended without an answer.
    #[error("{0} (a mistake in holdfast: please report it)")]
    Internal(String),
}

impl FeedError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } => ErrorKind::Retry,
            Self::Refused { .. } => ErrorKind::InvalidConfig,
            Self::Gap { .. } => ErrorKind::NotFound,
            Self::Unreadable { .. } | Self::Damaged { .. } => ErrorKind::CorruptData,
            Self::Store { source, .. } => match source {
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                    ErrorKind::InvalidConfig
                }
                _ => ErrorKind::Retry,
            },
            Self::Postgres(error) => error.kind(),
            Self::Ingest(error) => error.kind(),
            Self::Lake(error) => error.kind(),
            Self::Internal(_) => ErrorKind::Bug,
        }
    }

    pub(crate) fn store(what: String) -> impl FnOnce(object_store::Error) -> Self {
        move |source| Self::Store { what, source }
    }

    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(format!("a feed stopped: {error}"))
    }
}
