//! Bad data by every way in: each has one fate, told with its place, and ING-3 holds: what was read is stored or in
//! quarantine, by query. What stands beside it goes on.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use serde_json::Value;

use crate::{ended, holdfast_binary, rows, succeed};

/// What becomes of a file, beside a neighbour of one good row.
enum Fate {
    /// Rows that are stored, and what is in quarantine: lines, columns and a part of the reason.
    Rows(u64, &'static [(u64, Option<&'static str>, &'static str)]),
    /// Refused as a whole, of this kind, with these words.
    Refused(&'static str, &'static [&'static str]),
}

struct Case {
    name: &'static str,
    /// Of the contract: all but `path` and `kind`.
    contract: &'static str,
    /// The suffix of both files, and the good one.
    suffix: &'static str,
    neighbour: &'static str,
    bad: Vec<u8>,
    fate: Fate,
}

const NDJSON: &str =
    "format = \"ndjson\"\n[columns]\nid = \"string\"\nat = \"timestamp\"\namount = \"decimal(10,2)\"\n";
const NDJSON_GOOD: &str = "{\"id\":\"good\"}\n";
const CSV: &str = "format = \"csv\"\n[columns]\nid = \"string\"\nat = \"timestamp\"\namount = \"decimal(10,2)\"\n";
const CSV_GOOD: &str = "id,at,amount\ngood,,1.00\n";

fn cases() -> Vec<Case> {
    let ndjson =
        |name, bad: Vec<u8>, fate| Case { name, contract: NDJSON, suffix: "ndjson", neighbour: NDJSON_GOOD, bad, fate };
    let csv = |name, bad: Vec<u8>, fate| Case { name, contract: CSV, suffix: "csv", neighbour: CSV_GOOD, bad, fate };
    let text = |text: &str| text.as_bytes().to_vec();
    let deep =
        format!("{{\"id\":\"deep\",\"extra\":{}1{}}}\n{{\"id\":\"flat\"}}\n", "[".repeat(50_000), "]".repeat(50_000));
    vec![
        ndjson("zero_bytes", Vec::new(), Fate::Rows(0, &[])),
        csv("zero_bytes_csv", Vec::new(), Fate::Rows(0, &[])),
        Case {
            name: "truncated_gzip",
            contract: NDJSON,
            suffix: "ndjson.gz",
            neighbour: NDJSON_GOOD,
            bad: {
                let whole = gzip(NDJSON_GOOD.repeat(1_000).as_bytes());
                whole[..whole.len() / 2].to_vec()
            },
            fate: Fate::Refused("invalid_input", &["appears truncated at byte", "deliver the whole file again"]),
        },
        ndjson(
            "cut_in_the_middle",
            text("{\"id\":\"a\"}\n{\"id\":\"b"),
            Fate::Refused("invalid_input", &["appears truncated at byte 11", "line 2"]),
        ),
        csv(
            "ragged_rows",
            text("id,at,amount\na,,1.00\nb,\nc,,1.00,x\nd,,2.00\n"),
            Fate::Rows(2, &[(3, None, "2 fields where 3 are expected"), (4, None, "4 fields where 3 are expected")]),
        ),
        csv(
            "duplicate_header",
            text("id,at,amount,id\na,,1.00,b\n"),
            Fate::Refused("invalid_input", &["the header has `id` twice"]),
        ),
        ndjson(
            "duplicate_field",
            text("{\"id\":\"a\",\"id\":\"b\"}\n"),
            Fate::Rows(0, &[(1, Some("id"), "the field appears twice")]),
        ),
        ndjson(
            "invalid_utf8",
            b"{\"id\":\"a\"}\n{\"id\":\"\xff\xfe\"}\n{\"id\":\"c\"}\n".to_vec(),
            Fate::Rows(2, &[(2, None, "not valid UTF-8")]),
        ),
        csv(
            "invalid_utf8_csv",
            b"id,at,amount\n\xe6\x9d,,1.00\nb,,1.00\n".to_vec(),
            Fate::Rows(1, &[(2, None, "not valid UTF-8")]),
        ),
        ndjson(
            "lone_surrogates",
            text("{\"id\":\"\\ud83d\"}\n{\"id\":\"\\ude00\\ud83d\"}\n{\"id\":\"\\ud83d\\ude00\"}\n"),
            Fate::Rows(1, &[(1, Some("id"), "not JSON"), (2, Some("id"), "not JSON")]),
        ),
        // Clocks of sources are what they are: a moment that has not come is stored as it is told.
        ndjson("timestamp_in_the_future", text("{\"id\":\"a\",\"at\":\"2999-01-01T00:00:00Z\"}\n"), Fate::Rows(1, &[])),
        csv(
            "timestamps_in_three_formats",
            text(
                "id,at,amount\na,2026-02-01T10:00:00Z,\nb,2026-02-01 10:00:00.5+01:00,\nc,01/02/2026 10:00,\nd,1769904000,\n",
            ),
            Fate::Rows(2, &[(4, Some("at"), "not a timestamp such as"), (5, Some("at"), "not a timestamp such as")]),
        ),
        csv(
            "money_that_is_no_number",
            text("id,at,amount\na,,NaN\nb,,inf\nc,,1.005\nd,,1e3\ne,,123456789.00\n"),
            Fate::Rows(
                1,
                &[
                    (2, Some("amount"), "decimal(10,2)"),
                    (3, Some("amount"), "decimal(10,2)"),
                    (4, Some("amount"), "has more than 2 decimals"),
                    (6, Some("amount"), "decimal(10,2)"),
                ],
            ),
        ),
        ndjson("nested_deeper_than_sane", deep.into_bytes(), Fate::Rows(1, &[(1, None, "nested too deeply")])),
        Case {
            name: "money_that_is_no_number_parquet",
            contract: "format = \"parquet\"\n[columns]\nid = \"string\"\namount = \"decimal(10,2)\"\n",
            suffix: "parquet",
            neighbour: "",
            bad: parquet(vec![
                ("id", Arc::new(StringArray::from(vec!["a", "b", "c"])) as ArrayRef),
                ("amount", Arc::new(Float64Array::from(vec![f64::NAN, 1.5, f64::NEG_INFINITY]))),
            ]),
            fate: Fate::Rows(1, &[(1, Some("amount"), "out of range"), (3, Some("amount"), "out of range")]),
        },
    ]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    file
}

/// A project whose sources are made by the test.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.write("holdfast.toml", b"");
        place.write("pipelines/churn/pipeline.toml", b"stages = \"sql\"\n");
        place.write("pipelines/churn/identity.toml", b"priority = [\"phone\"]\n[types.phone]\n");
        fs::create_dir_all(place.path().join("sql")).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, path: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn source(&self, name: &str, contract: &str) {
        let text = format!("kind = \"k\"\npath = \"{name}/*\"\n{contract}");
        self.write(&format!("pipelines/churn/sources/{name}.toml"), text.as_bytes());
    }

    fn command(&self) -> Command {
        let mut command = Command::new(holdfast_binary());
        command.arg("--project").arg(self.path()).arg("--lake").arg(self.path().join("lake"));
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "HOLDFAST_LOG", "HOLDFAST_ABORT_AFTER"] {
            command.env_remove(name);
        }
        command
    }

    /// `holdfast ingest` of all sources.
    fn ingest(&self) -> Command {
        let mut command = self.command();
        command.args(["ingest", "--from"]).arg(self.path().join("in"));
        command
    }

    fn rows(&self, query: &str) -> Vec<Value> {
        rows(self.path(), query)
    }
}

#[test]
fn ing_3_every_kind_of_bad_file_has_one_fate_and_its_neighbours_go_on() {
    let place = Place::new();
    let cases = cases();
    for case in &cases {
        place.source(case.name, case.contract);
        place.write(&format!("in/{}/bad.{}", case.name, case.suffix), &case.bad);
        let neighbour = match case.suffix {
            "ndjson.gz" => gzip(case.neighbour.as_bytes()),
            "parquet" => parquet(vec![
                ("id", Arc::new(StringArray::from(vec!["good"])) as ArrayRef),
                ("amount", Arc::new(Float64Array::from(vec![1.0]))),
            ]),
            _ => case.neighbour.as_bytes().to_vec(),
        };
        place.write(&format!("in/{}/good.{}", case.name, case.suffix), &neighbour);
    }
    let output = place.ingest().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "files wait to be mended: {said}");
    assert!(!said.contains("panicked"), "{said}");

