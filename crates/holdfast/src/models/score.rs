//! Scores of customers: from the table of features to `risk.<table>` by the champion, and to `risk.<table>_shadow` by a version that is tried beside it; batch by batch, and not at all where nothing changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Float64Type, Int32Type, Schema, SchemaRef, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use futures::stream::BoxStream;
use holdfast_engine::{DeclaredTable, EngineError, LakeReader, Published, Runner};
use holdfast_lake::{Change, ChangeKind, CommitOutcome, Position, Table, TableSpec, TableWriter, WriterSettings};
use holdfast_types::{CUSTOMER_BUCKET, CUSTOMER_ID, Progress, TableName};
use serde::{Deserialize, Serialize};

use super::answer::Probabilities;
use super::hybrid::history::Steps;
use super::hybrid::scored::Histories;
use super::hybrid::spec::fingerprint;
use super::reasons::{HowMany, Reasons, Words};
use super::registry::{CHAMPION, Loaded, Registry, Version, commented, json_rows, publish, tables, time};
use super::snapshots::{feature_column, literal, moment_of};
use super::spec::{EVENT_TIMESTAMP, Spec};
use super::trial::Trial;
use crate::error::CliError;
use crate::project::Project;

/// The key of a scoring's note in its commits.
const SCORE_NOTE: &str = "holdfast.score";
/// How many commits back the note may be: others write for maintenance alone.
const NOTE_COMMITS_MAX: usize = 20;
const STEP: &str = "scores";
/// What the table of a shadow's scores has behind the champion's.
const SHADOW: &str = "_shadow";

/// What scores were made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ScoreNote {
    model: String,
    version: i32,
    artefact: String,
    features: Option<u64>,
    events: Option<u64>,
    schema: u32,
    /// The test that divides customers, and the artefact that scores its second arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    test: Option<(i32, String)>,
    /// The versions of the tables that hybrids are told of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    steps: BTreeMap<String, u64>,
}

/// Raised when the same model would make other rows of the same features.
const SCORE_VERSION: u32 = 1;

/// What became of a scoring.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Scored {
    /// Features, customers and champion are those of the scores that are there.
    Unchanged { table: TableName, model_version: i32, table_version: u64 },
    /// The scores are new.
    Made {
        table: TableName,
        model_version: i32,
        table_version: u64,
        feature_version: u64,
        as_of: DateTime<Utc>,
        customers: u64,
        high: u64,
        medium: u64,
        low: u64,
        mean_probability: f64,
        published: Option<u64>,
        /// The champion by the time that the scores were kept, where it is another version than the one that made them.
        #[serde(skip_serializing_if = "Option::is_none")]
        champion_now: Option<i32>,
        /// How many customers the version that is tested against the champion has scored, where a test is open.
        #[serde(skip_serializing_if = "Option::is_none")]
        tested: Option<Tested>,
    },
}

/// What a version scored that is tested against the champion.
#[derive(Debug, Serialize)]
pub(crate) struct Tested {
    pub(crate) test: i32,
    pub(crate) version: i32,
    pub(crate) customers: u64,
}

/// Scores all customers of the champion's population by the newest table of features. The version that is champion when it begins makes all of the scores; an alias that is moved
/// meanwhile is told, and the next scoring follows it. While a test is open, the customers of its second arm are scored by the version that is tested.
///
/// # Errors
/// No champion, one that is damaged or whose features the table has not, a prediction that is no number, nobody to be scored: the table is as it was then. What the lake answers.
pub(crate) async fn score(
    model: &str,
    runner: &Runner,
    registry: &Registry,
    progress: &dyn Progress,
) -> Result<Scored, CliError> {
    let Some(champion) = registry.alias(model, CHAMPION).await? else {
        return Err(no_champion(registry, model).await?);
    };
    Box::pin(made_by(champion, Whose::Champion, model, runner, registry, progress)).await
}

/// Scores the same customers by another version, into a table of its own that nobody is told by.
///
/// # Errors
/// As of [`score`]; a version that is the champion, whose scores are there already.
pub(crate) async fn shadow(
    model: &str,
    number: i32,
    runner: &Runner,
    registry: &Registry,
    progress: &dyn Progress,
) -> Result<Scored, CliError> {
    if registry.alias(model, CHAMPION).await? == Some(number) {
        return Err(CliError::Argument(format!(
            "version {number} of `{model}` is the champion: `holdfast score --model {model}` scores with it"
        )));
    }
    Box::pin(made_by(number, Whose::Shadow, model, runner, registry, progress)).await
}

