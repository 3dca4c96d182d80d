//! From which probability on a customer is an alert, by segment and season: `thresholds.toml` of a pipeline, and the table that stages read, `model.thresholds`.
//!
//! A threshold holds from a day until before another. Of each segment the days follow one another without a gap and without an overlap, so that there is one answer for each day.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use chrono::NaiveDate;
use holdfast_engine::{DeclaredTable, LakeReader, TableRows, write_table};
use holdfast_lake::{CommitOutcome, Lake, Position, TableSpec};
use holdfast_types::{Progress, TableName};
use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::value::Datetime;

use super::registry::{batch, commented, rows, unwritable};
use super::spec::{Spec, nearest};
use crate::error::CliError;
use crate::project::{Project, located, parse_toml, read_text};

const FILE: &str = "thresholds.toml";
/// Whoever is in no segment that has thresholds of its own.
const EVERYBODY: &str = "everybody";
/// Where the table has its note of what it was made from, in its commits, and how many commits back that may be.
const NOTE: &str = "holdfast.thresholds";
const NOTE_COMMITS_MAX: usize = 20;
/// Whose steps the table's versions are.
const APP_ID: &str = "thresholds";

/// The thresholds of a pipeline, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Thresholds {
    /// Of whose probabilities.
    model: String,
    of_segments: Vec<Threshold>,
}

/// What holds for a segment over some days.
#[derive(Debug, Clone, PartialEq)]
struct Threshold {
    segment: String,
    season: String,
    from: NaiveDate,
    /// The first day on which it does not hold any more.
    until: Option<NaiveDate>,
    high: f64,
    medium: f64,
}

/// A row of `model.thresholds`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    model: String,
    version: i32,
    segment: String,
    season: String,
    valid_from: NaiveDate,
    valid_to: Option<NaiveDate>,
    high: f64,
    medium: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Spanned<String>,
    /// The segments that the stage of alerts knows, beside everybody.
    #[serde(default)]
    segments: Vec<String>,
    threshold: Vec<Spanned<Text>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    segment: Option<Spanned<String>>,
    season: String,
    from: Spanned<Datetime>,
    until: Option<Spanned<Datetime>>,
    high: Spanned<f64>,
    medium: Spanned<f64>,
}

/// A mistake at this byte of the file.
type Mistake = (usize, String);

impl Thresholds {
    /// Those of a pipeline; none where it has no file of them.
    ///
    /// # Errors
    /// What is wrong in the file, with its line: among it days of a segment for which there is no threshold, or more than one.
    pub(crate) fn read(project: &Project) -> Result<Option<Self>, CliError> {
        let path = path(project)?;
        if !path.is_file() {
            return Ok(None);
        }
        let text = read_text(&path)?;
        let file: File = parse_toml(&path, &text)?;
        let models = Spec::names(project)?;
        Self::of(file, &models).map(Some).map_err(|(offset, message)| located(&path, &text, offset, message))
    }

    fn of(file: File, models: &[String]) -> Result<Self, Mistake> {
        let model = file.model.get_ref().clone();
        if !models.contains(&model) {
            let message = format!("the pipeline has no model `{model}`{}", nearest(&model, models));
            return Err((file.model.span().start, message));
        }
        let mut segments: BTreeMap<String, Vec<(usize, Threshold)>> = BTreeMap::new();
        let known: Vec<String> = file.segments.iter().cloned().chain([EVERYBODY.to_owned()]).collect();
        for text in file.threshold {
            let place = text.span().start;
            let threshold = threshold(text.into_inner(), &known)?;
            segments.entry(threshold.segment.clone()).or_default().push((place, threshold));
        }
        if !segments.contains_key(EVERYBODY) {
            let message = "there is no [[threshold]] without a segment, which holds for everybody who is in no other: add one, with `high = 0.70`";
            return Err((0, message.to_owned()));
        }
        let mut of_segments = Vec::new();
        for of_segment in segments.into_values() {
            of_segments.extend(in_a_row(of_segment)?);
        }
        Ok(Self { model, of_segments })
    }

