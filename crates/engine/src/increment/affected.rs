//! The keys that a change of the inputs concerns.
//!
//! For rows that are taken one by one they are the keys of the changed rows, as they were and as they are, behind the same conditions.
//! A step that keeps keys apart passes them on. A join has those of both sides; where only one side has the key, it has those of that
//! side, and the keys of its rows that are joined to what changed in the other. These rows may be looked up as they are now: one that is
//! another now has a key that is affected anyway.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{JoinConstraint, JoinType, NullEquality, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{
    Distinct, EmptyRelation, Expr, ExprSchemable, Join, LogicalPlan, LogicalPlanBuilder, Projection, TableScan, cast,
    try_cast,
};
use holdfast_types::TableName;

use super::derive::{Asked, How, Lookup, Side, is_row_by_row};
use super::own::{OWN_TABLE, Own};
use super::restrict::{chosen, column, key_columns};
use super::{InputChange, Result, plain, table_name};

pub(super) struct Affected<'a> {
    pub(super) changes: &'a BTreeMap<TableName, InputChange>,
    /// All that the stage made from the old inputs.
    pub(super) current: &'a [Arc<dyn TableProvider>],
    /// The key's name there.
    pub(super) key: &'a str,
}

/// Rows as they were or as they are.
#[derive(Debug, Clone, Copy)]
enum Image {
    Removed,
    Added,
}

impl Affected<'_> {
    /// The keys, in the columns [`key_columns`], with repetitions. `None` when nothing changed that the plan reads.
    pub(super) fn keys(&self, asked: &Asked) -> Result<Option<LogicalPlan>> {
        if !self.is_changed(&asked.plan) {
            return Ok(None);
        }
        if is_row_by_row(&asked.plan) {
            return self.changed(&asked.plan, &asked.exprs).map(Some);
        }
        let types = types(asked)?;
        let mut parts = Vec::new();
        match &asked.how {
            How::Here => {
                return Err(DataFusionError::Internal("keys are chosen behind a step over many rows".to_owned()));
            }
            How::Through(input) => parts.extend(self.keys(input)?),
            How::Every(inputs) => {
                for input in inputs {
                    parts.extend(self.keys(input)?);
                }
            }
            How::Join(left, right) => {
                for (side, other) in [(left, right), (right, left)] {
                    match (side.as_ref(), other.as_ref()) {
                        (Side::Keyed(asked), _) => parts.extend(self.keys(asked)?),
                        (Side::Joined(lookup), Side::Keyed(keyed)) => parts.extend(self.joined(lookup, keyed)?),
                        // A change of it was found to mean a full refresh.
                        (Side::Joined(_) | Side::Opaque { .. }, _) => {}
                    }
                }
            }
        }
        let parts = parts.into_iter().map(|part| as_types(part, &types)).collect::<Result<Vec<_>>>()?;
        all_of(parts)
    }

    fn is_changed(&self, plan: &LogicalPlan) -> bool {
        plain::tables(plan).iter().any(|name| self.changes.contains_key(name))
    }

    /// The values of `exprs` in the rows that changed, each once.
    fn changed(&self, plan: &LogicalPlan, exprs: &[Expr]) -> Result<LogicalPlan> {
        let removed = valued(self.image(plan, Image::Removed)?, exprs)?;
        let added = valued(self.image(plan, Image::Added)?, exprs)?;
        once(LogicalPlanBuilder::from(removed).union(added)?.build()?)
    }

    /// The same steps over the changed rows alone. What is no table has none.
    fn image(&self, plan: &LogicalPlan, image: Image) -> Result<LogicalPlan> {
        let over_changes = plan.clone().transform_up(|node| match &node {
            LogicalPlan::TableScan(scan) => {
                let change = table_name(&scan.table_name).and_then(|name| self.changes.get(&name));
                let Some(change) = change else { return Ok(Transformed::yes(empty(&node))) };
                let rows = match image {
                    Image::Removed => &change.removed,
                    Image::Added => &change.added,
                };
                let source = provider_as_source(Arc::clone(rows));
                Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source, ..scan.clone() })))
            }
            LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => Ok(Transformed::yes(empty(&node))),
            _ => Ok(Transformed::no(node)),
        })?;
        Ok(over_changes.data)
    }

    /// The keys of the rows that are joined to what changed in the other side.
    fn joined(&self, lookup: &Lookup, keyed: &Asked) -> Result<Option<LogicalPlan>> {
        let Some(changed) = self.keys(&lookup.asked)? else { return Ok(None) };
        match &lookup.own {
            None => {
                let rows = chosen(Arc::clone(&keyed.plan), &lookup.by, changed)?;
                once(valued(rows, &keyed.exprs)?).map(Some)
            }
            Some(Own::By { exprs, .. }) => self.own(exprs, &changed),
            Some(Own::Joined { column, name, is_all }) => {
                let joined = Expr::Column(column.clone());
                let data_type = joined.get_type(lookup.asked.plan.schema())?;
                let own = cast(Expr::Column(datafusion::common::Column::new(Some(OWN_TABLE), name)), data_type.clone());
                self.own(&[own], &self.seen_before(&lookup.asked, &joined, &data_type, *is_all)?)
            }
        }
    }

    /// The keys of the stage's own rows with these values.
    fn own(&self, exprs: &[Expr], values: &LogicalPlan) -> Result<Option<LogicalPlan>> {
        let mut parts = Vec::with_capacity(self.current.len());
        for rows in self.current {
            let rows = LogicalPlanBuilder::scan(OWN_TABLE, provider_as_source(Arc::clone(rows)), None)?.build()?;
            let key = Expr::Column(datafusion::common::Column::new(Some(OWN_TABLE), self.key));
            parts.push(once(valued(chosen(Arc::new(rows), exprs, values.clone())?, &[key])?)?);
        }
        all_of(parts)
    }

    /// What the stage's own rows have of a joined side's column when they are joined to rows of it that changed: the value of a removed
    /// row, that of a row that stayed beside an added one, or nothing where an added row is the first of its kind.
    fn seen_before(&self, joined: &Asked, shown: &Expr, data_type: &DataType, is_all: bool) -> Result<LogicalPlan> {
        let removed = self.image(&joined.plan, Image::Removed)?;
        let added = self.image(&joined.plan, Image::Added)?;
        let names = key_columns(joined.exprs.len());
        let added_keys = once(valued(added, &joined.exprs)?)?;
        let stayed = chosen(Arc::clone(&joined.plan), &joined.exprs, added_keys.clone())?;
        let first = if is_all {
            let removed_keys = valued(removed.clone(), &joined.exprs)?;
            let (left, right) = (aliased(added_keys, "added")?, aliased(removed_keys, "removed")?);
            let on = names.iter().map(|name| {
                let of = |table: &str| Expr::Column(datafusion::common::Column::new(Some(table), name));
                (of("added"), of("removed"))
            });
            let on = on.collect();
            LogicalPlan::Join(Join::try_new(
                Arc::new(left),
                Arc::new(right),
                on,
                None,
                JoinType::LeftAnti,
                JoinConstraint::On,
                NullEquality::NullEqualsNull,
                false,
            )?)
        } else {
            added_keys
        };
        let nothing = Expr::Literal(ScalarValue::try_from(data_type)?, None);
        let values = [
            valued(removed, std::slice::from_ref(shown))?,
            valued(stayed, std::slice::from_ref(shown))?,
            valued(first, &[nothing])?,
        ];
        match all_of(values.to_vec())? {
            Some(values) => once(values),
            None => Err(DataFusionError::Internal("no values".to_owned())),
        }
    }
}

