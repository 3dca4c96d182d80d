use std::fmt::Write;
use std::sync::Arc;

use holdfast_engine::{Action, Cause, ColumnChange, PlanReport, StagePlan};

use super::run::WhatArgs;
use super::{grouped, print, print_json};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Show what a run would do, and why; commits nothing
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    what: WhatArgs,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(project: &Project, args: &PlanArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let stages = project.stages()?;
    let lake = project.open_stages().await?;
    let options = args.what.options(project, &lake).await?;
    let settings = project.session_settings(&lake).await?;
    let runner = project.runner(lake, stages, settings).await?;
    let report = runner.plan(&options, terminal.as_ref()).await?;
    if args.json { print_json(&report) } else { print(&page(&report, project)) }
}

pub(crate) fn page(report: &PlanReport, project: &Project) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for stage in &report.stages {
        let (verb, told) = match &stage.action {
            Action::Fresh => continue,
            Action::Keys { keys: Some(0) } => ("Keys", "none of its keys: it stays as it is".to_owned()),
            Action::Keys { keys: Some(keys) } => ("Keys", format!("the rows of {} keys", grouped(*keys))),
            Action::Keys { keys: None } => ("Keys", "the rows of the keys that change".to_owned()),
            Action::Append { input: Some(input) } => ("Append", format!("the rows for what comes in {input}")),
            Action::Append { input: None } => ("Append", "no rows: nothing came".to_owned()),
            Action::Full { reason } => ("Full", full(stage, reason)),
            Action::Fails { error, .. } => ("Fails", error.clone()),
        };
        let _ = writeln!(text, "{verb:>9} {}  {told}", stage.stage);
        for cause in &stage.because {
            let _ = writeln!(text, "          because {}", because(cause));
        }
        for change in &stage.columns {
            let _ = writeln!(text, "          column  {}", column(change));
        }
        if let Some(stop) = &stage.stop {
            let file = stage.file.strip_prefix(project.folder()).unwrap_or(&stage.file).display().to_string();
            let place = match (stop.line, stop.column) {
                (Some(line), Some(column)) => format!("{file}:{line}:{column}"),
                _ => file,
            };
            let _ = writeln!(text, "          stopped by {place}: {}: {}", stop.reason, stop.what);
        }
    }
    for orphan in &report.orphans {
        let _ = writeln!(text, "   Orphan {orphan}  the file of its stage is gone; `holdfast run --prune` deletes it");
    }
    let count = |action: fn(&Action) -> bool| report.stages.iter().filter(|stage| action(&stage.action)).count();
    let fails = match count(|action| matches!(action, Action::Fails { .. })) {
        0 => String::new(),
        fails => format!(", {fails} would fail"),
    };
    let added_to = match count(|action| matches!(action, Action::Append { .. })) {
        0 => String::new(),
        stages => format!(", {stages} added to"),
    };
    let _ = writeln!(
        text,
        "  Planned {} stages in {:.1}s: {} in full, {} by key{added_to}, {} fresh{fails}",
        report.stages.len(),
        report.seconds,
        count(|action| matches!(action, Action::Full { .. })),
        count(|action| matches!(action, Action::Keys { .. })),
        count(|action| matches!(action, Action::Fresh)),
    );
    text
}

fn full(stage: &StagePlan, reason: &str) -> String {
    let rows = match stage.rows {
        Some(1) => ", 1 row now".to_owned(),
        Some(rows) => format!(", {} rows now", grouped(rows)),
        None => String::new(),
    };
    // What stops it is told with its place below.
    match &stage.stop {
        Some(stop) if reason.contains(&stop.reason) => format!("all rows{rows}"),
        _ => format!("all rows{rows}: {reason}"),
    }
}

fn because(cause: &Cause) -> String {
    let version = |version: &Option<u64>| version.map_or_else(|| "nothing".to_owned(), |version| format!("v{version}"));
    match cause {
        Cause::Asked => "it was asked for".to_owned(),
        Cause::NeverMade => "it was never made".to_owned(),
        Cause::Unknown => "its commits do not say what it was made from".to_owned(),
        Cause::Query => "its query, its expectations or its contract changed".to_owned(),
        Cause::Asks { now } => now.clone(),
        Cause::Moment { from, to } => match (from, to) {
            (Some(from), Some(to)) => format!("it depends on time: made for {from}, now for {to}"),
            _ => "it depends on time".to_owned(),
        },
        Cause::Input { table, from, to } => format!("{table} went from {} to {}", version(from), version(to)),
        Cause::Upstream { table } => format!("{table} is brought up to date first"),
    }
}

fn column(change: &ColumnChange) -> String {
    match change {
        ColumnChange::Added { column, data_type } => format!("+ {column} {data_type}"),
        ColumnChange::Removed { column, data_type } => format!("- {column} {data_type}"),
        ColumnChange::Retyped { column, from, to } => format!("~ {column} {from} becomes {to}"),
    }
}
