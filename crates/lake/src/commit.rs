use std::collections::{HashMap, HashSet};

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, Utc};
use deltalake_core::DeltaTableError;
use deltalake_core::checkpoints::create_checkpoint;
use deltalake_core::kernel::transaction::{CommitData, PROTOCOL};
use deltalake_core::kernel::{Action, Add, AddCDCFile, MetadataExt, Transaction};
use deltalake_core::logstore::CommitOrBytes;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::table::state::DeltaTableState;
use holdfast_types::{Promise, TableName};
use object_store::ObjectStoreExt;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::Result;
use crate::error::LakeError;
use crate::lake::{Lake, kernel_schema};
use crate::lease::Fence;
use crate::newest::Tip;
use crate::statistics::record_count;
use crate::table::{DATA_VERSION, StagedFile, Table};

/// How often a commit is tried when others commit to the same table at the same time. Each time one of them got on.
const ATTEMPTS_MAX: u32 = 100;

/// Of so many commits one writes a checkpoint, so that who loads the table replays no more than about that many commits.
const CHECKPOINT_EVERY: u64 = 128;

/// The property of tables whose changes of rows are kept beside their files, and what the Delta protocol asks of their writers.
const CHANGE_FEED: &str = "delta.enableChangeDataFeed";
const CHANGE_FEED_FEATURE: &str = "changeDataFeed";
const CHANGE_FEED_WRITER_VERSION: i64 = 4;
/// From this version on a protocol names its features one by one.
const FEATURES_WRITER_VERSION: i64 = 7;

/// How far a writer has come: `app_id` is a source's partition or a stage, `version` only ever grows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Who writes.
    pub app_id: String,
    /// Which of its steps this is.
    pub version: i64,
}

/// What a commit does to the rows that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// Adds the files.
    Append,
    /// Puts the files in the place of all there are.
    ReplaceAll,
    /// Puts the files in the place of those in `removed`. Rows that were in those and are not in the files are gone, as `told` says.
    Replace {
        /// Paths within the table, as the log has them.
        removed: Vec<String>,
        /// Change data: which rows came and went. Needed where files are removed.
        told: Vec<StagedFile>,
    },
    /// Puts the files in the place of those in `removed`, whose rows they hold. To readers of changes nothing happened.
    Rewrite {
        /// Paths within the table, as the log has them.
        removed: Vec<String>,
    },
}

/// A commit to be.
#[derive(Debug)]
pub struct Change<'a> {
    /// The version it was decided on.
    pub table: &'a Table,
    /// Who commits, and its step.
    pub position: Position,
    /// The lease it is made under, if any: refused once it is over, or a later holder of that lease has committed to the table.
    pub fence: Option<Fence>,
    /// What happens to the rows that are there.
    pub kind: ChangeKind,
    /// The files it brings.
    pub files: Vec<StagedFile>,
    /// The new columns, with [`ChangeKind::ReplaceAll`] only; `None` keeps them. What it has as metadata becomes properties of the table:
    /// [`Table::property`].
    pub schema: Option<SchemaRef>,
    /// The table's new one-line description, together with `schema`.
    pub comment: Option<String>,
    /// Notes for the commit, readable through [`Table::commit_note`]. Never personal data.
    pub metadata: Map<String, Value>,
}

/// What became of a commit. Never a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a conflicted commit did not happen"]
pub enum CommitOutcome {
    /// It is in the table now, by this call.
    Applied {
        /// The version it made.
        version: u64,
    },
    /// The table was at or past this position already: by an earlier try, or by another worker with the same work.
    AlreadyApplied {
        /// The newest version of the table.
        version: u64,
    },
    /// Somebody else changed what this change was decided on: read again, then decide again.
    Conflicted {
        /// The newest version of the table.
        version: u64,
    },
}

