//! Files that were refused as a whole: truncated, in another encoding, without the contract's columns. They wait under their
//! path until they, or their contract, are mended; the files beside them are not held up.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use holdfast_lake::{Lake, Table, TableSpec};
use holdfast_types::TableName;
use serde::Serialize;

use crate::Result;
use crate::discover::FoundFile;
use crate::error::IngestError;
use crate::ledger::{field, read, times};
use crate::spec::{SourceSpec, timestamp_type};

const REFUSED: &str = "metric.ingest_refused_files";

/// A file that was refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedFile {
    /// The file, relative to the ingested folder.
    pub path: String,
    /// What kind of error it was.
    pub kind: String,
    /// Why, and what to do about it.
    pub reason: String,
    #[serde(skip)]
    pub(crate) size: u64,
    #[serde(skip)]
    pub(crate) etag: Option<String>,
    /// UTC microseconds.
    #[serde(skip)]
    pub(crate) modified: i64,
    /// The contract it did not fit.
    #[serde(skip)]
    pub(crate) contract: String,
    /// UTC microseconds.
    #[serde(skip)]
    pub(crate) refused_at: i64,
}

impl RefusedFile {
    pub(crate) fn new(file: &FoundFile, spec: &SourceSpec, error: &IngestError, refused_at: i64) -> Self {
        Self {
            path: file.path.clone(),
            kind: error.kind().as_str().to_owned(),
            reason: error.to_string(),
            size: file.size,
            etag: file.etag.clone(),
            modified: file.modified.timestamp_micros(),
            contract: spec.fingerprint.clone(),
            refused_at,
        }
    }

    /// Whether the file is still what was refused, under the contract that refused it.
    fn is(&self, file: &FoundFile, spec: &SourceSpec) -> bool {
        self.size == file.size
            && self.contract == spec.fingerprint
            && match (&self.etag, &file.etag) {
                (Some(known), Some(etag)) => known == etag,
                _ => self.modified == file.modified.timestamp_micros(),
            }
    }
}

/// The newest refusal of each path.
#[derive(Debug, Default)]
pub(crate) struct RefusedFiles(HashMap<String, RefusedFile>);

impl RefusedFiles {
    /// Reads those of one source. Where nothing was ever refused there is no table.
    pub(crate) async fn load(lake: &Lake, pipeline: &str, source: &str) -> Result<Self> {
        let mut refused = Self::default();
        let Some(table) = lake.table(&refused_table()?.name).await? else { return Ok(refused) };
        for rows in read(lake, &table, REFUSED).await? {
            let column = |name: &str| {
                let expected = refused_schema().field_with_name(name).map(|field| field.data_type().clone()).ok();
                rows.column_by_name(name).filter(|array| Some(array.data_type()) == expected.as_ref()).ok_or_else(
                    || IngestError::Ledger {
                        table: REFUSED,
                        message: format!("has no column {name} of the expected type"),
                    },
                )
            };
            let text = |name: &str| column(name).map(|array| array.as_string::<i32>());
            let time = |name: &str| column(name).map(|array| array.as_primitive::<TimestampMicrosecondType>());
            let (pipelines, sources, paths) = (text("pipeline")?, text("source")?, text("path")?);
            let (etags, contracts, kinds, reasons) = (text("etag")?, text("contract")?, text("kind")?, text("reason")?);
            let sizes = column("size")?.as_primitive::<Int64Type>();
            let (modified, refused_at) = (time("modified")?, time("refused_at")?);
            for row in
                (0..rows.num_rows()).filter(|row| pipelines.value(*row) == pipeline && sources.value(*row) == source)
            {
                refused.add(RefusedFile {
                    path: paths.value(row).to_owned(),
                    kind: kinds.value(row).to_owned(),
                    reason: reasons.value(row).to_owned(),
                    size: u64::try_from(sizes.value(row)).unwrap_or(0),
                    etag: etags.is_valid(row).then(|| etags.value(row).to_owned()),
                    modified: modified.value(row),
                    contract: contracts.value(row).to_owned(),
                    refused_at: refused_at.value(row),
                });
            }
        }
        Ok(refused)
    }

    pub(crate) fn add(&mut self, file: RefusedFile) {
        let newer = self.0.get(&file.path).is_none_or(|known| known.refused_at <= file.refused_at);
        if newer {
            self.0.insert(file.path.clone(), file);
        }
    }

    /// Files below a folder that were refused under another contract than this.
    pub(crate) fn under_other_contract<'a>(
        &'a self,
        folder: &'a str,
        spec: &'a SourceSpec,
    ) -> impl Iterator<Item = &'a str> {
        let files =
            self.0.values().filter(move |file| file.path.starts_with(folder) && file.contract != spec.fingerprint);
        files.map(|file| file.path.as_str())
    }

    /// The refusal that still holds for a file.
    pub(crate) fn of(&self, file: &FoundFile, spec: &SourceSpec) -> Option<&RefusedFile> {
        self.0.get(&file.path).filter(|refused| refused.is(file, spec))
    }
}

fn refused_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("pipeline", DataType::Utf8, "Pipeline of the source"),
        field("source", DataType::Utf8, "Source of the file"),
        field("path", DataType::Utf8, "File, relative to the ingested folder"),
        field("size", DataType::Int64, "Size in bytes"),
        field("etag", DataType::Utf8, "The store's mark of the file's version, where it has one"),
        field("modified", timestamp_type(), "When the file was last changed"),
        field("contract", DataType::Utf8, "Fingerprint of the contract that the file did not fit"),
        field("kind", DataType::Utf8, "What kind of error it was"),
        field("reason", DataType::Utf8, "Why it was refused, and what to do"),
        field("refused_at", timestamp_type(), "When it was refused"),
    ]))
}

/// `metric.ingest_refused_files`.
pub(crate) fn refused_table() -> Result<TableSpec> {
    Ok(TableSpec {
        name: TableName::new("metric", "ingest_refused_files")?,
        schema: refused_schema(),
        partition_by: Vec::new(),
        comment: "Every file that was refused as a whole, and why; the newest row of a path counts".to_owned(),
    })
}

/// A row of `metric.ingest_refused_files`.
pub(crate) fn refused_row(pipeline: &str, source: &str, file: &RefusedFile, table: &Table) -> Result<RecordBatch> {
    let text = |value: &str| Arc::new(StringArray::from(vec![value])) as ArrayRef;
    let time = |micros: i64| times(std::iter::once(Some(micros)));
    let columns: Vec<ArrayRef> = vec![
        text(pipeline),
        text(source),
        text(&file.path),
        Arc::new(Int64Array::from(vec![i64::try_from(file.size).unwrap_or(i64::MAX)])),
        Arc::new(StringArray::from(vec![file.etag.as_deref()])),
        time(file.modified),
        text(&file.contract),
        text(&file.kind),
        text(&file.reason),
        time(file.refused_at),
    ];
    RecordBatch::try_new(Arc::clone(table.schema()), columns).map_err(IngestError::internal)
}
