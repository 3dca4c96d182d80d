//! Carries answers to a client: with a deadline around the whole stream, backpressure, and an end that is always told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, SchemaAsIpc};
use datafusion::error::DataFusionError;
use futures::{Stream, StreamExt, TryStreamExt};
use holdfast_access::{AccessError, Limits, Principal, Running};
use holdfast_engine::large_lane;
use tokio::sync::mpsc::{self, OwnedPermit, Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::Status;
use tracing::Instrument;

use crate::answer::Answer;
use crate::audited::Audited;
use crate::online_calls::Answers;
use crate::telemetry::{CANCELLED, Call, OK, Sent};
use crate::{Result, ServeError, ServeSettings};

/// Room to run, and the tasks that use it.
#[derive(Debug)]
pub(crate) struct Streams {
    settings: Arc<ServeSettings>,
    /// Running and waiting together.
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
    conversations: Arc<Semaphore>,
    tasks: TaskTracker,
    abort: CancellationToken,
    cancellable: Arc<Mutex<Cancellable>>,
}

/// Streams that run, by whose they are and the hash of their ticket, each with its number.
type Cancellable = HashMap<(Arc<Principal>, blake3::Hash), Vec<(u64, CancellationToken)>>;

/// A stream that its client can cancel, for as long as this is there.
#[derive(Debug)]
pub(crate) struct Cancel {
    streams: Arc<Mutex<Cancellable>>,
    of: (Arc<Principal>, blake3::Hash),
    number: u64,
    token: CancellationToken,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        // A panic in between leaves an entry that nobody asks for.
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_ticket) = streams.get_mut(&self.of) {
            of_ticket.retain(|(number, _)| *number != self.number);
            if of_ticket.is_empty() {
                streams.remove(&self.of);
            }
        }
    }
}

/// A place to run; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _admitted: OwnedSemaphorePermit,
    _running: OwnedSemaphorePermit,
}

/// What the caller's roles allow.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) deadline: Instant,
    pub(crate) limits: Limits,
    /// Where the answer is to a ticket.
    pub(crate) cancel: Option<Cancel>,
    /// It counts as running until the stream has ended.
    pub(crate) _running: Running,
}

/// How a stream ended.
enum End {
    Complete,
    /// The client went away, which is its right.
    Cancelled,
}

impl Streams {
    pub(crate) fn new(settings: Arc<ServeSettings>) -> Self {
        let running = settings.max_concurrent_queries;
        Self {
            admitted: Arc::new(Semaphore::new(running + settings.max_waiting_queries)),
            running: Arc::new(Semaphore::new(running)),
            conversations: Arc::new(Semaphore::new(settings.max_online_exchanges)),
            settings,
            tasks: TaskTracker::new(),
            abort: CancellationToken::new(),
            cancellable: Arc::default(),
        }
    }

    /// Lets the answer to a ticket be cancelled by whose it is.
    pub(crate) fn cancellable(&self, principal: &Arc<Principal>, ticket: &[u8]) -> Cancel {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let (number, token) = (NUMBERS.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        let of = (Arc::clone(principal), blake3::hash(ticket));
        let mut streams = self.cancellable.lock().unwrap_or_else(PoisonError::into_inner);
        streams.entry(of.clone()).or_default().push((number, token.clone()));
        Cancel { streams: Arc::clone(&self.cancellable), of, number, token }
    }

    /// Ends what answers the ticket; whether anything did.
    pub(crate) fn cancel(&self, principal: &Arc<Principal>, ticket: &[u8]) -> bool {
        let streams = self.cancellable.lock().unwrap_or_else(PoisonError::into_inner);
        let found = streams.get(&(Arc::clone(principal), blake3::hash(ticket)));
        found.into_iter().flatten().for_each(|(_, token)| token.cancel());
        found.is_some()
    }

    /// Waits for a place to run; refused at once when too many wait already.
    pub(crate) async fn admit(&self) -> Result<Place> {
        let busy = || ServeError::Busy {
            running: self.settings.max_concurrent_queries,
            waiting: self.settings.max_waiting_queries,
        };
        let admitted = Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| busy())?;
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(|_| ServeError::Stopping)?;
        Ok(Place { _admitted: admitted, _running: running })
    }

