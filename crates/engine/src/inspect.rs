//! A look at a whole project: every stage planned against the columns of its inputs, every mistake and warning, and what the plans
//! show. Touches no data and needs no lake.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use datafusion::common::DFSchema;
use datafusion::datasource::empty::EmptyTable;
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use futures::executor::block_on;
use holdfast_lake::delta_compatible;
use holdfast_types::{COMMENT_KEY, CUSTOMER_BUCKET, CUSTOMER_ID, TableName};

use crate::Result;
use crate::diagnostic::{Diagnostic, Diagnostics, most_similar};
use crate::directive::StageKind;
use crate::error::EngineError;
use crate::lineage::Lineage;
use crate::lint;
use crate::project::{Draft, Project};
use crate::session::{SessionSettings, add_table, session_with};
use crate::side_by_side::side_by_side;
use crate::stage::Stage;
use crate::unique::{self, TableKeys};
use crate::{cases, expectation, features, planning};

/// What a look at a project found.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// The stages that can be planned, inputs first.
    pub stages: Vec<InspectedStage>,
    /// Mistakes and warnings, by file and place.
    pub findings: Vec<Diagnostic>,
}

/// A stage, and what its plan shows.
#[derive(Debug, Clone)]
pub struct InspectedStage {
    /// The stage.
    pub stage: Stage,
    /// The columns of its table, as the lake will hold them: `customer_bucket` last where rows belong to customers.
    pub schema: SchemaRef,
    /// The columns that tell its rows apart: the contract's, the declared, or those that the plan shows.
    pub key: Option<Vec<String>>,
    /// What its columns and rows come from.
    pub lineage: Lineage,
    /// Changes with the plan, and with nothing else.
    pub plan: String,
}

impl Inspection {
    /// How many findings are mistakes; the others are warnings.
    pub fn mistakes(&self) -> usize {
        self.findings.iter().filter(|finding| !finding.is_warning()).count()
    }

    /// One stage.
    pub fn stage(&self, name: &TableName) -> Option<&InspectedStage> {
        self.stages.iter().find(|stage| &stage.stage.name == name)
    }

    /// What each table comes from.
    pub fn lineages(&self) -> BTreeMap<TableName, &Lineage> {
        self.stages.iter().map(|stage| (stage.stage.name.clone(), &stage.lineage)).collect()
    }

    /// The inspection, when there is no mistake in it.
    ///
    /// # Errors
    /// [`EngineError::Mistakes`] with all of them.
    pub fn without_mistakes(self) -> Result<Self> {
        let mistakes: Vec<Diagnostic> = self.findings.iter().filter(|finding| !finding.is_warning()).cloned().collect();
        if mistakes.is_empty() { Ok(self) } else { Err(EngineError::Mistakes(Diagnostics(mistakes))) }
    }
}

impl Draft {
    /// Looks at every stage, without touching data, and at the files beside it. Says every mistake of every stage; a stage behind one
    /// that cannot be planned is not judged.
    ///
    /// # Errors
    /// Files that cannot be read. Mistakes are in the answer.
    pub fn inspect(&self, settings: &SessionSettings, as_of: DateTime<Utc>) -> Result<Inspection> {
        let mut inspection = self.project.inspect(settings, as_of)?;
        let schemas: BTreeMap<TableName, SchemaRef> = self
            .project
            .declared()
            .iter()
            .map(|(name, schema)| (name.clone(), Arc::clone(schema)))
            .chain(inspection.stages.iter().map(|stage| (stage.stage.name.clone(), Arc::clone(&stage.schema))))
            .collect();
        for stage in &inspection.stages {
            inspection.findings.extend(cases::mistakes(&stage.stage, &stage.schema, &schemas)?);
        }
        // Of a folder with a stage that cannot be planned, nobody knows which columns it has.
        if inspection.stages.len() == self.project.stages().len() {
            inspection.findings.extend(idle_default_tags(&inspection.stages));
        }
        inspection.findings.extend(self.mistakes.iter().cloned());
        inspection.findings.sort_by_key(Diagnostic::order);
        inspection.findings.dedup();
        Ok(inspection)
    }
}

