use std::path::PathBuf;
use std::sync::Arc;

use holdfast_engine::format_directives;
use holdfast_types::Progress;

use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Align the directives of stages; leaves SQL alone
#[derive(Debug, clap::Args)]
pub(crate) struct FmtArgs {
    /// Change nothing, and fail when there is something to align
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(project: &Project, args: &FmtArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let mut changed = 0;
    let files = stage_files(project)?;
    for file in &files {
        let text = std::fs::read_to_string(file).map_err(|source| CliError::File {
            what: "cannot read",
            path: file.clone(),
            source,
        })?;
        let formatted = format_directives(&text);
        if formatted == text {
            continue;
        }
        changed += 1;
        if args.check {
            let first = text.lines().zip(formatted.lines()).take_while(|(one, other)| one == other).count() + 1;
            terminal.problem(&format!("  Unaligned {}:{first}", file.display()));
            continue;
        }
        std::fs::write(file, formatted).map_err(|source| CliError::File {
            what: "cannot write",
            path: file.clone(),
            source,
        })?;
        terminal.note(&format!("  Aligned {}", file.display()));
    }
    if args.check && changed > 0 {
        return Err(CliError::CheckFailed(format!(
            "{changed} of {} stages are not aligned: run `holdfast fmt`",
            files.len()
        )));
    }
    terminal.note(&format!(" Finished {} stages, {changed} changed", files.len()));
    Ok(())
}

/// The files of stages, mistakes in them or not.
fn stage_files(project: &Project) -> Result<Vec<PathBuf>, CliError> {
    let root = project.stage_folder()?;
    let read = |folder: &PathBuf| -> Result<Vec<PathBuf>, CliError> {
        let failed = |source| CliError::File { what: "cannot read", path: folder.clone(), source };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.sort();
        Ok(paths)
    };
    let mut files = Vec::new();
    for folder in read(&root)?.into_iter().filter(|path| path.is_dir()) {
        files.extend(read(&folder)?.into_iter().filter(|path| path.extension().is_some_and(|name| name == "sql")));
    }
    Ok(files)
}
