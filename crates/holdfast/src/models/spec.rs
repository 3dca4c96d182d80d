//! What a model is about, as `pipelines/<pipeline>/models/<name>.toml` says it: features, label, moments, training, bands, words.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow::datatypes::{DataType, SchemaRef};
use chrono::TimeDelta;
use holdfast_engine::{Past, Question, Runner, Sees};
use holdfast_models::{ModelError, Parameters};
use holdfast_types::{CUSTOMER_BUCKET, CUSTOMER_ID, TableName};
use serde::Deserialize;
use toml::Spanned;

use super::hybrid::spec::SequenceSection;
use super::kind::Kind;
use crate::commands::maintain::duration;
use crate::error::CliError;
use crate::project::{Project, located, parse_toml, read_text};

/// The column of a feature stage that says what its values were known at.
pub(crate) const EVENT_TIMESTAMP: &str = "event_timestamp";

/// A model's file, checked as far as it can be without the stages.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// As written: kept with every version.
    pub(crate) text: String,
    pub(crate) file: SpecFile,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpecFile {
    /// `churn`, or left out.
    #[serde(default, rename = "kind")]
    _kind: Kind,
    #[serde(default)]
    pub(crate) description: String,
    pub(crate) features: FeatureSection,
    pub(crate) label: LabelSection,
    #[serde(default)]
    pub(crate) moments: MomentSection,
    #[serde(default)]
    pub(crate) split: SplitSection,
    #[serde(default = "unsaid")]
    pub(crate) training: Spanned<Parameters>,
    /// What customers did, step by step, for a sequence model whose word the trees are told.
    pub(crate) sequence: Option<SequenceSection>,
    #[serde(default)]
    pub(crate) baselines: BaselineSection,
    #[serde(default = "unsaid")]
    pub(crate) bands: Spanned<BandSection>,
    #[serde(default)]
    pub(crate) checks: CheckSection,
    #[serde(default = "unsaid")]
    pub(crate) watch: Spanned<WatchSection>,
    #[serde(default)]
    pub(crate) cadence: CadenceSection,
    pub(crate) scores: ScoreSection,
    /// What a feature is called in reasons; `{value}` stands for its value. What is not here is called by its column's comment.
    #[serde(default)]
    pub(crate) reasons: BTreeMap<Spanned<String>, String>,
}

/// A section that the file leaves out.
pub(crate) fn unsaid<T: Default>() -> Spanned<T> {
    Spanned::new(0..0, T::default())
}

/// Which columns of which stage.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FeatureSection {
    pub(crate) stage: Spanned<TableName>,
    /// Columns that are no features; the customer and the event timestamp never are.
    #[serde(default)]
    pub(crate) exclude: Vec<Spanned<String>>,
    /// Columns of core tables that change later without a date, and that the features may rest on all the same.
    #[serde(default)]
    pub(crate) accept_changed_later: Vec<Spanned<String>>,
}

/// Who is looked at, and what is to be told of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LabelSection {
    /// The table of events whose absence is churn.
    pub(crate) table: Spanned<TableName>,
    /// Its column that says when.
    pub(crate) time: Spanned<String>,
    /// Which of its rows count; all of them without.
    #[serde(rename = "where")]
    pub(crate) condition: Option<Spanned<String>>,
    /// Customers with an event in so many days before the moment are looked at.
    pub(crate) observation_days: Spanned<u32>,
    /// Days between the moment and the horizon: to act, and for data to arrive.
    #[serde(default)]
    pub(crate) gap_days: u32,
    /// Customers without an event in so many days after the gap have churned.
    pub(crate) horizon_days: Spanned<u32>,
}

/// The moments of snapshots: midnight UTC, once a month.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MomentSection {
    /// The day of the month, from 1 to 28.
    pub(crate) day: Spanned<u32>,
    /// The newest so many are used.
    pub(crate) most: Spanned<u32>,
    /// Days of history that a moment needs before it; as many as the observation window without.
    pub(crate) history_days: Option<u32>,
}

impl Default for MomentSection {
    fn default() -> Self {
        Self { day: Spanned::new(0..0, 1), most: Spanned::new(0..0, 24), history_days: None }
    }
}

/// Which rows teach, which stop, which calibrate, which judge.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SplitSection {
    /// The newest so many moments judge, and nothing else.
    pub(crate) test_moments: Spanned<u32>,
    /// Share of customers whose earlier rows tell training when to stop.
    pub(crate) stopping_share: Spanned<f64>,
    /// Share of customers whose earlier rows make probabilities of scores.
    pub(crate) calibration_share: Spanned<f64>,
}

