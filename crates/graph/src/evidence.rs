//! What is known: identifiers, the evidence that ties them together, what people have decided. Knows no rules.

use std::collections::{BTreeMap, BTreeSet};

use crate::Result;
use crate::dictionary::{Dictionary, SlotIndex, mix};
use crate::error::GraphError;
use crate::node_map::NodeMap;

/// No node, no row.
pub(crate) const NONE: u32 = u32::MAX;

/// The first and last moment of evidence whose records carry no date: any time.
pub const UNDATED: (i64, i64) = (i64::MIN, i64::MAX);

/// Evidence that two identifiers belong to one person: records carried both, or a comparison found them alike. An identifier that came alone is an edge to itself.
///
/// There is one edge for each pair and strength. More evidence of the same kind is added to it: the interval is widened, records are summed, the greater weight and the source of
/// the earliest stay. The order in which it comes does not matter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edge {
    /// One end.
    pub left: u32,
    /// The other. Which is which does not matter.
    pub right: u32,
    /// The rank of the rule it comes from: 0 is the strongest, and goes first.
    pub strength: u8,
    /// The match weight of probabilistic evidence, log2 of the Bayes factor; `None`: certain.
    pub weight: Option<f32>,
    /// When it was first seen, in microseconds since 1970; see [`UNDATED`].
    pub first_seen: i64,
    /// When it was last seen.
    pub last_seen: i64,
    /// How many records.
    pub records: u32,
    /// Where it comes from; the graph only hands it back.
    pub source: u32,
}

/// Names an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey {
    /// One end.
    pub left: u32,
    /// The other.
    pub right: u32,
    /// The rank of its rule.
    pub strength: u8,
}

/// A person has said that two identifiers are one customer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link {
    /// One end.
    pub left: u32,
    /// The other.
    pub right: u32,
    /// The moment it speaks of, in microseconds since 1970: which life of an identifier that changed hands.
    pub at: i64,
    /// Where it comes from; the graph only hands it back.
    pub source: u32,
}

impl Edge {
    /// The edge's name.
    #[must_use]
    pub fn key(&self) -> EdgeKey {
        EdgeKey { left: self.left, right: self.right, strength: self.strength }
    }
}

/// An edge as it is kept: 48 bytes, one line of the processor's cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) first_seen: i64,
    pub(crate) last_seen: i64,
    /// The smaller end.
    pub(crate) left: u32,
    pub(crate) right: u32,
    /// Infinite for certain evidence.
    pub(crate) weight: f32,
    pub(crate) records: u32,
    pub(crate) source: u32,
    /// The next row of the left end, of the right end.
    next_left: u32,
    next_right: u32,
    pub(crate) strength: u8,
    /// A removed row stays in the lists of its ends until they are swept.
    is_live: bool,
}

impl Row {
    pub(crate) fn is_live(&self) -> bool {
        self.is_live
    }

    /// Records carried both ends. A comparison that found records alike says nothing of when an identifier was used, nor that it is shared.
    pub(crate) fn is_certain(&self) -> bool {
        self.weight.is_infinite()
    }

    pub(crate) fn other(&self, node: u32) -> u32 {
        if self.left == node { self.right } else { self.left }
    }

    pub(crate) fn edge(&self) -> Edge {
        Edge {
            left: self.left,
            right: self.right,
            strength: self.strength,
            weight: self.weight.is_finite().then_some(self.weight),
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            records: self.records,
            source: self.source,
        }
    }
}

/// All evidence, and which is at which node.
#[derive(Debug, Default, Clone)]
pub(crate) struct Evidence {
    pub(crate) dictionary: Dictionary,
    /// The type of each node.
    pub(crate) ranks: Vec<u8>,
    /// The first row of each node's list.
    heads: Vec<u32>,
    rows: Vec<Row>,
    free: Vec<u32>,
    index: SlotIndex,
    pub(crate) blocked: BTreeSet<u32>,
    links: BTreeMap<(u32, u32), Link>,
    linked: NodeMap<u32, BTreeSet<u32>>,
    /// Pairs that are never one customer, in both directions.
    forbidden: NodeMap<u32, BTreeSet<u32>>,
}

