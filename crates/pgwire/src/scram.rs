//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side, as PostgreSQL speaks it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SecureRandom;
use ring::{digest, hmac, rand};

/// The mechanism's name on the wire.
pub(crate) const MECHANISM: &str = "SCRAM-SHA-256";
const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;
const SALT_BYTES: usize = 16;
/// What a user that does not exist is said to have: as many as others have.
const ITERATIONS: u32 = 4_096;
const NONCE_BYTES: usize = 18;

/// What is kept of a password: enough to check it, not enough to use it. Shows nothing of itself.
#[derive(Clone)]
pub struct Verifier {
    /// How often the password is hashed.
    pub iterations: u32,
    /// What it is hashed with.
    pub salt: Vec<u8>,
    /// The hash of the key that the client proves to have.
    pub stored_key: [u8; KEY_BYTES],
    /// The key that the server proves to have.
    pub server_key: [u8; KEY_BYTES],
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(…)")
    }
}

impl Verifier {
    /// For a user that does not exist: looks the same each time, takes as long, and nothing proves it.
    fn of_nobody(secret: &hmac::Key, user: &str) -> Self {
        let part = |what: &str| -> [u8; KEY_BYTES] { sign_with(secret, &[what.as_bytes(), b"\0", user.as_bytes()]) };
        Self {
            iterations: ITERATIONS,
            salt: part("salt")[..SALT_BYTES].to_vec(),
            stored_key: part("stored"),
            server_key: part("server"),
        }
    }
}

/// A key that this process makes up for users that do not exist.
pub(crate) fn secret_for_nobody() -> hmac::Key {
    let bytes = random::<KEY_BYTES>().unwrap_or([0; KEY_BYTES]);
    hmac::Key::new(hmac::HMAC_SHA256, &bytes)
}

/// One log-in.
#[derive(Debug)]
pub(crate) struct Exchange {
    verifier: Verifier,
    is_somebody: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Begun,
    Challenged { client_first: String, server_first: String, channel: String },
}

/// Why a log-in cannot go on. What the client is told does not depend on it, but for what is malformed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Malformed(&'static str),
    Wrong,
}

impl Exchange {
    pub(crate) fn new(verifier: Option<Verifier>, nobody: &hmac::Key, user: &str) -> Self {
        let of_nobody = Verifier::of_nobody(nobody, user);
        let is_somebody = verifier.is_some();
        Self { verifier: verifier.unwrap_or(of_nobody), is_somebody, state: State::Begun }
    }

    /// The answer to the client's first message.
    pub(crate) fn challenge(&mut self, client_first: &[u8]) -> Result<String, Refused> {
        let nonce = random::<NONCE_BYTES>().ok_or(Refused::Malformed("the system gives no random bytes"))?;
        self.challenge_with(client_first, &STANDARD.encode(nonce))
    }

    fn challenge_with(&mut self, client_first: &[u8], nonce: &str) -> Result<String, Refused> {
        let malformed = || Refused::Malformed("the first message of SCRAM cannot be read");
        let message = std::str::from_utf8(client_first).map_err(|_| malformed())?;
        // gs2-header: the channel flag, then an identity that PostgreSQL's clients never send.
        let (flag, rest) = message.split_once(',').ok_or_else(malformed)?;
        match flag {
            // `y`: the client could bind the channel and saw that we do not offer it, which is true.
            "n" | "y" => {}
            _ => return Err(Refused::Malformed("binding to the channel was not offered")),
        }
        let (identity, bare) = rest.split_once(',').ok_or_else(malformed)?;
        let mut fields = bare.split(',');
        let (Some(user), Some(client_nonce)) = (fields.next(), fields.next()) else { return Err(malformed()) };
        // The name in here is not used: the one of the start-up counts. Extensions that must be understood are not.
        if !user.starts_with("n=") || client_nonce.len() < 3 {
            return Err(malformed());
        }
        let client_nonce = client_nonce.strip_prefix("r=").ok_or_else(malformed)?;
        let server_first = format!(
            "r={client_nonce}{nonce},s={},i={}",
            STANDARD.encode(&self.verifier.salt),
            self.verifier.iterations
        );
        self.state = State::Challenged {
            client_first: bare.to_owned(),
            server_first: server_first.clone(),
            channel: STANDARD.encode(format!("{flag},{identity},")),
        };
        Ok(server_first)
    }