/// The keys under the key's name and in its type, each once.
pub(super) fn named(keys: LogicalPlan, key: &str, data_type: &DataType) -> Result<LogicalPlan> {
    let keys = as_types(keys, std::slice::from_ref(data_type))?;
    let [name] = key_columns(1).try_into().map_err(|_| DataFusionError::Internal("keys are one column".to_owned()))?;
    let named = Projection::try_new(vec![column(&name).alias(key)], Arc::new(keys))?;
    once(LogicalPlan::Projection(named))
}

/// No key.
pub(super) fn nothing(asked: &Asked) -> Result<LogicalPlan> {
    valued(empty(&asked.plan), &asked.exprs)
}

fn types(asked: &Asked) -> Result<Vec<DataType>> {
    asked.exprs.iter().map(|expr| expr.get_type(asked.plan.schema())).collect()
}

/// The values of the expressions, in the columns [`key_columns`].
fn valued(plan: LogicalPlan, exprs: &[Expr]) -> Result<LogicalPlan> {
    let named = exprs.iter().zip(key_columns(exprs.len())).map(|(expr, name)| expr.clone().alias(name)).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(named, Arc::new(plan))?))
}

/// Keys of a side that has them in a wider type. One that does not fit is no key here, and becomes NULL: one key too many at most.
fn as_types(keys: LogicalPlan, types: &[DataType]) -> Result<LogicalPlan> {
    if keys.schema().fields().iter().zip(types).all(|(field, wanted)| field.data_type() == wanted) {
        return Ok(keys);
    }
    let exprs = key_columns(types.len())
        .into_iter()
        .zip(types)
        .map(|(name, wanted)| try_cast(column(&name), wanted.clone()).alias(name));
    Ok(LogicalPlan::Projection(Projection::try_new(exprs.collect(), Arc::new(keys))?))
}

fn all_of(parts: Vec<LogicalPlan>) -> Result<Option<LogicalPlan>> {
    let mut all = None;
    for part in parts {
        all = Some(match all {
            None => part,
            Some(before) => LogicalPlanBuilder::from(before).union(part)?.build()?,
        });
    }
    Ok(all)
}

fn once(plan: LogicalPlan) -> Result<LogicalPlan> {
    Ok(LogicalPlan::Distinct(Distinct::All(Arc::new(plan))))
}

fn aliased(plan: LogicalPlan, name: &str) -> Result<LogicalPlan> {
    LogicalPlanBuilder::from(plan).alias(name)?.build()
}

fn empty(plan: &LogicalPlan) -> LogicalPlan {
    LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::clone(plan.schema()) })
}