    /// Brings the table to what the file says, where it says something else than the table. Readers see it with the next run that is published. Nothing is done where there is no file, and in an environment, which reads
    /// production's.
    ///
    /// # Errors
    /// Mistakes in the file, somebody else who does the same at the same time, what the lake answers.
    pub(crate) async fn bring(project: &Project, lake: &Lake, progress: &dyn Progress) -> Result<(), CliError> {
        let Some(thresholds) = Self::read(project)? else { return Ok(()) };
        if lake.environment_name().is_some() {
            return Ok(());
        }
        let spec = table()?;
        let table = lake.table(&spec.name).await?;
        let mut note: BTreeMap<String, String> = match &table {
            Some(table) => table.commit_note(NOTE, NOTE_COMMITS_MAX).await?,
            None => None,
        }
        .and_then(|note| serde_json::from_value(note).ok())
        .unwrap_or_default();
        let hash = thresholds.hash();
        if note.get(&thresholds.model) == Some(&hash) {
            return Ok(());
        }
        let step = match &table {
            Some(table) => table.position(APP_ID).await?.unwrap_or(0) + 1,
            None => 1,
        };
        // Those of other models stay.
        let read = LakeReader::newest_of(lake, &project.reader_settings(), std::slice::from_ref(&spec.name)).await?;
        let mut rows: Vec<Row> = rows(&read, &spec, None).await?;
        rows.retain(|row| row.model != thresholds.model);
        rows.extend(thresholds.rows(i32::try_from(step).unwrap_or(i32::MAX)));
        note.insert(thresholds.model.clone(), hash);
        let note = serde_json::to_value(note).map_err(unwritable)?;
        let position = Position { app_id: APP_ID.to_owned(), version: step };
        let written = TableRows::All(vec![batch(&spec.schema, &rows)?]);
        match write_table(lake, &spec, written, position, [(NOTE.to_owned(), note)].into_iter().collect()).await? {
            CommitOutcome::Applied { .. } => {
                progress.note(&format!("  Brought {} to {FILE}: version {step} of the thresholds", spec.name));
                Ok(())
            }
            CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => Err(CliError::Moved(format!(
                "somebody else brought other thresholds to {} at the same time: look at it, then run again",
                spec.name
            ))),
        }
    }

    fn rows(&self, version: i32) -> impl Iterator<Item = Row> + '_ {
        self.of_segments.iter().map(move |threshold| Row {
            model: self.model.clone(),
            version,
            segment: threshold.segment.clone(),
            season: threshold.season.clone(),
            valid_from: threshold.from,
            valid_to: threshold.until,
            high: threshold.high,
            medium: threshold.medium,
        })
    }

    /// Changes when one of them does.
    fn hash(&self) -> String {
        blake3::hash(format!("{:?}", self.of_segments).as_bytes()).to_hex().chars().take(32).collect()
    }
}

fn threshold(text: Text, known: &[String]) -> Result<Threshold, Mistake> {
    let segment = match &text.segment {
        Some(segment) if !known.contains(segment.get_ref()) => {
            let hint = nearest(segment.get_ref(), known);
            let message = format!("`{}` is none of `segments`{hint}", segment.get_ref());
            return Err((segment.span().start, message));
        }
        Some(segment) => segment.get_ref().clone(),
        None => EVERYBODY.to_owned(),
    };
    let (from, until) = (day(&text.from)?, text.until.as_ref().map(day).transpose()?);
    if let (Some(until), Some(text)) = (until, &text.until)
        && until <= from
    {
        return Err((
            text.span().start,
            format!("{until} is not after {from}: `until` is the first day on which it does not hold any more"),
        ));
    }
    let (high, medium) = (*text.high.get_ref(), *text.medium.get_ref());
    if !(high > 0.0 && high < 1.0) {
        return Err((text.high.span().start, "a probability to be alarmed by is above 0 and below 1".to_owned()));
    }
    if !(medium > 0.0 && medium <= high) {
        return Err((text.medium.span().start, "`medium` is above 0 and not above `high`".to_owned()));
    }
    Ok(Threshold { segment, season: text.season, from, until, high, medium })
}

fn day(text: &Spanned<Datetime>) -> Result<NaiveDate, Mistake> {
    let told = || (text.span().start, "write a day, such as 2026-11-01".to_owned());
    match text.get_ref() {
        Datetime { date: Some(date), time: None, offset: None } => {
            NaiveDate::from_ymd_opt(date.year.into(), date.month.into(), date.day.into()).ok_or_else(told)
        }
        _ => Err(told()),
    }
}

/// The thresholds of one segment in the order of their days, of which each has one.
fn in_a_row(mut thresholds: Vec<(usize, Threshold)>) -> Result<Vec<Threshold>, Mistake> {
    thresholds.sort_by_key(|(_, threshold)| threshold.from);
    for ((_, before), (place, next)) in thresholds.iter().zip(thresholds.iter().skip(1)) {
        let Threshold { segment, season, .. } = before;
        let message = match before.until {
            Some(until) if until == next.from => continue,
            Some(until) if until < next.from => format!(
                "for `{segment}` there is no threshold from {until} to {}: begin on {until}, or let `{season}` go on until then",
                next.from
            ),
            until => format!(
                "for `{segment}` two thresholds hold on {}: `{season}` holds from {} {}; end it with `until = {}`, or begin later",
                next.from,
                before.from,
                until.map_or_else(|| "for good".to_owned(), |until| format!("until {until}")),
                next.from
            ),
        };
        return Err((*place, message));
    }
    if let Some((place, last)) = thresholds.last()
        && let Some(until) = last.until
    {
        let message = format!(
            "for `{}` there is no threshold from {until} on: leave out `until`, or add what holds then",
            last.segment
        );
        return Err((*place, message));
    }
    Ok(thresholds.into_iter().map(|(_, threshold)| threshold).collect())
}

fn path(project: &Project) -> Result<PathBuf, CliError> {
    Ok(project.pipeline_folder()?.join(FILE))
}

