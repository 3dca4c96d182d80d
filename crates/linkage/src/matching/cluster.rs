//! From weighed pairs to people, with a guard against the chains of weak links that join strangers. Nothing here knows the truth.
//!
//! A pair is weighed alone, so one wrong link joins two people and all that hangs on them. What tells a chain from a person is inside the component: the
//! records of one person agree with nearly all others of it, those at the ends of a chain disagree. [`Guard::Agreement`] takes every pair of a component
//! as evidence, for or against, and looks for the parts with the greatest sum (correlation clustering; Bansal, Blum & Chawla 2004). Guards by size
//! only need links.

use super::edges::Edge;
use super::model::Scorer;
use super::threads;

/// What keeps chains of links from joining strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Guard {
    /// Nothing: everything that links connect is one person.
    None,
    /// Components with more records than this are cut at their weakest link, again and again.
    SizeMax(u32),
    /// As [`Guard::SizeMax`], with the size the records themselves suggest ([`size_suggested`]).
    SizeSuggested,
    /// Inside every component all pairs are weighed, also those that no blocking rule gave, and it falls into the parts for which the sum of weights
    /// within is greatest. Made for the edges from `review_probability` on: what is worth a look connects, and pairs below speak against.
    #[default]
    Agreement,
}

/// Union-find with path halving; the smaller row is the root, so that the result does not depend on the order of unions.
#[derive(Debug)]
struct Sets {
    parent: Vec<u32>,
}

impl Sets {
    fn new(rows: u32) -> Self {
        Self { parent: (0..rows).collect() }
    }

    fn root(&mut self, mut row: u32) -> u32 {
        while self.parent[row as usize] != row {
            let above = self.parent[self.parent[row as usize] as usize];
            self.parent[row as usize] = above;
            row = above;
        }
        row
    }

    fn union(&mut self, one: u32, two: u32) -> bool {
        let (one, two) = (self.root(one), self.root(two));
        self.parent[one.max(two) as usize] = one.min(two);
        one != two
    }
}

/// The cluster of each record, named by its smallest row. Only edges of at least `link_weight` connect; for [`Guard::Agreement`] it is also the weight at
/// which a pair speaks neither for nor against one person. The result depends on the set of edges, not on their order.
pub fn cluster(scorer: &Scorer<'_>, rows: u32, edges: &[Edge], link_weight: f64, guard: Guard) -> Vec<u32> {
    match guard {
        Guard::None => {
            let mut sets = Sets::new(rows);
            for edge in edges.iter().filter(|edge| edge.weight >= link_weight) {
                sets.union(edge.left, edge.right);
            }
            (0..rows).map(|row| sets.root(row)).collect()
        }
        Guard::SizeMax(most) => Merges::new(rows, edges, link_weight).cut(most),
        Guard::SizeSuggested => {
            let most = size_suggested(rows, edges);
            Merges::new(rows, edges, link_weight).cut(most)
        }
        Guard::Agreement => by_agreement(scorer, rows, edges, link_weight),
    }
}

/// The size that no cluster should pass: for each record the expected number of its matches is the sum of the probabilities of its pairs; the suggestion is
/// the size that all but one record in a hundred expect at most.
pub fn size_suggested(rows: u32, edges: &[Edge]) -> u32 {
    let mut expected = vec![1.0_f64; rows as usize];
    for edge in edges {
        let probability = edge.probability();
        expected[edge.left as usize] += probability;
        expected[edge.right as usize] += probability;
    }
    expected.sort_unstable_by(f64::total_cmp);
    let at = (expected.len() * 99 / 100).min(expected.len().saturating_sub(1));
    let size = expected.get(at).copied().unwrap_or(1.0).ceil();
    #[expect(clippy::cast_possible_truncation, reason = "a number of records")]
    let size = size as u32;
    size.max(2)
}

/// The order in which links join records, the strongest first: a forest whose inner nodes are joins (single linkage).
#[derive(Debug)]
struct Merges {
    rows: u32,
    /// For each join its two parts: a row, or `rows` and more for the join before.
    parts: Vec<(u32, u32)>,
    sizes: Vec<u32>,
    roots: Vec<u32>,
}

