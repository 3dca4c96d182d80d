//! Minimum, maximum and null count of a file's columns: from Parquet into the Delta log, and from the log into plans.
//!
//! The Delta protocol asks for JSON with `numRecords`, `minValues`, `maxValues` and `nullCount`. Personal data stays out: columns tagged
//! `pii`, and everything nested, get no values.

use arrow::array::Array;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use holdfast_types::PII_KEY;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::file::metadata::ParquetMetaData;
use serde_json::{Map, Value, json};

/// Only this many leading columns get statistics, as Delta does by default.
const COLUMNS_MAX: usize = 32;

/// Longer texts get no minimum and maximum: they would swell the log.
const TEXT_BYTES_MAX: usize = 64;

pub(crate) fn is_personal(field: &Field) -> bool {
    field.metadata().get(PII_KEY).is_some_and(|value| value == "true")
}

/// The statistics of a file for the Delta log.
pub(crate) fn to_json(schema: &Schema, file: &ParquetMetaData) -> String {
    let mut minima = Map::new();
    let mut maxima = Map::new();
    let mut nulls = Map::new();
    for field in schema.fields().iter().take(COLUMNS_MAX) {
        if is_personal(field) || field.data_type().is_nested() {
            continue;
        }
        let Ok(converter) = StatisticsConverter::try_new(field.name(), schema, file.file_metadata().schema_descr())
        else {
            continue;
        };
        let groups = file.row_groups();
        if let Ok(counts) = converter.row_group_null_counts(groups)
            && counts.null_count() == 0
        {
            nulls.insert(field.name().clone(), json!(counts.iter().flatten().sum::<u64>()));
        }
        if let Ok(values) = converter.row_group_mins(groups)
            && let Some(value) = extreme(&values, std::cmp::Ordering::Less)
        {
            minima.insert(field.name().clone(), value);
        }
        if let Ok(values) = converter.row_group_maxes(groups)
            && let Some(value) = extreme(&values, std::cmp::Ordering::Greater)
        {
            maxima.insert(field.name().clone(), value);
        }
    }
    json!({
        "numRecords": file.file_metadata().num_rows(),
        "minValues": minima,
        "maxValues": maxima,
        "nullCount": nulls,
    })
    .to_string()
}

/// The smallest or largest of the row groups' values, as JSON; `None` when it is unknown for any of them that has values.
fn extreme(values: &dyn Array, keep: std::cmp::Ordering) -> Option<Value> {
    let mut best: Option<ScalarValue> = None;
    for row in 0..values.len() {
        let value = ScalarValue::try_from_array(values, row).ok()?;
        if value.is_null() {
            // A row group of nulls only has no extreme; one whose extreme was not recorded looks the same, so be silent.
            return None;
        }
        best = match best {
            Some(current) if value.partial_cmp(&current) != Some(keep) => Some(current),
            _ => Some(value),
        };
    }
    scalar_to_json(&best?)
}

fn scalar_to_json(value: &ScalarValue) -> Option<Value> {
    Some(match value {
        ScalarValue::Int8(Some(value)) => json!(value),
        ScalarValue::Int16(Some(value)) => json!(value),
        ScalarValue::Int32(Some(value)) => json!(value),
        ScalarValue::Int64(Some(value)) => json!(value),
        ScalarValue::Float32(Some(value)) if value.is_finite() => json!(value),
        ScalarValue::Float64(Some(value)) if value.is_finite() => json!(value),
        ScalarValue::Utf8(Some(value)) if value.len() <= TEXT_BYTES_MAX => json!(value),
        ScalarValue::Date32(Some(days)) => {
            let date = chrono::DateTime::from_timestamp(i64::from(*days) * 86_400, 0)?;
            json!(date.format("%Y-%m-%d").to_string())
        }
        ScalarValue::TimestampMicrosecond(Some(micros), zone) => {
            // The protocol cuts to milliseconds; readers know.
            let moment = chrono::DateTime::from_timestamp_micros(*micros)?;
            let text = moment.format("%Y-%m-%dT%H:%M:%S%.3f").to_string();
            json!(if zone.is_some() { format!("{text}Z") } else { text })
        }
        _ => return None,
    })
}

/// The rows of a file, if the log says.
pub(crate) fn record_count(stats: Option<&str>) -> Option<u64> {
    serde_json::from_str::<Value>(stats?).ok()?.get("numRecords")?.as_u64()
}

