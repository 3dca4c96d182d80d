use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, RecordBatch, StringArray, StructArray, UInt32Array,
    new_null_array,
};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{CastOptions, cast, cast_with_options, is_null, nullif, take};
use arrow::datatypes::{
    DataType, Field, FieldRef, Fields, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use arrow::ipc::convert::{IpcSchemaEncoder, fb_to_schema};
use arrow::ipc::root_as_schema;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use crate::Result;
use crate::column::{Column, TextRules};
use crate::discover::FoundFile;
use crate::error::IngestError;
use crate::grammar::{suggest, type_name};
use crate::refusal::{Refusal, RefusedRow};
use crate::spec::{ColumnSpec, EpochUnit, SourceSpec};
use crate::unknown::UnknownFields;

const MAGIC: &[u8] = b"PAR1";
/// Rows that are decoded together, and about how many bytes.
const BATCH_ROWS: usize = 16_384;
const BATCH_BYTES: u64 = 2 << 20;
/// Column chunks that are fetched at the same time.
const RANGES_AHEAD: usize = 4;

/// The rows of a Parquet file as a stream: all its columns, those beyond the contract included.
pub(crate) struct ParquetFile {
    pub(crate) stream: ParquetRecordBatchStream<FileRanges>,
    /// What the file's own footer says.
    pub(crate) rows: u64,
}

/// Opens a Parquet file that has the columns of a contract. `None` for an empty object.
///
/// # Errors
/// [`IngestError::Truncated`], [`IngestError::Unreadable`], or [`IngestError::Layout`] when a column is missing or
/// cannot be read as the contract's type.
pub(crate) async fn open(
    store: &Arc<dyn ObjectStore>,
    file: &FoundFile,
    spec: &SourceSpec,
) -> Result<Option<ParquetFile>> {
    let (size, name) = (file.size, file.path.as_str());
    if size == 0 {
        return Ok(None);
    }
    let unreadable = |message: String| IngestError::Unreadable { file: name.to_owned(), message };
    let magic = u64::try_from(MAGIC.len()).unwrap_or(4);
    let begin = file.range(store, 0..magic.min(size)).await?;
    let end = file.range(store, size.saturating_sub(magic)..size).await?;
    if !MAGIC.starts_with(&begin) {
        return Err(unreadable("not a Parquet file: check the source's path and format".to_owned()));
    }
    if end.as_ref() != MAGIC || size < 3 * magic {
        return Err(IngestError::Truncated {
            file: name.to_owned(),
            offset: size,
            message: "a Parquet file ends with its footer, which is missing".to_owned(),
        });
    }
    let reader = FileRanges { store: Arc::clone(store), file: file.clone() };
    // The schema that pyarrow embeds may ask for types that nobody needs here; the file's own is enough.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = ParquetRecordBatchStreamBuilder::new_with_options(reader, options)
        .await
        .map_err(|error| decode_error(name, "the Parquet footer cannot be read", error))?;

    let schema = Arc::clone(builder.schema());
    check_columns(&schema, spec).map_err(|message| IngestError::Layout { file: name.to_owned(), message })?;
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    let batch_rows = batch_rows(builder.metadata());
    let stream = builder
        .with_batch_size(batch_rows)
        .build()
        .map_err(|error| unreadable(format!("cannot be read as Parquet: {error}")))?;
    Ok(Some(ParquetFile { stream, rows }))
}

/// Fewer where rows are long, so that memory does not depend on them.
fn batch_rows(metadata: &ParquetMetaData) -> usize {
    let row_bytes = metadata.row_groups().iter().map(|group| {
        let bytes = u64::try_from(group.total_byte_size()).unwrap_or(0);
        bytes / u64::try_from(group.num_rows()).unwrap_or(1).max(1)
    });
    let rows = BATCH_BYTES / row_bytes.max().unwrap_or(0).max(1);
    usize::try_from(rows).unwrap_or(BATCH_ROWS).clamp(1, BATCH_ROWS)
}

/// What went wrong while Parquet was read: the store's own answer where there is one.
pub(crate) fn decode_error(file: &str, what: &str, error: ParquetError) -> IngestError {
    let error = match error {
        ParquetError::External(cause) => match cause.downcast::<IngestError>() {
            Ok(error) => return *error,
            Err(cause) => ParquetError::External(cause),
        },
        error => error,
    };
    IngestError::Unreadable { file: file.to_owned(), message: format!("{what}: {error}; deliver the file again") }
}

/// Reads the parts of a file that Parquet asks for.
pub(crate) struct FileRanges {
    store: Arc<dyn ObjectStore>,
    file: FoundFile,
}

impl AsyncFileReader for FileRanges {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move { self.file.range(&self.store, range).await.map_err(|error| ParquetError::External(Box::new(error))) }
            .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        let (store, file) = (&self.store, &self.file);
        futures::stream::iter(ranges)
            .map(move |range| file.range(store, range))
            .buffered(RANGES_AHEAD)
            .map_err(|error| ParquetError::External(Box::new(error)))
            .try_collect()
            .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let size = self.file.size;
        let options = options.map(|options| options.metadata_options().clone());
        async move {
            let reader = ParquetMetaDataReader::new().with_metadata_options(options);
            reader.load_and_finish(self, size).await.map(Arc::new)
        }
        .boxed()
    }
}

