//! `policy.toml` of a pipeline: roles, the tables they see, the rows of these, and how columns look.

mod filter;
mod read;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::datatypes::{Field, Schema};
use datafusion::sql::sqlparser::ast::Expr as SqlExpr;
use holdfast_engine::{Diagnostic, Diagnostics};
use holdfast_types::{PII_KEY, TableName};

pub use self::filter::BoundFilter;
pub(crate) use self::filter::{any_of, attributes_of};
pub use self::read::{PolicyCase, PolicyExpectation};
use crate::{AccessError, Principal, Result};

/// Fields that no contract names are kept as text: nobody has said that they are harmless.
const UNKNOWN_FIELDS: &str = "_unknown";

/// Who may see what. Everything that is not said is denied.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Changes with every byte of the file.
    pub version: String,
    /// The file.
    pub file: PathBuf,
    pub(crate) roles: BTreeMap<String, Role>,
    /// The roles of who comes with the shared token, and of who comes from this machine where nothing is asked for.
    pub(crate) shared_token: Vec<String>,
    pub(crate) loopback: Vec<String>,
    /// What the policy is tried with.
    pub cases: Vec<PolicyCase>,
}

/// What a role gives.
#[derive(Debug, Clone, Default)]
pub(crate) struct Role {
    pub(crate) tables: Vec<TablePattern>,
    pub(crate) rows: Vec<RowRule>,
    pub(crate) columns: Vec<ColumnRule>,
    pub(crate) limits: Limits,
}

/// Which tables: by name, schema, or a tag of one of their columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TablePattern {
    /// `*`: all but the audit log.
    All,
    /// `core.*`
    Schema(String),
    /// `core.orders`
    Table(TableName),
    /// `tag:label`: tables that have a column with the tag.
    Tag(String),
    /// `!core.orders`: all that the others name but these.
    Not(Box<TablePattern>),
}

/// Which rows of tables.
#[derive(Debug, Clone)]
pub(crate) struct RowRule {
    pub(crate) tables: Vec<TablePattern>,
    pub(crate) condition: SqlExpr,
    /// `file:line:column`, for errors.
    pub(crate) place: String,
}

/// How columns of tables look.
#[derive(Debug, Clone)]
pub(crate) struct ColumnRule {
    pub(crate) tables: Vec<TablePattern>,
    pub(crate) which: Which,
    pub(crate) mask: Mask,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Which {
    Tagged(String),
    Named(Vec<String>),
}

/// What becomes of a column's values, the most open first. Of a column with rules in several roles the first counts, where its role sees the row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mask {
    /// As they are.
    Show,
    /// Characters at both ends, of texts.
    Partial {
        /// How many at the beginning.
        keep_first: usize,
        /// How many at the end.
        keep_last: usize,
    },
    /// The lower end of the range that a number or time is in.
    Range(Width),
    /// A keyed hash of a text: equal values stay equal.
    Hash,
    /// Null.
    Null,
    /// There is no such column.
    Deny,
}

/// The width of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// Of numbers.
    Number(u32),
    /// Of dates and timestamps, in UTC.
    Day,
    /// From the first of a month.
    Month,
    /// From the first of January.
    Year,
}

/// How much a principal may use at once. What is not said is what the service allows everybody.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Limits {
    /// From the arrival of a question to the last byte of its answer.
    pub deadline: Option<Duration>,
    /// Rows of one answer.
    pub rows: Option<u64>,
    /// Bytes of one answer on the wire.
    pub bytes: Option<u64>,
    /// Memory of all its queries together, in bytes.
    pub memory_bytes: Option<usize>,
    /// Queries that run at once.
    pub concurrency: Option<usize>,
    /// Connections that are open at once.
    pub connections: Option<usize>,
    /// Questions a second, in the long run.
    pub rate_per_s: Option<f64>,
    /// Questions that may come at once before the rate counts.
    pub burst: Option<f64>,
}

/// A table as a principal sees it.
#[derive(Debug, Clone)]
pub struct TableAccess {
    /// Its rows.
    pub rows: Rows,
    /// Its columns, in their order, those that are denied left out.
    pub columns: Vec<ColumnAccess>,
    /// How many columns are denied.
    pub hidden: usize,
}

