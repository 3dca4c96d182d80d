use std::time::Duration;

use crate::{CollectError, Result};

/// Limits of the server.
#[derive(Debug, Clone)]
pub struct CollectSettings {
    /// The longest body of a request, also after it is unpacked. Segment's own limit is 500 KB.
    pub request_bytes_max: usize,
    /// The longest message as it is stored. Segment's own limit is 32 KB.
    pub message_bytes_max: usize,
    /// What all requests that are not answered yet may hold; beyond it, clients are told to come back.
    pub queue_bytes_max: usize,
    /// How many requests of a source may wait to be written.
    pub queue_requests_max: usize,
    /// How long a group of requests is gathered before it is written. Every acknowledgement waits for it.
    pub gather: Duration,
    /// The size at which a group is written at once. An object is at most this and one request longer.
    pub object_bytes_max: usize,
    /// How long writing an object may take before its clients are told to come back.
    pub write_timeout: Duration,
    /// How long to wait before an object whose fate is open is written again.
    pub write_again_after: Duration,
    /// How long a client may take to send a body.
    pub body_timeout: Duration,
    /// How many message ids of a source are remembered to know a message that comes again.
    pub remembered_ids: usize,
    /// How often new objects are brought into `raw`.
    pub ingest_interval: Duration,
    /// How often objects of other servers, and of servers that died, are looked for.
    pub look_back_interval: Duration,
    /// How long a stop may take.
    pub drain_timeout: Duration,
}

impl Default for CollectSettings {
    fn default() -> Self {
        Self {
            request_bytes_max: 4 << 20,
            message_bytes_max: 1 << 20,
            queue_bytes_max: 64 << 20,
            queue_requests_max: 16_384,
            gather: Duration::from_millis(100),
            object_bytes_max: 8 << 20,
            write_timeout: Duration::from_secs(5),
            write_again_after: Duration::from_secs(1),
            body_timeout: Duration::from_secs(30),
            remembered_ids: 1_000_000,
            ingest_interval: Duration::from_secs(1),
            look_back_interval: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(8),
        }
    }
}

impl CollectSettings {
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |setting, reason: String| Err(CollectError::Setting { setting, reason });
        if self.request_bytes_max == 0 || self.request_bytes_max > 1 << 30 {
            return wrong("request_bytes_max", "from 1 byte to 1 GiB".to_owned());
        }
        if self.message_bytes_max == 0 || self.message_bytes_max > 32 << 20 {
            return wrong("message_bytes_max", "from 1 byte to 32 MiB".to_owned());
        }
        // A request holds its body packed and unpacked, and its messages as they are stored.
        if self.queue_bytes_max < self.request_bytes_max.saturating_mul(4) || self.queue_bytes_max > 1 << 36 {
            return wrong(
                "queue_bytes_max",
                format!("from four times request_bytes_max = {} to 64 GiB", self.request_bytes_max),
            );
        }
        if self.queue_requests_max == 0 || self.remembered_ids == 0 {
            return wrong("queue_requests_max and remembered_ids", "at least 1".to_owned());
        }
        Ok(())
    }
}
