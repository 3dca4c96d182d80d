//! What people ask of identity. What they decide, and the figures to judge it by, are files of their own.

mod decide;
mod quality;

use std::collections::HashSet;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use holdfast_engine::SessionSettings;
use holdfast_graph::{Explanation, Member, Refusal, Step, Support, UNDATED};
use holdfast_lake::Lake;
use holdfast_lake::grammar::suggest;
use serde::Serialize;

use crate::Result;
use crate::customer::CustomerId;
use crate::decisions::{Decision, DecisionKind, Identifier, in_force};
use crate::error::IdentityError;
use crate::identifier::{IdentifierTokens, Reading};
use crate::known::{Known, parse_token};
use crate::resolve::Note;
use crate::review::in_percent;
use crate::tables::{self, query};
use crate::written::standing_text;

pub use self::decide::{Effect, Effects, Wish};
pub use self::quality::{GuardLine, LargestCustomer, Quality, SizeClass, TypeQuality};

/// A path between customers is looked for over so many edges.
const EDGES_MAX: usize = 1_000_000;

/// Identity as it was resolved last, for those who ask about it. Changes nothing in the lake but by [`Inquiry::record`].
#[derive(Debug)]
pub struct Inquiry {
    pub(crate) known: Known,
    note: Option<Note>,
}

/// What somebody asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// The identifier that stands for it; of one that changed hands, its newest life.
    member: Member,
    /// The customer id that was given, in use or not.
    id: Option<CustomerId>,
}

/// A customer and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// The id that was asked about, or that of the identifier.
    pub asked: Option<CustomerId>,
    /// The id in use that it answers to; `None` when nothing is left of it.
    pub customer_id: Option<CustomerId>,
    /// Ids out of use that answer to it.
    pub retired_ids: Vec<CustomerId>,
    /// Whose the identifier was that was asked about, the first owner first; empty when it never changed hands.
    pub owners: Vec<Owner>,
    /// What the customer has, the earliest first.
    pub identifiers: Vec<ShownIdentifier>,
    /// Decisions in force about these.
    pub decisions: Vec<Decision>,
    /// What became of these ids, the earliest first.
    pub history: Vec<HistoryLine>,
}

/// Whose an identifier was for a time.
#[derive(Debug, Clone, Serialize)]
pub struct Owner {
    /// Whose; `None` when nothing speaks of it.
    pub customer_id: Option<CustomerId>,
    /// From when on; `None` for the first owner.
    pub valid_from: Option<DateTime<Utc>>,
    /// Until when, not included; `None` for the last.
    pub valid_to: Option<DateTime<Utc>>,
}

/// An identifier of a customer.
#[derive(Debug, Clone, Serialize)]
pub struct ShownIdentifier {
    /// Type and token.
    #[serde(flatten)]
    pub identifier: Identifier,
    /// `joins`, or why it joins nobody: `shared`, `hub`, `blocked`.
    pub standing: &'static str,
    /// The first record with it.
    pub first_seen_at: Option<DateTime<Utc>>,
    /// The last record with it.
    pub last_seen_at: Option<DateTime<Utc>>,
    /// How many pieces of evidence name it.
    pub records: i64,
    /// From when on it is the customer's, where it was somebody else's before.
    pub valid_from: Option<DateTime<Utc>>,
    /// Until when, not included, where it is somebody else's afterwards.
    pub valid_to: Option<DateTime<Utc>>,
}

/// A row of `identity.history`.
#[derive(Debug, Clone, Serialize)]
pub struct HistoryLine {
    /// When.
    pub changed_at: Option<DateTime<Utc>>,
    /// The resolution.
    pub step: i64,
    /// What happened.
    pub kind: String,
    /// To whom.
    pub customer_id: String,
    /// With whom.
    pub other_customer_id: Option<String>,
    /// Why: see the comments of the table.
    pub cause: Option<String>,
    /// The identifier that it is due to.
    pub cause_identifier: Option<Identifier>,
    /// The other one.
    pub cause_other_identifier: Option<Identifier>,
    /// The source of the evidence.
    pub cause_source: Option<String>,
    /// The decision.
    pub decision_id: Option<i64>,
}

