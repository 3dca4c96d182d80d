use std::net::SocketAddr;
use std::path::PathBuf;

use datafusion::error::DataFusionError;
use holdfast_engine::EngineError;
use holdfast_types::ErrorKind;

use crate::gate::GateError;

/// What can go wrong before the service answers anybody.
#[derive(Debug, thiserror::Error)]
pub enum PgWireError {
    /// A setting out of its limits.
    #[error("setting `{setting}`: {reason}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        reason: String,
    },
    /// Listening beyond this machine without users.
    #[error(
        "{address} can be reached from other machines and there are no users: name them with --users, or listen on 127.0.0.1"
    )]
    Exposed {
        /// Where it was asked to listen.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address as given.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file that cannot be read.
    #[error("cannot read the {what} {path}: {source}")]
    Unreadable {
        /// What the file is.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A certificate or key that cannot be used.
    #[error("TLS cannot be used: {0}")]
    Tls(String),
    /// The listener failed while running.
    #[error("the listener failed: {0}")]
    Listener(std::io::Error),
}

impl PgWireError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Listener(_) => ErrorKind::Retry,
            _ => ErrorKind::InvalidConfig,
        }
    }
}

/// SQLSTATE codes, PostgreSQL's appendix A.
pub(crate) mod state {
    pub(crate) const PROTOCOL_VIOLATION: &str = "08P01";
    pub(crate) const FEATURE_NOT_SUPPORTED: &str = "0A000";
    pub(crate) const INVALID_TEXT: &str = "22P02";
    pub(crate) const INVALID_PARAMETER_VALUE: &str = "22023";
    pub(crate) const DATA_EXCEPTION: &str = "22000";
    pub(crate) const READ_ONLY: &str = "25006";
    pub(crate) const IN_FAILED_TRANSACTION: &str = "25P02";
    pub(crate) const INVALID_STATEMENT_NAME: &str = "26000";
    pub(crate) const INVALID_AUTHORIZATION: &str = "28000";
    pub(crate) const INVALID_PASSWORD: &str = "28P01";
    pub(crate) const INVALID_CURSOR_NAME: &str = "34000";
    pub(crate) const INVALID_CATALOG_NAME: &str = "3D000";
    pub(crate) const SYNTAX_ERROR: &str = "42601";
    pub(crate) const INSUFFICIENT_PRIVILEGE: &str = "42501";
    pub(crate) const UNDEFINED_COLUMN: &str = "42703";
    pub(crate) const UNDEFINED_FUNCTION: &str = "42883";
    pub(crate) const UNDEFINED_TABLE: &str = "42P01";
    pub(crate) const UNDEFINED_PARAMETER: &str = "42P02";
    pub(crate) const UNDEFINED_OBJECT: &str = "42704";
    pub(crate) const DUPLICATE_CURSOR: &str = "42P03";
    pub(crate) const DUPLICATE_STATEMENT: &str = "42P05";
    pub(crate) const DATATYPE_MISMATCH: &str = "42804";
    pub(crate) const INSUFFICIENT_RESOURCES: &str = "53000";
    pub(crate) const OUT_OF_MEMORY: &str = "53200";
    pub(crate) const TOO_MANY_CONNECTIONS: &str = "53300";
    pub(crate) const PROGRAM_LIMIT: &str = "54000";
    pub(crate) const STATEMENT_TOO_COMPLEX: &str = "54001";
    pub(crate) const OBJECT_NOT_IN_STATE: &str = "55000";
    pub(crate) const QUERY_CANCELED: &str = "57014";
    pub(crate) const SHUTDOWN: &str = "57P01";
    pub(crate) const IDLE_SESSION: &str = "57P05";
    pub(crate) const CANNOT_CONNECT_NOW: &str = "57P03";
    pub(crate) const IO_ERROR: &str = "58030";
    pub(crate) const INTERNAL: &str = "XX000";
}

/// What a client is told when something fails.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// The place in the statement's text that it is about: line and column from 1, as the planner counts them.
    pub(crate) place: Option<(u64, u64)>,
    /// The connection ends with it.
    pub(crate) is_fatal: bool,
}

