//! What the service gives out and takes back, such as tickets and prepared statements, carries a seal: a keyed hash over all of it. The key belongs to
//! the lake, so that each of its services reads what another gave out, and nobody's else.
//!
//! A seal keeps a ticket from being altered; it gives no rights. Whoever brings one is answered by the policy, as if the question were new.

use blake3::Hasher;
use bytes::Bytes;
use holdfast_access::made_secret;
use holdfast_engine::EngineError;
use holdfast_lake::Lake;
use prost::{Message, Name};

use crate::generated::v1::{PreparedStatement, Session, Ticket, Transaction};
use crate::{Result, ServeError};

/// Where the lake keeps the secret that the key is made from.
const DOCUMENT: &str = "serve/ticket_secret";
/// Of BLAKE3's key derivation: another purpose would have another key.
const PURPOSE: &str = "holdfast 2026-11 tickets and prepared statements of the Flight service";
/// A shorter one was cut, or is none of ours.
const SECRET_BYTES_MIN: usize = 20;

/// A message that is sealed.
pub(crate) trait Sealed: Message + Name + Clone + Default {
    /// What a person calls it.
    const WHAT: &'static str;
    /// How to come by a good one.
    const REMEDY: &'static str;

    fn seal(&mut self) -> &mut Vec<u8>;
}

impl Sealed for Ticket {
    const WHAT: &'static str = "ticket";
    const REMEDY: &'static str = "ask for one with GetFlightInfo";

    fn seal(&mut self) -> &mut Vec<u8> {
        &mut self.seal
    }
}

impl Sealed for PreparedStatement {
    const WHAT: &'static str = "prepared statement";
    const REMEDY: &'static str = "prepare the statement again";

    fn seal(&mut self) -> &mut Vec<u8> {
        &mut self.seal
    }
}

impl Sealed for Transaction {
    const WHAT: &'static str = "transaction";
    const REMEDY: &'static str = "begin another";

    fn seal(&mut self) -> &mut Vec<u8> {
        &mut self.seal
    }
}

impl Sealed for Session {
    const WHAT: &'static str = "session";
    const REMEDY: &'static str = "set its options again, or leave the cookie out";

    fn seal(&mut self) -> &mut Vec<u8> {
        &mut self.seal
    }
}

/// Seals, and looks at seals. Never shown.
#[derive(Clone)]
pub(crate) struct SealKey([u8; 32]);

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealKey(hidden)")
    }
}

impl SealKey {
    /// The key of the lake. The first service of a lake makes its secret, for good; where it may not write, its key is its own, and other services do not read
    /// what it gives out.
    ///
    /// # Errors
    /// What the lake answers; [`ServeError::SealSecret`] when the secret was damaged.
    pub(crate) async fn of(lake: &Lake) -> Result<Self> {
        if let Some(secret) = kept_secret(lake).await? {
            return Self::from_secret(&secret);
        }
        let made = made_secret()?;
        match lake.create_document(DOCUMENT, made.clone().into()).await {
            Ok(true) => Self::from_secret(made.as_bytes()),
            // Another service was first.
            Ok(false) => Self::from_secret(&kept_secret(lake).await?.unwrap_or_default()),
            Err(error) => {
                tracing::warn!(%error, "the secret of tickets cannot be kept in the lake, so tickets are good for this process alone");
                Self::from_secret(made.as_bytes())
            }
        }
    }

    fn from_secret(secret: &[u8]) -> Result<Self> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(ServeError::SealSecret(DOCUMENT));
        }
        Ok(Self(blake3::derive_key(PURPOSE, secret)))
    }

    /// The message with its seal.
    pub(crate) fn sealed<M: Sealed>(&self, mut message: M) -> M {
        message.seal().clear();
        let mut hasher = Hasher::new_keyed(&self.0);
        // One kind of message is none of another kind, whatever the bytes.
        hasher.update(M::full_name().as_bytes()).update(b"\0").update(&message.encode_to_vec());
        *message.seal() = hasher.finalize().as_bytes().to_vec();
        message
    }

    /// The message in these bytes.
    ///
    /// # Errors
    /// [`ServeError::NotOurs`] unless they are, to the last bit, what a service of this lake gave out.
    pub(crate) fn open<M: Sealed>(&self, bytes: &[u8]) -> Result<M> {
        let not_ours = ServeError::NotOurs { what: M::WHAT, remedy: M::REMEDY };
        let Ok(message) = M::decode(bytes) else { return Err(not_ours) };
        // Many bytes decode to one message, and only those that we write are good. Hashes are compared in constant time.
        let ours = self.sealed(message.clone()).encode_to_vec();
        let of = |bytes: &[u8]| blake3::keyed_hash(&self.0, bytes);
        if of(&ours) == of(bytes) { Ok(message) } else { Err(not_ours) }
    }

    #[cfg(test)]
    pub(crate) fn of_test(secret: u8) -> Self {
        Self([secret; 32])
    }
}

async fn kept_secret(lake: &Lake) -> Result<Option<Bytes>> {
    Ok(lake.read_document(DOCUMENT).await.map_err(EngineError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_alone_and_as_its_own_kind_alone() {
        let key = SealKey::of_test(1);
        let statement = PreparedStatement { query: "select 1".to_owned(), ..PreparedStatement::default() };
        let sealed = key.sealed(statement).encode_to_vec();
        assert_eq!(key.open::<PreparedStatement>(&sealed).unwrap().query, "select 1");
        SealKey::of_test(2).open::<PreparedStatement>(&sealed).unwrap_err();
        key.open::<Ticket>(&sealed).unwrap_err();
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut altered = sealed.clone();
                altered[at] ^= 1 << bit;
                key.open::<PreparedStatement>(&altered).unwrap_err();
            }
            key.open::<PreparedStatement>(&sealed[..at]).unwrap_err();
        }
        // An unknown field would be left out in silence.
        let more = [sealed.as_slice(), &[0x38, 1]].concat();
        key.open::<PreparedStatement>(&more).unwrap_err();
        let unsealed = PreparedStatement { query: "select 1".to_owned(), ..PreparedStatement::default() };
        key.open::<PreparedStatement>(&unsealed.encode_to_vec()).unwrap_err();
    }

    #[test]
    fn a_damaged_secret_is_named() {
        let error = SealKey::from_secret(b"cut").unwrap_err().to_string();
        assert!(error.contains("_holdfast/serve/ticket_secret"), "{error}");
    }
}
