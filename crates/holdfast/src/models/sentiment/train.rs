//! One training of a model of texts: the older texts teach, the newest judge, and what comes of it is a version like all others.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use holdfast_engine::{EngineError, LakeReader, Published};
use holdfast_models::sentiment::{Language, SentimentModel, SentimentSettings, Tone, distinct};
use holdfast_models::{Bootstrap, Measure, Scores, report};
use holdfast_types::Progress;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::spec::TextSpec;
use super::stored::{ENDING, LoadedTexts, probes};
use crate::error::CliError;
use crate::models::fit::{MeasureRow, measure_rows};
use crate::models::registry::{CHAMPION, Registry, Version, publish, tables, unwritable};
use crate::models::snapshots::{literal, moment_of, quoted};
use crate::models::train::{TrainOptions, Trained, id_of, said_without};

/// Raised when the same texts would give another model.
const TRAINING_VERSION: &str = "1";

/// Fewer texts of a language are not measured apart.
const LANGUAGE_TEXTS_MIN: usize = 50;

#[derive(Debug, Serialize)]
pub(crate) struct MadeTexts {
    pub(crate) model: String,
    pub(crate) description: String,
    pub(crate) version: i32,
    pub(crate) dataset_id: String,
    pub(crate) artefact_hash: String,
    pub(crate) table: String,
    pub(crate) rows: TextCounts,
    /// When the first and the last text that taught were written, and of those that judged.
    pub(crate) taught: [DateTime<Utc>; 2],
    pub(crate) judged: [DateTime<Utc>; 2],
    /// Of the texts that judge, the share that is called neutral.
    pub(crate) neutral_share: f64,
    pub(crate) champion: Option<i32>,
    pub(crate) measures: Vec<MeasureRow>,
}

/// Texts by use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TextCounts {
    pub(crate) learning: u64,
    pub(crate) test: u64,
    /// Left out: what had been said before, white space, case and width aside.
    pub(crate) copies: u64,
}

/// Labelled texts, oldest first.
#[derive(Debug, Default)]
struct Texts {
    texts: Vec<String>,
    positive: Vec<bool>,
    written_at: Vec<DateTime<Utc>>,
}

/// Trains the model of a spec, unless a version was trained from the same.
///
/// # Errors
/// Mistakes of the spec with their lines, texts from which nothing can be learnt, and what the lake answers. Nothing is kept then.
pub(crate) async fn train(
    spec: &TextSpec,
    registry: &Registry,
    options: &TrainOptions,
    progress: &dyn Progress,
) -> Result<Trained<MadeTexts>, CliError> {
    let name = spec.file.texts.table.get_ref();
    let Some(table) = registry.lake.table(name).await? else {
        return Err(CliError::NoModel(format!(
            "{name} is not in the lake yet: make it with `holdfast run --select +{name}`"
        )));
    };
    let version = table.data_version().await?;
    let dataset_id = dataset_id(spec, version, options.as_of)?;
    let versions = registry.versions(Some(&spec.name)).await?;
    if let Some(same) = Trained::before(&versions, &dataset_id, options) {
        return Ok(same);
    }

    let read = LakeReader::newest_of(&registry.lake, &registry.settings, std::slice::from_ref(name)).await?;
    let all = read_texts(spec, &read, options.as_of).await?;
    let found = all.texts.len();
    let (train, test) = all.divided(*spec.file.split.test_share.get_ref());
    train.check(spec, "the older texts, which teach,")?;
    test.check(spec, "the newest texts, which judge,")?;
    let counts = TextCounts {
        learning: train.texts.len() as u64,
        test: test.texts.len() as u64,
        copies: (found - train.texts.len() - test.texts.len()) as u64,
    };
    progress.note(&format!("  Learning from {} texts, judging with {}", counts.learning, counts.test));
    let champion = registry.alias(&spec.name, CHAMPION).await?;
    let rival = match versions.into_iter().find(|version| Some(version.version) == champion) {
        Some(version) => rival(registry, version, &test, progress).await?,
        None => None,
    };
    let settings = SentimentSettings { version: dataset_id.clone(), ..spec.file.training.get_ref().clone() };
    let (taught, judged) = (train.span(), test.span());
    // Texts and resamples keep a core busy for as long as they take.
    let fitted = tokio::task::spawn_blocking(move || fit(&train, &test, &settings, rival.as_ref())).await;
    let fitted = fitted.map_err(|error| CliError::PartEnded(format!("training ended early: {error}")))??;

    let notes = json!({ "neutral_share": fitted.neutral_share });
    let settings = spec.file.training.get_ref();
    let version = Version {
        model: spec.name.clone(),
        version: 0,
        trained_at: registry.lake.clock().now(),
        trained_by: options.by.clone(),
        dataset_id: dataset_id.clone(),
        spec: spec.text.clone(),
        feature_stage: name.to_string(),
        feature_fingerprint: String::new(),
        tables: json!({ name.to_string(): version }).to_string(),
        moments: json!({ "train": taught, "test": judged }).to_string(),
        labels_end: taught[1],
        signature: json!({ "bits": settings.bits, "neutral_below": settings.neutral_below }).to_string(),
        engine: "hashed n-grams".to_owned(),
        rounds: i32::try_from(settings.epochs).unwrap_or(i32::MAX),
        artefact: String::new(),
        artefact_hash: String::new(),
        artefact_bytes: 0,
        examples: String::new(),
        examples_hash: String::new(),
        calibrator: json!({ "method": "none" }).to_string(),
        profile: "[]".to_owned(),
        notes: notes.to_string(),
        rows: serde_json::to_string(&counts).map_err(unwritable)?,
        measures: fitted.measures.clone(),
    };
    let kept = registry.keep(version, (fitted.model.write()?, ENDING), probes(&fitted.model)?).await?;
    publish(&registry.lake, &tables()?).await?;
    Ok(Trained::Made(Box::new(MadeTexts {
        model: kept.model,
        description: spec.file.description.clone(),
        version: kept.version,
        dataset_id,
        artefact_hash: kept.artefact_hash,
        table: name.to_string(),
        rows: counts,
        taught,
        judged,
        neutral_share: fitted.neutral_share,
        champion,
        measures: fitted.measures,
    })))
}

