use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use deltalake_core::checkpoints::create_checkpoint;
use futures::TryStreamExt;
use holdfast_types::TableName;
use object_store::ObjectMeta;
use object_store::path::Path;
use serde::Serialize;

use crate::Result;
use crate::commit::CommitOutcome;
use crate::compact::Merge;
use crate::error::LakeError;
use crate::lake::Lake;
use crate::lease::Fence;
use crate::manifest;
use crate::table::Table;

/// How long a writer may take from staging a file to committing it, beside the retention.
const STAGING_MAX: TimeDelta = TimeDelta::hours(1);

/// How much is merged before it is committed: what a process that dies would have to do again.
const ROUND_BYTES_MAX: u64 = 1 << 30;

/// After so many conflicts in a row a table is left to the next maintenance.
const CONFLICTS_MAX: u32 = 3;

/// What maintenance is to do.
#[derive(Debug, Clone)]
pub struct MaintainSettings {
    /// The size that files are merged to; those of half of it or more stay as they are.
    pub target_bytes: u64,
    /// How long what was current stays readable: versions, their files, and the runs that name them.
    pub retention: Duration,
    /// How many commits a table keeps in its log whatever their age: the notes in them are progress.
    pub commits_kept: u64,
    /// A checkpoint is written once so many commits came after the last.
    pub checkpoint_after: u64,
    /// What merging may hold in memory where files have to be sorted.
    pub memory_bytes: usize,
    /// Only tell what would be done.
    pub is_dry_run: bool,
}

impl Default for MaintainSettings {
    fn default() -> Self {
        Self {
            target_bytes: 128 << 20,
            retention: Duration::from_secs(7 * 24 * 60 * 60),
            commits_kept: 1_000,
            checkpoint_after: 10,
            memory_bytes: 512 << 20,
            is_dry_run: false,
        }
    }
}

/// What maintenance did to a table, or would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableMaintenance {
    /// Which table.
    pub table: TableName,
    /// Its files before and after.
    pub files_before: u64,
    /// As above.
    pub files_after: u64,
    /// What they held, before and after.
    pub bytes_before: u64,
    /// As above.
    pub bytes_after: u64,
    /// The files that were merged into others.
    pub files_merged: u64,
    /// The rows in them.
    pub rows_merged: u64,
    /// How often others were quicker; after three times in a row the table is left to the next maintenance.
    pub conflicts: u32,
    /// The version a checkpoint was written for.
    pub checkpoint: Option<u64>,
    /// Commits and checkpoints deleted from the log.
    pub log_files_deleted: u64,
    /// Data files deleted that no version within the retention names.
    pub files_vacuumed: u64,
    /// What they held.
    pub bytes_vacuumed: u64,
}

impl TableMaintenance {
    /// Whether anything was to be done.
    pub fn is_idle(&self) -> bool {
        self.files_merged == 0
            && self.conflicts == 0
            && self.checkpoint.is_none()
            && self.log_files_deleted == 0
            && self.files_vacuumed == 0
    }
}

/// What stays readable whatever its age: the versions that kept runs name. Whoever names versions elsewhere (a training set that must be had again in a year) adds them
/// with [`KeptRuns::keep`] before tables are maintained.
#[derive(Debug, Clone, Default)]
pub struct KeptRuns {
    versions: BTreeMap<TableName, BTreeSet<u64>>,
    /// How many runs were deleted, or would be.
    pub deleted: u64,
}

impl KeptRuns {
    /// Keeps one more version of a table: its files, and what of the log it takes to read it.
    pub fn keep(&mut self, table: &TableName, version: u64) {
        self.versions.entry(table.clone()).or_default().insert(version);
    }
}

/// What is in a table's log.
#[derive(Debug, Default)]
struct Log {
    commits: Vec<(u64, ObjectMeta)>,
    checkpoints: Vec<(u64, ObjectMeta)>,
}

impl Lake {
    /// Deletes the manifests of runs that were published before the retention, except the newest; answers what the others name, and what the newest run of each environment reads. To be
    /// called before tables are maintained.
    ///
    /// # Errors
    /// What the store answers; [`LakeError::Damaged`] when a manifest cannot be read.
    pub async fn maintain_runs(&self, settings: &MaintainSettings) -> Result<KeptRuns> {
        let cutoff = self.cutoff(settings);
        let mut kept = KeptRuns::default();
        let mut is_newest = true;
        // From the newest on: all before the first that is too old are older still.
        let mut is_past = false;
        for sequence in manifest::sequences(self).await?.into_iter().rev() {
            if !is_past {
                let manifest = manifest::read(self, sequence).await?;
                is_past = !is_newest && manifest.published_at < cutoff;
                if !is_past {
                    for entry in manifest.tables {
                        kept.keep(&entry.name, entry.version);
                    }
                }
            }
            is_newest = false;
            if is_past {
                kept.deleted += 1;
                if !settings.is_dry_run {
                    manifest::delete(self, sequence).await?;
                }
            }
        }
        self.keep_for_environments(&mut kept).await?;
        Ok(kept)
    }

