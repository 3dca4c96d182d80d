use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use holdfast_engine::{LakeReader, Published, Selection, plan_read_only};
use holdfast_lake::open_store;
use holdfast_synth::GenerateOptions;
use serde::Serialize;

use super::feeds::Feeds;
use super::generate::generate_sources;
use super::ingest::{Manner, Told, ingest_sources, run_options};
use super::serve::ServeArgs;
use super::unify::resolve_identity;
use super::{grouped, print, print_json};
use crate::error::CliError;
use crate::models::thresholds::Thresholds;
use crate::progress::Terminal;
use crate::project::Project;

/// The whole path once: generate sources, ingest them, resolve customers, run the stages, serve the scores
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// The folder for sources and lake; a second demo on it picks up where it was
    #[arg(long, value_name = "DIR", default_value = "holdfast-demo")]
    dir: PathBuf,
    /// How many customers
    #[arg(long, default_value_t = 10_000)]
    customers: u64,
    /// How many days of history
    #[arg(long, default_value_t = 365)]
    days: u32,
    /// The same seed gives the same shop
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Stop after the run
    #[arg(long)]
    no_serve: bool,
    /// Print a summary as JSON: rows by table, seconds by step, peak memory
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Serialize)]
struct DemoReport {
    customers: u64,
    run: u64,
    seconds: Vec<(&'static str, f64)>,
    seconds_total: f64,
    /// Absent where the system does not tell.
    peak_memory_mb: Option<u64>,
    tables: Vec<(String, Option<u64>)>,
}

/// The valued customers most at risk, with reasons.
const MOST_AT_RISK: &str = "select customer_id, churn_probability, reason_1, reason_2, reason_3 \
    from risk.churn_score where is_valued and lifecycle_stage <> 'churned' \
    order by churn_probability desc, customer_id limit 10";

pub(crate) async fn run(project: Project, args: &DemoArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let started = Instant::now();
    let mut steps = Steps::default();
    std::fs::create_dir_all(&args.dir).map_err(|source| CliError::File {
        what: "cannot create",
        path: args.dir.clone(),
        source,
    })?;
    let folder = std::path::absolute(&args.dir).map_err(|source| CliError::File {
        what: "cannot resolve",
        path: args.dir.clone(),
        source,
    })?;
    let project = project.with_lake_in(&folder);
    let stages = project.stages()?;

    let options = GenerateOptions {
        out: folder.join("sources"),
        customers: args.customers,
        days: args.days,
        seed: args.seed,
        end: GenerateOptions::default_end(),
        dirty_share: GenerateOptions::DEFAULT_DIRTY_SHARE,
        threads: std::thread::available_parallelism().map_or(2, usize::from),
    };
    // Everything that is generated is known at its end: the demo looks at the shop from there.
    let as_of = options.end;
    let sources_folder = options.out.display().to_string();
    generate_sources(options, terminal).await?;
    steps.done("generate");

    let lake = project.create_lake().await?;
    let from = open_store(&sources_folder, &folder, project.options())?;
    let manner = Manner { told: Told::All, folders_may_come: false, feeds_are_followed: false, abort_after: None };
    ingest_sources(&project, &lake, &project.sources()?, (Some(&from), &Feeds::none()), manner, terminal).await?;
    steps.done("ingest");
    resolve_identity(&project, &lake, &project.tokens(&lake).await?, terminal).await?;
    steps.done("resolve");
    Thresholds::bring(&project, &lake, terminal.as_ref()).await?;
    let runner = project.runner(lake.clone(), stages, project.session_settings(&lake).await?).await?;
    let report = runner.run(&run_options(&project, Some(as_of), Selection::All, true), terminal.as_ref()).await?;
    super::run::summarise(&report, terminal);
    super::run::judge(&report)?;
    steps.done("run");

    let published = LakeReader::open(lake, project.reader_settings()).await?.current();
    if args.json {
        print_json(&DemoReport {
            customers: args.customers,
            run: published.sequence(),
            seconds: steps.seconds.clone(),
            seconds_total: started.elapsed().as_secs_f64(),
            peak_memory_mb: peak_memory_mb(),
            tables: published.tables().iter().map(|table| (table.name.to_string(), table.rows)).collect(),
        })?;
    } else {
        print(&summary(&published, &steps, started, args).await?)?;
    }
    if args.no_serve { Ok(()) } else { super::serve::run(&project, &args.serve, terminal).await }
}

#[derive(Debug)]
struct Steps {
    last: Instant,
    seconds: Vec<(&'static str, f64)>,
}

impl Default for Steps {
    fn default() -> Self {
        Self { last: Instant::now(), seconds: Vec::new() }
    }
}

impl Steps {
    fn done(&mut self, step: &'static str) {
        self.seconds.push((step, self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }
}

async fn summary(published: &Published, steps: &Steps, started: Instant, args: &DemoArgs) -> Result<String, CliError> {
    let mut text =
        format!("\nWhat is in the lake now (run {}, as of {}):\n\n", published.sequence(), published.as_of());
    for table in published.tables() {
        let rows = table.rows.map_or_else(|| "?".to_owned(), grouped);
        text.push_str(&format!("  {:<34} {rows:>12} rows\n", table.name.to_string()));
    }
    let failed = |source| {
        CliError::Engine(holdfast_engine::EngineError::Execution {
            what: "the demo's query".to_owned(),
            source: Box::new(source),
        })
    };
    let session = published.session()?;
    let plan = plan_read_only(&session, MOST_AT_RISK).await?;
    let frame = session.execute_logical_plan(plan).await.map_err(failed)?;
    let rows = frame.collect().await.map_err(failed)?;
    let table = arrow::util::pretty::pretty_format_batches(&rows).map_err(|error| failed(error.into()))?;
    text.push_str(&format!("\nThe ten valued customers most at risk, and why:\n\n{table}\n\n"));

    let seconds: Vec<String> = steps.seconds.iter().map(|(step, seconds)| format!("{step} {seconds:.1}s")).collect();
    let memory = peak_memory_mb().map_or_else(String::new, |mb| format!(", peak memory {mb} MiB"));
    text.push_str(&format!("{} ({:.1}s in all{memory})\n\n", seconds.join(", "), started.elapsed().as_secs_f64()));

    let dir = args.dir.display();
    let address = &args.serve.listen;
    let lake = args.dir.join("lake");
    let lake = lake.display();
    text.push_str(&format!(
        r#"Try:

  holdfast sql --lake {lake} "select lifecycle_stage, count(*) as customers from profile.lifecycle group by lifecycle_stage"
  holdfast sql --lake {lake} "select * from quarantine.orders limit 5"
  holdfast demo --dir {dir}          # again: nothing changed, so nothing is committed
  python -c "import deltalake; print(deltalake.DeltaTable('{lake}/risk/churn_score').to_pandas().head())"
  python -c "import pyarrow.flight as f; c = f.connect('grpc://{address}'); d = f.FlightDescriptor.for_path('risk', 'churn_score'); print(c.do_get(c.get_flight_info(d).endpoints[0].ticket).read_pandas().head())"

"#
    ));
    Ok(text)
}

/// The most memory this process has had at once, where the system tells.
pub(crate) fn peak_memory_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}
