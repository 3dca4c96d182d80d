//! One training of a model of repeat buying: fitted to days with a purchase, judged by the weeks behind them, and what comes of it is a version like all others.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, TimestampMicrosecondType};
use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use holdfast_engine::{EngineError, LakeReader, Published};
use holdfast_models::lifetime::{BgNbd, Cohort, GammaGamma, History, ParetoNbd, RepeatBuying, Spend};
use holdfast_models::{Bootstrap, Measure, ModelError, Scores, report};
use holdfast_types::{CUSTOMER_ID, Progress};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::spec::{Buying, LifetimeSpec};
use super::stored::{ENDING, Parameters};
use crate::error::CliError;
use crate::models::fit::{MeasureRow, measure_rows};
use crate::models::moments::{end_of_day, midnight};
use crate::models::registry::{CHAMPION, Registry, Version, publish, tables, unwritable};
use crate::models::snapshots::{literal, moment_of, quoted};
use crate::models::train::{TrainOptions, Trained, id_of, said_without};

/// Raised when the same purchases would give other parameters.
const TRAINING_VERSION: &str = "1";

#[derive(Debug, Serialize)]
pub(crate) struct MadeLifetime {
    pub(crate) model: String,
    pub(crate) description: String,
    pub(crate) version: i32,
    pub(crate) dataset_id: String,
    pub(crate) artefact_hash: String,
    pub(crate) label: &'static str,
    pub(crate) parameters: Parameters,
    pub(crate) customers: LifetimeCounts,
    /// Up to when purchases were learnt from, and up to when they judged.
    pub(crate) learnt_until: DateTime<Utc>,
    pub(crate) judged_until: DateTime<Utc>,
    /// Purchases a customer in the time that judges: expected, and made.
    pub(crate) expected: f64,
    pub(crate) made: f64,
    pub(crate) champion: Option<i32>,
    pub(crate) measures: Vec<MeasureRow>,
}

/// Customers by what they tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LifetimeCounts {
    pub(crate) learning: u64,
    /// With a second purchase: they tell amounts.
    pub(crate) repeaters: u64,
}

/// What customers did up to a moment, and whether they came back.
#[derive(Debug, Default)]
struct Customers {
    histories: Vec<History>,
    spends: Vec<Spend>,
    /// Days with a purchase in the time that judges.
    later: Vec<f64>,
}

/// Fits the model of a spec, unless a version was fitted to the same.
///
/// # Errors
/// Mistakes of the spec with their lines, purchases that tell no parameters, and what the lake answers. Nothing is kept then.
pub(crate) async fn train(
    spec: &LifetimeSpec,
    registry: &Registry,
    options: &TrainOptions,
    progress: &dyn Progress,
) -> Result<Trained<MadeLifetime>, CliError> {
    let name = spec.file.purchases.table.get_ref();
    let Some(table) = registry.lake.table(name).await? else {
        return Err(CliError::NoModel(format!(
            "{name} is not in the lake yet: make it with `holdfast run --select +{name}`"
        )));
    };
    let as_of = match options.as_of {
        Some(as_of) => as_of,
        None => registry.lake.latest_manifest().await?.map_or_else(|| registry.lake.clock().now(), |run| run.as_of),
    };
    let read = LakeReader::newest_of(&registry.lake, &registry.settings, std::slice::from_ref(name)).await?;
    check(spec, &read).await?;
    let until = last_day(spec, &read, as_of).await?;
    let version = table.data_version().await?;
    let dataset_id = dataset_id(spec, version, until)?;
    let versions = registry.versions(Some(&spec.name)).await?;
    if let Some(same) = Trained::before(&versions, &dataset_id, options) {
        return Ok(same);
    }

    let model = &spec.file.model;
    let days = i64::from(*model.unit_days.get_ref()) * i64::from(*model.judged_units.get_ref());
    let cutoff = until - TimeDelta::days(days);
    let customers = read_customers(spec, &read, cutoff, until).await?;
    progress.note(&format!("  Fitting to {} customers up to {}", customers.histories.len(), cutoff.date_naive()));
    let spec_owned = spec.clone();
    // The search keeps cores busy for as long as it takes.
    let fitted = tokio::task::spawn_blocking(move || fit(&spec_owned, &customers)).await;
    let fitted = fitted.map_err(|error| CliError::PartEnded(format!("training ended early: {error}")))??;

    let champion = registry.alias(&spec.name, CHAMPION).await?;
    let notes = json!({
        "parameters": fitted.parameters,
        "log_likelihood": fitted.log_likelihood,
        "purchases_expected": fitted.expected,
        "purchases_made": fitted.made,
        "spend_and_repeats_correlation": fitted.correlation,
    });
    let version = Version {
        model: spec.name.clone(),
        version: 0,
        trained_at: registry.lake.clock().now(),
        trained_by: options.by.clone(),
        dataset_id: dataset_id.clone(),
        spec: spec.text.clone(),
        feature_stage: name.to_string(),
        feature_fingerprint: String::new(),
        tables: json!({ name.to_string(): version }).to_string(),
        moments: json!({ "train": [cutoff], "test": [until] }).to_string(),
        labels_end: cutoff,
        signature: json!(["frequency", "recency", "age", "monetary"]).to_string(),
        engine: fitted.parameters.label().to_owned(),
        rounds: 0,
        artefact: String::new(),
        artefact_hash: String::new(),
        artefact_bytes: 0,
        examples: String::new(),
        examples_hash: String::new(),
        calibrator: json!({ "method": "none" }).to_string(),
        profile: "[]".to_owned(),
        notes: notes.to_string(),
        rows: serde_json::to_string(&fitted.counts).map_err(unwritable)?,
        measures: fitted.measures.clone(),
    };
    let artefact = serde_json::to_vec(&fitted.parameters).map_err(unwritable)?;
    let kept = registry.keep(version, (artefact, ENDING), fitted.parameters.probes()?).await?;
    publish(&registry.lake, &tables()?).await?;
    Ok(Trained::Made(Box::new(MadeLifetime {
        model: kept.model,
        description: spec.file.description.clone(),
        version: kept.version,
        dataset_id,
        artefact_hash: kept.artefact_hash,
        label: fitted.parameters.label(),
        parameters: fitted.parameters,
        customers: fitted.counts,
        learnt_until: cutoff,
        judged_until: until,
        expected: fitted.expected,
        made: fitted.made,
        champion,
        measures: fitted.measures,
    })))
}

