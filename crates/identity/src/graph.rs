//! From evidence to customers, in memory: union-find over dense ids. Pure; knows no table.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::rules::IdentityRules;

/// Evidence that two identifiers belong to one person: a record carried both. An identifier that came alone is an edge to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The identifier that speaks for the record: rank of its type, and token.
    pub left: (u8, String),
    /// Another one the record carried.
    pub right: (u8, String),
    /// When it was first seen, in microseconds since 1970; `i64::MAX` when the records do not say.
    pub first_seen: i64,
    /// When it was last seen.
    pub last_seen: i64,
    /// How many records.
    pub records: i64,
}

/// An identifier of a customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The rank of its type.
    pub rank: u8,
    /// Its token.
    pub token: String,
    /// It belongs to several people (a family's phone, a kiosk), so it joins nobody.
    pub is_shared: bool,
    /// When it was first seen.
    pub first_seen: i64,
    /// When it was last seen.
    pub last_seen: i64,
    /// How many records carried it.
    pub records: i64,
}

/// The identifiers of one customer, the founding one first: the earliest seen, then the one of the strongest type, then by token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The identifiers.
    pub members: Vec<Member>,
}

/// Joins identifiers into customers. The result depends on the set of edges alone, not on their order.
///
/// An edge joins nothing when one of its ends is shared, or when it would give one customer two values of a unique type: strong and early evidence goes first.
pub fn cluster(rules: &IdentityRules, edges: &[Edge]) -> Vec<Cluster> {
    let mut index: HashMap<&str, usize> = HashMap::new();
    let mut members: Vec<Member> = Vec::new();
    let mut ends = Vec::with_capacity(edges.len());
    for edge in edges {
        let left = intern(&mut index, &mut members, &edge.left, edge);
        let right = intern(&mut index, &mut members, &edge.right, edge);
        ends.push((left, right));
    }
    mark_shared(rules, edges, &ends, &mut members);

    let mut order: Vec<usize> = (0..edges.len()).filter(|&edge| ends[edge].0 != ends[edge].1).collect();
    order.sort_by(|&one, &two| {
        let key = |edge: usize| {
            let Edge { left, right, first_seen, .. } = &edges[edge];
            (left.0, right.0, *first_seen, left.1.as_str(), right.1.as_str())
        };
        key(one).cmp(&key(two))
    });

    let unique: BTreeSet<u8> =
        rules.types.iter().filter(|(_, rule)| rule.unique).filter_map(|(name, _)| rules.rank(name)).collect();
    let mut sets = Sets::new(members.len());
    // The unique values of each set, by its root: rank and member.
    let mut taken: Vec<BTreeMap<u8, usize>> = members
        .iter()
        .enumerate()
        .map(
            |(id, member)| {
                if unique.contains(&member.rank) { BTreeMap::from([(member.rank, id)]) } else { BTreeMap::new() }
            },
        )
        .collect();
    for edge in order {
        let (left, right) = ends[edge];
        if members[left].is_shared || members[right].is_shared {
            continue;
        }
        let (left, right) = (sets.root(left), sets.root(right));
        if left == right || taken[left].iter().any(|(rank, id)| taken[right].get(rank).is_some_and(|other| other != id))
        {
            continue;
        }
        let root = sets.union(left, right);
        let other = if root == left { right } else { left };
        let moved = std::mem::take(&mut taken[other]);
        taken[root].extend(moved);
    }

    let mut clusters: BTreeMap<usize, Vec<Member>> = BTreeMap::new();
    for (id, member) in members.into_iter().enumerate() {
        clusters.entry(sets.root(id)).or_default().push(member);
    }
    let mut clusters: Vec<Cluster> = clusters
        .into_values()
        .map(|mut members| {
            members.sort_by(|one, two| founding_order(one).cmp(&founding_order(two)));
            Cluster { members }
        })
        .collect();
    clusters.sort_by(|one, two| one.members.first().map(founding_order).cmp(&two.members.first().map(founding_order)));
    clusters
}

fn founding_order(member: &Member) -> (i64, u8, &str) {
    (member.first_seen, member.rank, &member.token)
}

fn intern<'a>(
    index: &mut HashMap<&'a str, usize>,
    members: &mut Vec<Member>,
    (rank, token): &'a (u8, String),
    edge: &Edge,
) -> usize {
    let id = *index.entry(token.as_str()).or_insert_with(|| {
        members.push(Member {
            rank: *rank,
            token: token.clone(),
            is_shared: false,
            first_seen: i64::MAX,
            last_seen: i64::MIN,
            records: 0,
        });
        members.len() - 1
    });
    let member = &mut members[id];
    member.first_seen = member.first_seen.min(edge.first_seen);
    member.last_seen = member.last_seen.max(edge.last_seen);
    member.records += edge.records;
    id
}

