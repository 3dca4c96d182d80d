//! `predict` and `predict_reasons` in SQL: what the champion of a model says of a row, in stages and in queries.
//!
//! ```sql
//! select f.customer_id, predict('churn', f) as probability, predict_reasons('churn', f) as reasons
//! from features.churn_v1 f
//! ```
//!
//! A session has the champions that were loaded for it and asks nobody else: those of the run that it reads, or of the moment at which a run of stages began. That the row has the features is looked at when the
//! query is planned.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, ListBuilder, StringBuilder, StructArray, new_null_array};
use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use async_trait::async_trait;
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use holdfast_engine::{Project as Stages, Published, RowFunctions, RunFunctions, SubjectVersion};
use holdfast_lake::Lake;
use holdfast_models::Feature;
use holdfast_serve::AskedVersion;
use holdfast_types::TableName;
use tokio::sync::Mutex;

use super::kind::Kind;
use super::lifetime::LIFETIME;
use super::lifetime::function::Buyers;
use super::lifetime::stored::LoadedLifetime;
use super::reasons::{HowMany, Words};
use super::registry::{CHALLENGER, CHAMPION, Loaded, Move, Registry, Version, standing, without_version};
use super::sentiment::SENTIMENT;
use super::sentiment::function::Reader;
use super::sentiment::stored::LoadedTexts;
use super::spec::{Spec, nearest};
use crate::error::CliError;
use crate::project::Project;

/// The models that a session may ask, by name.
#[derive(Debug)]
struct Models(BTreeMap<String, Known>);

/// What is known of a model in a session.
#[derive(Debug)]
enum Known {
    Champion(Box<Champion>),
    /// Nobody answers: why, and what to do.
    Silent(String),
}

/// A version that is asked.
#[derive(Debug)]
pub(super) struct Champion {
    pub(super) loaded: Arc<Loaded>,
    pub(super) words: Words,
}

/// The functions where no stage runs: queries with them can be planned, and names of models are looked at.
pub(crate) fn planned(project: &Project) -> Result<RowFunctions, CliError> {
    let silent = |name: String| {
        let why = format!("`{name}` is not asked here: cases and plans have no models");
        (name, Known::Silent(why))
    };
    let buyers = Buyers::Silent(format!("`{LIFETIME}` is not asked here: cases and plans have no models"));
    Ok(Models(Spec::names(project)?.into_iter().map(silent).collect()).functions(Reader::Nobody, buyers))
}

/// The functions for a run of these stages: with the champions of now, of the models that stages ask. Nothing is read where none asks.
///
/// # Errors
/// What the lake answers. A champion that cannot be read is told by the stage that asks it.
pub(crate) async fn for_stages(project: &Project, lake: &Lake, stages: &Stages) -> Result<RowFunctions, CliError> {
    let planned = planned(project)?;
    let asked = stages.asked_by_stages(&planned);
    if asked.is_empty() {
        return Ok(planned);
    }
    // An environment asks the champions of production: it has none of its own.
    let registry = Registry { lake: lake.production().clone(), settings: project.reader_settings() };
    let (versions, moves) = (registry.versions(None).await?, registry.moves(None).await?);
    let mut schemas = BTreeMap::new();
    for version in &versions {
        if let Ok(stage) = version.feature_stage.parse::<TableName>()
            && let Some(table) = registry.lake.table(&stage).await?
        {
            schemas.insert(version.feature_stage.clone(), Arc::clone(table.schema()));
        }
    }
    let found = Found { versions, moves, schemas };
    let models = found.models(&registry, Spec::names(project)?, Some(&asked), &Mutex::default()).await;
    let reader = match found.standing(SENTIMENT) {
        Some(_) if asked.contains(SENTIMENT) => found.reader(&registry, &Mutex::default()).await,
        // A stage that reads texts is made before anybody can read, and anew when somebody can.
        _ => Reader::Nobody,
    };
    let buyers = match asked.contains(LIFETIME) {
        true => found.buyers(&registry, &Mutex::default()).await,
        false => Buyers::Silent(format!("`{LIFETIME}` is asked by no stage")),
    };
    Ok(models.functions(reader, buyers))
}

