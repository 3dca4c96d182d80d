//! Who may come in, what they may see, and what they did.
//!
//! [`Policy`] says which tables, rows and columns a role sees; [`Access::view`] puts it below everything that a principal's plan does, so that no
//! protocol can go around it. [`Users`] are known by passwords, tokens and certificates, or by the tokens of an issuer. [`Audit`] writes down each access.
//!
//! ```text
//! password, token, certificate ──► Access ──► Principal ──► view of a run: GuardedTable = filter, then masks ──► any protocol
//!                        policy.toml ──┘                        limits ──┘                       audit.accesses ◄──┘
//! ```
//!
//! This crate must not know a protocol, the environment or where files are: paths, the clock and the lake are handed in. It builds no session itself:
//! that is the engine's.

mod access;
mod audit;
mod connections;
mod earlier;
mod error;
mod guarded;
mod jwt;
mod limits;
mod masks;
mod password;
mod policy;
mod principal;
mod session;
pub mod trial;
mod tries;
mod users;

pub use access::{AUDIT_CLOSES_WITHIN, Access, AccessSettings};
pub use audit::{
    Audit, AuditEntry, AuditKey, AuditReport, BrokenLink, Touched, query_hash, table_name as audit_table, touched,
    verify as verify_audit,
};
pub use connections::{ConnectionLimits, ConnectionsFull, OpenConnection};
pub use earlier::SeenRuns;
pub use error::AccessError;
pub use limits::Running;
pub use masks::MaskKey;
pub use password::{ScramVerifier, check_password, made_secret};
pub use policy::{
    BoundFilter, ColumnAccess, Limits, Mask, Policy, PolicyCase, PolicyExpectation, Rows, TableAccess, Width,
};
pub use principal::{Authentication, Principal};
pub use users::{Listed, NewPrincipal, Users, certificate_hash};

/// A result of this crate.
pub type Result<T, E = AccessError> = std::result::Result<T, E>;
