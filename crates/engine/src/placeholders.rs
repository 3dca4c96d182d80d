//! Placeholders without a number, as ODBC, JDBC and Python's `qmark` write them: the planner takes all of them for one parameter of no name, so they
//! are numbered here in the order of the text.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Value, ValueWithSpan, VisitorMut};

use crate::read_only::Refusal;
use crate::walk::WalkMut;

/// Writes `$1`, `$2` … for each `?`, and `$7` for `?7`.
///
/// # Errors
/// When placeholders with and without a number stand in one statement: which is meant by which cannot be told.
pub(crate) fn number(statement: &mut Statement) -> Result<(), Refusal> {
    match statement {
        Statement::Statement(sql) => {
            let mut seen = Seen::default();
            let _ = sql.walk_mut(&mut seen);
            if seen.unnumbered.is_empty() {
                return Ok(());
            }
            if seen.others > 0 {
                return Err(
                    "the statement has parameters `?` and others, such as `$1`: write all in one way".to_owned()
                );
            }
            let mut numbered = Numbered(seen.unnumbered.into_iter().zip(1..).collect());
            let _ = sql.walk_mut(&mut numbered);
            Ok(())
        }
        Statement::Explain(explain) => number(&mut explain.statement),
        _ => Ok(()),
    }
}

/// Line and column in the text.
type Place = (u64, u64);

fn place(value: &ValueWithSpan) -> Place {
    (value.span.start.line, value.span.start.column)
}

/// Finds placeholders. The tree is not walked in the order of the text: a limit comes before what it limits.
#[derive(Default)]
struct Seen {
    unnumbered: BTreeSet<Place>,
    others: usize,
}

impl VisitorMut for Seen {
    type Break = ();

    fn post_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<()> {
        let place = place(value);
        if let Value::Placeholder(name) = &mut value.value {
            match name.strip_prefix('?') {
                Some("") => {
                    self.unnumbered.insert(place);
                }
                Some(number) => {
                    *name = format!("${number}");
                    self.others += 1;
                }
                None => self.others += 1,
            }
        }
        ControlFlow::Continue(())
    }
}

struct Numbered(BTreeMap<Place, usize>);

impl VisitorMut for Numbered {
    type Break = ();

    fn post_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<()> {
        let number = self.0.get(&place(value));
        if let (Value::Placeholder(name), Some(number)) = (&mut value.value, number) {
            *name = format!("${number}");
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::parser::DFParser;

    use super::*;

    fn numbered(sql: &str) -> Result<String, Refusal> {
        let mut statement = DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
        number(&mut statement).map(|()| statement.to_string())
    }

    #[test]
    fn placeholders_are_numbered_in_the_order_of_the_text() {
        let sql = "select ?, (select max(a) from t where b = ?) from u where c in (?, ?)\n order by ? limit ? offset ?";
        let text = numbered(sql).unwrap();
        let places: Vec<usize> =
            (1..=7).map(|number| text.find(&format!("${number}")).expect("each is there")).collect();
        assert!(places.is_sorted(), "{text}");
        assert_eq!(numbered("select '?', ?2, ?1").unwrap(), "SELECT '?', $2, $1");
        assert_eq!(numbered("select $2, $name").unwrap(), "SELECT $2, $name");
        assert!(numbered("explain select ?").unwrap().contains("$1"));
        assert!(numbered("select ?, $1").unwrap_err().contains("in one way"));
    }
}
