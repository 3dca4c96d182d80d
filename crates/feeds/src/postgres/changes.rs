use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::catalog::{Catalog, Missing};
use super::connection::Connection;
use super::error::PostgresError;
use super::line::{Shape, Stamp};
use super::pgoutput::{Message, Relation};
use super::position::{Lsn, Place, Position, fits};
use super::pump::{Event, Pump};
use super::settings::{QualifiedName, Settings};
use super::snapshot::busy;
use super::value::Types;
use super::wire::{quote_identifier, quote_literal};
use crate::feed::ChunkLimits;

/// How long the server may stand still before its end is no longer waited for: the last record of its log may be incomplete.
const STANDSTILL_MAX: Duration = Duration::from_secs(10);

/// Where reading the log is to go on.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) generation: u32,
    /// Behind the transactions committed before it, and `changes` of the one committed there.
    pub(crate) lsn: Lsn,
    pub(crate) changes: u64,
    /// What the server may have been told: `lsn`, or a later place up to which nothing came.
    pub(crate) confirmed: Lsn,
    /// The server that the snapshot was taken from.
    pub(crate) system: String,
}

/// Changes as lines, or none of them, up to a position.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) lines: Vec<u8>,
    pub(crate) records: u64,
    pub(crate) end: Position,
}

/// The changes of a source's tables, read from a slot.
#[derive(Debug)]
pub(crate) struct Changes {
    settings: Settings,
    server: String,
    pump: Pump,
    generation: u32,
    /// Events that have come and are not read yet.
    queue: VecDeque<Event>,
    types: Types,
    /// The tables that the server has described, `None` for those of other sources.
    relations: HashMap<u32, Option<(Relation, Shape)>>,
    transaction: Option<Transaction>,
    /// Behind the transactions committed before this place, and so many changes of the one committed there.
    at: (Lsn, u64),
    /// What was given last.
    given: (Lsn, u64),
    given_at: Instant,
    /// Lines that were read and did not fit.
    carried: Option<(Vec<u8>, u64)>,
    /// How far the server's log went when this began.
    target: Lsn,
    moved_at: Instant,
}

#[derive(Debug)]
struct Transaction {
    lsn: Lsn,
    stamp: Stamp,
    /// Changes that were seen.
    changes: u64,
    /// Changes that are in the lake already.
    skip: u64,
}

