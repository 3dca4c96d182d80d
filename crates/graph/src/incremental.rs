//! The identity graph, and how a change moves only what it touches.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::Result;
use crate::change::{Cause, Change, Cluster, ClusterMember, Group, Join, Split, StandingChange, Touched};
use crate::components::Sets;
use crate::error::GraphError;
use crate::evidence::{Edge, EdgeKey, Evidence, Link, NONE};
use crate::greedy::{Resolver, Tie};
use crate::identifier::{Examiner, Life, Member, Standing, State, States, boundary, life_at, seen_at};
use crate::node_map::{NodeBits, NodeMap, NodeSet};
use crate::resolution::{Clustered, Resolution, cluster_loaded, connects};
use crate::rules::Rules;

/// Identifiers, the evidence between them, and the clusters that the rules make of it.
///
/// The clusters depend on the set of evidence, decisions and rules alone (promise IDN-1): not on their order, nor on the numbers that identifiers got. Identifiers that nothing speaks
/// of are in no cluster.
#[derive(Debug, Clone)]
pub struct IdentityGraph {
    pub(crate) evidence: Evidence,
    pub(crate) rules: Rules,
    pub(crate) resolution: Resolution,
    pub(crate) threads: usize,
    /// Nodes at the rim of a part that was loaded: only some of their evidence is here.
    pub(crate) fringe: BTreeSet<u32>,
}

