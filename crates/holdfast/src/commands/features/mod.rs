//! `holdfast features`: views, services, training sets, and whether what is served is what history says.

mod consistency;
mod datasets;
mod metric;
mod registry;
mod stats;
mod training_set;

use std::sync::Arc;

use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Look at feature views and services, make training sets as of the moments of a spine, compare what was served
#[derive(Debug, clap::Args)]
pub(crate) struct FeaturesArgs {
    #[command(subcommand)]
    command: FeaturesCommand,
}

#[derive(Debug, clap::Subcommand)]
enum FeaturesCommand {
    List(registry::ListArgs),
    Show(registry::ShowArgs),
    Diff(registry::DiffArgs),
    TrainingSet(training_set::TrainingSetArgs),
    Datasets(datasets::DatasetsArgs),
    Consistency(consistency::ConsistencyArgs),
    Stats(stats::StatsArgs),
}

pub(crate) async fn run(project: &Project, args: &FeaturesArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    match &args.command {
        FeaturesCommand::List(args) => registry::list(project, args).await,
        FeaturesCommand::Show(args) => registry::show(project, args).await,
        FeaturesCommand::Diff(args) => registry::diff(project, args).await,
        FeaturesCommand::TrainingSet(args) => training_set::run(project, args, terminal).await,
        FeaturesCommand::Consistency(args) => consistency::run(project, args, terminal).await,
        FeaturesCommand::Stats(args) => stats::run(project, args, terminal).await,
        FeaturesCommand::Datasets(args) => datasets::run(project, args, terminal).await,
    }
}

/// Columns under their heads, two blanks apart; the last one is as long as it likes.
fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heads.map(|head| head.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&heads.map(str::to_owned)).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A number of seconds as people say it.
fn seconds(seconds: i64) -> String {
    match seconds {
        day if day % 86_400 == 0 => format!("{}d", day / 86_400),
        hour if hour % 3_600 == 0 => format!("{}h", hour / 3_600),
        minute => format!("{}m", minute / 60),
    }
}
