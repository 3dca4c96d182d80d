//! Whether what a source brings is as it should be: its newest batches held against its contract's limits and against what is
//! usual, and alerts about what is not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use datafusion::logical_expr::{col, lit};
use futures::TryStreamExt;
use holdfast_lake::{Lake, Table, TableSpec};
use holdfast_types::TableName;
use serde::Serialize;

use crate::Result;
use crate::error::IngestError;
use crate::facts::{Facts, KEYS_MAX, RecentKeys, key_hashes};
use crate::ingest::count;
use crate::ledger::{BatchTotals, field, times};
use crate::quarantine::{Columns, scan};
use crate::spec::{BATCH, SourceSpec, timestamp_type};

/// Batches of a source that are remembered, to know what is usual.
const BATCHES_MAX: usize = 50;
/// Rows that are read at once.
const ROWS_AT_ONCE: usize = 8_192;
/// A share says something only when there are enough rows.
const ROWS_MIN: u64 = 20;
/// What is usual is known after this many batches or deliveries.
const USUAL_MIN: usize = 5;
/// Batches that follow each other within this time are one delivery, and are judged together.
const DELIVERY_MICROS: i64 = 3_600_000_000;
/// Without a limit of its own a column may be empty in this share of rows more than usual.
const NULLS_ABOVE_USUAL: f64 = 0.3;
/// Without a limit of its own a source may be silent for this many times its usual interval.
const SILENCE_FACTOR: i64 = 3;
/// How many times the limit makes a warning critical.
const CRITICAL_FACTOR: f64 = 2.0;

/// The section `[quality]` of a contract: what a source's batches are held against.
#[derive(Debug, Clone, PartialEq)]
pub struct QualityRules {
    /// The share of stored rows in which a column may be empty, by column.
    pub max_null_share: BTreeMap<String, f64>,
    /// The share of stored rows whose key came before. Not judged without it: a source that sends its state again has many.
    pub max_duplicate_share: Option<f64>,
    /// The share of stored rows that are late. Not judged without it.
    pub max_late_share: Option<f64>,
    /// The share of read rows that may go to quarantine.
    pub max_refused_share: f64,
    /// An event is late when it is older by more than this than what earlier batches had reached.
    pub late_after: Duration,
    /// How old the newest event may be. Without it, how long the source is silent is held against its usual interval.
    pub freshness_max: Option<Duration>,
    /// The fewest and most rows of a delivery, as parts of what is usual.
    pub volume: (f64, f64),
}

impl Default for QualityRules {
    fn default() -> Self {
        Self {
            max_null_share: BTreeMap::new(),
            max_duplicate_share: None,
            max_late_share: None,
            max_refused_share: 0.1,
            late_after: Duration::from_secs(3_600),
            freshness_max: None,
            volume: (0.5, 2.0),
        }
    }
}

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertRule {
    /// Many rows went to quarantine.
    RefusedShare,
    /// A column is empty in many rows.
    NullShare,
    /// Many keys came before.
    DuplicateShare,
    /// Many events are late.
    LateShare,
    /// The newest event is old, or nothing has come for longer than usual.
    Freshness,
    /// A delivery is smaller or larger than usual.
    Volume,
}

impl AlertRule {
    const ALL: [Self; 6] =
        [Self::RefusedShare, Self::NullShare, Self::DuplicateShare, Self::LateShare, Self::Freshness, Self::Volume];

    /// Its name in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RefusedShare => "refused_share",
            Self::NullShare => "null_share",
            Self::DuplicateShare => "duplicate_share",
            Self::LateShare => "late_share",
            Self::Freshness => "freshness",
            Self::Volume => "volume",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == text)
    }
}

/// How far beyond its limit something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Beyond it.
    Warning,
    /// More than twice as far.
    Critical,
}

impl Severity {
    /// Its name in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    fn of(value: f64, limit: f64) -> Self {
        if value > CRITICAL_FACTOR * limit { Self::Critical } else { Self::Warning }
    }
}

/// Something about a source that somebody should look at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    /// What it is about.
    pub rule: AlertRule,
    /// The column, where it is about one.
    pub column: Option<String>,
    /// How far beyond the limit it is.
    pub severity: Severity,
    /// Since when.
    pub since: DateTime<Utc>,
    /// The newest batch that shows it.
    pub batch: i64,
    /// What was measured: a share, a part of what is usual, or seconds.
    pub value: f64,
    /// What it may be.
    pub limit: f64,
    /// What was seen.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

