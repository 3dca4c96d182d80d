//! Features from memory: one answer for the keys of a call, or an exchange that stays open and answers a batch of keys each time.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::FlightData;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use holdfast_access::{Access, Policy, Principal, Touched};
use holdfast_feature_store::{Asked, OnlineColumns, OnlinePlan, OnlineStore};
use tonic::Streaming;

use crate::answer::Answer;
use crate::feature_calls::{asked, sent_rows, status};
use crate::feature_rights::{FeatureGuard, SeenFeatures};
use crate::generated::v1::{GetOnlineFeatures, KeyColumn};
use crate::runs::Runs;
use crate::wire::{to_wire, wire_schema};
use crate::{Result, ServeError, ServeSettings};

/// Answers that come one by one, each with what is sent beside it: of online features the run that they are from, as text.
pub(crate) type Answers = BoxStream<'static, Result<(RecordBatch, Bytes)>>;

/// Answers keys from memory.
pub(crate) async fn answer(
    runs: &Runs,
    command: &GetOnlineFeatures,
    settings: &ServeSettings,
    guard: &FeatureGuard<'_>,
) -> Result<Answer> {
    let plan = plan(runs.online(), command).await?;
    let seen = guard.of_plan(&plan)?;
    let keys = keys(&command.keys, &plan, settings.max_customer_ids)?;
    let rows = seen.over(&answered(runs, &plan, &keys)?)?;
    let schema = wire_schema(&rows.schema());
    Ok(Answer::ready_batch(to_wire(&rows, &schema)?).reading(seen.touched()))
}

/// Whose exchange it is.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    pub(crate) access: Arc<Access>,
    pub(crate) principal: Arc<Principal>,
}

impl Asking {
    fn sees(&self, runs: &Runs, plan: Arc<OnlinePlan>) -> Result<Sight> {
        let policy = self.access.policy();
        let seen = FeatureGuard::new(&self.access, &self.principal, &runs.newest()).of_plan(&plan)?;
        Ok(Sight { plan, policy, seen })
    }
}

/// How batches of keys are answered, until a run is published or the policy is another: who may not any more is told so with the next batch.
struct Sight {
    plan: Arc<OnlinePlan>,
    policy: Option<Arc<Policy>>,
    seen: SeenFeatures,
}

impl Sight {
    fn is_of(&self, policy: Option<&Arc<Policy>>) -> bool {
        self.policy.as_ref().map(Arc::as_ptr) == policy.map(Arc::as_ptr)
    }
}

/// Begins an exchange: the command is resolved once, with the versions of now; what comes behind it are batches of keys, and each is answered from the run that is in memory
/// by then.
pub(crate) async fn converse(
    runs: Arc<Runs>,
    command: GetOnlineFeatures,
    (first, messages): (FlightData, Streaming<FlightData>),
    settings: Arc<ServeSettings>,
    asking: Asking,
) -> Result<(SchemaRef, Touched, Answers)> {
    if !command.keys.is_empty() {
        return Err(ServeError::Request(
            "the keys of an exchange are the rows behind the command: leave `keys` out, or use DoGet".to_owned(),
        ));
    }
    let plan = plan(runs.online(), &command).await?;
    let (sent, keys) = sent_rows(first, messages).await?;
    for key in plan.keys().iter().chain(plan.request()) {
        if sent.field_with_name(key.name()).is_err() {
            return Err(no_key(key.name(), &plan));
        }
    }
    let schema = wire_schema(plan.schema());
    let sight = asking.sees(&runs, plan)?;
    let touched = sight.seen.touched();
    let wire = Arc::clone(&schema);
    let rows_max = settings.max_customer_ids;
    let answers = futures::stream::try_unfold((sight, keys), move |(mut sight, mut keys)| {
        let (runs, wire, asking) = (Arc::clone(&runs), Arc::clone(&wire), asking.clone());
        async move {
            let Some(batch) = keys.try_next().await.map_err(sent_wrong)? else { return Ok(None) };
            too_many("keys", batch.num_rows(), rows_max)?;
            let store = runs.online();
            if sight.plan.run() != store.run() {
                let (asked, columns) = sight.plan.pinned();
                let plan = store.plan(asked, columns)?;
                sight = asking.sees(&runs, plan)?;
            } else if !sight.is_of(asking.access.policy().as_ref()) {
                sight = asking.sees(&runs, Arc::clone(&sight.plan))?;
            }
            let rows = sight.seen.over(&answered(&runs, &sight.plan, &batch)?)?;
            let run = Bytes::from(sight.plan.run().to_string());
            Ok(Some(((to_wire(&rows, &wire)?, run), (sight, keys))))
        }
    });
    Ok((schema, touched, answers.boxed()))
}

/// What the keys have now; noted, if it is its turn.
pub(crate) fn answered(runs: &Runs, plan: &OnlinePlan, keys: &RecordBatch) -> Result<RecordBatch> {
    let at = runs.online().now();
    let rows = plan.answer(keys, at)?;
    runs.served().note(plan, &rows, at);
    Ok(rows)
}

