//! Reads `policy.toml`; every mistake is told with its place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use datafusion::sql::sqlparser::ast::Expr as SqlExpr;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use holdfast_engine::walk::Walk;
use holdfast_engine::{Diagnostic, POLICY_CODE, TomlFile, TomlItem};
use holdfast_types::TableName;
use toml::de::{DeTable, DeValue};

use super::filter::asked;
use super::{ColumnRule, Limits, Mask, Policy, Role, RowRule, TablePattern, Which, Width};
use crate::Principal;
use crate::principal::Authentication;

const TOP: [&str; 3] = ["roles", "without_user", "case"];
const ROLE: [&str; 5] = ["description", "tables", "rows", "columns", "limits"];
const ROWS: [&str; 2] = ["tables", "where"];
const COLUMNS: [&str; 7] = ["tables", "tag", "columns", "mask", "keep_first", "keep_last", "width"];
const LIMITS: [&str; 8] =
    ["deadline_s", "rows", "bytes_mb", "memory_mb", "concurrency", "connections", "rate_per_s", "burst"];
const WITHOUT_USER: [&str; 2] = ["shared_token", "loopback"];
const CASE: [&str; 7] = ["name", "principal", "roles", "attributes", "query", "given", "expect"];
const EXPECT: [&str; 2] = ["rows", "refused"];
const MASKS: [&str; 6] = ["show", "partial", "range", "hash", "null", "deny"];

/// What a policy is tried with: who asks what, of which rows, and what comes of it.
#[derive(Debug, Clone)]
pub struct PolicyCase {
    /// Its name.
    pub name: String,
    /// Who asks.
    pub principal: Principal,
    /// What.
    pub query: String,
    /// The rows of tables, as stages' cases write them.
    pub given: BTreeMap<TableName, String>,
    /// What comes of it.
    pub expected: PolicyExpectation,
}

/// What comes of a case.
#[derive(Debug, Clone)]
pub enum PolicyExpectation {
    /// These rows, as stages' cases write them, in any order.
    Rows(String),
    /// An error that has this in its text.
    Refused(String),
}

/// The policy as far as it can be read; what is wrong is added to the mistakes.
pub(super) fn policy(file: &Path, text: &str, mistakes: &mut Vec<Diagnostic>) -> Option<Policy> {
    let mut reader = Reader(TomlFile { file, text, code: POLICY_CODE, mistakes });
    let table = reader.0.table()?;
    let table = table.get_ref();
    reader.0.check_keys(table, &TOP, "a policy has");
    let mut roles = BTreeMap::new();
    match table.get("roles").map(|value| (value.get_ref().as_table(), value.span())) {
        Some((Some(said), _)) => {
            for (name, value) in said.iter() {
                roles.insert(name.get_ref().to_string(), reader.role(value));
            }
        }
        Some((None, span)) => reader.mistake("roles are sections: [roles.NAME]", span),
        None => reader.0.mistake(
            "the policy has no roles, so nobody could see anything",
            0..0,
            Some("add a section [roles.NAME] with tables = [\"core.*\"]".to_owned()),
        ),
    }
    let (mut shared_token, mut loopback) = (Vec::new(), Vec::new());
    if let Some(said) = table.get("without_user").and_then(|value| reader.section(value)) {
        reader.0.check_keys(said, &WITHOUT_USER, "it has");
        shared_token = reader.roles_named(said, "shared_token", &roles);
        loopback = reader.roles_named(said, "loopback", &roles);
    }
    let cases = table.get("case").map(|value| reader.cases(value, &roles)).unwrap_or_default();
    let hash = blake3::hash(text.as_bytes()).to_hex();
    Some(Policy { version: hash[..16].to_owned(), file: file.to_owned(), roles, shared_token, loopback, cases })
}

struct Reader<'a>(TomlFile<'a>);

impl<'a> Reader<'a> {
    fn mistake(&mut self, message: &str, span: Range<usize>) {
        self.0.mistake(message, span, None);
    }