/// The table, which stages may read.
pub(crate) fn declared() -> Result<DeclaredTable, CliError> {
    let spec = table()?;
    Ok(DeclaredTable { name: spec.name, schema: spec.schema, identifiers: Vec::new() })
}

fn table() -> Result<TableSpec, CliError> {
    let text = |name: &str, comment: &str| commented(name, DataType::Utf8, comment);
    let fields = vec![
        text("model", "Of whose probabilities: the model's file in the pipeline"),
        commented("version", DataType::Int32, "Grows with each change of a file; what an alert was raised by"),
        text("segment", "Whom it is for: everybody is whoever is in no segment that has some of its own"),
        text("season", "What these days are called"),
        commented("valid_from", DataType::Date32, "The first day on which it holds"),
        commented("valid_to", DataType::Date32, "The first day on which it does not hold any more; null for good"),
        commented("high", DataType::Float64, "From which calibrated probability on the alert is high"),
        commented("medium", DataType::Float64, "From which on it is medium"),
    ];
    Ok(TableSpec {
        name: TableName::new("model", "thresholds").map_err(|error| CliError::Lake(error.into()))?,
        schema: Arc::new(Schema::new(fields)),
        partition_by: Vec::new(),
        comment: "One row is what makes an alert of a probability, for a segment over some days; the file thresholds.toml of a pipeline."
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a file, and the line that it is told at.
    fn wrong(thresholds: &str) -> (usize, String) {
        let text = format!("model = \"churn\"\nsegments = [\"new\", \"mature\"]\n{thresholds}");
        let file = toml::from_str(&text).unwrap();
        let (offset, message) = Thresholds::of(file, &["churn".to_owned()]).unwrap_err();
        (text[..offset].matches('\n').count() + 1, message)
    }

    const EVERYDAY: &str = "[[threshold]]\nseason = \"everyday\"\nfrom = 2025-01-01\nhigh = 0.70\nmedium = 0.40\n";

    fn until(day: &str) -> String {
        EVERYDAY.replace("high", &format!("until = {day}\nhigh"))
    }

    fn from(day: &str) -> String {
        EVERYDAY.replace("2025-01-01", day).replace("everyday", "sale")
    }

    #[test]
    fn each_day_of_a_segment_has_one_threshold() {
        let text = format!("model = \"churn\"\n{}{}", from("2025-06-01"), until("2025-06-01"));
        let read = Thresholds::of(toml::from_str(&text).unwrap(), &["churn".to_owned()]).unwrap();
        let seasons: Vec<&str> = read.of_segments.iter().map(|threshold| threshold.season.as_str()).collect();
        assert_eq!(seasons, ["everyday", "sale"], "by their days, wherever they stand");

        let (line, told) = wrong(&format!("{}{}", until("2025-06-01"), from("2025-06-03")));
        assert_eq!(line, 9);
        assert!(told.contains("no threshold from 2025-06-01 to 2025-06-03"), "{told}");
        let (line, told) = wrong(&format!("{}{}", until("2025-06-04"), from("2025-06-03")));
        assert_eq!(line, 9);
        assert!(told.contains("two thresholds hold on 2025-06-03") && told.contains("until = 2025-06-03"), "{told}");
        let (line, told) = wrong(&format!("{EVERYDAY}{}", from("2025-06-03")));
        assert_eq!(line, 8);
        assert!(told.contains("for good"), "{told}");
        let (line, told) = wrong(&until("2025-06-01"));
        assert_eq!(line, 3);
        assert!(told.contains("no threshold from 2025-06-01 on"), "{told}");
        // Of each segment by itself.
        let (_, told) =
            wrong(&format!("{EVERYDAY}{}", until("2025-06-01").replace("season", "segment = \"new\"\nseason")));
        assert!(told.contains("for `new` there is no threshold from 2025-06-01 on"), "{told}");
    }

    #[test]
    fn what_makes_no_sense_is_told_at_its_line() {
        for (threshold, line, told) in [
            (EVERYDAY.replace("season", "segment = \"matur\"\nseason"), 4, "did you mean `mature`?"),
            (EVERYDAY.replace("season", "segment = \"new\"\nseason"), 1, "everybody who is in no other"),
            (EVERYDAY.replace("2025-01-01", "2025-01-01T00:00:00Z"), 5, "write a day"),
            (until("2025-01-01"), 6, "is not after"),
            (EVERYDAY.replace("0.70", "1.70"), 6, "above 0 and below 1"),
            (EVERYDAY.replace("0.40", "0.75"), 7, "not above `high`"),
        ] {
            let (found, message) = wrong(&threshold);
            assert!(found == line && message.contains(told), "{found} {message}");
        }
        let file = toml::from_str(&format!("model = \"chrn\"\n{EVERYDAY}")).unwrap();
        let (_, told) = Thresholds::of(file, &["churn".to_owned()]).unwrap_err();
        assert!(told.contains("did you mean `churn`?"), "{told}");
    }
}
