use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use holdfast_engine::{LakeReader, SessionSettings, plan_read_only, write_table};
use holdfast_lake::{ChangeKind, CommitOutcome, Lake, Position, Table, TableSpec};
use holdfast_types::{Progress, Promise, TableName};
use serde_json::json;

use crate::Result;
use crate::error::IdentityError;
use crate::graph::{Cluster, Edge, cluster};
use crate::identifier::IdentifierTokens;
use crate::tables;

/// The key of the note that says what an identity was resolved from.
const NOTE: &str = "holdfast.identity";

/// The position of the three resolved tables: they take one step together.
const RESOLVE_APP: &str = "identity/resolve";

/// Customers and identifiers are written in batches of this many rows.
const ROWS_PER_BATCH: usize = 64 * 1024;

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

/// What a resolution did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolveReport {
    /// New pieces of evidence.
    pub edges_added: u64,
    /// Whether customers were worked out anew.
    pub resolved: bool,
    /// Identifiers that are known now.
    pub identifiers: u64,
    /// Of these, those that several people share.
    pub shared_identifiers: u64,
    /// Customers that are in use now.
    pub customers: u64,
    /// Ids given for the first time.
    pub minted: u64,
    /// Ids that went up in an older one.
    pub merged: u64,
    /// Ids whose identifiers are no longer all together.
    pub split: u64,
}

/// Brings identity up to date with the raw tables. Each batch of a source gives its evidence once; with nothing new nothing is committed. May be repeated after a
/// failure at any point.
///
/// # Errors
/// [`IdentityError::Source`] when an identifier's expression does not fit its table; what engine and lake answer.
pub async fn resolve(
    lake: &Lake,
    settings: &SessionSettings,
    tokens: &IdentifierTokens,
    sources: &[IdentitySource],
    progress: &dyn Progress,
) -> Result<ResolveReport> {
    let mut report = ResolveReport::default();
    let edges_spec = tables::edges()?;
    for (done, source) in sources.iter().enumerate() {
        progress.advance("identity", done as u64, Some(sources.len() as u64), "sources");
        for arrivals in [Arrivals::Batches, Arrivals::Replays] {
            report.edges_added += collect_edges(lake, settings, tokens, source, arrivals, &edges_spec).await?;
        }
    }
    let Some(edges) = lake.table(&edges_spec.name).await? else { return Ok(report) };
    resolve_customers(lake, settings, tokens, &edges, &mut report).await?;
    Ok(report)
}

