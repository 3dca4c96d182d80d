//! From the evidence of one raw component to clusters: strongest first, and nothing that the rules forbid.

use std::cmp::Ordering;

use crate::components::Sets;
use crate::evidence::{Evidence, NONE};
use crate::identifier::{Member, Standing, States, life_at, widen};
use crate::rules::Rules;

/// What ties two members together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tie {
    /// The row of an edge.
    Row(u32),
    /// A link of these two nodes.
    Link(u32, u32),
}

/// Why an edge joins nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refusal {
    /// The caller has blocked this end.
    Blocked(u32),
    /// This end has too many partners.
    Hub(u32),
    /// This end is several people's.
    Shared(Member),
    /// The evidence meets several lives of this end.
    SpansLives(u32),
    /// It leads from one life of this identifier to another.
    OtherLife(u32),
    /// The match weight is below the least.
    BelowBar {
        /// The edge's weight.
        weight: f32,
        /// What it should be.
        bar: f32,
    },
    /// The component was too large: the guard has raised the bar.
    Guard {
        /// The edge's weight.
        weight: f32,
        /// What it should have been.
        bar: f32,
    },
    /// One customer would have two values of a unique type.
    Unique {
        /// The type.
        rank: u8,
        /// The value on one side.
        left: u32,
        /// The value on the other.
        right: u32,
    },
    /// One customer would have too many values of a type.
    Limit {
        /// The type.
        rank: u8,
        /// How many within one window.
        values: u32,
        /// How many are allowed.
        allowed: u32,
    },
    /// A person has said that these are two customers.
    CannotLink {
        /// One end of the pair.
        left: u32,
        /// The other.
        right: u32,
    },
}

/// What became of an edge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    /// Its ends are in one cluster.
    Holds,
    Refused(Refusal),
}

/// A member with what the rules ask about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vertex {
    pub(crate) member: Member,
    pub(crate) rank: u8,
    unique_bit: u64,
    has_limit: bool,
    /// First and last moment of the evidence at it.
    pub(crate) seen: (i64, i64),
    pub(crate) token: u128,
}

/// An edge or a link that may join.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) left: u32,
    pub(crate) right: u32,
    pub(crate) tie: Tie,
    strength: u8,
    weight: f32,
    first_seen: i64,
    /// The bar that the guard raised above it.
    cut_at: Option<f32>,
}

impl Candidate {
    /// The guard lets it count.
    pub(crate) fn holds(&self) -> bool {
        self.cut_at.is_none()
    }

    /// How strong it is: links first, then by rule, then by weight. Equal strengths are one step of an explanation.
    pub(crate) fn order_of_strength(&self, other: &Self) -> Ordering {
        let is_evidence = |candidate: &Self| matches!(candidate.tie, Tie::Row(_));
        is_evidence(self)
            .cmp(&is_evidence(other))
            .then(self.strength.cmp(&other.strength))
            .then(other.weight.total_cmp(&self.weight))
    }
}