/// Why two identifiers are one customer's or not.
#[derive(Debug, Clone, Serialize)]
pub struct Explained {
    /// Whether they are.
    pub together: bool,
    /// One, and its customer.
    pub left: Identifier,
    /// The customer of `left`.
    pub left_customer_id: Option<CustomerId>,
    /// The other, and its customer.
    pub right: Identifier,
    /// The customer of `right`.
    pub right_customer_id: Option<CustomerId>,
    /// In one sentence.
    pub summary: String,
    /// From one to the other.
    pub steps: Vec<ExplainedStep>,
}

/// A step of an explanation.
#[derive(Debug, Clone, Serialize)]
pub struct ExplainedStep {
    /// From here.
    pub from: Identifier,
    /// To there.
    pub to: Identifier,
    /// `evidence`, `match` (records that were found alike) or `decision`.
    pub support: &'static str,
    /// The source of the earliest record.
    pub source: Option<String>,
    /// How many records carried both.
    pub records: Option<u32>,
    /// The logarithm to base 2 of the odds, where records were found alike.
    pub weight: Option<f64>,
    /// The first of them.
    pub first_seen_at: Option<DateTime<Utc>>,
    /// The last of them.
    pub last_seen_at: Option<DateTime<Utc>>,
    /// The step in words.
    pub words: String,
    /// Why it joins nothing; `None` when it does.
    pub refused_because: Option<String>,
}

impl Inquiry {
    /// Identity as it was resolved last.
    ///
    /// # Errors
    /// [`IdentityError::Unknown`] when nothing was resolved yet; what engine and lake answer.
    pub async fn open(lake: &Lake, settings: &SessionSettings, tokens: &IdentifierTokens) -> Result<Self> {
        let Some(identifiers) = lake.table(&tables::identifiers()?.name).await? else {
            return Err(IdentityError::Unknown(
                "no identity has been resolved in this lake yet: `holdfast ingest` does so".to_owned(),
            ));
        };
        let note = Note::read(Some(&identifiers)).await?;
        let taken = note.as_ref().map(|note| &note.taken);
        let (known, _) = Known::load(lake, settings, tokens, taken, taken.map_or(0, |taken| taken.model)).await?;
        Ok(Self { known, note })
    }

    /// Whether the rules are those of the last resolution. If not, answers are what the next one will make of the same evidence.
    pub fn is_by_todays_rules(&self) -> bool {
        self.note.as_ref().is_some_and(|note| note.is_by(&self.known.tokens))
    }

    /// Finds what a person named: a customer id, `type:value`, or `token:` and the 32 digits. The value goes nowhere.
    ///
    /// # Errors
    /// [`IdentityError::Refused`] for what cannot be an identifier or is blocked, [`IdentityError::Unknown`] for what there is not.
    pub fn find(&self, text: &str) -> Result<Subject> {
        if let Ok(id) = text.parse::<CustomerId>() {
            let unknown = || IdentityError::Unknown(format!("there is no customer {id}, and there never was"));
            return Ok(Subject { member: self.known.founder_of(id).ok_or_else(unknown)?, id: Some(id) });
        }
        let Some((name, value)) = text.split_once(':') else {
            return Err(IdentityError::Refused(
                "name a customer by its id (c and 16 hexadecimal digits), or an identifier as type:value, such as phone:…, or as token: and 32 hexadecimal digits".to_owned(),
            ));
        };
        if name == "token" {
            let token = parse_token(value)
                .map_err(|_| IdentityError::Refused("a token is 32 hexadecimal digits".to_owned()))?;
            let unknown = || IdentityError::Unknown("no record has brought an identifier with this token".to_owned());
            return self.newest(self.known.graph.find(token))?.ok_or_else(unknown);
        }
        self.find_value(name, value)
    }

