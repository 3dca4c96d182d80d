use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use holdfast_engine::{SessionSettings, write_table};
use holdfast_graph::{Cause, Event, Member, Standing, UNDATED};
use holdfast_lake::{ChangeKind, CommitOutcome, Lake, Position, Table};
use holdfast_types::Progress;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::customer::CustomerId;
use crate::decisions::newest_decision;
use crate::error::IdentityError;
use crate::evidence::{Arrivals, IdentitySource, collect_edges};
use crate::identifier::IdentifierTokens;
use crate::known::{Known, Taken};
use crate::matching::find_matches;
use crate::tables::{self, RESOLVE_APP, batch, moments};

/// The key of the note that says what an identity was resolved from.
const NOTE: &str = "holdfast.identity";

/// Customers and identifiers are written in batches of this many rows.
const ROWS_PER_BATCH: usize = 64 * 1024;

/// What a resolution did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolveReport {
    /// New pieces of evidence.
    pub edges_added: u64,
    /// Whether anything was resolved.
    pub resolved: bool,
    /// Identifiers that are known now.
    pub identifiers: u64,
    /// Of these, those that join nobody: several people share them, or they are hubs or blocked.
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

/// What the identity tables were resolved from, in the commit of the last of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The version of `identity.edges`.
    edges: u64,
    /// The version of `identity.matches`.
    #[serde(default)]
    matches_version: Option<u64>,
    rules: String,
    #[serde(flatten)]
    pub(crate) taken: Taken,
}

impl Note {
    /// What the tables were resolved from last; `None` when that was by an older version, or never.
    pub(crate) async fn read(identifiers: Option<&Table>) -> Result<Option<Self>> {
        let Some(table) = identifiers else { return Ok(None) };
        let note = table.commit_note(NOTE, 20).await?;
        Ok(note.and_then(|note| serde_json::from_value(note).ok()))
    }

    /// Whether today's rules are those.
    pub(crate) fn is_by(&self, tokens: &IdentifierTokens) -> bool {
        self.rules == tokens.fingerprint()
    }
}

/// Resolves identity again and again: keeps the graph in memory from one time to the next, so that only what is new is read and worked out.
#[derive(Debug)]
pub struct Resolver {
    tokens: IdentifierTokens,
    resident: Option<Resident>,
    /// Whether the next resolution learns anew how records of one person differ.
    learns_anew: bool,
}

/// Identity as this resolver left it in the lake.
#[derive(Debug)]
struct Resident {
    note: Note,
    known: Known,
}

impl Resolver {
    /// A resolver by these rules. Knows nothing yet.
    pub fn new(tokens: IdentifierTokens) -> Self {
        Self { tokens, resident: None, learns_anew: false }
    }

    /// Has the next resolution learn anew how records of one person differ, from all that are there then. Everything is worked out anew, as after other rules.
    #[must_use]
    pub fn learning_anew(mut self) -> Self {
        self.learns_anew = true;
        self
    }

    /// Brings identity up to date with the raw tables and with what people have decided. Each batch of a source gives its evidence once; with nothing new nothing is committed. May be
    /// repeated after a failure at any point, or after it was dropped.
    ///
    /// # Errors
    /// [`IdentityError::Source`] when an identifier's expression does not fit its table; [`IdentityError::Concurrent`]; what engine and lake answer.
    pub async fn resolve(
        &mut self,
        lake: &Lake,
        settings: &SessionSettings,
        sources: &[IdentitySource],
        progress: &dyn Progress,
    ) -> Result<ResolveReport> {
        let mut report = ResolveReport::default();
        let edges_spec = tables::edges()?;
        for (done, source) in sources.iter().enumerate() {
            progress.advance("identity", done as u64, Some(sources.len() as u64), "sources");
            for arrivals in [Arrivals::Batches, Arrivals::Replays] {
                report.edges_added +=
                    collect_edges(lake, settings, &self.tokens, source, arrivals, &edges_spec).await?;
            }
        }
        let Some(edges) = lake.table(&edges_spec.name).await? else { return Ok(report) };
        let model = find_matches((lake, settings), &self.tokens, sources, self.learns_anew, progress).await?;
        self.learns_anew = false;
        self.resolve_customers(lake, settings, (&edges, model), &mut report).await?;
        Ok(report)
    }

