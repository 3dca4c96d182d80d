//! A Kafka feed against a broker that plays a script: transactions, retention, compaction and failures, which a real one does not show
//! on demand. The real one is in `tests/clients/test_kafka.py`.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_feeds::{Feed, FeedError, FeedSettings, Surroundings, open_feed, read_feed};
use holdfast_ingest::{Inbox, IngestSettings, Origin, SourceSpec, ingest_inbox};
use holdfast_lake::{Lake, LakeSettings, StoreOptions};
use holdfast_types::{ErrorKind, FixedClock, NoProgress};
use serde_json::json;

use crate::rows;

const OFFSET_OUT_OF_RANGE: i16 = 1;
const NOT_LEADER: i16 = 6;
const NOT_AUTHORIZED: i16 = 29;
const AUTHENTICATION_FAILED: i16 = 58;

/// What a broker does instead of answering a fetch.
#[derive(Debug, Clone, Copy)]
enum Mishap {
    Code(i16),
    /// The connection breaks in the middle of the answer.
    Cut,
}

/// One partition of the topic `t`, and what is to go wrong.
#[derive(Default)]
struct Script {
    /// First and last offset, and the bytes.
    batches: Vec<(i64, i64, Vec<u8>)>,
    log_start: i64,
    /// Producers of aborted transactions, and their first offsets.
    aborted: Vec<(i64, i64)>,
    mishaps: VecDeque<Mishap>,
    /// Whoever connects has to log in with it.
    password: Option<String>,
    fetches: u32,
}

impl Script {
    fn end(&self) -> i64 {
        self.batches.last().map_or(0, |(_, last, _)| last + 1)
    }
}

/// A record batch of the format 2: <https://kafka.apache.org/documentation/#recordbatch>.
struct Batch {
    base: i64,
    /// Offsets behind the base, and values.
    records: Vec<(i32, String)>,
    last_delta: i32,
    attributes: i16,
    producer: i64,
    key: Option<Vec<u8>>,
    max_timestamp: i64,
}

impl Batch {
    fn new(base: i64, values: &[&str]) -> Self {
        let records =
            values.iter().enumerate().map(|(delta, value)| (i32::try_from(delta).unwrap(), (*value).to_owned()));
        let records: Vec<(i32, String)> = records.collect();
        let last_delta = i32::try_from(values.len()).unwrap() - 1;
        Self { base, records, last_delta, attributes: 0, producer: -1, key: None, max_timestamp: 1_772_000_000_000 }
    }

    fn transactional(mut self, producer: i64) -> Self {
        self.attributes |= 1 << 4;
        self.producer = producer;
        self
    }

    /// The end of a transaction.
    fn marker(base: i64, producer: i64, commits: bool) -> Self {
        let mut marker = Self::new(base, &["\0\0\0\0\0\0"]).transactional(producer);
        marker.attributes |= 1 << 5;
        marker.key = Some(vec![0, 0, 0, u8::from(commits)]);
        marker
    }

    fn bytes(&self) -> (i64, i64, Vec<u8>) {
        let mut records = Vec::new();
        for (delta, value) in &self.records {
            let mut record = vec![0_u8];
            zigzag(&mut record, 0);
            zigzag(&mut record, i64::from(*delta));
            match &self.key {
                Some(key) => {
                    zigzag(&mut record, key.len() as i64);
                    record.extend(key);
                }
                None => zigzag(&mut record, -1),
            }
            zigzag(&mut record, value.len() as i64);
            record.extend(value.as_bytes());
            zigzag(&mut record, 0);
            zigzag(&mut records, record.len() as i64);
            records.extend(record);
        }
        let mut behind_crc = Vec::new();
        behind_crc.extend(self.attributes.to_be_bytes());
        behind_crc.extend(self.last_delta.to_be_bytes());
        behind_crc.extend(1_771_000_000_000_i64.to_be_bytes());
        behind_crc.extend(self.max_timestamp.to_be_bytes());
        behind_crc.extend(self.producer.to_be_bytes());
        behind_crc.extend(0_i16.to_be_bytes());
        behind_crc.extend((-1_i32).to_be_bytes());
        behind_crc.extend(i32::try_from(self.records.len()).unwrap().to_be_bytes());
        behind_crc.extend(records);
        let mut bytes = Vec::new();
        bytes.extend(self.base.to_be_bytes());
        bytes.extend(i32::try_from(behind_crc.len() + 9).unwrap().to_be_bytes());
        bytes.extend((-1_i32).to_be_bytes());
        bytes.push(2);
        bytes.extend(crc32c(&behind_crc).to_be_bytes());
        bytes.extend(behind_crc);
        (self.base, self.base + i64::from(self.last_delta), bytes)
    }
}

