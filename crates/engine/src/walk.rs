//! Walks over SQL as it was parsed, by functions that are not generic over who looks.
//!
//! `sqlparser` compiles its walk over all five hundred kinds of nodes once more for each visitor. With all of the visitors that there are, those walks were more than half of what was compiled of this
//! crate. Here each walk is compiled once, and its visitor is asked through a pointer.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, OrderBy, Query, Select, SetExpr, Statement, TableFactor, ValueWithSpan, Visit, VisitMut, Visitor,
    VisitorMut,
};

/// Whoever looks at nodes and may stop the walk.
pub type DynVisitor<'a> = dyn Visitor<Break = ()> + 'a;
/// Whoever changes nodes and may stop the walk.
pub type DynVisitorMut<'a> = dyn VisitorMut<Break = ()> + 'a;

/// Something that can be walked over without a compilation of its own.
pub trait Walk {
    /// Shows each node to the visitor, until it breaks.
    fn walk(&self, visitor: &mut DynVisitor<'_>) -> ControlFlow<()>;

    /// Shows each expression, those within others behind them, until one breaks.
    fn each_expression(&self, mut look: impl FnMut(&Expr) -> ControlFlow<()>) -> ControlFlow<()>
    where
        Self: Sized,
    {
        self.walk(&mut Expressions(&mut look))
    }

    /// Shows each name of a table, until one breaks.
    fn each_relation(&self, mut look: impl FnMut(&ObjectName) -> ControlFlow<()>) -> ControlFlow<()>
    where
        Self: Sized,
    {
        self.walk(&mut Relations(&mut look))
    }
}

/// Something that can be changed in a walk without a compilation of its own.
pub trait WalkMut {
    /// Hands each node to the visitor, until it breaks.
    fn walk_mut(&mut self, visitor: &mut DynVisitorMut<'_>) -> ControlFlow<()>;

    /// Hands over each expression, those within others before them, until one breaks.
    fn each_expression_mut(&mut self, mut change: impl FnMut(&mut Expr) -> ControlFlow<()>) -> ControlFlow<()>
    where
        Self: Sized,
    {
        self.walk_mut(&mut ExpressionsMut(&mut change))
    }
}

macro_rules! walks {
    ($($node:ty),*) => {
        $(impl Walk for $node {
            fn walk(&self, visitor: &mut DynVisitor<'_>) -> ControlFlow<()> {
                self.visit(&mut Through(visitor))
            }
        })*
    };
}

walks!(Statement, Query, SetExpr, Option<OrderBy>, Expr);

impl WalkMut for Statement {
    fn walk_mut(&mut self, visitor: &mut DynVisitorMut<'_>) -> ControlFlow<()> {
        VisitMut::visit(self, &mut ThroughMut(visitor))
    }
}

impl WalkMut for Expr {
    fn walk_mut(&mut self, visitor: &mut DynVisitorMut<'_>) -> ControlFlow<()> {
        VisitMut::visit(self, &mut ThroughMut(visitor))
    }
}

struct Expressions<'a>(&'a mut dyn FnMut(&Expr) -> ControlFlow<()>);

impl Visitor for Expressions<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        (self.0)(expr)
    }
}

struct ExpressionsMut<'a>(&'a mut dyn FnMut(&mut Expr) -> ControlFlow<()>);

impl VisitorMut for ExpressionsMut<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        (self.0)(expr)
    }
}

struct Relations<'a>(&'a mut dyn FnMut(&ObjectName) -> ControlFlow<()>);

impl Visitor for Relations<'_> {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        (self.0)(relation)
    }
}

struct Through<'a, 'b>(&'a mut DynVisitor<'b>);
struct ThroughMut<'a, 'b>(&'a mut DynVisitorMut<'b>);

macro_rules! passes_on {
    ($($call:ident($node:ty)),*) => {
        impl Visitor for Through<'_, '_> {
            type Break = ();

            $(fn $call(&mut self, node: &$node) -> ControlFlow<()> {
                self.0.$call(node)
            })*
        }

        impl VisitorMut for ThroughMut<'_, '_> {
            type Break = ();

            $(fn $call(&mut self, node: &mut $node) -> ControlFlow<()> {
                self.0.$call(node)
            })*
        }
    };
}

passes_on!(
    pre_visit_query(Query),
    post_visit_query(Query),
    pre_visit_select(Select),
    post_visit_select(Select),
    pre_visit_relation(ObjectName),
    post_visit_relation(ObjectName),
    pre_visit_table_factor(TableFactor),
    post_visit_table_factor(TableFactor),
    pre_visit_expr(Expr),
    post_visit_expr(Expr),
    pre_visit_statement(Statement),
    post_visit_statement(Statement),
    pre_visit_value(ValueWithSpan),
    post_visit_value(ValueWithSpan)
);
