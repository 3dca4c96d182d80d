//! Record batches that were put: checked against the contract, durable as objects of an inbox, each once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use bytes::Bytes;
use chrono::{DateTime, NaiveDate, Utc};
use futures::TryStreamExt;
use holdfast_lake::Lake;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use tokio::time::timeout;
use uuid::{NoContext, Timestamp, Uuid};

use crate::Result;
use crate::error::IngestError;
use crate::grammar::{suggest, type_name};
use crate::inbox::{Inbox, STREAM_DAYS};
use crate::parquet_rows::is_natural;
use crate::spec::{ColumnSpec, SourceSpec};

/// The longest name of a stream, in bytes.
const STREAM_NAME_MAX: usize = 128;
/// Mistakes that are told of a schema.
const MISTAKES_SHOWN_MAX: usize = 12;
/// Of a type's name in a message: a client may have nested it without end.
const TYPE_SHOWN_MAX: usize = 200;

/// Where the batches of a source's streams become durable:
/// `<lake>/_holdfast/inbox/<pipeline>/<source>/put/<day>/<stream>/<number>.parquet`, an object a batch. The day is the one on
/// which the stream began, so that a batch has one name however often, whenever and by whichever server it is taken; an
/// object is created on the condition that it is not there.
#[derive(Debug, Clone)]
pub struct PutInbox {
    inbox: Inbox,
    spec: Arc<SourceSpec>,
    /// Where the beginnings of named streams are kept.
    beginnings: Path,
    write_timeout: Duration,
}

impl PutInbox {
    /// The put side of a source's inbox. Nothing is read or written. An object that is not written within `write_timeout`
    /// has failed.
    pub fn new(lake: &Lake, pipeline: &str, spec: &SourceSpec, write_timeout: Duration) -> Self {
        let beginnings = lake.system_folder().path.join("puts").join(pipeline).join(spec.name.as_str());
        let inbox = Inbox::new(lake, pipeline, spec);
        Self { inbox, spec: Arc::new(spec.clone()), beginnings, write_timeout }
    }

    /// The inbox, for its reader.
    pub fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// The source.
    pub fn source(&self) -> &str {
        &self.spec.name
    }

    /// Whether nothing was ever put.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn is_empty(&self) -> Result<bool> {
        let folder = self.inbox.puts_folder();
        let mut objects = self.store().list(Some(&folder));
        Ok(objects.try_next().await.map_err(IngestError::store(folder.as_ref()))?.is_none())
    }

    /// How batches of `schema` are stored.
    ///
    /// # Errors
    /// [`IngestError::Batch`] with every column that does not fit the contract.
    pub fn layout(&self, schema: &Schema) -> Result<PutLayout> {
        PutLayout::new(&self.spec, schema)
    }

    /// The stream of this name, which begins now or did before; without a name a new one, whose name can be used to go on
    /// with it.
    ///
    /// # Errors
    /// [`IngestError::Stream`] when the name cannot be one, or the stream began too long ago; what the store answers.
    pub async fn stream(&self, name: Option<&str>) -> Result<PutStream> {
        let now = self.inbox.lake().clock().now();
        let name = name.map_or_else(|| new_name(now), str::to_owned);
        check_name(&name)?;
        let today = now.date_naive();
        let began = match day_in(&name) {
            Some(day) => day,
            None => self.beginning_of(&name, today).await?,
        };
        let age = (today - began).num_days();
        // The clock that named it, or another server's, may be ahead.
        if age < -1 || u64::try_from(age).is_ok_and(|days| days >= STREAM_DAYS) {
            let when = if age < 0 { "begins" } else { "began" };
            return Err(IngestError::Stream {
                message: format!(
                    "the stream {when} on {began} and takes batches on that day and the next (UTC), and it is {today}: \
                     give the stream another name"
                ),
                stream: name,
            });
        }
        let folder = self.inbox.stream_folder(began, &name);
        Ok(PutStream { inbox: self.inbox.clone(), folder, name, write_timeout: self.write_timeout })
    }

    /// The day on which a named stream began: `today`, if nobody has used the name before.
    async fn beginning_of(&self, name: &str, today: NaiveDate) -> Result<NaiveDate> {
        let path = self.beginnings.clone().join(format!("{name}.json"));
        let content = serde_json::json!({ "began": today }).to_string();
        let failed = match self.store().put_opts(&path, content.into(), PutMode::Create.into()).await {
            Ok(_) => return Ok(today),
            Err(error) => error,
        };
        // Somebody was first, or the answer was lost: what is there counts.
        let found = match self.store().get(&path).await {
            Ok(found) => found.bytes().await.map_err(IngestError::store(path.as_ref()))?,
            Err(_) => return Err(IngestError::Store { what: format!("cannot write {path}"), source: failed }),
        };
        let began = serde_json::from_slice::<serde_json::Value>(&found).ok();
        let began = began.and_then(|began| began.get("began")?.as_str()?.parse().ok());
        began.ok_or_else(|| IngestError::Stream {
            stream: name.to_owned(),
            message: format!(
                "{path} in the lake, which says when the stream began, cannot be read: give the stream another name"
            ),
        })
    }

    fn store(&self) -> &Arc<dyn ObjectStore> {
        self.inbox.lake().store()
    }
}

