use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use holdfast_engine::{Project as Stages, RunOptions, RunReport, Runner, Selection};
use holdfast_identity::{IdentifierTokens, Resolver};
use holdfast_ingest::{
    IngestError, IngestSettings, IngestStep, Origin, Severity, SourceReader, SourceReport, SourceSpec, ingest_inbox,
    ingest_source, ledger_tables,
};
use holdfast_lake::{Lake, LakeError, ObjectLocation, open_store};
use holdfast_types::{Clock, ErrorKind, Progress, TableName};
use serde::Serialize;
use tokio::task::JoinSet;

use super::feeds::{Feeds, Following};
use super::maintain::duration;
use super::shares::Shares;
use super::unify::Arrived;
use super::upkeep::Upkeep;
use super::{grouped, print_json};
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::models::thresholds::Thresholds;
use crate::progress::Terminal;
use crate::project::Project;

/// What follows from all sources, for workers that share a pipeline. No source has this name: it would be no table's.
const AFTERWARDS: &str = "identity and stages";

/// The schema whose stages map sources to one row a fact, keyed by customer.
pub(crate) const UNIFIED_SCHEMA: &str = "core";

/// How long sources stay reserved when a watching process dies.
const LEASE: Duration = Duration::from_secs(30);
/// How long a watching process may take to end what it is at when it is told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// And then to let others take what it held.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(1);
/// The longest pause after errors that may pass by themselves.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Bring sources into the lake: raw tables, identity, core tables
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct IngestArgs {
    /// Where the files of sources are: a folder or a URL such as s3://bucket/prefix. Not needed for sources that are feeds
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// Only these sources
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Stop after raw and quarantine; leave identity and core as they are
    #[arg(long)]
    raw_only: bool,
    /// Go on with what arrives, until Ctrl-C or SIGTERM
    #[arg(long, conflicts_with_all = ["json", "as_of"])]
    watch: bool,
    /// With --watch: how often to look, in seconds; at once when a round took longer
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = pause)]
    every: f64,
    /// With --watch: when something came, bring all stages up to date and publish them
    #[arg(long, requires = "watch", conflicts_with = "raw_only")]
    run: bool,
    /// What now() is in core stages [default: now]
    #[arg(long, value_name = "TIME", value_parser = super::moment)]
    as_of: Option<DateTime<Utc>>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
    /// With --watch: how long sources stay reserved when this process dies, for tests of recovery
    #[arg(long, hide = true, value_name = "TIME", default_value = "30s", value_parser = duration)]
    lease: Duration,
    /// Abort the process after this step of a batch, for tests of recovery
    #[arg(long, hide = true, env = "HOLDFAST_ABORT_AFTER", value_name = "STEP")]
    abort_after: Option<IngestStep>,
}

impl IngestArgs {
    /// Watching, to raw and no further.
    pub(crate) fn watching(every: f64) -> Self {
        Self {
            from: None,
            source: Vec::new(),
            raw_only: true,
            watch: true,
            every,
            run: false,
            as_of: None,
            json: false,
            lease: LEASE,
            abort_after: None,
        }
    }
}

fn pause(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    pause_of(seconds)
}

/// How often to look, if one may look so often.
pub(crate) fn pause_of(seconds: f64) -> Result<f64, String> {
    if (0.1..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("between 0.1 and 86400 seconds".to_owned()) }
}

#[derive(Debug, Serialize)]
struct IngestReport {
    sources: Vec<SourceReport>,
    customers: Option<u64>,
    core: Option<RunReport>,
    seconds: f64,
}

impl IngestReport {
    /// Files that wait to be mended fail the command, after everything else is done.
    fn judge(&self) -> Result<(), CliError> {
        let kinds: Vec<&str> =
            self.sources.iter().flat_map(|source| &source.refused).map(|file| file.kind.as_str()).collect();
        let only_rows = kinds.iter().all(|kind| *kind == ErrorKind::Quarantine.as_str());
        let kind = if only_rows { ErrorKind::Quarantine } else { ErrorKind::InvalidInput };
        if kinds.is_empty() { Ok(()) } else { Err(CliError::FilesRefused { files: kinds.len(), kind }) }
    }
}