impl Changes {
    /// Starts reading where the lake stands.
    ///
    /// # Errors
    /// [`PostgresError::Gap`] when the slot cannot give all that follows, [`PostgresError::Busy`] while another worker reads
    /// it.
    pub(crate) async fn start(settings: &Settings, start: &Start) -> Result<Self, PostgresError> {
        let mut connection = Connection::open(&settings.server).await?;
        let mut catalog = Catalog { connection: &mut connection, settings };
        let identity = catalog.identity().await?;
        let gap = |reason: String| PostgresError::Gap {
            server: settings.server.shown(),
            slot: settings.slot.clone(),
            reason,
        };
        if identity.system != start.system {
            return Err(gap("this is another server than the one that the snapshot was taken from".to_owned()));
        }
        if identity.end < start.lsn {
            let reason = format!(
                "the server's log ends at {} and was read up to {}: it was restored from an older backup",
                identity.end, start.lsn
            );
            return Err(gap(reason));
        }
        let Some(slot) = catalog.slot().await? else { return Err(gap("it is gone".to_owned())) };
        if slot.lost {
            return Err(gap("the server has thrown away log that it needs (see max_slot_wal_keep_size)".to_owned()));
        }
        if let Some(reader) = &slot.reader {
            return Err(busy(&connection, settings, reader));
        }
        let at = if start.confirmed > start.lsn { (start.confirmed, 0) } else { (start.lsn, start.changes) };
        if let Some(confirmed) = slot.confirmed.filter(|confirmed| *confirmed > at.0) {
            let reason = format!(
                "it stands at {confirmed} and was read up to {}: somebody else read it, or created it anew",
                at.0
            );
            return Err(gap(reason));
        }
        catalog.published_tables(identity.version, Missing::IsGone).await?;
        let types = catalog.types().await?;
        // What a connection has looked at it remembers as it is now, and the log has to be read with the catalog as it was then.
        let mut connection = Connection::open(&settings.server).await?;
        let publications = quote_literal(&quote_identifier(&settings.publication));
        let replicate = format!(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {publications})",
            quote_identifier(&settings.slot),
            at.0,
        );
        connection.start_replication(&replicate).await.map_err(|error| slot_error(settings, error))?;
        let now = Instant::now();
        Ok(Self {
            settings: settings.clone(),
            server: settings.server.shown(),
            pump: Pump::start(connection, start.lsn, identity.end),
            generation: start.generation,
            queue: VecDeque::new(),
            types,
            relations: HashMap::new(),
            transaction: None,
            at,
            given: (start.lsn, start.changes),
            given_at: now,
            carried: None,
            target: identity.end,
            moved_at: now,
        })
    }

    /// How far the server's log went when this began.
    pub(crate) fn target(&self) -> Lsn {
        self.target
    }

    /// The next changes, waiting up to `wait` for the first; `patient` waits longer while the server has more to read. None
    /// of them, up to a position, when it is time to tell the server that there were none. `None`: nothing came.
    pub(crate) async fn next(
        &mut self,
        limits: &ChunkLimits,
        wait: Duration,
        patient: bool,
    ) -> Result<Option<Changed>, PostgresError> {
        let (mut lines, mut records) = self.carried.take().unwrap_or_default();
        let mut deadline = Instant::now() + wait;
        loop {
            while records < limits.records && lines.len() < limits.bytes {
                let Some(event) = self.queue.pop_front() else { break };
                let (before, whole) = (self.at, lines.len());
                let more = self.read(event, &mut lines).await?;
                if records > 0 && lines.len() > limits.bytes {
                    self.carried = Some((lines.split_off(whole), more));
                    return self.give(lines, records, before).map(Some);
                }
                records += more;
            }
            let full = records >= limits.records || lines.len() >= limits.bytes;
            if records > 0 && (full || self.transaction.is_none()) {
                return self.give(lines, records, self.at).map(Some);
            }
            if records == 0 && self.is_time_to_tell() {
                return self.give(lines, 0, self.at).map(Some);
            }
            match timeout_at(deadline, self.pump.next()).await {
                Ok(events) => self.queue.extend(events.map_err(|error| slot_error(&self.settings, error))?),
                Err(_) if records > 0 => return self.give(lines, records, self.at).map(Some),
                Err(_) if patient && self.is_behind() => deadline = Instant::now() + wait,
                Err(_) => return Ok(None),
            }
        }
    }

    /// Tells the server that all up to `lsn` is durable.
    pub(crate) async fn confirm(&self, lsn: Lsn) {
        self.pump.confirm(lsn).await;
    }

    fn give(&mut self, lines: Vec<u8>, records: u64, end: (Lsn, u64)) -> Result<Changed, PostgresError> {
        (self.given, self.given_at) = (end, Instant::now());
        if !fits(Place::Log { lsn: end.0, changes: end.1 }) {
            return Err(PostgresError::Internal("more changes than a position can count".to_owned()));
        }
        Ok(Changed { lines, records, end: Position::log(self.generation, end.0, end.1) })
    }

    /// Whether a place without changes is worth telling: the one that was waited for, or any after a while, so that the server
    /// need not keep log that has nothing for us.
    fn is_time_to_tell(&self) -> bool {
        let reached_target = self.at.0 >= self.target && self.given.0 < self.target;
        let due = reached_target || self.given_at.elapsed() >= self.settings.confirm_idle_every;
        self.transaction.is_none() && self.at > self.given && due
    }

    fn is_behind(&self) -> bool {
        self.at.0 < self.target && self.moved_at.elapsed() < STANDSTILL_MAX
    }

    /// Reads an event and answers how many lines it made.
    async fn read(&mut self, event: Event, lines: &mut Vec<u8>) -> Result<u64, PostgresError> {
        let message = match event {
            Event::Reached(lsn) => {
                if self.transaction.is_none() && lsn > self.at.0 {
                    self.at = (lsn, 0);
                    self.moved_at = Instant::now();
                }
                return Ok(0);
            }
            Event::Message(message) => message,
        };
        self.moved_at = Instant::now();
        let message = Message::decode(message).map_err(|_| self.protocol("a message of pgoutput is cut short"))?;
        match message {
            Message::Begin { lsn, committed_at, xid } => self.begin(lsn, committed_at, xid).map(|()| 0),
            Message::Commit { lsn, end } => self.commit(lsn, end).map(|()| 0),
            Message::Relation(relation) => self.describe(relation).await.map(|()| 0),
            Message::Insert { relation, new } => {
                self.change(relation, lines, |shape, number, stamp, lines| shape.insert(&new, number, stamp, lines))
            }
            Message::Update { relation, old, new } => self.change(relation, lines, |shape, number, stamp, lines| {
                shape.update(&new, old.as_ref(), number, stamp, lines);
            }),
            Message::Delete { relation, old } => {
                self.change(relation, lines, |shape, number, stamp, lines| shape.delete(&old, number, stamp, lines))
            }
            Message::Truncate { relations } => {
                let mut records = 0;
                for relation in relations {
                    records += self.change(relation, lines, Shape::truncate)?;
                }
                Ok(records)
            }
            Message::Other => Ok(0),
        }
    }

    fn begin(&mut self, lsn: Lsn, committed_at: i64, xid: u32) -> Result<(), PostgresError> {
        let (at, changes) = self.at;
        if self.transaction.is_some() {
            return Err(self.protocol("a transaction begins inside of another"));
        }
        if changes > 0 && lsn > at {
            return Err(self.gap(format!("the transaction at {at}, which was read in part, is no longer there")));
        }
        let skip = match lsn.cmp(&at) {
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => changes,
            std::cmp::Ordering::Greater => 0,
        };
        let stamp = Stamp::of_transaction(self.generation, lsn, committed_at, xid);
        self.transaction = Some(Transaction { lsn, stamp, changes: 0, skip });
        Ok(())
    }

    fn commit(&mut self, lsn: Lsn, end: Lsn) -> Result<(), PostgresError> {
        let Some(transaction) = self.transaction.take().filter(|transaction| transaction.lsn == lsn) else {
            return Err(self.protocol("a transaction ends that did not begin"));
        };
        if transaction.skip != u64::MAX && transaction.changes < transaction.skip {
            return Err(self.gap(format!(
                "the transaction at {lsn} has {} changes, and {} of them were read: its publication was changed",
                transaction.changes, transaction.skip
            )));
        }
        self.at = self.at.max((end, 0));
        Ok(())
    }

    fn change(
        &mut self,
        relation: u32,
        lines: &mut Vec<u8>,
        write: impl FnOnce(&Shape, u64, &Stamp, &mut Vec<u8>),
    ) -> Result<u64, PostgresError> {
        let described = self.relations.get(&relation);
        let Some(transaction) = &mut self.transaction else {
            return Err(self.protocol("a change is in no transaction"));
        };
        let shape = match described {
            Some(Some((_, shape))) => shape,
            // Another source's table.
            Some(None) => return Ok(0),
            None => return Err(self.protocol("a change is of a table that was not described")),
        };
        transaction.changes += 1;
        if transaction.changes <= transaction.skip {
            return Ok(0);
        }
        write(shape, transaction.changes, &transaction.stamp, lines);
        self.at = (transaction.lsn, transaction.changes);
        Ok(1)
    }

    /// Takes in how a table looks from here on, and tells what is different.
    async fn describe(&mut self, relation: Relation) -> Result<(), PostgresError> {
        let name = QualifiedName { schema: relation.schema.clone(), table: relation.table.clone() };
        if !self.settings.tables.contains(&name) {
            self.relations.insert(relation.id, None);
            return Ok(());
        }
        if relation.columns.iter().any(|column| !self.types.knows(column.type_oid)) {
            // Made after this began.
            let mut connection = Connection::open(&self.settings.server).await?;
            self.types = Catalog { connection: &mut connection, settings: &self.settings }.types().await?;
        }
        let columns = relation.columns.iter().map(|column| (column.name.as_str(), column.type_oid, column.key));
        let shape = Shape::new(&self.server, &name, columns, &self.types, self.settings.json)?;
        let before = self.relations.insert(relation.id, Some((relation.clone(), shape)));
        if let Some(Some((before, _))) = before {
            tell_difference(&name, &before, &relation);
        }
        Ok(())
    }

    fn protocol(&self, what: &str) -> PostgresError {
        PostgresError::Protocol { server: self.server.clone(), what: what.to_owned() }
    }

    fn gap(&self, reason: String) -> PostgresError {
        PostgresError::Gap { server: self.server.clone(), slot: self.settings.slot.clone(), reason }
    }
}

