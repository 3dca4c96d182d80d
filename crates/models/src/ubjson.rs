//! Where values lie in a UBJSON document (draft 12, as XGBoost writes it), without decoding the trees in it.

use std::ops::Range;

/// What is wrong with a document.
type Problem = String;

/// Containers inside containers at most.
const DEPTH_LIMIT: usize = 128;

/// The bytes of a document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Document<'a> {
    bytes: &'a [u8],
}

impl<'a> Document<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The place of the value at a path of keys, its marker included.
    pub(crate) fn get(&self, path: &[&str]) -> Result<Option<Range<usize>>, Problem> {
        let mut place = 0..self.bytes.len();
        for key in path {
            match self.member(place, key)? {
                Some(found) => place = found,
                None => return Ok(None),
            }
        }
        Ok(Some(place))
    }

    /// The place of one member of the object that lies at `object`.
    pub(crate) fn member(&self, object: Range<usize>, key: &str) -> Result<Option<Range<usize>>, Problem> {
        let mut cursor = Cursor { bytes: self.bytes, at: object.start };
        cursor.expect(b'{')?;
        let mut members = Members::begin(&mut cursor)?;
        while let Some(name) = members.next(&mut cursor, b'}')? {
            cursor.skip_no_ops();
            let start = cursor.at;
            cursor.skip(members.kind, 0)?;
            if name == key.as_bytes() {
                if members.kind.is_some() {
                    return Err(format!("{key} is in a typed object"));
                }
                return Ok(Some(start..cursor.at));
            }
        }
        Ok(None)
    }

    /// The text at a place.
    pub(crate) fn string(&self, place: Range<usize>) -> Result<String, Problem> {
        let mut cursor = Cursor { bytes: self.bytes, at: place.start };
        cursor.expect(b'S')?;
        cursor.text()
    }

    /// The list of texts at a place.
    pub(crate) fn strings(&self, place: Range<usize>) -> Result<Vec<String>, Problem> {
        let mut cursor = Cursor { bytes: self.bytes, at: place.start };
        cursor.expect(b'[')?;
        let mut elements = Members::begin(&mut cursor)?;
        let mut texts = Vec::new();
        while elements.more(&mut cursor, b']')? {
            if elements.kind.is_none() {
                cursor.expect(b'S')?;
            }
            texts.push(cursor.text()?);
        }
        Ok(texts)
    }
}

/// A counted list of texts, as XGBoost writes it.
pub(crate) fn strings(texts: &[&str]) -> Vec<u8> {
    let mut bytes = b"[#".to_vec();
    push_length(&mut bytes, texts.len());
    for text in texts {
        bytes.push(b'S');
        push_text(&mut bytes, text);
    }
    bytes
}

