use std::borrow::Cow;

use memchr::{memchr, memchr_iter};

use crate::column::{Column, TextRules};
use crate::refusal::Refusal;
use crate::spec::SourceSpec;
use crate::unknown::{Unknown, json_text};

/// Where the columns of a contract stand in the records of one file.
#[derive(Debug)]
pub(crate) struct Layout {
    fields: Vec<Slot>,
    /// The header line; `None` for a file without one.
    pub(crate) header: Option<String>,
}

/// What a field of a record is for.
#[derive(Debug)]
enum Slot {
    /// A column of the contract.
    Column(usize),
    /// Nothing that the contract has: its name, and the same as JSON writes it between quotes.
    Unknown { name: String, key: String },
}

impl Layout {
    /// The layout that a header line describes. Says what is wrong when a declared column is not there.
    pub(crate) fn from_header(line: &str, spec: &SourceSpec) -> Result<Self, String> {
        let mut names: Vec<String> = Vec::new();
        split(line, spec.delimiter, |_, name| {
            names.push(name.trim().to_owned());
            Ok(())
        })
        .map_err(|refusal| format!("the header cannot be read: {}", refusal.reason))?;

        let mut fields = Vec::with_capacity(names.len());
        let mut found = Vec::with_capacity(spec.columns.len());
        for (position, name) in names.iter().enumerate() {
            if names[..position].contains(name) {
                return Err(format!("the header has `{name}` twice: rename one of the two"));
            }
            match spec.columns.iter().position(|column| column.source_name == *name) {
                Some(index) => {
                    found.push(index);
                    fields.push(Slot::Column(index));
                }
                None => {
                    let quoted = json_text(name);
                    let key = quoted[1..quoted.len() - 1].to_owned();
                    fields.push(Slot::Unknown { name: name.clone(), key });
                }
            }
        }
        let missing: Vec<&str> = (0..spec.columns.len())
            .filter(|index| !found.contains(index))
            .map(|index| spec.columns[index].source_name.as_str())
            .collect();
        if missing.is_empty() {
            return Ok(Self { fields, header: Some(line.to_owned()) });
        }
        Err(format!(
            "the header has no column `{}`{}",
            missing.join("`, `"),
            header_remedy(&names, &missing, line, spec)
        ))
    }

    /// The layout of a file without a header: the columns in the order of the contract.
    pub(crate) fn in_order(spec: &SourceSpec) -> Self {
        Self { fields: (0..spec.columns.len()).map(Slot::Column).collect(), header: None }
    }
}

fn header_remedy(names: &[String], missing: &[&str], line: &str, spec: &SourceSpec) -> String {
    if names.len() == 1 {
        let likely = [(',', "comma"), (';', "semicolon"), ('\t', "tab"), ('|', "bar")]
            .into_iter()
            .filter(|(character, _)| u8::try_from(*character).is_ok_and(|byte| byte != spec.delimiter))
            .find(|(character, _)| line.contains(*character));
        if let Some((character, name)) = likely {
            return format!(
                ": the fields seem to be separated by a {name}; set delimiter = {:?} in the source's contract",
                character.to_string()
            );
        }
    }
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    match missing.first().and_then(|name| crate::grammar::suggest(name, &known)) {
        Some(near) => format!(
            "; it has `{near}`: if that is the column, write {} = {{ type = …, from = {near:?} }} in the source's contract",
            missing[0]
        ),
        None => "; compare the file with the source's contract".to_owned(),
    }
}