impl Project {
    /// Plans every stage against the columns of its inputs and judges what the plans show.
    pub(crate) fn inspect(&self, settings: &SessionSettings, as_of: DateTime<Utc>) -> Result<Inspection> {
        // One session for all: a session of its own for each stage would take longer than planning it.
        let context = session_with(settings, &Arc::new(RuntimeEnv::default()), 1, [])?;
        for (name, schema) in self.declared() {
            add_table(&context, name, Arc::new(EmptyTable::new(Arc::clone(schema))))?;
        }
        let mut known: BTreeSet<&TableName> = self.declared().keys().collect();
        let mut inspection = Inspection::default();
        let mut keys = KnownKeys::default();
        let mut waiting: Vec<&Stage> = self.stages().iter().collect();
        // Round by round, all stages whose inputs are known: they have nothing to do with each other.
        loop {
            let is_ready = |stage: &&Stage| stage.inputs.keys().all(|input| known.contains(input));
            let (ready, rest): (Vec<&Stage>, Vec<&Stage>) = waiting.into_iter().partition(is_ready);
            if ready.is_empty() {
                let findings =
                    features::check_project(self.stages(), &inspection, self.service_file(), self.on_demand_file());
                inspection.findings.extend(findings);
                return Ok(inspection);
            }
            let look = |stage: &&Stage| {
                let mut state = context.state();
                state.execution_props_mut().query_execution_start_time = Some(as_of);
                block_on(self.inspect_stage(stage, &state, &keys, &inspection))
            };
            let answers = side_by_side(&ready, look);
            for (stage, (inspected, findings)) in ready.into_iter().zip(answers) {
                inspection.findings.extend(findings);
                if let Some((inspected, unique)) = inspected {
                    add_table(&context, &stage.name, Arc::new(EmptyTable::new(Arc::clone(&inspected.schema))))?;
                    known.insert(&stage.name);
                    keys.0.insert(stage.name.clone(), unique);
                    inspection.stages.push(inspected);
                }
            }
            waiting = rest;
        }
    }

    /// The stage with its keys, when it can be planned and keeps its contract; and all that is to say about it.
    async fn inspect_stage(
        &self,
        stage: &Stage,
        state: &SessionState,
        known: &KnownKeys,
        before: &Inspection,
    ) -> Answer {
        let plan = match planning::plan(stage, state).await {
            Ok(plan) => plan,
            Err(mistakes) => return (None, mistakes),
        };
        let schema = match output_schema(stage, plan.schema()) {
            Ok(schema) => schema,
            Err(mistakes) => return (None, mistakes),
        };
        // Before the expectations, which the contract's columns have a part in.
        let mistakes = self.check_contract(stage, &schema);
        if !mistakes.is_empty() {
            return (None, mistakes);
        }
        let unique: Vec<Vec<String>> = unique::keys(&plan, known)
            .into_iter()
            .map(|key| key.into_iter().map(|index| plan.schema().field(index).name().clone()).collect())
            .collect();
        let declared = match (&stage.contract, &stage.directives.kind) {
            (Some(contract), _) => Some(contract.key.clone()),
            (None, StageKind::Incremental { key, .. }) => Some(key.clone()),
            (None, StageKind::Full | StageKind::Append) => None,
        };
        let inspected = InspectedStage {
            stage: stage.clone(),
            key: declared.clone().or_else(|| unique.first().cloned()),
            lineage: Lineage::of(&plan),
            plan: plan_hash(&plan),
            schema: Arc::clone(&schema),
        };
        let mut findings = check_directives(stage, &schema, state);
        findings.extend(lint::lint(&lint::Subject {
            inspected: &inspected,
            plan: &plan,
            known,
            before,
            recycled: self.recycled(),
        }));
        let mut unique = unique;
        findings.extend(features::check_view(stage, &schema, &unique));
        // What a contract says of its key is checked when the table is made.
        unique.extend(stage.contract.as_ref().map(|contract| contract.key.clone()));
        (Some((inspected, unique)), findings)
    }

