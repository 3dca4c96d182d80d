use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use holdfast_feature_store::{Dataset, Datasets, replay_training_set};
use holdfast_types::Progress;

use super::training_set::{Output, memory, summary};
use super::{seconds, table};
use crate::commands::{grouped, print, print_json};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Training sets that were made: what each is from, its bytes again, and letting it go
#[derive(Debug, clap::Args)]
pub(crate) struct DatasetsArgs {
    #[command(subcommand)]
    command: DatasetsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DatasetsCommand {
    List(ListArgs),
    Describe(DescribeArgs),
    Replay(ReplayArgs),
    Release(ReleaseArgs),
}

/// All training sets, the oldest first
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// What a training set was made from
#[derive(Debug, clap::Args)]
struct DescribeArgs {
    /// Its id, or the beginning of it
    id: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Make a training set again, from what it was made from, and check that it has the same bytes
#[derive(Debug, clap::Args)]
struct ReplayArgs {
    /// Its id, or the beginning of it
    id: String,
    /// Where to write it, as Parquet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print what it is as JSON
    #[arg(long)]
    json: bool,
}

/// Let go what a training set was made from: maintenance may delete it, and the set cannot be had again
#[derive(Debug, clap::Args)]
struct ReleaseArgs {
    /// Its id, or the beginning of it
    id: String,
}

pub(crate) async fn run(project: &Project, args: &DatasetsArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    match &args.command {
        DatasetsCommand::List(args) => {
            let datasets = Datasets::new(&project.open_lake().await?).list().await?;
            if args.json { print_json(&datasets) } else { print(&listed(&datasets)) }
        }
        DatasetsCommand::Describe(args) => {
            let dataset = Datasets::new(&project.open_lake().await?).get(&args.id).await?;
            if args.json { print_json(&dataset) } else { print(&described(&dataset)) }
        }
        DatasetsCommand::Replay(args) => {
            let began = Instant::now();
            let lake = project.open_lake().await?;
            let mut output = Output::create(&args.out)?;
            let replayed =
                replay_training_set(&lake, &args.id, memory(project), output.writer(), terminal.as_ref()).await?;
            output.keep()?;
            terminal.finish("training set", &summary(&replayed, &args.out, began.elapsed().as_secs_f64()));
            if args.json { print_json(&replayed) } else { print(&format!("{}\n", replayed.id)) }
        }
        DatasetsCommand::Release(args) => {
            let dataset = Datasets::new(&project.open_lake_to_write().await?).release(&args.id).await?;
            terminal.note(&format!(" Released {}  what it was made from may be deleted", dataset.id));
            Ok(())
        }
    }
}

fn listed(datasets: &[Dataset]) -> String {
    if datasets.is_empty() {
        return "no training set was made yet: `holdfast features training-set` makes one\n".to_owned();
    }
    let rows: Vec<[String; 6]> = datasets
        .iter()
        .map(|dataset| {
            let what = match &dataset.service {
                Some(service) => service.clone(),
                None => format!("{} features", dataset.features.len()),
            };
            [
                dataset.id.clone(),
                dataset.made_at.format("%Y-%m-%d %H:%M:%SZ").to_string(),
                what,
                grouped(dataset.output.rows),
                dataset.label.as_ref().map_or_else(|| "-".to_owned(), |label| label.features.join(", ")),
                if dataset.released_at.is_some() { "released" } else { "kept" }.to_owned(),
            ]
        })
        .collect();
    table(["training set", "made", "of", "rows", "label", "state"], &rows)
}

fn described(dataset: &Dataset) -> String {
    let mut text = format!("training set {}\n", dataset.id);
    let mut line = |what: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {what:10} {value}");
    };
    let by = dataset.made_by.as_ref().map_or_else(String::new, |who| format!(", over Flight by {who}"));
    line("made", format!("{}, of run {}{by}", dataset.made_at.to_rfc3339(), dataset.run));
    if let Some(service) = &dataset.service {
        line("service", service.clone());
    }
    line(
        "spine",
        format!(
            "{} rows of {}, blake3 {}",
            grouped(dataset.spine.rows),
            dataset.spine.format.extension(),
            dataset.spine.blake3
        ),
    );
    let options = &dataset.options;
    line(
        "moments",
        format!(
            "column {}; an event at the moment itself is {}; what became known later is {}",
            options.timestamp,
            if options.strict { "not seen" } else { "seen" },
            if options.ignore_known_at { "seen, too" } else { "not seen" }
        ),
    );
    if let Some(label) = &dataset.label {
        let horizon = seconds(i64::try_from(label.horizon_s).unwrap_or(i64::MAX));
        line("label", format!("{}, within {horizon} after the moment", label.features.join(", ")));
    }
    line("bytes", format!("{}, blake3 {}", grouped(dataset.output.bytes), dataset.output.blake3));
    line("written by", dataset.output.writer.clone());
    match dataset.released_at {
        Some(at) => line("state", format!("released at {}", at.to_rfc3339())),
        None => line("state", "kept: what it was made from stays until it is released".to_owned()),
    }
    let rows: Vec<[String; 4]> = dataset
        .tables
        .iter()
        .map(|table| {
            [
                format!("{}@v{}", table.view, table.version),
                table.features.len().to_string(),
                format!("{} v{}", table.table, table.table_version),
                format!("as the view's table at v{}", table.view_version),
            ]
        })
        .collect();
    let _ = write!(text, "\n{}", table(["view", "features", "history", ""], &rows));
    text
}
