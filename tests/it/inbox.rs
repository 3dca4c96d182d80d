//! The inbox: objects of several forms, whatever the contract says of files; rows of objects that are each followed by name.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use chrono::{DateTime, TimeDelta, Utc};
use holdfast_ingest::{
    Inbox, InboxReader, IngestError, IngestSettings, IngestStep, Look, SourceReport, SourceSpec, SweepSettings, Swept,
    ingest_inbox, ingest_source, sweep_inbox,
};
use holdfast_lake::{Lake, LakeSettings, StoreOptions, open_store};
use holdfast_types::{FixedClock, NoProgress};
use object_store::ObjectStoreExt;
use object_store::path::Path as ObjectPath;
use parquet::arrow::ArrowWriter;

use crate::{commits, rows};

/// A source of CSV files in another encoding, whose inbox is none of that.
const CONTRACT: &str = r#"
kind = "orders"
path = "orders/*.csv"
format = "csv"
encoding = "gb18030"
delimiter = ";"

[columns]
id = "int64"
name = "string"
"#;

const NOW: &str = "2026-03-01T12:00:00Z";

struct Place {
    folder: tempfile::TempDir,
    lake: Lake,
    spec: SourceSpec,
    inbox: Inbox,
}

impl Place {
    async fn new(contract: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path()).await;
        let spec = SourceSpec::parse("orders.toml", contract).unwrap();
        let inbox = Inbox::new(&lake, "test", &spec);
        Self { folder, lake, spec, inbox }
    }

    async fn put(&self, object: &ObjectPath, bytes: impl Into<Vec<u8>>) {
        self.lake.store().put(object, bytes.into().into()).await.unwrap();
    }

    async fn push(&self, minutes_ago: i64, ids: &[u64]) {
        self.put(&self.inbox.object(now() - TimeDelta::minutes(minutes_ago)), lines(ids)).await;
    }

    async fn feed(&self, partition: &str, position: u64, ids: &[u64]) {
        let object = self.inbox.feed_object(partition, &format!("{position:020}"));
        self.put(&object, zstd(&lines(ids))).await;
    }

    fn reader(&self, settings: IngestSettings) -> InboxReader {
        InboxReader::new(self.inbox.clone(), settings)
    }

    async fn ingest(&self) -> SourceReport {
        ingest_inbox(&self.lake, "test", &self.spec, &IngestSettings::default(), &NoProgress).await.unwrap()
    }

    /// The ids in `raw`, sorted.
    fn stored(&self) -> Vec<u64> {
        rows(self.folder.path(), "select id from raw.orders order by id")
            .iter()
            .map(|row| row["id"].as_u64().unwrap())
            .collect()
    }
}

fn now() -> DateTime<Utc> {
    NOW.parse().unwrap()
}

async fn lake(folder: &Path) -> Lake {
    lake_at(folder, now()).await
}

async fn lake_at(folder: &Path, moment: DateTime<Utc>) -> Lake {
    let location = folder.join("lake");
    let (options, settings) = (StoreOptions::new(), LakeSettings::default());
    Lake::create_or_open(location.to_str().unwrap(), folder, &options, settings, Arc::new(FixedClock(moment)))
        .await
        .unwrap()
}

fn lines(ids: &[u64]) -> Vec<u8> {
    ids.iter().map(|id| format!("{{\"id\":{id},\"name\":\"第{id}\"}}\n")).collect::<String>().into_bytes()
}

/// A skippable frame, as feeds have at the head of their objects, then the text.
fn zstd(text: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    packed.write_all(&0x184D_2A50_u32.to_le_bytes()).unwrap();
    packed.write_all(&4_u32.to_le_bytes()).unwrap();
    packed.write_all(b"head").unwrap();
    packed.extend(zstd_frame(text));
    packed
}

/// A Zstandard frame of raw blocks, RFC 8878, section 3.1.1.
fn zstd_frame(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD];
    // A single segment with its size in four bytes.
    frame.push(0b1010_0000);
    frame.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    let block = (text.len() << 3) | 1;
    frame.extend(&u32::try_from(block).unwrap().to_le_bytes()[..3]);
    frame.extend(text);
    frame
}