fn tell_difference(table: &QualifiedName, before: &Relation, after: &Relation) {
    let type_of = |relation: &Relation, name: &str| {
        relation.columns.iter().find(|column| column.name == name).map(|column| column.type_oid)
    };
    for column in &after.columns {
        match type_of(before, &column.name) {
            None => {
                tracing::warn!(%table, column = column.name, "a column was added; its values are in the lines from here on")
            }
            Some(type_oid) if type_oid != column.type_oid => {
                tracing::warn!(%table, column = column.name, "a column has another type from here on; what does not fit the contract goes to quarantine");
            }
            Some(_) => {}
        }
    }
    for column in &before.columns {
        if type_of(after, &column.name).is_none() {
            tracing::warn!(%table, column = column.name, "a column was dropped or renamed; it is null from here on");
        }
    }
}

/// What the server's refusals mean for who reads a slot.
fn slot_error(settings: &Settings, error: PostgresError) -> PostgresError {
    let PostgresError::Server { server, code, message, .. } = &error else { return error };
    match code.as_str() {
        "55006" => PostgresError::Busy { server: server.clone(), reason: message.clone() },
        // The slot or its publication is not there, the slot was given up, its log is gone.
        "42704" | "55000" | "58P01" => {
            PostgresError::Gap { server: server.clone(), slot: settings.slot.clone(), reason: message.clone() }
        }
        _ => error,
    }
}