    /// A place for an exchange that stays open; refused when there is none.
    pub(crate) fn admit_conversation(&self) -> Result<OwnedSemaphorePermit> {
        let running = self.settings.max_online_exchanges;
        Arc::clone(&self.conversations).try_acquire_owned().map_err(|_| ServeError::Busy { running, waiting: 0 })
    }

    /// Sends answers that come one by one, each as one message, until there are no more, or none for as long as a query may take. `schema` goes first.
    pub(crate) fn converse(
        &self,
        schema: SchemaRef,
        mut answers: Answers,
        (place, limits, running): (OwnedSemaphorePermit, Limits, Running),
        call: Call,
        audited: Audited,
    ) -> Receiver<Result<FlightData, Status>> {
        let (sender, receiver) = mpsc::channel(self.settings.stream_buffer + 1);
        let last_word = sender.clone().try_reserve_owned().ok();
        let (timeout, abort, span) = (self.settings.query_timeout, self.abort.clone(), call.span.clone());
        let pump = async move {
            let mut sent = Sent::default();
            let talk = async {
                let options = IpcWriteOptions::default();
                let mut encoder = Encoder::default();
                if sender.send(Ok(SchemaAsIpc::new(&schema, &options).into())).await.is_err() {
                    return Ok(End::Cancelled);
                }
                loop {
                    let next = tokio::time::timeout(timeout, answers.try_next()).await;
                    let Some((batch, from)) = next.unwrap_or(Err(ServeError::Deadline(timeout)))? else {
                        return Ok(End::Complete);
                    };
                    let message = encoder.message(&batch, &options)?.with_app_metadata(from);
                    let bytes = (message.data_header.len() + message.data_body.len()) as u64;
                    // Each is an answer of its own.
                    within(&limits, batch.num_rows() as u64, bytes)?;
                    sent.bytes += bytes;
                    sent.rows += batch.num_rows() as u64;
                    // Who does not read for so long is gone.
                    match tokio::time::timeout(timeout, sender.send(Ok(message))).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Ok(End::Cancelled),
                        Err(_) => return Err(ServeError::Deadline(timeout)),
                    }
                }
            };
            let end = tokio::select! {
                biased;
                () = abort.cancelled() => Err(ServeError::Stopping),
                () = sender.closed() => Ok(End::Cancelled),
                end = talk => end,
            };
            drop((place, running));
            finish(end, call, audited, sent, last_word);
        };
        self.tasks.spawn(pump.instrument(span));
        receiver
    }

    /// Starts to run the answer; its messages come out of the receiver. Dropping the receiver cancels the work.
    ///
    /// The work goes on in a task of its own, so that the deadline is kept even when the client does not read.
    pub(crate) fn start(
        &self,
        answer: Answer,
        place: Place,
        bounds: Bounds,
        call: Call,
        audited: Audited,
    ) -> Receiver<Result<FlightData, Status>> {
        // One place more than the buffer, reserved for the last word: an error must never wait for a slow reader.
        let (sender, receiver) = mpsc::channel(self.settings.stream_buffer + 1);
        let last_word = sender.clone().try_reserve_owned().ok();
        let settings = Arc::clone(&self.settings);
        let abort = self.abort.clone();
        let cancelled = bounds.cancel.as_ref().map(|cancel| cancel.token.clone()).unwrap_or_default();
        let span = call.span.clone();
        let pump = async move {
            let mut sent = Sent::default();
            let end = tokio::select! {
                biased;
                () = abort.cancelled() => Err(ServeError::Stopping),
                () = cancelled.cancelled() => Err(ServeError::Cancelled),
                () = sender.closed() => Ok(End::Cancelled),
                end = tokio::time::timeout_at(bounds.deadline, pump(answer, &sender, &settings, &bounds.limits, &mut sent)) => {
                    end.unwrap_or_else(|_| Err(ServeError::Deadline(bounds.limits.deadline.unwrap_or(settings.query_timeout))))
                }
            };
            // The plan is dropped by now: others may run while the client reads what is left.
            drop((place, bounds));
            finish(end, call, audited, sent, last_word);
        };
        self.tasks.spawn(pump.instrument(span));
        receiver
    }

    /// Ends every stream with an error that tells to come back later.
    pub(crate) fn abort(&self) {
        self.abort.cancel();
    }

    /// Returns when every stream has ended; none may be started afterwards.
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Notes the end of a stream, and tells the client when it was a bad one.
fn finish(
    end: Result<End>,
    call: Call,
    audited: Audited,
    sent: Sent,
    last_word: Option<OwnedPermit<Result<FlightData, Status>>>,
) {
    let outcome = match &end {
        Ok(End::Complete) => OK,
        Ok(End::Cancelled) | Err(ServeError::Cancelled) => CANCELLED,
        Err(error) => error.kind().as_str(),
    };
    call.end(audited.command, sent, outcome);
    audited.ended(sent.rows, outcome);
    if let (Err(error), Some(last_word)) = (end, last_word) {
        last_word.send(Err(error.status()));
    }
}

