use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::pbkdf2;
use serde::Deserialize;
use uuid::Uuid;

/// More rounds than any broker is set up with: one that asks for more would keep us busy.
const ITERATIONS_MAX: u32 = 1_000_000;

/// How a client says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Mechanism {
    /// RFC 4616.
    #[serde(rename = "plain")]
    Plain,
    /// RFC 7677.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// The same with SHA-512.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

impl Mechanism {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Who a client is. Its text has no password.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) mechanism: Mechanism,
    pub(crate) user: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("mechanism", &self.mechanism).field("user", &self.user).finish_non_exhaustive()
    }
}

impl Login {
    /// The message of [`Mechanism::Plain`].
    pub(crate) fn plain(&self) -> Vec<u8> {
        [b"\0", self.user.as_bytes(), b"\0", self.password.as_bytes()].concat()
    }
}

/// A conversation of RFC 5802 without channel binding: the password never leaves, and the server shows that it knows it, too.
pub(crate) struct Scram {
    algorithm: hmac::Algorithm,
    rounds: pbkdf2::Algorithm,
    password: String,
    nonce: String,
    first_bare: String,
    server_signature: Vec<u8>,
}

impl Scram {
    pub(crate) fn new(login: &Login) -> Self {
        Self::with_nonce(login, format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()))
    }

    fn with_nonce(login: &Login, nonce: String) -> Self {
        let (algorithm, rounds) = match login.mechanism {
            Mechanism::ScramSha512 => (hmac::HMAC_SHA512, pbkdf2::PBKDF2_HMAC_SHA512),
            _ => (hmac::HMAC_SHA256, pbkdf2::PBKDF2_HMAC_SHA256),
        };
        let user = login.user.replace('=', "=3D").replace(',', "=2C");
        Self {
            algorithm,
            rounds,
            password: login.password.clone(),
            first_bare: format!("n={user},r={nonce}"),
            nonce,
            server_signature: Vec::new(),
        }
    }

    /// The first message.
    pub(crate) fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The answer to the server's first message.
    ///
    /// # Errors
    /// What is wrong with that.
    pub(crate) fn last(&mut self, server_first: &[u8]) -> Result<String, &'static str> {
        let text = std::str::from_utf8(server_first).map_err(|_| "its challenge is no text")?;
        let part = |name: &str| text.split(',').find_map(|part| part.strip_prefix(name));
        let nonce = part("r=").ok_or("its challenge has no nonce")?;
        if !nonce.starts_with(&self.nonce) {
            return Err("its challenge does not continue our nonce");
        }
        let salt = part("s=").and_then(|salt| STANDARD.decode(salt).ok()).ok_or("its challenge has no salt")?;
        let iterations: u32 = part("i=").and_then(|count| count.parse().ok()).ok_or("its challenge has no count")?;
        if iterations > ITERATIONS_MAX {
            return Err("it asks for too many iterations");
        }
        let iterations = iterations.try_into().map_err(|_| "its challenge has no count")?;

        let mut salted = vec![0; self.algorithm.digest_algorithm().output_len()];
        pbkdf2::derive(self.rounds, iterations, &salt, self.password.as_bytes(), &mut salted);
        let sign =
            |key: &[u8], message: &[u8]| hmac::sign(&hmac::Key::new(self.algorithm, key), message).as_ref().to_vec();
        let without_proof = format!("c=biws,r={nonce}");
        let conversation = format!("{},{text},{without_proof}", self.first_bare);
        let client_key = sign(&salted, b"Client Key");
        let stored_key = ring::digest::digest(self.algorithm.digest_algorithm(), &client_key);
        let signature = sign(stored_key.as_ref(), conversation.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, signature)| key ^ signature).collect();
        self.server_signature = sign(&sign(&salted, b"Server Key"), conversation.as_bytes());
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)))
    }

    /// Whether the server's last message shows that it knows the password.
    pub(crate) fn accepts(&self, server_last: &[u8]) -> bool {
        let signature = std::str::from_utf8(server_last)
            .ok()
            .and_then(|text| text.split(',').find_map(|part| part.strip_prefix("v=")))
            .and_then(|signature| STANDARD.decode(signature).ok());
        !self.server_signature.is_empty() && signature.as_ref() == Some(&self.server_signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3.
    #[test]
    fn the_conversation_of_the_rfc() {
        let login = Login { mechanism: Mechanism::ScramSha256, user: "user".to_owned(), password: "pencil".to_owned() };
        let mut scram = Scram::with_nonce(&login, "rOprNGfwEbeRWgbNEkqO".to_owned());
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(
            scram.last(challenge.as_bytes()).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(scram.accepts(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!scram.accepts(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5="));
        assert!(!scram.accepts(b"e=other-error"));
    }

    #[test]
    fn a_challenge_that_is_none_is_refused() {
        let login = Login { mechanism: Mechanism::ScramSha512, user: "a=,b".to_owned(), password: "p".to_owned() };
        let mut scram = Scram::with_nonce(&login, "abc".to_owned());
        assert_eq!(scram.first(), "n,,n=a=3D=2Cb,r=abc");
        for challenge in ["", "r=xyz,s=AAAA,i=1", "r=abcd,i=1", "r=abcd,s=AAAA,i=0", "r=abcd,s=AAAA,i=4000000000"] {
            assert!(scram.last(challenge.as_bytes()).is_err(), "{challenge}");
        }
        assert!(!scram.accepts(b"v="));
    }
}
