//! A seeded generator of a shop's data: twelve kinds of source in the shapes real systems emit, and the truth apart.
//!
//! Every customer lives a latent life: how often and what they buy, what they are willing to pay, how content they
//! are, when they begin to drift away and when they are gone. What the shop's systems record of it goes to
//! `<source>/<month>.<extension>`, to the contracts of the shipped pipeline. A decline of six to ten weeks shows in
//! browsing first, then in answers to campaigns, ratings, baskets and tickets, and last in orders; some leave without
//! one, and some fall silent for weeks and come back.
//!
//! `truth/` holds what no system knows, for tests and measures only: `customers.csv` (who they are and when they were
//! lost), `identifiers.csv` (every identifier in canonical form, with a note on those that people share),
//! `records.csv` (whose a record is; events by their session, and what belongs to an order or a ticket by the order
//! or ticket), `products.csv`
//! (both codes of every product, and what the article list lacks) and `dirty.csv` (file, line and defect of each row that a
//! reader must refuse).
//!
//! A customer follows from the seed and their index alone, so the same options give the same bytes on any number of
//! threads. Customers are generated in shards of at most 16,000, one shard in memory at a time, which keeps memory
//! flat however many there are.
//!
//! This crate must not know the lake, tables, pipelines or anything that reads what it writes; nor the clock or the
//! environment.

mod behaviour;
mod bots;
mod calendar;
mod catalogue;
mod crm;
mod dice;
mod dirt;
mod encode;
mod error;
mod generate;
mod hard_cases;
mod homes;
mod ids;
mod life;
mod loyalty;
mod manifest;
mod marketing;
mod message_text;
mod messages;
mod number;
mod orders;
mod people;
mod rows;
mod service;
#[cfg(test)]
mod tests;
mod text;
mod till;
mod truth;
mod voice;
mod world;
mod write;

pub use error::SynthError;
pub use generate::{GenerateOptions, GenerateProgress, GenerateSummary, SourceSummary, generate};