/// The functions for those who read published runs: with the champions of the run.
#[derive(Debug)]
pub(crate) struct Champions {
    registry: Registry,
    /// The models of the pipeline.
    names: Vec<String>,
    loaded: LoadedVersions,
    /// The version that reads texts, once it was read.
    texts: LoadedReader,
    /// The version that knows of repeat buying, once it was read.
    lifetime: LoadedBuyers,
}

/// The version of the model of repeat buying that was read last.
type LoadedBuyers = Mutex<Option<Arc<LoadedLifetime>>>;

/// The version of the model of texts that was read last.
type LoadedReader = Mutex<Option<Arc<LoadedTexts>>>;

/// Versions that were read, by their artefacts: a run with the champion of the one before reads nothing.
type LoadedVersions = Mutex<BTreeMap<(String, i32, String), Arc<Loaded>>>;

impl Champions {
    /// Of a lake; nothing is read before a run is.
    pub(crate) fn new(project: &Project, lake: &Lake) -> Self {
        let registry = Registry { lake: lake.production().clone(), settings: project.reader_settings() };
        // Who reads a lake need not have its pipeline: models that were trained are known without.
        Self {
            registry,
            names: Spec::names(project).unwrap_or_default(),
            loaded: Mutex::default(),
            texts: Mutex::default(),
            lifetime: Mutex::default(),
        }
    }

    /// A version of a model about customers, as a run knows it.
    ///
    /// # Errors
    /// A model or version that is not there, a model about something else, files that are damaged.
    pub(super) async fn asked(&self, run: &Published, model: &str, asked: AskedVersion) -> Result<Champion, CliError> {
        let found = Found::of_run(run).await?;
        let known = found.names(self.names.clone());
        if !known.contains(model) {
            let of_another_kind = found.versions.iter().find(|version| version.model == model);
            let refused = of_another_kind.and_then(|version| version.kind().other(model));
            let known: Vec<String> = known.into_iter().collect();
            let none = || CliError::NoModel(format!("there is no model `{model}`{}", nearest(model, &known)));
            return Err(refused.unwrap_or_else(none));
        }
        let version = match asked {
            AskedVersion::Champion => return found.champion(&self.registry, model, &self.loaded).await,
            AskedVersion::Challenger => {
                standing(&found.moves, model, CHALLENGER).ok_or_else(|| super::score::without_champion(model, None))?
            }
            AskedVersion::Number(number) => number,
        };
        let of_model = || found.versions.iter().filter(|version| version.model == model);
        let Some(version) = of_model().find(|of| of.version == version) else {
            return Err(without_version(model, version, of_model()));
        };
        let loaded = Arc::new(self.registry.load(version.clone()).await?);
        let words = loaded.words(found.schemas.get(&version.feature_stage));
        Ok(Champion { loaded, words })
    }

    /// Whether a query has a call of one of the functions in it, or may have: what is not asked need not be read.
    pub(crate) fn may_be_asked_by(query: &str) -> bool {
        let query = query.to_lowercase();
        [What::Probability.name(), SENTIMENT, "p_alive", "expected_purchases", "clv"]
            .iter()
            .any(|name| query.contains(name))
    }
}

#[async_trait]
impl RunFunctions for Champions {
    async fn of(&self, run: &Published) -> RowFunctions {
        match Found::of_run(run).await {
            Ok(found) => {
                let models = found.models(&self.registry, self.names.clone(), None, &self.loaded).await;
                let reader = found.reader(&self.registry, &self.texts).await;
                models.functions(reader, found.buyers(&self.registry, &self.lifetime).await)
            }
            Err(error) => {
                tracing::warn!(%error, "models cannot be read: queries that ask them are told");
                let silent =
                    |name: &String| (name.clone(), Known::Silent(format!("`{name}` cannot be asked: {error}")));
                let reader = Reader::Silent(format!("`{SENTIMENT}` cannot be asked: {error}"));
                let buyers = Buyers::Silent(format!("`{LIFETIME}` cannot be asked: {error}"));
                Models(self.names.iter().map(silent).collect()).functions(reader, buyers)
            }
        }
    }
}

