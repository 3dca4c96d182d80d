//! The history of a feature view: what each run changed in the view's table, kept as the sorted files that point-in-time reads take.
//!
//! History follows the view's table: it notes up to which version of it it has come, reads what happened since, and adds that in one commit. So a run that died between the
//! two is made up for by the next, nothing is added twice, and the cost grows with what changed.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::row::{OwnedRow, RowConverter, SortField};
use chrono::{DateTime, Utc};
use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::error::DataFusionError;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, ident, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::TryStreamExt;
use holdfast_features::{
    Changes, DELETED, EVENT_TIMESTAMP, History, HistoryFile, HistorySchema, KNOWN_AT, VERSION, WriteSettings, Zoneless,
    write_changes,
};
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, OWN_FILES, Position, StagedFile, Table, TableChanges, TableSpec,
    is_missing_file, to_delta_compatible,
};
use holdfast_types::{CUSTOMER_BUCKET, CUSTOMER_ID};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::registry::{Registry, ViewVersion};
use super::view::FeatureView;
use crate::Result;
use crate::by_key::differing;
use crate::contract::quoted;
use crate::error::EngineError;
use crate::project::CheckedStage;
use crate::session::{SessionSettings, session_with};

/// The schema of tables with history.
pub(crate) const HISTORY_SCHEMA: &str = "history";

/// What history is partitioned by where its key is not the customer alone.
pub(crate) const KEY_BUCKET: &str = "key_bucket";

/// The property of a history table that names its view.
const VIEW: &str = "holdfast.view";
/// The property that says over how many buckets a history is spread.
const BUCKETS: &str = "holdfast.buckets";
/// Who adds to history.
const APP_ID: &str = "history";
/// The key of the note in commits of history.
const NOTE: &str = "holdfast.history";
/// The tag of a file: which versions of history it holds.
const VERSIONS_TAG: &str = "holdfast.versions";
/// Commits of history that may be merges of files since the last note.
const NOTE_COMMITS_MAX: usize = 200;
/// What changed is taken bucket by bucket when it is more than so many bytes in files.
const AT_ONCE_BYTES_MAX: u64 = 64 << 20;
/// How the engine's plans call the side that a column is of.
const ROWS: &str = "view_rows";

/// How far a history has come. Kept in the commit that brought it there.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    /// The view's table: one that was dropped and made again is another.
    table_id: Option<String>,
    /// The version of the view's table whose rows are kept.
    view_version: u64,
    /// When these became known.
    known_at: DateTime<Utc>,
}

/// What keeping a view's history came to.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    /// The history's table.
    pub(crate) table: Table,
    /// The rows that were added.
    pub(crate) rows: u64,
    /// Whether the history began with it.
    pub(crate) is_new: bool,
}

/// Keeps the history of views in one run.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    pub(crate) lake: Lake,
    pub(crate) settings: SessionSettings,
    pub(crate) runtime: Arc<RuntimeEnv>,
    /// When the run took its inputs: nothing it made rests on what came later.
    pub(crate) known_at: DateTime<Utc>,
}

/// A view's rows before and after, as providers of its row columns: keys, event timestamp if it has one, features.
struct Sides {
    before: Option<Arc<dyn TableProvider>>,
    after: Arc<dyn TableProvider>,
}

/// What a pass over some buckets needs.
struct Pass<'a> {
    view: &'a FeatureView,
    schema: &'a HistorySchema,
    /// Rows of what changed have these columns.
    columns: &'a SchemaRef,
    known_at: i64,
    /// The history so far.
    history: &'a Table,
    /// Up to when what it has became known: no event in it is later. `None` when it is empty.
    known_before: Option<i64>,
}