    async fn resolve_customers(
        &mut self,
        lake: &Lake,
        settings: &SessionSettings,
        (edges, model): (&Table, i64),
        report: &mut ResolveReport,
    ) -> Result<()> {
        let identifiers = lake.table(&tables::identifiers()?.name).await?;
        let note = Note::read(identifiers.as_ref()).await?;
        let edges_version = edges.data_version().await?;
        let matches = match lake.table(&tables::matches()?.name).await? {
            Some(matches) if model > 0 => Some(matches.data_version().await?),
            _ => None,
        };
        if let (Some(table), Some(note)) = (&identifiers, &note)
            && note.edges == edges_version
            && (note.matches_version, note.taken.model) == (matches, model)
            && note.is_by(&self.tokens)
            && note.taken.decision == newest_decision(lake).await?
        {
            report.identifiers = table.row_count().unwrap_or(0);
            return Ok(());
        }
        report.resolved = true;
        let step_before = match &identifiers {
            Some(table) => table.position(RESOLVE_APP).await?.unwrap_or(0),
            None => 0,
        };
        // Taken out: what fails or is dropped on the way leaves nothing half done behind.
        let resident = self
            .resident
            .take()
            .filter(|resident| Some(&resident.note) == note.as_ref() && resident.known.taken.model == model);
        let (mut known, mut events) = match resident {
            Some(resident) => (resident.known, Vec::new()),
            None => {
                let taken = note.as_ref().map(|note| &note.taken);
                let (known, moved) = Known::load(lake, settings, &self.tokens, taken, model).await?;
                (known, moved.events)
            }
        };
        events.extend(known.advance(lake, settings).await?.events);
        let taken = known.taken.clone();
        let note =
            Note { edges: edges_version, matches_version: matches, rules: self.tokens.fingerprint().to_owned(), taken };
        write(lake, &mut known, &events, (&note, step_before), report).await?;
        self.resident = Some(Resident { note, known });
        Ok(())
    }
}

/// Writes what is known to the tables, and what happened to the history. It was worked out from what the step before had left.
async fn write(
    lake: &Lake,
    known: &mut Known,
    events: &[Event<CustomerId>],
    (note, step_before): (&Note, i64),
    report: &mut ResolveReport,
) -> Result<()> {
    let now = lake.clock().now().timestamp_micros();
    for event in events {
        if let Event::Merged { from: id, .. } | Event::Ended { id, .. } = *event {
            known.retired_at.insert(id, now);
        }
    }
    count(known, events, report)?;

    let history = position(lake, &tables::history()?.name).await?;
    let resolved = position(lake, &tables::identifiers()?.name).await?;
    if resolved != step_before {
        // Somebody else has resolved meanwhile.
        return Err(IdentityError::Concurrent);
    }
    // A step that died on the way has left its number in some of the tables: this one takes the next.
    let step = history.max(resolved).max(position(lake, &tables::customers()?.name).await?) + 1;
    let at = || Position { app_id: RESOLVE_APP.to_owned(), version: step };
    let nothing = serde_json::Map::new;

    // Identifiers come last and carry the note: until they are there, nothing has happened.
    let undone = (history > resolved).then_some(history);
    let rows = history_rows(known, events, undone, step, now)?;
    if rows.num_rows() > 0 {
        settled(write_table(lake, &tables::history()?, ChangeKind::Append, at(), &[rows], nothing()).await?)?;
    }
    let rows = customer_rows(known)?;
    settled(write_table(lake, &tables::customers()?, ChangeKind::ReplaceAll, at(), &rows, nothing()).await?)?;
    let rows = identifier_rows(known)?;
    let text = serde_json::to_value(note).map_err(|error| IdentityError::Damaged(error.to_string()))?;
    let notes = [(NOTE.to_owned(), text)].into_iter().collect();
    settled(write_table(lake, &tables::identifiers()?, ChangeKind::ReplaceAll, at(), &rows, notes).await?)?;
    tracing::info!(
        monotonic_counter.holdfast_identity_minted = report.minted,
        monotonic_counter.holdfast_identity_merged = report.merged,
        monotonic_counter.holdfast_identity_split = report.split,
        customers = report.customers,
        "identity resolved"
    );
    Ok(())
}

async fn position(lake: &Lake, table: &holdfast_types::TableName) -> Result<i64> {
    match lake.table(table).await? {
        Some(table) => Ok(table.position(RESOLVE_APP).await?.unwrap_or(0)),
        None => Ok(0),
    }
}

/// This step is this resolution's alone: that it is there already means that another one took it.
fn settled(outcome: CommitOutcome) -> Result<()> {
    match outcome {
        CommitOutcome::Applied { .. } => Ok(()),
        CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => Err(IdentityError::Concurrent),
    }
}