/// Which rows a principal sees.
#[derive(Debug, Clone)]
pub enum Rows {
    /// All of them.
    All,
    /// Those that meet one of the filters, each of which is one role's; none where there is no filter.
    Matching(Vec<BoundFilter>),
}

/// How a column looks to a principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnAccess {
    /// Its name.
    pub name: String,
    /// Each mask with the filters, by their place in [`Rows::Matching`], whose rows it is for; the first that fits counts. No filters: all rows.
    pub masks: Vec<(Mask, Vec<usize>)>,
}

impl ColumnAccess {
    /// From the mask of each role and the filter, by its place, of the rows for which it is; `None` when no role shows the column.
    fn of(
        name: &str,
        of_roles: impl Iterator<Item = (Mask, Option<usize>)>,
        filters: usize,
        sees_all: bool,
    ) -> Option<Self> {
        let mut masks: Vec<(Mask, Vec<usize>, bool)> = Vec::new();
        for (mask, place) in of_roles.filter(|(mask, _)| *mask != Mask::Deny) {
            let at = masks.iter().position(|(known, _, _)| *known == mask).unwrap_or_else(|| {
                masks.push((mask, Vec::new(), false));
                masks.len() - 1
            });
            let (_, places, of_all) = &mut masks[at];
            match place {
                Some(place) if !places.contains(&place) => places.push(place),
                Some(_) => {}
                None => *of_all = true,
            }
        }
        masks.sort();
        let mut of_rows = Vec::with_capacity(masks.len());
        for (mask, places, of_all) in masks {
            // The rows that it is for are all that are seen.
            let of_all = of_all || (!sees_all && places.len() == filters);
            of_rows.push((mask, if of_all { Vec::new() } else { places }));
            if of_all {
                break;
            }
        }
        (!of_rows.is_empty()).then(|| Self { name: name.to_owned(), masks: of_rows })
    }

    /// The one mask of all rows, if there is one: a mask of some rows alone leaves the others null.
    pub fn only_mask(&self) -> Option<&Mask> {
        match self.masks.as_slice() {
            [(mask, places)] if places.is_empty() => Some(mask),
            _ => None,
        }
    }
}

