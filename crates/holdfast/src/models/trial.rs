//! A test of a version against the champion: each customer is scored by one of both, always by the same, and it is counted who comes back.
//!
//! Who is in which arm is a hash of the customer and the test, so nothing has to be kept of it. A customer enters the test with the first event after its begin: then they are active, and are scored by the version of their arm. What is counted is
//! known once gap and horizon behind that event are over: whether they have churned, as the champion's file says it. A version that is right more often, and that somebody acts on, has fewer of these.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type, Schema};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use holdfast_engine::{LakeReader, TableRows, write_table};
use holdfast_lake::{CommitOutcome, Position, TableSpec};
use holdfast_models::{AlwaysValid, Arm, Look};
use holdfast_types::{CUSTOMER_ID, TableName};
use serde::{Deserialize, Serialize};

use super::registry::{CHAMPION, Registry, batch, commented, publish, rows, time};
use super::snapshots::{literal, moment_of};
use super::spec::Spec;
use crate::error::CliError;

/// One less the confidence of intervals.
const ALPHA: f64 = 0.05;

/// A test, open or over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trial {
    pub(crate) model: String,
    /// Its place among the tests of the model, from 1.
    pub(crate) test: i32,
    /// Scores the first arm.
    pub(crate) champion: i32,
    /// Scores the second arm.
    pub(crate) challenger: i32,
    /// The share of customers that is in the second arm.
    pub(crate) share: f64,
    /// The difference that is looked for.
    pub(crate) effect: f64,
    pub(crate) at: DateTime<Utc>,
    pub(crate) by: String,
    /// `started`, or `stopped`.
    pub(crate) what: String,
}

/// What is to be tested, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) challenger: i32,
    pub(crate) share: f64,
    pub(crate) effect: f64,
}

/// What a test has shown so far.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    #[serde(flatten)]
    pub(crate) trial: Trial,
    pub(crate) stopped_at: Option<DateTime<Utc>>,
    /// Customers who have entered.
    pub(crate) entered: [u64; 2],
    /// Of these, those of whom it is known whether they churned; positives have.
    pub(crate) arms: [Arm; 2],
    pub(crate) look: Look,
    /// From when on the first of them are known.
    pub(crate) known_from: DateTime<Utc>,
}

impl Trial {
    /// The test of a model that is open.
    pub(crate) async fn open(registry: &Registry, model: &str) -> Result<Option<Self>, CliError> {
        Ok(Self::moves(registry, model).await?.pop().filter(|last| last.what == STARTED))
    }

    /// Begins a test of a version against the champion.
    ///
    /// # Errors
    /// A test that is open, no champion, a version that is not there or cannot be used, shares and effects that make no sense.
    pub(crate) async fn start(registry: &Registry, model: &str, wanted: Wanted, by: String) -> Result<Self, CliError> {
        AlwaysValid::new(wanted.effect, ALPHA, wanted.share)?;
        let moves = Self::moves(registry, model).await?;
        if let Some(open) = moves.last().filter(|last| last.what == STARTED) {
            return Err(CliError::Argument(format!(
                "test {} of `{model}` goes on, of versions {} and {}: stop it first with `holdfast models test stop {model}`",
                open.test, open.champion, open.challenger
            )));
        }
        let Some(champion) = registry.alias(model, CHAMPION).await? else {
            return Err(super::score::no_champion(registry, model).await?);
        };
        if champion == wanted.challenger {
            return Err(CliError::Argument(format!("version {champion} of `{model}` is the champion: test another")));
        }
        // Read whole: what cannot be used is told now, and not when customers are scored.
        let (first, second) = (
            registry.load(registry.version(model, champion).await?).await?,
            registry.load(registry.version(model, wanted.challenger).await?).await?,
        );
        if first.spec.stage() != second.spec.stage() {
            return Err(CliError::Argument(format!(
                "version {} of `{model}` has its features from {}, and the champion from {}: they cannot be tested in one table of scores",
                wanted.challenger,
                second.spec.stage(),
                first.spec.stage()
            )));
        }
        let trial = Self {
            model: model.to_owned(),
            test: moves.last().map_or(0, |last| last.test) + 1,
            champion,
            challenger: wanted.challenger,
            share: wanted.share,
            effect: wanted.effect,
            at: registry.lake.clock().now(),
            by,
            what: STARTED.to_owned(),
        };
        keep(registry, &trial, moves.len()).await?;
        Ok(trial)
    }

    /// Ends the test that is open. From then on the champion scores everybody again.
    ///
    /// # Errors
    /// No test that is open.
    pub(crate) async fn stop(registry: &Registry, model: &str, by: String) -> Result<Self, CliError> {
        let moves = Self::moves(registry, model).await?;
        let Some(open) = moves.last().filter(|last| last.what == STARTED) else {
            return Err(none(model));
        };
        let stopped = Self { at: registry.lake.clock().now(), by, what: STOPPED.to_owned(), ..open.clone() };
        keep(registry, &stopped, moves.len()).await?;
        Ok(stopped)
    }