impl Keeper {
    /// Brings the history of the view that a stage makes to the rows of this version of its table; nothing when the stage makes none, and in an environment.
    ///
    /// # Errors
    /// Two rows of one key, a null event timestamp, what the lake and the engine answer. May be repeated.
    pub(crate) async fn keep(&self, checked: &CheckedStage, table: &Table) -> Result<Option<Kept>> {
        let Some(view) = FeatureView::of(&checked.stage, &checked.schema) else { return Ok(None) };
        // What is tried in an environment was never known in production, and what is not tried there is not copied.
        if self.lake.environment_name().is_some() {
            return Ok(None);
        }
        let registered = Registry::new(&self.lake).register_view(&view).await?.version;
        let history = self.lake.ensure_table(&spec(&registered, &checked.schema, self.buckets())?).await?;
        let step = history.position(APP_ID).await?.unwrap_or(0);
        let note = match history.commit_note(NOTE, NOTE_COMMITS_MAX).await? {
            Some(note) => Some(read_note(note, &history)?),
            None => None,
        };
        let rows_of = table.data_version().await?;
        let table_id = table.id();
        if note.as_ref().is_some_and(|note| note.view_version == rows_of && note.table_id == table_id) {
            return Ok(Some(Kept { table: history, rows: 0, is_new: false }));
        }
        let is_new = note.is_none() && step == 0;
        let known_at = note.as_ref().map_or(self.known_at, |note| note.known_at.max(self.known_at));
        let followed = note.as_ref().filter(|note| note.table_id == table_id && note.view_version <= rows_of);
        let known_before = note.as_ref().map(|note| note.known_at);
        let added = self.add(&registered, table, &history, (step, followed, is_new), (known_at, known_before)).await?;
        let rows = added.iter().map(|file| file.rows).sum();
        let note = Note { table_id, view_version: rows_of, known_at };
        let staged = added.clone();
        let outcome = self
            .lake
            .commit(Change {
                table: &history,
                position: Position { app_id: APP_ID.to_owned(), version: step + 1 },
                fence: None,
                // Refused when another run went on with the same history meanwhile.
                kind: ChangeKind::Replace { removed: Vec::new(), told: Vec::new() },
                files: added,
                schema: None,
                comment: None,
                metadata: [(NOTE.to_owned(), serde_json::to_value(&note).unwrap_or(Value::Null))].into_iter().collect(),
            })
            .await?;
        let CommitOutcome::Applied { version } = outcome else {
            self.lake.discard(staged, &history).await;
            return Err(EngineError::Concurrent { table: history.name().clone() });
        };
        let table = self.lake.table_as_committed(history.name(), version).await?;
        Ok(Some(Kept { table, rows, is_new }))
    }

    fn buckets(&self) -> u32 {
        self.lake.settings().customer_buckets
    }

    /// Writes what the view's table has that history has not, as files of the next version of history.
    async fn add(
        &self,
        registered: &ViewVersion,
        table: &Table,
        history: &Table,
        (step, followed, is_new): (i64, Option<&Note>, bool),
        (known_at, known_before): (DateTime<Utc>, Option<DateTime<Utc>>),
    ) -> Result<Vec<StagedFile>> {
        let view = &registered.view;
        let context = session_with(&self.settings, &self.runtime, self.buckets(), [])?;
        let changes = match followed {
            Some(note) => table.changes_since(note.view_version).await?,
            None => None,
        };
        let bytes = changes.as_ref().map_or_else(|| table.byte_count(), TableChanges::bytes);
        // Only where the view's table and its history are spread alike.
        let is_alike = view.entity == [CUSTOMER_ID] && table.partition_columns() == [CUSTOMER_BUCKET];
        let by_bucket = bytes > AT_ONCE_BYTES_MAX && is_alike;
        let buckets: Vec<Option<i32>> = match (by_bucket, i32::try_from(self.buckets())) {
            (true, Ok(buckets)) => (0..buckets).map(Some).collect(),
            _ => vec![None],
        };
        let failed = || EngineError::execution(format!("keeping the history of {}", table.name()));
        let schema = history_schema(history)?;
        let columns = row_columns(view, &schema);
        let pass = Pass {
            view,
            schema: &schema,
            columns: &columns,
            known_at: known_at.timestamp_micros(),
            history,
            known_before: known_before.map(|known| known.timestamp_micros()),
        };
        // A folder of its own: whoever writes the same version beside this run writes elsewhere.
        let folder = history.prefix().clone().join(format!("{:020}-{}", step + 1, unique()));
        let mut files = Vec::new();
        for bucket in buckets {
            let compared = (history, table, view, bucket, is_new);
            let sides = match &changes {
                Some(changes) => told(changes, view, bucket),
                None => self.compared(&context, compared).await,
            };
            let batches = match self.changed(&context, &pass, sides.map_err(failed())?).await {
                Ok(batches) => batches,
                // Files that the log still speaks of and vacuum has deleted: what is kept is compared with what is there.
                Err(EngineError::Execution { source, .. }) if changes.is_some() && is_missing_file(&source) => {
                    let sides = self.compared(&context, compared).await.map_err(failed())?;
                    self.changed(&context, &pass, sides).await?
                }
                Err(error) => return Err(error),
            };
            let changes =
                Changes { version: step + 1, known_at: pass.known_at, batches: &batches, zoneless: Zoneless::Utc };
            files.extend(write_changes(self.lake.store(), &folder, &schema, changes, &WriteSettings::default()).await?);
        }
        files.iter().map(|file| staged(history, file)).collect()
    }

