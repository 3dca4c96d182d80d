//! Pushing events over HTTP: the real binary, real sockets, real kills, and rows read back from the lake.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use flate2::Compression;
use flate2::write::GzEncoder;
use holdfast_ingest::{Inbox, InboxReader, IngestSettings, Look, SourceSpec};
use holdfast_lake::{Lake, LakeSettings, StoreOptions};
use holdfast_testkit::Random;
use holdfast_types::FixedClock;
use object_store::ObjectStoreExt;
use serde_json::{Value, json};

use crate::{commits, ended, holdfast, rows, succeed};

/// A running `holdfast collect`. Killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts on the lake in `folder`, for the source `events` and without keys.
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, &["--source", "events"])
    }

    fn start_with(folder: &Path, arguments: &[&str]) -> Self {
        let mut command = collect(folder);
        let mut child = command.args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it did not start: {}", log.lock().unwrap())).unwrap();
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split(',').next().unwrap().parse().unwrap();
            }
            log.lock().unwrap().push_str(&line);
        };
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child, address, log }
    }

    fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.post_with(path, &[], body)
    }

    fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        request(self.address, "POST", path, headers, body).unwrap()
    }

    fn terminate(&self) {
        succeed(Command::new("kill").arg("-TERM").arg(self.child.id().to_string()));
    }

    /// Stops it as an operator does and answers how long that took.
    fn stop(mut self) -> Duration {
        let started = Instant::now();
        self.terminate();
        let status = ended(&mut self.child);
        assert!(status.success(), "it ended with {status}: {}", self.log.lock().unwrap());
        started.elapsed()
    }

    /// kill -9.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(folder: &Path) -> Command {
    let mut command = holdfast();
    command.arg("--lake").arg(folder.join("lake")).arg("--identity-key").arg(folder.join("identity.key"));
    command.args(["collect", "--listen", "127.0.0.1:0", "--ingest-interval-ms", "50"]);
    command
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    /// Messages accepted and messages known already.
    fn taken(&self) -> (u64, u64) {
        assert_eq!(self.status, 200, "{self:?}");
        (self.body["accepted"].as_u64().unwrap(), self.body["duplicates"].as_u64().unwrap())
    }

    /// The refusal's code; it has to say what to do.
    fn refused(&self, status: u16) -> &str {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.body["success"], false);
        assert!(self.body["message"].as_str().unwrap().len() > 20, "{self:?}");
        self.body["code"].as_str().unwrap()
    }
}

fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = open(address)?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut bytes = format!("{head}content-length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)?;
    answer(stream)
}

/// Reads the answer of a connection that ends with it.
fn answer(mut stream: TcpStream) -> std::io::Result<Answer> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let cut = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(cut)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(cut)?;
    let body = serde_json::from_str(body).map_err(|_| cut())?;
    Ok(Answer { status, head: head.to_lowercase(), body })
}

fn track(id: &str) -> Value {
    json!({ "type": "track", "event": "Product Viewed", "messageId": id, "anonymousId": format!("device-{id}"),
            "timestamp": "2026-02-01T10:00:00Z", "properties": { "product_id": format!("product of {id}"), "price": 9.90 } })
}

fn batch(ids: &[&str]) -> Vec<u8> {
    let messages: Vec<Value> = ids.iter().map(|id| track(id)).collect();
    json!({ "batch": messages }).to_string().into_bytes()
}

/// How often each message is in `raw`, with what it says.
fn stored(folder: &Path) -> BTreeMap<(String, String), u64> {
    let query = "select \"messageId\" as id, properties['product_id'] as product, count(*) as times \
                 from raw.events group by 1, 2";
    rows(folder, query)
        .into_iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            ((text("id"), text("product")), row["times"].as_u64().unwrap())
        })
        .collect()
}

