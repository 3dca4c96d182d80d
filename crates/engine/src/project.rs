use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use datafusion::catalog::TableProvider;
use datafusion::common::DFSchema;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::prelude::SessionContext;
use holdfast_lake::{Lake, delta_compatible};
use holdfast_types::{COMMENT_KEY, CUSTOMER_BUCKET, CUSTOMER_ID, TableName};

use crate::Result;
use crate::contract::Contract;
use crate::diagnostic::{Diagnostic, Diagnostics, most_similar};
use crate::error::{EngineError, describe};
use crate::expectation;
use crate::session::{SessionSettings, plan_as_of, session_with};
use crate::stage::Stage;

/// A contract's file is the stage's with this in the place of `sql`.
const CONTRACT_EXTENSION: &str = "contract.toml";

/// A table that stages may read and that no stage makes: a source's `raw` table, an identity table.
#[derive(Debug, Clone)]
pub struct DeclaredTable {
    /// Its name.
    pub name: TableName,
    /// Its columns.
    pub schema: SchemaRef,
    /// The types of identifiers that its rows bring: what contracts of the tables made from it have to name.
    pub identifiers: Vec<String>,
}

/// The stages of a folder, `<schema>/<table>.sql`, in an order in which each comes after its inputs.
#[derive(Debug, Clone)]
pub struct Project {
    root: PathBuf,
    stages: Vec<Stage>,
    declared: BTreeMap<TableName, SchemaRef>,
    identifiers: BTreeMap<TableName, Vec<String>>,
}

/// A stage whose query was planned against the columns of its inputs.
#[derive(Debug, Clone)]
pub struct CheckedStage {
    /// The stage.
    pub stage: Stage,
    /// The columns of its table, as the lake will hold them: `customer_bucket` last where rows belong to customers.
    pub schema: SchemaRef,
}

/// Which stages a command is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Selection {
    /// All of them.
    #[default]
    All,
    /// Those that match one of the patterns: `name`, `schema.*`, `+name` (with what it reads), `name+` (with what reads it).
    Patterns(Vec<String>),
}

impl Project {
    /// Reads all stages below `root`. `declared` are the tables they may read besides each other's.
    ///
    /// # Errors
    /// [`EngineError::Mistakes`] with every mistake that can be seen without planning: syntax, directives, unknown tables, cycles.
    pub fn load(root: &Path, declared: Vec<DeclaredTable>) -> Result<Self> {
        let identifiers =
            declared.iter().map(|table| (table.name.clone(), table.identifiers.clone())).collect::<BTreeMap<_, _>>();
        let declared: BTreeMap<_, _> = declared.into_iter().map(|table| (table.name, table.schema)).collect();
        let mut mistakes = Vec::new();
        let mut stages = BTreeMap::new();
        for (name, file) in stage_files(root, &mut mistakes)? {
            let text = std::fs::read_to_string(&file)
                .map_err(|source| EngineError::Unreadable { path: file.clone(), source })?;
            let contract = read_contract(&file, &mut mistakes)?;
            match Stage::parse(name.clone(), &file, text) {
                Ok(mut stage) => {
                    if let Some(contract) = contract {
                        mistakes.extend(stage.adopt(contract));
                    }
                    stages.insert(name, stage);
                }
                Err(found) => mistakes.extend(found),
            }
        }
        let known: BTreeSet<&TableName> = stages.keys().chain(declared.keys()).collect();
        for stage in stages.values() {
            for (input, &(line, column, width)) in &stage.inputs {
                if known.contains(input) {
                    continue;
                }
                let names: Vec<String> = known.iter().map(ToString::to_string).collect();
                let mistake = Diagnostic::at(
                    "E0203",
                    format!("table `{input}` not found"),
                    &stage.file,
                    &stage.text,
                    line,
                    column,
                    width,
                );
                mistakes.push(match most_similar(&input.to_string(), names.iter().map(String::as_str)) {
                    Some(name) => mistake.with_help(format!("did you mean `{name}`?")),
                    None => mistake.with_help(format!(
                        "add the stage {}/{}.sql, or a source of that name",
                        input.schema(),
                        input.table()
                    )),
                });
            }
        }
        if !mistakes.is_empty() {
            return Err(EngineError::Mistakes(Diagnostics(mistakes)));
        }
        let stages = in_order(stages)?;
        Ok(Self { root: root.to_owned(), stages, declared, identifiers })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The stages, inputs first.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The tables that stages may read and that none of them makes.
    pub fn declared(&self) -> &BTreeMap<TableName, SchemaRef> {
        &self.declared
    }

    /// The stages that `selection` means, inputs first.
    ///
    /// # Errors
    /// [`EngineError::NoStage`] when a pattern matches nothing.
    pub fn select(&self, selection: &Selection) -> Result<BTreeSet<TableName>> {
        let Selection::Patterns(patterns) = selection else {
            return Ok(self.stages.iter().map(|stage| stage.name.clone()).collect());
        };
        let mut selected = BTreeSet::new();
        for pattern in patterns {
            let upstream = pattern.starts_with('+');
            let downstream = pattern.ends_with('+');
            let core = pattern.trim_start_matches('+').trim_end_matches('+');
            let matched: Vec<TableName> = self
                .stages
                .iter()
                .filter(|stage| match core.strip_suffix(".*") {
                    Some(schema) => stage.name.schema() == schema,
                    None => stage.name.to_string() == core,
                })
                .map(|stage| stage.name.clone())
                .collect();
            if matched.is_empty() {
                let names: Vec<String> = self.stages.iter().map(|stage| stage.name.to_string()).collect();
                let hint = most_similar(core, names.iter().map(String::as_str))
                    .map_or_else(String::new, |name| format!(": did you mean `{name}`?"));
                return Err(EngineError::NoStage { name: core.to_owned(), hint });
            }
            for name in matched {
                if upstream {
                    self.reach(&name, &mut selected, |name| {
                        self.stage(name).map(|stage| stage.inputs.keys().cloned().collect()).unwrap_or_default()
                    });
                }
                if downstream {
                    self.reach(&name, &mut selected, |name| {
                        let readers = self.stages.iter().filter(|stage| stage.inputs.contains_key(name));
                        readers.map(|stage| stage.name.clone()).collect()
                    });
                }
                selected.insert(name);
            }
        }
        Ok(selected)
    }

    /// Adds the stages that can be reached from `name` over any number of steps.
    fn reach(&self, name: &TableName, selected: &mut BTreeSet<TableName>, next: impl Fn(&TableName) -> Vec<TableName>) {
        let mut open = vec![name.clone()];
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            if self.stage(&name).is_some() && seen.insert(name.clone()) {
                open.extend(next(&name));
            }
        }
        selected.extend(seen);
    }

