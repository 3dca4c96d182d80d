//! Identity: from the identifiers that records carry to customers with stable ids.
//!
//! A record with several identifiers is evidence that they belong to one person. [`resolve`] collects that evidence from `raw.*` into `identity.edges`
//! (each batch once), joins identifiers into customers, and keeps `identity.identifiers`, `identity.customers` and `identity.history`. Matching is exact, on
//! normalised values; what is stored are keyed hashes, never the values.
//!
//! This crate must not know files, formats or stages: it is handed raw tables and SQL expressions for their identifiers.

mod error;
mod graph;
mod identifier;
mod resolve;
mod rules;
mod tables;

pub use error::IdentityError;
pub use graph::{Cluster, Edge, Member, cluster};
pub use identifier::{IdentifierTokens, IdentityKey, normalise};
pub use resolve::{IdentitySource, ResolveReport, resolve};
pub use rules::{IdentityRules, TypeRule};
pub use tables::declared_tables;

/// A result of this crate.
pub type Result<T, E = IdentityError> = std::result::Result<T, E>;
