//! What masks make of values. A mask that does not fit a column's type becomes null: never an error, never the value.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, TimeUnit, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use chrono::{DateTime, Datelike, Days, NaiveDate};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};

use crate::policy::{Mask, Width};

/// Between what is kept of a text: of one length, so that it does not tell the value's.
const HIDDEN: &str = "***";
/// Bytes of a hash that are shown, as hexadecimal digits.
const HASH_BYTES: usize = 16;

/// The secret of hashes: without it nobody can try all telephone numbers there are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MaskKey([u8; 32]);

impl MaskKey {
    /// From any secret of the lake's owner; the same secret gives the same hashes.
    pub fn derive(secret: &[u8]) -> Self {
        Self(blake3::derive_key("holdfast 2026-11 masks of columns", secret))
    }
}

impl fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MaskKey(hidden)")
    }
}

impl Mask {
    /// The mask, or null where it does not fit values of the type.
    pub(crate) fn fitting(&self, data_type: &DataType) -> Self {
        let fits = match self {
            Self::Show | Self::Null | Self::Deny => true,
            Self::Partial { .. } | Self::Hash => is_text(data_type),
            Self::Range(Width::Number(_)) => {
                data_type.is_integer()
                    || matches!(data_type, DataType::Float32 | DataType::Float64 | DataType::Decimal128(..))
            }
            Self::Range(_) => {
                matches!(data_type, DataType::Date32 | DataType::Timestamp(TimeUnit::Microsecond, _))
            }
        };
        if fits { self.clone() } else { Self::Null }
    }

    /// What the mask makes of a column of the type; it has the same type.
    pub(crate) fn over(&self, column: Expr, data_type: &DataType, key: &MaskKey) -> Result<Expr> {
        match self.fitting(data_type) {
            Self::Show => Ok(column),
            Self::Null | Self::Deny => Ok(lit(ScalarValue::try_from(data_type)?)),
            mask => Ok(ScalarUDF::from(MaskFunction {
                mask,
                key: *key,
                signature: Signature::any(1, Volatility::Immutable),
            })
            .call(vec![column])),
        }
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Show => f.write_str("shown"),
            Self::Partial { keep_first, keep_last } => {
                write!(f, "partial (first {keep_first}, last {keep_last} characters)")
            }
            Self::Range(Width::Number(width)) => write!(f, "range of {width}"),
            Self::Range(Width::Day) => f.write_str("day"),
            Self::Range(Width::Month) => f.write_str("month"),
            Self::Range(Width::Year) => f.write_str("year"),
            Self::Hash => f.write_str("hash"),
            Self::Null => f.write_str("null"),
            Self::Deny => f.write_str("denied"),
        }
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

struct MaskFunction {
    mask: Mask,
    key: MaskKey,
    signature: Signature,
}

impl fmt::Debug for MaskFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MaskFunction({})", self.mask)
    }
}

impl PartialEq for MaskFunction {
    fn eq(&self, other: &Self) -> bool {
        self.mask == other.mask && self.key == other.key
    }
}

impl Eq for MaskFunction {}

impl Hash for MaskFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.mask.hash(state);
        self.key.hash(state);
    }
}

impl ScalarUDFImpl for MaskFunction {
    fn name(&self) -> &'static str {
        "mask"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let one = || DataFusionError::Internal("a mask is of one column".to_owned());
        arguments.first().cloned().ok_or_else(one)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let one = || DataFusionError::Internal("a mask is of one column".to_owned());
        let values = ColumnarValue::values_to_arrays(&arguments.args)?.into_iter().next().ok_or_else(one)?;
        Ok(ColumnarValue::Array(masked(&self.mask, &values, &self.key)?))
    }
}

/// The masked values, of the same type.
pub(crate) fn masked(mask: &Mask, values: &ArrayRef, key: &MaskKey) -> Result<ArrayRef> {
    match mask {
        Mask::Show => Ok(Arc::clone(values)),
        Mask::Hash => texts(values, |text| hashed(text, key)),
        Mask::Partial { keep_first, keep_last } => texts(values, |text| partial(text, *keep_first, *keep_last)),
        Mask::Range(width) => ranges(*width, values),
        Mask::Null | Mask::Deny => Ok(arrow::array::new_null_array(values.data_type(), values.len())),
    }
}

