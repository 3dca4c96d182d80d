//! A part of the spine, brought into the order of history: by bucket, then key, then moment.

use std::ops::Range;
use std::sync::OnceLock;

use arrow::array::{Array, ArrayRef};

use crate::Result;
use crate::keys::{Bucketing, ByteList, KeyList, Keys};

/// Rows of the spine by bucket. Views that agree in key columns and number of buckets share it; a bucket is sorted when it is first asked for.
#[derive(Debug)]
pub(crate) struct Layout {
    keys: Keys,
    /// The first of several key columns: what statistics of files are about.
    first_key: Option<ArrayRef>,
    moments: std::sync::Arc<[i64]>,
    /// Rows by bucket, in no order within.
    rows: Vec<u32>,
    ends: Vec<usize>,
    sorted: Vec<OnceLock<SpineBucket>>,
}

/// The rows of a bucket, sorted by key and moment. A place is a row's number in this order.
#[derive(Debug)]
pub(crate) struct SpineBucket {
    /// Which row of the part stands at each place.
    pub(crate) rows: Vec<u32>,
    /// Its moment.
    pub(crate) moments: Vec<i64>,
    /// The first of all moments.
    pub(crate) earliest: i64,
    /// Each key once.
    pub(crate) keys: KeyList,
    /// Where the places of each key begin, and the number of places.
    pub(crate) starts: Vec<usize>,
    /// The first column of each key, when there are several.
    first_keys: Option<KeyList>,
}

impl Layout {
    /// `columns` are the keys, in the types of history, and `moments` the timestamps of at most `u32::MAX` rows. A row with a null in its key is in no bucket.
    pub(crate) fn new(columns: &[ArrayRef], moments: std::sync::Arc<[i64]>, buckets: u32) -> Result<Self> {
        let bucketing = Bucketing::new(columns, buckets);
        let count = usize::try_from(buckets).unwrap_or(1);
        let is_null = |row: usize| columns.iter().any(|column| column.is_null(row));
        let nullable = columns.iter().any(|column| column.null_count() > 0);
        let mut bucket_of = Vec::with_capacity(moments.len());
        let mut ends = vec![0_usize; count + 1];
        for row in 0..moments.len() {
            let bucket = if nullable && is_null(row) { count } else { bucketing.bucket(row) };
            ends[bucket] += 1;
            bucket_of.push(bucket);
        }
        let mut next = Vec::with_capacity(count + 1);
        let mut sum = 0;
        for end in &mut ends {
            next.push(sum);
            sum += *end;
            *end = sum;
        }
        let mut rows = vec![0; moments.len()];
        for (row, bucket) in (0..).zip(bucket_of) {
            rows[next[bucket]] = row;
            next[bucket] += 1;
        }
        rows.truncate(ends[count - 1]);
        ends.truncate(count);
        let first_key = if columns.len() > 1 { columns.first().cloned() } else { None };
        let sorted = std::iter::repeat_with(OnceLock::new).take(count).collect();
        Ok(Self { keys: Keys::new(columns)?, first_key, moments, rows, ends, sorted })
    }

    /// Which places, counted over all buckets, a bucket has.
    pub(crate) fn places(&self, bucket: usize) -> Range<usize> {
        let begin = if bucket == 0 { 0 } else { self.ends[bucket - 1] };
        begin..self.ends[bucket]
    }