impl Evidence {
    pub(crate) fn nodes(&self) -> u32 {
        u32::try_from(self.ranks.len()).unwrap_or(NONE)
    }

    pub(crate) fn node(&mut self, token: u128, rank: u8) -> Result<u32> {
        let node = self.dictionary.get_or_add(token)?;
        match self.ranks.get(node as usize) {
            None => {
                self.ranks.push(rank);
                self.heads.push(NONE);
            }
            Some(&known) if known != rank => return Err(GraphError::TypeDiffers { token, known, given: rank }),
            Some(_) => {}
        }
        Ok(node)
    }

    pub(crate) fn token(&self, node: u32) -> u128 {
        self.dictionary.token(node).unwrap_or_default()
    }

    pub(crate) fn check_node(&self, node: u32) -> Result<()> {
        if node < self.nodes() { Ok(()) } else { Err(GraphError::NodeOutOfRange { node, nodes: self.nodes() }) }
    }

    pub(crate) fn check_edge(&self, edge: &Edge) -> Result<()> {
        let &Edge { left, right, weight, first_seen, last_seen, .. } = edge;
        self.check_node(left)?;
        self.check_node(right)?;
        if let Some(weight) = weight.filter(|weight| !weight.is_finite()) {
            return Err(GraphError::Weight { left, right, weight });
        }
        if first_seen > last_seen {
            return Err(GraphError::IntervalReversed { left, right, first_seen, last_seen });
        }
        Ok(())
    }

