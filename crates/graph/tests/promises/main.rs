//! The promises of the graph under any sequence of changes. A failure prints the smallest sequence that fails.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod model;
mod scenarios;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_graph::{
    Assignment, Change, Columns, Edge, EdgeKey, Event, Explanation, Founder, GraphError, Guard, IdentityGraph, Link,
    Member, Touched,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use model::{IDENTIFIERS, Model, Step, batches, guards, partition, rank, rules, token};

/// A graph and the model beside it; identifiers get their nodes as they come.
struct Pair {
    graph: IdentityGraph,
    model: Model,
}

impl Pair {
    fn new(guard: Option<Guard>) -> Self {
        let rules = rules([0; 5], guard);
        let mut graph = IdentityGraph::new(rules.clone());
        for identifier in 0..IDENTIFIERS {
            graph.node(token(identifier), rank(identifier)).unwrap();
        }
        Self { graph, model: Model::new(rules) }
    }

    fn changes(&mut self, steps: &[Step]) -> Vec<Change> {
        steps.iter().filter_map(|step| self.model.follow(step, &|identifier| identifier)).collect()
    }

    fn apply(&mut self, steps: &[Step]) -> Touched {
        let changes = self.changes(steps);
        self.graph.apply(&changes).unwrap()
    }
}

fn cases() -> ProptestConfig {
    // The seed is fixed, so that a failure can be repeated; what is printed is the smallest failing sequence.
    ProptestConfig {
        cases: 600,
        max_shrink_iters: 4_000,
        rng_seed: RngSeed::Fixed(42),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Clusters as the touched groups tell them.
fn follow(known: &mut BTreeSet<Vec<Member>>, touched: &Touched) {
    for group in &touched.groups {
        for cluster in &group.before {
            assert!(known.remove(cluster), "{cluster:?} was no cluster");
        }
    }
    for group in &touched.groups {
        for cluster in &group.after {
            let mut members: Vec<Member> = cluster.members.iter().map(|member| member.member).collect();
            members.sort_unstable();
            assert!(known.insert(members), "one cluster twice");
        }
    }
}

/// Every part of a new cluster is tied to the others, and everything taken apart has its cause.
fn check_causes(touched: &Touched) {
    for group in &touched.groups {
        let mut parts = 0;
        for cluster in &group.after {
            let members: BTreeSet<Member> = cluster.members.iter().map(|member| member.member).collect();
            let known = group.before.iter().filter(|before| before.iter().any(|member| members.contains(member)));
            let new = members.iter().filter(|member| !group.before.iter().any(|before| before.contains(member)));
            parts += known.count() + new.count() - 1;
            let inside = |member: &Member| members.contains(member);
            assert!(group.joins.iter().all(|join| inside(&join.left) == inside(&join.right)));
        }
        assert_eq!(group.joins.len(), parts, "{group:?}");
        for (place, before) in group.before.iter().enumerate() {
            let is_whole = group
                .after
                .iter()
                .any(|cluster| before.iter().all(|of| cluster.members.iter().any(|member| member.member == *of)));
            let told = group.splits.iter().filter(|split| split.before == place).count();
            assert_eq!(told, usize::from(!is_whole), "{group:?}");
        }
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn idn_1_step_by_step_equals_from_scratch_and_the_rules_as_written(batches in batches(), guard in guards()) {
        let mut pair = Pair::new(guard);
        let mut known = BTreeSet::new();
        for steps in &batches {
            let touched = pair.apply(steps);
            let found = partition(&pair.graph);
            prop_assert_eq!(&found, &pair.model.clusters(), "differs from the model");
            prop_assert_eq!(&found, &partition(&pair.model.fresh_graph(1)), "differs from scratch");
            prop_assert_eq!(&found, &partition(&pair.model.fresh_graph(2)), "differs from scratch, two threads");
            follow(&mut known, &touched);
            prop_assert_eq!(&known, &pair.graph.clusters().into_iter().collect(), "differs from what was told");
            check_causes(&touched);
        }
    }

    #[test]
    fn idn_2_ids_are_given_once_the_older_survives_and_events_tell_it_all(batches in batches(), guard in guards()) {
        let mut pair = Pair::new(guard);
        let mut assignment = Assignment::<u64>::default();
        let mut history = History::default();
        for steps in &batches {
            let touched = pair.apply(steps);
            let before: BTreeMap<Member, u64> = assignment.members().collect();
            let mut next = history.last_id;
            let events = assignment.assign(&touched, |_| { next += 1; next }).unwrap();
            history.last_id = next;
            history.follow(&events);
            prop_assert_eq!(facts(&assignment), facts(&history.replayed), "replayed");

            // One customer a cluster, and each another.
            let mut taken = BTreeSet::new();
            for cluster in pair.graph.clusters() {
                let ids: BTreeSet<Option<u64>> = cluster.iter().map(|&member| assignment.customer_of(member)).collect();
                prop_assert_eq!(ids.len(), 1, "{:?}", cluster);
                let id = ids.first().copied().flatten();
                prop_assert!(id.is_some_and(|id| taken.insert(id)), "{:?}", cluster);
            }
            let living: BTreeSet<u64> = assignment.customers().map(|(id, _)| id).collect();
            prop_assert_eq!(&taken, &living);

            // Whose customer has changed is named by an event.
            let named: BTreeSet<Member> = events.iter().flat_map(members_named).collect();
            let after: BTreeMap<Member, u64> = assignment.members().collect();
            for member in before.keys().chain(after.keys()) {
                prop_assert!(before.get(member) == after.get(member) || named.contains(member), "{:?}", member);
            }

            // A retired id answers to whoever has its founding identifier.
            let retired: Vec<_> = assignment.retired().collect();
            for (id, retired) in retired {
                let answers = assignment.resolve(id);
                prop_assert!(answers.is_none_or(|living| assignment.customers().any(|(known, _)| known == living)));
                if !history.left.contains(&retired.founder) {
                    prop_assert_eq!(answers, assignment.customer_of(retired.founder), "retired {}", id);
                }
            }
            let restored =
                Assignment::restore(assignment.members(), assignment.customers(), assignment.retired()).unwrap();
            prop_assert_eq!(facts(&restored), facts(&assignment));
        }
    }

    #[test]
    fn a_part_that_is_loaded_changes_as_the_whole_does(batches in batches(), guard in guards()) {
        let mut pair = Pair::new(guard);
        for steps in &batches {
            let (kept, before) = (pair.graph.export(), partition(&pair.graph));
            let rules = pair.model.rules.clone();
            let mut model = pair.model.clone();
            let whole = pair.apply(steps);

            // Loading it all gives the graph as it was.
            let again = IdentityGraph::import(rules.clone(), &kept).unwrap();
            prop_assert_eq!(partition(&again), partition(&IdentityGraph::import(rules.clone(), &again.export()).unwrap()));
            prop_assert_eq!(partition(&again), before);
            prop_assert_eq!(without_numbers(again.export()), without_numbers(kept.clone()));

            // What the batch names, and what it turns out to need.
            let changes: Vec<Change> = steps.iter().filter_map(|step| model.follow(step, &|of| of)).collect();
            let mut needed: BTreeSet<u32> = changes.iter().flat_map(|change| named(change, &kept)).collect();
            let told = loop {
                let part = kept.part(&needed);
                let mut graph = IdentityGraph::import(rules.clone(), &part).unwrap();
                let mut numbers = Vec::new();
                for identifier in 0..IDENTIFIERS {
                    numbers.push(match graph.find(token(identifier)) {
                        Some(node) => node,
                        None => graph.node(token(identifier), rank(identifier)).unwrap(),
                    });
                }
                let changes: Vec<Change> = changes.iter().map(|change| renumbered(change, &numbers)).collect();
                match graph.apply(&changes) {
                    Ok(touched) => break told(&graph, &touched),
                    Err(GraphError::NotLoaded(missing)) => {
                        let before = needed.len();
                        let names = missing.iter().map(|&node| model::identifier(graph.token(node).unwrap()));
                        needed.extend(names.map(|name| kept.nodes.raw_component[name as usize]));
                        prop_assert!(needed.len() > before, "asks for what it has");
                    }
                    Err(other) => panic!("{other}"),
                }
            };
            prop_assert_eq!(told, self::told(&pair.graph, &whole));
        }
    }

    #[test]
    fn whoever_is_together_has_a_path_and_whoever_is_not_a_refusal(batches in batches(), guard in guards()) {
        let mut pair = Pair::new(guard);
        for steps in &batches {
            pair.apply(steps);
        }
        let graph = &pair.graph;
        let members: Vec<Member> = graph.assignments().map(|(member, _)| member).collect();
        for &from in &members {
            for &to in &members {
                let path = match graph.explain(from, to, 100_000).unwrap() {
                    Explanation::Together(path) => {
                        prop_assert_eq!(graph.cluster_of(from), graph.cluster_of(to));
                        prop_assert!(path.iter().all(|step| step.refusal.is_none()));
                        prop_assert!(path.iter().all(|step| graph.cluster_of(step.to) == graph.cluster_of(to)));
                        path
                    }
                    Explanation::Apart(path) => {
                        prop_assert_ne!(graph.cluster_of(from), graph.cluster_of(to));
                        // A cluster is only left by a refused step, and every refused step leaves one.
                        for step in &path {
                            let leaves = graph.cluster_of(step.from) != graph.cluster_of(step.to);
                            prop_assert!(step.refusal.is_some() || !leaves, "{:?}", step);
                        }
                        path
                    }
                    Explanation::Unconnected => {
                        prop_assert_ne!(graph.cluster_of(from), graph.cluster_of(to));
                        continue;
                    }
                    Explanation::NotFound { edges } => panic!("gave up after {edges}"),
                };
                prop_assert!(path.windows(2).all(|steps| steps[0].to == steps[1].from));
                let ends = path.first().zip(path.last()).map_or((from, from), |(first, last)| (first.from, last.to));
                prop_assert_eq!(ends, (from, to));
            }
        }
    }

    #[test]
    fn a_rebuilt_graph_comes_to_the_same_clusters_from_any_earlier_ones(batches in batches()) {
        let mut pair = Pair::new(None);
        let mut assignment = Assignment::<u64>::default();
        let mut next = 0;
        let mut earlier: Vec<(Member, u32)> = Vec::new();
        for steps in &batches {
            pair.apply(steps);
            let touched = pair.graph.since(earlier);
            assignment.assign(&touched, |_| { next += 1; next }).unwrap();
            for cluster in pair.graph.clusters() {
                let ids: BTreeSet<_> = cluster.iter().map(|&member| assignment.customer_of(member)).collect();
                prop_assert_eq!(ids.len(), 1);
            }
            prop_assert_eq!(assignment.customers().count(), pair.graph.clusters().len());
            prop_assert!(pair.graph.since(pair.graph.assignments()).groups.is_empty());
            earlier = pair.graph.assignments().collect();
        }
    }
}

/// What events tell, kept beside the assignment.
#[derive(Default)]
struct History {
    replayed: Assignment<u64>,
    founders: BTreeMap<u64, Founder>,
    left: BTreeSet<Member>,
    last_id: u64,
}

impl History {
    fn follow(&mut self, events: &[Event<u64>]) {
        for event in events {
            match event {
                Event::Minted { id, founder, .. } | Event::Split { id, founder, .. } => {
                    assert!(self.founders.insert(*id, *founder).is_none(), "id {id} was given twice");
                }
                Event::Refounded { id, founder } => _ = self.founders.insert(*id, *founder),
                Event::Merged { id, from, .. } => {
                    assert!(self.founders[id].age() < self.founders[from].age(), "{from} is older than {id}");
                }
                Event::Left { members, .. } => self.left.extend(members),
                Event::Moved { .. } | Event::Joined { .. } | Event::Ended { .. } => {}
            }
            self.replayed.replay(event).unwrap();
        }
    }
}

fn members_named(event: &Event<u64>) -> Vec<Member> {
    match event {
        Event::Minted { members, .. }
        | Event::Split { members, .. }
        | Event::Moved { members, .. }
        | Event::Merged { members, .. }
        | Event::Joined { members, .. }
        | Event::Left { members, .. } => members.clone(),
        Event::Ended { .. } | Event::Refounded { .. } => Vec::new(),
    }
}

/// Everything but the order of lists inside.
fn facts(assignment: &Assignment<u64>) -> impl PartialEq + std::fmt::Debug + use<> {
    let members: BTreeMap<Member, u64> = assignment.members().collect();
    let customers: BTreeMap<u64, Member> = assignment.customers().map(|(id, founder)| (id, founder.member)).collect();
    let mut resolved = assignment.clone();
    let retired: BTreeMap<u64, Option<u64>> = assignment.retired().map(|(id, _)| (id, resolved.resolve(id))).collect();
    (members, customers, retired)
}

/// The raw components that a change names.
fn named(change: &Change, kept: &Columns) -> Vec<u32> {
    let nodes = match *change {
        Change::Add(edge) => vec![edge.left, edge.right],
        Change::Remove(key) => vec![key.left, key.right],
        Change::Block(node) | Change::Unblock(node) => vec![node],
        Change::Link(link) => vec![link.left, link.right],
        Change::WithdrawLink { left, right } | Change::Unlink { left, right } | Change::Allow { left, right } => {
            vec![left, right]
        }
        // Another rule concerns everybody.
        Change::Rule { .. } => (0..IDENTIFIERS).collect(),
    };
    nodes.into_iter().map(|node| kept.nodes.raw_component[node as usize]).filter(|&raw| raw != u32::MAX).collect()
}

fn renumbered(change: &Change, numbers: &[u32]) -> Change {
    let node = |node: u32| numbers[node as usize];
    match *change {
        Change::Add(edge) => Change::Add(Edge { left: node(edge.left), right: node(edge.right), ..edge }),
        Change::Remove(key) => Change::Remove(EdgeKey { left: node(key.left), right: node(key.right), ..key }),
        Change::Block(of) => Change::Block(node(of)),
        Change::Unblock(of) => Change::Unblock(node(of)),
        Change::Link(link) => Change::Link(Link { left: node(link.left), right: node(link.right), ..link }),
        Change::WithdrawLink { left, right } => Change::WithdrawLink { left: node(left), right: node(right) },
        Change::Unlink { left, right } => Change::Unlink { left: node(left), right: node(right) },
        Change::Allow { left, right } => Change::Allow { left: node(left), right: node(right) },
        Change::Rule { .. } => *change,
    }
}

/// The clusters that went and those that came, by identifiers.
fn told(graph: &IdentityGraph, touched: &Touched) -> (model::Partition, model::Partition) {
    let name = |member: Member| (model::identifier(graph.token(member.node).unwrap()), member.life);
    let before = touched.groups.iter().flat_map(|group| &group.before);
    let after = touched.groups.iter().flat_map(|group| &group.after);
    (
        before.map(|cluster| cluster.iter().map(|&member| name(member)).collect()).collect(),
        after.map(|cluster| cluster.members.iter().map(|member| name(member.member)).collect()).collect(),
    )
}

/// Columns but for the numbers of clusters, which mean nothing by themselves.
fn without_numbers(mut columns: Columns) -> Columns {
    columns.nodes.cluster.clear();
    columns.lives.cluster.clear();
    columns
}
