//! What the rules have to know about expressions.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator};

/// Whether values of a type are keys: equal ones are equal byte by byte, and no two that differ are taken for one.
pub(super) fn is_key_type(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => is_key_type(values),
        DataType::Timestamp(_, _) => true,
        DataType::Null => false,
        _ => {
            data_type.is_integer()
                || is_text(data_type)
                || is_bytes(data_type)
                || matches!(
                    data_type,
                    DataType::Boolean
                        | DataType::Date32
                        | DataType::Date64
                        | DataType::Decimal128(_, _)
                        | DataType::Decimal256(_, _)
                )
        }
    }
}

/// Whether a stored value of this type is the one that the query gave: the lake keeps moments in microseconds.
pub(super) fn is_kept_as_it_is(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(unit, _) => *unit == TimeUnit::Microsecond,
        DataType::Date64 | DataType::Decimal256(_, _) => false,
        _ => is_key_type(data_type),
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_bytes(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// Whether a cast keeps different values different and never fails.
pub(super) fn is_lossless(from: &DataType, to: &DataType) -> bool {
    let (from, to) = (unpacked(from), unpacked(to));
    if from == to || (is_text(from) && is_text(to)) || (is_bytes(from) && is_bytes(to)) {
        return true;
    }
    let bits = |data_type: &DataType| data_type.primitive_width().unwrap_or(0) * 8;
    if from.is_signed_integer() && to.is_signed_integer() || from.is_unsigned_integer() && to.is_unsigned_integer() {
        return bits(from) <= bits(to);
    }
    from.is_unsigned_integer() && to.is_signed_integer() && bits(from) < bits(to)
}

fn unpacked(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => unpacked(values),
        _ => data_type,
    }
}

/// An expression without the names that were given to it and its parts.
pub(super) fn bare(expr: &Expr) -> Expr {
    expr.clone().unalias_nested().data
}

/// The expression with its columns written as what they are made of below. `None` for a column that `below` does not know.
pub(super) fn substituted(expr: &Expr, below: &dyn Fn(&Column) -> Option<Expr>) -> Option<Expr> {
    let mut is_known = true;
    let written = expr
        .clone()
        .transform_down(|part| match &part {
            Expr::Column(column) => match below(column) {
                Some(made) => Ok(Transformed::new(bare(&made), true, TreeNodeRecursion::Jump)),
                None => {
                    is_known = false;
                    Ok(Transformed::no(part))
                }
            },
            _ => Ok(Transformed::no(part)),
        })
        .ok()?;
    is_known.then_some(written.data)
}

/// Whether all columns of the expression are of this schema.
pub(super) fn is_over(expr: &Expr, schema: &DFSchema) -> bool {
    is_of_its_row(expr) && expr.column_refs().into_iter().all(|column| schema.maybe_index_of_column(column).is_some())
}

/// Whether the value depends on nothing but the row's own columns.
pub(super) fn is_of_its_row(expr: &Expr) -> bool {
    let foreign = expr.exists(|part| {
        Ok(matches!(
            part,
            Expr::Exists(_)
                | Expr::InSubquery(_)
                | Expr::ScalarSubquery(_)
                | Expr::SetComparison(_)
                | Expr::OuterReferenceColumn(..)
                | Expr::AggregateFunction(_)
                | Expr::WindowFunction(_)
                | Expr::Unnest(_)
        ))
    });
    !foreign.unwrap_or(true)
}

/// Whether the value or a part of it is a floating point number.
pub(super) fn has_floats(expr: &Expr, schema: &DFSchema) -> bool {
    let found = expr.exists(|part| Ok(part.get_type(schema).is_ok_and(|data_type| data_type.is_floating())));
    found.unwrap_or(true)
}

/// Whether rows that are equal in all of `given` are equal in this expression.
pub(super) fn is_function_of(expr: &Expr, given: &[Expr]) -> bool {
    if given.contains(expr) {
        return true;
    }
    match expr {
        Expr::Literal(..) => true,
        Expr::Column(_) => false,
        _ if !is_of_its_row(expr) => false,
        _ => {
            let mut all = true;
            let seen = expr.apply_children(|part| {
                all &= is_function_of(part, given);
                Ok(if all { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
            });
            all && seen.is_ok()
        }
    }
}

/// Functions that give a value for every argument.
const TOTAL_FUNCTIONS: [&str; 16] = [
    "btrim",
    "coalesce",
    "concat",
    "concat_ws",
    "get_field",
    "ifnull",
    "lower",
    "ltrim",
    "md5",
    "nullif",
    "nvl",
    "rtrim",
    "sha256",
    "struct",
    "trim",
    "upper",
];

/// Whether the expression may fail for some row. It must not be worked out for rows that the query leaves out before.
pub(super) fn can_fail(expr: &Expr, schema: &DFSchema) -> bool {
    let found = expr.exists(|part| {
        Ok(match part {
            Expr::Column(_)
            | Expr::Literal(..)
            | Expr::Alias(_)
            | Expr::Not(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsTrue(_)
            | Expr::IsFalse(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNotFalse(_)
            | Expr::Case(_)
            | Expr::InList(_)
            | Expr::Between(_)
            | Expr::TryCast(_) => false,
            Expr::BinaryExpr(BinaryExpr { op, .. }) => !matches!(
                op,
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
                    | Operator::IsDistinctFrom
                    | Operator::IsNotDistinctFrom
                    | Operator::And
                    | Operator::Or
                    | Operator::StringConcat
            ),
            Expr::Cast(cast) => {
                let to = cast.field.data_type();
                !cast.expr.get_type(schema).is_ok_and(|from| {
                    is_lossless(&from, to) || is_text(to) && (from.is_integer() || from == DataType::Boolean)
                })
            }
            Expr::ScalarFunction(function) => !TOTAL_FUNCTIONS.contains(&function.name()),
            _ => true,
        })
    });
    found.unwrap_or(true)
}

/// The arguments of `coalesce` and its like, those of inner ones in their place; of everything else, itself.
pub(super) fn first_of(expr: &Expr) -> Vec<Expr> {
    match expr {
        Expr::ScalarFunction(function) if matches!(function.name(), "coalesce" | "nvl" | "ifnull") => {
            function.args.iter().flat_map(first_of).collect()
        }
        _ => vec![expr.clone()],
    }
}

/// Where the expression stands in the file, when one of its columns knows.
pub(super) fn place(expr: &Expr) -> Option<(usize, usize)> {
    let mut place = None;
    let seen = expr.apply(|part| {
        if let Some(span) = part.spans().and_then(|spans| spans.first())
            && let (Ok(line), Ok(column)) = (usize::try_from(span.start.line), usize::try_from(span.start.column))
            && line > 0
        {
            place = Some((line, column));
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    seen.ok().and(place)
}
