use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_engine::{RecordOptions, Selection, run_cases};
use holdfast_lake::{Lake, LakeSettings, StoreOptions};
use holdfast_types::{Clock, Progress, TableName};

use super::ingest::UNIFIED_SCHEMA;
use super::set_readable;
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Check all stages and run the cases beside them; touches no lake
///
/// With --record it makes a case instead: the rows in the lake that a stage's table was made from, of a few customers, and what the stage makes of them. Customers
/// are called c1, c2, …; personal data becomes made-up text. Look the case over before you keep it.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// What now() is where a case does not say [default: now]
    #[arg(long, value_name = "TIME", value_parser = super::moment)]
    as_of: Option<DateTime<Utc>>,
    /// Only cases of these stages: NAME, schema.*, tag:TAG; +PATTERN (with what they read), PATTERN+ (with what reads them)
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    select: Vec<String>,
    /// Make a case of this stage from the lake, and write it beside the stage
    #[arg(long, value_name = "STAGE", conflicts_with_all = ["select", "as_of"])]
    record: Option<TableName>,
    /// A customer that the case is of; may be given several times [default: two of the stage's table]
    #[arg(long, value_name = "ID", requires = "record")]
    customer: Vec<String>,
    /// What the case is called
    #[arg(long, value_name = "NAME", requires = "record", default_value = "as_recorded")]
    name: String,
}

pub(crate) async fn run(project: &Project, args: &TestArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    if let Some(stage) = &args.record {
        return record(project, stage, args, terminal).await;
    }
    let stages = project.stages()?;
    let lake = empty_lake().await?;
    let as_of = args.as_of.unwrap_or_else(|| SystemClock.now());
    let selection = match args.select.as_slice() {
        [] => Selection::All,
        patterns => Selection::Patterns(patterns.to_vec()),
    };
    let report = run_cases(&lake, &stages, &project.case_settings()?, as_of, &selection).await?;
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
    let tested = stages.select(&selection)?.len();
    terminal.note(&format!("   Tested {tested} stages, {} of {total} cases passed", report.passed));
    if report.failed.is_empty() { Ok(()) } else { Err(CliError::CasesFailed { failed: report.failed.len(), total }) }
}

async fn record(
    project: &Project,
    stage: &TableName,
    args: &TestArgs,
    terminal: &Arc<Terminal>,
) -> Result<(), CliError> {
    let stages = project.stages()?;
    let lake = project.open_lake().await?;
    let settings = project.session_settings(&lake).await?;
    let options = RecordOptions { stage: stage.clone(), customers: args.customer.clone(), name: args.name.clone() };
    let recorded = project.runner(lake, stages, settings).await?.record_case(&options).await?;
    let failed = |source| CliError::File { what: "cannot write", path: recorded.file.clone(), source };
    let folder = recorded.file.parent().unwrap_or(Path::new("."));
    // Nobody sees half of it, and what was there stays if there is no room.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(recorded.text.as_bytes()).map_err(failed)?;
    set_readable(&file).map_err(failed)?;
    file.persist(&recorded.file).map_err(|error| failed(error.error))?;
    for (table, rows) in &recorded.given {
        terminal.note(&format!("    Given {table}: {rows} rows"));
    }
    for remark in &recorded.remarks {
        terminal.note(&format!("     Note {remark}"));
    }
    terminal.note(&format!(
        " Recorded case {} with {} expected rows in {}: look it over before you keep it",
        args.name,
        recorded.expected,
        recorded.file.display()
    ));
    Ok(())
}

/// An empty lake in memory: stages are planned against a lake, and real tables are kept out of it.
pub(crate) async fn empty_lake() -> Result<Lake, CliError> {
    let settings = LakeSettings::default();
    let here = std::path::Path::new(".");
    Ok(Lake::create_or_open("memory:///cases", here, &StoreOptions::new(), settings, Arc::new(SystemClock)).await?)
}
