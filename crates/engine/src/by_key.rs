//! Brings a stage's table up to date by key: which keys the changes of its inputs concern, the rows of those alone, and what of it differs from what is there.
//!
//! What it leaves in the table is what a full refresh would (STG-1). Whenever it cannot say so it says why, and the stage is refreshed in full.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::functions_aggregate::expr_fn::{first_value, sum};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, ident, lit};
use datafusion::prelude::DataFrame;
use futures::TryStreamExt;
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Position, Replacement, RowChanges, Table, TableChanges, to_delta_compatible,
};
use holdfast_types::{CUSTOMER_BUCKET, TableName};

use crate::Result;
use crate::build::{Built, Increment, Planned, StageNote, StageWork, key_is_unique};
use crate::error::EngineError;
use crate::expectation::{ExpectationResult, RowRules, quarantine_schema};
use crate::increment::{InputChange, KeyPlan, NotByKey};
use crate::output::with_bucket;
use crate::run::{Refresh, StageOutcome};

/// Of a table's rows one in so many keys may change: when it is more, a full refresh is cheaper.
const KEYS_SHARE: u64 = 4;
/// So many keys are never too many.
const KEYS_ALWAYS: u64 = 1_000;
/// Of an input's bytes one in so many may have changed.
const BYTES_SHARE: u64 = 2;
/// So many bytes are never too many.
const BYTES_ALWAYS: u64 = 16 << 20;
/// Of a session's memory the rows of the changed keys may take one part in so many, before and after each.
const MEMORY_SHARE: usize = 4;
/// A stage none of whose keys changed notes how far it has read once it is so many versions of an input behind.
const VERSIONS_BEHIND_MAX: u64 = 16;

/// The keys that changed.
pub(crate) struct Keys {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    pub(crate) count: u64,
}

/// New rows of the changed keys, after judgement.
struct Fresh {
    kept: Vec<RecordBatch>,
    refused: Vec<RecordBatch>,
    failed: Vec<u64>,
}

/// Rows that were collected, or how it was seen that they are too many.
pub(crate) enum Collected<T> {
    Rows(T),
    TooMany(String),
}

impl StageWork {
    /// Puts the rows that the query has for the changed keys in the place of those that are there.
    ///
    /// # Errors
    /// Those of a full refresh. Nothing is published then.
    pub(crate) async fn replace_keys(
        &self,
        stored: Option<&StageNote>,
        note: &StageNote,
        planned: &Planned,
        by_key: &KeyPlan,
        keys: &Keys,
    ) -> Result<Increment> {
        let (Some(table), Some(stored)) = (&self.current, stored) else {
            return Ok(Increment::Full("it has not been built before".to_owned()));
        };
        match self.replace(table, stored, note, planned, by_key, keys).await {
            Err(error) => Ok(Increment::Full(self.full_instead(error)?)),
            done => done,
        }
    }

    /// Why a full refresh can do what failed by key.
    ///
    /// # Errors
    /// The failure, where a full refresh would meet it as well.
    pub(crate) fn full_instead(&self, error: EngineError) -> Result<String> {
        // Files that the log still speaks of and vacuum has deleted.
        if is_missing_file(&error) {
            return Ok("files that its changes are in were vacuumed".to_owned());
        }
        // A plan of ours that the engine cannot run is no fault of the author's. What is one, the full refresh will tell.
        if is_not_to_be_run(&error) {
            tracing::warn!(stage = %self.name(), %error, "what changed could not be worked out by key");
            return Ok("what changed could not be worked out by key: see the log".to_owned());
        }
        Err(error)
    }

    /// What happened to the inputs since the stage was built, of those to which something did. Of those that are `pending` nobody can know yet.
    pub(crate) async fn changes(
        &self,
        stored: &StageNote,
        note: &StageNote,
        pending: &BTreeSet<TableName>,
    ) -> Result<std::result::Result<BTreeMap<TableName, TableChanges>, String>> {
        let mut changes = BTreeMap::new();
        for (name, version) in &note.inputs {
            let before = stored.seen().get(name).copied().flatten();
            if before == *version || pending.contains(name) {
                continue;
            }
            let (Some(before), Some(Some(table))) = (before, self.inputs.get(name)) else {
                return Ok(Err(format!("{name} is new")));
            };
            let Some(changed) = table.changes_since(before).await? else {
                return Ok(Err(format!("the log of {name} no longer says what changed since version {before}")));
            };
            if changed.bytes() > BYTES_ALWAYS.max(table.byte_count() / BYTES_SHARE) {
                return Ok(Err(format!("much of {name} changed")));
            }
            if !changed.is_empty() {
                changes.insert(name.clone(), changed);
            }
        }
        Ok(Ok(changes))
    }

