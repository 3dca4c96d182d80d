//! Records from systems that keep them in an order of their own: a Kafka topic, tables of PostgreSQL, another Delta table.
//!
//! A [`Feed`] is read from where the lake stands; what it gives is written into the source's [`holdfast_ingest::Inbox`] as
//! objects that form a chain, and acknowledged to the other side only then. Behind it an [`holdfast_ingest::InboxReader`]
//! brings the objects to `raw.<source>`. This crate knows feeds and positions; it must not know tables, commits or what a
//! record means.
//!
//! ```text
//! partition ─► next ─► chunk ─► one object, on the condition that it is not there ─► acknowledge
//!    ▲                                │                                   └──► InboxReader ─► raw.<source>
//!    └── opened behind the end of ────┘
//!        the last object
//! ```
//!
//! # How a record gets in once
//!
//! An object is named by the position that its records come *behind*, and says at its head where they *end*; the next object
//! is named by that. Objects are created conditionally, so of two workers that read the same records one stores them, and the
//! other reads how far the first has come and goes on there. There is no other state: a worker that starts looks at the last
//! object. A lease keeps workers off each other's partitions, to save work; nothing depends on it.

mod delta;
mod error;
mod feed;
mod kafka;
mod kinds;
mod login;
mod object;
mod postgres;
mod reader;
mod record;
mod row;
mod settings;
mod worker;
mod writer;

pub use error::FeedError;
pub use feed::{Chunk, ChunkLimits, Feed, FeedPartition, FeedPosition};
pub use kinds::{Surroundings, Variables, open_feed};
pub use postgres::PostgresError;
pub use settings::FeedSettings;
pub use worker::{ReadEnd, follow_feed, read_feed};

/// A result of this crate.
pub type Result<T, E = FeedError> = std::result::Result<T, E>;
