use crate::{Result, ServeError};

/// The secret that every Flight call must carry as `authorization: Bearer <token>`. Only its hash is kept, and it is
/// never shown.
#[derive(Clone)]
pub struct Token(blake3::Hash);

/// Shorter secrets can be guessed over the network.
const MIN_CHARACTERS: usize = 16;

impl Token {
    /// Reads the content of a token file; white space around the token is not part of it.
    ///
    /// # Errors
    /// [`ServeError::Token`] when it is too short or cannot travel in an HTTP header.
    pub fn parse(text: &str) -> Result<Self> {
        let token = text.trim();
        if token.len() < MIN_CHARACTERS {
            return Err(ServeError::Token {
                reason: format!(
                    "it needs at least {MIN_CHARACTERS} characters (`openssl rand -hex 32` makes a good one)"
                ),
            });
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ServeError::Token {
                reason: "it may hold only printable ASCII characters, without spaces or line breaks".to_owned(),
            });
        }
        Ok(Self(blake3::hash(token.as_bytes())))
    }

    /// Whether it is the same secret.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    /// Whether the value of an `authorization` header carries this token. Hashes are compared in constant time, so the
    /// answer's duration tells nothing about the token.
    pub(crate) fn accepts(&self, authorization: &str) -> bool {
        match authorization.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                blake3::hash(token.trim().as_bytes()) == self.0
            }
            _ => false,
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_bearer_token_is_accepted() {
        let token = Token::parse("0123456789abcdef\n").unwrap();
        assert!(token.accepts("Bearer 0123456789abcdef"));
        assert!(token.accepts("bearer  0123456789abcdef"));
        for wrong in ["", "Bearer", "Bearer ", "Bearer 0123456789abcdeF", "Basic 0123456789abcdef", "0123456789abcdef"]
        {
            assert!(!token.accepts(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_weak_or_unsendable_token_is_refused_and_none_is_shown() {
        for wrong in ["", "short", "0123456789 abcdef", "0123456789abcdéf"] {
            assert!(Token::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(format!("{:?}", Token::parse("0123456789abcdef").unwrap()), "Token(hidden)");
    }
}
