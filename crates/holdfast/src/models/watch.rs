//! Whether the champion still deserves its place: customers of today beside those by which it was judged, and what it is worth where labels are newer.
//!
//! Both are asked of the past, as a training asks: features as the stage makes them at a moment, and labels once the horizon behind one is over. So nothing that was scored has to be
//! kept, and a champion that was promoted today is measured over the days before. What is told of old labels is told once: nothing is added where nothing is new.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_engine::{ReadTable, Runner, Sees, TableRows, write_table};
use holdfast_lake::{CommitOutcome, Position, TableSpec};
use holdfast_models::{Drift, Profile, Shift};
use holdfast_types::{Progress, TableName};
use serde::{Deserialize, Serialize};

use super::fit::{Judged, MeasureRow, Part, column, measured, widened};
use super::hybrid::history::{said, with_probabilities};
use super::moments::midnight;
use super::registry::{CHAMPION, Loaded, Registry, batch, commented, publish, time, unwritable};
use super::score::no_champion;
use super::snapshots::{Asked, Snapshot};
use super::spec::WatchSection;
use crate::error::CliError;

/// How many commits back the note of a watch may be: those of other models stand between.
const NOTE_COMMITS_MAX: usize = 50;

/// What rows of scores are about.
const SCORE: &str = "score";

/// What a watch looked at: the same again would find the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct WatchNote {
    version: i32,
    artefact: String,
    moment: DateTime<Utc>,
    tables: Vec<(String, Option<u64>)>,
    schema: u32,
}

/// Raised when the same customers would give other rows.
const WATCH_VERSION: u32 = 1;

/// What became of a watch.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Watched {
    /// The champion was held against these rows already.
    Unchanged { model: String, version: i32, moment: DateTime<Utc> },
    /// There are new rows in the table.
    Made {
        table: TableName,
        model: String,
        version: i32,
        /// The moment of features and scores.
        moment: DateTime<Utc>,
        /// Who was active then.
        customers: u64,
        /// The moment whose labels are known, where they are newer than those that judged the model.
        labelled: Option<DateTime<Utc>>,
        /// From when such labels are known.
        labels_from: DateTime<Utc>,
        /// What is beyond its bar, in words.
        alerts: Vec<String>,
        published: Option<u64>,
    },
}

/// One thing that was looked at: a row of `metric.model_quality`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
struct Row {
    watched_at: DateTime<Utc>,
    model: String,
    version: i32,
    kind: String,
    subject: String,
    measure: String,
    moment: DateTime<Utc>,
    customers: i64,
    value: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    expected: Option<f64>,
    allowed: Option<f64>,
    is_alert: bool,
    message: Option<String>,
}

