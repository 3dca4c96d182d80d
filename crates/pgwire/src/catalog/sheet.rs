use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Int16Array, Int32Array, Int64Array, RecordBatch, StringArray, UInt32Array,
    new_null_array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;

use crate::types::{self, ColumnType, TYPE_KEY};

/// A value of a system table.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    Null,
    Bool(bool),
    Number(i64),
    Real(f32),
    Text(String),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Option<String>> for Cell {
    fn from(text: Option<String>) -> Self {
        text.map_or(Self::Null, Self::Text)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Self::Number(i64::from(number))
    }
}

impl From<i32> for Cell {
    fn from(number: i32) -> Self {
        Self::Number(i64::from(number))
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// The schema that a list of columns describes.
pub(super) fn schema_of(columns: &str) -> SchemaRef {
    let fields = columns.split(',').filter_map(|column| {
        let (name, type_name) = column.trim().split_once(' ')?;
        let found = ColumnType::named(type_name.trim())?;
        let field = Field::new(name, arrow_type(found), true);
        Some(field.with_metadata([(TYPE_KEY.to_owned(), type_name.trim().to_owned())].into()))
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn arrow_type(column_type: ColumnType) -> DataType {
    let plain = match column_type.of {
        types::BOOL => DataType::Boolean,
        types::INT2 => DataType::Int16,
        types::INT4 => DataType::Int32,
        types::INT8 => DataType::Int64,
        types::OID | types::XID => DataType::UInt32,
        types::FLOAT4 => DataType::Float32,
        types::NUMERIC => DataType::Decimal128(38, 0),
        types::BYTEA => DataType::Binary,
        types::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        types::INTERVAL => DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano),
        // Names of functions: there are none to point at.
        types::REGPROC => DataType::Utf8,
        _ => DataType::Utf8,
    };
    if column_type.is_array { DataType::List(Arc::new(Field::new("item", plain, true))) } else { plain }
}

/// Rows that give values to some columns of a table; the others are null.
pub(super) struct Sheet {
    names: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Sheet {
    pub(super) fn new(names: &[&'static str]) -> Self {
        Self { names: names.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.names.len());
        self.rows.push(cells);
    }

    pub(super) fn batch(&self, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
        let columns = schema
            .fields()
            .iter()
            .map(|field| match self.names.iter().position(|name| name == field.name()) {
                Some(at) => self.column(at, field.data_type()),
                None => new_null_array(field.data_type(), self.rows.len()),
            })
            .collect();
        RecordBatch::try_new(Arc::clone(schema), columns)
    }

    fn column(&self, at: usize, data_type: &DataType) -> ArrayRef {
        let cells = || self.rows.iter().map(|row| &row[at]);
        let number = |cell: &Cell| match cell {
            Cell::Number(number) => Some(*number),
            _ => None,
        };
        match data_type {
            DataType::Boolean => Arc::new(
                cells()
                    .map(|cell| if let Cell::Bool(value) = cell { Some(*value) } else { None })
                    .collect::<BooleanArray>(),
            ),
            DataType::Int16 => Arc::new(cells().map(|cell| number(cell)?.try_into().ok()).collect::<Int16Array>()),
            DataType::Int32 => Arc::new(cells().map(|cell| number(cell)?.try_into().ok()).collect::<Int32Array>()),
            DataType::Int64 => Arc::new(cells().map(number).collect::<Int64Array>()),
            DataType::UInt32 => Arc::new(cells().map(|cell| number(cell)?.try_into().ok()).collect::<UInt32Array>()),
            DataType::Float32 => Arc::new(
                cells()
                    .map(|cell| if let Cell::Real(value) = cell { Some(*value) } else { None })
                    .collect::<Float32Array>(),
            ),
            DataType::Utf8 => Arc::new(
                cells()
                    .map(|cell| if let Cell::Text(text) = cell { Some(text.as_str()) } else { None })
                    .collect::<StringArray>(),
            ),
            other => new_null_array(other, self.rows.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{FILLED, INFORMATION, TABLES};
    use super::*;

    #[test]
    fn every_column_of_every_system_table_has_a_type() {
        for (table, columns) in TABLES.iter().chain(INFORMATION) {
            assert_eq!(schema_of(columns).fields().len(), columns.split(',').count(), "{table}");
        }
        for table in FILLED {
            assert!(TABLES.iter().any(|(name, _)| name == table), "{table}");
        }
    }
}
