use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::catalog::{Catalog, Identity, Missing, PublishedTable, Slot};
use super::connection::{Connection, Piece};
use super::error::PostgresError;
use super::line::{Shape, Stamp, copy_fields};
use super::position::{Lsn, Place, fits};
use super::settings::Settings;
use super::spool::{Begun, SnapshotRecord, Spool, SpooledRows};
use super::value::Types;
use super::wire::quote_identifier;

/// How much of a snapshot is one object of the spool, before it is packed.
const OBJECT_BYTES: usize = 4 << 20;
/// After that long a slot that is still being created is told of.
const CREATION_TOLD_AFTER: Duration = Duration::from_secs(10);

/// Creates the slot and copies the tables as they were at that moment into the spool, whole or not at all: what is copied
/// counts only when `snapshot.json` names it, and no row is in the inbox before. When this ends early, by an error or a
/// kill, the next one removes what is left and begins anew, with a slot of its own.
///
/// One worker at a time: it holds a lock on the server, which the server takes back when the connection ends.
///
/// # Errors
/// [`PostgresError::Busy`] while another worker does it; otherwise what the server, the store or the contract has.
pub(crate) async fn take_snapshot(
    settings: &Settings,
    spool: &Spool,
    generation: u32,
) -> Result<SnapshotRecord, PostgresError> {
    let mut connection = Connection::open(&settings.server).await?;
    lock(&mut connection, settings).await?;
    if let Some(record) = spool.snapshot(generation).await? {
        return Ok(record);
    }
    let mut catalog = Catalog { connection: &mut connection, settings };
    let identity = catalog.identity().await?;
    // Also creates the publication, which has to be there before the slot.
    catalog.published_tables(identity.version, Missing::IsNew).await?;
    if let Some(slot) = catalog.slot().await? {
        drop_unfinished(&mut catalog, spool, generation, &identity, &slot).await?;
    }
    spool.clear(generation).await?;
    spool.begin(generation, &begun(settings, &identity)).await?;

    connection.query("beginning a snapshot", "begin read only isolation level repeatable read").await?;
    let consistent_point = create_slot(&mut connection, settings).await?;
    let mut catalog = Catalog { connection: &mut connection, settings };
    let tables = catalog.published_tables(identity.version, Missing::IsGone).await?;
    let types = catalog.types().await?;
    let now = "select (extract(epoch from now() - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::bigint";
    let now = connection.query("looking at the server", now).await?;
    let now = now.first().and_then(|row| row.first().cloned().flatten()).and_then(|now| now.parse().ok());
    let stamp = Stamp::of_snapshot(generation, consistent_point, now.unwrap_or_default());
    let attempt = Uuid::now_v7().to_string();
    let mut writer = RowWriter::new(spool, generation, &attempt);
    for table in &tables {
        copy_table(&mut connection, settings, table, &types, &stamp, &mut writer).await?;
    }
    let rows = writer.finish().await?;
    connection.query("ending a snapshot", "commit").await?;
    let record =
        SnapshotRecord { attempt, system: identity.system, consistent_point: consistent_point.to_string(), rows };
    let there = spool.complete(generation, &record).await?;
    // The lock was held all the time, so nobody has dropped the slot since.
    connection.query("ending a snapshot", "select 1").await?;
    tracing::info!(slot = settings.slot, rows, %consistent_point, "the tables are copied");
    Ok(there)
}

/// What is noted before the slot is created.
fn begun(settings: &Settings, identity: &Identity) -> Begun {
    Begun { system: identity.system.clone(), database: settings.server.dbname.clone(), slot: settings.slot.clone() }
}

async fn lock(connection: &mut Connection, settings: &Settings) -> Result<(), PostgresError> {
    let hash = blake3::hash(format!("holdfast snapshot {}", settings.slot).as_bytes());
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = *hash.as_bytes();
    let key = i64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
    let rows = connection.query("taking a lock", &format!("select pg_try_advisory_lock({key})::text")).await?;
    let taken = rows.first().and_then(|row| row.first()).is_some_and(|taken| taken.as_deref() == Some("true"));
    if taken {
        return Ok(());
    }
    Err(PostgresError::Busy {
        server: connection.server().to_owned(),
        reason: format!("another worker copies the tables of slot {}", settings.slot),
    })
}

/// Drops the slot of an attempt that did not end, or of a generation that is over.
async fn drop_unfinished(
    catalog: &mut Catalog<'_>,
    spool: &Spool,
    generation: u32,
    identity: &Identity,
    slot: &Slot,
) -> Result<(), PostgresError> {
    let settings = catalog.settings;
    let expected = begun(settings, identity);
    let noted = [spool.begun(generation).await?, spool.begun(generation - 1).await?];
    if !catalog.fits(slot) || !noted.iter().flatten().any(|begun| *begun == expected) {
        return Err(PostgresError::ForeignSlot { server: catalog.server(), slot: settings.slot.clone() });
    }
    if let Some(reader) = &slot.reader {
        return Err(busy(catalog.connection, settings, reader));
    }
    let drop = format!("DROP_REPLICATION_SLOT {}", quote_identifier(&settings.slot));
    catalog.connection.query("dropping the slot of an unfinished snapshot", &drop).await?;
    Ok(())
}

