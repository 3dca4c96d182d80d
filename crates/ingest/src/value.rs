use arrow::array::timezone::Tz;
use chrono::{NaiveDate, Offset, TimeZone};

const SECONDS_A_DAY: i64 = 86_400;
const MICROS_A_SECOND: i64 = 1_000_000;

/// Where a local time without an offset belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Zone {
    /// Always this many seconds ahead of UTC.
    Fixed(i64),
    /// By the rules of a named zone.
    Named(Tz),
}

impl Zone {
    pub(crate) const UTC: Self = Self::Fixed(0);

    /// Reads `+08:00`, `UTC` or a name such as `Europe/London`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "UTC" || text == "Z" {
            return Some(Self::UTC);
        }
        if let Some(seconds) = parse_offset(text.as_bytes()) {
            return Some(Self::Fixed(seconds));
        }
        text.parse().ok().map(Self::Named)
    }

    /// The UTC moment of a local one, microseconds. A moment that the clocks showed twice is the earlier; one that they
    /// skipped is none.
    pub(crate) fn to_utc(self, local_micros: i64) -> Option<i64> {
        let seconds = match self {
            Self::Fixed(seconds) => seconds,
            Self::Named(zone) => {
                let local = chrono::DateTime::from_timestamp_micros(local_micros)?.naive_utc();
                i64::from(zone.offset_from_local_datetime(&local).earliest()?.fix().local_minus_utc())
            }
        };
        local_micros.checked_sub(seconds * MICROS_A_SECOND)
    }
}

/// Why a text is not a value of the wanted type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueError {
    /// It is not written as one.
    Malformed,
    /// It is one, but too large.
    OutOfRange,
    /// It has more decimals than the type keeps.
    TooPrecise,
}

/// A decimal number with `scale` decimals as an integer. Exact: a digit that would be lost is an error.
pub(crate) fn parse_decimal(text: &[u8], precision: u8, scale: i8) -> Result<i128, ValueError> {
    match parse_short_decimal(text, precision, scale) {
        Some(value) => Ok(value),
        None => parse_any_decimal(text, precision, scale),
    }
}

/// Numbers as almost all are written: up to 18 digits, no exponent, no more decimals than the scale. `None` for others,
/// wrong ones included.
fn parse_short_decimal(text: &[u8], precision: u8, scale: i8) -> Option<i128> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let scale = u32::try_from(scale).ok()?;
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let mut value: u64 = 0;
    let mut decimals = None;
    for byte in digits {
        match byte {
            b'0'..=b'9' => {
                value = value * 10 + u64::from(byte - b'0');
                decimals = decimals.map(|count: u32| count + 1);
            }
            b'.' if decimals.is_none() => decimals = Some(0),
            _ => return None,
        }
    }
    let missing = scale.checked_sub(decimals.unwrap_or(0))?;
    if digits.len() == 1 && decimals.is_some() {
        return None;
    }
    let value = i128::from(value.checked_mul(10_u64.checked_pow(missing)?)?);
    let limit = 10_i128.checked_pow(u32::from(precision)).unwrap_or(i128::MAX);
    if value >= limit {
        return None;
    }
    Some(if negative { -value } else { value })
}

fn parse_any_decimal(text: &[u8], precision: u8, scale: i8) -> Result<i128, ValueError> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let mut value: i128 = 0;
    let mut decimals: i64 = 0;
    let mut seen_digit = false;
    let mut seen_point = false;
    let mut exponent: i64 = 0;
    // Zeros at the end of the fraction are held back, so that 1.500000… does not overflow.
    let mut pending_zeros: u32 = 0;
    let mut bytes = digits.iter().enumerate();
    for (index, byte) in bytes.by_ref() {
        match byte {
            b'0' if seen_point => {
                seen_digit = true;
                pending_zeros += 1;
            }
            b'0'..=b'9' => {
                seen_digit = true;
                if seen_point {
                    value = shift(value, pending_zeros).ok_or(ValueError::TooPrecise)?;
                    decimals += i64::from(pending_zeros) + 1;
                    pending_zeros = 0;
                }
                value = value
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(i128::from(byte - b'0')))
                    .ok_or(if seen_point { ValueError::TooPrecise } else { ValueError::OutOfRange })?;
            }
            b'.' if !seen_point => seen_point = true,
            b'e' | b'E' if seen_digit => {
                exponent = parse_exponent(&digits[index + 1..])?;
                break;
            }
            _ => return Err(ValueError::Malformed),
        }
    }
    if !seen_digit {
        return Err(ValueError::Malformed);
    }
    let by = i64::from(scale) - decimals + exponent;
    let value = if value == 0 {
        0
    } else if by >= 0 {
        let by = u32::try_from(by).map_err(|_| ValueError::OutOfRange)?;
        shift(value, by).ok_or(ValueError::OutOfRange)?
    } else {
        let by = u32::try_from(-by).map_err(|_| ValueError::TooPrecise)?;
        let divisor = 10_i128.checked_pow(by).ok_or(ValueError::TooPrecise)?;
        if value % divisor != 0 {
            return Err(ValueError::TooPrecise);
        }
        value / divisor
    };
    let limit = 10_i128.checked_pow(u32::from(precision)).unwrap_or(i128::MAX);
    if value >= limit {
        return Err(ValueError::OutOfRange);
    }
    Ok(if negative { -value } else { value })
}

