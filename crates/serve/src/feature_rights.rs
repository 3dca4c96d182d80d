//! The policy over calls of the feature store, whose answers come from memory and from histories and not from a principal's plan.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use bytes::Bytes;
use holdfast_access::{Access, AccessError, Mask, Principal, Rows, TableAccess, Touched};
use holdfast_engine::{OnDemandVersion, Published, Registry};
use holdfast_feature_store::{OnlinePlan, ReadFeature, Retrieval};
use holdfast_lake::Lake;
use holdfast_types::TableName;
use serde_json::Value;

use crate::{Result, ServeError};

/// Decides which features a caller is given. What holds of the newest run's table of a view holds of its history.
#[derive(Debug)]
pub(crate) struct FeatureGuard<'a> {
    access: &'a Arc<Access>,
    principal: &'a Principal,
    /// As it is.
    run: &'a Published,
}

/// Features that a caller may be given, and what becomes of them before.
#[derive(Debug, Clone)]
pub(crate) struct SeenFeatures {
    access: Arc<Access>,
    /// By the column of the answer.
    masks: Arc<HashMap<String, Mask>>,
    touched: Touched,
}

impl<'a> FeatureGuard<'a> {
    pub(crate) fn new(access: &'a Arc<Access>, principal: &'a Principal, run: &'a Published) -> Self {
        Self { access, principal, run }
    }

    /// What is seen of features as of the moments of a spine.
    ///
    /// # Errors
    /// A view or feature that the caller does not see is not there; [`AccessError::Forbidden`] where it sees some rows of the view alone.
    pub(crate) fn of_retrieval(&self, retrieval: &Retrieval, full_names: bool) -> Result<SeenFeatures> {
        self.seen(retrieval.read_features(full_names))
    }

    /// What is seen of features from memory.
    ///
    /// # Errors
    /// As of [`FeatureGuard::of_retrieval`].
    pub(crate) fn of_plan(&self, plan: &OnlinePlan) -> Result<SeenFeatures> {
        self.seen(plan.read_features())
    }

    fn seen(&self, read: Vec<ReadFeature>) -> Result<SeenFeatures> {
        let mut touched = Touched::default();
        let mut masks = HashMap::new();
        for of_table in read.chunk_by(|left, right| left.table == right.table) {
            let table = &of_table[0].table;
            touched.add(table, of_table.iter().map(|read| read.feature.clone()).collect::<Vec<_>>());
            let Some(access) = self.of_table(table)? else { continue };
            if matches!(access.rows, Rows::Matching(_)) {
                return Err(AccessError::Forbidden(format!(
                    "your role sees some rows of {table} alone, which the feature store does not know: ask for them in SQL, or with \
                     FeaturesForCustomers"
                ))
                .into());
            }
            for ReadFeature { view, feature, column, .. } in of_table {
                let found = access.columns.iter().find(|column| column.name == *feature);
                let mask = found.and_then(|column| column.only_mask());
                match (mask, column) {
                    (Some(Mask::Show), _) => {}
                    (Some(mask), Some(column)) => {
                        masks.insert(column.clone(), mask.clone());
                    }
                    (None, Some(_)) => {
                        return Err(ServeError::Request(format!(
                            "the feature view `{view}` has no feature `{feature}`"
                        )));
                    }
                    // What is worked out of a value tells of it.
                    (_, None) => {
                        return Err(AccessError::Forbidden(
                            "your role does not see all that the on-demand features are made from".to_owned(),
                        )
                        .into());
                    }
                }
            }
        }
        Ok(SeenFeatures { access: Arc::clone(self.access), masks: Arc::new(masks), touched })
    }

    /// How the caller sees the table of a view; `None` where nothing is hidden from anybody.
    fn of_table(&self, name: &TableName) -> Result<Option<TableAccess>> {
        if self.access.policy().is_none() {
            return Ok(None);
        }
        let table = self.run.table(name);
        let access = table.and_then(|table| self.access.table(self.principal, table));
        match access {
            Some(access) => Ok(Some(access)),
            None => Err(ServeError::NoTable { name: name.clone(), nearest: None }),
        }
    }
}