fn count(known: &Known, events: &[Event<CustomerId>], report: &mut ResolveReport) -> Result<()> {
    report.customers = known.assignment.customers().count() as u64;
    for (member, _) in known.assignment.members() {
        report.identifiers += 1;
        report.shared_identifiers += u64::from(known.graph.standing(member.node)? != Standing::Joins);
    }
    let mut split: HashSet<CustomerId> = HashSet::new();
    for event in events {
        match event {
            Event::Minted { .. } => report.minted += 1,
            Event::Split { from, .. } => {
                report.minted += 1;
                split.insert(*from);
            }
            Event::Moved { from, .. } => _ = split.insert(*from),
            Event::Merged { .. } => report.merged += 1,
            Event::Joined { .. } | Event::Left { .. } | Event::Ended { .. } | Event::Refounded { .. } => {}
        }
    }
    report.split = split.len() as u64;
    Ok(())
}

/// What became of a customer, for the history.
pub(crate) struct HistoryRow<'a> {
    pub(crate) kind: &'static str,
    pub(crate) id: CustomerId,
    pub(crate) other: Option<CustomerId>,
    pub(crate) cause: &'a Cause,
    /// The identifier that stands for it where the cause names none.
    pub(crate) first: Option<Member>,
    pub(crate) identifiers: usize,
}

impl<'a> HistoryRow<'a> {
    /// Identifiers that come and go change no id.
    pub(crate) fn of(event: &'a Event<CustomerId>) -> Option<Self> {
        let row = |kind, id, other, cause, members: &[Member]| {
            Some(Self { kind, id, other, cause, first: members.first().copied(), identifiers: members.len() })
        };
        match event {
            Event::Minted { id, founder, members, cause } => {
                Some(Self { first: Some(founder.member), ..row("minted", *id, None, cause, members)? })
            }
            Event::Split { id, from, founder, members, cause } => {
                Some(Self { first: Some(founder.member), ..row("split", *id, Some(*from), cause, members)? })
            }
            Event::Moved { id, from, members, cause } => row("moved", *id, Some(*from), cause, members),
            Event::Merged { id, from, members, cause } => row("merged", *id, Some(*from), cause, members),
            Event::Ended { id, cause } => row("ended", *id, None, cause, &[]),
            Event::Joined { .. } | Event::Left { .. } | Event::Refounded { .. } => None,
        }
    }
}

fn history_rows(
    known: &Known,
    events: &[Event<CustomerId>],
    undone: Option<i64>,
    step: i64,
    now: i64,
) -> Result<RecordBatch> {
    let rows: Vec<HistoryRow<'_>> = events.iter().filter_map(HistoryRow::of).collect();
    let reasons: Vec<_> = rows.iter().map(|row| known.reason(row.cause)).collect();
    let left = |index: usize| reasons[index].left.or(rows[index].first.map(|first| first.node));
    let identifier = |node: Option<u32>| node.map(|node| known.identifier(node));
    let lefts: Vec<_> = (0..rows.len()).map(|index| identifier(left(index))).collect();
    let rights: Vec<_> = reasons.iter().map(|reason| identifier(reason.right)).collect();
    let is_undone = undone.is_some();
    let count = rows.len() + usize::from(is_undone);
    // Where an earlier step never took effect, the first row says so.
    let texts = |values: &mut dyn Iterator<Item = Option<String>>| -> ArrayRef {
        let first = is_undone.then_some(None);
        Arc::new(first.into_iter().chain(values).collect::<StringArray>())
    };
    let type_of = |identifier: &Option<crate::Identifier>| identifier.as_ref().map(|i| i.identifier_type.clone());
    let token_of = |identifier: &Option<crate::Identifier>| identifier.as_ref().map(|i| i.token.clone());
    let kinds = is_undone.then_some("undone").into_iter().chain(rows.iter().map(|row| row.kind));
    let numbers = |values: &mut dyn Iterator<Item = Option<i64>>, first: Option<i64>| -> ArrayRef {
        let first = is_undone.then_some(first);
        Arc::new(first.into_iter().chain(values).collect::<Int64Array>())
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(std::iter::repeat_n(step, count))),
        Arc::new(StringArray::from_iter_values(kinds)),
        texts(&mut rows.iter().map(|row| Some(row.id.to_string()))),
        texts(&mut rows.iter().map(|row| row.other.map(|id| id.to_string()))),
        texts(&mut lefts.iter().map(type_of)),
        texts(&mut lefts.iter().map(token_of)),
        moments(std::iter::repeat_n(Some(now), count)),
        texts(&mut reasons.iter().map(|reason| Some(reason.kind.to_owned()))),
        texts(&mut rights.iter().map(type_of)),
        texts(&mut rights.iter().map(token_of)),
        texts(&mut reasons.iter().map(|reason| reason.source.map(str::to_owned))),
        numbers(&mut reasons.iter().map(|reason| reason.decision), None),
        numbers(&mut rows.iter().map(|row| i64::try_from(row.identifiers).ok()), undone),
    ];
    batch(&tables::history()?, columns)
}

