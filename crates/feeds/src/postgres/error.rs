use holdfast_lake::describe_store_error;
use holdfast_types::ErrorKind;

/// What can go wrong between a PostgreSQL server and the lake. Messages name the server, tables and slots, never a row's
/// values: of the server's own messages only the first line is kept, since its details may quote rows.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The contract's keys contradict each other or cannot be used.
    #[error("{key}: {reason}")]
    Setting {
        /// Which key of `[feed]`.
        key: &'static str,
        /// What is wrong with it, and what to write.
        reason: String,
    },
    /// The server cannot be reached, or the connection to it broke.
    #[error("{server}: {what}: {source}")]
    Connection {
        /// Which server.
        server: String,
        /// What was being done.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The server did not answer in time.
    #[error("{server}: {what}: no answer within {seconds} s")]
    Silent {
        /// Which server.
        server: String,
        /// What was being done.
        what: &'static str,
        /// How long that was waited for.
        seconds: u64,
    },
    /// The connection cannot be protected as the contract asks.
    #[error("{server}: {reason}")]
    Tls {
        /// Which server.
        server: String,
        /// What is wrong, and what to set.
        reason: String,
    },
    /// The server does not let us in.
    #[error("{server}: {reason}")]
    Denied {
        /// Which server.
        server: String,
        /// Its reason, and the remedy.
        reason: String,
    },
    /// The server refused a statement for a reason that is not known here.
    #[error("{server}: {what}: {message} (SQLSTATE {code})")]
    Server {
        /// Which server.
        server: String,
        /// What was being done.
        what: String,
        /// The first line of its answer.
        message: String,
        /// The five characters that say which error it is.
        code: String,
    },
    /// Something has to be set up on the server first.
    #[error("{server}: {reason}; as somebody who may, run: {sql}")]
    Setup {
        /// Which server.
        server: String,
        /// What is missing.
        reason: String,
        /// What to run there, to the letter.
        sql: String,
    },
    /// A table of the contract does not fit.
    #[error("{server}: table {table}: {reason}")]
    Table {
        /// Which server.
        server: String,
        /// Which table.
        table: String,
        /// What is wrong with it, and the remedy.
        reason: String,
    },
    /// Another worker reads the slot, or takes its snapshot.
    #[error("{server}: {reason}")]
    Busy {
        /// Which server.
        server: String,
        /// Who has what.
        reason: String,
    },
    /// Changes are gone, or are not those that follow what was read: going on would lose some in silence.
    #[error(
        "{server}: slot {slot}: {reason}; changes since then may be lost for good: set resnapshot = true in [feed] to copy \
         the tables anew and go on from there"
    )]
    Gap {
        /// Which server.
        server: String,
        /// Which slot.
        slot: String,
        /// What was found.
        reason: String,
    },
    /// The slot exists, and it is not one that this source created.
    #[error(
        "{server}: slot {slot} exists and was not created for this source: name another with `slot` in [feed], or, if nobody \
         uses it, run: select pg_drop_replication_slot('{slot}')"
    )]
    ForeignSlot {
        /// Which server.
        server: String,
        /// Which slot.
        slot: String,
    },
    /// What the server sent is not what its protocol says.
    #[error("{server}: {what}")]
    Protocol {
        /// Which server.
        server: String,
        /// What was seen, and where.
        what: String,
    },
    /// The store with the copied snapshot and the notes on the slot failed.
    #[error("{what}: {}", describe_store_error(source))]
    Store {
        /// What was being done, on which object.
        what: String,
        /// The store's answer.
        source: object_store::Error,
    },
    /// An object of ours is not as it was written.
    #[error("{object}: {reason}")]
    Corrupt {
        /// Which object.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A task of ours ended without an answer.
    #[error("{0} (a mistake in holdfast: please report it)")]
    Internal(String),
}

impl PostgresError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Setting { .. }
            | Self::Tls { .. }
            | Self::Denied { .. }
            | Self::Setup { .. }
            | Self::Table { .. }
            | Self::ForeignSlot { .. } => ErrorKind::InvalidConfig,
            Self::Connection { source, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => ErrorKind::InvalidConfig,
                _ => ErrorKind::Retry,
            },
            Self::Silent { .. } => ErrorKind::Retry,
            Self::Server { code, .. } => kind_of_sqlstate(code),
            Self::Busy { .. } => ErrorKind::Conflict,
            Self::Gap { .. } => ErrorKind::NotFound,
            Self::Protocol { .. } | Self::Corrupt { .. } => ErrorKind::CorruptData,
            Self::Store { source, .. } => match source {
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                    ErrorKind::InvalidConfig
                }
                _ => ErrorKind::Retry,
            },
            Self::Internal(_) => ErrorKind::Bug,
        }
    }
}

/// What an SQLSTATE says about trying again.
fn kind_of_sqlstate(code: &str) -> ErrorKind {
    match code {
        // Invalid authorization, unknown database, missing privilege: the server's settings or the contract's.
        _ if code.starts_with("28") => ErrorKind::InvalidConfig,
        "3D000" | "42501" => ErrorKind::InvalidConfig,
        // What the statement names is gone or changed; the next look says what.
        _ if code.starts_with("42") => ErrorKind::InvalidConfig,
        _ => ErrorKind::Retry,
    }
}
