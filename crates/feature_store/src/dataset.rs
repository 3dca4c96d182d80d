//! Training sets as things of the lake: what each was made from, under an id that changes with any of it; kept until released.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use holdfast_lake::{KeptRuns, Lake, LakeError};
use holdfast_types::TableName;
use object_store::buffered::BufWriter;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::historical::HistoricalOptions;
use crate::on_demand::ShownPart;
use crate::spine::{Spine, SpineFormat};
use crate::{FeatureStoreError, Result};

const FOLDER: &str = "features/datasets";

/// A training set that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    /// Changes with all that decides its rows.
    pub id: String,
    /// When it was made first.
    pub made_at: DateTime<Utc>,
    /// By whom, where it was asked for over a protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<String>,
    /// The service with its version, where one was asked for.
    pub service: Option<String>,
    /// The features with the versions of their views.
    pub features: Vec<String>,
    /// The label behind them.
    pub label: Option<DatasetLabel>,
    /// How they were joined.
    pub options: HistoricalOptions,
    /// The run that published the history.
    pub run: u64,
    /// The history tables: these versions are kept until the training set is released.
    pub tables: Vec<DatasetTable>,
    /// What is shown, where on-demand features are among it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shown: Vec<ShownPart>,
    /// The spine, of which a copy is kept.
    pub spine: DatasetSpine,
    /// The file that was written.
    pub output: DatasetOutput,
    /// When it was released, if it was: it cannot be had again for certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<DateTime<Utc>>,
}

/// A label of a training set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetLabel {
    /// The labels with the version of their view.
    pub features: Vec<String>,
    /// How long after the row's moment they are looked for, in seconds.
    pub horizon_s: u64,
    /// Whether rows were taken whose horizon was not over.
    pub is_open: bool,
}

/// A table that a training set was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetTable {
    /// The view.
    pub view: String,
    /// The version of the view.
    pub version: u32,
    /// Changes with the view's definition, query included.
    pub hash: String,
    /// The history's table.
    pub table: TableName,
    /// Its version.
    pub table_version: u64,
    /// Up to which version of history.
    pub step: i64,
    /// The version of the view's own table that it is as.
    pub view_version: u64,
    /// The features, in order.
    pub features: Vec<String>,
    /// What columns call the view.
    pub label: String,
}

/// The spine of a training set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetSpine {
    /// How it is written.
    pub format: SpineFormat,
    /// What its bytes hash to.
    pub blake3: String,
    /// How many they are.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
}

/// The file of a training set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetOutput {
    /// What its bytes hash to.
    pub blake3: String,
    /// How many they are.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// Its columns.
    pub columns: u64,
    /// What wrote it.
    pub writer: String,
}

/// The training sets of a lake.
#[derive(Debug, Clone)]
pub struct Datasets {
    lake: Lake,
}

impl Datasets {
    /// Those of a lake.
    pub fn new(lake: &Lake) -> Self {
        Self { lake: lake.clone() }
    }

