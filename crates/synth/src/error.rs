use std::io;
use std::path::PathBuf;

use holdfast_types::ErrorKind;

/// Why a generation did not come about.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// An option is outside what the generator can do.
    #[error("{option} is {value}: {remedy}")]
    InvalidOption { option: &'static str, value: String, remedy: &'static str },

    /// The folder holds files that this generator did not write.
    #[error("{} is not empty and holds no generation: choose another folder, or empty it first", .0.display())]
    NotAGeneration(PathBuf),

    /// The folder holds a finished generation made with other options.
    #[error("{} already holds a generation with {found}, not with {wanted}: choose another folder", folder.display())]
    OtherOptions { folder: PathBuf, found: String, wanted: String },

    /// The manifest lists a file that is missing or has another size.
    #[error("{} is missing or was changed after it was generated: remove the folder or choose another", .0.display())]
    Altered(PathBuf),

    /// The manifest can't be understood.
    #[error("cannot read the manifest {} ({source}): remove the folder or choose another", path.display())]
    Manifest { path: PathBuf, source: serde_json::Error },

    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    /// Parquet could not be encoded.
    #[error("cannot write {} as parquet: {source}", path.display())]
    Parquet { path: PathBuf, source: parquet::errors::ParquetError },

    /// A worker thread ended without handing in its result.
    #[error("a generator thread ended early")]
    WorkerLost,
}

impl SynthError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidOption { .. } | Self::NotAGeneration(_) | Self::OtherOptions { .. } => {
                ErrorKind::InvalidConfig
            }
            Self::Altered(_) | Self::Manifest { .. } => ErrorKind::CorruptData,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory | io::ErrorKind::ReadOnlyFilesystem => {
                    ErrorKind::InvalidConfig
                }
                // Such as a full disk: an interrupted generation begins anew, so trying again is safe.
                _ => ErrorKind::Retry,
            },
            Self::Parquet { .. } | Self::WorkerLost => ErrorKind::Bug,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