/// How a version's scores differ from those of the champion, over the customers that both have scored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Beside {
    /// The champion's version.
    pub(crate) champion: i32,
    pub(crate) customers: u64,
    /// Customers in another band.
    pub(crate) other_band: u64,
    /// Mean of the shadow's probability less the champion's.
    pub(crate) mean_difference: f64,
    /// Pearson's, of the probabilities; null where one of both is the same for all.
    pub(crate) correlation: Option<f64>,
}

/// Holds the scores of a shadow beside those of the champion; nothing where these are not there, or of other features.
///
/// # Errors
/// What the lake answers.
pub(crate) async fn beside(shadow: &TableName, model: &str, registry: &Registry) -> Result<Option<Beside>, CliError> {
    let Some(champions) = shadow.table().strip_suffix(SHADOW) else { return Ok(None) };
    let champions = TableName::new(shadow.schema(), champions).map_err(|error| CliError::Lake(error.into()))?;
    let names = [shadow.clone(), champions.clone()];
    let read = LakeReader::newest_of(&registry.lake, &registry.settings, &names).await?;
    if read.table(&champions).is_none() {
        return Ok(None);
    }
    let sql = format!(
        "select max(c.model_version) as champion, count(*) as customers, count(*) filter (where s.band <> c.band) as other_band, \
         avg(s.probability - c.probability) as mean_difference, corr(s.probability, c.probability) as correlation \
         from {shadow} s inner join {champions} c on c.customer_id = s.customer_id and c.model = s.model and c.feature_version = s.feature_version \
         where s.model = '{}' having count(*) > 0",
        model.replace('\'', "''")
    );
    let batches: Vec<RecordBatch> = read.rows("comparing scores", &sql).await?.try_collect().await?;
    Ok(json_rows(shadow, &batches)?.into_iter().next())
}

async fn made_by(
    number: i32,
    whose: Whose,
    model: &str,
    runner: &Runner,
    registry: &Registry,
    progress: &dyn Progress,
) -> Result<Scored, CliError> {
    let loaded = registry.load(registry.version(model, number).await?).await?;
    let mut scoring = Scoring::prepare(loaded, whose, registry).await?;
    scoring.warn(runner, progress).await?;
    if let Some(version) = scoring.unchanged().await? {
        publish(&registry.lake, &[tables()?.as_slice(), std::slice::from_ref(&scoring.table)].concat()).await?;
        return Ok(Scored::Unchanged { table: scoring.table, model_version: number, table_version: version });
    }
    let (files, table) = scoring.stage(progress).await?;
    Box::pin(scoring.commit(table, files)).await
}

pub(crate) async fn no_champion(registry: &Registry, model: &str) -> Result<CliError, CliError> {
    Ok(without_champion(model, registry.versions(Some(model)).await?.last()))
}

/// What to do about a model without a champion, by the newest of its versions.
pub(crate) fn without_champion(model: &str, newest: Option<&Version>) -> CliError {
    CliError::NoModel(match newest {
        Some(last) => format!(
            "`{model}` has no champion: look at version {} with `holdfast models show {model}`, then `holdfast models promote {model} {}`",
            last.version, last.version
        ),
        None => format!("`{model}` has no version yet: train one with `holdfast train --model {model}`"),
    })
}

/// What scores are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Customers are told by them.
    Champion,
    /// To be looked at beside the champion's.
    Shadow,
}

impl Whose {
    /// Where the scores of a model's file go.
    fn table(self, of_champion: &TableName) -> Result<TableName, CliError> {
        match self {
            Self::Champion => Ok(of_champion.clone()),
            Self::Shadow => {
                let name = format!("{}{SHADOW}", of_champion.table());
                TableName::new(of_champion.schema(), &name).map_err(|error| CliError::Lake(error.into()))
            }
        }
    }