fn zigzag(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    loop {
        let digit = rest.to_le_bytes()[0] & 0x7f;
        rest >>= 7;
        if rest == 0 {
            return out.push(digit);
        }
        out.push(digit | 0x80);
    }
}

/// Castagnoli's polynomial, RFC 3720, appendix B.4.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// Reads the fields of a request, in the versions before those with compact fields.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, tail) = self.0.split_first_chunk::<N>().unwrap();
        self.0 = tail;
        *head
    }

    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take())
    }

    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take())
    }

    fn i64(&mut self) -> i64 {
        i64::from_be_bytes(self.take())
    }

    fn text(&mut self) -> String {
        let length = usize::try_from(self.i16()).unwrap_or(0);
        let (head, tail) = self.0.split_at(length);
        self.0 = tail;
        String::from_utf8(head.to_vec()).unwrap()
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(i16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend(text.as_bytes());
}

fn numbers(out: &mut Vec<u8>, numbers: &[i32]) {
    numbers.iter().for_each(|number| out.extend(number.to_be_bytes()));
}

struct Broker {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl Broker {
    fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script));
        let shared = Arc::clone(&script);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let script = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, address, &script));
            }
        });
        Self { address, script }
    }

    fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }
}

/// Answers the requests of one connection, each in the one version that is offered.
fn serve(mut stream: TcpStream, address: SocketAddr, script: &Mutex<Script>) {
    let mut logged_in = script.lock().unwrap().password.is_none();
    loop {
        let mut length = [0; 4];
        if stream.read_exact(&mut length).is_err() {
            return;
        }
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut request).unwrap();
        let mut fields = Fields(&request);
        let (api, _version, call, _client) = (fields.i16(), fields.i16(), fields.i32(), fields.text());
        let mut answer = call.to_be_bytes().to_vec();
        let mut cut = false;
        match api {
            18 => {
                answer.extend(0_i16.to_be_bytes());
                let offered: [(i16, i16); 6] = [(1, 4), (2, 2), (3, 4), (17, 1), (18, 0), (36, 0)];
                numbers(&mut answer, &[6]);
                for (api, version) in offered {
                    [api, version, version].iter().for_each(|number| answer.extend(number.to_be_bytes()));
                }
            }
            17 => {
                answer.extend(0_i16.to_be_bytes());
                numbers(&mut answer, &[1]);
                text(&mut answer, "PLAIN");
            }
            36 => {
                let length = usize::try_from(fields.i32()).unwrap();
                let said = String::from_utf8(fields.0[..length].to_vec()).unwrap();
                let password = script.lock().unwrap().password.clone().unwrap();
                logged_in = said == format!("\0reader\0{password}");
                answer.extend(if logged_in { 0 } else { AUTHENTICATION_FAILED }.to_be_bytes());
                answer.extend((-1_i16).to_be_bytes());
                numbers(&mut answer, &[0]);
            }
            // Whoever is not known is not talked to.
            _ if !logged_in => return,
            3 => {
                numbers(&mut answer, &[0, 1, 5]);
                text(&mut answer, "127.0.0.1");
                numbers(&mut answer, &[i32::from(address.port())]);
                answer.extend((-1_i16).to_be_bytes());
                answer.extend((-1_i16).to_be_bytes());
                numbers(&mut answer, &[5, 1]);
                answer.extend(0_i16.to_be_bytes());
                text(&mut answer, "t");
                answer.push(0);
                numbers(&mut answer, &[1]);
                answer.extend(0_i16.to_be_bytes());
                numbers(&mut answer, &[0, 5, 1, 5, 1, 5]);
            }
            2 => {
                let (_replica, _isolation, _topics) = (fields.i32(), fields.take::<1>(), fields.i32());
                let (_topic, _partitions, _partition, time) = (fields.text(), fields.i32(), fields.i32(), fields.i64());
                let script = script.lock().unwrap();
                let offset = if time == -2 { script.log_start } else { script.end() };
                numbers(&mut answer, &[0, 1]);
                text(&mut answer, "t");
                numbers(&mut answer, &[1, 0]);
                answer.extend(0_i16.to_be_bytes());
                answer.extend((-1_i64).to_be_bytes());
                answer.extend(offset.to_be_bytes());
            }
            1 => {
                let (_replica, wait, _min, most) = (fields.i32(), fields.i32(), fields.i32(), fields.i32());
                assert_eq!(fields.take::<1>(), [1], "only what is committed is asked for");
                let (_topics, _topic, _partitions, _partition) =
                    (fields.i32(), fields.text(), fields.i32(), fields.i32());
                let offset = fields.i64();
                let mut script = script.lock().unwrap();
                script.fetches += 1;
                let mut code = 0;
                match script.mishaps.pop_front() {
                    Some(Mishap::Code(mishap)) => code = mishap,
                    Some(Mishap::Cut) => cut = true,
                    None if offset < script.log_start || offset > script.end() => code = OFFSET_OUT_OF_RANGE,
                    None => {}
                }
                let mut records: Vec<u8> = Vec::new();
                if code == 0 {
                    for (_, _, bytes) in script.batches.iter().filter(|(_, last, _)| *last >= offset) {
                        records.extend(bytes);
                    }
                    // A broker cuts where it has sent enough, also inside of a batch that is not the first.
                    let first =
                        script.batches.iter().find(|(_, last, _)| *last >= offset).map_or(0, |batch| batch.2.len());
                    records.truncate(first.max(usize::try_from(most).unwrap()));
                }
                if records.is_empty() && code == 0 {
                    std::thread::sleep(Duration::from_millis(u64::try_from(wait).unwrap().min(50)));
                }
                numbers(&mut answer, &[0, 1]);
                text(&mut answer, "t");
                numbers(&mut answer, &[1, 0]);
                answer.extend(code.to_be_bytes());
                answer.extend(script.end().to_be_bytes());
                answer.extend(script.end().to_be_bytes());
                numbers(&mut answer, &[i32::try_from(script.aborted.len()).unwrap()]);
                for (producer, first) in &script.aborted {
                    answer.extend(producer.to_be_bytes());
                    answer.extend(first.to_be_bytes());
                }
                numbers(&mut answer, &[i32::try_from(records.len()).unwrap()]);
                answer.extend(records);
            }
            other => panic!("nobody asks for {other}"),
        }
        let mut frame = u32::try_from(answer.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(answer);
        if cut {
            frame.truncate(frame.len() / 2);
        }
        if stream.write_all(&frame).is_err() || cut {
            return;
        }
    }
}

