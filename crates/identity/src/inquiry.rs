//! What people ask of identity, and what they decide.

use std::collections::{BTreeMap, HashMap, HashSet};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use holdfast_engine::SessionSettings;
use holdfast_graph::{Event, Explanation, Member, Refusal, Standing, Step, Support, UNDATED};
use holdfast_lake::Lake;
use holdfast_lake::grammar::suggest;
use serde::Serialize;

use crate::Result;
use crate::customer::CustomerId;
use crate::decisions::{Decision, DecisionKind, Identifier, in_force, record};
use crate::error::IdentityError;
use crate::identifier::{IdentifierTokens, Reading};
use crate::known::{GUARD_STEP, Known, Moved, parse_token};
use crate::resolve::{HistoryRow, Note, standing_text};
use crate::review::in_percent;
use crate::tables::{self, query};

/// A path between customers is looked for over so many edges.
const EDGES_MAX: usize = 1_000_000;

/// Caps of the guard that its curve shows.
const GUARD_CAPS: [u32; 5] = [5, 10, 20, 50, 100];

/// Identity as it was resolved last, for those who ask about it. Changes nothing in the lake but by [`Inquiry::record`].
#[derive(Debug)]
pub struct Inquiry {
    pub(crate) known: Known,
    note: Option<Note>,
}

/// What somebody asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    node: u32,
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
    /// What the customer has, the earliest first.
    pub identifiers: Vec<ShownIdentifier>,
    /// Decisions in force about these.
    pub decisions: Vec<Decision>,
    /// What became of these ids, the earliest first.
    pub history: Vec<HistoryLine>,
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

/// What a change does to customers.
#[derive(Debug, Clone, Serialize)]
pub struct Effects {
    /// Customers that go up in another.
    pub merged: u64,
    /// Customers that lose identifiers to another.
    pub split: u64,
    /// Ids that are given for the first time.
    pub minted: u64,
    /// Each of them, or examples.
    pub examples: Vec<Effect>,
}

/// A change of a customer.
#[derive(Debug, Clone, Serialize)]
pub struct Effect {
    /// `merged`, `split`, `moved`, `minted`, `ended`.
    pub kind: &'static str,
    /// The id that goes on, or that is given.
    pub customer_id: CustomerId,
    /// The id that goes up in it, or that identifiers come from.
    pub other_customer_id: Option<CustomerId>,
    /// How many identifiers change hands.
    pub identifiers: usize,
    /// In words.
    pub words: String,
}

/// Figures to judge identity by.
#[derive(Debug, Clone, Serialize)]
pub struct Quality {
    /// Ids in use.
    pub customers: u64,
    /// Ids out of use.
    pub retired: u64,
    /// By type, the strongest first.
    pub types: Vec<TypeQuality>,
    /// Customers by the number of their identifiers.
    pub sizes: Vec<SizeClass>,
    /// Identifiers of the largest customers, the largest first.
    pub largest: Vec<LargestCustomer>,
    /// Decisions in force.
    pub decisions: u64,
    /// The model by which records are compared; 0: none.
    pub model: i64,
    /// Pairs of identifiers whose records are so alike that they are joined, unless a rule or decision forbids it.
    pub alike: u64,
    /// Pairs for a person to decide.
    pub to_review: u64,
    /// The guard that is in force.
    pub guard_cap: Option<u32>,
    /// What a guard of some cap would leave. It cuts evidence that is not certain, so it is flat while there is none.
    pub guard_curve: Vec<GuardLine>,
}

/// The identifiers of one type.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TypeQuality {
    /// Such as phone.
    pub identifier_type: String,
    /// How many there are.
    pub identifiers: u64,
    /// Of these, shared by several people.
    pub shared: u64,
    /// Of these, hubs.
    pub hubs: u64,
    /// Of these, blocked.
    pub blocked: u64,
    /// The most that one customer has.
    pub most_at_one_customer: u64,
}

/// Customers of about one size.
#[derive(Debug, Clone, Serialize)]
pub struct SizeClass {
    /// From so many identifiers.
    pub identifiers_min: u64,
    /// To so many; `None` is no bound.
    pub identifiers_max: Option<u64>,
    /// How many customers.
    pub customers: u64,
}

