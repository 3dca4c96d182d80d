//! Why two identifiers are one customer's, or why they are not.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use crate::Result;
use crate::components::Sets;
use crate::error::GraphError;
use crate::evidence::{Edge, Link};
use crate::greedy::{Refusal, Resolver, Tie, Verdict, refusal_at_ends};
use crate::identifier::{Member, life_at};
use crate::incremental::IdentityGraph;

/// Why two members are together or apart.
#[derive(Debug, Clone, PartialEq)]
pub enum Explanation {
    /// They are in one cluster: the path whose weakest step is the strongest, of these one with the fewest steps. Empty from a member to itself.
    Together(Vec<Step>),
    /// They are in two clusters: of all paths between them one with the fewest refused steps, then the fewest steps.
    Apart(Vec<Step>),
    /// Nothing leads from one to the other.
    Unconnected,
    /// No path was found within the allowance.
    NotFound {
        /// How many edges were looked at.
        edges: usize,
    },
}

/// A step of a path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Where it begins.
    pub from: Member,
    /// Where it ends.
    pub to: Member,
    /// What leads there.
    pub support: Support,
    /// Why it joins nothing; `None` when it does.
    pub refusal: Option<Refusal>,
}

/// What leads from one member to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Support {
    /// Evidence.
    Edge(Edge),
    /// A person's word.
    Link(Link),
    /// It is the same identifier, but it changed hands between the two.
    OtherLife,
}

/// A tie at a member: where it leads, and why it joins nothing.
type Way = (Member, Support, Option<Refusal>);

impl IdentityGraph {
    /// Explains why two members are in one cluster or not. A path between clusters is given up after `edges_max` edges.
    ///
    /// # Errors
    /// [`GraphError::NodeOutOfRange`], also for a life that an identifier does not have and for identifiers that nothing speaks of.
    pub fn explain(&self, from: Member, to: Member, edges_max: usize) -> Result<Explanation> {
        for member in [from, to] {
            self.evidence.check_node(member.node)?;
        }
        let absent = |node| GraphError::NodeOutOfRange { node, nodes: self.nodes() };
        let one = self.cluster_of(from).ok_or(absent(from.node))?;
        let two = self.cluster_of(to).ok_or(absent(to.node))?;
        if one == two {
            Ok(Explanation::Together(self.strongest_path(from, to)))
        } else {
            Ok(self.why_apart(from, to, edges_max))
        }
    }

