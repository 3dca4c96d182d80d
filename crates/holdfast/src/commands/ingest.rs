use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use holdfast_engine::{RunOptions, RunReport, Runner, Selection};
use holdfast_identity::{IdentitySource, ResolveReport, resolve};
use holdfast_ingest::{IngestStep, SourceReport, SourceSpec, ingest_source};
use holdfast_lake::{Lake, ObjectLocation, open_store};
use holdfast_types::{Clock, Progress};
use serde::Serialize;

use super::{grouped, print_json};
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::{Project, raw_table};

/// The schema whose stages map sources to one row a fact, keyed by customer.
const UNIFIED_SCHEMA: &str = "core";

/// Bring sources into the lake: raw tables, identity, core tables
#[derive(Debug, clap::Args)]
pub(crate) struct IngestArgs {
    /// Where the sources are: a folder or a URL such as s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    from: String,
    /// Only these sources
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Stop after raw and quarantine; leave identity and core as they are
    #[arg(long)]
    raw_only: bool,
    /// What now() is in core stages [default: now]
    #[arg(long, value_name = "TIME")]
    as_of: Option<DateTime<Utc>>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
    /// Abort the process after this step of a batch, for tests of recovery
    #[arg(long, hide = true, env = "HOLDFAST_ABORT_AFTER", value_name = "STEP")]
    abort_after: Option<IngestStep>,
}

#[derive(Debug, Serialize)]
struct IngestReport {
    sources: Vec<SourceReport>,
    customers: Option<u64>,
    core: Option<RunReport>,
    seconds: f64,
}

pub(crate) async fn run(project: &Project, args: &IngestArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let started = Instant::now();
    let from = open_store(&args.from, &PathBuf::from("."), project.options())?;
    let mut sources = project.sources()?;
    for name in &args.source {
        if !sources.iter().any(|source| &source.name == name) {
            let known: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
            return Err(CliError::Argument(format!(
                "pipeline {} has no source `{name}`: there are {}",
                project.pipeline,
                known.join(", ")
            )));
        }
    }
    // Mistakes in stages and rules are told before anything is written.
    let stages = project.stages()?;
    let tokens = project.tokens()?;
    let lake = project.create_lake().await?;
    if !args.source.is_empty() {
        sources.retain(|source| args.source.contains(&source.name));
    }
    let reports = ingest_sources(project, &lake, &sources, &from, args.abort_after, terminal).await?;
    let mut report = IngestReport { sources: reports, customers: None, core: None, seconds: 0.0 };
    if !args.raw_only {
        let resolved = resolve_identity(project, &lake, &tokens, terminal).await?;
        report.customers = Some(resolved.customers);
        if stages.stages().iter().any(|stage| stage.name.schema() == UNIFIED_SCHEMA) {
            let runner = Runner::new(lake, stages, project.session_settings()?);
            let unified = Selection::Patterns(vec![format!("{UNIFIED_SCHEMA}.*")]);
            let core = runner.run(&run_options(project, args.as_of, unified, false), terminal.as_ref()).await?;
            super::run::judge(&core)?;
            report.core = Some(core);
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    if args.json { print_json(&report) } else { Ok(()) }
}

/// The options of a run that starts now.
pub(crate) fn run_options(
    project: &Project,
    as_of: Option<DateTime<Utc>>,
    selection: Selection,
    publish: bool,
) -> RunOptions {
    RunOptions {
        run_id: uuid::Uuid::now_v7().to_string(),
        as_of: as_of.unwrap_or_else(|| SystemClock.now()),
        selection,
        refresh: false,
        publish,
        parallel_stages: project.parallel_stages(),
    }
}

pub(crate) async fn ingest_sources(
    project: &Project,
    lake: &Lake,
    sources: &[SourceSpec],
    from: &ObjectLocation,
    abort_after: Option<IngestStep>,
    terminal: &Arc<Terminal>,
) -> Result<Vec<SourceReport>, CliError> {
    let mut settings = project.ingest_settings();
    if let Some(step) = abort_after {
        settings.on_step = Some(Arc::new(move |reached| {
            if reached == step {
                std::process::abort();
            }
        }));
    }
    let mut reports = Vec::with_capacity(sources.len());
    for source in sources {
        let report = ingest_source(lake, &project.pipeline, source, from, &settings, terminal.as_ref()).await?;
        let line = if report.files_found == 0 {
            format!("  Missing {}: no file matches {}", source.name, source.path)
        } else if report.batches + report.batches_recovered == 0 {
            format!("    Fresh raw.{}", source.name)
        } else {
            format!(
                " Ingested raw.{}  {} rows from {} files, {} quarantined",
                source.name,
                grouped(report.rows_stored),
                report.files_stored,
                grouped(report.rows_quarantined)
            )
        };
        terminal.finish(&source.name, &line);
        for warning in &report.warnings {
            terminal.note(&format!("  Warning {}: {warning}", source.name));
        }
        reports.push(report);
    }
    Ok(reports)
}

/// Resolves identity over all sources of the pipeline, whichever were read just now.
pub(crate) async fn resolve_identity(
    project: &Project,
    lake: &Lake,
    tokens: &holdfast_identity::IdentifierTokens,
    terminal: &Arc<Terminal>,
) -> Result<ResolveReport, CliError> {
    let mut identified = Vec::new();
    for source in project.sources()? {
        let table = raw_table(&source)?;
        let app_id = format!("raw/{}/{}", project.pipeline, source.name);
        let newest_batch = match lake.table(&table).await? {
            Some(raw) => raw.position(&app_id).await?.unwrap_or(0),
            None => 0,
        };
        identified.push(IdentitySource {
            name: source.name.clone(),
            table,
            newest_batch,
            event_time: source.event_time.clone(),
            identifiers: source
                .identifiers
                .iter()
                .map(|identifier| (identifier.identifier_type.clone(), identifier.value.clone()))
                .collect(),
        });
    }
    let report = resolve(lake, &project.session_settings()?, tokens, &identified, terminal.as_ref()).await?;
    let line = if report.resolved {
        format!(
            " Resolved {} customers from {} identifiers ({} shared), {} new, {} merged, {} split",
            grouped(report.customers),
            grouped(report.identifiers),
            grouped(report.shared_identifiers),
            grouped(report.minted),
            grouped(report.merged),
            grouped(report.split)
        )
    } else {
        "    Fresh identity".to_owned()
    };
    terminal.finish("identity", &line);
    Ok(report)
}
