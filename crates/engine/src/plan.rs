//! What a run would do, without doing it: the decisions of a run, stage by stage, and what is deployed beside what would be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use arrow::datatypes::Schema;
use chrono::{DateTime, Utc};
use holdfast_lake::Table;
use holdfast_types::{CUSTOMER_BUCKET, ErrorKind, Progress, TableName};
use serde::Serialize;

use crate::Result;
use crate::build::{Planned, StageWork};
use crate::by_key::derive;
use crate::decide::{ByKey, Cause, Course, Decision};
use crate::directive::StageKind;
use crate::increment::NotByKey;
use crate::orphans::orphans;
use crate::run::{Allowance, Prepared, RunOptions, Runner, StageOutcome};
use crate::stage::Stage;

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanReport {
    /// What `now()` would be.
    pub as_of: DateTime<Utc>,
    /// The selected stages, inputs first.
    pub stages: Vec<StagePlan>,
    /// Tables of stages whose files are gone. A run leaves them as they are.
    pub orphans: Vec<TableName>,
    /// How long it took to find out.
    pub seconds: f64,
}

/// What a run would do to one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StagePlan {
    /// Which.
    pub stage: TableName,
    /// Its file.
    pub file: PathBuf,
    /// The version that is there.
    pub version: Option<u64>,
    /// Its rows, when the log knows: about as many as a full refresh makes.
    pub rows: Option<u64>,
    /// What would be done.
    #[serde(flatten)]
    pub action: Action,
    /// Why; empty when nothing would be done.
    pub because: Vec<Cause>,
    /// How the columns of its table differ from those that the stage makes now. Empty for a table that is not there yet.
    pub columns: Vec<ColumnChange>,
    /// What in the query stops the stage from being brought up to date by key, where it names a key and would be done.
    pub stop: Option<Stop>,
}

/// What would be done to a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    /// Nothing: it is as it would be made.
    Fresh,
    /// The rows of some keys are worked out.
    Keys {
        /// Of how many; not known before the inputs that are brought up to date first are there.
        keys: Option<u64>,
    },
    /// Rows are added for what came in an input.
    Append {
        /// Which; nothing when none came.
        input: Option<TableName>,
    },
    /// All of its rows are worked out.
    Full {
        /// Why not by key, in words.
        reason: String,
    },
    /// It would fail before any row is worked out.
    Fails {
        /// How.
        error: String,
        /// What to do about it.
        kind: ErrorKind,
    },
}

/// A column that differs between a stage and its table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum ColumnChange {
    /// The table does not have it yet.
    Added {
        /// Its name.
        column: String,
        /// Its type.
        data_type: String,
    },
    /// The stage does not make it any more.
    Removed {
        /// Its name.
        column: String,
        /// Its type.
        data_type: String,
    },
    /// It has another type.
    Retyped {
        /// Its name.
        column: String,
        /// In the table.
        from: String,
        /// In the stage.
        to: String,
    },
}

/// What in a query stops its stage from being brought up to date by key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// The line of the stage's file, from 1, where the plan knows it.
    pub line: Option<usize>,
    /// The column of that line, from 1.
    pub column: Option<usize>,
    /// Why it stops it.
    pub reason: String,
    /// The part of the plan.
    pub what: String,
}

impl Runner {
    /// What [`Runner::run`] with the same options would do, by the same decisions. Commits and publishes nothing.
    ///
    /// What a stage will find in inputs that the run brings up to date first, nobody knows; so it is told whether such a stage would go by key, and not by how many.
    ///
    /// # Errors
    /// Mistakes in stage files, a selection that names nothing, and what the lake answers. What would happen to a single stage is in the report.
    pub async fn plan(&self, options: &RunOptions, progress: &dyn Progress) -> Result<PlanReport> {
        let started = Instant::now();
        if let Some(fresh) = self.nothing_new(options).await? {
            let stages = fresh.stages.into_iter().filter_map(|report| {
                let StageOutcome::Fresh { version } = report.outcome else { return None };
                let stage = self.project.stage(&report.stage)?;
                Some(StagePlan::fresh(stage, Some(version), None))
            });
            let seconds = started.elapsed().as_secs_f64();
            return Ok(PlanReport { as_of: options.as_of, stages: stages.collect(), orphans: fresh.orphans, seconds });
        }
        let Prepared { checked, selected, pinned } = self.prepare(options, progress).await?;
        let runtime = self.settings.runtime(&self.lake)?;
        let schemas = self.schemas(&checked);
        let mut pending: BTreeSet<TableName> = BTreeSet::new();
        let mut stages = Vec::with_capacity(selected.len());
        for checked in checked.into_iter().filter(|checked| selected.contains(&checked.stage.name)) {
            let work = self.work(checked, Allowance::Shared, options, &schemas, &pinned, &runtime);
            let stage = work.planned(&pending).await;
            if !matches!(stage.action, Action::Fresh | Action::Keys { keys: Some(0) } | Action::Append { input: None })
            {
                pending.insert(stage.stage.clone());
            }
            stages.push(stage);
        }
        let orphans = orphans(&self.lake, &self.project, pinned.values()).await?;
        Ok(PlanReport { as_of: options.as_of, stages, orphans, seconds: started.elapsed().as_secs_f64() })
    }
}

