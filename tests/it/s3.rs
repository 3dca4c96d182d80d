//! S3 over real sockets, from a server that is honest, lies, throttles, breaks off and stalls: nothing is lost or doubled, and what cannot be
//! kept is refused before anything is written.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_ingest::{IngestError, IngestSettings, SourceReport, SourceSpec, ingest_source};
use holdfast_lake::{Lake, LakeSettings, ObjectLocation, StoreOptions, open_store};
use holdfast_testkit::{Conditions, Operation, Random, Rule, S3Fault, S3Server, S3Settings};
use holdfast_types::{ErrorKind, FixedClock, NoProgress};
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};

use crate::{holdfast, succeed};

const CONTRACT: &str = r#"
kind = "orders"
path = "orders/*.ndjson"
format = "ndjson"
max_quarantine_share = 1.0
[columns]
id = "string"
n = "int32"
text = "string"
"#;

fn options(server: &S3Server) -> StoreOptions {
    let settings = S3Settings::default();
    [
        ("aws_endpoint", server.endpoint()),
        ("aws_allow_http", "true".to_owned()),
        ("aws_region", "us-east-1".to_owned()),
        ("aws_access_key_id", settings.access_key),
        ("aws_secret_access_key", settings.secret_key),
        // What stalls for longer is given up and tried again.
        ("aws_timeout", "1 second".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn store(server: &S3Server) -> Arc<dyn ObjectStore> {
    open_store("s3://shop", Path::new("/"), &options(server)).unwrap().store
}

/// The binary with the bucket's settings in its environment, and no others.
pub(crate) fn on_s3(server: &S3Server) -> Command {
    let mut command = holdfast();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env("AWS_ENDPOINT", server.endpoint()).env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1");
    command
}

fn with_keys(command: &mut Command) -> &mut Command {
    let settings = S3Settings::default();
    command.env("AWS_ACCESS_KEY_ID", settings.access_key).env("AWS_SECRET_ACCESS_KEY", settings.secret_key)
}

fn create() -> PutOptions {
    PutOptions { mode: PutMode::Create, ..PutOptions::default() }
}

fn path(name: &str) -> ObjectPath {
    ObjectPath::from(name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_is_one_that_tests_can_rely_on() {
    let server = S3Server::start(S3Settings::default()).unwrap();
    let store = store(&server);
    // Of eight who create one object at the same time one is told that it did, and its bytes are there.
    for round in 0..20 {
        let name = path(&format!("race/{round}"));
        let tries = (0..8).map(|writer| {
            let (store, name) = (Arc::clone(&store), name.clone());
            async move { store.put_opts(&name, format!("{writer}").into(), create()).await.is_ok() }
        });
        let won = futures::future::join_all(tries).await;
        let winner = won.iter().position(|won| *won).unwrap();
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "round {round}");
        assert_eq!(store.get(&name).await.unwrap().bytes().await.unwrap(), winner.to_string());
    }

    store.put(&path("a"), "12345678".into()).await.unwrap();
    let found = store.head(&path("a")).await.unwrap();
    assert_eq!(found.size, 8);
    assert_eq!(store.get_range(&path("a"), 2..5).await.unwrap(), "345");
    let update = |e_tag: Option<String>| PutOptions {
        mode: PutMode::Update(UpdateVersion { e_tag, version: None }),
        ..PutOptions::default()
    };
    store.put_opts(&path("a"), "other".into(), update(found.e_tag.clone())).await.unwrap();
    let stale = store.put_opts(&path("a"), "stale".into(), update(found.e_tag.clone())).await.unwrap_err();
    assert!(matches!(stale, object_store::Error::Precondition { .. }), "{stale}");
    let changed = GetOptions { if_match: found.e_tag, ..GetOptions::default() };
    assert!(matches!(store.get_opts(&path("a"), changed).await.unwrap_err(), object_store::Error::Precondition { .. }));

    // More than one page, folders, and what comes behind a name.
    for number in 0..1_005 {
        server.put("shop", &format!("many/{}/{number:04}", number % 2), "x");
    }
    assert_eq!(store.list(Some(&path("many"))).count().await, 1_005);
    let folders = store.list_with_delimiter(Some(&path("many"))).await.unwrap().common_prefixes;
    assert_eq!(folders, [path("many/0"), path("many/1")]);
    let behind = store.list_with_offset(Some(&path("many")), &path("many/1/1000"));
    let behind: Vec<ObjectPath> = behind.map_ok(|found| found.location).try_collect().await.unwrap();
    assert_eq!(behind, [path("many/1/1001"), path("many/1/1003")]);
    store.delete(&path("many/1/1001")).await.unwrap();
    assert!(matches!(store.get(&path("many/1/1001")).await.unwrap_err(), object_store::Error::NotFound { .. }));

    let mut upload = store.put_multipart(&path("parts")).await.unwrap();
    upload.put_part("first ".repeat(1 << 20).into()).await.unwrap();
    upload.put_part("last".into()).await.unwrap();
    assert_eq!(server.open_uploads(), 1);
    upload.complete().await.unwrap();
    assert_eq!((server.open_uploads(), server.object("shop", "parts").unwrap().len()), (0, 6 * (1 << 20) + 4));

    // Nobody else is let in.
    let mut stranger = options(&server);
    stranger.insert("aws_secret_access_key", "guessed");
    let stranger = open_store("s3://shop", Path::new("/"), &stranger).unwrap().store;
    assert!(matches!(stranger.get(&path("a")).await.unwrap_err(), object_store::Error::PermissionDenied { .. }));
}

/// An ingested folder and a lake in the bucket.
struct Shop {
    server: S3Server,
    delivered: u64,
}

impl Shop {
    fn new(rules: Vec<Rule<S3Fault>>) -> Self {
        Self { server: S3Server::start(S3Settings { rules, ..S3Settings::default() }).unwrap(), delivered: 0 }
    }

    /// Delivers a file of records, the first of which does not fit.
    fn deliver(&mut self, records: u64, text_bytes: usize) {
        let mut random = Random::new(self.delivered);
        let mut lines = String::new();
        for at in 0..records {
            let text: String = (0..text_bytes / 16).map(|_| format!("{:016x}", random.any())).collect();
            let n = if at == 0 { "\"x\"".to_owned() } else { at.to_string() };
            lines.push_str(&format!("{{\"id\":\"r{}\",\"n\":{n},\"text\":\"{text}\"}}\n", self.delivered));
            self.delivered += 1;
        }
        self.server.put("shop", &format!("in/orders/{:06}.ndjson", self.delivered), lines);
    }

    fn place(&self, below: &str) -> ObjectLocation {
        open_store(&format!("s3://shop/{below}"), Path::new("/"), &options(&self.server)).unwrap()
    }

    async fn lake(&self) -> Result<Lake, IngestError> {
        let clock = Arc::new(FixedClock("2026-03-01T00:00:00Z".parse().unwrap()));
        Ok(Lake::create_or_open_at(self.place("lake"), LakeSettings::default(), clock).await?)
    }

    async fn ingest(&self) -> Result<SourceReport, IngestError> {
        let spec = SourceSpec::parse("orders.toml", CONTRACT).unwrap();
        let settings = IngestSettings { batch_files_max: 1, ..IngestSettings::default() };
        ingest_source(&self.lake().await?, "test", &spec, &self.place("in"), &settings, &NoProgress).await
    }

    /// How often each record is stored or set aside.
    async fn stored(&self) -> BTreeMap<String, u64> {
        let lake = self.lake().await.unwrap();
        let newest =
            holdfast_engine::LakeReader::newest(&lake, &holdfast_engine::SessionSettings::default()).await.unwrap();
        let query = "select id from raw.orders union all \
                     select substr(original, 8, strpos(substr(original, 8), '\"') - 1) from quarantine.orders";
        let mut stored = BTreeMap::new();
        for batch in newest.session().unwrap().sql(query).await.unwrap().collect().await.unwrap() {
            let ids = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).unwrap();
            for id in arrow::array::AsArray::as_string::<i32>(&ids).iter().flatten() {
                *stored.entry(id.to_owned()).or_default() += 1;
            }
        }
        stored
    }

    fn expected(&self) -> BTreeMap<String, u64> {
        (0..self.delivered).map(|number| (format!("r{number}"), 1)).collect()
    }
}

/// A process that looks again and again, as one that watches does, asks for what it has not seen yet: small data files come whole, once, and so do commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_a_table_again_asks_the_store_for_what_is_new_alone() {
    let mut shop = Shop::new(Vec::new());
    shop.deliver(100, 64);
    shop.ingest().await.unwrap();
    let lake = shop.lake().await.unwrap();
    let asked = |part: &str| {
        let gets = |asked: &&holdfast_testkit::Asked| asked.operation == Operation::Get && asked.status == Some(200);
        let asked = shop.server.asked();
        let paths = asked.iter().filter(gets).filter(|asked| asked.path.contains(part));
        let paths: Vec<&str> = paths.map(|asked| asked.path.as_str()).collect();
        let distinct: std::collections::BTreeSet<&str> = paths.iter().copied().collect();
        (paths.len(), distinct.len())
    };
    let count = async |lake: &Lake| {
        let newest =
            holdfast_engine::LakeReader::newest(lake, &holdfast_engine::SessionSettings::default()).await.unwrap();
        // Different columns: what was not asked for the first time is there all the same.
        let mut rows = Vec::new();
        for column in ["id", "text"] {
            let session = newest.session().unwrap();
            let query = format!("select {column} from raw.orders where n > 1");
            rows.push(session.sql(&query).await.unwrap().count().await.unwrap());
        }
        rows
    };
    let before = (asked("/raw/orders/part"), asked("/raw/orders/_delta_log/0"));
    assert_eq!(count(&lake).await, [98, 98]);
    assert_eq!(count(&lake).await, [98, 98]);
    let after = (asked("/raw/orders/part"), asked("/raw/orders/_delta_log/0"));
    assert_eq!(after.0.0 - before.0.0, 1, "one data file, one GET: {before:?} {after:?}");
    assert!(after.1.0 - before.1.0 <= after.1.1, "each commit at most once: {before:?} {after:?}");
}

/// Whatever goes wrong between us and the store, a call ends well or says that it may be made again, and then every record is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_every_record_is_stored_once_whatever_the_server_answers() {
    const COMMITS: [Operation; 1] = [Operation::PutCreate];
    let stalled = S3Fault::Stalled(Duration::from_secs(3));
    let faults: Vec<(&str, Vec<Rule<S3Fault>>)> = vec![
        ("busy", vec![Rule::on(&[], S3Fault::Refused(503)).percent(10)]),
        (
            "busy while raw is committed",
            vec![Rule::on(&COMMITS, S3Fault::Refused(503)).path("/raw/orders/_delta_log/").times(2)],
        ),
        (
            "each commit is made and answered with 500",
            vec![Rule::on(&COMMITS, S3Fault::Applied(500)).path("/_delta_log/")],
        ),
        (
            "a commit is answered with 409",
            vec![Rule::on(&COMMITS, S3Fault::Refused(409)).path("/raw/orders/_delta_log/").after(1).times(1)],
        ),
        (
            "a commit is made and answered with 409",
            vec![Rule::on(&COMMITS, S3Fault::Applied(409)).path("/raw/orders/_delta_log/").after(1).times(1)],
        ),
        (
            "a commit is answered with 412",
            vec![Rule::on(&COMMITS, S3Fault::Refused(412)).path("/ingest_files/_delta_log/").after(1).times(1)],
        ),
        (
            "a commit's connection is reset",
            vec![Rule::on(&COMMITS, S3Fault::Reset).path("/ingest_batches/_delta_log/").times(1)],
        ),
        ("a delivered file breaks off", vec![Rule::on(&[Operation::Get], S3Fault::Truncated).path("/in/").times(2)]),
        ("the log breaks off", vec![Rule::on(&[Operation::Get], S3Fault::Truncated).path("/_delta_log/").times(3)]),
        (
            "stalls",
            vec![
                Rule::on(&[Operation::Get], stalled).path("/in/").times(1),
                Rule::on(&[Operation::Put], stalled).path("/raw/").times(1),
            ],
        ),
        (
            "everything at once",
            vec![
                Rule::on(&[], S3Fault::Refused(503)).percent(5),
                Rule::on(&Operation::PUTS, S3Fault::Applied(500)).percent(5),
                Rule::on(&Operation::PUTS, S3Fault::Reset).percent(3),
                Rule::on(&[Operation::Get], S3Fault::Truncated).percent(3),
            ],
        ),
    ];
    let runs = faults.into_iter().map(|(name, rules)| async move {
        let mut shop = Shop::new(rules);
        shop.deliver(5, 16);
        shop.deliver(3, 16);
        let mut tries = 0;
        loop {
            tries += 1;
            match shop.ingest().await {
                Ok(report) => {
                    assert!(report.refused.is_empty(), "{name}: {report:?}");
                    break;
                }
                Err(error) => {
                    let kind = error.kind();
                    assert!(matches!(kind, ErrorKind::Retry | ErrorKind::Conflict), "{name}: {kind}: {error}");
                    assert!(tries < 20, "{name}: {error}");
                }
            }
        }
        assert_eq!(shop.server.left(), 0, "{name}: not all of it happened");
        shop.server.set_rules(Vec::new());
        assert_eq!(shop.stored().await, shop.expected(), "{name}");
        assert_eq!(shop.ingest().await.unwrap().batches, 0, "{name}");
    });
    futures::stream::iter(runs).buffer_unordered(4).collect::<Vec<_>>().await;
}

/// A data file that is too large for one PUT.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_an_upload_that_breaks_in_its_middle_leaves_nothing_behind_but_parts() {
    for fault in [S3Fault::Reset, S3Fault::Applied(500), S3Fault::Refused(503)] {
        let operations = [Operation::UploadPart, Operation::UploadComplete];
        let mut shop = Shop::new(vec![Rule::on(&operations, fault).after(1).times(1)]);
        shop.deliver(4_000, 8 << 10);
        let mut tries = 0;
        while let Err(error) = shop.ingest().await {
            tries += 1;
            assert!(error.kind() == ErrorKind::Retry && tries < 5, "{fault:?}: {error}");
        }
        assert_eq!(shop.server.left(), 0, "{fault:?} did not strike: the file was written at once");
        assert_eq!(shop.stored().await, shop.expected(), "{fault:?}");
    }
}

