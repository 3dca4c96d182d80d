//! From what views have by place of the sorted spine to batches in the spine's own order.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int8Array, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Int8Type, SchemaRef};
use holdfast_types::Promise;

use crate::Result;
use crate::lookup::{Found, Lookup, joined};
use crate::request::StatusColumns;
use crate::spine::Layout;
use crate::status::{Status, status_column, status_words};

/// What a view has for all places of a part, and for the place behind the last, where there is nothing.
#[derive(Debug)]
pub(crate) struct ViewAnswer {
    values: Vec<ArrayRef>,
    status: ArrayRef,
    events: Option<ArrayRef>,
}

impl ViewAnswer {
    /// `found` is by bucket; a bucket without rows has none.
    pub(crate) fn new(lookup: &Lookup, layout: &Layout, found: Vec<Option<Found>>) -> Result<Self> {
        let features = &lookup.view.features;
        let mut values: Vec<Vec<ArrayRef>> = vec![Vec::new(); features.len()];
        let mut status = Vec::with_capacity(layout.len() + 1);
        let mut events = Vec::new();
        for found in found.into_iter().flatten() {
            for (arrays, array) in values.iter_mut().zip(found.values) {
                arrays.push(array);
            }
            status.extend(found.status);
            events.extend(found.events);
        }
        status.push(Status::NotFound.code());
        let mut whole = Vec::with_capacity(features.len());
        for (mut arrays, feature) in values.into_iter().zip(features) {
            arrays.push(new_null_array(feature.data_type(), 1));
            whole.extend(joined(&arrays)?);
        }
        if lookup.event_timestamps() {
            events.push(new_null_array(&crate::moment::timestamp_type(), 1));
        }
        Ok(Self { values: whole, status: Arc::new(Int8Array::from(status)), events: joined(&events)? })
    }
}

/// A part of the spine with all that was found for it.
#[derive(Debug)]
pub(crate) struct PartAnswer {
    pub(crate) schema: SchemaRef,
    pub(crate) status: StatusColumns,
    /// The place of each row, one list a layout.
    pub(crate) positions: Vec<UInt32Array>,
    /// The views, and which layout each has.
    pub(crate) views: Vec<(usize, ViewAnswer)>,
}

impl PartAnswer {
    /// The spine's rows, which begin at row `from` of the part, with their features.
    pub(crate) fn batch(&self, spine: &RecordBatch, from: usize) -> Result<RecordBatch> {
        let words = status_words();
        let mut columns = spine.columns().to_vec();
        let places: Vec<UInt32Array> =
            self.positions.iter().map(|places| places.slice(from, spine.num_rows())).collect();
        for (layout, view) in &self.views {
            let places = &places[*layout];
            let status = take(&view.status, places, None)?;
            let status = status.as_primitive::<Int8Type>();
            for values in &view.values {
                let values = take(values, places, None)?;
                if self.status == StatusColumns::Value {
                    let codes = value_status(status, &values);
                    columns.push(values);
                    columns.push(status_column(codes, &words)?);
                } else {
                    columns.push(values);
                }
            }
            if self.status != StatusColumns::None {
                columns.push(status_column(status.clone(), &words)?);
            }
            if let Some(events) = &view.events {
                columns.push(take(events, places, None)?);
            }
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        Promise::Pit2.check(batch.num_rows() == spine.num_rows(), || {
            format!("{} rows of the spine became {}", spine.num_rows(), batch.num_rows())
        })?;
        Ok(batch)
    }
}

/// The view's status, but for values that are null where there is a row.
fn value_status(view: &Int8Array, values: &ArrayRef) -> Int8Array {
    if values.data_type() != &DataType::Null && values.null_count() == 0 {
        return view.clone();
    }
    let present = Status::Present.code();
    let nulls = values.logical_nulls();
    let codes = view.values().iter().enumerate().map(|(row, &status)| {
        let is_null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        if status == present && is_null { Status::NullValue.code() } else { status }
    });
    codes.collect()
}