impl Lake {
    /// Commits `change` by the commit rule: look, commit as the very next version, and on any error look again. When somebody else made that
    /// version, all is decided anew on it: nothing passes between the look and the commit. An append to a table that was looked at in the last minute is
    /// one PUT.
    ///
    /// May be repeated with the same position as often as wanted; it is applied once. The files of a change that was
    /// not applied stay behind unreferenced until vacuum.
    ///
    /// # Errors
    /// [`LakeError::Superseded`] when a later holder of the change's lease has committed, [`LakeError::LeaseOver`] when it is over. Else only when the commit certainly did not land
    /// and nobody else's is the reason: the store refused it.
    pub async fn commit(&self, change: Change<'_>) -> Result<CommitOutcome> {
        if let Some(environment) = self.environment_name().filter(|_| !self.owns(change.table.name())) {
            let (table, environment) = (change.table.name().clone(), environment.to_string());
            return Err(LakeError::NotOwn { table, environment });
        }
        if change.kind == ChangeKind::Append {
            return self.append(&change).await;
        }
        let name = change.table.name();
        let mut current = self.table(name).await?.ok_or_else(|| LakeError::NoTable(name.clone()))?;
        if landed(&current, &change).await? {
            return Ok(CommitOutcome::AlreadyApplied { version: current.version() });
        }
        for _ in 0..ATTEMPTS_MAX {
            let now = self.clock().now();
            check_fence(name, &Tip::new(current.clone(), now), change.fence.as_ref(), now).await?;
            if !still_holds(&change, &current).await? {
                return Ok(CommitOutcome::Conflicted { version: current.version() });
            }
            let same_data = match &change.kind {
                ChangeKind::Rewrite { .. } => Some(current.data_version().await?),
                // Only the position and the notes are new.
                ChangeKind::Replace { removed, .. } if removed.is_empty() && change.files.is_empty() => {
                    Some(current.data_version().await?)
                }
                ChangeKind::Append | ChangeKind::ReplaceAll | ChangeKind::Replace { .. } => None,
            };
            let error = match self.try_commit(&current, current.version(), &change, same_data).await {
                Ok(()) => {
                    let version = current.version() + 1;
                    self.checkpoint_now_and_then(name, version).await;
                    return Ok(CommitOutcome::Applied { version });
                }
                Err(error) => error,
            };

            let after = self.table(name).await?.ok_or_else(|| LakeError::NoTable(name.clone()))?;
            if landed(&after, &change).await? {
                let ours = holds_files_of(&after, &change);
                tracing::debug!(table = %name, ours, "a commit reported an error but its position is in the table");
                return Ok(if ours {
                    CommitOutcome::Applied { version: after.version() }
                } else {
                    CommitOutcome::AlreadyApplied { version: after.version() }
                });
            }
            if !is_lost_race(&error) || after.version() <= current.version() {
                return Err(LakeError::delta(name)(error));
            }
            current = after;
        }
        Ok(CommitOutcome::Conflicted { version: current.version() })
    }