    /// Finds an identifier by its value, which goes nowhere.
    ///
    /// # Errors
    /// As [`Inquiry::find`].
    pub fn find_value(&self, name: &str, value: &str) -> Result<Subject> {
        let known: Vec<&str> = self.known.tokens.rules().priority.iter().map(String::as_str).collect();
        let Some(reading) = self.known.tokens.read(name, value) else {
            let hint = suggest(name, &known).map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            let known = known.join(", ");
            return Err(IdentityError::Refused(format!("`{name}` is no identifier type: there are {known}{hint}")));
        };
        match reading {
            Reading::NoIdentifier => Err(IdentityError::Refused(format!("this cannot be anybody's {name}"))),
            Reading::Blocked => Err(IdentityError::Refused(format!(
                "this {name} is blocked by the rules in identity.toml: it is nobody's"
            ))),
            Reading::Token(token) => {
                let unknown = || IdentityError::Unknown(format!("no record has brought this {name}"));
                self.newest(self.known.node_of(&token)?)?.ok_or_else(unknown)
            }
        }
    }

    /// An identifier as it is now, when anything speaks of it.
    fn newest(&self, node: Option<u32>) -> Result<Option<Subject>> {
        let Some(node) = node else { return Ok(None) };
        let member = self.known.graph.newest_life(node)?;
        Ok(self.is_present(member).then_some(Subject { member, id: None }))
    }

    fn is_present(&self, member: Member) -> bool {
        self.known.graph.cluster_of(member).is_some()
    }

    /// All about a customer.
    ///
    /// # Errors
    /// What engine and lake answer.
    pub async fn show(&mut self, lake: &Lake, settings: &SessionSettings, subject: Subject) -> Result<Shown> {
        let customer_id = match subject.id {
            Some(id) => self.known.assignment.resolve(id),
            None => self.known.customer_of(subject.member),
        };
        let asked = subject.id.or(customer_id);
        let retired: Vec<CustomerId> = self.known.assignment.retired().map(|(id, _)| id).collect();
        let mut retired_ids: Vec<CustomerId> = retired
            .into_iter()
            .filter(|&id| customer_id.is_some() && self.known.assignment.resolve(id) == customer_id)
            .collect();
        retired_ids.sort_unstable();
        let mut identifiers = Vec::new();
        let members = self.known.assignment.members().filter(|&(_, id)| Some(id) == customer_id);
        for (member, _) in members.collect::<Vec<_>>() {
            let (first, last, records) = self.known.seen(member)?;
            let (valid_from, valid_to) = self.known.graph.period(member)?;
            identifiers.push(ShownIdentifier {
                identifier: self.known.identifier(member.node),
                standing: standing_text(self.known.standing(member)?),
                first_seen_at: first.and_then(DateTime::from_timestamp_micros),
                last_seen_at: last.and_then(DateTime::from_timestamp_micros),
                records,
                valid_from: valid_from.and_then(DateTime::from_timestamp_micros),
                valid_to: valid_to.and_then(DateTime::from_timestamp_micros),
            });
        }
        let owners = if subject.id.is_none() { self.owners(subject.member.node)? } else { Vec::new() };
        identifiers.sort_by(|one, two| {
            let key = |shown: &ShownIdentifier| (shown.first_seen_at.is_none(), shown.first_seen_at);
            key(one).cmp(&key(two)).then_with(|| one.identifier.token.cmp(&two.identifier.token))
        });
        let tokens: HashSet<&str> = identifiers.iter().map(|shown| shown.identifier.token.as_str()).collect();
        let is_about = |identifier: &Identifier| tokens.contains(identifier.token.as_str());
        let decisions = in_force(&self.known.decisions)
            .filter(|decision| is_about(&decision.left) || decision.right.as_ref().is_some_and(is_about))
            .cloned()
            .collect();
        let ids: Vec<CustomerId> = asked.into_iter().chain(customer_id).collect();
        let history = history(lake, settings, &ids).await?;
        Ok(Shown { asked, customer_id, retired_ids, owners, identifiers, decisions, history })
    }

