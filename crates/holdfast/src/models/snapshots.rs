//! Customers as they were at moments in the past: features, what became of them, and what the baselines said.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Float64Type, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use chrono::{DateTime, Utc};
use holdfast_engine::{Past, Question, Sees};
use holdfast_types::{CUSTOMER_ID, Progress, TableName};

use super::hybrid::history::Steps;
use super::moments::{Moments, Span, end_of_day};
use super::spec::Spec;
use crate::error::CliError;

/// The step that progress is told of.
const STEP: &str = "snapshots";

/// Customers at one moment, sorted by id.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) at: DateTime<Utc>,
    /// A hash of each customer's id: models know customers apart, and not who they are.
    pub(crate) customers: Vec<u64>,
    /// The features, in the order of the spec.
    pub(crate) features: RecordBatch,
    /// Whether each has churned.
    pub(crate) labels: Vec<bool>,
    /// What the scorecard said, not a number where it said nothing; empty where it was not asked.
    pub(crate) scorecard: Vec<f64>,
    /// What the customers did, step by step up to the moment; empty where it was not asked.
    pub(crate) history: Vec<RecordBatch>,
}

/// What a training asks of the past.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) past: &'a Past,
    pub(crate) features: &'a [String],
    /// The steps of customers, where the model is told of them.
    pub(crate) steps: Option<&'a Steps>,
}

impl Asked<'_> {
    /// From when to when the events that labels are made of are known, at most up to `as_of`.
    ///
    /// # Errors
    /// No event at all; what the engine answers.
    pub(crate) async fn span(&self, as_of: DateTime<Utc>) -> Result<Span, CliError> {
        let label = &self.spec.file.label;
        let (table, time) = (label.table.get_ref(), moment_of(label.time.get_ref()));
        let sql = format!(
            "select min({time}) as first_at, max({time}) as last_at from {table} where {} and {time} <= {}",
            self.spec.counted(),
            literal(as_of)
        );
        let batches = self.ask(sql, as_of, Sees::LaterToo).await?;
        let time = |place: usize| {
            let column = batches.first().filter(|batch| batch.num_rows() == 1)?.column(place);
            let column = column.as_primitive_opt::<TimestampMicrosecondType>()?;
            column.is_valid(0).then(|| DateTime::from_timestamp_micros(column.value(0))).flatten()
        };
        match (time(0), time(1)) {
            // A day is over when it is over: the last event of a day is before its end.
            (Some(first), Some(last)) => Ok(Span { first, until: end_of_day(last).min(as_of) }),
            _ => Err(CliError::Training(format!(
                "{table} has no event up to {}: nobody can be labelled; bring it up to date with `holdfast run`, or look at `where` in {}",
                as_of.date_naive(),
                self.spec.path.display()
            ))),
        }
    }

    /// The snapshots of all moments, the first ones first. The scorecard is asked at those that judge.
    pub(crate) async fn snapshots(
        &self,
        moments: &Moments,
        progress: &dyn Progress,
    ) -> Result<Vec<Snapshot>, CliError> {
        let total = moments.all().count() as u64;
        let mut snapshots = Vec::new();
        progress.advance(STEP, 0, Some(total), "moments");
        for at in moments.all() {
            let population = self.population(at).await?;
            let mut snapshot = self.snapshot(at, &population, Sees::KnownThen).await?;
            if moments.test.contains(&at) {
                self.ask_scorecard(&mut snapshot).await?;
            }
            progress.advance(STEP, snapshots.len() as u64 + 1, Some(total), "moments");
            snapshots.push(snapshot);
        }
        progress.finish(STEP, "");
        Ok(snapshots)
    }

    /// Who was active before the moment, and whether they have churned after it.
    pub(crate) async fn population(&self, at: DateTime<Utc>) -> Result<HashMap<u64, bool>, CliError> {
        let label = &self.spec.file.label;
        let (table, time) = (label.table.get_ref(), moment_of(label.time.get_ref()));
        let begins = at + self.spec.gap();
        let ends = begins + self.spec.horizon();
        let sql = format!(
            "select {CUSTOMER_ID}, max(case when {time} > {begins} then 1 else 0 end) as came_back \
             from {table} where {counted} and {time} > {since} and ({time} <= {at} or {time} > {begins}) and {time} <= {ends} \
             group by {CUSTOMER_ID} having min({time}) <= {at}",
            counted = self.spec.counted(),
            since = literal(at - self.spec.observation()),
            at = literal(at),
            begins = literal(begins),
            ends = literal(ends),
        );
        let mut population = HashMap::new();
        for batch in self.ask(sql, at, Sees::LaterToo).await? {
            let customers = texts(batch.column(0))?;
            let came_back = arrow::compute::cast(batch.column(1), &DataType::Float64)?;
            let came_back = came_back.as_primitive::<Float64Type>();
            for row in 0..batch.num_rows() {
                population.insert(customer(customers.as_string::<i32>().value(row)), came_back.value(row) < 0.5);
            }
        }
        Ok(population)
    }

    /// The features of `population` at a moment; customers of whom the stage knows nothing are left out.
    pub(crate) async fn snapshot(
        &self,
        at: DateTime<Utc>,
        population: &HashMap<u64, bool>,
        sees: Sees,
    ) -> Result<Snapshot, CliError> {
        let stage = self.spec.stage();
        let schema = self.past.schema(stage);
        let columns: Vec<String> = self.features.iter().map(|name| feature_column("f", name, schema)).collect();
        let sql = format!(
            "select f.{CUSTOMER_ID} as {CUSTOMER_ID}, {} from {stage} f where f.{CUSTOMER_ID} is not null order by f.{CUSTOMER_ID}",
            columns.join(", ")
        );
        let (mut customers, mut labels, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for batch in self.ask(sql, at, sees).await? {
            let ids = texts(batch.column(0))?;
            let ids: Vec<u64> = ids.as_string::<i32>().iter().map(|id| id.map_or(0, customer)).collect();
            let is_in = BooleanArray::from_iter(ids.iter().map(|id| Some(population.contains_key(id))));
            for (id, churned) in ids.iter().filter_map(|id| Some((*id, *population.get(id)?))) {
                customers.push(id);
                labels.push(churned);
            }
            let places: Vec<usize> = (1..batch.num_columns()).collect();
            kept.push(filter_record_batch(&batch.project(&places)?, &is_in)?);
        }
        let Some(first) = kept.first() else {
            return Err(CliError::Training(format!(
                "{stage} has no rows as of {}: bring the tables it reads up to date with `holdfast run`",
                at.date_naive()
            )));
        };
        let features = concat_batches(&first.schema(), &kept)?;
        let history = match self.steps {
            Some(steps) => self.history(steps, at, &customers, sees).await?,
            None => Vec::new(),
        };
        Ok(Snapshot { at, customers, features, labels, scorecard: Vec::new(), history })
    }

    /// What these customers did up to a moment, step by step.
    async fn history(
        &self,
        steps: &Steps,
        at: DateTime<Utc>,
        customers: &[u64],
        sees: Sees,
    ) -> Result<Vec<RecordBatch>, CliError> {
        let wanted: HashSet<u64> = customers.iter().copied().collect();
        let batches = self.ask(steps.sql(), at, sees).await?;
        let moment = at.timestamp_micros();
        batches.iter().map(|batch| steps.history(batch, moment, |customer| wanted.contains(&customer))).collect()
    }

    /// Adds what the scorecard said of the customers then, where the spec has one.
    pub(crate) async fn ask_scorecard(&self, snapshot: &mut Snapshot) -> Result<(), CliError> {
        if let Some(scorecard) = &self.spec.file.baselines.scorecard {
            let (stage, column) = (scorecard.stage.get_ref(), scorecard.column.get_ref());
            snapshot.scorecard = self.scores(snapshot.at, stage, column, &snapshot.customers).await?;
        }
        Ok(())
    }

    /// What a stage's column said of these customers at a moment.
    async fn scores(
        &self,
        at: DateTime<Utc>,
        stage: &TableName,
        column: &str,
        customers: &[u64],
    ) -> Result<Vec<f64>, CliError> {
        let sql = format!(
            "select {CUSTOMER_ID}, arrow_cast({}, 'Float64') as score from {stage} where {CUSTOMER_ID} is not null",
            quoted(column)
        );
        let mut scores = HashMap::new();
        for batch in self.ask(sql, at, Sees::KnownThen).await? {
            let ids = texts(batch.column(0))?;
            let values = batch.column(1).as_primitive::<Float64Type>();
            let rows = ids.as_string::<i32>().iter().zip(values.iter());
            scores.extend(rows.filter_map(|(id, value)| Some((customer(id?), value?))));
        }
        Ok(customers.iter().map(|id| scores.get(id).copied().unwrap_or(f64::NAN)).collect())
    }

    async fn ask(&self, sql: String, at: DateTime<Utc>, sees: Sees) -> Result<Vec<RecordBatch>, CliError> {
        let question = Question { sql, at, sees };
        let take = |batches: &mut Vec<RecordBatch>, batch| {
            batches.push(batch);
            Ok(())
        };
        Ok(self.past.gather(&question, Vec::new, take).await?)
    }
}

