//! Writing stages: what `check`, `fmt`, `lineage`, `docs` and `status` say, through the front door.

use std::time::{Duration, Instant};

use crate::stages::{SPEND, Shop};
use crate::{holdfast, succeed, workspace};

const PIPELINES: [&str; 3] = ["churn", "complete_journey", "uci_online_retail"];

/// What `check` finds as JSON, and the exit code.
fn check(shop: &Shop) -> (Option<i32>, serde_json::Value) {
    let output = shop.command(&["check", "--json"]).output().unwrap();
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))))
}

/// The findings as `code file:line:column`.
fn found(shop: &Shop) -> Vec<String> {
    let (_, report) = check(shop);
    let findings = report["findings"].as_array().unwrap().iter();
    findings
        .map(|finding| {
            let file = finding["file"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
            format!("{} {file}:{}:{}", finding["code"].as_str().unwrap(), finding["line"], finding["column"])
        })
        .collect()
}

fn said(shop: &Shop, arguments: &[&str]) -> String {
    let output = shop.command(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_mistake_of_every_stage_is_told_with_its_place() {
    let shop = Shop::new(&[
        (
            "sql/profile/a.sql",
            "-- @stage incremental key(customer)\n-- @stage full\n-- @expct fail x: true\n-- @expect fail y: spent > 0\n\
             -- @tag pii(nam)\nselect\n    customer_idd,\n    uper(order_id) as code,\n    o.amout as amount\n\
             from core.orders as o\nwhere ordered_att > now()\n",
        ),
        (
            "sql/profile/b.sql",
            "select customer_id from core.orders a inner join core.orders b on a.order_id = b.order_id\n",
        ),
        ("sql/profile/c.sql", "select * from profile.c\n"),
        ("sql/profile/d.sql", "select one from core.ordes\n"),
        ("sql/raw/orders.sql", "select 1 as one\n"),
        ("sql/profile/behind.sql", "select * from profile.a\n"),
        ("sql/stray.sql", "select 1 as one\n"),
        ("sql/profile/lost.cases.toml", "as_of = \"2026-01-01T00:00:00Z\"\n"),
    ]);
    assert_eq!(
        found(&shop),
        [
            "E0105 a.sql:2:1",
            "E0101 a.sql:3:5",
            "E0212 a.sql:7:5",
            "E0214 a.sql:8:5",
            "E0212 a.sql:9:5",
            "E0212 a.sql:11:7",
            "E0213 b.sql:1:8",
            "E0209 c.sql:1:15",
            "E0203 d.sql:1:17",
            "E0403 lost.cases.toml:0:0",
            "E0210 orders.sql:0:0",
            "E0211 stray.sql:0:0",
        ]
    );
    let (code, report) = check(&shop);
    assert_eq!(code, Some(2));
    assert_eq!(report["mistakes"], 12);
    assert!(
        !shop.path().join("lake").exists() && !shop.path().join("identity.key").exists(),
        "a check wrote something"
    );

    let said = said(&shop, &["check"]);
    for told in [
        "error[E0212]: column `customer_idd` not found\n",
        "a.sql:7:5\n7 |     customer_idd,\n  |     ^^^^^^^^^^^^ help: did you mean `customer_id`?",
        "9 |     o.amout as amount\n  |     ^^^^^^^ help: did you mean `amount`?",
        "did you mean `upper`?",
        "stage `profile.c` reads itself",
        "Checked 5 stages in ",
        "12 mistakes, no warnings, 4 stages not judged to the end",
    ] {
        assert!(said.contains(told), "{told}\n---\n{said}");
    }
}

#[test]
fn what_directives_ask_of_columns_is_told_where_they_ask_it() {
    let shop = Shop::new(&[(
        "sql/profile/a.sql",
        "-- @stage incremental key(customer)\n-- @expect fail y: spent > 0\n-- @expect quarantine z: count(*) > 0\n\
         -- @tag pii(nam)\nselect\n    customer_id,\n    cast(amount as double) as amount\nfrom core.orders\n",
    )]);
    assert_eq!(found(&shop), ["E0106 a.sql:1:27", "E0301 a.sql:2:20", "E0301 a.sql:3:26", "E0104 a.sql:4:13"]);
    shop.write(
        "sql/profile/a.sql",
        "-- @stage incremental key(amount)\nselect cast(amount as double) as amount, count(*) as n\nfrom core.orders\ngroup by 1\n",
    );
    assert_eq!(found(&shop), ["E0107 a.sql:1:27", "W0604 a.sql:2:13"]);
}

#[test]
fn cases_that_do_not_fit_are_told_without_running_them() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    shop.write("sql/core/orders.cases.toml", "as_of = \"2026-01-01T00:00:00Z\"\n[[case]]\nnmae = \"x\"\n");
    shop.write(
        "sql/profile/spend.cases.toml",
        "as_of = \"2026-01-01T00:00:00Z\"\n[[case]]\nname = \"late\"\n[case.given]\n\"core.orders\" = \"\"\"\norder_idd\no1\n\"\"\"\n\
         \"core.refunds\" = \"\"\"\nid\n1\n\"\"\"\n[case.expect]\nrows = \"\"\"\nspend\n1.00\n\"\"\"\n",
    );
    assert_eq!(
        found(&shop),
        [
            "E0401 orders.cases.toml:3:1",
            "E0402 spend.cases.toml:3:1",
            "E0402 spend.cases.toml:3:1",
            "E0402 spend.cases.toml:3:1"
        ]
    );
}

#[test]
fn what_works_and_surprises_is_a_warning_until_it_is_allowed_with_a_reason() {
    let shop = Shop::new(&[
        ("sql/core/orders.contract.toml", CONTRACT),
        (
            "sql/profile/last.sql",
            "with unused as (\n    select 1 as one\n),\n\nnumbered as (\n    select\n        customer_id,\n        order_id,\n\
             \x20       row_number() over (partition by customer_id order by ordered_at desc) as number\n    from core.orders\n)\n\n\
             select customer_id, array_agg(order_id) as orders from numbered where number = 1 group by customer_id\n",
        ),
        ("sql/profile/some.sql", "select order_id from core.orders limit 3\n"),
        (
            "sql/profile/first.sql",
            "select distinct on (customer_id) customer_id, order_id from core.orders order by customer_id, order_id\n",
        ),
    ]);
    assert_eq!(
        found(&shop),
        ["W0601 last.sql:1:6", "W0602 last.sql:9:9", "W0602 last.sql:13:21", "W0603 some.sql:1:34"]
    );
    let (code, report) = check(&shop);
    assert_eq!((code, &report["mistakes"], &report["warnings"]), (Some(0), &0.into(), &4.into()));
    assert_eq!(shop.fails(&["check", "--deny-warnings"]).0, Some(2));
    let told = said(&shop, &["check"]);
    assert!(told.contains("warning[W0602]: rows can be equal in all that `row_number` is ordered by"), "{told}");
    assert!(told.contains("help: add `order_id`, which tells them apart"), "{told}");

    shop.write("sql/profile/last.sql", "select 1 as one\n");
    shop.write(
        "sql/profile/some.sql",
        "-- holdfast: allow(W0603) any three do\n-- holdfast: allow(W0601) nothing\nselect order_id from core.orders limit 3\n",
    );
    assert_eq!(found(&shop), ["W0606 some.sql:2:14"]);
    shop.write("sql/profile/some.sql", "-- holdfast: allow(W0603)\nselect order_id from core.orders limit 3\n");
    assert_eq!(found(&shop), ["E0108 some.sql:1:14", "W0603 some.sql:2:34"]);
}

#[test]
fn identifiers_joined_without_their_time_are_told_where_they_can_change_hands() {
    let tokens = "with visits as (\n    select *, coalesce(identifier_token('member_id', member), identifier_token('phone', member)) as token\n    \
                  from raw.orders\n)\n\nselect i.customer_id, v.order_id\n";
    let join = "from visits as v\nleft join identity.identifiers as i on i.token = v.token\n";
    let dated =
        "    and (i.valid_from is null or v.at >= i.valid_from)\n    and (i.valid_to is null or v.at < i.valid_to)\n";
    let shop = Shop::new(&[
        ("sql/core/alone.sql", &format!("{tokens}{join}")),
        ("sql/core/dated.sql", &format!("{tokens}{join}{dated}")),
        ("sql/core/half.sql", &format!("{tokens}{join}    and (i.valid_to is null or v.at < i.valid_to)\n")),
        ("sql/core/newest.sql", &format!("{tokens}{join}    and i.valid_to is null\n")),
        (
            "sql/core/listed.sql",
            &format!("{tokens}from visits as v, identity.identifiers as i\nwhere i.token = v.token\n"),
        ),
        (
            "sql/core/known.sql",
            &format!("{tokens}from visits as v\nwhere v.token in (select token from identity.identifiers)\n")
                .replace("i.customer_id, ", ""),
        ),
        // The token comes from a table: nobody knows of which type it is.
        (
            "sql/core/keyed.sql",
            "select i.customer_id, e.source\nfrom identity.edges as e\nleft join identity.identifiers as i on i.token = e.left_token\n",
        ),
    ]);
    // No type of the rules changes hands.
    assert_eq!(found(&shop), Vec::<String>::new());
    let rules = "priority = [\"member_id\", \"phone\"]\n[types.member_id]\nunique = true\n[types.phone]\nrecycled_after = \"90d\"\n";
    shop.write("pipelines/churn/identity.toml", rules);
    // core.orders joins by member ids alone, which are nobody else's.
    assert_eq!(
        found(&shop),
        ["W0607 alone.sql:8:11", "W0607 half.sql:8:11", "W0607 keyed.sql:3:11", "W0607 listed.sql:7:19"]
    );
    let (code, report) = check(&shop);
    assert_eq!((code, &report["mistakes"], &report["warnings"]), (Some(0), &0.into(), &4.into()));
    let told = said(&shop, &["check"]);
    for part in [
        "warning[W0607]: `identity.identifiers` is joined by token alone: a record has a row for each owner of a phone that changed hands",
        "8 | left join identity.identifiers as i on i.token = v.token\n  |           ^^^^^^^^^^^^^^^^^^^^ help: add `and (valid_from is null or",
    ] {
        assert!(told.contains(part), "{part}\n---\n{told}");
    }
    shop.write("sql/core/keyed.sql", "-- holdfast: allow(W0607) an edge is of all owners\nselect i.customer_id\nfrom identity.edges as e\nleft join identity.identifiers as i on i.token = e.left_token\n");
    assert_eq!(found(&shop), ["W0607 alone.sql:8:11", "W0607 half.sql:8:11", "W0607 listed.sql:7:19"]);
}

const CONTRACT: &str = "version = 1\ngrain = \"an order\"\nkey = [\"order_id\"]\nevent_time = \"ordered_at\"\nidentifiers = [\"member_id\"]\n\
    [columns]\ncustomer_id = { type = \"string\", meaning = \"Who\" }\norder_id = { type = \"string\", meaning = \"Key\" }\n\
    ordered_at = { type = \"timestamp\", meaning = \"When\" }\namount = { type = \"decimal(12,2)\", unit = \"CNY\", meaning = \"Paid\" }\n";

#[test]
fn features_that_see_labels_or_what_comes_later_are_told() {
    let shop = Shop::new(&[
        ("sql/core/orders.contract.toml", CONTRACT),
        ("sql/label/churned.sql", "select customer_id, true as has_churned from core.orders group by customer_id\n"),
        ("sql/profile/hint.sql", "select customer_id from label.churned\n"),
        ("sql/profile/tagged.sql", "-- @tag label(outcome)\nselect customer_id, amount as outcome from core.orders\n"),
        ("sql/profile/between.sql", "select customer_id, outcome * 2 as twice from profile.tagged\n"),
        ("sql/features/a.sql", "select customer_id, has_churned from label.churned\n"),
        ("sql/features/b.sql", "select customer_id from profile.hint\n"),
        ("sql/features/c.sql", "select customer_id,\n    twice\nfrom profile.between\n"),
        ("sql/features/d.sql", "select customer_id, count(*) as n from core.orders group by customer_id\n"),
        (
            "sql/features/e.sql",
            "select customer_id, count(*) as n from core.orders where ordered_at <= now() group by customer_id\n",
        ),
        (
            "sql/profile/clock.sql",
            "select now() at time zone 'Europe/London' as here, now() at time zone 'UTC' at time zone 'Asia/Shanghai' as there\n",
        ),
    ]);
    assert_eq!(
        found(&shop),
        ["E0601 a.sql:1:38", "E0601 b.sql:1:25", "E0601 c.sql:2:5", "W0605 d.sql:1:40", "E0215 clock.sql:1:8"]
    );
}

#[test]
fn a_folder_says_what_its_stages_do_not_say_themselves() {
    let shop = Shop::new(&[
        ("sql/profile/spend.sql", &SPEND.replace("-- @stage", "-- @owner sales\n-- @stage")),
        ("sql/profile/orders.sql", "select customer_id, order_id from core.orders\n"),
        (
            "sql/profile/defaults.toml",
            "owner = \"retention\"\nstage = \"incremental key(customer_id)\"\n[tags]\npii = [\"order_id\"]\n",
        ),
    ]);
    assert!(found(&shop).is_empty());
    succeed(&mut shop.command(&["check", "--write-lock"]));
    let lock = std::fs::read_to_string(shop.path().join("sql/stages.lock")).unwrap();
    assert!(
        lock.contains("order_id = { at = 2, type = \"string\", pii = true, from = [\"core.orders.order_id\"] }"),
        "{lock}"
    );
    succeed(&mut shop.command(&["docs", "--out", "site"]));
    let page = |name: &str| std::fs::read_to_string(shop.path().join("site").join(name)).unwrap();
    assert!(page("profile.orders.html").contains("retention") && page("profile.spend.html").contains("sales"));

    shop.write(
        "sql/profile/defaults.toml",
        "ownr = \"x\"\nstage = \"incremental key(customer)\"\n[tags]\npii = [\"oder_id\"]\n",
    );
    assert_eq!(found(&shop), ["E0109 defaults.toml:1:1", "E0106 defaults.toml:2:9", "E0109 defaults.toml:4:8"]);
    let told = said(&shop, &["check"]);
    assert!(told.contains("did you mean `owner`?") && told.contains("did you mean `order_id`?"), "{told}");
}

#[test]
fn the_lock_file_shows_which_columns_came_went_and_changed() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    let (code, told) = shop.fails(&["check", "--locked"]);
    assert!(code == Some(2) && told.contains("E0701"), "{told}");
    succeed(&mut shop.command(&["check", "--write-lock"]));
    let path = shop.path().join("sql/stages.lock");
    let lock = std::fs::read_to_string(&path).unwrap();
    assert!(
        lock.contains("spend_90d = { at = 2, type = \"decimal(22,2)\", from = [\"core.orders.amount\"] }"),
        "{lock}"
    );
    assert!(lock.contains("key = [\"customer_id\"]"), "{lock}");

    // A comment or another layout is nothing.
    shop.write("sql/profile/spend.sql", &format!("-- a remark\n{}", SPEND.replace("\ngroup by", "\n  group   by")));
    succeed(&mut shop.command(&["check", "--locked"]));

    shop.write(
        "sql/profile/spend.sql",
        &SPEND
            .replace(
                "sum(amount) as spend_90d  -- CNY",
                "cast(sum(amount) as double) as spend_90d,\n    min(order_id) as first_order",
            )
            .replace("'90 days'", "'60 days'"),
    );
    let (code, told) = shop.fails(&["check", "--locked"]);
    assert_eq!(code, Some(2));
    for line in ["profile.spend", "~ column spend_90d decimal(22,2) → float64", "+ column first_order string", "E0702"]
    {
        assert!(told.contains(line), "{line}\n---\n{told}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), lock, "a comparison wrote the file");

    shop.write("sql/profile/spend.sql", &SPEND.replace("'90 days'", "'60 days'"));
    let (_, told) = shop.fails(&["check", "--locked"]);
    assert!(told.contains("~ how it is computed"), "{told}");
    shop.write("sql/stages.lock", "[\"profile.spend\"]\nplann = 1\n");
    let (_, told) = shop.fails(&["check", "--locked"]);
    assert!(told.contains("E0701") && told.contains("stages.lock:2:1"), "{told}");
}

#[test]
fn the_shipped_stages_are_clean_aligned_and_as_they_are_locked() {
    for pipeline in PIPELINES {
        succeed(holdfast().args(["--pipeline", pipeline, "check", "--locked", "--deny-warnings"]));
        succeed(holdfast().args(["--pipeline", pipeline, "fmt", "--check"]));
    }
}

#[test]
fn aligning_directives_leaves_the_query_alone_and_is_done_once() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    assert_eq!(shop.fails(&["fmt", "--check"]).0, Some(2));
    assert_eq!(std::fs::read_to_string(shop.path().join("sql/profile/spend.sql")).unwrap(), SPEND);
    succeed(&mut shop.command(&["fmt"]));
    let aligned = std::fs::read_to_string(shop.path().join("sql/profile/spend.sql")).unwrap();
    let query = |text: &str| text[text.find("\nselect").unwrap()..].to_owned();
    assert_eq!(query(&aligned), query(SPEND));
    assert!(aligned.contains("-- @expect     quarantine  sane:          spend_90d >= 0\n"), "{aligned}");
    succeed(&mut shop.command(&["fmt", "--check"]));
}

/// The origins of a column, as `lineage` says them.
fn origins(shop: &Shop, column: &str) -> (Vec<String>, Vec<String>) {
    let output = succeed(&mut shop.command(&["lineage", "profile.x", "--column", column, "--json"]));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names = |key: &str| {
        let names = report[key].as_array().unwrap().iter();
        names.map(|name| name.as_str().unwrap().replace("core.orders.", "o.").replace("raw.orders.", "raw.")).collect()
    };
    (names("from"), names("rows"))
}

#[test]
fn a_column_comes_from_what_its_expression_names_through_every_kind_of_query() {
    let shop = Shop::new(&[(
        "sql/profile/x.sql",
        "with recent as (\n    select customer_id, amount * 2 as doubled, order_id from core.orders where ordered_at > now() - interval '9 days'\n),\n\
         both as (\n    select customer_id, doubled as v from recent\n    union all\n    select order_id, amount from core.orders\n),\n\
         sums as (\n    select customer_id, sum(v) as total, count(*) as n from both group by customer_id\n)\n\
         select\n    sums.customer_id as customer_id,\n    sums.total as total,\n    sums.n as n,\n\
         \x20   row_number() over (partition by recent.customer_id order by recent.order_id) as place,\n\
         \x20   (select max(o.ordered_at) from core.orders as o where o.customer_id = sums.customer_id) as last_at,\n\
         \x20   1 as one\nfrom sums\nleft join recent on recent.customer_id = sums.customer_id\n",
    )]);
    let rows: Vec<String> = ["o.customer_id", "o.order_id", "o.ordered_at"].map(str::to_owned).into();
    for (column, from) in [
        ("customer_id", vec!["o.customer_id", "o.order_id"]),
        ("total", vec!["o.amount"]),
        ("n", vec![]),
        ("place", vec!["o.customer_id", "o.order_id"]),
        ("last_at", vec!["o.ordered_at"]),
        ("one", vec![]),
    ] {
        let (found, decided) = origins(&shop, column);
        assert_eq!((column, found), (column, from.into_iter().map(str::to_owned).collect()));
        assert_eq!(decided, rows);
    }
    let tree =
        String::from_utf8(succeed(&mut shop.command(&["lineage", "profile.x", "--column", "total"])).stdout).unwrap();
    assert!(tree.contains("└── core.orders.amount\n    └── raw.orders.amount\n"), "{tree}");
    let tree = String::from_utf8(succeed(&mut shop.command(&["lineage", "core.orders"])).stdout).unwrap();
    assert!(tree.contains("├── identity.identifiers\n└── raw.orders\n\nis read by\n└── profile.x\n"), "{tree}");
    let (code, told) = shop.fails(&["lineage", "profile.x", "--column", "totl"]);
    assert!(code == Some(2) && told.contains("has no column `totl`"), "{told}");
}

#[test]
fn the_site_is_the_same_every_time_and_what_people_wrote_is_escaped() {
    let shop = Shop::new(&[(
        "sql/profile/spend.sql",
        &SPEND.replace("Spend of", "<script>alert('x')</script> & spend of").replace("-- CNY", "-- <b>CNY</b>"),
    )]);
    shop.write("sql/profile/defaults.toml", "owner = \"\\\"><img src=x>\"\n");
    let read = |folder: &str| {
        succeed(&mut shop.command(&["docs", "--out", folder]));
        let mut files: Vec<(String, String)> = std::fs::read_dir(shop.path().join(folder))
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap())
            })
            .collect();
        files.sort();
        files
    };
    let site = read("one");
    assert_eq!(site, read("two"));
    let names: Vec<&str> = site.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["core.orders.html", "index.html", "profile.spend.html", "style.css"]);
    for (name, text) in site.iter().filter(|(name, _)| name.ends_with(".html")) {
        assert!(!text.contains("<script") && !text.contains("<img") && !text.contains("<b>"), "{name}");
        assert!(
            !text.contains("http://") || text.matches("http://").count() == text.matches("xmlns=\"http://").count()
        );
        assert!(!text.contains("https://"), "{name} needs the network");
        // What it links to is there.
        for link in text.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(names.contains(&link), "{name} links to {link}");
        }
    }
    let page = &site[2].1;
    for part in
        ["&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; spend of", "has_customer", "raw.orders.amount", "<svg"]
    {
        assert!(page.contains(part) || site[1].1.contains(part), "{part}\n{page}");
    }
}

