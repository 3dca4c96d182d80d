//! What `tests/benches/components.py` measures: components of edges in files, and an identity graph that is built, changed, kept and loaded again.
//!
//! ```sh
//! cargo run -p holdfast-graph --example components_bench -- components <nodes> <threads> <left.u32> <right.u32> <labels.u32>
//! cargo run -p holdfast-graph --example components_bench -- graph <edges> <threads>
//! ```
//! Prints one JSON object.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write, stdout};
use std::time::Instant;

use holdfast_graph::{Change, ComponentBuilder, Edge, EdgeKey, IdentityGraph, Limit, Rules, TypeRule};

// What the program has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["components", nodes, threads, left, right, labels] => {
            components(nodes.parse()?, threads.parse()?, left, right, labels)
        }
        ["graph", edges, threads] => graph(edges.parse()?, threads.parse()?),
        _ => Err("components <nodes> <threads> <left> <right> <labels>, or graph <edges> <threads>".into()),
    }
}

/// Little-endian numbers of a file.
fn read(path: &str) -> Outcome<Vec<u32>> {
    let file = File::open(path)?;
    let size = usize::try_from(file.metadata()?.len())? / 4;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut numbers = Vec::with_capacity(size);
    let mut bytes = [0; 4];
    for _ in 0..size {
        reader.read_exact(&mut bytes)?;
        numbers.push(u32::from_le_bytes(bytes));
    }
    Ok(numbers)
}

fn components(nodes: u32, threads: usize, left: &str, right: &str, labels: &str) -> Outcome {
    let (left, right) = (read(left)?, read(right)?);
    let began = Instant::now();
    let builder = ComponentBuilder::new(nodes);
    let share = left.len().div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let running: Vec<_> = left
            .chunks(share)
            .zip(right.chunks(share))
            .map(|(left, right)| scope.spawn(|| builder.join_columns(left, right)))
            .collect();
        running
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread ended early")?.map_err(Box::<dyn Error>::from))
    })?;
    let found = builder.finish();
    let seconds = began.elapsed().as_secs_f64();
    let mut writer = BufWriter::with_capacity(1 << 20, File::create(labels)?);
    for label in &found.labels {
        writer.write_all(&label.to_le_bytes())?;
    }
    writer.flush()?;
    writeln!(stdout(), "{{\"seconds\": {seconds}, \"components\": {}}}", found.count)?;
    Ok(())
}

const MEMBER_ID: u8 = 0;
const PHONE: u8 = 1;
const DEVICE: u8 = 2;
const DAY: i64 = 86_400_000_000;

/// Nodes of one person: a member id, a phone, two devices.
const NODES_OF_ONE: u32 = 4;
/// Edges among them: each pair, and two of another strength.
const EDGES_OF_ONE: usize = 8;

/// A linear congruential generator: seeded, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(limit.max(1))).unwrap_or(0)
    }
}

fn rules() -> holdfast_graph::Result<Rules> {
    let plain = TypeRule::default();
    Rules::new(vec![
        TypeRule { unique: true, ..plain },
        TypeRule {
            shared_above: Some(2),
            limit: Some(Limit { values: 3, window: Some(365 * DAY) }),
            life_gap: Some(180 * DAY),
            ..plain
        },
        TypeRule {
            shared_above: Some(4),
            hub_above: Some(100),
            limit: Some(Limit { values: 10, window: Some(90 * DAY) }),
            ..plain
        },
    ])
}

fn edge(left: u32, right: u32, strength: u8, random: &mut Random) -> Edge {
    let first_seen = i64::from(random.below(1000)) * DAY;
    let last_seen = first_seen + i64::from(random.below(100)) * DAY;
    Edge { left, right, strength, weight: None, first_seen, last_seen, records: 1, source: 0 }
}

/// The edges of a shop with so many people. One phone or device in a hundred is also another's.
fn shop(people: u32) -> impl Iterator<Item = Edge> {
    let mut random = Random(7);
    (0..people).flat_map(move |person| {
        let [member, phone, one, two] = [0, 1, 2, 3].map(|place| person * NODES_OF_ONE + place);
        let mut other = |own: u32, place: u32| {
            if random.below(100) == 0 { random.below(people) * NODES_OF_ONE + place } else { own }
        };
        let (lent_phone, lent_device) = (other(phone, 1), other(two, 3));
        [
            edge(member, lent_phone, 0, &mut random),
            edge(member, one, 0, &mut random),
            edge(member, lent_device, 0, &mut random),
            edge(phone, one, 1, &mut random),
            edge(phone, two, 1, &mut random),
            edge(one, two, 2, &mut random),
            edge(member, phone, 1, &mut random),
            edge(member, one, 1, &mut random),
        ]
    })
}

