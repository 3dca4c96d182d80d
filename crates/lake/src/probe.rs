use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions};
use uuid::Uuid;

use crate::Result;
use crate::error::LakeError;
use crate::lake::{LOOK_AGAIN_AFTER, LOOKS_MAX, SYSTEM_FOLDER};
use crate::store::{ObjectLocation, describe_chain};

/// The object that is written twice. It stays, so that the first write of the next process is the second one already.
const PROBE: &str = "probe";

/// Refuses a store on which two writers could both create one object. Every commit, lease and published run of ours rests on that only one
/// of them can; a store that answers otherwise loses rows in silence.
///
/// An object is written twice on the condition that it is not there, and read back. Two requests where it is there from an earlier time, and
/// three at first. A local disk is not asked: its file system does it. What a store only now and then gets wrong is not seen.
///
/// # Errors
/// [`LakeError::UnsafeStore`], and what the store answers.
pub(crate) async fn probe(place: &ObjectLocation) -> Result<()> {
    if place.url.scheme() == "file" {
        return Ok(());
    }
    let path = place.path.clone().join(SYSTEM_FOLDER).join(PROBE);
    let lies = |reason: &str| LakeError::UnsafeStore { url: place.url.to_string(), reason: reason.to_owned() };
    let (first, second) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    let mut looks = 1;
    while let Some(answer) = create(place, &path, &first).await? {
        match read(place, &path).await {
            // A first write whose answer was lost, and which was repeated on the way, is there as well.
            Ok(found) if found == first => break,
            Ok(_) => return Ok(()),
            // S3 says that an object is there (409) also while somebody is still writing it.
            Err(Error::NotFound { .. }) if looks < LOOKS_MAX => {
                looks += 1;
                tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            }
            Err(error) => {
                let error = if matches!(error, Error::NotFound { .. }) { answer } else { error };
                return Err(LakeError::store(format!("cannot read {path}"))(error));
            }
        }
    }
    if create(place, &path, &second).await?.is_none() {
        return Err(lies("it let the same object be created twice"));
    }
    let found = read(place, &path).await.map_err(LakeError::store(format!("cannot read {path}")))?;
    if found == second {
        return Err(lies("it said that an object was there and wrote it all the same"));
    }
    // Of two processes that do this for the first time, both may have been told that they were first.
    if found != first {
        return Err(lies("it let an object be created and then put another one in its place"));
    }
    Ok(())
}

async fn read(place: &ObjectLocation, path: &Path) -> object_store::Result<Bytes> {
    place.store.get(path).await?.bytes().await
}

/// Creates the object; with the store's answer when that says that it was there.
async fn create(place: &ObjectLocation, path: &Path, body: &str) -> Result<Option<Error>> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match place.store.put_opts(path, body.to_owned().into(), options).await {
        Ok(_) => Ok(None),
        Err(error @ (Error::AlreadyExists { .. } | Error::Precondition { .. })) => Ok(Some(error)),
        Err(error) if is_unknown(&error) => Err(LakeError::UnsafeStore {
            url: place.url.to_string(),
            reason: "it does not know writes on a condition".to_owned(),
        }),
        Err(error) => Err(LakeError::store(format!("cannot write to the lake at {}", place.url))(error)),
    }
}

/// Stores that do not know the condition say so with a status of their own, which has no kind in the library.
fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. } | Error::NotSupported { .. })
        || describe_chain(error).contains("501 Not Implemented")
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::Arc;

    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use holdfast_types::ErrorKind;
    use object_store::memory::InMemory;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
        PutPayload, PutResult,
    };
    use url::Url;

    use super::*;

    /// How a store treats a write on the condition that nothing is there.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Manner {
        Honest,
        Ignores,
        RefusesAndWrites,
        Unknown,
    }

    #[derive(Debug)]
    struct Store(InMemory, Manner);

    impl fmt::Display for Store {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Store")
        }
    }

    #[async_trait]
    impl ObjectStore for Store {
        async fn put_opts(
            &self,
            location: &Path,
            payload: PutPayload,
            options: PutOptions,
        ) -> object_store::Result<PutResult> {
            match self.1 {
                Manner::Honest => self.0.put_opts(location, payload, options).await,
                Manner::Ignores => self.0.put(location, payload).await,
                Manner::RefusesAndWrites => {
                    let answer = self.0.put_opts(location, payload.clone(), options).await;
                    self.0.put(location, payload).await?;
                    answer
                }
                Manner::Unknown => Err(Error::NotImplemented { operation: "put".into(), implementer: "test".into() }),
            }
        }

        async fn put_multipart_opts(
            &self,
            location: &Path,
            options: PutMultipartOptions,
        ) -> object_store::Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(location, options).await
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
            self.0.get_opts(location, options).await
        }

        fn delete_stream(
            &self,
            locations: BoxStream<'static, object_store::Result<Path>>,
        ) -> BoxStream<'static, object_store::Result<Path>> {
            self.0.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
            self.0.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    fn place(manner: Manner) -> ObjectLocation {
        let url = Url::parse("memory:///lake").unwrap();
        ObjectLocation { store: Arc::new(Store(InMemory::new(), manner)), path: Path::from("lake"), url }
    }

    #[tokio::test]
    async fn an_honest_store_is_taken_again_and_again() {
        let place = place(Manner::Honest);
        for _ in 0..3 {
            probe(&place).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_store_that_lies_is_refused_at_first_sight_and_later() {
        for manner in [Manner::Ignores, Manner::RefusesAndWrites, Manner::Unknown] {
            let place = place(manner);
            for _ in 0..2 {
                let error = probe(&place).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{manner:?}");
                let said = error.to_string();
                assert!(said.contains("memory:///lake") && said.contains("If-None-Match"), "{said}");
            }
        }
    }

    #[tokio::test]
    async fn processes_that_ask_at_the_same_time_agree() {
        let place = place(Manner::Honest);
        let asked = (0..8).map(|_| probe(&place));
        futures::future::try_join_all(asked).await.unwrap();
    }
}
