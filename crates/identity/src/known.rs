//! Identity in memory: the graph of all evidence and decisions, and which customer each identifier is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type, Schema, TimestampMicrosecondType};
use holdfast_engine::SessionSettings;
use holdfast_graph::{
    Assignment, Cause, Change, Edge, Event, Founder, Guard, IdentityGraph, Link, Member, Retired, Touched, UNDATED,
};
use holdfast_lake::{Lake, Table, TableSpec};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::customer::CustomerId;
use crate::decisions::{Decision, DecisionKind, Identifier, decisions, in_force};
use crate::error::IdentityError;
use crate::identifier::IdentifierTokens;
use crate::matching::{Matching, guard_of};
use crate::tables::{self, query};
use crate::written::{CustomerRow, IdentifierRow, Unwritten, Written, standing_of};

/// Evidence whose records say when they happened goes before evidence whose records do not. Kept apart, because one without a date would make the other undated as well.
const DATED: u8 = 0;
const WITHOUT_DATE: u8 = 1;
/// Records that were found alike go last, the most alike first.
const ALIKE: u8 = 2;

/// In parts that are too large, the bar is raised by this many bits at a time.
pub(crate) const GUARD_STEP: f32 = 1.0;

/// How much of the evidence and the decisions has been taken in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    /// For each source the newest batch and the newest replay.
    pub(crate) sources: BTreeMap<String, (i64, i64)>,
    /// The newest decision.
    pub(crate) decision: i64,
    /// The model by which records were compared; 0: they were not.
    #[serde(default)]
    pub(crate) model: i64,
    /// For each source the newest batch and the newest replay whose records were found alike with others.
    #[serde(default)]
    pub(crate) matches: BTreeMap<String, (i64, i64)>,
}

/// Two identifiers whose records were found alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Alike {
    /// The logarithm to base 2 of the odds that they are one person's.
    pub(crate) weight: f64,
    /// For a person to decide, whatever the weight.
    pub(crate) names_differ: bool,
    /// When both records were there.
    at: Option<i64>,
    /// In words: a number of [`Known::words_of`].
    words: u32,
}

/// What is known.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) tokens: IdentifierTokens,
    pub(crate) graph: IdentityGraph,
    pub(crate) assignment: Assignment<CustomerId>,
    /// When ids went out of use, in microseconds since 1970; without those of older versions, which did not note it.
    pub(crate) retired_at: HashMap<CustomerId, i64>,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) taken: Taken,
    /// Every id that was ever given.
    ids: HashSet<CustomerId>,
    /// The names of sources, by the number that edges have.
    sources: Vec<String>,
    /// Identifiers whose records were found alike, the smaller node first.
    pub(crate) alike: BTreeMap<(u32, u32), Alike>,
    /// How records compare, each way once, with its number.
    words: (Vec<String>, HashMap<String, u32>),
    /// Types that the rules no longer know, of identifiers that are kept.
    resting: HashMap<u32, String>,
    /// The rows of the tables, and which may be others by now.
    pub(crate) written: Written,
    pub(crate) unwritten: Unwritten,
}

/// What a change did.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    pub(crate) events: Vec<Event<CustomerId>>,
}

/// What an event is due to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason<'a> {
    pub(crate) kind: &'static str,
    pub(crate) left: Option<u32>,
    pub(crate) right: Option<u32>,
    pub(crate) source: Option<&'a str>,
    pub(crate) decision: Option<i64>,
}

/// What a table tells of an id that is out of use.
#[derive(Debug, Clone, Copy)]
enum Told {
    /// The id in use that it answers to.
    LivingId(Option<CustomerId>),
    /// The id that took its place then, as older versions and unfinished steps have it.
    MergedInto(Option<CustomerId>),
}

