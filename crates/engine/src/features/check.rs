//! Mistakes in feature views and services.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, SchemaRef};
use holdfast_features::{DELETED, EVENT_TIMESTAMP, KNOWN_AT, VERSION};
use holdfast_types::CUSTOMER_BUCKET;

use super::history::KEY_BUCKET;
use super::on_demand::{OnDemandFile, check_reference};
use super::service::ServiceFile;
use super::view::{FeatureView, is_timestamp};
use crate::diagnostic::{Diagnostic, most_similar};
use crate::directive::Severity;
use crate::inspect::Inspection;
use crate::stage::Stage;

/// What is wrong with the view that a stage makes. `unique` are the columns that are known to tell the rows of its table apart.
pub(crate) fn check_view(stage: &Stage, schema: &SchemaRef, unique: &[Vec<String>]) -> Vec<Diagnostic> {
    let (Some(said), Some(view)) = (&stage.directives.feature, FeatureView::of(stage, schema)) else {
        return Vec::new();
    };
    let mut mistakes = Vec::new();
    let place_of = |word: &str| match stage.place_in_directive("feature", word) {
        (0, ..) => said.place,
        place => place,
    };
    let names = || schema.fields().iter().map(|field| field.name().as_str()).filter(|name| *name != CUSTOMER_BUCKET);
    let missing = |column: &str, what: &str| {
        let message = format!("@feature names `{column}` as {what}, which is no column of {}", stage.name);
        let mistake = stage.mistake("E0602", message, place_of(column));
        match most_similar(column, names()) {
            Some(near) => mistake.with_help(format!("did you mean `{near}`?")),
            None => mistake.with_help(format!("its columns are {}", names().collect::<Vec<_>>().join(", "))),
        }
    };
    let mut has_keys = true;
    for column in &view.entity {
        match schema.field_with_name(column).map(|field| field.data_type()) {
            Err(_) => mistakes.push(missing(column, "its entity")),
            Ok(DataType::Int64 | DataType::Utf8) => continue,
            Ok(found) => {
                let message = format!("the entity `{column}` is {found}, and a key is text or a 64-bit integer");
                let mistake = stage.mistake("E0602", message, place_of(column));
                mistakes.push(mistake.with_help(format!("cast it: `cast({column} as varchar) as {column}`")));
            }
        }
        has_keys = false;
    }
    if let Some(column) = &said.event_timestamp {
        match schema.field_with_name(column).map(|field| field.data_type()) {
            Err(_) => mistakes.push(missing(column, "its event timestamp")),
            Ok(found) if !is_timestamp(found) => {
                let message = format!("the event timestamp `{column}` is {found}, which is no timestamp");
                let mistake = stage.mistake("E0602", message, place_of(column));
                mistakes.push(mistake.with_help(format!("cast it: `cast({column} as timestamp) as {column}`")));
            }
            Ok(_) => {}
        }
    }
    for feature in &view.features {
        if [EVENT_TIMESTAMP, KNOWN_AT, VERSION, DELETED, KEY_BUCKET].contains(&feature.name.as_str()) {
            let message = format!("a feature cannot be called `{}`: history has a column of that name", feature.name);
            let mistake = stage.mistake("E0602", message, stage.place_of_output(&feature.name));
            mistakes.push(mistake.with_help("give it another name, or name it in @feature as what it is"));
        }
    }
    if view.features.is_empty() {
        let message = format!("{} has no column that is a feature", stage.name);
        mistakes
            .push(stage.mistake("E0602", message, said.place).with_help("entity, event timestamp and labels are none"));
    }
    if has_keys && !is_one_row_each(stage, &view, unique) {
        let keys = view.entity.join(", ");
        let message = format!("nothing shows that {} has one row for each {keys}", stage.name);
        let mistake = stage.mistake("E0603", message, said.place);
        mistakes.push(mistake.with_help(match view.entity.as_slice() {
            [key] => format!("add `@expect fail one_row_each: count(*) = count(distinct {key})`, or group by {key}"),
            _ => format!("group by {keys}, or write a contract with that key"),
        }));
    }
    mistakes
}

