//! `holdfast`: the command line. The only place that reads the environment and the wall clock.

mod clock;
mod commands;
mod error;
mod models;
mod pg_gate;
mod progress;
mod project;
mod schedule;
mod telemetry;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use holdfast_lake::StoreOptions;
use holdfast_types::Progress;
use tracing::Instrument;

use crate::commands::{
    access, audit, check, cluster, collect, contracts, demo, docs, environments, features, fmt, generate, identity,
    ingest, lineage, maintain, models as model_versions, plan, policy, quarantine, run, score, serve, sql, status,
    test, train, up, verify, why,
};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::{Project, ProjectArgs};
use crate::telemetry::{LogSink, Telemetry, TelemetrySettings};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Customer 360, features and churn scores on Delta tables.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    project: ProjectArgs,
    /// Tell more in the log; twice tells everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Show no progress
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Access(access::AccessArgs),
    Audit(audit::AuditArgs),
    Check(check::CheckArgs),
    Cluster(cluster::ClusterArgs),
    Collect(collect::CollectArgs),
    Contracts(contracts::ContractsArgs),
    Demo(demo::DemoArgs),
    Docs(docs::DocsArgs),
    #[command(visible_alias = "env")]
    Environments(environments::EnvironmentsArgs),
    Features(features::FeaturesArgs),
    Fmt(fmt::FmtArgs),
    Generate(generate::GenerateArgs),
    Identity(identity::IdentityArgs),
    Ingest(ingest::IngestArgs),
    Lineage(lineage::LineageArgs),
    Plan(plan::PlanArgs),
    Policy(policy::PolicyArgs),
    Promote(environments::PromoteArgs),
    Run(run::RunArgs),
    Maintain(maintain::MaintainArgs),
    Models(model_versions::ModelsArgs),
    Quarantine(quarantine::QuarantineArgs),
    Score(score::ScoreArgs),
    Sql(sql::SqlArgs),
    Serve(serve::ServeArgs),
    Status(status::StatusArgs),
    Test(test::TestArgs),
    Train(train::TrainArgs),
    Up(up::UpArgs),
    Verify(verify::VerifyArgs),
    Why(why::WhyArgs),
}

impl Command {
    const fn name(&self) -> &'static str {
        match self {
            Self::Access(_) => "access",
            Self::Audit(_) => "audit",
            Self::Check(_) => "check",
            Self::Cluster(_) => "cluster",
            Self::Collect(_) => "collect",
            Self::Contracts(_) => "contracts",
            Self::Demo(_) => "demo",
            Self::Docs(_) => "docs",
            Self::Environments(_) => "environments",
            Self::Features(_) => "features",
            Self::Fmt(_) => "fmt",
            Self::Generate(_) => "generate",
            Self::Identity(_) => "identity",
            Self::Ingest(_) => "ingest",
            Self::Lineage(_) => "lineage",
            Self::Plan(_) => "plan",
            Self::Policy(_) => "policy",
            Self::Promote(_) => "promote",
            Self::Run(_) => "run",
            Self::Maintain(_) => "maintain",
            Self::Models(_) => "models",
            Self::Quarantine(_) => "quarantine",
            Self::Score(_) => "score",
            Self::Sql(_) => "sql",
            Self::Serve(_) => "serve",
            Self::Status(_) => "status",
            Self::Test(_) => "test",
            Self::Train(_) => "train",
            Self::Up(_) => "up",
            Self::Verify(_) => "verify",
            Self::Why(_) => "why",
        }
    }
}

/// Threads for calls that block, on local files above all. Each keeps memory of its own.
const BLOCKING_THREADS: usize = 16;

/// How long a command that is over waits for threads that are not.
const SHUTDOWN_LIMIT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Two TLS providers are compiled in by libraries: one must be chosen before the first connection.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let terminal = Arc::new(Terminal::new(cli.quiet));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(8 << 20)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&CliError::Argument(format!("cannot start: {error}")), &terminal),
    };
    let ended = runtime.block_on(start(&cli, &terminal));
    // What was dropped in the middle of something may still compute: nobody waits for it.
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, &terminal),
    }
}

async fn start(cli: &Cli, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let telemetry = Telemetry::start(telemetry_settings(cli, terminal))?;
    let span = telemetry.command_span(cli.command.name());
    let ended = async {
        let result = Box::pin(command(cli, terminal)).await;
        if let Err(error) = &result {
            // The message itself is printed at the end; the log and the metrics get its kind.
            tracing::info!(kind = error.kind().as_str(), monotonic_counter.holdfast_errors = 1_u64, "command failed");
        }
        result
    };
    let result = Box::pin(ended.instrument(span)).await;
    telemetry.shutdown();
    result
}