fn new_name(now: DateTime<Utc>) -> String {
    let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.timestamp_subsec_nanos())).to_string()
}

fn check_name(name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.is_empty() && name.len() <= STREAM_NAME_MAX && !name.starts_with('.') && name.bytes().all(good) {
        return Ok(());
    }
    Err(IngestError::Stream {
        stream: name.chars().take(STREAM_NAME_MAX).filter(|c| !c.is_control()).collect(),
        message: format!(
            "a stream's name has 1 to {STREAM_NAME_MAX} letters, digits, `-`, `_` and `.` of ASCII, and does not begin with `.`"
        ),
    })
}

/// The day in a name that is a UUID of version 7.
fn day_in(name: &str) -> Option<NaiveDate> {
    let uuid = Uuid::parse_str(name).ok().filter(|uuid| uuid.to_string() == name)?;
    let (seconds, nanos) = uuid.get_timestamp().filter(|_| uuid.get_version_num() == 7)?.to_unix();
    Some(DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)?.date_naive())
}

/// What became of a batch, which is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is stored now.
    New,
    /// It was stored before, with the same rows.
    Known,
}

/// A client's sequence of numbered batches.
#[derive(Debug, Clone)]
pub struct PutStream {
    inbox: Inbox,
    folder: Path,
    name: String,
    write_timeout: Duration,
}

impl PutStream {
    /// The largest number of a batch.
    pub const BATCH_MAX: u64 = 999_999_999_999;

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes a batch durable under its number. When this returns `Ok`, it is (ING-1), and once (ING-2). May be called again
    /// after an error, and dropped: then the batch is stored as a whole or not at all.
    ///
    /// # Errors
    /// [`IngestError::BatchTaken`] when the number has other rows already; what the store answers, after which it is open
    /// whether the batch is stored.
    pub async fn store(&self, batch: u64, object: Bytes) -> Result<Stored> {
        let path = Inbox::put_object(&self.folder, batch);
        let stored = self.create(&path, batch, object).await;
        if stored.is_ok() {
            self.inbox.announce(&path);
        }
        stored
    }

    async fn create(&self, path: &Path, batch: u64, object: Bytes) -> Result<Stored> {
        let store = self.inbox.lake().store();
        let put = store.put_opts(path, object.clone().into(), PutMode::Create.into());
        let (failed, was_there) = match timeout(self.write_timeout, put).await {
            Ok(Ok(_)) => return Ok(Stored::New),
            Ok(Err(error)) => {
                let was_there = matches!(
                    error,
                    object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }
                );
                let what = format!("cannot write {path}, whether it is there is open, send it again");
                (IngestError::Store { what, source: error }, was_there)
            }
            Err(_) => (IngestError::NoAnswer { what: path.to_string(), timeout: self.write_timeout }, false),
        };
        // Whether there or not, by this write or another: what is found decides.
        let found = async { store.get(path).await?.bytes().await };
        let Ok(Ok(found)) = timeout(self.write_timeout, found).await else { return Err(failed) };
        if found == object && !was_there {
            return Ok(Stored::New);
        }
        if found == object || rows_of(found)? == rows_of(object)? {
            return Ok(Stored::Known);
        }
        Err(IngestError::BatchTaken { stream: self.name.clone(), batch })
    }
}

