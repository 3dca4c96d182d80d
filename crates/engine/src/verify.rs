//! Works out rows of a stage's table again, from the versions of its inputs and the `now()` that the table was made from, and compares them with those that are there.
//!
//! ```text
//! the table's note ──► inputs at their versions, now() ──► the unmodified query ─┐ + 1
//!                                                          the table's rows ─────┤ - 1
//!                                                                                └──► equal rows cancel out; what is left differs
//! ```
//!
//! A sample takes whole keys, by a hash of the key. The choice stands above the query, and the engine brings it as far down as it can.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::cast::as_int64_array;
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::functions::string::expr_fn::concat;
use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, cast, ident, lit};
use datafusion::prelude::DataFrame;
use futures::TryStreamExt;
use holdfast_lake::Table;
use holdfast_types::{CUSTOMER_BUCKET, ErrorKind, Progress, TableName};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::Result;
use crate::build::{NOTE_COMMITS_MAX, Planned, STAGE_NOTE, StageNote, StageWork, salt};
use crate::error::EngineError;
use crate::expectation;
use crate::functions::customer_bucket_function;
use crate::output::as_table;
use crate::project::{CheckedStage, Selection};
use crate::rows::{json_rows, masked, pii_columns};
use crate::run::Runner;

/// Keys are told apart by so many shares when some are sampled: a hundredth of a percent is the least.
const SHARES: u32 = 10_000;
/// Differing rows that are kept to be shown; all are counted.
const ROWS_KEPT_MAX: usize = 2_000;
/// Differing keys that are shown.
const KEYS_SHOWN_MAX: usize = 20;
/// The column that tells the two sides apart.
const SIGN: &str = "_sign";

/// What is verified.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifyOptions {
    /// Which stages.
    pub selection: Selection,
    /// The share of keys, above 0 and up to 1.
    pub sample: f64,
    /// Decides which keys a sample takes: the same for the same keys again.
    pub seed: String,
}

/// What verifying found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifyReport {
    /// The share of keys that was asked for.
    pub sample: f64,
    /// What decided which keys.
    pub seed: String,
    /// The stages, inputs first.
    pub stages: Vec<VerifiedStage>,
    /// From start to end.
    pub seconds: f64,
}

/// What verifying one stage found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifiedStage {
    /// Which.
    pub stage: TableName,
    /// The version that was looked at.
    pub version: Option<u64>,
    /// What was found.
    #[serde(flatten)]
    pub outcome: Verified,
    /// How long it took.
    pub seconds: f64,
}

/// How a table compares with what its stage makes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Verified {
    /// The rows are those that the query gives, each as often.
    Same {
        /// How many were compared.
        rows: u64,
    },
    /// They are not.
    Differs {
        /// How many were compared.
        rows: u64,
        /// Rows that only the table or only the query has, of both.
        differing_rows: u64,
        /// The first of the keys concerned, with the rows of both sides. Personal data is masked.
        differences: Vec<Difference>,
    },
    /// It cannot be told.
    Skipped {
        /// Why, and what to do about it.
        reason: String,
    },
    /// The query failed.
    Failed {
        /// How.
        error: String,
        /// What to do about it.
        kind: ErrorKind,
    },
}

/// The rows of one key that differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The columns that tell the rows apart; all of them where nothing does.
    pub key: Map<String, Value>,
    /// What only the table has.
    pub published: Vec<Map<String, Value>>,
    /// What only the query gives.
    pub recomputed: Vec<Map<String, Value>>,
}

