//! Tokens of an issuer (RFC 7519) checked against its keys (RFC 7517), which may change at any time.
//!
//! Signatures alone are accepted, by the algorithm that the key is for: neither `none` nor a shared secret.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use ring::signature;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AccessError, Authentication, Principal, Result};

/// How far clocks may be apart, in seconds.
const LEEWAY_S: f64 = 30.0;
const TOKEN_BYTES_MAX: usize = 16 << 10;
const KEYS_BYTES_MAX: usize = 1 << 20;
const KEYS_TIMEOUT: Duration = Duration::from_secs(5);
/// Keys are read again after so long, and at once for a key that is not known, but no oftener than that.
const KEYS_FRESH_FOR: Duration = Duration::from_secs(600);
const KEYS_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// An issuer of tokens, as the users file names it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IssuerSpec {
    /// `iss`, exactly.
    pub(crate) issuer: String,
    /// One of `aud`.
    pub(crate) audience: String,
    /// Where its keys are: a URL, or a file beside the users file.
    pub(crate) jwks: String,
    /// The claim that is the principal's name.
    #[serde(default = "name_claim")]
    name_claim: String,
    /// The claim with its roles: a list, or a text of words. Dots go into objects.
    #[serde(default = "roles_claim")]
    roles_claim: String,
    /// What the issuer calls roles, and what the policy calls them; without it they are the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    roles: BTreeMap<String, String>,
    /// Claims that row filters ask for with `attribute('…')`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<String>,
}

fn name_claim() -> String {
    "sub".to_owned()
}

fn roles_claim() -> String {
    "roles".to_owned()
}

/// An issuer with the keys that it has now.
#[derive(Debug)]
pub(crate) struct Issuer {
    spec: IssuerSpec,
    source: Source,
    keys: RwLock<Keys>,
    /// One reads the keys, the others wait.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Url(reqwest::Client, reqwest::Url),
}

#[derive(Debug, Default, Clone)]
struct Keys {
    keys: Arc<Vec<Key>>,
    read_at: Option<Instant>,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood: there are none.
    crit: Option<Value>,
}

const REFUSED: AccessError =
    AccessError::Refused("the token is not accepted: it is over, of another issuer, or for somebody else");

impl IssuerSpec {
    /// What is wrong with it.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        if self.issuer.is_empty() || self.audience.is_empty() {
            return Err("`issuer` and `audience` may not be empty: tokens for others would be accepted".to_owned());
        }
        if self.jwks.contains("://") {
            let url: reqwest::Url = self.jwks.parse().map_err(|error| format!("`jwks` is no URL: {error}"))?;
            let is_local = match url.host_str() {
                Some(host) => {
                    host == "localhost"
                        || host
                            .trim_matches(['[', ']'])
                            .parse()
                            .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
                }
                None => false,
            };
            if url.scheme() != "https" && !(url.scheme() == "http" && is_local) {
                return Err("`jwks` must be https: whoever changes the keys on the way could be anybody".to_owned());
            }
        }
        Ok(())
    }
}

