use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::error::PostgresError;
use super::settings::{Server, SslMode};
use super::tls;
use super::wire::{Messages, quote_identifier};
use crate::login::{Login, Mechanism, Scram};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For statements that only look at the catalog.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// The largest message that a server makes: a row of 1 GB and what is around it.
const MESSAGE_BYTES_MAX: usize = (1 << 30) + (1 << 20);

/// Every value comes as text, the same for a snapshot and for changes, whatever the role's and the server's settings are.
const SESSION: [(&str, &str); 12] = [
    ("replication", "database"),
    ("application_name", "holdfast"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("search_path", "pg_catalog"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    // A policy that hides rows from us is an error, not a smaller table.
    ("row_security", "off"),
];

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection in replication mode: it answers both SQL and replication commands, by the simple query protocol, as text.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    read: BytesMut,
    write: BytesMut,
    server: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).finish_non_exhaustive()
    }
}

/// One row of an answer; `None` is null.
pub(crate) type Row = Vec<Option<String>>;

/// What comes of a copy or of replication.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A row, or a message of the log.
    Data(Bytes),
    /// There is nothing more.
    End,
}

/// A message of the server: what kind, and what is behind its length.
#[derive(Debug)]
struct Message {
    tag: u8,
    body: Bytes,
}

impl Connection {
    /// Connects and logs in.
    pub(crate) async fn open(server: &Server) -> Result<Self, PostgresError> {
        let opened = timeout(CONNECT_TIMEOUT, async {
            let stream = connect(server).await?;
            let mut connection = Self { stream, read: BytesMut::new(), write: BytesMut::new(), server: server.shown() };
            connection.log_in(server).await?;
            Ok(connection)
        });
        opened.await.unwrap_or_else(|_| {
            let seconds = CONNECT_TIMEOUT.as_secs();
            Err(PostgresError::Silent { server: server.shown(), what: "connecting", seconds })
        })
    }

    /// The rows of a statement that takes no time.
    pub(crate) async fn query(&mut self, what: &'static str, sql: &str) -> Result<Vec<Row>, PostgresError> {
        let answered = timeout(LOOK_TIMEOUT, self.query_unhurried(what, sql)).await;
        answered.unwrap_or_else(|_| {
            Err(PostgresError::Silent { server: self.server.clone(), what, seconds: LOOK_TIMEOUT.as_secs() })
        })
    }

