use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::{Fields, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use deltalake_core::DeltaTable;
use deltalake_core::kernel::Add;
use futures::{StreamExt, TryStreamExt};
use holdfast_types::{Clock, TableName};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Result;
use crate::cache::DataFiles;
use crate::error::LakeError;
use crate::head::CommitHead;
use crate::order::SORTED_BY_TAG;
use crate::provider::LakeTableProvider;
use crate::statistics::record_count;

/// The key of [`Table::data_version`] in the commits of merges.
pub(crate) const DATA_VERSION: &str = "holdfast.data_version";

/// The property of tables whose files are merged by who writes them, since they are more than their rows: [`Table::merges`] has none for these.
pub const OWN_FILES: &str = "holdfast.own_files";

/// Commits that are read at the same time in search of a note.
const NOTES_AT_ONCE: usize = 16;

/// A data file that is written but not yet part of a table: no reader sees it until a commit names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedFile {
    pub(crate) add: Add,
    /// Its rows.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
}

/// A data file of a table, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Within the table, as changes name it.
    pub path: String,
    /// From the root of the store.
    pub location: Path,
    /// Its size.
    pub bytes: u64,
    /// Its rows, when the log knows.
    pub rows: Option<u64>,
    /// The values of its partition columns.
    pub partition_values: HashMap<String, Option<String>>,
    /// What its writer said of it.
    pub tags: HashMap<String, String>,
}

/// One version of one table. Cheap to clone; does not change when the table does.
#[derive(Debug, Clone)]
pub struct Table {
    inner: Arc<TableInner>,
}

#[derive(Debug)]
struct TableInner {
    name: TableName,
    delta: DeltaTable,
    version: u64,
    schema: SchemaRef,
    partition_columns: Vec<String>,
    prefix: Path,
    store_url: ObjectStoreUrl,
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    data_files: DataFiles,
    data_version: tokio::sync::OnceCell<u64>,
    /// Positions that were asked for: looking one up replays the log.
    positions: Mutex<HashMap<String, Option<i64>>>,
}

impl Table {
    pub(crate) fn new(
        name: TableName,
        delta: DeltaTable,
        prefix: Path,
        store_url: ObjectStoreUrl,
        store: Arc<dyn ObjectStore>,
        clock: Arc<dyn Clock>,
        data_files: DataFiles,
    ) -> Result<Self> {
        let snapshot = delta.snapshot().map_err(LakeError::delta(&name))?;
        let version = snapshot.version();
        let partition_columns = snapshot.metadata().partition_columns().to_vec();
        let schema = readable_schema(&snapshot.snapshot().arrow_schema(), &partition_columns);
        Ok(Self {
            inner: Arc::new(TableInner {
                name,
                version,
                schema,
                partition_columns,
                prefix,
                store_url,
                store,
                clock,
                data_files,
                delta,
                data_version: tokio::sync::OnceCell::new(),
                positions: Mutex::default(),
            }),
        })
    }

    /// Its name.
    pub fn name(&self) -> &TableName {
        &self.inner.name
    }

    /// Which version this is.
    pub fn version(&self) -> u64 {
        self.inner.version
    }