    /// Merges small files, writes a checkpoint, cleans the log behind it and deletes files that no version within the retention names. Each of these
    /// leaves the table whole if the process dies. To be done under a lease, whose fence goes into the commits; without one, two at a time cost work and nothing else.
    ///
    /// Every version that was current at some moment within the retention, or that a kept run names, stays readable.
    ///
    /// # Errors
    /// What the store or the Delta log answers; [`LakeError::Superseded`] when another worker took over.
    pub async fn maintain(
        &self,
        name: &TableName,
        settings: &MaintainSettings,
        kept: &KeptRuns,
        fence: Option<Fence>,
    ) -> Result<TableMaintenance> {
        let table = self.table(name).await?.ok_or_else(|| LakeError::NoTable(name.clone()))?;
        let mut done = TableMaintenance {
            table: name.clone(),
            files_before: table.file_count() as u64,
            files_after: table.file_count() as u64,
            bytes_before: table.byte_count(),
            bytes_after: table.byte_count(),
            files_merged: 0,
            rows_merged: 0,
            conflicts: 0,
            checkpoint: None,
            log_files_deleted: 0,
            files_vacuumed: 0,
            bytes_vacuumed: 0,
        };
        let found = table.version();
        let table = self.merge(table, settings, fence, &mut done).await?;
        let log = self.log(&table).await?;
        self.checkpoint(&table, &log, settings, &mut done).await?;
        let current_at_cutoff = log.current_at(self.cutoff(settings), table.version());
        let mut versions: BTreeSet<u64> = kept.versions.get(name).cloned().unwrap_or_default();
        // What was committed since is in newer files.
        versions.retain(|version| *version < current_at_cutoff);
        // And what was merged just now is not deleted just now, whatever the clocks say.
        versions.extend([current_at_cutoff, found]);
        self.vacuum(&table, &versions, settings, &mut done).await?;
        self.clean_log(&table, &log, &versions, settings, &mut done).await?;
        Ok(done)
    }

    async fn merge(
        &self,
        mut table: Table,
        settings: &MaintainSettings,
        fence: Option<Fence>,
        done: &mut TableMaintenance,
    ) -> Result<Table> {
        let mut conflicts = 0;
        loop {
            let merges = table.merges(settings.target_bytes);
            if settings.is_dry_run {
                let files: usize = merges.iter().map(Merge::file_count).sum();
                done.files_merged = files as u64;
                done.files_after = done.files_before - (files - merges.len()) as u64;
                return Ok(table);
            }
            let round = first_round(&merges);
            if round.is_empty() || conflicts >= CONFLICTS_MAX {
                done.files_after = table.file_count() as u64;
                done.bytes_after = table.byte_count();
                return Ok(table);
            }
            let files: usize = round.iter().map(Merge::file_count).sum();
            let rewrite = self.stage_rewrite(&table, round, settings.memory_bytes).await?;
            let rows = rewrite.rows;
            match self.commit_rewrite(&table, rewrite, fence.clone()).await? {
                CommitOutcome::Conflicted { version } => {
                    tracing::debug!(table = %table.name(), version, "files to be merged were replaced meanwhile");
                    conflicts += 1;
                    done.conflicts += 1;
                }
                CommitOutcome::Applied { .. } | CommitOutcome::AlreadyApplied { .. } => {
                    conflicts = 0;
                    done.files_merged += files as u64;
                    done.rows_merged += rows;
                }
            }
            table = self.table(table.name()).await?.ok_or_else(|| LakeError::NoTable(table.name().clone()))?;
        }
    }

    async fn checkpoint(
        &self,
        table: &Table,
        log: &Log,
        settings: &MaintainSettings,
        done: &mut TableMaintenance,
    ) -> Result<()> {
        let commits = match log.checkpoints.last() {
            Some((last, _)) => table.version().saturating_sub(*last),
            None => table.version() + 1,
        };
        if commits < settings.checkpoint_after.max(1) {
            return Ok(());
        }
        if !settings.is_dry_run {
            create_checkpoint(table.delta(), None).await.map_err(LakeError::delta(table.name()))?;
        }
        done.checkpoint = Some(table.version());
        Ok(())
    }

