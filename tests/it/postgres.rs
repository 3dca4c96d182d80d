//! PostgreSQL as a source: a real server, the real binary, real kills on either side, and rows read back from the lake.
//!
//! The server's programs are looked for in `PATH` and where Debian has them. Without them these tests say so and do nothing,
//! unless `HOLDFAST_TESTS_NEED_POSTGRES` is set.

mod kills;
mod server;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::server::{ITEM_COLUMNS, ITEMS, OWN_COLUMNS, Postgres, Shop, kill, make_items};
use crate::{succeed, workspace};

/// The stage of the page on PostgreSQL, as people copy it.
fn stage_of_the_docs() -> String {
    let page = std::fs::read_to_string(workspace().join("docs/postgres.md")).unwrap();
    let begin = page.find("```sql\n-- sql/core/items.sql").expect("the example") + "```sql\n".len();
    page[begin..begin + page[begin..].find("```").unwrap()].to_owned()
}

#[test]
fn a_table_and_its_changes_are_in_raw_and_the_example_of_the_docs_gives_the_table_as_it_is() {
    let Some(server) = Postgres::start(&[]) else { return };
    make_items(&server);
    server.sql("insert into shop.items values (1, 'one', 1.50), (2, 'two', null), (3, E'a\\tb\\\\c\\n\"d\"', 3)");
    let shop = Shop::new(&server, ITEMS, ITEM_COLUMNS);
    shop.write("sql/core/items.sql", &stage_of_the_docs());
    shop.ingest();
    let first = shop.sql("select id, name, price, _op, _table from raw.items order by id");
    assert_eq!(
        first,
        [
            json!({"id": 1, "name": "one", "price": 1.5, "_op": "snapshot", "_table": "shop.items"}),
            json!({"id": 2, "name": "two", "price": null, "_op": "snapshot", "_table": "shop.items"}),
            json!({"id": 3, "name": "a\tb\\c\n\"d\"", "price": 3.0, "_op": "snapshot", "_table": "shop.items"}),
        ]
    );
    assert!(!shop.spooled(), "what the inbox has is no longer kept beside it");

    server.sql("insert into shop.items values (4, 'four', 4)");
    server.sql(
        "begin; update shop.items set price = 2 where id = 2; update shop.items set price = 2.5 where id = 2; commit",
    );
    server.sql("begin; insert into shop.items values (9, 'never', 9); rollback");
    server.sql("update shop.items set id = 30 where id = 3");
    server.sql("delete from shop.items where id = 1");
    shop.ingest();
    let changes = shop
        .sql("select _op, id, price, _old['id'] as old_id from raw.items where _op <> 'snapshot' order by _position");
    assert_eq!(
        changes,
        [
            json!({"_op": "insert", "id": 4, "price": 4.0, "old_id": null}),
            json!({"_op": "update", "id": 2, "price": 2.0, "old_id": null}),
            json!({"_op": "update", "id": 2, "price": 2.5, "old_id": null}),
            json!({"_op": "update", "id": 30, "price": 3.0, "old_id": 3}),
            json!({"_op": "delete", "id": 1, "price": null, "old_id": 1}),
        ]
    );
    let said = |table: &str| format!("select id, name, price from {table} order by id");
    let same = |shop: &Shop| {
        succeed(shop.holdfast().args(["ingest"]));
        let there: Value = serde_json::from_str(&server.sql(
            "select coalesce(json_agg(row_to_json(i) order by id), '[]') from \
             (select id, name, price::float8 as price from shop.items) i",
        ))
        .unwrap();
        let numbers = |value: &Value| value["price"].as_f64();
        let here = shop.sql(&said("core.items"));
        assert_eq!(here.len(), there.as_array().unwrap().len(), "{here:?} {there}");
        for (here, there) in here.iter().zip(there.as_array().unwrap()) {
            assert_eq!((&here["id"], &here["name"], numbers(here)), (&there["id"], &there["name"], numbers(there)));
        }
    };
    same(&shop);
    server.sql("truncate shop.items; insert into shop.items values (2, 'again', 7)");
    same(&shop);
    assert_eq!(shop.count("_op = 'truncate'"), 1);

    // Nothing new: nothing is written, and the server still learns how far we are.
    let objects = shop.objects();
    server.sql("create table other (n int); insert into other select generate_series(1, 10000)");
    let written = server.sql("select pg_current_wal_lsn()");
    shop.ingest();
    assert_eq!(shop.objects(), objects);
    let confirmed = format!("select confirmed_flush_lsn >= '{written}' from pg_replication_slots");
    assert_eq!(server.sql(&confirmed), "t", "the server need not keep its log for us");
    server.sql("insert into shop.items values (5, 'five', 5)");
    same(&shop);

    // Several commits follow each other: the moments and numbers that the server gave are in order.
    let disorder = shop.sql(
        "select count(*) as n from (select _lsn, lag(_lsn) over (order by _position) as before from raw.items) p \
         where _lsn < before",
    );
    assert_eq!(disorder[0]["n"], 0);
    assert_eq!(shop.count("_op <> 'snapshot' and (_xid is null or _committed_at < timestamp '2020-01-01')"), 0);
}

