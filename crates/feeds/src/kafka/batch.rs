use std::collections::{HashSet, VecDeque};
use std::io::{Error, ErrorKind, Read};

use bytes::Bytes;
use kafka_protocol::records::{Compression, Record, RecordBatchDecoder, TimestampType};

/// What one batch may hold when it is unpacked.
const UNPACKED_BYTES_MAX: usize = 256 << 20;
/// Offset and length, which every batch begins with.
const PREFIX_BYTES: usize = 12;
/// Up to where the records begin.
const HEADER_BYTES: usize = 61;
/// The version of the message format since Kafka 0.11.
const MAGIC: u8 = 2;
/// How long the framing of Snappy is that Java clients use; see [`unpack_snappy`].
const SNAPPY_HEADER: &[u8] = b"\x82SNAPPY\0";
const SNAPPY_HEADER_BYTES: usize = 16;

/// Records as they are stored together.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    bytes: Bytes,
    pub(crate) last_offset: i64,
    max_timestamp: i64,
    /// Markers of transactions, which no consumer sees.
    pub(crate) is_control: bool,
    is_transactional: bool,
    producer: i64,
}

impl Batch {
    /// Takes the next whole batch off what a broker sent. `None` at the end, where a broker may have cut one off.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn take(records: &mut Bytes) -> Result<Option<Self>, String> {
        if records.len() < HEADER_BYTES {
            return Ok(None);
        }
        if records[16] != MAGIC {
            return Err(
                "the messages have the format from before Kafka 0.11: copy the topic with a newer client".to_owned()
            );
        }
        let length =
            usize::try_from(i32::from_be_bytes(field(records, 8))).map_err(|_| "a batch of negative length")?;
        let whole = PREFIX_BYTES.checked_add(length).filter(|whole| *whole >= HEADER_BYTES);
        let whole = whole.ok_or("a batch that is shorter than its header")?;
        if records.len() < whole {
            return Ok(None);
        }
        let bytes = records.split_to(whole);
        let attributes = i16::from_be_bytes(field(&bytes, 21));
        Ok(Some(Self {
            last_offset: i64::from_be_bytes(field(&bytes, 0)) + i64::from(i32::from_be_bytes(field(&bytes, 23))),
            max_timestamp: i64::from_be_bytes(field(&bytes, 35)),
            is_control: attributes & (1 << 5) != 0,
            is_transactional: attributes & (1 << 4) != 0,
            producer: i64::from_be_bytes(field(&bytes, 43)),
            bytes,
        }))
    }

    /// The records, in their order.
    ///
    /// # Errors
    /// What is wrong with them: a checksum, an unknown compression, a text of the library's that names no values.
    pub(crate) fn records(&self) -> Result<VecDeque<Record>, String> {
        let mut bytes = self.bytes.clone();
        let unpack = |packed: &mut Bytes, compression: Compression| Ok(unpack(packed, compression)?);
        let set = RecordBatchDecoder::decode_with_custom_compression(&mut bytes, Some(unpack))
            .map_err(|error| error.to_string())?;
        let mut records = VecDeque::from(set.records);
        for record in &mut records {
            // The broker sets the time of the batch alone.
            if record.timestamp_type == TimestampType::LogAppend {
                record.timestamp = self.max_timestamp;
            }
        }
        Ok(records)
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Which batches of a stretch of a partition belong to transactions that were aborted: the broker tells which there are, and leaves it
/// to its client to pass them over.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    /// Producers of aborted transactions with their first offsets, in the order of these.
    aborted: VecDeque<(i64, i64)>,
    open: HashSet<i64>,
}

impl Transactions {
    /// Those that a broker says were aborted in what it sent.
    pub(crate) fn new(aborted: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let mut aborted: Vec<(i64, i64)> = aborted.into_iter().collect();
        aborted.sort_by_key(|(_, first_offset)| *first_offset);
        Self { aborted: aborted.into(), open: HashSet::new() }
    }

