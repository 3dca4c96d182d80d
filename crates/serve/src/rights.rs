use std::sync::Arc;

use holdfast_access::{Access, AccessError, Principal};
use tonic::Extensions;

use crate::question::Question;
use crate::{ServeError, Token};

/// What the caller of a call may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) put: bool,
}

impl Rights {
    /// # Errors
    /// [`ServeError::Forbidden`] for who may only put.
    pub(crate) fn to_read(self) -> Result<(), ServeError> {
        if self.read { Ok(()) } else { Err(ServeError::Forbidden("this token is for putting, not for reading")) }
    }

    /// What the service can do may be asked by everybody: drivers do so before they put.
    ///
    /// # Errors
    /// As [`Rights::to_read`].
    pub(crate) fn to_ask(self, question: &Question) -> Result<(), ServeError> {
        if matches!(question, Question::SqlInfo(_)) { Ok(()) } else { self.to_read() }
    }

    /// # Errors
    /// [`ServeError::Forbidden`] for who may only read.
    pub(crate) fn to_put(self) -> Result<(), ServeError> {
        if self.put { Ok(()) } else { Err(ServeError::Forbidden("this token is for reading, not for putting")) }
    }
}

/// Who calls, and what the caller may do. Put into every call by [`Guard`], so that a call without it may do nothing.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) rights: Rights,
    pub(crate) principal: Arc<Principal>,
}

impl Caller {
    /// The caller of a call.
    ///
    /// # Errors
    /// [`ServeError::Unauthenticated`] for a call that did not go through the guard.
    pub(crate) fn of(extensions: &Extensions) -> Result<Self, ServeError> {
        extensions.get::<Self>().cloned().ok_or(ServeError::Unauthenticated)
    }
}

/// Who gets which rights.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) read: Option<Token>,
    pub(crate) put: Option<Token>,
    pub(crate) takes_puts: bool,
    pub(crate) access: Arc<Access>,
}

impl Guard {
    /// Who a call comes from: `sent` is its `authorization`, `certificate` what TLS has accepted, in DER. What needs no token is everybody's.
    ///
    /// # Errors
    /// [`ServeError::Unauthenticated`] and the like when that gives no right at all.
    pub(crate) async fn caller(&self, sent: Option<&str>, certificate: Option<&[u8]>) -> Result<Caller, ServeError> {
        let opens =
            |token: &Option<Token>| token.as_ref().is_some_and(|token| sent.is_some_and(|sent| token.accepts(sent)));
        let is_open = self.read.is_none() && !self.access.has_users();
        let mut put = self.takes_puts && (self.put.is_none() || opens(&self.put));
        let known = if opens(&self.read) {
            Some(self.access.shared_token())
        } else if is_open {
            Some(self.access.loopback())
        } else if opens(&self.put) {
            None
        } else {
            self.by_name(sent, certificate).await?
        };
        put &= is_open || known.is_some() || self.put.is_some();
        let rights = Rights { read: known.is_some(), put };
        if !rights.read && !rights.put {
            return Err(ServeError::Unauthenticated);
        }
        let principal = known.unwrap_or_else(|| Principal::shared_token(&[]));
        Ok(Caller { rights, principal: Arc::new(principal) })
    }

    async fn by_name(&self, sent: Option<&str>, certificate: Option<&[u8]>) -> Result<Option<Principal>, ServeError> {
        if !self.access.has_users() {
            return Ok(None);
        }
        match sent.map(|sent| sent.split_once(' ')) {
            Some(Some((scheme, token))) if scheme.eq_ignore_ascii_case("bearer") => {
                Ok(Some(self.access.by_token(token.trim()).await?))
            }
            Some(Some((scheme, _))) if scheme.eq_ignore_ascii_case("basic") => Err(ServeError::Access(
                AccessError::Refused("names and passwords are for Handshake, which gives a token for them"),
            )),
            Some(_) => Ok(None),
            None => Ok(certificate.and_then(|der| self.access.by_certificate(der))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn rights(guard: &Guard, sent: Option<&str>) -> Option<(bool, bool)> {
        let sent = sent.map(|sent| format!("Bearer {sent}"));
        let caller = guard.caller(sent.as_deref(), None).await.ok()?;
        Some((caller.rights.read, caller.rights.put))
    }

    #[tokio::test]
    async fn each_token_opens_its_own() {
        let (read, put) = (Some("a-token-to-read-with"), Some("a-token-to-put-with"));
        let clock = Arc::new(holdfast_types::FixedClock(std::time::UNIX_EPOCH.into()));
        let access = Arc::new(Access::unrestricted(clock).unwrap());
        let guard = |read: Option<&str>, put: Option<&str>, takes_puts| {
            let token = |text: Option<&str>| text.map(|text| Token::parse(text).unwrap());
            Guard { read: token(read), put: token(put), takes_puts, access: Arc::clone(&access) }
        };
        let open = guard(None, None, true);
        assert_eq!(rights(&open, None).await, Some((true, true)));
        let protected_puts = guard(None, put, true);
        assert_eq!(rights(&protected_puts, None).await, Some((true, false)));
        assert_eq!(rights(&protected_puts, put).await, Some((true, true)));
        let protected = guard(read, put, true);
        assert_eq!(rights(&protected, read).await, Some((true, false)));
        assert_eq!(rights(&protected, put).await, Some((false, true)));
        assert_eq!(rights(&protected, Some("another-token-of-length")).await, None);
        assert_eq!(rights(&protected, None).await, None);
        let read_only = guard(read, None, false);
        assert_eq!(rights(&read_only, read).await, Some((true, false)));
        assert_eq!(rights(&read_only, None).await, None);
        assert_eq!(rights(&guard(None, None, false), None).await, Some((true, false)));
    }
}
