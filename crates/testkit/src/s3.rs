//! An S3 server in this process, for the real client over real sockets: honest where S3 is, and failing as it is told to.

mod bucket;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HeaderValue, IF_MATCH, IF_NONE_MATCH, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

use self::bucket::Buckets;
pub use self::bucket::Conditions;
use crate::random::Random;
use crate::rule::{Operation, Rule};

/// The error that ends a connection.
type Broken = Box<dyn std::error::Error + Send + Sync>;

/// How long a shut-down may take.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What happens to a request instead of an honest answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Fault {
    /// Nothing is done, and this is the answer: `503`, `409`, `412` and so on. A 503 comes with `Retry-After`.
    Refused(u16),
    /// It is done, and this is the answer.
    Applied(u16),
    /// The answer's body breaks off in its middle.
    Truncated,
    /// Nothing is done and nothing is said for so long; then the connection ends.
    Stalled(Duration),
    /// The connection ends while the request's body is read.
    Reset,
    /// Not a fault: an honest answer, after [`Rule::delayed`].
    None,
}

/// A request as it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What was asked.
    pub operation: Operation,
    /// Of which bucket and object: `/bucket/key`. Of a list the prefix.
    pub path: String,
    /// What it was answered with; `None` when the connection was ended instead.
    pub status: Option<u16>,
}

/// What an [`S3Server`] is to be.
#[derive(Debug)]
pub struct S3Settings {
    /// The one who may do everything; nobody else may do anything.
    pub access_key: String,
    /// As above.
    pub secret_key: String,
    /// The buckets that are there.
    pub buckets: Vec<String>,
    /// Whether it keeps its word when a write is made on a condition.
    pub conditions: Conditions,
    /// What goes wrong. The first that strikes decides.
    pub rules: Vec<Rule<S3Fault>>,
    /// The seed of rules that strike by chance.
    pub seed: u64,
    /// Where to listen; 0 for any free port.
    pub port: u16,
}

impl Default for S3Settings {
    fn default() -> Self {
        Self {
            access_key: "test-key".to_owned(),
            secret_key: "test-secret".to_owned(),
            buckets: vec!["shop".to_owned()],
            conditions: Conditions::Honoured,
            rules: Vec::new(),
            seed: 0,
            port: 0,
        }
    }
}

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes those who are held up, when the rules are set anew.
    rules_set: Notify,
    buckets: Buckets,
}

#[derive(Debug)]
struct State {
    rules: Vec<Rule<S3Fault>>,
    random: Random,
    asked: Vec<Asked>,
}

impl S3Server {
    /// Starts on a thread of its own, so that a test may wait for its own processes as it likes.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(settings: S3Settings) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", settings.port))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = State { rules: settings.rules, random: Random::new(settings.seed), asked: Vec::new() };
        let buckets = Buckets::new(&settings.buckets, settings.conditions);
        let shared = Arc::new(Shared { state: Mutex::new(state), rules_set: Notify::new(), buckets });
        let mut service = S3ServiceBuilder::new(shared.buckets.clone());
        service.set_auth(SimpleAuth::from_single(settings.access_key, settings.secret_key));
        let (service, serving) = (service.build(), Arc::clone(&shared));
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = serve(listener, service, serving) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(STOP_LIMIT);
        });
        Ok(Self { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on these go wrong, and no others. Whoever is held up by [`Rule::delayed`] is let go on.
    pub fn set_rules(&self, rules: Vec<Rule<S3Fault>>) {
        self.shared.lock().rules = rules;
        self.shared.rules_set.notify_waiters();
    }

    /// How many faults are still to come, of rules with a number of them.
    pub fn left(&self) -> u32 {
        self.shared.lock().rules.iter().filter_map(Rule::left).sum()
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.lock().asked.clone()
    }

    /// The keys that are there, sorted.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.shared.buckets.keys(bucket)
    }

    /// An object's bytes.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Bytes> {
        self.shared.buckets.bytes(bucket, key)
    }

    /// Puts an object there, without being asked over HTTP.
    pub fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        self.shared.buckets.insert(bucket, key, bytes.into());
    }

    /// Uploads in parts that nobody ended.
    pub fn open_uploads(&self) -> usize {
        self.shared.buckets.open_uploads()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, operation: Operation, path: &str) -> (S3Fault, Duration) {
        let State { rules, random, .. } = &mut *self.lock();
        let rule = rules.iter_mut().find_map(|rule| rule.strikes(operation, path, random).then_some(&*rule));
        rule.map_or((S3Fault::None, Duration::ZERO), |rule| (rule.fault, rule.delay))
    }
}

