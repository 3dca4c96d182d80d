//! Two public data sets through the shipped pipelines. What is known about them must come out exactly, in one go or day by
//! day. The files are not in the repository: `HOLDFAST_DATA` names the folder that holds them (docs/real_data.md), and a
//! data set that is not there is skipped by name.

use std::fs::File;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::{commits, holdfast, rows, succeed, workspace};

/// Where data sets are when nothing else is said: beside the workspace.
const DATA_DEFAULT: &str = "../shared/data";

/// A moment after the last invoice, so that profiles and scores see all of them.
const UCI_AS_OF: &str = "2011-10-01T00:00:00Z";

/// Midnight in New York after the last day of data.
const JOURNEY_AS_OF: &str = "2018-01-01T05:00:00Z";

/// A file of a data set, or `None` where the data set is not on this machine.
fn data(set: &str, file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("HOLDFAST_DATA").map_or_else(|| workspace().join(DATA_DEFAULT), PathBuf::from);
    let path = folder.join(set).join(file);
    if !path.is_file() {
        eprintln!("skipped: {set} ({} is not there; HOLDFAST_DATA names the folder of data sets)", path.display());
        return None;
    }
    Some(path.canonicalize().unwrap())
}

/// A lake of one pipeline in a folder of its own. Lakes that share a key give the same people the same ids.
struct RealLake {
    folder: PathBuf,
    pipeline: &'static str,
    key: PathBuf,
}

impl RealLake {
    fn new(folder: PathBuf, pipeline: &'static str, key: &Path) -> Self {
        Self { folder, pipeline, key: key.to_owned() }
    }

    fn holdfast(&self, arguments: &[&str]) {
        let mut command = holdfast();
        command.args(["--quiet", "--pipeline", self.pipeline]);
        command.arg("--lake").arg(self.folder.join("lake"));
        command.arg("--identity-key").arg(&self.key);
        succeed(command.args(arguments));
    }

    fn ingest(&self, from: &Path) {
        self.holdfast(&["ingest", "--from", from.to_str().unwrap()]);
    }

    fn run(&self, as_of: &str) {
        self.holdfast(&["run", "--as-of", as_of]);
    }

    /// The single row that a query answers.
    #[track_caller]
    fn expect(&self, query: &str, expected: &Value) {
        assert_eq!(&rows(&self.folder, query), std::slice::from_ref(expected), "{query}");
    }

    /// A whole table as text, in the order of its key.
    fn table(&self, name: &str, key: &str) -> String {
        let query = format!("select * from {name} order by {key}");
        let mut command = holdfast();
        command.arg("--lake").arg(self.folder.join("lake")).args(["sql", query.as_str(), "--output", "csv"]);
        String::from_utf8(succeed(&mut command).stdout).unwrap()
    }
}

