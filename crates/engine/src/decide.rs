//! What becomes of a stage, before anything is done about it: nothing, the rows of some keys, or all. A run acts on it and a plan shows it; so neither can differ from the
//! other. Nothing is written here.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use holdfast_types::TableName;
use serde::Serialize;

use crate::Result;
use crate::append::Append;
use crate::build::{NOTE_COMMITS_MAX, Planned, STAGE_NOTE, StageNote, StageWork, salt};
use crate::by_key::{Collected, Keys, derive};
use crate::directive::StageKind;
use crate::increment::{KeyPlan, NotByKey, Reach};

/// What becomes of a stage.
pub(crate) struct Decision {
    /// What a version made now would be made from.
    pub(crate) note: StageNote,
    /// What the version that is there was made from, when its commits say so.
    pub(crate) stored: Option<StageNote>,
    pub(crate) course: Course,
}

/// How a stage is brought up to date.
pub(crate) enum Course {
    /// It is.
    Fresh {
        /// Which version is there.
        version: u64,
    },
    /// By these keys.
    Keys(Box<ByKey>),
    /// The rows for what came in an input are added; `None`: nothing came.
    Append { append: Option<Box<Append>> },
    /// By key, or by adding rows, once what is pending is there.
    Later { planned: Box<Planned> },
    /// In full.
    Full {
        planned: Box<Planned>,
        /// Why, in words.
        reason: String,
        /// What in the query stops it from being brought up to date by key, where that is the reason.
        stop: Option<NotByKey>,
    },
}

/// What it takes to bring a stage up to date by key.
pub(crate) struct ByKey {
    pub(crate) planned: Planned,
    pub(crate) plan: KeyPlan,
    pub(crate) keys: Keys,
}

/// Why a stage is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum Cause {
    /// It was asked for: all of it, or a range.
    Asked,
    /// There is no table yet.
    NeverMade,
    /// The commits of its table do not say what it was made from.
    Unknown,
    /// Its query, its expectations or its contract are not those that the table was made by; or the engine, or a function, makes other values now.
    Query,
    /// Somebody else answers what its query asks.
    Asks {
        /// Who, in words: `model churn: version 2`.
        now: String,
    },
    /// It depends on time, and a new grain of `now()` has begun.
    Moment {
        /// The end of the grain that the table was made in.
        from: Option<DateTime<Utc>>,
        /// The end of the grain now.
        to: Option<DateTime<Utc>>,
    },
    /// An input has other rows.
    Input {
        /// Which.
        table: TableName,
        /// The version that the table was made from.
        from: Option<u64>,
        /// The version now.
        to: Option<u64>,
    },
    /// An input is a stage that this run brings up to date first.
    Upstream {
        /// Which.
        table: TableName,
    },
}

/// Why a stage that is to change is made in full the first time in an environment.
pub(crate) const NOT_OWN: &str = "the environment has no table of it yet";

impl StageWork {
    /// What a version made now would be made from.
    ///
    /// # Errors
    /// What the lake answers.
    pub(crate) async fn note(&self) -> Result<StageNote> {
        // Merging files makes versions that hold the same rows: they are no news.
        let mut inputs = BTreeMap::new();
        for (name, table) in &self.inputs {
            let version = match table {
                Some(table) => Some(table.data_version().await?),
                None => None,
            };
            inputs.insert(name.clone(), version);
        }
        let salt = salt(&self.lake, &self.settings, &self.checked.stage);
        Ok(StageNote::of(&self.checked.stage, &salt, self.as_of, inputs, &self.checked.content))
    }

    /// Decides what becomes of the stage. `pending` are inputs that a run would bring up to date first: what they will hold, nobody can know. None are in a run, where
    /// inputs come first.
    ///
    /// Costs the reading of what changed in the inputs, where the stage can be brought up to date by key.
    ///
    /// # Errors
    /// When the query cannot be planned over what is there, and what the lake answers.
    pub(crate) async fn decide(&self, pending: &BTreeSet<TableName>) -> Result<Decision> {
        let note = self.note().await?;
        let stored = match &self.current {
            Some(current) => current.commit_note(STAGE_NOTE, NOTE_COMMITS_MAX).await?.and_then(StageNote::read),
            None => None,
        };
        let stored = stored.map(|stored| StageNote { looked_at: self.looked_at.clone(), ..stored });
        let is_as_it_was =
            !self.full && self.range.is_none() && stored.as_ref().is_some_and(|stored| stored.is_as(&note));
        if let Some(current) = self.current.as_ref().filter(|_| is_as_it_was && pending.is_empty()) {
            let course = Course::Fresh { version: current.version() };
            return Ok(Decision { note, stored, course });
        }
        if let Some(table) = self.current.as_ref().filter(|_| self.is_own()) {
            self.check_partitioning(table)?;
        }
        if let Some(range) = &self.range {
            return self.decide_range(range, note, stored).await;
        }
        let planned = self.plan(pending).await?;
        let course = self.course(stored.as_ref(), &note, planned, pending).await?;
        Ok(Decision { note, stored, course })
    }