    fn stage(&self, name: &TableName) -> Option<&Stage> {
        self.stages.iter().find(|stage| &stage.name == name)
    }

    /// Plans every stage against the columns of its inputs, without touching data.
    ///
    /// # Errors
    /// [`EngineError::Mistakes`] with the first mistake of every stage: unknown columns, wrong types, conditions of expectations that
    /// do not fit. A stage behind a wrong one is not judged.
    pub async fn check(
        &self,
        lake: &Lake,
        settings: &SessionSettings,
        as_of: DateTime<Utc>,
    ) -> Result<Vec<CheckedStage>> {
        let runtime = settings.runtime(lake)?;
        let mut known: BTreeMap<TableName, SchemaRef> = self.declared.clone();
        let mut checked = Vec::with_capacity(self.stages.len());
        let mut mistakes = Vec::new();
        for stage in &self.stages {
            if stage.inputs.keys().any(|input| !known.contains_key(input)) {
                continue;
            }
            let tables = stage.inputs.keys().filter_map(|input| {
                let schema = known.get(input)?;
                Some((input.clone(), Arc::new(EmptyTable::new(Arc::clone(schema))) as Arc<dyn TableProvider>))
            });
            let context = session_with(settings, &runtime, lake.settings().customer_buckets, tables)?;
            match self.check_stage(stage, &context, as_of).await {
                Ok(schema) => {
                    known.insert(stage.name.clone(), Arc::clone(&schema));
                    checked.push(CheckedStage { stage: stage.clone(), schema });
                }
                Err(found) => mistakes.extend(found),
            }
        }
        if mistakes.is_empty() { Ok(checked) } else { Err(EngineError::Mistakes(Diagnostics(mistakes))) }
    }

    async fn check_stage(
        &self,
        stage: &Stage,
        context: &SessionContext,
        as_of: DateTime<Utc>,
    ) -> Result<SchemaRef, Vec<Diagnostic>> {
        let (state, plan) = plan_as_of(context, stage.statement.clone(), as_of)
            .await
            .map_err(|error| vec![plan_mistake(stage, &error)])?;
        // Planning alone does not coerce types; a wrong argument shows only here.
        let plan = state.optimize(&plan).map_err(|error| vec![plan_mistake(stage, &error)])?;
        let schema = output_schema(stage, plan.schema()).map_err(|mistake| vec![*mistake])?;
        // Before the expectations, which the contract's columns have a part in.
        let mistakes = self.check_contract(stage, &schema);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        check_directives(stage, &schema, &state).map_err(|mistake| vec![*mistake])?;
        Ok(schema)
    }