fn texts(values: &ArrayRef, of: impl Fn(&str) -> String) -> Result<ArrayRef> {
    let plain = cast(values, &DataType::Utf8)?;
    let masked: StringArray = plain.as_string::<i32>().iter().map(|text| text.map(&of)).collect();
    Ok(cast(&masked, values.data_type())?)
}

fn hashed(text: &str, key: &MaskKey) -> String {
    let hash = blake3::keyed_hash(&key.0, text.as_bytes()).to_hex();
    hash[..2 * HASH_BYTES].to_owned()
}

/// Both ends of a text with stars between; stars alone where the ends would be all of it or nearly.
fn partial(text: &str, first: usize, last: usize) -> String {
    let characters = text.chars().count();
    if characters < 2 * (first + last) {
        return HIDDEN.to_owned();
    }
    let head: String = text.chars().take(first).collect();
    let tail: String = text.chars().skip(characters - last).collect();
    format!("{head}{HIDDEN}{tail}")
}

fn ranges(width: Width, values: &ArrayRef) -> Result<ArrayRef> {
    fn of<T: ArrowPrimitiveType>(values: &ArrayRef, lower: impl Fn(T::Native) -> T::Native) -> ArrayRef {
        Arc::new(values.as_primitive::<T>().unary::<_, T>(lower))
    }
    macro_rules! whole {
        ($type:ty, $width:expr) => {
            of::<$type>(values, |value| match <$type as ArrowPrimitiveType>::Native::try_from($width) {
                // The last range at either end of the type may have no lower end in it.
                Ok(width) => value.div_euclid(width).wrapping_mul(width),
                // Wider than the type: all is one range.
                Err(_) => 0,
            })
        };
    }
    Ok(match (width, values.data_type()) {
        (Width::Number(width), DataType::Int8) => whole!(Int8Type, width),
        (Width::Number(width), DataType::Int16) => whole!(Int16Type, width),
        (Width::Number(width), DataType::Int32) => whole!(Int32Type, width),
        (Width::Number(width), DataType::Int64) => whole!(Int64Type, width),
        (Width::Number(width), DataType::UInt8) => whole!(UInt8Type, width),
        (Width::Number(width), DataType::UInt16) => whole!(UInt16Type, width),
        (Width::Number(width), DataType::UInt32) => whole!(UInt32Type, width),
        (Width::Number(width), DataType::UInt64) => whole!(UInt64Type, width),
        (Width::Number(width), DataType::Float64) => {
            let width = f64::from(width);
            of::<Float64Type>(values, |value| (value / width).floor() * width)
        }
        (Width::Number(width), DataType::Float32) => {
            #[expect(clippy::cast_possible_truncation, reason = "a range's width need not be exact")]
            let width = f64::from(width) as f32;
            of::<Float32Type>(values, |value| (value / width).floor() * width)
        }
        (Width::Number(width), DataType::Decimal128(precision, scale)) => {
            let unit = 10_i128.checked_pow(u32::try_from(*scale).unwrap_or(0)).unwrap_or(i128::MAX);
            let width = i128::from(width).saturating_mul(unit);
            let values = values.as_primitive::<Decimal128Type>();
            let lower: PrimitiveArray<Decimal128Type> =
                values.unary(|value: i128| value.div_euclid(width).saturating_mul(width));
            Arc::new(lower.with_precision_and_scale(*precision, *scale)?)
        }
        (width, DataType::Date32) => of::<Date32Type>(values, |day| {
            lower_day(DateTime::UNIX_EPOCH.date_naive(), i64::from(day), width)
                .and_then(|day| i32::try_from(day).ok())
                .unwrap_or(0)
        }),
        (width, DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
            const DAY: i64 = 86_400_000_000;
            let values = values.as_primitive::<TimestampMicrosecondType>();
            let lower: PrimitiveArray<TimestampMicrosecondType> = values.unary(|micros: i64| {
                lower_day(DateTime::UNIX_EPOCH.date_naive(), micros.div_euclid(DAY), width).map_or(0, |day| day * DAY)
            });
            Arc::new(lower.with_timezone_opt(zone.clone()))
        }
        (_, other) => arrow::array::new_null_array(other, values.len()),
    })
}

