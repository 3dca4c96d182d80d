//! Record batches that clients put into sources: the only part of the service that writes.
//!
//! A batch is acknowledged when it is durable as an object of its source's inbox, and not before. From there it is brought
//! into `raw` by the steps that files take, in this process. Of a client that goes away nothing is left half: a batch is
//! stored as a whole or not at all.
//!
//! What all streams hold in memory is bounded: so many streams, each with one message that arrives, and one common room for
//! the batches that are being stored. The first message is read before that, since it says whether the call is a put at all. A stream whose batch finds no room waits, and its client with it; after a while it is
//! told to come back.

pub(crate) mod decode;
mod request;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow_flight::sql::{Any, Command, DoPutUpdateResult};
use arrow_flight::{FlightData, PutResult};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use holdfast_ingest::{
    FollowSettings, InboxReader, IngestError, IngestSettings, PutInbox, PutLayout, PutStream, SourceSpec, Stored,
    follow,
};
use holdfast_lake::Lake;
use prost::Message;
use serde::Serialize;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};
use tracing::{Instrument, Span};

use self::decode::{Decoded, Decoder};
use self::request::{Position, Protocol, Request};
use crate::settings::within;
use crate::telemetry::{CANCELLED, Call, OK, Sent};
use crate::{Result, ServeError, Token};

/// A header that names the stream, for clients that cannot set `app_metadata`.
const STREAM_HEADER: &str = "holdfast-stream";
/// What a message takes while it is stored, as many times its length: the buffer it came in, the message, its rows, their pages in the
/// Parquet writer, and the object made of them.
const COPIES: usize = 5;
/// What room is counted in.
const ROOM_UNIT: usize = 1 << 10;
/// Acknowledgements that wait for a client which sends first and reads later.
const ANSWERS_WAITING_MAX: usize = 65_536;
/// Rows of a batch. A column without values has rows, but no bytes.
const ROWS_MAX: usize = 1 << 24;
/// Names of sources that a message shows.
const SOURCES_SHOWN_MAX: usize = 20;

/// Limits of what clients put.
#[derive(Debug, Clone)]
pub struct PutSettings {
    /// Required from every client that puts. It must be there when one is required for reading, and another.
    pub token: Option<Token>,
    /// Streams at the same time; one more is told to come back. 1 to 1,000.
    pub streams_max: usize,
    /// What the batches that are being stored may hold together, of all streams. At least six times the size of a request
    /// message, at most 64 GiB.
    pub memory_bytes_max: usize,
    /// Batches of a stream that are being stored at the same time. 1 to 64.
    pub batches_ahead: usize,
    /// How long a batch may wait for room before its client is told to come back. Up to 1 hour.
    pub room_timeout: Duration,
    /// How long a client may take to send the next message. 100 ms to 24 hours.
    pub idle_timeout: Duration,
    /// From the beginning of a call to its end. 100 ms to 24 hours.
    pub stream_timeout: Duration,
    /// How long the store may take for one batch. 100 ms to 1 hour.
    pub write_timeout: Duration,
    /// How often new batches are brought into `raw`. 10 ms to 1 hour.
    pub ingest_interval: Duration,
}

impl Default for PutSettings {
    fn default() -> Self {
        Self {
            token: None,
            streams_max: 16,
            memory_bytes_max: 384 << 20,
            batches_ahead: 4,
            room_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            stream_timeout: Duration::from_secs(3_600),
            write_timeout: Duration::from_secs(30),
            ingest_interval: Duration::from_secs(1),
        }
    }
}

