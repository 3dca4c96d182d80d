//! Environments: a place for tables of one's own beside those of production, which are read where they are.
//!
//! ```text
//!  lake/core/orders, lake/profile/spend, …                    production
//!  lake/_holdfast/environments/dev/profile/spend              what dev has made itself
//!  lake/_holdfast/environments/dev/_holdfast/runs/…           its own runs: versions of its tables, and of production's that they were made from
//! ```
//!
//! An environment is a [`Lake`] with another one below it. It reads a table of its own where it has one, and else production's at a pinned version; it writes its own alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError, RwLock};

use futures::TryStreamExt;
use holdfast_types::TableName;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::LakeError;
use crate::lake::{Lake, SYSTEM_FOLDER};
use crate::maintain::KeptRuns;
use crate::manifest::{self, Manifest, ManifestEntry};
use crate::table::Table;

const FOLDER: &str = "environments";

/// The name of an environment: a lower-case letter, then at most 39 lower-case letters, digits, underscores or hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvironmentName(String);

/// A text that cannot name an environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot name an environment: write a lower-case letter, then at most 39 lower-case letters, digits, `_` or `-`, and not `production`"
)]
pub struct NoEnvironmentName(String);

impl FromStr for EnvironmentName {
    type Err = NoEnvironmentName;

    fn from_str(text: &str) -> Result<Self, NoEnvironmentName> {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        match begins && text.len() <= 40 && text != "production" && text.bytes().all(is_inner) {
            true => Ok(Self(text.to_owned())),
            false => Err(NoEnvironmentName(text.to_owned())),
        }
    }
}

impl TryFrom<String> for EnvironmentName {
    type Error = NoEnvironmentName;

    fn try_from(text: String) -> Result<Self, NoEnvironmentName> {
        text.parse()
    }
}

impl From<EnvironmentName> for String {
    fn from(name: EnvironmentName) -> Self {
        name.0
    }
}

impl fmt::Display for EnvironmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is below an environment.
#[derive(Debug)]
pub(crate) struct Base {
    name: EnvironmentName,
    production: Lake,
    /// The versions that are read of production's tables.
    pinned: BTreeMap<TableName, u64>,
    /// The environment's own tables.
    own: RwLock<BTreeSet<TableName>>,
    /// Production's tables that were read.
    read: Mutex<HashMap<TableName, Table>>,
}

impl Base {
    fn owns(&self, table: &TableName) -> bool {
        self.own.read().unwrap_or_else(PoisonError::into_inner).contains(table)
    }
}

impl Lake {
    /// The environment of this name, over production as its newest run left it: what a run in the environment starts from. An environment is there once something was written to it.
    ///
    /// # Errors
    /// [`LakeError::NotPublished`] when production has no run; what the store answers.
    pub async fn environment(&self, name: &EnvironmentName) -> Result<Self> {
        let published = self.latest_manifest().await?.ok_or_else(|| LakeError::NotPublished(self.url().to_string()))?;
        let pinned = published.tables.into_iter().map(|entry| (entry.name, entry.version)).collect();
        self.environment_over(name, pinned).await
    }

