use chrono::{DateTime, Utc};

/// Tells the time. Only the binary has the real one; everything below is handed a clock.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The current moment, UTC.
    fn now(&self) -> DateTime<Utc>;
}

/// A clock that stands still, for tests and for runs that must be repeatable.
#[derive(Debug, Clone, Copy)]
pub struct FixedClock(pub DateTime<Utc>);

impl Clock for FixedClock {
    fn now(&self) -> DateTime<Utc> {
        self.0
    }
}
