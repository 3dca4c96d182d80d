//! Files that executors write: those an embedded run would leave, judged as there, committed once, and none left over of an attempt that was given up.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlanProperties;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionConfig;
use futures::TryStreamExt;
use holdfast_engine::{
    Answer, DeclaredTable, Executor, ExecutorError, Project, RunOptions, RunReport, Runner, Selection, SessionSettings,
    Work, WriteFilesExec,
};
use holdfast_lake::Lake;
use holdfast_testkit::{Operation, Rule, S3Fault, S3Server, S3Settings};
use holdfast_types::NoProgress;
use serde_json::Value;

use crate::cluster::{Cluster, place, report, small_shop, with_store};
use crate::increments::{assert_same, copy, open, versions};
use crate::stages::Shop;
use crate::succeed;

const AS_OF: &str = "2025-06-30T00:00:00Z";

const SPEND: &str = "-- @expect fail has_customer: customer_id is not null\n-- @expect quarantine many: orders > 4\n\
    -- @expect warn cheap: spend < 15\n-- @expect warn some: count(*) > 3\n\
    select customer_id, count(*) as orders, sum(amount) as spend, max(ordered_at) as last_order_at from core.orders\n\
    where customer_id is not null group by customer_id\n";

/// The stages of a report whose files executors wrote.
pub(crate) fn written_there(report: &Value) -> Vec<String> {
    let stages = report["stages"].as_array().unwrap().iter();
    let stages = stages.filter(|stage| stage["place"]["written_by"] == "executors");
    stages.map(|stage| stage["stage"].as_str().unwrap().to_owned()).collect()
}

/// The data files below a folder that no commit names.
pub(crate) fn orphans(folder: &Path) -> BTreeSet<String> {
    let (mut there, mut named) = (BTreeSet::new(), HashSet::new());
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "parquet") && !in_log(&path) {
                there.insert(name);
            } else if path.extension().is_some_and(|extension| extension == "json") && in_log(&path) {
                named.extend(actions(&path, "add").iter().chain(&actions(&path, "cdc")).map(file_name));
            }
        }
    }
    there.retain(|name| !named.contains(name));
    there
}

fn in_log(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "_delta_log")
}