/// Holds the champion of a model against customers as of the last midnight up to `as_of` (the newest published run's moment, or the clock's, without), and keeps what was found.
///
/// # Errors
/// No champion, one that is damaged, or from before it was kept what customers looked like; features that the stage does not make any more; nobody who was active; what the lake
/// answers. Nothing is kept then. May be repeated.
pub(crate) async fn watch(
    model: &str,
    runner: &Runner,
    registry: &Registry,
    as_of: Option<DateTime<Utc>>,
    progress: &dyn Progress,
) -> Result<Watched, CliError> {
    let Some(champion) = registry.alias(model, CHAMPION).await? else {
        return Err(no_champion(registry, model).await?);
    };
    let loaded = registry.load(registry.version(model, champion).await?).await?;
    let Some(judged) = loaded.judged.clone() else {
        return Err(CliError::NoModel(format!(
            "of version {champion} of `{model}` it was not kept what customers looked like when it was judged: train a version with `holdfast train --model {model} --again` and promote it"
        )));
    };
    let as_of = match as_of {
        Some(as_of) => as_of,
        None => registry.lake.latest_manifest().await?.map_or_else(|| registry.lake.clock().now(), |run| run.as_of),
    };
    let moment = midnight(as_of);
    let (past, _) = loaded.spec.past(runner).await?;
    loaded.check_features(&past)?;
    let note = WatchNote::of(&loaded, moment, past.tables().await?);
    if newest_note(registry, model).await?.as_ref() == Some(&note) {
        return Ok(Watched::Unchanged { model: model.to_owned(), version: champion, moment });
    }

    let features: Vec<String> = loaded.features().map(str::to_owned).collect();
    let steps = loaded.steps();
    let asked = Asked { spec: &loaded.spec, past: &past, features: &features, steps: steps.as_ref() };
    progress.note(&format!("  Looking at customers as of {}", moment.date_naive()));
    let mut now = asked.snapshot(moment, &asked.population(moment).await?, Sees::KnownThen).await?;
    if now.customers.is_empty() {
        return Err(CliError::Training(format!(
            "nobody was active in the {} days before {}: bring the tables up to date with `holdfast run`",
            loaded.spec.observation().num_days(),
            moment.date_naive()
        )));
    }
    loaded.tell(&mut now)?;
    let (newest, from) = newest_labels(&asked, &loaded, as_of).await?;
    let labelled = match newest {
        Some(at) => {
            progress.note(&format!("  Looking at what became of customers of {}", at.date_naive()));
            let mut snapshot = asked.snapshot(at, &asked.population(at).await?, Sees::KnownThen).await?;
            asked.ask_scorecard(&mut snapshot).await?;
            loaded.tell(&mut snapshot)?;
            // Of one class nothing can be measured.
            Some(snapshot).filter(|snapshot| snapshot.labels.contains(&true) && snapshot.labels.contains(&false))
        }
        None => None,
    };

    let customers = now.customers.len() as u64;
    let labelled_at = labelled.as_ref().map(|snapshot| snapshot.at);
    let looking = Looking { watched_at: registry.lake.clock().now(), bars: loaded.spec.bars(), loaded, judged };
    // Resamples keep a core busy for as long as they take.
    let looked = tokio::task::spawn_blocking(move || -> Result<Vec<Row>, CliError> {
        let mut rows = looking.drift(&now)?;
        if let Some(snapshot) = &labelled {
            rows.extend(looking.labels(snapshot)?);
        }
        Ok(rows)
    });
    let rows = looked.await.map_err(|error| CliError::PartEnded(format!("watching ended early: {error}")))??;
    keep(registry, model, &rows, &note).await?;
    let spec = quality_table()?;
    Ok(Watched::Made {
        published: publish(&registry.lake, std::slice::from_ref(&spec.name)).await?,
        table: spec.name,
        model: model.to_owned(),
        version: champion,
        moment,
        customers,
        labelled: labelled_at,
        labels_from: from,
        alerts: rows.into_iter().filter_map(|row| row.message).collect(),
    })
}

/// Up to which moment a model was watched.
pub(crate) async fn watched_up_to(registry: &Registry, model: &str) -> Result<Option<DateTime<Utc>>, CliError> {
    Ok(newest_note(registry, model).await?.map(|note| note.moment))
}

impl WatchNote {
    fn of(loaded: &Loaded, moment: DateTime<Utc>, tables: Vec<ReadTable>) -> Self {
        Self {
            version: loaded.version.version,
            artefact: loaded.version.artefact_hash.clone(),
            moment,
            tables: tables.into_iter().map(|table| (table.name.to_string(), table.version)).collect(),
            schema: WATCH_VERSION,
        }
    }
}

fn note_key(model: &str) -> String {
    format!("holdfast.watch/{model}")
}

async fn newest_note(registry: &Registry, model: &str) -> Result<Option<WatchNote>, CliError> {
    let Some(table) = registry.lake.table(&quality_table()?.name).await? else { return Ok(None) };
    let note = table.commit_note(&note_key(model), NOTE_COMMITS_MAX).await?;
    Ok(note.and_then(|note| serde_json::from_value(note).ok()))
}

