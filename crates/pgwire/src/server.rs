use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use holdfast_engine::LakeReader;
use holdfast_types::TableName;
use ring::hmac;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::DATABASE;
use crate::connection::{CancelSlot, Connection, Surroundings};
use crate::error::{Problem, state};
use crate::gate::{Counted, Gate, GateError, Notes, NotesByTable};
use crate::io::{Io, Stop};
use crate::message::{Fields, Frames};
use crate::scram::{self, Exchange, Refused};
use crate::session::{REPORTED, Session, Shared};
use crate::settings::PgSettings;
use crate::tls::TlsIdentity;
use crate::{PgWireError, Result};

const PROTOCOL: u32 = 3;
const CANCEL_REQUEST: u32 = 80_877_102;
const TLS_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// The first byte of TLS, for clients that begin with it.
const TLS_HELLO: u8 = 0x16;
/// Log-in messages are short.
const LOGIN_BYTES: usize = 16 << 10;
/// Those who give a wrong password wait for the answer.
const WRONG_PASSWORD_DELAY: Duration = Duration::from_millis(500);
/// Connections that are refused for want of room are told, unless there are many of them.
const REFUSALS_AT_ONCE: usize = 64;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// After the system had no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens on `address`, such as `127.0.0.1:5432`.
///
/// # Errors
/// [`PgWireError::Exposed`] when other machines could connect and the gate is open, before anything is listened on;
/// [`PgWireError::Bind`] when the address is taken or is none of this machine's.
pub async fn bind(address: &str, is_open: bool) -> Result<TcpListener> {
    let failed = |source| PgWireError::Bind { address: address.to_owned(), source };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(failed)?.collect();
    for address in &addresses {
        check_exposure(*address, is_open)?;
    }
    TcpListener::bind(addresses.as_slice()).await.map_err(failed)
}

/// Serves the lake until `shutdown` completes, then lets running statements end, for as long as the settings say. `notes` are what people
/// wrote about tables. When this returns, or is dropped, nothing of it goes on.
///
/// # Errors
/// [`PgWireError::Setting`] and [`PgWireError::Exposed`] before anything is served. A failure of one connection is told to its client and
/// ends nothing else.
pub async fn serve(
    reader: Arc<LakeReader>,
    gate: Arc<dyn Gate>,
    tls: Option<TlsIdentity>,
    notes: BTreeMap<TableName, Notes>,
    settings: PgSettings,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    settings.check()?;
    let address =
        listener.local_addr().map_err(|source| PgWireError::Bind { address: "a listener".to_owned(), source })?;
    check_exposure(address, gate.is_open())?;
    if !is_loopback(address.ip()) && tls.is_none() {
        tracing::warn!(%address, "answers travel unencrypted: give a certificate with --tls-certificate and --tls-key");
    }
    let began = reader.lake().clock().now();
    let service = Arc::new(Service {
        reader,
        gate,
        tls,
        notes: Arc::new(notes),
        admission: Arc::new(Admission::new(&settings)),
        refusals: Semaphore::new(REFUSALS_AT_ONCE),
        settings: Arc::new(settings),
        nobody: scram::secret_for_nobody(),
        running: Mutex::new(HashMap::new()),
        next_pid: AtomicI32::new(1),
        began,
        stopping: CancellationToken::new(),
        aborted: CancellationToken::new(),
    });
    let tasks = TaskTracker::new();
    // Whichever way this function ends, the connections end with it.
    let _stop_all = (service.stopping.clone().drop_guard(), service.aborted.clone().drop_guard());
    tracing::info!(
        %address, users = !service.gate.is_open(), tls = service.tls.is_some(), "serving the PostgreSQL protocol"
    );

    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let service = Arc::clone(&service);
                tasks.spawn(async move { Box::pin(service.connection(stream, peer)).await });
            }
            // Of one connection, or of want of room: the next may go well.
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    service.stopping.cancel();
    tasks.close();
    if timeout(service.settings.drain_timeout, tasks.wait()).await.is_err() {
        service.aborted.cancel();
        let _ = timeout(Duration::from_secs(1), tasks.wait()).await;
    }
    Ok(())
}

/// Without users, only this machine may connect.
fn check_exposure(address: SocketAddr, is_open: bool) -> Result<()> {
    if is_open && !is_loopback(address.ip()) { Err(PgWireError::Exposed { address }) } else { Ok(()) }
}

