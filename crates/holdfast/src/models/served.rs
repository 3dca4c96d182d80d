//! Rows that clients of the service send: answered by the versions of the lake's models, with the words of the table of scores.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use async_trait::async_trait;
use holdfast_engine::Published;
use holdfast_serve::{AskedModel, RowModel, RowModelError, RowModels};
use holdfast_types::ErrorKind;

use super::answer::Probabilities;
use super::predict::{Champion, Champions};
use super::reasons::{HowMany, Reasons};
use crate::error::CliError;

/// As it is called where it is refused.
const ASKER: &str = "ScoreRows";

#[async_trait]
impl RowModels for Champions {
    async fn open(&self, run: &Published, asked: &AskedModel) -> Result<Arc<dyn RowModel>, RowModelError> {
        let by = self.asked(run, &asked.name, asked.version).await.map_err(refused)?;
        by.loaded.check_steps(ASKER).map_err(unfit)?;
        Ok(Arc::new(Answering { by, reasons: asked.reasons }))
    }
}

/// A version that answers rows.
#[derive(Debug)]
struct Answering {
    by: Champion,
    reasons: usize,
}

impl Answering {
    fn told(&self, rows: &RecordBatch) -> Result<RecordBatch, CliError> {
        let loaded = &self.by.loaded;
        if rows.num_rows() == 0 {
            return Ok(RecordBatch::new_empty(self.schema()));
        }
        let matrix = loaded.rows(&loaded.features_of(&StructArray::from(rows.clone()))?)?;
        let Probabilities { raw, calibrated } = loaded.probabilities(&matrix)?;
        let bands = StringArray::from_iter_values(calibrated.iter().map(|probability| loaded.band(*probability)));
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(Float64Array::from(calibrated)), Arc::new(Float64Array::from(raw)), Arc::new(bands)];
        if self.reasons > 0 {
            let most = HowMany { raises: self.reasons, lowers: self.reasons };
            let reasons = loaded.reasons(&matrix, &self.by.words, most)?;
            columns.push(lists(reasons.iter().map(|reasons: &Reasons| &reasons.raises)));
            columns.push(lists(reasons.iter().map(|reasons: &Reasons| &reasons.lowers)));
        }
        Ok(RecordBatch::try_new(self.schema(), columns)?)
    }
}

impl RowModel for Answering {
    fn version(&self) -> i32 {
        self.by.loaded.version.version
    }

    fn reads(&self, column: &str) -> bool {
        self.by.loaded.features().any(|feature| feature == column)
    }

    fn check(&self, columns: &Fields) -> Result<(), RowModelError> {
        self.by.loaded.check_row(columns, ASKER).map_err(unfit)
    }

    fn schema(&self) -> SchemaRef {
        let mut fields = vec![
            Field::new("probability", DataType::Float64, false),
            Field::new("probability_raw", DataType::Float64, false),
            Field::new("band", DataType::Utf8, false),
        ];
        if self.reasons > 0 {
            let texts = DataType::new_list(DataType::Utf8, true);
            fields.push(Field::new("raises", texts.clone(), false));
            fields.push(Field::new("lowers", texts, false));
        }
        Arc::new(Schema::new(fields))
    }

    fn answer(&self, rows: &RecordBatch) -> Result<RecordBatch, RowModelError> {
        self.told(rows).map_err(refused)
    }
}

fn lists<'a>(rows: impl Iterator<Item = &'a Vec<String>>) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for texts in rows {
        lists.append_value(texts.iter().map(Some));
    }
    Arc::new(lists.finish())
}

fn refused(error: CliError) -> RowModelError {
    RowModelError { kind: error.kind(), text: error.to_string() }
}

fn unfit(text: String) -> RowModelError {
    RowModelError { kind: ErrorKind::InvalidInput, text }
}