/// Changes with everything that could make another model: the file but for its words, the version of the table, the moment up to which texts are known.
fn dataset_id(spec: &TextSpec, version: u64, as_of: Option<DateTime<Utc>>) -> Result<String, CliError> {
    let said = said_without(&spec.text, &["description"])?;
    let as_of = as_of.map_or_else(String::new, |as_of| as_of.to_rfc3339());
    Ok(id_of(TRAINING_VERSION, &[said, version.to_string(), as_of]))
}

/// The newest labelled texts, oldest first.
async fn read_texts(spec: &TextSpec, read: &Published, as_of: Option<DateTime<Utc>>) -> Result<Texts, CliError> {
    let section = &spec.file.texts;
    let table = section.table.get_ref();
    let (text, time) = (quoted(section.text.get_ref()), moment_of(section.time.get_ref()));
    // Each part by itself first, so that a mistake is told at its place.
    for (part, place, what) in [
        (text.as_str(), section.text.span().start, "text"),
        (time.as_str(), section.time.span().start, "time"),
        (section.positive.get_ref().as_str(), section.positive.span().start, "positive"),
        (section.negative.get_ref().as_str(), section.negative.span().start, "negative"),
    ] {
        let sql = match what {
            "positive" | "negative" => format!("select 1 from {table} where ({part})"),
            _ => format!("select {part} from {table}"),
        };
        match read.rows("looking at the labels of texts", &format!("{sql} limit 0")).await {
            Ok(_) => {}
            Err(EngineError::Query { message }) => {
                return Err(spec.mistake(place, format!("[texts] {what}: {message}")));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let known = as_of.map_or_else(String::new, |as_of| format!(" and {time} <= {}", literal(as_of)));
    let sql = format!(
        "select arrow_cast({text}, 'Utf8') as text, {time} as written_at, ({positive}) as positive from {table} \
         where {text} is not null and {time} is not null and (({positive}) or ({negative})){known} \
         order by {time} desc, {text} limit {most}",
        positive = section.positive.get_ref(),
        negative = section.negative.get_ref(),
        most = section.most.get_ref(),
    );
    let batches: Vec<RecordBatch> =
        read.rows(&format!("reading the texts of {table}"), &sql).await?.try_collect().await?;
    let mut found = Texts::default();
    for batch in &batches {
        let texts = arrow::compute::cast(batch.column(0), &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        let written_at = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        let positive = arrow::compute::cast(batch.column(2), &DataType::Boolean)?;
        let positive = positive.as_boolean();
        for row in 0..batch.num_rows() {
            found.texts.push(texts.value(row).to_owned());
            found.written_at.push(DateTime::from_timestamp_micros(written_at.value(row)).unwrap_or_default());
            found.positive.push(positive.is_valid(row) && positive.value(row));
        }
    }
    found.texts.reverse();
    found.written_at.reverse();
    found.positive.reverse();
    Ok(found)
}

impl Texts {
    /// The distinct texts: the older ones, and the newest `share`. What was said before does not judge.
    fn divided(self, share: f64) -> (Self, Self) {
        let views: Vec<&str> = self.texts.iter().map(String::as_str).collect();
        let first = distinct(&views);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a number of rows")]
        let judging = (first.len() as f64 * share).ceil() as usize;
        let (older, newest) = first.split_at(first.len() - judging.min(first.len()));
        (self.taken(older), self.taken(newest))
    }

    fn taken(&self, rows: &[usize]) -> Self {
        Self {
            texts: rows.iter().map(|row| self.texts[*row].clone()).collect(),
            positive: rows.iter().map(|row| self.positive[*row]).collect(),
            written_at: rows.iter().map(|row| self.written_at[*row]).collect(),
        }
    }

    /// Refuses texts of one class.
    fn check(&self, spec: &TextSpec, what: &str) -> Result<(), CliError> {
        let positive = self.positive.iter().filter(|positive| **positive).count();
        let texts = self.texts.len();
        if positive > 0 && positive < texts {
            return Ok(());
        }
        let found = match (texts, positive) {
            (0, _) => "there is none".to_owned(),
            (texts, 0) => format!("of {texts} none is positive"),
            (texts, _) => format!("all {texts} are positive"),
        };
        Err(CliError::Training(format!(
            "{what} need both kinds, and {found}: bring more texts of {}, or look at `positive` and `negative` in {}",
            spec.file.texts.table.get_ref(),
            spec.path.display()
        )))
    }

    /// When the first and the last were written.
    fn span(&self) -> [DateTime<Utc>; 2] {
        [self.written_at.first(), self.written_at.last()].map(|at| at.copied().unwrap_or_default())
    }
}

/// The champion, where it can be held against the new model: it may not have learnt from what judges.
async fn rival(
    registry: &Registry,
    version: Version,
    test: &Texts,
    progress: &dyn Progress,
) -> Result<Option<LoadedTexts>, CliError> {
    let number = version.version;
    if version.labels_end >= test.span()[0] {
        progress
            .note(&format!("  The champion, version {number}, has learnt from texts that judge: it is not compared"));
        return Ok(None);
    }
    match registry.load_texts(version).await {
        Ok(loaded) => Ok(Some(loaded)),
        // A champion that cannot be read is no reason not to train the next.
        Err(error) => {
            progress.problem(&format!("  The champion is not compared: {error}"));
            Ok(None)
        }
    }
}

struct Fitted {
    model: SentimentModel,
    neutral_share: f64,
    measures: Vec<MeasureRow>,
}

fn fit(
    train: &Texts,
    test: &Texts,
    settings: &SentimentSettings,
    rival: Option<&LoadedTexts>,
) -> Result<Fitted, CliError> {
    let views: Vec<&str> = train.texts.iter().map(String::as_str).collect();
    let model = SentimentModel::fit(&views, &train.positive, settings)?;
    let said: Vec<_> = test.texts.iter().map(|text| model.read(text)).collect();
    let neutral = said.iter().filter(|said| said.tone == Tone::Neutral).count();
    let neutral_share = neutral as f64 / said.len().max(1) as f64;

    let mut measures = Vec::new();
    let all: Vec<usize> = (0..said.len()).collect();
    let of = |language: Language| -> Vec<usize> {
        all.iter().copied().filter(|row| said[*row].language == language).collect()
    };
    let languages = [Language::Chinese, Language::English].map(|language| (language.as_str(), of(language)));
    for (judged_on, rows) in [("out_of_time", all.clone())].into_iter().chain(languages) {
        let labels: Vec<bool> = rows.iter().map(|row| test.positive[*row]).collect();
        let positive = labels.iter().filter(|label| **label).count();
        // All of them were looked at before.
        if judged_on != "out_of_time" && (rows.len() < LANGUAGE_TEXTS_MIN || positive == 0 || positive == labels.len())
        {
            continue;
        }
        let probability = |score: f64| f64::midpoint(1.0, score);
        let scores: Vec<f64> = rows.iter().map(|row| probability(said[*row].score)).collect();
        let (baseline, against) = match rival {
            Some(rival) => {
                let said = rows.iter().map(|row| probability(rival.model.read(&test.texts[*row]).score));
                ("champion", said.collect())
            }
            None => ("base_rate", vec![positive as f64 / labels.len() as f64; labels.len()]),
        };
        let bootstrap = Bootstrap { seed: settings.seed, ..Bootstrap::default() };
        let scores = Scores::probabilities(&scores, &labels)?;
        let report = report(&scores, &Scores::probabilities(&against, &labels)?, &Measure::USUAL, &bootstrap)?;
        measures.extend(measure_rows(judged_on, baseline, &report));
    }
    Ok(Fitted { model, neutral_share, measures })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_does_not_judge_and_the_newest_do() {
        let day = |day: u32| DateTime::from_timestamp(86_400 * i64::from(day), 0).unwrap();
        let texts = Texts {
            texts: ["good", "bad", "fine", "GOOD.", "poor", "new"].map(str::to_owned).to_vec(),
            positive: vec![true, false, true, true, false, true],
            written_at: (0..6).map(day).collect(),
        };
        let (train, test) = texts.divided(0.3);
        assert_eq!(train.texts, ["good", "bad", "fine"]);
        assert_eq!((test.texts, test.positive), (vec!["poor".to_owned(), "new".to_owned()], vec![false, true]));
    }
}