fn file_name(action: &Value) -> String {
    action["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()
}

/// The actions of a commit that are of one kind.
fn actions(commit: &Path, kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(commit).unwrap();
    let actions = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    actions.filter_map(|mut action| action.get_mut(kind).map(Value::take)).collect()
}

/// What the log says of the files that a table's newest commit added: partition, statistics and tags, without what is another in each run.
fn described_files(lake: &Path, table: &str) -> Vec<String> {
    let log = lake.join(table.replace('.', "/")).join("_delta_log");
    let commits = std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    let newest = commits.filter(|path| path.extension().is_some_and(|extension| extension == "json")).max().unwrap();
    let described = actions(&newest, "add").into_iter().map(|add| {
        let statistics: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
        format!("{} {} {statistics}", add["partitionValues"], add["tags"])
    });
    let mut described: Vec<String> = described.collect();
    described.sort();
    described
}

/// # Panics
/// When a stage's files are described in one lake as they are not in the other.
pub(crate) fn assert_same_files(one: &Path, other: &Path, stages: &[String]) {
    for stage in stages {
        assert_eq!(described_files(one, stage), described_files(other, stage), "{stage}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stg_2_rows_are_judged_where_they_are_written_as_embedded() {
    let shop = small_shop(&[("sql/profile/spend.sql", SPEND)]);
    let (embedded, there) = (shop.path().join("embedded"), shop.path().join("there"));
    copy(&shop.path().join("lake"), &embedded);
    copy(&shop.path().join("lake"), &there);
    let mut cluster = Cluster::start();
    cluster.executor(|command| {
        command.arg("--project").arg(shop.path());
    });
    let run = |lake: &Path, more: &[&str]| {
        let mut command = shop.command(&["run", "--full", "--json", "--as-of", AS_OF, "--lake"]);
        command.arg(lake).args(more).output().unwrap()
    };
    let on_cluster = ["--cluster", &cluster.address, "--cluster-partitions", "3"];
    let (here, elsewhere) = (run(&embedded, &[]), run(&there, &on_cluster));
    let (here, elsewhere) = (report(&here), report(&elsewhere));
    let expectations = |report: &Value, name: &str| {
        let stages = report["stages"].as_array().unwrap();
        stages.iter().find(|stage| stage["stage"] == name).unwrap()["expectations"].clone()
    };
    for stage in ["core.orders", "profile.spend"] {
        assert_eq!(place(&elsewhere, stage)["written_by"], "executors", "{elsewhere}");
        assert_eq!(expectations(&elsewhere, stage), expectations(&here, stage));
    }
    assert_eq!(expectations(&elsewhere, "profile.spend")[1]["failed_rows"], 5, "{elsewhere}");
    assert_same(&open(&there).await, &open(&embedded).await, "written by executors").await;
    assert_same_files(&there, &embedded, &["core.orders", "profile.spend"].map(str::to_owned));
    assert_eq!(orphans(&there), BTreeSet::new());

    // Rows that must not be: no version, the same words, and no file.
    let before = versions(&open(&there).await).await;
    let failing = SPEND.replace("fail has_customer: customer_id is not null", "fail few: orders < 5");
    shop.write("sql/profile/spend.sql", &failing);
    let (here, elsewhere) = (run(&embedded, &[]), run(&there, &on_cluster));
    assert_eq!((here.status.code(), elsewhere.status.code()), (Some(3), Some(3)));
    let told = |output: &std::process::Output| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.lines().find(|line| line.contains("expectation `few`")).unwrap().trim().to_owned()
    };
    assert_eq!(told(&here), told(&elsewhere));
    let after = versions(&open(&there).await).await;
    assert_eq!(after[&"profile.spend".parse().unwrap()], before[&"profile.spend".parse().unwrap()]);
    assert_eq!(orphans(&there), BTreeSet::new());
}

#[test]
fn what_executors_cannot_write_or_write_elsewhere_comes_to_the_driver() {
    let server = S3Server::start(S3Settings::default()).unwrap();
    let shop = Shop::new(&[
        ("sql/profile/spend.sql", "select order_id as customer_id, amount as spend from core.orders\n"),
        ("sql/profile/constant.sql", "select 'x' as customer_id, 1 as n\n"),
    ]);
    shop.write("holdfast.toml", "[lake]\nurl = \"s3://shop/lake\"\n");
    shop.write("in/orders/a.csv", "order_id,member,at,amount\no1,A,2025-06-01T00:00:00Z,1.00\n");
    let on_s3 = |arguments: &[&str]| succeed(with_store(&mut shop.command(arguments), &server));
    on_s3(&["ingest", "--from", shop.path().join("in").to_str().unwrap()]);
    let start = |of: &S3Server| {
        let mut cluster = Cluster::start();
        cluster.executor(|command: &mut Command| {
            with_store(command.arg("--project").arg(shop.path()), of);
        });
        cluster
    };
    let run = |cluster: &Cluster, more: &[&str]| {
        let run = ["run", "--full", "--json", "--cluster", &cluster.address];
        report(&on_s3(&[&run, more].concat()))
    };

    // The first file is refused to an executor; it is not asked to write another one in this run.
    let cluster = start(&server);
    let denied = Rule::on(&Operation::PUTS, S3Fault::Refused(403)).path("core/orders/customer_bucket").times(1);
    server.set_rules(vec![denied]);
    let done = run(&cluster, &[]);
    for stage in ["core.orders", "profile.spend"] {
        let place = place(&done, stage);
        assert_eq!((&place["kind"], &place["written_by"]), (&"executor".into(), &"driver".into()), "{done}");
        assert!(place["reason"].as_str().unwrap().contains("cannot write a data file"), "{place}");
    }
    assert_eq!(written_there(&run(&cluster, &[])).len(), 3, "another run asks again");

    // A store of the same URL that is another one: nothing of what is there is ever committed.
    let other = S3Server::start(S3Settings::default()).unwrap();
    let done = run(&start(&other), &["--select", "profile.constant"]);
    let place = place(&done, "profile.constant");
    assert_eq!(place["written_by"], "driver", "{done}");
    assert!(place["reason"].as_str().unwrap().contains("another one"), "{place}");
    assert_eq!(other.keys("shop").len(), 1, "the executor wrote there");
    let rows = on_s3(&["sql", "select n from profile.constant", "--output", "json"]).stdout;
    assert_eq!(serde_json::from_slice::<Value>(&rows).unwrap()[0]["n"], 1);
}

/// What becomes of an attempt whose files are written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// It is told that an executor is gone.
    Lost,
    /// Who has the answers is gone before they are read.
    Unread,
}

/// Runs plans in this process as executors do, and comes to that end so many times.
#[derive(Debug)]
struct Dying {
    end: End,
    deaths: AtomicU32,
    folder: PathBuf,
}

#[async_trait]
impl Executor for Dying {
    fn configure(&self, config: SessionConfig) -> SessionConfig {
        config.with_target_partitions(3)
    }

    async fn execute(&self, work: Work) -> Result<Answer, ExecutorError> {
        assert!(work.plan.is::<WriteFilesExec>());
        let mut streams = Vec::new();
        // As sent once more.
        let plan = reset_plan_states(Arc::clone(&work.plan)).unwrap();
        for partition in 0..plan.output_partitioning().partition_count() {
            let rows = plan.execute(partition, Arc::clone(&work.context)).unwrap();
            let rows: Vec<_> = rows.try_collect().await.unwrap();
            streams.push(rows.into_iter().map(Ok).collect::<Vec<_>>());
        }
        assert!(!orphans(&self.folder).is_empty(), "nothing was written");
        let dies = self.deaths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |deaths| deaths.checked_sub(1));
        match self.end {
            End::Lost if dies.is_ok() => return Err(ExecutorError::Lost("an executor is gone".to_owned())),
            End::Unread if dies.is_ok() => {
                streams[1] = vec![Err(DataFusionError::IoError(std::io::Error::other("an executor is gone")))];
            }
            _ => {}
        }
        let streams = streams.into_iter().map(|rows| {
            let rows = RecordBatchStreamAdapter::new(work.plan.schema(), futures::stream::iter(rows));
            Box::pin(rows) as SendableRecordBatchStream
        });
        Ok(Answer::Rows(streams.collect()))
    }
}