    /// The rows of a statement that may take as long as it takes.
    pub(crate) async fn query_unhurried(&mut self, what: &'static str, sql: &str) -> Result<Vec<Row>, PostgresError> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let message = self.receive(what).await?;
            match message.tag {
                b'D' => rows.push(self.row(message.body)?),
                b'E' => refused = Some(self.refusal(what, &message.body)),
                b'Z' => return refused.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Starts `COPY … TO STDOUT`; its rows are what [`Self::copy_data`] answers.
    pub(crate) async fn start_copy(&mut self, what: &'static str, sql: &str) -> Result<(), PostgresError> {
        self.start(what, sql, b'H').await
    }

    /// Starts `START_REPLICATION`; its messages are what [`Self::copy_data`] answers.
    pub(crate) async fn start_replication(&mut self, sql: &str) -> Result<(), PostgresError> {
        const WHAT: &str = "starting replication";
        let started = timeout(LOOK_TIMEOUT, self.start(WHAT, sql, b'W')).await;
        started.unwrap_or_else(|_| {
            Err(PostgresError::Silent { server: self.server.clone(), what: WHAT, seconds: LOOK_TIMEOUT.as_secs() })
        })
    }

    async fn start(&mut self, what: &'static str, sql: &str, begun: u8) -> Result<(), PostgresError> {
        self.send_query(sql).await?;
        loop {
            let message = self.receive(what).await?;
            match message.tag {
                tag if tag == begun => return Ok(()),
                b'E' => {
                    let refused = self.refusal(what, &message.body);
                    self.until_ready(what).await?;
                    return Err(refused);
                }
                b'Z' => return Err(self.protocol(format!("{what}: the server did not begin"))),
                _ => {}
            }
        }
    }

    /// The next piece of what was started. May be cancelled and called again.
    pub(crate) async fn copy_data(&mut self, what: &'static str) -> Result<Piece, PostgresError> {
        loop {
            let message = self.receive(what).await?;
            if let Some(piece) = self.piece(what, message)? {
                return Ok(piece);
            }
        }
    }

    /// A piece that has arrived already.
    pub(crate) fn copy_data_at_hand(&mut self, what: &'static str) -> Result<Option<Piece>, PostgresError> {
        while let Some(message) = self.message_at_hand()? {
            if let Some(piece) = self.piece(what, message)? {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    fn piece(&self, what: &'static str, message: Message) -> Result<Option<Piece>, PostgresError> {
        match message.tag {
            b'd' => Ok(Some(Piece::Data(message.body))),
            b'E' => Err(self.refusal(what, &message.body)),
            b'c' | b'Z' => Ok(Some(Piece::End)),
            _ => Ok(None),
        }
    }

    /// Reads over the end of what was started.
    pub(crate) async fn until_ready(&mut self, what: &'static str) -> Result<(), PostgresError> {
        let mut refused = None;
        loop {
            let message = self.receive(what).await?;
            match message.tag {
                b'E' => refused = Some(self.refusal(what, &message.body)),
                b'Z' => return refused.map_or(Ok(()), Err),
                _ => {}
            }
        }
    }

    /// Sends a piece of our own while replicating.
    pub(crate) async fn send_copy_data(&mut self, piece: &[u8]) -> Result<(), PostgresError> {
        self.write.copy_data(piece);
        self.flush().await
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    pub(crate) fn protocol(&self, what: impl Into<String>) -> PostgresError {
        PostgresError::Protocol { server: self.server.clone(), what: what.into() }
    }

    fn broken(&self, what: &'static str, source: std::io::Error) -> PostgresError {
        PostgresError::Connection { server: self.server.clone(), what, source }
    }

    /// The server's refusal: its SQLSTATE and the first line of its message. Details and hints may quote rows.
    fn refusal(&self, what: &str, body: &Bytes) -> PostgresError {
        let (mut code, mut message) = (String::new(), String::new());
        for field in body.split(|byte| *byte == 0) {
            match field.split_first() {
                Some((b'C', text)) => code = String::from_utf8_lossy(text).into_owned(),
                Some((b'M', text)) => {
                    message = String::from_utf8_lossy(text).lines().next().unwrap_or_default().to_owned();
                }
                _ => {}
            }
        }
        PostgresError::Server { server: self.server.clone(), what: what.to_owned(), message, code }
    }

    fn row(&self, mut body: Bytes) -> Result<Row, PostgresError> {
        let short = || self.protocol("a row of an answer is cut short");
        let columns = body.try_get_u16().map_err(|_| short())?;
        let mut row = Vec::with_capacity(usize::from(columns));
        for _ in 0..columns {
            let length = body.try_get_i32().map_err(|_| short())?;
            let Ok(length) = usize::try_from(length) else {
                row.push(None);
                continue;
            };
            if body.len() < length {
                return Err(short());
            }
            let text = body.split_to(length);
            row.push(Some(String::from_utf8_lossy(&text).into_owned()));
        }
        Ok(row)
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), PostgresError> {
        self.write.query(sql);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), PostgresError> {
        let sent = async {
            self.stream.write_all(&self.write).await?;
            self.stream.flush().await
        };
        let sent = timeout(LOOK_TIMEOUT, sent).await;
        self.write.clear();
        match sent {
            Ok(sent) => sent.map_err(|error| self.broken("sending", error)),
            Err(_) => Err(PostgresError::Silent {
                server: self.server.clone(),
                what: "sending",
                seconds: LOOK_TIMEOUT.as_secs(),
            }),
        }
    }

    /// The next message. May be cancelled and called again: what was read of one stays.
    async fn receive(&mut self, what: &'static str) -> Result<Message, PostgresError> {
        loop {
            if let Some(message) = self.message_at_hand()? {
                return Ok(message);
            }
            if self.read.capacity() - self.read.len() < READ_BUFFER_BYTES / 8 {
                self.read.reserve(READ_BUFFER_BYTES);
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) => {
                    let closed =
                        std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the server closed the connection");
                    return Err(self.broken(what, closed));
                }
                Ok(_) => {}
                Err(error) => return Err(self.broken(what, error)),
            }
        }
    }

    fn message_at_hand(&mut self) -> Result<Option<Message>, PostgresError> {
        let [tag, l0, l1, l2, l3, ..] = self.read[..] else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(self.protocol("this is not the protocol of PostgreSQL: check host and port"));
        }
        if self.read.len() <= length {
            self.read.reserve(length + 1 - self.read.len());
            return Ok(None);
        }
        let mut message = self.read.split_to(length + 1).freeze();
        message.advance(5);
        Ok(Some(Message { tag, body: message }))
    }

    async fn log_in(&mut self, server: &Server) -> Result<(), PostgresError> {
        const WHAT: &str = "logging in";
        let names = [("user", server.user.as_str()), ("database", server.dbname.as_str())];
        self.write.startup(names.into_iter().chain(SESSION));
        self.flush().await?;
        let mut scram: Option<Scram> = None;
        let mut proven = true;
        loop {
            let mut message = self.receive(WHAT).await?;
            match message.tag {
                b'R' => {
                    let short = |_| self.protocol("an authentication message is cut short");
                    match message.body.try_get_u32().map_err(short)? {
                        0 if proven => {}
                        0 => return Err(self.denied("the server did not prove that it knows the password")),
                        3 if server.sslmode == SslMode::Disable && !server.host.starts_with('/') => {
                            return Err(self.denied(
                                "it asks for the password in clear text: use TLS, or scram-sha-256 in its pg_hba.conf",
                            ));
                        }
                        3 => {
                            let answer = [self.password(server)?.as_bytes(), b"\0"].concat();
                            self.write.password(&answer);
                        }
                        10 => {
                            let mechanism = Mechanism::ScramSha256;
                            if !message.body.split(|byte| *byte == 0).any(|name| name == mechanism.as_str().as_bytes())
                            {
                                return Err(self.denied("it offers no scram-sha-256"));
                            }
                            let password = self.password(server)?.to_owned();
                            let started = Scram::new(&Login { mechanism, user: server.user.clone(), password });
                            self.write.sasl_first(mechanism.as_str(), started.first().as_bytes());
                            (scram, proven) = (Some(started), false);
                        }
                        11 => {
                            let Some(scram) = &mut scram else { return Err(self.protocol("scram out of turn")) };
                            let answer = scram.last(&message.body).map_err(|reason| self.denied(reason))?;
                            self.write.password(answer.as_bytes());
                        }
                        12 => proven = scram.as_ref().is_some_and(|scram| scram.accepts(&message.body)),
                        _ => {
                            return Err(
                                self.denied("it asks for a way to log in that is not known here: use scram-sha-256")
                            );
                        }
                    }
                    self.flush().await?;
                }
                b'E' => return Err(self.not_let_in(server, &message.body)),
                b'Z' if proven => return Ok(()),
                _ => {}
            }
        }
    }

    fn password<'a>(&self, server: &'a Server) -> Result<&'a str, PostgresError> {
        let missing = || self.denied("it asks for a password: name an environment variable in password_env");
        server.password.as_deref().ok_or_else(missing)
    }

    fn denied(&self, reason: impl Into<String>) -> PostgresError {
        PostgresError::Denied { server: self.server.clone(), reason: reason.into() }
    }

    /// A refusal to log in, with the remedy where it is ours or the server's settings.
    fn not_let_in(&self, server: &Server, body: &Bytes) -> PostgresError {
        let refusal = self.refusal("logging in", body);
        let PostgresError::Server { code, message, .. } = &refusal else { return refusal };
        match code.as_str() {
            "28P01" => {
                let env = server.password_env.as_deref().unwrap_or("the one that password_env names");
                self.denied(format!("{message}: the environment variable {env} holds another"))
            }
            "28000" => self.denied(format!(
                "{message}: pg_hba.conf needs a line for user {} and database {}",
                server.user, server.dbname
            )),
            "42501" => PostgresError::Setup {
                server: self.server.clone(),
                reason: format!("role {} may not replicate", server.user),
                sql: format!("alter role {} replication", quote_identifier(&server.user)),
            },
            _ => refusal,
        }
    }
}

/// Opens the socket, and protects it as asked.
async fn connect(server: &Server) -> Result<Box<dyn Stream>, PostgresError> {
    let broken = |source| PostgresError::Connection { server: server.shown(), what: "connecting", source };
    if server.host.starts_with('/') {
        let socket = format!("{}/.s.PGSQL.{}", server.host.trim_end_matches('/'), server.port);
        return Ok(Box::new(UnixStream::connect(socket).await.map_err(broken)?));
    }
    let mut stream = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(broken)?;
    stream.set_nodelay(true).map_err(broken)?;
    // Silence of a copy may be work; a peer that is gone is found by the system.
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(broken)?;
    if server.sslmode == SslMode::Disable {
        return Ok(Box::new(stream));
    }
    let mut request = BytesMut::new();
    request.ssl_request();
    stream.write_all(&request).await.map_err(broken)?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await.map_err(broken)?;
    if answer != *b"S" {
        return Err(PostgresError::Tls {
            server: server.shown(),
            reason: "the server has no TLS: set ssl = on there, or sslmode = \"disable\" on a network that is trusted"
                .to_owned(),
        });
    }
    Ok(Box::new(tls::protect(server, stream).await?))
}
