//! The rows of the audit log and the hashes that bind them.

use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use chrono::{DateTime, Utc};
use holdfast_engine::EngineError;

use super::AuditEntry;
use crate::{AccessError, Result};

/// The secret of the hashes.
#[derive(Clone, Copy)]
pub struct AuditKey([u8; 32]);

impl AuditKey {
    /// From any secret of the lake's owner. Who verifies needs the same.
    pub fn derive(secret: &[u8]) -> Self {
        Self(blake3::derive_key("holdfast 2026-11 audit log", secret))
    }
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuditKey(hidden)")
    }
}

/// A row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) chain: String,
    pub(super) sequence: i64,
    pub(super) at_us: i64,
    pub(super) principal: String,
    pub(super) authentication: String,
    pub(super) protocol: String,
    pub(super) action: String,
    pub(super) query_hash: String,
    pub(super) tables: Vec<String>,
    pub(super) columns: Vec<String>,
    pub(super) policy_version: String,
    pub(super) run: i64,
    pub(super) rows: i64,
    pub(super) outcome: String,
    pub(super) duration_ms: i64,
    pub(super) lost: i64,
    pub(super) links: Vec<String>,
    pub(super) previous: String,
    pub(super) hash: String,
}

impl Row {
    pub(super) fn of(chain: &str, entry: &AuditEntry, at: DateTime<Utc>, lost: u64) -> Self {
        Self {
            chain: chain.to_owned(),
            sequence: 0,
            at_us: at.timestamp_micros(),
            principal: entry.principal.clone(),
            authentication: entry.authentication.to_owned(),
            protocol: entry.protocol.to_owned(),
            action: entry.action.clone(),
            query_hash: entry.query_hash.clone().unwrap_or_default(),
            tables: entry.touched.tables.iter().map(ToString::to_string).collect(),
            columns: entry.touched.columns.iter().cloned().collect(),
            policy_version: entry.policy_version.clone(),
            run: i64::try_from(entry.run).unwrap_or(i64::MAX),
            rows: i64::try_from(entry.rows).unwrap_or(i64::MAX),
            outcome: entry.outcome.to_owned(),
            duration_ms: i64::try_from(entry.duration.as_millis()).unwrap_or(i64::MAX),
            lost: i64::try_from(lost).unwrap_or(i64::MAX),
            links: Vec::new(),
            previous: String::new(),
            hash: String::new(),
        }
    }

    /// The row that begins a chain.
    pub(super) fn opening(chain: &str, at: DateTime<Utc>, links: Vec<String>) -> Self {
        let nobody = AuditEntry {
            principal: String::new(),
            authentication: "",
            protocol: "",
            action: "opened".to_owned(),
            query_hash: None,
            touched: super::Touched::default(),
            policy_version: String::new(),
            run: 0,
            rows: 0,
            outcome: "ok",
            duration: std::time::Duration::ZERO,
        };
        Self { links, ..Self::of(chain, &nobody, at, 0) }
    }

    /// At its place in the chain, behind the row with the hash `previous`.
    pub(super) fn sealed(self, key: &AuditKey, sequence: i64, previous: &str) -> Self {
        let row = Self { sequence, previous: previous.to_owned(), ..self };
        Self { hash: row.right_hash(key), ..row }
    }

    /// The hash that the row must have.
    pub(super) fn right_hash(&self, key: &AuditKey) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        // Lengths go before texts, so that no two rows are written the same way.
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for part in [
            &self.previous,
            &self.chain,
            &self.principal,
            &self.authentication,
            &self.protocol,
            &self.action,
            &self.query_hash,
            &self.policy_version,
            &self.outcome,
        ] {
            text(part);
        }
        for list in [&self.tables, &self.columns, &self.links] {
            text(&list.len().to_string());
            list.iter().for_each(|part| text(part));
        }
        for number in [self.sequence, self.at_us, self.run, self.rows, self.duration_ms, self.lost] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// How a later chain names it.
    pub(super) fn link(chain: &str, sequence: i64, hash: &str) -> String {
        format!("{chain}/{sequence}/{hash}")
    }
}