impl IdentityGraph {
    /// An empty graph. Whole-graph work is done by one thread until [`IdentityGraph::with_threads`].
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            evidence: Evidence::default(),
            rules,
            resolution: Resolution::default(),
            threads: 1,
            fringe: BTreeSet::new(),
        }
    }

    /// Sets how many threads do the work on the whole graph. The result does not depend on it.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// The node of an identifier, a new one if it has none. In no cluster until evidence or a link speaks of it.
    ///
    /// # Errors
    /// [`GraphError::UnknownType`], [`GraphError::TypeDiffers`], [`GraphError::Full`].
    pub fn node(&mut self, token: u128, rank: u8) -> Result<u32> {
        let types = self.rules.types().len();
        if usize::from(rank) >= types {
            return Err(GraphError::UnknownType { rank, types });
        }
        let node = self.evidence.node(token, rank)?;
        self.resolution.extend(self.evidence.nodes());
        Ok(node)
    }

    /// The node of a token, `None` when it has none.
    #[must_use]
    pub fn find(&self, token: u128) -> Option<u32> {
        self.evidence.dictionary.get(token)
    }

    /// The token of a node, `None` when there is no such.
    #[must_use]
    pub fn token(&self, node: u32) -> Option<u128> {
        self.evidence.dictionary.token(node)
    }

    /// The type of a node, `None` when there is no such.
    #[must_use]
    pub fn rank(&self, node: u32) -> Option<u8> {
        self.evidence.ranks.get(node as usize).copied()
    }

    /// How many nodes there are, those that nothing speaks of among them.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.evidence.nodes()
    }

    /// How many edges there are.
    #[must_use]
    pub fn edges(&self) -> usize {
        self.evidence.edges()
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The edges at a node, an edge to itself once.
    ///
    /// # Errors
    /// [`GraphError::NodeOutOfRange`].
    pub fn edges_of(&self, node: u32) -> Result<impl Iterator<Item = Edge>> {
        self.evidence.check_node(node)?;
        Ok(self.evidence.rows_of(node).map(|(_, row)| row.edge()))
    }

    /// Whether a node joins others.
    ///
    /// # Errors
    /// [`GraphError::NodeOutOfRange`].
    pub fn standing(&self, node: u32) -> Result<Standing> {
        self.evidence.check_node(node)?;
        Ok(self.resolution.states.standing[node as usize])
    }

    /// The lives of a node; empty when it has one.
    ///
    /// # Errors
    /// [`GraphError::NodeOutOfRange`].
    pub fn lives(&self, node: u32) -> Result<&[Life]> {
        self.evidence.check_node(node)?;
        Ok(self.resolution.states.lives_of(node))
    }

    /// The member that evidence of an interval, from its first to its last moment, speaks of; `None` when it meets several lives.
    ///
    /// # Errors
    /// [`GraphError::NodeOutOfRange`].
    pub fn member_at(&self, node: u32, first: i64, last: i64) -> Result<Option<Member>> {
        Ok(life_at(self.lives(node)?, first, last).map(|life| Member { node, life }))
    }

    /// The newest life of a node, its only one for most.
    ///
    /// # Errors
    /// [`GraphError::NodeOutOfRange`].
    pub fn newest_life(&self, node: u32) -> Result<Member> {
        let life = u16::try_from(self.lives(node)?.len().saturating_sub(1)).unwrap_or(u16::MAX);
        Ok(Member { node, life })
    }

    /// From when (included) and until when (not included) a moment is nearest to a life, in microseconds since 1970: `None` is without end. What is dated so, and nothing else, speaks of it.
    ///
    /// # Errors
    /// [`GraphError::NodeOutOfRange`], also for a life that there is not.
    pub fn period(&self, member: Member) -> Result<(Option<i64>, Option<i64>)> {
        let lives = self.lives(member.node)?;
        let place = usize::from(member.life);
        if lives.is_empty() && place == 0 {
            return Ok((None, None));
        }
        let absent = GraphError::NodeOutOfRange { node: member.node, nodes: self.nodes() };
        let own = lives.get(place).ok_or(absent)?;
        let from = place.checked_sub(1).and_then(|before| lives.get(before)).map(|before| boundary(before, own));
        Ok((from, lives.get(place + 1).map(|after| boundary(own, after))))
    }

    /// A number that the members of one cluster have in common, for as long as nothing changes; `None` when there is no such member.
    #[must_use]
    pub fn cluster_of(&self, member: Member) -> Option<u32> {
        self.resolution.label(member)
    }

    /// The members of the cluster that a member is in, in ascending order; empty when there is no such member.
    #[must_use]
    pub fn cluster(&self, member: Member) -> Vec<Member> {
        let Some(label) = self.cluster_of(member) else { return Vec::new() };
        let nodes = self.resolution.raw_nodes(member.node);
        let members = nodes.flat_map(|node| self.resolution.members_of(node));
        let mut members: Vec<Member> = members.filter(|&member| self.resolution.label(member) == Some(label)).collect();
        members.sort_unstable();
        members
    }

    /// Every member with the number of its cluster, in ascending order.
    pub fn assignments(&self) -> impl Iterator<Item = (Member, u32)> {
        let nodes = (0..self.evidence.nodes()).filter(|node| !self.fringe.contains(node));
        let members = nodes.flat_map(|node| self.resolution.members_of(node));
        members.filter_map(|member| Some((member, self.resolution.label(member)?)))
    }

    /// Every cluster, each with its members in ascending order.
    #[must_use]
    pub fn clusters(&self) -> Vec<Vec<Member>> {
        let mut assigned: Vec<(u32, Member)> = self.assignments().map(|(member, label)| (label, member)).collect();
        assigned.sort_unstable();
        assigned
            .chunk_by(|one, two| one.0 == two.0)
            .map(|cluster| cluster.iter().map(|&(_, member)| member).collect())
            .collect()
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.evidence.memory_bytes() + self.resolution.memory_bytes()
    }

    /// Adds evidence and works out everything again: the way to build a graph. For what changes later, [`IdentityGraph::apply`].
    ///
    /// # Errors
    /// What [`Edge`]s can be wrong in; those before the wrong one have been added, and clusters are as they were.
    pub fn build(&mut self, edges: impl IntoIterator<Item = Edge>) -> Result<()> {
        self.check_whole()?;
        let edges = edges.into_iter();
        self.evidence.reserve(edges.size_hint().0);
        for edge in edges {
            self.evidence.check_edge(&edge)?;
            self.evidence.add(&edge)?;
        }
        self.rebuild()
    }

    /// Works out everything again, from the evidence alone.
    ///
    /// # Errors
    /// [`GraphError::NotLoaded`] on a part of a graph.
    pub fn rebuild(&mut self) -> Result<()> {
        self.check_whole()?;
        self.resolution = Resolution::of(&self.evidence, &self.rules, self.threads);
        Ok(())
    }

    /// Makes changes, one after the other, then works out again the raw components that they touch, and those alone.
    ///
    /// # Errors
    /// [`GraphError::NodeOutOfRange`], [`GraphError::Weight`], [`GraphError::IntervalReversed`], [`GraphError::Forbidden`], [`GraphError::SamePair`], those of rules: nothing has changed
    /// then. [`GraphError::NotLoaded`] and [`GraphError::Full`]: the graph is to be dropped.
    pub fn apply(&mut self, changes: &[Change]) -> Result<Touched> {
        self.check(changes)?;
        let batch = self.record(changes)?;
        let states = self.examine(&batch.dirty);
        self.resolve(batch, states)
    }

    /// Replaces all rules and works out everything again.
    ///
    /// # Errors
    /// [`GraphError::UnknownType`] when the rules lack a type of the graph, [`GraphError::NotLoaded`] on a part of a graph; nothing has changed then.
    pub fn set_rules(&mut self, rules: Rules) -> Result<()> {
        self.resolution = self.under(&rules)?;
        self.rules = rules;
        Ok(())
    }

    /// What became of earlier clusters, given by any number a cluster; from none, every cluster is new. This is how a graph that was built or rebuilt comes to its assignment. The cause is
    /// always [`Cause::Compared`].
    #[must_use]
    pub fn since(&self, earlier: impl IntoIterator<Item = (Member, u32)>) -> Touched {
        let mut labels: Vec<(Member, u32)> = earlier.into_iter().collect();
        labels.sort_unstable();
        let nodes: Vec<u32> = (0..self.evidence.nodes()).filter(|node| !self.fringe.contains(node)).collect();
        let mut touched = Touched { nodes: nodes.len() as u64, ..Touched::default() };
        let mut clusters: NodeMap<u32, Member> = NodeMap::default();
        let clustered: Clustered =
            self.assignments().map(|(member, label)| (member, *clusters.entry(label).or_insert(member))).collect();
        let mut seen = Vec::with_capacity(clustered.len());
        for &node in nodes.iter().filter(|&&node| self.resolution.raw[node as usize] != NONE) {
            touched.edges += members_at(&self.evidence, &self.resolution.states, node, |known| seen.push(known));
        }
        let mut batch = Batch::default();
        batch.causes.push((0, Cause::Compared));
        let raw = nodes
            .iter()
            .map(|&node| (self.resolution.raw[node as usize], self.resolution.raw[node as usize]))
            .collect();
        touched.groups = groups(&Before { nodes, labels, starts: Vec::new(), raw }, &clustered, &[], &seen, &batch);
        touched
    }

    fn check(&self, changes: &[Change]) -> Result<()> {
        // What earlier changes of the batch allow or forbid.
        let mut decided: NodeMap<(u32, u32), bool> = NodeMap::default();
        let mut rules = None;
        for change in changes {
            match *change {
                Change::Add(edge) => self.evidence.check_edge(&edge)?,
                Change::Remove(EdgeKey { left, right, .. }) => {
                    self.evidence.check_node(left)?;
                    self.evidence.check_node(right)?;
                }
                Change::Block(node) | Change::Unblock(node) => self.evidence.check_node(node)?,
                Change::Link(Link { left, right, .. })
                | Change::WithdrawLink { left, right }
                | Change::Unlink { left, right }
                | Change::Allow { left, right } => {
                    self.evidence.check_node(left)?;
                    self.evidence.check_node(right)?;
                    if left == right {
                        return Err(GraphError::SamePair(left));
                    }
                    let pair = (left.min(right), left.max(right));
                    match change {
                        Change::Unlink { .. } => _ = decided.insert(pair, true),
                        Change::Allow { .. } => _ = decided.insert(pair, false),
                        Change::Link(_) => {
                            let known = decided.get(&pair).copied();
                            if known.unwrap_or_else(|| self.evidence.is_forbidden(left, right)) {
                                return Err(GraphError::Forbidden { left, right });
                            }
                        }
                        _ => {}
                    }
                }
                Change::Rule { rank, rule } => {
                    rules = Some(rules.as_ref().unwrap_or(&self.rules).with_type(rank, rule)?);
                }
            }
        }
        Ok(())
    }

    /// Makes the changes in the evidence and the rules; says which nodes' own evidence they concern.
    fn record(&mut self, changes: &[Change]) -> Result<Batch> {
        let mut batch = Batch::default();
        batch.added.reserve(changes.len());
        let mut swept = Vec::new();
        for change in changes {
            match *change {
                Change::Add(edge) => {
                    batch.added.insert(self.evidence.add(&edge)?);
                    batch.blame(6, Cause::Edge(edge), &[edge.left, edge.right]);
                }
                Change::Remove(key) => {
                    if let Some(edge) = self.evidence.remove(key) {
                        swept.extend([edge.left, edge.right]);
                        batch.blame(4, Cause::Removed(edge), &[edge.left, edge.right]);
                    }
                }
                Change::Block(node) => {
                    if self.evidence.blocked.insert(node) {
                        batch.blame(2, Cause::Blocked(node), &[node]);
                        self.add_counting_partners(node, &mut batch.dirty);
                    }
                }
                Change::Unblock(node) => {
                    if self.evidence.blocked.remove(&node) {
                        batch.blame(6, Cause::Unblocked(node), &[node]);
                        self.add_counting_partners(node, &mut batch.dirty);
                    }
                }
                Change::Link(link) => {
                    self.evidence.set_link(link);
                    batch.linked.insert((link.left.min(link.right), link.left.max(link.right)));
                    batch.blame(6, Cause::Linked(link), &[link.left, link.right]);
                }
                Change::WithdrawLink { left, right } => {
                    if let Some(link) = self.evidence.withdraw_link(left, right) {
                        batch.blame(1, Cause::LinkWithdrawn(link), &[left, right]);
                    }
                }
                Change::Unlink { left, right } => {
                    let had_link = self.evidence.withdraw_link(left, right).is_some();
                    if self.evidence.forbid(left, right) || had_link {
                        batch.blame(0, Cause::Unlinked(left, right), &[left, right]);
                    }
                }
                Change::Allow { left, right } => {
                    if self.evidence.allow(left, right) {
                        batch.blame(6, Cause::Allowed(left, right), &[left, right]);
                    }
                }
                Change::Rule { rank, rule } => {
                    let was_unique = self.rules.of(rank).unique;
                    self.rules = self.rules.with_type(rank, rule)?;
                    let nodes: Vec<u32> = self.nodes_of_type(rank).collect();
                    if was_unique != rule.unique {
                        for &node in &nodes {
                            batch.dirty.extend(self.evidence.rows_of(node).map(|(_, row)| row.other(node)));
                        }
                    }
                    batch.blame(5, Cause::Rule(rank), &nodes);
                }
            }
        }
        swept.sort_unstable();
        swept.dedup();
        self.evidence.sweep(&swept);
        batch.dirty.sort_unstable();
        batch.dirty.dedup();
        Ok(batch)
    }

    fn nodes_of_type(&self, rank: u8) -> impl Iterator<Item = u32> {
        self.evidence.ranks.iter().zip(0..).filter(move |(of, _)| **of == rank).map(|(_, node)| node)
    }

    /// A blocked value of a unique type does not count among those its partners were seen with.
    fn add_counting_partners(&self, node: u32, dirty: &mut Vec<u32>) {
        if self.rules.unique_bit(self.evidence.ranks[node as usize]) != 0 {
            dirty.extend(self.evidence.rows_of(node).map(|(_, row)| row.other(node)));
        }
    }

    /// The states of these nodes where they are not what they were.
    fn examine(&self, dirty: &[u32]) -> Vec<(u32, State)> {
        let examined = side_by_side(self.threads, dirty, NODES, |dirty| {
            let mut examiner = Examiner::default();
            let mut changed = Vec::new();
            for &node in dirty.iter().filter(|node| !self.fringe.contains(node)) {
                let state = examiner.examine(&self.evidence, &self.rules, node);
                let states = &self.resolution.states;
                if state.standing != states.standing[node as usize] || state.lives != states.lives_of(node) {
                    changed.push((node, state));
                }
            }
            changed
        });
        examined.into_iter().flatten().collect()
    }

    fn resolve(&mut self, mut batch: Batch, states: Vec<(u32, State)>) -> Result<Touched> {
        let mut touched = Touched::default();
        // What was, before anything is overwritten.
        let earlier: Earlier = states.iter().map(|&(node, _)| (node, labels_of(&self.resolution, node))).collect();
        for &(node, ref state) in &states {
            let was = self.resolution.states.standing[node as usize];
            if was != state.standing {
                touched.standings.push(StandingChange { node, was, is: state.standing });
            }
            if self.resolution.states.lives_of(node) != state.lives {
                touched.lives.push(node);
            }
            let is_blocking = was == Standing::Blocked || state.standing == Standing::Blocked;
            if !is_blocking {
                batch.blame(3, Cause::Standing(node), &[node]);
            }
        }
        for (node, state) in states {
            self.resolution.set_state(node, state);
        }
        batch.settle_blame();
        let parts = self.parts(&batch.dirty)?;
        for found in self.work_out(&parts, &batch, &earlier) {
            touched.nodes += found.nodes;
            touched.edges += found.edges;
            touched.groups.extend(found.groups);
            for &node in &found.absent {
                self.resolution.clear(node);
            }
            for component in found.components {
                self.resolution.set_raw(&component);
            }
            for (member, cluster) in found.clustered {
                self.resolution.set_label(member, cluster);
            }
        }
        Ok(touched)
    }

    /// The raw components that these nodes are in and that they now connect, as they were, each by one of its nodes; those that may have become one together, in the order of their
    /// smallest nodes. Whatever connects what was apart is at a node whose own evidence has changed.
    fn parts(&self, dirty: &[u32]) -> Result<Vec<Vec<u32>>> {
        let root = |node: u32| match self.resolution.raw[node as usize] {
            NONE => node,
            root => root,
        };
        let ties = side_by_side(self.threads, dirty, NODES, |dirty| {
            let mut ties: Vec<(u32, u32)> = Vec::with_capacity(dirty.len());
            for &node in dirty {
                let own = root(node);
                ties.push((own, own));
                let rows = self.evidence.rows_of(node).map(|(_, row)| row);
                let connecting = rows.filter(|row| connects(&self.rules, &self.resolution.states, row));
                let others = connecting.map(|row| row.other(node)).chain(self.evidence.linked_with(node));
                ties.extend(others.map(root).filter(|&other| other != own).map(|other| (own, other)));
            }
            ties
        });
        let ties: Vec<(u32, u32)> = ties.into_iter().flatten().collect();
        let mut roots: Vec<u32> = ties.iter().flat_map(|&(one, two)| [one, two]).collect();
        roots.sort_unstable();
        roots.dedup();
        if !self.fringe.is_empty() {
            let nodes = roots.iter().flat_map(|&root| self.resolution.raw_nodes(root));
            let missing: BTreeSet<u32> = nodes.filter(|node| self.fringe.contains(node)).collect();
            if !missing.is_empty() {
                return Err(GraphError::NotLoaded(missing.into_iter().collect()));
            }
        }
        let place = |root: u32| roots.binary_search(&root).map_or(NONE, number);
        let mut sets = Sets::default();
        sets.reset(roots.len());
        for (one, two) in ties.into_iter().filter(|(one, two)| one != two) {
            sets.union(place(one), place(two));
        }
        let mut by_set: Vec<(u32, u32)> =
            roots.iter().zip(0..).map(|(&root, place)| (sets.root(place), root)).collect();
        by_set.sort_unstable();
        let parts = by_set.chunk_by(|one, two| one.0 == two.0);
        Ok(parts.map(|part| part.iter().map(|&(_, root)| root).collect()).collect())
    }

    /// What becomes of each part, in order. Parts have nothing to do with each other, so threads take them side by side.
    fn work_out(&self, parts: &[Vec<u32>], batch: &Batch, earlier: &Earlier) -> Vec<WorkedOut> {
        side_by_side(self.threads, parts, PARTS, |parts| {
            let mut resolver = Resolver::new(&self.evidence, &self.rules, &self.resolution.states);
            let mut found = WorkedOut::default();
            for part in parts {
                self.work_out_part(part, (batch, earlier), &mut resolver, &mut found);
            }
            found.edges += resolver.edges_seen;
            found
        })
    }

    /// Works out one part: its evidence is walked through twice, the second time while it is still near.
    fn work_out_part(
        &self,
        part: &[u32],
        (batch, earlier): (&Batch, &Earlier),
        resolver: &mut Resolver<'_>,
        found: &mut WorkedOut,
    ) {
        let mut nodes: Vec<u32> = part.iter().flat_map(|&root| self.resolution.raw_nodes(root)).collect();
        nodes.sort_unstable();
        found.nodes += nodes.len() as u64;
        let mut before = Before::of(&self.resolution, nodes, earlier);
        let components = self.connect(&before, found);
        let mut clustered: Clustered = Vec::with_capacity(before.labels.len());
        let mut joins: Vec<(Member, Join)> = Vec::new();
        let mut seen: Vec<ClusterMember> = Vec::with_capacity(before.labels.len());
        for component in &components {
            resolver.load(component);
            let from = clustered.len();
            cluster_loaded(resolver, &mut clustered);
            batch.find_joins(resolver, &clustered[from..], &before, &self.evidence, &mut joins);
            seen.extend(resolver.vertices.iter().map(|vertex| ClusterMember {
                member: vertex.member,
                rank: vertex.rank,
                token: vertex.token,
                first_seen: vertex.seen.0,
                last_seen: vertex.seen.1,
                changed_hands: !self.resolution.states.lives_of(vertex.member.node).is_empty(),
            }));
            for &node in component {
                if let Some(place) = before.place(node) {
                    before.raw[place].1 = component[0];
                }
            }
        }
        found.groups.extend(groups(&before, &clustered, &joins, &seen, batch));
        found.components.extend(components);
        found.clustered.extend(clustered);
    }

    /// The raw components that the nodes of a part are now, each in ascending order. Nodes that nothing speaks of any more are none.
    fn connect(&self, part: &Before, found: &mut WorkedOut) -> Vec<Vec<u32>> {
        let mut sets = Sets::default();
        sets.reset(part.nodes.len());
        let mut absent = Vec::new();
        for (&node, own) in part.nodes.iter().zip(0_u32..) {
            let mut is_present = false;
            // What connects has both ends in the part.
            let mut tie = |other: u32| _ = part.place(other).map(|place| sets.union(own, number(place)));
            for (_, row) in self.evidence.rows_of(node) {
                found.edges += 1;
                is_present = true;
                // Each edge once.
                if row.left == node && connects(&self.rules, &self.resolution.states, row) {
                    tie(row.right);
                }
            }
            for other in self.evidence.linked_with(node) {
                is_present = true;
                tie(other);
            }
            if !is_present {
                absent.push(node);
            }
        }
        let mut by_root: Vec<(u32, u32)> =
            part.nodes.iter().zip(0_u32..).map(|(&node, place)| (sets.root(place), node)).collect();
        by_root.sort_unstable();
        let components = by_root
            .chunk_by(|one, two| one.0 == two.0)
            .map(|component| component.iter().map(|&(_, node)| node).collect::<Vec<u32>>())
            // A node that is absent has no edges: it is alone.
            .filter(|component| absent.binary_search(&component[0]).is_err())
            .collect();
        found.absent.extend(absent);
        components
    }
}