    /// Whose an identifier was; nobody's when it never changed hands.
    fn owners(&self, node: u32) -> Result<Vec<Owner>> {
        let lives: Vec<Member> = self.known.lives_of(node)?.collect();
        if lives.len() < 2 {
            return Ok(Vec::new());
        }
        let owner = |member| {
            let (from, to) = self.known.graph.period(member)?;
            Ok(Owner {
                customer_id: self.known.customer_of(member),
                valid_from: from.and_then(DateTime::from_timestamp_micros),
                valid_to: to.and_then(DateTime::from_timestamp_micros),
            })
        };
        lives.into_iter().map(owner).collect()
    }

    /// Why two are one customer's, or why not.
    ///
    /// # Errors
    /// [`IdentityError::Unknown`] when nothing speaks of one of them any more.
    pub fn explain(&self, left: Subject, right: Subject) -> Result<Explained> {
        for subject in [left, right] {
            if !self.is_present(subject.member) {
                let what = self.known.identifier(subject.member.node);
                return Err(IdentityError::Unknown(format!("nothing speaks of {what} any more")));
            }
        }
        let found = self.known.graph.explain(left.member, right.member, EDGES_MAX)?;
        let (left_customer_id, right_customer_id) =
            (self.known.customer_of(left.member), self.known.customer_of(right.member));
        let id = |id: Option<CustomerId>| id.map_or_else(|| "nobody".to_owned(), |id| id.to_string());
        let (one, two) = (id(left_customer_id), id(right_customer_id));
        let (summary, steps) = match &found {
            Explanation::Together(steps) if steps.is_empty() => {
                (format!("one identifier, of customer {one}"), &steps[..])
            }
            Explanation::Together(steps) => {
                (format!("one customer, {one}; the strongest way from one to the other:"), &steps[..])
            }
            Explanation::Apart(steps) => (
                format!("two customers, {one} and {two}; what lies between them, and why it does not join:"),
                &steps[..],
            ),
            Explanation::Unconnected => {
                (format!("two customers, {one} and {two}: no evidence leads from one to the other"), &[][..])
            }
            Explanation::NotFound { edges } => {
                (format!("two customers, {one} and {two}: no way was found over {edges} pieces of evidence"), &[][..])
            }
        };
        Ok(Explained {
            together: matches!(found, Explanation::Together(_)),
            left: self.known.identifier(left.member.node),
            left_customer_id,
            right: self.known.identifier(right.member.node),
            right_customer_id,
            summary,
            steps: steps.iter().map(|step| self.step(step)).collect(),
        })
    }

    /// All decisions, those that hold no more among them, and which do.
    pub fn decisions(&self) -> (&[Decision], HashSet<i64>) {
        let holding = in_force(&self.known.decisions).map(|decision| decision.decision_id).collect();
        (&self.known.decisions, holding)
    }

