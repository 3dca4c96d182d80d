//! The files of one shard of customers: rows in order of time, with dirt in between.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::behaviour::write_event;
use crate::calendar::{SECOND_MS, month_number};
use crate::catalogue::{Listing, write_product};
use crate::crm;
use crate::dice::{Dice, Stream};
use crate::dirt;
use crate::error::SynthError;
use crate::people::push_token;
use crate::rows::{Chunk, Payment, Refund, Source, push_scrambled};
use crate::truth;
use crate::world::World;

/// Amounts in parquet: twelve digits, two of them behind the point.
const MONEY: DataType = DataType::Decimal128(12, 2);

#[derive(Debug, Default)]
pub(crate) struct WrittenFile {
    /// Rows in the file, the dirty ones included.
    pub(crate) rows: u64,
    pub(crate) dirty_rows: u64,
    pub(crate) bytes: u64,
    /// Lines of `truth/dirty.csv`.
    pub(crate) dirty_lines: Vec<u8>,
}

/// Which file, and with how much dirt.
#[derive(Debug)]
pub(crate) struct FilePlan<'a> {
    pub(crate) source: Source,
    pub(crate) month: i64,
    pub(crate) shard: u64,
    /// As it is called below the output folder.
    pub(crate) name: String,
    pub(crate) path: &'a Path,
    pub(crate) dirty_share: f64,
}

pub(crate) fn write_file(world: &World, chunks: &[Chunk], plan: &FilePlan<'_>) -> Result<WrittenFile, SynthError> {
    match plan.source {
        Source::Payments => write_parquet(plan, &payments(chunks, plan.month)),
        Source::Refunds => write_parquet(plan, &refunds(chunks, plan.month)),
        Source::Events => write_events(world, chunks, plan),
        Source::CrmContacts => write_contacts(world, chunks, plan),
        Source::Products => write_products(world, plan),
        _ => write_rows(world, chunks, plan),
    }
}

fn write_rows(world: &World, chunks: &[Chunk], plan: &FilePlan<'_>) -> Result<WrittenFile, SynthError> {
    let mut file = TextFile::create(world, plan)?;
    let month = month_slot(world, plan);
    let mut spans: Vec<_> = chunks
        .iter()
        .map(|chunk| chunk.rows(plan.source))
        .flat_map(|rows| rows.months[month].iter().map(move |span| (span, &rows.text)))
        .collect();
    // A stable sort: the lines of an order or a receipt share their time and stay together.
    spans.sort_by_key(|(span, _)| span.time_ms);
    for (span, text) in spans {
        file.row(&text[span.start as usize..][..span.length as usize])?;
    }
    file.finish()
}

fn write_events(world: &World, chunks: &[Chunk], plan: &FilePlan<'_>) -> Result<WrittenFile, SynthError> {
    let mut file = TextFile::create(world, plan)?;
    let month = month_slot(world, plan);
    let mut events: Vec<_> =
        chunks.iter().flat_map(|chunk| chunk.events[month].iter().map(move |event| (event, chunk))).collect();
    events.sort_by_key(|(event, _)| event.time_ms);
    let mut row = Vec::with_capacity(1_024);
    for (event, chunk) in events {
        let session = &chunk.sessions[event.session as usize];
        row.clear();
        write_event(&mut row, world, event, session, &chunk.people[session.person as usize]);
        file.row(&row)?;
    }
    file.finish()
}

fn write_contacts(world: &World, chunks: &[Chunk], plan: &FilePlan<'_>) -> Result<WrittenFile, SynthError> {
    let mut file = TextFile::create(world, plan)?;
    let moment = crm::export_moment(world, plan.month, plan.source.offset_ms());
    let mut standings: Vec<_> = chunks
        .iter()
        .flat_map(|chunk| chunk.contacts.iter().filter_map(move |contact| crm::standing(world, chunk, contact, moment)))
        .collect();
    standings.sort_by_key(|standing| standing.crm_number);
    let mut row = Vec::with_capacity(512);
    for standing in standings {
        row.clear();
        standing.write(&mut row, world);
        file.row(&row)?;
    }
    file.finish()
}

/// The list as it is at the end of the month: all of it, every time.
fn write_products(world: &World, plan: &FilePlan<'_>) -> Result<WrittenFile, SynthError> {
    let mut file = TextFile::create(world, plan)?;
    let exported_at = crm::export_moment(world, plan.month, plan.source.offset_ms()) - SECOND_MS;
    let mut row = Vec::with_capacity(256);
    for product in world.products.iter().filter(|product| product.listing != Listing::Unlisted) {
        row.clear();
        write_product(&mut row, product, exported_at);
        file.row(&row)?;
    }
    file.finish()
}

fn month_slot(world: &World, plan: &FilePlan<'_>) -> usize {
    let first = *world.window.months(plan.source.offset_ms()).start();
    usize::try_from(plan.month - first).unwrap_or(0)
}

/// A CSV or NDJSON file being written, which breaks a copy of a row now and then.
struct TextFile<'a> {
    plan: &'a FilePlan<'a>,
    out: BufWriter<File>,
    dice: Dice,
    dirty_chance: f64,
    line: u64,
    damaged: Vec<u8>,
    written: WrittenFile,
}

impl<'a> TextFile<'a> {
    fn create(world: &World, plan: &'a FilePlan<'a>) -> Result<Self, SynthError> {
        let file = File::create(plan.path).map_err(SynthError::io("create", plan.path))?;
        let index = plan.shard << 24 | (plan.source as u64) << 16 | plan.month.unsigned_abs() & 0xffff;
        let mut text = Self {
            plan,
            out: BufWriter::with_capacity(1 << 18, file),
            dice: Dice::new(world.seed, Stream::Dirt, index),
            // Dirty rows come on top of the good ones: this share of all rows is dirty in the end.
            dirty_chance: plan.dirty_share / (1.0 - plan.dirty_share),
            line: 0,
            damaged: Vec::with_capacity(1_024),
            written: WrittenFile::default(),
        };
        let header = plan.source.header();
        if !header.is_empty() {
            text.put(header.as_bytes())?;
        }
        Ok(text)
    }

