//! The audit log: who saw what, in the append-only table `audit.accesses`, each row bound to the one before it by a hash.
//!
//! Each process that serves writes a chain of its own, so that nobody waits for another. The first row of a chain names the last row
//! of every chain that none has named yet; so whatever is changed, taken away or put elsewhere is found, but for the newest rows of the newest
//! chains: of those the table's log says how many there were. Hashes are keyed: who has no key cannot make them anew. No row holds a
//! customer's data: statements are told by a hash that leaves out their literals.

mod chain;
mod told;
mod touched;
mod verify;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use chrono::{DateTime, Utc};
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, Position, StagedFile, Table, TableSpec, TableWriter, WriterSettings,
};
use holdfast_types::{COMMENT_KEY, TableName};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

pub use self::chain::AuditKey;
use self::chain::{Row, batch_of};
pub(crate) use self::told::Told;
pub use self::touched::{Touched, query_hash, touched};
pub use self::verify::{AuditReport, BrokenLink, verify};
use crate::{AccessError, Principal, Result};

/// The schema of the audit log.
pub(crate) const SCHEMA: &str = "audit";
const TABLE: &str = "accesses";
/// Accesses that wait to be written; beyond it they are lost, or refused where they must be written.
const WAITING_MAX: usize = 20_000;
/// Rows of one commit.
const BATCH_ROWS: usize = 2_000;
/// How long rows wait for others.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_REQUIRED: Duration = Duration::from_millis(25);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How long somebody waits for his access to be written before he is refused.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// An access.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AuditEntry {
    /// Who.
    pub principal: String,
    /// How it came in.
    pub authentication: &'static str,
    /// `flight`, `postgres`, `command`.
    pub protocol: &'static str,
    /// What kind of question; `list:…` of what tells what there is, and no rows of it.
    pub action: String,
    /// Of a statement: [`query_hash`].
    pub query_hash: Option<String>,
    /// What was read.
    pub touched: Touched,
    /// The policy that decided; empty without one.
    pub policy_version: String,
    /// The run that was read.
    pub run: u64,
    /// Rows that were sent.
    pub rows: u64,
    /// `begun`, `ok`, `cancelled`, `refused`, or the kind of the error.
    pub outcome: &'static str,
    /// From the question to the end.
    pub duration: Duration,
}

/// Writes the audit log in the background.
#[derive(Debug)]
pub struct Audit {
    sender: std::sync::Mutex<Option<mpsc::Sender<Message>>>,
    task: Mutex<Option<JoinHandle<()>>>,
    lost: Arc<AtomicU64>,
    is_required: bool,
}

#[derive(Debug)]
struct Message {
    /// Nothing, from who only waits for what is before it.
    entry: Option<(AuditEntry, DateTime<Utc>)>,
    written: Option<oneshot::Sender<Result<(), String>>>,
}

impl Audit {
    /// Begins a chain in the lake. With `is_required` nobody is answered whose access cannot be written.
    pub fn start(lake: Lake, key: AuditKey, is_required: bool) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            lake,
            key,
            chain: uuid::Uuid::now_v7().to_string(),
            next: 0,
            previous: String::new(),
            lost: Arc::clone(&lost),
            linger: if is_required { LINGER_REQUIRED } else { LINGER },
        };
        let task = tokio::spawn(writer.run(receiver));
        Self { sender: std::sync::Mutex::new(Some(sender)), task: Mutex::new(Some(task)), lost, is_required }
    }

    /// Whether answers wait for what is written.
    pub fn is_required(&self) -> bool {
        self.is_required
    }

    /// Writes down an access some time later. What finds no room is counted, and the next row says how many they were.
    pub fn note(&self, entry: AuditEntry, now: DateTime<Utc>) {
        if self.send(Message { entry: Some((entry, now)), written: None }).is_err() {
            self.lost.fetch_add(1, Ordering::AcqRel);
            tracing::error!(monotonic_counter.holdfast_audit_lost = 1_u64, "an access could not be written down");
        }
    }

    /// Writes down an access and returns when it is in the lake. Where that is not required it returns at once.
    ///
    /// # Errors
    /// [`AccessError::NotAudited`] when it is required and did not succeed.
    pub async fn begin(&self, entry: AuditEntry, now: DateTime<Utc>) -> Result<()> {
        if !self.is_required {
            return Ok(());
        }
        let (written, is_written) = oneshot::channel();
        let full = |()| AccessError::NotAudited("too many accesses wait to be written".to_owned());
        self.send(Message { entry: Some((entry, now)), written: Some(written) }).map_err(full)?;
        match tokio::time::timeout(WRITTEN_WITHIN, is_written).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(why))) => Err(AccessError::NotAudited(why)),
            Ok(Err(_)) => Err(AccessError::NotAudited("the service is stopping".to_owned())),
            Err(_) => Err(AccessError::NotAudited(format!("it took longer than {} s", WRITTEN_WITHIN.as_secs()))),
        }
    }

    /// Returns when all that was noted before is in the lake, or the time is over; then a log line says so.
    pub async fn flush(&self, within: Duration) {
        let (written, is_written) = oneshot::channel();
        let is_sent = self.send(Message { entry: None, written: Some(written) }).is_ok();
        if is_sent && !matches!(tokio::time::timeout(within, is_written).await, Ok(Ok(Ok(())))) {
            tracing::error!("the last accesses are not written down");
        }
    }

    /// Writes what waits, within the time. Nothing can be noted afterwards.
    pub async fn close(&self, within: Duration) {
        self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(mut task) = self.task.lock().await.take()
            && tokio::time::timeout(within, &mut task).await.is_err()
        {
            task.abort();
            tracing::error!("the last accesses could not be written down");
        }
    }

    fn send(&self, message: Message) -> Result<(), ()> {
        let sender = self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sender.as_ref().ok_or(())?.try_send(message).map_err(|_| ())
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
        }
    }
}

