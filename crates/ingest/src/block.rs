use std::io::{BufRead, Read};
use std::sync::Arc;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use memchr::{memchr, memchr_iter, memchr2_iter, memrchr};
use tokio::sync::mpsc::Receiver;

use crate::column::{Column, TextRules};
use crate::delimited::Layout;
use crate::error::IngestError;
use crate::origin::Origin;
use crate::refusal::{Refusal, RefusedRow};
use crate::spec::{Compression, FileFormat, SourceSpec};
use crate::unknown::Unknown;
use crate::{Result, delimited, json};

const BYTE_ORDER_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];
/// The longest byte order mark or file signature.
const SIGNATURE_BYTES: usize = 4;
const GZIP_SIGNATURE: &[u8] = &[0x1F, 0x8B];
const ZSTD_SIGNATURE: &[u8] = &[0x28, 0xB5, 0x2F, 0xFD];
/// How much of a file's beginning is looked at for signs of another encoding.
const ENCODING_SAMPLE_BYTES: usize = 4_096;
/// Marks the refusals that point at the encoding of the file rather than at the row.
pub(crate) const NOT_UTF8: &str = "not valid UTF-8";

/// The same for a file whose contract names its encoding.
pub(crate) const NOT_IN_ENCODING: &str = "not valid in the encoding of the contract";

/// Whole records of one file.
#[derive(Debug)]
pub(crate) struct Block {
    /// Index of the file in its batch.
    pub(crate) file: usize,
    /// 1-based line of the first record.
    pub(crate) first_line: u64,
    /// Where the first record begins in the (uncompressed) file.
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    /// Blank ones included.
    pub(crate) records: u64,
    /// For CSV, where the columns are.
    pub(crate) layout: Option<Arc<Layout>>,
}

/// The bytes of one file as they come from the store, hashed on the way.
pub(crate) struct Chunks {
    receiver: Receiver<Result<Bytes>>,
    current: Bytes,
    hasher: blake3::Hasher,
    error: Option<IngestError>,
}

impl Chunks {
    pub(crate) fn new(receiver: Receiver<Result<Bytes>>) -> Self {
        Self { receiver, current: Bytes::new(), hasher: blake3::Hasher::new(), error: None }
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => break,
                Some(Ok(chunk)) => {
                    self.hasher.update(&chunk);
                    self.current = chunk;
                }
                Some(Err(error)) => {
                    self.error = Some(error);
                    return Err(std::io::Error::other("the store stopped"));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current = self.current.slice(amount..);
    }
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(out.len());
        out[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

enum Packed {
    Plain(Box<Chunks>),
    Gzip(Box<MultiGzDecoder<Chunks>>),
    Zstd(Box<zstd::Decoder<'static, Chunks>>),
}

impl Packed {
    fn new(compression: Compression, chunks: Chunks) -> std::io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(Box::new(chunks)),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(chunks))),
            Compression::Zstd => Self::Zstd(Box::new(zstd::Decoder::with_buffer(chunks)?)),
        })
    }

    fn chunks(&mut self) -> &mut Chunks {
        match self {
            Self::Plain(chunks) => chunks,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        }
    }

    /// Appends up to `wanted` bytes. Fewer mean the end.
    fn append(&mut self, wanted: usize, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
        buffer.reserve(wanted);
        match self {
            Self::Plain(chunks) => {
                let mut missing = wanted;
                while missing > 0 {
                    let available = chunks.fill_buf()?;
                    if available.is_empty() {
                        break;
                    }
                    let length = available.len().min(missing);
                    buffer.extend_from_slice(&available[..length]);
                    chunks.consume(length);
                    missing -= length;
                }
                Ok(wanted - missing)
            }
            Self::Gzip(decoder) => decoder.as_mut().take(u64::try_from(wanted).unwrap_or(u64::MAX)).read_to_end(buffer),
            Self::Zstd(decoder) => decoder.as_mut().take(u64::try_from(wanted).unwrap_or(u64::MAX)).read_to_end(buffer),
        }
    }
}

/// The text of a file, unpacked and in UTF-8.
struct Input {
    packed: Packed,
    decoder: Option<encoding_rs::Decoder>,
    /// Unpacked and not yet decoded.
    encoded: Vec<u8>,
    /// The decoder has had everything, and must not be asked again.
    decoded: bool,
}