    fn row(&mut self, row: &[u8]) -> Result<(), SynthError> {
        self.put(row)?;
        self.written.rows += 1;
        if self.dirty_chance > 0.0 && self.dice.chance(self.dirty_chance) {
            let mut damaged = std::mem::take(&mut self.damaged);
            damaged.clear();
            let defect = dirt::damage(&mut self.dice, self.plan.source, row, &mut damaged);
            self.put(&damaged)?;
            self.damaged = damaged;
            self.written.rows += 1;
            self.written.dirty_rows += 1;
            truth::push_dirty(&mut self.written.dirty_lines, &self.plan.name, self.line, defect);
        }
        Ok(())
    }

    fn put(&mut self, line: &[u8]) -> Result<(), SynthError> {
        let result = self.out.write_all(line).and_then(|()| self.out.write_all(b"\n"));
        result.map_err(SynthError::io("write", self.plan.path))?;
        self.line += 1;
        self.written.bytes += line.len() as u64 + 1;
        Ok(())
    }

    fn finish(mut self) -> Result<WrittenFile, SynthError> {
        self.out.flush().map_err(SynthError::io("write", self.plan.path))?;
        Ok(self.written)
    }
}

type Columns = Vec<(&'static str, ArrayRef)>;

fn payments(chunks: &[Chunk], month: i64) -> Columns {
    let mut rows: Vec<&Payment> = chunks.iter().flat_map(|chunk| &chunk.payments).collect();
    rows.retain(|row| month_number(row.paid_at) == month);
    rows.sort_by_key(|row| row.paid_at);
    vec![
        ("payment_id", numbered("PAY", rows.iter().map(|row| row.id))),
        ("order_id", strings(rows.iter().map(|row| row.order.text()))),
        ("paid_at", times(rows.iter().map(|row| Some(row.paid_at)))),
        ("method", strings(rows.iter().map(|row| row.method.to_owned()))),
        ("status", strings(rows.iter().map(|row| if row.captured { "captured" } else { "failed" }.to_owned()))),
        ("amount", money(rows.iter().map(|row| row.amount_cents))),
        ("currency", strings(rows.iter().map(|_| "CNY".to_owned()))),
        (
            "payer_token",
            strings(rows.iter().map(|row| {
                let mut token = Vec::with_capacity(28);
                push_token(&mut token, row.token);
                String::from_utf8_lossy(&token).into_owned()
            })),
        ),
    ]
}

fn refunds(chunks: &[Chunk], month: i64) -> Columns {
    let mut rows: Vec<&Refund> = chunks.iter().flat_map(|chunk| &chunk.refunds).collect();
    rows.retain(|row| month_number(row.requested_at) == month);
    rows.sort_by_key(|row| row.requested_at);
    vec![
        ("refund_id", numbered("RF", rows.iter().map(|row| row.id))),
        ("payment_id", numbered("PAY", rows.iter().map(|row| row.payment))),
        ("order_id", strings(rows.iter().map(|row| row.order.text()))),
        ("requested_at", times(rows.iter().map(|row| Some(row.requested_at)))),
        ("promised_at", times(rows.iter().map(|row| Some(row.promised_at)))),
        ("refunded_at", times(rows.iter().map(|row| row.refunded_at))),
        ("amount", money(rows.iter().map(|row| row.amount_cents))),
        ("currency", strings(rows.iter().map(|_| "CNY".to_owned()))),
        ("reason", strings(rows.iter().map(|row| row.reason.to_owned()))),
    ]
}

fn numbered(prefix: &str, numbers: impl Iterator<Item = u64>) -> ArrayRef {
    strings(numbers.map(|number| {
        let mut out = prefix.as_bytes().to_vec();
        push_scrambled(&mut out, number);
        String::from_utf8_lossy(&out).into_owned()
    }))
}

fn strings(values: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn times(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    let micros: TimestampMicrosecondArray = values.map(|time_ms| time_ms.map(|time_ms| time_ms * 1_000)).collect();
    Arc::new(micros.with_timezone("UTC"))
}

fn money(values: impl Iterator<Item = i64>) -> ArrayRef {
    let cents: Decimal128Array = values.map(|cents| Some(i128::from(cents))).collect();
    Arc::new(cents.with_data_type(MONEY))
}

fn write_parquet(plan: &FilePlan<'_>, columns: &Columns) -> Result<WrittenFile, SynthError> {
    let failed = |source| SynthError::Parquet { path: plan.path.to_owned(), source };
    let fields: Vec<Field> = columns
        .iter()
        // Only a refund that is not paid out yet leaves a field empty.
        .map(|(name, values)| Field::new(*name, values.data_type().clone(), *name == "refunded_at"))
        .collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.iter().map(|(_, values)| Arc::clone(values)).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(|error| failed(error.into()))?;

    let file = File::create(plan.path).map_err(SynthError::io("create", plan.path))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(file, schema, Some(properties)).map_err(failed)?;
    writer.write(&batch).map_err(failed)?;
    writer.close().map_err(failed)?;
    let bytes = std::fs::metadata(plan.path).map_err(SynthError::io("read", plan.path))?.len();
    Ok(WrittenFile { rows: batch.num_rows() as u64, bytes, ..WrittenFile::default() })
}
