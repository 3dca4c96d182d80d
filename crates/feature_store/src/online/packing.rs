//! How a row of history is packed: its place in history, its nulls and its values side by side, so that a look-up touches one stretch of memory.

use arrow::array::ArrayData;
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch, StringArray, make_array, new_null_array,
};
use arrow::buffer::{Buffer, MutableBuffer, NullBuffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use arrow::row::{RowConverter, SortField};
use holdfast_features::{DELETED, EVENT_TIMESTAMP, HistorySchema, KNOWN_AT, VERSION};

use super::keys::Keys;
use crate::{FeatureStoreError, Result};

/// Where the parts of a packed row begin: event time, known time and version (8 bytes each), length of the key, length of the row with the mark of a deletion, nulls.
const EVENT: usize = 0;
const KNOWN: usize = 8;
const STEP: usize = 16;
const KEY_BYTES: usize = 24;
const LENGTH: usize = 28;
const NULLS: usize = 32;

/// Where a row stands in history: event time, known time, version.
pub(super) type Place = (i64, i64, i64);

/// The layout of the rows of one history.
#[derive(Debug)]
pub(super) struct Packing {
    values: Vec<PackedValue>,
    /// Behind the values of fixed width: the key, then what varies in length.
    fixed_bytes: usize,
}

#[derive(Debug)]
struct PackedValue {
    at: usize,
    data_type: DataType,
    encoding: Encoding,
}

#[derive(Debug)]
enum Encoding {
    Bool,
    /// Its bytes, as Arrow has them.
    Fixed(usize),
    /// Where its bytes begin in the row, and how many they are.
    Text,
    Bytes,
    /// As `Bytes`, in Arrow's row format: lists, structs and whatever else there is.
    Nested(Box<RowConverter>),
}

/// Packed rows, one behind the other.
#[derive(Debug, Default)]
pub(super) struct PackedRows {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl PackedRows {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, end)| &self.bytes[begin..*end])
    }
}

/// When the row's event was.
pub(super) fn event_of(row: &[u8]) -> i64 {
    i64_at(row, EVENT)
}

/// Where the row stands in history.
pub(super) fn place_of(row: &[u8]) -> Place {
    (i64_at(row, EVENT), i64_at(row, KNOWN), i64_at(row, STEP))
}

/// Whether the row says that its key has no features.
pub(super) fn is_deletion(row: &[u8]) -> bool {
    u32_at(row, LENGTH) & 1 == 1
}

/// How long the row is that begins here.
pub(super) fn length_of(bytes: &[u8]) -> usize {
    index(u32_at(bytes, LENGTH) >> 1)
}

impl Packing {
    /// The layout for a history.
    ///
    /// # Errors
    /// A type that no row can hold.
    pub(super) fn of(schema: &HistorySchema) -> Result<Self> {
        let mut at = NULLS + schema.features().len().div_ceil(8);
        let mut values = Vec::with_capacity(schema.features().len());
        for field in schema.features() {
            let (encoding, width) = match field.data_type() {
                DataType::Boolean => (Encoding::Bool, 1),
                DataType::Utf8 => (Encoding::Text, 8),
                DataType::Binary => (Encoding::Bytes, 8),
                data_type => match data_type.primitive_width() {
                    Some(width) => (Encoding::Fixed(width), width),
                    None => {
                        let converter = RowConverter::new(vec![SortField::new(data_type.clone())])?;
                        (Encoding::Nested(Box::new(converter)), 8)
                    }
                },
            };
            values.push(PackedValue { at, data_type: field.data_type().clone(), encoding });
            at += width;
        }
        Ok(Self { values, fixed_bytes: at })
    }