#[test]
fn status_says_what_is_published_and_whose_inputs_moved_on() {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    assert!(shop.fails(&["status"]).0 == Some(2), "there is no lake");
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    let state = |stage: usize| {
        let output = succeed(&mut shop.command(&["status", "--json"]));
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (status["published"].clone(), status["stages"][stage].clone())
    };
    let (published, spend) = state(1);
    assert!(published.is_null() && spend["state"] == "missing", "{published} {spend}");
    shop.run();
    let (published, spend) = state(1);
    assert!(published["run"] == 1 && published["as_of"] == "2025-06-30T00:00:00Z", "{published}");
    assert_eq!((&spend["state"], &spend["rows"]), (&"fresh".into(), &1.into()), "{spend}");
    assert_eq!(spend["version"], spend["published_version"]);
    assert!(spend["changed_at"].is_string(), "{spend}");

    // Ingestion brings core up to date; what reads it waits for a run.
    shop.orders("b", "o2,M1,2025-06-02T00:00:00Z,5.00\n");
    let (_, spend) = state(1);
    assert_eq!((&spend["state"], &spend["inputs"][0]), (&"stale".into(), &"core.orders".into()), "{spend}");
    let shown = String::from_utf8(succeed(&mut shop.command(&["status"])).stdout).unwrap();
    assert!(shown.contains("run 1 is published") && shown.contains("stale: core.orders moved on"), "{shown}");
}

