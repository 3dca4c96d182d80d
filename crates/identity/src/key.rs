//! The secret behind tokens, and which one a lake was made with.

use std::path::Path;

use holdfast_lake::Lake;

use crate::Result;
use crate::error::IdentityError;
use crate::resolve::Note;
use crate::tables;

/// The document in which the lake keeps the fingerprint of its key.
const DOCUMENT: &str = "facts/identity_key";

/// The secret that identifiers are hashed with. Whoever has it can test guesses against tokens, so it lives outside the lake.
#[derive(Clone, PartialEq, Eq)]
pub struct IdentityKey([u8; 32]);

impl std::fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdentityKey(…)")
    }
}

impl IdentityKey {
    /// A key from its bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads a key: 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`IdentityError::Unreadable`], [`IdentityError::Key`].
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| IdentityError::Unreadable { path: path.to_owned(), source })?;
        Self::from_hex(text.trim()).ok_or_else(|| IdentityError::Key(path.to_owned()))
    }

    fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }

    /// The key as [`IdentityKey::load`] reads it.
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// 16 hexadecimal digits that change with the key and do not give it away.
    pub fn fingerprint(&self) -> String {
        blake3::keyed_hash(&self.0, b"fingerprint").to_hex()[..16].to_owned()
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The fingerprint of the key that a lake's identifiers were hashed with; `None` while there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LakeKey {
    fingerprint: Option<String>,
    is_settled: bool,
}

impl LakeKey {
    /// What the lake says. One GET; a few more of a lake that has not settled it.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn of(lake: &Lake) -> Result<Self> {
        if let Some(document) = lake.read_document(DOCUMENT).await? {
            let fingerprint = String::from_utf8_lossy(&document).into_owned();
            if fingerprint.is_empty() {
                // Every key would begin so.
                return Err(IdentityError::Damaged(format!("_holdfast/{DOCUMENT} is empty")));
            }
            return Ok(Self { fingerprint: Some(fingerprint), is_settled: true });
        }
        // Lakes of earlier versions: what resolved identity last has noted the beginning of it.
        let identifiers = lake.table(&tables::identifiers()?.name).await?;
        let noted = Note::read(identifiers.as_ref()).await?;
        Ok(Self { fingerprint: noted.and_then(|note| note.key_fingerprint().map(str::to_owned)), is_settled: false })
    }

    /// Whether the lake has identifiers that were hashed with some key.
    pub fn is_known(&self) -> bool {
        self.fingerprint.is_some()
    }

    /// Refuses a key that is not the lake's: with it, no record would find its customer.
    ///
    /// # Errors
    /// [`IdentityError::OtherKey`].
    pub fn check(&self, lake: &Lake, fingerprint: &str) -> Result<()> {
        match &self.fingerprint {
            Some(known) if !fingerprint.starts_with(known.as_str()) => {
                Err(IdentityError::OtherKey(lake.url().to_string()))
            }
            _ => Ok(()),
        }
    }
}

/// Makes the key with this fingerprint the lake's, for good, unless it has one: then it must be that one.
///
/// # Errors
/// [`IdentityError::OtherKey`]; what the lake answers.
pub(crate) async fn settle(lake: &Lake, fingerprint: &str) -> Result<()> {
    let known = LakeKey::of(lake).await?;
    known.check(lake, fingerprint)?;
    if known.is_settled {
        return Ok(());
    }
    if lake.create_document(DOCUMENT, fingerprint.to_owned().into()).await? {
        return Ok(());
    }
    // Somebody else was first.
    LakeKey::of(lake).await?.check(lake, fingerprint)
}
