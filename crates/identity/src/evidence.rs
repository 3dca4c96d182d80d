//! From records to evidence: which identifiers they carried together.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use holdfast_engine::{SessionSettings, TableRows, write_table};
use holdfast_lake::{CommitOutcome, Lake, Position, TableSpec};
use holdfast_types::TableName;

use crate::Result;
use crate::error::IdentityError;
use crate::identifier::IdentifierTokens;
use crate::tables::{self, batch, moments, query};

/// A source whose records carry identifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentitySource {
    /// The source's name.
    pub name: String,
    /// Its table in `raw`.
    pub table: TableName,
    /// The newest batch that is wholly in that table.
    pub newest_batch: i64,
    /// The newest replay of quarantined rows in that table.
    pub newest_replay: i64,
    /// The column that says when a record happened.
    pub event_time: Option<String>,
    /// Identifier types, and the SQL expression over the table's columns that gives each.
    pub identifiers: Vec<(String, String)>,
}

/// How rows come into a table in `raw`. Each way is counted for itself: a replayed row has the number of its old batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrivals {
    Batches,
    Replays,
}

impl Arrivals {
    fn app_id(self, source: &IdentitySource) -> String {
        match self {
            Self::Batches => format!("edges/{}", source.name),
            Self::Replays => format!("edges/{}/replays", source.name),
        }
    }

    pub(crate) fn newest(self, source: &IdentitySource) -> i64 {
        match self {
            Self::Batches => source.newest_batch,
            Self::Replays => source.newest_replay,
        }
    }

    /// The rows that came after `known`, up to `newest`. A table of an older version has no replays.
    fn rows_between(self, known: i64, newest: i64, has_replays: bool) -> String {
        match self {
            Self::Batches if has_replays => format!("_batch > {known} and _batch <= {newest} and _replay is null"),
            Self::Batches => format!("_batch > {known} and _batch <= {newest}"),
            Self::Replays => format!("_replay > {known} and _replay <= {newest}"),
        }
    }
}

/// What new rows brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Collected {
    /// Pieces of evidence.
    pub(crate) edges: u64,
    /// Records that carry nothing that could be anybody's: they are kept, and no customer's.
    pub(crate) without_identifier: u64,
}

/// Adds the evidence of the rows that were not looked at yet.
pub(crate) async fn collect_edges(
    lake: &Lake,
    settings: &SessionSettings,
    tokens: &IdentifierTokens,
    source: &IdentitySource,
    arrivals: Arrivals,
    spec: &TableSpec,
) -> Result<Collected> {
    let newest = arrivals.newest(source);
    if source.identifiers.is_empty() || newest == 0 {
        return Ok(Collected::default());
    }
    let app_id = arrivals.app_id(source);
    let known = match lake.table(&spec.name).await? {
        Some(edges) => edges.position(&app_id).await?.unwrap_or(0),
        None => 0,
    };
    if known >= newest {
        return Ok(Collected::default());
    }
    let raw = lake.table(&source.table).await?;
    let has_replays = raw.is_some_and(|raw| raw.schema().field_with_name("_replay").is_ok());
    let rows = arrivals.rows_between(known, newest, has_replays);
    let batches =
        query(lake, settings, &source.table, &evidence_sql(source, &rows)).await.map_err(|error| match error {
            IdentityError::Engine(holdfast_engine::EngineError::Query { message }) => {
                IdentityError::Source { name: source.name.clone(), reason: message }
            }
            other => other,
        })?;
    let (rows, without_identifier) = pairs(tokens, source, arrivals, &batches)?;
    let position = Position { app_id, version: newest };
    let count = rows.num_rows() as u64;
    match write_table(lake, spec, TableRows::Added(vec![rows]), position, serde_json::Map::new()).await? {
        CommitOutcome::Applied { .. } => Ok(Collected { edges: count, without_identifier }),
        CommitOutcome::AlreadyApplied { .. } => Ok(Collected::default()),
        CommitOutcome::Conflicted { .. } => Err(IdentityError::Concurrent),
    }
}