/// What there is of models.
struct Found {
    versions: Vec<Version>,
    moves: Vec<Move>,
    /// The columns of stages that features are of.
    schemas: BTreeMap<String, SchemaRef>,
}

impl Found {
    async fn of_run(run: &Published) -> Result<Self, CliError> {
        let schemas = run.tables().iter().map(|table| (table.name.to_string(), Arc::clone(&table.schema)));
        Ok(Self {
            versions: Registry::versions_of(run).await?,
            moves: Registry::moves_of(run).await?,
            schemas: schemas.collect(),
        })
    }

    /// Reads the champions, those that are `wanted` alone where that is said.
    async fn models(
        &self,
        registry: &Registry,
        names: Vec<String>,
        wanted: Option<&BTreeSet<String>>,
        loaded: &LoadedVersions,
    ) -> Models {
        let mut models = BTreeMap::new();
        for name in self.names(names) {
            if wanted.is_some_and(|wanted| !wanted.contains(&name)) {
                let why = format!("`{name}` is asked by no stage");
                models.insert(name, Known::Silent(why));
                continue;
            }
            let known = match self.champion(registry, &name, loaded).await {
                Ok(champion) => Known::Champion(Box::new(champion)),
                Err(error) => Known::Silent(error.to_string()),
            };
            models.insert(name, known);
        }
        for version in &self.versions {
            if let Some(refused) = version.kind().other(&version.model) {
                models.entry(version.model.clone()).or_insert_with(|| Known::Silent(refused.to_string()));
            }
        }
        Models(models)
    }

    /// The models about customers: these of a pipeline, and those that were trained.
    fn names(&self, of_pipeline: Vec<String>) -> BTreeSet<String> {
        let trained = self.versions.iter().filter(|version| version.kind() == Kind::Churn);
        of_pipeline.into_iter().chain(trained.map(|version| version.model.clone())).collect()
    }

    /// The version that is a model's champion.
    fn standing(&self, model: &str) -> Option<&Version> {
        let number = standing(&self.moves, model, CHAMPION);
        self.versions.iter().find(|version| version.model == model && Some(version.version) == number)
    }

    /// Who reads texts: the champion, or why nobody does.
    async fn reader(&self, registry: &Registry, loaded: &LoadedReader) -> Reader {
        let Some(version) = self.standing(SENTIMENT) else {
            let newest = self.versions.iter().rfind(|version| version.model == SENTIMENT);
            return Reader::Silent(super::score::without_champion(SENTIMENT, newest).to_string());
        };
        let known = loaded.lock().await.clone().filter(|known| known.version == *version);
        if let Some(known) = known {
            return Reader::Champion(known);
        }
        match registry.load_texts(version.clone()).await {
            Ok(read) => {
                let read = Arc::new(read);
                *loaded.lock().await = Some(Arc::clone(&read));
                Reader::Champion(read)
            }
            Err(error) => Reader::Silent(error.to_string()),
        }
    }

    /// Who knows of repeat buying: the champion, or why nobody does.
    async fn buyers(&self, registry: &Registry, loaded: &LoadedBuyers) -> Buyers {
        let Some(version) = self.standing(LIFETIME) else {
            let newest = self.versions.iter().rfind(|version| version.model == LIFETIME);
            return Buyers::Silent(super::score::without_champion(LIFETIME, newest).to_string());
        };
        let known = loaded.lock().await.clone().filter(|known| known.version == *version);
        if let Some(known) = known {
            return Buyers::Champion(known);
        }
        match registry.load_lifetime(version.clone()).await {
            Ok(read) => {
                let read = Arc::new(read);
                *loaded.lock().await = Some(Arc::clone(&read));
                Buyers::Champion(read)
            }
            Err(error) => Buyers::Silent(error.to_string()),
        }
    }

