//! The promises of point-in-time reads, over random histories against a naive implementation, and one situation after the other.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod bad_input;
mod counting;
mod files;
mod oracle;
mod random;
mod situations;
mod world;
