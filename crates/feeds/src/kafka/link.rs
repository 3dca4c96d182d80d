use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, FetchRequest, FetchResponse, ListOffsetsRequest,
    ListOffsetsResponse, MetadataRequest, MetadataResponse, RequestHeader, ResponseHeader, SaslAuthenticateRequest,
    SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Message, StrBytes};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::login::{Login, Mechanism, Scram};
use crate::{FeedError, Result};

const CLIENT_ID: &str = "holdfast";
/// How long a broker may take to be connected to, and to answer beyond the time it was asked to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The longest answer: brokers send a batch that is longer than what was asked for alone.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// Error codes of the protocol, <https://kafka.apache.org/protocol#protocol_error_codes>.
const SASL_AUTHENTICATION_FAILED: i16 = 58;
const UNSUPPORTED_SASL_MECHANISM: i16 = 33;

/// How brokers are reached.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
    pub(crate) login: Option<Login>,
}

/// A request and the message that answers it.
pub(crate) trait Call: Encodable + HeaderVersion + Message {
    /// The number of the request.
    const KEY: i16;
    /// Its answer.
    type Answer: Decodable + HeaderVersion;
}

macro_rules! calls {
    ($($request:ident, $answer:ident, $key:ident;)*) => {
        $(
            impl Call for $request {
                const KEY: i16 = ApiKey::$key as i16;
                type Answer = $answer;
            }
        )*
    };
}