    async fn replace(
        &self,
        table: &Table,
        stored: &StageNote,
        note: &StageNote,
        planned: &Planned,
        by_key: &KeyPlan,
        keys: &Keys,
    ) -> Result<Increment> {
        if keys.count == 0 {
            return self.unchanged(table, stored, note).await;
        }
        let Fresh { kept, refused, failed } = match self.fresh(planned, by_key, keys).await? {
            Collected::Rows(fresh) => fresh,
            Collected::TooMany(reason) => return Ok(Increment::Full(reason)),
        };
        let before = match self.rows_of(table, planned, by_key, keys).await? {
            Collected::Rows(rows) => rows,
            Collected::TooMany(reason) => return Ok(Increment::Full(reason)),
        };
        let failed_to = || EngineError::execution(format!("stage {}", self.name()));
        let quarantined_rows: u64 = refused.iter().map(|batch| batch.num_rows() as u64).sum();
        let refused_before = match &planned.quarantine {
            Some(quarantine) if quarantine.row_count() != Some(0) => {
                match self.rows_of(quarantine, planned, by_key, keys).await? {
                    Collected::Rows(rows) => rows,
                    Collected::TooMany(reason) => return Ok(Increment::Full(reason)),
                }
            }
            _ => Vec::new(),
        };
        let changed = RowChanges::between(table.schema(), &before, &kept).map_err(|error| failed_to()(error.into()))?;
        let refused_schema = quarantine_schema(&self.checked.schema);
        let refused = RowChanges::between(&refused_schema, &refused_before, &refused)
            .map_err(|error| failed_to()(error.into()))?;
        if changed.is_empty() && refused.is_empty() {
            return self.unchanged(table, stored, note).await;
        }

        let staged = self.lake.stage_replacement(table, &changed).await?;
        let judged = self.judge_keys(table, planned, by_key, &staged, &kept, &failed).await;
        let expectations = match judged {
            Ok(expectations) => expectations,
            Err(error) => {
                self.lake.discard(staged.files.into_iter().chain(staged.told).collect(), table).await;
                return Err(error);
            }
        };
        self.check_met(&expectations)?;
        let mut bytes = staged.bytes();
        let mut tables = Vec::new();
        if let Some(quarantine) = &planned.quarantine {
            if refused.is_empty() {
                tables.push(quarantine.clone());
            } else {
                let refused = self.lake.stage_replacement(quarantine, &refused).await?;
                bytes += refused.bytes();
                tables.push(self.commit_replacement(quarantine, refused, None).await?);
            }
        }
        let table = self.commit_replacement(table, staged, Some(note)).await?;
        let outcome = StageOutcome::Built {
            version: table.version(),
            rows: table.row_count().unwrap_or(0),
            quarantined_rows,
            refresh: Refresh::Keys {
                keys: keys.count,
                rows_added: changed.rows_added(),
                rows_removed: changed.rows_removed(),
            },
        };
        tables.push(table);
        Ok(Increment::Done(Built { outcome, expectations, tables, bytes, looked_at: None, place: None }))
    }

    /// The keys that the changes concern.
    pub(crate) async fn keys(
        &self,
        table: &Table,
        planned: &Planned,
        by_key: &KeyPlan,
        changes: &BTreeMap<TableName, TableChanges>,
    ) -> Result<Collected<Keys>> {
        let failed = || EngineError::execution(format!("finding what changed for {}", self.name()));
        let mut rows = BTreeMap::new();
        let used = used_columns(planned).map_err(failed())?;
        for (name, change) in changes {
            let removed = change.removed_rows().map_err(failed())?;
            let added = change.added_rows().map_err(failed())?;
            let change = if change.is_two_sided() {
                differing(&removed, &added, used.get(&name.to_string())).map_err(failed())?
            } else {
                InputChange { removed, added }
            };
            rows.insert(name.clone(), change);
        }
        let mut current: Vec<Arc<dyn TableProvider>> = vec![table.provider()];
        current.extend(planned.quarantine.iter().map(Table::provider));
        let plan = by_key.affected(&planned.state, &rows, &current).map_err(failed())?;
        let Some(plan) = plan else {
            return Ok(Collected::TooMany("what changed cannot be led back to keys".to_owned()));
        };
        self.collect_keys(table, planned, plan).await
    }

