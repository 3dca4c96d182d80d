//! Quarantine through the command line: what it shows, and that a mended contract moves rows to raw, identity and core once each.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use crate::{commits, holdfast_binary, succeed};

pub(crate) const ORDERS: &str = "kind = \"orders\"\npath = \"orders/*.ndjson\"\nformat = \"ndjson\"\nevent_time = \"at\"\n\
                      [columns]\norder_id = \"string\"\nmember = \"string\"\nat = \"timestamp\"\n\
                      status = \"string\"\namount = \"decimal(12,2)\"\n\
                      [[identifiers]]\ntype = \"member_id\"\nvalue = \"member\"\n";
/// What mends [`ORDERS`] for the rows of [`orders`].
const MENDED: (&str, &str) = ("format = \"ndjson\"\n", "format = \"ndjson\"\nnull_values = [\"N/A\"]\n");

/// A project with a pipeline of one stage, a folder of sources and a lake.
pub(crate) struct Shop {
    folder: tempfile::TempDir,
}

impl Shop {
    pub(crate) fn new() -> Self {
        let shop = Self { folder: tempfile::tempdir().unwrap() };
        shop.write("holdfast.toml", "");
        shop.write("pipelines/churn/pipeline.toml", "stages = \"sql\"\n");
        shop.write("pipelines/churn/identity.toml", "priority = [\"member_id\"]\n[types.member_id]\nunique = true\n");
        shop.contract("orders", ORDERS);
        shop.write(
            "sql/core/orders.sql",
            "-- One row an order, at the newest state that arrived.\n\
             -- @expect fail       has_id: order_id is not null\n\
             -- @expect quarantine sane_amount: amount < 1000\n\
             with newest as (\n    select * from raw.orders\n    qualify row_number() over (\n        \
             partition by order_id order by _batch desc, _source_file desc, _source_line desc\n    ) = 1\n)\n\
             select i.customer_id, n.order_id, n.at, n.status, n.amount\nfrom newest n\n\
             left join identity.identifiers i on i.token = identifier_token('member_id', n.member)\n",
        );
        shop
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn contract(&self, source: &str, text: &str) {
        self.write(&format!("pipelines/churn/sources/{source}.toml"), text);
    }

    fn mend(&self) {
        assert!(ORDERS.contains(MENDED.0));
        self.contract("orders", &ORDERS.replacen(MENDED.0, MENDED.1, 1));
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(holdfast_binary());
        command.arg("--project").arg(self.path()).current_dir(self.path());
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "HOLDFAST_LOG", "HOLDFAST_ABORT_AFTER"] {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        succeed(self.command().args(arguments))
    }

    pub(crate) fn ingest(&self) {
        self.run(&["ingest", "--from", "in"]);
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.run(arguments).stdout).unwrap()
    }

    /// The report of one source.
    fn replay(&self, source: &str, arguments: &[&str]) -> Value {
        let report = self.json(&[&["quarantine", "replay", "--source", source, "--json"], arguments].concat());
        report["sources"][0].clone()
    }

    pub(crate) fn query(&self, query: &str) -> Vec<Value> {
        serde_json::from_value(self.json(&["sql", query, "--output", "json"])).unwrap()
    }

    fn number(&self, query: &str) -> i64 {
        let rows = self.query(&format!("select ({query}) as n"));
        rows[0]["n"].as_i64().unwrap()
    }

