use std::collections::BTreeMap;
use std::path::Path;

use arrow::datatypes::{DataType, Field, Schema};

use super::*;
use crate::principal::Authentication;

const TEXT: &str = r#"
[roles.analyst]
description = "Looks at numbers"
tables = ["core.*", "profile.*", "!core.payments"]

[[roles.analyst.rows]]
tables = ["core.customers"]
where = "region in (attribute('region'))"

[[roles.analyst.columns]]
tag = "pii"
mask = "hash"

[[roles.analyst.columns]]
tables = ["core.customers"]
columns = ["phone"]
mask = "partial"
keep_last = 2

[roles.agent]
tables = ["core.customers"]

[[roles.agent.rows]]
where = "agent = principal()"

[[roles.agent.columns]]
columns = ["phone", "age"]
mask = "show"

[roles.auditor]
tables = ["*", "audit.*"]

[roles.auditor.limits]
rows = 1_000
rate_per_s = 2.5
memory_mb = 64
deadline_s = 10

[without_user]
loopback = ["auditor"]

[[case]]
name = "nothing_of_payments"
roles = ["analyst"]
query = "select * from core.payments"
[case.expect]
refused = "core.payments"
"#;

fn policy(text: &str) -> Policy {
    Policy::parse(Path::new("policy.toml"), text).unwrap()
}

fn schema() -> Schema {
    let pii = |name: &str, data_type: DataType| {
        Field::new(name, data_type, true).with_metadata([("pii".to_owned(), "true".to_owned())].into())
    };
    Schema::new(vec![
        Field::new("customer_id", DataType::Utf8, true),
        pii("phone", DataType::Utf8),
        pii("born", DataType::Date32),
        Field::new("age", DataType::Int64, true),
        Field::new("_unknown", DataType::Utf8, true),
    ])
}

fn principal(roles: &[&str], regions: &[&str]) -> Principal {
    Principal {
        name: "o'hara".to_owned(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        attributes: BTreeMap::from([("region".to_owned(), regions.iter().map(|&region| region.to_owned()).collect())]),
        by: Authentication::Token,
    }
}

fn name(text: &str) -> TableName {
    text.parse().unwrap()
}

fn sql(access: &TableAccess) -> Vec<&str> {
    match &access.rows {
        Rows::All => vec!["all"],
        Rows::Matching(filters) => filters.iter().map(BoundFilter::sql).collect(),
    }
}

fn mask<'a>(access: &'a TableAccess, column: &str) -> Option<&'a [(Mask, Vec<usize>)]> {
    access.columns.iter().find(|known| known.name == column).map(|known| known.masks.as_slice())
}

#[test]
fn tables_are_seen_that_a_role_names_and_no_others() {
    let policy = policy(TEXT);
    let sees =
        |roles: &[&str], table: &str| policy.access(&principal(roles, &["north"]), &name(table), &schema()).is_some();
    assert!(sees(&["analyst"], "core.orders") && sees(&["analyst"], "profile.spend"));
    assert!(!sees(&["analyst"], "core.payments") && !sees(&["analyst"], "raw.crm"));
    assert!(!sees(&["agent"], "core.orders") && !sees(&[], "core.orders") && !sees(&["unknown"], "core.orders"));
    assert!(sees(&["agent", "analyst"], "core.orders"));
    assert!(sees(&["auditor"], "audit.accesses"));
    let all = self::policy("[roles.all]\ntables = [\"*\"]\n");
    assert!(all.access(&principal(&["all"], &[]), &name("audit.accesses"), &schema()).is_none());
    let tagged = self::policy("[roles.all]\ntables = [\"tag:pii\"]\n");
    assert!(tagged.access(&principal(&["all"], &[]), &name("core.x"), &schema()).is_some());
    assert!(tagged.access(&principal(&["all"], &[]), &name("core.x"), &Schema::empty()).is_none());
}

#[test]
fn filters_hold_the_principals_values_and_nothing_is_seen_without_them() {
    let policy = policy(TEXT);
    let customers = name("core.customers");
    let access =
        |roles: &[&str], regions: &[&str]| policy.access(&principal(roles, regions), &customers, &schema()).unwrap();
    assert_eq!(sql(&access(&["analyst"], &["north", "o'land"])), ["(region IN ('north', 'o''land'))"]);
    assert_eq!(sql(&access(&["analyst"], &[])), [""; 0]);
    assert_eq!(sql(&access(&["agent"], &[])), ["(agent = 'o''hara')"]);
    // One role has a filter that nothing meets: the other's rows are seen, and the first says nothing of columns.
    let both = access(&["agent", "analyst"], &[]);
    assert_eq!(sql(&both), ["(agent = 'o''hara')"]);
    assert_eq!(mask(&both, "phone"), Some(&[(Mask::Show, vec![])][..]));
    assert_eq!(mask(&both, "born"), None);
    assert_eq!(sql(&access(&["auditor", "agent"], &[])), ["(agent = 'o''hara')", "true"]);
}

