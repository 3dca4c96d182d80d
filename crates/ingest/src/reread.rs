//! Rows of the quarantine under today's contract.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::ArrayRef;

use crate::Result;
use crate::block::{Block, NOT_IN_ENCODING, NOT_UTF8, Rows, decode};
use crate::column::Column;
use crate::delimited::Layout;
use crate::error::IngestError;
use crate::parquet_rows::{check_columns, convert, layout_from_text, rows_from_text};
use crate::quarantine::{Form, QuarantinedRow};
use crate::refusal::Refusal;
use crate::spec::{FileFormat, SourceSpec};

const NOT_WHOLE: &str =
    "only a part of the row was kept, since it was too long or no valid text: deliver it again in a file";
const NO_HEADER: &str = "the header of its file was not kept by an older version: deliver it again in a file";
const LINE_ENDS: &str = "the record holds line ends, which need quoted_newlines = true in the source's contract";
/// The text of what older versions wrote may have been cut from here on: at 64 KiB, or up to three bytes before.
const OLD_TEXT_CUT: usize = (64 << 10) - 3;
/// What messages call the place of these rows; each has a place of its own.
const NAME: &str = "quarantine";

/// What today's contract makes of rows.
#[derive(Debug, Default)]
pub(crate) struct Reread {
    pub(crate) fits: Vec<Fits>,
    /// The others, with today's reason.
    pub(crate) refused: Vec<(usize, Refusal)>,
}

/// Rows that fit, by their index in what was asked, with their values in the contract's order.
#[derive(Debug)]
pub(crate) struct Fits {
    pub(crate) rows: Vec<usize>,
    pub(crate) columns: Vec<ArrayRef>,
    /// The column of fields outside the contract; `None` when no row has any.
    pub(crate) unknown: Option<ArrayRef>,
}

/// Reads rows again from their original text. Each either fits or is refused.
pub(crate) fn reread(rows: &[QuarantinedRow], spec: &SourceSpec) -> Result<Reread> {
    // The text was decoded when it came.
    let spec = SourceSpec { encoding: None, ..spec.clone() };
    // An inbox has JSON for a source whose files are CSV.
    let lines = SourceSpec { quoted_newlines: false, ..spec.clone() };
    let mut reread = Reread::default();
    let mut groups: BTreeMap<(Form, Option<&str>), Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        match how_to_read(row, &spec) {
            Ok(how) => groups.entry(how).or_default().push(index),
            Err(reason) => reread.refused.push((index, Refusal::row(reason))),
        }
    }
    for ((form, layout), group) in groups {
        let texts: Vec<(usize, &str)> = group.iter().map(|index| (*index, rows[*index].original.as_str())).collect();
        match form {
            Form::Parquet => parquet(&texts, layout.unwrap_or_default(), &spec, &mut reread)?,
            Form::Ndjson => text(&texts, None, &lines, &mut reread)?,
            Form::Csv => {
                match layout.map_or_else(|| Ok(Layout::in_order(&spec)), |line| Layout::from_header(line, &spec)) {
                    Ok(layout) => text(&texts, Some(Arc::new(layout)), &spec, &mut reread)?,
                    Err(reason) => refuse_all(&texts, &reason, &mut reread),
                }
            }
        }
    }
    Ok(reread)
}

