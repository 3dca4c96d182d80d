use std::str::FromStr;
use std::sync::Arc;

use holdfast_engine::{Difference, Verified, VerifyOptions, VerifyReport};
use holdfast_types::{ErrorKind, Progress};
use serde_json::Value;

use super::run::selection;
use super::{grouped, print_json};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Work out rows of stages again from what they were made from, and compare them with those that are there; changes nothing
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Only these stages: NAME, schema.*, tag:TAG; +PATTERN (with what they read), PATTERN+ (with what reads them)
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    select: Vec<String>,
    /// Without these stages: patterns as of --select
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    exclude: Vec<String>,
    /// The share of keys that is worked out again
    #[arg(long, value_name = "PERCENT", default_value = "1%")]
    sample: Percent,
    /// Which keys: those of an earlier sample again [default: others every time]
    #[arg(long, value_name = "TEXT")]
    seed: Option<String>,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
}

/// A share above 0 and up to 1, written as a percentage.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Percent(f64);

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        match number {
            Some(percent) if percent > 0.0 && percent <= 100.0 => Ok(Self(percent / 100.0)),
            _ => Err("write a percentage above 0% and up to 100%, such as 1%".to_owned()),
        }
    }
}

pub(crate) async fn run(project: &Project, args: &VerifyArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let stages = project.stages()?;
    let lake = project.open_lake().await?;
    let settings = project.session_settings(&lake).await?;
    let runner = project.runner(lake, stages, settings).await?;
    let options = VerifyOptions {
        selection: selection(&args.select, &args.exclude),
        sample: args.sample.0,
        seed: args.seed.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
    };
    let report = runner.verify(&options, terminal.as_ref()).await?;
    tell(&report, terminal);
    if args.json {
        print_json(&report)?;
    }
    judge(&report)
}

fn tell(report: &VerifyReport, terminal: &Arc<Terminal>) {
    for stage in &report.stages {
        let name = &stage.stage;
        match &stage.outcome {
            Verified::Same { rows } => {
                terminal.note(&format!("     Same {name}  {} rows  {:.1}s", grouped(*rows), stage.seconds));
            }
            Verified::Skipped { reason } => terminal.note(&format!("  Skipped {name}  {reason}")),
            Verified::Failed { error, .. } => terminal.problem(&format!("   Failed {name}  {error}")),
            Verified::Differs { rows, differing_rows, differences } => {
                terminal.problem(&format!(
                    "  Differs {name}  {} rows differ, of {} compared",
                    grouped(*differing_rows),
                    grouped(*rows)
                ));
                differences.iter().for_each(|difference| show(difference, terminal));
            }
        }
    }
    let count = |outcome: fn(&Verified) -> bool| report.stages.iter().filter(|stage| outcome(&stage.outcome)).count();
    terminal.note(&format!(
        " Verified {} of {} stages in {:.1}s: {} differ, {} skipped; a sample of {}% by --seed {}",
        count(|outcome| matches!(outcome, Verified::Same { .. } | Verified::Differs { .. })),
        report.stages.len(),
        report.seconds,
        count(|outcome| matches!(outcome, Verified::Differs { .. })),
        count(|outcome| matches!(outcome, Verified::Skipped { .. })),
        report.sample * 100.0,
        report.seed,
    ));
}

fn show(difference: &Difference, terminal: &Arc<Terminal>) {
    let text = |row: &serde_json::Map<String, Value>| Value::Object(row.clone()).to_string();
    terminal.problem(&format!("          {}", text(&difference.key)));
    difference.published.iter().for_each(|row| terminal.problem(&format!("          - {}", text(row))));
    difference.recomputed.iter().for_each(|row| terminal.problem(&format!("          + {}", text(row))));
}

/// Rows that differ fail the command as data does; else the first query that failed decides.
fn judge(report: &VerifyReport) -> Result<(), CliError> {
    let differing = report.stages.iter().filter(|stage| matches!(stage.outcome, Verified::Differs { .. })).count();
    let kind = report.stages.iter().find_map(|stage| match &stage.outcome {
        Verified::Failed { kind, .. } => Some(*kind),
        _ => None,
    });
    let kind = if differing > 0 { Some(ErrorKind::Quarantine) } else { kind };
    match kind {
        Some(kind) => Err(CliError::NotVerified { differing, total: report.stages.len(), kind }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percentages() {
        assert_eq!("1%".parse(), Ok(Percent(0.01)));
        assert_eq!(" 100 %".parse(), Ok(Percent(1.0)));
        for wrong in ["0%", "101%", "1", "-1%", "NaN%", "%", ""] {
            assert!(wrong.parse::<Percent>().is_err(), "{wrong}");
        }
    }
}
