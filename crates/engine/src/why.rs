//! What a customer's value was made from: the rows of the inputs behind it, step by step down to the tables that no stage makes, each at the version that the step above it
//! was made from.
//!
//! Which columns are followed says the lineage of the plan; which rows, the rules by which stages are brought up to date by key: the rows that are read for these keys.
//! Where a stage is not by key, or an input is read whole, rows of the customer are taken where the input says whose they are; else the way ends there, and says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::{cast, concat};
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::DataFrame;
use futures::TryStreamExt;
use holdfast_lake::Table;
use holdfast_types::{CUSTOMER_ID, TableName};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::Result;
use crate::build::{NOTE_COMMITS_MAX, STAGE_NOTE, StageNote, salt};
use crate::by_key::{derive, matching};
use crate::directive::StageKind;
use crate::error::EngineError;
use crate::lineage::ColumnName;
use crate::project::{CheckedStage, Selection};
use crate::rows::{json_rows, masked, pii_columns};
use crate::run::Runner;
use crate::session::session_with;

/// Rows that a step may have: who asks for more asks for no explanation.
const ROWS_MAX: usize = 50_000;
/// Rows that are shown of a step.
const ROWS_SHOWN_MAX: usize = 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhyOptions {
    /// Whose value.
    pub customer_id: String,
    /// Which value: a column of a stage.
    pub column: ColumnName,
    /// Show personal data as it is.
    pub show_pii: bool,
}

/// What a value was made from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Why {
    /// Whose value.
    pub customer_id: String,
    /// Which value.
    pub column: ColumnName,
    /// The stage's own rows first, then those of its inputs, then those of theirs.
    pub steps: Vec<WhyStep>,
}

/// Rows of one table behind a value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhyStep {
    /// The table.
    pub table: TableName,
    /// Its version: the one that the table above was made from.
    pub version: u64,
    /// The table that was made from it; none for the first.
    #[serde(rename = "for")]
    pub made: Option<TableName>,
    /// The columns that the value comes from.
    pub columns: Vec<String>,
    /// How many rows there are.
    pub row_count: usize,
    /// The first of them: the columns above, with those that tell the rows apart. Personal data is masked unless it was asked for.
    pub rows: Vec<Map<String, Value>>,
    /// What there is to know: that the way ends here and why, that rows were chosen by the customer alone.
    pub remark: Option<String>,
}

/// A step that is still to be made.
struct Open {
    table: Table,
    made: Option<TableName>,
    columns: BTreeSet<String>,
    /// The rows; none where they cannot be told.
    rows: Option<(SessionState, LogicalPlan)>,
    remark: Option<String>,
}

impl Runner {
    /// The rows behind one value of one customer, at the versions that they were read from.
    ///
    /// # Errors
    /// Mistakes in stage files; a stage or column that is not there; versions and files that maintenance deleted; what the lake answers.
    pub async fn why(&self, options: &WhyOptions) -> Result<Why> {
        let checked = self.project.check(&self.lake, &self.settings, self.lake.clock().now()).await?;
        let schemas = self.schemas(&checked);
        let runtime = self.settings.runtime(&self.lake)?;
        let stages: BTreeMap<TableName, CheckedStage> =
            checked.into_iter().map(|checked| (checked.stage.name.clone(), checked)).collect();
        let mut open = VecDeque::from([self.first(options, &stages, &runtime).await?]);
        let mut seen: BTreeSet<(TableName, Vec<String>)> = BTreeSet::new();
        let mut steps = Vec::new();
        while let Some(step) = open.pop_front() {
            let columns: Vec<String> = step.columns.iter().cloned().collect();
            if !seen.insert((step.table.name().clone(), columns.clone())) {
                continue;
            }
            let name = step.table.name().clone();
            let stage = stages.get(&name);
            let rows = match &step.rows {
                Some((state, plan)) => read(state, plan.clone(), &name).await?,
                None => Vec::new(),
            };
            let key = match stage {
                Some(stage) => stage.key.clone().unwrap_or_default(),
                // Of rows as they arrived: where they are from.
                None => ["_batch", "_source_file", "_source_line"].map(str::to_owned).to_vec(),
            };
            steps.push(WhyStep {
                version: step.table.version(),
                made: step.made,
                row_count: rows.iter().map(RecordBatch::num_rows).sum(),
                rows: shown(&rows, &step.columns, &key, step.table.schema(), options)?,
                columns,
                remark: step.remark,
                table: name,
            });
            if let Some(stage) = stage
                && !rows.is_empty()
            {
                let behind = Behind { runner: self, options, stage, schemas: &schemas, runtime: &runtime };
                open.extend(behind.steps(&step.table, &step.columns, &rows).await?);
            }
        }
        Ok(Why { customer_id: options.customer_id.clone(), column: options.column.clone(), steps })
    }

