use std::sync::Arc;

use holdfast_access::{AuditReport, verify_audit};
use holdfast_types::Progress;

use super::{grouped, print_json};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

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
