//! One stage of a run: its rows, what expectations say of them, its commit. Whether there is anything to do, and how, is decided in `decide`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use chrono::{DateTime, TimeDelta, Utc};
use datafusion::catalog::TableProvider;
use datafusion::common::cast::{as_boolean_array, as_int64_array};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{DataFrame, SessionContext};
use holdfast_lake::{Change, ChangeKind, CommitOutcome, Lake, Position, StagedFile, Table, TableSpec};
use holdfast_types::{CUSTOMER_BUCKET, Promise, TableName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Result;
use crate::contract::{KEY_UNIQUE, quoted};
use crate::contract_change;
use crate::decide::{ByKey, Course, Decision};
use crate::directive::{DAY, Expectation, Severity, StageKind};
use crate::error::EngineError;
use crate::executor::Place;
use crate::expectation::{self, ExpectationResult, RowRules, quarantine_schema};
use crate::output::{Staged, Target};
use crate::project::CheckedStage;
use crate::run::{Refresh, StageOutcome, TimeRange};
use crate::session::{SessionSettings, plan_as_of, session_with};
use crate::stage::Stage;
use crate::unique;

/// Changes whenever the engine would make other rows of the same query, so that every stage is refreshed once.
const ENGINE_VERSION: &str = "2";

/// The key of a stage's note in its commits.
pub(crate) const STAGE_NOTE: &str = "holdfast.stage";

/// How many commits back a stage's own note may be: others write to the table only for maintenance.
pub(crate) const NOTE_COMMITS_MAX: usize = 20;

/// What a version of a stage's table was made from. Kept in the commit that made it, so that progress lives beside the data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StageNote {
    pub(crate) fingerprint: String,
    pub(crate) inputs: BTreeMap<TableName, Option<u64>>,
    /// The end of the grain that `now()` is in, for stages that depend on it.
    pub(crate) moment: Option<DateTime<Utc>>,
    /// What `now()` was, for stages that depend on it. Versions from before this was noted do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) as_of: Option<DateTime<Utc>>,
    /// Changes with everything that was looked at when the stage was checked. Where it is the same, nothing has to be planned to know that the stage has no mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checked: Option<String>,
    /// Whom it asked, where its query asks subjects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) asked: Option<AskedSubjects>,
    /// The versions of its inputs up to which nothing concerned the version since. No commit notes them: a run remembers them in its manifest.
    #[serde(skip)]
    pub(crate) looked_at: Option<Inputs>,
}

/// Whom a version of a stage's table asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AskedSubjects {
    /// The fingerprint without what they would say.
    query: String,
    /// Who answered, in words, by subject.
    told: BTreeMap<String, String>,
}

/// Versions of inputs; `None` of a table that is not there.
pub(crate) type Inputs = BTreeMap<TableName, Option<u64>>;

/// What became of a stage.
pub(crate) struct Built {
    pub(crate) outcome: StageOutcome,
    pub(crate) expectations: Vec<ExpectationResult>,
    /// The tables it made new versions of: the stage's, and its quarantine.
    pub(crate) tables: Vec<Table>,
    /// What it wrote.
    pub(crate) bytes: u64,
    /// The versions of its inputs, where they are newer ones and nothing in them concerned it.
    pub(crate) looked_at: Option<Inputs>,
    /// Where its rows were worked out, when there was a choice.
    pub(crate) place: Option<Place>,
}

/// All that building one stage needs, so that it can run on its own.
pub(crate) struct StageWork {
    pub(crate) lake: Lake,
    pub(crate) settings: SessionSettings,
    pub(crate) runtime: Arc<RuntimeEnv>,
    pub(crate) inputs: BTreeMap<TableName, Option<Table>>,
    pub(crate) declared: BTreeMap<TableName, arrow::datatypes::SchemaRef>,
    pub(crate) current: Option<Table>,
    pub(crate) quarantine: Option<Table>,
    pub(crate) checked: CheckedStage,
    pub(crate) as_of: DateTime<Utc>,
    pub(crate) full: bool,
    pub(crate) range: Option<TimeRange>,
    /// Up to which versions of inputs earlier runs found nothing that concerns the current version.
    pub(crate) looked_at: Option<Inputs>,
}

