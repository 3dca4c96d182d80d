use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::TrackConsumersPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;
use holdfast_lake::Lake;
use holdfast_types::TableName;

use crate::Result;
use crate::as_of_join::{self, AsOfPlanner};
use crate::as_of_merge::AsOfMerge;
use crate::diagnostic::most_similar;
use crate::error::{EngineError, describe};
use crate::executor::Executor;
use crate::first_of_each;
use crate::functions::{customer_bucket_function, json_field_function};
use crate::memory::StagePool;
use crate::row_functions::{self, RowFunctions, RowPlanner, RunFunctions};
use crate::{earlier_runs, placeholders, read_only};

/// The catalogue's name in every session.
pub(crate) const CATALOG: &str = "holdfast";

/// Limits of a session, and the functions that other crates bring.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// The memory that all queries of a process share before they spill to disk, in bytes.
    pub memory_bytes: usize,
    /// How many parts of a plan run at once.
    pub target_partitions: usize,
    /// Plans that need the least memory, at the price of time: everything that is held can go to disk.
    pub is_frugal: bool,
    /// Functions known by name in stages and queries.
    pub functions: Vec<Arc<ScalarUDF>>,
    /// Changes whenever one of the functions would give other values, so that stages are refreshed.
    pub salt: String,
    /// Functions that ask subjects, of whole rows and of values; executors elsewhere do not have them.
    pub row_functions: RowFunctions,
    /// Who has the row functions of published runs, for sessions over these.
    pub run_functions: Option<Arc<dyn RunFunctions>>,
    /// Who works out the rows of full refreshes instead of this process.
    pub executor: Option<Arc<dyn Executor>>,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            target_partitions: std::thread::available_parallelism().map_or(2, usize::from),
            is_frugal: false,
            functions: Vec::new(),
            salt: String::new(),
            row_functions: RowFunctions::default(),
            run_functions: None,
            executor: None,
        }
    }
}

impl SessionSettings {
    /// The memory pool and the spill folder that the sessions of a process share, with the lake's store in it.
    ///
    /// # Errors
    /// When the spill folder cannot be made.
    pub(crate) fn runtime(&self, lake: &Lake) -> Result<Arc<RuntimeEnv>> {
        let consumers = std::num::NonZeroUsize::new(3).unwrap_or(std::num::NonZeroUsize::MIN);
        let pool = StagePool::new(self.memory_bytes);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(TrackConsumersPool::new(pool, consumers)))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::OsTmpDirectory))
            .build_arc()
            .map_err(EngineError::execution("preparing the engine"))?;
        runtime.register_object_store(lake.store_url().as_ref(), Arc::clone(lake.store()));
        Ok(runtime)
    }

    fn config(&self) -> SessionConfig {
        // Sort-merge joins are planned for two partitions or more; hash joins hold one side in memory whatever comes.
        let (partitions, batch_rows) = if self.is_frugal { (2, 2_048) } else { (self.target_partitions, 8_192) };
        SessionConfig::new()
            .with_target_partitions(partitions)
            .with_batch_size(batch_rows)
            .set_bool("datafusion.optimizer.prefer_hash_join", !self.is_frugal)
            // `max(a)` beside `max(case … end)` leaves out files that only the second needs: wrong sums, now and then, without a
            // word (apache/datafusion#24816; the versions here have it).
            .set_bool("datafusion.optimizer.enable_aggregate_dynamic_filter_pushdown", false)
            // What each sort keeps free for merging. A plan has many sorts; they must not take the pool by being there. A frugal plan's
            // few must be able to merge at least two runs of wide rows whatever the others hold.
            .set_usize(
                "datafusion.execution.sort_spill_reservation_bytes",
                if self.is_frugal {
                    (self.memory_bytes / 16).clamp(4 << 20, 64 << 20)
                } else {
                    (self.memory_bytes / 64).clamp(1 << 20, 10 << 20)
                },
            )
            .with_default_catalog_and_schema(CATALOG, "core")
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true)
            .set_bool("datafusion.sql_parser.collect_spans", true)
            // Views carry their whole buffers over the wire, slice by slice.
            .set_bool("datafusion.optimizer.expand_views_at_output", true)
            // Tables keep their history: an equal name later is another file.
            .set_bool("datafusion.execution.collect_statistics", false)
    }
}