    /// Commits an append by the commit rule. It is decided on positions and fences alone, so it needs the last version that is known and not the files in it: whether
    /// that is the newest, the conditional PUT of the next one tells.
    async fn append(&self, change: &Change<'_>) -> Result<CommitOutcome> {
        let name = change.table.name();
        let Position { app_id, version: step } = &change.position;
        let mut tip = match self.known_tip(name) {
            Some(tip) => tip,
            None => self.loaded_tip(name).await?,
        };
        // Ours may be among the commits that others' look like: the answer to an earlier try was lost.
        let mut ours = false;
        for _ in 0..ATTEMPTS_MAX {
            if tip.position(app_id).await?.is_some_and(|stored| stored >= *step) {
                let version = tip.version;
                self.remember_tip(tip);
                return Ok(if ours {
                    CommitOutcome::Applied { version }
                } else {
                    CommitOutcome::AlreadyApplied { version }
                });
            }
            check_fence(name, &tip, change.fence.as_ref(), self.clock().now()).await?;
            let error = match self.try_commit(&tip.table, tip.version, change, None).await {
                Ok(()) if tip.can_be_gone_on_from(self.clock().now()) => {
                    let fence = change.fence.iter().map(|fence| (fence.app_id(), fence.version()));
                    tip.pass(fence.chain([(app_id.clone(), *step)]), self.clock().now());
                    let version = tip.version;
                    self.remember_tip(tip);
                    self.checkpoint_now_and_then(name, version).await;
                    return Ok(CommitOutcome::Applied { version });
                }
                // This process stalled, and the log may have been cleaned past that version meanwhile: only a look tells what came of it.
                Ok(()) => None,
                Err(error) => Some(error),
            };

            if error.as_ref().is_some_and(is_lost_race)
                && let Some(passed) = tip.follow(self.clock().now()).await?
            {
                ours = ours || passed.iter().any(|commit| brings_files_of(commit, change));
                continue;
            }
            let before = tip.version;
            let after = self.load(name).await?.ok_or_else(|| LakeError::NoTable(name.clone()))?;
            ours = ours || holds_files_of(&after, change);
            tip = Tip::new(after, self.clock().now());
            let has_landed = tip.position(app_id).await?.is_some_and(|stored| stored >= *step);
            if let Some(error) = error
                && !has_landed
                && (!is_lost_race(&error) || tip.version <= before)
            {
                return Err(LakeError::delta(name)(error));
            }
            tracing::debug!(table = %name, has_landed, ours, "an append was looked for in the table");
        }
        Ok(CommitOutcome::Conflicted { version: tip.version })
    }

    async fn loaded_tip(&self, name: &TableName) -> Result<Tip> {
        let now = self.clock().now();
        let table = self.load(name).await?.ok_or_else(|| LakeError::NoTable(name.clone()))?;
        Ok(Tip::new(table, now))
    }

    fn transactions(&self, change: &Change<'_>) -> Vec<Transaction> {
        let last_updated = Some(self.clock().now().timestamp_millis());
        let fence = change.fence.iter().map(|fence| (fence.app_id(), fence.version()));
        std::iter::once((change.position.app_id.clone(), change.position.version))
            .chain(fence)
            .map(|(app_id, version)| Transaction { app_id, version, last_updated })
            .collect()
    }

    /// Writes a checkpoint of the newest version when this one is due for it. Without one the table is as right, and slower to load.
    async fn checkpoint_now_and_then(&self, name: &TableName, version: u64) {
        if !(version + 1).is_multiple_of(CHECKPOINT_EVERY) {
            return;
        }
        let written = async {
            let Some(table) = self.table(name).await? else { return Ok(()) };
            create_checkpoint(table.delta(), None).await.map_err(LakeError::delta(name))
        };
        if let Err(error) = written.await {
            tracing::debug!(table = %name, version, %error, "a checkpoint could not be written");
        }
    }

    /// Deletes staged files that will not be committed. What cannot be deleted stays behind unreferenced until vacuum.
    pub async fn discard(&self, files: Vec<StagedFile>, table: &Table) {
        for file in files {
            let location = table.location_of(&file.add.path);
            if let Err(error) = self.store().delete(&location).await {
                tracing::debug!(%location, %error, "a staged file stays behind");
            }
        }
    }