struct Place {
    folder: tempfile::TempDir,
    lake: Lake,
    spec: SourceSpec,
    feed: Arc<dyn Feed>,
}

impl Place {
    async fn new(broker: &Broker, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().join("lake");
        let clock = Arc::new(FixedClock("2026-03-01T12:00:00Z".parse().unwrap()));
        let options = StoreOptions::new();
        let settings = LakeSettings::default();
        let lake =
            Lake::create_or_open(location.to_str().unwrap(), folder.path(), &options, settings, clock).await.unwrap();
        let contract = format!(
            "kind = \"app\"\n[feed]\nkind = \"kafka\"\nbrokers = [\"{}\"]\ntopics = [\"t\"]\n{more}\n[columns]\nid = \"string\"\n_offset = \"int64\"\n_timestamp = \"timestamp\"\n",
            broker.address
        );
        let spec = SourceSpec::parse("clicks.toml", &contract).unwrap();
        let Origin::Feed(section) = &spec.origin else { panic!("it is a feed") };
        let surroundings = Surroundings {
            variable: Arc::new(|name| (name == "PASSWORD").then(|| "p,a=ss".to_owned())),
            store_options: options,
            folder: folder.path().to_owned(),
        };
        let feed = open_feed(section, &surroundings).unwrap();
        Self { folder, lake, spec, feed }
    }

    async fn read_with(&self, settings: FeedSettings) -> Result<(), FeedError> {
        let inbox = Inbox::new(&self.lake, "test", &self.spec);
        let settings = FeedSettings { wait: Duration::from_millis(50), gather: Duration::from_millis(5), ..settings };
        let ended = Box::pin(read_feed(&self.feed, &inbox, &settings)).await;
        ingest_inbox(&self.lake, "test", &self.spec, &IngestSettings::default(), &NoProgress).await.unwrap();
        ended.map(|read| assert!(read.caught_up))
    }

    async fn read(&self) -> Result<(), FeedError> {
        self.read_with(FeedSettings::default()).await
    }

    /// Offsets and ids in `raw`.
    fn stored(&self) -> Vec<(i64, String)> {
        rows(self.folder.path(), "select _offset as o, id from raw.clicks order by o")
            .iter()
            .map(|row| (row["o"].as_i64().unwrap(), row["id"].as_str().unwrap().to_owned()))
            .collect()
    }
}

