//! Situations of a shop, one rule at a time.

use std::collections::BTreeSet;

use holdfast_graph::{
    Assignment, Cause, Change, Edge, EdgeKey, Event, Explanation, GraphError, Guard, IdentityGraph, Limit, Link,
    Member, Refusal, Rules, Standing, Support, TypeRule,
};

const MEMBER_ID: u8 = 0;
const PHONE: u8 = 1;
const DEVICE: u8 = 2;
const RECORD: u8 = 3;
const DAY: i64 = 86_400_000_000;

fn rules() -> Rules {
    let plain = TypeRule::default();
    Rules::new(vec![
        TypeRule { unique: true, ..plain },
        TypeRule {
            shared_above: Some(1),
            limit: Some(Limit { values: 2, window: Some(365 * DAY) }),
            life_gap: Some(90 * DAY),
            ..plain
        },
        TypeRule { hub_above: Some(4), ..plain },
        plain,
    ])
    .unwrap()
}

fn node(graph: &mut IdentityGraph, name: &str) -> u32 {
    let rank = match &name[..1] {
        "m" => MEMBER_ID,
        "p" => PHONE,
        "d" => DEVICE,
        _ => RECORD,
    };
    let token = name.bytes().fold(0_u128, |token, byte| token << 8 | u128::from(byte));
    graph.node(token, rank).unwrap()
}

fn seen(graph: &mut IdentityGraph, left: &str, right: &str, first_day: i64, last_day: i64) -> Change {
    let (left, right) = (node(graph, left), node(graph, right));
    let (first_seen, last_seen) = (first_day * DAY, last_day * DAY);
    Change::Add(Edge { left, right, strength: 1, weight: None, first_seen, last_seen, records: 1, source: 0 })
}

fn alike(graph: &mut IdentityGraph, left: &str, right: &str, weight: f32) -> Change {
    let (left, right) = (node(graph, left), node(graph, right));
    let (first_seen, last_seen) = holdfast_graph::UNDATED;
    let weight = Some(weight);
    Change::Add(Edge { left, right, strength: 2, weight, first_seen, last_seen, records: 1, source: 0 })
}

fn graph(edges: &[(&str, &str, i64, i64)]) -> IdentityGraph {
    let mut graph = IdentityGraph::new(rules());
    let changes: Vec<Change> =
        edges.iter().map(|&(left, right, first, last)| seen(&mut graph, left, right, first, last)).collect();
    graph.apply(&changes).unwrap();
    graph
}

fn name(graph: &IdentityGraph, member: Member) -> String {
    let bytes = graph.token(member.node).unwrap().to_be_bytes();
    let name: String = bytes.iter().filter(|&&byte| byte != 0).map(|&byte| char::from(byte)).collect();
    if member.life == 0 { name } else { format!("{name}/{}", member.life) }
}

fn clusters(graph: &IdentityGraph) -> BTreeSet<String> {
    let names = |cluster: &Vec<Member>| {
        let mut names: Vec<String> = cluster.iter().map(|&member| name(graph, member)).collect();
        names.sort();
        names.join(" ")
    };
    graph.clusters().iter().map(names).collect()
}

fn set(clusters: &[&str]) -> BTreeSet<String> {
    clusters.iter().map(|&cluster| cluster.to_owned()).collect()
}

fn first(graph: &mut IdentityGraph, name: &str) -> Member {
    Member { node: node(graph, name), life: 0 }
}

#[test]
fn a_family_phone_joins_nobody() {
    let mut graph = graph(&[("m1", "p1", 0, 100), ("m2", "p1", 50, 60), ("m1", "d1", 1, 1)]);
    assert_eq!(clusters(&graph), set(&["d1 m1", "m2", "p1"]));
    let phone = node(&mut graph, "p1");
    assert_eq!(graph.standing(phone), Ok(Standing::Shared));
}