/// How a round of sources is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) told: Told,
    /// A folder that is not there is one that is not there yet.
    pub(crate) folders_may_come: bool,
    /// Somebody else in this process reads the feeds.
    pub(crate) feeds_are_followed: bool,
    /// Where to abort the process, for tests of recovery.
    pub(crate) abort_after: Option<IngestStep>,
}

/// Which sources are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// All of them.
    All,
    /// Those that brought something.
    News,
}

/// Whether a pipeline has stages that map sources.
pub(crate) fn has_unified(stages: &Stages) -> bool {
    stages.stages().iter().any(|stage| stage.name.schema() == UNIFIED_SCHEMA)
}

/// Those stages.
pub(crate) fn unified_stages() -> Selection {
    Selection::Patterns(vec![format!("{UNIFIED_SCHEMA}.*")])
}

pub(crate) async fn run(project: &Project, args: &IngestArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let from = match &args.from {
        Some(url) => Some(open_store(url, &PathBuf::from("."), project.options())?),
        None => None,
    };
    let rounds = Rounds::open(project, args, from, terminal).await?;
    if args.watch {
        return rounds.watch(super::stop_signal(), true).await;
    }
    let report = rounds.round(Told::All, &mut Unified::new(rounds.tokens.clone()), None).await?;
    rounds.tidy(&report.sources).await?;
    if args.json {
        print_json(&report)?;
    }
    report.judge()
}

/// What every round of ingestion needs.
pub(crate) struct Rounds {
    project: Project,
    args: IngestArgs,
    terminal: Arc<Terminal>,
    from: Option<ObjectLocation>,
    sources: Vec<SourceSpec>,
    feeds: Feeds,
    tokens: IdentifierTokens,
    lake: Lake,
    runner: Option<Runner>,
}

/// How far what is in raw has come in identity and core, and what the next round need not read again.
struct Unified {
    /// What was brought there last; `None` when that is not known.
    arrived: Option<Arrived>,
    resolver: Resolver,
}

impl Unified {
    fn new(tokens: IdentifierTokens) -> Self {
        Self { arrived: None, resolver: Resolver::new(tokens) }
    }
}

/// What a watching worker has from one round to the next.
struct Watching {
    shares: Shares,
    readers: BTreeMap<String, SourceReader>,
}

impl Rounds {
    /// Checks all that ingestion reads before it writes anything.
    pub(crate) async fn open(
        project: &Project,
        args: &IngestArgs,
        from: Option<ObjectLocation>,
        terminal: &Arc<Terminal>,
    ) -> Result<Self, CliError> {
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
        if !args.source.is_empty() {
            sources.retain(|source| args.source.contains(&source.name));
        }
        if let (None, Some(source)) = (&from, sources.iter().find(|source| matches!(source.origin, Origin::Files(_)))) {
            return Err(CliError::Argument(format!(
                "source {} is read from files: say with --from where they are, or name the sources that are none with --source",
                source.name
            )));
        }
        // Mistakes in contracts, stages and rules are told before anything is written.
        let feeds = Feeds::open(project, &sources)?;
        let stages = project.stages()?;
        project.identity_rules()?;
        let lake = project.create_lake().await?;
        let tokens = project.tokens(&lake).await?;
        let needs_runner = !args.raw_only && (has_unified(&stages) || args.run);
        let runner = match needs_runner {
            true => Some(project.runner(lake.clone(), stages, project.run_settings(&lake).await?).await?),
            false => None,
        };
        Ok(Self {
            project: project.clone(),
            args: args.clone(),
            terminal: Arc::clone(terminal),
            from,
            sources,
            feeds,
            tokens,
            lake,
            runner,
        })
    }

