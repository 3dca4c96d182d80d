//! The versions of views and services, as documents of the lake: each is created once and does not change. The newest is the one that counts.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use holdfast_lake::{Lake, LakeError};
use holdfast_types::TableName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::history::HISTORY_SCHEMA;
use super::on_demand::OnDemandView;
use super::view::{FeatureView, hash};
use crate::Result;
use crate::diagnostic::most_similar;
use crate::error::EngineError;

const VIEWS: &str = "features/views";
const SERVICES: &str = "features/services";
const ON_DEMAND: &str = "features/on_demand";

/// How often a version is tried when others register at the same time.
const ATTEMPTS_MAX: u32 = 20;

/// A version of a feature view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewVersion {
    /// Counted from 1.
    pub version: u32,
    /// [`FeatureView::hash`].
    pub hash: String,
    /// [`FeatureView::data_hash`]: versions that agree in it share a history.
    pub data_hash: String,
    /// Where its history is kept.
    pub history: TableName,
    /// When it was seen first.
    pub registered_at: DateTime<Utc>,
    /// What it is.
    pub view: FeatureView,
}

/// A service: features of certain versions of views.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureService {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// The features, in their order.
    pub features: Vec<ServiceFeature>,
}

/// A feature of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFeature {
    /// The view.
    pub view: String,
    /// The view's version.
    pub version: u32,
    /// The feature.
    pub feature: String,
}

/// A version of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceVersion {
    /// Counted from 1.
    pub version: u32,
    /// Changes with the features.
    pub hash: String,
    /// When it was seen first.
    pub registered_at: DateTime<Utc>,
    /// What it is.
    pub service: FeatureService,
}

/// A version of a view of on-demand features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDemandVersion {
    /// Counted from 1.
    pub version: u32,
    /// Changes with all that decides its values.
    pub hash: String,
    /// When it was seen first.
    pub registered_at: DateTime<Utc>,
    /// What it is.
    pub view: OnDemandView,
}

/// What a registration came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered<T> {
    /// The version that is the newest.
    pub version: T,
    /// Whether it was not there before.
    pub is_new: bool,
}

/// The views and services of a lake.
#[derive(Debug, Clone)]
pub struct Registry {
    lake: Lake,
}

/// What the two kinds of documents have in common.
trait Versioned: Serialize + DeserializeOwned {
    const FOLDER: &'static str;
    const WHAT: &'static str;
    fn number(&self) -> u32;
    fn hash(&self) -> &str;
}

impl Versioned for ViewVersion {
    const FOLDER: &'static str = VIEWS;
    const WHAT: &'static str = "feature view";

    fn number(&self) -> u32 {
        self.version
    }

    fn hash(&self) -> &str {
        &self.hash
    }
}

impl Versioned for ServiceVersion {
    const FOLDER: &'static str = SERVICES;
    const WHAT: &'static str = "feature service";

    fn number(&self) -> u32 {
        self.version
    }

    fn hash(&self) -> &str {
        &self.hash
    }
}

impl Versioned for OnDemandVersion {
    const FOLDER: &'static str = ON_DEMAND;
    const WHAT: &'static str = "on-demand view";

    fn number(&self) -> u32 {
        self.version
    }

    fn hash(&self) -> &str {
        &self.hash
    }
}

impl Registry {
    /// That of a lake.
    pub fn new(lake: &Lake) -> Self {
        Self { lake: lake.clone() }
    }

