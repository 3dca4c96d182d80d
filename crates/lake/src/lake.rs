use std::path::Path;
use std::sync::{Arc, Once};

use arrow::datatypes::SchemaRef;
use datafusion::datasource::object_store::ObjectStoreUrl;
use deltalake_core::kernel::StructType;
use deltalake_core::kernel::transaction::CommitProperties;
use deltalake_core::logstore::{LogStore, LogStoreFactory, StorageConfig, default_logstore, logstore_factories};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::{DeltaResult, DeltaTable, DeltaTableBuilder, DeltaTableError};
use futures::TryStreamExt;
use holdfast_types::{Clock, TableName};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::cache::{DataFiles, KeptCommits};
use crate::environment::Base;
use crate::error::LakeError;
use crate::newest::{Newest, Tip};
use crate::probe::probe;
use crate::schema::delta_compatible;
use crate::store::{ObjectLocation, StoreOptions, open_store};
use crate::table::Table;
use crate::{Result, manifest};

/// The format written today. A lake with a higher number was written by a newer version and is left alone.
const FORMAT_VERSION: u32 = 1;

/// Where the lake's own files are; no table name begins with an underscore.
pub(crate) const SYSTEM_FOLDER: &str = "_holdfast";

/// How often a table is looked at before an error is believed, and how long to wait in between: creating one takes a moment.
pub(crate) const LOOKS_MAX: u32 = 5;
pub(crate) const LOOK_AGAIN_AFTER: std::time::Duration = std::time::Duration::from_millis(20);

/// What is decided once, when a lake is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LakeSettings {
    /// The format of the lake's own files.
    pub format_version: u32,
    /// The number of buckets of `customer_id` that partition every customer-keyed table.
    pub customer_buckets: u32,
}

impl Default for LakeSettings {
    fn default() -> Self {
        Self { format_version: FORMAT_VERSION, customer_buckets: 4 }
    }
}

/// A table to be: what [`Lake::ensure_table`] creates.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// Its name.
    pub name: TableName,
    /// Its columns, partition columns last. Metadata keys `comment` and `pii` of columns are kept in the Delta schema. What the schema itself has as metadata becomes properties of
    /// a table that is created.
    pub schema: SchemaRef,
    /// The names of the columns it is partitioned by.
    pub partition_by: Vec<String>,
    /// One line about it for catalogues.
    pub comment: String,
}

/// A lake: a folder or bucket of Delta tables, `schema/table`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lake {
    inner: Arc<LakeInner>,
}

#[derive(Debug)]
struct LakeInner {
    url: Url,
    store: Arc<dyn ObjectStore>,
    root: ObjectPath,
    store_url: ObjectStoreUrl,
    settings: LakeSettings,
    clock: Arc<dyn Clock>,
    newest: Newest,
    data_files: DataFiles,
    /// What is below it, if it is an environment.
    base: Option<Base>,
}

impl Lake {
    /// Opens the lake at `location`, creating it with `settings` where there is none.
    ///
    /// May be called by several processes at once: one of them creates, the others open.
    ///
    /// # Errors
    /// [`LakeError::UnsafeStore`], [`LakeError::NewerLake`], [`LakeError::Damaged`] and what the store answers.
    pub async fn create_or_open(
        location: &str,
        relative_to: &Path,
        options: &StoreOptions,
        settings: LakeSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        Self::create_or_open_at(open_store(location, relative_to, options)?, settings, clock).await
    }