    /// Everything that is there now, to raw and from there to core. `unified` says what of raw is in core already, so that a
    /// round without news is a short one; whoever wrote to raw, such as `holdfast collect`, makes news. A watching worker does what it holds.
    async fn round(
        &self,
        told: Told,
        unified: &mut Unified,
        mut watching: Option<&mut Watching>,
    ) -> Result<IngestReport, CliError> {
        let started = Instant::now();
        let (project, args, terminal) = (&self.project, &self.args, &self.terminal);
        let manner = Manner {
            abort_after: args.abort_after,
            told,
            folders_may_come: args.watch,
            feeds_are_followed: args.watch,
        };
        let sources = match watching.as_deref_mut() {
            Some(watching) => self.ingest_held(manner, watching).await?,
            None => {
                let from = (self.from.as_ref(), &self.feeds);
                ingest_sources(project, &self.lake, &self.sources, from, manner, terminal).await?
            }
        };
        let mut report = IngestReport { sources, customers: None, core: None, seconds: 0.0 };
        if args.raw_only {
            // Nothing is unified.
        } else if let Some(watching) = watching {
            watching.shares.settle().await?;
            let work = Box::pin(self.unify(unified, &mut report));
            watching.shares.hold(AFTERWARDS, work).await?.transpose()?;
        } else {
            self.unify(unified, &mut report).await?;
        }
        report.seconds = started.elapsed().as_secs_f64();
        Ok(report)
    }

    /// The lake that is ingested into.
    pub(crate) fn lake(&self) -> &Lake {
        &self.lake
    }

    /// What keeps the tables tidy beside the rounds.
    pub(crate) fn upkeep(&self) -> Upkeep {
        Upkeep::new(&self.project, &self.lake, &self.sources, &self.terminal)
    }

    /// Maintains the tables that this ingestion appended to, once they have many small files: what the next one costs does not grow with the number of those
    /// before. That it failed is told; what came in is in.
    async fn tidy(&self, reports: &[SourceReport]) -> Result<(), CliError> {
        let grown: Vec<&SourceReport> = reports.iter().filter(|report| report.batches > 0).collect();
        if grown.is_empty() || !self.project.maintenance().automatic {
            return Ok(());
        }
        let mut tables: Vec<TableName> = ledger_tables()?.into_iter().map(|table| table.name).collect();
        for schema in ["raw", "quarantine"] {
            for report in &grown {
                tables.push(TableName::new(schema, &report.source).map_err(|error| CliError::Lake(error.into()))?);
            }
        }
        let mut upkeep = self.upkeep();
        if let Err(error) = upkeep.tidy(tables).await {
            self.terminal.problem(&format!("   Failed maintenance: {error}"));
        }
        Ok(())
    }

