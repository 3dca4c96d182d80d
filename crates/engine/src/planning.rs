//! From a stage's query to its plan, and every mistake on the way.
//!
//! The planner stops at the first name it does not know. So a wrong name is told, `null` is put in its place, and the query is planned
//! again, until no wrong name is left. After the first round only names are told: another mistake could come from the `null`.

use std::ops::ControlFlow;

use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr, Ident, Query, SelectItem, SetExpr, Value, VisitorMut};

use crate::as_of_join;
use crate::diagnostic::{Diagnostic, line_and_column};
use crate::error::describe;
use crate::row_functions;
use crate::stage::{Stage, place_of};
use crate::walk::WalkMut;

/// A stage with more unknown names than this has another trouble.
const NAMES_MAX: usize = 50;

/// The stage's plan, with its types coerced and not optimised.
///
/// # Errors
/// All mistakes that were found, each once.
pub(crate) async fn plan(stage: &Stage, state: &SessionState) -> Result<LogicalPlan, Vec<Diagnostic>> {
    let mut mended = None;
    let mut mistakes: Vec<Diagnostic> = Vec::new();
    for _ in 0..NAMES_MAX {
        let mut statement = mended.as_ref().unwrap_or(&stage.statement).clone();
        as_of_join::wrap(&mut statement);
        row_functions::wrap(&mut statement, state.config());
        let error = match state.statement_to_plan(statement).await {
            Ok(plan) if mistakes.is_empty() => return analysed(stage, plan, state),
            Ok(_) => break,
            Err(error) => error,
        };
        let is_first_round = mistakes.is_empty();
        let mut replaced = false;
        for error in error.iter() {
            let wrong = WrongName::of(error);
            if wrong.is_none() && !is_first_round {
                continue;
            }
            let mistake = match &wrong {
                Some(wrong) => wrong.mistake(stage),
                None => plan_mistake(stage, error),
            };
            if let Some(wrong) = &wrong
                && let Some(place) = wrong.place
            {
                replaced |= put_null(mended.get_or_insert_with(|| stage.statement.clone()), place);
            }
            if !mistakes.contains(&mistake) {
                mistakes.push(mistake);
            }
        }
        if !replaced {
            break;
        }
    }
    Err(mistakes)
}

/// Planning alone does not coerce types; a wrong argument shows only here.
fn analysed(stage: &Stage, plan: LogicalPlan, state: &SessionState) -> Result<LogicalPlan, Vec<Diagnostic>> {
    state
        .analyzer()
        .execute_and_check(plan, state.config_options(), |_, _| {})
        .map_err(|error| error.iter().map(|error| plan_mistake(stage, error)).collect())
}

enum Wrong {
    Unknown { known: Vec<Column> },
    Ambiguous,
    Function { similar: Option<String> },
}

/// A name that means nothing, or more than one thing.
struct WrongName {
    name: String,
    relation: Option<String>,
    place: Option<(usize, usize)>,
    what: Wrong,
}

impl WrongName {
    fn of(error: &DataFusionError) -> Option<Self> {
        let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
        let place = span.map(|span| (to_usize(span.start.line), to_usize(span.start.column)));
        match error.find_root() {
            DataFusionError::SchemaError(inner, _) => {
                let (field, what) = match inner.as_ref() {
                    SchemaError::FieldNotFound { field, valid_fields } => {
                        (field, Wrong::Unknown { known: valid_fields.clone() })
                    }
                    SchemaError::AmbiguousReference { field } => (field, Wrong::Ambiguous),
                    _ => return None,
                };
                let own = field.spans.first().map(|span| (to_usize(span.start.line), to_usize(span.start.column)));
                let relation = field.relation.as_ref().map(ToString::to_string);
                Some(Self { name: field.name.clone(), relation, place: place.or(own), what })
            }
            DataFusionError::Plan(text) => {
                let rest = text.strip_prefix("Invalid function '")?;
                let (name, rest) = rest.split_once('\'')?;
                let similar = rest.split_once("Did you mean '").and_then(|(_, rest)| rest.split_once('\''));
                let similar = similar.map(|(similar, _)| similar.to_owned());
                Some(Self { name: name.to_owned(), relation: None, place, what: Wrong::Function { similar } })
            }
            _ => None,
        }
    }

    fn mistake(&self, stage: &Stage) -> Diagnostic {
        let (line, column) = self.place.or_else(|| place_in(&stage.text, &self.name)).unwrap_or((0, 0));
        let shown = match &self.relation {
            Some(relation) => format!("{relation}.{}", self.name),
            None => self.name.clone(),
        };
        let width = width_at(&stage.text, line, column, &shown, &self.name);
        let at = |code, message: String| stage.mistake(code, message, (line, column, width));
        match &self.what {
            Wrong::Unknown { known } => {
                let message = match &self.relation {
                    Some(relation) => format!("column `{}` not found in `{relation}`", self.name),
                    None => format!("column `{}` not found", self.name),
                };
                let same = |column: &&Column| {
                    self.relation.is_none() || column.relation.as_ref().map(ToString::to_string) == self.relation
                };
                let names: Vec<&str> = known.iter().filter(same).map(|column| column.name.as_str()).collect();
                let mistake = at("E0212", message);
                match crate::diagnostic::most_similar(&self.name, names.iter().copied()) {
                    Some(near) => mistake.with_help(format!("did you mean `{near}`?")),
                    None if names.is_empty() => mistake.with_help("there are no columns to choose from here"),
                    None => mistake.with_help(format!("there are {}", listed(&names))),
                }
            }
            Wrong::Ambiguous => at("E0213", format!("column `{}` is in more than one of the tables", self.name))
                .with_help(format!("write the table before it: `<table>.{}`", self.name)),
            Wrong::Function { similar } => {
                let mistake = at("E0214", format!("function `{}` not found", self.name));
                match similar {
                    Some(similar) => mistake.with_help(format!("did you mean `{similar}`?")),
                    None => mistake,
                }
            }
        }
    }
}

