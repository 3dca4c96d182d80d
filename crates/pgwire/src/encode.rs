//! Values of Arrow columns as PostgreSQL writes them, straight into the connection's buffer. Text as `psql` shows it, with the settings
//! `datestyle = iso`, `bytea_output = hex`, `intervalstyle = postgres`, `timezone = utc`; binary as the types' `send` functions do.

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, GenericListArray, IntervalMonthDayNanoArray, LargeBinaryArray,
    LargeStringArray, PrimitiveArray, RecordBatch, StringArray, StringViewArray,
};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, FieldRef, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    IntervalUnit, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, NullableEncoder, make_encoder};

use holdfast_types::civil;

use crate::message::{Format, close_frame};
use crate::types::{CHAR, ColumnType, INT2VECTOR, NUMERIC, TYPE_KEY};

/// Days and microseconds from 1970 to 2000, where PostgreSQL's time begins.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROSECONDS: i64 = 10_957 * DAY_MICROSECONDS;
const DAY_MICROSECONDS: i64 = 86_400_000_000;

/// Members that are null are left out, bytes are in hexadecimal.
static JSON_OPTIONS: LazyLock<EncoderOptions> = LazyLock::new(EncoderOptions::default);

/// Writes the rows of one batch.
pub(crate) struct BatchEncoder<'a> {
    columns: Vec<(Values<'a>, Format)>,
}

/// How a file in the format of `copy` is to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CopyStyle {
    Text { delimiter: u8, null: String },
    Csv { delimiter: u8, quote: u8, null: String, force_quote: bool },
    Binary,
}

/// A batch whose columns have the types that can be written: made of one that may have others.
pub(crate) fn writable(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields: Vec<FieldRef> = Vec::with_capacity(batch.num_columns());
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let wanted = written_as(field.data_type());
        columns.push(if wanted == *column.data_type() { Arc::clone(column) } else { cast(column, &wanted)? });
        let mut written = field.as_ref().clone().with_data_type(wanted.clone()).with_nullable(true);
        if wanted == DataType::Utf8 && ColumnType::of(field) == ColumnType::plain(NUMERIC) {
            written = written.with_metadata([(TYPE_KEY.to_owned(), NUMERIC.name.to_owned())].into());
        }
        fields.push(Arc::new(written));
    }
    let schema = Arc::new(arrow::datatypes::Schema::new(fields));
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, columns, &options)
}

/// The type that a column is cast to before it is written. What is written as JSON stays as it is.
fn written_as(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) if *scale >= 0 => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Decimal32(..) | DataType::Decimal64(..) => DataType::Utf8,
        // Written out: wider than what is worked with here, or with zeros that are not kept.
        DataType::Decimal256(..) => DataType::Utf8,
        DataType::Decimal128(_, scale) if *scale < 0 => DataType::Utf8,
        DataType::BinaryView | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Interval(_) | DataType::Duration(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::Dictionary(_, value) => written_as(value),
        DataType::RunEndEncoded(_, value) => written_as(value.data_type()),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            let inner = written_as(item.data_type());
            DataType::List(Arc::new(item.as_ref().clone().with_data_type(inner).with_nullable(true)))
        }
        other => other.clone(),
    }
}

impl<'a> BatchEncoder<'a> {
    /// `batch` as [`writable`] gave it; one format a column.
    pub(crate) fn new(batch: &'a RecordBatch, formats: &[Format]) -> Result<Self, ArrowError> {
        let columns = batch
            .schema_ref()
            .fields()
            .iter()
            .zip(batch.columns())
            .zip(formats)
            .map(|((field, column), format)| Ok((Values::new(field, column)?, *format)))
            .collect::<Result<_, ArrowError>>()?;
        Ok(Self { columns })
    }

