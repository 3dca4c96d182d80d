//! The users file: who may come in with a password, a token or a certificate. It holds hashes alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use holdfast_engine::{Diagnostic, Diagnostics, USERS_CODE};
use serde::{Deserialize, Serialize};

use crate::jwt::IssuerSpec;
use crate::password::{ScramVerifier, check_password, hash_password, made_secret, parse_hash};
use crate::{AccessError, Authentication, Principal, Result};

const HEADING: &str =
    "# Who may come in. Made by `holdfast access`; keep it from others, and out of version control.\n\n";
/// Before a token of ours, so that scanners for leaked secrets know it.
const TOKEN_PREFIX: &str = "hf_";
const HASH_PREFIX: &str = "blake3:";
const CERTIFICATE_PREFIX: &str = "sha256:";

/// The users and tokens of a file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Users {
    /// People and tools with a name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    users: BTreeMap<String, User>,
    /// Secrets that are sent with every call.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tokens: BTreeMap<String, AccessToken>,
    /// Issuers whose tokens are accepted.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) issuers: BTreeMap<String, IssuerSpec>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    roles: Vec<String>,
    /// Argon2id, in PHC form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    /// The same password as the PostgreSQL wire checks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scram: Option<String>,
    /// SHA-256 of client certificates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    certificates: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessToken {
    roles: Vec<String>,
    /// BLAKE3 of the token: it is random, so that no slow hash is needed.
    hash: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<String, Vec<String>>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("roles", &self.roles).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessToken").field("roles", &self.roles).finish_non_exhaustive()
    }
}

/// A user or token, for those who list them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// `user` or `token`.
    pub kind: &'static str,
    /// Its roles.
    pub roles: Vec<String>,
    /// What row filters ask for.
    pub attributes: BTreeMap<String, Vec<String>>,
    /// How it may come in.
    pub with: Vec<&'static str>,
}

/// Who is added.
#[derive(Debug, Clone, Default)]
pub struct NewPrincipal {
    /// The name.
    pub name: String,
    /// The roles.
    pub roles: Vec<String>,
    /// What row filters ask for.
    pub attributes: BTreeMap<String, Vec<String>>,
}