impl StageWork {
    async fn planned(&self, pending: &BTreeSet<TableName>) -> StagePlan {
        let stage = &self.checked.stage;
        let pending: BTreeSet<TableName> =
            stage.inputs.keys().filter(|input| pending.contains(*input)).cloned().collect();
        let mut report = StagePlan::fresh(stage, self.current.as_ref().map(Table::version), self.current.as_ref());
        if let Some(table) = &self.current {
            report.columns = column_changes(table.schema(), &self.checked.schema);
        }
        let Decision { note, stored, course } = match self.decide(&pending).await {
            Ok(decision) => decision,
            Err(error) => {
                report.action = Action::Fails { error: error.to_string(), kind: error.kind() };
                return report;
            }
        };
        if let Course::Fresh { .. } = &course {
            return report;
        }
        report.because = self.causes(stored.as_ref(), &note, &pending);
        report.action = match course {
            Course::Fresh { .. } => Action::Fresh,
            Course::Keys(by_key) => {
                let ByKey { keys, .. } = *by_key;
                Action::Keys { keys: Some(keys.count) }
            }
            Course::Append { append } => Action::Append { input: append.map(|append| append.input) },
            Course::Later { .. } if self.checked.stage.directives.kind == StageKind::Append => {
                Action::Append { input: pending.first().cloned() }
            }
            Course::Later { .. } => Action::Keys { keys: None },
            Course::Full { planned, reason, stop } => {
                report.stop = stop.or_else(|| self.stops(&planned)).map(Stop::from);
                Action::Full { reason }
            }
        };
        report
    }

    /// What will stop the stage from going by key the next time, when this time it is something else.
    fn stops(&self, planned: &Planned) -> Option<NotByKey> {
        let StageKind::Incremental { key, .. } = &self.checked.stage.directives.kind else { return None };
        derive(planned, key).err()
    }
}

impl StagePlan {
    fn fresh(stage: &Stage, version: Option<u64>, table: Option<&Table>) -> Self {
        Self {
            stage: stage.name.clone(),
            file: stage.file.clone(),
            version,
            rows: table.and_then(Table::row_count),
            action: Action::Fresh,
            because: Vec::new(),
            columns: Vec::new(),
            stop: None,
        }
    }
}

impl From<NotByKey> for Stop {
    fn from(stop: NotByKey) -> Self {
        let (line, column) = stop.place.unzip();
        Self { line, column, reason: stop.reason, what: stop.what }
    }
}

/// The columns that differ, by name; the bucket, which nobody writes, left out.
fn column_changes(table: &Schema, stage: &Schema) -> Vec<ColumnChange> {
    let named = |schema: &Schema| -> BTreeMap<String, String> {
        let fields = schema.fields().iter().filter(|field| field.name() != CUSTOMER_BUCKET);
        fields.map(|field| (field.name().clone(), field.data_type().to_string())).collect()
    };
    let (table, stage) = (named(table), named(stage));
    let mut changes = Vec::new();
    for (column, to) in &stage {
        match table.get(column) {
            None => changes.push(ColumnChange::Added { column: column.clone(), data_type: to.clone() }),
            Some(from) if from != to => {
                changes.push(ColumnChange::Retyped { column: column.clone(), from: from.clone(), to: to.clone() });
            }
            Some(_) => {}
        }
    }
    for (column, data_type) in table.into_iter().filter(|(column, _)| !stage.contains_key(column)) {
        changes.push(ColumnChange::Removed { column, data_type });
    }
    changes
}
