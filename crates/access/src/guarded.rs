//! A published table as a principal sees it: the row filter and the masks are below everything that the principal's plan does.
//!
//! The plan of filter and projection is made apart and put into the principal's as one leaf. So nothing of that plan can be moved below
//! the filter, where a cast or a function would tell of rows by its error, and neither EXPLAIN nor statistics tell of what is
//! below. Conditions that cannot fail are handed down, so that files are left out as ever.

use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Field, Fields, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::TableType;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::{
    Expr, LogicalPlan, LogicalPlanBuilder, Operator, TableProviderFilterPushDown, ident, when,
};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
    ReplaceChildrenOptions,
};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Ident, SelectItem, SetExpr, Statement as SqlStatement};
use futures::StreamExt;
use holdfast_types::TableName;

use crate::masks::MaskKey;
use crate::policy::{ColumnAccess, Mask, Rows, TableAccess, any_of};

/// Whether a row meets a filter, where masks depend on it.
const FILTER_COLUMN: &str = "__policy_";

/// A table with its policy.
pub(crate) struct GuardedTable {
    name: TableName,
    /// What the principal sees.
    schema: SchemaRef,
    access: TableAccess,
    key: MaskKey,
    /// A session over the tables as they are.
    base: Arc<SessionContext>,
}

impl GuardedTable {
    pub(crate) fn new(
        name: TableName,
        schema: &Schema,
        access: TableAccess,
        key: MaskKey,
        base: Arc<SessionContext>,
    ) -> Self {
        Self { schema: seen(schema, &access.columns), name, access, key, base }
    }

