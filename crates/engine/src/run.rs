use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use chrono::{DateTime, NaiveDate, Utc};
use datafusion::catalog::TableProvider;
use datafusion::common::cast::{as_boolean_array, as_int64_array};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::DataFrame;
use futures::{StreamExt, TryStreamExt};
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, Manifest, ManifestEntry, Position, StagedFile, Table, TableSpec,
};
use holdfast_types::{CUSTOMER_BUCKET, ErrorKind, Progress, Promise, TableName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::Instrument;

use crate::Result;
use crate::contract::{KEY_UNIQUE, quoted};
use crate::contract_change;
use crate::diagnostic::Diagnostics;
use crate::directive::{Expectation, Severity};
use crate::error::EngineError;
use crate::expectation::{self, ExpectationResult, quarantine_schema};
use crate::output::{Staged, Target, stage_rows};
use crate::project::{CheckedStage, Project, Selection};
use crate::session::{SessionSettings, plan_as_of, session_with};
use crate::stage::Stage;

/// Changes whenever the engine would make other rows of the same query, so that every stage is refreshed once.
const ENGINE_VERSION: &str = "1";

/// The key of a stage's note in its commits.
pub(crate) const STAGE_NOTE: &str = "holdfast.stage";

/// How many commits back a stage's own note may be: others write to the table only for maintenance.
pub(crate) const NOTE_COMMITS_MAX: usize = 20;

/// How many sorted runs of a frugal stage are merged at once.
const FRUGAL_MERGE_FAN_IN: usize = 3;

/// What a run is about.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The run's name, unique.
    pub run_id: String,
    /// What `now()` is in every stage.
    pub as_of: DateTime<Utc>,
    /// Which stages.
    pub selection: Selection,
    /// Refresh stages even when nothing changed.
    pub refresh: bool,
    /// Publish the result to readers.
    pub publish: bool,
    /// How many stages are built at once.
    pub parallel_stages: usize,
}

/// Brings the tables of stages up to date.
#[derive(Debug)]
pub struct Runner {
    lake: Lake,
    project: Project,
    settings: SessionSettings,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// The run's name.
    pub run_id: String,
    /// What `now()` was.
    pub as_of: DateTime<Utc>,
    /// The run that readers see now, when this one published.
    pub published: Option<u64>,
    /// The stages, inputs first.
    pub stages: Vec<StageReport>,
    /// From start to end.
    pub seconds: f64,
}

impl RunReport {
    /// How many stages ended as `outcome`.
    pub fn count(&self, outcome: fn(&StageOutcome) -> bool) -> usize {
        self.stages.iter().filter(|stage| outcome(&stage.outcome)).count()
    }

    /// Whether every selected stage is up to date now.
    pub fn succeeded(&self) -> bool {
        self.stages.iter().all(|stage| matches!(stage.outcome, StageOutcome::Built { .. } | StageOutcome::Fresh { .. }))
    }
}

/// What a run did to one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageReport {
    /// Which stage.
    pub stage: TableName,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: StageOutcome,
    /// How its rows did.
    pub expectations: Vec<ExpectationResult>,
    /// How long it took.
    pub seconds: f64,
}

/// How a stage ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum StageOutcome {
    /// A new version was made.
    Built {
        /// Which.
        version: u64,
        /// Its rows.
        rows: u64,
        /// Rows that went to quarantine instead.
        quarantined_rows: u64,
    },
    /// Inputs, query and (where it matters) day are those of the version that is there.
    Fresh {
        /// Which.
        version: u64,
    },
    /// It failed; the table is as it was.
    Failed {
        /// Why.
        error: String,
        /// What to do about it.
        kind: ErrorKind,
    },
    /// A stage it reads from failed.
    Blocked {
        /// Which.
        by: TableName,
    },
}

/// What a version of a stage's table was made from. Kept in the commit that made it, so that progress lives beside the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StageNote {
    fingerprint: String,
    inputs: BTreeMap<TableName, Option<u64>>,
    /// The day of `now()`, for stages that depend on it.
    day: Option<NaiveDate>,
}

struct Built {
    outcome: StageOutcome,
    expectations: Vec<ExpectationResult>,
    /// The tables it made new versions of: the stage's, and its quarantine.
    tables: Vec<Table>,
    /// What it wrote.
    bytes: u64,
}