/// A stage's query, ready to run.
pub(crate) struct Planned {
    pub(crate) state: SessionState,
    pub(crate) plan: LogicalPlan,
    pub(crate) rules: RowRules,
    pub(crate) whole: Vec<Expectation>,
    pub(crate) quarantine: Option<Table>,
    /// Whether the plan shows by itself that no two rows have one key.
    pub(crate) is_proven: bool,
}

/// Whether a stage was brought up to date by key.
pub(crate) enum Increment {
    /// It was.
    Done(Built),
    /// It cannot be this time: why.
    Full(String),
}

impl Built {
    /// Of a stage whose table is as it should be.
    pub(crate) fn fresh(version: u64) -> Self {
        Self::of_no_rows(StageOutcome::Fresh { version })
    }

    /// Of a stage for which nothing was written.
    pub(crate) fn of_no_rows(outcome: StageOutcome) -> Self {
        Self { outcome, expectations: Vec::new(), tables: Vec::new(), bytes: 0, looked_at: None, place: None }
    }
}

impl StageNote {
    /// What a version made now, of these versions of inputs, would note.
    pub(crate) fn of(
        stage: &Stage,
        salt: &Salt,
        as_of: DateTime<Utc>,
        inputs: BTreeMap<TableName, Option<u64>>,
        checked: &str,
    ) -> Self {
        let moment = moment(stage, as_of);
        Self {
            fingerprint: stage.fingerprint(&salt.whole),
            inputs,
            moment: stage.depends_on_time.then(|| match stage.directives.kind {
                StageKind::Incremental { .. } | StageKind::Append => moment,
                StageKind::Full => end_of_grain(as_of, DAY),
            }),
            as_of: stage.depends_on_time.then_some(moment),
            checked: Some(checked.to_owned()),
            asked: (!salt.told.is_empty())
                .then(|| AskedSubjects { query: stage.fingerprint(&salt.own), told: salt.told.clone() }),
            looked_at: None,
        }
    }

    /// What there is to remember when nothing up to the versions of `now` concerns the version that this is the note of.
    pub(crate) fn looked_at_by(&self, now: &Self) -> Option<Inputs> {
        (self.inputs != now.inputs).then(|| now.inputs.clone())
    }

    /// The versions of its inputs that it is as made from.
    pub(crate) fn seen(&self) -> &Inputs {
        self.looked_at.as_ref().unwrap_or(&self.inputs)
    }

    /// The note in a commit; `None` for what is none.
    pub(crate) fn read(note: Value) -> Option<Self> {
        serde_json::from_value(note).ok()
    }

    /// Whether a version made from the one would be as one made from the other.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint && *self.seen() == other.inputs && self.moment == other.moment
    }

    /// What differs between the two besides the versions of inputs, in words.
    pub(crate) fn what_else_differs(&self, other: &Self) -> Option<String> {
        if self.fingerprint != other.fingerprint {
            let others = self.others_answer(other).map(|told| told.join(", "));
            Some(others.unwrap_or_else(|| "its query, its expectations or its contract changed".to_owned()))
        } else if self.moment != other.moment {
            Some("it depends on time, and a new day has begun".to_owned())
        } else if self.inputs.keys().ne(other.inputs.keys()) {
            Some("it reads other tables".to_owned())
        } else {
            None
        }
    }

    /// Of a version whose fingerprint differs for that alone: those who answer now and did not then, in words.
    pub(crate) fn others_answer(&self, now: &Self) -> Option<Vec<String>> {
        let (then, now) = (self.asked.as_ref()?, now.asked.as_ref()?);
        if then.query != now.query {
            return None;
        }
        let others: Vec<&String> = now
            .told
            .iter()
            .filter(|(subject, told)| then.told.get(*subject) != Some(*told))
            .map(|(_, told)| told)
            .collect();
        // The same version with other words for its features.
        let others = if others.is_empty() { now.told.values().collect() } else { others };
        Some(others.into_iter().cloned().collect())
    }

    pub(crate) fn in_commit(&self) -> Map<String, Value> {
        let note = serde_json::to_value(self).unwrap_or(Value::Null);
        [(STAGE_NOTE.to_owned(), note)].into_iter().collect()
    }
}

impl StageWork {
    pub(crate) fn name(&self) -> &TableName {
        &self.checked.stage.name
    }

    /// What `now()` is in this stage.
    pub(crate) fn moment(&self) -> DateTime<Utc> {
        moment(&self.checked.stage, self.as_of)
    }

