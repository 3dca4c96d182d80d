use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
    ListArray, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Fields};
use arrow::error::ArrowError;

use crate::grammar::type_name;
use crate::spec::EpochUnit;
use crate::value::{
    ValueError, Zone, parse_boolean, parse_date, parse_decimal, parse_float, parse_integer, parse_timestamp,
};

/// How the texts of a source are to be understood.
#[derive(Debug, Clone)]
pub(crate) struct TextRules {
    /// Where timestamps without an offset belong.
    pub(crate) zone: Zone,
    /// Texts that stand for no value, beside the empty CSV field.
    pub(crate) null_values: Vec<String>,
}

impl TextRules {
    pub(crate) fn is_null(&self, text: &str) -> bool {
        self.null_values.iter().any(|null| null == text)
    }
}

/// A column under construction. Rows can be taken back, so that a record which turns out bad halfway leaves nothing.
#[derive(Debug)]
pub(crate) struct Column {
    /// The header or field it is read from.
    pub(crate) key: String,
    pub(crate) data_type: DataType,
    pub(crate) epoch: Option<EpochUnit>,
    valid: BooleanBufferBuilder,
    nulls: usize,
    pub(crate) values: Values,
}

/// The values of a [`Column`].
pub(crate) enum Values {
    Text { offsets: Vec<i32>, bytes: Vec<u8> },
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float64(Vec<f64>),
    Boolean(BooleanBufferBuilder),
    Date(Vec<i32>),
    Timestamp(Vec<i64>),
    Decimal { values: Vec<i128>, precision: u8, scale: i8 },
    List { offsets: Vec<i32>, item: Box<Column> },
    Struct(Vec<Column>),
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the values themselves: they are customers' data.
        f.write_str("Values")
    }
}

impl Column {
    /// An empty column of a type that [`crate::grammar::parse_type`] knows.
    pub(crate) fn new(key: &str, data_type: &DataType, epoch: Option<EpochUnit>) -> Result<Self, ArrowError> {
        let values = match data_type {
            DataType::Utf8 => Values::Text { offsets: vec![0], bytes: Vec::new() },
            DataType::Int32 => Values::Int32(Vec::new()),
            DataType::Int64 => Values::Int64(Vec::new()),
            DataType::Float64 => Values::Float64(Vec::new()),
            DataType::Boolean => Values::Boolean(BooleanBufferBuilder::new(0)),
            DataType::Date32 => Values::Date(Vec::new()),
            DataType::Timestamp(_, _) => Values::Timestamp(Vec::new()),
            DataType::Decimal128(precision, scale) => {
                Values::Decimal { values: Vec::new(), precision: *precision, scale: *scale }
            }
            DataType::List(item) => {
                Values::List { offsets: vec![0], item: Box::new(Self::new(item.name(), item.data_type(), epoch)?) }
            }
            DataType::Struct(fields) => Values::Struct(
                fields
                    .iter()
                    .map(|field| Self::new(field.name(), field.data_type(), epoch))
                    .collect::<Result<_, _>>()?,
            ),
            other => return Err(ArrowError::SchemaError(format!("no column of type {other}"))),
        };
        Ok(Self {
            key: key.to_owned(),
            data_type: data_type.clone(),
            epoch,
            valid: BooleanBufferBuilder::new(0),
            nulls: 0,
            values,
        })
    }

    /// Makes room for `rows` more rows. Of texts only the number is known, not the length.
    pub(crate) fn reserve(&mut self, rows: usize) {
        self.valid.reserve(rows);
        match &mut self.values {
            Values::Text { offsets, .. } => offsets.reserve(rows),
            Values::Int32(values) | Values::Date(values) => values.reserve(rows),
            Values::Int64(values) | Values::Timestamp(values) => values.reserve(rows),
            Values::Float64(values) => values.reserve(rows),
            Values::Boolean(values) => values.reserve(rows),
            Values::Decimal { values, .. } => values.reserve(rows),
            Values::List { offsets, .. } => offsets.reserve(rows),
            Values::Struct(children) => children.iter_mut().for_each(|child| child.reserve(rows)),
        }
    }

    /// The number of rows.
    pub(crate) fn len(&self) -> usize {
        self.valid.len()
    }

    /// Marks the row whose value was just added as present.
    pub(crate) fn mark_present(&mut self) {
        self.valid.append(true);
    }