    /// ING-3 after replays, by the equation that the documentation gives, of a whole source and of each batch.
    fn assert_nothing_is_lost(&self, source: &str) {
        let rows = self.query(&format!(
            "select b.batch, b.rows_read as read, coalesce(r.stored, 0) as stored, coalesce(r.replayed, 0) as replayed, \
             coalesce(q.refused, 0) as refused \
             from metric.ingest_batches b \
             left join (select _batch, count(*) as stored, count(_replay) as replayed from raw.{source} group by _batch) r \
             on r._batch = b.batch \
             left join (select _batch, count(*) as refused from quarantine.{source} group by _batch) q on q._batch = b.batch \
             where b.source = '{source}' and b.outcome = 'stored'"
        ));
        assert!(!rows.is_empty());
        for row in &rows {
            let n = |name: &str| row[name].as_i64().unwrap();
            assert_eq!(n("read"), n("stored") + n("refused") - n("replayed"), "{row}");
        }
        let doubled = format!(
            "select count(*) from (select 1 from raw.{source} group by _batch, _source_file, _source_line having count(*) > 1)"
        );
        assert_eq!(self.number(&doubled), 0);
        let recorded = self.number(&format!(
            "select coalesce(sum(rows_replayed), 0) from metric.ingest_replays where source = '{source}'"
        ));
        assert_eq!(recorded, self.number(&format!("select count(*) from raw.{source} where _replay is not null")));
    }
}

/// `count` orders of a day; every tenth has an amount that is refused until the contract is mended.
fn orders(day: u32, count: u32) -> String {
    (1..=count)
        .map(|n| {
            let amount = if n % 10 == 0 { "\"N/A\"".to_owned() } else { format!("{n}.50") };
            format!(
                "{{\"order_id\":\"{day}-{n}\",\"member\":\"M{day}{n}\",\"at\":\"2026-01-{day:02}T08:00:00Z\",\"status\":\"paid\",\"amount\":{amount}}}\n"
            )
        })
        .collect()
}

