//! The clusters of a whole graph under some rules, and of the raw components that a change touches.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::components::ComponentBuilder;
use crate::evidence::{Evidence, NONE, Row};
use crate::greedy::Resolver;
use crate::identifier::{Examiner, Life, Member, Standing, State, States};
use crate::node_map::NodeMap;
use crate::rules::Rules;

/// Broken components a thread takes at a time.
const CHUNK: usize = 256;

/// Rows or nodes a thread takes at a time.
const ROWS: usize = 1 << 16;

/// What the rules make of the evidence.
///
/// A raw component is what evidence connects that counts and whose ends both join; clusters are parts of it. It is named by its smallest node, and its nodes are a ring.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resolution {
    pub(crate) states: States,
    /// The smallest node of each node's raw component; `NONE` for nodes that nothing speaks of.
    pub(crate) raw: Vec<u32>,
    ring: Vec<u32>,
    labels: Labels,
}

/// The cluster of each member, by a number that means nothing but that it is the same for the members of one cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Labels {
    /// Of each node's first life: the smallest node of whose first life the cluster has; counted down from `NONE - 1` when it has none such.
    first: Vec<u32>,
    /// Of the lives after it.
    later: NodeMap<u32, Vec<u32>>,
    /// Numbers for clusters of later lives alone, by their smallest member. Given once for good.
    of_later: NodeMap<Member, u32>,
}

/// The members of a raw component with the cluster of each, named by its smallest member.
pub(crate) type Clustered = Vec<(Member, Member)>;

impl Resolution {
    /// Works it all out, with so many threads.
    pub(crate) fn of(evidence: &Evidence, rules: &Rules, threads: usize) -> Self {
        Self::with_cuts(evidence, rules, threads).0
    }

    /// The same, with the number of edges that the guard has cut.
    pub(crate) fn with_cuts(evidence: &Evidence, rules: &Rules, threads: usize) -> (Self, u64) {
        let mut resolution = Self { states: states(evidence, rules, threads), ..Self::default() };
        resolution.find_raw(evidence, rules, threads);
        let broken = resolution.find_broken(evidence, rules);
        resolution.labels.first.clone_from(&resolution.raw);
        let (clustered, cut) = resolution.cluster_each(evidence, rules, &broken, threads);
        for (member, cluster) in clustered {
            resolution.labels.set(member, cluster);
        }
        (resolution, cut)
    }

    /// Makes room for nodes that came since.
    pub(crate) fn extend(&mut self, nodes: u32) {
        self.states.standing.resize(nodes as usize, Standing::Joins);
        self.raw.resize(nodes as usize, NONE);
        self.labels.first.resize(nodes as usize, NONE);
        for node in u32::try_from(self.ring.len()).unwrap_or(NONE)..nodes {
            self.ring.push(node);
        }
    }

    /// The nodes of a raw component, from the one given.
    pub(crate) fn raw_nodes(&self, node: u32) -> impl Iterator<Item = u32> {
        let mut at = Some(node);
        std::iter::from_fn(move || {
            let here = at?;
            let next = self.ring[here as usize];
            at = (next != node).then_some(next);
            Some(here)
        })
    }

    /// The members that a node is: one for each of its lives; none when nothing speaks of it.
    pub(crate) fn members_of(&self, node: u32) -> impl Iterator<Item = Member> {
        let lives = if self.raw[node as usize] == NONE { 0 } else { self.states.lives_of(node).len().max(1) };
        (0..lives).map(move |life| Member { node, life: u16::try_from(life).unwrap_or(u16::MAX) })
    }

    /// The cluster of a member; `None` when there is no such.
    pub(crate) fn label(&self, member: Member) -> Option<u32> {
        self.labels.get(member)
    }

    /// Replaces the state of a node.
    pub(crate) fn set_state(&mut self, node: u32, state: State) {
        self.labels.later.remove(&node);
        self.states.set(node, state);
    }

    /// Makes these nodes, in ascending order, one raw component.
    pub(crate) fn set_raw(&mut self, nodes: &[u32]) {
        for (index, &node) in nodes.iter().enumerate() {
            self.raw[node as usize] = nodes[0];
            self.ring[node as usize] = nodes.get(index + 1).copied().unwrap_or(nodes[0]);
        }
    }

