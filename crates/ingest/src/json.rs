use std::borrow::Cow;

use crate::column::{Column, TextRules, Values, offset};
use crate::refusal::Refusal;
use crate::unknown::{Step, Unknown};

/// Deeper nesting than any record has; a limit, so that hostile input cannot exhaust the stack.
const DEPTH_MAX: usize = 64;
/// Reads one JSON object into a row of `columns`, which all hold `row` rows before.
///
/// A JSON type other than the column's is refused, with three exceptions that JSON has no types for: decimals, dates and
/// timestamps may be text. Fields that no column is for go to `unknown`, which is to be told whether the row is one. After
/// a refusal the columns may hold parts of the row: truncate them.
pub(crate) fn parse_record(
    line: &str,
    columns: &mut [Column],
    row: usize,
    rules: &TextRules,
    unknown: &mut Unknown,
) -> Result<(), Refusal> {
    let mut parser = Parser { text: line, bytes: line.as_bytes(), at: 0, rules, unknown };
    parser.blanks();
    match parser.next() {
        Some(b'{') => {}
        Some(_) => return Err(Refusal::row("not a JSON object")),
        None => return Err(parser.malformed()),
    }
    parser.object(columns, row, 0)?;
    parser.blanks();
    if parser.at < parser.bytes.len() {
        return Err(Refusal::row("more text after the JSON object: write one object a line"));
    }
    Ok(())
}

struct Parser<'a, 'u> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    rules: &'a TextRules,
    unknown: &'u mut Unknown,
}