impl Default for SplitSection {
    fn default() -> Self {
        Self {
            test_moments: Spanned::new(0..0, 1),
            stopping_share: Spanned::new(0..0, 0.15),
            calibration_share: Spanned::new(0..0, 0.15),
        }
    }
}

/// What the model has to be better than.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BaselineSection {
    /// The feature that says how long ago a customer was last seen: higher is more at risk.
    pub(crate) recency: Option<Spanned<String>>,
    /// A stage with a score a customer.
    pub(crate) scorecard: Option<ScorecardSection>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScorecardSection {
    pub(crate) stage: Spanned<TableName>,
    /// Its column with a probability.
    pub(crate) column: Spanned<String>,
}

/// From which calibrated probability on.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BandSection {
    pub(crate) high: f64,
    pub(crate) medium: f64,
}

impl Default for BandSection {
    fn default() -> Self {
        Self { high: 0.70, medium: 0.40 }
    }
}

/// When training is refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CheckSection {
    /// A feature that alone has a higher AUC knows what it cannot know.
    pub(crate) single_feature_auc_max: Spanned<f64>,
}

impl Default for CheckSection {
    fn default() -> Self {
        Self { single_feature_auc_max: Spanned::new(0..0, 0.95) }
    }
}

/// Beyond which a champion that is watched gives an alert.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WatchSection {
    /// AUC may be so much below that by which the model was judged.
    pub(crate) auc_drop_max: f64,
    /// Expected calibration error, ten bins.
    pub(crate) ece_max: f64,
    /// Accuracy at 0.50; looked at only where the model had it when it was judged and the majority class had not.
    pub(crate) accuracy_min: f64,
    /// Population stability index of a feature or of the scores.
    pub(crate) psi_max: f64,
    /// A feature's share of missing values may be so far from what it was.
    pub(crate) missing_change_max: f64,
    /// The number of customers may be this share more than it was, and the other way round.
    pub(crate) volume_change_max: f64,
}

impl Default for WatchSection {
    fn default() -> Self {
        Self {
            auc_drop_max: 0.05,
            ece_max: 0.10,
            accuracy_min: 0.85,
            psi_max: 0.25,
            missing_change_max: 0.10,
            volume_change_max: 0.50,
        }
    }
}

/// What is done with the model behind scheduled runs; nothing of what is left out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CadenceSection {
    /// Score customers after each run.
    pub(crate) score: bool,
    /// Watch the champion once a day.
    pub(crate) watch: bool,
    /// Train a challenger when the newest version is so old: `30d`.
    pub(crate) train_every: Option<Spanned<String>>,
}

/// Where scores go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScoreSection {
    pub(crate) table: Spanned<TableName>,
}

impl Spec {
    /// Reads the file of a model.
    pub(crate) fn read(project: &Project, name: &str) -> Result<Self, CliError> {
        let folder = project.model_folder()?;
        let path = folder.join(format!("{name}.toml"));
        if !path.is_file() {
            let known = files(project)?;
            let hint = if known.is_empty() { String::new() } else { format!(": there are {}", known.join(", ")) };
            return Err(CliError::NoModel(format!("there is no model `{name}` in {}{hint}", folder.display())));
        }
        let text = read_text(&path)?;
        if let Some(refused) = Kind::of(&text).other(name) {
            return Err(refused);
        }
        let file: SpecFile = parse_toml(&path, &text)?;
        let spec = Self { name: name.to_owned(), path, text, file };
        spec.check()?;
        Ok(spec)
    }

    /// The models of a pipeline that are about customers, sorted.
    pub(crate) fn names(project: &Project) -> Result<Vec<String>, CliError> {
        let names = files(project)?;
        let mut of_customers = Vec::with_capacity(names.len());
        for name in names {
            if Kind::of_model(project, &name)? == Kind::Churn {
                of_customers.push(name);
            }
        }
        Ok(of_customers)
    }

    pub(crate) fn gap(&self) -> TimeDelta {
        TimeDelta::days(i64::from(self.file.label.gap_days))
    }

    pub(crate) fn horizon(&self) -> TimeDelta {
        TimeDelta::days(i64::from(*self.file.label.horizon_days.get_ref()))
    }

    pub(crate) fn observation(&self) -> TimeDelta {
        TimeDelta::days(i64::from(*self.file.label.observation_days.get_ref()))
    }

    pub(crate) fn stage(&self) -> &TableName {
        self.file.features.stage.get_ref()
    }

