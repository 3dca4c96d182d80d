use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::TableReference;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{LogicalPlan, col, lit};
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionContext;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use holdfast_access::{Touched, touched};
use holdfast_engine::{EarlierRuns, Published, PublishedTable, is_large, plan_read_only};
use holdfast_types::{CUSTOMER_ID, TableName};
use tracing::Span;

use crate::features::{self, FeatureLookup};
use crate::parameters::Parameters;
use crate::question::{Question, ScoresAbove, Statement};
use crate::sql_info::sql_info;
use crate::wire::{pieces, to_wire, wire_schema};
use crate::{Result, ServeError, ServeSettings, metadata};

/// The catalog that holds every table of the lake.
pub(crate) const CATALOG: &str = "holdfast";

const SCORES: (&str, &str) = ("risk", "churn_score");
const PROBABILITY: &str = "churn_probability";

/// What a question is asked of.
#[derive(Debug)]
pub(crate) struct View {
    /// The run, as the caller sees it.
    pub(crate) run: Arc<Published>,
    /// What `as_of(…)` reads, as the caller sees it.
    pub(crate) earlier: Arc<dyn EarlierRuns>,
    /// Where tables without a schema are looked for; empty for the default.
    pub(crate) schema: String,
}

impl View {
    /// A session for statements.
    pub(crate) fn session(&self) -> Result<SessionContext> {
        let session = self.run.session_with(Arc::clone(&self.earlier))?;
        if !self.schema.is_empty() {
            let state = session.state_ref();
            state.write().config_mut().options_mut().catalog.default_schema.clone_from(&self.schema);
        }
        Ok(session)
    }
}

/// A question that was planned against one run: its schema is known, its rows are not computed yet.
pub(crate) struct Answer {
    /// What will be sent, exactly.
    pub(crate) schema: SchemaRef,
    /// How many rows, where that is known without running anything.
    pub(crate) rows: Option<u64>,
    /// The size of the files of a whole table. Bytes on the wire are known only once they are computed.
    pub(crate) bytes: Option<u64>,
    /// What it reads, where no plan says so.
    reads: Touched,
    body: Body,
}

/// Rows as they are worked out.
pub(crate) type Rows = BoxStream<'static, Result<RecordBatch>>;

enum Body {
    /// One plan, or the same with other values, one after the other.
    Queries(Vec<DataFrame>),
    Features(Box<FeatureLookup>),
    Ready(RecordBatch),
    Batches(Rows),
}

impl Answer {
    /// Plans the answer. Cancelling it leaves nothing behind.
    pub(crate) async fn plan(
        question: Question,
        view: &View,
        settings: &ServeSettings,
        takes_puts: bool,
    ) -> Result<Self> {
        let run = view.run.as_ref();
        match question {
            Question::Table(name) => {
                let table = published_table(run, &name)?;
                let query = scan(&run.session()?, &name).await?;
                Ok(Self { rows: table.rows, bytes: bytes_of(table), ..Self::query(query) })
            }
            Question::Features(command) => {
                let lookup = features::plan(command, run, settings).await?;
                Ok(Self {
                    schema: Arc::clone(lookup.schema()),
                    rows: Some(lookup.rows()),
                    bytes: None,
                    reads: Touched::default(),
                    body: Body::Features(Box::new(lookup)),
                })
            }
            // Answered from memory, of whatever run is there.
            Question::Online(_) | Question::Dataset(_) => {
                Err(ServeError::Unsupported("what the feature store answers is no part of a run".to_owned()))
            }
            Question::Scores(command) => scores_above(&command, run).await.map(Self::query),
            Question::Statement(asked) => Self::queries(statement(&asked, view, settings).await?),
            Question::Catalogs(command) => Self::ready(metadata::catalogs(command)),
            Question::Schemas(command) => Self::ready(metadata::schemas(command, run)),
            Question::Tables(command) => Self::ready(metadata::tables(command, run)),
            Question::TableTypes(command) => Self::ready(metadata::table_types(command)),
            Question::SqlInfo(command) => Self::ready(sql_info(command, settings, takes_puts, &view.session()?)),
            Question::TypeInfo(command) => Self::ready(metadata::type_info(command)),
            Question::Keys(keys) => Ok(Self::ready_batch(metadata::keys(keys))),
        }
    }

