//! Contracts through the front door: what tables promise, and that it is kept.

use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use chrono::{TimeZone, Utc};
use holdfast_lake::{Lake, LakeSettings, StoreOptions, TableSpec};
use holdfast_types::{FixedClock, TableName};

use crate::stages::Shop;
use crate::{commits, holdfast, holdfast_binary, succeed, workspace};

const ORDERS_SQL: &str = "-- Orders come once.\n-- @stage full\n\
    select i.customer_id, o.order_id, o.at as ordered_at, o.amount, o.status\nfrom raw.orders o\n\
    left join identity.identifiers i on i.token = identifier_token('member_id', o.member)\n";

const ORDERS_CONTRACT: &str = "version = 1\ngrain = \"an order\"\ndescription = \"As the shop has it.\"\nkey = [\"order_id\"]\n\
    event_time = \"ordered_at\"\nidentifiers = [\"member_id\"]\n\n[columns]\n\
    customer_id = { type = \"string\", meaning = \"Unified customer id\" }\n\
    order_id = { type = \"string\", meaning = \"The shop's key\" }\n\
    ordered_at = { type = \"timestamp\", meaning = \"When it was placed\" }\n\
    amount = { type = \"decimal(12,2)\", unit = \"CNY\", required = true, meaning = \"What was paid\" }\n\
    status = { type = \"string\", values = [\"paid\", \"returned\"], meaning = \"State\" }\n";

const ORDERS_SOURCE: &str = "kind = \"orders\"\npath = \"orders/*.csv\"\nformat = \"csv\"\nevent_time = \"at\"\n\
    [columns]\norder_id = \"string\"\nmember = \"string\"\nat = \"timestamp\"\namount = \"decimal(12,2)\"\n\
    status = \"string\"\n[[identifiers]]\ntype = \"member_id\"\nvalue = \"member\"\n";

/// A shop whose orders have a contract.
fn shop() -> Shop {
    Shop::new(&[
        ("pipelines/churn/sources/orders.toml", ORDERS_SOURCE),
        ("sql/core/orders.sql", ORDERS_SQL),
        ("sql/core/orders.contract.toml", ORDERS_CONTRACT),
    ])
}

fn ingest(shop: &Shop, name: &str, rows: &str) -> Command {
    shop.write(&format!("in/orders/{name}.csv"), &format!("order_id,member,at,amount,status\n{rows}"));
    shop.command(&["ingest", "--from", "in", "--as-of", "2025-06-30T00:00:00Z"])
}

#[test]
fn a_stage_that_does_not_keep_its_contract_is_told_before_anything_is_written() {
    let shop = shop();
    succeed(&mut shop.command(&["test"]));
    shop.write("in/orders/a.csv", "order_id,member,at,amount,status\no1,M1,2025-06-01T00:00:00Z,1.00,paid\n");
    succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));
    let before = commits(&shop.path().join("lake"));
    for (from, to, place, told) in [
        ("decimal(12,2)", "decimal(10,2)", "12:19", "`amount` is decimal(10,2) here and decimal(12,2) in the stage"),
        ("status = {", "state = {", "13:1", "it makes `status`"),
        ("[\"member_id\"]", "[\"member_id\", \"phone\"]", "6:15", "no source of the table brings `phone`"),
        ("unit = \"CNY\", ", "", "12:1", "`amount` has no unit"),
        ("grain", "grian", "2:1", "did you mean `grain`?"),
    ] {
        assert!(ORDERS_CONTRACT.contains(from));
        shop.write("sql/core/orders.contract.toml", &ORDERS_CONTRACT.replacen(from, to, 1));
        let (code, said) = shop.fails(&["test"]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(&format!("orders.contract.toml:{place}")) && said.contains(told), "{said}");
        let (code, said) = shop.fails(&["run"]);
        assert!(code == Some(2) && said.contains(told), "{said}");
    }
    assert_eq!(before, commits(&shop.path().join("lake")));
}

#[test]
fn there_is_one_place_for_what_a_column_means() {
    let shop = shop();
    for (stage, told) in [
        (ORDERS_SQL.replace("o.status\n", "o.status -- The state\n"), "the comment behind `status`"),
        (ORDERS_SQL.replace("-- @stage full", "-- @tag pii(status)"), "`@tag pii` says again"),
        (ORDERS_SQL.replace("-- @stage full", "-- @expect fail key_unique: true"), "`key_unique` is one that"),
    ] {
        shop.write("sql/core/orders.sql", &stage);
        let (code, said) = shop.fails(&["test"]);
        assert!(code == Some(2) && said.contains("E0504") && said.contains(told), "{said}");
    }
    shop.write("sql/core/orders.sql", ORDERS_SQL);
    succeed(&mut shop.command(&["test"]));
    shop.write("sql/core/odrers.contract.toml", ORDERS_CONTRACT);
    let (_, said) = shop.fails(&["test"]);
    assert!(said.contains("E0501") && said.contains("odrers.contract.toml"), "{said}");
}

