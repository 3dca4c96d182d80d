use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float64Array, RecordBatch, UInt8Array, UInt32Array};
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;

use super::compare::level_of;

/// A pair of records and what speaks for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edge {
    /// The row of the left record, or the smaller row.
    pub left: u32,
    /// The row of the right record, in two sets counted on from the left one.
    pub right: u32,
    /// The logarithm to base 2 of the odds that it is one person.
    pub weight: f64,
    /// Four bits for each comparison, the first lowest: 0 for a missing value, then the levels from 1.
    pub levels: u64,
}

impl Edge {
    /// The probability that it is one person.
    pub fn probability(&self) -> f64 {
        probability(self.weight)
    }

    /// The level of a comparison: 0 for a missing value, then the levels from 1, the last one that none holds.
    pub fn level(&self, comparison: usize) -> u8 {
        level_of(self.levels, comparison)
    }
}

/// The probability of odds given as their logarithm to base 2.
pub fn probability(weight: f64) -> f64 {
    1.0 / (1.0 + (-weight).exp2())
}

/// The logarithm to base 2 of the odds of a probability.
pub fn weight_of(probability: f64) -> f64 {
    (probability / (1.0 - probability)).log2()
}

/// Edges as columns: `left` and `right` (rows), `weight` (bits), `probability`, and `levels`, a list with the level of each of so many comparisons.
///
/// # Errors
/// [`ArrowError`] when there are more comparisons than Arrow can count.
pub fn edge_batch(edges: &[Edge], comparisons: usize) -> Result<RecordBatch, ArrowError> {
    let size = i32::try_from(comparisons).map_err(|error| ArrowError::InvalidArgumentError(error.to_string()))?;
    let levels = edges.iter().flat_map(|edge| (0..comparisons).map(|at| edge.level(at)));
    let levels = UInt8Array::from_iter_values(levels);
    let field = Arc::new(Field::new("level", DataType::UInt8, false));
    let levels = FixedSizeListArray::try_new(field, size, Arc::new(levels), None)?;
    let rows = |row: fn(&Edge) -> u32| Arc::new(UInt32Array::from_iter_values(edges.iter().map(row))) as ArrayRef;
    let numbers =
        |number: fn(&Edge) -> f64| Arc::new(Float64Array::from_iter_values(edges.iter().map(number))) as ArrayRef;
    RecordBatch::try_from_iter([
        ("left", rows(|edge| edge.left)),
        ("right", rows(|edge| edge.right)),
        ("weight", numbers(|edge| edge.weight)),
        ("probability", numbers(Edge::probability)),
        ("levels", Arc::new(levels) as ArrayRef),
    ])
}
