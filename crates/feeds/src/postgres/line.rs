use chrono::{DateTime, SecondsFormat};

use super::error::PostgresError;
use super::pgoutput::{Field, Old, Tuple};
use super::position::{Lsn, Place, Position};
use super::settings::{JsonAs, QualifiedName};
use super::value::{Kind, Types, write_text, write_value};

/// The fields that a line has beside the table's columns.
pub(crate) const OWN_FIELDS: [&str; 8] =
    ["_op", "_table", "_position", "_lsn", "_committed_at", "_xid", "_old", "_unchanged"];

/// Microseconds from 1970 to 2000, when PostgreSQL's clock begins.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Ingestion reads records of at most 64 MiB, and refuses an object that has a longer one with all that is in it.
const LINE_BYTES_MAX: usize = 48 << 20;
/// Values of that length are told of a row that is too long.
const SHORT_BYTES_MAX: usize = 1_024;

/// How rows of a table become lines.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    columns: Vec<Column>,
    /// `"_table":"schema.table"`
    table: Vec<u8>,
    json: JsonAs,
}

#[derive(Debug, Clone)]
struct Column {
    /// `"name":`
    label: Vec<u8>,
    name: String,
    kind: Kind,
    key: bool,
}

/// What all changes of a transaction, or all rows of a snapshot, have in common.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    /// `,"_position":"000001-w-00000000016B3748-`
    position: Vec<u8>,
    /// How many digits the number has that ends a position.
    digits: usize,
    /// `","_lsn":"…","_committed_at":"…","_xid":7}`
    rest: Vec<u8>,
}

impl Stamp {
    /// For a transaction that was committed at `lsn`.
    pub(crate) fn of_transaction(generation: u32, lsn: Lsn, committed_at: i64, xid: u32) -> Self {
        let first = Position::log(generation, lsn, 0);
        Self::new(first, lsn, committed_at, &format!(",\"_xid\":{xid}"))
    }

    /// For a snapshot of what was committed before `lsn`.
    pub(crate) fn of_snapshot(generation: u32, lsn: Lsn, taken_at: i64) -> Self {
        let first = Position { generation, place: Place::Snapshot { rows: 0 } };
        Self::new(first, lsn, taken_at, "")
    }

    /// `moment` is in microseconds since 2000.
    fn new(first: Position, lsn: Lsn, moment: i64, xid: &str) -> Self {
        let position = first.to_string();
        let position = position.trim_end_matches(|last: char| last != '-');
        let digits = first.to_string().len() - position.len();
        let moment = DateTime::from_timestamp_micros(moment.saturating_add(POSTGRES_EPOCH_MICROS));
        let moment = moment.unwrap_or_default().to_rfc3339_opts(SecondsFormat::Micros, true);
        Self {
            position: format!(",\"_position\":\"{position}").into_bytes(),
            digits,
            rest: format!("\",\"_lsn\":\"{}\",\"_committed_at\":\"{moment}\"{xid}}}\n", lsn.padded()).into_bytes(),
        }
    }
}

impl Shape {
    /// `columns` gives name, type and whether it is part of the replica identity.
    ///
    /// # Errors
    /// [`PostgresError::Table`] when a column has the name of a field of ours.
    pub(crate) fn new<'a>(
        server: &str,
        table: &QualifiedName,
        columns: impl Iterator<Item = (&'a str, u32, bool)>,
        types: &Types,
        json: JsonAs,
    ) -> Result<Self, PostgresError> {
        let mut shaped = Vec::new();
        for (name, type_oid, key) in columns {
            if OWN_FIELDS.contains(&name) {
                return Err(PostgresError::Table {
                    server: server.to_owned(),
                    table: table.to_string(),
                    reason: format!(
                        "column {name} has the name of a field that every line has: rename it, or leave it out of the \
                         publication with a column list"
                    ),
                });
            }
            let mut label = Vec::with_capacity(name.len() + 3);
            write_text(name.as_bytes(), &mut label);
            label.push(b':');
            shaped.push(Column { label, name: name.to_owned(), kind: types.kind(type_oid), key });
        }
        let mut text = b"\"_table\":".to_vec();
        write_text(table.to_string().as_bytes(), &mut text);
        Ok(Self { columns: shaped, table: text, json })
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// A row as a snapshot found it, the `number`th, from 1; `None` is null.
    pub(crate) fn snapshot<'a>(
        &self,
        fields: impl Iterator<Item = Option<&'a [u8]>> + Clone,
        number: u64,
        stamp: &Stamp,
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        out.push(b'{');
        for (column, field) in self.columns.iter().zip(fields.clone()) {
            out.extend_from_slice(&column.label);
            match field {
                Some(text) => write_value(&column.kind, text, self.json, out),
                None => out.extend_from_slice(b"null"),
            }
            out.push(b',');
        }
        self.end("snapshot", number, stamp, out);
        self.shorten(start, fields, "snapshot", number, stamp, out);
    }