impl Issuer {
    /// `folder` is where a file of keys is relative to.
    pub(crate) fn new(spec: IssuerSpec, folder: &Path) -> Result<Self> {
        spec.check().map_err(AccessError::Invalid)?;
        let source = if spec.jwks.contains("://") {
            let client = reqwest::Client::builder()
                .timeout(KEYS_TIMEOUT)
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|error| AccessError::NoKeys(error.to_string()))?;
            let url = spec.jwks.parse().map_err(|error| AccessError::NoKeys(format!("{error}")))?;
            Source::Url(client, url)
        } else {
            Source::File(folder.join(&spec.jwks))
        };
        Ok(Self { spec, source, keys: RwLock::default(), reading: tokio::sync::Mutex::default() })
    }

    /// Whether the token says that it is of this issuer. That is not checked yet.
    pub(crate) fn may_be_of(&self, token: &str) -> bool {
        let claims = token.split('.').nth(1).and_then(decoded);
        claims.is_some_and(|claims| claims.get("iss").and_then(Value::as_str) == Some(&self.spec.issuer))
    }

    /// Who has the token.
    ///
    /// # Errors
    /// [`AccessError::Refused`], without a word on why; [`AccessError::NoKeys`] when there are no keys to check it with.
    pub(crate) async fn principal(&self, token: &str, now: DateTime<Utc>) -> Result<Principal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(REFUSED);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(REFUSED)?;
        let (header, claims) = signed.split_once('.').ok_or(REFUSED)?;
        let header: Header = decoded(header).and_then(|header| serde_json::from_value(header).ok()).ok_or(REFUSED)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| REFUSED)?;
        if header.crit.is_some() {
            return Err(REFUSED);
        }
        let mut keys = self.keys(false).await?;
        if !keys.iter().any(|key| key.may_be(&header)) {
            keys = self.keys(true).await?;
        }
        let is_signed = |key: &&Key| key.may_be(&header) && key.signed(&header.alg, signed.as_bytes(), &signature);
        keys.iter().find(is_signed).ok_or(REFUSED)?;
        let claims = decoded(claims).ok_or(REFUSED)?;
        self.judge(&claims, now).ok_or(REFUSED)
    }

    /// The principal, if the claims are for us and now.
    #[expect(clippy::cast_precision_loss, reason = "seconds of this age are exact")]
    fn judge(&self, claims: &Value, now: DateTime<Utc>) -> Option<Principal> {
        let now = now.timestamp() as f64;
        let time = |name: &str| claims.get(name).map(|value| value.as_f64().unwrap_or(f64::NAN));
        // Not a number fails each comparison.
        let is_now = time("exp").is_some_and(|until| now < until + LEEWAY_S)
            && time("nbf").is_none_or(|from| now >= from - LEEWAY_S)
            && time("iat").is_none_or(|from| now >= from - LEEWAY_S);
        let is_ours = claims.get("iss").and_then(Value::as_str) == Some(&self.spec.issuer)
            && match claims.get("aud") {
                Some(Value::String(audience)) => *audience == self.spec.audience,
                Some(Value::Array(audiences)) => audiences.iter().any(|one| one.as_str() == Some(&self.spec.audience)),
                _ => false,
            };
        if !is_now || !is_ours {
            return None;
        }
        let name =
            claim(claims, &self.spec.name_claim)?.as_str().filter(|name| !name.is_empty() && name.len() <= 256)?;
        let mut roles = claim(claims, &self.spec.roles_claim).map(words).unwrap_or_default();
        if !self.spec.roles.is_empty() {
            roles = roles.iter().filter_map(|role| self.spec.roles.get(role).cloned()).collect();
        }
        let attributes = self.spec.attributes.iter();
        let attributes = attributes.filter_map(|name| Some((name.clone(), values(claim(claims, name)?)))).collect();
        Some(Principal { name: name.to_owned(), roles, attributes, by: Authentication::Jwt })
    }

    /// The keys, read again when they are old or one is missing.
    async fn keys(&self, is_missing: bool) -> Result<Arc<Vec<Key>>> {
        let is_good = |keys: &Keys| {
            let fresh_for = if is_missing { KEYS_AGAIN_AFTER } else { KEYS_FRESH_FOR };
            keys.read_at.is_some_and(|at| at.elapsed() < fresh_for)
        };
        let known = || self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        if is_good(&known()) {
            return Ok(known().keys);
        }
        let _one = self.reading.lock().await;
        let before = known();
        if is_good(&before) {
            return Ok(before.keys);
        }
        match self.read().await {
            Ok(keys) => {
                let keys = Arc::new(keys);
                let mut held = self.keys.write().unwrap_or_else(PoisonError::into_inner);
                *held = Keys { keys: Arc::clone(&keys), read_at: Some(Instant::now()) };
                Ok(keys)
            }
            // The keys that were good are, until the issuer says otherwise.
            Err(error) if before.read_at.is_some() => {
                tracing::warn!(%error, issuer = self.spec.issuer, "the keys of a token issuer cannot be read again");
                Ok(before.keys)
            }
            Err(error) => Err(error),
        }
    }

    async fn read(&self) -> Result<Vec<Key>> {
        let text = match &self.source {
            Source::File(path) => tokio::fs::read(path)
                .await
                .map_err(|error| AccessError::NoKeys(format!("{}: {error}", path.display())))?,
            Source::Url(client, url) => {
                let failed = |error: reqwest::Error| AccessError::NoKeys(error.without_url().to_string());
                let mut answer = client.get(url.clone()).send().await.map_err(failed)?;
                if answer.status() != reqwest::StatusCode::OK {
                    return Err(AccessError::NoKeys(format!("the issuer answers {}", answer.status())));
                }
                let mut text = Vec::new();
                while let Some(part) = answer.chunk().await.map_err(failed)? {
                    if text.len() + part.len() > KEYS_BYTES_MAX {
                        return Err(AccessError::NoKeys("the issuer's answer is too long".to_owned()));
                    }
                    text.extend_from_slice(&part);
                }
                text
            }
        };
        keys_of(&text).ok_or_else(|| AccessError::NoKeys("what is there is no set of keys".to_owned()))
    }
}

