//! Identity through the command line: records come in batches, people decide, and every answer is read back from the tables or from what a command prints.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema};
use holdfast_lake::{Lake, StoreOptions, TableSpec};
use holdfast_types::FixedClock;
use serde_json::Value;

use crate::folder::ProjectFolder;
use crate::{commits, lines_of, succeed};

const RULES: &str = r#"priority = ["member_id", "email", "phone", "device"]
[types.member_id]
unique = true
[types.email]
limit = { values = 2 }
[types.phone]
country = "CN"
hub_above = 8
recycled_after = "6d"
[types.device]
[blocked]
phone = ["13800138000", "/^1700000/"]
"#;

const VISITS: &str = r#"kind = "events"
path = "visits/*.csv"
format = "csv"
event_time = "at"
[columns]
visit_id = "string"
member = "string"
email = { type = "string", pii = true }
phone = { type = "string", pii = true }
device = "string"
at = "timestamp"
[[identifiers]]
type = "member_id"
value = "member"
[[identifiers]]
type = "email"
value = "email"
[[identifiers]]
type = "phone"
value = "phone"
[[identifiers]]
type = "device"
value = "device"
"#;

const CORE: &str = "-- One row a visit.\n-- @expect fail has_id: visit_id is not null\n\
    with visits as (\n    select *, coalesce(identifier_token('member_id', member), identifier_token('email', email), \
    identifier_token('phone', phone), identifier_token('device', device)) as token\n    from raw.visits\n)\n\
    select i.customer_id, v.visit_id, v.at as visited_at\nfrom visits v\n\
    left join identity.identifiers i\n    on i.token = v.token\n    and (i.valid_from is null or v.at >= i.valid_from)\n\
    and (i.valid_to is null or v.at < i.valid_to)\n";

/// A shop with one source, whose records carry up to four identifiers.
struct Shop {
    folder: ProjectFolder,
}

impl std::ops::Deref for Shop {
    type Target = ProjectFolder;

    fn deref(&self) -> &ProjectFolder {
        &self.folder
    }
}

impl Shop {
    fn new() -> Self {
        Self { folder: ProjectFolder::of_one_source("visits", VISITS, RULES, CORE) }
    }

    /// A file of visits: `member,email,phone,device,day of January`.
    fn put(&self, file: &str, visits: &[&str]) {
        let mut text = "visit_id,member,email,phone,device,at\n".to_owned();
        for (row, visit) in visits.iter().enumerate() {
            let (identifiers, day) = visit.rsplit_once(',').unwrap();
            text.push_str(&format!("{file}-{row},{identifiers},2026-01-{day:0>2}T08:00:00Z\n"));
        }
        // Another process may be watching: the file is there at once.
        self.write(&format!("in/{file}.part"), &text);
        let folder = self.path().join("in");
        std::fs::rename(folder.join(format!("{file}.part")), folder.join(format!("visits/{file}.csv"))).unwrap();
    }

    fn bring(&self, file: &str, visits: &[&str]) {
        self.put(file, visits);
        self.ingest();
    }

    /// What a command says when it is refused, and its exit code.
    fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(&["identity"]).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        (output.status.code().unwrap(), said)
    }

    /// The customer of an identifier.
    fn customer(&self, identifier: &str) -> String {
        self.identity(&["show", identifier])["customer_id"].as_str().unwrap().to_owned()
    }

    /// The customers of core, by visit.
    fn core(&self) -> BTreeMap<String, String> {
        let text = |row: &Value, column: &str| row[column].as_str().unwrap_or_default().to_owned();
        let rows = self.query("select visit_id, customer_id from core.visits");
        rows.iter().map(|row| (text(row, "visit_id"), text(row, "customer_id"))).collect()
    }

    /// Who is together with whom, whatever the ids, and all else that is known of identifiers.
    fn clusters(&self) -> BTreeSet<String> {
        let rows = self.query(
            "select token, valid_from, valid_to, standing, is_shared, first_seen_at, \
             min(token || coalesce(cast(valid_from as varchar), '')) over (partition by customer_id) as cluster \
             from identity.identifiers",
        );
        assert!(!rows.is_empty());
        rows.iter().map(Value::to_string).collect()
    }
}

