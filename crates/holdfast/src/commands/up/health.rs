use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use chrono::{DateTime, Utc};
use holdfast_engine::LakeReader;
use holdfast_types::{Clock, ErrorKind};
use serde::Serialize;
use tokio::net::TcpListener;

use super::super::scheduled::Scheduler;
use super::supervise::{Board, PartHealth};
use crate::clock::SystemClock;
use crate::error::CliError;

/// The port on which health is told: `GET /health` answers 200 when all parts run, 503 when one waits to be started again. There is nothing about customers in it.
pub(super) struct Health {
    pub(super) address: SocketAddr,
    listener: TcpListener,
}

/// What is told.
#[derive(Debug, Serialize)]
struct Report {
    healthy: bool,
    parts: BTreeMap<&'static str, PartHealth>,
    /// The run that readers see; 0 before the first.
    run: u64,
    /// What `now()` was in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    as_of: Option<DateTime<Utc>>,
    /// When stages ran last in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_run_at: Option<DateTime<Utc>>,
    /// What the last run failed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_run_error: Option<ErrorKind>,
    /// The next time of the calendar, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_time: Option<DateTime<Utc>>,
}

#[derive(Clone)]
struct Told {
    board: Arc<Board>,
    scheduler: Arc<Scheduler>,
    reader: Arc<LakeReader>,
}

impl Health {
    /// Takes the port.
    ///
    /// # Errors
    /// An address that is wrong or taken.
    pub(super) async fn bind(address: &str) -> Result<Self, CliError> {
        let failed =
            |error| CliError::Argument(format!("cannot tell health on {address}: {error}; see `health` below [up]"));
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self { address: listener.local_addr().map_err(failed)?, listener })
    }

    /// Answers until it is dropped; what ends it before is an error.
    pub(super) async fn serve(self, board: Arc<Board>, scheduler: Arc<Scheduler>, reader: Arc<LakeReader>) -> CliError {
        let router = Router::new().route("/health", get(health)).with_state(Told { board, scheduler, reader });
        match axum::serve(self.listener, router).await {
            Ok(()) => CliError::PartEnded("what tells health ended by itself".to_owned()),
            Err(error) => CliError::Output(error),
        }
    }
}

async fn health(State(told): State<Told>) -> impl IntoResponse {
    let (parts, run, last) = (told.board.all(), told.reader.current(), told.scheduler.last_run());
    let healthy = parts.values().all(|part| part.running);
    let report = Report {
        healthy,
        parts,
        run: run.sequence(),
        as_of: (run.sequence() > 0).then(|| run.as_of()),
        last_run_at: last.began_at,
        last_run_error: last.failed,
        next_time: told.scheduler.schedule().time_after(SystemClock.now()),
    };
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_string_pretty(&report).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}