#[test]
fn rows_that_break_the_contract_are_set_aside_and_a_key_there_twice_fails() {
    let shop = shop();
    let rows = "o1,M1,2025-06-01T00:00:00Z,10.00,paid\no2,M2,,3.00,paid\no3,M2,2025-06-02T00:00:00Z,,paid\n\
                o4,M2,2025-06-02T00:00:00Z,1.00,lost\no5,M2,2025-06-02T00:00:00Z,1.00,\n";
    succeed(&mut ingest(&shop, "a", rows));
    let kept = shop.query("select order_id from core.orders order by order_id");
    assert_eq!(kept.iter().map(|row| row["order_id"].as_str().unwrap()).collect::<Vec<_>>(), ["o1", "o5"]);
    let refused = shop.query("select order_id, _expectations from quarantine.core_orders order by order_id");
    let refused: Vec<(&str, &str)> =
        refused.iter().map(|row| (row["order_id"].as_str().unwrap(), row["_expectations"].as_str().unwrap())).collect();
    assert_eq!(refused, [("o2", "ordered_at_present"), ("o3", "amount_present"), ("o4", "status_known")]);

    let output = ingest(&shop, "b", "o1,M1,2025-06-01T00:00:00Z,10.00,paid\n").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("expectation `key_unique` (no two rows have the same order_id) failed for 1 of"), "{said}");
    assert_eq!(shop.query("select count(*) as n from core.orders")[0]["n"], 2);
}

#[test]
fn the_table_says_what_the_contract_says() {
    let shop = shop();
    succeed(&mut ingest(&shop, "a", "o1,M1,2025-06-01T00:00:00Z,10.00,paid\n"));
    let log = std::fs::read_dir(shop.path().join("lake/core/orders/_delta_log")).unwrap();
    let log: String = log.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default()).collect();
    assert!(log.contains("One row is an order. As the shop has it."), "{log}");
    assert!(log.contains("What was paid, CNY"), "{log}");
}

#[test]
fn personal_data_of_a_source_has_to_be_named_in_the_contract() {
    let shop = shop();
    shop.write(
        "pipelines/churn/sources/orders.toml",
        &ORDERS_SOURCE.replace("status = \"string\"", "status = { type = \"string\", pii = true }"),
    );
    let (code, said) = shop.fails(&["test"]);
    assert!(code == Some(2) && said.contains("E0514") && said.contains("orders.contract.toml:13:1"), "{said}");
    shop.write("sql/core/orders.contract.toml", &ORDERS_CONTRACT.replace("values =", "pii = true, values ="));
    succeed(&mut shop.command(&["test"]));
}

/// The pages in docs/ are those that the contracts give: whoever changes one writes the other.
#[test]
fn the_pages_of_contracts_are_up_to_date() {
    for (pipeline, page) in [
        ("churn", "docs/contracts.md"),
        ("complete_journey", "docs/contracts_complete_journey.md"),
        ("uci_online_retail", "docs/contracts_uci_online_retail.md"),
    ] {
        let key = tempfile::tempdir().unwrap();
        let mut command = holdfast();
        command.args(["--pipeline", pipeline, "--identity-key"]).arg(key.path().join("identity.key"));
        succeed(command.args(["contracts", "--check"]).arg(workspace().join(page)));
    }
    // The check can fail.
    let shop = shop();
    let page = shop.write("page.md", "");
    succeed(&mut shop.command(&["contracts", "--write", "page.md"]));
    let mut check = Command::new(holdfast_binary());
    let check = check.arg("--project").arg(shop.path()).args(["contracts", "--check"]).arg(page);
    succeed(check);
    shop.write("sql/core/orders.contract.toml", &ORDERS_CONTRACT.replace("What was paid", "What the customer paid"));
    let output = check.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("page.md:") && said.contains("--write"), "{said}");
}

