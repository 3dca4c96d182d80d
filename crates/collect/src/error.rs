use std::net::SocketAddr;

use holdfast_ingest::IngestError;
use holdfast_lake::describe_store_error;
use holdfast_types::ErrorKind;

/// What can keep the server from starting, or end it. What is wrong with one request is told to its client alone.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// A setting out of its limits.
    #[error("setting `{setting}` must be {reason}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        reason: String,
    },
    /// The file with write keys cannot be used.
    #[error("{file}: {reason}")]
    Keys {
        /// Which file.
        file: String,
        /// What is wrong with it, and what to write.
        reason: String,
    },
    /// Listening beyond this machine without keys.
    #[error(
        "{address} can be reached from other machines and no write key is required: give keys with --keys-file, or listen on 127.0.0.1"
    )]
    Exposed {
        /// Where it was asked to listen.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; name a free HOST:PORT of this machine with --listen")]
    Bind {
        /// The address as given.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The inbox could not be read at the start.
    #[error("{what}: {}", describe_store_error(source))]
    Store {
        /// What was being done, on which object.
        what: String,
        /// The store's answer.
        source: object_store::Error,
    },
    /// The listener failed while running.
    #[error("the HTTP server failed: {0}")]
    Transport(std::io::Error),
    /// The inbox refused.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// A task of ours ended without an answer.
    #[error("{0} (a mistake in holdfast: please report it)")]
    Internal(String),
}

impl CollectError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Setting { .. } | Self::Keys { .. } | Self::Exposed { .. } | Self::Bind { .. } => {
                ErrorKind::InvalidConfig
            }
            Self::Store { source, .. } => match source {
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                    ErrorKind::InvalidConfig
                }
                _ => ErrorKind::Retry,
            },
            Self::Transport(_) => ErrorKind::Retry,
            Self::Ingest(error) => error.kind(),
            Self::Internal(_) => ErrorKind::Bug,
        }
    }

    pub(crate) fn store(what: String) -> impl FnOnce(object_store::Error) -> Self {
        move |source| Self::Store { what, source }
    }
}