/// How rows come into a table in `raw`. Each way is counted for itself: a replayed row has the number of its old batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrivals {
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

    fn newest(self, source: &IdentitySource) -> i64 {
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

/// Adds the evidence of the rows that were not looked at yet.
async fn collect_edges(
    lake: &Lake,
    settings: &SessionSettings,
    tokens: &IdentifierTokens,
    source: &IdentitySource,
    arrivals: Arrivals,
    spec: &TableSpec,
) -> Result<u64> {
    let newest = arrivals.newest(source);
    if source.identifiers.is_empty() || newest == 0 {
        return Ok(0);
    }
    let app_id = arrivals.app_id(source);
    let known = match lake.table(&spec.name).await? {
        Some(edges) => edges.position(&app_id).await?.unwrap_or(0),
        None => 0,
    };
    if known >= newest {
        return Ok(0);
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
    let rows = pairs(tokens, source, &batches)?;
    let position = Position { app_id, version: newest };
    let count = rows.num_rows() as u64;
    match write_table(lake, spec, ChangeKind::Append, position, &[rows], serde_json::Map::new()).await? {
        CommitOutcome::Applied { .. } => Ok(count),
        CommitOutcome::AlreadyApplied { .. } => Ok(0),
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

/// Combinations as pairs: the strongest identifier of a record with each of its others.
fn pairs(tokens: &IdentifierTokens, source: &IdentitySource, batches: &[RecordBatch]) -> Result<RecordBatch> {
    type Key = (u8, String, u8, String);
    let mut found: BTreeMap<Key, (i64, i64, i64)> = BTreeMap::new();
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
            let Some(&speaker) = carried.first() else { continue };
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
    let type_of = |rank: u8| tokens.rules().priority.get(usize::from(rank)).map(String::as_str).unwrap_or_default();
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
    ];
    batch(&tables::edges()?, columns)
}

/// What is known of a customer id.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Customer {
    id: String,
    founding_type: String,
    founding_token: String,
    first_seen: i64,
    merged_into: Option<String>,
}

/// A change of a customer id, for the history.
struct Event {
    kind: &'static str,
    id: String,
    other: Option<String>,
    cause: (String, String),
}

async fn resolve_customers(
    lake: &Lake,
    settings: &SessionSettings,
    tokens: &IdentifierTokens,
    edges: &Table,
    report: &mut ResolveReport,
) -> Result<()> {
    let identifiers = lake.table(&tables::identifiers()?.name).await?;
    let note = json!({ "edges": edges.data_version().await?, "rules": tokens.fingerprint() });
    if let Some(current) = &identifiers {
        report.identifiers = current.row_count().unwrap_or(0);
        if current.commit_note(NOTE, 20).await?.as_ref() == Some(&note) {
            return Ok(());
        }
    }
    report.resolved = true;
    let clusters = cluster(tokens.rules(), &read_edges(lake, settings, tokens).await?);
    let before = read_assignment(lake, settings, identifiers.is_some()).await?;
    let mut customers = read_customers(lake, settings).await?;
    let (ids, events) = assign(tokens, &clusters, &before, &mut customers, report)?;

    let step = match &identifiers {
        Some(table) => table.position(RESOLVE_APP).await?.unwrap_or(0) + 1,
        None => 1,
    };
    report.customers = ids.iter().collect::<BTreeSet<_>>().len() as u64;
    report.identifiers = clusters.iter().map(|cluster| cluster.members.len() as u64).sum();
    report.shared_identifiers =
        clusters.iter().flat_map(|c| &c.members).filter(|member| member.is_shared).count() as u64;

    // Identifiers come last and carry the note: until they are there, the step is done again.
    let position = || Position { app_id: RESOLVE_APP.to_owned(), version: step };
    let nothing = serde_json::Map::new;
    if !events.is_empty() {
        let rows = history_rows(&events, step, lake.clock().now().timestamp_micros())?;
        settled(write_table(lake, &tables::history()?, ChangeKind::Append, position(), &[rows], nothing()).await?)?;
    }
    let rows = customer_rows(&customers)?;
    settled(write_table(lake, &tables::customers()?, ChangeKind::ReplaceAll, position(), &rows, nothing()).await?)?;
    let rows = identifier_rows(tokens, &clusters, &ids)?;
    let notes = [(NOTE.to_owned(), note)].into_iter().collect();
    settled(write_table(lake, &tables::identifiers()?, ChangeKind::ReplaceAll, position(), &rows, notes).await?)?;
    tracing::info!(
        monotonic_counter.holdfast_identity_minted = report.minted,
        monotonic_counter.holdfast_identity_merged = report.merged,
        monotonic_counter.holdfast_identity_split = report.split,
        customers = report.customers,
        "identity resolved"
    );
    Ok(())
}

fn settled(outcome: CommitOutcome) -> Result<()> {
    match outcome {
        CommitOutcome::Applied { .. } | CommitOutcome::AlreadyApplied { .. } => Ok(()),
        CommitOutcome::Conflicted { .. } => Err(IdentityError::Concurrent),
    }
}

/// Gives every cluster an id: the oldest of those its identifiers had, if no other cluster has the better claim to it, else a new one.
fn assign(
    tokens: &IdentifierTokens,
    clusters: &[Cluster],
    before: &HashMap<String, String>,
    customers: &mut BTreeMap<String, Customer>,
    report: &mut ResolveReport,
) -> Result<(Vec<String>, Vec<Event>)> {
    let type_of = |rank: u8| tokens.rules().priority.get(usize::from(rank)).cloned().unwrap_or_default();
    // Who claims an id: the cluster with its founding identifier, else the one with most of its identifiers, else the first.
    let mut claims: BTreeMap<&str, Vec<(bool, usize, usize)>> = BTreeMap::new();
    for (index, cluster) in clusters.iter().enumerate() {
        let mut held: BTreeMap<&str, (bool, usize)> = BTreeMap::new();
        for member in &cluster.members {
            if let Some(id) = before.get(&member.token) {
                let entry = held.entry(id).or_default();
                entry.0 |= customers.get(id).is_some_and(|customer| customer.founding_token == member.token);
                entry.1 += 1;
            }
        }
        for (id, (founding, members)) in held {
            claims.entry(id).or_default().push((founding, members, index));
        }
    }
    let mut won: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for (id, claimants) in &claims {
        let best =
            claimants.iter().max_by_key(|(founding, members, index)| (*founding, *members, std::cmp::Reverse(*index)));
        if let Some((_, _, index)) = best {
            won.entry(*index).or_default().push(*id);
        }
        report.split += u64::from(claimants.len() > 1);
    }

    let mut events = Vec::new();
    let mut ids = Vec::with_capacity(clusters.len());
    for (index, cluster) in clusters.iter().enumerate() {
        let Some(founder) = cluster.members.first() else {
            return Err(IdentityError::Damaged("a cluster without identifiers".to_owned()));
        };
        let cause = (type_of(founder.rank), founder.token.clone());
        let age = |id: &&str| {
            customers.get(*id).map(|customer| {
                (customer.first_seen, tokens.rules().rank(&customer.founding_type), customer.founding_token.clone())
            })
        };
        let mut candidates = won.get(&index).cloned().unwrap_or_default();
        candidates.sort_by_key(age);
        let id = match candidates.split_first() {
            Some((oldest, younger)) => {
                let oldest = (*oldest).to_owned();
                for id in younger {
                    if let Some(customer) = customers.get_mut(*id) {
                        customer.merged_into = Some(oldest.clone());
                    }
                    report.merged += 1;
                    events.push(Event {
                        kind: "merged",
                        id: oldest.clone(),
                        other: Some((*id).to_owned()),
                        cause: cause.clone(),
                    });
                }
                oldest
            }
            None => {
                let id = mint(customers, &founder.token);
                let split_from = cluster.members.iter().find_map(|member| before.get(&member.token)).cloned();
                report.minted += 1;
                let kind = if split_from.is_some() { "split" } else { "minted" };
                events.push(Event { kind, id: id.clone(), other: split_from, cause: cause.clone() });
                customers.insert(
                    id.clone(),
                    Customer {
                        id: id.clone(),
                        founding_type: cause.0,
                        founding_token: cause.1,
                        first_seen: founder.first_seen,
                        merged_into: None,
                    },
                );
                id
            }
        };
        if let Some(customer) = customers.get_mut(&id) {
            // An id that went up in another and won a cluster of its own again is in use again.
            customer.merged_into = None;
            // Files may arrive in any order: the founding identifier's first record may turn out to be an earlier one.
            if let Some(founding) = cluster.members.iter().find(|member| member.token == customer.founding_token) {
                customer.first_seen = founding.first_seen;
            }
        }
        ids.push(id);
    }
    let distinct: HashSet<&String> = ids.iter().collect();
    Promise::Idn2.check(distinct.len() == ids.len(), || "two customers were about to get one id".to_owned())?;
    Ok((ids, events))
}

/// A new id, made from the founding identifier's token so that a repeated step gives the same. Never one that was given for another identifier.
fn mint(customers: &BTreeMap<String, Customer>, founding_token: &str) -> String {
    let mut attempt = 0_u32;
    loop {
        let hash = blake3::hash(format!("holdfast customer v1 {founding_token} {attempt}").as_bytes());
        let id = format!("c{}", &hash.to_hex()[..16]);
        match customers.get(&id) {
            None => return id,
            // Its earlier life may have ended in a merge; then the id stays with that.
            Some(customer) if customer.founding_token == founding_token && customer.merged_into.is_none() => return id,
            Some(_) => attempt += 1,
        }
    }
}

async fn query(lake: &Lake, settings: &SessionSettings, table: &TableName, sql: &str) -> Result<Vec<RecordBatch>> {
    let session = LakeReader::newest_of(lake, settings, std::slice::from_ref(table)).await?.session()?;
    let plan = plan_read_only(&session, sql).await?;
    let frame = session.execute_logical_plan(plan).await.map_err(failed)?;
    frame.collect().await.map_err(failed)
}

fn failed(source: datafusion::error::DataFusionError) -> IdentityError {
    IdentityError::Engine(holdfast_engine::EngineError::Execution {
        what: "resolving identity".to_owned(),
        source: Box::new(source),
    })
}

async fn read_edges(lake: &Lake, settings: &SessionSettings, tokens: &IdentifierTokens) -> Result<Vec<Edge>> {
    let sql = "select left_type, left_token, right_type, right_token, min(first_seen_at), max(last_seen_at), sum(records) \
               from identity.edges group by left_type, left_token, right_type, right_token";
    let mut edges = Vec::new();
    for batch in query(lake, settings, &tables::edges()?.name, sql).await? {
        let text = |index: usize| batch.column(index).as_string::<i32>();
        let first = batch.column(4).as_primitive::<TimestampMicrosecondType>();
        let last = batch.column(5).as_primitive::<TimestampMicrosecondType>();
        let records = batch.column(6).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            // Evidence of a type that the rules no longer know is kept, and rests.
            let (Some(left), Some(right)) =
                (tokens.rules().rank(text(0).value(row)), tokens.rules().rank(text(2).value(row)))
            else {
                continue;
            };
            edges.push(Edge {
                left: (left, text(1).value(row).to_owned()),
                right: (right, text(3).value(row).to_owned()),
                first_seen: if first.is_valid(row) { first.value(row) } else { i64::MAX },
                last_seen: if last.is_valid(row) { last.value(row) } else { i64::MIN },
                records: records.value(row),
            });
        }
    }
    Ok(edges)
}

async fn read_assignment(lake: &Lake, settings: &SessionSettings, exists: bool) -> Result<HashMap<String, String>> {
    if !exists {
        return Ok(HashMap::new());
    }
    let mut before = HashMap::new();
    for batch in
        query(lake, settings, &tables::identifiers()?.name, "select token, customer_id from identity.identifiers")
            .await?
    {
        let (tokens, ids) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
        before.extend(tokens.iter().zip(ids).filter_map(|(token, id)| Some((token?.to_owned(), id?.to_owned()))));
    }
    Ok(before)
}

async fn read_customers(lake: &Lake, settings: &SessionSettings) -> Result<BTreeMap<String, Customer>> {
    let mut customers = BTreeMap::new();
    if lake.table(&tables::customers()?.name).await?.is_none() {
        return Ok(customers);
    }
    let sql = "select customer_id, founding_type, founding_token, first_seen_at, merged_into from identity.customers";
    for batch in query(lake, settings, &tables::customers()?.name, sql).await? {
        let text = |index: usize| batch.column(index).as_string::<i32>();
        let first = batch.column(3).as_primitive::<TimestampMicrosecondType>();
        for row in 0..batch.num_rows() {
            let id = text(0).value(row).to_owned();
            customers.insert(
                id.clone(),
                Customer {
                    id,
                    founding_type: text(1).value(row).to_owned(),
                    founding_token: text(2).value(row).to_owned(),
                    first_seen: if first.is_valid(row) { first.value(row) } else { i64::MAX },
                    merged_into: text(4).is_valid(row).then(|| text(4).value(row).to_owned()),
                },
            );
        }
    }
    Ok(customers)
}

fn moments(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

fn batch(spec: &TableSpec, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(Arc::clone(&spec.schema), columns)
        .map_err(|error| IdentityError::Damaged(format!("{}: {error}", spec.name)))
}

fn history_rows(events: &[Event], step: i64, now_micros: i64) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(std::iter::repeat_n(step, events.len()))),
        Arc::new(StringArray::from_iter_values(events.iter().map(|event| event.kind))),
        Arc::new(StringArray::from_iter_values(events.iter().map(|event| event.id.as_str()))),
        Arc::new(events.iter().map(|event| event.other.as_deref()).collect::<StringArray>()),
        Arc::new(StringArray::from_iter_values(events.iter().map(|event| event.cause.0.as_str()))),
        Arc::new(StringArray::from_iter_values(events.iter().map(|event| event.cause.1.as_str()))),
        moments(events.iter().map(|_| Some(now_micros))),
    ];
    batch(&tables::history()?, columns)
}