/// The keys of a set that can be used here.
fn keys_of(text: &[u8]) -> Option<Vec<Key>> {
    let set: Value = serde_json::from_slice(text).ok()?;
    Some(set.get("keys")?.as_array()?.iter().filter_map(Key::of).collect())
}

impl Key {
    fn of(key: &Value) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let point = |length: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == length && y.len() == length).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
        };
        let material = match (text("kty")?, text("crv")) {
            ("RSA", _) => Material::Rsa { n: bytes("n")?, e: bytes("e")? },
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes("x")?),
            _ => return None,
        };
        Some(Self { id: text("kid").map(str::to_owned), algorithm: text("alg").map(str::to_owned), material })
    }

    fn may_be(&self, header: &Header) -> bool {
        (header.kid.is_none() || self.id.is_none() || header.kid == self.id)
            && self.algorithm.as_ref().is_none_or(|algorithm| *algorithm == header.alg)
    }

    /// Whether the key signed the text. An algorithm that is not the key's never did.
    fn signed(&self, algorithm: &str, text: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Rsa { n, e } => {
                let algorithm = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                signature::RsaPublicKeyComponents { n, e }.verify(algorithm, text, signature).is_ok()
            }
            Material::P256(point) => {
                algorithm == "ES256" && verified(&signature::ECDSA_P256_SHA256_FIXED, point, text, signature)
            }
            Material::P384(point) => {
                algorithm == "ES384" && verified(&signature::ECDSA_P384_SHA384_FIXED, point, text, signature)
            }
            Material::Ed25519(key) => {
                ["EdDSA", "Ed25519"].contains(&algorithm) && verified(&signature::ED25519, key, text, signature)
            }
        }
    }
}

fn verified(algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8], text: &[u8], given: &[u8]) -> bool {
    signature::UnparsedPublicKey::new(algorithm, key).verify(text, given).is_ok()
}

fn decoded(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// A claim; dots go into objects where no claim has the whole name.
fn claim<'a>(claims: &'a Value, name: &str) -> Option<&'a Value> {
    claims.get(name).or_else(|| name.split('.').try_fold(claims, |inner, part| inner.get(part)))
}

/// The roles in a claim: a list, or a text of words as OAuth scopes are.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        other => values(other),
    }
}

