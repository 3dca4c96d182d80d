//! Features as they were known at a moment: keeps the history of views in sorted files and joins a spine with it.
//!
//! [`write_changes`] adds what a version of a view brought, at a cost that grows with the changes alone; [`compact`] merges files and keeps their order.
//! [`point_in_time`] joins the rows of a spine (a key and a moment T each) with what any number of views had for the key at T:
//!
//! ```text
//!  spine, any order ──► bucket, sort ─┐                                    ┌──► the spine's order, with features
//!                                     ├──► merge, a bucket a worker ──► by place
//!  history: files by bucket, sorted ──┘    nothing of it is sorted again
//! ```
//!
//! The contract (which rows count, how ties are broken, what nulls mean) is at [`point_in_time`] and in `docs/point_in_time.md`.
//!
//! This crate must not know lakes, tables, SQL or the clock: it is handed an object store and lists of files, and does not care who keeps the lists.

mod answer;
mod compact;
mod error;
mod history;
mod keys;
mod lookup;
mod merge;
mod moment;
mod open;
mod order;
mod point_in_time;
mod request;
mod spine;
mod status;
mod write;

pub use compact::compact;
pub use error::FeatureError;
pub use history::{DELETED, EVENT_TIMESTAMP, History, HistoryFile, HistorySchema, KNOWN_AT, VERSION};
pub use moment::Zoneless;
pub use open::read_history_file;
pub use point_in_time::{FeatureStream, point_in_time};
pub use request::{FeatureView, Options, StatusColumns, event_timestamp_column, feature_column, status_column_of};
pub use status::{Status, status_column, status_type, status_words};
pub use write::{Changes, WriteSettings, write_changes};

/// A result of this crate.
pub type Result<T, E = FeatureError> = std::result::Result<T, E>;