type AlertKey = (AlertRule, Option<String>);

impl Alert {
    fn key(&self) -> AlertKey {
        (self.rule, self.column.clone())
    }
}

/// A stored batch, as far as later ones are held against it.
#[derive(Debug, Clone)]
pub(crate) struct RecentBatch {
    pub(crate) batch: i64,
    pub(crate) rows_read: u64,
    pub(crate) rows_stored: u64,
    pub(crate) rows_quarantined: u64,
    /// UTC microseconds, as are the others.
    pub(crate) event_time_max: Option<i64>,
    pub(crate) finished_at: i64,
    /// `None` for batches of older versions.
    pub(crate) facts: Option<Facts>,
}

impl RecentBatch {
    pub(crate) fn new(batch: i64, totals: &BatchTotals, finished_at: i64, facts: Option<&Facts>) -> Self {
        Self {
            batch,
            rows_read: totals.rows_read,
            rows_stored: totals.rows_stored,
            rows_quarantined: totals.rows_quarantined,
            event_time_max: totals.event_times.map(|(_, latest)| latest),
            finished_at,
            facts: facts.cloned(),
        }
    }

    /// The newest moment that it shows to have come. An event of the future shows nothing.
    fn reached(&self) -> Option<i64> {
        self.event_time_max.map(|moment| moment.min(self.finished_at))
    }
}

/// What is remembered of a source from batch to batch.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Newest last.
    batches: VecDeque<RecentBatch>,
    keys: Option<Arc<RecentKeys>>,
    open: BTreeMap<AlertKey, Alert>,
    /// How often alerts were written down.
    told: i64,
}

impl Memory {
    /// Reads it from the books. `batches` is `metric.ingest_batches`, `newest` a batch that is not behind the newest stored one.
    pub(crate) async fn load(lake: &Lake, batches: &Table, pipeline: &str, source: &str, newest: i64) -> Result<Self> {
        let batches = recent_batches(lake, batches, pipeline, source, newest).await?;
        let (open, told) = open_alerts(lake, pipeline, source).await?;
        Ok(Self { batches, keys: None, open, told })
    }

    /// Before this moment events are late.
    pub(crate) fn late_before(&self, spec: &SourceSpec) -> Option<i64> {
        let reached = self.batches.iter().filter_map(RecentBatch::reached).max()?;
        Some(reached.saturating_sub(micros(spec.quality.late_after)))
    }

    /// The newest keys in `raw`, read the first time they are asked for.
    pub(crate) async fn keys(&mut self, lake: &Lake, raw: &Table, spec: &SourceSpec) -> Result<Arc<RecentKeys>> {
        if let Some(keys) = &self.keys {
            return Ok(Arc::clone(keys));
        }
        let keys =
            Arc::new(if spec.key.is_empty() { RecentKeys::default() } else { self.read_keys(lake, raw, spec).await? });
        self.keys = Some(Arc::clone(&keys));
        Ok(keys)
    }

    async fn read_keys(&self, lake: &Lake, raw: &Table, spec: &SourceSpec) -> Result<RecentKeys> {
        let mut keys = RecentKeys::default();
        let mut rows = 0;
        let newest = self.batches.iter().rev().take_while(|batch| {
            let begun = rows < count(KEYS_MAX);
            rows += batch.rows_stored;
            begun
        });
        let Some(first) = newest.map(|batch| batch.batch).min() else { return Ok(keys) };
        let mut columns: Vec<&str> = spec.key.iter().map(String::as_str).collect();
        columns.push(BATCH);
        let mut batches =
            std::pin::pin!(scan(lake, raw, &columns, &[col(BATCH).gt_eq(lit(first))], ROWS_AT_ONCE).await?);
        while let Some(batch) = batches.try_next().await? {
            let key: Vec<&ArrayRef> = spec.key.iter().filter_map(|name| batch.column_by_name(name)).collect();
            let numbers = batch.column_by_name(BATCH).map(|numbers| numbers.as_primitive::<Int64Type>());
            let (Some(numbers), true) = (numbers, key.len() == spec.key.len()) else { continue };
            for (row, hash) in key_hashes(&key, batch.num_rows())?.into_iter().enumerate() {
                if let Some(hash) = hash
                    && numbers.value(row) >= first
                {
                    keys.insert(hash, 0);
                }
            }
        }
        Ok(keys)
    }