impl AuditEntry {
    /// An access of somebody that has read nothing yet.
    pub fn of(principal: &Principal, protocol: &'static str, action: &str) -> Self {
        Self {
            principal: principal.name.clone(),
            authentication: principal.by.as_str(),
            protocol,
            action: action.to_owned(),
            query_hash: None,
            touched: Touched::default(),
            policy_version: String::new(),
            run: 0,
            rows: 0,
            outcome: "begun",
            duration: Duration::ZERO,
        }
    }
}

/// The table that accesses are written to.
///
/// # Errors
/// Never in practice: the name is a constant.
pub fn table_name() -> Result<TableName> {
    TableName::new(SCHEMA, TABLE).map_err(|error| AccessError::Invalid(error.to_string()))
}

fn table_spec() -> Result<TableSpec> {
    let field = |name: &str, data_type: DataType, comment: &str| {
        let comment = [(COMMENT_KEY.to_owned(), comment.to_owned())];
        Field::new(name, data_type, true).with_metadata(comment.into_iter().collect())
    };
    let list = || DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let at = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Schema::new(vec![
        field("chain", DataType::Utf8, "The process that wrote the row"),
        field("sequence", DataType::Int64, "The row's place in its chain, from 0"),
        field("at", at, "When it was noted"),
        field("principal", DataType::Utf8, "Who"),
        field("authentication", DataType::Utf8, "How it came in"),
        field("protocol", DataType::Utf8, "flight, postgres or command"),
        field("action", DataType::Utf8, "What kind of question; list:… told what there is, and no rows of it"),
        field("query_hash", DataType::Utf8, "Equal for statements that differ in their literals alone"),
        field("tables", list(), "The tables that were read"),
        field("columns", list(), "The columns that were read, as table.column"),
        field("policy_version", DataType::Utf8, "The policy that decided"),
        field("run", DataType::Int64, "The published run that was read"),
        field("rows", DataType::Int64, "Rows that were sent"),
        field("outcome", DataType::Utf8, "begun, ok, cancelled, refused, or the kind of the error"),
        field("duration_ms", DataType::Int64, "From the question to the end"),
        field("lost", DataType::Int64, "Accesses before this one that found no room to be written"),
        field("links", list(), "In a chain's first row: the last rows of chains that no row names yet"),
        field("previous_hash", DataType::Utf8, "The hash of the row before it in its chain"),
        field("hash", DataType::Utf8, "Of everything in the row, keyed"),
    ]);
    Ok(TableSpec {
        name: table_name()?,
        schema: Arc::new(schema),
        partition_by: Vec::new(),
        comment: "Who read what: append-only, each row bound to the one before it".to_owned(),
    })
}

/// Writes one chain.
struct Writer {
    lake: Lake,
    key: AuditKey,
    chain: String,
    /// The place of the next row.
    next: i64,
    /// The hash of the row before it.
    previous: String,
    lost: Arc<AtomicU64>,
    linger: Duration,
}

