//! What `tests/benches/point_in_time.py` measures: changes written as history, files merged, and a spine joined with any number of views.
//!
//! ```sh
//! cargo run -p holdfast-features --example point_in_time_bench -- write <history> <buckets> <version> <changes.parquet>
//! cargo run -p holdfast-features --example point_in_time_bench -- generate <history> <buckets> <rows> <keys> <versions>
//! cargo run -p holdfast-features --example point_in_time_bench -- compact <history> <files_min>
//! cargo run -p holdfast-features --example point_in_time_bench -- join <spine.parquet> <workers> <memory MiB> <key=value>… <history>…
//! ```
//! A history is a folder; the list of its files is `files.json` in it, which belongs to this program. Prints one JSON object.

use std::error::Error;
use std::fs::File;
use std::io::{Write, stdout};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use futures::{TryStreamExt, stream};
use holdfast_features::{
    Changes, EVENT_TIMESTAMP, FeatureView, History, HistoryFile, HistorySchema, KNOWN_AT, Options, StatusColumns,
    WriteSettings, Zoneless, compact, point_in_time, write_changes,
};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const DAY_MICROS: i64 = 86_400_000_000;

#[tokio::main]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut told = match arguments[..] {
        ["write", folder, buckets, version, changes] => {
            write(folder, buckets.parse()?, version.parse()?, changes).await
        }
        ["generate", folder, buckets, rows, keys, versions] => {
            generate(folder, buckets.parse()?, rows.parse()?, keys.parse()?, versions.parse()?).await
        }
        ["compact", folder, files_min] => merge(folder, files_min.parse()?).await,
        ["join", spine, workers, memory, ref rest @ ..] => join(spine, workers.parse()?, memory.parse()?, rest).await,
        _ => Err("write, generate, compact or join: see the source".into()),
    }?;
    told["peak_mib"] = json!(peak_mib());
    writeln!(stdout(), "{told}")?;
    Ok(())
}

/// A history on disk.
struct OnDisk {
    store: Arc<dyn ObjectStore>,
    list: std::path::PathBuf,
    files: Vec<HistoryFile>,
    described: Value,
}

impl OnDisk {
    fn open(folder: &str) -> Outcome<Self> {
        std::fs::create_dir_all(folder)?;
        let list = Path::new(folder).join("files.json");
        let described: Value = if list.exists() { serde_json::from_reader(File::open(&list)?)? } else { json!({}) };
        let files = described["files"].as_array().into_iter().flatten().map(file).collect::<Outcome<_>>()?;
        Ok(Self { store: Arc::new(LocalFileSystem::new_with_prefix(folder)?), list, files, described })
    }

    fn save(&self, schema: &HistorySchema) -> Outcome {
        let files: Vec<Value> = self
            .files
            .iter()
            .map(|file| {
                json!({"bucket": file.bucket, "path": file.path.to_string(), "bytes": file.bytes, "rows": file.rows,
                       "from": file.versions.start(), "to": file.versions.end()})
            })
            .collect();
        let text = *schema.keys()[0].data_type() == DataType::Utf8;
        let features: Vec<&String> = schema.features().iter().map(|feature| feature.name()).collect();
        let described = json!({"buckets": schema.buckets(), "text": text, "features": features, "files": files});
        Ok(serde_json::to_writer(File::create(&self.list)?, &described)?)
    }

    fn schema(&self, view: &str) -> Outcome<HistorySchema> {
        let features = self.described["features"].as_array().ok_or("no features")?;
        let features: Vec<&str> = features.iter().filter_map(Value::as_str).collect();
        let buckets = u32::try_from(self.described["buckets"].as_u64().ok_or("no buckets")?)?;
        schema(view, self.described["text"] == true, &features, buckets)
    }
}

fn file(value: &Value) -> Outcome<HistoryFile> {
    let number = |key: &str| value[key].as_u64().ok_or("files.json is not as it was written");
    Ok(HistoryFile {
        bucket: u32::try_from(number("bucket")?)?,
        path: value["path"].as_str().ok_or("files.json has no path")?.into(),
        bytes: number("bytes")?,
        rows: number("rows")?,
        versions: i64::try_from(number("from")?)?..=i64::try_from(number("to")?)?,
    })
}