/// A part of the evidence.
#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    All,
    Until(&'a Newest),
    After(&'a Newest),
}

/// For each source the newest batch and the newest replay.
type Newest = BTreeMap<String, (i64, i64)>;

impl Known {
    /// Identity as it was resolved last: the evidence and the decisions up to `taken`, under today's rules, and the customers of the tables. Without `taken`, all evidence and decisions.
    /// Records were compared by `model`; of another one than last time all that it found counts.
    /// Where other rules, or no resolution before, make other clusters, the customers are brought in line; what that changed is the second part of the answer.
    pub(crate) async fn load(
        lake: &Lake,
        settings: &SessionSettings,
        tokens: &IdentifierTokens,
        taken: Option<&Taken>,
        model: i64,
    ) -> Result<(Self, Moved)> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let matching = tokens.rules().matching.as_ref();
        let model = if matching.is_some() { model } else { 0 };
        let cap = guard_of(lake, settings, model).await?;
        let rules = tokens.rules().graph_rules()?;
        let rules = rules.with_weight_min(matching.map_or(0.0, Matching::link_weight))?;
        let rules = rules.with_guard(cap.map(|cap| Guard { cap, step: GUARD_STEP }))?;
        let graph = IdentityGraph::new(rules).with_threads(threads);
        let mut known = Self {
            tokens: tokens.clone(),
            graph,
            assignment: Assignment::default(),
            retired_at: HashMap::new(),
            decisions: Vec::new(),
            taken: Taken { model, ..Taken::default() },
            ids: HashSet::new(),
            sources: Vec::new(),
            alike: BTreeMap::new(),
            words: Default::default(),
            resting: HashMap::new(),
            written: Written::default(),
            unwritten: Unwritten::all(),
        };
        known.block_by_rule()?;
        let mut decided = decisions(lake, settings).await?;
        decided.retain(|decision| taken.is_none_or(|taken| decision.decision_id <= taken.decision));
        let changes = known.take_decisions(decided)?;
        known.graph.apply(&changes)?;
        let part = taken.map_or(Part::All, |taken| Part::Until(&taken.sources));
        let mut edges = known.read_edges(lake, settings, part).await?;
        let is_last = |taken: &&Taken| taken.model == model;
        let part = taken.filter(is_last).map_or(Part::All, |taken| Part::Until(&taken.matches));
        edges.extend(known.read_matches(lake, settings, part).await?);
        known.graph.build(edges)?;
        let labels = known.restore(lake, settings).await?;
        let touched = known.graph.since(labels);
        let moved = known.assign(&touched)?;
        let founders: HashSet<u32> = known.assignment.customers().map(|(_, founder)| founder.member.node).collect();
        known.note_earlier_records(founders)?;
        Ok((known, moved))
    }

    /// Takes in what came since: evidence and decisions. Works out again only what they touch.
    pub(crate) async fn advance(&mut self, lake: &Lake, settings: &SessionSettings) -> Result<Moved> {
        let taken = self.taken.clone();
        let mut decided = decisions(lake, settings).await?;
        decided.retain(|decision| decision.decision_id > taken.decision);
        let mut changes = self.take_decisions(decided)?;
        let mut edges = self.read_edges(lake, settings, Part::After(&taken.sources)).await?;
        let seen: HashSet<u32> = edges.iter().flat_map(|edge| [edge.left, edge.right]).collect();
        edges.extend(self.read_matches(lake, settings, Part::After(&taken.matches)).await?);
        changes.extend(edges.into_iter().map(Change::Add));
        let touched = self.graph.apply(&changes)?;
        let moved = self.assign(&touched)?;
        self.note_earlier_records(seen)?;
        Ok(moved)
    }

    /// What a decision would do, or does: takes it in.
    pub(crate) fn decide(&mut self, decision: Decision) -> Result<Moved> {
        let changes = self.take_decisions(vec![decision])?;
        let touched = self.graph.apply(&changes)?;
        self.assign(&touched)
    }

    /// The node of a token that is known.
    pub(crate) fn node_of(&self, token: &str) -> Result<Option<u32>> {
        Ok(self.graph.find(parse_token(token)?))
    }

    /// The customer of an identifier, in one of its lives.
    pub(crate) fn customer_of(&self, member: Member) -> Option<CustomerId> {
        self.assignment.customer_of(member)
    }

    /// The founding identifier of an id, in use or not.
    pub(crate) fn founder_of(&self, id: CustomerId) -> Option<Member> {
        let living = self.assignment.founder(id).map(|founder| founder.member);
        living.or_else(|| self.assignment.retired_id(id).map(|retired| retired.founder))
    }

    /// All lives of an identifier.
    pub(crate) fn lives_of(&self, node: u32) -> Result<impl Iterator<Item = Member> + use<>> {
        let newest = self.graph.newest_life(node)?.life;
        Ok((0..=newest).map(move |life| Member { node, life }))
    }

    /// The life of an identifier that a decision speaks of: the one it had when that was made.
    pub(crate) fn decided_about(&self, identifier: &Identifier, decision: &Decision) -> Result<Option<Member>> {
        let at = decision.decided_at.timestamp_micros();
        let Some(node) = self.node_of(&identifier.token)? else { return Ok(None) };
        Ok(self.graph.member_at(node, at, at)?)
    }

    /// The type and token of a node.
    pub(crate) fn identifier(&self, node: u32) -> Identifier {
        let rank = self.graph.rank(node).unwrap_or_else(|| self.tokens.rules().resting_rank());
        let identifier_type = match self.resting.get(&node) {
            Some(name) => name.clone(),
            None => self.tokens.rules().type_of(rank).to_owned(),
        };
        Identifier { identifier_type, token: format!("{:032x}", self.graph.token(node).unwrap_or_default()) }
    }

    /// The name of an edge's source.
    pub(crate) fn source(&self, number: u32) -> &str {
        self.sources.get(number as usize).map(String::as_str).unwrap_or_default()
    }

    /// First and last moment and number of records of an identifier's evidence, in one of its lives; in its first one when there is no such any more, as for ids out of use.
    pub(crate) fn seen(&self, member: Member) -> Result<(Option<i64>, Option<i64>, i64)> {
        let (mut first, mut last, mut records) = (None, None, 0);
        let node = member.node;
        let lives = self.graph.lives(node)?.len();
        let changed_hands = lives > 0;
        let member = if usize::from(member.life) < lives { member } else { Member { node, life: 0 } };
        // Records that carried it alone are one piece of evidence, which may reach beyond the owner's time.
        let (from, to) = self.graph.period(member)?;
        let within = |at: i64| at.max(from.unwrap_or(i64::MIN)).min(to.map_or(i64::MAX, |to| to - 1));
        for edge in self.graph.edges_of(node)?.filter(|edge| edge.weight.is_none()) {
            if changed_hands && self.graph.member_at(node, edge.first_seen, edge.last_seen)? != Some(member) {
                continue;
            }
            records += i64::from(edge.records);
            if (edge.first_seen, edge.last_seen) != UNDATED {
                let seen = within(edge.first_seen);
                first = Some(first.map_or(seen, |first: i64| first.min(seen)));
                last = last.max(Some(within(edge.last_seen)));
            }
        }
        Ok((first, last, records))
    }

    /// What an event is due to.
    pub(crate) fn reason(&self, cause: &Cause) -> Reason<'_> {
        let plain = |kind| Reason { kind, left: None, right: None, source: None, decision: None };
        // The stronger type speaks first, as it does for records.
        let pair = |kind, one: u32, two: u32| {
            let rank = |node| (self.graph.rank(node), self.graph.token(node));
            let (left, right) = if rank(one) <= rank(two) { (one, two) } else { (two, one) };
            Reason { left: Some(left), right: (left != right).then_some(right), ..plain(kind) }
        };
        let decided = |kind: DecisionKind, one: u32, two: Option<u32>| self.newest_about(kind, one, two);
        match *cause {
            Cause::Edge(edge) if edge.weight.is_some() => {
                Reason { source: Some(self.source(edge.source)), ..pair("match", edge.left, edge.right) }
            }
            Cause::Edge(edge) => {
                Reason { source: Some(self.source(edge.source)), ..pair("evidence", edge.left, edge.right) }
            }
            Cause::Removed(edge) => {
                Reason { source: Some(self.source(edge.source)), ..pair("evidence removed", edge.left, edge.right) }
            }
            Cause::Linked(link) => {
                Reason { decision: Some(i64::from(link.source)), ..pair("link", link.left, link.right) }
            }
            Cause::LinkWithdrawn(link) => Reason {
                decision: decided(DecisionKind::Withdraw, link.left, Some(link.right)),
                ..pair("link withdrawn", link.left, link.right)
            },
            Cause::Unlinked(left, right) => {
                Reason { decision: decided(DecisionKind::Unlink, left, Some(right)), ..pair("unlink", left, right) }
            }
            Cause::Allowed(left, right) => Reason {
                decision: decided(DecisionKind::Withdraw, left, Some(right)),
                ..pair("unlink withdrawn", left, right)
            },
            Cause::Blocked(node) => {
                Reason { decision: decided(DecisionKind::Block, node, None), ..pair("block", node, node) }
            }
            Cause::Unblocked(node) => {
                Reason { decision: decided(DecisionKind::Withdraw, node, None), ..pair("block withdrawn", node, node) }
            }
            Cause::Standing(node) => pair("standing", node, node),
            Cause::Rule(_) | Cause::Compared => plain("compared"),
        }
    }

    fn newest_about(&self, kind: DecisionKind, one: u32, two: Option<u32>) -> Option<i64> {
        let token = |node| format!("{:032x}", self.graph.token(node).unwrap_or_default());
        let (one, two) = (token(one), two.map(token));
        let is_it = |decision: &&Decision| {
            decision.kind == kind
                && match &two {
                    Some(two) => decision.is_about(&one, two),
                    None => decision.left.token == one && decision.right.is_none(),
                }
        };
        self.decisions.iter().rev().find(is_it).map(|decision| decision.decision_id)
    }

    /// Gives what a change touched to customers.
    fn assign(&mut self, touched: &Touched) -> Result<Moved> {
        self.note_unwritten(touched);
        let Self { assignment, ids, .. } = self;
        let events = assignment.assign(touched, |founder| {
            let mut attempt = 0;
            loop {
                let id = CustomerId::from_founder(founder.token, attempt);
                if ids.insert(id) {
                    return id;
                }
                attempt += 1;
            }
        })?;
        self.note_unwritten(touched);
        Ok(Moved { events })
    }

    /// Files may arrive in any order: the first record of an identifier may turn out to be an earlier one; of a founding one, that makes its customer older. The graph tells only of
    /// clusters whose members changed.
    fn note_earlier_records(&mut self, nodes: impl IntoIterator<Item = u32>) -> Result<()> {
        let mut members = Vec::new();
        for node in nodes {
            members.extend(self.lives_of(node)?);
        }
        for member in members {
            let Some(id) = self.customer_of(member) else { continue };
            let (first_seen, _, _) = self.seen(member)?;
            if self.written.identifiers.get(&member).is_none_or(|row| row.first_seen != first_seen) {
                self.unwritten.node(member.node);
                self.note_unwritten_customer_of(member);
            }
            let Some(founder) = self.assignment.founder(id).filter(|founder| founder.member == member) else {
                continue;
            };
            let Some(first_seen) = first_seen else { continue };
            if founder.first_seen == UNDATED.0 || first_seen < founder.first_seen {
                self.assignment.replay(&Event::Refounded { id, founder: Founder { first_seen, ..founder } })?;
            }
        }
        Ok(())
    }

    /// Values that the rules block join nobody, whenever they came. Those that only an expression tells are known by it as they come.
    fn block_by_rule(&mut self) -> Result<()> {
        let blocked: Vec<(u8, String)> = self.tokens.blocked_tokens().collect();
        let mut changes = Vec::with_capacity(blocked.len());
        for (rank, token) in blocked {
            changes.push(Change::Block(self.graph.node(parse_token(&token)?, rank)?));
        }
        self.graph.apply(&changes)?;
        Ok(())
    }

    /// Notes decisions, which must follow those that are noted; answers what they change.
    fn take_decisions(&mut self, decided: Vec<Decision>) -> Result<Vec<Change>> {
        let mut changes = Vec::with_capacity(decided.len());
        let by_rule: HashSet<String> = self.tokens.blocked_tokens().map(|(_, token)| token).collect();
        for decision in decided {
            let left = self.node_for(&decision.left)?;
            let right = decision.right.as_ref().map(|right| self.node_for(right)).transpose()?;
            self.taken.decision = self.taken.decision.max(decision.decision_id);
            let earlier = |id| self.decisions.iter().find(|known| Some(known.decision_id) == id);
            let source = u32::try_from(decision.decision_id).unwrap_or(u32::MAX);
            let at = decision.decided_at.timestamp_micros();
            changes.extend(match (decision.kind, right) {
                (DecisionKind::Link, Some(right)) => Some(Change::Link(Link { left, right, at, source })),
                (DecisionKind::Unlink, Some(right)) => Some(Change::Unlink { left, right }),
                (DecisionKind::Block, _) => Some(Change::Block(left)),
                (DecisionKind::Withdraw, right) => match (earlier(decision.withdraws).map(|known| known.kind), right) {
                    (Some(DecisionKind::Link), Some(right)) => Some(Change::WithdrawLink { left, right }),
                    (Some(DecisionKind::Unlink), Some(right)) => Some(Change::Allow { left, right }),
                    (Some(DecisionKind::Block), _) if !by_rule.contains(&decision.left.token) => {
                        Some(Change::Unblock(left))
                    }
                    _ => None,
                },
                _ => None,
            });
            self.decisions.push(decision);
        }
        Ok(changes)
    }

    /// The decision in force that is about these tokens.
    pub(crate) fn decision_about(&self, kind: DecisionKind, one: &str, two: Option<&str>) -> Option<&Decision> {
        in_force(&self.decisions).find(|decision| {
            decision.kind == kind
                && match two {
                    Some(two) => decision.is_about(one, two),
                    None => decision.left.token == one,
                }
        })
    }

    fn node_for(&mut self, identifier: &Identifier) -> Result<u32> {
        let rank = self.tokens.rules().rank(&identifier.identifier_type);
        let token = parse_token(&identifier.token)?;
        let node = self.graph.node(token, rank.unwrap_or_else(|| self.tokens.rules().resting_rank()))?;
        if rank.is_none() {
            self.resting.insert(node, identifier.identifier_type.clone());
        }
        Ok(node)
    }

    /// Customers and identifiers as the tables have them. Answers the cluster of each identifier, by a number.
    async fn restore(&mut self, lake: &Lake, settings: &SessionSettings) -> Result<Vec<(Member, u32)>> {
        let identifiers = tables::identifiers()?.name;
        let customers = tables::customers()?.name;
        let (Some(resolved), Some(given)) = (lake.table(&identifiers).await?, lake.table(&customers).await?) else {
            return Ok(Vec::new());
        };
        // A resolution that died between the two tables has not happened: identifiers say what is so.
        let is_unfinished = given.position(tables::RESOLVE_APP).await? > resolved.position(tables::RESOLVE_APP).await?;
        let has = |table: &Table, column: &str| table.schema().field_with_name(column).is_ok();
        let or_null = |is_there: bool, column: &'static str, null: &'static str| if is_there { column } else { null };
        self.written.is_outdated = !is_as(&resolved, &tables::identifiers()?) || !is_as(&given, &tables::customers()?);

        let mut members: Vec<(Member, CustomerId)> = Vec::new();
        let mut changed_hands: Vec<(u32, IdentifierRow)> = Vec::new();
        let (no_text, no_moment) = ("'joins'", "cast(null as timestamp)");
        let sql = format!(
            "select identifier_type, token, customer_id, first_seen_at, {}, {}, {} from identity.identifiers",
            or_null(has(&resolved, "standing"), "standing", no_text),
            or_null(has(&resolved, "valid_from"), "valid_from", no_moment),
            or_null(has(&resolved, "valid_to"), "valid_to", no_moment),
        );
        for rows in query(lake, settings, &identifiers, &sql).await? {
            let (valid_from, valid_to) = (moments_of(&rows, 5)?, moments_of(&rows, 6)?);
            for (row, first_seen) in moments_of(&rows, 3)?.into_iter().enumerate() {
                let text = |column: usize| rows.column(column).as_string::<i32>().value(row);
                let identifier = Identifier { identifier_type: text(0).to_owned(), token: text(1).to_owned() };
                let node = self.node_for(&identifier)?;
                let customer = parse_id(text(2))?;
                let unknown = || IdentityError::Damaged(format!("`{}` is no standing of an identifier", text(4)));
                let standing = standing_of(text(4)).ok_or_else(unknown)?;
                let period = (valid_from[row], valid_to[row]);
                let written = IdentifierRow { customer, first_seen, standing, period };
                if period == (None, None) {
                    self.written.note_identifier(Member { node, life: 0 }, written);
                    members.push((Member { node, life: 0 }, customer));
                } else {
                    changed_hands.push((node, written));
                }
            }
        }
        // Lives are counted in the order of time.
        changed_hands.sort_unstable_by_key(|(node, row)| (*node, row.period.0));
        for lives in changed_hands.chunk_by(|one, two| one.0 == two.0) {
            for (&(node, row), life) in lives.iter().zip(0..) {
                self.written.note_identifier(Member { node, life }, row);
                members.push((Member { node, life }, row.customer));
            }
        }
        let by_member: HashMap<Member, CustomerId> = members.iter().copied().collect();
        let living: HashSet<CustomerId> = by_member.values().copied().collect();

        let sql = format!(
            "select customer_id, founding_type, founding_token, first_seen_at, merged_into, {}, {} from identity.customers",
            or_null(has(&given, "retired_at"), "retired_at", "cast(null as timestamp)"),
            or_null(has(&given, "resolves_to"), "resolves_to", "coalesce(merged_into, customer_id)")
        );
        let mut founders = Vec::new();
        let mut gone: Vec<(CustomerId, Member, Told)> = Vec::new();
        let tells_living = has(&given, "resolves_to");
        for rows in query(lake, settings, &customers, &sql).await? {
            let (first, retired) = (moments_of(&rows, 3)?, moments_of(&rows, 5)?);
            for (row, (first_seen, retired_at)) in first.into_iter().zip(retired).enumerate() {
                let text = |column: usize| rows.column(column).as_string::<i32>().value(row);
                let other = |column: usize| -> Result<Option<CustomerId>> {
                    rows.column(column).is_valid(row).then(|| parse_id(text(column))).transpose()
                };
                let id = parse_id(text(0))?;
                let founding = Identifier { identifier_type: text(1).to_owned(), token: text(2).to_owned() };
                let node = self.node_for(&founding)?;
                let member = self.written.founding_life(node, id, first_seen);
                let resolves_to = other(6)?;
                let written = CustomerRow { founder: member, first_seen, resolves_to, retired_at };
                self.written.customers.insert(id, written);
                if living.contains(&id) {
                    let first_seen = first_seen.unwrap_or(UNDATED.0);
                    let rank = self.graph.rank(member.node).unwrap_or_default();
                    let token = self.graph.token(member.node).unwrap_or_default();
                    founders.push((id, Founder { member, rank, token, first_seen }));
                } else {
                    let into = other(4)?;
                    if is_unfinished && into.is_none() && retired_at.is_none() {
                        // Given by the resolution that has not happened.
                        continue;
                    }
                    self.retired_at.extend(retired_at.map(|at| (id, at)));
                    // The founding identifier may have had an owner more then, so what was told of it goes before where it is now.
                    let is_told = tells_living && !is_unfinished && resolves_to.is_none_or(|to| living.contains(&to));
                    gone.push((id, member, if is_told { Told::LivingId(resolves_to) } else { Told::MergedInto(into) }));
                }
                self.ids.insert(id);
            }
        }
        let is_known: HashSet<CustomerId> = self.ids.iter().copied().collect();
        let retired = gone.into_iter().map(|(id, founder, into)| {
            let into = match into {
                Told::LivingId(id) => id,
                Told::MergedInto(into) => {
                    by_member.get(&founder).copied().or_else(|| into.filter(|into| is_known.contains(into)))
                }
            };
            (id, Retired { founder, into })
        });
        self.assignment = Assignment::restore(members.iter().copied(), founders, retired)?;

        let mut numbers: HashMap<CustomerId, u32> = HashMap::new();
        let labels = members.into_iter().map(|(member, id)| {
            let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
            (member, *numbers.entry(id).or_insert(next))
        });
        Ok(labels.collect())
    }

    /// A part of the evidence, each source and pair once; notes how far it goes.
    async fn read_edges(&mut self, lake: &Lake, settings: &SessionSettings, part: Part<'_>) -> Result<Vec<Edge>> {
        let spec = tables::edges()?;
        let Some(table) = lake.table(&spec.name).await? else { return Ok(Vec::new()) };
        let has_replays = table.schema().field_with_name("replay").is_ok();
        let sql = edges_sql(part, has_replays);
        let batches = query(lake, settings, &spec.name, &sql).await?;

        let mut names: BTreeSet<&str> = BTreeSet::new();
        for batch in &batches {
            names.extend(batch.column(0).as_string::<i32>().iter().flatten());
        }
        for name in names {
            self.number_of_source(name);
        }
        let mut edges = Vec::new();
        for batch in &batches {
            self.read_batch(batch, &mut edges)?;
        }
        Ok(edges)
    }

    /// A part of what was found alike by the model, added to what is known; answers what may join. Notes how far it goes.
    async fn read_matches(&mut self, lake: &Lake, settings: &SessionSettings, part: Part<'_>) -> Result<Vec<Edge>> {
        let spec = tables::matches()?;
        if self.taken.model == 0 || lake.table(&spec.name).await?.is_none() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "select source, batch, replay, left_type, left_token, right_type, right_token, weight, names_differ, \
             comparison, first_seen_at from identity.matches where model = {} and ({})",
            self.taken.model,
            conditions(part, true)
        );
        let twins_apart = self.tokens.rules().matching.as_ref().is_none_or(|matching| matching.twins_apart);
        let mut edges = Vec::new();
        for rows in query(lake, settings, &spec.name, &sql).await? {
            let text = |index: usize| rows.column(index).as_string::<i32>();
            let number = |index: usize| rows.column(index).as_primitive::<Int64Type>();
            let weight = rows.column(7).as_primitive::<Float64Type>();
            let first = rows.column(10).as_primitive::<TimestampMicrosecondType>();
            for row in 0..rows.num_rows() {
                let source = text(0).value(row);
                let newest = self.taken.matches.entry(source.to_owned()).or_default();
                match number(2).is_valid(row) {
                    true => newest.1 = newest.1.max(number(2).value(row)),
                    false => newest.0 = newest.0.max(number(1).value(row)),
                }
                let rank = |index: usize| self.tokens.rules().rank(text(index).value(row));
                let (Some(left), Some(right)) = (rank(3), rank(5)) else { continue };
                let left = self.graph.node(parse_token(text(4).value(row))?, left)?;
                let right = self.graph.node(parse_token(text(6).value(row))?, right)?;
                let words = self.number_of_words(text(9).value(row));
                let names_differ = twins_apart && rows.column(8).as_boolean().value(row);
                let at = first.is_valid(row).then(|| first.value(row));
                self.note_alike((left, right), Alike { weight: weight.value(row), names_differ, at, words });
                if names_differ {
                    continue;
                }
                let (first_seen, last_seen) = at.map_or(UNDATED, |at| (at, at));
                #[expect(clippy::cast_possible_truncation, reason = "bits of a probability")]
                let weight = weight.value(row) as f32;
                let source = self.number_of_source(source);
                edges.push(Edge {
                    left,
                    right,
                    strength: ALIKE,
                    weight: Some(weight),
                    first_seen,
                    last_seen,
                    records: 1,
                    source,
                });
            }
        }
        Ok(edges)
    }

    /// The customers whose records were found alike; `None` when an identifier had several owners and it is not known which of them it was.
    pub(crate) fn customers_alike(&self, (one, two): (u32, u32), alike: &Alike) -> Option<(CustomerId, CustomerId)> {
        let (first, last) = alike.at.map_or(UNDATED, |at| (at, at));
        let customer = |node| self.customer_of(self.graph.member_at(node, first, last).ok()??);
        customer(one).zip(customer(two))
    }

    /// Of several pairs of records of two identifiers the best counts, and one whose names differ only where no other does.
    fn note_alike(&mut self, (one, two): (u32, u32), found: Alike) {
        let rank = |alike: &Alike| (!alike.names_differ, alike.weight);
        let words = |alike: &Alike| &self.words.0[alike.words as usize];
        let pair = (one.min(two), one.max(two));
        let is_better = self.alike.get(&pair).is_none_or(|known| {
            let ((is_new, new), (is_known, weight)) = (rank(&found), rank(known));
            is_new.cmp(&is_known).then(new.total_cmp(&weight)).then_with(|| words(known).cmp(words(&found))).is_gt()
        });
        if is_better {
            self.alike.insert(pair, found);
        }
    }

    /// How the records of two identifiers compare.
    pub(crate) fn words_of(&self, alike: &Alike) -> &str {
        self.words.0.get(alike.words as usize).map(String::as_str).unwrap_or_default()
    }

    fn number_of_words(&mut self, text: &str) -> u32 {
        if let Some(&number) = self.words.1.get(text) {
            return number;
        }
        let number = u32::try_from(self.words.0.len()).unwrap_or(u32::MAX);
        self.words.0.push(text.to_owned());
        self.words.1.insert(text.to_owned(), number);
        number
    }

    fn number_of_source(&mut self, name: &str) -> u32 {
        let at = self.sources.iter().position(|known| known == name).unwrap_or_else(|| {
            self.sources.push(name.to_owned());
            self.sources.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    fn read_batch(&mut self, batch: &RecordBatch, edges: &mut Vec<Edge>) -> Result<()> {
        let text = |index: usize| batch.column(index).as_string::<i32>();
        let first = batch.column(5).as_primitive::<TimestampMicrosecondType>();
        let last = batch.column(6).as_primitive::<TimestampMicrosecondType>();
        let number = |index: usize| batch.column(index).as_primitive::<Int64Type>();
        let numbers: HashMap<String, u32> = self.sources.iter().cloned().zip(0..).collect();
        for row in 0..batch.num_rows() {
            let source = text(0).value(row);
            let taken = match self.taken.sources.get_mut(source) {
                Some(taken) => taken,
                None => self.taken.sources.entry(source.to_owned()).or_default(),
            };
            for (newest, index) in [(&mut taken.0, 8), (&mut taken.1, 9)] {
                if number(index).is_valid(row) {
                    *newest = (*newest).max(number(index).value(row));
                }
            }
            let rank = |index: usize| self.tokens.rules().rank(text(index).value(row));
            // Evidence of a type that the rules no longer know is kept, and rests.
            let (Some(left), Some(right)) = (rank(1), rank(3)) else { continue };
            let is_dated = first.is_valid(row) && last.is_valid(row);
            let (first_seen, last_seen) = if is_dated { (first.value(row), last.value(row)) } else { UNDATED };
            edges.push(Edge {
                left: self.graph.node(parse_token(text(2).value(row))?, left)?,
                right: self.graph.node(parse_token(text(4).value(row))?, right)?,
                strength: if is_dated { DATED } else { WITHOUT_DATE },
                weight: None,
                first_seen,
                last_seen,
                records: u32::try_from(number(7).value(row)).unwrap_or(u32::MAX),
                source: numbers.get(source).copied().unwrap_or_default(),
            });
        }
        Ok(())
    }
}

/// Reads the evidence of a part.
fn edges_sql(part: Part<'_>, has_replays: bool) -> String {
    let replay = if has_replays { "replay" } else { "cast(null as bigint)" };
    format!(
        "select source, left_type, left_token, right_type, right_token, min(first_seen_at), max(last_seen_at), \
         sum(records), max(batch) filter (where {replay} is null), max({replay}) from identity.edges where {} \
         group by source, left_type, left_token, right_type, right_token, first_seen_at is null",
        conditions(part, has_replays)
    )
}

/// Which rows are of a part: such that files can be left out by what the log says of them.
fn conditions(part: Part<'_>, has_replays: bool) -> String {
    let quoted = |name: &String| format!("'{}'", name.replace('\'', "''"));
    let of_sources = |newest: &Newest, condition: &dyn Fn(i64, i64) -> String| -> Vec<String> {
        let of = |(name, (batch, replay)): (&String, &(i64, i64))| {
            format!("source = {} and ({})", quoted(name), condition(*batch, *replay))
        };
        newest.iter().map(of).collect()
    };
    let conditions = match part {
        Part::All => vec!["true".to_owned()],
        Part::Until(newest) => {
            let mut parts = of_sources(newest, &|batch, newest| {
                if has_replays {
                    format!("(replay is null and batch <= {batch}) or replay <= {newest}")
                } else {
                    format!("batch <= {batch}")
                }
            });
            parts.push("false".to_owned());
            parts
        }
        Part::After(newest) => {
            let mut parts = of_sources(newest, &|batch, newest| {
                if has_replays {
                    format!("(replay is null and batch > {batch}) or replay > {newest}")
                } else {
                    format!("batch > {batch}")
                }
            });
            let names: Vec<String> = newest.keys().map(quoted).collect();
            parts.push(if names.is_empty() {
                "true".to_owned()
            } else {
                format!("source not in ({})", names.join(", "))
            });
            parts
        }
    };
    let conditions: Vec<String> = conditions.into_iter().map(|condition| format!("({condition})")).collect();
    conditions.join(" or ")
}

/// Whether a table has the columns that are written today.
fn is_as(table: &Table, spec: &TableSpec) -> bool {
    let names = |schema: &Schema| schema.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
    names(table.schema()) == names(&spec.schema)
}

/// The moments of a column that may be of another unit, as a null is that older tables lack.
fn moments_of(rows: &RecordBatch, column: usize) -> Result<Vec<Option<i64>>> {
    match rows.column(column).as_primitive_opt::<TimestampMicrosecondType>() {
        Some(moments) => Ok(moments.iter().collect()),
        None if rows.column(column).null_count() == rows.num_rows() => Ok(vec![None; rows.num_rows()]),
        None => Err(IdentityError::Damaged("a moment of identity.customers is none".to_owned())),
    }
}

pub(crate) fn parse_token(text: &str) -> Result<u128> {
    let is_token = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(text, 16)
        .ok()
        .filter(|_| is_token)
        .ok_or_else(|| IdentityError::Damaged("a token is not 32 hexadecimal digits".to_owned()))
}

fn parse_id(text: &str) -> Result<CustomerId> {
    text.parse().map_err(|_| IdentityError::Damaged(format!("`{text}` is no customer id")))
}
