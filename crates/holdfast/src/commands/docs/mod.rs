//! A site about the stages: files of HTML that need nothing else, the same for the same stages.

mod graph;
mod page;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_engine::{Inspection, case_names};
use holdfast_types::{Clock, Progress, TableName};

use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Write a site about the stages: columns, owners, expectations, cases, lineage; touches no data
#[derive(Debug, clap::Args)]
pub(crate) struct DocsArgs {
    /// The folder to write into; pages of stages that are gone are left alone
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// What the pages are about.
struct Site<'a> {
    pipeline: &'a str,
    description: String,
    inspection: &'a Inspection,
    read_by: BTreeMap<TableName, Vec<TableName>>,
    cases: BTreeMap<TableName, Vec<String>>,
    folder: &'a std::path::Path,
}

pub(crate) async fn run(project: &Project, args: &DocsArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let draft = project.draft()?;
    let inspection = draft.inspect(&project.planning_settings()?, SystemClock.now())?.without_mistakes()?;
    let mut read_by: BTreeMap<TableName, Vec<TableName>> = BTreeMap::new();
    let mut cases = BTreeMap::new();
    for stage in &inspection.stages {
        cases.insert(stage.stage.name.clone(), case_names(&stage.stage)?);
        for input in stage.stage.inputs.keys() {
            read_by.entry(input.clone()).or_default().push(stage.stage.name.clone());
        }
    }
    read_by.values_mut().for_each(|names| names.sort());
    let site = Site {
        pipeline: &project.pipeline,
        description: project.description()?,
        inspection: &inspection,
        read_by,
        cases,
        folder: project.folder(),
    };
    let write = |name: &str, text: &str| {
        let file = args.out.join(name);
        std::fs::write(&file, text).map_err(|source| CliError::File { what: "cannot write", path: file, source })
    };
    std::fs::create_dir_all(&args.out).map_err(|source| CliError::File {
        what: "cannot make",
        path: args.out.clone(),
        source,
    })?;
    write("style.css", page::STYLE)?;
    write("index.html", &page::index(&site))?;
    for stage in &inspection.stages {
        write(&page::file_name(&stage.stage.name), &page::stage(&site, stage))?;
    }
    let pages = inspection.stages.len() + 1;
    terminal.note(&format!("    Wrote {pages} pages: open {}", args.out.join("index.html").display()));
    Ok(())
}
