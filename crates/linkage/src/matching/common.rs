//! What was common when a model was learnt. A pair whose weight takes that from the model, and not from the records that happen to be there, weighs the same whenever it is looked at.

use super::blocking::Candidates;
use super::compare::Comparator;
use super::error::LinkageError;
use super::model::{LinkageModel, Threads};
use super::records::Records;
use super::spec::Comparison;

/// How common values and keys were when the model was learnt.
pub trait Common: std::fmt::Debug + Sync {
    /// What an exact agreement on a value weighs more or less than one on average, in bits.
    fn term_bits(&self, column: &str, value: &str) -> f64;

    /// Whether records with this key of a blocking rule were so many that the rule gives no pairs of them.
    fn is_common(&self, rule: usize, key: &str) -> bool;

    /// Whether any key is common.
    fn has_common_keys(&self) -> bool;
}

/// A value of a column with the records that have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// The column.
    pub column: String,
    /// The normalised value.
    pub value: String,
    /// How many records have it.
    pub records: u32,
    /// What an exact agreement on it weighs more or less than one on average, in bits.
    pub bits: f64,
}

impl LinkageModel {
    /// The values of these records that at least so many have, of each column whose agreements weigh by how rare a value is: the most common first, at most `most` a column.
    ///
    /// # Errors
    /// [`LinkageError::Column`] when the records lack a column of the model.
    pub fn terms(&self, records: &Records, records_min: u32, most: usize) -> Result<Vec<Term>, LinkageError> {
        let comparisons: Vec<Comparison> = self.comparisons.iter().map(|one| one.comparison.clone()).collect();
        let comparator = Comparator::new(records, &comparisons)?;
        let mut terms = Vec::new();
        for compiled in comparator.comparisons.iter().filter(|compiled| !compiled.term_bits.is_empty()) {
            let column = compiled.column;
            let mut codes: Vec<usize> =
                (0..column.values.len()).filter(|&code| column.counts[code] >= records_min).collect();
            codes.sort_unstable_by(|&one, &two| {
                (column.counts[two].cmp(&column.counts[one])).then_with(|| column.values[one].cmp(&column.values[two]))
            });
            terms.extend(codes.into_iter().take(most).map(|code| Term {
                column: column.name.clone(),
                value: column.values[code].clone(),
                records: column.counts[code],
                bits: compiled.term_bits[code],
            }));
        }
        Ok(terms)
    }

    /// The keys that more pairs of these records share than the model looks at, each with the number of its rule.
    ///
    /// # Errors
    /// As [`LinkageModel::terms`].
    pub fn common_keys(&self, records: &Records, workers: Threads) -> Result<Vec<(usize, String)>, LinkageError> {
        Ok(Candidates::new(records, &self.blocking, self.block_pairs_max, None, workers.workers())?.common_keys)
    }
}
