use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use datafusion::datasource::object_store::ObjectStoreUrl;
use futures::{StreamExt, TryStreamExt};
use holdfast_types::{Clock, FixedClock, TableName};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Result;
use crate::error::LakeError;
use crate::lake::Lake;
use crate::table::{StagedFile, Table};

/// How many files are looked for at the same time.
const LOOKS_AT_ONCE: usize = 16;

/// Where the data files of a table go: all that a [`crate::TableWriter`] has to know of the table.
#[derive(Debug, Clone)]
pub struct TableFolder {
    table: TableName,
    partition_columns: Vec<String>,
    /// From the root of the store.
    prefix: Path,
    store: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    /// How the names of its files begin.
    stem: String,
}

/// A [`TableFolder`] as it is sent to a process that writes files there with a store of its own. No credentials are in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderAddress {
    table: TableName,
    partition_columns: Vec<String>,
    store: String,
    prefix: String,
    /// Stands in the names of all files, so that those of an attempt that was given up can be found.
    attempt: Uuid,
    /// What files are told to be written at: only one process has the clock.
    at: DateTime<Utc>,
}

impl TableFolder {
    pub(crate) fn table(&self) -> &TableName {
        &self.table
    }

    pub(crate) fn partition_columns(&self) -> &[String] {
        &self.partition_columns
    }

    pub(crate) fn prefix(&self) -> &Path {
        &self.prefix
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// A name that no other file has.
    pub(crate) fn new_file_name(&self) -> String {
        format!("{}{}.snappy.parquet", self.stem, Uuid::now_v7())
    }
}

impl FolderAddress {
    /// The name under which an engine session must know the store.
    ///
    /// # Errors
    /// [`LakeError::InvalidUrl`] when it is none.
    pub fn store_url(&self) -> Result<ObjectStoreUrl> {
        ObjectStoreUrl::parse(&self.store)
            .map_err(|error| LakeError::InvalidUrl { url: self.store.clone(), reason: error.to_string() })
    }

    /// The folder in that store.
    ///
    /// # Errors
    /// [`LakeError::Store`] when the path is none.
    pub fn open(&self, store: Arc<dyn ObjectStore>) -> Result<TableFolder> {
        let prefix = Path::parse(&self.prefix)
            .map_err(|error| LakeError::store(format!("cannot write to {}", self.prefix))(error.into()))?;
        Ok(TableFolder {
            table: self.table.clone(),
            partition_columns: self.partition_columns.clone(),
            prefix,
            store,
            clock: Arc::new(FixedClock(self.at)),
            stem: stem_of(self.attempt),
        })
    }
}

impl Table {
    /// Where its data files go.
    pub fn folder(&self) -> TableFolder {
        TableFolder {
            table: self.name().clone(),
            partition_columns: self.partition_columns().to_vec(),
            prefix: self.prefix().clone(),
            store: Arc::clone(self.store()),
            clock: Arc::clone(self.clock()),
            stem: "part-".to_owned(),
        }
    }

    /// The same for another process. `attempt` is new for each time that files are asked for: [`Lake::discard_attempts`].
    pub fn folder_address(&self, attempt: Uuid) -> FolderAddress {
        FolderAddress {
            table: self.name().clone(),
            partition_columns: self.partition_columns().to_vec(),
            store: self.store_url().as_str().to_owned(),
            prefix: self.prefix().to_string(),
            attempt,
            at: self.clock().now(),
        }
    }
}

impl Lake {
    /// Whether all of these files are in the lake's store, as long as who wrote them says. They are not when that was another store under the same URL. One HEAD each.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn are_there(&self, table: &Table, files: &[StagedFile]) -> Result<bool> {
        let told: Vec<_> = files.iter().map(|file| (table.location_of(&file.add.path), file.bytes)).collect();
        futures::stream::iter(told)
            .map(|(location, bytes)| async move {
                match self.store().head(&location).await {
                    Ok(found) => Ok(found.size == bytes),
                    Err(Error::NotFound { .. }) => Ok(false),
                    Err(error) => Err(LakeError::store(format!("cannot look for {location}"))(error)),
                }
            })
            .buffer_unordered(LOOKS_AT_ONCE)
            .try_fold(true, |all, is_there| futures::future::ready(Ok(all && is_there)))
            .await
    }

    /// Deletes the files that were written elsewhere in attempts that were given up. None of them was committed, nor ever will be. One LIST of the table. What cannot be
    /// deleted, and what somebody who does not know yet still writes, stays behind unreferenced until vacuum.
    pub async fn discard_attempts(&self, attempts: &[Uuid], table: &Table) {
        if attempts.is_empty() {
            return;
        }
        let stems: HashSet<String> = attempts.iter().map(|attempt| stem_of(*attempt)).collect();
        let is_of_one = |location: &Path| {
            let name = location.filename().unwrap_or_default();
            stems.iter().any(|stem| name.starts_with(stem.as_str()))
        };
        let found = self.store().list(Some(table.prefix())).map_ok(|object| object.location);
        let deleted = async {
            let found: Vec<Path> = found
                .try_filter(|location| futures::future::ready(is_of_one(location)))
                .try_collect()
                .await
                .map_err(LakeError::store(format!("cannot list {}", table.prefix())))?;
            self.delete_all(found).await
        };
        if let Err(error) = deleted.await {
            tracing::debug!(table = %table.name(), %error, "files of an attempt that was given up stay behind");
        }
    }
}

fn stem_of(attempt: Uuid) -> String {
    format!("part-{attempt}-")
}
