//! Real processes that are really killed, on a lake on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use holdfast_testkit::Random;

use crate::{holdfast, rows, succeed};

fn command(folder: &Path, arguments: &[&str]) -> std::process::Command {
    let mut command = holdfast();
    command.arg("--quiet").arg("--lake").arg(folder.join("lake")).arg("--identity-key").arg(folder.join("key"));
    command.args(arguments);
    command
}

/// Delivers, works and kills in turn; then works to the end.
///
/// # Panics
/// When a record is lost, or is there twice.
pub(super) fn kill_processes(seed: u64, rounds: u64) -> u64 {
    eprintln!("seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let landing = folder.path().join("in");
    std::fs::create_dir_all(landing.join("events")).unwrap();
    let landing = landing.to_str().unwrap();
    let ingest = ["ingest", "--raw-only", "--source", "events", "--from", landing];
    let maintain = ["maintain", "--lease", "1s", "--table", "*.*"];
    let mut random = Random::new(seed);
    let (mut sent, mut killed) = (0_u64, 0);
    for round in 0..rounds {
        for file in 0..1 + random.below(3) {
            let mut lines = String::new();
            for _ in 0..1 + random.below(40) {
                let kind = if random.chance(3) { "[]" } else { "\"track\"" };
                lines.push_str(&format!("{{\"messageId\":\"m{sent}\",\"type\":{kind}}}\n"));
                sent += 1;
            }
            std::fs::write(format!("{landing}/events/{round:03}-{file}.ndjson"), lines).unwrap();
        }
        let mut arguments = vec![&ingest[..]];
        if round > 0 && random.chance(40) {
            arguments.push(if random.chance(50) { &maintain } else { &ingest });
        }
        let start =
            |work: &&[&str]| command(folder.path(), work).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut working: Vec<_> = arguments.iter().map(start).collect();
        // Most of a short process is its start.
        std::thread::sleep(Duration::from_millis(100 + random.below(500)));
        for process in &mut working {
            // SIGKILL, unless it was done.
            process.kill().unwrap();
            killed += u64::from(process.wait().unwrap().code().is_none());
        }
    }
    succeed(&mut command(folder.path(), &ingest));
    let query = "select \"messageId\" as id from raw.events union all \
                 select split_part(original, '\"', 4) from quarantine.events where _batch in \
                 (select batch from metric.ingest_batches where source = 'events' and outcome = 'stored')";
    let mut stored: BTreeMap<String, u64> = BTreeMap::new();
    for row in rows(folder.path(), query) {
        *stored.entry(row["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let expected: BTreeMap<String, u64> = (0..sent).map(|id| (format!("m{id}"), 1)).collect();
    assert_eq!(stored, expected, "seed {seed}");
    killed
}