async fn run_over(shop: &Shop, lake: &Lake, executor: Option<Arc<dyn Executor>>) -> RunReport {
    let orders = "core.orders".parse().unwrap();
    let schema = Arc::clone(lake.table(&orders).await.unwrap().unwrap().schema());
    let declared = DeclaredTable { name: orders, schema, identifiers: Vec::new() };
    let project = Project::load(&shop.path().join("only"), vec![declared]).unwrap();
    let options = RunOptions {
        run_id: uuid::Uuid::now_v7().to_string(),
        as_of: AS_OF.parse().unwrap(),
        selection: Selection::All,
        full: true,
        range: None,
        publish: true,
        parallel_stages: 1,
    };
    let settings = SessionSettings { executor, ..SessionSettings::default() };
    Runner::new(lake.clone(), project, settings).run(&options, &NoProgress).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_was_given_up_leaves_no_file_and_is_never_committed() {
    let shop = small_shop(&[]);
    shop.write("only/profile/spend.sql", SPEND);
    shop.run();
    let (folder, embedded) = (shop.path().join("lake"), shop.path().join("embedded"));
    copy(&folder, &embedded);
    run_over(&shop, &open(&embedded).await, None).await;

    for end in [End::Lost, End::Unread] {
        let dying = |deaths| Dying { end, deaths: AtomicU32::new(deaths), folder: folder.clone() };
        let report = run_over(&shop, &open(&folder).await, Some(Arc::new(dying(2)))).await;
        let told = serde_json::to_value(&report).unwrap();
        assert!(report.succeeded() && written_there(&told) == ["profile.spend"], "{end:?}: {told}");
        assert_same_files(&folder, &embedded, &["profile.spend".to_owned()]);
        assert_eq!(orphans(&folder), BTreeSet::new(), "{end:?}");
        assert_same(&open(&folder).await, &open(&embedded).await, "after two deaths").await;

        // Three are too many.
        let before = versions(&open(&folder).await).await;
        let report = run_over(&shop, &open(&folder).await, Some(Arc::new(dying(3)))).await;
        assert!(!report.succeeded(), "{end:?}: {report:?}");
        assert_eq!(versions(&open(&folder).await).await, before);
        assert_eq!(orphans(&folder), BTreeSet::new(), "{end:?}");
    }
}