/// Parts that a thread takes at a time.
const PARTS: usize = 64;

/// Nodes that a thread takes at a time.
const NODES: usize = 1024;

/// Members that are looked up in a list; more are worth a table.
const FEW: usize = 256;

/// What `work` makes of the items, so many at a time, in their order: by as many threads as there is work for.
fn side_by_side<Item: Sync, Made: Send>(
    threads: usize,
    items: &[Item],
    at_a_time: usize,
    work: impl Fn(&[Item]) -> Made + Sync,
) -> Vec<Made> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let from = next.fetch_add(at_a_time, Relaxed);
            let Some(rest) = items.get(from..).filter(|rest| !rest.is_empty()) else { return done };
            done.push((from, work(&rest[..rest.len().min(at_a_time)])));
        }
    };
    let threads = threads.min(items.len().div_ceil(at_a_time));
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(take)).collect();
        let mut done = take();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|&(from, _)| from);
    done.into_iter().map(|(_, made)| made).collect()
}

/// The members that nodes were, with the numbers of their clusters, where their states are others now.
type Earlier = NodeMap<u32, Vec<(Member, u32)>>;

/// What some parts have become.
#[derive(Debug, Default)]
struct WorkedOut {
    nodes: u64,
    edges: u64,
    /// Nodes that nothing speaks of any more.
    absent: Vec<u32>,
    components: Vec<Vec<u32>>,
    clustered: Clustered,
    groups: Vec<Group>,
}