    /// The answer to the client's proof, when it is right.
    pub(crate) fn verify(&mut self, client_final: &[u8]) -> Result<String, Refused> {
        let malformed = || Refused::Malformed("the last message of SCRAM cannot be read");
        let State::Challenged { client_first, server_first, channel } = &self.state else { return Err(malformed()) };
        let message = std::str::from_utf8(client_final).map_err(|_| malformed())?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or_else(malformed)?;
        let proof: [u8; KEY_BYTES] =
            STANDARD.decode(proof).ok().and_then(|proof| proof.try_into().ok()).ok_or_else(malformed)?;
        let mut fields = without_proof.split(',');
        let (Some(said_channel), Some(nonce), None) = (fields.next(), fields.next(), fields.next()) else {
            return Err(malformed());
        };
        let nonce_sent = server_first.split(',').next().unwrap_or_default();
        let is_ours = said_channel.strip_prefix("c=") == Some(channel.as_str()) && nonce == nonce_sent;

        let auth: [&[u8]; 5] = [client_first.as_bytes(), b",", server_first.as_bytes(), b",", without_proof.as_bytes()];
        let signature = sign(&self.verifier.stored_key, &auth);
        let mut client_key = [0; KEY_BYTES];
        for (key, (proof, signature)) in client_key.iter_mut().zip(proof.iter().zip(signature)) {
            *key = proof ^ signature;
        }
        let is_right = equal(&hash(&client_key), &self.verifier.stored_key);
        let answer = format!("v={}", STANDARD.encode(sign(&self.verifier.server_key, &auth)));
        if is_right & is_ours & self.is_somebody { Ok(answer) } else { Err(Refused::Wrong) }
    }
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    rand::SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

/// Random bytes for keys of cancellation.
pub(crate) fn random_u32() -> Option<u32> {
    random::<4>().map(u32::from_be_bytes)
}

fn hash(bytes: &[u8]) -> [u8; KEY_BYTES] {
    to_key(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn sign(key: &[u8], parts: &[&[u8]]) -> [u8; KEY_BYTES] {
    sign_with(&hmac::Key::new(hmac::HMAC_SHA256, key), parts)
}

fn sign_with(key: &hmac::Key, parts: &[&[u8]]) -> [u8; KEY_BYTES] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    to_key(context.sign().as_ref())
}

fn to_key(bytes: &[u8]) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(bytes);
    key
}

/// Takes as long wherever they differ.
fn equal(left: &[u8; KEY_BYTES], right: &[u8; KEY_BYTES]) -> bool {
    left.iter().zip(right).fold(0, |differs, (left, right)| differs | (left ^ right)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3.
    #[test]
    fn the_example_of_the_rfc_logs_in() {
        let decoded = |text: &str| STANDARD.decode(text).unwrap();
        let verifier = Verifier {
            iterations: 4096,
            salt: decoded("W22ZaJ0SNY7soEsUEjb6gQ=="),
            stored_key: to_key(&decoded("WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=")),
            server_key: to_key(&decoded("wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=")),
        };
        let mut exchange = Exchange::new(Some(verifier), &secret_for_nobody(), "user");
        let first = exchange.challenge_with(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO", "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0");
        assert_eq!(
            first.unwrap(),
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let proof = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(exchange.verify(proof).unwrap(), "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let wrong = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=aHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(exchange.verify(wrong).unwrap_err(), Refused::Wrong);
    }

    #[test]
    fn a_user_that_does_not_exist_is_challenged_alike_each_time_and_never_let_in() {
        let secret = secret_for_nobody();
        let challenge = |exchange: &mut Exchange| exchange.challenge_with(b"n,,n=,r=abc", "def").unwrap();
        let mut first = Exchange::new(None, &secret, "nobody");
        let mut second = Exchange::new(None, &secret, "nobody");
        assert_eq!(challenge(&mut first), challenge(&mut second));
        assert_ne!(challenge(&mut first), challenge(&mut Exchange::new(None, &secret, "else")));
        let proof = format!("c=biws,r=abcdef,p={}", STANDARD.encode([0; 32]));
        assert_eq!(first.verify(proof.as_bytes()).unwrap_err(), Refused::Wrong);
    }
}
