//! Wrong passwords: after a few, whoever tries must wait, longer each time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{AccessError, Result};

/// Wrong passwords that cost nothing.
const FREE: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Who has not tried for so long starts anew.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(900);
const KEPT_MAX: usize = 50_000;

/// Counts wrong passwords by user and by address: one who guesses does not shut out the user who sits elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    failed: Mutex<HashMap<(String, Option<IpAddr>), Failed>>,
}

#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    last: Instant,
}

impl Tries {
    /// Whether a password may be tried now.
    ///
    /// # Errors
    /// [`AccessError::TooManyTries`] with the time until then.
    pub(crate) fn may_try(&self, user: &str, from: Option<IpAddr>, now: Instant) -> Result<()> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        // A name of somebody tried from everywhere at once is guessed at, too: no address is counted under, with more patience.
        for (key, patience) in [((user.to_owned(), from), 1), ((user.to_owned(), None), 10)] {
            if let Some(failed) = failed.get(&key).filter(|failed| failed.times >= FREE * patience) {
                let doublings = (failed.times - FREE * patience).min(16) / patience;
                let wait = FIRST_WAIT.saturating_mul(1 << doublings.min(16)).min(LONGEST_WAIT);
                let left = wait.saturating_sub(now.saturating_duration_since(failed.last));
                if !left.is_zero() {
                    return Err(AccessError::TooManyTries(left));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn failed(&self, user: &str, from: Option<IpAddr>, now: Instant) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= KEPT_MAX {
            failed.retain(|_, failed| now.saturating_duration_since(failed.last) < FORGOTTEN_AFTER);
            // Names that nobody has, tried one after the other, must not take the memory.
            if failed.len() >= KEPT_MAX {
                failed.clear();
            }
        }
        let mut keys = vec![(user.to_owned(), from)];
        if from.is_some() {
            keys.push((user.to_owned(), None));
        }
        for key in keys {
            let entry = failed.entry(key).or_insert(Failed { times: 0, last: now });
            if now.saturating_duration_since(entry.last) >= FORGOTTEN_AFTER {
                entry.times = 0;
            }
            entry.times = entry.times.saturating_add(1);
            entry.last = now;
        }
    }

    pub(crate) fn succeeded(&self, user: &str, from: Option<IpAddr>) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).remove(&(user.to_owned(), from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_guesses_waits_longer_each_time_and_shuts_nobody_else_out() {
        let tries = Tries::default();
        let (evil, home) = (Some("10.0.0.1".parse().unwrap()), Some("10.0.0.2".parse().unwrap()));
        let mut now = Instant::now();
        for _ in 0..FREE {
            tries.may_try("ana", evil, now).unwrap();
            tries.failed("ana", evil, now);
        }
        let waits = |now| match tries.may_try("ana", evil, now) {
            Err(AccessError::TooManyTries(left)) => left,
            other => panic!("{other:?}"),
        };
        assert_eq!(waits(now), FIRST_WAIT);
        tries.may_try("ana", home, now).unwrap();
        tries.may_try("ben", evil, now).unwrap();
        now += FIRST_WAIT;
        tries.may_try("ana", evil, now).unwrap();
        tries.failed("ana", evil, now);
        assert_eq!(waits(now), 2 * FIRST_WAIT);
        for _ in 0..40 {
            tries.failed("ana", evil, now);
        }
        assert_eq!(waits(now), LONGEST_WAIT);
        now += LONGEST_WAIT;
        tries.may_try("ana", evil, now).unwrap();
        tries.succeeded("ana", evil);
        tries.failed("ana", evil, now);
        tries.may_try("ana", evil, now).unwrap();
    }
}
