//! One training: what it would learn from, whether that is what was learnt from before, and if not, a new version.

use chrono::{DateTime, Utc};
use holdfast_engine::{Past, ReadTable, Runner};
use holdfast_models::hybrid::Ablation;
use holdfast_types::Progress;
use serde::Serialize;
use serde_json::json;

use super::fit::{Counts, MeasureRow, Rival, Rows, fit, labels_end};
use super::hybrid::spec::fingerprint;
use super::import::Imported;
use super::leakage::{check_changed_later, check_future, check_single_features};
use super::moments::Moments;
use super::registry::{CHAMPION, Loaded, Registry, Version, beside, publish, tables, unwritable};
use super::snapshots::Asked;
use super::spec::Spec;
use crate::error::CliError;

/// Raised when the same inputs would give another model.
const TRAINING_VERSION: &str = "1";

/// How a training is to be done.
#[derive(Debug, Clone)]
pub(crate) struct TrainOptions {
    /// No event after it is known; the newest published run's moment, or the clock's, without.
    pub(crate) as_of: Option<DateTime<Utc>>,
    /// Train also when nothing changed since a version.
    pub(crate) again: bool,
    /// Who trains.
    pub(crate) by: String,
    /// Trees from elsewhere, in the place of trees that are trained.
    pub(crate) imported: Option<Imported>,
}

/// What became of a training.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Trained<M = Made> {
    /// A version was made from the same.
    Unchanged { model: String, version: i32, dataset_id: String },
    /// There is a new version.
    Made(Box<M>),
}

