//! Rows as JSON, for people who look into single ones, and personal data hidden in them.

use std::collections::BTreeSet;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use datafusion::error::DataFusionError;
use holdfast_types::PII_KEY;
use serde_json::{Map, Value};

/// What stands in the place of personal data.
const MASK: &str = "•••";

/// The columns with personal data.
pub(crate) fn pii_columns(schema: &Schema) -> BTreeSet<String> {
    let is_pii = |field: &&std::sync::Arc<arrow::datatypes::Field>| {
        field.metadata().get(PII_KEY).is_some_and(|value| value == "true")
    };
    schema.fields().iter().filter(is_pii).map(|field| field.name().clone()).collect()
}

/// The row with the values of `hidden` masked; what is null stays so.
pub(crate) fn masked(mut row: Map<String, Value>, hidden: &BTreeSet<String>) -> Map<String, Value> {
    for (_, value) in row.iter_mut().filter(|(name, value)| hidden.contains(*name) && !value.is_null()) {
        *value = Value::String(MASK.to_owned());
    }
    row
}

/// The rows of a batch, each with all of its columns.
///
/// # Errors
/// When a column has a type that JSON cannot tell.
pub(crate) fn json_rows(batch: &RecordBatch) -> Result<Vec<Map<String, Value>>, DataFusionError> {
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let text = writer.into_inner();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&text).map_err(|error| DataFusionError::External(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_masked_and_nulls_are_not() {
        let row: Map<String, Value> = serde_json::from_str(r#"{"id":1,"name":"Wei","mail":null}"#).unwrap();
        let hidden = ["name".to_owned(), "mail".to_owned()].into();
        assert_eq!(serde_json::to_string(&masked(row, &hidden)).unwrap(), r#"{"id":1,"mail":null,"name":"•••"}"#);
    }
}
