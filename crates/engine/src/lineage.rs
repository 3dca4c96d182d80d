//! Where columns come from, read off the plan.
//!
//! One rule tells the two kinds of origin apart. A column comes *from* the columns that its expression names, through CTEs, joins,
//! aggregates, windows, unions and subqueries. What decides which *rows* there are is kept beside it, for the table as a whole: filters,
//! join keys, grouping, `distinct on`, limits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, JoinType};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::utils::grouping_set_to_exprlist;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan, Subquery, TableScan};
use holdfast_types::TableName;
use serde::Serialize;

/// A column of a table of the lake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColumnName {
    /// The table.
    pub table: TableName,
    /// The column.
    pub column: String,
}

impl std::fmt::Display for ColumnName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.table, self.column)
    }
}

impl Serialize for ColumnName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Columns of inputs.
pub type Origins = BTreeSet<ColumnName>;

/// What the columns and the rows of a table come from: columns of the tables that its stage reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Each column and what its values come from, in the table's order.
    pub columns: Vec<(String, Origins)>,
    /// What decides which rows there are.
    pub rows: Origins,
}

impl Lineage {
    /// Of a plan.
    pub(crate) fn of(plan: &LogicalPlan) -> Self {
        let traced = Tracer::default().trace(plan);
        let names = plan.schema().fields().iter().map(|field| field.name().clone());
        Self { columns: names.zip(traced.columns).collect(), rows: traced.rows }
    }

    /// What one column comes from.
    pub fn column(&self, name: &str) -> Option<&Origins> {
        self.columns.iter().find(|(column, _)| column == name).map(|(_, origins)| origins)
    }
}

/// What a column comes from in the end: over any number of stages, columns of tables that no stage makes.
pub fn to_the_source(lineages: &BTreeMap<TableName, &Lineage>, column: &ColumnName) -> Origins {
    let mut found = Origins::new();
    let mut seen = Origins::new();
    let mut open = VecDeque::from([column.clone()]);
    while let Some(column) = open.pop_front() {
        if !seen.insert(column.clone()) {
            continue;
        }
        match lineages.get(&column.table) {
            Some(lineage) => open.extend(lineage.column(&column.column).into_iter().flatten().cloned()),
            None => {
                found.insert(column);
            }
        }
    }
    found
}

/// What each output column of a node comes from, and what decided which rows come out of it.
#[derive(Debug, Clone, Default)]
struct Traced {
    columns: Vec<Origins>,
    rows: Origins,
}

#[derive(Default)]
struct Tracer<'a> {
    /// The queries around the subquery that is being looked at.
    outer: Vec<(&'a DFSchema, Vec<Origins>)>,
    /// Recursive queries, as far as they are known.
    working_tables: BTreeMap<String, Vec<Origins>>,
}

