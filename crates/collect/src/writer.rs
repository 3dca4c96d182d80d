use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use holdfast_ingest::Inbox;
use holdfast_lake::describe_store_error;
use holdfast_types::Clock;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::body::Hold;
use crate::message::Messages;
use crate::refusal::Refusal;
use crate::seen::{MessageKey, Seen};
use crate::settings::CollectSettings;

/// A request that waits to be written.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) messages: Messages,
    pub(crate) arrived: Instant,
    pub(crate) answer: oneshot::Sender<Result<Taken, Refusal>>,
    /// The room that the request takes up until it is answered.
    pub(crate) hold: Hold,
}

/// What became of a request's messages, all of which are durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) accepted: u64,
    pub(crate) duplicates: u64,
}

/// Writes what is pushed to one source: the only one that does, one object after the other, so that a message that comes
/// twice is seen to, and names of objects grow.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) inbox: Inbox,
    pub(crate) settings: Arc<CollectSettings>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) seen: Seen,
    /// When the newest object was written.
    pub(crate) newest: Option<DateTime<Utc>>,
    /// Whether the last object that was to be written is.
    pub(crate) healthy: Arc<AtomicBool>,
    /// Told of every new object.
    pub(crate) news: Arc<Notify>,
}

/// An object that is to be written.
#[derive(Debug)]
struct Object {
    path: Path,
    bytes: Bytes,
    keys: Vec<MessageKey>,
}

impl Writer {
    /// Writes until `stop` is cancelled and the queue is empty.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Push>, stop: CancellationToken) {
        loop {
            let next = tokio::select! {
                biased;
                push = queue.recv() => push,
                () = stop.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
            };
            let Some(first) = next else { return };
            let group = self.gather(first, &mut queue).await;
            if let Some(object) = self.store(group).await {
                self.settle(object, &mut queue, &stop).await;
            }
        }
    }

    /// The requests that are written together: those that come within a moment of the first.
    async fn gather(&self, first: Push, queue: &mut mpsc::Receiver<Push>) -> Vec<Push> {
        let deadline = first.arrived + self.settings.gather;
        let mut bytes = first.messages.bytes();
        let mut group = vec![first];
        while bytes < self.settings.object_bytes_max {
            // Also after the deadline this takes what is waiting already.
            let Ok(Some(push)) = timeout_at(deadline, queue.recv()).await else { break };
            bytes += push.messages.bytes();
            group.push(push);
        }
        group
    }

    /// Writes what is new of a group and answers its requests. Returns the object when it is not known whether it is
    /// there.
    async fn store(&mut self, group: Vec<Push>) -> Option<Object> {
        let mut bytes = Vec::with_capacity(group.iter().map(|push| push.messages.bytes()).sum());
        let (mut keys, mut fresh) = (Vec::new(), HashSet::new());
        let mut answers = Vec::with_capacity(group.len());
        for push in group {
            let mut taken = Taken::default();
            for (key, line) in push.messages.iter() {
                if self.seen.contains(key) || !fresh.insert(key) {
                    taken.duplicates += 1;
                } else {
                    taken.accepted += 1;
                    bytes.extend_from_slice(line);
                    keys.push(key);
                }
            }
            answers.push(Waiting { answer: push.answer, taken, hold: push.hold });
        }
        if keys.is_empty() {
            answer(answers, None);
            return None;
        }
        let object = Object { path: self.next_path(), bytes: bytes.into(), keys };
        match self.write(&object).await {
            Ok(()) => {
                self.stored(&object);
                answer(answers, None);
                None
            }
            Err(error) => {
                answer(answers, Some(&Refusal::Unavailable));
                self.healthy.store(false, Ordering::Relaxed);
                let source = self.inbox.source();
                tracing::warn!(source, error, "pushed messages cannot be written; it is tried again until they are");
                tracing::info!(monotonic_counter.holdfast_collect_write_errors = 1_u64, source);
                Some(object)
            }
        }
    }

    /// Writes an object until it is there, since a write that failed may have been done all the same: its messages may
    /// only be taken again once that is known. Until then every request is told to come back.
    async fn settle(&mut self, object: Object, queue: &mut mpsc::Receiver<Push>, stop: &CancellationToken) {
        let mut again_at = Instant::now() + self.settings.write_again_after;
        loop {
            tokio::select! {
                push = queue.recv() => match push {
                    Some(Push { answer: waiting, hold, .. }) => {
                        let waiting = Waiting { answer: waiting, taken: Taken::default(), hold };
                        answer(vec![waiting], Some(&Refusal::Unavailable));
                    }
                    None => return,
                },
                () = stop.cancelled(), if !queue.is_closed() => queue.close(),
                () = sleep_until(again_at) => {
                    if self.write(&object).await.is_ok() {
                        self.stored(&object);
                        self.healthy.store(true, Ordering::Relaxed);
                        tracing::warn!(source = self.inbox.source(), "pushed messages can be written again");
                        return;
                    }
                    tracing::info!(
                        monotonic_counter.holdfast_collect_write_errors = 1_u64,
                        source = self.inbox.source()
                    );
                    again_at = Instant::now() + self.settings.write_again_after;
                }
            }
        }
    }

    async fn write(&self, object: &Object) -> Result<(), String> {
        let put = self.inbox.lake().store().put(&object.path, object.bytes.clone().into());
        match timeout(self.settings.write_timeout, put).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(describe_store_error(&error)),
            Err(_) => Err(format!("no answer from the store within {} s", self.settings.write_timeout.as_secs_f64())),
        }
    }

    fn stored(&mut self, object: &Object) {
        object.keys.iter().for_each(|key| self.seen.remember(*key));
        self.news.notify_one();
        tracing::info!(
            monotonic_counter.holdfast_collect_bytes = u64::try_from(object.bytes.len()).unwrap_or(u64::MAX),
            source = self.inbox.source(),
        );
    }

    /// A name behind all others, also when the clock was set back.
    fn next_path(&mut self) -> Path {
        let now = self.clock.now();
        let moment = self.newest.map_or(now, |newest| now.max(newest + Duration::from_millis(1)));
        self.newest = Some(moment);
        self.inbox.object(moment)
    }
}

/// A request whose fate is decided.
struct Waiting {
    answer: oneshot::Sender<Result<Taken, Refusal>>,
    taken: Taken,
    hold: Hold,
}

/// Answers all of them, with what was taken or with the refusal. Who has gone away needs no answer.
fn answer(waiting: Vec<Waiting>, refusal: Option<&Refusal>) {
    for Waiting { answer, taken, hold } in waiting {
        drop(hold);
        let _ = answer.send(refusal.map_or(Ok(taken), |refusal| Err(refusal.clone())));
    }
}
