use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::{Expr, ObjectName, ObjectNamePart, Query, SetExpr, Statement as SqlStatement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use holdfast_types::{PII_KEY, TableName};

use crate::contract::{Contract, KEY_UNIQUE};
use crate::contract_change::Terms;
use crate::defaults::Defaults;
use crate::diagnostic::{Diagnostic, line_and_column};
use crate::directive::{self, Directives};
use crate::walk::Walk;

/// One stage: a file with one `SELECT`, and the table of its name.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The table it makes: its path below the folder of stages.
    pub name: TableName,
    /// The file, as messages name it.
    pub file: PathBuf,
    /// The file's text.
    pub text: String,
    /// Its line directives.
    pub directives: Directives,
    /// The tables it reads, and where each is first named (line, column, width).
    pub inputs: BTreeMap<TableName, (usize, usize, usize)>,
    /// What its table promises, where a contract says so: then it is the one place for comments, personal data and the key.
    pub contract: Option<Contract>,
    /// Documentation of output columns, from the comments behind them or from the contract.
    pub column_comments: BTreeMap<String, String>,
    /// Whether the result depends on the moment of the run.
    pub depends_on_time: bool,
    pub(crate) statement: Statement,
    /// What its folder says for it.
    pub(crate) defaults: Option<Arc<Defaults>>,
}

/// Functions whose value is the moment of the run.
pub(crate) const CLOCK_FUNCTIONS: [&str; 6] =
    ["now", "current_timestamp", "current_date", "current_time", "today", "localtimestamp"];

/// Functions whose value differs from call to call: a stage with one cannot be repeated.
pub(crate) const VOLATILE_FUNCTIONS: [&str; 3] = ["random", "uuid", "gen_random_uuid"];

impl Stage {
    /// Reads a stage.
    ///
    /// # Errors
    /// All mistakes that can be seen in the file alone.
    #[cfg(test)]
    pub(crate) fn parse(name: TableName, file: &Path, text: String) -> Result<Self, Vec<Diagnostic>> {
        match Self::read(name, file, text) {
            (Some(stage), mistakes) if mistakes.is_empty() => Ok(stage),
            (_, mistakes) => Err(mistakes),
        }
    }

    /// Reads a stage as far as it can be read: `None` when there is no query to go on with. Says all mistakes that can be seen in
    /// the file alone.
    pub(crate) fn read(name: TableName, file: &Path, text: String) -> (Option<Self>, Vec<Diagnostic>) {
        let (directives, mut mistakes) = directive::parse(file, &text);
        let statement = match parse_statement(file, &text) {
            Ok(statement) => statement,
            Err(mistake) => {
                mistakes.push(*mistake);
                return (None, mistakes);
            }
        };
        let inputs = inputs(file, &text, &statement, &mut mistakes);
        let mut depends_on_time = false;
        if let Statement::Statement(sql) = &statement {
            let _ = sql.each_expression(|expr| {
                if let Expr::Function(function) = expr {
                    let called = function.name.to_string().to_lowercase();
                    depends_on_time |= CLOCK_FUNCTIONS.contains(&called.as_str());
                    if VOLATILE_FUNCTIONS.contains(&called.as_str()) {
                        let (line, column) = place_of(&function.name).unwrap_or((0, 0));
                        mistakes.push(
                            Diagnostic::at(
                                "E0208",
                                format!("`{called}()` gives another value at every call"),
                                file,
                                &text,
                                line,
                                column,
                                called.len(),
                            )
                            .with_help("a stage must be repeatable: derive the value from the row"),
                        );
                    }
                }
                ControlFlow::Continue(())
            });
        }
        let column_comments = column_comments(&text);
        let stage = Self {
            name,
            file: file.to_owned(),
            text,
            directives,
            inputs,
            contract: None,
            column_comments: column_comments.into_iter().map(|(name, comment)| (name, comment.text)).collect(),
            depends_on_time,
            statement,
            defaults: None,
        };
        (Some(stage), mistakes)
    }

    /// A mistake at a place of its file; one about the whole file where the place is not known (line 0).
    pub(crate) fn mistake(
        &self,
        code: &'static str,
        message: impl Into<String>,
        (line, column, width): (usize, usize, usize),
    ) -> Diagnostic {
        match line {
            0 => Diagnostic::of_file(code, message, &self.file),
            _ => Diagnostic::at(code, message, &self.file, &self.text, line, column, width),
        }
    }

