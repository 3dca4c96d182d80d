//! PostgreSQL's wire protocol over the lake: what psql, drivers and BI tools speak.
//!
//! [`serve`] gives every connection a session of its own over one published run, which it keeps until it asks for another, so that
//! the numbers that a person sees agree with each other. It takes queries in the simple and the extended protocol, cursors,
//! `copy … to stdout`, settings and the queries of the system catalog that tools begin with. Everything is read-only.
//!
//! ```text
//! bytes ──► message ──► statement ──► rewrite ──► plan (read-only) ──► rows ──► encode ──► bytes
//!            frames      split, kind    PostgreSQL's   engine            a batch   text, binary,
//!            checked                    dialect                          at a time csv
//! ```
//!
//! Who may come in, and what they see, is not decided here: a [`Gate`] knows users and opens their sessions.
//!
//! The frames are read here and not by a crate: every length is checked before anything is allocated, rows are written from Arrow
//! columns straight into the connection's buffer, and the connection is watched while a query runs, so that who leaves is noticed.
//!
//! This crate must not know where the lake is, how a run is made, the environment or the policy.

mod catalog;
mod connection;
mod encode;
mod error;
mod gate;
mod io;
mod message;
mod parameter;
mod plan;
mod portal;
mod rewrite;
mod scram;
mod server;
mod session;
mod settings;
mod simplify;
mod statement;
mod tls;
mod types;

pub use error::PgWireError;
pub use gate::{AskedPlan, Counted, Gate, GateError, Notes, Told, Watched};
pub use scram::Verifier;
pub use server::{bind, serve};
pub use settings::PgSettings;
pub use tls::TlsIdentity;

/// A result of this crate.
pub type Result<T, E = PgWireError> = std::result::Result<T, E>;
