//! The order of rows within a file: which one a table's files are to have, and which of them have it.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::row::{OwnedRow, RowConverter, SortField};
use holdfast_types::{CUSTOMER_BUCKET, CUSTOMER_ID, SORTED_KEY};

/// First the smallest, nulls before all.
pub(crate) const ASCENDING: SortOptions = SortOptions { descending: false, nulls_first: true };

/// The tag of an add action whose file has its rows in order, each ascending, nulls first: the names of the columns, with commas. Only a writer that compared every row
/// with the one before it sets it, so that who reads the log need not look into the file.
pub(crate) const SORTED_BY_TAG: &str = "holdfast.sortedBy";

/// The columns that rows are sorted by within a file: those that say so, the customer and the first moment of customer-keyed tables, none of others.
pub(crate) fn sort_columns(schema: &SchemaRef, partition_columns: &[String]) -> Vec<usize> {
    let place = |field: &Field| field.metadata().get(SORTED_KEY)?.parse::<u32>().ok();
    let mut declared: Vec<(u32, usize)> =
        schema.fields().iter().enumerate().filter_map(|(index, field)| Some((place(field)?, index))).collect();
    if !declared.is_empty() {
        declared.sort_unstable();
        return declared.into_iter().map(|(_, index)| index).collect();
    }
    let is_keyed = partition_columns.iter().any(|column| column == CUSTOMER_BUCKET);
    match schema.index_of(CUSTOMER_ID) {
        Ok(customer) if is_keyed => {
            let moment =
                schema.fields().iter().position(|field| matches!(field.data_type(), DataType::Timestamp(_, _)));
            std::iter::once(customer).chain(moment).collect()
        }
        _ => Vec::new(),
    }
}

/// What [`SORTED_BY_TAG`] says of files that are sorted by these columns.
pub(crate) fn sorted_by(schema: &SchemaRef, columns: &[usize]) -> String {
    let names: Vec<&str> = columns.iter().map(|column| schema.field(*column).name().as_str()).collect();
    names.join(",")
}

/// Watches that rows only go forward.
#[derive(Debug)]
pub(crate) struct SortedRows {
    columns: Vec<usize>,
    converter: RowConverter,
    last: Option<OwnedRow>,
}

impl SortedRows {
    pub(crate) fn new(schema: &SchemaRef, columns: &[usize]) -> Result<Self, arrow::error::ArrowError> {
        let fields = columns
            .iter()
            .map(|column| SortField::new_with_options(schema.field(*column).data_type().clone(), ASCENDING))
            .collect();
        Ok(Self { columns: columns.to_vec(), converter: RowConverter::new(fields)?, last: None })
    }

    /// Whether the rows of `batch` are in order, and after those before.
    pub(crate) fn go_on_with(&mut self, batch: &RecordBatch) -> Result<bool, arrow::error::ArrowError> {
        let columns: Vec<_> = self.columns.iter().map(|column| Arc::clone(batch.column(*column))).collect();
        let rows = self.converter.convert_columns(&columns)?;
        let mut last = self.last.as_ref().map(OwnedRow::row);
        for row in &rows {
            if last.is_some_and(|last| last > row) {
                return Ok(false);
            }
            last = Some(row);
        }
        self.last = last.map(|row| row.owned());
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_go_back_are_seen_within_a_batch_and_between_two() {
        let schema: SchemaRef =
            Arc::new(arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new("n", DataType::Int64, true)]));
        let batch = |values: &[Option<i64>]| {
            let column = Arc::new(arrow::array::Int64Array::from(values.to_vec()));
            RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap()
        };
        let mut sorted = SortedRows::new(&schema, &[0]).unwrap();
        assert!(sorted.go_on_with(&batch(&[None, Some(1), Some(1), Some(3)])).unwrap());
        assert!(sorted.go_on_with(&batch(&[])).unwrap());
        assert!(sorted.go_on_with(&batch(&[Some(3)])).unwrap());
        assert!(!sorted.go_on_with(&batch(&[Some(2)])).unwrap());
        let mut sorted = SortedRows::new(&schema, &[0]).unwrap();
        assert!(!sorted.go_on_with(&batch(&[Some(1), None])).unwrap());
    }
}