calls! {
    ApiVersionsRequest, ApiVersionsResponse, ApiVersions;
    FetchRequest, FetchResponse, Fetch;
    ListOffsetsRequest, ListOffsetsResponse, ListOffsets;
    MetadataRequest, MetadataResponse, Metadata;
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslAuthenticate;
    SaslHandshakeRequest, SaslHandshakeResponse, SaslHandshake;
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to one broker. After an error, or a call that was dropped, it is of no more use.
pub(crate) struct Link {
    stream: Box<dyn Stream>,
    address: String,
    /// The versions of each request that the broker knows.
    versions: HashMap<i16, (i16, i16)>,
    calls: i32,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects to `host:port` and says who we are.
    ///
    /// # Errors
    /// [`FeedError::Unreachable`], and [`FeedError::Refused`] when the broker does not want us.
    pub(crate) async fn connect(address: &str, access: &Access) -> Result<Self> {
        let unreachable = |reason: String| FeedError::Unreachable { what: what(address), reason };
        let connecting = async {
            let stream = TcpStream::connect(address).await.map_err(|error| unreachable(error.to_string()))?;
            // Requests are small and wanted at once.
            let _ = stream.set_nodelay(true);
            let stream: Box<dyn Stream> = match &access.tls {
                None => Box::new(stream),
                Some(config) => {
                    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                        .map_err(|error| unreachable(error.to_string()))?;
                    let encrypted = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
                    Box::new(encrypted.map_err(|error| {
                        unreachable(format!("no encrypted connection: {error}; check `tls` and `ca_file`"))
                    })?)
                }
            };
            let mut link = Self { stream, address: address.to_owned(), versions: HashMap::new(), calls: 0 };
            link.learn_versions().await?;
            if let Some(login) = &access.login {
                link.log_in(login).await?;
            }
            Ok(link)
        };
        timeout(ANSWER_WITHIN, connecting).await.unwrap_or_else(|_| {
            Err(unreachable(format!(
                "no answer within {} s; is it a Kafka broker, and does it speak TLS there?",
                ANSWER_WITHIN.as_secs()
            )))
        })
    }

    /// Asks and waits for the answer, which may take `wait` longer than others. `newest` is the newest version of the request that its caller
    /// understands.
    ///
    /// # Errors
    /// [`FeedError::Unreachable`] when the connection breaks; [`FeedError::Refused`] when the broker is too old, or too new.
    pub(crate) async fn call<Q: Call>(&mut self, request: &Q, newest: i16, wait: Duration) -> Result<Q::Answer> {
        let (oldest_there, newest_there) = self.versions.get(&Q::KEY).copied().unwrap_or((0, -1));
        let version = newest.min(newest_there);
        if version < oldest_there.max(Q::VERSIONS.min) {
            return Err(FeedError::Refused {
                what: what(&self.address),
                reason: format!(
                    "it knows versions {oldest_there} to {newest_there} of request {}, and {} to {newest} are known here: use a broker of \
                     Kafka 0.11 or newer",
                    Q::KEY,
                    Q::VERSIONS.min
                ),
            });
        }
        self.call_version(request, version, wait).await
    }

    async fn call_version<Q: Call>(&mut self, request: &Q, version: i16, wait: Duration) -> Result<Q::Answer> {
        let broken = |reason: String| FeedError::Unreachable { what: what(&self.address), reason };
        self.calls = self.calls.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(Q::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.calls)
            .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)));
        let mut frame = BytesMut::from([0; 4].as_slice());
        header
            .encode(&mut frame, Q::header_version(version))
            .and_then(|()| request.encode(&mut frame, version))
            .map_err(FeedError::internal)?;
        let length = u32::try_from(frame.len() - 4).map_err(FeedError::internal)?;
        frame[..4].copy_from_slice(&length.to_be_bytes());

        let (stream, calls) = (&mut self.stream, self.calls);
        let exchange = async {
            stream.write_all(&frame).await?;
            stream.flush().await?;
            let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
            if length > ANSWER_BYTES_MAX {
                let text = format!("an answer of {length} bytes, more than {ANSWER_BYTES_MAX}; is it a Kafka broker?");
                return Err(std::io::Error::other(text));
            }
            let mut answer = vec![0; length];
            stream.read_exact(&mut answer).await?;
            Ok(Bytes::from(answer))
        };
        let mut answer = match timeout(ANSWER_WITHIN + wait, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(broken(error.to_string())),
            Err(_) => return Err(broken(format!("no answer within {} s", (ANSWER_WITHIN + wait).as_secs()))),
        };
        let unreadable = |error: &dyn std::fmt::Display| FeedError::Unreadable {
            what: what(&self.address),
            reason: format!("its answer to request {} version {version} cannot be read: {error}", Q::KEY),
        };
        let header = ResponseHeader::decode(&mut answer, Q::Answer::header_version(version))
            .map_err(|error| unreadable(&error))?;
        if header.correlation_id != calls {
            return Err(unreadable(&"it belongs to another request"));
        }
        Q::Answer::decode(&mut answer, version).map_err(|error| unreadable(&error))
    }

    async fn learn_versions(&mut self) -> Result<()> {
        // The one request that every broker answers in its first version.
        let answer = self.call_version(&ApiVersionsRequest::default(), 0, Duration::ZERO).await?;
        self.versions = answer.api_keys.iter().map(|api| (api.api_key, (api.min_version, api.max_version))).collect();
        Ok(())
    }

    async fn log_in(&mut self, login: &Login) -> Result<()> {
        let mechanism = StrBytes::from_static_str(login.mechanism.as_str());
        let request = SaslHandshakeRequest::default().with_mechanism(mechanism);
        let answer = self.call(&request, 1, Duration::ZERO).await?;
        if answer.error_code != 0 {
            let known: Vec<&str> = answer.mechanisms.iter().map(StrBytes::as_str).collect();
            let reason = match answer.error_code {
                UNSUPPORTED_SASL_MECHANISM => {
                    format!("it does not know {}; it knows {}", login.mechanism.as_str(), known.join(", "))
                }
                code => format!("it does not take a login (error {code})"),
            };
            return Err(self.refused(reason));
        }
        if login.mechanism == Mechanism::Plain {
            self.authenticate(login.plain()).await?;
            return Ok(());
        }
        let mut scram = Scram::new(login);
        let challenge = self.authenticate(scram.first().into_bytes()).await?;
        let last = scram.last(&challenge).map_err(|reason| self.refused(reason.to_owned()))?;
        let answer = self.authenticate(last.into_bytes()).await?;
        if scram.accepts(&answer) {
            Ok(())
        } else {
            Err(self.refused("it does not know the password itself: another server is in between".to_owned()))
        }
    }

    async fn authenticate(&mut self, message: Vec<u8>) -> Result<Bytes> {
        let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
        let answer = self.call(&request, 2, Duration::ZERO).await?;
        match answer.error_code {
            0 => Ok(answer.auth_bytes),
            SASL_AUTHENTICATION_FAILED => Err(self
                .refused("it does not accept the user and the password: check `user` and `password_env`".to_owned())),
            code => Err(self.refused(format!("the login failed (error {code})"))),
        }
    }

    fn refused(&self, reason: String) -> FeedError {
        FeedError::Refused { what: what(&self.address), reason }
    }
}

fn what(address: &str) -> String {
    format!("Kafka broker {address}")
}