impl Input {
    fn chunks(&mut self) -> &mut Chunks {
        self.packed.chunks()
    }

    /// Appends about `wanted` bytes. Fewer mean the end. What is no text in the file's encoding becomes U+FFFD.
    fn append(&mut self, wanted: usize, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
        let Some(decoder) = &mut self.decoder else { return self.packed.append(wanted, buffer) };
        let before = buffer.len();
        while !self.decoded && buffer.len() - before < wanted {
            let missing = wanted - (buffer.len() - before);
            self.encoded.clear();
            self.decoded = self.packed.append(missing, &mut self.encoded)? < missing;
            let mut text = String::with_capacity(
                decoder.max_utf8_buffer_length(self.encoded.len()).unwrap_or(self.encoded.len().saturating_mul(3)),
            );
            // The room is enough by the decoder's own account, so that all is taken.
            let (_, _, _) = decoder.decode_to_string(&self.encoded, &mut text, self.decoded);
            buffer.extend_from_slice(text.as_bytes());
        }
        Ok(buffer.len() - before)
    }
}

/// Cuts one file into blocks of whole records.
pub(crate) struct Splitter<'a> {
    pub(crate) spec: &'a SourceSpec,
    /// The file's name in messages.
    pub(crate) name: &'a str,
    /// Index of the file in its batch.
    pub(crate) file: usize,
    /// What the bytes must hash to, when that is known before.
    pub(crate) content_hash: Option<&'a str>,
    pub(crate) block_bytes: usize,
    pub(crate) record_bytes_max: usize,
}

/// What cutting a file into blocks told about it.
pub(crate) struct SplitFile {
    /// Blank ones included.
    pub(crate) records: u64,
    /// BLAKE3 of the file's bytes, in hexadecimal.
    pub(crate) content_hash: String,
}

