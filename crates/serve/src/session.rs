//! Options of a client's session: which run it reads, and where tables without a schema are. As everything here, they are kept by the client, sealed, and in
//! this case in a cookie: a session costs the service nothing, holds on every replica, and ends when the client forgets it.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_engine::{Published, WhichRun, written_moment};
use prost::Message;
use tonic::metadata::MetadataMap;

use crate::Result;
use crate::answer::CATALOG;
use crate::generated::v1::Session;
use crate::runs::Runs;
use crate::seal::SealKey;

const COOKIE: &str = "holdfast_session";

const CATALOG_OPTION: &str = "catalog";
const SCHEMA: &str = "schema";
const RUN: &str = "run";
const AS_OF: &str = "as_of";
/// Of `run`: the newest run now, and then no other.
const LATEST: &str = "latest";
/// Of `run`: the newest run of each call, which is so where nothing is set.
const FOLLOW: &str = "follow";

/// `SetSessionOptionsRequest` of `Flight.proto`, which arrow-flight does not have, as those that follow.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SetSessionOptionsRequest {
    #[prost(map = "string, message", tag = "1")]
    pub(crate) session_options: HashMap<String, SessionOptionValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub(crate) errors: HashMap<String, OptionError>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct OptionError {
    #[prost(enumeration = "ErrorValue", tag = "1")]
    pub(crate) value: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum ErrorValue {
    Unspecified = 0,
    InvalidName = 1,
    InvalidValue = 2,
    Error = 3,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetSessionOptionsResult {
    #[prost(map = "string, message", tag = "1")]
    pub(crate) session_options: HashMap<String, SessionOptionValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct CloseSessionResult {
    #[prost(enumeration = "CloseStatus", tag = "1")]
    pub(crate) status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum CloseStatus {
    Unspecified = 0,
    Closed = 1,
    Closing = 2,
    NotCloseable = 3,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SessionOptionValue {
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4, 5")]
    pub(crate) option_value: Option<OptionValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum OptionValue {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Flag(bool),
    #[prost(sfixed64, tag = "3")]
    Integer(i64),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(message, tag = "5")]
    Texts(TextList),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TextList {
    #[prost(string, repeated, tag = "1")]
    pub(crate) values: Vec<String>,
}

impl Session {
    /// That of a call, in its cookie; where there is none, one in which nothing is set.
    ///
    /// # Errors
    /// [`crate::ServeError::NotOurs`] when the cookie was altered, or is of another lake.
    pub(crate) fn of(metadata: &MetadataMap, key: &SealKey) -> Result<Self> {
        let sent = metadata.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
        let pairs = sent.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut pairs = pairs.filter(|(name, _)| *name == COOKIE);
        match pairs.next() {
            None | Some((_, "")) => Ok(Self::default()),
            Some((_, value)) => key.open(&URL_SAFE_NO_PAD.decode(value).unwrap_or_default()),
        }
    }

    /// The run that it reads, if not the newest.
    pub(crate) fn run(&self) -> Option<u64> {
        (self.run_sequence > 0).then_some(self.run_sequence)
    }

    /// What `set-cookie` says.
    pub(crate) fn cookie(&self, key: &SealKey) -> String {
        let value = URL_SAFE_NO_PAD.encode(key.sealed(self.clone()).encode_to_vec());
        format!("{COOKIE}={value}; Path=/")
    }

    /// What `set-cookie` says to take it away.
    pub(crate) fn forgotten() -> String {
        format!("{COOKIE}=; Path=/; Max-Age=0")
    }

    /// Sets options, those that can be, and says which cannot. `seen` is the run as the caller sees it.
    ///
    /// # Errors
    /// What the lake answers.
    pub(crate) async fn set(
        &mut self,
        options: HashMap<String, SessionOptionValue>,
        runs: &Runs,
        seen: &Published,
    ) -> Result<HashMap<String, OptionError>> {
        let mut errors = HashMap::new();
        // In the order of their names, so that the run counts where a moment is set, too.
        for (name, value) in options.into_iter().collect::<BTreeMap<_, _>>() {
            if let Err(error) = self.set_one(&name, value.option_value, runs, seen).await? {
                errors.insert(name, OptionError { value: error as i32 });
            }
        }
        Ok(errors)
    }

    async fn set_one(
        &mut self,
        name: &str,
        value: Option<OptionValue>,
        runs: &Runs,
        seen: &Published,
    ) -> Result<std::result::Result<(), ErrorValue>> {
        // Without a value it is as if it had never been set.
        let text = match value {
            None => String::new(),
            Some(OptionValue::Text(text)) => text.trim().to_owned(),
            Some(OptionValue::Integer(number)) if name == RUN => number.to_string(),
            Some(_) => return Ok(Err(ErrorValue::InvalidValue)),
        };
        let which = match (name, text.as_str()) {
            (CATALOG_OPTION, "" | CATALOG) => return Ok(Ok(())),
            (SCHEMA, schema) => {
                let is_there = schema.is_empty() || seen.tables().iter().any(|table| table.name.schema() == schema);
                if is_there {
                    schema.clone_into(&mut self.schema);
                }
                return Ok(if is_there { Ok(()) } else { Err(ErrorValue::InvalidValue) });
            }
            (RUN | AS_OF, "") | (RUN, FOLLOW) => {
                self.run_sequence = 0;
                return Ok(Ok(()));
            }
            (RUN, LATEST) => {
                runs.refresh().await?;
                self.run_sequence = runs.newest().sequence();
                return Ok(Ok(()));
            }
            (RUN, run) => match WhichRun::written(run) {
                WhichRun::AsOf(_) => WhichRun::Id(run.to_owned()),
                which => which,
            },
            (AS_OF, moment) => match written_moment(moment) {
                Some(moment) => WhichRun::AsOf(moment),
                None => return Ok(Err(ErrorValue::InvalidValue)),
            },
            (CATALOG_OPTION, _) => return Ok(Err(ErrorValue::InvalidValue)),
            _ => return Ok(Err(ErrorValue::InvalidName)),
        };
        match runs.reader().published(&which).await? {
            Some(run) => {
                self.run_sequence = run.sequence();
                Ok(Ok(()))
            }
            None => Ok(Err(ErrorValue::InvalidValue)),
        }
    }

    /// All options with their values; `run` is the one that is read.
    pub(crate) fn options(&self, run: &Published, default_schema: &str) -> HashMap<String, SessionOptionValue> {
        let schema = if self.schema.is_empty() { default_schema } else { &self.schema };
        let pinned = self.run().map_or_else(|| FOLLOW.to_owned(), |sequence| sequence.to_string());
        let told = [
            (CATALOG_OPTION, CATALOG.to_owned()),
            (SCHEMA, schema.to_owned()),
            (RUN, pinned),
            (AS_OF, run.as_of().to_rfc3339()),
        ];
        let value = |text| SessionOptionValue { option_value: Some(OptionValue::Text(text)) };
        told.into_iter().map(|(name, text)| (name.to_owned(), value(text))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_comes_back_in_its_cookie_beside_others_and_an_altered_one_does_not() {
        let key = SealKey::of_test(1);
        let session = Session { run_sequence: 7, schema: "risk".to_owned(), ..Session::default() };
        let cookie = session.cookie(&key);
        let pair = cookie.split(';').next().unwrap();
        let of = |cookies: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("cookie", cookies.parse().unwrap());
            Session::of(&metadata, &key)
        };
        let back = of(&format!("a=b; {pair}; c=d")).unwrap();
        assert_eq!((back.run(), back.schema.as_str()), (Some(7), "risk"));
        assert_eq!(of("a=b").unwrap(), Session::default());
        assert_eq!(Session::of(&MetadataMap::new(), &key).unwrap(), Session::default());
        for altered in [format!("{pair}A"), pair[..pair.len() - 4].to_owned(), format!("{COOKIE}=x")] {
            of(&altered).unwrap_err();
        }
        assert!(Session::forgotten().contains("Max-Age=0"));
    }
}