/// Whether the plan, the contract or an expectation says that no two rows are about the same.
fn is_one_row_each(stage: &Stage, view: &FeatureView, unique: &[Vec<String>]) -> bool {
    let is_covered = |key: &Vec<String>| key.iter().all(|column| view.entity.contains(column));
    if unique.iter().any(is_covered) || stage.contract.as_ref().is_some_and(|contract| is_covered(&contract.key)) {
        return true;
    }
    let [key] = view.entity.as_slice() else { return false };
    let wanted = [format!("count(*)=count(distinct{key})"), format!("count(distinct{key})=count(*)")];
    stage.directives.expectations.iter().any(|expectation| {
        let condition: String = expectation.condition.to_lowercase().split_whitespace().collect();
        expectation.severity == Severity::Fail && wanted.contains(&condition)
    })
}

/// What is wrong between views, and with services.
pub(crate) fn check_project(
    stages: &[Stage],
    inspection: &Inspection,
    services: Option<&ServiceFile>,
    on_demand: Option<&OnDemandFile>,
) -> Vec<Diagnostic> {
    let mut mistakes = Vec::new();
    let mut views: BTreeMap<String, (FeatureView, SchemaRef)> = BTreeMap::new();
    for inspected in &inspection.stages {
        let Some(view) = FeatureView::of(&inspected.stage, &inspected.schema) else { continue };
        if let Some((other, _)) = views.get(&view.name) {
            let message = format!("two feature views are called `{}`: {} and {}", view.name, other.table, view.table);
            let place = inspected.stage.directives.feature.as_ref().map(|said| said.place).unwrap_or_default();
            let mistake = inspected.stage.mistake("E0602", message, place);
            mistakes.push(mistake.with_help("give one of them another name: `@feature view(name)`"));
            continue;
        }
        views.insert(view.name.clone(), (view, std::sync::Arc::clone(&inspected.schema)));
    }
    // Of a view whose stage cannot be planned nobody knows the features.
    let unplanned: Vec<String> = stages
        .iter()
        .filter(|stage| inspection.stage(&stage.name).is_none())
        .filter_map(|stage| Some((stage, stage.directives.feature.as_ref()?)))
        .map(|(stage, said)| said.view.clone().unwrap_or_else(|| stage.name.table().to_owned()))
        .collect();
    if let Some(on_demand) = on_demand {
        mistakes.extend(on_demand.check(&views, &unplanned));
    }
    let Some(file) = services else { return mistakes };
    for service in &file.services {
        for (reference, place) in service.features.iter().zip(&service.places) {
            match check_reference(service, reference, on_demand) {
                Some(Ok(())) => continue,
                Some(Err((message, help))) => {
                    let mistake = file.mistake(message, *place);
                    mistakes.push(match help {
                        Some(help) => mistake.with_help(help),
                        None => mistake,
                    });
                    continue;
                }
                None => {}
            }
            let Some((view, _)) = views.get(&reference.view) else {
                // An old version can be of a view whose stage is gone: the lake knows.
                if reference.version.is_none() && !unplanned.contains(&reference.view) {
                    let message =
                        format!("service `{}` names `{}`, which is no feature view", service.name, reference.view);
                    let mistake = file.mistake(message, *place);
                    mistakes.push(match most_similar(&reference.view, views.keys().map(String::as_str)) {
                        Some(near) => mistake.with_help(format!("did you mean `{near}`?")),
                        None => mistake.with_help("a stage is one with the directive `@feature`"),
                    });
                }
                continue;
            };
            if view.is_label() {
                let message = format!("service `{}` names the labels of {}", service.name, view.table);
                let mistake = file.mistake(message, *place);
                mistakes.push(
                    mistake.with_help(
                        "a model would be trained on the answer: labels are joined by `training-set --label`",
                    ),
                );
            }
            if let (Some(feature), None) = (&reference.feature, reference.version)
                && view.feature(feature).is_none()
            {
                let known = view.features.iter().map(|feature| feature.name.as_str());
                let message = format!("the feature view `{}` has no feature `{feature}`", view.name);
                let mistake = file.mistake(message, *place);
                mistakes.push(match most_similar(feature, known.clone()) {
                    Some(near) => mistake.with_help(format!("did you mean `{}:{near}`?", view.name)),
                    None => mistake.with_help(format!("it has {}", known.collect::<Vec<_>>().join(", "))),
                });
            }
        }
    }
    mistakes
}
