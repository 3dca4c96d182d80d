//! Tables of stages whose files are gone: they are kept, told of, and deleted when somebody says so.

use std::collections::BTreeSet;

use holdfast_lake::{Lake, Table};
use holdfast_types::TableName;

use crate::Result;
use crate::build::{NOTE_COMMITS_MAX, STAGE_NOTE, quarantine_name};
use crate::features::HISTORY_SCHEMA;
use crate::project::Project;
use crate::run::{RunOptions, Runner, pin_all};

impl Project {
    /// Whether a table can be one of a stage whose file is gone: nobody that this project knows of writes it.
    pub(crate) fn may_be_orphan(&self, name: &TableName) -> bool {
        let is_beside_another = ["quarantine", HISTORY_SCHEMA].contains(&name.schema());
        self.stage(name).is_none() && !self.declared().contains_key(name) && !is_beside_another
    }
}

/// Those of `tables` that a stage made which is not in the project, sorted by name. In an environment those of production are left to production.
///
/// # Errors
/// What the lake answers.
pub(crate) async fn orphans(
    lake: &Lake,
    project: &Project,
    tables: impl Iterator<Item = &Table>,
) -> Result<Vec<TableName>> {
    let mut orphans = Vec::new();
    for table in tables.filter(|table| project.may_be_orphan(table.name()) && lake.owns(table.name())) {
        if table.commit_note(STAGE_NOTE, NOTE_COMMITS_MAX).await?.is_some() {
            orphans.push(table.name().clone());
        }
    }
    orphans.sort();
    Ok(orphans)
}

impl Runner {
    /// Deletes tables of stages whose files are gone, with their quarantine and all of their versions; those among `tables` that are none (any more) are left alone. First a
    /// run without them is published, so that nobody is led to them; who reads an earlier run still finds them gone. May be repeated when it was interrupted. Answers which
    /// tables were deleted.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn prune(&self, tables: &[TableName], options: &RunOptions) -> Result<Vec<TableName>> {
        let mut pinned = pin_all(&self.lake).await?;
        let orphans: Vec<TableName> = orphans(&self.lake, &self.project, pinned.values()).await?;
        let mut gone: BTreeSet<TableName> = orphans.into_iter().filter(|name| tables.contains(name)).collect();
        let quarantines = gone.iter().filter_map(quarantine_name).filter(|name| pinned.contains_key(name));
        let quarantines: Vec<TableName> = quarantines.collect();
        gone.extend(quarantines);
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        pinned.retain(|name, _| !gone.contains(name));
        if self.lake.latest_manifest().await?.is_some() {
            self.publish(options, &pinned, &gone).await?;
        }
        // The quarantine first: it is found through its stage's table.
        let (quarantines, tables): (Vec<_>, Vec<_>) = gone.iter().partition(|name| name.schema() == "quarantine");
        for name in quarantines.into_iter().chain(tables) {
            self.lake.drop_table(name).await?;
        }
        Ok(gone.into_iter().collect())
    }
}
