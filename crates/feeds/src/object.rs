use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::feed::{Chunk, FeedPosition};
use crate::{FeedError, Result};

/// The magic number of a skippable frame, RFC 8878, section 3.1.2: what reads Zstandard passes over it.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
/// Magic number and length.
const FRAME_HEADER_BYTES: usize = 8;
/// As much of an object as holds its head.
pub(crate) const HEAD_BYTES_MAX: usize = 1_024;
/// Records are packed while they are read, and once: speed matters more.
const COMPRESSION_LEVEL: i32 = 1;
const FORMAT: u32 = 1;

/// What an object of a feed says about itself at its head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    format: u32,
    /// The position behind its last record: the name of the next object.
    pub(crate) end: String,
    pub(crate) records: u64,
    /// Drawn for this object alone, so that who wrote it knows it again.
    pub(crate) writer: Uuid,
}

impl Head {
    /// Reads the beginning of an object.
    pub(crate) fn parse(path: &str, beginning: &[u8]) -> Result<Self> {
        let damaged = |reason: &str| FeedError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        let word = |at: usize| {
            let bytes = beginning.get(at..at + 4)?;
            bytes.try_into().ok().map(u32::from_le_bytes)
        };
        if word(0) != Some(SKIPPABLE_MAGIC) {
            return Err(damaged("it does not begin with a head"));
        }
        let length = word(4).and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
        let content = FRAME_HEADER_BYTES.checked_add(length).and_then(|end| beginning.get(FRAME_HEADER_BYTES..end));
        let content = content.ok_or_else(|| damaged("its head is cut off"))?;
        let head: Self = serde_json::from_slice(content).map_err(|_| damaged("its head is not readable"))?;
        if head.format > FORMAT {
            return Err(damaged("a newer version of holdfast wrote it: use that version"));
        }
        Ok(head)
    }

    /// Where the object's records end.
    pub(crate) fn end(&self, path: &str) -> Result<FeedPosition> {
        FeedPosition::new(self.end.as_str())
            .map_err(|_| FeedError::Damaged { path: path.to_owned(), reason: "its end is no position".to_owned() })
    }
}

/// An object to be written.
#[derive(Debug, Clone)]
pub(crate) struct ChunkObject {
    pub(crate) writer: Uuid,
    pub(crate) bytes: Bytes,
}

impl ChunkObject {
    /// Packs a chunk.
    pub(crate) fn pack(chunk: &Chunk) -> Result<Self> {
        let writer = Uuid::new_v4();
        let head = Head { format: FORMAT, end: chunk.end.as_str().to_owned(), records: chunk.records, writer };
        let head = serde_json::to_vec(&head).map_err(FeedError::internal)?;
        let length = u32::try_from(head.len()).map_err(FeedError::internal)?;
        let packed = zstd::bulk::compress(&chunk.lines, COMPRESSION_LEVEL).map_err(FeedError::internal)?;
        let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + head.len() + packed.len());
        bytes.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&packed);
        Ok(Self { writer, bytes: bytes.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_back_and_passed_over_by_zstandard() {
        let end = FeedPosition::new("00000000000000000007").unwrap();
        let chunk = Chunk { lines: b"{\"id\":1}\n{\"id\":2}\n".to_vec(), records: 2, end: end.clone() };
        let object = ChunkObject::pack(&chunk).unwrap();
        let head = Head::parse("x", &object.bytes[..object.bytes.len().min(HEAD_BYTES_MAX)]).unwrap();
        assert_eq!((head.end("x").unwrap(), head.records, head.writer), (end, 2, object.writer));
        assert_eq!(zstd::decode_all(object.bytes.as_ref()).unwrap(), chunk.lines);
    }

    #[test]
    fn what_is_no_head_is_damage() {
        let object = ChunkObject::pack(&Chunk { lines: Vec::new(), records: 0, end: FeedPosition::new("1").unwrap() });
        let bytes = object.unwrap().bytes;
        for (beginning, said) in
            [(&bytes[1..], "does not begin"), (&bytes[..40], "cut off"), (&bytes[..3], "does not begin")]
        {
            let error = Head::parse("inbox/x", beginning).unwrap_err().to_string();
            assert!(error.contains("inbox/x") && error.contains(said), "{error}");
        }
    }
}
