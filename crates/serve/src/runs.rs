use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_engine::{LakeReader, Published, WhichRun};
use holdfast_feature_store::{OnlineStore, ServedLog};
use holdfast_lake::Lake;
use tokio_util::sync::CancellationToken;

use crate::{Result, ServeError, ServeSettings};

/// How long answers that were noted wait until they are written.
const SERVED_WAIT: Duration = Duration::from_secs(30);

/// The newest published run, and the few before it that tickets ask for most.
#[derive(Debug)]
pub(crate) struct Runs {
    reader: Arc<LakeReader>,
    /// Online features of the newest run, once somebody has looked for one.
    online: OnlineStore,
    served: ServedLog,
    /// Newest last.
    recent: Mutex<VecDeque<Arc<Published>>>,
    kept: usize,
}

impl Runs {
    pub(crate) fn new(reader: Arc<LakeReader>, settings: &ServeSettings) -> Self {
        let online = OnlineStore::sharing(reader.lake(), settings.online_share).telling(Arc::clone(&settings.progress));
        let (served, kept) = (ServedLog::new(settings.log_served), settings.kept_runs);
        let runs = Self { reader, online, served, recent: Mutex::new(VecDeque::with_capacity(kept + 1)), kept };
        runs.newest();
        runs
    }

    /// The newest run that is known here.
    pub(crate) fn newest(&self) -> Arc<Published> {
        let newest = self.reader.current();
        let mut recent = self.recent();
        if recent.iter().all(|run| run.sequence() != newest.sequence()) {
            recent.push_back(Arc::clone(&newest));
            while recent.len() > self.kept {
                recent.pop_front();
            }
        }
        newest
    }

    /// The run of this number, or the newest without one. Those that are not at hand any more are read from the lake again.
    ///
    /// A run newer than any known here was handed out by another replica that saw it first: look once.
    pub(crate) async fn pinned(&self, sequence: Option<u64>) -> Result<Arc<Published>> {
        let newest = self.newest();
        let Some(sequence) = sequence else { return Ok(newest) };
        if sequence > newest.sequence() {
            self.reader.refresh().await?;
        }
        let newest = self.newest();
        let held = self.recent().iter().find(|run| run.sequence() == sequence).map(Arc::clone);
        let found = match held {
            Some(run) => Some(run),
            None => self.reader.published(&WhichRun::Sequence(sequence)).await?,
        };
        found.ok_or_else(|| ServeError::RunGone { sequence, newest: newest.sequence() })
    }

    /// What runs are read with.
    pub(crate) fn reader(&self) -> &Arc<LakeReader> {
        &self.reader
    }

    /// The lake.
    pub(crate) fn lake(&self) -> &Lake {
        self.reader.lake()
    }

    /// Features in memory.
    pub(crate) fn online(&self) -> &OnlineStore {
        &self.online
    }

    /// Answers from memory, by sample.
    pub(crate) fn served(&self) -> &ServedLog {
        &self.served
    }

    /// Looks for a newer run, also for the features in memory; whether there was one.
    pub(crate) async fn refresh(&self) -> Result<bool> {
        let swapped = self.reader.refresh().await?;
        if self.online.run() < self.newest().sequence() {
            self.online.refresh().await?;
        }
        Ok(swapped)
    }

    /// Follows the lake until stopped. A look that fails leaves the run that is served as it is.
    pub(crate) async fn follow(&self, interval: Duration, stop: CancellationToken) {
        // Nobody waits for it: who asks first meanwhile takes them there.
        if let Err(error) = self.online.refresh().await {
            tracing::warn!(%error, "online features cannot be taken into memory yet");
        }
        let mut kept = Instant::now();
        loop {
            let is_over = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep(interval) => false,
            };
            if is_over || kept.elapsed() >= SERVED_WAIT {
                if let Err(error) = self.served.keep(self.lake()).await {
                    tracing::warn!(%error, "served features that were to be compared later are lost");
                }
                kept = Instant::now();
            }
            if is_over {
                return;
            }
            match self.refresh().await {
                Ok(true) => {
                    let run = self.newest();
                    tracing::info!(
                        monotonic_counter.holdfast_flight_reloads = 1_u64,
                        run = run.sequence(),
                        "serving a newer run"
                    );
                }
                Ok(false) => {}
                Err(error) => {
                    let kind = error.kind().as_str();
                    tracing::warn!(
                        monotonic_counter.holdfast_flight_errors = 1_u64,
                        method = "reload",
                        kind = kind,
                        %error,
                        "cannot look for a newer run, serving the one at hand"
                    );
                }
            }
        }
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<Arc<Published>>> {
        // A panic between push and pop leaves a list that is too long at worst.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
