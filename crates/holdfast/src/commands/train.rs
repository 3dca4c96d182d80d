use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_types::Progress;

use super::models::measures_table;
use super::{grouped, print, print_json};
use crate::error::CliError;
use crate::models::registry::Registry;
use crate::models::spec::Spec;
use crate::models::train::{Made, TrainOptions, Trained, train};
use crate::progress::Terminal;
use crate::project::{Project, user_name};

/// Train a model of churn on customers as they were, and keep it as a version
///
/// The model's file is models/NAME.toml in the pipeline. Where nothing has changed since a version was trained, nothing is done. The new version is the challenger until
/// `holdfast models promote`.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    /// Which model
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Up to when events are known [default: the moment of the newest published run]
    #[arg(long, value_name = "TIME", value_parser = super::moment)]
    as_of: Option<DateTime<Utc>>,
    /// Train also when nothing changed
    #[arg(long)]
    again: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(project: &Project, args: &TrainArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let spec = Spec::read(project, &args.model)?;
    let options = TrainOptions { as_of: args.as_of, again: args.again, by: user_name(), imported: None };
    train_and_tell(project, &spec, &options, args.json, terminal).await
}

/// Makes a version of a model, and tells what became of it.
pub(crate) async fn train_and_tell(
    project: &Project,
    spec: &Spec,
    options: &TrainOptions,
    json: bool,
    terminal: &Arc<Terminal>,
) -> Result<(), CliError> {
    let stages = project.stages()?;
    let lake = project.open_lake_to_write().await?;
    let registry = Registry { lake: lake.clone(), settings: project.reader_settings() };
    let settings = project.session_settings(&lake).await?;
    let runner = project.runner(lake, stages, settings).await?;
    let trained = train(spec, &runner, &registry, options, terminal.as_ref()).await?;
    if json {
        return print_json(&trained);
    }
    match &trained {
        Trained::Unchanged { model, version, .. } => terminal.note(&format!(
            "Unchanged {model}  version {version} was made from the same rows by the same file: nothing to do; `holdfast train --again` trains all the same"
        )),
        Trained::Made(made) => print(&summary(made))?,
    }
    Ok(())
}

fn summary(made: &Made) -> String {
    let days = |moments: &[DateTime<Utc>]| {
        moments.iter().map(|moment| moment.date_naive().to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut text = format!(
        "{} version {}: {}\n\n  {} trees over {} features, {} calibration\n  learnt from   {}  ({} rows; {} told when to stop, {} calibrated)\n  judged at     {}  ({} rows, {} of customers not seen before)\n",
        made.model,
        made.version,
        made.description,
        made.rounds,
        made.features,
        made.calibration,
        days(&made.train_moments),
        grouped(made.rows.learning),
        grouped(made.rows.stopping),
        grouped(made.rows.calibration),
        days(&made.test_moments),
        grouped(made.rows.test),
        grouped(made.rows.unseen),
    );
    if let Some((feature, auc)) = &made.strongest_feature {
        text.push_str(&format!("  strongest     {feature}, AUC {auc:.3} alone\n"));
    }
    for (feature, why) in &made.useless {
        text.push_str(&format!("  tells nothing {feature}: {why}\n"));
    }
    if let Some(file) = &made.imported {
        text.push_str(&format!(
            "  imported      {file}: calibrated and judged here; what it learnt from is not known, and if it knows the days that judge, the figures are too good\n"
        ));
    }
    for column in &made.accepted_changed_later {
        text.push_str(&format!(
            "  accepted      {column} changes later without a date: a moment in the past is shown what it became\n"
        ));
    }
    text.push_str(&measures_table(&made.measures));
    text.push_str(&match made.champion {
        Some(champion) => format!(
            "\nVersion {champion} is the champion and stays it. To put the new one in its place: holdfast models promote {} {}\n",
            made.model, made.version
        ),
        None => format!("\nNobody is scored yet: holdfast models promote {} {}\n", made.model, made.version),
    });
    text
}