    /// The environment of this name as its newest run left it, for those who read.
    ///
    /// # Errors
    /// [`LakeError::NoEnvironment`] when nothing was ever run in it; what the store answers.
    pub async fn environment_as_run(&self, name: &EnvironmentName) -> Result<Self> {
        let environment = self.environment_over(name, BTreeMap::new()).await?;
        let Some(run) = manifest::latest(&environment).await? else {
            let known = self.environments().await?;
            let hint = match known.is_empty() {
                true => "there is none yet".to_owned(),
                false => format!("there are {}", known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
            };
            return Err(LakeError::NoEnvironment { name: name.to_string(), hint });
        };
        let of_production = run.tables.into_iter().filter(|entry| entry.is_of_production);
        self.environment_over(name, of_production.map(|entry| (entry.name, entry.version)).collect()).await
    }

    async fn environment_over(&self, name: &EnvironmentName, pinned: BTreeMap<TableName, u64>) -> Result<Self> {
        let base = Base {
            name: name.clone(),
            production: self.clone(),
            pinned,
            own: RwLock::default(),
            read: Mutex::default(),
        };
        let environment = self.with_base(&[SYSTEM_FOLDER, FOLDER, &name.0], base)?;
        let own = environment.own_tables().await?;
        if let Some(base) = environment.base() {
            base.own.write().unwrap_or_else(PoisonError::into_inner).extend(own);
        }
        Ok(environment)
    }

    /// The environments in which something was written, sorted by name. One LIST.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn environments(&self) -> Result<Vec<EnvironmentName>> {
        let folder = self.root().clone().join(SYSTEM_FOLDER).join(FOLDER);
        let mut names: Vec<_> = self.folders(&folder).await?.iter().filter_map(|name| name.parse().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Deletes an environment with all its tables and runs; production is as it was. May be repeated when it was interrupted. Nobody may use it any more.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn drop_environment(&self, name: &EnvironmentName) -> Result<()> {
        let environment = self.environment_over(name, BTreeMap::new()).await?;
        // First the runs: nobody is led to tables that are going.
        for sequence in manifest::sequences(&environment).await? {
            manifest::delete(&environment, sequence).await?;
        }
        for table in environment.own_tables().await? {
            environment.drop_table(&table).await?;
        }
        let folder = environment.root().clone();
        let failed = LakeError::store(format!("cannot list {folder}"));
        let left: Vec<_> = self.store().list(Some(&folder)).try_collect().await.map_err(failed)?;
        self.delete_all(left.into_iter().map(|object| object.location).collect()).await?;
        if let (true, Ok(folder)) = (self.url().scheme() == "file", environment.url().to_file_path()) {
            // Folders are the store's own affair elsewhere; here empty ones would stay, and be taken for an environment.
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(LakeError::InvalidUrl {
                        url: environment.url().to_string(),
                        reason: format!("cannot delete the folder: {error}"),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Which environment this is; `None` for production.
    pub fn environment_name(&self) -> Option<&EnvironmentName> {
        self.base().map(|base| &base.name)
    }

    /// What an environment is over; the lake itself where it is production.
    pub fn production(&self) -> &Self {
        self.base().map_or(self, |base| &base.production)
    }

    /// Whether a table is, or would be made, here: not one of production's that an environment reads.
    pub fn owns(&self, table: &TableName) -> bool {
        self.base().is_none_or(|base| base.owns(table))
    }

    /// A table as a run of this lake left it.
    ///
    /// # Errors
    /// As of [`Lake::table_at`].
    pub async fn table_of(&self, entry: &ManifestEntry) -> Result<Table> {
        match self.base() {
            Some(base) if entry.is_of_production => base.production.table_at(&entry.name, entry.version).await,
            Some(_) => self.own_table_at(&entry.name, entry.version).await,
            None => self.table_at(&entry.name, entry.version).await,
        }
    }

    /// The version of production's table that is read; `None` where there is none, or the environment has a table of its own.
    pub(crate) fn pinned_version(&self, table: &TableName) -> Option<u64> {
        self.base().filter(|base| !base.owns(table)).and_then(|base| base.pinned.get(table).copied())
    }

    /// Production's table at the version that is read.
    pub(crate) async fn production_table(&self, base: &Base, name: &TableName) -> Result<Option<Table>> {
        let Some(version) = base.pinned.get(name).copied() else { return Ok(None) };
        if let Some(table) = base.read.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(Some(table.clone()));
        }
        let table = Box::pin(base.production.table_at(name, version)).await?;
        base.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), table.clone());
        Ok(Some(table))
    }

    /// Production's tables that are read.
    pub(crate) fn production_tables(&self) -> impl Iterator<Item = TableName> {
        self.base().into_iter().flat_map(|base| base.pinned.keys().cloned())
    }

    /// Notes that the environment has this table from here on.
    pub(crate) fn note_own(&self, table: &TableName) {
        if let Some(base) = self.base() {
            base.own.write().unwrap_or_else(PoisonError::into_inner).insert(table.clone());
        }
    }

    /// Notes that the environment has this table no more.
    pub(crate) fn forget_own(&self, table: &TableName) {
        if let Some(base) = self.base() {
            base.own.write().unwrap_or_else(PoisonError::into_inner).remove(table);
        }
    }

    /// Keeps what the newest run of each environment reads of production.
    pub(crate) async fn keep_for_environments(&self, kept: &mut KeptRuns) -> Result<()> {
        for name in self.environments().await? {
            let environment = self.environment_over(&name, BTreeMap::new()).await?;
            let Some(Manifest { tables, .. }) = manifest::latest(&environment).await? else { continue };
            for entry in tables.into_iter().filter(|entry| entry.is_of_production) {
                kept.keep(&entry.name, entry.version);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_are_safe_in_a_path() {
        for name in ["dev", "a", "try-2", "ann_s"] {
            assert_eq!(name.parse::<EnvironmentName>().map(String::from).as_deref(), Ok(name));
        }
        for name in ["", "Dev", "_x", "2a", "a/b", "..", "a.b", "production", &"a".repeat(41)] {
            assert!(name.parse::<EnvironmentName>().is_err(), "{name}");
        }
    }
}