    /// Whether the stage gives what its contract says.
    fn check_contract(&self, stage: &Stage, schema: &Schema) -> Vec<Diagnostic> {
        let Some(contract) = &stage.contract else { return Vec::new() };
        let made: Fields = schema.fields().iter().filter(|field| field.name() != CUSTOMER_BUCKET).cloned().collect();
        let mut mistakes = contract.differences(&Schema::new(made));
        let mut brought: Vec<String> = Vec::new();
        for name in stage.inputs.keys().filter_map(|input| self.identifiers.get(input)).flatten() {
            // A table that belongs to nobody may read who bought what, and brings nobody.
            if contract.column(CUSTOMER_ID).is_some() && !brought.contains(name) {
                brought.push(name.clone());
            }
        }
        mistakes.extend(contract.check_identifiers(&brought));
        mistakes
    }
}

/// The contract beside a stage, if there is one.
fn read_contract(stage: &Path, mistakes: &mut Vec<Diagnostic>) -> Result<Option<Contract>> {
    let file = stage.with_extension(CONTRACT_EXTENSION);
    if !file.exists() {
        return Ok(None);
    }
    let text =
        std::fs::read_to_string(&file).map_err(|source| EngineError::Unreadable { path: file.clone(), source })?;
    match Contract::parse(&file, &text) {
        Ok(contract) => Ok(Some(contract)),
        Err(found) => {
            mistakes.extend(found);
            Ok(None)
        }
    }
}

/// Whether what the directives (and the contract) ask of the columns can be asked of these.
fn check_directives(stage: &Stage, schema: &SchemaRef, state: &SessionState) -> Result<(), Box<Diagnostic>> {
    for expectation in &stage.directives.expectations {
        expectation::check(expectation, schema, state).map_err(|message| {
            let (line, column) = expectation.place;
            let width = expectation.condition.chars().count();
            Box::new(Diagnostic::at("E0301", message, &stage.file, &stage.text, line, column, width))
        })?;
    }
    for (tag, columns) in &stage.directives.tags {
        for column in columns {
            if schema.field_with_name(column).is_err() {
                let mistake = Diagnostic::of_file(
                    "E0104",
                    format!("@tag {tag} names `{column}`, which is no column"),
                    &stage.file,
                )
                .with_suggestion(column, schema.fields().iter().map(|field| field.name().as_str()));
                return Err(Box::new(mistake));
            }
        }
    }
    Ok(())
}

/// The columns of a stage's table: types that Delta knows, comments and tags as metadata, the bucket last.
fn output_schema(stage: &Stage, planned: &DFSchema) -> Result<SchemaRef, Box<Diagnostic>> {
    let mut names = BTreeSet::new();
    let mut fields = Vec::with_capacity(planned.fields().len() + 1);
    for field in planned.fields() {
        let problem = |code, message: String| Box::new(Diagnostic::of_file(code, message, &stage.file));
        if field.name() == CUSTOMER_BUCKET {
            return Err(Box::new(
                Diagnostic::of_file("E0206", format!("column `{CUSTOMER_BUCKET}` is reserved"), &stage.file)
                    .with_help("name the columns you want: the bucket is added when the table is written"),
            ));
        }
        if !names.insert(field.name().to_lowercase()) {
            return Err(problem("E0207", format!("column `{}` is there twice", field.name())));
        }
        let data_type = delta_compatible(field.data_type())
            .map_err(|reason| problem("E0205", format!("column `{}` has type {reason}", field.name())))?;
        let mut metadata = field.metadata().clone();
        if let Some(comment) = stage.column_comments.get(field.name()) {
            metadata.insert(COMMENT_KEY.to_owned(), comment.clone());
        }
        for (tag, _) in stage.directives.tags.iter().filter(|(_, columns)| columns.contains(field.name())) {
            metadata.insert(tag.clone(), "true".to_owned());
        }
        fields.push(Arc::new(Field::new(field.name(), data_type, true).with_metadata(metadata)));
    }
    if names.contains(CUSTOMER_ID) {
        fields.push(Arc::new(Field::new(CUSTOMER_BUCKET, DataType::Int32, true)));
    }
    Ok(Arc::new(Schema::new(fields.into_iter().collect::<Fields>())))
}

