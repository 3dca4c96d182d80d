//! What is done with a pipeline's models behind a scheduled run, as `[cadence]` in their files says: score, watch, train a challenger. Never a promotion: a person looks first.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_engine::Runner;
use holdfast_types::Progress;

use super::moments::midnight;
use super::registry::{CHAMPION, Registry};
use super::score::{Scored, score};
use super::spec::Spec;
use super::train::{TrainOptions, Trained, train};
use super::watch::{Watched, watch, watched_up_to};
use crate::error::CliError;
use crate::project::Project;

/// How long a step that failed waits: what a person has to mend is not told every minute.
const PAUSE: TimeDelta = TimeDelta::hours(6);

/// A step of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Score,
    Watch,
    Train,
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Watch => "watch",
            Self::Train => "train",
        }
    }
}

/// What was done, for those who tell it.
#[derive(Debug)]
pub(crate) enum Done {
    Scored(Scored),
    Watched(Watched),
    Trained(Trained),
}

/// Follows the cadence of a pipeline's models, from run to run.
#[derive(Debug, Default)]
pub(crate) struct Cadence {
    /// Steps that failed, and when.
    failed: BTreeMap<(String, Step), DateTime<Utc>>,
}

impl Cadence {
    /// Does what is due at `now`: scores after each run, watches once a day, and trains a challenger when the newest version is old enough. A step that fails is told, waits, and
    /// holds up nothing else. Models without a champion are not scored or watched, and those without a version are not trained: the first of both is a person's.
    ///
    /// # Errors
    /// Files of models that cannot be read.
    pub(crate) async fn follow(
        &mut self,
        project: &Project,
        runner: &Runner,
        registry: &Registry,
        now: DateTime<Utc>,
        progress: &dyn Progress,
    ) -> Result<Vec<Done>, CliError> {
        let mut done = Vec::new();
        for name in Spec::names(project)? {
            let spec = Spec::read(project, &name)?;
            for step in [Step::Score, Step::Watch, Step::Train] {
                let key = (name.clone(), step);
                if self.failed.get(&key).is_some_and(|failed| now < *failed + PAUSE) {
                    continue;
                }
                match take(step, &spec, runner, registry, now, progress).await {
                    Ok(taken) => {
                        self.failed.remove(&key);
                        done.extend(taken);
                    }
                    Err(error) => {
                        let (step, kind) = (step.as_str(), error.kind());
                        tracing::warn!(model = %name, step, kind = kind.as_str(), monotonic_counter.holdfast_errors = 1_u64, "a step of a model failed");
                        progress.problem(&format!(
                            "   Failed {name}  to {step}: {error}; tried again in {} hours",
                            PAUSE.num_hours()
                        ));
                        self.failed.insert(key, now);
                    }
                }
            }
        }
        Ok(done)
    }
}

async fn take(
    step: Step,
    spec: &Spec,
    runner: &Runner,
    registry: &Registry,
    now: DateTime<Utc>,
    progress: &dyn Progress,
) -> Result<Option<Done>, CliError> {
    let (name, cadence) = (&spec.name, &spec.file.cadence);
    match step {
        Step::Score if cadence.score && registry.alias(name, CHAMPION).await?.is_some() => {
            Ok(Some(Done::Scored(score(name, runner, registry, progress).await?)))
        }
        Step::Watch if cadence.watch && registry.alias(name, CHAMPION).await?.is_some() => {
            // Tables change with every run; what is looked at is customers as of midnight.
            let is_done = watched_up_to(registry, name).await?.is_some_and(|moment| moment >= midnight(now));
            if is_done {
                return Ok(None);
            }
            Ok(Some(Done::Watched(watch(name, runner, registry, Some(now), progress).await?)))
        }
        Step::Train => {
            let Some(every) = spec.train_every()? else { return Ok(None) };
            let newest = registry.versions(Some(name)).await?.last().map(|version| version.trained_at);
            if newest.is_none_or(|trained_at| now < trained_at + every) {
                return Ok(None);
            }
            let options = TrainOptions { as_of: None, again: false, by: "schedule".to_owned(), imported: None };
            Ok(Some(Done::Trained(train(spec, runner, registry, &options, progress).await?)))
        }
        _ => Ok(None),
    }
}