    pub(crate) fn bands(&self) -> BandSection {
        *self.file.bands.get_ref()
    }

    pub(crate) fn bars(&self) -> WatchSection {
        *self.file.watch.get_ref()
    }

    /// How old the newest version may become before a challenger is trained.
    ///
    /// # Errors
    /// A time that cannot be read, or is not from a day to ten years.
    pub(crate) fn train_every(&self) -> Result<Option<TimeDelta>, CliError> {
        let Some(every) = &self.file.cadence.train_every else { return Ok(None) };
        let told = |message: String| self.mistake(every.span().start, format!("[cadence] train_every: {message}"));
        let read = duration(every.get_ref()).map_err(&told)?;
        let read = TimeDelta::from_std(read).unwrap_or(TimeDelta::MAX);
        if !(TimeDelta::days(1)..=TimeDelta::days(3650)).contains(&read) {
            return Err(told("must be from 1d to 3650d".to_owned()));
        }
        Ok(Some(read))
    }

    /// Which rows of the label's table count.
    pub(crate) fn counted(&self) -> String {
        let time = self.file.label.time.get_ref();
        match &self.file.label.condition {
            Some(condition) => {
                format!("{CUSTOMER_ID} is not null and {time} is not null and ({})", condition.get_ref())
            }
            None => format!("{CUSTOMER_ID} is not null and {time} is not null"),
        }
    }

    /// A mistake at this byte of the file.
    pub(crate) fn mistake(&self, offset: usize, message: impl Into<String>) -> CliError {
        located(&self.path, &self.text, offset, message.into())
    }

    /// What the model's library says of a parameter, where the file sets it.
    pub(crate) fn of_parameter(&self, error: ModelError) -> CliError {
        of_parameter(&self.path, &self.text, self.file.training.span(), error)
    }

    fn check(&self) -> Result<(), CliError> {
        let file = &self.file;
        for (days, what) in [
            (&file.label.observation_days, "the observation window"),
            (&file.label.horizon_days, "the horizon"),
            (&file.moments.most, "the number of moments"),
            (&file.split.test_moments, "the number of moments that judge"),
        ] {
            if !(1..=10_000).contains(days.get_ref()) {
                return Err(self.mistake(days.span().start, format!("{what} must be from 1 to 10000")));
            }
        }
        let day = &file.moments.day;
        if !(1..=28).contains(day.get_ref()) {
            return Err(self.mistake(day.span().start, "a day that every month has is from 1 to 28"));
        }
        let (stopping, calibration) = (&file.split.stopping_share, &file.split.calibration_share);
        for share in [stopping, calibration] {
            if !(*share.get_ref() > 0.0 && *share.get_ref() < 1.0) {
                return Err(self.mistake(share.span().start, "a share must be above 0 and below 1"));
            }
        }
        if stopping.get_ref() + calibration.get_ref() > 0.8 {
            let message = "the two shares leave too few customers to learn from: together 0.8 at most";
            return Err(self.mistake(stopping.span().start, message));
        }
        let BandSection { high, medium } = self.bands();
        if !(0.0 < medium && medium < high && high < 1.0) {
            let message = "bands rise: 0 < medium < high < 1";
            return Err(self.mistake(file.bands.span().start, message));
        }
        let bar = &file.checks.single_feature_auc_max;
        if !(*bar.get_ref() > 0.5 && *bar.get_ref() <= 1.0) {
            return Err(self.mistake(bar.span().start, "an AUC to be refused is above 0.5 and at most 1"));
        }
        let watch = self.bars();
        let bars = [
            ("auc_drop_max", watch.auc_drop_max, 0.5),
            ("ece_max", watch.ece_max, 1.0),
            ("accuracy_min", watch.accuracy_min, 1.0),
            ("psi_max", watch.psi_max, f64::MAX),
            ("missing_change_max", watch.missing_change_max, 1.0),
            ("volume_change_max", watch.volume_change_max, f64::MAX),
        ];
        if let Some((name, _, most)) = bars.into_iter().find(|(_, bar, most)| !(*bar > 0.0 && bar <= most)) {
            let range = if most < f64::MAX { format!("above 0 and at most {most}") } else { "above 0".to_owned() };
            return Err(self.mistake(file.watch.span().start, format!("[watch] `{name}` must be {range}")));
        }
        self.train_every()?;
        file.training.get_ref().check(true).map_err(|error| self.of_parameter(error))?;
        if let Some(sequence) = &file.sequence {
            sequence.check(self)?;
        }
        let table = &file.scores.table;
        if table.get_ref().schema() != "risk" {
            let message = format!("scores stand in the schema risk: call it `risk.{}`", table.get_ref().table());
            return Err(self.mistake(table.span().start, message));
        }
        Ok(())
    }

