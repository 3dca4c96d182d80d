use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use holdfast_access::Access;
use holdfast_feature_store::OnlineShare;
use holdfast_types::{NoProgress, Progress};

use crate::{Result, RowModels, ServeError, Token};

/// Limits and intervals of the service. The defaults suit one machine of a few cores; [`ServeSettings::check`] says what
/// each may be.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    /// Required from every Flight call when set; needed to listen on anything but loopback. The standard gRPC health
    /// service stays open, because probes cannot carry a token and it tells nothing else.
    pub token: Option<Token>,
    /// Who may come in by name, and what they see. Without it everybody who comes in sees everything.
    pub access: Option<Arc<Access>>,
    /// The certificate of the service. Without it nothing is encrypted.
    pub tls: Option<Tls>,
    /// How often to look for a newly published run. 10 ms to 1 hour.
    pub reload_interval: Duration,
    /// Published runs kept at hand for tickets that were handed out before a newer run; others are read from the lake
    /// again. 1 to 100. A stream that has begun keeps its run by itself.
    pub kept_runs: usize,
    /// Rows of one record batch on the wire. 1 to 1,048,576.
    pub max_rows_per_batch: usize,
    /// Bytes of one record batch on the wire, as nearly as can be told before encoding; one row may be larger. 64 KiB to
    /// 64 MiB. The default fits clients that accept 4 MiB messages.
    pub max_bytes_per_batch: usize,
    /// Encoded batches waiting for a slow reader, for each stream. 1 to 64.
    pub stream_buffer: usize,
    /// From the arrival of a call to the last byte of its answer, slow readers included. 100 ms to 24 hours.
    pub query_timeout: Duration,
    /// Answers computed or sent at the same time. 1 to 10,000.
    pub max_concurrent_queries: usize,
    /// Calls that may wait for one of those places; one more is refused. 0 to 100,000.
    pub max_waiting_queries: usize,
    /// Exchanges of online features and of rows to be scored that may be open at the same time; one more is refused. 1 to 100,000.
    pub max_online_exchanges: usize,
    /// Every how many answers from memory one is kept in the lake, to be compared with what history says; none without.
    pub log_served: Option<NonZeroU64>,
    /// Which buckets of online views are held in memory; calls for other keys are refused.
    pub online_share: OnlineShare,
    /// Customer ids of one feature call, and rows of one batch that is scored. 1 to 1,000,000.
    pub max_customer_ids: usize,
    /// What a part of a spine with its features may hold in memory, for each exchange. 16 MiB to 64 GiB.
    pub feature_memory_bytes: usize,
    /// Bytes of a spine in memory that a training set is made of; it is kept in a temporary file. 1 MiB to 1 TiB.
    pub max_spine_bytes: u64,
    /// Length of one SQL statement. 1 KiB to 64 MiB.
    pub max_statement_bytes: usize,
    /// The values that are bound to a prepared statement: they travel in its handle. 1 KiB to 16 MiB.
    pub max_parameter_bytes: usize,
    /// Size of one request message. 4 MiB to 1 GiB.
    pub max_request_bytes: usize,
    /// From a connection to the first call over it that is let in; a connection of which nobody is known by then is closed. 100 ms to 5 minutes.
    pub log_in_timeout: Duration,
    /// A connection over which no call was open for so long is closed. 100 ms to 24 hours.
    pub idle_timeout: Duration,
    /// After it a client is told to go on over another connection; calls that are open go on. 1 minute to 1 year.
    pub connection_age: Duration,
    /// From the beginning of a request that is one message to its end. 100 ms to 1 hour.
    pub request_timeout: Duration,
    /// How long running streams may go on after shutdown was asked for. 0 to 1 hour.
    pub drain_timeout: Duration,
    /// The models that rows are scored by. Without them `ScoreRows` is refused.
    pub models: Option<Arc<dyn RowModels>>,
    /// Told how far online features are that are taken into memory.
    pub progress: Arc<dyn Progress>,
}

