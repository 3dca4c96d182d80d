use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use holdfast_access::{AUDIT_CLOSES_WITHIN, Access};
use holdfast_engine::LakeReader;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::server::TlsConnectInfo;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::audited::FLIGHT;
use crate::connections::{Door, Peer, arriving_within, holding};
use crate::http::{Face, answer_until};
use crate::put::Puts;
use crate::rights::Guard;
use crate::seal::SealKey;
use crate::service::HoldfastFlight;
use crate::settings::Tls;
use crate::telemetry::{Call, Sent};
use crate::{Result, ServeError, ServeSettings, Token};

/// What a client may send before it must wait for us. Requests are small, but a feature call may hold many ids.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES: u32 = 1 << 20;
const MAX_STREAMS_PER_CONNECTION: u32 = 1024;
/// A client that vanished without a word is noticed after both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest message of who has not said yet who it is.
const HANDSHAKE_BYTES: usize = 16 << 10;
/// How long clients get to read the error that ends their stream.
const FAREWELL: Duration = Duration::from_secs(1);

/// Listens on `address`, such as `127.0.0.1:8815`.
///
/// # Errors
/// [`ServeError::Exposed`] when other machines could connect and there is no token, before anything is opened;
/// [`ServeError::Bind`] when the address is taken or is none of this machine's.
pub async fn bind(address: &str, token: Option<&Token>) -> Result<TcpListener> {
    bind_as(address, token.is_some()).await
}

/// Listens on `address`; `is_protected` says that nobody comes in without being known.
///
/// # Errors
/// As of [`bind`].
pub async fn bind_as(address: &str, is_protected: bool) -> Result<TcpListener> {
    let failed = |source| ServeError::Bind { address: address.to_owned(), source };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(failed)?.collect();
    for address in &addresses {
        check_exposure(*address, is_protected)?;
    }
    TcpListener::bind(addresses.as_slice()).await.map_err(failed)
}

/// Serves the lake until `shutdown` completes, then lets running streams end, for as long as the settings say. With `puts`,
/// sources take record batches; what has arrived before the end is acknowledged, and brought into `raw` as far as there is
/// time.
///
/// The standard gRPC health service answers on the same port. When this returns, or is dropped, nothing of it goes on.
///
/// # Errors
/// [`ServeError::Setting`], [`ServeError::Exposed`], [`ServeError::PutsUnprotected`] and [`ServeError::SealSecret`] before anything is served;
/// [`ServeError::Transport`] when the listener fails. A failure of one call is told to its client and ends nothing else.
pub async fn serve(
    reader: Arc<LakeReader>,
    puts: Option<Puts>,
    settings: ServeSettings,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    serve_with_http(reader, puts, settings, (listener, None), shutdown).await
}