/// An identifier is shared when records show it with more different values of one unique type than its own type allows.
fn mark_shared(rules: &IdentityRules, edges: &[Edge], ends: &[(usize, usize)], members: &mut [Member]) {
    let by_rank: BTreeMap<u8, &crate::rules::TypeRule> =
        rules.types.iter().filter_map(|(name, rule)| Some((rules.rank(name)?, rule))).collect();
    let is_unique = |rank: u8| by_rank.get(&rank).is_some_and(|rule| rule.unique);
    let mut seen_with: HashMap<usize, BTreeMap<u8, BTreeSet<usize>>> = HashMap::new();
    for (edge, &(left, right)) in edges.iter().zip(ends) {
        for (this, other, rank) in [(left, right, edge.right.0), (right, left, edge.left.0)] {
            if this != other && is_unique(rank) && !is_unique(members[this].rank) {
                seen_with.entry(this).or_default().entry(rank).or_default().insert(other);
            }
        }
    }
    for (id, with) in seen_with {
        let allowed = by_rank.get(&members[id].rank).map_or(1, |rule| rule.shared_above);
        members[id].is_shared = with.values().any(|values| values.len() > allowed);
    }
}

/// Union-find with path halving; the smaller id is the root, so that the result does not depend on the order of unions.
struct Sets {
    parent: Vec<usize>,
}

impl Sets {
    fn new(size: usize) -> Self {
        Self { parent: (0..size).collect() }
    }

    fn root(&mut self, mut id: usize) -> usize {
        while self.parent[id] != id {
            self.parent[id] = self.parent[self.parent[id]];
            id = self.parent[id];
        }
        id
    }

    fn union(&mut self, one: usize, two: usize) -> usize {
        let (root, child) = if one < two { (one, two) } else { (two, one) };
        self.parent[child] = root;
        root
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::TypeRule;

    fn rules() -> IdentityRules {
        let names = ["member_id", "unionid", "phone", "device"];
        IdentityRules {
            priority: names.map(str::to_owned).to_vec(),
            types: names
                .into_iter()
                .map(|name| {
                    let unique = matches!(name, "member_id" | "unionid");
                    (name.to_owned(), TypeRule { unique, shared_above: 1, country: None })
                })
                .collect(),
            blocked: BTreeMap::new(),
        }
    }

    fn edge(left: (u8, &str), right: (u8, &str), at: i64) -> Edge {
        let own = |(rank, token): (u8, &str)| (rank, token.to_owned());
        Edge { left: own(left), right: own(right), first_seen: at, last_seen: at, records: 1 }
    }

    fn sets(edges: &[Edge]) -> BTreeSet<BTreeSet<String>> {
        cluster(&rules(), edges)
            .into_iter()
            .map(|cluster| cluster.members.into_iter().map(|member| member.token).collect())
            .collect()
    }

    fn expected(sets: &[&[&str]]) -> BTreeSet<BTreeSet<String>> {
        sets.iter().map(|set| set.iter().map(|token| (*token).to_owned()).collect()).collect()
    }

    #[test]
    fn identifiers_of_one_record_are_one_customer() {
        let edges = [edge((0, "m1"), (2, "p1"), 1), edge((2, "p1"), (3, "d1"), 2), edge((3, "d9"), (3, "d9"), 3)];
        assert_eq!(sets(&edges), expected(&[&["m1", "p1", "d1"], &["d9"]]));
    }

    #[test]
    fn a_family_phone_joins_nobody() {
        let edges = [edge((0, "m1"), (2, "p1"), 1), edge((0, "m2"), (2, "p1"), 2), edge((0, "m1"), (3, "d1"), 1)];
        assert_eq!(sets(&edges), expected(&[&["m1", "d1"], &["m2"], &["p1"]]));
        let shared: Vec<_> =
            cluster(&rules(), &edges).into_iter().flat_map(|c| c.members).filter(|m| m.is_shared).collect();
        assert_eq!(shared.len(), 1);
        assert_eq!(shared[0].token, "p1");
    }

    #[test]
    fn two_member_ids_are_never_one_customer() {
        // A chain m1 - d1 - u1 - m2 in which no single identifier was seen with two member ids.
        let edges = [edge((0, "m1"), (3, "d1"), 1), edge((1, "u1"), (3, "d1"), 2), edge((0, "m2"), (1, "u1"), 3)];
        for set in sets(&edges) {
            assert!(!(set.contains("m1") && set.contains("m2")), "{set:?}");
        }
    }

    #[test]
    fn idn_1_the_order_of_edges_does_not_matter() {
        // A small linear congruential generator: seeded, so that a failure can be repeated.
        let mut state = 42_u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..200 {
            let mut edges: Vec<Edge> = (0..30)
                .map(|_| {
                    let rank = |n: u64| u8::try_from(n).unwrap();
                    let (a, b) = (rank(next(4)), rank(next(4)));
                    let (x, y) = (next(5), next(5));
                    edge(
                        (a.min(b), &format!("{}-{x}", a.min(b))),
                        (a.max(b), &format!("{}-{y}", a.max(b))),
                        i64::try_from(next(9)).unwrap(),
                    )
                })
                .collect();
            let forwards = cluster(&rules(), &edges);
            edges.reverse();
            assert_eq!(forwards, cluster(&rules(), &edges), "round {round}");
        }
    }
}
