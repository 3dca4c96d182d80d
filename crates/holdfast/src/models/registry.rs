//! Versions of models and their aliases: rows of two tables, and the artefacts as files of the lake.
//!
//! ```text
//! _holdfast/models/<model>/<hash>.ubj      trees, as XGBoost reads them   ─┐ written first, named by what they hold
//! _holdfast/models/<model>/<hash>.safetensors  weights of a hybrid's LSTM │
//! _holdfast/models/<model>/<hash>.ngrams   weights of a model of texts     │
//! _holdfast/models/<model>/<hash>.json     rows with what was said of them, and what all of them looked like ─┘
//! model.versions                           one row a version: all that is known of it, in one commit
//! model.aliases                            one row a move of an alias; the last one counts
//! ```
//!
//! A version's number is the position of its commit, and so is a move's: of two who take the same number at once, one is told.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use holdfast_engine::{DeclaredTable, LakeReader, Past, Published, SessionSettings, TableRows, write_table};
use holdfast_lake::{CommitOutcome, Lake, Manifest, ManifestEntry, Position, TableSpec};
use holdfast_models::hybrid::SEQUENCE_FEATURE;
use holdfast_models::sequence::SequenceModel;
use holdfast_models::{Calibrator, Hessboost, Model};
use holdfast_types::{COMMENT_KEY, ErrorKind, TableName};
use object_store::ObjectStoreExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::fit::{Example, FeatureProfile, Judged, MeasureRow};
use super::hybrid::history::Steps;
use super::hybrid::stored::KeptSequence;
use super::spec::{Spec, SpecFile};
use crate::error::CliError;

/// Scores what customers are told by.
pub(crate) const CHAMPION: &str = "champion";
/// What the last training made.
pub(crate) const CHALLENGER: &str = "challenger";

/// A replayed margin may differ by so much: trees are sums of 32-bit numbers, and another machine may add them otherwise.
const MARGIN_TOLERANCE: f32 = 1e-5;

/// How often a run is published anew when another was published meanwhile.
const PUBLISH_ATTEMPTS: u32 = 5;

/// All that is known of one version: a row of `model.versions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) model: String,
    pub(crate) version: i32,
    pub(crate) trained_at: DateTime<Utc>,
    pub(crate) trained_by: String,
    /// Changes with the spec, the queries and the versions of all tables that were read.
    pub(crate) dataset_id: String,
    /// The model's file, as it was.
    pub(crate) spec: String,
    pub(crate) feature_stage: String,
    /// Changes with the queries of the features.
    pub(crate) feature_fingerprint: String,
    /// The versions of tables that were read, as JSON.
    pub(crate) tables: String,
    /// The moments of rows that were learnt from, and of those that judged, as JSON.
    pub(crate) moments: String,
    /// When all that labels looked at had happened.
    pub(crate) labels_end: DateTime<Utc>,
    /// Features in order, with their kinds, as JSON.
    pub(crate) signature: String,
    pub(crate) engine: String,
    pub(crate) rounds: i32,
    pub(crate) artefact: String,
    pub(crate) artefact_hash: String,
    pub(crate) artefact_bytes: i64,
    pub(crate) examples: String,
    pub(crate) examples_hash: String,
    /// From log-odds to probability, as JSON.
    pub(crate) calibrator: String,
    /// What features looked like, as JSON.
    pub(crate) profile: String,
    /// Features that tell nothing, columns that are accepted though they change later, and the strongest single feature, as JSON.
    pub(crate) notes: String,
    /// Rows by use, as JSON.
    pub(crate) rows: String,
    pub(crate) measures: Vec<MeasureRow>,
}

/// One move of an alias: a row of `model.aliases`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Move {
    pub(crate) model: String,
    pub(crate) alias: String,
    pub(crate) version: i32,
    pub(crate) previous: Option<i32>,
    /// The move's place in the order of moves of all aliases of the model.
    pub(crate) step: i64,
    pub(crate) moved_at: DateTime<Utc>,
    pub(crate) moved_by: String,
    /// `trained`, `promoted`, `rolled back`.
    pub(crate) why: String,
}