fn labels_of(resolution: &Resolution, node: u32) -> Vec<(Member, u32)> {
    resolution.members_of(node).filter_map(|member| Some((member, resolution.label(member)?))).collect()
}

fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(NONE)
}

/// The members that a node is, with their moments. Returns how many edges it has.
fn members_at(evidence: &Evidence, states: &States, node: u32, mut take: impl FnMut(ClusterMember)) -> u64 {
    let mut edges = 0;
    let seen = seen_at(evidence, states, node, &mut edges);
    let changed_hands = seen.len() > 1;
    for (life, (first_seen, last_seen)) in seen.into_iter().enumerate() {
        let member = Member { node, life: u16::try_from(life).unwrap_or(u16::MAX) };
        let rank = evidence.ranks[node as usize];
        take(ClusterMember { member, rank, token: evidence.token(node), first_seen, last_seen, changed_hands });
    }
    edges
}

/// What a batch of changes did to the evidence.
#[derive(Debug, Default)]
struct Batch {
    /// Nodes whose state may have changed, or whose component has; in the end in ascending order.
    dirty: Vec<u32>,
    /// Rows that are new or have grown.
    added: NodeSet<u32>,
    /// Links that are new.
    linked: NodeSet<(u32, u32)>,
    causes: Vec<(u8, Cause)>,
    /// For each node the first of the most likely causes of a split: node, unlikeliness, number of the cause. In ascending order, and one a node, once it is settled.
    blamed: Vec<(u32, u8, u32)>,
    /// Which nodes these are.
    is_blamed: NodeBits,
}

