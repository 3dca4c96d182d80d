//! `holdfast up` and `holdfast run --scheduled`: real processes, real files, a real Flight client.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow_flight::sql::client::FlightSqlServiceClient;
use chrono::{TimeDelta, Utc};
use futures::TryStreamExt;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::stages::Shop;
use crate::{commits, succeed};

const PATIENCE: Duration = Duration::from_secs(60);

/// One row a customer, whenever it is asked.
const TOTALS: &str = "-- @stage  incremental key(customer_id)\n\
    -- @expect fail positive: total >= 0\n\
    select customer_id, sum(amount) as total, count(*) as orders from core.orders\n\
    where customer_id is not null group by customer_id\n";

const EVENTS: &str = "kind = \"behaviour\"\npath = \"events/*.ndjson\"\nformat = \"ndjson\"\n\
    [columns]\nid = \"string\"\nkind = { type = \"string\", from = \"type\" }\n";

fn shop(schedule: &str, up: &str) -> Shop {
    let shop = Shop::new(&[("sql/profile/totals.sql", TOTALS)]);
    shop.write("pipelines/churn/pipeline.toml", &format!("stages = \"sql\"\n\n[schedule]\n{schedule}\n"));
    shop.write("holdfast.toml", &format!("[lake]\nurl = \"lake\"\n\n{up}"));
    shop
}

/// `holdfast up` on free ports.
fn small_company(schedule: &str) -> Shop {
    shop(
        schedule,
        "[up]\nfrom = \"in\"\nevery_s = 0.2\nhealth = \"127.0.0.1:0\"\n[up.serve]\nlisten = \"127.0.0.1:0\"\n",
    )
}

/// Files come whole: they are written beside their folder and moved.
fn drop_orders(shop: &Shop, name: &str, rows: &str) {
    let path = shop.write(&format!("coming/{name}.csv"), &format!("order_id,member,at,amount\n{rows}"));
    fs::create_dir_all(shop.path().join("in/orders")).unwrap();
    fs::rename(path, shop.path().join(format!("in/orders/{name}.csv"))).unwrap();
}

/// A process that goes on until it is told to stop; killed when the test is over.
struct Running {
    process: Child,
    said: PathBuf,
}

