//! The frames of the protocol, version 3, as PostgreSQL's manual has them (chapter "Frontend/Backend Protocol"). Lengths and counts come
//! from outside: each is checked against what is really there before it is used.

use bytes::{Buf, Bytes};

use crate::error::Problem;

/// What a client says once it is let in.
#[derive(Debug)]
pub(crate) enum Request {
    Query(String),
    Parse {
        name: String,
        sql: String,
        types: Vec<u32>,
    },
    Bind(Bind),
    Describe(Target),
    Execute {
        portal: String,
        max_rows: usize,
    },
    Close(Target),
    Sync,
    Flush,
    Terminate,
    /// Of a copy that was refused already.
    CopyLeftover,
}

#[derive(Debug)]
pub(crate) struct Bind {
    pub(crate) portal: String,
    pub(crate) statement: String,
    pub(crate) formats: Vec<Format>,
    pub(crate) values: Vec<Option<Bytes>>,
    pub(crate) result_formats: Vec<Format>,
}

#[derive(Debug)]
pub(crate) enum Target {
    Statement(String),
    Portal(String),
}

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Binary,
}

impl Request {
    /// Whether an error in it is followed by silence until `Sync`.
    pub(crate) fn is_extended(kind: u8) -> bool {
        matches!(kind, b'P' | b'B' | b'D' | b'E' | b'C' | b'H')
    }

    pub(crate) fn decode(kind: u8, body: Bytes) -> Result<Self, Problem> {
        let mut fields = Fields(body);
        let request = match kind {
            b'Q' => Self::Query(fields.text()?),
            b'P' => {
                let (name, sql) = (fields.text()?, fields.text()?);
                let count = fields.count()?;
                let types = (0..count).map(|_| fields.u32()).collect::<Result<_, _>>()?;
                Self::Parse { name, sql, types }
            }
            b'B' => Self::Bind(fields.bind()?),
            b'D' => Self::Describe(fields.target()?),
            b'C' => Self::Close(fields.target()?),
            b'E' => {
                let portal = fields.text()?;
                // Zero is no limit, and so is what libpq never sends.
                let max_rows = usize::try_from(fields.u32()?.cast_signed()).unwrap_or(0);
                Self::Execute { portal, max_rows }
            }
            b'S' => Self::Sync,
            b'H' => Self::Flush,
            b'X' => return Ok(Self::Terminate),
            b'd' | b'c' | b'f' => return Ok(Self::CopyLeftover),
            b'F' => {
                return Err(Problem::new(
                    crate::error::state::FEATURE_NOT_SUPPORTED,
                    "function calls by message are not offered: use select",
                ));
            }
            other => return Err(Problem::malformed(&format!("there is none of type {:?}", char::from(other)))),
        };
        match fields.0.has_remaining() {
            true => Err(Problem::malformed("bytes are left over")),
            false => Ok(request),
        }
    }
}

/// Reads the body of a frame from its beginning.
pub(crate) struct Fields(pub(crate) Bytes);

