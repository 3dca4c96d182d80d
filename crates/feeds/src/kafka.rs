//! Topics of Apache Kafka, or of what speaks its protocol.
//!
//! | contract | |
//! |---|---|
//! | `brokers` | `["host:port", …]`, some of the cluster's |
//! | `topics` | their names |
//! | `start` | `"earliest"` (default) or `"latest"`: where a partition without a position begins |
//! | `on_gap` | `"error"` (default), or `"skip"`: go on where the oldest record is when those before it are gone |
//! | `tls`, `ca_file` | `true` for encrypted connections; a PEM file instead of the system's certificates |
//! | `sasl`, `user`, `password_env` | `"plain"`, `"scram-sha-256"` or `"scram-sha-512"`; the password's environment variable |
//!
//! Only what was committed is read: neither records of open transactions nor of aborted ones. A partition is named
//! `<number>-<topic>`; a position is the offset behind the last record, which the lake keeps and not the broker.

mod batch;
mod link;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use holdfast_ingest::{FeedSpec, Inbox};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    BrokerId, FetchRequest, ListOffsetsRequest, MetadataRequest, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::Record;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use tokio::sync::Mutex;

use self::batch::{Batch, Transactions};
use self::link::{Access, Link};
use crate::feed::{Chunk, ChunkLimits, Feed, FeedPartition, FeedPosition};
use crate::kinds::Surroundings;
use crate::login::{Login, Mechanism};
use crate::record::Line;
use crate::{FeedError, Result};

/// The newest versions of requests that are spoken here; later ones name topics by ids.
const METADATA: i16 = 9;
const LIST_OFFSETS: i16 = 7;
const FETCH: i16 = 11;