    /// A batch was stored.
    pub(crate) fn add(&mut self, batch: RecentBatch, keys: Option<&RecentKeys>) {
        if let (Some(known), Some(keys)) = (&mut self.keys, keys) {
            Arc::make_mut(known).extend(keys);
        }
        self.batches.push_back(batch);
        if self.batches.len() > BATCHES_MAX {
            self.batches.pop_front();
        }
    }

    /// Goes on with the keys of an earlier memory: reading them again costs more than missing some of another worker's.
    pub(crate) fn keep_keys_of(&mut self, before: &Self) {
        self.keys = before.keys.clone();
    }

    /// What is to be written down: alerts that opened, closed or changed their severity. `None` for nothing.
    pub(crate) fn judge(&self, spec: &SourceSpec, now: i64) -> Option<Verdict> {
        let judged: BTreeMap<AlertKey, Alert> = judge(spec, &self.batches, now)
            .into_iter()
            .map(|alert| {
                let key = alert.key();
                // It is the same alert as long as it stays open.
                let since = self.open.get(&key).map_or(alert.since, |open| open.since);
                (key, Alert { since, ..alert })
            })
            .collect();
        let closed: Vec<Alert> =
            self.open.iter().filter(|(key, _)| !judged.contains_key(*key)).map(|(_, alert)| alert.clone()).collect();
        let changed: Vec<Alert> = judged
            .values()
            .filter(|alert| self.open.get(&alert.key()).is_none_or(|open| open.severity != alert.severity))
            .cloned()
            .collect();
        let opened =
            changed.iter().filter(|alert| !self.open.contains_key(&alert.key())).map(|alert| alert.rule).collect();
        let is_news = !closed.is_empty() || !changed.is_empty();
        is_news.then_some(Verdict { open: judged, closed, changed, opened })
    }

    /// The number of the next writing down.
    pub(crate) fn next_told(&self) -> i64 {
        self.told + 1
    }

    pub(crate) fn settle(&mut self, verdict: Verdict) {
        self.open = verdict.open;
        self.told += 1;
    }

    /// The alerts that are open.
    pub(crate) fn alerts(&self) -> Vec<Alert> {
        self.open.values().cloned().collect()
    }
}

/// How open alerts change.
#[derive(Debug)]
pub(crate) struct Verdict {
    open: BTreeMap<AlertKey, Alert>,
    closed: Vec<Alert>,
    changed: Vec<Alert>,
    pub(crate) opened: Vec<AlertRule>,
}

impl Verdict {
    /// Alerts that opened, closed or changed their severity.
    pub(crate) fn changes(&self) -> u64 {
        count(self.closed.len() + self.changed.len())
    }

    /// Rows of `metric.ingest_alerts`.
    pub(crate) fn rows(&self, pipeline: &str, source: &str, told: i64, now: i64) -> Result<RecordBatch> {
        let rows: Vec<(&Alert, &str)> = self
            .closed
            .iter()
            .map(|alert| (alert, "closed"))
            .chain(self.changed.iter().map(|alert| (alert, "open")))
            .collect();
        let text = |value: &dyn Fn(&Alert) -> Option<String>| -> ArrayRef {
            Arc::new(StringArray::from_iter(rows.iter().map(|(alert, _)| value(alert))))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::new_repeated(pipeline, rows.len())),
            Arc::new(StringArray::new_repeated(source, rows.len())),
            Arc::new(Int64Array::from_value(told, rows.len())),
            text(&|alert| Some(alert.rule.as_str().to_owned())),
            text(&|alert| alert.column.clone()),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, state)| *state))),
            text(&|alert| Some(alert.severity.as_str().to_owned())),
            times(rows.iter().map(|(alert, _)| Some(alert.since.timestamp_micros()))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|(alert, _)| alert.batch))),
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|(alert, _)| alert.value))),
            Arc::new(Float64Array::from_iter_values(rows.iter().map(|(alert, _)| alert.limit))),
            text(&|alert| Some(alert.message.clone())),
            text(&|alert| Some(alert.remedy.clone())),
            times(rows.iter().map(|_| Some(now))),
        ];
        RecordBatch::try_new(alerts_schema(), columns).map_err(IngestError::internal)
    }
}

