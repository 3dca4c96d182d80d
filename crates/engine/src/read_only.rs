//! What a reader's statement may be: a query, of a depth that every walk over it survives.

use std::ops::ControlFlow;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::walk::Walk;

/// How deeply operators may stand in one another. The parser limits parentheses itself, but not `1 + 1 + 1 …`, which is a tree of that depth.
const OPERATORS_DEEP_MAX: usize = 1_000;
/// The same of `union`, `except`, `intersect` and joins: walks over plans need more room for each.
const SETS_DEEP_MAX: usize = 200;
/// Tables that a statement names, each time it names one.
pub const RELATIONS_MAX: usize = 400;
/// Nodes of a plan.
const NODES_MAX: usize = 20_000;

/// What is refused to a reader, in words.
pub(crate) type Refusal = String;

/// Looks at a statement's text before it is parsed: a tree that is too deep could not even be dropped again.
///
/// # Errors
/// Says what is too deep, and the limit. A text that is no SQL is left to the parser.
pub(crate) fn check_text(sql: &str) -> Result<(), Refusal> {
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, sql).tokenize() else { return Ok(()) };
    // Of every open parenthesis the operators since the last comma, and the set operations.
    let mut open = vec![(0_usize, 0_usize)];
    let (mut operators, mut sets) = (0_usize, 0_usize);
    for token in &tokens {
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => open.push((0, 0)),
            Token::RParen | Token::RBracket | Token::RBrace => {
                if open.len() > 1
                    && let Some((inner, inner_sets)) = open.pop()
                {
                    operators -= inner;
                    sets -= inner_sets;
                }
                // `a[0][0]` and `f(x)(y)` go deeper with each.
                if matches!(token, Token::RBracket) {
                    deeper(&mut open, &mut operators);
                }
            }
            Token::Comma | Token::SemiColon => {
                if let Some((here, _)) = open.last_mut() {
                    operators -= std::mem::take(here);
                }
            }
            Token::Word(word) if is_set(word.keyword) => {
                sets += 1;
                if let Some((here, here_sets)) = open.last_mut() {
                    *here_sets += 1;
                    // Each side has operators of its own.
                    operators -= std::mem::take(here);
                }
            }
            token if is_operator(token) => deeper(&mut open, &mut operators),
            _ => {}
        }
        if operators > OPERATORS_DEEP_MAX {
            return Err(format!(
                "the statement has more than {OPERATORS_DEEP_MAX} operators in one expression, which is the limit: use `in (…)`, or join with a list"
            ));
        }
        if sets > SETS_DEEP_MAX {
            return Err(format!(
                "the statement has more than {SETS_DEEP_MAX} joins and unions in one another, which is the limit: ask in parts"
            ));
        }
    }
    Ok(())
}

fn deeper(open: &mut [(usize, usize)], operators: &mut usize) {
    if let Some((here, _)) = open.last_mut() {
        *here += 1;
        *operators += 1;
    }
}

fn is_set(keyword: Keyword) -> bool {
    matches!(keyword, Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::JOIN | Keyword::MINUS)
}

fn is_operator(token: &Token) -> bool {
    match token {
        Token::Word(word) => matches!(
            word.keyword,
            Keyword::AND
                | Keyword::OR
                | Keyword::XOR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::IN
                | Keyword::DIV
                | Keyword::COLLATE
                | Keyword::CASE
                | Keyword::AT
                | Keyword::EXISTS
                | Keyword::OVERLAPS
                | Keyword::REGEXP
                | Keyword::RLIKE
        ),
        Token::Number(..)
        | Token::Char(_)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::Whitespace(_)
        | Token::Period
        | Token::Placeholder(_)
        | Token::EOF => false,
        // Whatever else there is between two values stands for something deeper.
        _ => true,
    }
}