/// The rows of an object. Another version may have written the same rows in other bytes.
fn rows_of(object: Bytes) -> Result<Vec<RecordBatch>> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder =
        ParquetRecordBatchReaderBuilder::try_new_with_options(object, options).map_err(IngestError::internal)?;
    builder.build().map_err(IngestError::internal)?.collect::<Result<_, _>>().map_err(IngestError::internal)
}

/// How the batches of one schema become objects that are read as any Parquet file of the source is.
#[derive(Debug, Clone)]
pub struct PutLayout {
    source: String,
    /// For each column of an object: which of the client's it is.
    columns: Vec<usize>,
    schema: SchemaRef,
}

impl PutLayout {
    fn new(spec: &SourceSpec, schema: &Schema) -> Result<Self> {
        let mut mistakes = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (index, field) in schema.fields().iter().enumerate() {
            if places.insert(field.name(), index).is_some() {
                mistakes.push(format!("column `{}` is there twice", shown(field.name())));
            }
        }
        // A column may have the name of the file's or of the table's column; under which it is read is the contract's word.
        let mut renamed: HashMap<usize, &str> = HashMap::new();
        for column in &spec.columns {
            match places.get(column.source_name.as_str()).or_else(|| places.get(column.name.as_str())) {
                Some(index) => {
                    renamed.insert(*index, &column.source_name);
                    mistakes.extend(mistake_of(schema.field(*index), column));
                }
                None => mistakes.push(missing(column, &places)),
            }
        }
        let mut columns = Vec::with_capacity(schema.fields().len());
        let mut fields: Vec<FieldRef> = Vec::with_capacity(schema.fields().len());
        for (index, field) in schema.fields().iter().enumerate() {
            let declared = renamed.get(&index).copied();
            match stored_type(field.data_type()) {
                Some(data_type) => {
                    columns.push(index);
                    fields.push(Arc::new(Field::new(declared.unwrap_or(field.name()), data_type, true)));
                }
                None if declared.is_none() => mistakes.push(format!(
                    "column `{}` is outside the contract and holds {}, which cannot be kept: leave it out",
                    shown(field.name()),
                    shown_type(field.data_type())
                )),
                None => {}
            }
        }
        if mistakes.is_empty() {
            return Ok(Self { source: spec.name.clone(), columns, schema: Arc::new(Schema::new(fields)) });
        }
        let more = mistakes.len().saturating_sub(MISTAKES_SHOWN_MAX);
        mistakes.truncate(MISTAKES_SHOWN_MAX);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let message = format!("the columns do not fit the contract: {}{more}", mistakes.join("; "));
        Err(IngestError::Batch { source_name: spec.name.clone(), message })
    }

    /// How many bytes a batch's values have that are not there once for each row: those of dictionaries and views.
    pub fn unpacked_bytes(&self, rows: &RecordBatch) -> usize {
        self.columns.iter().filter_map(|index| rows.columns().get(*index)).map(unpacked_bytes).sum()
    }

