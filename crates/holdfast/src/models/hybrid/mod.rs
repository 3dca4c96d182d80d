//! Trees that are also told what a sequence model makes of a customer's weeks: what `[sequence]` in a model's file asks for.
//!
//! ```text
//! [sequence] stage ──► histories (the same SQL at past moments) ──► LSTM, out of fold ──► a column of the trees ──► beside the plain trees
//!                                                                                     the version scores with it only where it wins
//! ```

pub(crate) mod history;
pub(crate) mod scored;
pub(crate) mod spec;
pub(crate) mod stored;
pub(crate) mod tried;
