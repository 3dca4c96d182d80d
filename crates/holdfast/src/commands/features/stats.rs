use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use holdfast_engine::{LakeReader, Published, Registry, ViewVersion};
use holdfast_lake::{Lake, LakeError};
use holdfast_models::{Drift, Profile, Shift};
use holdfast_types::Progress;
use serde::{Deserialize, Serialize};

use super::metric::append;
use super::table;
use crate::commands::{grouped, print, print_json};
use crate::error::CliError;
use crate::models::registry::{commented, time};
use crate::progress::Terminal;
use crate::project::Project;

/// Statistics of features, in `metric`.
const TABLE: &str = "feature_stats";
const BASELINES: &str = "features/baselines";
/// The ranks that are told of numbers.
const RANKS: [(&str, f64); 5] = [("p05", 0.05), ("p25", 0.25), ("p50", 0.5), ("p75", 0.75), ("p95", 0.95)];

/// Look at the features of the newest run: missing values, distinct ones, quantiles; and how far they moved from a baseline
#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// Only these views [default: all]
    #[arg(long, value_name = "VIEW", num_args = 1..)]
    views: Vec<String>,
    /// Keep what features look like now under a name, as a baseline
    #[arg(long, value_name = "NAME")]
    keep_baseline: Option<String>,
    /// How far features moved from this baseline: population stability index and Kolmogorov-Smirnov distance
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Fail when a feature moved so far from the baseline
    #[arg(long, value_name = "SHIFT", requires = "baseline")]
    fail_on: Option<FailOn>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FailOn {
    Moderate,
    Large,
}

/// What features looked like once: by view with its version, then feature.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    made_at: DateTime<Utc>,
    run: u64,
    views: BTreeMap<String, BTreeMap<String, Profile>>,
}

/// A feature in the newest run.
#[derive(Debug, Serialize)]
struct FeatureStats {
    view: String,
    version: u32,
    feature: String,
    data_type: String,
    rows: u64,
    nulls: u64,
    distinct: Option<u64>,
    numbers: Option<Numbers>,
    drift: Option<Drift>,
    shift: Option<Shift>,
}

/// What a feature of numbers looks like, missing values aside.
#[derive(Debug, Serialize)]
struct Numbers {
    least: f64,
    quantiles: [f64; RANKS.len()],
    greatest: f64,
    mean: f64,
}

pub(crate) async fn run(project: &Project, args: &StatsArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let lake = project.open_lake_to_write().await?;
    let run = LakeReader::open(lake.clone(), project.reader_settings()).await?.current();
    let views = chosen(Registry::new(&lake).views().await?, &args.views)?;
    let baseline = match &args.baseline {
        Some(name) => Some(read_baseline(&lake, name).await?),
        None => None,
    };
    let mut stats = Vec::new();
    let mut profiles: BTreeMap<String, BTreeMap<String, Profile>> = BTreeMap::new();
    for view in &views {
        let name = format!("{}@v{}", view.view.name, view.version);
        if run.table(&view.view.table).is_none() {
            terminal.note(&format!("  Skipped {name}  no published run has made {}", view.view.table));
            continue;
        }
        let known = baseline.as_ref().and_then(|baseline| baseline.views.get(&name));
        for feature in &view.view.features {
            let looked = look(&run, view, &feature.name, known.and_then(|known| known.get(&feature.name))).await?;
            let (of_feature, profile) = looked;
            stats.push(of_feature);
            if let Some(profile) = profile {
                profiles.entry(name.clone()).or_default().insert(feature.name.clone(), profile);
            }
        }
    }
    if stats.is_empty() {
        return Err(CliError::Argument("no feature view is there yet: `holdfast run` makes them".to_owned()));
    }
    let now = lake.clock().now();
    let rows = rows(&stats, run.sequence(), args.baseline.as_deref(), now)?;
    append(
        &lake,
        TABLE,
        "One row is a feature in a run: what it looked like, and how far it was from a baseline",
        &rows,
    )
    .await?;
    if let Some(name) = &args.keep_baseline {
        keep_baseline(&lake, name, &Baseline { made_at: now, run: run.sequence(), views: profiles }).await?;
        terminal.note(&format!("     Kept baseline `{name}` of run {}", run.sequence()));
    }
    if args.json {
        print_json(&stats)?
    } else {
        print(&listed(&stats))?
    }
    judge(&stats, args, terminal)
}