#[test]
fn a_code_is_explained_with_an_example_and_a_remedy() {
    let shop = Shop::new(&[]);
    let text = String::from_utf8(succeed(&mut shop.command(&["check", "--explain", "e0203"])).stdout).unwrap();
    assert!(text.starts_with("E0203 table not found\n") && text.contains("Remedy: "), "{text}");
    let (code, told) = shop.fails(&["check", "--explain", "E9999"]);
    assert!(code == Some(2) && told.contains("there is no code `E9999`"), "{told}");
}

/// A project of `count` stages: a layer of mapped tables and, above it, profiles that join, number and add up.
fn generated(count: usize) -> Shop {
    let shop = Shop::new(&[]);
    for index in 0..count.saturating_sub(1) {
        let below = if index < 20 { "core.orders".to_owned() } else { format!("profile.s{}", index - 20) };
        shop.write(
            &format!("sql/profile/s{index}.sql"),
            &format!(
                "-- Spend and last order, one row a customer.\n-- @stage      incremental key(customer_id)\n-- @owner      retention\n\
                 -- @expect     fail        has_customer: customer_id is not null\n-- @expect     warn        sane:         amount >= 0\n\
                 with numbered as (\n    select\n        customer_id,\n        order_id,\n        ordered_at,\n        amount,\n\
                 \x20       row_number() over (partition by customer_id order by ordered_at desc, order_id) as number\n    from {below}\n\
                 \x20   where ordered_at <= now()\n),\n\nsums as (\n    select\n        customer_id,\n        sum(amount) as total,\n\
                 \x20       count(*) filter (where ordered_at >= now() - interval '90 days') as orders_90d,\n\
                 \x20       max(ordered_at) as last_at\n    from {below}\n    where customer_id is not null\n    group by customer_id\n)\n\n\
                 select\n    sums.customer_id as customer_id,  -- Unified customer id\n    numbered.order_id as order_id,    -- The last order\n\
                 \x20   sums.last_at as ordered_at,       -- When\n    cast(sums.total + coalesce(numbered.amount, 0) as decimal(12, 2)) as amount, -- CNY\n\
                 \x20   case when sums.orders_90d > {index} then 'often' when sums.orders_90d > 0 then 'seldom' else 'never' end as rhythm\n\
                 from sums\nleft join numbered on numbered.customer_id = sums.customer_id and numbered.number = 1\n"
            ),
        );
    }
    shop
}