const READ_COMMITTED: i8 = 1;
/// No replica, as consumers say.
const CONSUMER: BrokerId = BrokerId(-1);
/// What [`ListOffsetsRequest`] takes for a time.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;
/// The least that is asked for at once: a batch that is longer comes alone.
const FETCH_BYTES_MIN: i32 = 64 << 10;
/// The longest legal name of a topic.
const TOPIC_CHARS_MAX: usize = 249;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    brokers: Vec<String>,
    topics: Vec<String>,
    #[serde(default)]
    start: Start,
    #[serde(default)]
    on_gap: OnGap,
    #[serde(default)]
    tls: bool,
    ca_file: Option<PathBuf>,
    sasl: Option<Mechanism>,
    user: Option<String>,
    password_env: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Start {
    #[default]
    Earliest,
    Latest,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnGap {
    #[default]
    Error,
    Skip,
}

/// Checks the section of a contract. Nothing is connected to yet.
pub(crate) fn open(spec: &FeedSpec, surroundings: &Surroundings) -> Result<Arc<dyn Feed>> {
    let keys: Keys = spec.settings()?;
    let is_address = |broker: &String| {
        broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if keys.brokers.is_empty() || !keys.brokers.iter().all(is_address) {
        return Err(spec.error("brokers", "write brokers as [\"host:port\"], at least one").into());
    }
    if keys.topics.is_empty() || !keys.topics.iter().all(|topic| is_topic(topic)) {
        let message = "name at least one topic; a name is made of letters, digits, `.`, `_` and `-`";
        return Err(spec.error("topics", message).into());
    }
    let tls = match (keys.tls, &keys.ca_file) {
        (false, None) => None,
        (false, Some(_)) => return Err(spec.error("ca_file", "`ca_file` is for tls = true").into()),
        (true, ca_file) => Some(tls(spec, ca_file.as_ref().map(|path| surroundings.folder.join(path)))?),
    };
    let login = match (keys.sasl, keys.user, keys.password_env) {
        (None, None, None) => None,
        (Some(mechanism), Some(user), Some(variable)) => {
            let Some(password) = (surroundings.variable)(&variable) else {
                let message = format!("the environment has no variable {variable}: put the password there");
                return Err(spec.error("password_env", &message).into());
            };
            Some(Login { mechanism, user, password })
        }
        _ => {
            return Err(spec
                .error("sasl", "`sasl`, `user` and `password_env` belong together: give all or none")
                .into());
        }
    };
    Ok(Arc::new(KafkaFeed {
        topics: keys.topics,
        start: keys.start,
        on_gap: keys.on_gap,
        cluster: Arc::new(Cluster { brokers: keys.brokers, access: Access { tls, login }, link: Mutex::new(None) }),
    }))
}

fn is_topic(name: &str) -> bool {
    let legal = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    !name.is_empty() && name.len() <= TOPIC_CHARS_MAX && name.chars().all(legal) && !matches!(name, "." | "..")
}

fn tls(spec: &FeedSpec, ca_file: Option<PathBuf>) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let wrong = |reason: String| spec.error("ca_file", &format!("cannot read {}: {reason}", path.display()));
            for certificate in CertificateDer::pem_file_iter(&path).map_err(|error| wrong(error.to_string()))? {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("there is no certificate in it".to_owned()).into());
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(spec
                    .error("tls", "this system has no certificates of authorities: name some with ca_file")
                    .into());
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(FeedError::internal)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct KafkaFeed {
    topics: Vec<String>,
    start: Start,
    on_gap: OnGap,
    cluster: Arc<Cluster>,
}

/// What there is to ask any broker.
#[derive(Debug)]
struct Cluster {
    brokers: Vec<String>,
    access: Access,
    /// To the broker that answered last.
    link: Mutex<Option<Link>>,
}

impl Cluster {
    /// What a broker knows about topics.
    async fn metadata(&self, topics: &[&str]) -> Result<MetadataResponse> {
        let topics = topics.iter().map(|topic| MetadataRequestTopic::default().with_name(Some(topic_name(topic))));
        // Version 3 and older would let the broker make topics that it does not know.
        let request =
            MetadataRequest::default().with_topics(Some(topics.collect())).with_allow_auto_topic_creation(false);
        let mut kept = self.link.lock().await;
        if let Some(mut link) = kept.take()
            && let Ok(answer) = link.call(&request, METADATA, Duration::ZERO).await
        {
            *kept = Some(link);
            return Ok(answer);
        }
        let mut failed = FeedError::internal("a Kafka source without brokers");
        for broker in &self.brokers {
            let asked = async {
                let mut link = Link::connect(broker, &self.access).await?;
                let answer = link.call(&request, METADATA, Duration::ZERO).await?;
                Ok((link, answer))
            };
            match asked.await {
                Ok((link, answer)) => {
                    *kept = Some(link);
                    return Ok(answer);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Connects to the leader of a partition.
    async fn leader(&self, topic: &str, partition: i32) -> Result<Link> {
        let metadata = self.metadata(&[topic]).await?;
        let nobody = |reason: &str| FeedError::Unreachable { what: what(topic, partition), reason: reason.to_owned() };
        let leader = metadata
            .topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .find(|found| found.partition_index == partition)
            .map(|found| found.leader_id)
            .ok_or_else(|| nobody("no broker knows this partition"))?;
        let broker = metadata
            .brokers
            .iter()
            .find(|broker| broker.node_id == leader)
            .ok_or_else(|| nobody("it has no leader at the moment"))?;
        let host = broker.host.as_str();
        let address =
            if host.contains(':') { format!("[{host}]:{}", broker.port) } else { format!("{host}:{}", broker.port) };
        Link::connect(&address, &self.access).await
    }
}

#[async_trait]
impl Feed for KafkaFeed {
    async fn partitions(&self) -> Result<Vec<String>> {
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let metadata = self.cluster.metadata(&topics).await?;
        let mut partitions = Vec::new();
        let mut missing = None;
        for topic in &metadata.topics {
            let name = topic.name.as_ref().map_or("", |name| name.as_str());
            match ResponseError::try_from_code(topic.error_code) {
                None => {
                    partitions.extend(topic.partitions.iter().map(|found| partition_name(name, found.partition_index)))
                }
                Some(error) => missing = Some(topic_error(name, error)),
            }
        }
        match missing {
            // The others are not held up.
            Some(error) if !partitions.is_empty() => tracing::warn!(%error, "a topic cannot be read"),
            Some(error) => return Err(error),
            None => {}
        }
        partitions.sort();
        Ok(partitions)
    }

    async fn open(
        &self,
        _inbox: &Inbox,
        partition: &str,
        after: Option<&FeedPosition>,
    ) -> Result<Box<dyn FeedPartition>> {
        let wrong = || FeedError::internal(format!("{partition} is no partition of a topic"));
        let (number, topic) = partition.split_once('-').ok_or_else(wrong)?;
        let number: i32 = number.parse().map_err(|_| wrong())?;
        let link = self.cluster.leader(topic, number).await?;
        let mut opened = KafkaPartition {
            link,
            topic: topic.to_owned(),
            partition: number,
            on_gap: self.on_gap,
            offset: 0,
            high_watermark: 0,
            pinned: after.is_some() || self.start == Start::Earliest,
            batches: VecDeque::new(),
            transactions: Transactions::default(),
            records: VecDeque::new(),
            batch_end: 0,
        };
        opened.offset = match after {
            Some(after) => after.as_str().parse().map_err(|_| FeedError::Damaged {
                path: format!("position {after} of {}", opened.what()),
                reason: "it is no offset: did the source read another kind of feed before? give it another name"
                    .to_owned(),
            })?,
            None if self.start == Start::Earliest => opened.offset_at(EARLIEST).await?,
            None => opened.offset_at(LATEST).await?,
        };
        Ok(Box::new(opened))
    }
}

fn topic_error(topic: &str, error: ResponseError) -> FeedError {
    let what = format!("Kafka topic {topic}");
    match error {
        ResponseError::UnknownTopicOrPartition => FeedError::Unreachable {
            what,
            reason: "the brokers do not know it: create it, or check `topics`".to_owned(),
        },
        error if error.is_retriable() => FeedError::Unreachable { what, reason: error.to_string() },
        error => FeedError::Refused { what, reason: format!("{error}: check what the user may read") },
    }
}

fn partition_name(topic: &str, partition: i32) -> String {
    format!("{partition}-{topic}")
}

fn topic_name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

fn what(topic: &str, partition: i32) -> String {
    format!("Kafka topic {topic}, partition {partition}")
}

fn position(offset: i64) -> Result<FeedPosition> {
    FeedPosition::new(format!("{offset:020}"))
}

#[derive(Debug)]
struct KafkaPartition {
    link: Link,
    topic: String,
    partition: i32,
    on_gap: OnGap,
    /// The next to be read.
    offset: i64,
    /// Behind the newest record that the broker has.
    high_watermark: i64,
    /// Whether where it begins is known to the lake, or need not be: "latest" must not be worked out again.
    pinned: bool,
    /// What was fetched: batches, which of them are not to be read, and the records of the one at hand with the offset behind it.
    batches: VecDeque<Batch>,
    transactions: Transactions,
    records: VecDeque<Record>,
    batch_end: i64,
}

#[async_trait]
impl FeedPartition for KafkaPartition {
    async fn next(&mut self, limits: &ChunkLimits, wait: Duration) -> Result<Option<Chunk>> {
        if !self.pinned {
            self.pinned = true;
            return Ok(Some(Chunk { lines: Vec::new(), records: 0, end: position(self.offset)? }));
        }
        let began = self.offset;
        let (mut lines, mut records) = (Vec::new(), 0);
        self.take(limits, &mut lines, &mut records)?;
        if self.offset == began {
            match self.fetch(limits, wait).await? {
                Fetched::Some => self.take(limits, &mut lines, &mut records)?,
                Fetched::Gap { earliest } => self.pass_over(earliest, &mut lines, &mut records)?,
            }
        }
        if self.offset == began {
            return Ok(None);
        }
        Ok(Some(Chunk { lines, records, end: position(self.offset)? }))
    }

    async fn acknowledge(&mut self, _position: &FeedPosition) -> Result<()> {
        Ok(())
    }

    async fn end(&mut self) -> Result<Option<FeedPosition>> {
        self.offset_at(LATEST).await.and_then(position).map(Some)
    }

    fn records_behind(&self) -> Option<u64> {
        u64::try_from(self.high_watermark - self.offset).ok()
    }
}

enum Fetched {
    /// What there was, perhaps nothing.
    Some,
    /// The records from here up to `earliest` are gone.
    Gap { earliest: i64 },
}

impl KafkaPartition {
    fn what(&self) -> String {
        what(&self.topic, self.partition)
    }

    /// Writes what was fetched as lines, as much as is wanted.
    fn take(&mut self, limits: &ChunkLimits, lines: &mut Vec<u8>, records: &mut u64) -> Result<()> {
        while *records < limits.records && lines.len() < limits.bytes {
            if let Some(record) = self.records.pop_front() {
                // A batch is sent whole, also when it began before.
                if record.offset >= self.offset {
                    write_line(lines, &self.topic, self.partition, &record);
                    *records += 1;
                    self.offset = record.offset + 1;
                }
                continue;
            }
            // Behind the last record there may have been others, which were compacted away.
            self.offset = self.offset.max(self.batch_end);
            let Some(batch) = self.batches.pop_front() else { return Ok(()) };
            let unreadable = |reason| FeedError::Unreadable {
                what: format!("{}, offset {}", what(&self.topic, self.partition), self.offset),
                reason,
            };
            if self.transactions.reads(&batch).map_err(unreadable)? {
                self.records = batch.records().map_err(unreadable)?;
            }
            self.batch_end = batch.last_offset + 1;
        }
        if self.records.is_empty() {
            self.offset = self.offset.max(self.batch_end);
        }
        Ok(())
    }

    async fn fetch(&mut self, limits: &ChunkLimits, wait: Duration) -> Result<Fetched> {
        let bytes = i32::try_from(limits.bytes).unwrap_or(i32::MAX).max(FETCH_BYTES_MIN);
        let partition = FetchPartition::default()
            .with_partition(self.partition)
            .with_current_leader_epoch(-1)
            .with_fetch_offset(self.offset)
            .with_log_start_offset(-1)
            .with_partition_max_bytes(bytes);
        let topic = FetchTopic::default().with_topic(topic_name(&self.topic)).with_partitions(vec![partition]);
        let request = FetchRequest::default()
            .with_replica_id(CONSUMER)
            .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
            .with_min_bytes(1)
            .with_max_bytes(bytes)
            .with_isolation_level(READ_COMMITTED)
            // Without a session: one partition is asked for.
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let answer = self.link.call(&request, FETCH, wait).await?;
        let found = answer
            .responses
            .into_iter()
            .flat_map(|topic| topic.partitions)
            .find(|found| found.partition_index == self.partition);
        let code = found.as_ref().map_or(answer.error_code, |found| found.error_code);
        match (ResponseError::try_from_code(code), found) {
            (None, Some(found)) => {
                self.high_watermark = found.high_watermark;
                let aborted = found.aborted_transactions.unwrap_or_default();
                self.transactions =
                    Transactions::new(aborted.iter().map(|aborted| (aborted.producer_id.0, aborted.first_offset)));
                self.cut(found.records.unwrap_or_default())?;
                Ok(Fetched::Some)
            }
            (Some(ResponseError::OffsetOutOfRange), _) => self.gap().await,
            (Some(error), _) => Err(self.error(error)),
            // Some brokers leave out what has nothing to give.
            (None, None) => Ok(Fetched::Some),
        }
    }

    fn cut(&mut self, mut records: Bytes) -> Result<()> {
        let unreadable =
            |reason| FeedError::Unreadable { what: format!("{}, offset {}", self.what(), self.offset), reason };
        let length = records.len();
        let mut batches = VecDeque::new();
        while let Some(batch) = Batch::take(&mut records).map_err(unreadable)? {
            batches.push_back(batch);
        }
        if batches.is_empty() && length > 0 {
            return Err(unreadable(format!("the broker sent {length} bytes that are no whole batch")));
        }
        self.batches = batches;
        Ok(())
    }

    /// The offset is not there: which ones are?
    async fn gap(&mut self) -> Result<Fetched> {
        let (earliest, latest) = (self.offset_at(EARLIEST).await?, self.offset_at(LATEST).await?);
        let offset = self.offset;
        if offset > latest {
            return Err(FeedError::Gap {
                what: self.what(),
                reason: format!(
                    "the lake stands at offset {offset}, and the partition ends at {latest}: the topic was made anew, or its broker has \
                     lost records; read it under another source name, or under another topic"
                ),
            });
        }
        if offset >= earliest {
            return Err(FeedError::Unreachable {
                what: self.what(),
                reason: format!("the broker says that offset {offset} is not there, and that it is"),
            });
        }
        if self.on_gap == OnGap::Error {
            return Err(FeedError::Gap {
                what: self.what(),
                reason: format!(
                    "the lake stands at offset {offset}, and the oldest record that is kept is {earliest}: what was between is gone; let the \
                     topic keep records longer (retention.ms), and go on behind the gap with on_gap = \"skip\""
                ),
            });
        }
        Ok(Fetched::Gap { earliest })
    }

    /// Goes on at `earliest`, and leaves a line that says what is missing, which goes to the quarantine.
    fn pass_over(&mut self, earliest: i64, lines: &mut Vec<u8>, records: &mut u64) -> Result<()> {
        let (topic, partition, offset) = (self.topic.as_str(), self.partition, self.offset);
        tracing::warn!(topic, partition, offset, earliest, "records are gone and passed over");
        tracing::info!(monotonic_counter.holdfast_feed_gaps = 1_u64);
        let mut line = Line::new(lines);
        line.text("_topic", topic);
        line.json("_partition", partition);
        line.json("_gap_from_offset", offset);
        line.json("_gap_to_offset", earliest - 1);
        line.finish_as_no_record();
        *records += 1;
        self.offset = earliest;
        Ok(())
    }

    async fn offset_at(&mut self, time: i64) -> Result<i64> {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(self.partition)
            .with_current_leader_epoch(-1)
            .with_timestamp(time);
        let topic = ListOffsetsTopic::default().with_name(topic_name(&self.topic)).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(CONSUMER)
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![topic]);
        let answer = self.link.call(&request, LIST_OFFSETS, Duration::ZERO).await?;
        let found = answer
            .topics
            .into_iter()
            .flat_map(|topic| topic.partitions)
            .find(|found| found.partition_index == self.partition);
        match found.map(|found| (ResponseError::try_from_code(found.error_code), found.offset)) {
            Some((None, offset)) => Ok(offset.max(0)),
            Some((Some(error), _)) => Err(self.error(error)),
            None => Err(FeedError::Unreadable {
                what: self.what(),
                reason: "the broker's answer does not have it".to_owned(),
            }),
        }
    }

    fn error(&self, error: ResponseError) -> FeedError {
        let what = self.what();
        match error {
            ResponseError::TopicAuthorizationFailed | ResponseError::ClusterAuthorizationFailed => FeedError::Refused {
                what,
                reason: "the user may not read it: grant Read and Describe on the topic".to_owned(),
            },
            ResponseError::CorruptMessage => FeedError::Unreadable { what, reason: error.to_string() },
            // The leader moved, the topic is being made or deleted, the broker is busy.
            error => FeedError::Unreachable { what, reason: error.to_string() },
        }
    }
}

fn write_line(lines: &mut Vec<u8>, topic: &str, partition: i32, record: &Record) {
    let mut line = Line::new(lines);
    line.text("_topic", topic);
    line.json("_partition", partition);
    line.json("_offset", record.offset);
    if let Some(timestamp) = DateTime::from_timestamp_millis(record.timestamp).filter(|_| record.timestamp >= 0) {
        line.text("_timestamp", &timestamp.to_rfc3339_opts(SecondsFormat::Millis, true));
    }
    if let Some(key) = &record.key {
        line.bytes("_key", key);
    }
    if !record.headers.is_empty() {
        let mut headers = Vec::new();
        let mut header_line = Line::new(&mut headers);
        for (name, value) in &record.headers {
            match value {
                Some(value) => header_line.bytes(name.as_str(), value),
                None => header_line.json(name.as_str(), "null"),
            }
        }
        header_line.finish();
        line.json("_headers", String::from_utf8_lossy(headers.trim_ascii()));
    }
    match &record.value {
        Some(value) => line.finish_with(value),
        None => {
            line.json("_tombstone", true);
            line.finish();
        }
    }
}