impl Users {
    /// The users in a file.
    ///
    /// # Errors
    /// A file that is not there, and [`AccessError::Mistakes`] with the place of what is wrong in it.
    pub fn load(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|source| AccessError::File {
            what: "cannot read",
            path: file.to_owned(),
            source,
        })?;
        Self::parse(file, &text)
    }

    /// As [`Users::load`], or nobody where there is no file yet.
    ///
    /// # Errors
    /// As of [`Users::load`].
    pub fn load_or_new(file: &Path) -> Result<Self> {
        match Self::load(file) {
            Err(AccessError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            other => other,
        }
    }

    /// The users in a text; `file` is what mistakes are told of.
    ///
    /// # Errors
    /// [`AccessError::Mistakes`].
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let mistake = |message: String, offset: usize| {
            let before = text.get(..offset).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            // Without the line's text, which may hold a hash.
            let diagnostic = Diagnostic::at(USERS_CODE, message, file, "", line, column, 1);
            AccessError::Mistakes(Diagnostics(vec![diagnostic]))
        };
        let users: Self = toml::from_str(text)
            .map_err(|error| mistake(error.message().to_owned(), error.span().map_or(0, |span| span.start)))?;
        let place_of = |name: &str| text.find(name).unwrap_or(0);
        for (name, user) in &users.users {
            let wrong = |what: &str| {
                mistake(format!("user `{name}`: {what}; make it anew with `holdfast access user add`"), place_of(name))
            };
            if user.password.as_ref().is_some_and(|hash| parse_hash(hash).is_none()) {
                return Err(wrong("its password is no Argon2id hash"));
            }
            if user.scram.as_ref().is_some_and(|text| ScramVerifier::parse(text).is_none()) {
                return Err(wrong("its SCRAM verifier cannot be read"));
            }
            if user.certificates.iter().any(|hash| !is_hash(hash, CERTIFICATE_PREFIX)) {
                return Err(wrong("a certificate is sha256: and 64 hexadecimal digits"));
            }
        }
        for (name, token) in &users.tokens {
            if !is_hash(&token.hash, HASH_PREFIX) {
                let message = format!(
                    "token `{name}`: its hash is blake3: and 64 hexadecimal digits; make it anew with `holdfast access token add`"
                );
                return Err(mistake(message, place_of(name)));
            }
        }
        for (name, issuer) in &users.issuers {
            issuer.check().map_err(|what| mistake(format!("issuer `{name}`: {what}"), place_of(name)))?;
        }
        Ok(users)
    }

    /// Writes the file whole, for its owner alone to read; readers see the one before or this.
    ///
    /// # Errors
    /// What the system answers.
    pub fn save(&self, file: &Path) -> Result<()> {
        let failed = |source| AccessError::File { what: "cannot write", path: file.to_owned(), source };
        let text = toml::to_string(self).map_err(|error| AccessError::Invalid(error.to_string()))?;
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let beside: PathBuf = file.with_file_name(name);
        // One that was left behind may be open to others.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut written = options.open(&beside).map_err(failed)?;
        written.write_all(HEADING.as_bytes()).and_then(|()| written.write_all(text.as_bytes())).map_err(failed)?;
        written.sync_all().map_err(failed)?;
        std::fs::rename(&beside, file).map_err(failed)
    }

    /// Adds a user, or gives one that is there other roles and another password. Answers the password that was made, where none was given.
    ///
    /// # Errors
    /// A name or password that cannot be.
    pub fn set_user(&mut self, new: NewPrincipal, password: Option<&str>) -> Result<Option<String>> {
        check_name(&new.name)?;
        let made = match password {
            Some(password) => {
                check_password(password)?;
                None
            }
            None => Some(made_secret()?),
        };
        let password = password.or(made.as_deref()).unwrap_or_default();
        let certificates = self.users.get(&new.name).map(|user| user.certificates.clone()).unwrap_or_default();
        let user = User {
            roles: new.roles,
            password: Some(hash_password(password)?),
            scram: Some(ScramVerifier::of_password(password)?.to_string()),
            certificates,
            attributes: new.attributes,
        };
        self.users.insert(new.name, user);
        Ok(made)
    }

    /// Adds a user who comes with a client certificate, or lets one that is there come with it, too.
    ///
    /// # Errors
    /// A name that cannot be, or a certificate of somebody else.
    pub fn set_certificate(&mut self, new: NewPrincipal, der: &[u8]) -> Result<()> {
        check_name(&new.name)?;
        let hash = certificate_hash(der);
        if let Some((other, _)) =
            self.users.iter().find(|(name, user)| **name != new.name && user.certificates.contains(&hash))
        {
            return Err(AccessError::Invalid(format!("the certificate is that of user `{other}`")));
        }
        let user = self.users.entry(new.name).or_default();
        user.roles = new.roles;
        user.attributes = new.attributes;
        if !user.certificates.contains(&hash) {
            user.certificates.push(hash);
        }
        Ok(())
    }

    /// Adds a token and answers it: it is kept nowhere. One of the same name is replaced.
    ///
    /// # Errors
    /// A name that cannot be.
    pub fn set_token(&mut self, new: NewPrincipal) -> Result<String> {
        check_name(&new.name)?;
        let token = format!("{TOKEN_PREFIX}{}", made_secret()?);
        let kept = AccessToken { roles: new.roles, hash: token_hash(&token), attributes: new.attributes };
        self.tokens.insert(new.name, kept);
        Ok(token)
    }

    /// Takes a user away.
    ///
    /// # Errors
    /// [`AccessError::NoPrincipal`].
    pub fn remove_user(&mut self, name: &str) -> Result<()> {
        match self.users.remove(name) {
            Some(_) => Ok(()),
            None => Err(missing("user", name, self.users.keys())),
        }
    }

    /// Takes a token away.
    ///
    /// # Errors
    /// [`AccessError::NoPrincipal`].
    pub fn remove_token(&mut self, name: &str) -> Result<()> {
        match self.tokens.remove(name) {
            Some(_) => Ok(()),
            None => Err(missing("token", name, self.tokens.keys())),
        }
    }

    /// All of them, without their secrets.
    pub fn listed(&self) -> Vec<Listed> {
        let users = self.users.iter().map(|(name, user)| {
            let ways = [
                ("password", user.password.is_some()),
                ("scram", user.scram.is_some()),
                ("certificate", !user.certificates.is_empty()),
            ];
            Listed {
                name: name.clone(),
                kind: "user",
                roles: user.roles.clone(),
                attributes: user.attributes.clone(),
                with: ways.into_iter().filter(|(_, has)| *has).map(|(way, _)| way).collect(),
            }
        });
        let tokens = self.tokens.iter().map(|(name, token)| Listed {
            name: name.clone(),
            kind: "token",
            roles: token.roles.clone(),
            attributes: token.attributes.clone(),
            with: vec!["token"],
        });
        users.chain(tokens).collect()
    }

    /// A user as a principal.
    pub fn principal(&self, name: &str, by: Authentication) -> Option<Principal> {
        let user = self.users.get(name)?;
        Some(Principal { name: name.to_owned(), roles: user.roles.clone(), attributes: user.attributes.clone(), by })
    }

    /// A user or token by name, for those who ask what it sees.
    pub fn named(&self, name: &str) -> Option<Principal> {
        self.principal(name, Authentication::Password).or_else(|| {
            let token = self.tokens.get(name)?;
            Some(token.principal(name))
        })
    }

    /// Whose token it is. All are looked at, each in constant time.
    pub(crate) fn by_token(&self, token: &str) -> Option<Principal> {
        let hash = blake3::hash(token.as_bytes());
        let mut found = None;
        for (name, kept) in &self.tokens {
            // Comparing hashes takes the same time whatever they are.
            if kept.hash() == Some(hash) {
                found = Some(kept.principal(name));
            }
        }
        found
    }

    /// Whose certificate it is.
    pub(crate) fn by_certificate(&self, der: &[u8]) -> Option<Principal> {
        let hash = certificate_hash(der);
        let (name, _) = self.users.iter().find(|(_, user)| user.certificates.contains(&hash))?;
        self.principal(name, Authentication::Certificate)
    }

    pub(crate) fn password_hash(&self, name: &str) -> Option<&str> {
        self.users.get(name)?.password.as_deref()
    }

    pub(crate) fn scram(&self, name: &str) -> Option<ScramVerifier> {
        ScramVerifier::parse(self.users.get(name)?.scram.as_deref()?)
    }
}

