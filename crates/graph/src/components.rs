//! Connected components of a whole edge list: union-find over dense ids, by several threads.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use crate::Result;
use crate::error::GraphError;

/// Edges a thread takes at a time.
const CHUNK: usize = 1 << 16;

/// Edges whose ends are looked up together, so that the memory answers while the next is asked.
const BATCH: usize = 32;

/// The component of every node, named by its smallest node: `labels[node]` has `nodes` entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Components {
    /// The smallest node of each node's component.
    pub labels: Vec<u32>,
    /// How many components there are.
    pub count: u32,
}

/// The components of `nodes` nodes under `edges`, found by `threads` threads. The result depends on the set of edges alone.
///
/// # Errors
/// [`GraphError::NodeOutOfRange`] when an end is not below `nodes`.
pub fn components(nodes: u32, edges: &[(u32, u32)], threads: usize) -> Result<Components> {
    let builder = ComponentBuilder::new(nodes);
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let from = next.fetch_add(CHUNK, Relaxed);
            let Some(rest) = edges.get(from..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            builder.join(&rest[..rest.len().min(CHUNK)])?;
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().fold(own, |result, other| result.and(other.join().unwrap_or(Ok(()))))
    })?;
    Ok(builder.finish())
}

/// Components in the making. Takes edges in chunks, from several threads at once; 4 bytes a node.
///
/// A root is always the smallest node of its set: it can only be hung below a smaller one, and only while it still is a root. Then the order in which threads come does not
/// matter (Jayanti and Tarjan, "Concurrent disjoint set union", 2021, with the node's number for their random order).
#[derive(Debug)]
pub struct ComponentBuilder {
    parent: Vec<AtomicU32>,
}

impl ComponentBuilder {
    /// Nodes `0..nodes`, each alone.
    #[must_use]
    pub fn new(nodes: u32) -> Self {
        Self { parent: (0..nodes).map(AtomicU32::new).collect() }
    }

    /// Joins the ends of each edge.
    ///
    /// # Errors
    /// [`GraphError::NodeOutOfRange`]; edges before the wrong one may have been joined.
    pub fn join(&self, edges: &[(u32, u32)]) -> Result<()> {
        for batch in edges.chunks(BATCH) {
            self.join_batch(batch)?;
        }
        Ok(())
    }

    /// Joins `left[i]` and `right[i]` for every row `i`.
    ///
    /// # Errors
    /// [`GraphError::Length`] when the columns differ in length; [`GraphError::NodeOutOfRange`] as in [`ComponentBuilder::join`].
    pub fn join_columns(&self, left: &[u32], right: &[u32]) -> Result<()> {
        if left.len() != right.len() {
            return Err(GraphError::Length { what: "right ends", rows: left.len(), found: right.len() });
        }
        let mut batch = [(0, 0); BATCH];
        for (left, right) in left.chunks(BATCH).zip(right.chunks(BATCH)) {
            for (pair, (&left, &right)) in batch.iter_mut().zip(left.iter().zip(right)) {
                *pair = (left, right);
            }
            self.join_batch(&batch[..left.len()])?;
        }
        Ok(())
    }

    /// The components.
    #[must_use]
    pub fn finish(self) -> Components {
        let mut labels: Vec<u32> = self.parent.into_iter().map(AtomicU32::into_inner).collect();
        let mut count = 0;
        // A parent is smaller than its child, so it has its root already.
        for node in 0..labels.len() {
            let parent = labels[node] as usize;
            if parent == node {
                count += 1;
            } else {
                labels[node] = labels[parent];
            }
        }
        Components { labels, count }
    }

    fn join_batch(&self, edges: &[(u32, u32)]) -> Result<()> {
        let mut near = [(0, 0); BATCH];
        // Two steps towards the roots, each for the whole batch: looks into memory that do not wait for each other.
        for (near, &(left, right)) in near.iter_mut().zip(edges) {
            *near = (self.parent_checked(left)?, self.parent_checked(right)?);
        }
        for (near, &(left, right)) in near.iter_mut().zip(edges) {
            if near.0 != near.1 {
                *near = (self.halve(left, near.0), self.halve(right, near.1));
            }
        }
        for &(left, right) in &near[..edges.len()] {
            if left != right {
                self.union(left, right);
            }
        }
        Ok(())
    }

    fn parent_checked(&self, node: u32) -> Result<u32> {
        match self.parent.get(node as usize) {
            Some(parent) => Ok(parent.load(Relaxed)),
            None => {
                Err(GraphError::NodeOutOfRange { node, nodes: u32::try_from(self.parent.len()).unwrap_or(u32::MAX) })
            }
        }
    }

