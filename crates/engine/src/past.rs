//! Stages as they would have been at moments in the past: the same SQL with `now()` = T, over core tables as they were known at T.
//!
//! ```text
//! core tables with an event time ──► rows up to T, values known at T ──┐   read from the lake, at pinned versions
//!                                                                      ▼
//! profile.*, features.* …        ──► views of their queries at T ──► rows of the stage at T
//! ```
//!
//! A core table is one whose contract names an event time: it is read, and rows that happened after T are not seen. A column that its contract says is known later
//! (`known_at`) is hidden until that moment. Everything between the core tables and the stage is planned as a view, and not read from its table, which was made for another
//! moment. [`Sees::LaterToo`] takes the curtain away: a stage that looks past `now()` then gives other rows, which is how it is found out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use chrono::{DateTime, NaiveDate, Utc};
use datafusion::catalog::TableProvider;
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, ident, lit, when};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::scalar::ScalarValue;
use futures::TryStreamExt;
use holdfast_lake::{Lake, Table};
use holdfast_types::TableName;

use crate::Result;
use crate::build::{moment, salt};
use crate::contract::{Contract, KnownAt};
use crate::diagnostic::most_similar;
use crate::error::EngineError;
use crate::expectation;
use crate::lineage::{ColumnName, Origins};
use crate::output::as_table;
use crate::project::CheckedStage;
use crate::run::Runner;
use crate::session::{SessionSettings, add_table, plan_as_of, session_with};

/// What a stage in the past is shown of the core tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// What was known at the moment.
    KnownThen,
    /// All that is known today.
    LaterToo,
}

/// A query about a moment.
#[derive(Debug, Clone)]
pub struct Question {
    /// One `select` over the stages and tables that the [`Past`] was made for.
    pub sql: String,
    /// What `now()` is. Where a stage is brought up to date by key, it has to be the end of its grain: midnight UTC, unless the stage says otherwise.
    pub at: DateTime<Utc>,
    /// What it is shown.
    pub sees: Sees,
}

/// A table of the lake that is read, at one version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadTable {
    /// Which.
    pub name: TableName,
    /// The version that holds these rows; `None` where the table is not there yet and counts as empty.
    pub version: Option<u64>,
    /// The column that says when a row happened. Rows of a table without one are seen at every moment.
    pub event_time: Option<String>,
}

/// Stages at moments in the past, over versions of tables that stay the same. Changes nothing.
#[derive(Debug)]
pub struct Past {
    lake: Lake,
    settings: SessionSettings,
    runtime: Arc<RuntimeEnv>,
    checked: BTreeMap<TableName, CheckedStage>,
    /// The stages that are planned as views, inputs first.
    views: Vec<TableName>,
    tables: BTreeMap<TableName, CoreTable>,
}

#[derive(Debug)]
struct CoreTable {
    table: Option<Table>,
    schema: SchemaRef,
    contract: Option<Contract>,
}

impl Runner {
    /// Prepares `stages` to be asked about moments in the past, and `tables` beside what those read: pins the newest version of each table that is read.
    ///
    /// # Errors
    /// Mistakes in stage files, a name that is no stage (or table), and what the lake answers.
    pub async fn past(&self, stages: &[TableName], tables: &[TableName]) -> Result<Past> {
        let checked = self.project.check(&self.lake, &self.settings, self.lake.clock().now()).await?;
        let order: Vec<TableName> = checked.iter().map(|checked| checked.stage.name.clone()).collect();
        let schemas = self.schemas(&checked);
        let checked: BTreeMap<TableName, CheckedStage> =
            checked.into_iter().map(|checked| (checked.stage.name.clone(), checked)).collect();
        if let Some(unknown) = stages.iter().chain(tables).find(|name| !schemas.contains_key(*name)) {
            let names: Vec<String> = order.iter().map(ToString::to_string).collect();
            let hint = most_similar(&unknown.to_string(), names.iter().map(String::as_str));
            let hint = hint.map_or_else(String::new, |name| format!(": did you mean `{name}`?"));
            return Err(EngineError::NoStage { name: unknown.to_string(), hint });
        }

        let (mut views, mut read) = (BTreeSet::new(), BTreeSet::from_iter(tables.iter().cloned()));
        let mut open: Vec<TableName> = stages.to_vec();
        while let Some(name) = open.pop() {
            let Some(stage) = checked.get(&name).map(|checked| &checked.stage) else { continue };
            if !views.insert(name) {
                continue;
            }
            for input in stage.inputs.keys() {
                let is_dated =
                    checked.get(input).is_some_and(|input| event_time(input.stage.contract.as_ref()).is_some());
                if is_dated || !checked.contains_key(input) {
                    read.insert(input.clone());
                } else {
                    open.push(input.clone());
                }
            }
        }
        // What is planned as a view has its name from there.
        read.retain(|name| !views.contains(name));

        let mut pinned = BTreeMap::new();
        for name in read {
            let Some(schema) = schemas.get(&name).map(Arc::clone) else { continue };
            let contract = checked.get(&name).and_then(|checked| checked.stage.contract.clone());
            let table = self.lake.table(&name).await?;
            pinned.insert(name, CoreTable { table, schema, contract });
        }
        Ok(Past {
            lake: self.lake.clone(),
            settings: self.settings.clone(),
            runtime: self.settings.runtime(&self.lake)?,
            views: order.into_iter().filter(|name| views.contains(name)).collect(),
            checked,
            tables: pinned,
        })
    }
}

