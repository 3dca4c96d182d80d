//! From what is asked for to versions of views and their history as one published run left it.

use std::collections::BTreeMap;

use arrow::datatypes::{Field, FieldRef};
use holdfast_engine::{
    FeatureReference, OnDemandVersion, Registry, ServiceVersion, ViewVersion, followed, history_of, named,
};
use holdfast_features::{FeatureView, History, HistorySchema, feature_column};
use holdfast_lake::{Lake, Manifest, Table};
use holdfast_types::TableName;

use crate::on_demand::{self, Found, OnDemand, ShownPart, gathered};
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
    /// What is shown, where on-demand features are asked for: then some of what the views give is only read.
    pub on_demand: Option<OnDemand>,
}

/// A feature that is read, and the column that shows it; without one it is only read, by an on-demand feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFeature {
    /// The table that its view is.
    pub table: TableName,
    /// The view.
    pub view: String,
    /// The feature.
    pub feature: String,
    /// The column.
    pub column: Option<String>,
}

impl Retrieval {
    /// What is asked for, as the newest published run has it.
    ///
    /// # Errors
    /// A service, view, version or feature that is not there, with a suggestion; what the lake answers.
    pub async fn of(lake: &Lake, asked: &Asked) -> Result<Self> {
        let registry = Registry::new(lake);
        let (service, found) = match asked {
            Asked::Service(name) => {
                let (name, version) = named(name).map_err(FeatureStoreError::Request)?;
                let service = registry.service(&name, version).await?;
                let references = service.service.features.iter().map(|feature| FeatureReference {
                    view: feature.view.clone(),
                    version: Some(feature.version),
                    feature: Some(feature.feature.clone()),
                });
                let found = found(&registry, &references.collect::<Vec<_>>()).await?;
                (Some(service), found)
            }
            Asked::Features(references) => (None, found(&registry, references).await?),
        };
        // What expressions read.
        let mut read = Vec::new();
        for one in &found {
            let Found::OnDemand(version, _) = one else { continue };
            for input in &version.view.inputs {
                let is_it = |known: &ViewVersion| known.view.name == input.view && known.version == input.version;
                if !read.iter().any(is_it) {
                    read.push(registry.view(&input.view, Some(input.version)).await?);
                }
            }
        }
        let (wanted, on_demand) = gathered(found, |input| {
            let is_it = |known: &&ViewVersion| known.view.name == input.view && known.version == input.version;
            let view = read.iter().find(is_it).cloned();
            view.ok_or_else(|| FeatureStoreError::NotFound(format!("{}@v{} is not there", input.view, input.version)))
        })?;
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
        Ok(Self { service, views, run: manifest.sequence, on_demand })
    }

    /// The service with its version, if there is one.
    pub fn service_name(&self) -> Option<String> {
        self.service.as_ref().map(|service| format!("{}@v{}", service.service.name, service.version))
    }

    /// The features with the versions of their views.
    pub fn features(&self) -> Vec<String> {
        if let Some(on_demand) = &self.on_demand {
            return on_demand.parts.iter().flat_map(ShownPart::references).collect();
        }
        let of = |view: &RetrievedView| {
            let name = format!("{}@v{}", view.view.view.name, view.view.version);
            view.features.iter().map(move |feature| format!("{name}:{feature}")).collect::<Vec<_>>()
        };
        self.views.iter().flat_map(of).collect()
    }

    /// The stored features that are read, and the columns that show them.
    pub fn read_features(&self, full_names: bool) -> Vec<ReadFeature> {
        let mut read = Vec::new();
        for view in &self.views {
            let (name, version) = (&view.view.view.name, view.view.version);
            let one = |feature: &String, column| ReadFeature {
                table: view.view.view.table.clone(),
                view: name.clone(),
                feature: feature.clone(),
                column,
            };
            let shown = match &self.on_demand {
                None => Some(&view.features),
                Some(asked) => asked.shown(name, version),
            };
            for feature in shown.into_iter().flatten() {
                let column = feature_column(&view.label, feature, full_names);
                read.push(one(feature, Some(column)));
            }
            let inputs = self.on_demand.iter().flat_map(|asked| asked.inputs(name, version));
            read.extend(inputs.map(|feature| one(feature, None)));
        }
        read
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

/// What references mean: features of stored views, or of on-demand ones.
async fn found(registry: &Registry, references: &[FeatureReference]) -> Result<Vec<Found>> {
    let on_demand = registry.on_demands().await?;
    let mut found = Vec::with_capacity(references.len());
    let (mut views, mut on_demand_views): (Vec<ViewVersion>, Vec<OnDemandVersion>) = Default::default();
    for reference in references {
        let FeatureReference { view: name, version, feature } = reference;
        if let Some(newest) = on_demand.iter().find(|known| known.view.name == *name) {
            let is_it = |known: &&OnDemandVersion| known.view.name == *name && Some(known.version) == *version;
            let meant = match version {
                None => newest.clone(),
                Some(_) => match on_demand_views.iter().find(is_it) {
                    Some(known) => known.clone(),
                    None => {
                        let meant = registry.on_demand(name, *version).await?;
                        on_demand_views.push(meant.clone());
                        meant
                    }
                },
            };
            let features = on_demand::features_of(&meant, feature.as_deref())?;
            found.push(Found::OnDemand(meant, features));
            continue;
        }
        let is_it = |known: &&ViewVersion| known.view.name == *name && Some(known.version) == *version;
        let view = match views.iter().find(is_it) {
            Some(known) => known.clone(),
            None => {
                let view = registry.view(name, *version).await?;
                views.push(view.clone());
                view
            }
        };
        let features: Vec<String> = match feature {
            Some(feature) => vec![feature.clone()],
            None => view.view.features.iter().map(|feature| feature.name.clone()).collect(),
        };
        found.push(Found::Stored(view, features));
    }
    Ok(found)
}

/// The same columns under another name of the view.
fn relabelled(schema: &HistorySchema, label: &str) -> Result<HistorySchema> {
    let fields = |fields: &[FieldRef]| -> Vec<Field> { fields.iter().map(|field| field.as_ref().clone()).collect() };
    Ok(HistorySchema::new(label, fields(schema.keys()), fields(schema.features()), schema.buckets())?)
}
