use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// After how many seconds a client that was told to come back may do so.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Why a request is not taken. Nothing of it is stored, other than after [`Refusal::Unavailable`], which leaves that open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("{0}")]
    Shape(String),
    #[error("message {at}, counted from 0: {reason}; nothing of this request was stored")]
    Message { at: usize, reason: String },
    #[error("a write key is needed: send it as the user name of HTTP Basic authentication, or as writeKey in the body")]
    NoKey,
    #[error("this write key is not known here: check it, or make one with `holdfast collect --new-key SOURCE`")]
    WrongKey,
    #[error("the request is longer than {max} bytes: send smaller batches, or raise --request-kb-max")]
    RequestTooLarge { max: usize },
    #[error(
        "message {at}, counted from 0, is longer than {max} bytes: send less in it, or raise --message-kb-max; nothing of this request was stored"
    )]
    MessageTooLarge { at: usize, max: usize },
    #[error("{0}")]
    MediaType(String),
    #[error("the body did not arrive in time: send it again")]
    Slow,
    #[error("too many requests are waiting to be stored: send this one again in a moment")]
    Busy,
    #[error("the store cannot be written now: send this request again; messages that it took are not stored twice")]
    Unavailable,
    #[error("there is nothing here: POST to /v1/track, identify, page, screen, group, alias, batch, import or events")]
    NotFound,
    #[error("only POST is answered here")]
    Method,
}

impl Refusal {
    pub(crate) const fn status(&self) -> StatusCode {
        match self {
            Self::NotJson(_) | Self::Shape(_) | Self::Message { .. } => StatusCode::BAD_REQUEST,
            Self::NoKey | Self::WrongKey => StatusCode::UNAUTHORIZED,
            Self::RequestTooLarge { .. } | Self::MessageTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    const fn code(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "not_json",
            Self::Shape(_) | Self::Message { .. } => "invalid_message",
            Self::NoKey | Self::WrongKey => "unauthorized",
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::MessageTooLarge { .. } => "message_too_large",
            Self::MediaType(_) => "unsupported_media_type",
            Self::Slow => "timeout",
            Self::Busy => "busy",
            Self::Unavailable => "store_unavailable",
            Self::NotFound => "not_found",
            Self::Method => "method_not_allowed",
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "success": false, "code": self.code(), "message": self.to_string() });
        let mut response =
            (self.status(), [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        let headers = response.headers_mut();
        match self {
            Self::Busy | Self::Unavailable => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            Self::NoKey | Self::WrongKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"holdfast\""));
            }
            Self::Method => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            _ => {}
        }
        response
    }
}