impl Runner {
    /// A runner for the stages of `project`.
    pub fn new(lake: Lake, project: Project, settings: SessionSettings) -> Self {
        Self { lake, project, settings }
    }

    /// The stages.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// Runs the selected stages, each when its inputs are up to date. A failed stage blocks those that read it and no others; readers see nothing of a
    /// run with a failure. May be repeated: what is up to date already is left alone.
    ///
    /// # Errors
    /// Mistakes in stage files, before anything runs. What happens to a single stage is in the report.
    pub async fn run(&self, options: &RunOptions, progress: &dyn Progress) -> Result<RunReport> {
        let started = Instant::now();
        let span = tracing::info_span!("run", run_id = %options.run_id, as_of = %options.as_of);
        async {
            let checked = self.project.check(&self.lake, &self.settings, options.as_of).await?;
            let selected = self.project.select(&options.selection)?;
            let mut pinned = pin_all(&self.lake).await?;
            for told in changed_contracts(&checked, &selected, &pinned)? {
                progress.note(&told);
            }
            let runtime = self.settings.runtime(&self.lake)?;

            let stages = self.run_stages(options, checked, &selected, &mut pinned, &runtime, progress).await?;
            let mut report = RunReport {
                run_id: options.run_id.clone(),
                as_of: options.as_of,
                published: None,
                stages,
                seconds: 0.0,
            };
            if options.publish && report.succeeded() {
                report.published = self.publish(options, &pinned).await?;
            }
            report.seconds = started.elapsed().as_secs_f64();
            let outcome = if report.succeeded() { "ok" } else { "failed" };
            tracing::info!(outcome, histogram.holdfast_run_seconds = report.seconds, "run ended");
            Ok(report)
        }
        .instrument(span)
        .await
    }