    /// What the table is about.
    const fn comment(self) -> &'static str {
        match self {
            Self::Champion => {
                "One row is a customer who was active: the probability of churn by the champion of a trained model, with reasons."
            }
            Self::Shadow => {
                "One row is a customer who was active: the probability of churn by a version that is tried beside the champion. Nobody is told by it."
            }
        }
    }

    /// Whose steps the commits are.
    fn app_id(self, model: &str) -> String {
        match self {
            Self::Champion => format!("score/{model}"),
            Self::Shadow => format!("shadow/{model}"),
        }
    }
}

/// A version with what it calls its features.
struct Scorer {
    loaded: Loaded,
    words: Words,
}

struct Scoring<'a> {
    registry: &'a Registry,
    loaded: Loaded,
    /// The test that is open, and who scores its second arm.
    tested: Option<(Trial, Scorer)>,
    whose: Whose,
    table: TableName,
    /// The features, and the events that say who is active.
    features: Table,
    events: Table,
    read: Published,
    /// What customers did step by step, of hybrids.
    sequences: Histories,
    note: ScoreNote,
    counts: Counts,
    as_of: DateTime<Utc>,
}

#[derive(Debug, Default)]
struct Counts {
    customers: u64,
    high: u64,
    medium: u64,
    low: u64,
    sum: f64,
    /// By the version that is tested.
    tested: u64,
}

impl<'a> Scoring<'a> {
    async fn prepare(loaded: Loaded, whose: Whose, registry: &'a Registry) -> Result<Self, CliError> {
        let lake = &registry.lake;
        let (stage, events) = (loaded.spec.stage().clone(), loaded.spec.file.label.table.get_ref().clone());
        let there = async |name: &TableName| {
            lake.table(name).await?.ok_or_else(|| {
                CliError::NoModel(format!(
                    "{name} is not in the lake yet: make it with `holdfast run --select +{name}`"
                ))
            })
        };
        let (features, events) = (there(&stage).await?, there(&events).await?);
        check_columns(&loaded, features.schema(), &stage)?;
        let trial = match whose {
            Whose::Champion => Trial::open(registry, &loaded.version.model).await?,
            Whose::Shadow => None,
        };
        let tested = match trial {
            Some(trial) => {
                let tested = registry.load(registry.version(&trial.model, trial.challenger).await?).await?;
                check_columns(&tested, features.schema(), &stage)?;
                let words = tested.words(Some(features.schema()));
                Some((trial, Scorer { loaded: tested, words }))
            }
            None => None,
        };
        let hybrids = [Some(&loaded), tested.as_ref().map(|(_, by)| &by.loaded)].into_iter().flatten();
        let steps: BTreeMap<i32, Steps> =
            hybrids.filter_map(|loaded| Some((loaded.version.version, loaded.steps()?))).collect();
        let (mut names, mut told) = (vec![features.name().clone(), events.name().clone()], BTreeMap::new());
        for steps in steps.values() {
            let table = there(&steps.stage).await?;
            check_steps(steps, &table)?;
            told.insert(steps.stage.to_string(), table.data_version().await?);
            if !names.contains(&steps.stage) {
                names.push(steps.stage.clone());
            }
        }
        let note = ScoreNote {
            model: loaded.version.model.clone(),
            version: loaded.version.version,
            artefact: loaded.version.artefact_hash.clone(),
            features: Some(features.data_version().await?),
            events: Some(events.data_version().await?),
            schema: SCORE_VERSION,
            test: tested.as_ref().map(|(trial, by)| (trial.test, by.loaded.version.artefact_hash.clone())),
            steps: told,
        };
        Ok(Self {
            tested,
            table: whose.table(loaded.spec.file.scores.table.get_ref())?,
            whose,
            read: LakeReader::newest_of(lake, &registry.settings, &names).await?,
            registry,
            features,
            events,
            sequences: Histories::new(steps),
            note,
            counts: Counts::default(),
            as_of: DateTime::UNIX_EPOCH,
            loaded,
        })
    }

