//! Which columns tell the rows of a plan apart, as far as the plan and the contracts of its inputs show it.

use std::collections::BTreeSet;

use datafusion::common::{DFSchema, JoinType, ScalarValue};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Distinct, Expr, Join, LogicalPlan, Operator, WindowFunctionDefinition};
use holdfast_types::TableName;

/// Positions of output columns no two rows of which have the same values. Empty: there is one row at most.
pub(crate) type Key = BTreeSet<usize>;

/// More are not kept: joins multiply them.
const KEYS_MAX: usize = 8;

/// Knows the keys of tables.
pub(crate) trait TableKeys {
    /// The keys of a table, as names of its columns.
    fn keys(&self, table: &TableName) -> Vec<Vec<String>>;
}

/// Knows no table: what it takes for a key the plan shows by itself.
struct NoKeys;

impl TableKeys for NoKeys {
    fn keys(&self, _: &TableName) -> Vec<Vec<String>> {
        Vec::new()
    }
}

/// Whether the plan itself shows that no two of its rows have the same values in the named columns, so that nobody has to look.
pub(crate) fn is_shown(plan: &LogicalPlan, columns: &[String]) -> bool {
    let index = |name: &String| plan.schema().fields().iter().position(|field| field.name() == name);
    let Some(columns) = columns.iter().map(index).collect::<Option<Key>>() else { return false };
    keys(plan, &NoKeys).iter().any(|key| key.is_subset(&columns))
}

/// The keys that are known of the plan's rows; none when nothing is known.
pub(crate) fn keys(plan: &LogicalPlan, tables: &dyn TableKeys) -> Vec<Key> {
    let below = |input: &LogicalPlan| keys(input, tables);
    let mut found = match plan {
        LogicalPlan::TableScan(scan) => {
            let name = scan.table_name.schema().and_then(|schema| TableName::new(schema, scan.table_name.table()).ok());
            let index = |name: &String| scan.projected_schema.fields().iter().position(|field| field.name() == name);
            let keys = name.map(|name| tables.keys(&name)).unwrap_or_default();
            keys.iter().filter_map(|key| key.iter().map(index).collect()).collect()
        }
        LogicalPlan::Projection(node) => through(&below(&node.input), &node.expr, node.input.schema()),
        LogicalPlan::Filter(node) => {
            let mut keys = below(&node.input);
            keys.extend(first_of_each(&node.predicate, &node.input));
            keys
        }
        LogicalPlan::Aggregate(node) => {
            let has_sets = node.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_)));
            if has_sets { Vec::new() } else { vec![(0..node.group_expr.len()).collect()] }
        }
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let mut keys = below(input);
            keys.push((0..input.schema().fields().len()).collect());
            keys
        }
        LogicalPlan::Distinct(Distinct::On(node)) => {
            let position = |on: &Expr| node.select_expr.iter().position(|expr| expr.clone().unalias() == *on);
            node.on_expr.iter().map(position).collect::<Option<Key>>().into_iter().collect()
        }
        LogicalPlan::Join(node) => of_join(node, tables),
        LogicalPlan::Window(node) => below(&node.input),
        LogicalPlan::SubqueryAlias(node) => below(&node.input),
        LogicalPlan::Sort(node) => below(&node.input),
        LogicalPlan::Limit(node) => below(&node.input),
        LogicalPlan::Repartition(node) => below(&node.input),
        _ => Vec::new(),
    };
    // A key that holds another says nothing more.
    found.sort_by_key(BTreeSet::len);
    found.dedup();
    let mut kept: Vec<Key> = Vec::new();
    for key in found {
        if kept.len() < KEYS_MAX && !kept.iter().any(|other| other.is_subset(&key)) {
            kept.push(key);
        }
    }
    kept
}

/// The keys behind a projection: those all of whose columns are passed on.
fn through(keys: &[Key], exprs: &[Expr], input: &DFSchema) -> Vec<Key> {
    let passed: Vec<Option<usize>> = exprs.iter().map(|expr| column_of(expr, input)).collect();
    let moved = |key: &Key| -> Option<Key> {
        key.iter().map(|index| passed.iter().position(|from| *from == Some(*index))).collect()
    };
    keys.iter().filter_map(moved).collect()
}

fn column_of(expr: &Expr, input: &DFSchema) -> Option<usize> {
    match expr {
        Expr::Alias(alias) => column_of(&alias.expr, input),
        Expr::Column(column) => input.maybe_index_of_column(column),
        _ => None,
    }
}

fn of_join(join: &Join, tables: &dyn TableKeys) -> Vec<Key> {
    let (left, right) = (keys(&join.left, tables), keys(&join.right, tables));
    let width = join.left.schema().fields().len();
    let right_moved: Vec<Key> = right.iter().map(|key| key.iter().map(|index| index + width).collect()).collect();
    let (left_columns, right_columns) = joined_columns(join);
    // Each row of the one side meets one row of the other at most.
    let one_right = right.iter().any(|key| key.is_subset(&right_columns));
    let one_left = left.iter().any(|key| key.is_subset(&left_columns));
    match join.join_type {
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => return left,
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => return right,
        _ => {}
    }
    let mut found = Vec::new();
    if one_right && matches!(join.join_type, JoinType::Inner | JoinType::Left) {
        found.extend(left.iter().cloned());
    }
    if one_left && matches!(join.join_type, JoinType::Inner | JoinType::Right) {
        found.extend(right_moved.iter().cloned());
    }
    for left in &left {
        found.extend(right_moved.iter().map(|right| left.union(right).copied().collect::<Key>()));
    }
    found
}