/// Changes with everything that could make other parameters: the file but for its words, the version of the table, the day.
fn dataset_id(spec: &LifetimeSpec, version: u64, until: DateTime<Utc>) -> Result<String, CliError> {
    let said = said_without(&spec.text, &["description"])?;
    Ok(id_of(TRAINING_VERSION, &[said, version.to_string(), until.to_rfc3339()]))
}

/// Tells mistakes in what the file says of the table, each part at its place.
async fn check(spec: &LifetimeSpec, read: &Published) -> Result<(), CliError> {
    let section = &spec.file.purchases;
    let table = section.table.get_ref();
    let (time, amount) = (moment_of(section.time.get_ref()), quoted(section.amount.get_ref()));
    let condition = section.condition.as_ref().map(|said| said.span().start);
    for (sql, place, what) in [
        (format!("select {CUSTOMER_ID} from {table}"), section.table.span().start, "table"),
        (format!("select {time} from {table}"), section.time.span().start, "time"),
        (format!("select cast({amount} as double) from {table}"), section.amount.span().start, "amount"),
        (format!("select 1 from {table} where {}", spec.counted()), condition.unwrap_or(0), "where"),
    ] {
        match read.rows("looking at purchases", &format!("{sql} limit 0")).await {
            Ok(_) => {}
            Err(EngineError::Query { message }) => {
                return Err(spec.mistake(place, format!("[purchases] {what}: {message}")));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The end of the last day with a purchase, at most `as_of`: behind it nobody is known to have bought nothing.
async fn last_day(spec: &LifetimeSpec, read: &Published, as_of: DateTime<Utc>) -> Result<DateTime<Utc>, CliError> {
    let section = &spec.file.purchases;
    let (table, time) = (section.table.get_ref(), moment_of(section.time.get_ref()));
    let sql = format!(
        "select max({time}) as last from {table} where {CUSTOMER_ID} is not null and {} and {time} <= {}",
        spec.counted(),
        literal(as_of)
    );
    let batches: Vec<RecordBatch> = read.rows("looking for the last purchase", &sql).await?.try_collect().await?;
    let last = batches.iter().find(|batch| batch.num_rows() > 0).and_then(|batch| {
        let column = batch.column(0).as_primitive_opt::<TimestampMicrosecondType>()?;
        column.is_valid(0).then(|| DateTime::from_timestamp_micros(column.value(0))).flatten()
    });
    match last {
        Some(last) => Ok(midnight(end_of_day(last).min(as_of))),
        None => Err(CliError::Training(format!(
            "{table} has no purchase up to {}: bring it up to date with `holdfast run`, or look at `where` in {}",
            as_of.date_naive(),
            spec.path.display()
        ))),
    }
}

/// Customers who had bought by `cutoff`, as they were then, with what they did up to `until`.
async fn read_customers(
    spec: &LifetimeSpec,
    read: &Published,
    cutoff: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<Customers, CliError> {
    let section = &spec.file.purchases;
    let table = section.table.get_ref();
    let (time, amount) = (moment_of(section.time.get_ref()), quoted(section.amount.get_ref()));
    let (cutoff, until) = (literal(cutoff), literal(until));
    // Purchases of one day are one; the first makes a customer, and is no repeat.
    let sql = format!(
        "with bought as (select {CUSTOMER_ID} as customer, cast({time} as date) as day, sum({amount}) as amount from {table} \
         where {CUSTOMER_ID} is not null and {time} < {until} and {counted} group by {CUSTOMER_ID}, cast({time} as date)), \
         known as (select customer, day, amount, min(day) over (partition by customer) as first_day from bought) \
         select cast(count(*) filter (where day < cast({cutoff} as date)) as double) as days, \
         cast(max(day) filter (where day < cast({cutoff} as date)) - min(day) as double) as last, \
         cast(cast({cutoff} as date) - min(day) as double) as observed, \
         cast(sum(amount) filter (where day > first_day and day < cast({cutoff} as date)) as double) / (count(*) filter (where day > first_day and day < cast({cutoff} as date))) as mean, \
         cast(count(*) filter (where day >= cast({cutoff} as date)) as double) as later \
         from known group by customer having min(day) < cast({cutoff} as date) \
         order by days, last, observed, mean, later",
        counted = spec.counted(),
    );
    // In one order, since sums depend on it: the same purchases give the same parameters to the last digit.
    let batches: Vec<RecordBatch> =
        read.rows(&format!("reading the purchases of {table}"), &sql).await?.try_collect().await?;
    let unit = f64::from(*spec.file.model.unit_days.get_ref());
    let mut found = Customers::default();
    for batch in &batches {
        let columns: Vec<ArrayRef> = batch
            .columns()
            .iter()
            .map(|column| arrow::compute::cast(column, &DataType::Float64))
            .collect::<Result<_, _>>()?;
        let value = |column: usize, row: usize| {
            let column = columns[column].as_primitive::<Float64Type>();
            column.is_valid(row).then(|| column.value(row))
        };
        for row in 0..batch.num_rows() {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of days")]
            let repeats = (value(0, row).unwrap_or(1.0) - 1.0).max(0.0) as u32;
            let (last, observed) = (value(1, row).unwrap_or(0.0) / unit, value(2, row).unwrap_or(0.0) / unit);
            found.histories.push(History::new(repeats, last, observed, found.histories.len())?);
            // What came back in the end is no amount; such customers tell nothing of amounts.
            let mean = value(3, row).filter(|mean| *mean > 0.0);
            found.spends.push(Spend { repeats: mean.map_or(0, |_| repeats), mean: mean.unwrap_or(0.0) });
            found.later.push(value(4, row).unwrap_or(0.0));
        }
    }
    Ok(found)
}

struct Fitted {
    parameters: Parameters,
    log_likelihood: f64,
    /// Of repeats and mean amount: the gamma-gamma model takes it for none.
    correlation: Option<f64>,
    counts: LifetimeCounts,
    expected: f64,
    made: f64,
    measures: Vec<MeasureRow>,
}

fn fit(spec: &LifetimeSpec, customers: &Customers) -> Result<Fitted, CliError> {
    let table = spec.file.purchases.table.get_ref();
    let failed = |error: ModelError| {
        CliError::Training(format!(
            "the purchases of {table} tell no model of repeat buying: {error}; take more customers, a longer history, or look at `where` in {}",
            spec.path.display()
        ))
    };
    let cohort = Cohort::new(customers.histories.iter().copied()).map_err(failed)?;
    let is_pareto = spec.file.model.of == Buying::ParetoNbd;
    let (buying, log_likelihood) = if is_pareto {
        let fit = ParetoNbd::fit(&cohort).map_err(failed)?;
        (fit.model.parameters(), fit.log_likelihood)
    } else {
        let fit = BgNbd::fit(&cohort).map_err(failed)?;
        (fit.model.parameters(), fit.log_likelihood)
    };
    let (amounts, _) = GammaGamma::fit(&customers.spends).map_err(failed)?;
    let value = &spec.file.value;
    let parameters = Parameters {
        buying,
        is_pareto,
        amounts: [amounts.p, amounts.q, amounts.v],
        unit_days: *spec.file.model.unit_days.get_ref(),
        units: *value.units.get_ref(),
        discount: *value.discount.get_ref(),
        margin: *value.margin.get_ref(),
    };

    let ahead = f64::from(*spec.file.model.judged_units.get_ref());
    let labels: Vec<bool> = customers.later.iter().map(|later| *later < 0.5).collect();
    let gone = labels.iter().filter(|label| **label).count();
    if gone == 0 || gone == labels.len() {
        let who = if gone == 0 { "everybody" } else { "nobody" };
        return Err(CliError::Training(format!(
            "{who} bought in the {ahead:.0} units that judge: take other `judged_units` in {}",
            spec.path.display()
        )));
    }
    let none: Vec<f64> =
        customers.histories.iter().map(|history| parameters.none(history, ahead).clamp(0.0, 1.0)).collect();
    // Who has been away for longest is most at risk.
    let away: Vec<f64> = customers.histories.iter().map(|history| history.observed - history.last).collect();
    let report = report(
        &Scores::probabilities(&none, &labels)?,
        &Scores::ranking(&away, &labels)?,
        &Measure::USUAL,
        &Bootstrap::default(),
    )?;
    let mean = |sum: f64| sum / labels.len() as f64;
    let expected = customers.histories.iter().map(|history| parameters.expected(history, ahead)).sum();
    Ok(Fitted {
        log_likelihood,
        correlation: GammaGamma::correlation(&customers.spends),
        counts: LifetimeCounts {
            learning: labels.len() as u64,
            repeaters: customers.spends.iter().filter(|spend| spend.repeats > 0).count() as u64,
        },
        expected: mean(expected),
        made: mean(customers.later.iter().sum()),
        measures: measure_rows("out_of_time", "recency", &report),
        parameters,
    })
}