/// The newest midnight behind those that judged of which labels are known by `as_of`, and from when there is one.
async fn newest_labels(
    asked: &Asked<'_>,
    loaded: &Loaded,
    as_of: DateTime<Utc>,
) -> Result<(Option<DateTime<Utc>>, DateTime<Utc>), CliError> {
    let ahead = loaded.spec.gap() + loaded.spec.horizon();
    let last_judged = loaded.test_moments().last().copied().unwrap_or(loaded.version.labels_end);
    let newest = midnight(asked.span(as_of).await?.until - ahead);
    Ok(((newest > last_judged).then_some(newest), last_judged + TimeDelta::days(1) + ahead))
}

/// What the champion is held against.
struct Looking {
    watched_at: DateTime<Utc>,
    bars: WatchSection,
    loaded: Loaded,
    judged: Judged,
}

impl Looking {
    fn row(&self, kind: &str, subject: &str, measure: &str, at: &Snapshot) -> Row {
        Row {
            watched_at: self.watched_at,
            model: self.loaded.version.model.clone(),
            version: self.loaded.version.version,
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            measure: measure.to_owned(),
            moment: at.at,
            customers: i64::try_from(at.customers.len()).unwrap_or(i64::MAX),
            ..Row::default()
        }
    }

    fn alert(row: Row, message: String) -> Row {
        Row { is_alert: true, message: Some(message), ..row }
    }

    fn probabilities(&self, snapshot: &Snapshot) -> Result<Vec<f64>, CliError> {
        let Loaded { model, calibrator, .. } = &self.loaded;
        let matrix = model.signature().matrix(&snapshot.features)?;
        Ok(calibrator.probabilities(&widened(model.margins(&matrix)?)))
    }

    /// How many customers there are, and whether features and scores look as they did where the model was judged.
    fn drift(&self, now: &Snapshot) -> Result<Vec<Row>, CliError> {
        let mut rows = vec![self.volume(now)];
        let scores = self.judged.scores.drift(self.probabilities(now)?.into_iter().map(Some))?;
        rows.extend(self.moved(SCORE, &scores, now));
        let signature = self.loaded.model.signature();
        let matrix = signature.matrix(&now.features)?;
        for (place, feature) in signature.features().iter().enumerate() {
            let profile: Option<&Profile> = self.judged.features.get(&feature.name);
            if let Some(profile) = profile {
                rows.extend(self.moved(&feature.name, &profile.drift(column(&matrix, place))?, now));
            }
        }
        Ok(rows)
    }

    fn volume(&self, now: &Snapshot) -> Row {
        let (value, expected) = (now.customers.len() as f64, self.judged.customers as f64);
        let allowed = self.bars.volume_change_max;
        let row = self.row("volume", "customers", "count", now);
        let row = Row { value: Some(value), expected: Some(expected), allowed: Some(allowed), ..row };
        if value <= expected * (1.0 + allowed) && expected <= value * (1.0 + allowed) {
            return row;
        }
        let message = format!(
            "{value} customers were active as of {}, where there were {expected} when version {} was judged: look whether a source is missing or new",
            now.at.date_naive(),
            self.loaded.version.version
        );
        Self::alert(row, message)
    }

    fn moved(&self, subject: &str, drift: &Drift, now: &Snapshot) -> Vec<Row> {
        let what = if subject == SCORE { "the scores".to_owned() } else { format!("the feature {subject}") };
        let kind = if subject == SCORE { "score_drift" } else { "feature_drift" };
        let since = format!("since version {} was judged", self.loaded.version.version);
        let mut psi = Row {
            value: Some(drift.psi),
            // What chance alone gives once in a thousand times.
            expected: Some(drift.psi_by_chance),
            allowed: Some(self.bars.psi_max),
            ..self.row(kind, subject, "psi", now)
        };
        if drift.shift() > Shift::None && drift.psi > self.bars.psi_max {
            let message = format!(
                "{what} moved {since}: stability index {:.2}, the bar is {}; look at what changed, and train again where it stays",
                drift.psi, self.bars.psi_max
            );
            psi = Self::alert(psi, message);
        }
        let [before, after] = drift.missing;
        let mut missing = Row {
            value: Some(after),
            expected: Some(before),
            allowed: Some(self.bars.missing_change_max),
            ..self.row(kind, subject, "missing_share", now)
        };
        if (after - before).abs() > self.bars.missing_change_max {
            let message = format!(
                "{what} has no value for {:.1} % of customers, where it was {:.1} % {since}: look at its source",
                after * 100.0,
                before * 100.0
            );
            missing = Self::alert(missing, message);
        }
        let ks = Row { value: drift.ks, ..self.row(kind, subject, "ks", now) };
        vec![psi, ks, missing]
    }