impl Merges {
    fn new(rows: u32, edges: &[Edge], link_weight: f64) -> Self {
        let mut order: Vec<&Edge> = edges.iter().filter(|edge| edge.weight >= link_weight).collect();
        order.sort_unstable_by(|one, two| {
            two.weight.total_cmp(&one.weight).then((one.left, one.right).cmp(&(two.left, two.right)))
        });
        let mut sets = Sets::new(rows);
        let mut node: Vec<u32> = (0..rows).collect();
        let mut merges = Self { rows, parts: Vec::new(), sizes: Vec::new(), roots: Vec::new() };
        let size = |sizes: &[u32], node: u32| if node < rows { 1 } else { sizes[(node - rows) as usize] };
        for edge in order {
            let (one, two) = (sets.root(edge.left), sets.root(edge.right));
            if one == two {
                continue;
            }
            let (a, b) = (node[one as usize], node[two as usize]);
            let joined = rows + u32::try_from(merges.parts.len()).unwrap_or(0);
            let both = size(&merges.sizes, a) + size(&merges.sizes, b);
            merges.parts.push((a, b));
            merges.sizes.push(both);
            sets.union(one, two);
            node[one.min(two) as usize] = joined;
        }
        let mut roots: Vec<u32> =
            (0..rows).filter(|row| sets.root(*row) == *row).map(|row| node[row as usize]).collect();
        roots.sort_unstable();
        merges.roots = roots;
        merges
    }

    fn size(&self, node: u32) -> u32 {
        if node < self.rows { 1 } else { self.sizes[(node - self.rows) as usize] }
    }

    /// Undoes the weakest joins of components with more than `most` records until none is left.
    fn cut(&self, most: u32) -> Vec<u32> {
        let mut labels: Vec<u32> = (0..self.rows).collect();
        let mut open = self.roots.clone();
        while let Some(node) = open.pop() {
            if node >= self.rows && self.size(node) > most {
                let (one, two) = self.parts[(node - self.rows) as usize];
                open.extend([one, two]);
                continue;
            }
            let members = self.members(node);
            let least = members.iter().copied().min().unwrap_or(0);
            for row in members {
                labels[row as usize] = least;
            }
        }
        labels
    }

    fn members(&self, node: u32) -> Vec<u32> {
        let (mut open, mut rows) = (vec![node], Vec::new());
        while let Some(node) = open.pop() {
            if node < self.rows {
                rows.push(node);
            } else {
                let (one, two) = self.parts[(node - self.rows) as usize];
                open.extend([one, two]);
            }
        }
        rows
    }
}

/// What a size limit would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizePoint {
    /// The most records a cluster may have.
    pub size_max: u32,
    /// Clusters of two and more records.
    pub clusters: u64,
    /// Records of the largest one.
    pub largest: u64,
    /// Pairs of records that are in one cluster.
    pub pairs: u64,
    /// Links whose ends fall into different clusters.
    pub links_cut: u64,
}

/// What each size limit would do, from two records up to that of the largest component.
pub fn size_curve(rows: u32, edges: &[Edge], link_weight: f64, sizes: &[u32]) -> Vec<SizePoint> {
    let merges = Merges::new(rows, edges, link_weight);
    sizes
        .iter()
        .map(|&size_max| {
            let labels = merges.cut(size_max);
            let mut counts = vec![0_u64; rows as usize];
            for label in &labels {
                counts[*label as usize] += 1;
            }
            let links_cut = edges
                .iter()
                .filter(|edge| edge.weight >= link_weight && labels[edge.left as usize] != labels[edge.right as usize])
                .count();
            SizePoint {
                size_max,
                clusters: counts.iter().filter(|count| **count > 1).count() as u64,
                largest: counts.iter().copied().max().unwrap_or(0),
                pairs: counts.iter().map(|count| count * count.saturating_sub(1) / 2).sum(),
                links_cut: links_cut as u64,
            }
        })
        .collect()
}

/// Components above this many records are first cut at their weakest links: all pairs within are weighed, and that grows with the square.
const WEIGHED_MAX: u32 = 500;
/// A pair of records counts this many bits at most, for and against: one pair does not decide over a cluster.
const PAIR_BITS_MAX: f64 = 20.0;

