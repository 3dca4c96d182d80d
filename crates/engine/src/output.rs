//! From a plan to staged files: bucketed, sorted, judged on the way.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, ident};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, Partitioning};
use futures::StreamExt;
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, LakeError, Position, RowChanges, StagedFile, Table, TableFolder,
    TableSpec, TableWriter, WriterSettings, to_delta_compatible,
};
use holdfast_types::{CUSTOMER_BUCKET, CUSTOMER_ID, TableName};
use serde::{Deserialize, Serialize};
use tracing::Instrument;

use crate::Result;
use crate::error::EngineError;
use crate::expectation::{RowRules, quarantine_schema};
use crate::functions::customer_bucket_function;

/// What a plan left in staged files.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Staged {
    pub(crate) files: Vec<StagedFile>,
    pub(crate) rows: u64,
    pub(crate) refused: Vec<StagedFile>,
    pub(crate) refused_rows: u64,
    /// Failed rows, one count a row rule.
    pub(crate) failed: Vec<u64>,
}

/// Where the rows of a plan go.
pub(crate) struct Target {
    pub(crate) table: Table,
    pub(crate) schema: SchemaRef,
    pub(crate) quarantine: Option<Table>,
    pub(crate) rules: RowRules,
}

/// The same without the tables, for who writes files alone.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) rows: TableFolder,
    pub(crate) refused: Option<TableFolder>,
    pub(crate) schema: SchemaRef,
    pub(crate) rules: RowRules,
}

/// Why rows are not in files.
#[derive(Debug)]
pub(crate) enum Unwritten {
    /// They could not be had, or not be judged.
    Rows(DataFusionError),
    /// They could not be written.
    Files(LakeError),
}

impl Target {
    fn destination(&self) -> Destination {
        Destination {
            rows: self.table.folder(),
            refused: self.quarantine.as_ref().map(Table::folder),
            schema: Arc::clone(&self.schema),
            rules: self.rules.clone(),
        }
    }
}

impl Staged {
    /// Nothing yet, under so many row rules.
    pub(crate) fn of_rules(rules: usize) -> Self {
        Self { failed: vec![0; rules], ..Self::default() }
    }

    /// What another part of the same plan left.
    pub(crate) fn add(&mut self, part: Self) {
        self.files.extend(part.files);
        self.refused.extend(part.refused);
        self.rows += part.rows;
        self.refused_rows += part.refused_rows;
        self.failed.iter_mut().zip(part.failed).for_each(|(sum, failed)| *sum += failed);
    }
}

impl Unwritten {
    fn of_stage(self, what: &TableName) -> EngineError {
        match self {
            Self::Rows(source) => EngineError::execution(format!("stage {what}"))(source),
            Self::Files(source) => source.into(),
        }
    }
}

impl From<DataFusionError> for Unwritten {
    fn from(error: DataFusionError) -> Self {
        Self::Rows(error)
    }
}

impl From<LakeError> for Unwritten {
    fn from(error: LakeError) -> Self {
        Self::Files(error)
    }
}

/// Runs a plan and writes its rows. Rows of customers are grouped by bucket and sorted by customer, then by the first time column.
pub(crate) async fn stage_rows(
    state: &SessionState,
    plan: LogicalPlan,
    buckets: u32,
    what: &TableName,
    target: Arc<Target>,
) -> Result<Staged> {
    let failed = || EngineError::execution(format!("stage {what}"));
    let plan = physical_plan(state, plan, buckets, &target.schema).await.map_err(failed())?;
    let context = Arc::new(TaskContext::from(state));
    let partitions = (0..plan.output_partitioning().partition_count()).map(|partition| {
        let (plan, context) = (Arc::clone(&plan), Arc::clone(&context));
        move || plan.execute(partition, context)
    });
    write_rows_of(partitions.collect(), what, target).await
}

/// Writes the rows of all partitions, side by side. Each is begun where it is read.
pub(crate) async fn write_rows_of<Begin>(
    partitions: Vec<Begin>,
    what: &TableName,
    target: Arc<Target>,
) -> Result<Staged>
where
    Begin: FnOnce() -> Result<SendableRecordBatchStream, DataFusionError> + Send + 'static,
{
    let mut tasks = tokio::task::JoinSet::new();
    let destination = Arc::new(target.destination());
    for begin in partitions {
        let destination = Arc::clone(&destination);
        let work = async move { write_partition(begin, &destination).await };
        tasks.spawn(work.instrument(tracing::Span::current()));
    }
    let mut staged = Staged::of_rules(target.rules.len());
    while let Some(done) = tasks.join_next().await {
        let part = done.unwrap_or_else(|error| Err(DataFusionError::External(Box::new(error)).into()));
        staged.add(part.map_err(|error| error.of_stage(what))?);
    }
    Ok(staged)
}

