//! Parameters of prepared statements: which a statement has, and the rows of values that a client binds to them. Values go into the plan as values, and never into
//! the text.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow_flight::FlightData;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::expr::{Cast, TryCast};
use datafusion::logical_expr::{Expr, LogicalPlan};
use futures::TryStreamExt;
use tonic::Streaming;

use crate::feature_calls::sent_rows;
use crate::wire::wire_schema;
use crate::{Result, ServeError};

/// A statement with more asks for them in another way, such as a join with a table.
const PARAMETERS_MAX: usize = 1_000;
/// The statement runs once for each.
const ROWS_MAX: usize = 1_000;

/// Rows of values, one at least. Never shown: they are a customer's.
#[derive(Clone, PartialEq)]
pub(crate) struct Values(RecordBatch);

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Values(hidden)")
    }
}

impl Values {
    /// The rows that a client sends behind `first`.
    ///
    /// # Errors
    /// [`ServeError::Request`] when there is none, or there are too many; the size is for [`Values::encode`] to check.
    pub(crate) async fn sent(first: FlightData, messages: Streaming<FlightData>) -> Result<Self> {
        let (_, mut rows) = sent_rows(first, messages).await?;
        let (mut batches, mut count): (Vec<RecordBatch>, usize) = (Vec::new(), 0);
        while let Some(batch) = rows.try_next().await.map_err(unsendable)? {
            count += batch.num_rows();
            if count > ROWS_MAX {
                return Err(ServeError::Request(format!(
                    "more than {ROWS_MAX} rows of values came, each of which the statement would run for: bind fewer at once"
                )));
            }
            batches.push(batch);
        }
        match batches.first() {
            Some(first) if count > 0 => Ok(Self(concat_batches(&first.schema(), &batches)?)),
            _ => Err(ServeError::Request(
                "no values came: bind a record batch with a row, a column for each parameter".to_owned(),
            )),
        }
    }

    /// How often the statement runs.
    pub(crate) fn rows(&self) -> usize {
        self.0.num_rows()
    }

    /// What [`Values::decode`] reads.
    ///
    /// # Errors
    /// [`ServeError::Request`] when it is longer than `bytes_max`.
    pub(crate) fn encode(&self, bytes_max: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut writer = StreamWriter::try_new(&mut bytes, &self.0.schema())?;
        writer.write(&self.0)?;
        writer.finish()?;
        drop(writer);
        if bytes.len() > bytes_max {
            let sent = bytes.len();
            return Err(ServeError::Request(format!("the values have {sent} bytes, and may have {bytes_max}")));
        }
        Ok(bytes)
    }

    /// The rows in bytes that were sealed.
    ///
    /// # Errors
    /// When they hold none, which is a mistake of ours.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let rows = StreamReader::try_new(bytes, None)?.next().transpose()?;
        rows.map(Self)
            .ok_or_else(|| ServeError::Arrow(ArrowError::IpcError("the rows of values are not there".to_owned())))
    }
}

/// What a client sent is not read, and says so itself.
fn unsendable(error: ArrowError) -> ServeError {
    match error {
        ArrowError::ExternalError(source) => match source.downcast::<ServeError>() {
            Ok(own) => *own,
            Err(other) => ServeError::Request(format!("the values cannot be read: {other}")),
        },
        other => ServeError::Request(format!("the values cannot be read: {other}")),
    }
}

/// The parameters of a plan, in the order in which values are bound to them, with the types that the planner found.
#[derive(Debug)]
pub(crate) enum Parameters {
    /// `$1`, `$2` …: by their place.
    Numbered(Vec<Option<DataType>>),
    /// `$name`: by their names, in alphabetical order.
    Named(BTreeMap<String, Option<DataType>>),
}