/// The form of a row and what tells its columns; or why it cannot be read again.
fn how_to_read<'a>(row: &'a QuarantinedRow, spec: &SourceSpec) -> Result<(Form, Option<&'a str>), &'static str> {
    if let Some(form) = row.form {
        return if row.is_whole == Some(true) { Ok((form, row.layout.as_deref())) } else { Err(NOT_WHOLE) };
    }
    let is_cut = row.original.len() >= OLD_TEXT_CUT;
    if is_cut || row.reason == NOT_UTF8 || row.reason == NOT_IN_ENCODING || spec.format == FileFormat::Parquet {
        return Err(NOT_WHOLE);
    }
    match spec.format {
        FileFormat::Csv if spec.header => Err(NO_HEADER),
        FileFormat::Csv => Ok((Form::Csv, None)),
        FileFormat::Ndjson | FileFormat::Parquet => Ok((Form::Ndjson, None)),
    }
}

fn refuse_all(texts: &[(usize, &str)], reason: &str, reread: &mut Reread) {
    reread.refused.extend(texts.iter().map(|(index, _)| (*index, Refusal::row(reason.to_owned()))));
}

fn parquet(texts: &[(usize, &str)], layout: &str, spec: &SourceSpec, reread: &mut Reread) -> Result<()> {
    let schema = layout_from_text(layout).ok_or_else(|| IngestError::internal("the layout of a row cannot be read"))?;
    if let Err(reason) = check_columns(&schema, spec) {
        refuse_all(texts, &reason, reread);
        return Ok(());
    }
    let batch = rows_from_text(&schema, texts.iter().map(|(_, text)| *text)).map_err(IngestError::internal)?;
    let rows = match convert(&batch, 1, NAME, spec, 0) {
        Ok(rows) => rows,
        // What does not fit inside a struct or list has no row of its own.
        Err(IngestError::Layout { message, .. }) if texts.len() == 1 => {
            refuse_all(texts, &message, reread);
            return Ok(());
        }
        Err(IngestError::Layout { .. }) => {
            return texts.iter().try_for_each(|text| parquet(std::slice::from_ref(text), layout, spec, reread));
        }
        Err(error) => return Err(error),
    };
    let refused = rows.refused.into_iter().map(|row| (row.line, row.refusal));
    assign(texts, rows.columns, rows.unknown.0, &rows.lines, refused, reread);
    Ok(())
}

fn text(texts: &[(usize, &str)], layout: Option<Arc<Layout>>, spec: &SourceSpec, reread: &mut Reread) -> Result<()> {
    // Where a record may span lines, a stray quote of one must not swallow the next: each is read alone.
    if spec.quoted_newlines && texts.len() > 1 {
        return texts.iter().try_for_each(|one| text(std::slice::from_ref(one), layout.clone(), spec, reread));
    }
    let (spanning, texts): (Vec<_>, Vec<_>) =
        texts.iter().copied().partition(|(_, text)| !spec.quoted_newlines && text.contains('\n'));
    refuse_all(&spanning, LINE_ENDS, reread);
    if texts.is_empty() {
        return Ok(());
    }
    let mut bytes = Vec::with_capacity(texts.iter().map(|(_, text)| text.len() + 1).sum());
    for (_, text) in &texts {
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(b'\n');
    }
    let records = u64::try_from(texts.len()).unwrap_or(u64::MAX);
    let block = Block { file: 0, first_line: 1, offset: 0, bytes, records, layout };
    let Rows { columns, lines, refused, unknown, .. } = match decode(&block, NAME, spec, 0) {
        Ok(rows) => rows,
        Err(IngestError::Truncated { .. }) => {
            refuse_all(&texts, "a quoted field does not end in this record", reread);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    // A line end outside quotes: it would become two rows.
    if lines.len() + refused.len() > texts.len() {
        refuse_all(&texts, "the text holds several records", reread);
        return Ok(());
    }
    let columns = columns.into_iter().map(Column::finish).collect::<Result<_, _>>().map_err(IngestError::internal)?;
    let (unknown, _) = unknown.finish(lines.len())?;
    let refused = refused.into_iter().map(|row| (row.line, row.refusal));
    assign(&texts, columns, unknown, &lines, refused, reread);
    Ok(())
}

/// Gives lines, from 1, back their rows. One that is neither is a line without text.
fn assign(
    texts: &[(usize, &str)],
    columns: Vec<ArrayRef>,
    unknown: Option<ArrayRef>,
    lines: &[i64],
    refused: impl Iterator<Item = (u64, Refusal)>,
    reread: &mut Reread,
) {
    let mut outcomes: Vec<Option<Option<Refusal>>> = vec![None; texts.len()];
    let at = |line: u64| usize::try_from(line).unwrap_or(0).saturating_sub(1).min(texts.len() - 1);
    for (line, refusal) in refused {
        outcomes[at(line)] = Some(Some(refusal));
    }
    let rows: Vec<usize> = lines.iter().map(|line| at(u64::try_from(*line).unwrap_or(0))).collect();
    for row in &rows {
        outcomes[*row] = Some(None);
    }
    for (outcome, (index, _)) in outcomes.into_iter().zip(texts) {
        match outcome {
            Some(None) => {}
            Some(Some(refusal)) => reread.refused.push((*index, refusal)),
            None => reread.refused.push((*index, Refusal::row("a line without text"))),
        }
    }
    if !rows.is_empty() {
        reread.fits.push(Fits { rows: rows.into_iter().map(|row| texts[row].0).collect(), columns, unknown });
    }
}