    /// The `number`th change of its transaction, from 1, as are the ones below.
    pub(crate) fn insert(&self, new: &Tuple, number: u64, stamp: &Stamp, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(b'{');
        let unchanged = self.fields(new, None, false, out);
        names("_unchanged", &unchanged, out);
        self.end("insert", number, stamp, out);
        self.shorten(start, texts(new), "insert", number, stamp, out);
    }

    /// A long value that was not changed comes from the old row where the log has it, and is named in `_unchanged` where it
    /// has not.
    pub(crate) fn update(&self, new: &Tuple, old: Option<&Old>, number: u64, stamp: &Stamp, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(b'{');
        let whole = match old {
            Some(Old::Row(row)) => Some(row),
            _ => None,
        };
        let unchanged = self.fields(new, whole, false, out);
        names("_unchanged", &unchanged, out);
        if let Some(old) = old {
            self.old(old, out);
        }
        self.end("update", number, stamp, out);
        self.shorten(start, texts(new), "update", number, stamp, out);
    }

    /// What is known of the row that is gone, both as its columns and as `_old`.
    pub(crate) fn delete(&self, old: &Old, number: u64, stamp: &Stamp, out: &mut Vec<u8>) {
        let start = out.len();
        out.push(b'{');
        let (tuple, only_key) = match old {
            Old::Key(tuple) => (tuple, true),
            Old::Row(tuple) => (tuple, false),
        };
        let unchanged = self.fields(tuple, None, only_key, out);
        names("_unchanged", &unchanged, out);
        self.old(old, out);
        self.end("delete", number, stamp, out);
        self.shorten(start, texts(tuple), "delete", number, stamp, out);
    }

    pub(crate) fn truncate(&self, number: u64, stamp: &Stamp, out: &mut Vec<u8>) {
        out.push(b'{');
        self.end("truncate", number, stamp, out);
    }

    /// Writes the fields of a row, each with a comma behind it, and answers which columns are not in the log.
    fn fields(&self, tuple: &Tuple, whole: Option<&Tuple>, only_key: bool, out: &mut Vec<u8>) -> Vec<&Column> {
        let mut unchanged = Vec::new();
        for (index, (column, field)) in self.columns.iter().zip(&tuple.0).enumerate() {
            if only_key && !column.key {
                continue;
            }
            let field = match (field, whole) {
                (Field::Unchanged, Some(whole)) => whole.0.get(index).unwrap_or(field),
                _ => field,
            };
            match field {
                Field::Unchanged => {
                    unchanged.push(column);
                    continue;
                }
                Field::Null => {
                    out.extend_from_slice(&column.label);
                    out.extend_from_slice(b"null");
                }
                Field::Text(text) => {
                    out.extend_from_slice(&column.label);
                    write_value(&column.kind, text, self.json, out);
                }
            }
            out.push(b',');
        }
        unchanged
    }

    fn old(&self, old: &Old, out: &mut Vec<u8>) {
        let (tuple, only_key) = match old {
            Old::Key(tuple) => (tuple, true),
            Old::Row(tuple) => (tuple, false),
        };
        out.extend_from_slice(b"\"_old\":{");
        let start = out.len();
        self.fields(tuple, None, only_key, out);
        if out.len() > start {
            out.pop();
        }
        out.extend_from_slice(b"},");
    }