#[test]
fn a_recycled_phone_is_each_owners_in_their_time() {
    let edges = [("m1", "p1", 0, 100), ("m2", "p1", 300, 400), ("d1", "p1", 10, 10), ("d2", "p1", 350, 500)];
    // The third device was seen with the phone in both times: it speaks for neither.
    let mut graph = graph(&[&edges[..], &[("d3", "p1", 90, 310)]].concat());
    assert_eq!(clusters(&graph), set(&["d1 m1 p1", "d2 m2 p1/1", "d3"]));
    let phone = node(&mut graph, "p1");
    assert_eq!(graph.lives(phone).unwrap().len(), 2);

    // What lies between the two belongs to the nearer; evidence that closes the gap makes it a shared one.
    let more = [seen(&mut graph, "d4", "p1", 120, 130), seen(&mut graph, "d5", "p1", 250, 250)];
    graph.apply(&more).unwrap();
    assert_eq!(clusters(&graph), set(&["d1 d4 m1 p1", "d2 d5 m2 p1/1", "d3"]));
    let closing = seen(&mut graph, "m1", "p1", 250, 250);
    let touched = graph.apply(&[closing]).unwrap();
    assert_eq!(clusters(&graph), set(&["d1", "d2", "d3", "d4", "d5", "m1", "m2", "p1"]));
    assert_eq!(touched.standings.len(), 1);
    assert!(touched.groups.iter().flat_map(|group| &group.splits).all(|split| split.cause == Cause::Standing(phone)));
}

#[test]
fn a_phone_that_somebody_used_once_is_shared_and_not_handed_on() {
    let lent = graph(&[("m1", "p1", 0, 100), ("m2", "p1", 300, 300), ("d1", "p1", 10, 10), ("d2", "p1", 350, 500)]);
    assert_eq!(clusters(&lent), set(&["d1", "d2", "m1", "m2", "p1"]));
    let twice = graph(&[("m1", "p1", 0, 100), ("m2", "p1", 300, 301), ("d1", "p1", 10, 10), ("d2", "p1", 350, 500)]);
    assert_eq!(clusters(&twice), set(&["d1 m1 p1", "d2 m2 p1/1"]));
}

#[test]
fn a_bots_device_is_a_hub_until_its_evidence_goes() {
    let people = ["x1", "x2", "x3", "x4", "x5"];
    let mut graph = graph(&people.map(|person| ("d1", person, 1, 1)));
    assert_eq!(clusters(&graph).len(), 6);
    let device = node(&mut graph, "d1");
    assert_eq!(graph.standing(device), Ok(Standing::Hub));
    let gone = node(&mut graph, "x5");
    let touched = graph.apply(&[Change::Remove(EdgeKey { left: device, right: gone, strength: 1 })]).unwrap();
    assert_eq!(clusters(&graph), set(&["d1 x1 x2 x3 x4"]));
    assert_eq!(touched.groups[0].joins.len(), 4);
    graph.apply(&[Change::Block(device)]).unwrap();
    assert_eq!(clusters(&graph).len(), 5);
}

#[test]
fn a_customer_has_two_phones_a_year_and_more_over_the_years() {
    let graph = graph(&[
        ("m1", "p1", 0, 10),
        ("m1", "p2", 20, 30),
        // The third within a year of the first.
        ("m1", "p3", 100, 110),
        ("m1", "p4", 800, 810),
    ]);
    assert_eq!(clusters(&graph), set(&["m1 p1 p2 p4", "p3"]));
}

#[test]
fn a_person_may_link_two_member_ids_and_a_cannot_link_holds_against_everything() {
    let mut graph = graph(&[("m1", "d1", 1, 1), ("m2", "d2", 1, 1), ("d1", "d2", 2, 2)]);
    assert_eq!(clusters(&graph), set(&["d1 m1", "d2 m2"]));
    let (one, two) = (node(&mut graph, "m1"), node(&mut graph, "m2"));
    let link = Link { left: one, right: two, at: 3 * DAY, source: 9 };
    let touched = graph.apply(&[Change::Link(link)]).unwrap();
    assert_eq!(clusters(&graph), set(&["d1 d2 m1 m2"]));
    assert_eq!(touched.groups[0].joins[0].cause, Cause::Linked(link));

    let devices = (node(&mut graph, "d1"), node(&mut graph, "d2"));
    let unlink = Change::Unlink { left: devices.0, right: devices.1 };
    let touched = graph.apply(&[unlink]).unwrap();
    assert_eq!(touched.groups[0].splits[0].cause, Cause::Unlinked(devices.0, devices.1));
    assert_eq!(clusters(&graph).len(), 2);
    let forbidden = Link { left: devices.1, right: devices.0, at: 0, source: 0 };
    let refused = graph.apply(&[Change::Block(one), Change::Link(forbidden)]);
    assert_eq!(refused, Err(GraphError::Forbidden { left: devices.1, right: devices.0 }));
    assert_eq!(graph.standing(one), Ok(Standing::Joins), "nothing of a wrong batch is done");
    let allowed = Change::Allow { left: devices.0, right: devices.1 };
    graph.apply(&[allowed, Change::Link(forbidden)]).unwrap();
    assert_eq!(clusters(&graph).len(), 1);
}