    /// As [`Lake::create_or_open`], in a store that is open already.
    ///
    /// # Errors
    /// As there.
    pub async fn create_or_open_at(
        place: ObjectLocation,
        settings: LakeSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let path = place.path.clone().join(SYSTEM_FOLDER).join("lake.json");
        let body = serde_json::to_vec_pretty(&settings)
            .map_err(|error| LakeError::Damaged { path: path.to_string(), reason: error.to_string() })?;
        if place.url.scheme() == "file"
            && let Ok(folder) = place.url.to_file_path()
        {
            std::fs::create_dir_all(&folder).map_err(|error| LakeError::InvalidUrl {
                url: place.url.to_string(),
                reason: format!("cannot create the folder: {error}"),
            })?;
        }
        // Asked first: a store that lies would write the settings of a lake that is there anew.
        probe(&place).await?;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let mut looks = 1;
        loop {
            let source = match place.store.put_opts(&path, body.clone().into(), create.clone()).await {
                Ok(_) => return Self::open_at(place, clock).await,
                Err(source) => source,
            };
            let failed = LakeError::store(format!("cannot create the lake at {}", place.url));
            if !matches!(source, object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) {
                return Err(failed(source));
            }
            match Self::open_at(place.clone(), Arc::clone(&clock)).await {
                // S3 says that an object is there (409) also while somebody is still writing it.
                Err(LakeError::NoLake { .. }) if looks < LOOKS_MAX => {
                    looks += 1;
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                }
                Err(LakeError::NoLake { .. }) => return Err(failed(source)),
                opened => return opened,
            }
        }
    }

    /// Opens the lake at `location`, for those who are going to commit.
    ///
    /// # Errors
    /// As [`Lake::open`]; [`LakeError::UnsafeStore`] when the store cannot keep a lake.
    pub async fn open_to_write(
        location: &str,
        relative_to: &Path,
        options: &StoreOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let place = open_store(location, relative_to, options)?;
        // In this order: nothing is written where there is no lake.
        let lake = Self::open_at(place.clone(), clock).await?;
        probe(&place).await?;
        Ok(lake)
    }

    /// Opens the lake at `location`, for those who read.
    ///
    /// # Errors
    /// [`LakeError::NoLake`] when there is none, [`LakeError::NewerLake`] when a newer version wrote it.
    pub async fn open(
        location: &str,
        relative_to: &Path,
        options: &StoreOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        Self::open_at(open_store(location, relative_to, options)?, clock).await
    }