pub(crate) fn busy(connection: &Connection, settings: &Settings, reader: &str) -> PostgresError {
    PostgresError::Busy {
        server: connection.server().to_owned(),
        reason: format!("slot {} is read by another worker, server process {reader}", settings.slot),
    }
}

/// Creates the slot. What the transaction sees from here on is what was committed before the place that this answers.
async fn create_slot(connection: &mut Connection, settings: &Settings) -> Result<Lsn, PostgresError> {
    const WHAT: &str = "creating the slot";
    let create = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput USE_SNAPSHOT", quote_identifier(&settings.slot));
    let created = {
        let mut creation = std::pin::pin!(connection.query_unhurried(WHAT, &create));
        tokio::select! {
            created = &mut creation => created,
            () = tokio::time::sleep(CREATION_TOLD_AFTER) => {
                tracing::warn!(slot = settings.slot, "the slot waits for transactions that are open on the server to end");
                creation.await
            }
        }
    };
    let rows = created.map_err(|error| match error {
        PostgresError::Server { server, code, message, .. } if code == "53400" => PostgresError::Setup {
            server,
            reason: message,
            sql: "alter system set max_replication_slots = 20 (and restart the server)".to_owned(),
        },
        error => error,
    })?;
    let place = rows.first().and_then(|row| row.get(1).cloned().flatten()).and_then(|place| place.parse().ok());
    place.ok_or_else(|| connection.protocol("CREATE_REPLICATION_SLOT: the answer is not as expected"))
}

async fn copy_table(
    connection: &mut Connection,
    settings: &Settings,
    table: &PublishedTable,
    types: &Types,
    stamp: &Stamp,
    writer: &mut RowWriter<'_>,
) -> Result<(), PostgresError> {
    const WHAT: &str = "copying a table";
    let columns = table.columns.iter().map(|(name, type_oid)| (name.as_str(), *type_oid, false));
    let shape = Shape::new(connection.server(), &table.name, columns, types, settings.json)?;
    connection.start_copy(WHAT, &table.copy()).await?;
    let mut fields = Vec::with_capacity(shape.columns());
    while let Piece::Data(row) = connection.copy_data(WHAT).await? {
        if copy_fields(&row, shape.columns(), &mut fields).is_err() {
            return Err(connection.protocol(format!("table {}: a row has other columns than the table", table.name)));
        }
        writer.rows += 1;
        shape.snapshot(fields.iter().map(Option::as_deref), writer.rows, stamp, &mut writer.lines);
        writer.row_written().await?;
    }
    connection.until_ready(WHAT).await
}

/// Writes rows into objects of the spool, one while the next is filled.
struct RowWriter<'a> {
    spool: &'a Spool,
    generation: u32,
    attempt: &'a str,
    lines: Vec<u8>,
    /// Rows in objects before `lines`.
    first: u64,
    rows: u64,
    upload: Option<AbortOnDropHandle<Result<(), PostgresError>>>,
}

impl<'a> RowWriter<'a> {
    fn new(spool: &'a Spool, generation: u32, attempt: &'a str) -> Self {
        Self { spool, generation, attempt, lines: Vec::new(), first: 0, rows: 0, upload: None }
    }

    async fn row_written(&mut self) -> Result<(), PostgresError> {
        if self.lines.len() >= OBJECT_BYTES { self.next_object().await } else { Ok(()) }
    }

    async fn next_object(&mut self) -> Result<(), PostgresError> {
        self.uploaded().await?;
        let lines = std::mem::replace(&mut self.lines, Vec::with_capacity(OBJECT_BYTES + OBJECT_BYTES / 8));
        let rows = SpooledRows { first: self.first, lines };
        self.first = self.rows;
        let (spool, generation, attempt) = (self.spool.clone(), self.generation, self.attempt.to_owned());
        let upload = tokio::spawn(async move { spool.put_rows(generation, &attempt, rows).await });
        self.upload = Some(AbortOnDropHandle::new(upload));
        Ok(())
    }

    async fn uploaded(&mut self) -> Result<(), PostgresError> {
        match self.upload.take() {
            Some(upload) => {
                upload.await.map_err(|error| PostgresError::Internal(format!("an upload ended: {error}")))?
            }
            None => Ok(()),
        }
    }

    /// How many rows there are, all of them in the spool.
    async fn finish(mut self) -> Result<u64, PostgresError> {
        if !self.lines.is_empty() {
            self.next_object().await?;
        }
        self.uploaded().await?;
        if fits(Place::Snapshot { rows: self.rows }) {
            Ok(self.rows)
        } else {
            Err(PostgresError::Internal("more rows than a position can count".to_owned()))
        }
    }
}