#[test]
fn two_hundred_stages_are_checked_in_no_time() {
    let shop = generated(200);
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let began = Instant::now();
            let output = succeed(&mut shop.command(&["check", "--deny-warnings"]));
            assert!(String::from_utf8_lossy(&output.stderr).contains("Checked 200 stages"));
            began.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("200 stages checked in {} to {} ms, the process included", times[0].as_millis(), times[4].as_millis());
    // What is promised is 300 ms on a machine with nothing else to do; other tests run beside this one.
    assert!(times[0] < Duration::from_millis(1500), "{times:?}");
}

#[test]
fn the_site_of_the_shipped_pack_has_a_page_for_every_stage() {
    let folder = tempfile::tempdir().unwrap();
    succeed(holdfast().arg("docs").arg("--out").arg(folder.path()));
    let index = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    for schema in ["core", "profile", "risk", "features", "metric"] {
        for entry in std::fs::read_dir(workspace().join("sql").join(schema)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                let page = format!("{schema}.{}.html", path.file_stem().unwrap().to_string_lossy());
                assert!(folder.path().join(&page).is_file() && index.contains(&page), "{page}");
            }
        }
    }
    let page = std::fs::read_to_string(folder.path().join("core.orders.html")).unwrap();
    assert!(page.contains("personal data") && page.contains("Contract") && page.contains("raw.orders.paid_amount"));
}

