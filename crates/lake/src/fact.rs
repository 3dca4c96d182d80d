//! Facts about a lake as a whole, each written once: who comes first decides, and everybody else reads it.

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};

use crate::Result;
use crate::error::LakeError;
use crate::lake::{LOOK_AGAIN_AFTER, LOOKS_MAX, Lake, SYSTEM_FOLDER};

fn object(lake: &Lake, name: &str) -> Path {
    lake.production().root().clone().join(SYSTEM_FOLDER).join("facts").join(name)
}

impl Lake {
    /// A fact that was settled by [`Lake::settle_fact`]; `None` while it is not. One GET.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn fact(&self, name: &str) -> Result<Option<String>> {
        let path = object(self, name);
        let failed = || LakeError::store(format!("cannot read {path}"));
        let body = match self.store().get(&path).await {
            Ok(found) => found.bytes().await.map_err(failed())?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed()(error)),
        };
        let damaged = |reason: &str| LakeError::Damaged { path: path.to_string(), reason: reason.to_owned() };
        match std::str::from_utf8(&body) {
            Ok("") => Err(damaged("it is empty")),
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(damaged("it is no text")),
        }
    }

    /// Settles a fact, unless it is settled already; answers what it is. May be repeated, and called by several processes at once: all get the same answer.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn settle_fact(&self, name: &str, value: &str) -> Result<String> {
        let path = object(self, name);
        let mut looks = 1;
        loop {
            let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let source = match self.store().put_opts(&path, value.to_owned().into(), create).await {
                Ok(_) => return Ok(value.to_owned()),
                Err(source) => source,
            };
            // Also where the PUT landed although its answer was an error.
            match self.fact(name).await? {
                Some(settled) => return Ok(settled),
                // S3 says that an object is there (409) also while somebody is still writing it.
                None if looks < LOOKS_MAX => tokio::time::sleep(LOOK_AGAIN_AFTER).await,
                None => return Err(LakeError::store(format!("cannot write {path}"))(source)),
            }
            looks += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::StreamExt;
    use futures::stream::FuturesUnordered;
    use holdfast_types::FixedClock;

    use crate::{Lake, LakeSettings, StoreOptions};

    #[tokio::test]
    async fn of_several_who_settle_a_fact_one_decides_for_all() -> crate::Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().display().to_string();
        let clock = Arc::new(FixedClock(chrono::DateTime::UNIX_EPOCH));
        let lake =
            Lake::create_or_open(&place, folder.path(), &StoreOptions::new(), LakeSettings::default(), clock).await?;
        assert_eq!(lake.fact("colour").await?, None);
        let answers: Vec<String> = ["red", "green", "blue"]
            .map(|colour| lake.settle_fact("colour", colour))
            .into_iter()
            .collect::<FuturesUnordered<_>>()
            .map(|answer| answer.expect("an answer"))
            .collect()
            .await;
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        assert_eq!(lake.fact("colour").await?.as_ref(), Some(&answers[0]));
        Ok(())
    }
}