/// The texts and whole numbers in a claim.
fn values(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(values).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Number(number) => vec![number.to_string()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
    use serde_json::json;

    use super::*;

    struct Signer {
        ed: Ed25519KeyPair,
        p256: EcdsaKeyPair,
        random: ring::rand::SystemRandom,
    }

    impl Signer {
        fn new() -> Self {
            let random = ring::rand::SystemRandom::new();
            let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
            let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            Self {
                ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
                p256: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, p256.as_ref(), &random).unwrap(),
                random,
            }
        }

        fn keys(&self, ed_id: &str) -> String {
            let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            let point = self.p256.public_key().as_ref();
            json!({"keys": [
                {"kty": "OKP", "crv": "Ed25519", "kid": ed_id, "x": encode(self.ed.public_key().as_ref())},
                {"kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig", "alg": "ES256",
                 "x": encode(&point[1..33]), "y": encode(&point[33..])},
                {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"},
            ]})
            .to_string()
        }

        fn token(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", part(header), part(claims));
            let signature = match header["alg"].as_str().unwrap() {
                "ES256" => self.p256.sign(&self.random, signed.as_bytes()).unwrap().as_ref().to_vec(),
                "EdDSA" => self.ed.sign(signed.as_bytes()).as_ref().to_vec(),
                "HS256" => {
                    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"secret");
                    ring::hmac::sign(&key, signed.as_bytes()).as_ref().to_vec()
                }
                _ => Vec::new(),
            };
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
        }
    }

    fn spec() -> IssuerSpec {
        let text = "issuer = \"https://idp.example\"\naudience = \"holdfast\"\njwks = \"keys.json\"\n\
                    roles_claim = \"realm.roles\"\nattributes = [\"region\"]\nroles = { crm = \"analyst\" }\n";
        toml::from_str(text).unwrap()
    }

    #[tokio::test]
    async fn a_token_is_accepted_from_its_issuer_for_us_and_now_alone() {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::new();
        std::fs::write(folder.path().join("keys.json"), signer.keys("ed")).unwrap();
        let issuer = Issuer::new(spec(), folder.path()).unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let claims = json!({
            "iss": "https://idp.example", "aud": ["other", "holdfast"], "sub": "ana", "exp": 1_800_000_060,
            "realm": {"roles": ["crm", "unknown"]}, "region": "north",
        });
        let with = |name: &str, value: Value| {
            let mut claims = claims.clone();
            claims[name] = value;
            claims
        };
        let (ed, ec) = (json!({"alg": "EdDSA", "kid": "ed"}), json!({"alg": "ES256", "kid": "ec"}));
        for header in [&ed, &ec, &json!({"alg": "EdDSA"})] {
            let token = signer.token(header, &claims);
            assert!(issuer.may_be_of(&token));
            let principal = issuer.principal(&token, now).await.unwrap();
            assert_eq!((principal.name.as_str(), principal.roles.as_slice()), ("ana", &["analyst".to_owned()][..]));
            assert_eq!(principal.attributes["region"], ["north"]);
        }
        let good = signer.token(&ed, &claims);
        let (body, signature) = good.rsplit_once('.').unwrap();
        let other_body = signer.token(&ed, &with("sub", json!("root")));
        let other_body = other_body.rsplit_once('.').unwrap().0;
        let mut without_end = claims.clone();
        without_end.as_object_mut().unwrap().remove("exp");
        for (why, wrong) in [
            ("over", signer.token(&ed, &with("exp", json!(1_799_999_900)))),
            ("no end", signer.token(&ed, &without_end)),
            ("end is a text", signer.token(&ed, &with("exp", json!("2100-01-01")))),
            ("not yet", signer.token(&ed, &with("nbf", json!(1_800_000_600)))),
            ("for others", signer.token(&ed, &with("aud", json!("other")))),
            ("for nobody", signer.token(&ed, &with("aud", Value::Null))),
            ("another issuer", signer.token(&ed, &with("iss", json!("https://evil.example")))),
            ("nobody", signer.token(&ed, &with("sub", json!("")))),
            ("another's signature", Signer::new().token(&ed, &claims)),
            ("another key's algorithm", signer.token(&json!({"alg": "ES256", "kid": "ed"}), &claims)),
            ("none", signer.token(&json!({"alg": "none"}), &claims)),
            ("a shared secret", signer.token(&json!({"alg": "HS256", "kid": "shared"}), &claims)),
            ("an unknown extension", signer.token(&json!({"alg": "EdDSA", "kid": "ed", "crit": ["b64"]}), &claims)),
            ("another body", format!("{other_body}.{signature}")),
            ("no signature", format!("{body}.")),
            ("no token", "a.b".to_owned()),
            ("too long", format!("{good}{}", "A".repeat(TOKEN_BYTES_MAX))),
        ] {
            assert!(matches!(issuer.principal(&wrong, now).await, Err(AccessError::Refused(_))), "{why}");
        }
    }

    #[tokio::test]
    async fn keys_that_the_issuer_changes_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.json");
        let (old, new) = (Signer::new(), Signer::new());
        let issuer = Issuer::new(spec(), folder.path()).unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let claims = json!({"iss": "https://idp.example", "aud": "holdfast", "sub": "ana", "exp": 1_800_000_060});
        let token = |signer: &Signer, id: &str| signer.token(&json!({"alg": "EdDSA", "kid": id}), &claims);
        assert!(matches!(issuer.principal(&token(&old, "old"), now).await, Err(AccessError::NoKeys(_))));
        std::fs::write(&file, old.keys("old")).unwrap();
        issuer.principal(&token(&old, "old"), now).await.unwrap();
        std::fs::write(&file, new.keys("new")).unwrap();
        // Not at once: unknown keys in tokens must not make us ask the issuer each time.
        assert!(issuer.principal(&token(&new, "new"), now).await.is_err());
        let long_ago = Instant::now().checked_sub(KEYS_AGAIN_AFTER).unwrap();
        issuer.keys.write().unwrap().read_at = Some(long_ago);
        issuer.principal(&token(&new, "new"), now).await.unwrap();
        assert!(issuer.principal(&token(&old, "old"), now).await.is_err(), "its key is gone");
    }

    #[test]
    fn keys_come_over_https_or_from_this_machine() {
        let with = |jwks: &str| IssuerSpec { jwks: jwks.to_owned(), ..spec() };
        for good in
            ["keys.json", "https://idp.example/keys", "http://127.0.0.1:80/k", "http://localhost/k", "http://[::1]/k"]
        {
            with(good).check().unwrap();
        }
        for bad in ["http://idp.example/keys", "ftp://idp.example/keys", "http://127.0.0.1.example/k"] {
            with(bad).check().unwrap_err();
        }
        IssuerSpec { audience: String::new(), ..spec() }.check().unwrap_err();
    }
}
