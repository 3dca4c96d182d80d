//! Workers and servers that are killed at any moment: raw holds the table's history, each row once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_testkit::Random;
use serde_json::Value;

use super::server::{ITEM_COLUMNS, ITEMS, Postgres, Shop, kill, make_items, psql};

/// What the table's own trigger wrote down of every change: the truth that raw is held against.
fn make_audited_items(server: &Postgres, rows: u64) {
    make_items(server);
    server.sql(&format!(
        "create table audit (n bigserial primary key, op text, id bigint, name text); \
         insert into shop.items select n, 'row ' || n || ' ' || repeat('x', 400), n from generate_series(1, {rows}) n; \
         insert into audit (op, id, name) select 'insert', id, name from shop.items order by id; \
         create function note() returns trigger language plpgsql as $$ begin \
           if tg_op = 'DELETE' then insert into audit (op, id, name) values ('delete', old.id, null); return old; end if; \
           insert into audit (op, id, name) values (lower(tg_op), new.id, new.name); return new; end $$; \
         create trigger note after insert or update or delete on shop.items for each row execute function note()"
    ));
}

/// Checks that raw holds the table's history, each row once: some snapshot, and then every change that the audit has since.
fn history_is_exact(server: &Postgres, shop: &Shop) {
    type Change = (String, i64, Option<String>);
    let audit: Vec<Change> = serde_json::from_str(
        &server.sql("select coalesce(json_agg(json_build_array(op, id, name) order by n), '[]') from audit"),
    )
    .unwrap();
    let rows = shop.sql("select _op, id, name from raw.items order by _position");
    let row = |row: &Value| -> Change {
        let text = |name: &str| row[name].as_str().map(str::to_owned);
        (text("_op").unwrap(), row["id"].as_i64().unwrap(), text("name"))
    };
    let (snapshot, changes): (Vec<Change>, Vec<Change>) = rows.iter().map(row).partition(|(op, ..)| op == "snapshot");
    assert!(changes.len() <= audit.len(), "{} changes of {}", changes.len(), audit.len());
    let (before, since) = audit.split_at(audit.len() - changes.len());
    for (at, (here, there)) in changes.iter().zip(since).enumerate() {
        assert_eq!(here, there, "change {at} of {}", changes.len());
    }
    let mut table: BTreeMap<i64, Option<String>> = BTreeMap::new();
    for (op, id, name) in before {
        if op == "delete" {
            table.remove(id)
        } else {
            table.insert(*id, name.clone())
        };
    }
    let mut copied: Vec<(i64, Option<String>)> = snapshot.into_iter().map(|(_, id, name)| (id, name)).collect();
    copied.sort();
    assert!(copied == table.into_iter().collect::<Vec<_>>(), "the snapshot is not the table at that moment");
    assert_eq!(shop.sql("select coalesce(sum(rows_quarantined), 0) as n from metric.ingest_batches")[0]["n"], 0);
    assert!(!audit.is_empty() && !changes.is_empty());
}

/// Somebody who changes the table all the time, also over crashes of the server.
fn change_all_the_time(server: &Postgres, stop: &Arc<AtomicBool>, seed: u64) -> std::thread::JoinHandle<u64> {
    let (programs, port, stop) = (server.programs.clone(), server.port, Arc::clone(stop));
    std::thread::spawn(move || {
        let mut random = Random::new(seed);
        let (mut next, mut committed) = (1_000_000 + seed % 1_000 * 1_000, 0);
        while !stop.load(Ordering::Relaxed) {
            let mut sql = String::from("begin;");
            for _ in 0..=random.below(30) {
                next += 1;
                let id = 1 + random.below(300);
                match random.below(5) {
                    0 | 1 => sql.push_str(&format!("insert into shop.items values ({next}, 'new {next}', 1);")),
                    2 => sql.push_str(&format!("update shop.items set name = 'changed {next}' where id = {id};")),
                    3 => sql.push_str(&format!("delete from shop.items where id = {};", next - 1 - random.below(40))),
                    _ => sql.push_str(&format!("update shop.items set price = price + 1 where id = {id};")),
                }
            }
            sql.push_str(if random.below(6) == 0 { "rollback;" } else { "commit;" });
            let done = psql(&programs, port, "postgres").arg(&sql).output().unwrap();
            committed += u64::from(done.status.success());
        }
        committed
    })
}