/// Holds the newest batches against the contract and those before them. `now` in UTC microseconds.
fn judge(spec: &SourceSpec, batches: &VecDeque<RecentBatch>, now: i64) -> Vec<Alert> {
    let Some(newest) = batches.back() else { return Vec::new() };
    let begins = newest.finished_at - DELIVERY_MICROS;
    let (before, sample): (Vec<&RecentBatch>, Vec<&RecentBatch>) =
        batches.iter().partition(|batch| batch.finished_at <= begins && batch.batch != newest.batch);
    let rules = &spec.quality;
    let source = spec.name.as_str();
    let alert = |rule, column: Option<&str>, value: f64, limit: f64, message: String, remedy: String| Alert {
        rule,
        column: column.map(str::to_owned),
        severity: Severity::of(value, limit),
        since: moment(newest.finished_at),
        batch: newest.batch,
        value,
        limit,
        message,
        remedy,
    };
    let mut alerts = Vec::new();
    let sum = |value: &dyn Fn(&RecentBatch) -> u64| sample.iter().map(|batch| value(batch)).sum::<u64>();
    let (read, stored) = (sum(&|batch| batch.rows_read), sum(&|batch| batch.rows_stored));

    let refused = share(sum(&|batch| batch.rows_quarantined), read);
    if read >= ROWS_MIN && refused > rules.max_refused_share {
        let message = format!(
            "{} of {read} rows went to quarantine, more than {}",
            percent(refused),
            percent(rules.max_refused_share)
        );
        let remedy = format!(
            "look at holdfast quarantine list --source {source}; mend the sender or the contract, then holdfast quarantine replay"
        );
        alerts.push(alert(AlertRule::RefusedShare, None, refused, rules.max_refused_share, message, remedy));
    }
    if stored >= ROWS_MIN {
        alerts.extend(spec.columns.iter().filter_map(|column| {
            let name = column.name.as_str();
            let own = rules.max_null_share.get(name).copied();
            let limit = own.or_else(|| usual_null_share(&before, name).map(|usual| usual + NULLS_ABOVE_USUAL))?;
            let value = null_share(&sample, name)?;
            let why = if own.is_some() { "the contract allows" } else { "is usual" };
            let message = format!("column {name} is empty in {} of {stored} rows, more than {why} ({})", percent(value), percent(limit));
            let remedy = format!(
                "ask the sender of {source} whether the field was renamed or left out; if it may be empty, raise max_null_share.{name} in [quality]"
            );
            (value > limit).then(|| alert(AlertRule::NullShare, Some(name), value, limit, message, remedy))
        }));
        let counted = |value: &dyn Fn(&Facts) -> u64| sum(&|batch| batch.facts.as_ref().map_or(0, value));
        let duplicates =
            |facts: &Facts| facts.duplicates_in_file.unwrap_or(0) + facts.duplicates_across_files.unwrap_or(0);
        let duplicates = share(counted(&duplicates), stored);
        if let Some(limit) = rules.max_duplicate_share.filter(|limit| duplicates > *limit) {
            let message = format!(
                "{} of {stored} rows have a key that came before, more than {}",
                percent(duplicates),
                percent(limit)
            );
            let remedy = format!(
                "ask the sender of {source} what was sent again; core keeps one row a key, so figures hold, but cost grows"
            );
            alerts.push(alert(AlertRule::DuplicateShare, None, duplicates, limit, message, remedy));
        }
        let late = share(counted(&|facts| facts.late.unwrap_or(0)), stored);
        if let Some(limit) = rules.max_late_share.filter(|limit| late > *limit) {
            let message = format!("{} of {stored} events are late, more than {}", percent(late), percent(limit));
            let remedy = format!(
                "find out what held {source} back; figures of the past change with the next run, so look at reports that were sent"
            );
            alerts.push(alert(AlertRule::LateShare, None, late, limit, message, remedy));
        }
    }
    alerts.extend(volume_alert(rules, batches, &alert, source));
    alerts.extend(freshness_alert(rules, batches, now, &alert, source));
    alerts
}

