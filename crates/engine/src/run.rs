use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, Utc};
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::{StreamExt, TryStreamExt};
use holdfast_lake::{Lake, Manifest, ManifestEntry, Table};
use holdfast_types::{ErrorKind, Progress, TableName};
use serde::Serialize;
use tokio::sync::OnceCell;
use tracing::Instrument;

use crate::Result;
use crate::build::{Built, Inputs, StageNote, StageWork, quarantine_name};
use crate::contract_change;
use crate::diagnostic::Diagnostics;
use crate::directive::Severity;
use crate::error::EngineError;
use crate::executor::Place;
use crate::expectation::ExpectationResult;
use crate::features::{Keeper, Kept, OnDemandVersion, OnDemandView, Registered, Registry, ViewVersion, resolve};
use crate::orphans::orphans;
use crate::project::{CheckedStage, Project, Selection};
use crate::range;
use crate::row_functions::RowFunctions;
use crate::session::SessionSettings;

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
    /// Refresh stages in full, also those for which nothing changed.
    pub full: bool,
    /// Work out the rows of this range anew, and no others: for stages by time alone.
    pub range: Option<TimeRange>,
    /// Publish the result to readers.
    pub publish: bool,
    /// How many stages are built at once.
    pub parallel_stages: usize,
}

/// From a moment on until before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRange {
    /// The first moment in it.
    pub from: DateTime<Utc>,
    /// The first moment behind it.
    pub to: DateTime<Utc>,
}

/// Brings the tables of stages up to date.
#[derive(Debug)]
pub struct Runner {
    pub(crate) lake: Lake,
    pub(crate) project: Project,
    pub(crate) settings: SessionSettings,
    /// The stages without mistakes, once they were looked at: the project does not change.
    checked: OnceCell<Vec<CheckedStage>>,
    /// Of stages' tables, by their versions: up to which versions of inputs nothing concerned them.
    looked_at: Mutex<BTreeMap<TableName, (u64, Inputs)>>,
}

/// What a run begins with.
pub(crate) struct Prepared {
    pub(crate) checked: Vec<CheckedStage>,
    pub(crate) selected: BTreeSet<TableName>,
    /// The newest version of every table.
    pub(crate) pinned: BTreeMap<TableName, Table>,
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
    /// Tables of stages whose files are gone. They are kept as they are.
    pub orphans: Vec<TableName>,
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
    /// Where the rows of a full refresh were worked out, in a run that has an executor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

/// How a version of a stage's table was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Refresh {
    /// All of its rows were worked out.
    Full {
        /// Why.
        reason: String,
    },
    /// The rows of some keys were worked out; the others are as they were.
    Keys {
        /// Of how many.
        keys: u64,
        /// The rows among them that came or changed.
        rows_added: u64,
        /// The rows among them that went or changed.
        rows_removed: u64,
    },
    /// Rows were added for what came in an input.
    Append {
        /// Which.
        input: TableName,
        /// How many.
        rows_added: u64,
    },
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
        /// How.
        refresh: Refresh,
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

impl Runner {
    /// A runner for the stages of `project`.
    pub fn new(lake: Lake, project: Project, settings: SessionSettings) -> Self {
        Self { lake, project, settings, checked: OnceCell::new(), looked_at: Mutex::default() }
    }

    /// The same with other row functions: what subjects say has changed.
    #[must_use]
    pub fn with_row_functions(&self, row_functions: RowFunctions) -> Self {
        let settings = SessionSettings { row_functions, ..self.settings.clone() };
        Self::new(self.lake.clone(), self.project.clone(), settings)
    }

    /// The row functions that its stages may call.
    pub fn row_functions(&self) -> &RowFunctions {
        &self.settings.row_functions
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
            if let Some(mut report) = self.nothing_new(options).await? {
                report.seconds = started.elapsed().as_secs_f64();
                tracing::info!(outcome = "ok", histogram.holdfast_run_seconds = report.seconds, "run ended");
                report.stages.iter().for_each(|stage| progress.note(&line(&stage.stage, &stage.outcome, 0.0)));
                return Ok(report);
            }
            let Prepared { checked, selected, mut pinned } = self.prepare(options, progress).await?;
            let runtime = self.settings.runtime(&self.lake)?;

            let touched = touched(&checked, &selected);
            let stages = self.run_stages(options, checked, &selected, &mut pinned, &runtime, progress).await?;
            let mut report = RunReport {
                run_id: options.run_id.clone(),
                as_of: options.as_of,
                published: None,
                stages,
                orphans: orphans(&self.lake, &self.project, pinned.values()).await?,
                seconds: 0.0,
            };
            if report.succeeded() && selected.iter().any(|stage| self.makes_a_view(stage)) {
                self.register_services(progress).await?;
            }
            if options.publish && report.succeeded() {
                report.published = self.publish(options, &pinned, &touched).await?;
            }
            report.seconds = started.elapsed().as_secs_f64();
            let outcome = if report.succeeded() { "ok" } else { "failed" };
            tracing::info!(outcome, histogram.holdfast_run_seconds = report.seconds, "run ended");
            Ok(report)
        }
        .instrument(span)
        .await
    }