impl Running {
    fn start(shop: &Shop, arguments: &[&str]) -> Self {
        let said = shop.path().join("said.log");
        let log = File::create(&said).unwrap();
        let mut command = shop.command(arguments);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { process, said }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    fn says(&mut self, what: &str) {
        let began = Instant::now();
        while !self.said().contains(what) {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{ended:?}: not {what:?} but:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The address that the line of start-up has after this.
    fn address(&mut self, before: &str) -> String {
        self.says("Ctrl-C stops");
        let said = self.said();
        let after = said.split(before).nth(1).unwrap_or_else(|| panic!("no {before} in\n{said}"));
        after.split([',', '/', ' ']).next().unwrap().to_owned()
    }

    /// Its exit code, and how long it took to end.
    fn stop(&mut self) -> (Option<i32>, Duration) {
        let began = Instant::now();
        succeed(Command::new("kill").arg("-TERM").arg(self.process.id().to_string()));
        while self.process.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "it did not stop:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
        (self.process.wait().unwrap().code(), began.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a server answers over HTTP: status and body.
fn http(address: &str, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn health(address: &str) -> (u16, Value) {
    let (status, body) = http(address, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    (status, serde_json::from_str(&body).unwrap())
}

/// One number, asked over Flight SQL; `None` while the table is not there.
async fn number(client: &mut FlightSqlServiceClient<Channel>, query: &str) -> Option<i64> {
    let info = client.execute(query.to_owned(), None).await.ok()?;
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let batches: Vec<_> = client.do_get(ticket).await.ok()?.try_collect().await.ok()?;
    Some(batches[0].column(0).as_primitive::<Int64Type>().value(0))
}

async fn becomes(client: &mut FlightSqlServiceClient<Channel>, query: &str, wanted: i64, running: &Running) {
    let began = Instant::now();
    loop {
        let found = number(client, query).await;
        if found == Some(wanted) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{query} is {found:?}, not {wanted}:\n{}", running.said());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn connect(address: &str) -> FlightSqlServiceClient<Channel> {
    FlightSqlServiceClient::new(Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_into_a_folder_or_pushed_is_served_without_another_command() {
    let shop = small_company("on_new_data = true\nmin_interval = \"1s\"");
    shop.write("pipelines/churn/sources/events.toml", EVENTS);
    shop.write("sql/metric/kinds.sql", "select kind, count(*) as events from raw.events group by kind\n");
    let toml = fs::read_to_string(shop.path().join("holdfast.toml")).unwrap();
    shop.write("holdfast.toml", &format!("{toml}[up.collect]\nlisten = \"127.0.0.1:0\"\nsource = \"events\"\n"));
    let mut up = Running::start(&shop, &["up"]);
    let (flight, told) = (up.address("grpc://"), up.address("health on http://"));
    let events = up.address("events for events on http://");

    // The service is there before the first run, with nothing in it.
    let mut client = connect(&flight).await;
    assert_eq!(number(&mut client, "select count(*) from profile.totals").await, None);
    let (status, report) = health(&told);
    assert_eq!((status, &report["healthy"], &report["run"]), (200, &json!(true), &json!(0)), "{report}");
    for part in ["collector", "ingestion", "maintenance", "runs", "service"] {
        assert_eq!(report["parts"][part]["running"], json!(true), "{report}");
    }

    drop_orders(&shop, "first", "o1,M1,2025-06-01T00:00:00Z,10.00\no2,M2,2025-06-02T00:00:00Z,20.00\n");
    becomes(&mut client, "select count(*) from profile.totals", 2, &up).await;
    drop_orders(&shop, "second", "o3,M1,2025-06-03T00:00:00Z,5.00\no4,M3,2025-06-03T00:00:00Z,7.00\n");
    becomes(&mut client, "select sum(orders) from profile.totals", 4, &up).await;
    assert_eq!(number(&mut client, "select count(distinct customer_id) from profile.totals").await, Some(3));

    let body = "{\"specversion\":\"1.0\",\"id\":\"e1\",\"source\":\"app\",\"type\":\"view\"}";
    let push = format!(
        "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/cloudevents+json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(http(&events, &push).0, 200);
    becomes(&mut client, "select sum(events) from metric.kinds where kind = 'view'", 1, &up).await;

    let (status, report) = health(&told);
    assert!(status == 200 && report["run"].as_u64() >= Some(2) && report["last_run_error"].is_null(), "{report}");
    drop(client);
    let (code, took) = up.stop();
    assert_eq!(code, Some(0), "{}", up.said());
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(up.said().trim_end().ends_with("Stopped"), "{}", up.said());
    assert!(TcpStream::connect(&flight).is_err() && TcpStream::connect(&events).is_err());

    // Nothing of it held on to anything: the same lake again, at once, and nothing is committed anew.
    let before = tables(&shop);
    let published = |path: &String| path.contains("/_holdfast/runs/");
    let mut up = Running::start(&shop, &["up"]);
    let flight = up.address("grpc://");
    let mut client = connect(&flight).await;
    assert_eq!(number(&mut client, "select sum(orders) from profile.totals").await, Some(4));
    up.says("Finished 0 built");
    // But for a run with the books of what was ingested last, if it was stopped before that.
    let (before, now) = (before.into_iter(), tables(&shop).into_iter());
    assert!(before.filter(|path| !published(path)).eq(now.filter(|path| !published(path))), "{}", up.said());
    assert_eq!(up.stop().0, Some(0));
}

/// What is in memory for a customer's orders; none while the view is not there.
async fn orders_in_memory(client: &mut arrow_flight::FlightClient, customer: &str) -> Option<i64> {
    let command = json!({
        "@type": "holdfast.v1.GetOnlineFeatures",
        "features": ["spent:orders"],
        "keys": [{"texts": [customer]}],
    });
    let rows = client.do_get(arrow_flight::Ticket::new(command.to_string())).await.ok()?;
    let rows: Vec<arrow::array::RecordBatch> = rows.try_collect().await.ok()?;
    let orders = rows.first()?.column_by_name("orders")?.as_primitive::<arrow::datatypes::Int64Type>();
    arrow::array::Array::is_valid(orders, 0).then(|| orders.value(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_changes_a_feature_is_served_from_memory_within_ten_seconds() {
    let shop = small_company("on_new_data = true\nmin_interval = \"1s\"");
    shop.write(
        "sql/features/spent.sql",
        "-- @stage incremental key(customer_id)\n-- @feature online\nselect customer_id, count(*) as orders\n\
         from core.orders where customer_id is not null group by customer_id\n",
    );
    let mut up = Running::start(&shop, &["up"]);
    let flight = up.address("grpc://");
    drop_orders(&shop, "first", "o1,M1,2025-06-01T00:00:00Z,10.00\no2,M2,2025-06-02T00:00:00Z,20.00\n");
    let mut sql = connect(&flight).await;
    becomes(&mut sql, "select count(*) from features.spent", 2, &up).await;
    let customer = shop.query("select customer_id from core.orders where order_id = 'o1'")[0]["customer_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let channel = Channel::from_shared(format!("http://{flight}")).unwrap().connect().await.unwrap();
    let mut client = arrow_flight::FlightClient::new(channel);
    let mut slowest = Duration::ZERO;
    for round in 2..6 {
        let row = format!("p{round},M1,2025-06-03T00:00:00Z,1.00\n");
        drop_orders(&shop, &format!("more{round}"), &row);
        let began = Instant::now();
        while orders_in_memory(&mut client, &customer).await != Some(round) {
            assert!(began.elapsed() < PATIENCE, "order {round} is not served\n{}", up.said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    drop((client, sql));
    assert_eq!(up.stop().0, Some(0));
}

/// The commits of all tables, and the runs; leases come and go.
fn tables(shop: &Shop) -> Vec<String> {
    let mut found = commits(&shop.path().join("lake"));
    found.retain(|path| !path.contains("/leases/"));
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_is_told_and_the_parts_go_on() {
    let shop = small_company("continuous = true");
    let mut up = Running::start(&shop, &["up"]);
    let (flight, told) = (up.address("grpc://"), up.address("health on http://"));
    drop_orders(&shop, "good", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    let mut client = connect(&flight).await;
    becomes(&mut client, "select sum(orders) from profile.totals", 1, &up).await;

    drop_orders(&shop, "bad", "o2,M2,2025-06-02T00:00:00Z,-20.00\n");
    up.says("the next one is on schedule");
    let (status, report) = health(&told);
    assert!(status == 200 && report["last_run_error"] == json!("quarantine"), "{report}");
    assert_eq!(number(&mut client, "select sum(orders) from profile.totals").await, Some(1), "readers keep their run");

    drop_orders(&shop, "mended", "o3,M2,2025-06-03T00:00:00Z,50.00\n");
    becomes(&mut client, "select sum(orders) from profile.totals", 3, &up).await;
    let (_, report) = health(&told);
    assert!(report["last_run_error"].is_null(), "{report}");
    assert_eq!(up.stop().0, Some(0), "{}", up.said());
}

#[test]
fn a_cron_of_each_second_runs_what_is_new_and_commits_nothing_otherwise() {
    let shop = shop("cron = \"* * * * * *\"", "");
    let ingest = |name: &str, rows: &str| {
        drop_orders(&shop, name, rows);
        succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));
    };
    ingest("first", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    let mut scheduled = Running::start(&shop, &["run", "--scheduled"]);
    scheduled.says("published as run 1");
    ingest("second", "o2,M2,2025-06-02T00:00:00Z,20.00\n");
    scheduled.says("published as run 2");
    let rows = shop.query("select count(*) as customers, sum(orders) as orders from profile.totals");
    assert_eq!(rows, [json!({ "customers": 2, "orders": 2 })]);

    // The run may have begun before the books were written: one more publishes them.
    std::thread::sleep(Duration::from_secs(3));
    let before = tables(&shop);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(tables(&shop), before, "{}", scheduled.said());
    let (code, took) = scheduled.stop();
    assert_eq!(code, Some(0), "{}", scheduled.said());
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_time_that_was_missed_is_caught_up_once() {
    // A minute that is not this one, so that nothing comes by itself.
    let far = (Utc::now() + TimeDelta::hours(12)).format("%M %H");
    let shop = shop(&format!("cron = \"{far} * * *\"\ntime_zone = \"UTC\""), "");
    drop_orders(&shop, "first", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    succeed(&mut shop.command(&["ingest", "--from", "in"]));
    shop.run();
    let runs = shop.path().join("lake/_holdfast/runs");
    let newest = runs.join(format!("{:020}.json", 1));
    let mut manifest: Value = serde_json::from_slice(&fs::read(&newest).unwrap()).unwrap();
    drop_orders(&shop, "second", "o2,M2,2025-06-02T00:00:00Z,20.00\n");
    succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));

    // Published a moment ago: no time was missed.
    let mut scheduled = Running::start(&shop, &["run", "--scheduled"]);
    scheduled.says("Ctrl-C stops");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(fs::read_dir(&runs).unwrap().count(), 1, "{}", scheduled.said());
    assert_eq!(scheduled.stop().0, Some(0));

    // Published days ago.
    manifest["published_at"] = json!(Utc::now() - TimeDelta::days(3));
    fs::write(&newest, serde_json::to_vec(&manifest).unwrap()).unwrap();
    let mut scheduled = Running::start(&shop, &["run", "--scheduled"]);
    scheduled.says("published as run 2");
    let before = tables(&shop);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(tables(&shop), before);
    assert_eq!(scheduled.said().matches("Finished").count(), 1, "{}", scheduled.said());
    assert_eq!(scheduled.stop().0, Some(0));
}

#[test]
fn a_schedule_that_is_wrong_is_told_with_its_place_before_anything_is_written() {
    let shop = shop("cron = \"0 25 * * *\"\ntime_zone = \"Europe/Berlin\"", "");
    for command in [&["up", "--from", "in"][..], &["ingest", "--from", "in"], &["check"]] {
        let (code, said) = shop.fails(command);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("pipeline.toml:4:8: `0 25 * * *` is no cron expression"), "{said}");
    }
    assert!(!shop.path().join("lake").exists());
    shop.write("pipelines/churn/pipeline.toml", "stages = \"sql\"\n[schedule]\nchron = \"0 5 * * *\"\n");
    let (code, said) = shop.fails(&["up", "--from", "in"]);
    assert!(code == Some(2) && said.contains("pipeline.toml:3:1: unknown field `chron`"), "{said}");
}

#[test]
fn settings_of_up_that_are_wrong_are_told_before_anything_is_written() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let serving = "[up]\nfrom = \"in\"\n[up.serve]\nlisten = ";
    let health_taken = format!("[up]\nfrom = \"in\"\nhealth = \"{address}\"\n[up.serve]\nlisten = \"127.0.0.1:0\"\n");
    let port_taken = format!("{serving}\"{address}\"\n");
    let open_to_all = format!("{serving}\"0.0.0.0:0\"\n");
    let no_source = format!("{serving}\"127.0.0.1:0\"\n[up.collect]\nsource = \"nothing\"\n");
    for (up, part) in [
        ("[up]\nevery_s = 0.0\n", "holdfast.toml:5:11: between 0.1 and 86400 seconds"),
        ("[up]\nport = 5\n", "holdfast.toml:5:1: unknown field `port`"),
        ("", "say where they are with `from` below [up]"),
        (health_taken.as_str(), "cannot tell health"),
        (port_taken.as_str(), "another program is listening there already"),
        (open_to_all.as_str(), "--token-file"),
        (no_source.as_str(), "no source `nothing`"),
    ] {
        let shop = shop("on_new_data = true", up);
        let (code, said) = shop.fails(&["up"]);
        assert!(code.is_some_and(|code| code != 0) && said.contains(part), "{up}\n{said}");
        assert!(!shop.path().join("lake").exists(), "{up}");
    }
}
