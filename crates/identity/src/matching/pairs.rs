//! Records that have come since, compared with those that are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use holdfast_engine::{SessionSettings, TableRows, write_table};
use holdfast_lake::{CommitOutcome, Lake, Position};
use holdfast_linkage::{Edge, Records, Threads};
use holdfast_types::Progress;

use super::config::Matching;
use super::fit::{fit, refused};
use super::model::{Model, newest_model};
use super::roster::{Extent, Roster};
use super::words::{comparison, names_differ};
use crate::Result;
use crate::error::IdentityError;
use crate::evidence::{Arrivals, IdentitySource};
use crate::identifier::IdentifierTokens;
use crate::tables::{self, batch, moments};

/// The best pair of records of two speakers.
#[derive(Debug, Clone, PartialEq)]
struct Match {
    weight: f64,
    names_differ: bool,
    other_source: u32,
    words: String,
    first_seen: Option<i64>,
}

/// With so many times the records that a model was learnt from, another one is worth learning.
const OUTGROWN_TIMES: u64 = 4;

/// A model that was learnt from much fewer records than there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgrown {
    /// Different records it was learnt from.
    pub learnt_from: u64,
    /// Different records there are.
    pub records: u64,
}

/// Two identifiers, the stronger type and smaller token first.
type Speakers = ((u8, String), (u8, String));

/// Compares the records that were not compared yet with each other and with all others; learns a model first where there is none, or `refit` asks for another. Answers the number of the
/// model, 0 where nothing is compared, and whether records have outgrown it, where any were compared.
pub(crate) async fn find_matches(
    (lake, settings): (&Lake, &SessionSettings),
    tokens: &IdentifierTokens,
    sources: &[IdentitySource],
    refit: bool,
    progress: &dyn Progress,
) -> Result<(i64, Option<Outgrown>)> {
    let Some(matching) = tokens.rules().matching.clone() else { return Ok((0, None)) };
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    matching.check_sources(&names)?;
    let mut number = if refit { 0 } else { newest_model(lake, settings, tokens).await? };
    if number == 0 {
        progress.advance("identity", 0, None, "learning how records differ");
        number = match fit((lake, settings), tokens, &matching, sources).await? {
            Some(number) => number,
            // There may be one that was learnt before.
            None => newest_model(lake, settings, tokens).await?,
        };
    }
    if number == 0 {
        return Ok((0, None));
    }
    let (mut model, mut records) = (None, 0);
    for (at, source) in (0..).zip(sources).filter(|(_, source)| matching.sources.contains_key(&source.name)) {
        for arrivals in [Arrivals::Batches, Arrivals::Replays] {
            if taken(lake, number, source, arrivals).await? >= arrivals.newest(source) {
                continue;
            }
            let model = match &model {
                Some(model) => model,
                None => model.insert(Model::read(lake, settings, tokens, number).await?),
            };
            progress.advance("identity", u64::from(at), Some(sources.len() as u64), "comparing records");
            records = compare((lake, settings), tokens, &matching, sources, (at, arrivals), model).await?;
        }
    }
    let outgrown = model.map(|model| Outgrown { learnt_from: model.learnt_from, records });
    Ok((number, outgrown.filter(|found| found.records >= OUTGROWN_TIMES * found.learnt_from.max(1))))
}

fn app_id(model: i64, source: &IdentitySource, arrivals: Arrivals) -> String {
    match arrivals {
        Arrivals::Batches => format!("matches/{model}/{}", source.name),
        Arrivals::Replays => format!("matches/{model}/{}/replays", source.name),
    }
}

/// How far a source's records have been compared.
async fn taken(lake: &Lake, model: i64, source: &IdentitySource, arrivals: Arrivals) -> Result<i64> {
    match lake.table(&tables::matches()?.name).await? {
        Some(table) => Ok(table.position(&app_id(model, source, arrivals)).await?.unwrap_or(0)),
        None => Ok(0),
    }
}