fn record(id: &str) -> String {
    json!({ "id": id }).to_string()
}

fn batch(base: i64, ids: &[&str]) -> Batch {
    let values: Vec<String> = ids.iter().map(|id| record(id)).collect();
    Batch::new(base, &values.iter().map(String::as_str).collect::<Vec<_>>())
}

fn plain(batches: &[Batch]) -> Script {
    Script { batches: batches.iter().map(Batch::bytes).collect(), ..Script::default() }
}

fn pairs(expected: &[(i64, &str)]) -> Vec<(i64, String)> {
    expected.iter().map(|(offset, id)| (*offset, (*id).to_owned())).collect()
}

#[tokio::test]
async fn what_was_aborted_is_passed_over_and_what_was_committed_is_read() {
    let mut script = plain(&[
        batch(0, &["a"]),
        batch(1, &["b aborted"]).transactional(7),
        batch(2, &["c"]).transactional(8),
        batch(3, &["d aborted", "e aborted"]).transactional(7),
        Batch::marker(5, 7, false),
        // The same producer again, which commits this time.
        batch(6, &["f"]).transactional(7),
        Batch::marker(7, 8, true),
        Batch::marker(8, 7, true),
        batch(9, &["g aborted"]).transactional(8),
        Batch::marker(10, 8, false),
    ]);
    script.aborted = vec![(8, 9), (7, 1)];
    let broker = Broker::start(script);
    let place = Place::new(&broker, "").await;
    place.read().await.unwrap();
    assert_eq!(place.stored(), pairs(&[(0, "a"), (2, "c"), (6, "f")]));
    // The last record is a marker: the next one is found behind it.
    broker.change(|script| {
        script.aborted.clear();
        script.batches.push(batch(11, &["h"]).bytes());
    });
    place.read().await.unwrap();
    assert_eq!(place.stored(), pairs(&[(0, "a"), (2, "c"), (6, "f"), (11, "h")]));
}

#[tokio::test]
async fn what_was_compacted_away_does_not_hold_up_what_comes_behind() {
    let mut compacted = batch(10, &["b", "c"]);
    compacted.records[1].0 = 4;
    compacted.last_delta = 9;
    let mut empty = batch(20, &[]);
    empty.last_delta = 4;
    let broker = Broker::start(plain(&[batch(0, &["a"]), compacted, empty]));
    let place = Place::new(&broker, "").await;
    place.read().await.unwrap();
    assert_eq!(place.stored(), pairs(&[(0, "a"), (10, "b"), (14, "c")]));
    broker.change(|script| script.batches.push(batch(25, &["d"]).bytes()));
    place.read().await.unwrap();
    assert_eq!(place.stored().last().unwrap(), &(25, "d".to_owned()));
}

#[tokio::test]
async fn a_batch_may_be_longer_than_an_object_and_than_what_is_asked_for() {
    let ids: Vec<String> = (0..500).map(|id| format!("{id}-{}", "x".repeat(400))).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let broker = Broker::start(plain(&[batch(0, &ids), batch(500, &ids), batch(1_000, &ids[..3])]));
    let place = Place::new(&broker, "").await;
    let limits = FeedSettings { chunk_records_max: 90, bytes_max: 64 << 10, ..FeedSettings::default() };
    place.read_with(limits).await.unwrap();
    let stored = place.stored();
    assert_eq!(stored.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), (0..1_003).collect::<Vec<_>>());
    assert!(stored.iter().all(|(offset, id)| id == ids[usize::try_from(*offset).unwrap() % 500]));
}

#[tokio::test]
async fn records_that_retention_took_are_an_error_or_a_row_in_quarantine() {
    for skip in [false, true] {
        let broker = Broker::start(plain(&[batch(0, &["a", "b"])]));
        let place = Place::new(&broker, if skip { "on_gap = \"skip\"" } else { "" }).await;
        place.read().await.unwrap();
        broker.change(|script| {
            script.batches = vec![batch(40, &["c"]).bytes()];
            script.log_start = 40;
        });
        let ended = place.read().await;
        if skip {
            ended.unwrap();
            assert_eq!(place.stored(), pairs(&[(0, "a"), (1, "b"), (40, "c")]));
            let refused = rows(place.folder.path(), "select original, reason from quarantine.clicks");
            assert_eq!(refused.len(), 1);
            let original = refused[0]["original"].as_str().unwrap();
            assert!(original.contains("\"_gap_from_offset\":2,\"_gap_to_offset\":39"), "{original}");
        } else {
            let error = ended.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            let said = error.to_string();
            for part in ["topic t, partition 0", "offset 2", "40", "retention.ms", "on_gap"] {
                assert!(said.contains(part), "{said}");
            }
            assert_eq!(place.stored(), pairs(&[(0, "a"), (1, "b")]));
        }
    }
}

