//! Runs by the pipeline's schedule: identity, then all stages, published. `holdfast up` has it beside its other parts, `holdfast run --scheduled` alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_engine::{RunOptions, Runner, Selection, StageOutcome};
use holdfast_identity::{IdentifierTokens, Resolver};
use holdfast_lake::Lake;
use holdfast_types::{Clock, ErrorKind, Progress, TableName};

use super::ingest::run_options;
use super::unify::Arrived;
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::models::cadence::{Cadence, Done};
use crate::models::registry::Registry;
use crate::models::score::Scored;
use crate::models::thresholds::Thresholds;
use crate::models::train::Trained;
use crate::progress::Terminal;
use crate::project::Project;
use crate::schedule::{Next, Schedule};

/// The longest sleep: a clock may be set, and a machine may have slept.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// How long the schedule stays reserved when this process dies.
const LEASE: Duration = Duration::from_secs(30);
/// How often it is looked whether the process that has the schedule is done.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// Between tries after errors that may pass by themselves.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a run that is under way may take to end when it is time to stop. What is left of it the next run does.
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// Runs a pipeline when its schedule says so.
pub(crate) struct Scheduler {
    project: Project,
    lake: Lake,
    terminal: Arc<Terminal>,
    schedule: Schedule,
    /// With the champions of its last run, where stages ask models.
    runner: tokio::sync::Mutex<Arc<Runner>>,
    tokens: IdentifierTokens,
    /// The table of the batches that are in raw.
    books: TableName,
    /// What is done with models behind a run.
    cadence: tokio::sync::Mutex<Cadence>,
    /// For those who ask.
    told: Mutex<LastRun>,
}

/// What is known about the last run of a schedule in this process.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastRun {
    /// When it began.
    pub(crate) began_at: Option<DateTime<Utc>>,
    /// What went wrong, if it did.
    pub(crate) failed: Option<ErrorKind>,
}

/// What a run has to work with.
#[derive(Debug, Clone, PartialEq)]
struct News {
    arrived: Arrived,
    /// The version of the books of ingestion: they are written behind the rows, and stages read them, too.
    books: Option<u64>,
}

/// From one run to the next.
struct Progressing {
    resolver: Resolver,
    /// What the last run brought to the stages; `None` when that is not known.
    news: Option<News>,
    last: Option<DateTime<Utc>>,
    /// Times of the calendar are done up to this.
    calendar: DateTime<Utc>,
    told_busy: bool,
}

/// How an attempt ended.
enum Attempt {
    Done,
    /// Nothing was new.
    Idle,
    /// Another process has the schedule.
    Busy,
    /// Some stages failed. Those who know the data have to look.
    StagesFailed,
}