/// How a command is answered.
async fn plan(store: &OnlineStore, command: &GetOnlineFeatures) -> Result<Arc<OnlinePlan>> {
    let columns = OnlineColumns {
        full_names: command.full_feature_names,
        status: status(command.status)?,
        event_timestamps: command.event_timestamps,
    };
    plan_of(store, &asked(&command.feature_service, &command.features)?, columns).await
}

/// How a request is answered. Where no run is in memory yet, the newest is taken there first.
pub(crate) async fn plan_of(store: &OnlineStore, asked: &Asked, columns: OnlineColumns) -> Result<Arc<OnlinePlan>> {
    if store.run() == 0 {
        store.refresh().await?;
    }
    Ok(store.plan(asked, columns)?)
}

/// The keys as columns, with the names and types of the views' keys; behind them the values of the request.
pub(crate) fn keys(columns: &[KeyColumn], plan: &OnlinePlan, rows_max: usize) -> Result<RecordBatch> {
    let expected = plan.keys();
    let rows = columns.iter().map(rows_of).max().unwrap_or(0);
    too_many("keys", rows, rows_max)?;
    let (mut fields, mut arrays): (Vec<Field>, Vec<ArrayRef>) = (Vec::new(), Vec::new());
    for key in expected {
        let is_it = |column: &&KeyColumn| column.name == *key.name() || (column.name.is_empty() && expected.len() == 1);
        let Some(column) = columns.iter().find(is_it) else { return Err(no_key(key.name(), plan)) };
        let array: ArrayRef = match key.data_type() {
            DataType::Int64 if column.integers.len() == rows_of(column) => {
                Arc::new(Int64Array::from(column.integers.clone()))
            }
            DataType::Utf8 if column.texts.len() == rows_of(column) => {
                Arc::new(StringArray::from(column.texts.clone()))
            }
            wanted => {
                let what = if *wanted == DataType::Int64 { "integers" } else { "texts" };
                return Err(ServeError::Request(format!("the keys of `{}` are {what}", key.name())));
            }
        };
        if array.len() != rows {
            return Err(ServeError::Request("the key columns have different lengths".to_owned()));
        }
        fields.push(key.as_ref().clone());
        arrays.push(array);
    }
    for value in plan.request() {
        // One that is not there is told by the plan, with the view that needs it.
        let Some(column) = columns.iter().find(|column| column.name == *value.name()) else { continue };
        let array: ArrayRef = match column {
            KeyColumn { texts, .. } if texts.len() == rows => Arc::new(StringArray::from(texts.clone())),
            KeyColumn { integers, .. } if integers.len() == rows => Arc::new(Int64Array::from(integers.clone())),
            KeyColumn { doubles, .. } if doubles.len() == rows => Arc::new(Float64Array::from(doubles.clone())),
            KeyColumn { booleans, .. } if booleans.len() == rows => Arc::new(BooleanArray::from(booleans.clone())),
            _ => {
                return Err(ServeError::Request(format!(
                    "`{}` has one value for each key, all of one kind: {rows} keys were sent",
                    value.name()
                )));
            }
        };
        fields.push(Field::new(value.name(), array.data_type().clone(), true));
        arrays.push(array);
    }
    if columns.len() > fields.len() {
        let names = key_names(plan);
        return Err(ServeError::Request(format!("there are more key columns than the views have: {names}")));
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// The longest of its kinds of values: a column has one.
fn rows_of(column: &KeyColumn) -> usize {
    let KeyColumn { name: _, texts, integers, doubles, booleans } = column;
    [texts.len(), integers.len(), doubles.len(), booleans.len()].into_iter().max().unwrap_or(0)
}

fn key_names(plan: &OnlinePlan) -> String {
    plan.keys().iter().chain(plan.request()).map(|key| key.name().as_str()).collect::<Vec<_>>().join(", ")
}

fn no_key(name: &str, plan: &OnlinePlan) -> ServeError {
    ServeError::Request(format!("there is no key column `{name}`: the views have {}", key_names(plan)))
}

pub(crate) fn too_many(what: &str, rows: usize, rows_max: usize) -> Result<()> {
    if rows <= rows_max {
        return Ok(());
    }
    Err(ServeError::Request(format!("{rows} {what} were asked for, and may be {rows_max}: ask in parts")))
}

/// What the decoder said, without what was put around it for the join.
pub(crate) fn sent_wrong(error: arrow::error::ArrowError) -> ServeError {
    match error {
        arrow::error::ArrowError::ExternalError(source) => match source.downcast::<ServeError>() {
            Ok(error) => *error,
            Err(source) => ServeError::Arrow(arrow::error::ArrowError::ExternalError(source)),
        },
        other => ServeError::Arrow(other),
    }
}