    fn section<'b>(&mut self, value: &'b TomlItem<'a>) -> Option<&'b DeTable<'a>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.mistake("a section is expected here", value.span());
        }
        table
    }

    /// A list of sections, `[[…]]`.
    fn sections<'b>(&mut self, value: &'b TomlItem<'a>) -> Vec<(&'b DeTable<'a>, Range<usize>)> {
        let Some(items) = value.get_ref().as_array() else {
            self.0.mistake(
                "a list of sections is expected here",
                value.span(),
                Some("write the heading in two pairs of brackets: [[…]]".to_owned()),
            );
            return Vec::new();
        };
        items.iter().filter_map(|item| Some((self.section(item)?, item.span()))).collect()
    }

    fn role(&mut self, value: &TomlItem<'a>) -> Role {
        let Some(said) = self.section(value) else { return Role::default() };
        self.0.check_keys(said, &ROLE, "a role has");
        if let Some(value) = said.get("description") {
            self.0.text_of(value);
        }
        let tables = match said.get("tables") {
            Some(value) => self.patterns(value),
            None => Vec::new(),
        };
        let rows = said.get("rows").map(|value| self.sections(value)).unwrap_or_default();
        let rows = rows.into_iter().filter_map(|(rule, span)| self.row_rule(rule, span)).collect();
        let columns = said.get("columns").map(|value| self.sections(value)).unwrap_or_default();
        let columns = columns.into_iter().filter_map(|(rule, span)| self.column_rule(rule, span)).collect();
        let limits = said.get("limits").and_then(|value| self.section(value));
        let limits = limits.map(|said| self.limits(said)).unwrap_or_default();
        Role { tables, rows, columns, limits }
    }

    fn row_rule(&mut self, rule: &DeTable<'a>, span: Range<usize>) -> Option<RowRule> {
        self.0.check_keys(rule, &ROWS, "a rule for rows has");
        let tables = self.tables(rule);
        let Some(value) = rule.get("where") else {
            self.0.mistake(
                "a rule for rows needs a condition",
                span,
                Some("add where = \"region in (attribute('region'))\"".to_owned()),
            );
            return None;
        };
        let text = self.0.text_of(value)?;
        match condition(&text) {
            Ok(condition) => {
                let (line, column, _) = self.0.place(value.span());
                let place = format!("{}:{line}:{column}", self.0.file.display());
                Some(RowRule { tables, condition, place })
            }
            Err(message) => {
                self.mistake(&message, value.span());
                None
            }
        }
    }

    fn column_rule(&mut self, rule: &DeTable<'a>, span: Range<usize>) -> Option<ColumnRule> {
        self.0.check_keys(rule, &COLUMNS, "a rule for columns has");
        let tables = self.tables(rule);
        let which = match (rule.get("tag"), rule.get("columns")) {
            (Some(tag), None) => Which::Tagged(self.0.text_of(tag)?),
            (None, Some(columns)) => Which::Named(self.texts(columns)),
            _ => {
                let help = Some("add either tag = \"pii\" or columns = [\"phone\"]".to_owned());
                self.0.mistake("a rule for columns says either a tag or columns", span, help);
                return None;
            }
        };
        let Some(value) = rule.get("mask") else {
            let help = Some(format!("add mask = one of {}", MASKS.join(", ")));
            self.0.mistake("a rule for columns needs a mask", span, help);
            return None;
        };
        let name = self.0.text_of(value)?;
        let mask = match name.as_str() {
            "show" => Mask::Show,
            "hash" => Mask::Hash,
            "null" => Mask::Null,
            "deny" => Mask::Deny,
            "partial" => Mask::Partial {
                keep_first: self.characters(rule, "keep_first"),
                keep_last: self.characters(rule, "keep_last"),
            },
            "range" => Mask::Range(self.width(rule, span.clone())?),
            other => {
                let near = MASKS.iter().find(|mask| strsim::jaro_winkler(mask, other) > 0.8);
                let help = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are {}", MASKS.join(", ")),
                };
                self.0.mistake(&format!("there is no mask `{other}`"), value.span(), Some(help));
                return None;
            }
        };
        for (key, of) in [("keep_first", "partial"), ("keep_last", "partial"), ("width", "range")] {
            if let Some(value) = rule.get(key).filter(|_| name != of) {
                self.mistake(&format!("`{key}` is of the mask `{of}`"), value.span());
            }
        }
        Some(ColumnRule { tables, which, mask })
    }

    fn characters(&mut self, rule: &DeTable<'a>, key: &str) -> usize {
        let kept = rule.get(key).and_then(|value| self.number(value, 0, 64));
        kept.and_then(|kept| usize::try_from(kept).ok()).unwrap_or(0)
    }

    fn width(&mut self, rule: &DeTable<'a>, span: Range<usize>) -> Option<Width> {
        let help = || Some("add width = 10 for numbers, or width = \"month\" (day, year) for times".to_owned());
        let Some(value) = rule.get("width") else {
            self.0.mistake("the mask `range` needs a width", span, help());
            return None;
        };
        match value.get_ref() {
            DeValue::Integer(_) => {
                let width = self.number(value, 1, u64::from(u32::MAX))?;
                u32::try_from(width).ok().map(Width::Number)
            }
            DeValue::String(text) => match text.as_ref() {
                "day" => Some(Width::Day),
                "month" => Some(Width::Month),
                "year" => Some(Width::Year),
                _ => {
                    self.0.mistake("a width of times is day, month or year", value.span(), help());
                    None
                }
            },
            _ => {
                self.0.mistake("this is no width", value.span(), help());
                None
            }
        }
    }

    fn limits(&mut self, said: &DeTable<'a>) -> Limits {
        self.0.check_keys(said, &LIMITS, "limits are");
        let mut whole =
            |key: &str, least: u64, most: u64| said.get(key).and_then(|value| self.number(value, least, most));
        let (deadline, rows) = (whole("deadline_s", 1, 86_400), whole("rows", 0, u64::MAX >> 1));
        let (bytes, memory) = (whole("bytes_mb", 1, 1 << 30), whole("memory_mb", 1, 1 << 20));
        let concurrency = whole("concurrency", 1, 10_000);
        let connections = whole("connections", 1, 100_000);
        let burst = whole("burst", 1, 1_000_000);
        let rate_per_s = said.get("rate_per_s").and_then(|value| {
            let rate = match value.get_ref() {
                DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
                DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
                _ => None,
            };
            let rate = rate.filter(|rate| (0.001..=1_000_000.0).contains(rate));
            if rate.is_none() {
                self.mistake("a rate is a number of questions a second, 0.001 to 1000000", value.span());
            }
            rate
        });
        Limits {
            deadline: deadline.map(Duration::from_secs),
            rows,
            bytes: bytes.map(|megabytes| megabytes << 20),
            memory_bytes: memory.and_then(|megabytes| usize::try_from(megabytes << 20).ok()),
            concurrency: concurrency.and_then(|most| usize::try_from(most).ok()),
            connections: connections.and_then(|most| usize::try_from(most).ok()),
            rate_per_s,
            #[expect(clippy::cast_precision_loss, reason = "a million at most")]
            burst: burst.map(|burst| burst as f64),
        }
    }

    fn number(&mut self, value: &TomlItem<'a>, least: u64, most: u64) -> Option<u64> {
        let number = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().replace('_', "").parse::<u64>().ok(),
            _ => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.mistake(&format!("a whole number of {least} to {most} is expected here"), value.span());
        }
        number
    }

    /// The tables of a rule: all where it names none.
    fn tables(&mut self, rule: &DeTable<'a>) -> Vec<TablePattern> {
        match rule.get("tables") {
            Some(value) => self.patterns(value),
            // The audit log, too, where the role sees it.
            None => vec![TablePattern::All, TablePattern::Schema(crate::audit::SCHEMA.to_owned())],
        }
    }

    fn patterns(&mut self, value: &TomlItem<'a>) -> Vec<TablePattern> {
        let Some(items) = value.get_ref().as_array() else {
            self.0.mistake("a list of tables is expected here", value.span(), Some(patterns_help()));
            return Vec::new();
        };
        let mut patterns = Vec::with_capacity(items.len());
        for item in items.iter() {
            let Some(text) = self.0.text_of(item) else { continue };
            match pattern(&text) {
                Some(pattern) => patterns.push(pattern),
                None => self.0.mistake(&format!("`{text}` names no tables"), item.span(), Some(patterns_help())),
            }
        }
        if !patterns.is_empty() && patterns.iter().all(|pattern| matches!(pattern, TablePattern::Not(_))) {
            let help = Some("write \"*\" before it for all but these".to_owned());
            self.0.mistake("the list only takes tables away", value.span(), help);
        }
        patterns
    }

    fn texts(&mut self, value: &TomlItem<'a>) -> Vec<String> {
        let Some(items) = value.get_ref().as_array() else {
            self.mistake("a list of texts is expected here", value.span());
            return Vec::new();
        };
        items.iter().filter_map(|item| self.0.text_of(item)).collect()
    }

    fn roles_named(&mut self, said: &DeTable<'a>, key: &str, roles: &BTreeMap<String, Role>) -> Vec<String> {
        let Some(value) = said.get(key) else { return Vec::new() };
        let names = self.texts(value);
        for name in names.iter().filter(|name| !roles.contains_key(*name)) {
            let near = roles.keys().find(|role| strsim::jaro_winkler(role, name) > 0.8);
            let help = near.map(|near| format!("did you mean `{near}`?"));
            self.0.mistake(&format!("there is no role `{name}`"), value.span(), help);
        }
        names
    }

    fn cases(&mut self, value: &TomlItem<'a>, roles: &BTreeMap<String, Role>) -> Vec<PolicyCase> {
        let sections = self.sections(value);
        sections.into_iter().filter_map(|(case, span)| self.case(case, span, roles)).collect()
    }

    fn case(&mut self, case: &DeTable<'a>, span: Range<usize>, roles: &BTreeMap<String, Role>) -> Option<PolicyCase> {
        self.0.check_keys(case, &CASE, "a case has");
        let required = |reader: &mut Self, key: &str| match case.get(key) {
            Some(value) => reader.0.text_of(value),
            None => {
                reader.mistake(&format!("a case needs `{key}`"), span.clone());
                None
            }
        };
        let name = required(self, "name")?;
        let query = required(self, "query")?;
        let principal = match case.get("principal") {
            Some(value) => self.0.text_of(value)?,
            None => "somebody".to_owned(),
        };
        let roles = self.roles_named(case, "roles", roles);
        let mut attributes = BTreeMap::new();
        if let Some(said) = case.get("attributes").and_then(|value| self.section(value)) {
            for (key, value) in said.iter() {
                attributes.insert(key.get_ref().to_string(), self.texts(value));
            }
        }
        let mut given = BTreeMap::new();
        if let Some(said) = case.get("given").and_then(|value| self.section(value)) {
            for (key, value) in said.iter() {
                match key.get_ref().parse::<TableName>() {
                    Ok(table) => {
                        given.insert(table, self.0.text_of(value)?);
                    }
                    Err(error) => self.mistake(&error.to_string(), key.span()),
                }
            }
        }
        let Some(said) = case.get("expect").and_then(|value| self.section(value)) else {
            self.0.mistake(
                "a case needs what is expected",
                span,
                Some("add a section [case.expect] with rows or refused".to_owned()),
            );
            return None;
        };
        self.0.check_keys(said, &EXPECT, "what is expected is");
        let expected = match (said.get("rows"), said.get("refused")) {
            (Some(rows), None) => PolicyExpectation::Rows(self.0.text_of(rows)?),
            (None, Some(text)) => PolicyExpectation::Refused(self.0.text_of(text)?),
            _ => {
                self.mistake("either rows or refused is expected", span);
                return None;
            }
        };
        let principal = Principal { name: principal, roles, attributes, by: Authentication::Token };
        Some(PolicyCase { name, principal, query, given, expected })
    }
}