    /// Of a line that is too long, says only what is short, as a list, which no contract reads: so its row goes to the quarantine,
    /// alone and with what it can be found by.
    fn shorten<'a>(
        &self,
        start: usize,
        fields: impl Iterator<Item = Option<&'a [u8]>>,
        op: &str,
        number: u64,
        stamp: &Stamp,
        out: &mut Vec<u8>,
    ) {
        if out.len() - start <= LINE_BYTES_MAX {
            return;
        }
        out.truncate(start);
        out.extend_from_slice(b"[{");
        let mut long = Vec::new();
        for (column, field) in self.columns.iter().zip(fields) {
            match field {
                Some(text) if text.len() > SHORT_BYTES_MAX => long.push(column),
                Some(text) => {
                    out.extend_from_slice(&column.label);
                    write_value(&column.kind, text, self.json, out);
                    out.push(b',');
                }
                None => {}
            }
        }
        names("_too_long", &long, out);
        self.end(op, number, stamp, out);
        out.pop();
        out.extend_from_slice(b"]\n");
    }

    fn end(&self, op: &str, number: u64, stamp: &Stamp, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"_op\":\"");
        out.extend_from_slice(op.as_bytes());
        out.extend_from_slice(b"\",");
        out.extend_from_slice(&self.table);
        out.extend_from_slice(&stamp.position);
        out.extend_from_slice(format!("{number:0digits$}", digits = stamp.digits).as_bytes());
        out.extend_from_slice(&stamp.rest);
    }
}

/// The texts of a row; what is null or not in the log has none.
fn texts(tuple: &Tuple) -> impl Iterator<Item = Option<&[u8]>> {
    tuple.0.iter().map(|field| match field {
        Field::Text(text) => Some(text.as_ref()),
        Field::Null | Field::Unchanged => None,
    })
}

/// Writes a field with the names of columns, if there are any.
fn names(field: &str, columns: &[&Column], out: &mut Vec<u8>) {
    if columns.is_empty() {
        return;
    }
    write_text(field.as_bytes(), out);
    out.extend_from_slice(b":[");
    for (index, column) in columns.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_text(column.name.as_bytes(), out);
    }
    out.extend_from_slice(b"],");
}

