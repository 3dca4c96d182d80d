//! Stages to which rows are only added: each row of the table comes from one row of a growing input, so what came there is all that the query has to be asked about.
//!
//! A query Q is *linear* in an input X when Q(X and more) is Q(X) together with Q(more): rows are taken one by one, looked up in other inputs, left out, or made into several.
//! Then the rows that came in X give the rows that come in the table. Anything else (rows that went, a change of an input that is looked up, a new day for a query that asks for `now()`) is
//! a full refresh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::JoinType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{LogicalPlan, TableScan};
use holdfast_lake::{Replacement, TableChanges};
use holdfast_types::TableName;

use crate::Result;
use crate::build::{Built, Planned, StageNote, StageWork, key_is_unique};
use crate::decide::{Course, NOT_OWN};
use crate::error::EngineError;
use crate::expectation::ExpectationResult;
use crate::increment::{NotByKey, table_name};
use crate::output::{Staged, Target, stage_rows};
use crate::run::{Refresh, StageOutcome};

/// What it takes to add what came.
pub(crate) struct Append {
    /// The query over the rows that came in one input, and all rows of the others.
    planned: Planned,
    /// The input.
    pub(crate) input: TableName,
}

impl StageWork {
    /// How a stage to which rows are only added is brought up to date, when nothing but its inputs differs from `stored`.
    ///
    /// # Errors
    /// When the query cannot be planned, and what the lake answers.
    pub(crate) async fn append_course(
        &self,
        stored: &StageNote,
        note: &StageNote,
        planned: Planned,
        pending: &BTreeSet<TableName>,
    ) -> Result<Course> {
        let full = |planned, reason: String, stop| Ok(Course::Full { planned: Box::new(planned), reason, stop });
        let changes = match self.changes(stored, note, pending).await? {
            Ok(changes) => changes,
            Err(reason) => return full(planned, reason, None),
        };
        let failed = || EngineError::execution(format!("stage {}", self.name()));
        let linear = linear_inputs(&planned.plan).map_err(failed())?;
        let mut came = None;
        for name in changes.keys().chain(pending) {
            if !linear.contains(name) {
                let reason = format!("{name} changed, and rows of the table are not each from one row of it");
                let stop = stop(&planned.plan, name);
                return full(planned, reason, stop);
            }
            if came.as_ref().is_some_and(|other| other != name) {
                return full(planned, format!("rows came in {name} and in another input"), None);
            }
            came = Some(name.clone());
        }
        if !self.is_own() && (!pending.is_empty() || !changes.is_empty()) {
            return full(planned, NOT_OWN.to_owned(), None);
        }
        if !pending.is_empty() {
            return Ok(Course::Later { planned: Box::new(planned) });
        }
        // Versions without changes of rows were left out.
        let Some((input, change)) = changes.into_iter().next() else {
            return Ok(Course::Append { append: None });
        };
        if !change.is_added_to() {
            return full(planned, format!("rows of {input} changed or went"), None);
        }
        let planned = self.planned_over(&input, &change).await?;
        Ok(Course::Append { append: Some(Box::new(Append { planned, input })) })
    }

    async fn planned_over(&self, input: &TableName, change: &TableChanges) -> Result<Planned> {
        let rows = change.added_rows().map_err(EngineError::execution(format!("reading what came in {input}")))?;
        self.plan_over(&BTreeSet::new(), &BTreeMap::from([(input.clone(), rows)])).await
    }

