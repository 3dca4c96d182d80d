//! What is given for a password, so that it need not be sent again: bearer tokens that end by themselves.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};

use crate::Result;
use crate::password::random;

/// How long it is good for.
const VALID_FOR: Duration = Duration::from_secs(12 * 60 * 60);
const PREFIX: &str = "hfs_";
const MAC_BYTES: usize = 32;

/// Makes and checks them. They are of this process: another does not know its secret.
pub(crate) struct Sessions {
    secret: [u8; 32],
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions(hidden)")
    }
}

impl Sessions {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { secret: random()? })
    }

    /// A token for a user whose password has this hash: with another password it is over.
    pub(crate) fn issue(&self, user: &str, password_hash: &str, now: DateTime<Utc>) -> String {
        let until = (now + VALID_FOR).timestamp();
        let mut body = until.to_be_bytes().to_vec();
        body.extend_from_slice(user.as_bytes());
        let mut bytes = self.mac(&body, password_hash).as_bytes().to_vec();
        bytes.extend_from_slice(&body);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Whether it looks like one.
    pub(crate) fn is_one(token: &str) -> bool {
        token.starts_with(PREFIX)
    }

    /// Whose it is, if it was made here and is not over. `hash_of` gives the hash of a user's password as it is now.
    pub(crate) fn user(
        &self,
        token: &str,
        now: DateTime<Utc>,
        hash_of: impl Fn(&str) -> Option<String>,
    ) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX)?).ok()?;
        let (mac, body) = bytes.split_at_checked(MAC_BYTES)?;
        let (until, user) = body.split_at_checked(8)?;
        let user = std::str::from_utf8(user).ok()?;
        let mac: [u8; MAC_BYTES] = mac.try_into().ok()?;
        let until = i64::from_be_bytes(until.try_into().ok()?);
        // Compared in constant time.
        let is_ours = self.mac(body, &hash_of(user)?) == blake3::Hash::from_bytes(mac);
        (is_ours && now.timestamp() < until).then(|| user.to_owned())
    }

    fn mac(&self, body: &[u8], password_hash: &str) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(blake3::hash(password_hash.as_bytes()).as_bytes());
        hasher.update(body);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_with_its_time_its_password_and_its_process() {
        let sessions = Sessions::new().unwrap();
        let now = DateTime::UNIX_EPOCH;
        let token = sessions.issue("ana", "hash", now);
        let user = |sessions: &Sessions, token: &str, now, hash: &str| {
            sessions.user(token, now, |name| (name == "ana").then(|| hash.to_owned()))
        };
        assert_eq!(user(&sessions, &token, now, "hash").as_deref(), Some("ana"));
        assert_eq!(user(&sessions, &token, now + VALID_FOR, "hash"), None);
        assert_eq!(user(&sessions, &token, now, "another hash"), None);
        assert_eq!(user(&Sessions::new().unwrap(), &token, now, "hash"), None);
        let last = if token.ends_with('A') { 'B' } else { 'A' };
        for wrong in ["", "hfs_", "hfs_AAAA", &format!("{}{last}", &token[..token.len() - 1])] {
            assert_eq!(user(&sessions, wrong, now, "hash"), None, "{wrong}");
        }
    }
}