    /// How many rows have a key.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn buckets(&self) -> usize {
        self.ends.len()
    }

    /// The place of each row, counted over all buckets; rows without a key are at the place behind the last.
    pub(crate) fn positions(&self) -> Vec<u32> {
        let nowhere = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let mut positions = vec![nowhere; self.moments.len()];
        let mut place = 0;
        for bucket in 0..self.buckets() {
            for &row in &self.bucket(bucket).rows {
                positions[index(row)] = place;
                place += 1;
            }
        }
        positions
    }

    /// A bucket in order. Sorts it when nobody has yet.
    pub(crate) fn bucket(&self, bucket: usize) -> &SpineBucket {
        self.sorted[bucket].get_or_init(|| self.sort(&self.rows[self.places(bucket)]))
    }

    fn sort(&self, rows: &[u32]) -> SpineBucket {
        let moment = |row: u32| self.moments[index(row)];
        let (rows, starts, keys) = match &self.keys {
            Keys::Int(values) => {
                let mut order: Vec<(i64, i64, u32)> =
                    rows.iter().map(|&row| (values.value(index(row)), moment(row), row)).collect();
                order.sort_unstable();
                let (mut keys, mut starts) = (Vec::new(), Vec::new());
                for (place, &(key, _, _)) in order.iter().enumerate() {
                    if keys.last() != Some(&key) {
                        keys.push(key);
                        starts.push(place);
                    }
                }
                (order.into_iter().map(|(_, _, row)| row).collect::<Vec<_>>(), starts, KeyList::Int(keys))
            }
            values => {
                // The first bytes of a key decide most comparisons without a look at the rest.
                let mut order: Vec<(u64, i64, u32)> =
                    rows.iter().map(|&row| (prefix(values.bytes(index(row))), moment(row), row)).collect();
                order.sort_unstable_by(|a, b| {
                    let whole = || values.bytes(index(a.2)).cmp(values.bytes(index(b.2)));
                    a.0.cmp(&b.0).then_with(whole).then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
                });
                let (mut keys, mut starts) = (ByteList::new(), Vec::new());
                let mut last: Option<&[u8]> = None;
                for (place, &(_, _, row)) in order.iter().enumerate() {
                    let key = values.bytes(index(row));
                    if last != Some(key) {
                        keys.push(key);
                        starts.push(place);
                        last = Some(key);
                    }
                }
                (order.into_iter().map(|(_, _, row)| row).collect::<Vec<_>>(), starts, KeyList::Bytes(keys))
            }
        };
        let first_keys = self.first_key.as_ref().and_then(|column| {
            let column = Keys::new(std::slice::from_ref(column)).ok()?;
            let rows = starts.iter().map(|&place| index(rows[place]));
            Some(match &column {
                Keys::Int(values) => KeyList::Int(rows.map(|row| values.value(row)).collect()),
                values => {
                    let mut keys = ByteList::new();
                    rows.for_each(|row| keys.push(values.bytes(row)));
                    KeyList::Bytes(keys)
                }
            })
        });
        let mut starts = starts;
        starts.push(rows.len());
        let moments: Vec<i64> = rows.iter().map(|&row| moment(row)).collect();
        let earliest = moments.iter().copied().min().unwrap_or(i64::MAX);
        SpineBucket { rows, moments, earliest, keys, starts, first_keys }
    }
}

impl SpineBucket {
    /// Whether a key whose first column is from `low` to `high` asks for a moment at or after `since`.
    pub(crate) fn touches(&self, low: Bound<'_>, high: Bound<'_>, since: i64) -> bool {
        let keys = self.first_keys.as_ref().unwrap_or(&self.keys);
        let (from, to) = match (keys, low, high) {
            (KeyList::Int(keys), Bound::Int(low), Bound::Int(high)) => {
                (keys.partition_point(|&key| key < low), keys.partition_point(|&key| key <= high))
            }
            (KeyList::Bytes(keys), Bound::Bytes(low), Bound::Bytes(high)) => (
                crate::keys::gallop(0, keys.len(), |at| keys.get(at) < low),
                crate::keys::gallop(0, keys.len(), |at| keys.get(at) <= high),
            ),
            // Nothing is known.
            _ => (0, keys.len()),
        };
        // The moments of a key ascend.
        (from..to).any(|key| self.moments[self.starts[key + 1] - 1] >= since)
    }
}

/// A bound of a key's first column, as statistics give it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound<'a> {
    Unknown,
    Int(i64),
    Bytes(&'a [u8]),
}

/// Row numbers of a part are below `u32::MAX`, and memory is addressed by more than 32 bits or does not hold them.
pub(crate) fn index(row: u32) -> usize {
    usize::try_from(row).unwrap_or(usize::MAX)
}

fn prefix(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    let length = bytes.len().min(8);
    first[..length].copy_from_slice(&bytes[..length]);
    u64::from_be_bytes(first)
}