    async fn run_stages(
        &self,
        options: &RunOptions,
        checked: Vec<CheckedStage>,
        selected: &BTreeSet<TableName>,
        pinned: &mut BTreeMap<TableName, Table>,
        runtime: &Arc<RuntimeEnv>,
        progress: &dyn Progress,
    ) -> Result<Vec<StageReport>> {
        let order: Vec<TableName> = checked.iter().map(|stage| stage.stage.name.clone()).collect();
        let mut queue = Queue::new(checked.into_iter().filter(|stage| selected.contains(&stage.stage.name)));
        let mut reports: BTreeMap<TableName, StageReport> = BTreeMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            for (stage, by) in queue.blocked() {
                progress.problem(&format!("Blocked {stage} by {by}"));
                let outcome = StageOutcome::Blocked { by };
                reports.insert(stage.clone(), StageReport { stage, outcome, expectations: Vec::new(), seconds: 0.0 });
            }
            while let Some((stage, allowance)) = queue.next(options.parallel_stages) {
                let work = self.work(stage, allowance, options, pinned, runtime);
                let name = work.name().clone();
                let span = tracing::info_span!("stage", stage = %name);
                tasks.spawn(
                    async move {
                        let started = Instant::now();
                        let result = work.build().await;
                        (name, result, started.elapsed().as_secs_f64())
                    }
                    .instrument(span),
                );
            }
            let Some(done) = tasks.join_next().await else { break };
            let (name, result, seconds) = done.map_err(|error| {
                EngineError::execution("a stage")(datafusion::error::DataFusionError::External(Box::new(error)))
            })?;
            let built = match result {
                Ok(built) => built,
                Err(error) => {
                    if error.is_out_of_memory()
                        && let Some(allowance) = queue.again_with_more(&name)
                    {
                        let how = allowance.as_str();
                        tracing::info!(stage = %name, seconds, how, "stage did not fit into memory");
                        progress.note(&format!("  Waiting {name}  did not fit into memory, is built again {how}"));
                        continue;
                    }
                    Built {
                        outcome: StageOutcome::Failed { error: error.to_string(), kind: error.kind() },
                        expectations: Vec::new(),
                        tables: Vec::new(),
                        bytes: 0,
                    }
                }
            };
            record(&name, &built, seconds);
            let failed = matches!(built.outcome, StageOutcome::Failed { .. });
            queue.done(&name, failed);
            pinned.extend(built.tables.into_iter().map(|table| (table.name().clone(), table)));
            let told = line(&name, &built.outcome, seconds);
            if failed {
                progress.problem(&told);
            } else {
                progress.note(&told);
            }
            for failed in
                built.expectations.iter().filter(|result| result.failed_rows > 0 && result.severity == Severity::Warn)
            {
                progress.note(&format!(
                    "   Warned {name} [{}] {} rows: {}",
                    failed.name, failed.failed_rows, failed.condition
                ));
            }
            reports.insert(
                name.clone(),
                StageReport { stage: name, outcome: built.outcome, expectations: built.expectations, seconds },
            );
            progress.advance("stages", reports.len() as u64, Some(selected.len() as u64), "stages");
        }
        Ok(order.into_iter().filter_map(|name| reports.remove(&name)).collect())
    }

    fn work(
        &self,
        checked: CheckedStage,
        allowance: Allowance,
        options: &RunOptions,
        pinned: &BTreeMap<TableName, Table>,
        runtime: &Arc<RuntimeEnv>,
    ) -> StageWork {
        let stage = &checked.stage;
        let is_frugal = allowance == Allowance::Frugal;
        // A merge of sorted runs takes what memory there is, and leaves none for the plan's other merges. A frugal stage runs alone,
        // so that this is for it and nobody else.
        runtime.disk_manager.set_max_spill_merge_fan_in(if is_frugal { FRUGAL_MERGE_FAN_IN } else { 0 });
        StageWork {
            lake: self.lake.clone(),
            settings: SessionSettings { is_frugal, ..self.settings.clone() },
            runtime: Arc::clone(runtime),
            inputs: stage.inputs.keys().map(|input| (input.clone(), pinned.get(input).cloned())).collect(),
            declared: self.input_schemas(stage),
            current: pinned.get(&stage.name).cloned(),
            quarantine: quarantine_name(&stage.name).and_then(|name| pinned.get(&name).cloned()),
            as_of: options.as_of,
            refresh: options.refresh,
            checked,
        }
    }

    /// The columns of inputs that may not be in the lake yet.
    fn input_schemas(&self, stage: &Stage) -> BTreeMap<TableName, arrow::datatypes::SchemaRef> {
        stage
            .inputs
            .keys()
            .filter_map(|input| Some((input.clone(), Arc::clone(self.project.declared().get(input)?))))
            .collect()
    }

    /// Publishes the versions that are pinned now, unless readers see exactly these already.
    async fn publish(&self, options: &RunOptions, pinned: &BTreeMap<TableName, Table>) -> Result<Option<u64>> {
        let tables: Vec<ManifestEntry> = pinned
            .values()
            .map(|table| ManifestEntry {
                name: table.name().clone(),
                version: table.version(),
                rows: table.row_count(),
            })
            .collect();
        let latest = self.lake.latest_manifest().await?;
        if latest.as_ref().is_some_and(|manifest| manifest.tables == tables) {
            return Ok(None);
        }
        let manifest = Manifest {
            sequence: latest.map_or(0, |manifest| manifest.sequence) + 1,
            run_id: options.run_id.clone(),
            as_of: options.as_of,
            published_at: self.lake.clock().now(),
            tables,
        };
        Ok(Some(self.lake.publish(manifest).await?.sequence))
    }
}

/// What will become of tables that were made under another contract, a line each.
fn changed_contracts(
    checked: &[CheckedStage],
    selected: &BTreeSet<TableName>,
    pinned: &BTreeMap<TableName, Table>,
) -> Result<Vec<String>> {
    let mut told = Vec::new();
    let mut mistakes = Vec::new();
    for stage in checked.iter().map(|checked| &checked.stage).filter(|stage| selected.contains(&stage.name)) {
        let (Some(contract), Some(table)) = (&stage.contract, pinned.get(&stage.name)) else { continue };
        match contract_change::change(contract, table) {
            Ok(change) => told.extend(change.map(|change| change.told(&stage.name.to_string()))),
            Err(mistake) => mistakes.push(*mistake),
        }
    }
    if mistakes.is_empty() { Ok(told) } else { Err(EngineError::Mistakes(Diagnostics(mistakes))) }
}

/// The newest version of every table of the lake, read side by side.
pub(crate) async fn pin_all(lake: &Lake) -> Result<BTreeMap<TableName, Table>> {
    let names = lake.tables().await?;
    let tables: Vec<Option<Table>> = futures::stream::iter(names)
        .map(|name| {
            let lake = lake.clone();
            async move { lake.table(&name).await }
        })
        .buffer_unordered(8)
        .try_collect()
        .await?;
    Ok(tables.into_iter().flatten().map(|table| (table.name().clone(), table)).collect())
}