fn by_agreement(scorer: &Scorer<'_>, rows: u32, edges: &[Edge], link_weight: f64) -> Vec<u32> {
    let mut labels = Merges::new(rows, edges, link_weight).cut(WEIGHED_MAX);
    let mut members: Vec<Vec<u32>> = vec![Vec::new(); rows as usize];
    for (row, label) in (0..).zip(&labels) {
        members[*label as usize].push(row);
    }
    let components: Vec<Vec<u32>> = members.into_iter().filter(|members| members.len() > 2).collect();
    let pieces = pieces_of(&components);
    let mut memories: Vec<_> = (0..threads::available()).map(|_| scorer.memory()).collect();
    threads::in_order(
        &mut memories,
        pieces.len(),
        |memory, at| {
            let mut found = Vec::new();
            for rows in &components[pieces[at].clone()] {
                let mut weights = Weights::new(rows.len());
                for (i, &one) in rows.iter().enumerate() {
                    for (j, &two) in rows.iter().enumerate().skip(i + 1) {
                        let weight = scorer.edge(memory, one, two).weight - link_weight;
                        weights.set(i, j, weight.clamp(-PAIR_BITS_MAX, PAIR_BITS_MAX));
                    }
                }
                found.push(weights.parts());
            }
            found
        },
        |at, found| {
            for (rows, parts) in components[pieces[at].clone()].iter().zip(found) {
                for part in parts {
                    let least = part.iter().map(|member| rows[*member]).min().unwrap_or(0);
                    for member in part {
                        labels[rows[member] as usize] = least;
                    }
                }
            }
        },
    );
    labels
}

/// Components in runs of about as many pairs, so that small ones are not handed to threads one by one.
fn pieces_of(components: &[Vec<u32>]) -> Vec<std::ops::Range<usize>> {
    const PAIRS: usize = 100_000;
    let (mut pieces, mut from, mut pairs) = (Vec::new(), 0, 0);
    for (at, component) in components.iter().enumerate() {
        pairs += component.len() * component.len();
        if pairs >= PAIRS || at + 1 == components.len() {
            pieces.push(from..at + 1);
            (from, pairs) = (at + 1, 0);
        }
    }
    pieces
}

/// The weights of all pairs of a component.
struct Weights {
    count: usize,
    weights: Vec<f64>,
}

impl Weights {
    fn new(count: usize) -> Self {
        Self { count, weights: vec![0.0; count * count] }
    }

    fn set(&mut self, one: usize, two: usize, weight: f64) {
        self.weights[one * self.count + two] = weight;
        self.weights[two * self.count + one] = weight;
    }

    /// The parts with the greatest sum of weights within, as far as joining and moving find them (greedy additive edge contraction; Keuper et al. 2015).
    fn parts(&self) -> Vec<Vec<usize>> {
        let count = self.count;
        let mut sums = self.weights.clone();
        let mut parts: Vec<Vec<usize>> = (0..count).map(|member| vec![member]).collect();
        let best_of = |sums: &[f64], parts: &[Vec<usize>], one: usize| {
            let mut best = (f64::NEG_INFINITY, usize::MAX);
            for two in 0..count {
                if two != one && !parts[two].is_empty() {
                    let weight = sums[one * count + two] / (parts[one].len() * parts[two].len()) as f64;
                    if weight > best.0 {
                        best = (weight, two);
                    }
                }
            }
            best
        };
        let mut best: Vec<(f64, usize)> = (0..count).map(|one| best_of(&sums, &parts, one)).collect();
        loop {
            let mut top = (0.0, usize::MAX);
            for one in 0..count {
                if !parts[one].is_empty() && best[one].0 > top.0 {
                    top = (best[one].0, one);
                }
            }
            let Some(&(_, two)) = best.get(top.1) else { break };
            let (one, two) = (top.1.min(two), top.1.max(two));
            let moved = std::mem::take(&mut parts[two]);
            parts[one].extend(moved);
            for other in 0..count {
                if other != one && !parts[other].is_empty() {
                    let sum = sums[one * count + other] + sums[two * count + other];
                    sums[one * count + other] = sum;
                    sums[other * count + one] = sum;
                }
            }
            for other in 0..count {
                if parts[other].is_empty() {
                    continue;
                }
                if other == one || best[other].1 == one || best[other].1 == two {
                    best[other] = best_of(&sums, &parts, other);
                } else {
                    let weight = sums[other * count + one] / (parts[one].len() * parts[other].len()) as f64;
                    if weight > best[other].0 {
                        best[other] = (weight, one);
                    }
                }
            }
        }
        parts.retain(|part| !part.is_empty());
        parts
    }
}