    async fn open_at(place: ObjectLocation, clock: Arc<dyn Clock>) -> Result<Self> {
        register_log_stores();
        let path = place.path.clone().join(SYSTEM_FOLDER).join("lake.json");
        let damaged = |reason: String| LakeError::Damaged { path: path.to_string(), reason };
        let body = match place.store.get(&path).await {
            Ok(found) => found.bytes().await.map_err(LakeError::store(format!("cannot read {path}")))?,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(LakeError::NoLake {
                    url: place.url.to_string(),
                    reason: "there is no _holdfast/lake.json: check the path, or create a lake with `holdfast ingest`"
                        .to_owned(),
                });
            }
            Err(source) => return Err(LakeError::store(format!("cannot read {path}"))(source)),
        };
        // The version is looked at before the rest: a newer format may have other fields.
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let Version { format_version } = serde_json::from_slice(&body).map_err(|error| damaged(error.to_string()))?;
        if format_version > FORMAT_VERSION {
            return Err(LakeError::NewerLake {
                url: place.url.to_string(),
                found: format_version,
                known: FORMAT_VERSION,
            });
        }
        let settings: LakeSettings = serde_json::from_slice(&body).map_err(|error| damaged(error.to_string()))?;
        if settings.customer_buckets == 0 {
            return Err(damaged("customer_buckets is 0".to_owned()));
        }
        let store_url = store_url(&place.url)?;
        // A local file is as near as what is kept of it.
        let is_near = matches!(place.url.scheme(), "file" | "memory");
        let store = if is_near { place.store } else { Arc::new(KeptCommits::new(place.store)) };
        Ok(Self {
            inner: Arc::new(LakeInner {
                url: place.url,
                store,
                root: place.path,
                store_url,
                settings,
                clock,
                newest: Newest::default(),
                data_files: DataFiles::default(),
                base: None,
            }),
        })
    }

    /// A lake in a folder of this one, over it.
    pub(crate) fn with_base(&self, folder: &[&str], base: Base) -> Result<Self> {
        let inner = &self.inner;
        let mut url = inner.url.clone();
        let no_path = |()| LakeError::InvalidUrl { url: inner.url.to_string(), reason: "it has no path".to_owned() };
        url.path_segments_mut().map_err(no_path)?.pop_if_empty().extend(folder);
        Ok(Self {
            inner: Arc::new(LakeInner {
                url,
                store: Arc::clone(&inner.store),
                root: folder.iter().fold(inner.root.clone(), |path, part| path.join(*part)),
                store_url: inner.store_url.clone(),
                settings: inner.settings.clone(),
                clock: Arc::clone(&inner.clock),
                newest: Newest::default(),
                data_files: inner.data_files.clone(),
                base: Some(base),
            }),
        })
    }

    pub(crate) fn base(&self) -> Option<&Base> {
        self.inner.base.as_ref()
    }

    /// Where it is.
    pub fn url(&self) -> &Url {
        &self.inner.url
    }

    /// What was decided when it was created.
    pub fn settings(&self) -> &LakeSettings {
        &self.inner.settings
    }

    /// The clock it was opened with.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// The store it is in, from the store's root.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.inner.store
    }

    /// The name under which an engine session must know [`Lake::store`].
    pub fn store_url(&self) -> &ObjectStoreUrl {
        &self.inner.store_url
    }

    /// Where the lake's own files are: what is there belongs to no table.
    pub fn system_folder(&self) -> ObjectLocation {
        let mut url = self.inner.url.clone();
        let path = format!("{}/{SYSTEM_FOLDER}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        ObjectLocation { store: Arc::clone(&self.inner.store), path: self.inner.root.clone().join(SYSTEM_FOLDER), url }
    }

    pub(crate) fn root(&self) -> &ObjectPath {
        &self.inner.root
    }

    pub(crate) fn known_tables(&self) -> &Newest {
        &self.inner.newest
    }

    /// The tables that exist, sorted by name. One LIST for the lake and one a schema.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn tables(&self) -> Result<Vec<TableName>> {
        let mut tables = self.own_tables().await?;
        tables.extend(self.production_tables());
        tables.sort();
        tables.dedup();
        Ok(tables)
    }

    /// Those without the ones that an environment reads of production.
    pub(crate) async fn own_tables(&self) -> Result<Vec<TableName>> {
        let root = self.inner.root.clone();
        let mut tables = Vec::new();
        for schema in self.folders(&root).await? {
            for table in self.folders(&root.clone().join(schema.as_str())).await? {
                if let Ok(name) = TableName::new(&schema, &table) {
                    tables.push(name);
                }
            }
        }
        tables.sort();
        Ok(tables)
    }

    pub(crate) async fn folders(&self, prefix: &ObjectPath) -> Result<Vec<String>> {
        let listed = self
            .inner
            .store
            .list_with_delimiter(Some(prefix))
            .await
            .map_err(LakeError::store(format!("cannot list {prefix}")))?;
        Ok(listed
            .common_prefixes
            .iter()
            .filter_map(|path| path.filename().map(str::to_owned))
            .filter(|name| !name.starts_with('_'))
            .collect())
    }

    /// The newest version of a table, or `None` when it does not exist. A table that was looked at in the last minute costs one GET, and one more for each commit since.
    ///
    /// # Errors
    /// What the store or the Delta log answers.
    pub async fn table(&self, name: &TableName) -> Result<Option<Table>> {
        if let Some(base) = self.base().filter(|_| !self.owns(name)) {
            return self.production_table(base, name).await;
        }
        match self.followed(name).await? {
            Some(table) => Ok(Some(table)),
            None => self.load(name).await,
        }
    }

    /// As [`Lake::table`], from the log alone: with a list and a replay.
    pub(crate) async fn load(&self, name: &TableName) -> Result<Option<Table>> {
        self.forget_tip(name);
        let mut looks = 1;
        loop {
            let began_at = self.inner.clock.now();
            match self.builder(name)?.load().await {
                Ok(table) => {
                    let table = self.pinned(name, table)?;
                    self.remember_tip(Tip::new(table.clone(), began_at));
                    return Ok(Some(table));
                }
                // The library has several errors for a table that is not there; the store knows.
                Err(_) if !self.has_log(name).await? => return Ok(None),
                Err(error) if looks == LOOKS_MAX => return Err(LakeError::delta(name)(error)),
                // The log may have appeared between the two looks: another process is creating the table.
                Err(_) => tokio::time::sleep(LOOK_AGAIN_AFTER).await,
            }
            looks += 1;
        }
    }

    async fn has_log(&self, name: &TableName) -> Result<bool> {
        let log = self.inner.root.clone().join(name.schema()).join(name.table()).join("_delta_log");
        match self.inner.store.list(Some(&log)).try_next().await {
            Ok(first) => Ok(first.is_some()),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(LakeError::store(format!("cannot list {log}"))(source)),
        }
    }

    /// A table as it was at `version`.
    ///
    /// # Errors
    /// [`LakeError::NoVersion`] when that version is not (or no longer) there.
    pub async fn table_at(&self, name: &TableName, version: u64) -> Result<Table> {
        if !self.owns(name) {
            // Of production, whichever version a run of the environment has read.
            return Box::pin(self.production().table_at(name, version)).await;
        }
        self.own_table_at(name, version).await
    }

    pub(crate) async fn own_table_at(&self, name: &TableName, version: u64) -> Result<Table> {
        match self.builder(name)?.with_version(version).load().await {
            Ok(table) => self.pinned(name, table),
            Err(error) => {
                let newest = self.table(name).await?.map(|table| table.version());
                match newest {
                    Some(newest) if newest >= version && !matches!(error, DeltaTableError::InvalidVersion(_)) => {
                        Err(LakeError::delta(name)(error))
                    }
                    _ => Err(LakeError::NoVersion { table: name.clone(), version }),
                }
            }
        }
    }

    /// A table as a commit of this process has just made it.
    ///
    /// # Errors
    /// As of [`Lake::table_at`].
    pub async fn table_as_committed(&self, name: &TableName, version: u64) -> Result<Table> {
        // Gone on to from the version before, and known to who looks next.
        match self.table(name).await? {
            Some(table) if table.version() == version => Ok(table),
            _ => self.table_at(name, version).await,
        }
    }

    /// The table, created where it is missing, and widened by the nullable columns that only `spec` has.
    ///
    /// May be called by several processes at once.
    ///
    /// # Errors
    /// [`LakeError::Schema`] when a column exists with another type, or the partitioning differs.
    pub async fn ensure_table(&self, spec: &TableSpec) -> Result<Table> {
        let table = match self.table(&spec.name).await? {
            Some(table) if self.owns(&spec.name) => table,
            _ => self.create_table(spec).await?,
        };
        let mismatch = |reason: String| LakeError::Schema { table: spec.name.to_string(), reason };
        if table.partition_columns() != spec.partition_by {
            return Err(mismatch(format!(
                "is partitioned by {:?}, not by {:?}",
                table.partition_columns(),
                spec.partition_by
            )));
        }
        let mut missing = Vec::new();
        for field in spec.schema.fields() {
            let wanted = delta_compatible(field.data_type())
                .map_err(|reason| mismatch(format!("column {} has type {reason}", field.name())))?;
            match table.schema().field_with_name(field.name()) {
                Ok(have) if same_shape(have.data_type(), &wanted) => {}
                Ok(have) => {
                    return Err(mismatch(format!(
                        "column {} is {} in the lake and {wanted} in the source: a column keeps its type; give the new one another name",
                        field.name(),
                        have.data_type()
                    )));
                }
                Err(_) => missing.push(Arc::clone(field)),
            }
        }
        if missing.is_empty() { Ok(table) } else { self.add_columns(&table, missing).await }
    }

    async fn create_table(&self, spec: &TableSpec) -> Result<Table> {
        let schema = kernel_schema(&spec.name, &spec.schema)?;
        let table = self.builder(&spec.name)?.build().map_err(LakeError::delta(&spec.name))?;
        // Logs are cleaned by maintenance: left to a commit, every commit lists the whole log folder.
        let cleanup = ("delta.enableExpiredLogCleanup".to_owned(), Some("false".to_owned()));
        let own = spec.schema.metadata().iter().map(|(key, value)| (key.clone(), Some(value.clone())));
        let properties: Vec<(String, Option<String>)> = own.chain([cleanup]).collect();
        let created = CreateBuilder::new()
            .with_log_store(table.log_store())
            .with_table_name(spec.name.to_string())
            .with_comment(spec.comment.clone())
            .with_columns(schema.fields().cloned())
            .with_partition_columns(spec.partition_by.clone())
            .with_raise_if_key_not_exists(false)
            .with_configuration(properties)
            .with_commit_properties(CommitProperties::default().with_cleanup_expired_logs(Some(false)))
            .await;
        match created {
            Ok(created) => {
                self.note_own(&spec.name);
                let table = self.pinned(&spec.name, created)?;
                self.remember_tip(Tip::new(table.clone(), self.inner.clock.now()));
                Ok(table)
            }
            // Another process may have created it meanwhile, or ours landed and the answer was lost: look.
            Err(error) => match self.load(&spec.name).await? {
                Some(table) => {
                    self.note_own(&spec.name);
                    Ok(table)
                }
                None => Err(LakeError::delta(&spec.name)(error)),
            },
        }
    }

    async fn add_columns(&self, table: &Table, fields: Vec<Arc<arrow::datatypes::Field>>) -> Result<Table> {
        let name = table.name().clone();
        let added = kernel_schema(&name, &Arc::new(arrow::datatypes::Schema::new(fields)))?;
        let result = table
            .delta()
            .clone()
            .add_columns()
            .with_fields(added.fields().cloned().collect::<Vec<_>>())
            .with_commit_properties(CommitProperties::default().with_cleanup_expired_logs(Some(false)))
            .await;
        match result {
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(table = %name, "adding columns failed, looking again");
                let now = self.table(&name).await?.ok_or_else(|| LakeError::NoTable(name.clone()))?;
                if added.fields().all(|field| now.schema().field_with_name(field.name()).is_ok()) {
                    return Ok(now);
                }
                return Err(LakeError::delta(&name)(error));
            }
        }
        self.table(&name).await?.ok_or(LakeError::NoTable(name))
    }

    fn builder(&self, name: &TableName) -> Result<DeltaTableBuilder> {
        let url = self.table_url(name)?;
        Ok(DeltaTableBuilder::from_url(url.clone())
            .map_err(LakeError::delta(name))?
            .with_storage_backend(Arc::clone(&self.inner.store), url))
    }

    fn table_url(&self, name: &TableName) -> Result<Url> {
        let mut url = self.inner.url.clone();
        url.path_segments_mut()
            .map_err(|()| LakeError::InvalidUrl {
                url: self.inner.url.to_string(),
                reason: "it has no path".to_owned(),
            })?
            .pop_if_empty()
            .push(name.schema())
            .push(name.table());
        Ok(url)
    }

    pub(crate) fn pinned(&self, name: &TableName, table: DeltaTable) -> Result<Table> {
        let prefix = self.inner.root.clone().join(name.schema()).join(name.table());
        let inner = &self.inner;
        Table::new(
            name.clone(),
            table,
            prefix,
            inner.store_url.clone(),
            Arc::clone(&inner.store),
            Arc::clone(&inner.clock),
            inner.data_files.clone(),
        )
    }

    /// The newest published run, or `None` before the first.
    ///
    /// # Errors
    /// What the store answers; [`LakeError::Damaged`] when the manifest cannot be read.
    pub async fn latest_manifest(&self) -> Result<Option<manifest::Manifest>> {
        manifest::latest(self).await
    }

    /// The places in the order of runs of all published runs that are kept, in that order.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn run_sequences(&self) -> Result<Vec<u64>> {
        manifest::sequences(self).await
    }

    /// The published run at one place in the order of runs.
    ///
    /// # Errors
    /// What the store answers, which is not found where there is none; [`LakeError::Damaged`] when the manifest cannot be read.
    pub async fn manifest(&self, sequence: u64) -> Result<manifest::Manifest> {
        manifest::read(self, sequence).await
    }

    /// Publishes a run under the next sequence number, which this call finds. Readers switch to it as a whole.
    ///
    /// # Errors
    /// [`LakeError::Store`] of kind `Conflict` when another run published first: plan again from its manifest.
    pub async fn publish(&self, manifest: manifest::Manifest) -> Result<manifest::Manifest> {
        manifest::publish(self, manifest).await
    }

    pub(crate) async fn list_names(&self, prefix: &ObjectPath) -> Result<Vec<String>> {
        let mut names: Vec<String> = self
            .inner
            .store
            .list(Some(prefix))
            .map_ok(|object| object.location.filename().unwrap_or_default().to_owned())
            .try_collect()
            .await
            .map_err(LakeError::store(format!("cannot list {prefix}")))?;
        names.sort();
        Ok(names)
    }
}