fn quarantine_name(stage: &TableName) -> Option<TableName> {
    TableName::new("quarantine", &format!("{}_{}", stage.schema(), stage.table())).ok()
}

fn line(name: &TableName, outcome: &StageOutcome, seconds: f64) -> String {
    match outcome {
        StageOutcome::Built { version, rows, quarantined_rows: 0 } => {
            format!("    Built {name}  {rows} rows  v{version}  {seconds:.1}s")
        }
        StageOutcome::Built { version, rows, quarantined_rows } => {
            format!("    Built {name}  {rows} rows, {quarantined_rows} quarantined  v{version}  {seconds:.1}s")
        }
        StageOutcome::Fresh { version } => format!("    Fresh {name}  v{version}"),
        StageOutcome::Failed { error, .. } => format!("   Failed {name}  {error}"),
        StageOutcome::Blocked { by } => format!("  Blocked {name}  by {by}"),
    }
}

fn record(name: &TableName, built: &Built, seconds: f64) {
    match &built.outcome {
        StageOutcome::Built { rows, quarantined_rows, .. } => {
            tracing::info!(
                stage = %name,
                monotonic_counter.holdfast_stage_rows = *rows,
                monotonic_counter.holdfast_stage_bytes = built.bytes,
                monotonic_counter.holdfast_stage_quarantined_rows = *quarantined_rows,
                histogram.holdfast_stage_seconds = seconds,
                "stage built"
            );
        }
        StageOutcome::Fresh { .. } => tracing::debug!(stage = %name, "stage fresh"),
        StageOutcome::Failed { kind, .. } => {
            tracing::info!(stage = %name, kind = kind.as_str(), monotonic_counter.holdfast_errors = 1_u64, "stage failed");
        }
        StageOutcome::Blocked { by } => tracing::warn!(stage = %name, %by, "stage blocked"),
    }
}

/// How much of the machine a stage gets. One that does not fit beside others is built again with the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allowance {
    /// It shares memory with the stages beside it.
    Shared,
    /// No other stage runs.
    Alone,
    /// No other stage runs, and its plan is one whose parts can all go to disk.
    Frugal,
}

impl Allowance {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "beside others",
            Self::Alone => "alone",
            Self::Frugal => "alone, with all of it on disk that can be",
        }
    }

    fn more(self) -> Option<Self> {
        match self {
            Self::Shared => Some(Self::Alone),
            Self::Alone => Some(Self::Frugal),
            Self::Frugal => None,
        }
    }
}

/// Which stages of a run wait, are being built, or cannot be.
struct Queue {
    waiting: Vec<(CheckedStage, Allowance)>,
    running: BTreeMap<TableName, (CheckedStage, Allowance)>,
    broken: BTreeSet<TableName>,
}

impl Queue {
    fn new(stages: impl Iterator<Item = CheckedStage>) -> Self {
        let waiting = stages.map(|stage| (stage, Allowance::Shared)).collect();
        Self { waiting, running: BTreeMap::new(), broken: BTreeSet::new() }
    }

    /// Takes out the stages that read, directly or not, from one that failed; with that one.
    fn blocked(&mut self) -> Vec<(TableName, TableName)> {
        let mut blocked = Vec::new();
        // Inputs come first, so that one pass finds all.
        for (stage, allowance) in std::mem::take(&mut self.waiting) {
            match stage.stage.inputs.keys().find(|input| self.broken.contains(*input)) {
                Some(by) => {
                    blocked.push((stage.stage.name.clone(), by.clone()));
                    self.broken.insert(stage.stage.name);
                }
                None => self.waiting.push((stage, allowance)),
            }
        }
        blocked
    }

    /// A stage to begin with now: its inputs are neither waiting nor running.
    fn next(&mut self, parallel: usize) -> Option<(CheckedStage, Allowance)> {
        let is_alone = self.running.values().any(|(_, allowance)| *allowance != Allowance::Shared);
        if is_alone || self.running.len() >= parallel.max(1) {
            return None;
        }
        let pending = |name: &TableName| {
            self.running.contains_key(name) || self.waiting.iter().any(|(stage, _)| stage.stage.name == *name)
        };
        let ready = self.waiting.iter().position(|(stage, allowance)| {
            (*allowance == Allowance::Shared || self.running.is_empty()) && !stage.stage.inputs.keys().any(pending)
        })?;
        let (stage, allowance) = self.waiting.remove(ready);
        self.running.insert(stage.stage.name.clone(), (stage.clone(), allowance));
        Some((stage, allowance))
    }