    /// All of them, the oldest first.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn list(&self) -> Result<Vec<Dataset>> {
        let names = self.lake.documents(FOLDER).await?;
        let of = |end: &str| -> Vec<String> {
            let found = names.iter().filter(|name| name.ends_with(end));
            found.map(|name| format!("{FOLDER}/{name}")).collect()
        };
        let released = self.lake.read_documents(of("/released.json")).await?;
        let mut datasets = Vec::new();
        for (path, body) in self.lake.read_documents(of("/dataset.json")).await? {
            let mut dataset: Dataset = read(&path, &body)?;
            let released_at = released.iter().find(|(path, _)| *path == document(&dataset.id, "released.json"));
            dataset.released_at = released_at.map(|(path, body)| read(path, body)).transpose()?;
            datasets.push(dataset);
        }
        datasets.sort_by(|left, right| (left.made_at, &left.id).cmp(&(right.made_at, &right.id)));
        Ok(datasets)
    }

    /// The one whose id is, or begins with, the text.
    ///
    /// # Errors
    /// [`FeatureStoreError::NotFound`] when there is none, or several begin so; what the lake answers.
    pub async fn get(&self, id: &str) -> Result<Dataset> {
        let mut found: Vec<Dataset> = self.list().await?;
        found.retain(|dataset| dataset.id.starts_with(id));
        if let Some(whole) = found.iter().position(|dataset| dataset.id == id) {
            return Ok(found.swap_remove(whole));
        }
        match (found.len(), found.pop()) {
            (1, Some(dataset)) => Ok(dataset),
            (0, _) => Err(FeatureStoreError::NotFound(format!(
                "no training set is called `{id}`: `holdfast features datasets` tells which there are"
            ))),
            (several, _) => {
                Err(FeatureStoreError::NotFound(format!("{several} training sets begin with `{id}`: say more of it")))
            }
        }
    }

    /// Adds what training sets need to what maintenance keeps.
    ///
    /// # Errors
    /// What the lake answers: nothing may be deleted then.
    pub async fn keep(&self, kept: &mut KeptRuns) -> Result<()> {
        for dataset in self.list().await?.iter().filter(|dataset| dataset.released_at.is_none()) {
            for table in &dataset.tables {
                kept.keep(&table.table, table.table_version);
            }
        }
        Ok(())
    }

    /// Lets go what a training set needs: maintenance may delete it. May be repeated.
    ///
    /// # Errors
    /// As of [`Datasets::get`].
    pub async fn release(&self, id: &str) -> Result<Dataset> {
        let mut dataset = self.get(id).await?;
        if dataset.released_at.is_none() {
            let now = self.lake.clock().now();
            let body = serde_json::to_vec(&now).map_err(|error| damaged(id, &error))?;
            // Somebody else's release is as good.
            self.lake.create_document(&document(&dataset.id, "released.json"), Bytes::from(body)).await?;
            dataset.released_at = Some(now);
        }
        self.lake.delete_document(&spine_document(&dataset)).await?;
        Ok(dataset)
    }

    /// Records a training set, its spine first. What was recorded under its id before stays as it is, and is answered.
    pub(crate) async fn record(&self, dataset: &Dataset, spine: &Spine) -> Result<Dataset> {
        if let Some(known) = self.known(&dataset.id).await? {
            return Ok(known);
        }
        self.store_spine(dataset, spine).await?;
        let body = serde_json::to_vec_pretty(dataset).map_err(|error| damaged(&dataset.id, &error))?;
        if self.lake.create_document(&document(&dataset.id, "dataset.json"), Bytes::from(body)).await? {
            return Ok(dataset.clone());
        }
        Ok(self.known(&dataset.id).await?.unwrap_or_else(|| dataset.clone()))
    }

    /// What is recorded under an id, released or not.
    pub(crate) async fn known(&self, id: &str) -> Result<Option<Dataset>> {
        let path = document(id, "dataset.json");
        let Some(body) = self.lake.read_document(&path).await? else { return Ok(None) };
        let mut dataset: Dataset = read(&path, &body)?;
        let released = document(id, "released.json");
        if let Some(body) = self.lake.read_document(&released).await? {
            dataset.released_at = Some(read(&released, &body)?);
        }
        Ok(Some(dataset))
    }

    /// A released training set is one again.
    pub(crate) async fn take_back(&self, dataset: &Dataset, spine: &Spine) -> Result<()> {
        self.store_spine(dataset, spine).await?;
        Ok(self.lake.delete_document(&document(&dataset.id, "released.json")).await?)
    }

    async fn store_spine(&self, dataset: &Dataset, spine: &Spine) -> Result<()> {
        let failed = |source| FeatureStoreError::File {
            what: "cannot copy the spine into the lake from",
            path: spine.file.clone(),
            source,
        };
        let mut from = tokio::fs::File::open(&spine.file).await.map_err(failed)?;
        // Equal bytes have one name: written again they are the same.
        let mut to =
            BufWriter::new(std::sync::Arc::clone(self.lake.store()), self.lake.document(&spine_document(dataset)));
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = from.read(&mut buffer).await.map_err(failed)?;
            if read == 0 {
                break;
            }
            to.write_all(&buffer[..read]).await.map_err(failed)?;
        }
        to.shutdown().await.map_err(failed)
    }

    /// The spine, copied into a file that goes when it is dropped.
    pub(crate) async fn spine(&self, dataset: &Dataset) -> Result<(Spine, tempfile::TempPath)> {
        let path = self.lake.document(&spine_document(dataset));
        let broken = |error: object_store::Error| match error {
            object_store::Error::NotFound { .. } => {
                FeatureStoreError::NotFound(format!("the spine of training set {} is gone from the lake", dataset.id))
            }
            source => FeatureStoreError::Lake(LakeError::Store { what: format!("cannot read {path}"), source }),
        };
        let file = tempfile::NamedTempFile::new().map_err(|source| FeatureStoreError::File {
            what: "cannot write a temporary file in",
            path: std::env::temp_dir(),
            source,
        })?;
        let (file, kept) = file.into_parts();
        let failed = |source| FeatureStoreError::File { what: "cannot write", path: kept.to_path_buf(), source };
        let mut to = tokio::fs::File::from_std(file);
        let mut from = object_store::ObjectStoreExt::get(self.lake.store(), &path).await.map_err(broken)?.into_stream();
        while let Some(part) = from.next().await {
            to.write_all(&part.map_err(broken)?).await.map_err(failed)?;
        }
        to.flush().await.map_err(failed)?;
        Ok((Spine { file: kept.to_path_buf(), format: dataset.spine.format }, kept))
    }
}

fn document(id: &str, name: &str) -> String {
    format!("{FOLDER}/{id}/{name}")
}

fn spine_document(dataset: &Dataset) -> String {
    document(&dataset.id, &format!("spine.{}", dataset.spine.format.extension()))
}

fn read<T: serde::de::DeserializeOwned>(path: &str, body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| damaged(path, &error))
}

fn damaged(path: &str, error: &serde_json::Error) -> FeatureStoreError {
    FeatureStoreError::Lake(LakeError::Damaged { path: path.to_owned(), reason: error.to_string() })
}
