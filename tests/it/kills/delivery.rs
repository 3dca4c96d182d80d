//! What arrives as files: new ones, the same again, copies, others in their place, broken ones that are mended.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use holdfast_ingest::SourceSpec;
use holdfast_testkit::Random;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;

/// The sources: one a format, and `events`, which is pushed to as well.
pub(super) const SOURCES: [&str; 4] = ["csv", "ndjson", "parquet", "events"];

/// The ingested folder.
pub(super) const LANDING: &str = "in";

pub(super) fn spec(source: &str) -> SourceSpec {
    let (format, columns) = match source {
        "csv" => ("csv", "id = \"string\"\nn = \"int32\"\n"),
        "parquet" => ("parquet", "id = \"string\"\nn = \"int32\"\n"),
        "events" => ("ndjson", "id = { type = \"string\", from = \"messageId\" }\nn = \"int32\"\n"),
        _ => ("ndjson", "id = \"string\"\nn = \"int32\"\n"),
    };
    let contract = format!(
        "kind = \"k\"\npath = \"{source}/*\"\nformat = \"{format}\"\nmax_quarantine_share = 1.0\n[columns]\n{columns}"
    );
    SourceSpec::parse(&format!("{source}.toml"), &contract).unwrap()
}

/// The endings of a source's files, which say how they are packed.
fn endings(source: &str) -> &'static [&'static str] {
    match source {
        "csv" => &["csv", "csv.gz"],
        "parquet" => &["parquet"],
        _ => &["ndjson", "ndjson.gz", "ndjson.zst"],
    }
}

/// The content of a file at some moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content {
    /// Of rows that fit.
    pub(super) good: Vec<String>,
    /// Of rows that do not.
    pub(super) bad: Vec<String>,
    /// Whether it breaks off in its middle: nothing of it may be stored.
    pub(super) is_cut: bool,
}

