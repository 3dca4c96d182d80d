use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::SecondsFormat;
use holdfast_ingest::{FollowSettings, Inbox, InboxReader, IngestSettings, follow};
use holdfast_types::Clock;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::body::{Room, read};
use crate::keys::Access;
use crate::refusal::Refusal;
use crate::seen::Seen;
use crate::segment::{self, CALLS, Pushed};
use crate::settings::CollectSettings;
use crate::writer::{Push, Taken, Writer};
use crate::{CollectError, Result, cloudevents};

/// A body from this size on is read on a thread of its own, so that it does not hold up others.
const LARGE_BODY_BYTES: usize = 64 << 10;

/// Listens on `address`, such as `127.0.0.1:8816`.
///
/// # Errors
/// [`CollectError::Exposed`] when other machines could connect and no key is required, before anything is opened;
/// [`CollectError::Bind`] when the address is taken or is none of this machine's.
pub async fn bind(address: &str, access: &Access) -> Result<TcpListener> {
    let failed = |source| CollectError::Bind { address: address.to_owned(), source };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(failed)?.collect();
    for address in &addresses {
        check_exposure(*address, access)?;
    }
    TcpListener::bind(addresses.as_slice()).await.map_err(failed)
}

fn check_exposure(address: SocketAddr, access: &Access) -> Result<()> {
    match access {
        Access::Open { .. } if !is_loopback(address.ip()) => Err(CollectError::Exposed { address }),
        _ => Ok(()),
    }
}

/// Also true of an IPv4 loopback address written as IPv6.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Takes messages for the sources of `inboxes` until it is told to stop, then finishes what it has taken, for as long as the
/// settings say. `ready` is called once requests are answered; what it returns completes when it is time to stop.
///
/// A request that was answered with 200 is durable (ING-1); one that comes again with the same message ids is stored once
/// (ING-2), as long as they are among those that are remembered.
///
/// # Errors
/// Wrong settings, a source of `access` without an inbox, and an inbox that cannot be read at the start. What fails later
/// is told to clients and tried again.
pub async fn collect<Stop: Future<Output = ()> + Send>(
    inboxes: Vec<Inbox>,
    access: Access,
    (settings, ingest_settings): (CollectSettings, IngestSettings),
    clock: Arc<dyn Clock>,
    listener: TcpListener,
    ready: impl FnOnce() -> Stop,
) -> Result<()> {
    settings.check()?;
    let address =
        listener.local_addr().map_err(|source| CollectError::Bind { address: "a listener".to_owned(), source })?;
    check_exposure(address, &access)?;
    if !is_loopback(address.ip()) {
        tracing::warn!(%address, "keys and messages travel unencrypted: put a proxy with TLS in front");
    }

    let settings = Arc::new(settings);
    let (stop_serving, stop_writing, stop_following) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut queues = HashMap::new();
    // Whichever way this function ends, the tasks that it started end with it.
    let (mut writers, mut followers) = (JoinSet::new(), JoinSet::new());
    for inbox in inboxes {
        let (seen, newest) = Seen::load(&inbox, settings.remembered_ids).await?;
        tracing::info!(source = inbox.source(), remembered = seen.len(), "inbox opened");
        let (pushes, queue) = mpsc::channel(settings.queue_requests_max);
        let (healthy, news) = (Arc::new(AtomicBool::new(true)), Arc::new(Notify::new()));
        queues.insert(inbox.source().to_owned(), Queue { pushes, healthy: Arc::clone(&healthy) });
        let reader = InboxReader::new(inbox.clone(), ingest_settings.clone());
        let (following, stop) = (Arc::clone(&news), stop_following.clone());
        let pace =
            FollowSettings { interval: settings.ingest_interval, look_back_interval: settings.look_back_interval };
        followers.spawn(follow(reader, pace, following, watch::Sender::new(None), stop));
        let (settings, clock) = (Arc::clone(&settings), Arc::clone(&clock));
        let writer = Writer { inbox, settings, clock, seen, newest, healthy, news };
        writers.spawn(writer.run(queue, stop_writing.clone()));
    }
    let room = Room::new(settings.queue_bytes_max);
    let server = Arc::new(Server { queues, access, room, settings: Arc::clone(&settings), clock });
    let router = Router::new()
        .route("/health", get(health))
        .route("/v1/{endpoint}", post(take).fallback(wrong_method))
        .fallback(nothing_here)
        .with_state(server);

    let listener = listener.tap_io(|stream| {
        // Answers are small and wanted at once.
        let _ = stream.set_nodelay(true);
    });
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop_serving.clone().cancelled_owned());
    let mut serving = Task(tokio::spawn(serving.into_future()));
    tracing::info!(%address, "collecting");

    tokio::select! {
        ended = &mut serving.0 => {
            return match ended {
                Ok(Err(error)) => Err(CollectError::Transport(error)),
                _ => Err(CollectError::Internal("the HTTP server ended by itself".to_owned())),
            };
        }
        () = ready() => {}
    }
    let deadline = Instant::now() + settings.drain_timeout;
    tracing::info!(limit_seconds = settings.drain_timeout.as_secs_f64(), "shutting down, what was taken is finished");
    stop_serving.cancel();
    // Half of the time for those who are still sending, the rest for what has arrived.
    let _ = timeout_at(deadline - settings.drain_timeout / 2, &mut serving.0).await;
    stop_writing.cancel();
    while let Ok(Some(ended)) = timeout_at(deadline, writers.join_next()).await {
        ended.map_err(|error| CollectError::Internal(format!("a writer failed: {error}")))?;
    }
    stop_following.cancel();
    while let Ok(Some(_)) = timeout_at(deadline, followers.join_next()).await {}
    Ok(())
}