/// Works out the clusters of one raw component after the other; keeps its lists.
#[derive(Debug)]
pub(crate) struct Resolver<'a> {
    evidence: &'a Evidence,
    rules: &'a Rules,
    states: &'a States,
    pub(crate) vertices: Vec<Vertex>,
    pub(crate) candidates: Vec<Candidate>,
    /// For every node of the component, its first vertex.
    first_vertex: Vec<u32>,
    /// Pairs of vertices that may not come together.
    forbidden: Vec<(u32, u32)>,
    /// Of each vertex, the interval of its evidence, and that of the links that speak of it.
    seen: Vec<Option<(i64, i64)>>,
    linked: Vec<Option<(i64, i64)>>,
    sets: Sets,
    /// Edges that were looked at.
    pub(crate) edges_seen: u64,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(evidence: &'a Evidence, rules: &'a Rules, states: &'a States) -> Self {
        Self {
            evidence,
            rules,
            states,
            vertices: Vec::new(),
            candidates: Vec::new(),
            first_vertex: Vec::new(),
            forbidden: Vec::new(),
            seen: Vec::new(),
            linked: Vec::new(),
            sets: Sets::default(),
            edges_seen: 0,
        }
    }

    /// Takes in the nodes of one raw component, in ascending order: their lives are the vertices, what may join them are the candidates.
    pub(crate) fn load(&mut self, nodes: &[u32]) {
        self.vertices.clear();
        self.candidates.clear();
        self.first_vertex.clear();
        self.forbidden.clear();
        self.seen.clear();
        self.linked.clear();
        for &node in nodes {
            self.first_vertex.push(number(self.vertices.len()));
            let rank = self.evidence.ranks[node as usize];
            let lives = self.states.lives_of(node).len().max(1);
            for life in (0..lives).map(|life| u16::try_from(life).unwrap_or(u16::MAX)) {
                self.vertices.push(Vertex {
                    member: Member { node, life },
                    rank,
                    unique_bit: self.rules.unique_bit(rank),
                    has_limit: self.rules.of(rank).limit.is_some(),
                    seen: (0, 0),
                    token: self.evidence.token(node),
                });
                self.seen.push(None);
                self.linked.push(None);
            }
        }
        for (index, &node) in nodes.iter().enumerate() {
            self.load_edges(nodes, index, node);
            self.load_decisions(nodes, index, node);
        }
        for (vertex, (seen, linked)) in self.vertices.iter_mut().zip(self.seen.iter().zip(&self.linked)) {
            let lives = self.states.lives_of(vertex.member.node);
            let life = lives.get(usize::from(vertex.member.life)).map(|life| (life.from, life.to));
            vertex.seen = seen.or(*linked).or(life).unwrap_or(crate::evidence::UNDATED);
        }
    }

    /// Works out the clusters: `roots[vertex]` is the same for the vertices of one cluster. With a trace, also what became of each candidate, in the order they were taken.
    pub(crate) fn cluster(&mut self, roots: &mut Vec<u32>, trace: Option<&mut Vec<(u32, Verdict)>>) {
        self.guard();
        self.sets.reset(self.vertices.len());
        for candidate in self.candidates.iter().filter(|candidate| candidate.cut_at.is_none()) {
            self.sets.union(candidate.left, candidate.right);
        }
        let broken = self.broken();
        if trace.is_some() || broken.contains(&true) {
            self.take_in_order(&broken, trace);
        }
        roots.clear();
        for vertex in 0..number(self.vertices.len()) {
            roots.push(self.sets.root(vertex));
        }
    }

    /// The tokens and moments that order candidates of the same strength.
    pub(crate) fn order(&self, one: &Candidate, two: &Candidate) -> Ordering {
        let ends = |candidate: &Candidate| {
            let (left, right) = (&self.vertices[candidate.left as usize], &self.vertices[candidate.right as usize]);
            // When records were found alike depends on the order in which they came.
            let is_dated = candidate.first_seen != crate::evidence::UNDATED.0 && candidate.weight.is_infinite();
            let undated_last = if is_dated { candidate.first_seen } else { i64::MAX };
            (
                left.rank.min(right.rank),
                left.rank.max(right.rank),
                undated_last,
                left.token.min(right.token),
                left.token.max(right.token),
            )
        };
        one.order_of_strength(two).then_with(|| ends(one).cmp(&ends(two)))
    }

    fn load_edges(&mut self, nodes: &[u32], index: usize, node: u32) {
        let lives = self.states.lives_of(node);
        let first_vertex = self.first_vertex[index];
        for (row_number, row) in self.evidence.rows_of(node) {
            self.edges_seen += 1;
            let life = life_at(lives, row.first_seen, row.last_seen);
            if let Some(life) = life.filter(|_| row.is_certain()) {
                widen(&mut self.seen[(first_vertex + u32::from(life)) as usize], row.first_seen, row.last_seen);
            }
            // Each edge once, from its smaller end.
            if row.left != node || row.right == node {
                continue;
            }
            if refusal_at_ends(self.evidence, self.rules, self.states, row_number).is_some() {
                continue;
            }
            let other = self.states.lives_of(row.right);
            let (Some(life), Some(other_life)) = (life, life_at(other, row.first_seen, row.last_seen)) else {
                continue;
            };
            let Ok(other_index) = nodes.binary_search(&row.right) else { continue };
            self.candidates.push(Candidate {
                left: first_vertex + u32::from(life),
                right: self.first_vertex[other_index] + u32::from(other_life),
                tie: Tie::Row(row_number),
                strength: row.strength,
                weight: row.weight,
                first_seen: row.first_seen,
                cut_at: None,
            });
        }
    }

    fn load_decisions(&mut self, nodes: &[u32], index: usize, node: u32) {
        for other in self.evidence.linked_with(node) {
            let (Some(link), Ok(other_index)) = (self.evidence.link(node, other), nodes.binary_search(&other)) else {
                continue;
            };
            let vertex = |index: usize, node: u32| {
                let life = life_at(self.states.lives_of(node), link.at, link.at).unwrap_or(0);
                self.first_vertex[index] + u32::from(life)
            };
            let left = vertex(index, node);
            let at = link.at;
            widen(&mut self.linked[left as usize], at, at);
            if node < other {
                self.candidates.push(Candidate {
                    left,
                    right: vertex(other_index, other),
                    tie: Tie::Link(node, other),
                    strength: 0,
                    weight: f32::INFINITY,
                    first_seen: at,
                    cut_at: None,
                });
            }
        }
        for other in self.evidence.forbidden_with(node).filter(|&other| node < other) {
            let Ok(other_index) = nodes.binary_search(&other) else { continue };
            for left in self.vertices_of(index) {
                for right in self.vertices_of(other_index) {
                    self.forbidden.push((left, right));
                }
            }
        }
    }

    fn vertices_of(&self, index: usize) -> std::ops::Range<u32> {
        let end = self.first_vertex.get(index + 1).copied().unwrap_or(number(self.vertices.len()));
        self.first_vertex[index]..end
    }

    /// Raises the bar in components above the cap.
    fn guard(&mut self) {
        let Some(guard) = self.rules.guard() else { return };
        if self.vertices.len() <= guard.cap as usize {
            return;
        }
        let mut bar = self.rules.weight_min();
        // The vertices of a component that is too large, and its candidates.
        let mut open: Vec<u32> = (0..number(self.candidates.len())).collect();
        let mut size = Vec::new();
        loop {
            self.sets.reset(self.vertices.len());
            for &candidate in &open {
                let Candidate { left, right, .. } = self.candidates[candidate as usize];
                self.sets.union(left, right);
            }
            size.clear();
            size.resize(self.vertices.len(), 0_u32);
            for vertex in 0..number(self.vertices.len()) {
                size[self.sets.root(vertex) as usize] += 1;
            }
            open.retain(|&candidate| {
                size[self.sets.root(self.candidates[candidate as usize].left) as usize] > guard.cap
            });
            let probabilistic = |candidate: &u32| self.candidates[*candidate as usize].weight.is_finite();
            let weakest =
                open.iter().filter(|candidate| probabilistic(candidate)).map(|&c| self.candidates[c as usize].weight);
            let Some(weakest) = weakest.min_by(f32::total_cmp) else { return };
            // Steps that cut nothing are taken at once. Counted from the least weight, so that the bar does not depend on which steps these were.
            bar = next_bar(self.rules.weight_min(), guard.step, bar.max(weakest));
            open.retain(|&candidate| {
                let candidate = &mut self.candidates[candidate as usize];
                let stays = candidate.weight >= bar;
                if !stays {
                    candidate.cut_at = Some(bar);
                }
                stays
            });
        }
    }

    /// For every root, whether its component may break a rule when it is taken whole.
    fn broken(&mut self) -> Vec<bool> {
        let mut broken = vec![false; self.vertices.len()];
        let mut unique = vec![0_u64; self.vertices.len()];
        let mut limited: Vec<(u32, u8)> = Vec::new();
        for vertex in 0..number(self.vertices.len()) {
            let root = self.sets.root(vertex);
            let Vertex { unique_bit, has_limit, rank, .. } = self.vertices[vertex as usize];
            broken[root as usize] |= unique[root as usize] & unique_bit != 0;
            unique[root as usize] |= unique_bit;
            if has_limit {
                limited.push((root, rank));
            }
        }
        limited.sort_unstable();
        for same in limited.chunk_by(|one, two| one == two) {
            let (root, rank) = same[0];
            let allowed = self.rules.of(rank).limit.map_or(u32::MAX, |limit| limit.values);
            broken[root as usize] |= same.len() > allowed as usize;
        }
        for &(left, right) in &self.forbidden {
            let root = self.sets.root(left);
            broken[root as usize] |= root == self.sets.root(right);
        }
        broken
    }

    /// Takes the candidates of broken components one by one, the strongest first, and the others as they come. With a trace it takes all in order, which gives the same.
    fn take_in_order(&mut self, broken: &[bool], mut trace: Option<&mut Vec<(u32, Verdict)>>) {
        let (mut order, whole): (Vec<u32>, Vec<u32>) = (0..number(self.candidates.len())).partition(|&candidate| {
            let root = self.sets.root(self.candidates[candidate as usize].left);
            trace.is_some() || broken[root as usize]
        });
        order.sort_unstable_by(|&one, &two| self.order(&self.candidates[one as usize], &self.candidates[two as usize]));
        self.sets.reset(self.vertices.len());
        for candidate in whole {
            let Candidate { left, right, cut_at, .. } = self.candidates[candidate as usize];
            if cut_at.is_none() {
                self.sets.union(left, right);
            }
        }
        let mut held = self.holdings();
        for number in order {
            let candidate = self.candidates[number as usize];
            let verdict = match candidate.cut_at {
                Some(bar) => Verdict::Refused(Refusal::Guard { weight: candidate.weight, bar }),
                None => self.take(&candidate, &mut held),
            };
            if let Some(trace) = &mut trace {
                trace.push((number, verdict));
            }
        }
    }

    fn take(&mut self, candidate: &Candidate, held: &mut [Holding]) -> Verdict {
        let (left, right) = (self.sets.root(candidate.left), self.sets.root(candidate.right));
        if left == right {
            return Verdict::Holds;
        }
        if let Some(refusal) = self.conflict(matches!(candidate.tie, Tie::Link(..)), left, right, held) {
            return Verdict::Refused(refusal);
        }
        if let Some((root, other)) = self.sets.union(left, right) {
            let moved = std::mem::take(&mut held[other as usize]);
            held[root as usize].take_over(moved);
        }
        Verdict::Holds
    }

    /// What forbids two clusters to be one. A link obeys cannot-links alone: the person who made it knows more than the rules.
    fn conflict(&mut self, is_link: bool, left: u32, right: u32, held: &[Holding]) -> Option<Refusal> {
        let (one, two) = (&held[left as usize], &held[right as usize]);
        let (few, other) = if one.foes.len() <= two.foes.len() { (one, right) } else { (two, left) };
        for &(vertex, foe) in &few.foes {
            if self.sets.root(foe) == other {
                let node = |vertex: u32| self.vertices[vertex as usize].member.node;
                let (left, right) = (node(vertex).min(node(foe)), node(vertex).max(node(foe)));
                return Some(Refusal::CannotLink { left, right });
            }
        }
        if is_link {
            return None;
        }
        self.unique_conflict(one, two).or_else(|| self.limit_conflict(one, two))
    }

    /// The two values that stand against each other: those of the strongest such type, the smallest tokens.
    fn unique_conflict(&self, one: &Holding, two: &Holding) -> Option<Refusal> {
        let clashing = one.unique & two.unique;
        if clashing == 0 {
            return None;
        }
        let bit = clashing & clashing.wrapping_neg();
        let value_of = |held: &Holding| {
            let values = held.unique_values.iter().map(|&vertex| &self.vertices[vertex as usize]);
            values.filter(|vertex| vertex.unique_bit == bit).min_by_key(|vertex| vertex.token).copied()
        };
        let (left, right) = (value_of(one)?, value_of(two)?);
        Some(Refusal::Unique { rank: left.rank, left: left.member.node, right: right.member.node })
    }

    fn limit_conflict(&self, one: &Holding, two: &Holding) -> Option<Refusal> {
        for (rank, values) in &one.limited {
            let Some((_, others)) = two.limited.iter().find(|(other, _)| other == rank) else { continue };
            let Some(limit) = self.rules.of(*rank).limit else { continue };
            if values.len() + others.len() <= limit.values as usize {
                continue;
            }
            let at_once = |vertices: &mut dyn Iterator<Item = &u32>| {
                let mut seen: Vec<_> = vertices.map(|&vertex| self.vertices[vertex as usize].seen).collect();
                limit.most_at_once(&mut seen)
            };
            let together = at_once(&mut values.iter().chain(others));
            // A cluster that a link brought above the limit may still get what does not make it worse.
            let before = at_once(&mut values.iter()).max(at_once(&mut others.iter()));
            if together > limit.values && together > before {
                return Some(Refusal::Limit { rank: *rank, values: together, allowed: limit.values });
            }
        }
        None
    }

    /// What each set holds before anything is taken.
    fn holdings(&mut self) -> Vec<Holding> {
        let mut held: Vec<Holding> = Vec::new();
        held.resize_with(self.vertices.len(), Holding::default);
        for (index, vertex) in self.vertices.iter().enumerate() {
            if vertex.unique_bit != 0 {
                held[index].unique = vertex.unique_bit;
                held[index].unique_values.push(number(index));
            }
            if vertex.has_limit {
                held[index].limited.push((vertex.rank, vec![number(index)]));
            }
        }
        for &(left, right) in &self.forbidden {
            held[left as usize].foes.push((left, right));
            held[right as usize].foes.push((right, left));
        }
        held
    }
}

