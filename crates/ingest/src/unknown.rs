//! Fields that records have and their contract does not: kept in a column of `raw`, counted, and told of.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use holdfast_lake::TableSpec;
use holdfast_types::{COMMENT_KEY, PII_KEY, TableName};

use crate::Result;
use crate::column::offset;
use crate::error::IngestError;
use crate::ledger::field;
use crate::spec::timestamp_type;

/// The column of `raw` that keeps what the contract has no column for.
pub(crate) const UNKNOWN: &str = "_unknown";

/// Names of fields that are counted one by one, and the longest of them.
const NAMES_MAX: usize = 32;
const NAME_LENGTH_MAX: usize = 128;
/// The name under which the others are counted.
const OTHERS: &str = "(other)";

/// The column [`UNKNOWN`]. Nobody has said what is in there, so it counts as personal data.
pub(crate) fn unknown_column() -> Field {
    let metadata = [
        (
            COMMENT_KEY.to_owned(),
            "Fields outside the source's contract, as a JSON object; null when there are none".to_owned(),
        ),
        (PII_KEY.to_owned(), "true".to_owned()),
    ];
    Field::new(UNKNOWN, DataType::Utf8, true).with_metadata(metadata.into())
}

/// Names of fields outside the contract, and how many rows had each.
#[derive(Debug, Default, Clone)]
pub(crate) struct UnknownFields(BTreeMap<String, u64>);

impl UnknownFields {
    pub(crate) fn add(&mut self, name: &str, rows: u64) {
        // A map keyed by people's addresses must not end up in a log.
        let plain = name.len() <= NAME_LENGTH_MAX
            && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ' ' | '.'));
        let known = self.0.contains_key(name) || self.0.len() < NAMES_MAX;
        let name = if plain && known { name } else { OTHERS };
        match self.0.get_mut(name) {
            Some(count) => *count += rows,
            None => {
                self.0.insert(name.to_owned(), rows);
            }
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (name, count) in other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }
}

/// A step from a record to a field inside of it.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// The field whose name, as it is written between its quotes, is there in the record.
    Field(Range<usize>),
    /// An item of a list, from 0.
    Item(usize),
}

/// The fields outside the contract of the rows of a block. Rows without any cost nothing.
#[derive(Default)]
pub(crate) struct Unknown {
    /// Where the reader of a record is; empty between records.
    pub(crate) path: Vec<Step>,
    /// The records come from a feed, which adds fields of its own under names that begin with `_`: they are not the record's.
    is_feed: bool,
    fields: UnknownFields,
    /// One JSON object after the other.
    text: Vec<u8>,
    /// The rows that have one, and where it ends.
    rows: Vec<(usize, usize)>,
    /// Names in the record that is being read.
    pending: Vec<String>,
}

impl std::fmt::Debug for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the texts: they are customers' data.
        f.debug_struct("Unknown").field("fields", &self.fields).finish_non_exhaustive()
    }
}

impl Unknown {
    /// For records that come from a feed, or not.
    pub(crate) fn of_feed(is_feed: bool) -> Self {
        Self { is_feed, ..Self::default() }
    }

    /// Keeps a field of the JSON record that is being read, as it is written there. `name` lies between its quotes.
    pub(crate) fn keep(&mut self, record: &str, name: Range<usize>, value: Range<usize>) {
        if self.is_feed && self.path.is_empty() && record[name.clone()].starts_with('_') {
            return;
        }
        let mut counted = String::new();
        self.open();
        for step in &self.path {
            match step {
                Step::Field(name) => {
                    self.text.extend_from_slice(record[name.clone()].as_bytes());
                    self.text.push(b'.');
                    counted.push_str(&record[name.clone()]);
                    counted.push('.');
                }
                // Items are told apart in the text, and counted as one field.
                Step::Item(index) => self.text.extend_from_slice(format!("{index}.").as_bytes()),
            }
        }
        counted.push_str(&record[name.clone()]);
        self.text.extend_from_slice(record[name].as_bytes());
        self.text.extend_from_slice(b"\":");
        self.text.extend_from_slice(record[value].as_bytes());
        self.count(counted);
    }

    /// Keeps a field that is a text. `key` is the name as JSON writes it between quotes.
    pub(crate) fn keep_text(&mut self, name: &str, key: &str, text: &str) {
        self.open();
        self.text.extend_from_slice(key.as_bytes());
        self.text.extend_from_slice(b"\":");
        self.text.extend_from_slice(json_text(text).as_bytes());
        self.count(name.to_owned());
    }

    /// Begins a field: the object's brace or a comma, and the quote before its name.
    fn open(&mut self) {
        self.text.push(if self.pending.is_empty() { b'{' } else { b',' });
        self.text.push(b'"');
    }

    fn count(&mut self, name: String) {
        self.pending.push(name);
    }

    /// The record is row `row`.
    pub(crate) fn end_row(&mut self, row: usize) {
        if self.pending.is_empty() {
            return;
        }
        self.text.push(b'}');
        self.rows.push((row, self.text.len()));
        self.pending.sort_unstable();
        self.pending.dedup();
        for name in self.pending.drain(..) {
            self.fields.add(&name, 1);
        }
    }

    /// The record was refused: nothing of it is kept here.
    pub(crate) fn drop_row(&mut self) {
        self.path.clear();
        self.pending.clear();
        self.text.truncate(self.rows.last().map_or(0, |(_, end)| *end));
    }