fn schema(view: &str, text: bool, features: &[&str], buckets: u32) -> Outcome<HistorySchema> {
    let key = Field::new("key", if text { DataType::Utf8 } else { DataType::Int64 }, false);
    let features = features.iter().map(|name| Field::new(*name, DataType::Int64, true)).collect();
    Ok(HistorySchema::new(view, vec![key], features, buckets)?)
}

fn read(path: &str) -> Outcome<Vec<RecordBatch>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.with_batch_size(65_536).build()?;
    Ok(reader.collect::<Result<_, _>>()?)
}

/// What all threads of this process that are still there have worked. Linux only: 0 elsewhere.
fn cpu_seconds() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let counted = threads.filter_map(|thread| {
        let schedule = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        schedule.split(' ').next()?.parse::<f64>().ok()
    });
    counted.sum::<f64>() / 1e9
}

/// The most memory that this process has had, in MiB. Linux only: 0 elsewhere.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    peak.unwrap_or_default() / 1024.0
}

async fn write(folder: &str, buckets: u32, version: i64, changes: &str) -> Outcome<Value> {
    let mut history = OnDisk::open(folder)?;
    let batches = read(changes)?;
    let columns = batches.first().ok_or("no changes")?.schema();
    let named = |field: &&Arc<Field>| ![EVENT_TIMESTAMP, KNOWN_AT, "key"].contains(&field.name().as_str());
    let features: Vec<&str> = columns.fields().iter().filter(named).map(|field| field.name().as_str()).collect();
    let text = *columns.field_with_name("key")?.data_type() != DataType::Int64;
    let schema = schema("v", text, &features, buckets)?;
    let changes = Changes { version, known_at: 0, batches: &batches, zoneless: Zoneless::Refuse };
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let folder = object_store::path::Path::default();
    let files = write_changes(&history.store, &folder, &schema, changes, &WriteSettings::default()).await?;
    let seconds = began.elapsed().as_secs_f64();
    let (rows, bytes): (u64, u64) = (files.iter().map(|f| f.rows).sum(), files.iter().map(|f| f.bytes).sum());
    history.files.extend(files);
    history.save(&schema)?;
    Ok(json!({"seconds": seconds, "cpu_seconds": cpu_seconds() - cpu, "rows": rows, "bytes": bytes}))
}

/// A made-up history, a version at a time: each version brings a stretch of time in which every key may change.
async fn generate(folder: &str, buckets: u32, rows: i64, keys: i64, versions: i64) -> Outcome<Value> {
    let mut history = OnDisk::open(folder)?;
    let schema = schema("v", false, &["v"], buckets)?;
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let stretch = 365 * DAY_MICROS / versions;
    let mut seed = 42_u64;
    let mut random = |below: i64| -> Outcome<i64> {
        // splitmix64
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = seed;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(i64::try_from((bits ^ (bits >> 31)) % u64::try_from(below)?)?)
    };
    for version in 0..versions {
        let count = rows / versions;
        let (mut key, mut event, mut value) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            key.push(random(keys)?);
            event.push(1_735_689_600_000_000 + version * stretch + random(stretch)?);
            value.push(random(100_000)?);
        }
        let moments = |micros: Vec<i64>| Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC"));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("key", Arc::new(Int64Array::from(key))),
            (EVENT_TIMESTAMP, moments(event.clone())),
            (KNOWN_AT, moments(event)),
            ("v", Arc::new(Int64Array::from(value))),
        ];
        let batches = [RecordBatch::try_from_iter(columns)?];
        let changes = Changes { version, known_at: 0, batches: &batches, zoneless: Zoneless::Refuse };
        let folder = object_store::path::Path::default();
        history
            .files
            .extend(write_changes(&history.store, &folder, &schema, changes, &WriteSettings::default()).await?);
    }
    history.save(&schema)?;
    let bytes: u64 = history.files.iter().map(|file| file.bytes).sum();
    Ok(
        json!({"seconds": began.elapsed().as_secs_f64(), "cpu_seconds": cpu_seconds() - cpu, "rows": rows, "bytes": bytes, "files": history.files.len()}),
    )
}