/// Also true of an IPv4 loopback address written as IPv6.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Room to run.
#[derive(Debug)]
pub(crate) struct Admission {
    running: Semaphore,
    waiting: Semaphore,
    limits: (usize, usize),
}

impl Admission {
    fn new(settings: &PgSettings) -> Self {
        let limits = (settings.max_concurrent_queries, settings.max_waiting_queries);
        Self { running: Semaphore::new(limits.0), waiting: Semaphore::new(limits.1), limits }
    }

    /// Waits for a place to run; refused at once when too many wait already.
    pub(crate) async fn admit(&self) -> Result<SemaphorePermit<'_>, Problem> {
        if let Ok(place) = self.running.try_acquire() {
            return Ok(place);
        }
        let busy = || {
            let (running, waiting) = self.limits;
            let message = format!("{running} queries are running and {waiting} are waiting, which is the limit");
            Problem::new(state::INSUFFICIENT_RESOURCES, message).with_hint("try again later")
        };
        let _waits = self.waiting.try_acquire().map_err(|_| busy())?;
        self.running.acquire().await.map_err(|_| busy())
    }
}

struct Service {
    reader: Arc<LakeReader>,
    gate: Arc<dyn Gate>,
    tls: Option<TlsIdentity>,
    notes: NotesByTable,
    settings: Arc<PgSettings>,
    admission: Arc<Admission>,
    refusals: Semaphore,
    nobody: hmac::Key,
    /// What cancels the statement of each connection, with the key that its client was told.
    running: Mutex<HashMap<i32, (u32, CancelSlot)>>,
    next_pid: AtomicI32,
    began: DateTime<Utc>,
    stopping: CancellationToken,
    aborted: CancellationToken,
}

/// Takes a connection out of the list of those that can be cancelled.
struct Registered<'a> {
    service: &'a Service,
    pid: i32,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.service.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
    }
}

