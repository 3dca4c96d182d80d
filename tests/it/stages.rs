//! Stages through the front door: a project of a few files, a real lake, the real binary.

use std::sync::Arc;

use arrow::array::{AsArray, Int32Array, RecordBatch};
use arrow::datatypes::{DataType, Decimal128Type, Field, Schema};
use holdfast_engine::{
    DeclaredTable, LakeReader, Project, RunOptions, Runner, Selection, SessionSettings, TableRows, write_table,
};
use holdfast_lake::{CommitOutcome, Lake, Manifest, ManifestEntry, Position, StoreOptions, TableSpec};
use holdfast_types::{FixedClock, Progress, TableName};

use crate::folder::ProjectFolder;
use crate::{commits, succeed};

/// A project with one source of orders and the given stages.
pub(crate) struct Shop {
    folder: ProjectFolder,
}

impl std::ops::Deref for Shop {
    type Target = ProjectFolder;

    fn deref(&self) -> &ProjectFolder {
        &self.folder
    }
}

impl Shop {
    pub(crate) fn new(stages: &[(&str, &str)]) -> Self {
        let shop = Self { folder: ProjectFolder::new(&[]) };
        shop.write("holdfast.toml", "[lake]\nurl = \"lake\"\n");
        shop.write("pipelines/churn/pipeline.toml", "stages = \"sql\"\n");
        shop.write("pipelines/churn/identity.toml", "priority = [\"member_id\"]\n[types.member_id]\nunique = true\n");
        shop.write(
            "pipelines/churn/sources/orders.toml",
            "kind = \"orders\"\npath = \"orders/*.csv\"\nformat = \"csv\"\nevent_time = \"at\"\n\
             [columns]\norder_id = \"string\"\nmember = \"string\"\nat = \"timestamp\"\namount = \"decimal(12,2)\"\n\
             [[identifiers]]\ntype = \"member_id\"\nvalue = \"member\"\n",
        );
        shop.write(
            "sql/core/orders.sql",
            "-- One row an order.\n-- @expect fail has_id: order_id is not null\n\
             select i.customer_id, o.order_id, o.at as ordered_at, o.amount\nfrom raw.orders o\n\
             left join identity.identifiers i on i.token = identifier_token('member_id', o.member)\n",
        );
        for (path, text) in stages {
            shop.write(path, text);
        }
        shop
    }

    pub(crate) fn orders(&self, name: &str, rows: &str) {
        self.write(&format!("in/orders/{name}.csv"), &format!("order_id,member,at,amount\n{rows}"));
        succeed(&mut self.command(&["ingest", "--from", "in", "--as-of", "2025-06-30T00:00:00Z"]));
    }

    pub(crate) fn run(&self) {
        succeed(&mut self.command(&["run", "--as-of", "2025-06-30T00:00:00Z"]));
    }

    pub(crate) fn fails(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).output().unwrap();
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

pub(crate) const SPEND: &str = "-- Spend of the last 90 days, one row a customer.\n-- @stage incremental key(customer_id)\n\
    -- @expect fail has_customer: customer_id is not null\n-- @expect quarantine sane: spend_90d >= 0\n\
    -- @expect warn some: count(*) > 0\n\
    select\n    customer_id,              -- Unified customer id\n    sum(amount) as spend_90d  -- CNY\nfrom core.orders\n\
    where ordered_at >= now() - interval '90 days' and ordered_at <= now() and customer_id is not null\ngroup by customer_id\n";

#[test]
fn stg_2_rows_that_fail_an_expectation_get_no_version_and_readers_keep_the_run_they_have() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    shop.run();
    let published = shop.query("select spend_90d from profile.spend");
    assert_eq!(published[0]["spend_90d"].to_string(), "10.0");
    let before = commits(&shop.path().join("lake/profile"));