/// One row for each combination of identifiers that the new batches carry. Combinations are found before their values become
/// tokens: a device sends thousands of events, and is hashed once.
fn evidence_sql(source: &IdentitySource, rows: &str) -> String {
    let join = |part: &dyn Fn(usize, &(String, String)) -> String| -> String {
        let parts: Vec<String> =
            source.identifiers.iter().enumerate().map(|(index, identifier)| part(index, identifier)).collect();
        parts.join(", ")
    };
    let values = join(&|index, (_, value)| format!("{value} as v{index}"));
    let combination = join(&|index, _| format!("v{index}"));
    let tokens =
        join(&|index, (name, _)| format!("identifier_token('{}', v{index}) as i{index}", name.replace('\'', "''")));
    let at = match &source.event_time {
        Some(column) => format!("\"{}\"", column.replace('"', "\"\"")),
        None => "_ingested_at".to_owned(),
    };
    format!(
        "select {tokens}, records, first_seen_at, last_seen_at from (\
         select {combination}, count(*) as records, min(at) as first_seen_at, max(at) as last_seen_at \
         from (select {values}, {at} as at from {} where {rows}) as identified \
         group by {combination}) as combinations",
        source.table,
    )
}

/// Combinations as pairs: the strongest identifier of a record with each of its others. Also how many records have none.
fn pairs(
    tokens: &IdentifierTokens,
    source: &IdentitySource,
    arrivals: Arrivals,
    batches: &[RecordBatch],
) -> Result<(RecordBatch, u64)> {
    type Key = (u8, String, u8, String);
    let mut found: BTreeMap<Key, (i64, i64, i64)> = BTreeMap::new();
    let mut without_identifier = 0;
    let ranks: Vec<u8> = source
        .identifiers
        .iter()
        .map(|(name, _)| {
            tokens.rules().rank(name).ok_or_else(|| IdentityError::Source {
                name: source.name.clone(),
                reason: format!("`{name}` is no identifier type of the pipeline's identity rules"),
            })
        })
        .collect::<Result<_>>()?;
    for batch in batches {
        let count = ranks.len();
        let columns: Vec<&StringArray> = (0..count).map(|index| batch.column(index).as_string::<i32>()).collect();
        let records = batch.column(count).as_primitive::<Int64Type>();
        let first = batch.column(count + 1).as_primitive::<TimestampMicrosecondType>();
        let last = batch.column(count + 2).as_primitive::<TimestampMicrosecondType>();
        for row in 0..batch.num_rows() {
            let mut carried: Vec<(u8, &str)> = columns
                .iter()
                .zip(&ranks)
                .filter(|(column, _)| column.is_valid(row))
                .map(|(column, rank)| (*rank, column.value(row)))
                .collect();
            carried.sort_unstable();
            carried.dedup();
            let Some(&speaker) = carried.first() else {
                without_identifier += u64::try_from(records.value(row)).unwrap_or(0);
                continue;
            };
            let at = |column: &TimestampMicrosecondArray, missing: i64| {
                if column.is_valid(row) { column.value(row) } else { missing }
            };
            let (first, last) = (at(first, i64::MAX), at(last, i64::MIN));
            let others = if carried.len() == 1 { &carried[..] } else { &carried[1..] };
            for other in others {
                let key = (speaker.0, speaker.1.to_owned(), other.0, other.1.to_owned());
                let entry = found.entry(key).or_insert((i64::MAX, i64::MIN, 0));
                entry.0 = entry.0.min(first);
                entry.1 = entry.1.max(last);
                entry.2 += records.value(row);
            }
        }
    }
    let type_of = |rank: u8| tokens.rules().type_of(rank);
    let replay = (arrivals == Arrivals::Replays).then_some(source.newest_replay);
    let rows = found.len();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(source.name.as_str(), rows))),
        Arc::new(Int64Array::from_iter_values(std::iter::repeat_n(source.newest_batch, rows))),
        Arc::new(StringArray::from_iter_values(found.keys().map(|key| type_of(key.0)))),
        Arc::new(StringArray::from_iter_values(found.keys().map(|key| key.1.as_str()))),
        Arc::new(StringArray::from_iter_values(found.keys().map(|key| type_of(key.2)))),
        Arc::new(StringArray::from_iter_values(found.keys().map(|key| key.3.as_str()))),
        moments(found.values().map(|value| (value.0 != i64::MAX).then_some(value.0))),
        moments(found.values().map(|value| (value.1 != i64::MIN).then_some(value.1))),
        Arc::new(Int64Array::from_iter_values(found.values().map(|value| value.2))),
        Arc::new(std::iter::repeat_n(replay, rows).collect::<Int64Array>()),
    ];
    Ok((batch(&tables::edges()?, columns)?, without_identifier))
}