/// What TLS needs, in PEM.
#[derive(Clone)]
pub struct Tls {
    /// The service's certificate, with those of its issuers behind it.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Whose certificates clients may show. Who shows one is known by it.
    pub client_issuers: Option<String>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls(hidden)")
    }
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self {
            token: None,
            access: None,
            tls: None,
            reload_interval: Duration::from_secs(2),
            kept_runs: 4,
            max_rows_per_batch: 16_384,
            max_bytes_per_batch: 2 << 20,
            stream_buffer: 2,
            query_timeout: Duration::from_secs(300),
            max_concurrent_queries: 16,
            max_waiting_queries: 256,
            max_online_exchanges: 1_024,
            log_served: None,
            online_share: OnlineShare::ALL,
            max_customer_ids: 10_000,
            feature_memory_bytes: 128 << 20,
            max_spine_bytes: 1 << 30,
            max_statement_bytes: 1 << 20,
            max_parameter_bytes: 1 << 20,
            max_request_bytes: 64 << 20,
            log_in_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(3_600),
            connection_age: Duration::from_secs(24 * 3_600),
            request_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
            models: None,
            progress: Arc::new(NoProgress),
        }
    }
}

impl ServeSettings {
    /// Checks every setting against its limits.
    ///
    /// # Errors
    /// [`ServeError::Setting`], naming the first one that is out of them.
    pub fn check(&self) -> Result<()> {
        const HOUR: Duration = Duration::from_secs(3600);
        const LEAST: Duration = Duration::from_millis(100);
        within("reload_interval", self.reload_interval, Duration::from_millis(10), HOUR)?;
        within("kept_runs", self.kept_runs, 1, 100)?;
        within("max_rows_per_batch", self.max_rows_per_batch, 1, 1 << 20)?;
        within("max_bytes_per_batch", self.max_bytes_per_batch, 64 << 10, 64 << 20)?;
        within("stream_buffer", self.stream_buffer, 1, 64)?;
        within("query_timeout", self.query_timeout, Duration::from_millis(100), 24 * HOUR)?;
        within("max_concurrent_queries", self.max_concurrent_queries, 1, 10_000)?;
        within("max_waiting_queries", self.max_waiting_queries, 0, 100_000)?;
        within("max_online_exchanges", self.max_online_exchanges, 1, 100_000)?;
        within("max_customer_ids", self.max_customer_ids, 1, 1_000_000)?;
        within("feature_memory_bytes", self.feature_memory_bytes, 16 << 20, 1 << 36)?;
        within("max_spine_bytes", self.max_spine_bytes, 1 << 20, 1 << 40)?;
        within("max_statement_bytes", self.max_statement_bytes, 1 << 10, 64 << 20)?;
        within("max_parameter_bytes", self.max_parameter_bytes, 1 << 10, 16 << 20)?;
        within("max_request_bytes", self.max_request_bytes, 4 << 20, 1 << 30)?;
        within("log_in_timeout", self.log_in_timeout, LEAST, HOUR / 12)?;
        within("idle_timeout", self.idle_timeout, LEAST, 24 * HOUR)?;
        within("connection_age", self.connection_age, HOUR / 60, 365 * 24 * HOUR)?;
        within("request_timeout", self.request_timeout, LEAST, HOUR)?;
        within("drain_timeout", self.drain_timeout, Duration::ZERO, HOUR)
    }
}

pub(crate) fn within<T: PartialOrd + std::fmt::Debug>(
    setting: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<()> {
    if value < least || value > most {
        let reason = format!("it is {value:?}, and may be {least:?} to {most:?}");
        return Err(ServeError::Setting { setting, reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_within_their_limits_and_a_wrong_one_is_named() {
        ServeSettings::default().check().unwrap();
        let error = ServeSettings { kept_runs: 0, ..ServeSettings::default() }.check().unwrap_err();
        assert_eq!(error.to_string(), "setting `kept_runs`: it is 0, and may be 1 to 100");
    }
}