    /// The rows and columns that are seen, over the table as it is.
    async fn plan(
        &self,
        state: &SessionState,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<LogicalPlan> {
        let mut plan = LogicalPlanBuilder::from(state.statement_to_plan(self.statement(state)?).await?);
        for filter in filters {
            plan = plan.filter(filter.clone())?;
        }
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let mut columns = Vec::new();
        for index in projection.unwrap_or(&all) {
            let column = self.access.columns.get(*index).ok_or_else(|| {
                DataFusionError::Internal(format!("{} has no column {index} that is seen", self.name))
            })?;
            columns.push(self.column(column)?);
        }
        plan.project(columns)?.limit(0, limit)?.build()
    }

    /// `select *` of the rows that are seen, with a column for each filter that masks depend on.
    fn statement(&self, state: &SessionState) -> Result<Statement> {
        let sql = format!("select * from {}.{}", self.name.schema(), self.name.table());
        let dialect = state.config_options().sql_parser.dialect;
        let mut statement = state.sql_to_statement(&sql, &dialect)?;
        let Rows::Matching(filters) = &self.access.rows else { return Ok(statement) };
        let select = match &mut statement {
            Statement::Statement(inner) => match inner.as_mut() {
                SqlStatement::Query(query) => match query.body.as_mut() {
                    SetExpr::Select(select) => Some(select),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        };
        let select = select.ok_or_else(|| DataFusionError::Internal("a select is no select".to_owned()))?;
        select.selection = Some(SqlExpr::Nested(Box::new(any_of(filters))));
        for place in self.places() {
            let Some(filter) = filters.get(place) else { continue };
            select.projection.push(SelectItem::ExprWithAlias {
                expr: filter.condition(),
                alias: Ident::with_quote('"', format!("{FILTER_COLUMN}{place}")),
            });
        }
        Ok(statement)
    }

    /// The filters that masks depend on.
    fn places(&self) -> Vec<usize> {
        let of = |column: &ColumnAccess| column.masks.iter().flat_map(|(_, places)| places.clone()).collect::<Vec<_>>();
        let mut places: Vec<usize> = self.access.columns.iter().flat_map(of).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    fn column(&self, column: &ColumnAccess) -> Result<Expr> {
        let data_type = self.schema.field_with_name(&column.name)?.data_type();
        let over = |mask: &Mask| mask.over(ident(&column.name), data_type, &self.key);
        let mut otherwise = over(&Mask::Null)?;
        for (mask, places) in column.masks.iter().rev() {
            let filter = |place: &usize| ident(format!("{FILTER_COLUMN}{place}")).is_true();
            otherwise = match places.iter().map(filter).reduce(Expr::or) {
                Some(condition) => when(condition, over(mask)?).otherwise(otherwise)?,
                None => over(mask)?,
            };
        }
        Ok(otherwise.alias(&column.name))
    }

    /// Whether the condition can be asked of rows that are not seen: it is about columns that are shown as they are, and cannot fail.
    fn is_harmless(&self, condition: &Expr) -> bool {
        let shown = |name: &str| {
            let column = self.access.columns.iter().find(|column| column.name == name);
            column.is_some_and(|column| column.only_mask() == Some(&Mask::Show))
        };
        let mut harmless = true;
        let walked = condition.apply(|expr| {
            harmless &= match expr {
                Expr::Column(column) => shown(&column.name),
                Expr::Literal(..)
                | Expr::Not(_)
                | Expr::IsNull(_)
                | Expr::IsNotNull(_)
                | Expr::IsTrue(_)
                | Expr::IsFalse(_)
                | Expr::IsNotTrue(_)
                | Expr::IsNotFalse(_)
                | Expr::Between(_)
                | Expr::InList(_) => true,
                Expr::BinaryExpr(binary) => matches!(
                    binary.op,
                    Operator::Eq
                        | Operator::NotEq
                        | Operator::Lt
                        | Operator::LtEq
                        | Operator::Gt
                        | Operator::GtEq
                        | Operator::And
                        | Operator::Or
                        | Operator::IsDistinctFrom
                        | Operator::IsNotDistinctFrom
                ),
                _ => false,
            };
            Ok(if harmless { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        });
        walked.is_ok() && harmless
    }
}

/// The columns that are seen. Where a value may be hidden it may be null.
pub(crate) fn seen(schema: &Schema, columns: &[ColumnAccess]) -> SchemaRef {
    let fields: Fields = columns
        .iter()
        .filter_map(|column| {
            let field: &Field = schema.field_with_name(&column.name).ok()?;
            let is_shown = column.only_mask() == Some(&Mask::Show);
            Some(field.clone().with_nullable(field.is_nullable() || !is_shown))
        })
        .collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

impl fmt::Debug for GuardedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuardedTable({})", self.name)
    }
}

#[async_trait]
impl TableProvider for GuardedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let of = |filter: &&Expr| match self.is_harmless(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(of).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let place = match &self.access.rows {
            Rows::Matching(filters) => filters.iter().map(|filter| filter.place()).find(|place| !place.is_empty()),
            Rows::All => None,
        };
        // Its own words may name columns and values of the policy: those are for the log.
        let failed = |error: DataFusionError| {
            let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
            tracing::error!(table = %self.name, error = %error.strip_backtrace(), "the policy cannot be put into a plan{place}");
            DataFusionError::Configuration(format!(
                "the policy of {} does not fit the table, so nothing of it is given: tell who runs this service, `holdfast policy check` says more",
                self.name
            ))
        };
        let state = self.base.state();
        let plan = self.plan(&state, projection, filters, limit).await.map_err(failed)?;
        let plan = state.create_physical_plan(&plan).await.map_err(failed)?;
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => Arc::clone(&self.schema),
        };
        Ok(Arc::new(PolicyExec::new(self.name.clone(), schema, plan)))
    }
}

/// The rows of a table that somebody sees, as a leaf.
struct PolicyExec {
    table: TableName,
    schema: SchemaRef,
    below: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl PolicyExec {
    fn new(table: TableName, schema: SchemaRef, below: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = below.output_partitioning().partition_count();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(partitions),
            below.pipeline_behavior(),
            below.boundedness(),
        );
        Self { table, schema, below, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

/// An error of the policy's own conditions could name a value that nobody may see.
fn hide(table: &TableName, error: DataFusionError) -> DataFusionError {
    match error.find_root() {
        DataFusionError::ArrowError(..) | DataFusionError::Execution(_) | DataFusionError::External(_)
            if !holdfast_lake::is_store_failure(&error) =>
        {
            tracing::error!(%table, "a condition of the policy failed on a row");
            DataFusionError::Execution(format!("rows of {table} cannot be given: a condition of the policy failed"))
        }
        _ => error,
    }
}

impl fmt::Debug for PolicyExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyExec({})", self.table)
    }
}

impl DisplayAs for PolicyExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "PolicyExec: table={}, projection=[{}]", self.table, columns.join(", "))
    }
}

impl ExecutionPlan for PolicyExec {
    fn name(&self) -> &'static str {
        "PolicyExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    /// None: what is below is nobody's business.
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children_and_same_properties(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    /// A plan that is run again, as recursive queries do, must find what is below as it was.
    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        let below = datafusion::physical_plan::execution_plan::reset_plan_states(Arc::clone(&self.below))?;
        Ok(Arc::new(Self::new(self.table.clone(), Arc::clone(&self.schema), below)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let (schema, table) = (Arc::clone(&self.schema), self.table.clone());
        let rows = self.below.execute(partition, context)?.map(move |batch| {
            let batch = batch.map_err(|error| hide(&table, error))?;
            metrics.record_output(batch.num_rows());
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            Ok(RecordBatch::try_new_with_options(Arc::clone(&schema), batch.columns().to_vec(), &options)?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