    /// Whether the stage gives what its contract says.
    fn check_contract(&self, stage: &Stage, schema: &Schema) -> Vec<Diagnostic> {
        let Some(contract) = &stage.contract else { return Vec::new() };
        let made: Fields = schema.fields().iter().filter(|field| field.name() != CUSTOMER_BUCKET).cloned().collect();
        let mut mistakes = contract.differences(&Schema::new(made));
        let mut brought: Vec<String> = Vec::new();
        for name in stage.inputs.keys().filter_map(|input| self.identifiers(input)).flatten() {
            // A table that belongs to nobody may read who bought what, and brings nobody.
            if contract.column(CUSTOMER_ID).is_some() && !brought.contains(name) {
                brought.push(name.clone());
            }
        }
        mistakes.extend(contract.check_identifiers(&brought));
        mistakes
    }
}

/// The stage with its keys, when it can be planned; and all that is to say about it.
type Answer = (Option<(InspectedStage, Vec<Vec<String>>)>, Vec<Diagnostic>);

/// The keys of the tables that are known so far.
#[derive(Debug, Default)]
pub(crate) struct KnownKeys(BTreeMap<TableName, Vec<Vec<String>>>);

impl TableKeys for KnownKeys {
    fn keys(&self, table: &TableName) -> Vec<Vec<String>> {
        self.0.get(table).cloned().unwrap_or_default()
    }
}

fn plan_hash(plan: &LogicalPlan) -> String {
    let hash = blake3::hash(plan.display_indent().to_string().as_bytes());
    hash.to_hex().chars().take(16).collect()
}

/// Whether what the directives (and the contract) ask of the columns can be asked of these.
fn check_directives(stage: &Stage, schema: &SchemaRef, state: &SessionState) -> Vec<Diagnostic> {
    let mut mistakes = Vec::new();
    for expectation in &stage.directives.expectations {
        if let Err(message) = expectation::check(expectation, schema, state) {
            let (line, column) = expectation.place;
            let place = (line, column, expectation.condition.chars().count());
            mistakes.push(stage.mistake("E0301", message, place));
        }
    }
    let names = || schema.fields().iter().map(|field| field.name().as_str()).filter(|name| *name != CUSTOMER_BUCKET);
    for (tag, columns) in &stage.directives.tags {
        for column in columns.iter().filter(|column| schema.field_with_name(column).is_err()) {
            if !stage.directives.default_tags.contains(tag) {
                let message = format!("@tag {tag} names `{column}`, which is no column");
                let place = stage.place_in_directive("tag", column);
                mistakes.push(stage.mistake("E0104", message, place).with_suggestion(column, names()));
            }
        }
    }
    if let StageKind::Incremental { key, is_time, .. } = &stage.directives.kind {
        for column in key {
            let mistake = |code, message: String| match (&stage.defaults, stage.directives.kind_place) {
                (Some(defaults), None) => defaults.mistake(code, message, defaults.kind_place()),
                _ => stage.mistake(code, message, stage.place_in_directive("stage", column)),
            };
            match schema.field_with_name(column) {
                Ok(field) if is_float(field.data_type()) => {
                    let message = format!("the key `{column}` of {} is a floating point number", stage.name);
                    mistakes.push(mistake("E0107", message).with_help(FLOAT_KEY_HELP));
                }
                Ok(field) if *is_time && !is_moment(field.data_type()) => {
                    let message = format!("the time `{column}` of {} is of type {}", stage.name, field.data_type());
                    let help = "a day or a moment is expected: cast it to date, or write `key` in the place of `time`";
                    mistakes.push(mistake("E0110", message).with_help(help));
                }
                Ok(_) => {}
                Err(_) => {
                    let message = format!("the key names `{column}`, which is no column of {}", stage.name);
                    let mistake = mistake("E0106", message);
                    mistakes.push(match most_similar(column, names()) {
                        Some(near) => mistake.with_help(format!("did you mean `{near}`?")),
                        None => {
                            mistake.with_help(format!("its columns are {}", names().collect::<Vec<_>>().join(", ")))
                        }
                    });
                }
            }
        }
    }
    if let Some(contract) = &stage.contract {
        for column in contract.columns.iter().filter(|column| contract.key.contains(&column.name)) {
            if is_float(&column.data_type) {
                let message = format!("the key `{}` is a floating point number", column.name);
                mistakes.push(contract.at_type(column, "E0107", message).with_help(FLOAT_KEY_HELP));
            }
        }
    }
    mistakes
}