#[test]
fn a_contract_does_not_change_without_a_version_and_does_not_narrow_without_a_way() {
    let shop = shop();
    succeed(&mut ingest(&shop, "a", "o1,M1,2025-06-01T00:00:00Z,10.00,paid\n"));
    let before = commits(&shop.path().join("lake/core"));
    let run = ["run", "--as-of", "2025-06-30T00:00:00Z"];

    // Other words are no other contract.
    shop.write("sql/core/orders.contract.toml", &ORDERS_CONTRACT.replace("The shop's key", "The key of the shop"));
    succeed(&mut shop.command(&run));
    assert_eq!(before, commits(&shop.path().join("lake/core")));

    let wider = ORDERS_CONTRACT.replace("decimal(12,2)", "decimal(18,2)");
    let wider_sql = ORDERS_SQL.replace("o.amount,", "cast(o.amount as decimal(18, 2)) as amount,");
    shop.write("sql/core/orders.sql", &wider_sql);
    shop.write("sql/core/orders.contract.toml", &wider);
    let (code, said) = shop.fails(&run);
    assert!(code == Some(2) && said.contains("E0521") && said.contains("orders.contract.toml:1:11"), "{said}");
    assert!(said.contains("`amount` was decimal(12,2) and is decimal(18,2)"), "{said}");

    let raised = wider.replace("version = 1", "version = 2");
    shop.write("sql/core/orders.contract.toml", &raised);
    let (code, said) = shop.fails(&run);
    assert!(code == Some(2) && said.contains("E0522") && said.contains("from = 1"), "{said}");
    assert_eq!(before, commits(&shop.path().join("lake/core")));

    shop.write(
        "sql/core/orders.contract.toml",
        &raised.replace("[columns]", "[migration]\nfrom = 1\nhow = \"rebuild\"\n\n[columns]"),
    );
    let output = succeed(&mut shop.command(&run));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Migrates core.orders  contract 1 → 2: `amount` was decimal(12,2)"), "{said}");
    let types = shop.query("select arrow_typeof(amount) as t from core.orders");
    assert_eq!(types[0]["t"], "Decimal128(18, 2)");

    // Once is enough, and the lake does not go back.
    let after = commits(&shop.path().join("lake/core"));
    let output = succeed(&mut shop.command(&run));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("Migrates"));
    assert_eq!(after, commits(&shop.path().join("lake/core")));
    shop.write("sql/core/orders.sql", ORDERS_SQL);
    shop.write("sql/core/orders.contract.toml", ORDERS_CONTRACT);
    let (code, said) = shop.fails(&run);
    assert!(code == Some(2) && said.contains("E0523") && said.contains("made under version 2"), "{said}");
}

#[test]
fn what_a_contract_adds_applies_by_itself_under_a_new_version() {
    let shop = shop();
    succeed(&mut ingest(&shop, "a", "o1,M1,2025-06-01T00:00:00Z,10.00,paid\no2,M1,2025-06-01T00:00:00Z,1.00,lost\n"));
    assert_eq!(shop.query("select count(*) as n from core.orders")[0]["n"], 1);
    shop.write("sql/core/orders.sql", &ORDERS_SQL.replace("o.status\n", "o.status, o.member\n"));
    let more = ORDERS_CONTRACT.replace("version = 1", "version = 2").replace("\"returned\"", "\"returned\", \"lost\"")
        + "member = { type = \"string\", meaning = \"Member number\" }\n";
    shop.write("sql/core/orders.contract.toml", &more);
    let output = succeed(&mut shop.command(&["run", "--as-of", "2025-06-30T00:00:00Z"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("contract 1 → 2") && said.contains("`member` string is new"), "{said}");
    let orders = shop.query("select order_id, member from core.orders order by order_id");
    assert_eq!(orders.len(), 2);
    assert_eq!(orders[1]["member"], "M1");
}

#[test]
fn a_column_of_raw_keeps_its_type_and_the_contract_is_told_where() {
    let shop = shop();
    succeed(&mut ingest(&shop, "a", "o1,M1,2025-06-01T00:00:00Z,10.00,paid\n"));
    let before = commits(&shop.path().join("lake"));
    let sources = "pipelines/churn/sources/orders.toml";
    for (from, to, place, told) in [
        ("decimal(12,2)", "decimal(10,2)", "9:10", "`amount` is decimal(12,2) in raw.orders and decimal(10,2) here"),
        ("decimal(12,2)", "float64", "9:10", "`amount_2 = { type = \"float64\", from = \"amount\" }`"),
        ("at = \"timestamp\"", "at = { type = \"date\" }", "8:15", "`at` is timestamp in raw.orders and date here"),
    ] {
        shop.write(sources, &ORDERS_SOURCE.replace(from, to));
        shop.write("in/orders/b.csv", "order_id,member,at,amount,status\no2,M1,2025-06-01T00:00:00Z,1.00,paid\n");
        let (code, said) = shop.fails(&["ingest", "--from", "in", "--raw-only"]);
        assert!(code == Some(2) && said.contains(&format!("orders.toml:{place}: ")) && said.contains(told), "{said}");
    }
    assert_eq!(before, commits(&shop.path().join("lake")));

    // The remedy: a new name for what comes from now on; the old column keeps what came before.
    let line = "amount_2 = { type = \"float64\", from = \"amount\" }";
    shop.write(sources, &ORDERS_SOURCE.replace("amount = \"decimal(12,2)\"", line));
    succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));
    let rows = shop.query("select order_id, amount, amount_2 from raw.orders order by order_id");
    assert_eq!((rows[0]["amount"].to_string(), rows[0]["amount_2"].is_null()), ("10.0".to_owned(), true));
    assert_eq!((rows[1]["amount"].is_null(), rows[1]["amount_2"].to_string()), (true, "1.0".to_owned()));
}

