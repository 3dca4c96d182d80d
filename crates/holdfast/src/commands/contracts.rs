use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_engine::{Contract, ContractColumn, KnownAt, Project as Stages, Severity, Stage};
use holdfast_ingest::SourceSpec;
use holdfast_lake::grammar::type_name;
use holdfast_types::{Clock, Progress};

use super::print;
use super::test::empty_lake;
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Show what the tables promise, as a page of Markdown
#[derive(Debug, clap::Args)]
pub(crate) struct ContractsArgs {
    /// Write the page into this file
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    write: Option<PathBuf>,
    /// Fail when this file is not the page as it would be written now
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

pub(crate) async fn run(project: &Project, args: &ContractsArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let stages = project.stages()?;
    // A page about contracts that their stages do not keep would be worth nothing.
    stages.check(&empty_lake().await?, &project.case_settings()?, SystemClock.now()).await?;
    let page = page(project, &stages, &project.sources()?)?;
    if let Some(file) = &args.check {
        return check(file, &page, &project.pipeline);
    }
    let Some(file) = &args.write else { return print(&page) };
    let failed = |source| CliError::File { what: "cannot write", path: file.clone(), source };
    std::fs::write(file, page).map_err(failed)?;
    terminal.note(&format!("    Wrote {}", file.display()));
    Ok(())
}

fn check(file: &Path, page: &str, pipeline: &str) -> Result<(), CliError> {
    let there = std::fs::read_to_string(file).map_err(|source| CliError::File {
        what: "cannot read",
        path: file.to_owned(),
        source,
    })?;
    if there == page {
        return Ok(());
    }
    let same = there.lines().zip(page.lines()).take_while(|(there, wanted)| there == wanted).count();
    Err(CliError::Argument(format!(
        "{0}:{1}: the page is not what the contracts say now: write it again with `holdfast contracts --pipeline {pipeline} --write {0}`",
        file.display(),
        same + 1
    )))
}

fn page(project: &Project, stages: &Stages, sources: &[SourceSpec]) -> Result<String, CliError> {
    let contracted: Vec<(&Stage, &Contract)> = {
        let mut contracted: Vec<_> =
            stages.stages().iter().filter_map(|stage| Some((stage, stage.contract.as_ref()?))).collect();
        contracted.sort_by(|(left, _), (right, _)| left.name.cmp(&right.name));
        contracted
    };
    let pipeline = &project.pipeline;
    let mut text = String::new();
    let out = &mut text;
    line(out, &format!("# Contracts of the pipeline `{pipeline}`\n"));
    line(out, &format!("{}.\n", project.description()?.trim_end_matches('.')));
    line(
        out,
        "What each table promises to those who read it. The page is written by `holdfast contracts` from the files named below, and is not \
         to be edited. A row that lacks what is *always there*, or has a value that is not listed, is set aside in `quarantine` unless \
         something else is said; a key that is missing or there twice fails the stage. Times are UTC.\n",
    );
    line(out, "| table | one row is | key | event time | version |\n|---|---|---|---|---|");
    for (stage, contract) in &contracted {
        let anchor = stage.name.to_string().replace('.', "");
        line(
            out,
            &format!(
                "| [`{}`](#{anchor}) | {} | {} | {} | {} |",
                stage.name,
                cell(&contract.grain),
                codes(&contract.key),
                contract.event_time.as_ref().map_or_else(String::new, |name| format!("`{name}`")),
                contract.version
            ),
        );
    }
    for (stage, contract) in &contracted {
        table(out, project, stage, contract);
    }
    raw_tables(out, &contracted, sources);
    Ok(text)
}

fn table(out: &mut String, project: &Project, stage: &Stage, contract: &Contract) {
    line(out, &format!("\n## {}\n", stage.name));
    line(out, &format!("{}\n", contract.comment()));
    let inputs: Vec<String> = stage.inputs.keys().map(ToString::to_string).collect();
    let mut facts = vec![format!("Made from {}", codes(&inputs))];
    if !contract.identifiers.is_empty() {
        facts.push(format!("brings {}", codes(&contract.identifiers)));
    }
    if let Some(owner) = &stage.directives.owner {
        facts.push(format!("owner: {owner}"));
    }
    let file = contract.file.strip_prefix(project.folder()).unwrap_or(&contract.file);
    facts.push(format!("`{}`, version {}", file.display(), contract.version));
    line(out, &format!("{}.\n", facts.join("; ")));
    line(out, "| column | type | unit | meaning | rules |\n|---|---|---|---|---|");
    for column in &contract.columns {
        line(
            out,
            &format!(
                "| `{}` | {} | {} | {} | {} |",
                column.name,
                cell(&type_name(&column.data_type)),
                cell(column.unit.as_deref().unwrap_or_default()),
                cell(&column.meaning),
                cell(&rules(contract, column))
            ),
        );
    }
}

fn rules(contract: &Contract, column: &ContractColumn) -> String {
    let mut rules = Vec::new();
    if contract.key.contains(&column.name) {
        rules.push("key".to_owned());
    } else if column.is_required {
        rules.push("always there".to_owned());
    }
    if column.is_pii {
        rules.push("personal data".to_owned());
    }
    match &column.known_at {
        Some(KnownAt::Column { column, before: None }) => rules.push(format!("known at `{column}`")),
        Some(KnownAt::Column { column, before: Some(before) }) => {
            rules.push(format!("known at `{column}`, `{before}` before"));
        }
        Some(KnownAt::Later) => rules.push("changes later, without a date".to_owned()),
        None => {}
    }
    if !column.values.is_empty() {
        let otherwise = match column.otherwise {
            Severity::Quarantine => "",
            Severity::Warn => "; others are counted",
            Severity::Fail => "; others fail the stage",
        };
        rules.push(format!("one of {}{otherwise}", codes(&column.values)));
    }
    rules.join(", ")
}

fn raw_tables(out: &mut String, contracted: &[(&Stage, &Contract)], sources: &[SourceSpec]) {
    line(out, "\n## Sources\n");
    line(
        out,
        "What arrives, before it is unified. Columns and types are in `pipelines/<pipeline>/sources/<source>.toml`.\n",
    );
    line(out, "| table | kind | event time | identifiers | read by |\n|---|---|---|---|---|");
    for source in sources {
        let raw = format!("raw.{}", source.name);
        let readers: Vec<String> = contracted
            .iter()
            .filter(|(stage, _)| stage.inputs.keys().any(|input| input.to_string() == raw))
            .map(|(stage, _)| stage.name.to_string())
            .collect();
        let mut identifiers: Vec<String> = Vec::new();
        for identifier in &source.identifiers {
            if !identifiers.contains(&identifier.identifier_type) {
                identifiers.push(identifier.identifier_type.clone());
            }
        }
        let event_time = source.event_time.as_ref().map_or_else(String::new, |name| format!("`{name}`"));
        line(
            out,
            &format!(
                "| `{raw}` | {} | {event_time} | {} | {} |",
                cell(&source.kind.replace('_', " ")),
                codes(&identifiers),
                codes(&readers)
            ),
        );
    }
}

fn line(out: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

fn codes(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<")
}
