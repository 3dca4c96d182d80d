use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;

/// Where a line begins that is no object: see [`Line::finish_as_no_record`].
const NO_OBJECT: u8 = b'[';

/// Writes one record as a line of JSON: fields of the feed's own, whose names begin with an underscore, then those of the record.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    lines: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Line<'a> {
    /// A line behind those that are there.
    pub(crate) fn new(lines: &'a mut Vec<u8>) -> Self {
        let start = lines.len();
        lines.push(b'{');
        Self { lines, start }
    }

    /// A field with a value that is JSON already.
    pub(crate) fn json(&mut self, name: &str, value: impl std::fmt::Display) {
        if self.lines.len() > self.start + 1 {
            self.lines.push(b',');
        }
        push_text(self.lines, name);
        self.lines.push(b':');
        self.lines.extend_from_slice(value.to_string().as_bytes());
    }

    /// A field that is a text.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        let mut json = Vec::with_capacity(value.len() + 2);
        push_text(&mut json, value);
        self.json(name, String::from_utf8_lossy(&json));
    }

    /// A field that is a text, or, where the bytes are none, base64 in a field of the same name with `_base64` at its end.
    pub(crate) fn bytes(&mut self, name: &str, value: &[u8]) {
        match std::str::from_utf8(value) {
            Ok(text) => self.text(name, text),
            Err(_) => self.text(&format!("{name}_base64"), &base64(value)),
        }
    }

    /// Ends a record that has no fields but those written.
    pub(crate) fn finish(self) {
        self.lines.extend_from_slice(b"}\n");
    }

    /// Ends a line that no contract reads, so that it goes to the quarantine with its reason: a list of one object.
    pub(crate) fn finish_as_no_record(self) {
        self.lines.insert(self.start, NO_OBJECT);
        self.lines.extend_from_slice(b"}]\n");
    }

    /// Ends the record with the fields of a JSON object, whose text is kept as it is but for line ends between its parts.
    ///
    /// A message that is no JSON object makes a line as [`Line::finish_as_no_record`] does, with the message in the field `_value`.
    pub(crate) fn finish_with(mut self, message: &[u8]) {
        match fields_of(message) {
            Some([]) => self.finish(),
            Some(fields) => {
                if self.lines.len() > self.start + 1 {
                    self.lines.push(b',');
                }
                // In valid JSON line ends are between the parts only.
                let between = |byte: &u8| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte };
                self.lines.extend(fields.iter().map(between));
                self.finish();
            }
            None => {
                self.bytes("_value", message);
                self.finish_as_no_record();
            }
        }
    }
}

/// What is between the braces of a text that is one JSON object.
fn fields_of(message: &[u8]) -> Option<&[u8]> {
    let message = message.trim_ascii();
    let fields = message.strip_prefix(b"{")?.strip_suffix(b"}")?;
    serde_json::from_slice::<IgnoredAny>(message).ok()?;
    std::str::from_utf8(message).ok()?;
    Some(fields.trim_ascii())
}

/// Appends a JSON text.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            byte => out.push(byte),
        }
    }
    out.push(b'"');
}

/// Base64 as in RFC 4648, section 4.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &[u8]) -> String {
        let mut lines = Vec::new();
        let mut line = Line::new(&mut lines);
        line.text("_topic", "a\"b");
        line.json("_offset", 7);
        line.finish_with(message);
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn an_object_keeps_its_text() {
        assert_eq!(
            line(b" {\"price\": 9.900,\r\n\"note\": \"a\\nb\"}\n"),
            "{\"_topic\":\"a\\\"b\",\"_offset\":7,\"price\": 9.900,  \"note\": \"a\\nb\"}\n"
        );
        assert_eq!(line(b"{}"), "{\"_topic\":\"a\\\"b\",\"_offset\":7}\n");
        let mut lines = Vec::new();
        Line::new(&mut lines).finish_with(b"{\"a\":1}");
        assert_eq!(lines, b"{\"a\":1}\n");
    }

    #[test]
    fn what_is_no_object_is_no_object_afterwards() {
        let messages: [&[u8]; 8] =
            [b"", b"7", b"[{}]", b"{\"a\":1", b"{\"a\":1}{\"b\":2}", b"{\"a\":\"\n\"}", b"not json {}", b"\xff{}"];
        for message in messages {
            let line = line(message);
            assert!(
                line.starts_with("[{\"_topic\":\"a\\\"b\",\"_offset\":7,\"_value") && line.ends_with("}]\n"),
                "{line}"
            );
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(text) = value[0]["_value"].as_str() {
                assert_eq!(text.as_bytes(), message);
            } else {
                assert_eq!(value[0]["_value_base64"], "/3t9");
            }
        }
    }
}