/// Compares what came of one source; answers how many different records there are, of all sources.
async fn compare(
    (lake, settings): (&Lake, &SessionSettings),
    tokens: &IdentifierTokens,
    matching: &Matching,
    sources: &[IdentitySource],
    (at, arrivals): (u32, Arrivals),
    model: &Model,
) -> Result<u64> {
    let (mut new, mut old) = (Roster::new(matching), Roster::new(matching));
    let mut newest = None;
    for (number, source) in (0..).zip(sources) {
        let known = Extent {
            batch: taken(lake, model.number, source, Arrivals::Batches).await?,
            replay: taken(lake, model.number, source, Arrivals::Replays).await?,
        };
        let until = match arrivals {
            _ if number != at => known,
            Arrivals::Batches => Extent { batch: source.newest_batch, ..known },
            Arrivals::Replays => Extent { replay: source.newest_replay, ..known },
        };
        if number == at {
            newest = Some(source);
        }
        Roster::read((lake, settings), tokens, (number, source), (known, until), (&mut new, &mut old)).await?;
    }
    let Some(source) = newest else { return Ok(0) };
    let spec = matching.spec().map_err(refused)?;
    let mut found: BTreeMap<Speakers, Match> = BTreeMap::new();
    if new.len() > 0 {
        let records = new.records(&spec).map_err(refused)?;
        weigh(model, &records, &mut found, |edge| ((&new, edge.left), (&new, edge.right)))?;
    }
    if new.len() > 0 && old.len() > 0 {
        let records = new.records_with(&old, &spec).map_err(refused)?;
        let first = u32::try_from(new.len()).unwrap_or(u32::MAX);
        weigh(model, &records, &mut found, |edge| ((&new, edge.left), (&old, edge.right - first)))?;
    }
    tracing::debug!(new = new.len(), known = old.len(), pairs = found.len(), "compared records");
    let rows = rows(tokens, source, arrivals, sources, model.number, &found)?;
    let version = arrivals.newest(source);
    let position = Position { app_id: app_id(model.number, source, arrivals), version };
    let outcome =
        write_table(lake, &tables::matches()?, TableRows::Added(vec![rows]), position, serde_json::Map::new()).await?;
    match outcome {
        CommitOutcome::Applied { .. } | CommitOutcome::AlreadyApplied { .. } => Ok((new.len() + old.len()) as u64),
        CommitOutcome::Conflicted { .. } => Err(IdentityError::Concurrent),
    }
}

/// Keeps the best pair of records of every two speakers. A pair whose names differ counts only where no other does.
fn weigh<'a>(
    model: &Model,
    records: &Records,
    found: &mut BTreeMap<Speakers, Match>,
    ends: impl Fn(&Edge) -> ((&'a Roster, u32), (&'a Roster, u32)),
) -> Result<()> {
    let take = |edges: &[Edge]| {
        for edge in edges {
            let ((one, left), (two, right)) = ends(edge);
            let (left, right) = (left as usize, right as usize);
            let (a, b) = (&one.speakers[left], &two.speakers[right]);
            if a == b {
                continue;
            }
            let speakers = if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
            let match_ = Match {
                weight: edge.weight,
                names_differ: names_differ(model, edge),
                other_source: two.sources[right],
                words: comparison(&model.weights, edge),
                first_seen: one.first_seen[left].max(two.first_seen[right]),
            };
            let better = |known: &Match| {
                let rank = |one: &Match| (!one.names_differ, one.weight);
                let ((is_one, one), (is_two, two)) = (rank(&match_), rank(known));
                (is_one.cmp(&is_two)).then(one.total_cmp(&two)).then_with(|| known.words.cmp(&match_.words)).is_gt()
            };
            if found.get(&speakers).is_none_or(better) {
                found.insert(speakers, match_);
            }
        }
    };
    model.weights.score_as_learnt(records, &model.common, Threads::all(), take).map_err(refused)?;
    Ok(())
}

fn rows(
    tokens: &IdentifierTokens,
    source: &IdentitySource,
    arrivals: Arrivals,
    sources: &[IdentitySource],
    model: i64,
    found: &BTreeMap<Speakers, Match>,
) -> Result<RecordBatch> {
    let count = found.len();
    let replay = (arrivals == Arrivals::Replays).then_some(source.newest_replay);
    let type_of = |rank: u8| tokens.rules().type_of(rank);
    let name_of = |number: u32| sources.get(number as usize).map(|source| source.name.as_str());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(std::iter::repeat_n(model, count))),
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(source.name.as_str(), count))),
        Arc::new(Int64Array::from_iter_values(std::iter::repeat_n(source.newest_batch, count))),
        Arc::new(std::iter::repeat_n(replay, count).collect::<Int64Array>()),
        Arc::new(StringArray::from_iter_values(found.keys().map(|(left, _)| type_of(left.0)))),
        Arc::new(StringArray::from_iter_values(found.keys().map(|(left, _)| left.1.as_str()))),
        Arc::new(StringArray::from_iter_values(found.keys().map(|(_, right)| type_of(right.0)))),
        Arc::new(StringArray::from_iter_values(found.keys().map(|(_, right)| right.1.as_str()))),
        Arc::new(found.values().map(|one| name_of(one.other_source)).collect::<StringArray>()),
        Arc::new(Float64Array::from_iter_values(found.values().map(|one| one.weight))),
        Arc::new(found.values().map(|one| Some(one.names_differ)).collect::<BooleanArray>()),
        Arc::new(StringArray::from_iter_values(found.values().map(|one| one.words.as_str()))),
        moments(found.values().map(|one| one.first_seen)),
    ];
    batch(&tables::matches()?, columns)
}
