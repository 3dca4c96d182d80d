use std::borrow::Cow;

use crate::block::NOT_IN_ENCODING;

/// Why a row is refused. The reason names types and places, never the value: that stands in the quarantine's original
/// text only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The column, with dots into structs; `None` when the row as a whole is at fault.
    pub(crate) column: Option<String>,
    pub(crate) reason: Cow<'static, str>,
}

impl Refusal {
    pub(crate) fn row(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { column: None, reason: reason.into() }
    }

    /// The same, seen from one level further out.
    #[must_use]
    pub(crate) fn within(mut self, name: &str) -> Self {
        self.column = Some(match self.column {
            Some(inner) => format!("{name}.{inner}"),
            None => name.to_owned(),
        });
        self
    }
}

/// A refused row on its way to the quarantine.
#[derive(Debug, Clone)]
pub(crate) struct RefusedRow {
    /// 1-based line; for Parquet the 1-based row.
    pub(crate) line: u64,
    pub(crate) refusal: Refusal,
    /// What stood there, made valid UTF-8 and cut to the limit.
    pub(crate) original: String,
    /// Whether `original` is the row as it came, so that it can be read again.
    pub(crate) is_whole: bool,
}

impl RefusedRow {
    /// A row of text, kept up to `bytes_max`. What was lost in decoding it the refusal says.
    pub(crate) fn new(line: u64, refusal: Refusal, text: &[u8], bytes_max: usize) -> Self {
        let original = original_text(text, bytes_max);
        let is_whole = original.as_bytes() == text && refusal.reason != NOT_IN_ENCODING;
        Self { line, refusal, original, is_whole }
    }
}

/// The text of a line as it is kept in the quarantine.
fn original_text(line: &[u8], bytes_max: usize) -> String {
    if line.len() <= bytes_max {
        return String::from_utf8_lossy(line).into_owned();
    }
    // Cutting inside a character would leave a replacement mark that was not there.
    let mut end = bytes_max;
    while end > 0 && line.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) && bytes_max - end < 4 {
        end -= 1;
    }
    String::from_utf8_lossy(&line[..end]).into_owned()
}