    /// What history says the view has, and what it has.
    async fn compared(
        &self,
        context: &SessionContext,
        (history, table, view, bucket, is_new): (&Table, &Table, &FeatureView, Option<i32>, bool),
    ) -> Result<Sides, DataFusionError> {
        let before = if is_new { None } else { Some(self.kept(context, history, view, bucket).await?) };
        Ok(Sides { before, after: rows(table.provider(), view, bucket)? })
    }

    /// The rows that history says the view has.
    async fn kept(
        &self,
        context: &SessionContext,
        history: &Table,
        view: &FeatureView,
        bucket: Option<i32>,
    ) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let keys = view.entity.iter().map(|key| quoted(key)).collect::<Vec<_>>().join(", ");
        let mut columns: Vec<String> = view.entity.iter().map(|key| quoted(key)).collect();
        columns.extend(view.event_timestamp.is_some().then(|| EVENT_TIMESTAMP.to_owned()));
        columns.extend(view.features.iter().map(|feature| quoted(&feature.name)));
        let part = bucket.map_or_else(String::new, |bucket| format!("where {CUSTOMER_BUCKET} = {bucket}"));
        let sql = format!(
            "with ranked as (select *, row_number() over (partition by {keys} order by {EVENT_TIMESTAMP} desc, {KNOWN_AT} desc, {VERSION} desc) as _rank \
             from kept_history {part}) select {} from ranked where _rank = 1 and not {DELETED}",
            columns.join(", ")
        );
        let context = context.clone();
        context.deregister_table("kept_history")?;
        context.register_table("kept_history", history.provider())?;
        Ok(context.sql(&sql).await?.into_view())
    }

    /// The rows of history that turn what it says into what the view has.
    async fn changed(&self, context: &SessionContext, pass: &Pass<'_>, sides: Sides) -> Result<Vec<RecordBatch>> {
        let failed = || EngineError::execution(format!("keeping the history of {}", pass.view.table));
        let (before, after) = match &sides.before {
            Some(before) => {
                let changed = differing(before, &sides.after, None).map_err(failed())?;
                (Some(changed.removed), changed.added)
            }
            None => (None, Arc::clone(&sides.after)),
        };
        let mut gone = match before {
            Some(before) => collect(context, before, pass.columns).await.map_err(failed())?,
            None => Vec::new(),
        };
        let came = collect(context, after, pass.columns).await.map_err(failed())?;
        let mut last = LastMoments::new(pass)?;
        for batch in &came {
            last.came(batch)?;
        }
        for batch in std::mem::take(&mut gone) {
            last.gone(&batch)?;
        }
        if let Some(keys) = last.uncertain()? {
            let kept = self.last_events(context, pass, keys).await.map_err(failed())?;
            last.kept(&kept)?;
        }
        let mut rows = came.iter().map(|batch| last.rows(batch)).collect::<Result<Vec<_>>>()?;
        rows.extend(last.deletions()?);
        Ok(rows)
    }

    /// The keys with their last events in history, deletions included. Reads keys and events of the history, as far as they are not seen to be of other keys.
    async fn last_events(
        &self,
        context: &SessionContext,
        pass: &Pass<'_>,
        keys: RecordBatch,
    ) -> Result<Vec<RecordBatch>, DataFusionError> {
        let context = context.clone();
        context.deregister_table("kept_history")?;
        context.register_table("kept_history", pass.history.provider())?;
        context.deregister_table("wanted_keys")?;
        context.register_table("wanted_keys", Arc::new(MemTable::try_new(keys.schema(), vec![vec![keys]])?))?;
        let columns: Vec<String> = pass.schema.keys().iter().map(|key| quoted(key.name())).collect();
        let of = |table: &str| columns.iter().map(|key| format!("{table}.{key}")).collect::<Vec<_>>().join(", ");
        let alike = columns.iter().map(|key| format!("h.{key} = w.{key}")).collect::<Vec<_>>().join(" and ");
        let sql = format!(
            "select {}, max(h.{EVENT_TIMESTAMP}) as {EVENT_TIMESTAMP} from wanted_keys w join kept_history h on {alike} group by {}",
            of("w"),
            of("w"),
        );
        let mut fields: Vec<Field> = pass.schema.keys().iter().map(|key| key.as_ref().clone()).collect();
        fields.push(Field::new(EVENT_TIMESTAMP, moment_type(), true));
        collect(&context, context.sql(&sql).await?.into_view(), &Arc::new(Schema::new(fields))).await
    }
}