    /// The keys of a plan with one column, unless they are so many that a full refresh is cheaper.
    pub(crate) async fn collect_keys(
        &self,
        table: &Table,
        planned: &Planned,
        plan: LogicalPlan,
    ) -> Result<Collected<Keys>> {
        let failed = || EngineError::execution(format!("finding what changed for {}", self.name()));
        let max = KEYS_ALWAYS.max(table.row_count().unwrap_or(0) / KEYS_SHARE);
        let mut state = planned.state.clone();
        // Keys come from columns with comments and from columns without; a union keeps those of one side, and the check takes that for a mistake.
        state.config_mut().options_mut().execution.skip_physical_aggregate_schema_check = true;
        let mut stream = DataFrame::new(state, plan).execute_stream().await.map_err(failed())?;
        let mut keys = Keys { schema: stream.schema(), batches: Vec::new(), count: 0 };
        while let Some(batch) = stream.try_next().await.map_err(failed())? {
            keys.count += batch.num_rows() as u64;
            if keys.count > max {
                return Ok(Collected::TooMany(format!("more than {max} keys changed")));
            }
            keys.batches.push(batch);
        }
        Ok(Collected::Rows(keys))
    }

    /// The rows that the query has for the keys today.
    async fn fresh(&self, planned: &Planned, by_key: &KeyPlan, keys: &Keys) -> Result<Collected<Fresh>> {
        let failed = || EngineError::execution(format!("stage {}", self.name()));
        let schema = &self.checked.schema;
        let plan = by_key.restricted(keys.provider().map_err(failed())?).map_err(failed())?;
        let plan = match schema.field_with_name(CUSTOMER_BUCKET) {
            Ok(_) => with_bucket(plan, self.buckets()).map_err(failed())?,
            Err(_) => plan,
        };
        let rows = match self.collect(&planned.state, plan, schema).await? {
            Collected::Rows(rows) => rows,
            Collected::TooMany(reason) => return Ok(Collected::TooMany(reason)),
        };
        let mut fresh = Fresh { kept: Vec::new(), refused: Vec::new(), failed: vec![0; planned.rules.len()] };
        for batch in rows {
            let (kept, refused) = judged(&planned.rules, &batch, schema, &mut fresh.failed).map_err(failed())?;
            fresh.kept.push(kept);
            fresh.refused.extend(refused);
        }
        Ok(Collected::Rows(fresh))
    }

    /// The rows of the keys in a table, with its columns.
    async fn rows_of(
        &self,
        table: &Table,
        planned: &Planned,
        by_key: &KeyPlan,
        keys: &Keys,
    ) -> Result<Collected<Vec<RecordBatch>>> {
        let failed = || EngineError::execution(format!("reading {}", table.name()));
        let plan = matching(table, by_key.key(), keys.provider().map_err(failed())?).map_err(failed())?;
        self.collect(&planned.state, plan, table.schema()).await
    }

    async fn collect(
        &self,
        state: &SessionState,
        plan: LogicalPlan,
        schema: &SchemaRef,
    ) -> Result<Collected<Vec<RecordBatch>>> {
        let failed = || EngineError::execution(format!("stage {}", self.name()));
        let bytes_max = self.settings.memory_bytes / MEMORY_SHARE;
        let mut stream = DataFrame::new(state.clone(), plan).execute_stream().await.map_err(failed())?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = stream.try_next().await.map_err(failed())? {
            if batch.num_rows() == 0 {
                continue;
            }
            let batch = to_delta_compatible(&batch, schema).map_err(|error| failed()(error.into()))?;
            bytes += batch.get_array_memory_size();
            if bytes > bytes_max {
                return Ok(Collected::TooMany(format!("the rows that change take more than {} MB", bytes_max >> 20)));
            }
            rows.push(batch);
        }
        Ok(Collected::Rows(rows))
    }

    /// Nothing of what changed concerns the stage. Now and then it notes so, so that it need not be found out again from far back.
    async fn unchanged(&self, table: &Table, stored: &StageNote, note: &StageNote) -> Result<Increment> {
        let behind = note.inputs.iter().any(|(name, version)| {
            let before = stored.inputs.get(name).copied().flatten().unwrap_or(0);
            version.unwrap_or(0).saturating_sub(before) > VERSIONS_BEHIND_MAX
        });
        if !behind || !self.is_own() {
            let built = Built { looked_at: stored.looked_at_by(note), ..Built::fresh(table.version()) };
            return Ok(Increment::Done(built));
        }
        let table = self.commit_replacement(table, Replacement::default(), Some(note)).await?;
        let built = Built { tables: vec![table.clone()], ..Built::fresh(table.version()) };
        Ok(Increment::Done(built))
    }