/// The first day of the range, in days since `epoch`; `None` for days that no calendar has.
fn lower_day(epoch: NaiveDate, day: i64, width: Width) -> Option<i64> {
    let date = match u64::try_from(day) {
        Ok(days) => epoch.checked_add_days(Days::new(days)),
        Err(_) => epoch.checked_sub_days(Days::new(day.unsigned_abs())),
    }?;
    let lower = match width {
        Width::Day | Width::Number(_) => date,
        Width::Month => date.with_day(1)?,
        Width::Year => date.with_day(1)?.with_month(1)?,
    };
    Some(lower.signed_duration_since(epoch).num_days())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Decimal128Array, Float64Array, Int8Array, Int64Array, StringViewArray};

    use super::*;

    fn key() -> MaskKey {
        MaskKey::derive(b"secret")
    }

    #[test]
    fn a_partial_text_never_shows_more_than_half_and_never_its_length() {
        assert_eq!(partial("13812345678", 3, 2), "138***78");
        assert_eq!(partial("1381", 3, 2), "***");
        assert_eq!(partial("", 0, 4), "***");
        assert_eq!(partial("王小明明", 1, 0), "王***");
        assert_eq!(partial("abc", 0, 0), "***");
    }

    #[test]
    fn equal_texts_have_equal_hashes_under_one_key_alone() {
        let values: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a"), None, Some("a"), Some("b")]));
        let hashes = masked(&Mask::Hash, &values, &key()).unwrap();
        assert_eq!(hashes.data_type(), &DataType::Utf8View);
        let hashes = hashes.as_string_view();
        assert!(hashes.is_null(1) && hashes.value(0) == hashes.value(2) && hashes.value(0) != hashes.value(3));
        assert_eq!(hashes.value(0).len(), 2 * HASH_BYTES);
        let other = masked(&Mask::Hash, &values, &MaskKey::derive(b"other")).unwrap();
        assert_ne!(other.as_string_view().value(0), hashes.value(0));
    }

    #[test]
    fn a_range_gives_its_lower_end() {
        let ten = Width::Number(10);
        let ints: ArrayRef = Arc::new(Int64Array::from(vec![Some(-1), Some(0), Some(19), None]));
        let lower = ranges(ten, &ints).unwrap();
        assert_eq!(lower.as_primitive::<Int64Type>(), &Int64Array::from(vec![Some(-10), Some(0), Some(10), None]));
        let small: ArrayRef = Arc::new(Int8Array::from(vec![i8::MIN, 7, i8::MAX]));
        assert_eq!(ranges(Width::Number(1000), &small).unwrap().as_primitive::<Int8Type>().values(), &[0, 0, 0]);
        ranges(ten, &small).unwrap();
        let money: ArrayRef =
            Arc::new(Decimal128Array::from(vec![12_345, -1]).with_precision_and_scale(18, 2).unwrap());
        assert_eq!(ranges(ten, &money).unwrap().as_primitive::<Decimal128Type>().values(), &[12_000, -1_000]);
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![19.5, f64::NAN]));
        assert!((ranges(ten, &floats).unwrap().as_primitive::<Float64Type>().value(0) - 10.0).abs() < 1e-9);
        // 2026-03-15, and a day before 1970.
        let days: ArrayRef = Arc::new(Date32Array::from(vec![20_527, -1]));
        let months = ranges(Width::Month, &days).unwrap();
        assert_eq!(months.as_primitive::<Date32Type>().values(), &[20_513, -31]);
    }

    #[test]
    fn a_mask_that_does_not_fit_is_null() {
        assert_eq!(Mask::Hash.fitting(&DataType::Int64), Mask::Null);
        assert_eq!(Mask::Partial { keep_first: 1, keep_last: 1 }.fitting(&DataType::Boolean), Mask::Null);
        assert_eq!(Mask::Range(Width::Number(5)).fitting(&DataType::Utf8), Mask::Null);
        assert_eq!(Mask::Range(Width::Month).fitting(&DataType::Int32), Mask::Null);
        assert_eq!(Mask::Hash.fitting(&DataType::Utf8View), Mask::Hash);
    }
}