    /// Lets a running stage wait for more of the machine. `None` when it had all there is.
    fn again_with_more(&mut self, name: &TableName) -> Option<Allowance> {
        let more = self.running.get(name)?.1.more()?;
        let (stage, _) = self.running.remove(name)?;
        // Last, so that others are not held up.
        self.waiting.push((stage, more));
        Some(more)
    }

    fn done(&mut self, name: &TableName, failed: bool) {
        self.running.remove(name);
        if failed {
            self.broken.insert(name.clone());
        }
    }
}

/// All that building one stage needs, so that it can run on its own.
struct StageWork {
    lake: Lake,
    settings: SessionSettings,
    runtime: Arc<RuntimeEnv>,
    inputs: BTreeMap<TableName, Option<Table>>,
    declared: BTreeMap<TableName, arrow::datatypes::SchemaRef>,
    current: Option<Table>,
    quarantine: Option<Table>,
    checked: CheckedStage,
    as_of: DateTime<Utc>,
    refresh: bool,
}

impl StageWork {
    fn name(&self) -> &TableName {
        &self.checked.stage.name
    }

    async fn note(&self) -> Result<StageNote> {
        // Merging files makes versions that hold the same rows: they are no news.
        let mut inputs = BTreeMap::new();
        for (name, table) in &self.inputs {
            let version = match table {
                Some(table) => Some(table.data_version().await?),
                None => None,
            };
            inputs.insert(name.clone(), version);
        }
        let stage = &self.checked.stage;
        let salt = format!("{ENGINE_VERSION}/{}/{}", self.lake.settings().customer_buckets, self.settings.salt);
        Ok(StageNote {
            fingerprint: stage.fingerprint(&salt),
            inputs,
            day: stage.depends_on_time.then(|| self.as_of.date_naive()),
        })
    }

    async fn build(self) -> Result<Built> {
        let note = self.note().await?;
        if !self.refresh
            && let Some(current) = &self.current
            && let Some(stored) = current.commit_note(STAGE_NOTE, NOTE_COMMITS_MAX).await?
            && serde_json::from_value::<StageNote>(stored).is_ok_and(|stored| stored == note)
        {
            let outcome = StageOutcome::Fresh { version: current.version() };
            return Ok(Built { outcome, expectations: Vec::new(), tables: Vec::new(), bytes: 0 });
        }

        let table = match &self.current {
            Some(table) => table.clone(),
            None => self.lake.ensure_table(&self.spec()).await?,
        };
        self.check_partitioning(&table)?;
        let (staged, expectations) = self.stage(&table).await?;
        if let Err(error) = self.judge(&staged, &expectations) {
            self.lake.discard(staged.files.into_iter().chain(staged.refused).collect(), &table).await;
            return Err(error);
        }
        self.commit(table, staged, expectations, &note).await
    }

    fn spec(&self) -> TableSpec {
        let customers = self.checked.schema.field_with_name(CUSTOMER_BUCKET).is_ok();
        TableSpec {
            name: self.name().clone(),
            schema: Arc::clone(&self.checked.schema),
            partition_by: if customers { vec![CUSTOMER_BUCKET.to_owned()] } else { Vec::new() },
            comment: self.checked.stage.directives.description.clone(),
        }
    }

    fn check_partitioning(&self, table: &Table) -> Result<()> {
        if table.partition_columns() == self.spec().partition_by {
            return Ok(());
        }
        Err(EngineError::Query {
            message: format!(
                "{} gained or lost the column customer_id, which decides how the table is stored: give the stage another name",
                self.name()
            ),
        })
    }

