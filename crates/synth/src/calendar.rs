//! Days, months and moments in milliseconds since 1970, and how sources write them down.

pub(crate) use holdfast_types::civil;

use crate::number::low8;

pub(crate) const SECOND_MS: i64 = 1_000;
pub(crate) const MINUTE_MS: i64 = 60 * SECOND_MS;
pub(crate) const HOUR_MS: i64 = 60 * MINUTE_MS;
pub(crate) const DAY_MS: i64 = 24 * HOUR_MS;

/// Tills and the CRM write local time without an offset: China has one zone and no summer time.
pub(crate) const LOCAL_OFFSET_MS: i64 = 8 * HOUR_MS;

/// The span of time that is generated: whole days, the end not included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    pub(crate) days: u32,
}

impl Window {
    pub(crate) fn new(end_ms: i64, days: u32) -> Self {
        Self { start_ms: end_ms - i64::from(days) * DAY_MS, end_ms, days }
    }

    pub(crate) fn day_start(self, day: u32) -> i64 {
        self.start_ms + i64::from(day) * DAY_MS
    }

    pub(crate) fn day_of(self, time_ms: i64) -> i64 {
        (time_ms - self.start_ms).div_euclid(DAY_MS)
    }

    /// The moment on a day of the window at which local clocks show this second of the day.
    pub(crate) fn local_moment(self, day: u32, local_second: i64, millisecond: i64) -> i64 {
        let start_of_clock = (self.start_ms + LOCAL_OFFSET_MS).rem_euclid(DAY_MS);
        let offset = (local_second * SECOND_MS - start_of_clock).rem_euclid(DAY_MS);
        (self.day_start(day) + offset + millisecond).min(self.end_ms - SECOND_MS)
    }

    /// The months that the window touches, by clocks this far from UTC.
    pub(crate) fn months(self, offset_ms: i64) -> std::ops::RangeInclusive<i64> {
        month_number(self.start_ms + offset_ms)..=month_number(self.end_ms - 1 + offset_ms)
    }
}

/// The day since 1970-01-01 of a date.
pub(crate) fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Months since year 0, so that months can be counted and compared.
pub(crate) fn month_number(time_ms: i64) -> i64 {
    let (year, month, _) = civil(time_ms.div_euclid(DAY_MS));
    year * 12 + month - 1
}

/// The first moment of a month number.
pub(crate) fn month_start_ms(number: i64) -> i64 {
    days_of(number.div_euclid(12), number.rem_euclid(12) + 1, 1) * DAY_MS
}

/// `2025-03`
pub(crate) fn month_name(number: i64) -> String {
    format!("{:04}-{:02}", number.div_euclid(12), number.rem_euclid(12) + 1)
}

/// 0 is Monday.
pub(crate) fn weekday(days: i64) -> i64 {
    (days + 3).rem_euclid(7)
}

/// `2025-03-01T04:33:11Z`
pub(crate) fn push_utc(out: &mut Vec<u8>, time_ms: i64) {
    push_civil(out, time_ms, b'T');
    out.push(b'Z');
}

/// `2025-03-01T04:33:11.042Z`
pub(crate) fn push_utc_millis(out: &mut Vec<u8>, time_ms: i64) {
    push_civil(out, time_ms, b'T');
    out.push(b'.');
    push_padded(out, time_ms.rem_euclid(SECOND_MS), 3);
    out.push(b'Z');
}

/// `2025-03-01 12:33:11`, by local clocks.
pub(crate) fn push_local(out: &mut Vec<u8>, time_ms: i64) {
    push_civil(out, time_ms + LOCAL_OFFSET_MS, b' ');
}

/// `2025-03-01`
pub(crate) fn push_date(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil(days);
    push_padded(out, year, 4);
    out.push(b'-');
    push_padded(out, month, 2);
    out.push(b'-');
    push_padded(out, day, 2);
}

fn push_civil(out: &mut Vec<u8>, time_ms: i64, separator: u8) {
    let days = time_ms.div_euclid(DAY_MS);
    let second = time_ms.rem_euclid(DAY_MS) / SECOND_MS;
    push_date(out, days);
    out.push(separator);
    push_padded(out, second / 3_600, 2);
    out.push(b':');
    push_padded(out, second / 60 % 60, 2);
    out.push(b':');
    push_padded(out, second % 60, 2);
}

/// The last `width` digits of a number that is not negative, with leading zeros.
pub(crate) fn push_padded(out: &mut Vec<u8>, value: i64, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    let mut rest = value.unsigned_abs();
    for place in out[start..].iter_mut().rev() {
        *place = b'0' + low8(rest % 10);
        rest /= 10;
    }
}

/// How busy the shop is on a day, against 1.0 on an ordinary one: 618, Double 11, Double 12 and the Lunar new year.
pub(crate) fn season(days: i64) -> f64 {
    let (year, month, day) = civil(days);
    let weekly = match weekday(days) {
        4 => 1.08,
        5 | 6 => 1.22,
        _ => 0.92,
    };
    let festival = match (month, day) {
        (6, 16..=18) => 2.4,
        (6, 1..=15) => 1.3,
        (11, 1) | (11, 10..=11) => 3.0,
        (11, 2..=9) => 1.4,
        (12, 11..=12) => 1.8,
        (3, 6..=8) => 1.3,
        (6, 20..=30) | (11, 13..=25) => 0.8,
        _ => 1.0,
    };
    let new_year =
        LUNAR_NEW_YEAR.iter().find(|entry| entry.0 == year).map(|entry| days - days_of(entry.0, entry.1, entry.2));
    let lunar = match new_year {
        Some(-18..=-4) => 1.6,
        Some(-3..=6) => 0.45,
        Some(7..=12) => 0.8,
        _ => 1.0,
    };
    weekly * festival * lunar
}

/// The first day of the Lunar year, as the Hong Kong Observatory's tables give it. Other years have no such season.
pub(crate) const LUNAR_NEW_YEAR: [(i64, i64, i64); 15] = [
    (2018, 2, 16),
    (2019, 2, 5),
    (2020, 1, 25),
    (2021, 2, 12),
    (2022, 2, 1),
    (2023, 1, 22),
    (2024, 2, 10),
    (2025, 1, 29),
    (2026, 2, 17),
    (2027, 2, 6),
    (2028, 1, 26),
    (2029, 2, 13),
    (2030, 2, 3),
    (2031, 1, 23),
    (2032, 2, 11),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dates_survive_the_way_there_and_back() {
        for days in -40_000..40_000 {
            let (year, month, day) = civil(days);
            assert_eq!(days_of(year, month, day), days);
        }
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(weekday(days_of(2026, 1, 1)), 3);
    }

    #[test]
    fn moments_are_written_in_both_clocks() {
        let moment = days_of(2025, 2, 28) * DAY_MS + 20 * HOUR_MS + 33 * MINUTE_MS + 11_042;
        assert_eq!(text(|out| push_utc(out, moment)), "2025-02-28T20:33:11Z");
        assert_eq!(text(|out| push_utc_millis(out, moment)), "2025-02-28T20:33:11.042Z");
        assert_eq!(text(|out| push_local(out, moment)), "2025-03-01 04:33:11");
    }

    #[test]
    fn local_hours_fall_inside_their_day_of_the_window() {
        let window = Window::new(days_of(2026, 1, 1) * DAY_MS, 30);
        for hour in 0..24 {
            let moment = window.local_moment(29, hour * 3_600, 0);
            assert_eq!(window.day_of(moment), 29);
            assert_eq!((moment + LOCAL_OFFSET_MS).rem_euclid(DAY_MS) / HOUR_MS, hour);
        }
    }
}