impl Splitter<'_> {
    /// Gives every block to `emit`. `None` when that said false, which ends the work.
    pub(crate) fn split(
        &self,
        mut chunks: Chunks,
        size: u64,
        mut emit: impl FnMut(Block) -> bool,
    ) -> Result<Option<SplitFile>> {
        let compression = if size > 0 { self.spec.compression_of(self.name) } else { Compression::None };
        if compression == Compression::Gzip {
            self.check_gzip(&mut chunks)?;
        }
        let packed = Packed::new(compression, chunks).map_err(IngestError::internal)?;
        let decoder = self.spec.encoding.map(encoding_rs::Encoding::new_decoder);
        let mut input = Input { packed, decoder, encoded: Vec::new(), decoded: false };
        let mut buffer: Vec<u8> = Vec::new();
        let mut offset: u64 = 0;
        let mut line: u64 = 1;
        let mut records: u64 = 0;
        let mut wanted = self.block_bytes.max(SIGNATURE_BYTES);
        let mut begun = false;
        let mut layout: Option<Arc<Layout>> = None;
        loop {
            let missing = wanted.saturating_sub(buffer.len());
            let received = u64::try_from(buffer.len()).unwrap_or(0) + offset;
            let got = input.append(missing, &mut buffer).map_err(|error| self.io(&mut input, received, &error))?;
            let ended = got < missing;
            if !begun {
                begun = true;
                if self.spec.encoding.is_none() {
                    self.check_encoding(&buffer)?;
                }
                if buffer.starts_with(BYTE_ORDER_MARK) {
                    buffer.drain(..BYTE_ORDER_MARK.len());
                    offset += 3;
                }
            }
            if self.spec.format == FileFormat::Csv && layout.is_none() {
                match self.header(&buffer, ended)? {
                    Header::Found { layout: found, bytes, lines } => {
                        layout = Some(Arc::new(found));
                        buffer.drain(..bytes);
                        offset += u64::try_from(bytes).unwrap_or(0);
                        line += lines;
                    }
                    Header::None => break,
                    Header::NeedsMore => {
                        wanted = self.grow(wanted, offset)?;
                        continue;
                    }
                }
            }
            let end = if ended { buffer.len() } else { self.boundary(&buffer) };
            if end == 0 && !ended {
                wanted = self.grow(wanted, offset)?;
                continue;
            }
            wanted = self.block_bytes;
            let mut rest = Vec::with_capacity(self.block_bytes.max(buffer.len() - end));
            rest.extend_from_slice(&buffer[end..]);
            buffer.truncate(end);
            let bytes = std::mem::replace(&mut buffer, rest);
            let (count, lines) = self.count(&bytes);
            let length = u64::try_from(bytes.len()).unwrap_or(0);
            records += count;
            if !bytes.is_empty()
                && !emit(Block {
                    file: self.file,
                    first_line: line,
                    offset,
                    bytes,
                    records: count,
                    layout: layout.clone(),
                })
            {
                return Ok(None);
            }
            offset += length;
            line += lines;
            if ended {
                break;
            }
        }
        let content_hash = input.chunks().hasher.finalize().to_hex().to_string();
        if self.content_hash.is_some_and(|expected| expected != content_hash) {
            return Err(IngestError::ChangedWhileRead { file: self.name.to_owned() });
        }
        Ok(Some(SplitFile { records, content_hash }))
    }

    /// The decoder would take any other file for one that was cut off.
    fn check_gzip(&self, chunks: &mut Chunks) -> Result<()> {
        if let Err(error) = chunks.fill_buf() {
            return Err(chunks.error.take().unwrap_or_else(|| IngestError::internal(error)));
        }
        let length = chunks.current.len().min(GZIP_SIGNATURE.len());
        if chunks.current[..length] == GZIP_SIGNATURE[..length] {
            return Ok(());
        }
        Err(IngestError::Unreadable {
            file: self.name.to_owned(),
            message:
                "it is not gzip-compressed: set compression = \"none\" in the source's contract, or name it otherwise"
                    .to_owned(),
        })
    }

    fn io(&self, input: &mut Input, offset: u64, error: &std::io::Error) -> IngestError {
        if let Some(error) = input.chunks().error.take() {
            return error;
        }
        let file = self.name.to_owned();
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            let message = "the compressed stream ends in the middle (offset after decompression)".to_owned();
            return IngestError::Truncated { file, offset, message };
        }
        IngestError::Unreadable {
            file,
            message: format!("not a readable compressed file after byte {offset}: {error}"),
        }
    }

    fn check_encoding(&self, beginning: &[u8]) -> Result<()> {
        let error =
            |message: &str| Err(IngestError::Encoding { file: self.name.to_owned(), message: message.to_owned() });
        let convert = "the file is UTF-16: set encoding = \"utf-16le\" (or \"utf-16be\") in the source's contract, or convert it with iconv";
        if beginning.starts_with(&[0xFF, 0xFE]) || beginning.starts_with(&[0xFE, 0xFF]) {
            return error(convert);
        }
        let sample = &beginning[..beginning.len().min(ENCODING_SAMPLE_BYTES)];
        if sample.starts_with(GZIP_SIGNATURE) {
            return error(
                "the file is gzip-compressed: name it *.gz or set compression = \"gzip\" in the source's contract",
            );
        }
        if sample.starts_with(ZSTD_SIGNATURE) {
            return error(
                "the file is zstd-compressed: name it *.zst or set compression = \"zstd\" in the source's contract",
            );
        }
        if sample.starts_with(b"PAR1") {
            return error("the file is Parquet: set format = \"parquet\" in the source's contract");
        }
        let zeros = |parity: usize| sample.iter().skip(parity).step_by(2).filter(|byte| **byte == 0).count();
        if sample.len() >= 4 && (zeros(0) * 4 > sample.len() || zeros(1) * 4 > sample.len()) {
            return error(convert);
        }
        Ok(())
    }

    fn header(&self, buffer: &[u8], ended: bool) -> Result<Header> {
        let layout = |message: String| IngestError::Layout { file: self.name.to_owned(), message };
        if !self.spec.header {
            return Ok(Header::Found { layout: Layout::in_order(self.spec), bytes: 0, lines: 0 });
        }
        let mut start = 0;
        let mut lines = 0;
        loop {
            let end = memchr(b'\n', &buffer[start..]).map(|length| start + length);
            let line = match end {
                Some(end) => &buffer[start..end],
                None if ended => &buffer[start..],
                None => return Ok(Header::NeedsMore),
            };
            let next = end.map_or(buffer.len(), |end| end + 1);
            lines += 1;
            if !line.trim_ascii().is_empty() {
                let text = std::str::from_utf8(line).map_err(|_| IngestError::Encoding {
                    file: self.name.to_owned(),
                    message: not_utf8_remedy(line).to_owned(),
                })?;
                let text = text.strip_suffix('\r').unwrap_or(text);
                let found = Layout::from_header(text, self.spec).map_err(layout)?;
                return Ok(Header::Found { layout: found, bytes: next, lines });
            }
            if end.is_none() {
                return Ok(Header::None);
            }
            start = next;
        }
    }

    fn grow(&self, wanted: usize, offset: u64) -> Result<usize> {
        if wanted >= self.record_bytes_max {
            return Err(IngestError::Unreadable {
                file: self.name.to_owned(),
                message: format!(
                    "the record at byte {offset} is longer than {} MiB: is the file one record a line?",
                    self.record_bytes_max >> 20
                ),
            });
        }
        Ok((wanted * 2).min(self.record_bytes_max))
    }

    /// Where the last whole record of the buffer ends; 0 when none does.
    fn boundary(&self, buffer: &[u8]) -> usize {
        if !self.spec.quoted_newlines {
            return memrchr(b'\n', buffer).map_or(0, |newline| newline + 1);
        }
        record_ends(buffer).last().unwrap_or(0)
    }

    /// Records (blank ones included) and lines of a block.
    fn count(&self, bytes: &[u8]) -> (u64, u64) {
        let partial = u64::from(bytes.last().is_some_and(|byte| *byte != b'\n'));
        let lines = u64::try_from(memchr_iter(b'\n', bytes).count()).unwrap_or(0) + partial;
        if !self.spec.quoted_newlines {
            return (lines, lines);
        }
        let mut ends = 0;
        let mut last = 0;
        for end in record_ends(bytes) {
            ends += 1;
            last = end;
        }
        (ends + u64::from(last < bytes.len()), lines)
    }
}

