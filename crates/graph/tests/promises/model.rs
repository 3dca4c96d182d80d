//! The rules once more, written for reading and not for speed: every pair of everything, one global list of edges, no components but for the guard.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_graph::{Change, Edge, EdgeKey, Guard, IdentityGraph, Limit, Link, Rules, TypeRule};
use proptest::prelude::*;

/// Identifiers of the test world, by number; the type is `number % TYPES`.
pub(crate) const IDENTIFIERS: u32 = 20;
pub(crate) const TYPES: u32 = 5;

/// Member id, union id, phone, device, and records that are compared.
pub(crate) fn rules(variant: [u8; 5], guard: Option<Guard>) -> Rules {
    let types = variant.iter().zip(0..).map(|(&variant, rank)| rule(rank, variant)).collect();
    Rules::new(types).unwrap().with_weight_min(0.5).unwrap().with_guard(guard).unwrap()
}

/// One of four rules for each type.
pub(crate) fn rule(rank: u8, variant: u8) -> TypeRule {
    let plain = TypeRule::default();
    let limit = |values, window| Some(Limit { values, window });
    match (rank, variant % 4) {
        (0, 0 | 1) | (1, 0) => TypeRule { unique: true, ..plain },
        (0, 2) => TypeRule { unique: true, hub_above: Some(3), ..plain },
        (1, 1) => TypeRule { unique: true, limit: limit(1, None), ..plain },
        (2, 0) => TypeRule { shared_above: Some(1), life_gap: Some(12), ..plain },
        (2, 1) => TypeRule { shared_above: Some(2), limit: limit(2, Some(10)), ..plain },
        (2, 2) => TypeRule { life_gap: Some(5), limit: limit(1, Some(20)), ..plain },
        (3, 0) => TypeRule { hub_above: Some(3), limit: limit(2, None), ..plain },
        (3, 1) => TypeRule { shared_above: Some(1), ..plain },
        (3, 2) => TypeRule { shared_above: Some(1), hub_above: Some(5), life_gap: Some(20), ..plain },
        _ => plain,
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Add { left: u32, right: u32, strength: u8, weight: Option<i8>, at: i64, lasts: i64, undated: bool },
    Remove { which: usize },
    Block(u32),
    Unblock(u32),
    Link(u32, u32, i64),
    WithdrawLink { which: usize },
    Unlink(u32, u32),
    Allow { which: usize },
    Rule(u8, u8),
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let node = || 0..IDENTIFIERS;
    let add = (node(), node(), 0..3_u8, prop::option::of(-1..6_i8), 0..60_i64, 0..6_i64, 0..12_u8).prop_map(
        |(left, right, strength, weight, at, lasts, undated)| {
            // Mostly certain evidence, and strength 2 alone is probabilistic.
            let weight = weight.filter(|_| strength == 2);
            Step::Add { left, right, strength, weight, at, lasts, undated: undated == 0 }
        },
    );
    prop_oneof![
        12 => add,
        3 => any::<usize>().prop_map(|which| Step::Remove { which }),
        1 => node().prop_map(Step::Block),
        1 => node().prop_map(Step::Unblock),
        1 => (node(), node(), 0..60_i64).prop_map(|(left, right, at)| Step::Link(left, right, at)),
        1 => any::<usize>().prop_map(|which| Step::WithdrawLink { which }),
        1 => (node(), node()).prop_map(|(left, right)| Step::Unlink(left, right)),
        1 => any::<usize>().prop_map(|which| Step::Allow { which }),
        1 => (0..5_u8, 0..4_u8).prop_map(|(rank, variant)| Step::Rule(rank, variant)),
    ]
}

pub(crate) fn batches() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 1..12), 1..9)
}

pub(crate) fn guards() -> impl Strategy<Value = Option<Guard>> {
    prop::option::of((1..6_u32, 1..3_u8).prop_map(|(cap, step)| Guard { cap, step: f32::from(step) }))
}

/// All that is known, as sets.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) rules: Rules,
    pub(crate) edges: BTreeMap<(u32, u32, u8), Edge>,
    pub(crate) blocked: BTreeSet<u32>,
    pub(crate) links: BTreeMap<(u32, u32), i64>,
    pub(crate) forbidden: BTreeSet<(u32, u32)>,
}

/// A member by identifier and life.
pub(crate) type Name = (u32, u16);
/// First and last moment of each life, and whether it joins; `None` when the identifier joins nobody.
type Lives = Option<Vec<(i64, i64, bool)>>;
pub(crate) type Partition = BTreeSet<BTreeSet<Name>>;