    /// Adds a row without a value.
    pub(crate) fn push_null(&mut self) {
        self.valid.append(false);
        self.nulls += 1;
        match &mut self.values {
            Values::Text { offsets, bytes } => offsets.push(offset(bytes.len())),
            Values::Int32(values) | Values::Date(values) => values.push(0),
            Values::Int64(values) | Values::Timestamp(values) => values.push(0),
            Values::Float64(values) => values.push(0.0),
            Values::Boolean(values) => values.append(false),
            Values::Decimal { values, .. } => values.push(0),
            Values::List { offsets, item } => offsets.push(offset(item.len())),
            Values::Struct(children) => children.iter_mut().for_each(Self::push_null),
        }
    }

    /// Adds a text as it is.
    pub(crate) fn push_str(&mut self, text: &str) {
        if let Values::Text { offsets, bytes } = &mut self.values {
            bytes.extend_from_slice(text.as_bytes());
            offsets.push(offset(bytes.len()));
            self.valid.append(true);
        }
    }

    /// Adds the value that `text` spells; blanks around anything but a string do not matter. A text that stands for no
    /// value is a null.
    ///
    /// Gives the reason when it spells none.
    pub(crate) fn push_text(&mut self, text: &str, rules: &TextRules) -> Result<(), String> {
        if !rules.null_values.is_empty() && rules.is_null(text) {
            self.push_null();
            return Ok(());
        }
        if let Values::Text { .. } = self.values {
            self.push_str(text);
            return Ok(());
        }
        let text = text.trim_ascii().as_bytes();
        let pushed = match &mut self.values {
            Values::Date(values) => parse_date(text).map(|value| values.push(value)).ok_or(ValueError::Malformed),
            Values::Timestamp(values) => match self.epoch {
                None => parse_timestamp(text, rules.zone).ok_or(ValueError::Malformed),
                Some(unit) => epoch_micros(text, unit),
            }
            .map(|value| values.push(value)),
            Values::Boolean(values) => {
                parse_boolean(text).map(|value| values.append(value)).ok_or(ValueError::Malformed)
            }
            Values::List { .. } | Values::Struct(_) => Err(ValueError::Malformed),
            _ => return self.push_number(text),
        };
        pushed.map_err(|error| self.reason(error))?;
        self.valid.append(true);
        Ok(())
    }

    /// Adds the number that `text` spells to a column of numbers.
    pub(crate) fn push_number(&mut self, text: &[u8]) -> Result<(), String> {
        let pushed = match &mut self.values {
            Values::Int32(values) => parse_integer(text)
                .and_then(|value| i32::try_from(value).map_err(|_| ValueError::OutOfRange))
                .map(|value| values.push(value)),
            Values::Int64(values) => parse_integer(text).map(|value| values.push(value)),
            Values::Float64(values) => parse_float(text).map(|value| values.push(value)),
            Values::Decimal { values, precision, scale } => {
                parse_decimal(text, *precision, *scale).map(|value| values.push(value))
            }
            Values::Timestamp(values) => match self.epoch {
                Some(unit) => epoch_micros(text, unit).map(|value| values.push(value)),
                None => Err(ValueError::Malformed),
            },
            _ => Err(ValueError::Malformed),
        };
        pushed.map_err(|error| self.reason(error))?;
        self.valid.append(true);
        Ok(())
    }

    fn reason(&self, error: ValueError) -> String {
        match (error, &self.values) {
            (ValueError::Malformed, Values::Date(_)) => "not a date such as 2026-01-31".to_owned(),
            (ValueError::Malformed, Values::Timestamp(_)) if self.epoch.is_none() => {
                "not a timestamp such as 2026-01-31T08:00:00Z".to_owned()
            }
            (ValueError::Malformed, _) => format!("not a value of type {}", type_name(&self.data_type)),
            (ValueError::OutOfRange, _) => format!("out of range for {}", type_name(&self.data_type)),
            (ValueError::TooPrecise, Values::Decimal { scale, .. }) => format!("has more than {scale} decimals"),
            (ValueError::TooPrecise, _) => "not a whole number".to_owned(),
        }
    }

