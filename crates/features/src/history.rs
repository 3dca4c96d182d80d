//! What a view's history is: its columns, and the files that hold it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use object_store::path::Path;

use crate::moment::timestamp_type;
use crate::{FeatureError, Result};

/// When something became true, in the columns of history and of changes.
pub const EVENT_TIMESTAMP: &str = "event_timestamp";
/// When it became known here, in the columns of history and of changes.
pub const KNOWN_AT: &str = "known_at";
/// Whether the row says that the key has no features from its event time on, in the columns of history and of changes.
pub const DELETED: &str = "_deleted";
/// Which version of the view brought the row, in the columns of history.
pub const VERSION: &str = "_version";

/// The columns of a view's history and the number of its buckets. Both stay as they are: other ones are another view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistorySchema {
    view: String,
    keys: usize,
    schema: SchemaRef,
    buckets: u32,
}

impl HistorySchema {
    /// A history of `features` by `keys`. Its files have the keys, [`EVENT_TIMESTAMP`] and [`KNOWN_AT`] (microseconds in UTC), [`VERSION`], [`DELETED`] and the
    /// features, in this order; rows are spread over `buckets` by a hash of the key.
    ///
    /// # Errors
    /// No key, a key that is neither `Int64` nor `Utf8`, two columns of one name, no bucket.
    pub fn new(view: &str, keys: Vec<Field>, features: Vec<Field>, buckets: u32) -> Result<Self> {
        let wrong = |reason: String| FeatureError::View { view: view.to_owned(), reason };
        if keys.is_empty() {
            return Err(wrong("there is no key column: name at least one".to_owned()));
        }
        if buckets == 0 || i32::try_from(buckets).is_err() {
            return Err(wrong(format!("{buckets} buckets: expected 1 to {}", i32::MAX)));
        }
        if let Some(key) = keys.iter().find(|key| !matches!(key.data_type(), DataType::Int64 | DataType::Utf8)) {
            let (name, found) = (key.name(), key.data_type());
            return Err(wrong(format!("key {name} is {found}, expected Int64 or Utf8: cast it in the view")));
        }
        let count = keys.len();
        let mut fields: Vec<Field> = keys.into_iter().map(|key| key.with_nullable(false)).collect();
        fields.push(Field::new(EVENT_TIMESTAMP, timestamp_type(), false));
        fields.push(Field::new(KNOWN_AT, timestamp_type(), false));
        fields.push(Field::new(VERSION, DataType::Int64, false));
        fields.push(Field::new(DELETED, DataType::Boolean, false));
        // A deletion has none.
        fields.extend(features.into_iter().map(|feature| feature.with_nullable(true)));
        for (at, field) in fields.iter().enumerate() {
            if fields[..at].iter().any(|other| other.name() == field.name()) {
                return Err(wrong(format!("two columns are called {}: rename one", field.name())));
            }
        }
        Ok(Self { view: view.to_owned(), keys: count, schema: Arc::new(Schema::new(fields)), buckets })
    }

    /// The view's name.
    pub fn view(&self) -> &str {
        &self.view
    }

    /// The columns of its files.
    pub fn file_schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many buckets there are.
    pub fn buckets(&self) -> u32 {
        self.buckets
    }

    /// The key columns, in the order that files are sorted by.
    pub fn keys(&self) -> &[FieldRef] {
        &self.schema.fields()[..self.keys]
    }

    /// The features.
    pub fn features(&self) -> &[FieldRef] {
        &self.schema.fields()[self.keys + 4..]
    }

    /// The names of the columns that rows are sorted by. Rows that agree in all of them are in the order in which they came.
    pub fn order(&self) -> impl Iterator<Item = &str> {
        self.schema.fields()[..self.keys + 3].iter().map(|field| field.name().as_str())
    }
}

/// One sorted file of one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryFile {
    /// Which bucket.
    pub bucket: u32,
    /// Where it is.
    pub path: Path,
    /// Its size.
    pub bytes: u64,
    /// How many rows it has.
    pub rows: u64,
    /// The versions whose rows it holds.
    pub versions: RangeInclusive<i64>,
}

/// The files of a view that make up its history, by bucket and version. No version is in two files of a bucket, so the order of files is the order of versions.
#[derive(Debug, Clone, Default)]
pub struct History {
    by_bucket: BTreeMap<u32, Vec<HistoryFile>>,
}

impl History {
    /// The history in `files`, in any order.
    ///
    /// # Errors
    /// A bucket that the view does not have; two files of a bucket that hold the same version.
    pub fn new(schema: &HistorySchema, files: impl IntoIterator<Item = HistoryFile>) -> Result<Self> {
        let mut by_bucket: BTreeMap<u32, Vec<HistoryFile>> = BTreeMap::new();
        for file in files {
            if file.bucket >= schema.buckets || file.versions.is_empty() {
                let (bucket, versions, buckets) = (file.bucket, &file.versions, schema.buckets);
                return Err(FeatureError::File {
                    file: file.path.to_string(),
                    reason: format!(
                        "bucket {bucket}, versions {versions:?}: view {} has {buckets} buckets",
                        schema.view
                    ),
                });
            }
            by_bucket.entry(file.bucket).or_default().push(file);
        }
        for (&bucket, files) in &mut by_bucket {
            files.sort_by_key(|file| *file.versions.start());
            for pair in files.windows(2) {
                if pair[1].versions.start() <= pair[0].versions.end() {
                    return Err(FeatureError::VersionsOverlap {
                        view: schema.view.clone(),
                        bucket,
                        first: pair[0].path.to_string(),
                        second: pair[1].path.to_string(),
                        version: *pair[1].versions.start(),
                    });
                }
            }
        }
        Ok(Self { by_bucket })
    }

    /// The files of a bucket, older versions first.
    pub fn files(&self, bucket: u32) -> &[HistoryFile] {
        self.by_bucket.get(&bucket).map_or(&[], Vec::as_slice)
    }

    /// All files, by bucket, older versions first.
    pub fn all_files(&self) -> impl Iterator<Item = &HistoryFile> {
        self.by_bucket.values().flatten()
    }

    /// What is worth merging: for each bucket at most one stretch of files that follow each other, newest included. A file joins the stretch when all newer
    /// ones together are at least half as big as it is, and a stretch of fewer than `files_min` (at least 2) is left alone: so every row is rewritten a number of
    /// times that grows with the logarithm of the history, and a bucket has about `files_min` times that logarithm of files.
    pub fn compactions(&self, files_min: usize) -> Vec<Vec<HistoryFile>> {
        let mut found = Vec::new();
        for files in self.by_bucket.values() {
            let mut newer = 0;
            let stretch = files
                .iter()
                .rev()
                .take_while(|file| {
                    let joins = newer == 0 || file.rows <= 2 * newer;
                    newer += file.rows;
                    joins
                })
                .count();
            if stretch >= files_min.max(2) {
                found.push(files[files.len() - stretch..].to_vec());
            }
        }
        found
    }
}