#[test]
fn wrong_changes_are_told_and_change_nothing() {
    let mut graph = graph(&[("m1", "d1", 1, 1)]);
    let before = graph.export();
    let Change::Add(edge) = seen(&mut graph, "m1", "d1", 1, 1) else { unreachable!() };
    let good = Change::Add(Edge { records: 5, ..edge });
    let wrong = |change| graph.clone().apply(&[good, change]).unwrap_err();
    let out = wrong(Change::Add(Edge { right: 2, ..edge }));
    assert_eq!(out, GraphError::NodeOutOfRange { node: 2, nodes: 2 });
    assert!(matches!(wrong(Change::Add(Edge { weight: Some(f32::NAN), ..edge })), GraphError::Weight { .. }));
    assert!(matches!(wrong(Change::Add(Edge { weight: Some(f32::INFINITY), ..edge })), GraphError::Weight { .. }));
    let reversed = Change::Add(Edge { first_seen: 2, last_seen: 1, ..edge });
    assert!(matches!(wrong(reversed), GraphError::IntervalReversed { first_seen: 2, last_seen: 1, .. }));
    assert_eq!(wrong(Change::Unlink { left: 1, right: 1 }), GraphError::SamePair(1));
    let rule = Change::Rule { rank: 9, rule: TypeRule::default() };
    assert_eq!(wrong(rule), GraphError::UnknownType { rank: 9, types: 4 });
    let _refused = graph.apply(&[good, rule]);
    assert_eq!(graph.export(), before);
    assert!(matches!(graph.node(u128::from(b'm') << 8 | u128::from(b'1'), PHONE), Err(GraphError::TypeDiffers { .. })));
    assert_eq!(graph.node(5, 4), Err(GraphError::UnknownType { rank: 4, types: 4 }));
}

#[test]
fn two_identifiers_are_explained_by_the_path_whose_weakest_step_is_strongest() {
    let mut graph = IdentityGraph::new(rules());
    // x1 - x4 directly but weakly; by two detours of weight 8 at least, one with a step more.
    let ties = [
        ("x1", "x4", 2.0),
        ("x1", "x2", 9.0),
        ("x2", "x4", 8.0),
        ("x1", "x5", 8.0),
        ("x5", "x6", 9.0),
        ("x6", "x4", 9.0),
    ];
    let changes: Vec<Change> =
        ties.iter().map(|&(left, right, weight)| alike(&mut graph, left, right, weight)).collect();
    graph.apply(&changes).unwrap();
    let (from, to) = (first(&mut graph, "x1"), first(&mut graph, "x4"));
    let Explanation::Together(path) = graph.explain(from, to, 100).unwrap() else { panic!("they are together") };
    let names: Vec<String> = path.iter().map(|step| name(&graph, step.to)).collect();
    assert_eq!(names, ["x2", "x4"]);
    assert!(path.iter().all(|step| matches!(step.support, Support::Edge(edge) if edge.weight >= Some(8.0))));
    assert_eq!(graph.explain(from, from, 100), Ok(Explanation::Together(Vec::new())));
    let nowhere = Member { node: 99, life: 0 };
    assert!(graph.explain(from, nowhere, 100).is_err());
}

#[test]
fn what_keeps_two_identifiers_apart_is_named() {
    let mut graph = graph(&[
        ("m1", "d1", 1, 1),
        ("d1", "d2", 2, 2),
        ("m2", "d2", 1, 1),
        ("m3", "p1", 1, 1),
        ("m4", "p1", 2, 2),
        ("m5", "p5", 1, 2),
        ("m6", "p5", 300, 301),
        ("m7", "d7", 1, 1),
    ]);
    let mut refusals = |from: &str, to: &str| {
        let (from, to) = (first(&mut graph, from), first(&mut graph, to));
        match graph.explain(from, to, 1000).unwrap() {
            Explanation::Apart(path) => {
                assert_eq!((path[0].from, path[path.len() - 1].to), (from, to));
                assert!(path.windows(2).all(|steps| steps[0].to == steps[1].from));
                path.iter().filter_map(|step| step.refusal).collect::<Vec<Refusal>>()
            }
            other => panic!("{other:?}"),
        }
    };
    let unique = refusals("m1", "m2");
    assert!(matches!(unique[..], [Refusal::Unique { rank: MEMBER_ID, .. }]), "{unique:?}");
    let shared = refusals("m3", "m4");
    assert!(matches!(shared[..], [Refusal::Shared(_), Refusal::Shared(_)]), "{shared:?}");
    let recycled = refusals("m5", "m6");
    assert!(matches!(recycled[..], [Refusal::OtherLife(_)]), "{recycled:?}");
    let (one, seven) = (first(&mut graph, "m1"), first(&mut graph, "m7"));
    assert_eq!(graph.explain(one, seven, 1000), Ok(Explanation::Unconnected));

    let (device, other) = (node(&mut graph, "d7"), node(&mut graph, "m7"));
    graph.apply(&[Change::Unlink { left: device, right: other }]).unwrap();
    let (device, other) = (Member { node: device, life: 0 }, Member { node: other, life: 0 });
    let Explanation::Apart(path) = graph.explain(device, other, 1000).unwrap() else { panic!("they are apart") };
    assert!(matches!(path[0].refusal, Some(Refusal::CannotLink { .. })));
    graph.apply(&[Change::Allow { left: device.node, right: other.node }, Change::Block(device.node)]).unwrap();
    let Explanation::Apart(path) = graph.explain(device, other, 1000).unwrap() else { panic!("they are apart") };
    assert_eq!(path[0].refusal, Some(Refusal::Blocked(device.node)));
}

