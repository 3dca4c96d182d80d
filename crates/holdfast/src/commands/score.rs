use std::sync::Arc;

use holdfast_types::Progress;

use super::{grouped, print_json};
use crate::error::CliError;
use crate::models::registry::Registry;
use crate::models::score::{Scored, Tested, score};
use crate::progress::Terminal;
use crate::project::Project;

/// Score customers by the champion of a trained model, with reasons
///
/// Reads the newest table of features and writes the table that the model's file names. Where features, events and champion are those of the scores that are there, nothing
/// is committed.
#[derive(Debug, clap::Args)]
pub(crate) struct ScoreArgs {
    /// Which model
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(project: &Project, args: &ScoreArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let stages = project.stages()?;
    let lake = project.open_lake_to_write().await?;
    let registry = Registry { lake: lake.clone(), settings: project.reader_settings() };
    let settings = project.session_settings(&lake).await?;
    let runner = project.runner(lake, stages, settings).await?;
    let scored = score(&args.model, &runner, &registry, terminal.as_ref()).await?;
    if args.json {
        return print_json(&scored);
    }
    tell(&scored, terminal);
    Ok(())
}

/// What became of a scoring, in a line.
pub(crate) fn tell(scored: &Scored, terminal: &Terminal) {
    match scored {
        Scored::Unchanged { table, model_version, table_version } => terminal.note(&format!(
            "    Fresh {table}  v{table_version}: features, events and version {model_version} are those of these scores"
        )),
        Scored::Made {
            table, model_version, table_version, customers, high, medium, low, mean_probability, as_of, champion_now, tested, ..
        } => {
            terminal.note(&format!(
                "   Scored {table}  v{table_version}: {} customers as of {}, by version {model_version}: {} high, {} medium, {} low; mean probability {mean_probability:.3}",
                grouped(*customers),
                as_of.date_naive(),
                grouped(*high),
                grouped(*medium),
                grouped(*low),
            ));
            if let Some(Tested { test, version, customers }) = tested {
                terminal.note(&format!("          of these {} by version {version}, for test {test}", grouped(*customers)));
            }
            if let Some(now) = champion_now {
                terminal.problem(&format!(
                    "   Warned {table}  version {now} became the champion while version {model_version} scored, which made all of these scores: score again to have those of version {now}"
                ));
            }
        }
    }
}