/// What a cluster has that rules ask about.
#[derive(Debug, Default)]
struct Holding {
    /// Unique types, a bit each.
    unique: u64,
    /// Their vertices.
    unique_values: Vec<u32>,
    /// Vertices of each type that has a limit.
    limited: Vec<(u8, Vec<u32>)>,
    /// Vertices in it, with one each that may not come in.
    foes: Vec<(u32, u32)>,
}

impl Holding {
    fn take_over(&mut self, mut other: Self) {
        self.unique |= other.unique;
        self.unique_values.append(&mut other.unique_values);
        if self.foes.len() < other.foes.len() {
            std::mem::swap(&mut self.foes, &mut other.foes);
        }
        self.foes.append(&mut other.foes);
        for (rank, mut vertices) in other.limited {
            match self.limited.iter_mut().find(|(known, _)| *known == rank) {
                None => self.limited.push((rank, vertices)),
                Some((_, known)) => {
                    if known.len() < vertices.len() {
                        std::mem::swap(known, &mut vertices);
                    }
                    known.append(&mut vertices);
                }
            }
        }
    }
}

/// Why an edge joins nothing whatever else there is: what its ends' own evidence and its weight say.
pub(crate) fn refusal_at_ends(evidence: &Evidence, rules: &Rules, states: &States, row: u32) -> Option<Refusal> {
    let row = evidence.row(row);
    for node in [row.left, row.right] {
        match states.standing[node as usize] {
            Standing::Joins => {}
            Standing::Blocked => return Some(Refusal::Blocked(node)),
            Standing::Hub => return Some(Refusal::Hub(node)),
            Standing::Shared => return Some(Refusal::Shared(Member { node, life: 0 })),
        }
        let lives = states.lives_of(node);
        match life_at(lives, row.first_seen, row.last_seen) {
            None => return Some(Refusal::SpansLives(node)),
            Some(life) if lives.get(usize::from(life)).is_some_and(|life| life.is_shared) => {
                return Some(Refusal::Shared(Member { node, life }));
            }
            Some(_) => {}
        }
    }
    (row.weight < rules.weight_min()).then_some(Refusal::BelowBar { weight: row.weight, bar: rules.weight_min() })
}

/// The first bar `least + n * step` above a weight.
fn next_bar(least: f32, step: f32, weight: f32) -> f32 {
    let steps = ((weight - least) / step).floor() + 1.0;
    let bar = least + steps * step;
    // Rounding may leave it at the weight; a bar must cut something.
    if bar > weight { bar } else { weight.next_up() }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NONE)
}
