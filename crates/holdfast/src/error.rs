use std::path::PathBuf;

use holdfast_access::AccessError;
use holdfast_cluster::ClusterError;
use holdfast_collect::CollectError;
use holdfast_engine::EngineError;
use holdfast_feature_store::FeatureStoreError;
use holdfast_feeds::FeedError;
use holdfast_identity::IdentityError;
use holdfast_ingest::IngestError;
use holdfast_lake::LakeError;
use holdfast_models::ModelError;
use holdfast_pgwire::PgWireError;
use holdfast_serve::ServeError;
use holdfast_synth::SynthError;
use holdfast_types::ErrorKind;

use crate::telemetry::TelemetryError;

/// What can end a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error("there is no holdfast.toml in {0} or above it: go to your project, or name it with --project")]
    NoProject(PathBuf),
    #[error("{path}:{line}:{column}: {message}")]
    Config { path: PathBuf, line: usize, column: usize, message: String },
    #[error("there is no pipeline `{name}` in {folder}{hint}")]
    NoPipeline { name: String, folder: PathBuf, hint: String },
    #[error("{what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "there is no identity key {path}, and the identifiers in {lake} were hashed with one: put it back, or say with --identity-key where it is"
    )]
    NoKey { path: PathBuf, lake: String },
    #[error("{0}")]
    Argument(String),
    #[error("{} of {total} stages failed or were blocked; the others are up to date, readers keep the run they have", total - fine)]
    StagesFailed { fine: usize, total: usize, kind: ErrorKind },
    #[error(
        "{files} files wait to be mended, nothing of them is stored: see metric.ingest_refused_files; everything else is in the lake"
    )]
    FilesRefused { files: usize, kind: ErrorKind },
    #[error("{0}")]
    CheckFailed(String),
    #[error(
        "{} of {total} stages have rows that their queries do not give, or could not be verified: `holdfast run --full --select STAGE` makes a table anew", if *differing > 0 { differing.to_string() } else { "some".to_owned() }
    )]
    NotVerified { differing: usize, total: usize, kind: ErrorKind },
    #[error(
        "{mismatches} of {values} served values are not those that history gives: see metric.feature_consistency for which; a `holdfast serve` that is started again reads all of history anew"
    )]
    Inconsistent { mismatches: u64, values: u64 },
    #[error("{moved} features moved from the baseline `{baseline}`: see metric.feature_stats for how far")]
    FeaturesMoved { moved: usize, baseline: String },
    #[error("{failed} of {total} cases failed")]
    CasesFailed { failed: usize, total: usize },
    #[error("the audit log is not as it was written, {0}: ask who can write to the lake")]
    AuditBroken(String),
    #[error("{0}")]
    PartEnded(String),
    #[error("{0}")]
    NoModel(String),
    #[error("{0}")]
    Training(String),
    #[error("{0}")]
    ModelDamaged(String),
    #[error("{0}")]
    Moved(String),
    #[error("{what}: {}", holdfast_lake::describe_store_error(source))]
    Store { what: String, source: object_store::Error },
    #[error("rows cannot be put together: {0}")]
    Rows(#[from] arrow::error::ArrowError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error(transparent)]
    Features(#[from] FeatureStoreError),
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Ingest(#[from] IngestError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    PgWire(#[from] PgWireError),
    #[error(transparent)]
    Serve(Box<ServeError>),
    #[error(transparent)]
    Synth(#[from] SynthError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> Self {
        Self::Serve(Box::new(error))
    }
}

impl CliError {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::NoProject(_) | Self::NoPipeline { .. } | Self::NoModel(_) => ErrorKind::NotFound,
            Self::Config { .. } | Self::NoKey { .. } => ErrorKind::InvalidConfig,
            Self::File { .. }
            | Self::Argument(_)
            | Self::CasesFailed { .. }
            | Self::CheckFailed(_)
            | Self::Training(_) => ErrorKind::InvalidInput,
            Self::FeaturesMoved { .. } => ErrorKind::Quarantine,
            Self::ModelDamaged(_) | Self::Inconsistent { .. } | Self::AuditBroken(_) => ErrorKind::CorruptData,
            Self::Moved(_) => ErrorKind::Conflict,
            Self::Store { .. } => ErrorKind::Retry,
            Self::Model(error) => error.kind(),
            Self::StagesFailed { kind, .. } | Self::FilesRefused { kind, .. } | Self::NotVerified { kind, .. } => *kind,
            Self::Output(_) => ErrorKind::Retry,
            Self::PartEnded(_) | Self::Rows(_) => ErrorKind::Bug,
            Self::Lake(error) => error.kind(),
            Self::Engine(error) => error.kind(),
            Self::Access(error) => error.kind(),
            Self::Cluster(error) => error.kind(),
            Self::Collect(error) => error.kind(),
            Self::Features(error) => error.kind(),
            Self::Feed(error) => error.kind(),
            Self::Ingest(error) => error.kind(),
            Self::Identity(error) => error.kind(),
            Self::PgWire(error) => error.kind(),
            Self::Serve(error) => error.kind(),
            Self::Synth(error) => error.kind(),
            Self::Telemetry(error) => error.kind(),
        }
    }
}
