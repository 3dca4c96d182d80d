use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use holdfast_types::TableName;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::LakeError;
use crate::lake::{Lake, SYSTEM_FOLDER};

/// One table as a run left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// Which table.
    pub name: TableName,
    /// Which version of it.
    pub version: u64,
    /// Its rows, when the log knows.
    pub rows: Option<u64>,
    /// In a run of an environment: a table of production, which is read where it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_of_production: bool,
    /// Of a stage's table: the versions of inputs up to which nothing concerned it, where they are newer than those that it notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub looked_at: BTreeMap<TableName, Option<u64>>,
}

/// A published run: the versions of all tables that belong together. A reader that pins them sees one run, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The run's place in the order of runs; 1 is the first.
    pub sequence: u64,
    /// The run's own name.
    pub run_id: String,
    /// The moment the run looked at its data from: what `now()` was in its stages.
    pub as_of: DateTime<Utc>,
    /// When it was published.
    pub published_at: DateTime<Utc>,
    /// The tables, sorted by name.
    pub tables: Vec<ManifestEntry>,
}

fn folder(lake: &Lake) -> Path {
    lake.root().clone().join(SYSTEM_FOLDER).join("runs")
}

fn object(lake: &Lake, sequence: u64) -> Path {
    folder(lake).join(format!("{sequence:020}.json"))
}

/// The runs that are there, the oldest first.
pub(crate) async fn sequences(lake: &Lake) -> Result<Vec<u64>> {
    let names = lake.list_names(&folder(lake)).await?;
    Ok(names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect())
}

pub(crate) async fn latest(lake: &Lake) -> Result<Option<Manifest>> {
    match sequences(lake).await?.last() {
        Some(sequence) => read(lake, *sequence).await.map(Some),
        None => Ok(None),
    }
}

pub(crate) async fn read(lake: &Lake, sequence: u64) -> Result<Manifest> {
    let path = object(lake, sequence);
    let what = || format!("cannot read {path}");
    let body = lake
        .store()
        .get(&path)
        .await
        .map_err(LakeError::store(what()))?
        .bytes()
        .await
        .map_err(LakeError::store(what()))?;
    serde_json::from_slice(&body)
        .map_err(|error| LakeError::Damaged { path: path.to_string(), reason: error.to_string() })
}

/// Deletes a run; one that is gone already is fine.
pub(crate) async fn delete(lake: &Lake, sequence: u64) -> Result<()> {
    let path = object(lake, sequence);
    match lake.store().delete(&path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(LakeError::store(format!("cannot delete {path}"))(error)),
    }
}

pub(crate) async fn publish(lake: &Lake, mut manifest: Manifest) -> Result<Manifest> {
    let path = object(lake, manifest.sequence);
    manifest.tables.sort_by(|left, right| left.name.cmp(&right.name));
    let body = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| LakeError::Damaged { path: path.to_string(), reason: error.to_string() })?;
    let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let Err(error) = lake.store().put_opts(&path, body.into(), create).await else {
        return Ok(manifest);
    };
    // The PUT may have landed although its answer was an error: ours is there if it carries our run's name.
    match latest(lake).await? {
        Some(found) if found.run_id == manifest.run_id => Ok(found),
        _ => Err(LakeError::store(format!("cannot publish run {} as {path}", manifest.run_id))(error)),
    }
}
