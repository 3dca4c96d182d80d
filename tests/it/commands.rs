//! The commands a newcomer types, on the shipped project.

use std::path::Path;
use std::process::Command;

use crate::{commits, ended, holdfast, holdfast_binary, lines_of, rows, succeed};

fn demo(folder: &Path, customers: &str) -> String {
    let output = succeed(holdfast().args(["demo", "--no-serve", "--customers", customers, "--dir"]).arg(folder));
    String::from_utf8(output.stdout).unwrap()
}

fn count(folder: &Path, query: &str) -> u64 {
    rows(folder, query)[0]["n"].as_u64().unwrap()
}

#[test]
fn stg_3_a_second_demo_commits_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shown = demo(folder.path(), "300");
    assert!(shown.contains("risk.churn_score"), "{shown}");
    assert!(shown.contains("most at risk"), "{shown}");
    let before = commits(folder.path());
    demo(folder.path(), "300");
    assert_eq!(before, commits(folder.path()));
    rest_of_the_demo_holds(folder.path());
}

/// What must be true of any demo's lake; a second lake would only cost time.
fn rest_of_the_demo_holds(folder: &Path) {
    // Every record that was read is stored or quarantined, and quarantine is exactly what the generator made dirty.
    let books = rows(
        folder,
        "select sum(rows_read) as read, sum(rows_stored) as stored, sum(rows_quarantined) as refused from metric.ingest_batches",
    );
    let number = |name: &str| books[0][name].as_u64().unwrap();
    assert_eq!(number("read"), number("stored") + number("refused"), "ing_3");
    let dirty = std::fs::read_to_string(folder.join("sources/truth/dirty.csv")).unwrap();
    assert_eq!(number("refused"), dirty.lines().count() as u64 - 1);

    // One row a customer, one score a customer, no customer twice.
    let customers = count(folder, "select count(*) as n from profile.customer_360");
    assert!((200..600).contains(&customers), "{customers}");
    assert_eq!(count(folder, "select count(distinct customer_id) as n from profile.customer_360"), customers);
    assert!(count(folder, "select count(*) as n from risk.churn_score where churn_probability between 0 and 1") > 200);
    assert_eq!(
        count(
            folder,
            "select count(*) as n from risk.churn_score where churn_probability is null or reason_1 is null and churn_probability > 0.7"
        ),
        0
    );
    assert!(count(folder, "select count(*) as n from risk.rfm_b where r_score between 0 and 100") > 0);

    // The profile is as wide and as documented as promised.
    let columns = rows(
        folder,
        "select count(*) as n from information_schema.columns where table_schema = 'profile' and table_name = 'customer_360'",
    );
    assert!(columns[0]["n"].as_u64().unwrap() >= 60);

    // What the article list lacks is what is not matched, and nothing else.
    let listing = std::fs::read_to_string(folder.join("sources/truth/products.csv")).unwrap();
    let codes = |column: usize, kinds: &[&str]| -> String {
        let lacking = listing.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>());
        let lacking: Vec<String> =
            lacking.filter(|row| kinds.contains(&row[2])).map(|row| format!("'{}'", row[column])).collect();
        assert!(!lacking.is_empty());
        lacking.join(", ")
    };
    for (table, system, unmatched) in [
        ("core.order_lines", "shop", codes(0, &["unlisted"])),
        ("core.events", "shop", codes(0, &["unlisted"])),
        ("core.receipts", "till", codes(1, &["unlisted", "without_sku"])),
    ] {
        let matching = rows(folder, &format!("select * from metric.sku_matching where table_name = '{table}'"));
        assert_eq!(matching[0]["system"], system);
        let wanted = count(folder, &format!("select count(*) as n from {table} where product_id in ({unmatched})"));
        assert_eq!(matching[0]["unmatched_rows"].as_u64().unwrap(), wanted, "{table}");
        let joined = count(folder, &format!("select count(*) as n from {table} where product_key is not null"));
        assert_eq!(matching[0]["matched_rows"].as_u64().unwrap(), joined, "{table}");
        assert!(joined > wanted * 5, "{table}: {joined} matched, {wanted} not");
    }

    // Every member of the truth who left a trace is one customer, and no customer is two members.
    let truth = std::fs::read_to_string(folder.join("sources/truth/identifiers.csv")).unwrap();
    let people = truth.lines().filter(|line| line.contains(",member_id,")).count() as u64;
    let members = count(
        folder,
        "select count(distinct customer_id) as n from identity.identifiers where identifier_type = 'member_id'",
    );
    assert!(members >= people * 9 / 10 && members <= people, "{members} customers for {people} member ids");
    assert_eq!(
        count(
            folder,
            "select count(*) as n from (select customer_id from identity.identifiers where identifier_type = 'member_id' \
             group by customer_id having count(*) > 1) as doubles"
        ),
        0,
        "two member ids are one customer"
    );
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for folder in &folders {
        succeed(
            holdfast()
                .args(["generate", "--customers", "120", "--days", "90", "--seed", "5", "--out"])
                .arg(folder.path()),
        );
    }
    let contents = |folder: &Path| {
        let mut found = Vec::new();
        for source in std::fs::read_dir(folder).unwrap() {
            let source = source.unwrap().path();
            if !source.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(&source).unwrap() {
                let file = file.unwrap().path();
                found.push((file.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&file).unwrap()));
            }
        }
        found.sort();
        found
    };
    let (one, two) = (contents(folders[0].path()), contents(folders[1].path()));
    assert!(one.len() > 20);
    assert!(one == two, "two generations differ");
}