/// Moments that rows have in history. Neither a row that comes nor the end of one that goes may lie before what history has of its key, or they would never be seen.
struct LastMoments<'a> {
    pass: &'a Pass<'a>,
    converter: RowConverter,
    /// Keys whose rows come, with their moments.
    came: HashMap<OwnedRow, i64>,
    /// Keys whose rows go and do not come again, with their moments.
    gone: HashMap<OwnedRow, i64>,
    /// The last events of keys in history, where that was asked.
    kept: HashMap<OwnedRow, i64>,
}

impl<'a> LastMoments<'a> {
    fn new(pass: &'a Pass<'a>) -> Result<Self> {
        let fields = pass.schema.keys().iter().map(|key| SortField::new(key.data_type().clone())).collect();
        let converter = RowConverter::new(fields).map_err(|error| arrow_failed(pass, error))?;
        Ok(Self { pass, converter, came: HashMap::new(), gone: HashMap::new(), kept: HashMap::new() })
    }

    fn keys(&self, batch: &RecordBatch) -> Result<arrow::row::Rows> {
        let keys = &batch.columns()[..self.pass.schema.keys().len()];
        self.converter.convert_columns(keys).map_err(|error| arrow_failed(self.pass, error))
    }

    /// The moments of the rows. What is not over yet when it became known is kept as known then: the end of the day that `now()` is in stages by key, a clock that is wrong.
    fn moments(&self, batch: &RecordBatch) -> Result<Vec<i64>> {
        let known_at = self.pass.known_at;
        let Some(name) = &self.pass.view.event_timestamp else { return Ok(vec![known_at; batch.num_rows()]) };
        let moments = batch.column(self.pass.schema.keys().len()).as_primitive::<TimestampMicrosecondType>();
        if moments.null_count() > 0 {
            return Err(EngineError::FeatureRows {
                table: self.pass.view.table.clone(),
                reason: format!(
                    "{} rows have no {name}: a row of a feature view needs its moment; leave such rows out or give them one",
                    moments.null_count()
                ),
            });
        }
        Ok(moments.values().iter().map(|moment| (*moment).min(known_at)).collect())
    }

    fn came(&mut self, batch: &RecordBatch) -> Result<()> {
        let (keys, moments) = (self.keys(batch)?, self.moments(batch)?);
        for (key, moment) in keys.iter().zip(moments) {
            if self.came.insert(key.owned(), moment).is_some() {
                return Err(EngineError::FeatureRows {
                    table: self.pass.view.table.clone(),
                    reason: format!(
                        "two rows have the same {}: a feature view has one row for each",
                        self.pass.view.entity.join(", ")
                    ),
                });
            }
        }
        Ok(())
    }

    fn gone(&mut self, batch: &RecordBatch) -> Result<()> {
        let (keys, moments) = (self.keys(batch)?, self.moments(batch)?);
        for (key, moment) in keys.iter().zip(moments) {
            let key = key.owned();
            if !self.came.contains_key(&key) {
                let last = self.gone.entry(key).or_insert(moment);
                *last = (*last).max(moment);
            }
        }
        Ok(())
    }