/// The registry of a lake.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    pub(crate) lake: Lake,
    pub(crate) settings: SessionSettings,
}

/// A version that was read whole, with everything checked that can be.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) version: Version,
    pub(crate) model: Model,
    pub(crate) calibrator: Calibrator,
    /// The file that it was trained by.
    pub(crate) spec: Spec,
    /// What later customers and scores are held against; not of versions from before this was kept.
    pub(crate) judged: Option<Judged>,
    /// The sequence model whose word the trees are told.
    pub(crate) sequence: Option<SequenceModel>,
}

/// What is kept beside the trees, to be replayed and compared with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Beside {
    Whole {
        examples: Vec<Example>,
        judged: Box<Judged>,
        /// Of a hybrid.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sequence: Option<Box<KeptSequence>>,
    },
    /// Of versions from before `judged` was kept.
    Examples(Vec<Example>),
}

/// What is kept beside trees, as a file.
///
/// # Errors
/// None that is known.
pub(crate) fn beside(
    examples: Vec<Example>,
    judged: Judged,
    sequence: Option<KeptSequence>,
) -> Result<Vec<u8>, CliError> {
    let whole = Beside::Whole { examples, judged: Box::new(judged), sequence: sequence.map(Box::new) };
    serde_json::to_vec(&whole).map_err(unwritable)
}

/// A version that must not be used: what is wrong with it, and what to do.
pub(crate) fn damaged(version: &Version, what: &str) -> CliError {
    CliError::ModelDamaged(format!(
        "version {} of `{}` cannot be used: {what}; restore the file, or train again",
        version.version, version.model
    ))
}

impl Loaded {
    /// Refuses stages that do not make the features that the version learnt from.
    ///
    /// # Errors
    /// The features that are gone.
    pub(crate) fn check_features(&self, past: &Past) -> Result<(), CliError> {
        let stage = self.spec.stage();
        let is_gone = |stage: &TableName, name: &str| {
            past.schema(stage).is_none_or(|schema| schema.field_with_name(name).is_err())
        };
        let mut gone: Vec<String> = self.features().filter(|name| is_gone(stage, name)).map(str::to_owned).collect();
        if let Some(steps) = self.steps() {
            gone.extend(steps.columns().filter(|name| is_gone(&steps.stage, name)).map(str::to_owned));
        }
        if gone.is_empty() {
            return Ok(());
        }
        Err(CliError::Training(format!(
            "version {} of `{}` needs features that {} does not make any more: {}; bring the columns back, or train again",
            self.version.version,
            self.version.model,
            self.stages().iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
            gone.join(", ")
        )))
    }

    /// The stages that it reads: features, and the steps of a hybrid.
    pub(crate) fn stages(&self) -> Vec<TableName> {
        let steps = self.steps().map(|steps| steps.stage);
        [self.spec.stage().clone()].into_iter().chain(steps).collect()
    }

    /// The features that are columns of the stage; of a hybrid without what its sequence model says.
    pub(crate) fn features(&self) -> impl Iterator<Item = &str> {
        let features = self.model.signature().features().iter().map(|feature| feature.name.as_str());
        features.filter(|name| self.sequence.is_none() || *name != SEQUENCE_FEATURE)
    }

    /// The steps that a hybrid is told of.
    pub(crate) fn steps(&self) -> Option<Steps> {
        let (section, model) = (self.spec.file.sequence.as_ref()?, self.sequence.as_ref()?);
        Some(Steps::new(section, model.channels().to_vec()))
    }
}

impl Registry {
    /// The versions of a model, oldest first; of all models without a name.
    pub(crate) async fn versions(&self, model: Option<&str>) -> Result<Vec<Version>, CliError> {
        let spec = versions_table()?;
        Ok(in_order_of_versions(rows(&self.newest(&spec).await?, &spec, model).await?))
    }

    /// The versions of all models that a run knows, oldest first.
    pub(crate) async fn versions_of(run: &Published) -> Result<Vec<Version>, CliError> {
        Ok(in_order_of_versions(rows(run, &versions_table()?, None).await?))
    }