    /// Whether the records of a batch are to be read. To be asked of every batch, in their order.
    ///
    /// # Errors
    /// What is wrong with a marker.
    pub(crate) fn reads(&mut self, batch: &Batch) -> Result<bool, String> {
        while let Some((producer, first_offset)) = self.aborted.front().copied() {
            if first_offset > batch.last_offset {
                break;
            }
            self.open.insert(producer);
            self.aborted.pop_front();
        }
        if batch.is_control {
            // The key of a marker is a version and its kind, of which 0 says that the transaction was aborted.
            let marks_abort = |record: &Record| record.key.as_ref().is_some_and(|key| key.get(2..4) == Some(&[0, 0]));
            if batch.records()?.iter().any(marks_abort) {
                self.open.remove(&batch.producer);
            }
            return Ok(false);
        }
        Ok(!(batch.is_transactional && self.open.contains(&batch.producer)))
    }
}

fn unpack(packed: &Bytes, compression: Compression) -> std::io::Result<Bytes> {
    match compression {
        Compression::None => Ok(packed.clone()),
        Compression::Gzip => read(flate2::read::MultiGzDecoder::new(packed.as_ref())),
        Compression::Zstd => read(zstd::Decoder::with_buffer(packed.as_ref())?),
        Compression::Lz4 => read(lz4_flex::frame::FrameDecoder::new(packed.as_ref())),
        Compression::Snappy => unpack_snappy(packed),
    }
}

fn read(unpacked: impl Read) -> std::io::Result<Bytes> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(UNPACKED_BYTES_MAX).unwrap_or(u64::MAX);
    unpacked.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() > UNPACKED_BYTES_MAX { Err(too_long()) } else { Ok(bytes.into()) }
}

fn too_long() -> Error {
    Error::new(ErrorKind::InvalidData, format!("a batch is longer than {} MiB when unpacked", UNPACKED_BYTES_MAX >> 20))
}

/// Snappy as it is, or in the blocks of the Java library `snappy-java`, each behind its length.
fn unpack_snappy(packed: &[u8]) -> std::io::Result<Bytes> {
    let cut = || Error::new(ErrorKind::UnexpectedEof, "a Snappy stream ends in the middle");
    let mut unpacked = Vec::new();
    let mut block = |block: &[u8]| {
        let length = snap::raw::decompress_len(block).map_err(Error::other)?;
        if unpacked.len() + length > UNPACKED_BYTES_MAX {
            return Err(too_long());
        }
        unpacked.extend_from_slice(&snap::raw::Decoder::new().decompress_vec(block).map_err(Error::other)?);
        Ok(())
    };
    if packed.starts_with(SNAPPY_HEADER) {
        let mut rest = packed.get(SNAPPY_HEADER_BYTES..).ok_or_else(cut)?;
        while !rest.is_empty() {
            let (length, behind) = rest.split_at_checked(4).ok_or_else(cut)?;
            let length = usize::try_from(u32::from_be_bytes(field(length, 0))).unwrap_or(usize::MAX);
            let (packed, behind) = behind.split_at_checked(length).ok_or_else(cut)?;
            block(packed)?;
            rest = behind;
        }
    } else {
        block(packed)?;
    }
    Ok(unpacked.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snappy_is_read_as_it_is_and_in_blocks() {
        let packed = |text: &str| snap::raw::Encoder::new().compress_vec(text.as_bytes()).unwrap();
        assert_eq!(unpack_snappy(&packed("one and two")).unwrap(), "one and two");
        let mut blocks = [SNAPPY_HEADER, &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
        for block in ["one ", "and ", "two"].map(packed) {
            blocks.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
            blocks.extend(block);
        }
        assert_eq!(unpack_snappy(&blocks).unwrap(), "one and two");
        for cut in [3, SNAPPY_HEADER.len() + 2, blocks.len() - 1, blocks.len() - 8] {
            assert!(unpack_snappy(&blocks[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_length_that_lies_does_not_take_memory() {
        // A Snappy block that says it has 4 GiB.
        assert!(unpack_snappy(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0]).is_err());
        let mut short = Bytes::from(vec![0; HEADER_BYTES - 1]);
        assert!(Batch::take(&mut short).unwrap().is_none());
        let mut negative = vec![0; HEADER_BYTES];
        negative[8] = 0xff;
        negative[16] = MAGIC;
        assert!(Batch::take(&mut Bytes::from(negative)).is_err());
        let mut old = vec![0; HEADER_BYTES];
        old[16] = 1;
        assert!(Batch::take(&mut Bytes::from(old)).unwrap_err().contains("0.11"));
    }
}