impl PutSettings {
    /// Checks every setting against its limits, and that whoever may read may not write by that alone.
    pub(crate) fn check(&self, read_token: Option<&Token>, is_protected: bool, max_request_bytes: usize) -> Result<()> {
        const HOUR: Duration = Duration::from_secs(3_600);
        const SHORT: Duration = Duration::from_millis(100);
        match (read_token, &self.token) {
            (_, None) if is_protected => return Err(ServeError::PutsUnprotected),
            (Some(read), Some(put)) if read.is_same(put) => {
                return Err(ServeError::Token {
                    reason: "reading and putting need different ones, or who may read could write".to_owned(),
                });
            }
            _ => {}
        }
        within("streams_max", self.streams_max, 1, 1_000)?;
        let least = max_request_bytes.saturating_mul(COPIES + 1);
        within("memory_bytes_max", self.memory_bytes_max, least, 1 << 36)?;
        within("batches_ahead", self.batches_ahead, 1, 64)?;
        within("room_timeout", self.room_timeout, Duration::ZERO, HOUR)?;
        within("idle_timeout", self.idle_timeout, SHORT, 24 * HOUR)?;
        within("stream_timeout", self.stream_timeout, SHORT, 24 * HOUR)?;
        within("write_timeout", self.write_timeout, SHORT, HOUR)?;
        within("ingest_interval", self.ingest_interval, Duration::from_millis(10), HOUR)
    }
}

/// The sources that take batches, and all that takes them.
#[derive(Debug)]
pub struct Puts {
    sources: BTreeMap<String, Source>,
    settings: PutSettings,
    ingest: IngestSettings,
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    followers: Mutex<JoinSet<()>>,
    /// No more is read.
    stop: CancellationToken,
    /// Nothing goes on.
    abort: CancellationToken,
    /// All that was put is in the inbox: once more into `raw`, then no more.
    stop_following: CancellationToken,
}

#[derive(Debug)]
struct Source {
    inbox: PutInbox,
    /// Told of every new object.
    news: Arc<Notify>,
    followed: AtomicBool,
}

/// Where a batch is stored: the acknowledgement, as JSON in `PutResult.app_metadata`.
#[derive(Debug, Serialize)]
struct Acknowledgement<'a> {
    stream: &'a str,
    batch: u64,
    rows: usize,
    /// `stored`, or `known` when it was stored before.
    outcome: &'static str,
}

/// A batch that is durable.
#[derive(Debug)]
struct Done {
    batch: u64,
    rows: usize,
    /// Of its object.
    bytes: usize,
    stored: Stored,
    arrived: Instant,
    span: Span,
}

/// How far a call is.
#[derive(Debug, Default)]
struct Progress {
    source: String,
    protocol: Option<Protocol>,
    stream: String,
    batches: u64,
    rows: u64,
    last: u64,
}

