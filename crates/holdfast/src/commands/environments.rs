use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_engine::{Action, RunOptions, Selection};
use holdfast_lake::EnvironmentName;
use holdfast_types::Progress;
use serde::Serialize;

use super::{confirm, print, print_json};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Show and delete environments: tables of one's own beside production's, made by `holdfast run --env NAME`
#[derive(Debug, clap::Args)]
pub(crate) struct EnvironmentsArgs {
    #[command(subcommand)]
    command: EnvironmentsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum EnvironmentsCommand {
    List(ListArgs),
    Drop(DropArgs),
}

/// Show the environments: their newest run, and the tables they have of their own
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// Delete an environment with all its tables; production is as it was. Asks first
#[derive(Debug, clap::Args)]
struct DropArgs {
    /// Which
    name: EnvironmentName,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Take over into production what an environment has tried: shows the plan, asks, and runs the same stages there
///
/// The stages are those that the environment has tables of its own of. Their files must be as they were tried.
#[derive(Debug, clap::Args)]
pub(crate) struct PromoteArgs {
    /// Which environment
    name: EnvironmentName,
    /// Show the plan and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// What now() is [default: now]
    #[arg(long, value_name = "TIME", value_parser = super::moment)]
    as_of: Option<DateTime<Utc>>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Listed {
    name: EnvironmentName,
    /// The newest run, counted from 1; nothing while none was published.
    run: Option<u64>,
    as_of: Option<DateTime<Utc>>,
    published_at: Option<DateTime<Utc>>,
    /// Tables of its own.
    tables: Vec<String>,
}

pub(crate) async fn run(project: &Project, args: &EnvironmentsArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    match &args.command {
        EnvironmentsCommand::List(args) => list(project, args).await,
        EnvironmentsCommand::Drop(args) => drop_one(project, args, terminal).await,
    }
}

async fn list(project: &Project, args: &ListArgs) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let mut listed = Vec::new();
    for name in lake.production().environments().await? {
        let run = lake.production().environment(&name).await?.latest_manifest().await?;
        let tables = run.iter().flat_map(|run| &run.tables).filter(|entry| !entry.is_of_production);
        listed.push(Listed {
            name,
            tables: tables.map(|entry| entry.name.to_string()).collect(),
            run: run.as_ref().map(|run| run.sequence),
            as_of: run.as_ref().map(|run| run.as_of),
            published_at: run.as_ref().map(|run| run.published_at),
        });
    }
    if args.json {
        return print_json(&listed);
    }
    if listed.is_empty() {
        return print("there is no environment: `holdfast run --env NAME` makes one\n");
    }
    let line = |one: &Listed| {
        let run = match (one.run, one.published_at) {
            (Some(run), Some(at)) => format!("run {run} of {}", at.format("%Y-%m-%d %H:%M:%SZ")),
            _ => "no run was published".to_owned(),
        };
        let tables = if one.tables.is_empty() { "no table of its own".to_owned() } else { one.tables.join(", ") };
        format!("{}  {run}: {tables}\n", one.name)
    };
    print(&listed.iter().map(line).collect::<String>())
}

async fn drop_one(project: &Project, args: &DropArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let lake = project.open_lake_to_write().await?;
    if !lake.environments().await?.contains(&args.name) {
        // Says which there are.
        lake.environment_as_run(&args.name).await?;
    }
    let question = format!("Delete environment {} with all its tables, for good?", args.name);
    if !args.yes && !confirm(&question, terminal)? {
        return Ok(());
    }
    lake.drop_environment(&args.name).await?;
    terminal.note(&format!("  Deleted environment {}", args.name));
    Ok(())
}

pub(crate) async fn promote(project: &Project, args: &PromoteArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let stages = project.stages()?;
    let lake = project.open_lake_to_write().await?;
    let environment = lake.environment_as_run(&args.name).await?;
    let settings = project.run_settings(&lake).await?;
    let runner = project.runner(lake, stages, settings).await?;
    let tried = runner.tried(&environment).await?;
    if !tried.changed.is_empty() {
        let names: Vec<String> = tried.changed.iter().map(ToString::to_string).collect();
        return Err(CliError::Argument(format!(
            "{}: not what environment {name} has tried, because these files, or what they rest on, changed since: `holdfast run --env {name}`, look at it, then promote",
            names.join(", "),
            name = args.name
        )));
    }
    for gone in &tried.gone {
        terminal.note(&format!("  Skipped {gone}  the file of its stage is gone"));
    }
    if tried.stages.is_empty() {
        terminal.note(&format!("  Nothing to promote: environment {} has no table of its own", args.name));
        return Ok(());
    }
    let patterns = Selection::Patterns(tried.stages.iter().map(ToString::to_string).collect());
    let options = super::ingest::run_options(project, args.as_of, patterns, true);
    let plan = runner.plan(&options, terminal.as_ref()).await?;
    if args.dry_run && args.json {
        return print_json(&plan);
    }
    let page = super::plan::page(&plan, project);
    if args.dry_run {
        return print(&page);
    }
    page.lines().for_each(|line| terminal.note(line));
    let is_new = plan.stages.iter().any(|stage| stage.action != Action::Fresh);
    if is_new && !args.yes && !confirm("Run this in production?", terminal)? {
        return Ok(());
    }
    let options = RunOptions { as_of: plan.as_of, ..options };
    let report = runner.run(&options, terminal.as_ref()).await?;
    super::run::summarise(&report, terminal);
    if args.json {
        print_json(&report)?;
    }
    super::run::judge(&report)
}
