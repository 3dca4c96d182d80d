use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::connection::{Connection, Piece};
use super::error::PostgresError;
use super::position::Lsn;

const WHAT: &str = "reading the log";
/// How often the server hears from us; it closes connections that are silent for `wal_sender_timeout`, a minute by default.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// How often it is asked where it is while it is behind the place that is waited for.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// The server answers whenever it is asked; it may be silent while it reads a large transaction.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// How much is read ahead: this in the making, and as many as `BATCHES` waiting. A longer message goes alone.
const BATCH_BYTES: usize = 1 << 20;
const BATCHES: usize = 2;
/// The overhead that a small message is counted with.
const MESSAGE_OVERHEAD: usize = 64;

/// What the server sends while it replicates.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message of the plugin.
    Message(Bytes),
    /// All that is committed before this place was sent.
    Reached(Lsn),
}

/// That all before a place is durable in the lake.
struct Confirm {
    lsn: Lsn,
    told: oneshot::Sender<()>,
}

/// The end of a replication connection that is read here. A task at the other end reads ahead a little, answers the server
/// and keeps the connection, however long it takes to store what was read.
#[derive(Debug)]
pub(crate) struct Pump {
    events: mpsc::Receiver<Result<Vec<Event>, PostgresError>>,
    confirms: mpsc::Sender<Confirm>,
    _task: AbortOnDropHandle<()>,
}

impl Pump {
    /// Takes over a connection that replicates. `durable` is in the lake already; the server is asked where it is until it
    /// has come to `target`.
    pub(crate) fn start(connection: Connection, durable: Lsn, target: Lsn) -> Self {
        let (send_events, events) = mpsc::channel(BATCHES);
        let (confirms, receive_confirms) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut reader = Reader {
                connection,
                received: durable,
                durable,
                target,
                server_time: 0,
                heard: Instant::now(),
                answer_due: false,
                batch: Vec::new(),
                batch_bytes: 0,
            };
            if let Err(error) = reader.run(&send_events, receive_confirms).await {
                let _ = send_events.send(Err(error)).await;
            }
        });
        Self { events, confirms, _task: AbortOnDropHandle::new(task) }
    }

    /// The next events. May be cancelled.
    pub(crate) async fn next(&mut self) -> Result<Vec<Event>, PostgresError> {
        let ended = || Err(PostgresError::Internal("reading the log ended without a word".to_owned()));
        self.events.recv().await.unwrap_or_else(ended)
    }

    /// Tells the server that it may forget what is before `lsn`. Returns when that is sent, or the connection is gone: then
    /// the next one tells it.
    pub(crate) async fn confirm(&self, lsn: Lsn) {
        let (told, was_told) = oneshot::channel();
        if self.confirms.send(Confirm { lsn, told }).await.is_ok() {
            let _ = was_told.await;
        }
    }
}

struct Reader {
    connection: Connection,
    received: Lsn,
    durable: Lsn,
    target: Lsn,
    /// The server's clock when it last sent something, in microseconds since 2000.
    server_time: i64,
    heard: Instant,
    /// Whether the server has asked for an answer.
    answer_due: bool,
    batch: Vec<Event>,
    batch_bytes: usize,
}

impl Reader {
    /// Ends when nobody listens any more, or the connection breaks.
    async fn run(
        &mut self,
        events: &mpsc::Sender<Result<Vec<Event>, PostgresError>>,
        mut confirms: mpsc::Receiver<Confirm>,
    ) -> Result<(), PostgresError> {
        let mut tick = interval(ASK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told_at: Option<Instant> = None;
        loop {
            while self.has_room()
                && let Some(piece) = self.connection.copy_data_at_hand(WHAT)?
            {
                self.take(piece)?;
            }
            if std::mem::take(&mut self.answer_due) {
                self.tell(false).await?;
            }
            let (has_room, has_news) = (self.has_room(), !self.batch.is_empty());
            tokio::select! {
                room = events.reserve(), if has_news => {
                    let Ok(room) = room else { return Ok(()) };
                    self.batch_bytes = 0;
                    room.send(Ok(std::mem::take(&mut self.batch)));
                }
                piece = self.connection.copy_data(WHAT), if has_room => self.take(piece?)?,
                confirm = confirms.recv() => {
                    let Some(confirm) = confirm else { return Ok(()) };
                    self.durable = self.durable.max(confirm.lsn);
                    self.tell(false).await?;
                    let _ = confirm.told.send(());
                }
                _ = tick.tick() => {
                    let behind = self.received < self.target;
                    if behind || told_at.is_none_or(|told_at| told_at.elapsed() >= STATUS_EVERY) {
                        self.tell(true).await?;
                        told_at = Some(Instant::now());
                    }
                    if !has_room {
                        // It is we who do not listen.
                        self.heard = Instant::now();
                    } else if self.heard.elapsed() > SILENCE_MAX {
                        let server = self.connection.server().to_owned();
                        return Err(PostgresError::Silent { server, what: WHAT, seconds: SILENCE_MAX.as_secs() });
                    }
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.batch_bytes < BATCH_BYTES
    }

    fn take(&mut self, piece: Piece) -> Result<(), PostgresError> {
        self.heard = Instant::now();
        let Piece::Data(mut piece) = piece else {
            let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the server ended replication");
            return Err(PostgresError::Connection { server: self.connection.server().to_owned(), what: WHAT, source });
        };
        let short = |_| self.connection.protocol("a message of the log is cut short");
        match piece.try_get_u8().map_err(short)? {
            b'w' => {
                let start = piece.try_get_u64().map_err(short)?;
                piece.try_get_u64().map_err(short)?;
                self.server_time = piece.try_get_i64().map_err(short)?;
                self.received = self.received.max(Lsn(start));
                self.batch_bytes += piece.len() + MESSAGE_OVERHEAD;
                self.batch.push(Event::Message(piece));
            }
            b'k' => {
                let end = Lsn(piece.try_get_u64().map_err(short)?);
                self.server_time = piece.try_get_i64().map_err(short)?;
                let asked = piece.try_get_u8().map_err(short)? == 1;
                self.received = self.received.max(end);
                match self.batch.last_mut() {
                    Some(Event::Reached(reached)) => *reached = end,
                    _ => self.batch.push(Event::Reached(end)),
                }
                self.answer_due |= asked;
            }
            _ => return Err(self.connection.protocol("a message of the log is of no known kind")),
        }
        Ok(())
    }

    /// Sends where we are; `ask` asks the server for the same.
    async fn tell(&mut self, ask: bool) -> Result<(), PostgresError> {
        let mut status = Vec::with_capacity(34);
        status.push(b'r');
        status.extend_from_slice(&self.received.0.to_be_bytes());
        status.extend_from_slice(&self.durable.0.to_be_bytes());
        status.extend_from_slice(&self.durable.0.to_be_bytes());
        status.extend_from_slice(&self.server_time.to_be_bytes());
        status.push(u8::from(ask));
        self.connection.send_copy_data(&status).await
    }
}