fn events(server: &S3Server) -> Command {
    let mut command = on_s3(server);
    let key = std::env::temp_dir().join("holdfast-s3-test-identity.key");
    command.arg("--identity-key").arg(key).args(["--lake", "s3://shop/lake"]);
    command
}

#[test]
fn a_store_that_lies_is_refused_before_anything_is_written() {
    let settings = S3Settings { conditions: Conditions::Ignored, ..S3Settings::default() };
    let server = S3Server::start(settings).unwrap();
    server.put("shop", "in/events/1.ndjson", "{\"messageId\":\"a\",\"type\":\"track\"}\n");
    let lake_json = "{\"format_version\":1,\"customer_buckets\":64}";
    server.put("shop", "lake/_holdfast/lake.json", lake_json);
    for arguments in [
        &["ingest", "--raw-only", "--source", "events", "--from", "s3://shop/in"][..],
        &["collect", "--source", "events", "--listen", "127.0.0.1:0"],
        &["run"],
        &["maintain"],
    ] {
        let output = with_keys(&mut events(&server)).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("created twice") && said.contains("If-None-Match"), "{arguments:?}: {said}");
    }
    assert_eq!(server.keys("shop"), ["in/events/1.ndjson", "lake/_holdfast/lake.json", "lake/_holdfast/probe"]);
    assert_eq!(server.object("shop", "lake/_holdfast/lake.json").unwrap(), Bytes::from(lake_json));
}

