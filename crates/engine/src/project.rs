use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, Utc};
use holdfast_lake::Lake;
use holdfast_types::TableName;

use crate::Result;
use crate::contract::Contract;
use crate::defaults::Defaults;
use crate::diagnostic::{Diagnostic, Diagnostics, most_similar};
use crate::error::EngineError;
use crate::features::{HISTORY_SCHEMA, OnDemandFile, OnDemandSpec, ServiceFile, ServiceSpec};
use crate::lineage::Lineage;
use crate::row_functions::RowFunctions;
use crate::session::SessionSettings;
use crate::side_by_side::side_by_side;
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
    services: Option<ServiceFile>,
    on_demand: Option<OnDemandFile>,
    /// Types of identifiers that can change hands.
    recycled: BTreeSet<String>,
}

/// A stage whose query was planned against the columns of its inputs.
#[derive(Debug, Clone)]
pub struct CheckedStage {
    /// The stage.
    pub stage: Stage,
    /// The columns of its table, as the lake will hold them: `customer_bucket` last where rows belong to customers.
    pub schema: SchemaRef,
    /// The columns that tell its rows apart: the contract's, the declared, or those that the plan shows.
    pub key: Option<Vec<String>>,
    /// What its columns and rows come from.
    pub lineage: Lineage,
    /// Changes with everything that was looked at to check it.
    pub(crate) content: String,
}

/// Which stages a command is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Selection {
    /// All of them.
    #[default]
    All,
    /// Those that match one of the patterns: `name`, `schema.*`, `tag:name`; `+pattern` with all they read, `pattern+` with all that read them.
    Patterns(Vec<String>),
    /// Those of the selection that match none of the patterns.
    Without(Box<Selection>, Vec<String>),
}

/// A project as far as it can be read, and the mistakes that can be seen without planning.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The stages that have a query. What is in `mistakes` may be about them as well.
    pub(crate) project: Project,
    pub(crate) mistakes: Vec<Diagnostic>,
}

impl Draft {
    /// Reads all stages below `root`. `declared` are the tables they may read besides each other's.
    ///
    /// # Errors
    /// Folders and files that cannot be read.
    pub fn read(root: &Path, declared: Vec<DeclaredTable>) -> Result<Self> {
        let identifiers =
            declared.iter().map(|table| (table.name.clone(), table.identifiers.clone())).collect::<BTreeMap<_, _>>();
        let declared: BTreeMap<_, _> = declared.into_iter().map(|table| (table.name, table.schema)).collect();
        let mut mistakes = Vec::new();
        let mut stages = BTreeMap::new();
        let mut defaults: BTreeMap<PathBuf, Option<Arc<Defaults>>> = BTreeMap::new();
        let mut unread = BTreeSet::new();
        let files = stage_files(root, &mut mistakes)?;
        let read = side_by_side(&files, |(name, file)| match std::fs::read_to_string(file) {
            Ok(text) => Ok(Stage::read(name.clone(), file, text)),
            Err(source) => Err(EngineError::Unreadable { path: file.clone(), source }),
        });
        for ((name, file), read) in files.into_iter().zip(read) {
            let (stage, found) = read?;
            mistakes.extend(found);
            let contract = read_contract(&file, &mut mistakes)?;
            let Some(mut stage) = stage else {
                unread.insert(name);
                continue;
            };
            if let Some(contract) = contract {
                mistakes.extend(stage.adopt(contract));
            }
            let folder = file.parent().unwrap_or(root);
            let defaults = match defaults.get(folder) {
                Some(defaults) => defaults.clone(),
                None => {
                    let read = Defaults::of_folder(folder, &mut mistakes)?;
                    defaults.insert(folder.to_owned(), read.clone());
                    read
                }
            };
            if let Some(defaults) = defaults {
                defaults.fill(&mut stage);
            }
            if declared.contains_key(&name) || name.schema() == HISTORY_SCHEMA {
                let message = format!("`{name}` is a table that no stage makes");
                let mistake = Diagnostic::of_file("E0210", message, &stage.file);
                mistakes.push(
                    mistake.with_help("it is written by ingestion, identity or as the history of a view: give the stage another folder or name"),
                );
                continue;
            }
            stages.insert(name, stage);
        }
        let known: BTreeSet<&TableName> = stages.keys().chain(declared.keys()).chain(&unread).collect();
        mistakes.extend(stages.values().flat_map(|stage| unknown_inputs(stage, &known)));
        let stages = in_order(stages, &mut mistakes);
        let project = Project {
            root: root.to_owned(),
            stages,
            declared,
            identifiers,
            services: None,
            on_demand: None,
            recycled: BTreeSet::new(),
        };
        Ok(Self { project, mistakes })
    }