fn parquet(ids: &[u64]) -> Vec<u8> {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| i64::try_from(*id).unwrap())));
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!("第{id}"))));
    let batch = RecordBatch::try_from_iter([("id", numbers), ("name", names)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[tokio::test]
async fn objects_are_read_in_the_form_that_their_names_say_and_files_as_the_contract_says() {
    let place = Place::new(CONTRACT).await;
    let put = place.inbox.put_folder(now());
    place.push(0, &[1, 2]).await;
    place.put(&Inbox::put_object(&put, 0), parquet(&[3, 4])).await;
    place.feed("0-orders", 0, &[5]).await;
    place.put(&Inbox::put_object(&put, 1), parquet(&[6])).await;
    place.feed("0-orders", 1, &[7]).await;
    // What is none of ours is left alone.
    place.put(&place.inbox.folder().join("notes.txt"), b"x".as_slice()).await;
    place.put(&place.inbox.folder().join("feed").join("0-orders").join("x.tmp"), b"x".as_slice()).await;
    let orders = place.folder.path().join("in/orders");
    std::fs::create_dir_all(&orders).unwrap();
    std::fs::write(orders.join("1.csv"), b"id;name\n8;\xb5\xda8\n").unwrap();
    let from = open_store("in", place.folder.path(), &StoreOptions::new()).unwrap();

    let settings = IngestSettings::default();
    let report = ingest_source(&place.lake, "test", &place.spec, &from, &settings, &NoProgress).await.unwrap();
    assert_eq!((report.files_found, report.files_stored, report.rows_stored), (6, 6, 8), "{report:?}");
    assert_eq!(report.batches, 1, "files and objects of all forms are one batch");
    assert!(report.warnings.is_empty(), "{report:?}");
    let names = rows(place.folder.path(), "select id, name, _source_line as line from raw.orders order by id");
    let names: Vec<String> = names.iter().map(|row| format!("{} {} {}", row["id"], row["name"], row["line"])).collect();
    let expected = [(1, 1), (2, 2), (3, 1), (4, 2), (5, 1), (6, 1), (7, 1), (8, 2)];
    assert_eq!(names, expected.map(|(id, line)| format!("{id} \"第{id}\" {line}")));

    let versions = commits(place.folder.path());
    assert_eq!(place.ingest().await.batches, 0);
    assert_eq!(commits(place.folder.path()), versions, "nothing new, nothing committed");
}

#[tokio::test]
async fn ing_2_an_open_batch_of_several_forms_is_finished_in_each_files_own_form_by_whoever_comes() {
    for step in [IngestStep::RawStaged, IngestStep::Planned, IngestStep::RawCommitted] {
        for by_reader in [true, false] {
            let place = Place::new(CONTRACT).await;
            let put = place.inbox.put_folder(now());
            place.push(3, &[1, 2]).await;
            place.put(&Inbox::put_object(&put, 0), parquet(&[3, 4])).await;
            place.feed("p", 0, &[5, 6]).await;
            let dies = IngestSettings {
                on_step: Some(Arc::new(move |reached| assert_ne!(reached, step, "killed here"))),
                ..IngestSettings::default()
            };
            let mut reader = place.reader(dies);
            let died = tokio::spawn(async move { reader.advance(Look::Ahead).await.map(|_| ()) }).await;
            assert!(died.unwrap_err().is_panic());
            place.push(2, &[7]).await;
            if by_reader {
                let report = place.reader(IngestSettings::default()).advance(Look::Ahead).await.unwrap();
                assert!(report.warnings.is_empty(), "nothing was abandoned: {report:?}");
            } else {
                assert!(place.ingest().await.warnings.is_empty(), "nothing was abandoned");
            }
            assert_eq!(place.stored(), [1, 2, 3, 4, 5, 6, 7], "{step:?}, {by_reader}");
        }
    }
}

#[tokio::test]
async fn each_partition_and_stream_is_followed_by_its_own_names() {
    let place = Place::new(CONTRACT).await;
    let mut reader = place.reader(IngestSettings::default());
    place.feed("9-late", 100, &[1]).await;
    place.feed("1-early", 5, &[2]).await;
    place.push(30, &[3]).await;
    assert_eq!(reader.advance(Look::Ahead).await.unwrap().rows_stored, 3);
    // Behind the newest of its own partition, before those of others.
    place.feed("1-early", 6, &[4]).await;
    place.feed("5-new", 0, &[5]).await;
    let put = place.inbox.put_folder(now() - TimeDelta::minutes(90));
    place.put(&Inbox::put_object(&put, 0), parquet(&[6])).await;
    place.push(29, &[7]).await;
    let report = reader.advance(Look::Ahead).await.unwrap();
    assert_eq!((report.files_found, report.rows_stored), (4, 4));
    // A stream goes on while another has begun: looking back finds it.
    let other = place.inbox.put_folder(now() - TimeDelta::minutes(50));
    place.put(&Inbox::put_object(&other, 0), parquet(&[8])).await;
    assert_eq!(reader.advance(Look::Ahead).await.unwrap().rows_stored, 1);
    place.put(&Inbox::put_object(&put, 1), parquet(&[9])).await;
    assert_eq!(reader.advance(Look::Ahead).await.unwrap().rows_stored, 0);
    assert_eq!(reader.advance(Look::Back).await.unwrap().rows_stored, 1);
    assert_eq!(place.stored(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);

    // What a partition has stored is not listed again, neither by this reader nor by one that begins.
    for position in 7..60 {
        place.feed("1-early", position, &[]).await;
    }
    assert_eq!(reader.advance(Look::Back).await.unwrap().files_stored, 53);
    for mut reader in [reader, place.reader(IngestSettings::default())] {
        let found = reader.advance(Look::Back).await.unwrap().files_found;
        assert!(found < 10, "{found} objects were found again");
    }
}

#[tokio::test]
async fn what_is_said_twice_counts_twice_in_the_inbox() {
    let place = Place::new(CONTRACT).await;
    let put = place.inbox.put_folder(now());
    place.put(&Inbox::put_object(&put, 0), parquet(&[1])).await;
    place.put(&Inbox::put_object(&put, 1), parquet(&[1])).await;
    let report = place.ingest().await;
    assert_eq!((report.rows_stored, report.files_copied), (2, 0), "{report:?}");
    place.put(&Inbox::put_object(&put, 2), parquet(&[1])).await;
    assert_eq!(place.ingest().await.rows_stored, 1);
    assert_eq!(place.stored(), [1, 1, 1]);
}

#[tokio::test]
async fn ing_1_what_an_abandoned_batch_had_read_is_read_again_although_later_objects_are_stored() {
    let place = Place::new(CONTRACT).await;
    place.feed("p", 0, &[1]).await;
    place.feed("p", 1, &[2]).await;
    let dies = IngestSettings {
        on_step: Some(Arc::new(|reached| assert_ne!(reached, IngestStep::Planned, "killed here"))),
        ..IngestSettings::default()
    };
    let mut reader = place.reader(dies);
    assert!(tokio::spawn(async move { reader.advance(Look::Ahead).await.map(|_| ()) }).await.is_err());
    // The contract takes less than it did: the batch cannot be finished as it was planned.
    let contract =
        CONTRACT.replace("name = \"string\"", "name = \"string\"\ncount = { type = \"int32\", from = \"name\" }");
    let contract = contract.replace("name = \"string\"\n", "");
    place.feed("p", 2, &[3]).await;
    let spec = SourceSpec::parse("orders.toml", &contract).unwrap();
    let mut reader = InboxReader::new(Inbox::new(&place.lake, "test", &spec), IngestSettings::default());
    let report = reader.advance(Look::Ahead).await.unwrap();
    assert!(report.warnings.iter().any(|warning| warning.contains("was abandoned")), "{report:?}");
    assert_eq!((report.rows_read, report.rows_quarantined), (3, 3), "{report:?}");
}

#[tokio::test]
async fn ing_1_only_what_is_in_raw_and_old_is_swept_and_a_feeds_last_object_stays() {
    let place = Place::new(CONTRACT).await;
    let stream = place.inbox.put_folder(now());
    place.push(10, &[1, 2]).await;
    place.put(&Inbox::put_object(&stream, 0), parquet(&[3])).await;
    place.put(&Inbox::put_object(&stream, 1), b"no Parquet".as_slice()).await;
    for position in 0..3 {
        place.feed("0-orders", position, &[4 + position]).await;
    }
    place.feed("1-orders", 0, &[7]).await;
    let report = place.ingest().await;
    assert_eq!((report.rows_stored, report.files_refused), (7, 1), "{report:?}");
    place.push(5, &[8]).await;

    let sweep =
        SweepSettings { retention: Duration::from_secs(24 * 60 * 60), pushes_kept: 0, ..SweepSettings::default() };
    let objects = || objects(place.folder.path());
    let before = objects();
    assert_eq!(before.len(), 8);
    assert_eq!(sweep_inbox(&place.inbox, &sweep).await.unwrap(), Swept::default(), "all of it is young");

    // Objects have the time of the disk they are on.
    let later = lake_at(place.folder.path(), "2999-01-01T00:00:00Z".parse().unwrap()).await;
    let inbox = Inbox::new(&later, "test", &place.spec);
    let of_pushes = SweepSettings { pushes_kept: 2, is_dry_run: true, ..sweep };
    assert_eq!(sweep_inbox(&inbox, &of_pushes).await.unwrap().objects, 3, "the newest pushes say which messages came");
    let would = sweep_inbox(&inbox, &SweepSettings { is_dry_run: true, ..sweep }).await.unwrap();
    assert_eq!((would.objects, objects()), (4, before));
    assert_eq!(sweep_inbox(&inbox, &sweep).await.unwrap(), would);
    let left = objects();
    let is_left = |end: &str| left.iter().filter(|object| object.ends_with(end)).count();
    assert_eq!(left.len(), 4, "{left:?}");
    assert_eq!(is_left("0-orders/00000000000000000002.ndjson.zst"), 1, "how far the feed was read: {left:?}");
    assert_eq!(is_left("1-orders/00000000000000000000.ndjson.zst"), 1, "{left:?}");
    assert_eq!(is_left("/00000000000000000001.parquet"), 1, "refused: {left:?}");
    assert_eq!(sweep_inbox(&inbox, &sweep).await.unwrap(), Swept::default());

    // Work goes on where it was, by a reader that knows what was there and by one that does not.
    assert_eq!(place.ingest().await.rows_stored, 1);
    place.feed("0-orders", 3, &[9]).await;
    assert_eq!(place.reader(IngestSettings::default()).advance(Look::Ahead).await.unwrap().rows_stored, 1);
    assert_eq!(place.stored(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

/// The objects in all inboxes of the lake in `folder`.
fn objects(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.join("lake/_holdfast/inbox")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.to_str().unwrap().to_owned())),
            }
        }
    }
    found
}

#[tokio::test]
async fn an_object_that_was_refused_is_read_under_a_contract_that_fits() {
    let place = Place::new(CONTRACT).await;
    let put = place.inbox.put_folder(now());
    let wrong = CONTRACT.replace("name = \"string\"", "price = { type = \"int32\", from = \"name\" }");
    let spec = SourceSpec::parse("orders.toml", &wrong).unwrap();
    place.put(&Inbox::put_object(&put, 0), parquet(&[1])).await;
    let mut reader = InboxReader::new(Inbox::new(&place.lake, "test", &spec), IngestSettings::default());
    let report = reader.advance(Look::Ahead).await.unwrap();
    assert_eq!((report.rows_stored, report.files_refused), (0, 1), "{report:?}");
    // Others go on behind it, and so does time.
    for day in 1..4 {
        let later = place.inbox.put_folder(now() + TimeDelta::days(day));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![10 + day]));
        let prices: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let batch = RecordBatch::try_from_iter([("id", numbers), ("name", prices)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        place.put(&Inbox::put_object(&later, 0), bytes).await;
        assert_eq!(reader.advance(Look::Ahead).await.unwrap().rows_stored, 1);
    }
    assert_eq!(place.reader(IngestSettings::default()).advance(Look::Ahead).await.unwrap().rows_stored, 1);
    assert_eq!(place.stored(), [1, 11, 12, 13]);
    assert_eq!(place.reader(IngestSettings::default()).advance(Look::Back).await.unwrap().rows_stored, 0);
}

#[tokio::test]
async fn files_in_a_folder_that_is_named_as_the_inbox_are_not_taken_for_its_objects() {
    let contract = CONTRACT.replace("orders/*.csv", "**/*.csv");
    let place = Place::new(&contract).await;
    let folder = place.folder.path().join("in/inbox/test/orders");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("1.csv"), "id;name\n1;x\n").unwrap();
    let from = open_store("in", place.folder.path(), &StoreOptions::new()).unwrap();
    let settings = IngestSettings::default();
    let error = ingest_source(&place.lake, "test", &place.spec, &from, &settings, &NoProgress).await.unwrap_err();
    assert!(matches!(error, IngestError::Layout { .. }), "{error}");
    assert!(error.to_string().contains("another name"), "{error}");
}
