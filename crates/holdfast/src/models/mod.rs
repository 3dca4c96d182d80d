//! Models of a pipeline: from the file that says what one is about, over customers as they were, to versions in the lake and scores of customers.
//!
//! ```text
//! models/<name>.toml ──► spec ──► moments ──► snapshots (engine: the same SQL at past moments) ──► leakage
//!                                                 └──► fit ──► registry ──► score ──► risk.<table>
//!                                                                  ├─────► predict, in SQL; rows that are sent (`served`)
//!                                                                  └─────► watch ──► metric.model_quality
//! thresholds.toml ──► model.thresholds, of which risk.churn_alerts makes alerts
//! models/lifetime.toml, about repeat buying ──► the same registry ──► p_alive, expected_purchases, clv, in SQL (`lifetime`)
//! models/sentiment.toml, about texts ──► the same registry ──► sentiment(text), in SQL (`sentiment`)
//! ```
//!
//! What a model is, how it is trained and measured is in `holdfast-models`, which knows no tables; here are the tables.

pub(crate) mod answer;
pub(crate) mod asked_rows;
pub(crate) mod cadence;
pub(crate) mod fit;
pub(crate) mod hybrid;
pub(crate) mod import;
pub(crate) mod kind;
pub(crate) mod leakage;
pub(crate) mod lifetime;
pub(crate) mod moments;
pub(crate) mod predict;
pub(crate) mod reasons;
pub(crate) mod registry;
pub(crate) mod score;
pub(crate) mod sentiment;
pub(crate) mod served;
pub(crate) mod snapshots;
pub(crate) mod spec;
pub(crate) mod thresholds;
pub(crate) mod train;
pub(crate) mod trial;
pub(crate) mod watch;
