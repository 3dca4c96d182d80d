use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_engine::run_cases;
use holdfast_lake::{Lake, LakeSettings, StoreOptions};
use holdfast_types::{Clock, Progress};

use super::ingest::UNIFIED_SCHEMA;
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Check all stages and run the cases beside them; touches no lake
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// What now() is where a case does not say [default: now]
    #[arg(long, value_name = "TIME")]
    as_of: Option<DateTime<Utc>>,
}

pub(crate) async fn run(project: &Project, args: &TestArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let stages = project.stages()?;
    let lake = empty_lake().await?;
    let as_of = args.as_of.unwrap_or_else(|| SystemClock.now());
    let report = run_cases(&lake, &stages, &project.case_settings()?, as_of).await?;
    for failure in &report.failed {
        terminal.note(&format!(
            "   Failed {} case {} in {}\n{}",
            failure.stage,
            failure.case,
            failure.file.display(),
            failure.difference
        ));
    }
    for stage in &report.stages_without {
        terminal.note(&format!("  Without {stage}: no case beside the stage"));
    }
    for stage in stages.stages() {
        if stage.name.schema() == UNIFIED_SCHEMA && stage.contract.is_none() {
            terminal.note(&format!("  Without {}: no contract beside the stage", stage.name));
        }
    }
    let total = report.passed + report.failed.len();
    terminal.note(&format!("   Tested {} stages, {} of {total} cases passed", stages.stages().len(), report.passed));
    if report.failed.is_empty() { Ok(()) } else { Err(CliError::CasesFailed { failed: report.failed.len(), total }) }
}

/// An empty lake in memory: stages are planned against a lake, and real tables are kept out of it.
pub(crate) async fn empty_lake() -> Result<Lake, CliError> {
    let settings = LakeSettings::default();
    let here = std::path::Path::new(".");
    Ok(Lake::create_or_open("memory:///cases", here, &StoreOptions::new(), settings, Arc::new(SystemClock)).await?)
}