/// Says what is wrong when a column of the contract is missing or holds another kind of thing.
pub(crate) fn check_columns(schema: &Schema, spec: &SourceSpec) -> Result<(), String> {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) && spec.columns.iter().any(|column| column.source_name == *name) {
            return Err(format!("the file has two columns `{name}`: rename one of them"));
        }
    }
    for column in &spec.columns {
        let Ok(field) = schema.field_with_name(&column.source_name) else {
            if spec.absent_is_null {
                continue;
            }
            let hint = match suggest(&column.source_name, &names) {
                Some(near) => {
                    format!("it has `{near}`: if that is the column, add from = {near:?} in the source's contract")
                }
                None => format!("it has {}", names.join(", ")),
            };
            return Err(format!("the file has no column `{}`; {hint}", column.source_name));
        };
        if !is_natural(field.data_type(), column) {
            return Err(format!(
                "column `{}` holds {} and the contract says {}: change the type in the source's contract",
                column.source_name,
                field.data_type(),
                type_name(&column.data_type)
            ));
        }
    }
    Ok(())
}

/// Whether a value of type `from` means the same in the contract's type.
pub(crate) fn is_natural(from: &DataType, column: &ColumnSpec) -> bool {
    means_the_same(from, &column.data_type, column.epoch)
}

fn means_the_same(from: &DataType, wanted: &DataType, epoch: Option<EpochUnit>) -> bool {
    if let DataType::Dictionary(_, values) = from {
        return means_the_same(values, wanted, epoch);
    }
    let text = matches!(from, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if from.is_null() {
        return true;
    }
    match wanted {
        DataType::Utf8 => text || from.is_integer(),
        DataType::Int32 | DataType::Int64 => from.is_integer(),
        DataType::Float64 => from.is_numeric() && !is_decimal(from),
        DataType::Decimal128(_, _) => from.is_numeric() || text,
        DataType::Boolean => *from == DataType::Boolean,
        DataType::Date32 => matches!(from, DataType::Date32 | DataType::Date64) || text,
        DataType::Timestamp(_, _) => {
            matches!(from, DataType::Timestamp(_, _) | DataType::Date32)
                || text
                || (epoch.is_some() && from.is_integer())
        }
        DataType::List(item) => match from {
            DataType::List(from) => means_the_same(from.data_type(), item.data_type(), epoch),
            _ => false,
        },
        // A field that is absent is null.
        DataType::Struct(fields) => match from {
            DataType::Struct(from) => fields.iter().all(|field| {
                let found = from.iter().find(|found| found.name() == field.name());
                found.is_none_or(|found| means_the_same(found.data_type(), field.data_type(), epoch))
            }),
            _ => false,
        },
        _ => false,
    }
}

fn is_decimal(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Decimal128(_, _) | DataType::Decimal256(_, _) | DataType::Decimal32(_, _) | DataType::Decimal64(_, _)
    )
}

/// Rows of a Parquet file in the contract's types.
pub(crate) struct ParquetRows {
    /// In the contract's order.
    pub(crate) columns: Vec<ArrayRef>,
    /// The row number of each, from 1.
    pub(crate) lines: Vec<i64>,
    pub(crate) refused: Vec<RefusedRow>,
    /// The column of fields outside the contract, and how many rows had each.
    pub(crate) unknown: (Option<ArrayRef>, UnknownFields),
}

