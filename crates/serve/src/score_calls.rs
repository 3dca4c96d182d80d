//! Rows that a client brings, scored by a model: an exchange that stays open and answers a batch of rows each time.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{FieldRef, Fields, Schema, SchemaRef};
use arrow_flight::FlightData;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use holdfast_engine::Published;
use holdfast_types::ErrorKind;
use tonic::Streaming;

use crate::feature_calls::sent_rows;
use crate::generated::v1::ScoreRows;
use crate::online_calls::{Answers, sent_wrong, too_many};
use crate::row_models::{AskedModel, AskedVersion, RowModel, RowModelError};
use crate::stream::Streams;
use crate::wire::{to_wire, wire_schema};
use crate::{Result, ServeError, ServeSettings};

/// More of them nobody reads.
const REASONS_MAX: u32 = 100;

/// An exchange that has begun.
pub(crate) struct Scoring {
    /// Who answers, `churn@v3`.
    pub(crate) version: String,
    pub(crate) schema: SchemaRef,
    pub(crate) answers: Answers,
}

/// Begins an exchange: the version is found once, what comes behind the command are batches of rows, and each is answered when there is a place to compute.
///
/// # Errors
/// A model that cannot be asked, before its rows are read; columns that do not fit, before any row is.
pub(crate) async fn converse(
    run: &Published,
    command: ScoreRows,
    (first, messages): (FlightData, Streaming<FlightData>),
    settings: &ServeSettings,
    streams: Arc<Streams>,
) -> Result<Scoring> {
    let asked = asked(&command)?;
    let Some(models) = &settings.models else {
        return Err(ServeError::Unsupported(
            "this service knows no models: ask one that `holdfast serve` runs".to_owned(),
        ));
    };
    let model = models.open(run, &asked).await?;
    let (sent, rows) = sent_rows(first, messages).await?;
    let columns = Columns::of(&sent, model.as_ref())?;
    let version = format!("{}@v{}", asked.name, model.version());
    let metadata = HashMap::from([
        ("holdfast.model".to_owned(), asked.name),
        ("holdfast.model_version".to_owned(), model.version().to_string()),
        ("holdfast.run".to_owned(), run.sequence().to_string()),
    ]);
    let schema = Arc::new(Schema::new_with_metadata(columns.answered.clone(), metadata));
    let (wire, rows_max) = (Arc::clone(&schema), settings.max_customer_ids);
    let columns = Arc::new(columns);
    let answers = futures::stream::try_unfold(rows, move |mut rows| {
        let (model, columns, wire) = (Arc::clone(&model), Arc::clone(&columns), Arc::clone(&wire));
        let streams = Arc::clone(&streams);
        async move {
            let Some(batch) = rows.try_next().await.map_err(sent_wrong)? else { return Ok(None) };
            too_many("scores", batch.num_rows(), rows_max)?;
            // It takes the processor like a query, and waits for its turn like one.
            let place = streams.admit().await?;
            let answered = tokio::task::spawn_blocking(move || {
                let _place = place;
                columns.answer(model.as_ref(), &batch, wire)
            });
            let answer = answered.await.unwrap_or_else(|error| Err(failed(&error)))?;
            Ok(Some(((answer, Bytes::new()), rows)))
        }
    });
    Ok(Scoring { version, schema, answers: answers.boxed() })
}

/// What a command asks for.
fn asked(command: &ScoreRows) -> Result<AskedModel> {
    let (name, version) = match command.model.split_once('@') {
        None => (command.model.as_str(), AskedVersion::Champion),
        Some((name, "champion")) => (name, AskedVersion::Champion),
        Some((name, "challenger")) => (name, AskedVersion::Challenger),
        Some((name, version)) => {
            let number = version.strip_prefix('v').and_then(|number| number.parse().ok());
            let Some(number) = number else {
                return Err(ServeError::Request(
                    "a version of a model is its number or its alias, as in `churn@v3`, `churn@champion` or `churn@challenger`"
                        .to_owned(),
                ));
            };
            (name, AskedVersion::Number(number))
        }
    };
    if name.is_empty() {
        return Err(ServeError::Request("name a model, such as `churn`: it is the field `model`".to_owned()));
    }
    if command.reasons > REASONS_MAX {
        return Err(ServeError::Request(format!(
            "{} reasons were asked for, and may be {REASONS_MAX}: the strongest come first",
            command.reasons
        )));
    }
    let reasons = usize::try_from(command.reasons).unwrap_or(usize::MAX);
    Ok(AskedModel { name: name.to_owned(), version, reasons })
}