/// The same, with another listener for features over HTTP (`POST /get-online-features`), which the same token opens.
///
/// # Errors
/// As of [`serve`].
pub async fn serve_with_http(
    reader: Arc<LakeReader>,
    puts: Option<Puts>,
    settings: ServeSettings,
    (listener, http): (TcpListener, Option<TcpListener>),
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    settings.check()?;
    let address =
        listener.local_addr().map_err(|source| ServeError::Bind { address: "a listener".to_owned(), source })?;
    let access = match &settings.access {
        Some(access) => Arc::clone(access),
        None => Arc::new(Access::unrestricted(Arc::clone(reader.lake().clock()))?),
    };
    let is_protected = settings.token.is_some() || access.has_users();
    check_exposure(address, is_protected)?;
    if !is_loopback(address.ip()) && settings.tls.is_none() {
        tracing::warn!(%address, "the token and the data travel unencrypted: put a proxy with TLS in front");
    }

    if let Some(puts) = &puts {
        puts.settings().check(settings.token.as_ref(), is_protected, settings.max_request_bytes)?;
        puts.resume().await?;
    }
    let puts = puts.map(|puts| PutsGuard(Arc::new(puts)));
    let key = SealKey::of(reader.lake()).await?;
    let settings = Arc::new(settings);
    let flight = HoldfastFlight::new(
        reader,
        puts.as_ref().map(|puts| Arc::clone(&puts.0)),
        Arc::clone(&settings),
        Arc::clone(&access),
        key,
    );
    let (runs, streams) = (Arc::clone(&flight.runs), Arc::clone(&flight.streams));
    let flight = Arc::new(flight);
    let handshakes = FlightServiceServer::from_arc(Arc::clone(&flight)).max_decoding_message_size(HANDSHAKE_BYTES);
    let limited = FlightServiceServer::from_arc(flight)
        .max_decoding_message_size(settings.max_request_bytes)
        .max_encoding_message_size(usize::MAX);
    let put_token = puts.as_ref().and_then(|puts| puts.0.settings().token.clone());
    let guard =
        Guard { read: settings.token.clone(), put: put_token, takes_puts: puts.is_some(), access: Arc::clone(&access) };
    let face = Face { runs: Arc::clone(&runs), settings: Arc::clone(&settings), guard: guard.clone() };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<FlightServiceServer<HoldfastFlight>>().await;

    let stop = CancellationToken::new();
    // Whichever way this function ends, the tasks that it started end with it.
    let _stop_all = stop.clone().drop_guard();
    let reload = tokio::spawn({
        let (stop, interval) = (stop.clone(), settings.reload_interval);
        let access = Arc::clone(&access);
        async move {
            tokio::join!(runs.follow(interval, stop.clone()), follow_files(&access, interval, stop));
        }
    });

    let http = match http {
        Some(listener) => {
            let of = |source| ServeError::Bind { address: "a listener for HTTP".to_owned(), source };
            let address = listener.local_addr().map_err(of)?;
            check_exposure(address, is_protected)?;
            let door = Door::new(listener, Arc::clone(&access), Arc::clone(&settings)).map_err(of)?;
            tracing::info!(%address, "serving features over HTTP");
            Some(tokio::spawn(answer_until(door, face, stop.clone())))
        }
        None => None,
    };

    let of = |source| ServeError::Bind { address: "a listener".to_owned(), source };
    let door = Door::new(listener, Arc::clone(&access), Arc::clone(&settings)).map_err(of)?;
    let mut server = Server::builder();
    if let Some(tls) = &settings.tls {
        let failed = |error: tonic::transport::Error| ServeError::Tls(with_causes(&error));
        server = server.tls_config(tls_config(tls)).map_err(failed)?;
    }
    let server = server
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_connection_age(settings.connection_age)
        .add_service(health_service)
        .add_service(Guarded { inner: limited, handshakes, guard, request_timeout: settings.request_timeout })
        .serve_with_incoming_shutdown(door.connections(), stop.clone().cancelled_owned());
    tokio::pin!(server);
    tracing::info!(%address, token = settings.token.is_some(), users = access.has_users(), tls = settings.tls.is_some(), puts = puts.is_some(), "serving Arrow Flight");

    let early = tokio::select! {
        ended = &mut server => Some(ended),
        () = shutdown => None,
    };
    if let Some(ended) = early {
        stop.cancel();
        streams.abort();
        streams.ended().await;
        if let Some(puts) = &puts {
            puts.end_now().await;
        }
        return Ok(ended?);
    }

    tracing::info!(limit_seconds = settings.drain_timeout.as_secs_f64(), "shutting down, running streams may end");
    health.set_not_serving::<FlightServiceServer<HoldfastFlight>>().await;
    stop.cancel();
    let put = async {
        if let Some(puts) = &puts {
            puts.0.stop();
            puts.0.ended().await;
        }
    };
    let drained =
        tokio::time::timeout(settings.drain_timeout, async { tokio::join!(&mut server, streams.ended(), put).0 }).await;
    let ended = match drained {
        Ok(ended) => ended,
        Err(_) => {
            streams.abort();
            streams.ended().await;
            if let Some(puts) = &puts {
                puts.end_now().await;
            }
            // Connections that are still open after this are cut.
            tokio::time::timeout(FAREWELL, &mut server).await.unwrap_or(Ok(()))
        }
    };
    if let Some(http) = http
        && tokio::time::timeout(settings.drain_timeout, http).await.is_err()
    {
        tracing::warn!("calls over HTTP went on for too long and are cut");
    }
    if let Err(error) = reload.await {
        tracing::error!(%error, "the reload task failed");
    }
    // Whoever serves in this process may go on noting; what streams have noted must be written.
    if let Some(audit) = access.audit() {
        audit.flush(AUDIT_CLOSES_WITHIN).await;
    }
    Ok(ended?)
}