#[test]
fn values_of_all_types_are_the_same_in_a_snapshot_and_in_a_change() {
    let Some(server) = Postgres::start(&[]) else { return };
    server.sql(
        "create type mood as enum ('sad', 'happy'); create domain positive as int check (value > 0); \
         create type pair as (a int, b text); create schema shop; \
         create table shop.items (id int primary key, c_bool bool, c_int2 int2, c_int8 int8, c_float4 float4, c_float8 float8, \
         c_numeric numeric, c_money numeric(20,4), c_text text, c_char char(4), c_varchar varchar(9), c_uuid uuid, c_date date, \
         c_time time, c_ts timestamp, c_tstz timestamptz, c_interval interval, c_bytea bytea, c_json json, c_jsonb jsonb, \
         c_ints int[], c_grid int[][], c_texts text[], c_moods mood[], c_jsonbs jsonb[], c_mood mood, c_positive positive, \
         c_pair pair, c_inet inet, c_range int4range, c_twice int generated always as (id * 2) stored)",
    );
    let values = "(ID, true, -32768, 9223372036854775807, 1.5, 1e-300, 12345678901234567890.123456789, 0.1000, \
                  E'tab\\there \\\\ \"quoted\" \\u00e9\\U0001F600', 'ab', 'x', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2026-02-28', \
                  '23:59:59.5', '2026-01-31 08:00:00.123456', '2026-01-31 08:00:00.5+08', '1 year 2 days 3 hours', '\\x00ff10', \
                  E'{\"a\": 1,\\n \"b\": [true, null]}', '{\"n\": 1.50}', '{1,null,3}', '{{1,2},{3,4}}', E'{a,\"b,\\\\\"c\",null,\"\"}', \
                  '{sad,happy}', array['{\"k\": 1}'::jsonb, null], 'happy', 7, row(1, 'x y'), '10.0.0.1/8', '[1,5)')";
    let specials = "(ID, null, null, null, 'NaN', '-Infinity', 'NaN', null, '', null, null, null, 'infinity', null, '-infinity', \
                    'infinity', null, '', null, 'null', '{}', null, '{}', null, '{}', null, null, null, null, 'empty')";
    server.sql(&format!("insert into shop.items values {}", values.replace("ID", "1")));
    server.sql(&format!("insert into shop.items values {}", specials.replace("ID", "2")));
    let columns = "id = \"int64\"\nc_bool = \"boolean\"\nc_int2 = \"int32\"\nc_int8 = \"int64\"\nc_float4 = \"float64\"\n\
                   c_float8 = \"float64\"\nc_numeric = \"decimal(38,9)\"\nc_money = \"decimal(20,4)\"\nc_text = \"string\"\n\
                   c_char = \"string\"\nc_varchar = \"string\"\nc_uuid = \"string\"\nc_date = \"date\"\nc_time = \"string\"\n\
                   c_ts = \"timestamp\"\nc_tstz = \"timestamp\"\nc_interval = \"string\"\nc_bytea = \"string\"\n\
                   c_json = \"struct<a int64, b list<boolean>>\"\nc_jsonb = \"struct<n decimal(9,2)>\"\nc_ints = \"list<int64>\"\n\
                   c_grid = \"list<list<int64>>\"\nc_texts = \"list<string>\"\nc_moods = \"list<string>\"\n\
                   c_jsonbs = \"list<struct<k int64>>\"\nc_mood = \"string\"\nc_positive = \"int32\"\nc_pair = \"string\"\n\
                   c_inet = \"string\"\nc_range = \"string\"\nc_twice = \"int64\"\n";
    let shop = Shop::new(&server, ITEMS, columns);
    shop.ingest();
    server.sql(&format!("insert into shop.items values {}", values.replace("ID", "3")));
    server.sql(&format!("insert into shop.items values {}", specials.replace("ID", "4")));
    server.sql("update shop.items set id = 5 where id = 1");
    shop.ingest();

    let shown = "c_bool, c_int2, c_int8, c_float4, c_float8, cast(c_numeric as varchar) as c_numeric, \
                 cast(c_money as varchar) as c_money, c_text, c_char, c_varchar, c_uuid, cast(c_date as varchar) as c_date, c_time, \
                 cast(c_ts as varchar) as c_ts, cast(c_tstz as varchar) as c_tstz, c_interval, c_bytea, c_json['a'] as a, \
                 c_json['b'] as b, cast(c_jsonb['n'] as varchar) as n, c_ints, c_grid, c_texts, c_moods, c_jsonbs, c_mood, c_positive, \
                 c_pair, c_inet, c_range, c_twice";
    let rows = shop.sql(&format!("select {shown} from raw.items order by _position"));
    assert_eq!(rows.len(), 3, "the rows with what no column can hold are in quarantine");
    assert_eq!(
        rows[0],
        json!({
            "c_bool": true, "c_int2": -32768, "c_int8": 9_223_372_036_854_775_807_i64, "c_float4": 1.5, "c_float8": 1e-300,
            "c_numeric": "12345678901234567890.123456789", "c_money": "0.1000", "c_text": "tab\there \\ \"quoted\" é😀",
            "c_char": "ab  ", "c_varchar": "x", "c_uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "c_date": "2026-02-28",
            "c_time": "23:59:59.5", "c_ts": "2026-01-31T08:00:00.123456Z", "c_tstz": "2026-01-31T00:00:00.500Z",
            "c_interval": "P1Y2DT3H", "c_bytea": "AP8Q", "a": 1, "b": [true, null], "n": "1.50", "c_ints": [1, null, 3],
            "c_grid": [[1, 2], [3, 4]], "c_texts": ["a", "b,\"c", null, ""], "c_moods": ["sad", "happy"],
            "c_jsonbs": [{"k": 1}, null], "c_mood": "happy", "c_positive": 7, "c_pair": "(1,\"x y\")", "c_inet": "10.0.0.1/8",
            "c_range": "[1,5)", "c_twice": null
        })
    );
    assert_eq!(rows[1], rows[0], "as an insert");
    assert_eq!(rows[2], rows[0], "as an update");
    let refused = shop.sql("select column_name, reason, count(*) as n from quarantine.items group by 1, 2");
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!((&refused[0]["column_name"], &refused[0]["n"]), (&json!("c_float4"), &json!(2)));
}

