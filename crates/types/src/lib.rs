//! The words of Holdfast as types: names, error kinds, promises, clocks and progress.
//!
//! Every other crate depends on this one. It must not know a file, a store, a table format or an engine: no I/O, no
//! async, no Arrow.

mod calendar;
mod clock;
mod error;
mod name;
mod progress;
mod promise;

pub use calendar::civil;
pub use clock::{Clock, FixedClock};
pub use error::ErrorKind;
pub use name::{InvalidTableName, TableName};
pub use progress::{NoProgress, Progress};
pub use promise::{BrokenPromise, Promise};

/// The column that partitions every customer-keyed table: a small hash of `customer_id`.
pub const CUSTOMER_BUCKET: &str = "customer_bucket";

/// The key of every customer-keyed table.
pub const CUSTOMER_ID: &str = "customer_id";

/// The key in a column's metadata that marks personal data. Its value is `true`.
pub const PII_KEY: &str = "pii";

/// The key in a column's metadata that holds its documentation, as Delta readers know it.
pub const COMMENT_KEY: &str = "comment";

/// The key in the metadata of a column that the rows of every file are sorted by. Its value is the column's place in that order, from 1.
pub const SORTED_KEY: &str = "sorted";
