//! `ASOF JOIN … MATCH_CONDITION (…) ON …`: of each row on the left the last row on the right that is not later, and nulls where there is none.
//!
//! ```sql
//! from core.orders o asof join core.prices p match_condition (o.ordered_at >= p.valid_from) on o.sku = p.sku
//! ```
//!
//! DataFusion parses it and does not plan it. It is planned here as what any engine has: both sides become one relation, a window by key goes through it in the order of moments and hands the
//! last row of the right side on, and the rows of the left side are kept. So nothing fans out, sorts spill, and what can be worked out by key still can.
//!
//! A planner of relations is asked for parentheses alone, so each such join, with all that stands left of it, is put into some: [`wrap`].

use std::ops::ControlFlow;

use datafusion::arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::metadata::FieldMetadata;
use datafusion::common::{Column, DFSchema, Result, ScalarValue, TableReference, plan_datafusion_err, plan_err};
use datafusion::functions::core::{get_field, named_struct};
use datafusion::logical_expr::expr::{NullTreatment, WindowFunction};
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{
    Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, Operator, SortExpr, WindowFrame, WindowFrameBound,
    WindowFrameUnits, WindowFunctionDefinition, col, lit,
};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, JoinConstraint, JoinOperator, Query, SetExpr, TableFactor, TableWithJoins, VisitMut, VisitorMut,
};

/// Puts each `ASOF JOIN` with what stands left of it into parentheses.
pub(crate) fn wrap(statement: &mut Statement) {
    match statement {
        Statement::Statement(sql) => {
            let _: ControlFlow<()> = sql.visit(&mut Wrapper);
        }
        Statement::Explain(explain) => wrap(&mut explain.statement),
        _ => {}
    }
}

struct Wrapper;

impl VisitorMut for Wrapper {
    type Break = ();

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        wrap_selects(&mut query.body);
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::NestedJoin { table_with_joins, .. } = factor
            && as_of(table_with_joins).is_none()
        {
            wrap_joins(table_with_joins);
        }
        ControlFlow::Continue(())
    }
}

/// The queries within are visited by themselves.
fn wrap_selects(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) => select.from.iter_mut().for_each(wrap_joins),
        SetExpr::SetOperation { left, right, .. } => {
            wrap_selects(left);
            wrap_selects(right);
        }
        _ => {}
    }
}

fn wrap_joins(joined: &mut TableWithJoins) {
    let is_as_of = |operator: &JoinOperator| matches!(operator, JoinOperator::AsOf { .. });
    while let Some(at) = joined.joins.iter().position(|join| is_as_of(&join.join_operator)) {
        let mut before = std::mem::take(&mut joined.joins);
        let rest = before.split_off(at + 1);
        let Some(as_of) = before.pop() else { return };
        let relation = joined.relation.clone();
        let left = nested(TableWithJoins { relation, joins: before });
        joined.relation = nested(TableWithJoins { relation: left, joins: vec![as_of] });
        joined.joins = rest;
    }
}

/// The relation alone where nothing is joined to it.
fn nested(joined: TableWithJoins) -> TableFactor {
    if joined.joins.is_empty() {
        return joined.relation;
    }
    TableFactor::NestedJoin { table_with_joins: Box::new(joined), alias: None }
}

/// The join, where it is this one alone.
fn as_of(joined: &TableWithJoins) -> Option<(&TableFactor, &TableFactor, &SqlExpr, &JoinConstraint)> {
    match joined.joins.as_slice() {
        [join] => match &join.join_operator {
            JoinOperator::AsOf { match_condition, constraint } => {
                Some((&joined.relation, &join.relation, match_condition, constraint))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Plans an `ASOF JOIN` in parentheses.
#[derive(Debug)]
pub(crate) struct AsOfPlanner;

impl RelationPlanner for AsOfPlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let TableFactor::NestedJoin { table_with_joins, alias } = &relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let Some((left, right, match_condition, constraint)) = as_of(table_with_joins) else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let (left, right) = (context.plan(left.clone())?, context.plan(right.clone())?);
        let both = left.schema().join(right.schema())?;
        let matched = context.sql_to_expr(match_condition.clone(), &both)?;
        let on = match constraint {
            JoinConstraint::On(on) => conjuncts(context.sql_to_expr(on.clone(), &both)?),
            _ => return plan_err!("ASOF JOIN needs `on left.key = right.key` behind MATCH_CONDITION"),
        };
        let keys = on.into_iter().map(|on| equal_sides(on, &left, &right)).collect::<Result<Vec<_>>>()?;
        let moments = Moments::of(matched, &left, &right)?;
        let last_value = context
            .context_provider()
            .get_window_meta("last_value")
            .ok_or_else(|| plan_datafusion_err!("there is no window function `last_value`"))?;
        let plan = planned(left, right, &keys, &moments, WindowFunctionDefinition::WindowUDF(last_value))?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias.clone()))))
    }
}