#[test]
fn tagged_columns_without_a_rule_are_denied_and_a_rule_by_name_counts_first() {
    let policy = policy(TEXT);
    let customers = name("core.customers");
    let analyst = policy.access(&principal(&["analyst"], &["north"]), &customers, &schema()).unwrap();
    assert_eq!(mask(&analyst, "phone"), Some(&[(Mask::Partial { keep_first: 0, keep_last: 2 }, vec![])][..]));
    // A hash is of texts.
    assert_eq!(mask(&analyst, "born"), Some(&[(Mask::Null, vec![])][..]));
    assert_eq!(mask(&analyst, "_unknown"), Some(&[(Mask::Hash, vec![])][..]));
    assert_eq!(analyst.hidden, 0);
    let auditor = policy.access(&principal(&["auditor"], &[]), &customers, &schema()).unwrap();
    assert_eq!(auditor.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>(), ["customer_id", "age"]);
    assert_eq!(auditor.hidden, 3);
}

#[test]
fn of_several_roles_each_shows_its_own_rows() {
    let policy = policy(TEXT);
    let both =
        policy.access(&principal(&["agent", "analyst"], &["north"]), &name("core.customers"), &schema()).unwrap();
    assert_eq!(sql(&both), ["(agent = 'o''hara')", "(region IN ('north'))"]);
    let phone = mask(&both, "phone").unwrap();
    assert_eq!(phone, [(Mask::Show, vec![0]), (Mask::Partial { keep_first: 0, keep_last: 2 }, vec![1])]);
    // What one role shows of its rows is not shown of another's.
    let born = both.columns.iter().find(|column| column.name == "born").unwrap();
    assert_eq!(born.only_mask(), None);
    // The agent is denied it, the analyst sees null.
    assert_eq!(mask(&both, "born"), Some(&[(Mask::Null, vec![1])][..]));
    assert_eq!(mask(&both, "age"), Some(&[(Mask::Show, vec![])][..]));
}

#[test]
fn limits_are_the_most_that_a_role_allows() {
    let more = format!("{TEXT}\n[roles.more]\n[roles.more.limits]\nrows = 5_000\nburst = 7\n");
    let limits = policy(&more).limits(&principal(&["auditor", "more"], &[]));
    assert_eq!((limits.rows, limits.burst, limits.rate_per_s), (Some(5_000), Some(7.0), Some(2.5)));
    assert_eq!((limits.memory_bytes, limits.deadline), (Some(64 << 20), Some(Duration::from_secs(10))));
    assert_eq!(policy(TEXT).limits(&principal(&["analyst"], &[])), Limits::default());
}

#[test]
fn every_mistake_is_told_with_its_place() {
    for (text, expected) in [
        ("[roles.a]\ntabels = []\n", "policy.toml:2:1\n2 | tabels = []\n  | ^^^^^^ help: did you mean `tables`?"),
        ("[roles.a]\ntables = [\"Core.*\"]\n", "`Core.*` names no tables"),
        ("[roles.a]\ntables = [\"!core.x\"]\n", "only takes tables away"),
        ("[[roles.a.rows]]\nwhere = \"a = \"\n", "policy.toml:2:9"),
        ("[[roles.a.rows]]\nwhere = \"a = 1) or (true\"\n", "the condition ends before `)`"),
        ("[[roles.a.rows]]\nwhere = \"a = attribute(b)\"\n", "write principal() and attribute('name')"),
        ("[[roles.a.rows]]\ntables = [\"core.x\"]\n", "needs a condition"),
        ("[[roles.a.columns]]\ntag = \"pii\"\nmask = \"hsh\"\n", "did you mean `hash`?"),
        ("[[roles.a.columns]]\nmask = \"hash\"\n", "either a tag or columns"),
        ("[[roles.a.columns]]\ntag = \"pii\"\nmask = \"range\"\n", "needs a width"),
        ("[[roles.a.columns]]\ntag = \"pii\"\nmask = \"null\"\nwidth = 3\n", "`width` is of the mask `range`"),
        ("[roles.a.limits]\nrows = -1\n", "a whole number of 0"),
        ("[roles.a]\n[without_user]\nloopback = [\"b\"]\n", "there is no role `b`"),
        ("[roles.a]\n[[case]]\nname = \"x\"\nquery = \"select 1\"\n", "needs what is expected"),
        ("", "no roles"),
        ("[roles", "error[E0801]"),
    ] {
        let error = Policy::parse(Path::new("policy.toml"), text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let case = &policy(TEXT).cases[0];
    assert_eq!(case.principal.roles, ["analyst"]);
    assert_ne!(policy(TEXT).version, policy(&format!("{TEXT} ")).version);
}
