//! Connections from their acceptance to their end: how many there may be, and how long one may be silent.
//!
//! A connection is nobody's until a call over it was let in; it has a deadline until then, whatever it sends and however slowly. After
//! that it is closed when no call was open over it for a while. One that finds no room is answered that, for a moment, and closed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected as HttpConnected;
use axum::serve::{IncomingStream, Listener};
use futures::{FutureExt, Stream, StreamExt};
use holdfast_access::{Access, AccessError, ConnectionsFull, OpenConnection, Principal};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::transport::server::{Connected, TcpIncoming, TlsConnectInfo};

use crate::{Result, ServeSettings};

/// Who vanished without a word is noticed by the system, too.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Those who find no room are told, unless there are many of them.
const REFUSALS_AT_ONCE: usize = 64;
/// How long they may take to ask.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// After the system had no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port, and who may come through it.
pub(crate) struct Door {
    incoming: TcpIncoming,
    address: SocketAddr,
    access: Arc<Access>,
    settings: Arc<ServeSettings>,
    refusals: Arc<Semaphore>,
}

impl Door {
    /// # Errors
    /// When the listener has no address, which the system does not do.
    pub(crate) fn new(listener: TcpListener, access: Arc<Access>, settings: Arc<ServeSettings>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE));
        Ok(Self { incoming, address, access, settings, refusals: Arc::new(Semaphore::new(REFUSALS_AT_ONCE)) })
    }

    /// The next connection. What cannot be accepted, and what finds no room where many do not, is left out.
    async fn next(&mut self) -> Option<Connection> {
        loop {
            let stream = match self.incoming.next().await? {
                Ok(stream) => stream,
                // Of one connection, or of want of room: the next may go well.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let place = match self.access.connects() {
                Ok(place) => Place::Taken(place),
                Err(full) => {
                    tracing::info!(monotonic_counter.holdfast_connections_refused = 1_u64, %full, "a connection is refused");
                    match Arc::clone(&self.refusals).try_acquire_owned() {
                        Ok(told) => Place::None { full, _told: told },
                        Err(_) => continue,
                    }
                }
            };
            return Some(Connection::new(stream, place, &self.settings));
        }
    }

    /// The connections, one by one.
    pub(crate) fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, async |mut door| Some((Ok(door.next().await?), door)))
    }
}

impl Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            if let Some(connection) = self.next().await {
                let address = connection.line.address.unwrap_or(self.address);
                return (connection, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Whether there is room for a connection.
#[derive(Debug)]
enum Place {
    Taken(OpenConnection),
    /// There is none, and it is told so.
    None {
        full: ConnectionsFull,
        _told: OwnedSemaphorePermit,
    },
}

/// What is known of a connection. Put into every request that comes over it.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) address: Option<SocketAddr>,
    place: Place,
    is_known: AtomicBool,
    calls: AtomicUsize,
    quiet_since: Mutex<Instant>,
    /// Until when somebody must have been let in.
    unknown_until: Instant,
    quiet_for: Duration,
}

/// A call over a connection, which is not idle while this is there.
#[derive(Debug)]
pub(crate) struct OpenCall(Arc<Line>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        *self.0.quiet_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Line {
    /// # Errors
    /// [`AccessError::Busy`] where there is no room for the connection.
    pub(crate) fn has_room(&self) -> Result<()> {
        match &self.place {
            Place::Taken(_) => Ok(()),
            Place::None { full, .. } => Err(AccessError::from(full.clone()).into()),
        }
    }

    /// A call over the connection, by somebody who may come in.
    ///
    /// # Errors
    /// [`AccessError::Busy`] where there is no room for the connection, or where the principal has too many.
    pub(crate) fn call(self: &Arc<Self>, access: &Access, principal: &Principal) -> Result<OpenCall> {
        self.has_room()?;
        if let Place::Taken(place) = &self.place {
            access.connects_as(principal, place).map_err(AccessError::from)?;
        }
        self.is_known.store(true, Ordering::Release);
        self.calls.fetch_add(1, Ordering::AcqRel);
        Ok(OpenCall(Arc::clone(self)))
    }

    /// When to look again whether the connection is to end; nothing when it is.
    fn next_look(&self, now: Instant) -> Option<Instant> {
        let until = if !self.is_known.load(Ordering::Acquire) {
            self.unknown_until
        } else if self.calls.load(Ordering::Acquire) > 0 {
            now + self.quiet_for
        } else {
            *self.quiet_since.lock().unwrap_or_else(PoisonError::into_inner) + self.quiet_for
        };
        (until > now).then_some(until)
    }
}

/// What is known of a connection, as requests carry it.
#[derive(Debug, Clone)]
pub(crate) struct Peer(pub(crate) Arc<Line>);

impl Peer {
    /// The connection that a request came over.
    pub(crate) fn of(extensions: &http::Extensions) -> Option<&Self> {
        extensions.get::<Self>().or_else(|| extensions.get::<TlsConnectInfo<Self>>().map(TlsConnectInfo::get_ref))
    }
}

impl HttpConnected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        Self(Arc::clone(&stream.io().line))
    }
}

/// A connection, which ends by itself when it has been silent for too long.
pub(crate) struct Connection {
    stream: TcpStream,
    line: Arc<Line>,
    /// Until it is looked at again.
    look: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(stream: TcpStream, place: Place, settings: &ServeSettings) -> Self {
        let now = Instant::now();
        let within = match &place {
            Place::Taken(_) => settings.log_in_timeout,
            Place::None { .. } => REFUSAL_TIMEOUT,
        };
        let line = Line {
            address: stream.peer_addr().ok(),
            place,
            is_known: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
            quiet_since: Mutex::new(now),
            unknown_until: now + within,
            quiet_for: settings.idle_timeout,
        };
        let look = Box::pin(sleep_until(now + within.min(settings.idle_timeout)));
        Self { stream, line: Arc::new(line), look }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(Arc::clone(&self.line))
    }
}

impl AsyncRead for Connection {
    /// Whatever still comes, a connection whose time is over is read as one that the other side has closed.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.look.as_mut().poll(context).is_ready() {
            match this.line.next_look(Instant::now()) {
                Some(until) => this.look.as_mut().reset(until),
                None => {
                    tracing::info!(monotonic_counter.holdfast_connections_timed_out = 1_u64, "a connection was silent");
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The same request, which fails when its end has not come in time: a message may be announced and never finished.
pub(crate) fn arriving_within(body: Body, limit: Duration) -> Body {
    let mut frames = BodyStream::new(body);
    let mut late = Box::pin(sleep(limit));
    let timed = futures::stream::poll_fn(move |context| {
        if let Poll::Ready(frame) = frames.poll_next_unpin(context) {
            return Poll::Ready(frame);
        }
        ready!(late.poll_unpin(context));
        let text = format!("the request did not come whole within {} s", limit.as_secs_f64());
        Poll::Ready(Some(Err(Status::deadline_exceeded(text))))
    });
    Body::new(StreamBody::new(timed))
}

/// The same answer, which keeps the call open until its end.
pub(crate) fn holding(body: Body, call: OpenCall) -> Body {
    Body::new(body.map_frame(move |frame| {
        let _open = &call;
        frame
    }))
}
