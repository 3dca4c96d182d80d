//! How a stage's table can be kept up to date by key: only the rows whose key a change concerns are made again, by the unmodified query.
//!
//! A query is *by key* when, for all inputs and all sets of keys K, the rows of its result whose key is in K are the result of a plan
//! that reads, at some places, only the rows whose key is in K. [`KeyPlan::derive`] looks for such places from the top of the plan
//! downwards. At each node it asks: may the choice of keys be made before this node as well as behind it? Where the answer is no, and
//! what is below is more than rows taken one by one, the stage is not by key, and the author is told what stops it. Everything else
//! the query reads stays whole. So the choice is always right; what can go wrong is only which keys are chosen, and that is
//! [`KeyPlan::affected`]: it may name too many keys, never too few.
//!
//! `now()` counts as a constant here. Whoever refreshes by key must refresh in full when the rows that are there were made at another
//! `now()`.
//!
//! ```text
//! plan ──► plain (types spelled out, subqueries as joins) ──► derive (rules a node) ──► reach: what a change of each input means
//!                                                                  ├──► affected: changed rows ──► keys
//!                                                                  └──► restricted: keys ──► their rows, as the query makes them
//! ```

mod affected;
mod derive;
mod equal;
mod expression;
mod join;
mod own;
mod plain;
mod restrict;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, DataFusionError, TableReference};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use holdfast_types::TableName;

use self::derive::{Asked, How, Side};
use self::expression::is_kept_as_it_is;
use self::own::Trail;

type Result<T, E = DataFusionError> = std::result::Result<T, E>;

/// How a stage's table is kept up to date by key.
#[derive(Debug, Clone)]
pub(crate) struct KeyPlan {
    /// The key's name in the stage's table.
    key: String,
    key_type: DataType,
    asked: Asked,
    reach: BTreeMap<TableName, Reach>,
}

/// Why a stage cannot be kept up to date by a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotByKey {
    /// In words, for the author.
    pub(crate) reason: String,
    /// The node or expression that stops it.
    pub(crate) what: String,
    /// Line and column, where the plan knows them.
    pub(crate) place: Option<(usize, usize)>,
}

/// What a change of an input means for the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Its rows carry the key: keys of changed rows.
    Key,
    /// As `Join`, but the rows it joins are looked up in the stage's own table, by these of its columns.
    Own {
        /// Output columns of the stage.
        columns: Vec<String>,
    },
    /// Its rows reach the key through a join: keys of the rows they join, which are read for it.
    Join,
    /// A change of it means a full refresh.
    Full {
        /// In words.
        reason: String,
    },
}

impl Reach {
    /// What both together mean: an input may be read at several places.
    fn and(self, other: Self) -> Self {
        let weight = |reach: &Self| match reach {
            Self::Key => 0,
            Self::Own { .. } => 1,
            Self::Join => 2,
            Self::Full { .. } => 3,
        };
        if weight(&other) > weight(&self) { other } else { self }
    }
}

/// What became of an input between two of its versions. Both sides have the input's schema, and either may be empty. Both may hold more
/// than what changed: rows that stayed, and rows that came and went in between, as long as these are in both.
#[derive(Debug, Clone)]
pub(crate) struct InputChange {
    /// Rows as they were.
    pub(crate) removed: Arc<dyn TableProvider>,
    /// Rows as they are.
    pub(crate) added: Arc<dyn TableProvider>,
}

impl KeyPlan {
    /// How the result of `plan` is kept up to date by its column `key`. The plan is one as planned, over the inputs at their new versions.
    pub(crate) fn derive(state: &SessionState, plan: &LogicalPlan, key: &str) -> Result<Self, NotByKey> {
        let plan = plain::plain(state, plan)?;
        let (qualifier, field) = plan
            .schema()
            .iter()
            .find(|(_, field)| field.name() == key)
            .ok_or_else(|| NotByKey::of_node(format!("the stage has no column `{key}`"), &plan))?;
        let key_type = field.data_type().clone();
        if !is_kept_as_it_is(&key_type) {
            let reason = format!("`{key}` is of type {key_type}, whose values cannot be told apart for certain");
            return Err(NotByKey::of_node(reason, &plan));
        }
        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        let trail = Trail::from_output(plan.schema());
        let asked = derive::ask(&Arc::new(plan), vec![column], Some(&trail))?;
        let mut reach = BTreeMap::new();
        collect_reach(&asked, &mut reach);
        Ok(Self { key: key.to_owned(), key_type, asked, reach })
    }

    /// The key's name in the stage's table.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// What a change of each input means.
    pub(crate) fn reach(&self) -> BTreeMap<TableName, Reach> {
        self.reach.clone()
    }

