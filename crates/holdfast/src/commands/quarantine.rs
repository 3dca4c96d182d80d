use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{Field, Schema};
use arrow::util::pretty::pretty_format_batches;
use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use holdfast_engine::{EngineError, LakeReader, plan_read_only};
use holdfast_ingest::{
    QuarantineFilter, QuarantineGroup, QuarantinedRow, ReplayReport, ReplaySettings, ReplayStep, SourceSpec,
    list_quarantine, quarantined_rows, replay_quarantine,
};
use holdfast_lake::Lake;
use holdfast_types::{Clock, Progress, TableName};
use serde::Serialize;

use super::ingest::{has_unified, run_options, unified_stages};
use super::unify::resolve_identity;
use super::{grouped, print, print_json};
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// The column of a stage's quarantine with the expectations that a row did not meet.
const EXPECTATIONS: &str = "_expectations";

/// Look at rows that were refused, and move them on once their contract is mended
#[derive(Debug, clap::Args)]
pub(crate) struct QuarantineArgs {
    #[command(subcommand)]
    command: QuarantineCommand,
}

#[derive(Debug, clap::Subcommand)]
enum QuarantineCommand {
    List(ListArgs),
    Show(ShowArgs),
    Replay(ReplayArgs),
}

/// What was refused, by source, reason and column, and what stages set aside
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only these sources; leaves out what stages set aside
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Only what was refused since: a moment such as 2026-01-31T08:00:00Z, or 7d, 36h, 90m ago
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Refused rows of one source, one by one
#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The source
    source: String,
    #[command(flatten)]
    which: WhichRows,
    /// Only those refused for this column
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// How many rows
    #[arg(long, value_name = "ROWS", default_value_t = 20)]
    limit: usize,
    /// Show the rows as they came. They hold personal data; without this, letters and digits are masked
    #[arg(long)]
    reveal: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Read refused rows again under today's contracts; those that fit now go to raw, identity and core, each once
#[derive(Debug, clap::Args)]
struct ReplayArgs {
    /// Only these sources
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    #[command(flatten)]
    which: WhichRows,
    /// Only tell what would be moved
    #[arg(long)]
    dry_run: bool,
    /// Stop after raw; leave identity and core as they are
    #[arg(long)]
    raw_only: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// Abort the process after this step of a replay, for tests of recovery
    #[arg(long, hide = true, value_name = "STEP")]
    abort_after: Option<ReplayStep>,
}

