//! What is counted of the rows of a batch while they pass by: empty values, keys that came before, events that come late.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, ListArray, StringArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, TimestampMicrosecondType};
use datafusion::common::hash_utils::{RandomState, create_hashes};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::IngestError;
use crate::ingest::count;
use crate::spec::{SourceSpec, timestamp_type};

/// Keys of a source that are remembered, newest first: what is sent twice is mostly sent again soon. Memory and the cost of
/// starting stay the same however long the history is.
pub(crate) const KEYS_MAX: usize = 100_000;

/// What is known of a batch's stored rows beside how many they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Events older than what earlier batches had reached; `None` without an event time.
    pub(crate) late: Option<u64>,
    /// Rows whose key stands earlier in the same file; `None` without a key.
    pub(crate) duplicates_in_file: Option<u64>,
    /// Rows whose key came in another file, of this batch or an earlier one; `None` without a key.
    pub(crate) duplicates_across_files: Option<u64>,
    /// Empty values by column, in the order of the contract.
    pub(crate) nulls: Vec<(String, u64)>,
}

impl Facts {
    pub(crate) fn of<'a>(spec: &SourceSpec, files: impl Iterator<Item = &'a FileFacts>) -> Self {
        let mut all = FileFacts::default();
        files.for_each(|file| all.merge(file));
        let columns = spec.columns.iter().map(|column| column.name.clone());
        let nulls = all.nulls.into_iter().chain(std::iter::repeat(0));
        Self {
            late: spec.event_time.is_some().then_some(all.late),
            duplicates_in_file: (!spec.key.is_empty()).then_some(all.duplicates_in_file),
            duplicates_across_files: (!spec.key.is_empty()).then_some(all.duplicates_across_files),
            nulls: columns.zip(nulls).collect(),
        }
    }

    /// One value of the column that [`nulls_type`] describes.
    pub(crate) fn nulls_array(facts: Option<&Self>) -> Result<ArrayRef> {
        let nulls: &[(String, u64)] = facts.map_or(&[], |facts| &facts.nulls);
        let items = StructArray::from(vec![
            (
                Arc::new(Field::new("column", DataType::Utf8, true)),
                Arc::new(StringArray::from_iter_values(nulls.iter().map(|(column, _)| column))) as ArrayRef,
            ),
            (
                Arc::new(Field::new("nulls", DataType::Int64, true)),
                Arc::new(Int64Array::from_iter_values(
                    nulls.iter().map(|(_, nulls)| i64::try_from(*nulls).unwrap_or(i64::MAX)),
                )) as ArrayRef,
            ),
        ]);
        let field = Arc::new(Field::new("element", items.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths([items.len()]);
        let present = facts.is_none().then(|| NullBuffer::new_null(1));
        Ok(Arc::new(ListArray::try_new(field, offsets, Arc::new(items), present).map_err(IngestError::internal)?))
    }
}

/// The type of a column with empty values by column.
pub(crate) fn nulls_type() -> DataType {
    let fields = vec![Field::new("column", DataType::Utf8, true), Field::new("nulls", DataType::Int64, true)];
    DataType::List(Arc::new(Field::new("element", DataType::Struct(Fields::from(fields)), true)))
}

/// The same of a part of a file, with nulls in the order of the contract.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileFacts {
    late: u64,
    duplicates_in_file: u64,
    duplicates_across_files: u64,
    nulls: Vec<u64>,
}

impl FileFacts {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.late += other.late;
        self.duplicates_in_file += other.duplicates_in_file;
        self.duplicates_across_files += other.duplicates_across_files;
        self.nulls.resize(self.nulls.len().max(other.nulls.len()), 0);
        self.nulls.iter_mut().zip(&other.nulls).for_each(|(sum, nulls)| *sum += nulls);
    }
}

/// What rows are held against while they are read.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    /// Events before this moment, UTC microseconds, are late.
    late_before: Option<i64>,
    /// Keys of earlier batches.
    known: Arc<RecentKeys>,
    /// Keys of this batch.
    batch: Mutex<RecentKeys>,
}

impl Counting {
    pub(crate) fn new(late_before: Option<i64>, known: Arc<RecentKeys>) -> Self {
        Self { late_before, known, batch: Mutex::default() }
    }