/// Where a file is: its source and its path in the landing folder.
type Place = (&'static str, String);

/// What was delivered so far.
#[derive(Debug)]
pub(super) struct Delivery {
    sources: Vec<&'static str>,
    there: BTreeMap<Place, Content>,
    ever: BTreeSet<(&'static str, Content)>,
    acknowledged: BTreeSet<(&'static str, Content)>,
    files: u64,
    records: u64,
}

impl Delivery {
    pub(super) fn new(random: &mut Random) -> Self {
        let mut sources = vec![*random.pick(&SOURCES)];
        let other = *random.pick(&SOURCES);
        if random.chance(30) && !sources.contains(&other) {
            sources.push(other);
        }
        Self {
            sources,
            there: BTreeMap::new(),
            ever: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            files: 0,
            records: 0,
        }
    }

    pub(super) fn sources(&self) -> Vec<&'static str> {
        self.sources.clone()
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// The files that are there.
    pub(super) fn there(&self) -> BTreeMap<Place, Content> {
        self.there.clone()
    }

    /// A source was brought in while these files were there.
    pub(super) fn acknowledge(&mut self, there: &BTreeMap<Place, Content>, sources: &[&'static str]) {
        for ((source, _), content) in there.iter().filter(|(_, content)| !content.is_cut) {
            if sources.contains(source) {
                self.acknowledged.insert((*source, content.clone()));
            }
        }
    }

    /// Contents that have to be stored, and those that may be, of a source.
    pub(super) fn expected(&self, source: &str) -> (Vec<Content>, Vec<Content>) {
        let (must, may): (Vec<_>, Vec<_>) = self
            .ever
            .iter()
            .filter(|(of, content)| *of == source && !content.is_cut)
            .partition(|entry| self.acknowledged.contains(*entry));
        let contents = |entries: Vec<&'_ (&'static str, Content)>| {
            entries.into_iter().map(|(_, content)| content.clone()).collect()
        };
        (contents(must), contents(may))
    }

    /// Something arrives.
    pub(super) async fn deliver(&mut self, random: &mut Random, store: &InMemory) {
        let source = *random.pick(&self.sources);
        let files: Vec<Place> = self.there.keys().filter(|(of, _)| *of == source).cloned().collect();
        let what = if files.is_empty() { 0 } else { random.below(10) };
        match what {
            // The same bytes again: another time stamp.
            6 => {
                let place = random.pick(&files).clone();
                let content = self.there[&place].clone();
                self.put(store, place, content).await;
            }
            // The same bytes under another name, packed the same way.
            7 => {
                let (_, path) = random.pick(&files).clone();
                let content = self.there[&(source, path.clone())].clone();
                let (_, ending) = path.split_once('.').unwrap();
                let copy = format!("{}.{ending}", self.next_name(source));
                self.put(store, (source, copy), content).await;
            }
            // Another content in its place: the whole file where it was cut, other records else.
            8 | 9 => {
                let place = random.pick(&files).clone();
                let content = match &self.there[&place] {
                    content if content.is_cut => Content { is_cut: false, ..content.clone() },
                    _ => self.content(random),
                };
                self.put(store, place, content).await;
            }
            _ => {
                let path = format!("{}.{}", self.next_name(source), random.pick(endings(source)));
                let mut content = self.content(random);
                content.is_cut = random.chance(8);
                self.put(store, (source, path), content).await;
            }
        }
    }

    fn next_name(&mut self, source: &str) -> String {
        self.files += 1;
        format!("{source}/{:03}", self.files)
    }

    fn content(&mut self, random: &mut Random) -> Content {
        let mut content = Content { good: Vec::new(), bad: Vec::new(), is_cut: false };
        for _ in 0..=random.below(6) {
            self.records += 1;
            let id = format!("r{}", self.records);
            if random.chance(20) { content.bad.push(id) } else { content.good.push(id) }
        }
        content
    }

    async fn put(&mut self, store: &InMemory, place: Place, content: Content) {
        let mut bytes = encode(place.0, &place.1, &content);
        if content.is_cut {
            // Within the last record, or within what a packed file ends with.
            bytes.truncate(bytes.len() - 3);
        }
        store.put(&Path::from(format!("{LANDING}/{}", place.1)), bytes.into()).await.unwrap();
        self.ever.insert((place.0, content.clone()));
        self.there.insert(place, content);
    }
}

fn encode(source: &str, path: &str, content: &Content) -> Vec<u8> {
    let good = content.good.iter().map(|id| (id, true));
    let rows: Vec<(&String, bool)> = good.chain(content.bad.iter().map(|id| (id, false))).collect();
    let text = match source {
        "parquet" => return parquet(&rows),
        "csv" => {
            let mut text = "id,n\n".to_owned();
            for (id, fits) in rows {
                text.push_str(&format!("{id},{}\n", if fits { "1" } else { "x" }));
            }
            text
        }
        _ => {
            let name = if source == "events" { "messageId" } else { "id" };
            let line = |(id, fits): (&String, bool)| {
                format!("{{\"{name}\":\"{id}\",\"n\":{}}}\n", if fits { "1" } else { "\"x\"" })
            };
            rows.into_iter().map(line).collect()
        }
    };
    match path.rsplit('.').next() {
        Some("gz") => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        }
        Some("zst") => zstd::encode_all(text.as_bytes(), 1).unwrap(),
        _ => text.into_bytes(),
    }
}

fn parquet(rows: &[(&String, bool)]) -> Vec<u8> {
    // Too large for the contract's int32 where it is not to fit.
    let numbers = Int64Array::from_iter_values(rows.iter().map(|(_, fits)| if *fits { 1 } else { 3_000_000_000 }));
    let ids = StringArray::from_iter_values(rows.iter().map(|(id, _)| id));
    let batch = RecordBatch::try_from_iter([("id", Arc::new(ids) as _), ("n", Arc::new(numbers) as _)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}