impl<M> Trained<M> {
    /// The newest of a model's versions that was made from the same; nothing where there is none, and where it is asked for again.
    pub(crate) fn before(versions: &[Version], dataset_id: &str, options: &TrainOptions) -> Option<Self> {
        let is_same = |version: &&Version| !options.again && version.dataset_id == dataset_id;
        versions.iter().rev().find(is_same).map(|same| Self::Unchanged {
            model: same.model.clone(),
            version: same.version,
            dataset_id: dataset_id.to_owned(),
        })
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Made {
    pub(crate) model: String,
    pub(crate) description: String,
    pub(crate) version: i32,
    pub(crate) dataset_id: String,
    pub(crate) artefact_hash: String,
    pub(crate) rounds: i32,
    pub(crate) features: usize,
    pub(crate) train_moments: Vec<DateTime<Utc>>,
    pub(crate) test_moments: Vec<DateTime<Utc>>,
    pub(crate) rows: Counts,
    pub(crate) calibration: String,
    pub(crate) useless: Vec<(String, String)>,
    pub(crate) accepted_changed_later: Vec<String>,
    /// The file that the trees came from, where they were not trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) imported: Option<String>,
    /// What the sequence model adds, where the file asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ablation: Option<Ablation>,
    pub(crate) strongest_feature: Option<(String, f64)>,
    pub(crate) champion: Option<i32>,
    pub(crate) measures: Vec<MeasureRow>,
}

/// Trains the model of a spec, unless a version was trained from the same.
///
/// # Errors
/// Mistakes of the spec with their lines, features that know what they cannot, data from which nothing can be learnt, and what the lake answers. Nothing is kept then.
pub(crate) async fn train(
    spec: &Spec,
    runner: &Runner,
    registry: &Registry,
    options: &TrainOptions,
    progress: &dyn Progress,
) -> Result<Trained, CliError> {
    let (past, known) = spec.past(runner).await?;
    let features = match &options.imported {
        Some(imported) => imported.features(spec, &past, &known)?,
        None => known,
    };
    // Trees from elsewhere know nothing of sequences.
    let steps = match &options.imported {
        Some(_) => None,
        None => spec.steps(&past)?,
    };
    let asked = Asked { spec, past: &past, features: &features, steps: steps.as_ref() };
    let accepted = check_changed_later(&asked)?;
    let as_of = match options.as_of {
        Some(as_of) => as_of,
        None => registry.lake.latest_manifest().await?.map_or_else(|| registry.lake.clock().now(), |run| run.as_of),
    };
    let moments = Moments::of(spec, asked.span(as_of).await?)?;
    let read = past.tables().await?;
    let dataset_id = dataset_id(spec, &past, &read, &moments, options.imported.as_ref())?;
    let versions = registry.versions(Some(&spec.name)).await?;
    if let Some(same) = Trained::before(&versions, &dataset_id, options) {
        return Ok(same);
    }

    let snapshots = asked.snapshots(&moments, progress).await?;
    let last = moments.train.last().and_then(|last| snapshots.iter().find(|snapshot| snapshot.at == *last));
    if let Some(last) = last {
        progress.note(&format!("  Looking whether features see past {}", last.at.date_naive()));
        check_future(&asked, last).await?;
    }
    let rows = Rows::of(spec, &moments, &snapshots, steps.as_ref())?;
    rows.check()?;
    let strongest = check_single_features(&asked, &rows.learning.features, &rows.learning.labels)?;

    let champion = registry.alias(&spec.name, CHAMPION).await?;
    let rival = match versions.into_iter().find(|version| Some(version.version) == champion) {
        Some(version) => rival(registry, version, &moments, progress).await?,
        None => None,
    };
    progress.note(&format!(
        "  Learning from {} rows, judging with {}",
        rows.learning.labels.len(),
        rows.test.labels.len()
    ));
    if let Some(steps) = &steps {
        progress.note(&format!("  Learning from the steps of {}, which takes longer than trees do", steps.stage));
    }
    let spec_owned = spec.clone();
    // Trees and resamples keep a core busy for as long as they take.
    let (test_moments, imported) = (moments.test.len(), options.imported.clone());
    let fitted =
        tokio::task::spawn_blocking(move || fit(&spec_owned, &rows, test_moments, rival.as_ref(), imported.as_ref()));
    let fitted = fitted.await.map_err(|error| CliError::PartEnded(format!("training ended early: {error}")))??;

    // Where trees win that are not told of steps, the version does not rest on these.
    let stages = if fitted.sequence.is_some() { spec.stages() } else { vec![spec.stage().clone()] };
    let notes = json!({
        "useless_features": fitted.useless,
        "accepted_changed_later": accepted,
        "strongest_feature": strongest,
        "sequence": steps.as_ref().map(|steps| json!({
            "stage": steps.stage, "channels": steps.channels(), "is_used": fitted.sequence.is_some(), "ablation": fitted.ablation,
        })),
        "imported": options.imported.as_ref().map(|imported| json!({
            "file": imported.file, "hash": imported.hash, "mlflow_run": imported.run_id,
        })),
    });
    let version = Version {
        model: spec.name.clone(),
        version: 0,
        trained_at: registry.lake.clock().now(),
        trained_by: options.by.clone(),
        dataset_id: dataset_id.clone(),
        spec: spec.text.clone(),
        feature_stage: spec.stage().to_string(),
        feature_fingerprint: fingerprint(&past, &stages),
        tables: told_tables(&read).to_string(),
        moments: json!({ "train": moments.train, "test": moments.test }).to_string(),
        labels_end: labels_end(spec, &moments).unwrap_or(as_of),
        signature: serde_json::to_string(fitted.model.signature()).map_err(unwritable)?,
        engine: match (&options.imported, &fitted.sequence) {
            (Some(imported), _) => imported.engine(),
            (None, Some(_)) => "hessboost, told by an LSTM".to_owned(),
            (None, None) => "hessboost".to_owned(),
        },
        rounds: i32::try_from(fitted.model.rounds()).unwrap_or(i32::MAX),
        artefact: String::new(),
        artefact_hash: String::new(),
        artefact_bytes: 0,
        examples: String::new(),
        examples_hash: String::new(),
        calibrator: serde_json::to_string(&fitted.calibrator).map_err(unwritable)?,
        profile: serde_json::to_string(&fitted.profile).map_err(unwritable)?,
        notes: notes.to_string(),
        rows: serde_json::to_string(&fitted.counts).map_err(unwritable)?,
        measures: fitted.measures.clone(),
    };
    let artefact = fitted.model.write(holdfast_models::Format::Ubjson)?;
    let sequence = match &fitted.sequence {
        Some((model, sequences)) => Some(registry.keep_sequence(&spec.name, model, sequences).await?),
        None => None,
    };
    let kept = registry.keep(version, (artefact, "ubj"), beside(fitted.examples, fitted.judged, sequence)?).await?;
    publish(&registry.lake, &tables()?).await?;
    Ok(Trained::Made(Box::new(Made {
        model: kept.model,
        description: spec.file.description.clone(),
        version: kept.version,
        dataset_id,
        artefact_hash: kept.artefact_hash,
        rounds: kept.rounds,
        features: features.len(),
        train_moments: moments.train,
        test_moments: moments.test,
        rows: fitted.counts,
        calibration: method(&kept.calibrator),
        useless: fitted.useless,
        accepted_changed_later: accepted,
        imported: options.imported.as_ref().map(|imported| imported.file.clone()),
        ablation: fitted.ablation,
        strongest_feature: strongest,
        champion,
        measures: fitted.measures,
    })))
}

/// The champion, where it can be held against the new model: it may not have learnt from what judges.
async fn rival(
    registry: &Registry,
    version: Version,
    moments: &Moments,
    progress: &dyn Progress,
) -> Result<Option<Rival>, CliError> {
    let number = version.version;
    if moments.test.first().is_some_and(|first| version.labels_end > *first) {
        progress.note(&format!(
            "  The champion, version {number}, has learnt from the days that judge: it is not compared"
        ));
        return Ok(None);
    }
    match registry.load(version).await {
        Ok(Loaded { model, calibrator, sequence, .. }) => Ok(Some(Rival { model, calibrator, sequence })),
        // A champion that cannot be read is no reason not to train the next.
        Err(error) => {
            progress.problem(&format!("  The champion is not compared: {error}"));
            Ok(None)
        }
    }
}

/// Changes with everything that could make another model: the spec but for its words, the queries, the versions of tables, the moments.
fn dataset_id(
    spec: &Spec,
    past: &Past,
    read: &[ReadTable],
    moments: &Moments,
    imported: Option<&Imported>,
) -> Result<String, CliError> {
    let said = said_without(&spec.text, &["description", "reasons", "scores", "bands", "watch", "cadence"])?;
    let mut parts = vec![spec.name.clone(), said, fingerprint(past, &spec.stages())];
    parts.extend(spec.file.baselines.scorecard.iter().map(|scorecard| past.fingerprint(scorecard.stage.get_ref())));
    parts.push(told_tables(read).to_string());
    parts.extend(moments.all().map(|moment| moment.to_rfc3339()));
    parts.extend(imported.map(|imported| imported.hash.clone()));
    Ok(id_of(TRAINING_VERSION, &parts))
}

/// What a model's file says, but for the keys that make no other model.
pub(crate) fn said_without(text: &str, keys: &[&str]) -> Result<String, CliError> {
    let mut said: toml::Table = toml::from_str(text).map_err(|error| CliError::Training(error.message().to_owned()))?;
    for key in keys {
        said.remove(*key);
    }
    Ok(said.to_string())
}

/// The id of what a model is made from: changes with each part, with the program's version and with that of the training.
pub(crate) fn id_of(training_version: &str, parts: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    let versions = [training_version, env!("CARGO_PKG_VERSION")];
    for part in versions.into_iter().chain(parts.iter().map(String::as_str)) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex().chars().take(32).collect()
}

fn told_tables(read: &[ReadTable]) -> serde_json::Value {
    let tables = read.iter().map(|table| (table.name.to_string(), json!(table.version)));
    serde_json::Value::Object(tables.collect())
}

/// The calibrator's kind, as stored.
pub(crate) fn method(calibrator: &str) -> String {
    let stored: serde_json::Value = serde_json::from_str(calibrator).unwrap_or_default();
    stored["method"].as_str().unwrap_or("not known").to_owned()
}
