//! What `[sequence]` in a model's file says: which stage tells what customers did, step by step, and how the network learns from it.

use holdfast_engine::Past;
use holdfast_models::hybrid::SEQUENCE_FEATURE;
use holdfast_models::sequence::SequenceParameters;
use holdfast_types::{CUSTOMER_BUCKET, CUSTOMER_ID, TableName};
use serde::Deserialize;
use toml::Spanned;

use super::history::Steps;
use crate::error::CliError;
use crate::models::spec::{EVENT_TIMESTAMP, Spec, is_number, is_time, nearest, of_parameter, unsaid};

/// What customers did, step by step.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SequenceSection {
    /// A stage with one row a customer and step in which something happened; its numbers are the channels.
    pub(crate) stage: Spanned<TableName>,
    /// Its column with how many steps ago that was: 0 is the step that ends at the moment.
    #[serde(default = "usual_ago")]
    pub(crate) ago: Spanned<String>,
    /// Columns that are no channels; the customer and the event timestamp never are.
    #[serde(default)]
    pub(crate) exclude: Vec<Spanned<String>>,
    /// Steps that are looked at, the newest ones.
    #[serde(default = "usual_steps")]
    pub(crate) steps: Spanned<usize>,
    /// Rows are scored by networks that have learnt from other customers, who are dealt to so many folds.
    #[serde(default = "usual_folds")]
    pub(crate) folds: Spanned<usize>,
    #[serde(default = "unsaid")]
    pub(crate) training: Spanned<SequenceParameters>,
}

fn usual_ago() -> Spanned<String> {
    Spanned::new(0..0, "weeks_ago".to_owned())
}

fn usual_steps() -> Spanned<usize> {
    Spanned::new(0..0, 52)
}

fn usual_folds() -> Spanned<usize> {
    Spanned::new(0..0, 3)
}

/// Changes with the queries of all of these stages.
pub(crate) fn fingerprint(past: &Past, stages: &[TableName]) -> String {
    stages.iter().map(|stage| past.fingerprint(stage)).collect::<Vec<_>>().join("+")
}

impl SequenceSection {
    /// Refuses what needs no stage to be known for wrong.
    pub(crate) fn check(&self, spec: &Spec) -> Result<(), CliError> {
        if !(2..=520).contains(self.steps.get_ref()) {
            return Err(spec.mistake(self.steps.span().start, "[sequence] `steps` must be from 2 to 520"));
        }
        if !(2..=20).contains(self.folds.get_ref()) {
            return Err(spec.mistake(self.folds.span().start, "[sequence] `folds` must be from 2 to 20"));
        }
        let checked = self.training.get_ref().check();
        checked.map_err(|error| of_parameter(&spec.path, &spec.text, self.training.span(), error))
    }
}

impl Spec {
    /// The steps that the model is told of, their channels in the order of the stage; nothing without `[sequence]`.
    ///
    /// # Errors
    /// A stage that has not what it takes, with its line.
    pub(crate) fn steps(&self, past: &Past) -> Result<Option<Steps>, CliError> {
        let Some(section) = &self.file.sequence else { return Ok(None) };
        let stage = section.stage.get_ref();
        let place = section.stage.span().start;
        let told = |message: String| self.mistake(place, message);
        self.check_customer(past, &section.stage)?;
        let schema = self.schema(past, &section.stage)?;
        let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        if !schema.field_with_name(EVENT_TIMESTAMP).is_ok_and(|field| is_time(field.data_type())) {
            return Err(told(format!(
                "{stage} has no timestamp `{EVENT_TIMESTAMP}`, which says at what moment its steps were counted: add `now() as {EVENT_TIMESTAMP}`"
            )));
        }
        let ago = section.ago.get_ref();
        match schema.field_with_name(ago) {
            Ok(field) if field.data_type().is_integer() => {}
            Ok(field) => {
                return Err(told(format!("`{ago}` of {stage} is {}, and not a whole number", field.data_type())));
            }
            Err(_) => {
                return Err(told(format!(
                    "{stage} has no column `{ago}`{}: it says how many steps ago something happened, 0 for the last; name another with `ago`",
                    nearest(ago, &names)
                )));
            }
        }
        for name in &section.exclude {
            if !names.contains(name.get_ref()) {
                let message = format!("{stage} has no column `{}`{}", name.get_ref(), nearest(name.get_ref(), &names));
                return Err(self.mistake(name.span().start, message));
            }
        }
        let is_excluded = |name: &str| section.exclude.iter().any(|excluded| excluded.get_ref() == name);
        let mut channels = Vec::new();
        for field in schema.fields() {
            let name = field.name().as_str();
            if [CUSTOMER_ID, CUSTOMER_BUCKET, EVENT_TIMESTAMP, ago].contains(&name) || is_excluded(name) {
                continue;
            }
            if !is_number(field.data_type()) {
                let kind = field.data_type();
                return Err(told(format!("`{name}` of {stage} is {kind}; channels are numbers: name it in `exclude`")));
            }
            channels.push(name.to_owned());
        }
        if channels.is_empty() {
            return Err(told(format!("{stage} has no column that is a channel")));
        }
        if let Some(model) = past.asked_by(stage).first() {
            return Err(told(format!(
                "{stage} rests on what the champion of `{model}` says, who has learnt from days after the moments that teach: take it into a stage of its own"
            )));
        }
        Ok(Some(Steps::new(section, channels)))
    }

    /// The stages that the model reads: features, and steps where it has sequences.
    pub(crate) fn stages(&self) -> Vec<TableName> {
        let steps = self.file.sequence.as_ref().map(|section| section.stage.get_ref().clone());
        [self.stage().clone()].into_iter().chain(steps).collect()
    }

    /// Whether reasons may speak of a name that is no column of the stage of features.
    pub(crate) fn is_of_sequence(&self, name: &str) -> bool {
        self.file.sequence.is_some() && name == SEQUENCE_FEATURE
    }
}
