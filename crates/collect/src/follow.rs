use std::sync::Arc;
use std::time::Duration;

use holdfast_ingest::{InboxReader, Look};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::settings::CollectSettings;

/// The longest pause after rounds that failed.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Brings new objects of an inbox into `raw` until `stop` is cancelled, and once more then. What fails is tried again: nothing
/// is lost by it, the objects wait.
pub(crate) async fn follow(
    mut reader: InboxReader,
    source: String,
    settings: Arc<CollectSettings>,
    news: Arc<Notify>,
    stop: CancellationToken,
) {
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
                    tracing::debug!(source, rows = report.rows_stored, "pushed messages stored in raw");
                }
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(source, %error, "pushed messages are durable but do not reach raw yet; it is tried again");
            }
        }
        if last {
            return;
        }
        let pause = settings.ingest_interval.saturating_mul(1_u32 << failures.min(5)).min(PAUSE_MAX);
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
