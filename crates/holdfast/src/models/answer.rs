//! What a version says of customers: for the table of scores, for `predict` in SQL and for rows that are sent by the same code, so that all say the same.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use holdfast_models::Matrix;
use holdfast_models::hybrid::SEQUENCE_FEATURE;
use holdfast_types::COMMENT_KEY;

use super::fit::widened;
use super::reasons::{HowMany, Reasons, Words};
use super::registry::Loaded;
use crate::error::CliError;

/// What the trees say of rows, and what the calibrator makes of it.
#[derive(Debug)]
pub(crate) struct Probabilities {
    /// As the trees have it.
    pub(crate) raw: Vec<f64>,
    /// Calibrated: of customers with 0.7, seven in ten churn.
    pub(crate) calibrated: Vec<f64>,
}

impl Loaded {
    /// The rows of a batch whose columns are the features, all and in order.
    ///
    /// # Errors
    /// Columns that do not fit, and infinite values, with feature and row.
    pub(crate) fn rows(&self, features: &RecordBatch) -> Result<Matrix, CliError> {
        Ok(self.model.signature().matrix(features)?)
    }

    /// A probability for each row.
    ///
    /// # Errors
    /// A probability that is none: trees or a calibrator that say so of finite features are damaged, whatever their hashes say.
    pub(crate) fn probabilities(&self, rows: &Matrix) -> Result<Probabilities, CliError> {
        let raw = self.model.probabilities(rows)?;
        let calibrated = self.calibrator.probabilities(&widened(self.model.margins(rows)?));
        if let Some(row) = first_that_is_none(&raw).or_else(|| first_that_is_none(&calibrated)) {
            return Err(CliError::ModelDamaged(format!(
                "version {} of `{}` says of row {} of {} something that is no probability: nothing of it is kept; roll back with `holdfast models rollback {}`, or train again",
                self.version.version,
                self.version.model,
                row + 1,
                rows.rows(),
                self.version.model
            )));
        }
        Ok(Probabilities { raw, calibrated })
    }

    /// What each feature is called: as the model's file says, else by the comment of its column in the table of features, where it is known.
    pub(crate) fn words(&self, features: Option<&SchemaRef>) -> Words {
        let said = self.spec.file.reasons.iter().map(|(name, words)| (name.get_ref().clone(), words.clone()));
        let fields = features.into_iter().flat_map(|schema| schema.fields());
        let comments =
            fields.filter_map(|field| Some((field.name().clone(), field.metadata().get(COMMENT_KEY)?.clone())));
        let mut comments: BTreeMap<String, String> = comments.collect();
        if self.sequence.is_some() {
            comments.insert(SEQUENCE_FEATURE.to_owned(), "Probability by the order of what happened".to_owned());
        }
        Words::of(self.model.signature(), &said.collect(), &comments)
    }

    /// The band of a calibrated probability, by the bounds of the model's file.
    pub(crate) fn band(&self, probability: f64) -> &'static str {
        let bands = self.spec.bands();
        match probability {
            p if p >= bands.high => "high",
            p if p >= bands.medium => "medium",
            _ => "low",
        }
    }

    /// The reasons for each row, strongest first.
    ///
    /// # Errors
    /// What the model's library refuses.
    pub(crate) fn reasons(&self, rows: &Matrix, words: &Words, most: HowMany) -> Result<Vec<Reasons>, CliError> {
        let contributions = self.model.contributions(rows)?;
        let width = rows.columns();
        let each = rows.values().chunks_exact(width).zip(contributions.chunks_exact(width + 1));
        Ok(each.map(|(values, contributions)| words.reasons(values, &contributions[..width], most)).collect())
    }
}

/// The first row whose value is no number from 0 to 1.
fn first_that_is_none(values: &[f64]) -> Option<usize> {
    values.iter().position(|value| !(0.0..=1.0).contains(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_probability_is_found_where_it_stands() {
        assert_eq!(first_that_is_none(&[0.0, 0.3, 1.0]), None);
        assert_eq!(first_that_is_none(&[0.3, f64::NAN, 2.0]), Some(1));
        assert_eq!(first_that_is_none(&[f64::INFINITY]), Some(0));
    }
}