impl Batch {
    /// Notes a cause at nodes; the lower `unlikeliness` goes first.
    fn blame(&mut self, unlikeliness: u8, cause: Cause, nodes: &[u32]) {
        let cause_number = number(self.causes.len());
        self.causes.push((unlikeliness, cause));
        for &node in nodes {
            self.is_blamed.insert(node);
            self.blamed.push((node, unlikeliness, cause_number));
        }
        self.dirty.extend(nodes);
    }

    /// To be called when all blame is known, and before anybody asks for it.
    fn settle_blame(&mut self) {
        self.blamed.sort_unstable();
        self.blamed.dedup_by_key(|blame| blame.0);
    }

    fn blame_of(&self, node: u32) -> Option<usize> {
        if !self.is_blamed.contains(node) {
            return None;
        }
        let place = self.blamed.binary_search_by_key(&node, |blame| blame.0).ok()?;
        Some(self.blamed[place].2 as usize)
    }

    /// What ties together the parts of each new cluster that were in different clusters, or in none. New evidence is asked first.
    fn find_joins(
        &self,
        resolver: &mut Resolver<'_>,
        clustered: &[(Member, Member)],
        before: &Before,
        evidence: &Evidence,
        joins: &mut Vec<(Member, Join)>,
    ) {
        // The part each vertex comes from: the first vertex of the same old and the same new cluster.
        let mut parts: Vec<(Member, Option<u32>, u32)> = clustered
            .iter()
            .zip(0_u32..)
            .map(|(&(member, cluster), vertex)| (cluster, before.label(member), vertex))
            .collect();
        parts.sort_unstable();
        let is_one_part = |one: &(Member, Option<u32>, u32), two: &(Member, Option<u32>, u32)| {
            one.0 == two.0 && one.1 == two.1 && one.1.is_some()
        };
        let mut left_over = parts.chunk_by(is_one_part).count() - parts.chunk_by(|one, two| one.0 == two.0).count();
        if left_over == 0 {
            return;
        }
        let mut sets = Sets::default();
        sets.reset(clustered.len());
        for part in parts.chunk_by(is_one_part) {
            for vertex in part {
                sets.union(part[0].2, vertex.2);
            }
        }
        let is_new = |tie: Tie| match tie {
            Tie::Row(row) => self.added.contains(&row),
            Tie::Link(left, right) => self.linked.contains(&(left, right)),
        };
        for wanted in [true, false] {
            let mut candidates: Vec<_> = resolver
                .candidates
                .iter()
                .filter(|candidate| clustered[candidate.left as usize].1 == clustered[candidate.right as usize].1)
                .filter(|candidate| candidate.holds() && is_new(candidate.tie) == wanted)
                .copied()
                .collect();
            candidates.sort_unstable_by(|one, two| resolver.order(one, two));
            for candidate in candidates {
                if sets.union(candidate.left, candidate.right).is_none() {
                    continue;
                }
                let cause = match candidate.tie {
                    Tie::Row(row) => Cause::Edge(evidence.row(row).edge()),
                    Tie::Link(left, right) => match evidence.link(left, right) {
                        Some(link) => Cause::Linked(*link),
                        None => continue,
                    },
                };
                let (left, right) = (clustered[candidate.left as usize], clustered[candidate.right as usize].0);
                joins.push((left.1, Join { left: left.0, right, cause }));
                left_over -= 1;
                if left_over == 0 {
                    return;
                }
            }
        }
    }
}