    /// The key of a row.
    pub(super) fn key_of<'a>(&self, row: &'a [u8]) -> &'a [u8] {
        &row[self.fixed_bytes..self.fixed_bytes + index(u32_at(row, KEY_BYTES))]
    }

    /// Packs the chosen rows of a batch of history behind `rows`, in the order in which they are chosen.
    ///
    /// # Errors
    /// A row of 2 GiB or more; a batch that is none of this history.
    pub(super) fn pack(
        &self,
        schema: &HistorySchema,
        batch: &RecordBatch,
        chosen: &[usize],
        rows: &mut PackedRows,
    ) -> Result<()> {
        let keys = Keys::new(&batch.columns()[..schema.keys().len()]);
        let (events, knowns) = (moments(batch, EVENT_TIMESTAMP)?, moments(batch, KNOWN_AT)?);
        let versions = versions(batch)?;
        let deleted = batch.column_by_name(DELETED).and_then(|column| column.as_boolean_opt());
        let deleted = deleted.ok_or_else(|| no_column(DELETED))?;
        let columns = schema
            .features()
            .iter()
            .map(|field| batch.column_by_name(field.name()).ok_or_else(|| no_column(field.name())));
        let columns: Vec<&ArrayRef> = columns.collect::<Result<_>>()?;
        let sources = self.values.iter().zip(&columns).map(|(value, column)| Source::of(value, column));
        let sources: Vec<Source<'_>> = sources.collect::<Result<_>>()?;

        for &row in chosen {
            let begin = rows.bytes.len();
            rows.bytes.resize(begin + self.fixed_bytes, 0);
            let key_bytes = keys.append(row, &mut rows.bytes);
            for (number, ((value, source), column)) in self.values.iter().zip(&sources).zip(&columns).enumerate() {
                if column.is_null(row) {
                    rows.bytes[begin + NULLS + number / 8] |= 1 << (number % 8);
                    continue;
                }
                let at = begin + value.at;
                match source {
                    Source::Bool(array) => rows.bytes[at] = u8::from(array.value(row)),
                    Source::Fixed(bytes, width) => {
                        rows.bytes[at..at + width].copy_from_slice(&bytes[row * width..(row + 1) * width]);
                    }
                    varying => {
                        let (offset, bytes) = (rows.bytes.len() - begin, varying.bytes(row));
                        rows.bytes[at..at + 4].copy_from_slice(&short(offset)?.to_le_bytes());
                        rows.bytes[at + 4..at + 8].copy_from_slice(&short(bytes.len())?.to_le_bytes());
                        rows.bytes.extend_from_slice(bytes);
                    }
                }
            }
            let length = short(rows.bytes.len() - begin)? << 1 | u32::from(deleted.value(row));
            let head = &mut rows.bytes[begin..begin + NULLS];
            head[EVENT..KNOWN].copy_from_slice(&events[row].to_le_bytes());
            head[KNOWN..STEP].copy_from_slice(&knowns[row].to_le_bytes());
            head[STEP..KEY_BYTES].copy_from_slice(&versions[row].to_le_bytes());
            head[KEY_BYTES..LENGTH].copy_from_slice(&short(key_bytes)?.to_le_bytes());
            head[LENGTH..NULLS].copy_from_slice(&length.to_le_bytes());
            rows.ends.push(rows.bytes.len());
        }
        Ok(())
    }

    /// A feature of some rows, as a column; null where there is no row.
    ///
    /// # Errors
    /// Memory that does not hold what was packed.
    pub(super) fn column(&self, feature: usize, rows: &[Option<&[u8]>]) -> Result<ArrayRef> {
        let value = &self.values[feature];
        let (byte, mask) = (NULLS + feature / 8, 1_u8 << (feature % 8));
        let valid = |row: &&[u8]| row[byte] & mask == 0;
        match &value.encoding {
            Encoding::Bool => {
                let found = rows.iter().map(|row| row.filter(valid).map(|row| row[value.at] != 0));
                Ok(std::sync::Arc::new(BooleanArray::from_iter(found)))
            }
            Encoding::Fixed(1) => fixed::<1>(value, rows, valid),
            Encoding::Fixed(2) => fixed::<2>(value, rows, valid),
            Encoding::Fixed(4) => fixed::<4>(value, rows, valid),
            Encoding::Fixed(8) => fixed::<8>(value, rows, valid),
            Encoding::Fixed(16) => fixed::<16>(value, rows, valid),
            Encoding::Fixed(_) => fixed::<32>(value, rows, valid),
            Encoding::Text => {
                let (offsets, bytes, nulls) = varying(value, rows, valid);
                Ok(std::sync::Arc::new(StringArray::try_new(offsets, bytes, nulls)?))
            }
            Encoding::Bytes => {
                let (offsets, bytes, nulls) = varying(value, rows, valid);
                Ok(std::sync::Arc::new(BinaryArray::try_new(offsets, bytes, nulls)?))
            }
            Encoding::Nested(converter) => {
                let null = converter.convert_columns(&[new_null_array(&value.data_type, 1)])?;
                let parser = converter.parser();
                let found = rows.iter().map(|row| match row.filter(valid) {
                    Some(row) => parser.parse(part(row, value.at)),
                    None => parser.parse(null.row(0).data()),
                });
                let columns = converter.convert_rows(found.collect::<Vec<_>>())?;
                let column = columns.into_iter().next().ok_or_else(|| no_column("a value"))?;
                // Dictionaries come back as what they stand for.
                if column.data_type() == &value.data_type { Ok(column) } else { Ok(cast(&column, &value.data_type)?) }
            }
        }
    }
}