    fn step(&self, step: &Step) -> ExplainedStep {
        let (from, to) = (self.known.identifier(step.from.node), self.known.identifier(step.to.node));
        let refused_because = step.refusal.map(|refusal| self.refusal(refusal));
        let plain = |support, words| ExplainedStep {
            from: from.clone(),
            to: to.clone(),
            support,
            source: None,
            records: None,
            weight: None,
            first_seen_at: None,
            last_seen_at: None,
            words,
            refused_because,
        };
        match step.support {
            Support::Edge(edge) if edge.weight.is_some() => {
                let weight = edge.weight.map_or(0.0, f64::from);
                let pair = (edge.left.min(edge.right), edge.left.max(edge.right));
                let how = self.known.alike.get(&pair).map(|alike| self.known.words_of(alike)).unwrap_or_default();
                let (chance, source) = (in_percent(weight), self.known.source(edge.source));
                let model = self.known.taken.model;
                ExplainedStep {
                    source: Some(source.to_owned()),
                    weight: Some(weight),
                    first_seen_at: DateTime::from_timestamp_micros(edge.first_seen),
                    ..plain(
                        "match",
                        format!(
                            "{from} and {to} speak for records that are alike, {chance} to be one person's \
                             (weight {weight:.1}, model {model}, in {source}): {how}"
                        ),
                    )
                }
            }
            Support::Edge(edge) => {
                let is_dated = (edge.first_seen, edge.last_seen) != UNDATED;
                let at = |moment| DateTime::from_timestamp_micros(moment).filter(|_| is_dated);
                let (first, last) = (at(edge.first_seen), at(edge.last_seen));
                let source = self.known.source(edge.source);
                let records = if edge.records == 1 { "record".to_owned() } else { format!("{} records", edge.records) };
                let when = match (first, last) {
                    (Some(first), Some(last)) if first.date_naive() == last.date_naive() => {
                        format!(", {}", first.date_naive())
                    }
                    (Some(first), Some(last)) => format!(", {} to {}", first.date_naive(), last.date_naive()),
                    _ => String::new(),
                };
                ExplainedStep {
                    source: Some(source.to_owned()),
                    records: Some(edge.records),
                    first_seen_at: first,
                    last_seen_at: last,
                    ..plain("evidence", format!("{from} and {to} came in one {records}, first in {source}{when}"))
                }
            }
            Support::Link(link) => {
                let id = i64::from(link.source);
                let decision = self.known.decisions.iter().find(|decision| decision.decision_id == id);
                let words = decision.map_or_else(|| format!("decision {id}"), told);
                plain("decision", format!("{from} and {to}: {words}"))
            }
            Support::OtherLife => plain("evidence", format!("{from} changed hands")),
        }
    }

    fn refusal(&self, refusal: Refusal) -> String {
        let name = |node: u32| self.known.identifier(node);
        let rules = self.known.tokens.rules();
        let rule = |node: u32| rules.types.get(&name(node).identifier_type);
        match refusal {
            Refusal::Blocked(node) => {
                let known = self.known.decision_about(DecisionKind::Block, &name(node).token, None);
                let by = known.map_or_else(|| "the rules block its value".to_owned(), told);
                format!("{} is blocked: {by}", name(node))
            }
            Refusal::Hub(node) => {
                let most = rule(node).and_then(|rule| rule.hub_above).unwrap_or(0);
                format!("{} was seen with more than {most} other identifiers: it is a hub", name(node))
            }
            Refusal::Shared(Member { node, .. }) => {
                let most = rule(node).and_then(|rule| rule.shared_above).unwrap_or(1);
                format!(
                    "{} was seen with more than {most} different values of one unique type: several people share it",
                    name(node)
                )
            }
            Refusal::Unique { rank, left, right } => {
                let of_type = rules.type_of(rank);
                format!(
                    "one customer would have two values of {of_type}, which is unique: {} and {}",
                    name(left),
                    name(right)
                )
            }
            Refusal::Limit { rank, values, allowed } => {
                let of_type = rules.type_of(rank);
                let window = rules.types.get(of_type).and_then(|rule| rule.limit).and_then(|limit| limit.window);
                let within = window.map_or_else(String::new, |window| {
                    let hours = window / 3_600_000_000;
                    if hours % 24 == 0 {
                        format!(" within {} days", hours / 24)
                    } else {
                        format!(" within {hours} hours")
                    }
                });
                format!("one customer would have {values} values of {of_type}{within}: {allowed} are allowed")
            }
            Refusal::CannotLink { left, right } => {
                let (one, two) = (name(left), name(right));
                let known = self.known.decision_about(DecisionKind::Unlink, &one.token, Some(&two.token));
                let by = known.map_or_else(String::new, |known| format!(": {}", told(known)));
                format!("{one} and {two} are never one customer{by}")
            }
            Refusal::BelowBar { weight, bar } => {
                format!("its weight of {weight:.1} is below {bar:.1}, from which on records are joined")
            }
            Refusal::Guard { weight, bar } => {
                format!(
                    "its weight of {weight:.1} is below {bar:.1}: so much is asked for where so many identifiers would come together"
                )
            }
            Refusal::SpansLives(node) | Refusal::OtherLife(node) => format!("{} changed hands", name(node)),
        }
    }
}

