//! What an append with its commit costs beside a bare Arrow Parquet writer on the same batches. Measured, not tested:
//! `cargo test --workspace --test it -- --ignored --nocapture append_times`.
//!
//! The peer writes the same batches with `parquet::arrow::ArrowWriter` into one local file: as it is out of the box but for Snappy, which is what Delta tables have,
//! and with the encodings that ours has. It makes no statistics for a log, no commit, and is told the path.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use holdfast_lake::{Change, ChangeKind, CommitOutcome, Lake, Position, Table, TableSpec, TableWriter, WriterSettings};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::leases::{HandClock, lake};

const ROWS: usize = 2_000_000;
const BATCH_ROWS: usize = 16_384;
const RUNS: usize = 9;

/// Order lines: ids that do not repeat, ids that do, a moment, numbers, money and a word.
fn batches() -> Vec<RecordBatch> {
    let mut seed = 0x9E37_79B9_u64;
    let mut roll = move |sides: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % sides
    };
    let mut batches = Vec::new();
    let mut first = 0;
    while first < ROWS {
        let rows = BATCH_ROWS.min(ROWS - first);
        let signed = |number: u64| i64::try_from(number).unwrap();
        let columns: Vec<(&str, ArrayRef)> = vec![
            (
                "line_id",
                Arc::new(StringArray::from_iter_values((first..first + rows).map(|row| format!("L{row:012}")))),
            ),
            ("member", Arc::new(StringArray::from_iter_values((0..rows).map(|_| format!("M{:06}", roll(50_000)))))),
            (
                "ordered_at",
                Arc::new(
                    TimestampMicrosecondArray::from_iter_values((0..rows).map(|row| {
                        1_750_000_000_000_000 + signed(((first + row) as u64) * 1_000_000 + roll(1_000_000))
                    }))
                    .with_timezone("UTC"),
                ),
            ),
            ("product", Arc::new(Int64Array::from_iter_values((0..rows).map(|_| signed(roll(100_000)))))),
            ("quantity", Arc::new(Int32Array::from_iter_values((0..rows).map(|_| i32::try_from(roll(9)).unwrap())))),
            (
                "amount",
                Arc::new(
                    Decimal128Array::from_iter_values((0..rows).map(|_| i128::from(roll(1_000_000))))
                        .with_precision_and_scale(12, 2)
                        .unwrap(),
                ),
            ),
            (
                "status",
                Arc::new(StringArray::from_iter_values(
                    (0..rows).map(|_| ["paid", "sent", "returned"][usize::try_from(roll(3)).unwrap()]),
                )),
            ),
        ];
        batches.push(
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
                .unwrap(),
        );
        first += rows;
    }
    batches
}

async fn append(lake: &Lake, table: &Table, version: i64, batches: &[RecordBatch]) {
    let mut writer = TableWriter::new(table, WriterSettings::default());
    for batch in batches {
        writer.write(batch).await.unwrap();
    }
    let outcome = lake
        .commit(Change {
            table,
            position: Position { app_id: "writer".to_owned(), version },
            fence: None,
            kind: ChangeKind::Append,
            files: writer.close().await.unwrap(),
            schema: None,
            comment: None,
            metadata: serde_json::Map::new(),
        })
        .await
        .unwrap();
    assert!(matches!(outcome, CommitOutcome::Applied { .. }), "{outcome:?}");
}

fn write_bare(path: &Path, schema: &SchemaRef, has_our_encodings: bool, batches: &[RecordBatch]) {
    let mut properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    if has_our_encodings {
        for field in schema.fields() {
            if matches!(field.data_type(), DataType::Int64 | DataType::Timestamp(..)) {
                let column = ColumnPath::new(vec![field.name().clone()]);
                properties = properties
                    .set_column_dictionary_enabled(column.clone(), false)
                    .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
            }
        }
    }
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties.build())).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.close().unwrap();
}

fn read(paths: &[std::path::PathBuf], schema: &SchemaRef) -> RecordBatch {
    let batches: Vec<RecordBatch> = paths
        .iter()
        .flat_map(|path| ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap())
        .map(|batch| RecordBatch::try_new(Arc::clone(schema), batch.unwrap().columns().to_vec()).unwrap())
        .collect();
    concat_batches(schema, &batches).unwrap()
}

/// The seconds of processor time that this process has taken.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // User and system time are the fields 14 and 15, in hundredths.
    (after_name[11].parse::<f64>().unwrap() + after_name[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "takes a minute and prints what it measured"]
async fn append_times_beside_a_bare_parquet_writer() {
    let batches = batches();
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(&folder.path().join("lake"), &HandClock::new()).await;
    let schema: SchemaRef = Arc::new(Schema::clone(batches[0].schema().as_ref()));
    let spec = TableSpec {
        name: "raw.lines".parse().unwrap(),
        schema: Arc::clone(&schema),
        partition_by: Vec::new(),
        comment: String::new(),
    };
    let table = lake.ensure_table(&spec).await.unwrap();
    let data = folder.path().join("lake/raw/lines");
    let names = ["append with its commit", "bare writer, its own encodings", "bare writer, our encodings"];
    let mut taken = [const { Vec::new() }; 3];
    let mut bytes = [0; 3];
    for run in 0..=RUNS {
        for contender in 0..3 {
            let bare = folder.path().join(format!("bare-{contender}.parquet"));
            let (began, began_cpu) = (Instant::now(), processor_seconds());
            match contender {
                0 => append(&lake, &table, i64::try_from(run).unwrap() + 1, &batches).await,
                _ => write_bare(&bare, &schema, contender == 2, &batches),
            }
            let (wall, cpu) = (began.elapsed().as_secs_f64(), processor_seconds() - began_cpu);
            let paths = match contender {
                0 => std::fs::read_dir(&data)
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .filter(|path| path.extension().is_some_and(|extension| extension == "parquet"))
                    .collect(),
                _ => vec![bare],
            };
            if run == 0 {
                // The first round warms up, and is where the answers are compared.
                let expected = concat_batches(&schema, &batches).unwrap();
                assert!(read(&paths, &schema) == expected, "{} wrote other rows", names[contender]);
                bytes[contender] = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
            } else {
                taken[contender].push((wall, cpu));
            }
            for path in paths {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    eprintln!(
        "\n{ROWS} rows of {} columns in batches of {BATCH_ROWS}, medians of {RUNS} in turn",
        schema.fields().len()
    );
    eprintln!("| | wall s | least s | CPU s | MB | speed, wall | CPU |\n|---|---|---|---|---|---|---|");
    let middle = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2], values[0])
    };
    let ours = (
        middle(taken[0].iter().map(|(wall, _)| *wall).collect()).0,
        middle(taken[0].iter().map(|(_, cpu)| *cpu).collect()).0,
    );
    for (contender, name) in names.iter().enumerate() {
        let (wall, least) = middle(taken[contender].iter().map(|(wall, _)| *wall).collect());
        let (cpu, _) = middle(taken[contender].iter().map(|(_, cpu)| *cpu).collect());
        #[expect(clippy::cast_precision_loss, reason = "megabytes for people")]
        let megabytes = bytes[contender] as f64 / 1e6;
        eprintln!(
            "| {name} | {wall:.3} | {least:.3} | {cpu:.2} | {megabytes:.1} | {:.2} | {:.2} |",
            wall / ours.0,
            cpu / ours.1
        );
    }
}
