use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, Schema};
use deltalake_core::kernel::{Action, Add};
use deltalake_core::{DeltaTable, DeltaTableBuilder, DeltaTableError};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::ParquetRecordBatchStreamBuilder;
use url::Url;

use crate::Result;
use crate::error::LakeError;
use crate::lake::register_log_stores;
use crate::store::ObjectLocation;

/// Rows of a data file that are read at once.
const BATCH_ROWS: usize = 4_096;
const LOG: &str = "_delta_log";
/// In the metadata of a column that has another name in data files.
const PHYSICAL_NAME: &str = "delta.columnMapping.physicalName";

/// A Delta table that belongs to somebody else: read, never written.
#[derive(Debug, Clone)]
pub struct ForeignTable {
    place: ObjectLocation,
}

/// One version of such a table.
#[derive(Debug, Clone)]
pub struct ForeignVersion {
    /// Its number.
    pub version: u64,
    /// The columns that are kept in paths and not in files.
    pub partition_fields: Vec<FieldRef>,
    /// Whether changes are recorded in its change data feed.
    pub has_change_feed: bool,
    /// When it was committed, in milliseconds since 1970.
    pub committed_at: Option<i64>,
    /// Its data files, sorted by path.
    pub files: Vec<ForeignFile>,
}

/// What one commit of such a table did to its rows.
#[derive(Debug, Clone)]
pub struct ForeignCommit {
    /// When it was made, in milliseconds since 1970.
    pub committed_at: Option<i64>,
    /// The files that say which rows came and went, removed ones first, then by path: always the same for the same commit.
    pub files: Vec<ForeignFile>,
    /// Whether it put files in the place of others, without change data that says which rows differ.
    pub replaces: bool,
    /// Whether it changed the columns or the settings of the table.
    pub changes_metadata: bool,
}

/// A file of such a table.
#[derive(Debug, Clone)]
pub struct ForeignFile {
    /// Relative to the table.
    pub path: String,
    /// The values of partition columns for all rows of the file, as they are in the log; `None` is null.
    pub partition_values: HashMap<String, Option<String>>,
    /// What its rows are.
    pub change: FileChange,
}

/// What the rows of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileChange {
    /// Rows that are gone.
    Deleted,
    /// Rows that are new, or those of a version.
    Inserted,
    /// Changes, each of which says in its column `_change_type` what it is.
    Told,
}

impl ForeignTable {
    /// The table in a folder. Nothing is read.
    pub fn new(place: ObjectLocation) -> Self {
        register_log_stores();
        Self { place }
    }

    /// Where it is.
    pub fn url(&self) -> &Url {
        &self.place.url
    }

    /// The newest version.
    ///
    /// # Errors
    /// [`LakeError::NoForeignTable`] when there is none; [`LakeError::Schema`] when it uses something that is not read here.
    pub async fn newest(&self) -> Result<ForeignVersion> {
        let loaded = self.builder()?.load().await.map_err(|error| match error {
            DeltaTableError::NotATable(_) | DeltaTableError::InvalidTableLocation(_) => {
                LakeError::NoForeignTable { url: self.place.url.to_string() }
            }
            error => self.failed(error),
        });
        match loaded {
            Ok(table) => self.version(&table),
            // The library has several errors for a table that is not there; the store knows.
            Err(_) if self.commits().await?.is_empty() => {
                Err(LakeError::NoForeignTable { url: self.place.url.to_string() })
            }
            Err(error) => Err(error),
        }
    }

    /// A version, or `None` when it cannot be put together (any more).
    ///
    /// # Errors
    /// As [`ForeignTable::newest`].
    pub async fn at(&self, version: u64) -> Result<Option<ForeignVersion>> {
        match self.builder()?.with_version(version).load().await {
            Ok(table) => self.version(&table).map(Some),
            Err(error) => {
                let commits = self.commits().await?;
                // A version can be read when its commit is there and all before it are, or a checkpoint.
                if commits.binary_search(&version).is_ok() && commits.first() == Some(&0) {
                    Err(self.failed(error))
                } else {
                    Ok(None)
                }
            }
        }
    }