    /// The column of `rows` rows, and what was counted. `None` when no row had such a field.
    pub(crate) fn finish(self, rows: usize) -> Result<(Option<ArrayRef>, UnknownFields)> {
        if self.rows.is_empty() {
            return Ok((None, self.fields));
        }
        let mut offsets = Vec::with_capacity(rows + 1);
        let mut present = vec![false; rows];
        offsets.push(0);
        let mut kept = self.rows.iter().peekable();
        let mut end = 0;
        for (row, present) in present.iter_mut().enumerate() {
            if let Some((_, to)) = kept.next_if(|(at, _)| *at == row) {
                *present = true;
                end = *to;
            }
            offsets.push(offset(end));
        }
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let texts = StringArray::try_new(offsets, Buffer::from_vec(self.text), Some(NullBuffer::from(present)))
            .map_err(IngestError::internal)?;
        Ok((Some(Arc::new(texts)), self.fields))
    }
}

/// The text as JSON writes it, in quotes.
pub(crate) fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn fields_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("pipeline", DataType::Utf8, "Pipeline of the source"),
        field("source", DataType::Utf8, "Source of the batch"),
        field("batch", DataType::Int64, "Batch, counted per source from 1"),
        field(
            "field",
            DataType::Utf8,
            "Field outside the contract, with dots into structs; (other) for what cannot be named",
        ),
        field("rows", DataType::Int64, "Rows of the batch that have it"),
        field("seen_at", timestamp_type(), "When the batch was read"),
    ]))
}

/// `metric.ingest_unknown_fields`.
pub(crate) fn unknown_fields_table() -> Result<TableSpec> {
    Ok(TableSpec {
        name: TableName::new("metric", "ingest_unknown_fields")?,
        schema: fields_schema(),
        partition_by: Vec::new(),
        comment: "Fields that records had and their contract had not, one row a batch and field".to_owned(),
    })
}

/// What a batch had, as rows of that table. `seen_at` in UTC microseconds.
pub(crate) fn unknown_fields_rows(
    pipeline: &str,
    source: &str,
    batch: i64,
    fields: &UnknownFields,
    seen_at: i64,
) -> Result<RecordBatch> {
    let names: Vec<&str> = fields.iter().map(|(name, _)| name).collect();
    let rows = names.len();
    let counts = fields.iter().map(|(_, rows)| i64::try_from(rows).unwrap_or(i64::MAX));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::new_repeated(pipeline, rows)),
        Arc::new(StringArray::new_repeated(source, rows)),
        Arc::new(Int64Array::from_value(batch, rows)),
        Arc::new(StringArray::from(names)),
        Arc::new(Int64Array::from_iter_values(counts)),
        Arc::new(TimestampMicrosecondArray::from_value(seen_at, rows).with_timezone("UTC")),
    ];
    RecordBatch::try_new(fields_schema(), columns).map_err(IngestError::internal)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};

    use super::*;

    #[test]
    fn rows_keep_their_own_fields_and_refused_ones_leave_nothing() {
        let mut unknown = Unknown::default();
        unknown.keep_text("a", "a", "1 \"x\"");
        unknown.keep_text("b", "b", "2");
        unknown.end_row(1);
        unknown.keep_text("gone", "gone", "3");
        unknown.drop_row();
        unknown.end_row(2);
        unknown.keep_text("a", "a", "4");
        unknown.end_row(3);
        let (column, fields) = unknown.finish(5).unwrap();
        let column = column.unwrap();
        let texts: Vec<Option<&str>> = column.as_string::<i32>().iter().collect();
        assert_eq!(texts, [None, Some(r#"{"a":"1 \"x\"","b":"2"}"#), None, Some(r#"{"a":"4"}"#), None]);
        assert_eq!(fields.iter().collect::<Vec<_>>(), [("a", 2), ("b", 1)]);
        assert_eq!(column.null_count(), 3);
    }

    #[test]
    fn what_a_feed_adds_of_its_own_is_no_field_of_the_record() {
        let record = r#"{"_offset":7,"_x":{},"colour":"red"}"#;
        for (is_feed, kept) in [(true, r#"{"colour":"red"}"#), (false, r#"{"_offset":7,"colour":"red"}"#)] {
            let mut unknown = Unknown::of_feed(is_feed);
            unknown.keep(record, 2..9, 11..12);
            unknown.keep(record, 22..28, 30..35);
            unknown.end_row(0);
            let (column, _) = unknown.finish(1).unwrap();
            assert_eq!(column.unwrap().as_string::<i32>().value(0), kept);
        }
    }

    #[test]
    fn names_that_could_be_personal_data_are_counted_without_being_named() {
        let mut fields = UnknownFields::default();
        for name in ["wei@example.com", "13800001111", "colour", "traits.shoe-size"] {
            fields.add(name, 1);
        }
        for number in 0..100 {
            fields.add(&format!("x{number}"), 1);
        }
        let names: Vec<&str> = fields.iter().map(|(name, _)| name).collect();
        assert!(names.contains(&"colour") && names.contains(&"traits.shoe-size") && names.len() == NAMES_MAX);
        assert_eq!(fields.iter().map(|(_, rows)| rows).sum::<u64>(), 104);
    }
}