fn customer_rows(known: &mut Known) -> Result<Vec<RecordBatch>> {
    struct Row {
        id: CustomerId,
        founder: Member,
        first_seen: Option<i64>,
        resolves_to: Option<CustomerId>,
        retired_at: Option<i64>,
    }
    let mut rows: Vec<Row> = Vec::new();
    for (id, founder) in known.assignment.customers() {
        let first_seen = (founder.first_seen != UNDATED.0).then_some(founder.first_seen);
        rows.push(Row { id, founder: founder.member, first_seen, resolves_to: Some(id), retired_at: None });
    }
    let retired: Vec<(CustomerId, Member)> = known.assignment.retired().map(|(id, r)| (id, r.founder)).collect();
    for (id, founder) in retired {
        let (first_seen, _, _) = known.seen(founder.node)?;
        let resolves_to = known.assignment.resolve(id);
        rows.push(Row { id, founder, first_seen, resolves_to, retired_at: known.retired_at.get(&id).copied() });
    }
    rows.sort_unstable_by_key(|row| row.id);
    let spec = tables::customers()?;
    rows.chunks(ROWS_PER_BATCH)
        .map(|rows| {
            let founders: Vec<_> = rows.iter().map(|row| known.identifier(row.founder.node)).collect();
            let living = |row: &Row| row.resolves_to.map(|id| id.to_string());
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.id.to_string()))),
                Arc::new(StringArray::from_iter_values(founders.iter().map(|founder| &founder.identifier_type))),
                Arc::new(StringArray::from_iter_values(founders.iter().map(|founder| &founder.token))),
                moments(rows.iter().map(|row| row.first_seen)),
                Arc::new(
                    rows.iter()
                        .map(|row| living(row).filter(|_| row.resolves_to != Some(row.id)))
                        .collect::<StringArray>(),
                ),
                Arc::new(rows.iter().map(living).collect::<StringArray>()),
                moments(rows.iter().map(|row| row.retired_at)),
            ];
            batch(&spec, columns)
        })
        .collect()
}

fn identifier_rows(known: &Known) -> Result<Vec<RecordBatch>> {
    let mut members: Vec<(CustomerId, Option<u128>, u32)> =
        known.assignment.members().map(|(member, id)| (id, known.graph.token(member.node), member.node)).collect();
    members.sort_unstable();
    let spec = tables::identifiers()?;
    members
        .chunks(ROWS_PER_BATCH)
        .map(|rows| {
            let identifiers: Vec<_> = rows.iter().map(|&(_, _, node)| known.identifier(node)).collect();
            let standings: Vec<Standing> =
                rows.iter().map(|&(_, _, node)| known.graph.standing(node)).collect::<Result<_, _>>()?;
            let seen: Vec<_> = rows.iter().map(|&(_, _, node)| known.seen(node)).collect::<Result<_>>()?;
            let is_shared = standings.iter().map(|&standing| Some(standing != Standing::Joins));
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(identifiers.iter().map(|i| &i.identifier_type))),
                Arc::new(StringArray::from_iter_values(identifiers.iter().map(|i| &i.token))),
                Arc::new(StringArray::from_iter_values(rows.iter().map(|(id, _, _)| id.to_string()))),
                Arc::new(is_shared.collect::<BooleanArray>()),
                moments(seen.iter().map(|&(first, _, _)| first)),
                moments(seen.iter().map(|&(_, last, _)| last)),
                Arc::new(Int64Array::from_iter_values(seen.iter().map(|&(_, _, records)| records))),
                Arc::new(StringArray::from_iter_values(standings.iter().map(|&standing| standing_text(standing)))),
            ];
            batch(&spec, columns)
        })
        .collect()
}

/// As it is stored.
pub(crate) const fn standing_text(standing: Standing) -> &'static str {
    match standing {
        Standing::Joins => "joins",
        Standing::Blocked => "blocked",
        Standing::Hub => "hub",
        Standing::Shared => "shared",
    }
}