    /// Takes back every row from `rows` on, and what an unfinished row has left.
    pub(crate) fn truncate(&mut self, rows: usize) {
        if rows < self.valid.len() {
            self.nulls -= (rows..self.valid.len()).filter(|row| !self.valid.get_bit(*row)).count();
            self.valid.truncate(rows);
        }
        match &mut self.values {
            Values::Text { offsets, bytes } => {
                offsets.truncate(rows + 1);
                bytes.truncate(last(offsets));
            }
            Values::Int32(values) | Values::Date(values) => values.truncate(rows),
            Values::Int64(values) | Values::Timestamp(values) => values.truncate(rows),
            Values::Float64(values) => values.truncate(rows),
            Values::Boolean(values) => values.truncate(rows),
            Values::Decimal { values, .. } => values.truncate(rows),
            Values::List { offsets, item } => {
                offsets.truncate(rows + 1);
                item.truncate(last(offsets));
            }
            Values::Struct(children) => children.iter_mut().for_each(|child| child.truncate(rows)),
        }
    }

    /// The smallest and largest moment in a column of timestamps or dates, UTC microseconds.
    pub(crate) fn time_range(&self) -> Option<(i64, i64)> {
        const MICROS_A_DAY: i64 = 86_400_000_000;
        let present = |row: &usize| self.valid.get_bit(*row);
        let rows = (0..self.len()).filter(present);
        match &self.values {
            Values::Timestamp(values) => range(rows.map(|row| values[row])),
            Values::Date(values) => range(rows.map(|row| i64::from(values[row]) * MICROS_A_DAY)),
            _ => None,
        }
    }

    /// The finished array.
    pub(crate) fn finish(self) -> Result<ArrayRef, ArrowError> {
        let Self { data_type, mut valid, nulls, values, .. } = self;
        let rows = valid.len();
        let validity: BooleanBuffer = valid.finish();
        let nulls = (nulls > 0).then(|| NullBuffer::new(validity));
        Ok(match values {
            Values::Text { offsets, bytes } => Arc::new(StringArray::try_new(
                OffsetBuffer::new(ScalarBuffer::from(offsets)),
                Buffer::from_vec(bytes),
                nulls,
            )?),
            Values::Int32(values) => Arc::new(Int32Array::try_new(values.into(), nulls)?),
            Values::Int64(values) => Arc::new(Int64Array::try_new(values.into(), nulls)?),
            Values::Float64(values) => Arc::new(Float64Array::try_new(values.into(), nulls)?),
            Values::Boolean(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Date(values) => Arc::new(Date32Array::try_new(values.into(), nulls)?),
            Values::Timestamp(values) => {
                Arc::new(TimestampMicrosecondArray::try_new(values.into(), nulls)?.with_timezone("UTC"))
            }
            Values::Decimal { values, precision, scale } => {
                Arc::new(Decimal128Array::try_new(values.into(), nulls)?.with_precision_and_scale(precision, scale)?)
            }
            Values::List { offsets, item } => {
                let field = Field::new("element", item.data_type.clone(), true);
                Arc::new(ListArray::try_new(
                    Arc::new(field),
                    OffsetBuffer::new(ScalarBuffer::from(offsets)),
                    item.finish()?,
                    nulls,
                )?)
            }
            Values::Struct(children) => {
                let fields: Fields = match &data_type {
                    DataType::Struct(fields) => fields.clone(),
                    _ => Fields::empty(),
                };
                let children = children.into_iter().map(Self::finish).collect::<Result<Vec<_>, _>>()?;
                Arc::new(StructArray::try_new_with_length(fields, children, nulls, rows)?)
            }
        })
    }
}

/// Arrow's offsets are 32 bits wide. A block is far smaller; one that were not would fail when the array is built.
pub(crate) fn offset(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

fn last(offsets: &[i32]) -> usize {
    offsets.last().and_then(|end| usize::try_from(*end).ok()).unwrap_or(0)
}

fn epoch_micros(text: &[u8], unit: EpochUnit) -> Result<i64, ValueError> {
    let micros = parse_decimal(text, 38, unit.digits_to_micros())?;
    i64::try_from(micros).map_err(|_| ValueError::OutOfRange)
}

pub(crate) fn range(values: impl Iterator<Item = i64>) -> Option<(i64, i64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;

    use super::*;
    use crate::grammar::parse_type;

    #[test]
    fn a_row_taken_back_leaves_nothing() {
        let data_type = parse_type("struct<name string, amount decimal(12,2)>").unwrap();
        let mut column = Column::new("buyer", &data_type, None).unwrap();
        column.push_null();
        // Half a row: the first child has a value, the second not yet.
        if let Values::Struct(children) = &mut column.values {
            children[0].push_str("somebody");
        }
        column.truncate(1);
        column.push_null();
        let array = column.finish().unwrap();
        assert_eq!((array.len(), array.null_count()), (2, 2));
    }
}