    async fn first(
        &self,
        options: &WhyOptions,
        stages: &BTreeMap<TableName, CheckedStage>,
        runtime: &Arc<RuntimeEnv>,
    ) -> Result<Open> {
        let ColumnName { table: name, column } = &options.column;
        let refused = |message: String| EngineError::Query { message };
        // Tells what it may be called instead.
        self.project.select(&Selection::Patterns(vec![name.to_string()]))?;
        let Some(stage) = stages.get(name) else {
            return Err(EngineError::NoStage { name: name.to_string(), hint: String::new() });
        };
        if stage.lineage.column(column).is_none() {
            let names: Vec<&str> = stage.lineage.columns.iter().map(|(name, _)| name.as_str()).collect();
            return Err(refused(format!("{name} has no column `{column}`: there are {}", names.join(", "))));
        }
        let Some(table) = self.lake.table(name).await? else {
            return Err(refused(format!("{name} was never made: use `holdfast run`")));
        };
        if table.schema().field_with_name(CUSTOMER_ID).is_err() {
            return Err(refused(format!("{name} has no column {CUSTOMER_ID}: its rows belong to no customer")));
        }
        let state = session_with(&self.settings, runtime, self.lake.settings().customer_buckets, [])?.state();
        let rows = of_customer(&table, options)?;
        let columns = [column.clone()].into();
        Ok(Open { table, made: None, columns, rows: Some((state, rows)), remark: None })
    }
}

/// A step down from one stage.
struct Behind<'a> {
    runner: &'a Runner,
    options: &'a WhyOptions,
    stage: &'a CheckedStage,
    schemas: &'a BTreeMap<TableName, SchemaRef>,
    runtime: &'a Arc<RuntimeEnv>,
}

impl Behind<'_> {
    /// The inputs that the columns come from, with the rows that were read for these.
    async fn steps(&self, table: &Table, columns: &BTreeSet<String>, rows: &[RecordBatch]) -> Result<Vec<Open>> {
        let stage = &self.stage.stage;
        let lineage = &self.stage.lineage;
        let mut wanted: BTreeMap<&TableName, BTreeSet<String>> = BTreeMap::new();
        for column in columns {
            // What comes from no column comes from the rows there are: counts.
            let origins = lineage.column(column).filter(|origins| !origins.is_empty()).unwrap_or(&lineage.rows);
            for origin in origins {
                wanted.entry(&origin.table).or_default().insert(origin.column.clone());
            }
        }
        let note = table.commit_note(STAGE_NOTE, NOTE_COMMITS_MAX).await?.and_then(StageNote::read);
        let Some(note) = note else { return Ok(Vec::new()) };
        let is_other_query =
            note.fingerprint != stage.fingerprint(&salt(&self.runner.lake, &self.runner.settings, stage).whole);
        let work =
            self.runner.work_as_made(self.stage.clone(), table.clone(), &note, self.schemas, self.runtime).await?;
        let planned = work.plan(&BTreeSet::new()).await?;
        let failed = || EngineError::execution(format!("looking behind {}", stage.name));
        let mut read: BTreeMap<TableName, LogicalPlan> = BTreeMap::new();
        let mut stopped = None;
        for key in keys(self.stage) {
            let Some(values) = values(rows, &key).map_err(failed())? else { continue };
            match derive(&planned, std::slice::from_ref(&key)) {
                Ok(plan) => {
                    for (names, plan) in plan.chosen_rows(&values).map_err(failed())? {
                        // Rows of several tables in one are nobody's.
                        if let [name] = names.as_slice() {
                            read.entry(name.clone()).or_insert(plan);
                        }
                    }
                    stopped = None;
                    break;
                }
                Err(stop) => stopped = stopped.or(Some(stop.to_string())),
            }
        }
        let mut steps = Vec::new();
        for (name, columns) in wanted {
            let Some(Some(input)) = work.inputs.get(name) else { continue };
            let has_all = |plan: &LogicalPlan| {
                columns.iter().all(|column| plan.schema().fields().iter().any(|field| field.name() == column))
            };
            let mut remarks: Vec<String> = Vec::new();
            if is_other_query {
                remarks.push(format!("the query of {} changed since: this is the way of the new one", stage.name));
            }
            let rows = match read.get(name).filter(|plan| has_all(plan)) {
                Some(plan) => Some((planned.state.clone(), plan.clone())),
                None if input.schema().field_with_name(CUSTOMER_ID).is_ok() => {
                    remarks.push("all rows of the customer: which of them were used is not told".to_owned());
                    Some((planned.state.clone(), of_customer(input, self.options)?))
                }
                None => {
                    remarks.push(match &stopped {
                        Some(stop) => format!("{} is not by key, so that its rows cannot be told ({stop})", stage.name),
                        None => "it is read whole: which of its rows were used is not told".to_owned(),
                    });
                    None
                }
            };
            let remark = (!remarks.is_empty()).then(|| remarks.join("; "));
            steps.push(Open { table: input.clone(), made: Some(stage.name.clone()), columns, rows, remark });
        }
        Ok(steps)
    }
}