/// The fields of a row in the text format of `COPY`. `None` is null.
///
/// # Errors
/// `Err(())` when the row has not as many fields as `columns`.
pub(crate) fn copy_fields(row: &[u8], columns: usize, fields: &mut Vec<Option<Vec<u8>>>) -> Result<(), ()> {
    let row = row.strip_suffix(b"\n").ok_or(())?;
    fields.clear();
    if columns == 0 {
        return if row.is_empty() { Ok(()) } else { Err(()) };
    }
    for field in row.split(|byte| *byte == b'\t') {
        fields.push(if field == b"\\N" { None } else { Some(unescaped(field)) });
    }
    if fields.len() == columns { Ok(()) } else { Err(()) }
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        text.extend_from_slice(&rest[..at]);
        let Some(escaped) = rest.get(at + 1) else {
            text.push(b'\\');
            return text;
        };
        text.push(match escaped {
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0B,
            other => *other,
        });
        rest = &rest[at + 2..];
    }
    text.extend_from_slice(rest);
    text
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::super::value::TypeRow;
    use super::*;

    fn shape() -> Shape {
        let types = Types::new(&[TypeRow { oid: 23, base: 0, element: 0, delimiter: b',' }]);
        let table = QualifiedName { schema: "shop".to_owned(), table: "orders".to_owned() };
        let columns = [("id", 23, true), ("note", 25, false)];
        Shape::new("server", &table, columns.into_iter(), &types, JsonAs::Value).unwrap()
    }

    fn stamp() -> Stamp {
        Stamp::of_transaction(1, Lsn(0x16B_3748), 1_500_000, 7)
    }

    fn text(text: &'static str) -> Field {
        Field::Text(Bytes::from_static(text.as_bytes()))
    }

    fn parsed(write: impl FnOnce(&Shape, &Stamp, &mut Vec<u8>)) -> Value {
        let mut out = Vec::new();
        write(&shape(), &stamp(), &mut out);
        assert_eq!(out.last(), Some(&b'\n'));
        let mut value: Value = serde_json::from_slice(&out).unwrap();
        let object = value.as_object_mut().unwrap();
        for (name, expected) in [
            ("_table", json!("shop.orders")),
            ("_position", json!("000001-w-00000000016B3748-0000000003")),
            ("_lsn", json!("00000000/016B3748")),
            ("_committed_at", json!("2000-01-01T00:00:01.500000Z")),
            ("_xid", json!(7)),
        ] {
            assert_eq!(object.remove(name), Some(expected), "{name}");
        }
        value
    }

    #[test]
    fn each_change_says_what_the_log_knows_of_it() {
        let tuple = |fields: Vec<Field>| Tuple(fields);
        let insert = parsed(|shape, stamp, out| shape.insert(&tuple(vec![text("1"), Field::Null]), 3, stamp, out));
        assert_eq!(insert, json!({"id": 1, "note": null, "_op": "insert"}));
        let unchanged = || tuple(vec![text("1"), Field::Unchanged]);
        let update = parsed(|shape, stamp, out| shape.update(&unchanged(), None, 3, stamp, out));
        assert_eq!(update, json!({"id": 1, "_unchanged": ["note"], "_op": "update"}));
        let whole = Old::Row(tuple(vec![text("1"), text("long")]));
        let update = parsed(|shape, stamp, out| shape.update(&unchanged(), Some(&whole), 3, stamp, out));
        let old = json!({"id": 1, "note": "long"});
        assert_eq!(update, json!({"id": 1, "note": "long", "_old": old, "_op": "update"}));
        let key = Old::Key(tuple(vec![text("1"), Field::Null]));
        let moved = tuple(vec![text("2"), text("x")]);
        let update = parsed(|shape, stamp, out| shape.update(&moved, Some(&key), 3, stamp, out));
        assert_eq!(update, json!({"id": 2, "note": "x", "_old": {"id": 1}, "_op": "update"}));
        let delete = parsed(|shape, stamp, out| shape.delete(&key, 3, stamp, out));
        assert_eq!(delete, json!({"id": 1, "_old": {"id": 1}, "_op": "delete"}));
        let truncate = parsed(|shape, stamp, out| shape.truncate(3, stamp, out));
        assert_eq!(truncate, json!({"_op": "truncate"}));
        let fields = [Some(b"1".as_slice()), None];
        let row = parsed(|shape, stamp, out| shape.snapshot(fields.into_iter(), 3, stamp, out));
        assert_eq!(row, json!({"id": 1, "note": null, "_op": "snapshot"}));
    }

    #[test]
    fn a_line_that_is_too_long_becomes_one_that_is_refused_and_says_which_row_it_was() {
        let long = vec![b'x'; LINE_BYTES_MAX];
        let mut out = b"before\n".to_vec();
        shape().snapshot([Some(b"1".as_slice()), Some(&long)].into_iter(), 3, &stamp(), &mut out);
        let value: Value = serde_json::from_slice(out.strip_prefix(b"before\n").unwrap()).unwrap();
        assert_eq!((&value[0]["id"], &value[0]["_too_long"]), (&json!(1), &json!(["note"])));
        assert_eq!((&value[0]["_op"], &value[0]["_table"]), (&json!("snapshot"), &json!("shop.orders")));
        let new = Tuple(vec![text("1"), Field::Text(Bytes::from(long))]);
        out.clear();
        shape().update(&new, None, 3, &stamp(), &mut out);
        assert!(out.starts_with(b"[{\"id\":1,\"_too_long\":[\"note\"],\"_op\":\"update\"") && out.ends_with(b"}]\n"));
    }

    #[test]
    fn a_line_of_a_snapshot_has_the_position_behind_it() {
        let mut out = Vec::new();
        shape().snapshot([Some(b"1".as_slice()), None].into_iter(), 12, &Stamp::of_snapshot(2, Lsn(1), 0), &mut out);
        let value: Value = serde_json::from_slice(&out).unwrap();
        let behind = Position { generation: 2, place: Place::Snapshot { rows: 12 } };
        assert_eq!(value["_position"], behind.to_string());
        assert!(value.get("_xid").is_none());
    }

    #[test]
    fn a_column_with_a_name_of_ours_is_an_error_with_the_remedy() {
        let table = QualifiedName { schema: "shop".to_owned(), table: "orders".to_owned() };
        let columns = [("_op", 25, false)].into_iter();
        let error = Shape::new("server", &table, columns, &Types::default(), JsonAs::Value).unwrap_err();
        assert!(error.to_string().contains("shop.orders") && error.to_string().contains("rename it"), "{error}");
    }

    #[test]
    fn rows_of_a_copy_are_taken_apart() {
        let mut fields = Vec::new();
        copy_fields(b"1\t\\N\ta\\tb\\\\N\\n\t\n", 4, &mut fields).unwrap();
        assert_eq!(fields, [Some(b"1".to_vec()), None, Some(b"a\tb\\N\n".to_vec()), Some(Vec::new())]);
        assert!(copy_fields(b"1\t2\n", 3, &mut fields).is_err());
        assert!(copy_fields(b"1", 1, &mut fields).is_err());
    }
}
