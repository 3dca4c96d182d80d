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
use datafusion::common::{Column, DFSchema, JoinConstraint, JoinType, NullEquality, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{
    Distinct, EmptyRelation, Expr, ExprSchemable, Join, LogicalPlan, LogicalPlanBuilder, Projection, TableScan, Union,
    cast, try_cast,
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
            return self.changed(&asked.plan, &asked.exprs);
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
    fn changed(&self, plan: &LogicalPlan, exprs: &[Expr]) -> Result<Option<LogicalPlan>> {
        let mut parts = Vec::new();
        for image in [Image::Removed, Image::Added] {
            if let Some(rows) = self.image(plan, image)? {
                parts.push(valued(rows, exprs)?);
            }
        }
        all_of(parts)?.map(once).transpose()
    }

    /// The same steps over the changed rows alone. `None` where nothing changed.
    fn image(&self, plan: &LogicalPlan, image: Image) -> Result<Option<LogicalPlan>> {
        match plan {
            LogicalPlan::TableScan(scan) => {
                let Some(change) = table_name(&scan.table_name).and_then(|name| self.changes.get(&name)) else {
                    return Ok(None);
                };
                let rows = match image {
                    Image::Removed => &change.removed,
                    Image::Added => &change.added,
                };
                let source = provider_as_source(Arc::clone(rows));
                Ok(Some(LogicalPlan::TableScan(TableScan { source, ..scan.clone() })))
            }
            LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => Ok(None),
            LogicalPlan::Union(union) => {
                let mut parts = Vec::with_capacity(union.inputs.len());
                for input in &union.inputs {
                    if let Some(rows) = self.image(input, image)? {
                        parts.push(under_names_of(rows, &union.schema)?);
                    }
                }
                match parts.len() {
                    0 | 1 => Ok(parts.pop()),
                    _ => {
                        let inputs = parts.into_iter().map(Arc::new).collect();
                        Ok(Some(LogicalPlan::Union(Union { inputs, schema: Arc::clone(&union.schema) })))
                    }
                }
            }
            _ => {
                let Some(input) = plan.inputs().first().map(|input| self.image(input, image)).transpose()?.flatten()
                else {
                    return Ok(None);
                };
                Ok(Some(plan.clone().map_children(|_| Ok(Transformed::yes(input.clone())))?.data))
            }
        }
    }

    /// The keys of the rows that are joined to what changed in the other side.
    fn joined(&self, lookup: &Lookup, keyed: &Asked) -> Result<Option<LogicalPlan>> {
        let Some(changed) = self.keys(&lookup.asked)? else { return Ok(None) };
        // A table that is not there yet has nothing to be looked up in.
        match lookup.own.as_ref().filter(|_| !self.current.is_empty()) {
            None => {
                let rows = chosen(Arc::clone(&keyed.plan), &lookup.by, changed)?;
                once(valued(rows, &keyed.exprs)?).map(Some)
            }
            Some(Own::By { exprs, .. }) => self.own(exprs, &changed),
            Some(Own::Joined { column, name, is_all }) => {
                let joined = Expr::Column(column.clone());
                let data_type = joined.get_type(lookup.asked.plan.schema())?;
                let own = cast(Expr::Column(Column::new(Some(OWN_TABLE), name)), data_type.clone());
                match self.seen_before(&lookup.asked, &joined, &data_type, *is_all)? {
                    Some(values) => self.own(&[own], &values),
                    None => Ok(None),
                }
            }
        }
    }

    /// The keys of the stage's own rows with these values.
    fn own(&self, exprs: &[Expr], values: &LogicalPlan) -> Result<Option<LogicalPlan>> {
        let mut parts = Vec::with_capacity(self.current.len());
        for rows in self.current {
            let rows = LogicalPlanBuilder::scan(OWN_TABLE, provider_as_source(Arc::clone(rows)), None)?.build()?;
            let key = Expr::Column(Column::new(Some(OWN_TABLE), self.key));
            parts.push(once(valued(chosen(Arc::new(rows), exprs, values.clone())?, &[key])?)?);
        }
        all_of(parts)
    }

    /// What the stage's own rows have of a joined side's column when they are joined to rows of it that changed: the value of a removed
    /// row, that of a row that stayed beside an added one, or nothing where an added row is the first of its kind.
    fn seen_before(
        &self,
        joined: &Asked,
        shown: &Expr,
        data_type: &DataType,
        is_all: bool,
    ) -> Result<Option<LogicalPlan>> {
        let one = std::slice::from_ref(shown);
        let mut values = Vec::new();
        let removed = self.image(&joined.plan, Image::Removed)?;
        if let Some(removed) = &removed {
            values.push(valued(removed.clone(), one)?);
        }
        if let Some(added) = self.image(&joined.plan, Image::Added)? {
            let added = once(valued(added, &joined.exprs)?)?;
            values.push(valued(chosen(Arc::clone(&joined.plan), &joined.exprs, added.clone())?, one)?);
            let first = match removed {
                Some(removed) if is_all => without(added, self.gone(joined, shown, removed)?)?,
                _ => added,
            };
            values.push(valued(first, &[Expr::Literal(ScalarValue::try_from(data_type)?, None)])?);
        }
        all_of(values)?.map(once).transpose()
    }

    /// What removed rows are asked for by, without rows that were added, too: those may have come and gone between the two versions.
    fn gone(&self, joined: &Asked, shown: &Expr, removed: LogicalPlan) -> Result<LogicalPlan> {
        let compared: Vec<Expr> = joined.exprs.iter().chain([shown]).cloned().collect();
        let mut gone = valued(removed, &compared)?;
        if let Some(added) = self.image(&joined.plan, Image::Added)? {
            gone = without(gone, valued(added, &compared)?)?;
        }
        let names = key_columns(joined.exprs.len());
        // Without the table's name that the comparison gave it.
        let named = names.iter().zip(gone.schema().columns()).map(|(name, column)| Expr::Column(column).alias(name));
        Ok(LogicalPlan::Projection(Projection::try_new(named.collect(), Arc::new(gone))?))
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

/// What keys are called beside others that they are compared with.
const KEYS: &str = "the keys";
const OTHERS: &str = "the other keys";

/// The keys that are not among the others.
fn without(keys: LogicalPlan, others: LogicalPlan) -> Result<LogicalPlan> {
    let names = key_columns(keys.schema().fields().len());
    let of = |table: &str, name: &str| Expr::Column(Column::new(Some(table), name));
    let on = names.iter().map(|name| (of(KEYS, name), of(OTHERS, name))).collect();
    Ok(LogicalPlan::Join(Join::try_new(
        Arc::new(aliased(keys, KEYS)?),
        Arc::new(aliased(others, OTHERS)?),
        on,
        None,
        JoinType::LeftAnti,
        JoinConstraint::On,
        NullEquality::NullEqualsNull,
        false,
    )?))
}

/// The rows of an input of a union under the names of the union, so that it may stand alone.
fn under_names_of(plan: LogicalPlan, schema: &DFSchema) -> Result<LogicalPlan> {
    let inputs = plan.schema().columns();
    let named = inputs.into_iter().zip(schema.iter()).map(|(input, (qualifier, field))| {
        Expr::Column(input).alias_qualified(qualifier.cloned(), field.name().clone())
    });
    Ok(LogicalPlan::Projection(Projection::try_new(named.collect(), Arc::new(plan))?))
}

fn aliased(plan: LogicalPlan, name: &str) -> Result<LogicalPlan> {
    LogicalPlanBuilder::from(plan).alias(name)?.build()
}

fn empty(plan: &LogicalPlan) -> LogicalPlan {
    LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema: Arc::clone(plan.schema()) })
}