    /// The moves of a model's aliases, oldest first.
    pub(crate) async fn moves(&self, model: Option<&str>) -> Result<Vec<Move>, CliError> {
        let spec = aliases_table()?;
        Ok(in_order_of_moves(rows(&self.newest(&spec).await?, &spec, model).await?))
    }

    /// The moves of all aliases that a run knows, oldest first.
    pub(crate) async fn moves_of(run: &Published) -> Result<Vec<Move>, CliError> {
        Ok(in_order_of_moves(rows(run, &aliases_table()?, None).await?))
    }

    async fn newest(&self, spec: &TableSpec) -> Result<Published, CliError> {
        Ok(LakeReader::newest_of(&self.lake, &self.settings, std::slice::from_ref(&spec.name)).await?)
    }

    /// One version, or what to do about it.
    pub(crate) async fn version(&self, model: &str, number: i32) -> Result<Version, CliError> {
        let versions = self.versions(Some(model)).await?;
        let found = versions.iter().find(|version| version.version == number).cloned();
        found.ok_or_else(|| without_version(model, number, versions.iter()))
    }

    /// The version that an alias stands at.
    pub(crate) async fn alias(&self, model: &str, alias: &str) -> Result<Option<i32>, CliError> {
        Ok(standing(&self.moves(Some(model)).await?, model, alias))
    }

    /// Keeps a version under the next number: its files first, then its row, then the alias `challenger`. The `artefact` is told with the ending of its file.
    ///
    /// # Errors
    /// When somebody else took the number meanwhile; what the lake answers.
    pub(crate) async fn keep(
        &self,
        mut version: Version,
        (artefact, ending): (Vec<u8>, &str),
        examples: Vec<u8>,
    ) -> Result<Version, CliError> {
        version.artefact_bytes = i64::try_from(artefact.len()).unwrap_or(i64::MAX);
        (version.artefact, version.artefact_hash) = self.store(&version.model, artefact, ending).await?;
        (version.examples, version.examples_hash) = self.store(&version.model, examples, "json").await?;
        let last = self.versions(Some(&version.model)).await?.last().map_or(0, |version| version.version);
        version.version = last + 1;
        let spec = versions_table()?;
        let batch = batch(&spec.schema, std::slice::from_ref(&version))?;
        let position = Position { app_id: format!("model/{}", version.model), version: i64::from(version.version) };
        self.append(&spec, position, batch, || {
            format!("another training of `{}` took version {} meanwhile: train again", version.model, version.version)
        })
        .await?;
        self.point(&version.model, CHALLENGER, version.version, &version.trained_by, "trained").await?;
        Ok(version)
    }

    /// Moves an alias.
    ///
    /// # Errors
    /// When somebody else moved one meanwhile; what the lake answers.
    pub(crate) async fn point(
        &self,
        model: &str,
        alias: &str,
        version: i32,
        by: &str,
        why: &str,
    ) -> Result<Move, CliError> {
        let moves = self.moves(Some(model)).await?;
        let moved = Move {
            model: model.to_owned(),
            alias: alias.to_owned(),
            version,
            previous: standing(&moves, model, alias),
            step: moves.last().map_or(0, |last| last.step) + 1,
            moved_at: self.lake.clock().now(),
            moved_by: by.to_owned(),
            why: why.to_owned(),
        };
        let spec = aliases_table()?;
        let batch = batch(&spec.schema, std::slice::from_ref(&moved))?;
        let position = Position { app_id: format!("alias/{model}"), version: moved.step };
        self.append(&spec, position, batch, || {
            format!("somebody else moved an alias of `{model}` at the same time: look with `holdfast models list`, then decide again")
        })
        .await?;
        Ok(moved)
    }

    async fn append(
        &self,
        spec: &TableSpec,
        position: Position,
        batch: RecordBatch,
        lost: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        let notes = serde_json::Map::new();
        match write_table(&self.lake, spec, TableRows::Added(vec![batch]), position, notes).await? {
            CommitOutcome::Applied { .. } => Ok(()),
            CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => Err(CliError::Moved(lost())),
        }
    }

