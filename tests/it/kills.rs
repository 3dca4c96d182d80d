//! Workers, servers and maintenance that die at any call to the store or after any step, alone or two at a time, over stores that fail: afterwards
//! every record that was acknowledged is stored, none is twice, and none came from nowhere.
//!
//! A seed decides everything: what is delivered and pushed, who works, who dies where. `cargo test` runs a slice; more of the same are
//!
//! ```text
//! HOLDFAST_KILL_SEEDS=10000 cargo test --workspace --test it kills::many_seeds -- --ignored --nocapture
//! HOLDFAST_KILL_SEED=123 cargo test --workspace --test it kills::many_seeds -- --ignored --nocapture
//! ```

mod delivery;
mod life;
mod processes;
mod puts;
mod stored;
mod topic;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_testkit::Random;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;

use self::delivery::{Delivery, LANDING, SOURCES};
use self::life::{Actor, Ended, World};

/// What `cargo test` runs.
const SLICE: u64 = 48;

/// The longest that a seed may take: one that takes longer hangs.
const SEED_LIMIT: Duration = Duration::from_secs(120);

/// What happened in the runs of many seeds.
#[derive(Debug, Default)]
struct Tally {
    lives: u64,
    /// How often somebody died, by what it was doing.
    deaths: BTreeMap<String, u64>,
    /// Lives that ended with an error of a failing store.
    failures: u64,
    records: u64,
    pushes: u64,
    fed: u64,
    put: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.lives += other.lives;
        self.failures += other.failures;
        self.records += other.records;
        self.pushes += other.pushes;
        self.fed += other.fed;
        self.put += other.put;
        for (place, times) in other.deaths {
            *self.deaths.entry(place).or_default() += times;
        }
    }

    fn died(&self) -> u64 {
        self.deaths.values().sum()
    }
}

#[test]
fn ing_1_and_ing_2_hold_whoever_dies_at_whatever_call() {
    let tally = run(&(0..SLICE).collect::<Vec<_>>(), 2);
    assert!(tally.died() > SLICE, "too few died to show anything: {tally:?}");
    assert!(tally.records > 0 && tally.pushes > 0 && tally.fed > 0 && tally.put > 0, "{tally:?}");
}

#[test]
fn ing_1_and_ing_2_hold_when_processes_are_killed() {
    assert!(processes::kill_processes(20_260_301, 6) > 0, "nobody was killed");
}

/// As many as are asked for: `HOLDFAST_KILL_ROUNDS=200`.
#[test]
#[ignore = "takes minutes: cargo test runs a few of it"]
fn many_processes() {
    let rounds = std::env::var("HOLDFAST_KILL_ROUNDS").map_or(200, |rounds| rounds.parse().unwrap());
    // A lake each, so that none gets long.
    let killed: u64 = (0..rounds / 10).map(|seed| processes::kill_processes(seed, 10)).sum();
    eprintln!("{killed} processes killed in {rounds} rounds; no record lost, none twice");
}

/// As many as are asked for; see above.
#[test]
#[ignore = "takes minutes: cargo test runs a slice of it"]
fn many_seeds() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds: Vec<u64> = match number("HOLDFAST_KILL_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = number("HOLDFAST_KILL_FIRST").unwrap_or(0);
            (first..first + number("HOLDFAST_KILL_SEEDS").unwrap_or(10_000)).collect()
        }
    };
    let threads = number("HOLDFAST_KILL_THREADS").unwrap_or(2);
    let started = Instant::now();
    let tally = run(&seeds, threads);
    eprintln!(
        "{} seeds from {} on, in {:.0} s: {} lives, {} of them killed, {} ended by a failing store; {} records of files, {} pushed messages, {} \
         records of feeds and {} of batches that were put; none lost, none twice",
        seeds.len(),
        seeds[0],
        started.elapsed().as_secs_f64(),
        tally.lives,
        tally.died(),
        tally.failures,
        tally.records,
        tally.pushes,
        tally.fed,
        tally.put,
    );
    for (place, times) in &tally.deaths {
        eprintln!("{times:>8}  {place}");
    }
}

/// Runs the seeds on some threads.
///
/// # Panics
/// At the first that breaks a promise, with its number.
fn run(seeds: &[u64], threads: u64) -> Tally {
    eprintln!("seeds {}..={}", seeds.iter().min().unwrap(), seeds.iter().max().unwrap());
    let template = template();
    let next = AtomicU64::new(0);
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = usize::try_from(next.fetch_add(1, Ordering::SeqCst)).unwrap();
                    let Some(seed) = seeds.get(at) else { return };
                    let told = Told(*seed);
                    let done = in_runtime(one_seed(*seed, &template));
                    drop(told);
                    tally.lock().unwrap().add(done);
                    if at % 1_000 == 999 {
                        eprintln!("{} seeds", at + 1);
                    }
                }
            });
        }
    });
    tally.into_inner().unwrap()
}

