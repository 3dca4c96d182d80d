//! Pairs of customers whose records are alike, for a person to decide.

use std::collections::{BTreeMap, HashSet};

use holdfast_linkage::probability;
use serde::Serialize;

use crate::customer::CustomerId;
use crate::decisions::{DecisionKind, Identifier, in_force};
use crate::inquiry::Inquiry;
use crate::known::Alike;

/// Two customers that may be one.
#[derive(Debug, Clone, Serialize)]
pub struct ReviewPair {
    /// One.
    pub left_customer_id: CustomerId,
    /// The other.
    pub right_customer_id: CustomerId,
    /// The identifier that speaks for the record of one.
    pub left: Identifier,
    /// The identifier that speaks for the record of the other.
    pub right: Identifier,
    /// The probability that they are one person.
    pub score: f64,
    /// The logarithm to base 2 of its odds.
    pub weight: f64,
    /// Attributes that agree, in words.
    pub agree: Vec<String>,
    /// Attributes that do not.
    pub differ: Vec<String>,
    /// Why they are not joined.
    pub why: &'static str,
}

impl Inquiry {
    /// Pairs to decide, those that are likeliest first. A link or unlink of the two customers takes a pair off.
    pub fn review(&self) -> Vec<ReviewPair> {
        let pairs = self.to_review().into_iter();
        let mut found: Vec<ReviewPair> = pairs
            .map(|((left_customer_id, right_customer_id), ((left, right), alike))| {
                let known = &self.known;
                let parts = known.words_of(&alike).split("; ").filter(|part| !part.is_empty());
                let (differ, agree): (Vec<&str>, Vec<&str>) = parts.partition(|part| part.ends_with(" differs"));
                let owned = |parts: Vec<&str>| parts.into_iter().map(str::to_owned).collect();
                ReviewPair {
                    left_customer_id,
                    right_customer_id,
                    left: known.identifier(left),
                    right: known.identifier(right),
                    score: probability(alike.weight),
                    weight: alike.weight,
                    agree: owned(agree),
                    differ: owned(differ.into_iter().map(|part| part.trim_end_matches(" differs")).collect()),
                    why: self.why(&alike),
                }
            })
            .collect();
        found.sort_by(|one, two| {
            let ids = |pair: &ReviewPair| (pair.left_customer_id, pair.right_customer_id);
            two.weight.total_cmp(&one.weight).then_with(|| ids(one).cmp(&ids(two)))
        });
        found
    }

    /// Whether records this alike are joined, unless a rule or decision forbids it.
    pub(crate) fn is_joining(&self, alike: &Alike) -> bool {
        !alike.names_differ && alike.weight >= f64::from(self.known.graph.rules().weight_min())
    }

    fn why(&self, alike: &Alike) -> &'static str {
        let is_above = alike.weight >= f64::from(self.known.graph.rules().weight_min());
        match (is_above, alike.names_differ) {
            (true, true) => "the names are clearly different",
            (true, false) => "a rule keeps them apart",
            (false, _) => "not sure enough",
        }
    }

    /// The best pair of identifiers of every two customers to decide about. Where the names differ, only what is sure enough but for that.
    pub(crate) fn to_review(&self) -> BTreeMap<(CustomerId, CustomerId), ((u32, u32), Alike)> {
        let known = &self.known;
        let bar = f64::from(known.graph.rules().weight_min());
        let mut apart: HashSet<(CustomerId, CustomerId)> = HashSet::new();
        for decision in in_force(&known.decisions).filter(|decision| decision.kind == DecisionKind::Unlink) {
            let customer = |identifier: &Identifier| {
                known.decided_about(identifier, decision).ok().flatten().and_then(|member| known.customer_of(member))
            };
            let right = decision.right.as_ref().and_then(customer);
            if let (Some(left), Some(right)) = (customer(&decision.left), right) {
                apart.insert((left.min(right), left.max(right)));
            }
        }
        let mut found: BTreeMap<(CustomerId, CustomerId), ((u32, u32), Alike)> = BTreeMap::new();
        for (&(one, two), &alike) in &known.alike {
            let Some((left, right)) = known.customers_alike((one, two), &alike) else { continue };
            let is_sure = alike.weight >= bar;
            let pair = (left.min(right), left.max(right));
            if left == right || (alike.names_differ && !is_sure) || apart.contains(&pair) {
                continue;
            }
            let nodes = if left < right { (one, two) } else { (two, one) };
            if found.get(&pair).is_none_or(|(_, known)| alike.weight > known.weight) {
                found.insert(pair, (nodes, alike));
            }
        }
        found
    }
}

/// A probability near one tells more by what is missing.
pub(crate) fn in_percent(weight: f64) -> String {
    let percent = 100.0 * probability(weight);
    if percent > 99.99 { "more than 99.99 %".to_owned() } else { format!("{percent:.2} %") }
}