    /// One row as a message of its own.
    pub(crate) fn data_row(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'D');
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        self.fields(row, out);
        close_frame(out, start);
    }

    /// One line, or one tuple, of a copy, as a message of its own.
    pub(crate) fn copy_row(&mut self, row: usize, style: &CopyStyle, out: &mut Vec<u8>) {
        out.push(b'd');
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        match style {
            CopyStyle::Binary => self.fields(row, out),
            CopyStyle::Text { delimiter, null } => {
                self.line(row, (*delimiter, null), out, |out, begins| escape(out, begins, *delimiter));
            }
            CopyStyle::Csv { delimiter, quote, null, force_quote } => {
                let quoted =
                    |out: &mut Vec<u8>, begins| quote_csv(out, begins, (*delimiter, *quote), null, *force_quote);
                self.line(row, (*delimiter, null), out, quoted);
            }
        }
        close_frame(out, start);
    }

    /// Values with delimiters between them; `finish` is told where each begins.
    fn line(
        &mut self,
        row: usize,
        (delimiter, null): (u8, &str),
        out: &mut Vec<u8>,
        finish: impl Fn(&mut Vec<u8>, usize),
    ) {
        for (index, (values, _)) in self.columns.iter_mut().enumerate() {
            if index > 0 {
                out.push(delimiter);
            }
            if values.is_null(row) {
                out.extend_from_slice(null.as_bytes());
                continue;
            }
            let begins = out.len();
            values.text(row, out);
            finish(out, begins);
        }
        out.push(b'\n');
    }

    fn fields(&mut self, row: usize, out: &mut Vec<u8>) {
        let count = u16::try_from(self.columns.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for (values, format) in &mut self.columns {
            if values.is_null(row) {
                out.extend_from_slice(&(-1_i32).to_be_bytes());
                continue;
            }
            let start = out.len();
            out.extend_from_slice(&[0; 4]);
            match format {
                Format::Text => values.text(row, out),
                Format::Binary => values.binary(row, out),
            }
            // The length of a value does not count itself.
            let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
            out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// The line with the names of columns.
pub(crate) fn copy_header(names: &[String], style: &CopyStyle, out: &mut Vec<u8>) {
    out.push(b'd');
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    for (index, name) in names.iter().enumerate() {
        match style {
            CopyStyle::Binary => {}
            CopyStyle::Text { delimiter, .. } => {
                if index > 0 {
                    out.push(*delimiter);
                }
                let begins = out.len();
                out.extend_from_slice(name.as_bytes());
                escape(out, begins, *delimiter);
            }
            CopyStyle::Csv { delimiter, quote, null, .. } => {
                if index > 0 {
                    out.push(*delimiter);
                }
                let begins = out.len();
                out.extend_from_slice(name.as_bytes());
                quote_csv(out, begins, (*delimiter, *quote), null, false);
            }
        }
    }
    out.push(b'\n');
    close_frame(out, start);
}

fn escape(out: &mut Vec<u8>, begins: usize, delimiter: u8) {
    let needs = |byte: &u8| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t' | 8 | 11 | 12) || *byte == delimiter;
    if !out[begins..].iter().any(needs) {
        return;
    }
    let plain = out.split_off(begins);
    for byte in plain {
        let letter = match byte {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            8 => b'b',
            11 => b'v',
            12 => b'f',
            b'\\' => b'\\',
            other if other == delimiter => other,
            other => {
                out.push(other);
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', letter]);
    }
}

fn quote_csv(out: &mut Vec<u8>, begins: usize, (delimiter, quote): (u8, u8), null: &str, force: bool) {
    let text = &out[begins..];
    let needs = |byte: &u8| matches!(byte, b'\n' | b'\r') || *byte == delimiter || *byte == quote;
    // What looks like null, or like the end of the data, is no such thing.
    if !force && text != null.as_bytes() && text != b"\\." && !text.iter().any(needs) {
        return;
    }
    let plain = out.split_off(begins);
    out.push(quote);
    for byte in plain {
        if byte == quote {
            out.push(quote);
        }
        out.push(byte);
    }
    out.push(quote);
}

/// The values of a column, by the type that they are written as.
enum Values<'a> {
    Null,
    Bool(&'a BooleanArray),
    Int16(&'a PrimitiveArray<Int16Type>),
    Int32(&'a PrimitiveArray<Int32Type>),
    Int64(&'a PrimitiveArray<Int64Type>),
    Oid(&'a PrimitiveArray<UInt32Type>),
    UInt64(&'a PrimitiveArray<UInt64Type>),
    Float32(&'a PrimitiveArray<Float32Type>),
    Float64(&'a PrimitiveArray<Float64Type>),
    Decimal(&'a PrimitiveArray<Decimal128Type>, i8),
    Text(&'a StringArray),
    LargeText(&'a LargeStringArray),
    TextView(&'a StringViewArray),
    /// One byte.
    Char(&'a StringArray),
    /// Numbers in a text, with spaces between.
    Int2Vector(&'a StringArray),
    /// A decimal, written out.
    NumericText(&'a StringArray),
    Bytes(&'a BinaryArray),
    LargeBytes(&'a LargeBinaryArray),
    Date(&'a PrimitiveArray<Date32Type>),
    Time(&'a PrimitiveArray<Time64MicrosecondType>),
    Timestamp(&'a PrimitiveArray<TimestampMicrosecondType>, bool),
    Interval(&'a IntervalMonthDayNanoArray),
    List(&'a GenericListArray<i32>, Box<Values<'a>>, u32),
    Json(NullableEncoder<'a>, Option<NullBuffer>),
}

impl<'a> Values<'a> {
    fn new(field: &'a FieldRef, array: &'a ArrayRef) -> Result<Self, ArrowError> {
        let column_type = ColumnType::of(field);
        Ok(match array.data_type() {
            DataType::Utf8 if column_type == ColumnType::plain(CHAR) => Self::Char(array.as_string()),
            DataType::Utf8 if column_type == ColumnType::plain(INT2VECTOR) => Self::Int2Vector(array.as_string()),
            DataType::Utf8 if column_type == ColumnType::plain(NUMERIC) => Self::NumericText(array.as_string()),
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Bool(array.as_boolean()),
            DataType::Int16 => Self::Int16(array.as_primitive()),
            DataType::Int32 => Self::Int32(array.as_primitive()),
            DataType::Int64 => Self::Int64(array.as_primitive()),
            DataType::UInt32 => Self::Oid(array.as_primitive()),
            DataType::UInt64 => Self::UInt64(array.as_primitive()),
            DataType::Float32 => Self::Float32(array.as_primitive()),
            DataType::Float64 => Self::Float64(array.as_primitive()),
            DataType::Decimal128(_, scale) => Self::Decimal(array.as_primitive(), *scale),
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::LargeUtf8 => Self::LargeText(array.as_string()),
            DataType::Utf8View => Self::TextView(array.as_string_view()),
            DataType::Binary => Self::Bytes(array.as_binary()),
            DataType::LargeBinary => Self::LargeBytes(array.as_binary()),
            DataType::Date32 => Self::Date(array.as_primitive()),
            DataType::Time64(TimeUnit::Microsecond) => Self::Time(array.as_primitive()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => Self::Timestamp(array.as_primitive(), zone.is_some()),
            DataType::Interval(IntervalUnit::MonthDayNano) => Self::Interval(array.as_primitive()),
            DataType::List(item) if column_type.is_array => {
                let list = array.as_list::<i32>();
                Self::List(list, Box::new(Self::new(item, list.values())?), ColumnType::of(item).oid())
            }
            _ => Self::Json(make_encoder(field, array, &JSON_OPTIONS)?, array.nulls().cloned()),
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(array) => array.is_null(row),
            Self::Int16(array) => array.is_null(row),
            Self::Int32(array) => array.is_null(row),
            Self::Int64(array) => array.is_null(row),
            Self::Oid(array) => array.is_null(row),
            Self::UInt64(array) => array.is_null(row),
            Self::Float32(array) => array.is_null(row),
            Self::Float64(array) => array.is_null(row),
            Self::Decimal(array, _) => array.is_null(row),
            Self::Text(array) | Self::Char(array) | Self::Int2Vector(array) | Self::NumericText(array) => {
                array.is_null(row)
            }
            Self::LargeText(array) => array.is_null(row),
            Self::TextView(array) => array.is_null(row),
            Self::Bytes(array) => array.is_null(row),
            Self::LargeBytes(array) => array.is_null(row),
            Self::Date(array) => array.is_null(row),
            Self::Time(array) => array.is_null(row),
            Self::Timestamp(array, _) => array.is_null(row),
            Self::Interval(array) => array.is_null(row),
            Self::List(array, ..) => array.is_null(row),
            Self::Json(_, nulls) => nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)),
        }
    }

    fn text(&mut self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Null => {}
            Self::Bool(array) => out.push(if array.value(row) { b't' } else { b'f' }),
            Self::Int16(array) => put_integer(out, i64::from(array.value(row))),
            Self::Int32(array) => put_integer(out, i64::from(array.value(row))),
            Self::Int64(array) => put_integer(out, array.value(row)),
            Self::Oid(array) => put_unsigned(out, u64::from(array.value(row))),
            Self::UInt64(array) => put_unsigned(out, array.value(row)),
            Self::Float32(array) => {
                put_float(out, &format_args!("{:e}", array.value(row)), f64::from(array.value(row)), 6)
            }
            Self::Float64(array) => put_float(out, &format_args!("{:e}", array.value(row)), array.value(row), 15),
            Self::Decimal(array, scale) => put_decimal(out, array.value(row), *scale),
            Self::Text(array) | Self::Char(array) | Self::Int2Vector(array) | Self::NumericText(array) => {
                put_string(out, array.value(row))
            }
            Self::LargeText(array) => put_string(out, array.value(row)),
            Self::TextView(array) => put_string(out, array.value(row)),
            Self::Bytes(array) => put_hex(out, array.value(row)),
            Self::LargeBytes(array) => put_hex(out, array.value(row)),
            Self::Date(array) => put_date(out, i64::from(array.value(row))),
            Self::Time(array) => put_time(out, array.value(row)),
            Self::Timestamp(array, is_utc) => {
                let microseconds = array.value(row);
                let days = microseconds.div_euclid(DAY_MICROSECONDS);
                let is_before_christ = put_day(out, days);
                out.push(b' ');
                put_time(out, microseconds.rem_euclid(DAY_MICROSECONDS));
                if *is_utc {
                    out.extend_from_slice(b"+00");
                }
                if is_before_christ {
                    out.extend_from_slice(b" BC");
                }
            }
            Self::Interval(array) => {
                let value = array.value(row);
                put_interval(out, value.months, value.days, value.nanoseconds / 1_000);
            }
            Self::List(array, items, _) => {
                let offsets = array.value_offsets();
                out.push(b'{');
                for item in offset(offsets[row])..offset(offsets[row + 1]) {
                    if item > offset(offsets[row]) {
                        out.push(b',');
                    }
                    if items.is_null(item) {
                        out.extend_from_slice(b"NULL");
                        continue;
                    }
                    let begins = out.len();
                    items.text(item, out);
                    quote_element(out, begins);
                }
                out.push(b'}');
            }
            Self::Json(encoder, _) => encoder.encode(row, out),
        }
    }

    fn binary(&mut self, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Null => {}
            Self::Bool(array) => out.push(u8::from(array.value(row))),
            Self::Int16(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Int32(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Int64(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Oid(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::UInt64(array) => put_numeric(out, i128::from(array.value(row)), 0),
            Self::Float32(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Float64(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Decimal(array, scale) => put_numeric(out, array.value(row), *scale),
            Self::Int2Vector(array) => put_int2vector(out, array.value(row)),
            Self::NumericText(array) => put_numeric_text(out, array.value(row)),
            Self::Bytes(array) => out.extend_from_slice(array.value(row)),
            Self::LargeBytes(array) => out.extend_from_slice(array.value(row)),
            Self::Date(array) => out.extend_from_slice(&(array.value(row).wrapping_sub(EPOCH_DAYS)).to_be_bytes()),
            Self::Time(array) => out.extend_from_slice(&array.value(row).to_be_bytes()),
            Self::Timestamp(array, _) => {
                out.extend_from_slice(&(array.value(row).wrapping_sub(EPOCH_MICROSECONDS)).to_be_bytes());
            }
            Self::Interval(array) => {
                let value = array.value(row);
                out.extend_from_slice(&(value.nanoseconds / 1_000).to_be_bytes());
                out.extend_from_slice(&value.days.to_be_bytes());
                out.extend_from_slice(&value.months.to_be_bytes());
            }
            Self::List(array, items, item_oid) => {
                let offsets = array.value_offsets();
                let (first, end) = (offset(offsets[row]), offset(offsets[row + 1]));
                let has_nulls = (first..end).any(|item| items.is_null(item));
                let dimensions: i32 = if first == end { 0 } else { 1 };
                out.extend_from_slice(&dimensions.to_be_bytes());
                out.extend_from_slice(&i32::from(has_nulls).to_be_bytes());
                out.extend_from_slice(&item_oid.to_be_bytes());
                if first == end {
                    return;
                }
                out.extend_from_slice(&i32::try_from(end - first).unwrap_or(i32::MAX).to_be_bytes());
                out.extend_from_slice(&1_i32.to_be_bytes());
                for item in first..end {
                    if items.is_null(item) {
                        out.extend_from_slice(&(-1_i32).to_be_bytes());
                        continue;
                    }
                    let start = out.len();
                    out.extend_from_slice(&[0; 4]);
                    items.binary(item, out);
                    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
                    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
                }
            }
            Self::Text(_) | Self::LargeText(_) | Self::TextView(_) | Self::Char(_) | Self::Json(..) => {
                self.text(row, out);
            }
        }
    }
}

fn offset(value: i32) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// PostgreSQL's texts hold no zero byte, and clients in C end at one.
fn put_string(out: &mut Vec<u8>, text: &str) {
    if text.as_bytes().contains(&0) {
        out.extend(text.bytes().filter(|byte| *byte != 0));
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}

const PAIRS: &[u8; 200] = b"00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";

fn put_unsigned(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    while value >= 100 {
        let pair = usize::try_from(value % 100).unwrap_or(0) * 2;
        value /= 100;
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    }
    let pair = usize::try_from(value).unwrap_or(0) * 2;
    if value >= 10 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    } else {
        at -= 1;
        digits[at] = PAIRS[pair + 1];
    }
    out.extend_from_slice(&digits[at..]);
}

fn put_integer(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    put_unsigned(out, value.unsigned_abs());
}

/// A number with leading zeros.
fn put_padded(out: &mut Vec<u8>, value: i64, width: usize) {
    let begins = out.len();
    put_unsigned(out, value.unsigned_abs());
    let length = out.len() - begins;
    if length < width {
        out.resize(begins + width, b'0');
        out.copy_within(begins..begins + length, begins + width - length);
        out[begins..begins + width - length].fill(b'0');
    }
}

fn put_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"\\x");
    for byte in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// The shortest digits that give the number back, written out until the exponent reaches `scientific_from`, as PostgreSQL does.
fn put_float(out: &mut Vec<u8>, shortest: &std::fmt::Arguments<'_>, value: f64, scientific_from: i32) {
    if !value.is_finite() {
        let name: &[u8] = if value.is_nan() {
            b"NaN"
        } else if value > 0.0 {
            b"Infinity"
        } else {
            b"-Infinity"
        };
        return out.extend_from_slice(name);
    }
    let mut text = Stack::default();
    // Longer than the stack holds is no number.
    let _ = text.write_fmt(*shortest);
    let text = text.as_str();
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mantissa = match mantissa.strip_prefix('-') {
        Some(positive) => {
            out.push(b'-');
            positive
        }
        None => mantissa,
    };
    if !(-4..scientific_from).contains(&exponent) {
        out.extend_from_slice(mantissa.as_bytes());
        out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
        return put_padded(out, i64::from(exponent), 2);
    }
    let digits = mantissa.bytes().filter(|byte| *byte != b'.');
    if exponent < 0 {
        out.extend_from_slice(b"0.");
        (1..exponent.unsigned_abs()).for_each(|_| out.push(b'0'));
        return out.extend(digits);
    }
    let whole = usize::try_from(exponent).unwrap_or(0) + 1;
    let mut count = 0;
    for digit in digits {
        if count == whole {
            out.push(b'.');
        }
        out.push(digit);
        count += 1;
    }
    (count..whole).for_each(|_| out.push(b'0'));
}

/// A short text without the heap.
#[derive(Default)]
struct Stack {
    bytes: [u8; 32],
    length: usize,
}

impl Stack {
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl std::fmt::Write for Stack {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        self.bytes.get_mut(self.length..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

fn put_decimal(out: &mut Vec<u8>, value: i128, scale: i8) {
    if value < 0 {
        out.push(b'-');
    }
    let digits = value.unsigned_abs();
    let begins = out.len();
    match u64::try_from(digits) {
        Ok(digits) => put_unsigned(out, digits),
        Err(_) => {
            // Two halves of at most nineteen digits each.
            const HALF: u128 = 10_000_000_000_000_000_000;
            let (high, low) = (digits / HALF, digits % HALF);
            out.extend_from_slice(high.to_string().as_bytes());
            let low = low.to_string();
            (low.len()..19).for_each(|_| out.push(b'0'));
            out.extend_from_slice(low.as_bytes());
        }
    }
    if scale <= 0 {
        if digits != 0 {
            (0..scale.unsigned_abs()).for_each(|_| out.push(b'0'));
        }
        return;
    }
    let scale = usize::from(scale.unsigned_abs());
    let length = out.len() - begins;
    if length <= scale {
        let missing = scale + 1 - length;
        out.resize(out.len() + missing, b'0');
        out.copy_within(begins..begins + length, begins + missing);
        out[begins..begins + missing].fill(b'0');
    }
    let point = out.len() - scale;
    out.push(0);
    let end = out.len() - 1;
    out.copy_within(point..end, point + 1);
    out[point] = b'.';
}

/// As [`put_numeric`], of a number that is wider, or of a scale below zero: written out.
fn put_numeric_text(out: &mut Vec<u8>, text: &str) {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (0x4000_u16, digits),
        None => (0, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0');
    let padding = (4 - whole.len() % 4) % 4;
    let padded: String = "0".repeat(padding) + whole + fraction + &"0".repeat((4 - fraction.len() % 4) % 4);
    let groups: Vec<u16> = padded
        .as_bytes()
        .chunks(4)
        .map(|four| four.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0')))
        .collect();
    let zeros = groups.iter().take_while(|group| **group == 0).count();
    let end = groups.iter().rposition(|group| *group != 0).map_or(zeros, |last| last + 1);
    let weight = i16::try_from((whole.len() + padding) / 4).unwrap_or(0) - 1 - i16::try_from(zeros).unwrap_or(0);
    out.extend_from_slice(&u16::try_from(end.saturating_sub(zeros)).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&(if end > zeros { weight } else { 0 }).to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&u16::try_from(fraction.len()).unwrap_or(0).to_be_bytes());
    groups[zeros.min(end)..end].iter().for_each(|group| out.extend_from_slice(&group.to_be_bytes()));
}

/// The binary form of `numeric`: groups of four decimal digits, the first with its weight. The scale is not negative.
fn put_numeric(out: &mut Vec<u8>, value: i128, scale: i8) {
    let magnitude = value.unsigned_abs();
    let places = usize::from(scale.max(0).unsigned_abs());
    let unit = 10_u128.checked_pow(u32::try_from(places).unwrap_or(0)).unwrap_or(u128::MAX);
    let (mut whole, mut fraction) = (magnitude / unit, magnitude % unit);
    // Twenty groups hold eighty digits; a decimal of 128 bits has thirty-nine.
    let mut groups = [0_u16; 24];
    let group = |value: u128| u16::try_from(value % 10_000).unwrap_or(0);
    let mut at = 10;
    let mut count_whole = 0_i16;
    while whole > 0 && at > 0 {
        at -= 1;
        groups[at] = group(whole);
        whole /= 10_000;
        count_whole += 1;
    }
    let mut end = 10;
    let mut left = places;
    while left > 0 && end < groups.len() {
        let value = if left >= 4 {
            let unit = 10_u128.pow(u32::try_from(left - 4).unwrap_or(0));
            let value = fraction / unit;
            fraction %= unit;
            value
        } else {
            fraction * 10_u128.pow(u32::try_from(4 - left).unwrap_or(0))
        };
        groups[end] = group(value);
        end += 1;
        left = left.saturating_sub(4);
    }
    let mut weight = count_whole - 1;
    while at < end && groups[at] == 0 {
        at += 1;
        weight -= 1;
    }
    while end > at && groups[end - 1] == 0 {
        end -= 1;
    }
    if at == end {
        weight = 0;
    }
    let count = u16::try_from(end - at).unwrap_or(0);
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&(if value < 0 { 0x4000_u16 } else { 0 }).to_be_bytes());
    out.extend_from_slice(&u16::try_from(places).unwrap_or(0).to_be_bytes());
    groups[at..end].iter().for_each(|group| out.extend_from_slice(&group.to_be_bytes()));
}

fn put_int2vector(out: &mut Vec<u8>, text: &str) {
    let numbers: Vec<i16> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let one = i32::from(!numbers.is_empty());
    for word in [one, 0, 21, i32::try_from(numbers.len()).unwrap_or(0), 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for number in numbers {
        out.extend_from_slice(&2_i32.to_be_bytes());
        out.extend_from_slice(&number.to_be_bytes());
    }
}

fn put_date(out: &mut Vec<u8>, days: i64) {
    if put_day(out, days) {
        out.extend_from_slice(b" BC");
    }
}

/// Writes the day, counted from 1970, and tells whether it is before the year one.
fn put_day(out: &mut Vec<u8>, days: i64) -> bool {
    let (year, month, day) = civil(days);
    let is_before_christ = year <= 0;
    put_padded(out, if is_before_christ { 1 - year } else { year }, 4);
    out.push(b'-');
    put_padded(out, month, 2);
    out.push(b'-');
    put_padded(out, day, 2);
    is_before_christ
}

fn put_time(out: &mut Vec<u8>, microseconds: i64) {
    let seconds = microseconds / 1_000_000;
    put_padded(out, seconds / 3_600, 2);
    out.push(b':');
    put_padded(out, seconds / 60 % 60, 2);
    out.push(b':');
    put_padded(out, seconds % 60, 2);
    put_fraction(out, microseconds % 1_000_000);
}

/// Up to six digits behind the point, without zeros at the end.
fn put_fraction(out: &mut Vec<u8>, microseconds: i64) {
    if microseconds == 0 {
        return;
    }
    out.push(b'.');
    put_padded(out, microseconds, 6);
    while out.last() == Some(&b'0') {
        out.pop();
    }
}

fn put_interval(out: &mut Vec<u8>, months: i32, days: i32, microseconds: i64) {
    let begins = out.len();
    let mut part = |value: i32, unit: &str| {
        if value != 0 {
            if out.len() > begins {
                out.push(b' ');
            }
            put_integer(out, i64::from(value));
            out.extend_from_slice(unit.as_bytes());
            if value != 1 {
                out.push(b's');
            }
        }
    };
    part(months / 12, " year");
    part(months % 12, " mon");
    part(days, " day");
    if microseconds != 0 || out.len() == begins {
        if out.len() > begins {
            out.push(b' ');
        }
        if microseconds < 0 {
            out.push(b'-');
        }
        put_time(out, i64::try_from(microseconds.unsigned_abs()).unwrap_or(i64::MAX));
    }
}

/// Quotes an element of an array where PostgreSQL would.
fn quote_element(out: &mut Vec<u8>, begins: usize) {
    let text = &out[begins..];
    let needs =
        |byte: &u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',') || byte.is_ascii_whitespace() || *byte == 11;
    if !text.is_empty() && !text.eq_ignore_ascii_case(b"null") && !text.iter().any(needs) {
        return;
    }
    let plain = out.split_off(begins);
    out.push(b'"');
    for byte in plain {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array, Float32Array, Float64Array,
        Int32Array, Int64Array, ListArray, StructArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::{Field, Schema, i256};

    use super::*;

    fn encoded(column: ArrayRef, format: Format) -> Vec<Option<Vec<u8>>> {
        let field = Field::new("c", column.data_type().clone(), true);
        let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![column]).unwrap();
        let batch = writable(&batch).unwrap();
        let mut encoder = BatchEncoder::new(&batch, &[format]).unwrap();
        let one = |row| {
            let mut out = Vec::new();
            encoder.data_row(row, &mut out);
            assert_eq!((out[0], &out[5..7]), (b'D', &[0, 1][..]));
            assert_eq!(usize::try_from(u32::from_be_bytes(out[1..5].try_into().unwrap())).unwrap(), out.len() - 1);
            let length = i32::from_be_bytes(out[7..11].try_into().unwrap());
            assert_eq!(usize::try_from(length.max(0)).unwrap(), out.len() - 11);
            (length >= 0).then(|| out[11..].to_vec())
        };
        (0..batch.num_rows()).map(one).collect()
    }

    fn texts(column: ArrayRef) -> Vec<String> {
        let text = |value: Option<Vec<u8>>| value.map_or("∅".to_owned(), |value| String::from_utf8(value).unwrap());
        encoded(column, Format::Text).into_iter().map(text).collect()
    }

    #[test]
    fn numbers_are_written_as_postgresql_writes_them() {
        let integers = Int64Array::from(vec![Some(0), Some(-7), Some(i64::MIN), Some(100), Some(1234567), None]);
        assert_eq!(texts(Arc::new(integers)), ["0", "-7", "-9223372036854775808", "100", "1234567", "∅"]);
        let doubles =
            [0.0, -0.0, 1.5, 1e15, 123456789012345.0, 0.0001, 1.5e-5, 1e300, f64::NAN, f64::NEG_INFINITY, 0.1];
        assert_eq!(
            texts(Arc::new(Float64Array::from(doubles.to_vec()))),
            ["0", "-0", "1.5", "1e+15", "123456789012345", "0.0001", "1.5e-05", "1e+300", "NaN", "-Infinity", "0.1"]
        );
        let floats = Float32Array::from(vec![1e6, 123456.0, 0.1, 3.4e38]);
        assert_eq!(texts(Arc::new(floats)), ["1e+06", "123456", "0.1", "3.4e+38"]);
        let decimals = |values: Vec<i128>, scale| {
            texts(Arc::new(Decimal128Array::from(values).with_precision_and_scale(38, scale).unwrap()))
        };
        assert_eq!(decimals(vec![5, -5, 0, 12345, -100], 2), ["0.05", "-0.05", "0.00", "123.45", "-1.00"]);
        let wide = 99_999_999_999_999_999_999_999_999_999_999_999_999_i128;
        assert_eq!(decimals(vec![wide], 0), ["99999999999999999999999999999999999999"]);
        assert_eq!(decimals(vec![12, 0], -2), ["1200", "000"]);
        let wider = Decimal256Array::from(vec![i256::from_i128(wide)]).with_precision_and_scale(76, 3).unwrap();
        assert_eq!(texts(Arc::new(wider)), ["99999999999999999999999999999999999.999"]);
    }

    /// The bytes that PostgreSQL 15 gives for `numeric_send`.
    #[test]
    fn decimals_in_binary_are_groups_of_four_digits() {
        let words = |value: i128, scale| -> Vec<i16> {
            let column = Decimal128Array::from(vec![value]).with_precision_and_scale(38, scale).unwrap();
            let bytes = encoded(Arc::new(column), Format::Binary).remove(0).unwrap();
            bytes.chunks(2).map(|two| i16::from_be_bytes(two.try_into().unwrap())).collect()
        };
        assert_eq!(words(0, 2), [0, 0, 0, 2]);
        assert_eq!(words(12345, 2), [2, 0, 0, 2, 123, 4500]);
        assert_eq!(words(-5, 2), [1, -1, 0x4000, 2, 500]);
        assert_eq!(words(1_0000_0000, 0), [1, 2, 0, 0, 1]);
        assert_eq!(words(1, 9), [1, -3, 0, 9, 1000]);
        assert_eq!(words(12, -2), [1, 0, 0, 0, 1200]);
    }

    #[test]
    fn wide_decimals_in_binary_are_the_same_both_ways() {
        for (value, scale) in [(123_456_789_i128, 4_i8), (-1, 7), (10_000, 0), (0, 3), (98_765_432_109_876, 12)] {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            put_numeric(&mut left, value, scale);
            let mut text = Vec::new();
            put_decimal(&mut text, value, scale);
            put_numeric_text(&mut right, std::str::from_utf8(&text).unwrap());
            assert_eq!(left, right, "{value} e-{scale}");
        }
    }

    #[test]
    fn days_and_times_are_in_utc() {
        let days = Date32Array::from(vec![0, 19_782, -719_163, 2_932_896, -1]);
        assert_eq!(texts(Arc::new(days)), ["1970-01-01", "2024-02-29", "0001-12-31 BC", "9999-12-31", "1969-12-31"]);
        let micros = TimestampMicrosecondArray::from(vec![0, 1_700_000_000_120_000, -1]).with_timezone("UTC");
        assert_eq!(
            texts(Arc::new(micros.clone())),
            ["1970-01-01 00:00:00+00", "2023-11-14 22:13:20.12+00", "1969-12-31 23:59:59.999999+00"]
        );
        let bytes = encoded(Arc::new(micros), Format::Binary).remove(0).unwrap();
        assert_eq!(i64::from_be_bytes(bytes.try_into().unwrap()), -946_684_800_000_000);
        let spans = IntervalMonthDayNanoArray::from(vec![
            arrow::datatypes::IntervalMonthDayNano::new(14, 3, 4_500_000_000),
            arrow::datatypes::IntervalMonthDayNano::new(0, 0, 0),
            arrow::datatypes::IntervalMonthDayNano::new(0, -1, -1_000_000_000),
        ]);
        assert_eq!(texts(Arc::new(spans)), ["1 year 2 mons 3 days 00:00:04.5", "00:00:00", "-1 days -00:00:01"]);
    }

    #[test]
    fn lists_are_arrays_and_structs_are_json() {
        let list =
            ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None]), Some(vec![]), None]);
        assert_eq!(texts(Arc::new(list.clone())), ["{1,NULL}", "{}", "∅"]);
        let bytes = encoded(Arc::new(list), Format::Binary).remove(0).unwrap();
        let words: Vec<i32> = bytes.chunks(4).map(|four| i32::from_be_bytes(four.try_into().unwrap())).collect();
        assert_eq!(words, [1, 1, 23, 2, 1, 4, 1, -1]);
        let mut words = arrow::array::ListBuilder::new(arrow::array::StringBuilder::new());
        words.append_value(["a b", "", "null", "plain", "qu\"ote"].map(Some));
        assert_eq!(texts(Arc::new(words.finish())), [r#"{"a b","","null",plain,"qu\"ote"}"#]);
        let one: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let two: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        let person = StructArray::from(vec![
            (Arc::new(Field::new("id", DataType::Int32, true)), one),
            (Arc::new(Field::new("name", DataType::Utf8, true)), two),
        ]);
        assert_eq!(texts(Arc::new(person)), [r#"{"id":1,"name":"x"}"#]);
    }

    #[test]
    fn other_values_are_written_as_they_are() {
        assert_eq!(texts(Arc::new(BooleanArray::from(vec![true, false]))), ["t", "f"]);
        assert_eq!(texts(Arc::new(BinaryArray::from_vec(vec![b"\x00\xff"]))), ["\\x00ff"]);
        assert_eq!(texts(Arc::new(StringArray::from(vec!["Wei 张", "z\0ero"]))), ["Wei 张", "zero"]);
    }

    #[test]
    fn copies_are_escaped_and_quoted() {
        let field = Field::new("c", DataType::Utf8, true);
        let column: ArrayRef =
            Arc::new(StringArray::from(vec![Some("a\tb\\"), Some("x,\"y\""), None, Some(""), Some("\\.")]));
        let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![column]).unwrap();
        let mut encoder = BatchEncoder::new(&batch, &[Format::Text]).unwrap();
        let mut lines = |style: &CopyStyle| -> Vec<String> {
            (0..5)
                .map(|row| {
                    let mut out = Vec::new();
                    encoder.copy_row(row, style, &mut out);
                    String::from_utf8(out[5..].to_vec()).unwrap()
                })
                .collect()
        };
        let text = CopyStyle::Text { delimiter: b'\t', null: "\\N".to_owned() };
        assert_eq!(lines(&text), ["a\\tb\\\\\n", "x,\"y\"\n", "\\N\n", "\n", "\\\\.\n"]);
        let csv = CopyStyle::Csv { delimiter: b',', quote: b'"', null: String::new(), force_quote: false };
        assert_eq!(lines(&csv), ["a\tb\\\n", "\"x,\"\"y\"\"\"\n", "\n", "\"\"\n", "\"\\.\"\n"]);
    }
}
