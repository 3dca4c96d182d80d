use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::inbox::{InboxReader, Look};
use crate::report::SourceReport;

/// The longest pause after rounds that failed.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How an inbox is followed.
#[derive(Debug, Clone, Copy)]
pub struct FollowSettings {
    /// How often new objects are brought into `raw`.
    pub interval: Duration,
    /// How often objects of other writers, and of writers that died, are looked for.
    pub look_back_interval: Duration,
}

impl Default for FollowSettings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), look_back_interval: Duration::from_secs(60) }
    }
}

/// Brings new objects of an inbox into `raw` until `stop` is cancelled, and once more then. What fails is tried again: nothing
/// is lost by it, the objects wait.
///
/// `news` is what the writer of objects notifies; without it, they are found by looking back. After each round that succeeded,
/// `caught_up` says when it began: what this process wrote before is in `raw`.
pub async fn follow(
    mut reader: InboxReader,
    settings: FollowSettings,
    news: Arc<Notify>,
    caught_up: watch::Sender<Option<Instant>>,
    stop: CancellationToken,
) {
    let source = reader.source().to_owned();
    let mut look_back_at = Instant::now();
    let mut failures = 0_u32;
    loop {
        let last = stop.is_cancelled();
        let started = Instant::now();
        let look = if started >= look_back_at { Look::Back } else { Look::Ahead };
        let ended = Box::pin(reader.advance(look)).await;
        match ended {
            Ok(report) => {
                failures = 0;
                if look == Look::Back {
                    look_back_at = started + settings.look_back_interval;
                }
                if report.batches + report.batches_recovered > 0 {
                    tracing::debug!(source, rows = report.rows_stored, "records of the inbox stored in raw");
                }
                if report.alerts_changed > 0 {
                    tell_alerts(&report);
                }
                caught_up.send_replace(Some(started));
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(source, %error, "records are durable but do not reach raw yet; it is tried again");
            }
        }
        if last {
            return;
        }
        let pause = settings.interval.saturating_mul(1_u32 << failures.min(5)).min(PAUSE_MAX);
        tokio::select! {
            () = sleep_until(started + pause) => {}
            () = stop.cancelled() => continue,
        }
        if failures == 0 {
            tokio::select! {
                () = news.notified() => {}
                () = sleep_until(look_back_at) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

fn tell_alerts(report: &SourceReport) {
    let source = report.source.as_str();
    for alert in &report.alerts {
        tracing::warn!(source, severity = ?alert.severity, "alert: {}; {}", alert.message, alert.remedy);
    }
    if report.alerts.is_empty() {
        tracing::info!(source, "no alert is left");
    }
}