/// The views, or those of these names.
fn chosen(views: Vec<ViewVersion>, names: &[String]) -> Result<Vec<ViewVersion>, CliError> {
    if let Some(unknown) = names.iter().find(|name| views.iter().all(|view| view.view.name != **name)) {
        let known = views.iter().map(|view| view.view.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(CliError::Argument(format!("no feature view is called `{unknown}`; there are: {known}")));
    }
    Ok(views.into_iter().filter(|view| names.is_empty() || names.contains(&view.view.name)).collect())
}

/// Reads one column of the view's table.
async fn look(
    run: &Published,
    view: &ViewVersion,
    feature: &str,
    baseline: Option<&Profile>,
) -> Result<(FeatureStats, Option<Profile>), CliError> {
    let table = &view.view.table;
    let column = format!("\"{}\"", feature.replace('"', "\"\""));
    let what = format!("the statistics of {table}.{feature}");
    let schema = run.table(table).map(|table| Arc::clone(&table.schema));
    let field = schema.as_ref().and_then(|schema| schema.field_with_name(feature).ok());
    let data_type = field.map_or(DataType::Null, |field| field.data_type().clone());
    let mut stats = FeatureStats {
        view: view.view.name.clone(),
        version: view.version,
        feature: feature.to_owned(),
        data_type: data_type.to_string(),
        rows: 0,
        nulls: 0,
        distinct: None,
        numbers: None,
        drift: None,
        shift: None,
    };
    if !(data_type.is_numeric() || data_type == DataType::Boolean) {
        let is_plain = !data_type.is_nested();
        let distinct = if is_plain {
            format!("cast(approx_distinct({column}) as bigint)")
        } else {
            "cast(null as bigint)".to_owned()
        };
        let sql = format!("select count(*) as a, count({column}) as b, {distinct} as c from {table}");
        let batches: Vec<RecordBatch> = run.rows(&what, &sql).await?.try_collect().await?;
        for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
            let number = |at: usize| -> Option<u64> {
                let column = cast(batch.column(at), &DataType::Int64).ok()?;
                (!column.is_null(0)).then(|| u64::try_from(column.as_primitive::<Int64Type>().value(0)).unwrap_or(0))
            };
            stats.rows = number(0).unwrap_or(0);
            stats.nulls = stats.rows - number(1).unwrap_or(0).min(stats.rows);
            stats.distinct = number(2);
        }
        return Ok((stats, None));
    }
    let mut values: Vec<Option<f64>> = Vec::new();
    let mut batches = run.rows(&what, &format!("select {column} from {table}")).await?;
    while let Some(batch) = batches.try_next().await? {
        let numbers = cast(batch.column(0), &DataType::Float64)?;
        values.extend(numbers.as_primitive::<Float64Type>());
    }
    stats.rows = values.len() as u64;
    let mut sorted: Vec<f64> = values.iter().flatten().copied().filter(|value| !value.is_nan()).collect();
    stats.nulls = stats.rows - sorted.len() as u64;
    sorted.sort_unstable_by(f64::total_cmp);
    stats.distinct = Some(sorted.chunk_by(|left, right| left.total_cmp(right).is_eq()).count() as u64);
    stats.numbers = numbers(&sorted);
    // What is infinite has no place among others: such a feature has quantiles and no drift.
    if values.is_empty() || sorted.iter().any(|value| value.is_infinite()) {
        return Ok((stats, None));
    }
    if let Some(baseline) = baseline {
        let drift = baseline.drift(values.iter().copied())?;
        stats.shift = Some(drift.shift());
        stats.drift = Some(drift);
    }
    Ok((stats, Some(Profile::of(values)?)))
}

/// Of values in ascending order.
fn numbers(sorted: &[f64]) -> Option<Numbers> {
    let (least, greatest) = (*sorted.first()?, *sorted.last()?);
    let at = |share: f64| sorted[rank(share, sorted.len())];
    Some(Numbers {
        least,
        quantiles: RANKS.map(|(_, share)| at(share)),
        greatest,
        mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
    })
}

