use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// A store over another one, in which something else happens between a look and the PUT that follows it: right before the
/// next PUT whose path contains a text, once.
pub struct InterleavedStore {
    inner: Arc<dyn ObjectStore>,
    path_contains: String,
    before: Mutex<Option<BoxFuture<'static, ()>>>,
}

impl InterleavedStore {
    /// Waits for `before` when the next PUT to a path that contains `path_contains` is about to happen.
    pub fn new(inner: Arc<dyn ObjectStore>, path_contains: &str, before: BoxFuture<'static, ()>) -> Self {
        Self { inner, path_contains: path_contains.to_owned(), before: Mutex::new(Some(before)) }
    }

    /// Whether it has happened.
    pub fn has_happened(&self) -> bool {
        self.before.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

impl fmt::Debug for InterleavedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterleavedStore").field("path_contains", &self.path_contains).finish_non_exhaustive()
    }
}

impl fmt::Display for InterleavedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InterleavedStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for InterleavedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if location.as_ref().contains(&self.path_contains) {
            let before = self.before.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(before) = before {
                before.await;
            }
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