fn patterns_help() -> String {
    "write \"core.orders\", \"core.*\", \"tag:label\", \"*\", or one of them behind ! to take it away".to_owned()
}

fn pattern(text: &str) -> Option<TablePattern> {
    if let Some(rest) = text.strip_prefix('!') {
        return pattern(rest)
            .filter(|inner| !matches!(inner, TablePattern::Not(_)))
            .map(|inner| TablePattern::Not(Box::new(inner)));
    }
    if text == "*" {
        return Some(TablePattern::All);
    }
    if let Some(tag) = text.strip_prefix("tag:").filter(|tag| !tag.is_empty()) {
        return Some(TablePattern::Tag(tag.to_owned()));
    }
    if let Some(schema) = text.strip_suffix(".*") {
        // A schema is named as tables are.
        return TableName::new(schema, "t").ok().map(|_| TablePattern::Schema(schema.to_owned()));
    }
    text.parse().ok().map(TablePattern::Table)
}

/// A condition, whole and with nothing behind it.
pub(super) fn condition(text: &str) -> Result<SqlExpr, String> {
    let parsed = |text: &str| {
        let mut parser = Parser::new(&GenericDialect {}).try_with_sql(text)?;
        let condition = parser.parse_expr()?;
        Ok::<_, datafusion::sql::sqlparser::parser::ParserError>((condition, parser.peek_token().token))
    };
    let (condition, behind) = parsed(text).map_err(|error| {
        format!("the condition is no SQL: {}", error.to_string().trim_start_matches("sql parser error: "))
    })?;
    if behind != Token::EOF {
        return Err(format!("the condition ends before `{behind}`"));
    }
    let mut wrong = None;
    let _ = condition.each_expression(|expr| {
        if let SqlExpr::Function(function) = expr {
            let name = function.name.to_string().to_lowercase();
            if ["principal", "attribute"].contains(&name.as_str()) && asked(expr).is_none() {
                wrong = Some("write principal() and attribute('name')".to_owned());
            }
        }
        std::ops::ControlFlow::Continue(())
    });
    wrong.map_or(Ok(condition), Err)
}
