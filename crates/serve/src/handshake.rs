//! Names and passwords become bearer tokens, so that a password is sent once and hashed once.

use std::net::IpAddr;

use arrow_flight::{BasicAuth, HandshakeRequest};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use holdfast_access::{Access, AccessError};
use prost::Message;
use tonic::Streaming;

use crate::{Result, ServeError};

/// ADBC's driver leaves the padding out, others do not.
const PADDED_OR_NOT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A token for who is named in the `authorization` header, `Basic …`, or in the first message.
///
/// # Errors
/// [`ServeError::Unsupported`] where nobody is known by name; a wrong name or password, without a word on which.
pub(crate) async fn token(
    access: &Access,
    sent: Option<String>,
    mut messages: Streaming<HandshakeRequest>,
    from: Option<IpAddr>,
) -> Result<String> {
    if !access.has_users() {
        return Err(ServeError::Unsupported(
            "there are no users and passwords here: leave them out, and send the token as the header \
             `authorization: Bearer <token>`"
                .to_owned(),
        ));
    }
    let (user, password) = match sent.as_deref().and_then(|sent| sent.split_once(' ')) {
        Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => basic(encoded.trim()),
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            // Who has a token already goes on with it.
            access.by_token(token.trim()).await?;
            return Ok(token.trim().to_owned());
        }
        _ => {
            let first = messages.message().await.ok().flatten();
            first.and_then(|first| BasicAuth::decode(first.payload).ok()).map(|basic| (basic.username, basic.password))
        }
    }
    .ok_or(AccessError::Refused("a user name and a password are needed: send `authorization: Basic …`"))?;
    let principal = access.by_password(&user, &password, from).await?;
    access.session_token(&principal).ok_or(ServeError::Unauthenticated)
}

fn basic(encoded: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(PADDED_OR_NOT.decode(encoded).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_passwords_are_read_with_padding_and_without() {
        for (encoded, password) in
            [("YW5hOmE=", "a"), ("YW5hOmE", "a"), ("YW5hOmFi", "ab"), ("YW5hOmFiYw==", "abc"), ("YW5hOmFiYw", "abc")]
        {
            assert_eq!(basic(encoded), Some(("ana".to_owned(), password.to_owned())), "{encoded}");
        }
        assert_eq!((basic("YW5h"), basic("%%%")), (None, None));
    }
}