    /// A resolver that has loaded a node's raw component.
    fn loaded(&self, node: u32) -> Resolver<'_> {
        let mut nodes: Vec<u32> = self.resolution.raw_nodes(node).collect();
        nodes.sort_unstable();
        let mut resolver = Resolver::new(&self.evidence, &self.rules, &self.resolution.states);
        resolver.load(&nodes);
        resolver
    }

    fn support(&self, tie: Tie) -> Option<Support> {
        match tie {
            Tie::Row(row) => Some(Support::Edge(self.evidence.row(row).edge())),
            Tie::Link(left, right) => self.evidence.link(left, right).copied().map(Support::Link),
        }
    }

    fn strongest_path(&self, from: Member, to: Member) -> Vec<Step> {
        if from == to {
            return Vec::new();
        }
        let mut resolver = self.loaded(from.node);
        let mut roots = Vec::new();
        resolver.cluster(&mut roots, None);
        let place =
            |member: Member| resolver.vertices.iter().zip(0_u32..).find(|(v, _)| v.member == member).map(|(_, p)| p);
        let (Some(start), Some(end)) = (place(from), place(to)) else { return Vec::new() };
        let root = roots[start as usize];
        let mut candidates: Vec<_> = resolver
            .candidates
            .iter()
            .filter(|candidate| candidate.holds())
            .filter(|candidate| roots[candidate.left as usize] == root && roots[candidate.right as usize] == root)
            .collect();
        candidates.sort_unstable_by(|one, two| resolver.order(one, two));

        // The strongest first until the two are connected, then the rest of the same strength: no path does with stronger ones.
        let mut sets = Sets::default();
        sets.reset(roots.len());
        let mut enough = 0;
        for candidate in &candidates {
            let is_connected = sets.root(start) == sets.root(end);
            if is_connected && candidate.order_of_strength(candidates[enough - 1]).is_ne() {
                break;
            }
            sets.union(candidate.left, candidate.right);
            enough += 1;
        }

        // The shortest path through these.
        let mut ways: Vec<Vec<(u32, Tie)>> = vec![Vec::new(); roots.len()];
        for candidate in &candidates[..enough] {
            ways[candidate.left as usize].push((candidate.right, candidate.tie));
            ways[candidate.right as usize].push((candidate.left, candidate.tie));
        }
        let mut reached: Vec<Option<(u32, Tie)>> = vec![None; roots.len()];
        let mut waiting = VecDeque::from([start]);
        while let Some(at) = waiting.pop_front().filter(|&at| at != end) {
            for &(next, tie) in &ways[at as usize] {
                if next != start && reached[next as usize].is_none() {
                    reached[next as usize] = Some((at, tie));
                    waiting.push_back(next);
                }
            }
        }
        let mut path = Vec::new();
        let mut at = end;
        while let Some((before, tie)) = reached[at as usize].filter(|_| at != start) {
            let member = |vertex: u32| resolver.vertices[vertex as usize].member;
            let step = |support| Step { from: member(before), to: member(at), support, refusal: None };
            path.extend(self.support(tie).map(step));
            at = before;
        }
        path.reverse();
        path
    }

    fn why_apart(&self, from: Member, to: Member, edges_max: usize) -> Explanation {
        // What became of the edges of each raw component that was met.
        let mut verdicts: HashMap<u32, HashMap<Tie, Verdict>> = HashMap::new();
        let mut reached: HashMap<Member, (Member, Support, Option<Refusal>)> = HashMap::new();
        let mut settled: HashMap<Member, (u32, u32)> = HashMap::new();
        // Fewest refusals, then fewest steps, then who came first (Dijkstra).
        let mut waiting = BinaryHeap::from([Reverse((0_u32, 0_u32, 0_usize, from))]);
        let mut best: HashMap<Member, (u32, u32)> = HashMap::from([(from, (0, 0))]);
        let mut edges = 0;
        while let Some(Reverse((refusals, steps, _, at))) = waiting.pop() {
            if at == to {
                return Explanation::Apart(path(from, to, &reached));
            }
            if settled.insert(at, (refusals, steps)).is_some() {
                continue;
            }
            if edges > edges_max {
                return Explanation::NotFound { edges };
            }
            for (next, support, refusal) in self.ways(at, edges_max - edges, &mut verdicts) {
                edges += 1;
                let cost = (refusals + u32::from(refusal.is_some()), steps + 1);
                if best.get(&next).is_none_or(|&known| cost < known) {
                    best.insert(next, cost);
                    reached.insert(next, (at, support, refusal));
                    waiting.push(Reverse((cost.0, cost.1, edges, next)));
                }
            }
        }
        if edges > edges_max { Explanation::NotFound { edges } } else { Explanation::Unconnected }
    }

    /// What leads away from a member, the strongest first; of very many not all.
    fn ways(&self, at: Member, most: usize, verdicts: &mut HashMap<u32, HashMap<Tie, Verdict>>) -> Vec<Way> {
        let states = &self.resolution.states;
        let own = states.lives_of(at.node);
        let mut rows: Vec<_> = self.evidence.rows_of(at.node).take(most.saturating_add(1)).collect();
        rows.sort_unstable_by(|(_, one), (_, two)| {
            let token = |row: &crate::evidence::Row| self.evidence.token(row.other(at.node));
            (one.strength.cmp(&two.strength))
                .then(two.weight.total_cmp(&one.weight))
                .then(one.first_seen.cmp(&two.first_seen))
                .then_with(|| token(one).cmp(&token(two)))
        });
        let mut ways: Vec<Way> = Vec::new();
        for other in self.evidence.linked_with(at.node) {
            let Some(&link) = self.evidence.link(at.node, other) else { continue };
            if life_at(own, link.at, link.at) != Some(at.life) {
                continue;
            }
            let tie = Tie::Link(at.node.min(other), at.node.max(other));
            let life = life_at(states.lives_of(other), link.at, link.at).unwrap_or(0);
            let refusal = self.refusal(at.node, tie, verdicts);
            ways.push((Member { node: other, life }, Support::Link(link), refusal));
        }
        for (number, row) in rows {
            let other = row.other(at.node);
            // Evidence that spans lives stands at each of them.
            if other == at.node || life_at(own, row.first_seen, row.last_seen).is_some_and(|life| life != at.life) {
                continue;
            }
            let refusal = refusal_at_ends(&self.evidence, &self.rules, states, number);
            let refusal = refusal.or_else(|| self.refusal(at.node, Tie::Row(number), verdicts));
            let lives = match life_at(states.lives_of(other), row.first_seen, row.last_seen) {
                Some(life) => life..=life,
                None => 0..=u16::try_from(states.lives_of(other).len() - 1).unwrap_or(u16::MAX),
            };
            let support = Support::Edge(row.edge());
            ways.extend(lives.map(|life| (Member { node: other, life }, support, refusal)));
        }
        let others = self.resolution.members_of(at.node).filter(|&member| member != at);
        ways.extend(others.map(|member| (member, Support::OtherLife, Some(Refusal::OtherLife(at.node)))));
        ways
    }

    /// What was decided about an edge or link between two members of a node's raw component.
    fn refusal(&self, node: u32, tie: Tie, verdicts: &mut HashMap<u32, HashMap<Tie, Verdict>>) -> Option<Refusal> {
        let decided = verdicts.entry(self.resolution.raw[node as usize]).or_insert_with(|| {
            let mut resolver = self.loaded(node);
            let mut trace = Vec::new();
            resolver.cluster(&mut Vec::new(), Some(&mut trace));
            trace.into_iter().map(|(number, verdict)| (resolver.candidates[number as usize].tie, verdict)).collect()
        });
        match decided.get(&tie) {
            Some(&Verdict::Refused(refusal)) => Some(refusal),
            Some(Verdict::Holds) | None => None,
        }
    }
}

fn path(from: Member, to: Member, reached: &HashMap<Member, Way>) -> Vec<Step> {
    let mut path = Vec::new();
    let mut at = to;
    while let Some(&(before, support, refusal)) = reached.get(&at).filter(|_| at != from) {
        path.push(Step { from: before, to: at, support, refusal });
        at = before;
    }
    path.reverse();
    path
}
