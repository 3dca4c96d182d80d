//! The lake: Delta tables on an object store, pinned snapshots of them, and the one way to commit.
//!
//! This crate is the only one that builds an object store or commits to Delta. It must not know SQL, stages, sources or
//! what a customer is; it knows tables, versions, files and positions.
//!
//! # The commit rule
//!
//! delta-rs writes transaction identifiers but does not act on them, a conditional PUT that succeeded can come back
//! as an error, and its check for conflicts lets two rewrites of the same files pass. So [`Lake::commit`] is the only way in: it
//! carries a [`Position`], looks at one version, commits as the very next one, and on any error looks again before it answers with
//! a [`CommitOutcome`].

mod cache;
mod changes;
mod commit;
mod compact;
mod documents;
mod drop;
mod environment;
mod error;
mod folder;
mod foreign;
pub mod grammar;
mod head;
mod lake;
mod lease;
mod maintain;
mod manifest;
mod newest;
mod order;
mod probe;
mod profile;
mod provider;
mod replace;
mod schema;
mod statistics;
mod store;
mod table;
mod writer;

pub use changes::TableChanges;
pub use commit::{Change, ChangeKind, CommitOutcome, Position};
pub use compact::{Merge, Rewrite};
pub use environment::{EnvironmentName, NoEnvironmentName};
pub use error::{LakeError, is_missing_file, is_store_failure};
pub use folder::{FolderAddress, TableFolder};
pub use foreign::{FileChange, ForeignCommit, ForeignFile, ForeignTable, ForeignVersion};
pub use head::CommitHead;
pub use lake::{Lake, LakeSettings, TableSpec};
pub use lease::{Fence, Lease, LeaseHolder};
pub use maintain::{KeptRuns, MaintainSettings, TableMaintenance};
pub use manifest::{Manifest, ManifestEntry};
pub use provider::LakeTableProvider;
pub use replace::{Replacement, RowChanges};
pub use schema::{delta_compatible, to_delta_compatible};
pub use store::{ObjectLocation, StoreOptions, describe_store_error, open_store};
pub use table::{DataFile, OWN_FILES, StagedFile, Table};
pub use writer::{TableWriter, WriterSettings};

/// A result of this crate.
pub type Result<T, E = LakeError> = std::result::Result<T, E>;