impl AccessToken {
    fn hash(&self) -> Option<blake3::Hash> {
        blake3::Hash::from_hex(self.hash.strip_prefix(HASH_PREFIX)?).ok()
    }

    fn principal(&self, name: &str) -> Principal {
        Principal {
            name: name.to_owned(),
            roles: self.roles.clone(),
            attributes: self.attributes.clone(),
            by: Authentication::Token,
        }
    }
}

fn token_hash(token: &str) -> String {
    format!("{HASH_PREFIX}{}", blake3::hash(token.as_bytes()).to_hex())
}

/// The hash by which a certificate in DER is known.
pub fn certificate_hash(der: &[u8]) -> String {
    use std::fmt::Write;
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    digest.as_ref().iter().fold(CERTIFICATE_PREFIX.to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_hash(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|digits| {
        digits.len() == 64 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Names travel in headers, start-up packets and log lines.
fn check_name(name: &str) -> Result<()> {
    let fits = |character: char| character.is_ascii_alphanumeric() || "._-@".contains(character);
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
        return Err(AccessError::Invalid(format!(
            "`{}` is no name of a user or token: it has 1 to 63 letters, digits, dots, dashes, underscores or @",
            name.chars().take(80).collect::<String>()
        )));
    }
    Ok(())
}

fn missing<'a>(what: &'static str, name: &str, known: impl Iterator<Item = &'a String>) -> AccessError {
    let near =
        known.max_by(|left, right| strsim::jaro_winkler(left, name).total_cmp(&strsim::jaro_winkler(right, name)));
    let hint = near.filter(|near| strsim::jaro_winkler(near, name) > 0.8);
    let hint = hint.map(|near| format!(": did you mean `{near}`?")).unwrap_or_default();
    AccessError::NoPrincipal { what, name: name.to_owned(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str) -> NewPrincipal {
        let attributes = BTreeMap::from([("region".to_owned(), vec!["north".to_owned()])]);
        NewPrincipal { name: name.to_owned(), roles: vec!["analyst".to_owned()], attributes }
    }

    #[test]
    fn the_file_holds_hashes_alone_and_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users.toml");
        let mut users = Users::load_or_new(&file).unwrap();
        assert_eq!(users.set_user(new("ana"), Some("correct horse battery")).unwrap(), None);
        let made = users.set_user(new("ben"), None).unwrap().unwrap();
        let token = users.set_token(new("superset")).unwrap();
        users.set_certificate(new("svc"), b"certificate").unwrap();
        assert!(users.set_certificate(new("other"), b"certificate").unwrap_err().to_string().contains("`svc`"));
        users.save(&file).unwrap();
        users.save(&file).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for secret in ["correct horse battery", &made, &token] {
            assert!(!text.contains(secret), "{text}");
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let users = Users::load(&file).unwrap();
        assert_eq!(users.listed().len(), 4);
        let by_token = users.by_token(&token).unwrap();
        assert_eq!((by_token.name.as_str(), by_token.attributes["region"][0].as_str()), ("superset", "north"));
        assert!(users.by_token("hf_other").is_none());
        assert_eq!(users.by_certificate(b"certificate").unwrap().name, "svc");
        assert!(users.by_certificate(b"other").is_none());
        assert!(users.scram("ana").is_some() && users.scram("svc").is_none());
        let mut users = users;
        assert!(users.remove_user("anna").unwrap_err().to_string().contains("did you mean `ana`?"));
        users.remove_token("superset").unwrap();
        assert!(users.by_token(&token).is_none());
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told_with_its_line_and_without_secrets() {
        for (text, expected) in [
            ("[users.ana]\nroles = []\npasword = \"x\"\n", "users.toml:3:1"),
            ("[users.ana]\nroles = []\npassword = \"hunter2hunter2\"\n", "no Argon2id hash"),
            ("[tokens.t]\nroles = []\nhash = \"hunter2hunter2\"\n", "blake3:"),
        ] {
            let error = Users::parse(Path::new("users.toml"), text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        }
        for name in ["", "a b", "ana\n", &"a".repeat(64)] {
            check_name(name).unwrap_err();
        }
    }
}
