use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use futures::TryStreamExt;
use holdfast_engine::{EngineError, LakeReader, plan_read_only};
use tracing::Instrument;

use super::print;
use crate::error::CliError;
use crate::models::predict::Champions;
use crate::project::Project;

/// Query the lake
#[derive(Debug, clap::Args)]
pub(crate) struct SqlArgs {
    /// The query; - reads it from standard input
    query: String,
    /// How to print the rows
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Read the newest published run, as the service does, instead of the newest version of every table
    #[arg(long)]
    published: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Csv,
    Json,
}

pub(crate) async fn run(project: &Project, args: &SqlArgs) -> Result<(), CliError> {
    let span = tracing::info_span!("query", rows = tracing::field::Empty);
    let ended = async {
        let began = Instant::now();
        let rows = query(project, args).await?;
        tracing::Span::current().record("rows", rows);
        tracing::info!(
            monotonic_counter.holdfast_query_rows = rows,
            histogram.holdfast_query_seconds = began.elapsed().as_secs_f64(),
            "query answered"
        );
        Ok(())
    };
    ended.instrument(span).await
}

/// Prints the answer; gives the number of its rows.
async fn query(project: &Project, args: &SqlArgs) -> Result<u64, CliError> {
    let query = if args.query == "-" {
        std::io::read_to_string(std::io::stdin())
            .map_err(|error| CliError::Argument(format!("cannot read the query from standard input: {error}")))?
    } else {
        args.query.clone()
    };
    let lake = project.open_lake().await?;
    let settings = match Champions::may_be_asked_by(&query) {
        true => project.asking_settings(&lake),
        false => project.reader_settings(),
    };
    let session = if args.published {
        LakeReader::open(lake, settings).await?.current().session()?
    } else {
        LakeReader::newest(&lake, &settings).await?.session()?
    };
    let failed =
        |source| CliError::Engine(EngineError::Execution { what: "the query".to_owned(), source: Box::new(source) });
    let plan = plan_read_only(&session, &query).await?;
    let frame = session.execute_logical_plan(plan).await.map_err(failed)?;
    let schema = std::sync::Arc::clone(frame.schema().inner());
    let mut rows = frame.execute_stream().await.map_err(failed)?;
    let count = |batches: &[RecordBatch]| batches.iter().map(|batch| batch.num_rows() as u64).sum();
    match args.output {
        Output::Table => {
            let mut batches: Vec<RecordBatch> = rows.try_collect().await.map_err(failed)?;
            if batches.is_empty() {
                batches.push(RecordBatch::new_empty(schema));
            }
            let table = pretty_format_batches(&batches).map_err(|error| failed(error.into()))?;
            print(&format!("{table}\n"))?;
            Ok(count(&batches))
        }
        Output::Csv => {
            let mut header = true;
            let mut sent = 0;
            while let Some(batch) = rows.try_next().await.map_err(failed)? {
                let mut text = Vec::new();
                arrow::csv::WriterBuilder::new()
                    .with_header(std::mem::take(&mut header))
                    .build(&mut text)
                    .write(&batch)
                    .map_err(|error| failed(error.into()))?;
                print(&String::from_utf8_lossy(&text))?;
                sent += batch.num_rows() as u64;
            }
            if header {
                let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                print(&format!("{}\n", names.join(",")))?;
            }
            Ok(sent)
        }
        Output::Json => {
            let batches: Vec<RecordBatch> = rows.try_collect().await.map_err(failed)?;
            let mut writer = arrow::json::WriterBuilder::new()
                .with_explicit_nulls(true)
                .build::<_, arrow::json::writer::JsonArray>(Vec::new());
            writer.write_batches(&batches.iter().collect::<Vec<_>>()).map_err(|error| failed(error.into()))?;
            writer.finish().map_err(|error| failed(error.into()))?;
            let text = String::from_utf8_lossy(&writer.into_inner()).into_owned();
            print(&format!("{}\n", if text.is_empty() { "[]" } else { &text }))?;
            Ok(count(&batches))
        }
    }
}
