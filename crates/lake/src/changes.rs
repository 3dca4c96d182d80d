//! What happened to the rows of a table between two of its versions, from its log: the change data of commits that put rows in the place of others, and
//! the files of commits that only added or removed some.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, col, lit};
use deltalake_core::kernel::{Action, Add, Remove};
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use crate::Result;
use crate::error::LakeError;
use crate::provider::LakeTableProvider;
use crate::table::Table;

/// The column of change data that says what became of a row, as the Delta protocol names it.
pub(crate) const CHANGE_TYPE: &str = "_change_type";
/// Of a row that is gone.
pub(crate) const DELETED: &str = "delete";
/// Of a row that is new.
pub(crate) const INSERTED: &str = "insert";
/// Other writers tell the two halves of a change so.
const BEFORE: &str = "update_preimage";
const AFTER: &str = "update_postimage";

/// Commits that are read for one answer. Who is further behind reads the whole table.
const COMMITS_MAX: u64 = 2_000;
/// Commits that are asked for at the same time.
const COMMITS_AT_ONCE: usize = 8;

/// The rows that came and went between two versions of a table. A row that came and went again may be on both sides.
#[derive(Debug, Clone)]
pub struct TableChanges {
    table: Table,
    /// Files whose rows are gone.
    removed: Vec<Add>,
    /// Files whose rows are new.
    added: Vec<Add>,
    /// Change data: files whose rows say themselves what became of them.
    told: Vec<Add>,
}

impl Table {
    /// What happened since `version`. `None` when the log does not say any more, or when columns changed: then all there is has to be read.
    ///
    /// Costs a GET a commit, and no data is read before the rows are asked for. Files that merges have replaced since are read as they were; once vacuum has deleted
    /// them, reading fails with an error of the store.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn changes_since(&self, version: u64) -> Result<Option<TableChanges>> {
        if version > self.version() || self.version() - version > COMMITS_MAX {
            return Ok(None);
        }
        let log = self.delta().log_store();
        let commits: Vec<Option<bytes::Bytes>> = futures::stream::iter(version + 1..=self.version())
            .map(|version| {
                let log = Arc::clone(&log);
                async move { log.read_commit_entry(version).await }
            })
            .buffered(COMMITS_AT_ONCE)
            .try_collect()
            .await
            .map_err(LakeError::delta(self.name()))?;
        let columns = self.delta().snapshot().map_err(LakeError::delta(self.name()))?.metadata();
        let columns = serde_json::to_value(columns).ok().and_then(|metadata| metadata.get("schemaString").cloned());
        let mut changes =
            TableChanges { table: self.clone(), removed: Vec::new(), added: Vec::new(), told: Vec::new() };
        for commit in commits {
            let Some(commit) = commit else { return Ok(None) };
            if !changes.take(&commit, columns.as_ref()) {
                return Ok(None);
            }
        }
        Ok(Some(changes))
    }
}

impl TableChanges {
    /// Adds what a commit did. `false` when it cannot be told from its actions.
    fn take(&mut self, commit: &[u8], columns: Option<&Value>) -> bool {
        let (mut added, mut removed, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for action in serde_json::Deserializer::from_slice(commit).into_iter::<Value>() {
            let Ok(action) = action else { return false };
            if let Some(metadata) = action.get("metaData")
                && metadata.get("schemaString") != columns
            {
                return false;
            }
            // Actions that say nothing about rows need not be known.
            match serde_json::from_value::<Action>(action) {
                Ok(Action::Add(add)) if add.data_change => added.push(add),
                Ok(Action::Remove(remove)) if remove.data_change => match removed_file(remove) {
                    Some(add) => removed.push(add),
                    None => return false,
                },
                Ok(Action::Cdc(file)) => told.push(file_of(file.path, file.size, file.partition_values)),
                _ => {}
            }
        }
        // Where there is change data, it is all there is to say.
        if told.is_empty() {
            self.added.extend(added);
            self.removed.extend(removed);
        } else {
            self.told.extend(told);
        }
        true
    }

    /// Whether no row came or went.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty() && self.told.is_empty()
    }

