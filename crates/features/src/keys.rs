//! Keys of one or several columns, as something that is compared, hashed and sorted.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use arrow::row::{RowConverter, Rows, SortField};

use crate::Result;

/// The keys of some rows. Nulls are the caller's business: they compare as whatever is stored below them.
#[derive(Debug)]
pub(crate) enum Keys {
    /// One column of integers.
    Int(Int64Array),
    /// One column of text, compared byte by byte.
    Text(StringArray),
    /// Several columns, in arrow's row format: its bytes compare as the columns do, one after the other.
    Rows(Rows),
}

impl Keys {
    /// `columns` are `Int64` or `Utf8`, all of one length.
    pub(crate) fn new(columns: &[ArrayRef]) -> Result<Self> {
        if let [column] = columns {
            return Ok(match column.data_type() {
                DataType::Int64 => Self::Int(column.as_primitive::<Int64Type>().clone()),
                _ => Self::Text(column.as_string::<i32>().clone()),
            });
        }
        let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
        Ok(Self::Rows(RowConverter::new(fields)?.convert_columns(columns)?))
    }

    /// The bytes of a key that is not one integer.
    pub(crate) fn bytes(&self, row: usize) -> &[u8] {
        match self {
            Self::Int(_) => &[],
            Self::Text(text) => text.value(row).as_bytes(),
            Self::Rows(rows) => rows.row(row).data(),
        }
    }
}

/// Which of `buckets` a key belongs to: FNV-1a (64 bit) modulo their number. Part of the format: it must never change. A text is hashed as its UTF-8, so that
/// customers are in the bucket that `customer_bucket` gives them, an integer as 8 bytes, little-endian; of several columns one behind the other, each text behind
/// its length as 8 bytes.
#[derive(Debug)]
pub(crate) struct Bucketing {
    columns: Vec<KeyColumn>,
    buckets: u64,
}

#[derive(Debug)]
enum KeyColumn {
    Int(Int64Array),
    Text(StringArray),
}

/// What the hash of no bytes is.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl Bucketing {
    /// `columns` are `Int64` or `Utf8`, all of one length.
    pub(crate) fn new(columns: &[ArrayRef], buckets: u32) -> Self {
        let column = |column: &ArrayRef| match column.data_type() {
            DataType::Int64 => KeyColumn::Int(column.as_primitive::<Int64Type>().clone()),
            _ => KeyColumn::Text(column.as_string::<i32>().clone()),
        };
        Self { columns: columns.iter().map(column).collect(), buckets: u64::from(buckets) }
    }

    /// The bucket of a row.
    pub(crate) fn bucket(&self, row: usize) -> usize {
        let hash = match self.columns.as_slice() {
            [KeyColumn::Int(column)] => fnv(FNV_OFFSET, &column.value(row).to_le_bytes()),
            [KeyColumn::Text(column)] => fnv(FNV_OFFSET, column.value(row).as_bytes()),
            columns => columns.iter().fold(FNV_OFFSET, |hash, column| match column {
                KeyColumn::Int(column) => fnv(hash, &column.value(row).to_le_bytes()),
                KeyColumn::Text(column) => {
                    let text = column.value(row).as_bytes();
                    fnv(fnv(hash, &(text.len() as u64).to_le_bytes()), text)
                }
            }),
        };
        // Below `buckets`, a u32.
        usize::try_from(hash % self.buckets).unwrap_or_default()
    }
}

/// Distinct keys in ascending order, apart from the rows they came from.
#[derive(Debug)]
pub(crate) enum KeyList {
    Int(Vec<i64>),
    Bytes(ByteList),
}

impl KeyList {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Int(keys) => keys.len(),
            Self::Bytes(keys) => keys.len(),
        }
    }
}

/// Byte strings, one after the other.
#[derive(Debug)]
pub(crate) struct ByteList {
    ends: Vec<usize>,
    data: Vec<u8>,
}

impl ByteList {
    pub(crate) fn new() -> Self {
        Self { ends: vec![0], data: Vec::new() }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        self.ends.push(self.data.len());
    }

    pub(crate) fn get(&self, at: usize) -> &[u8] {
        &self.data[self.ends[at]..self.ends[at + 1]]
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len() - 1
    }
}

/// The first place in `from..to` where `before` is false; near places are looked at first.
pub(crate) fn gallop(from: usize, to: usize, mut before: impl FnMut(usize) -> bool) -> usize {
    let (mut low, mut step) = (from, 1);
    // Everything below `low` is before.
    let mut high = loop {
        let probe = low + step - 1;
        if probe >= to {
            break to;
        }
        if !before(probe) {
            break probe;
        }
        low = probe + 1;
        step *= 2;
    };
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_first_place_is_found_wherever_it_is() {
        for end in 0..70 {
            for edge in 0..=end {
                for from in 0..=edge {
                    assert_eq!(gallop(from, end, |at| at < edge), edge);
                }
            }
        }
    }

    #[test]
    fn buckets_are_part_of_the_format() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["", "a", "foobar"]));
        let ints: ArrayRef = Arc::new(Int64Array::from(vec![0, 1, -7]));
        let found = |columns: &[ArrayRef]| {
            let bucketing = Bucketing::new(columns, 1 << 31);
            (0..3).map(|row| bucketing.bucket(row)).collect::<Vec<_>>()
        };
        // The published values of FNV-1a 64 are cbf29ce484222325, af63dc4c8601ec8c and 85944171f73967e8.
        assert_eq!(found(&[Arc::clone(&texts)]), [0x0422_2325, 0x0601_ec8c, 0x7739_67e8]);
        assert_eq!(found(&[Arc::clone(&ints)]), [0x281a_39c5, 0x1d2a_efa4, 0x3770_0dfb]);
        assert_eq!(found(&[ints, texts]), [0x60ff_6465, 0x79ba_1f2c, 0x2582_36a0]);
    }
}