impl Past {
    /// The columns of a stage's table.
    pub fn schema(&self, stage: &TableName) -> Option<&SchemaRef> {
        self.checked.get(stage).map(|checked| &checked.schema)
    }

    /// What the columns of a stage mean, where its file or contract says so.
    pub fn comments(&self, stage: &TableName) -> BTreeMap<String, String> {
        self.checked.get(stage).map(|checked| checked.stage.column_comments.clone()).unwrap_or_default()
    }

    /// The tables that are read, sorted by name.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn tables(&self) -> Result<Vec<ReadTable>> {
        let mut tables = Vec::with_capacity(self.tables.len());
        for (name, core) in &self.tables {
            let version = match &core.table {
                Some(table) => Some(table.data_version().await?),
                None => None,
            };
            let event_time = event_time(core.contract.as_ref()).map(str::to_owned);
            tables.push(ReadTable { name: name.clone(), version, event_time });
        }
        Ok(tables)
    }

    /// The subjects of row functions that `stage` rests on: what they say of the past they may have learnt later.
    pub fn asked_by(&self, stage: &TableName) -> BTreeSet<String> {
        let statements = self.upstream(stage).into_iter().filter_map(|name| self.checked.get(&name));
        statements.flat_map(|checked| self.settings.row_functions.asked_by(&checked.stage.statement)).collect()
    }

    /// Changes whenever the queries between the tables that are read and `stage` would give other rows of the same tables.
    pub fn fingerprint(&self, stage: &TableName) -> String {
        let mut hasher = blake3::Hasher::new();
        for name in self.upstream(stage) {
            let Some(checked) = self.checked.get(&name) else { continue };
            let salt = salt(&self.lake, &self.settings, &checked.stage).whole;
            hasher.update(format!("{name} {}\n", checked.stage.fingerprint(&salt)).as_bytes());
        }
        hasher.finalize().to_hex().chars().take(32).collect()
    }

    /// The views that `stage` rests on, itself among them, sorted by name.
    fn upstream(&self, stage: &TableName) -> BTreeSet<TableName> {
        let mut found = BTreeSet::new();
        let mut open = vec![stage.clone()];
        while let Some(name) = open.pop() {
            if let Some(checked) = self.checked.get(&name).filter(|_| self.views.contains(&name))
                && found.insert(name)
            {
                open.extend(checked.stage.inputs.keys().cloned());
            }
        }
        found
    }

    /// The columns that contracts say change later without a date (`known_at = "later"`) and that decide values or rows of these columns of a stage: what they hold is not
    /// what they held at the moment, and nobody can know what they did.
    pub fn changed_later(&self, stage: &TableName, columns: &[String]) -> Origins {
        let of = |column: &String| ColumnName { table: stage.clone(), column: column.clone() };
        let mut open: Vec<ColumnName> = columns.iter().map(of).collect();
        let (mut seen, mut tables, mut found) = (Origins::new(), BTreeSet::new(), Origins::new());
        while let Some(name) = open.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let Some(checked) = self.checked.get(&name.table) else { continue };
            let column = checked.stage.contract.as_ref().and_then(|contract| contract.column(&name.column));
            if column.is_some_and(|column| column.known_at == Some(KnownAt::Later)) {
                found.insert(name.clone());
            }
            open.extend(checked.lineage.column(&name.column).into_iter().flatten().cloned());
            // What decides which rows there are decides what is made of them.
            if tables.insert(name.table) {
                open.extend(checked.lineage.rows.iter().cloned());
            }
        }
        found
    }

    /// Hands the rows of the answer to `take`, batch by batch. What does not fit into memory is asked once more with a plan that can go to disk, and what was taken is begun
    /// anew: so `begin` makes what is filled. Cancelled at any batch; may be repeated.
    ///
    /// # Errors
    /// A query that cannot be planned, a moment that is not the end of a stage's grain, what `take` answers, and what the lake answers.
    pub async fn gather<S>(
        &self,
        question: &Question,
        begin: impl Fn() -> S,
        mut take: impl FnMut(&mut S, RecordBatch) -> Result<()>,
    ) -> Result<S> {
        let mut settings = self.settings.clone();
        loop {
            let asked = async {
                let mut filled = begin();
                let (state, plan) = self.plan(question, &settings).await?;
                let failed = || EngineError::execution(format!("asking about {}", question.at.format("%Y-%m-%d")));
                let mut rows = DataFrame::new(state, plan).execute_stream().await.map_err(failed())?;
                while let Some(batch) = rows.try_next().await.map_err(failed())? {
                    take(&mut filled, batch)?;
                }
                Ok::<S, EngineError>(filled)
            };
            match asked.await {
                Err(error) if error.is_out_of_memory() && !settings.is_frugal => settings.is_frugal = true,
                answer => return answer,
            }
        }
    }

    async fn plan(&self, question: &Question, settings: &SessionSettings) -> Result<(SessionState, LogicalPlan)> {
        let buckets = self.lake.settings().customer_buckets;
        let mut tables: Vec<(TableName, Arc<dyn TableProvider>)> = Vec::with_capacity(self.tables.len());
        for (name, core) in &self.tables {
            let shown = core.shown(name, question).map_err(EngineError::execution(format!("reading {name}")))?;
            tables.push((name.clone(), shown));
        }
        let context = session_with(settings, &self.runtime, buckets, tables)?;
        // A name that stands in another one makes a view too many, and none too few.
        let named = self.views.iter().filter(|name| question.sql.contains(&name.to_string()));
        let needed: BTreeSet<TableName> = named.flat_map(|name| self.upstream(name)).collect();
        for name in self.views.iter().filter(|name| needed.contains(*name)) {
            let Some(checked) = self.checked.get(name) else { continue };
            let view = self.view(&context, checked, question.at).await?;
            add_table(&context, name, view)?;
        }
        let wrong = |error: DataFusionError| EngineError::Query { message: crate::error::describe(&error) };
        let state = context.state();
        let dialect = state.config_options().sql_parser.dialect;
        let statement = state.sql_to_statement(&question.sql, &dialect).map_err(wrong)?;
        plan_as_of(&context, statement, question.at).await.map_err(wrong)
    }

    /// The rows that a stage's table would have: its query, in the types of the table, without those that would be set aside.
    async fn view(
        &self,
        context: &SessionContext,
        checked: &CheckedStage,
        at: DateTime<Utc>,
    ) -> Result<Arc<dyn TableProvider>> {
        let stage = &checked.stage;
        if stage.depends_on_time && moment(stage, at) != at {
            return Err(EngineError::Query {
                message: format!(
                    "{}: {} is brought up to date by key, so that its now() is the end of a day: ask about midnight UTC",
                    stage.name,
                    at.to_rfc3339()
                ),
            });
        }
        let failed = || EngineError::execution(format!("stage {}", stage.name));
        let (state, plan) = plan_as_of(context, stage.statement.clone(), at).await.map_err(failed())?;
        let rules = expectation::quarantine_rules(&stage.directives.expectations, &checked.schema, &state)
            .map_err(|message| EngineError::Query { message: format!("{}: {message}", stage.name) })?;
        let buckets = self.lake.settings().customer_buckets;
        let plan = as_table(plan, &checked.schema, buckets, rules).map_err(failed())?;
        Ok(Arc::new(ViewTable::new(plan, None)))
    }
}

