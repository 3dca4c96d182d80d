//! A spine in a file: Parquet, or CSV with a header.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use futures::StreamExt;
use futures::stream::BoxStream;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use crate::{FeatureStoreError, Result};

/// How a spine is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpineFormat {
    /// Parquet.
    Parquet,
    /// CSV with a header, in UTF-8.
    Csv,
}

impl SpineFormat {
    /// By the end of a file's name.
    ///
    /// # Errors
    /// When it is neither.
    pub fn of(file: &Path) -> Result<Self> {
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_lowercase().as_str() {
            "parquet" => Ok(Self::Parquet),
            "csv" => Ok(Self::Csv),
            _ => Err(FeatureStoreError::Spine {
                file: file.to_owned(),
                reason: "is neither .parquet nor .csv".to_owned(),
            }),
        }
    }

    /// The end of its files' names.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
        }
    }
}

/// A file with a spine.
#[derive(Debug, Clone)]
pub struct Spine {
    /// Where it is.
    pub file: PathBuf,
    /// How it is written.
    pub format: SpineFormat,
}

/// A spine that is read: its columns, and its rows in order.
pub(crate) struct OpenSpine {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: BoxStream<'static, std::result::Result<RecordBatch, ArrowError>>,
    /// Where the format tells.
    pub(crate) rows: Option<u64>,
}

impl Spine {
    /// What its bytes hash to, and how many they are.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn digest(&self) -> Result<(String, u64)> {
        let mut file = self.open_file()?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            match file.read(&mut buffer).map_err(|source| self.unreadable(source))? {
                0 => return Ok((hasher.finalize().to_hex().to_string(), bytes)),
                read => {
                    hasher.update(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
    }

    /// Opens it. In CSV, text says no types: `keys` are read as they are in history, `timestamp` as a moment with its zone (or in UTC where that is said), the rest as what it looks like.
    pub(crate) fn open(
        &self,
        keys: &BTreeMap<String, DataType>,
        timestamp: &str,
        zoneless_is_utc: bool,
    ) -> Result<OpenSpine> {
        match self.format {
            SpineFormat::Parquet => self.open_parquet(),
            SpineFormat::Csv => self.open_csv(keys, timestamp, zoneless_is_utc),
        }
    }

    fn open_parquet(&self) -> Result<OpenSpine> {
        let wrong = |error: parquet::errors::ParquetError| self.wrong(error.to_string());
        let builder = ParquetRecordBatchReaderBuilder::try_new(self.open_file()?).map_err(wrong)?;
        let schema = Arc::new(builder.schema().as_ref().clone().with_metadata(Default::default()));
        let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).ok();
        let reader = builder.with_batch_size(8_192).build().map_err(wrong)?;
        let named = Arc::clone(&schema);
        let batches = reader.map(move |batch| batch?.with_schema(Arc::clone(&named)));
        Ok(OpenSpine { schema, batches: futures::stream::iter(batches).boxed(), rows })
    }

    fn open_csv(&self, keys: &BTreeMap<String, DataType>, timestamp: &str, zoneless_is_utc: bool) -> Result<OpenSpine> {
        let format = Format::default().with_header(true);
        let wrong = |error: ArrowError| self.wrong(error.to_string());
        let (inferred, rows) = format.infer_schema(BufReader::new(self.open_file()?), None).map_err(wrong)?;
        let read_as = |field: &Field| match (keys.get(field.name()), field.data_type()) {
            (Some(key), _) => key.clone(),
            _ if field.name() == timestamp => DataType::Utf8,
            (None, DataType::Null) => DataType::Utf8,
            (None, other) => other.clone(),
        };
        let fields: Vec<Field> =
            inferred.fields().iter().map(|field| Field::new(field.name(), read_as(field), true)).collect();
        let read = Arc::new(Schema::new(fields.clone()));
        let at = fields.iter().position(|field| field.name() == timestamp);
        let schema = match at {
            Some(at) => {
                let mut fields = fields;
                fields[at] = Field::new(timestamp, moment_type(), true);
                Arc::new(Schema::new(fields))
            }
            // The join tells what is missing.
            None => Arc::clone(&read),
        };
        let reader = ReaderBuilder::new(read)
            .with_header(true)
            .with_batch_size(8_192)
            .build(BufReader::new(self.open_file()?))
            .map_err(wrong)?;
        let (named, mut first_row) = (Arc::clone(&schema), 0);
        let batches = reader.map(move |batch| {
            // What the reader says quotes the text that it could not read.
            let batch = batch.map_err(|error| ArrowError::CsvError(without_values(&error.to_string())))?;
            let mut columns = batch.columns().to_vec();
            if let Some(at) = at {
                columns[at] = moments(&columns[at], first_row, zoneless_is_utc)?;
            }
            first_row += batch.num_rows();
            RecordBatch::try_new(Arc::clone(&named), columns)
        });
        Ok(OpenSpine { schema, batches: futures::stream::iter(batches).boxed(), rows: Some(rows as u64) })
    }

    fn open_file(&self) -> Result<File> {
        File::open(&self.file).map_err(|source| self.unreadable(source))
    }

    fn unreadable(&self, source: std::io::Error) -> FeatureStoreError {
        FeatureStoreError::File { what: "cannot read the spine", path: self.file.clone(), source }
    }

    fn wrong(&self, reason: String) -> FeatureStoreError {
        FeatureStoreError::Spine {
            file: self.file.clone(),
            reason: format!("cannot be read: {}", without_values(&reason)),
        }
    }
}

/// Texts as moments: RFC 3339, with a blank in the place of the `T` if need be; a day alone is its midnight. Rows count from 0, as those of the answer do.
fn moments(texts: &ArrayRef, first_row: usize, zoneless_is_utc: bool) -> std::result::Result<ArrayRef, ArrowError> {
    let mut moments = Vec::with_capacity(texts.len());
    for (row, text) in texts.as_string::<i32>().iter().enumerate() {
        let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
            moments.push(None);
            continue;
        };
        let with_zone = text.replacen(' ', "T", 1);
        let moment =
            DateTime::parse_from_rfc3339(&with_zone).map(|moment| moment.timestamp_micros()).ok().or_else(|| {
                let moment = NaiveDateTime::parse_from_str(&with_zone, "%Y-%m-%dT%H:%M:%S%.f").ok();
                let midnight = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
                let moment = moment.or_else(midnight)?.and_utc().timestamp_micros();
                zoneless_is_utc.then_some(moment)
            });
        let Some(moment) = moment else {
            let row = first_row + row;
            return Err(ArrowError::ParseError(format!(
                "row {row}: its moment is no timestamp with a zone: write 2026-01-31T00:00:00Z, or say --timestamps-are-utc"
            )));
        };
        moments.push(Some(moment));
    }
    Ok(Arc::new(TimestampMicrosecondArray::from(moments).with_timezone("UTC")))
}

/// The text with what stands in quotation marks left out: it can be a customer's.
fn without_values(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for (index, part) in text.split(['\'', '"']).enumerate() {
        clean.push_str(if index % 2 == 0 { part } else { "…" });
    }
    clean
}

fn moment_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}
