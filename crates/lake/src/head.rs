//! What commits say of themselves, read without loading their table: a small GET each, whatever the table's history.

use futures::TryStreamExt;
use holdfast_types::TableName;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Result;
use crate::error::LakeError;
use crate::lake::Lake;
use crate::table::DATA_VERSION;

/// What one commit says of itself.
#[derive(Debug, Clone)]
pub struct CommitHead {
    version: u64,
    info: Map<String, Value>,
}

impl CommitHead {
    /// Of the text of a commit; `None` when it says nothing of itself.
    pub(crate) fn parse(version: u64, commit: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Action {
            commit_info: Option<Map<String, Value>>,
        }
        let actions = serde_json::Deserializer::from_slice(commit).into_iter::<Action>();
        let info = actions.map_while(Result::ok).find_map(|action| action.commit_info)?;
        Some(Self { version, info })
    }

    /// Its version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What it notes under `key`.
    pub fn note(&self, key: &str) -> Option<&Value> {
        self.info.get(key)
    }

    /// As [`crate::Table::data_version`].
    pub fn data_version(&self) -> u64 {
        self.info.get(DATA_VERSION).and_then(Value::as_u64).unwrap_or(self.version)
    }
}

impl Lake {
    /// Whether nothing was committed to a table after `version`, which was committed. One LIST of what is behind it in the log.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn is_newest(&self, name: &TableName, version: u64) -> Result<bool> {
        if !self.owns(name) {
            return Ok(self.pinned_version(name) == Some(version));
        }
        let log = self.log_folder(name);
        let after = log.clone().join(format!("{version:020}.json"));
        let failed = || LakeError::store(format!("cannot list {log}"));
        let mut behind = self.store().list_with_offset(Some(&log), &after);
        while let Some(object) = behind.try_next().await.map_err(failed())? {
            // Commits and checkpoints begin with their version; what else is there does not.
            let file = object.location.filename().unwrap_or_default();
            if file.split('.').next().and_then(|number| number.parse::<u64>().ok()).is_some_and(|found| found > version)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a commit says of itself; `None` when it is not (or no longer) in the log. One GET.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn commit_head(&self, name: &TableName, version: u64) -> Result<Option<CommitHead>> {
        if !self.owns(name) {
            return Box::pin(self.production().commit_head(name, version)).await;
        }
        let path = self.log_folder(name).join(format!("{version:020}.json"));
        let failed = || LakeError::store(format!("cannot read {path}"));
        match self.store().get(&path).await {
            Ok(found) => Ok(CommitHead::parse(version, &found.bytes().await.map_err(failed())?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed()(source)),
        }
    }

    fn log_folder(&self, name: &TableName) -> Path {
        self.root().clone().join(name.schema()).join(name.table()).join("_delta_log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_says_what_it_notes_and_which_rows_it_holds() {
        let commit = br#"{"add":{"path":"a"}}
{"commitInfo":{"timestamp":1,"mine":{"x":1},"holdfast.data_version":3}}"#;
        let head = CommitHead::parse(5, commit).unwrap();
        assert_eq!((head.version(), head.data_version()), (5, 3));
        assert_eq!(head.note("mine").unwrap()["x"], 1);
        let plain = CommitHead::parse(5, br#"{"commitInfo":{}}"#).unwrap();
        assert_eq!((plain.data_version(), plain.note("mine")), (5, None));
        assert!(CommitHead::parse(5, br#"{"add":{"path":"a"}}"#).is_none());
    }
}
