//! The row filter of a role with the values of one principal in it.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Value, VisitorMut,
};
use holdfast_engine::walk::{Walk, WalkMut};

use super::RowRule;
use crate::Principal;

/// `principal()`: the name of who asks.
const PRINCIPAL: &str = "principal";
/// `attribute('region')`: one of the values that who asks has. In the list of `in (…)` all of them.
const ATTRIBUTE: &str = "attribute";

/// A condition over the columns of one table, without anything that is still open.
#[derive(Debug, Clone)]
pub struct BoundFilter {
    /// `None` is met by nothing.
    condition: Option<Expr>,
    sql: String,
    place: String,
}

impl BoundFilter {
    /// All of the rules together; `None` where there is none, which is all rows.
    pub(crate) fn of<'a>(rules: impl Iterator<Item = &'a RowRule>, principal: &Principal) -> Option<Self> {
        let mut whole: Option<Self> = None;
        for rule in rules {
            let mut condition = rule.condition.clone();
            let mut binder = Binder { principal, is_empty: false };
            let _ = condition.walk_mut(&mut binder);
            let bound = (!binder.is_empty).then(|| Expr::Nested(Box::new(condition)));
            whole = Some(match whole {
                None => Self { condition: bound, sql: String::new(), place: rule.place.clone() },
                Some(before) => Self {
                    condition: before.condition.zip(bound).map(|(left, right)| both(left, BinaryOperator::And, right)),
                    ..before
                },
            });
        }
        whole.map(|whole| Self { sql: whole.condition.as_ref().map_or_else(String::new, Expr::to_string), ..whole })
    }

    /// Met by every row.
    pub(crate) fn everything() -> Self {
        let condition = Expr::Value(Value::Boolean(true).into());
        Self { sql: condition.to_string(), condition: Some(condition), place: String::new() }
    }

    /// Whether nothing meets it: the principal has none of the values that it asks for.
    pub fn is_empty(&self) -> bool {
        self.condition.is_none()
    }

    /// The condition as SQL.
    pub fn sql(&self) -> &str {
        if self.condition.is_none() { "false" } else { &self.sql }
    }

    /// The condition.
    pub(crate) fn condition(&self) -> Expr {
        self.condition.clone().unwrap_or_else(|| Expr::Value(Value::Boolean(false).into()))
    }

    /// `file:line:column`.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }
}

/// One of the conditions, or none of them where there is none.
pub(crate) fn any_of(filters: &[BoundFilter]) -> Expr {
    let mut conditions = filters.iter().map(BoundFilter::condition);
    let Some(first) = conditions.next() else { return Expr::Value(Value::Boolean(false).into()) };
    conditions.fold(first, |left, right| both(left, BinaryOperator::Or, right))
}

fn both(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::Nested(Box::new(Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }))
}

/// Puts the principal's values into a condition, as literals of the tree: they never go through text.
struct Binder<'a> {
    principal: &'a Principal,
    /// A value was asked for that the principal does not have.
    is_empty: bool,
}

impl VisitorMut for Binder<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::InList { list, .. } = expr {
            let mut values = Vec::with_capacity(list.len());
            for item in list.drain(..) {
                match asked(&item) {
                    Some(Asked::Attribute(name)) => {
                        values.extend(
                            self.principal.attributes.get(&name).into_iter().flatten().map(|value| text(value)),
                        );
                    }
                    _ => values.push(item),
                }
            }
            self.is_empty |= values.is_empty();
            *list = values;
            return ControlFlow::Continue(());
        }
        match asked(expr) {
            Some(Asked::Principal) => *expr = text(&self.principal.name),
            Some(Asked::Attribute(name)) => match self.principal.attributes.get(&name).map(Vec::as_slice) {
                Some([value]) => *expr = text(value),
                // None is nothing to compare with, and of several nobody said which.
                _ => self.is_empty = true,
            },
            None => {}
        }
        ControlFlow::Continue(())
    }
}

/// The attributes that a condition asks for.
pub(crate) fn attributes_of(condition: &Expr) -> Vec<String> {
    let mut names = Vec::new();
    let _ = condition.each_expression(|expr| {
        if let Some(Asked::Attribute(name)) = asked(expr) {
            names.push(name);
        }
        ControlFlow::Continue(())
    });
    names
}

pub(super) enum Asked {
    Principal,
    Attribute(String),
}

/// What of the principal an expression asks for.
pub(super) fn asked(expr: &Expr) -> Option<Asked> {
    let Expr::Function(function) = expr else { return None };
    let FunctionArguments::List(list) = &function.args else { return None };
    let name = function.name.to_string().to_lowercase();
    match (name.as_str(), list.args.as_slice()) {
        (PRINCIPAL, []) => Some(Asked::Principal),
        (ATTRIBUTE, [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))]) => match &value.value {
            Value::SingleQuotedString(key) => Some(Asked::Attribute(key.clone())),
            _ => None,
        },
        _ => None,
    }
}

fn text(value: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(value.to_owned()).into())
}
