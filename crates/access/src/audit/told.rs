//! What was told lately of what there is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::AuditEntry;

/// The same is written down again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Beyond so many all are forgotten, and written down again.
const KEPT: usize = 10_000;

/// Remembers which lists are in the log already: tools ask for the same ones all the time, and would drown what was read.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<HashMap<AuditEntry, Instant>>);

impl Told {
    /// Whether the same was noted less than a minute before `now`.
    pub(crate) fn is_known(&self, entry: &AuditEntry, now: Instant) -> bool {
        let noted = self.noted();
        noted.get(entry).is_some_and(|at| now.saturating_duration_since(*at) < AGAIN_AFTER)
    }

    /// It is in the log.
    pub(crate) fn note(&self, entry: AuditEntry, now: Instant) {
        let mut noted = self.noted();
        if noted.len() >= KEPT {
            noted.retain(|_, at| now.saturating_duration_since(*at) < AGAIN_AFTER);
            if noted.len() >= KEPT {
                noted.clear();
            }
        }
        noted.insert(entry, now);
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<AuditEntry, Instant>> {
        // Each change is whole under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Principal;

    #[test]
    fn the_same_is_known_for_a_minute_and_another_is_not() {
        let entry = |action: &str| AuditEntry::of(&Principal::loopback(&[]), "flight", action);
        let (told, now) = (Told::default(), Instant::now());
        assert!(!told.is_known(&entry("list:tables"), now));
        told.note(entry("list:tables"), now);
        assert!(told.is_known(&entry("list:tables"), now + Duration::from_secs(59)));
        assert!(!told.is_known(&entry("list:schemas"), now));
        assert!(!told.is_known(&entry("list:tables"), now + AGAIN_AFTER));
    }
}