/// Whether the statement is a query, or a question about queries and tables, that names no more tables than it may.
///
/// # Errors
/// What is refused.
pub(crate) fn check_statement(statement: &Statement) -> Result<(), Refusal> {
    if !reads_only(statement) {
        return Err(not_a_query());
    }
    let Some(statement) = inner(statement) else { return Err(not_a_query()) };
    let mut relations = 0_usize;
    let counted = statement.each_relation(|_| {
        relations += 1;
        if relations > RELATIONS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if counted.is_break() {
        return Err(format!("the statement names more than {RELATIONS_MAX} tables, which is the limit: ask in parts"));
    }
    Ok(())
}

fn inner(statement: &Statement) -> Option<&SqlStatement> {
    match statement {
        Statement::Explain(explain) => inner(&explain.statement),
        Statement::Statement(statement) => Some(statement),
        _ => None,
    }
}

fn reads_only(statement: &Statement) -> bool {
    match statement {
        Statement::Explain(explain) => reads_only(&explain.statement),
        Statement::Statement(statement) => match statement.as_ref() {
            SqlStatement::Explain { statement, .. } => {
                reads_only(&Statement::Statement(Box::new(statement.as_ref().clone())))
            }
            SqlStatement::Query(_)
            | SqlStatement::ExplainTable { .. }
            | SqlStatement::ShowTables { .. }
            | SqlStatement::ShowColumns { .. }
            | SqlStatement::ShowVariable { .. }
            | SqlStatement::ShowFunctions { .. } => true,
            _ => false,
        },
        _ => false,
    }
}

/// Whether every node of the plan is one that only reads; what is not on the list is refused, and so is a plan of too many nodes.
///
/// # Errors
/// What is refused.
pub(crate) fn check_plan(plan: &LogicalPlan) -> Result<(), Refusal> {
    let (mut nodes, mut writes) = (0_usize, false);
    plan.apply_with_subqueries(|node| {
        nodes += 1;
        writes |= !is_reading(node);
        let over = writes || nodes > NODES_MAX;
        Ok(if over { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })
    .map_err(|error: DataFusionError| error.strip_backtrace())?;
    if writes {
        return Err(not_a_query());
    }
    if nodes > NODES_MAX {
        return Err(format!("the statement's plan has more than {NODES_MAX} nodes, which is the limit: ask in parts"));
    }
    Ok(())
}

fn is_reading(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Aggregate(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Join(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Union(_)
        | LogicalPlan::TableScan(_)
        | LogicalPlan::EmptyRelation(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Values(_)
        | LogicalPlan::Explain(_)
        | LogicalPlan::Analyze(_)
        | LogicalPlan::Distinct(_)
        | LogicalPlan::DescribeTable(_)
        | LogicalPlan::Unnest(_)
        | LogicalPlan::RecursiveQuery(_) => true,
        LogicalPlan::Statement(_)
        | LogicalPlan::Extension(_)
        | LogicalPlan::Dml(_)
        | LogicalPlan::Ddl(_)
        | LogicalPlan::Copy(_) => false,
    }
}

fn not_a_query() -> Refusal {
    "only queries are allowed: tables are written by ingestion and stages".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_deep_is_refused_before_it_is_parsed_and_what_is_long_is_not() {
        let chain = |operator: &str| vec!["1"; 10_000].join(operator);
        for deep in [
            format!("select {}", chain(" + ")),
            format!("select * from t where {}", vec!["a = 1"; 10_000].join(" or ")),
            vec!["select 1"; 10_000].join(" union all "),
            format!("select * from t {}", "join t using (a) ".repeat(10_000)),
            format!("select 1{}", "::int".repeat(10_000)),
            format!("select a{}", "[0]".repeat(10_000)),
            format!("select {}1", "- ".repeat(10_000)),
            format!("select {} true", "not ".repeat(10_000)),
            format!("select 1 {}", "is null ".repeat(10_000)),
        ] {
            check_text(&deep).unwrap_err();
        }
        let long = vec!["'12345'"; 50_000].join(", ");
        check_text(&format!("select a + b, c from t where id in ({long}) and x = 1")).unwrap();
        let rows = vec!["(-1, 2 + 3)"; 10_000].join(", ");
        check_text(&format!("select * from (values {rows}) v")).unwrap();
        let columns = vec!["a = b"; 5_000].join(", ");
        check_text(&format!("select {columns} from t")).unwrap();
        check_text("no 'sql").unwrap();
    }
}
