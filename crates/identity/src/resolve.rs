use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use holdfast_engine::{SessionSettings, TableRows, write_table};
use holdfast_graph::{Cause, Event, Member};
use holdfast_lake::{CommitOutcome, Lake, Position, Table};
use holdfast_types::Progress;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::customer::CustomerId;
use crate::decisions::newest_decision;
use crate::error::IdentityError;
use crate::evidence::{Arrivals, IdentitySource, collect_edges};
use crate::identifier::IdentifierTokens;
use crate::key;
use crate::known::{Known, Taken};
use crate::matching::{Outgrown, find_matches};
use crate::tables::{self, RESOLVE_APP, batch, moments};

/// The key of the note that says what an identity was resolved from.
const NOTE: &str = "holdfast.identity";

/// What a resolution did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolveReport {
    /// New pieces of evidence.
    pub edges_added: u64,
    /// New records of sources with identifiers that carry none: they are kept, and no customer's.
    pub records_without_identifier: u64,
    /// There are so many more different records to compare than when the model was learnt that it is worth learning another.
    pub outgrown: Option<Outgrown>,
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

    /// The beginning of the fingerprint of the key it was by.
    pub(crate) fn key_fingerprint(&self) -> Option<&str> {
        self.rules.rsplit_once('-').map(|(_, key)| key)
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
    /// The versions of the rows of `identity.customers` and `identity.identifiers`.
    rows: (Option<u64>, Option<u64>),
}

/// The versions of the rows of `identity.customers` and `identity.identifiers`, whoever wrote them.
async fn rows_written(lake: &Lake) -> Result<(Option<u64>, Option<u64>)> {
    let version = async |name| match lake.table(&name).await? {
        Some(table) => Ok::<_, IdentityError>(Some(table.data_version().await?)),
        None => Ok(None),
    };
    Ok((version(tables::customers()?.name).await?, version(tables::identifiers()?.name).await?))
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
    /// [`IdentityError::OtherKey`] before anything is done; [`IdentityError::Source`] when an identifier's expression does not fit its table; [`IdentityError::Concurrent`]; what engine and
    /// lake answer.
    pub async fn resolve(
        &mut self,
        lake: &Lake,
        settings: &SessionSettings,
        sources: &[IdentitySource],
        progress: &dyn Progress,
    ) -> Result<ResolveReport> {
        key::settle(lake, self.tokens.key_fingerprint()).await?;
        let mut report = ResolveReport::default();
        let edges_spec = tables::edges()?;
        for (done, source) in sources.iter().enumerate() {
            progress.advance("identity", done as u64, Some(sources.len() as u64), "sources");
            for arrivals in [Arrivals::Batches, Arrivals::Replays] {
                let found = collect_edges(lake, settings, &self.tokens, source, arrivals, &edges_spec).await?;
                report.edges_added += found.edges;
                report.records_without_identifier += found.without_identifier;
            }
        }
        let Some(edges) = lake.table(&edges_spec.name).await? else { return Ok(report) };
        let (model, outgrown) =
            find_matches((lake, settings), &self.tokens, sources, self.learns_anew, progress).await?;
        report.outgrown = outgrown;
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
        let rows = rows_written(lake).await?;
        let resident = self.resident.take().filter(|resident| {
            let is_last = Some(&resident.note) == note.as_ref() && resident.rows == rows;
            is_last && resident.known.taken.model == model
        });
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
        self.resident = Some(Resident { note, known, rows: rows_written(lake).await? });
        Ok(())
    }
}

/// Writes to the tables what is known and not there, and what happened to the history. It was worked out from what the step before had left.
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
        let rows = TableRows::Added(vec![rows]);
        settled(write_table(lake, &tables::history()?, rows, at(), nothing()).await?)?;
    }
    if let Some(rows) = known.customers_to_write()? {
        settled(write_table(lake, &tables::customers()?, rows, at(), nothing()).await?)?;
    }
    let rows = known.identifiers_to_write()?;
    let text = serde_json::to_value(note).map_err(|error| IdentityError::Damaged(error.to_string()))?;
    let notes = [(NOTE.to_owned(), text)].into_iter().collect();
    settled(write_table(lake, &tables::identifiers()?, rows, at(), notes).await?)?;
    known.is_written();
    count(known, events, report);
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

fn count(known: &Known, events: &[Event<CustomerId>], report: &mut ResolveReport) {
    report.customers = known.assignment.living() as u64;
    report.identifiers = known.written.identifiers.len() as u64;
    report.shared_identifiers = known.written.shared;
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
