use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_engine::{RunReport, Runner, Selection, StageOutcome};
use holdfast_types::{ErrorKind, Progress};

use super::print_json;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Bring the tables of SQL stages up to date and publish them as one run
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Only these stages: NAME, schema.*, +NAME (with what it reads), NAME+ (with what reads it)
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    select: Vec<String>,
    /// What now() is [default: now]
    #[arg(long, value_name = "TIME")]
    as_of: Option<DateTime<Utc>>,
    /// Refresh also what is up to date
    #[arg(long)]
    refresh: bool,
    /// Go on by the pipeline's [schedule], identity included, until Ctrl-C or SIGTERM
    #[arg(long, conflicts_with_all = ["select", "as_of", "refresh", "json"])]
    scheduled: bool,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(project: &Project, args: &RunArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    if args.scheduled {
        return Box::pin(super::scheduled::run(project, terminal)).await;
    }
    let stages = project.stages()?;
    let lake = project.open_lake_to_write().await?;
    let selection = if args.select.is_empty() { Selection::All } else { Selection::Patterns(args.select.clone()) };
    let mut options = super::ingest::run_options(project, args.as_of, selection, true);
    options.refresh = args.refresh;
    let report = Runner::new(lake, stages, project.session_settings()?).run(&options, terminal.as_ref()).await?;
    summarise(&report, terminal);
    if args.json {
        print_json(&report)?;
    }
    judge(&report)
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