/// A task that ends when this is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Server {
    queues: HashMap<String, Queue>,
    access: Access,
    room: Room,
    settings: Arc<CollectSettings>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Queue {
    pushes: mpsc::Sender<Push>,
    healthy: Arc<AtomicBool>,
}

/// What is asked for, from a closed set: names of metrics' labels come from here and not from clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    One(&'static str),
    Batch,
    Events,
}

impl Endpoint {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "batch" | "import" => Some(Self::Batch),
            "events" => Some(Self::Events),
            name => CALLS.into_iter().find(|call| *call == name).map(Self::One),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::One(call) => call,
            Self::Batch => "batch",
            Self::Events => "events",
        }
    }
}

async fn take(State(server): State<Arc<Server>>, Path(name): Path<String>, request: Request) -> Response {
    let Some(endpoint) = Endpoint::parse(&name) else { return Refusal::NotFound.into_response() };
    let arrived = Instant::now();
    let taken = server.take(endpoint, request, arrived).await;
    let status = taken.as_ref().map_or_else(Refusal::status, |_| StatusCode::OK).as_u16();
    tracing::info!(monotonic_counter.holdfast_collect_requests = 1_u64, endpoint = endpoint.as_str(), status);
    match taken {
        Ok(taken) => {
            tracing::info!(
                histogram.holdfast_collect_ack_seconds = arrived.elapsed().as_secs_f64(),
                endpoint = endpoint.as_str()
            );
            let body = json!({ "success": true, "accepted": taken.accepted, "duplicates": taken.duplicates });
            ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn wrong_method() -> Refusal {
    Refusal::Method
}

async fn nothing_here() -> Refusal {
    Refusal::NotFound
}

/// Whether what is pushed can be written, as far as is known.
async fn health(State(server): State<Arc<Server>>) -> Response {
    if server.queues.values().all(|queue| queue.healthy.load(Ordering::Relaxed)) {
        ([(header::CONTENT_TYPE, "application/json")], json!({ "status": "ok" }).to_string()).into_response()
    } else {
        Refusal::Unavailable.into_response()
    }
}

impl Server {
    async fn take(&self, endpoint: Endpoint, request: Request, arrived: Instant) -> Result<Taken, Refusal> {
        let (head, body) = request.into_parts();
        let headers = head.headers;
        // A key that came with the head is looked at before the body is read.
        let user = user_name(&headers);
        let known = match &user {
            Some(key) => Some(self.access.source_of(Some(key)).ok_or(Refusal::WrongKey)?),
            None => None,
        };
        let (body, mut hold) = read(&headers, body, &self.room, &self.settings).await?;
        let received_at = self.clock.now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let settings = Arc::clone(&self.settings);
        let large = body.len() >= LARGE_BODY_BYTES;
        let parse = move || parse(endpoint, &headers, &body, &settings, &received_at);
        let pushed = if large {
            // The task only ends without an answer when the process does.
            tokio::task::spawn_blocking(parse).await.map_err(|_| Refusal::Unavailable)?
        } else {
            parse()
        };
        let pushed = pushed.inspect_err(|refusal| {
            if let Refusal::Message { .. } | Refusal::MessageTooLarge { .. } = refusal {
                count_messages("", "refused", 1);
            }
        })?;
        let source = match known {
            Some(source) => source,
            None => {
                let missing = if pushed.key.is_some() { Refusal::WrongKey } else { Refusal::NoKey };
                self.access.source_of(pushed.key.as_deref()).ok_or(missing)?
            }
        };
        let queue = self.queues.get(source).ok_or(Refusal::WrongKey)?;
        hold.grow(pushed.messages.bytes())?;
        let (answer, answered) = oneshot::channel();
        let push = Push { messages: pushed.messages, arrived, answer, hold };
        queue.pushes.try_send(push).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::Busy,
            mpsc::error::TrySendError::Closed(_) => Refusal::Unavailable,
        })?;
        // A writer that ended without an answer may have written: that is what this refusal says.
        let taken = answered.await.map_err(|_| Refusal::Unavailable)??;
        count_messages(source, "accepted", taken.accepted);
        count_messages(source, "duplicate", taken.duplicates);
        Ok(taken)
    }
}

fn parse(
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: &[u8],
    settings: &CollectSettings,
    received_at: &str,
) -> Result<Pushed, Refusal> {
    match endpoint {
        Endpoint::One(call) => segment::one(call, body, settings, received_at),
        Endpoint::Batch => segment::batch(body, settings, received_at),
        Endpoint::Events => cloudevents::events(headers, body, settings, received_at),
    }
}

fn count_messages(source: &str, outcome: &'static str, count: u64) {
    if count > 0 {
        tracing::info!(monotonic_counter.holdfast_collect_messages = count, source, outcome);
    }
}

/// The user name of HTTP Basic authentication: where Segment's libraries put the write key.
fn user_name(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    decoded.split(':').next().filter(|user| !user.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_key_is_the_user_name() {
        let user = |value: &'static str| {
            user_name(&HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]))
        };
        assert_eq!(user("Basic aGZrXzE6").as_deref(), Some("hfk_1"));
        assert_eq!(user("basic aGZrXzE6c2VjcmV0").as_deref(), Some("hfk_1"));
        assert_eq!(user("Basic Og=="), None);
        assert_eq!(user("Basic ???"), None);
        assert_eq!(user("Bearer aGZrXzE6"), None);
    }

    #[test]
    fn without_keys_only_this_machine_is_served() {
        let open = Access::Open { source: "events".to_owned() };
        assert!(check_exposure("127.0.0.1:1".parse().unwrap(), &open).is_ok());
        assert!(check_exposure("[::1]:1".parse().unwrap(), &open).is_ok());
        assert!(check_exposure("0.0.0.0:1".parse().unwrap(), &open).is_err());
    }
}