    /// The versions whose commits are there, in their order. The log may have been cleaned of older ones.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn commits(&self) -> Result<Vec<u64>> {
        let folder = self.place.path.clone().join(LOG);
        let listed = match self.place.store.list_with_delimiter(Some(&folder)).await {
            Ok(listed) => listed.objects,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(LakeError::store(format!("cannot list {folder}"))(error)),
        };
        let mut versions: Vec<u64> = listed
            .iter()
            .filter_map(|object| object.location.filename()?.strip_suffix(".json"))
            .filter(|stem| stem.len() == 20)
            .filter_map(|stem| stem.parse().ok())
            .collect();
        versions.sort_unstable();
        Ok(versions)
    }

    /// What a commit did, or `None` when it is not there: not yet, or no longer.
    ///
    /// # Errors
    /// What the store answers; [`LakeError::Schema`] when it uses something that is not read here.
    pub async fn commit(&self, version: u64) -> Result<Option<ForeignCommit>> {
        let path = self.place.path.clone().join(LOG).join(format!("{version:020}.json"));
        let failed = || LakeError::store(format!("cannot read {path}"));
        let body = match self.place.store.get(&path).await {
            Ok(found) => found.bytes().await.map_err(failed())?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed()(error)),
        };
        let (mut added, mut removed, mut told) = (Vec::new(), Vec::new(), Vec::new());
        let (mut committed_at, mut changes_metadata) = (None, false);
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            // Actions of newer writers that say nothing about rows are passed over; what such a table needs its readers to know stands
            // in its protocol, which is checked when a version is read.
            let Ok(action) = serde_json::from_slice::<Action>(line) else { continue };
            match action {
                Action::Add(add) if add.data_change => added.push(self.file_of(&add)?),
                Action::Remove(remove) if remove.data_change => {
                    if remove.deletion_vector.is_some() {
                        return Err(self.unsupported("deletion vectors"));
                    }
                    removed.push(ForeignFile {
                        path: self.relative(&remove.path)?,
                        partition_values: remove.partition_values.unwrap_or_default(),
                        change: FileChange::Deleted,
                    });
                }
                Action::Cdc(file) => told.push(ForeignFile {
                    path: self.relative(&file.path)?,
                    partition_values: file.partition_values,
                    change: FileChange::Told,
                }),
                Action::CommitInfo(info) => committed_at = info.in_commit_timestamp.or(info.timestamp),
                Action::Metadata(_) | Action::Protocol(_) => changes_metadata = true,
                _ => {}
            }
        }
        let replaces = told.is_empty() && !added.is_empty() && !removed.is_empty();
        // Where there is change data, it is all there is to say.
        let mut files = if told.is_empty() { [removed, added].concat() } else { told };
        files.sort_by(|left, right| (left.change, &left.path).cmp(&(right.change, &right.path)));
        Ok(Some(ForeignCommit { committed_at, files, replaces, changes_metadata }))
    }

    /// The rows of a file, in its order and without the partition columns.
    ///
    /// # Errors
    /// What the store answers, `NotFound` among it when the file was vacuumed; [`LakeError::Parquet`] when it cannot be read.
    pub async fn rows(&self, file: &ForeignFile) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let location = Path::parse(format!("{}/{}", self.place.path, file.path))
            .map_err(|error| self.unsupported(&format!("the path of a data file: {error}")))?;
        let what = format!("cannot read {location}");
        let size = self.place.store.head(&location).await.map_err(LakeError::store(what))?.size;
        let table = self.place.url.to_string();
        let failed = move |source| LakeError::Parquet { table: table.clone(), source };
        #[expect(deprecated, reason = "what is to replace it is a copy of it here")]
        let reader = parquet::arrow::async_reader::ParquetObjectReader::new(Arc::clone(&self.place.store), location)
            .with_file_size(size);
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let rows = ParquetRecordBatchStreamBuilder::new_with_options(reader, options)
            .await
            .map_err(failed.clone())?
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(failed.clone())?;
        Ok(rows.map_err(failed).boxed())
    }

    fn builder(&self) -> Result<DeltaTableBuilder> {
        let url = self.place.url.clone();
        Ok(DeltaTableBuilder::from_url(url.clone())
            .map_err(|error| self.failed(error))?
            .with_storage_backend(Arc::clone(&self.place.store), url))
    }

    #[expect(deprecated, reason = "its Arrow replacement has no partition values as the log has them")]
    fn version(&self, table: &DeltaTable) -> Result<ForeignVersion> {
        let snapshot = table.snapshot().map_err(|error| self.failed(error))?;
        let metadata = snapshot.metadata();
        let schema: Arc<Schema> = snapshot.snapshot().arrow_schema();
        if schema.fields().iter().any(|field| field.metadata().contains_key(PHYSICAL_NAME)) {
            return Err(self.unsupported("column mapping"));
        }
        let adds: Vec<Add> = snapshot.log_data().iter().map(|file| file.add_action()).collect();
        let mut files = adds.iter().map(|add| self.file_of(add)).collect::<Result<Vec<_>>>()?;
        files.sort_by(|left, right| left.path.cmp(&right.path));
        let partition_fields = metadata
            .partition_columns()
            .iter()
            .filter_map(|name| schema.field_with_name(name).ok().cloned().map(Arc::new))
            .collect();
        Ok(ForeignVersion {
            version: snapshot.version(),
            partition_fields,
            has_change_feed: snapshot.table_config().enable_change_data_feed == Some(true),
            committed_at: snapshot.version_timestamp(snapshot.version()),
            files,
        })
    }

    fn file_of(&self, add: &Add) -> Result<ForeignFile> {
        if add.deletion_vector.is_some() {
            return Err(self.unsupported("deletion vectors"));
        }
        Ok(ForeignFile {
            path: self.relative(&add.path)?,
            partition_values: add.partition_values.clone(),
            change: FileChange::Inserted,
        })
    }

    fn relative(&self, path: &str) -> Result<String> {
        if path.contains("://") || path.starts_with('/') {
            return Err(self.unsupported("data files outside of its folder, as shallow clones have"));
        }
        Ok(path.to_owned())
    }

    fn unsupported(&self, what: &str) -> LakeError {
        LakeError::Schema {
            table: self.place.url.to_string(),
            reason: format!("uses {what}, which cannot be read here: rewrite the table without, or read a copy of it"),
        }
    }

    fn failed(&self, error: DeltaTableError) -> LakeError {
        LakeError::delta(&self.place.url)(error)
    }
}
