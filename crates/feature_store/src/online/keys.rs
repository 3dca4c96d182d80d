//! Keys of look-ups as bytes and hashes.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Int64Type};

/// The keys of some rows.
#[derive(Debug)]
pub(super) struct Keys {
    columns: Vec<KeyColumn>,
}

#[derive(Debug)]
enum KeyColumn {
    Int(Int64Array),
    Text(StringArray),
}

impl Keys {
    /// `columns` are `Int64` or `Utf8`, all of one length.
    pub(super) fn new(columns: &[ArrayRef]) -> Self {
        let column = |column: &ArrayRef| match column.data_type() {
            DataType::Int64 => KeyColumn::Int(column.as_primitive::<Int64Type>().clone()),
            _ => KeyColumn::Text(column.as_string::<i32>().clone()),
        };
        Self { columns: columns.iter().map(column).collect() }
    }

    /// Whether a column of the key is null.
    pub(super) fn is_null(&self, row: usize) -> bool {
        self.columns.iter().any(|column| match column {
            KeyColumn::Int(column) => column.is_null(row),
            KeyColumn::Text(column) => column.is_null(row),
        })
    }

    /// Adds the bytes of a key; answers how many they are. They are the bytes that history's buckets are decided by: a text as its UTF-8, an integer as 8 bytes,
    /// little-endian; of several columns each text behind its length as 8 bytes.
    pub(super) fn append(&self, row: usize, bytes: &mut Vec<u8>) -> usize {
        let before = bytes.len();
        let is_one = self.columns.len() == 1;
        for column in &self.columns {
            match column {
                KeyColumn::Int(column) => bytes.extend_from_slice(&column.value(row).to_le_bytes()),
                KeyColumn::Text(column) => {
                    let text = column.value(row).as_bytes();
                    if !is_one {
                        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
                    }
                    bytes.extend_from_slice(text);
                }
            }
        }
        bytes.len() - before
    }
}

/// Where a key is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyHash {
    bucket: u64,
    /// Decides on the slab by its upper bits and on the row by its lower ones.
    spread: u64,
}

impl KeyHash {
    /// Of the bytes of a key: FNV-1a (64 bit), by which history is spread over buckets, and what Murmur 3's last step makes of it.
    pub(super) fn of(key: &[u8]) -> Self {
        let bucket = key.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut spread = bucket;
        spread = (spread ^ (spread >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        spread = (spread ^ (spread >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        Self { bucket, spread: spread ^ (spread >> 33) }
    }

    /// The bucket of the key, of so many.
    pub(super) fn bucket(self, buckets: usize) -> usize {
        // Below `buckets`.
        usize::try_from(self.bucket % (buckets as u64)).unwrap_or_default()
    }

    /// The slab of the key, of two to the power of `bits`.
    pub(super) fn slab(self, bits: u32) -> usize {
        // The upper bits: below the number of slabs.
        usize::try_from(self.spread.checked_shr(u64::BITS - bits).unwrap_or_default()).unwrap_or_default()
    }

    /// What rows of a slab are sorted by.
    pub(super) fn tag(self) -> u32 {
        u32::try_from(self.spread & u64::from(u32::MAX)).unwrap_or_default()
    }
}
