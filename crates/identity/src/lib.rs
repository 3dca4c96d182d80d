//! Identity: from the identifiers that records carry to customers with stable ids.
//!
//! A record with several identifiers is evidence that they belong to one person. A [`Resolver`] collects that evidence from `raw.*` into `identity.edges`
//! (each batch once), adds what people have decided, joins identifiers into customers by the rules of the pipeline, and keeps `identity.identifiers`, `identity.customers` and
//! `identity.history`. One that is kept reads only what is new the next time. What is stored are keyed hashes, never the values. The
//! graph itself is in `holdfast-graph`, the comparison of records that share no identifier in `holdfast-linkage`.
//!
//! This crate must not know files, formats or stages: it is handed raw tables and SQL expressions for their identifiers.

mod customer;
mod decisions;
mod error;
mod evidence;
mod identifier;
mod inquiry;
mod key;
mod known;
mod matching;
mod resolve;
mod review;
mod rules;
mod tables;
mod written;

pub use customer::{CustomerId, NoCustomerId};
pub use decisions::{Decision, DecisionKind, Identifier, decisions, newest_decision};
pub use error::IdentityError;
pub use evidence::IdentitySource;
pub use identifier::{IdentifierTokens, Reading, normalise};
pub use inquiry::{
    Effect, Effects, Explained, ExplainedStep, GuardLine, HistoryLine, Inquiry, LargestCustomer, Quality, Shown,
    ShownIdentifier, SizeClass, Subject, TypeQuality, Wish,
};
pub use key::{IdentityKey, LakeKey};
pub use matching::{Attribute, Matching, MatchingSource, Outgrown};
pub use resolve::{ResolveReport, Resolver};
pub use review::ReviewPair;
pub use rules::{Blocked, IdentityRules, TypeRule};
pub use tables::declared_tables;

/// A result of this crate.
pub type Result<T, E = IdentityError> = std::result::Result<T, E>;
