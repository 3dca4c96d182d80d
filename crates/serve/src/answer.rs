use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::TableReference;
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::SessionContext;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use holdfast_access::{Touched, touched};
use holdfast_engine::{Published, PublishedTable, plan_read_only};
use holdfast_types::{CUSTOMER_ID, TableName};
use tracing::Span;

use crate::features::{self, FeatureLookup};
use crate::question::{Question, ScoresAbove};
use crate::wire::{pieces, to_wire, wire_schema};
use crate::{Result, ServeError, ServeSettings, metadata};

/// The catalog that holds every table of the lake.
pub(crate) const CATALOG: &str = "holdfast";

const SCORES: (&str, &str) = ("risk", "churn_score");
const PROBABILITY: &str = "churn_probability";

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

enum Body {
    Query(Box<DataFrame>),
    Features(Box<FeatureLookup>),
    Ready(RecordBatch),
    Batches(BoxStream<'static, Result<RecordBatch>>),
}

impl Answer {
    /// Plans the answer. Cancelling it leaves nothing behind.
    pub(crate) async fn plan(
        question: Question,
        run: &Published,
        settings: &ServeSettings,
        takes_puts: bool,
    ) -> Result<Self> {
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
            Question::Online(_) => Err(ServeError::Unsupported("online features are no part of a run".to_owned())),
            Question::Scores(command) => scores_above(&command, run).await.map(Self::query),
            Question::Statement(sql) => statement(&sql, run, settings).await.map(Self::query),
            Question::Catalogs(command) => Self::ready(metadata::catalogs(command)),
            Question::Schemas(command) => Self::ready(metadata::schemas(command, run)),
            Question::Tables(command) => Self::ready(metadata::tables(command, run)),
            Question::TableTypes(command) => Self::ready(metadata::table_types(command)),
            Question::SqlInfo(command) => Self::ready(metadata::sql_info(command, takes_puts)),
            Question::TypeInfo(command) => Self::ready(metadata::type_info(command)),
            Question::Keys(keys) => Ok(Self::ready_batch(metadata::keys(keys))),
        }
    }

    /// The rows, as batches that fit on the wire. Dropping the stream stops the work behind it.
    pub(crate) async fn stream(self, settings: &ServeSettings) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let (max_rows, max_bytes) = (settings.max_rows_per_batch, settings.max_bytes_per_batch);
        let schema = self.schema;
        let batches = match self.body {
            Body::Query(query) => query.execute_stream().await?.map_err(ServeError::from).boxed(),
            Body::Features(lookup) => once(lookup.run().await?),
            Body::Ready(batch) => once(batch),
            Body::Batches(batches) => batches,
        };
        let pieces = batches.map_ok(move |batch| {
            let cut = to_wire(&batch, &schema).map(|batch| pieces(&batch, max_rows, max_bytes));
            futures::stream::iter(match cut {
                Ok(cut) => cut.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(ServeError::from(error))],
            })
        });
        Ok(pieces.try_flatten().boxed())
    }

    /// What comes as it is worked out, in the schema that is promised.
    pub(crate) fn batches(schema: SchemaRef, batches: BoxStream<'static, Result<RecordBatch>>) -> Self {
        Self { schema, rows: None, bytes: None, reads: Touched::default(), body: Body::Batches(batches) }
    }

    fn query(query: DataFrame) -> Self {
        let schema = wire_schema(query.schema().as_arrow());
        Self { schema, rows: None, bytes: None, reads: Touched::default(), body: Body::Query(Box::new(query)) }
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

    /// The tables and columns that it reads.
    ///
    /// # Errors
    /// When its plan cannot be made ready to run.
    pub(crate) fn touched(&self) -> Result<Touched> {
        match &self.body {
            Body::Query(query) => Ok(touched(&query.clone().into_optimized_plan()?)),
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

/// Plans a statement that came as text.
pub(crate) async fn statement(sql: &str, run: &Published, settings: &ServeSettings) -> Result<DataFrame> {
    if sql.len() > settings.max_statement_bytes {
        let limit = settings.max_statement_bytes;
        return Err(ServeError::Request(format!("the statement has {} bytes, and may have {limit}", sql.len())));
    }
    let session = run.session()?;
    let plan = plan_read_only(&session, sql).await?;
    if !plan.get_parameter_names()?.is_empty() {
        return Err(ServeError::Unsupported(
            "statements with parameters are not offered: write the values into the statement".to_owned(),
        ));
    }
    Ok(DataFrame::new(session.state(), plan))
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

fn once(batch: RecordBatch) -> BoxStream<'static, Result<RecordBatch>> {
    futures::stream::once(std::future::ready(Ok(batch))).boxed()
}
