//! Small documents of the lake's own, in its system folder: each is created once, on the condition that it is not there, and does not change. They are about the lake as a whole: an
//! environment reads production's.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};

use crate::Result;
use crate::error::LakeError;
use crate::lake::{LOOK_AGAIN_AFTER, LOOKS_MAX, Lake};

/// Documents that are read at the same time.
const READ_AT_ONCE: usize = 16;

impl Lake {
    /// The documents below a folder of the system folder, as their paths within it, sorted. One LIST.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn documents(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = self.document(folder);
        let mut names: Vec<String> = self
            .store()
            .list(Some(&prefix))
            .try_filter_map(|object| {
                let parts = object.location.prefix_match(&prefix);
                let name = parts.map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"));
                futures::future::ready(Ok(name))
            })
            .try_collect()
            .await
            .map_err(LakeError::store(format!("cannot list {prefix}")))?;
        names.sort();
        Ok(names)
    }

    /// A document; `None` when it is not there.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn read_document(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.document(name);
        let failed = || LakeError::store(format!("cannot read {path}"));
        match self.store().get(&path).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed())?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed()(source)),
        }
    }

    /// Several documents, in the order asked for; those that are gone are left out.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn read_documents(&self, names: Vec<String>) -> Result<Vec<(String, Bytes)>> {
        let read = |name: String| async move { Ok(self.read_document(&name).await?.map(|body| (name, body))) };
        futures::stream::iter(names)
            .map(read)
            .buffered(READ_AT_ONCE)
            .try_filter_map(|found| futures::future::ready(Ok(found)))
            .try_collect()
            .await
    }

    /// Creates a document. `false` when another one has that name already. May be repeated: what is there already with these bytes was created by an earlier try.
    ///
    /// # Errors
    /// What the store answers, when the document is certainly not there.
    pub async fn create_document(&self, name: &str, body: Bytes) -> Result<bool> {
        let path = self.document(name);
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let mut looks = 1;
        loop {
            let put = self.store().put_opts(&path, body.clone().into(), create.clone()).await;
            let Err(error) = put else { return Ok(true) };
            // The PUT may have landed although its answer was an error: look.
            match self.read_document(name).await? {
                Some(found) => return Ok(found == body),
                // S3 says that an object is there (409) also while somebody is still writing it.
                None if looks < LOOKS_MAX && is_there(&error) => tokio::time::sleep(LOOK_AGAIN_AFTER).await,
                None => return Err(LakeError::store(format!("cannot create {path}"))(error)),
            }
            looks += 1;
        }
    }

    /// Deletes a document; one that is gone already is fine.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn delete_document(&self, name: &str) -> Result<()> {
        let path = self.document(name);
        match self.store().delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(LakeError::store(format!("cannot delete {path}"))(error)),
        }
    }

    /// Where a document is, from the root of the store.
    pub fn document(&self, name: &str) -> Path {
        name.split('/').fold(self.production().system_folder().path, |path, part| path.join(part))
    }
}

fn is_there(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::stream::FuturesUnordered;
    use holdfast_types::FixedClock;

    use super::*;
    use crate::{LakeSettings, StoreOptions};

    #[tokio::test]
    async fn of_several_who_create_a_document_one_does_and_all_read_its() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().display().to_string();
        let clock = Arc::new(FixedClock(chrono::DateTime::UNIX_EPOCH));
        let settings = LakeSettings::default();
        let lake = Lake::create_or_open(&place, folder.path(), &StoreOptions::new(), settings, clock).await?;
        assert_eq!(lake.read_document("facts/colour").await?, None);
        let created: Vec<bool> = ["red", "green", "blue"]
            .map(|colour| lake.create_document("facts/colour", colour.into()))
            .into_iter()
            .collect::<FuturesUnordered<_>>()
            .try_collect()
            .await?;
        assert_eq!(created.iter().filter(|created| **created).count(), 1, "{created:?}");
        let kept = lake.read_document("facts/colour").await?.expect("it is there");
        assert!(lake.create_document("facts/colour", kept.clone()).await?, "an earlier try of the same");
        assert!(!lake.create_document("facts/colour", "other".into()).await?);
        assert_eq!(lake.read_document("facts/colour").await?, Some(kept));
        Ok(())
    }
}
