//! A graph as plain columns, to be kept and loaded again: as a whole, or only the components a change will touch.

use std::collections::{BTreeSet, HashMap};

use crate::Result;
use crate::error::GraphError;
use crate::evidence::{Edge, Link, NONE};
use crate::identifier::{Life, Member, Standing, State};
use crate::incremental::IdentityGraph;
use crate::rules::Rules;

/// A graph's state. Nodes are named by their place in [`NodeColumns`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Columns {
    /// A row for each identifier.
    pub nodes: NodeColumns,
    /// A row for each life of identifiers that have several.
    pub lives: LifeColumns,
    /// A row for each edge.
    pub edges: EdgeColumns,
    /// Identifiers that the caller has blocked.
    pub blocked: Vec<u32>,
    /// What people have linked.
    pub links: Vec<Link>,
    /// What people have declared to be two.
    pub forbidden: Vec<(u32, u32)>,
}

/// Identifiers, all columns of one length.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeColumns {
    /// 128 bits each.
    pub token: Vec<u128>,
    /// The type.
    pub rank: Vec<u8>,
    /// Whether it joins others.
    pub standing: Vec<Standing>,
    /// A node of the raw component it is in, the same for all of that; `u32::MAX` when nothing speaks of it.
    pub raw_component: Vec<u32>,
    /// The number of its cluster (its first life's); `u32::MAX` when nothing speaks of it.
    pub cluster: Vec<u32>,
    /// It stands at the rim of a part: only some of its edges are here.
    pub is_fringe: Vec<bool>,
}

/// Lives, all columns of one length; those of one identifier together, in the order of time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LifeColumns {
    /// Whose.
    pub node: Vec<u32>,
    /// From when, to when, and whether it is shared.
    pub life: Vec<Life>,
    /// The number of its cluster.
    pub cluster: Vec<u32>,
}

/// Edges, all columns of one length; see [`Edge`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EdgeColumns {
    /// One end.
    pub left: Vec<u32>,
    /// The other.
    pub right: Vec<u32>,
    /// The rank of the rule.
    pub strength: Vec<u8>,
    /// Log2 of the Bayes factor; infinite for certain evidence.
    pub weight: Vec<f32>,
    /// Microseconds since 1970.
    pub first_seen: Vec<i64>,
    /// Microseconds since 1970.
    pub last_seen: Vec<i64>,
    /// How many.
    pub records: Vec<u32>,
    /// The caller's.
    pub source: Vec<u32>,
}

impl EdgeColumns {
    /// How many edges there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.left.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fn reserve(&mut self, edges: usize) {
        self.left.reserve_exact(edges);
        self.right.reserve_exact(edges);
        self.strength.reserve_exact(edges);
        self.weight.reserve_exact(edges);
        self.first_seen.reserve_exact(edges);
        self.last_seen.reserve_exact(edges);
        self.records.reserve_exact(edges);
        self.source.reserve_exact(edges);
    }

    fn push(&mut self, edge: &Edge) {
        self.left.push(edge.left);
        self.right.push(edge.right);
        self.strength.push(edge.strength);
        self.weight.push(edge.weight.unwrap_or(f32::INFINITY));
        self.first_seen.push(edge.first_seen);
        self.last_seen.push(edge.last_seen);
        self.records.push(edge.records);
        self.source.push(edge.source);
    }

    fn edge(&self, row: usize) -> Edge {
        let weight = self.weight[row];
        Edge {
            left: self.left[row],
            right: self.right[row],
            strength: self.strength[row],
            // Not a number is told when the edge is checked.
            weight: (weight != f32::INFINITY).then_some(weight),
            first_seen: self.first_seen[row],
            last_seen: self.last_seen[row],
            records: self.records[row],
            source: self.source[row],
        }
    }

    fn check(&self) -> Result<()> {
        let rows = self.len();
        let columns = [
            ("edge right", self.right.len()),
            ("edge strength", self.strength.len()),
            ("edge weight", self.weight.len()),
            ("edge first_seen", self.first_seen.len()),
            ("edge last_seen", self.last_seen.len()),
            ("edge records", self.records.len()),
            ("edge source", self.source.len()),
        ];
        same_length(rows, &columns)
    }
}

