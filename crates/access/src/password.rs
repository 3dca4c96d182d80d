//! Passwords: hashes that tell nothing of them, and what SCRAM needs to know one without keeping it.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SecureRandom;

use crate::{AccessError, Result};

/// As OWASP recommends for Argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
const SALT_BYTES: usize = 16;
/// As PostgreSQL does it (RFC 7677 asks for at least as many).
const SCRAM_ITERATIONS: u32 = 4096;
/// Shorter ones can be guessed over the network.
const CHARACTERS_MIN: usize = 12;
const CHARACTERS_MAX: usize = 1024;
/// Random characters of a password or token that is made here: 32 bytes.
const MADE_BYTES: usize = 32;

/// What the SCRAM-SHA-256 exchange checks a password against (RFC 5802, RFC 7677).
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    /// Passes of PBKDF2.
    pub iterations: u32,
    /// The salt that the client is told.
    pub salt: Vec<u8>,
    /// The hash of the client's key.
    pub stored_key: [u8; 32],
    /// The server's key, which proves to the client that the server knows the password, too.
    pub server_key: [u8; 32],
}

impl std::fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScramVerifier({} iterations)", self.iterations)
    }
}

/// Random bytes of the operating system's.
///
/// # Errors
/// When there are none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0_u8; N];
    let failed = |_| AccessError::Invalid("the operating system gives no random numbers".to_owned());
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// A secret that nobody can guess, of characters that travel in headers and need no quotes.
///
/// # Errors
/// As of [`random`].
pub fn made_secret() -> Result<String> {
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random::<MADE_BYTES>()?))
}

/// Checks a password that a person chose.
///
/// # Errors
/// [`AccessError::Invalid`] with what is wrong with it.
pub fn check_password(password: &str) -> Result<()> {
    let characters = password.chars().count();
    if !(CHARACTERS_MIN..=CHARACTERS_MAX).contains(&characters) {
        return Err(AccessError::Invalid(format!(
            "a password has {CHARACTERS_MIN} to {CHARACTERS_MAX} characters, and this has {characters}"
        )));
    }
    // Others have several forms, and clients do not agree on which is meant.
    if !password.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(AccessError::Invalid("a password has printable ASCII characters alone".to_owned()));
    }
    Ok(())
}

/// The Argon2id hash of a password, in PHC form, with a salt of its own.
///
/// # Errors
/// When there are no random numbers.
pub(crate) fn hash_password(password: &str) -> Result<String> {
    let salt = random::<SALT_BYTES>()?;
    let failed = |error| AccessError::Invalid(format!("the password cannot be hashed: {error}"));
    Ok(argon2()?.hash_password_with_salt(password.as_bytes(), &salt).map_err(failed)?.to_string())
}

/// Whether it is the password that was hashed. Takes as long for a wrong one; costs about 20 ms and 19 MiB.
pub(crate) fn is_password(password: &str, hash: &PasswordHash) -> bool {
    argon2().is_ok_and(|argon2| argon2.verify_password(password.as_bytes(), hash).is_ok())
}

/// The hash in a file.
pub(crate) fn parse_hash(text: &str) -> Option<PasswordHash> {
    let hash = PasswordHash::new(text).ok()?;
    let memory: u32 = hash.params.get_decimal("m").unwrap_or(0);
    // What somebody wrote into the file must not take the machine's memory.
    (text.starts_with("$argon2id$") && (8..=1 << 20).contains(&memory) && hash.hash.is_some()).then_some(hash)
}

fn argon2() -> Result<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None);
    let params = params.map_err(|error| AccessError::Invalid(format!("Argon2 refuses its settings: {error}")))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

impl ScramVerifier {
    /// Of a password, with a salt of its own.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn of_password(password: &str) -> Result<Self> {
        Ok(Self::derive(password, &random::<SALT_BYTES>()?, SCRAM_ITERATIONS))
    }

    fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        let mut salted = [0_u8; 32];
        let passes = std::num::NonZeroU32::new(iterations).unwrap_or(std::num::NonZeroU32::MIN);
        ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, passes, salt, password.as_bytes(), &mut salted);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &salted);
        let client_key = ring::hmac::sign(&key, b"Client Key");
        let server_key = ring::hmac::sign(&key, b"Server Key");
        let stored_key = ring::digest::digest(&ring::digest::SHA256, client_key.as_ref());
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: first_32(stored_key.as_ref()),
            server_key: first_32(server_key.as_ref()),
        }
    }

    /// From the form in which PostgreSQL writes it: `SCRAM-SHA-256$4096:salt$stored:server`.
    pub fn parse(text: &str) -> Option<Self> {
        let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored, server) = keys.split_once(':')?;
        let key = |text: &str| STANDARD.decode(text).ok()?.try_into().ok();
        Some(Self {
            iterations: iterations.parse().ok().filter(|iterations| (1..=10_000_000).contains(iterations))?,
            salt: STANDARD.decode(salt).ok()?,
            stored_key: key(stored)?,
            server_key: key(server)?,
        })
    }
}

/// The form in which PostgreSQL writes it.
impl std::fmt::Display for ScramVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (salt, stored) = (STANDARD.encode(&self.salt), STANDARD.encode(self.stored_key));
        write!(f, "SCRAM-SHA-256${}:{salt}${stored}:{}", self.iterations, STANDARD.encode(self.server_key))
    }
}

fn first_32(bytes: &[u8]) -> [u8; 32] {
    let mut first = [0_u8; 32];
    first.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_is_that_of_rfc_7677() {
        // The RFC gives the exchange; the keys follow from it: the client's proof xor its signature is the key whose hash is stored.
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = ScramVerifier::derive("pencil", &salt, 4096);
        let message = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                       s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let sign =
            |key: &[u8]| ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key), message.as_bytes());
        let proof = STANDARD.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        let client_key: Vec<u8> =
            proof.iter().zip(sign(&verifier.stored_key).as_ref()).map(|(left, right)| left ^ right).collect();
        assert_eq!(ring::digest::digest(&ring::digest::SHA256, &client_key).as_ref(), verifier.stored_key);
        assert_eq!(STANDARD.encode(sign(&verifier.server_key)), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let text = verifier.to_string();
        assert_eq!(ScramVerifier::parse(&text), Some(verifier));
        for wrong in
            ["", "md5abc", "SCRAM-SHA-256$4096:c2FsdA==$YQ==:YQ==", &format!("{text}$"), &text.replace("4096", "0")]
        {
            assert!(ScramVerifier::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_password_is_known_by_its_hash_alone() {
        let hash = hash_password("correct horse battery").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, hash_password("correct horse battery").unwrap(), "a salt of its own");
        let hash = parse_hash(&hash).unwrap();
        assert!(is_password("correct horse battery", &hash));
        assert!(!is_password("correct horse batterz", &hash));
        assert!(parse_hash("$argon2i$v=19$m=16,t=2,p=1$c29tZXNhbHQ$c29tZWhhc2g").is_none());
        assert!(parse_hash("plain").is_none());
    }

    #[test]
    fn weak_passwords_are_refused() {
        for weak in ["", "short", "elevenchars", "zwölf zeichen sind das", "tab\tis not printable"] {
            check_password(weak).unwrap_err();
        }
        check_password("correct horse battery").unwrap();
    }
}