fn shift(value: i128, by: u32) -> Option<i128> {
    if value == 0 { Some(0) } else { value.checked_mul(10_i128.checked_pow(by)?) }
}

fn parse_exponent(text: &[u8]) -> Result<i64, ValueError> {
    let (sign, digits) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        rest => (1, rest),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(ValueError::Malformed);
    }
    if digits.len() > 9 {
        return Err(ValueError::OutOfRange);
    }
    Ok(sign * digits.iter().fold(0_i64, |value, digit| value * 10 + i64::from(digit - b'0')))
}

/// A whole number. `3.0` and `3e0` are whole, `3.5` is not.
pub(crate) fn parse_integer(text: &[u8]) -> Result<i64, ValueError> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    if !digits.is_empty() && digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit) {
        let value = digits.iter().fold(0_i64, |value, digit| value * 10 + i64::from(digit - b'0'));
        return Ok(if negative { -value } else { value });
    }
    i64::try_from(parse_decimal(text, 38, 0)?).map_err(|_| ValueError::OutOfRange)
}

/// A finite floating-point number.
pub(crate) fn parse_float(text: &[u8]) -> Result<f64, ValueError> {
    // The standard parser also reads words such as `inf` and `nan`.
    if text.iter().any(|byte| !matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')) {
        return Err(ValueError::Malformed);
    }
    let text = std::str::from_utf8(text).map_err(|_| ValueError::Malformed)?;
    let value: f64 = text.parse().map_err(|_| ValueError::Malformed)?;
    if value.is_finite() { Ok(value) } else { Err(ValueError::OutOfRange) }
}

/// `true`, `false` and the other usual spellings, in any case.
pub(crate) fn parse_boolean(text: &[u8]) -> Option<bool> {
    const TRUE: [&[u8]; 5] = [b"true", b"t", b"yes", b"y", b"1"];
    const FALSE: [&[u8]; 5] = [b"false", b"f", b"no", b"n", b"0"];
    let is = |words: [&[u8]; 5]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is(TRUE) {
        Some(true)
    } else if is(FALSE) {
        Some(false)
    } else {
        None
    }
}

/// Days since 1970-01-01 of a `YYYY-MM-DD`.
pub(crate) fn parse_date(text: &[u8]) -> Option<i32> {
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1] = text else { return None };
    let year = number([*y0, *y1, *y2, *y3])?;
    days_from_civil(year, number([*m0, *m1])?, number([*d0, *d1])?)
}

/// UTC microseconds of an ISO 8601 moment: `YYYY-MM-DD`, then optionally `T` or a blank and `HH:MM[:SS[.fraction]]`,
/// then optionally `Z` or an offset. Without an offset it is local in `zone`. Digits below a microsecond are cut.
pub(crate) fn parse_timestamp(text: &[u8], zone: Zone) -> Option<i64> {
    let days = i64::from(parse_date(text.get(..10)?)?);
    let rest = &text[10..];
    let midnight = days * SECONDS_A_DAY * MICROS_A_SECOND;
    let [b'T' | b't' | b' ', time @ ..] = rest else {
        return if rest.is_empty() { zone.to_utc(midnight) } else { None };
    };
    let [h0, h1, b':', m0, m1, rest @ ..] = time else { return None };
    let (hour, minute) = (number([*h0, *h1])?, number([*m0, *m1])?);
    let (second, rest) = match rest {
        [b':', s0, s1, rest @ ..] => (number([*s0, *s1])?, rest),
        rest => (0, rest),
    };
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (micros, rest) = match rest {
        [b'.' | b',', fraction @ ..] => {
            let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if length == 0 {
                return None;
            }
            let mut micros = 0_i64;
            let kept = &fraction[..length.min(6)];
            for digit in kept.iter().chain(std::iter::repeat_n(&b'0', 6 - kept.len())) {
                micros = micros * 10 + i64::from(digit - b'0');
            }
            (micros, &fraction[length..])
        }
        rest => (0, rest),
    };
    let seconds = i64::from(hour) * 3_600 + i64::from(minute) * 60 + i64::from(second);
    let local = midnight + seconds * MICROS_A_SECOND + micros;
    match rest {
        [] => zone.to_utc(local),
        [b'Z' | b'z'] => Some(local),
        offset => Some(local - parse_offset(offset.trim_ascii_start())? * MICROS_A_SECOND),
    }
}