async fn merge(folder: &str, files_min: usize) -> Outcome<Value> {
    let mut history = OnDisk::open(folder)?;
    let schema = history.schema("v")?;
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let stretches = History::new(&schema, history.files.clone())?.compactions(files_min);
    let merged = stretches.len();
    let settings = WriteSettings::default();
    let merging = stretches.into_iter().map(|files| {
        let (store, schema, settings) = (Arc::clone(&history.store), schema.clone(), settings.clone());
        tokio::spawn(async move {
            let folder = object_store::path::Path::default();
            let file = compact(&store, &folder, &schema, &files, &settings).await?;
            Ok::<_, holdfast_features::FeatureError>((files, file))
        })
    });
    let merging: Vec<_> = merging.collect();
    for task in merging {
        let (old, new) = task.await??;
        history.files.retain(|file| !old.contains(file));
        history.files.push(new);
    }
    history.save(&schema)?;
    Ok(
        json!({"seconds": began.elapsed().as_secs_f64(), "cpu_seconds": cpu_seconds() - cpu, "merged": merged, "files": history.files.len()}),
    )
}

async fn join(spine: &str, workers: NonZeroUsize, memory_mib: usize, rest: &[&str]) -> Outcome<Value> {
    let mut options = Options {
        full_names: true,
        status: StatusColumns::View,
        memory_bytes: memory_mib << 20,
        workers,
        ..Options::new("at")
    };
    let (mut ttl, mut folders) = (None, Vec::new());
    for &argument in rest {
        match argument.split_once('=') {
            Some(("strict", value)) => options.strict = value.parse()?,
            Some(("known_only", value)) => options.known_only = value.parse()?,
            Some(("ttl_days", value)) => ttl = Some(Duration::from_secs(86_400 * value.parse::<u64>()?)),
            Some(_) => return Err(format!("{argument} is no setting").into()),
            None => folders.push(argument),
        }
    }
    let mut views = Vec::new();
    // One store for all: folders are below the root.
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
    for (number, folder) in folders.into_iter().enumerate() {
        let history = OnDisk::open(folder)?;
        let schema = history.schema(&format!("v{number:02}"))?;
        let root = object_store::path::Path::from_absolute_path(std::fs::canonicalize(folder)?)?;
        let files = history.files.into_iter().map(|file| {
            let path = file.path.parts().fold(root.clone(), |path, part| path.join(part));
            HistoryFile { path, ..file }
        });
        let history = History::new(&schema, files)?;
        views.push(FeatureView { ttl, ..FeatureView::all(schema, history) });
    }
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let spine = ParquetRecordBatchReaderBuilder::try_new(File::open(spine)?)?.with_batch_size(65_536);
    let columns = Arc::new(Schema::new(spine.schema().fields().clone()));
    let spine = spine.build()?;
    let found = point_in_time(store, &columns, stream::iter(spine), views, options)?;
    let schema = Arc::clone(found.schema());
    let mut found = std::pin::pin!(found);
    let (mut rows, mut present, mut check, mut first) = (0, 0, 0_i64, None);
    // Looked at as they come and dropped: what a reader who passes them on does.
    while let Some(batch) = found.try_next().await? {
        first.get_or_insert_with(|| began.elapsed().as_secs_f64());
        rows += batch.num_rows();
        let row = batch.column_by_name("row").ok_or("the spine has no column row")?.as_primitive::<Int64Type>();
        let weights: Vec<i64> = row.values().iter().map(|row| row % 997 + 1).collect();
        for (field, column) in schema.fields().iter().zip(batch.columns()) {
            if field.name().starts_with('v') && *field.data_type() == DataType::Int64 {
                let values = column.as_primitive::<Int64Type>();
                present += values.len() - values.null_count();
                // What stands below a null is not known, so nulls are looked at where there are any.
                let weighed = values.values().iter().zip(&weights).map(|(value, weight)| value * weight);
                check += match values.nulls() {
                    Some(nulls) => {
                        weighed.zip(nulls).map(|(weighed, valid)| if valid { weighed } else { 0 }).sum::<i64>()
                    }
                    None => weighed.sum::<i64>(),
                };
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    Ok(
        json!({"seconds": seconds, "cpu_seconds": cpu, "first_seconds": first, "rows": rows, "present": present, "check": check}),
    )
}