    /// The bytes of a batch's object. Those of the same batch of the same stream are the same; those of any other are not,
    /// since content that is in `raw` already would be taken for a copy.
    ///
    /// # Errors
    /// [`IngestError::Batch`] when a value cannot be kept as it is.
    pub fn object(&self, stream: &str, batch: u64, rows: &RecordBatch) -> Result<Bytes> {
        let wrong = |message: String| IngestError::Batch { source_name: self.source.clone(), message };
        let exact = CastOptions { safe: false, ..CastOptions::default() };
        let columns = self
            .columns
            .iter()
            .zip(self.schema.fields())
            .map(|(index, field)| {
                let values = rows.columns().get(*index).ok_or_else(|| wrong(format!("no column {index}")))?;
                if values.data_type() == field.data_type() {
                    return Ok(Arc::clone(values));
                }
                // The kernel's own words would quote the value.
                cast_with_options(values, field.data_type(), &exact).map_err(|_| {
                    wrong(format!(
                        "column `{}` of batch {batch} holds a value that {} has no room for: send another type",
                        shown(field.name()),
                        shown_type(field.data_type())
                    ))
                })
            })
            .collect::<Result<Vec<ArrayRef>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(IngestError::internal)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            // Nothing prunes by them, and they would hold personal data.
            .set_statistics_enabled(EnabledStatistics::None)
            .set_key_value_metadata(Some(vec![
                KeyValue::new("holdfast.stream".to_owned(), stream.to_owned()),
                KeyValue::new("holdfast.batch".to_owned(), batch.to_string()),
            ]))
            .build();
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        // Grown from nothing, it would be there twice each time it is moved.
        let mut object = Vec::with_capacity(size_of_rows(&rows));
        let mut writer = ArrowWriter::try_new_with_options(&mut object, Arc::clone(&self.schema), options)
            .map_err(IngestError::internal)?;
        writer.write(&rows).map_err(IngestError::internal)?;
        writer.close().map_err(IngestError::internal)?;
        Ok(object.into())
    }
}

