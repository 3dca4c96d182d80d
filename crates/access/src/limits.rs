//! What each principal may use at once, counted over all its connections to this process.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use datafusion::error::{DataFusionError, Result as QueryResult};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

use crate::policy::Limits;
use crate::{AccessError, Result};

/// Who was idle for so long starts anew.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Principals that are counted at once; beyond it the idle are forgotten first.
const PRINCIPALS_MAX: usize = 100_000;
/// When somebody with too many queries should look again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Counts what principals use.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    of: Mutex<HashMap<String, Used>>,
}

#[derive(Debug)]
struct Used {
    running: Arc<AtomicUsize>,
    memory: Arc<AtomicUsize>,
    tokens: f64,
    counted_at: Instant,
}

/// A query that counts as running until this is dropped.
#[derive(Debug)]
pub struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Usage {
    /// Counts one more question at the moment `now`.
    ///
    /// # Errors
    /// [`AccessError::Busy`] when a limit is reached; then it does not count.
    pub(crate) fn admit(&self, name: &str, limits: &Limits, now: Instant) -> Result<Running> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() >= PRINCIPALS_MAX && !of.contains_key(name) {
            of.retain(|_, used| !used.is_idle(now));
        }
        let burst = limits.burst.or(limits.rate_per_s).unwrap_or(1.0).max(1.0);
        let used = of.entry(name.to_owned()).or_insert_with(|| Used::new(burst, now));
        if let Some(rate) = limits.rate_per_s {
            let passed = now.saturating_duration_since(used.counted_at).as_secs_f64();
            used.tokens = (used.tokens + passed * rate).min(burst);
            used.counted_at = now;
            if used.tokens < 1.0 {
                let retry_after = Duration::from_secs_f64((1.0 - used.tokens) / rate);
                return Err(AccessError::Busy {
                    what: format!("more than {rate} questions a second, which is the limit of your role"),
                    retry_after,
                });
            }
        }
        // Only this lock lets it grow.
        let running = used.running.load(Ordering::Acquire);
        if let Some(most) = limits.concurrency.filter(|most| running >= *most) {
            let what = format!("{most} of your queries are running, which is the limit of your role");
            return Err(AccessError::Busy { what, retry_after: RETRY_AFTER });
        }
        if limits.rate_per_s.is_some() {
            used.tokens -= 1.0;
        } else {
            used.counted_at = now;
        }
        used.running.fetch_add(1, Ordering::AcqRel);
        Ok(Running(Arc::clone(&used.running)))
    }

    /// The part of `whole` that all queries of the principal share.
    pub(crate) fn share(&self, name: &str, bytes: usize, whole: &Arc<dyn MemoryPool>) -> Share {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let used = of.entry(name.to_owned()).or_insert_with(|| Used::new(1.0, Instant::now()));
        Share { whole: Arc::clone(whole), bytes, used: Arc::clone(&used.memory) }
    }
}

impl Used {
    fn new(tokens: f64, now: Instant) -> Self {
        Self { running: Arc::default(), memory: Arc::default(), tokens, counted_at: now }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.running.load(Ordering::Acquire) == 0
            && self.memory.load(Ordering::Acquire) == 0
            && now.saturating_duration_since(self.counted_at) > FORGOTTEN_AFTER
    }
}

/// A part of a pool of memory.
#[derive(Debug)]
pub(crate) struct Share {
    whole: Arc<dyn MemoryPool>,
    bytes: usize,
    used: Arc<AtomicUsize>,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.name(), self.bytes)
    }
}

impl MemoryPool for Share {
    fn name(&self) -> &'static str {
        "share of a principal"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.whole.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.whole.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.used.fetch_add(additional, Ordering::AcqRel);
        self.whole.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.used.fetch_sub(shrink, Ordering::AcqRel);
        self.whole.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> QueryResult<()> {
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(additional).filter(|sum| *sum <= self.bytes)
        });
        if taken.is_err() {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "your queries may hold {} MiB of memory together, which is the limit of your role: ask for less at once",
                self.bytes >> 20
            )));
        }
        self.whole.try_grow(reservation, additional).inspect_err(|_| {
            self.used.fetch_sub(additional, Ordering::AcqRel);
        })
    }

    fn reserved(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use datafusion::execution::memory_pool::GreedyMemoryPool;

    use super::*;

    #[test]
    fn a_rate_lets_a_burst_pass_and_then_one_at_a_time() {
        let usage = Usage::default();
        let limits = Limits { rate_per_s: Some(2.0), burst: Some(3.0), ..Limits::default() };
        let began = Instant::now();
        for _ in 0..3 {
            usage.admit("ana", &limits, began).unwrap();
        }
        let error = usage.admit("ana", &limits, began).unwrap_err();
        assert!(matches!(error, AccessError::Busy { retry_after, .. } if retry_after == Duration::from_millis(500)));
        usage.admit("ben", &limits, began).unwrap();
        let later = began + Duration::from_millis(500);
        usage.admit("ana", &limits, later).unwrap();
        usage.admit("ana", &limits, later).unwrap_err();
        // Who waits long has the burst again, and no more.
        let much_later = began + Duration::from_secs(3600);
        for _ in 0..3 {
            usage.admit("ana", &limits, much_later).unwrap();
        }
        usage.admit("ana", &limits, much_later).unwrap_err();
    }

    #[test]
    fn as_many_queries_run_as_may_and_an_ended_one_makes_room() {
        let usage = Usage::default();
        let limits = Limits { concurrency: Some(2), ..Limits::default() };
        let first = usage.admit("ana", &limits, Instant::now()).unwrap();
        let _second = usage.admit("ana", &limits, Instant::now()).unwrap();
        assert!(usage.admit("ana", &limits, Instant::now()).unwrap_err().to_string().contains("2 of your queries"));
        drop(first);
        let _third = usage.admit("ana", &limits, Instant::now()).unwrap();
        usage.admit("ana", &limits, Instant::now()).unwrap_err();
    }

    #[test]
    fn a_share_is_one_for_all_queries_and_gives_back() {
        let whole: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1000));
        let usage = Usage::default();
        let share = |bytes| -> Arc<dyn MemoryPool> { Arc::new(usage.share("ana", bytes, &whole)) };
        let (one, other) = (share(100), share(100));
        let first = MemoryConsumer::new("a").register(&one);
        let second = MemoryConsumer::new("b").register(&other);
        first.try_grow(60).unwrap();
        let error = second.try_grow(60).unwrap_err();
        assert!(error.to_string().contains("limit of your role"), "{error}");
        second.try_grow(40).unwrap();
        assert_eq!(whole.reserved(), 100);
        drop(first);
        second.try_grow(60).unwrap();
        drop(second);
        assert_eq!((whole.reserved(), one.reserved()), (0, 0));
    }
}