/// Where the least value stands, of so many in ascending order, that a share of them are not above.
fn rank(share: f64, values: usize) -> usize {
    let (mut low, mut high) = (0, values.saturating_sub(1));
    while low < high {
        let middle = low + (high - low) / 2;
        if ((middle + 1) as f64) < share * values as f64 { low = middle + 1 } else { high = middle }
    }
    low
}

async fn read_baseline(lake: &Lake, name: &str) -> Result<Baseline, CliError> {
    let path = baseline_path(name)?;
    let Some(body) = lake.read_document(&path).await? else {
        let known = lake.documents(BASELINES).await?;
        let known: Vec<&str> = known.iter().filter_map(|name| name.strip_suffix(".json")).collect();
        let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        return Err(CliError::Argument(format!(
            "no baseline is called `{name}`, there are: {known}; `holdfast features stats --keep-baseline {name}` makes one"
        )));
    };
    serde_json::from_slice(&body)
        .map_err(|error| CliError::Lake(LakeError::Damaged { path, reason: error.to_string() }))
}

async fn keep_baseline(lake: &Lake, name: &str, baseline: &Baseline) -> Result<(), CliError> {
    let body = serde_json::to_vec(baseline).map_err(crate::models::registry::unwritable)?;
    if lake.create_document(&baseline_path(name)?, body.into()).await? {
        return Ok(());
    }
    Err(CliError::Argument(format!(
        "there is a baseline `{name}` already, and baselines do not change: give another name"
    )))
}

fn baseline_path(name: &str) -> Result<String, CliError> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) || name.starts_with('.')
    {
        return Err(CliError::Argument(format!("`{name}` is no name of a baseline: use letters, digits, _, - and .")));
    }
    Ok(format!("{BASELINES}/{name}.json"))
}

fn judge(stats: &[FeatureStats], args: &StatsArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let Some(baseline) = &args.baseline else { return Ok(()) };
    let moved =
        stats.iter().filter_map(|of| Some((of, of.drift?, of.shift?))).filter(|(_, _, shift)| *shift > Shift::None);
    let mut most = Shift::None;
    let mut count = 0;
    for (of, drift, shift) in moved {
        let ks = drift.ks.map_or_else(String::new, |ks| format!(", distance {ks:.3}"));
        terminal.problem(&format!("    Moved {}:{}  stability index {:.3}{ks}", of.view, of.feature, drift.psi));
        tracing::warn!(view = %of.view, feature = %of.feature, psi = drift.psi, baseline = %baseline, "a feature has moved");
        most = most.max(shift);
        count += 1;
    }
    let bar = match args.fail_on {
        Some(FailOn::Moderate) => Shift::Moderate,
        Some(FailOn::Large) => Shift::Large,
        None => return Ok(()),
    };
    if most >= bar {
        return Err(CliError::FeaturesMoved { moved: count, baseline: baseline.clone() });
    }
    Ok(())
}

fn listed(stats: &[FeatureStats]) -> String {
    let rows: Vec<[String; 8]> = stats
        .iter()
        .map(|of| {
            let number = |at: Option<f64>| at.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
            let quantile = |at: usize| number(of.numbers.as_ref().map(|numbers| numbers.quantiles[at]));
            [
                format!("{}@v{}:{}", of.view, of.version, of.feature),
                grouped(of.rows),
                format!("{:.2}%", of.nulls as f64 / (of.rows.max(1)) as f64 * 100.0),
                of.distinct.map_or_else(|| "-".to_owned(), grouped),
                quantile(0),
                quantile(2),
                quantile(4),
                number(of.drift.map(|drift| drift.psi)),
            ]
        })
        .collect();
    table(["feature", "rows", "missing", "distinct", "p05", "p50", "p95", "psi"], &rows)
}