    let union = |query: &dyn Fn(&str) -> String| -> String {
        cases.iter().map(|case| query(case.name)).collect::<Vec<_>>().join(" union all ")
    };
    let stored = place.rows(&union(&|name| {
        format!("select '{name}' as source, count(*) as n, count(*) filter (where id = 'good') as good from raw.{name}")
    }));
    let quarantine = place.rows(&format!(
        "select * from ({}) order by source, line",
        union(&|name| format!(
            "select '{name}' as source, _source_file as file, _source_line as line, column_name, reason from quarantine.{name}"
        ))
    ));
    let refused = place.rows("select source, path, kind, reason from metric.ingest_refused_files");
    let books = place.rows(
        "select source, sum(rows_read) as read, sum(rows_stored) as stored, sum(rows_quarantined) as refused \
         from metric.ingest_batches where outcome = 'stored' group by 1",
    );
    let of = |found: &[Value], name: &str| -> Vec<Value> {
        found.iter().filter(|row| row["source"] == name).cloned().collect()
    };
    for case in &cases {
        let name = case.name;
        let (rows_stored, lines) = match &case.fate {
            Fate::Rows(rows_stored, lines) => (*rows_stored, *lines),
            Fate::Refused(..) => (0, &[][..]),
        };
        // The neighbour is one row more.
        let raw = &of(&stored, name)[0];
        assert_eq!((raw["n"].as_u64(), raw["good"].as_u64()), (Some(rows_stored + 1), Some(1)), "{name}");
        let found = of(&quarantine, name);
        assert_eq!(found.len(), lines.len(), "{name}: {found:?}");
        for (found, (line, column, reason)) in found.iter().zip(lines) {
            assert_eq!(found["line"].as_u64(), Some(*line), "{name}: {found}");
            assert_eq!(found["column_name"].as_str(), *column, "{name}: {found}");
            assert!(found["reason"].as_str().unwrap().contains(reason), "{name}: {found}");
            assert!(found["file"].as_str().unwrap().starts_with(&format!("{name}/bad.")), "{name}: {found}");
        }
        let files = of(&refused, name);
        match &case.fate {
            Fate::Rows(..) => assert!(files.is_empty(), "{name}: {files:?}"),
            Fate::Refused(kind, words) => {
                assert_eq!(files.len(), 1, "{name}: {files:?}");
                assert_eq!(files[0]["kind"], *kind);
                assert_eq!(files[0]["path"], format!("{name}/bad.{}", case.suffix));
                for word in *words {
                    assert!(files[0]["reason"].as_str().unwrap().contains(word), "{name}: {}", files[0]);
                }
            }
        }
        // The books say what the tables hold.
        let books = &of(&books, name)[0];
        let number = |column: &str| books[column].as_u64().unwrap();
        assert_eq!(number("read"), number("stored") + number("refused"), "{name}");
        assert_eq!((number("stored"), number("refused")), (rows_stored + 1, lines.len() as u64), "{name}");
    }
}

