//! Events pushed over HTTP: acknowledged once they are durable, in `raw` a moment later.
//!
//! [`collect`] takes messages of the [Segment spec] and [CloudEvents], gathers those that arrive within a moment, writes
//! them as one object into the source's [`holdfast_ingest::Inbox`] and only then answers. Behind it an
//! [`holdfast_ingest::InboxReader`] brings the objects into `raw.<source>`. This crate knows HTTP and messages; it must not
//! know tables, commits or what a message's fields mean to a business.
//!
//! ```text
//! request ─► key, limits ─► messages ─► queue ─► group ─► one object ─► 200
//!                                       (429)             (503)  └──► InboxReader ─► raw.<source>
//! ```
//!
//! [Segment spec]: https://segment.com/docs/connections/spec/
//! [CloudEvents]: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md

mod body;
mod cloudevents;
mod error;
mod json;
mod keys;
mod message;
mod refusal;
mod seen;
mod segment;
mod server;
mod settings;
mod writer;

pub use error::CollectError;
pub use keys::{Access, WriteKey, WriteKeys};
pub use server::{bind, collect};
pub use settings::CollectSettings;

/// A result of this crate.
pub type Result<T, E = CollectError> = std::result::Result<T, E>;
