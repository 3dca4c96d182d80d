//! Values of parameters as they come in a `Bind` message, as text.

use bytes::{Buf, Bytes};

use crate::error::{Problem, state};
use crate::message::Format;
use crate::rewrite::Element;
use crate::types::{self, ColumnType};

const DAY_MICROSECONDS: i64 = 86_400_000_000;
const EPOCH_DAYS: i64 = 10_957;
/// Elements of one array: it is written into the statement.
const ELEMENTS_MAX: usize = 50_000;

/// One value. `number` is the parameter's, for errors.
pub(crate) fn decode(
    number: usize,
    column_type: ColumnType,
    format: Format,
    value: Option<Bytes>,
) -> Result<Option<Element>, Problem> {
    let Some(bytes) = value else { return Ok(None) };
    let invalid = || {
        let name = column_type.sql_name(-1);
        Problem::new(state::INVALID_TEXT, format!("parameter ${number} is no {name} in {format:?} form"))
    };
    match (format, column_type.is_array) {
        (Format::Text, false) => {
            let text = std::str::from_utf8(&bytes).map_err(|_| invalid())?;
            Ok(Some(Element::One(text.to_owned())))
        }
        (Format::Text, true) => {
            let text = std::str::from_utf8(&bytes).map_err(|_| invalid())?;
            array_elements(text).map(|values| Some(Element::Many(values))).ok_or_else(invalid)
        }
        (Format::Binary, false) => {
            binary(column_type.of, bytes).map(|text| Some(Element::One(text))).ok_or_else(invalid)
        }
        (Format::Binary, true) => {
            binary_array(column_type.of, bytes).map(|values| Some(Element::Many(values))).ok_or_else(invalid)
        }
    }
}

/// The elements of an array of one dimension as text, such as `{1,"a b",NULL}`.
pub(crate) fn array_elements(text: &str) -> Option<Vec<Option<String>>> {
    let inner = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut values = Vec::new();
    let mut chars = inner.chars().peekable();
    while chars.peek().is_some() {
        let mut value = String::new();
        let mut is_quoted = false;
        while let Some(c) = chars.next() {
            match c {
                '"' => {
                    is_quoted = true;
                    // Spaces before it are none of it.
                    value.clear();
                    loop {
                        match chars.next()? {
                            '\\' => value.push(chars.next()?),
                            '"' => break,
                            other => value.push(other),
                        }
                    }
                }
                '\\' => value.push(chars.next()?),
                ',' => {
                    // A comma promises another element.
                    chars.peek()?;
                    break;
                }
                '{' | '}' => return None,
                other if is_quoted && other.is_whitespace() => {}
                other => value.push(other),
            }
        }
        let bare = value.trim();
        values.push(match is_quoted {
            true => Some(value),
            false if bare.is_empty() => return None,
            false if bare.eq_ignore_ascii_case("null") => None,
            false => Some(bare.to_owned()),
        });
        if values.len() > ELEMENTS_MAX {
            return None;
        }
    }
    Some(values)
}

fn binary(of: types::PgType, mut bytes: Bytes) -> Option<String> {
    let exactly = |length: usize| (bytes.len() == length).then_some(());
    Some(match of {
        types::BOOL => {
            exactly(1)?;
            (bytes.get_u8() != 0).to_string()
        }
        types::INT2 => {
            exactly(2)?;
            bytes.get_i16().to_string()
        }
        types::INT4 => {
            exactly(4)?;
            bytes.get_i32().to_string()
        }
        types::INT8 => {
            exactly(8)?;
            bytes.get_i64().to_string()
        }
        types::OID | types::XID | types::REGCLASS | types::REGTYPE | types::REGPROC => {
            exactly(4)?;
            bytes.get_u32().to_string()
        }
        types::FLOAT4 => {
            exactly(4)?;
            bytes.get_f32().to_string()
        }
        types::FLOAT8 => {
            exactly(8)?;
            bytes.get_f64().to_string()
        }
        types::DATE => {
            exactly(4)?;
            day(i64::from(bytes.get_i32()).checked_add(EPOCH_DAYS)?)?
        }
        types::TIME => {
            exactly(8)?;
            time(bytes.get_i64())?
        }
        types::TIMESTAMP | types::TIMESTAMPTZ => {
            exactly(8)?;
            let microseconds = bytes.get_i64();
            let day = day(microseconds.div_euclid(DAY_MICROSECONDS).checked_add(EPOCH_DAYS)?)?;
            let time = time(microseconds.rem_euclid(DAY_MICROSECONDS))?;
            let zone = if of == types::TIMESTAMPTZ { "Z" } else { "" };
            format!("{day}T{time}{zone}")
        }
        types::INTERVAL => {
            exactly(16)?;
            let (microseconds, days, months) = (bytes.get_i64(), bytes.get_i32(), bytes.get_i32());
            format!("{months} months {days} days {microseconds} microseconds")
        }
        types::NUMERIC => numeric(bytes)?,
        types::BYTEA => bytes.iter().fold(String::from("\\x"), |text, byte| text + &format!("{byte:02x}")),
        types::UUID => {
            exactly(16)?;
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
        }
        types::JSONB => {
            (bytes.first() == Some(&1)).then_some(())?;
            std::str::from_utf8(&bytes[1..]).ok()?.to_owned()
        }
        _ => std::str::from_utf8(&bytes).ok()?.to_owned(),
    })
}

