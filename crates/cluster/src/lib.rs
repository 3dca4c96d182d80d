//! Stages on a Ballista cluster: the driver's side, and the two programs a cluster consists of.
//!
//! A run's process is the *driver*: it plans a stage's query over pinned versions, leaves out files, freezes time, and hands the physical plan to the *scheduler*
//! ([`serve_scheduler`]), which cuts it into tasks for *executors* ([`serve_executor`]). They read Parquet files from the object store with credentials of their own,
//! keep what goes from task to task on their disks, write the files of the result, and tell the driver what is in them; it commits them. Where they do not write, they
//! hold the rows until the driver fetches those. [`ClusterExecutor`] is the driver's side, behind the engine's [`holdfast_engine::Executor`].
//!
//! This crate knows Ballista and how plans travel; it must not know stages, tables, commits, how files are written or what a function means.
//!
//! ```text
//! driver ── plan ──► scheduler ── tasks ──► executors ◄── Parquet ──► object store
//!    ▲                                        │  ▲
//!    └──── what is in files, or rows ─────────┘  └─ between each other: shuffled rows
//! ```

mod address;
mod codec;
mod driver;
mod error;
mod executor;
mod job;
mod options;
mod probe;
mod scheduler;
mod slots;
mod stores;
mod travel;

pub use address::Address;
pub use driver::{ClusterExecutor, ClusterSettings};
pub use error::ClusterError;
pub use executor::{ExecutorSettings, serve_executor};
pub use scheduler::{SchedulerSettings, serve_scheduler};

/// A result of this crate.
pub type Result<T, E = ClusterError> = std::result::Result<T, E>;