/// A decision in words.
fn told(decision: &Decision) -> String {
    let verb = match decision.kind {
        DecisionKind::Link => "linked",
        DecisionKind::Unlink => "unlinked",
        DecisionKind::Block => "blocked",
        DecisionKind::Withdraw => "withdrawn",
    };
    let Decision { decision_id, decided_by, reason, decided_at, .. } = decision;
    format!("decision {decision_id}, {verb} by {decided_by} on {}, “{reason}”", decided_at.date_naive())
}

/// What became of these ids. Steps that never took effect are left out.
async fn history(lake: &Lake, settings: &SessionSettings, ids: &[CustomerId]) -> Result<Vec<HistoryLine>> {
    let spec = tables::history()?;
    let Some(table) = lake.table(&spec.name).await? else { return Ok(Vec::new()) };
    // A table of an older version lacks the later columns until the next resolution.
    let or_null = |name: &str, data_type: &str| {
        let is_there = table.schema().field_with_name(name).is_ok();
        if is_there { name.to_owned() } else { format!("cast(null as {data_type})") }
    };
    let list: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let list = list.join(", ");
    let undone = format!("(select {} from identity.history where kind = 'undone')", or_null("identifiers", "bigint"));
    let sql = format!(
        "select step, kind, customer_id, other_customer_id, changed_at, {}, cause_type, cause_token, {}, {}, {}, {} \
         from identity.history where (customer_id in ({list}) or other_customer_id in ({list})) \
         and step not in {undone} order by step, kind, customer_id, other_customer_id",
        or_null("cause", "varchar"),
        or_null("cause_other_type", "varchar"),
        or_null("cause_other_token", "varchar"),
        or_null("cause_source", "varchar"),
        or_null("decision_id", "bigint"),
    );
    let mut lines = Vec::new();
    for rows in query(lake, settings, &spec.name, &sql).await? {
        for row in 0..rows.num_rows() {
            let text = |column: usize| -> Option<String> {
                let values = rows.column(column).as_string_opt::<i32>()?;
                values.is_valid(row).then(|| values.value(row).to_owned())
            };
            let number = |column: usize| -> Option<i64> {
                let values = rows.column(column).as_primitive_opt::<Int64Type>()?;
                values.is_valid(row).then(|| values.value(row))
            };
            let identifier = |identifier_type: usize, token: usize| {
                text(identifier_type)
                    .zip(text(token))
                    .map(|(identifier_type, token)| Identifier { identifier_type, token })
            };
            let at = rows.column(4).as_primitive_opt::<TimestampMicrosecondType>();
            lines.push(HistoryLine {
                changed_at: at
                    .filter(|at| at.is_valid(row))
                    .and_then(|at| DateTime::from_timestamp_micros(at.value(row))),
                step: number(0).unwrap_or(0),
                kind: text(1).unwrap_or_default(),
                customer_id: text(2).unwrap_or_default(),
                other_customer_id: text(3),
                cause: text(5),
                cause_identifier: identifier(6, 7),
                cause_other_identifier: identifier(8, 9),
                cause_source: text(10),
                decision_id: number(11),
            });
        }
    }
    Ok(lines)
}