/// What the planner says, at the place it means.
fn plan_mistake(stage: &Stage, error: &DataFusionError) -> Diagnostic {
    let error = match error {
        DataFusionError::Collection(errors) => errors.first().unwrap_or(error),
        other => other,
    };
    let code = "E0205";
    let at = |line: usize, column: usize, width: usize, message: String| {
        Diagnostic::at(code, message, &stage.file, &stage.text, line, column, width)
    };
    if let Some(diagnostic) = error.diagnostic() {
        let helps: Vec<&str> = diagnostic.helps.iter().map(|help| help.message.as_str()).collect();
        let notes: Vec<&str> = diagnostic.notes.iter().map(|note| note.message.as_str()).collect();
        let mut mistake = match diagnostic.span {
            Some(span) => {
                let (line, column) = (to_usize(span.start.line), to_usize(span.start.column));
                let width =
                    if span.end.line == span.start.line { to_usize(span.end.column).saturating_sub(column) } else { 1 };
                at(line, column, width, diagnostic.message.clone())
            }
            None => Diagnostic::of_file(code, diagnostic.message.clone(), &stage.file),
        };
        if let DataFusionError::SchemaError(inner, _) = error.find_root()
            && let datafusion::common::SchemaError::FieldNotFound { field, valid_fields } = inner.as_ref()
        {
            mistake = mistake.with_suggestion(&field.name, valid_fields.iter().map(|column| column.name.as_str()));
        }
        if mistake.help.is_none()
            && let Some(hint) = helps.first().or_else(|| notes.first())
        {
            mistake = mistake.with_help(*hint);
        }
        return mistake;
    }
    let message = describe(error);
    // Unknown functions and the like carry no span; find the name they quote.
    let quoted = message.split('\'').nth(1).unwrap_or_default();
    if !quoted.is_empty()
        && let Some(offset) = stage.text.find(quoted)
    {
        let (line, column) = crate::diagnostic::line_and_column(&stage.text, offset);
        return at(line, column, quoted.chars().count(), message);
    }
    Diagnostic::of_file(code, message, &stage.file)
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn stage_files(root: &Path, mistakes: &mut Vec<Diagnostic>) -> Result<Vec<(TableName, PathBuf)>> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| EngineError::Unreadable { path, source }
    };
    let mut found = Vec::new();
    for schema in std::fs::read_dir(root).map_err(unreadable(root))? {
        let folder = schema.map_err(unreadable(root))?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(&folder).map_err(unreadable(&folder))? {
            let file = file.map_err(unreadable(&folder))?.path();
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(stem) = name.strip_suffix(CONTRACT_EXTENSION).and_then(|stem| stem.strip_suffix('.')) {
                let stage = folder.join(format!("{stem}.sql"));
                if !stage.exists() {
                    let mistake = Diagnostic::of_file("E0501", "a contract for which there is no stage", &file);
                    mistakes.push(mistake.with_help(format!("it is about the table of {}", stage.display())));
                }
            }
            if file.extension().and_then(|extension| extension.to_str()) != Some("sql") {
                continue;
            }
            let part = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            match TableName::new(&part(&folder), part(&file).trim_end_matches(".sql")) {
                Ok(name) => found.push((name, file)),
                Err(error) => mistakes.push(Diagnostic::of_file("E0200", error.to_string(), &file)),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The stages with inputs first; equal ranks by name, so that the order is the same every time.
fn in_order(mut stages: BTreeMap<TableName, Stage>) -> Result<Vec<Stage>> {
    let mut ordered: Vec<Stage> = Vec::with_capacity(stages.len());
    while !stages.is_empty() {
        let ready: Vec<TableName> = stages
            .values()
            .filter(|stage| stage.inputs.keys().all(|input| !stages.contains_key(input)))
            .map(|stage| stage.name.clone())
            .collect();
        if ready.is_empty() {
            return Err(EngineError::Mistakes(Diagnostics(vec![cycle(&stages)])));
        }
        for name in ready {
            ordered.extend(stages.remove(&name));
        }
    }
    Ok(ordered)
}

fn cycle(stages: &BTreeMap<TableName, Stage>) -> Diagnostic {
    let mut path: Vec<&Stage> = Vec::new();
    let mut current = stages.values().next();
    while let Some(stage) = current {
        if let Some(start) = path.iter().position(|seen| seen.name == stage.name) {
            path.drain(..start);
            break;
        }
        path.push(stage);
        current = stage.inputs.keys().find_map(|input| stages.get(input));
    }
    let names: Vec<String> = path.iter().chain(path.first()).map(|stage| stage.name.to_string()).collect();
    let message = format!("stages read each other in a circle: {}", names.join(" reads "));
    match path.first().map(|stage| (stage, path.get(1).unwrap_or(stage))) {
        Some((stage, next)) => match stage.inputs.get(&next.name) {
            Some(&(line, column, width)) => {
                Diagnostic::at("E0209", message, &stage.file, &stage.text, line, column, width)
                    .with_help("take one of these out, or split a stage in two")
            }
            None => Diagnostic::of_file("E0209", message, &stage.file),
        },
        None => Diagnostic::of_file("E0209", message, PathBuf::new()),
    }
}