    /// What the champion is worth over customers whose labels are newer than those that judged it, beside its baselines.
    fn labels(&self, snapshot: &Snapshot) -> Result<Vec<Row>, CliError> {
        let part = Part::of_snapshot(snapshot)?;
        let measures = measured(&self.loaded.spec, &part, &self.probabilities(snapshot)?, "watched")?;
        let mut rows: Vec<Row> = Vec::new();
        let first = measures.first().map(|row| row.baseline.clone());
        for measure in &measures {
            if Some(&measure.baseline) == first.as_ref() {
                rows.push(self.judge(measure, snapshot));
            }
            if let Some(value) = measure.baseline_value {
                rows.push(Row {
                    value: Some(value),
                    low: measure.baseline_low,
                    high: measure.baseline_high,
                    ..self.row("labels", &measure.baseline, &measure.measure, snapshot)
                });
            }
        }
        let majority = measures.first().map(|measure| measure.majority_accuracy);
        rows.push(Row { value: majority, ..self.row("labels", "majority_class", "accuracy_at_0.50", snapshot) });
        Ok(rows)
    }

    fn judge(&self, measure: &MeasureRow, snapshot: &Snapshot) -> Row {
        let judged = self.loaded.version.measures.iter();
        let judged = judged.filter(|row| row.judged_on == "out_of_time").find(|row| row.measure == measure.measure);
        let expected = judged.and_then(|row| row.value);
        let row = Row {
            value: measure.value,
            low: measure.low,
            high: measure.high,
            expected,
            ..self.row("labels", SCORE, &measure.measure, snapshot)
        };
        let (Some(value), Some(low), Some(high)) = (measure.value, measure.low, measure.high) else { return row };
        let told = format!(
            "of {} customers as of {}: {value:.3} ({low:.3} to {high:.3})",
            snapshot.customers.len(),
            snapshot.at.date_naive()
        );
        let remedy = format!("train again with `holdfast train --model {}`", self.loaded.version.model);
        // A bar counts as broken when the whole interval is beyond it: one measure of one day is a measure with chance in it.
        match measure.measure.as_str() {
            "auc" => {
                let allowed = expected.map(|expected| expected - self.bars.auc_drop_max);
                let row = Row { allowed, ..row };
                match (expected, allowed) {
                    (Some(expected), Some(allowed)) if high < allowed => Self::alert(
                        row,
                        format!("AUC fell below {allowed:.3}, {told}, where it was judged {expected:.3}: {remedy}"),
                    ),
                    _ => row,
                }
            }
            "ece_10_bins" => {
                let row = Row { allowed: Some(self.bars.ece_max), ..row };
                if low <= self.bars.ece_max {
                    return row;
                }
                let message = format!(
                    "probabilities are not what happens: calibration error above {}, {told}; {remedy}",
                    self.bars.ece_max
                );
                Self::alert(row, message)
            }
            "accuracy_at_0.50" => {
                let bar = self.bars.accuracy_min;
                // Where the majority class alone reaches the bar it means nothing, and a model that never reached it has not lost it.
                let means = judged.is_some_and(|judged| {
                    judged.majority_accuracy < bar && judged.value.is_some_and(|value| value >= bar)
                });
                if !means {
                    return row;
                }
                let row = Row { allowed: Some(bar), ..row };
                if high >= bar {
                    return row;
                }
                Self::alert(row, format!("accuracy fell below {bar}, {told}: {remedy}"))
            }
            _ => row,
        }
    }
}