    /// Adds the rows that the query has for what came.
    ///
    /// # Errors
    /// Those of a full refresh. Nothing is published then.
    pub(crate) async fn append(&self, note: &StageNote, append: Append) -> Result<Built> {
        let Some(table) = &self.current else {
            return Err(EngineError::Query { message: format!("{} is not there", self.name()) });
        };
        let Planned { state, plan, rules, whole, is_proven, .. } = append.planned;
        let quarantine = self.quarantine_table().await?;
        let schema = Arc::clone(&self.checked.schema);
        let target = Target {
            table: table.clone(),
            schema: Arc::clone(&schema),
            quarantine: quarantine.clone(),
            rules: rules.clone(),
        };
        let Staged { files, rows, refused, refused_rows, failed } =
            stage_rows(&state, plan, self.buckets(), self.name(), Arc::new(target)).await?;
        let after: Arc<dyn TableProvider> = table.replaced_provider(&[], &files);
        let judged = async {
            let mut expectations: Vec<ExpectationResult> = rules.results(&failed);
            if let Some(contract) = &self.checked.stage.contract {
                let duplicates = match is_proven {
                    true => 0,
                    false => {
                        let count = table.row_count().unwrap_or(0) + rows;
                        self.count_duplicates(&contract.key, Arc::clone(&after), count).await?
                    }
                };
                expectations.push(key_is_unique(&contract.key, duplicates));
            }
            if !whole.is_empty() {
                expectations.extend(self.judge_whole(&whole, after).await?);
            }
            self.judge(rows + refused_rows, &expectations)?;
            Ok(expectations)
        };
        let expectations = match judged.await {
            Ok(expectations) => expectations,
            Err(error) => {
                self.discard(files, refused, table, quarantine.as_ref()).await;
                return Err(error);
            }
        };
        self.check_met(&expectations)?;
        let bytes = files.iter().chain(&refused).map(|file| file.bytes).sum();
        let mut tables = Vec::new();
        if let Some(quarantine) = quarantine {
            tables.push(match refused.is_empty() {
                true => quarantine,
                false => {
                    let refused = Replacement { files: refused, ..Replacement::default() };
                    self.commit_replacement(&quarantine, refused, None).await?
                }
            });
        }
        let added = Replacement { files, ..Replacement::default() };
        let table = self.commit_replacement(table, added, Some(note)).await?;
        let outcome = StageOutcome::Built {
            version: table.version(),
            rows: table.row_count().unwrap_or(0),
            quarantined_rows: refused_rows,
            refresh: Refresh::Append { input: append.input, rows_added: rows },
        };
        tables.push(table);
        Ok(Built { outcome, expectations, tables, bytes, looked_at: None, place: None })
    }
}

/// The inputs that a query is linear in.
fn linear_inputs(plan: &LogicalPlan) -> Result<BTreeSet<TableName>, DataFusionError> {
    let mut scans: BTreeMap<TableName, usize> = BTreeMap::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(name) = table_name(&scan.table_name)
        {
            *scans.entry(name).or_default() += 1;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let mut linear = linear(plan);
    // What is read twice is looked up as well.
    linear.retain(|name| scans.get(name) == Some(&1));
    Ok(linear)
}

fn linear(plan: &LogicalPlan) -> BTreeSet<TableName> {
    match plan {
        LogicalPlan::TableScan(TableScan { table_name: name, fetch: None, .. }) => {
            table_name(name).into_iter().collect()
        }
        LogicalPlan::Projection(node) => linear(&node.input),
        LogicalPlan::Filter(node) => linear(&node.input),
        LogicalPlan::SubqueryAlias(node) => linear(&node.input),
        LogicalPlan::Unnest(node) => linear(&node.input),
        // Of all rows: in which order is nothing to a table.
        LogicalPlan::Sort(node) if node.fetch.is_none() => linear(&node.input),
        LogicalPlan::Join(node) => match node.join_type {
            JoinType::Inner => linear(&node.left).into_iter().chain(linear(&node.right)).collect(),
            JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => linear(&node.left),
            JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => linear(&node.right),
            JoinType::Full => BTreeSet::new(),
        },
        _ => BTreeSet::new(),
    }
}

/// The first node above a table in which the query is not linear.
fn stop(plan: &LogicalPlan, name: &TableName) -> Option<NotByKey> {
    let mut found = None;
    let visited = plan.apply(|node| {
        let below = node.inputs().iter().any(|input| linear(input).contains(name));
        if below && !linear(node).contains(name) {
            let reason = format!("its rows come from several rows of {name}, or depend on what is not there");
            found = Some(NotByKey::of_node(reason, node));
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(visited.is_ok(), "nothing here fails");
    found
}
