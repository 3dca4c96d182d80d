//! What this process knows of the newest versions of tables. With it a look at a table is one small GET, of the commit after the last one known, instead
//! of a list and a replay of the log; and an append needs no look at all, since it is the very next version or none.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use deltalake_core::DeltaTableError;
use holdfast_types::TableName;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::Result;
use crate::error::LakeError;
use crate::lake::Lake;
use crate::table::Table;

/// For so long a version is gone on from. Logs keep commits for at least an hour: within a minute the one that follows is there, if there is one.
const GONE_ON_FROM: TimeDelta = TimeDelta::minutes(1);

/// Commits that are followed one after the other; where there are more, the table is loaded.
const STEPS_MAX: usize = 100;

/// The newest versions that were seen of tables.
#[derive(Debug, Default)]
pub(crate) struct Newest(Mutex<HashMap<TableName, Tip>>);

/// The newest version that was seen of a table.
#[derive(Debug, Clone)]
pub(crate) struct Tip {
    /// A version that was loaded, at or before [`Tip::version`]. No commit in between changed columns or protocol.
    pub(crate) table: Table,
    pub(crate) version: u64,
    /// The positions that the commits after `table` brought.
    since: HashMap<String, i64>,
    /// When `version` was known to be in the log.
    seen_at: DateTime<Utc>,
}

/// One action of a commit, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Action {
    txn: Option<Txn>,
    meta_data: Option<IgnoredAny>,
    protocol: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Txn {
    app_id: String,
    version: i64,
}

impl Tip {
    pub(crate) fn new(table: Table, seen_at: DateTime<Utc>) -> Self {
        Self { version: table.version(), table, since: HashMap::new(), seen_at }
    }

    /// How far `app_id` has come at this version.
    pub(crate) async fn position(&self, app_id: &str) -> Result<Option<i64>> {
        match self.since.get(app_id) {
            Some(position) => Ok(Some(*position)),
            None => self.table.position(app_id).await,
        }
    }

    /// Whether the commit after it, if there is one, is certainly still in the log.
    pub(crate) fn can_be_gone_on_from(&self, now: DateTime<Utc>) -> bool {
        (TimeDelta::zero()..=GONE_ON_FROM).contains(&(now - self.seen_at))
    }

    /// Goes one version on, over a commit that brought these positions and files alone.
    pub(crate) fn pass(&mut self, positions: impl IntoIterator<Item = (String, i64)>, now: DateTime<Utc>) {
        self.version += 1;
        self.since.extend(positions);
        self.seen_at = now;
    }

    /// Goes on to the newest version. Answers the commits on the way, or `None` where they cannot be followed: then the table has to be loaded.
    pub(crate) async fn follow(&mut self, now: DateTime<Utc>) -> Result<Option<Vec<Bytes>>> {
        let log = self.table.delta().log_store();
        let mut passed = Vec::new();
        while passed.len() < STEPS_MAX {
            let commit = log.read_commit_entry(self.version + 1).await.map_err(LakeError::delta(self.table.name()))?;
            let Some(commit) = commit else {
                self.seen_at = now;
                return Ok(Some(passed));
            };
            let Some(positions) = positions(&commit) else { return Ok(None) };
            self.pass(positions, now);
            passed.push(commit);
        }
        Ok(None)
    }

    /// The table at this version, with what is known of it.
    async fn loaded(&self, lake: &Lake) -> Result<Option<Table>, DeltaTableError> {
        if self.version == self.table.version() {
            return Ok(Some(self.table.clone()));
        }
        let mut delta = self.table.delta().clone();
        delta.update_incremental(Some(self.version)).await?;
        let Ok(table) = lake.pinned(self.table.name(), delta) else { return Ok(None) };
        table.remember_positions(self.table.known_positions());
        table.remember_positions(self.since.iter().map(|(app_id, position)| (app_id.clone(), Some(*position))));
        Ok(Some(table))
    }
}

/// The positions that a commit brings; `None` when it changes more than files and positions, or cannot be read.
fn positions(commit: &[u8]) -> Option<Vec<(String, i64)>> {
    let mut found = Vec::new();
    for action in serde_json::Deserializer::from_slice(commit).into_iter::<Action>() {
        let action = action.ok()?;
        if action.meta_data.is_some() || action.protocol.is_some() {
            return None;
        }
        found.extend(action.txn.map(|txn| (txn.app_id, txn.version)));
    }
    Some(found)
}

impl Lake {
    /// What is known of a table, if it is young enough to go on from.
    pub(crate) fn known_tip(&self, name: &TableName) -> Option<Tip> {
        let known = self.known_tables().0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        known.filter(|tip| tip.can_be_gone_on_from(self.clock().now()))
    }

    /// Remembers what was seen, unless somebody saw more meanwhile.
    pub(crate) fn remember_tip(&self, tip: Tip) {
        let now = self.clock().now();
        let mut known = self.known_tables().0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_behind = known
            .get(tip.table.name())
            .is_some_and(|other| other.can_be_gone_on_from(now) && other.version > tip.version);
        if !is_behind {
            known.insert(tip.table.name().clone(), tip);
        }
    }

    pub(crate) fn forget_tip(&self, name: &TableName) {
        self.known_tables().0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The newest version, gone on to from what is known; `None` when nothing is known or too much has happened since.
    pub(crate) async fn followed(&self, name: &TableName) -> Result<Option<Table>> {
        let Some(mut tip) = self.known_tip(name) else { return Ok(None) };
        if tip.follow(self.clock().now()).await?.is_none() {
            return Ok(None);
        }
        match tip.loaded(self).await {
            Ok(Some(table)) => {
                let since = if table.version() == tip.table.version() { tip.since.clone() } else { HashMap::new() };
                self.remember_tip(Tip { table: table.clone(), since, ..tip });
                Ok(Some(table))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                tracing::debug!(table = %name, %error, "a table could not be followed and is loaded");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_followed_only_when_it_brings_files_and_positions_alone() {
        let appended = concat!(
            r#"{"commitInfo":{"operation":"WRITE","txn":"no position"}}"#,
            "\n",
            r#"{"add":{"path":"part","size":1}}"#,
            "\n",
            r#"{"txn":{"appId":"raw/churn/orders","version":7,"lastUpdated":1}}"#,
        );
        assert_eq!(positions(appended.as_bytes()), Some(vec![("raw/churn/orders".to_owned(), 7)]));
        assert_eq!(positions(b""), Some(Vec::new()));
        assert_eq!(positions(br#"{"metaData":{"id":"x"}}"#), None);
        assert_eq!(positions(br#"{"protocol":{"minReaderVersion":3}}"#), None);
        assert_eq!(positions(br#"{"txn":{"appId":"cut"#), None);
    }
}
