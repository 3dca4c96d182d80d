use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use holdfast_feature_store::{ComparedFeature, ServedComparison, compare_served, forget_served};
use holdfast_types::Progress;

use super::metric::append;
use super::table;
use super::training_set::memory;
use crate::commands::{grouped, print, print_json};
use crate::error::CliError;
use crate::models::registry::{commented, time};
use crate::progress::Terminal;
use crate::project::Project;

/// What came of comparisons, in `metric`.
const TABLE: &str = "feature_consistency";

/// Work out again from history what `holdfast serve --log-served` kept, and compare; one value that differs fails the command
#[derive(Debug, clap::Args)]
pub(crate) struct ConsistencyArgs {
    /// Compare, and neither write what came of it nor forget what was compared
    #[arg(long)]
    dry_run: bool,
    /// Print what was compared as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(project: &Project, args: &ConsistencyArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let lake = if args.dry_run { project.open_lake().await? } else { project.open_lake_to_write().await? };
    let comparison = compare_served(&lake, memory(project)).await?;
    if !args.dry_run && comparison.answers > 0 {
        let rows = rows(&comparison.features, lake.clock().now())?;
        append(
            &lake,
            TABLE,
            "One row is a feature in a comparison of served values with those that its history gives",
            &rows,
        )
        .await?;
        // Last: what was compared and not written is compared again.
        forget_served(&lake, &comparison).await?;
    }
    if args.json {
        print_json(&comparison)?;
    } else if comparison.answers == 0 {
        terminal.note("  Nothing was kept of what was served: start `holdfast serve` with --log-served");
    } else {
        print(&listed(&comparison))?;
    }
    match comparison.mismatches() {
        0 => Ok(()),
        mismatches => Err(CliError::Inconsistent { mismatches, values: values(&comparison) }),
    }
}

fn values(comparison: &ServedComparison) -> u64 {
    comparison.features.iter().map(|feature| feature.values).sum()
}

fn listed(comparison: &ServedComparison) -> String {
    let rows: Vec<[String; 4]> = comparison
        .features
        .iter()
        .map(|feature| {
            [
                format!("{}@v{}", feature.view, feature.version),
                feature.feature.clone().unwrap_or_else(|| "(status)".to_owned()),
                grouped(feature.values),
                grouped(feature.mismatches),
            ]
        })
        .collect();
    let found = match comparison.mismatches() {
        0 => "all are those of history".to_owned(),
        differing => format!("{} differ", grouped(differing)),
    };
    let (answers, rows_served) = (grouped(comparison.answers), grouped(comparison.rows));
    format!(
        "{}\n{answers} answers of {rows_served} rows, {} values: {found}\n",
        table(["view", "feature", "values", "differ"], &rows),
        grouped(values(comparison))
    )
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        commented("compared_at", time(), "When it was compared"),
        commented("feature_view", DataType::Utf8, "The feature view"),
        commented("view_version", DataType::Int32, "Its version"),
        commented("feature", DataType::Utf8, "The feature; null for the view's own status and event timestamp"),
        commented("history_table", DataType::Utf8, "The history that it was worked out from"),
        commented("values_compared", DataType::Int64, "Served values that were compared"),
        commented("mismatches", DataType::Int64, "Those that differ, or whose status does: none is right"),
        commented("served_first", time(), "When the first of them was served"),
        commented("served_last", time(), "When the last of them was served"),
    ]))
}

fn rows(features: &[ComparedFeature], now: DateTime<Utc>) -> Result<RecordBatch, CliError> {
    let moments = |moments: Vec<DateTime<Utc>>| -> ArrayRef {
        let moments = moments.iter().map(DateTime::timestamp_micros);
        Arc::new(TimestampMicrosecondArray::from_iter_values(moments).with_timezone("UTC"))
    };
    let counts = |of: fn(&ComparedFeature) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(
            features.iter().map(|feature| i64::try_from(of(feature)).unwrap_or(i64::MAX)),
        ))
    };
    let versions = features.iter().map(|feature| i32::try_from(feature.version).unwrap_or(i32::MAX));
    let columns: Vec<ArrayRef> = vec![
        moments(vec![now; features.len()]),
        Arc::new(StringArray::from_iter_values(features.iter().map(|feature| &feature.view))),
        Arc::new(Int32Array::from_iter_values(versions)),
        Arc::new(StringArray::from_iter(features.iter().map(|feature| feature.feature.as_ref()))),
        Arc::new(StringArray::from_iter_values(features.iter().map(|feature| feature.table.to_string()))),
        counts(|feature| feature.values),
        counts(|feature| feature.mismatches),
        moments(features.iter().map(|feature| feature.served_first).collect()),
        moments(features.iter().map(|feature| feature.served_last).collect()),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
