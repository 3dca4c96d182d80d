use std::net::SocketAddr;
use std::time::Duration;

use arrow::error::ArrowError;
use arrow_flight::error::FlightError;
use datafusion::error::DataFusionError;
use holdfast_access::AccessError;
use holdfast_engine::EngineError;
use holdfast_feature_store::FeatureStoreError;
use holdfast_ingest::IngestError;
use holdfast_types::{ErrorKind, TableName};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::RowModelError;

/// When a client that was told to come back should do so.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What can go wrong in the service, before it starts or in one call.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting out of its limits.
    #[error("setting `{setting}`: {reason}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        reason: String,
    },
    /// The token cannot be used.
    #[error("the token cannot be used: {reason}")]
    Token {
        /// Why, without the token.
        reason: String,
    },
    /// Listening beyond this machine without a token.
    #[error(
        "{address} can be reached from other machines and nobody has to be known: give a token with --token-file or users with --users, or listen on 127.0.0.1"
    )]
    Exposed {
        /// Where it was asked to listen.
        address: SocketAddr,
    },
    /// Puts without a token where reading needs one.
    #[error(
        "reading needs a token and putting would need none: give one for it with --put-token-file, or leave --accept-puts out"
    )]
    PutsUnprotected,
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", describe_bind_error(source))]
    Bind {
        /// The address as given.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The server failed while running.
    #[error("the Flight server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// No token came, or a wrong one.
    #[error("a token is required: send the header `authorization: Bearer <token>`")]
    Unauthenticated,
    /// A token came that is not for this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The request cannot be understood, or asks for what cannot be.
    #[error("{0}")]
    Request(String),
    /// A call that this service does not offer.
    #[error("{0}")]
    Unsupported(String),
    /// The published run has no such table.
    #[error("the lake has no published table {name}{}", suggest(nearest.as_ref()))]
    NoTable {
        /// As asked for.
        name: TableName,
        /// The most similar table there is.
        nearest: Option<TableName>,
    },
    /// The run a ticket was made for is not in the lake any more.
    #[error("run {sequence} is not there any more (the newest is {newest}): ask for a new ticket with GetFlightInfo")]
    RunGone {
        /// The run of the ticket, the transaction or the session.
        sequence: u64,
        /// The newest run.
        newest: u64,
    },
    /// Something came back that was altered, or that a service of another lake gave out.
    #[error("this is a {what} that this lake's service did not make: {remedy}")]
    NotOurs {
        /// What it was sent as.
        what: &'static str,
        /// How to come by a good one.
        remedy: &'static str,
    },
    /// The secret that tickets are sealed with was damaged.
    #[error(
        "the lake's secret of tickets, _holdfast/{0}, is damaged: delete it and start the services of the lake anew, and tickets that were given out are over"
    )]
    SealSecret(&'static str),
    /// Every place is taken, and so is every place to wait.
    #[error("{running} queries are running and {waiting} are waiting, which is the limit: try again later")]
    Busy {
        /// Settings' limit of running queries.
        running: usize,
        /// Settings' limit of waiting queries.
        waiting: usize,
    },
    /// The pipeline has no such source.
    #[error("there is no source `{name}`: {hint}")]
    NoSource {
        /// As asked for.
        name: String,
        /// A similar one, or those that there are.
        hint: String,
    },
    /// There is no room for another stream or batch.
    #[error("{what}: try again in {} s", RETRY_AFTER.as_secs())]
    PutsFull {
        /// What is full.
        what: String,
    },
    /// A client that puts took longer than it may.
    #[error("stopped after {} s, {what}", limit.as_secs_f64())]
    PutTimeout {
        /// The limit.
        limit: Duration,
        /// Of what.
        what: &'static str,
    },
    /// The call took longer than it may.
    #[error("stopped after {} s, the limit for one query: ask for less, or read faster", .0.as_secs_f64())]
    Deadline(Duration),
    /// Its client has cancelled it.
    #[error("the query was cancelled by CancelFlightInfo or CancelQuery")]
    Cancelled,
    /// The service is stopping.
    #[error("the service is shutting down: connect again later")]
    Stopping,
    /// The feature view has more than one row for a customer.
    #[error(
        "{0} has several rows for one customer_id, so it cannot answer a feature call: it must be keyed by customer_id"
    )]
    NotKeyed(TableName),
    /// Who comes in is refused, may not do this, or has reached a limit.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A certificate or key that TLS cannot use.
    #[error("TLS cannot be used: {0}")]
    Tls(String),
    /// A batch cannot be taken, or not now.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The feature store refused or failed.
    #[error(transparent)]
    Features(Box<FeatureStoreError>),
    /// A model cannot be asked, or not about these rows.
    #[error(transparent)]
    Model(#[from] RowModelError),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A query failed while it was planned or run.
    #[error("{}", describe_query_error(.0))]
    Query(#[from] DataFusionError),
    /// An answer could not be put into record batches.
    #[error("cannot build the answer: {0}")]
    Arrow(#[from] ArrowError),
    /// An answer could not be encoded.
    #[error("cannot encode the answer: {0}")]
    Encode(FlightError),
}

impl ServeError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Setting { .. }
            | Self::Token { .. }
            | Self::Exposed { .. }
            | Self::PutsUnprotected
            | Self::Tls(_)
            | Self::NotKeyed(_) => ErrorKind::InvalidConfig,
            Self::Bind { source, .. } => match source.kind() {
                std::io::ErrorKind::Interrupted | std::io::ErrorKind::OutOfMemory => ErrorKind::Retry,
                _ => ErrorKind::InvalidConfig,
            },
            Self::Unauthenticated
            | Self::Forbidden(_)
            | Self::Request(_)
            | Self::Unsupported(_)
            | Self::Cancelled
            | Self::NotOurs { .. } => ErrorKind::InvalidInput,
            Self::SealSecret(_) => ErrorKind::CorruptData,
            Self::NoTable { .. } | Self::NoSource { .. } | Self::RunGone { .. } => ErrorKind::NotFound,
            Self::Transport(_)
            | Self::Busy { .. }
            | Self::PutsFull { .. }
            | Self::PutTimeout { .. }
            | Self::Deadline(_)
            | Self::Stopping => ErrorKind::Retry,
            Self::Access(error) => error.kind(),
            Self::Ingest(error) => error.kind(),
            Self::Features(error) => error.kind(),
            Self::Model(error) => error.kind,
            Self::Engine(error) => error.kind(),
            Self::Query(error) => query_kind(error),
            Self::Arrow(_) | Self::Encode(_) => ErrorKind::Bug,
        }
    }

    /// The gRPC status: decided by the kind, but for the six situations that gRPC clients know a code of their own for. Who
    /// is told that something is full is told when to come back, too.
    pub(crate) fn status(&self) -> Status {
        self.status_with("")
    }

    /// The same, with more to say behind it.
    pub(crate) fn status_with(&self, more: &str) -> Status {
        let code = match self {
            Self::Unauthenticated | Self::Access(AccessError::Refused(_)) => Code::Unauthenticated,
            Self::Forbidden(_) | Self::Access(AccessError::Forbidden(_)) => Code::PermissionDenied,
            Self::Access(AccessError::Busy { .. } | AccessError::TooManyTries(_) | AccessError::LimitReached(_)) => {
                Code::ResourceExhausted
            }
            Self::Unsupported(_) => Code::Unimplemented,
            Self::Cancelled => Code::Cancelled,
            Self::Busy { .. } | Self::PutsFull { .. } => Code::ResourceExhausted,
            Self::Deadline(_) | Self::PutTimeout { .. } => Code::DeadlineExceeded,
            other => match other.kind() {
                ErrorKind::Retry => Code::Unavailable,
                ErrorKind::Conflict => Code::Aborted,
                ErrorKind::InvalidInput => Code::InvalidArgument,
                ErrorKind::InvalidConfig | ErrorKind::Quarantine => Code::FailedPrecondition,
                ErrorKind::NotFound => Code::NotFound,
                ErrorKind::CorruptData => Code::DataLoss,
                ErrorKind::Bug => Code::Internal,
            },
        };
        let message = format!("{self}{more}");
        let retry_after = match self {
            Self::Access(AccessError::Busy { retry_after, .. } | AccessError::TooManyTries(retry_after)) => {
                Some(*retry_after)
            }
            // The same question would reach it again.
            Self::Access(AccessError::LimitReached(_)) => None,
            _ => (code == Code::ResourceExhausted).then_some(RETRY_AFTER),
        };
        match retry_after {
            Some(_) => Status::with_error_details(code, message, ErrorDetails::with_retry_info(retry_after)),
            None => Status::new(code, message),
        }
    }

    /// Takes the error out of the encoder's again.
    pub(crate) fn from_encoder(error: FlightError) -> Self {
        match error {
            FlightError::ExternalError(source) => match source.downcast::<Self>() {
                Ok(own) => *own,
                Err(other) => Self::Encode(FlightError::ExternalError(other)),
            },
            other => Self::Encode(other),
        }
    }
}

