//! What people decide of identity, and what that will do.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use holdfast_engine::SessionSettings;
use holdfast_graph::{Event, Member};
use holdfast_lake::Lake;
use serde::Serialize;

use super::{Inquiry, Subject, told};
use crate::Result;
use crate::customer::CustomerId;
use crate::decisions::{Decision, DecisionKind, Identifier, in_force, record};
use crate::error::IdentityError;
use crate::identifier::IdentifierTokens;
use crate::known::{Known, Moved};
use crate::resolve::HistoryRow;

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
            Wish::Link(left, right) | Wish::Unlink(left, right) if left.member.node == right.member.node => {
                return refused("both are the same identifier".to_owned());
            }
            Wish::Link(left, right) => {
                let (left, right) = (self.standing_for(left)?, self.standing_for(right)?);
                self.check_pair(left, right, DecisionKind::Unlink, DecisionKind::Link)?;
                (DecisionKind::Link, left, Some(right), None)
            }
            Wish::Unlink(left, right) => {
                let (left, right) = (self.standing_for(left)?, self.standing_for(right)?);
                self.check_pair(left, right, DecisionKind::Link, DecisionKind::Unlink)?;
                (DecisionKind::Unlink, left, Some(right), None)
            }
            Wish::Block(subject) => {
                let identifier = self.known.identifier(subject.member.node);
                if let Some(known) = self.known.decision_about(DecisionKind::Block, &identifier.token, None) {
                    return refused(format!("decision {} blocks it already", known.decision_id));
                }
                (DecisionKind::Block, subject.member.node, None, None)
            }
            Wish::Withdraw(id) => {
                let (left, right) = self.check_withdrawal(id)?;
                (DecisionKind::Withdraw, left, right, Some(id))
            }
        };
        let customer = |node: u32| -> Result<Option<String>> {
            let member = self.known.graph.newest_life(node)?;
            Ok(self.known.customer_of(member).map(|id| id.to_string()))
        };
        let decision = Decision {
            decision_id: self.known.taken.decision + 1,
            kind,
            left: self.known.identifier(left),
            right: right.map(|right| self.known.identifier(right)),
            left_customer_id: customer(left)?,
            right_customer_id: right.map(customer).transpose()?.flatten(),
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
            let member = |identifier: &Identifier| self.known.decided_about(identifier, decision).ok().flatten();
            member(&decision.left).zip(decision.right.as_ref().and_then(member))
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

    /// The identifier by which a decision names a subject: of a customer its founding one, or where that changed hands another, because a decision speaks of whom it has now.
    fn standing_for(&self, subject: Subject) -> Result<u32> {
        let known = &self.known;
        let is_now = |member: Member| Ok::<_, IdentityError>(known.graph.newest_life(member.node)? == member);
        let Some(id) = subject.id.filter(|_| !is_now(subject.member).unwrap_or(true)) else {
            return Ok(subject.member.node);
        };
        let of_id = known.assignment.members().filter(|&(member, of)| of == id && is_now(member).unwrap_or(false));
        let rank = |member: Member| (known.graph.rank(member.node), known.graph.token(member.node));
        let strongest = of_id.map(|(member, _)| member).min_by_key(|&member| rank(member));
        strongest.map(|member| member.node).ok_or_else(|| {
            IdentityError::Refused(format!(
                "all that {id} had belongs to somebody else now, and a decision is about whom an identifier has now: name the others by their identifiers"
            ))
        })
    }

    fn check_pair(&self, left: u32, right: u32, against: DecisionKind, same: DecisionKind) -> Result<()> {
        let (one, two) = (self.known.identifier(left), self.known.identifier(right));
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
