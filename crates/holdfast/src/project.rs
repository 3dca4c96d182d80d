//! What a command works on: the project folder, its settings, a pipeline and the lake.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use holdfast_access::{AuditKey, MaskKey, Policy};
use holdfast_cluster::{Address, ClusterExecutor, ClusterSettings};
use holdfast_engine::{DeclaredTable, Draft, Executor, Project as Stages, Runner, SessionSettings};
use holdfast_feeds::Surroundings;
use holdfast_identity::{IdentifierTokens, IdentityKey, IdentityRules, LakeKey, declared_tables};
use holdfast_ingest::{IngestSettings, SourceSpec, ledger_tables, load_sources};
use holdfast_lake::{EnvironmentName, Lake, LakeSettings, MaintainSettings, StoreOptions};
use holdfast_types::TableName;
use serde::Deserialize;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tokio::sync::OnceCell;
use toml::Spanned;

use crate::clock::SystemClock;
use crate::commands::up::UpSection;
use crate::error::CliError;
use crate::models::predict::{self, Champions};
use crate::models::thresholds::Thresholds;
use crate::schedule::{Schedule, ScheduleSection};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProjectFile {
    lake: LakeSection,
    engine: EngineSection,
    ingest: IngestSection,
    identity: IdentitySection,
    maintenance: MaintenanceSection,
    up: UpSection,
    cluster: ClusterSection,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LakeSection {
    url: String,
    customer_buckets: u32,
}

impl Default for LakeSection {
    fn default() -> Self {
        Self { url: "lake".to_owned(), customer_buckets: LakeSettings::default().customer_buckets }
    }
}

/// `[cluster]`: who works out the rows of full refreshes, where it is not this process.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClusterSection {
    scheduler: Option<Spanned<String>>,
    partitions: Option<usize>,
}

/// No stage can be built in less.
const MEMORY_MB_MIN: usize = 64;
/// What is used at least where the project does not say.
const MEMORY_MB_UNSAID_MIN: usize = 512;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EngineSection {
    memory_mb: Option<usize>,
    parallel_stages: usize,
}

