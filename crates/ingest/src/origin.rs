use std::sync::Arc;

use globset::GlobMatcher;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::Result;
use crate::error::IngestError;

/// Where a source's records come from, beside its inbox.
#[derive(Debug, Clone)]
pub enum Origin {
    /// Files in the folder or bucket that is ingested.
    Files(FileGlob),
    /// Another system, which is read from in an order of its own.
    Feed(FeedSpec),
}

/// Which files are a source's.
#[derive(Debug, Clone)]
pub struct FileGlob {
    /// A glob, relative to the folder or bucket that is ingested.
    pub path: String,
    pub(crate) matcher: GlobMatcher,
}

impl FileGlob {
    /// The part of the glob before its first wildcard, down to whole folders. Empty for the folder itself.
    pub(crate) fn folder(&self) -> &str {
        let wildcard = self.path.find(['*', '?', '[', '{']).unwrap_or(self.path.len());
        self.path[..wildcard].rfind('/').map_or("", |end| &self.path[..end])
    }
}

/// The section `[feed]` of a contract. Which keys it may have is known to its kind alone.
#[derive(Debug, Clone)]
pub struct FeedSpec {
    kind: String,
    file: String,
    text: Arc<str>,
}

impl FeedSpec {
    pub(crate) fn new(kind: &str, file: &str, text: &str) -> Self {
        Self { kind: kind.to_owned(), file: file.to_owned(), text: text.into() }
    }

    /// What kind of system it is read from.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The source's name.
    pub fn source(&self) -> &str {
        std::path::Path::new(&self.file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
    }

    /// The other keys of the section, as the kind has them.
    ///
    /// # Errors
    /// [`IngestError::Contract`] at the key or value that does not fit `T`.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T> {
        let table = DeTable::parse(&self.text).map_err(|error| self.toml_error(&error))?;
        let Some(mut feed) = table.into_inner().remove("feed") else {
            return Err(self.error_at(0, "no section [feed]"));
        };
        let start = feed.span().start;
        if let DeValue::Table(keys) = feed.get_mut() {
            keys.remove("kind");
        }
        T::deserialize(ValueDeserializer::from(feed)).map_err(|error| {
            let offset = error.span().map_or(start, |span| span.start);
            self.error_at(offset, error.message())
        })
    }

    /// What is wrong with the value of `key`, at its place; at the section where the key is not there.
    pub fn error(&self, key: &str, message: &str) -> IngestError {
        let offset = DeTable::parse(&self.text).ok().and_then(|table| {
            let feed = table.get_ref().get("feed")?;
            let value = feed.get_ref().as_table().and_then(|keys| keys.get(key));
            Some(value.map_or(feed.span().start, |value| value.span().start))
        });
        self.error_at(offset.unwrap_or(0), message)
    }

    fn toml_error(&self, error: &toml::de::Error) -> IngestError {
        self.error_at(error.span().map_or(0, |span| span.start), error.message())
    }

    fn error_at(&self, offset: usize, message: &str) -> IngestError {
        let (line, column) = place_in(&self.text, offset);
        IngestError::Contract { file: self.file.clone(), line, column, message: message.to_owned() }
    }
}

/// The line and the column, in characters, of a place in a text, both from 1.
pub(crate) fn place_in(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::spec::SourceSpec;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Keys {
        topic: String,
        #[serde(default)]
        limit: u32,
    }

    fn feed(text: &str) -> FeedSpec {
        let contract = format!("kind = \"app\"\n\n[feed]\nkind = \"kafka\"\n{text}\n[columns]\nid = \"string\"\n");
        match SourceSpec::parse("p/events.toml", &contract).unwrap().origin {
            Origin::Feed(feed) => feed,
            Origin::Files(_) => panic!("it has a section [feed]"),
        }
    }

    #[test]
    fn a_kind_reads_its_own_keys() {
        let feed = feed("topic = \"orders\"\nlimit = 7");
        assert_eq!(feed.kind(), "kafka");
        let keys: Keys = feed.settings().unwrap();
        assert_eq!((keys.topic.as_str(), keys.limit), ("orders", 7));
        assert_eq!(feed.error("limit", "too low").to_string(), "p/events.toml:6:9: too low");
        assert_eq!(feed.error("other", "missing").to_string(), "p/events.toml:3:1: missing");
    }

    #[test]
    fn a_mistake_in_them_has_its_place() {
        for (text, place, message) in [
            ("topc = \"orders\"", "5:1", "unknown field `topc`"),
            ("topic = \"orders\"\nlimit = \"many\"", "6:9", "invalid type"),
            ("", "3:1", "missing field `topic`"),
        ] {
            let error = feed(text).settings::<Keys>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("p/events.toml:{place}: ")), "{error}");
            assert!(error.contains(message), "{error}");
        }
    }
}