fn day(days: i64) -> Option<String> {
    let date = chrono::DateTime::from_timestamp(days.checked_mul(86_400)?, 0)?;
    Some(date.format("%Y-%m-%d").to_string())
}

fn time(microseconds: i64) -> Option<String> {
    (0..=DAY_MICROSECONDS).contains(&microseconds).then(|| {
        let seconds = microseconds / 1_000_000;
        format!("{:02}:{:02}:{:02}.{:06}", seconds / 3_600, seconds / 60 % 60, seconds % 60, microseconds % 1_000_000)
    })
}

fn numeric(mut bytes: Bytes) -> Option<String> {
    if bytes.len() < 8 {
        return None;
    }
    let (count, weight, sign, scale) = (bytes.get_u16(), bytes.get_i16(), bytes.get_u16(), bytes.get_u16());
    if sign == 0xC000 {
        return Some("NaN".to_owned());
    }
    if bytes.len() != usize::from(count) * 2 || !(-100..=100).contains(&weight) || scale > 400 {
        return None;
    }
    let groups: Vec<u16> = (0..count).map(|_| bytes.get_u16()).collect();
    let group = |place: i32| {
        let index = usize::try_from(i32::from(weight) - place).ok();
        index.and_then(|index| groups.get(index)).copied().unwrap_or(0)
    };
    let mut text = String::from(if sign == 0x4000 { "-" } else { "" });
    let whole: String = (0..=i32::from(weight).max(0)).rev().map(|place| format!("{:04}", group(place))).collect();
    let trimmed = whole.trim_start_matches('0');
    text.push_str(if trimmed.is_empty() { "0" } else { trimmed });
    let scale = usize::from(scale);
    if scale > 0 {
        let places = i32::try_from(scale.div_ceil(4)).ok()?;
        let fraction: String = (1..=places).map(|place| format!("{:04}", group(-place))).collect();
        text.push('.');
        text.push_str(&fraction[..scale]);
    }
    Some(text)
}

fn binary_array(of: types::PgType, mut bytes: Bytes) -> Option<Vec<Option<String>>> {
    if bytes.len() < 12 {
        return None;
    }
    let (dimensions, _has_nulls, _oid) = (bytes.get_i32(), bytes.get_i32(), bytes.get_u32());
    match dimensions {
        0 => return Some(Vec::new()),
        1 if bytes.len() >= 8 => {}
        _ => return None,
    }
    let (count, _lower) = (usize::try_from(bytes.get_i32()).ok()?, bytes.get_i32());
    if count > ELEMENTS_MAX || count * 4 > bytes.len() {
        return None;
    }
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        if bytes.len() < 4 {
            return None;
        }
        values.push(match usize::try_from(bytes.get_i32()) {
            Ok(length) if length > bytes.len() => return None,
            Ok(length) => Some(binary(of, bytes.split_to(length))?),
            Err(_) => None,
        });
    }
    bytes.is_empty().then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(of: types::PgType, bytes: &'static [u8]) -> Option<String> {
        binary(of, Bytes::from_static(bytes))
    }

    #[test]
    fn values_in_binary_are_read_as_text() {
        assert_eq!(one(types::INT4, &[255, 255, 255, 254]).unwrap(), "-2");
        assert_eq!(one(types::INT4, &[1, 2]), None);
        assert_eq!(one(types::BOOL, &[1]).unwrap(), "true");
        assert_eq!(one(types::DATE, &[0, 0, 0, 0]).unwrap(), "2000-01-01");
        assert_eq!(one(types::TIMESTAMPTZ, &[0; 8]).unwrap(), "2000-01-01T00:00:00.000000Z");
        assert_eq!(one(types::NUMERIC, &[0, 2, 0, 0, 0x40, 0, 0, 2, 0, 123, 0x11, 0x94]).unwrap(), "-123.45");
        assert_eq!(one(types::NUMERIC, &[0, 1, 255, 255, 0, 0, 0, 2, 1, 0xf4]).unwrap(), "0.05");
        assert_eq!(one(types::NUMERIC, &[0, 9, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(one(types::BYTEA, &[0, 255]).unwrap(), "\\x00ff");
        assert_eq!(one(types::TEXT, &[0xff]), None);
    }

    #[test]
    fn arrays_are_read_in_both_forms_and_lies_are_refused() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            array_elements(r#"{1, "a \"b\", c",NULL,"NULL"}"#),
            Some(vec![some("1"), some("a \"b\", c"), None, some("NULL")])
        );
        assert_eq!(array_elements("{}"), Some(vec![]));
        for wrong in ["", "1", "{", "{1,}", "{\"a}", "{{1}}", "{,1}"] {
            assert_eq!(array_elements(wrong), None, "{wrong}");
        }
        let bytes =
            [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7, 255, 255, 255, 255];
        assert_eq!(binary_array(types::INT4, Bytes::copy_from_slice(&bytes)), Some(vec![some("7"), None]));
        for end in 0..bytes.len() {
            assert_eq!(binary_array(types::INT4, Bytes::copy_from_slice(&bytes[..end])), None, "{end}");
        }
    }
}
