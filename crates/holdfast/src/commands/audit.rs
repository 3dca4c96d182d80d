use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_access::{Audit, AuditEntry, AuditReport, Principal, Touched, verify_audit};
use holdfast_types::{Clock, Progress, TableName};

use super::{grouped, print_json};
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::{Project, user_name};

/// How long a command waits at its end until it is written down that it ended.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);

/// Look at the audit log, the table audit.accesses
#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AuditCommand {
    /// Find rows that were changed, taken away or put elsewhere
    Verify {
        /// Print what was found as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(project: &Project, args: &AuditArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let AuditCommand::Verify { json } = &args.command;
    let lake = project.open_lake().await?;
    let key = project.audit_key(&lake).await?;
    let report = verify_audit(lake.production(), &project.reader_settings(), &key).await?;
    if *json {
        print_json(&report)?;
    } else {
        tell(&report, terminal);
    }
    match report.broken.len() {
        0 => Ok(()),
        1 => Err(CliError::AuditBroken("at 1 place".to_owned())),
        many => Err(CliError::AuditBroken(format!("at {many} places"))),
    }
}

/// Does what a command is for, and writes down before and after it that somebody did, where the pipeline has a policy. Who has the files of the lake is held to none; so it is to be seen.
/// Of a lake without such tables nothing is told, and nothing is written down.
///
/// # Errors
/// What the command fails with; that the access could not be written down, and then nothing was done.
pub(crate) async fn written_down<T>(
    project: &Project,
    action: &str,
    tables: &[TableName],
    done: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    if project.policy()?.is_none() {
        return done.await;
    }
    let lake = project.open_lake_to_audit().await?;
    let mut touched = Touched::default();
    for table in tables {
        if lake.table(table).await?.is_some() {
            touched.add(table, [""; 0]);
        }
    }
    if touched.tables.is_empty() {
        return done.await;
    }
    let key = project.audit_key(&lake).await?;
    let audit = Audit::start(lake, key, true);
    let began = Instant::now();
    let mut entry = AuditEntry { touched, ..AuditEntry::of(&Principal::shell(&who()), "command", action) };
    audit.begin(entry.clone(), SystemClock.now()).await?;
    let ended = done.await;
    entry.outcome = if ended.is_ok() { "ok" } else { "failed" };
    entry.duration = began.elapsed();
    audit.note(entry, SystemClock.now());
    audit.close(WRITTEN_WITHIN).await;
    ended
}

/// The user of this computer, by number where the environment gives no name.
fn who() -> String {
    let name = user_name();
    if !name.is_empty() {
        return name;
    }
    #[cfg(unix)]
    if let Ok(process) = std::fs::metadata("/proc/self") {
        return format!("uid {}", std::os::unix::fs::MetadataExt::uid(&process));
    }
    "unknown".to_owned()
}

fn tell(report: &AuditReport, terminal: &Terminal) {
    for broken in &report.broken {
        terminal.problem(&format!("   Broken chain {} row {}: {}", broken.chain, broken.sequence, broken.what));
    }
    let lost = match report.lost {
        0 => String::new(),
        lost => format!(", {lost} accesses found no room to be written"),
    };
    terminal.note(&format!(" Verified {} rows in {} chains{lost}", grouped(report.rows), report.chains));
}