    /// Adds an edge that was checked, or adds to the one of the same key; returns the number of its row.
    pub(crate) fn add(&mut self, edge: &Edge) -> Result<u32> {
        let (left, right) = (edge.left.min(edge.right), edge.left.max(edge.right));
        let key = EdgeKey { left, right, strength: edge.strength };
        let weight = edge.weight.unwrap_or(f32::INFINITY);
        if let Some(found) = self.find(key) {
            let row = &mut self.rows[found as usize];
            row.source = (row.first_seen, row.source).min((edge.first_seen, edge.source)).1;
            row.first_seen = row.first_seen.min(edge.first_seen);
            row.last_seen = row.last_seen.max(edge.last_seen);
            row.weight = row.weight.max(weight);
            row.records = row.records.saturating_add(edge.records);
            return Ok(found);
        }
        let row = Row {
            first_seen: edge.first_seen,
            last_seen: edge.last_seen,
            left,
            right,
            weight,
            records: edge.records,
            source: edge.source,
            next_left: self.heads[left as usize],
            next_right: if left == right { NONE } else { self.heads[right as usize] },
            strength: edge.strength,
            is_live: true,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.rows[number as usize] = row;
                number
            }
            None => {
                let number = u32::try_from(self.rows.len()).unwrap_or(NONE);
                if number >= SlotIndex::GONE {
                    return Err(GraphError::Full("edges"));
                }
                if self.rows.len() == self.rows.capacity() {
                    // Twice as much would leave half of the largest list empty.
                    self.rows.reserve_exact((self.rows.len() / 8).max(16));
                }
                self.rows.push(row);
                number
            }
        };
        self.heads[left as usize] = number;
        self.heads[right as usize] = number;
        let rows = &self.rows;
        self.index.insert(hash_of(key), number, |number| hash_of(key_of(&rows[number as usize])));
        Ok(number)
    }

    /// Removes an edge and returns it. Its ends must be swept before evidence is added again.
    pub(crate) fn remove(&mut self, key: EdgeKey) -> Option<Edge> {
        let key = EdgeKey { left: key.left.min(key.right), right: key.left.max(key.right), strength: key.strength };
        let number = self.find(key)?;
        self.index.remove(hash_of(key), number);
        let row = &mut self.rows[number as usize];
        row.is_live = false;
        Some(row.edge())
    }

    /// Takes removed rows out of the lists of these nodes, among which must be both ends of every removed row; then their numbers are free.
    pub(crate) fn sweep(&mut self, nodes: &[u32]) {
        for &node in nodes {
            let mut kept = NONE;
            let mut at = std::mem::replace(&mut self.heads[node as usize], NONE);
            while at != NONE {
                let row = self.rows[at as usize];
                let next = if row.left == node { row.next_left } else { row.next_right };
                if row.is_live {
                    self.set_next(node, kept, at);
                    kept = at;
                } else if row.right == node {
                    // Each row has one right end.
                    self.free.push(at);
                }
                at = next;
            }
            self.set_next(node, kept, NONE);
        }
    }

    fn set_next(&mut self, node: u32, row: u32, next: u32) {
        if row == NONE {
            self.heads[node as usize] = next;
        } else if self.rows[row as usize].left == node {
            self.rows[row as usize].next_left = next;
        } else {
            self.rows[row as usize].next_right = next;
        }
    }

    pub(crate) fn reserve(&mut self, edges: usize) {
        // With room for what is added later: the first change would pay for moving all rows. Memory that nothing was written to costs none.
        self.rows.reserve_exact(edges + edges / 16);
        let rows = &self.rows;
        self.index.reserve(rows.len() + edges, |number| hash_of(key_of(&rows[number as usize])));
    }

    /// The edges at a node, with their numbers; an edge to itself once.
    pub(crate) fn rows_of(&self, node: u32) -> impl Iterator<Item = (u32, &Row)> {
        let mut at = self.heads[node as usize];
        std::iter::from_fn(move || {
            loop {
                let number = at;
                let row = self.rows.get(number as usize)?;
                at = if row.left == node { row.next_left } else { row.next_right };
                if row.is_live {
                    return Some((number, row));
                }
            }
        })
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.is_live)
    }

    pub(crate) fn all_rows(&self) -> &[Row] {
        &self.rows
    }

    pub(crate) fn row(&self, number: u32) -> &Row {
        &self.rows[number as usize]
    }

    pub(crate) fn edges(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    pub(crate) fn find(&self, key: EdgeKey) -> Option<u32> {
        self.index.find(hash_of(key), |number| key_of(&self.rows[number as usize]) == key)
    }

    /// Anything speaks of the node: evidence or a link.
    pub(crate) fn is_present(&self, node: u32) -> bool {
        self.rows_of(node).next().is_some() || self.linked.contains_key(&node)
    }

    pub(crate) fn set_link(&mut self, link: Link) {
        let (left, right) = (link.left.min(link.right), link.left.max(link.right));
        self.links.insert((left, right), Link { left, right, ..link });
        self.linked.entry(left).or_default().insert(right);
        self.linked.entry(right).or_default().insert(left);
    }

    pub(crate) fn withdraw_link(&mut self, left: u32, right: u32) -> Option<Link> {
        let link = self.links.remove(&(left.min(right), left.max(right)))?;
        forget_pair(&mut self.linked, left, right);
        Some(link)
    }

    pub(crate) fn link(&self, left: u32, right: u32) -> Option<&Link> {
        self.links.get(&(left.min(right), left.max(right)))
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    pub(crate) fn linked_with(&self, node: u32) -> impl Iterator<Item = u32> {
        self.linked.get(&node).into_iter().flatten().copied()
    }

    pub(crate) fn forbid(&mut self, left: u32, right: u32) -> bool {
        self.forbidden.entry(right).or_default().insert(left);
        self.forbidden.entry(left).or_default().insert(right)
    }

    pub(crate) fn allow(&mut self, left: u32, right: u32) -> bool {
        let was = self.is_forbidden(left, right);
        forget_pair(&mut self.forbidden, left, right);
        was
    }

    pub(crate) fn is_forbidden(&self, left: u32, right: u32) -> bool {
        self.forbidden.get(&left).is_some_and(|others| others.contains(&right))
    }

    pub(crate) fn forbidden_with(&self, node: u32) -> impl Iterator<Item = u32> {
        self.forbidden.get(&node).into_iter().flatten().copied()
    }

    /// Every forbidden pair once, the smaller node first.
    pub(crate) fn forbidden_pairs(&self) -> impl Iterator<Item = (u32, u32)> {
        self.forbidden
            .iter()
            .flat_map(|(&left, others)| others.iter().map(move |&right| (left, right)))
            .filter(|(left, right)| left < right)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        // A node of a tree or table with its share of empty places: about 64 bytes.
        let decided = self.blocked.len() + 3 * self.links.len() + 2 * self.forbidden.len();
        self.dictionary.memory_bytes()
            + self.ranks.capacity()
            + self.heads.capacity() * size_of::<u32>()
            + self.rows.capacity() * size_of::<Row>()
            + self.free.capacity() * size_of::<u32>()
            + self.index.memory_bytes()
            + decided * 64
    }
}

fn forget_pair(pairs: &mut NodeMap<u32, BTreeSet<u32>>, left: u32, right: u32) {
    for (node, other) in [(left, right), (right, left)] {
        if let Some(others) = pairs.get_mut(&node) {
            others.remove(&other);
            if others.is_empty() {
                pairs.remove(&node);
            }
        }
    }
}

fn key_of(row: &Row) -> EdgeKey {
    EdgeKey { left: row.left, right: row.right, strength: row.strength }
}

fn hash_of(key: EdgeKey) -> u64 {
    mix(u64::from(key.left) << 32 | u64::from(key.right), u64::from(key.strength))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(left: u32, right: u32, strength: u8, at: i64, source: u32) -> Edge {
        Edge { left, right, strength, weight: None, first_seen: at, last_seen: at, records: 1, source }
    }

    fn of_nodes(nodes: u32) -> Evidence {
        let mut evidence = Evidence::default();
        for node in 0..nodes {
            evidence.node(u128::from(node) + 100, 0).unwrap();
        }
        evidence
    }

    #[test]
    fn more_evidence_of_a_kind_is_added_in_any_order() {
        let pieces = [edge(1, 0, 2, 5, 7), edge(0, 1, 2, 3, 9), edge(0, 1, 2, 8, 1)];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut evidence = of_nodes(2);
            for piece in order {
                evidence.add(&pieces[piece]).unwrap();
            }
            let found: Vec<Edge> = evidence.rows().map(Row::edge).collect();
            let expected = Edge { first_seen: 3, last_seen: 8, records: 3, source: 9, ..edge(0, 1, 2, 3, 9) };
            assert_eq!(found, [expected]);
        }
    }

    #[test]
    fn removed_rows_leave_every_list_and_their_numbers_are_used_again() {
        let mut evidence = of_nodes(4);
        for (left, right) in [(0, 1), (0, 2), (1, 1), (2, 3), (0, 3)] {
            evidence.add(&edge(left, right, 0, 1, 0)).unwrap();
        }
        assert!(evidence.remove(EdgeKey { left: 2, right: 0, strength: 0 }).is_some());
        assert!(evidence.remove(EdgeKey { left: 1, right: 1, strength: 0 }).is_some());
        assert!(evidence.remove(EdgeKey { left: 1, right: 1, strength: 0 }).is_none());
        assert!(evidence.remove(EdgeKey { left: 0, right: 1, strength: 1 }).is_none());
        evidence.sweep(&[0, 1, 2]);
        let partners = |evidence: &Evidence, node| {
            let mut partners: Vec<u32> = evidence.rows_of(node).map(|(_, row)| row.other(node)).collect();
            partners.sort_unstable();
            partners
        };
        assert_eq!((partners(&evidence, 0), partners(&evidence, 1)), (vec![1, 3], vec![0]));
        assert_eq!((partners(&evidence, 2), partners(&evidence, 3)), (vec![3], vec![0, 2]));
        evidence.add(&edge(1, 2, 0, 1, 0)).unwrap();
        evidence.add(&edge(1, 3, 0, 1, 0)).unwrap();
        assert_eq!((evidence.all_rows().len(), evidence.edges()), (5, 5));
        assert_eq!(partners(&evidence, 1), [0, 2, 3]);
    }
}
