//! Ingestion through its front door: real files, a real lake on disk, and rows read back with a plain Parquet reader
//! from what the Delta log lists.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Decimal128Type, Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use holdfast_ingest::{
    IngestError, IngestSettings, IngestStep, SourceReader, SourceReport, SourceSpec, ingest_source, load_sources,
};
use holdfast_lake::{Lake, LakeSettings, MaintainSettings, StoreOptions, open_store};
use holdfast_types::{ErrorKind, FixedClock, NoProgress, TableName};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

const CONTRACT: &str = r#"
kind = "orders"
path = "orders/*.ndjson"
format = "ndjson"
event_time = "ordered_at"

[columns]
order_id = "string"
ordered_at = "timestamp"
quantity = "int32"
amount = "decimal(12,2)"
buyer = { type = "struct<name string, mobile string>", pii = true }
"#;

/// Set for the child process of [`ing_1_and_ing_2_hold_when_a_worker_is_killed_after_any_step`]: folder and step.
const WORKER_FOLDER: &str = "HOLDFAST_TEST_WORKER_FOLDER";
const WORKER_STEP: &str = "HOLDFAST_TEST_WORKER_STEP";

/// A landing folder and a lake beside it.
struct Place {
    folder: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().to_owned();
        fs::create_dir_all(folder.join("in/orders")).unwrap();
        Self { folder, _temporary: Some(temporary) }
    }

    fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.folder.join("in").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    async fn lake(&self) -> Lake {
        let clock = Arc::new(FixedClock("2026-03-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap()));
        let location = self.folder.join("lake");
        let settings = LakeSettings::default();
        Lake::create_or_open(location.to_str().unwrap(), &self.folder, &StoreOptions::new(), settings, clock)
            .await
            .unwrap()
    }

    async fn ingest_with(&self, spec: &SourceSpec, settings: &IngestSettings) -> Result<SourceReport, IngestError> {
        let from = open_store("in", &self.folder, &StoreOptions::new()).unwrap();
        ingest_source(&self.lake().await, "test", spec, &from, settings, &NoProgress).await
    }

    async fn ingest(&self, spec: &SourceSpec) -> Result<SourceReport, IngestError> {
        self.ingest_with(spec, &IngestSettings::default()).await
    }

    /// The rows of a table, read without any code of ours.
    fn rows(&self, schema: &str, table: &str) -> Option<RecordBatch> {
        let root = self.folder.join("lake").join(schema).join(table);
        let mut log: Vec<_> = fs::read_dir(root.join("_delta_log")).ok()?.map(|entry| entry.unwrap().path()).collect();
        log.sort();
        let mut batches = Vec::new();
        for commit in log.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            for line in fs::read_to_string(commit).unwrap().lines() {
                let action: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(action.get("remove").is_none(), "{table} is append-only");
                if let Some(path) = action.pointer("/add/path") {
                    let file = File::open(root.join(path.as_str().unwrap())).unwrap();
                    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
                    batches.extend(reader.map(Result::unwrap));
                }
            }
        }
        let schema = batches.first()?.schema();
        Some(concat_batches(&schema, &batches).unwrap())
    }

    /// `file:line` of every row of a table, sorted.
    fn places(&self, schema: &str, table: &str) -> Vec<String> {
        let Some(rows) = self.rows(schema, table) else { return Vec::new() };
        let mut places: Vec<String> = texts(&rows, "_source_file")
            .into_iter()
            .zip(numbers(&rows, "_source_line"))
            .map(|(file, line)| format!("{}:{}", file.unwrap(), line.unwrap()))
            .collect();
        places.sort();
        places
    }

    async fn versions(&self) -> BTreeMap<String, u64> {
        let lake = self.lake().await;
        let mut versions = BTreeMap::new();
        for name in lake.tables().await.unwrap() {
            let version = lake.table(&name).await.unwrap().unwrap().version();
            versions.insert(name.to_string(), version);
        }
        versions
    }
}

fn spec(name: &str, contract: &str) -> SourceSpec {
    SourceSpec::parse(&format!("{name}.toml"), contract).unwrap()
}

fn texts(rows: &RecordBatch, column: &str) -> Vec<Option<String>> {
    let array = rows.column_by_name(column).unwrap();
    array.as_string::<i32>().iter().map(|value| value.map(str::to_owned)).collect()
}