    /// The version that holds the same rows with nothing but merges of files since: what has seen that one has seen this one. One GET, once.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn data_version(&self) -> Result<u64> {
        let look = || async {
            let log = self.inner.delta.log_store();
            let commit = log.read_commit_entry(self.version()).await.map_err(LakeError::delta(self.name()))?;
            let head = commit.and_then(|commit| CommitHead::parse(self.version(), &commit));
            Ok(head.map_or(self.version(), |head| head.data_version()))
        };
        self.inner.data_version.get_or_try_init(look).await.copied()
    }

    /// When this version was committed, when the log knows.
    pub fn committed_at(&self) -> Option<chrono::DateTime<chrono::Utc>> {
        let snapshot = self.inner.delta.snapshot().ok()?;
        chrono::DateTime::from_timestamp_millis(snapshot.version_timestamp(self.version())?)
    }

    /// Its columns, partition columns last, with their comments and tags as field metadata.
    pub fn schema(&self) -> &SchemaRef {
        &self.inner.schema
    }

    /// The names of the columns it is partitioned by.
    pub fn partition_columns(&self) -> &[String] {
        &self.inner.partition_columns
    }

    /// One line about it.
    pub fn comment(&self) -> Option<&str> {
        self.inner.delta.snapshot().ok().and_then(|snapshot| snapshot.metadata().description())
    }

    /// A property of the table, as the schema of a change had it.
    pub fn property(&self, key: &str) -> Option<&str> {
        let snapshot = self.inner.delta.snapshot().ok()?;
        snapshot.metadata().configuration().get(key).map(String::as_str)
    }

    /// The rows it has, when every file says how many it holds.
    pub fn row_count(&self) -> Option<u64> {
        let snapshot = self.inner.delta.snapshot().ok()?;
        snapshot.log_data().iter().map(|file| file.num_records().and_then(|rows| u64::try_from(rows).ok())).sum()
    }

    /// The size of its data files.
    pub fn byte_count(&self) -> u64 {
        self.files().iter().map(|add| u64::try_from(add.size).unwrap_or(0)).sum()
    }

    /// The number of its data files.
    pub fn file_count(&self) -> usize {
        self.inner.delta.snapshot().map_or(0, |snapshot| snapshot.log_data().num_files())
    }

    /// What tells it apart from another table of its name, before or after it.
    pub fn id(&self) -> Option<String> {
        let metadata = serde_json::to_value(self.inner.delta.snapshot().ok()?.metadata()).ok()?;
        metadata.get("id")?.as_str().map(str::to_owned)
    }

    /// Its data files, in no order.
    pub fn listed_files(&self) -> Vec<DataFile> {
        let file = |add: Add| DataFile {
            location: self.location_of(&add.path),
            bytes: u64::try_from(add.size).unwrap_or(0),
            rows: record_count(add.stats.as_deref()),
            partition_values: add.partition_values,
            tags: add.tags.unwrap_or_default().into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
            path: add.path,
        };
        self.files().into_iter().map(file).collect()
    }

    /// A file below [`Table::prefix`] that somebody else wrote, to be committed as one of the table's. It must have the table's columns but those that the table is partitioned
    /// by, whose values are given.
    ///
    /// # Errors
    /// When it is elsewhere.
    pub fn written_elsewhere(
        &self,
        location: &Path,
        (rows, bytes): (u64, u64),
        partition_values: HashMap<String, Option<String>>,
        tags: HashMap<String, String>,
    ) -> Result<StagedFile> {
        let outside =
            || LakeError::Schema { table: self.name().to_string(), reason: format!("{location} is not in its folder") };
        let parts = location.prefix_match(&self.inner.prefix).ok_or_else(outside)?;
        let add = Add {
            path: parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"),
            size: i64::try_from(bytes).unwrap_or(i64::MAX),
            modification_time: self.inner.clock.now().timestamp_millis(),
            data_change: true,
            partition_values,
            stats: Some(serde_json::json!({ "numRecords": rows }).to_string()),
            tags: Some(tags.into_iter().map(|(key, value)| (key, Some(value))).collect()),
            deletion_vector: None,
            base_row_id: None,
            default_row_commit_version: None,
            clustering_provider: None,
        };
        Ok(StagedFile { add, rows, bytes })
    }

    /// Which of its files have their rows in a proven order: path within the table, and the names of the columns, each ascending with nulls first. Proven is what the
    /// writer of the file compared row by row, which the log keeps as a tag.
    pub fn file_orders(&self) -> Vec<(String, Option<Vec<String>>)> {
        let order = |add: &Add| {
            let tag = add.tags.as_ref()?.get(SORTED_BY_TAG)?.as_ref()?;
            Some(tag.split(',').map(str::to_owned).collect())
        };
        self.files().into_iter().map(|add| (add.path.clone(), order(&add))).collect()
    }

    /// How far `app_id` has come in this table: the version of its last position, or `None` before the first. Remembered once it was asked for.
    ///
    /// # Errors
    /// What the Delta log answers.
    pub async fn position(&self, app_id: &str) -> Result<Option<i64>> {
        if let Some(known) = self.known_positions().get(app_id) {
            return Ok(*known);
        }
        let snapshot = self.inner.delta.snapshot().map_err(LakeError::delta(self.name()))?;
        let found = snapshot
            .transaction_version(self.inner.delta.log_store().as_ref(), app_id)
            .await
            .map_err(LakeError::delta(self.name()))?;
        self.remember_positions([(app_id.to_owned(), found)]);
        Ok(found)
    }

    /// The positions that were asked for so far.
    pub(crate) fn known_positions(&self) -> HashMap<String, Option<i64>> {
        self.inner.positions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Spares looking up what is known of this version already.
    pub(crate) fn remember_positions(&self, known: impl IntoIterator<Item = (String, Option<i64>)>) {
        self.inner.positions.lock().unwrap_or_else(PoisonError::into_inner).extend(known);
    }

    /// What the newest commit that carries `key` said under it, looking back over at most `commits_max` commits. A GET for each that is looked at, some at a time.
    ///
    /// # Errors
    /// What the Delta log answers.
    pub async fn commit_note(&self, key: &str, commits_max: usize) -> Result<Option<Value>> {
        let log = self.inner.delta.log_store();
        let read = |version| {
            let log = Arc::clone(&log);
            async move { log.read_commit_entry(version).await.map(|commit| (version, commit)) }
        };
        let mut versions = (0..=self.version()).rev().take(commits_max);
        // The newest has it mostly, and is read alone.
        let newest = futures::stream::iter(versions.next()).then(read);
        let others = futures::stream::iter(versions).map(read).buffered(NOTES_AT_ONCE);
        let mut commits = std::pin::pin!(newest.chain(others));
        while let Some((version, commit)) = commits.try_next().await.map_err(LakeError::delta(self.name()))? {
            // What is before a commit that is gone is gone, too.
            let Some(commit) = commit else { return Ok(None) };
            if let Some(note) = CommitHead::parse(version, &commit).as_ref().and_then(|head| head.note(key)) {
                return Ok(Some(note.clone()));
            }
        }
        Ok(None)
    }

    /// A DataFusion table that reads this version.
    pub fn provider(&self) -> Arc<dyn TableProvider> {
        Arc::new(LakeTableProvider::new(self.clone(), Arc::clone(self.schema()), self.files()))
    }

    /// A plan that reads the rows of this version for which `filters` are true, and as few others as statistics of files, row groups and pages allow. For those who
    /// scan without a planner.
    ///
    /// # Errors
    /// When a filter does not fit the columns, or the log is damaged.
    pub fn scan_matching(
        &self,
        state: &dyn Session,
        filters: &[Expr],
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        LakeTableProvider::new(self.clone(), Arc::clone(self.schema()), self.files()).scan_matching(state, filters)
    }

    /// A DataFusion table over staged files alone, as if a change with this schema had put them in the place of all there are. Used to judge
    /// rows before they are committed.
    pub fn staged_provider(&self, schema: SchemaRef, files: &[StagedFile]) -> Arc<dyn TableProvider> {
        let files = files.iter().map(|file| file.add.clone()).collect();
        Arc::new(LakeTableProvider::new(self.clone(), schema, files))
    }

    /// A DataFusion table over what this version would be with `files` in the place of `removed`: to judge it before it is committed.
    pub fn replaced_provider(&self, removed: &[String], files: &[StagedFile]) -> Arc<dyn TableProvider> {
        let kept = self.files().into_iter().filter(|add| !removed.contains(&add.path));
        let files = kept.chain(files.iter().map(|file| file.add.clone())).collect();
        Arc::new(LakeTableProvider::new(self.clone(), Arc::clone(self.schema()), files))
    }

    pub(crate) fn delta(&self) -> &DeltaTable {
        &self.inner.delta
    }

    /// Where its files are, from the root of the store.
    pub fn prefix(&self) -> &Path {
        &self.inner.prefix
    }

    /// Where a file is that changes name so, from the root of the store.
    pub(crate) fn location_of(&self, path: &str) -> Path {
        path.split('/').fold(self.inner.prefix.clone(), |location, part| location.join(part))
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.store
    }

    /// What is kept in memory of data files.
    pub(crate) fn data_files(&self) -> &DataFiles {
        &self.inner.data_files
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    pub(crate) fn store_url(&self) -> &ObjectStoreUrl {
        &self.inner.store_url
    }

    #[expect(deprecated, reason = "its Arrow replacement has no statistics as JSON, which plans are made from")]
    pub(crate) fn files(&self) -> Vec<Add> {
        self.inner
            .delta
            .snapshot()
            .map(|snapshot| snapshot.log_data().iter().map(|file| file.add_action()).collect())
            .unwrap_or_default()
    }
}

/// The schema as an engine reads it: partition columns last, plain types, metadata kept.
fn readable_schema(schema: &Schema, partition_columns: &[String]) -> SchemaRef {
    let position: HashMap<&str, usize> =
        partition_columns.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
    let mut partitions: Vec<_> =
        schema.fields().iter().filter(|field| position.contains_key(field.name().as_str())).cloned().collect();
    partitions.sort_by_key(|field| position.get(field.name().as_str()).copied());
    let fields: Fields = schema
        .fields()
        .iter()
        .filter(|field| !position.contains_key(field.name().as_str()))
        .cloned()
        .chain(partitions)
        .map(|field| match crate::schema::delta_compatible(field.data_type()) {
            Ok(data_type) => Arc::new(field.as_ref().clone().with_data_type(data_type)),
            Err(_) => field,
        })
        .collect();
    Arc::new(Schema::new(fields))
}