pub(crate) fn token(identifier: u32) -> u128 {
    // The order of tokens is not that of numbers.
    u128::from(identifier * 7919 % 101) << 100 | u128::from(identifier)
}

pub(crate) fn identifier(token: u128) -> u32 {
    u32::try_from(token & 0xffff).unwrap()
}

pub(crate) fn rank(identifier: u32) -> u8 {
    u8::try_from(identifier % TYPES).unwrap()
}

fn pair(left: u32, right: u32) -> (u32, u32) {
    (left.min(right), left.max(right))
}

impl Model {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            edges: BTreeMap::new(),
            blocked: BTreeSet::new(),
            links: BTreeMap::new(),
            forbidden: BTreeSet::new(),
        }
    }

    /// Follows a step; returns the change for a graph in which identifiers have these nodes, or `None` where the step has no meaning.
    pub(crate) fn follow(&mut self, step: &Step, node: &dyn Fn(u32) -> u32) -> Option<Change> {
        match *step {
            Step::Add { left, right, strength, weight, at, lasts, undated } => {
                let (first_seen, last_seen) = if undated { holdfast_graph::UNDATED } else { (at, at + lasts) };
                let weight = weight.map(f32::from);
                let edge = Edge { left, right, strength, weight, first_seen, last_seen, records: 1, source: left };
                let (low, high) = pair(left, right);
                self.edges
                    .entry((low, high, strength))
                    .and_modify(|known| {
                        known.first_seen = known.first_seen.min(first_seen);
                        known.last_seen = known.last_seen.max(last_seen);
                        known.weight = known.weight.and_then(|one| weight.map(|two| one.max(two)));
                        known.records += 1;
                    })
                    .or_insert(Edge { left: low, right: high, ..edge });
                Some(Change::Add(Edge { left: node(left), right: node(right), ..edge }))
            }
            Step::Remove { which } => {
                let key = *self.edges.keys().nth(which % self.edges.len().max(1))?;
                self.edges.remove(&key);
                Some(Change::Remove(EdgeKey { left: node(key.0), right: node(key.1), strength: key.2 }))
            }
            Step::Block(of) => {
                self.blocked.insert(of);
                Some(Change::Block(node(of)))
            }
            Step::Unblock(of) => {
                self.blocked.remove(&of);
                Some(Change::Unblock(node(of)))
            }
            Step::Link(left, right, at) => {
                let pair = pair(left, right);
                if left == right || self.forbidden.contains(&pair) {
                    return None;
                }
                self.links.insert(pair, at);
                Some(Change::Link(Link { left: node(left), right: node(right), at, source: 0 }))
            }
            Step::WithdrawLink { which } => {
                let (left, right) = *self.links.keys().nth(which % self.links.len().max(1))?;
                self.links.remove(&(left, right));
                Some(Change::WithdrawLink { left: node(left), right: node(right) })
            }
            Step::Unlink(left, right) => {
                if left == right {
                    return None;
                }
                self.links.remove(&pair(left, right));
                self.forbidden.insert(pair(left, right));
                Some(Change::Unlink { left: node(left), right: node(right) })
            }
            Step::Allow { which } => {
                let (left, right) = *self.forbidden.iter().nth(which % self.forbidden.len().max(1))?;
                self.forbidden.remove(&(left, right));
                Some(Change::Allow { left: node(left), right: node(right) })
            }
            Step::Rule(rank, variant) => {
                let rule = rule(rank, variant);
                self.rules = self.rules.with_type(rank, rule).unwrap();
                Some(Change::Rule { rank, rule })
            }
        }
    }

    fn rule(&self, identifier: u32) -> TypeRule {
        self.rules.types()[usize::from(rank(identifier))]
    }

    /// The certain edges at an identifier, with the other end: that records were found alike says not when it was used, nor with what.
    fn certain_edges_of(&self, of: u32) -> Vec<(u32, Edge)> {
        self.edges
            .values()
            .filter(|edge| edge.weight.is_none() && (edge.left == of || edge.right == of))
            .map(|edge| (if edge.left == of { edge.right } else { edge.left }, *edge))
            .collect()
    }

    /// The lives of an identifier, each with whether it joins; `None`: it joins nobody at all.
    fn lives(&self, of: u32) -> Lives {
        let rule = self.rule(of);
        let partners: BTreeSet<u32> =
            self.certain_edges_of(of).iter().map(|&(other, _)| other).filter(|&o| o != of).collect();
        if self.blocked.contains(&of) || rule.hub_above.is_some_and(|most| partners.len() > most as usize) {
            return None;
        }
        // Unique values with their first and last moment.
        let mut values: Vec<(i64, i64, u32)> = partners
            .into_iter()
            .filter(|&other| self.rule(other).unique && !self.blocked.contains(&other))
            .map(|other| {
                let edges = self.certain_edges_of(of).into_iter().filter(|&(end, _)| end == other);
                let seen: Vec<(i64, i64)> = edges.map(|(_, edge)| (edge.first_seen, edge.last_seen)).collect();
                let first = seen.iter().map(|seen| seen.0).min().unwrap();
                (first, seen.iter().map(|seen| seen.1).max().unwrap(), other)
            })
            .collect();
        values.sort_unstable();
        if rule.unique || values.is_empty() {
            return Some(vec![(i64::MIN, i64::MAX, true)]);
        }
        // Eras: a value belongs to the one before it when anything before it reaches near enough.
        let mut eras: Vec<Vec<(i64, i64, u32)>> = Vec::new();
        for value in values {
            let reach = eras.last().map(|era| era.iter().map(|value| value.1).max().unwrap());
            let is_far =
                rule.life_gap.is_some_and(|gap| reach.is_none_or(|reach| value.0.saturating_sub(reach) >= gap));
            match eras.last_mut() {
                Some(era) if !is_far => era.push(value),
                _ => eras.push(vec![value]),
            }
        }
        // Lives: an era opens one when it contradicts the one before, and both were longer than a moment.
        let mut lives: Vec<Vec<(i64, i64, u32)>> = Vec::new();
        for era in eras {
            let contradicts =
                |life: &Vec<(i64, i64, u32)>| life.iter().any(|a| era.iter().any(|b| rank(a.2) == rank(b.2)));
            let is_moment = |values: &Vec<(i64, i64, u32)>| {
                values.iter().map(|value| value.0).min() == values.iter().map(|value| value.1).max()
            };
            match lives.last_mut() {
                Some(life) if !contradicts(life) || is_moment(life) || is_moment(&era) => life.extend(era),
                _ => lives.push(era),
            }
        }
        let joins = |life: &[(i64, i64, u32)]| {
            let most = (0..5).map(|of| life.iter().filter(|value| rank(value.2) == of).count()).max().unwrap();
            rule.shared_above.is_none_or(|above| most <= above as usize)
        };
        let lives: Vec<(i64, i64, bool)> = lives
            .iter()
            .map(|life| {
                let first = life.iter().map(|value| value.0).min().unwrap();
                (first, life.iter().map(|value| value.1).max().unwrap(), joins(life))
            })
            .collect();
        lives.iter().any(|life| life.2).then_some(lives)
    }

    /// The one life that an interval belongs to.
    fn life(lives: &[(i64, i64, bool)], first: i64, last: i64) -> Option<usize> {
        let distance = |life: &(i64, i64, bool)| {
            let (first, last) = (i128::from(first), i128::from(last));
            (i128::from(life.0) - last).max(first - i128::from(life.1)).max(0)
        };
        if lives.iter().filter(|life| distance(life) == 0).count() > 1 {
            return None;
        }
        (0..lives.len()).min_by_key(|&life| (distance(&lives[life]), life))
    }

    /// The clusters.
    pub(crate) fn clusters(&self) -> Partition {
        let lives: Vec<Lives> = (0..IDENTIFIERS).map(|of| self.lives(of)).collect();
        let name = |of: u32, life: usize| (of, u16::try_from(life).unwrap());

        // Candidates: order and ends.
        let mut usable = Vec::new();
        for edge in self.edges.values() {
            let end = |of: u32| {
                let lives = lives[of as usize].as_ref()?;
                let life = Self::life(lives, edge.first_seen, edge.last_seen)?;
                lives[life].2.then_some(name(of, life))
            };
            if edge.left != edge.right
                && edge.weight.is_none_or(|weight| weight >= self.rules.weight_min())
                && let (Some(left), Some(right)) = (end(edge.left), end(edge.right))
            {
                usable.push((*edge, left, right));
            }
        }
        let mut candidates = Vec::new();
        for (edge, left, right) in self.guarded(usable) {
            // Weights are whole numbers up to 5; certain evidence comes before them.
            let weight =
                edge.weight.map_or(0, |weight| 1 + (0..=6_i16).filter(|&whole| f32::from(whole) > weight).count());
            // When records were found alike does not matter.
            let undated_last =
                if edge.first_seen == i64::MIN || edge.weight.is_some() { i64::MAX } else { edge.first_seen };
            candidates.push((1, edge.strength, weight, self.ends(left.0, right.0), undated_last, left, right));
        }
        for (&(left, right), &at) in &self.links {
            let end =
                |of: u32| name(of, lives[of as usize].as_ref().map_or(0, |lives| Self::life(lives, at, at).unwrap()));
            candidates.push((0, 0, 0, self.ends(left, right), at, end(left), end(right)));
        }
        candidates.sort_by_key(|&(kind, strength, weight, (ranks, tokens), at, ..)| {
            (kind, strength, weight, ranks, at, tokens)
        });

        // Everybody alone; then one candidate after the other.
        let mut clusters: Vec<BTreeSet<Name>> = Vec::new();
        for of in (0..IDENTIFIERS).filter(|&of| self.is_present(of)) {
            for life in 0..lives[of as usize].as_ref().map_or(1, Vec::len) {
                clusters.push(BTreeSet::from([name(of, life)]));
            }
        }
        for (kind, .., left, right) in candidates {
            let place = |member: &Name| clusters.iter().position(|cluster| cluster.contains(member)).unwrap();
            let (one, two) = (place(&left), place(&right));
            if one != two && self.may_join(kind == 0, &clusters[one], &clusters[two], &lives) {
                let moved = std::mem::take(&mut clusters[two]);
                clusters[one].extend(moved);
                clusters.swap_remove(two);
            }
        }
        clusters.into_iter().collect()
    }

    fn ends(&self, left: u32, right: u32) -> ((u8, u8), (u128, u128)) {
        let (low, high) = (rank(left).min(rank(right)), rank(left).max(rank(right)));
        ((low, high), (token(left).min(token(right)), token(left).max(token(right))))
    }

    fn is_present(&self, of: u32) -> bool {
        self.edges.values().any(|edge| edge.left == of || edge.right == of)
            || self.links.keys().any(|&(left, right)| left == of || right == of)
    }

    /// What the guard leaves. Links count for the size of a component as certain evidence does.
    fn guarded(&self, usable: Vec<(Edge, Name, Name)>) -> Vec<(Edge, Name, Name)> {
        let Some(guard) = self.rules.guard() else { return usable };
        let lives: Vec<_> = (0..IDENTIFIERS).map(|of| self.lives(of)).collect();
        let linked: Vec<(Name, Name)> = self
            .links
            .iter()
            .map(|(&(left, right), &at)| {
                let end = |of: u32| {
                    let life = lives[of as usize].as_ref().map_or(0, |lives| Self::life(lives, at, at).unwrap());
                    (of, u16::try_from(life).unwrap())
                };
                (end(left), end(right))
            })
            .collect();
        let mut kept = Vec::new();
        let mut waiting = vec![(usable, linked)];
        while let Some((edges, links)) = waiting.pop() {
            let ties = edges.iter().map(|edge| (edge.1, edge.2)).chain(links.iter().copied());
            for component in connected(ties) {
                let own: Vec<_> = edges.iter().filter(|edge| component.contains(&edge.1)).copied().collect();
                let own_links: Vec<_> = links.iter().filter(|link| component.contains(&link.0)).copied().collect();
                let weakest = own.iter().filter_map(|(edge, ..)| edge.weight).reduce(f32::min);
                match weakest {
                    Some(weakest) if component.len() > guard.cap as usize => {
                        let mut bar = self.rules.weight_min();
                        while bar <= weakest {
                            bar += guard.step;
                        }
                        let stays = own.into_iter().filter(|(edge, ..)| edge.weight.is_none_or(|weight| weight >= bar));
                        waiting.push((stays.collect(), own_links));
                    }
                    _ => kept.extend(own),
                }
            }
        }
        kept
    }

    fn may_join(&self, is_link: bool, one: &BTreeSet<Name>, two: &BTreeSet<Name>, lives: &[Lives]) -> bool {
        let pairs = || one.iter().flat_map(|a| two.iter().map(move |b| (a.0, b.0)));
        if pairs().any(|(a, b)| self.forbidden.contains(&pair(a, b))) {
            return false;
        }
        if is_link {
            return true;
        }
        if pairs().any(|(a, b)| rank(a) == rank(b) && self.rule(a).unique) {
            return false;
        }
        self.rules.types().iter().zip(0..).all(|(rule, of)| {
            let Some(limit) = rule.limit else { return true };
            let seen = |cluster: &BTreeSet<Name>| -> Vec<(i64, i64)> {
                cluster.iter().filter(|name| rank(name.0) == of).map(|&name| self.seen(name, lives)).collect()
            };
            let (one, two) = (seen(one), seen(two));
            let both = [one.clone(), two.clone()].concat();
            let most = |seen: &[(i64, i64)]| {
                let Some(window) = limit.window else { return seen.len() };
                // Windows that begin where something ends are enough.
                let met = |from: i64| {
                    seen.iter().filter(|seen| seen.0 <= from.saturating_add(window) && seen.1 >= from).count()
                };
                seen.iter().map(|seen| met(seen.1)).max().unwrap_or(0)
            };
            one.is_empty()
                || two.is_empty()
                || most(&both) <= limit.values as usize
                || most(&both) <= most(&one).max(most(&two))
        })
    }

    /// First and last moment of a member; undated evidence counts when there is no other.
    fn seen(&self, (of, life): Name, lives: &[Lives]) -> (i64, i64) {
        let own = lives[of as usize].clone().unwrap_or(vec![(i64::MIN, i64::MAX, true)]);
        let edges = self.certain_edges_of(of).into_iter().map(|(_, edge)| (edge.first_seen, edge.last_seen));
        let all: Vec<_> = edges.filter(|seen| Self::life(&own, seen.0, seen.1) == Some(usize::from(life))).collect();
        let dated: Vec<_> = all.iter().copied().filter(|&seen| seen != holdfast_graph::UNDATED).collect();
        let linked = self.links.iter().filter(|(pair, _)| pair.0 == of || pair.1 == of).map(|(_, &at)| (at, at));
        let linked: Vec<_> =
            linked.filter(|seen| Self::life(&own, seen.0, seen.1) == Some(usize::from(life))).collect();
        let used = if !dated.is_empty() {
            dated
        } else if !all.is_empty() {
            all
        } else if !linked.is_empty() {
            linked
        } else {
            vec![(own[usize::from(life)].0, own[usize::from(life)].1)]
        };
        (used.iter().map(|seen| seen.0).min().unwrap(), used.iter().map(|seen| seen.1).max().unwrap())
    }

    /// The same facts in a fresh graph, with other node numbers and another order, worked out at once.
    pub(crate) fn fresh_graph(&self, threads: usize) -> IdentityGraph {
        let mut graph = IdentityGraph::new(self.rules.clone()).with_threads(threads);
        for of in (0..IDENTIFIERS).rev() {
            graph.node(token(of), rank(of)).unwrap();
        }
        let node = |of: u32| IDENTIFIERS - 1 - of;
        let decisions: Vec<Change> = self
            .blocked
            .iter()
            .map(|&of| Change::Block(node(of)))
            .chain(self.links.iter().map(|(&(left, right), &at)| {
                Change::Link(Link { left: node(left), right: node(right), at, source: 0 })
            }))
            .chain(self.forbidden.iter().map(|&(left, right)| Change::Unlink { left: node(left), right: node(right) }))
            .collect();
        graph.apply(&decisions).unwrap();
        let edges = self.edges.values().rev();
        graph.build(edges.map(|edge| Edge { left: node(edge.left), right: node(edge.right), ..*edge })).unwrap();
        graph
    }
}

/// Connected sets of members.
fn connected(ties: impl Iterator<Item = (Name, Name)>) -> Vec<BTreeSet<Name>> {
    let mut sets: Vec<BTreeSet<Name>> = Vec::new();
    for (left, right) in ties {
        let (met, mut rest): (Vec<_>, Vec<_>) =
            sets.into_iter().partition(|set| set.contains(&left) || set.contains(&right));
        rest.push(met.into_iter().flatten().chain([left, right]).collect());
        sets = rest;
    }
    sets
}

/// A graph's clusters by identifiers.
pub(crate) fn partition(graph: &IdentityGraph) -> Partition {
    let name = |member: &holdfast_graph::Member| (identifier(graph.token(member.node).unwrap()), member.life);
    graph.clusters().iter().map(|cluster| cluster.iter().map(name).collect()).collect()
}