    /// The rows, as batches that fit on the wire, and whether to read them takes much work. Dropping the stream stops the work behind it.
    pub(crate) async fn stream(self, settings: &ServeSettings) -> Result<(Rows, bool)> {
        let (max_rows, max_bytes) = (settings.max_rows_per_batch, settings.max_bytes_per_batch);
        let schema = self.schema;
        let (batches, is_large) = match self.body {
            Body::Queries(mut queries) => match (queries.pop(), queries.is_empty()) {
                (Some(query), true) => one(query).await?,
                (last, _) => (one_by_one(queries.into_iter().chain(last)), true),
            },
            Body::Features(lookup) => (once(lookup.run().await?), false),
            Body::Ready(batch) => (once(batch), false),
            // Of a spine that may have any number of rows.
            Body::Batches(batches) => (batches, true),
        };
        let pieces = batches.map_ok(move |batch| {
            let cut = to_wire(&batch, &schema).map(|batch| pieces(&batch, max_rows, max_bytes));
            futures::stream::iter(match cut {
                Ok(cut) => cut.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(ServeError::from(error))],
            })
        });
        Ok((pieces.try_flatten().boxed(), is_large))
    }

    /// What comes as it is worked out, in the schema that is promised.
    pub(crate) fn batches(schema: SchemaRef, batches: Rows) -> Self {
        Self { schema, rows: None, bytes: None, reads: Touched::default(), body: Body::Batches(batches) }
    }

    fn query(query: DataFrame) -> Self {
        let schema = wire_schema(query.schema().as_arrow());
        Self { schema, rows: None, bytes: None, reads: Touched::default(), body: Body::Queries(vec![query]) }
    }

    /// The rows of all queries, in their order.
    fn queries(queries: Vec<DataFrame>) -> Result<Self> {
        let mut schemas = queries.iter().map(|query| wire_schema(query.schema().as_arrow()));
        let schema = schemas.next().unwrap_or_else(|| Arc::new(Schema::empty()));
        // What may be null is so in the rows of one of them alone.
        let types = |schema: &SchemaRef| -> Vec<DataType> {
            schema.fields().iter().map(|field| field.data_type().clone()).collect()
        };
        if schemas.any(|other| types(&other) != types(&schema)) {
            return Err(ServeError::Request(
                "the columns of the statement have other types for another row of values: cast them".to_owned(),
            ));
        }
        let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let schema = match queries.len() {
            1 => schema,
            _ => Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone())),
        };
        Ok(Self { schema, rows: None, bytes: None, reads: Touched::default(), body: Body::Queries(queries) })
    }

    fn ready(batch: Result<RecordBatch>) -> Result<Self> {
        batch.map(Self::ready_batch)
    }

    pub(crate) fn ready_batch(batch: RecordBatch) -> Self {
        let rows = Some(batch.num_rows() as u64);
        Self { schema: batch.schema(), rows, bytes: None, reads: Touched::default(), body: Body::Ready(batch) }
    }

    /// The same, which reads this.
    pub(crate) fn reading(self, reads: Touched) -> Self {
        Self { reads, ..self }
    }

    /// The tables that it reads, without looking for which columns.
    pub(crate) fn tables(&self) -> Touched {
        let read = match &self.body {
            Body::Queries(queries) => all_of(queries.iter().map(|query| touched(query.logical_plan()))),
            Body::Features(lookup) => touched(lookup.query().logical_plan()),
            Body::Ready(_) | Body::Batches(_) => self.reads.clone(),
        };
        read.tables_alone()
    }

    /// The tables and columns that it reads.
    ///
    /// # Errors
    /// When its plan cannot be made ready to run.
    pub(crate) fn touched(&self) -> Result<Touched> {
        match &self.body {
            Body::Queries(queries) => {
                let optimized = |query: &DataFrame| Ok(touched(&query.clone().into_optimized_plan()?));
                Ok(all_of(queries.iter().map(optimized).collect::<Result<Vec<_>>>()?))
            }
            Body::Features(lookup) => Ok(touched(&lookup.query().clone().into_optimized_plan()?)),
            Body::Ready(_) | Body::Batches(_) => Ok(self.reads.clone()),
        }
    }
}

/// The size of a table's files, where its reader may know how many rows there are.
pub(crate) fn bytes_of(table: &PublishedTable) -> Option<u64> {
    table.rows.map(|_| table.bytes)
}

/// The table as the run published it.
pub(crate) fn published_table<'a>(run: &'a Published, name: &TableName) -> Result<&'a PublishedTable> {
    let Some(table) = run.table(name) else {
        let nearest = nearest(&name.to_string(), run.tables().iter().map(|table| &table.name));
        return Err(ServeError::NoTable { name: name.clone(), nearest: nearest.cloned() });
    };
    // Only a name that exists goes into the span: one that does not could be anything.
    Span::current().record("table", tracing::field::display(name));
    Ok(table)
}