fn once(ids: impl IntoIterator<Item = impl std::fmt::Display>) -> BTreeMap<(String, String), u64> {
    ids.into_iter().map(|id| ((id.to_string(), format!("product of {id}")), 1)).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A program that pushes batches, and pushes those again that were not acknowledged, as libraries do.
struct Client {
    name: String,
    random: Random,
    sent: u64,
    /// Batches without an acknowledgement.
    open: Vec<Vec<String>>,
    acknowledged: Vec<Vec<String>>,
}

impl Client {
    /// Pushes until the server is gone.
    fn push_until_gone(&mut self, address: SocketAddr) {
        loop {
            let ids = match self.random.below(4) {
                0 if !self.acknowledged.is_empty() => {
                    let at = self.random.below(self.acknowledged.len() as u64);
                    self.acknowledged[usize::try_from(at).unwrap()].clone()
                }
                _ => self.open.pop().unwrap_or_else(|| self.next_batch()),
            };
            if !self.push(address, ids) {
                return;
            }
        }
    }

    fn next_batch(&mut self) -> Vec<String> {
        let length = 1 + self.random.below(5);
        let ids = (0..length).map(|at| format!("{}-{}", self.name, self.sent + at)).collect();
        self.sent += length;
        ids
    }

    fn push(&mut self, address: SocketAddr, ids: Vec<String>) -> bool {
        let body = batch(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        match request(address, "POST", "/v1/batch", &[], &body) {
            Ok(answer) if answer.status == 200 => {
                if !self.acknowledged.contains(&ids) {
                    self.acknowledged.push(ids);
                }
                true
            }
            Ok(answer) => panic!("{answer:?}"),
            Err(_) => {
                if !self.acknowledged.contains(&ids) {
                    self.open.push(ids);
                }
                false
            }
        }
    }
}

#[test]
fn ing_1_and_ing_2_hold_for_pushed_messages_when_the_server_is_killed_at_any_moment() {
    const SEED: u64 = 20_260_301;
    const ROUNDS: u64 = 6;
    eprintln!("seed {SEED}");
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::new(SEED);
    let mut clients: Vec<Client> = (0..4)
        .map(|at| Client {
            name: format!("c{at}"),
            random: Random::new(SEED + at),
            sent: 0,
            open: Vec::new(),
            acknowledged: Vec::new(),
        })
        .collect();
    for _ in 0..ROUNDS {
        let server = Server::start_with(folder.path(), &["--source", "events", "--gather-ms", "20"]);
        let address = server.address;
        let working: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                std::thread::spawn(move || {
                    client.push_until_gone(address);
                    client
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100 + random.below(1_400)));
        server.kill();
        clients = working.into_iter().map(|thread| thread.join().unwrap()).collect();
    }
    let server = Server::start(folder.path());
    for client in &mut clients {
        while let Some(ids) = client.open.pop() {
            assert!(client.push(server.address, ids), "nobody kills it now");
        }
    }
    server.stop();
    let acknowledged: Vec<String> =
        clients.iter().flat_map(|client| client.acknowledged.iter().flatten().cloned()).collect();
    let sent: u64 = clients.iter().map(|client| client.sent).sum();
    eprintln!("{sent} messages");
    assert_eq!(acknowledged.len() as u64, sent);
    assert!(sent > 200, "too little load to show anything: {sent}");
    assert_eq!(stored(folder.path()), once(acknowledged));
}

#[test]
fn ing_2_a_message_that_comes_again_is_acknowledged_and_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    assert_eq!(server.post("/v1/batch", &batch(&["a", "b", "a"])).taken(), (2, 1));
    assert_eq!(server.post("/v1/import", &batch(&["b", "c"])).taken(), (1, 1));
    server.kill();
    let server = Server::start(folder.path());
    assert_eq!(server.post("/v1/batch", &batch(&["a", "b", "c", "d"])).taken(), (1, 3));
    assert_eq!(server.post("/v1/track", track("d").to_string().as_bytes()).taken(), (0, 1));
    assert_eq!(server.post("/v1/batch", b"{\"batch\":[]}").taken(), (0, 0));
    server.stop();
    assert_eq!(stored(folder.path()), once(["a", "b", "c", "d"]));

    // The window is as long as was said: of the newest two, `b` is none.
    let server = Server::start_with(folder.path(), &["--source", "events", "--remember-ids", "2"]);
    assert_eq!(server.post("/v1/batch", &batch(&["d", "c", "b"])).taken(), (1, 2));
}

#[test]
fn every_call_reaches_raw_with_what_its_sender_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    for call in ["track", "identify", "page", "screen", "group", "alias"] {
        let body = json!({ "userId": "M1", "originalTimestamp": "2026-02-01T10:00:00Z", "traits": { "plan": "gold" } });
        assert_eq!(server.post(&format!("/v1/{call}"), body.to_string().as_bytes()).taken(), (1, 0));
    }
    // A record that does not fit the contract is set aside; its neighbours are not.
    let body =
        json!({ "batch": [{ "type": "track", "messageId": "bad", "properties": { "price": "much" } }, track("good")] });
    assert_eq!(server.post("/v1/batch", body.to_string().as_bytes()).taken(), (2, 0));
    server.stop();
    let found = rows(
        folder.path(),
        "select type, count(*) as n, count(distinct \"messageId\") as ids, max(timestamp) as at from raw.events group by 1 order by 1",
    );
    let kinds: Vec<(&str, u64, u64)> = found
        .iter()
        .map(|row| (row["type"].as_str().unwrap(), row["n"].as_u64().unwrap(), row["ids"].as_u64().unwrap()))
        .collect();
    let expected =
        [("alias", 1, 1), ("group", 1, 1), ("identify", 1, 1), ("page", 1, 1), ("screen", 1, 1), ("track", 2, 2)];
    assert_eq!(kinds, expected);
    assert!(found.iter().all(|row| row["at"].as_str().unwrap().starts_with("2026-02-01T10:00:00")), "{found:?}");
    let refused = rows(folder.path(), "select column_name, original from quarantine.events");
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0]["column_name"], "properties.price");
    assert!(refused[0]["original"].as_str().unwrap().contains("\"bad\""));
}