impl<'a> Parser<'a, '_> {
    /// The rest of an object whose brace is read.
    fn object(&mut self, columns: &mut [Column], row: usize, depth: usize) -> Result<(), Refusal> {
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            // Records of one source tend to have their fields in one order: look there first.
            let mut expected = 0;
            loop {
                self.blanks();
                let name_start = self.at + 1;
                let key = self.key()?;
                let name = name_start..self.at - 1;
                self.blanks();
                if self.next() != Some(b':') {
                    return Err(self.malformed());
                }
                self.blanks();
                let found = match columns.get(expected) {
                    Some(column) if column.key == *key => Some(expected),
                    _ => columns.iter().position(|column| column.key == *key),
                };
                match found {
                    Some(index) => {
                        let column = &mut columns[index];
                        if column.len() > row {
                            return Err(Refusal::row("the field appears twice").within(&key));
                        }
                        let is_nested = matches!(column.values, Values::Struct(_) | Values::List { .. });
                        if is_nested {
                            self.unknown.path.push(Step::Field(name));
                        }
                        self.value(column, depth + 1).map_err(|refusal| refusal.within(&key))?;
                        if is_nested {
                            self.unknown.path.pop();
                        }
                        expected = index + 1;
                    }
                    None => {
                        let start = self.at;
                        self.skip(depth + 1)?;
                        // Absent and null are the same.
                        if self.bytes[start] != b'n' {
                            self.unknown.keep(self.text, name, start..self.at);
                        }
                    }
                }
                self.blanks();
                match self.next() {
                    Some(b',') => {}
                    Some(b'}') => break,
                    _ => return Err(self.malformed()),
                }
            }
        }
        for column in columns {
            if column.len() == row {
                column.push_null();
            }
        }
        Ok(())
    }

    fn value(&mut self, column: &mut Column, depth: usize) -> Result<(), Refusal> {
        if depth > DEPTH_MAX {
            return Err(Refusal::row("nested too deeply"));
        }
        let Some(first) = self.peek() else { return Err(self.malformed()) };
        if first == b'n' {
            self.literal("null")?;
            column.push_null();
            return Ok(());
        }
        let refused = |reason: String| Refusal::row(reason);
        match (&mut column.values, first) {
            (Values::Text { bytes, offsets }, b'"') => {
                self.at += 1;
                let start = bytes.len();
                self.string_into(bytes)?;
                if !self.rules.null_values.is_empty()
                    && std::str::from_utf8(&bytes[start..]).is_ok_and(|text| self.rules.is_null(text))
                {
                    bytes.truncate(start);
                    column.push_null();
                    return Ok(());
                }
                offsets.push(offset(bytes.len()));
                column.mark_present();
                Ok(())
            }
            (Values::Boolean(values), b't') => {
                values.append(true);
                column.mark_present();
                self.literal("true")
            }
            (Values::Boolean(values), b'f') => {
                values.append(false);
                column.mark_present();
                self.literal("false")
            }
            (Values::Int32(_) | Values::Int64(_) | Values::Float64(_) | Values::Decimal { .. }, b'-' | b'0'..=b'9') => {
                let number = self.number()?;
                column.push_number(number).map_err(refused)
            }
            (Values::Timestamp(_), b'-' | b'0'..=b'9') if column.epoch.is_some() => {
                let number = self.number()?;
                column.push_number(number).map_err(refused)
            }
            (Values::Decimal { .. } | Values::Date(_) | Values::Timestamp(_), b'"') => {
                let text = self.string()?;
                column.push_text(&text, self.rules).map_err(refused)
            }
            (Values::List { offsets, item }, b'[') => {
                self.at += 1;
                self.list(item, depth)?;
                offsets.push(offset(item.len()));
                column.mark_present();
                Ok(())
            }
            (Values::Struct(_), b'{') => {
                self.at += 1;
                let row = column.len();
                if let Values::Struct(children) = &mut column.values {
                    self.object(children, row, depth)?;
                }
                column.mark_present();
                Ok(())
            }
            _ => {
                let found = match first {
                    b'"' => "text",
                    b'{' => "an object",
                    b'[' => "a list",
                    b't' | b'f' => "a boolean",
                    b'-' | b'0'..=b'9' => "a number",
                    _ => return Err(self.malformed()),
                };
                Err(Refusal::row(format!("{found} where {} is expected", crate::grammar::type_name(&column.data_type))))
            }
        }
    }

    /// The rest of a list whose bracket is read.
    fn list(&mut self, item: &mut Column, depth: usize) -> Result<(), Refusal> {
        self.blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        let is_nested = matches!(item.values, Values::Struct(_) | Values::List { .. });
        for index in 0.. {
            self.blanks();
            if is_nested {
                self.unknown.path.push(Step::Item(index));
            }
            self.value(item, depth + 1)?;
            if is_nested {
                self.unknown.path.pop();
            }
            self.blanks();
            match self.next() {
                Some(b',') => {}
                Some(b']') => break,
                _ => return Err(self.malformed()),
            }
        }
        Ok(())
    }

    /// Passes over a value that nobody asked for; it has to be JSON all the same.
    fn skip(&mut self, depth: usize) -> Result<(), Refusal> {
        if depth > DEPTH_MAX {
            return Err(Refusal::row("nested too deeply"));
        }
        match self.peek() {
            Some(b'"') => self.string().map(|_| ()),
            Some(b'-' | b'0'..=b'9') => self.number().map(|_| ()),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            Some(open @ (b'{' | b'[')) => {
                let close = if open == b'{' { b'}' } else { b']' };
                self.at += 1;
                self.blanks();
                if self.peek() == Some(close) {
                    self.at += 1;
                    return Ok(());
                }
                loop {
                    self.blanks();
                    if open == b'{' {
                        self.key()?;
                        self.blanks();
                        if self.next() != Some(b':') {
                            return Err(self.malformed());
                        }
                        self.blanks();
                    }
                    self.skip(depth + 1)?;
                    self.blanks();
                    match self.next() {
                        Some(b',') => {}
                        Some(byte) if byte == close => return Ok(()),
                        _ => return Err(self.malformed()),
                    }
                }
            }
            _ => Err(self.malformed()),
        }
    }

    fn key(&mut self) -> Result<Cow<'a, str>, Refusal> {
        if self.peek() == Some(b'"') { self.string() } else { Err(self.malformed()) }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, Refusal> {
        self.at += 1;
        let start = self.at;
        let end = self.plain_end();
        if self.bytes.get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(Cow::Borrowed(&self.text[start..end]));
        }
        let mut unescaped = Vec::new();
        self.string_into(&mut unescaped)?;
        String::from_utf8(unescaped).map(Cow::Owned).map_err(|_| self.malformed())
    }

    /// The rest of a string whose opening quote is read.
    fn string_into(&mut self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        loop {
            let end = self.plain_end();
            out.extend_from_slice(&self.bytes[self.at..end]);
            self.at = end;
            match self.next() {
                Some(b'"') => return Ok(()),
                Some(b'\\') => self.escape(out)?,
                _ => return Err(self.malformed()),
            }
        }
    }

    /// Where the run of ordinary characters ends: at a quote, a backslash, a control character or the end.
    fn plain_end(&self) -> usize {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1F)).unwrap_or(rest.len());
        self.at + length
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let plain = match self.next() {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0C,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                let mut code = self.hex4()?;
                if (0xD800..0xDC00).contains(&code) {
                    if self.next() != Some(b'\\') || self.next() != Some(b'u') {
                        return Err(self.malformed());
                    }
                    let low = self.hex4()?;
                    if !(0xDC00..0xE000).contains(&low) {
                        return Err(self.malformed());
                    }
                    code = 0x1_0000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                }
                let character = char::from_u32(code).ok_or_else(|| self.malformed())?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.malformed()),
        };
        out.push(plain);
        Ok(())
    }

    fn hex4(&mut self) -> Result<u32, Refusal> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.next().and_then(|byte| char::from(byte).to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.malformed())?;
        }
        Ok(code)
    }

    /// A number by JSON's grammar.
    fn number(&mut self) -> Result<&'a [u8], Refusal> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let whole = self.digits();
        if whole == 0 || (whole > 1 && self.bytes[self.at - whole] == b'0') {
            return Err(self.malformed());
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.malformed());
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.malformed());
            }
        }
        Ok(&self.bytes[start..self.at])
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }

    fn literal(&mut self, word: &'static str) -> Result<(), Refusal> {
        if self.bytes[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.malformed())
        }
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += usize::from(byte.is_some());
        byte
    }

    fn malformed(&self) -> Refusal {
        if self.at >= self.bytes.len() {
            Refusal::row("not JSON: the line ends in the middle")
        } else {
            Refusal::row(format!("not JSON: unexpected character before byte {} of the line", self.at + 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Decimal128Type, Int32Type};

    use super::*;
    use crate::grammar::parse_type;
    use crate::value::Zone;

    fn columns(spec: &[(&str, &str)]) -> Vec<Column> {
        spec.iter().map(|(name, data_type)| Column::new(name, &parse_type(data_type).unwrap(), None).unwrap()).collect()
    }

    fn read(columns: &mut [Column], line: &str) -> Result<(), Refusal> {
        let rules = TextRules { zone: Zone::UTC, null_values: vec!["N/A".to_owned()] };
        let row = columns[0].len();
        let read = parse_record(line, columns, row, &rules, &mut Unknown::default());
        if read.is_err() {
            columns.iter_mut().for_each(|column| column.truncate(row));
        }
        assert!(columns.iter().all(|column| column.len() == row + usize::from(read.is_ok())));
        read
    }

    #[test]
    fn fields_outside_the_contract_are_kept_as_they_are_written_wherever_they_are() {
        let mut columns = columns(&[("id", "string"), ("who", "struct<name string, cards list<struct<no string>>>")]);
        let rules = TextRules { zone: Zone::UTC, null_values: Vec::new() };
        let mut unknown = Unknown::default();
        for (row, line) in [
            r#"{"id":"a","price" : 1.50,"x\u00e9":{"k":[1, "}"]},"gone":null}"#,
            r#"{"who":{"name":"n","age":7,"cards":[{"no":"1"},{"no":"2","valid":true}]},"id":"b"}"#,
            r#"{"id":"c"}"#,
        ]
        .into_iter()
        .enumerate()
        {
            parse_record(line, &mut columns, row, &rules, &mut unknown).unwrap();
            unknown.end_row(row);
        }
        assert!(parse_record(r#"{"id":"d","who":{"age":7,"name":3}}"#, &mut columns, 3, &rules, &mut unknown).is_err());
        unknown.drop_row();
        let (kept, fields) = unknown.finish(3).unwrap();
        let kept = kept.unwrap();
        let texts: Vec<Option<&str>> = kept.as_string::<i32>().iter().collect();
        assert_eq!(
            texts,
            [
                Some(r#"{"price":1.50,"x\u00e9":{"k":[1, "}"]}}"#),
                Some(r#"{"who.age":7,"who.cards.1.valid":true}"#),
                None
            ]
        );
        let counted: Vec<(&str, u64)> = fields.iter().collect();
        assert_eq!(counted, [("(other)", 1), ("price", 1), ("who.age", 1), ("who.cards.valid", 1)]);
    }

    #[test]
    fn records_become_rows_and_bad_ones_leave_nothing() {
        let mut columns = columns(&[
            ("id", "string"),
            ("quantity", "int32"),
            ("amount", "decimal(12,2)"),
            ("who", "struct<name string, tags list<string>>"),
        ]);
        read(
            &mut columns,
            r#"{"id":"a\u00e9\ud83d\ude00\n","quantity":2,"amount":1.5,"who":{"name":"x","tags":["p",null]}}"#,
        )
        .unwrap();
        for (line, column, reason) in [
            (r#"{"id":7}"#, Some("id"), "a number where string is expected"),
            (r#"{"id":"x","quantity":"3"}"#, Some("quantity"), "text where int32 is expected"),
            (r#"{"id":"x","quantity":2.5}"#, Some("quantity"), "not a whole number"),
            (r#"{"id":"x","quantity":3000000000}"#, Some("quantity"), "out of range for int32"),
            (r#"{"id":"x","who":{"name":"y","tags":["p",3]}}"#, Some("who.tags"), "a number where string is expected"),
            (r#"{"id":"x","id":"y"}"#, Some("id"), "the field appears twice"),
            (r#"{"id":"x"} {"id":"y"}"#, None, "more text after the JSON object: write one object a line"),
            (r#"{"id":"x""#, None, "not JSON: the line ends in the middle"),
            (r#"["x"]"#, None, "not a JSON object"),
        ] {
            let refusal = read(&mut columns, line).unwrap_err();
            assert_eq!((refusal.column.as_deref(), refusal.reason.as_ref()), (column, reason), "{line}");
        }
        for line in [
            "",
            "nonsense",
            "{'id':1}",
            r#"{"id":"\x"}"#,
            r#"{"id":"\ud800"}"#,
            r#"{"id":01}"#,
            r#"{"id":nul}"#,
            r#"{"other":[1,{"a":}]}"#,
            "{\"id\":\"a\tb\"}",
            r#"{"id":"x",}"#,
        ] {
            assert!(read(&mut columns, line).is_err(), "{line}");
        }
        let deep = format!(r#"{{"other":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        assert!(read(&mut columns, &deep).is_err());
        read(&mut columns, r#" {"amount":"2.25","id":"N/A","other":{"k":[1,"2",true,null]}, "quantity":4.0} "#)
            .unwrap();

        let arrays: Vec<_> = columns.into_iter().map(|column| column.finish().unwrap()).collect();
        assert_eq!(arrays[0].as_string::<i32>().value(0), "aé😀\n");
        assert!(arrays[0].is_null(1));
        assert_eq!(arrays[1].as_primitive::<Int32Type>().values(), &[2, 4]);
        assert_eq!(arrays[2].as_primitive::<Decimal128Type>().values(), &[150, 225]);
        assert_eq!(arrays[3].null_count(), 1);
        assert_eq!(arrays[3].as_struct().column(1).as_list::<i32>().value(0).len(), 2);
    }
}