enum Header {
    Found {
        layout: Layout,
        bytes: usize,
        lines: u64,
    },
    /// The file has no line with text in it.
    None,
    NeedsMore,
}

/// The ends of records whose quoted fields may hold line ends: a line end after an even number of quotes.
fn record_ends(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let mut quoted = false;
    memchr2_iter(b'"', b'\n', bytes).filter_map(move |at| {
        if bytes[at] == b'"' {
            quoted = !quoted;
            None
        } else {
            (!quoted).then_some(at + 1)
        }
    })
}

pub(crate) fn not_utf8_remedy(sample: &[u8]) -> &'static str {
    if looks_like_gb18030(sample) {
        "the text is not UTF-8 but looks like GB18030 (GBK): set encoding = \"gb18030\" in the source's contract"
    } else {
        "the text is not UTF-8: name its encoding in the source's contract, for example encoding = \"windows-1252\""
    }
}

/// Whether every byte above ASCII is part of a double-byte character as GB18030 has them.
fn looks_like_gb18030(text: &[u8]) -> bool {
    let mut bytes = text.iter();
    let mut pairs = 0;
    while let Some(first) = bytes.next() {
        if *first < 0x80 {
            continue;
        }
        match (first, bytes.next()) {
            (0x81..=0xFE, Some(0x40..=0x7E | 0x80..=0xFE)) => pairs += 1,
            // Cut off at the end of the sample.
            (0x81..=0xFE, None) => {}
            _ => return false,
        }
    }
    pairs > 0
}

/// The rows of one block.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) columns: Vec<Column>,
    /// The line of each row.
    pub(crate) lines: Vec<i64>,
    pub(crate) refused: Vec<RefusedRow>,
    /// Lines without text, neither read nor stored.
    pub(crate) blank: u64,
    pub(crate) unknown: Unknown,
}