    /// The sources that this worker holds, one after the other. One that is lost on the way is its new holder's.
    async fn ingest_held(&self, manner: Manner, watching: &mut Watching) -> Result<Vec<SourceReport>, CliError> {
        let settings = ingest_settings(&self.project, manner.abort_after);
        let Some(from) = &self.from else { return Ok(Vec::new()) };
        let Watching { shares, readers } = watching;
        let mut reports = Vec::new();
        for source in self.sources.iter().filter(|source| matches!(source.origin, Origin::Files(_))) {
            shares.settle().await?;
            if let Some(news) = shares.news() {
                self.terminal.note(&news);
            }
            let Some(fence) = shares.fence(&source.name) else {
                readers.remove(&source.name);
                continue;
            };
            let settings = IngestSettings { fence: Some(fence), ..settings.clone() };
            let reader = readers
                .entry(source.name.clone())
                .or_insert_with(|| SourceReader::new(&self.lake, &self.project.pipeline, source, from));
            let work = Box::pin(reader.advance(&settings, self.terminal.as_ref()));
            let ended = shares.hold(&source.name, work).await.map_err(CliError::from);
            match ended.and_then(|ended| ended.transpose().map_err(CliError::from)) {
                Ok(Some(report)) => {
                    tell(source, &report, manner, &self.terminal);
                    reports.push(report);
                }
                Ok(None) => self.terminal.note(&format!("     Lost {}: another worker goes on with it", source.name)),
                Err(CliError::Ingest(IngestError::Lake(
                    LakeError::Superseded { .. } | LakeError::LeaseOver { .. },
                ))) => {
                    shares.lose(&source.name);
                    self.terminal.note(&format!("     Lost {}: this process stalled", source.name));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(reports)
    }

    /// What is in raw, to identity and core.
    async fn unify(&self, unified: &mut Unified, report: &mut IngestReport) -> Result<(), CliError> {
        let (project, args, terminal) = (&self.project, &self.args, &self.terminal);
        let arrived = Arrived::look(project, &self.lake).await?;
        if unified.arrived.as_ref() == Some(&arrived) {
            return Ok(());
        }
        // Until all of it is done, nothing is known to be.
        unified.arrived = None;
        let resolved = arrived.resolve(project, &self.lake, &mut unified.resolver, terminal).await?;
        report.customers = Some(resolved.customers);
        if let Some(runner) = &self.runner {
            if args.run {
                Thresholds::bring(project, &self.lake, terminal.as_ref()).await?;
            }
            let renewed = project.renewed(&self.lake, runner).await?;
            let runner = renewed.as_ref().unwrap_or(runner);
            let selection = if args.run { Selection::All } else { unified_stages() };
            let run = runner.run(&run_options(project, args.as_of, selection, args.run), terminal.as_ref()).await?;
            if args.run {
                super::run::summarise(&run, terminal);
            }
            super::run::judge(&run)?;
            report.core = Some(run);
        }
        unified.arrived = Some(arrived);
        Ok(())
    }

    /// Round after round until `stop`, and beside them the feeds. What is under way then may end, for a while; what it leaves open the next process
    /// finishes. Where this is all that the process does, it maintains tables, too, and says when it begins and ends.
    pub(crate) async fn watch(&self, stop: impl Future<Output = ()> + Send, is_alone: bool) -> Result<(), CliError> {
        let files = self.sources.iter().filter(|source| matches!(source.origin, Origin::Files(_)));
        let mut parts: Vec<String> = files.map(|source| source.name.clone()).collect();
        if !self.args.raw_only {
            parts.push(AFTERWARDS.to_owned());
        }
        let shares = Shares::new(&self.lake, &self.project.pipeline, parts, self.args.lease);
        let mut watching = Watching { shares, readers: BTreeMap::new() };
        // Ends with this function, whatever it is at.
        let mut beside = JoinSet::new();
        if is_alone && self.project.maintenance().automatic {
            beside.spawn(self.upkeep().go_on());
        }
        let settings = ingest_settings(&self.project, self.args.abort_after);
        let mut following = self.feeds.follow(&self.sources, (&self.lake, &self.project.pipeline), &settings);
        let ended = self.rounds_until_stopped(&mut following, &mut watching, stop, is_alone).await;
        beside.abort_all();
        // What the store takes longer for than this ends by itself.
        let _ = tokio::time::timeout(GIVE_BACK_LIMIT, watching.shares.give_back()).await;
        ended
    }

    async fn rounds_until_stopped(
        &self,
        following: &mut Following,
        watching: &mut Watching,
        stop: impl Future<Output = ()> + Send,
        is_alone: bool,
    ) -> Result<(), CliError> {
        let say = |what: &str| {
            if is_alone {
                self.terminal.note(what);
            }
        };
        let every = Duration::from_secs_f64(self.args.every);
        let mut stop = std::pin::pin!(stop);
        let (mut failures, mut told, mut unified) = (0_u32, Told::All, Unified::new(self.tokens.clone()));
        let place = self.from.as_ref().map_or_else(|| "feeds".to_owned(), |from| from.url.to_string());
        say(&format!(" Watching {place} every {} s, Ctrl-C stops", self.args.every));
        loop {
            let began = Instant::now();
            let ended = {
                let mut round = std::pin::pin!(self.round(told, &mut unified, Some(&mut *watching)));
                tokio::select! {
                    ended = &mut round => ended,
                    error = following.failed() => return Err(error),
                    () = &mut stop => {
                        let ending = async { tokio::join!(round, following.stop()) };
                        let ended = tokio::time::timeout(STOP_LIMIT, ending).await.is_ok();
                        let how = if ended { "after its batch" } else { "in a batch, which the next worker finishes" };
                        say(&format!("  Stopped {how}"));
                        return Ok(());
                    }
                }
            };
            let pause = match ended {
                Ok(_) => {
                    (failures, told) = (0, Told::News);
                    every.saturating_sub(began.elapsed())
                }
                // The store, the disk, another worker: likely to pass.
                Err(error) if matches!(error.kind(), ErrorKind::Retry | ErrorKind::Conflict) => {
                    let pause = every.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX.max(every));
                    failures += 1;
                    let kind = error.kind().as_str();
                    tracing::warn!(
                        kind,
                        monotonic_counter.holdfast_errors = 1_u64,
                        "a round failed and is tried again"
                    );
                    self.terminal.problem(&format!("   Failed {error}; next try in {:.1} s", pause.as_secs_f64()));
                    pause
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                error = following.failed() => return Err(error),
                () = &mut stop => {
                    let _ = tokio::time::timeout(STOP_LIMIT, following.stop()).await;
                    say("  Stopped");
                    return Ok(());
                }
            }
        }
    }
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
        full: false,
        range: None,
        publish,
        parallel_stages: project.parallel_stages(),
    }
}

/// The limits of ingestion, with the step after which the process is aborted, for tests of recovery.
fn ingest_settings(project: &Project, abort_after: Option<IngestStep>) -> IngestSettings {
    let mut settings = project.ingest_settings();
    if let Some(step) = abort_after {
        settings.on_step = Some(Arc::new(move |reached| {
            if reached == step {
                std::process::abort();
            }
        }));
    }
    settings
}

pub(crate) async fn ingest_sources(
    project: &Project,
    lake: &Lake,
    sources: &[SourceSpec],
    (from, feeds): (Option<&ObjectLocation>, &Feeds),
    manner: Manner,
    terminal: &Arc<Terminal>,
) -> Result<Vec<SourceReport>, CliError> {
    let settings = ingest_settings(project, manner.abort_after);
    let mut reports = Vec::with_capacity(sources.len());
    for source in sources {
        if manner.feeds_are_followed && matches!(source.origin, Origin::Feed(_)) {
            continue;
        }
        let inbox = || ingest_inbox(lake, &project.pipeline, source, &settings, terminal.as_ref());
        let report = match (&source.origin, from) {
            (Origin::Files(_), Some(from)) => {
                let ended = ingest_source(lake, &project.pipeline, source, from, &settings, terminal.as_ref()).await;
                match ended {
                    Err(IngestError::MissingFolder { .. }) if manner.folders_may_come => inbox().await?,
                    ended => ended?,
                }
            }
            _ => feeds.read(source, (lake, &project.pipeline), &settings, terminal.as_ref()).await?,
        };
        tell(source, &report, manner, terminal);
        reports.push(report);
    }
    Ok(reports)
}

/// Tells what the ingestion of a source did.
fn tell(source: &SourceSpec, report: &SourceReport, manner: Manner, terminal: &Arc<Terminal>) {
    let has_news = report.batches + report.batches_recovered > 0;
    let line = if !has_news && manner.told == Told::News {
        String::new()
    } else if let (0, Origin::Files(glob)) = (report.files_found, &source.origin) {
        format!("  Missing {}: no file matches {}", source.name, glob.path)
    } else if !has_news {
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
    let told_before = match manner.told {
        Told::All => 0,
        Told::News => report.refused.len() - usize::try_from(report.files_refused).unwrap_or(0),
    };
    for file in &report.refused[told_before..] {
        terminal.problem(&format!("  Refused {}: {}", source.name, file.reason));
    }
    if manner.told == Told::All || report.alerts_changed > 0 {
        tell_alerts(report, terminal);
    }
}

fn tell_alerts(report: &SourceReport, terminal: &Terminal) {
    for alert in &report.alerts {
        let heading = match alert.severity {
            Severity::Warning => "    Alert",
            Severity::Critical => " Critical",
        };
        let since = alert.since.format("%Y-%m-%dT%H:%M:%SZ");
        terminal.problem(&format!("{heading} {}: {} (since {since}); {}", report.source, alert.message, alert.remedy));
    }
    if report.alerts.is_empty() && report.alerts_changed > 0 {
        terminal.note(&format!("   Solved {}: no alert is left", report.source));
    }
}