/// The known name that is most like the wanted one, if any is like it at all.
pub(crate) fn nearest<T: ToString>(wanted: &str, known: impl IntoIterator<Item = T>) -> Option<T> {
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(wanted, &name.to_string()), name))
        .filter(|(similarity, _)| *similarity > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

pub(crate) async fn scan(session: &SessionContext, name: &TableName) -> Result<DataFrame> {
    Ok(session.table(TableReference::full(CATALOG, name.schema(), name.table())).await?)
}

/// A statement that is prepared: what it gives, and what it asks for.
pub(crate) struct Prepared {
    pub(crate) schema: SchemaRef,
    pub(crate) parameters: SchemaRef,
    /// The tables that it reads.
    pub(crate) tables: Touched,
}

/// Finds out what a statement gives and asks for.
pub(crate) async fn prepare(sql: &str, view: &View, settings: &ServeSettings) -> Result<Prepared> {
    let (_, plan) = planned(sql, view, settings).await?;
    let (parameters, tables) = (Parameters::of(&plan)?, touched(&plan).tables_alone());
    // Of a parameter that could be of any type the planner may not take what a client is told: then its own guess holds.
    let bound = plan.clone().with_param_values(parameters.nulls()?).unwrap_or(plan);
    Ok(Prepared { schema: wire_schema(bound.schema().as_arrow()), parameters: parameters.schema(), tables })
}

/// Plans a statement that came as text, once for each row of values of its parameters.
async fn statement(asked: &Statement, view: &View, settings: &ServeSettings) -> Result<Vec<DataFrame>> {
    let (session, plan) = planned(&asked.sql, view, settings).await?;
    let parameters = Parameters::of(&plan)?;
    let plans = match &asked.values {
        Some(values) => {
            let bound = |row| Ok(plan.clone().with_param_values(parameters.bound(values, row)?)?);
            (0..values.rows()).map(bound).collect::<Result<Vec<_>>>()?
        }
        None if parameters.count() == 0 => vec![plan],
        None => {
            return Err(ServeError::Request(format!(
                "{} parameters of the statement have no values: prepare it and bind a row of values to it, as drivers do, or \
                 write the values into it",
                parameters.count()
            )));
        }
    };
    Ok(plans.into_iter().map(|plan| DataFrame::new(session.state(), plan)).collect())
}

async fn planned(sql: &str, view: &View, settings: &ServeSettings) -> Result<(SessionContext, LogicalPlan)> {
    if sql.len() > settings.max_statement_bytes {
        let limit = settings.max_statement_bytes;
        return Err(ServeError::Request(format!("the statement has {} bytes, and may have {limit}", sql.len())));
    }
    let session = view.session()?;
    let plan = plan_read_only(&session, sql).await?;
    Ok((session, plan))
}

async fn scores_above(command: &ScoresAbove, run: &Published) -> Result<DataFrame> {
    // Not a number fails both comparisons.
    if !(0.0..=1.0).contains(&command.threshold) {
        return Err(ServeError::Request(format!("threshold is {}, and may be 0 to 1", command.threshold)));
    }
    let name = TableName::new(SCORES.0, SCORES.1).map_err(|error| ServeError::Request(error.to_string()))?;
    let table = published_table(run, &name)?;
    for column in [PROBABILITY, CUSTOMER_ID] {
        if table.schema.field_with_name(column).is_err() {
            return Err(ServeError::Request(format!("{name} has no column `{column}`, which this command needs")));
        }
    }
    let scores = scan(&run.session()?, &name)
        .await?
        .filter(col(PROBABILITY).gt_eq(lit(command.threshold)))?
        .sort(vec![col(PROBABILITY).sort(false, false), col(CUSTOMER_ID).sort(true, false)])?;
    match usize::try_from(command.limit) {
        Ok(0) | Err(_) => Ok(scores),
        Ok(limit) => Ok(scores.limit(0, Some(limit))?),
    }
}

/// Runs when it is read, where it is read.
async fn one(query: DataFrame) -> Result<(Rows, bool)> {
    let context = Arc::new(query.task_ctx());
    let plan = query.create_physical_plan().await?;
    let is_large = is_large(plan.as_ref());
    let begun = async move { Ok::<_, ServeError>(execute_stream(plan, context)?.map_err(ServeError::from)) };
    Ok((futures::stream::once(begun).try_flatten().boxed(), is_large))
}

/// Runs one when the one before it has ended.
fn one_by_one(queries: impl Iterator<Item = DataFrame> + Send + 'static) -> Rows {
    let begun = futures::stream::iter(queries)
        .then(async |query: DataFrame| Ok::<_, ServeError>(query.execute_stream().await?.map_err(ServeError::from)));
    begun.try_flatten().boxed()
}

fn all_of(read: impl IntoIterator<Item = Touched>) -> Touched {
    let mut all = Touched::default();
    for Touched { tables, columns } in read {
        all.tables.extend(tables);
        all.columns.extend(columns);
    }
    all
}

fn once(batch: RecordBatch) -> Rows {
    futures::stream::once(std::future::ready(Ok(batch))).boxed()
}