impl Problem {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, place: None, is_fatal: false }
    }

    pub(crate) fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        Self { is_fatal: true, ..Self::new(code, message) }
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn malformed(what: &str) -> Self {
        Self::fatal(state::PROTOCOL_VIOLATION, format!("malformed message: {what}"))
    }

    /// A query that cannot be planned, or another answer of the engine.
    pub(crate) fn of_engine(error: &EngineError) -> Self {
        let message = error.to_string();
        let (place, message) = split_place(&message);
        let mut problem = Self::new(code_of(error, &message), message);
        problem.place = place;
        if problem.code == state::READ_ONLY {
            problem.hint =
                Some("the lake is written by `holdfast ingest` and `holdfast run`, and read here".to_owned());
        }
        problem
    }

    /// What a gate does not let through.
    pub(crate) fn of_gate(error: &GateError) -> Self {
        let code = match error.kind {
            ErrorKind::Retry => state::INSUFFICIENT_RESOURCES,
            ErrorKind::InvalidInput | ErrorKind::NotFound => state::INSUFFICIENT_PRIVILEGE,
            _ => state::INTERNAL,
        };
        Self::new(code, error.message.clone())
    }

    /// The word for it in logs of accesses.
    pub(crate) fn outcome(&self) -> &'static str {
        match self.code {
            state::QUERY_CANCELED => "cancelled",
            code if code.starts_with("53") => ErrorKind::Retry.as_str(),
            code if code.starts_with("XX") => ErrorKind::Bug.as_str(),
            _ => ErrorKind::InvalidInput.as_str(),
        }
    }

    /// A query that failed while it ran.
    pub(crate) fn of_query(error: DataFusionError) -> Self {
        Self::of_engine(&EngineError::Execution { what: "the query".to_owned(), source: Box::new(error) })
    }
}

/// The planner's message begins with its place.
fn split_place(message: &str) -> (Option<(u64, u64)>, String) {
    let parsed = || {
        let (line, rest) = message.strip_prefix("line ")?.split_once(", column ")?;
        let (column, rest) = rest.split_once(": ")?;
        Some(((line.parse().ok()?, column.parse().ok()?), rest))
    };
    match parsed() {
        Some((place, rest)) => (Some(place), rest.to_owned()),
        None => (None, message.to_owned()),
    }
}

/// DataFusion has no codes: its words tell.
fn code_of(error: &EngineError, message: &str) -> &'static str {
    // What the system functions of ours say.
    if message.contains("relation \"") && message.contains("\" does not exist") {
        return state::UNDEFINED_TABLE;
    }
    if message.contains("\" does not exist") || message.contains("unrecognized configuration parameter") {
        return state::UNDEFINED_OBJECT;
    }
    if let EngineError::Query { .. } = error {
        let lower = message.to_lowercase();
        let has = |text: &str| lower.contains(text);
        return if has("only queries are allowed") {
            state::READ_ONLY
        } else if has("table '") && has("not found") {
            state::UNDEFINED_TABLE
        } else if has("schema error: no field") || (has("column '") && has("not found")) || has("no field named") {
            state::UNDEFINED_COLUMN
        } else if has("invalid function") || has("no function matches") || has("failed to coerce") {
            state::UNDEFINED_FUNCTION
        } else if has("recursion limit") {
            state::STATEMENT_TOO_COMPLEX
        } else if has("not implemented") || has("not supported") || has("unsupported") {
            state::FEATURE_NOT_SUPPORTED
        } else if has("type") && (has("coerc") || has("cannot infer")) {
            state::DATATYPE_MISMATCH
        } else {
            state::SYNTAX_ERROR
        };
    }
    if message.contains("not enough memory") {
        return state::OUT_OF_MEMORY;
    }
    match error.kind() {
        ErrorKind::Retry | ErrorKind::Conflict => state::INSUFFICIENT_RESOURCES,
        ErrorKind::InvalidInput => state::DATA_EXCEPTION,
        ErrorKind::NotFound => state::UNDEFINED_OBJECT,
        ErrorKind::CorruptData => state::IO_ERROR,
        _ => state::INTERNAL,
    }
}