fn graph(edges: usize, threads: usize) -> Outcome {
    let people = u32::try_from(edges / EDGES_OF_ONE)?;
    let mut graph = IdentityGraph::new(rules()?).with_threads(threads);
    let began = Instant::now();
    for person in 0..people {
        for (place, rank) in [MEMBER_ID, PHONE, DEVICE, DEVICE].into_iter().enumerate() {
            graph.node(token(u64::from(person) * u64::from(NODES_OF_ONE) + place as u64), rank)?;
        }
    }
    let nodes_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    graph.build(shop(people))?;
    let build_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    graph.rebuild()?;
    let resolve_seconds = began.elapsed().as_secs_f64();

    let mut steps = Vec::new();
    let mut random = Random(11);
    for size in [1_000, 10_000, 100_000] {
        // Half are new devices of known people, half tie known people to each other's devices.
        let mut changes = Vec::with_capacity(size as usize);
        for number in 0..size {
            let person = random.below(people);
            let (left, right) = if number % 2 == 0 {
                let next = u64::from(graph.nodes());
                (person * NODES_OF_ONE, graph.node(token(next), DEVICE)?)
            } else {
                (person * NODES_OF_ONE + 2, random.below(people) * NODES_OF_ONE + 3)
            };
            changes.push(Change::Add(edge(left, right, 2, &mut random)));
        }
        steps.push(step("add", &changes, &mut graph)?);
        let gone = changes.iter().filter_map(|change| match change {
            Change::Add(edge) => Some(Change::Remove(EdgeKey { ..edge.key() })),
            _ => None,
        });
        let gone: Vec<Change> = gone.collect();
        steps.push(step("remove", &gone, &mut graph)?);
    }

    let began = Instant::now();
    let kept = graph.export();
    let export_seconds = began.elapsed().as_secs_f64();
    let (nodes, edges, memory) = (graph.nodes(), graph.edges(), graph.memory_bytes());
    let clusters = count_clusters(&graph);
    drop(graph);
    let began = Instant::now();
    let again = IdentityGraph::import(rules()?, &kept)?;
    let import_seconds = began.elapsed().as_secs_f64();
    if count_clusters(&again) != clusters {
        return Err("the loaded graph has other clusters".into());
    }
    writeln!(
        stdout(),
        "{{\"nodes\": {nodes}, \"edges\": {edges}, \"clusters\": {clusters}, \"memory_bytes\": {memory}, \
         \"nodes_seconds\": {nodes_seconds}, \"build_seconds\": {build_seconds}, \"resolve_seconds\": {resolve_seconds}, \
         \"export_seconds\": {export_seconds}, \"import_seconds\": {import_seconds}, \"steps\": [{}]}}",
        steps.join(", ")
    )?;
    Ok(())
}

/// Makes a change; tells what it took.
fn step(kind: &str, changes: &[Change], graph: &mut IdentityGraph) -> Outcome<String> {
    let (began, cpu_began) = (Instant::now(), cpu_seconds());
    let touched = graph.apply(changes)?;
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu_began);
    let (nodes, edges, groups) = (touched.nodes, touched.edges, touched.groups.len());
    Ok(format!(
        "{{\"kind\": \"{kind}\", \"changes\": {}, \"seconds\": {seconds}, \"cpu_seconds\": {cpu}, \"nodes\": {nodes}, \"edges\": {edges}, \"groups\": {groups}}}",
        changes.len()
    ))
}

/// What this thread has had of a processor, as Linux counts it: on a busy machine it tells more than the time on the wall. 0 elsewhere.
fn cpu_seconds() -> f64 {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    counted.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn count_clusters(graph: &IdentityGraph) -> usize {
    let mut labels: Vec<u32> = graph.assignments().map(|(_, label)| label).collect();
    labels.sort_unstable();
    labels.dedup();
    labels.len()
}

/// A token as a keyed hash would give it.
fn token(number: u64) -> u128 {
    u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64
        | u128::from(number.wrapping_mul(0xd6e8_feb8_6659_fd93))
}
