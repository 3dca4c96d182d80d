use std::sync::Arc;

use chrono::{DateTime, Utc};
use holdfast_engine::Runner;
use holdfast_models::Arm;
use holdfast_types::Progress;
use serde_json::json;

use super::versions::{compare, list, show};
use super::{grouped, print, print_json};
use crate::error::CliError;
use crate::models::import::Imported;
use crate::models::kind::Kind;
use crate::models::registry::{CHAMPION, Registry, publish, standing, tables};
use crate::models::score::{Scored, beside, shadow};
use crate::models::spec::Spec;
use crate::models::train::TrainOptions;
use crate::models::trial::{Shown, Trial, Wanted};
use crate::models::watch::{Watched, watch};
use crate::progress::Terminal;
use crate::project::{Project, user_name};

/// List, show, compare and promote versions of trained models
#[derive(Debug, clap::Args)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ModelsCommand {
    /// The versions of all models, and where aliases stand
    List {
        /// Of this model alone
        model: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// All that is known of a version
    Show {
        model: String,
        /// Which version [default: the newest]
        version: Option<i32>,
        #[arg(long)]
        json: bool,
    },
    /// The measures of two versions side by side
    Compare {
        model: String,
        /// The one
        first: i32,
        /// The other
        second: i32,
        #[arg(long)]
        json: bool,
    },
    /// Make a version the champion, after it has answered its stored examples as it did when it was trained
    Promote { model: String, version: i32 },
    /// Make the champion before this one the champion again
    Rollback { model: String },
    /// Score customers by a version beside the champion, into a table of its own (risk.…_shadow)
    ///
    /// Nobody is told by these scores. Told is how they differ from the champion's, where those are of the same features. Where nothing changed, nothing is committed.
    Shadow {
        model: String,
        version: i32,
        #[arg(long)]
        json: bool,
    },
    /// Test a version against the champion: each customer is scored by one of both, and it is counted who comes back
    Test {
        #[command(subcommand)]
        command: TestCommand,
    },
    /// Keep trees that were trained elsewhere as a version, calibrated and judged here
    ///
    /// PATH is a folder that MLflow wrote (flavour xgboost or lightgbm), or a file of XGBoost (.ubj, .json) or LightGBM (text), that names its features: columns of the stage of the model's file. Pickles
    /// are refused. The version is the challenger until `holdfast models promote`.
    Import {
        model: String,
        path: std::path::PathBuf,
        /// Up to when events are known [default: the moment of the newest published run]
        #[arg(long, value_name = "TIME", value_parser = super::moment)]
        as_of: Option<DateTime<Utc>>,
        #[arg(long)]
        json: bool,
    },
    /// Hold the champion against customers of today, and against labels that have arrived since it was judged
    ///
    /// Adds rows to metric.model_quality: whether features, scores and the number of customers are as they were, and what the champion is worth where labels are
    /// newer than those that judged it. What is beyond its bar ([watch] in the model's file) is an alert, here and in metric.model_alerts. Where nothing is new,
    /// nothing is added.
    Watch {
        model: String,
        /// Up to when events are known [default: the moment of the newest published run]
        #[arg(long, value_name = "TIME", value_parser = super::moment)]
        as_of: Option<DateTime<Utc>>,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Subcommand)]