/// Says which seed it was when its test ends by a panic.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {0}: run it alone with HOLDFAST_KILL_SEED={0}", self.0);
        }
    }
}

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let done = runtime.block_on(async { tokio::time::timeout(SEED_LIMIT, work).await });
    // The tasks of the dead wait for ever.
    runtime.shutdown_background();
    done.expect("it hangs")
}

/// A lake whose tables are made: most seeds begin there, which takes them to the interesting calls sooner.
fn template() -> InMemory {
    let store = InMemory::new();
    in_runtime(async {
        // A bucket with nothing in it counts as one that is not there.
        store.put(&Path::from(format!("{LANDING}/read-me")), "files come here".into()).await.unwrap();
        let world = World::new(Arc::new(store.fork()));
        for source in SOURCES {
            world.live(Actor::ingesting(&[source], 1)).await;
        }
        world.store().fork()
    })
}

/// For whoever has to find out what went wrong.
fn told(seed: u64, delivery: &Delivery) -> String {
    format!("seed {seed}\n{delivery:#?}")
}

/// The whole story of a seed: deliveries and lives, then lives that nobody disturbs, then what is stored.
async fn one_seed(seed: u64, template: &InMemory) -> Tally {
    let mut random = Random::new(seed);
    let store = if random.chance(80) { template.fork() } else { InMemory::new() };
    let world = World::new(Arc::new(store));
    let mut tally = Tally::default();
    let mut delivery = Delivery::new(&mut random);
    for _ in 0..1 + random.below(3) {
        for _ in 0..1 + random.below(3) {
            delivery.deliver(&mut random, world.store()).await;
        }
        world.topic().produce(&mut random);
        let actors = Actor::draw(&mut random, &delivery);
        let (before, produced) = (delivery.there(), world.topic().produced());
        let lives = futures::future::join_all(actors.into_iter().map(|actor| world.live(actor))).await;
        for (actor, ended) in lives {
            tally.lives += 1;
            match ended {
                Ended::Killed(place) => *tally.deaths.entry(format!("{actor}: {place}")).or_default() += 1,
                Ended::Failed => tally.failures += 1,
                Ended::Done(_) if actor.is_feeding() => world.topic().read_to(produced),
                Ended::Done(sources) => delivery.acknowledge(&before, &sources),
            }
        }
        world.pass(&mut random);
    }
    // Nobody dies and nothing fails any more.
    let before = delivery.there();
    for source in delivery.sources() {
        match world.live(Actor::ingesting(&[source], 2)).await.1 {
            Ended::Done(sources) => delivery.acknowledge(&before, &sources),
            ended => panic!("{source}: {ended:?}\n{}", told(seed, &delivery)),
        }
    }
    if world.has_pushed() {
        let resends_all = random.chance(70);
        match world.live(Actor::collecting(1, resends_all)).await.1 {
            Ended::Done(_) => {}
            ended => panic!("pushing: {ended:?}\n{}", told(seed, &delivery)),
        }
        assert!(!resends_all || world.has_no_open_pushes(), "{}", told(seed, &delivery));
    }
    if !world.puts().records().is_empty() {
        match world.live(Actor::putting_again()).await.1 {
            Ended::Done(_) => {}
            ended => panic!("putting: {ended:?}\n{}", told(seed, &delivery)),
        }
        assert!(world.puts().open().is_empty(), "{}", told(seed, &delivery));
    }
    if delivery.sources().contains(&"events") && random.chance(70) {
        let produced = world.topic().produced();
        match world.live(Actor::feeding()).await.1 {
            Ended::Done(_) => world.topic().read_to(produced),
            ended => panic!("feeding: {ended:?}\n{}", told(seed, &delivery)),
        }
    }
    stored::check(&world, &delivery).await.unwrap_or_else(|wrong| panic!("{wrong}\n{}", told(seed, &delivery)));

    // A copy of a file is looked at once the file is refused.
    for source in delivery.sources() {
        world.live(Actor::ingesting(&[source], 2)).await;
    }
    // With nothing new, nothing is committed; and merging files changes no row.
    let commits = world.commits().await;
    for source in delivery.sources() {
        world.live(Actor::ingesting(&[source], 2)).await;
    }
    assert_eq!(world.commits().await, commits, "{}", told(seed, &delivery));
    if random.chance(30) {
        match world.live(Actor::maintaining(&mut random)).await.1 {
            Ended::Done(_) => {}
            ended => panic!("maintenance: {ended:?}\n{}", told(seed, &delivery)),
        }
        stored::check(&world, &delivery)
            .await
            .unwrap_or_else(|wrong| panic!("merged: {wrong}\n{}", told(seed, &delivery)));
    }
    tally.records = delivery.records();
    tally.pushes = world.pushed();
    tally.put = u64::try_from(world.puts().records().len()).unwrap();
    tally.fed = if delivery.sources().contains(&"events") { world.topic().produced().iter().sum() } else { 0 };
    tally
}