impl Columns {
    /// The part of these columns that a change needs: the raw components with these names, all edges at their nodes, and, as fringe, the nodes at the other ends. Nodes are numbered
    /// anew, in the same order, the fringe last. Identifiers that nothing speaks of are there when somebody has decided something about them.
    ///
    /// Which components a change needs: those of the identifiers it names (identifiers it does not know yet have none), and those that [`GraphError::NotLoaded`] asks for. A caller that
    /// keeps the columns in a table does the same with two conditions: nodes by `raw_component`, edges by the `raw_component` of either end.
    #[must_use]
    pub fn part(&self, raw_components: &BTreeSet<u32>) -> Self {
        let nodes = &self.nodes;
        // Identifiers that nothing speaks of may come to be spoken of: what was decided about them has to be there then.
        let pairs = self.forbidden.iter().flat_map(|&(left, right)| [left, right]);
        let decided: BTreeSet<u32> = self.blocked.iter().copied().chain(pairs).collect();
        let is_inside = |node: u32| match nodes.raw_component[node as usize] {
            NONE => decided.contains(&node),
            raw => raw_components.contains(&raw),
        };
        let inside: Vec<u32> =
            (0..nodes.token.len()).filter_map(|n| u32::try_from(n).ok()).filter(|&n| is_inside(n)).collect();
        let edges: Vec<usize> = (0..self.edges.len())
            .filter(|&row| is_inside(self.edges.left[row]) || is_inside(self.edges.right[row]))
            .collect();
        let forbidden: Vec<(u32, u32)> =
            self.forbidden.iter().copied().filter(|&(left, right)| is_inside(left) || is_inside(right)).collect();
        let ends = edges.iter().flat_map(|&row| [self.edges.left[row], self.edges.right[row]]);
        let ends = ends.chain(forbidden.iter().flat_map(|&(left, right)| [left, right]));
        let fringe: BTreeSet<u32> = ends.filter(|&node| !is_inside(node)).collect();

        let kept: Vec<u32> = inside.iter().copied().chain(fringe.iter().copied()).collect();
        let renumbered: HashMap<u32, u32> = kept.iter().copied().zip(0..).collect();
        let number = |node: u32| renumbered.get(&node).copied().unwrap_or(NONE);
        // Numbers of clusters of later lives are no nodes; they only have to stay apart from those that are.
        let cluster = |label: u32| if (label as usize) < nodes.token.len() { number(label) } else { label };
        let mut part = Self::default();
        for &node in &kept {
            let place = node as usize;
            let is_fringe = fringe.contains(&node);
            part.nodes.token.push(nodes.token[place]);
            part.nodes.rank.push(nodes.rank[place]);
            part.nodes.standing.push(nodes.standing[place]);
            part.nodes.raw_component.push(number(if is_fringe { node } else { nodes.raw_component[place] }));
            part.nodes.cluster.push(if is_fringe { number(node) } else { cluster(nodes.cluster[place]) });
            part.nodes.is_fringe.push(is_fringe || nodes.is_fringe[place]);
        }
        for (place, &node) in self.lives.node.iter().enumerate().filter(|(_, node)| renumbered.contains_key(node)) {
            part.lives.node.push(number(node));
            part.lives.life.push(self.lives.life[place]);
            part.lives.cluster.push(if fringe.contains(&node) {
                number(node)
            } else {
                cluster(self.lives.cluster[place])
            });
        }
        for row in edges {
            let edge = self.edges.edge(row);
            part.edges.push(&Edge { left: number(edge.left), right: number(edge.right), ..edge });
        }
        part.blocked = self.blocked.iter().filter_map(|node| renumbered.get(node)).copied().collect();
        // A link makes its ends one component.
        let links = self.links.iter().filter(|link| is_inside(link.left));
        part.links = links.map(|link| Link { left: number(link.left), right: number(link.right), ..*link }).collect();
        part.forbidden = forbidden.into_iter().map(|(left, right)| (number(left), number(right))).collect();
        part
    }
}

impl IdentityGraph {
    /// The state as columns.
    #[must_use]
    pub fn export(&self) -> Columns {
        let mut columns = Columns::default();
        let resolution = &self.resolution;
        for node in 0..self.nodes() {
            let label = |life| resolution.label(Member { node, life }).unwrap_or(NONE);
            columns.nodes.token.push(self.evidence.token(node));
            columns.nodes.cluster.push(label(0));
            for (&life, number) in resolution.states.lives_of(node).iter().zip(0..) {
                columns.lives.node.push(node);
                columns.lives.life.push(life);
                columns.lives.cluster.push(label(number));
            }
        }
        columns.nodes.rank.clone_from(&self.evidence.ranks);
        columns.nodes.standing.clone_from(&resolution.states.standing);
        columns.nodes.raw_component.clone_from(&resolution.raw);
        columns.nodes.is_fringe = (0..self.nodes()).map(|node| self.fringe.contains(&node)).collect();
        columns.edges.reserve(self.edges());
        for row in self.evidence.rows() {
            columns.edges.push(&row.edge());
        }
        columns.blocked = self.evidence.blocked.iter().copied().collect();
        columns.links = self.evidence.links().copied().collect();
        columns.forbidden = self.evidence.forbidden_pairs().collect();
        columns.forbidden.sort_unstable();
        columns
    }