#[test]
fn fields_outside_the_contract_are_kept_told_and_become_a_column_later() {
    let shop = shop();
    let source = ORDERS_SOURCE.replace("orders/*.csv\"\nformat = \"csv\"", "orders/*.ndjson\"\nformat = \"ndjson\"");
    shop.write("pipelines/churn/sources/orders.toml", &source);
    let order = |id: &str, more: &str| {
        format!(
            "{{\"order_id\":\"{id}\",\"member\":\"M1\",\"at\":\"2025-06-01T00:00:00Z\",\"amount\":10.00,\"status\":\"paid\"{more}}}\n"
        )
    };
    let first = [
        order("o1", ",\"colour\":\"red\",\"size\":4.50"),
        order("o2", ",\"colour\":null"),
        order("o3", ",\"colour\":\"blue\""),
    ];
    shop.write("in/orders/a.ndjson", &first.concat());
    let ingest = ["ingest", "--from", "in", "--as-of", "2025-06-30T00:00:00Z"];
    let output = succeed(&mut shop.command(&ingest));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("outside the contract are kept in raw.orders._unknown: colour (2 rows), size (1 rows)"),
        "{said}"
    );
    let kept = shop.query("select _unknown as kept from raw.orders order by order_id");
    let kept: Vec<Option<&str>> = kept.iter().map(|row| row["kept"].as_str()).collect();
    assert_eq!(kept, [Some("{\"colour\":\"red\",\"size\":4.50}"), None, Some("{\"colour\":\"blue\"}")]);
    let noted = shop.query("select source, batch, field, rows from metric.ingest_unknown_fields order by field");
    assert_eq!(noted.len(), 2);
    assert_eq!((noted[0]["field"].as_str(), noted[0]["rows"].as_i64()), (Some("colour"), Some(2)));

    // It becomes a column: new rows fill it, old ones are filled from what was kept.
    shop.write(
        "pipelines/churn/sources/orders.toml",
        &source.replace("status = \"string\"\n", "status = \"string\"\ncolour = \"string\"\nsize = \"decimal(6,2)\"\n"),
    );
    let sql = ORDERS_SQL.replace(
        "o.status\n",
        "o.status,\n    coalesce(o.colour, json_field(o._unknown, 'colour')) as colour,\n    \
         coalesce(o.size, cast(json_field(o._unknown, 'size') as decimal(6, 2))) as size\n",
    );
    shop.write("sql/core/orders.sql", &sql);
    let contract = ORDERS_CONTRACT.replace("version = 1", "version = 2")
        + "colour = { type = \"string\", meaning = \"Colour\" }\nsize = { type = \"decimal(6,2)\", unit = \"EU\", meaning = \"Size\" }\n";
    shop.write("sql/core/orders.contract.toml", &contract);
    shop.write("in/orders/b.ndjson", &order("o4", ",\"colour\":\"green\",\"size\":3"));
    let output = succeed(&mut shop.command(&ingest));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("outside the contract"));
    let rows = shop.query("select colour, size from core.orders order by order_id");
    let rows: Vec<(Option<&str>, Option<f64>)> =
        rows.iter().map(|row| (row["colour"].as_str(), row["size"].as_f64())).collect();
    assert_eq!(rows, [(Some("red"), Some(4.5)), (None, None), (Some("blue"), None), (Some("green"), Some(3.0))]);
}

