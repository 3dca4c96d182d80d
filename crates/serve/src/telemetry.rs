//! Spans and metrics of calls: what was called and how it went, never ids, statements or rows.

use std::time::Instant;

use tracing::{Span, field};

use crate::ServeError;

/// What a call sent, where it sent rows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// A call from its arrival to its end.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: &'static str,
    pub(crate) span: Span,
    began: Instant,
}

impl Call {
    pub(crate) fn begin(method: &'static str) -> Self {
        let span = tracing::info_span!(
            "flight",
            method,
            command = field::Empty,
            table = field::Empty,
            run = field::Empty,
            rows = field::Empty,
            bytes = field::Empty,
            outcome = field::Empty,
        );
        Self { method, span, began: Instant::now() }
    }

    /// Reports the end. `command` is the kind of question, or empty where there is none.
    pub(crate) fn end(&self, command: &'static str, sent: Sent, outcome: &'static str) {
        let (method, seconds) = (self.method, self.began.elapsed().as_secs_f64());
        self.span.record("rows", sent.rows);
        self.span.record("bytes", sent.bytes);
        self.span.record("outcome", outcome);
        let _entered = self.span.enter();
        tracing::info!(
            monotonic_counter.holdfast_flight_rows = sent.rows,
            monotonic_counter.holdfast_flight_bytes = sent.bytes,
            monotonic_counter.holdfast_flight_errors = u64::from(!matches!(outcome, OK | CANCELLED)),
            histogram.holdfast_flight_seconds = seconds,
            method,
            command,
            outcome,
            "call ended"
        );
    }
}

pub(crate) const OK: &str = "ok";
/// The client went away, which is its right.
pub(crate) const CANCELLED: &str = "cancelled";

/// The label of a result.
pub(crate) fn outcome<T>(result: &Result<T, ServeError>) -> &'static str {
    match result {
        Ok(_) => OK,
        Err(error) => error.kind().as_str(),
    }
}
