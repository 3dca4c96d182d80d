//! `ASOF JOIN … MATCH_CONDITION (…) ON …`: of each row on the left the last row on the right that is not later, and nulls where there is none.
//!
//! ```sql
//! from core.orders o asof join core.prices p match_condition (o.ordered_at >= p.valid_from) on o.sku = p.sku
//! ```
//!
//! DataFusion parses it and does not plan it. It is planned here as what any engine has: a window by key tells each row of the right side where the next one begins, and the left side is joined with
//! the stretch in between. So each row of the left side gives one row, and what can be worked out by key still can. That join is worked out as a merge: [`crate::as_of_merge`].
//!
//! A planner of relations is asked for parentheses alone, so each such join, with all that stands left of it, is put into some: [`wrap`].

use std::ops::ControlFlow;

use datafusion::common::{Column, DFSchema, JoinType, Result, plan_datafusion_err, plan_err};
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{
    Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, Operator, SortExpr, WindowFunctionDefinition, col,
};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, JoinConstraint, JoinOperator, Query, SetExpr, TableFactor, TableWithJoins, VisitorMut,
};

use crate::walk::WalkMut;

/// Puts each `ASOF JOIN` with what stands left of it into parentheses.
pub(crate) fn wrap(statement: &mut Statement) {
    match statement {
        Statement::Statement(sql) => {
            let _ = sql.walk_mut(&mut Wrapper);
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
        let neighbour = if moments.is_backward { "lead" } else { "lag" };
        let neighbour = context
            .context_provider()
            .get_window_meta(neighbour)
            .ok_or_else(|| plan_datafusion_err!("there is no window function `{neighbour}`"))?;
        let plan = planned(left, right, &keys, &moments, WindowFunctionDefinition::WindowUDF(neighbour))?;
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

/// The moment of the next row of the key on the right; of the one before, where the join looks forward.
pub(crate) const END: &str = "__asof_end";

fn planned(
    left: LogicalPlan,
    right: LogicalPlan,
    keys: &[(Expr, Expr)],
    moments: &Moments,
    neighbour: WindowFunctionDefinition,
) -> Result<LogicalPlan> {
    let columns: Vec<Expr> =
        left.schema().columns().into_iter().chain(right.schema().columns()).map(Expr::Column).collect();
    // Of rows that agree in key and moment the greatest counts, column by column: any rule does, but it must be one.
    let is_tied = |expr: &Expr| *expr == moments.right || keys.iter().any(|(_, key)| key == expr);
    let ties = right.schema().iter().filter(|(_, field)| !field.data_type().is_nested());
    let ties = ties.map(|(relation, field)| Expr::Column(Column::new(relation.cloned(), field.name())));
    let mut order = vec![SortExpr::new(moments.right.clone(), true, false)];
    // Nulls are the least: so the greatest stands last, or first where the join looks forward.
    order.extend(
        ties.filter(|tie| !is_tied(tie)).map(|tie| SortExpr::new(tie, moments.is_backward, moments.is_backward)),
    );
    let end = Expr::from(WindowFunction::new(neighbour, vec![moments.right.clone()]))
        .partition_by(keys.iter().map(|(_, key)| key.clone()).collect())
        .order_by(order)
        .build()?
        .alias(END);

    // A null equals nothing and is at no moment: such a row ends no stretch.
    let mut right = LogicalPlanBuilder::from(right).filter(moments.right.clone().is_not_null())?;
    for (_, key) in keys {
        right = right.filter(key.clone().is_not_null())?;
    }
    let right = right.window(vec![end])?.build()?;

    // The stretch of a row that is followed by one of the same moment is empty.
    let (at, begin, end) = (|| moments.left.clone(), moments.right.clone(), || col(END));
    let (begun, not_ended) = match (moments.is_backward, moments.counts_same) {
        (true, true) => (at().gt_eq(begin), at().lt(end())),
        (true, false) => (at().gt(begin), at().lt_eq(end())),
        (false, true) => (at().lt_eq(begin), at().gt(end())),
        (false, false) => (at().lt(begin), at().gt_eq(end())),
    };
    let on = keys.iter().map(|(left, right)| left.clone().eq(right.clone()));
    let on = on.chain([begun, end().is_null().or(not_ended)]);
    LogicalPlanBuilder::from(left).join_on(right, JoinType::Left, on)?.project(columns)?.build()
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
        context_with(&SessionSettings::default(), left, right)
    }

    fn context_with(settings: &SessionSettings, left: &[Row], right: &[Row]) -> SessionContext {
        let tables = [("core.l", table(left)), ("core.r", table(right))];
        let tables = tables.map(|(name, table)| (name.parse().unwrap(), table as _));
        session_with(settings, &Arc::new(RuntimeEnv::default()), 4, tables).unwrap()
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
    async fn a_condition_behind_it_is_asked_of_the_row_that_was_found() {
        for seed in 1..8 {
            let (left, right) = (rows(seed, 60, 4), rows(seed + 100, 90, 4));
            let context = context(&left, &right);
            for operator in [">=", "<"] {
                // The optimizer takes the condition below the join, where rows of the right side are gone before they are compared.
                let sql = format!(
                    "select l.k, l.at, l.v, r.at as a, r.v as b from core.l asof join core.r \
                     match_condition (l.at {operator} r.at) on l.k = r.k where r.v = 'w3' and l.at > 2"
                );
                let mut kept = expected(&left, &right, operator);
                kept.retain(|row| {
                    let cells: Vec<&str> = row.split('|').collect();
                    cells[4] == "w3" && cells[1].parse::<i64>().is_ok_and(|at| at > 2)
                });
                assert_eq!(select(&context, &sql).await.unwrap(), kept, "seed {seed} {operator}");
            }
        }
    }

    #[tokio::test]
    async fn it_is_a_merge_that_goes_through_both_sides_once() {
        // One key: a join that compares all pairs would look at billions.
        let many: Vec<Row> = (0..60_000).map(|at| (Some(1), Some(2 * at), Some(at % 5))).collect();
        let shifted: Vec<Row> = many.iter().map(|row| (row.0, row.1.map(|at| at + 1), row.2)).collect();
        let sql = "select count(*) as n, sum(l.at - r.at) as far from core.l asof join core.r match_condition (l.at >= r.at) on l.k = r.k";
        for is_frugal in [false, true] {
            let settings = SessionSettings { is_frugal, ..SessionSettings::default() };
            let context = context_with(&settings, &shifted, &many);
            let plan = select(&context, &format!("explain {sql}")).await.unwrap().concat();
            assert!(plan.contains("AsOfMergeExec") && !plan.contains("HashJoinExec"), "{plan}");
            // What the window has sorted is not sorted again.
            assert_eq!(plan.matches("SortExec").count(), 2, "{plan}");
            assert_eq!(select(&context, sql).await.unwrap(), ["60000|60000"]);
        }
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