impl Service {
    async fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        let counted = match self.gate.connects() {
            Ok(counted) => counted,
            Err(full) => return self.refuse(stream, &full).await,
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "small packets may be late");
        }
        let began = timeout(self.settings.startup_timeout, self.start(stream, peer.ip(), counted.as_ref()));
        // A client that is slow to say who it is, is nobody's client.
        let Ok(Some((io, session, _registered, cancel))) = began.await else { return };
        tracing::info!(
            monotonic_counter.holdfast_postgres_connections = 1_u64,
            %peer,
            user = session.shared.user(),
            "a session begins"
        );
        let around = Surroundings {
            settings: Arc::clone(&self.settings),
            admission: Arc::clone(&self.admission),
            cancel,
            stopping: self.stopping.clone(),
            aborted: self.aborted.clone(),
        };
        Box::pin(Connection::new(io, session, around).run()).await;
    }

    async fn refuse(&self, stream: TcpStream, full: &GateError) {
        tracing::info!(monotonic_counter.holdfast_connections_refused = 1_u64, %full, "a connection is refused");
        let Ok(_place) = self.refusals.try_acquire() else { return };
        let mut io = Io::new(Box::new(stream));
        let told = async {
            // Its first message is read first: closing before would take the answer with it.
            loop {
                let mut body = Fields(io.startup_frame().await?);
                match code_of(&mut body) {
                    Ok(TLS_REQUEST | GSS_REQUEST) => {
                        io.output.push(b'N');
                        io.flush().await?;
                    }
                    // Who cancels makes room.
                    Ok(CANCEL_REQUEST) => {
                        self.cancel(&mut body);
                        return Ok(());
                    }
                    _ => break,
                }
            }
            io.output.problem("FATAL", &no_room(full), None);
            io.flush().await
        };
        let _ = timeout(REFUSAL_TIMEOUT, told).await;
    }

    /// Everything until the session is ready, or nothing when there is to be none.
    async fn start(
        &self,
        stream: TcpStream,
        peer: IpAddr,
        counted: &dyn Counted,
    ) -> Option<(Io, Session, Registered<'_>, CancelSlot)> {
        let (mut io, parameters) = match self.negotiate(stream).await {
            Ok(Some(started)) => started,
            Ok(None) => return None,
            Err((io, stop)) => {
                if let (Some(io), Stop::Told(problem)) = (io, stop) {
                    farewell(io, &problem).await;
                }
                return None;
            }
        };
        match self.log_in(&mut io, &parameters, (peer, counted)).await {
            Ok((session, registered, cancel)) => Some((io, session, registered, cancel)),
            Err(Stop::Told(problem)) => {
                tracing::info!(
                    monotonic_counter.holdfast_postgres_refused = 1_u64,
                    code = problem.code,
                    "a connection is refused"
                );
                farewell(io, &problem).await;
                None
            }
            Err(Stop::Gone) => None,
        }
    }

    /// TLS, cancellation and the parameters of the start-up.
    async fn negotiate(&self, stream: TcpStream) -> Result<Option<(Io, HashMap<String, String>)>, (Option<Io>, Stop)> {
        let mut first = [0; 1];
        let is_hello = matches!(stream.peek(&mut first).await, Ok(1)) && first[0] == TLS_HELLO;
        let mut is_secure = false;
        let mut io = match (&self.tls, is_hello) {
            (Some(tls), true) => {
                let secured = tls.acceptor().accept(stream).await.map_err(|_| (None, Stop::Gone))?;
                // Who begins with TLS says which protocol it is for: another's request could be meant for us otherwise.
                if secured.get_ref().1.alpn_protocol() != Some(b"postgresql") {
                    return Err((None, Stop::Gone));
                }
                is_secure = true;
                Io::new(Box::new(secured))
            }
            (None, true) => return Err((None, Stop::Gone)),
            _ => Io::new(Box::new(stream)),
        };
        // Both kinds of encryption may be asked for, each once.
        for _ in 0..3 {
            let mut body = match io.startup_frame().await {
                Ok(body) => Fields(body),
                Err(stop) => return Err((Some(io), stop)),
            };
            let code = match code_of(&mut body) {
                Ok(code) => code,
                Err(problem) => return Err((Some(io), problem.into())),
            };
            match (code, &self.tls) {
                (TLS_REQUEST, Some(tls)) if !is_secure => {
                    io.output.push(b'S');
                    if let Err(stop) = io.flush().await {
                        return Err((None, stop));
                    }
                    // What came in the clear with the request would be taken for what came over TLS.
                    let Some(plain) = io.into_stream() else { return Err((None, Stop::Gone)) };
                    let secured = tls.acceptor().accept(plain).await.map_err(|_| (None, Stop::Gone))?;
                    is_secure = true;
                    io = Io::new(Box::new(secured));
                }
                (TLS_REQUEST | GSS_REQUEST, _) => {
                    io.output.push(b'N');
                    if let Err(stop) = io.flush().await {
                        return Err((None, stop));
                    }
                }
                (CANCEL_REQUEST, _) => {
                    self.cancel(&mut body);
                    return Ok(None);
                }
                (version, tls) => {
                    if version >> 16 != PROTOCOL {
                        let message = format!("unsupported frontend protocol {}.{}", version >> 16, version & 0xffff);
                        return Err((Some(io), Problem::fatal(state::PROTOCOL_VIOLATION, message).into()));
                    }
                    if tls.is_some() && !is_secure {
                        let message = "connections are taken with TLS only";
                        let problem =
                            Problem::fatal(state::INVALID_AUTHORIZATION, message).with_hint("use sslmode=require");
                        return Err((Some(io), problem.into()));
                    }
                    return match parameters(&mut body) {
                        Ok(parameters) => {
                            negotiate_version(&mut io, version, &parameters);
                            Ok(Some((io, parameters)))
                        }
                        Err(problem) => Err((Some(io), problem.into())),
                    };
                }
            }
        }
        Err((Some(io), Problem::malformed("encryption is asked for again and again").into()))
    }

    async fn log_in<'a>(
        &'a self,
        io: &mut Io,
        parameters: &HashMap<String, String>,
        (peer, counted): (IpAddr, &dyn Counted),
    ) -> Result<(Session, Registered<'a>, CancelSlot), Stop> {
        let user = parameters.get("user").filter(|user| !user.is_empty()).ok_or_else(|| {
            Problem::fatal(state::INVALID_AUTHORIZATION, "no PostgreSQL user name specified in startup packet")
        })?;
        if !self.gate.is_open() {
            self.authenticate(io, user, peer).await?;
        }
        counted.is_of(user).map_err(|full| no_room(&full))?;
        // Who may come in is told what there is; nobody else is.
        let database = parameters.get("database").map_or(user.as_str(), String::as_str);
        if ![DATABASE, "postgres", user.as_str()].contains(&database) {
            let message = format!("database \"{database}\" does not exist");
            return Err(Problem::fatal(state::INVALID_CATALOG_NAME, message)
                .with_hint(format!("the database is called {DATABASE}"))
                .into());
        }
        let pid = self
            .next_pid
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |pid| Some(if pid == i32::MAX { 1 } else { pid + 1 }));
        let pid = pid.unwrap_or(1);
        let key = scram::random_u32()
            .ok_or_else(|| Problem::fatal(state::CANNOT_CONNECT_NOW, "the system gives no random bytes"))?;
        let shared = Arc::new(Shared::new(user.clone(), pid, self.began));
        for (name, value) in parameters {
            match name.as_str() {
                "user" | "database" | "replication" | "options" => {}
                name if name.starts_with("_pq_.") => {}
                name if name.starts_with("holdfast.") => {}
                name => shared.set_plain(name, value).map_err(fatal)?,
            }
        }
        let mut session = Session::open(
            Arc::clone(&shared),
            Arc::clone(&self.reader),
            Arc::clone(&self.gate),
            Arc::clone(&self.notes),
        )
        .await
        .map_err(fatal)?;
        for (name, value) in parameters.iter().filter(|(name, _)| name.starts_with("holdfast.")) {
            session.set(name, Some(value)).await.map_err(fatal)?;
        }
        for (name, value) in options(parameters.get("options").map_or("", String::as_str)) {
            session.set(&name, Some(&value)).await.map_err(fatal)?;
        }

        let cancel = CancelSlot::default();
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, (key, Arc::clone(&cancel)));
        let registered = Registered { service: self, pid };
        authentication(io, 0, &[]);
        for name in REPORTED {
            io.output.parameter(name, &shared.get(name).unwrap_or_default());
        }
        io.output.frame(b'K', |body| {
            body.extend_from_slice(&pid.to_be_bytes());
            body.extend_from_slice(&key.to_be_bytes());
        });
        io.output.ready(b'I');
        io.flush().await?;
        Ok((session, registered, cancel))
    }

    /// SCRAM-SHA-256. Who does not exist and who is wrong are told the same after the same steps.
    async fn authenticate(&self, io: &mut Io, user: &str, peer: IpAddr) -> Result<(), Stop> {
        const SASL: u32 = 10;
        const SASL_CONTINUE: u32 = 11;
        const SASL_FINAL: u32 = 12;
        let refusal = |error| Problem { is_fatal: true, ..Problem::of_gate(&error) };
        self.gate.may_try(user, peer).map_err(refusal)?;
        let verifier = self.gate.verifier(user).await.map_err(|error| {
            tracing::error!(%error, "users cannot be looked up");
            Problem::fatal(state::CANNOT_CONNECT_NOW, "users cannot be looked up now, try again later")
        })?;
        let mut exchange = Exchange::new(verifier, &self.nobody, user);
        authentication(io, SASL, format!("{}\0\0", scram::MECHANISM).as_bytes());
        io.flush().await?;

        let mut body = Fields(self.password_message(io).await?);
        let mechanism = body.text()?;
        if mechanism != scram::MECHANISM {
            let message = format!("the mechanism is {}, and no other", scram::MECHANISM);
            return Err(Problem::fatal(state::PROTOCOL_VIOLATION, message).into());
        }
        let length = usize::try_from(body.u32()?.cast_signed())
            .map_err(|_| Problem::malformed("SCRAM begins without its first message"))?;
        let first = body.take(length)?;
        let refused = |refused: Refused| match refused {
            Refused::Malformed(what) => Problem::malformed(what),
            Refused::Wrong => {
                Problem::fatal(state::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))
            }
        };
        let challenge = exchange.challenge(&first).map_err(refused)?;
        authentication(io, SASL_CONTINUE, challenge.as_bytes());
        io.flush().await?;

        let last = self.password_message(io).await?;
        let verified = exchange.verify(&last);
        self.gate.tried(user, peer, verified.is_ok());
        match verified {
            Ok(proof) => {
                authentication(io, SASL_FINAL, proof.as_bytes());
                Ok(())
            }
            Err(reason) => {
                tokio::time::sleep(WRONG_PASSWORD_DELAY).await;
                Err(refused(reason).into())
            }
        }
    }

    async fn password_message(&self, io: &mut Io) -> Result<bytes::Bytes, Stop> {
        let limit = self.settings.startup_timeout;
        let frame = io.frame(LOGIN_BYTES, limit, limit).await?;
        match frame.kind {
            b'p' if !frame.is_too_long => Ok(frame.body),
            b'X' => Err(Stop::Gone),
            _ => Err(Problem::malformed("a password was asked for").into()),
        }
    }

    /// Whoever knows the key may: it is told to nobody but the connection's own client.
    fn cancel(&self, request: &mut Fields) {
        let (Ok(pid), Ok(key)) = (request.u32(), request.u32()) else { return };
        let pid = pid.cast_signed();
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((secret, slot)) = running.get(&pid)
            && *secret == key
        {
            slot.lock().unwrap_or_else(PoisonError::into_inner).cancel();
        }
    }
}