    pub(crate) async fn build(self) -> Result<Built> {
        let Decision { note, stored, course } = self.decide(&BTreeSet::new()).await?;
        let (mut planned, reason) = match course {
            Course::Fresh { version } => return Ok(Built::fresh(version)),
            Course::Keys(course) => {
                let ByKey { mut planned, plan, keys } = *course;
                if keys.count > 0 {
                    planned.quarantine = self.quarantine_table().await?;
                }
                match self.replace_keys(stored.as_ref(), &note, &planned, &plan, &keys).await? {
                    Increment::Done(built) => return Ok(built),
                    Increment::Full(reason) if self.range.is_some() => {
                        let message = format!("{}: {reason}: choose a smaller range, or leave it out", self.name());
                        return Err(EngineError::Query { message });
                    }
                    Increment::Full(reason) => (planned, reason),
                }
            }
            Course::Append { append: Some(append) } => return self.append(&note, *append).await,
            Course::Append { append: None } => {
                let Some(table) = &self.current else {
                    return Err(EngineError::Concurrent { table: self.name().clone() });
                };
                let looked_at = stored.and_then(|stored| stored.looked_at_by(&note));
                return Ok(Built { looked_at, ..Built::fresh(table.version()) });
            }
            // Nothing is pending when a stage's turn has come.
            Course::Later { planned } => (*planned, "what changed is not known".to_owned()),
            Course::Full { planned, reason, .. } => (*planned, reason),
        };
        tracing::debug!(stage = %self.name(), reason, "stage is refreshed in full");
        let table = match &self.current {
            Some(table) if self.is_own() => table.clone(),
            _ => self.lake.ensure_table(&self.spec()).await?,
        };
        let quarantine = self.quarantine_table().await?;
        planned.quarantine.clone_from(&quarantine);
        let (staged, expectations, place) = self.stage(&table, planned).await?;
        if let Err(error) = self.judge(staged.rows + staged.refused_rows, &expectations) {
            self.discard(staged.files, staged.refused, &table, quarantine.as_ref()).await;
            return Err(error);
        }
        let built = self.commit(table, staged, expectations, &note, reason).await?;
        Ok(Built { place, ..built })
    }

    /// Whether the table that is there is this lake's: not production's, which an environment reads and does not change.
    pub(crate) fn is_own(&self) -> bool {
        self.lake.owns(self.name())
    }

    pub(crate) fn spec(&self) -> TableSpec {
        let customers = self.checked.schema.field_with_name(CUSTOMER_BUCKET).is_ok();
        TableSpec {
            name: self.name().clone(),
            schema: Arc::clone(&self.checked.schema),
            partition_by: if customers { vec![CUSTOMER_BUCKET.to_owned()] } else { Vec::new() },
            comment: self.checked.stage.directives.description.clone(),
        }
    }