#[test]
fn a_key_opens_its_own_source() {
    let folder = tempfile::tempdir().unwrap();
    let new_key = |source: &str| {
        let output = succeed(collect(folder.path()).args(["--new-key", source]));
        let text = String::from_utf8(output.stdout).unwrap();
        let key = text.lines().find_map(|line| line.strip_prefix("# hfk_")).unwrap();
        (format!("hfk_{key}"), text.lines().last().unwrap().to_owned())
    };
    let ((events, events_line), (posts, posts_line)) = (new_key("events"), new_key("social_posts"));
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, format!("[keys]\n{events_line}\n{posts_line}\n")).unwrap();
    let server = Server::start_with(folder.path(), &["-v", "--keys-file", file.to_str().unwrap()]);

    let basic = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:")));
    let push = |key: &str, id: &str| {
        server.post_with("/v1/track", &[("authorization", &basic(key))], track(id).to_string().as_bytes())
    };
    assert_eq!(push(&events, "a").taken(), (1, 0));
    assert_eq!(push(&posts, "a").taken(), (1, 0), "another source knows nothing of it");
    let mut body = track("b");
    body["writeKey"] = events.clone().into();
    assert_eq!(server.post("/v1/track", body.to_string().as_bytes()).taken(), (1, 0));
    let body = json!({ "writeKey": events, "batch": [track("c")] });
    assert_eq!(server.post("/v1/batch", body.to_string().as_bytes()).taken(), (1, 0));

    let answer = server.post("/v1/track", track("d").to_string().as_bytes());
    assert_eq!(answer.refused(401), "unauthorized");
    assert!(answer.head.contains("www-authenticate: basic"), "{}", answer.head);
    for wrong in [&events[..events.len() - 1], "hfk_", &events_line[1..65]] {
        assert_eq!(push(wrong, "d").refused(401), "unauthorized");
        let body = json!({ "writeKey": wrong, "batch": [track("d")] });
        assert_eq!(server.post("/v1/batch", body.to_string().as_bytes()).refused(401), "unauthorized");
    }
    let log = Arc::clone(&server.log);
    server.stop();
    assert_eq!(stored(folder.path()), once(["a", "b", "c"]));
    let inbox = everything_below(&folder.path().join("lake/_holdfast/inbox"));
    assert_eq!(inbox.lines().count(), 4);
    assert!(!inbox.contains("hfk_") && !log.lock().unwrap().contains(&events), "a key is a secret");
}

fn everything_below(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        text += &if path.is_dir() { everything_below(&path) } else { std::fs::read_to_string(&path).unwrap() };
    }
    text
}