    /// Refuses to move the champion under a test: it would be another test.
    ///
    /// # Errors
    /// A test that is open.
    pub(crate) async fn refuse_moves(registry: &Registry, model: &str) -> Result<(), CliError> {
        match Self::open(registry, model).await? {
            Some(open) => Err(CliError::Argument(format!(
                "test {} of `{model}` goes on, of versions {} and {}: look at it with `holdfast models test show {model}`, stop it with `holdfast models test stop {model}`, then move the champion",
                open.test, open.champion, open.challenger
            ))),
            None => Ok(()),
        }
    }

    /// What the newest test has shown by `as_of`.
    ///
    /// # Errors
    /// No test, and what the lake answers.
    pub(crate) async fn show(
        registry: &Registry,
        model: &str,
        as_of: Option<DateTime<Utc>>,
    ) -> Result<Shown, CliError> {
        let mut moves = Self::moves(registry, model).await?;
        let Some(last) = moves.pop() else { return Err(none(model)) };
        let (trial, stopped_at) = match (last.what == STOPPED, moves.pop()) {
            (true, Some(started)) => (started, Some(last.at)),
            _ => (last, None),
        };
        let loaded = registry.load(registry.version(model, trial.champion).await?).await?;
        let as_of = match as_of {
            Some(as_of) => as_of,
            None => registry.lake.latest_manifest().await?.map_or_else(|| registry.lake.clock().now(), |run| run.as_of),
        };
        let spec = &loaded.spec;
        let known_from = trial.at + spec.gap() + spec.horizon();
        let days = trial.days(registry, spec, as_of, stopped_at).await?;
        let mut entered = [0; 2];
        let mut arms = [Arm::default(); 2];
        let mut test = AlwaysValid::new(trial.effect, ALPHA, trial.share)?;
        let mut look = test.look(arms[0], arms[1])?;
        for (place, day) in days.iter().enumerate() {
            let arm = usize::from(day.is_challenger);
            entered[arm] += day.customers;
            if day.is_known {
                arms[arm].rows += day.customers;
                arms[arm].positives += day.churned;
            }
            // A look at the end of each day, as somebody may have had it.
            if days.get(place + 1).is_none_or(|next| next.day != day.day) {
                look = test.look(arms[0], arms[1])?;
            }
        }
        Ok(Shown { trial, stopped_at, entered, arms, look, known_from })
    }