    /// Counts rows of a file, in the contract's columns.
    pub(crate) fn count(&self, spec: &SourceSpec, file: usize, columns: &[ArrayRef], rows: usize) -> Result<FileFacts> {
        let mut facts = FileFacts {
            nulls: columns.iter().map(|column| count(column.null_count())).collect(),
            ..FileFacts::default()
        };
        let index = |name: &String| spec.columns.iter().position(|column| column.name == *name);
        if let Some(moments) = spec.event_time.as_ref().and_then(index).and_then(|index| columns.get(index)) {
            facts.late = self.late_before.map_or(Ok(0), |limit| count_before(moments, limit))?;
        }
        let key: Vec<&ArrayRef> = spec.key.iter().filter_map(index).filter_map(|index| columns.get(index)).collect();
        if key.is_empty() || rows == 0 {
            return Ok(facts);
        }
        let file = u32::try_from(file).unwrap_or(u32::MAX);
        let hashes = key_hashes(&key, rows)?;
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        for hash in hashes.into_iter().flatten() {
            match batch.insert(hash, file) {
                Some(other) if other == file => facts.duplicates_in_file += 1,
                Some(_) => facts.duplicates_across_files += 1,
                None => facts.duplicates_across_files += u64::from(self.known.contains(hash)),
            }
        }
        Ok(facts)
    }

    /// The keys of this batch, once it is read.
    pub(crate) fn into_keys(self) -> RecentKeys {
        self.batch.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count_before(moments: &ArrayRef, limit: i64) -> Result<u64> {
    let moments = match moments.data_type() {
        DataType::Timestamp(_, _) => Arc::clone(moments),
        _ => cast(moments, &timestamp_type()).map_err(IngestError::internal)?,
    };
    let moments = moments.as_primitive::<TimestampMicrosecondType>();
    Ok(count(moments.iter().flatten().filter(|moment| *moment < limit).count()))
}

/// A number for the key of each row; `None` where a part of it is missing, which makes it no key. Only of use within a process.
pub(crate) fn key_hashes(key: &[&ArrayRef], rows: usize) -> Result<Vec<Option<u64>>> {
    let mut hashes = vec![0; rows];
    create_hashes(key.iter().copied(), &RandomState::default(), &mut hashes).map_err(IngestError::internal)?;
    let missing = |row: usize| key.iter().any(|column| column.is_null(row));
    Ok(hashes.into_iter().enumerate().map(|(row, hash)| (!missing(row)).then_some(hash)).collect())
}

/// The newest keys of a source as numbers, with the file each came in first.
#[derive(Debug, Default, Clone)]
pub(crate) struct RecentKeys {
    files: HashMap<u64, u32, RandomState>,
    order: VecDeque<u64>,
}

impl RecentKeys {
    /// The file that a key came in before; `None` for a new one, which is remembered.
    pub(crate) fn insert(&mut self, key: u64, file: u32) -> Option<u32> {
        if let Some(known) = self.files.get(&key) {
            return Some(*known);
        }
        if self.order.len() == KEYS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.files.remove(&oldest);
        }
        self.files.insert(key, file);
        self.order.push_back(key);
        None
    }

    fn contains(&self, key: u64) -> bool {
        self.files.contains_key(&key)
    }

    /// Adds the keys of a batch that was stored.
    pub(crate) fn extend(&mut self, batch: &Self) {
        for key in &batch.order {
            self.insert(*key, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_keys_are_forgotten_first() {
        let mut keys = RecentKeys::default();
        for key in 0..=KEYS_MAX as u64 {
            assert_eq!(keys.insert(key, 7), None);
        }
        assert_eq!(keys.order.len(), KEYS_MAX);
        assert!(!keys.contains(0) && keys.contains(1));
        assert_eq!(keys.insert(KEYS_MAX as u64, 8), Some(7));
    }

    #[test]
    fn a_key_with_a_missing_part_is_no_key() {
        let store: ArrayRef = Arc::new(StringArray::from(vec![Some("s"), None, Some("s"), Some("t")]));
        let number: ArrayRef = Arc::new(Int64Array::from(vec![1, 1, 1, 1]));
        let hashes = key_hashes(&[&store, &number], 4).unwrap();
        assert!(hashes[1].is_none() && hashes[0].is_some());
        assert_eq!(hashes[0], hashes[2]);
        assert_ne!(hashes[0], hashes[3]);
    }
}