    /// The keys that history may have later events of: those that go, and those whose row is of a time that history knew of already.
    fn uncertain(&self) -> Result<Option<RecordBatch>> {
        let Some(known_before) = self.pass.known_before else { return Ok(None) };
        let late = self.came.iter().filter(|(_, moment)| **moment < known_before).map(|(key, _)| key);
        let mut keys: Vec<&OwnedRow> = late.chain(self.gone.keys()).collect();
        if keys.is_empty() {
            return Ok(None);
        }
        keys.sort();
        let columns = self.converter.convert_rows(keys.iter().map(|key| key.row()));
        let fields: Vec<Field> = self.pass.schema.keys().iter().map(|key| key.as_ref().clone()).collect();
        let batch = columns.and_then(|columns| RecordBatch::try_new(Arc::new(Schema::new(fields)), columns));
        batch.map(Some).map_err(|error| arrow_failed(self.pass, error))
    }

    fn kept(&mut self, batches: &[RecordBatch]) -> Result<()> {
        for batch in batches {
            let events = batch.column(self.pass.schema.keys().len()).as_primitive::<TimestampMicrosecondType>();
            for (key, event) in self.keys(batch)?.iter().zip(events.values()) {
                self.kept.insert(key.owned(), *event);
            }
        }
        Ok(())
    }

    /// The rows as history has them.
    fn rows(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let (keys, mut moments) = (self.keys(batch)?, self.moments(batch)?);
        if !self.kept.is_empty() {
            for (key, moment) in keys.iter().zip(&mut moments) {
                // What is corrected to an earlier moment, or comes back with one, counts from the last that history has.
                *moment = self.kept.get(&key.owned()).map_or(*moment, |last| (*last).max(*moment));
            }
        }
        let mut columns = batch.columns().to_vec();
        let at = self.pass.schema.keys().len();
        if self.pass.view.event_timestamp.is_some() {
            columns.remove(at);
        }
        columns.insert(at, micros(moments));
        columns.push(Arc::new(BooleanArray::from(vec![false; batch.num_rows()])));
        self.batch(columns)
    }

    /// What went for good: from its last event on.
    fn deletions(&mut self) -> Result<Option<RecordBatch>> {
        if self.gone.is_empty() {
            return Ok(None);
        }
        let mut gone: Vec<(OwnedRow, i64)> = std::mem::take(&mut self.gone).into_iter().collect();
        for (key, moment) in &mut gone {
            *moment = self.kept.get(key).map_or(*moment, |last| (*last).max(*moment));
        }
        gone.sort();
        let keys = self.converter.convert_rows(gone.iter().map(|(key, _)| key.row()));
        let mut columns = keys.map_err(|error| arrow_failed(self.pass, error))?;
        columns.push(micros(gone.iter().map(|(_, moment)| *moment).collect()));
        let features = self.pass.schema.features().iter();
        columns.extend(features.map(|feature| new_null_array(feature.data_type(), gone.len())));
        columns.push(Arc::new(BooleanArray::from(vec![true; gone.len()])));
        self.batch(columns).map(Some)
    }

    /// Keys, moments, features, and whether it is a deletion.
    fn batch(&self, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
        let schema = self.pass.schema;
        let mut fields: Vec<Field> = schema.keys().iter().map(|key| key.as_ref().clone()).collect();
        fields.push(Field::new(EVENT_TIMESTAMP, moment_type(), false));
        fields.extend(schema.features().iter().map(|feature| feature.as_ref().clone()));
        fields.push(Field::new(DELETED, DataType::Boolean, false));
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|error| arrow_failed(self.pass, error))
    }
}

/// The columns of a view's history and its files, to read it by.
///
/// # Errors
/// When a file does not say what it holds: something else wrote to the table.
pub fn history_of(history: &Table) -> Result<(HistorySchema, History)> {
    let schema = history_schema(history)?;
    let files = files(history)?.into_iter().map(|(_, file)| file);
    let history = History::new(&schema, files)?;
    Ok((schema, history))
}