impl Puts {
    /// Takes batches for these sources. Nothing is read or written yet.
    pub fn new(
        lake: &Lake,
        pipeline: &str,
        sources: &[SourceSpec],
        settings: PutSettings,
        ingest: IngestSettings,
    ) -> Self {
        let sources = sources
            .iter()
            .map(|spec| {
                let inbox = PutInbox::new(lake, pipeline, spec, settings.write_timeout);
                let source = Source { inbox, news: Arc::new(Notify::new()), followed: AtomicBool::new(false) };
                (spec.name.clone(), source)
            })
            .collect();
        Self {
            sources,
            places: Arc::new(Semaphore::new(settings.streams_max)),
            room: Arc::new(Semaphore::new(settings.memory_bytes_max / ROOM_UNIT)),
            settings,
            ingest,
            tasks: TaskTracker::new(),
            followers: Mutex::default(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            stop_following: CancellationToken::new(),
        }
    }

    pub(crate) fn settings(&self) -> &PutSettings {
        &self.settings
    }

    /// Follows the inboxes that something was ever put into: an earlier server may have died before it was in `raw`.
    pub(crate) async fn resume(&self) -> Result<()> {
        for source in self.sources.values() {
            if !source.inbox.is_empty().await? {
                self.follow(source);
            }
        }
        Ok(())
    }

    /// Takes the batches of a call, of which `first` was read; their acknowledgements come out of the receiver. Dropping it ends the call.
    pub(crate) fn begin(
        self: &Arc<Self>,
        metadata: &MetadataMap,
        first: FlightData,
        mut messages: Streaming<FlightData>,
        call: Call,
    ) -> Result<Receiver<Result<PutResult, Status>>> {
        if self.stop.is_cancelled() {
            return Err(ServeError::Stopping);
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| ServeError::PutsFull {
            what: format!("{} streams are being put, which is the limit", self.settings.streams_max),
        })?;
        let stream = match metadata.get(STREAM_HEADER).map(|value| value.to_str().map(str::to_owned)) {
            None => None,
            Some(Ok(name)) => Some(name),
            Some(Err(_)) => {
                return Err(ServeError::Request(format!(
                    "the header `{STREAM_HEADER}` is the stream's name, in ASCII"
                )));
            }
        };
        // One place more, reserved for the last word: an error must never wait for a slow reader.
        let (answers, receiver) = mpsc::channel(ANSWERS_WAITING_MAX + 1);
        let last_word = answers.clone().try_reserve_owned().ok();
        let puts = Arc::clone(self);
        let span = call.span.clone();
        let deadline = Instant::now() + self.settings.stream_timeout;
        let take = async move {
            let mut progress = Progress::default();
            let end = tokio::select! {
                biased;
                () = puts.abort.cancelled() => Err(ServeError::Stopping),
                () = answers.closed() => Ok(false),
                end = timeout_at(deadline, Box::pin(puts.take((first, &mut messages), stream, &answers, &mut progress))) => {
                    end.unwrap_or(Err(ServeError::PutTimeout {
                        limit: puts.settings.stream_timeout,
                        what: "the limit for one call: go on in another",
                    }))
                }
            };
            drop(place);
            let outcome = match &end {
                Ok(true) => OK,
                Ok(false) => CANCELLED,
                Err(error) => error.kind().as_str(),
            };
            call.span.record("table", progress.source.as_str());
            call.end(progress.protocol.map_or("", Protocol::label), Sent::default(), outcome);
            if let (Err(error), Some(last_word)) = (end, last_word) {
                last_word.send(Err(progress.status(&error)));
            }
        };
        self.tasks.spawn(take.instrument(span));
        Ok(receiver)
    }

    /// Reads no more. What has arrived is stored and acknowledged.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    /// Returns when every call has ended, after [`Puts::stop`], and what was put is in `raw`.
    pub(crate) async fn ended(&self) {
        self.tasks.wait().await;
        self.stop_following.cancel();
        let mut followers = std::mem::take(&mut *self.followers());
        while followers.join_next().await.is_some() {}
    }

    /// Ends every call, and what was put stays in the inbox for the next server.
    pub(crate) fn abort(&self) {
        self.abort.cancel();
        self.followers().abort_all();
    }

    /// Whether the client stayed until the end.
    async fn take(
        &self,
        (first, messages): (FlightData, &mut Streaming<FlightData>),
        stream: Option<String>,
        answers: &Sender<Result<PutResult, Status>>,
        progress: &mut Progress,
    ) -> Result<bool> {
        let mut storing = FuturesOrdered::new();
        let ended = Box::pin(self.read((first, messages), stream, answers, progress, &mut storing)).await;
        // What was read before an error is stored all the same, and acknowledged before the error is told.
        while let Some(done) = storing.next().await {
            self.acknowledge(done.map_err(lost)??, answers, progress).await?;
        }
        let end = ended?;
        if let End::Complete(Protocol::Ingest) = end {
            let result = DoPutUpdateResult { record_count: i64::try_from(progress.rows).unwrap_or(i64::MAX) };
            answer(answers, result.encode_to_vec().into()).await;
        }
        Ok(matches!(end, End::Complete(_)))
    }

    /// Reads until the client has sent all, and starts to store what it reads.
    async fn read(
        &self,
        (mut message, messages): (FlightData, &mut Streaming<FlightData>),
        mut named: Option<String>,
        answers: &Sender<Result<PutResult, Status>>,
        progress: &mut Progress,
        storing: &mut FuturesOrdered<AbortOnDropHandle<Result<Done>>>,
    ) -> Result<End> {
        let request = Request::from_descriptor(message.flight_descriptor.as_ref())?;
        progress.protocol = Some(request.protocol);
        Span::current().record("command", request.protocol.label());
        let source = self.source(&request.source)?;
        progress.source.clone_from(&request.source);

        let mut decoder = Decoder::new(self.settings.memory_bytes_max / self.settings.streams_max.max(4));
        let mut dictionaries: HashMap<i64, OwnedSemaphorePermit> = HashMap::new();
        let mut layout: Option<Arc<PutLayout>> = None;
        let mut stream: Option<PutStream> = None;
        let mut next_batch = 0;
        loop {
            let arrived = Instant::now();
            let position = Position::parse(&message.app_metadata)?;
            if let Some(name) = position.stream {
                match &stream {
                    Some(stream) if stream.name() != name => {
                        return Err(ServeError::Request(
                            "the stream has begun and keeps its name: begin another call for another stream".to_owned(),
                        ));
                    }
                    _ => named = Some(name),
                }
            }
            next_batch = position.batch.unwrap_or(next_batch);
            if next_batch > PutStream::BATCH_MAX {
                return Err(ServeError::Request(format!("batches have numbers from 0 to {}", PutStream::BATCH_MAX)));
            }
            if !message.data_header.is_empty() {
                let hold = self.hold(message.data_body.len()).await?;
                let decoded;
                (decoder, decoded) = decoder.decode(message.data_header, message.data_body).await?;
                match (decoded, &layout) {
                    (Decoded::Schema(schema), _) => layout = Some(Arc::new(source.inbox.layout(&schema)?)),
                    // It is needed until another takes its place.
                    (Decoded::Dictionary(id), _) => drop(dictionaries.insert(id, hold)),
                    (Decoded::Batch(_), None) => {
                        return Err(ServeError::Request("rows came before their schema".to_owned()));
                    }
                    (Decoded::Batch(rows), Some(layout)) => {
                        if rows.num_rows() > ROWS_MAX {
                            return Err(ServeError::Request(format!(
                                "batch {next_batch} has more than {ROWS_MAX} rows: send smaller ones"
                            )));
                        }
                        // Dictionaries make short what may be long.
                        let unpacked = layout.unpacked_bytes(&rows);
                        let unpacked_max = self.settings.memory_bytes_max / (COPIES + 1);
                        if unpacked > unpacked_max {
                            return Err(ServeError::Request(format!(
                                "batch {next_batch} is longer than {} MiB without its dictionaries: send smaller ones",
                                unpacked_max >> 20
                            )));
                        }
                        let hold = [hold, self.hold(unpacked).await?];
                        let stream = match &mut stream {
                            Some(stream) => stream,
                            none => {
                                let opened = source.inbox.stream(named.as_deref()).await?;
                                opened.name().clone_into(&mut progress.stream);
                                none.insert(opened)
                            }
                        };
                        let storable = Storable { rows, batch: next_batch, arrived, hold };
                        storing.push_back(self.store(source, stream.clone(), Arc::clone(layout), storable));
                        next_batch += 1;
                    }
                }
            }
            message = loop {
                tokio::select! {
                    biased;
                    Some(done) = storing.next(), if !storing.is_empty() => {
                        self.acknowledge(done.map_err(lost)??, answers, progress).await?;
                    }
                    () = self.stop.cancelled() => return Err(ServeError::Stopping),
                    next = next_message(messages, self.settings.idle_timeout), if storing.len() < self.settings.batches_ahead => {
                        match next? {
                            None => return Ok(End::Complete(request.protocol)),
                            Some(next) => match next.message() {
                                Some(message) => break message,
                                None => return Ok(End::Gone),
                            },
                        }
                    }
                }
            };
        }
    }

    /// Room for a message and what is made of it. Waits for a while.
    async fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.saturating_mul(COPIES).div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(units);
        match timeout(self.settings.room_timeout, room).await {
            Ok(Ok(hold)) => Ok(hold),
            _ => Err(ServeError::PutsFull {
                what: format!(
                    "the batches that are being stored hold {} MiB, which is the limit",
                    self.settings.memory_bytes_max >> 20
                ),
            }),
        }
    }