/// The rows with the bucket of their customer as the last column.
pub(crate) fn with_bucket(plan: LogicalPlan, buckets: u32) -> Result<LogicalPlan, datafusion::error::DataFusionError> {
    let columns: Vec<_> = plan.schema().columns().into_iter().map(datafusion::logical_expr::Expr::Column).collect();
    let key = columns
        .iter()
        .find(|expr| matches!(expr, datafusion::logical_expr::Expr::Column(column) if column.name == CUSTOMER_ID))
        .cloned()
        .unwrap_or_else(|| ident(CUSTOMER_ID));
    let text = datafusion::logical_expr::cast(key, DataType::Utf8);
    let bucket = customer_bucket_function(buckets).call(vec![text]).alias(CUSTOMER_BUCKET);
    LogicalPlanBuilder::from(plan).project(columns.into_iter().chain([bucket]))?.build()
}

/// The rows of a query as they stand in a table of these columns, without those that a rule sends to quarantine.
pub(crate) fn as_table(
    plan: LogicalPlan,
    schema: &SchemaRef,
    buckets: u32,
    rules: Vec<Expr>,
) -> Result<LogicalPlan, DataFusionError> {
    let plan = match schema.field_with_name(CUSTOMER_BUCKET) {
        Ok(_) => with_bucket(plan, buckets)?,
        Err(_) => plan,
    };
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = plan.schema().columns().into_iter().find(|column| column.name == *field.name());
        let column = column
            .ok_or_else(|| DataFusionError::Plan(format!("the stage does not make the column {}", field.name())))?;
        columns.push(cast(Expr::Column(column), field.data_type().clone()).alias(field.name()));
    }
    let mut rows = LogicalPlanBuilder::from(plan).project(columns)?;
    for rule in rules {
        rows = rows.filter(Expr::IsNotFalse(Box::new(rule)))?;
    }
    rows.build()
}

/// The plan of a query whose rows go to a table with these columns, in the groups and the order that [`stage_rows`] tells of.
pub(crate) async fn physical_plan(
    state: &SessionState,
    plan: LogicalPlan,
    buckets: u32,
    schema: &SchemaRef,
) -> Result<Arc<dyn ExecutionPlan>, datafusion::error::DataFusionError> {
    if schema.field_with_name(CUSTOMER_BUCKET).is_err() {
        return state.create_physical_plan(&plan).await;
    }
    let plan = with_bucket(plan, buckets)?;
    let plan = state.create_physical_plan(&plan).await?;
    let output = plan.schema();
    let column =
        |name: &str| -> Result<Arc<dyn datafusion::physical_expr::PhysicalExpr>, datafusion::error::DataFusionError> {
            Ok(Arc::new(Column::new_with_schema(name, &output)?))
        };
    let partitions = state.config().target_partitions();
    let bucketed =
        RepartitionExec::try_new(Arc::clone(&plan), Partitioning::Hash(vec![column(CUSTOMER_BUCKET)?], partitions))?;
    let options = SortOptions { descending: false, nulls_first: true };
    let mut order = vec![
        PhysicalSortExpr::new(column(CUSTOMER_BUCKET)?, options),
        PhysicalSortExpr::new(column(CUSTOMER_ID)?, options),
    ];
    if let Some(field) = output.fields().iter().find(|field| matches!(field.data_type(), DataType::Timestamp(_, _))) {
        order.push(PhysicalSortExpr::new(column(field.name())?, options));
    }
    match LexOrdering::new(order) {
        Some(order) => Ok(Arc::new(SortExec::new(order, Arc::new(bucketed)).with_preserve_partitioning(true))),
        None => Ok(Arc::new(bucketed)),
    }
}