/// What stands for a customer: the first eight bytes of a hash of the id.
pub(crate) fn customer(id: &str) -> u64 {
    let hash = blake3::hash(id.as_bytes());
    let bytes: [u8; 8] = std::array::from_fn(|place| hash.as_bytes()[place]);
    u64::from_le_bytes(bytes)
}

/// A feature as models take it: numbers in 32 bits, text as it is.
pub(crate) fn feature_column(table: &str, name: &str, schema: Option<&SchemaRef>) -> String {
    let kind = schema.and_then(|schema| schema.field_with_name(name).ok()).map(|field| field.data_type().clone());
    let column = format!("{table}.{}", quoted(name));
    match kind {
        Some(DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => {
            format!("arrow_cast({column}, 'Utf8') as {}", quoted(name))
        }
        Some(DataType::Boolean) => {
            format!(
                "arrow_cast(case when {column} then 1.0 when not {column} then 0.0 end, 'Float32') as {}",
                quoted(name)
            )
        }
        _ => format!("arrow_cast({column}, 'Float32') as {}", quoted(name)),
    }
}

/// A column of times or days as a moment.
pub(crate) fn moment_of(column: &str) -> String {
    format!("arrow_cast({}, 'Timestamp(Microsecond, Some(\"UTC\"))')", quoted(column))
}

/// A moment in SQL.
pub(crate) fn literal(moment: DateTime<Utc>) -> String {
    let micros = moment.format("%Y-%m-%dT%H:%M:%S%.6fZ");
    format!("arrow_cast('{micros}', 'Timestamp(Microsecond, Some(\"UTC\"))')")
}

pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn texts(column: &arrow::array::ArrayRef) -> Result<arrow::array::ArrayRef, ArrowError> {
    arrow::compute::cast(column, &DataType::Utf8)
}