pub(crate) fn kernel_schema(name: &TableName, schema: &SchemaRef) -> Result<StructType> {
    use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;

    let fields = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = delta_compatible(field.data_type()).map_err(|reason| LakeError::Schema {
                table: name.to_string(),
                reason: format!("column {} has type {reason}", field.name()),
            })?;
            Ok(arrow::datatypes::Field::new(field.name(), data_type, field.is_nullable())
                .with_metadata(field.metadata().clone()))
        })
        .collect::<Result<Vec<_>>>()?;
    let schema = arrow::datatypes::Schema::new(fields);
    (&schema).try_into_kernel().map_err(|error: arrow::error::ArrowError| LakeError::Schema {
        table: name.to_string(),
        reason: error.to_string(),
    })
}

/// Equal but for names of list items and nullability, which Delta renames and widens.
fn same_shape(left: &arrow::datatypes::DataType, right: &arrow::datatypes::DataType) -> bool {
    left.equals_datatype(right)
}

/// The part of a URL that names a store: scheme and authority.
fn store_url(url: &Url) -> Result<ObjectStoreUrl> {
    ObjectStoreUrl::parse(&url[..url::Position::BeforePath])
        .map_err(|error| LakeError::InvalidUrl { url: url.to_string(), reason: error.to_string() })
}

/// delta-rs knows `file` and `memory` by itself. Cloud stores whose conditional PUT is atomic need no other log store.
pub(crate) fn register_log_stores() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for scheme in ["s3", "s3a", "gs", "az", "abfs", "abfss"] {
            if let Ok(url) = Url::parse(&format!("{scheme}://")) {
                logstore_factories().insert(url, Arc::new(ConditionalPutLogStores));
            }
        }
    });
}

#[derive(Debug)]
struct ConditionalPutLogStores;

impl LogStoreFactory for ConditionalPutLogStores {
    fn with_options(
        &self,
        prefixed_store: Arc<dyn ObjectStore>,
        root_store: Arc<dyn ObjectStore>,
        location: &Url,
        options: &StorageConfig,
    ) -> DeltaResult<Arc<dyn LogStore>> {
        Ok(default_logstore(prefixed_store, root_store, location, options))
    }
}