#[derive(Debug, Clone, clap::Args)]
struct WhichRows {
    /// Only those of this batch
    #[arg(long, value_name = "NUMBER")]
    batch: Option<i64>,
    /// Only those of this file, relative to the ingested folder
    #[arg(long, value_name = "PATH")]
    file: Option<String>,
    /// Only those refused for this reason, as the list has it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl WhichRows {
    fn filter(&self) -> QuarantineFilter {
        QuarantineFilter {
            batch: self.batch,
            file: self.file.clone(),
            reason: self.reason.clone(),
            ..QuarantineFilter::default()
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Since {
    Moment(DateTime<Utc>),
    Ago(Duration),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(moment) = text.parse() {
        return Ok(Since::Moment(moment));
    }
    let wrong = |_| format!("`{text}` is neither a moment such as 2026-01-31T08:00:00Z nor a time such as 7d or 36h");
    super::maintain::duration(text).map(Since::Ago).map_err(wrong)
}

impl Since {
    fn moment(self) -> Option<DateTime<Utc>> {
        match self {
            Self::Moment(moment) => Some(moment),
            Self::Ago(time) => SystemClock.now().checked_sub_signed(TimeDelta::from_std(time).ok()?),
        }
    }
}

pub(crate) async fn run(project: &Project, args: &QuarantineArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    match &args.command {
        QuarantineCommand::List(args) => list(project, args).await,
        QuarantineCommand::Show(args) => show(project, args, terminal).await,
        QuarantineCommand::Replay(args) => Box::pin(replay(project, args, terminal)).await,
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    sources: Vec<ListedSource>,
    stages: Vec<ListedStage>,
}

#[derive(Debug, Serialize)]
struct ListedSource {
    source: String,
    #[serde(flatten)]
    group: QuarantineGroup,
}

/// Rows that a stage's expectations keep out of its newest version.
#[derive(Debug, Serialize)]
struct ListedStage {
    /// Its table.
    table: TableName,
    /// The expectations that the rows did not meet.
    expectations: String,
    rows: u64,
}

async fn list(project: &Project, args: &ListArgs) -> Result<(), CliError> {
    let sources = selected(project, &args.source)?;
    let lake = project.open_lake().await?;
    let filter = QuarantineFilter { since: args.since.and_then(Since::moment), ..QuarantineFilter::default() };
    let mut listed = Listed { sources: Vec::new(), stages: Vec::new() };
    for source in &sources {
        let groups = list_quarantine(&lake, &project.pipeline, &source.name, &filter).await?;
        let name = |group| ListedSource { source: source.name.clone(), group };
        listed.sources.extend(groups.into_iter().map(name));
    }
    // Stages work out anew what they set aside, so it has no age.
    if args.source.is_empty() && args.since.is_none() {
        listed.stages = set_aside(project, &lake).await?;
    }
    if args.json { print_json(&listed) } else { print(&listed_text(&listed)?) }
}

fn listed_text(listed: &Listed) -> Result<String, CliError> {
    let mut text = String::new();
    if !listed.sources.is_empty() {
        let rows = &listed.sources;
        let groups = || rows.iter().map(|row| &row.group);
        let number = |value: fn(&QuarantineGroup) -> u64| numbers(groups().map(value));
        text.push_str(&table(vec![
            ("source", texts(rows.iter().map(|row| Some(row.source.clone())))),
            ("reason", texts(groups().map(|group| Some(group.reason.clone())))),
            ("column", texts(groups().map(|group| group.column.clone()))),
            ("rows", number(|group| group.rows)),
            ("replayed", number(|group| group.rows_replayed)),
            ("files", number(|group| group.files)),
            ("first_seen", texts(groups().map(|group| Some(moment(group.first_seen))))),
            ("last_seen", texts(groups().map(|group| Some(moment(group.last_seen))))),
        ])?);
    }
    if !listed.stages.is_empty() {
        let rows = &listed.stages;
        text.push_str(&table(vec![
            ("table", texts(rows.iter().map(|row| Some(row.table.to_string())))),
            ("expectations", texts(rows.iter().map(|row| Some(row.expectations.clone())))),
            ("rows", numbers(rows.iter().map(|row| row.rows))),
        ])?);
    }
    if text.is_empty() { Ok("nothing is in quarantine\n".to_owned()) } else { Ok(text) }
}

/// What the newest versions of stages leave out.
async fn set_aside(project: &Project, lake: &Lake) -> Result<Vec<ListedStage>, CliError> {
    let session = LakeReader::newest(lake, &project.reader_settings()).await?.session()?;
    let failed =
        |source| CliError::Engine(EngineError::Execution { what: "the list".to_owned(), source: Box::new(source) });
    let mut found = Vec::new();
    for name in lake.tables().await? {
        let is_stage = name.schema() == "quarantine"
            && lake.table(&name).await?.is_some_and(|table| table.schema().field_with_name(EXPECTATIONS).is_ok());
        if !is_stage {
            continue;
        }
        let query = format!(
            "select {EXPECTATIONS} as expectations, count(*) as n from {name} group by {EXPECTATIONS} order by n desc, expectations"
        );
        let plan = plan_read_only(&session, &query).await?;
        let frame = session.execute_logical_plan(plan).await.map_err(failed)?;
        let mut batches = frame.execute_stream().await.map_err(failed)?;
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            let expectations = arrow::array::AsArray::as_string::<i32>(batch.column(0).as_ref()).clone();
            let rows =
                arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(batch.column(1).as_ref()).clone();
            found.extend((0..batch.num_rows()).map(|row| ListedStage {
                table: name.clone(),
                expectations: expectations.value(row).to_owned(),
                rows: u64::try_from(rows.value(row)).unwrap_or(0),
            }));
        }
    }
    Ok(found)
}

async fn show(project: &Project, args: &ShowArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let source = selected(project, std::slice::from_ref(&args.source))?.remove(0);
    let lake = project.open_lake().await?;
    let filter = QuarantineFilter { column: args.column.clone(), ..args.which.filter() };
    let (mut rows, total) = quarantined_rows(&lake, &project.pipeline, &source.name, &filter, args.limit).await?;
    if !args.reveal {
        rows.iter_mut().for_each(|row| row.original = masked(&row.original));
    }
    if args.json {
        print_json(&rows)?;
    } else if rows.is_empty() {
        print("no such rows are in quarantine\n")?;
    } else {
        print(&shown_text(&rows)?)?;
    }
    let left = total - u64::try_from(rows.len()).unwrap_or(total);
    if left > 0 {
        terminal.note(&format!("  {} more rows: --limit shows them", grouped(left)));
    }
    if !args.reveal && !rows.is_empty() {
        terminal.note("  Letters and digits are masked: --reveal shows the rows as they came");
    }
    Ok(())
}

fn shown_text(rows: &[QuarantinedRow]) -> Result<String, CliError> {
    let state = |row: &QuarantinedRow| match (row.replay, row.is_whole) {
        (Some(replay), _) => format!("moved by replay {replay}"),
        (None, Some(false)) => "waits; kept in part only".to_owned(),
        (None, _) => "waits".to_owned(),
    };
    table(vec![
        ("file", texts(rows.iter().map(|row| Some(row.file.clone())))),
        ("line", texts(rows.iter().map(|row| Some(row.line.to_string())))),
        ("batch", texts(rows.iter().map(|row| Some(row.batch.to_string())))),
        ("column", texts(rows.iter().map(|row| row.column.clone()))),
        ("reason", texts(rows.iter().map(|row| Some(row.reason.clone())))),
        ("state", texts(rows.iter().map(|row| Some(state(row))))),
        ("original", texts(rows.iter().map(|row| Some(printable(&row.original))))),
    ])
}

/// Control characters spelled out: a row must not steer the terminal it is shown on.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let (escaped, plain) = if c.is_control() { (Some(c.escape_default()), None) } else { (None, Some(c)) };
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// The shape of a text: where its quotes, commas and points are, not what it says.
fn masked(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if c.is_numeric() => '0',
            c if c.is_alphabetic() => 'x',
            // Marks and emoji say something as well.
            c if !c.is_ascii() => 'x',
            c => c,
        })
        .collect()
}

#[derive(Debug, Serialize)]
struct Replayed {
    dry_run: bool,
    sources: Vec<ReplayReport>,
    customers: Option<u64>,
}

async fn replay(project: &Project, args: &ReplayArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let sources = selected(project, &args.source)?;
    let stages = project.stages()?;
    project.identity_rules()?;
    let lake = project.open_lake_to_write().await?;
    let tokens = project.tokens(&lake).await?;
    let mut settings = ReplaySettings { is_dry_run: args.dry_run, ..ReplaySettings::default() };
    if let Some(step) = args.abort_after {
        settings.on_step = Some(Arc::new(move |reached| {
            if reached == step {
                std::process::abort();
            }
        }));
    }
    let mut replayed = Replayed { dry_run: args.dry_run, sources: Vec::new(), customers: None };
    for source in &sources {
        let report = replay_quarantine(&lake, &project.pipeline, source, &args.which.filter(), &settings).await?;
        tell(&report, args.dry_run, terminal);
        replayed.sources.push(report);
    }
    // What an earlier call moved before it died goes on as well: both find out by themselves whether there is news.
    if !args.dry_run && !args.raw_only {
        replayed.customers = Some(resolve_identity(project, &lake, &tokens, terminal).await?.customers);
        if has_unified(&stages) {
            let settings = project.session_settings(&lake).await?;
            let runner = project.runner(lake, stages, settings).await?;
            let run = runner.run(&run_options(project, None, unified_stages(), false), terminal.as_ref()).await?;
            super::run::judge(&run)?;
        }
    }
    if args.json { print_json(&replayed) } else { Ok(()) }
}

fn tell(report: &ReplayReport, is_dry_run: bool, terminal: &Arc<Terminal>) {
    if report.rows_moved + report.rows_kept + report.rows_open == 0 {
        return;
    }
    let verb = if is_dry_run { "    Would move" } else { "    Moved" };
    terminal.note(&format!(
        "{verb} {} rows of quarantine.{} to raw, {} stay",
        grouped(report.rows_moved),
        report.source,
        grouped(report.rows_kept)
    ));
    for kept in &report.kept {
        let column = kept.column.as_ref().map(|column| format!("column {column}: ")).unwrap_or_default();
        terminal.note(&format!(
            "     Stay {}: {column}{} (first: {}:{})",
            grouped(kept.rows),
            kept.reason,
            kept.first_file,
            kept.first_line
        ));
    }
    if report.rows_open > 0 {
        terminal.note(&format!(
            "     Wait {} rows of batches that are not finished: holdfast ingest finishes them",
            grouped(report.rows_open)
        ));
    }
}

/// The sources of these names; all without one.
fn selected(project: &Project, names: &[String]) -> Result<Vec<SourceSpec>, CliError> {
    let mut sources = project.sources()?;
    for name in names {
        if !sources.iter().any(|source| source.name == *name) {
            let known: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
            return Err(CliError::Argument(format!(
                "pipeline {} has no source `{name}`: there are {}",
                project.pipeline,
                known.join(", ")
            )));
        }
    }
    if !names.is_empty() {
        sources.retain(|source| names.contains(&source.name));
    }
    Ok(sources)
}

fn table(columns: Vec<(&str, ArrayRef)>) -> Result<String, CliError> {
    let failed = |error: arrow::error::ArrowError| CliError::Argument(format!("cannot print a table: {error}"));
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(failed)?;
    Ok(format!("{}\n", pretty_format_batches(&[batch]).map_err(failed)?))
}

fn texts(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

fn numbers(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(UInt64Array::from_iter_values(values))
}

fn moment(moment: DateTime<Utc>) -> String {
    moment.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_text_keeps_its_shape_only() {
        assert_eq!(masked("{\"name\":\"李雷\",\"n\":12.5}"), "{\"xxxx\":\"xx\",\"x\":00.0}");
        assert_eq!(masked("a@b.example, +86 138"), "x@x.xxxxxxx, +00 000");
    }
}