    /// Checks the stages and pins the tables.
    pub(crate) async fn prepare(&self, options: &RunOptions, progress: &dyn Progress) -> Result<Prepared> {
        let check = async || self.project.check(&self.lake, &self.settings, options.as_of).await;
        let checked = self.checked.get_or_try_init(check).await?.clone();
        let selected = self.project.select(&options.selection)?;
        if options.range.is_some() {
            range::check(&checked, &selected)?;
        }
        let pinned = pin_all(&self.lake).await?;
        self.check_inputs_are_built(&checked, &selected, &pinned)?;
        // An environment reads production's tables, of which production's newest run knows.
        if self.lake.environment_name().is_some()
            && let Some(below) = self.lake.production().latest_manifest().await?
        {
            self.remember(&below);
        }
        for told in changed_contracts(&checked, &selected, &pinned)? {
            progress.note(&told);
        }
        Ok(Prepared { checked, selected, pinned })
    }

    /// A stage over an input without rows would be built, and wrong.
    fn check_inputs_are_built(
        &self,
        checked: &[CheckedStage],
        selected: &BTreeSet<TableName>,
        pinned: &BTreeMap<TableName, Table>,
    ) -> Result<()> {
        for stage in checked.iter().map(|checked| &checked.stage).filter(|stage| selected.contains(&stage.name)) {
            // A table that was made and got no rows, as its stage failed, is at its first version.
            let is_built = |input: &TableName| pinned.get(input).is_some_and(|table| table.version() > 0);
            let left_out = |input: &&TableName| self.project.stage(input).is_some() && !selected.contains(*input);
            if let Some(input) = stage.inputs.keys().filter(left_out).find(|input| !is_built(input)) {
                return Err(EngineError::NotBuilt { stage: stage.name.clone(), input: input.clone() });
            }
        }
        Ok(())
    }

    /// Takes over what an earlier run found out, unless this process knows more.
    pub(crate) fn remember(&self, manifest: &Manifest) {
        let is_environment = self.lake.environment_name().is_some();
        let mut known = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in manifest.tables.iter().filter(|entry| !entry.looked_at.is_empty()) {
            // What a run of production says is about production's tables.
            if !is_environment || entry.is_of_production || !self.lake.owns(&entry.name) {
                known.entry(entry.name.clone()).or_insert_with(|| (entry.version, entry.looked_at.clone()));
            }
        }
    }

    fn makes_a_view(&self, stage: &TableName) -> bool {
        self.project.stage(stage).is_some_and(|stage| stage.directives.feature.is_some())
    }