/// A running ingestion whose memory is looked at.
struct Watched {
    child: Child,
    peak_kib: u64,
}

impl Watched {
    fn start(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, peak_kib: 0 }
    }

    fn look(&mut self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        let peak = peak.split_whitespace().next().and_then(|peak| peak.parse().ok()).unwrap_or(0);
        self.peak_kib = self.peak_kib.max(peak);
    }

    /// Waits until the process has a file open.
    fn opens(&mut self, file: &Path) {
        let began = Instant::now();
        let folder = format!("/proc/{}/fd", self.child.id());
        loop {
            let open = fs::read_dir(&folder).into_iter().flatten().flatten();
            if open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path == file) {
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "it ended before it opened {}", file.display());
            assert!(began.elapsed() < Duration::from_secs(60));
        }
    }

    /// The exit code, the peak of memory in MiB and what was said.
    fn end(mut self) -> (Option<i32>, u64, String) {
        let code = loop {
            self.look();
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (code, self.peak_kib >> 10, said)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_field_of_100_mb_costs_its_file_and_no_more_memory_than_a_record_may() {
    let place = Place::new();
    place.source("long_ndjson", NDJSON);
    place.source("long_csv", CSV);
    let field = "x".repeat(100_000_000);
    place.write("in/long_ndjson/a.ndjson", format!("{{\"id\":\"a\"}}\n{{\"id\":\"{field}\"}}\n").as_bytes());
    place.write("in/long_csv/a.csv", format!("id,at,amount\na,,\n\"{field}\",,\n").as_bytes());
    drop(field);
    place.write("in/long_ndjson/b.ndjson", NDJSON_GOOD.as_bytes());
    place.write("in/long_csv/b.csv", CSV_GOOD.as_bytes());
    let (code, peak, said) = Watched::start(&mut place.ingest()).end();
    assert_eq!(code, Some(2), "{said}");
    assert!(peak < 512, "{peak} MiB");
    let refused = place.rows("select path, reason from metric.ingest_refused_files order by path");
    for (refused, path, byte) in [(&refused[0], "long_csv/a.csv", 17), (&refused[1], "long_ndjson/a.ndjson", 11)] {
        assert_eq!(refused["path"], path);
        let reason = format!("the record at byte {byte} is longer than 64 MiB");
        assert!(refused["reason"].as_str().unwrap().contains(&reason), "{refused}");
    }
    for source in ["long_ndjson", "long_csv"] {
        assert_eq!(place.rows(&format!("select id from raw.{source}"))[0]["id"], "good");
    }
}

#[test]
fn a_file_that_grows_or_vanishes_while_it_is_read_is_left_for_the_next_run() {
    let place = Place::new();
    // Long enough to be read for a while.
    let lines: String = (0..1_500_000).map(|line| format!("{{\"id\":\"{line:032}\"}}\n")).collect();
    for name in ["growing", "vanishing"] {
        place.source(name, NDJSON);
        place.write(&format!("in/{name}/b.ndjson"), NDJSON_GOOD.as_bytes());
    }
    for (name, disturb) in [
        (
            "growing",
            (|path: &Path| {
                let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
                file.write_all(b"{\"id\":\"one more\"}\n").unwrap();
            }) as fn(&Path),
        ),
        ("vanishing", |path: &Path| fs::remove_file(path).unwrap()),
    ] {
        let file = place.write(&format!("in/{name}/a.ndjson"), lines.as_bytes()).canonicalize().unwrap();
        let mut command = place.ingest();
        let mut ingestion = Watched::start(command.args(["--source", name]));
        ingestion.opens(&file);
        disturb(&file);
        let (code, _, said) = ingestion.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("changed or went away while it was read"), "{said}");
        let count = |query: &str| place.rows(query)[0]["n"].as_u64().unwrap();
        assert_eq!(count(&format!("select count(*) as n from raw.{name}")), 1, "its neighbour is stored");
        assert!(
            place
                .rows(&format!("select * from metric.ingest_batches where source = '{name}' and rows_read <> 1"))
                .is_empty()
        );
        succeed(&mut place.ingest());
        let whole = if name == "growing" { 1_500_002 } else { 1 };
        assert_eq!(count(&format!("select count(*) as n from raw.{name}")), whole);
        assert_eq!(count(&format!("select count(distinct id) as n from raw.{name}")), whole);
        let books = place.rows(&format!(
            "select sum(rows_read) as read, sum(rows_stored) as stored from metric.ingest_batches where source = '{name}'"
        ));
        assert_eq!((books[0]["read"].as_u64(), books[0]["stored"].as_u64()), (Some(whole), Some(whole)));
    }
}

/// `holdfast collect` for one source.
struct Collector {
    child: Child,
    address: String,
}

impl Collector {
    fn start(place: &Place, source: &str) -> Self {
        let mut command = place.command();
        command.args(["collect", "--listen", "127.0.0.1:0", "--ingest-interval-ms", "50", "--source", source]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "it did not start");
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split(',').next().unwrap().to_owned();
            }
        };
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, address }
    }

    /// Sends a head and then a body until the server answers; the status, the answer and how much was taken.
    fn push(&self, head: &str, chunk: &[u8], chunks: usize) -> (u16, String, usize) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(format!("{head}\r\nhost: test\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
        // A server that has answered takes no more.
        let taken = (0..chunks).take_while(|_| stream.write_all(chunk).is_ok()).count() * chunk.len();
        let mut answer = Vec::new();
        // What is left of the connection may have been reset behind the answer.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer, taken)
    }

    fn stop(mut self) {
        succeed(Command::new("kill").arg("-TERM").arg(self.child.id().to_string()));
        assert!(ended(&mut self.child).success());
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ing_3_a_push_of_1_gb_and_one_of_an_unknown_type_are_refused_and_the_next_is_taken() {
    const GB: usize = 1_000_000_000;
    let place = Place::new();
    place.source("events", "format = \"ndjson\"\n[columns]\ntype = \"string\"\nmessageId = \"string\"\n");
    let server = Collector::start(&place, "events");
    let chunk = vec![b'x'; 1 << 16];
    let announced = format!("POST /v1/batch HTTP/1.1\r\ncontent-length: {GB}");
    let (status, answer, taken) = server.push(&announced, &chunk, GB / chunk.len());
    assert!(status == 413 || answer.is_empty(), "{answer}");
    assert!(taken < GB / 10, "{taken} bytes were taken of a request that is refused by its length");

    // Without its length, it is refused as soon as it is too long.
    let mut framed = format!("{:x}\r\n", chunk.len()).into_bytes();
    framed.extend_from_slice(&chunk);
    framed.extend_from_slice(b"\r\n");
    let head = "POST /v1/batch HTTP/1.1\r\ntransfer-encoding: chunked";
    let (status, answer, taken) = server.push(head, &framed, GB / chunk.len());
    assert!(status == 413 || answer.is_empty(), "{answer}");
    assert!(taken < GB / 10, "{taken}");

    for body in [r#"{"batch":[{"type":"teleport","userId":"M1"}]}"#, r#"{"batch":[{"type":7,"userId":"M1"}]}"#] {
        let head = format!("POST /v1/batch HTTP/1.1\r\ncontent-length: {}", body.len());
        let (status, answer, _) = server.push(&head, body.as_bytes(), 1);
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains("type"), "{answer}");
    }
    let body = r#"{"batch":[{"type":"track","messageId":"m1","event":"Seen","userId":"M1"}]}"#;
    let head = format!("POST /v1/batch HTTP/1.1\r\ncontent-length: {}", body.len());
    assert_eq!(server.push(&head, body.as_bytes(), 1).0, 200);
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak >> 10 < 512, "{} MiB", peak >> 10);
    server.stop();
    assert_eq!(place.rows("select \"messageId\" as id from raw.events")[0]["id"], "m1");
    let books = place.rows("select sum(rows_read) as read, sum(rows_stored) as stored from metric.ingest_batches");
    assert_eq!((books[0]["read"].as_u64(), books[0]["stored"].as_u64()), (Some(1), Some(1)));
}