    /// The keys whose rows may differ between the old and the new inputs, in one column, each once. `None`: refresh in full.
    ///
    /// `changes` names the inputs that changed and no others. `current` is all that the stage made from the old inputs, with its output
    /// columns: its table, and its quarantine where it has one. Without any, such rows are looked up in the inputs.
    ///
    /// # Errors
    /// When a given table does not have the columns that it should have.
    pub(crate) fn affected(
        &self,
        state: &SessionState,
        changes: &BTreeMap<TableName, InputChange>,
        current: &[Arc<dyn TableProvider>],
    ) -> Result<Option<LogicalPlan>> {
        for name in changes.keys() {
            if matches!(self.reach.get(name), Some(Reach::Full { .. })) {
                return Ok(None);
            }
        }
        let keys = affected::Affected { changes, current, key: &self.key }.keys(&self.asked)?;
        let keys = match keys {
            Some(keys) => keys,
            None => affected::nothing(&self.asked)?,
        };
        let keys = affected::named(keys, &self.key, &self.key_type)?;
        // Checked here, where a mistake of these rules is a mistake and not a wrong table.
        state.analyzer().execute_and_check(keys.clone(), state.config_options(), |_, _| {})?;
        Ok(Some(keys))
    }

    /// The unmodified query for the given keys alone: one column of the key's type, in which NULL is a key like another.
    ///
    /// # Errors
    /// When `keys` is not such a table.
    pub(crate) fn restricted(&self, keys: Arc<dyn TableProvider>) -> Result<LogicalPlan> {
        restrict::restricted(&self.asked, keys)
    }

    /// The rows that the query reads for the given keys, at each of the places where it chooses them, with the tables that are read there. What it reads whole is not
    /// among them.
    ///
    /// # Errors
    /// As [`KeyPlan::restricted`].
    pub(crate) fn chosen_rows(&self, keys: &Arc<dyn TableProvider>) -> Result<Vec<(Vec<TableName>, LogicalPlan)>> {
        restrict::chosen_rows(&self.asked, keys)
    }
}

impl NotByKey {
    /// For what is not about a part of the query.
    pub(crate) fn without_a_place(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), what: String::new(), place: None }
    }

    pub(crate) fn of_node(reason: impl Into<String>, plan: &LogicalPlan) -> Self {
        let place = plan.expressions().iter().find_map(expression::place);
        Self { reason: reason.into(), what: shortened(&plan.display().to_string()), place }
    }

    fn of_expression(reason: impl Into<String>, expr: &Expr) -> Self {
        Self { reason: reason.into(), what: shortened(&expr.to_string()), place: expression::place(expr) }
    }
}

impl From<DataFusionError> for NotByKey {
    fn from(error: DataFusionError) -> Self {
        Self { reason: "the query cannot be planned".to_owned(), what: crate::error::describe(&error), place: None }
    }
}

impl std::fmt::Display for NotByKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((line, column)) = self.place {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.reason)?;
        if self.what.is_empty() { Ok(()) } else { write!(f, ": {}", self.what) }
    }
}

/// Long expressions say no more than their beginning.
fn shortened(text: &str) -> String {
    const CHARACTERS_MAX: usize = 120;
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The lake's name of a scanned table. `None` for what is no table of the lake, such as a table function.
pub(crate) fn table_name(reference: &TableReference) -> Option<TableName> {
    TableName::new(reference.schema().unwrap_or("core"), reference.table()).ok()
}

fn collect_reach(asked: &Asked, found: &mut BTreeMap<TableName, Reach>) {
    for name in plain::tables_in_subqueries(&asked.plan) {
        add(found, name, Reach::Full { reason: "it is read in a subquery that is no join".to_owned() });
    }
    match &asked.how {
        How::Here => plain::tables(&asked.plan).into_iter().for_each(|name| add(found, name, Reach::Key)),
        How::Through(input) => collect_reach(input, found),
        How::Every(inputs) => inputs.iter().for_each(|input| collect_reach(input, found)),
        How::Join(left, right) => {
            for side in [left.as_ref(), right.as_ref()] {
                match side {
                    Side::Keyed(asked) => collect_reach(asked, found),
                    Side::Joined(lookup) => {
                        let mut inner = BTreeMap::new();
                        collect_reach(&lookup.asked, &mut inner);
                        for (name, reach) in inner {
                            let reach = match (reach, &lookup.own) {
                                (Reach::Key, Some(own)) => Reach::Own { columns: own.columns() },
                                (Reach::Key, None) => Reach::Join,
                                (reach, _) => reach,
                            };
                            add(found, name, reach);
                        }
                    }
                    Side::Opaque { plan, reason } => {
                        let names = plain::tables(plan);
                        names.into_iter().for_each(|name| add(found, name, Reach::Full { reason: reason.clone() }));
                    }
                }
            }
        }
    }
}

fn add(found: &mut BTreeMap<TableName, Reach>, name: TableName, reach: Reach) {
    let reach = match found.remove(&name) {
        Some(known) => known.and(reach),
        None => reach,
    };
    found.insert(name, reach);
}
