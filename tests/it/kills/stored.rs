//! What is stored in the end, read with delta-rs and a plain Parquet reader, against what was delivered and pushed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use deltalake_core::DeltaTableBuilder;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use url::Url;

use super::delivery::{Content, Delivery};
use super::life::{LAKE, PIPELINE, World};

/// Looks at every source.
///
/// # Errors
/// The first thing that is not as promised.
pub(super) async fn check(world: &World, delivery: &Delivery) -> Result<(), String> {
    for source in delivery.sources() {
        let told = |wrong: String| format!("source {source}: {wrong}");
        let raw = ids_in_raw(world, source).await;
        let (quarantine, totals) = quarantine_and_totals(world, source).await;
        once(&raw).map_err(|wrong| told(format!("raw: {wrong}")))?;
        once(&quarantine).map_err(|wrong| told(format!("quarantine: {wrong}")))?;
        let stored = (count(&raw), count(&quarantine));
        if stored != totals {
            return Err(told(format!("{stored:?} rows are stored and set aside, {totals:?} are in the books")));
        }

        let mut unexplained: (BTreeSet<&str>, BTreeSet<&str>) =
            (raw.keys().map(String::as_str).collect(), quarantine.keys().map(String::as_str).collect());
        let (must, may) = delivery.expected(source);
        for (contents, has_to) in [(must, true), (may, false)] {
            for content in &contents {
                whole(content, &raw, &quarantine, has_to).map_err(told)?;
                content.good.iter().for_each(|id| _ = unexplained.0.remove(id.as_str()));
                content.bad.iter().for_each(|id| _ = unexplained.1.remove(id.as_str()));
            }
        }
        if source == "events" {
            let pushes = world.pushes();
            let mut messages: Vec<(&String, bool)> =
                pushes.acknowledged.iter().flatten().map(|id| (id, true)).collect();
            messages.extend(pushes.unanswered().map(|id| (id, false)));
            let fed = world.topic().records();
            messages.extend(fed.iter().map(|(id, has_to)| (id, *has_to)));
            let put = world.puts().records();
            messages.extend(put.iter().map(|(id, has_to)| (id, *has_to)));
            for (id, has_to) in messages {
                let (rows, unexplained) =
                    if id.starts_with("bad") { (&quarantine, &mut unexplained.1) } else { (&raw, &mut unexplained.0) };
                if has_to && !rows.contains_key(id) {
                    return Err(told(format!("message {id} was acknowledged and is lost")));
                }
                unexplained.remove(id.as_str());
            }
        }
        if !unexplained.0.is_empty() || !unexplained.1.is_empty() {
            return Err(told(format!("nobody delivered {unexplained:?}, or not there")));
        }
    }
    Ok(())
}

type Rows = BTreeMap<String, u64>;

fn count(rows: &Rows) -> i64 {
    i64::try_from(rows.values().sum::<u64>()).unwrap()
}

fn once(rows: &Rows) -> Result<(), String> {
    match rows.iter().find(|(_, times)| **times != 1) {
        Some((id, times)) => Err(format!("{id} is there {times} times")),
        None => Ok(()),
    }
}

/// All of a file or nothing of it; all, if it was acknowledged.
fn whole(content: &Content, raw: &Rows, quarantine: &Rows, has_to: bool) -> Result<(), String> {
    let found = content.good.iter().filter(|id| raw.contains_key(*id)).count()
        + content.bad.iter().filter(|id| quarantine.contains_key(*id)).count();
    let all = content.good.len() + content.bad.len();
    if has_to && found < all {
        return Err(format!("of {content:?}, which was acknowledged, {found} records of {all} are stored"));
    }
    if found != 0 && found != all {
        return Err(format!("of {content:?} {found} records of {all} are stored"));
    }
    Ok(())
}

async fn ids_in_raw(world: &World, source: &str) -> Rows {
    let mut rows = Rows::new();
    for batch in table(world, "raw", source).await {
        for id in batch.column_by_name("id").unwrap().as_string::<i32>() {
            *rows.entry(id.unwrap().to_owned()).or_default() += 1;
        }
    }
    rows
}

/// The refused records without those of abandoned batches, and what the books say of both.
async fn quarantine_and_totals(world: &World, source: &str) -> (Rows, (i64, i64)) {
    let mut outcomes: HashMap<i64, String> = HashMap::new();
    let mut totals = (0, 0);
    for batch in table(world, "metric", "ingest_batches").await {
        let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
        let number = |name: &str| numbers(&batch, name);
        let (pipelines, sources, kinds) = (text("pipeline"), text("source"), text("outcome"));
        let (batches, stored, set_aside) = (number("batch"), number("rows_stored"), number("rows_quarantined"));
        for row in (0..batch.num_rows()).filter(|row| pipelines.value(*row) == PIPELINE) {
            if sources.value(row) == source {
                let before = outcomes.insert(batches[row], kinds.value(row).to_owned());
                assert!(before.is_none(), "{source}: batch {} is recorded twice", batches[row]);
                totals = (totals.0 + stored[row], totals.1 + set_aside[row]);
            }
        }
    }
    let mut rows = Rows::new();
    for batch in table(world, "quarantine", source).await {
        let originals = batch.column_by_name("original").unwrap().as_string::<i32>();
        for (original, number) in originals.iter().zip(numbers(&batch, "_batch")) {
            match outcomes.get(&number).map(String::as_str) {
                Some("stored") => *rows.entry(id_in(original.unwrap())).or_default() += 1,
                Some(_) => {}
                None => panic!("{source}: batch {number} of the quarantine is not in the books"),
            }
        }
    }
    (rows, totals)
}

/// The record's name within its text: a letter or more and a number.
fn id_in(original: &str) -> String {
    let parts = original.split(|letter: char| !letter.is_ascii_alphanumeric());
    let mut names = parts.filter(|part| {
        let number = part.trim_start_matches("bad").trim_start_matches(['r', 'p', 'f', 't']);
        number.len() < part.len() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    names.next().unwrap_or_else(|| panic!("no name in {original}")).to_owned()
}

fn numbers(batch: &RecordBatch, name: &str) -> Vec<i64> {
    let column = cast(batch.column_by_name(name).unwrap(), &DataType::Int64).unwrap();
    column.as_primitive::<Int64Type>().values().to_vec()
}

/// The rows of a table's newest version; none when there is no table.
async fn table(world: &World, schema: &str, name: &str) -> Vec<RecordBatch> {
    let url = Url::parse(&format!("memory:///{LAKE}/{schema}/{name}")).unwrap();
    // A fork is a snapshot: nothing that still runs changes it.
    let store = Arc::new(world.store().fork());
    let builder = DeltaTableBuilder::from_url(url.clone()).unwrap().with_storage_backend(store, url);
    let Ok(table) = builder.load().await else { return Vec::new() };
    let mut batches = Vec::new();
    for file in table.snapshot().unwrap().log_data() {
        let path = Path::from(format!("{LAKE}/{schema}/{name}/{}", file.path()));
        let bytes = world.store().get(&path).await.unwrap().bytes().await.unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
        batches.extend(reader.map(Result::unwrap));
    }
    batches
}