/// Seconds ahead of UTC of `±HH:MM`, `±HHMM` or `±HH`.
fn parse_offset(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match rest {
        [h0, h1] => (number([*h0, *h1])?, 0),
        [h0, h1, m0, m1] | [h0, h1, b':', m0, m1] => (number([*h0, *h1])?, number([*m0, *m1])?),
        _ => return None,
    };
    (hours <= 15 && minutes <= 59).then(|| sign * (i64::from(hours) * 3_600 + i64::from(minutes) * 60))
}

fn number<const N: usize>(digits: [u8; N]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |value, digit| digit.is_ascii_digit().then(|| value * 10 + u32::from(digit - b'0')))
}

fn days_from_civil(year: u32, month: u32, day: u32) -> Option<i32> {
    const EPOCH_FROM_CE: i32 = 719_163;
    use chrono::Datelike;
    Some(NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)?.num_days_from_ce() - EPOCH_FROM_CE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact_or_refused() {
        let decimal = |text: &str| parse_decimal(text.as_bytes(), 12, 2);
        assert_eq!(decimal("12.5"), Ok(1_250));
        assert_eq!(decimal("-0.07"), Ok(-7));
        assert_eq!(decimal("1.25e1"), Ok(1_250));
        assert_eq!(decimal("3.1400000000000000000000000000000000000000000"), Ok(314));
        assert_eq!(decimal("0e99"), Ok(0));
        assert_eq!(decimal(".5"), Ok(50));
        for text in [
            "5.",
            "-5.25",
            "+7",
            "0",
            "-0",
            "00012.3",
            "12.340",
            "999999999999999999",
            "99999999999999999.9",
            ".",
            "-.",
        ] {
            let text = text.as_bytes();
            assert_eq!(parse_decimal(text, 38, 2), parse_any_decimal(text, 38, 2), "{text:?}");
        }
        assert_eq!(decimal("12.345"), Err(ValueError::TooPrecise));
        assert_eq!(decimal("1e-300"), Err(ValueError::TooPrecise));
        assert_eq!(decimal("10000000000"), Err(ValueError::OutOfRange));
        assert_eq!(decimal("9999999999.99"), Ok(999_999_999_999));
        for wrong in ["", "-", ".", "1,5", "1.2.3", "e5", "1e", "0x1", " 1", "1 "] {
            assert_eq!(decimal(wrong), Err(ValueError::Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn whole_numbers_lose_nothing() {
        assert_eq!(parse_integer(b"-42"), Ok(-42));
        assert_eq!(parse_integer(b"3.0"), Ok(3));
        assert_eq!(parse_integer(b"9223372036854775807"), Ok(i64::MAX));
        assert_eq!(parse_integer(b"9223372036854775808"), Err(ValueError::OutOfRange));
        assert_eq!(parse_integer(b"3.5"), Err(ValueError::TooPrecise));
        assert_eq!(parse_integer(b""), Err(ValueError::Malformed));
        assert_eq!(parse_float(b"nan"), Err(ValueError::Malformed));
        assert_eq!(parse_float(b"1e999"), Err(ValueError::OutOfRange));
    }

    #[test]
    fn moments_are_utc_and_local_ones_follow_the_zone() {
        let utc = |text: &str| parse_timestamp(text.as_bytes(), Zone::UTC);
        assert_eq!(utc("1970-01-01"), Some(0));
        assert_eq!(utc("1970-01-01T00:00:01.5Z"), Some(1_500_000));
        assert_eq!(utc("2026-01-31 08:00:00+08:00"), utc("2026-01-31T00:00:00Z"));
        assert_eq!(utc("2026-01-31T00:00:00.1234567Z"), utc("2026-01-31T00:00:00.123456Z"));
        let shanghai = Zone::parse("+08:00").unwrap();
        assert_eq!(parse_timestamp(b"2026-01-31T08:00", shanghai), utc("2026-01-31T00:00:00Z"));
        assert_eq!(parse_timestamp(b"2026-01-31T08:00Z", shanghai), utc("2026-01-31T08:00:00Z"));
        let london = Zone::parse("Europe/London").unwrap();
        assert_eq!(parse_timestamp(b"2011-07-21 08:44:00", london), utc("2011-07-21T07:44:00Z"));
        assert_eq!(parse_timestamp(b"2011-01-21 08:44:00", london), utc("2011-01-21T08:44:00Z"));
        assert_eq!(parse_timestamp(b"2011-03-27 01:30:00", london), None, "the clocks skipped it");
        for wrong in ["2026-02-30", "2026-1-1", "26-01-01", "2026-01-01T25:00", "2026-01-01T00:00:00.", "2026-01-01Q"] {
            assert_eq!(utc(wrong), None, "{wrong}");
        }
        assert!(Zone::parse("Mars/Olympus").is_none());
    }
}
