//! The integration tests of all crates, in one binary: through the front door, on real files and real tables.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test may stop at the first surprise, read the clock and say what it skipped"
)]

mod access;
mod append_stages;
mod append_times;
mod audit_lists;
mod authoring;
mod bad_data;
mod bad_input;
mod cluster;
mod cluster_writes;
mod collect;
mod commands;
mod commit_rule;
mod commit_times;
mod connections;
mod consistency;
mod contracts;
mod environments;
mod exchange;
mod features;
mod feeds;
mod folder;
mod hybrid;
mod identity;
mod inbox;
mod increments;
mod ingest;
mod kafka;
mod kills;
mod leases;
mod lifetime;
mod linkage;
mod maintain;
mod models_in_use;
mod on_demand;
mod pg_client;
mod plan;
mod policy_everywhere;
mod postgres;
mod proto;
mod put;
mod quality;
mod quarantine;
mod ranges;
mod real_data;
mod replace;
mod s3;
mod scored_rows;
mod sentiment;
mod serve;
mod served;
mod stages;
mod telemetry;
mod train;
mod training_sets_served;
mod up;
mod verify;
mod why;
mod workers;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

/// The binary that cargo built for these tests.
pub(crate) fn holdfast_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_holdfast"))
}

/// The workspace: the shipped project, with `holdfast.toml`, `sql/` and `pipelines/`.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The binary on the shipped project, without the caller's settings in the environment.
pub(crate) fn holdfast() -> Command {
    let mut command = Command::new(holdfast_binary());
    command.arg("--project").arg(workspace());
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "HOLDFAST_LOG", "HOLDFAST_ABORT_AFTER"] {
        command.env_remove(name);
    }
    command
}

/// Nothing that a test waits for takes longer, on however busy a machine: who does is killed, so that the test says what it was.
const ENDS_WITHIN: Duration = Duration::from_secs(300);

/// Kills a process, unless it is dropped in time.
struct Deadline {
    _until_dropped: Sender<()>,
}

impl Deadline {
    fn of(process: &Child) -> Self {
        let (sender, over) = std::sync::mpsc::channel::<()>();
        let id = process.id().to_string();
        std::thread::spawn(move || {
            if over.recv_timeout(ENDS_WITHIN) == Err(RecvTimeoutError::Timeout) {
                eprintln!("process {id} is killed: it did not end within {ENDS_WITHIN:?}");
                let _ = Command::new("kill").args(["-KILL", &id]).status();
            }
        });
        Self { _until_dropped: sender }
    }
}

/// How a process ended, which it does soon.
pub(crate) fn ended(process: &mut Child) -> ExitStatus {
    let _deadline = Deadline::of(process);
    process.wait().unwrap()
}

/// Runs a command and answers what it printed.
///
/// # Panics
/// When it fails or does not end, with all it said.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Deadline::of(&process);
    let output = process.wait_with_output().unwrap();
    drop(deadline);
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// What a process says, line by line, as it says it; its stderr is piped.
pub(crate) fn lines_of(process: &mut Child) -> Receiver<String> {
    let said = BufReader::new(process.stderr.take().unwrap()).lines();
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || said.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

/// Runs a query over the lake in `folder` and answers its rows.
pub(crate) fn rows(folder: &Path, query: &str) -> Vec<serde_json::Value> {
    let lake = folder.join("lake");
    let output = succeed(holdfast().arg("--lake").arg(lake).args(["sql", query, "--output", "json"]));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every file of the Delta logs and the manifests below a folder: what changes when anything is committed.
pub(crate) fn commits(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.components().any(|part| part.as_os_str() == "_delta_log" || part.as_os_str() == "_holdfast")
            {
                found.push(path.display().to_string());
            }
        }
    }
    found.sort();
    found
}