    /// Reads a version with everything that belongs to it: files that are what their hashes say, trees, calibrator and signature that fit each other, and examples of which
    /// the model still says what it said.
    ///
    /// # Errors
    /// [`CliError::ModelDamaged`] with what is wrong; a model that is not about who will leave.
    pub(crate) async fn load(&self, version: Version) -> Result<Loaded, CliError> {
        if let Some(refused) = version.kind().other(&version.model) {
            return Err(refused);
        }
        let damaged = |what: String| damaged(&version, &what);
        let artefact = self.fetch(&version.artefact, &version.artefact_hash).await.map_err(damaged)?;
        let examples = self.fetch(&version.examples, &version.examples_hash).await.map_err(damaged)?;
        let signature = serde_json::from_str(&version.signature)
            .map_err(|error| damaged(format!("its signature cannot be read ({error})")))?;
        let model = Model::read_for(&Hessboost, &artefact, &signature).map_err(|error| damaged(error.to_string()))?;
        let calibrator: Calibrator = serde_json::from_str(&version.calibrator)
            .map_err(|error| damaged(format!("its calibrator cannot be read ({error})")))?;
        let (examples, judged, kept) = match serde_json::from_slice(&examples) {
            Ok(Beside::Whole { examples, judged, sequence }) => (examples, Some(*judged), sequence),
            Ok(Beside::Examples(examples)) => (examples, None, None),
            Err(error) => return Err(damaged(format!("its examples cannot be read ({error})"))),
        };
        replay(&model, &calibrator, &examples).map_err(damaged)?;
        let sequence = match &kept {
            Some(kept) => Some(self.load_sequence(kept).await.map_err(damaged)?),
            None => None,
        };
        let file: SpecFile = toml::from_str(&version.spec)
            .map_err(|error| damaged(format!("its spec cannot be read ({})", error.message())))?;
        let spec = Spec {
            name: version.model.clone(),
            path: format!("version {} of {}", version.version, version.model).into(),
            text: version.spec.clone(),
            file,
        };
        Ok(Loaded { version, model, calibrator, spec, judged, sequence })
    }

    /// Puts a file in its place; one of the same name holds the same.
    pub(crate) async fn store(&self, model: &str, bytes: Vec<u8>, ending: &str) -> Result<(String, String), CliError> {
        let hash = blake3::hash(&bytes).to_hex().to_string();
        let name = format!("models/{model}/{hash}.{ending}");
        let folder = self.lake.system_folder();
        let path = name.split('/').fold(folder.path, |path, part| path.join(part));
        let kept = folder.store.put(&path, bytes.into()).await;
        kept.map_err(|source| CliError::Store { what: format!("cannot write {path}"), source })?;
        Ok((name, hash))
    }

    pub(crate) async fn fetch(&self, name: &str, hash: &str) -> Result<Vec<u8>, String> {
        let folder = self.lake.system_folder();
        let path = name.split('/').fold(folder.path, |path, part| path.join(part));
        let found = match folder.store.get(&path).await {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        let bytes = found.map_err(|error| format!("{path} cannot be read ({error})"))?;
        if blake3::hash(&bytes).to_hex().as_str() != hash {
            return Err(format!("{path} is not what was written ({} bytes, another hash)", bytes.len()));
        }
        Ok(bytes.to_vec())
    }
}

/// What to do about a version that is none of these of its model.
pub(crate) fn without_version<'a>(model: &str, number: i32, versions: impl Iterator<Item = &'a Version>) -> CliError {
    let known: Vec<String> = versions.map(|version| version.version.to_string()).collect();
    CliError::NoModel(if known.is_empty() {
        format!("there is no version of `{model}` yet: train one with `holdfast train --model {model}`")
    } else {
        format!("`{model}` has no version {number}: there are {}", known.join(", "))
    })
}

fn in_order_of_versions(mut versions: Vec<Version>) -> Vec<Version> {
    versions.sort_by(|left, right| (&left.model, left.version).cmp(&(&right.model, right.version)));
    versions
}

fn in_order_of_moves(mut moves: Vec<Move>) -> Vec<Move> {
    moves.sort_by(|left, right| (&left.model, left.step).cmp(&(&right.model, right.step)));
    moves
}