impl Writer {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut gathered = Vec::new();
        while messages.recv_many(&mut gathered, BATCH_ROWS).await > 0 {
            let until = tokio::time::Instant::now() + self.linger;
            while gathered.len() < BATCH_ROWS && !messages.is_closed() {
                let room = BATCH_ROWS - gathered.len();
                match tokio::time::timeout_at(until, messages.recv_many(&mut gathered, room)).await {
                    Ok(more) if more > 0 => {}
                    _ => break,
                }
            }
            self.write(std::mem::take(&mut gathered)).await;
        }
    }

    /// Writes the rows however long it takes: a chain has no gaps. Who waits is told of the first failure.
    async fn write(&mut self, messages: Vec<Message>) {
        let mut waiting = Vec::new();
        let mut entries = Vec::with_capacity(messages.len());
        for message in messages {
            entries.extend(message.entry);
            waiting.extend(message.written);
        }
        if entries.is_empty() {
            waiting.into_iter().for_each(|written: oneshot::Sender<_>| drop(written.send(Ok(()))));
            return;
        }
        let mut wait = RETRY_FIRST;
        let rows = loop {
            match self.rows(&entries).await {
                Ok(rows) => break rows,
                Err(error) => self.failed(&error, &mut waiting, &mut wait).await,
            }
        };
        let mut staged: Option<(Table, Vec<StagedFile>)> = None;
        loop {
            match self.commit(&rows, &mut staged).await {
                Ok(()) => break,
                Err(error) => self.failed(&error, &mut waiting, &mut wait).await,
            }
        }
        if let Some(last) = rows.last() {
            self.next = last.sequence + 1;
            self.previous.clone_from(&last.hash);
        }
        for written in waiting {
            let _ = written.send(Ok(()));
        }
    }

    async fn failed(
        &self,
        error: &AccessError,
        waiting: &mut Vec<oneshot::Sender<Result<(), String>>>,
        wait: &mut Duration,
    ) {
        tracing::error!(monotonic_counter.holdfast_audit_failures = 1_u64, %error, "accesses cannot be written down yet");
        for written in waiting.drain(..) {
            let _ = written.send(Err(error.to_string()));
        }
        tokio::time::sleep(*wait).await;
        *wait = (*wait * 2).min(RETRY_LONGEST);
    }

    /// The next rows of the chain; before the first the one that begins it.
    async fn rows(&self, entries: &[(AuditEntry, DateTime<Utc>)]) -> Result<Vec<Row>> {
        let mut rows = Vec::with_capacity(entries.len() + 1);
        let (mut next, mut previous) = (self.next, self.previous.clone());
        if next == 0 {
            let links = verify::open_ends(&self.lake).await?;
            let opening = Row::opening(&self.chain, self.lake.clock().now(), links).sealed(&self.key, next, &previous);
            previous.clone_from(&opening.hash);
            next += 1;
            rows.push(opening);
        }
        let mut lost = self.lost.swap(0, Ordering::AcqRel);
        for (entry, at) in entries {
            let row = Row::of(&self.chain, entry, *at, std::mem::take(&mut lost)).sealed(&self.key, next, &previous);
            previous.clone_from(&row.hash);
            next += 1;
            rows.push(row);
        }
        Ok(rows)
    }

    /// Commits the rows; `staged` keeps the files of a try whose end nobody knows, so that they are not written twice.
    async fn commit(&self, rows: &[Row], staged: &mut Option<(Table, Vec<StagedFile>)>) -> Result<()> {
        if staged.is_none() {
            let table = self.lake.ensure_table(&table_spec()?).await?;
            let mut writer = TableWriter::new(&table, WriterSettings::default());
            writer.write(&batch_of(rows, table.schema())?).await?;
            *staged = Some((table, writer.close().await?));
        }
        let (Some((table, files)), Some(last)) = (staged.as_ref(), rows.last()) else { return Ok(()) };
        let change = Change {
            table,
            position: Position { app_id: app_id(&self.chain), version: last.sequence },
            fence: None,
            kind: ChangeKind::Append,
            files: files.clone(),
            schema: None,
            comment: None,
            metadata: serde_json::Map::new(),
        };
        match self.lake.commit(change).await? {
            CommitOutcome::Applied { .. } | CommitOutcome::AlreadyApplied { .. } => Ok(()),
            CommitOutcome::Conflicted { .. } => Err(AccessError::NotAudited("the table changed under it".to_owned())),
        }
    }
}

/// The position of a chain in the table's log: the sequence of its last row.
fn app_id(chain: &str) -> String {
    format!("audit/{chain}")
}

#[cfg(test)]
mod tests;