/// The version of the view's table that a history has come to, and the version of history that this is.
///
/// # Errors
/// What the lake answers.
pub async fn followed(history: &Table) -> Result<Option<(u64, i64)>> {
    let step = history.position(APP_ID).await?.unwrap_or(0);
    match history.commit_note(NOTE, NOTE_COMMITS_MAX).await? {
        Some(note) => Ok(Some((read_note(note, history)?.view_version, step))),
        None => Ok(None),
    }
}

/// Up to when what history has was known; `None` before its first commit.
///
/// # Errors
/// What the lake answers.
pub async fn known_until(history: &Table) -> Result<Option<DateTime<Utc>>> {
    let note = history.commit_note(NOTE, NOTE_COMMITS_MAX).await?;
    note.map(|note| Ok(read_note(note, history)?.known_at)).transpose()
}

/// As it was decided when the table was made: keys come before the event timestamp, features behind what history adds.
fn history_schema(history: &Table) -> Result<HistorySchema> {
    let own = [EVENT_TIMESTAMP, KNOWN_AT, VERSION, DELETED];
    let in_files = history.schema().fields().len() - history.partition_columns().len();
    let fields = &history.schema().fields()[..in_files];
    let moment = fields.iter().position(|field| field.name() == EVENT_TIMESTAMP).unwrap_or(0);
    let keys = fields[..moment].iter().map(|field| field.as_ref().clone()).collect();
    let features = fields[moment..].iter().filter(|field| !own.contains(&field.name().as_str()));
    let features = features.map(|field| field.as_ref().clone()).collect();
    let view = history.property(VIEW).unwrap_or_else(|| history.name().table());
    let buckets = history.property(BUCKETS).and_then(|buckets| buckets.parse().ok()).unwrap_or(1);
    Ok(HistorySchema::new(view, keys, features, buckets)?)
}

/// The files of a history, as the log and as point-in-time reads have them.
pub(crate) fn files(history: &Table) -> Result<Vec<(String, HistoryFile)>> {
    let mut files = Vec::new();
    for file in history.listed_files() {
        let number = |text: &str| text.parse::<i64>().ok();
        let versions = file.tags.get(VERSIONS_TAG).and_then(|tag| tag.split_once('-'));
        let versions = versions.and_then(|(first, last)| Some(number(first)?..=number(last)?));
        let bucket = file.partition_values.values().next().and_then(|value| value.as_ref()?.parse().ok());
        let (Some(versions), Some(bucket), Some(rows)) = (versions, bucket, file.rows) else {
            return Err(EngineError::Lake(holdfast_lake::LakeError::Damaged {
                path: file.location.to_string(),
                reason: "a file of kept history that does not say which versions it holds: somebody else wrote it"
                    .to_owned(),
            }));
        };
        files.push((file.path, HistoryFile { bucket, path: file.location, bytes: file.bytes, rows, versions }));
    }
    Ok(files)
}

/// A file of history, ready to be committed.
pub(crate) fn staged(history: &Table, file: &HistoryFile) -> Result<StagedFile> {
    let partition = history.partition_columns().first().cloned().unwrap_or_else(|| KEY_BUCKET.to_owned());
    let tag = format!("{}-{}", file.versions.start(), file.versions.end());
    Ok(history.written_elsewhere(
        &file.path,
        (file.rows, file.bytes),
        HashMap::from([(partition, Some(file.bucket.to_string()))]),
        HashMap::from([(VERSIONS_TAG.to_owned(), tag)]),
    )?)
}

