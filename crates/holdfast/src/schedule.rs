//! When the stages of a pipeline are run by themselves: `[schedule]` in its `pipeline.toml`.

use std::ops::Range;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use serde::Deserialize;
use toml::Spanned;

use crate::commands::maintain::duration;

/// Between the beginnings of two runs on new data, where the pipeline does not say.
const ON_NEW_DATA: TimeDelta = TimeDelta::minutes(1);
/// Between the beginnings of two continuous runs.
const CONTINUOUS: TimeDelta = TimeDelta::seconds(1);
/// How long a continuous pipeline without new data goes without a run: what depends on time alone moves, too.
const CONTINUOUS_IDLE: TimeDelta = TimeDelta::minutes(1);

const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(5);

/// A mistake: where it is in the file, in bytes, and what to do.
pub(crate) type Mistake = (Range<usize>, String);

/// The section as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ScheduleSection {
    cron: Option<Spanned<String>>,
    time_zone: Option<Spanned<String>>,
    on_new_data: Option<Spanned<bool>>,
    min_interval: Option<Spanned<String>>,
    continuous: Option<Spanned<bool>>,
}

/// When stages are run.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    cron: Option<CronTimes>,
    news: Option<OnNews>,
}

/// Times of a calendar.
#[derive(Debug, Clone)]
struct CronTimes {
    text: String,
    cron: Cron,
    time_zone: Tz,
}

/// Runs when something is new in `raw` or people decided something about identity.
#[derive(Debug, Clone, Copy)]
struct OnNews {
    min_interval: TimeDelta,
    /// After so long a run comes without news as well.
    idle: Option<TimeDelta>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Run.
    Run,
    /// Run if there is something new.
    RunOnNews,
    /// Nothing before this moment.
    Wait(DateTime<Utc>),
}

impl Default for Schedule {
    fn default() -> Self {
        Self { cron: None, news: Some(OnNews { min_interval: ON_NEW_DATA, idle: None }) }
    }
}

impl Schedule {
    /// Checks the section of a pipeline, which is at `place` in its file.
    ///
    /// # Errors
    /// The first key that is wrong by itself or beside the others.
    pub(crate) fn new(section: &Spanned<ScheduleSection>) -> Result<Self, Mistake> {
        let place = section.span();
        let section = section.get_ref();
        let is_set = |key: &Option<Spanned<bool>>| key.as_ref().is_some_and(|key| *key.get_ref());
        let (on_new_data, continuous) = (is_set(&section.on_new_data), is_set(&section.continuous));
        if let Some(key) = section.continuous.as_ref().filter(|_| continuous && (on_new_data || section.cron.is_some()))
        {
            let why = "`continuous` runs one after the other: it goes with neither `cron` nor `on_new_data`";
            return Err((key.span(), why.to_owned()));
        }
        if let Some(key) = section.time_zone.as_ref().filter(|_| section.cron.is_none()) {
            return Err((key.span(), "`time_zone` says where `cron` is, and there is no `cron`".to_owned()));
        }
        if let Some(key) = section.min_interval.as_ref().filter(|_| !on_new_data && !continuous) {
            let why =
                "`min_interval` keeps runs of `on_new_data = true` or `continuous = true` apart, and there is neither";
            return Err((key.span(), why.to_owned()));
        }
        let interval = section.min_interval.as_ref().map(interval).transpose()?;
        let news = if continuous {
            Some(OnNews { min_interval: interval.unwrap_or(CONTINUOUS), idle: Some(CONTINUOUS_IDLE) })
        } else {
            on_new_data.then(|| OnNews { min_interval: interval.unwrap_or(ON_NEW_DATA), idle: None })
        };
        let cron = section.cron.as_ref().map(|cron| cron_times(cron, section.time_zone.as_ref())).transpose()?;
        if cron.is_none() && news.is_none() {
            let why = "a schedule says `cron = \"0 5 * * *\"`, `on_new_data = true` or `continuous = true`";
            return Err((place, why.to_owned()));
        }
        Ok(Self { cron, news })
    }