    async fn champion(&self, registry: &Registry, model: &str, loaded: &LoadedVersions) -> Result<Champion, CliError> {
        let Some(version) = self.standing(model) else {
            let newest = self.versions.iter().rfind(|version| version.model == model);
            return Err(super::score::without_champion(model, newest));
        };
        let key = (model.to_owned(), version.version, version.artefact_hash.clone());
        let known = loaded.lock().await.get(&key).cloned();
        let loaded = match known {
            Some(known) => known,
            None => {
                let read = Arc::new(registry.load(version.clone()).await?);
                let mut loaded = loaded.lock().await;
                // The one before is of no use to newer runs.
                loaded.retain(|(of, _, _), _| of != model);
                loaded.insert(key, Arc::clone(&read));
                read
            }
        };
        let words = loaded.words(self.schemas.get(&version.feature_stage));
        Ok(Champion { loaded, words })
    }
}

impl Models {
    /// All functions of a session: those that ask these models, and those that ask the reader of texts and the model of repeat buying.
    fn functions(self, reader: Reader, buyers: Buyers) -> RowFunctions {
        let versions = self.0.iter().map(|(name, known)| (name.clone(), known.version(name))).collect();
        let models = Arc::new(self);
        let function = |what| Arc::new(ScalarUDF::from(Predict::new(what, Arc::clone(&models))));
        let functions = vec![function(What::Probability), function(What::Reasons)];
        let mut functions = RowFunctions { functions, of_values: Vec::new(), versions };
        reader.add_to(&mut functions);
        buyers.add_to(&mut functions);
        functions
    }

    fn named(&self, name: &str) -> Result<&Known, String> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<String> = self.0.keys().cloned().collect();
            format!("there is no model `{name}`{}", nearest(name, &known))
        })
    }
}

impl Known {
    /// Who answers: it changes when the model would say something else of the same row, or in other words.
    fn version(&self, model: &str) -> SubjectVersion {
        match self {
            Self::Champion(champion) => {
                let version = &champion.loaded.version;
                let words = blake3::hash(format!("{:?}", champion.words).as_bytes());
                SubjectVersion {
                    told: format!("model {model}: version {}", version.version),
                    exact: format!("{} {} {}", version.version, version.artefact_hash, words.to_hex()),
                }
            }
            Self::Silent(_) => SubjectVersion { told: format!("model {model}: nobody"), exact: "nobody".to_owned() },
        }
    }
}

/// What is asked of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    /// The calibrated probability.
    Probability,
    /// The features that raise it most, in words, strongest first.
    Reasons,
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            Self::Probability => "predict",
            Self::Reasons => "predict_reasons",
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Self::Probability => DataType::Float64,
            Self::Reasons => DataType::new_list(DataType::Utf8, true),
        }
    }
}

/// `predict('model', row)`, or `predict_reasons`.
#[derive(Debug, Clone)]
struct Predict {
    what: What,
    models: Arc<Models>,
    signature: Signature,
}

impl Predict {
    fn new(what: What, models: Arc<Models>) -> Self {
        Self { what, models, signature: Signature::any(2, Volatility::Immutable) }
    }

    /// The model that the first argument names.
    fn model(&self, name: Option<&ScalarValue>) -> Result<&Known> {
        let name = name.and_then(|name| name.try_as_str().flatten());
        let Some(name) = name else {
            return plan_err!("the first argument of {0} is the name of a model, as in {0}('churn', f)", self.name());
        };
        self.models.named(name).map_err(DataFusionError::Plan)
    }

    /// What the champion says of rows; null for a row that is null as a whole.
    fn said(&self, champion: &Champion, rows: &StructArray) -> Result<ArrayRef, CliError> {
        let loaded = &champion.loaded;
        let matrix = loaded.rows(&loaded.features_of(rows)?)?;
        Ok(match self.what {
            What::Probability => {
                let probabilities = loaded.probabilities(&matrix)?.calibrated;
                let said = probabilities.into_iter().enumerate();
                Arc::new(said.map(|(row, p)| rows.is_valid(row).then_some(p)).collect::<Float64Array>())
            }
            What::Reasons => {
                let mut lists = ListBuilder::new(StringBuilder::new());
                let most = HowMany { lowers: 0, ..HowMany::OF_SCORES };
                for (row, reasons) in loaded.reasons(&matrix, &champion.words, most)?.iter().enumerate() {
                    if rows.is_valid(row) {
                        reasons.raises.iter().for_each(|reason| lists.values().append_value(reason));
                    }
                    lists.append(rows.is_valid(row));
                }
                Arc::new(lists.finish())
            }
        })
    }
}