fn listed(names: &[&str]) -> String {
    const SHOWN_MAX: usize = 12;
    let shown: Vec<String> = names.iter().take(SHOWN_MAX).map(|name| format!("`{name}`")).collect();
    match names.len().checked_sub(SHOWN_MAX) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

/// How much of the line is the name, with its table where it is written so.
fn width_at(text: &str, line: usize, column: usize, shown: &str, name: &str) -> usize {
    let rest: String =
        text.lines().nth(line.saturating_sub(1)).unwrap_or_default().chars().skip(column.saturating_sub(1)).collect();
    let written = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '.').count();
    if rest.starts_with(shown) { shown.chars().count() } else { written.max(name.chars().count().min(1)) }
}

/// Where a name first stands in the text as a word of its own.
fn place_in(text: &str, name: &str) -> Option<(usize, usize)> {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    let found = text.match_indices(name).find(|(offset, _)| {
        let before = text[..*offset].chars().next_back();
        let after = text[offset + name.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    });
    found.map(|(offset, _)| line_and_column(text, offset))
}

/// Puts `null` in the place of the name that stands at `place`. Answers whether there was one.
fn put_null(statement: &mut Statement, place: (usize, usize)) -> bool {
    let Statement::Statement(sql) = statement else { return false };
    // An output column keeps its name, so that those who read it find it.
    let _ = sql.walk_mut(&mut KeepNames(place));
    let mut replaced = false;
    let _ = sql.each_expression_mut(|expr| {
        if starts_at(expr) == Some(place) {
            *expr = Expr::Value(Value::Null.into());
            replaced = true;
        }
        ControlFlow::Continue(())
    });
    replaced
}

fn starts_at(expr: &Expr) -> Option<(usize, usize)> {
    let of = |ident: &Ident| {
        let start = ident.span.start;
        Some((usize::try_from(start.line).ok()?, usize::try_from(start.column).ok()?))
    };
    match expr {
        Expr::Identifier(ident) => of(ident),
        Expr::CompoundIdentifier(parts) => parts.first().and_then(of),
        Expr::Function(function) => place_of(&function.name),
        _ => None,
    }
}

struct KeepNames((usize, usize));

impl VisitorMut for KeepNames {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        self.name_items(&mut query.body);
        ControlFlow::Continue(())
    }
}

impl KeepNames {
    fn name_items(&self, body: &mut SetExpr) {
        match body {
            SetExpr::Select(select) => {
                for item in &mut select.projection {
                    if let SelectItem::UnnamedExpr(expr) = item
                        && starts_at(expr) == Some(self.0)
                    {
                        let alias = match expr {
                            Expr::Identifier(ident) => ident.clone(),
                            Expr::CompoundIdentifier(parts) => match parts.last() {
                                Some(last) => last.clone(),
                                None => continue,
                            },
                            _ => continue,
                        };
                        *item = SelectItem::ExprWithAlias { expr: Expr::Value(Value::Null.into()), alias };
                    }
                }
            }
            SetExpr::SetOperation { left, right, .. } => {
                self.name_items(left);
                self.name_items(right);
            }
            _ => {}
        }
    }
}

/// What the planner says, at the place it means.
fn plan_mistake(stage: &Stage, error: &DataFusionError) -> Diagnostic {
    let code = "E0205";
    if let Some(wrong) = WrongName::of(error) {
        return wrong.mistake(stage);
    }
    if let Some(diagnostic) = error.diagnostic() {
        let helps = diagnostic.helps.iter().map(|help| help.message.as_str());
        let notes = diagnostic.notes.iter().map(|note| note.message.as_str());
        let place = diagnostic.span.map_or((0, 0, 0), |span| {
            let (line, column) = (to_usize(span.start.line), to_usize(span.start.column));
            let is_one_line = span.end.line == span.start.line;
            (line, column, if is_one_line { to_usize(span.end.column).saturating_sub(column) } else { 1 })
        });
        let mistake = stage.mistake(code, diagnostic.message.clone(), place);
        return match helps.chain(notes).next() {
            Some(hint) => mistake.with_help(hint),
            None => mistake,
        };
    }
    let message = describe(error);
    // Wrong arguments and the like carry no span; find the name they quote.
    let quoted = message.split('\'').nth(1).filter(|quoted| !quoted.is_empty());
    match quoted.and_then(|quoted| Some((place_in(&stage.text, quoted)?, quoted))) {
        Some(((line, column), quoted)) => stage.mistake(code, message.clone(), (line, column, quoted.chars().count())),
        None => stage.mistake(code, message, (0, 0, 0)),
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
