//! Values, NDJSON objects and CSV lines written straight into bytes: a generic serialiser would take most of the time.

use crate::calendar;
use crate::number::low8;

pub(crate) fn push_number(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + low8(rest % 10);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// `1299.00`
pub(crate) fn push_cents(out: &mut Vec<u8>, cents: i64) {
    if cents < 0 {
        out.push(b'-');
    }
    let cents = i64::try_from(cents.unsigned_abs()).unwrap_or(i64::MAX);
    push_number(out, cents / 100);
    out.push(b'.');
    calendar::push_padded(out, cents % 100, 2);
}

/// A JSON object being written. Fields come in the order of the calls; what is absent is left out.
#[derive(Debug)]
pub(crate) struct Json<'a> {
    pub(crate) out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Json<'a> {
    pub(crate) fn object(out: &'a mut Vec<u8>, write: impl FnOnce(&mut Json<'_>)) {
        out.push(b'{');
        write(&mut Json { out: &mut *out, first: true });
        out.push(b'}');
    }

    fn name(&mut self, name: &str) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A string that needs no escaping, written by a closure.
    pub(crate) fn token(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.name(name);
        self.out.push(b'"');
        write(self.out);
        self.out.push(b'"');
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.token(name, |out| {
            for byte in value.bytes() {
                match byte {
                    b'"' => out.extend_from_slice(b"\\\""),
                    b'\\' => out.extend_from_slice(b"\\\\"),
                    b'\n' => out.extend_from_slice(b"\\n"),
                    _ => out.push(byte),
                }
            }
        });
    }

    pub(crate) fn number(&mut self, name: &str, value: i64) {
        self.name(name);
        push_number(self.out, value);
    }

    pub(crate) fn cents(&mut self, name: &str, cents: i64) {
        self.name(name);
        push_cents(self.out, cents);
    }

    pub(crate) fn flag(&mut self, name: &str, value: bool) {
        self.name(name);
        self.out.extend_from_slice(if value { b"true".as_slice() } else { b"false" });
    }

    pub(crate) fn utc(&mut self, name: &str, time_ms: i64) {
        self.token(name, |out| calendar::push_utc(out, time_ms));
    }

    pub(crate) fn nested(&mut self, name: &str, write: impl FnOnce(&mut Json<'_>)) {
        self.name(name);
        Json::object(self.out, write);
    }
}

/// A CSV line being written.
#[derive(Debug)]
pub(crate) struct Csv<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Csv<'a> {
    pub(crate) fn line(out: &'a mut Vec<u8>) -> Self {
        Self { out, first: true }
    }

    /// A field that needs no quotes, written by a closure; one that writes nothing leaves the field empty.
    pub(crate) fn field(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        write(self.out);
        self
    }

    pub(crate) fn text(&mut self, value: &str) -> &mut Self {
        let quoted = value.contains([',', '"', '\n']);
        self.field(|out| {
            if quoted {
                out.push(b'"');
                out.extend_from_slice(value.replace('"', "\"\"").as_bytes());
                out.push(b'"');
            } else {
                out.extend_from_slice(value.as_bytes());
            }
        })
    }

    pub(crate) fn number(&mut self, value: i64) -> &mut Self {
        self.field(|out| push_number(out, value))
    }

    pub(crate) fn cents(&mut self, cents: i64) -> &mut Self {
        self.field(|out| push_cents(out, cents))
    }

    pub(crate) fn utc(&mut self, time_ms: i64) -> &mut Self {
        self.field(|out| calendar::push_utc(out, time_ms))
    }

    pub(crate) fn local(&mut self, time_ms: i64) -> &mut Self {
        self.field(|out| calendar::push_local(out, time_ms))
    }
}
