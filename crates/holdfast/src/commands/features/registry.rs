use std::fmt::Write;

use holdfast_engine::{
    FeatureDifference, Inspection, OnDemandVersion, Project as Stages, Registry, ServiceVersion, ViewVersion, named,
    pending,
};
use holdfast_lake::Lake;
use holdfast_types::Clock;
use serde::Serialize;

use super::{seconds, table};
use crate::clock::SystemClock;
use crate::commands::{grouped, print, print_json};
use crate::error::CliError;
use crate::project::Project;

/// Feature views and services, with what a run would change of them
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// A feature view or service: its features, its versions
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// A view or service, NAME or NAME@v3
    name: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// How views and services as the files say them differ from the lake: what a run would register
#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Listed<'a> {
    views: &'a [ViewVersion],
    on_demand: &'a [OnDemandVersion],
    services: &'a [ServiceVersion],
    differences: &'a [FeatureDifference],
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Shown<'a> {
    View {
        shown: &'a ViewVersion,
        versions: &'a [ViewVersion],
    },
    #[serde(rename = "on-demand view")]
    OnDemand {
        shown: &'a OnDemandVersion,
        versions: &'a [OnDemandVersion],
    },
    Service {
        shown: &'a ServiceVersion,
        versions: &'a [ServiceVersion],
    },
}