/// Rows of the newest delivery against the mean of those before it. A stream, which is one delivery without end, is not judged.
fn volume_alert(
    rules: &QualityRules,
    batches: &VecDeque<RecentBatch>,
    alert: &impl Fn(AlertRule, Option<&str>, f64, f64, String, String) -> Alert,
    source: &str,
) -> Option<Alert> {
    let deliveries = deliveries(batches);
    let ((rows, _), before) = deliveries.split_last()?;
    if before.len() < USUAL_MIN {
        return None;
    }
    let usual = mean(before.iter().map(|(rows, _)| number(*rows)))?;
    if usual <= 0.0 {
        return None;
    }
    let ratio = number(*rows) / usual;
    let (least, most) = rules.volume;
    if (least..=most).contains(&ratio) {
        return None;
    }
    let (limit, how) = if ratio < least { (least, "small") } else { (most, "large") };
    let message = format!("the newest delivery is {how}: {rows} rows where {usual:.0} are usual");
    let remedy = format!("ask the sender of {source} whether it is complete, or holds something twice");
    let mut found = alert(AlertRule::Volume, None, ratio, limit, message, remedy);
    if ratio < least {
        found.severity = if ratio * CRITICAL_FACTOR < least { Severity::Critical } else { Severity::Warning };
    }
    Some(found)
}

fn freshness_alert(
    rules: &QualityRules,
    batches: &VecDeque<RecentBatch>,
    now: i64,
    alert: &impl Fn(AlertRule, Option<&str>, f64, f64, String, String) -> Alert,
    source: &str,
) -> Option<Alert> {
    let newest = batches.iter().filter(|batch| batch.rows_read > 0).map(|batch| batch.finished_at).max()?;
    let (since, limit, what) = match rules.freshness_max {
        Some(limit) => {
            let reached = batches.iter().filter_map(RecentBatch::reached).max().unwrap_or(newest);
            (reached, micros(limit), "the newest event is")
        }
        None => (newest, usual_silence(batches)?, "nothing has come for"),
    };
    let age = now - since;
    if age <= limit {
        return None;
    }
    let message = match rules.freshness_max {
        Some(_) => format!("{what} {} old, more than {}", hours(age), hours(limit)),
        None => format!("{what} {}, more than {SILENCE_FACTOR} times what is usual ({})", hours(age), hours(limit)),
    };
    let remedy =
        format!("look whether the sender of {source} runs, and for refused files in metric.ingest_refused_files");
    let seconds = |micros: i64| number(u64::try_from(micros).unwrap_or(0)) / 1e6;
    let mut found = alert(AlertRule::Freshness, None, seconds(age), seconds(limit), message, remedy);
    found.since = moment(since + limit);
    Some(found)
}

/// Rows read and the end of each delivery, oldest first.
fn deliveries(batches: &VecDeque<RecentBatch>) -> Vec<(u64, i64)> {
    let mut deliveries: Vec<(u64, i64)> = Vec::new();
    for batch in batches {
        match deliveries.last_mut() {
            Some((rows, ended)) if batch.finished_at - *ended < DELIVERY_MICROS => {
                *rows += batch.rows_read;
                *ended = batch.finished_at;
            }
            _ => deliveries.push((batch.rows_read, batch.finished_at)),
        }
    }
    deliveries
}

/// How long a source may be silent: some times its usual interval, once that is known; never less than a delivery may last.
fn usual_silence(batches: &VecDeque<RecentBatch>) -> Option<i64> {
    let deliveries = deliveries(batches);
    let (first, last) = (deliveries.first()?.1, deliveries.last()?.1);
    let intervals = i64::try_from(deliveries.len() - 1).ok()?;
    if deliveries.len() < USUAL_MIN {
        return None;
    }
    Some(((last - first) / intervals * SILENCE_FACTOR).max(DELIVERY_MICROS))
}

fn null_share(batches: &[&RecentBatch], column: &str) -> Option<f64> {
    let counted = batches.iter().filter_map(|batch| {
        let nulls = &batch.facts.as_ref()?.nulls;
        let (_, nulls) = nulls.iter().find(|(name, _)| name == column)?;
        Some((*nulls, batch.rows_stored))
    });
    let (nulls, rows) = counted.fold((0, 0), |(nulls, rows), (more, stored)| (nulls + more, rows + stored));
    (rows > 0).then(|| share(nulls, rows))
}