impl Scheduler {
    /// Checks the schedule, the stages and the rules of identity.
    ///
    /// # Errors
    /// Mistakes in the pipeline's files.
    pub(crate) async fn open(project: &Project, lake: &Lake, terminal: &Arc<Terminal>) -> Result<Self, CliError> {
        Ok(Self {
            project: project.clone(),
            lake: lake.clone(),
            terminal: Arc::clone(terminal),
            schedule: project.schedule()?,
            runner: tokio::sync::Mutex::new(Arc::new(
                project.runner(lake.clone(), project.stages()?, project.run_settings(lake).await?).await?,
            )),
            tokens: project.tokens(lake).await?,
            books: TableName::new("metric", "ingest_batches").map_err(|error| CliError::Lake(error.into()))?,
            cadence: tokio::sync::Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// When stages are run.
    pub(crate) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// About the last run.
    pub(crate) fn last_run(&self) -> LastRun {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs until `stop`. What may pass by itself is tried again, and a run in which stages failed waits for the next time.
    ///
    /// # Errors
    /// What a person has to mend: mistakes in files, a lake that is damaged.
    pub(crate) async fn go_on(&self, stop: impl Future<Output = ()> + Send) -> Result<(), CliError> {
        let mut stop = std::pin::pin!(stop);
        let mut state = Progressing {
            resolver: Resolver::new(self.tokens.clone()),
            news: None,
            last: None,
            calendar: self.published_at().await?.unwrap_or_else(|| self.now()),
            told_busy: false,
        };
        let mut failures = 0_u32;
        loop {
            let pause = match self.schedule.next(state.last, state.calendar, self.now()) {
                Next::Wait(until) => (until - self.now()).to_std().unwrap_or_default().min(SLEEP_MAX),
                next => {
                    let ended = {
                        let mut attempt = std::pin::pin!(self.attempt(next, &mut state));
                        tokio::select! {
                            ended = &mut attempt => ended,
                            () = &mut stop => {
                                let _ = tokio::time::timeout(STOP_LIMIT, attempt).await;
                                return Ok(());
                            }
                        }
                    };
                    match ended {
                        Ok(Attempt::Done | Attempt::StagesFailed) => {
                            failures = 0;
                            Duration::ZERO
                        }
                        Ok(Attempt::Idle) => self.schedule.look_every(),
                        Ok(Attempt::Busy) => BUSY_PAUSE,
                        Err(error) if matches!(error.kind(), ErrorKind::Retry | ErrorKind::Conflict) => {
                            let pause = PAUSE_MIN.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
                            failures += 1;
                            self.tell_failed(&error);
                            let seconds = pause.as_secs_f64();
                            self.terminal.problem(&format!("   Failed the run: {error}; next try in {seconds:.0} s"));
                            pause
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = &mut stop => return Ok(()),
            }
        }
    }

    /// A run, if there is reason for one, under the lease of the pipeline's schedule.
    async fn attempt(&self, next: Next, state: &mut Progressing) -> Result<Attempt, CliError> {
        let news = self.news().await?;
        let is_news = state.news.as_ref() != Some(&news) && !news.arrived.is_nothing();
        if next == Next::RunOnNews && !is_news {
            return Ok(Attempt::Idle);
        }
        let name = format!("schedule/{}", self.project.pipeline);
        let Some(mut lease) = self.lake.lease(&name, &super::worker_name(), LEASE).await? else {
            if !std::mem::replace(&mut state.told_busy, true) {
                let holder = self.lake.lease_holder(&name).await?;
                let owner = holder.map_or_else(|| "another process".to_owned(), |holder| holder.owner);
                self.terminal.note(&format!("  Waiting {owner} runs {}", self.project.pipeline));
            }
            return Ok(Attempt::Busy);
        };
        if std::mem::replace(&mut state.told_busy, false)
            && let Some(published_at) = self.published_at().await?
        {
            // The time may be done: it had the schedule.
            state.calendar = state.calendar.max(published_at);
            if self.schedule.next(state.last, state.calendar, self.now()) != Next::Run && !is_news {
                lease.release().await?;
                return Ok(Attempt::Idle);
            }
        }
        let began_at = self.now();
        let worked = lease.hold(Box::pin(self.run_once(&news.arrived, is_news, state))).await;
        if let Err(error) = lease.release().await {
            tracing::debug!(%error, "a lease was not given back: it ends by itself");
        }
        let Some(ended) = worked? else { return Ok(Attempt::Busy) };
        let ended = ended?;
        // As far as the schedule goes it is done: that stages failed is no reason to try the same at once.
        (state.last, state.calendar, state.news) = (Some(began_at), began_at, Some(news));
        Ok(ended)
    }

    async fn run_once(&self, arrived: &Arrived, is_news: bool, state: &mut Progressing) -> Result<Attempt, CliError> {
        let began_at = self.now();
        if is_news {
            state.news = None;
            arrived.resolve(&self.project, &self.lake, &mut state.resolver, &self.terminal).await?;
        }
        let options = run_options(&self.project, None, Selection::All, true);
        // A run that was not expected to bring anything is told only when it did.
        let quiet = Problems(&self.terminal);
        let progress: &dyn Progress = if is_news { self.terminal.as_ref() } else { &quiet };
        Thresholds::bring(&self.project, &self.lake, self.terminal.as_ref()).await?;
        let report = self.runner().await?.run(&options, progress).await?;
        let built = report.count(|outcome| matches!(outcome, StageOutcome::Built { .. }));
        if is_news || built > 0 || !report.succeeded() {
            super::run::summarise(&report, &self.terminal);
        }
        match super::run::judge(&report) {
            Ok(()) => {
                self.follow_models(&options).await?;
                *self.told.lock().unwrap_or_else(PoisonError::into_inner) =
                    LastRun { began_at: Some(began_at), failed: None };
                Ok(Attempt::Done)
            }
            Err(error) if matches!(error.kind(), ErrorKind::Retry | ErrorKind::Conflict) => Err(error),
            Err(error) => {
                self.tell_failed(&error);
                self.terminal.problem(&format!("   Failed the run: {error}; the next one is on schedule"));
                Ok(Attempt::StagesFailed)
            }
        }
    }

    /// What the files of models say is done behind a run, under the same lease. New scores go on into the stages that read them.
    async fn follow_models(&self, options: &RunOptions) -> Result<(), CliError> {
        let registry = Registry { lake: self.lake.clone(), settings: self.project.reader_settings() };
        let problems = Problems(&self.terminal);
        let runner = self.runner().await?;
        let done = self.cadence.lock().await.follow(&self.project, &runner, &registry, self.now(), &problems).await?;
        let mut scored = false;
        for done in done {
            match done {
                Done::Scored(Scored::Unchanged { .. }) => {}
                Done::Scored(made) => {
                    super::score::tell(&made, &self.terminal);
                    scored = true;
                }
                Done::Watched(watched) => super::models::tell_watched(&watched, &self.terminal),
                Done::Trained(Trained::Unchanged { .. }) => {}
                Done::Trained(Trained::Made(made)) => self.terminal.note(&format!(
                    "  Trained {}  version {} is the challenger: look at it with `holdfast models show {} {}`",
                    made.model, made.version, made.model, made.version
                )),
            }
        }
        if scored {
            // What fails here fails in the next run, and is told there.
            let again = RunOptions { run_id: uuid::Uuid::now_v7().to_string(), ..options.clone() };
            runner.run(&again, &problems).await?;
        }
        Ok(())
    }

    /// The runner for a run that begins now.
    async fn runner(&self) -> Result<Arc<Runner>, CliError> {
        let mut runner = self.runner.lock().await;
        if let Some(renewed) = self.project.renewed(&self.lake, &runner).await? {
            *runner = Arc::new(renewed);
        }
        Ok(Arc::clone(&runner))
    }

    async fn news(&self) -> Result<News, CliError> {
        let books = match self.lake.table(&self.books).await? {
            Some(table) => Some(table.data_version().await?),
            None => None,
        };
        Ok(News { arrived: Arrived::look(&self.project, &self.lake).await?, books })
    }

    fn tell_failed(&self, error: &CliError) {
        let kind = error.kind();
        tracing::warn!(kind = kind.as_str(), monotonic_counter.holdfast_errors = 1_u64, "a scheduled run failed");
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told = LastRun { began_at: Some(self.now()), failed: Some(kind) };
    }

    /// When readers got their newest run. Without a run no time was missed.
    async fn published_at(&self) -> Result<Option<DateTime<Utc>>, CliError> {
        let newest = self.lake.latest_manifest().await?;
        // A clock that was ahead holds nothing up.
        Ok(newest.map(|run| run.published_at.min(self.now() + TimeDelta::seconds(1))))
    }

    fn now(&self) -> DateTime<Utc> {
        SystemClock.now()
    }
}

/// What went wrong and nothing else.
#[derive(Debug)]
struct Problems<'a>(&'a Terminal);

impl Progress for Problems<'_> {
    fn advance(&self, _step: &str, _done: u64, _total: Option<u64>, _unit: &'static str) {}
    fn finish(&self, _step: &str, _summary: &str) {}
    fn note(&self, _line: &str) {}
    fn problem(&self, line: &str) {
        self.0.problem(line);
    }
}

/// The schedule alone, until a signal.
pub(crate) async fn run(project: &Project, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let lake = project.open_lake_to_write().await?;
    let scheduler = Scheduler::open(project, &lake, terminal).await?;
    // Before anybody is told: who reads the line may stop the process at once.
    let stop = super::stop_signal();
    terminal.note(&format!("  Running {} {}, Ctrl-C stops", project.pipeline, scheduler.schedule()));
    scheduler.go_on(stop).await?;
    terminal.note("  Stopped");
    Ok(())
}