const FLOAT_KEY_HELP: &str = "equal values can differ in the last digit: cast it to decimal, or take another column";

fn is_moment(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Date32 | DataType::Timestamp(_, _))
}

pub(crate) fn is_float(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Float16 | DataType::Float32 | DataType::Float64)
}

/// Columns that a folder's defaults tag and that none of its stages has: a misspelt one would leave personal data untagged.
fn idle_default_tags(stages: &[InspectedStage]) -> Vec<Diagnostic> {
    let mut folders: BTreeMap<&str, Vec<&InspectedStage>> = BTreeMap::new();
    for stage in stages.iter().filter(|stage| stage.stage.defaults.is_some()) {
        folders.entry(stage.stage.name.schema()).or_default().push(stage);
    }
    let mut mistakes = Vec::new();
    for (schema, stages) in folders {
        let columns: BTreeSet<&str> =
            stages.iter().flat_map(|stage| stage.schema.fields().iter().map(|field| field.name().as_str())).collect();
        let Some(defaults) = stages.first().and_then(|stage| stage.stage.defaults.as_ref()) else { continue };
        for (name, place) in defaults.tags().iter().flat_map(|tag| &tag.columns) {
            if !columns.contains(name.as_str()) {
                let message = format!("no stage of {schema} has a column `{name}`");
                let mistake = defaults.mistake("E0109", message, *place);
                mistakes.push(mistake.with_suggestion(name, columns.iter().copied()));
            }
        }
    }
    mistakes
}

/// The columns of a stage's table: types that Delta knows, comments and tags as metadata, the bucket last.
fn output_schema(stage: &Stage, planned: &DFSchema) -> Result<SchemaRef, Vec<Diagnostic>> {
    let mut names = BTreeSet::new();
    let mut mistakes = Vec::new();
    let mut fields = Vec::with_capacity(planned.fields().len() + 1);
    for field in planned.fields() {
        let name = field.name();
        let problem = |code, message: String| stage.mistake(code, message, stage.place_of_output(name));
        if name == CUSTOMER_BUCKET {
            let mistake = problem("E0206", format!("column `{CUSTOMER_BUCKET}` is reserved"));
            mistakes
                .push(mistake.with_help("name the columns you want: the bucket is added when the table is written"));
            continue;
        }
        if !names.insert(name.to_lowercase()) {
            let mistake = problem("E0207", format!("column `{name}` is there twice"));
            mistakes.push(mistake.with_help("give one of the two another name: `… as other_name`"));
            continue;
        }
        let data_type = match delta_compatible(field.data_type()) {
            Ok(data_type) => data_type,
            Err(reason) => {
                mistakes.push(problem("E0205", format!("column `{name}` has type {reason}")));
                continue;
            }
        };
        let mut metadata = field.metadata().clone();
        if let Some(comment) = stage.column_comments.get(name) {
            metadata.insert(COMMENT_KEY.to_owned(), comment.clone());
        }
        for (tag, _) in stage.directives.tags.iter().filter(|(_, columns)| columns.contains(name)) {
            metadata.insert(tag.clone(), "true".to_owned());
        }
        fields.push(Arc::new(Field::new(name, data_type, true).with_metadata(metadata)));
    }
    if names.contains(CUSTOMER_ID) {
        fields.push(Arc::new(Field::new(CUSTOMER_BUCKET, DataType::Int32, true)));
    }
    if mistakes.is_empty() { Ok(Arc::new(Schema::new(fields.into_iter().collect::<Fields>()))) } else { Err(mistakes) }
}