fn customer_rows(customers: &BTreeMap<String, Customer>) -> Result<Vec<RecordBatch>> {
    let all: Vec<&Customer> = customers.values().collect();
    let spec = tables::customers()?;
    all.chunks(ROWS_PER_BATCH)
        .map(|rows| {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(rows.iter().map(|customer| customer.id.as_str()))),
                Arc::new(StringArray::from_iter_values(rows.iter().map(|customer| customer.founding_type.as_str()))),
                Arc::new(StringArray::from_iter_values(rows.iter().map(|customer| customer.founding_token.as_str()))),
                moments(rows.iter().map(|customer| (customer.first_seen != i64::MAX).then_some(customer.first_seen))),
                Arc::new(rows.iter().map(|customer| customer.merged_into.as_deref()).collect::<StringArray>()),
            ];
            batch(&spec, columns)
        })
        .collect()
}

fn identifier_rows(tokens: &IdentifierTokens, clusters: &[Cluster], ids: &[String]) -> Result<Vec<RecordBatch>> {
    let all: Vec<_> = clusters
        .iter()
        .zip(ids)
        .flat_map(|(cluster, id)| cluster.members.iter().map(move |member| (member, id.as_str())))
        .collect();
    let spec = tables::identifiers()?;
    let type_of = |rank: u8| tokens.rules().priority.get(usize::from(rank)).map(String::as_str).unwrap_or_default();
    all.chunks(ROWS_PER_BATCH)
        .map(|rows| {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(rows.iter().map(|(member, _)| type_of(member.rank)))),
                Arc::new(StringArray::from_iter_values(rows.iter().map(|(member, _)| member.token.as_str()))),
                Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, id)| *id))),
                Arc::new(rows.iter().map(|(member, _)| Some(member.is_shared)).collect::<BooleanArray>()),
                moments(rows.iter().map(|(member, _)| (member.first_seen != i64::MAX).then_some(member.first_seen))),
                moments(rows.iter().map(|(member, _)| (member.last_seen != i64::MIN).then_some(member.last_seen))),
                Arc::new(Int64Array::from_iter_values(rows.iter().map(|(member, _)| member.records))),
            ];
            batch(&spec, columns)
        })
        .collect()
}
