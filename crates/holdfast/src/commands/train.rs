use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_types::Progress;
use serde::Serialize;

use super::versions::{ablation_table, measures_table};
use super::{grouped, print, print_json};
use crate::error::CliError;
use crate::models::kind::Kind;
use crate::models::lifetime::spec::LifetimeSpec;
use crate::models::lifetime::train::{MadeLifetime, train as train_on_purchases};
use crate::models::registry::Registry;
use crate::models::sentiment::spec::TextSpec;
use crate::models::sentiment::train::{MadeTexts, train as train_on_texts};
use crate::models::spec::Spec;
use crate::models::train::{Made, TrainOptions, Trained, train};
use crate::progress::Terminal;
use crate::project::{Project, user_name};

/// Train a model on customers as they were, on labelled texts or on purchases, and keep it as a version
///
/// The model's file is models/NAME.toml in the pipeline; `kind = "sentiment"` in it makes it one of texts, `kind = "lifetime"` one of repeat buying. Where nothing has changed since a version was trained, nothing is done. The new version is the challenger until
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
    let options = TrainOptions { as_of: args.as_of, again: args.again, by: user_name(), imported: None };
    match Kind::of_model(project, &args.model)? {
        Kind::Churn => {
            let spec = Spec::read(project, &args.model)?;
            train_and_tell(project, &spec, &options, args.json, terminal).await
        }
        Kind::Sentiment => {
            let spec = TextSpec::read(project, &args.model)?;
            let registry = Registry { lake: project.open_lake_to_write().await?, settings: project.reader_settings() };
            let trained = train_on_texts(&spec, &registry, &options, terminal.as_ref()).await?;
            tell(&trained, args.json, summary_of_texts, terminal)
        }
        Kind::Lifetime => {
            let spec = LifetimeSpec::read(project, &args.model)?;
            let registry = Registry { lake: project.open_lake_to_write().await?, settings: project.reader_settings() };
            let trained = train_on_purchases(&spec, &registry, &options, terminal.as_ref()).await?;
            tell(&trained, args.json, summary_of_purchases, terminal)
        }
    }
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
    tell(&trained, json, summary, terminal)
}

fn tell<M: Serialize>(
    trained: &Trained<M>,
    json: bool,
    summary: impl Fn(&M) -> String,
    terminal: &Terminal,
) -> Result<(), CliError> {
    if json {
        return print_json(trained);
    }
    match trained {
        Trained::Unchanged { model, version, .. } => terminal.note(&unchanged(model, *version)),
        Trained::Made(made) => print(&summary(made))?,
    }
    Ok(())
}

fn summary_of_purchases(made: &MadeLifetime) -> String {
    let parameters: Vec<String> = made.parameters.buying.iter().map(|value| format!("{value:.4}")).collect();
    let mut text = format!(
        "{} version {}: {}\n\n  {}        {}\n  learnt from   {} customers up to {}, {} of whom had bought again\n  judged by     the time up to {}: {:.3} purchases a customer expected, {:.3} made\n",
        made.model,
        made.version,
        made.description,
        made.label,
        parameters.join(", "),
        grouped(made.customers.learning),
        made.learnt_until.date_naive(),
        grouped(made.customers.repeaters),
        made.judged_until.date_naive(),
        made.expected,
        made.made,
    );
    text.push_str(&measures_table(&made.measures, "bought nothing"));
    text.push_str(&next_step(made.champion, &made.model, made.version, "Nobody is asked yet"));
    text
}

fn unchanged(model: &str, version: i32) -> String {
    format!(
        "Unchanged {model}  version {version} was made from the same rows by the same file: nothing to do; `holdfast train --again` trains all the same"
    )
}

fn summary_of_texts(made: &MadeTexts) -> String {
    let days = |[from, to]: [DateTime<Utc>; 2]| format!("{} to {}", from.date_naive(), to.date_naive());
    let mut text = format!(
        "{} version {}: {}\n\n  learnt from   {}, {}  ({} texts)\n  judged by     {}  ({} texts, {:.1} % of which are called neutral)\n  left out      {} copies of texts\n",
        made.model,
        made.version,
        made.description,
        made.table,
        days(made.taught),
        grouped(made.rows.learning),
        days(made.judged),
        grouped(made.rows.test),
        made.neutral_share * 100.0,
        grouped(made.rows.copies),
    );
    text.push_str(&measures_table(&made.measures, "positive"));
    text.push_str(&next_step(made.champion, &made.model, made.version, "No text is read yet"));
    text
}

/// What is there to be done about a new version.
fn next_step(champion: Option<i32>, model: &str, version: i32, without: &str) -> String {
    match champion {
        Some(champion) => format!(
            "\nVersion {champion} is the champion and stays it. To put the new one in its place: holdfast models promote {model} {version}\n"
        ),
        None => format!("\n{without}: holdfast models promote {model} {version}\n"),
    }
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
    text.push_str(&measures_table(&made.measures, "churned"));
    if let Some(ablation) = &made.ablation {
        text.push_str(&ablation_table(&serde_json::json!(ablation)));
    }
    text.push_str(&next_step(made.champion, &made.model, made.version, "Nobody is scored yet"));
    text
}