    /// Stores a batch, in a task of its own that ends when what is returned is dropped.
    fn store(
        &self,
        source: &Source,
        stream: PutStream,
        layout: Arc<PutLayout>,
        storable: Storable,
    ) -> AbortOnDropHandle<Result<Done>> {
        self.follow(source);
        let Storable { rows, batch, arrived, hold } = storable;
        let span = tracing::info_span!(
            "put_batch",
            source = source.inbox.source(),
            rows = rows.num_rows(),
            bytes = tracing::field::Empty,
            outcome = tracing::field::Empty,
        );
        let done_span = span.clone();
        let store = async move {
            let count = rows.num_rows();
            if count == 0 {
                return Ok(Done { batch, rows: 0, bytes: 0, stored: Stored::New, arrived, span: done_span });
            }
            let name = stream.name().to_owned();
            let object = spawn_blocking(move || layout.object(&name, batch, &rows)).await.map_err(lost)??;
            let bytes = object.len();
            let stored = stream.store(batch, object).await?;
            drop(hold);
            Ok(Done { batch, rows: count, bytes, stored, arrived, span: done_span })
        };
        AbortOnDropHandle::new(tokio::spawn(store.instrument(span)))
    }

    async fn acknowledge(
        &self,
        done: Done,
        answers: &Sender<Result<PutResult, Status>>,
        progress: &mut Progress,
    ) -> Result<()> {
        let outcome = match done.stored {
            Stored::New => "stored",
            Stored::Known => "known",
        };
        done.span.record("bytes", done.bytes).record("outcome", outcome);
        progress.batches += 1;
        progress.rows += u64::try_from(done.rows).unwrap_or(0);
        progress.last = done.batch;
        let source = progress.source.as_str();
        if let Some(source) = self.sources.get(source) {
            source.news.notify_one();
        }
        if progress.protocol == Some(Protocol::Flight) {
            let acknowledgement =
                Acknowledgement { stream: &progress.stream, batch: done.batch, rows: done.rows, outcome };
            let metadata = serde_json::to_vec(&acknowledgement)
                .map_err(|error| ServeError::Ingest(IngestError::Internal(error.to_string())))?;
            answer(answers, metadata.into()).await;
        }
        let new_bytes = if done.stored == Stored::New { done.bytes } else { 0 };
        tracing::info!(
            monotonic_counter.holdfast_put_batches = 1_u64,
            monotonic_counter.holdfast_put_rows = u64::try_from(done.rows).unwrap_or(0),
            monotonic_counter.holdfast_put_bytes = u64::try_from(new_bytes).unwrap_or(0),
            histogram.holdfast_put_ack_seconds = done.arrived.elapsed().as_secs_f64(),
            source,
            outcome,
        );
        Ok(())
    }