/// A fresh session over the given tables.
#[expect(clippy::disallowed_methods, reason = "this is the one place that builds sessions")]
pub fn session_with(
    settings: &SessionSettings,
    runtime: &Arc<RuntimeEnv>,
    buckets: u32,
    tables: impl IntoIterator<Item = (TableName, Arc<dyn TableProvider>)>,
) -> Result<SessionContext> {
    // A frugal plan is one that can go to disk, and a cluster knows no operators but DataFusion's.
    let mut rules = if settings.is_frugal || settings.executor.is_some() {
        PhysicalOptimizer::default().rules
    } else {
        first_of_each::physical_rules()
    };
    if settings.executor.is_none() {
        rules.insert(0, Arc::new(AsOfMerge));
    }
    let state = SessionStateBuilder::new()
        .with_config(settings.row_functions.configure(settings.config()))
        .with_runtime_env(Arc::clone(runtime))
        // Before those of DataFusion, which take every dictionary for a map.
        .with_expr_planners(vec![Arc::new(RowPlanner)])
        .with_default_features()
        .with_physical_optimizer_rules(rules)
        .build();
    let context = SessionContext::new_with_state(state);
    let mut schemas: BTreeMap<String, Arc<MemorySchemaProvider>> = BTreeMap::new();
    for (name, provider) in tables {
        schemas
            .entry(name.schema().to_owned())
            .or_insert_with(|| Arc::new(MemorySchemaProvider::new()))
            .register_table(name.table().to_owned(), provider)
            .map_err(EngineError::execution(format!("registering {name}")))?;
    }
    // The default schema must exist for unqualified names to give a sensible error.
    schemas.entry("core".to_owned()).or_insert_with(|| Arc::new(MemorySchemaProvider::new()));
    let catalog = MemoryCatalogProvider::new();
    for (schema, provider) in schemas {
        catalog
            .register_schema(&schema, provider)
            .map_err(EngineError::execution(format!("registering schema {schema}")))?;
    }
    context.register_catalog(CATALOG, Arc::new(catalog));
    context.register_relation_planner(Arc::new(AsOfPlanner)).map_err(EngineError::execution("preparing the engine"))?;
    context.register_udf(customer_bucket_function(buckets));
    context.register_udf(json_field_function());
    for function in settings.functions.iter().chain(settings.row_functions.all()) {
        context.register_udf(function.as_ref().clone());
    }
    Ok(context)
}

/// Adds a table to a session.
///
/// # Errors
/// When it is there already.
pub(crate) fn add_table(context: &SessionContext, name: &TableName, provider: Arc<dyn TableProvider>) -> Result<()> {
    let failed = || EngineError::execution(format!("registering {name}"));
    let missing = || DataFusionError::Internal(format!("there is no schema {}", name.schema()));
    let catalog = context.catalog(CATALOG).ok_or_else(missing).map_err(failed())?;
    let schema = match catalog.schema(name.schema()) {
        Some(schema) => schema,
        None => {
            let schema: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
            catalog.register_schema(name.schema(), Arc::clone(&schema)).map_err(failed())?;
            schema
        }
    };
    schema.register_table(name.table().to_owned(), provider).map_err(failed())?;
    Ok(())
}

/// Plans a statement with `now()` standing still at `as_of`. The state must be used to run the plan, too.
///
/// # Errors
/// The planner's own, with spans where it knows them.
pub async fn plan_as_of(
    context: &SessionContext,
    mut statement: Statement,
    as_of: DateTime<Utc>,
) -> Result<(SessionState, LogicalPlan), DataFusionError> {
    let mut state = context.state();
    as_of_join::wrap(&mut statement);
    row_functions::wrap(&mut statement, state.config());
    state.execution_props_mut().query_execution_start_time = Some(as_of);
    let plan = state.statement_to_plan(statement).await?;
    Ok((state, plan))
}

