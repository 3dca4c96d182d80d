use std::collections::HashMap;
use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::settings::JsonAs;

/// What a PostgreSQL type becomes in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `true`, `false`.
    Boolean,
    /// A number with all its digits.
    Integer,
    /// A number; `"NaN"`, `"Infinity"` and `"-Infinity"`, for which JSON has none.
    Float,
    /// ISO 8601 without a zone.
    Timestamp,
    /// RFC 3339 in UTC.
    Moment,
    /// Base64.
    Bytes,
    /// The value itself, or its text.
    Json,
    /// A list, of lists where it has several dimensions.
    Array { element: Box<Kind>, delimiter: u8 },
    /// Text as PostgreSQL writes it: text of all kinds, `numeric`, dates, enums, ranges, records and what is not known.
    Text,
}

/// What the server's types become, by their ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Types(HashMap<u32, Kind>);

/// A row of `pg_type`, as far as it matters.
#[derive(Debug, Clone)]
pub(crate) struct TypeRow {
    pub(crate) oid: u32,
    /// The type below a domain, otherwise 0.
    pub(crate) base: u32,
    /// The type of an array's elements, otherwise 0.
    pub(crate) element: u32,
    /// What separates elements of the type in an array.
    pub(crate) delimiter: u8,
}

/// Domains over domains and arrays of domains are that deep at most.
const DEPTH_MAX: usize = 16;

impl Types {
    pub(crate) fn new(rows: &[TypeRow]) -> Self {
        let by_oid: HashMap<u32, &TypeRow> = rows.iter().map(|row| (row.oid, row)).collect();
        Self(by_oid.keys().map(|oid| (*oid, kind_of(*oid, &by_oid, DEPTH_MAX))).collect())
    }

    pub(crate) fn knows(&self, oid: u32) -> bool {
        self.0.contains_key(&oid)
    }

    /// Text for a type that is not known: it was made and dropped since.
    pub(crate) fn kind(&self, oid: u32) -> Kind {
        self.0.get(&oid).cloned().unwrap_or(Kind::Text)
    }
}

fn kind_of(oid: u32, types: &HashMap<u32, &TypeRow>, depth: usize) -> Kind {
    let Some(row) = types.get(&oid).filter(|_| depth > 0) else { return Kind::Text };
    if row.base != 0 {
        return kind_of(row.base, types, depth - 1);
    }
    if row.element != 0 {
        let delimiter = types.get(&row.element).map_or(b',', |element| element.delimiter);
        return Kind::Array { element: Box::new(kind_of(row.element, types, depth - 1)), delimiter };
    }
    // The ids of built-in types are part of PostgreSQL's protocol: src/include/catalog/pg_type.dat.
    match oid {
        16 => Kind::Boolean,
        20 | 21 | 23 | 26 => Kind::Integer,
        700 | 701 => Kind::Float,
        1114 => Kind::Timestamp,
        1184 => Kind::Moment,
        17 => Kind::Bytes,
        114 | 3802 => Kind::Json,
        _ => Kind::Text,
    }
}

/// Writes a value, given as PostgreSQL's text of it, as JSON. What does not look as its type says becomes text: the
/// contract then decides whether the row is good. Text that is not UTF-8, which a database in `SQL_ASCII` may hold, stays as
/// it is, so that its row is refused alone.
pub(crate) fn write_value(kind: &Kind, text: &[u8], json: JsonAs, out: &mut Vec<u8>) {
    match std::str::from_utf8(text) {
        Ok(text) => write_typed(kind, text, json, out),
        Err(_) => write_text(text, out),
    }
}