/// What `MATCH_CONDITION` says.
struct Moments {
    left: Expr,
    right: Expr,
    /// The right side is earlier, or at the same moment; otherwise later.
    is_backward: bool,
    /// A row of the right side at the same moment counts.
    counts_same: bool,
}

impl Moments {
    fn of(condition: Expr, left: &LogicalPlan, right: &LogicalPlan) -> Result<Self> {
        let refused = "MATCH_CONDITION is one comparison of the two sides, such as (l.at >= r.at), with >=, >, <= or <";
        let Expr::BinaryExpr(compared) = condition else { return plan_err!("{refused}") };
        let (one, operator, other) = (*compared.left, compared.op, *compared.right);
        let (one, operator, other) = match (side(&one, left, right), side(&other, left, right)) {
            (Some(Side::Left), Some(Side::Right)) => (one, operator, other),
            (Some(Side::Right), Some(Side::Left)) => match operator.swap() {
                Some(swapped) => (other, swapped, one),
                None => return plan_err!("{refused}"),
            },
            _ => return plan_err!("{refused}"),
        };
        let (is_backward, counts_same) = match operator {
            Operator::GtEq => (true, true),
            Operator::Gt => (true, false),
            Operator::LtEq => (false, true),
            Operator::Lt => (false, false),
            _ => return plan_err!("{refused}"),
        };
        Ok(Self { left: one, right: other, is_backward, counts_same })
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Left,
    Right,
}

/// The side whose columns an expression is of; none where it is of both, or of no column.
fn side(expr: &Expr, left: &LogicalPlan, right: &LogicalPlan) -> Option<Side> {
    let columns = expr.column_refs();
    let is_of = |schema: &DFSchema| !columns.is_empty() && columns.iter().all(|column| schema.has_column(column));
    match (is_of(left.schema()), is_of(right.schema())) {
        (true, false) => Some(Side::Left),
        (false, true) => Some(Side::Right),
        _ => None,
    }
}

fn conjuncts(expr: Expr) -> Vec<Expr> {
    datafusion::logical_expr::utils::split_conjunction_owned(expr)
}

/// The two sides of an equation, left first.
fn equal_sides(on: Expr, left: &LogicalPlan, right: &LogicalPlan) -> Result<(Expr, Expr)> {
    if let Expr::BinaryExpr(compared) = &on
        && compared.op == Operator::Eq
    {
        let (one, other) = (compared.left.as_ref().clone(), compared.right.as_ref().clone());
        match (side(&one, left, right), side(&other, left, right)) {
            (Some(Side::Left), Some(Side::Right)) => return Ok((one, other)),
            (Some(Side::Right), Some(Side::Left)) => return Ok((other, one)),
            _ => {}
        }
    }
    plan_err!("`on` of ASOF JOIN is `left.key = right.key`, or several of it with `and`, not {on}")
}

/// The column of a key, of the moment, and of the side (1 for the left), in the relation of both.
const MOMENT: &str = "__asof_at";
const LEFT: &str = "__asof_left";
const RIGHT_ROW: &str = "__asof_row";
const LAST: &str = "__asof_last";

fn key_name(at: usize) -> String {
    format!("__asof_key{at}")
}

fn left_name(at: usize) -> String {
    format!("__asof_l{at}")
}

fn tie_name(at: usize) -> String {
    format!("__asof_tie{at}")
}

fn planned(
    left: LogicalPlan,
    right: LogicalPlan,
    keys: &[(Expr, Expr)],
    moments: &Moments,
    last_value: WindowFunctionDefinition,
) -> Result<LogicalPlan> {
    let columns = |plan: &LogicalPlan| -> Vec<(Option<TableReference>, Field)> {
        plan.schema().iter().map(|(relation, field)| (relation.cloned(), field.as_ref().clone())).collect()
    };
    let (left_columns, right_columns) = (columns(&left), columns(&right));
    let column =
        |(relation, field): &(Option<TableReference>, Field)| Expr::Column(Column::new(relation.clone(), field.name()));
    // Of rows that agree in key and moment the greatest counts, column by column: any rule does, but it must be one.
    let ties: Vec<&(Option<TableReference>, Field)> =
        right_columns.iter().filter(|(_, field)| !field.data_type().is_nested()).collect();
    let row_type = DataType::Struct(
        (0..)
            .zip(&right_columns)
            .map(|(at, (_, field))| Field::new(cell(at), field.data_type().clone(), true))
            .collect::<Fields>(),
    );
    let null = |data_type: &DataType| ScalarValue::try_from(data_type).map(lit);

    let mut of_left: Vec<Expr> = (0..).zip(keys).map(|(at, (key, _))| key.clone().alias(key_name(at))).collect();
    of_left.extend([moments.left.clone().alias(MOMENT), lit(1_i32).alias(LEFT)]);
    of_left.extend((0..).zip(&left_columns).map(|(at, of)| column(of).alias(left_name(at))));
    for (at, (_, field)) in ties.iter().enumerate() {
        of_left.push(null(field.data_type())?.alias(tie_name(at)));
    }
    of_left.push(null(&row_type)?.alias(RIGHT_ROW));

    let mut of_right: Vec<Expr> = (0..).zip(keys).map(|(at, (_, key))| key.clone().alias(key_name(at))).collect();
    of_right.extend([moments.right.clone().alias(MOMENT), lit(0_i32).alias(LEFT)]);
    for (at, (_, field)) in left_columns.iter().enumerate() {
        of_right.push(null(field.data_type())?.alias(left_name(at)));
    }
    of_right.extend((0..).zip(&ties).map(|(at, of)| column(of).alias(tie_name(at))));
    let cells = (0..).zip(&right_columns).flat_map(|(at, of)| [lit(cell(at)), column(of)]);
    of_right.push(named_struct().call(cells.collect()).alias(RIGHT_ROW));

    // A null equals nothing and is at no moment: such rows of the right side match none, such rows of the left find none.
    let mut right = LogicalPlanBuilder::from(right);
    for (_, key) in keys {
        right = right.filter(key.clone().is_not_null())?;
    }
    let right = right.filter(moments.right.clone().is_not_null())?.project(of_right)?.build()?;
    let both = LogicalPlanBuilder::from(left).project(of_left)?.union(right)?;

    let order = |name: String, ascending: bool| SortExpr::new(col(name), ascending, true);
    let mut ordered = vec![
        order(MOMENT.to_owned(), moments.is_backward),
        // At the same moment the right side stands before the left where it counts.
        order(LEFT.to_owned(), moments.counts_same),
    ];
    ordered.extend((0..ties.len()).map(|at| order(tie_name(at), true)));
    let frame = WindowFrame::new_bounds(
        WindowFrameUnits::Rows,
        WindowFrameBound::Preceding(ScalarValue::UInt64(None)),
        WindowFrameBound::CurrentRow,
    );
    let last = Expr::from(WindowFunction::new(last_value, vec![col(RIGHT_ROW)]))
        .partition_by((0..keys.len()).map(|at| col(key_name(at))).collect())
        .order_by(ordered)
        .window_frame(frame)
        .null_treatment(NullTreatment::IgnoreNulls)
        .build()?
        .alias(LAST);
    let mut columns: Vec<Expr> = Vec::with_capacity(left_columns.len() + right_columns.len());
    for (at, (relation, field)) in left_columns.iter().enumerate() {
        // A key is the column that the window goes by: so it is seen that rows are worked out key by key.
        let own = Column::new(relation.clone(), field.name());
        let is_of_its_type = |right: &Expr| {
            let Expr::Column(right) = right else { return false };
            let found = right_columns
                .iter()
                .find(|(relation, field)| *relation == right.relation && *field.name() == right.name);
            found.is_some_and(|(_, found)| found.data_type() == field.data_type())
        };
        let key = keys.iter().position(|(left, right)| is_column(left, &own) && is_of_its_type(right));
        let value = key.map_or_else(|| col(left_name(at)), |key| col(key_name(key)));
        columns.push(named(value, relation, field));
    }
    for (at, (relation, field)) in right_columns.iter().enumerate() {
        columns.push(named(get_field().call(vec![col(LAST), lit(cell(at))]), relation, field));
    }
    both.window(vec![last])?.filter(col(LEFT).eq(lit(1_i32)))?.project(columns)?.build()
}

/// A column of the right side in its row.
fn cell(at: usize) -> String {
    format!("c{at}")
}

fn is_column(expr: &Expr, column: &Column) -> bool {
    matches!(expr, Expr::Column(found) if found.relation == column.relation && found.name == column.name)
}

/// A value under the name, and with the metadata, of the column that it is.
fn named(value: Expr, relation: &Option<TableReference>, field: &Field) -> Expr {
    let metadata = (!field.metadata().is_empty()).then(|| FieldMetadata::from(field));
    value.alias_qualified_with_metadata(relation.clone(), field.name(), metadata)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use arrow::compute::concat_batches;
    use arrow::util::display::array_value_to_string;
    use datafusion::datasource::MemTable;
    use datafusion::execution::runtime_env::RuntimeEnv;
    use datafusion::prelude::SessionContext;

    use crate::session::{SessionSettings, plan_read_only, session_with};

    type Row = (Option<i64>, Option<i64>, Option<i64>);

    fn rows(seed: u64, count: usize, keys: u64) -> Vec<Row> {
        let mut state = seed;
        let mut below = |end: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            i64::try_from((state >> 33) % end).unwrap()
        };
        let mut one = |end: u64| (below(9) > 0).then(|| below(end));
        (0..count).map(|_| (one(keys), one(12), one(5))).collect()
    }

