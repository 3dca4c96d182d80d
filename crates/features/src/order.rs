//! The order of history: key, event time, known time, and then as rows came.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::TimestampMicrosecondType;

use crate::history::{EVENT_TIMESTAMP, HistorySchema, KNOWN_AT};
use crate::keys::Keys;
use crate::{FeatureError, Result};

/// A batch of history with what it is ordered by at hand.
#[derive(Debug)]
pub(crate) struct Ordered {
    pub(crate) batch: RecordBatch,
    keys: Keys,
    events: Vec<i64>,
    knowns: Vec<i64>,
}

impl Ordered {
    /// `batch` has the columns of the view's files.
    pub(crate) fn new(schema: &HistorySchema, batch: RecordBatch) -> Result<Self> {
        let keys = Keys::new(&batch.columns()[..schema.keys().len()])?;
        let (events, knowns) = (moments(&batch, EVENT_TIMESTAMP)?, moments(&batch, KNOWN_AT)?);
        Ok(Self { batch, keys, events, knowns })
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// Where a row stands, as something that can be compared with a row of another batch.
    fn place(&self, row: usize) -> Place<'_> {
        let key = match &self.keys {
            Keys::Int(keys) => Key::Int(keys.value(row)),
            keys => Key::Bytes(keys.bytes(row)),
        };
        (key, self.events[row], self.knowns[row])
    }

    /// How many rows, from the first on, come before a place, or at it when `at_it`. The rows are sorted.
    pub(crate) fn rows_before(&self, from: usize, other: &Self, row: usize, at_it: bool) -> usize {
        let bound = other.place(row);
        crate::keys::gallop(from, self.rows(), |at| match self.place(at).cmp(&bound) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => at_it,
            std::cmp::Ordering::Greater => false,
        })
    }

    /// Whether a row comes before a row of another batch.
    pub(crate) fn is_before(&self, row: usize, other: &Self, other_row: usize) -> bool {
        self.place(row) < other.place(other_row)
    }
}

type Place<'a> = (Key<'a>, i64, i64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key<'a> {
    Int(i64),
    Bytes(&'a [u8]),
}

fn moments(batch: &RecordBatch, name: &str) -> Result<Vec<i64>> {
    let column = batch.column_by_name(name).ok_or_else(|| FeatureError::MissingColumn {
        place: "a batch of history".to_owned(),
        column: name.to_owned(),
    })?;
    Ok(column.as_primitive::<TimestampMicrosecondType>().values().to_vec())
}

/// Sorts rows, each named by its batch and its number there. The sort is stable and quick on what is sorted in stretches already: it merges runs.
pub(crate) fn sort(batches: &[&Ordered], rows: &mut [(usize, usize)]) {
    fn by<K: Ord + Copy>(batches: &[&Ordered], rows: &mut [(usize, usize)], key: impl Fn((usize, usize)) -> K) {
        let mut places: Vec<(K, i64, i64, (usize, usize))> =
            rows.iter().map(|&at| (key(at), batches[at.0].events[at.1], batches[at.0].knowns[at.1], at)).collect();
        places.sort_by_key(|place| (place.0, place.1, place.2));
        for (row, place) in rows.iter_mut().zip(places) {
            *row = place.3;
        }
    }
    if batches.iter().all(|batch| matches!(batch.keys, Keys::Int(_))) {
        by(batches, rows, |(batch, row)| match &batches[batch].keys {
            Keys::Int(keys) => keys.value(row),
            _ => 0,
        });
    } else {
        by(batches, rows, |(batch, row)| batches[batch].keys.bytes(row));
    }
}

/// The rows as one batch.
pub(crate) fn gather(batches: &[&Ordered], rows: &[(usize, usize)]) -> Result<RecordBatch> {
    let batches: Vec<&RecordBatch> = batches.iter().map(|batch| &batch.batch).collect();
    Ok(interleave_record_batch(&batches, rows)?)
}

/// The first null of a column.
pub(crate) fn first_null(column: &ArrayRef) -> Option<usize> {
    column.nulls().and_then(|nulls| (0..nulls.len()).find(|&row| nulls.is_null(row)))
}