impl Fields {
    pub(crate) fn text(&mut self) -> Result<String, Problem> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(|| Problem::malformed("a text has no end"))?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        match std::str::from_utf8(&text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Problem::new("22021", "a text is not valid UTF-8, the only encoding here")),
        }
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<Bytes, Problem> {
        if count > self.0.len() {
            return Err(Problem::malformed("it ends too early"));
        }
        Ok(self.0.split_to(count))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Problem> {
        self.take(4).map(|mut bytes| bytes.get_u32())
    }

    fn u16(&mut self) -> Result<u16, Problem> {
        self.take(2).map(|mut bytes| bytes.get_u16())
    }

    /// A number of things that follow, each of two bytes or more.
    fn count(&mut self) -> Result<usize, Problem> {
        let count = usize::from(self.u16()?);
        if count * 2 > self.0.len() {
            return Err(Problem::malformed("it counts more than it holds"));
        }
        Ok(count)
    }

    fn formats(&mut self) -> Result<Vec<Format>, Problem> {
        let count = self.count()?;
        (0..count)
            .map(|_| match self.u16()? {
                0 => Ok(Format::Text),
                1 => Ok(Format::Binary),
                _ => Err(Problem::malformed("a format is neither text nor binary")),
            })
            .collect()
    }

    fn target(&mut self) -> Result<Target, Problem> {
        match self.take(1)?.first() {
            Some(b'S') => Ok(Target::Statement(self.text()?)),
            Some(b'P') => Ok(Target::Portal(self.text()?)),
            _ => Err(Problem::malformed("it names neither a statement nor a portal")),
        }
    }

    fn bind(&mut self) -> Result<Bind, Problem> {
        let (portal, statement) = (self.text()?, self.text()?);
        let formats = self.formats()?;
        let count = self.count()?;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            let length = self.u32()?.cast_signed();
            values.push(match usize::try_from(length) {
                Ok(length) => Some(self.take(length)?),
                Err(_) => None,
            });
        }
        Ok(Bind { portal, statement, formats, values, result_formats: self.formats()? })
    }
}

/// The format of one of many: none said is text, one said is for all.
pub(crate) fn format_of(formats: &[Format], index: usize) -> Result<Format, Problem> {
    match formats {
        [] => Ok(Format::Text),
        [one] => Ok(*one),
        many => many.get(index).copied().ok_or_else(|| Problem::malformed("there are fewer formats than values")),
    }
}

/// A column, as a client is told of it.
#[derive(Debug, Clone)]
pub(crate) struct Described {
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    pub(crate) type_size: i16,
    pub(crate) format: Format,
}

/// Writes frames at the end of a buffer.
pub(crate) trait Frames {
    fn frame(&mut self, kind: u8, body: impl FnOnce(&mut Vec<u8>));
    fn parse_complete(&mut self);
    fn bind_complete(&mut self);
    fn close_complete(&mut self);
    fn no_data(&mut self);
    fn empty_query(&mut self);
    fn portal_suspended(&mut self);
    fn ready(&mut self, transaction: u8);
    fn complete(&mut self, tag: &str);
    fn parameter(&mut self, name: &str, value: &str);
    fn row_description(&mut self, columns: &[Described]);
    fn parameter_description(&mut self, types: &[u32]);
    fn problem(&mut self, severity: &str, problem: &Problem, position: Option<usize>);
    fn copy_out(&mut self, format: Format, columns: usize);
    fn copy_done(&mut self);
}

impl Frames for Vec<u8> {
    fn frame(&mut self, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
        self.push(kind);
        let start = self.len();
        self.extend_from_slice(&[0; 4]);
        body(self);
        close_frame(self, start);
    }

    fn parse_complete(&mut self) {
        self.frame(b'1', |_| {});
    }

    fn bind_complete(&mut self) {
        self.frame(b'2', |_| {});
    }

    fn close_complete(&mut self) {
        self.frame(b'3', |_| {});
    }

    fn no_data(&mut self) {
        self.frame(b'n', |_| {});
    }

    fn empty_query(&mut self) {
        self.frame(b'I', |_| {});
    }

    fn portal_suspended(&mut self) {
        self.frame(b's', |_| {});
    }

    fn ready(&mut self, transaction: u8) {
        self.frame(b'Z', |body| body.push(transaction));
    }

    fn complete(&mut self, tag: &str) {
        self.frame(b'C', |body| put_text(body, tag));
    }

    fn parameter(&mut self, name: &str, value: &str) {
        self.frame(b'S', |body| {
            put_text(body, name);
            put_text(body, value);
        });
    }

    fn row_description(&mut self, columns: &[Described]) {
        self.frame(b'T', |body| {
            body.extend_from_slice(&short(columns.len()).to_be_bytes());
            for column in columns {
                put_text(body, &column.name);
                // No table and no column of one: the rows are a query's.
                body.extend_from_slice(&[0; 6]);
                body.extend_from_slice(&column.type_oid.to_be_bytes());
                body.extend_from_slice(&column.type_size.to_be_bytes());
                body.extend_from_slice(&(-1_i32).to_be_bytes());
                body.extend_from_slice(&u16::from(column.format == Format::Binary).to_be_bytes());
            }
        });
    }

