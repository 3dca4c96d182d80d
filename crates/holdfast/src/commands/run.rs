use std::io::IsTerminal;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_cluster::{Address, ClusterError};
use holdfast_engine::{RunOptions, RunReport, Selection, StageOutcome, TimeRange};
use holdfast_lake::Lake;
use holdfast_types::{ErrorKind, Progress, TableName};

use super::{confirm, print_json};
use crate::error::CliError;
use crate::models::thresholds::Thresholds;
use crate::progress::Terminal;
use crate::project::Project;

/// Bring the tables of SQL stages up to date and publish them as one run
///
/// What is up to date is left alone. So a run that failed or was killed is resumed by running again: what it committed is not done twice.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    what: WhatArgs,
    /// Go on by the pipeline's [schedule], identity included, until Ctrl-C or SIGTERM
    #[arg(long, conflicts_with_all = ["select", "exclude", "as_of", "full", "from", "json", "prune"])]
    scheduled: bool,
    /// Let a cluster work out the rows of stages that are refreshed in full: df://host:port or ballista://host:port of its scheduler [default: from holdfast.toml, else this process]
    #[arg(long, visible_alias = "engine", value_name = "URL")]
    cluster: Option<Address>,
    /// Into how many parts rows are divided there: at least as many as all executors run tasks at once [default: 16]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    cluster_partitions: Option<u16>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
    /// Delete tables of stages whose files are gone, after the run; asks first
    #[arg(long)]
    prune: bool,
    /// Delete them without asking
    #[arg(long, requires = "prune")]
    yes: bool,
}

/// What a run or a plan is about.
#[derive(Debug, clap::Args)]
pub(crate) struct WhatArgs {
    /// Only these stages: NAME, schema.*, tag:TAG; +PATTERN (with what they read), PATTERN+ (with what reads them)
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    select: Vec<String>,
    /// Without these stages: patterns as of --select
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    exclude: Vec<String>,
    /// What now() is [default: now; in an environment what it was in production's newest run]
    #[arg(long, value_name = "TIME", value_parser = super::moment)]
    as_of: Option<DateTime<Utc>>,
    /// Refresh in full, also what is up to date
    #[arg(long)]
    full: bool,
    /// Work out anew the rows from this day or moment on, whether anything changed or not; of stages by time
    #[arg(long, value_name = "TIME", value_parser = super::moment, requires = "to", conflicts_with = "full")]
    from: Option<DateTime<Utc>>,
    /// Until before this day or moment
    #[arg(long, value_name = "TIME", value_parser = super::moment, requires = "from")]
    to: Option<DateTime<Utc>>,
}

impl WhatArgs {
    pub(crate) async fn options(&self, project: &Project, lake: &Lake) -> Result<RunOptions, CliError> {
        // In an environment now() is what it was in production's run: else every stage that depends on time would be made anew there.
        let as_of = match (self.as_of, lake.environment_name()) {
            (None, Some(_)) => lake.production().latest_manifest().await?.map(|run| run.as_of),
            (as_of, _) => as_of,
        };
        let options = super::ingest::run_options(project, as_of, selection(&self.select, &self.exclude), true);
        let range = match (self.from, self.to) {
            (Some(from), Some(to)) if from >= to => {
                return Err(CliError::Argument(format!("--to {to} is not after --from {from}: the range is empty")));
            }
            (Some(from), Some(to)) => Some(TimeRange { from, to }),
            _ => None,
        };
        Ok(RunOptions { full: self.full, range, ..options })
    }
}

pub(crate) fn selection(select: &[String], exclude: &[String]) -> Selection {
    let selection = if select.is_empty() { Selection::All } else { Selection::Patterns(select.to_vec()) };
    if exclude.is_empty() { selection } else { Selection::Without(Box::new(selection), exclude.to_vec()) }
}

pub(crate) async fn run(project: &Project, args: &RunArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let elsewhere = args
        .cluster
        .clone()
        .map(|scheduler| project.clone().with_cluster(scheduler, args.cluster_partitions.map(usize::from)));
    let project = elsewhere.as_ref().unwrap_or(project);
    if args.scheduled {
        return Box::pin(super::scheduled::run(project, terminal)).await;
    }
    if args.prune && !args.yes && !std::io::stdin().is_terminal() {
        return Err(CliError::Argument("--prune asks, and nobody is there to answer: say --yes".to_owned()));
    }
    let stages = project.stages()?;
    let lake = project.open_stages_to_write().await?;
    let options = args.what.options(project, &lake).await?;
    let mut settings = project.session_settings(&lake).await?;
    if let Some(cluster) = project.cluster() {
        cluster.ready(terminal.as_ref()).await.map_err(ClusterError::from)?;
        if project.has_local_lake() && !cluster.scheduler().is_loopback() {
            terminal.note("     Note the lake is a folder: executors on other machines must have it at the same path");
        }
        settings.executor = Some(cluster);
    }
    Thresholds::bring(project, &lake, terminal.as_ref()).await?;
    let runner = project.runner(lake, stages, settings).await?;
    let report = runner.run(&options, terminal.as_ref()).await?;
    summarise(&report, terminal);
    if args.json {
        print_json(&report)?;
    }
    judge(&report)?;
    if !args.prune {
        report.orphans.iter().for_each(|orphan| terminal.note(&orphan_line(orphan)));
        return Ok(());
    }
    if report.orphans.is_empty() || !(args.yes || ask(&report.orphans, terminal)?) {
        return Ok(());
    }
    let options = RunOptions { run_id: uuid::Uuid::now_v7().to_string(), ..options };
    for table in runner.prune(&report.orphans, &options).await? {
        terminal.note(&format!("  Deleted {table}"));
    }
    Ok(())
}

/// What is told of a table whose stage is gone.
fn orphan_line(orphan: &TableName) -> String {
    format!("   Orphan {orphan}  the file of its stage is gone: the table is kept, `holdfast run --prune` deletes it")
}

fn ask(orphans: &[TableName], terminal: &Arc<Terminal>) -> Result<bool, CliError> {
    let names: Vec<String> = orphans.iter().map(ToString::to_string).collect();
    confirm(&format!("Delete {} with all versions, for good?", names.join(", ")), terminal)
}

pub(crate) fn summarise(report: &RunReport, terminal: &Arc<Terminal>) {
    let built = report.count(|outcome| matches!(outcome, StageOutcome::Built { .. }));
    let fresh = report.count(|outcome| matches!(outcome, StageOutcome::Fresh { .. }));
    let published = match report.published {
        Some(sequence) => format!("published as run {sequence}"),
        None if report.succeeded() => "nothing new to publish".to_owned(),
        None => "not published".to_owned(),
    };
    terminal
        .finish("stages", &format!(" Finished {built} built, {fresh} fresh in {:.1}s, {published}", report.seconds));
}

/// A run with a failure fails the command, with the exit code of the first failure.
pub(crate) fn judge(report: &RunReport) -> Result<(), CliError> {
    if report.succeeded() {
        return Ok(());
    }
    let kind = report
        .stages
        .iter()
        .find_map(|stage| match &stage.outcome {
            StageOutcome::Failed { kind, .. } => Some(*kind),
            _ => None,
        })
        .unwrap_or(ErrorKind::Bug);
    let total = report.stages.len();
    let fine = report.count(|outcome| matches!(outcome, StageOutcome::Built { .. } | StageOutcome::Fresh { .. }));
    Err(CliError::StagesFailed { fine, total, kind })
}