    /// Up to which versions of its inputs nothing concerned this version of a table.
    fn looked_at(&self, table: &Table) -> Option<Inputs> {
        let known = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(table.name()).filter(|(version, _)| *version == table.version()).map(|(_, inputs)| inputs.clone())
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
        let schemas = self.schemas(&checked);
        let mut queue = Queue::new(checked.into_iter().filter(|stage| selected.contains(&stage.stage.name)));
        let mut reports: BTreeMap<TableName, StageReport> = BTreeMap::new();
        let keeper = Keeper {
            lake: self.lake.clone(),
            settings: self.settings.clone(),
            runtime: Arc::clone(runtime),
            // Everything that is read has arrived by now.
            known_at: self.lake.clock().now(),
        };
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            for (stage, by) in queue.blocked() {
                progress.problem(&format!("Blocked {stage} by {by}"));
                let outcome = StageOutcome::Blocked { by };
                reports.insert(
                    stage.clone(),
                    StageReport { stage, outcome, expectations: Vec::new(), seconds: 0.0, place: None },
                );
            }
            while let Some((stage, allowance)) = queue.next(options.parallel_stages) {
                let work = self.work(stage, allowance, options, &schemas, pinned, runtime);
                let name = work.name().clone();
                let span = tracing::info_span!("stage", stage = %name);
                let keeper = keeper.clone();
                tasks.spawn(
                    async move {
                        let started = Instant::now();
                        let result = Box::pin(built_and_kept(work, &keeper)).await;
                        (name, result, started.elapsed().as_secs_f64())
                    }
                    .instrument(span),
                );
            }
            let Some(done) = tasks.join_next().await else { break };
            let (name, result, seconds) = done.map_err(|error| {
                EngineError::execution("a stage")(datafusion::error::DataFusionError::External(Box::new(error)))
            })?;
            let (built, kept) = match result {
                Ok(built_and_kept) => built_and_kept,
                Err(error) => {
                    if error.is_out_of_memory()
                        && let Some(allowance) = queue.again_with_more(&name)
                    {
                        let how = allowance.as_str();
                        tracing::info!(stage = %name, seconds, how, "stage did not fit into memory");
                        progress.note(&format!("  Waiting {name}  did not fit into memory, is built again {how}"));
                        continue;
                    }
                    (Built::of_no_rows(StageOutcome::Failed { error: error.to_string(), kind: error.kind() }), None)
                }
            };
            record(&name, &built, seconds);
            if let (Some(inputs), StageOutcome::Fresh { version }) = (&built.looked_at, &built.outcome) {
                let mut known = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(name.clone(), (*version, inputs.clone()));
            }
            let failed = matches!(built.outcome, StageOutcome::Failed { .. });
            queue.done(&name, failed);
            pinned.extend(built.tables.into_iter().map(|table| (table.name().clone(), table)));
            let told = line(&name, &built.outcome, seconds);
            if failed {
                progress.problem(&told);
            } else {
                progress.note(&told);
            }
            if let Some(Place::Here { reason }) = &built.place {
                progress.note(&format!("     Here {name}  {reason}"));
            }
            if let Some(kept) = kept {
                if kept.rows > 0 || kept.is_new {
                    let (table, rows, version) = (kept.table.name(), kept.rows, kept.table.version());
                    let begins = if kept.is_new { ", its beginning" } else { "" };
                    progress.note(&format!("     Kept {table}  {rows} rows of history{begins}  v{version}"));
                }
                pinned.insert(kept.table.name().clone(), kept.table);
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
                StageReport {
                    stage: name,
                    outcome: built.outcome,
                    expectations: built.expectations,
                    seconds,
                    place: built.place,
                },
            );
            progress.advance("stages", reports.len() as u64, Some(selected.len() as u64), "stages");
        }
        Ok(order.into_iter().filter_map(|name| reports.remove(&name)).collect())
    }

    pub(crate) fn work(
        &self,
        checked: CheckedStage,
        allowance: Allowance,
        options: &RunOptions,
        schemas: &BTreeMap<TableName, SchemaRef>,
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
            declared: stage
                .inputs
                .keys()
                .filter_map(|input| Some((input.clone(), Arc::clone(schemas.get(input)?))))
                .collect(),
            current: pinned.get(&stage.name).cloned(),
            quarantine: quarantine_name(&stage.name).and_then(|name| pinned.get(&name).cloned()),
            as_of: options.as_of,
            full: options.full,
            range: options.range,
            looked_at: pinned.get(&stage.name).and_then(|table| self.looked_at(table)),
            checked,
        }
    }

    /// A stage over what its table was made from: the inputs at the versions of its note, and its `now()`. For those who look at what is there.
    ///
    /// # Errors
    /// When one of the versions is no longer there, and what the lake answers.
    pub(crate) async fn work_as_made(
        &self,
        checked: CheckedStage,
        table: Table,
        note: &StageNote,
        schemas: &BTreeMap<TableName, SchemaRef>,
        runtime: &Arc<RuntimeEnv>,
    ) -> Result<StageWork> {
        let mut pinned = BTreeMap::new();
        for input in checked.stage.inputs.keys() {
            if let Some(version) = note.inputs.get(input).copied().flatten() {
                pinned.insert(input.clone(), self.lake.table_at(input, version).await?);
            }
        }
        if let Some(name) = quarantine_name(&checked.stage.name)
            && let Some(quarantine) = self.lake.table(&name).await?
        {
            pinned.insert(name, quarantine);
        }
        pinned.insert(checked.stage.name.clone(), table);
        let options = RunOptions {
            run_id: String::new(),
            as_of: note.as_of.unwrap_or_else(|| self.lake.clock().now()),
            selection: Selection::All,
            full: false,
            range: None,
            publish: false,
            parallel_stages: 1,
        };
        Ok(self.work(checked, Allowance::Shared, &options, schemas, &pinned, runtime))
    }

    /// The columns of every table that stages may read, those that are not in the lake yet with them.
    pub(crate) fn schemas(&self, checked: &[CheckedStage]) -> BTreeMap<TableName, SchemaRef> {
        let made = checked.iter().map(|checked| (checked.stage.name.clone(), Arc::clone(&checked.schema)));
        let declared = self.project.declared().iter().map(|(name, schema)| (name.clone(), Arc::clone(schema)));
        declared.chain(made).collect()
    }

    /// Makes the pipeline's feature services what their file says of the views as they are. One that names what no run has made waits, and is told.
    async fn register_services(&self, progress: &dyn Progress) -> Result<()> {
        // An environment keeps no history of views, and no version of them is registered there.
        let has_some = !self.project.services().is_empty() || !self.project.on_demand().is_empty();
        if !has_some || self.lake.environment_name().is_some() {
            return Ok(());
        }
        let registry = Registry::new(&self.lake);
        let newest: BTreeMap<String, ViewVersion> =
            registry.views().await?.into_iter().map(|version| (version.view.name.clone(), version)).collect();
        for spec in self.project.on_demand() {
            match OnDemandView::of(spec, &newest) {
                Ok(view) => {
                    let Registered { version, is_new } = registry.register_on_demand(&view).await?;
                    if is_new {
                        let (name, features) = (&view.name, view.features.len());
                        let version = version.version;
                        progress.note(&format!(" Registered on-demand view {name}@v{version}, {features} features"));
                    }
                }
                Err(reason) => progress.note(&format!("  Waiting on-demand view {}: {reason}", spec.name)),
            }
        }
        let on_demand: BTreeMap<String, OnDemandVersion> =
            registry.on_demands().await?.into_iter().map(|version| (version.view.name.clone(), version)).collect();
        for spec in self.project.services() {
            match resolve(spec, &newest, &on_demand, &registry).await? {
                Ok(service) => {
                    let Registered { version, is_new } = registry.register_service(&service).await?;
                    if is_new {
                        let (name, features) = (&service.name, service.features.len());
                        progress.note(&format!(" Registered service {name}@v{}, {features} features", version.version));
                    }
                }
                Err(reason) => progress.note(&format!("  Waiting service {}: {reason}", spec.name)),
            }
        }
        Ok(())
    }

    /// Publishes the versions that are pinned now, unless readers see exactly these already. Of a table that the run did not touch, what somebody else published while it ran stays.
    pub(crate) async fn publish(
        &self,
        options: &RunOptions,
        pinned: &BTreeMap<TableName, Table>,
        touched: &BTreeSet<TableName>,
    ) -> Result<Option<u64>> {
        let mut tables: Vec<ManifestEntry> = pinned
            .values()
            .map(|table| ManifestEntry {
                name: table.name().clone(),
                version: table.version(),
                rows: table.row_count(),
                is_of_production: !self.lake.owns(table.name()),
                looked_at: self.looked_at(table).unwrap_or_default(),
            })
            .collect();
        let latest = self.lake.latest_manifest().await?;
        if let Some(latest) = &latest {
            for entry in latest.tables.iter().filter(|entry| !touched.contains(&entry.name)) {
                match tables.iter_mut().find(|pinned| pinned.name == entry.name) {
                    Some(pinned) if pinned.version < entry.version => *pinned = entry.clone(),
                    Some(_) => {}
                    // It was made after the run began, or is gone from the lake.
                    None if self.lake.table(&entry.name).await?.is_some() => tables.push(entry.clone()),
                    None => {}
                }
            }
            tables.sort_by(|left, right| left.name.cmp(&right.name));
        }
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

/// Builds a stage. Where it is a feature view, its history is brought to the rows that its table has then, whoever made them.
async fn built_and_kept(work: StageWork, keeper: &Keeper) -> Result<(Built, Option<Kept>)> {
    let (checked, current) = (work.checked.clone(), work.current.clone());
    let built = Box::pin(work.build()).await?;
    let made = built.tables.iter().find(|table| *table.name() == checked.stage.name).cloned();
    let kept = match made.or(current) {
        Some(table) => keeper.keep(&checked, &table).await?,
        None => None,
    };
    Ok((built, kept))
}

/// The tables that the selected stages read and make, which belong together as the run has them.
fn touched(checked: &[CheckedStage], selected: &BTreeSet<TableName>) -> BTreeSet<TableName> {
    let stages = checked.iter().map(|checked| &checked.stage).filter(|stage| selected.contains(&stage.name));
    let tables = stages.flat_map(|stage| {
        let made = [Some(stage.name.clone()), quarantine_name(&stage.name)];
        made.into_iter().flatten().chain(stage.inputs.keys().cloned())
    });
    tables.collect()
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

fn line(name: &TableName, outcome: &StageOutcome, seconds: f64) -> String {
    match outcome {
        StageOutcome::Built { version, rows, quarantined_rows, refresh } => {
            let quarantined = match quarantined_rows {
                0 => String::new(),
                rows => format!(", {rows} quarantined"),
            };
            let change = match refresh {
                Refresh::Full { .. } => String::new(),
                Refresh::Keys { keys, rows_added, rows_removed } => {
                    format!(" (+{rows_added} -{rows_removed} of {keys} keys)")
                }
                Refresh::Append { input, rows_added } => format!(" (+{rows_added} for what came in {input})"),
            };
            format!("    Built {name}  {rows} rows{change}{quarantined}  v{version}  {seconds:.1}s")
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
pub(crate) enum Allowance {
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
