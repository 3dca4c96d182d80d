//! Tables are what their queries give of what they were made from, and one that is not is found.

use std::sync::Arc;

use holdfast_engine::{LakeReader, SessionSettings};
use holdfast_lake::{Change, ChangeKind, CommitOutcome, Lake, Position, RowChanges, StoreOptions, to_delta_compatible};
use holdfast_types::{FixedClock, TableName};
use serde_json::{Map, Value};

use crate::increments::ORDERS;
use crate::stages::{SPEND, Shop};
use crate::{commits, succeed};

const AS_OF: &str = "2025-06-30T00:00:00Z";

const LINES: &str = "-- @stage incremental key(order_id)\n-- @tag pii(customer_id)\n\
    select customer_id, order_id, amount\nfrom core.orders\nwhere ordered_at <= now()\n";

fn shop() -> Shop {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND), ("sql/profile/lines.sql", LINES)]);
    shop.write("sql/core/orders.sql", ORDERS);
    let rows: String = (0..200).map(|n| format!("o{n},Member{},2025-06-01T00:00:00Z,{}.00\n", n % 90, n % 7)).collect();
    shop.orders("a", &format!("{rows}bad,Member1,2025-06-01T00:00:00Z,-5.00\n"));
    shop.run();
    shop
}

fn verify(shop: &Shop, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = shop.command(&["verify", "--json"]).args(arguments).output().unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}

fn stage<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == name).unwrap()
}

/// Puts `row` in the place of what `condition` finds in a table, as a fault would: past the engine, and past its notes.
async fn corrupt(shop: &Shop, table: &str, row: &str, condition: &str) {
    let clock = Arc::new(FixedClock(AS_OF.parse().unwrap()));
    let lake = Lake::open_to_write("lake", shop.path(), &StoreOptions::new(), clock).await.unwrap();
    let name: TableName = table.parse().unwrap();
    let table = lake.table(&name).await.unwrap().unwrap();
    let session = LakeReader::newest(&lake, &SessionSettings::default()).await.unwrap().session().unwrap();
    let rows = |columns: String| {
        let query = format!("select {columns} from {name} where {condition}");
        let session = session.clone();
        let schema = Arc::clone(table.schema());
        async move {
            let batches = session.sql(&query).await.unwrap().collect().await.unwrap();
            batches.iter().map(|batch| to_delta_compatible(batch, &schema).unwrap()).collect::<Vec<_>>()
        }
    };
    let changes = RowChanges { removed: rows("*".to_owned()).await, added: rows(format!("* replace ({row})")).await };
    assert!(changes.rows_removed() > 0, "nothing is found by {condition}");
    let staged = lake.stage_replacement(&table, &changes).await.unwrap();
    let outcome = lake
        .commit(Change {
            table: &table,
            position: Position { app_id: "fault".to_owned(), version: 1 },
            fence: None,
            kind: ChangeKind::Replace { removed: staged.removed, told: staged.told },
            files: staged.files,
            schema: None,
            comment: None,
            metadata: Map::new(),
        })
        .await
        .unwrap();
    assert!(matches!(outcome, CommitOutcome::Applied { .. }));
}

#[tokio::test]
async fn a_corrupted_row_is_found_and_shown_without_personal_data() {
    let shop = shop();
    let before = commits(shop.path());
    let (code, report) = verify(&shop, &["--sample", "100%"]);
    assert_eq!(code, Some(0), "{report}");
    for (name, rows) in [("core.orders", 200), ("profile.lines", 200), ("profile.spend", 90)] {
        let stage = stage(&report, name);
        assert_eq!((&stage["outcome"], &stage["rows"]), (&"same".into(), &rows.into()), "{report}");
    }
    assert_eq!(before, commits(shop.path()), "verifying wrote something");

    corrupt(&shop, "profile.lines", "amount + 1 as amount", "order_id = 'o5'").await;
    let (code, report) = verify(&shop, &["--sample", "100%"]);
    assert_eq!(code, Some(3), "{report}");
    let lines = stage(&report, "profile.lines");
    assert_eq!((&lines["outcome"], &lines["differing_rows"]), (&"differs".into(), &2.into()), "{lines}");
    let difference = &lines["differences"][0];
    assert_eq!(difference["key"], serde_json::json!({ "order_id": "o5" }));
    assert_eq!(
        (&difference["published"][0]["amount"], &difference["recomputed"][0]["amount"]),
        (&6.0.into(), &5.0.into())
    );
    assert_eq!(difference["published"][0]["customer_id"], "•••");
    assert!(!report.to_string().contains("Member"), "{report}");
    assert_eq!(stage(&report, "core.orders")["outcome"], "same");
    assert_eq!(stage(&report, "profile.spend")["outcome"], "same");

    // A full refresh mends it.
    succeed(&mut shop.command(&["run", "--full", "--select", "profile.lines", "--as-of", AS_OF]));
    assert_eq!(verify(&shop, &["--sample", "100%"]).0, Some(0));
}

#[tokio::test]
async fn a_sample_takes_a_share_of_the_keys_and_the_same_by_the_same_seed() {
    let shop = shop();
    let rows = |seed: &str, sample: &str| {
        let (code, report) = verify(&shop, &["--sample", sample, "--seed", seed, "--select", "profile.lines"]);
        assert_eq!(code, Some(0), "{report}");
        stage(&report, "profile.lines")["rows"].as_u64().unwrap()
    };
    let half = rows("a", "50%");
    assert!((60..140).contains(&half), "{half} of 200");
    assert_eq!(half, rows("a", "50%"));
    assert!(rows("a", "10%") < half);

    // What is missing from the table is missed as well: keys are chosen on both sides.
    corrupt(&shop, "profile.lines", "'gone' as order_id", "order_id = 'o7'").await;
    let found = (0..12).filter(|seed| {
        let seed = seed.to_string();
        verify(&shop, &["--sample", "50%", "--seed", &seed, "--select", "profile.lines"]).0 == Some(3)
    });
    assert!(found.count() >= 4, "each of two keys is in half of the samples");
}

#[test]
fn what_cannot_be_verified_is_told_with_the_reason() {
    let shop = shop();
    shop.write("sql/profile/spend.sql", &SPEND.replace("sum(amount)", "sum(amount * 2)"));
    shop.write("sql/profile/never.sql", "select order_id\nfrom core.orders\n");
    let (code, report) = verify(&shop, &["--sample", "100%"]);
    assert_eq!(code, Some(0), "{report}");
    for (name, reason) in [("profile.spend", "its query"), ("profile.never", "it was never made")] {
        let stage = stage(&report, name);
        assert_eq!(stage["outcome"], "skipped");
        assert!(stage["reason"].as_str().unwrap().starts_with(reason), "{stage}");
    }
    assert_eq!(stage(&report, "core.orders")["outcome"], "same");
    let (code, said) = shop.fails(&["verify", "--sample", "0%"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("write a percentage"), "{said}");
}