/// Decodes the records of a block. A record is a row or refused, never both and never neither.
pub(crate) fn decode(block: &Block, name: &str, spec: &SourceSpec, original_bytes_max: usize) -> Result<Rows> {
    let rules = TextRules { zone: spec.zone, null_values: spec.null_values.clone() };
    let mut columns = spec
        .columns
        .iter()
        .map(|column| Column::new(&column.source_name, &column.data_type, column.epoch))
        .collect::<Result<Vec<_>, _>>()
        .map_err(IngestError::internal)?;
    let rows_max = usize::try_from(block.records).unwrap_or(0);
    columns.iter_mut().for_each(|column| column.reserve(rows_max));
    let mut lines = Vec::with_capacity(rows_max);
    let mut refused = Vec::new();
    let mut unknown = Unknown::of_feed(matches!(spec.origin, Origin::Feed(_)));
    let mut blank = 0;
    let mut line = block.first_line;
    // Almost always the whole block is valid; checked once, its records need not be.
    let valid = simdutf8::basic::from_utf8(&block.bytes).ok();

    let mut start = 0;
    let mut decode_record = |start: usize, end: usize, terminated: bool, line: u64| -> Result<()> {
        let mut end = end;
        if end > start && block.bytes[end - 1] == b'\r' {
            end -= 1;
        }
        let bytes = &block.bytes[start..end];
        if bytes.trim_ascii().is_empty() {
            blank += 1;
            return Ok(());
        }
        let row = lines.len();
        let text = match valid {
            // The mark of what could not be decoded; in UTF-8 it may stand in the text itself.
            Some(text) if spec.encoding.is_some() && text[start..end].contains('\u{FFFD}') => {
                Err(Refusal::row(NOT_IN_ENCODING))
            }
            Some(text) => Ok(&text[start..end]),
            None => std::str::from_utf8(bytes).map_err(|_| Refusal::row(NOT_UTF8)),
        };
        let read = text.and_then(|text| match &block.layout {
            Some(layout) => delimited::parse_record(text, layout, &mut columns, spec.delimiter, &rules, &mut unknown),
            None => json::parse_record(text, &mut columns, row, &rules, &mut unknown),
        });
        match read {
            Ok(()) => {
                unknown.end_row(row);
                lines.push(i64::try_from(line).unwrap_or(i64::MAX));
            }
            Err(refusal) => {
                unknown.drop_row();
                columns.iter_mut().for_each(|column| column.truncate(row));
                if !terminated {
                    return Err(IngestError::Truncated {
                        file: name.to_owned(),
                        offset: block.offset + u64::try_from(start).unwrap_or(0),
                        message: format!("line {line} has no line end and cannot be read ({})", refusal.reason),
                    });
                }
                refused.push(RefusedRow::new(line, refusal, bytes, original_bytes_max));
            }
        }
        Ok(())
    };
    if spec.quoted_newlines {
        for next in record_ends(&block.bytes) {
            decode_record(start, next - 1, true, line)?;
            line += u64::try_from(memchr_iter(b'\n', &block.bytes[start..next]).count()).unwrap_or(0);
            start = next;
        }
    } else {
        for newline in memchr_iter(b'\n', &block.bytes) {
            decode_record(start, newline, true, line)?;
            line += 1;
            start = newline + 1;
        }
    }
    if start < block.bytes.len() {
        decode_record(start, block.bytes.len(), false, line)?;
    }
    // A field that the record did not bring is null; CSV records bring all fields of the file, not of the contract.
    for column in &columns {
        if column.len() != lines.len() {
            return Err(IngestError::internal(format!("column {} has another length than its block", column.key)));
        }
    }
    Ok(Rows { columns, lines, refused, blank, unknown })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(format: &str, more: &str) -> SourceSpec {
        let text = format!(
            "kind = \"k\"\npath = \"*\"\nformat = \"{format}\"\n{more}\n[columns]\nid = \"string\"\nn = \"int32\"\n"
        );
        SourceSpec::parse("s.toml", &text).unwrap()
    }

    /// Splits with tiny blocks and decodes; gives (lines of rows, lines refused, blank, records).
    fn read(
        spec: &SourceSpec,
        name: &str,
        content: &[u8],
        block_bytes: usize,
    ) -> Result<(Vec<i64>, Vec<u64>, u64, u64)> {
        let (sender, receiver) = tokio::sync::mpsc::channel(content.len() + 1);
        for chunk in content.chunks(3) {
            sender.try_send(Ok(Bytes::copy_from_slice(chunk))).unwrap();
        }
        drop(sender);
        let hash = blake3::hash(content).to_hex();
        let splitter =
            Splitter { spec, name, file: 0, content_hash: Some(hash.as_str()), block_bytes, record_bytes_max: 1 << 20 };
        let mut blocks = Vec::new();
        let records = splitter.split(Chunks::new(receiver), content.len() as u64, |block| {
            blocks.push(block);
            true
        })?;
        let records = records.unwrap().records;
        let (mut lines, mut refused, mut blank) = (Vec::new(), Vec::new(), 0);
        for block in &blocks {
            let rows = decode(block, name, spec, 1024)?;
            lines.extend(rows.lines);
            refused.extend(rows.refused.iter().map(|row| row.line));
            blank += rows.blank;
        }
        Ok((lines, refused, blank, records))
    }

    #[test]
    fn blocks_of_any_size_give_the_same_lines() {
        let ndjson = b"\xEF\xBB\xBF{\"id\":\"a\",\"n\":1}\n\n{\"id\":\"b\",\"n\":\"x\"}\r\n{\"id\":\"c\"}\r\n  \n{\"id\":\"d\",\"n\":2}";
        let csv = b"\nn,id\n1,a\n\nx,b\n2,\"c,\"\n3\n4,d";
        for block_bytes in [1, 7, 20, 1 << 16] {
            let json = read(&spec("ndjson", ""), "a.ndjson", ndjson, block_bytes).unwrap();
            assert_eq!(json, (vec![1, 4, 6], vec![3], 2, 6), "{block_bytes}");
            let csv = read(&spec("csv", ""), "a.csv", csv, block_bytes).unwrap();
            assert_eq!(csv, (vec![3, 6, 8], vec![5, 7], 1, 6), "{block_bytes}");
        }
    }

    #[test]
    fn quoted_line_ends_belong_to_their_record() {
        let csv = b"id,n\n\"a\nb\",1\n\"c\"\"\n\",x\nd,2\n";
        for block_bytes in [1, 9, 1 << 16] {
            let rows = read(&spec("csv", "quoted_newlines = true"), "a.csv", csv, block_bytes).unwrap();
            assert_eq!(rows, (vec![2, 6], vec![4], 0, 3), "{block_bytes}");
        }
    }

    #[test]
    fn a_file_that_ends_in_the_middle_is_an_error_with_its_offset() {
        let error = read(&spec("ndjson", ""), "a.ndjson", b"{\"id\":\"a\"}\n{\"id\":\"b", 8).unwrap_err();
        assert!(matches!(&error, IngestError::Truncated { offset: 11, .. }), "{error}");
        let error = read(&spec("csv", ""), "a.csv", b"id,n\na,1\nb", 1 << 16).unwrap_err();
        assert!(matches!(&error, IngestError::Truncated { offset: 9, .. }), "{error}");
        assert_eq!(read(&spec("csv", ""), "a.csv", b"", 8).unwrap(), (vec![], vec![], 0, 0));
        assert_eq!(read(&spec("csv", ""), "a.csv.gz", b"", 8).unwrap(), (vec![], vec![], 0, 0));
        assert_eq!(read(&spec("csv", ""), "a.csv", b"id,n", 8).unwrap(), (vec![], vec![], 0, 0));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, b"id,n\na,1\nb,2\n").unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(read(&spec("csv", ""), "a.csv.gz", &gzip, 4).unwrap().0, [2, 3]);
        let error = read(&spec("csv", ""), "a.csv.gz", &gzip[..gzip.len() - 9], 4).unwrap_err();
        assert!(matches!(&error, IngestError::Truncated { .. }), "{error}");
    }

    #[test]
    fn text_in_the_contracts_encoding_is_read_whatever_the_blocks() {
        let text = "id,n\n李雷,1\n韩梅梅,2\nZoë,3\n";
        let (gb18030, _, _) = encoding_rs::GB18030.encode(text);
        let spec_of = |name: &str| spec("csv", &format!("encoding = \"{name}\""));
        let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for block_bytes in [1, 5, 64] {
            let found = read(&spec_of("gb18030"), "a.csv", &gb18030, block_bytes).unwrap();
            assert_eq!(found, (vec![2, 3, 4], vec![], 0, 3), "{block_bytes}");
            let found = read(&spec_of("utf-16le"), "a.csv", &utf16, block_bytes).unwrap();
            assert_eq!(found, (vec![2, 3, 4], vec![], 0, 3), "{block_bytes}");
            // The end of the file, decoded, is longer than what was asked for.
            let long = format!("id,n\n{}\n", "汉字".repeat(20) + ",1");
            let (packed, _, _) = encoding_rs::GB18030.encode(&long);
            let found = read(&spec_of("gb18030"), "a.csv", &packed, packed.len() + 1).unwrap();
            assert_eq!(found, (vec![2], vec![], 0, 1));
            let broken = [b"id,n\n".as_slice(), b"\xD0\xD5\xFF,1\nb,2\n"].concat();
            let found = read(&spec_of("gbk"), "a.csv", &broken, block_bytes).unwrap();
            assert_eq!((found.0, found.1), (vec![3], vec![2]), "{block_bytes}");
        }
        let error = SourceSpec::parse(
            "s.toml",
            "kind = \"k\"\npath = \"*\"\nformat = \"csv\"\nencoding = \"gb1803\"\n[columns]\nid = \"string\"\n",
        );
        assert!(error.unwrap_err().to_string().contains("gb18030"));
    }

    #[test]
    fn a_store_that_fails_is_not_the_files_fault() {
        for name in ["a.csv", "a.csv.gz", "a.csv.zst"] {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let source = object_store::Error::Generic { store: "test", source: "timed out".into() };
            sender.try_send(Err(IngestError::Store { what: "cannot read".to_owned(), source })).unwrap();
            drop(sender);
            let spec = spec("csv", "");
            let splitter =
                Splitter { spec: &spec, name, file: 0, content_hash: None, block_bytes: 64, record_bytes_max: 1 << 20 };
            let error = splitter.split(Chunks::new(receiver), 100, |_| true).err().unwrap();
            assert!(error.file().is_none() && matches!(error, IngestError::Store { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn zstandard_is_unpacked_and_a_cut_frame_is_an_error() {
        let packed = zstd::encode_all(b"id,n\na,1\nb,2\n".as_slice(), 3).unwrap();
        assert_eq!(read(&spec("csv", ""), "a.csv.zst", &packed, 4).unwrap().0, [2, 3]);
        let named = spec("csv", "compression = \"zstd\"");
        assert_eq!(read(&named, "a.csv", &packed, 4).unwrap().0, [2, 3]);
        let error = read(&named, "a.csv", &packed[..packed.len() - 3], 4).unwrap_err();
        assert!(matches!(&error, IngestError::Truncated { .. }), "{error}");
        let error = read(&spec("csv", ""), "a.csv", &packed, 4).unwrap_err();
        assert!(error.to_string().contains("name it *.zst"), "{error}");
    }

    #[test]
    fn other_encodings_are_named() {
        let utf16: Vec<u8> = "id,n\na,1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let error = read(&spec("csv", ""), "a.csv", &utf16, 64).unwrap_err();
        assert!(error.to_string().contains("UTF-16"), "{error}");
        let error = read(&spec("csv", ""), "a.csv", b"id,n,\xD0\xD5\xC3\xFB\n", 64).unwrap_err();
        assert!(error.to_string().contains("GB18030"), "{error}");
        let (lines, refused, ..) = read(&spec("csv", ""), "a.csv", b"id,n\n\xD0\xD5,1\nb,2\n", 64).unwrap();
        assert_eq!((lines, refused), (vec![3], vec![2]));
    }

    #[test]
    fn a_header_that_does_not_fit_says_how_to_mend_it() {
        let error = |csv: &[u8]| read(&spec("csv", ""), "a.csv", csv, 64).unwrap_err().to_string();
        assert!(error(b"id;n\na;1\n").contains("delimiter = \";\""));
        assert!(error(b"Id,n\na,1\n").contains("from = \"Id\""));
        assert!(error(b"id,n,n\n").contains("twice"));
    }
}