    /// Deletes commits and checkpoints that are older than the retention and that none of `versions`, nor any after them, needs to be read.
    async fn clean_log(
        &self,
        table: &Table,
        log: &Log,
        versions: &BTreeSet<u64>,
        settings: &MaintainSettings,
        done: &mut TableMaintenance,
    ) -> Result<()> {
        let noted = (table.version() + 1).saturating_sub(settings.commits_kept);
        let needed = versions.first().copied().unwrap_or(0).min(noted);
        // Everything from this checkpoint on can be read without what is before it.
        let Some((start, _)) = log.checkpoints.iter().rev().find(|(version, _)| *version <= needed) else {
            return Ok(());
        };
        let cutoff = self.cutoff(settings);
        let expired: Vec<Path> = log
            .commits
            .iter()
            .chain(&log.checkpoints)
            .filter(|(version, object)| version < start && object.last_modified < cutoff)
            .map(|(_, object)| object.location.clone())
            .collect();
        done.log_files_deleted = expired.len() as u64;
        self.delete_unless_dry(expired, settings).await
    }

    /// Deletes data files that neither the table nor `versions` name, and that are too old to be committed or read any more.
    async fn vacuum(
        &self,
        table: &Table,
        versions: &BTreeSet<u64>,
        settings: &MaintainSettings,
        done: &mut TableMaintenance,
    ) -> Result<()> {
        let mut named: HashSet<String> = table.files().into_iter().map(|add| add.path).collect();
        for version in versions.iter().filter(|version| **version != table.version()) {
            named.extend(self.table_at(table.name(), *version).await?.files().into_iter().map(|add| add.path));
        }
        let named: HashSet<Path> = named.iter().map(|path| table.location_of(path)).collect();
        let cutoff = self.cutoff(settings) - STAGING_MAX;
        let expired: Vec<ObjectMeta> = self
            .store()
            .list(Some(table.prefix()))
            .try_filter(|object| {
                let location = object.location.as_ref();
                let is_data = location.ends_with(".parquet") && !location.contains("/_delta_log/");
                let expired = is_data && object.last_modified < cutoff && !named.contains(&object.location);
                futures::future::ready(expired)
            })
            .try_collect()
            .await
            .map_err(LakeError::store(format!("cannot list {}", table.prefix())))?;
        done.files_vacuumed = expired.len() as u64;
        done.bytes_vacuumed = expired.iter().map(|object| object.size).sum();
        self.delete_unless_dry(expired.into_iter().map(|object| object.location).collect(), settings).await
    }

    async fn delete_unless_dry(&self, paths: Vec<Path>, settings: &MaintainSettings) -> Result<()> {
        match settings.is_dry_run {
            true => Ok(()),
            false => self.delete_all(paths).await,
        }
    }

    async fn log(&self, table: &Table) -> Result<Log> {
        let folder = table.prefix().clone().join("_delta_log");
        let objects: Vec<ObjectMeta> = self
            .store()
            .list(Some(&folder))
            .try_collect()
            .await
            .map_err(LakeError::store(format!("cannot list {folder}")))?;
        let mut log = Log::default();
        for object in objects {
            let Some((version, rest)) = object.location.filename().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Some(version) = Some(version).filter(|text| text.len() == 20).and_then(|text| text.parse().ok()) else {
                continue;
            };
            if rest == "json" {
                log.commits.push((version, object));
            } else if rest.starts_with("checkpoint") && rest.ends_with(".parquet") {
                log.checkpoints.push((version, object));
            }
        }
        log.commits.sort_by_key(|(version, _)| *version);
        log.checkpoints.sort_by_key(|(version, _)| *version);
        Ok(log)
    }

    /// What was current before this moment need not stay readable.
    fn cutoff(&self, settings: &MaintainSettings) -> DateTime<Utc> {
        let retention = TimeDelta::from_std(settings.retention).unwrap_or(TimeDelta::MAX);
        self.clock().now().checked_sub_signed(retention).unwrap_or(DateTime::<Utc>::MIN_UTC)
    }
}

impl Log {
    /// The version that was current at `cutoff`: the newest committed before. The oldest there is when all are newer.
    fn current_at(&self, cutoff: DateTime<Utc>, newest: u64) -> u64 {
        let before = self.commits.iter().rev().find(|(_, object)| object.last_modified < cutoff);
        before.or_else(|| self.commits.first()).map_or(newest, |(version, _)| (*version).min(newest))
    }
}

/// As many merges as are committed at once.
fn first_round(merges: &[Merge]) -> &[Merge] {
    let mut bytes = 0;
    let count = merges
        .iter()
        .take_while(|merge| {
            let is_within = bytes == 0 || bytes + merge.bytes() <= ROUND_BYTES_MAX;
            bytes += merge.bytes();
            is_within
        })
        .count();
    &merges[..count]
}
