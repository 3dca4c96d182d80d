use std::fmt::Write;

use holdfast_engine::{Freshness, LakeStatus, lake_status};

use super::{grouped, print, print_json};
use crate::error::CliError;
use crate::project::Project;

/// Show what is published, and each stage's table: version, rows, whether its inputs moved on; reads no data
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(project: &Project, args: &StatusArgs) -> Result<(), CliError> {
    let stages = project.stages()?;
    let lake = project.open_lake().await?;
    let status = lake_status(&lake, &stages).await?;
    if args.json { print_json(&status) } else { print(&page(&status)) }
}

fn page(status: &LakeStatus) -> String {
    let mut text = match &status.published {
        Some(run) => {
            format!("run {} is published: as of {}, since {}\n\n", run.run, moment(run.as_of), moment(run.published_at))
        }
        None => "nothing is published yet: use `holdfast run`\n\n".to_owned(),
    };
    let rows: Vec<[String; 6]> = status
        .stages
        .iter()
        .map(|stage| {
            let number = |version: Option<u64>| version.map_or_else(|| "-".to_owned(), |version| format!("v{version}"));
            [
                stage.stage.to_string(),
                number(stage.version),
                number(stage.published_version),
                stage.rows.map_or_else(|| "-".to_owned(), grouped),
                stage.changed_at.map_or_else(|| "-".to_owned(), moment),
                match stage.is_of_production {
                    true => format!("{}, production's", state(&stage.freshness)),
                    false => state(&stage.freshness),
                },
            ]
        })
        .collect();
    let heads = ["stage", "version", "published", "rows", "made", "state"];
    let mut widths = heads.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let [stage, version, published, count, made, _] = widths;
    for row in std::iter::once(&heads.map(str::to_owned)).chain(&rows) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:stage$}  {:>version$}  {:>published$}  {:>count$}  {:made$}  {}",
            row[0], row[1], row[2], row[3], row[4], row[5]
        );
    }
    for orphan in &status.orphans {
        let _ = writeln!(text, "\n{orphan}: the file of its stage is gone; `holdfast run --prune` deletes the table");
    }
    text
}

fn moment(at: chrono::DateTime<chrono::Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn state(freshness: &Freshness) -> String {
    match freshness {
        Freshness::Fresh => "fresh".to_owned(),
        Freshness::Stale { inputs } => {
            let names: Vec<String> = inputs.iter().map(ToString::to_string).collect();
            format!("stale: {} moved on", names.join(", "))
        }
        Freshness::Missing => "not made yet".to_owned(),
        Freshness::Unknown => "unknown".to_owned(),
    }
}