/// The columns by which a stage may be cut: the declared, the contract's, the customer.
fn keys(stage: &CheckedStage) -> Vec<String> {
    let mut keys = match &stage.stage.directives.kind {
        StageKind::Incremental { key, .. } => key.clone(),
        StageKind::Full | StageKind::Append => Vec::new(),
    };
    let others = stage.key.iter().flatten().cloned().chain([CUSTOMER_ID.to_owned()]);
    for key in others {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// The values of a column as a table of one column; `None` when the rows do not have it.
fn values(rows: &[RecordBatch], column: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
    let arrays: Vec<&ArrayRef> = rows.iter().filter_map(|batch| batch.column_by_name(column)).collect();
    if arrays.is_empty() {
        return Ok(None);
    }
    let all = concat(&arrays.iter().map(|array| array.as_ref()).collect::<Vec<_>>())?;
    Ok(Some(one_column(column, all)?))
}

pub(crate) fn one_column(name: &str, values: ArrayRef) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    let schema = Arc::new(Schema::new(vec![Field::new(name, values.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![values])?;
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
}

/// The rows of the customer in a table.
fn of_customer(table: &Table, options: &WhyOptions) -> Result<LogicalPlan> {
    let plan = || {
        let data_type = table.schema().field_with_name(CUSTOMER_ID)?.data_type();
        let id: ArrayRef = Arc::new(StringArray::from(vec![options.customer_id.as_str()]));
        matching(table, CUSTOMER_ID, one_column(CUSTOMER_ID, cast(&id, data_type)?)?)
    };
    plan().map_err(EngineError::execution(format!("reading {}", table.name())))
}

async fn read(state: &SessionState, plan: LogicalPlan, name: &TableName) -> Result<Vec<RecordBatch>> {
    let failed = || EngineError::execution(format!("reading {name}"));
    let mut stream = DataFrame::new(state.clone(), plan).execute_stream().await.map_err(failed())?;
    let (mut rows, mut count) = (Vec::new(), 0);
    while let Some(batch) = stream.try_next().await.map_err(failed())? {
        count += batch.num_rows();
        if count > ROWS_MAX {
            return Err(EngineError::Query {
                message: format!("more than {ROWS_MAX} rows of {name} are behind the value: ask for one further up"),
            });
        }
        if batch.num_rows() > 0 {
            rows.push(batch);
        }
    }
    Ok(rows)
}

/// The first rows, with the columns that matter.
fn shown(
    rows: &[RecordBatch],
    columns: &BTreeSet<String>,
    key: &[String],
    schema: &Schema,
    options: &WhyOptions,
) -> Result<Vec<Map<String, Value>>> {
    let failed = || EngineError::Query { message: "rows cannot be told as JSON".to_owned() };
    let hidden = if options.show_pii { BTreeSet::new() } else { pii_columns(schema) };
    let mut shown = Vec::new();
    for batch in rows {
        let matters = |name: &String| columns.contains(name) || key.contains(name) || name == CUSTOMER_ID;
        let fields = batch.schema();
        let indices: Vec<usize> = fields
            .fields()
            .iter()
            .enumerate()
            .filter(|(_, field)| matters(field.name()))
            .map(|(index, _)| index)
            .collect();
        let batch = batch.project(&indices).map_err(|_| failed())?;
        let room = ROWS_SHOWN_MAX - shown.len();
        let rows = json_rows(&batch.slice(0, batch.num_rows().min(room))).map_err(|_| failed())?;
        shown.extend(rows.into_iter().map(|row| masked(row, &hidden)));
    }
    Ok(shown)
}
