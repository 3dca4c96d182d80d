use std::time::Duration;

use holdfast_ingest::FollowSettings;

use crate::feed::ChunkLimits;

/// Limits of reading a feed.
#[derive(Debug, Clone)]
pub struct FeedSettings {
    /// An object is written when it has so many records …
    pub chunk_records_max: u64,
    /// … or so many bytes of lines. With many partitions each has less: see `bytes_max`.
    pub chunk_bytes_max: usize,
    /// … or when its first record is so old.
    pub gather: Duration,
    /// What all partitions together may gather.
    pub bytes_max: usize,
    /// How long one look waits for a first record.
    pub wait: Duration,
    /// How much may wait in the inbox for `raw`, in bytes of lines; beyond it nothing is read.
    pub ahead_bytes_max: u64,
    /// How often partitions are looked for.
    pub partitions_interval: Duration,
    /// How long a partition stays with a worker that gives no sign.
    pub lease: Duration,
    /// How long writing an object may take before its fate is looked at.
    pub write_timeout: Duration,
    /// The longest pause after errors that may pass by themselves.
    pub pause_max: Duration,
    /// How the inbox is brought to `raw`.
    pub follow: FollowSettings,
}

impl Default for FeedSettings {
    fn default() -> Self {
        Self {
            chunk_records_max: 100_000,
            chunk_bytes_max: 8 << 20,
            gather: Duration::from_millis(500),
            bytes_max: 64 << 20,
            wait: Duration::from_secs(2),
            ahead_bytes_max: 256 << 20,
            partitions_interval: Duration::from_secs(10),
            lease: Duration::from_secs(20),
            write_timeout: Duration::from_secs(5),
            pause_max: Duration::from_secs(30),
            follow: FollowSettings::default(),
        }
    }
}

impl FeedSettings {
    /// What one of so many partitions may gather.
    pub(crate) fn limits(&self, partitions: usize) -> ChunkLimits {
        let share = self.bytes_max / partitions.max(1);
        ChunkLimits { records: self.chunk_records_max.max(1), bytes: share.clamp(64 << 10, self.chunk_bytes_max) }
    }
}
