//! Stages on a cluster of real processes: the rows they have embedded, also when somebody dies over them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use holdfast_testkit::{S3Server, S3Settings};
use serde_json::Value;

use crate::cluster_writes::{assert_same_files, orphans, written_there};
use crate::increments::{assert_same, copy, open, versions};
use crate::stages::Shop;
use crate::{ended, holdfast, holdfast_binary, succeed};

const AS_OF: &str = "2026-01-01T00:00:00Z";
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that goes on until it is told to stop; killed when the test is over.
pub(crate) struct Program {
    process: Child,
    said: PathBuf,
}

impl Program {
    fn start(command: &mut Command, said: PathBuf) -> Self {
        let log = File::create(&said).unwrap();
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { process, said }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    fn says(&mut self, what: &str) {
        let began = Instant::now();
        while !self.said().contains(what) {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{ended:?}: not {what:?} but:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Told to stop, it ends with success.
    fn stop(&mut self) {
        let began = Instant::now();
        succeed(Command::new("kill").arg("-TERM").arg(self.process.id().to_string()));
        while self.process.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "it did not stop:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
        let code = self.process.wait().unwrap().code();
        assert_eq!(code, Some(0), "{}", self.said());
        assert!(self.said().contains("Stopped"), "{}", self.said());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A scheduler and executors on this machine.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    scheduler: Program,
    executors: Vec<Program>,
    pub(crate) address: String,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(holdfast_binary());
        // An executor that is killed is given up soon, and one that is slow on a busy machine is not.
        command.args(["cluster", "scheduler", "--listen", "127.0.0.1:0", "--executor-timeout-s", "20"]);
        let mut scheduler = Program::start(command.current_dir(folder.path()), folder.path().join("scheduler.log"));
        scheduler.says("Ctrl-C stops");
        let said = scheduler.said();
        let address = said.split("Scheduling on ").nth(1).unwrap().split(',').next().unwrap().to_owned();
        Self { folder, scheduler, executors: Vec::new(), address }
    }

    /// An executor with what `environment` adds to its command: a project and its key, credentials of a store.
    pub(crate) fn executor(&mut self, environment: impl Fn(&mut Command)) {
        let name = format!("executor-{}", self.executors.len());
        let mut command = Command::new(holdfast_binary());
        command.args(["cluster", "executor", "--listen", "127.0.0.1:0", "--tasks", "2", "--memory-mb", "256"]);
        command.args(["--scheduler", &self.address, "--work-dir"]).arg(self.folder.path().join(&name));
        command.current_dir(self.folder.path());
        environment(&mut command);
        let mut program = Program::start(&mut command, self.folder.path().join(format!("{name}.log")));
        program.says("Ctrl-C stops");
        self.executors.push(program);
    }

    /// With the shipped project and this key.
    fn of_the_shipped_project(key: &Path) -> Self {
        let mut cluster = Self::start();
        for _ in 0..2 {
            cluster.executor(|command| {
                command.arg("--project").arg(crate::workspace()).arg("--identity-key").arg(key);
            });
        }
        cluster
    }
}

/// The sources of a small shop, brought into a lake whose stages have not been run.
struct Ingested {
    folder: tempfile::TempDir,
}

impl Ingested {
    fn new(customers: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shop = Self { folder };
        let customers = customers.to_string();
        let generate = ["generate", "--customers", &customers, "--days", "120", "--seed", "7", "--quiet", "--out"];
        succeed(holdfast().args(generate).arg(shop.path("sources")));
        let mut ingest = holdfast();
        ingest.args(["ingest", "--as-of", AS_OF, "--from"]).arg(shop.path("sources"));
        succeed(ingest.arg("--lake").arg(shop.path("lake")).arg("--identity-key").arg(shop.key()));
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn key(&self) -> PathBuf {
        self.path("key")
    }

    /// The lake once more, under another name.
    fn copy(&self, name: &str) -> PathBuf {
        copy(&self.path("lake"), &self.path(name));
        self.path(name)
    }

    fn run(&self, lake: &Path) -> Command {
        let mut command = holdfast();
        command.args(["run", "--json", "--as-of", AS_OF, "--lake"]).arg(lake).arg("--identity-key").arg(self.key());
        command
    }
}

pub(crate) fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The stages of a report that were worked out by executors, and those that were not, with the reasons.
fn places(report: &Value) -> (Vec<String>, Vec<String>) {
    let (mut there, mut here) = (Vec::new(), Vec::new());
    for stage in report["stages"].as_array().unwrap() {
        let name = stage["stage"].as_str().unwrap().to_owned();
        match stage["place"]["kind"].as_str() {
            Some("executor") => there.push(name),
            Some(_) => here.push(format!("{name}: {}", stage["place"]["reason"].as_str().unwrap())),
            None => {}
        }
    }
    (there, here)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shipped_stages_have_the_same_rows_on_a_cluster() {
    let shop = Ingested::new(300);
    let (embedded, there) = (shop.copy("embedded"), shop.copy("there"));
    succeed(shop.run(&embedded).arg("--full"));
    let mut cluster = Cluster::of_the_shipped_project(&shop.key());
    let on_cluster = |more: &[&str]| {
        let mut command = shop.run(&there);
        succeed(command.args(["--cluster", &cluster.address, "--cluster-partitions", "4"]).args(more))
    };

    let first = report(&on_cluster(&["--full"]));
    let (worked, not_worked) = places(&first);
    eprintln!("{} stages on the cluster; here: {not_worked:#?}", worked.len());
    assert!(worked.len() >= 40, "{not_worked:#?}");
    // Sent, its window would have no filter.
    assert!(not_worked.iter().any(|told| told.starts_with("profile.campaign_summary: the filter of a window")));
    assert_same(&open(&there).await, &open(&embedded).await, "on the cluster").await;
    let written = written_there(&first);
    assert!(written.len() >= 30, "{first}");
    assert_same_files(&there, &embedded, &written);
    assert_eq!(orphans(&there), BTreeSet::new());

    // Nothing new, nothing committed (STG-3).
    let before = versions(&open(&there).await).await;
    let second = report(&on_cluster(&[]));
    assert!(second["stages"].as_array().unwrap().iter().all(|stage| stage["outcome"] == "fresh"), "{second}");
    assert_eq!(versions(&open(&there).await).await, before);
    assert_eq!(second["published"], Value::Null);

    // What was read is cleaned away, and a program that is told to stop does.
    let mut executors = std::mem::take(&mut cluster.executors);
    executors.iter_mut().for_each(Program::stop);
    cluster.scheduler.stop();
    let left = std::fs::read_dir(cluster.folder.path().join("executor-0")).unwrap().count();
    assert_eq!(left, 0, "rows on their way are left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_over_a_run_leaves_nothing_by_half() {
    let shop = Ingested::new(200);
    let (embedded, there) = (shop.copy("embedded"), shop.copy("there"));
    // Those of core are enough: they read what was ingested, alone and from each other.
    succeed(shop.run(&embedded).args(["--full", "--select", "core.*"]));
    let mut cluster = Cluster::of_the_shipped_project(&shop.key());
    let start = |name: &str| {
        let mut command = shop.run(&there);
        command.args([
            "--full",
            "--select",
            "core.*",
            "--cluster",
            &cluster.address,
            "--cluster-partitions",
            "4",
            "--verbose",
        ]);
        Program::start(&mut command, shop.path(name))
    };

    // An executor: the run is finished by the other.
    let mut run = start("first.log");
    run.says("Built core.");
    cluster.executors[0].kill();
    let status = ended(&mut run.process);
    assert!(status.success(), "{}", run.said());
    assert_same(&open(&there).await, &open(&embedded).await, "an executor was killed").await;
    assert_eq!(orphans(&there), BTreeSet::new());

    // The scheduler, while all is made anew: readers keep what they have, and the next run makes up for it.
    let published = open(&there).await.latest_manifest().await.unwrap().unwrap();
    let mut command = shop.run(&there);
    command.args(["--full", "--select", "core.*", "--cluster", &cluster.address, "--cluster-partitions", "4"]);
    let mut run = Program::start(&mut command, shop.path("second.log"));
    run.says("Built core.");
    cluster.scheduler.kill();
    let status = ended(&mut run.process);
    assert_eq!(status.code(), Some(4), "{}", run.said());
    assert!(run.said().contains("no scheduler answers at df://"), "{}", run.said());
    assert_eq!(open(&there).await.latest_manifest().await.unwrap().unwrap().sequence, published.sequence);
    // The executor that is left knows that it is of no use.
    let began = Instant::now();
    let code = loop {
        if let Some(ended) = cluster.executors[1].process.try_wait().unwrap() {
            break ended.code();
        }
        assert!(began.elapsed() < PATIENCE, "{}", cluster.executors[1].said());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(code, Some(4), "{}", cluster.executors[1].said());
    succeed(shop.run(&there).args(["--select", "core.*"]));
    assert_same(&open(&there).await, &open(&embedded).await, "the scheduler was killed").await;
}

const SPEND: &str = "-- @stage incremental key(customer_id)\n\
    select customer_id, count(*) as orders, sum(amount) as spend from core.orders\n\
    where customer_id is not null group by customer_id\n";

/// Forty orders of nine members.
pub(crate) fn small_shop(stages: &[(&str, &str)]) -> Shop {
    let shop = Shop::new(stages);
    let orders: String = (0..40).map(|n| format!("o{n},Member{},2025-06-01T00:00:00Z,{}.00\n", n % 9, n % 7)).collect();
    shop.orders("a", &orders);
    shop
}

pub(crate) fn place<'a>(report: &'a Value, stage: &str) -> &'a Value {
    &report["stages"].as_array().unwrap().iter().find(|found| found["stage"] == stage).unwrap()["place"]
}

#[test]
fn what_a_cluster_cannot_do_is_done_here_and_said() {
    let mut cluster = Cluster::start();
    // Without the project and its key: another's tokens would be other tokens.
    cluster.executor(|_| {});
    assert!(cluster.executors[0].said().contains("Without identifier tokens"), "{}", cluster.executors[0].said());
    let pairs = "-- Orders and the dearer ones of the same day.\n\
        select o.order_id, count(d.order_id) as dearer from core.orders o\n\
        left join core.orders d on d.amount > o.amount\n\
        group by o.order_id\n";
    let shop = small_shop(&[("sql/profile/spend.sql", SPEND), ("sql/profile/pairs.sql", pairs)]);
    let output = shop
        .command(&["run", "--full", "--json", "--as-of", "2025-06-30T00:00:00Z", "--cluster", &cluster.address])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = report(&output);
    assert_eq!(place(&report, "profile.spend")["kind"], "executor", "{report}");
    let reason = place(&report, "core.orders")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("identifier_token") && reason.contains("identity key"), "{reason}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Here core.orders"), "{said}");
    let dearer = &shop.query("select sum(dearer) as n, count(*) as orders from profile.pairs")[0];
    let expected = &shop.query(
        "select sum(case when d.amount > o.amount then 1 else 0 end) as n, count(distinct o.order_id) as orders \
         from core.orders o cross join core.orders d",
    )[0];
    assert_eq!(dearer, expected, "{}", place(&report, "profile.pairs"));
    assert_eq!(shop.query("select sum(orders) as n from profile.spend")[0]["n"], 40);

    // A stage that fails there fails as it does here, and tells no value.
    shop.write("sql/profile/broken.sql", "select order_id, cast(order_id as int) as number from core.orders\n");
    let fails = |extra: &[&str]| {
        let mut command = shop.command(&["run", "--as-of", "2025-06-30T00:00:00Z"]);
        let output = command.args(extra).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (embedded, there) = (fails(&[]), fails(&["--cluster", &cluster.address]));
    assert_eq!(embedded.0, there.0, "{}\n{}", embedded.1, there.1);
    let told = there.1.lines().find(|line| line.contains("Failed profile.broken")).unwrap();
    assert!(told.contains("Int32") && !told.contains("'o"), "{told}");
}

/// With the settings of this store and of no other.
pub(crate) fn with_store<'a>(command: &'a mut Command, server: &S3Server) -> &'a mut Command {
    let settings = S3Settings::default();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env("AWS_ENDPOINT", server.endpoint()).env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", settings.access_key).env("AWS_SECRET_ACCESS_KEY", settings.secret_key)
}

#[test]
fn a_lake_on_s3_is_read_and_written_with_the_credentials_of_executors() {
    let server = S3Server::start(S3Settings::default()).unwrap();
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    shop.write("holdfast.toml", "[lake]\nurl = \"s3://shop/lake\"\n");
    shop.write(
        "in/orders/a.csv",
        "order_id,member,at,amount\no1,A,2025-06-01T00:00:00Z,1.00\no2,B,2025-06-01T00:00:00Z,2.00\n",
    );
    let on_s3 = |arguments: &[&str]| {
        let mut command = shop.command(arguments);
        with_store(&mut command, &server).output().unwrap()
    };
    let output = on_s3(&["ingest", "--from", shop.path().join("in").to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let mut cluster = Cluster::start();
    cluster.executor(|command| {
        command.arg("--project").arg(shop.path());
        with_store(command, &server);
    });
    let output = on_s3(&["run", "--full", "--json", "--cluster", &cluster.address]);
    let done = report(&output);
    for stage in ["core.orders", "profile.spend"] {
        assert_eq!(place(&done, stage)["written_by"], "executors", "{done}");
    }
    let rows: Value = serde_json::from_slice(
        &on_s3(&["sql", "select sum(spend) as n from profile.spend", "--output", "json"]).stdout,
    )
    .unwrap();
    assert_eq!(rows[0]["n"], 3.0, "{rows}");

    // Credentials are an executor's own: one that has none cannot read, whatever the driver has.
    let mut stranger = Cluster::start();
    stranger.executor(|command| {
        command.arg("--project").arg(shop.path());
        with_store(command, &server).env("AWS_SECRET_ACCESS_KEY", "guessed");
    });
    let output = on_s3(&["run", "--full", "--cluster", &stranger.address]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Failed core.orders") && !said.contains("guessed"), "{said}");
}

#[test]
fn addresses_that_are_no_scheduler_are_told_before_anything_runs() {
    let shop = small_shop(&[]);
    let fails = |address: &str| {
        let output = shop.command(&["run", "--cluster", address]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = fails("http://127.0.0.1:50050");
    assert!(code == Some(2) && said.contains("df://host:port"), "{code:?} {said}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nServer: another\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let (code, said) = fails(&format!("df://127.0.0.1:{port}"));
    answering.join().unwrap();
    assert!(code == Some(2) && said.contains("no Ballista scheduler"), "{code:?} {said}");

    // The port is free again.
    let (code, said) = fails(&format!("df://127.0.0.1:{port}"));
    assert!(code == Some(4) && said.contains("no scheduler answers at df://127.0.0.1"), "{code:?} {said}");
    assert!(said.contains("holdfast cluster scheduler"), "{said}");

    shop.write("holdfast.toml", "[lake]\nurl = \"lake\"\n\n[cluster]\nscheduler = \"localhost\"\n");
    let output = shop.command(&["run"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("holdfast.toml:5:13") && said.contains("df://host:port"), "{said}");

    // Two programs on one port.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let output = shop.command(&["cluster", "scheduler", "--listen", &listen]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("another program has the port"), "{said}");
    let output = shop.command(&["cluster", "scheduler", "--listen", "0.0.0.0:0"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("--advertise"), "{said}");
}