async fn serve(listener: std::net::TcpListener, service: S3Service, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let _ = stream.set_nodelay(true);
        tokio::spawn(connection(stream, service.clone(), Arc::clone(&shared)));
    }
}

async fn connection(stream: TcpStream, service: S3Service, shared: Arc<Shared>) {
    let answer = service_fn(|request| answer(request, service.clone(), Arc::clone(&shared)));
    // An error is a connection that was ended, by them or by us.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

async fn answer(request: Request<Incoming>, service: S3Service, shared: Arc<Shared>) -> Result<Response<Body>, Broken> {
    let (operation, path) = classify(&request);
    let (fault, delay) = shared.fault(operation, &path);
    if !delay.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = shared.rules_set.notified() => {}
        }
    }
    let answered = with_fault(fault, request, service).await;
    let status = answered.as_ref().ok().map(|response| response.status().as_u16());
    shared.lock().asked.push(Asked { operation, path, status });
    answered
}

async fn with_fault(fault: S3Fault, request: Request<Incoming>, service: S3Service) -> Result<Response<Body>, Broken> {
    match fault {
        S3Fault::None => honest(request, service).await,
        S3Fault::Refused(status) => {
            // As a busy server does: the request is read and thrown away.
            request.into_body().collect().await?;
            Ok(error_answer(status))
        }
        S3Fault::Applied(status) => {
            honest(request, service).await?;
            Ok(error_answer(status))
        }
        S3Fault::Truncated => {
            let (mut head, body) = honest(request, service).await?.into_parts();
            let bytes = body.collect().await?.to_bytes();
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
            let half = bytes.slice(..bytes.len() / 2);
            let parts = vec![Ok(hyper::body::Frame::data(half)), Err(Broken::from("broken off on purpose"))];
            let broken = http_body_util::StreamBody::new(futures::stream::iter(parts));
            Ok(Response::from_parts(head, Body::http_body(broken)))
        }
        S3Fault::Stalled(time) => {
            tokio::time::sleep(time).await;
            Err("stalled on purpose".into())
        }
        S3Fault::Reset => {
            // Some of the body, so that the other side is in its middle.
            let mut body = request.into_body();
            let _ = body.frame().await;
            Err("reset on purpose".into())
        }
    }
}

async fn honest(request: Request<Incoming>, service: S3Service) -> Result<Response<Body>, Broken> {
    hyper::service::Service::call(&service, request).await.map_err(Into::into)
}

fn error_answer(status: u16) -> Response<Body> {
    let code = match status {
        409 => "ConditionalRequestConflict",
        412 => "PreconditionFailed",
        501 => "NotImplemented",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>on purpose</Message></Error>"
    );
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status == 503 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// What an S3 request is about, by its method, query and headers.
fn classify(request: &Request<Incoming>) -> (Operation, String) {
    let query = request.uri().query().unwrap_or_default();
    let parameter = |name: &str| {
        query.split('&').find_map(|part| {
            let (found, value) = part.split_once('=').unwrap_or((part, ""));
            (found == name).then_some(value)
        })
    };
    let has = |name: &str| parameter(name).is_some();
    let headers = request.headers();
    let operation = match *request.method() {
        Method::HEAD => Operation::Head,
        Method::GET if has("list-type") => Operation::List,
        Method::GET => Operation::Get,
        Method::POST if has("uploads") => Operation::UploadStart,
        Method::POST if has("uploadId") => Operation::UploadComplete,
        Method::POST => Operation::Delete,
        Method::DELETE if has("uploadId") => Operation::UploadAbort,
        Method::DELETE => Operation::Delete,
        _ if has("partNumber") => Operation::UploadPart,
        _ if headers.contains_key("x-amz-copy-source") => Operation::Copy,
        _ if headers.contains_key(IF_NONE_MATCH) => Operation::PutCreate,
        _ if headers.contains_key(IF_MATCH) => Operation::PutUpdate,
        _ => Operation::Put,
    };
    let mut path = request.uri().path().to_owned();
    if operation == Operation::List {
        path = format!("{path}/{}", parameter("prefix").unwrap_or_default().replace("%2F", "/"));
    }
    (operation, path)
}