/// Sessions over the same champions have the same function.
impl PartialEq for Predict {
    fn eq(&self, other: &Self) -> bool {
        self.what == other.what && Arc::ptr_eq(&self.models, &other.models)
    }
}

impl Eq for Predict {}

impl Hash for Predict {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.what.hash(state);
        Arc::as_ptr(&self.models).hash(state);
    }
}

impl ScalarUDFImpl for Predict {
    fn name(&self) -> &'static str {
        self.what.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.what.data_type())
    }

    /// Looks whether the model can be asked about such a row.
    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let known = self.model(arguments.scalar_arguments.first().copied().flatten())?;
        let row = arguments.arg_fields.get(1).map_or(&DataType::Null, |field| field.data_type());
        match (known, row) {
            (_, DataType::Null) | (Known::Silent(_), DataType::Struct(_)) => {}
            (Known::Champion(champion), DataType::Struct(fields)) => {
                champion.loaded.check_row(fields, self.name()).map_err(DataFusionError::Plan)?;
            }
            (_, other) => {
                return plan_err!(
                    "the second argument of {} is a row, and not {other}: name a table of the `from`, or write named_struct('feature', value, …)",
                    self.name()
                );
            }
        }
        Ok(Arc::new(Field::new(self.name(), self.what.data_type(), true)))
    }

    /// Leaves out of the row what the model does not read, so that it is not read from files either.
    fn simplify(&self, arguments: Vec<Expr>, _context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let narrowed = match arguments.as_slice() {
            [Expr::Literal(name, _), Expr::ScalarFunction(row)] if row.func.name() == "named_struct" => {
                match self.model(Some(name))? {
                    Known::Champion(champion) => narrowed(champion.loaded.model.signature().features(), row),
                    Known::Silent(_) => None,
                }
            }
            _ => None,
        };
        let Some(row) = narrowed else { return Ok(ExprSimplifyResult::Original(arguments)) };
        let name = arguments.into_iter().take(1);
        let call = ScalarFunction::new_udf(Arc::new(ScalarUDF::from(self.clone())), name.chain([row]).collect());
        Ok(ExprSimplifyResult::Simplified(Expr::ScalarFunction(call)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [ColumnarValue::Scalar(name), row] = arguments.args.as_slice() else {
            return exec_err!("the first argument of {} is the name of a model", self.name());
        };
        let known = self.model(Some(name))?;
        let rows = row.to_array(arguments.number_rows)?;
        let Some(structs) = rows.as_struct_opt().filter(|rows| rows.len() > rows.null_count()) else {
            return Ok(ColumnarValue::Array(new_null_array(&self.what.data_type(), rows.len())));
        };
        let said = match known {
            Known::Champion(champion) => self.said(champion, structs),
            Known::Silent(why) => return exec_err!("{why}"),
        };
        said.map(ColumnarValue::Array).map_err(|error| DataFusionError::Execution(error.to_string()))
    }
}

/// The call of `named_struct` with these features alone; nothing where it has no others.
fn narrowed(features: &[Feature], row: &ScalarFunction) -> Option<Expr> {
    let is_feature = |name: &Expr| match name {
        Expr::Literal(name, _) => {
            name.try_as_str().flatten().is_some_and(|name| features.iter().any(|feature| feature.name == name))
        }
        _ => true,
    };
    let kept: Vec<Expr> = row.args.chunks_exact(2).filter(|pair| is_feature(&pair[0])).flatten().cloned().collect();
    let is_narrower = !kept.is_empty() && kept.len() < row.args.len();
    is_narrower.then(|| Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&row.func), kept)))
}
