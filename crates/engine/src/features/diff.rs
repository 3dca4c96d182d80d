//! How views and services as files say them differ from the newest versions in the lake: what the next run would register.

use std::collections::BTreeMap;

use serde::Serialize;

use super::on_demand::{OnDemandView, on_demand_features};
use super::reference::FeatureReference;
use super::registry::{FeatureService, OnDemandVersion, Registry, ServiceFeature, ServiceVersion, ViewVersion};
use super::service::ServiceSpec;
use super::view::FeatureView;
use crate::Result;
use crate::inspect::Inspection;
use crate::project::Project;

/// A view or service whose newest version in the lake is not what the files say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `view`, `on-demand view` or `service`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its newest version in the lake; absent when it is not there yet.
    pub version: Option<u32>,
    /// The version that a run would make; absent when the files no longer have it.
    pub next: Option<u32>,
    /// What differs, a line each.
    pub changes: Vec<String>,
    /// Of a view: whether its history begins anew, because its values are decided otherwise.
    pub new_history: bool,
}

/// What the files say, resolved against the lake as far as that goes.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    /// The views of the project.
    pub views: Vec<FeatureView>,
    /// What a run would register.
    pub differences: Vec<Difference>,
}

/// Compares the files with the lake.
///
/// # Errors
/// What the lake answers.
pub async fn pending(project: &Project, inspection: &Inspection, registry: &Registry) -> Result<Pending> {
    let of = |stage: &crate::inspect::InspectedStage| FeatureView::of(&stage.stage, &stage.schema);
    let views: Vec<FeatureView> = inspection.stages.iter().filter_map(of).collect();
    let known = registry.views().await?;
    let mut differences = Vec::new();
    // The versions as they would be.
    let mut next: BTreeMap<String, ViewVersion> =
        known.iter().map(|version| (version.view.name.clone(), version.clone())).collect();
    for view in &views {
        let newest = known.iter().find(|version| version.view.name == view.name);
        let hash = view.hash();
        if newest.is_some_and(|newest| newest.hash == hash) {
            continue;
        }
        let number = newest.map_or(0, |newest| newest.version) + 1;
        let data_hash = view.data_hash();
        differences.push(Difference {
            kind: "view",
            name: view.name.clone(),
            version: newest.map(|newest| newest.version),
            next: Some(number),
            changes: newest.map(|newest| view_changes(&newest.view, view)).unwrap_or_default(),
            new_history: newest.is_none_or(|newest| newest.data_hash != data_hash),
        });
        if let Some(template) = newest.cloned().or_else(|| template(view)) {
            next.insert(
                view.name.clone(),
                ViewVersion { version: number, hash, data_hash, view: view.clone(), ..template },
            );
        }
    }
    for gone in known.iter().filter(|version| views.iter().all(|view| view.name != version.view.name)) {
        differences.push(Difference {
            kind: "view",
            name: gone.view.name.clone(),
            version: Some(gone.version),
            next: None,
            changes: Vec::new(),
            new_history: false,
        });
    }
    let known = registry.on_demands().await?;
    let mut next_on_demand: BTreeMap<String, OnDemandVersion> =
        known.iter().map(|version| (version.view.name.clone(), version.clone())).collect();
    for spec in project.on_demand() {
        let Ok(view) = OnDemandView::of(spec, &next) else { continue };
        let newest = known.iter().find(|version| version.view.name == view.name);
        let hash = view.hash();
        if newest.is_some_and(|newest| newest.hash == hash) {
            continue;
        }
        let number = newest.map_or(0, |newest| newest.version) + 1;
        differences.push(Difference {
            kind: "on-demand view",
            name: view.name.clone(),
            version: newest.map(|newest| newest.version),
            next: Some(number),
            changes: newest.map(|newest| on_demand_changes(&newest.view, &view)).unwrap_or_default(),
            new_history: false,
        });
        let registered_at = chrono::DateTime::UNIX_EPOCH;
        next_on_demand.insert(view.name.clone(), OnDemandVersion { version: number, hash, registered_at, view });
    }
    for gone in known.iter().filter(|version| project.on_demand().iter().all(|spec| spec.name != version.view.name)) {
        differences.push(Difference {
            kind: "on-demand view",
            name: gone.view.name.clone(),
            version: Some(gone.version),
            next: None,
            changes: Vec::new(),
            new_history: false,
        });
    }
    let known = registry.services().await?;
    for spec in project.services() {
        let Ok(service) = resolve(spec, &next, &next_on_demand, registry).await? else { continue };
        let newest = known.iter().find(|version| version.service.name == service.name);
        if newest.is_some_and(|newest| newest.hash == service.hash()) {
            continue;
        }
        differences.push(Difference {
            kind: "service",
            name: service.name.clone(),
            version: newest.map(|newest| newest.version),
            next: Some(newest.map_or(0, |newest| newest.version) + 1),
            changes: newest.map(|newest| service_changes(newest, &service)).unwrap_or_default(),
            new_history: false,
        });
    }
    for gone in known.iter().filter(|version| project.services().iter().all(|spec| spec.name != version.service.name)) {
        differences.push(Difference {
            kind: "service",
            name: gone.service.name.clone(),
            version: Some(gone.version),
            next: None,
            changes: Vec::new(),
            new_history: false,
        });
    }
    Ok(Pending { views, differences })
}