    /// The stages and tables that the model rests on, asked about the past; with the features in the order of their stage.
    ///
    /// # Errors
    /// What the file says of stages and columns that are not there, with its line.
    pub(crate) async fn past(&self, runner: &Runner) -> Result<(Past, Vec<String>), CliError> {
        let label = &self.file.label;
        let known = |table: &Spanned<TableName>| {
            let (name, project) = (table.get_ref(), runner.project());
            if project.stage(name).is_some() || project.declared().contains_key(name) {
                return Ok(());
            }
            let names: Vec<String> = project.stages().iter().map(|stage| stage.name.to_string()).collect();
            Err(self.mistake(
                table.span().start,
                format!("no stage is called `{name}`{}", nearest(&name.to_string(), &names)),
            ))
        };
        known(&self.file.features.stage)?;
        known(&label.table)?;
        if let Some(sequence) = &self.file.sequence {
            known(&sequence.stage)?;
        }
        let mut stages = self.stages();
        if let Some(scorecard) = &self.file.baselines.scorecard {
            known(&scorecard.stage)?;
            stages.push(scorecard.stage.get_ref().clone());
        }
        let past = runner.past(&stages, std::slice::from_ref(label.table.get_ref())).await?;
        if let Some(model) = past.asked_by(self.stage()).first() {
            let message = format!(
                "{} rests on what the champion of `{model}` says, who has learnt from days after the moments that teach: a feature of it knows what nobody could know; take it into a stage of its own",
                self.stage()
            );
            return Err(self.mistake(self.file.features.stage.span().start, message));
        }
        let features = self.features(&past)?;
        self.check_label(runner, &past).await?;
        if let Some(scorecard) = &self.file.baselines.scorecard {
            self.column(&past, scorecard.stage.get_ref(), &scorecard.column, is_number, "a number")?;
            self.check_customer(&past, &scorecard.stage)?;
        }
        Ok((past, features))
    }

    /// The features: the columns of the stage that are not left out, in its order.
    fn features(&self, past: &Past) -> Result<Vec<String>, CliError> {
        let section = &self.file.features;
        let stage = self.stage();
        self.check_customer(past, &section.stage)?;
        let schema = self.schema(past, &section.stage)?;
        if !schema.field_with_name(EVENT_TIMESTAMP).is_ok_and(|field| is_time(field.data_type())) {
            let message = format!(
                "{stage} has no timestamp `{EVENT_TIMESTAMP}`, which says at what moment its values were known: add `now() as {EVENT_TIMESTAMP}`"
            );
            return Err(self.mistake(section.stage.span().start, message));
        }
        for name in &section.exclude {
            self.column(past, stage, name, |_| true, "a column")?;
        }
        let excluded: Vec<&str> = section.exclude.iter().map(|name| name.get_ref().as_str()).collect();
        let kept = schema.fields().iter().filter(|field| {
            let name = field.name().as_str();
            ![CUSTOMER_ID, CUSTOMER_BUCKET, EVENT_TIMESTAMP].contains(&name) && !excluded.contains(&name)
        });
        let mut features = Vec::new();
        for field in kept {
            if !(is_number(field.data_type()) || is_text(field.data_type())) {
                let message = format!(
                    "`{}` of {stage} is {}; features are numbers or text: name it in `exclude`",
                    field.name(),
                    field.data_type()
                );
                return Err(self.mistake(section.stage.span().start, message));
            }
            features.push(field.name().clone());
        }
        if features.is_empty() {
            return Err(self.mistake(section.stage.span().start, format!("{stage} has no column that is a feature")));
        }
        for name in self.file.reasons.keys().chain(&self.file.baselines.recency) {
            if !(features.contains(name.get_ref()) || self.is_of_sequence(name.get_ref())) {
                let hint = nearest(name.get_ref(), &features);
                let message = format!("`{}` is no feature of {stage}{hint}", name.get_ref());
                return Err(self.mistake(name.span().start, message));
            }
        }
        Ok(features)
    }

    pub(crate) fn check_customer(&self, past: &Past, stage: &Spanned<TableName>) -> Result<(), CliError> {
        match self.schema(past, stage)?.field_with_name(CUSTOMER_ID) {
            Ok(field) if is_text(field.data_type()) => Ok(()),
            _ => {
                let message = format!("{} has no text `{CUSTOMER_ID}`: a model is about customers", stage.get_ref());
                Err(self.mistake(stage.span().start, message))
            }
        }
    }

