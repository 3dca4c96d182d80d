//! Cuts JSON text into its parts and leaves each as it came: reading and writing numbers again could change them.

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// A JSON text without whitespace around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Json<'a>(&'a str);

impl<'a> Json<'a> {
    /// Checks the text. The error says where it stops being JSON and quotes nothing.
    pub(crate) fn parse(text: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|error| format!("not UTF-8 from byte {}", error.valid_up_to()))?;
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| error.to_string())?;
        Ok(Self(text.trim_matches(is_space)))
    }

    pub(crate) fn is_null(self) -> bool {
        self.0 == "null"
    }

    /// The value of a string.
    pub(crate) fn string(self) -> Option<Cow<'a, str>> {
        let quoted = self.0.strip_prefix('"')?.strip_suffix('"')?;
        if quoted.contains('\\') {
            serde_json::from_str(self.0).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(quoted))
        }
    }

    /// The elements of an array.
    pub(crate) fn elements(self) -> Option<Vec<Self>> {
        let inner = self.0.strip_prefix('[')?.strip_suffix(']')?;
        Some(split(inner).into_iter().map(Self).collect())
    }

    /// The names and values of an object's members, in their order. A name can occur twice.
    pub(crate) fn members(self) -> Option<Vec<(Cow<'a, str>, Self)>> {
        let inner = self.0.strip_prefix('{')?.strip_suffix('}')?;
        split(inner)
            .into_iter()
            .map(|member| {
                let end = end_of_string(member)?;
                let (name, rest) = member.split_at_checked(end)?;
                let value = rest.trim_start_matches(is_space).strip_prefix(':')?;
                Some((Self(name).string()?, Self(value.trim_matches(is_space))))
            })
            .collect()
    }

    /// Writes the text on one line. A line end between values is a space; there is none within.
    pub(crate) fn write_to(self, line: &mut Vec<u8>) {
        line.extend(self.0.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
    }
}

/// What stands between the commas that are in no inner object, array or string.
fn split(inner: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in inner.bytes().enumerate() {
        if quoted {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(inner[start..at].trim_matches(is_space));
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = inner[start..].trim_matches(is_space);
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

/// Where the string ends that the text begins with.
fn end_of_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn is_space(letter: char) -> bool {
    matches!(letter, ' ' | '\t' | '\n' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_as_they_came() {
        let text = " {\n \"a\" : 1.50 , \"b,\\\"\":[ {\"x\":\"]},\"} , 2 ],\"\\u0061\":null,\"é\":\"\\\\\" } ";
        let members = Json::parse(text.as_bytes()).unwrap().members().unwrap();
        let found: Vec<(&str, &str)> = members.iter().map(|(name, value)| (name.as_ref(), value.0)).collect();
        assert_eq!(found, [("a", "1.50"), ("b,\"", "[ {\"x\":\"]},\"} , 2 ]"), ("a", "null"), ("é", "\"\\\\\"")]);
        let elements = members[1].1.elements().unwrap();
        assert_eq!(elements.iter().map(|element| element.0).collect::<Vec<_>>(), ["{\"x\":\"]},\"}", "2"]);
        assert_eq!(members[3].1.string().unwrap(), "\\");
        assert_eq!(Json::parse(b"[]").unwrap().elements().unwrap(), []);
        assert_eq!(Json::parse(b" { } ").unwrap().members().unwrap(), []);
        assert_eq!(Json::parse(b"[]").unwrap().members(), None);
    }

    #[test]
    fn what_is_no_json_is_told_without_quoting_it() {
        for text in ["", "{", "{\"mobile\":13800000000", "{} {}", "[1,]", "{'a':1}"] {
            let reason = Json::parse(text.as_bytes()).unwrap_err();
            assert!(!reason.contains("13800000000"), "{reason}");
        }
        assert!(Json::parse(b"\"\xff\"").unwrap_err().contains("byte 1"));
    }

    #[test]
    fn a_value_is_written_on_one_line() {
        let mut line = Vec::new();
        Json::parse(b"{\n\"a\":\r\n\"x\\ny\"}").unwrap().write_to(&mut line);
        assert_eq!(line, b"{ \"a\":  \"x\\ny\"}");
    }
}
