//! Features for customer ids: one row for each id that was asked for, in that order.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, UInt64Array, new_null_array};
use arrow::compute::{cast, concat_batches, take};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{col, ident, lit};
use futures::StreamExt;
use holdfast_engine::{Published, PublishedTable};
use holdfast_types::{CUSTOMER_BUCKET, CUSTOMER_ID, TableName};

use crate::answer::{nearest, published_table, scan};
use crate::question::FeaturesForCustomers;
use crate::wire::{to_wire, wire_schema};
use crate::{Result, ServeError, ServeSettings};

/// The column that says whether the customer was found.
const STATUS: &str = "status";
const PRESENT: &str = "PRESENT";
const NOT_FOUND: &str = "NOT_FOUND";

/// With more ids than this, nearly every bucket is among theirs, and naming the buckets only makes the plan longer.
const PRUNED_IDS_MAX: usize = 32;

/// A planned look-up.
pub(crate) struct FeatureLookup {
    feature_view: TableName,
    customer_ids: Vec<String>,
    /// `customer_id` first, then the features; the customers that were asked for, in any order.
    query: DataFrame,
    schema: SchemaRef,
}

pub(crate) async fn plan(
    command: FeaturesForCustomers,
    run: &Published,
    settings: &ServeSettings,
) -> Result<FeatureLookup> {
    let feature_view: TableName = command
        .feature_view
        .parse()
        .map_err(|error: holdfast_types::InvalidTableName| ServeError::Request(format!("feature_view: {error}")))?;
    let asked = command.customer_ids.len();
    if asked > settings.max_customer_ids {
        let limit = settings.max_customer_ids;
        return Err(ServeError::Request(format!(
            "{asked} customer ids were asked for, and may be {limit}: ask in parts"
        )));
    }
    let table = published_table(run, &feature_view)?;
    let features = choose(command.features, table)?;

    let mut wanted: Vec<&String> = command.customer_ids.iter().collect();
    wanted.sort_unstable();
    wanted.dedup();
    let session = run.session()?;
    let mut condition = col(CUSTOMER_ID).in_list(wanted.iter().copied().map(lit).collect(), false);
    if wanted.len() <= PRUNED_IDS_MAX
        && table.schema.field_with_name(CUSTOMER_BUCKET).is_ok()
        && let Ok(bucket_of) = session.udf(CUSTOMER_BUCKET)
    {
        let buckets = wanted.iter().map(|id| bucket_of.call(vec![lit(id.as_str())])).collect();
        condition = condition.and(col(CUSTOMER_BUCKET).in_list(buckets, false));
    }
    let columns = std::iter::once(CUSTOMER_ID).chain(features.iter().map(String::as_str)).map(ident);
    let query = scan(&session, &feature_view).await?.filter(condition)?.select(columns.collect::<Vec<_>>())?;

    let schema = answer_schema(&wire_schema(query.schema().as_arrow()));
    Ok(FeatureLookup { feature_view, customer_ids: command.customer_ids, query, schema })
}

impl FeatureLookup {
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What is asked of the feature view.
    pub(crate) fn query(&self) -> &DataFrame {
        &self.query
    }

    pub(crate) fn rows(&self) -> u64 {
        self.customer_ids.len() as u64
    }

    /// Runs the look-up. Memory holds no more rows than customers that were asked for.
    pub(crate) async fn run(self) -> Result<RecordBatch> {
        let found_schema = wire_schema(self.query.schema().as_arrow());
        let mut stream = self.query.execute_stream().await?;
        let mut batches = Vec::new();
        let mut row_of: HashMap<String, u64> = HashMap::with_capacity(self.customer_ids.len());
        let mut rows = 0_u64;
        while let Some(batch) = stream.next().await {
            let batch = to_wire(&batch?, &found_schema)?;
            let ids = cast(batch.column(0), &DataType::Utf8)?;
            for id in ids.as_any().downcast_ref::<StringArray>().into_iter().flatten().flatten() {
                if row_of.insert(id.to_owned(), rows).is_some() {
                    return Err(ServeError::NotKeyed(self.feature_view));
                }
                rows += 1;
            }
            batches.push(batch);
        }
        let found = concat_batches(&found_schema, &batches)?;

        let rows: UInt64Array = self.customer_ids.iter().map(|id| row_of.get(id).copied()).collect();
        let status: StringArray =
            rows.iter().map(|row| Some(if row.is_some() { PRESENT } else { NOT_FOUND })).collect();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        columns.push(Arc::new(StringArray::from(self.customer_ids)));
        for feature in found.columns().iter().skip(1) {
            columns.push(if found.num_rows() == 0 {
                new_null_array(feature.data_type(), rows.len())
            } else {
                take(feature, &rows, None)?
            });
        }
        columns.push(Arc::new(status));
        Ok(RecordBatch::try_new(self.schema, columns)?)
    }
}

/// The features to answer with, checked against the feature view.
fn choose(asked: Vec<String>, view: &PublishedTable) -> Result<Vec<String>> {
    let name = &view.name;
    if view.schema.field_with_name(CUSTOMER_ID).is_err() {
        return Err(ServeError::Request(format!("{name} has no column `{CUSTOMER_ID}`, so it is not a feature view")));
    }
    let known: Vec<&String> = view
        .schema
        .fields()
        .iter()
        .map(|field| field.name())
        .filter(|column| ![CUSTOMER_ID, CUSTOMER_BUCKET].contains(&column.as_str()))
        .collect();
    let chosen = if asked.is_empty() { known.iter().map(|column| (*column).clone()).collect() } else { asked };
    for (at, feature) in chosen.iter().enumerate() {
        if !known.contains(&feature) {
            let hint = nearest(feature, known.iter().copied())
                .map_or_else(String::new, |column| format!(", did you mean `{column}`?"));
            let feature: String = feature.chars().take(128).collect();
            return Err(ServeError::Request(format!("{name} has no feature `{feature}`{hint}")));
        }
        if feature == STATUS {
            return Err(ServeError::Request(format!(
                "{name} has a column `{STATUS}`, the name under which the answer says whether a customer was found: \
                 rename it in the feature view, or ask for other features"
            )));
        }
        if chosen.iter().take(at).any(|earlier| earlier == feature) {
            return Err(ServeError::Request(format!("feature `{feature}` is asked for twice")));
        }
    }
    Ok(chosen)
}

fn answer_schema(found: &Schema) -> SchemaRef {
    let mut fields = vec![Field::new(CUSTOMER_ID, DataType::Utf8, false)];
    // A customer that is not found has null features, whatever the view says of its own rows.
    fields.extend(found.fields().iter().skip(1).map(|field| field.as_ref().clone().with_nullable(true)));
    fields.push(Field::new(STATUS, DataType::Utf8, false));
    Arc::new(Schema::new(Fields::from(fields)))
}