    /// Tells of features whose query is another than the one that the model learnt from.
    async fn warn(&self, runner: &Runner, progress: &dyn Progress) -> Result<(), CliError> {
        let stage = self.loaded.spec.stage();
        let stages = self.loaded.stages();
        if stages.iter().any(|stage| runner.project().stage(stage).is_none()) {
            return Ok(());
        }
        let past = runner.past(&stages, &[]).await?;
        if fingerprint(&past, &stages) != self.loaded.version.feature_fingerprint {
            progress.problem(&format!(
                "   Warned {stage}  its query, or one that it reads, changed since version {} learnt from it: what a feature means may be another; train again with `holdfast train --model {}`",
                self.loaded.version.version, self.loaded.version.model
            ));
        }
        Ok(())
    }

    async fn unchanged(&self) -> Result<Option<u64>, CliError> {
        let Some(table) = self.registry.lake.table(&self.table).await? else { return Ok(None) };
        let note = table.commit_note(SCORE_NOTE, NOTE_COMMITS_MAX).await?;
        let note: Option<ScoreNote> = note.and_then(|note| serde_json::from_value(note).ok());
        Ok((note.as_ref() == Some(&self.note)).then(|| table.version()))
    }

    /// Scores all customers into files that nobody sees yet.
    async fn stage(&mut self, progress: &dyn Progress) -> Result<(Vec<holdfast_lake::StagedFile>, Table), CliError> {
        self.as_of = self.moment().await?;
        self.sequences.check_moment(&self.read, self.as_of).await?;
        let mut rows = self.ask(&self.customers()).await?;
        // Before anything is written: a table of scores is never replaced by none.
        let first = loop {
            match rows.try_next().await? {
                Some(batch) if batch.num_rows() == 0 => {}
                Some(batch) => break batch,
                None => return Err(self.nobody()),
            }
        };
        let table = self.registry.lake.ensure_table(&self.table_spec()).await?;
        let mut writer = TableWriter::new(&table, WriterSettings::default());
        match self.write(first, rows, &mut writer, progress).await {
            Ok(()) => Ok((writer.close().await?, table)),
            Err(error) => {
                // Nothing of them is in the table, and nothing will be.
                if let Ok(files) = writer.close().await {
                    self.registry.lake.discard(files, &table).await;
                }
                Err(error)
            }
        }
    }

    async fn write(
        &mut self,
        first: RecordBatch,
        mut rest: BoxStream<'static, Result<RecordBatch, EngineError>>,
        writer: &mut TableWriter,
        progress: &dyn Progress,
    ) -> Result<(), CliError> {
        let words = self.words();
        let scored_at = self.registry.lake.clock().now();
        progress.advance(STEP, 0, self.features.row_count(), "customers");
        let mut next = Some(first);
        while let Some(batch) = next {
            if batch.num_rows() > 0 {
                self.sequences.bring(&self.read, &batch).await?;
                let scored = self.scored(&batch, &words, scored_at)?;
                self.count(&scored);
                writer.write(&scored).await?;
                self.counts.customers += batch.num_rows() as u64;
                progress.advance(STEP, self.counts.customers, self.features.row_count(), "customers");
            }
            next = rest.try_next().await?;
        }
        progress.finish(STEP, "");
        Ok(())
    }

    /// Why there is nobody to be scored, and what to do.
    fn nobody(&self) -> CliError {
        let spec = &self.loaded.spec;
        CliError::NoModel(format!(
            "nobody to score as of {}: no customer of {} has an event of {} in the {} days before that counts; {} is left as it is. Bring both up to date with `holdfast run`, or look at [label] in {}",
            self.as_of.date_naive(),
            self.features.name(),
            self.events.name(),
            spec.observation().num_days(),
            self.table,
            spec.path.display(),
        ))
    }

    fn table_spec(&self) -> TableSpec {
        TableSpec {
            name: self.table.clone(),
            schema: score_schema(),
            partition_by: vec![CUSTOMER_BUCKET.to_owned()],
            comment: self.whose.comment().to_owned(),
        }
    }

    fn words(&self) -> Words {
        self.loaded.words(Some(self.features.schema()))
    }

    /// The moment at which all features were known.
    async fn moment(&self) -> Result<DateTime<Utc>, CliError> {
        let stage = self.features.name();
        let sql = format!("select max({}) as as_of from {stage}", moment_of(EVENT_TIMESTAMP));
        let batches: Vec<RecordBatch> = self.ask(&sql).await?.try_collect().await?;
        let moment = batches.iter().find(|batch| batch.num_rows() > 0).and_then(|batch| {
            let column = batch.column(0).as_primitive_opt::<TimestampMicrosecondType>()?;
            column.is_valid(0).then(|| DateTime::from_timestamp_micros(column.value(0))).flatten()
        });
        moment.ok_or_else(|| CliError::NoModel(format!("{stage} is empty: bring it up to date with `holdfast run`")))
    }

