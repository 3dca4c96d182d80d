//! What tests of several crates need: stores that fail, die, or let others be quicker, on purpose, and numbers to choose when.
//!
//! For tests only. It must not know tables or commits: it sees paths and calls.

mod faults;
mod interleaved;
mod random;
mod rule;

pub use faults::{Call, Failure, Fault, FaultStore, Moment, StoreFault};
pub use interleaved::InterleavedStore;
pub use random::Random;
pub use rule::{Operation, Rule};
