//! A stream of Arrow batches, whose client puts those again that were not acknowledged.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use holdfast_testkit::Random;

/// The stream's name.
pub(super) const STREAM: &str = "till-1";

/// What was put, as its client knows it. A batch is always the same rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Puts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    begun: u64,
    acknowledged: BTreeSet<u64>,
}

impl Puts {
    /// A batch to put: a new one, or one again.
    pub(super) fn next(&self, random: &mut Random) -> u64 {
        let mut state = self.0.lock().unwrap();
        if state.begun == 0 || random.chance(50) {
            state.begun += 1;
            return state.begun - 1;
        }
        random.below(state.begun)
    }

    /// The batches without an acknowledgement.
    pub(super) fn open(&self) -> Vec<u64> {
        let state = self.0.lock().unwrap();
        (0..state.begun).filter(|batch| !state.acknowledged.contains(batch)).collect()
    }

    pub(super) fn acknowledged(&self, batch: u64) {
        self.0.lock().unwrap().acknowledged.insert(batch);
    }

    pub(super) fn records(&self) -> Vec<(String, bool)> {
        let state = self.0.lock().unwrap();
        let names = (0..state.begun).flat_map(|batch| {
            let is_acknowledged = state.acknowledged.contains(&batch);
            names(batch).into_iter().map(move |name| (name, is_acknowledged))
        });
        names.collect()
    }
}

/// Every fifth does not fit.
fn names(batch: u64) -> Vec<String> {
    (0..1 + batch * 7 % 4)
        .map(|row| format!("{}{batch}000{row}", if (batch + row) % 5 == 4 { "badt" } else { "t" }))
        .collect()
}

/// The rows of a batch. A number that `n` has no room for makes a row that does not fit.
pub(super) fn rows(batch: u64) -> RecordBatch {
    let names = names(batch);
    let numbers = names.iter().map(|name| if name.starts_with("bad") { i64::MAX } else { 1 });
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(&names));
    RecordBatch::try_from_iter([("messageId", names), ("n", numbers)]).unwrap()
}