#[test]
fn asking_whether_the_store_can_be_relied_on_costs_three_requests_once_and_two_a_start() {
    let server = S3Server::start(S3Settings::default()).unwrap();
    server.put("shop", "in/events/1.ndjson", "{\"messageId\":\"a\",\"type\":\"track\"}\n");
    let asked = || server.asked().iter().filter(|asked| asked.path.ends_with("/_holdfast/probe")).count();
    let ingest = ["ingest", "--raw-only", "--source", "events", "--from", "s3://shop/in"];
    succeed(with_keys(&mut events(&server)).args(ingest));
    assert_eq!(asked(), 3);
    succeed(with_keys(&mut events(&server)).args(ingest));
    assert_eq!(asked(), 5);
    // Who reads may not be allowed to write.
    succeed(with_keys(&mut events(&server)).args(["sql", "select * from raw.events"]));
    assert_eq!(asked(), 5);
}

#[test]
fn credentials_come_from_the_profile_and_what_is_wrong_with_them_is_told_without_them() {
    let server = S3Server::start(S3Settings::default()).unwrap();
    let settings = S3Settings::default();
    server.put("shop", "in/events/1.ndjson", "{\"messageId\":\"a\",\"type\":\"track\"}\n");
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(home.path().join(".aws").join(name), text).unwrap();
    write(
        "credentials",
        &format!(
            "[default]\naws_access_key_id = {0}\naws_secret_access_key = not-the-secret\n[shop]\naws_access_key_id = {0}\naws_secret_access_key = {1}\n",
            settings.access_key, settings.secret_key
        ),
    );
    write(
        "config",
        &format!(
            "[profile shop]\nregion = us-east-1\nendpoint_url = {}\n[profile sso]\nsso_session = x\n",
            server.endpoint()
        ),
    );
    let ingest = |profile: Option<&str>| {
        let mut command = events(&server);
        command.env("HOME", home.path()).args(["ingest", "--raw-only", "--source", "events", "--from", "s3://shop/in"]);
        if let Some(profile) = profile {
            command.env("AWS_PROFILE", profile);
        }
        command
    };
    // The profile names the endpoint, too.
    succeed(ingest(Some("shop")).env_remove("AWS_ENDPOINT").env_remove("AWS_REGION"));
    for (profile, code, words) in
        [(None, 2, "no permission"), (Some("sso"), 2, "export-credentials"), (Some("nobody"), 2, "is not in")]
    {
        let output = ingest(profile).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{profile:?}: {said}");
        assert!(said.contains(words) && !said.contains("not-the-secret"), "{profile:?}: {said}");
    }
    // A lake on the local disk needs none of this.
    std::fs::create_dir_all(home.path().join("in/events")).unwrap();
    let mut local = holdfast();
    local.env("HOME", home.path()).env("AWS_PROFILE", "sso").arg("--lake").arg(home.path().join("lake"));
    local.arg("--identity-key").arg(home.path().join("identity.key"));
    local.args(["ingest", "--raw-only", "--source", "events", "--from"]).arg(home.path().join("in"));
    succeed(&mut local);
}