#[test]
fn every_case_beside_a_stage_holds() {
    for pipeline in ["churn", "uci_online_retail", "complete_journey"] {
        let key = tempfile::tempdir().unwrap();
        let output = succeed(
            holdfast().args(["test", "--pipeline", pipeline, "--identity-key"]).arg(key.path().join("identity.key")),
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("cases passed"), "{said}");
        assert!(!said.contains("no case beside the stage"), "{said}");
        assert!(!said.contains("no contract beside the stage"), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn watching_brings_in_what_arrives_and_stops_at_a_signal() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("holdfast.toml", "[lake]\nurl = \"lake\"\n");
    write("pipelines/churn/pipeline.toml", "stages = \"sql\"\n");
    write("pipelines/churn/identity.toml", "priority = [\"member_id\"]\n[types.member_id]\nunique = true\n");
    write(
        "pipelines/churn/sources/visits.toml",
        "kind = \"events\"\npath = \"visits/*.csv\"\nformat = \"csv\"\nevent_time = \"at\"\n[columns]\n\
         visit_id = \"string\"\nmember = \"string\"\nat = \"timestamp\"\n\
         [[identifiers]]\ntype = \"member_id\"\nvalue = \"member\"\n",
    );
    write(
        "sql/core/visits.sql",
        "-- One row a visit.\n-- @expect fail has_id: visit_id is not null\n\
         select i.customer_id, v.visit_id, v.at as visited_at\nfrom raw.visits v\n\
         left join identity.identifiers i on i.token = identifier_token('member_id', v.member)\n",
    );
    write(
        "sql/profile/visits.sql",
        "-- Visits, one row a customer.\n-- @expect fail known: customer_id is not null\n\
         select customer_id, count(*) as visits\nfrom core.visits\nwhere customer_id is not null\ngroup by customer_id\n",
    );
    std::fs::create_dir_all(folder.path().join("in")).unwrap();
    let holdfast = || {
        let mut command = Command::new(holdfast_binary());
        command.arg("--project").arg(folder.path()).current_dir(folder.path());
        command
    };
    let mut watching = holdfast()
        .args(["ingest", "--from", "in", "--watch", "--every", "0.2", "--run"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = lines_of(&mut watching);
    let mut heard = Vec::new();
    let mut wait_for = |wanted: &str| {
        while !heard.last().is_some_and(|line: &String| line.contains(wanted)) {
            let line = lines.recv_timeout(Duration::from_secs(60));
            heard.push(line.unwrap_or_else(|error| panic!("{error} before {wanted:?}: {heard:?}")));
        }
    };
    // The folder of the source comes later, and so do its files.
    wait_for("published as run 1");
    write("in/visits/1.csv", "visit_id,member,at\nv1,M1,2026-01-01T00:00:00Z\nv2,M2,2026-01-01T00:00:00Z\n");
    wait_for("published as run 2");
    write("in/visits/2.csv", "visit_id,member\n");
    wait_for("Refused visits: visits/2.csv: the header has no column `at`");
    write("in/visits/3.csv", "visit_id,member,at\nv3,M1,2026-01-02T00:00:00Z\n");
    wait_for("published as run 3");
    let answer = succeed(holdfast().args([
        "sql",
        "select sum(visits) as n, count(*) as c from profile.visits",
        "--published",
        "--output",
        "csv",
    ]));
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "n,c\n3,2\n");
    let refused = succeed(holdfast().args(["sql", "select path from metric.ingest_refused_files", "--output", "csv"]));
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "path\nvisits/2.csv\n");

    succeed(Command::new("kill").arg("-TERM").arg(watching.id().to_string()));
    let began = Instant::now();
    assert!(ended(&mut watching).success());
    assert!(began.elapsed() < Duration::from_secs(10));
}