impl Runner {
    /// Compares the tables of the selected stages with what their queries give of the inputs they were made from. Changes nothing.
    ///
    /// # Errors
    /// Mistakes in stage files, a selection that names nothing, and what the lake answers. What happens to a single stage is in the report.
    pub async fn verify(&self, options: &VerifyOptions, progress: &dyn Progress) -> Result<VerifyReport> {
        let started = Instant::now();
        let checked = self.project.check(&self.lake, &self.settings, self.lake.clock().now()).await?;
        let selected = self.project.select(&options.selection)?;
        let runtime = self.settings.runtime(&self.lake)?;
        let schemas = self.schemas(&checked);
        let mut stages = Vec::with_capacity(selected.len());
        for checked in checked.into_iter().filter(|checked| selected.contains(&checked.stage.name)) {
            let began = Instant::now();
            let stage = checked.stage.name.clone();
            let table = self.lake.table(&stage).await?;
            let version = table.as_ref().map(Table::version);
            let outcome = match self.verify_stage(checked, table, options, &schemas, &runtime).await {
                Ok(outcome) => outcome,
                Err(error) if is_gone(&error) => {
                    Verified::Skipped { reason: format!("what it was made from is no longer there: {error}") }
                }
                Err(error) => Verified::Failed { error: error.to_string(), kind: error.kind() },
            };
            stages.push(VerifiedStage { stage, version, outcome, seconds: began.elapsed().as_secs_f64() });
            progress.advance("stages", stages.len() as u64, Some(selected.len() as u64), "stages");
        }
        progress.finish("stages", "");
        let seconds = started.elapsed().as_secs_f64();
        Ok(VerifyReport { sample: options.sample, seed: options.seed.clone(), stages, seconds })
    }

    async fn verify_stage(
        &self,
        checked: CheckedStage,
        table: Option<Table>,
        options: &VerifyOptions,
        schemas: &BTreeMap<TableName, SchemaRef>,
        runtime: &Arc<RuntimeEnv>,
    ) -> Result<Verified> {
        let skipped = |reason: &str| Ok(Verified::Skipped { reason: reason.to_owned() });
        let Some(table) = table else { return skipped("it was never made: use `holdfast run`") };
        let note = table.commit_note(STAGE_NOTE, NOTE_COMMITS_MAX).await?.and_then(StageNote::read);
        let Some(note) = note else { return skipped("its commits do not say what it was made from") };
        let salt = salt(&self.lake, &self.settings, &checked.stage);
        if note.fingerprint != checked.stage.fingerprint(&salt.whole) {
            return skipped(
                "its query, its expectations or its contract changed, or who answers what it asks, since it was made: use `holdfast run`",
            );
        }
        if checked.stage.depends_on_time && note.as_of.is_none() {
            return skipped(
                "it depends on time, and its commit does not say when it was made: use `holdfast run --full`",
            );
        }
        let work = self.work_as_made(checked, table.clone(), &note, schemas, runtime).await?;
        let planned = work.plan(&BTreeSet::new()).await?;
        let failed = || EngineError::execution(format!("verifying {}", work.name()));
        let key = work.checked.key.clone().filter(|key| !key.is_empty());
        let sampled = |plan: LogicalPlan| match &key {
            Some(key) if options.sample < 1.0 => chosen(plan, key, options),
            // Rows that nothing tells apart are compared all of them.
            _ => Ok(plan),
        };
        let published = scan("published", &table).and_then(sampled).map_err(failed())?;
        let recomputed = work.recomputed(&planned, table.schema()).and_then(sampled).map_err(failed())?;
        let rows = count(&planned.state, published.clone()).await.map_err(failed())?;
        let differing = differing(published, recomputed, table.schema()).map_err(failed())?;
        let (differing_rows, kept) = collect(&planned.state, differing).await.map_err(failed())?;
        if differing_rows == 0 {
            return Ok(Verified::Same { rows });
        }
        let key = key.unwrap_or_else(|| table.schema().fields().iter().map(|field| field.name().clone()).collect());
        let differences = differences(&kept, &key, table.schema()).map_err(failed())?;
        Ok(Verified::Differs { rows, differing_rows, differences })
    }
}

impl StageWork {
    /// The rows that the query gives and that its expectations let pass, with the columns of the table.
    fn recomputed(&self, planned: &Planned, schema: &SchemaRef) -> Result<LogicalPlan, DataFusionError> {
        let rules = expectation::quarantine_rules(
            &self.checked.stage.directives.expectations,
            &self.checked.schema,
            &planned.state,
        );
        as_table(planned.plan.clone(), schema, self.buckets(), rules.map_err(DataFusionError::Plan)?)
    }
}

fn scan(name: &str, table: &Table) -> Result<LogicalPlan, DataFusionError> {
    let columns = table.schema().fields().iter().map(|field| ident(field.name()).alias(field.name()));
    LogicalPlanBuilder::scan(name, provider_as_source(table.provider()), None)?.project(columns)?.build()
}