impl<'a> Tracer<'a> {
    fn trace(&mut self, plan: &'a LogicalPlan) -> Traced {
        match plan {
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::Projection(node) => {
                let input = self.trace(&node.input);
                self.project(input, node.input.schema(), &node.expr)
            }
            LogicalPlan::Filter(node) => {
                let mut traced = self.trace(&node.input);
                let origins = self.expression(&node.predicate, node.input.schema(), &mut traced);
                traced.rows.extend(origins);
                traced
            }
            LogicalPlan::Window(node) => {
                let input = self.trace(&node.input);
                let mut traced = self.project(input.clone(), node.input.schema(), &node.window_expr);
                traced.columns.splice(0..0, input.columns);
                traced
            }
            LogicalPlan::Aggregate(node) => {
                let mut input = self.trace(&node.input);
                let groups: Vec<Expr> = grouping_set_to_exprlist(&node.group_expr)
                    .map(|groups| groups.into_iter().cloned().collect())
                    .unwrap_or_default();
                let mut columns = Vec::with_capacity(node.schema.fields().len());
                for group in &groups {
                    let origins = self.owned_expression(group, node.input.schema(), &mut input);
                    input.rows.extend(origins.iter().cloned());
                    columns.push(origins);
                }
                // Grouping sets have a column of their own that says which set a row is of.
                let extra = node.schema.fields().len().saturating_sub(groups.len() + node.aggr_expr.len());
                columns.extend(std::iter::repeat_n(Origins::new(), extra));
                for expr in &node.aggr_expr {
                    columns.push(self.expression(expr, node.input.schema(), &mut input));
                }
                Traced { columns, rows: input.rows }
            }
            LogicalPlan::Join(node) => {
                let left = self.trace(&node.left);
                let right = self.trace(&node.right);
                let mut rows = left.rows.clone();
                rows.extend(right.rows.iter().cloned());
                let (mut of_left, mut of_right) = (left.clone(), right.clone());
                for (left_key, right_key) in &node.on {
                    rows.extend(self.expression(left_key, node.left.schema(), &mut of_left));
                    rows.extend(self.expression(right_key, node.right.schema(), &mut of_right));
                }
                let mut both: Vec<Origins> = left.columns.clone();
                both.extend(right.columns.iter().cloned());
                let columns = match node.join_type {
                    JoinType::LeftSemi | JoinType::LeftAnti => left.columns,
                    JoinType::RightSemi | JoinType::RightAnti => right.columns,
                    JoinType::LeftMark => left.columns.into_iter().chain([Origins::new()]).collect(),
                    JoinType::RightMark => right.columns.into_iter().chain([Origins::new()]).collect(),
                    _ => both.clone(),
                };
                if let Some(filter) = &node.filter {
                    for column in filter.column_refs() {
                        let left = node.left.schema().maybe_index_of_column(column);
                        let right = node.right.schema().maybe_index_of_column(column);
                        let index = left.or_else(|| right.map(|index| index + node.left.schema().fields().len()));
                        rows.extend(index.and_then(|index| both.get(index)).into_iter().flatten().cloned());
                    }
                    rows.extend(self.outer_columns(filter));
                }
                rows.extend(of_left.rows);
                rows.extend(of_right.rows);
                Traced { columns, rows }
            }
            LogicalPlan::Union(node) => self.merged(node.inputs.iter().map(AsRef::as_ref)),
            LogicalPlan::Distinct(Distinct::On(node)) => {
                let mut input = self.trace(&node.input);
                let schema = node.input.schema();
                let sorts = node.sort_expr.iter().flatten().map(|sort| &sort.expr);
                for expr in node.on_expr.iter().chain(sorts) {
                    let origins = self.expression(expr, schema, &mut input);
                    input.rows.extend(origins);
                }
                self.project(input, schema, &node.select_expr)
            }
            LogicalPlan::Limit(node) => {
                let mut traced = self.trace(&node.input);
                // Which rows are the first depends on the order, which may stand below the projection.
                let mut below: &LogicalPlan = &node.input;
                while let LogicalPlan::Projection(projection) = below {
                    below = &projection.input;
                }
                if let LogicalPlan::Sort(sort) = below {
                    let mut input = self.trace(&sort.input);
                    for key in &sort.expr {
                        let origins = self.expression(&key.expr, sort.input.schema(), &mut input);
                        traced.rows.extend(origins);
                    }
                }
                traced
            }
            LogicalPlan::Unnest(node) => {
                let input = self.trace(&node.input);
                let column = |index: &usize| input.columns.get(*index).cloned().unwrap_or_default();
                Traced { columns: node.dependency_indices.iter().map(column).collect(), rows: input.rows }
            }
            LogicalPlan::RecursiveQuery(node) => {
                let start = self.trace(&node.static_term);
                self.working_tables.insert(node.name.clone(), start.columns.clone());
                // What a column comes from can pass from column to column: a round for each is enough.
                let mut traced = start;
                for _ in 0..traced.columns.len().max(1) {
                    let step = self.trace(&node.recursive_term);
                    traced = both(traced, step);
                    self.working_tables.insert(node.name.clone(), traced.columns.clone());
                }
                traced
            }
            LogicalPlan::Values(node) => {
                let rows = node.values.first().map_or(0, Vec::len);
                Traced { columns: vec![Origins::new(); rows], rows: Origins::new() }
            }
            LogicalPlan::Subquery(node) => self.trace(&node.subquery),
            LogicalPlan::SubqueryAlias(node) => self.trace(&node.input),
            LogicalPlan::Sort(node) => self.trace(&node.input),
            LogicalPlan::Repartition(node) => self.trace(&node.input),
            LogicalPlan::Distinct(Distinct::All(input)) => self.trace(input),
            other => self.anything_from_anything(other),
        }
    }

