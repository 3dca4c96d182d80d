//! Everything in one process: ingestion, runs by schedule, maintenance, the service and, where it is asked for, the collector of events. Each part is the command
//! that can run alone; what is here starts them, keeps them going and ends them.

mod health;
mod section;
mod supervise;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_engine::LakeReader;
use holdfast_ingest::Origin;
use holdfast_lake::{Lake, open_store};
use holdfast_serve::ServeSettings;
use holdfast_types::Progress;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::health::Health;
pub(crate) use self::section::UpSection;
use self::supervise::{Board, supervise};
use super::collect::{CollectArgs, Gate};
use super::ingest::{IngestArgs, Rounds};
use super::scheduled::Scheduler;
use super::serve::{Door, ServeArgs};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// How long all parts together may take to end what they are at; each takes a little less.
const STOP_LIMIT: Duration = Duration::from_millis(9_200);
/// How long calls that are being answered may go on.
const DRAIN_LIMIT: Duration = Duration::from_secs(7);

/// Ingest, run on schedule, maintain and serve, all in one process, as [up] in holdfast.toml says
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Where the files of sources are: a folder or a URL such as s3://bucket/prefix [default: from holdfast.toml]
    #[arg(long, value_name = "URL")]
    from: Option<String>,
}

pub(crate) async fn run(project: &Project, args: &UpArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let section = project.up();
    project.schedule()?;
    let (from, base) = match &args.from {
        Some(from) => (Some(from), PathBuf::from(".")),
        None => (section.from.as_ref(), project.folder().to_owned()),
    };
    let from = from.map(|url| open_store(url, &base, project.options())).transpose()?;
    if let (None, Some(source)) =
        (&from, project.sources()?.iter().find(|source| matches!(source.origin, Origin::Files(_))))
    {
        return Err(CliError::Argument(format!(
            "source {} is read from files: say where they are with `from` below [up] in {}, or with --from",
            source.name,
            project.folder().join("holdfast.toml").display()
        )));
    }

    // Whatever a person has to mend is told before anything is written, and ports are taken first.
    let serve = section.serve_args(project.folder());
    let door = Door::open(&serve).await?;
    let collect = section.collect_args(project.folder());
    let gate = match &collect {
        Some(collect) => Some(Gate::open(project, collect).await?),
        None => None,
    };
    let health = Health::bind(&section.health).await?;
    let place = from.as_ref().map_or_else(|| "feeds".to_owned(), |from| from.url.to_string());
    let ingest = IngestArgs::watching(section.every_s);
    let rounds = Arc::new(Rounds::open(project, &ingest, from, terminal).await?);
    let lake = rounds.lake().clone();
    let scheduler = Arc::new(Scheduler::open(project, &lake, terminal).await?);
    let reader = Arc::new(LakeReader::open_early(lake.clone(), project.asking_settings(&lake)).await?);

    // Before anybody is told: who reads the line may stop the process at once.
    let stopped = super::stop_signal();
    let events = gate
        .as_ref()
        .map_or_else(String::new, |gate| format!(", events for {} on http://{}", gate.names(), gate.address));
    let postgres = door.postgres().map_or_else(String::new, |address| format!(", PostgreSQL on {address}"));
    terminal.note(&format!(
        "       Up {}: {place} every {} s, stages {}, Flight on grpc://{}{postgres}{events}, health on http://{}/health, Ctrl-C stops",
        project.pipeline,
        section.every_s,
        scheduler.schedule(),
        door.address,
        health.address,
    ));
    let board = Arc::new(Board::default());
    let parts = Parts {
        stop: CancellationToken::new(),
        tasks: JoinSet::new(),
        board: Arc::clone(&board),
        terminal: Arc::clone(terminal),
    };
    let parts =
        start(parts, project, (rounds, Arc::clone(&scheduler)), (serve, door), collect.zip(gate), &lake, &reader);
    let health = health.serve(board, scheduler, reader);
    parts.until(stopped, health, terminal).await
}