#[test]
fn what_is_too_long_is_refused_before_it_is_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--source", "events", "--request-kb-max", "256", "--message-kb-max", "16"];
    let server = Server::start_with(folder.path(), &arguments);
    let before = peak_memory_kib(&server);

    // A gigabyte, in chunks and announced: the connection is answered or cut long before its end.
    for head in ["transfer-encoding: chunked", "content-length: 1073741824"] {
        let mut stream = open(server.address).unwrap();
        stream.write_all(format!("POST /v1/batch HTTP/1.1\r\nhost: test\r\n{head}\r\n\r\n").as_bytes()).unwrap();
        let mut piece = vec![b' '; 64 << 10];
        if head.contains("chunked") {
            piece = [b"10000\r\n".as_slice(), &piece, b"\r\n"].concat();
        }
        let sent = (0..16_384).take_while(|_| stream.write_all(&piece).is_ok()).count();
        assert!(sent < 4_096, "{head}: {sent} pieces were taken");
    }
    let packed = server.post_with("/v1/batch", &[("content-encoding", "gzip")], &gzip(&vec![b' '; 20 << 20]));
    assert_eq!(packed.refused(413), "request_too_large");

    let ids: Vec<String> = (0..3_000).map(|id| id.to_string()).collect();
    let long = server.post("/v1/batch", &batch(&ids.iter().map(String::as_str).collect::<Vec<_>>()));
    assert_eq!(long.refused(413), "request_too_large");
    assert!(long.body["message"].as_str().unwrap().contains("--request-kb-max"));
    let mut message = track("long");
    message["properties"]["query"] = "x".repeat(20 << 10).into();
    assert_eq!(server.post("/v1/track", message.to_string().as_bytes()).refused(413), "message_too_large");

    assert_eq!(server.post("/v1/batch", &batch(&["a"])).taken(), (1, 0), "the next one is taken");
    if let (Some(before), Some(after)) = (before, peak_memory_kib(&server)) {
        assert!(after - before < 64 << 10, "{before} KiB before, {after} KiB after");
    }
    server.stop();
    assert_eq!(stored(folder.path()), once(["a"]));
}

/// Where the system tells.
fn peak_memory_kib(server: &Server) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[test]
fn a_full_queue_sends_clients_away_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--source", "events", "--request-kb-max", "256", "--queue-mb-max", "1"];
    let server = Server::start_with(folder.path(), &arguments);
    let push = || server.post("/v1/batch", &batch(&["a"]));
    // Clients that announce a quarter of the room each and take their time; one that is sent away itself holds nothing.
    let mut slow = Vec::new();
    let announce_and_push = || {
        let mut stream = open(server.address).unwrap();
        stream.write_all(b"POST /v1/batch HTTP/1.1\r\nhost: test\r\ncontent-length: 262144\r\n\r\n{").unwrap();
        slow.push(stream);
        std::thread::sleep(Duration::from_millis(20));
        push()
    };
    let answer = until(announce_and_push, |answer| answer.status == 429);
    assert_eq!(answer.refused(429), "busy");
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
    drop(slow);
    let answer = until(push, |answer| answer.status == 200);
    assert_eq!(answer.status, 200);
    server.stop();
    assert_eq!(stored(folder.path()), once(["a"]));
}

/// Tries for up to ten seconds and answers the last try.
fn until(mut push: impl FnMut() -> Answer, done: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = push();
        if done(&answer) || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nothing_is_acknowledged_while_the_store_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    assert_eq!(server.post("/v1/batch", &batch(&["a"])).taken(), (1, 0));
    let inbox = folder.path().join("lake/_holdfast/inbox/churn/events");
    let aside = folder.path().join("aside");
    std::fs::rename(&inbox, &aside).unwrap();
    std::fs::write(&inbox, "in the way").unwrap();

    let answer = server.post("/v1/batch", &batch(&["b"]));
    assert_eq!(answer.refused(503), "store_unavailable");
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
    assert_eq!(server.post("/v1/batch", &batch(&["b", "c"])).refused(503), "store_unavailable");
    assert_eq!(request(server.address, "GET", "/health", &[], b"").unwrap().refused(503), "store_unavailable");

    std::fs::remove_file(&inbox).unwrap();
    std::fs::rename(&aside, &inbox).unwrap();
    let answer = until(|| server.post("/v1/batch", &batch(&["b", "c"])), |answer| answer.status == 200);
    assert_eq!(answer.taken(), (1, 1), "the first `b` was written after all");
    assert_eq!(request(server.address, "GET", "/health", &[], b"").unwrap().body, json!({ "status": "ok" }));
    server.stop();
    assert_eq!(stored(folder.path()), once(["a", "b", "c"]));
}

