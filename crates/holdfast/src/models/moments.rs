//! At which moments customers are looked at, and which of them judge.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, TimeDelta, Utc};

use super::spec::Spec;
use crate::error::CliError;

/// The moments of a training: midnight UTC, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moments {
    /// Of rows that are learnt from. All that their labels look at lies before the first of `test`.
    pub(crate) train: Vec<DateTime<Utc>>,
    /// Of rows that judge.
    pub(crate) test: Vec<DateTime<Utc>>,
}

/// What is known of the events that labels are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first event.
    pub(crate) first: DateTime<Utc>,
    /// Up to when all events are known.
    pub(crate) until: DateTime<Utc>,
}

impl Moments {
    /// Those that a spec asks for, of events that are known over `span`: the newest judge, and those before them teach, with a gap in between as long as a label looks ahead.
    ///
    /// # Errors
    /// Too short a history, with the days that are missing.
    pub(crate) fn of(spec: &Spec, span: Span) -> Result<Self, CliError> {
        let ahead = spec.gap() + spec.horizon();
        let history = spec.file.moments.history_days.map_or(spec.observation(), |days| TimeDelta::days(days.into()));
        let oldest = span.first + history;
        let mut all = Vec::new();
        let mut next = latest_on_day(span.until - ahead, *spec.file.moments.day.get_ref());
        while next >= oldest && all.len() < *spec.file.moments.most.get_ref() as usize {
            all.push(next);
            let Some(before) = next.checked_sub_months(Months::new(1)) else { break };
            next = before;
        }
        all.reverse();
        let tests = *spec.file.split.test_moments.get_ref() as usize;
        let test = all.split_off(all.len().saturating_sub(tests));
        let train: Vec<_> = match test.first() {
            Some(first) => all.into_iter().filter(|moment| *moment + ahead <= *first).collect(),
            None => Vec::new(),
        };
        if test.len() < tests || train.is_empty() {
            return Err(CliError::Training(format!(
                "the events of {} are known from {} to {}, which is too short: a moment needs {} days before and {} after it, and one to learn from another {} days before the first that judges; \
                 shorten observation_days, history_days, gap_days or horizon_days in {}, or wait",
                spec.file.label.table.get_ref(),
                span.first.date_naive(),
                span.until.date_naive(),
                history.num_days(),
                ahead.num_days(),
                ahead.num_days(),
                spec.path.display(),
            )));
        }
        Ok(Self { train, test })
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = DateTime<Utc>> + '_ {
        self.train.iter().chain(&self.test).copied()
    }
}

/// The last midnight UTC of that day of a month, up to `moment`.
fn latest_on_day(moment: DateTime<Utc>, day: u32) -> DateTime<Utc> {
    let of_month = |moment: DateTime<Utc>| {
        let date = NaiveDate::from_ymd_opt(moment.year(), moment.month(), day).unwrap_or(moment.date_naive());
        date.and_time(NaiveTime::MIN).and_utc()
    };
    let found = of_month(moment);
    if found <= moment { found } else { found.checked_sub_months(Months::new(1)).unwrap_or(found) }
}

/// The last midnight UTC up to a moment.
pub(crate) fn midnight(moment: DateTime<Utc>) -> DateTime<Utc> {
    moment.date_naive().and_time(NaiveTime::MIN).and_utc()
}

/// The end of the moment's day.
pub(crate) fn end_of_day(moment: DateTime<Utc>) -> DateTime<Utc> {
    let begins = midnight(moment);
    if begins == moment { moment } else { begins.checked_add_days(Days::new(1)).unwrap_or(moment) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        let file = "[features]\nstage = \"features.f\"\n[label]\ntable = \"core.o\"\ntime = \"at\"\nobservation_days = 90\ngap_days = 7\nhorizon_days = 60\n[scores]\ntable = \"risk.s\"\n";
        let text = format!("{file}{text}");
        let file = toml::from_str(&text).unwrap();
        Spec { name: "m".to_owned(), path: "m.toml".into(), text, file }
    }

    fn days(moments: &[DateTime<Utc>]) -> Vec<String> {
        moments.iter().map(|moment| moment.date_naive().to_string()).collect()
    }

    #[test]
    fn no_label_that_teaches_looks_past_the_first_moment_that_judges() {
        let span =
            Span { first: "2024-01-10T08:00:00Z".parse().unwrap(), until: "2025-01-01T00:00:00Z".parse().unwrap() };
        let moments = Moments::of(&spec("[split]\ntest_moments = 2\n"), span).unwrap();
        assert_eq!(days(&moments.test), ["2024-09-01", "2024-10-01"]);
        // 67 days before September begins is June 26: July looks too far.
        assert_eq!(days(&moments.train), ["2024-05-01", "2024-06-01"]);
        assert_eq!(
            days(&Moments::of(&spec("[moments]\nmost = 5\n"), span).unwrap().train),
            ["2024-06-01", "2024-07-01"]
        );
    }

    #[test]
    fn moments_stand_on_the_day_that_the_file_names() {
        let span =
            Span { first: "2017-01-01T06:53:26Z".parse().unwrap(), until: "2018-01-01T05:00:00Z".parse().unwrap() };
        let moments = Moments::of(&spec("[moments]\nday = 6\n"), span).unwrap();
        assert_eq!(days(&moments.test), ["2017-10-06"]);
        assert_eq!(days(&moments.train), ["2017-04-06", "2017-05-06", "2017-06-06", "2017-07-06"]);
    }

    #[test]
    fn a_history_that_is_too_short_is_told_with_what_is_missing() {
        let span =
            Span { first: "2024-01-10T08:00:00Z".parse().unwrap(), until: "2024-06-20T00:00:00Z".parse().unwrap() };
        let told = Moments::of(&spec(""), span).unwrap_err().to_string();
        assert!(told.contains("core.o") && told.contains("2024-06-20") && told.contains("67 after it"), "{told}");
    }

    #[test]
    fn a_day_ends_at_midnight() {
        let end = |text: &str| end_of_day(text.parse().unwrap()).to_rfc3339();
        assert_eq!(end("2025-12-31T23:57:00Z"), "2026-01-01T00:00:00+00:00");
        assert_eq!(end("2026-01-01T00:00:00Z"), "2026-01-01T00:00:00+00:00");
    }
}