/// The rows in the columns of the table.
pub(super) fn batch_of(rows: &[Row], schema: &SchemaRef) -> Result<RecordBatch> {
    let text = |of: fn(&Row) -> &String| -> ArrayRef { Arc::new(StringArray::from_iter_values(rows.iter().map(of))) };
    let number = |of: fn(&Row) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(rows.iter().map(of))) };
    let list = |of: fn(&Row) -> &Vec<String>| -> ArrayRef {
        let mut builder = ListBuilder::new(StringBuilder::new());
        for row in rows {
            builder.append_value(of(row).iter().map(Some));
        }
        Arc::new(builder.finish())
    };
    let at = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.at_us)).with_timezone("UTC");
    let columns = [
        ("chain", text(|row| &row.chain)),
        ("sequence", number(|row| row.sequence)),
        ("at", Arc::new(at)),
        ("principal", text(|row| &row.principal)),
        ("authentication", text(|row| &row.authentication)),
        ("protocol", text(|row| &row.protocol)),
        ("action", text(|row| &row.action)),
        ("query_hash", text(|row| &row.query_hash)),
        ("tables", list(|row| &row.tables)),
        ("columns", list(|row| &row.columns)),
        ("policy_version", text(|row| &row.policy_version)),
        ("run", number(|row| row.run)),
        ("rows", number(|row| row.rows)),
        ("outcome", text(|row| &row.outcome)),
        ("duration_ms", number(|row| row.duration_ms)),
        ("lost", number(|row| row.lost)),
        ("links", list(|row| &row.links)),
        ("previous_hash", text(|row| &row.previous)),
        ("hash", text(|row| &row.hash)),
    ];
    let ordered = schema.fields().iter().map(|field| {
        let (_, column) = columns.iter().find(|(name, _)| name == field.name()).ok_or_else(|| {
            AccessError::AuditBroken(format!("the table has a column `{}` that is not one of its own", field.name()))
        })?;
        arrow::compute::cast(column, field.data_type()).map_err(failed)
    });
    let ordered = ordered.collect::<Result<Vec<_>>>()?;
    RecordBatch::try_new(Arc::clone(schema), ordered).map_err(failed)
}

/// The rows that columns of the table hold.
pub(super) fn rows_of(batch: &RecordBatch) -> Result<Vec<Row>> {
    let column = |name: &str| {
        let missing = || AccessError::AuditBroken(format!("the table has no column `{name}`"));
        batch.column_by_name(name).ok_or_else(missing)
    };
    let text = |name: &str| -> Result<StringArray> {
        let column = arrow::compute::cast(column(name)?, &arrow::datatypes::DataType::Utf8).map_err(failed)?;
        Ok(column.as_string::<i32>().clone())
    };
    let wrong_type = |name: &str| AccessError::AuditBroken(format!("column `{name}` has another type"));
    let number = |name: &str| -> Result<&Int64Array> {
        column(name)?.as_primitive_opt::<Int64Type>().ok_or_else(|| wrong_type(name))
    };
    let list = |name: &str| -> Result<Vec<Vec<String>>> {
        let lists = column(name)?.as_list_opt::<i32>().ok_or_else(|| wrong_type(name))?;
        let one = |row: usize| -> Result<Vec<String>> {
            if lists.is_null(row) {
                return Ok(Vec::new());
            }
            let items = arrow::compute::cast(&lists.value(row), &arrow::datatypes::DataType::Utf8).map_err(failed)?;
            Ok(items.as_string::<i32>().iter().map(|item| item.unwrap_or_default().to_owned()).collect())
        };
        (0..lists.len()).map(one).collect()
    };
    let at = column("at")?.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| wrong_type("at"))?;
    let (chain, principal, authentication) = (text("chain")?, text("principal")?, text("authentication")?);
    let (protocol, action, query_hash) = (text("protocol")?, text("action")?, text("query_hash")?);
    let (policy_version, outcome) = (text("policy_version")?, text("outcome")?);
    let (previous, hash) = (text("previous_hash")?, text("hash")?);
    let (tables, columns, links) = (list("tables")?, list("columns")?, list("links")?);
    let (sequence, run, rows) = (number("sequence")?, number("run")?, number("rows")?);
    let (duration_ms, lost) = (number("duration_ms")?, number("lost")?);
    Ok((0..batch.num_rows())
        .map(|row| Row {
            chain: chain.value(row).to_owned(),
            sequence: sequence.value(row),
            at_us: at.value(row),
            principal: principal.value(row).to_owned(),
            authentication: authentication.value(row).to_owned(),
            protocol: protocol.value(row).to_owned(),
            action: action.value(row).to_owned(),
            query_hash: query_hash.value(row).to_owned(),
            tables: tables[row].clone(),
            columns: columns[row].clone(),
            policy_version: policy_version.value(row).to_owned(),
            run: run.value(row),
            rows: rows.value(row),
            outcome: outcome.value(row).to_owned(),
            duration_ms: duration_ms.value(row),
            lost: lost.value(row),
            links: links[row].clone(),
            previous: previous.value(row).to_owned(),
            hash: hash.value(row).to_owned(),
        })
        .collect())
}

fn failed(error: ArrowError) -> AccessError {
    let source = Box::new(datafusion::error::DataFusionError::from(error));
    AccessError::Engine(EngineError::Execution { what: "the rows of the audit log".to_owned(), source })
}