    /// Runs the query and leaves its rows in staged files, with what the expectations say about them.
    async fn stage(&self, table: &Table) -> Result<(Staged, Vec<ExpectationResult>)> {
        let stage = &self.checked.stage;
        let tables = self.inputs.iter().filter_map(|(name, table)| {
            let provider: Arc<dyn TableProvider> = match (table, self.declared.get(name)) {
                (Some(table), _) => table.provider(),
                (None, Some(schema)) => Arc::new(EmptyTable::new(Arc::clone(schema))),
                (None, None) => return None,
            };
            Some((name.clone(), provider))
        });
        let buckets = self.lake.settings().customer_buckets;
        let context = session_with(&self.settings, &self.runtime, buckets, tables)?;
        let failed = || EngineError::execution(format!("stage {}", stage.name));
        let (state, plan) = plan_as_of(&context, stage.statement.clone(), self.as_of).await.map_err(failed())?;
        let schema = Arc::clone(&self.checked.schema);
        let (rules, whole) = expectation::split(&stage.directives.expectations, &schema, &state)
            .map_err(|message| EngineError::Query { message: format!("{}: {message}", stage.name) })?;
        let has_quarantine =
            stage.directives.expectations.iter().any(|expectation| expectation.severity == Severity::Quarantine);
        let quarantine = match (&self.quarantine, has_quarantine) {
            (Some(table), true) => Some(table.clone()),
            (None, true) => match quarantine_name(&stage.name) {
                Some(name) => Some(self.lake.ensure_table(&self.quarantine_spec(name)).await?),
                None => None,
            },
            (_, false) => None,
        };
        let is_proven = stage.contract.as_ref().is_some_and(|contract| expectation::is_unique_by(&plan, &contract.key));
        let target = Target { table: table.clone(), schema: Arc::clone(&schema), quarantine, rules: rules.clone() };
        let staged = stage_rows(&state, plan, buckets, &stage.name, target).await?;

        let mut results = rules.results(&staged.failed);
        if let Some(contract) = &stage.contract {
            let duplicates =
                if is_proven { 0 } else { self.count_duplicates(&contract.key, table, &staged, &schema).await? };
            results.push(ExpectationResult {
                name: KEY_UNIQUE.to_owned(),
                severity: Severity::Fail,
                condition: format!("no two rows have the same {}", contract.key.join(", ")),
                failed_rows: duplicates,
            });
        }
        if !whole.is_empty() {
            results.extend(self.judge_whole(&whole, table, &staged, &schema).await?);
        }
        Ok((staged, results))
    }

    fn quarantine_spec(&self, name: TableName) -> TableSpec {
        TableSpec {
            comment: format!("Rows that {} did not publish, with the expectations they did not meet", self.name()),
            name,
            schema: quarantine_schema(&self.checked.schema),
            partition_by: Vec::new(),
        }
    }

    /// Asks conditions over the whole table of the staged files, before they are part of it: all of them in one pass.
    async fn judge_whole(
        &self,
        expectations: &[Expectation],
        table: &Table,
        staged: &Staged,
        schema: &arrow::datatypes::SchemaRef,
    ) -> Result<Vec<ExpectationResult>> {
        let failed = || EngineError::execution(format!("the expectations of {}", self.name()));
        let conditions: Vec<String> = expectations
            .iter()
            .enumerate()
            .map(|(index, expectation)| format!("({}) as met_{index}", expectation.condition))
            .collect();
        let sql = format!("select {} from {}", conditions.join(", "), self.name());
        let batches = self.ask(&sql, table, staged, schema).await.map_err(failed())?;
        let mut results = Vec::with_capacity(expectations.len());
        for (index, expectation) in expectations.iter().enumerate() {
            let mut met = true;
            for batch in &batches {
                let values = as_boolean_array(batch.column(index)).map_err(failed())?;
                met &= values.iter().all(|value| value.unwrap_or(true));
            }
            results.push(ExpectationResult {
                name: expectation.name.clone(),
                severity: expectation.severity,
                condition: expectation.condition.clone(),
                failed_rows: u64::from(!met),
            });
        }
        Ok(results)
    }

