//! Dry runs: what other rules, or another guard, would make of the same evidence.

use std::collections::HashMap;

use crate::Result;
use crate::error::GraphError;
use crate::identifier::Member;
use crate::incremental::IdentityGraph;
use crate::resolution::Resolution;
use crate::rules::{Guard, Rules};

/// What changes when one set of rules is replaced by another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    /// Clusters under the first rules.
    pub clusters_before: u64,
    /// Clusters under the second.
    pub clusters_after: u64,
    /// Clusters under the second rules that hold members of several under the first.
    pub merges: u64,
    /// Clusters under the first rules whose members are in several under the second.
    pub splits: u64,
    /// Some merges: the parts, each with its members.
    pub merge_examples: Vec<Vec<Vec<Member>>>,
    /// Some splits: the parts, each with its members.
    pub split_examples: Vec<Vec<Vec<Member>>>,
}

/// What a guard of some cap leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardPoint {
    /// The cap.
    pub cap: u32,
    /// How many clusters there are.
    pub clusters: u64,
    /// Members of the largest one.
    pub largest: u64,
    /// Edges that the guard has cut.
    pub edges_cut: u64,
}

impl IdentityGraph {
    /// What would change on the whole graph if the rules were `after` and not `before`, with up to `examples` of each kind. Nothing is changed.
    ///
    /// A life that an identifier has under one set of rules alone is compared with its first life under the other.
    ///
    /// # Errors
    /// [`GraphError::UnknownType`] when rules lack a type of the graph; [`GraphError::NotLoaded`] on a part of a graph.
    pub fn diff(&self, before: &Rules, after: &Rules, examples: usize) -> Result<Difference> {
        let one = self.under(before)?;
        let two = self.under(after)?;
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        self.visit_both(&one, &two, |_, labels| pairs.push(labels));
        let mut difference = Difference::default();
        pairs.sort_unstable();
        pairs.dedup();
        let mut split = Vec::new();
        for same in pairs.chunk_by(|one, two| one.0 == two.0) {
            difference.clusters_before += 1;
            if same.len() > 1 {
                difference.splits += 1;
                split.extend((split.len() < examples).then_some(same[0].0));
            }
        }
        pairs.sort_unstable_by_key(|&(before, after)| (after, before));
        let mut merged = Vec::new();
        for same in pairs.chunk_by(|one, two| one.1 == two.1) {
            difference.clusters_after += 1;
            if same.len() > 1 {
                difference.merges += 1;
                merged.extend((merged.len() < examples).then_some(same[0].1));
            }
        }
        drop(pairs);
        // The members of the examples, by the cluster they are an example of and the part they are in.
        let place = |labels: &[u32], label: u32| labels.iter().position(|&known| known == label);
        let mut splits: Vec<HashMap<u32, Vec<Member>>> = vec![HashMap::new(); split.len()];
        let mut merges: Vec<HashMap<u32, Vec<Member>>> = vec![HashMap::new(); merged.len()];
        self.visit_both(&one, &two, |member, (before, after)| {
            if let Some(place) = place(&split, before) {
                splits[place].entry(after).or_default().push(member);
            }
            if let Some(place) = place(&merged, after) {
                merges[place].entry(before).or_default().push(member);
            }
        });
        let in_order = |parts: HashMap<u32, Vec<Member>>| {
            let mut parts: Vec<Vec<Member>> = parts.into_values().collect();
            parts.sort_unstable();
            parts
        };
        difference.split_examples = splits.into_iter().map(in_order).collect();
        difference.merge_examples = merges.into_iter().map(in_order).collect();
        Ok(difference)
    }

    /// What guards of these caps would leave, with the other rules as they are. The cap is a matter of judgement; the curve shows what it costs.
    ///
    /// # Errors
    /// [`GraphError::Setting`] for a guard that cannot be followed; [`GraphError::NotLoaded`] on a part of a graph.
    pub fn guard_curve(&self, caps: &[u32], step: f32) -> Result<Vec<GuardPoint>> {
        self.check_whole()?;
        let mut curve = Vec::with_capacity(caps.len());
        for &cap in caps {
            let rules = self.rules.clone().with_guard(Some(Guard { cap, step }))?;
            let (resolution, edges_cut) = Resolution::with_cuts(&self.evidence, &rules, self.threads);
            let mut labels: Vec<u32> = Vec::new();
            for node in 0..self.nodes() {
                labels.extend(resolution.members_of(node).filter_map(|member| resolution.label(member)));
            }
            labels.sort_unstable();
            let (mut clusters, mut largest) = (0, 0);
            for cluster in labels.chunk_by(|one, two| one == two) {
                clusters += 1;
                largest = largest.max(cluster.len() as u64);
            }
            curve.push(GuardPoint { cap, clusters, largest, edges_cut });
        }
        Ok(curve)
    }

    /// The clusters that rules make of the evidence.
    pub(crate) fn under(&self, rules: &Rules) -> Result<Resolution> {
        self.check_whole()?;
        let types = rules.types().len();
        if let Some(&rank) = self.evidence.ranks.iter().find(|&&rank| usize::from(rank) >= types) {
            return Err(GraphError::UnknownType { rank, types });
        }
        if *rules == self.rules {
            return Ok(self.resolution.clone());
        }
        Ok(Resolution::of(&self.evidence, rules, self.threads))
    }

    /// Each member of either side with its cluster on both.
    fn visit_both(&self, one: &Resolution, two: &Resolution, mut visit: impl FnMut(Member, (u32, u32))) {
        for node in 0..self.nodes() {
            let lives = one.members_of(node).count().max(two.members_of(node).count());
            for life in (0..lives).map(|life| u16::try_from(life).unwrap_or(u16::MAX)) {
                let first = Member { node, life: 0 };
                let member = Member { node, life };
                let label = |of: &Resolution| of.label(member).or_else(|| of.label(first));
                if let (Some(before), Some(after)) = (label(one), label(two)) {
                    visit(member, (before, after));
                }
            }
        }
    }
}