#[test]
fn a_mended_contract_moves_its_rows_to_raw_identity_and_core_once() {
    let shop = Shop::new();
    shop.write("in/orders/01.ndjson", orders(1, 30));
    shop.write("in/orders/02.ndjson", orders(2, 20) + "{\"order_id\":\"x\",\"at\":\"yesterday\"}\n");
    shop.ingest();

    let listed = shop.json(&["quarantine", "list", "--json"]);
    let groups = listed["sources"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{listed}");
    assert_eq!(groups[0]["source"], "orders");
    assert_eq!(groups[0]["column"], "amount");
    assert_eq!(groups[0]["reason"], "not a value of type decimal(12,2)");
    assert_eq!(
        (&groups[0]["rows"], &groups[0]["files"], &groups[0]["rows_replayed"]),
        (&json!(5), &json!(2), &json!(0))
    );
    assert_eq!((&groups[1]["column"], &groups[1]["rows"]), (&json!("at"), &json!(1)));

    // Before the contract is mended nothing fits, and nothing is committed.
    let before = commits(shop.path());
    let report = shop.replay("orders", &[]);
    assert_eq!((&report["rows_moved"], &report["rows_kept"]), (&json!(0), &json!(6)), "{report}");
    assert_eq!(commits(shop.path()), before);

    shop.mend();
    let report = shop.replay("orders", &["--dry-run"]);
    assert_eq!((&report["rows_moved"], &report["rows_kept"]), (&json!(5), &json!(1)), "{report}");
    assert_eq!(commits(shop.path()), before, "a dry run changes nothing");

    let report = shop.replay("orders", &[]);
    assert_eq!((&report["rows_moved"], &report["rows_kept"]), (&json!(5), &json!(1)), "{report}");
    assert_eq!(report["kept"][0]["column"], "at");
    assert_eq!(report["kept"][0]["reason"], "not a timestamp such as 2026-01-31T08:00:00Z");
    assert_eq!(
        (&report["kept"][0]["first_file"], &report["kept"][0]["first_line"]),
        (&json!("orders/02.ndjson"), &json!(21))
    );
    let moved = shop.query(
        "select _source_file as file, _source_line as line, _batch as batch, _replay as replay, amount, member \
         from raw.orders where _replay is not null order by file, line",
    );
    let places: Vec<(&str, i64)> =
        moved.iter().map(|row| (row["file"].as_str().unwrap(), row["line"].as_i64().unwrap())).collect();
    assert_eq!(
        places,
        [
            ("orders/01.ndjson", 10),
            ("orders/01.ndjson", 20),
            ("orders/01.ndjson", 30),
            ("orders/02.ndjson", 10),
            ("orders/02.ndjson", 20)
        ]
    );
    assert!(moved.iter().all(|row| row["batch"] == 1 && row["replay"] == 1 && row["amount"].is_null()), "{moved:?}");
    // Each is in core once, under a customer that only it brought.
    let core = shop.query("select order_id, customer_id from core.orders where amount is null order by order_id");
    assert_eq!(core.len(), 5, "{core:?}");
    assert!(core.iter().all(|row| row["customer_id"].is_string()), "{core:?}");
    assert_eq!(shop.number("select count(*) from core.orders"), 50);
    assert_eq!(shop.number("select cast(sum(records) as bigint) from identity.edges"), 50);
    shop.assert_nothing_is_lost("orders");

    let after = commits(shop.path());
    let report = shop.replay("orders", &[]);
    assert_eq!((&report["rows_moved"], &report["rows_kept"]), (&json!(0), &json!(1)), "{report}");
    shop.ingest();
    assert_eq!(commits(shop.path()), after, "with nothing new nothing is committed");
    let listed = shop.json(&["quarantine", "list", "--json"]);
    assert_eq!(listed["sources"][0]["rows_replayed"], 5, "{listed}");
}

#[test]
fn ing_2_a_replay_that_is_killed_after_any_step_moves_each_row_once() {
    for step in ["staged", "moved", "recorded"] {
        let shop = Shop::new();
        shop.write("in/orders/01.ndjson", orders(1, 40));
        shop.ingest();
        shop.mend();
        let killed = shop.command().args(["quarantine", "replay", "--abort-after", step]).output().unwrap();
        assert!(killed.status.code().is_none(), "{step}: died of a signal, not of an error");
        let expected = if step == "staged" { 4 } else { 0 };
        assert_eq!(shop.replay("orders", &[])["rows_moved"], expected, "{step}");
        assert_eq!(shop.number("select count(*) from raw.orders where _replay is not null"), 4, "{step}");
        assert_eq!(shop.number("select count(*) from core.orders"), 40, "{step}");
        assert_eq!(shop.number("select cast(sum(records) as bigint) from identity.edges"), 40, "{step}");
        shop.assert_nothing_is_lost("orders");
    }
}

#[test]
fn ing_2_several_processes_that_replay_at_once_move_each_row_once() {
    let shop = Shop::new();
    shop.write("in/orders/01.ndjson", orders(1, 300));
    shop.ingest();
    shop.mend();
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = shop.command();
            command.args(["quarantine", "replay", "--raw-only", "--json"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let moved: i64 = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            report["sources"][0]["rows_moved"].as_i64().unwrap()
        })
        .sum();
    assert_eq!(moved, 30);
    shop.assert_nothing_is_lost("orders");
}

#[test]
fn a_replay_can_be_narrowed_to_a_file_a_batch_or_a_reason() {
    let shop = Shop::new();
    shop.write("in/orders/01.ndjson", orders(1, 30));
    shop.ingest();
    shop.write("in/orders/02.ndjson", orders(2, 30));
    shop.write("in/orders/03.ndjson", orders(3, 30));
    shop.ingest();
    shop.mend();
    assert_eq!(shop.replay("orders", &["--reason", "no such reason"])["rows_moved"], 0);
    assert_eq!(shop.replay("orders", &["--file", "orders/02.ndjson"])["rows_moved"], 3);
    assert_eq!(shop.replay("orders", &["--batch", "1"])["rows_moved"], 3);
    assert_eq!(shop.replay("orders", &["--reason", "not a value of type decimal(12,2)"])["rows_moved"], 3);
    let replays = shop.query("select replay, batch, rows_replayed as n from metric.ingest_replays order by replay");
    assert_eq!(
        replays,
        [
            json!({"replay": 1, "batch": 2, "n": 3}),
            json!({"replay": 2, "batch": 1, "n": 3}),
            json!({"replay": 3, "batch": 2, "n": 3})
        ]
    );
    shop.assert_nothing_is_lost("orders");
}

/// A replayed row stands where it came: what arrived later stays the newer state.
#[test]
fn a_replayed_row_does_not_undo_what_came_after_it() {
    let shop = Shop::new();
    let order = |status: &str, amount: &str| {
        format!(
            "{{\"order_id\":\"a\",\"member\":\"M\",\"at\":\"2026-01-01T00:00:00Z\",\"status\":\"{status}\",\"amount\":{amount}}}\n"
        )
    };
    shop.write("in/orders/01.ndjson", order("paid", "\"N/A\"") + &order("other", "1"));
    shop.ingest();
    shop.write("in/orders/02.ndjson", order("shipped", "2.00"));
    shop.ingest();
    shop.mend();
    assert_eq!(shop.replay("orders", &[])["rows_moved"], 1);
    assert_eq!(shop.query("select status from core.orders"), [json!({"status": "shipped"})]);
    assert_eq!(shop.number("select count(*) from raw.orders"), 3);
}

#[test]
fn rows_of_an_abandoned_batch_are_neither_listed_nor_moved() {
    let shop = Shop::new();
    shop.write("in/orders/01.ndjson", orders(1, 30));
    let killed =
        shop.command().args(["ingest", "--from", "in", "--abort-after", "quarantine_committed"]).output().unwrap();
    assert!(killed.status.code().is_none());
    shop.mend();
    // Its end is open: nobody knows whether its other rows will be stored.
    let report = shop.replay("orders", &[]);
    assert_eq!((&report["rows_moved"], &report["rows_open"]), (&json!(0), &json!(3)), "{report}");

    shop.contract("orders", ORDERS);
    shop.write("in/orders/01.ndjson", orders(1, 50));
    shop.ingest();
    assert_eq!(shop.number("select count(*) from quarantine.orders"), 8);
    assert_eq!(shop.json(&["quarantine", "list", "--json"])["sources"][0]["rows"], 5);
    shop.mend();
    assert_eq!(shop.replay("orders", &[])["rows_moved"], 5);
    assert_eq!(shop.number("select count(*) from raw.orders"), 50);
    shop.assert_nothing_is_lost("orders");
}

#[test]
fn personal_data_is_shown_on_request_only_and_stages_are_listed() {
    let shop = Shop::new();
    shop.write(
        "in/orders/01.ndjson",
        "{\"order_id\":\"o1\",\"member\":\"Zoë Nobody\",\"at\":\"then\"}\n\
         {\"order_id\":\"o2\",\"member\":\"M2\",\"at\":\"2026-01-01T00:00:00Z\",\"amount\":5000}\n",
    );
    shop.ingest();
    let show = |arguments: &[&str]| {
        let output = shop.run(&[&["quarantine", "show", "orders"], arguments].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    let masked = show(&[]);
    assert!(masked.contains("orders/01.ndjson") && masked.contains("not a timestamp"), "{masked}");
    assert!(masked.contains("{\"xxxxx_xx\":\"x0\",\"xxxxxx\":\"xxx xxxxxx\",\"xx\":\"xxxx\"}"), "{masked}");
    assert!(!show(&["--json"]).contains("Nobody"));
    assert!(show(&["--reveal"]).contains("Zoë Nobody"));
    assert!(show(&["--column", "amount"]).contains("no such rows"));

    let listed = shop.json(&["quarantine", "list", "--json"]);
    assert_eq!(
        listed["stages"],
        json!([{"table": "quarantine.core_orders", "expectations": "sane_amount", "rows": 1}])
    );
    let text = String::from_utf8(shop.run(&["quarantine", "list"]).stdout).unwrap();
    assert!(text.contains("quarantine.core_orders") && text.contains("not a timestamp"), "{text}");
    assert!(!text.contains("Nobody"));
    let none = shop.json(&["quarantine", "list", "--json", "--since", "2100-01-01T00:00:00Z"]);
    assert_eq!(none["sources"], json!([]));
    assert_eq!(shop.json(&["quarantine", "list", "--json", "--since", "1h"])["sources"][0]["rows"], 1);

    let wrong = shop.command().args(["quarantine", "show", "oders"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("there are orders"));
}

fn write_parquet(path: &Path, rows: &RecordBatch) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(path).unwrap(), rows.schema(), None).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
}

#[test]
fn rows_of_every_format_are_read_again_as_they_came_or_say_why_not() {
    let shop = Shop::new();
    let columns = "[columns]\nid = \"string\"\nname = \"string\"\nn = \"int32\"\n";
    let contract = |format: &str, folder: &str, more: &str| {
        format!(
            "kind = \"k\"\npath = \"{folder}/*\"\nformat = \"{format}\"\nmax_quarantine_share = 1.0\n{more}\n{columns}"
        )
    };
    let mended = "null_values = [\"N/A\"]";
    let long = "x".repeat(70_000);
    let gb18030 = |text: &str| encode_gb18030(text);

    // (source, format, what the contract says at first and later, content, rows moved, why others stay)
    shop.write("in/header/1.csv", format!("n,extra,id,name\nN/A,e,a,\"x,1\"\n2,e,b,y\nN/A,e,{long},z\nN/A,e,d\n"));
    shop.write("in/bare/1.csv", "a;x;N/A\nb;y;2\n");
    shop.write("in/chinese/1.csv", [gb18030("id,name,n\na,雷,N/A\nb,"), vec![0xFF, b','], b"1\n".to_vec()].concat());
    shop.write("in/bytes/1.csv", b"id,name,n\na,\xFF,1\nb,y,N/A\n".as_slice());
    shop.write("in/quoted/1.csv", "id,name,n\na,\"x\ny\",N/A\nb,y,2\n");
    shop.write("in/lines/1.ndjson", "{\"id\":\"a\",\"name\":\"雷\",\"n\":\"N/A\"}\n{\"id\":\"b\",\"n\":1.5}\n");
    let rows = RecordBatch::try_from_iter(vec![
        ("n", Arc::new(StringArray::from(vec!["N/A", "2", "three"])) as ArrayRef),
        ("x", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
        ("name", Arc::new(StringArray::from(vec![Some("x"), None, Some("z")])) as ArrayRef),
        ("id", Arc::new(Int64Array::from(vec![1_i64 << 60, 2, 3])) as ArrayRef),
    ])
    .unwrap();
    write_parquet(&shop.path().join("in/rows/1.parquet"), &rows);
    let sources = [
        ("header", "csv", "", mended),
        (
            "bare",
            "csv",
            "header = false\ndelimiter = \";\"",
            "header = false\ndelimiter = \";\"\nnull_values = [\"N/A\"]",
        ),
        ("chinese", "csv", "encoding = \"gb18030\"", "encoding = \"gb18030\"\nnull_values = [\"N/A\"]"),
        ("bytes", "csv", "", mended),
        ("quoted", "csv", "quoted_newlines = true", "quoted_newlines = true\nnull_values = [\"N/A\"]"),
        ("lines", "ndjson", "", mended),
        ("rows", "parquet", "", mended),
    ];
    // Where CSV has text for everything, the others may have text for a decimal, but not for an integer.
    let contract = |format: &str, folder: &str, more: &str| {
        let text = contract(format, folder, more);
        if format != "csv" { text.replace("n = \"int32\"", "n = \"decimal(4,0)\"") } else { text }
    };
    for (source, format, before, _) in sources {
        shop.contract(source, &contract(format, source, before));
    }
    std::fs::create_dir_all(shop.path().join("in/orders")).unwrap();
    shop.run(&["ingest", "--from", "in", "--raw-only"]);
    for (source, format, _, after) in sources {
        shop.contract(source, &contract(format, source, after));
    }

    let kept_in_part =
        "only a part of the row was kept, since it was too long or no valid text: deliver it again in a file";
    let check = |source: &str, moved: i64, kept: &[(&str, i64)]| {
        let report = shop.replay(source, &["--raw-only"]);
        assert_eq!(report["rows_moved"], moved, "{source}: {report}");
        let reasons: Vec<(&str, i64)> = report["kept"]
            .as_array()
            .unwrap()
            .iter()
            .map(|kept| (kept["reason"].as_str().unwrap(), kept["rows"].as_i64().unwrap()))
            .collect();
        assert_eq!(reasons, kept, "{source}");
        shop.assert_nothing_is_lost(source);
        shop.query(&format!("select id, name, n from raw.{source} where _replay is not null order by id"))
    };
    assert_eq!(
        check("header", 1, &[("3 fields where 4 are expected", 1), (kept_in_part, 1)]),
        [json!({"id": "a", "name": "x,1", "n": null})]
    );
    assert_eq!(check("bare", 1, &[]), [json!({"id": "a", "name": "x", "n": null})]);
    assert_eq!(check("chinese", 1, &[(kept_in_part, 1)]), [json!({"id": "a", "name": "雷", "n": null})]);
    assert_eq!(check("bytes", 1, &[(kept_in_part, 1)]), [json!({"id": "b", "name": "y", "n": null})]);
    assert_eq!(check("quoted", 1, &[]), [json!({"id": "a", "name": "x\ny", "n": null})]);
    assert_eq!(check("lines", 1, &[("has more than 0 decimals", 1)]), [json!({"id": "a", "name": "雷", "n": null})]);
    assert_eq!(
        check("rows", 1, &[("not a value of type decimal(4,0)", 1)]),
        [json!({"id": "1152921504606846976", "name": "x", "n": null})]
    );
}

#[test]
fn a_row_that_json_cannot_spell_is_not_moved_as_another() {
    let shop = Shop::new();
    let contract = |columns: &str| {
        format!(
            "kind = \"k\"\npath = \"m/*\"\nformat = \"parquet\"\nmax_quarantine_share = 1.0\n[columns]\nid = \"int64\"\n{columns}"
        )
    };
    shop.contract("measures", &contract("x = \"decimal(4,2)\"\n"));
    let rows = RecordBatch::try_from_iter(vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
        ("x", Arc::new(Float64Array::from(vec![1.25, f64::NAN, 12345.5])) as ArrayRef),
    ])
    .unwrap();
    write_parquet(&shop.path().join("in/m/1.parquet"), &rows);
    shop.run(&["ingest", "--from", "in", "--raw-only", "--source", "measures"]);
    // A column keeps its type: the wider one has another name.
    let wide = "wide = { type = \"decimal(12,2)\", from = \"x\" }\n";
    // What was not in the contract then was not read then: it is not null, it is unknown.
    shop.contract("measures", &contract(&format!("{wide}more = \"string\"\n")));
    let report = shop.replay("measures", &["--raw-only"]);
    assert_eq!((&report["rows_moved"], &report["rows_kept"]), (&json!(0), &json!(2)), "{report}");
    assert!(report["kept"].to_string().contains("the file has no column `more`"), "{report}");

    shop.contract("measures", &contract(wide));
    let report = shop.replay("measures", &["--raw-only"]);
    assert_eq!((&report["rows_moved"], &report["rows_kept"]), (&json!(1), &json!(1)), "{report}");
    let moved = shop.query("select id, cast(wide as varchar) as wide from raw.measures where _replay = 1");
    assert_eq!(moved, [json!({"id": 3, "wide": "12345.50"})]);
}

fn encode_gb18030(text: &str) -> Vec<u8> {
    // 雷 is the only character beyond ASCII here.
    text.chars().flat_map(|c| if c == '雷' { vec![0xC0, 0xD7] } else { vec![u8::try_from(c).unwrap()] }).collect()
}
