//! A model of repeat buying: fitted to who bought when and for how much, kept in the registry of all models, asked by `p_alive`, `expected_purchases` and `clv` in SQL.
//!
//! ```text
//! models/lifetime.toml ──► spec ──► train (days with a purchase; the last weeks judge) ──► registry ──► p_alive(…), in SQL
//! ```

pub(crate) mod function;
pub(crate) mod spec;
pub(crate) mod stored;
pub(crate) mod train;

/// The name of the model that the functions ask.
pub(crate) const LIFETIME: &str = "lifetime";