/// The rows whose key is in the sample.
fn chosen(plan: LogicalPlan, key: &[String], options: &VerifyOptions) -> Result<LogicalPlan, DataFusionError> {
    let shares = (1..=SHARES).find(|shares| f64::from(*shares) / f64::from(SHARES) >= options.sample).unwrap_or(SHARES);
    let parts = key.iter().flat_map(|column| [cast(ident(column), DataType::Utf8), lit("\u{1f}")]);
    let text = concat([lit(options.seed.as_str())].into_iter().chain(parts).collect());
    let share = customer_bucket_function(SHARES).call(vec![cast(text, DataType::Utf8)]);
    LogicalPlanBuilder::from(plan).filter(share.lt(lit(i32::try_from(shares).unwrap_or(i32::MAX))))?.build()
}

/// The rows that one side has more often than the other, with how much more often the query gives them.
fn differing(
    published: LogicalPlan,
    recomputed: LogicalPlan,
    schema: &SchemaRef,
) -> Result<LogicalPlan, DataFusionError> {
    let names = || schema.fields().iter().map(|field| field.name());
    let signed = |plan: LogicalPlan, sign: i64| {
        let columns = names().map(ident).chain([lit(sign).alias(SIGN)]);
        LogicalPlanBuilder::from(plan).project(columns)?.build()
    };
    LogicalPlanBuilder::from(signed(published, -1)?)
        .union(signed(recomputed, 1)?)?
        .aggregate(names().map(ident), [sum(ident(SIGN)).alias(SIGN)])?
        .filter(ident(SIGN).not_eq(lit(0_i64)))?
        .build()
}

async fn count(state: &SessionState, plan: LogicalPlan) -> Result<u64, DataFusionError> {
    Ok(DataFrame::new(state.clone(), plan).count().await? as u64)
}

/// How many rows there are, and the first of them.
async fn collect(state: &SessionState, plan: LogicalPlan) -> Result<(u64, Vec<RecordBatch>), DataFusionError> {
    let mut state = state.clone();
    // Columns of the table have comments and those of the query have none; the check takes that for a mistake.
    state.config_mut().options_mut().execution.skip_physical_aggregate_schema_check = true;
    let mut stream = DataFrame::new(state, plan).execute_stream().await?;
    let (mut rows, mut kept) = (0_u64, Vec::new());
    while let Some(batch) = stream.try_next().await? {
        let room = ROWS_KEPT_MAX.saturating_sub(usize::try_from(rows).unwrap_or(usize::MAX));
        rows += batch.num_rows() as u64;
        if room > 0 && batch.num_rows() > 0 {
            kept.push(batch.slice(0, batch.num_rows().min(room)));
        }
    }
    Ok((rows, kept))
}

/// The differing rows by key, as they are shown.
fn differences(rows: &[RecordBatch], key: &[String], schema: &SchemaRef) -> Result<Vec<Difference>, DataFusionError> {
    let hidden = pii_columns(schema);
    let mut found: BTreeMap<String, Difference> = BTreeMap::new();
    for batch in rows {
        let index = batch.schema().index_of(SIGN)?;
        let signs = as_int64_array(batch.column(index))?.clone();
        for (mut row, sign) in json_rows(batch)?.into_iter().zip(signs.iter().flatten()) {
            row.remove(SIGN);
            row.remove(CUSTOMER_BUCKET);
            let of_key: Map<String, Value> = row
                .iter()
                .filter(|(name, _)| key.contains(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            let text = Value::Object(of_key.clone()).to_string();
            let difference = found.entry(text).or_insert_with(|| Difference {
                key: masked(of_key, &hidden),
                published: Vec::new(),
                recomputed: Vec::new(),
            });
            let side = if sign < 0 { &mut difference.published } else { &mut difference.recomputed };
            let times = usize::try_from(sign.unsigned_abs()).unwrap_or(1).min(ROWS_KEPT_MAX);
            side.extend(std::iter::repeat_n(masked(row, &hidden), times));
        }
    }
    Ok(found.into_values().take(KEYS_SHOWN_MAX).collect())
}

/// Whether versions or files that are needed were deleted.
fn is_gone(error: &EngineError) -> bool {
    match error {
        EngineError::Lake(error) => error.kind() == ErrorKind::NotFound,
        EngineError::Execution { source, .. } => holdfast_lake::is_missing_file(source),
        _ => false,
    }
}