    /// Hangs a node below its grandparent, which is returned.
    ///
    /// Another thread may have brought the node nearer to its root meanwhile, which is then lost; an ancestor it stays, and a node that was no root never becomes one.
    fn halve(&self, node: u32, parent: u32) -> u32 {
        let grandparent = self.parent[parent as usize].load(Relaxed);
        if grandparent != parent {
            self.parent[node as usize].store(grandparent, Relaxed);
        }
        grandparent
    }

    fn root(&self, mut node: u32) -> u32 {
        loop {
            let parent = self.parent[node as usize].load(Relaxed);
            if parent == node {
                return node;
            }
            let grandparent = self.halve(node, parent);
            if grandparent == parent {
                return parent;
            }
            node = grandparent;
        }
    }

    fn union(&self, left: u32, right: u32) {
        let (mut left, mut right) = (left, right);
        loop {
            left = self.root(left);
            right = self.root(right);
            if left == right {
                return;
            }
            let (low, high) = (left.min(right), left.max(right));
            // Fails when another thread has hung `high` below something; then it is no root any more.
            if self.parent[high as usize].compare_exchange(high, low, Relaxed, Relaxed).is_ok() {
                return;
            }
        }
    }
}

/// Union-find for one thread, over the vertices of one component; the smaller is the root.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    parent: Vec<u32>,
}

impl Sets {
    /// Makes `size` sets of one.
    pub(crate) fn reset(&mut self, size: usize) {
        self.parent.clear();
        self.parent.extend((0..size).map(|id| u32::try_from(id).unwrap_or(u32::MAX)));
    }

    pub(crate) fn root(&mut self, mut id: u32) -> u32 {
        while self.parent[id as usize] != id {
            let grandparent = self.parent[self.parent[id as usize] as usize];
            self.parent[id as usize] = grandparent;
            id = grandparent;
        }
        id
    }

    /// Joins two sets; returns the root that stays and the one that went, or `None` when it was one set.
    pub(crate) fn union(&mut self, left: u32, right: u32) -> Option<(u32, u32)> {
        let (left, right) = (self.root(left), self.root(right));
        if left == right {
            return None;
        }
        let (low, high) = (left.min(right), left.max(right));
        self.parent[high as usize] = low;
        Some((low, high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breadth-first search, to compare with.
    fn searched(nodes: u32, edges: &[(u32, u32)]) -> Vec<u32> {
        let mut partners = vec![Vec::new(); nodes as usize];
        for &(left, right) in edges {
            partners[left as usize].push(right);
            partners[right as usize].push(left);
        }
        let mut labels = vec![u32::MAX; nodes as usize];
        for start in 0..nodes {
            let mut waiting = vec![start];
            while let Some(node) = waiting.pop() {
                if labels[node as usize] == u32::MAX {
                    labels[node as usize] = start;
                    waiting.extend(&partners[node as usize]);
                }
            }
        }
        labels
    }

    fn random(state: &mut u64, below: u32) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((*state >> 33) % u64::from(below)).unwrap()
    }

    #[test]
    fn components_equal_a_search_whatever_the_threads() {
        let mut state = 7;
        for nodes in [1, 2, 50, 3_000, 200_000] {
            let edges: Vec<_> =
                (0..nodes / 2).map(|_| (random(&mut state, nodes), random(&mut state, nodes))).collect();
            let expected = searched(nodes, &edges);
            for threads in [1, 2, 5] {
                let found = components(nodes, &edges, threads).unwrap();
                assert_eq!(found.labels, expected, "{nodes} nodes, {threads} threads");
                assert_eq!(found.count as usize, (0..nodes).filter(|&node| expected[node as usize] == node).count());
            }
            let (left, right): (Vec<u32>, Vec<u32>) = edges.iter().copied().unzip();
            let builder = ComponentBuilder::new(nodes);
            builder.join_columns(&left, &right).unwrap();
            assert_eq!(builder.finish().labels, expected);
        }
    }

    #[test]
    fn a_chain_in_any_direction_is_one_component() {
        let nodes = 100_000;
        let forwards: Vec<_> = (1..nodes).map(|node| (node - 1, node)).collect();
        let backwards: Vec<_> = forwards.iter().rev().copied().collect();
        for edges in [forwards, backwards] {
            let found = components(nodes, &edges, 2).unwrap();
            assert_eq!(found.count, 1);
            assert!(found.labels.iter().all(|&label| label == 0));
        }
    }

    #[test]
    fn an_end_out_of_range_is_told() {
        let wrong = components(3, &[(0, 1), (2, 3)], 2);
        assert_eq!(wrong, Err(GraphError::NodeOutOfRange { node: 3, nodes: 3 }));
    }
}