/// Reads one record into a row of `columns`, which all hold `row` rows before. Fields that no column is for go to
/// `unknown`, which is to be told whether the row is one. After a refusal the columns may hold parts of the row: truncate
/// them.
pub(crate) fn parse_record(
    record: &str,
    layout: &Layout,
    columns: &mut [Column],
    delimiter: u8,
    rules: &TextRules,
    unknown: &mut Unknown,
) -> Result<(), Refusal> {
    let mut count = 0;
    split(record, delimiter, |position, text| {
        count = position + 1;
        let column = match layout.fields.get(position) {
            Some(Slot::Column(index)) => columns.get_mut(*index),
            Some(Slot::Unknown { name, key }) => {
                if !text.is_empty() && !rules.is_null(text) {
                    unknown.keep_text(name, key, text);
                }
                None
            }
            None => None,
        };
        let Some(column) = column else { return Ok(()) };
        if text.is_empty() {
            column.push_null();
            return Ok(());
        }
        column.push_text(text, rules).map_err(|reason| Refusal::row(reason).within(&column.key))
    })?;
    if count != layout.fields.len() {
        return Err(Refusal::row(format!("{count} fields where {} are expected", layout.fields.len())));
    }
    Ok(())
}

/// Hands each field of a record to `take`, without its quotes (RFC 4180). A quote inside an unquoted field is a
/// character like any other.
fn split(record: &str, delimiter: u8, mut take: impl FnMut(usize, &str) -> Result<(), Refusal>) -> Result<(), Refusal> {
    let bytes = record.as_bytes();
    if memchr(b'"', bytes).is_none() {
        let mut start = 0;
        let mut position = 0;
        for end in memchr_iter(delimiter, bytes) {
            take(position, &record[start..end])?;
            start = end + 1;
            position += 1;
        }
        return take(position, &record[start..]);
    }
    let mut at = 0;
    for position in 0.. {
        let (text, end) = if bytes.get(at) == Some(&b'"') {
            quoted(record, at + 1)?
        } else {
            let end = memchr(delimiter, &bytes[at..]).map_or(bytes.len(), |length| at + length);
            (Cow::Borrowed(&record[at..end]), end)
        };
        if end < bytes.len() && bytes[end] != delimiter {
            return Err(Refusal::row(format!("field {} has text after its closing quote", position + 1)));
        }
        take(position, &text)?;
        if end >= bytes.len() {
            break;
        }
        at = end + 1;
    }
    Ok(())
}

/// The field whose opening quote is read, and where its closing quote is passed.
fn quoted(record: &str, start: usize) -> Result<(Cow<'_, str>, usize), Refusal> {
    let bytes = record.as_bytes();
    let mut unescaped: Option<String> = None;
    let mut from = start;
    loop {
        let Some(length) = memchr(b'"', &bytes[from..]) else {
            return Err(Refusal::row("a quoted field does not end on this line"));
        };
        let quote = from + length;
        let part = &record[from..quote];
        if bytes.get(quote + 1) == Some(&b'"') {
            let text = unescaped.get_or_insert_default();
            text.push_str(part);
            text.push('"');
            from = quote + 2;
            continue;
        }
        let text = match unescaped {
            None => Cow::Borrowed(part),
            Some(mut text) => {
                text.push_str(part);
                Cow::Owned(text)
            }
        };
        return Ok((text, quote + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(record: &str) -> Result<Vec<String>, Refusal> {
        let mut fields = Vec::new();
        split(record, b',', |_, text| {
            fields.push(text.to_owned());
            Ok(())
        })?;
        Ok(fields)
    }

    #[test]
    fn fields_are_split_as_rfc_4180_says() {
        assert_eq!(fields("a,b,,d").unwrap(), ["a", "b", "", "d"]);
        assert_eq!(fields("").unwrap(), [""]);
        assert_eq!(fields("a,").unwrap(), ["a", ""]);
        assert_eq!(fields(r#""a,b",c"#).unwrap(), ["a,b", "c"]);
        assert_eq!(fields(r#"x,"y"#).unwrap_err().reason, "a quoted field does not end on this line");
        assert_eq!(fields(r#"x,"say ""hi""","""""#).unwrap(), ["x", "say \"hi\"", "\""]);
        assert_eq!(fields(r#"6" CANDLE,1"#).unwrap(), ["6\" CANDLE", "1"]);
        assert_eq!(fields(r#"a,"""#).unwrap(), ["a", ""]);
        assert!(fields(r#""a"b,c"#).is_err());
        assert_eq!(fields(r#"李,"雷""#).unwrap(), ["李", "雷"]);
    }
}