/// The rows of a table of models; none where it is not there.
pub(crate) async fn rows<T: DeserializeOwned>(
    read: &Published,
    spec: &TableSpec,
    model: Option<&str>,
) -> Result<Vec<T>, CliError> {
    if read.table(&spec.name).is_none() {
        return Ok(Vec::new());
    }
    let condition = model.map_or_else(String::new, |model| format!(" where model = '{}'", model.replace('\'', "''")));
    let rows = read.rows(&format!("reading {}", spec.name), &format!("select * from {}{condition}", spec.name)).await?;
    let batches: Vec<RecordBatch> = rows.try_collect().await?;
    json_rows(&spec.name, &batches)
}

/// The rows of batches of a table, by the names of their columns.
pub(crate) fn json_rows<T: DeserializeOwned>(table: &TableName, batches: &[RecordBatch]) -> Result<Vec<T>, CliError> {
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(Vec::new());
    writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
    writer.finish()?;
    let text = writer.into_inner();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&text)
        .map_err(|error| CliError::ModelDamaged(format!("{table} has rows that cannot be read: {error}")))
}

/// Whether the model says of its examples what it said when they were kept.
fn replay(model: &Model, calibrator: &Calibrator, examples: &[Example]) -> Result<(), String> {
    if examples.is_empty() {
        return Err("it has no examples".to_owned());
    }
    let values = examples.iter().flat_map(|example| example.features.iter().map(|value| value.unwrap_or(f32::NAN)));
    let matrix = model.signature().matrix_of(values.collect()).map_err(|error| error.to_string())?;
    let margins = model.margins(&matrix).map_err(|error| error.to_string())?;
    if margins.len() != examples.len() {
        return Err("its examples have other features".to_owned());
    }
    for (row, (example, margin)) in examples.iter().zip(&margins).enumerate() {
        let probability = calibrator.probability(f64::from(*margin));
        let near = (margin - example.margin).abs() <= MARGIN_TOLERANCE * example.margin.abs().max(1.0)
            && (probability - example.probability).abs() <= 1e-4;
        if !near {
            return Err(format!(
                "of example {} it says {margin} where it said {} (log-odds): its trees or its calibrator are others",
                row + 1,
                example.margin
            ));
        }
    }
    Ok(())
}

/// Where an alias stands after these moves.
pub(crate) fn standing(moves: &[Move], model: &str, alias: &str) -> Option<i32> {
    moves.iter().rev().find(|moved| moved.model == model && moved.alias == alias).map(|moved| moved.version)
}

/// The tables of models, which stages may read.
pub(crate) fn declared() -> Result<Vec<DeclaredTable>, CliError> {
    let tables = [versions_table()?, aliases_table()?, super::watch::quality_table()?, super::trial::table()?];
    let tables = tables.into_iter();
    Ok(tables.map(|spec| DeclaredTable { name: spec.name, schema: spec.schema, identifiers: Vec::new() }).collect())
}

