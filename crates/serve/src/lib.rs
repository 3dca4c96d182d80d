//! The service: features, scores, tables and SQL over Arrow Flight, on one port.
//!
//! [`serve`] answers three kinds of question with the same few steps (understand it, pin a run, plan, stream):
//!
//! - feature calls, protobuf commands from `proto/holdfast/v1/flight.proto`; features as of the moments of a spine are an exchange,
//!   features from memory are answered without a plan; rows that a client brings are scored by the models that are handed in;
//! - whole tables, by the path `["schema", "table"]`;
//! - Flight SQL: statements, prepared statements and their parameters, and the metadata that drivers ask for.
//!
//! All of it is read-only, but for one module: where the operator allows it, [`Puts`] takes record batches for sources, and
//! acknowledges them when they are durable. Every answer comes from one published run: `GetFlightInfo` puts the run's sequence into the
//! ticket and `DoGet` reads that run, even when a newer one was published in between. A new run is picked up in the
//! background and swapped in whole. Tickets and prepared statements hold all that they need, under a seal of the lake's: the
//! service keeps nothing between calls, and whichever replica is asked can answer.
//!
//! The Flight SQL layer of arrow-flight is not used on the server side: its blanket implementation answers `GetSchema`
//! and `ListFlights` with "unimplemented" and lists actions that are not offered. Its messages and metadata builders are.
//!
//! This crate must not know where the lake is, how a run is made, or the environment; it is handed a
//! [`LakeReader`](holdfast_engine::LakeReader), [`RowModels`] and a listener. Nothing but `put` may know ingestion.

mod actions;
mod answer;
mod audited;
mod connections;
mod dataset_calls;
mod error;
mod feature_calls;
mod feature_rights;
mod features;
#[expect(unreachable_pub, reason = "generated from proto/, and checked against it by a test")]
mod generated {
    pub mod v1 {
        include!("generated/holdfast.v1.rs");
    }
}
mod handshake;
mod http;
mod json;
mod metadata;
mod online_calls;
mod parameters;
mod put;
mod question;
mod rights;
mod row_models;
mod runs;
mod score_calls;
mod seal;
mod server;
mod service;
mod session;
mod settings;
mod sql_info;
mod stream;
mod telemetry;
mod token;
mod wire;

pub use error::ServeError;
pub use generated::v1::{
    CreateDataset, GetDataset, GetHistoricalFeatures, GetOnlineFeatures, KeyColumn, ScoreRows, StatusColumns,
};
pub use put::{PutSettings, Puts};
pub use question::{CommandMessage, FeaturesForCustomers, ScoresAbove};
pub use row_models::{AskedModel, AskedVersion, RowModel, RowModelError, RowModels};
pub use server::{bind, bind_as, serve, serve_with_http};
pub use settings::{ServeSettings, Tls};
pub use token::Token;

/// A result of this crate.
pub type Result<T, E = ServeError> = std::result::Result<T, E>;
