//! A PostgreSQL server, and a project whose source is a table of it.

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{ended, holdfast_binary, succeed};

/// A PostgreSQL of its own, in a folder of its own. Ended when dropped.
pub(super) struct Postgres {
    pub(super) folder: tempfile::TempDir,
    pub(super) programs: PathBuf,
    /// Whom the server runs as: it refuses to be root.
    pub(super) runs_as: Option<(u32, u32)>,
    pub(super) port: u16,
    pub(super) process: Option<Child>,
}

impl Postgres {
    /// Makes a cluster and starts it; `None` when the machine has no server.
    pub(super) fn start(settings: &[&str]) -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(
                std::env::var_os("HOLDFAST_TESTS_NEED_POSTGRES").is_none(),
                "there is no PostgreSQL server: apt-get install postgresql"
            );
            eprintln!("skipped: there is no PostgreSQL server (apt-get install postgresql)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let runs_as = (user_id("-u") == 0).then(|| {
            let users = std::fs::read_to_string("/etc/passwd").unwrap();
            let entry = |name: &str| {
                let fields: Vec<&str> = users.lines().find(|line| line.starts_with(name))?.split(':').collect();
                Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
            };
            entry("postgres:").or_else(|| entry("nobody:")).expect("a user who is not root")
        });
        if let Some((user, group)) = runs_as {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { folder, programs, runs_as, port, process: None };
        let data = server.data();
        // Small segments: log that is too old is thrown away sooner.
        let made = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--wal-segsize=1"];
        succeed(server.program("initdb").args(made).arg("-D").arg(&data));
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nwal_level = logical\n\
             fsync = off\nshared_buffers = 16MB\nmax_wal_size = 256MB\ntimezone = 'Asia/Shanghai'\n",
            server.folder.path().display()
        );
        settings.iter().for_each(|setting| text.push_str(&format!("{setting}\n")));
        server.write(&data.join("postgresql.auto.conf"), &text);
        server.start_again();
        Some(server)
    }

    pub(super) fn start_again(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let data = self.data();
        let mut command = self.program("postgres");
        self.process = Some(command.arg("-D").arg(data).stderr(log.try_clone().unwrap()).stdout(log).spawn().unwrap());
        let began = Instant::now();
        while self.try_sql("postgres", "select 1").is_err() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(began.elapsed() < Duration::from_secs(60), "the server does not start: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the server as a crash of it would.
    pub(super) fn crash(&mut self) {
        let mut process = self.process.take().unwrap();
        succeed(Command::new("kill").arg("-QUIT").arg(process.id().to_string()));
        ended(&mut process);
    }

    pub(super) fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        succeed(Command::new("kill").arg("-INT").arg(process.id().to_string()));
        ended(&mut process);
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(super) fn write(&self, path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        if let Some((user, group)) = self.runs_as {
            chown(path, Some(user), Some(group)).unwrap();
        }
    }

    pub(super) fn program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let Some((user, group)) = self.runs_as else { return Command::new(program) };
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups").arg(program);
        command.current_dir("/");
        command
    }

    pub(super) fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = psql(&self.programs, self.port, database).arg(sql).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Until the server has noticed that its reader is gone.
    pub(super) fn wait_until_nobody_reads(&self) {
        let began = Instant::now();
        while self.sql("select count(*) from pg_replication_slots where active") != "0" {
            assert!(began.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(super) fn sql(&self, sql: &str) -> String {
        self.try_sql("postgres", sql).unwrap_or_else(|error| panic!("{error}: {sql}"))
    }
}

/// `psql` without the statement, which is its last argument.
pub(super) fn psql(programs: &Path, port: u16, database: &str) -> Command {
    let mut command = Command::new(programs.join("psql"));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres", "-d", database]);
    command.args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c"]);
    command
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = Command::new("kill").arg("-QUIT").arg(process.id().to_string()).status();
            let _ = process.wait();
        }
    }
}

pub(super) fn user_id(what: &str) -> u32 {
    let output = succeed(Command::new("id").arg(what));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// The folder with `initdb`, `postgres` and `psql`.
pub(super) fn programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut debian: Vec<PathBuf> = debian.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    debian.sort();
    debian.reverse();
    std::env::split_paths(&path)
        .chain(debian)
        .find(|folder| ["initdb", "postgres", "psql"].into_iter().all(|name| folder.join(name).is_file()))
}

/// A project whose only source is a table of a server.
pub(super) struct Shop {
    pub(super) folder: tempfile::TempDir,
}

/// The columns of raw that every contract here has.
pub(super) const OWN_COLUMNS: &str = "_op = \"string\"\n_table = \"string\"\n_position = \"string\"\n_lsn = \"string\"\n\
                           _committed_at = \"timestamp\"\n_xid = \"int64\"\n_unchanged = \"list<string>\"\n";

impl Shop {
    pub(super) fn new(server: &Postgres, feed: &str, columns: &str) -> Self {
        let shop = Self { folder: tempfile::tempdir().unwrap() };
        shop.write("holdfast.toml", "[lake]\nurl = \"lake\"\n");
        shop.write("pipelines/churn/pipeline.toml", "stages = \"sql\"\n");
        shop.write("pipelines/churn/identity.toml", "priority = [\"member_id\"]\n[types.member_id]\nunique = true\n");
        std::fs::create_dir_all(shop.folder.path().join("sql/core")).unwrap();
        shop.contract(server, feed, columns);
        shop
    }

    pub(super) fn contract(&self, server: &Postgres, feed: &str, columns: &str) {
        let login = if feed.contains("user =") { "" } else { "user = \"postgres\"\nsslmode = \"disable\"\n" };
        let contract = format!(
            "kind = \"orders\"\nevent_time = \"_committed_at\"\n\n[feed]\nkind = \"postgres\"\nhost = \"127.0.0.1\"\n\
             port = {}\ndbname = \"postgres\"\n{login}{feed}\n\n[columns]\n{columns}\n{OWN_COLUMNS}",
            server.port
        );
        self.write("pipelines/churn/sources/items.toml", &contract);
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(super) fn holdfast(&self) -> Command {
        let mut command = Command::new(holdfast_binary());
        command.arg("--project").arg(self.folder.path()).current_dir(self.folder.path());
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "HOLDFAST_LOG", "HOLDFAST_ABORT_AFTER"] {
            command.env_remove(name);
        }
        command
    }

    /// Brings everything that is there now to raw.
    pub(super) fn ingest(&self) -> String {
        let output = succeed(self.holdfast().args(["ingest", "--raw-only"]));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Ingestion that has to fail: its exit code, and what it said.
    pub(super) fn refused(&self) -> (i32, String) {
        let output = self.holdfast().args(["ingest", "--raw-only"]).output().unwrap();
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// A worker that goes on until it is killed.
    pub(super) fn watch(&self) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = self.holdfast();
        command.args(["ingest", "--raw-only", "--watch", "--every", "0.2"]).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(super) fn sql(&self, query: &str) -> Vec<Value> {
        let output: Output = succeed(self.holdfast().args(["sql", query, "--output", "json"]));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(super) fn has_raw(&self) -> bool {
        self.folder.path().join("lake/raw/items/_delta_log").is_dir()
    }

    pub(super) fn count(&self, condition: &str) -> u64 {
        if !self.has_raw() {
            return 0;
        }
        self.sql(&format!("select count(*) as n from raw.items where {condition}"))[0]["n"].as_u64().unwrap()
    }

    pub(super) fn wait_for(&self, rows: u64, condition: &str) {
        let began = Instant::now();
        loop {
            let found = self.count(condition);
            if found == rows {
                return;
            }
            assert!(found < rows, "{found} rows, {rows} were expected: {condition}: {}", self.log());
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{found} of {rows} rows came: {condition}: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Objects of the source in its inbox.
    pub(super) fn objects(&self) -> usize {
        let folder = self.folder.path().join("lake/_holdfast/inbox/churn/items/feed/holdfast_items");
        std::fs::read_dir(folder).map(Iterator::count).unwrap_or(0)
    }

    /// Rows of the snapshot that are in the lake and have not gone to the inbox.
    pub(super) fn spooled(&self) -> bool {
        let rows = self.folder.path().join("lake/_holdfast/feeds/churn/items/holdfast_items/000001/rows");
        let files = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
        files(rows).any(|attempt| files(attempt.path()).next().is_some())
    }
}

pub(super) fn kill(mut worker: Child) {
    worker.kill().unwrap();
    worker.wait().unwrap();
}

pub(super) const ITEMS: &str = "tables = [\"shop.items\"]\n";
pub(super) const ITEM_COLUMNS: &str =
    "id = \"int64\"\nname = \"string\"\nprice = \"decimal(12,2)\"\n_old = \"struct<id int64>\"\n";

pub(super) fn make_items(server: &Postgres) {
    server.sql("create schema shop; create table shop.items (id bigint primary key, name text, price numeric(12,2))");
}
