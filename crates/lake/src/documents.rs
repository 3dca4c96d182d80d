//! Small documents of the lake's own, in its system folder: each is created once, on the condition that it is not there, and does not change.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};

use crate::Result;
use crate::error::LakeError;
use crate::lake::Lake;

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
        let Err(error) = self.store().put_opts(&path, body.clone().into(), create).await else { return Ok(true) };
        // The PUT may have landed although its answer was an error: look.
        match self.read_document(name).await? {
            Some(found) => Ok(found == body),
            None => Err(LakeError::store(format!("cannot create {path}"))(error)),
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
        name.split('/').fold(self.system_folder().path, |path, part| path.join(part))
    }
}