    /// Creates the version after `version`, or fails; columns and protocol of that one are those of `table`, and so are its files unless the change is an append.
    /// With `same_data` it notes that its rows are those of that version.
    ///
    /// delta-rs's own way to commit is not taken: it would carry the commit over to versions that nobody looked at, its check for conflicts lets two rewrites of the
    /// same files pass, which doubles their rows, and it lists and replays the log twice.
    async fn try_commit(
        &self,
        table: &Table,
        version: u64,
        change: &Change<'_>,
        same_data: Option<u64>,
    ) -> Result<(), DeltaTableError> {
        let delta = table.delta();
        let snapshot = delta.snapshot()?;
        let mut actions = Vec::with_capacity(change.files.len() + 1);
        let partition_by = Some(table.partition_columns().to_vec()).filter(|columns| !columns.is_empty());
        let operation = match &change.kind {
            ChangeKind::Append => DeltaOperation::Write { mode: SaveMode::Append, partition_by, predicate: None },
            ChangeKind::ReplaceAll => {
                actions.extend(snapshot.log_data().iter().map(|file| Action::Remove(file.remove_action(true))));
                if let Some(schema) = &change.schema {
                    let properties = schema.metadata();
                    let schema = kernel_schema(table.name(), schema)
                        .map_err(|error| DeltaTableError::generic(error.to_string()))?;
                    let mut metadata = snapshot.metadata().clone().with_schema(&schema)?;
                    if let Some(comment) = &change.comment {
                        metadata = metadata.with_description(comment.clone())?;
                    }
                    for (key, value) in properties {
                        metadata = metadata.add_config_key(key.clone(), value.clone())?;
                    }
                    actions.push(Action::Metadata(metadata));
                }
                // Without a predicate other writers' delta-rs would not notice that these rows were rewritten.
                DeltaOperation::Write { mode: SaveMode::Overwrite, partition_by, predicate: Some("true".to_owned()) }
            }
            ChangeKind::Replace { removed, told } => {
                let removed: HashSet<&str> = removed.iter().map(String::as_str).collect();
                let files = snapshot.log_data();
                let files = files.iter().filter(|file| removed.contains(file.path().as_ref()));
                actions.extend(files.map(|file| Action::Remove(file.remove_action(true))));
                if !told.is_empty() {
                    actions.extend(with_change_feed(snapshot)?);
                    actions.extend(told.iter().map(|file| Action::Cdc(change_data(file))));
                }
                DeltaOperation::Write { mode: SaveMode::Overwrite, partition_by, predicate: Some("true".to_owned()) }
            }
            ChangeKind::Rewrite { removed } => {
                let removed: HashSet<&str> = removed.iter().map(String::as_str).collect();
                let files = snapshot.log_data();
                let files = files.iter().filter(|file| removed.contains(file.path().as_ref()));
                actions.extend(files.map(|file| Action::Remove(file.remove_action(false))));
                let bytes = change.files.iter().map(|file| file.add.size).max().unwrap_or(0);
                DeltaOperation::Optimize { predicate: None, target_size: bytes }
            }
        };
        let changes_data = !matches!(change.kind, ChangeKind::Rewrite { .. });
        let adds = change.files.iter().map(|file| Add { data_change: changes_data, ..file.add.clone() });
        actions.extend(adds.map(Action::Add));
        let mut metadata = change.metadata.clone();
        if let Some(version) = same_data {
            metadata.insert(DATA_VERSION.to_owned(), version.into());
        }

        PROTOCOL.can_commit(snapshot, &actions, &operation)?;
        let metadata = metadata.into_iter().collect();
        let commit = CommitData::new(actions, operation, metadata, self.transactions(change)).get_bytes()?;
        let log = delta.log_store();
        Ok(log.write_commit_entry(version + 1, CommitOrBytes::LogBytes(commit), Uuid::new_v4()).await?)
    }
}

/// What makes a table one that keeps change data, where it is none yet: other writers have to know.
fn with_change_feed(snapshot: &DeltaTableState) -> Result<Vec<Action>, DeltaTableError> {
    if snapshot.metadata().configuration().get(CHANGE_FEED).is_some_and(|value| value == "true") {
        return Ok(Vec::new());
    }
    let metadata = snapshot.metadata().clone().add_config_key(CHANGE_FEED.to_owned(), "true".to_owned())?;
    let mut protocol = serde_json::to_value(snapshot.protocol())?;
    if protocol["minWriterVersion"].as_i64().unwrap_or(0) < FEATURES_WRITER_VERSION {
        protocol["minWriterVersion"] = CHANGE_FEED_WRITER_VERSION.into();
    } else if let Some(features) = protocol["writerFeatures"].as_array_mut() {
        features.push(CHANGE_FEED_FEATURE.into());
    }
    Ok(vec![Action::Protocol(serde_json::from_value(protocol)?), Action::Metadata(metadata)])
}