#[test]
fn ing_1_ing_2_workers_and_servers_that_are_killed_at_any_moment_lose_and_double_nothing() {
    const SEED: u64 = 20_261_126;
    let Some(mut server) = Postgres::start(&[]) else { return };
    make_audited_items(&server, 20_000);
    let shop = Shop::new(&server, ITEMS, ITEM_COLUMNS);
    let stop = Arc::new(AtomicBool::new(false));
    let changing = change_all_the_time(&server, &stop, SEED);
    let mut random = Random::new(SEED);
    let mut worker = shop.watch();
    for round in 0..12 {
        // The first rounds are short, and end in the snapshot; the later ones begin when something has come.
        let (before, began) = (shop.objects(), Instant::now());
        while round >= 6 && shop.objects() <= before && began.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(60 + random.below(500)));
        match random.below(4) {
            0 if round >= 3 => {
                server.crash();
                std::thread::sleep(Duration::from_millis(random.below(300)));
                server.start_again();
            }
            _ => {
                kill(worker);
                worker = shop.watch();
            }
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    assert!(changing.join().unwrap() > 20, "seed {SEED}");
    kill(worker);
    eprintln!("seed {SEED}: {} objects", shop.objects());
    server.wait_until_nobody_reads();
    shop.ingest();
    history_is_exact(&server, &shop);
}

#[test]
fn ing_2_a_snapshot_that_dies_leaves_nothing_and_a_later_one_is_whole() {
    let Some(server) = Postgres::start(&[]) else { return };
    make_audited_items(&server, 60_000);
    let shop = Shop::new(&server, ITEMS, ITEM_COLUMNS);
    let mut died = 0;
    for _ in 0..4 {
        let worker = shop.watch();
        let began = Instant::now();
        while !shop.spooled() && began.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(2));
        }
        kill(worker);
        let whole = shop.folder.path().join("lake/_holdfast/feeds/churn/items/holdfast_items/000001/snapshot.json");
        if !whole.exists() {
            died += 1;
            assert_eq!(shop.objects(), 0, "no row of a snapshot is in the inbox before all of them are copied");
            server.sql("update shop.items set name = name || '!' where id < 50; delete from shop.items where id = 60");
        }
    }
    assert!(died > 0, "no worker died in a snapshot");
    let began = Instant::now();
    while server.sql("select count(*) from pg_stat_activity where backend_type = 'walsender'") != "0" {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
    shop.ingest();
    server.sql("insert into shop.items values (100001, 'later', 1)");
    shop.ingest();
    history_is_exact(&server, &shop);
    assert_eq!(server.sql("select count(*) from pg_replication_slots"), "1");
}

#[test]
fn a_transaction_of_100_000_rows_is_resumed_within() {
    let Some(server) = Postgres::start(&[]) else { return };
    make_audited_items(&server, 10);
    let shop = Shop::new(&server, ITEMS, ITEM_COLUMNS);
    shop.ingest();
    server.sql(
        "insert into shop.items select n, 'big ' || n || repeat('y', 200), n from generate_series(1001, 101000) n",
    );
    let mut resumed_within = 0;
    for round in 0..4 {
        let before = shop.objects();
        let worker = shop.watch();
        let began = Instant::now();
        while shop.objects() == before && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(2));
        }
        kill(worker);
        // The first object of a later worker comes behind a change that is not the last of its transaction.
        resumed_within += u32::from(round > 0 && !newest_position(&shop).ends_with("-0000000000"));
    }
    assert!(resumed_within > 0, "no worker went on within the transaction");
    server.sql("delete from shop.items where id = 1001");
    server.wait_until_nobody_reads();
    shop.ingest();
    history_is_exact(&server, &shop);
}

/// The name of the source's newest object: the position that its records come behind.
fn newest_position(shop: &Shop) -> String {
    let folder = shop.folder.path().join("lake/_holdfast/inbox/churn/items/feed/holdfast_items");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.max().unwrap().trim_end_matches(".ndjson.zst").to_owned()
}

#[test]
fn two_workers_on_one_slot_store_each_change_once() {
    let Some(server) = Postgres::start(&[]) else { return };
    make_audited_items(&server, 3_000);
    let shop = Shop::new(&server, ITEMS, ITEM_COLUMNS);
    let stop = Arc::new(AtomicBool::new(false));
    let changing = change_all_the_time(&server, &stop, 7);
    let (first, second) = (shop.watch(), shop.watch());
    std::thread::sleep(Duration::from_secs(3));
    kill(first);
    std::thread::sleep(Duration::from_secs(2));
    let third = shop.watch();
    stop.store(true, Ordering::Relaxed);
    changing.join().unwrap();
    let changes: u64 = server.sql("select count(*) - 3000 from audit").parse().unwrap();
    let began = Instant::now();
    while shop.count("_op <> 'snapshot'") == 0 && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(100));
    }
    kill(second);
    // The one that is left takes over.
    server.sql("insert into shop.items values (5, 'left', 5) on conflict (id) do update set name = 'left'");
    shop.wait_for(1, "name = 'left'");
    kill(third);
    assert!(changes > 0);
    history_is_exact(&server, &shop);
}