    async fn course(
        &self,
        stored: Option<&StageNote>,
        note: &StageNote,
        planned: Planned,
        pending: &BTreeSet<TableName>,
    ) -> Result<Course> {
        let full = |planned, reason: &str| {
            Ok(Course::Full { planned: Box::new(planned), reason: reason.to_owned(), stop: None })
        };
        let kind = &self.checked.stage.directives.kind;
        if *kind == StageKind::Full {
            return full(planned, "the stage says so");
        }
        let (Some(table), Some(stored)) = (&self.current, stored) else {
            return full(planned, "it has not been built before");
        };
        if self.full {
            return full(planned, "it was asked for");
        }
        if let Some(differs) = stored.what_else_differs(note) {
            return full(planned, &differs);
        }
        if self.is_reshaped(table) {
            return full(planned, "its columns or what is said of them changed");
        }
        let StageKind::Incremental { key, .. } = kind else {
            return self.append_course(stored, note, planned, pending).await;
        };
        let changes = match self.changes(stored, note, pending).await? {
            Ok(changes) => changes,
            Err(reason) => return full(planned, &reason),
        };
        let plan = match derive(&planned, key) {
            Ok(plan) => plan,
            Err(stop) => {
                let reason = stop.to_string();
                return Ok(Course::Full { planned: Box::new(planned), reason, stop: Some(stop) });
            }
        };
        let reach = plan.reach();
        for name in changes.keys().chain(pending) {
            if let Some(Reach::Full { reason }) = reach.get(name) {
                return full(planned, &format!("{name} changed, and {reason}"));
            }
        }
        if !pending.is_empty() {
            return match self.is_own() {
                true => Ok(Course::Later { planned: Box::new(planned) }),
                false => full(planned, NOT_OWN),
            };
        }
        match self.keys(table, &planned, &plan, &changes).await {
            Ok(Collected::Rows(keys)) if !self.is_own() && keys.count > 0 => full(planned, NOT_OWN),
            Ok(Collected::Rows(keys)) => Ok(Course::Keys(Box::new(ByKey { planned, plan, keys }))),
            Ok(Collected::TooMany(reason)) => full(planned, &reason),
            Err(error) => {
                let reason = self.full_instead(error)?;
                full(planned, &reason)
            }
        }
    }

    /// Why the stage is not as it should be, in the order of what matters most. Empty when it is.
    pub(crate) fn causes(
        &self,
        stored: Option<&StageNote>,
        note: &StageNote,
        pending: &BTreeSet<TableName>,
    ) -> Vec<Cause> {
        let mut causes = Vec::new();
        if self.full || self.range.is_some() {
            causes.push(Cause::Asked);
        }
        match (&self.current, stored) {
            (None, _) => causes.push(Cause::NeverMade),
            (Some(_), None) => causes.push(Cause::Unknown),
            (Some(_), Some(stored)) => {
                if stored.fingerprint != note.fingerprint {
                    match stored.others_answer(note) {
                        Some(told) => causes.extend(told.into_iter().map(|now| Cause::Asks { now })),
                        None => causes.push(Cause::Query),
                    }
                }
                if stored.moment != note.moment {
                    causes.push(Cause::Moment { from: stored.moment, to: note.moment });
                }
                let changed = note.inputs.iter().filter(|(table, to)| stored.seen().get(*table) != Some(*to));
                causes.extend(changed.map(|(table, to)| Cause::Input {
                    table: table.clone(),
                    from: stored.seen().get(table).copied().flatten(),
                    to: *to,
                }));
            }
        }
        causes.extend(pending.iter().map(|table| Cause::Upstream { table: table.clone() }));
        causes
    }
}
