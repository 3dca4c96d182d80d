//! A model of texts: trained from texts of the lake that somebody's stars or marks label, kept in the registry of all models, asked by `sentiment(text)` in SQL.
//!
//! ```text
//! models/sentiment.toml ──► spec ──► train (texts of a table; the newest judge) ──► registry ──► sentiment(text), in SQL
//! ```
//!
//! No weights come with the program: what the model knows it has from the lake's own texts.

pub(crate) mod function;
pub(crate) mod spec;
pub(crate) mod stored;
pub(crate) mod train;

/// The name of the model that `sentiment(text)` asks, and of the function.
pub(crate) const SENTIMENT: &str = "sentiment";
