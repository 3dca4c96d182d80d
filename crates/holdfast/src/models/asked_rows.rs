//! Rows that a version is asked about, in SQL and by clients of the service: whether it can be asked, and its features among their columns.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StructArray, new_null_array};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use holdfast_lake::grammar::suggest;
use holdfast_models::{Feature, FeatureKind};

use super::registry::{Loaded, Version};
use crate::error::CliError;

impl Loaded {
    /// Whether rows of these columns can be asked about by `asker`, a function or a call.
    ///
    /// # Errors
    /// As of [`Loaded::check_steps`]; all features that are missing or of another kind, in words.
    pub(crate) fn check_row(&self, columns: &Fields, asker: &str) -> Result<(), String> {
        self.check_steps(asker)?;
        let problems = problems(self.model.signature().features(), columns);
        if problems.is_empty() {
            return Ok(());
        }
        let Version { model, version, feature_stage, .. } = &self.version;
        let problems = problems.join(", ");
        Err(format!(
            "the row does not fit version {version} of `{model}`: {problems}; it asks for the columns of {feature_stage}"
        ))
    }

    /// Whether a row holds all that it is told of somebody.
    ///
    /// # Errors
    /// Of a hybrid, what to use instead.
    pub(crate) fn check_steps(&self, asker: &str) -> Result<(), String> {
        if self.sequence.is_none() {
            return Ok(());
        }
        let Version { model, version, .. } = &self.version;
        Err(format!(
            "version {version} of `{model}` is also told what customers did step by step ({}), which no row holds: {asker} cannot ask it; `holdfast score --model {model}` does, for {}, or promote a version without",
            self.steps().map_or_else(String::new, |steps| steps.stage.to_string()),
            self.spec.file.scores.table.get_ref()
        ))
    }

    /// The features of rows that fit, in the order of the model.
    pub(crate) fn features_of(&self, rows: &StructArray) -> Result<RecordBatch, CliError> {
        let features = self.model.signature().features();
        let mut fields = Vec::with_capacity(features.len());
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(features.len());
        for feature in features {
            let column = rows.column_by_name(&feature.name);
            // A column of nothing but null has no type: values are missing.
            let column = match column.filter(|column| *column.data_type() != DataType::Null) {
                Some(column) => Arc::clone(column),
                None => new_null_array(if is_text(feature) { &DataType::Utf8 } else { &DataType::Float32 }, rows.len()),
            };
            fields.push(Field::new(&feature.name, column.data_type().clone(), true));
            columns.push(column);
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}

/// What a row lacks that a model asks for, in words.
fn problems(features: &[Feature], row: &Fields) -> Vec<String> {
    let names: Vec<&str> = row.iter().map(|field| field.name().as_str()).collect();
    let problem = |feature: &Feature| {
        let Some((_, field)) = row.find(&feature.name) else {
            let near = suggest(&feature.name, &names).map_or_else(String::new, |near| format!(" (there is `{near}`)"));
            return Some(format!("`{}` is missing{near}", feature.name));
        };
        let kind = field.data_type();
        let fits = match is_text(feature) {
            true => matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null),
            false => kind.is_numeric() || matches!(kind, DataType::Boolean | DataType::Null),
        };
        let wanted = if is_text(feature) { "text" } else { "a number" };
        (!fits).then(|| format!("`{}` is {kind} where {wanted} is needed", feature.name))
    };
    features.iter().filter_map(problem).collect()
}

fn is_text(feature: &Feature) -> bool {
    matches!(feature.kind, FeatureKind::Category(_))
}
