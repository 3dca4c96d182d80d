use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_lake::ObjectLocation;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::PostgresError;
use super::position::Lsn;

/// What of a source is in the lake beside its inbox, below one folder with a folder for each generation:
///
/// - `begun.json`: on which server a slot was about to be created. So a slot without a snapshot is known to be ours.
/// - `rows/<attempt>/<row>.ndjson.zst`: a snapshot that is being copied, or waits to get into the inbox.
/// - `snapshot.json`: which attempt became the snapshot. Created once, on the condition that it is not there.
/// - `confirmed/<place>`: what the server was told while nothing came, written before it was told.
#[derive(Debug, Clone)]
pub(crate) struct Spool {
    store: Arc<dyn ObjectStore>,
    folder: Path,
}

/// Where a slot was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    pub(crate) system: String,
    pub(crate) database: String,
    pub(crate) slot: String,
}

/// A snapshot that was copied whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    /// The folder of its rows.
    pub(crate) attempt: String,
    pub(crate) system: String,
    /// It holds what was committed before this place in the log, and nothing else.
    pub(crate) consistent_point: String,
    pub(crate) rows: u64,
}

impl SnapshotRecord {
    /// Where the changes begin that the snapshot does not hold.
    pub(crate) fn lsn(&self) -> Option<Lsn> {
        self.consistent_point.parse().ok()
    }
}

/// Rows of a snapshot.
#[derive(Debug)]
pub(crate) struct SpooledRows {
    /// How many rows are before them.
    pub(crate) first: u64,
    pub(crate) lines: Vec<u8>,
}

const SUFFIX: &str = ".ndjson.zst";
/// The quick end of the scale: an object is read once.
const COMPRESSION_LEVEL: i32 = 1;

impl Spool {
    pub(crate) fn new(location: &ObjectLocation, pipeline: &str, source: &str, slot: &str) -> Self {
        let folder = location.path.clone().join("feeds").join(pipeline).join(source).join(slot);
        Self { store: Arc::clone(&location.store), folder }
    }

    pub(crate) async fn begun(&self, generation: u32) -> Result<Option<Begun>, PostgresError> {
        self.read(&self.generation(generation).join("begun.json")).await
    }

    pub(crate) async fn begin(&self, generation: u32, begun: &Begun) -> Result<(), PostgresError> {
        let path = self.generation(generation).join("begun.json");
        self.put(&path, json(begun)?).await
    }

    pub(crate) async fn snapshot(&self, generation: u32) -> Result<Option<SnapshotRecord>, PostgresError> {
        self.read(&self.generation(generation).join("snapshot.json")).await
    }

    /// Makes an attempt the snapshot of its generation, and answers which one is: somebody else may have been quicker.
    pub(crate) async fn complete(
        &self,
        generation: u32,
        record: &SnapshotRecord,
    ) -> Result<SnapshotRecord, PostgresError> {
        let path = self.generation(generation).join("snapshot.json");
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.store.put_opts(&path, json(record)?.into(), options).await;
        // A PUT that failed may have happened all the same: what is there decides.
        match (self.snapshot(generation).await?, put) {
            (Some(there), _) => Ok(there),
            (None, Err(error)) => Err(failed(&path, "writing")(error)),
            (None, Ok(_)) => Err(PostgresError::Corrupt {
                object: path.to_string(),
                reason: "it was written, and is not there".to_owned(),
            }),
        }
    }

    pub(crate) async fn put_rows(
        &self,
        generation: u32,
        attempt: &str,
        rows: SpooledRows,
    ) -> Result<(), PostgresError> {
        let path = self.attempt(generation, attempt).join(format!("{:012}{SUFFIX}", rows.first));
        let packed = tokio::task::spawn_blocking(move || zstd::bulk::compress(&rows.lines, COMPRESSION_LEVEL)).await;
        let packed = packed.map_err(internal)?.map_err(internal)?;
        self.put(&path, packed.into()).await
    }

