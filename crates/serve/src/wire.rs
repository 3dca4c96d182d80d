//! What travels: types that every Flight client reads, in batches that every client accepts.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;

/// The schema with views and dictionaries replaced by the plain types of their values.
///
/// Views are cast away because IPC writes every buffer that a sliced view points into, and not every client knows them;
/// dictionaries because the encoder would do it anyway, and `GetFlightInfo` must promise what `DoGet` sends.
pub(crate) fn wire_schema(schema: &Schema) -> SchemaRef {
    let fields: Fields = schema.fields().iter().map(wire_field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn wire_field(field: &FieldRef) -> FieldRef {
    let data_type = wire_type(field.data_type());
    if data_type == *field.data_type() {
        return Arc::clone(field);
    }
    Arc::new(Field::new(field.name(), data_type, field.is_nullable()).with_metadata(field.metadata().clone()))
}

fn wire_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => wire_type(values),
        DataType::List(item) | DataType::ListView(item) => DataType::List(wire_field(item)),
        DataType::LargeList(item) | DataType::LargeListView(item) => DataType::LargeList(wire_field(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(wire_field(item), *length),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(wire_field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(wire_field(entries), *sorted),
        other => other.clone(),
    }
}

/// The batch in the promised schema; columns that fit already are not copied.
///
/// # Errors
/// When the batch has other columns than were promised, which is a mistake of ours.
pub(crate) fn to_wire(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(Arc::clone(column))
            } else {
                cast(column, field.data_type())
            }
        })
        .collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// Cuts the batch into slices of at most `max_rows` rows and about `max_bytes` bytes. A slice shares its columns with
/// the batch.
pub(crate) fn pieces(batch: &RecordBatch, max_rows: usize, max_bytes: usize) -> Vec<RecordBatch> {
    let rows = batch.num_rows();
    if rows == 0 {
        return Vec::new();
    }
    let bytes: usize = batch.columns().iter().map(slice_bytes).sum();
    let rows_by_bytes = rows.div_ceil(bytes.div_ceil(max_bytes).max(1));
    let step = max_rows.min(rows_by_bytes).max(1);
    (0..rows).step_by(step).map(|start| batch.slice(start, step.min(rows - start))).collect()
}

/// The bytes of the rows that the array covers, which can be a small slice of its buffers.
fn slice_bytes(column: &ArrayRef) -> usize {
    column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringViewArray};

    use super::*;

    #[test]
    fn views_and_dictionaries_become_plain_at_any_depth() {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8View));
        let nested = DataType::Struct(Fields::from(vec![Field::new("name", DataType::Utf8View, true)]));
        let schema = Schema::new(vec![
            Field::new("a", dictionary, true),
            Field::new("b", DataType::List(Arc::new(Field::new("item", nested, true))), false),
        ]);
        let plain = wire_schema(&schema);
        assert_eq!(plain.field(0).data_type(), &DataType::Utf8);
        let DataType::List(item) = plain.field(1).data_type() else { panic!("not a list") };
        let DataType::Struct(fields) = item.data_type() else { panic!("not a struct") };
        assert_eq!(fields[0].data_type(), &DataType::Utf8);
        assert!(!plain.field(1).is_nullable());
    }

    #[test]
    fn pieces_cover_every_row_once_within_both_limits() {
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
        let names: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..1000).map(|i| format!("{i:0>100}"))));
        let batch = RecordBatch::try_from_iter([("value", values), ("name", names)]).unwrap();
        let batch = to_wire(&batch, &wire_schema(&batch.schema())).unwrap();
        for (max_rows, max_bytes, expected) in [(1000, usize::MAX, 1), (300, usize::MAX, 4), (1000, 16 << 10, 7)] {
            let pieces = pieces(&batch, max_rows, max_bytes);
            assert_eq!(pieces.len(), expected);
            assert_eq!(arrow::compute::concat_batches(&batch.schema(), &pieces).unwrap(), batch);
        }
        assert!(pieces(&batch.slice(0, 0), 10, 10).is_empty());
    }
}