#[test]
fn idn_2_on_a_merge_the_older_id_stays_and_history_says_why() {
    let shop = Shop::new();
    shop.bring("1", &["M1,,13912340001,,3"]);
    shop.bring("2", &[",,,D1,5"]);
    let (older, younger) = (shop.customer("member_id:M1"), shop.customer("device:D1"));
    assert_ne!(older, younger);
    assert_eq!(shop.core()["2-0"], younger);

    shop.bring("3", &["M1,,,D1,7"]);
    assert_eq!(shop.customer("device:D1"), older);
    assert_eq!(shop.core().values().collect::<BTreeSet<_>>(), BTreeSet::from([&older]), "core moves in the same round");
    let merged = shop.query("select * from identity.history where kind = 'merged'");
    let [merged] = merged.as_slice() else { panic!("{merged:?}") };
    for (column, expected) in [
        ("customer_id", older.as_str()),
        ("other_customer_id", younger.as_str()),
        ("cause", "evidence"),
        ("cause_type", "member_id"),
        ("cause_other_type", "device"),
        ("cause_source", "visits"),
    ] {
        assert_eq!(merged[column], expected, "{column}: {merged}");
    }

    // A retired id is found, in the tables and by the command.
    let retired = shop.query("select * from identity.customers where retired_at is not null");
    assert_eq!(retired.len(), 1);
    assert_eq!((&retired[0]["customer_id"], &retired[0]["resolves_to"]), (&younger.into(), &older.clone().into()));
    let shown = shop.identity(&["show", retired[0]["customer_id"].as_str().unwrap()]);
    assert_eq!(shown["customer_id"], older.as_str());
    assert_eq!(shown["identifiers"].as_array().unwrap().len(), 3);
    assert!(shown["history"].as_array().unwrap().iter().any(|past| past["kind"] == "merged"), "{shown}");
    let living = shop.query("select count(*) as n from identity.customers where resolves_to = customer_id");
    assert_eq!(living[0]["n"], 1);

    // With nothing new nothing is committed.
    let before = commits(shop.path());
    shop.ingest();
    assert_eq!(commits(shop.path()), before);
}

