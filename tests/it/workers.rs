//! Watching workers through the binary: they share the sources of a lake, replace each other, keep tables tidy and stop when they are told to.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::stages::Shop;
use crate::{commits, succeed};

const PATIENCE: Duration = Duration::from_secs(60);
const HEADER: &str = "order_id,member,at,amount\n";

/// A watching process; killed when the test is over.
struct Worker {
    process: Child,
    said: PathBuf,
}

impl Worker {
    fn start(shop: &Shop, name: &str, arguments: &[&str]) -> Self {
        let said = shop.path().join(format!("{name}.log"));
        let log = File::create(&said).unwrap();
        let mut command =
            shop.command(&["ingest", "--from", "in", "--raw-only", "--watch", "--every", "0.2", "--lease", "2s"]);
        let process = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { process, said }
    }

    fn signal(&self, name: &str) {
        succeed(Command::new("kill").arg(format!("-{name}")).arg(self.process.id().to_string()));
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    fn says(&self, what: &str) {
        until(|| self.said().contains(what), || format!("it did not say {what:?} but:\n{}", self.said()));
    }

    /// What it said it holds the last time.
    fn holds(&self) -> Vec<String> {
        let said = self.said();
        let Some(line) = said.lines().rfind(|line| line.contains("Holding ")) else { return Vec::new() };
        let held = line.split("Holding ").nth(1).unwrap().split(';').next().unwrap();
        if held == "nothing" { Vec::new() } else { held.split(", ").map(str::to_owned).collect() }
    }

    /// How it ended, and how long that took.
    fn stop(mut self) -> (Option<i32>, Duration, String) {
        let began = Instant::now();
        self.signal("TERM");
        until(|| self.process.try_wait().unwrap().is_some(), || "it did not stop".to_owned());
        (self.process.wait().unwrap().code(), began.elapsed(), self.said())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until(mut is_so: impl FnMut() -> bool, what: impl Fn() -> String) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "after {} s {}", PATIENCE.as_secs(), what());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn order_rows(from: usize, count: usize) -> String {
    (from..from + count).map(|row| format!("o{row},M{},2025-06-01T00:00:00Z,{}.25\n", row % 997, row % 100)).collect()
}

fn counted(shop: &Shop) -> (u64, u64) {
    let rows = shop.query("select count(*) as n, count(distinct order_id) as orders from raw.orders");
    (rows[0]["n"].as_u64().unwrap(), rows[0]["orders"].as_u64().unwrap())
}

/// The commits of all tables; leases come and go.
fn committed(shop: &Shop) -> Vec<String> {
    commits(&shop.path().join("lake")).into_iter().filter(|path| !path.contains("/_holdfast/")).collect()
}

/// Waits until the tables are there, which are made right before the first file is read.
fn has_begun(shop: &Shop) {
    let last = shop.path().join("lake/metric/ingest_batches/_delta_log/00000000000000000000.json");
    until(|| last.exists(), || "nothing was begun".to_owned());
}

#[test]
fn ing_2_a_worker_that_stalls_past_its_lease_commits_nothing_and_goes_on_when_it_is_its_turn() {
    let shop = Shop::new(&[]);
    shop.write("in/orders/large.csv", &format!("{HEADER}{}", order_rows(0, 1_500_000)));
    let first = Worker::start(&shop, "first", &[]);
    has_begun(&shop);
    std::thread::sleep(Duration::from_millis(50));
    first.signal("STOP");
    let plans = || committed(&shop).into_iter().filter(|path| path.contains("ingest_files/")).count();
    assert_eq!(plans(), 1, "the file was too small: it was read before the worker could be stopped");

    // Nobody has it before the lease is over; then another worker reads the file from its beginning.
    let second = Worker::start(&shop, "second", &[]);
    second.says("Holding nothing; process");
    second.says("Holding orders");
    second.says("Ingested raw.orders");
    let after_second = committed(&shop);
    assert_eq!(counted(&shop), (1_500_000, 1_500_000));

    first.signal("CONT");
    first.says("Holding nothing; process");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(committed(&shop), after_second, "{}", first.said());

    // While both live, what comes is read once, by the one that holds the source.
    shop.write("in/orders/more.csv", &format!("{HEADER}{}", order_rows(1_500_000, 10)));
    until(|| counted(&shop) == (1_500_010, 1_500_010), || second.said());
    assert!(!first.said().contains("Ingested"), "{}", first.said());

    // It dies; the other one is back at work once the lease is over.
    drop(second);
    shop.write("in/orders/most.csv", &format!("{HEADER}{}", order_rows(1_500_010, 10)));
    first.says("Holding orders");
    until(|| counted(&shop) == (1_500_020, 1_500_020), || first.said());
    let (code, _, said) = first.stop();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn two_workers_share_the_sources_and_the_one_that_is_left_takes_all() {
    let shop = Shop::new(&[]);
    let contract = fs::read_to_string(shop.path().join("pipelines/churn/sources/orders.toml")).unwrap();
    for other in ["payments", "refunds", "returns"] {
        shop.write(
            &format!("pipelines/churn/sources/{other}.toml"),
            &contract.replace("orders/*", &format!("{other}/*")),
        );
    }
    shop.write("in/orders/1.csv", &format!("{HEADER}{}", order_rows(0, 10)));
    let all = ["orders", "payments", "refunds", "returns"];
    let first = Worker::start(&shop, "first", &[]);
    first.says("Holding orders, payments, refunds, returns");
    let second = Worker::start(&shop, "second", &[]);
    let shared = || {
        let (one, two) = (first.holds(), second.holds());
        let mut both = [one.clone(), two.clone()].concat();
        both.sort();
        one.len() == 2 && two.len() == 2 && both == all
    };
    until(shared, || format!("they did not share:\n{}\n{}", first.said(), second.said()));

    // Each tells of the other; what comes for both is read by both.
    for (worker, other) in [(&first, &second), (&second, &first)] {
        worker.says(&format!("process {}", other.process.id()));
    }
    for source in all {
        shop.write(&format!("in/{source}/2.csv"), &format!("{HEADER}{}", order_rows(10, 10)));
    }
    for source in all {
        let worker = if first.holds().iter().any(|held| held == source) { &first } else { &second };
        worker.says(&format!("Ingested raw.{source}"));
    }

    // Told to stop, it gives back what it holds: nobody has to wait for the end of its leases.
    let (code, _, said) = first.stop();
    assert_eq!(code, Some(0), "{said}");
    until(|| second.holds() == all, || second.said());
    let (code, _, said) = second.stop();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(counted(&shop), (20, 20));
}

/// A packed file of about `bytes` that is small on the disk: one gzip member after the other, the same each time.
pub(crate) fn packed_orders(bytes: usize) -> Vec<u8> {
    let pack = |text: &str| {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(text.as_bytes()).unwrap();
        packer.finish().unwrap()
    };
    let text = order_rows(0, 400).repeat(500);
    let mut packed = pack(HEADER);
    packed.extend(pack(&text).repeat(bytes / text.len()));
    packed
}

#[test]
fn a_worker_in_the_middle_of_a_huge_file_stops_within_ten_seconds() {
    let shop = Shop::new(&[]);
    // More than it can read in that time.
    fs::create_dir_all(shop.path().join("in/orders")).unwrap();
    fs::write(shop.path().join("in/orders/huge.csv.gz"), packed_orders(6 << 30)).unwrap();
    shop.write(
        "pipelines/churn/sources/orders.toml",
        &fs::read_to_string(shop.path().join("pipelines/churn/sources/orders.toml")).unwrap().replace("*.csv", "*"),
    );
    let worker = Worker::start(&shop, "worker", &[]);
    has_begun(&shop);
    std::thread::sleep(Duration::from_millis(300));
    let (code, took, said) = worker.stop();
    assert!(code == Some(0) && said.contains("Stopped in a batch"), "{code:?} {said}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(committed(&shop).iter().all(|path| path.contains("/00000000000000000000.json")), "{:?}", committed(&shop));
    assert!(shop.query("select 1 as n from raw.orders").is_empty());
}

#[test]
fn a_watching_worker_keeps_its_tables_tidy() {
    let shop = Shop::new(&[]);
    let settings = "[ingest]\nbatch_files_max = 1\n[maintenance]\ncheck_every_s = 1\nsmall_files_min = 10\n";
    shop.write("holdfast.toml", &format!("[lake]\nurl = \"lake\"\n{settings}"));
    for file in 0..25 {
        shop.write(&format!("in/orders/{file}.csv"), &format!("{HEADER}{}", order_rows(file * 10, 10)));
    }
    let worker = Worker::start(&shop, "worker", &[]);
    for table in ["raw.orders", "metric.ingest_files", "metric.ingest_batches"] {
        worker.says(&format!("Maintained {table}"));
    }
    shop.write("in/orders/later.csv", &format!("{HEADER}{}", order_rows(250, 10)));
    until(|| counted(&shop) == (260, 260), || worker.said());
    let (code, _, said) = worker.stop();
    assert_eq!(code, Some(0), "{said}");
    let output = succeed(&mut shop.command(&["maintain", "--dry-run", "--json"]));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for table in report["tables"].as_array().unwrap() {
        assert!(table["files_before"].as_u64().unwrap() <= 16, "{table}\n{said}");
    }
}

#[test]
fn a_batch_ends_behind_the_file_with_which_it_has_enough_rows() {
    let shop = Shop::new(&[]);
    shop.write("holdfast.toml", "[lake]\nurl = \"lake\"\n[ingest]\nbatch_rows_max = 100\n");
    for file in 0..7 {
        shop.write(&format!("in/orders/{file}.csv"), &format!("{HEADER}{}", order_rows(file * 60, 60)));
    }
    succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));
    let batches = shop.query("select files, rows_stored from metric.ingest_batches order by batch");
    let batches: Vec<_> = batches.iter().map(|row| (row["files"].as_u64(), row["rows_stored"].as_u64())).collect();
    assert_eq!(batches, [(Some(2), Some(120)), (Some(2), Some(120)), (Some(2), Some(120)), (Some(1), Some(60))]);
    assert_eq!(counted(&shop), (420, 420));
}