    /// The same stages with the feature services of a file; without any where it is not there.
    ///
    /// # Errors
    /// When it cannot be read. Mistakes in it are among the draft's.
    pub fn with_services(mut self, file: &Path) -> Result<Self> {
        self.project.services = ServiceFile::read(file, &mut self.mistakes)?;
        Ok(self)
    }

    /// The same stages, to be judged as those of a lake where identifiers of these types can change hands, and then have a row for each owner.
    #[must_use]
    pub fn with_recycled(mut self, types: impl IntoIterator<Item = String>) -> Self {
        self.project.recycled = types.into_iter().collect();
        self
    }

    /// The same with the on-demand features of a file; without any where it is not there.
    ///
    /// # Errors
    /// When it cannot be read. Mistakes in it are among the draft's.
    pub fn with_on_demand(mut self, file: &Path) -> Result<Self> {
        self.project.on_demand = OnDemandFile::read(file, &mut self.mistakes)?;
        Ok(self)
    }

    /// The stages that could be read, inputs first.
    pub fn stages(&self) -> &[Stage] {
        &self.project.stages
    }

    /// The project, when nothing is wrong with it.
    ///
    /// # Errors
    /// [`EngineError::Mistakes`] with all of them.
    pub fn into_project(mut self) -> Result<Project> {
        self.mistakes.sort_by_key(Diagnostic::order);
        if self.mistakes.is_empty() { Ok(self.project) } else { Err(EngineError::Mistakes(Diagnostics(self.mistakes))) }
    }
}

fn unknown_inputs(stage: &Stage, known: &BTreeSet<&TableName>) -> Vec<Diagnostic> {
    let mut mistakes = Vec::new();
    for (input, place) in stage.inputs.iter().filter(|(input, _)| !known.contains(input)) {
        let names: Vec<String> = known.iter().map(ToString::to_string).collect();
        let mistake = stage.mistake("E0203", format!("table `{input}` not found"), *place);
        mistakes.push(match most_similar(&input.to_string(), names.iter().map(String::as_str)) {
            Some(name) => mistake.with_help(format!("did you mean `{name}`?")),
            None => mistake.with_help(format!(
                "add the stage {}/{}.sql, or a source of that name",
                input.schema(),
                input.table()
            )),
        });
    }
    mistakes
}