    /// What the expectations say of the table as it would be.
    async fn judge_keys(
        &self,
        table: &Table,
        planned: &Planned,
        by_key: &KeyPlan,
        staged: &Replacement,
        kept: &[RecordBatch],
        failed: &[u64],
    ) -> Result<Vec<ExpectationResult>> {
        let mut results = planned.rules.results(failed);
        let after = || table.replaced_provider(&staged.removed, &staged.files);
        if let Some(contract) = &self.checked.stage.contract {
            let duplicates = if planned.is_proven {
                0
            } else if contract.key.iter().any(|column| column == by_key.key()) {
                // Rows with equal keys of the contract have equal keys here: all of them are at hand.
                duplicates(&contract.key, kept).map_err(EngineError::execution(format!("stage {}", self.name())))?
            } else {
                let after = after();
                let rows = self.count_rows(Arc::clone(&after)).await?;
                self.count_duplicates(&contract.key, after, rows).await?
            };
            results.push(key_is_unique(&contract.key, duplicates));
        }
        if !planned.whole.is_empty() {
            results.extend(self.judge_whole(&planned.whole, after()).await?);
        }
        self.judge(kept.iter().map(|batch| batch.num_rows() as u64).sum(), &results)?;
        Ok(results)
    }

    pub(crate) async fn commit_replacement(
        &self,
        table: &Table,
        staged: Replacement,
        note: Option<&StageNote>,
    ) -> Result<Table> {
        let app_id = self.app_id();
        let version = table.position(&app_id).await?.unwrap_or(0) + 1;
        let staged_files = [staged.files.clone(), staged.told.clone()].concat();
        let outcome = self
            .lake
            .commit(Change {
                table,
                position: Position { app_id, version },
                fence: None,
                kind: ChangeKind::Replace { removed: staged.removed, told: staged.told },
                files: staged.files,
                schema: None,
                comment: None,
                metadata: note.map(StageNote::in_commit).unwrap_or_default(),
            })
            .await?;
        match outcome {
            CommitOutcome::Applied { version } => Ok(self.lake.table_as_committed(table.name(), version).await?),
            CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => {
                self.lake.discard(staged_files, table).await;
                Err(EngineError::Concurrent { table: table.name().clone() })
            }
        }
    }
}

impl Keys {
    fn provider(&self) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        Ok(Arc::new(MemTable::try_new(Arc::clone(&self.schema), vec![self.batches.clone()])?))
    }
}

/// The columns that the query reads of each table, by the table's name.
fn used_columns(planned: &Planned) -> Result<HashMap<String, BTreeSet<usize>>, DataFusionError> {
    let mut used: HashMap<String, BTreeSet<usize>> = HashMap::new();
    planned.state.optimize(&planned.plan)?.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let name = match scan.table_name.schema() {
                Some(schema) => format!("{schema}.{}", scan.table_name.table()),
                None => scan.table_name.table().to_owned(),
            };
            let columns = used.entry(name).or_default();
            match &scan.projection {
                Some(projection) => columns.extend(projection),
                None => columns.extend(0..scan.source.schema().fields().len()),
            }
            for filter in &scan.filters {
                let named = filter.column_refs().into_iter().map(|column| scan.source.schema().index_of(&column.name));
                columns.extend(named.collect::<Result<Vec<_>, _>>()?);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(used)
}

/// The changed rows without those that came as often as they went, as far as the query can tell: in the columns that it reads. The others have the value of one of
/// such rows.
pub(crate) fn differing(
    removed: &Arc<dyn TableProvider>,
    added: &Arc<dyn TableProvider>,
    used: Option<&BTreeSet<usize>>,
) -> Result<InputChange, DataFusionError> {
    const SIGN: &str = "_sign";
    let schema = removed.schema();
    let signed = |name: &str, rows: &Arc<dyn TableProvider>, sign: i64| {
        let scan = LogicalPlanBuilder::scan(name, provider_as_source(Arc::clone(rows)), None)?;
        let columns = schema.fields().iter().map(|field| ident(field.name()).alias(field.name()));
        scan.project(columns.chain([lit(sign).alias(SIGN)]).collect::<Vec<_>>())?.build()
    };
    let is_used = |column: usize| used.is_none_or(|used| used.contains(&column));
    let (mut groups, mut values) = (Vec::new(), vec![sum(ident(SIGN)).alias(SIGN)]);
    for (column, field) in schema.fields().iter().enumerate() {
        if is_used(column) {
            groups.push(ident(field.name()));
        } else {
            values.push(first_value(ident(field.name()), Vec::new()).alias(field.name()));
        }
    }
    let both = LogicalPlanBuilder::from(signed("went", removed, -1)?).union(signed("came", added, 1)?)?;
    if groups.is_empty() {
        return Ok(InputChange { removed: Arc::clone(removed), added: Arc::clone(added) });
    }
    let netted = both.aggregate(groups, values)?.build()?;
    let side = |condition: Expr| -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let columns = schema.fields().iter().map(|field| ident(field.name()).alias(field.name()));
        let plan = LogicalPlanBuilder::from(netted.clone()).filter(condition)?.project(columns.collect::<Vec<_>>())?;
        Ok(Arc::new(ViewTable::new(plan.build()?, None)))
    };
    Ok(InputChange { removed: side(ident(SIGN).lt(lit(0_i64)))?, added: side(ident(SIGN).gt(lit(0_i64)))? })
}