    /// Takes a node out: nothing speaks of it any more.
    pub(crate) fn clear(&mut self, node: u32) {
        self.raw[node as usize] = NONE;
        self.ring[node as usize] = node;
        self.labels.first[node as usize] = NONE;
        self.labels.later.remove(&node);
    }

    pub(crate) fn set_label(&mut self, member: Member, cluster: Member) {
        self.labels.set(member, cluster);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let later: usize = self.labels.later.values().map(|later| later.len() * size_of::<u32>() + 64).sum();
        let numbers = self.raw.capacity() + self.ring.capacity() + self.labels.first.capacity();
        self.states.memory_bytes() + numbers * size_of::<u32>() + later + self.labels.of_later.len() * 32
    }

    fn find_raw(&mut self, evidence: &Evidence, rules: &Rules, threads: usize) {
        let nodes = evidence.nodes();
        let builder = ComponentBuilder::new(nodes);
        let rows = evidence.all_rows();
        let next = AtomicUsize::new(0);
        let states = &self.states;
        let work = || {
            let mut batch = Vec::with_capacity(1024);
            while let Some(rest) = rows.get(next.fetch_add(ROWS, Relaxed)..).filter(|rest| !rest.is_empty()) {
                for rows in rest[..rest.len().min(ROWS)].chunks(1024) {
                    batch.clear();
                    let connecting = rows.iter().filter(|row| row.is_live() && connects(rules, states, row));
                    batch.extend(connecting.map(|row| (row.left, row.right)));
                    // Ends were checked when the rows were added.
                    let _checked = builder.join(&batch);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        for link in evidence.links() {
            let _checked = builder.join(&[(link.left, link.right)]);
        }
        self.raw = builder.finish().labels;
        self.ring = (0..nodes).collect();
        for node in 0..nodes {
            let root = self.raw[node as usize];
            if root == node {
                if !evidence.is_present(node) {
                    self.raw[node as usize] = NONE;
                }
                continue;
            }
            self.ring[node as usize] = self.ring[root as usize];
            self.ring[root as usize] = node;
        }
    }

    /// The raw components that may break a rule when they are taken whole, or have more to them than nodes. All others are clusters as they are.
    fn find_broken(&self, evidence: &Evidence, rules: &Rules) -> Vec<u32> {
        let nodes = evidence.nodes() as usize;
        let mut is_broken = vec![false; nodes];
        let mut unique = vec![0_u64; nodes];
        let connected = |node: usize| self.raw[node] != NONE;
        for node in (0..nodes).filter(|&node| connected(node)) {
            let root = self.raw[node] as usize;
            let bit = rules.unique_bit(evidence.ranks[node]);
            is_broken[root] |= unique[root] & bit != 0;
            unique[root] |= bit;
        }
        drop(unique);
        for (rank, limit) in (0..=u8::MAX).zip(rules.types()).filter_map(|(rank, rule)| Some((rank, rule.limit?))) {
            let mut values = vec![0_u32; nodes];
            for node in (0..nodes).filter(|&node| connected(node) && evidence.ranks[node] == rank) {
                let root = self.raw[node] as usize;
                values[root] += 1;
                is_broken[root] |= values[root] > limit.values;
            }
        }
        if let Some(guard) = rules.guard() {
            let mut size = vec![0_u32; nodes];
            for node in (0..nodes).filter(|&node| connected(node)) {
                let root = self.raw[node] as usize;
                size[root] += 1;
                is_broken[root] |= size[root] > guard.cap;
            }
        }
        for &node in self.states.all_lives().keys().filter(|&&node| connected(node as usize)) {
            is_broken[self.raw[node as usize] as usize] = true;
        }
        for (left, right) in evidence.forbidden_pairs() {
            let (left, right) = (self.raw[left as usize], self.raw[right as usize]);
            if left == right && left != NONE {
                is_broken[left as usize] = true;
            }
        }
        (0..evidence.nodes()).filter(|&node| is_broken[node as usize]).collect()
    }

    fn cluster_each(&self, evidence: &Evidence, rules: &Rules, roots: &[u32], threads: usize) -> (Clustered, u64) {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut clustered = Vec::new();
            let mut cut = 0;
            let mut resolver = Resolver::new(evidence, rules, &self.states);
            let mut nodes = Vec::new();
            while let Some(rest) = roots.get(next.fetch_add(CHUNK, Relaxed)..).filter(|rest| !rest.is_empty()) {
                for &root in &rest[..rest.len().min(CHUNK)] {
                    nodes.clear();
                    nodes.extend(self.raw_nodes(root));
                    nodes.sort_unstable();
                    resolver.load(&nodes);
                    cluster_loaded(&mut resolver, &mut clustered);
                    cut += resolver.candidates.iter().filter(|candidate| !candidate.holds()).count() as u64;
                }
            }
            (clustered, cut)
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let (mut clustered, mut cut) = work();
            for other in others {
                let (more, cut_more) = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                clustered.extend(more);
                cut += cut_more;
            }
            (clustered, cut)
        })
    }
}

/// The clusters of what a resolver has loaded, each named by its smallest first life, or if it has none by its smallest member.
pub(crate) fn cluster_loaded(resolver: &mut Resolver<'_>, clustered: &mut Clustered) {
    let mut roots = Vec::new();
    resolver.cluster(&mut roots, None);
    let mut names: Vec<Option<Member>> = vec![None; roots.len()];
    for (vertex, &root) in resolver.vertices.iter().zip(&roots) {
        let name = &mut names[root as usize];
        let order = |member: Member| (member.life != 0, member);
        if name.is_none_or(|known| order(vertex.member) < order(known)) {
            *name = Some(vertex.member);
        }
    }
    for (vertex, &root) in resolver.vertices.iter().zip(&roots) {
        if let Some(name) = names[root as usize] {
            clustered.push((vertex.member, name));
        }
    }
}

impl Labels {
    fn get(&self, member: Member) -> Option<u32> {
        let label = match member.life {
            0 => *self.first.get(member.node as usize)?,
            life => *self.later.get(&member.node)?.get(usize::from(life) - 1)?,
        };
        (label != NONE).then_some(label)
    }

