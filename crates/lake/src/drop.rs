//! Deleting a table for good.

use futures::{StreamExt, TryStreamExt};
use holdfast_types::TableName;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt};

use crate::Result;
use crate::error::LakeError;
use crate::lake::Lake;

/// Objects that are deleted at the same time.
const DELETES_AT_ONCE: usize = 8;

impl Lake {
    /// Deletes a table with all of its versions; one that is not there is fine. May be repeated when it was interrupted: the log goes last, newest commits first, so that
    /// the table can be found until nothing else of it is left.
    ///
    /// Nobody may read or write the table any more: whoever has it open finds its files gone.
    ///
    /// # Errors
    /// [`LakeError::NotOwn`] for a table of production in an environment; what the store answers.
    pub async fn drop_table(&self, name: &TableName) -> Result<()> {
        if let Some(environment) = self.environment_name().filter(|_| !self.owns(name)) {
            return Err(LakeError::NotOwn { table: name.clone(), environment: environment.to_string() });
        }
        self.forget_tip(name);
        let folder = self.root().clone().join(name.schema()).join(name.table());
        let failed = LakeError::store(format!("cannot list {folder}"));
        let objects: Vec<_> = self.store().list(Some(&folder)).try_collect().await.map_err(failed)?;
        let paths = objects.into_iter().map(|object| object.location);
        let (mut log, data): (Vec<Path>, Vec<Path>) = paths.partition(|path| path.as_ref().contains("/_delta_log/"));
        self.delete_all(data).await?;
        // `_last_checkpoint` sorts behind the numbers: it goes before what it names.
        log.sort_by(|left, right| right.cmp(left));
        for path in &log {
            self.delete(path).await?;
        }
        if self.url().scheme() == "file"
            && let Ok(root) = self.url().to_file_path()
        {
            // Folders are the store's own affair elsewhere; here empty ones would stay.
            let folder = root.join(name.schema()).join(name.table());
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::debug!(table = %name, "an empty folder could not be removed");
                }
                _ => {}
            }
        }
        self.forget_own(name);
        Ok(())
    }

    pub(crate) async fn delete_all(&self, paths: Vec<Path>) -> Result<()> {
        futures::stream::iter(paths)
            .map(|path| async move { self.delete(&path).await })
            .buffer_unordered(DELETES_AT_ONCE)
            .try_collect()
            .await
    }

    async fn delete(&self, path: &Path) -> Result<()> {
        match self.store().delete(path).await {
            // Somebody else deleted it.
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(LakeError::store(format!("cannot delete {path}"))(error)),
        }
    }
}