    fn scan(&self, scan: &TableScan) -> Traced {
        let name = scan.table_name.schema().and_then(|schema| TableName::new(schema, scan.table_name.table()).ok());
        let names = scan.projected_schema.fields().iter().map(|field| field.name().clone());
        let columns = match name {
            Some(table) => names.map(|column| Origins::from([ColumnName { table: table.clone(), column }])).collect(),
            // The rows that a recursive query has so far.
            None => match self.working_tables.get(scan.table_name.table()) {
                Some(known) => known.clone(),
                None => names.map(|_| Origins::new()).collect(),
            },
        };
        Traced { columns, rows: Origins::new() }
    }

    fn project(&mut self, mut input: Traced, schema: &'a DFSchema, exprs: &'a [Expr]) -> Traced {
        let columns = exprs.iter().map(|expr| self.expression(expr, schema, &mut input)).collect();
        Traced { columns, rows: input.rows }
    }

    fn merged(&mut self, inputs: impl Iterator<Item = &'a LogicalPlan>) -> Traced {
        inputs.map(|input| self.trace(input)).reduce(both).unwrap_or_default()
    }

    /// A node that is not known here: every column may come from everything below it.
    fn anything_from_anything(&mut self, plan: &'a LogicalPlan) -> Traced {
        let below = self.merged(plan.inputs().into_iter());
        let all: Origins = below.columns.into_iter().flatten().collect();
        Traced { columns: vec![all; plan.schema().fields().len()], rows: below.rows }
    }

    /// What an expression over the columns of `input` names. What decides rows in its subqueries is added to `input.rows`.
    fn expression(&mut self, expr: &'a Expr, schema: &'a DFSchema, input: &mut Traced) -> Origins {
        let mut origins = self.columns_of(expr, schema, input);
        let mut subqueries: Vec<(&'a Subquery, bool)> = Vec::new();
        let _: Result<TreeNodeRecursion, DataFusionError> = expr.apply(|part| {
            match part {
                Expr::ScalarSubquery(subquery) => subqueries.push((subquery, false)),
                Expr::InSubquery(inner) => subqueries.push((&inner.subquery, false)),
                Expr::SetComparison(inner) => subqueries.push((&inner.subquery, false)),
                Expr::Exists(inner) => subqueries.push((&inner.subquery, true)),
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        });
        for (subquery, is_exists) in subqueries {
            self.outer.push((schema, input.columns.clone()));
            let inner = self.trace(&subquery.subquery);
            self.outer.pop();
            // Whether there is a row is the value of `exists`.
            if is_exists {
                origins.extend(inner.rows);
            } else {
                origins.extend(inner.columns.into_iter().flatten());
                input.rows.extend(inner.rows);
            }
        }
        origins
    }

    /// As [`Self::expression`], for an expression that is not part of the plan, and so without subqueries.
    fn owned_expression(&self, expr: &Expr, schema: &DFSchema, input: &mut Traced) -> Origins {
        self.columns_of(expr, schema, input)
    }

    fn columns_of(&self, expr: &Expr, schema: &DFSchema, input: &Traced) -> Origins {
        let mut origins = self.outer_columns(expr);
        for column in expr.column_refs() {
            origins.extend(lookup(schema, &input.columns, column).into_iter().flatten().cloned());
        }
        origins
    }

    fn outer_columns(&self, expr: &Expr) -> Origins {
        let mut origins = Origins::new();
        let _: Result<TreeNodeRecursion, DataFusionError> = expr.apply(|part| {
            if let Expr::OuterReferenceColumn(_, column) = part {
                let found = self.outer.iter().rev().find_map(|(schema, columns)| lookup(schema, columns, column));
                origins.extend(found.into_iter().flatten().cloned());
            }
            Ok(TreeNodeRecursion::Continue)
        });
        origins
    }
}

fn lookup<'c>(schema: &DFSchema, columns: &'c [Origins], column: &Column) -> Option<&'c Origins> {
    columns.get(schema.maybe_index_of_column(column)?)
}

fn both(mut left: Traced, right: Traced) -> Traced {
    for (left, right) in left.columns.iter_mut().zip(right.columns) {
        left.extend(right);
    }
    left.rows.extend(right.rows);
    left
}