/// What the members of a part were.
#[derive(Debug)]
struct Before {
    /// In ascending order.
    nodes: Vec<u32>,
    /// Members with the number of their cluster, in ascending order.
    labels: Vec<(Member, u32)>,
    /// Those of one node after the other begin here.
    starts: Vec<u32>,
    /// The raw component of each node, as it was and as it is.
    raw: Vec<(u32, u32)>,
}

impl Before {
    fn of(resolution: &Resolution, nodes: Vec<u32>, earlier: &Earlier) -> Self {
        let (mut labels, mut starts) = (Vec::with_capacity(nodes.len()), Vec::with_capacity(nodes.len()));
        for &node in &nodes {
            starts.push(number(labels.len()));
            match earlier.get(&node) {
                Some(known) => labels.extend(known),
                None => {
                    let members = resolution.members_of(node);
                    labels.extend(members.filter_map(|member| Some((member, resolution.label(member)?))));
                }
            }
        }
        let raw = nodes.iter().map(|&node| (resolution.raw[node as usize], NONE)).collect();
        Self { nodes, labels, starts, raw }
    }

    /// The place of a node among those of the part.
    fn place(&self, node: u32) -> Option<usize> {
        self.nodes.binary_search(&node).ok()
    }

    /// The cluster of a member.
    fn label(&self, member: Member) -> Option<u32> {
        let start = self.starts[self.place(member.node)?] as usize + usize::from(member.life);
        self.labels.get(start).filter(|(known, _)| *known == member).map(|&(_, label)| label)
    }