    /// Asks of nobody, so that a condition that cannot be planned is told at its place.
    async fn check_label(&self, runner: &Runner, past: &Past) -> Result<(), CliError> {
        let label = &self.file.label;
        let table = label.table.get_ref();
        let schema = past.schema(table).or_else(|| runner.project().declared().get(table));
        if let Some(schema) = schema {
            let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
            if !names.iter().any(|name| name == CUSTOMER_ID) {
                return Err(self.mistake(label.table.span().start, format!("{table} has no column {CUSTOMER_ID}")));
            }
            let time = label.time.get_ref();
            match schema.field_with_name(time).map(|field| field.data_type()) {
                Ok(DataType::Timestamp(_, _) | DataType::Date32) => {}
                Ok(_) => return Err(self.mistake(label.time.span().start, format!("`{time}` is no timestamp or date"))),
                Err(_) => {
                    let message = format!("{table} has no column `{time}`{}", nearest(time, &names));
                    return Err(self.mistake(label.time.span().start, message));
                }
            }
        }
        let question = Question {
            sql: format!("select {CUSTOMER_ID} from {table} where {} limit 0", self.counted()),
            at: chrono::DateTime::UNIX_EPOCH,
            sees: Sees::LaterToo,
        };
        let asked = past.gather(&question, || (), |(), _| Ok(())).await;
        let place = label.condition.as_ref().map_or(label.table.span().start, |condition| condition.span().start);
        asked.map_err(|error| match error {
            holdfast_engine::EngineError::Query { message } => self.mistake(place, format!("[label] where: {message}")),
            error => error.into(),
        })
    }

    pub(crate) fn schema<'a>(&self, past: &'a Past, stage: &Spanned<TableName>) -> Result<&'a SchemaRef, CliError> {
        let message = || format!("no stage is called `{}`", stage.get_ref());
        past.schema(stage.get_ref()).ok_or_else(|| self.mistake(stage.span().start, message()))
    }

    fn column(
        &self,
        past: &Past,
        stage: &TableName,
        name: &Spanned<String>,
        fits: impl Fn(&DataType) -> bool,
        wanted: &str,
    ) -> Result<(), CliError> {
        let Some(schema) = past.schema(stage) else { return Ok(()) };
        match schema.field_with_name(name.get_ref()) {
            Ok(field) if fits(field.data_type()) => Ok(()),
            Ok(field) => {
                let message = format!("`{}` of {stage} is {}, not {wanted}", name.get_ref(), field.data_type());
                Err(self.mistake(name.span().start, message))
            }
            Err(_) => {
                let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
                let message = format!("{stage} has no column `{}`{}", name.get_ref(), nearest(name.get_ref(), &names));
                Err(self.mistake(name.span().start, message))
            }
        }
    }
}

/// What a model's library says of a parameter, where the file's section `[training]` sets it.
pub(crate) fn of_parameter(path: &Path, text: &str, section: Range<usize>, error: ModelError) -> CliError {
    let ModelError::Parameter { name, .. } = &error else { return CliError::Model(error) };
    let body = text.get(section.start..).unwrap_or_default();
    let place = body.match_indices(*name).map(|(place, _)| place).find(|place| {
        let before = body[..*place].rsplit('\n').next().unwrap_or_default();
        before.trim().is_empty()
    });
    located(path, text, section.start + place.unwrap_or(0), format!("[training] {error}"))
}

pub(crate) fn is_time(kind: &DataType) -> bool {
    matches!(kind, DataType::Timestamp(_, _))
}

pub(crate) fn is_number(kind: &DataType) -> bool {
    kind.is_numeric() || matches!(kind, DataType::Boolean)
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// The names of the files of models, of all kinds, sorted.
fn files(project: &Project) -> Result<Vec<String>, CliError> {
    let entries = std::fs::read_dir(project.model_folder()?).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".toml")?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// `: did you mean …?`, where something is near.
pub(crate) fn nearest(given: &str, known: &[String]) -> String {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    holdfast_lake::grammar::suggest(given, &known).map_or_else(String::new, |name| format!(": did you mean `{name}`?"))
}

impl Project {
    /// The folder of the pipeline's models, which need not be there.
    pub(crate) fn model_folder(&self) -> Result<PathBuf, CliError> {
        Ok(self.pipeline_folder()?.join("models"))
    }
}
