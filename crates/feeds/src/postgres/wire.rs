use bytes::{BufMut, BytesMut};

/// Version 3.0 of the protocol. See <https://www.postgresql.org/docs/current/protocol-message-formats.html>.
const VERSION: u32 = 3 << 16;
const SSL_REQUEST: u32 = 80_877_103;

/// The messages that we send, each behind those that are in the buffer. Texts end at their first zero byte: nothing that we
/// send may hold one.
pub(crate) trait Messages {
    /// Asks for TLS.
    fn ssl_request(&mut self);
    /// The first message of a connection.
    fn startup<'a>(&mut self, parameters: impl Iterator<Item = (&'a str, &'a str)>);
    /// A password, or an answer of SASL.
    fn password(&mut self, answer: &[u8]);
    /// The first answer of SASL.
    fn sasl_first(&mut self, mechanism: &str, answer: &[u8]);
    /// A statement of the simple query protocol.
    fn query(&mut self, sql: &str);
    /// A piece of a copy.
    fn copy_data(&mut self, piece: &[u8]);
}

impl Messages for BytesMut {
    fn ssl_request(&mut self) {
        self.put_u32(8);
        self.put_u32(SSL_REQUEST);
    }

    fn startup<'a>(&mut self, parameters: impl Iterator<Item = (&'a str, &'a str)>) {
        framed(self, |message| {
            message.put_u32(VERSION);
            for (name, value) in parameters {
                put_text(message, name);
                put_text(message, value);
            }
            message.put_u8(0);
        });
    }

    fn password(&mut self, answer: &[u8]) {
        self.put_u8(b'p');
        framed(self, |message| message.put_slice(answer));
    }

    fn sasl_first(&mut self, mechanism: &str, answer: &[u8]) {
        self.put_u8(b'p');
        framed(self, |message| {
            put_text(message, mechanism);
            message.put_u32(u32::try_from(answer.len()).unwrap_or(u32::MAX));
            message.put_slice(answer);
        });
    }

    fn query(&mut self, sql: &str) {
        self.put_u8(b'Q');
        framed(self, |message| put_text(message, sql));
    }

    fn copy_data(&mut self, piece: &[u8]) {
        self.put_u8(b'd');
        framed(self, |message| message.put_slice(piece));
    }
}

/// A message behind its length, which counts itself.
fn framed(buffer: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let start = buffer.len();
    buffer.put_u32(0);
    write(buffer);
    let length = u32::try_from(buffer.len() - start).unwrap_or(u32::MAX);
    buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_text(buffer: &mut BytesMut, text: &str) {
    buffer.extend(text.bytes().filter(|byte| *byte != 0));
    buffer.put_u8(0);
}

/// A name, for SQL.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text, for SQL, whatever `standard_conforming_strings` is.
pub(crate) fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_behind_their_length() {
        let mut buffer = BytesMut::new();
        buffer.query("select 1");
        buffer.copy_data(b"abc");
        buffer.sasl_first("SCRAM", b"n,,");
        let expected: &[u8] = b"Q\0\0\0\x0dselect 1\0d\0\0\0\x07abcp\0\0\0\x11SCRAM\0\0\0\0\x03n,,";
        assert_eq!(buffer, expected);
        buffer.clear();
        buffer.startup([("user", "a\0b")].into_iter());
        assert_eq!(&buffer[..], b"\0\0\0\x11\0\x03\0\0user\0ab\0\0");
    }

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\b'"), "E'a\\\\b'''");
    }
}