fn query_kind(error: &DataFusionError) -> ErrorKind {
    match error.find_root() {
        DataFusionError::SQL(..)
        | DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::Execution(_)
        | DataFusionError::ArrowError(..)
        | DataFusionError::Configuration(_) => ErrorKind::InvalidInput,
        DataFusionError::ParquetError(_) => ErrorKind::CorruptData,
        DataFusionError::Internal(_) => ErrorKind::Bug,
        _ => ErrorKind::Retry,
    }
}

/// The error's own words, without the names of the layers it went through.
fn describe_query_error(error: &DataFusionError) -> String {
    error.find_root().strip_backtrace()
}

fn describe_bind_error(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another program is listening there already: stop it, or choose another port".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => {
            "this user may not: ports below 1024 usually need more rights, choose a higher one".to_owned()
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ => error.to_string(),
    }
}

fn suggest(nearest: Option<&TableName>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_decides_the_status() {
        let gone = ServeError::RunGone { sequence: 3, newest: 9 };
        assert_eq!(gone.status().code(), Code::NotFound);
        assert_eq!(ServeError::Stopping.status().code(), Code::Unavailable);
        assert_eq!(ServeError::Forbidden("no").status().code(), Code::PermissionDenied);
        assert_eq!(ServeError::Query(DataFusionError::Plan("no".to_owned())).status().code(), Code::InvalidArgument);
    }

    #[test]
    fn who_finds_no_room_is_told_when_to_come_back() {
        let full = ServeError::PutsFull { what: "2 streams are being put, which is the limit".to_owned() };
        let status = full.status_with("; 3 batches are stored");
        assert_eq!(status.code(), Code::ResourceExhausted);
        let text = "2 streams are being put, which is the limit: try again in 1 s; 3 batches are stored";
        assert_eq!(status.message(), text);
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
    }

    #[test]
    fn an_error_survives_the_encoder() {
        let error = ServeError::from_encoder(FlightError::from_external_error(Box::new(ServeError::Stopping)));
        assert!(matches!(error, ServeError::Stopping));
    }
}