    /// A graph from its columns, in time proportional to their size: nothing is worked out again. The rules must be those under which the columns came to be.
    ///
    /// # Errors
    /// [`GraphError::Length`], [`GraphError::NodeOutOfRange`], [`GraphError::UnknownType`], [`GraphError::Assignment`] for a token that is there twice, and what edges can be wrong in.
    pub fn import(rules: Rules, columns: &Columns) -> Result<Self> {
        let mut graph = Self::new(rules);
        let nodes = &columns.nodes;
        let rows = nodes.token.len();
        let lengths = [
            ("node rank", nodes.rank.len()),
            ("node standing", nodes.standing.len()),
            ("node raw_component", nodes.raw_component.len()),
            ("node cluster", nodes.cluster.len()),
            ("node is_fringe", nodes.is_fringe.len()),
        ];
        same_length(rows, &lengths)?;
        let lives = &columns.lives;
        let life_lengths = [("life life", lives.life.len()), ("life cluster", lives.cluster.len())];
        same_length(lives.node.len(), &life_lengths)?;
        columns.edges.check()?;

        let types = graph.rules.types().len();
        for (&token, &rank) in nodes.token.iter().zip(&nodes.rank) {
            if usize::from(rank) >= types {
                return Err(GraphError::UnknownType { rank, types });
            }
            let before = graph.evidence.nodes();
            if graph.evidence.node(token, rank)? != before {
                return Err(GraphError::Assignment("a token is there twice"));
            }
        }
        let size = graph.evidence.nodes();
        let check =
            |node: u32| if node < size { Ok(node) } else { Err(GraphError::NodeOutOfRange { node, nodes: size }) };
        graph.resolution.extend(size);
        graph.evidence.reserve(columns.edges.len());
        for row in 0..columns.edges.len() {
            let edge = columns.edges.edge(row);
            graph.evidence.check_edge(&edge)?;
            graph.evidence.add(&edge)?;
        }
        for &node in &columns.blocked {
            graph.evidence.blocked.insert(check(node)?);
        }
        for &link in &columns.links {
            check(link.left)?;
            check(link.right)?;
            graph.evidence.set_link(link);
        }
        for &(left, right) in &columns.forbidden {
            graph.evidence.forbid(check(left)?, check(right)?);
        }
        graph.restore_components(columns, check)?;
        Ok(graph)
    }

    fn restore_components(&mut self, columns: &Columns, check: impl Fn(u32) -> Result<u32>) -> Result<()> {
        let nodes = &columns.nodes;
        let mut by_raw: Vec<(u32, u32)> = Vec::with_capacity(nodes.token.len());
        for (&raw, node) in nodes.raw_component.iter().zip(0..).filter(|(raw, _)| **raw != NONE) {
            by_raw.push((check(raw)?, node));
        }
        by_raw.sort_unstable();
        let mut component = Vec::new();
        for same in by_raw.chunk_by(|one, two| one.0 == two.0) {
            component.clear();
            component.extend(same.iter().map(|&(_, node)| node));
            self.resolution.set_raw(&component);
        }
        drop(by_raw);
        for (node, &standing) in (0_u32..).zip(&nodes.standing) {
            self.resolution.states.standing[node as usize] = standing;
            if nodes.is_fringe[node as usize] {
                self.fringe.insert(node);
            }
        }
        let lives = &columns.lives;
        let mut at = 0;
        for same in lives.node.chunk_by(|one, two| one == two) {
            let node = check(same[0])?;
            let lives = lives.life[at..at + same.len()].to_vec();
            at += same.len();
            self.resolution.set_state(node, State { standing: nodes.standing[node as usize], lives });
        }
        // A cluster is named by a member: the node of its number, or, where only later lives are in it, the smallest.
        let mut of_later: HashMap<u32, Member> = HashMap::new();
        let mut life = 0_u16;
        let mut members = Vec::with_capacity(lives.node.len());
        for (place, &node) in lives.node.iter().enumerate() {
            life = if place > 0 && lives.node[place - 1] == node { life.saturating_add(1) } else { 0 };
            let member = Member { node, life };
            let smallest = of_later.entry(lives.cluster[place]).or_insert(member);
            *smallest = (*smallest).min(member);
            members.push((member, lives.cluster[place]));
        }
        let size = self.evidence.nodes();
        let first = nodes.cluster.iter().zip(0..).map(|(&cluster, node)| (Member { node, life: 0 }, cluster));
        for (member, cluster) in first.chain(members).filter(|&(_, cluster)| cluster != NONE) {
            let name =
                if cluster < size { Some(Member { node: cluster, life: 0 }) } else { of_later.get(&cluster).copied() };
            let name = name.ok_or(GraphError::NodeOutOfRange { node: cluster, nodes: size })?;
            self.resolution.set_label(member, name);
        }
        Ok(())
    }

    /// Some work needs all of a graph.
    pub(crate) fn check_whole(&self) -> Result<()> {
        if self.fringe.is_empty() { Ok(()) } else { Err(GraphError::NotLoaded(self.fringe.iter().copied().collect())) }
    }
}

fn same_length(rows: usize, columns: &[(&'static str, usize)]) -> Result<()> {
    match columns.iter().find(|(_, found)| *found != rows) {
        Some(&(what, found)) => Err(GraphError::Length { what, rows, found }),
        None => Ok(()),
    }
}