/// An object of texts, as XGBoost writes it.
pub(crate) fn object(members: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = vec![b'{'];
    for (key, text) in members {
        push_text(&mut bytes, key);
        bytes.push(b'S');
        push_text(&mut bytes, text);
    }
    bytes.push(b'}');
    bytes
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    push_length(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

fn push_length(bytes: &mut Vec<u8>, length: usize) {
    bytes.push(b'L');
    bytes.extend_from_slice(&(length as u64).to_be_bytes());
}

#[derive(Debug)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What is left of a container: `$` gives all elements one kind, `#` says how many there are; without, an end marker follows.
#[derive(Debug)]
struct Members {
    kind: Option<u8>,
    left: Option<usize>,
}

impl Members {
    fn begin(cursor: &mut Cursor<'_>) -> Result<Self, Problem> {
        let mut members = Self { kind: None, left: None };
        if cursor.peek() == Some(b'$') {
            cursor.at += 1;
            members.kind = Some(cursor.byte()?);
        }
        if cursor.peek() == Some(b'#') {
            cursor.at += 1;
            members.left = Some(cursor.length()?);
        } else if members.kind.is_some() {
            return Err(format!("no count at byte {}", cursor.at));
        }
        Ok(members)
    }

    fn more(&mut self, cursor: &mut Cursor<'_>, end: u8) -> Result<bool, Problem> {
        if let Some(left) = &mut self.left {
            let more = *left > 0;
            *left = left.saturating_sub(1);
            return Ok(more);
        }
        cursor.skip_no_ops();
        if cursor.peek() == Some(end) {
            cursor.at += 1;
            return Ok(false);
        }
        cursor.peek().map(|_| true).ok_or_else(|| cursor.cut_short())
    }

    fn next<'a>(&mut self, cursor: &mut Cursor<'a>, end: u8) -> Result<Option<&'a [u8]>, Problem> {
        if !self.more(cursor, end)? {
            return Ok(None);
        }
        let length = cursor.length()?;
        cursor.take(length).map(Some)
    }
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_no_ops(&mut self) {
        while self.peek() == Some(b'N') {
            self.at += 1;
        }
    }

    fn cut_short(&self) -> Problem {
        format!("it ends at byte {}", self.bytes.len())
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| self.cut_short())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn expect(&mut self, marker: u8) -> Result<(), Problem> {
        let at = self.at;
        match self.byte()? {
            found if found == marker => Ok(()),
            found => Err(format!("{:?} at byte {at} where {:?} belongs", char::from(found), char::from(marker))),
        }
    }

    /// A marker of an integer and the integer, not negative.
    fn length(&mut self) -> Result<usize, Problem> {
        let at = self.at;
        let marker = self.byte()?;
        let bytes = match width(marker) {
            Some(width) if b"iUIlL".contains(&marker) => self.take(width)?,
            _ => return Err(format!("no length at byte {at}")),
        };
        let mut wide = [if bytes[0] >= 0x80 && marker != b'U' { 0xff } else { 0 }; 8];
        wide[8 - bytes.len()..].copy_from_slice(bytes);
        usize::try_from(i64::from_be_bytes(wide)).map_err(|_| format!("a length below zero at byte {at}"))
    }

    fn text(&mut self) -> Result<String, Problem> {
        let at = self.at;
        let length = self.length()?;
        let bytes = self.take(length)?;
        Ok(std::str::from_utf8(bytes).map_err(|_| format!("no UTF-8 at byte {at}"))?.to_owned())
    }

    /// Passes over a value; `kind` is its marker where the container said it.
    fn skip(&mut self, kind: Option<u8>, depth: usize) -> Result<(), Problem> {
        if depth > DEPTH_LIMIT {
            return Err(format!("more than {DEPTH_LIMIT} containers inside each other"));
        }
        if kind.is_none() {
            self.skip_no_ops();
        }
        let at = self.at;
        let marker = match kind {
            Some(kind) => kind,
            None => self.byte()?,
        };
        if let Some(width) = width(marker) {
            return self.take(width).map(|_| ());
        }
        match marker {
            b'S' | b'H' => {
                let length = self.length()?;
                self.take(length).map(|_| ())
            }
            b'[' => {
                let mut elements = Members::begin(self)?;
                if let (Some(width), Some(left)) = (elements.kind.and_then(width), elements.left) {
                    let length = width.checked_mul(left).ok_or_else(|| self.cut_short())?;
                    return self.take(length).map(|_| ());
                }
                while elements.more(self, b']')? {
                    self.skip(elements.kind, depth + 1)?;
                }
                Ok(())
            }
            b'{' => {
                let mut members = Members::begin(self)?;
                while members.next(self, b'}')?.is_some() {
                    self.skip(members.kind, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(format!("no value at byte {at}")),
        }
    }
}

/// How many bytes a value of this marker has, where all have the same.
const fn width(marker: u8) -> Option<usize> {
    match marker {
        b'Z' | b'T' | b'F' => Some(0),
        b'i' | b'U' | b'C' => Some(1),
        b'I' => Some(2),
        b'l' | b'd' => Some(4),
        b'L' | b'D' => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found() {
        let inner = object(&[("a", "one"), ("b", "two")]);
        let mut bytes = vec![b'{'];
        push_text(&mut bytes, "numbers");
        bytes.extend(*b"[$d#i\x02\0\0\0\0\0\0\0\0");
        push_text(&mut bytes, "names");
        bytes.extend(strings(&["x", "单价"]));
        push_text(&mut bytes, "inner");
        bytes.extend(&inner);
        bytes.push(b'}');
        let document = Document::new(&bytes);
        assert_eq!(document.strings(document.get(&["names"]).unwrap().unwrap()).unwrap(), ["x", "单价"]);
        assert_eq!(document.string(document.get(&["inner", "b"]).unwrap().unwrap()).unwrap(), "two");
        assert_eq!(document.get(&["inner", "c"]).unwrap(), None);
        // Cut anywhere, or with any byte changed, it answers or refuses, and never more than is there.
        for cut in 0..bytes.len() - 1 {
            assert!(Document::new(&bytes[..cut]).get(&["inner", "c"]).is_err(), "cut at {cut}");
        }
        for place in 0..bytes.len() {
            for byte in [0, b'L', b'[', b'{', 0xff] {
                let mut damaged = bytes.clone();
                damaged[place] = byte;
                let document = Document::new(&damaged);
                if let Ok(Some(found)) = document.get(&["names"]) {
                    let _ = document.strings(found);
                }
            }
        }
    }

    #[test]
    fn plain_containers_are_read_too() {
        let bytes = b"{i\x05namesN[Si\x01aSi\x02bcN]}";
        let document = Document::new(bytes);
        assert_eq!(document.strings(document.get(&["names"]).unwrap().unwrap()).unwrap(), ["a", "bc"]);
    }
}