/// Converts rows; one with a value that does not fit its column is refused.
pub(crate) fn convert(
    batch: &RecordBatch,
    first_row: u64,
    name: &str,
    spec: &SourceSpec,
    original_bytes_max: usize,
) -> Result<ParquetRows> {
    let rules = TextRules { zone: spec.zone, null_values: spec.null_values.clone() };
    let mut reasons: Vec<Option<Refusal>> = vec![None; batch.num_rows()];
    let mut columns = Vec::with_capacity(spec.columns.len());
    for column in &spec.columns {
        let Some(values) = batch.column_by_name(&column.source_name) else {
            if spec.absent_is_null {
                columns.push(new_null_array(&column.data_type, batch.num_rows()));
                continue;
            }
            return Err(IngestError::internal(format!("column {} was not read", column.source_name)));
        };
        let mut inner: Vec<Option<Refusal>> = vec![None; batch.num_rows()];
        let converted = to_contract(values, &column.data_type, column.epoch, &rules, &mut inner).map_err(|error| {
            IngestError::Layout {
                file: name.to_owned(),
                message: format!(
                    "column `{}` cannot be read as {}: {error}",
                    column.source_name,
                    type_name(&column.data_type)
                ),
            }
        })?;
        columns.push(converted);
        for (reason, refusal) in reasons.iter_mut().zip(inner) {
            if let (None, Some(refusal)) = (&reason, refusal) {
                *reason = Some(refusal.within(&column.source_name));
            }
        }
    }
    let line = |row: usize| first_row + u64::try_from(row).unwrap_or(0);
    let good: Vec<usize> = (0..batch.num_rows()).filter(|row| reasons[*row].is_none()).collect();
    let lines = good.iter().map(|row| i64::try_from(line(*row)).unwrap_or(i64::MAX)).collect();
    let mut extra = extra_columns(batch, spec).map_err(IngestError::internal)?;
    if good.len() < batch.num_rows() {
        let indexes = UInt32Array::from_iter_values(good.iter().map(|row| u32::try_from(*row).unwrap_or(u32::MAX)));
        for column in columns.iter_mut().chain(extra.iter_mut().map(|(_, column)| column)) {
            *column = take(&*column, &indexes, None).map_err(IngestError::internal)?;
        }
    }
    let unknown = keep(&extra, good.len()).map_err(|error| IngestError::Layout {
        file: name.to_owned(),
        message: format!("columns outside the contract cannot be kept: {error}"),
    })?;
    let mut refused = Vec::new();
    for (row, refusal) in reasons.into_iter().enumerate() {
        if let Some(refusal) = refusal {
            let row_alone = batch.slice(row, 1);
            let text = row_text(&row_alone).map_err(IngestError::internal)?;
            let mut refused_row = RefusedRow::new(line(row), refusal, &text, original_bytes_max);
            // JSON has no infinities, and not every type comes back from it.
            refused_row.is_whole &= rows_from_text(&batch.schema(), [refused_row.original.as_str()])
                .is_ok_and(|again| again.columns() == row_alone.columns());
            refused.push(refused_row);
        }
    }
    Ok(ParquetRows { columns, lines, refused, unknown })
}

/// The columns that the contract does not have, and the fields that its structs do not have, by names with dots.
fn extra_columns(batch: &RecordBatch, spec: &SourceSpec) -> Result<Vec<(String, ArrayRef)>, ArrowError> {
    let mut extra = Vec::new();
    for (field, values) in batch.schema().fields().iter().zip(batch.columns()) {
        match spec.columns.iter().find(|column| column.source_name == *field.name()) {
            None => extra.push((field.name().clone(), Arc::clone(values))),
            Some(column) => extra_fields(field.name(), values, &column.data_type, &mut extra)?,
        }
    }
    Ok(extra)
}

fn extra_fields(
    path: &str,
    values: &ArrayRef,
    wanted: &DataType,
    extra: &mut Vec<(String, ArrayRef)>,
) -> Result<(), ArrowError> {
    let (DataType::Struct(wanted), Some(source)) = (wanted, values.as_struct_opt()) else { return Ok(()) };
    for (field, child) in source.fields().iter().zip(source.columns()) {
        let path = format!("{path}.{}", field.name());
        // What a null struct holds inside means nothing.
        let child = match source.nulls() {
            Some(_) => nullif(child, &is_null(source)?)?,
            None => Arc::clone(child),
        };
        match wanted.iter().find(|wanted| wanted.name() == field.name()) {
            None => extra.push((path, child)),
            Some(wanted) => extra_fields(&path, &child, wanted.data_type(), extra)?,
        }
    }
    Ok(())
}