fn schema() -> SchemaRef {
    let text = |name: &str, comment: &str| commented(name, DataType::Utf8, comment);
    let count = |name: &str, comment: &str| commented(name, DataType::Int64, comment);
    let number = |name: &str, comment: &str| commented(name, DataType::Float64, comment);
    let mut fields = vec![
        commented("measured_at", time(), "When it was measured"),
        count("run", "The published run whose table was read"),
        text("feature_view", "The feature view"),
        commented("view_version", DataType::Int32, "Its version"),
        text("feature", "The feature"),
        text("data_type", "Its type"),
        count("row_count", "Rows of the view's table"),
        count("null_count", "Rows without a value; not a number is none"),
        number("null_rate", "Their share"),
        count(
            "distinct_count",
            "Distinct values: exact for numbers, an estimate for texts, none for lists and structs",
        ),
        number("least", "The least number"),
    ];
    fields.extend(
        RANKS.map(|(name, share)| {
            number(name, &format!("The least value that {} % of all are not above", share * 100.0))
        }),
    );
    fields.extend([
        number("greatest", "The greatest number"),
        number("mean", "Their mean"),
        text("baseline", "What it was compared with, if it was"),
        number(
            "psi",
            "Population stability index against the baseline: from 0.1 look, from 0.25 it is another population",
        ),
        number("psi_by_chance", "What the index is above once in a thousand times when nothing moved"),
        number("ks", "Kolmogorov-Smirnov distance from the baseline"),
        text("shift", "none, moderate or large; by the index, and more than chance"),
    ]);
    Arc::new(Schema::new(fields))
}

fn rows(stats: &[FeatureStats], run: u64, baseline: Option<&str>, now: DateTime<Utc>) -> Result<RecordBatch, CliError> {
    let texts =
        |of: fn(&FeatureStats) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(stats.iter().map(of))) };
    let counts = |of: &dyn Fn(&FeatureStats) -> Option<u64>| -> ArrayRef {
        Arc::new(Int64Array::from_iter(stats.iter().map(|stats| i64::try_from(of(stats)?).ok())))
    };
    let numbers = |of: &dyn Fn(&FeatureStats) -> Option<f64>| -> ArrayRef {
        Arc::new(Float64Array::from_iter(stats.iter().map(of)))
    };
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from(vec![now.timestamp_micros(); stats.len()]).with_timezone("UTC")),
        counts(&|_| Some(run)),
        texts(|of| &of.view),
        Arc::new(Int32Array::from_iter(stats.iter().map(|of| i32::try_from(of.version).ok()))),
        texts(|of| &of.feature),
        texts(|of| &of.data_type),
        counts(&|of| Some(of.rows)),
        counts(&|of| Some(of.nulls)),
        numbers(&|of| (of.rows > 0).then(|| of.nulls as f64 / of.rows as f64)),
        counts(&|of| of.distinct),
        numbers(&|of| Some(of.numbers.as_ref()?.least)),
    ];
    for at in 0..RANKS.len() {
        columns.push(numbers(&|of| Some(of.numbers.as_ref()?.quantiles[at])));
    }
    let shifts = stats.iter().map(|of| {
        Some(match of.shift? {
            Shift::None => "none",
            Shift::Moderate => "moderate",
            Shift::Large => "large",
        })
    });
    columns.extend([
        numbers(&|of| Some(of.numbers.as_ref()?.greatest)),
        numbers(&|of| Some(of.numbers.as_ref()?.mean)),
        Arc::new(StringArray::from_iter(stats.iter().map(|of| of.drift.and(baseline)))) as ArrayRef,
        numbers(&|of| Some(of.drift?.psi)),
        numbers(&|of| Some(of.drift?.psi_by_chance)),
        numbers(&|of| of.drift?.ks),
        Arc::new(StringArray::from_iter(shifts)),
    ]);
    Ok(RecordBatch::try_new(schema(), columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let found = numbers(&values).unwrap();
        assert_eq!((found.least, found.quantiles, found.greatest), (1.0, [5.0, 25.0, 50.0, 75.0, 95.0], 100.0));
        let one = numbers(&[3.0]).unwrap();
        assert_eq!((one.quantiles, one.mean), ([3.0; 5], 3.0));
        assert!(numbers(&[]).is_none());
    }

    #[test]
    fn names_of_baselines_are_file_names() {
        assert_eq!(baseline_path("june-2026").unwrap(), "features/baselines/june-2026.json");
        for wrong in ["", "a/b", "..", ".x", "ä"] {
            assert!(baseline_path(wrong).is_err(), "{wrong}");
        }
    }
}
