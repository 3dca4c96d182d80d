use serde::{Deserialize, Serialize};

/// What the caller should do about an error. A new kind exists only if a caller would act differently on it: the kind
/// alone decides gRPC status, exit code, retry and metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The same call may succeed later: a store that timed out, a full disk, a lost connection.
    Retry,
    /// Somebody else changed the same thing first: read again, then decide.
    Conflict,
    /// The data or the request is wrong: mend the input.
    InvalidInput,
    /// A setting, a pipeline file or a stage is wrong: mend the configuration.
    InvalidConfig,
    /// What was named does not exist.
    NotFound,
    /// Rows were refused by an expectation or could not be read: look at the quarantine.
    Quarantine,
    /// What is stored is not what was written, or was written by a newer version.
    CorruptData,
    /// A promise was broken by this program: report it.
    Bug,
}

impl ErrorKind {
    /// The label for metrics and JSON output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Conflict => "conflict",
            Self::InvalidInput => "invalid_input",
            Self::InvalidConfig => "invalid_config",
            Self::NotFound => "not_found",
            Self::Quarantine => "quarantine",
            Self::CorruptData => "corrupt_data",
            Self::Bug => "bug",
        }
    }

    /// The process exit code: 2 for what the user can mend in a file or a flag, 3 for data that was refused,
    /// 4 for what may pass by itself, 5 for damage, 70 (`EX_SOFTWARE`) for our own mistakes.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::InvalidInput | Self::InvalidConfig | Self::NotFound => 2,
            Self::Quarantine => 3,
            Self::Retry | Self::Conflict => 4,
            Self::CorruptData => 5,
            Self::Bug => 70,
        }
    }
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