/// The columns as one JSON object a row, without what is null.
fn keep(columns: &[(String, ArrayRef)], rows: usize) -> Result<(Option<ArrayRef>, UnknownFields), ArrowError> {
    let mut fields = UnknownFields::default();
    let mut kept = Vec::with_capacity(columns.len());
    for (name, column) in columns {
        let present = column.len() - column.logical_null_count();
        if present > 0 {
            fields.add(name, u64::try_from(present).unwrap_or(0));
            kept.push((Field::new(name, column.data_type().clone(), true), Arc::clone(column)));
        }
    }
    if kept.is_empty() {
        return Ok((None, fields));
    }
    let (schema, columns): (Vec<Field>, Vec<ArrayRef>) = kept.into_iter().unzip();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(schema)), columns)?;
    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
    writer.write(&batch)?;
    writer.finish()?;
    let text = String::from_utf8(writer.into_inner()).map_err(|error| ArrowError::JsonError(error.to_string()))?;
    let texts: StringArray = text.lines().map(|line| (line != "{}").then_some(line)).collect();
    if texts.len() == rows {
        Ok((Some(Arc::new(texts)), fields))
    } else {
        Err(ArrowError::JsonError(format!("{} lines for {rows} rows", texts.len())))
    }
}

/// A row as a line of JSON, nulls included: a column that is not there was not read.
fn row_text(row: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut text = Vec::new();
    let builder = arrow::json::WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = builder.build::<_, arrow::json::writer::LineDelimited>(&mut text);
    writer.write(row)?;
    writer.finish()?;
    drop(writer);
    text.truncate(text.trim_ascii_end().len());
    Ok(text)
}

/// The rows that [`row_text`] wrote down, in the columns they had in their file.
pub(crate) fn rows_from_text<'a>(
    schema: &SchemaRef,
    texts: impl IntoIterator<Item = &'a str, IntoIter: ExactSizeIterator>,
) -> Result<RecordBatch, ArrowError> {
    let texts = texts.into_iter();
    let builder = arrow::json::ReaderBuilder::new(Arc::clone(schema)).with_batch_size(texts.len().max(1));
    let mut decoder = builder.build_decoder()?;
    for text in texts {
        decoder.decode(text.as_bytes())?;
        decoder.decode(b"\n")?;
    }
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(Arc::clone(schema))))
}

/// The columns that rows had in their file, as they are kept beside what was refused.
pub(crate) fn layout_text(schema: &Schema) -> String {
    BASE64.encode(IpcSchemaEncoder::new().schema_to_fb(schema).finished_data())
}

/// The columns that [`layout_text`] wrote down.
pub(crate) fn layout_from_text(text: &str) -> Option<SchemaRef> {
    let bytes = BASE64.decode(text).ok()?;
    root_as_schema(&bytes).ok().map(|schema| Arc::new(fb_to_schema(schema)))
}