fn numbers(rows: &RecordBatch, column: &str) -> Vec<Option<i64>> {
    let array = cast(rows.column_by_name(column).unwrap(), &DataType::Int64).unwrap();
    array.as_primitive::<Int64Type>().iter().collect()
}

/// `count` orders of `day`, with a refused row at line 3 (a wrong type) and line 5 (not JSON).
fn orders(day: u32, count: u32) -> String {
    let mut text = String::new();
    for line in 1..=count {
        match line {
            3 => text.push_str("{\"order_id\":\"x\",\"quantity\":\"three\"}\n"),
            5 => text.push_str("{\"order_id\":\"李雷\n"),
            _ => text.push_str(&format!(
                "{{\"order_id\":\"{day}-{line}\",\"ordered_at\":\"2026-02-{day:02}T08:00:00+08:00\",\"quantity\":{line},\"amount\":{line}.25,\"buyer\":{{\"name\":\"n\",\"mobile\":null}}}}\n"
            )),
        }
    }
    text
}

fn expected_places(files: &[(&str, u32)], refused: bool) -> Vec<String> {
    let mut places: Vec<String> = files
        .iter()
        .flat_map(|(file, count)| (1..=*count).map(move |line| (file, line)))
        .filter(|(_, line)| matches!(line, 3 | 5) == refused)
        .map(|(file, line)| format!("{file}:{line}"))
        .collect();
    places.sort();
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_3_every_record_is_stored_or_quarantined_with_its_place_and_text() {
    let place = Place::new();
    place.put("orders/01.ndjson", orders(1, 40));
    place.put("orders/02.ndjson", format!("\u{feff}\n{}\n \n", orders(2, 30)));
    let report = place.ingest(&spec("orders", CONTRACT)).await.unwrap();

    assert_eq!((report.rows_read, report.rows_stored, report.rows_quarantined), (70, 66, 4));
    assert_eq!(report.event_time_min, Some("2026-02-01T00:00:00Z".parse().unwrap()));
    assert_eq!(report.event_time_max, Some("2026-02-02T00:00:00Z".parse().unwrap()));
    // The second file begins with a byte order mark and a blank line: its records stand one line lower.
    let mut quarantined = place.places("quarantine", "orders");
    quarantined.sort();
    assert_eq!(quarantined, ["orders/01.ndjson:3", "orders/01.ndjson:5", "orders/02.ndjson:4", "orders/02.ndjson:6"]);
    assert_eq!(place.places("raw", "orders").len(), 66);

    let refused = place.rows("quarantine", "orders").unwrap();
    let originals: Vec<_> = texts(&refused, "original").into_iter().flatten().collect();
    assert_eq!(originals.iter().filter(|text| *text == "{\"order_id\":\"李雷").count(), 2);
    let at = originals.iter().position(|text| text.contains("three")).unwrap();
    assert_eq!(texts(&refused, "column_name")[at].as_deref(), Some("quantity"));
    assert_eq!(texts(&refused, "reason")[at].as_deref(), Some("text where int32 is expected"));

    let raw = place.rows("raw", "orders").unwrap();
    let row = texts(&raw, "order_id").iter().position(|id| id.as_deref() == Some("1-7")).unwrap();
    assert_eq!(raw.column_by_name("amount").unwrap().as_primitive::<Decimal128Type>().value(row), 725);
    let ordered_at = raw.column_by_name("ordered_at").unwrap().as_primitive::<TimestampMicrosecondType>().value(row);
    assert_eq!(DateTime::from_timestamp_micros(ordered_at), Some("2026-02-01T00:00:00Z".parse().unwrap()));

    let batches = place.rows("metric", "ingest_batches").unwrap();
    assert_eq!(numbers(&batches, "rows_read"), [Some(70)]);
    assert_eq!(numbers(&batches, "rows_stored"), [Some(66)]);
    assert_eq!(texts(&batches, "outcome"), [Some("stored".to_owned())]);
    let files = place.rows("metric", "ingest_files").unwrap();
    assert_eq!(numbers(&files, "rows_quarantined"), [Some(2), Some(2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_3_small_blocks_and_one_thread_give_the_same_rows() {
    let (large, small) = (Place::new(), Place::new());
    for place in [&large, &small] {
        place.put("orders/01.ndjson", orders(1, 500));
    }
    large.ingest(&spec("orders", CONTRACT)).await.unwrap();
    let settings = IngestSettings { threads: 1, block_bytes: 100, ..IngestSettings::default() };
    small.ingest_with(&spec("orders", CONTRACT), &settings).await.unwrap();
    for schema in ["raw", "quarantine"] {
        assert_eq!(large.places(schema, "orders"), small.places(schema, "orders"));
    }
    assert_eq!(large.places("raw", "orders"), expected_places(&[("orders/01.ndjson", 500)], false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_running_again_commits_nothing() {
    let place = Place::new();
    place.put("orders/01.ndjson", orders(1, 30));
    let spec = spec("orders", CONTRACT);
    place.ingest(&spec).await.unwrap();
    let versions = place.versions().await;
    let report = place.ingest(&spec).await.unwrap();
    assert_eq!((report.files_found, report.files_known, report.files_stored, report.batches), (1, 1, 0, 0));
    assert_eq!(place.versions().await, versions);

    // Written again with the same bytes: another time stamp, the same content.
    place.put("orders/01.ndjson", orders(1, 30));
    place.ingest(&spec).await.unwrap();
    assert_eq!(place.versions().await, versions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_a_copied_file_is_left_out_and_a_changed_one_is_read_whole() {
    let place = Place::new();
    let spec = spec("orders", CONTRACT);
    place.put("orders/01.ndjson", orders(1, 30));
    place.ingest(&spec).await.unwrap();

    place.put("orders/01-again.ndjson", orders(1, 30));
    place.put("orders/02.ndjson", orders(2, 30));
    place.put("orders/02-again.ndjson", orders(2, 30));
    let report = place.ingest(&spec).await.unwrap();
    assert_eq!((report.files_stored, report.files_copied, report.rows_stored), (1, 2, 28));
    assert!(report.warnings.iter().any(|warning| warning.contains("same content as orders/01.ndjson")), "{report:?}");
    let versions = place.versions().await;
    place.ingest(&spec).await.unwrap();
    assert_eq!(place.versions().await, versions);

    place.put("orders/01.ndjson", orders(1, 31));
    let report = place.ingest(&spec).await.unwrap();
    assert_eq!((report.files_stored, report.rows_stored), (1, 29));
    // And back to what it was: its records are the newest again.
    place.put("orders/01.ndjson", orders(1, 30));
    let report = place.ingest(&spec).await.unwrap();
    assert_eq!((report.files_stored, report.rows_stored), (1, 28));
}

/// A file with so many orders, all its own.
fn clean_orders(name: &str, count: u32) -> String {
    (0..count).map(|row| format!("{{\"order_id\": \"{name}-{row}\", \"quantity\": 1}}\n")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_what_came_long_ago_is_known_in_merged_books_whatever_became_of_the_folder() {
    let place = Place::new();
    let spec = spec("orders", CONTRACT);
    let settings = IngestSettings { batch_files_max: 3, ..IngestSettings::default() };
    let names: Vec<String> = (10..40).map(|file| format!("orders/{file}.ndjson")).collect();
    for (name, rows) in names.iter().zip(1..) {
        place.put(name, clean_orders(name, rows));
    }
    // One path has had two contents before.
    place.put("orders/was.ndjson", clean_orders("first", 5));
    place.ingest_with(&spec, &settings).await.unwrap();
    place.put("orders/was.ndjson", clean_orders("second", 50));
    place.ingest_with(&spec, &settings).await.unwrap();
    let lake = place.lake().await;
    for table in ["metric.ingest_files", "metric.ingest_batches"] {
        let settings = MaintainSettings::default();
        let kept = lake.maintain_runs(&settings).await.unwrap();
        let done = lake.maintain(&table.parse().unwrap(), &settings, &kept, None).await.unwrap();
        assert_eq!(done.files_after, 1, "{table}");
    }
    let merged = lake.table(&"metric.ingest_files".parse().unwrap()).await.unwrap().unwrap();
    let order = ["pipeline", "source", "size"].map(str::to_owned).to_vec();
    assert_eq!(merged.file_orders()[0].1, Some(order));

    // All of it is taken away, as a landing folder is; then some of it comes again.
    fs::remove_dir_all(place.folder.join("in/orders")).unwrap();
    place.put("orders/20.ndjson", clean_orders("orders/20.ndjson", 11));
    place.put("orders/another-name.ndjson", clean_orders("orders/25.ndjson", 16));
    place.put("orders/30.ndjson", clean_orders("orders/3x.ndjson", 21));
    place.put("orders/was.ndjson", clean_orders("first", 5));
    place.put("orders/new.ndjson", clean_orders("new", 1_000));
    let report = place.ingest_with(&spec, &settings).await.unwrap();
    assert_eq!((report.files_known, report.files_copied, report.files_stored), (1, 1, 3), "{report:?}");
    assert!(report.warnings[0].contains("orders/25.ndjson"), "{:?}", report.warnings);
    assert_eq!(report.rows_stored, 21 + 5 + 1_000);
    let report = place.ingest_with(&spec, &settings).await.unwrap();
    assert_eq!((report.files_known, report.batches), (4, 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_a_watched_source_whose_names_grow_is_looked_at_from_its_newest_names_on() {
    let place = Place::new();
    let growing = format!("discovery = \"growing\"\nlook_back = 3\n{CONTRACT}");
    let spec = spec("orders", &growing);
    let from = open_store("in", &place.folder, &StoreOptions::new()).unwrap();
    let mut reader = SourceReader::new(&place.lake().await, "test", &spec, &from);
    let seldom = IngestSettings { list_all_every: std::time::Duration::from_secs(3_600), ..IngestSettings::default() };
    let always = IngestSettings { list_all_every: std::time::Duration::ZERO, ..seldom.clone() };
    let put = |name: &str| place.put(&format!("orders/{name}.ndjson"), clean_orders(name, 10));
    for name in ["10", "20", "30", "40", "50"] {
        put(name);
    }
    let report = reader.advance(&seldom, &NoProgress).await.unwrap();
    assert_eq!((report.files_found, report.files_stored), (5, 5));
    let report = reader.advance(&seldom, &NoProgress).await.unwrap();
    assert_eq!((report.files_found, report.files_known, report.batches), (2, 2, 0), "behind the third newest");

    // What comes in order is found, and what comes a little late.
    put("60");
    put("35");
    let report = reader.advance(&seldom, &NoProgress).await.unwrap();
    assert_eq!((report.files_found, report.files_stored), (4, 2), "{report:?}");
    put("55");
    assert_eq!(reader.advance(&seldom, &NoProgress).await.unwrap().files_stored, 1);
    // What comes very late is found when all are listed, by this reader or a new one.
    put("05");
    assert_eq!(reader.advance(&seldom, &NoProgress).await.unwrap().files_stored, 0);
    assert_eq!(reader.advance(&always, &NoProgress).await.unwrap().files_stored, 1);
    put("06");
    let mut anew = SourceReader::new(&place.lake().await, "test", &spec, &from);
    assert_eq!(anew.advance(&seldom, &NoProgress).await.unwrap().files_stored, 1);
    // The first one, whose books are behind by that, goes on.
    put("70");
    assert_eq!(reader.advance(&always, &NoProgress).await.unwrap().files_stored, 1);
    assert_eq!(place.places("raw", "orders").len(), 11 * 10);
}

#[test]
fn how_files_are_discovered_is_checked_in_the_contract() {
    for (keys, expected) in [
        ("discovery = \"grown\"", "did you mean `growing`?"),
        ("look_back = 7", "`look_back` is for discovery = \"growing\" only"),
        ("discovery = \"growing\"\nlook_back = 0", "from 1 to 1000000"),
    ] {
        let error = SourceSpec::parse("orders.toml", &format!("{keys}\n{CONTRACT}")).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_files_one_by_one_give_the_same_rows_as_all_at_once() {
    let (together, apart) = (Place::new(), Place::new());
    let spec = spec("orders", CONTRACT);
    for day in 1..=4 {
        let path = format!("orders/{day:02}.ndjson");
        together.put(&path, orders(day, 25));
        apart.put(&path, orders(day, 25));
        apart.ingest(&spec).await.unwrap();
    }
    together.ingest(&spec).await.unwrap();
    for schema in ["raw", "quarantine"] {
        assert_eq!(together.places(schema, "orders"), apart.places(schema, "orders"));
    }
    let batches = apart.rows("metric", "ingest_batches").unwrap();
    assert_eq!(numbers(&batches, "batch").len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_two_workers_at_once_store_every_record_once() {
    let place = Place::new();
    let files: Vec<(String, u32)> = (1..=6).map(|day| (format!("orders/{day:02}.ndjson"), 25)).collect();
    for (day, (path, count)) in (1..).zip(&files) {
        place.put(path, orders(day, *count));
    }
    let spec = spec("orders", CONTRACT);
    let settings = IngestSettings { batch_files_max: 1, ..IngestSettings::default() };
    place.lake().await;
    let (first, second) = tokio::join!(place.ingest_with(&spec, &settings), place.ingest_with(&spec, &settings));
    first.unwrap();
    second.unwrap();
    let files: Vec<(&str, u32)> = files.iter().map(|(path, count)| (path.as_str(), *count)).collect();
    assert_eq!(place.places("raw", "orders"), expected_places(&files, false));
    assert_eq!(place.places("quarantine", "orders"), expected_places(&files, true));
    let versions = place.versions().await;
    place.ingest(&spec).await.unwrap();
    assert_eq!(place.versions().await, versions);
}

/// A real process that really dies (`abort`, so no destructor runs), for every step of every batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_1_and_ing_2_hold_when_a_worker_is_killed_after_any_step() {
    for step in IngestStep::ALL {
        let place = Place::new();
        place.put("orders/01.ndjson", orders(1, 25));
        place.put("orders/02.ndjson", orders(2, 25));
        let killed = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ingest::killed_worker_process", "--ignored", "--nocapture"])
            .env(WORKER_FOLDER, &place.folder)
            .env(WORKER_STEP, step.as_str())
            .output()
            .unwrap();
        assert!(!killed.status.success(), "{step:?}: {}", String::from_utf8_lossy(&killed.stdout));
        assert!(killed.status.code().is_none(), "{step:?}: died of a signal, not of an error");

        let spec = spec("orders", CONTRACT);
        let report = place.ingest(&spec).await.unwrap();
        let all = [("orders/01.ndjson", 25), ("orders/02.ndjson", 25)];
        assert_eq!(place.places("raw", "orders"), expected_places(&all, false), "{step:?}");
        assert_eq!(place.places("quarantine", "orders"), expected_places(&all, true), "{step:?}");
        let batches = place.rows("metric", "ingest_batches").unwrap();
        assert_eq!(numbers(&batches, "rows_stored").into_iter().flatten().sum::<i64>(), 46, "{step:?}");
        let recovered = matches!(step, IngestStep::Planned | IngestStep::QuarantineCommitted);
        assert_eq!(report.batches_recovered > 0, recovered, "{step:?}");

        let versions = place.versions().await;
        place.ingest(&spec).await.unwrap();
        assert_eq!(place.versions().await, versions, "{step:?}");
    }
}

/// Not a test: the child process of the one above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs as a child process of another test"]
async fn killed_worker_process() {
    let (Ok(folder), Ok(step)) = (std::env::var(WORKER_FOLDER), std::env::var(WORKER_STEP)) else { return };
    let step: IngestStep = step.parse().unwrap();
    let place = Place { folder: PathBuf::from(folder), _temporary: None };
    let settings = IngestSettings {
        batch_files_max: 1,
        on_step: Some(Arc::new(move |reached| {
            if reached == step {
                std::process::abort();
            }
        })),
        ..IngestSettings::default()
    };
    place.ingest_with(&spec("orders", CONTRACT), &settings).await.unwrap();
}

/// Stops after a step by a panic, within this process.
async fn stop_after(place: &Place, spec: &SourceSpec, step: IngestStep) {
    let settings = IngestSettings {
        on_step: Some(Arc::new(move |reached| assert!(reached != step, "stopped on purpose"))),
        ..IngestSettings::default()
    };
    let (lake, spec, folder) = (place.lake().await, spec.clone(), place.folder.clone());
    let stopped = tokio::spawn(async move {
        let from = open_store("in", &folder, &StoreOptions::new()).unwrap();
        ingest_source(&lake, "test", &spec, &from, &settings, &NoProgress).await.map(|_| ())
    });
    assert!(stopped.await.unwrap_err().is_panic());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_a_file_that_changed_under_a_killed_worker_is_read_anew() {
    let spec = spec("orders", CONTRACT);
    for change in ["other content", "gone"] {
        let place = Place::new();
        place.put("orders/01.ndjson", orders(1, 25));
        place.put("orders/02.ndjson", orders(2, 25));
        stop_after(&place, &spec, IngestStep::Planned).await;
        let files: &[(&str, u32)] = if change == "gone" {
            fs::remove_file(place.folder.join("in/orders/01.ndjson")).unwrap();
            &[("orders/02.ndjson", 25)]
        } else {
            place.put("orders/01.ndjson", orders(3, 28));
            &[("orders/01.ndjson", 28), ("orders/02.ndjson", 25)]
        };
        let report = place.ingest(&spec).await.unwrap();
        assert!(report.warnings.iter().any(|warning| warning.contains("was abandoned")), "{report:?}");
        assert_eq!(place.places("raw", "orders"), expected_places(files, false), "{change}");
        assert_eq!(place.places("quarantine", "orders"), expected_places(files, true), "{change}");
        let versions = place.versions().await;
        place.ingest(&spec).await.unwrap();
        assert_eq!(place.versions().await, versions, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_3_every_format_gives_the_same_rows() {
    let columns = r#"
[columns]
id = { type = "string", from = "Id" }
at = { type = "timestamp", from = "At" }
n = "int64"
price = "decimal(12,2)"
"#;
    let contract = |format: &str, path: &str| {
        format!("kind = \"k\"\npath = \"{path}\"\nformat = \"{format}\"\ntimezone = \"+08:00\"\n{columns}")
    };
    let csv =
        "\u{feff}n,Extra,price,Id,At\r\n1,e,1.50,\"a,\"\"b\"\"\",2026-01-31 08:00:00\r\n,,2,b,2026-01-31T00:00:00Z\r\n";
    let ndjson = "{\"Id\":\"a,\\\"b\\\"\",\"At\":\"2026-01-31 08:00:00\",\"n\":1,\"price\":\"1.50\"}\n\
                  {\"price\":2.0,\"Id\":\"b\",\"At\":\"2026-01-31T00:00:00Z\",\"n\":null,\"Extra\":{\"deep\":[1]}}";
    let mut gzip = flate2_gzip(csv.as_bytes());
    // Two members: what `cat a.gz b.gz` makes.
    gzip.extend(flate2_gzip(b""));

    let place = Place::new();
    place.put("csv/a.csv", csv);
    place.put("csv_gzip/a.csv.gz", &gzip);
    place.put("ndjson/a.ndjson", ndjson);
    let rows = RecordBatch::try_from_iter(vec![
        ("n", Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef),
        ("Extra", Arc::new(StringArray::from(vec!["e", ""])) as ArrayRef),
        ("Id", Arc::new(StringArray::from(vec!["a,\"b\"", "b"])) as ArrayRef),
        ("price", Arc::new(StringArray::from(vec!["1.50", "2"])) as ArrayRef),
        ("At", Arc::new(TimestampMillisecondArray::from(vec![1_769_846_400_000_i64, 1_769_846_400_000])) as ArrayRef),
    ])
    .unwrap();
    write_parquet(&place.folder.join("in/parquet/a.parquet"), &rows);

    for (name, format, path) in [
        ("csv", "csv", "csv/*.csv"),
        ("csv_gzip", "csv", "csv_gzip/*.gz"),
        ("ndjson", "ndjson", "ndjson/*"),
        ("parquet", "parquet", "parquet/*.parquet"),
    ] {
        let report = place.ingest(&spec(name, &contract(format, path))).await.unwrap();
        assert_eq!((report.rows_read, report.rows_stored), (2, 2), "{name}: {report:?}");
        assert!(report.warnings.iter().any(|warning| warning.contains("Extra")), "{name}: {report:?}");
        let rows = place.rows("raw", name).unwrap();
        assert_eq!(texts(&rows, "id"), [Some("a,\"b\"".to_owned()), Some("b".to_owned())], "{name}");
        assert_eq!(numbers(&rows, "n"), [Some(1), None], "{name}");
        assert_eq!(rows.column_by_name("price").unwrap().as_primitive::<Decimal128Type>().values(), &[150, 200]);
        let at = rows.column_by_name("at").unwrap().as_primitive::<TimestampMicrosecondType>();
        assert_eq!(at.values(), &[1_769_817_600_000_000; 2], "{name}");
        assert!(rows.schema().field_with_name("Extra").is_err());
    }
}

/// A gzip member that stores its bytes as they are.
fn flate2_gzip(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255];
    let length = u16::try_from(content.len()).unwrap();
    out.push(1);
    out.extend(length.to_le_bytes());
    out.extend((!length).to_le_bytes());
    out.extend(content);
    let mut crc = 0xFFFF_FFFF_u32;
    for byte in content {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    out.extend((!crc).to_le_bytes());
    out.extend(u32::from(length).to_le_bytes());
    out
}

fn write_parquet(path: &Path, rows: &RecordBatch) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), rows.schema(), None).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_is_refused_as_a_whole_with_one_clear_reason() {
    const CSV: &str = "kind = \"k\"\npath = \"csv/*\"\nformat = \"csv\"\n[columns]\nid = \"string\"\nn = \"int32\"\n";
    const PARQUET: &str = "kind = \"k\"\npath = \"parquet/*\"\nformat = \"parquet\"\n[columns]\nid = \"string\"\n";
    let utf16: Vec<u8> =
        std::iter::once(0xFEFF).chain("id,n\na,1\n".encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let mut gb18030 = b"id,n\n".to_vec();
    for _ in 0..30 {
        gb18030.extend(b"\xD0\xD5\xC3\xFB,1\n");
    }
    let many_bad: String = std::iter::once("id,n\n".to_owned()).chain((0..30).map(|i| format!("a{i},x\n"))).collect();
    let cases: Vec<(&str, Vec<u8>, ErrorKind, &[&str])> = vec![
        ("csv/a.csv", utf16, ErrorKind::InvalidInput, &["csv/a.csv", "UTF-16", "utf-16le"]),
        (
            "csv/a.csv",
            gb18030,
            ErrorKind::Quarantine,
            &["csv/a.csv", "30 of 30 rows", "line 2", "not valid UTF-8", "GB18030"],
        ),
        ("csv/a.csv", many_bad.into_bytes(), ErrorKind::Quarantine, &["line 2", "column n: not a value of type int32"]),
        ("csv/a.csv", b"id;n\na;1\n".to_vec(), ErrorKind::InvalidInput, &["csv/a.csv", "delimiter = \";\""]),
        ("csv/a.csv", b"id\na\n".to_vec(), ErrorKind::InvalidInput, &["no column `n`"]),
        ("csv/a.csv", b"id,n\na,1\nb".to_vec(), ErrorKind::InvalidInput, &["truncated at byte 9", "line 3"]),
        (
            "csv/a.csv.gz",
            flate2_gzip(b"id,n\na,1\n")[..20].to_vec(),
            ErrorKind::InvalidInput,
            &["a.csv.gz", "truncated"],
        ),
        ("csv/a.csv.gz", b"id,n\na,1\n".to_vec(), ErrorKind::InvalidInput, &["a.csv.gz", "gzip"]),
        ("parquet/a.parquet", b"PAR1 and so on".to_vec(), ErrorKind::InvalidInput, &["truncated", "footer"]),
        ("parquet/a.parquet", b"id\na\n".to_vec(), ErrorKind::InvalidInput, &["not a Parquet file"]),
    ];
    for (path, content, kind, words) in cases {
        let place = Place::new();
        let spec = if path.starts_with("csv") { spec("s", CSV) } else { spec("s", PARQUET) };
        place.put(path, &content);
        let refused = place.ingest(&spec).await.unwrap().refused;
        let [file] = refused.as_slice() else { panic!("{refused:?}") };
        assert_eq!((file.path.as_str(), file.kind.as_str()), (path, kind.as_str()), "{file:?}");
        for word in words {
            assert!(file.reason.contains(word), "{word:?} in: {}", file.reason);
        }
        assert!(place.rows("raw", "s").is_none() && place.rows("quarantine", "s").is_none(), "{file:?}");
        assert!(place.rows("metric", "ingest_files").is_none(), "{file:?}");
        // As it is, it is told again and not read again; mended, it goes on as if nothing had been.
        let versions = place.versions().await;
        assert_eq!(place.ingest(&spec).await.unwrap().refused, refused);
        assert_eq!(place.versions().await, versions);
        if path == "csv/a.csv" {
            place.put(path, "id,n\na,1\n");
            let report = place.ingest(&spec).await.unwrap();
            assert_eq!((report.rows_stored, report.refused.len()), (1, 0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_3_a_bad_file_does_not_hold_up_the_others_and_comes_in_once_its_contract_fits() {
    let place = Place::new();
    for day in [1, 2, 4] {
        place.put(&format!("orders/0{day}.ndjson"), orders(day, 25));
    }
    let whole = orders(3, 25);
    place.put("orders/03.ndjson", &whole[..whole.len() - 20]);
    let report = place.ingest(&spec("orders", CONTRACT)).await.unwrap();
    assert_eq!((report.files_stored, report.batches, report.refused.len()), (3, 1, 1));
    assert_eq!(report.refused[0].path, "orders/03.ndjson");
    assert_eq!(report.rows_read, report.rows_stored + report.rows_quarantined);
    let before = report.rows_stored;

    // Another contract looks at it again, and it is still cut off.
    let commented = format!("# looked at\n{CONTRACT}");
    let report = place.ingest(&spec("orders", &commented)).await.unwrap();
    assert_eq!((report.files_stored, report.refused.len()), (0, 1));
    place.put("orders/03.ndjson", &whole);
    let report = place.ingest(&spec("orders", &commented)).await.unwrap();
    assert_eq!((report.files_stored, report.refused.len()), (1, 0));
    assert_eq!(place.rows("raw", "orders").unwrap().num_rows() as u64, before + report.rows_stored);
    assert_eq!(place.rows("metric", "ingest_refused_files").unwrap().num_rows(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_folder_is_named_and_leaves_no_tables() {
    let place = Place::new();
    let contract = CONTRACT.replace("orders/*.ndjson", "nowhere/*.ndjson");
    let error = place.ingest(&spec("orders", &contract)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("/in/nowhere does not exist"), "{error}");
    assert!(place.lake().await.tables().await.unwrap().is_empty());

    // A folder without a match is nothing to do.
    let report = place.ingest(&spec("orders", CONTRACT)).await.unwrap();
    assert_eq!((report.files_found, report.batches), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_files_and_files_without_rows_are_fine() {
    let place = Place::new();
    place.put("orders/01.ndjson", "");
    place.put("orders/02.ndjson", "\n\n");
    place.put("orders/.unfinished.ndjson", "{");
    let spec = spec("orders", CONTRACT);
    let report = place.ingest(&spec).await.unwrap();
    assert_eq!((report.files_found, report.rows_read), (2, 0));
    let versions = place.versions().await;
    place.ingest(&spec).await.unwrap();
    assert_eq!(place.versions().await, versions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_may_grow_columns() {
    let place = Place::new();
    place.put("orders/01.ndjson", orders(1, 25));
    place.ingest(&spec("orders", CONTRACT)).await.unwrap();
    place.put("orders/02.ndjson", orders(2, 25).replace("\"quantity\"", "\"note\":\"n\",\"quantity\""));
    let wider = CONTRACT.replace("quantity = \"int32\"", "note = \"string\"\nquantity = \"int32\"");
    place.ingest(&spec("orders", &wider)).await.unwrap();
    let lake = place.lake().await;
    let raw = lake.table(&TableName::new("raw", "orders").unwrap()).await.unwrap().unwrap();
    assert!(raw.schema().field_with_name("note").is_ok());
    assert_eq!(raw.row_count(), Some(46));
    let pii = raw.schema().field_with_name("buyer").unwrap().metadata().get("pii").cloned();
    assert_eq!(pii.as_deref(), Some("true"));
}

#[test]
fn the_shipped_contracts_are_valid() {
    let sources = load_sources(&crate::workspace().join("pipelines/churn/sources")).unwrap();
    assert!(sources.len() >= 12);
    for source in sources {
        assert!(source.event_time.is_some(), "{}", source.name);
    }
}

#[test]
fn a_broken_contract_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = File::create(folder.path().join("orders.toml")).unwrap();
    file.write_all(CONTRACT.replace("int32", "int23").as_bytes()).unwrap();
    let message = load_sources(folder.path()).unwrap_err().to_string();
    assert!(message.contains("orders.toml:10:13: unknown type `int23`; did you mean `int32`?"), "{message}");
}