/// What the rows hold, without what else is in their buffers.
fn size_of_rows(rows: &RecordBatch) -> usize {
    rows.columns().iter().map(|values| values.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

fn unpacked_bytes(values: &ArrayRef) -> usize {
    match values.data_type() {
        DataType::Dictionary(_, _) => {
            let dictionary = values.as_any_dictionary();
            let lengths = lengths_of(dictionary.values());
            if lengths.is_empty() {
                return 0;
            }
            let keys = dictionary.normalized_keys();
            let known = keys.iter().enumerate().filter(|(row, _)| dictionary.is_valid(*row));
            known.map(|(_, key)| lengths.get(*key).copied().unwrap_or(0)).sum()
        }
        DataType::Utf8View | DataType::BinaryView => lengths_of(values).iter().sum(),
        DataType::List(_) => unpacked_bytes(values.as_list::<i32>().values()),
        DataType::LargeList(_) => unpacked_bytes(values.as_list::<i64>().values()),
        DataType::FixedSizeList(_, _) => unpacked_bytes(values.as_fixed_size_list().values()),
        DataType::Struct(_) => values.as_struct().columns().iter().map(unpacked_bytes).sum(),
        _ => 0,
    }
}

/// The length of each value in bytes.
fn lengths_of(values: &ArrayRef) -> Vec<usize> {
    match values.data_type() {
        DataType::Utf8 => values.as_string::<i32>().iter().map(|value| value.map_or(0, str::len)).collect(),
        DataType::LargeUtf8 => values.as_string::<i64>().iter().map(|value| value.map_or(0, str::len)).collect(),
        DataType::Utf8View => values.as_string_view().iter().map(|value| value.map_or(0, str::len)).collect(),
        DataType::Binary => values.as_binary::<i32>().iter().map(|value| value.map_or(0, <[u8]>::len)).collect(),
        DataType::LargeBinary => values.as_binary::<i64>().iter().map(|value| value.map_or(0, <[u8]>::len)).collect(),
        DataType::BinaryView => values.as_binary_view().iter().map(|value| value.map_or(0, <[u8]>::len)).collect(),
        // Wider than all numbers there are.
        other => vec![other.primitive_width().unwrap_or(32); values.len()],
    }
}

fn mistake_of(field: &Field, column: &ColumnSpec) -> Option<String> {
    let fits = stored_type(field.data_type()).is_some_and(|stored| is_natural(&stored, column));
    (!fits).then(|| {
        format!(
            "column `{}` holds {} and the contract says {}",
            shown(field.name()),
            shown_type(field.data_type()),
            type_name(&column.data_type)
        )
    })
}

fn missing(column: &ColumnSpec, places: &HashMap<&str, usize>) -> String {
    let names: Vec<&str> = places.keys().copied().collect();
    let hint =
        suggest(&column.source_name, &names).map_or_else(String::new, |near| format!(" (there is `{}`)", shown(near)));
    let wanted = type_name(&column.data_type);
    if column.source_name == column.name {
        format!("column `{}` ({wanted}) is missing{hint}", column.name)
    } else {
        format!(
            "column `{}` ({wanted}), which may also be called `{}`, is missing{hint}",
            column.source_name, column.name
        )
    }
}

fn shown(name: &str) -> String {
    name.chars().take(TYPE_SHOWN_MAX).filter(|c| !c.is_control()).collect()
}

fn shown_type(data_type: &DataType) -> String {
    shown(&data_type.to_string())
}

/// The type in which values are stored, so that Parquet gives the same back without notes of Arrow's own. `None` for what it
/// has no such type for.
fn stored_type(data_type: &DataType) -> Option<DataType> {
    let stored = match data_type {
        DataType::Null
        | DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float16
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Utf8
        | DataType::Binary => data_type.clone(),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Date64 => DataType::Date32,
        // Parquet has no seconds.
        DataType::Timestamp(TimeUnit::Second, zone) => {
            DataType::Timestamp(TimeUnit::Millisecond, zone.as_ref().map(|_| Arc::from("UTC")))
        }
        DataType::Timestamp(unit, zone) => DataType::Timestamp(*unit, zone.as_ref().map(|_| Arc::from("UTC"))),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
            if *scale >= 0 =>
        {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Decimal256(precision, scale) if *scale >= 0 && *precision <= 38 => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Decimal256(_, scale) if *scale >= 0 => data_type.clone(),
        DataType::Dictionary(_, values) if !values.is_nested() => stored_type(values)?,
        // Not list views, whose items may overlap.
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            DataType::List(Arc::new(Field::new("item", stored_type(item.data_type())?, true)))
        }
        DataType::Struct(fields) if !fields.is_empty() => {
            let mut names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
            names.sort_unstable();
            names.dedup();
            // A field twice could not be told apart.
            if names.len() < fields.len() {
                return None;
            }
            let fields =
                fields.iter().map(|field| Some(Field::new(field.name(), stored_type(field.data_type())?, true)));
            DataType::Struct(fields.collect::<Option<Vec<_>>>()?.into())
        }
        _ => return None,
    };
    (stored == *data_type || can_cast_types(data_type, &stored)).then_some(stored)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Date64Array, DictionaryArray, LargeListArray, LargeStringArray, StringViewArray, StructArray,
        TimestampSecondArray, new_null_array,
    };
    use arrow::datatypes::{Int32Type, Int64Type};

    use super::*;

    fn spec(columns: &str) -> SourceSpec {
        let text = format!("kind = \"k\"\npath = \"*\"\nformat = \"ndjson\"\n[columns]\n{columns}\n");
        SourceSpec::parse("orders.toml", &text).unwrap()
    }

    fn read(object: Bytes) -> RecordBatch {
        let mut batches = rows_of(object).unwrap();
        assert_eq!(batches.len(), 1);
        batches.remove(0)
    }

    #[test]
    fn every_stored_type_is_read_back_as_itself() {
        use DataType as T;
        let nested = T::Struct(vec![Field::new("a", T::Utf8, true), Field::new("b", T::Date64, true)].into());
        let types = [
            T::Null,
            T::Boolean,
            T::Int8,
            T::Int16,
            T::Int32,
            T::Int64,
            T::UInt8,
            T::UInt16,
            T::UInt32,
            T::UInt64,
            T::Float16,
            T::Float32,
            T::Float64,
            T::Utf8,
            T::LargeUtf8,
            T::Utf8View,
            T::Binary,
            T::LargeBinary,
            T::BinaryView,
            T::FixedSizeBinary(3),
            T::Date32,
            T::Date64,
            T::Timestamp(TimeUnit::Second, None),
            T::Timestamp(TimeUnit::Millisecond, None),
            T::Timestamp(TimeUnit::Microsecond, Some("Europe/Berlin".into())),
            T::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
            T::Decimal32(9, 2),
            T::Decimal64(18, 2),
            T::Decimal128(38, 2),
            T::Decimal256(38, 2),
            T::Decimal256(60, 2),
            T::Dictionary(Box::new(T::Int16), Box::new(T::LargeUtf8)),
            T::List(Arc::new(Field::new("element", T::Timestamp(TimeUnit::Second, None), true))),
            T::LargeList(Arc::new(Field::new("item", nested.clone(), true))),
            T::FixedSizeList(Arc::new(Field::new("item", T::Int32, true)), 2),
            nested,
        ];
        for data_type in types {
            let stored = stored_type(&data_type).unwrap_or_else(|| panic!("{data_type} cannot be stored"));
            let schema = Schema::new(vec![Field::new("x", data_type.clone(), true), Field::new("n", T::Int32, true)]);
            let layout = PutLayout::new(&spec("n = \"int32\""), &schema).unwrap();
            let columns = vec![new_null_array(&data_type, 2), new_null_array(&T::Int32, 2)];
            let rows = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
            let found = read(layout.object("s", 0, &rows).unwrap());
            assert!(found.schema().field(0).data_type().equals_datatype(&stored), "{data_type}: {}", found.schema());
            assert_eq!(found.num_rows(), 2);
        }
        let duration = T::Duration(TimeUnit::Second);
        let union = T::Union(arrow::datatypes::UnionFields::empty(), arrow::datatypes::UnionMode::Dense);
        for data_type in [duration, union, T::Time32(TimeUnit::Second), T::Struct(Vec::<Field>::new().into())] {
            assert_eq!(stored_type(&data_type), None, "{data_type}");
        }
    }

    #[test]
    fn values_keep_their_meaning_in_the_object() {
        let spec = spec(
            "at = \"timestamp\"\nday = \"date\"\nkind = \"string\"\nnote = { type = \"string\", from = \"Note\" }\nitems = \"list<struct<sku string>>\"",
        );
        let kinds: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("a")].into_iter().collect();
        let skus = StructArray::from(vec![(
            Arc::new(Field::new("sku", DataType::Utf8View, true)),
            Arc::new(StringViewArray::from(vec!["x", "y"])) as ArrayRef,
        )]);
        let item = Arc::new(Field::new("item", skus.data_type().clone(), true));
        let offsets = arrow::buffer::OffsetBuffer::new(vec![0_i64, 1, 1, 2].into());
        let items = LargeListArray::new(item, offsets, Arc::new(skus), None);
        let rows = RecordBatch::try_from_iter(vec![
            ("kind", Arc::new(kinds) as ArrayRef),
            ("at", Arc::new(TimestampSecondArray::from(vec![0, 1, 1_700_000_000])) as ArrayRef),
            ("day", Arc::new(Date64Array::from(vec![0, 86_400_000, 172_800_000])) as ArrayRef),
            ("note", Arc::new(LargeStringArray::from(vec!["p", "q", "r"])) as ArrayRef),
            ("items", Arc::new(items) as ArrayRef),
        ])
        .unwrap();
        let layout = PutLayout::new(&spec, &rows.schema()).unwrap();
        assert_eq!(layout.unpacked_bytes(&rows), 2 + 2, "the kinds and the items' texts");
        let found = read(layout.object("s", 0, &rows).unwrap());
        let texts = |name: &str| -> Vec<Option<String>> {
            found.column_by_name(name).unwrap().as_string::<i32>().iter().map(|t| t.map(str::to_owned)).collect()
        };
        assert_eq!(texts("kind"), [Some("a".to_owned()), None, Some("a".to_owned())]);
        assert_eq!(texts("Note")[2].as_deref(), Some("r"), "stored under the name by which it is read");
        let days = found.column_by_name("day").unwrap().as_primitive::<arrow::datatypes::Date32Type>();
        assert_eq!(days.values(), &[0, 1, 2]);
        let at = found.column_by_name("at").unwrap().as_primitive::<arrow::datatypes::TimestampMillisecondType>();
        assert_eq!(at.values(), &[0, 1_000, 1_700_000_000_000]);
        let items = found.column_by_name("items").unwrap().as_list::<i32>();
        assert_eq!(items.value(2).as_struct().column(0).as_string::<i32>().value(0), "y");

        let far: ArrayRef = Arc::new(TimestampSecondArray::from(vec![i64::MAX, 0, 0]));
        let mut columns = rows.columns().to_vec();
        columns[1] = far;
        let rows = RecordBatch::try_new(rows.schema(), columns).unwrap();
        let error = layout.object("s", 7, &rows).unwrap_err().to_string();
        assert!(error.contains("`at` of batch 7") && !error.contains("9223372036854775807"), "{error}");
    }

    #[test]
    fn objects_of_a_batch_are_equal_and_of_no_other() {
        let layout =
            PutLayout::new(&spec("n = \"int64\""), &Schema::new(vec![Field::new("n", DataType::Int64, true)])).unwrap();
        let rows =
            RecordBatch::try_from_iter(vec![("n", Arc::new(arrow::array::Int64Array::from(vec![1])) as ArrayRef)])
                .unwrap();
        let object = |stream: &str, batch| layout.object(stream, batch, &rows).unwrap();
        assert_eq!(object("a", 1), object("a", 1));
        assert_ne!(object("a", 1), object("a", 2));
        assert_ne!(object("a", 1), object("b", 1));
        assert_eq!(rows_of(object("a", 1)).unwrap(), rows_of(object("b", 2)).unwrap());
        assert_eq!(read(object("a", 1)).column(0).as_primitive::<Int64Type>().value(0), 1);
    }

    #[test]
    fn every_column_that_does_not_fit_is_named_with_its_type() {
        let spec = spec(
            "order_id = \"string\"\namount = \"decimal(12,2)\"\nquantity = \"int32\"\nat = \"timestamp\"\nlines = \"list<struct<sku string, n int32>>\"\nnote = { type = \"string\", from = \"Note\" }",
        );
        let lines = DataType::Struct(vec![Field::new("n", DataType::Utf8, true)].into());
        let schema = Schema::new(vec![
            Field::new("order_idd", DataType::Utf8, true),
            Field::new("amount", DataType::Boolean, true),
            Field::new("quantity", DataType::Float64, true),
            Field::new("at", DataType::Int64, true),
            Field::new("lines", DataType::List(Arc::new(Field::new("item", lines, true))), true),
            Field::new("extra", DataType::Duration(TimeUnit::Second), true),
            Field::new("extra", DataType::Utf8, true),
        ]);
        let error = PutLayout::new(&spec, &schema).unwrap_err().to_string();
        for part in [
            "source orders",
            "column `order_id` (string) is missing (there is `order_idd`)",
            "column `amount` holds Boolean and the contract says decimal(12,2)",
            "column `quantity` holds Float64 and the contract says int32",
            "column `at` holds Int64 and the contract says timestamp",
            "column `lines` holds List",
            "column `Note` (string), which may also be called `note`, is missing",
            "column `extra` is outside the contract and holds Duration(s)",
            "column `extra` is there twice",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn names_of_streams_are_checked_and_a_uuid_has_its_day() {
        for good in ["a", "orders-2026_11.26", "0198c7a0-0000-7000-8000-000000000000"] {
            check_name(good).unwrap();
        }
        for wrong in ["", ".hidden", "a/b", "ä", "a b", "a\n", &"x".repeat(129)] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
        let moment = "2026-03-01T23:59:59.999Z".parse::<DateTime<Utc>>().unwrap();
        assert_eq!(day_in(&new_name(moment)), Some(moment.date_naive()));
        assert_eq!(day_in("orders"), None);
        assert_eq!(day_in("6ba7b810-9dad-41d1-80b4-00c04fd430c8"), None);
    }
}