/// The values in the contract's type; what does not fit becomes null and its row's reason.
fn to_contract(
    values: &ArrayRef,
    wanted: &DataType,
    epoch: Option<EpochUnit>,
    rules: &TextRules,
    reasons: &mut [Option<Refusal>],
) -> Result<ArrayRef, ArrowError> {
    let values = match values.data_type() {
        DataType::Dictionary(_, inner) => cast(values, inner)?,
        _ => Arc::clone(values),
    };
    match (wanted, values.data_type()) {
        (DataType::Struct(fields), DataType::Struct(_)) => {
            return structs(values.as_struct(), fields, epoch, rules, reasons);
        }
        (DataType::List(item), DataType::List(_)) => {
            return lists(values.as_list::<i32>(), item, epoch, rules, reasons);
        }
        _ => {}
    }
    let is_text = matches!(values.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if is_text && (*wanted != DataType::Utf8 || !rules.null_values.is_empty()) {
        return from_text(&cast(&values, &DataType::Utf8)?, wanted, epoch, rules, reasons);
    }
    let converted = match (wanted, values.data_type()) {
        (DataType::Timestamp(_, _), DataType::Timestamp(_, None) | DataType::Date32) => local_to_utc(&values, rules)?,
        (DataType::Timestamp(_, _), from) if from.is_integer() => from_epoch(&values, epoch)?,
        (wanted, _) => cast_with_options(&values, wanted, &CastOptions { safe: true, ..CastOptions::default() })?,
    };
    let lost = lost_digits(&values, &converted)?;
    for (row, reason) in reasons.iter_mut().enumerate() {
        if reason.is_some() || values.is_null(row) || values.data_type().is_null() {
            continue;
        }
        if converted.is_null(row) {
            *reason = Some(Refusal::row(format!("out of range for {}", type_name(wanted))));
        } else if lost.as_ref().is_some_and(|lost| lost.value(row)) {
            *reason = Some(Refusal::row(format!("more decimal places than {} has", type_name(wanted))));
        }
    }
    Ok(converted)
}

/// For decimals whose digits behind the point are more than the contract's: whether digits were lost that are not zero.
fn lost_digits(values: &ArrayRef, converted: &ArrayRef) -> Result<Option<BooleanArray>, ArrowError> {
    let scale = |data_type: &DataType| match data_type {
        DataType::Decimal32(_, scale)
        | DataType::Decimal64(_, scale)
        | DataType::Decimal128(_, scale)
        | DataType::Decimal256(_, scale) => Some(*scale),
        _ => None,
    };
    match (scale(values.data_type()), scale(converted.data_type())) {
        (Some(from), Some(to)) if from > to => {
            let back = cast_with_options(
                converted,
                values.data_type(),
                &CastOptions { safe: true, ..CastOptions::default() },
            )?;
            distinct(values, &back).map(Some)
        }
        _ => Ok(None),
    }
}

/// Structs by the names of their fields.
fn structs(
    source: &StructArray,
    fields: &Fields,
    epoch: Option<EpochUnit>,
    rules: &TextRules,
    reasons: &mut [Option<Refusal>],
) -> Result<ArrayRef, ArrowError> {
    let mut children = Vec::with_capacity(fields.len());
    for field in fields {
        let Some(child) = source.column_by_name(field.name()) else {
            children.push(new_null_array(field.data_type(), source.len()));
            continue;
        };
        let mut inner: Vec<Option<Refusal>> = vec![None; source.len()];
        children.push(to_contract(child, field.data_type(), epoch, rules, &mut inner)?);
        for (row, (reason, refusal)) in reasons.iter_mut().zip(inner).enumerate() {
            if let (None, Some(refusal), true) = (&reason, refusal, source.is_valid(row)) {
                *reason = Some(refusal.within(field.name()));
            }
        }
    }
    let nulls = source.nulls().cloned();
    Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), children, nulls, source.len())?))
}

/// Lists by their items. One item that does not fit refuses the row.
fn lists(
    source: &ListArray,
    item: &FieldRef,
    epoch: Option<EpochUnit>,
    rules: &TextRules,
    reasons: &mut [Option<Refusal>],
) -> Result<ArrayRef, ArrowError> {
    let mut inner: Vec<Option<Refusal>> = vec![None; source.values().len()];
    let items = to_contract(source.values(), item.data_type(), epoch, rules, &mut inner)?;
    for (row, (reason, bounds)) in reasons.iter_mut().zip(source.offsets().windows(2)).enumerate() {
        let bounds = bounds.iter().map(|offset| usize::try_from(*offset).unwrap_or(0)).collect::<Vec<_>>();
        let found = inner.get(bounds[0]..bounds[1]).unwrap_or_default().iter().flatten().next();
        if let (None, Some(refusal), true) = (&reason, found, source.is_valid(row)) {
            *reason = Some(refusal.clone());
        }
    }
    Ok(Arc::new(ListArray::try_new(Arc::clone(item), source.offsets().clone(), items, source.nulls().cloned())?))
}

fn from_text(
    texts: &ArrayRef,
    wanted: &DataType,
    epoch: Option<EpochUnit>,
    rules: &TextRules,
    reasons: &mut [Option<Refusal>],
) -> Result<ArrayRef, ArrowError> {
    let mut builder = Column::new("", wanted, epoch)?;
    for (text, reason) in texts.as_string::<i32>().iter().zip(reasons) {
        match text {
            None => builder.push_null(),
            Some(text) => {
                if let Err(why) = builder.push_text(text, rules) {
                    builder.push_null();
                    reason.get_or_insert_with(|| Refusal::row(why));
                }
            }
        }
    }
    builder.finish()
}

/// A moment that the clocks of the zone skipped becomes null.
fn local_to_utc(values: &ArrayRef, rules: &TextRules) -> Result<ArrayRef, ArrowError> {
    let local = cast_with_options(
        values,
        &DataType::Timestamp(TimeUnit::Microsecond, None),
        &CastOptions { safe: true, ..CastOptions::default() },
    )?;
    let utc = local
        .as_primitive::<TimestampMicrosecondType>()
        .unary_opt::<_, TimestampMicrosecondType>(|value| rules.zone.to_utc(value));
    Ok(Arc::new(utc.with_timezone("UTC")))
}

