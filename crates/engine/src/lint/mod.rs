//! What works today and will surprise somebody: one file a subject. Only what can be told for certain is told; a warning that is wrong
//! in a place is allowed there, with the reason.

mod features;
mod order;
mod owners;
mod query;

use std::collections::BTreeSet;

use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Query;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;

use crate::diagnostic::Diagnostic;
use crate::inspect::{InspectedStage, Inspection, KnownKeys};
use crate::stage::Stage;

/// A stage, and what there is to judge it by.
pub(crate) struct Subject<'a> {
    pub(crate) inspected: &'a InspectedStage,
    pub(crate) plan: &'a LogicalPlan,
    /// The keys of its inputs.
    pub(crate) known: &'a KnownKeys,
    /// The stages before it.
    pub(crate) before: &'a Inspection,
    /// Types of identifiers that can change hands.
    pub(crate) recycled: &'a BTreeSet<String>,
}

impl Subject<'_> {
    fn stage(&self) -> &Stage {
        &self.inspected.stage
    }

    fn query(&self) -> Option<&Query> {
        let Statement::Statement(statement) = &self.stage().statement else { return None };
        match statement.as_ref() {
            SqlStatement::Query(query) => Some(query),
            _ => None,
        }
    }
}

/// Everything that is to say about a stage that can be planned. What the author allowed is left out.
pub(crate) fn lint(subject: &Subject<'_>) -> Vec<Diagnostic> {
    let mut found = query::lint(subject);
    found.extend(order::lint(subject));
    found.extend(features::lint(subject));
    found.extend(owners::lint(subject));
    let stage = subject.stage();
    let mut is_needed = vec![false; stage.directives.allowed.len()];
    found.retain(|finding| {
        let mut kept = true;
        for (allowed, is_needed) in stage.directives.allowed.iter().zip(&mut is_needed) {
            if allowed.code == finding.code && allowed.line.is_none_or(|line| line == finding.line) {
                *is_needed = true;
                kept = false;
            }
        }
        kept
    });
    for (allowed, _) in stage.directives.allowed.iter().zip(is_needed).filter(|(_, is_needed)| !is_needed) {
        let message = format!("there is no {} here to allow", allowed.code);
        let mistake = stage.mistake("W0606", message, allowed.place);
        found.push(mistake.with_help("take the line out; it is about the next line, or before the query about all"));
    }
    found
}