impl Policy {
    /// The policy in a file; `None` where there is no such file.
    ///
    /// # Errors
    /// [`AccessError::Mistakes`] with all that is wrong with it.
    pub fn load(file: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(AccessError::File { what: "cannot read", path: file.to_owned(), source }),
        };
        Self::parse(file, &text).map(Some)
    }

    /// The policy in a text; `file` is what mistakes are told of.
    ///
    /// # Errors
    /// As of [`Policy::load`].
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let mut mistakes: Vec<Diagnostic> = Vec::new();
        let policy = read::policy(file, text, &mut mistakes);
        match policy {
            Some(policy) if mistakes.is_empty() => Ok(policy),
            _ => Err(AccessError::Mistakes(Diagnostics(mistakes))),
        }
    }

    /// The names of its roles.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// The most that one of the principal's roles allows, where one says something.
    pub fn limits(&self, principal: &Principal) -> Limits {
        let mut most = Limits::default();
        for limits in self.roles_of(principal).map(|(_, role)| &role.limits) {
            fn larger<T: PartialOrd + Copy>(most: &mut Option<T>, other: Option<T>) {
                if let Some(other) = other
                    && most.is_none_or(|most| other > most)
                {
                    *most = Some(other);
                }
            }
            larger(&mut most.deadline, limits.deadline);
            larger(&mut most.rows, limits.rows);
            larger(&mut most.bytes, limits.bytes);
            larger(&mut most.memory_bytes, limits.memory_bytes);
            larger(&mut most.concurrency, limits.concurrency);
            larger(&mut most.connections, limits.connections);
            larger(&mut most.rate_per_s, limits.rate_per_s);
            larger(&mut most.burst, limits.burst);
        }
        most
    }

    /// How the principal sees a table with these columns; `None` when it does not see it.
    pub fn access(&self, principal: &Principal, name: &TableName, schema: &Schema) -> Option<TableAccess> {
        let granting =
            self.roles_of(principal).map(|(_, role)| role).filter(|role| matches(&role.tables, name, schema));
        let mut granting: Vec<(&Role, Option<BoundFilter>)> = granting
            .map(|role| {
                let rules = role.rows.iter().filter(|rule| matches(&rule.tables, name, schema));
                (role, BoundFilter::of(rules, principal))
            })
            .collect();
        if granting.is_empty() {
            return None;
        }
        // Roles whose filter nothing meets say nothing of what others show; where there is no other, no row is seen.
        let gives_rows =
            |(_, filter): &(&Role, Option<BoundFilter>)| !filter.as_ref().is_some_and(BoundFilter::is_empty);
        let nothing = !granting.iter().any(gives_rows);
        if nothing {
            granting.iter_mut().for_each(|(_, filter)| *filter = None);
        } else {
            granting.retain(gives_rows);
        }
        let sees_all = granting.iter().any(|(_, filter)| filter.is_none());
        // Roles with the same filter are one.
        let mut filters: Vec<BoundFilter> = Vec::new();
        let mut places: Vec<Option<usize>> = Vec::with_capacity(granting.len());
        for (_, filter) in &granting {
            places.push(filter.as_ref().map(|filter| {
                filters.iter().position(|known| known.sql() == filter.sql()).unwrap_or_else(|| {
                    filters.push(filter.clone());
                    filters.len() - 1
                })
            }));
        }
        let columns: Vec<ColumnAccess> = schema
            .fields()
            .iter()
            .filter_map(|field| {
                let masks =
                    granting.iter().zip(&places).map(|((role, _), place)| (role.mask(name, schema, field), *place));
                ColumnAccess::of(field.name(), masks, filters.len(), sees_all)
            })
            .collect();
        let needs_filters = columns.iter().any(|column| column.masks.iter().any(|(_, places)| !places.is_empty()));
        let rows = match (nothing, sees_all) {
            (true, _) => Rows::Matching(Vec::new()),
            (false, true) if !needs_filters => Rows::All,
            (false, true) => {
                filters.push(BoundFilter::everything());
                Rows::Matching(filters)
            }
            (false, false) => Rows::Matching(filters),
        };
        Some(TableAccess { rows, hidden: schema.fields().len() - columns.len(), columns })
    }

    fn roles_of<'a>(&'a self, principal: &'a Principal) -> impl Iterator<Item = (&'a String, &'a Role)> {
        self.roles.iter().filter(|(name, _)| principal.roles.contains(name))
    }
}

impl Role {
    /// What the role says of a column: a rule that names it counts before one by tag, the last before those above it.
    fn mask(&self, table: &TableName, schema: &Schema, field: &Field) -> Mask {
        let of_table = || self.columns.iter().rev().filter(|rule| matches(&rule.tables, table, schema));
        let named = of_table().find(|rule| matches!(&rule.which, Which::Named(names) if names.contains(field.name())));
        let tagged = || of_table().find(|rule| matches!(&rule.which, Which::Tagged(tag) if has_tag(field, tag)));
        match named.or_else(tagged) {
            Some(rule) => rule.mask.fitting(field.data_type()),
            None if has_tag(field, PII_KEY) => Mask::Deny,
            None => Mask::Show,
        }
    }
}

/// Whether the patterns name the table.
pub(crate) fn matches(patterns: &[TablePattern], name: &TableName, schema: &Schema) -> bool {
    let is = |pattern: &TablePattern| match pattern {
        // Who may read what everybody read must be said by name.
        TablePattern::All => name.schema() != crate::audit::SCHEMA,
        TablePattern::Schema(schema) => name.schema() == schema,
        TablePattern::Table(table) => table == name,
        TablePattern::Tag(tag) => schema.fields().iter().any(|field| has_tag(field, tag)),
        TablePattern::Not(_) => false,
    };
    let is_not = |pattern: &TablePattern| matches!(pattern, TablePattern::Not(inner) if is(inner));
    patterns.iter().any(is) && !patterns.iter().any(is_not)
}

/// Whether a column has a tag: a key of its metadata whose value is not `false`.
fn has_tag(field: &Field, tag: &str) -> bool {
    field.metadata().get(tag).is_some_and(|value| value != "false")
        || (tag == PII_KEY && field.name() == UNKNOWN_FIELDS)
}

#[cfg(test)]
mod tests;