    /// The customers that the model may speak of: those that were active, as all it learnt from.
    fn customers(&self) -> String {
        let spec = &self.loaded.spec;
        let time = moment_of(spec.file.label.time.get_ref());
        let schema = self.features.schema();
        let versions = [Some(&self.loaded), self.tested.as_ref().map(|(_, by)| &by.loaded)].into_iter().flatten();
        let features: BTreeSet<&str> = versions.flat_map(Loaded::features).collect();
        let columns: Vec<String> =
            features.into_iter().map(|feature| feature_column("f", feature, Some(schema))).collect();
        format!(
            "with active as (select distinct {CUSTOMER_ID} from {events} where {counted} and {time} > {since} and {time} <= {as_of}) \
             select f.{CUSTOMER_ID} as {CUSTOMER_ID}, f.{CUSTOMER_BUCKET} as {CUSTOMER_BUCKET}, {columns} \
             from {stage} f inner join active on active.{CUSTOMER_ID} = f.{CUSTOMER_ID} order by f.{CUSTOMER_BUCKET}, f.{CUSTOMER_ID}",
            events = self.events.name(),
            counted = spec.counted(),
            since = literal(self.as_of - spec.observation()),
            as_of = literal(self.as_of),
            columns = columns.join(", "),
            stage = self.features.name(),
        )
    }

