//! A client of PostgreSQL's protocol that keeps every byte it is sent.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

/// Rows as texts; nulls are none.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// What a server says of what went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PgError {
    pub(crate) code: String,
    pub(crate) message: String,
}

pub(crate) struct PgClient {
    stream: TcpStream,
    /// Everything that came.
    pub(crate) received: Vec<u8>,
    read: usize,
}

impl PgClient {
    /// Connects and logs in. Without a password none may be asked for.
    pub(crate) async fn connect(address: SocketAddr, user: &str, password: Option<&str>) -> Result<Self, PgError> {
        let mut client = Self { stream: TcpStream::connect(address).await.unwrap(), received: Vec::new(), read: 0 };
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        for text in ["user", user, "database", "holdfast"] {
            startup.extend_from_slice(text.as_bytes());
            startup.push(0);
        }
        startup.push(0);
        client.send(None, &startup).await;
        client.log_in(password).await?;
        loop {
            match client.message().await? {
                (b'Z', _) => return Ok(client),
                (b'K' | b'S' | b'R' | b'N', _) => {}
                (kind, _) => panic!("{} is no part of a log-in", char::from(kind)),
            }
        }
    }

    async fn log_in(&mut self, password: Option<&str>) -> Result<(), PgError> {
        let (_, asked) = self.message().await?;
        if asked[..4] == 0_u32.to_be_bytes() {
            return Ok(());
        }
        assert_eq!(asked[..4], 10_u32.to_be_bytes(), "SCRAM is asked for");
        let bare = format!("n=,r={NONCE}");
        let first = format!("n,,{bare}");
        let mut body = b"SCRAM-SHA-256\0".to_vec();
        body.extend_from_slice(&u32::try_from(first.len()).unwrap().to_be_bytes());
        body.extend_from_slice(first.as_bytes());
        self.send(Some(b'p'), &body).await;

        let (_, challenge) = self.message().await?;
        let challenge = String::from_utf8(challenge[4..].to_vec()).unwrap();
        let part = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).unwrap().to_owned();
        let (nonce, salt, iterations) = (part("r="), STANDARD.decode(part("s=")).unwrap(), part("i="));
        let iterations: NonZeroU32 = iterations.parse().unwrap();
        let mut salted = [0; digest::SHA256_OUTPUT_LEN];
        let password = password.expect("a password is asked for").as_bytes();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password, &mut salted);
        let keyed = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
        let client_key = keyed(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let last = format!("c=biws,r={nonce}");
        let signature = keyed(stored_key.as_ref(), format!("{bare},{challenge},{last}").as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(key, sign)| key ^ sign).collect();
        self.send(Some(b'p'), format!("{last},p={}", STANDARD.encode(proof)).as_bytes()).await;
        let (_, proved) = self.message().await?;
        assert_eq!(proved[..4], 12_u32.to_be_bytes());
        Ok(())
    }

    /// The rows of a query in the simple protocol; of a copy, its lines, cut at tabs.
    pub(crate) async fn simple(&mut self, sql: &str) -> Result<Rows, PgError> {
        self.send(Some(b'Q'), format!("{sql}\0").as_bytes()).await;
        self.answer().await
    }

    /// The same in the extended protocol, with values as text.
    pub(crate) async fn extended(&mut self, sql: &str, values: &[&str]) -> Result<Rows, PgError> {
        self.send(Some(b'P'), format!("\0{sql}\0\0\0").as_bytes()).await;
        let mut bind = b"\0\0\0\0".to_vec();
        bind.extend_from_slice(&u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            bind.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
            bind.extend_from_slice(value.as_bytes());
        }
        bind.extend_from_slice(b"\0\0");
        self.send(Some(b'B'), &bind).await;
        self.send(Some(b'D'), b"P\0").await;
        self.send(Some(b'E'), b"\0\0\0\0\0").await;
        self.send(Some(b'S'), b"").await;
        self.answer().await
    }

    /// The columns that a statement would have, without running it.
    pub(crate) async fn described(&mut self, sql: &str) -> Result<Vec<String>, PgError> {
        self.send(Some(b'P'), format!("\0{sql}\0\0\0").as_bytes()).await;
        self.send(Some(b'D'), b"S\0").await;
        self.send(Some(b'S'), b"").await;
        let mut columns = Vec::new();
        let mut failed = None;
        loop {
            match self.message().await {
                Ok((b'Z', _)) => return failed.map_or(Ok(columns), Err),
                Ok((b'T', body)) => {
                    let mut rest = &body[2..];
                    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
                        columns.push(String::from_utf8_lossy(&rest[..end]).into_owned());
                        // Behind the name are a table, a column, a type with its size and modifier, and a format.
                        rest = &rest[end + 19..];
                    }
                }
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
    }

    async fn answer(&mut self) -> Result<Rows, PgError> {
        let (mut rows, mut failed) = (Rows::new(), None);
        loop {
            match self.message().await {
                Ok((b'Z', _)) => return failed.map_or(Ok(rows), Err),
                Ok((b'D', body)) => rows.push(cells(&body)),
                Ok((b'd', body)) => {
                    let line = String::from_utf8(body).unwrap();
                    let cell = |cell: &str| (cell != "\\N").then(|| cell.to_owned());
                    rows.push(line.trim_end_matches('\n').split('\t').map(cell).collect());
                }
                Ok(_) => {}
                Err(error) if error.code.starts_with("57P") || error.code.starts_with("08") => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
    }

    /// The next message, by its kind; an error where the server tells one.
    pub(crate) async fn message(&mut self) -> Result<(u8, Vec<u8>), PgError> {
        self.fill(5).await?;
        let head = &self.received[self.read..];
        let (kind, length) = (head[0], u32::from_be_bytes(head[1..5].try_into().unwrap()));
        let whole = usize::try_from(length).unwrap() + 1;
        self.fill(whole).await?;
        let body = self.received[self.read + 5..self.read + whole].to_vec();
        self.read += whole;
        match kind {
            b'E' => Err(problem(&body)),
            kind => Ok((kind, body)),
        }
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), PgError> {
        while self.received.len() - self.read < bytes {
            match self.stream.read_buf(&mut self.received).await {
                Ok(count) if count > 0 => {}
                _ => return Err(PgError { code: "08006".to_owned(), message: "the connection has ended".to_owned() }),
            }
        }
        Ok(())
    }

    /// Sends a message; what a server that has gone does not take is lost.
    pub(crate) async fn send(&mut self, kind: Option<u8>, body: &[u8]) {
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        message.extend_from_slice(body);
        let _ = self.stream.write_all(&message).await;
    }
}

fn cells(body: &[u8]) -> Vec<Option<String>> {
    let count = u16::from_be_bytes(body[..2].try_into().unwrap());
    let mut rest = &body[2..];
    let mut cell = || {
        let length = i32::from_be_bytes(rest[..4].try_into().unwrap());
        rest = &rest[4..];
        let length = usize::try_from(length).ok()?;
        let (text, after) = rest.split_at(length);
        rest = after;
        Some(String::from_utf8(text.to_vec()).unwrap())
    };
    (0..count).map(|_| cell()).collect()
}

fn problem(body: &[u8]) -> PgError {
    let fields: Vec<&[u8]> = body.split(|byte| *byte == 0).collect();
    let field = |kind: u8| {
        let found = fields.iter().find(|field| field.first() == Some(&kind)).map(|field| &field[1..]);
        String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
    };
    PgError { code: field(b'C'), message: format!("{} {} {}", field(b'M'), field(b'D'), field(b'H')) }
}