/// Adds the rows in one commit, with the note of what was looked at.
async fn keep(registry: &Registry, model: &str, rows: &[Row], note: &WatchNote) -> Result<(), CliError> {
    let spec = quality_table()?;
    let app_id = format!("watch/{model}");
    let last = match registry.lake.table(&spec.name).await? {
        Some(table) => table.position(&app_id).await?.unwrap_or(0),
        None => 0,
    };
    let position = Position { app_id, version: last + 1 };
    let notes = [(note_key(model), serde_json::to_value(note).map_err(unwritable)?)].into_iter().collect();
    let rows = TableRows::Added(vec![batch(&spec.schema, rows)?]);
    match write_table(&registry.lake, &spec, rows, position, notes).await? {
        CommitOutcome::Applied { .. } => Ok(()),
        CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => Err(CliError::Moved(format!(
            "somebody else watched `{model}` at the same time: look at {}, or watch again",
            spec.name
        ))),
    }
}

/// The table of what watches found, which stages may read.
pub(crate) fn quality_table() -> Result<TableSpec, CliError> {
    let text = |name: &str, comment: &str| commented(name, DataType::Utf8, comment);
    let number = |name: &str, comment: &str| commented(name, DataType::Float64, comment);
    let fields = vec![
        commented("watched_at", time(), "When it was looked"),
        text("model", "The model: its file in the pipeline"),
        commented("version", DataType::Int32, "The version that was champion"),
        text(
            "kind",
            "labels: what the scores were worth; score_drift, feature_drift: whether they moved; volume: how many customers",
        ),
        text(
            "subject",
            "score, a feature, customers; with kind labels also a baseline: recency, scorecard, majority_class",
        ),
        text("measure", "auc, brier, ece_10_bins and so on; psi, ks, missing_share; count"),
        commented("moment", time(), "Customers as of when"),
        commented("customers", DataType::Int64, "How many"),
        number("value", "What was measured"),
        number("low", "Lower end of its 95 % interval; null where there is none"),
        number("high", "Upper end of its 95 % interval"),
        number(
            "expected",
            "The same when the version was judged; of psi what chance alone gives once in a thousand times",
        ),
        number("allowed", "The bar beyond which it is an alert; null where there is none"),
        commented("is_alert", DataType::Boolean, "Beyond the bar, with the whole interval where there is one"),
        text("message", "What is wrong and what to do; null where nothing is"),
    ];
    Ok(TableSpec {
        name: TableName::new("metric", "model_quality").map_err(|error| CliError::Lake(error.into()))?,
        schema: Arc::new(Schema::new(fields)),
        partition_by: Vec::new(),
        comment: "One row is one thing that was looked at when a champion was watched: a measure of its scores, how far a feature moved."
            .to_owned(),
    })
}

impl Loaded {
    /// Adds to a snapshot what a hybrid's sequence model says of its customers.
    fn tell(&self, snapshot: &mut Snapshot) -> Result<(), CliError> {
        let (Some(model), Some(steps)) = (&self.sequence, self.steps()) else { return Ok(()) };
        let moment = snapshot.at.timestamp_micros();
        let wanted = snapshot.customers.iter().map(|customer| (*customer, moment));
        let sequences = steps.sequences(wanted, &snapshot.history)?;
        let said = said(model, sequences.as_ref(), snapshot.customers.len())?;
        snapshot.features = with_probabilities(&snapshot.features, &said)?;
        Ok(())
    }

    /// The moments that judged the version, ascending.
    fn test_moments(&self) -> Vec<DateTime<Utc>> {
        let moments: serde_json::Value = serde_json::from_str(&self.version.moments).unwrap_or_default();
        serde_json::from_value(moments["test"].clone()).unwrap_or_default()
    }
}