/// Judges the rows of one partition on their way into files.
pub(crate) async fn write_partition(
    begin: impl FnOnce() -> Result<SendableRecordBatchStream, DataFusionError>,
    destination: &Destination,
) -> Result<Staged, Unwritten> {
    let Destination { rows, refused, schema, rules } = destination;
    let writer =
        |folder: &TableFolder, schema| TableWriter::into_folder(folder.clone(), schema, WriterSettings::default());
    let mut stream = begin()?;
    let mut staged = Staged::of_rules(rules.len());
    let mut kept = writer(rows, Arc::clone(schema));
    let mut quarantine = refused.as_ref().map(|folder| writer(folder, quarantine_schema(schema)));
    while let Some(batch) = stream.next().await {
        let batch = to_delta_compatible(&batch?, schema).map_err(DataFusionError::from)?;
        let judged = rules.judge(&batch, &mut staged.failed)?;
        staged.rows += judged.kept.num_rows() as u64;
        kept.write(&judged.kept).await?;
        if let (Some((rows, reasons)), Some(quarantine)) = (judged.refused, &mut quarantine) {
            staged.refused_rows += rows.num_rows() as u64;
            quarantine.write(&refused_rows(&rows, reasons, schema)?).await?;
        }
    }
    staged.files = kept.close().await?;
    if let Some(quarantine) = quarantine {
        staged.refused = quarantine.close().await?;
    }
    Ok(staged)
}

/// Refused rows with the names of the expectations that each failed, as their quarantine has them.
pub(crate) fn refused_rows(
    rows: &RecordBatch,
    reasons: StringArray,
    schema: &SchemaRef,
) -> Result<RecordBatch, datafusion::error::DataFusionError> {
    let columns: Vec<ArrayRef> = rows
        .schema()
        .fields()
        .iter()
        .zip(rows.columns())
        .filter(|(field, _)| field.name() != CUSTOMER_BUCKET)
        .map(|(_, column)| Arc::clone(column))
        .chain([Arc::new(reasons) as ArrayRef])
        .collect();
    Ok(RecordBatch::try_new(quarantine_schema(schema), columns)?)
}

/// What a table that is not a stage gets.
#[derive(Debug)]
pub enum TableRows {
    /// These rows besides those that are there.
    Added(Vec<RecordBatch>),
    /// These rows in the place of all that are there; and their columns, where the table has others.
    All(Vec<RecordBatch>),
    /// Some rows go and some come. With none of both, only the step and the notes are new.
    Changed(RowChanges),
}

/// Writes rows to a table that is not a stage (an identity table, say), by the commit rule: step `version` of `app_id`. Creates the table where it is missing.
///
/// # Errors
/// What the lake answers. May be repeated with the same step.
pub async fn write_table(
    lake: &Lake,
    spec: &TableSpec,
    rows: TableRows,
    position: Position,
    notes: serde_json::Map<String, serde_json::Value>,
) -> Result<CommitOutcome> {
    let table = lake.ensure_table(spec).await?;
    let mut schema = None;
    let (kind, files) = match rows {
        TableRows::Added(rows) => (ChangeKind::Append, write_rows(&table, table.schema(), &rows).await?),
        TableRows::All(rows) => {
            let names =
                |schema: &SchemaRef| schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
            if names(table.schema()) != names(&spec.schema) {
                schema = Some(Arc::clone(&spec.schema));
            }
            let columns = schema.as_ref().unwrap_or_else(|| table.schema());
            (ChangeKind::ReplaceAll, write_rows(&table, columns, &rows).await?)
        }
        TableRows::Changed(changes) => {
            let compatible = |batch: &RecordBatch| to_delta_compatible(batch, table.schema());
            let compatible = |batches: &[RecordBatch]| batches.iter().map(compatible).collect::<Result<Vec<_>, _>>();
            let failed = || EngineError::execution(format!("writing {}", table.name()));
            let changes = RowChanges {
                removed: compatible(&changes.removed).map_err(|error| failed()(error.into()))?,
                added: compatible(&changes.added).map_err(|error| failed()(error.into()))?,
            };
            let staged = lake.stage_replacement(&table, &changes).await?;
            (ChangeKind::Replace { removed: staged.removed, told: staged.told }, staged.files)
        }
    };
    Ok(lake
        .commit(Change {
            table: &table,
            position,
            fence: None,
            kind,
            files,
            schema,
            comment: Some(spec.comment.clone()),
            metadata: notes,
        })
        .await?)
}

async fn write_rows(table: &Table, columns: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<StagedFile>> {
    let mut writer = TableWriter::with_schema(table, Arc::clone(columns), WriterSettings::default());
    for batch in batches {
        writer.write(batch).await?;
    }
    Ok(writer.close().await?)
}
