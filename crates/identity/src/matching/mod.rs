//! Records that share no identifier: which of them are so alike that they are one person's.
//!
//! A model of how records of one person differ is learnt once, without examples, and kept. Records that come later are compared with those that are there. How common values are is
//! kept with the model, so the weight of a pair depends on its two records and the model alone, and the pairs found batch by batch are those of all records at once (IDN-1).
//! Values are read from `raw.*` and go nowhere: tables have tokens, keyed hashes and words.

mod config;
mod fit;
mod model;
mod pairs;
mod roster;
mod words;

pub use config::{Attribute, Matching, MatchingSource};
pub(crate) use config::{MatchingText, line_and_column};
pub(crate) use model::guard_of;
pub use pairs::Outgrown;
pub(crate) use pairs::find_matches;