impl Default for EngineSection {
    fn default() -> Self {
        Self { memory_mb: None, parallel_stages: 2 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IngestSection {
    batch_files_max: usize,
    batch_bytes_max_mb: u64,
    batch_rows_max: u64,
    batch_seconds_max: u64,
    list_all_every_s: u64,
}

impl Default for IngestSection {
    fn default() -> Self {
        let settings = IngestSettings::default();
        Self {
            batch_files_max: settings.batch_files_max,
            batch_bytes_max_mb: settings.batch_bytes_max >> 20,
            batch_rows_max: settings.batch_rows_max,
            batch_seconds_max: settings.batch_time_max.as_secs(),
            list_all_every_s: settings.list_all_every.as_secs(),
        }
    }
}

/// When ingestion maintains tables by itself, and how.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MaintenanceSection {
    /// Whether it does.
    pub(crate) automatic: bool,
    /// How often the tables are looked at.
    check_every_s: u64,
    /// A table is maintained once so many files could be merged.
    pub(crate) small_files_min: usize,
    /// Or once so many commits came since the last time.
    pub(crate) commits_min: u64,
    target_mb: u64,
    retention_hours: u64,
}

impl Default for MaintenanceSection {
    fn default() -> Self {
        Self {
            automatic: true,
            check_every_s: 60,
            small_files_min: 50,
            commits_min: 500,
            target_mb: 128,
            retention_hours: 7 * 24,
        }
    }
}

impl MaintenanceSection {
    pub(crate) fn check_every(&self) -> Duration {
        Duration::from_secs(self.check_every_s.max(1))
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IdentitySection {
    key_file: PathBuf,
}

impl Default for IdentitySection {
    fn default() -> Self {
        Self { key_file: PathBuf::from("identity.key") }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineFile {
    #[serde(default)]
    description: String,
    stages: PathBuf,
    schedule: Option<Spanned<ScheduleSection>>,
}

/// What the command line says about all of it; the rest comes from `holdfast.toml`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ProjectArgs {
    /// The folder with holdfast.toml [default: this folder or the nearest above it that has one]
    #[arg(long, global = true, value_name = "DIR")]
    project: Option<PathBuf>,
    /// The pipeline: a folder in pipelines/
    #[arg(long, global = true, value_name = "NAME", default_value = "churn")]
    pipeline: String,
    /// The lake: a folder or a URL such as s3://bucket/prefix [default: from holdfast.toml]
    #[arg(long, global = true, value_name = "URL")]
    lake: Option<String>,
    /// An environment: `run` makes tables of its own there and reads all others from production [default: production]
    #[arg(long, global = true, value_name = "NAME")]
    env: Option<EnvironmentName>,
    /// The file with the secret behind identifier tokens; made if missing [default: from holdfast.toml]
    #[arg(long, global = true, value_name = "FILE")]
    identity_key: Option<PathBuf>,
}

/// A project folder and one of its pipelines.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(crate) pipeline: String,
    folder: PathBuf,
    file: ProjectFile,
    lake_url: String,
    /// What a relative `lake_url` is relative to.
    lake_base: PathBuf,
    key_file: PathBuf,
    /// What is in that file, once it is known to be the lake's.
    key: Arc<OnceCell<IdentityKey>>,
    /// The pipeline's identity rules, once they were read.
    rules: Arc<OnceLock<IdentityRules>>,
    options: StoreOptions,
    environment: Option<EnvironmentName>,
    cluster: Option<ClusterSettings>,
}

impl ProjectArgs {
    /// Whether the command line says where the project is.
    pub(crate) fn is_named(&self) -> bool {
        self.project.is_some()
    }
}

impl Project {
    /// Finds and reads the project.
    pub(crate) fn find(args: &ProjectArgs, options: StoreOptions) -> Result<Self, CliError> {
        let here = std::path::absolute(".").map_err(|source| CliError::File {
            what: "cannot resolve",
            path: PathBuf::from("."),
            source,
        })?;
        let folder = match &args.project {
            Some(folder) if folder.join("holdfast.toml").is_file() => folder.clone(),
            Some(folder) => return Err(CliError::NoProject(folder.clone())),
            None => here
                .ancestors()
                .find(|folder| folder.join("holdfast.toml").is_file())
                .map(Path::to_owned)
                .ok_or_else(|| CliError::NoProject(here.clone()))?,
        };
        let path = folder.join("holdfast.toml");
        let text = read_text(&path)?;
        let file: ProjectFile = parse_toml(&path, &text)?;
        let cluster = cluster_of(&file.cluster).map_err(|(offset, message)| located(&path, &text, offset, message))?;
        // What is named on the command line is relative to where one is, what is in the file to the file.
        let (lake_url, lake_base) = match &args.lake {
            Some(url) => (url.clone(), here.clone()),
            None => (file.lake.url.clone(), folder.clone()),
        };
        let key_file = match &args.identity_key {
            Some(path) => here.join(path),
            None => folder.join(&file.identity.key_file),
        };
        Ok(Self {
            pipeline: args.pipeline.clone(),
            folder,
            file,
            lake_url,
            lake_base,
            key_file,
            key: Arc::default(),
            rules: Arc::default(),
            options,
            environment: args.env.clone(),
            cluster,
        })
    }

    /// The same project with its lake and key elsewhere.
    pub(crate) fn with_lake_in(mut self, folder: &Path) -> Self {
        self.lake_url = "lake".to_owned();
        self.lake_base = folder.to_owned();
        self.key_file = folder.join("identity.key");
        self.key = Arc::default();
        self
    }

    /// The same project whose stages are run by this cluster.
    pub(crate) fn with_cluster(mut self, scheduler: Address, partitions: Option<usize>) -> Self {
        let partitions = partitions.or(self.file.cluster.partitions).unwrap_or(ClusterSettings::PARTITIONS);
        self.cluster = Some(ClusterSettings { partitions: partitions.max(1), ..ClusterSettings::new(scheduler) });
        self
    }

    /// The driver's side of the cluster, where stages are run by one.
    pub(crate) fn cluster(&self) -> Option<Arc<ClusterExecutor>> {
        self.cluster.clone().map(|settings| Arc::new(ClusterExecutor::new(settings)))
    }

    /// Whether the lake is a folder of this machine, or one that it has mounted.
    pub(crate) fn has_local_lake(&self) -> bool {
        !self.lake_url.contains("://") || self.lake_url.starts_with("file://")
    }

    /// Whether there is an identity key already.
    pub(crate) fn has_key(&self) -> bool {
        self.key_file.exists()
    }

    pub(crate) fn options(&self) -> &StoreOptions {
        &self.options
    }

    pub(crate) fn parallel_stages(&self) -> usize {
        self.file.engine.parallel_stages
    }

    /// The memory that work of a process shares: what the project says, or a quarter of what the machine or container has.
    pub(crate) fn memory_bytes(&self) -> usize {
        match self.file.engine.memory_mb {
            Some(memory_mb) => memory_mb.max(MEMORY_MB_MIN) << 20,
            None => memory_bytes_of(4),
        }
    }

    pub(crate) fn ingest_settings(&self) -> IngestSettings {
        IngestSettings {
            batch_files_max: self.file.ingest.batch_files_max,
            batch_bytes_max: self.file.ingest.batch_bytes_max_mb << 20,
            batch_rows_max: self.file.ingest.batch_rows_max,
            batch_time_max: Duration::from_secs(self.file.ingest.batch_seconds_max),
            list_all_every: Duration::from_secs(self.file.ingest.list_all_every_s),
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            ..IngestSettings::default()
        }
    }

    pub(crate) fn maintenance(&self) -> &MaintenanceSection {
        &self.file.maintenance
    }

    /// What maintenance does; a command line may say otherwise.
    pub(crate) fn maintain_settings(&self) -> MaintainSettings {
        let section = &self.file.maintenance;
        MaintainSettings {
            target_bytes: section.target_mb.max(1) << 20,
            // What was staged within the hour may still be committed, and what was current is being read.
            retention: Duration::from_secs(section.retention_hours.max(1) * 60 * 60),
            memory_bytes: self.memory_bytes(),
            ..MaintainSettings::default()
        }
    }

    /// What feeds may ask for.
    #[expect(
        clippy::disallowed_methods,
        reason = "the binary hands the environment down: contracts name variables with credentials"
    )]
    pub(crate) fn surroundings(&self) -> Surroundings {
        Surroundings {
            variable: Arc::new(|name| std::env::var(name).ok()),
            store_options: self.options.clone(),
            folder: self.folder.clone(),
        }
    }

    /// Opens the lake, or the environment in it, to bring stages up to date and to maintain tables.
    pub(crate) async fn open_stages_to_write(&self) -> Result<Lake, CliError> {
        let lake = Lake::open_to_write(&self.lake_url, &self.lake_base, &self.options, Arc::new(SystemClock)).await?;
        self.to_run_in(lake).await
    }

    /// The same for those who only look at what would be done.
    pub(crate) async fn open_stages(&self) -> Result<Lake, CliError> {
        let lake = Lake::open(&self.lake_url, &self.lake_base, &self.options, Arc::new(SystemClock)).await?;
        self.to_run_in(lake).await
    }

    async fn to_run_in(&self, lake: Lake) -> Result<Lake, CliError> {
        match &self.environment {
            Some(name) => Ok(lake.environment(name).await?),
            None => Ok(lake),
        }
    }

    /// Refuses an environment.
    fn is_of_production(&self) -> Result<(), CliError> {
        match &self.environment {
            Some(name) => Err(CliError::Argument(format!(
                "this works on production alone, and --env {name} names an environment: run, plan, verify, why, status, sql, serve, maintain and features list know environments"
            ))),
            None => Ok(()),
        }
    }

    /// Opens the lake to commit to it.
    pub(crate) async fn open_lake_to_write(&self) -> Result<Lake, CliError> {
        self.is_of_production()?;
        Ok(Lake::open_to_write(&self.lake_url, &self.lake_base, &self.options, Arc::new(SystemClock)).await?)
    }

    /// Opens the lake to read it, or the environment in it as its newest run left it.
    pub(crate) async fn open_lake(&self) -> Result<Lake, CliError> {
        let lake = Lake::open(&self.lake_url, &self.lake_base, &self.options, Arc::new(SystemClock)).await?;
        match &self.environment {
            Some(name) => Ok(lake.environment_as_run(name).await?),
            None => Ok(lake),
        }
    }

    /// Opens the lake, creating it where there is none.
    pub(crate) async fn create_lake(&self) -> Result<Lake, CliError> {
        self.is_of_production()?;
        let settings =
            LakeSettings { customer_buckets: self.file.lake.customer_buckets.max(1), ..LakeSettings::default() };
        let clock = Arc::new(SystemClock);
        Ok(Lake::create_or_open(&self.lake_url, &self.lake_base, &self.options, settings, clock).await?)
    }

    pub(crate) fn pipeline_folder(&self) -> Result<PathBuf, CliError> {
        let pipelines = self.folder.join("pipelines");
        let folder = pipelines.join(&self.pipeline);
        if folder.join("pipeline.toml").is_file() {
            return Ok(folder);
        }
        let mut known: Vec<String> = std::fs::read_dir(&pipelines)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        known.sort();
        let hint = if known.is_empty() { String::new() } else { format!(": there are {}", known.join(", ")) };
        Err(CliError::NoPipeline { name: self.pipeline.clone(), folder: pipelines, hint })
    }

    /// The pipeline in one line, as its file has it.
    pub(crate) fn description(&self) -> Result<String, CliError> {
        Ok(self.pipeline_file()?.0.description)
    }

    /// When the pipeline's stages are run by themselves: on new data, where its file does not say.
    pub(crate) fn schedule(&self) -> Result<Schedule, CliError> {
        Ok(self.pipeline_file()?.1)
    }

    /// The pipeline's file. A schedule that is wrong is told to every command that has to do with stages.
    fn pipeline_file(&self) -> Result<(PipelineFile, Schedule), CliError> {
        let path = self.pipeline_folder()?.join("pipeline.toml");
        let text = read_text(&path)?;
        let file: PipelineFile = parse_toml(&path, &text)?;
        let schedule = file.schedule.as_ref().map(Schedule::new).transpose();
        let schedule = schedule.map_err(|(span, message)| located(&path, &text, span.start, message))?;
        Ok((file, schedule.unwrap_or_default()))
    }

    /// Where the pipeline's policy is, if it has one.
    pub(crate) fn policy_file(&self) -> Result<PathBuf, CliError> {
        Ok(self.pipeline_folder()?.join("policy.toml"))
    }

    /// The pipeline's policy, if it has one.
    pub(crate) fn policy(&self) -> Result<Option<Policy>, CliError> {
        Ok(Policy::load(&self.policy_file()?)?)
    }

    /// The secret of hashed columns, from the lake's identity key.
    pub(crate) async fn mask_key(&self, lake: &Lake) -> Result<MaskKey, CliError> {
        Ok(MaskKey::derive(self.key_of(lake).await?.to_hex().as_bytes()))
    }

    /// The secret of the audit log, from the lake's identity key.
    pub(crate) async fn audit_key(&self, lake: &Lake) -> Result<AuditKey, CliError> {
        Ok(AuditKey::derive(self.key_of(lake).await?.to_hex().as_bytes()))
    }

    /// Opens the lake itself to write down who reads it, also where an environment is read.
    pub(crate) async fn open_lake_to_audit(&self) -> Result<Lake, CliError> {
        Ok(Lake::open_to_write(&self.lake_url, &self.lake_base, &self.options, Arc::new(SystemClock)).await?)
    }

    /// What `holdfast up` does.
    pub(crate) fn up(&self) -> &UpSection {
        &self.file.up
    }

    /// The folder of the project.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The pipeline's sources.
    pub(crate) fn sources(&self) -> Result<Vec<SourceSpec>, CliError> {
        Ok(load_sources(&self.pipeline_folder()?.join("sources"))?)
    }

    /// The pipeline's stages, which may read its sources' raw tables, the books of ingestion, the identity tables, and those of models and their scores.
    pub(crate) fn stages(&self) -> Result<Stages, CliError> {
        Ok(self.draft()?.into_project()?)
    }

    /// The folder of the pipeline's stages.
    pub(crate) fn stage_folder(&self) -> Result<PathBuf, CliError> {
        Ok(self.folder.join(self.pipeline_file()?.0.stages))
    }

    /// The same stages as far as they can be read, with what is wrong with them.
    pub(crate) fn draft(&self) -> Result<Draft, CliError> {
        let mut declared = declared_tables()?;
        for table in ledger_tables()? {
            declared.push(DeclaredTable { name: table.name, schema: table.schema, identifiers: Vec::new() });
        }
        for source in self.sources()? {
            let name = raw_table(&source)?;
            let mut identifiers: Vec<String> = Vec::new();
            for identifier in &source.identifiers {
                if !identifiers.contains(&identifier.identifier_type) {
                    identifiers.push(identifier.identifier_type.clone());
                }
            }
            declared.push(DeclaredTable { name, schema: source.raw_schema(), identifiers });
        }
        declared.extend(crate::models::registry::declared()?);
        declared.extend(crate::models::score::declared(self)?);
        declared.push(crate::models::thresholds::declared()?);
        // A mistake in them is told to every command that has to do with stages.
        Thresholds::read(self)?;
        let folder = self.pipeline_folder()?;
        let draft = Draft::read(&self.stage_folder()?, declared)?;
        let draft = draft.with_services(&folder.join("feature_services.toml"))?;
        Ok(draft.with_on_demand(&folder.join("on_demand_features.toml"))?)
    }

    /// The pipeline's way to make tokens in this lake. Makes a key where the lake has none yet, and refuses one that is not the lake's.
    pub(crate) async fn tokens(&self, lake: &Lake) -> Result<IdentifierTokens, CliError> {
        Ok(IdentifierTokens::new(self.identity_rules()?, self.key_of(lake).await?))
    }

    /// The same key with the rules of another file: for dry runs.
    pub(crate) async fn tokens_by(&self, rules: &Path, lake: &Lake) -> Result<IdentifierTokens, CliError> {
        Ok(IdentifierTokens::new(IdentityRules::load(rules)?, self.key_of(lake).await?))
    }

    /// The key that the lake was made with. Asks the lake once.
    async fn key_of(&self, lake: &Lake) -> Result<&IdentityKey, CliError> {
        let find = async || {
            let known = LakeKey::of(lake).await?;
            if known.is_known() && !self.key_file.exists() {
                return Err(CliError::NoKey { path: self.key_file.clone(), lake: lake.url().to_string() });
            }
            let key = self.key()?;
            known.check(lake, &key.fingerprint())?;
            Ok(key)
        };
        self.key.get_or_try_init(find).await
    }

    fn key(&self) -> Result<IdentityKey, CliError> {
        if self.key_file.exists() {
            return Ok(IdentityKey::load(&self.key_file)?);
        }
        // A version 4 UUID carries 122 random bits; two of them fill the key's 32 bytes.
        let mut bytes = [0_u8; 32];
        bytes[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        bytes[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        let key = IdentityKey::new(bytes);
        let failed =
            |source| CliError::File { what: "cannot write the identity key", path: self.key_file.clone(), source };
        if let Some(folder) = self.key_file.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        write_secret(&self.key_file, &key.to_hex()).map_err(failed)?;
        // Another process may have been first: what is in the file counts.
        Ok(IdentityKey::load(&self.key_file)?)
    }

    /// Sessions with the functions that stages of this pipeline may use in this lake.
    pub(crate) async fn session_settings(&self, lake: &Lake) -> Result<SessionSettings, CliError> {
        self.settings_with(&self.tokens(lake).await?)
    }

    /// The same with the key that is here, for whichever lake: whoever uses them compares what they were salted with.
    pub(crate) fn session_settings_by_own_key(&self) -> Result<SessionSettings, CliError> {
        self.settings_with(&IdentifierTokens::new(self.identity_rules()?, &self.key()?))
    }

    fn settings_with(&self, tokens: &IdentifierTokens) -> Result<SessionSettings, CliError> {
        Ok(SessionSettings {
            memory_bytes: self.memory_bytes(),
            functions: vec![Arc::new(tokens.function())],
            salt: tokens.fingerprint().to_owned(),
            row_functions: predict::planned(self)?,
            ..SessionSettings::default()
        })
    }

    /// A runner of stages, with the champions of now where some ask models.
    ///
    /// # Errors
    /// What the lake answers.
    pub(crate) async fn runner(
        &self,
        lake: Lake,
        stages: Stages,
        settings: SessionSettings,
    ) -> Result<Runner, CliError> {
        let row_functions = predict::for_stages(self, &lake, &stages).await?;
        Ok(Runner::new(lake, stages, SessionSettings { row_functions, ..settings }))
    }

    /// The runner with the champions of now, where stages ask models and these have others than when it was made.
    ///
    /// # Errors
    /// What the lake answers.
    pub(crate) async fn renewed(&self, lake: &Lake, runner: &Runner) -> Result<Option<Runner>, CliError> {
        let now = predict::for_stages(self, lake, runner.project()).await?;
        let is_same = now.versions == runner.row_functions().versions;
        Ok((!is_same).then(|| runner.with_row_functions(now)))
    }

    /// Sessions for runs: what the project's cluster can do is given to it.
    pub(crate) async fn run_settings(&self, lake: &Lake) -> Result<SessionSettings, CliError> {
        let executor = self.cluster().map(|cluster| cluster as Arc<dyn Executor>);
        Ok(SessionSettings { executor, ..self.session_settings(lake).await? })
    }

    /// The pipeline's identity rules.
    pub(crate) fn identity_rules(&self) -> Result<IdentityRules, CliError> {
        if let Some(rules) = self.rules.get() {
            return Ok(rules.clone());
        }
        let rules = IdentityRules::load(&self.pipeline_folder()?.join("identity.toml"))?;
        Ok(self.rules.get_or_init(|| rules).clone())
    }

    /// Sessions in which stages are planned and nothing runs: they need neither rules nor a key, and make none.
    pub(crate) fn planning_settings(&self) -> Result<SessionSettings, CliError> {
        let rules =
            IdentityRules { priority: Vec::new(), types: BTreeMap::new(), blocked: BTreeMap::new(), matching: None };
        let tokens = IdentifierTokens::new(rules, &IdentityKey::new([0; 32]));
        Ok(SessionSettings {
            functions: vec![Arc::new(tokens.function())],
            row_functions: predict::planned(self)?,
            ..SessionSettings::default()
        })
    }

    /// Sessions for cases, in which tokens can be written by people: they need no key.
    pub(crate) fn case_settings(&self) -> Result<SessionSettings, CliError> {
        let tokens = IdentifierTokens::new(self.identity_rules()?, &IdentityKey::new([0; 32]));
        Ok(SessionSettings {
            memory_bytes: self.memory_bytes(),
            functions: vec![Arc::new(tokens.readable_function())],
            row_functions: predict::planned(self)?,
            ..SessionSettings::default()
        })
    }

    /// Sessions for those who only read what is there.
    pub(crate) fn reader_settings(&self) -> SessionSettings {
        SessionSettings { memory_bytes: self.memory_bytes(), ..SessionSettings::default() }
    }

    /// The same for those who may ask models: with the champions of the run that is read.
    pub(crate) fn asking_settings(&self, lake: &Lake) -> SessionSettings {
        SessionSettings { run_functions: Some(Arc::new(Champions::new(self, lake))), ..self.reader_settings() }
    }
}

/// Who is at the keyboard, for what is signed; empty when nobody knows.
#[expect(clippy::disallowed_methods, reason = "the binary reads the environment")]
pub(crate) fn user_name() -> String {
    let named = ["USER", "LOGNAME", "USERNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    named.unwrap_or_default()
}

/// Writes a new file that only its owner may read. Leaves one that is there alone, and shows nobody half of it: workers
/// that start together all make a key, and read the first one's.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(failed) if failed.error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed.error),
        _ => Ok(()),
    }
}

/// A part of the memory that the machine or container has, in bytes.
pub(crate) fn memory_bytes_of(share: u64) -> usize {
    usize::try_from(total_memory() / share).unwrap_or(usize::MAX).max(MEMORY_MB_UNSAID_MIN << 20)
}

/// The cluster that a project names. A mistake has its place in the file.
fn cluster_of(section: &ClusterSection) -> Result<Option<ClusterSettings>, (usize, String)> {
    let Some(scheduler) = &section.scheduler else { return Ok(None) };
    let address: Address = scheduler.get_ref().parse().map_err(|error| (scheduler.span().start, format!("{error}")))?;
    let partitions = section.partitions.unwrap_or(ClusterSettings::PARTITIONS).max(1);
    Ok(Some(ClusterSettings { partitions, ..ClusterSettings::new(address) }))
}

/// What the machine has, in bytes, or the container that this process is in.
fn total_memory() -> u64 {
    let only_memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(only_memory);
    let machine = system.total_memory();
    system.cgroup_limits().map_or(machine, |limits| limits.total_memory.min(machine))
}

/// A source's table in `raw`.
pub(crate) fn raw_table(source: &SourceSpec) -> Result<TableName, CliError> {
    TableName::new("raw", &source.name).map_err(|error| CliError::Lake(error.into()))
}

pub(crate) fn read_text(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|source| CliError::File {
        what: "cannot read",
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn parse_toml<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, CliError> {
    toml::from_str(text)
        .map_err(|error| located(path, text, error.span().map_or(0, |span| span.start), error.message().to_owned()))
}

/// A mistake at this byte of a file.
pub(crate) fn located(path: &Path, text: &str, offset: usize, message: String) -> CliError {
    let before = text.get(..offset).unwrap_or_default();
    CliError::Config {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_start_together_read_one_secret_and_never_half_of_it() -> std::io::Result<()> {
        for _ in 0..50 {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("key");
            let start = std::sync::Barrier::new(8);
            let read = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..8)
                    .map(|worker| {
                        let (path, start) = (&path, &start);
                        scope.spawn(move || {
                            start.wait();
                            write_secret(path, &worker.to_string().repeat(64))?;
                            std::fs::read_to_string(path)
                        })
                    })
                    .collect();
                workers.into_iter().map(|worker| worker.join().expect("no worker panics")).collect::<Vec<_>>()
            });
            let kept = std::fs::read_to_string(&path)?;
            assert_eq!(kept.trim().len(), 64);
            for text in read {
                assert_eq!(text?, kept);
            }
            assert_eq!(std::fs::read_dir(folder.path())?.count(), 1, "what lost is removed");
        }
        Ok(())
    }
}