enum TestCommand {
    /// Begin a test of a version against the champion
    ///
    /// From then on `holdfast score` scores a share of the customers, always the same, by the version. What is counted is known once the horizon is over behind a customer's first event after
    /// the begin. While a test goes on the champion is not moved.
    Start {
        model: String,
        /// The version that is tested
        version: i32,
        /// The share of customers that it scores
        #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
        share: f64,
        /// The difference of churn that is looked for, in shares: 0.02 is two in a hundred
        #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
        effect: f64,
        #[arg(long)]
        json: bool,
    },
    /// What the newest test has shown; may be asked as often as one likes
    Show {
        model: String,
        /// Up to when events are known [default: the moment of the newest published run]
        #[arg(long, value_name = "TIME", value_parser = super::moment)]
        as_of: Option<DateTime<Utc>>,
        #[arg(long)]
        json: bool,
    },
    /// End the test: the champion scores everybody again
    Stop {
        model: String,
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(project: &Project, args: &ModelsArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    match &args.command {
        ModelsCommand::List { model, json } => list(&reading(project).await?, model.as_deref(), *json).await,
        ModelsCommand::Show { model, version, json } => show(&reading(project).await?, model, *version, *json).await,
        ModelsCommand::Compare { model, first, second, json } => {
            compare(&reading(project).await?, model, *first, *second, *json).await
        }
        ModelsCommand::Promote { model, version } => promote(project, model, *version, "promoted", terminal).await,
        ModelsCommand::Rollback { model } => {
            let before = before_champion(&reading(project).await?, model).await?;
            promote(project, model, before, "rolled back", terminal).await
        }
        ModelsCommand::Shadow { model, version, json } => shadowed(project, model, *version, *json, terminal).await,
        ModelsCommand::Test { command } => test(project, command, terminal).await,
        ModelsCommand::Import { model, path, as_of, json } => {
            let spec = Spec::read(project, model)?;
            let imported = Some(Imported::read(path)?);
            let options = TrainOptions { as_of: *as_of, again: false, by: user_name(), imported };
            super::train::train_and_tell(project, &spec, &options, *json, terminal).await
        }
        ModelsCommand::Watch { model, as_of, json } => watched(project, model, *as_of, *json, terminal).await,
    }
}

async fn reading(project: &Project) -> Result<Registry, CliError> {
    Ok(Registry { lake: project.open_lake().await?, settings: project.reader_settings() })
}

/// The models of the lake, to change them, and who works out their features.
async fn writing(project: &Project) -> Result<(Registry, Runner), CliError> {
    let lake = project.open_lake_to_write().await?;
    let registry = Registry { lake: lake.clone(), settings: project.reader_settings() };
    let settings = project.session_settings(&lake).await?;
    Ok((registry, project.runner(lake, project.stages()?, settings).await?))
}

async fn watched(
    project: &Project,
    model: &str,
    as_of: Option<DateTime<Utc>>,
    json: bool,
    terminal: &Arc<Terminal>,
) -> Result<(), CliError> {
    let (registry, runner) = writing(project).await?;
    let watched = watch(model, &runner, &registry, as_of, terminal.as_ref()).await?;
    if json {
        return print_json(&watched);
    }
    tell_watched(&watched, terminal);
    Ok(())
}

/// What a watch found, a line an alert.
pub(crate) fn tell_watched(watched: &Watched, terminal: &Terminal) {
    match watched {
        Watched::Unchanged { model, version, moment } => terminal.note(&format!(
            "    Fresh {model}  version {version} was watched as of {}, and no table has changed since",
            moment.date_naive()
        )),
        Watched::Made { model, version, moment, customers, labelled, labels_from, alerts, .. } => {
            let labels = match (labelled, labels_from) {
                (Some(at), _) => format!("labels of {}", at.date_naive()),
                (None, from) => {
                    format!("labels newer than those that judged it are known from {} on", from.date_naive())
                }
            };
            terminal.note(&format!(
                "  Watched {model}  version {version}: {} customers as of {}, {labels}; {} alerts",
                grouped(*customers),
                moment.date_naive(),
                alerts.len()
            ));
            alerts.iter().for_each(|alert| terminal.problem(&format!("    Alert {model}  {alert}")));
        }
    }
}

async fn shadowed(
    project: &Project,
    model: &str,
    version: i32,
    json: bool,
    terminal: &Arc<Terminal>,
) -> Result<(), CliError> {
    let (registry, runner) = writing(project).await?;
    let scored = shadow(model, version, &runner, &registry, terminal.as_ref()).await?;
    let (Scored::Unchanged { table, .. } | Scored::Made { table, .. }) = &scored;
    let beside = beside(table, model, &registry).await?;
    if json {
        let mut told = serde_json::to_value(&scored).unwrap_or_default();
        told["beside_champion"] = json!(beside);
        return print_json(&told);
    }
    super::score::tell(&scored, terminal);
    match beside {
        Some(beside) => terminal.note(&format!(
            "   Beside version {}, the champion: {} customers, {} in another band, mean difference {:+.4}{}",
            beside.champion,
            grouped(beside.customers),
            grouped(beside.other_band),
            beside.mean_difference,
            beside.correlation.map_or_else(String::new, |correlation| format!(", correlation {correlation:.3}")),
        )),
        None => terminal.note(&format!(
            "   Beside nothing: the champion has not scored these features; `holdfast score --model {model}` does"
        )),
    }
    Ok(())
}

async fn test(project: &Project, command: &TestCommand, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    match command {
        TestCommand::Start { model, version, share, effect, json } => {
            let registry = Registry { lake: project.open_lake_to_write().await?, settings: project.reader_settings() };
            let wanted = Wanted { challenger: *version, share: *share, effect: *effect };
            let trial = Trial::start(&registry, model, wanted, user_name()).await?;
            if *json {
                return print_json(&trial);
            }
            terminal.note(&format!(
                "  Started test {} of {model}  version {version} scores {:.0} % of the customers, version {} the others, from the next `holdfast score` on",
                trial.test,
                share * 100.0,
                trial.champion
            ));
        }
        TestCommand::Show { model, as_of, json } => {
            let shown = Trial::show(&reading(project).await?, model, *as_of).await?;
            if *json {
                return print_json(&shown);
            }
            print(&told_test(&shown))?;
        }
        TestCommand::Stop { model, json } => {
            let registry = Registry { lake: project.open_lake_to_write().await?, settings: project.reader_settings() };
            let trial = Trial::stop(&registry, model, user_name()).await?;
            if *json {
                return print_json(&trial);
            }
            terminal.note(&format!(
                "  Stopped test {} of {model}  version {} scores everybody from the next `holdfast score` on",
                trial.test, trial.champion
            ));
        }
    }
    Ok(())
}

/// A test for people.
fn told_test(shown: &Shown) -> String {
    let Shown { trial, stopped_at, entered, arms, look, known_from } = shown;
    let ended = stopped_at.map_or_else(|| "goes on".to_owned(), |at| format!("ended {}", at.format("%Y-%m-%d %H:%M")));
    let mut text = format!(
        "Test {} of {}, begun {}, {ended}\n\n{:<12} {:>9} {:>10} {:>10} {:>10}\n",
        trial.test,
        trial.model,
        trial.at.format("%Y-%m-%d %H:%M"),
        "version",
        "customers",
        "of known",
        "churned",
        "share"
    );
    for (arm, version) in [trial.champion, trial.challenger].into_iter().enumerate() {
        let Arm { rows, positives } = arms[arm];
        let share = if rows > 0 { format!("{:.1} %", positives as f64 / rows as f64 * 100.0) } else { "-".to_owned() };
        text.push_str(&format!("{version:<12} {:>9} {rows:>10} {positives:>10} {share:>10}\n", entered[arm]));
    }
    text.push_str(&match (look.difference, look.low, look.high) {
        (Some(difference), Some(low), Some(high)) => format!(
            "\ndifference {:+.1} points (95 %: {:+.1} to {:+.1}), p {:.4}, always valid: look as often as you like\n",
            difference * 100.0,
            low * 100.0,
            high * 100.0,
            look.p
        ),
        _ => format!("\nthe first customers are known from {} on\n", known_from.date_naive()),
    });
    if look.is_mismatched {
        text.push_str("The arms are not of the size that was asked for: something is wrong with who is in which, and the difference means nothing\n");
    }
    text
}

async fn before_champion(registry: &Registry, model: &str) -> Result<i32, CliError> {
    let moves = registry.moves(Some(model)).await?;
    let current = standing(&moves, model, CHAMPION);
    let last = moves.iter().rev().find(|moved| moved.alias == CHAMPION);
    // Rolled back twice goes back two champions, not to where it came from.
    let mut history: Vec<i32> = Vec::new();
    for moved in moves.iter().filter(|moved| moved.alias == CHAMPION) {
        if moved.why == "rolled back" {
            history.pop();
        } else {
            history.push(moved.version);
        }
    }
    history.pop();
    history.last().copied().filter(|before| last.is_some() && Some(*before) != current).ok_or_else(|| {
        CliError::NoModel(format!(
            "`{model}` has no champion before this one: look with `holdfast models list {model}`"
        ))
    })
}

async fn promote(
    project: &Project,
    model: &str,
    number: i32,
    why: &str,
    terminal: &Arc<Terminal>,
) -> Result<(), CliError> {
    let lake = project.open_lake_to_write().await?;
    let registry = Registry { lake: lake.clone(), settings: project.reader_settings() };
    Trial::refuse_moves(&registry, model).await?;
    let version = registry.version(model, number).await?;
    let next = match version.kind() {
        Kind::Churn => {
            let loaded = registry.load(version).await?;
            let settings = project.session_settings(&lake).await?;
            let runner = project.runner(lake, project.stages()?, settings).await?;
            let past = runner.past(&loaded.stages(), &[]).await?;
            loaded.check_features(&past)?;
            format!("`holdfast score --model {model}` scores with it")
        }
        Kind::Sentiment => {
            registry.load_texts(version).await?;
            "sentiment(text) asks it, and the next run makes the stages anew that do".to_owned()
        }
        Kind::Lifetime => {
            registry.load_lifetime(version).await?;
            "p_alive, expected_purchases and clv ask it, and the next run makes the stages anew that do".to_owned()
        }
    };
    if registry.alias(model, CHAMPION).await? == Some(number) {
        terminal.note(&format!("Unchanged {model}  version {number} is the champion already"));
        return Ok(());
    }
    let moved = registry.point(model, CHAMPION, number, &user_name(), why).await?;
    publish(&registry.lake, &tables()?).await?;
    let before = moved.previous.map_or_else(String::new, |before| format!(", in the place of version {before}"));
    terminal.note(&format!(
        " Promoted {model}  version {number} is the champion{before}; it answered its examples as it did when it was trained. {next}"
    ));
    Ok(())
}