/// Unpacks an archive and answers its CSV files, sorted by name.
fn unpack(archive: &Path, into: &Path) -> Vec<PathBuf> {
    tar::Archive::new(GzDecoder::new(File::open(archive).unwrap())).unpack(into).unwrap();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(into.join("by-day")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn uci_online_retail_gives_its_facts_at_once_and_day_by_day() {
    let Some(archive) = data("uci_online_retail", "by-day.tar.gz") else { return };
    let scratch = tempfile::tempdir().unwrap();
    let key = scratch.path().join("identity.key");
    let all = scratch.path().join("all");
    let days = unpack(&archive, &all);
    assert_eq!(days.len(), 245);

    let at_once = RealLake::new(scratch.path().join("at_once"), "uci_online_retail", &key);
    at_once.ingest(&all);
    at_once.run(UCI_AS_OF);
    uci_facts(&at_once);
    let before = commits(&at_once.folder);
    at_once.ingest(&all);
    at_once.run(UCI_AS_OF);
    assert_eq!(commits(&at_once.folder), before, "nothing new arrived");

    // Files arrive in three portions, then a day at a time; one of the first portion is late and comes last.
    let arriving = scratch.path().join("arriving");
    std::fs::create_dir_all(arriving.join("by-day")).unwrap();
    let day_by_day = RealLake::new(scratch.path().join("day_by_day"), "uci_online_retail", &key);
    let (late, in_time) = (&days[40], [&days[..40], &days[41..]].concat());
    let (portions, single_days) = in_time.split_at(in_time.len() - 2);
    let arrivals = portions.chunks(portions.len().div_ceil(3)).chain(single_days.chunks(1));
    for files in arrivals.chain([std::slice::from_ref(late)]) {
        for file in files {
            std::fs::rename(file, arriving.join("by-day").join(file.file_name().unwrap())).unwrap();
        }
        day_by_day.ingest(&arriving);
    }
    day_by_day.run(UCI_AS_OF);
    day_by_day.expect("select count(*) as batches from metric.ingest_batches", &json!({ "batches": 6 }));
    for (table, key) in [
        ("core.invoice_lines", "invoice_no, line_no"),
        ("core.invoices", "invoice_no"),
        ("identity.identifiers", "token"),
        ("identity.customers", "customer_id"),
        ("profile.customer_360", "customer_id"),
        ("risk.rfm", "customer_id"),
        ("risk.churn_score", "customer_id"),
    ] {
        // Not assert_eq: a table is too long to be printed.
        assert!(at_once.table(table, key) == day_by_day.table(table, key), "{table} depends on how the files arrived");
    }
}

fn uci_facts(lake: &RealLake) {
    lake.expect(
        "select sum(rows_read) as read, sum(rows_stored) as stored, sum(rows_quarantined) as quarantined from metric.ingest_batches",
        &json!({ "read": 370_931, "stored": 370_931, "quarantined": 0 }),
    );
    lake.expect(
        "select count(*) as rows, count(distinct invoice_no) as invoices, count(distinct customer_id) as customers, \
         count(*) filter (where customer_id is null) as without_customer, \
         count(*) filter (where is_cancellation) as cancellations, \
         cast(sum(quantity * unit_price) as varchar) as amount, cast(sum(line_amount) as varchar) as line_amount \
         from core.invoice_lines",
        &json!({
            "rows": 370_931, "invoices": 18_786, "customers": 3_658, "without_customer": 98_056,
            "cancellations": 6_652, "amount": "6781619.004", "line_amount": "6781619.004",
        }),
    );
    lake.expect(
        "select count(*) as invoices, cast(sum(net_amount) as varchar) as amount from core.invoices",
        &json!({ "invoices": 18_786, "amount": "6781619.004" }),
    );
    lake.expect("select count(*) as customers from identity.customers", &json!({ "customers": 3_658 }));
    // Nothing of a known customer is lost between the lines and the profiles, and nothing of nobody gets in.
    lake.expect(
        "select cast((select sum(spend) from profile.customer_360) as varchar) as profiles, \
         cast((select sum(line_amount) from core.invoice_lines where customer_id is not null) as varchar) as lines, \
         (select count(*) from profile.customer_360) as customers, \
         (select count(*) from risk.churn_score) as buyers, \
         (select count(*) from risk.rfm) as scored",
        &json!({ "profiles": "5850548.104", "lines": "5850548.104", "customers": 3_658, "buyers": 3_616, "scored": 3_616 }),
    );
}

#[test]
fn complete_journey_gives_its_facts() {
    let Some(transactions) = data("completejourney", "transactions.parquet") else { return };
    let from = transactions.parent().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let lake = RealLake::new(scratch.path().to_owned(), "complete_journey", &scratch.path().join("identity.key"));
    lake.ingest(from);
    lake.run(JOURNEY_AS_OF);

    lake.expect("select sum(rows_quarantined) as rows from metric.ingest_batches", &json!({ "rows": 0 }));
    lake.expect("select count(*) as rows from raw.promotions", &json!({ "rows": 20_940_529 }));
    lake.expect(
        "select count(*) as rows, count(distinct customer_id) as households, count(distinct basket_id) as baskets, \
         count(distinct product_id) as products, count(distinct store_id) as stores, \
         cast(sum(sales_value) as varchar) as sales_value, \
         count(*) filter (where quantity = 0) as without_quantity from core.transactions",
        &json!({
            "rows": 1_469_307, "households": 2_469, "baskets": 155_848, "products": 68_509, "stores": 457,
            "sales_value": "4596039.58", "without_quantity": 8_869,
        }),
    );
    lake.expect(
        "select count(*) as baskets, cast(sum(sales_value) as varchar) as sales_value from core.baskets",
        &json!({ "baskets": 155_848, "sales_value": "4596039.58" }),
    );
    lake.expect(
        "select (select count(distinct customer_id) from core.campaign_touches) as targeted, \
         (select count(distinct customer_id) from core.coupon_redemptions) as redeemers, \
         (select count(*) from core.households) as described, \
         (select count(*) from identity.customers) as customers",
        &json!({ "targeted": 1_559, "redeemers": 410, "described": 801, "customers": 2_469 }),
    );
    lake.expect(
        "select count(*) as households, count(*) filter (where last_purchase_week <= 45) as quiet, \
         sum(purchases) as purchases, count(*) filter (where campaigns > 0) as targeted, \
         count(*) filter (where redemptions > 0) as redeemers, count(age_band) as described \
         from profile.customer_360",
        &json!({
            "households": 2_469, "quiet": 242, "purchases": 155_848, "targeted": 1_559, "redeemers": 410, "described": 801,
        }),
    );
    lake.expect("select count(*) as households from risk.churn_score", &json!({ "households": 2_469 }));
}
