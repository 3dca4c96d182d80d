use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::{CollectError, Result};

/// What every key begins with, so that people and scanners know one when they see it.
const PREFIX: &str = "hfk_";

/// Who may push, and to which source.
#[derive(Debug, Clone)]
pub enum Access {
    /// Whoever reaches the server, to this source. For this machine alone.
    Open {
        /// Where all goes.
        source: String,
    },
    /// Who has a key, to the key's source.
    Keys(WriteKeys),
}

impl Access {
    /// The source that a key may push to.
    pub(crate) fn source_of(&self, key: Option<&str>) -> Option<&str> {
        match self {
            Self::Open { source } => Some(source),
            Self::Keys(keys) => keys.source_of(key?),
        }
    }
}

/// The write keys of a server, as BLAKE3 hashes: the file that names them opens nothing to who reads it.
#[derive(Debug, Clone)]
pub struct WriteKeys {
    keys: Vec<(blake3::Hash, String)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    keys: BTreeMap<String, String>,
}

impl WriteKeys {
    /// Reads the text of a keys file: a table `[keys]` from hashes to names of sources.
    ///
    /// # Errors
    /// [`CollectError::Keys`] when it is something else, or names no key.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let wrong = |reason: String| CollectError::Keys { file: file.to_owned(), reason };
        let example = "write a table [keys] with lines as `holdfast collect --new-key SOURCE` prints them";
        let parsed: KeysFile =
            toml::from_str(text).map_err(|error| wrong(format!("{}; {example}", error.message())))?;
        if parsed.keys.is_empty() {
            return Err(wrong(format!("there is no key in it; {example}")));
        }
        let keys = parsed.keys.into_iter().map(|(hash, source)| {
            let hash = blake3::Hash::from_hex(&hash)
                .map_err(|_| wrong(format!("a key of source {source} is no BLAKE3 hash in hexadecimal; {example}")))?;
            Ok((hash, source))
        });
        Ok(Self { keys: keys.collect::<Result<_>>()? })
    }

    /// The sources that have a key.
    pub fn sources(&self) -> BTreeSet<&str> {
        self.keys.iter().map(|(_, source)| source.as_str()).collect()
    }

    /// Takes as long for a wrong key as for a right one: hashes compare in constant time, and all are compared.
    fn source_of(&self, key: &str) -> Option<&str> {
        let hash = blake3::hash(key.as_bytes());
        let mut found = None;
        for (known, source) in &self.keys {
            if *known == hash {
                found = Some(source.as_str());
            }
        }
        found
    }
}

/// A new write key.
#[derive(Debug)]
pub struct WriteKey {
    /// What the program that pushes is given.
    pub key: String,
    /// The line for the keys file.
    pub line: String,
}

impl WriteKey {
    /// The key that `secret`, which nobody can guess, makes for a source.
    pub fn new(secret: &[u8; 32], source: &str) -> Self {
        let key = format!("{PREFIX}{}", blake3::Hash::from_bytes(*secret).to_hex());
        let line = format!("\"{}\" = \"{source}\"", blake3::hash(key.as_bytes()).to_hex());
        Self { key, line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_its_source_and_no_other() {
        let (web, app) = (WriteKey::new(&[1; 32], "web"), WriteKey::new(&[2; 32], "app"));
        let keys = WriteKeys::parse("keys.toml", &format!("[keys]\n{}\n{}\n", web.line, app.line)).unwrap();
        assert_eq!(keys.sources(), BTreeSet::from(["app", "web"]));
        assert_eq!(keys.source_of(&web.key), Some("web"));
        assert_eq!(keys.source_of(&app.key), Some("app"));
        assert_eq!(keys.source_of(""), None);
        assert!(!web.line.contains(&web.key[4..]), "the file does not hold the key");
        // The hash itself opens nothing.
        assert_eq!(keys.source_of(&web.line[1..65]), None);
        let access = Access::Keys(keys);
        assert_eq!(access.source_of(None), None);
    }

    #[test]
    fn mistakes_in_the_file_are_told_with_the_remedy() {
        for text in ["", "[keys]\n", "[keys]\nsecret = \"web\"\n", "[keys]\n\"00\" = 1\n", "[key]\n"] {
            let error = WriteKeys::parse("keys.toml", text).unwrap_err().to_string();
            assert!(error.starts_with("keys.toml: ") && error.contains("--new-key"), "{error}");
        }
    }
}