fn write_typed(kind: &Kind, text: &str, json: JsonAs, out: &mut Vec<u8>) {
    match kind {
        Kind::Boolean if text == "t" => out.extend_from_slice(b"true"),
        Kind::Boolean if text == "f" => out.extend_from_slice(b"false"),
        Kind::Integer if is_integer(text) => out.extend_from_slice(text.as_bytes()),
        Kind::Float if text.bytes().last().is_some_and(|byte| byte.is_ascii_digit()) => {
            out.extend_from_slice(text.as_bytes());
        }
        Kind::Timestamp => write_moment(text, "", out),
        Kind::Moment => write_moment(text, "Z", out),
        Kind::Bytes => match text.strip_prefix("\\x").and_then(decode_hex) {
            Some(bytes) => {
                out.push(b'"');
                out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
                out.push(b'"');
            }
            None => write_text(text.as_bytes(), out),
        },
        Kind::Json if json == JsonAs::Value => {
            // Line ends are blanks in JSON, and would end our line. Inside of strings there are none.
            out.extend(text.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
        }
        Kind::Array { element, delimiter } => {
            let start = out.len();
            let begin = if text.starts_with('[') { text.find('=').map_or(0, |at| at + 1) } else { 0 };
            let mut array = Array { text, at: begin, delimiter: *delimiter, element, json };
            if array.list(out, 0).is_none() || array.at < text.len() {
                out.truncate(start);
                write_text(text.as_bytes(), out);
            }
        }
        _ => write_text(text.as_bytes(), out),
    }
}

/// Writes a JSON string.
pub(crate) fn write_text(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1F)) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            // A Vec takes all that is written.
            control => {
                let _ = write!(out, "\\u{control:04x}");
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// `2026-01-31 08:00:00.5+00` becomes `2026-01-31T08:00:00.5` and `zone`. Infinity and years before Christ stay as they are.
fn write_moment(text: &str, zone: &str, out: &mut Vec<u8>) {
    match text.split_once(' ') {
        Some((date, time)) if !time.ends_with('C') => {
            let time = if zone.is_empty() { time } else { time.strip_suffix("+00").unwrap_or(time) };
            out.push(b'"');
            out.extend_from_slice(date.as_bytes());
            out.push(b'T');
            out.extend_from_slice(time.as_bytes());
            out.extend_from_slice(zone.as_bytes());
            out.push(b'"');
        }
        _ => write_text(text.as_bytes(), out),
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// An array as PostgreSQL writes it: `{1,NULL,"a \"b\"",{2}}`.
struct Array<'a> {
    text: &'a str,
    at: usize,
    delimiter: u8,
    element: &'a Kind,
    json: JsonAs,
}

impl Array<'_> {
    /// More dimensions than PostgreSQL has.
    const DIMENSIONS_MAX: usize = 8;

    fn list(&mut self, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        if depth > Self::DIMENSIONS_MAX || self.next()? != b'{' {
            return None;
        }
        out.push(b'[');
        if self.peek()? == b'}' {
            self.at += 1;
            out.push(b']');
            return Some(());
        }
        loop {
            match self.peek()? {
                b'{' => self.list(out, depth + 1)?,
                b'"' => {
                    let text = self.quoted()?;
                    write_typed(self.element, &text, self.json, out);
                }
                _ => {
                    let (element, json) = (self.element, self.json);
                    match self.plain()? {
                        "NULL" => out.extend_from_slice(b"null"),
                        text => write_typed(element, text, json, out),
                    }
                }
            }
            match self.next()? {
                b'}' => break,
                byte if byte == self.delimiter => out.push(b','),
                _ => return None,
            }
        }
        out.push(b']');
        Some(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn quoted(&mut self) -> Option<String> {
        let mut text = Vec::new();
        self.at += 1;
        loop {
            match self.next()? {
                b'"' => return String::from_utf8(text).ok(),
                b'\\' => text.push(self.next()?),
                byte => text.push(byte),
            }
        }
    }

    fn plain(&mut self) -> Option<&str> {
        let start = self.at;
        while !matches!(self.peek()?, b'}' | b'"' | b'{') && self.peek()? != self.delimiter {
            self.at += 1;
        }
        self.text.get(start..self.at).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn types() -> Types {
        let row = |oid, base, element, delimiter| TypeRow { oid, base, element, delimiter };
        Types::new(&[
            row(16, 0, 0, b','),
            row(20, 0, 0, b','),
            row(25, 0, 0, b','),
            row(603, 0, 0, b';'),
            row(701, 0, 0, b','),
            row(1184, 0, 0, b','),
            row(3802, 0, 0, b','),
            row(1016, 0, 20, b','),
            row(1009, 0, 25, b','),
            row(1020, 0, 603, b','),
            row(3807, 0, 3802, b','),
            row(90_001, 20, 0, b','),
            row(90_002, 90_001, 0, b','),
            row(90_003, 0, 90_002, b','),
        ])
    }

    fn value(oid: u32, text: &str) -> Value {
        let mut out = Vec::new();
        write_value(&types().kind(oid), text.as_bytes(), JsonAs::Value, &mut out);
        serde_json::from_slice(&out).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&out)))
    }

    #[test]
    fn values_are_json_of_their_type() {
        assert_eq!(value(16, "t"), json!(true));
        assert_eq!(value(20, "-9223372036854775808"), json!(i64::MIN));
        assert_eq!(value(701, "1e-07"), json!(1e-7));
        assert_eq!(value(701, "NaN"), json!("NaN"));
        assert_eq!(value(701, "-Infinity"), json!("-Infinity"));
        assert_eq!(value(1184, "2026-01-31 08:00:00.5+00"), json!("2026-01-31T08:00:00.5Z"));
        assert_eq!(value(1184, "infinity"), json!("infinity"));
        assert_eq!(value(1184, "0044-03-15 12:00:00+00 BC"), json!("0044-03-15 12:00:00+00 BC"));
        assert_eq!(value(3802, "{\"a\": [1,\n 2]}"), json!({"a": [1, 2]}));
        assert_eq!(value(25, "a\"\\\n\u{1}é"), json!("a\"\\\n\u{1}é"));
        assert_eq!(value(4_711, "whatever"), json!("whatever"));
        let mut text = Vec::new();
        write_value(&Kind::Json, b"{\"a\": 1}", JsonAs::Text, &mut text);
        assert_eq!(text, br#""{\"a\": 1}""#);
        let mut bytes = Vec::new();
        write_value(&Kind::Bytes, b"\\x00ff", JsonAs::Value, &mut bytes);
        assert_eq!(bytes, b"\"AP8=\"");
    }

    #[test]
    fn arrays_are_lists_of_their_elements() {
        assert_eq!(value(1_016, "{}"), json!([]));
        assert_eq!(value(1_016, "{1,NULL,-3}"), json!([1, null, -3]));
        assert_eq!(value(1_016, "[0:1][1:2]={{1,2},{3,4}}"), json!([[1, 2], [3, 4]]));
        assert_eq!(value(1_009, r#"{a,"NULL","x,y","q\"\\",""}"#), json!(["a", "NULL", "x,y", "q\"\\", ""]));
        assert_eq!(value(1_020, "{(1,1),(0,0);(2,2),(1,1)}"), json!(["(1,1),(0,0)", "(2,2),(1,1)"]));
        assert_eq!(value(3_807, r#"{"{\"a\": 1}",NULL}"#), json!([{"a": 1}, null]));
        for broken in ["{1,2", "{1,2}}", "1", "", "{,}", "{1,,2}"] {
            assert_eq!(value(1_016, broken), json!(broken), "what is no array stays text");
        }
    }

    #[test]
    fn domains_are_what_is_below_them() {
        assert_eq!(value(90_002, "7"), json!(7));
        assert_eq!(value(90_003, "{7}"), json!([7]));
    }
}