/// Something that no other process comes upon.
pub(crate) fn unique() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// The table of a history that begins.
fn spec(registered: &ViewVersion, table: &SchemaRef, buckets: u32) -> Result<TableSpec> {
    let view = &registered.view;
    let fields = |wanted: &dyn Fn(&str) -> bool| -> Vec<Field> {
        table.fields().iter().filter(|field| wanted(field.name())).map(|field| field.as_ref().clone()).collect()
    };
    let mut keys = fields(&|name| view.entity.iter().any(|key| key == name));
    keys.sort_by_key(|key| view.entity.iter().position(|name| name == key.name()));
    let features = fields(&|name| view.feature(name).is_some());
    let schema = HistorySchema::new(&view.name, keys, features, buckets)?;
    let partition = if view.entity == [CUSTOMER_ID] { CUSTOMER_BUCKET } else { KEY_BUCKET };
    let bucket = Field::new(partition, DataType::Int32, true);
    let fields: Vec<Field> =
        schema.file_schema().fields().iter().map(|field| field.as_ref().clone()).chain([bucket]).collect();
    let properties = [
        (OWN_FILES.to_owned(), "true".to_owned()),
        (BUCKETS.to_owned(), buckets.to_string()),
        (VIEW.to_owned(), view.name.clone()),
    ];
    Ok(TableSpec {
        name: registered.history.clone(),
        schema: Arc::new(Schema::new(fields).with_metadata(properties.into_iter().collect())),
        partition_by: vec![partition.to_owned()],
        comment: format!("What runs changed in {}, with the moment at which it became known", view.table),
    })
}

/// The columns that changes are worked out over: keys, the event timestamp where there is one, features.
fn row_columns(view: &FeatureView, schema: &HistorySchema) -> SchemaRef {
    let mut fields: Vec<Field> = schema.keys().iter().map(|key| key.as_ref().clone()).collect();
    fields.extend(view.event_timestamp.is_some().then(|| Field::new(EVENT_TIMESTAMP, moment_type(), true)));
    fields.extend(schema.features().iter().map(|feature| feature.as_ref().clone()));
    Arc::new(Schema::new(fields))
}

/// What the log says came and went.
fn told(changes: &TableChanges, view: &FeatureView, bucket: Option<i32>) -> Result<Sides, DataFusionError> {
    Ok(Sides {
        before: Some(rows(changes.removed_rows()?, view, bucket)?),
        after: rows(changes.added_rows()?, view, bucket)?,
    })
}

/// Rows of the view's table in [`row_columns`]: those that are somebody's.
fn rows(
    provider: Arc<dyn TableProvider>,
    view: &FeatureView,
    bucket: Option<i32>,
) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    let mut plan = LogicalPlanBuilder::scan(ROWS, provider_as_source(provider), None)?;
    if let Some(bucket) = bucket {
        plan = plan.filter(ident(CUSTOMER_BUCKET).eq(lit(bucket)))?;
    }
    for key in &view.entity {
        plan = plan.filter(ident(key).is_not_null())?;
    }
    let mut columns: Vec<Expr> = view.entity.iter().map(|key| ident(key).alias(key)).collect();
    columns.extend(view.event_timestamp.iter().map(|column| cast(ident(column), moment_type()).alias(EVENT_TIMESTAMP)));
    columns.extend(view.features.iter().map(|feature| ident(&feature.name).alias(&feature.name)));
    Ok(Arc::new(ViewTable::new(plan.project(columns)?.build()?, None)))
}

async fn collect(
    context: &SessionContext,
    provider: Arc<dyn TableProvider>,
    columns: &SchemaRef,
) -> Result<Vec<RecordBatch>, DataFusionError> {
    let plan: LogicalPlan = LogicalPlanBuilder::scan("changed_rows", provider_as_source(provider), None)?.build()?;
    let mut state = context.state();
    // Comments of columns that a union keeps of one side only.
    state.config_mut().options_mut().execution.skip_physical_aggregate_schema_check = true;
    let mut stream = DataFrame::new(state, plan).execute_stream().await?;
    let mut rows = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        if batch.num_rows() > 0 {
            rows.push(to_delta_compatible(&batch, columns)?);
        }
    }
    Ok(rows)
}

fn read_note(note: Value, history: &Table) -> Result<Note> {
    serde_json::from_value(note).map_err(|error| {
        EngineError::Lake(holdfast_lake::LakeError::Damaged {
            path: history.name().to_string(),
            reason: format!("the note of its last commit cannot be read: {error}"),
        })
    })
}

fn moment_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}

fn micros(moments: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(moments).with_timezone("UTC"))
}

fn arrow_failed(pass: &Pass<'_>, error: arrow::error::ArrowError) -> EngineError {
    EngineError::execution(format!("keeping the history of {}", pass.view.table))(error.into())
}