#[test]
fn packed_and_plain_messages_and_events_of_all_modes_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let packed = |path: &str, body: &[u8]| server.post_with(path, &[("content-encoding", "gzip")], &gzip(body));
    assert_eq!(packed("/v1/batch", &batch(&["a", "b"])).taken(), (2, 0));
    assert_eq!(server.post_with("/v1/batch", &[("content-encoding", "gzip")], b"not gzip").status, 400);
    assert_eq!(server.post_with("/v1/batch", &[("content-encoding", "br")], b"x").status, 415);

    let event = |id: &str| {
        json!({ "specversion": "1.0", "id": id, "source": "/till", "type": "sale", "properties": { "product_id": "p" } })
            .to_string()
    };
    let structured = [("content-type", "application/cloudevents+json")];
    let batched = [("content-type", "application/cloudevents-batch+json; charset=utf-8")];
    assert_eq!(server.post_with("/v1/events", &structured, event("1").as_bytes()).taken(), (1, 0));
    let both = format!("[{},{}]", event("1"), event("2"));
    assert_eq!(server.post_with("/v1/events", &batched, both.as_bytes()).taken(), (1, 1));
    let binary = |id: &str| {
        let headers = [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", id),
            ("ce-source", "/till"),
            ("ce-type", "sale"),
        ];
        server.post_with("/v1/events", &headers, b"{\"total\": 1.50}").taken()
    };
    assert_eq!(binary("2"), (0, 1), "the same event in another mode is the same event");
    assert_eq!(binary("3"), (1, 0));
    assert_eq!(packed("/v1/events", b"{}").refused(415), "unsupported_media_type");
    server.stop();
    let found = rows(folder.path(), "select \"messageId\" as id from raw.events where type = 'sale' order by 1");
    assert_eq!(found, [1, 2, 3].map(|id| json!({ "id": format!("[\"/till\",\"{id}\"]") })));
    let inbox = everything_below(&folder.path().join("lake/_holdfast/inbox"));
    assert!(inbox.contains("\"data\":{\"total\": 1.50}"), "data stays as it came");
}

#[test]
fn what_is_no_message_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    assert_eq!(server.post("/v1/batch", b"{\"batch\": [").refused(400), "not_json");
    assert_eq!(server.post("/v1/track", b"[]").refused(400), "invalid_message");
    let mixed = json!({ "batch": [track("a"), { "type": "buy" }] });
    let answer = server.post("/v1/batch", mixed.to_string().as_bytes());
    assert_eq!(answer.refused(400), "invalid_message");
    assert!(answer.body["message"].as_str().unwrap().starts_with("message 1"), "{answer:?}");
    assert_eq!(server.post("/v1/buy", b"{}").refused(404), "not_found");
    assert_eq!(request(server.address, "GET", "/v1/batch", &[], b"").unwrap().status, 405);
    server.stop();
    assert_eq!(stored(folder.path()), once(Vec::<String>::new()), "nothing of a refused request is stored");
}

#[test]
fn a_stop_finishes_what_was_taken() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &["--source", "events", "--gather-ms", "1500"]);
    let address = server.address;
    let pushing: Vec<_> = (0..8)
        .map(|id| {
            std::thread::spawn(move || {
                let id = id.to_string();
                request(address, "POST", "/v1/batch", &[], &batch(&[&id])).unwrap().taken()
            })
        })
        .collect();
    // An idle connection must not hold it up.
    let idle = open(address).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let took = server.stop();
    assert!(took < Duration::from_secs(10), "{took:?}");
    for thread in pushing {
        assert_eq!(thread.join().unwrap(), (1, 0));
    }
    assert!(TcpStream::connect(address).is_err());
    drop(idle);
    assert_eq!(stored(folder.path()), once(0..8), "a clean stop leaves nothing behind in the inbox");
}

#[test]
fn two_servers_of_one_source_store_each_others_messages_once() {
    let folder = tempfile::tempdir().unwrap();
    let (left, right) = (Server::start(folder.path()), Server::start(folder.path()));
    for id in 0..30 {
        let server = if id % 2 == 0 { &left } else { &right };
        assert_eq!(server.post("/v1/batch", &batch(&[&id.to_string()])).taken(), (1, 0));
    }
    left.stop();
    right.stop();
    // What one of them may have left to the other's next look is found at a start.
    Server::start(folder.path()).stop();
    assert_eq!(stored(folder.path()), once(0..30));
}

