//! Ranges of time that are worked out anew because somebody asks for it, whether anything changed or not.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Column, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, lit};
use holdfast_lake::Table;
use holdfast_types::TableName;

use crate::Result;
use crate::build::{Planned, StageNote, StageWork};
use crate::by_key::{Collected, derive};
use crate::decide::{ByKey, Course, Decision};
use crate::directive::StageKind;
use crate::error::EngineError;
use crate::increment::KeyPlan;
use crate::project::CheckedStage;
use crate::run::TimeRange;

/// Refuses stages that have no time to choose a range of.
pub(crate) fn check(checked: &[CheckedStage], selected: &BTreeSet<TableName>) -> Result<()> {
    let is_by_time = |kind: &StageKind| matches!(kind, StageKind::Incremental { is_time: true, .. });
    let others: Vec<String> = checked
        .iter()
        .map(|checked| &checked.stage)
        .filter(|stage| selected.contains(&stage.name) && !is_by_time(&stage.directives.kind))
        .map(|stage| stage.name.to_string())
        .collect();
    let told = match others.as_slice() {
        [] => return Ok(()),
        [one] => format!("{one} is none"),
        [first, rest @ ..] => format!("{first} and {} others that are selected are none", rest.len()),
    };
    Err(EngineError::Query {
        message: format!(
            "a range can be worked out anew of stages with `@stage incremental time(column)` alone, and {told}: choose them with --select"
        ),
    })
}

impl StageWork {
    /// As `decide`, for a range: by all keys in it that the table has or the query gives.
    ///
    /// # Errors
    /// When the table is not there, or was made by another query: then the range would not fit the rest.
    pub(crate) async fn decide_range(
        &self,
        range: &TimeRange,
        note: StageNote,
        stored: Option<StageNote>,
    ) -> Result<Decision> {
        let refused = |reason: String| EngineError::Query {
            message: format!("{}: {reason}; run it without a range first", self.name()),
        };
        let (Some(table), Some(made), true) = (&self.current, &stored, self.is_own()) else {
            return Err(refused("there is no table of it whose rows could be worked out anew".to_owned()));
        };
        if let Some(differs) = made.what_else_differs(&note) {
            return Err(refused(format!("since it was made, {differs}")));
        }
        let planned = self.plan(&BTreeSet::new()).await?;
        let StageKind::Incremental { key, .. } = &self.checked.stage.directives.kind else {
            return Err(refused("it is not by time".to_owned()));
        };
        let plan = derive(&planned, key).map_err(|stop| refused(stop.to_string()))?;
        let keys = match self.keys_in(table, &planned, &plan, range).await? {
            Collected::Rows(keys) => keys,
            Collected::TooMany(reason) => return Err(refused(reason)),
        };
        // Of the other rows nothing is known: what changed for them is still to be done, from where the table was made.
        let note = made.clone();
        Ok(Decision { note, stored, course: Course::Keys(Box::new(ByKey { planned, plan, keys })) })
    }

    async fn keys_in(
        &self,
        table: &Table,
        planned: &Planned,
        by_key: &KeyPlan,
        range: &TimeRange,
    ) -> Result<Collected<crate::by_key::Keys>> {
        let failed = || EngineError::execution(format!("finding the rows of {} in the range", self.name()));
        let key = by_key.key();
        let field = self.checked.schema.field_with_name(key).map_err(|error| failed()(error.into()))?;
        let rows = || -> Result<LogicalPlan, DataFusionError> {
            let made = keys_of(planned.plan.clone(), key, field.data_type(), range)?;
            let mut all = LogicalPlanBuilder::from(made);
            for table in [Some(table), planned.quarantine.as_ref()].into_iter().flatten() {
                let there =
                    LogicalPlanBuilder::scan("rows_before", provider_as_source(table.provider()), None)?.build()?;
                all = all.union(keys_of(there, key, field.data_type(), range)?)?;
            }
            all.distinct()?.build()
        };
        let plan = rows().map_err(failed())?;
        self.collect_keys(table, planned, plan).await
    }
}

/// The keys of a plan's rows that are in the range.
fn keys_of(
    plan: LogicalPlan,
    key: &str,
    key_type: &DataType,
    range: &TimeRange,
) -> Result<LogicalPlan, DataFusionError> {
    let (qualifier, field) = plan
        .schema()
        .iter()
        .find(|(_, field)| field.name() == key)
        .ok_or_else(|| DataFusionError::Plan(format!("there is no column `{key}`")))?;
    let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
    let moment = |at: chrono::DateTime<chrono::Utc>| {
        let at = ScalarValue::TimestampMicrosecond(Some(at.timestamp_micros()), Some(Arc::from("UTC")));
        cast(lit(at), key_type.clone())
    };
    let within = column.clone().gt_eq(moment(range.from)).and(column.clone().lt(moment(range.to)));
    LogicalPlanBuilder::from(plan).filter(within)?.project([column.alias(key)])?.build()
}