#[test]
fn an_unlink_splits_and_every_later_run_keeps_to_it_until_it_is_withdrawn() {
    let shop = Shop::new();
    shop.bring("1", &["M1,,13912340001,,3", ",,13912340001,D1,4"]);
    let together = shop.customer("member_id:M1");
    assert_eq!(shop.customer("device:D1"), together);
    let explained = shop.identity(&["explain", "member_id:M1", "device:D1"]);
    assert_eq!(explained["together"], true);
    let steps = explained["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 2, "by way of the phone: {explained}");
    assert_eq!((&steps[0]["source"], &steps[0]["records"]), (&"visits".into(), &1.into()));

    // A dry run tells and writes nothing.
    let before = commits(shop.path());
    let pair = ["member_id:M1", "device:D1", "--why", "a lent phone", "--by", "ann"];
    let told = shop.identity(&[&["unlink", "--dry-run"][..], &pair].concat());
    assert_eq!((&told["effects"]["split"], &told["applied"]), (&1.into(), &false.into()), "{told}");
    assert_eq!(commits(shop.path()), before);

    let decided = shop.identity(&[&["unlink"][..], &pair].concat());
    assert_eq!((&decided["decision"]["decision_id"], &decided["applied"]), (&1.into(), &true.into()));
    let apart = shop.customer("device:D1");
    assert_eq!(shop.customer("member_id:M1"), together, "the founding identifier's part keeps the id");
    assert_ne!(apart, together);
    assert_eq!(shop.customer("phone:13912340001"), together);
    let split = shop.query("select * from identity.history where kind = 'split'");
    let [split] = split.as_slice() else { panic!("{split:?}") };
    assert_eq!((&split["customer_id"], &split["other_customer_id"]), (&apart.clone().into(), &together.clone().into()));
    assert_eq!((&split["cause"], &split["decision_id"]), (&"unlink".into(), &1.into()));

    // More evidence that they are one, even in one record.
    shop.bring("2", &["M1,,13912340001,D1,9", ",,13912340001,D1,9"]);
    assert_eq!((shop.customer("member_id:M1"), shop.customer("device:D1")), (together.clone(), apart.clone()));
    let explained = shop.identity(&["explain", "member_id:M1", "device:D1"]);
    let why = explained["steps"].to_string();
    assert!(explained["together"] == false && why.contains("decision 1, unlinked by ann"), "{explained}");
    assert_eq!(shop.core()["2-1"], together, "the phone speaks for it");

    let (code, said) = shop.refused(&[&["link"][..], &pair].concat());
    assert!(code == 2 && said.contains("identity withdraw 1"), "{said}");
    shop.identity(&["withdraw", "1", "--why", "it was hers", "--by", "ben"]);
    assert_eq!(shop.customer("device:D1"), together);
    let merged = shop.query("select cause, decision_id from identity.history where kind = 'merged'");
    assert_eq!(merged.len(), 1, "{merged:?}");
    let kept = shop.query("select kind, decided_by, reason, withdraws from identity.decisions order by decision_id");
    assert_eq!(kept.len(), 2, "every decision stays");
    assert_eq!((&kept[1]["kind"], &kept[1]["withdraws"]), (&"withdraw".into(), &1.into()));
    let (code, said) = shop.refused(&["withdraw", "1", "--why", "again", "--by", "ben"]);
    assert!(code == 2 && said.contains("taken back already"), "{said}");

    // An id that went up in another and is split from it again is a new one: the old one never lives again.
    shop.identity(&[&["unlink"][..], &pair].concat());
    let anew = shop.customer("device:D1");
    assert!(anew != together && anew != apart, "{anew}");
    assert_eq!(shop.customer(&apart), anew, "but it answers to the customer with its founding identifier");
}

#[test]
fn a_merge_and_a_split_move_the_rows_concerned_in_one_commit_a_table_and_runs_show_all_of_it_or_nothing() {
    let shop = Shop::new();
    // Three core tables, one of them made from another.
    let keyed = "-- @stage incremental key(visit_id)\n";
    shop.write("sql/core/visits.sql", &format!("{keyed}{CORE}"));
    shop.write("sql/core/devices.sql", &format!("{keyed}{}", CORE.replace("v.at as visited_at", "v.device as device")));
    let counted = "select customer_id, count(*) as visits from core.visits group by customer_id\n";
    shop.write("sql/core/counts.sql", &format!("-- @stage incremental key(customer_id)\n{counted}"));
    let others: Vec<String> = (100..180).map(|number| format!("M{number},,,D{number},3")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    shop.bring("1", &[&["M1,,,D1,3", "M1,,,D1,4", "M2,,,D2,5", "M2,,,D2,6", "M2,,,D2,7"][..], &others].concat());
    succeed(&mut shop.command(&["run"]));
    let (older, younger) = (shop.customer("member_id:M1"), shop.customer("member_id:M2"));

    // What the rows of both tell, by table: whose they are, and how many.
    let rows = |manner: &[&str]| -> Vec<String> {
        let both = format!("('{older}', '{younger}')");
        let of = |table: &str, count: &str| {
            format!(
                "select '{table}' as t, customer_id, {count} as n from core.{table} where customer_id in {both} group by customer_id"
            )
        };
        let sql =
            [of("visits", "count(*)"), of("devices", "count(*)"), of("counts", "sum(visits)")].join(" union all ");
        let sql = format!("select t, customer_id, cast(n as bigint) as n from ({sql}) order by t, customer_id");
        let output = succeed(shop.command(&["sql", &sql, "--output", "csv"]).args(manner));
        String::from_utf8(output.stdout).unwrap().lines().skip(1).map(str::to_owned).collect()
    };
    let tables = ["visits", "devices", "counts"];
    let logs = || tables.map(|table| commits(&shop.path().join("lake/core").join(table)));
    let told = |parts: &[(&str, i64)]| -> Vec<String> {
        let mut lines: Vec<String> = ["counts", "devices", "visits"]
            .iter()
            .flat_map(|table| parts.iter().map(move |(id, n)| format!("{table},{id},{n}")))
            .collect();
        lines.sort();
        lines
    };
    let signed = ["--why", "a test", "--by", "ann"];
    let mut published = told(&[(&older, 2), (&younger, 3)]);
    assert_eq!((rows(&[]), rows(&["--published"])), (published.clone(), published.clone()));
    // A link, then its withdrawal: the part that went up in another gets an id that nobody had.
    for (decision, changed) in [
        (&["link", "member_id:M1", "member_id:M2"][..], [("visits", 3), ("devices", 3)]),
        (&["withdraw", "1"][..], [("visits", 3), ("devices", 3)]),
    ] {
        let before = logs();
        shop.identity(&[decision, &signed].concat());
        let after = logs();
        for (table, (before, after)) in tables.iter().zip(before.iter().zip(&after)) {
            let new: Vec<&String> = after.iter().filter(|file| !before.contains(file)).collect();
            assert_eq!(new.len(), 1, "{decision:?}: {table} has one commit: {new:?}");
        }
        for (table, moved) in changed {
            assert_eq!(
                change_rows(&shop, table),
                (moved, moved),
                "{decision:?}: {table} moves the rows concerned alone"
            );
        }
        // Readers of a run have what they had, in all tables, until the next run has all that is new.
        assert_eq!(rows(&["--published"]), published, "{decision:?}");
        let now = match decision[0] {
            "link" => told(&[(&older, 5)]),
            _ => told(&[(&older, 2)]),
        };
        assert_eq!(rows(&[]), now, "{decision:?}");
        succeed(&mut shop.command(&["run"]));
        assert_eq!(rows(&["--published"]), now, "{decision:?}");
        published = now;
    }
    let anew = shop.customer("member_id:M2");
    assert!(anew != older && anew != younger);
    assert_eq!(shop.core().values().filter(|id| **id == anew).count(), 3);
}

/// How many rows the newest commit to a core table took out and how many it put in, as its change data has them.
fn change_rows(shop: &Shop, table: &str) -> (i64, i64) {
    let folder = shop.path().join("lake/core").join(table);
    let newest = commits(&folder).into_iter().filter(|file| file.ends_with(".json")).max().unwrap();
    let text = std::fs::read_to_string(newest).unwrap();
    let (mut out, mut put) = (0, 0);
    for line in text.lines() {
        let action: Value = serde_json::from_str(line).unwrap();
        let Some(path) = action["cdc"]["path"].as_str() else { continue };
        let file = std::fs::File::open(folder.join(path)).unwrap();
        let batches = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        for batch in batches.build().unwrap() {
            let batch = batch.unwrap();
            let kinds = arrow::compute::cast(batch.column_by_name("_change_type").unwrap(), &DataType::Utf8).unwrap();
            let kinds = arrow::array::AsArray::as_string::<i32>(&kinds);
            for kind in kinds.iter().flatten() {
                match kind {
                    "delete" | "update_preimage" => out += 1,
                    _ => put += 1,
                }
            }
        }
    }
    (out, put)
}

#[test]
fn a_link_joins_what_no_record_does_and_a_block_undoes_what_an_identifier_joined() {
    let shop = Shop::new();
    shop.bring("1", &["M1,,,,3", ",,,D1,5", ",,13912340001,D2,6", ",,13912340001,D3,7"]);
    let (member, device) = (shop.customer("member_id:M1"), shop.customer("device:D1"));
    // By ids.
    shop.identity(&["link", &device, &member, "--why", "asked her", "--by", "ann", "--later"]);
    assert_eq!(shop.customer("device:D1"), device, "the next ingestion acts on it");
    shop.ingest();
    assert_eq!(shop.customer("device:D1"), member);
    let explained = shop.identity(&["explain", &member, "device:D1"]);
    assert_eq!(explained["steps"][0]["support"], "decision", "{explained}");

    assert_eq!(shop.customer("device:D2"), shop.customer("device:D3"));
    shop.identity(&["block", "phone", "+86 139 1234 0001", "--why", "the shop's own", "--by", "ann"]);
    assert_ne!(shop.customer("device:D2"), shop.customer("device:D3"));
    let phone = shop.identity(&["show", "phone:13912340001"]);
    assert_eq!(phone["identifiers"][0]["standing"], "blocked");
    shop.bring("2", &[",,13912340001,D2,8"]);
    assert_ne!(shop.customer("device:D2"), shop.customer("phone:13912340001"));
}

#[test]
fn a_phone_found_to_be_shared_and_a_limit_crossed_late_repair_the_past() {
    let shop = Shop::new();
    shop.bring("1", &[",,13912340001,D1,1", ",,13912340001,D2,2", "M1,,13912340001,,3"]);
    let all = shop.customer("member_id:M1");
    assert_eq!((shop.customer("device:D1"), shop.customer("device:D2")), (all.clone(), all.clone()));

    shop.bring("2", &["M2,,13912340001,,4"]);
    let ids: BTreeSet<String> = ["member_id:M1", "member_id:M2", "device:D1", "device:D2", "phone:13912340001"]
        .into_iter()
        .map(|identifier| shop.customer(identifier))
        .collect();
    assert_eq!(ids.len(), 5, "all that it had joined is apart");
    assert_eq!(shop.customer("phone:13912340001"), all, "the founding identifier keeps the id");
    let split =
        shop.query("select distinct cause, cause_type, other_customer_id from identity.history where kind = 'split'");
    let [split] = split.as_slice() else { panic!("{split:?}") };
    assert_eq!((&split["cause"], &split["cause_type"]), (&"standing".into(), &"phone".into()));
    assert_eq!(split["other_customer_id"], all.as_str());
    let shared = shop.query("select standing, is_shared from identity.identifiers where identifier_type = 'phone'");
    assert_eq!((&shared[0]["standing"], &shared[0]["is_shared"]), (&"shared".into(), &true.into()));

    // Two addresses are allowed. The third does not come in, and says why.
    shop.bring("3", &["M7,a@shop.example,,,5", "M7,b@shop.example,,,6", "M7,c@shop.example,,,7"]);
    assert_eq!(shop.customer("email:b@shop.example"), shop.customer("member_id:M7"));
    let explained = shop.identity(&["explain", "email:c@shop.example", "member_id:M7"]);
    assert!(
        explained["together"] == false && explained["steps"].to_string().contains("3 values of email"),
        "{explained}"
    );
    // An earlier one that is heard of late goes before.
    shop.bring("4", &["M7,z@shop.example,,,1"]);
    assert_eq!(shop.customer("email:z@shop.example"), shop.customer("member_id:M7"));
    assert_ne!(shop.customer("email:b@shop.example"), shop.customer("member_id:M7"), "the past is repaired");
}

#[test]
fn a_recycled_phone_is_each_owners_in_their_time_and_core_follows() {
    let shop = Shop::new();
    shop.bring("1", &["M1,,13912340001,,1", "M1,,13912340001,,2", ",,13912340001,D1,2"]);
    let first = shop.customer("member_id:M1");
    shop.bring(
        "2",
        &["M2,,13912340001,,15", "M2,,13912340001,,17", ",,13912340001,D2,16", ",,13912340001,,3", ",,13912340001,,14"],
    );
    let second = shop.customer("member_id:M2");
    assert_eq!((shop.customer("device:D1"), shop.customer("device:D2")), (first.clone(), second.clone()));
    let core = shop.core();
    for (visit, owner) in [("1-2", &first), ("2-2", &second), ("2-3", &first), ("2-4", &second)] {
        assert_eq!(&core[visit], owner, "{visit}: {core:?}");
    }
    assert_eq!(core.len(), 8, "each visit once");
    // Until the middle between the last that the one and the first that the other did with it, and one microsecond.
    let rows = shop.query(
        "select customer_id, valid_from, valid_to, standing from identity.identifiers where identifier_type = 'phone' \
         order by valid_from nulls first",
    );
    let [one, two] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((&one["customer_id"], &two["customer_id"]), (&first.clone().into(), &second.clone().into()));
    assert!(
        one["valid_from"].is_null() && two["valid_to"].is_null() && one["valid_to"] == two["valid_from"],
        "{rows:?}"
    );
    assert!(one["valid_to"].as_str().unwrap().starts_with("2026-01-08T20:00:00.000001"), "{one}");
    let shown = shop.identity(&["show", "phone:13912340001"]);
    assert_eq!(shown["customer_id"], second.as_str(), "whose it is now");
    let owners: Vec<&Value> = shown["owners"].as_array().unwrap().iter().map(|owner| &owner["customer_id"]).collect();
    assert_eq!(owners, [&Value::from(first.as_str()), &second.clone().into()]);
    let explained = shop.identity(&["explain", "device:D1", "member_id:M2"]);
    assert!(explained["together"] == false && explained["steps"].to_string().contains("changed hands"), "{explained}");

    // A customer who is known by a phone stays who it is when an earlier owner comes to light.
    shop.bring("3", &[",,13912340002,,20", "M4,,13912340002,,21", "M4,,13912340002,,22"]);
    let known_by_phone = shop.customer("phone:13912340002");
    shop.bring("4", &["M3,,13912340002,,3", "M3,,13912340002,,4", ",,13912340002,D3,5"]);
    assert_eq!(
        (shop.customer("member_id:M4"), shop.customer("phone:13912340002")),
        (known_by_phone.clone(), known_by_phone.clone())
    );
    assert_eq!(shop.customer("device:D3"), shop.customer("member_id:M3"));
    assert_eq!((&shop.core()["3-0"], &shop.core()["4-2"]), (&known_by_phone, &shop.customer("member_id:M3")));
    shop.identity(&["link", &known_by_phone, "device:D2", "--why", "asked her", "--by", "ann"]);
    assert_eq!(shop.customer("device:D2"), known_by_phone, "the link stands by the member id, not by the phone of two");
    let before = commits(shop.path());
    shop.ingest();
    assert_eq!(commits(shop.path()), before);

    // The first owner had it longer than was known: then both have it, and it joins nobody.
    shop.bring("5", &["M1,,13912340001,,13"]);
    let phone = shop.customer("phone:13912340001");
    assert!(![&first, &second, &shop.customer("member_id:M2")].contains(&&phone), "{phone}");
    assert_eq!((&shop.core()["2-3"], &shop.core()["2-4"]), (&phone, &phone));
    assert_eq!(shop.customer("member_id:M1"), first);
    assert_ne!(shop.customer("device:D1"), first);
    assert_eq!(
        shop.query("select 1 from identity.identifiers where valid_from is not null").len(),
        1,
        "the other phone"
    );

    // The later owners of a third one share it, so that its second life is nobody's in particular. Without the rule there are no lives, and an id that was known by one is out of use.
    shop.bring("6", &["M6,,13912340003,,1", "M6,,13912340003,,2"]);
    shop.bring("7", &["M7,,13912340003,,15", "M8,,13912340003,,16", "M7,,13912340003,,17"]);
    let nobodys = shop.customer("phone:13912340003");
    assert_eq!(shop.query("select 1 from identity.identifiers where is_shared and valid_from is not null").len(), 1);
    let rows = || {
        let rows = shop.query("select * from identity.customers order by customer_id");
        rows.iter().map(Value::to_string).collect::<Vec<_>>()
    };
    for (old, new) in [("recycled_after = \"6d\"\n", ""), ("hub_above = 8\n", "hub_above = 9\n")] {
        let path = "pipelines/churn/identity.toml";
        let rules = std::fs::read_to_string(shop.path().join(path)).unwrap();
        let before = rows();
        shop.write(path, &rules.replace(old, new));
        shop.ingest();
        assert_eq!(rows() == before, new.starts_with("hub"), "a second look finds nothing else");
    }
    let times = "select 1 from identity.identifiers where valid_from is not null or valid_to is not null";
    assert!(shop.query(times).is_empty());
    assert_ne!(shop.identity(&["show", &nobodys])["customer_id"], nobodys.as_str());
}

/// Visits of a few people who share, lend and change what they have. Seeded, so that a failure can be repeated.
fn random_visits(seed: u64, batches: usize) -> Vec<Vec<String>> {
    let mut state = seed;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut visit = || {
        let mut one = |prefix: &str, below: u64, often: u64| {
            let (number, is_there) = (next(below), next(10) < often);
            if is_there { format!("{prefix}{number}") } else { String::new() }
        };
        let (member, device) = (one("M", 9, 4), one("D", 20, 8));
        let email = one("e", 8, 2);
        let email = if email.is_empty() { email } else { format!("{email}@shop.example") };
        let phone = one("1391234000", 9, 5);
        format!("{member},{email},{phone},{device},{}", next(28) + 1)
    };
    (0..batches).map(|_| (0..12).map(|_| visit()).collect()).collect()
}

/// What people decide after some of the batches. The identifiers are known by then.
const DECIDED: [(usize, [&str; 3]); 3] = [
    (2, ["unlink", "member_id:M1", "device:D3"]),
    (4, ["link", "member_id:M2", "device:D5"]),
    (5, ["block", "device", "D7"]),
];

fn decide(shop: &Shop, decision: [&str; 3], manner: &[&str]) {
    succeed(shop.command(&["identity"]).args(decision).args(["--why", "a test", "--by", "ann"]).args(manner));
}

#[test]
fn idn_1_batches_decisions_and_a_watching_process_give_what_one_run_from_scratch_gives() {
    let seed = 20_260_127;
    let mut batches = random_visits(seed, 7);
    // Each identifier that is decided about.
    batches[0].extend(["M1,,,D3,2", "M2,,,,2", ",,,D5,3", ",,13912340003,D7,4"].map(str::to_owned));
    let put = |shop: &Shop, number: usize| {
        let visits: Vec<&str> = batches[number].iter().map(String::as_str).collect();
        shop.put(&format!("{number}"), &visits);
    };

    let at_once = Shop::new();
    (0..batches.len()).for_each(|number| put(&at_once, number));
    at_once.ingest();
    DECIDED.iter().for_each(|(_, decision)| decide(&at_once, *decision, &["--later"]));
    at_once.ingest();

    let step_by_step = Shop::new();
    for number in 0..batches.len() {
        put(&step_by_step, number);
        step_by_step.ingest();
        for (_, decision) in DECIDED.iter().filter(|(after, _)| *after == number) {
            decide(&step_by_step, *decision, &[]);
        }
    }
    assert_eq!(step_by_step.clusters(), at_once.clusters(), "seed {seed}");

    // In another order, by a process that keeps the graph and reads what is new.
    let watched = Shop::new();
    let mut watching = watched
        .command(&["ingest", "--from", "in", "--watch", "--every", "0.2"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = lines_of(&mut watching);
    let wait_for_resolution = || {
        let mut heard = Vec::new();
        while !heard.last().is_some_and(|line: &String| line.contains("Resolved")) {
            let line = lines.recv_timeout(Duration::from_secs(60));
            heard.push(line.unwrap_or_else(|error| panic!("{error}, seed {seed}: {heard:?}")));
        }
    };
    for number in [0, 6, 5, 4, 3, 2, 1] {
        put(&watched, number);
        wait_for_resolution();
        for (_, decision) in DECIDED.iter().filter(|(after, _)| *after == number) {
            decide(&watched, *decision, &["--later"]);
            wait_for_resolution();
        }
    }
    watching.kill().unwrap();
    watching.wait().unwrap();
    assert_eq!(watched.clusters(), at_once.clusters(), "seed {seed}");
    // It wrote what it knew to be other rows. Whoever compares all of them, as after a change of rules, finds none.
    let rows = || {
        ["identity.customers", "identity.identifiers"].map(|table| {
            let rows = watched.query(&format!("select * from {table}"));
            rows.iter().map(Value::to_string).collect::<BTreeSet<_>>()
        })
    };
    let written = rows();
    watched.write(
        "pipelines/churn/identity.toml",
        &format!("{}[types.card]\n", RULES.replace("\"device\"]", "\"device\", \"card\"]")),
    );
    watched.ingest();
    assert_eq!(rows(), written, "seed {seed}");

    // No id was given twice, and every change that was made is told with its cause.
    for shop in [&at_once, &step_by_step, &watched] {
        let doubles = shop.query(
            "select customer_id from identity.history where kind in ('minted', 'split') group by customer_id having count(*) > 1",
        );
        assert!(doubles.is_empty(), "idn_2: {doubles:?}");
        let lost = shop.query(
            "select customer_id from identity.customers where resolves_to is null \
             or resolves_to not in (select customer_id from identity.identifiers)",
        );
        assert!(lost.is_empty(), "idn_2: {lost:?}");
    }
    let causes =
        watched.query("select distinct cause from identity.history where kind in ('merged', 'split', 'moved')");
    assert!(causes.len() > 1 && causes.iter().all(|row| row["cause"] != "compared"), "{causes:?}");
    let given = watched.query(
        "select customer_id from identity.customers where customer_id not in \
         (select customer_id from identity.history where kind in ('minted', 'split'))",
    );
    assert!(given.is_empty(), "an id without a beginning: {given:?}");
}

#[test]
fn a_resolution_that_died_before_its_last_table_has_not_happened() {
    let shop = Shop::new();
    shop.bring("1", &["M1,,13912340001,,3", ",,,D1,4"]);
    shop.bring("2", &["M1,,,D1,5", "M2,,,D2,6"]);
    let (clusters, member) = (shop.clusters(), shop.customer("member_id:M2"));
    // As it would be had the process died before the last commit.
    let log = shop.path().join("lake/identity/identifiers/_delta_log");
    let mut versions: Vec<_> = std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().path()).collect();
    versions.sort();
    std::fs::remove_file(versions.last().unwrap()).unwrap();

    shop.ingest();
    assert_eq!(shop.clusters(), clusters);
    assert_eq!(shop.customer("member_id:M2"), member);
    let undone = shop.query("select step, identifiers from identity.history where kind = 'undone'");
    assert_eq!(undone.len(), 1, "{undone:?}");
    let step = undone[0]["identifiers"].as_i64().unwrap();
    let merged = shop.query("select step from identity.history where kind = 'merged' order by step");
    let merged: Vec<i64> = merged.iter().map(|row| row["step"].as_i64().unwrap()).collect();
    assert_eq!(merged, [step, step + 1], "told once for the step that was undone, once for the one that was not");
    let shown = shop.identity(&["show", "device:D1"]);
    assert_eq!(shown["history"].as_array().unwrap().iter().filter(|past| past["kind"] == "merged").count(), 1);
    let before = commits(shop.path());
    shop.ingest();
    assert_eq!(commits(shop.path()), before);
}

#[test]
fn other_rules_are_tried_without_being_written_and_quality_counts() {
    let shop = Shop::new();
    shop.bring("1", &["M1,,13912340001,,1", "M2,,13912340001,,2", ",,13912340001,D1,3", "M1,,,D2,4"]);
    let before = commits(shop.path());
    shop.write("other.toml", &RULES.replace("hub_above = 8", "shared_above = 2"));
    let difference = shop.identity(&["diff", "--rules", "other.toml", "--examples", "1"]);
    assert_eq!(difference["merged"], 2, "the phone and its device go to M1: {difference}");
    assert_eq!(difference["examples"].as_array().unwrap().len(), 1);
    shop.write("other.toml", &RULES.replace("phone = [", "device = [\"D2\"]\nphone = ["));
    let difference = shop.identity(&["diff", "--rules", "other.toml"]);
    assert_eq!((&difference["merged"], &difference["split"]), (&0.into(), &1.into()), "{difference}");
    let quality = shop.identity(&["quality"]);
    assert_eq!((&quality["customers"], &quality["retired"]), (&4.into(), &0.into()), "{quality}");
    let phone = quality["types"].as_array().unwrap().iter().find(|of| of["identifier_type"] == "phone").unwrap();
    assert_eq!((&phone["identifiers"], &phone["shared"]), (&1.into(), &1.into()));
    assert_eq!(quality["largest"][0]["identifiers"], 2);
    assert_eq!(commits(shop.path()), before);

    // As rules in force they do what the dry run said.
    shop.write("pipelines/churn/identity.toml", &RULES.replace("hub_above = 8", "shared_above = 2"));
    shop.ingest();
    assert_eq!(shop.customer("phone:13912340001"), shop.customer("member_id:M1"));
}

#[test]
fn what_cannot_be_asked_or_decided_is_told_clearly_and_changes_nothing() {
    let shop = Shop::new();
    shop.bring("1", &["M1,,13912340001,,1", ",,,,2", ",,13800138000,D1,3", ",,17000001234,D2,4"]);
    // Blocked values and records without identifiers are nobody's; the records are kept.
    assert_eq!(shop.query("select count(*) as n from identity.identifiers")[0]["n"], 4);
    assert_eq!(shop.core()["1-1"], "");
    let before = commits(shop.path());
    let signed = ["--why", "a test", "--by", "ann"];
    for (arguments, words) in [
        (vec!["show", "c0123456789abcdef"], "there never was"),
        (vec!["show", "somebody"], "name a customer by its id"),
        (vec!["show", "phne:13912340001"], "did you mean `phone`?"),
        (vec!["show", "phone:12345"], "cannot be anybody's phone"),
        (vec!["show", "phone:13800138000"], "blocked by the rules"),
        (vec!["show", "phone:17000001234"], "blocked by the rules"),
        (vec!["show", "phone:13912349999"], "no record has brought this phone"),
        (vec!["show", "token:123"], "32 hexadecimal digits"),
        (vec!["explain", "member_id:M1", "member_id:M9"], "no record has brought this member_id"),
        (vec!["block", "fax", "1", "--why", "a test", "--by", "ann"], "`fax` is no identifier type"),
        (vec!["withdraw", "7", "--why", "a test", "--by", "ann"], "there is no decision 7"),
    ] {
        let (code, said) = shop.refused(&arguments);
        assert_eq!(code, 2, "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
        for value in ["13912340001", "13912349999", "13800138000", "17000001234", "12345\n"] {
            assert!(!said.contains(value), "a value is printed: {said}");
        }
    }
    let (code, said) = shop.refused(&[&["link", "member_id:M1", "member_id:m-1"][..], &signed].concat());
    assert!(code == 2 && said.contains("the same identifier"), "{said}");
    let (code, said) = shop.refused(&["link", "member_id:M1", "device:D1", "--why", " ", "--by", "ann"]);
    assert!(code == 2 && said.contains("--why"), "{said}");
    shop.write("other.toml", "priority = [\"phone\"]\n[types.phone]\nshared_abov = 2\n");
    let (code, said) = shop.refused(&["diff", "--rules", "other.toml"]);
    assert!(code == 2 && said.contains("other.toml:3:1") && said.contains("did you mean `shared_above`?"), "{said}");
    assert_eq!(commits(shop.path()), before);

    // A link whose ends other decisions keep apart.
    shop.identity(&[&["unlink", "member_id:M1", "device:D1"][..], &signed].concat());
    shop.identity(&[&["link", "device:D1", "device:D2"][..], &signed].concat());
    let before = commits(shop.path());
    let (code, said) = shop.refused(&[&["link", "member_id:M1", "device:D2"][..], &signed].concat());
    assert!(code == 2 && said.contains("never one customer: decision 1"), "{said}");
    assert_eq!(commits(shop.path()), before);
}

#[test]
fn a_key_that_is_not_the_lakes_is_refused_before_anything_is_done() {
    let shop = Shop::new();
    shop.bring("1", &["M1,,13912340001,,1"]);
    let fact = shop.path().join("lake/_holdfast/facts/identity_key");
    let commits = || {
        let mut all = commits(shop.path());
        all.retain(|path| !path.ends_with("identity_key"));
        all
    };
    let before = commits();
    let key = shop.path().join("identity.key");
    let own = std::fs::read_to_string(&key).unwrap();
    let commands: [&[&str]; 5] = [
        &["ingest", "--from", "in"],
        &["run"],
        &["plan"],
        &["identity", "show", "member_id:M1"],
        &["identity", "block", "phone", "13912340001", "--why", "a test", "--by", "ann"],
    ];
    let refused = |arguments: &[&str], expected: &str| {
        let output = shop.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected) && said.contains("--identity-key"), "{arguments:?}: {said}");
        assert_eq!(commits(), before, "{arguments:?}");
    };
    shop.put("2", &["M1,,,D1,2"]);
    for is_settled in [true, false] {
        if !is_settled {
            // As lakes of earlier versions are: the note of what resolved last says it.
            std::fs::remove_file(&fact).unwrap();
        }
        std::fs::remove_file(&key).unwrap();
        commands.iter().for_each(|arguments| refused(arguments, "there is no identity key"));
        assert!(!key.exists(), "none is made in its place");
        std::fs::write(&key, "1".repeat(64)).unwrap();
        commands.iter().for_each(|arguments| refused(arguments, "hashed with another identity key"));
    }
    std::fs::write(&key, own).unwrap();
    shop.ingest();
    assert_eq!(shop.customer("device:D1"), shop.customer("member_id:M1"));
    assert!(fact.exists());
}

#[tokio::test]
async fn tables_with_the_columns_of_an_earlier_version_are_written_as_a_whole_once() {
    let shop = Shop::new();
    shop.bring("1", &["M1,,13912340001,,1", "M2,,,D2,2"]);
    let customers = ["member_id:M1", "device:D2"].map(|identifier| shop.customer(identifier));
    let folder = shop.path().join("lake");
    let clock = Arc::new(FixedClock(chrono::Utc::now()));
    let lake = Lake::open(&folder.display().to_string(), shop.path(), &StoreOptions::new(), clock).await.unwrap();
    let table = lake.table(&"identity.identifiers".parse().unwrap()).await.unwrap().unwrap();
    let mut fields: Vec<_> = table.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("records", DataType::Int64, true)));
    let spec = TableSpec {
        name: table.name().clone(),
        schema: Arc::new(Schema::new(fields)),
        partition_by: Vec::new(),
        comment: String::new(),
    };
    lake.ensure_table(&spec).await.unwrap();
    let columns = || {
        let row = shop.query("select * from identity.identifiers limit 1").remove(0);
        row.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert!(columns().contains(&"records".to_owned()));
    shop.bring("2", &["M1,,,D1,3"]);
    assert!(!columns().contains(&"records".to_owned()));
    assert_eq!(["device:D1", "member_id:M2"].map(|identifier| shop.customer(identifier)), customers);
}

#[test]
fn who_looks_at_who_is_who_or_decides_it_is_written_down_where_there_is_a_policy() {
    let shop = Shop::new();
    shop.write("pipelines/churn/policy.toml", "[roles.analyst]\ntables = [\"core.*\"]\n");
    // Nothing is told of a lake that has nothing yet, and nothing is made.
    shop.refused(&["quality"]);
    assert!(!shop.path().join("lake/audit").exists());
    shop.bring("1", &["M1,,13912340001,D1,1", "M2,,,D2,2", "M2,,,D1,3"]);
    let signed = ["--why", "a lent phone", "--by", "ann"];
    shop.identity(&["show", "member_id:M1"]);
    shop.identity(&["explain", "member_id:M1", "member_id:M2"]);
    shop.identity(&["review"]);
    shop.identity(&[&["unlink", "member_id:M1", "device:D1"][..], &signed].concat());
    shop.refused(&["show", "c0123456789abcdef"]);

    let rows = shop.query(
        "select principal, authentication, protocol, action, outcome, array_to_string(tables, ' ') as read_tables \
         from audit.accesses where protocol = 'command' order by at, sequence",
    );
    let told = |row: &Value| format!("{} {}", row["action"].as_str().unwrap(), row["outcome"].as_str().unwrap());
    let expected: Vec<String> =
        [("show", "ok"), ("explain", "ok"), ("review", "ok"), ("unlink", "ok"), ("show", "failed")]
            .iter()
            .flat_map(|(action, outcome)| [format!("identity:{action} begun"), format!("identity:{action} {outcome}")])
            .collect();
    assert_eq!(rows.iter().map(told).collect::<Vec<_>>(), expected);
    for row in &rows {
        assert_eq!((row["authentication"].as_str(), row["protocol"].as_str()), (Some("shell"), Some("command")));
        assert!(row["read_tables"].as_str().unwrap().contains("identity.identifiers"), "{row}");
        assert!(!row["principal"].as_str().unwrap().is_empty(), "{row}");
    }
    let verified = shop.command(&["audit", "verify", "--json"]).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}

#[test]
fn a_lake_without_identity_says_what_to_do() {
    let shop = Shop::new();
    let (code, said) = shop.refused(&["quality"]);
    assert!(code == 2 && said.contains("holdfast ingest"), "{said}");
    shop.ingest();
    let (code, said) = shop.refused(&["quality"]);
    assert!(code == 2 && said.contains("no identity has been resolved"), "{said}");
}