    shop.write(
        "sql/profile/spend.sql",
        &SPEND.replace("customer_id is not null\n-- @expect q", "spend_90d < 5\n-- @expect q"),
    );
    let (code, said) = shop.fails(&["run", "--as-of", "2025-06-30T00:00:00Z"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("expectation `has_customer` (spend_90d < 5) failed for 1 of 1 rows"), "{said}");
    assert_eq!(before, commits(&shop.path().join("lake/profile")));
    assert_eq!(published, shop.query("select spend_90d from profile.spend"));
}

#[test]
fn quarantined_rows_go_to_the_sibling_table_with_the_reason() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\no2,M2,2025-06-02T00:00:00Z,-4.00\n");
    shop.run();
    assert_eq!(shop.query("select count(*) as n from profile.spend")[0]["n"], 1);
    let refused = shop.query("select spend_90d, _expectations from quarantine.profile_spend");
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0]["_expectations"], "sane");

    // Once the row is right, nothing is left in quarantine.
    shop.orders("b", "o3,M2,2025-06-03T00:00:00Z,9.00\n");
    shop.run();
    assert_eq!(shop.query("select count(*) as n from quarantine.profile_spend")[0]["n"], 0);
    assert_eq!(shop.query("select count(*) as n from profile.spend")[0]["n"], 2);
}

#[test]
fn stg_3_a_comment_or_a_reformat_changes_nothing_and_another_day_does() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    succeed(&mut shop.command(&["run", "--as-of", "2025-06-30T06:00:00Z"]));
    let before = commits(shop.path());
    shop.write("sql/profile/spend.sql", &format!("-- a remark\n{}", SPEND.replace("\ngroup by", "\n    group    by")));
    succeed(&mut shop.command(&["run", "--as-of", "2025-06-30T06:00:00Z"]));
    succeed(&mut shop.command(&["run", "--as-of", "2025-06-30T18:00:00Z"]));
    assert_eq!(before, commits(shop.path()));

    // 90 days later the order is out of the window: only the stage that looks at the clock is made anew.
    succeed(&mut shop.command(&["run", "--as-of", "2025-09-15T00:00:00Z"]));
    let changed: Vec<String> = commits(shop.path()).into_iter().filter(|path| !before.contains(path)).collect();
    assert!(changed.iter().all(|path| path.contains("/spend/") || path.contains("/_holdfast/runs/")), "{changed:?}");
    assert_eq!(shop.query("select count(*) as n from profile.spend")[0]["n"], 0);
}