    /// The raw component of a node, as it was and as it is.
    fn raw(&self, node: u32) -> (u32, u32) {
        self.place(node).map_or((NONE, NONE), |place| self.raw[place])
    }
}

/// Brings together what was and what is, and leaves out clusters that are as they were. `seen` has the rows of `clustered`.
fn groups(
    before: &Before,
    clustered: &Clustered,
    joins: &[(Member, Join)],
    seen: &[ClusterMember],
    batch: &Batch,
) -> Vec<Group> {
    let mut old: Vec<(u32, Member)> = before.labels.iter().map(|&(member, label)| (label, member)).collect();
    old.sort_unstable();
    let mut new: Vec<(Member, Member, u32)> =
        clustered.iter().zip(0..).map(|(&(member, cluster), row)| (cluster, member, row)).collect();
    new.sort_unstable();
    let old: Vec<&[(u32, Member)]> = old.chunk_by(|one, two| one.0 == two.0).collect();
    let new: Vec<&[(Member, Member, u32)]> = new.chunk_by(|one, two| one.0 == two.0).collect();
    // Most parts have few members: looking them up in a sorted list is quicker than making a table of them.
    let mut numbers: Vec<(Member, u32)> = Vec::with_capacity(clustered.len());
    for (cluster, number) in new.iter().zip(0_u32..) {
        numbers.extend(cluster.iter().map(|&(_, member, _)| (member, number)));
    }
    numbers.sort_unstable();
    let table: Option<NodeMap<Member, u32>> = (numbers.len() > FEW).then(|| numbers.iter().copied().collect());
    let new_of = |member: Member| match &table {
        Some(table) => table.get(&member).copied(),
        None => {
            let place = numbers.binary_search_by_key(&member, |&(known, _)| known).ok()?;
            Some(numbers[place].1)
        }
    };

    // Old clusters come after the new ones.
    let mut sets = Sets::default();
    sets.reset(new.len() + old.len());
    let place_of_old = |number: usize| u32::try_from(new.len() + number).unwrap_or(NONE);
    let mut is_same = vec![false; old.len()];
    for (number, cluster) in old.iter().enumerate() {
        let first = new_of(cluster[0].1);
        let mut is_one = true;
        for &(_, member) in *cluster {
            let at = new_of(member);
            is_one &= at == first;
            if let Some(at) = at {
                sets.union(at, place_of_old(number));
            }
        }
        is_same[number] = is_one && first.is_some_and(|first| new[first as usize].len() == cluster.len());
    }

    let Some(&(_, any_cause)) = batch.causes.first() else { return Vec::new() };
    let mut groups: Vec<(u32, Group)> = Vec::new();
    // Where the group of a root is among them.
    let mut place_of = vec![NONE; new.len() + old.len()];
    let mut same = vec![false; place_of.len()];
    let place_in = |groups: &mut Vec<(u32, Group)>, place_of: &mut [u32], root: u32| {
        let place = &mut place_of[root as usize];
        if *place == NONE {
            *place = number(groups.len());
            let empty = Group {
                before: Vec::new(),
                after: Vec::new(),
                joins: Vec::new(),
                splits: Vec::new(),
                cause: any_cause,
            };
            groups.push((root, empty));
        }
        *place as usize
    };
    let by_raw = OnceCell::new();
    for (at, cluster) in old.iter().enumerate() {
        let root = sets.root(place_of_old(at));
        if is_same[at] {
            same[root as usize] = true;
            continue;
        }
        let place = place_in(&mut groups, &mut place_of, root);
        let group = &mut groups[place].1;
        let members: Vec<Member> = cluster.iter().map(|&(_, member)| member).collect();
        let first = new_of(members[0]);
        if first.is_none() || members.iter().any(|&member| new_of(member) != first) {
            let cause = batch.cause_at(&members, before, &by_raw);
            group.splits.extend(cause.map(|cause| Split { before: group.before.len(), cause }));
        }
        group.before.push(members);
    }
    for (cluster, at) in new.iter().zip(0_u32..) {
        let root = sets.root(at);
        if same[root as usize] {
            continue;
        }
        let mut members: Vec<ClusterMember> = cluster.iter().map(|&(_, _, row)| seen[row as usize]).collect();
        members.sort_unstable_by_key(ClusterMember::founding_order);
        let place = place_in(&mut groups, &mut place_of, root);
        groups[place].1.after.push(Cluster { members });
    }
    for &(cluster, join) in joins {
        if let Some(at) = new_of(cluster)
            && let Some((_, group)) = groups.get_mut(place_of[sets.root(at) as usize] as usize)
        {
            group.joins.push(join);
        }
    }
    groups.sort_unstable_by_key(|&(root, _)| root);
    for (_, group) in &mut groups {
        let is = group.after.iter().flat_map(|cluster| &cluster.members).map(|member| member.member);
        let members: Vec<Member> = group.before.iter().flatten().copied().chain(is).collect();
        group.cause = batch.cause_at(&members, before, &by_raw).unwrap_or(any_cause);
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

impl Batch {
    /// The first of the most likely causes in each raw component of a part, as it was (`false`) and as it is (`true`).
    fn by_raw(&self, part: &Before) -> NodeMap<(bool, u32), usize> {
        let mut by_raw: NodeMap<(bool, u32), usize> = NodeMap::default();
        for (node, &(was, is)) in part.nodes.iter().zip(&part.raw) {
            let Some(number) = self.blame_of(*node) else { continue };
            for key in [(false, was), (true, is)] {
                let known = by_raw.entry(key).or_insert(number);
                if (self.causes[number].0, number) < (self.causes[*known].0, *known) {
                    *known = number;
                }
            }
        }
        by_raw
    }

    /// A cause at a member; else one in the raw component that was, or in those that are.
    fn cause_at(
        &self,
        members: &[Member],
        part: &Before,
        by_raw: &OnceCell<NodeMap<(bool, u32), usize>>,
    ) -> Option<Cause> {
        let by_raw = || by_raw.get_or_init(|| self.by_raw(part));
        let likeliest = |numbers: &mut dyn Iterator<Item = usize>| {
            numbers.min_by_key(|&number| (self.causes[number].0, number)).map(|number| self.causes[number].1)
        };
        let nodes = || members.iter().map(|member| member.node);
        likeliest(&mut nodes().filter_map(|node| self.blame_of(node)))
            .or_else(|| likeliest(&mut nodes().filter_map(|node| by_raw().get(&(false, part.raw(node).0)).copied())))
            .or_else(|| likeliest(&mut nodes().filter_map(|node| by_raw().get(&(true, part.raw(node).1)).copied())))
    }
}