#[tokio::test]
async fn objects_of_a_server_whose_clock_is_behind_are_found_by_looking_back() {
    let folder = tempfile::tempdir().unwrap();
    let now = "2026-03-01T00:30:00Z".parse::<DateTime<Utc>>().unwrap();
    let location = folder.path().join("lake");
    let lake = Lake::create_or_open(
        location.to_str().unwrap(),
        folder.path(),
        &StoreOptions::new(),
        LakeSettings::default(),
        Arc::new(FixedClock(now)),
    )
    .await
    .unwrap();
    let contract = "kind = \"behaviour\"\npath = \"x/*\"\nformat = \"ndjson\"\n[columns]\nid = \"int64\"\n";
    let spec = SourceSpec::parse("clicks.toml", contract).unwrap();
    let inbox = Inbox::new(&lake, "test", &spec);
    let put = async |minutes_ago: i64, id: u64| {
        let object = inbox.object(now - chrono::Duration::minutes(minutes_ago));
        lake.store().put(&object, format!("{{\"id\":{id}}}\n").into()).await.unwrap();
    };
    let mut reader = InboxReader::new(inbox.clone(), IngestSettings::default());
    assert_eq!(reader.advance(Look::Ahead).await.unwrap().files_found, 0, "an inbox that is not there is empty");
    put(10, 1).await;
    put(5, 2).await;
    assert_eq!(reader.advance(Look::Ahead).await.unwrap().rows_stored, 2);
    // Half an hour earlier, which is the day before, and long before the hour that is looked at.
    put(40, 3).await;
    put(300, 4).await;
    put(4, 5).await;
    let ahead = reader.advance(Look::Ahead).await.unwrap();
    assert_eq!((ahead.files_found, ahead.rows_stored), (1, 1));
    let back = reader.advance(Look::Back).await.unwrap();
    assert_eq!((back.files_found, back.rows_stored), (4, 1));
    let versions = commits(folder.path());
    assert_eq!(reader.advance(Look::Back).await.unwrap().rows_stored, 0);
    assert_eq!(commits(folder.path()), versions, "nothing new, nothing committed");

    // Another reader begins with the books of the first, and finds what the two have left.
    put(3, 6).await;
    let mut other = InboxReader::new(inbox.clone(), IngestSettings::default());
    assert_eq!(other.advance(Look::Ahead).await.unwrap().rows_stored, 1);
    put(2, 7).await;
    assert_eq!(reader.advance(Look::Ahead).await.unwrap().rows_stored, 1, "its books are behind the tables");
    assert_eq!(other.advance(Look::Ahead).await.unwrap().rows_stored, 0);
}

#[test]
fn files_and_pushes_of_one_source_count_once_each_whoever_dies() {
    let folder = tempfile::tempdir().unwrap();
    let exports = folder.path().join("exports");
    std::fs::create_dir_all(exports.join("events")).unwrap();
    let ingest = |abort_after: Option<&str>| {
        let mut command = holdfast();
        command.arg("--lake").arg(folder.path().join("lake"));
        command.arg("--identity-key").arg(folder.path().join("identity.key"));
        command.args(["ingest", "--raw-only", "--source", "events", "--from"]).arg(&exports);
        if let Some(step) = abort_after {
            command.env("HOLDFAST_ABORT_AFTER", step);
        }
        assert_eq!(command.output().unwrap().status.success(), abort_after.is_none());
    };
    let mut expected = Vec::new();
    let mut server = Server::start(folder.path());
    for (round, step) in ["raw_staged", "planned", "raw_committed", "batch_recorded"].into_iter().enumerate() {
        let file: Vec<String> = (0..5).map(|line| format!("file-{round}-{line}")).collect();
        let lines: String = file.iter().map(|id| format!("{}\n", track(id))).collect();
        std::fs::write(exports.join(format!("events/{round}.ndjson")), lines).unwrap();
        ingest(Some(step));
        let pushed: Vec<String> = (0..5).map(|id| format!("push-{round}-{id}")).collect();
        for id in &pushed {
            assert_eq!(server.post("/v1/batch", &batch(&[id])).taken(), (1, 0));
        }
        server.kill();
        ingest(None);
        server = Server::start(folder.path());
        expected.extend(file);
        expected.extend(pushed);
    }
    server.stop();
    ingest(None);
    assert_eq!(stored(folder.path()), once(expected));
}

#[test]
fn what_cannot_be_served_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    std::fs::write(&keys, "[keys]\n\"00\" = \"events\"\n").unwrap();
    let keys = keys.to_str().unwrap();
    for (arguments, said) in [
        (vec![], "--source"),
        (vec!["--source", "event"], "no source `event`"),
        (vec!["--source", "crm_contacts"], "format = \"ndjson\""),
        (vec!["--keys-file", keys], "--new-key"),
        (vec!["--keys-file", keys, "--source", "events"], "cannot be used with"),
        (vec!["--source", "events", "--queue-mb-max", "1"], "queue_bytes_max"),
    ] {
        let output = collect(folder.path()).args(&arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
    let mut command = holdfast();
    command.arg("--lake").arg(folder.path().join("lake"));
    let output = command.args(["collect", "--source", "events", "--listen", "0.0.0.0:0"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--keys-file"), "{stderr}");
}