    pub(crate) fn check_partitioning(&self, table: &Table) -> Result<()> {
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

    /// The query over the inputs at their pinned versions, and what its rows are held against. Of inputs that are `pending` nothing is there but their columns to be.
    pub(crate) async fn plan(&self, pending: &BTreeSet<TableName>) -> Result<Planned> {
        self.plan_over(pending, &BTreeMap::new()).await
    }

    /// The same with other rows in the place of some inputs'.
    pub(crate) async fn plan_over(
        &self,
        pending: &BTreeSet<TableName>,
        others: &BTreeMap<TableName, Arc<dyn TableProvider>>,
    ) -> Result<Planned> {
        let stage = &self.checked.stage;
        let context = self.session_over(pending, others)?;
        let failed = EngineError::execution(format!("stage {}", stage.name));
        let (state, plan) = plan_as_of(&context, stage.statement.clone(), self.moment()).await.map_err(failed)?;
        let schema = Arc::clone(&self.checked.schema);
        let (rules, whole) = expectation::split(&stage.directives.expectations, &schema, &state)
            .map_err(|message| EngineError::Query { message: format!("{}: {message}", stage.name) })?;
        let is_proven = stage.contract.as_ref().is_some_and(|contract| unique::is_shown(&plan, &contract.key));
        let quarantine = self.quarantine.clone().filter(|_| self.has_quarantine());
        Ok(Planned { state, plan, rules, whole, quarantine, is_proven })
    }

    /// A session over the inputs at their pinned versions; see [`Self::plan`].
    pub(crate) fn session(&self, pending: &BTreeSet<TableName>) -> Result<SessionContext> {
        self.session_over(pending, &BTreeMap::new())
    }

    fn session_over(
        &self,
        pending: &BTreeSet<TableName>,
        others: &BTreeMap<TableName, Arc<dyn TableProvider>>,
    ) -> Result<SessionContext> {
        let tables = self.inputs.iter().filter_map(|(name, table)| {
            let table = table.as_ref().filter(|_| !pending.contains(name));
            let provider: Arc<dyn TableProvider> = match (table, self.declared.get(name)) {
                _ if others.contains_key(name) => Arc::clone(others.get(name)?),
                (Some(table), _) => table.provider(),
                (None, Some(schema)) => Arc::new(EmptyTable::new(Arc::clone(schema))),
                (None, None) => return None,
            };
            Some((name.clone(), provider))
        });
        session_with(&self.settings, &self.runtime, self.buckets(), tables)
    }

    fn has_quarantine(&self) -> bool {
        let expectations = &self.checked.stage.directives.expectations;
        expectations.iter().any(|expectation| expectation.severity == Severity::Quarantine)
    }

    /// Where refused rows go, made where it is missing; `None` when no row can be refused.
    pub(crate) async fn quarantine_table(&self) -> Result<Option<Table>> {
        if !self.has_quarantine() {
            return Ok(None);
        }
        match (&self.quarantine, quarantine_name(self.name())) {
            (Some(table), _) if self.lake.owns(table.name()) => Ok(Some(table.clone())),
            (_, Some(name)) => Ok(Some(self.lake.ensure_table(&self.quarantine_spec(name)).await?)),
            (_, None) => Ok(None),
        }
    }

    /// Deletes what was written of a version that is not to be: its rows, and those that were refused.
    pub(crate) async fn discard(
        &self,
        files: Vec<StagedFile>,
        refused: Vec<StagedFile>,
        table: &Table,
        quarantine: Option<&Table>,
    ) {
        self.lake.discard(files, table).await;
        if let Some(quarantine) = quarantine {
            self.lake.discard(refused, quarantine).await;
        }
    }

    pub(crate) fn buckets(&self) -> u32 {
        self.lake.settings().customer_buckets
    }

    /// Runs the query and leaves its rows in staged files, with what the expectations say about them.
    async fn stage(&self, table: &Table, planned: Planned) -> Result<(Staged, Vec<ExpectationResult>, Option<Place>)> {
        let stage = &self.checked.stage;
        let schema = Arc::clone(&self.checked.schema);
        let target = Target {
            table: table.clone(),
            schema: Arc::clone(&schema),
            quarantine: planned.quarantine.clone(),
            rules: planned.rules.clone(),
        };
        let (staged, place) = self.stage_all(&planned, target).await?;
        let Planned { rules, whole, is_proven, .. } = planned;

        let mut results = rules.results(&staged.failed);
        let rows = || table.staged_provider(Arc::clone(&schema), &staged.files);
        if let Some(contract) = &stage.contract {
            let duplicates =
                if is_proven { 0 } else { self.count_duplicates(&contract.key, rows(), staged.rows).await? };
            results.push(key_is_unique(&contract.key, duplicates));
        }
        if !whole.is_empty() {
            results.extend(self.judge_whole(&whole, rows()).await?);
        }
        Ok((staged, results, place))
    }

    pub(crate) fn quarantine_spec(&self, name: TableName) -> TableSpec {
        TableSpec {
            comment: format!("Rows that {} did not publish, with the expectations they did not meet", self.name()),
            name,
            schema: quarantine_schema(&self.checked.schema),
            partition_by: Vec::new(),
        }
    }

    /// Asks conditions over the whole table of `rows`, before they are published: all of them in one pass.
    pub(crate) async fn judge_whole(
        &self,
        expectations: &[Expectation],
        rows: Arc<dyn TableProvider>,
    ) -> Result<Vec<ExpectationResult>> {
        let failed = || EngineError::execution(format!("the expectations of {}", self.name()));
        let conditions: Vec<String> = expectations
            .iter()
            .enumerate()
            .map(|(index, expectation)| format!("({}) as met_{index}", expectation.condition))
            .collect();
        let sql = format!("select {} from {}", conditions.join(", "), self.name());
        let batches = self.ask(&sql, rows).await.map_err(failed())?;
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

    /// How many of the `row_count` rows have a key that another row has, too: reads the columns of the key, and nothing else.
    pub(crate) async fn count_duplicates(
        &self,
        key: &[String],
        rows: Arc<dyn TableProvider>,
        row_count: u64,
    ) -> Result<u64> {
        let failed = || EngineError::execution(format!("expectation {KEY_UNIQUE} of {}", self.name()));
        let columns = key.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "select count(*) as keys from (select {columns} from {} group by {columns}) as distinct_keys",
            self.name()
        );
        let mut keys = 0;
        for batch in self.ask(&sql, rows).await.map_err(failed())? {
            let values = as_int64_array(batch.column(0)).map_err(failed())?;
            keys += values.iter().flatten().sum::<i64>();
        }
        Ok(row_count.saturating_sub(u64::try_from(keys).unwrap_or(0)))
    }

    pub(crate) async fn count_rows(&self, rows: Arc<dyn TableProvider>) -> Result<u64> {
        let failed = || EngineError::execution(format!("counting the rows of {}", self.name()));
        let sql = format!("select count(*) as row_count from {}", self.name());
        let mut count = 0;
        for batch in self.ask(&sql, rows).await.map_err(failed())? {
            count += as_int64_array(batch.column(0)).map_err(failed())?.iter().flatten().sum::<i64>();
        }
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The answer of `rows`, under the stage's name.
    async fn ask(&self, sql: &str, rows: Arc<dyn TableProvider>) -> Result<Vec<RecordBatch>, DataFusionError> {
        let context = session_with(&self.settings, &self.runtime, self.buckets(), [(self.name().clone(), rows)])
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        let mut state = context.state();
        state.execution_props_mut().query_execution_start_time = Some(self.moment());
        let plan = state.create_logical_plan(sql).await?;
        DataFrame::new(state, plan).collect().await
    }

    /// # Errors
    /// [`EngineError::Expectation`] when one marked `fail` is not met.
    pub(crate) fn judge(&self, rows: u64, results: &[ExpectationResult]) -> Result<()> {
        match results.iter().find(|result| result.severity == Severity::Fail && result.failed_rows > 0) {
            Some(result) => Err(EngineError::Expectation {
                table: self.name().clone(),
                expectation: result.name.clone(),
                condition: result.condition.clone(),
                rows: format!("{} of {rows} rows", result.failed_rows),
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn check_met(&self, results: &[ExpectationResult]) -> Result<()> {
        let failing = results.iter().any(|result| result.severity == Severity::Fail && result.failed_rows > 0);
        Ok(Promise::Stg2.check(!failing, || format!("{} was about to be committed", self.name()))?)
    }

    pub(crate) fn app_id(&self) -> String {
        format!("stage/{}", self.name())
    }

    fn properties(&self) -> HashMap<String, String> {
        self.checked.stage.contract.as_ref().map(contract_change::properties).unwrap_or_default()
    }

    /// Whether the table has other columns, or says other things of itself, than the stage gives.
    pub(crate) fn is_reshaped(&self, table: &Table) -> bool {
        let spec = self.spec();
        table.schema() != &spec.schema
            || table.comment().unwrap_or_default() != spec.comment
            || self.properties().iter().any(|(key, value)| table.property(key) != Some(value))
    }

    async fn commit(
        &self,
        table: Table,
        staged: Staged,
        expectations: Vec<ExpectationResult>,
        note: &StageNote,
        reason: String,
    ) -> Result<Built> {
        self.check_met(&expectations)?;
        let app_id = self.app_id();
        let bytes = staged.files.iter().chain(&staged.refused).map(|file| file.bytes).sum();
        let mut tables = Vec::new();
        if let Some(name) = quarantine_name(self.name())
            && let Some(quarantine) = self.lake.table(&name).await?
        {
            if !self.lake.owns(&name) || (staged.refused.is_empty() && quarantine.row_count() == Some(0)) {
                tables.push(quarantine);
            } else {
                tables.push(self.replace_quarantine(&quarantine, &app_id, staged.refused).await?);
            }
        }

        let spec = self.spec();
        let schema = spec.schema.as_ref().clone().with_metadata(self.properties());
        let reshaped = self.is_reshaped(&table);
        let version = table.position(&app_id).await?.unwrap_or(0) + 1;
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
                metadata: note.in_commit(),
            })
            .await?;
        let CommitOutcome::Applied { version } = outcome else {
            return Err(EngineError::Concurrent { table: self.name().clone() });
        };
        Ok(Built {
            outcome: StageOutcome::Built {
                version,
                rows: staged.rows,
                quarantined_rows: staged.refused_rows,
                refresh: Refresh::Full { reason },
            },
            expectations,
            tables: {
                tables.push(self.lake.table_as_committed(self.name(), version).await?);
                tables
            },
            bytes,
            looked_at: None,
            place: None,
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
            CommitOutcome::Applied { version } => Ok(self.lake.table_as_committed(name, version).await?),
            _ => Err(EngineError::Concurrent { table: name.clone() }),
        }
    }
}

/// Where a stage's refused rows are.
pub(crate) fn quarantine_name(stage: &TableName) -> Option<TableName> {
    TableName::new("quarantine", &format!("{}_{}", stage.schema(), stage.table())).ok()
}

pub(crate) fn key_is_unique(key: &[String], duplicates: u64) -> ExpectationResult {
    ExpectationResult {
        name: KEY_UNIQUE.to_owned(),
        severity: Severity::Fail,
        condition: format!("no two rows have the same {}", key.join(", ")),
        failed_rows: duplicates,
    }
}

/// What decides, beside a stage's own text, whether its rows would be others.
#[derive(Debug)]
pub(crate) struct Salt {
    /// All of it.
    pub(crate) whole: String,
    /// The same without what subjects would say that the query asks.
    own: String,
    /// Who these are, in words.
    told: BTreeMap<String, String>,
}

/// The salt of a stage in a session over a lake.
pub(crate) fn salt(lake: &Lake, settings: &SessionSettings, stage: &Stage) -> Salt {
    let mut salt = format!("{ENGINE_VERSION}/{}/{}", lake.settings().customer_buckets, settings.salt);
    if lake.environment_name().is_some() {
        // The versions of an environment's own tables are other ones than production's of the same number.
        for own in stage.inputs.keys().filter(|input| lake.owns(input)) {
            salt.push('/');
            salt.push_str(&own.to_string());
        }
    }
    let whole = format!("{salt}{}", settings.row_functions.asked_versions(&stage.statement));
    Salt { whole, own: salt, told: settings.row_functions.told(&stage.statement) }
}

/// What `now()` is in a stage. Where rows are brought up to date by key it must be the same for all of them until the next full refresh: the end of the
/// grain (a day) that the run's moment is in, so that what happened today has happened.
pub(crate) fn moment(stage: &Stage, as_of: DateTime<Utc>) -> DateTime<Utc> {
    match stage.directives.kind {
        StageKind::Incremental { grain, .. } if stage.depends_on_time => end_of_grain(as_of, grain),
        StageKind::Append if stage.depends_on_time => end_of_grain(as_of, DAY),
        _ => as_of,
    }
}

/// The first moment at or after `moment` that begins a grain, counted from midnight UTC.
fn end_of_grain(moment: DateTime<Utc>, grain: TimeDelta) -> DateTime<Utc> {
    let grain = grain.num_microseconds().unwrap_or(i64::MAX).max(1);
    // Clocks know less than a microsecond, tables do not.
    let micros = moment.timestamp_micros();
    let passed = micros.rem_euclid(grain);
    let end = if passed == 0 { micros } else { micros + grain - passed };
    DateTime::from_timestamp_micros(end).unwrap_or(moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_one_grain_have_one_end_whatever_the_clock_tells_beside_it() {
        let end = |moment: &str, grain| end_of_grain(moment.parse().unwrap(), grain).to_rfc3339();
        for moment in ["2025-06-29T00:00:00.000001Z", "2025-06-29T18:00:00.000000576Z", "2025-06-30T00:00:00Z"] {
            assert_eq!(end(moment, DAY), "2025-06-30T00:00:00+00:00", "{moment}");
        }
        assert_eq!(end("2025-06-29T18:00:01.5Z", TimeDelta::minutes(15)), "2025-06-29T18:15:00+00:00");
        // Before 1970 as well.
        assert_eq!(end("1969-12-31T23:59:59Z", DAY), "1970-01-01T00:00:00+00:00");
    }
}