impl SeenFeatures {
    /// The rows with what is masked masked.
    ///
    /// # Errors
    /// When values cannot be put together, which is a mistake of ours.
    pub(crate) fn over(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        if self.masks.is_empty() {
            return Ok(rows.clone());
        }
        let columns = rows.columns().iter().zip(rows.schema_ref().fields()).map(|(column, field)| {
            match self.masks.get(field.name()) {
                Some(mask) => Ok(self.access.masked(mask, column)?),
                None => Ok(Arc::clone(column)),
            }
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new(rows.schema(), columns)?)
    }

    /// What is read.
    pub(crate) fn touched(&self) -> Touched {
        self.touched.clone()
    }
}

/// The feature views that a caller may know of, by name; `None` is all.
#[derive(Debug)]
pub(crate) struct FeatureNames(Option<BTreeSet<String>>);

impl FeatureNames {
    pub(crate) fn all() -> Self {
        Self(None)
    }

    /// Those whose table is in the run as the caller sees it.
    ///
    /// # Errors
    /// What the lake answers.
    pub(crate) async fn seen(lake: &Lake, run: &Published) -> Result<Self> {
        let views = Registry::new(lake).views().await?;
        let seen = views.into_iter().filter(|version| run.table(&version.view.table).is_some());
        let mut seen: BTreeSet<String> = seen.map(|version| version.view.name).collect();
        // An on-demand view is seen by who sees all that it reads.
        let on_demand = Registry::new(lake).on_demands().await?.into_iter();
        let is_seen = |version: &OnDemandVersion| version.view.inputs.iter().all(|input| seen.contains(&input.view));
        let on_demand: Vec<String> = on_demand.filter(is_seen).map(|version| version.view.name).collect();
        seen.extend(on_demand);
        Ok(Self(Some(seen)))
    }

    /// The list of views and services without those that are not seen.
    pub(crate) fn of_list(&self, body: Bytes) -> Result<Bytes> {
        self.rewritten(body, |names, list| {
            keep(list.get_mut("views"), |view| has_name(names, view.get("view")));
            keep(list.get_mut("on_demand"), |view| has_name(names, view.get("view")));
            keep(list.get_mut("services"), |service| sees_all(names, service.get("features")));
            true
        })
    }

    /// The description of a view or service.
    ///
    /// # Errors
    /// [`AccessError::Forbidden`] when it is not seen.
    pub(crate) fn of_description(&self, body: Bytes) -> Result<Bytes> {
        self.rewritten(body, |names, described| match described.get("service") {
            Some(service) => sees_all(names, service.get("features")),
            None => has_name(names, described.get("view").and_then(|view| view.get("name"))),
        })
    }

    /// One training set, or the list of them without those that are made from what is not seen.
    ///
    /// # Errors
    /// As of [`FeatureNames::of_description`].
    pub(crate) fn of_datasets(&self, body: Bytes) -> Result<Bytes> {
        self.rewritten(body, |names, datasets| {
            if datasets.is_array() {
                keep(Some(datasets), |dataset| sees_all(names, dataset.get("tables")));
                return true;
            }
            sees_all(names, datasets.get("tables"))
        })
    }

    fn rewritten(&self, body: Bytes, change: impl FnOnce(&BTreeSet<String>, &mut Value) -> bool) -> Result<Bytes> {
        let Some(names) = &self.0 else { return Ok(body) };
        let failed = |error: serde_json::Error| ServeError::Arrow(ArrowError::JsonError(error.to_string()));
        let mut value: Value = serde_json::from_slice(&body).map_err(failed)?;
        if !change(names, &mut value) {
            return Err(AccessError::Forbidden("your role does not see all that it is made from".to_owned()).into());
        }
        Ok(serde_json::to_vec(&value).map_err(failed)?.into())
    }
}

fn keep(list: Option<&mut Value>, is_kept: impl Fn(&Value) -> bool) {
    if let Some(items) = list.and_then(Value::as_array_mut) {
        items.retain(is_kept);
    }
}

fn has_name(names: &BTreeSet<String>, name: Option<&Value>) -> bool {
    name.and_then(Value::as_str).is_some_and(|name| names.contains(name))
}

/// Whether each of the features or tables is of a view that is seen.
fn sees_all(names: &BTreeSet<String>, of: Option<&Value>) -> bool {
    of.and_then(Value::as_array).is_some_and(|items| items.iter().all(|item| has_name(names, item.get("view"))))
}