/// Where the values of a column are taken from.
enum Source<'a> {
    Bool(&'a BooleanArray),
    Fixed(Buffer, usize),
    Text(&'a StringArray),
    Bytes(&'a BinaryArray),
    Nested(arrow::row::Rows),
}

impl<'a> Source<'a> {
    fn of(value: &PackedValue, column: &'a ArrayRef) -> Result<Self> {
        if column.data_type() != &value.data_type {
            let (found, expected) = (column.data_type(), &value.data_type);
            return Err(FeatureStoreError::Arrow(arrow::error::ArrowError::SchemaError(format!(
                "a column of history is {found}, expected {expected}"
            ))));
        }
        Ok(match &value.encoding {
            Encoding::Bool => Self::Bool(column.as_boolean()),
            Encoding::Fixed(width) => {
                let data = column.to_data();
                Self::Fixed(data.buffers()[0].slice(data.offset() * width), *width)
            }
            Encoding::Text => Self::Text(column.as_string::<i32>()),
            Encoding::Bytes => Self::Bytes(column.as_binary::<i32>()),
            Encoding::Nested(converter) => Self::Nested(converter.convert_columns(&[std::sync::Arc::clone(column)])?),
        })
    }

    /// The bytes of a value that varies in length.
    fn bytes(&self, row: usize) -> &[u8] {
        match self {
            Self::Text(array) => array.value(row).as_bytes(),
            Self::Bytes(array) => array.value(row),
            Self::Nested(rows) => rows.row(row).data(),
            Self::Bool(_) | Self::Fixed(..) => &[],
        }
    }
}

fn fixed<const WIDTH: usize>(
    value: &PackedValue,
    rows: &[Option<&[u8]>],
    valid: impl Fn(&&[u8]) -> bool,
) -> Result<ArrayRef> {
    let mut bytes = MutableBuffer::from_len_zeroed(rows.len() * WIDTH);
    let mut is_valid = Vec::with_capacity(rows.len());
    for (row, place) in rows.iter().zip(bytes.chunks_exact_mut(WIDTH)) {
        let found = row.filter(&valid);
        if let Some(row) = found {
            place.copy_from_slice(&row[value.at..value.at + WIDTH]);
        }
        is_valid.push(found.is_some());
    }
    let data = ArrayData::builder(value.data_type.clone())
        .len(rows.len())
        .add_buffer(bytes.into())
        .nulls(Some(NullBuffer::from(is_valid)).filter(|nulls| nulls.null_count() > 0));
    Ok(make_array(data.build()?))
}

fn varying(
    value: &PackedValue,
    rows: &[Option<&[u8]>],
    valid: impl Fn(&&[u8]) -> bool,
) -> (OffsetBuffer<i32>, Buffer, Option<NullBuffer>) {
    let found: Vec<Option<&[u8]>> = rows.iter().map(|row| row.filter(&valid).map(|row| part(row, value.at))).collect();
    let mut bytes = MutableBuffer::new(found.iter().flatten().map(|part| part.len()).sum());
    found.iter().flatten().for_each(|part| bytes.extend_from_slice(part));
    let offsets = OffsetBuffer::from_lengths(found.iter().map(|part| part.map_or(0, <[u8]>::len)));
    let nulls = NullBuffer::from_iter(found.iter().map(Option::is_some));
    (offsets, bytes.into(), Some(nulls).filter(|nulls| nulls.null_count() > 0))
}

/// The bytes that a value of varying length has in its row.
fn part(row: &[u8], at: usize) -> &[u8] {
    let begin = index(u32_at(row, at));
    &row[begin..begin + index(u32_at(row, at + 4))]
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    i64::from_le_bytes(value)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

/// Lossless where there are 32 bits of address or more.
pub(super) fn index(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Below 2 GiB.
fn short(length: usize) -> Result<u32> {
    let fits = u32::try_from(length).ok().filter(|length| *length < 1 << 31);
    fits.ok_or_else(|| FeatureStoreError::Request("a row of an online view has 2 GiB or more".to_owned()))
}

pub(super) fn moments<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a [i64]> {
    let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    Ok(column.ok_or_else(|| no_column(name))?.values())
}

pub(super) fn versions(batch: &RecordBatch) -> Result<&[i64]> {
    let column = batch.column_by_name(VERSION).and_then(|column| column.as_primitive_opt::<Int64Type>());
    Ok(column.ok_or_else(|| no_column(VERSION))?.values())
}

/// History has these columns, or was refused when it was opened.
fn no_column(name: &str) -> FeatureStoreError {
    FeatureStoreError::Arrow(arrow::error::ArrowError::SchemaError(format!("rows of history without {name}")))
}
