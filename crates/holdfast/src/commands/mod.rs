//! The commands: each reads its arguments, calls the crates below and prints.

pub(crate) mod access;
pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod cluster;
pub(crate) mod collect;
pub(crate) mod contracts;
pub(crate) mod demo;
pub(crate) mod docs;
pub(crate) mod environments;
pub(crate) mod features;
pub(crate) mod feeds;
pub(crate) mod fmt;
pub(crate) mod generate;
pub(crate) mod identity;
pub(crate) mod ingest;
pub(crate) mod lineage;
pub(crate) mod maintain;
pub(crate) mod models;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod quarantine;
pub(crate) mod run;
pub(crate) mod scheduled;
pub(crate) mod score;
pub(crate) mod serve;
pub(crate) mod shares;
pub(crate) mod sql;
pub(crate) mod status;
pub(crate) mod test;
pub(crate) mod train;
pub(crate) mod unify;
pub(crate) mod up;
pub(crate) mod upkeep;
pub(crate) mod verify;
pub(crate) mod versions;
pub(crate) mod why;

use std::io::{BufRead, IsTerminal, Write};

use chrono::{DateTime, NaiveDate, Utc};
use holdfast_types::Progress;

use crate::error::CliError;
use crate::progress::Terminal;

/// Writes to standard output. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::Output(error)),
        _ => Ok(()),
    }
}

pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CliError::Argument(error.to_string()))?;
    print(&format!("{text}\n"))
}

/// Asks for a yes on the terminal. Where nobody is there to answer, that is an error.
pub(crate) fn confirm(question: &str, terminal: &Terminal) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::Argument("this asks first, and nobody is there to answer: say --yes".to_owned()));
    }
    terminal.problem(&format!("{question} [y/N]"));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| CliError::Argument(format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// This process, for those who wonder who holds a lease.
pub(crate) fn worker_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
    format!("process {} on {}", std::process::id(), host.as_deref().unwrap_or("this machine"))
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The flags of a command when none is given, so that defaults are in one place.
pub(crate) fn unsaid<Args: clap::Args>() -> Args {
    let command = Args::augment_args(clap::Command::new("up"));
    let matches = command.get_matches_from(["up"]);
    Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Completes on Ctrl-C and, where there are such signals, on SIGTERM; counted from the call, not from the first look.
pub(crate) fn stop_signal() -> impl Future<Output = ()> + Send {
    #[cfg(unix)]
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    #[cfg(unix)]
    let interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt());
    async {
        #[cfg(unix)]
        if let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
        let _ = tokio::signal::ctrl_c().await;
    }
}

/// Temporary files are for their owner alone; what a person asked for is as other files of the person are.
#[cfg(unix)]
pub(crate) fn set_readable(file: &tempfile::NamedTempFile) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
pub(crate) fn set_readable(_: &tempfile::NamedTempFile) -> std::io::Result<()> {
    Ok(())
}

/// A day, which is its first moment in UTC, or a moment.
pub(crate) fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    let day = text.parse::<NaiveDate>().ok().and_then(|day| day.and_hms_opt(0, 0, 0)).map(|at| at.and_utc());
    let moment = || text.parse::<DateTime<Utc>>().ok();
    day.or_else(moment)
        .ok_or_else(|| "write a day such as 2026-01-31, or a moment such as 2026-01-31T08:00:00Z".to_owned())
}