    /// The newest version of every view, by name.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn views(&self) -> Result<Vec<ViewVersion>> {
        self.newest_of_all().await
    }

    /// The newest version of every service, by name.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn services(&self) -> Result<Vec<ServiceVersion>> {
        self.newest_of_all().await
    }

    /// The newest version of every on-demand view, by name.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn on_demands(&self) -> Result<Vec<OnDemandVersion>> {
        self.newest_of_all().await
    }

    /// All versions of an on-demand view, the oldest first; none when there is no such view.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn on_demand_versions(&self, name: &str) -> Result<Vec<OnDemandVersion>> {
        self.all(name).await
    }

    /// A version of an on-demand view; the newest where none is said.
    ///
    /// # Errors
    /// As of [`Registry::view`].
    pub async fn on_demand(&self, name: &str, version: Option<u32>) -> Result<OnDemandVersion> {
        self.one(name, version).await
    }

    /// All versions of a view, the oldest first; none when there is no such view.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn view_versions(&self, name: &str) -> Result<Vec<ViewVersion>> {
        self.all(name).await
    }

    /// All versions of a service, the oldest first; none when there is no such service.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn service_versions(&self, name: &str) -> Result<Vec<ServiceVersion>> {
        self.all(name).await
    }

    /// A version of a view; the newest where none is said.
    ///
    /// # Errors
    /// [`EngineError::NoFeature`] when there is none, with a suggestion; what the lake answers.
    pub async fn view(&self, name: &str, version: Option<u32>) -> Result<ViewVersion> {
        self.one(name, version).await
    }

    /// A version of a service; the newest where none is said.
    ///
    /// # Errors
    /// As of [`Registry::view`].
    pub async fn service(&self, name: &str, version: Option<u32>) -> Result<ServiceVersion> {
        self.one(name, version).await
    }

    /// Makes a view's newest version the one that is given: nothing happens when it is. Where the features' values are decided as in an earlier version, that one's history is
    /// gone on with.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn register_view(&self, view: &FeatureView) -> Result<Registered<ViewVersion>> {
        self.register(&view.name, &view.hash(), |number, versions: Vec<ViewVersion>| {
            let data_hash = view.data_hash();
            let history = match versions.iter().rev().find(|version| version.data_hash == data_hash) {
                Some(same) => same.history.clone(),
                None => history_name(&view.name, number)?,
            };
            let registered_at = self.lake.clock().now();
            Ok(ViewVersion {
                version: number,
                hash: view.hash(),
                data_hash,
                history,
                registered_at,
                view: view.clone(),
            })
        })
        .await
    }

    /// As [`Registry::register_view`], of a service.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn register_service(&self, service: &FeatureService) -> Result<Registered<ServiceVersion>> {
        self.register(&service.name, &service.hash(), |number, _: Vec<ServiceVersion>| {
            let registered_at = self.lake.clock().now();
            Ok(ServiceVersion { version: number, hash: service.hash(), registered_at, service: service.clone() })
        })
        .await
    }

    /// As [`Registry::register_view`], of an on-demand view.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn register_on_demand(&self, view: &OnDemandView) -> Result<Registered<OnDemandVersion>> {
        self.register(&view.name, &view.hash(), |number, _: Vec<OnDemandVersion>| {
            let registered_at = self.lake.clock().now();
            Ok(OnDemandVersion { version: number, hash: view.hash(), registered_at, view: view.clone() })
        })
        .await
    }

    async fn register<T: Versioned>(
        &self,
        name: &str,
        hash: &str,
        mut make: impl FnMut(u32, Vec<T>) -> Result<T>,
    ) -> Result<Registered<T>> {
        for _ in 0..ATTEMPTS_MAX {
            let mut versions = self.all::<T>(name).await?;
            if versions.last().is_some_and(|newest| newest.hash() == hash)
                && let Some(version) = versions.pop()
            {
                return Ok(Registered { version, is_new: false });
            }
            let number = versions.last().map_or(0, Versioned::number) + 1;
            let version = make(number, versions)?;
            let path = format!("{}/{name}/{number:08}.json", T::FOLDER);
            let body = serde_json::to_vec_pretty(&version).map_err(|error| damaged(&path, &error))?;
            if self.lake.create_document(&path, Bytes::from(body)).await? {
                return Ok(Registered { version, is_new: true });
            }
        }
        Err(EngineError::Registering { what: T::WHAT, name: name.to_owned() })
    }

    async fn all<T: Versioned>(&self, name: &str) -> Result<Vec<T>> {
        let folder = format!("{}/{name}", T::FOLDER);
        let names = self.lake.documents(&folder).await?.into_iter().map(|file| format!("{folder}/{file}"));
        self.read(names.collect()).await
    }

    async fn newest_of_all<T: Versioned>(&self) -> Result<Vec<T>> {
        let mut newest: Vec<String> = Vec::new();
        for path in self.lake.documents(T::FOLDER).await? {
            let of = |path: &str| path.split('/').next().map(str::to_owned);
            // Sorted: the last of a name is its newest.
            if newest.last().is_some_and(|last| of(last) == of(&path)) {
                newest.pop();
            }
            newest.push(path);
        }
        self.read(newest.into_iter().map(|path| format!("{}/{path}", T::FOLDER)).collect()).await
    }

    async fn read<T: Versioned>(&self, paths: Vec<String>) -> Result<Vec<T>> {
        let found = self.lake.read_documents(paths).await?;
        found.iter().map(|(path, body)| serde_json::from_slice(body).map_err(|error| damaged(path, &error))).collect()
    }

    async fn one<T: Versioned>(&self, name: &str, version: Option<u32>) -> Result<T> {
        let mut versions = self.all::<T>(name).await?;
        let Some(newest) = versions.last().map(Versioned::number) else {
            let known: Vec<String> = self.lake.documents(T::FOLDER).await?;
            let known: Vec<&str> = known.iter().filter_map(|path| path.split('/').next()).collect();
            let hint = match most_similar(name, known.iter().copied()) {
                Some(near) => format!(": did you mean `{near}`?"),
                None if known.is_empty() => ": none was registered yet, a run does so".to_owned(),
                None => ": `holdfast features list` tells which there are".to_owned(),
            };
            return Err(EngineError::NoFeature(format!("no {} is called `{name}`{hint}", T::WHAT)));
        };
        let found = match version {
            Some(version) => versions.iter().position(|found| found.number() == version),
            None => Some(versions.len() - 1),
        };
        match found {
            Some(at) => Ok(versions.swap_remove(at)),
            None => Err(EngineError::NoFeature(format!(
                "the {} `{name}` has no version {}: its newest is v{newest}",
                T::WHAT,
                version.map_or_else(String::new, |version| format!("v{version}"))
            ))),
        }
    }
}

impl FeatureService {
    /// Changes with its features.
    pub fn hash(&self) -> String {
        let features = self.features.iter().map(|at| format!("{}@v{}:{}", at.view, at.version, at.feature));
        hash(&features.collect::<Vec<_>>())
    }
}

/// Where the history of a view is kept that begins with this version.
fn history_name(view: &str, version: u32) -> Result<TableName> {
    Ok(TableName::new(HISTORY_SCHEMA, &format!("{view}_v{version}")).map_err(LakeError::from)?)
}

fn damaged(path: &str, error: &serde_json::Error) -> EngineError {
    EngineError::Lake(LakeError::Damaged { path: path.to_owned(), reason: error.to_string() })
}