    /// Where a directive of this name has a word; the directive itself where it has not.
    pub(crate) fn place_in_directive(&self, directive: &str, word: &str) -> (usize, usize, usize) {
        let start = format!("@{directive}");
        for (index, line) in self.text.lines().enumerate() {
            let Some(comment) = line.trim_start().strip_prefix("--") else { continue };
            if !comment.trim_start_matches('-').trim_start().starts_with(&start) {
                continue;
            }
            let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
            let found = line.match_indices(word).find(|(offset, _)| {
                let before = line[..*offset].chars().next_back();
                let after = line[offset + word.len()..].chars().next();
                !before.is_some_and(is_part) && !after.is_some_and(is_part)
            });
            if let Some((offset, _)) = found {
                return (index + 1, line[..offset].chars().count() + 1, word.chars().count());
            }
        }
        (0, 0, 0)
    }

    /// Where a word stands for the nth time in the query, comments left out; nowhere when it does not.
    pub(crate) fn place_of_word(&self, word: &str, nth: usize) -> (usize, usize, usize) {
        let places = self.words(word);
        let place = places.get(nth.saturating_sub(1)).or_else(|| places.first());
        place.map_or((0, 0, 0), |(line, column, _)| (*line, *column, word.chars().count()))
    }

    /// Which of the calls of a function is the one that is ordered like this: the first whose text has all the columns.
    pub(crate) fn nth_call(&self, function: &str, order_by: &[datafusion::logical_expr::SortExpr]) -> usize {
        let columns: Vec<String> = order_by
            .iter()
            .flat_map(|sort| sort.expr.column_refs().into_iter().map(|column| column.name.to_lowercase()))
            .collect();
        let calls = self.words(function);
        let found = calls.iter().position(|(_, _, offset)| {
            let rest = self.text[*offset..].to_lowercase();
            let end = rest
                .match_indices("order by")
                .nth(0)
                .and_then(|(start, _)| rest[start..].find(')').map(|length| start + length));
            let call = &rest[..end.unwrap_or(rest.len())];
            columns.iter().all(|column| call.contains(column.as_str()))
        });
        found.map_or(1, |index| index + 1)
    }

    /// Line, column and byte offset of a word wherever it stands in the query.
    fn words(&self, word: &str) -> Vec<(usize, usize, usize)> {
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let word = word.to_lowercase();
        let mut places = Vec::new();
        let mut start = 0;
        for (index, line) in self.text.split_inclusive('\n').enumerate() {
            let code = line.split("--").next().unwrap_or_default();
            let lowered = code.to_ascii_lowercase();
            for (offset, _) in lowered.match_indices(&word) {
                let before = code[..offset].chars().next_back();
                let after = code[offset + word.len()..].chars().next();
                if !before.is_some_and(is_part) && !after.is_some_and(is_part) {
                    places.push((index + 1, code[..offset].chars().count() + 1, start + offset));
                }
            }
            start += line.len();
        }
        places
    }

    /// Where the query names an output column: the last place, which is the final `select`'s.
    pub(crate) fn place_of_output(&self, name: &str) -> (usize, usize, usize) {
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let mut place = (0, 0, 0);
        for (index, line) in self.text.lines().enumerate() {
            let code = line.split("--").next().unwrap_or_default();
            for (offset, _) in code.match_indices(name) {
                let before = code[..offset].chars().next_back();
                let after = code[offset + name.len()..].trim_start();
                let ends = after.is_empty() || after.starts_with(',');
                if ends && !before.is_some_and(is_part) {
                    place = (index + 1, code[..offset].chars().count() + 1, name.chars().count());
                }
            }
        }
        place
    }

    /// Takes over what the contract beside the stage says. What the stage says of the same is a mistake: there is one place for it.
    pub(crate) fn adopt(&mut self, contract: Contract) -> Vec<Diagnostic> {
        let elsewhere = format!("it stands in {}: take it out here", contract.file.display());
        let mut mistakes: Vec<Diagnostic> = column_comments(&self.text)
            .into_iter()
            .filter(|(name, _)| contract.column(name).is_some())
            .map(|(name, CommentedColumn { place: (line, column, width), .. })| {
                let message = format!("the comment behind `{name}` says again what the column means");
                Diagnostic::at("E0504", message, &self.file, &self.text, line, column, width).with_help(&elsewhere)
            })
            .collect();
        if self.directives.tags.iter().any(|(tag, _)| tag == PII_KEY) {
            let mistake =
                Diagnostic::of_file("E0504", "the directive `@tag pii` says again what is personal", &self.file);
            mistakes.push(mistake.with_help(&elsewhere));
        }
        let implied = contract.expectations();
        for expectation in &self.directives.expectations {
            if expectation.name == KEY_UNIQUE || implied.iter().any(|implied| implied.name == expectation.name) {
                let (line, column) = expectation.place;
                let width = expectation.condition.chars().count();
                let message = format!("expectation `{}` is one that the contract implies", expectation.name);
                let mistake = Diagnostic::at("E0504", message, &self.file, &self.text, line, column, width);
                mistakes.push(mistake.with_help("take it out, or give it another name"));
            }
        }
        let stated = std::mem::replace(&mut self.directives.expectations, implied);
        self.directives.expectations.extend(stated);
        self.directives.description = contract.comment();
        let pii = contract.pii();
        if !pii.is_empty() {
            self.directives.tags.push((PII_KEY.to_owned(), pii));
        }
        self.column_comments = contract.columns.iter().map(|column| (column.name.clone(), column.comment())).collect();
        self.contract = Some(contract);
        mistakes
    }