    /// Whether the challenger scores a customer.
    pub(crate) fn is_challengers(&self, customer: &str) -> bool {
        let hash = blake3::hash(format!("{}/{}/{customer}", self.model, self.test).as_bytes());
        let bytes: [u8; 8] = std::array::from_fn(|place| hash.as_bytes()[place]);
        ((u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64) < self.share
    }

    /// Customers by the day on which they entered, the first days first.
    async fn days(
        &self,
        registry: &Registry,
        spec: &Spec,
        as_of: DateTime<Utc>,
        stopped_at: Option<DateTime<Utc>>,
    ) -> Result<Vec<Day>, CliError> {
        let label = &spec.file.label;
        let (table, at) = (label.table.get_ref(), moment_of(label.time.get_ref()));
        let (gap, ahead) = (spec.gap().num_days(), (spec.gap() + spec.horizon()).num_days());
        let sql = format!(
            "with counted as (select {CUSTOMER_ID}, {at} as happened_at from {table} where {counted} and {at} > {started} and {at} <= {as_of}), \
             entered as (select {CUSTOMER_ID}, min(happened_at) as entered_at from counted group by {CUSTOMER_ID} having min(happened_at) <= {until}) \
             select entered.{CUSTOMER_ID} as {CUSTOMER_ID}, \
             cast(date_part('epoch', date_trunc('day', entered.entered_at)) as bigint) as day, \
             cast(max(case when counted.happened_at > entered.entered_at + interval '{gap} days' \
             and counted.happened_at <= entered.entered_at + interval '{ahead} days' then 1 else 0 end) as bigint) as came_back, \
             cast(case when entered.entered_at + interval '{ahead} days' <= {as_of} then 1 else 0 end as bigint) as is_known \
             from entered inner join counted on counted.{CUSTOMER_ID} = entered.{CUSTOMER_ID} \
             group by entered.{CUSTOMER_ID}, entered.entered_at",
            counted = spec.counted(),
            started = literal(self.at),
            as_of = literal(as_of),
            until = literal(stopped_at.unwrap_or(as_of)),
        );
        let read = LakeReader::newest_of(&registry.lake, &registry.settings, std::slice::from_ref(table)).await?;
        if read.table(table).is_none() {
            return Ok(Vec::new());
        }
        let batches: Vec<RecordBatch> = read.rows("a test of a model", &sql).await?.try_collect().await?;
        let mut days: BTreeMap<(i64, bool, bool), Day> = BTreeMap::new();
        for batch in &batches {
            let ids = arrow::compute::cast(batch.column(0), &DataType::Utf8)?;
            let ids = ids.as_string::<i32>();
            let number = |column: usize, row: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
            for row in 0..batch.num_rows() {
                let (day, is_known) = (number(1, row), number(3, row) == 1);
                let is_challenger = self.is_challengers(ids.value(row));
                let counted = days.entry((day, is_challenger, is_known)).or_insert(Day {
                    day,
                    is_challenger,
                    is_known,
                    customers: 0,
                    churned: 0,
                });
                counted.customers += 1;
                counted.churned += u64::from(number(2, row) == 0);
            }
        }
        Ok(days.into_values().collect())
    }

    /// Begins and ends of a model's tests, oldest first.
    async fn moves(registry: &Registry, model: &str) -> Result<Vec<Self>, CliError> {
        let spec = table()?;
        let read = LakeReader::newest_of(&registry.lake, &registry.settings, std::slice::from_ref(&spec.name)).await?;
        let mut moves: Vec<Self> = rows(&read, &spec, Some(model)).await?;
        moves.sort_by(|left, right| (left.test, &left.what).cmp(&(right.test, &right.what)));
        Ok(moves)
    }
}

/// In this order: a test is started before it is stopped.
const STARTED: &str = "started";
const STOPPED: &str = "stopped";

/// Customers of one arm who entered on one day.
struct Day {
    /// Seconds since 1970 of its begin.
    day: i64,
    is_challenger: bool,
    is_known: bool,
    customers: u64,
    churned: u64,
}

fn none(model: &str) -> CliError {
    CliError::NoModel(format!(
        "there is no test of `{model}`: `holdfast models test start {model} VERSION` begins one of a version against the champion"
    ))
}

async fn keep(registry: &Registry, trial: &Trial, moves: usize) -> Result<(), CliError> {
    let spec = table()?;
    let step = i64::try_from(moves).unwrap_or(i64::MAX - 1) + 1;
    let position = Position { app_id: format!("test/{}", trial.model), version: step };
    let rows = TableRows::Added(vec![batch(&spec.schema, std::slice::from_ref(trial))?]);
    match write_table(&registry.lake, &spec, rows, position, serde_json::Map::new()).await? {
        CommitOutcome::Applied { .. } => {
            publish(&registry.lake, std::slice::from_ref(&spec.name)).await?;
            Ok(())
        }
        CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => Err(CliError::Moved(format!(
            "somebody else started or stopped a test of `{0}` at the same time: look with `holdfast models test show {0}`",
            trial.model
        ))),
    }
}

/// The table of tests, which stages may read.
pub(crate) fn table() -> Result<TableSpec, CliError> {
    let text = |name: &str, comment: &str| commented(name, DataType::Utf8, comment);
    let fields = vec![
        text("model", "The model: its file in the pipeline"),
        commented("test", DataType::Int32, "The test's place among those of the model, from 1"),
        commented("champion", DataType::Int32, "The version that scores the first arm"),
        commented("challenger", DataType::Int32, "The version that scores the second arm"),
        commented("share", DataType::Float64, "The share of customers in the second arm"),
        commented("effect", DataType::Float64, "The difference of churn that is looked for"),
        commented("at", time(), "When"),
        text("by", "By whom"),
        text("what", "started or stopped"),
    ];
    Ok(TableSpec {
        name: TableName::new("model", "tests").map_err(|error| CliError::Lake(error.into()))?,
        schema: Arc::new(Schema::new(fields)),
        partition_by: Vec::new(),
        comment: "One row is the begin or the end of a test of a version of a model against the champion.".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn customers_stay_in_their_arm_and_another_test_divides_them_anew() {
        let trial = |test, share| Trial {
            model: "churn".to_owned(),
            test,
            champion: 1,
            challenger: 2,
            share,
            effect: 0.05,
            at: DateTime::UNIX_EPOCH,
            by: String::new(),
            what: STARTED.to_owned(),
        };
        let customers: Vec<String> = (0..10_000).map(|customer| format!("c{customer}")).collect();
        let of = |trial: &Trial| -> Vec<bool> { customers.iter().map(|id| trial.is_challengers(id)).collect() };
        let (first, second) = (of(&trial(1, 0.5)), of(&trial(2, 0.5)));
        assert_eq!(first, of(&trial(1, 0.5)));
        let share = |arms: &[bool]| arms.iter().filter(|is| **is).count();
        assert!((4_800..5_200).contains(&share(&first)), "{}", share(&first));
        let same = first.iter().zip(&second).filter(|(one, other)| one == other).count();
        assert!((4_800..5_200).contains(&same), "{same}");
        // A larger share takes nobody out of the second arm.
        assert!(first.iter().zip(of(&trial(1, 0.7))).all(|(is, more)| !is || more));
        assert!((6_800..7_200).contains(&share(&of(&trial(1, 0.7)))));
    }
}