#[test]
fn mistakes_are_told_with_file_line_column_and_a_suggestion_before_anything_runs() {
    let shop = Shop::new(&[
        ("sql/profile/a.sql", "select customer_idd\nfrom core.orders\n"),
        ("sql/profile/b.sql", "-- @expct fail x: true\nselect 1 as one from core.ordes\n"),
    ]);
    let (code, said) = shop.fails(&["test"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("error[E0101]: unknown directive `@expct`") && said.contains("did you mean `@expect`?"),
        "{said}"
    );

    shop.write("sql/profile/b.sql", "select 1 as one\nfrom core.ordes\n");
    let (_, said) = shop.fails(&["test"]);
    assert!(said.contains("error[E0203]: table `core.ordes` not found"), "{said}");
    assert!(said.contains("b.sql:2:6") && said.contains("did you mean `core.orders`?"), "{said}");

    shop.write("sql/profile/b.sql", "select 1 as one\n");
    let (_, said) = shop.fails(&["test"]);
    assert!(said.contains("a.sql:1:8") && said.contains("did you mean `customer_id`?"), "{said}");
    assert!(said.contains("^^^^"), "{said}");
    assert!(!shop.path().join("lake").exists(), "a check wrote a lake");
}

#[test]
fn a_circle_of_stages_is_told_with_its_members() {
    let shop = Shop::new(&[
        ("sql/profile/a.sql", "select 1 as x from profile.b\n"),
        ("sql/profile/b.sql", "select 1 as x from profile.a\n"),
    ]);
    let (code, said) = shop.fails(&["test"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("profile.a reads profile.b reads profile.a"), "{said}");
}

#[test]
fn a_failed_stage_blocks_those_behind_it_and_no_others() {
    let shop = Shop::new(&[
        ("sql/profile/bad.sql", "-- @expect fail never: count(*) < 0\nselect customer_id, amount from core.orders\n"),
        ("sql/profile/behind.sql", "select customer_id, amount from profile.bad\n"),
        ("sql/profile/spend.sql", SPEND),
    ]);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    let output = shop.command(&["run", "--json", "--as-of", "2025-06-30T00:00:00Z"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let outcomes: Vec<(String, String)> = report["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| (stage["stage"].as_str().unwrap().to_owned(), stage["outcome"].as_str().unwrap().to_owned()))
        .collect();
    let of = |name: &str| outcomes.iter().find(|(stage, _)| stage == name).unwrap().1.as_str();
    assert_eq!((of("profile.bad"), of("profile.behind"), of("profile.spend")), ("failed", "blocked", "built"));
    assert_eq!(report["published"], serde_json::Value::Null);

    // Its table is there and empty by now: what reads it is not built over no rows.
    for command in ["run", "plan"] {
        let (code, said) = shop.fails(&[command, "--select", "profile.behind"]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("profile.behind reads profile.bad, which was never built"), "{said}");
        assert!(said.contains("`--select +profile.behind`"), "{said}");
    }
}

#[test]
fn a_reader_that_closes_the_pipe_of_messages_stops_nothing() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let run = shop.command(&["run", "--as-of", "2025-06-30"]).stderr(writer).status().unwrap();
    assert_eq!(run.code(), Some(0));
    assert_eq!(shop.query("select count(*) as n from profile.spend")[0]["n"], 1);
}

#[test]
fn a_case_that_does_not_hold_shows_the_rows_that_differ() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    shop.write(
        "sql/profile/spend.cases.toml",
        "as_of = \"2025-06-30T00:00:00Z\"\n[[case]]\nname = \"wrong\"\n[case.given]\n\"core.orders\" = \"\"\"\n\
         customer_id | ordered_at           | amount\nc1          | 2025-06-01T00:00:00Z | 3.00\n\"\"\"\n\
         [case.expect]\nrows = \"\"\"\ncustomer_id | spend_90d\nc1 | 4.00\n\"\"\"\n",
    );
    let (code, said) = shop.fails(&["test"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("- c1 | ") && said.contains("+ c1 | "), "{said}");
}

#[test]
fn a_query_that_is_not_a_query_is_refused() {
    let shop = Shop::new(&[]);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    for sql in [
        "drop table core.orders",
        "insert into core.orders values (1)",
        "create table core.x as select 1",
        "copy core.orders to 'x.csv'",
        "set datafusion.execution.batch_size = 1",
    ] {
        let (code, said) = shop.fails(&["sql", sql]);
        assert_eq!(code, Some(2), "{sql}: {said}");
        assert!(said.contains("only queries are allowed"), "{sql}: {said}");
    }
    let (_, said) = shop.fails(&["sql", "select ordr_id from core.orders"]);
    assert!(said.contains("line 1, column 8: column 'ordr_id' not found: did you mean `order_id`?"), "{said}");
    let (code, said) = shop.fails(&["run", "--as-of", "yesterday"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("write a day such as 2026-01-31, or a moment such as 2026-01-31T08:00:00Z"), "{said}");
}

#[test]
fn selections_take_what_is_above_and_below() {
    let shop = Shop::new(&[
        ("sql/profile/spend.sql", SPEND),
        ("sql/risk/top.sql", "select customer_id, spend_90d from profile.spend where spend_90d > 1\n"),
        (
            "sql/risk/other.sql",
            "select customer_id from core.orders where customer_id is not null group by customer_id\n",
        ),
    ]);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    let selected = |pattern: &str| -> Vec<String> {
        let arguments = ["run", "--json", "--as-of", "2025-06-30T00:00:00Z", "--select", pattern];
        let report: serde_json::Value = serde_json::from_slice(&succeed(&mut shop.command(&arguments)).stdout).unwrap();
        report["stages"].as_array().unwrap().iter().map(|stage| stage["stage"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(selected("profile.spend"), ["profile.spend"]);
    assert_eq!(selected("profile.spend+"), ["profile.spend", "risk.top"]);
    assert_eq!(selected("+risk.top"), ["core.orders", "profile.spend", "risk.top"]);
    assert_eq!(selected("risk.*"), ["risk.other", "risk.top"]);
    let (code, said) = shop.fails(&["run", "--select", "profile.spnd"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("did you mean `profile.spend`?"), "{said}");
}

#[test]
fn a_stage_that_does_not_fit_into_memory_is_built_again_with_plans_that_need_less() {
    let shop = Shop::new(&[(
        "sql/profile/pairs.sql",
        "-- Every order beside itself.\n-- @expect fail all: count(*) = 300000\n\
         select o.order_id, p.amount, p.at\nfrom raw.orders o\njoin raw.orders p on p.order_id = o.order_id\n",
    )]);
    shop.write("holdfast.toml", "[lake]\nurl = \"lake\"\n[engine]\nmemory_mb = 64\n");
    // A hash join holds one side: 120 MB of order ids at least, twice what there is, however the work falls out in time.
    let rows: String = (0..300_000).map(|n| format!("o{n:0>400},,2025-06-01T00:00:00Z,{}.00\n", n % 100)).collect();
    shop.write("in/orders/a.csv", &format!("order_id,member,at,amount\n{rows}"));
    succeed(&mut shop.command(&["ingest", "--raw-only", "--from", "in"]));

    let run = shop.command(&["run", "--select", "profile.pairs", "--as-of", "2025-06-30T00:00:00Z"]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{said}");
    assert!(said.contains("is built again alone, with all of it on disk"), "{said}");
    assert!(said.contains("Built profile.pairs  300000 rows"), "{said}");
    let sums = shop.query("select count(*) as n, cast(sum(amount) as bigint) as amount from profile.pairs");
    assert_eq!((&sums[0]["n"], &sums[0]["amount"]), (&300_000.into(), &(3_000 * 4_950).into()));
}

/// A filter that `max(amount)` hands to the scan must not leave out the row that only the other aggregate needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregate_never_leaves_out_rows_that_another_one_needs() {
    let shop = Shop::new(&[]);
    shop.write("holdfast.toml", "[lake]\nurl = \"lake\"\n[ingest]\nbatch_files_max = 1\n");
    for file in 0..12 {
        let name = if file == 3 { "wanted" } else { "other" };
        let rows = format!("{name},,2025-06-01T00:00:00Z,{file}.00\n");
        shop.write(&format!("in/orders/{file:02}.csv"), &format!("order_id,member,at,amount\n{rows}"));
    }
    succeed(&mut shop.command(&["ingest", "--raw-only", "--from", "in"]));

    let clock = Arc::new(FixedClock("2025-06-30T00:00:00Z".parse().unwrap()));
    let lake = Lake::open("lake", shop.path(), &StoreOptions::new(), clock).await.unwrap();
    let newest = LakeReader::newest(&lake, &SessionSettings::default()).await.unwrap();
    let query =
        "select max(amount) as largest, max(case when order_id = 'wanted' then amount end) as wanted from raw.orders";
    for attempt in 0..100 {
        let rows = newest.session().unwrap().sql(query).await.unwrap().collect().await.unwrap();
        let amount = |column: usize| rows[0].column(column).as_primitive::<Decimal128Type>().value(0);
        assert_eq!((amount(0), amount(1)), (1_100, 300), "attempt {attempt}");
    }
}

/// Writes and publishes a table beside the run that is told of: once, at its first word.
#[derive(Debug)]
struct Meanwhile {
    folder: std::path::PathBuf,
    happened: std::sync::atomic::AtomicBool,
}

impl Progress for Meanwhile {
    fn advance(&self, _step: &str, _done: u64, _total: Option<u64>, _unit: &'static str) {}
    fn finish(&self, _step: &str, _summary: &str) {}
    fn problem(&self, line: &str) {
        panic!("{line}");
    }

    fn note(&self, _line: &str) {
        if self.happened.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return;
        }
        let folder = self.folder.clone();
        let beside = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                let lake = lake_at(&folder).await;
                publish_beside(&lake, "risk.scores", 2).await;
                publish_beside(&lake, "risk.born", 1).await;
            });
        });
        beside.join().unwrap();
    }
}

async fn lake_at(folder: &std::path::Path) -> Lake {
    let clock = Arc::new(FixedClock("2025-06-30T00:00:00Z".parse().unwrap()));
    let url = folder.display().to_string();
    Lake::open_to_write(&url, std::path::Path::new("/"), &StoreOptions::new(), clock).await.unwrap()
}

/// Adds a row to a table that no stage makes, and publishes it beside what readers have; answers its version.
async fn publish_beside(lake: &Lake, name: &str, step: i64) -> u64 {
    let name: TableName = name.parse().unwrap();
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, true)]));
    let spec = TableSpec {
        name: name.clone(),
        schema: Arc::clone(&schema),
        partition_by: Vec::new(),
        comment: "Not a stage's.".to_owned(),
    };
    let rows = RecordBatch::try_new(schema, vec![Arc::new(Int32Array::from(vec![1]))]).unwrap();
    let position = Position { app_id: "beside".to_owned(), version: step };
    let written = write_table(lake, &spec, TableRows::Added(vec![rows]), position, serde_json::Map::new()).await;
    assert!(matches!(written.unwrap(), CommitOutcome::Applied { .. }));
    let table = lake.table(&name).await.unwrap().unwrap();
    let latest = lake.latest_manifest().await.unwrap().unwrap();
    let mut tables: Vec<ManifestEntry> = latest.tables.iter().filter(|entry| entry.name != name).cloned().collect();
    tables.push(ManifestEntry {
        name,
        version: table.version(),
        rows: table.row_count(),
        is_of_production: false,
        looked_at: Default::default(),
    });
    tables.sort_by(|left, right| left.name.cmp(&right.name));
    let (sequence, at) = (latest.sequence + 1, lake.clock().now());
    let manifest =
        Manifest { sequence, run_id: format!("beside {sequence}"), as_of: latest.as_of, published_at: at, tables };
    lake.publish(manifest).await.unwrap();
    table.version()
}

#[tokio::test]
async fn a_run_leaves_what_others_published_meanwhile_of_tables_that_it_does_not_touch() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    shop.run();
    let folder = shop.path().join("lake");
    let lake = lake_at(&folder).await;
    let before = publish_beside(&lake, "risk.scores", 1).await;
    shop.orders("b", "o2,M2,2025-06-02T00:00:00Z,5.00\n");

    // Core is as it was left; the run makes the spend.
    let orders: TableName = "core.orders".parse().unwrap();
    let schema = Arc::clone(lake.table(&orders).await.unwrap().unwrap().schema());
    let only = shop.path().join("only");
    std::fs::create_dir_all(only.join("profile")).unwrap();
    std::fs::write(only.join("profile/spend.sql"), SPEND).unwrap();
    let declared = DeclaredTable { name: orders, schema, identifiers: Vec::new() };
    let runner = Runner::new(lake.clone(), Project::load(&only, vec![declared]).unwrap(), SessionSettings::default());
    let options = RunOptions {
        run_id: uuid::Uuid::now_v7().to_string(),
        as_of: lake.clock().now(),
        selection: Selection::All,
        full: true,
        range: None,
        publish: true,
        parallel_stages: 1,
    };
    let meanwhile = Meanwhile { folder: folder.clone(), happened: false.into() };
    let report = runner.run(&options, &meanwhile).await.unwrap();
    assert!(report.succeeded() && meanwhile.happened.into_inner(), "{report:?}");

    let published = lake_at(&folder).await.latest_manifest().await.unwrap().unwrap();
    assert_eq!(Some(published.sequence), report.published, "the run published last");
    let version =
        |name: &str| published.tables.iter().find(|entry| entry.name.to_string() == name).map(|entry| entry.version);
    assert!(version("risk.scores") > Some(before), "{published:?}");
    assert!(version("risk.born").is_some(), "{published:?}");
}