    async fn ask(&self, sql: &str) -> Result<BoxStream<'static, Result<RecordBatch, EngineError>>, CliError> {
        Ok(self.read.rows(&format!("scoring the customers of {}", self.features.name()), sql).await?)
    }

    /// The scores of customers, in their order: each by the version of their arm while a test is open, else by the one that scores all.
    fn scored(&self, batch: &RecordBatch, words: &Words, scored_at: DateTime<Utc>) -> Result<RecordBatch, CliError> {
        let Some((trial, tested)) = &self.tested else {
            return self.scored_by(&self.loaded, words, batch, scored_at);
        };
        let ids = arrow::compute::cast(batch.column(0), &DataType::Utf8)?;
        let ids = ids.as_string::<i32>();
        let (seconds, firsts): (Vec<usize>, Vec<usize>) =
            (0..batch.num_rows()).partition(|row| trial.is_challengers(ids.value(*row)));
        let indices = |rows: &[usize]| UInt64Array::from_iter_values(rows.iter().map(|row| *row as u64));
        let mut parts = Vec::new();
        for (rows, loaded, words) in [(&firsts, &self.loaded, words), (&seconds, &tested.loaded, &tested.words)] {
            if !rows.is_empty() {
                let part = take_record_batch(batch, &indices(rows))?;
                parts.push(self.scored_by(loaded, words, &part, scored_at)?);
            }
        }
        // Back into the order in which they came.
        let order: Vec<usize> = firsts.into_iter().chain(seconds).collect();
        let mut places: Vec<usize> = (0..order.len()).collect();
        places.sort_by_key(|place| order[*place]);
        Ok(take_record_batch(&concat_batches(&score_schema(), &parts)?, &indices(&places))?)
    }

    fn count(&mut self, scored: &RecordBatch) {
        let column = |name: &str| scored.column_by_name(name);
        let probabilities = column("probability").and_then(|column| column.as_primitive_opt::<Float64Type>());
        self.counts.sum += probabilities.into_iter().flatten().flatten().sum::<f64>();
        for band in column("band").and_then(|column| column.as_string_opt::<i32>()).into_iter().flatten().flatten() {
            match band {
                "high" => self.counts.high += 1,
                "medium" => self.counts.medium += 1,
                _ => self.counts.low += 1,
            }
        }
        let Some((trial, _)) = &self.tested else { return };
        let versions = column("model_version").and_then(|column| column.as_primitive_opt::<Int32Type>());
        let by_tested = versions.into_iter().flatten().flatten().filter(|version| *version == trial.challenger);
        self.counts.tested += by_tested.count() as u64;
    }

    fn scored_by(
        &self,
        loaded: &Loaded,
        words: &Words,
        batch: &RecordBatch,
        scored_at: DateTime<Utc>,
    ) -> Result<RecordBatch, CliError> {
        let version = &loaded.version;
        let schema = batch.schema();
        let places: Vec<usize> = loaded.features().map(|name| schema.index_of(name)).collect::<Result<_, _>>()?;
        let features = batch.project(&places)?;
        let features = match &loaded.sequence {
            Some(model) => self.sequences.told(model, version.version, batch, &features)?,
            None => features,
        };
        let matrix = loaded.rows(&features)?;
        let Probabilities { raw, calibrated: probabilities } = loaded.probabilities(&matrix)?;
        let HowMany { raises, lowers } = HowMany::OF_SCORES;
        let reasons = loaded.reasons(&matrix, words, HowMany::OF_SCORES)?;
        let rows = batch.num_rows();
        let moment = |at: DateTime<Utc>| -> ArrayRef {
            let micros = TimestampMicrosecondArray::from(vec![at.timestamp_micros(); rows]);
            Arc::new(micros.with_timezone("UTC"))
        };
        let texts = |of: &dyn Fn(&Reasons) -> Option<&String>| -> ArrayRef {
            Arc::new(reasons.iter().map(of).collect::<StringArray>())
        };
        let stage = self.features.name().to_string();
        let feature_version = i64::try_from(self.features.version()).unwrap_or(i64::MAX);
        let mut columns: Vec<ArrayRef> = vec![
            arrow::compute::cast(batch.column(0), &DataType::Utf8)?,
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&version.model, rows))),
            Arc::new(Int32Array::from(vec![version.version; rows])),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&stage, rows))),
            Arc::new(Int64Array::from(vec![feature_version; rows])),
            Arc::new(Float64Array::from(raw)),
            Arc::new(Float64Array::from(probabilities.clone())),
            Arc::new(StringArray::from_iter_values(probabilities.iter().map(|p| loaded.band(*p)))),
        ];
        columns.extend((0..raises).map(|place| texts(&|reasons| reasons.raises.get(place))));
        columns.extend((0..lowers).map(|place| texts(&|reasons| reasons.lowers.get(place))));
        columns.push(moment(self.as_of));
        columns.push(moment(scored_at));
        columns.push(arrow::compute::cast(batch.column(1), &DataType::Int32)?);
        Ok(RecordBatch::try_new(score_schema(), columns)?)
    }

    async fn commit(self, table: Table, files: Vec<holdfast_lake::StagedFile>) -> Result<Scored, CliError> {
        let lake = &self.registry.lake;
        let app_id = self.whose.app_id(&self.loaded.version.model);
        let position = table.position(&app_id).await?.unwrap_or(0) + 1;
        let note = serde_json::to_value(&self.note).map_err(super::registry::unwritable)?;
        let kept = files.clone();
        let outcome = lake
            .commit(Change {
                table: &table,
                position: Position { app_id, version: position },
                fence: None,
                kind: ChangeKind::ReplaceAll,
                files,
                schema: None,
                comment: None,
                metadata: [(SCORE_NOTE.to_owned(), note)].into_iter().collect(),
            })
            .await?;
        let CommitOutcome::Applied { version } = outcome else {
            lake.discard(kept, &table).await;
            return Err(CliError::Moved(format!(
                "{} was written by another scoring at the same time: score again",
                self.table
            )));
        };
        let published = publish(lake, &[tables()?.as_slice(), std::slice::from_ref(&self.table)].concat()).await?;
        let champion_now = match self.whose {
            Whose::Champion => self.registry.alias(&self.loaded.version.model, CHAMPION).await?,
            Whose::Shadow => None,
        };
        let Counts { customers, high, medium, low, sum, tested: _ } = self.counts;
        Ok(Scored::Made {
            model_version: self.loaded.version.version,
            table_version: version,
            feature_version: self.features.version(),
            as_of: self.as_of,
            customers,
            high,
            medium,
            low,
            mean_probability: sum / customers as f64,
            table: self.table,
            published,
            champion_now: champion_now.filter(|version| *version != self.loaded.version.version),
            tested: self.tested.map(|(trial, _)| Tested {
                test: trial.test,
                version: trial.challenger,
                customers: self.counts.tested,
            }),
        })
    }
}