pub(crate) async fn list(project: &Project, args: &ListArgs) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let registry = Registry::new(&lake);
    let (views, services) = (registry.views().await?, registry.services().await?);
    let on_demand = registry.on_demands().await?;
    let differences = differences(project, &registry).await?;
    if args.json {
        return print_json(&Listed {
            views: &views,
            on_demand: &on_demand,
            services: &services,
            differences: &differences,
        });
    }
    let mut rows = Vec::with_capacity(views.len());
    for version in &views {
        rows.push([
            version.view.name.clone(),
            format!("v{}", version.version),
            version.view.entity.join(", "),
            version.view.features.len().to_string(),
            version.view.ttl_s.map_or_else(|| "-".to_owned(), seconds),
            if version.view.online { "online" } else { "-" }.to_owned(),
            history_rows(&lake, version).await?,
            version.view.table.to_string(),
        ]);
    }
    let mut text = match rows.is_empty() {
        true => "no feature view is registered yet: a run does so\n".to_owned(),
        false => table(["view", "version", "entity", "features", "ttl", "online", "history", "table"], &rows),
    };
    let rows: Vec<[String; 5]> = on_demand
        .iter()
        .map(|version| {
            let request: Vec<&str> = version.view.request.iter().map(|value| value.name.as_str()).collect();
            [
                version.view.name.clone(),
                format!("v{}", version.version),
                version.view.features.len().to_string(),
                if request.is_empty() { "-".to_owned() } else { request.join(", ") },
                version.view.description.clone(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", table(["on demand", "version", "features", "request", "description"], &rows));
    }
    let rows: Vec<[String; 4]> = services
        .iter()
        .map(|version| {
            [
                version.service.name.clone(),
                format!("v{}", version.version),
                version.service.features.len().to_string(),
                version.service.description.clone(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", table(["service", "version", "features", "description"], &rows));
    }
    if !differences.is_empty() {
        let _ = write!(text, "\n{}", told(&differences));
    }
    print(&text)
}

pub(crate) async fn show(project: &Project, args: &ShowArgs) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let registry = Registry::new(&lake);
    let (name, version) = named(&args.name).map_err(CliError::Argument)?;
    let services = registry.service_versions(&name).await?;
    if !services.is_empty() {
        let shown = registry.service(&name, version).await?;
        if args.json {
            return print_json(&Shown::Service { shown: &shown, versions: &services });
        }
        return print(&service_text(&shown, &services));
    }
    let on_demand = registry.on_demand_versions(&name).await?;
    if !on_demand.is_empty() {
        let shown = registry.on_demand(&name, version).await?;
        if args.json {
            return print_json(&Shown::OnDemand { shown: &shown, versions: &on_demand });
        }
        return print(&on_demand_text(&shown, &on_demand));
    }
    let shown = registry.view(&name, version).await?;
    let versions = registry.view_versions(&name).await?;
    if args.json {
        return print_json(&Shown::View { shown: &shown, versions: &versions });
    }
    print(&view_text(&lake, &shown, &versions).await?)
}

pub(crate) async fn diff(project: &Project, args: &DiffArgs) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let differences = differences(project, &Registry::new(&lake)).await?;
    if args.json {
        return print_json(&differences);
    }
    match differences.is_empty() {
        true => print("views and services are registered as the files say them\n"),
        false => print(&told(&differences)),
    }
}

async fn differences(project: &Project, registry: &Registry) -> Result<Vec<FeatureDifference>, CliError> {
    let draft = project.draft()?;
    let inspection: Inspection = draft.inspect(&project.planning_settings()?, SystemClock.now())?.without_mistakes()?;
    let stages: Stages = draft.into_project()?;
    Ok(pending(&stages, &inspection, registry).await?.differences)
}

fn told(differences: &[FeatureDifference]) -> String {
    let mut text = String::new();
    for difference in differences {
        let FeatureDifference { kind, name, version, next, changes, new_history } = difference;
        // Writing to a string cannot fail.
        let _ = match (version, next) {
            (None, _) => writeln!(text, "{kind} {name}: a run registers it as v1"),
            (Some(version), None) => {
                writeln!(text, "{kind} {name}@v{version}: the files no longer have it; it stays readable")
            }
            (Some(version), Some(next)) => {
                let history = if *new_history { ", whose history begins anew" } else { "" };
                writeln!(text, "{kind} {name}@v{version}: a run registers v{next}{history}")
            }
        };
        for change in changes {
            let _ = writeln!(text, "    {change}");
        }
    }
    text
}

async fn history_rows(lake: &Lake, version: &ViewVersion) -> Result<String, CliError> {
    let table = lake.table(&version.history).await?;
    Ok(table
        .and_then(|table| table.row_count())
        .map_or_else(|| "-".to_owned(), |rows| format!("{} rows", grouped(rows))))
}

async fn view_text(lake: &Lake, shown: &ViewVersion, versions: &[ViewVersion]) -> Result<String, CliError> {
    let view = &shown.view;
    let mut text = format!("feature view {}@v{}\n", view.name, shown.version);
    let mut line = |what: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {what:16} {value}");
        }
    };
    line("table", view.table.to_string());
    line("entity", view.entity.join(", "));
    line("event timestamp", view.event_timestamp.clone().unwrap_or_else(|| "the run's moment".to_owned()));
    line("ttl", view.ttl_s.map_or_else(|| "none".to_owned(), seconds));
    line("online", if view.online { "yes" } else { "no" }.to_owned());
    line("owner", view.owner.clone().unwrap_or_default());
    line("tags", view.tags.join(", "));
    line("history", format!("{}, {}", shown.history, history_rows(lake, shown).await?));
    line("description", view.description.clone());
    let rows: Vec<[String; 3]> = view
        .features
        .iter()
        .map(|feature| {
            let personal = if feature.is_personal { "personal data; " } else { "" };
            let comment = feature.comment.clone().unwrap_or_default();
            [feature.name.clone(), feature.data_type.clone(), format!("{personal}{comment}")]
        })
        .collect();
    let _ = write!(text, "\n{}", table(["feature", "type", "meaning"], &rows));
    let rows: Vec<[String; 3]> = versions
        .iter()
        .map(|version| {
            let at = version.registered_at.format("%Y-%m-%d %H:%M:%SZ").to_string();
            [format!("v{}", version.version), at, version.history.to_string()]
        })
        .collect();
    let _ = write!(text, "\n{}", table(["version", "registered", "history"], &rows));
    Ok(text)
}

fn on_demand_text(shown: &OnDemandVersion, versions: &[OnDemandVersion]) -> String {
    let view = &shown.view;
    let mut text = format!("on-demand view {}@v{}\n", view.name, shown.version);
    let reads: Vec<String> =
        view.inputs.iter().map(|input| format!("{}@v{}:{}", input.view, input.version, input.feature)).collect();
    for (what, value) in [
        ("owner", view.owner.clone().unwrap_or_default()),
        ("reads", reads.join(", ")),
        ("description", view.description.clone()),
    ] {
        if !value.is_empty() {
            let _ = writeln!(text, "  {what:16} {value}");
        }
    }
    if !view.request.is_empty() {
        let rows: Vec<[String; 2]> =
            view.request.iter().map(|value| [value.name.clone(), value.type_name.clone()]).collect();
        let _ = write!(text, "\n{}", table(["request value", "type"], &rows));
    }
    let rows: Vec<[String; 3]> = view
        .features
        .iter()
        .map(|feature| [feature.name.clone(), feature.data_type.clone(), feature.sql.clone()])
        .collect();
    let _ = write!(text, "\n{}", table(["feature", "type", "expression"], &rows));
    let rows: Vec<[String; 2]> = versions
        .iter()
        .map(|version| {
            [format!("v{}", version.version), version.registered_at.format("%Y-%m-%d %H:%M:%SZ").to_string()]
        })
        .collect();
    let _ = write!(text, "\n{}", table(["version", "registered"], &rows));
    text
}

fn service_text(shown: &ServiceVersion, versions: &[ServiceVersion]) -> String {
    let mut text = format!("feature service {}@v{}\n", shown.service.name, shown.version);
    for (what, value) in
        [("owner", shown.service.owner.clone().unwrap_or_default()), ("description", shown.service.description.clone())]
    {
        if !value.is_empty() {
            let _ = writeln!(text, "  {what:16} {value}");
        }
    }
    text.push('\n');
    for feature in &shown.service.features {
        let _ = writeln!(text, "{}@v{}:{}", feature.view, feature.version, feature.feature);
    }
    let rows: Vec<[String; 3]> = versions
        .iter()
        .map(|version| {
            let at = version.registered_at.format("%Y-%m-%d %H:%M:%SZ").to_string();
            [format!("v{}", version.version), at, version.service.features.len().to_string()]
        })
        .collect();
    let _ = write!(text, "\n{}", table(["version", "registered", "features"], &rows));
    text
}