    fn parameter_description(&mut self, types: &[u32]) {
        self.frame(b't', |body| {
            body.extend_from_slice(&short(types.len()).to_be_bytes());
            types.iter().for_each(|oid| body.extend_from_slice(&oid.to_be_bytes()));
        });
    }

    fn problem(&mut self, severity: &str, problem: &Problem, position: Option<usize>) {
        self.frame(if severity == "NOTICE" || severity == "WARNING" { b'N' } else { b'E' }, |body| {
            let mut field = |code: u8, text: &str| {
                body.push(code);
                put_text(body, text);
            };
            field(b'S', severity);
            field(b'V', severity);
            field(b'C', problem.code);
            field(b'M', &problem.message);
            if let Some(hint) = &problem.hint {
                field(b'H', hint);
            }
            if let Some(position) = position {
                field(b'P', &position.to_string());
            }
            body.push(0);
        });
    }

    fn copy_out(&mut self, format: Format, columns: usize) {
        self.frame(b'H', |body| {
            let code = u8::from(format == Format::Binary);
            body.push(code);
            body.extend_from_slice(&short(columns).to_be_bytes());
            (0..columns).for_each(|_| body.extend_from_slice(&u16::from(code).to_be_bytes()));
        });
    }

    fn copy_done(&mut self) {
        self.frame(b'c', |_| {});
    }
}

/// Writes the length of the frame that began at `start`, which is where its length stands.
pub(crate) fn close_frame(buffer: &mut [u8], start: usize) {
    let length = u32::try_from(buffer.len() - start).unwrap_or(u32::MAX);
    buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// A text in a frame ends with a zero byte, so it holds none.
pub(crate) fn put_text(buffer: &mut Vec<u8>, text: &str) {
    buffer.extend(text.bytes().filter(|byte| *byte != 0));
    buffer.push(0);
}

fn short(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, body: &[u8]) -> Result<Request, Problem> {
        Request::decode(kind, Bytes::copy_from_slice(body))
    }

    #[test]
    fn a_frame_that_lies_about_its_lengths_is_refused() {
        let lies: [(u8, &[u8]); 9] = [
            (b'Q', b"select 1"),
            (b'P', b"\0select 1\0\xff\xff"),
            (b'P', b"\0select 1\0\0\x01\0\0"),
            (b'B', b"\0\0\xff\xff"),
            (b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff"),
            (b'B', b"\0\0\0\x01\0\x02\0\0\0\0"),
            (b'D', b"T\0"),
            (b'E', b"\0\0"),
            (b'S', b"more"),
        ];
        for (kind, body) in lies {
            assert!(frame(kind, body).is_err(), "{} {body:?}", char::from(kind));
        }
        assert!(frame(b'?', b"").unwrap_err().is_fatal);
    }

    #[test]
    fn a_bind_is_read_with_nulls_and_formats() {
        let body = b"p\0s\0\0\x01\0\x01\0\x02\xff\xff\xff\xff\0\0\0\x02ab\0\0";
        let Request::Bind(bind) = frame(b'B', body).unwrap() else { panic!("no bind") };
        assert_eq!((bind.portal.as_str(), bind.statement.as_str()), ("p", "s"));
        assert_eq!(bind.values, [None, Some(Bytes::from_static(b"ab"))]);
        assert_eq!(format_of(&bind.formats, 1).unwrap(), Format::Binary);
    }

    #[test]
    fn every_body_of_random_bytes_is_decoded_or_refused() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..200_000 {
            let length = usize::try_from(random() % 40).unwrap();
            let body: Vec<u8> = (0..length).map(|_| u8::try_from(random() % 5).unwrap() * 63).collect();
            let kind = b"QPBDECSHXF"[usize::try_from(random() % 10).unwrap()];
            let _ = frame(kind, &body);
        }
    }
}