    /// The texts of the files that it is made of.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        let contract = self.contract.as_ref().map(Contract::text);
        let defaults = self.defaults.as_ref().map(|defaults| defaults.text());
        [Some(self.text.as_str()), contract, defaults].into_iter().map(Option::unwrap_or_default)
    }

    /// Whether a directive tags it, or one of its columns. A tag that comes from the folder's defaults is the stage's when it names such a column.
    pub(crate) fn has_tag(&self, tag: &str) -> bool {
        self.directives.tags.iter().filter(|(name, _)| name == tag).any(|(name, columns)| {
            let is_column = |column: &String| self.place_of_output(column) != (0, 0, 0);
            !self.directives.default_tags.contains(name) || columns.iter().any(is_column)
        })
    }

    /// What decides whether a refresh could give another result: the query without comments and layout, and the directives that
    /// change rows.
    pub(crate) fn fingerprint(&self, salt: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut part = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        part(salt);
        part(&self.statement.to_string());
        for expectation in &self.directives.expectations {
            part(expectation.severity.as_str());
            part(&expectation.condition);
        }
        // Tags of the stage as a whole are no part of its table.
        for (tag, columns) in self.directives.tags.iter().filter(|(_, columns)| !columns.is_empty()) {
            part(tag);
            part(&columns.join(","));
        }
        if let Some(contract) = &self.contract {
            part(&contract.version.to_string());
            part(&Terms::of(contract).hash());
        }
        hasher.finalize().to_hex().chars().take(32).collect()
    }
}

fn parse_statement(file: &Path, text: &str) -> Result<Statement, Box<Diagnostic>> {
    let of_file = |message: &str| {
        let mistake = Diagnostic::of_file("E0202", message, file);
        Box::new(mistake.with_help("a stage is exactly one `select …`, without `create` or `insert`"))
    };
    let mut statements = DFParserBuilder::new(text)
        .with_dialect(&GenericDialect {})
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| Box::new(syntax_error(file, text, &error)))?;
    let statement = match statements.len() {
        1 => statements.pop_front(),
        0 => None,
        _ => return Err(of_file("the file holds more than one statement")),
    };
    match statement {
        Some(statement) if is_query(&statement) => Ok(statement),
        Some(_) => Err(of_file("the statement is not a query")),
        None => Err(of_file("the file holds no statement")),
    }
}

fn is_query(statement: &Statement) -> bool {
    let Statement::Statement(statement) = statement else { return false };
    let SqlStatement::Query(query) = statement.as_ref() else { return false };
    fn reads_only(query: &Query) -> bool {
        match query.body.as_ref() {
            SetExpr::Select(select) => select.into.is_none(),
            SetExpr::Query(inner) => reads_only(inner),
            SetExpr::SetOperation { .. } | SetExpr::Values(_) => true,
            _ => false,
        }
    }
    reads_only(query)
}