impl CoreTable {
    /// The table as it is shown at a moment.
    fn shown(&self, name: &TableName, question: &Question) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let all: Arc<dyn TableProvider> = match &self.table {
            Some(table) => table.provider(),
            None => Arc::new(EmptyTable::new(Arc::clone(&self.schema))),
        };
        let Some(contract) = self.contract.as_ref().filter(|_| question.sees == Sees::KnownThen) else {
            return Ok(all);
        };
        let Some(event_time) = event_time(Some(contract)) else { return Ok(all) };
        let schema = all.schema();
        let by_then = |column: &str| -> Result<Expr, DataFusionError> {
            let kind = schema.field_with_name(column)?.data_type();
            Ok(ident(column).lt_eq(lit(moment_as(question.at, kind)?)))
        };
        let mut columns = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            let known_at = contract.column(field.name()).and_then(|column| column.known_at.as_ref());
            columns.push(match known_at {
                Some(KnownAt::Column { column, before }) => {
                    let before = lit(ScalarValue::Utf8(before.clone()));
                    let hidden = cast(before, field.data_type().clone());
                    when(by_then(column)?, ident(field.name())).otherwise(hidden)?.alias(field.name())
                }
                Some(KnownAt::Later) | None => ident(field.name()),
            });
        }
        let rows = LogicalPlanBuilder::scan(name.table(), provider_as_source(Arc::clone(&all)), None)?
            .filter(by_then(event_time)?)?
            .project(columns)?
            .build()?;
        Ok(Arc::new(ViewTable::new(rows, None)))
    }
}

fn event_time(contract: Option<&Contract>) -> Option<&str> {
    contract.and_then(|contract| contract.event_time.as_deref())
}

/// The moment in the type of a column. Dates are known from the day's beginning on.
fn moment_as(at: DateTime<Utc>, kind: &DataType) -> Result<ScalarValue, DataFusionError> {
    if *kind == DataType::Date32 {
        let days = at.date_naive().signed_duration_since(NaiveDate::default()).num_days();
        return Ok(ScalarValue::Date32(i32::try_from(days).ok()));
    }
    ScalarValue::TimestampMicrosecond(Some(at.timestamp_micros()), Some(Arc::from("UTC"))).cast_to(kind)
}