/// Starts every part.
fn start(
    mut parts: Parts,
    project: &Project,
    (rounds, scheduler): (Arc<Rounds>, Arc<Scheduler>),
    (serve, door): (ServeArgs, Door),
    collect: Option<(CollectArgs, Gate)>,
    lake: &Lake,
    reader: &Arc<LakeReader>,
) -> Parts {
    if project.maintenance().automatic {
        let rounds = Arc::clone(&rounds);
        parts.start("maintenance", move |stop| {
            let upkeep = rounds.upkeep();
            async move {
                // It may be dropped at any moment, and never ends by itself.
                stop.run_until_cancelled(upkeep.go_on()).await;
                Ok(())
            }
        });
    }
    parts.start("ingestion", move |stop| {
        let rounds = Arc::clone(&rounds);
        async move { Box::pin(rounds.watch(stop.cancelled(), false)).await }
    });
    parts.start("runs", move |stop| {
        let scheduler = Arc::clone(&scheduler);
        async move { Box::pin(scheduler.go_on(stop.cancelled())).await }
    });

    // The first start has the port already; those after it take the same one again.
    let address = door.address.to_string();
    let pg_listen = door.postgres().map(|address| address.to_string());
    let first = Arc::new(Mutex::new(Some(door)));
    let serve = ServeArgs { listen: address, pg_listen, ..serve };
    let (served, project_served, served_lake) = (Arc::clone(reader), project.clone(), lake.clone());
    let terminal: Arc<dyn Progress> = Arc::clone(&parts.terminal) as _;
    parts.start("service", move |stop| {
        let (first, args, project) = (Arc::clone(&first), serve.clone(), project_served.clone());
        let (lake, reader, progress) = (served_lake.clone(), Arc::clone(&served), Arc::clone(&terminal));
        async move {
            let settings = ServeSettings { drain_timeout: DRAIN_LIMIT, progress, ..ServeSettings::default() };
            let taken = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let door = match taken {
                Some(door) => door,
                None => Door::open(&args).await?,
            };
            Box::pin(door.serve(&project, &args, (&lake, reader), settings, stop.cancelled())).await
        }
    });
    if let Some((mut args, gate)) = collect {
        args.listen = gate.address.to_string();
        let (first, project, lake) = (Arc::new(Mutex::new(Some(gate))), project.clone(), lake.clone());
        parts.start("collector", move |stop| {
            let (first, args, project, lake) = (Arc::clone(&first), args.clone(), project.clone(), lake.clone());
            async move {
                let taken = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                let gate = match taken {
                    Some(gate) => gate,
                    None => Gate::open(&project, &args).await?,
                };
                Box::pin(gate.collect(&project, &args, &lake, || stop.cancelled())).await
            }
        });
    }
    parts
}

/// The parts that are running.
struct Parts {
    stop: CancellationToken,
    tasks: JoinSet<Result<(), CliError>>,
    board: Arc<Board>,
    terminal: Arc<Terminal>,
}

impl Parts {
    fn start<Part, Running>(&mut self, name: &'static str, part: Part)
    where
        Part: Fn(CancellationToken) -> Running + Send + 'static,
        Running: Future<Output = Result<(), CliError>> + Send + 'static,
    {
        self.board.begin(name);
        let (board, terminal) = (Arc::clone(&self.board), Arc::clone(&self.terminal));
        self.tasks.spawn(supervise(name, part, self.stop.clone(), board, terminal).in_current_span());
    }

    /// Goes on until a signal, or until one of the parts fails in a way that only a person can mend; then ends all of them.
    async fn until(
        mut self,
        stopped: impl Future<Output = ()> + Send,
        health: impl Future<Output = CliError> + Send,
        terminal: &Arc<Terminal>,
    ) -> Result<(), CliError> {
        let mut ended = tokio::select! {
            () = stopped => Ok(()),
            error = health => Err(error),
            ended = self.tasks.join_next() => outcome(ended),
        };
        self.stop.cancel();
        let all = async {
            while let Some(part) = self.tasks.join_next().await {
                let part = outcome(Some(part));
                if ended.is_ok() {
                    ended = part;
                }
            }
        };
        let in_time = tokio::time::timeout(STOP_LIMIT, all).await.is_ok();
        terminal.note(if in_time {
            "  Stopped"
        } else {
            "  Stopped in the middle of work, which the next start finishes"
        });
        ended
    }
}

fn outcome(part: Option<Result<Result<(), CliError>, tokio::task::JoinError>>) -> Result<(), CliError> {
    match part {
        None => Ok(()),
        Some(Ok(ended)) => ended,
        Some(Err(error)) => Err(CliError::PartEnded(format!("what keeps the parts going ended: {error}"))),
    }
}