impl Parameters {
    /// # Errors
    /// [`ServeError::Request`] when there are too many, or both numbers and names.
    pub(crate) fn of(plan: &LogicalPlan) -> Result<Self> {
        let found = found(plan)?;
        let numbers: Vec<Option<usize>> = found.keys().map(|id| id.strip_prefix('$')?.parse().ok()).collect();
        let count = numbers.iter().flatten().copied().max().unwrap_or(0).max(found.len());
        if count > PARAMETERS_MAX {
            return Err(ServeError::Request(format!(
                "the statement has {count} parameters, and may have {PARAMETERS_MAX}"
            )));
        }
        if numbers.iter().all(Option::is_some) {
            let mut types = vec![None; count];
            for (number, data_type) in numbers.into_iter().flatten().zip(found.into_values()) {
                // The planner refuses a zeroth.
                types[number - 1] = data_type;
            }
            return Ok(Self::Numbered(types));
        }
        if numbers.iter().any(Option::is_some) {
            return Err(ServeError::Request(
                "the statement has parameters with numbers and with names: write all in one way".to_owned(),
            ));
        }
        Ok(Self::Named(
            found.into_iter().map(|(id, data_type)| (id.trim_start_matches('$').to_owned(), data_type)).collect(),
        ))
    }

    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Numbered(types) => types.len(),
            Self::Named(types) => types.len(),
        }
    }

    /// What a client is told: a column for each, of text where the planner takes any type.
    pub(crate) fn schema(&self) -> SchemaRef {
        let field = |(name, data_type): (String, &Option<DataType>)| {
            Field::new(name, data_type.clone().unwrap_or(DataType::Utf8), true)
        };
        let fields: Vec<Field> = match self {
            Self::Numbered(types) => (1..).map(|number: usize| format!("${number}")).zip(types).map(field).collect(),
            Self::Named(types) => types.iter().map(|(name, data_type)| (name.clone(), data_type)).map(field).collect(),
        };
        wire_schema(&Schema::new(fields))
    }

    /// A null for each, of the type that a client is told.
    ///
    /// # Errors
    /// When a type has no null, which no type of a parameter is.
    pub(crate) fn nulls(&self) -> Result<ParamValues> {
        let schema = self.schema();
        let null = |field: &Arc<Field>| Ok::<_, ServeError>(ScalarValue::try_from(field.data_type())?);
        let nulls = schema.fields().iter().map(null).collect::<Result<Vec<_>>>()?;
        Ok(self.in_order(nulls))
    }

    /// The values of a row as they came, so that they mean what they would mean as literals: a fraction that is compared with an integer is not cut.
    ///
    /// # Errors
    /// [`ServeError::Request`] when they are not one for each parameter.
    pub(crate) fn bound(&self, values: &Values, row: usize) -> Result<ParamValues> {
        let (values, wanted) = (&values.0, self.schema());
        if values.num_columns() != self.count() {
            return Err(ServeError::Request(format!(
                "the statement has {} parameters, and {} values are bound to it",
                self.count(),
                values.num_columns()
            )));
        }
        let column_of = |place: usize, name: &str| {
            match self {
            Self::Numbered(_) => Ok(values.column(place)),
            Self::Named(_) => values.column_by_name(name).ok_or_else(|| {
                ServeError::Request(format!(
                    "no value is bound to the parameter ${name}: the columns of values are named as the parameters are, \
                     such as `{name}`"
                ))
            }),
        }
        };
        let value = |(place, parameter): (usize, &Arc<Field>)| {
            let column = column_of(place, parameter.name())?;
            // A null of no type is one of the parameter's.
            Ok::<_, ServeError>(match column.data_type() {
                DataType::Null => ScalarValue::try_from(parameter.data_type())?,
                _ => ScalarValue::try_from_array(column, row)?,
            })
        };
        let values = wanted.fields().iter().enumerate().map(value).collect::<Result<Vec<_>>>()?;
        Ok(self.in_order(values))
    }

    fn in_order(&self, values: Vec<ScalarValue>) -> ParamValues {
        match self {
            Self::Numbered(_) => ParamValues::from(values),
            Self::Named(types) => ParamValues::from(types.keys().cloned().zip(values).collect::<Vec<_>>()),
        }
    }
}

/// Each placeholder of the plan, with its type where the plan tells.
fn found(plan: &LogicalPlan) -> Result<BTreeMap<String, Option<DataType>>> {
    let mut found: BTreeMap<String, Option<DataType>> = BTreeMap::new();
    plan.apply_with_subqueries(|node| {
        // The planner does not say that a limit is a number, nor that what is cast is best sent as what it is cast to.
        let of_limit = matches!(node, LogicalPlan::Limit(_)).then_some(DataType::Int64);
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                let (inner, data_type) = match expr {
                    Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field }) => {
                        (expr.as_ref(), Some(field.data_type().clone()))
                    }
                    expr => (expr, of_limit.clone()),
                };
                if let Expr::Placeholder(placeholder) = inner {
                    let inferred = placeholder.field.as_ref().map(|field| field.data_type().clone());
                    let known = found.entry(placeholder.id.clone()).or_default();
                    *known = known.take().or(inferred).or(data_type);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(found)
}
