use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;

/// The nearest type that every Delta reader knows: no views, dictionaries, unsigned or half-width numbers; timestamps with a zone become UTC
/// microseconds, those without stay without.
///
/// # Errors
/// The name of the type when Delta has nothing like it (intervals, durations, times of day, unions, decimals beyond 38 digits).
pub fn delta_compatible(data_type: &DataType) -> Result<DataType, String> {
    Ok(match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32
        | DataType::Decimal128(_, _) => data_type.clone(),
        DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Date64 => DataType::Date32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Decimal256(precision, scale) if *precision <= 38 => DataType::Decimal128(*precision, *scale),
        DataType::Timestamp(_, zone) => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.as_ref().map(|_| Arc::from("UTC")))
        }
        DataType::Dictionary(_, values) => delta_compatible(values)?,
        DataType::RunEndEncoded(_, values) => delta_compatible(values.data_type())?,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => DataType::List(Arc::new(compatible_field(item, "element")?)),
        DataType::Struct(fields) => DataType::Struct(
            fields.iter().map(|field| compatible_field(field, field.name())).collect::<Result<Fields, String>>()?,
        ),
        DataType::Map(entries, sorted) => DataType::Map(Arc::new(compatible_field(entries, entries.name())?), *sorted),
        other => return Err(format!("{other} (a Delta table cannot hold it: cast it to another type)")),
    })
}

fn compatible_field(field: &Field, name: &str) -> Result<Field, String> {
    Ok(Field::new(name, delta_compatible(field.data_type())?, field.is_nullable())
        .with_metadata(field.metadata().clone()))
}

/// The batch with every column in the type of `schema`, which has the same columns in the same order. A column that is so already is not copied.
///
/// # Errors
/// When a value does not fit its new type; nothing is turned to null in silence.
pub fn to_delta_compatible(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    if batch.schema().fields() == schema.fields() {
        return Ok(batch.clone());
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(Arc::clone(column))
            } else {
                cast_with_options(column, field.data_type(), &options)
            }
        })
        .collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
    RecordBatch::try_new_with_options(
        Arc::clone(schema),
        columns,
        &arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows())),
    )
}

/// The schema without the named columns.
pub(crate) fn without_columns(schema: &Schema, names: &[String]) -> SchemaRef {
    Arc::new(Schema::new(
        schema.fields().iter().filter(|field| !names.contains(field.name())).cloned().collect::<Fields>(),
    ))
}