/// What the log says about a file, for planning. `schema` is the table's, partition columns last; `partition_values` are theirs.
pub(crate) fn from_json(stats: Option<&str>, schema: &SchemaRef, partition_values: &[ScalarValue]) -> Statistics {
    let parsed: Value = stats.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
    let rows = parsed.get("numRecords").and_then(Value::as_u64).and_then(|rows| usize::try_from(rows).ok());
    let file_columns = schema.fields().len() - partition_values.len();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields().iter().take(file_columns) {
        let of = |part: &str| parsed.get(part).and_then(|values| values.get(field.name()));
        let mut column = ColumnStatistics::new_unknown();
        if let Some(value) = of("minValues").and_then(|value| json_to_scalar(value, field.data_type(), 0)) {
            column.min_value = Precision::Exact(value);
        }
        // Maxima of timestamps are cut to milliseconds: the true one may be up to 999 µs later.
        if let Some(value) = of("maxValues").and_then(|value| json_to_scalar(value, field.data_type(), 999)) {
            column.max_value = Precision::Exact(value);
        }
        if let Some(count) = of("nullCount").and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok()) {
            column.null_count = Precision::Exact(count);
        }
        columns.push(column);
    }
    for value in partition_values {
        let mut column = ColumnStatistics::new_unknown();
        if value.is_null() {
            column.null_count = rows.map_or(Precision::Absent, Precision::Exact);
        } else {
            column.min_value = Precision::Exact(value.clone());
            column.max_value = Precision::Exact(value.clone());
            column.null_count = Precision::Exact(0);
        }
        columns.push(column);
    }
    Statistics {
        num_rows: rows.map_or(Precision::Absent, Precision::Exact),
        total_byte_size: Precision::Absent,
        column_statistics: columns,
    }
}

/// The statistics with every extreme marked as a bound, not a value that occurs: cut and rounded extremes may prune, but not answer `max(x)`.
pub(crate) fn as_bounds(statistics: &Statistics) -> Statistics {
    let mut bounds = statistics.clone();
    for column in &mut bounds.column_statistics {
        column.min_value = std::mem::replace(&mut column.min_value, Precision::Absent).to_inexact();
        column.max_value = std::mem::replace(&mut column.max_value, Precision::Absent).to_inexact();
    }
    bounds
}

fn json_to_scalar(value: &Value, data_type: &DataType, extra_micros: i64) -> Option<ScalarValue> {
    Some(match data_type {
        DataType::Int8 => ScalarValue::Int8(Some(i8::try_from(value.as_i64()?).ok()?)),
        DataType::Int16 => ScalarValue::Int16(Some(i16::try_from(value.as_i64()?).ok()?)),
        DataType::Int32 => ScalarValue::Int32(Some(i32::try_from(value.as_i64()?).ok()?)),
        DataType::Int64 => ScalarValue::Int64(Some(value.as_i64()?)),
        DataType::Float64 => ScalarValue::Float64(Some(value.as_f64()?)),
        DataType::Utf8 => ScalarValue::Utf8(Some(value.as_str()?.to_owned())),
        DataType::Date32 => {
            let date = chrono::NaiveDate::parse_from_str(value.as_str()?, "%Y-%m-%d").ok()?;
            let days = date.signed_duration_since(chrono::NaiveDate::default()).num_days();
            ScalarValue::Date32(Some(i32::try_from(days).ok()?))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let text = value.as_str()?;
            let micros = match chrono::DateTime::parse_from_rfc3339(text) {
                Ok(moment) => moment.timestamp_micros(),
                Err(_) => chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f")
                    .ok()?
                    .and_utc()
                    .timestamp_micros(),
            };
            ScalarValue::TimestampMicrosecond(Some(micros + extra_micros), zone.clone())
        }
        _ => return None,
    })
}

/// A partition value as the log writes it, in the column's type. `None` when it cannot be read.
pub(crate) fn partition_scalar(text: Option<&str>, data_type: &DataType) -> Option<ScalarValue> {
    match text {
        None | Some("") => ScalarValue::try_from(data_type).ok(),
        Some(text) => ScalarValue::try_from_string(text.to_owned(), data_type).ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))), true),
            Field::new("day", DataType::Date32, true),
            Field::new("bucket", DataType::Int32, true),
        ]))
    }

    #[test]
    fn a_timestamp_maximum_cut_to_milliseconds_still_covers_its_row() {
        let stats = r#"{"numRecords":3,"minValues":{"at":"2025-01-01T00:00:00.123Z"},"maxValues":{"at":"2025-01-01T00:00:00.123Z"},"nullCount":{"at":0}}"#;
        let statistics = from_json(Some(stats), &schema(), &[ScalarValue::Int32(Some(2))]);
        let Precision::Exact(ScalarValue::TimestampMicrosecond(Some(max), _)) =
            statistics.column_statistics[0].max_value
        else {
            panic!("no maximum");
        };
        assert_eq!(max % 1_000_000, 123_999);
        assert_eq!(statistics.num_rows, Precision::Exact(3));
    }

    #[test]
    fn a_null_partition_value_is_not_claimed_to_be_without_nulls() {
        let statistics = from_json(Some(r#"{"numRecords":3}"#), &schema(), &[ScalarValue::Int32(None)]);
        assert_eq!(statistics.column_statistics[2].null_count, Precision::Exact(3));
    }

    #[test]
    fn dates_survive_the_log() {
        let day = ScalarValue::Date32(Some(20_000));
        let json = scalar_to_json(&day).unwrap();
        assert_eq!(json_to_scalar(&json, &DataType::Date32, 0).unwrap(), day);
    }
}