    /// Whether rows can be on both sides.
    pub fn is_two_sided(&self) -> bool {
        !self.told.is_empty() || (!self.removed.is_empty() && !self.added.is_empty())
    }

    /// Whether rows came and none went.
    pub fn is_added_to(&self) -> bool {
        !self.added.is_empty() && self.removed.is_empty() && self.told.is_empty()
    }

    /// The size of the files that say so.
    pub fn bytes(&self) -> u64 {
        let files = self.removed.iter().chain(&self.added).chain(&self.told);
        files.map(|add| u64::try_from(add.size).unwrap_or(0)).sum()
    }

    /// The rows that were there and are gone, with the table's columns.
    ///
    /// # Errors
    /// When they cannot be planned: a damaged log.
    pub fn removed_rows(&self) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        self.rows(&self.removed, &[DELETED, BEFORE])
    }

    /// The rows that are new, with the table's columns.
    ///
    /// # Errors
    /// As [`TableChanges::removed_rows`].
    pub fn added_rows(&self) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        self.rows(&self.added, &[INSERTED, AFTER])
    }

    fn rows(&self, files: &[Add], kinds: &[&str]) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let schema = self.table.schema();
        let plain = LakeTableProvider::new(self.table.clone(), Arc::clone(schema), files.to_vec());
        if self.told.is_empty() {
            return Ok(Arc::new(plain));
        }
        let told_schema = with_change_type(schema, self.table.partition_columns().len());
        let told = LakeTableProvider::new(self.table.clone(), told_schema, self.told.clone());
        let columns: Vec<_> = schema.fields().iter().map(|field| column(field.name())).collect();
        let is_one = col(CHANGE_TYPE).in_list(kinds.iter().map(|kind| lit(*kind)).collect(), false);
        let told = scan("told", told)?.filter(is_one)?.project(columns.clone())?;
        let plan = if files.is_empty() { told } else { told.union(scan("plain", plain)?.project(columns)?.build()?)? };
        Ok(Arc::new(ViewTable::new(unqualified(plan.build()?, schema)?, None)))
    }
}

/// Names as they are in the table, whichever scan they come from.
fn unqualified(plan: LogicalPlan, schema: &SchemaRef) -> Result<LogicalPlan, DataFusionError> {
    let columns = plan.schema().columns();
    let named = columns
        .into_iter()
        .zip(schema.fields())
        .map(|(column, field)| datafusion::logical_expr::Expr::Column(column).alias(field.name()));
    LogicalPlanBuilder::from(plan).project(named.collect::<Vec<_>>())?.build()
}

fn scan(name: &str, provider: LakeTableProvider) -> Result<LogicalPlanBuilder, DataFusionError> {
    LogicalPlanBuilder::scan(name, provider_as_source(Arc::new(provider)), None)
}

fn column(name: &str) -> datafusion::logical_expr::Expr {
    datafusion::logical_expr::ident(name)
}

/// The columns of change data: the table's, then what became of the row, then the partition columns, which are not in files.
pub(crate) fn with_change_type(schema: &SchemaRef, partition_columns: usize) -> SchemaRef {
    let in_files = schema.fields().len() - partition_columns;
    let fields: Fields = schema
        .fields()
        .iter()
        .take(in_files)
        .cloned()
        .chain([Arc::new(Field::new(CHANGE_TYPE, DataType::Utf8, true))])
        .chain(schema.fields().iter().skip(in_files).cloned())
        .collect();
    Arc::new(Schema::new(fields))
}

/// A file that is no longer part of the table, as it was added. `None` when the log does not say enough of it to read it.
fn removed_file(remove: Remove) -> Option<Add> {
    if remove.deletion_vector.is_some() {
        return None;
    }
    Some(file_of(remove.path, remove.size?, remove.partition_values?))
}

/// A file of which no more is known.
pub(crate) fn file_of(path: String, size: i64, partition_values: HashMap<String, Option<String>>) -> Add {
    Add {
        path,
        size,
        partition_values,
        modification_time: 0,
        data_change: true,
        stats: None,
        tags: None,
        deletion_vector: None,
        base_row_id: None,
        default_row_commit_version: None,
        clustering_provider: None,
    }
}