#[test]
fn long_values_that_did_not_change_are_marked_and_a_changing_table_is_followed() {
    let Some(server) = Postgres::start(&[]) else { return };
    make_items(&server);
    server.sql("alter table shop.items add note text; alter table shop.items alter note set storage external");
    server.sql("insert into shop.items values (1, 'one', 1, repeat('long ', 1000)), (2, 'two', 2, 'short')");
    let columns = format!("{ITEM_COLUMNS}note = \"string\"\nextra = \"string\"\n");
    let shop = Shop::new(&server, ITEMS, &columns);
    shop.ingest();
    server.sql("update shop.items set price = 10");
    server.sql("alter table shop.items replica identity full");
    server.sql("update shop.items set price = 20");
    shop.ingest();
    let notes = shop
        .sql("select id, length(note) as length, _unchanged from raw.items where _op = 'update' order by _position");
    assert_eq!(
        notes,
        [
            json!({"id": 1, "length": null, "_unchanged": ["note"]}),
            json!({"id": 2, "length": 5, "_unchanged": null}),
            json!({"id": 1, "length": 5000, "_unchanged": null}),
            json!({"id": 2, "length": 5, "_unchanged": null}),
        ],
        "the log has no value that did not change, unless the old row is in it"
    );

    // A column more, one less, one of another type, a new type: each line is as the table was when it was committed.
    server.sql("insert into shop.items values (3, 'three', 3, null)");
    server.sql("create type size as enum ('s', 'm'); alter table shop.items add extra size[]");
    server.sql("insert into shop.items values (4, 'four', 4, null, '{s,m}')");
    server.sql("alter table shop.items drop note; alter table shop.items alter extra type text using 'text'");
    server.sql("insert into shop.items values (5, 'five', 5, 'text')");
    server.sql("insert into shop.items values (6, repeat('x', 60000000), 6, null)");
    let output = succeed(shop.holdfast().args(["ingest", "--raw-only"]).env("HOLDFAST_LOG", "warn"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for (told, column) in [("another type", "extra"), ("dropped", "note")] {
        let told = said.lines().any(|line| line.contains(told) && line.contains(column) && line.contains("shop.items"));
        assert!(told, "{said}");
    }
    let inserted = shop.sql("select id, extra from raw.items where _op = 'insert' order by id");
    assert_eq!(inserted, [json!({"id": 3, "extra": null}), json!({"id": 5, "extra": "text"})]);
    let refused =
        shop.sql("select column_name, substr(original, 1, 41) as original from quarantine.items order by column_name");
    assert_eq!(
        refused.len(),
        2,
        "a list is no text, and a value of 60 MB no field: the rows wait in quarantine, alone"
    );
    assert_eq!(refused[0]["column_name"], "extra");
    assert_eq!(refused[1]["original"], "[{\"id\":6,\"price\":\"6.00\",\"_too_long\":[\"name\"]".get(..41).unwrap());
}

#[test]
fn a_slot_that_is_gone_is_told_with_its_remedy_and_nothing_goes_on_in_silence() {
    let Some(mut server) =
        Postgres::start(&["max_slot_wal_keep_size = 2MB", "min_wal_size = 2MB", "max_wal_size = 4MB"])
    else {
        return;
    };
    make_items(&server);
    server.sql("insert into shop.items values (1, 'one', 1), (2, 'two', 2)");
    let shop = Shop::new(&server, ITEMS, ITEM_COLUMNS);
    shop.write("sql/core/items.sql", &stage_of_the_docs());
    shop.ingest();

    // Dropped, and made again by hand: the changes between are lost, and it would be read without a word.
    server.sql("select pg_drop_replication_slot('holdfast_items')");
    let (code, said) = shop.refused();
    assert_eq!(code, 2);
    assert!(said.contains("slot holdfast_items: it is gone") && said.contains("resnapshot = true"), "{said}");
    server.sql("insert into shop.items values (3, 'three', 3); delete from shop.items where id = 1");
    server.sql("select pg_create_logical_replication_slot('holdfast_items', 'pgoutput')");
    let (_, said) = shop.refused();
    assert!(said.contains("slot holdfast_items: it stands at") && said.contains("resnapshot = true"), "{said}");
    assert_eq!(shop.count("true"), 2, "nothing was stored meanwhile");

    // With leave, the tables are copied anew: what was deleted unseen is gone from core.
    shop.contract(&server, &format!("{ITEMS}resnapshot = true"), ITEM_COLUMNS);
    succeed(shop.holdfast().arg("ingest"));
    assert_eq!(shop.count("_op = 'snapshot'"), 4);
    let now = |shop: &Shop| shop.sql("select id from core.items order by id");
    assert_eq!(now(&shop), [json!({"id": 2}), json!({"id": 3})]);
    server.sql("update shop.items set price = 33 where id = 3");
    succeed(shop.holdfast().arg("ingest"));
    assert_eq!(shop.count("_op = 'update' and _position like '000002-w-%'"), 1);

    // The server gives up a slot whose reader stays away too long.
    shop.contract(&server, ITEMS, ITEM_COLUMNS);
    server.sql("create table noise (t text)");
    let began = Instant::now();
    while server.sql("select wal_status from pg_replication_slots") != "lost" {
        assert!(began.elapsed() < Duration::from_secs(60), "the slot is not given up");
        server.sql("insert into noise select repeat('x', 1000) from generate_series(1, 3000)");
        server.sql("checkpoint");
    }
    let (code, said) = shop.refused();
    assert_eq!(code, 2);
    assert!(said.contains("holdfast_items") && said.contains("max_slot_wal_keep_size"), "{said}");
    shop.contract(&server, &format!("{ITEMS}resnapshot = true"), ITEM_COLUMNS);
    server.sql("insert into shop.items values (6, 'six', 6)");
    succeed(shop.holdfast().arg("ingest"));
    assert_eq!(now(&shop), [json!({"id": 2}), json!({"id": 3}), json!({"id": 6})]);

    // A server that is there again by itself needs nobody.
    let worker = shop.watch();
    server.stop();
    std::thread::sleep(Duration::from_millis(300));
    server.start_again();
    server.sql("insert into shop.items values (7, 'seven', 7)");
    shop.wait_for(1, "id = 7 and _op = 'insert'");
    kill(worker);
}

#[test]
fn what_is_not_set_up_is_told_with_what_to_run() {
    let Some(mut server) = Postgres::start(&["wal_level = replica"]) else { return };
    make_items(&server);
    server.sql("create table shop.keyless (n int); create unlogged table shop.quick (n int primary key)");
    server.sql("create role reader login password 'open sesame'");
    let shop = Shop::new(&server, ITEMS, ITEM_COLUMNS);
    let told = |feed: &str, wanted: &[&str]| {
        shop.contract(&server, feed, ITEM_COLUMNS);
        let (code, said) = shop.refused();
        assert_eq!(code, 2, "{said}");
        assert!(wanted.iter().all(|wanted| said.contains(wanted)), "{wanted:?} is not in {said}");
        assert!(!said.contains("sesame"), "{said}");
    };
    told(ITEMS, &["wal_level is replica", "alter system set wal_level = logical"]);
    let conf = server.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    server.stop();
    server.write(&conf, &text.replace("wal_level = replica", ""));
    server.write(
        &server.data().join("pg_hba.conf"),
        "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all reader 127.0.0.1/32 scram-sha-256\n",
    );
    server.start_again();
    let told = |feed: &str, wanted: &[&str]| {
        shop.contract(&server, feed, ITEM_COLUMNS);
        let mut ingest = shop.holdfast();
        ingest
            .args(["ingest", "--raw-only"])
            .env("READER_PASSWORD", "open sesame")
            .env("WRONG_PASSWORD", "close sesame");
        let output = ingest.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(wanted.iter().all(|wanted| said.contains(wanted)), "{wanted:?} is not in {said}");
        assert!(!said.contains("sesame"), "{said}");
    };
    told("tables = [\"shop.nothing\"]", &["table shop.nothing", "none of this name"]);
    told("tables = [\"shop.quick\"]", &["table shop.quick", "unlogged"]);
    told(
        "tables = [\"shop.keyless\"]",
        &["shop.keyless has no replica identity", "alter table \"shop\".\"keyless\" replica identity full"],
    );
    server.sql("insert into shop.keyless values (1); update shop.keyless set n = 2; delete from shop.keyless");
    let reader = |more: &str| format!("{ITEMS}user = \"reader\"\nsslmode = \"disable\"\n{more}");
    told(&reader(""), &["password_env"]);
    told(&reader("password_env = \"UNSET_PASSWORD\""), &["items.toml:", "UNSET_PASSWORD is not set"]);
    told(&reader("password_env = \"WRONG_PASSWORD\""), &["WRONG_PASSWORD", "password authentication failed"]);
    let reader = reader("password_env = \"READER_PASSWORD\"");
    told(&reader, &["may not replicate", "alter role \"reader\" replication"]);
    server.sql("alter role reader replication");
    told(&reader, &["grant usage on schema \"shop\" to \"reader\"; grant select on \"shop\".\"items\" to \"reader\""]);
    server.sql("grant usage on schema shop to reader; grant select on shop.items to reader");
    let create = "create publication \"holdfast_items\" for table only \"shop\".\"items\"";
    told(&reader, &["may not create it", create]);
    server.sql("create publication holdfast_items for table shop.keyless with (publish = 'insert')");
    told(&reader, &["alter publication \"holdfast_items\" add table only \"shop\".\"items\""]);
    server.sql("alter publication holdfast_items set table shop.items (id, name) where (id > 1)");
    server.sql("select pg_create_logical_replication_slot('holdfast_items', 'pgoutput')");
    told(&reader, &["slot holdfast_items exists and was not created for this source", "pg_drop_replication_slot"]);
    assert_eq!(server.sql("select count(*) from pg_replication_slots"), "1", "it is left alone");
    server.sql("select pg_drop_replication_slot('holdfast_items')");

    // All is set up, with less than the whole table published: both ways give the same part of it.
    server.sql("insert into shop.items values (1, 'one', 1), (2, 'two', 2)");
    for id in 3..5 {
        let ingest =
            shop.holdfast().args(["ingest", "--raw-only"]).env("READER_PASSWORD", "open sesame").output().unwrap();
        assert!(ingest.status.success(), "{}", String::from_utf8_lossy(&ingest.stderr));
        server.sql(&format!("insert into shop.items values ({id}, 'more', 1)"));
    }
    let rows = shop.sql("select id, price, _op from raw.items order by id");
    assert_eq!(
        rows,
        [json!({"id": 2, "price": null, "_op": "snapshot"}), json!({"id": 3, "price": null, "_op": "insert"})]
    );
}

#[test]
fn connections_are_encrypted_and_the_server_is_known_by_its_certificate() {
    let Some(mut server) = Postgres::start(&[]) else { return };
    make_items(&server);
    server.sql("create role reader login superuser password 'open sesame'");
    let folder = server.folder.path().to_owned();
    let openssl = |arguments: &[&str]| {
        succeed(Command::new("openssl").args(arguments).current_dir(&folder));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout"];
    openssl(
        &[["req", "-x509", "-days", "2", "-subj", "/CN=ours", "-out", "ca.pem"].as_slice(), &key, &["ca.key"]].concat(),
    );
    openssl(&[["req", "-subj", "/CN=localhost", "-out", "server.csr"].as_slice(), &key, &["server.key"]].concat());
    std::fs::write(folder.join("names"), "subjectAltName = DNS:localhost\n").unwrap();
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "names",
        "-out",
        "server.pem",
    ]);
    server.write(&server.data().join("server.crt"), &std::fs::read_to_string(folder.join("server.pem")).unwrap());
    let key = server.data().join("server.key");
    server.write(&key, &std::fs::read_to_string(folder.join("server.key")).unwrap());
    succeed(Command::new("chmod").arg("600").arg(&key));
    server.stop();
    let conf = server.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    server.write(&conf, &format!("{text}ssl = on\n"));
    server.write(
        &server.data().join("pg_hba.conf"),
        "host all postgres 127.0.0.1/32 trust\nhostssl all reader 127.0.0.1/32 scram-sha-256\n",
    );
    server.start_again();
    server.sql("insert into shop.items values (1, 'one', 1)");
    let ca = folder.join("ca.pem");
    let shop = Shop::new(&server, ITEMS, ITEM_COLUMNS);
    let ingest = |host: &str, more: &str| {
        let contract = format!(
            "kind = \"orders\"\n[feed]\nkind = \"postgres\"\nurl = \"postgres://reader@{host}:{}/postgres\"\n\
             password_env = \"READER_PASSWORD\"\n{ITEMS}{more}\n[columns]\n{ITEM_COLUMNS}{OWN_COLUMNS}",
            server.port
        );
        shop.write("pipelines/churn/sources/items.toml", &contract);
        let output =
            shop.holdfast().args(["ingest", "--raw-only"]).env("READER_PASSWORD", "open sesame").output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let ours = format!("sslrootcert = \"{}\"\n", ca.display());
    let (fine, said) = ingest("localhost", "sslmode = \"verify-full\"");
    assert!(!fine && said.contains("certificate"), "nobody vouches for it: {said}");
    let (fine, said) = ingest("127.0.0.1", &ours);
    assert!(!fine && said.contains("certificate"), "it is another host's: {said}");
    let (fine, said) = ingest("127.0.0.1", "sslmode = \"disable\"");
    assert!(!fine && said.contains("pg_hba.conf"), "the server wants TLS: {said}");
    let (fine, said) = ingest("localhost", &ours);
    assert!(fine, "{said}");
    let (fine, said) = ingest("127.0.0.1", "sslmode = \"require\"");
    assert!(fine, "{said}");
    assert_eq!(shop.count("_op = 'snapshot'"), 1);
}

#[test]
fn tables_of_one_shape_and_partitioned_ones_make_one_source() {
    let Some(server) = Postgres::start(&[]) else { return };
    server.sql(
        "create schema shop; create table shop.east (id bigint primary key, name text, price numeric); \
         create table shop.west (id bigint, name text, price numeric, primary key (id)) partition by range (id); \
         create table shop.west_1 partition of shop.west for values from (0) to (100); \
         create table shop.west_2 partition of shop.west for values from (100) to (200); \
         insert into shop.east values (1, 'e', 1); insert into shop.west values (1, 'w', 1), (150, 'w', 2)",
    );
    let shop = Shop::new(&server, "tables = [\"shop.east\", \"shop.west\"]\nconfirm_idle_every = 1", ITEM_COLUMNS);
    shop.ingest();
    server.sql("begin; insert into shop.east values (2, 'e', 2); update shop.west set id = 160 where id = 1; commit");
    server.sql("create table shop.west_3 partition of shop.west for values from (200) to (300)");
    server.sql("insert into shop.west values (250, 'w', 3); truncate shop.east, shop.west");
    shop.ingest();
    let rows = shop.sql("select _op, _table, id from raw.items order by _position");
    let rows: Vec<String> = rows.iter().map(|row| format!("{} {} {}", row["_op"], row["_table"], row["id"])).collect();
    let rows: Vec<String> = rows.into_iter().map(|row| row.replace('"', "")).collect();
    assert_eq!(
        rows[..3],
        ["snapshot shop.east 1", "snapshot shop.west 1", "snapshot shop.west 150"].map(str::to_owned),
        "{rows:?}"
    );
    // A row that moves to another partition is deleted in one and inserted into the other.
    for wanted in ["insert shop.east 2", "delete shop.west 1", "insert shop.west 160", "insert shop.west 250"] {
        assert!(rows.iter().any(|row| row == wanted), "{wanted}: {rows:?}");
    }
    assert_eq!(rows.iter().filter(|row| row.starts_with("truncate")).count(), 2, "{rows:?}");
    assert_eq!(rows.len(), 9, "{rows:?}");

    // An idle worker confirms what other tables wrote, and stays connected.
    let worker = shop.watch();
    let began = Instant::now();
    while server.sql("select count(*) from pg_replication_slots where active") != "1" {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", shop.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    server.sql("create table other (n int); insert into other select generate_series(1, 10000)");
    let written = server.sql("select pg_current_wal_lsn()");
    let began = Instant::now();
    while server.sql(&format!("select confirmed_flush_lsn >= '{written}' from pg_replication_slots")) != "t" {
        assert!(began.elapsed() < Duration::from_secs(30), "the server keeps its log for nothing: {}", shop.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    kill(worker);
}
