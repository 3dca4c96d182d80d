//! From what is asked for to versions of views and their history as one published run left it.

use std::collections::BTreeMap;

use arrow::datatypes::{Field, FieldRef};
use holdfast_engine::{FeatureReference, Registry, ServiceVersion, ViewVersion, followed, history_of, named};
use holdfast_features::{FeatureView, History, HistorySchema};
use holdfast_lake::{Lake, Manifest, Table};
use holdfast_types::TableName;

use crate::{FeatureStoreError, Result};

/// Which features: those of a service, or named one by one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Asked {
    /// `name`, or `name@v3`.
    Service(String),
    /// `view:feature`, `view`, `view@v3:feature`.
    Features(Vec<FeatureReference>),
}

/// A view, what is wanted of it, and its history.
#[derive(Debug, Clone)]
pub struct RetrievedView {
    /// The view.
    pub view: ViewVersion,
    /// What columns call it: its name, with its version where two versions of one view are asked for.
    pub label: String,
    /// The features, in the order asked for.
    pub features: Vec<String>,
    /// Its history, at the version that the run published.
    pub table: Table,
    /// Up to which version of history that is. Files that were merged later hold later ones as well.
    pub step: i64,
    /// The version of the view's table that it is as.
    pub view_version: u64,
    pub(crate) schema: HistorySchema,
    pub(crate) history: History,
}

/// Features that can be read.
#[derive(Debug, Clone)]
pub struct Retrieval {
    /// The service, where one was asked for.
    pub service: Option<ServiceVersion>,
    /// The views, in the order in which they are asked for first.
    pub views: Vec<RetrievedView>,
    /// The run that published their history.
    pub run: u64,
}

impl Retrieval {
    /// What is asked for, as the newest published run has it.
    ///
    /// # Errors
    /// A service, view, version or feature that is not there, with a suggestion; what the lake answers.
    pub async fn of(lake: &Lake, asked: &Asked) -> Result<Self> {
        let registry = Registry::new(lake);
        let (service, wanted) = match asked {
            Asked::Service(name) => {
                let (name, version) = named(name).map_err(FeatureStoreError::Request)?;
                let service = registry.service(&name, version).await?;
                let mut wanted: Vec<(ViewVersion, Vec<String>)> = Vec::new();
                for feature in &service.service.features {
                    let is_same = |(view, _): &&mut (ViewVersion, Vec<String>)| {
                        view.view.name == feature.view && view.version == feature.version
                    };
                    match wanted.iter_mut().find(is_same) {
                        Some((_, features)) => features.push(feature.feature.clone()),
                        None => {
                            let view = registry.view(&feature.view, Some(feature.version)).await?;
                            wanted.push((view, vec![feature.feature.clone()]));
                        }
                    }
                }
                (Some(service), wanted)
            }
            Asked::Features(references) => (None, named_features(&registry, references).await?),
        };
        if wanted.is_empty() {
            return Err(FeatureStoreError::Request("no feature is asked for: name a service or features".to_owned()));
        }
        let manifest = lake.latest_manifest().await?.ok_or_else(|| {
            FeatureStoreError::NotFound("nothing is published yet: use `holdfast run` first".to_owned())
        })?;
        let mut views = Vec::with_capacity(wanted.len());
        let several = |name: &str| wanted.iter().filter(|(view, _)| view.view.name == name).count() > 1;
        for (view, features) in &wanted {
            let label = match several(&view.view.name) {
                true => format!("{}_v{}", view.view.name, view.version),
                false => view.view.name.clone(),
            };
            views.push(RetrievedView::open(lake, &manifest, view.clone(), label, features.clone()).await?);
        }
        Ok(Self { service, views, run: manifest.sequence })
    }

    /// The service with its version, if there is one.
    pub fn service_name(&self) -> Option<String> {
        self.service.as_ref().map(|service| format!("{}@v{}", service.service.name, service.version))
    }

    /// The features with the versions of their views.
    pub fn features(&self) -> Vec<String> {
        let of = |view: &RetrievedView| {
            let name = format!("{}@v{}", view.view.view.name, view.view.version);
            view.features.iter().map(move |feature| format!("{name}:{feature}")).collect::<Vec<_>>()
        };
        self.views.iter().flat_map(of).collect()
    }

    /// The history tables with their versions.
    pub fn tables(&self) -> BTreeMap<TableName, u64> {
        self.views.iter().map(|view| (view.table.name().clone(), view.table.version())).collect()
    }
}

impl RetrievedView {
    /// The history as a run published it.
    pub(crate) async fn open(
        lake: &Lake,
        manifest: &Manifest,
        view: ViewVersion,
        label: String,
        features: Vec<String>,
    ) -> Result<Self> {
        let Some(entry) = manifest.tables.iter().find(|entry| entry.name == view.history) else {
            return Err(FeatureStoreError::NotFound(format!(
                "no published run has kept the history of {}@v{} yet: use `holdfast run`",
                view.view.name, view.version
            )));
        };
        Self::at(lake, view, label, features, entry.version, None).await
    }

    /// The history at a version of its table, up to a version of history; all of it where none is said.
    pub(crate) async fn at(
        lake: &Lake,
        view: ViewVersion,
        label: String,
        features: Vec<String>,
        version: u64,
        step: Option<i64>,
    ) -> Result<Self> {
        let table = lake.table_at(&view.history, version).await?;
        let (schema, history) = history_of(&table)?;
        let (view_version, newest) = followed(&table).await?.unwrap_or((0, 0));
        let schema = if label == schema.view() { schema } else { relabelled(&schema, &label)? };
        Ok(Self { view, label, features, table, step: step.unwrap_or(newest), view_version, schema, history })
    }

    /// As the point-in-time join takes it.
    pub(crate) fn joined(&self) -> FeatureView {
        let ttl = self.view.view.ttl_s.and_then(|ttl| u64::try_from(ttl).ok()).map(std::time::Duration::from_secs);
        let mut view = FeatureView::all(self.schema.clone(), self.history.clone());
        view.ttl = ttl;
        view.features.clone_from(&self.features);
        // History without a version has no row that a later one could have brought.
        view.as_of_version = (self.step > 0).then_some(self.step);
        view
    }

    /// The columns of its history.
    pub fn schema(&self) -> &HistorySchema {
        &self.schema
    }
}

async fn named_features(
    registry: &Registry,
    references: &[FeatureReference],
) -> Result<Vec<(ViewVersion, Vec<String>)>> {
    let mut wanted: Vec<(ViewVersion, Vec<String>)> = Vec::new();
    for reference in references {
        let view = registry.view(&reference.view, reference.version).await?;
        let features: Vec<String> = match &reference.feature {
            Some(feature) => vec![feature.clone()],
            None => view.view.features.iter().map(|feature| feature.name.clone()).collect(),
        };
        let is_same = |(known, _): &&mut (ViewVersion, Vec<String>)| {
            known.view.name == view.view.name && known.version == view.version
        };
        match wanted.iter_mut().find(is_same) {
            Some((_, known)) => {
                for feature in features {
                    if !known.contains(&feature) {
                        known.push(feature);
                    }
                }
            }
            None => wanted.push((view, features)),
        }
    }
    Ok(wanted)
}

/// The same columns under another name of the view.
fn relabelled(schema: &HistorySchema, label: &str) -> Result<HistorySchema> {
    let fields = |fields: &[FieldRef]| -> Vec<Field> { fields.iter().map(|field| field.as_ref().clone()).collect() };
    Ok(HistorySchema::new(label, fields(schema.keys()), fields(schema.features()), schema.buckets())?)
}
