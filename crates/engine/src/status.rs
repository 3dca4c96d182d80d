//! What is in the lake for each stage: which version, how many rows, when, and whether its inputs moved on.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use holdfast_lake::{Lake, Table};
use holdfast_types::TableName;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::build::{NOTE_COMMITS_MAX, STAGE_NOTE};
use crate::orphans::orphans;
use crate::project::Project;

/// How many tables are looked at at once.
const LOOKS: usize = 8;

/// What the lake holds for a project.
#[derive(Debug, Clone, Serialize)]
pub struct LakeStatus {
    /// The run that readers see; nothing when none was published.
    pub published: Option<PublishedRun>,
    /// The stages, inputs first.
    pub stages: Vec<StageStatus>,
    /// Tables of stages whose files are gone, sorted by name.
    pub orphans: Vec<TableName>,
}

/// A published run.
#[derive(Debug, Clone, Serialize)]
pub struct PublishedRun {
    /// Its place in the order of runs.
    pub run: u64,
    /// Its name.
    pub run_id: String,
    /// What `now()` was.
    pub as_of: DateTime<Utc>,
    /// When it was published.
    pub published_at: DateTime<Utc>,
}

/// A stage's table.
#[derive(Debug, Clone, Serialize)]
pub struct StageStatus {
    /// The stage.
    pub stage: TableName,
    /// Its newest version; nothing when it was never made.
    pub version: Option<u64>,
    /// The version that readers see.
    pub published_version: Option<u64>,
    /// The rows of the newest version, when the log knows.
    pub rows: Option<u64>,
    /// When the newest version was made, when the log knows.
    pub changed_at: Option<DateTime<Utc>>,
    /// In an environment: whether it is production's table.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_of_production: bool,
    /// Whether its inputs moved on.
    #[serde(flatten)]
    pub freshness: Freshness,
}

/// Whether a table is made from what its inputs hold now. Whether its query changed, or the day of `now()`, a plan tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Freshness {
    /// It is.
    Fresh,
    /// These inputs have newer rows.
    Stale {
        /// Which.
        inputs: Vec<TableName>,
    },
    /// It was never made.
    Missing,
    /// Its commits do not say what it was made from.
    Unknown,
}

/// The part of a stage's note that says what it was made from.
#[derive(Debug, Deserialize)]
struct MadeFrom {
    inputs: BTreeMap<TableName, Option<u64>>,
}

/// Looks at the tables of all stages and at what is published. Reads logs, no data.
///
/// # Errors
/// What the lake answers.
pub async fn lake_status(lake: &Lake, project: &Project) -> Result<LakeStatus> {
    let manifest = lake.latest_manifest().await?;
    let mut names: Vec<TableName> = project.stages().iter().map(|stage| stage.name.clone()).collect();
    names.extend(project.stages().iter().flat_map(|stage| stage.inputs.keys().cloned()));
    names.extend(lake.tables().await?.into_iter().filter(|name| project.may_be_orphan(name)));
    names.sort();
    names.dedup();
    let tables: BTreeMap<TableName, Option<(Table, u64)>> = futures::stream::iter(names)
        .map(|name| async move {
            let found = match lake.table(&name).await? {
                Some(table) => {
                    let held = table.data_version().await?;
                    Some((table, held))
                }
                None => None,
            };
            Ok::<_, crate::EngineError>((name, found))
        })
        .buffered(LOOKS)
        .try_collect()
        .await?;
    let held = |name: &TableName| tables.get(name).and_then(|found| found.as_ref().map(|(_, held)| *held));
    let mut stages = Vec::with_capacity(project.stages().len());
    for stage in project.stages() {
        let table = tables.get(&stage.name).and_then(|found| found.as_ref().map(|(table, _)| table));
        let freshness = match table {
            None => Freshness::Missing,
            Some(table) => match table.commit_note(STAGE_NOTE, NOTE_COMMITS_MAX).await?.map(serde_json::from_value) {
                Some(Ok(MadeFrom { inputs })) => {
                    let moved =
                        stage.inputs.keys().filter(|input| inputs.get(*input).copied().flatten() != held(input));
                    match moved.cloned().collect::<Vec<_>>() {
                        moved if moved.is_empty() => Freshness::Fresh,
                        moved => Freshness::Stale { inputs: moved },
                    }
                }
                _ => Freshness::Unknown,
            },
        };
        let published = manifest.as_ref().and_then(|run| run.tables.iter().find(|entry| entry.name == stage.name));
        stages.push(StageStatus {
            stage: stage.name.clone(),
            version: table.map(Table::version),
            published_version: published.map(|entry| entry.version),
            rows: table.and_then(Table::row_count),
            changed_at: table.and_then(Table::committed_at),
            is_of_production: table.is_some() && !lake.owns(&stage.name),
            freshness,
        });
    }
    let published = manifest.map(|run| PublishedRun {
        run: run.sequence,
        run_id: run.run_id,
        as_of: run.as_of,
        published_at: run.published_at,
    });
    let tables = tables.values().filter_map(|found| found.as_ref().map(|(table, _)| table));
    let orphans = orphans(lake, project, tables).await?;
    Ok(LakeStatus { published, stages, orphans })
}