fn from_epoch(values: &ArrayRef, epoch: Option<EpochUnit>) -> Result<ArrayRef, ArrowError> {
    let digits = epoch.map_or(0, EpochUnit::digits_to_micros);
    let factor = 10_i64.pow(u32::try_from(digits).unwrap_or(0));
    let counts: ArrayRef = cast(values, &DataType::Int64)?;
    let micros: Int64Array = counts.as_primitive::<Int64Type>().unary_opt(|value| value.checked_mul(factor));
    cast(&micros, &crate::spec::timestamp_type())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float32Array, Int32Array, TimestampNanosecondArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    #[test]
    fn rows_that_do_not_fit_are_refused_one_by_one() {
        let spec = SourceSpec::parse(
            "s.toml",
            "kind = \"k\"\npath = \"*\"\nformat = \"parquet\"\ntimezone = \"+08:00\"\n[columns]\nn = \"int32\"\nat = \"timestamp\"\nday = { type = \"date\", from = \"d\" }\nx = \"float64\"\n",
        )
        .unwrap();
        let batch = RecordBatch::try_from_iter(vec![
            ("x", Arc::new(Float32Array::from(vec![0.5, 0.25, 0.125])) as ArrayRef),
            ("n", Arc::new(Int64Array::from(vec![Some(1), Some(1 << 40), None])) as ArrayRef),
            ("at", Arc::new(TimestampNanosecondArray::from(vec![28_800_000_000_000, 0, 0])) as ArrayRef),
            ("d", Arc::new(StringArray::from(vec!["2026-01-31", "2026-01-31", "tomorrow"])) as ArrayRef),
        ])
        .unwrap();
        check_columns(&batch.schema(), &spec).unwrap();
        let rows = convert(&batch, 101, "f", &spec, 1024).unwrap();
        assert_eq!(rows.lines, [101]);
        assert_eq!(rows.columns[0].as_primitive::<Int32Type>(), &Int32Array::from(vec![1]));
        assert_eq!(rows.columns[1].as_primitive::<TimestampMicrosecondType>().value(0), 0);
        let refused: Vec<_> =
            rows.refused.iter().map(|row| (row.line, row.refusal.column.as_deref().unwrap())).collect();
        assert_eq!(refused, [(102, "n"), (103, "d")]);
        assert!(rows.refused[1].original.contains("tomorrow"));
    }

    #[test]
    fn what_does_not_fit_inside_a_struct_or_a_list_refuses_its_row_alone() {
        let spec = SourceSpec::parse(
            "s.toml",
            "kind = \"k\"\npath = \"*\"\nformat = \"parquet\"\n[columns]\nline = \"struct<sku string, n int32>\"\nprices = \"list<decimal(6,2)>\"\npaid = \"decimal(6,2)\"\n",
        )
        .unwrap();
        let n = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
        let field = |name: &str, data_type| Arc::new(arrow::datatypes::Field::new(name, data_type, true));
        let line = StructArray::try_new(
            vec![field("n", DataType::Int64)].into(),
            vec![n(vec![Some(1), Some(1 << 40), Some(1 << 40), None])],
            // What is below a struct that is null does not count.
            Some(vec![true, true, false, true].into()),
        )
        .unwrap();
        let prices = StringArray::from(vec!["1.25", "9", "1.255", "3"]);
        let offsets = arrow::buffer::OffsetBuffer::new(vec![0, 2, 2, 2, 4].into());
        let prices = ListArray::try_new(field("item", DataType::Utf8), offsets, Arc::new(prices), None).unwrap();
        let paid = arrow::array::Decimal128Array::from(vec![12_500, 12_500, 12_345, 0]);
        let batch = RecordBatch::try_from_iter(vec![
            ("line", Arc::new(line) as ArrayRef),
            ("prices", Arc::new(prices) as ArrayRef),
            ("paid", Arc::new(paid.with_precision_and_scale(10, 3).unwrap()) as ArrayRef),
        ])
        .unwrap();
        check_columns(&batch.schema(), &spec).unwrap();
        let rows = convert(&batch, 1, "f", &spec, 1024).unwrap();
        assert_eq!(rows.lines, [1]);
        let refused: Vec<_> =
            rows.refused.iter().map(|row| (row.line, row.refusal.column.as_deref().unwrap())).collect();
        assert_eq!(refused, [(2, "line.n"), (3, "paid"), (4, "prices")]);
        let prices = rows.columns[1].as_list::<i32>().value(0);
        assert_eq!(prices.as_primitive::<arrow::datatypes::Decimal128Type>().values(), &[125, 900]);
    }
}