async fn farewell(mut io: Io, problem: &Problem) {
    io.output.problem("FATAL", problem, None);
    io.close().await;
}

fn no_room(full: &GateError) -> Problem {
    Problem::fatal(state::TOO_MANY_CONNECTIONS, full.message.clone()).with_hint("try again later")
}

fn fatal(problem: Problem) -> Stop {
    Stop::Told(Problem { is_fatal: true, ..problem })
}

fn authentication(io: &mut Io, code: u32, body: &[u8]) {
    io.output.frame(b'R', |frame| {
        frame.extend_from_slice(&code.to_be_bytes());
        frame.extend_from_slice(body);
    });
}

/// Takes the number at the beginning of a start-up message off.
fn code_of(body: &mut Fields) -> Result<u32, Problem> {
    body.u32().map_err(|problem| Problem { is_fatal: true, ..problem })
}

/// A newer client is told the newest minor version there is, and which of its extensions are not.
fn negotiate_version(io: &mut Io, version: u32, parameters: &HashMap<String, String>) {
    let unknown: Vec<&String> = parameters.keys().filter(|name| name.starts_with("_pq_.")).collect();
    if version & 0xffff == 0 && unknown.is_empty() {
        return;
    }
    io.output.frame(b'v', |body| {
        body.extend_from_slice(&(PROTOCOL << 16).to_be_bytes());
        body.extend_from_slice(&u32::try_from(unknown.len()).unwrap_or(0).to_be_bytes());
        for name in unknown {
            crate::message::put_text(body, name);
        }
    });
}

