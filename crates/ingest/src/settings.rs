use std::sync::Arc;
use std::time::Duration;

use holdfast_lake::Fence;

use crate::Result;

/// Limits of ingestion.
#[derive(Clone)]
pub struct IngestSettings {
    /// Tasks that decode and write.
    pub threads: usize,
    /// Files of a batch.
    pub batch_files_max: usize,
    /// Bytes of a batch; a bigger file is a batch of its own.
    pub batch_bytes_max: u64,
    /// A batch ends behind the file with which it has so many records.
    pub batch_rows_max: u64,
    /// A batch ends behind the file at which it was read for so long.
    pub batch_time_max: Duration,
    /// How often a watched source whose names grow is listed as a whole.
    pub list_all_every: Duration,
    /// Text that is decoded at once. Memory grows with this times `threads`.
    pub block_bytes: usize,
    /// The longest record.
    pub record_bytes_max: usize,
    /// Where the original text of a refused row is cut.
    pub original_bytes_max: usize,
    /// The lease under which all is committed, if any.
    pub fence: Option<Fence>,
    /// Called after each step of a batch, for tests that stop there.
    pub on_step: Option<Arc<dyn Fn(IngestStep) + Send + Sync>>,
}

impl Default for IngestSettings {
    fn default() -> Self {
        Self {
            threads: 2,
            batch_files_max: 1_000,
            batch_bytes_max: 512 << 20,
            batch_rows_max: 5_000_000,
            batch_time_max: Duration::from_secs(60),
            list_all_every: Duration::from_secs(600),
            block_bytes: 1 << 20,
            record_bytes_max: 64 << 20,
            original_bytes_max: 64 << 10,
            fence: None,
            on_step: None,
        }
    }
}

impl std::fmt::Debug for IngestSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngestSettings")
            .field("threads", &self.threads)
            .field("batch_files_max", &self.batch_files_max)
            .field("batch_bytes_max", &self.batch_bytes_max)
            .field("block_bytes", &self.block_bytes)
            .finish_non_exhaustive()
    }
}

/// The steps of a batch, in their order. Between any two of them a worker may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IngestStep {
    /// Rows for `raw` are written, invisible.
    RawStaged,
    /// Rows for `quarantine` are written, invisible. Not reached when none was refused.
    QuarantineStaged,
    /// Which files are the batch is durable.
    Planned,
    /// The refused rows are committed. Not reached when none was refused.
    QuarantineCommitted,
    /// The rows are committed.
    RawCommitted,
    /// The end of the batch is recorded.
    BatchRecorded,
}

impl IngestStep {
    /// All of them, in their order.
    pub const ALL: [Self; 6] = [
        Self::RawStaged,
        Self::QuarantineStaged,
        Self::Planned,
        Self::QuarantineCommitted,
        Self::RawCommitted,
        Self::BatchRecorded,
    ];

    /// The name used on command lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RawStaged => "raw_staged",
            Self::QuarantineStaged => "quarantine_staged",
            Self::Planned => "planned",
            Self::QuarantineCommitted => "quarantine_committed",
            Self::RawCommitted => "raw_committed",
            Self::BatchRecorded => "batch_recorded",
        }
    }
}

impl std::str::FromStr for IngestStep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|step| step.as_str() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::as_str).collect();
            format!("`{text}` is not a step of ingestion; the steps are {}", names.join(", "))
        })
    }
}