fn usual_null_share(before: &[&RecentBatch], column: &str) -> Option<f64> {
    if before.len() < USUAL_MIN { None } else { null_share(before, column) }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { number(part) / number(whole) }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0_u32), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

#[expect(clippy::cast_precision_loss, reason = "for shares, means and messages; the 53rd bit does not matter")]
fn number(value: u64) -> f64 {
    value as f64
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn hours(micros: i64) -> String {
    format!("{:.1} h", number(u64::try_from(micros).unwrap_or(0)) / 3.6e9)
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn moment(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

async fn recent_batches(
    lake: &Lake,
    table: &Table,
    pipeline: &str,
    source: &str,
    newest: i64,
) -> Result<VecDeque<RecentBatch>> {
    let mut found = BTreeMap::new();
    let first = newest - i64::try_from(BATCHES_MAX).unwrap_or(0);
    let filters = [col("source").eq(lit(source.to_owned())), col("batch").gt(lit(first))];
    let names: Vec<&str> = table.schema().fields().iter().map(|field| field.name().as_str()).collect();
    let mut batches = std::pin::pin!(scan(lake, table, &names, &filters, ROWS_AT_ONCE).await?);
    while let Some(rows) = batches.try_next().await? {
        let read = Columns { table, batch: &rows };
        let (pipelines, sources, outcomes) = (read.text("pipeline")?, read.text("source")?, read.text("outcome")?);
        let (Some(pipelines), Some(sources), Some(outcomes)) = (pipelines, sources, outcomes) else { continue };
        let numbers = |name: &str| read.number(name);
        let (batch_numbers, read_rows) = (numbers("batch")?, numbers("rows_read")?);
        let (stored, quarantined) = (numbers("rows_stored")?, numbers("rows_quarantined")?);
        let (late, in_file, across) =
            (numbers("rows_late")?, numbers("duplicates_in_file")?, numbers("duplicates_across_files")?);
        let (event_times, finished) = (read.moment("event_time_max")?, read.moment("finished_at")?);
        let nulls = rows.column_by_name("column_nulls").and_then(|nulls| nulls.as_list_opt::<i32>());
        for row in 0..rows.num_rows() {
            let at = |numbers: &Option<Int64Array>| {
                numbers.as_ref().filter(|numbers| numbers.is_valid(row)).and_then(|n| u64::try_from(n.value(row)).ok())
            };
            let batch = batch_numbers.as_ref().map_or(0, |numbers| numbers.value(row));
            let is_ours = pipelines.value(row) == pipeline && sources.value(row) == source;
            if !is_ours || outcomes.value(row) != "stored" || batch <= first {
                continue;
            }
            let facts = nulls.filter(|nulls| nulls.is_valid(row)).map(|nulls| Facts {
                late: at(&late),
                duplicates_in_file: at(&in_file),
                duplicates_across_files: at(&across),
                nulls: null_counts(&nulls.value(row)),
            });
            let event_time_max = event_times.as_ref().filter(|times| times.is_valid(row)).map(|times| times.value(row));
            let recent = RecentBatch {
                batch,
                rows_read: at(&read_rows).unwrap_or(0),
                rows_stored: at(&stored).unwrap_or(0),
                rows_quarantined: at(&quarantined).unwrap_or(0),
                event_time_max,
                finished_at: finished.as_ref().map_or(0, |times| times.value(row)),
                facts,
            };
            found.insert(batch, recent);
        }
    }
    Ok(found.into_values().collect())
}

fn null_counts(items: &ArrayRef) -> Vec<(String, u64)> {
    let Some(items) = items.as_struct_opt() else { return Vec::new() };
    let columns = items.column_by_name("column").and_then(|columns| columns.as_string_opt::<i32>());
    let nulls = items.column_by_name("nulls").and_then(|nulls| nulls.as_primitive_opt::<Int64Type>());
    let (Some(columns), Some(nulls)) = (columns, nulls) else { return Vec::new() };
    columns
        .iter()
        .zip(nulls)
        .filter_map(|(column, nulls)| Some((column?.to_owned(), u64::try_from(nulls?).ok()?)))
        .collect()
}

/// The alerts that were open when alerts were last written down, and how often they were.
async fn open_alerts(lake: &Lake, pipeline: &str, source: &str) -> Result<(BTreeMap<AlertKey, Alert>, i64)> {
    let Some(table) = lake.table(&alerts_table()?.name).await? else { return Ok((BTreeMap::new(), 0)) };
    let told = table.position(&alerts_app_id(pipeline, source)).await?.unwrap_or(0);
    let mut newest: BTreeMap<AlertKey, (i64, Option<Alert>)> = BTreeMap::new();
    let names: Vec<&str> = table.schema().fields().iter().map(|field| field.name().as_str()).collect();
    let filter = [col("source").eq(lit(source.to_owned()))];
    let mut batches = std::pin::pin!(scan(lake, &table, &names, &filter, ROWS_AT_ONCE).await?);
    while let Some(rows) = batches.try_next().await? {
        let read = Columns { table: &table, batch: &rows };
        let missing = || StringArray::new_null(rows.num_rows());
        let texts = |name: &str| read.text(name).map(|texts| texts.unwrap_or_else(missing));
        let (pipelines, sources, rules) = (texts("pipeline")?, texts("source")?, texts("rule")?);
        let (columns, states, severities) = (texts("column_name")?, texts("state")?, texts("severity")?);
        let (messages, remedies) = (texts("message")?, texts("remedy")?);
        let (numbers, batch_numbers, since) = (read.number("told")?, read.number("batch")?, read.moment("since")?);
        let float = |name: &str, row: usize| {
            let values =
                rows.column_by_name(name).and_then(|values| values.as_primitive_opt::<arrow::datatypes::Float64Type>());
            values.map_or(0.0, |values| values.value(row))
        };
        for row in 0..rows.num_rows() {
            let Some(rule) = AlertRule::parse(rules.value(row)) else { continue };
            if pipelines.value(row) != pipeline || sources.value(row) != source {
                continue;
            }
            let column = columns.is_valid(row).then(|| columns.value(row).to_owned());
            let number = numbers.as_ref().map_or(0, |numbers| numbers.value(row));
            let alert = (states.value(row) == "open").then(|| Alert {
                rule,
                column: column.clone(),
                severity: if severities.value(row) == "critical" { Severity::Critical } else { Severity::Warning },
                since: moment(since.as_ref().map_or(0, |since| since.value(row))),
                batch: batch_numbers.as_ref().map_or(0, |numbers| numbers.value(row)),
                value: float("value", row),
                limit: float("allowed", row),
                message: messages.value(row).to_owned(),
                remedy: remedies.value(row).to_owned(),
            });
            let entry = newest.entry((rule, column)).or_insert((number, None));
            if entry.0 <= number {
                *entry = (number, alert);
            }
        }
    }
    let open = newest.into_iter().filter_map(|(key, (_, alert))| Some((key, alert?))).collect();
    Ok((open, told))
}

pub(crate) fn alerts_app_id(pipeline: &str, source: &str) -> String {
    format!("alerts/{pipeline}/{source}")
}

fn alerts_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("pipeline", DataType::Utf8, "Pipeline of the source"),
        field("source", DataType::Utf8, "Source that it is about"),
        field("told", DataType::Int64, "Which change of the source's alerts this is, from 1"),
        field("rule", DataType::Utf8, "refused_share, null_share, duplicate_share, late_share, freshness or volume"),
        field("column_name", DataType::Utf8, "Column that it is about; null for the source as a whole"),
        field("state", DataType::Utf8, "open, or closed when it is over"),
        field("severity", DataType::Utf8, "warning, or critical when more than twice beyond the limit"),
        field("since", timestamp_type(), "Since when"),
        field("batch", DataType::Int64, "Newest batch that shows it"),
        field("value", DataType::Float64, "What was measured: a share, a part of what is usual, or seconds"),
        field("allowed", DataType::Float64, "What it may be"),
        field("message", DataType::Utf8, "What was seen"),
        field("remedy", DataType::Utf8, "What to do about it"),
        field("told_at", timestamp_type(), "When it was judged so"),
    ]))
}

/// `metric.ingest_alerts`.
pub(crate) fn alerts_table() -> Result<TableSpec> {
    Ok(TableSpec {
        name: TableName::new("metric", "ingest_alerts")?,
        schema: alerts_schema(),
        partition_by: Vec::new(),
        comment:
            "Every alert about a source that opened, closed or changed its severity; the newest row of each counts"
                .to_owned(),
    })
}
