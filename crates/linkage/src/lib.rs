//! Record linkage: which records of one or two sets speak of the same person, how sure that is, and why.
//!
//! [`LinkageModel::fit`] learns from the records alone, without examples, how much each agreement and disagreement weighs; [`LinkageModel::score`]
//! gives every pair worth looking at its weight. Everything is seeded and repeatable to the bit, whatever the
//! number of threads.
//!
//! This crate must not know lakes, SQL or files: it is handed columns of strings and gives back edges.

pub mod matching;
pub mod normal;

pub use matching::*;
