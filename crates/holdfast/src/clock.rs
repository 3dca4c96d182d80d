use chrono::{DateTime, Utc};
use holdfast_types::Clock;

/// The wall clock. The binary's alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the wall clock that others are handed")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}