/// Plans a query for a reader: anything that is not a query is refused, as is what is too deep for the walks over it.
///
/// # Errors
/// [`EngineError::Query`] with line and column when the text cannot be planned, is not a query or is too deep.
pub async fn plan_read_only(context: &SessionContext, sql: &str) -> Result<LogicalPlan> {
    read_only::check_text(sql).map_err(|message| EngineError::Query { message })?;
    let state = context.state();
    let dialect = state.config_options().sql_parser.dialect;
    let mut statement = state.sql_to_statement(sql, &dialect).map_err(|error| query_error(&error, context))?;
    placeholders::number(&mut statement).map_err(|message| EngineError::Query { message })?;
    plan_statement_read_only(context, statement).await
}

/// As [`plan_read_only`], of a statement that is parsed already.
///
/// # Errors
/// [`EngineError::Query`], with line and column where the statement has places.
pub async fn plan_statement_read_only(context: &SessionContext, mut statement: Statement) -> Result<LogicalPlan> {
    let refused = |message| EngineError::Query { message };
    read_only::check_statement(&statement).map_err(refused)?;
    as_of_join::wrap(&mut statement);
    let mut state = context.state();
    row_functions::wrap(&mut statement, state.config());
    if let Some(planner) = earlier_runs::planner(&statement, &state).await? {
        state.register_relation_planner(planner).map_err(EngineError::execution("preparing the engine"))?;
    }
    let plan = state.statement_to_plan(statement).await.map_err(|error| query_error(&error, context))?;
    // The plan decides: what a statement looks like is only the first hurdle.
    read_only::check_plan(&plan).map_err(refused)?;
    Ok(plan)
}

fn query_error(error: &DataFusionError, context: &SessionContext) -> EngineError {
    let mut message = match error.find_root() {
        // The parser puts its place at the end: `… at Line: 1, Column: 8`.
        DataFusionError::SQL(inner, _) => {
            let text = inner.to_string();
            let text = text.trim_start_matches("sql parser error: ");
            match text.rsplit_once(" at Line: ").and_then(|(what, place)| Some((what, place.split_once(", Column: ")?)))
            {
                Some((what, (line, column))) => format!("line {line}, column {column}: {what}"),
                None => text.to_owned(),
            }
        }
        _ => describe(error),
    };
    if let Some(diagnostic) = error.diagnostic() {
        message.clone_from(&diagnostic.message);
        if let Some(span) = diagnostic.span {
            message = format!("line {}, column {}: {message}", span.start.line, span.start.column);
        }
        for help in &diagnostic.helps {
            message = format!("{message} ({})", help.message);
        }
    }
    if let DataFusionError::SchemaError(wrong, _) = error.find_root()
        && let SchemaError::FieldNotFound { field, valid_fields } = wrong.as_ref()
        && let Some(name) = most_similar(&field.name, valid_fields.iter().map(|column| column.name.as_str()))
    {
        message = format!("{message}: did you mean `{name}`?");
    }
    if let Some(wrong) = message.split('\'').nth(1).filter(|_| message.contains("table '"))
        && let Some(catalog) = context.catalog(CATALOG)
    {
        let names: Vec<String> = catalog
            .schema_names()
            .into_iter()
            .filter(|schema| schema != "information_schema")
            .filter_map(|schema| Some((catalog.schema(&schema)?, schema)))
            .flat_map(|(provider, schema)| {
                provider.table_names().into_iter().map(move |table| format!("{schema}.{table}"))
            })
            .collect();
        let wrong = wrong.strip_prefix(&format!("{CATALOG}.")).unwrap_or(wrong);
        if let Some(name) = most_similar(wrong, names.iter().map(String::as_str)) {
            message = format!("{message}: did you mean `{name}`?");
        }
    }
    EngineError::Query { message }
}