    fn set(&mut self, member: Member, cluster: Member) {
        let label = if cluster.life == 0 {
            cluster.node
        } else {
            let next = NONE - 1 - u32::try_from(self.of_later.len()).unwrap_or(0);
            *self.of_later.entry(cluster).or_insert(next)
        };
        match member.life {
            0 => self.first[member.node as usize] = label,
            life => {
                let later = self.later.entry(member.node).or_default();
                let place = usize::from(life) - 1;
                if later.len() <= place {
                    later.resize(place + 1, NONE);
                }
                later[place] = label;
            }
        }
    }
}

/// Evidence that makes its ends one raw component.
pub(crate) fn connects(rules: &Rules, states: &States, row: &Row) -> bool {
    row.left != row.right && row.weight >= rules.weight_min() && states.joins(row.left) && states.joins(row.right)
}

fn states(evidence: &Evidence, rules: &Rules, threads: usize) -> States {
    let nodes = evidence.nodes();
    let mut states = States::new(vec![Standing::Joins; nodes as usize]);
    let is_plain =
        |rule: &crate::TypeRule| rule.hub_above.is_none() && rule.shared_above.is_none() && rule.life_gap.is_none();
    let plain: Vec<bool> = rules.types().iter().map(is_plain).collect();
    let share = (nodes as usize).div_ceil(threads.max(1)).max(1);
    let work = |first: usize, standing: &mut [Standing]| {
        let mut examiner = Examiner::default();
        let mut lives = Vec::new();
        for (index, place) in standing.iter_mut().enumerate() {
            let node = u32::try_from(first + index).unwrap_or(NONE);
            let is_plain = plain.get(usize::from(evidence.ranks[node as usize])).copied().unwrap_or(true);
            if is_plain && evidence.blocked.is_empty() {
                continue;
            }
            let state = examiner.examine(evidence, rules, node);
            *place = state.standing;
            if !state.lives.is_empty() {
                lives.push((node, state.lives));
            }
        }
        lives
    };
    let found: Vec<Vec<(u32, Vec<Life>)>> = std::thread::scope(|scope| {
        let shares = states.standing.chunks_mut(share).enumerate();
        let running: Vec<_> =
            shares.map(|(index, standing)| scope.spawn(move || work(index * share, standing))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    for (node, lives) in found.into_iter().flatten() {
        states.set_lives(node, lives);
    }
    states
}