/// A version that nothing was registered of yet.
fn template(view: &FeatureView) -> Option<ViewVersion> {
    Some(ViewVersion {
        version: 0,
        hash: String::new(),
        data_hash: String::new(),
        history: view.table.clone(),
        registered_at: chrono::DateTime::UNIX_EPOCH,
        view: view.clone(),
    })
}

/// The service with the versions of views that count now. The inner error is why it cannot be had yet.
pub(crate) async fn resolve(
    spec: &ServiceSpec,
    newest: &BTreeMap<String, ViewVersion>,
    on_demand: &BTreeMap<String, OnDemandVersion>,
    registry: &Registry,
) -> Result<std::result::Result<FeatureService, String>> {
    let mut features: Vec<ServiceFeature> = Vec::new();
    for reference in &spec.features {
        match on_demand_features(reference, on_demand, registry).await? {
            Some(Ok(found)) => {
                for one in found {
                    if !features.contains(&one) {
                        features.push(one);
                    }
                }
                continue;
            }
            Some(Err(reason)) => return Ok(Err(reason)),
            None => {}
        }
        let FeatureReference { view: name, version, feature } = reference;
        let old;
        let view = match version {
            None => match newest.get(name) {
                Some(view) => view,
                None => return Ok(Err(format!("no run has made the view `{name}` yet"))),
            },
            Some(_) => match registry.view(name, *version).await {
                Ok(view) => {
                    old = view;
                    &old
                }
                Err(error) => return Ok(Err(error.to_string())),
            },
        };
        let wanted: Vec<&str> = match feature {
            Some(feature) => vec![feature.as_str()],
            None => view.view.features.iter().map(|feature| feature.name.as_str()).collect(),
        };
        for feature in wanted {
            if view.view.feature(feature).is_none() {
                return Ok(Err(format!("{name}@v{} has no feature `{feature}`", view.version)));
            }
            let one = ServiceFeature { view: name.clone(), version: view.version, feature: feature.to_owned() };
            if !features.contains(&one) {
                features.push(one);
            }
        }
    }
    Ok(Ok(FeatureService {
        name: spec.name.clone(),
        description: spec.description.clone(),
        owner: spec.owner.clone(),
        features,
    }))
}

fn view_changes(before: &FeatureView, after: &FeatureView) -> Vec<String> {
    let mut changes = Vec::new();
    for feature in &after.features {
        match before.feature(&feature.name) {
            None => changes.push(format!("+ {} {}", feature.name, feature.data_type)),
            Some(old) if old.data_type != feature.data_type => {
                changes.push(format!("~ {} {} was {}", feature.name, feature.data_type, old.data_type));
            }
            Some(_) => {}
        }
    }
    let gone = before.features.iter().filter(|feature| after.feature(&feature.name).is_none());
    changes.extend(gone.map(|feature| format!("- {}", feature.name)));
    if before.entity != after.entity {
        changes.push(format!("~ entity {} was {}", after.entity.join(", "), before.entity.join(", ")));
    }
    let moment = |view: &FeatureView| view.event_timestamp.clone().unwrap_or_else(|| "the run's moment".to_owned());
    if before.event_timestamp != after.event_timestamp {
        changes.push(format!("~ event timestamp {} was {}", moment(after), moment(before)));
    }
    let ttl = |view: &FeatureView| view.ttl_s.map_or_else(|| "none".to_owned(), |ttl| format!("{ttl} s"));
    if before.ttl_s != after.ttl_s {
        changes.push(format!("~ ttl {} was {}", ttl(after), ttl(before)));
    }
    if before.online != after.online {
        changes.push(if after.online { "~ is online" } else { "~ is not online" }.to_owned());
    }
    if before.table != after.table {
        changes.push(format!("~ table {} was {}", after.table, before.table));
    }
    if before.sql != after.sql {
        changes.push("~ query".to_owned());
    }
    changes
}

fn on_demand_changes(before: &OnDemandView, after: &OnDemandView) -> Vec<String> {
    let mut changes = Vec::new();
    for feature in &after.features {
        match before.feature(&feature.name) {
            None => changes.push(format!("+ {} {}", feature.name, feature.data_type)),
            Some(old) if old != feature => changes.push(format!("~ {} {}", feature.name, feature.sql)),
            Some(_) => {}
        }
    }
    let gone = before.features.iter().filter(|feature| after.feature(&feature.name).is_none());
    changes.extend(gone.map(|feature| format!("- {}", feature.name)));
    if before.request != after.request {
        let values: Vec<String> =
            after.request.iter().map(|value| format!("{} {}", value.name, value.type_name)).collect();
        changes.push(format!("~ request {}", values.join(", ")));
    }
    for input in after.inputs.iter().filter(|input| !before.inputs.contains(input)) {
        changes.push(format!("~ reads {}@v{}:{}", input.view, input.version, input.feature));
    }
    changes
}

fn service_changes(before: &ServiceVersion, after: &FeatureService) -> Vec<String> {
    let named = |at: &ServiceFeature| format!("{}@v{}:{}", at.view, at.version, at.feature);
    let (old, new): (Vec<String>, Vec<String>) =
        (before.service.features.iter().map(named).collect(), after.features.iter().map(named).collect());
    let came = new.iter().filter(|feature| !old.contains(feature)).map(|feature| format!("+ {feature}"));
    let went = old.iter().filter(|feature| !new.contains(feature)).map(|feature| format!("- {feature}"));
    let mut changes: Vec<String> = came.chain(went).collect();
    if changes.is_empty() {
        changes.push("~ order of the features".to_owned());
    }
    changes
}
