//! `as_of('core.orders', 411)`: a table as an earlier run left it.
//!
//! ```sql
//! select o.order_id from core.orders o left anti join as_of('core.orders', 411) b on b.order_id = o.order_id
//! ```
//!
//! The run is named by its number, its name, or a moment: then it is the newest whose data is of that moment or before. Runs are opened before the statement is
//! planned, because the planner cannot wait. Whose session it is decides what they see: [`EarlierRuns`] gives runs as that somebody sees them, and a session to
//! which nobody gave any has no such function.

use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::datasource::provider_as_source;
use datafusion::error::Result as PlanningResult;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, FunctionArg, FunctionArgExpr, TableFactor, Value, Visitor};
use holdfast_types::TableName;

use crate::Result;
use crate::error::EngineError;
use crate::reader::{Published, WhichRun};
use crate::session::CATALOG;
use crate::walk::Walk;

const FUNCTION: &str = "as_of";
/// Runs that one statement reads beside its own: each has to be opened.
const RUNS_MAX: usize = 10;

/// Runs that were published before, as somebody sees them.
#[async_trait]
pub trait EarlierRuns: std::fmt::Debug + Send + Sync {
    /// The run; `None` where there is none.
    ///
    /// # Errors
    /// What the lake answers.
    async fn run(&self, which: &WhichRun) -> Result<Option<Arc<Published>>>;
}

/// How they are kept in a session.
struct Given(Arc<dyn EarlierRuns>);

/// Lets statements of the session read them.
pub(crate) fn give(session: &SessionContext, runs: Arc<dyn EarlierRuns>) {
    session.state_ref().write().config_mut().set_extension(Arc::new(Given(runs)));
}

/// What plans the calls of the function in the statement; `None` where there are none.
///
/// # Errors
/// [`EngineError::Query`] for a call that cannot be understood, a run or a table that is not there; what the lake answers.
pub(crate) async fn planner(statement: &Statement, state: &SessionState) -> Result<Option<Arc<dyn RelationPlanner>>> {
    let refused = |message: String| EngineError::Query { message };
    let schema = state.config_options().catalog.default_schema.clone();
    let calls = calls(statement, &schema).map_err(refused)?;
    if calls.is_empty() {
        return Ok(None);
    }
    let given = state.config().get_extension::<Given>().ok_or_else(|| {
        refused(format!("{FUNCTION} is not offered here: ask the service, which knows of earlier runs"))
    })?;
    let mut runs: Vec<(WhichRun, Arc<Published>)> = Vec::new();
    let mut tables = Vec::with_capacity(calls.len());
    for call in calls {
        let known = runs.iter().find(|(which, _)| *which == call.run).map(|(_, run)| Arc::clone(run));
        let run = match known {
            Some(run) => run,
            None if runs.len() == RUNS_MAX => {
                return Err(refused(format!("the statement reads more than {RUNS_MAX} earlier runs: ask in parts")));
            }
            None => {
                let found = given.0.run(&call.run).await?.ok_or_else(|| refused(call.run.missing()))?;
                runs.push((call.run.clone(), Arc::clone(&found)));
                found
            }
        };
        let provider = run
            .provider(&call.table)
            .ok_or_else(|| refused(format!("run {} has no table `{}`", run.sequence(), call.table)))?;
        tables.push((call, Arc::clone(provider)));
    }
    Ok(Some(Arc::new(EarlierTables { schema, tables })))
}

/// A call of the function.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    table: TableName,
    run: WhichRun,
}

impl Call {
    /// `None` for what is no call of it.
    fn of(factor: &TableFactor, default_schema: &str) -> Option<Result<Self, String>> {
        let TableFactor::Table { name, args: Some(args), .. } = factor else { return None };
        let [part] = name.0.as_slice() else { return None };
        if !part.as_ident()?.value.eq_ignore_ascii_case(FUNCTION) {
            return None;
        }
        let given: Option<Vec<String>> = args
            .args
            .iter()
            .map(|arg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => written(expr),
                _ => None,
            })
            .collect();
        Some(match given.as_deref() {
            Some([table, run]) => {
                let name = if table.contains('.') { table.parse() } else { TableName::new(default_schema, table) };
                name.map(|table| Self { table, run: WhichRun::written(run) })
                    .map_err(|error| format!("{FUNCTION}: {error}"))
            }
            _ => Err(format!(
                "{FUNCTION} takes the name of a table and a run, as they are written: {FUNCTION}('core.orders', 411), by the run's \
                 name, or by a moment such as '2026-01-31'"
            )),
        })
    }
}

/// The text of a literal, whatever it is cast to.
fn written(expr: &SqlExpr) -> Option<String> {
    match expr {
        SqlExpr::Value(value) => match &value.value {
            Value::Number(number, _) => Some(number.to_string()),
            value => value.clone().into_string(),
        },
        SqlExpr::TypedString(typed) => typed.value.clone().into_string(),
        SqlExpr::Cast { expr, .. } | SqlExpr::Nested(expr) => written(expr),
        _ => None,
    }
}

fn calls(statement: &Statement, schema: &str) -> Result<Vec<Call>, String> {
    struct Calls<'a>(&'a str, Result<Vec<Call>, String>);

    impl Visitor for Calls<'_> {
        type Break = ();

        fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
            match (Call::of(factor, self.0), &mut self.1) {
                (Some(Ok(call)), Ok(calls)) => calls.push(call),
                (Some(Err(refusal)), calls) => {
                    *calls = Err(refusal);
                    return ControlFlow::Break(());
                }
                _ => {}
            }
            ControlFlow::Continue(())
        }
    }

    match statement {
        Statement::Statement(sql) => {
            let mut calls = Calls(schema, Ok(Vec::new()));
            let _ = sql.walk(&mut calls);
            calls.1
        }
        Statement::Explain(explain) => self::calls(&explain.statement, schema),
        _ => Ok(Vec::new()),
    }
}

/// The tables that the calls of one statement mean. They are planned under their own names, so that it is known what is read.
#[derive(Debug)]
struct EarlierTables {
    schema: String,
    tables: Vec<(Call, Arc<dyn TableProvider>)>,
}

impl RelationPlanner for EarlierTables {
    fn plan_relation(
        &self,
        relation: TableFactor,
        _context: &mut dyn RelationPlannerContext,
    ) -> PlanningResult<RelationPlanning> {
        let found = match Call::of(&relation, &self.schema) {
            Some(Ok(call)) => self.tables.iter().find(|(known, _)| *known == call),
            _ => None,
        };
        let (Some((call, provider)), TableFactor::Table { alias, .. }) = (found, &relation) else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let name = TableReference::full(CATALOG, call.table.schema(), call.table.table());
        let plan = LogicalPlanBuilder::scan(name, provider_as_source(Arc::clone(provider)), None)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
    }
}
