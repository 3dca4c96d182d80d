use tonic::Extensions;
use tonic::metadata::MetadataMap;

use crate::question::Question;
use crate::{ServeError, Token};

/// What the caller of a call may do. Put into every call by [`Guard`], so that a call without it may do nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) put: bool,
}

impl Rights {
    /// Those of a call.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().copied().unwrap_or(Self { read: false, put: false })
    }

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

/// Who gets which rights.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) read: Option<Token>,
    pub(crate) put: Option<Token>,
    pub(crate) takes_puts: bool,
}

impl Guard {
    /// The rights that a call's token gives; what needs no token is everybody's.
    ///
    /// # Errors
    /// [`ServeError::Unauthenticated`] when that is nothing.
    pub(crate) fn rights(&self, metadata: &MetadataMap) -> Result<Rights, ServeError> {
        let sent = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let opens =
            |token: &Option<Token>| token.as_ref().is_none_or(|token| sent.is_some_and(|sent| token.accepts(sent)));
        match (Rights { read: opens(&self.read), put: self.takes_puts && opens(&self.put) }) {
            Rights { read: false, put: false } => Err(ServeError::Unauthenticated),
            rights => Ok(rights),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(guard: &Guard, sent: Option<&str>) -> Option<(bool, bool)> {
        let mut metadata = MetadataMap::new();
        if let Some(sent) = sent {
            metadata.insert("authorization", format!("Bearer {sent}").parse().unwrap());
        }
        guard.rights(&metadata).ok().map(|rights| (rights.read, rights.put))
    }

    #[test]
    fn each_token_opens_its_own() {
        let (read, put) = (Some("a-token-to-read-with"), Some("a-token-to-put-with"));
        let guard = |read: Option<&str>, put: Option<&str>, takes_puts| {
            let token = |text: Option<&str>| text.map(|text| Token::parse(text).unwrap());
            Guard { read: token(read), put: token(put), takes_puts }
        };
        let open = guard(None, None, true);
        assert_eq!(rights(&open, None), Some((true, true)));
        let protected_puts = guard(None, put, true);
        assert_eq!(rights(&protected_puts, None), Some((true, false)));
        assert_eq!(rights(&protected_puts, put), Some((true, true)));
        let protected = guard(read, put, true);
        assert_eq!(rights(&protected, read), Some((true, false)));
        assert_eq!(rights(&protected, put), Some((false, true)));
        assert_eq!(rights(&protected, Some("another-token-of-length")), None);
        assert_eq!(rights(&protected, None), None);
        let read_only = guard(read, None, false);
        assert_eq!(rights(&read_only, read), Some((true, false)));
        assert_eq!(rights(&read_only, None), None);
        assert_eq!(rights(&guard(None, None, false), None), Some((true, false)));
    }
}