#[tokio::test]
async fn a_topic_that_was_made_anew_is_not_taken_for_the_old_one() {
    let broker = Broker::start(plain(&[batch(0, &["a", "b", "c"])]));
    // Nothing was passed over, so there is nothing to go on behind.
    let place = Place::new(&broker, "on_gap = \"skip\"").await;
    place.read().await.unwrap();
    broker.change(|script| script.batches = vec![batch(0, &["new"]).bytes()]);
    let error = place.read().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let said = error.to_string();
    assert!(said.contains("offset 3") && said.contains("ends at 1") && said.contains("another source name"), "{said}");
    assert_eq!(place.stored(), pairs(&[(0, "a"), (1, "b"), (2, "c")]));
}

#[tokio::test]
async fn what_goes_wrong_at_a_broker_loses_and_doubles_nothing() {
    let batches: Vec<Batch> = (0..30).map(|base| batch(base, &["x"])).collect();
    let mut script = plain(&batches);
    script.mishaps = [Mishap::Cut, Mishap::Code(NOT_LEADER), Mishap::Cut, Mishap::Code(3), Mishap::Code(2)].into();
    let broker = Broker::start(script);
    let place = Place::new(&broker, "").await;
    let mut errors = Vec::new();
    while let Err(error) = place.read().await {
        errors.push(error);
        assert!(errors.len() < 10, "{errors:?}");
    }
    assert_eq!(errors.len(), 5);
    assert!(errors[..4].iter().all(|error| error.kind() == ErrorKind::Retry), "{errors:?}");
    assert_eq!(errors[4].kind(), ErrorKind::CorruptData, "{}", errors[4]);
    assert_eq!(place.stored().len(), 30);
    broker.change(|script| script.mishaps.push_back(Mishap::Code(NOT_AUTHORIZED)));
    broker.change(|script| script.batches.push(batch(30, &["y"]).bytes()));
    let error = place.read().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("grant Read"), "{error}");
}

#[tokio::test]
async fn a_batch_whose_bytes_changed_is_not_read() {
    let mut script = plain(&[batch(0, &["a"]), batch(1, &["secret value"])]);
    let length = script.batches[1].2.len();
    script.batches[1].2[length - 3] ^= 1;
    let broker = Broker::start(script);
    let place = Place::new(&broker, "").await;
    let error = place.read().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptData);
    let said = error.to_string();
    assert!(said.contains("partition 0, offset 1") && !said.contains("secret"), "{said}");
}

#[tokio::test]
async fn the_brokers_time_counts_where_the_topic_says_so() {
    let mut by_broker = batch(1, &["b"]);
    by_broker.attributes |= 1 << 3;
    let broker = Broker::start(plain(&[batch(0, &["a"]), by_broker]));
    let place = Place::new(&broker, "").await;
    place.read().await.unwrap();
    let times =
        rows(place.folder.path(), "select cast(_timestamp as bigint) / 1000 as at from raw.clicks order by _offset");
    let times: Vec<i64> = times.iter().map(|row| row["at"].as_i64().unwrap()).collect();
    assert_eq!(times, [1_771_000_000_000, 1_772_000_000_000]);
}

#[tokio::test]
async fn a_password_opens_the_broker_and_a_wrong_one_is_refused() {
    let login = "sasl = \"plain\"\nuser = \"reader\"\npassword_env = \"PASSWORD\"";
    let broker = Broker::start(Script { password: Some("p,a=ss".to_owned()), ..plain(&[batch(0, &["a"])]) });
    let place = Place::new(&broker, login).await;
    place.read().await.unwrap();
    assert_eq!(place.stored(), pairs(&[(0, "a")]));
    assert_eq!(Place::new(&broker, "").await.read().await.unwrap_err().kind(), ErrorKind::Retry, "it hangs up");

    broker.change(|script| script.password = Some("another".to_owned()));
    let error = Place::new(&broker, login).await.read().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    let said = error.to_string();
    assert!(said.contains("password_env") && !said.contains("p,a=ss"), "{said}");
}