    fn source(&self, name: &str) -> Result<&Source> {
        self.sources.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.sources.keys().map(String::as_str).collect();
            let nearest = names
                .iter()
                .copied()
                .max_by(|left, right| strsim::jaro_winkler(left, name).total_cmp(&strsim::jaro_winkler(right, name)));
            let nearest = nearest.filter(|nearest| strsim::jaro_winkler(nearest, name) > 0.8);
            let more = if names.len() > SOURCES_SHOWN_MAX { ", …" } else { "" };
            ServeError::NoSource {
                name: name.chars().filter(|c| !c.is_control()).take(120).collect(),
                hint: match nearest {
                    Some(nearest) => format!("did you mean `{nearest}`?"),
                    None => format!("there are {}{more}", names[..names.len().min(SOURCES_SHOWN_MAX)].join(", ")),
                },
            }
        })
    }

    /// Brings what is put into a source into `raw` from now on.
    fn follow(&self, source: &Source) {
        if source.followed.swap(true, Ordering::Relaxed) {
            return;
        }
        let reader = InboxReader::new(source.inbox.inbox().clone(), self.ingest.clone());
        let settings = FollowSettings { interval: self.settings.ingest_interval, ..FollowSettings::default() };
        let (caught_up, _) = watch::channel(None);
        let following = follow(reader, settings, Arc::clone(&source.news), caught_up, self.stop_following.clone());
        self.followers().spawn(Box::pin(following));
    }

    fn followers(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        // What is done under the lock cannot leave the set by half.
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first message of a client, which says what it puts.
///
/// # Errors
/// [`ServeError::Request`] when there is none; [`ServeError::PutTimeout`] when none comes within `limit`.
pub(crate) async fn first(messages: &mut Streaming<FlightData>, limit: Duration) -> Result<FlightData> {
    next_message(messages, limit)
        .await?
        .and_then(Next::message)
        .ok_or_else(|| ServeError::Request("nothing was sent: begin with a descriptor and a schema".to_owned()))
}

/// The handle of the prepared statement to which values are bound, where a first message says so.
pub(crate) fn prepared_statement(first: &FlightData) -> Option<Bytes> {
    let any = Any::decode(first.flight_descriptor.as_ref()?.cmd.as_ref()).ok()?;
    match Command::try_from(any) {
        Ok(Command::CommandPreparedStatementQuery(command)) => Some(command.prepared_statement_handle),
        _ => None,
    }
}

/// The next message; `None` when the client has sent all. May be dropped and called again.
async fn next_message(messages: &mut Streaming<FlightData>, limit: Duration) -> Result<Option<Next>> {
    match timeout(limit, messages.message()).await {
        Err(_) => Err(ServeError::PutTimeout { limit, what: "the limit for sending the next batch" }),
        Ok(Ok(message)) => Ok(message.map(|message| Next::Message(Box::new(message)))),
        Ok(Err(status)) if status.code() == Code::OutOfRange => Err(ServeError::Request(format!(
            "a batch is too large ({}): send smaller ones, such as write_table(table, max_chunksize=100_000) or \
             table.to_reader(max_chunksize=100_000) in pyarrow",
            status.message()
        ))),
        // The connection broke, or the client ended the call: nobody is there to be told.
        Ok(Err(_)) => Ok(Some(Next::Gone)),
    }
}

/// What came of waiting for a message.
enum Next {
    Message(Box<FlightData>),
    Gone,
}

impl Next {
    fn message(self) -> Option<FlightData> {
        match self {
            Self::Message(message) => Some(*message),
            Self::Gone => None,
        }
    }
}

/// How reading ended, if not by an error.
enum End {
    /// The client has sent all that it wanted to.
    Complete(Protocol),
    /// The client went away, which is its right.
    Gone,
}

/// A batch that has arrived, and the room that it takes up until it is stored.
struct Storable {
    rows: RecordBatch,
    batch: u64,
    arrived: Instant,
    hold: [OwnedSemaphorePermit; 2],
}

impl Progress {
    /// The error, with what a client needs to go on.
    fn status(&self, error: &ServeError) -> Status {
        match self.batches {
            0 => error.status(),
            batches => error.status_with(&format!(
                "; {batches} batches ({} rows) of stream `{}` before it are stored, up to batch {}",
                self.rows, self.stream, self.last
            )),
        }
    }
}

/// A client that does not read any more is noticed by the channel that closes.
async fn answer(answers: &Sender<Result<PutResult, Status>>, app_metadata: Bytes) {
    let _ = answers.send(Ok(PutResult { app_metadata })).await;
}

fn lost(error: impl std::fmt::Display) -> ServeError {
    ServeError::Ingest(IngestError::Internal(format!("a task that stores a batch ended by itself: {error}")))
}