    fn table(rows: &[Row]) -> Arc<MemTable> {
        let column = |of: fn(&Row) -> Option<i64>| -> ArrayRef { Arc::new(Int64Array::from_iter(rows.iter().map(of))) };
        let words = rows.iter().map(|row| row.2.map(|number| format!("w{number}")));
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("k", column(|row| row.0), true),
            ("at", column(|row| row.1), true),
            ("v", Arc::new(StringArray::from_iter(words)) as ArrayRef, true),
        ])
        .unwrap();
        // In parts, as tables come.
        let half = batch.num_rows() / 2;
        let parts = vec![vec![batch.slice(0, half)], vec![batch.slice(half, batch.num_rows() - half)]];
        Arc::new(MemTable::try_new(batch.schema(), parts).unwrap())
    }

    fn context(left: &[Row], right: &[Row]) -> SessionContext {
        let tables = [("core.l", table(left)), ("core.r", table(right))];
        let tables = tables.map(|(name, table)| (name.parse().unwrap(), table as _));
        session_with(&SessionSettings::default(), &Arc::new(RuntimeEnv::default()), 4, tables).unwrap()
    }

    async fn select(context: &SessionContext, sql: &str) -> Result<Vec<String>, String> {
        let plan = plan_read_only(context, sql).await.map_err(|error| error.to_string())?;
        let frame = context.execute_logical_plan(plan).await.map_err(|error| error.to_string())?;
        let schema = Arc::clone(frame.schema().inner());
        let batches = frame.collect().await.map_err(|error| error.to_string())?;
        let all = concat_batches(&schema, &batches)
            .unwrap_or_else(|_| concat_batches(&batches[0].schema(), &batches).unwrap());
        let text = |row: usize| {
            let cells = all.columns().iter().map(|column| array_value_to_string(column, row).unwrap());
            cells.collect::<Vec<_>>().join("|")
        };
        let mut rows: Vec<String> = (0..all.num_rows()).map(text).collect();
        rows.sort();
        Ok(rows)
    }

    /// Looks at all rows on the right for each on the left.
    fn expected(left: &[Row], right: &[Row], operator: &str) -> Vec<String> {
        let text =
            |value: Option<i64>, before: &str| value.map_or_else(String::new, |value| format!("{before}{value}"));
        let mut found: Vec<String> = left
            .iter()
            .map(|l| {
                let counts = |r: &&Row| match (l.0, r.0, l.1, r.1) {
                    (Some(l), Some(r), Some(at), Some(of)) if l == r => match operator {
                        ">=" => at >= of,
                        ">" => at > of,
                        "<=" => at <= of,
                        _ => at < of,
                    },
                    _ => false,
                };
                let nearness = |r: &&Row| if operator.starts_with('>') { r.1 } else { r.1.map(|at| -at) };
                let best = right.iter().filter(counts).max_by_key(|r| (nearness(r), r.2));
                let (at, v) = best.map_or((None, None), |r| (r.1, r.2));
                [text(l.0, ""), text(l.1, ""), text(l.2, "w"), text(at, ""), text(v, "w")].join("|")
            })
            .collect();
        found.sort();
        found
    }

    #[tokio::test]
    async fn each_row_gets_the_nearest_of_its_key() {
        for seed in 1..12 {
            let (left, right) = (rows(seed, 80, 7), rows(seed + 100, 120, 7));
            let context = context(&left, &right);
            for operator in [">=", ">", "<=", "<"] {
                let sql = format!(
                    "select l.k, l.at, l.v, r.at as r_at, r.v as r_v from core.l asof join core.r \
                     match_condition (l.at {operator} r.at) on l.k = r.k"
                );
                assert_eq!(
                    select(&context, &sql).await.unwrap(),
                    expected(&left, &right, operator),
                    "seed {seed} {operator}"
                );
            }
        }
        // Nobody on the right.
        let (left, nobody) = (rows(1, 20, 3), Vec::new());
        let sql = "select l.k, l.at, l.v, r.at as a, r.v as b from core.l asof join core.r match_condition (r.at <= l.at) on r.k = l.k";
        assert_eq!(select(&context(&left, &nobody), sql).await.unwrap(), expected(&left, &nobody, ">="));
    }

    #[tokio::test]
    async fn it_stands_where_other_joins_do() {
        let (left, right) = (rows(3, 40, 4), rows(4, 60, 4));
        let context = context(&left, &right);
        let plain = "select l.k, l.at, l.v, r.at as r_at, r.v as r_v from core.l l asof join core.r r match_condition (l.at >= r.at) on l.k = r.k";
        let expected = select(&context, plain).await.unwrap();
        for sql in [
            // By other names, in a CTE, in a subquery, with the sides the other way round, in parentheses, with all columns.
            "with x as (select a.k, a.at, a.v, b.at as c, b.v as d from core.l as a asof join core.r as b match_condition (b.at <= a.at) on b.k = a.k) select * from x",
            "select * from (select l.*, r.at as c, r.v as d from core.l l asof join core.r r match_condition (l.at >= r.at) on l.k = r.k)",
            "select l.k, l.at, l.v, r.at as c, r.v as d from (core.l l asof join core.r r match_condition (l.at >= r.at) on l.k = r.k)",
            "select l.k, l.at, l.v, r.at as c, r.v as d from core.l l asof join (select * from core.r where k is not null) r match_condition (l.at >= r.at) on l.k = r.k",
            "select l.k, l.at, l.v, r.at as c, r.v as d from core.l l left join (select 1 as one) o on true asof join core.r r match_condition (l.at >= r.at) on l.k = r.k",
        ] {
            assert_eq!(select(&context, sql).await.unwrap(), expected, "{sql}");
        }
        // Two of them: the second looks from the same left side.
        let twice = "select l.k, l.at, l.v, r.at as a, r.v as b, s.at as c, s.v as d from core.l l \
            asof join core.r r match_condition (l.at >= r.at) on l.k = r.k asof join core.r s match_condition (l.at >= s.at) on l.k = s.k";
        let rows = select(&context, twice).await.unwrap();
        assert_eq!(rows.len(), left.len());
        assert!(rows.iter().all(|row| {
            let cells: Vec<&str> = row.split('|').collect();
            cells[3..5] == cells[5..7]
        }));
    }

    #[tokio::test]
    async fn what_it_cannot_be_is_told() {
        let context = context(&rows(1, 5, 2), &rows(2, 5, 2));
        for (rest, told) in [
            ("match_condition (l.at >= r.at and l.v >= r.v) on l.k = r.k", "MATCH_CONDITION is one comparison"),
            ("match_condition (l.at = r.at) on l.k = r.k", "MATCH_CONDITION is one comparison"),
            ("match_condition (l.at >= l.k) on l.k = r.k", "MATCH_CONDITION is one comparison"),
            ("match_condition (l.at >= r.at) on l.k > r.k", "`on` of ASOF JOIN is"),
            ("match_condition (l.at >= r.at)", "ASOF JOIN needs"),
            ("match_condition (l.at >= r.when) on l.k = r.k", "when"),
        ] {
            let error =
                select(&context, &format!("select l.k from core.l l asof join core.r r {rest}")).await.unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }
}