#[test]
fn a_limit_and_a_raised_bar_are_named() {
    let mut graph = graph(&[("m1", "p1", 0, 10), ("m1", "p2", 20, 30), ("m1", "p3", 100, 110)]);
    let (from, to) = (first(&mut graph, "m1"), first(&mut graph, "p3"));
    let Explanation::Apart(path) = graph.explain(from, to, 1000).unwrap() else { panic!("they are apart") };
    assert_eq!(path[0].refusal, Some(Refusal::Limit { rank: PHONE, values: 3, allowed: 2 }));

    let mut graph = IdentityGraph::new(rules().with_guard(Some(Guard { cap: 2, step: 1.0 })).unwrap());
    let changes = [alike(&mut graph, "x1", "x2", 3.5), alike(&mut graph, "x2", "x3", 1.25)];
    graph.apply(&changes).unwrap();
    assert_eq!(clusters(&graph), set(&["x1 x2", "x3"]));
    let (from, to) = (first(&mut graph, "x1"), first(&mut graph, "x3"));
    let Explanation::Apart(path) = graph.explain(from, to, 1000).unwrap() else { panic!("they are apart") };
    assert_eq!(path[1].refusal, Some(Refusal::Guard { weight: 1.25, bar: 2.0 }));
}

#[test]
fn the_curve_of_the_guard_shows_what_a_cap_costs() {
    let mut graph = IdentityGraph::new(rules());
    let weights = [1.5, 4.5, 2.5, 5.5, 3.5];
    let changes: Vec<Change> = weights
        .iter()
        .enumerate()
        .map(|(place, &weight)| alike(&mut graph, &format!("x{place}"), &format!("x{}", place + 1), weight))
        .collect();
    graph.apply(&changes).unwrap();
    let curve = graph.guard_curve(&[1, 2, 3, 6], 1.0).unwrap();
    let points: Vec<(u64, u64, u64)> =
        curve.iter().map(|point| (point.clusters, point.largest, point.edges_cut)).collect();
    // x0 1.5 x1 4.5 x2 2.5 x3 5.5 x4 3.5 x5
    assert_eq!(points, [(6, 1, 5), (4, 2, 3), (3, 3, 2), (1, 6, 0)]);
    assert_eq!(clusters(&graph).len(), 1, "a dry run changes nothing");
}

#[test]
fn other_rules_are_tried_before_they_hold() {
    let mut graph = graph(&[("m1", "p1", 0, 9), ("m2", "p1", 5, 6), ("m3", "d3", 1, 1), ("m3", "p3", 1, 1)]);
    let lenient = rules().with_type(MEMBER_ID, TypeRule::default()).unwrap();
    let difference = graph.diff(&rules(), &lenient, 10).unwrap();
    assert_eq!((difference.merges, difference.splits), (1, 0));
    assert_eq!((difference.clusters_before, difference.clusters_after), (4, 2));
    let parts: Vec<String> = difference.merge_examples[0].iter().map(|part| name(&graph, part[0])).collect();
    assert_eq!(parts, ["m1", "p1", "m2"]);
    let back = graph.diff(&lenient, &rules(), 0).unwrap();
    assert_eq!((back.merges, back.splits), (0, 1));
    assert!(back.split_examples.is_empty());
    assert_eq!(clusters(&graph).len(), 4, "a dry run changes nothing");
    graph.set_rules(lenient).unwrap();
    assert_eq!(clusters(&graph), set(&["d3 m3 p3", "m1 m2 p1"]));
}

