use std::time::Duration;

use crate::{PgWireError, Result};

/// Limits of the service. [`PgSettings::check`] says what each may be.
#[derive(Debug, Clone)]
pub struct PgSettings {
    /// From the connection to the end of its log-in, the negotiation of TLS included. 100 ms to 5 minutes.
    pub startup_timeout: Duration,
    /// From the first byte of a message to its last. 100 ms to 1 hour.
    pub message_timeout: Duration,
    /// A session that asks nothing for so long ends; its `idle_session_timeout` may say less. 100 ms to 24 hours.
    pub idle_timeout: Duration,
    /// The longest a statement may take, until its last byte is read, whatever the session's `statement_timeout` says. 100 ms to 24 hours.
    pub query_timeout: Duration,
    /// Bytes of one message; a longer one is skipped and refused. 64 KiB to 1 GiB.
    pub max_message_bytes: usize,
    /// Bytes of one statement's text. 1 KiB to 64 MiB.
    pub max_statement_bytes: usize,
    /// Names, numbers and signs of one statement: it bounds how deep a plan can be. 1,000 to 1,000,000.
    pub max_statement_tokens: usize,
    /// Queries that run at once. 1 to 10,000.
    pub max_concurrent_queries: usize,
    /// Queries that wait for a place to run; one more is told to come back. 0 to 100,000.
    pub max_waiting_queries: usize,
    /// Prepared statements, and open cursors and portals, of one connection. 1 to 100,000.
    pub max_held_per_connection: usize,
    /// How long running queries may go on when the service stops. 0 to 1 hour.
    pub drain_timeout: Duration,
}

impl Default for PgSettings {
    fn default() -> Self {
        Self {
            startup_timeout: Duration::from_secs(20),
            message_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(3_600),
            query_timeout: Duration::from_secs(600),
            max_message_bytes: 16 << 20,
            max_statement_bytes: 1 << 20,
            max_statement_tokens: 50_000,
            max_concurrent_queries: 32,
            max_waiting_queries: 256,
            max_held_per_connection: 1_000,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl PgSettings {
    /// Checks every setting against its limits.
    ///
    /// # Errors
    /// [`PgWireError::Setting`], naming the first one that is out of them.
    pub fn check(&self) -> Result<()> {
        const HOUR: Duration = Duration::from_secs(3600);
        const LEAST: Duration = Duration::from_millis(100);
        within("startup_timeout", self.startup_timeout, LEAST, HOUR / 12)?;
        within("message_timeout", self.message_timeout, LEAST, HOUR)?;
        within("idle_timeout", self.idle_timeout, LEAST, 24 * HOUR)?;
        within("query_timeout", self.query_timeout, LEAST, 24 * HOUR)?;
        within("max_message_bytes", self.max_message_bytes, 64 << 10, 1 << 30)?;
        within("max_statement_bytes", self.max_statement_bytes, 1 << 10, 64 << 20)?;
        within("max_statement_tokens", self.max_statement_tokens, 1_000, 1_000_000)?;
        within("max_concurrent_queries", self.max_concurrent_queries, 1, 10_000)?;
        within("max_waiting_queries", self.max_waiting_queries, 0, 100_000)?;
        within("max_held_per_connection", self.max_held_per_connection, 1, 100_000)?;
        within("drain_timeout", self.drain_timeout, Duration::ZERO, HOUR)
    }
}

fn within<T: PartialOrd + std::fmt::Debug>(setting: &'static str, value: T, least: T, most: T) -> Result<()> {
    if value < least || value > most {
        let reason = format!("it is {value:?}, and may be {least:?} to {most:?}");
        return Err(PgWireError::Setting { setting, reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_within_their_limits_and_a_wrong_one_is_named() {
        PgSettings::default().check().unwrap();
        let error = PgSettings { max_held_per_connection: 0, ..PgSettings::default() }.check().unwrap_err();
        assert_eq!(error.to_string(), "setting `max_held_per_connection`: it is 0, and may be 1 to 100000");
    }
}