#[expect(clippy::disallowed_methods, reason = "the binary hands the environment down as settings")]
fn telemetry_settings(cli: &Cli, terminal: &Arc<Terminal>) -> TelemetrySettings {
    let terminal = Arc::clone(terminal);
    let log = LogSink::new(move |line| terminal.log(line));
    let mut settings = TelemetrySettings::from_environment(|name| std::env::var(name).ok(), cli.verbose, log);
    settings.log_colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    settings
}

async fn command(cli: &Cli, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    if let Command::Generate(args) = &cli.command {
        return generate::run(args, terminal).await;
    }
    if let Command::Check(check::CheckArgs { explain: Some(code), .. }) = &cli.command {
        return check::explain_code(code);
    }
    if let Command::Cluster(args) = &cli.command {
        return Box::pin(cluster::run(args, &cli.project, store_options(), terminal)).await;
    }
    let project = Project::find(&cli.project, store_options())?;
    match &cli.command {
        Command::Access(args) => access::run(&project, args, terminal),
        Command::Audit(args) => audit::run(&project, args, terminal).await,
        Command::Check(args) => check::run(&project, args, terminal).await,
        Command::Collect(args) => collect::run(&project, args, terminal).await,
        Command::Contracts(args) => contracts::run(&project, args, terminal).await,
        Command::Demo(args) => Box::pin(demo::run(project, args, terminal)).await,
        Command::Docs(args) => docs::run(&project, args, terminal).await,
        Command::Environments(args) => environments::run(&project, args, terminal).await,
        Command::Features(args) => features::run(&project, args, terminal).await,
        Command::Fmt(args) => fmt::run(&project, args, terminal),
        Command::Cluster(_) | Command::Generate(_) => Ok(()),
        Command::Identity(args) => Box::pin(identity::run(&project, args, terminal)).await,
        Command::Ingest(args) => Box::pin(ingest::run(&project, args, terminal)).await,
        Command::Lineage(args) => lineage::run(&project, args).await,
        Command::Plan(args) => Box::pin(plan::run(&project, args, terminal)).await,
        Command::Policy(args) => policy::run(&project, args, terminal).await,
        Command::Promote(args) => Box::pin(environments::promote(&project, args, terminal)).await,
        Command::Run(args) => run::run(&project, args, terminal).await,
        Command::Maintain(args) => maintain::run(&project, args, terminal).await,
        Command::Models(args) => model_versions::run(&project, args, terminal).await,
        Command::Quarantine(args) => quarantine::run(&project, args, terminal).await,
        Command::Score(args) => score::run(&project, args, terminal).await,
        Command::Sql(args) => sql::run(&project, args).await,
        Command::Serve(args) => serve::run(&project, args, terminal).await,
        Command::Status(args) => status::run(&project, args).await,
        Command::Test(args) => test::run(&project, args, terminal).await,
        Command::Train(args) => train::run(&project, args, terminal).await,
        Command::Up(args) => up::run(&project, args, terminal).await,
        Command::Verify(args) => verify::run(&project, args, terminal).await,
        Command::Why(args) => why::run(&project, args).await,
    }
}

/// Store settings as cloud tools name them: `AWS_…`, `AZURE_…`, `GOOGLE_…`, and where those of AWS keep their profiles.
fn store_options() -> StoreOptions {
    let mut options: StoreOptions = std::env::vars()
        .filter(|(name, value)| {
            !value.is_empty() && ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|prefix| name.starts_with(prefix))
        })
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect();
    let folder = std::env::home_dir().map(|home| home.join(".aws"));
    for (name, file) in [("aws_shared_credentials_file", "credentials"), ("aws_config_file", "config")] {
        let path = folder.as_ref().map(|folder| folder.join(file));
        if let Some(path) = path.as_ref().and_then(|path| path.to_str()).filter(|_| options.get(name).is_none()) {
            options.insert(name, path);
        }
    }
    options
}

fn fail(error: &CliError, terminal: &Terminal) -> ExitCode {
    let text = error.to_string();
    // Mistakes in files come with their own headings.
    let line = if text.starts_with("error[") { text } else { format!("error: {text}") };
    terminal.problem(&line);
    ExitCode::from(error.kind().exit_code())
}