/// A customer with many identifiers.
#[derive(Debug, Clone, Serialize)]
pub struct LargestCustomer {
    /// Which.
    pub customer_id: CustomerId,
    /// How many.
    pub identifiers: u64,
}

/// A point of the guard's curve.
#[derive(Debug, Clone, Serialize)]
pub struct GuardLine {
    /// The most identifiers a component may have before the bar is raised in it.
    pub cap: u32,
    /// Customers there would be.
    pub customers: u64,
    /// Identifiers of the largest.
    pub largest: u64,
    /// Pieces of evidence that would be cut.
    pub edges_cut: u64,
}

/// What somebody wants decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// These two are one customer's.
    Link(Subject, Subject),
    /// These two are never one customer's.
    Unlink(Subject, Subject),
    /// This one joins nobody.
    Block(Subject),
    /// This decision holds no more.
    Withdraw(i64),
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
            return Ok(Subject { node: self.known.founder_of(id).ok_or_else(unknown)?, id: Some(id) });
        }
        let Some((name, value)) = text.split_once(':') else {
            return Err(IdentityError::Refused(
                "name a customer by its id (c and 16 hexadecimal digits), or an identifier as type:value, such as phone:…, or as token: and 32 hexadecimal digits".to_owned(),
            ));
        };
        if name == "token" {
            let token = parse_token(value)
                .map_err(|_| IdentityError::Refused("a token is 32 hexadecimal digits".to_owned()))?;
            let node = self.known.graph.find(token).filter(|&node| self.is_present(node));
            let unknown = || IdentityError::Unknown("no record has brought an identifier with this token".to_owned());
            return Ok(Subject { node: node.ok_or_else(unknown)?, id: None });
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
                let node = self.known.node_of(&token)?.filter(|&node| self.is_present(node));
                let unknown = || IdentityError::Unknown(format!("no record has brought this {name}"));
                Ok(Subject { node: node.ok_or_else(unknown)?, id: None })
            }
        }
    }

    fn is_present(&self, node: u32) -> bool {
        self.known.graph.cluster_of(first_life(node)).is_some()
    }

    /// All about a customer.
    ///
    /// # Errors
    /// What engine and lake answer.
    pub async fn show(&mut self, lake: &Lake, settings: &SessionSettings, subject: Subject) -> Result<Shown> {
        let customer_id = match subject.id {
            Some(id) => self.known.assignment.resolve(id),
            None => self.known.customer_of(subject.node),
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
            let (first, last, records) = self.known.seen(member.node)?;
            identifiers.push(ShownIdentifier {
                identifier: self.known.identifier(member.node),
                standing: standing_text(self.known.graph.standing(member.node)?),
                first_seen_at: first.and_then(DateTime::from_timestamp_micros),
                last_seen_at: last.and_then(DateTime::from_timestamp_micros),
                records,
            });
        }
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
        Ok(Shown { asked, customer_id, retired_ids, identifiers, decisions, history })
    }

    /// Why two are one customer's, or why not.
    ///
    /// # Errors
    /// [`IdentityError::Unknown`] when nothing speaks of one of them any more.
    pub fn explain(&self, left: Subject, right: Subject) -> Result<Explained> {
        for subject in [left, right] {
            if !self.is_present(subject.node) {
                let what = self.known.identifier(subject.node);
                return Err(IdentityError::Unknown(format!("nothing speaks of {what} any more")));
            }
        }
        let found = self.known.graph.explain(first_life(left.node), first_life(right.node), EDGES_MAX)?;
        let (left_customer_id, right_customer_id) =
            (self.known.customer_of(left.node), self.known.customer_of(right.node));
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
            left: self.known.identifier(left.node),
            left_customer_id,
            right: self.known.identifier(right.node),
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

    /// What other rules would make of the same evidence, with up to `examples` of what they change. Nothing is written.
    ///
    /// # Errors
    /// What engine and lake answer.
    pub async fn difference(
        &self,
        lake: &Lake,
        settings: &SessionSettings,
        tokens: &IdentifierTokens,
        examples: usize,
    ) -> Result<Effects> {
        let taken = self.note.as_ref().map(|note| &note.taken);
        let (known, moved) = Known::load(lake, settings, tokens, taken, taken.map_or(0, |taken| taken.model)).await?;
        Ok(effects(&known, &moved, examples))
    }

    /// Figures to judge identity by.
    ///
    /// # Errors
    /// [`IdentityError::Graph`].
    pub fn quality(&self) -> Result<Quality> {
        let mut types: BTreeMap<u8, TypeQuality> = BTreeMap::new();
        let mut of_customer: HashMap<CustomerId, (u64, HashMap<u8, u64>)> = HashMap::new();
        for (member, id) in self.known.assignment.members() {
            let rank = self.known.graph.rank(member.node).unwrap_or_else(|| self.known.tokens.rules().resting_rank());
            let counted = types.entry(rank).or_default();
            counted.identifiers += 1;
            match self.known.graph.standing(member.node)? {
                Standing::Joins => {}
                Standing::Shared => counted.shared += 1,
                Standing::Hub => counted.hubs += 1,
                Standing::Blocked => counted.blocked += 1,
            }
            let (size, by_rank) = of_customer.entry(id).or_default();
            *size += 1;
            *by_rank.entry(rank).or_default() += 1;
        }
        for (rank, counted) in &mut types {
            counted.identifier_type = self.known.tokens.rules().type_of(*rank).to_owned();
            let most = of_customer.values().filter_map(|(_, by_rank)| by_rank.get(rank)).max();
            counted.most_at_one_customer = most.copied().unwrap_or(0);
        }
        let mut sizes: Vec<(u64, CustomerId)> = of_customer.iter().map(|(&id, (size, _))| (*size, id)).collect();
        sizes.sort_unstable_by(|one, two| two.0.cmp(&one.0).then(one.1.cmp(&two.1)));
        let class = |min: u64, max: Option<u64>| SizeClass {
            identifiers_min: min,
            identifiers_max: max,
            customers: sizes.iter().filter(|(size, _)| *size >= min && max.is_none_or(|max| *size <= max)).count()
                as u64,
        };
        let largest = sizes.iter().take(5);
        let curve = self.known.graph.guard_curve(&GUARD_CAPS, GUARD_STEP)?;
        Ok(Quality {
            customers: of_customer.len() as u64,
            retired: self.known.assignment.retired().count() as u64,
            types: types.into_values().collect(),
            sizes: vec![
                class(1, Some(1)),
                class(2, Some(5)),
                class(6, Some(10)),
                class(11, Some(20)),
                class(21, Some(50)),
                class(51, None),
            ],
            largest: largest.map(|&(identifiers, customer_id)| LargestCustomer { customer_id, identifiers }).collect(),
            decisions: in_force(&self.known.decisions).count() as u64,
            model: self.known.taken.model,
            alike: self.known.alike.values().filter(|alike| self.is_joining(alike)).count() as u64,
            to_review: self.to_review().len() as u64,
            guard_cap: self.known.graph.rules().guard().map(|guard| guard.cap),
            guard_curve: curve
                .into_iter()
                .map(|point| GuardLine {
                    cap: point.cap,
                    customers: point.clusters,
                    largest: point.largest,
                    edges_cut: point.edges_cut,
                })
                .collect(),
        })
    }

    /// Takes in what arrived and was decided since identity was resolved, so that what a decision does can be told from what comes in any case.
    ///
    /// # Errors
    /// What engine and lake answer.
    pub async fn catch_up(&mut self, lake: &Lake, settings: &SessionSettings) -> Result<()> {
        self.known.advance(lake, settings).await.map(|_| ())
    }

    /// What a wish comes to as a decision, and what that will do. Nothing is written yet: [`Inquiry::record`] does so.
    ///
    /// # Errors
    /// [`IdentityError::Refused`] when it contradicts a decision in force, or changes nothing that could be changed; [`IdentityError::Unknown`].
    pub fn decide(
        &mut self,
        wish: Wish,
        decided_by: &str,
        reason: &str,
        decided_at: DateTime<Utc>,
    ) -> Result<(Decision, Effects)> {
        let refused = |text: String| Err(IdentityError::Refused(text));
        let (kind, left, right, withdraws) = match wish {
            Wish::Link(left, right) | Wish::Unlink(left, right) if left.node == right.node => {
                return refused("both are the same identifier".to_owned());
            }
            Wish::Link(left, right) => {
                self.check_pair(left, right, DecisionKind::Unlink, DecisionKind::Link)?;
                (DecisionKind::Link, left.node, Some(right.node), None)
            }
            Wish::Unlink(left, right) => {
                self.check_pair(left, right, DecisionKind::Link, DecisionKind::Unlink)?;
                (DecisionKind::Unlink, left.node, Some(right.node), None)
            }
            Wish::Block(subject) => {
                let identifier = self.known.identifier(subject.node);
                if let Some(known) = self.known.decision_about(DecisionKind::Block, &identifier.token, None) {
                    return refused(format!("decision {} blocks it already", known.decision_id));
                }
                (DecisionKind::Block, subject.node, None, None)
            }
            Wish::Withdraw(id) => {
                let (left, right) = self.check_withdrawal(id)?;
                (DecisionKind::Withdraw, left, right, Some(id))
            }
        };
        let customer = |node: u32| self.known.customer_of(node).map(|id| id.to_string());
        let decision = Decision {
            decision_id: self.known.taken.decision + 1,
            kind,
            left: self.known.identifier(left),
            right: right.map(|right| self.known.identifier(right)),
            left_customer_id: customer(left),
            right_customer_id: right.and_then(customer),
            withdraws,
            decided_by: decided_by.to_owned(),
            reason: reason.to_owned(),
            decided_at,
        };
        let broken = self.broken_links();
        let moved = self.known.decide(decision.clone())?;
        if let Some(link) = self.broken_links().into_iter().find(|link| !broken.contains(link)) {
            return Err(IdentityError::Refused(self.why_link_fails(link, decision.decision_id)?));
        }
        let effects = effects(&self.known, &moved, usize::MAX);
        Ok((decision, effects))
    }

    /// Stores a decision. The next resolution acts on it, and every later one.
    ///
    /// # Errors
    /// [`IdentityError::DecidedMeanwhile`] when somebody else decided something since [`Inquiry::catch_up`]; what the lake answers.
    pub async fn record(lake: &Lake, decision: &Decision) -> Result<()> {
        record(lake, decision).await
    }

    /// Links that are in force and join nothing, because cannot-links forbid it.
    fn broken_links(&self) -> Vec<i64> {
        let ends = |decision: &Decision| {
            let node = |identifier: &Identifier| self.known.node_of(&identifier.token).ok().flatten();
            node(&decision.left).zip(decision.right.as_ref().and_then(node))
        };
        in_force(&self.known.decisions)
            .filter(|decision| decision.kind == DecisionKind::Link)
            .filter(|decision| {
                ends(decision)
                    .is_some_and(|(left, right)| self.known.customer_of(left) != self.known.customer_of(right))
            })
            .map(|decision| decision.decision_id)
            .collect()
    }

    fn why_link_fails(&self, link: i64, new: i64) -> Result<String> {
        let decision = self.known.decisions.iter().find(|decision| decision.decision_id == link);
        let Some((decision, right)) = decision.and_then(|known| Some((known, known.right.as_ref()?))) else {
            return Ok(format!("decision {link} could not hold any more"));
        };
        let subject = |identifier: &Identifier| self.find(&format!("token:{}", identifier.token));
        let explained = self.explain(subject(&decision.left)?, subject(right)?)?;
        let why = explained.steps.into_iter().find_map(|step| step.refused_because);
        let why = why.unwrap_or_else(|| "other decisions keep them apart".to_owned());
        let what = if link == new {
            "these two cannot be linked".to_owned()
        } else {
            format!("{}, could not hold any more", told(decision))
        };
        Ok(format!("{what}: {why}"))
    }

    fn check_pair(&self, left: Subject, right: Subject, against: DecisionKind, same: DecisionKind) -> Result<()> {
        let (one, two) = (self.known.identifier(left.node), self.known.identifier(right.node));
        if let Some(known) = self.known.decision_about(same, &one.token, Some(&two.token)) {
            return Err(IdentityError::Refused(format!("decision {} says so already", known.decision_id)));
        }
        match self.known.decision_about(against, &one.token, Some(&two.token)) {
            None => Ok(()),
            Some(known) => Err(IdentityError::Refused(format!(
                "{} forbids it; take that back first: holdfast identity withdraw {} --why …",
                told(known),
                known.decision_id
            ))),
        }
    }

    /// The identifiers of the decision that is to be taken back.
    fn check_withdrawal(&self, id: i64) -> Result<(u32, Option<u32>)> {
        let decisions = &self.known.decisions;
        let Some(known) = decisions.iter().find(|decision| decision.decision_id == id) else {
            return Err(IdentityError::Unknown(format!(
                "there is no decision {id}: `holdfast identity decisions` lists them"
            )));
        };
        if known.kind == DecisionKind::Withdraw {
            return Err(IdentityError::Refused(format!(
                "decision {id} took another one back; to have that again, make it anew"
            )));
        }
        if let Some(later) = decisions.iter().find(|decision| decision.withdraws == Some(id)) {
            let later = later.decision_id;
            return Err(IdentityError::Refused(format!("decision {id} was taken back already, by decision {later}")));
        }
        let node = |identifier: &Identifier| {
            let damaged = || IdentityError::Damaged(format!("decision {id} is about an identifier that is gone"));
            self.known.node_of(&identifier.token)?.ok_or_else(damaged)
        };
        Ok((node(&known.left)?, known.right.as_ref().map(node).transpose()?))
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

const fn first_life(node: u32) -> Member {
    Member { node, life: 0 }
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

fn effects(known: &Known, moved: &Moved, examples: usize) -> Effects {
    let mut effects = Effects { merged: 0, split: 0, minted: 0, examples: Vec::new() };
    let mut split: HashSet<CustomerId> = HashSet::new();
    for event in &moved.events {
        match event {
            Event::Merged { .. } => effects.merged += 1,
            Event::Minted { .. } => effects.minted += 1,
            Event::Split { from, .. } => {
                effects.minted += 1;
                split.insert(*from);
            }
            Event::Moved { from, .. } => _ = split.insert(*from),
            Event::Joined { .. } | Event::Left { .. } | Event::Ended { .. } | Event::Refounded { .. } => {}
        }
        let Some(row) = HistoryRow::of(event).filter(|_| effects.examples.len() < examples) else { continue };
        let members = match event {
            Event::Minted { members, .. }
            | Event::Split { members, .. }
            | Event::Moved { members, .. }
            | Event::Merged { members, .. } => members.as_slice(),
            _ => &[],
        };
        let (id, what) = (row.id, in_types(known, members));
        let words = match (row.kind, row.other) {
            ("merged", Some(from)) => format!("{from} goes up in {id}, with {what}"),
            ("split", Some(from)) => format!("{id} is new, split from {from}, with {what}"),
            ("moved", Some(from)) => format!("{id} gets {what} of {from}"),
            ("ended", _) => format!("nothing is left of {id}"),
            _ => format!("{id} is new, with {what}"),
        };
        effects.examples.push(Effect {
            kind: row.kind,
            customer_id: id,
            other_customer_id: row.other,
            identifiers: members.len(),
            words,
        });
    }
    effects.split = split.len() as u64;
    effects
}

/// `member_id 3f2a9c01…, phone 77aa0123…`, and of many only how many there are of each type.
fn in_types(known: &Known, members: &[Member]) -> String {
    const NAMED_MAX: usize = 4;
    if members.len() <= NAMED_MAX {
        let names: Vec<String> = members.iter().map(|member| known.identifier(member.node).to_string()).collect();
        return names.join(", ");
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for member in members {
        *counts.entry(known.identifier(member.node).identifier_type).or_default() += 1;
    }
    let counts: Vec<String> = counts.into_iter().map(|(name, count)| format!("{name} × {count}")).collect();
    counts.join(", ")
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