    /// What is to be done at `now`, when the last run began at `last`, if any did, and times of the calendar are done up to
    /// `calendar`. Times that were missed are one time.
    pub(crate) fn next(&self, last: Option<DateTime<Utc>>, calendar: DateTime<Utc>, now: DateTime<Utc>) -> Next {
        let time = self.cron.as_ref().and_then(|cron| cron.after(calendar));
        if time.is_some_and(|time| time <= now) {
            return Next::Run;
        }
        let look = match (self.news, last) {
            (Some(news), Some(last)) => {
                if news.idle.is_some_and(|idle| now >= last + idle) {
                    return Next::Run;
                }
                // A clock that was set back holds nothing up.
                Some((last + news.min_interval).min(now + news.min_interval))
            }
            (Some(_), None) => Some(now),
            (None, _) => None,
        };
        match (look, time) {
            (Some(look), _) if look <= now => Next::RunOnNews,
            (look, time) => Next::Wait(look.into_iter().chain(time).min().unwrap_or(DateTime::<Utc>::MAX_UTC)),
        }
    }

    /// How often it is looked whether something is new. A look costs a GET a source.
    pub(crate) fn look_every(&self) -> Duration {
        let interval = self.news.map_or(LOOK_MAX, |news| news.min_interval.to_std().unwrap_or_default());
        interval.clamp(LOOK_MIN, LOOK_MAX)
    }

    /// The next time of the calendar after `moment`, if there is a calendar.
    pub(crate) fn time_after(&self, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.cron.as_ref()?.after(moment)
    }
}

impl std::fmt::Display for Schedule {
    /// As it is told to people: `at "0 5 * * *" (Europe/Berlin)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(cron) = &self.cron {
            write!(f, "at \"{}\" ({})", cron.text, cron.time_zone)?;
        }
        if let Some(news) = self.news {
            let and = if self.cron.is_some() { " and " } else { "" };
            let seconds = news.min_interval.num_seconds();
            match news.idle {
                Some(_) => write!(f, "{and}continuously, {seconds} s apart")?,
                None => write!(f, "{and}on new data, {seconds} s apart")?,
            }
        }
        Ok(())
    }
}

impl CronTimes {
    fn after(&self, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let moment = moment.with_timezone(&self.time_zone);
        self.cron.find_next_occurrence(&moment, false).ok().map(|time| time.with_timezone(&Utc))
    }
}

fn cron_times(cron: &Spanned<String>, time_zone: Option<&Spanned<String>>) -> Result<CronTimes, Mistake> {
    let text = cron.get_ref();
    let mistake = |reason: String| {
        let fields = "minute, hour, day of month, month and day of week, with seconds in front if you like";
        (cron.span(), format!("`{text}` is no cron expression: {reason}; it has five fields, {fields}"))
    };
    let parser = CronParser::builder().seconds(Seconds::Optional).build();
    let parsed = parser.parse(text).map_err(|error| mistake(error.to_string().trim_end_matches('.').to_owned()))?;
    let time_zone = match time_zone {
        Some(name) => name.get_ref().parse::<Tz>().map_err(|_| (name.span(), unknown_zone(name.get_ref())))?,
        None => Tz::UTC,
    };
    let times = CronTimes { text: text.clone(), cron: parsed, time_zone };
    // Such as the 30th of February.
    if times.after(DateTime::UNIX_EPOCH).is_none() {
        return Err(mistake("no moment fits it".to_owned()));
    }
    Ok(times)
}

fn unknown_zone(name: &str) -> String {
    let near = chrono_tz::TZ_VARIANTS
        .iter()
        .map(|zone| (strsim::jaro_winkler(&zone.name().to_lowercase(), &name.to_lowercase()), zone.name()))
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .filter(|(likeness, _)| *likeness > 0.8);
    let hint = near
        .map_or_else(|| "write one such as `Europe/Berlin`".to_owned(), |(_, zone)| format!("did you mean `{zone}`?"));
    format!("`{name}` is no time zone of the IANA database: {hint}")
}