impl Project {
    /// Reads all stages below `root`. `declared` are the tables they may read besides each other's.
    ///
    /// # Errors
    /// [`EngineError::Mistakes`] with every mistake that can be seen without planning: syntax, directives, unknown tables, cycles.
    pub fn load(root: &Path, declared: Vec<DeclaredTable>) -> Result<Self> {
        Draft::read(root, declared)?.into_project()
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

    /// The feature services, in the order of their file.
    pub fn services(&self) -> &[ServiceSpec] {
        self.services.as_ref().map_or(&[], |file| file.services.as_slice())
    }

    /// The views of on-demand features, in the order of their file.
    pub fn on_demand(&self) -> &[OnDemandSpec] {
        self.on_demand.as_ref().map_or(&[], |file| file.views.as_slice())
    }

    pub(crate) fn on_demand_file(&self) -> Option<&OnDemandFile> {
        self.on_demand.as_ref()
    }

    pub(crate) fn service_file(&self) -> Option<&ServiceFile> {
        self.services.as_ref()
    }

    /// The stages that `selection` means, inputs first.
    ///
    /// # Errors
    /// [`EngineError::NoStage`], [`EngineError::NoTag`] when a pattern matches nothing.
    pub fn select(&self, selection: &Selection) -> Result<BTreeSet<TableName>> {
        match selection {
            Selection::All => Ok(self.stages.iter().map(|stage| stage.name.clone()).collect()),
            Selection::Patterns(patterns) => self.matching(patterns),
            Selection::Without(selection, patterns) => {
                let excluded = self.matching(patterns)?;
                Ok(self.select(selection)?.difference(&excluded).cloned().collect())
            }
        }
    }

    fn matching(&self, patterns: &[String]) -> Result<BTreeSet<TableName>> {
        let mut selected = BTreeSet::new();
        for pattern in patterns {
            let upstream = pattern.starts_with('+');
            let downstream = pattern.ends_with('+');
            let core = pattern.trim_start_matches('+').trim_end_matches('+');
            let is_meant = |stage: &&Stage| match (core.strip_prefix("tag:"), core.strip_suffix(".*")) {
                (Some(tag), _) => stage.has_tag(tag),
                (None, Some(schema)) => stage.name.schema() == schema,
                (None, None) => stage.name.to_string() == core,
            };
            let matched: Vec<TableName> = self.stages.iter().filter(is_meant).map(|stage| stage.name.clone()).collect();
            if matched.is_empty() {
                return Err(self.nothing_is_called(core));
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

    fn nothing_is_called(&self, pattern: &str) -> EngineError {
        if let Some(tag) = pattern.strip_prefix("tag:") {
            let tags = self.stages.iter().flat_map(|stage| &stage.directives.tags);
            let tags: BTreeSet<&str> = tags.map(|(tag, _)| tag.as_str()).collect();
            let hint = match (most_similar(tag, tags.iter().copied()), tags.is_empty()) {
                (Some(near), _) => format!("did you mean `tag:{near}`?"),
                (None, true) => "none has one: write `-- @tag NAME` into the stage's file".to_owned(),
                (None, false) => format!("the tags are {}", tags.into_iter().collect::<Vec<_>>().join(", ")),
            };
            return EngineError::NoTag { tag: tag.to_owned(), hint };
        }
        let names: Vec<String> = self.stages.iter().map(|stage| stage.name.to_string()).collect();
        let hint = most_similar(pattern, names.iter().map(String::as_str))
            .map_or_else(String::new, |name| format!(": did you mean `{name}`?"));
        EngineError::NoStage { name: pattern.to_owned(), hint }
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

    /// The subjects of row functions that stages ask.
    pub fn asked_by_stages(&self, functions: &RowFunctions) -> BTreeSet<String> {
        self.stages.iter().flat_map(|stage| functions.asked_by(&stage.statement)).collect()
    }

    /// One stage.
    pub fn stage(&self, name: &TableName) -> Option<&Stage> {
        self.stages.iter().find(|stage| &stage.name == name)
    }

    /// Plans every stage against the columns of its inputs, without touching data.
    ///
    /// # Errors
    /// [`EngineError::Mistakes`] with the mistakes of every stage: unknown columns, wrong types, conditions of expectations that
    /// do not fit. A stage behind one that cannot be planned is not judged.
    pub async fn check(
        &self,
        _lake: &Lake,
        settings: &SessionSettings,
        as_of: DateTime<Utc>,
    ) -> Result<Vec<CheckedStage>> {
        let inspection = self.inspect(settings, as_of)?.without_mistakes()?;
        let mut contents = self.contents(settings);
        let checked = inspection.stages.into_iter().map(|inspected| CheckedStage {
            content: contents.remove(&inspected.stage.name).unwrap_or_default(),
            stage: inspected.stage,
            schema: inspected.schema,
            key: inspected.key,
            lineage: inspected.lineage,
        });
        Ok(checked.collect())
    }

    /// Of each stage what changes with everything that is looked at to check it: its files, and, step by step down to the tables that no stage makes, what it reads.
    pub(crate) fn contents(&self, settings: &SessionSettings) -> BTreeMap<TableName, String> {
        let mut contents: BTreeMap<TableName, String> = BTreeMap::new();
        for stage in &self.stages {
            let mut hasher = blake3::Hasher::new();
            let mut part = |text: &str| {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            };
            part(env!("CARGO_PKG_VERSION"));
            part(&settings.salt);
            settings.functions.iter().for_each(|function| part(&format!("{:?}", function.signature())));
            part(&settings.row_functions.asked_versions(&stage.statement));
            stage.files().for_each(&mut part);
            // Services are registered by the run that makes a view: a run has something to do when they changed.
            if let (Some(_), Some(services)) = (&stage.directives.feature, &self.services) {
                part(services.text());
            }
            if let (Some(_), Some(on_demand)) = (&stage.directives.feature, &self.on_demand) {
                part(on_demand.text());
            }
            for input in stage.inputs.keys() {
                part(&input.to_string());
                match (contents.get(input), self.declared.get(input)) {
                    (Some(content), _) => part(content),
                    (None, Some(schema)) => {
                        for field in schema.fields() {
                            // A hash map has no order that stays.
                            let metadata: BTreeMap<_, _> = field.metadata().iter().collect();
                            let nullable = field.is_nullable();
                            part(&format!("{} {:?} {nullable} {metadata:?}", field.name(), field.data_type()));
                        }
                        part(&self.identifiers.get(input).map(|names| names.join(",")).unwrap_or_default());
                    }
                    (None, None) => {}
                }
            }
            contents.insert(stage.name.clone(), hasher.finalize().to_hex().chars().take(32).collect());
        }
        contents
    }

    /// The types of identifiers that a declared table brings.
    pub(crate) fn recycled(&self) -> &BTreeSet<String> {
        &self.recycled
    }

    pub(crate) fn identifiers(&self, table: &TableName) -> Option<&Vec<String>> {
        self.identifiers.get(table)
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

fn stage_files(root: &Path, mistakes: &mut Vec<Diagnostic>) -> Result<Vec<(TableName, PathBuf)>> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| EngineError::Unreadable { path, source }
    };
    let mut found = Vec::new();
    for schema in std::fs::read_dir(root).map_err(unreadable(root))? {
        let folder = schema.map_err(unreadable(root))?.path();
        if !folder.is_dir() {
            if folder.extension().and_then(|extension| extension.to_str()) == Some("sql") {
                let mistake = Diagnostic::of_file("E0211", "a stage must be in a folder, which is its schema", &folder);
                mistakes.push(mistake.with_help("move it to <schema>/<table>.sql"));
            }
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
            if let Some(stem) = name.strip_suffix(".cases.toml") {
                let stage = folder.join(format!("{stem}.sql"));
                if !stage.exists() {
                    let mistake = Diagnostic::of_file("E0403", "cases for which there is no stage", &file);
                    mistakes.push(mistake.with_help(format!("they are about {}", stage.display())));
                }
            }
            if file.extension().and_then(|extension| extension.to_str()) != Some("sql") {
                if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("sql")) {
                    let mistake = Diagnostic::of_file("E0200", "a stage's file ends in `.sql`, in lowercase", &file);
                    mistakes.push(mistake.with_help("rename it"));
                }
                continue;
            }
            let part = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            match TableName::new(&part(&folder), part(&file).trim_end_matches(".sql")) {
                Ok(name) => found.push((name, file)),
                Err(error) => {
                    let mistake = Diagnostic::of_file("E0200", error.to_string(), &file);
                    mistakes.push(mistake.with_help("rename the file or its folder"));
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The stages with inputs first; equal ranks by name, so that the order is the same every time. Those that read each other in a circle
/// are left out and told.
fn in_order(mut stages: BTreeMap<TableName, Stage>, mistakes: &mut Vec<Diagnostic>) -> Vec<Stage> {
    let mut ordered: Vec<Stage> = Vec::with_capacity(stages.len());
    while !stages.is_empty() {
        let ready: Vec<TableName> = stages
            .values()
            .filter(|stage| stage.inputs.keys().all(|input| !stages.contains_key(input)))
            .map(|stage| stage.name.clone())
            .collect();
        if ready.is_empty() {
            let (members, mistake) = cycle(&stages);
            mistakes.push(mistake);
            stages.retain(|name, _| !members.contains(name));
            continue;
        }
        for name in ready {
            ordered.extend(stages.remove(&name));
        }
    }
    ordered
}

/// One of the circles, and what to say about it.
fn cycle(stages: &BTreeMap<TableName, Stage>) -> (BTreeSet<TableName>, Diagnostic) {
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
    let members = path.iter().map(|stage| stage.name.clone()).collect();
    let names: Vec<String> = path.iter().chain(path.first()).map(|stage| stage.name.to_string()).collect();
    let (message, help) = match path.len() {
        1 => (format!("stage `{}` reads itself", names[0]), "read what it is made from, or give it another name"),
        _ => (
            format!("stages read each other in a circle: {}", names.join(" reads ")),
            "take one of these out, or split a stage in two",
        ),
    };
    let mistake = match path.first().map(|stage| (stage, path.get(1).unwrap_or(stage))) {
        Some((stage, next)) => {
            stage.mistake("E0209", message, stage.inputs.get(&next.name).copied().unwrap_or_default())
        }
        None => Diagnostic::of_file("E0209", message, PathBuf::new()),
    };
    (members, mistake.with_help(help))
}