#[test]
fn a_merged_id_goes_with_its_founding_identifier_when_the_merged_customer_is_split() {
    let mut graph = graph(&[("d1", "x1", 1, 1), ("d2", "x2", 2, 2), ("d3", "x3", 3, 3)]);
    let mut assignment = Assignment::<u32>::default();
    let mut next = 0;
    let mut mint = move |_: &holdfast_graph::ClusterMember| {
        next += 1;
        next
    };
    let ids = |assignment: &Assignment<u32>, graph: &mut IdentityGraph| {
        ["d1", "d2", "d3"].map(|name| assignment.customer_of(first(graph, name)))
    };
    let touched = graph.since([]);
    assignment.assign(&touched, &mut mint).unwrap();
    assert_eq!(ids(&assignment, &mut graph), [Some(1), Some(2), Some(3)]);

    // 3 goes up in 2, and 2 in 1.
    for (left, right) in [("x2", "x3"), ("x1", "x2")] {
        let change = seen(&mut graph, left, right, 9, 9);
        let Change::Add(edge) = change else { unreachable!() };
        let touched = graph.apply(&[change]).unwrap();
        let events = assignment.assign(&touched, &mut mint).unwrap();
        assert!(matches!(&events[..], [Event::Merged { cause: Cause::Edge(cause), .. }] if *cause == edge));
    }
    assert_eq!(ids(&assignment, &mut graph), [Some(1), Some(1), Some(1)]);
    assert_eq!([1, 2, 3, 4].map(|id| assignment.resolve(id)), [Some(1), Some(1), Some(1), None]);

    // The last merge was wrong: 2's identifiers are a customer of their own again, under a new id.
    let (left, right) = (node(&mut graph, "x1"), node(&mut graph, "x2"));
    let touched = graph.apply(&[Change::Remove(EdgeKey { left, right, strength: 1 })]).unwrap();
    let events = assignment.assign(&touched, &mut mint).unwrap();
    assert!(matches!(events[..], [Event::Split { id: 4, from: 1, cause: Cause::Removed(_), .. }]), "{events:?}");
    assert_eq!(ids(&assignment, &mut graph), [Some(1), Some(4), Some(4)]);
    assert_eq!([1, 2, 3, 4].map(|id| assignment.resolve(id)), [Some(1), Some(4), Some(4), Some(4)]);

    // An id that was retired is never minted again.
    let lonely = node(&mut graph, "x9");
    let (first_seen, last_seen) = holdfast_graph::UNDATED;
    let alone =
        Edge { left: lonely, right: lonely, strength: 1, weight: None, first_seen, last_seen, records: 1, source: 0 };
    let touched = graph.apply(&[Change::Add(alone)]).unwrap();
    assert_eq!(assignment.assign(&touched, |_| 3), Err(GraphError::IdReused));
    let events = assignment.assign(&touched, |_| 5).unwrap();
    assert!(matches!(events[..], [Event::Minted { id: 5, cause: Cause::Edge(_), .. }]));
}

#[test]
fn what_becomes_of_thousands_of_components_does_not_depend_on_threads() {
    let rules = || {
        let unique = TypeRule { unique: true, ..TypeRule::default() };
        Rules::new(vec![unique, TypeRule { shared_above: Some(1), ..TypeRule::default() }]).unwrap()
    };
    let changed = |threads| {
        let mut graph = IdentityGraph::new(rules()).with_threads(threads);
        let people = 3_000;
        for person in 0..people {
            graph.node(u128::from(2 * person), 0).unwrap();
            graph.node(u128::from(2 * person + 1), 1).unwrap();
        }
        let edge = |left, right, at| Edge {
            left,
            right,
            strength: 0,
            weight: None,
            first_seen: at,
            last_seen: at,
            records: 1,
            source: 0,
        };
        graph.build((0..people).map(|person| edge(2 * person, 2 * person + 1, 1))).unwrap();
        // Every third phone is found to be the next one's, too; the others get a second one.
        let more = (0..people).map(|person| {
            let phone = if person % 3 == 0 { (2 * person + 3) % (2 * people) } else { 2 * ((person + 7) % people) + 1 };
            Change::Add(edge(2 * person, phone, 2))
        });
        let touched = graph.apply(&more.collect::<Vec<_>>()).unwrap();
        let clusters = graph.clusters();
        graph.rebuild().unwrap();
        assert_eq!(graph.clusters(), clusters);
        (touched, clusters)
    };
    let by_one = changed(1);
    assert!(by_one.0.groups.len() > 1_000, "{}", by_one.0.groups.len());
    assert_eq!(changed(4), by_one);
}