/// Lets readers see the newest versions of `tables` beside the run that they have. Answers the run's number when there is a new one; nothing where nothing is published yet.
///
/// # Errors
/// What the lake answers.
pub(crate) async fn publish(lake: &Lake, tables: &[TableName]) -> Result<Option<u64>, CliError> {
    for attempt in 1.. {
        let Some(latest) = lake.latest_manifest().await? else { return Ok(None) };
        let mut entries = latest.tables.clone();
        for name in tables {
            let Some(table) = lake.table(name).await? else { continue };
            entries.retain(|entry| entry.name != *name);
            entries.push(ManifestEntry {
                name: name.clone(),
                version: table.version(),
                rows: table.row_count(),
                is_of_production: false,
                looked_at: std::collections::BTreeMap::new(),
            });
        }
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        if entries == latest.tables {
            return Ok(None);
        }
        let manifest = Manifest {
            sequence: latest.sequence + 1,
            run_id: uuid::Uuid::now_v7().to_string(),
            as_of: latest.as_of,
            published_at: lake.clock().now(),
            tables: entries,
        };
        match lake.publish(manifest).await {
            Ok(published) => return Ok(Some(published.sequence)),
            Err(error) if error.kind() == ErrorKind::Conflict && attempt < PUBLISH_ATTEMPTS => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// The names of the registry's tables.
pub(crate) fn tables() -> Result<[TableName; 2], CliError> {
    Ok([versions_table()?.name, aliases_table()?.name])
}

fn versions_table() -> Result<TableSpec, CliError> {
    let number = |name: &str| Field::new(name, DataType::Float64, true);
    let measure = Fields::from(vec![
        Field::new("judged_on", DataType::Utf8, true),
        Field::new("baseline", DataType::Utf8, true),
        Field::new("measure", DataType::Utf8, true),
        Field::new("rows", DataType::Int64, true),
        Field::new("positives", DataType::Int64, true),
        number("base_rate"),
        number("majority_accuracy"),
        number("value"),
        number("low"),
        number("high"),
        number("baseline_value"),
        number("baseline_low"),
        number("baseline_high"),
        number("difference"),
        number("difference_low"),
        number("difference_high"),
    ]);
    let measures = DataType::List(Arc::new(Field::new("element", DataType::Struct(measure), true)));
    let fields = vec![
        commented("model", DataType::Utf8, "The model's name: its file in the pipeline"),
        commented("version", DataType::Int32, "Number of the version, from 1"),
        commented("trained_at", time(), "When it was trained"),
        commented("trained_by", DataType::Utf8, "Who trained it"),
        commented(
            "dataset_id",
            DataType::Utf8,
            "Changes with the spec, the queries and the versions of all tables that were read",
        ),
        commented("spec", DataType::Utf8, "The model's file, as it was"),
        commented("feature_stage", DataType::Utf8, "The stage whose columns are features"),
        commented("feature_fingerprint", DataType::Utf8, "Changes with the queries of the features"),
        commented("tables", DataType::Utf8, "Versions of the tables that were read, JSON"),
        commented("moments", DataType::Utf8, "Moments of rows that were learnt from and of rows that judged, JSON"),
        commented("labels_end", time(), "When all that the labels of rows that were learnt from look at had happened"),
        commented("signature", DataType::Utf8, "Features in order, with their kinds, JSON"),
        commented("engine", DataType::Utf8, "What trained it"),
        commented("rounds", DataType::Int32, "Trees"),
        commented("artefact", DataType::Utf8, "The trees, a file below _holdfast, as XGBoost reads it"),
        commented("artefact_hash", DataType::Utf8, "BLAKE3 of the artefact"),
        commented("artefact_bytes", DataType::Int64, "Size of the artefact"),
        commented("examples", DataType::Utf8, "Rows with what the model said of them, a file below _holdfast"),
        commented("examples_hash", DataType::Utf8, "BLAKE3 of the examples"),
        commented("calibrator", DataType::Utf8, "From log-odds to probability, JSON"),
        commented("profile", DataType::Utf8, "What each feature looked like, JSON"),
        commented(
            "notes",
            DataType::Utf8,
            "Features that tell nothing, columns accepted though they change later, the strongest single feature, JSON",
        ),
        commented("rows", DataType::Utf8, "Rows by use, JSON"),
        commented("measures", measures, "Measures with 95 % intervals beside those of baselines"),
    ];
    Ok(TableSpec {
        name: TableName::new("model", "versions").map_err(|error| CliError::Lake(error.into()))?,
        schema: Arc::new(Schema::new(fields)),
        partition_by: Vec::new(),
        comment: "One row is a version of a model: what it was trained from, what it is worth, where its files are."
            .to_owned(),
    })
}

fn aliases_table() -> Result<TableSpec, CliError> {
    let fields = vec![
        commented("model", DataType::Utf8, "The model's name"),
        commented("alias", DataType::Utf8, "champion scores customers, challenger is what was trained last"),
        commented("version", DataType::Int32, "Where the alias stands from then on"),
        commented("previous", DataType::Int32, "Where it stood; null before the first move"),
        commented("step", DataType::Int64, "Place in the order of moves of the model"),
        commented("moved_at", time(), "When"),
        commented("moved_by", DataType::Utf8, "By whom"),
        commented("why", DataType::Utf8, "trained, promoted or rolled back"),
    ];
    Ok(TableSpec {
        name: TableName::new("model", "aliases").map_err(|error| CliError::Lake(error.into()))?,
        schema: Arc::new(Schema::new(fields)),
        partition_by: Vec::new(),
        comment: "One row is a move of a model's alias; the last move of an alias says where it stands.".to_owned(),
    })
}

pub(crate) fn commented(name: &str, kind: DataType, comment: &str) -> Field {
    Field::new(name, kind, true).with_metadata([(COMMENT_KEY.to_owned(), comment.to_owned())].into())
}

pub(crate) fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Rows in the columns of a table.
pub(crate) fn batch<T: Serialize>(schema: &SchemaRef, rows: &[T]) -> Result<RecordBatch, CliError> {
    let mut decoder = arrow::json::ReaderBuilder::new(Arc::clone(schema)).build_decoder()?;
    decoder.serialize(rows)?;
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(Arc::clone(schema))))
}

pub(crate) fn unwritable(error: serde_json::Error) -> CliError {
    CliError::Training(format!("cannot be written as JSON: {error}"))
}

/// What features looked like, as the version has it.
pub(crate) fn profile_of(version: &Version) -> Vec<FeatureProfile> {
    serde_json::from_str(&version.profile).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use holdfast_models::{Feature, FeatureKind, Parameters, Signature, TrainingSet};

    use super::*;

    #[test]
    fn a_model_that_answers_otherwise_than_it_did_is_told_with_the_example() {
        let feature = |name: &str| Feature { name: name.to_owned(), kind: FeatureKind::Number };
        let signature = Signature::new(vec![feature("days"), feature("visits")]).unwrap();
        let values: Vec<f32> = (0..400_u16).flat_map(|row| [f32::from(row % 40), f32::from(row % 7)]).collect();
        let labels: Vec<bool> = (0..400).map(|row| row % 40 > 25 || row % 11 == 0).collect();
        let features = signature.matrix_of(values.clone()).unwrap();
        let train = TrainingSet { features: &features, labels: &labels, weights: None };
        let parameters = Parameters { rounds: 5, ..Parameters::default() };
        let model = Model::fit(&Hessboost, &signature, &train, None, &parameters).unwrap().model;
        let margins = model.margins(&features).unwrap();
        let wide: Vec<f64> = margins.iter().copied().map(f64::from).collect();
        let calibrator = Calibrator::fit(&wide, &labels).unwrap();
        let mut examples: Vec<Example> = (0..8)
            .map(|row| Example {
                features: values[row * 2..row * 2 + 2].iter().copied().map(Some).collect(),
                margin: margins[row],
                probability: calibrator.probability(wide[row]),
            })
            .collect();
        replay(&model, &calibrator, &examples).unwrap();
        examples[2].margin += 0.01;
        assert!(replay(&model, &calibrator, &examples).unwrap_err().contains("of example 3 it says"));
        examples[2].margin -= 0.01;
        examples[5].probability += 0.01;
        assert!(replay(&model, &calibrator, &examples).unwrap_err().contains("of example 6"));
        examples[5].features.pop();
        assert!(replay(&model, &calibrator, &examples).is_err(), "a row of another width");
        assert!(replay(&model, &calibrator, &[]).is_err(), "nothing was asked");
    }

    #[test]
    fn the_last_move_says_where_an_alias_stands() {
        let moved = |alias: &str, version, step| Move {
            model: "m".to_owned(),
            alias: alias.to_owned(),
            version,
            previous: None,
            step,
            moved_at: DateTime::UNIX_EPOCH,
            moved_by: String::new(),
            why: "promoted".to_owned(),
        };
        let moves = [moved(CHAMPION, 1, 1), moved(CHALLENGER, 2, 2), moved(CHAMPION, 2, 3), moved(CHAMPION, 1, 4)];
        assert_eq!(standing(&moves, "m", CHAMPION), Some(1));
        assert_eq!(standing(&moves, "m", CHALLENGER), Some(2));
        assert_eq!(standing(&moves, "n", CHAMPION), None);
    }
}