    /// The rows of the staged files whose key another row has, too: reads the columns of the key, and nothing else.
    async fn count_duplicates(
        &self,
        key: &[String],
        table: &Table,
        staged: &Staged,
        schema: &arrow::datatypes::SchemaRef,
    ) -> Result<u64> {
        let failed = || EngineError::execution(format!("expectation {KEY_UNIQUE} of {}", self.name()));
        let columns = key.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "select count(*) as keys from (select {columns} from {} group by {columns}) as distinct_keys",
            self.name()
        );
        let mut keys = 0;
        for batch in self.ask(&sql, table, staged, schema).await.map_err(failed())? {
            let values = as_int64_array(batch.column(0)).map_err(failed())?;
            keys += values.iter().flatten().sum::<i64>();
        }
        Ok(staged.rows.saturating_sub(u64::try_from(keys).unwrap_or(0)))
    }

    /// The answer of the staged files alone.
    async fn ask(
        &self,
        sql: &str,
        table: &Table,
        staged: &Staged,
        schema: &arrow::datatypes::SchemaRef,
    ) -> Result<Vec<RecordBatch>, DataFusionError> {
        let provider = table.staged_provider(Arc::clone(schema), &staged.files);
        let buckets = self.lake.settings().customer_buckets;
        let context = session_with(&self.settings, &self.runtime, buckets, [(self.name().clone(), provider)])
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        let mut state = context.state();
        state.execution_props_mut().query_execution_start_time = Some(self.as_of);
        let plan = state.create_logical_plan(sql).await?;
        DataFrame::new(state, plan).collect().await
    }

    fn judge(&self, staged: &Staged, results: &[ExpectationResult]) -> Result<()> {
        match results.iter().find(|result| result.severity == Severity::Fail && result.failed_rows > 0) {
            Some(result) => Err(EngineError::Expectation {
                table: self.name().clone(),
                expectation: result.name.clone(),
                condition: result.condition.clone(),
                rows: format!("{} of {} rows", result.failed_rows, staged.rows + staged.refused_rows),
            }),
            None => Ok(()),
        }
    }

    async fn commit(
        &self,
        table: Table,
        staged: Staged,
        expectations: Vec<ExpectationResult>,
        note: &StageNote,
    ) -> Result<Built> {
        let failing = expectations.iter().any(|result| result.severity == Severity::Fail && result.failed_rows > 0);
        Promise::Stg2.check(!failing, || format!("{} was about to be committed", self.name()))?;

        let app_id = format!("stage/{}", self.name());
        let bytes = staged.files.iter().chain(&staged.refused).map(|file| file.bytes).sum();
        let mut tables = Vec::new();
        if let Some(name) = quarantine_name(self.name())
            && let Some(quarantine) = self.lake.table(&name).await?
        {
            if staged.refused.is_empty() && quarantine.row_count() == Some(0) {
                tables.push(quarantine);
            } else {
                tables.push(self.replace_quarantine(&quarantine, &app_id, staged.refused).await?);
            }
        }

        let spec = self.spec();
        let properties = self.checked.stage.contract.as_ref().map(contract_change::properties).unwrap_or_default();
        let reshaped = table.schema() != &spec.schema
            || table.comment().unwrap_or_default() != spec.comment
            || properties.iter().any(|(key, value)| table.property(key) != Some(value));
        let schema = spec.schema.as_ref().clone().with_metadata(properties);
        let version = table.position(&app_id).await?.unwrap_or(0) + 1;
        let note = serde_json::to_value(note).unwrap_or(Value::Null);
        let outcome = self
            .lake
            .commit(Change {
                table: &table,
                position: Position { app_id, version },
                fence: None,
                kind: ChangeKind::ReplaceAll,
                files: staged.files,
                schema: reshaped.then(|| Arc::new(schema)),
                comment: Some(spec.comment),
                metadata: [(STAGE_NOTE.to_owned(), note)].into_iter().collect(),
            })
            .await?;
        let CommitOutcome::Applied { version } = outcome else {
            return Err(EngineError::Concurrent { table: self.name().clone() });
        };
        Ok(Built {
            outcome: StageOutcome::Built { version, rows: staged.rows, quarantined_rows: staged.refused_rows },
            expectations,
            tables: {
                tables.push(self.lake.table_at(self.name(), version).await?);
                tables
            },
            bytes,
        })
    }

    async fn replace_quarantine(&self, quarantine: &Table, app_id: &str, refused: Vec<StagedFile>) -> Result<Table> {
        let name = quarantine.name();
        let version = quarantine.position(app_id).await?.unwrap_or(0) + 1;
        let outcome = self
            .lake
            .commit(Change {
                table: quarantine,
                position: Position { app_id: app_id.to_owned(), version },
                fence: None,
                kind: ChangeKind::ReplaceAll,
                files: refused,
                schema: Some(quarantine_schema(&self.checked.schema)),
                comment: None,
                metadata: Map::new(),
            })
            .await?;
        match outcome {
            CommitOutcome::Applied { version } => Ok(self.lake.table_at(name, version).await?),
            _ => Err(EngineError::Concurrent { table: name.clone() }),
        }
    }
}