/// Customers with their names, which are personal data, and a stage that reads both.
const NAMED: &str = "-- @stage incremental key(customer_id)\n\
    -- @tag pii(name)\n\
    select customer_id, concat('Dear ', min(member)) as name, sum(spend) as spend, count(*) as days\n\
    from profile.days where day <= now() group by customer_id\n";

#[test]
fn a_case_that_is_recorded_passes_and_tells_no_personal_data() {
    let shop = Shop::new(&[
        (
            "sql/profile/days.sql",
            "-- @tag pii(member)\n\
             select o.customer_id, concat('Member-', o.customer_id) as member, date_trunc('day', o.ordered_at) as day, sum(o.amount) as spend\n\
             from core.orders o where o.customer_id is not null group by o.customer_id, date_trunc('day', o.ordered_at)\n",
        ),
        ("sql/profile/named.sql", NAMED),
    ]);
    shop.orders(
        "a",
        "o1,Ada,2025-06-01T00:00:00Z,10.00\no2,Ada,2025-06-02T01:00:00Z,5.00\no3,Bob,2025-06-03T00:00:00Z,1.00\n",
    );
    shop.run();
    let output = succeed(&mut shop.command(&["test", "--record", "profile.named"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("Given profile.days: 3 rows") && said.contains("2 expected rows"), "{said}");
    assert!(!said.contains("not as in the lake"), "{said}");
    let file = shop.path().join("sql/profile/named.cases.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("member_1") && text.contains("Dear member_1") && text.contains("c1 "), "{text}");
    let customers = shop.query("select customer_id from profile.named");
    for customer in &customers {
        assert!(!text.contains(customer["customer_id"].as_str().unwrap()), "{text}");
    }
    let output = succeed(&mut shop.command(&["test", "--select", "profile.named"]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Tested 1 stages, 1 of 1 cases passed"));

    // Another one goes behind it, under another name.
    let (code, said) = shop.fails(&["test", "--record", "profile.named"]);
    assert!(code == Some(2) && said.contains("has a case `as_recorded` already"), "{code:?} {said}");
    let ada = customers[0]["customer_id"].as_str().unwrap();
    succeed(&mut shop.command(&["test", "--record", "profile.named", "--name", "one", "--customer", ada]));
    assert!(std::fs::read_to_string(&file).unwrap().starts_with(&text));

    // A case that no longer holds says so.
    shop.write("sql/profile/named.sql", &NAMED.replace("sum(spend)", "max(spend)"));
    let (_, said) = shop.fails(&["test"]);
    assert!(said.contains("Failed profile.named case as_recorded"), "{said}");
    let (_, said) = shop.fails(&["test", "--record", "profile.named", "--name", "two"]);
    assert!(said.contains("another query than the one that its table was made by"), "{said}");
    shop.write("sql/profile/named.sql", NAMED);
    let (_, said) = shop.fails(&["test", "--record", "profile.named", "--name", "two", "--customer", "nobody"]);
    assert!(said.contains("profile.named has no row of a customer `nobody`"), "{said}");
    assert!(!std::fs::read_to_string(&file).unwrap().contains("two"));
    let (_, said) = shop.fails(&["test", "--record", "core.orders"]);
    assert!(said.contains("identifier_token()"), "{said}");
    let (_, said) = shop.fails(&["test", "--record", "profile.names"]);
    assert!(said.contains("profile.named"), "{said}");
}