/// Whichever way serving ends, the tasks of puts end with it.
struct PutsGuard(Arc<Puts>);

impl PutsGuard {
    async fn end_now(&self) {
        self.0.stop();
        self.0.abort();
        self.0.ended().await;
    }
}

impl Drop for PutsGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where nobody must be known, only this machine may connect.
fn check_exposure(address: SocketAddr, is_protected: bool) -> Result<()> {
    if is_protected || is_loopback(address.ip()) { Ok(()) } else { Err(ServeError::Exposed { address }) }
}

/// Also true of an IPv4 loopback address written as IPv6.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Reads the policy and the users again when they change. What cannot be read leaves those that are in force.
async fn follow_files(access: &Access, interval: Duration, stop: CancellationToken) {
    let mut told = String::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        match access.reload() {
            Ok(true) => {
                told.clear();
                tracing::info!("the policy and the users were read again");
            }
            Ok(false) => {}
            Err(error) => {
                let message = error.to_string();
                if message != told {
                    tracing::error!(%error, "the policy and the users stay as they were");
                    told = message;
                }
            }
        }
    }
}

fn tls_config(tls: &Tls) -> ServerTlsConfig {
    let config = ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key));
    match &tls.client_issuers {
        // Others may come with a token.
        Some(issuers) => config.client_ca_root(Certificate::from_pem(issuers)).client_auth_optional(true),
        None => config,
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Lets a call pass if there is room for its connection and its caller may do anything, and notes who it is.
#[derive(Debug, Clone)]
struct Guarded<S> {
    inner: S,
    /// The same, for those who are not known yet.
    handshakes: S,
    guard: Guard,
    /// Within which a request that is one message must have come.
    request_timeout: Duration,
}

/// Calls whose client sends a stream: each message of it has a limit of its own where it is read.
const STREAMED: [&str; 2] = ["DoPut", "DoExchange"];

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // The one that is ready is used; its copy is made ready for the next call.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        let mut handshakes = self.handshakes.clone();
        let (guard, request_timeout) = (self.guard.clone(), self.request_timeout);
        Box::pin(async move {
            let Some(Peer(line)) = Peer::of(request.extensions()).cloned() else {
                return Ok(ServeError::Unauthenticated.status().into_http());
            };
            if let Err(error) = line.has_room() {
                return Ok(error.status().into_http());
            }
            let method = request.uri().path().rsplit('/').next().unwrap_or_default();
            // Who is there is what it asks for.
            if method == "Handshake" {
                return handshakes.call(request).await;
            }
            if !STREAMED.contains(&method) {
                request = request.map(|body| arriving_within(body, request_timeout));
            }
            let certificate = peer_certificate(request.extensions());
            let sent = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            let sent = sent.map(str::to_owned);
            match guard.caller(sent.as_deref(), certificate.as_deref()).await {
                Ok(caller) => match line.call(&guard.access, &caller.principal) {
                    Ok(open) => {
                        request.extensions_mut().insert(caller);
                        Ok(inner.call(request).await?.map(|body| holding(body, open)))
                    }
                    Err(error) => Ok(error.status().into_http()),
                },
                Err(error) => {
                    Call::begin("authenticate").end("", Sent::default(), error.kind().as_str());
                    guard.access.note_refusal(FLIGHT);
                    Ok(error.status().into_http())
                }
            }
        })
    }
}

/// The certificate that a client showed and TLS accepted, in DER.
fn peer_certificate(extensions: &http::Extensions) -> Option<Vec<u8>> {
    let certificates = extensions.get::<TlsConnectInfo<Peer>>()?.peer_certs()?;
    certificates.first().map(|certificate| certificate.as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_needs_no_token() {
        for open in ["0.0.0.0:1", "[::]:1", "192.168.1.5:1", "[::ffff:10.0.0.1]:1"] {
            let error = check_exposure(open.parse().unwrap(), false).unwrap_err();
            assert!(error.to_string().contains("--token-file"), "{error}");
            check_exposure(open.parse().unwrap(), true).unwrap();
        }
        for own in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            check_exposure(own.parse().unwrap(), false).unwrap();
        }
    }
}