fn interval(text: &Spanned<String>) -> Result<TimeDelta, Mistake> {
    let wrong = |why: String| (text.span(), format!("`{}` is no interval: {why}", text.get_ref()));
    let length = duration(text.get_ref()).map_err(wrong)?;
    if !(Duration::from_secs(1)..=Duration::from_secs(7 * 86_400)).contains(&length) {
        return Err(wrong("between 1s and 7d".to_owned()));
    }
    TimeDelta::from_std(length).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        schedule: Spanned<ScheduleSection>,
    }

    fn schedule(text: &str) -> Result<Schedule, Mistake> {
        let file: File = toml::from_str(&format!("[schedule]\n{text}")).unwrap();
        Schedule::new(&file.schedule)
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn missed_times_are_caught_up_once() {
        let daily = schedule("cron = \"0 5 * * *\"").unwrap();
        let last = at("2026-03-01T05:00:00Z");
        assert_eq!(daily.next(None, last, at("2026-03-02T04:59:59Z")), Next::Wait(at("2026-03-02T05:00:00Z")));
        let late = at("2026-03-09T11:00:00Z");
        assert_eq!(daily.next(None, last, late), Next::Run);
        assert_eq!(daily.next(Some(late), late, late), Next::Wait(at("2026-03-10T05:00:00Z")));
    }

    #[test]
    fn a_time_that_summer_takes_or_winter_repeats_comes_once_a_day() {
        let berlin = schedule("cron = \"30 2 * * *\"\ntime_zone = \"Europe/Berlin\"").unwrap();
        let mut times = vec![at("2026-03-27T12:00:00Z")];
        for _ in 0..3 {
            times.push(berlin.time_after(*times.last().unwrap()).unwrap());
        }
        // On the 29th the clocks go from two to three.
        let expected = ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"];
        assert_eq!(times[1..], expected.map(at));
        let mut times = vec![at("2026-10-24T12:00:00Z")];
        for _ in 0..2 {
            times.push(berlin.time_after(*times.last().unwrap()).unwrap());
        }
        // On the 25th it is half past two twice.
        assert_eq!(times[1..], ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"].map(at));
    }

    #[test]
    fn new_data_waits_for_the_interval_and_the_calendar_does_not() {
        let both = schedule("on_new_data = true\nmin_interval = \"15m\"\ncron = \"5 0 * * *\"").unwrap();
        let last = at("2026-03-01T23:55:00Z");
        assert_eq!(both.next(None, last, last), Next::RunOnNews);
        assert_eq!(both.next(Some(last), last, last), Next::Wait(at("2026-03-02T00:05:00Z")));
        assert_eq!(both.next(Some(last), last, at("2026-03-02T00:05:00Z")), Next::Run);
        let ran = at("2026-03-02T00:05:00Z");
        assert_eq!(both.next(Some(ran), ran, ran), Next::Wait(at("2026-03-02T00:20:00Z")));
        assert_eq!(both.next(Some(ran), ran, at("2026-03-02T00:20:00Z")), Next::RunOnNews);
        // A clock that was set back by a day.
        assert_eq!(both.next(Some(ran), ran, at("2026-03-01T00:00:00Z")), Next::Wait(at("2026-03-01T00:15:00Z")));
    }

    #[test]
    fn a_continuous_pipeline_runs_without_news_now_and_then() {
        let continuous = schedule("continuous = true").unwrap();
        let last = at("2026-03-01T00:00:00Z");
        assert_eq!(continuous.next(Some(last), last, last), Next::Wait(last + CONTINUOUS));
        assert_eq!(continuous.next(Some(last), last, last + CONTINUOUS), Next::RunOnNews);
        assert_eq!(continuous.next(Some(last), last, last + CONTINUOUS_IDLE), Next::Run);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, place, part) in [
            ("cron = \"0 25 * * *\"", "\"0 25 * * *\"", "`0 25 * * *` is no cron expression"),
            ("cron = \"daily\"", "\"daily\"", "no cron expression"),
            ("cron = \"0 0 30 2 *\"", "\"0 0 30 2 *\"", "no moment fits it"),
            ("cron = \"0 5 * * *\"\ntime_zone = \"Europe/Berln\"", "\"Europe/Berln\"", "did you mean `Europe/Berlin`?"),
            ("on_new_data = true\nmin_interval = \"soon\"", "\"soon\"", "write 7d, 36h, 90m or 60s"),
            ("on_new_data = true\nmin_interval = \"0s\"", "\"0s\"", "between 1s and 7d"),
            ("cron = \"0 5 * * *\"\nmin_interval = \"5m\"", "\"5m\"", "there is neither"),
            ("on_new_data = true\ntime_zone = \"Asia/Shanghai\"", "\"Asia/Shanghai\"", "there is no `cron`"),
            ("cron = \"0 5 * * *\"\ncontinuous = true", "true", "neither `cron` nor `on_new_data`"),
        ] {
            let (span, message) = schedule(text).unwrap_err();
            let file = format!("[schedule]\n{text}");
            assert_eq!(&file[span], place, "{text}");
            assert!(message.contains(part), "{message}");
        }
        let (_, message) = schedule("on_new_data = false").unwrap_err();
        assert!(message.contains("a schedule says"), "{message}");
    }
}
