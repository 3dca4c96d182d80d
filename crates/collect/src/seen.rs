use std::collections::{HashSet, VecDeque};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use holdfast_ingest::Inbox;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::json::Json;
use crate::message::MESSAGE_ID;
use crate::{CollectError, Result};

/// Objects that are read at the same time at the start.
const OBJECTS_AHEAD: usize = 8;

/// 16 bytes of the BLAKE3 hash of a message's id: two ids of a million share them once in 10^26 windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MessageKey([u8; 16]);

impl MessageKey {
    pub(crate) fn of(id: &str) -> Self {
        let hash = blake3::hash(id.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_bytes()[..16]);
        Self(key)
    }
}

/// The newest messages that are in the inbox: what comes again is among them.
#[derive(Debug)]
pub(crate) struct Seen {
    limit: usize,
    oldest_first: VecDeque<MessageKey>,
    keys: HashSet<MessageKey>,
}

impl Seen {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, oldest_first: VecDeque::new(), keys: HashSet::new() }
    }

    pub(crate) fn contains(&self, key: MessageKey) -> bool {
        self.keys.contains(&key)
    }

    pub(crate) fn remember(&mut self, key: MessageKey) {
        if !self.keys.insert(key) {
            return;
        }
        self.oldest_first.push_back(key);
        if self.oldest_first.len() > self.limit
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// What an earlier server left in the inbox, from its newest objects, and when the newest was written.
    ///
    /// # Errors
    /// [`CollectError::Store`] when the inbox cannot be listed or read.
    pub(crate) async fn load(inbox: &Inbox, limit: usize) -> Result<(Self, Option<DateTime<Utc>>)> {
        let mut newest = None;
        let mut newest_first = Vec::new();
        for day in days(inbox).await?.into_iter().rev() {
            let objects = objects(inbox, &day).await?;
            newest = newest.or_else(|| objects.iter().rev().find_map(|path| Inbox::moment_of(path.filename()?)));
            let mut read = futures::stream::iter(objects.into_iter().rev().map(|path| keys_of(inbox, path)))
                .buffered(OBJECTS_AHEAD);
            while newest_first.len() < limit {
                match read.try_next().await? {
                    Some(keys) => newest_first.extend(keys.into_iter().rev()),
                    None => break,
                }
            }
            if newest_first.len() >= limit {
                break;
            }
        }
        newest_first.truncate(limit);
        let mut seen = Self::new(limit);
        newest_first.into_iter().rev().for_each(|key| seen.remember(key));
        Ok((seen, newest))
    }
}

/// The folders of the days, oldest first. What came by other ways than pushes lies beside them.
async fn days(inbox: &Inbox) -> Result<Vec<Path>> {
    let folder = inbox.folder();
    let listed = inbox.lake().store().list_with_delimiter(Some(&folder)).await;
    let mut days = match listed {
        Ok(listed) => listed.common_prefixes,
        Err(object_store::Error::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(CollectError::store(format!("cannot list {folder}"))(error)),
    };
    days.retain(|folder| folder.filename().is_some_and(Inbox::is_day));
    days.sort();
    Ok(days)
}

async fn objects(inbox: &Inbox, day: &Path) -> Result<Vec<Path>> {
    let listed = inbox.lake().store().list(Some(day)).map_ok(|object| object.location).try_collect::<Vec<_>>().await;
    let mut objects = listed.map_err(CollectError::store(format!("cannot list {day}")))?;
    objects.sort();
    Ok(objects)
}

async fn keys_of(inbox: &Inbox, path: Path) -> Result<Vec<MessageKey>> {
    let failed = || CollectError::store(format!("cannot read {path}"));
    let object = inbox.lake().store().get(&path).await.map_err(failed())?.bytes().await.map_err(failed())?;
    let key = |line: &[u8]| {
        let members = Json::parse(line).ok()?.members()?;
        let id = members.iter().find_map(|(name, value)| if name == MESSAGE_ID { value.string() } else { None })?;
        Some(MessageKey::of(&id))
    };
    Ok(object.split(|byte| *byte == b'\n').filter_map(key).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut seen = Seen::new(3);
        for id in ["a", "b", "a", "c", "d"] {
            seen.remember(MessageKey::of(id));
        }
        assert_eq!(seen.len(), 3);
        assert!(!seen.contains(MessageKey::of("a")));
        for id in ["b", "c", "d"] {
            assert!(seen.contains(MessageKey::of(id)), "{id}");
        }
    }
}
