//! The commands a newcomer types, on the shipped project.

use std::path::Path;

use crate::{commits, holdfast, rows, succeed};

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
    }
}