#[test]
fn further_columns_of_csv_and_parquet_files_are_kept_too() {
    let shop = shop();
    shop.write(
        "in/orders/a.csv",
        "order_id,colour,member,at,amount,status,\"say \"\"x\"\"\"\no1,\"r,d\",M1,2025-06-01T00:00:00Z,1.00,paid,\no2,,M1,2025-06-01T00:00:00Z,1.00,paid,\no3,,M1,2025-06-01T00:00:00Z,x,paid,lost\n",
    );
    let output = succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("raw.orders._unknown: colour (1 rows)") && !said.contains("say"), "{said}");
    let kept = shop.query("select _unknown as kept from raw.orders order by order_id");
    assert_eq!(kept.iter().map(|row| row["kept"].as_str()).collect::<Vec<_>>(), [Some("{\"colour\":\"r,d\"}"), None]);

    shop.write(
        "pipelines/churn/sources/orders.toml",
        &ORDERS_SOURCE.replace("orders/*.csv\"\nformat = \"csv\"", "parquet/*.parquet\"\nformat = \"parquet\""),
    );
    let text = |values: [Option<&str>; 3]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let at = TimestampMicrosecondArray::from(vec![1_748_736_000_000_000; 3]).with_timezone("UTC");
    let batch = RecordBatch::try_from_iter(vec![
        ("order_id", text([Some("p1"), Some("p2"), Some("p3")])),
        ("member", text([Some("M1"); 3])),
        ("at", Arc::new(at) as ArrayRef),
        ("amount", text([Some("1.00"), Some("broken"), Some("2.00")])),
        ("status", text([Some("paid"); 3])),
        ("weight", Arc::new(Int32Array::from(vec![Some(7), Some(8), None])) as ArrayRef),
    ])
    .unwrap();
    std::fs::create_dir_all(shop.path().join("in/parquet")).unwrap();
    let file = std::fs::File::create(shop.path().join("in/parquet/a.parquet")).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));
    let kept =
        shop.query("select order_id, _unknown as kept from raw.orders where order_id like 'p%' order by order_id");
    let kept: Vec<(&str, Option<&str>)> =
        kept.iter().map(|row| (row["order_id"].as_str().unwrap(), row["kept"].as_str())).collect();
    assert_eq!(kept, [("p1", Some("{\"weight\":7}")), ("p3", None)]);
    let noted = shop.query("select field, rows from metric.ingest_unknown_fields order by field");
    assert_eq!(noted.iter().map(|row| row["rows"].as_i64().unwrap()).collect::<Vec<_>>(), [1, 1]);
}

#[tokio::test]
async fn what_is_kept_has_no_statistics_and_a_lake_from_before_gains_the_column() {
    let shop = shop();
    // A table as it was made before such fields were kept.
    let clock = Arc::new(FixedClock(Utc.with_ymd_and_hms(2025, 1, 1, 0, 0, 0).unwrap()));
    let lake =
        Lake::create_or_open("lake", shop.path(), &StoreOptions::new(), LakeSettings::default(), clock).await.unwrap();
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let columns = [
        ("order_id", DataType::Utf8),
        ("member", DataType::Utf8),
        ("at", utc.clone()),
        ("amount", DataType::Decimal128(12, 2)),
        ("status", DataType::Utf8),
        ("_source_file", DataType::Utf8),
        ("_source_line", DataType::Int64),
        ("_batch", DataType::Int64),
        ("_ingested_at", utc),
    ];
    let fields: Vec<Field> = columns.into_iter().map(|(name, data_type)| Field::new(name, data_type, true)).collect();
    let spec = TableSpec {
        name: TableName::new("raw", "orders").unwrap(),
        schema: Arc::new(Schema::new(fields)),
        partition_by: Vec::new(),
        comment: "From before".to_owned(),
    };
    lake.ensure_table(&spec).await.unwrap();
    shop.write(
        "in/orders/a.csv",
        "order_id,member,at,amount,status,secret\no1,M1,2025-06-01T00:00:00Z,1.00,paid,hush\n",
    );
    succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));
    let log = std::fs::read_dir(shop.path().join("lake/raw/orders/_delta_log")).unwrap();
    let log: String = log.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default()).collect();
    assert!(log.contains("_unknown") && log.contains("From before") && !log.contains("hush"), "{log}");
    let kept = shop.query("select _unknown as kept from raw.orders");
    assert_eq!(kept[0]["kept"], "{\"secret\":\"hush\"}");
}
