use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use holdfast_types::{Clock, ErrorKind, Progress};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;

/// Before a part that failed is started again; doubled with every failure in a row.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A part that went on for so long has recovered.
const STEADY: Duration = Duration::from_secs(60);

/// How the parts do.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<BTreeMap<&'static str, PartHealth>>);

/// How a part does.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PartHealth {
    /// Not while it waits to be started again.
    pub(super) running: bool,
    /// Since when that is so.
    since: DateTime<Utc>,
    restarts: u64,
    /// The kind of the error that it failed with last.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorKind>,
}

impl Board {
    /// A part is on its way.
    pub(super) fn begin(&self, name: &'static str) {
        let health = PartHealth { running: true, since: SystemClock.now(), restarts: 0, error: None };
        self.parts().insert(name, health);
    }

    /// All parts, by name.
    pub(super) fn all(&self) -> BTreeMap<&'static str, PartHealth> {
        self.parts().clone()
    }

    fn failed(&self, name: &str, kind: ErrorKind) {
        if let Some(part) = self.parts().get_mut(name) {
            (part.running, part.since, part.error) = (false, SystemClock.now(), Some(kind));
        }
    }

    fn started_again(&self, name: &str) {
        if let Some(part) = self.parts().get_mut(name) {
            (part.running, part.since) = (true, SystemClock.now());
            part.restarts += 1;
        }
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<&'static str, PartHealth>> {
        // Each entry is whole whenever the lock is free.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a part going until `stop`: one that fails, or panics, is told and started again after a while.
///
/// # Errors
/// What a person has to mend: nothing is started again then. What the part ends with after `stop`.
pub(super) async fn supervise<Part, Running>(
    name: &'static str,
    part: Part,
    stop: CancellationToken,
    board: Arc<Board>,
    terminal: Arc<Terminal>,
) -> Result<(), CliError>
where
    Part: Fn(CancellationToken) -> Running + Send + 'static,
    Running: Future<Output = Result<(), CliError>> + Send + 'static,
{
    let mut failures = 0_u32;
    loop {
        let began = Instant::now();
        // A task of its own, so that a panic ends it and nothing else.
        let ended = AbortOnDropHandle::new(tokio::spawn(part(stop.clone()).in_current_span())).await;
        let error = match ended {
            Ok(ended) if stop.is_cancelled() => return ended,
            Ok(Ok(())) => CliError::PartEnded("it ended by itself".to_owned()),
            Ok(Err(error)) => error,
            Err(error) => CliError::PartEnded(format!("it broke off: {error}")),
        };
        let kind = error.kind();
        if matches!(kind, ErrorKind::InvalidInput | ErrorKind::InvalidConfig) {
            return Err(error);
        }
        failures = if began.elapsed() >= STEADY { 0 } else { failures };
        let pause = PAUSE_MIN.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
        failures += 1;
        board.failed(name, kind);
        tracing::warn!(part = name, kind = kind.as_str(), monotonic_counter.holdfast_errors = 1_u64, "a part failed");
        terminal.problem(&format!("   Failed {name}: {error}; starts again in {} s", pause.as_secs()));
        tokio::select! {
            () = tokio::time::sleep(pause) => board.started_again(name),
            () = stop.cancelled() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn watched(
        part: impl Fn(u32) -> Result<(), CliError> + Send + Sync + 'static,
    ) -> (Result<(), CliError>, u32, PartHealth) {
        let (starts, part, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(part), CancellationToken::new());
        let board = Arc::new(Board::default());
        board.begin("a part");
        let running = {
            let (starts, stop) = (Arc::clone(&starts), stop.clone());
            move |stopped: CancellationToken| {
                let (start, part, stop) = (starts.fetch_add(1, Ordering::SeqCst), Arc::clone(&part), stop.clone());
                async move {
                    part(start)?;
                    stop.cancel();
                    stopped.cancelled().await;
                    Ok(())
                }
            }
        };
        let ended = supervise("a part", running, stop, Arc::clone(&board), Arc::new(Terminal::new(true))).await;
        (ended, starts.load(Ordering::SeqCst), board.all().remove("a part").unwrap())
    }

    #[tokio::test]
    async fn a_part_that_fails_or_panics_is_started_again() {
        let (ended, starts, health) = watched(|start| match start {
            0 => Err(CliError::Output(std::io::Error::other("a disk"))),
            1 => panic!("a mistake"),
            _ => Ok(()),
        })
        .await;
        ended.unwrap();
        assert_eq!(starts, 3);
        assert!(health.running && health.restarts == 2 && health.error == Some(ErrorKind::Bug), "{health:?}");
    }

    #[tokio::test]
    async fn what_a_person_has_to_mend_ends_it() {
        let (ended, starts, _) = watched(|_| Err(CliError::Argument("a wrong flag".to_owned()))).await;
        assert_eq!(ended.unwrap_err().to_string(), "a wrong flag");
        assert_eq!(starts, 1);
    }
}