/// The columns of both sides that have to be equal.
fn joined_columns(join: &Join) -> (Key, Key) {
    let (mut left, mut right) = (Key::new(), Key::new());
    let mut pair = |one: &Expr, other: &Expr| {
        let sides = (column_of(one, join.left.schema()), column_of(other, join.right.schema()));
        if let (Some(of_left), Some(of_right)) = sides {
            left.insert(of_left);
            right.insert(of_right);
        }
    };
    for (one, other) in &join.on {
        pair(one, other);
    }
    for part in join.filter.iter().flat_map(split_conjunction) {
        if let Expr::BinaryExpr(binary) = part
            && binary.op == Operator::Eq
        {
            pair(&binary.left, &binary.right);
            pair(&binary.right, &binary.left);
        }
    }
    (left, right)
}

/// `row_number() over (partition by a …) = 1` leaves one row for each `a`.
fn first_of_each(predicate: &Expr, input: &LogicalPlan) -> Vec<Key> {
    let is_one = |expr: &Expr| {
        matches!(expr, Expr::Literal(value, _)
            if matches!(value, ScalarValue::Int64(Some(1)) | ScalarValue::UInt64(Some(1)) | ScalarValue::Int32(Some(1))))
    };
    let numbered = |expr: &Expr| {
        let column = match expr {
            Expr::Cast(cast) => column_of(&cast.expr, input.schema()),
            other => column_of(other, input.schema()),
        };
        column.and_then(|column| partition_of(input, column))
    };
    split_conjunction(predicate)
        .into_iter()
        .filter_map(|part| match part {
            Expr::BinaryExpr(binary) if matches!(binary.op, Operator::Eq | Operator::LtEq) => {
                if is_one(&binary.right) {
                    numbered(&binary.left)
                } else {
                    None
                }
            }
            _ => None,
        })
        .collect()
}

/// The partition of a column that is `row_number()`, as positions in the plan's output.
fn partition_of(plan: &LogicalPlan, column: usize) -> Option<Key> {
    match plan {
        LogicalPlan::Window(node) => {
            let width = node.input.schema().fields().len();
            let Some(index) = column.checked_sub(width) else { return partition_of(&node.input, column) };
            let Expr::WindowFunction(function) = node.window_expr.get(index)?.clone().unalias() else { return None };
            let is_number =
                matches!(&function.fun, WindowFunctionDefinition::WindowUDF(fun) if fun.name() == "row_number");
            let partition = &function.params.partition_by;
            is_number.then(|| partition.iter().map(|expr| column_of(expr, node.input.schema())).collect())?
        }
        LogicalPlan::Projection(node) => {
            let partition = partition_of(&node.input, column_of(node.expr.get(column)?, node.input.schema())?)?;
            through(&[partition], &node.expr, node.input.schema()).pop()
        }
        LogicalPlan::SubqueryAlias(node) => partition_of(&node.input, column),
        LogicalPlan::Filter(node) => partition_of(&node.input, column),
        LogicalPlan::Sort(node) => partition_of(&node.input, column),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};
    use datafusion::catalog::TableProvider;
    use datafusion::datasource::empty::EmptyTable;
    use datafusion::execution::runtime_env::RuntimeEnv;

    use super::*;
    use crate::session::{SessionSettings, session_with};

    async fn shows(sql: &str, columns: &[&str]) -> bool {
        let columns_of = ["a", "b"].map(|name| Field::new(name, DataType::Int64, true));
        let table: Arc<dyn TableProvider> = Arc::new(EmptyTable::new(Arc::new(Schema::new(columns_of.to_vec()))));
        let tables = ["core.x", "core.y"].map(|name| (name.parse().unwrap(), Arc::clone(&table)));
        let context = session_with(&SessionSettings::default(), &Arc::new(RuntimeEnv::default()), 1, tables).unwrap();
        let plan = context.state().create_logical_plan(sql).await.unwrap();
        is_shown(&plan, &columns.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[tokio::test]
    async fn a_plan_shows_its_keys_where_it_makes_them_and_nowhere_else() {
        let first = "select a, b from core.x qualify row_number() over (partition by a order by b) = 1";
        for (sql, columns, is_key) in [
            ("select a, b from core.x", &["a", "b"][..], false),
            ("select a, sum(b) as b from core.x group by a", &["a"], true),
            ("select a, sum(b) as b from core.x group by a", &["b"], false),
            ("select a, sum(b) as b from core.x group by rollup (a)", &["a"], false),
            (first, &["a"], true),
            (first, &["b"], false),
            (&format!("with f as ({first}) select f.a, y.b from f left join core.y as y on y.a = f.a"), &["a"], false),
            (
                &format!(
                    "with f as ({first}) select f.a, y.b from f left join (select a, max(b) as b from core.y group by a) as y on y.a = f.a"
                ),
                &["a"],
                true,
            ),
            (&format!("{first} union all select a, b from core.y"), &["a"], false),
        ] {
            assert_eq!(shows(sql, columns).await, is_key, "{sql}: {columns:?}");
        }
    }
}
