//! What a plan says is what a run then does; what stages leave behind when they go; which stages are meant.

use serde_json::Value;

use crate::increments::ORDERS;
use crate::stages::{SPEND, Shop};
use crate::{commits, succeed};

const AS_OF: &str = "2025-06-30T00:00:00Z";

/// Not by key: which row is the first depends on all of them.
const TOP: &str = "-- @stage incremental key(customer_id)\nselect customer_id, spend_90d\nfrom profile.spend\n\
    order by spend_90d desc, customer_id\nlimit 1\n";

fn json(shop: &Shop, arguments: &[&str]) -> Value {
    let output = succeed(shop.command(arguments).args(["--json", "--as-of", AS_OF]));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn stage<'a>(report: &'a Value, name: &str) -> &'a Value {
    let stages = report["stages"].as_array().unwrap();
    stages.iter().find(|stage| stage["stage"] == name).unwrap_or_else(|| panic!("{name} is not in {report}"))
}

fn shop() -> Shop {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND), ("sql/risk/top.sql", TOP)]);
    shop.write("sql/core/orders.sql", ORDERS);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\no2,M2,2025-06-01T00:00:00Z,4.00\n");
    shop
}

#[test]
fn a_plan_says_what_a_run_then_does_and_commits_nothing() {
    let shop = shop();
    let plan = |shop: &Shop| {
        let before = commits(shop.path());
        let report = json(shop, &["plan"]);
        assert_eq!(before, commits(shop.path()), "a plan wrote something");
        report
    };
    let first = plan(&shop);
    assert_eq!(stage(&first, "core.orders")["action"], "fresh");
    let spend = stage(&first, "profile.spend");
    assert_eq!((&spend["action"], &spend["because"][0]["cause"]), (&"full".into(), &"never_made".into()), "{spend}");
    assert_eq!(spend["stop"], Value::Null, "{spend}");
    let top = stage(&first, "risk.top");
    assert_eq!(top["because"][1]["table"], "profile.spend", "{top}");
    assert!(top["stop"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{top}");

    shop.run();
    let second = plan(&shop);
    assert!(second["stages"].as_array().unwrap().iter().all(|stage| stage["action"] == "fresh"), "{second}");

    shop.write("in/orders/b.csv", "order_id,member,at,amount\no1,M1,2025-06-01T00:00:00Z,99.00\n");
    succeed(&mut shop.command(&["ingest", "--raw-only", "--from", "in"]));
    let third = plan(&shop);
    let orders = stage(&third, "core.orders");
    assert_eq!((&orders["action"], &orders["keys"]), (&"keys".into(), &1.into()), "{orders}");
    let because = &orders["because"][0];
    assert_eq!((&because["cause"], &because["table"]), (&"input".into(), &"raw.orders".into()), "{orders}");
    assert!(because["from"].as_u64() < because["to"].as_u64(), "{orders}");
    let spend = stage(&third, "profile.spend");
    assert_eq!((&spend["action"], &spend["keys"]), (&"keys".into(), &Value::Null), "{spend}");
    assert_eq!(spend["because"][0]["cause"], "upstream", "{spend}");
    assert_eq!(stage(&third, "risk.top")["action"], "full");
    let text = String::from_utf8(succeed(&mut shop.command(&["plan", "--as-of", AS_OF])).stdout).unwrap();
    assert!(text.contains("Keys core.orders  the rows of 1 keys"), "{text}");
    assert!(text.contains("because raw.orders went from v") && text.contains("stopped by sql/risk/top.sql"), "{text}");

    let run = json(&shop, &["run"]);
    for (name, kind) in [("core.orders", "keys"), ("profile.spend", "keys"), ("risk.top", "full")] {
        assert_eq!(stage(&run, name)["refresh"]["kind"], kind, "{run}");
    }
    assert_eq!(stage(&run, "core.orders")["refresh"]["keys"], 1);
}

#[test]
fn a_plan_shows_a_changed_query_with_its_columns_and_what_cannot_be_done() {
    let shop = shop();
    shop.run();
    shop.write("sql/profile/spend.sql", &SPEND.replace("from core.orders", ", count(*) as orders\nfrom core.orders"));
    let report = json(&shop, &["plan"]);
    let spend = stage(&report, "profile.spend");
    assert_eq!((&spend["action"], &spend["because"][0]["cause"]), (&"full".into(), &"query".into()), "{spend}");
    let added = &spend["columns"][0];
    assert_eq!((&added["change"], &added["column"]), (&"added".into(), &"orders".into()), "{spend}");
    let behind = stage(&report, "risk.top");
    assert_eq!(behind["because"][0]["cause"], "upstream", "{behind}");

    shop.write("sql/profile/spend.sql", &SPEND.replace("customer_id,    ", "'x' as other,"));
    let output = shop.command(&["plan", "--as-of", AS_OF]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "the key is no column any more");

    shop.write("sql/profile/spend.sql", SPEND);
    let later = succeed(&mut shop.command(&["plan", "--json", "--as-of", "2025-07-02T00:00:00Z"]));
    let later: Value = serde_json::from_slice(&later.stdout).unwrap();
    assert_eq!(stage(&later, "profile.spend")["because"][0]["cause"], "moment", "{later}");
    assert_eq!(stage(&json(&shop, &["plan", "--full", "--select", "risk.top"]), "risk.top")["action"], "full");
}

#[test]
fn the_table_of_a_stage_that_is_gone_is_kept_told_and_pruned_when_somebody_says_so() {
    let shop = shop();
    shop.write("sql/profile/spend.sql", &SPEND.replace("spend_90d >= 0", "spend_90d >= 5"));
    shop.run();
    assert_eq!(shop.query("select count(*) as n from quarantine.profile_spend")[0]["n"], 1);
    std::fs::remove_file(shop.path().join("sql/profile/spend.sql")).unwrap();
    std::fs::remove_file(shop.path().join("sql/risk/top.sql")).unwrap();

    for arguments in [&["plan"][..], &["run"], &["run"]] {
        assert_eq!(json(&shop, arguments)["orphans"], serde_json::json!(["profile.spend", "risk.top"]));
    }
    let status = succeed(&mut shop.command(&["status"])).stdout;
    assert!(String::from_utf8(status).unwrap().contains("profile.spend: the file of its stage is gone"));
    assert_eq!(shop.query("select count(*) as n from profile.spend")[0]["n"], 1);

    let mut unasked = shop.command(&["run", "--prune", "--as-of", AS_OF]);
    let unasked = unasked.stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!(unasked.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unasked.stderr).contains("say --yes"));
    assert!(shop.path().join("lake/profile/spend").exists());

    succeed(&mut shop.command(&["run", "--prune", "--yes", "--as-of", AS_OF]));
    for gone in ["profile/spend", "risk/top", "quarantine/profile_spend"] {
        assert!(!shop.path().join("lake").join(gone).exists(), "{gone}");
    }
    assert_eq!(shop.query("select count(*) as n from core.orders")[0]["n"], 2);
    succeed(&mut shop.command(&["sql", "--published", "select * from core.orders"]));
    assert_eq!(json(&shop, &["run"])["orphans"], serde_json::json!([]));

    // A stage that comes back is made from the beginning.
    shop.write("sql/profile/spend.sql", SPEND);
    assert_eq!(stage(&json(&shop, &["run"]), "profile.spend")["outcome"], "built");
}

#[test]
fn selections_take_tags_and_leave_out_what_is_excluded() {
    let shop = shop();
    shop.write("sql/profile/spend.sql", &format!("-- @tag nightly\n{SPEND}"));
    shop.write("sql/risk/top.sql", &format!("-- @tag money(spend_90d)\n{TOP}"));
    let selected = |arguments: &[&str]| -> Vec<String> {
        let report = json(&shop, &[&["plan"], arguments].concat());
        let stages = report["stages"].as_array().unwrap();
        stages.iter().map(|stage| stage["stage"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(selected(&["--select", "tag:nightly"]), ["profile.spend"]);
    assert_eq!(selected(&["--select", "tag:nightly+"]), ["profile.spend", "risk.top"]);
    assert_eq!(selected(&["--select", "+tag:money"]), ["core.orders", "profile.spend", "risk.top"]);
    assert_eq!(selected(&["--exclude", "core.*", "tag:money"]), ["profile.spend"]);
    assert_eq!(selected(&["--select", "core.orders+", "--exclude", "profile.spend+"]), ["core.orders"]);
    let (code, said) = shop.fails(&["run", "--select", "tag:nightli"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("did you mean `tag:nightly`?"), "{said}");
    let (code, said) = shop.fails(&["run", "--select", "tag:zzz"]);
    assert!(code == Some(2) && said.contains("no stage has the tag `zzz`: the tags are money, nightly"), "{said}");
    // A tag of the whole stage says nothing of its table.
    shop.run();
    shop.write("sql/profile/spend.sql", SPEND);
    assert_eq!(selected(&["--select", "profile.spend"]), ["profile.spend"]);
    assert_eq!(stage(&json(&shop, &["plan"]), "profile.spend")["action"], "fresh");
}

/// The short way of a run with nothing to do plans no query. What would be told by planning has to be told all the same.
#[test]
fn stg_3_a_run_with_nothing_new_looks_at_all_that_could_be_a_mistake() {
    let shop = shop();
    shop.run();
    let before = commits(shop.path());
    shop.run();
    assert_eq!(before, commits(shop.path()));

    let source = shop.path().join("pipelines/churn/sources/orders.toml");
    let text = std::fs::read_to_string(&source).unwrap();
    std::fs::write(&source, text.replace("amount = \"decimal(12,2)\"\n", "")).unwrap();
    let (code, said) = shop.fails(&["run", "--as-of", AS_OF]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("column `amount` not found"), "{said}");
    std::fs::write(&source, text).unwrap();

    // Other rules may make other tokens: every stage may have other rows.
    let rules = "priority = [\"member_id\", \"device\"]\n[types.member_id]\nunique = true\n[types.device]\n";
    std::fs::write(shop.path().join("pipelines/churn/identity.toml"), rules).unwrap();
    let report = json(&shop, &["plan"]);
    assert!(report["stages"].as_array().unwrap().iter().all(|stage| stage["action"] != "fresh"), "{report}");
}