/// Encodes batches without dictionaries, each into one message.
#[derive(Default)]
struct Encoder {
    generator: IpcDataGenerator,
    context: IpcWriteContext,
}

impl Encoder {
    fn message(&mut self, batch: &RecordBatch, options: &IpcWriteOptions) -> Result<FlightData> {
        let mut dictionaries = DictionaryTracker::new(false);
        let (_, message) = self.generator.encode(batch, &mut dictionaries, options, &mut self.context)?;
        Ok(message.into())
    }
}

async fn pump(
    answer: Answer,
    sender: &Sender<Result<FlightData, Status>>,
    settings: &ServeSettings,
    limits: &Limits,
    sent: &mut Sent,
) -> Result<End> {
    let schema = Arc::clone(&answer.schema);
    let (batches, is_large) = answer.stream(settings).await?;
    let rows = Arc::new(AtomicU64::new(0));
    let counted = batches.inspect_ok({
        let rows = Arc::clone(&rows);
        move |batch| {
            rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        }
    });
    let messages = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        // Batches are cut to size already, and by their real size; the encoder's own cut counts shared buffers whole.
        .with_max_flight_data_size(usize::MAX)
        .build(counted.map_err(|error| FlightError::from_external_error(Box::new(error))))
        .map_err(ServeError::from_encoder);
    let mut messages = if is_large { elsewhere(messages).boxed() } else { messages.boxed() };
    while let Some(message) = messages.next().await {
        let message = message?;
        let bytes = message.data_header.len() + message.data_body.len();
        // Before it is sent: the message that goes beyond a limit stays here.
        within(limits, rows.load(Ordering::Relaxed), sent.bytes + bytes as u64)?;
        if sender.send(Ok(message)).await.is_err() {
            return Ok(End::Cancelled);
        }
        sent.bytes += bytes as u64;
        sent.rows = rows.load(Ordering::Relaxed);
    }
    Ok(End::Complete)
}

/// The same, read by a task on the threads of large queries, which ends with the stream.
fn elsewhere<T: Send + 'static>(
    stream: impl Stream<Item = Result<T>> + Send + 'static,
) -> impl Stream<Item = Result<T>> {
    let (sender, receiver) = mpsc::channel(1);
    let read = async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(item) = stream.next().await {
            if sender.send(item).await.is_err() {
                return;
            }
        }
    };
    let task = AbortOnDropHandle::new(large_lane().spawn(read.in_current_span()));
    futures::stream::unfold((receiver, Some(task)), async |(mut receiver, mut task)| {
        if let Some(item) = receiver.recv().await {
            return Some((item, (receiver, task)));
        }
        // A task that did not come to its end was not all of the stream.
        let ended = task.take()?.await;
        let error = ServeError::from(DataFusionError::ExecutionJoin(Box::new(ended.err()?)));
        Some((Err(error), (receiver, None)))
    })
}

/// # Errors
/// [`AccessError::LimitReached`] when the answer is larger than the caller's roles allow.
pub(crate) fn within(limits: &Limits, rows: u64, bytes: u64) -> Result<()> {
    let reached = |what: String| {
        AccessError::LimitReached(format!(
            "the answer has more than {what}, which is the limit of your role: ask for less, with `limit` or a condition"
        ))
    };
    if let Some(most) = limits.rows.filter(|most| rows > *most) {
        return Err(reached(format!("{most} rows")).into());
    }
    if let Some(most) = limits.bytes.filter(|most| bytes > *most) {
        return Err(reached(format!("{} MiB", most >> 20)).into());
    }
    Ok(())
}