/// The columns that are sent, and those that are answered.
struct Columns {
    /// As they are sent, in plain types.
    plain: SchemaRef,
    /// The places of those that are no features: they go back as they came.
    kept: Vec<usize>,
    answered: Fields,
}

impl Columns {
    /// # Errors
    /// A name that is there twice, columns that the model cannot read, and names that the answer has itself.
    fn of(sent: &Schema, model: &dyn RowModel) -> Result<Self> {
        let plain = wire_schema(sent);
        let names: Vec<&String> = plain.fields().iter().map(|field| field.name()).collect();
        if let Some((_, twice)) = names.iter().enumerate().find(|(place, name)| names[..*place].contains(name)) {
            return Err(ServeError::Request(format!("two columns are called `{}`: send one of them", cut(twice))));
        }
        model.check(plain.fields())?;
        let told = model.schema();
        let kept: Vec<usize> = (0..names.len()).filter(|place| !model.reads(names[*place])).collect();
        if let Some(taken) = kept.iter().map(|place| names[*place]).find(|name| told.field_with_name(name).is_ok()) {
            return Err(ServeError::Request(format!(
                "the answer has a column `{}` of its own: give yours another name, or leave it out",
                cut(taken)
            )));
        }
        let kept_fields = kept.iter().map(|place| Arc::clone(&plain.fields()[*place]));
        let answered = kept_fields.chain(told.fields().iter().cloned()).collect::<Vec<FieldRef>>();
        Ok(Self { plain, kept, answered: answered.into() })
    }

    /// The answer to a batch of rows.
    fn answer(&self, model: &dyn RowModel, batch: &RecordBatch, schema: SchemaRef) -> Result<RecordBatch> {
        let rows = to_wire(batch, &self.plain)?;
        let told = model.answer(&rows)?;
        let kept = self.kept.iter().map(|place| Arc::clone(rows.column(*place)));
        let columns = kept.chain(told.columns().iter().map(Arc::clone)).collect::<Vec<ArrayRef>>();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
    }
}

/// A name that a client made, as far as it is told back.
fn cut(name: &str) -> String {
    name.chars().take(120).collect()
}

/// The thread that computed has ended early.
fn failed(error: &tokio::task::JoinError) -> ServeError {
    let text = format!("the model failed while it computed: {error}");
    RowModelError { kind: ErrorKind::Bug, text }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_asked_by_name_alias_or_number() {
        let of = |model: &str| asked(&ScoreRows { model: model.to_owned(), reasons: 2 });
        for (model, version) in [
            ("churn", AskedVersion::Champion),
            ("churn@champion", AskedVersion::Champion),
            ("churn@challenger", AskedVersion::Challenger),
            ("churn@v12", AskedVersion::Number(12)),
        ] {
            assert_eq!(of(model).unwrap(), AskedModel { name: "churn".to_owned(), version, reasons: 2 });
        }
        for (model, told) in [
            ("", "name a model"),
            ("@v1", "name a model"),
            ("churn@", "churn@v3"),
            ("churn@3", "churn@v3"),
            ("churn@vx", "churn@challenger"),
        ] {
            let error = of(model).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let many = asked(&ScoreRows { model: "churn".to_owned(), reasons: 101 }).unwrap_err().to_string();
        assert!(many.contains("101 reasons were asked for, and may be 100"), "{many}");
    }
}
