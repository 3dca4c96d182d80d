use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Decimal128Type, Decimal256Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat};

use crate::record::{base64, push_text};

/// Writes a value of a column as JSON that a contract's parser reads back without loss: decimals, dates and timestamps are texts, a map is a
/// list of entries, and bytes are base64. What JSON has no number for, such as NaN, is a text, too, which no contract reads as a number.
///
/// # Errors
/// The type, when there is no way to write it.
pub(crate) fn write_value(out: &mut Vec<u8>, array: &dyn Array, row: usize) -> Result<(), String> {
    if array.is_null(row) {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    macro_rules! number {
        ($type:ty) => {
            out.extend_from_slice(array.as_primitive::<$type>().value(row).to_string().as_bytes())
        };
    }
    match array.data_type() {
        DataType::Boolean => out.extend_from_slice(array.as_boolean().value(row).to_string().as_bytes()),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float16 => float(out, array.as_primitive::<Float16Type>().value(row).to_f64()),
        // Written as what it is, not as the next double.
        DataType::Float32 => match array.as_primitive::<Float32Type>().value(row) {
            value if value.is_finite() => out.extend_from_slice(format!("{value:?}").as_bytes()),
            value => push_text(out, &value.to_string()),
        },
        DataType::Float64 => float(out, array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => push_text(out, array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => push_text(out, array.as_string::<i64>().value(row)),
        DataType::Utf8View => push_text(out, array.as_string_view().value(row)),
        DataType::Binary => push_text(out, &base64(array.as_binary::<i32>().value(row))),
        DataType::LargeBinary => push_text(out, &base64(array.as_binary::<i64>().value(row))),
        DataType::BinaryView => push_text(out, &base64(array.as_binary_view().value(row))),
        DataType::FixedSizeBinary(_) => push_text(out, &base64(array.as_fixed_size_binary().value(row))),
        DataType::Decimal128(_, _) => push_text(out, &array.as_primitive::<Decimal128Type>().value_as_string(row)),
        DataType::Decimal256(_, _) => push_text(out, &array.as_primitive::<Decimal256Type>().value_as_string(row)),
        DataType::Date32 => push_text(out, &display(array, row)?),
        DataType::Timestamp(unit, zone) => {
            let value = match unit {
                TimeUnit::Second => DateTime::from_timestamp(array.as_primitive::<TimestampSecondType>().value(row), 0),
                TimeUnit::Millisecond => {
                    DateTime::from_timestamp_millis(array.as_primitive::<TimestampMillisecondType>().value(row))
                }
                TimeUnit::Microsecond => {
                    DateTime::from_timestamp_micros(array.as_primitive::<TimestampMicrosecondType>().value(row))
                }
                TimeUnit::Nanosecond => {
                    Some(DateTime::from_timestamp_nanos(array.as_primitive::<TimestampNanosecondType>().value(row)))
                }
            };
            let value = value.ok_or_else(|| "a timestamp beyond the calendar".to_owned())?;
            let digits = if *unit == TimeUnit::Nanosecond { SecondsFormat::AutoSi } else { SecondsFormat::Micros };
            // One without a zone is a clock's: the contract says which.
            let text = match zone {
                Some(_) => value.to_rfc3339_opts(digits, true),
                None => value.naive_utc().format("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
            };
            push_text(out, &text);
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct();
            out.push(b'{');
            for (index, field) in fields.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                push_text(out, field.name());
                out.push(b':');
                write_value(out, columns.column(index), row)?;
            }
            out.push(b'}');
        }
        DataType::List(_) => list(out, array.as_list::<i32>().value(row).as_ref())?,
        DataType::LargeList(_) => list(out, array.as_list::<i64>().value(row).as_ref())?,
        DataType::FixedSizeList(_, _) => list(out, array.as_fixed_size_list().value(row).as_ref())?,
        DataType::Map(_, _) => list(out, &array.as_map().value(row))?,
        DataType::Null => out.extend_from_slice(b"null"),
        other => return Err(format!("values of type {other}")),
    }
    Ok(())
}

fn list(out: &mut Vec<u8>, items: &dyn Array) -> Result<(), String> {
    out.push(b'[');
    for index in 0..items.len() {
        if index > 0 {
            out.push(b',');
        }
        write_value(out, items, index)?;
    }
    out.push(b']');
    Ok(())
}

fn float(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        out.extend_from_slice(format!("{value:?}").as_bytes());
    } else {
        push_text(out, &value.to_string());
    }
}

fn display(array: &dyn Array, row: usize) -> Result<String, String> {
    let formatter = ArrayFormatter::try_new(array, &FormatOptions::default()).map_err(|error| error.to_string())?;
    formatter.value(row).try_to_string().map_err(|error| error.to_string())
}

/// A partition column's value, which the log has as a text, as JSON.
pub(crate) fn partition_value(data_type: &DataType, value: Option<&str>) -> String {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return "null".to_owned() };
    let as_it_is = data_type.is_integer() && value.parse::<i64>().is_ok()
        || *data_type == DataType::Boolean && matches!(value, "true" | "false")
        || data_type.is_floating() && value.parse::<f64>().is_ok_and(f64::is_finite) && is_json_number(value);
    if as_it_is {
        return value.to_owned();
    }
    let value = match data_type {
        // The log writes `2026-01-31 08:00:00.000000`, which is UTC.
        DataType::Timestamp(_, Some(_)) if !value.contains('T') => format!("{}Z", value.replacen(' ', "T", 1)),
        _ => value.to_owned(),
    };
    let mut text = Vec::with_capacity(value.len() + 2);
    push_text(&mut text, &value);
    String::from_utf8_lossy(&text).into_owned()
}

fn is_json_number(text: &str) -> bool {
    serde_json::from_str::<serde_json::Number>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int64Array,
        ListArray, StringArray, StructArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::Field;

    use super::*;

    fn json(array: &dyn Array, row: usize) -> String {
        let mut out = Vec::new();
        write_value(&mut out, array, row).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_written_without_loss() {
        let micros = TimestampMicrosecondArray::from(vec![1_769_846_400_000_001]);
        let decimals = Decimal128Array::from(vec![-120]).with_precision_and_scale(12, 2).unwrap();
        let columns: Vec<(ArrayRef, &str)> = vec![
            (Arc::new(Int64Array::from(vec![i64::MIN])), "-9223372036854775808"),
            (Arc::new(Int64Array::from(vec![None])), "null"),
            (Arc::new(BooleanArray::from(vec![true])), "true"),
            (Arc::new(Float64Array::from(vec![0.1])), "0.1"),
            (Arc::new(Float64Array::from(vec![1e300])), "1e300"),
            (Arc::new(Float64Array::from(vec![f64::NAN])), "\"NaN\""),
            (Arc::new(Float32Array::from(vec![0.1_f32])), "0.1"),
            (Arc::new(StringArray::from(vec!["a\"\n\u{1}é"])), "\"a\\\"\\u000a\\u0001é\""),
            (Arc::new(BinaryArray::from(vec![b"foo".as_slice()])), "\"Zm9v\""),
            (Arc::new(decimals), "\"-1.20\""),
            (Arc::new(Date32Array::from(vec![0])), "\"1970-01-01\""),
            (Arc::new(micros.clone().with_timezone("UTC")), "\"2026-01-31T08:00:00.000001Z\""),
            (Arc::new(micros), "\"2026-01-31T08:00:00.000001\""),
            (Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), None])])), "[1,null]"),
        ];
        for (column, text) in columns {
            assert_eq!(json(column.as_ref(), 0), text, "{}", column.data_type());
            serde_json::from_str::<serde_json::Value>(text).unwrap();
        }
        let inner: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        let whole = StructArray::from(vec![(Arc::new(Field::new("a", DataType::Utf8, true)), inner)]);
        assert_eq!(json(&whole, 0), "{\"a\":\"x\"}");
    }

    #[test]
    fn partition_values_have_the_type_of_their_column() {
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        for (data_type, value, json) in [
            (DataType::Int32, Some("-7"), "-7"),
            (DataType::Boolean, Some("true"), "true"),
            (DataType::Float64, Some("1.5"), "1.5"),
            (DataType::Float64, Some("NaN"), "\"NaN\""),
            (DataType::Utf8, Some("7"), "\"7\""),
            (DataType::Utf8, None, "null"),
            (DataType::Int32, Some(""), "null"),
            (DataType::Date32, Some("2026-01-31"), "\"2026-01-31\""),
            (DataType::Decimal128(12, 2), Some("1.20"), "\"1.20\""),
            (utc, Some("2026-01-31 08:00:00.000001"), "\"2026-01-31T08:00:00.000001Z\""),
        ] {
            assert_eq!(partition_value(&data_type, value), json, "{data_type}");
        }
    }
}
