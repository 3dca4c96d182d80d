use std::path::PathBuf;

use ballista_core::error::BallistaError;
use holdfast_engine::ExecutorError;
use holdfast_types::ErrorKind;

/// What can go wrong with a cluster, before a stage is given to it or in one of its programs.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// An address that is none.
    #[error("`{address}` is no address of a scheduler: write df://host:port")]
    Address {
        /// As given.
        address: String,
    },
    /// An address that cannot be listened on.
    #[error("cannot listen on {address}: {source}{}", if source.kind() == std::io::ErrorKind::AddrInUse { "; another program has the port: choose another, or stop that program" } else { "" })]
    Bind {
        /// As given.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A setting out of its limits.
    #[error("{setting}: {reason}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        reason: String,
    },
    /// The folder for shuffled rows cannot be used.
    #[error("cannot use {path} for rows on their way: {source}")]
    WorkFolder {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The scheduler does not answer, or has nobody to work.
    #[error(transparent)]
    Scheduler(#[from] ExecutorError),
    /// An executor that lost its scheduler.
    #[error(
        "the scheduler at {scheduler} does not answer any more, so that this executor is of no use: start it again once the scheduler is back"
    )]
    SchedulerLost {
        /// Its address.
        scheduler: String,
    },
    /// A program of the cluster failed.
    #[error("the {program} failed: {reason}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        reason: String,
        /// What to do.
        kind: ErrorKind,
    },
}

impl ClusterError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Address { .. } | Self::Setting { .. } => ErrorKind::InvalidInput,
            Self::Bind { .. } | Self::WorkFolder { .. } => ErrorKind::InvalidConfig,
            Self::Scheduler(error) => error.kind(),
            Self::SchedulerLost { .. } => ErrorKind::Retry,
            Self::Program { kind, .. } => *kind,
        }
    }

    pub(crate) fn program(program: &'static str) -> impl FnOnce(BallistaError) -> Self {
        move |error| {
            let kind = match &error {
                BallistaError::Configuration(_) => ErrorKind::InvalidConfig,
                _ => ErrorKind::Retry,
            };
            Self::Program { program, reason: error.to_string(), kind }
        }
    }
}