/// The parser's message ends in `at Line: 3, Column: 7`.
fn syntax_error(file: &Path, text: &str, error: &datafusion::error::DataFusionError) -> Diagnostic {
    let message = match error.find_root() {
        datafusion::error::DataFusionError::SQL(inner, _) => inner.to_string(),
        other => other.strip_backtrace(),
    };
    let message = message.trim_start_matches("sql parser error: ").to_owned();
    let number_after = |marker: &str| -> Option<usize> {
        let start = message.rfind(marker)? + marker.len();
        message[start..].trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let (line, column) = match (number_after("Line:"), number_after("Column:")) {
        (Some(line), Some(column)) if line > 0 => (line, column),
        _ => line_and_column(text, text.trim_end().len()),
    };
    let short = message.split(" at Line:").next().unwrap_or(&message).to_owned();
    let width = text
        .lines()
        .nth(line - 1)
        .map_or(1, |line| line.chars().skip(column - 1).take_while(|c| c.is_alphanumeric() || *c == '_').count());
    Diagnostic::at("E0201", format!("SQL syntax: {short}"), file, text, line, column, width)
}

pub(crate) fn place_of(name: &ObjectName) -> Option<(usize, usize)> {
    match name.0.first()? {
        ObjectNamePart::Identifier(ident) => {
            let start = ident.span.start;
            Some((usize::try_from(start.line).ok()?, usize::try_from(start.column).ok()?))
        }
        ObjectNamePart::Function(_) => None,
    }
}

fn inputs(
    file: &Path,
    text: &str,
    statement: &Statement,
    mistakes: &mut Vec<Diagnostic>,
) -> BTreeMap<TableName, (usize, usize, usize)> {
    let mut found = BTreeMap::new();
    // Names of common table expressions are left out here; spans come from the walk below.
    let references = match resolve_table_references(statement, true) {
        Ok((references, _)) => references,
        Err(error) => {
            mistakes.push(Diagnostic::of_file("E0202", error.strip_backtrace(), file));
            return found;
        }
    };
    let mut places: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    if let Statement::Statement(sql) = statement {
        let _ = sql.each_relation(|name| {
            if let Some(place) = place_of(name) {
                places.entry(name.to_string()).or_insert(place);
            }
            ControlFlow::Continue(())
        });
    }
    for reference in references {
        let shown = reference.to_string();
        let (line, column) = places.get(&shown).copied().unwrap_or((0, 0));
        let width = shown.chars().count();
        match shown.parse::<TableName>() {
            Ok(name) => {
                found.insert(name, (line, column, width));
            }
            Err(_) => mistakes.push(
                Diagnostic::at(
                    "E0204",
                    format!("`{shown}` is not the name of a table"),
                    file,
                    text,
                    line,
                    column,
                    width,
                )
                .with_help("name tables as schema.table"),
            ),
        }
    }
    found
}

struct CommentedColumn {
    text: String,
    /// Line, column and width of the comment.
    place: (usize, usize, usize),
}

/// The comments behind output columns: `<expression> as name,  -- text`, one column a line. The last line that names a column
/// counts, which is the final `select`'s.
fn column_comments(text: &str) -> BTreeMap<String, CommentedColumn> {
    let mut comments = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let Some((code, comment)) = line.split_once("-- ") else { continue };
        let column = code.chars().count() + 1;
        let code = code.trim_end().trim_end_matches(',').trim_end();
        let name: String = code
            .chars()
            .rev()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect::<String>()
            .chars()
            .rev()
            .collect();
        if !name.is_empty() && !comment.trim().is_empty() {
            let place = (index + 1, column, comment.trim_end().chars().count() + 3);
            comments.insert(name, CommentedColumn { text: comment.trim().to_owned(), place });
        }
    }
    comments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(text: &str) -> Result<Stage, Vec<Diagnostic>> {
        Stage::parse("profile.a".parse().unwrap(), Path::new("sql/profile/a.sql"), text.to_owned())
    }

    #[test]
    fn inputs_are_tables_and_not_common_table_expressions() {
        let stage =
            stage("with orders as (select * from core.orders)\nselect * from orders\njoin core.events e on true")
                .unwrap();
        let inputs: Vec<_> = stage.inputs.iter().map(|(name, place)| (name.to_string(), place.0)).collect();
        assert_eq!(inputs, [("core.events".to_owned(), 3), ("core.orders".to_owned(), 1)]);
    }

    #[test]
    fn comments_and_layout_do_not_change_the_fingerprint() {
        let one = stage("select a, -- text\n b from core.x").unwrap();
        let two = stage("-- another\nselect a,b\nfrom   core.x").unwrap();
        let three = stage("select a, c from core.x").unwrap();
        assert_eq!(one.fingerprint(""), two.fingerprint(""));
        assert_ne!(one.fingerprint(""), three.fingerprint(""));
        assert_ne!(one.fingerprint("1"), one.fingerprint("2"));
    }

    #[test]
    fn a_syntax_error_has_a_place() {
        let mistakes = stage("select a\nfrom core.x\nwhere and b").unwrap_err();
        assert_eq!((mistakes[0].code, mistakes[0].line), ("E0201", 3));
    }

    #[test]
    fn what_is_not_a_query_is_refused() {
        for text in ["drop table core.x", "select 1; select 2", "", "create table a as select 1"] {
            assert!(stage(text).is_err(), "{text}");
        }
    }

    #[test]
    fn volatile_functions_are_refused_and_now_is_noticed() {
        assert_eq!(stage("select random() as r").unwrap_err()[0].code, "E0208");
        assert!(stage("select now() as t").unwrap().depends_on_time);
        assert!(!stage("select 'now()' as t").unwrap().depends_on_time);
    }

    #[test]
    fn comments_document_columns() {
        let stage =
            stage("select\n    a.b,        -- The b\n    sum(c) as d -- Total, CNY\nfrom core.x a group by b").unwrap();
        assert_eq!(stage.column_comments["b"], "The b");
        assert_eq!(stage.column_comments["d"], "Total, CNY");
    }
}
