use super::fold;

/// A day of the Gregorian calendar between the years 1000 and 2199.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BirthDate {
    /// The year.
    pub year: i32,
    /// The month, from 1.
    pub month: u32,
    /// The day of the month, from 1.
    pub day: u32,
}

/// Which comes first where a date with a late year could be read either way (`03/04/1985`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DateOrder {
    /// 3 April, as in most of the world.
    #[default]
    DayFirst,
    /// 4 March, as in the United States.
    MonthFirst,
}

impl BirthDate {
    /// `None` when the calendar has no such day.
    pub fn new(year: i32, month: u32, day: u32) -> Option<Self> {
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            4 | 6 | 9 | 11 => 30,
            2 => 28 + u32::from(is_leap),
            1..=12 => 31,
            _ => 0,
        };
        ((1000..2200).contains(&year) && (1..=days).contains(&day)).then_some(Self { year, month, day })
    }

    /// Days since 1970-01-01 (Howard Hinnant, `days_from_civil`).
    pub fn days_since_1970(self) -> i32 {
        let (month, day) = (self.month.cast_signed(), self.day.cast_signed());
        let year = if month <= 2 { self.year - 1 } else { self.year };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
    }
}

impl std::fmt::Display for BirthDate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// The day a text means: `1985-03-07`, `19850307`, `1985/3/7`, `1985年3月7日`, `7.3.1985`, `7 Mar 1985`, `March 7, 1985`, each with or without a time
/// after it.
///
/// `None` for what is no day (`1985-02-30`), has no day, or no four digits of a year: two are not guessed at.
pub fn birth_date(text: &str, order: DateOrder) -> Option<BirthDate> {
    let (one, two, three) = date_parts(text)?;
    let number = |part: &str| part.parse::<u32>().ok();
    let year = |part: &str| if part.len() == 4 { part.parse::<i32>().ok() } else { None };
    if let Some(year) = year(&one) {
        return BirthDate::new(year, month_number(&two)?, number(&three)?);
    }
    let year = year(&three)?;
    match (month_by_name(&one), month_by_name(&two), order) {
        (Some(month), _, _) => BirthDate::new(year, month, number(&two)?),
        (_, Some(month), _) => BirthDate::new(year, month, number(&one)?),
        (_, _, DateOrder::DayFirst) => BirthDate::new(year, number(&two)?, number(&one)?),
        (_, _, DateOrder::MonthFirst) => BirthDate::new(year, number(&one)?, number(&two)?),
    }
}

/// Year, month and day as they are written, eight digits in this order, where there is no such day; `None` for other texts.
pub(crate) fn written_date(text: &str) -> Option<String> {
    let (one, two, three) = date_parts(text)?;
    let is_number = [&one, &two, &three].into_iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    let (year, month, day) = if one.len() == 4 { (one, two, three) } else { (three, two, one) };
    (is_number && year.len() == 4 && month.len() <= 2 && day.len() <= 2)
        .then(|| format!("{year}-{month:0>2}-{day:0>2}"))
}

/// The three parts of a date in their order, whether or not there is such a day.
fn date_parts(text: &str) -> Option<(String, String, String)> {
    let folded = fold(text.trim());
    // A time after the date says nothing about a birth.
    let folded = folded
        .split_once('t')
        .filter(|(date, _)| date.len() >= 8 && date.ends_with(|c: char| c.is_ascii_digit()))
        .map_or(folded.as_str(), |(date, _)| date);
    let mut parts = folded
        .split(|char: char| !char.is_alphanumeric() || matches!(char, '年' | '月' | '日' | '号' | '號'))
        .filter(|part| !part.is_empty());
    let one = parts.next()?;
    if one.len() == 8 && one.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some((one[..4].to_owned(), one[4..6].to_owned(), one[6..].to_owned()));
    }
    let (two, three) = (parts.next()?, parts.next()?);
    let plain = |part: &str| part.trim_end_matches(|char: char| "stndrh".contains(char)).to_owned();
    // 7th March: the ending of an ordinal, but not the letters of a month.
    let part = |part: &str| if part.starts_with(|c: char| c.is_ascii_digit()) { plain(part) } else { part.to_owned() };
    Some((part(one), part(two), part(three)))
}

fn month_number(part: &str) -> Option<u32> {
    part.parse().ok().or_else(|| month_by_name(part))
}

fn month_by_name(part: &str) -> Option<u32> {
    const NAMES: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    if part.len() < 3 {
        return None;
    }
    (1..).zip(NAMES).find(|(_, name)| name.starts_with(part)).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notations_of_one_day() {
        let day = BirthDate::new(1985, 3, 7);
        assert!(day.is_some());
        for text in [
            "1985-03-07",
            "19850307",
            "1985/3/7",
            "1985年3月7日",
            "7.3.1985",
            "07/03/1985",
            "7 Mar 1985",
            "March 7, 1985",
            "7th march 1985",
            "1985-03-07T00:00:00Z",
            "1985-03-07 12:30",
            "１９８５－０３－０７",
            " 1985-mar-7 ",
        ] {
            assert_eq!(birth_date(text, DateOrder::DayFirst), day, "{text}");
        }
        assert_eq!(birth_date("03/07/1985", DateOrder::MonthFirst), day);
    }

    #[test]
    fn what_is_no_day_is_none() {
        for text in [
            "1985-02-30",
            "19371337",
            "1900-02-29",
            "85-03-07",
            "7.3.85",
            "1985",
            "1985-03",
            "",
            "unknown",
            "0000-00-00",
            "2985-01-01",
        ] {
            assert_eq!(birth_date(text, DateOrder::DayFirst), None, "{text}");
        }
        assert!(birth_date("2000-02-29", DateOrder::DayFirst).is_some());
    }

    #[test]
    fn days_are_counted_from_1970() {
        let days = |text| birth_date(text, DateOrder::DayFirst).map(BirthDate::days_since_1970);
        assert_eq!(days("1970-01-01"), Some(0));
        assert_eq!(days("1969-12-31"), Some(-1));
        assert_eq!(days("2000-03-01"), Some(11_017));
        assert_eq!(days("1900-03-01"), Some(-25_508));
    }
}