fn change_data(file: &StagedFile) -> AddCDCFile {
    AddCDCFile {
        path: file.add.path.clone(),
        size: file.add.size,
        partition_values: file.add.partition_values.clone(),
        data_change: false,
        tags: None,
    }
}

async fn reached(table: &Table, position: &Position) -> Result<bool> {
    Ok(table.position(&position.app_id).await?.is_some_and(|stored| stored >= position.version))
}

/// Whether the change is in the table, by whoever.
async fn landed(table: &Table, change: &Change<'_>) -> Result<bool> {
    match change.kind {
        ChangeKind::Append | ChangeKind::ReplaceAll | ChangeKind::Replace { .. } => {
            reached(table, &change.position).await
        }
        // Two merges of the same files are different files: what one did is not what the other meant to do.
        ChangeKind::Rewrite { .. } => Ok(holds_files_of(table, change)),
    }
}

fn holds_files_of(table: &Table, change: &Change<'_>) -> bool {
    let marker = change.files.first().map(|file| &file.add.path);
    marker.is_some_and(|path| table.files().iter().any(|add| add.path == *path))
}

/// Whether a commit brings the files of `change`.
fn brings_files_of(commit: &[u8], change: &Change<'_>) -> bool {
    let marker = change.files.first().map(|file| file.add.path.as_bytes());
    marker.is_some_and(|path| commit.windows(path.len()).any(|part| part == path))
}

fn is_lost_race(error: &DeltaTableError) -> bool {
    matches!(error, DeltaTableError::VersionAlreadyExists(_))
}

async fn check_fence(name: &TableName, tip: &Tip, fence: Option<&Fence>, now: DateTime<Utc>) -> Result<()> {
    let Some(fence) = fence else { return Ok(()) };
    match tip.position(&fence.app_id()).await? {
        Some(newest) if newest > fence.version() => Err(LakeError::Superseded {
            table: name.clone(),
            lease: fence.lease.clone(),
            generation: fence.generation,
            newest,
        }),
        _ if fence.is_over(now) => Err(LakeError::LeaseOver { table: name.clone(), lease: fence.lease.clone() }),
        _ => Ok(()),
    }
}

/// Whether what a change was decided on is still so in `current`.
async fn still_holds(change: &Change<'_>, current: &Table) -> Result<bool> {
    match &change.kind {
        ChangeKind::Append => Ok(true),
        // Files that were merged meanwhile hold the rows that were there.
        ChangeKind::ReplaceAll => Ok(current.version() == change.table.version()
            || current.data_version().await? == change.table.data_version().await?),
        // Files that were merged meanwhile are not there to be removed, though the rows are.
        ChangeKind::Replace { removed, .. } => {
            let same_rows = current.version() == change.table.version()
                || current.data_version().await? == change.table.data_version().await?;
            let files: HashSet<String> = current.files().into_iter().map(|add| add.path).collect();
            Ok(same_rows && removed.iter().all(|path| files.contains(path)))
        }
        ChangeKind::Rewrite { removed } => {
            let rows: HashMap<String, Option<u64>> =
                current.files().into_iter().map(|add| (add.path, record_count(add.stats.as_deref()))).collect();
            let Some(rows) = removed.iter().map(|path| rows.get(path).copied()).collect::<Option<Vec<_>>>() else {
                return Ok(false);
            };
            let before: Option<u64> = rows.into_iter().sum();
            let after: u64 = change.files.iter().map(|file| file.rows).sum();
            Promise::Ing2.check(before.is_none_or(|before| before == after), || {
                format!("a rewrite of {} would turn {before:?} rows into {after}", current.name())
            })?;
            Ok(true)
        }
    }
}