/// By the first of the declared columns by which it can be; else what stops the first of them.
pub(crate) fn derive(planned: &Planned, key: &[String]) -> std::result::Result<KeyPlan, NotByKey> {
    let mut first = None;
    for column in key {
        match KeyPlan::derive(&planned.state, &planned.plan, column) {
            Ok(by_key) => return Ok(by_key),
            Err(stopped) => first = first.or(Some(stopped)),
        }
    }
    Err(first.unwrap_or_else(|| NotByKey::without_a_place("it names no key")))
}

/// The rows of a table whose key is among `keys`. Null is a key like another.
pub(crate) fn matching(table: &Table, key: &str, keys: Arc<dyn TableProvider>) -> Result<LogicalPlan, DataFusionError> {
    let key_column = keys.schema().field(0).name().clone();
    let rows = LogicalPlanBuilder::scan("rows_before", provider_as_source(table.provider()), None)?.build()?;
    LogicalPlanBuilder::scan("changed_keys", provider_as_source(keys), None)?
        .join_detailed(
            rows,
            JoinType::RightSemi,
            (vec![Column::new(Some("changed_keys"), key_column)], vec![Column::new(Some("rows_before"), key)]),
            None,
            NullEquality::NullEqualsNull,
        )?
        .build()
}

/// Splits a batch into the rows to publish and those to quarantine, with the columns of each table.
fn judged(
    rules: &RowRules,
    batch: &RecordBatch,
    schema: &SchemaRef,
    failed: &mut [u64],
) -> Result<(RecordBatch, Option<RecordBatch>), DataFusionError> {
    let judged = rules.judge(batch, failed)?;
    let Some((rows, reasons)) = judged.refused else { return Ok((judged.kept, None)) };
    Ok((judged.kept, Some(crate::output::refused_rows(&rows, reasons, schema)?)))
}

/// How many rows have a key that a row before them has, too.
fn duplicates(key: &[String], rows: &[RecordBatch]) -> Result<u64, DataFusionError> {
    let Some(first) = rows.first() else { return Ok(0) };
    let schema = first.schema();
    let columns = key.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
    let fields = columns.iter().map(|column| SortField::new(schema.field(*column).data_type().clone())).collect();
    let converter = RowConverter::new(fields)?;
    let mut seen = std::collections::HashSet::new();
    let mut duplicates = 0;
    for batch in rows {
        let values: Vec<ArrayRef> = columns.iter().map(|column| Arc::clone(batch.column(*column))).collect();
        for row in &converter.convert_columns(&values)? {
            duplicates += u64::from(!seen.insert(row.owned()));
        }
    }
    Ok(duplicates)
}

/// Whether a query failed for another reason than memory or the store, which a full refresh would meet as well.
fn is_not_to_be_run(error: &EngineError) -> bool {
    let EngineError::Execution { source, .. } = error else { return false };
    !error.is_out_of_memory() && !holdfast_lake::is_store_failure(source)
}

fn is_missing_file(error: &EngineError) -> bool {
    matches!(error, EngineError::Execution { source, .. } if holdfast_lake::is_missing_file(source))
}
