use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::{ParquetOptions, TableParquetOptions};
use datafusion::common::pruning::PrunableStatistics;
use datafusion::common::{DFSchema, Result, Statistics, project_schema};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use deltalake_core::kernel::Add;
use object_store::ObjectMeta;
use object_store::path::Path;

use crate::schema::without_columns;
use crate::statistics::{as_bounds, from_json, partition_scalar};
use crate::table::Table;

/// Reads one version of a table as plain Parquet scans: files that cannot match are left out by the log's statistics, partition columns are constants
/// of their files, and the plan travels like any other.
#[derive(Debug)]
pub struct LakeTableProvider {
    table: Table,
    schema: SchemaRef,
    files: Vec<Add>,
}

impl LakeTableProvider {
    /// Over `files` of the table, which hold the columns of `schema`, partition columns last.
    pub(crate) fn new(table: Table, schema: SchemaRef, files: Vec<Add>) -> Self {
        Self { table, schema, files }
    }

    /// The version it reads.
    pub fn table(&self) -> &Table {
        &self.table
    }

    fn partitioned_file(&self, add: &Add) -> Result<(PartitionedFile, Arc<Statistics>)> {
        let schema = &self.schema;
        let damaged = |what: String| {
            datafusion::error::DataFusionError::Execution(format!("table {}: {what}", self.table.name()))
        };
        if add.deletion_vector.is_some() {
            return Err(damaged(
                "has deletion vectors, which this version does not read: rewrite it with the tool that made them"
                    .to_owned(),
            ));
        }
        let mut partition_values = Vec::new();
        for column in self.table.partition_columns() {
            let field = schema.field_with_name(column)?;
            let text = add.partition_values.get(column).and_then(Option::as_deref);
            partition_values.push(partition_scalar(text, field.data_type()).ok_or_else(|| {
                damaged(format!("partition column {column} has a value that is not {}", field.data_type()))
            })?);
        }
        // The log percent-encodes paths once; the library has decoded that. What is left is the object's name.
        let location = self.table.location_of(&add.path);
        let location = Path::parse(location.as_ref()).map_err(|error| damaged(error.to_string()))?;
        let meta = ObjectMeta {
            location,
            last_modified: chrono::DateTime::from_timestamp_millis(add.modification_time).unwrap_or_default(),
            size: u64::try_from(add.size).unwrap_or(0),
            e_tag: None,
            version: None,
        };
        let statistics = Arc::new(from_json(add.stats.as_deref(), schema, &partition_values));
        let file = PartitionedFile::new_from_meta(meta).with_partition_values(partition_values);
        Ok((file, statistics))
    }

    /// Reads every file from its first row to its last, each as a partition of its own, in the order in which they were given.
    pub(crate) fn scan_each_file(&self) -> Result<Arc<dyn ExecutionPlan>> {
        let groups = self
            .files
            .iter()
            .map(|add| Ok(FileGroup::new(vec![self.partitioned_file(add)?.0])))
            .collect::<Result<Vec<_>>>()?;
        let source = self.source(ParquetOptions::default())?;
        let config = FileScanConfigBuilder::new(self.table.store_url().clone(), Arc::new(source))
            .with_file_groups(groups)
            // Else a partition that is done goes on with a file of another.
            .with_preserve_order(true)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// See [`Table::scan_matching`]. Of a plan that goes through the planner that one pushes the filters into the scan.
    pub(crate) fn scan_matching(&self, state: &dyn Session, filters: &[Expr]) -> Result<Arc<dyn ExecutionPlan>> {
        self.plan(state, None, filters, None, true)
    }

    fn source(&self, options: ParquetOptions) -> Result<ParquetSource> {
        let partition_fields: Vec<_> = self
            .table
            .partition_columns()
            .iter()
            .map(|column| self.schema.field_with_name(column).map(|field| Arc::new(field.clone())))
            .collect::<Result<_, _>>()?;
        let file_schema = without_columns(&self.schema, self.table.partition_columns());
        let table_schema = TableSchema::builder(file_schema).with_table_partition_cols(partition_fields).build();
        let options = TableParquetOptions { global: options, ..Default::default() };
        let readers = self.table.data_files().readers(self.table.store());
        Ok(ParquetSource::new(table_schema)
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(readers))
    }

    fn plan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
        prunes_within_files: bool,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (mut files, mut statistics) = (Vec::new(), Vec::new());
        for add in &self.files {
            let (file, known) = self.partitioned_file(add)?;
            files.push(file);
            statistics.push(known);
        }
        let predicate = self.predicate(state, filters)?;
        if let Some(keep) = self.kept(predicate.as_ref(), &statistics)? {
            let mut keep_files = keep.iter();
            files.retain(|_| keep_files.next().copied().unwrap_or(true));
            let mut keep_statistics = keep.iter();
            statistics.retain(|_| keep_statistics.next().copied().unwrap_or(true));
        }
        if files.is_empty() {
            // A scan of no files has no partition, which the planner does not take for an answer to anything.
            return Ok(Arc::new(EmptyExec::new(project_schema(&self.schema, projection)?)));
        }
        let total = total(&statistics, &self.schema);
        let files: Vec<PartitionedFile> = files
            .into_iter()
            .zip(&statistics)
            .map(|(file, known)| {
                let mut file = file.with_statistics(Arc::new(as_bounds(known)));
                // `with_statistics` claims that partition columns hold no null; keep what is known.
                file.statistics = Some(Arc::new(as_bounds(known)));
                file
            })
            .collect();

        let groups = FileGroup::new(files).split_files(state.config().target_partitions());
        let mut source = self.source(state.config().options().execution.parquet.clone())?;
        if let Some(predicate) = predicate.filter(|_| prunes_within_files) {
            source = source.with_predicate(predicate);
        }
        let config = FileScanConfigBuilder::new(self.table.store_url().clone(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(total)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn predicate(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let Some(predicate) = conjunction(filters.to_vec()) else { return Ok(None) };
        let schema = DFSchema::try_from(Arc::clone(&self.schema))?;
        state.create_physical_expr(predicate, &schema).map(Some)
    }

    /// The indexes of the files that may hold a row for which `predicate` is true.
    fn kept(
        &self,
        predicate: Option<&Arc<dyn PhysicalExpr>>,
        statistics: &[Arc<Statistics>],
    ) -> Result<Option<Vec<bool>>> {
        // Of no files nothing can be left out, and DataFusion warns when it is asked to.
        let Some(predicate) = predicate.filter(|_| !statistics.is_empty()) else { return Ok(None) };
        let Some(pruning) =
            PruningPredicateBuilder::new().with_file_schema(Arc::clone(&self.schema)).build(Arc::clone(predicate))
        else {
            return Ok(None);
        };
        let known = PrunableStatistics::new(statistics.to_vec(), Arc::clone(&self.schema));
        Ok(Some(pruning.prune(&known)?))
    }
}

#[async_trait]
impl TableProvider for LakeTableProvider {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.plan(state, projection, filters, limit, false)
    }
}

/// Statistics of the whole scan: rows are added up exactly, the rest is left open.
fn total(files: &[Arc<Statistics>], schema: &SchemaRef) -> Statistics {
    let mut total = Statistics::new_unknown(schema);
    let mut rows = datafusion::common::stats::Precision::Exact(0);
    for file in files {
        rows = rows.add(&file.num_rows);
    }
    total.num_rows = rows;
    total
}
