use std::time::Duration;

use async_trait::async_trait;
use holdfast_ingest::Inbox;

use crate::Result;
use crate::error::FeedError;

/// The longest position, in characters: it is part of an object's name.
const POSITION_CHARS_MAX: usize = 200;

/// A kind of place that records come from in an order of its own. One file implements it.
#[async_trait]
pub trait Feed: Send + Sync {
    /// The partitions there are now, each with an order and positions of its own. Their names are made of ASCII letters, digits,
    /// `.`, `_` and `-`, and begin with none of the last three. Asked again from time to time.
    async fn partitions(&self) -> Result<Vec<String>>;

    /// Opens a partition behind `after`; at its beginning when there is none. Its records go to `inbox`, in whose lake a feed may keep
    /// what it has to remember beside positions.
    async fn open(
        &self,
        inbox: &Inbox,
        partition: &str,
        after: Option<&FeedPosition>,
    ) -> Result<Box<dyn FeedPartition>>;
}

/// A partition that is being read. After an error it is dropped and opened again where the lake stands.
#[async_trait]
pub trait FeedPartition: Send {
    /// The next records, at most what `limits` say (a record that is longer comes alone), waiting up to `wait` for the first. `None`:
    /// nothing came. May be dropped at any moment; the partition is then dropped, too.
    async fn next(&mut self, limits: &ChunkLimits, wait: Duration) -> Result<Option<Chunk>>;

    /// All up to `position` is durable in the lake: the other side may forget it.
    async fn acknowledge(&mut self, position: &FeedPosition) -> Result<()>;

    /// Where the partition ends now, if that can be told: reading that is to come to an end goes no further. Where it cannot be told,
    /// reading ends when nothing comes.
    async fn end(&mut self) -> Result<Option<FeedPosition>> {
        Ok(None)
    }

    /// How many records come behind those that were given, as far as is known.
    fn records_behind(&self) -> Option<u64> {
        None
    }
}

/// Where a partition is: text that sorts as the partition's order does, so numbers are padded with zeros.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeedPosition(String);

impl FeedPosition {
    /// A position, as part of an object's name: ASCII letters, digits, `.`, `_` and `-`, beginning with a letter or a digit.
    ///
    /// # Errors
    /// [`FeedError::Internal`] when it is none.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        if text.len() <= POSITION_CHARS_MAX && is_name(&text) {
            Ok(Self(text))
        } else {
            Err(FeedError::internal(format!("{text:?} cannot be a position")))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for FeedPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text can be a part of an object's name as it is, behind any name that begins with a sign.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|character| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-'))
}

/// What is read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLimits {
    /// Records.
    pub records: u64,
    /// Bytes of their lines.
    pub bytes: usize,
}

/// Records as newline-delimited JSON, one object a line, and the position behind the last of them.
///
/// One without records says that there are none up to its end: it moves reading on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Each line with its end.
    pub lines: Vec<u8>,
    /// How many lines there are.
    pub records: u64,
    /// Behind every position given before.
    pub end: FeedPosition,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_can_be_part_of_a_name() {
        for fine in ["0", "00000000000000000042", "16-B374D848", "a.b_c"] {
            assert_eq!(FeedPosition::new(fine).unwrap().as_str(), fine);
        }
        for wrong in ["", "-1", ".hidden", "_x", "a/b", "a b", "ä", &"0".repeat(201)] {
            assert!(FeedPosition::new(wrong).is_err(), "{wrong}");
        }
    }
}
