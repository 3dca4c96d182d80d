use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use holdfast_access::AccessError;
use holdfast_engine::{Diagnostic, Drift, Inspection, Lock, codes, explain};
use holdfast_types::{Clock, Progress};
use serde::Serialize;

use super::{policy, print, print_json};
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Check all stages with what is beside them, and say every mistake; touches no data
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
    /// Fail when the stages make something else than stages.lock says
    #[arg(long, conflicts_with = "write_lock")]
    locked: bool,
    /// Write stages.lock: what the stages make now
    #[arg(long)]
    write_lock: bool,
    /// Fail on warnings, too
    #[arg(long)]
    deny_warnings: bool,
    /// Tell what a code means, with an example and the remedy
    #[arg(long, value_name = "CODE")]
    pub(crate) explain: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    stages: usize,
    mistakes: usize,
    warnings: usize,
    findings: &'a [Diagnostic],
    drift: &'a [Drift],
}

pub(crate) fn explain_code(code: &str) -> Result<(), CliError> {
    match explain(code) {
        Some(text) => print(&text),
        None => {
            let known: Vec<&str> = codes().into_iter().map(|(code, _)| code).collect();
            Err(CliError::Argument(format!("there is no code `{code}`: there are {}", known.join(", "))))
        }
    }
}

pub(crate) async fn run(project: &Project, args: &CheckArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let began = Instant::now();
    // Reading the identity rules takes as long as reading the stages: both at once.
    let rules = tokio::task::spawn_blocking({
        let project = project.clone();
        move || project.identity_rules()
    });
    let draft = project.draft()?;
    let rules = rules.await.map_err(|error| CliError::Argument(error.to_string()))??;
    let recycled = rules.types.iter().filter(|(_, rule)| rule.recycled_after.is_some()).map(|(name, _)| name.clone());
    let draft = draft.with_recycled(recycled);
    let mut inspection = draft.inspect(&project.planning_settings()?, SystemClock.now())?;
    match project.policy() {
        Ok(None) => {}
        // Which columns there are is known once the stages can be planned.
        Ok(Some(policy)) if inspection.mistakes() == 0 => {
            inspection.findings.extend(policy::findings(project, &policy).await?);
        }
        Ok(Some(_)) => {}
        Err(CliError::Access(AccessError::Mistakes(mistakes))) => inspection.findings.extend(mistakes.0),
        Err(error) => return Err(error),
    }
    let mut drift = Vec::new();
    if inspection.mistakes() == 0 && args.write_lock {
        write_lock(project, &inspection, terminal)?;
    } else if inspection.mistakes() == 0 && args.locked {
        match compare(project, &inspection)? {
            Ok(found) => drift = found,
            Err(mistake) => inspection.findings.push(*mistake),
        }
    }
    let mistakes = inspection.mistakes();
    let warnings = inspection.findings.len() - mistakes;
    let report =
        Report { stages: draft.stages().len(), mistakes, warnings, findings: &inspection.findings, drift: &drift };
    if args.json {
        print_json(&report)?;
    } else {
        tell(project, &report, &inspection, began, terminal)?;
    }
    if mistakes > 0 || (args.deny_warnings && warnings > 0) {
        return Err(CliError::CheckFailed(format!(
            "{} and {}",
            counted(mistakes, "mistake"),
            counted(warnings, "warning")
        )));
    }
    if !drift.is_empty() {
        return Err(CliError::CheckFailed(format!(
            "{} not what {} says: look at the changes, then write it with `holdfast check --write-lock`",
            match drift.len() {
                1 => "1 stage is".to_owned(),
                many => format!("{many} stages are"),
            },
            lock_file(project)?.display()
        )));
    }
    Ok(())
}

fn tell(
    project: &Project,
    report: &Report<'_>,
    inspection: &Inspection,
    began: Instant,
    terminal: &Arc<Terminal>,
) -> Result<(), CliError> {
    for finding in report.findings {
        terminal.problem(&format!("{finding}\n"));
    }
    if !report.drift.is_empty() {
        terminal.problem(&format!("{}\n", Lock::finding(&lock_file(project)?, report.drift)));
    }
    let unjudged = report.stages - inspection.stages.len();
    let behind = match unjudged {
        0 => String::new(),
        some => format!(", {} not judged to the end", counted(some, "stage")),
    };
    terminal.note(&format!(
        "  Checked {} in {} ms: {}, {}{behind}",
        counted(report.stages, "stage"),
        began.elapsed().as_millis(),
        counted(report.mistakes, "mistake"),
        counted(report.warnings, "warning")
    ));
    Ok(())
}

fn lock_file(project: &Project) -> Result<PathBuf, CliError> {
    Ok(project.stage_folder()?.join("stages.lock"))
}

fn write_lock(project: &Project, inspection: &Inspection, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let file = lock_file(project)?;
    let text = Lock::of(inspection).text();
    if std::fs::read_to_string(&file).is_ok_and(|there| there == text) {
        terminal.note(&format!("    Fresh {}", file.display()));
        return Ok(());
    }
    let failed = |source| CliError::File { what: "cannot write", path: file.clone(), source };
    std::fs::write(&file, text).map_err(failed)?;
    terminal.note(&format!("    Wrote {}", file.display()));
    Ok(())
}

/// How the stages differ from the lock file; the inner error is what is wrong with the file.
fn compare(project: &Project, inspection: &Inspection) -> Result<Result<Vec<Drift>, Box<Diagnostic>>, CliError> {
    let file = lock_file(project)?;
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Err(Box::new(Lock::missing(&file))));
        }
        Err(source) => return Err(CliError::File { what: "cannot read", path: file, source }),
    };
    Ok(Lock::parse(&file, &text).map(|locked| locked.drift(&Lock::of(inspection))))
}

fn counted(number: usize, what: &str) -> String {
    match number {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    }
}