/// Refuses a table of steps that has not those that the model learnt from.
fn check_steps(steps: &Steps, table: &Table) -> Result<(), CliError> {
    let schema = table.schema();
    let needed = steps.columns().chain([CUSTOMER_ID, CUSTOMER_BUCKET, EVENT_TIMESTAMP]);
    let missing: Vec<&str> = needed.filter(|name| schema.field_with_name(name).is_err()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(CliError::Training(format!(
        "{} has not what the model is told of: {} is gone; bring the columns back, roll back to a version that fits, or train again and promote",
        steps.stage,
        missing.join(", ")
    )))
}

/// Refuses a table of features that has not those that the model learnt from.
fn check_columns(loaded: &Loaded, schema: &SchemaRef, stage: &TableName) -> Result<(), CliError> {
    let mut missing = Vec::new();
    let is_column = |feature: &&holdfast_models::Feature| loaded.features().any(|name| name == feature.name);
    for feature in loaded.model.signature().features().iter().filter(is_column) {
        let is_text = matches!(feature.kind, holdfast_models::FeatureKind::Category(_));
        match schema.field_with_name(&feature.name) {
            Ok(field) if is_text == matches!(field.data_type(), DataType::Utf8) => {}
            Ok(field) => missing.push(format!("{} is {} now", feature.name, field.data_type())),
            Err(_) => missing.push(format!("{} is gone", feature.name)),
        }
    }
    for column in [CUSTOMER_ID, CUSTOMER_BUCKET, EVENT_TIMESTAMP] {
        if schema.field_with_name(column).is_err() {
            missing.push(format!("{column} is gone"));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(CliError::Training(format!(
        "version {} of `{}` does not fit {stage}: {}; bring the columns back, roll back to a version that fits, or train again and promote",
        loaded.version.version,
        loaded.version.model,
        missing.join(", ")
    )))
}

/// The tables of scores of a pipeline's models, which stages may read.
pub(crate) fn declared(project: &Project) -> Result<Vec<DeclaredTable>, CliError> {
    let mut tables: BTreeMap<TableName, DeclaredTable> = BTreeMap::new();
    for name in Spec::names(project)? {
        // A file with a mistake is told by the commands that are about it.
        let Ok(spec) = Spec::read(project, &name) else { continue };
        for whose in [Whose::Champion, Whose::Shadow] {
            let name = whose.table(spec.file.scores.table.get_ref())?;
            tables.insert(name.clone(), DeclaredTable { name, schema: score_schema(), identifiers: Vec::new() });
        }
    }
    Ok(tables.into_values().collect())
}

fn score_schema() -> SchemaRef {
    let text = |name: &str, comment: &str| commented(name, DataType::Utf8, comment);
    let mut fields: Vec<Field> = vec![
        text(CUSTOMER_ID, "Unified customer id"),
        text("model", "The model: its file in the pipeline"),
        commented("model_version", DataType::Int32, "Its version: model.versions"),
        text("feature_stage", "Where its features are"),
        commented("feature_version", DataType::Int64, "The version of that table"),
        commented("probability_raw", DataType::Float64, "Probability as the trees have it"),
        commented(
            "probability",
            DataType::Float64,
            "Calibrated probability: of customers with 0.7, seven in ten churn",
        ),
        text("band", "high, medium or low, by the calibrated probability"),
    ];
    let of = |place: usize, name: &str, comment: &str| text(&format!("{name}_{}", place + 1), comment);
    let HowMany { raises, lowers } = HowMany::OF_SCORES;
    fields.extend((0..raises).map(|place| of(place, "raises", "What raises the probability most, strongest first")));
    fields.extend((0..lowers).map(|place| of(place, "lowers", "What lowers the probability most, strongest first")));
    fields.push(commented("as_of", time(), "The moment at which all features were known"));
    fields.push(commented("scored_at", time(), "When the score was made"));
    fields.push(Field::new(CUSTOMER_BUCKET, DataType::Int32, true));
    Arc::new(Schema::new(fields))
}
