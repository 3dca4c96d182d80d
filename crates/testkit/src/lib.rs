//! What tests of several crates need: stores and an S3 server that fail, die, or let others be quicker, on purpose, and numbers to choose when.
//!
//! For tests only. It must not know tables or commits: it sees paths and calls.

mod faults;
mod interleaved;
mod random;
mod rule;
mod s3;

pub use faults::{Call, Failure, Fault, FaultStore, Moment, StoreFault};
pub use interleaved::InterleavedStore;
pub use random::Random;
pub use rule::{Operation, Rule};
pub use s3::{Asked, Conditions, S3Fault, S3Server, S3Settings};
