//! Files in, rows out: what arrived stands once in `raw.<source>`, what was refused in `quarantine.<source>`.
//!
//! A source is described by a contract ([`SourceSpec`], one TOML file) and read by [`ingest_source`]. This crate ends at
//! `raw`, `quarantine` and its own books in `metric`; it must not know stages, customers or what the rows mean.
//!
//! # How a record gets in once
//!
//! ```text
//! list ─► hash ─► read, stage ─► plan ─► quarantine ─► raw ─► batch record
//!                 (invisible)    └───── four commits, each at position `batch` ─────┘
//! ```
//!
//! The plan (`metric.ingest_files`) says durably which files are which batch, so a worker that dies between any two
//! commits is followed by one that does exactly the same batch again, and the commit rule of the lake lets each commit
//! happen once. Rows are staged before the plan: of a file that cannot be read nothing is stored. It is recorded in
//! `metric.ingest_refused_files` and left alone until it or its contract changes; the files beside it go on.
//!
//! Records that came by another way than files lie in an [`Inbox`] in the lake, and take the same way from there: [`follow`]
//! brings them to `raw` as they come.
//!
//! Memory is bounded by blocks in flight, not by the size of a file or the number of files.

mod batch;
mod block;
mod books;
mod column;
mod delimited;
mod discover;
mod error;
mod facts;
mod follow;
mod inbox;
mod ingest;
mod json;
mod ledger;
mod origin;
mod parquet_rows;
mod places;
mod put;
mod quality;
mod quarantine;
mod reader;
mod refusal;
mod refused;
mod replay;
mod report;
mod reread;
mod settings;
mod spec;
mod sweep;
mod unknown;
mod value;

use holdfast_lake::grammar;

pub use error::IngestError;
pub use follow::{FollowSettings, follow};
pub use inbox::{Inbox, InboxReader, Look};
pub use ingest::{ingest_inbox, ingest_source};
pub use ledger::ledger_tables;
pub use origin::{FeedSpec, FileGlob, Origin};
pub use put::{PutInbox, PutLayout, PutStream, Stored};
pub use quality::{Alert, AlertRule, QualityRules, Severity};
pub use quarantine::{
    QuarantineFilter, QuarantineGroup, QuarantinedRow, list_quarantine, newest_replay, quarantined_rows,
};
pub use reader::SourceReader;
pub use refused::RefusedFile;
pub use replay::{KeptRows, ReplayReport, ReplaySettings, ReplayStep, replay_quarantine};
pub use report::SourceReport;
pub use settings::{IngestSettings, IngestStep};
pub use spec::{ColumnSpec, Compression, Discovery, EpochUnit, FileFormat, IdentifierSpec, SourceSpec, load_sources};
pub use sweep::{SweepSettings, Swept, sweep_inbox};

/// A result of this crate.
pub type Result<T, E = IngestError> = std::result::Result<T, E>;