    /// The objects of an attempt, with the number of rows before each, in order.
    pub(crate) async fn objects(&self, generation: u32, attempt: &str) -> Result<Vec<(u64, Path)>, PostgresError> {
        let folder = self.attempt(generation, attempt);
        let found: Vec<_> = self.store.list(Some(&folder)).try_collect().await.map_err(failed(&folder, "listing"))?;
        let mut objects: Vec<(u64, Path)> = found
            .into_iter()
            .filter_map(|object| {
                let first = object.location.filename()?.strip_suffix(SUFFIX)?.parse().ok()?;
                Some((first, object.location))
            })
            .collect();
        objects.sort();
        Ok(objects)
    }

    pub(crate) async fn rows(&self, first: u64, path: &Path) -> Result<SpooledRows, PostgresError> {
        let packed = self.store.get(path).await.map_err(failed(path, "reading"))?;
        let packed = packed.bytes().await.map_err(failed(path, "reading"))?;
        let unpacked = tokio::task::spawn_blocking(move || zstd::stream::decode_all(&packed[..])).await;
        let lines = unpacked.map_err(internal)?.map_err(|error| PostgresError::Corrupt {
            object: path.to_string(),
            reason: format!("it cannot be unpacked: {error}"),
        })?;
        Ok(SpooledRows { first, lines })
    }

    /// Removes the rows of all attempts of a generation.
    pub(crate) async fn clear(&self, generation: u32) -> Result<(), PostgresError> {
        let folder = self.generation(generation).join("rows");
        let found = self.store.list(Some(&folder)).map_ok(|object| object.location).boxed();
        let mut deleted = self.store.delete_stream(found);
        while let Some(deleted) = deleted.next().await {
            match deleted {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(&folder, "clearing")(error)),
            }
        }
        Ok(())
    }

    /// The farthest place that the server may have been told of while nothing came.
    pub(crate) async fn confirmed(&self, generation: u32) -> Result<Option<Lsn>, PostgresError> {
        let folder = self.generation(generation).join("confirmed");
        let found: Vec<_> = self.store.list(Some(&folder)).try_collect().await.map_err(failed(&folder, "listing"))?;
        let places = found.iter().filter_map(|object| u64::from_str_radix(object.location.filename()?, 16).ok());
        Ok(places.max().map(Lsn))
    }

    /// Notes that the server is about to be told of `lsn`. Afterwards the note on `before` is of no use.
    pub(crate) async fn will_confirm(
        &self,
        generation: u32,
        lsn: Lsn,
        before: Option<Lsn>,
    ) -> Result<(), PostgresError> {
        let folder = self.generation(generation).join("confirmed");
        let path = |lsn: Lsn| folder.clone().join(format!("{:016X}", lsn.0));
        self.put(&path(lsn), Bytes::from_static(b"\n")).await?;
        if let Some(before) = before.filter(|before| *before < lsn) {
            match self.store.delete(&path(before)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(&path(before), "removing")(error)),
            }
        }
        Ok(())
    }

    fn generation(&self, generation: u32) -> Path {
        self.folder.clone().join(format!("{generation:06}"))
    }

    fn attempt(&self, generation: u32, attempt: &str) -> Path {
        self.generation(generation).join("rows").join(attempt)
    }

    async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), PostgresError> {
        self.store.put(path, bytes.into()).await.map(|_| ()).map_err(failed(path, "writing"))
    }

    async fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, PostgresError> {
        let found = match self.store.get(path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(path, "reading")(error)),
        };
        let bytes = found.bytes().await.map_err(failed(path, "reading"))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| PostgresError::Corrupt {
            object: path.to_string(),
            reason: format!("it is not as it was written: {error}"),
        })
    }
}

fn json(value: &impl Serialize) -> Result<Bytes, PostgresError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(internal)
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(object_store::Error) -> PostgresError + use<> {
    let what = format!("{doing} {path}");
    move |source| PostgresError::Store { what, source }
}

fn internal(error: impl std::fmt::Display) -> PostgresError {
    PostgresError::Internal(format!("a snapshot stopped: {error}"))
}
