//! Timestamps of any unit and zone as microseconds since 1970 in UTC.

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::{
    ArrowTimestampType, DataType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};

use crate::{FeatureError, Result};

/// Timestamps as this crate keeps and returns them.
pub(crate) fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// What to do with timestamps that do not say their zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Zoneless {
    /// An error. Local time read as UTC would let a spine east of Greenwich see hours of its future.
    #[default]
    Refuse,
    /// They are in UTC.
    Utc,
}

/// Where nanoseconds go that do not fit. A moment asked for is earlier, one that something happened at is later: so neither can show what was not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    Down,
    Up,
}

/// The column's moments. `first_row` is the number of the first row, for errors.
///
/// # Errors
/// A type that is no timestamp, one without a zone, a null, a moment outside of the years that 64 bits of microseconds reach.
pub(crate) fn micros(
    place: &str,
    name: &str,
    column: &ArrayRef,
    zoneless: Zoneless,
    rounding: Rounding,
    first_row: usize,
) -> Result<Vec<i64>> {
    check_type(place, name, column.data_type(), zoneless)?;
    let refused = |row: usize, reason| FeatureError::Row {
        place: place.to_owned(),
        row: first_row + row,
        column: name.to_owned(),
        reason,
    };
    if let Some(row) = column.nulls().and_then(|nulls| (0..nulls.len()).find(|&row| nulls.is_null(row))) {
        return Err(refused(row, "is null: a row needs its moment"));
    }
    fn scaled<T: ArrowTimestampType>(column: &ArrayRef, factor: i64) -> std::result::Result<Vec<i64>, usize> {
        let column: &PrimitiveArray<T> = column.as_primitive();
        column.values().iter().enumerate().map(|(row, value)| value.checked_mul(factor).ok_or(row)).collect()
    }
    let moments = match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => scaled::<TimestampSecondType>(column, 1_000_000),
        DataType::Timestamp(TimeUnit::Millisecond, _) => scaled::<TimestampMillisecondType>(column, 1_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            let up = i64::from(rounding == Rounding::Up);
            let nanos = column.as_primitive::<TimestampNanosecondType>().values();
            Ok(nanos.iter().map(|n| n.div_euclid(1_000) + up * i64::from(n.rem_euclid(1_000) != 0)).collect())
        }
        _ => Ok(column.as_primitive::<TimestampMicrosecondType>().values().to_vec()),
    };
    moments.map_err(|row| refused(row, "is too far from 1970 for microseconds in 64 bits"))
}

/// Whether a column of this type can say moments.
pub(crate) fn check_type(place: &str, name: &str, found: &DataType, zoneless: Zoneless) -> Result<()> {
    let expected = match (found, zoneless) {
        (DataType::Timestamp(_, Some(_)), _) | (DataType::Timestamp(_, None), Zoneless::Utc) => return Ok(()),
        (DataType::Timestamp(_, None), Zoneless::Refuse) => {
            "a timestamp with a zone: cast it, or say that it is in UTC"
        }
        _ => "a timestamp",
    };
    Err(FeatureError::ColumnType {
        place: place.to_owned(),
        column: name.to_owned(),
        found: found.clone(),
        expected: expected.to_owned(),
    })
}