fn parameters(body: &mut Fields) -> Result<HashMap<String, String>, Problem> {
    let fatal = |problem: Problem| Problem { is_fatal: true, ..problem };
    let mut parameters = HashMap::new();
    loop {
        let name = body.text().map_err(fatal)?;
        if name.is_empty() {
            return Ok(parameters);
        }
        let value = body.text().map_err(fatal)?;
        parameters.insert(name, value);
    }
}

/// Settings of `options`, as `-c name=value` or `--name=value`, with `\ ` for a space.
fn options(text: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let last = words.len() - 1;
        match c {
            '\\' => words[last].extend(chars.next()),
            c if c.is_whitespace() => words.push(String::new()),
            c => words[last].push(c),
        }
    }
    words
        .iter()
        .filter_map(|word| word.strip_prefix("--").or(word.strip_prefix("-c")).or(Some(word)))
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.replace('-', "_"), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_users_only_loopback_is_listened_on() {
        for address in ["0.0.0.0:1", "[::]:1", "192.168.1.5:1", "[::ffff:10.0.0.1]:1"] {
            let error = check_exposure(address.parse().unwrap(), true).unwrap_err();
            assert!(error.to_string().contains("--users"), "{error}");
        }
        for own in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            check_exposure(own.parse().unwrap(), true).unwrap();
        }
    }

    #[test]
    fn options_are_read_in_both_ways() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            options("-c search_path=a,\\ b -cjit=off --statement-timeout=5s junk"),
            [pair("search_path", "a, b"), pair("jit", "off"), pair("statement_timeout", "5s")]
        );
    }

    #[tokio::test]
    async fn who_finds_no_place_and_no_place_to_wait_is_told() {
        let settings = PgSettings { max_concurrent_queries: 1, max_waiting_queries: 0, ..PgSettings::default() };
        let admission = Admission::new(&settings);
        let place = admission.admit().await.unwrap();
        assert_eq!(admission.admit().await.unwrap_err().code, state::INSUFFICIENT_RESOURCES);
        drop(place);
        drop(admission.admit().await.unwrap());
    }
}
