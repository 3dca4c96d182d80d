//! What is written once and then only read: data files, and the commits of a log. Small ones are kept in memory, so that whoever looks at a table again and again
//! asks the store for what is new and for nothing else.
//!
//! A data file's name is never used twice, so what was read of one stays true. A commit's name is: a table may be deleted and made anew. What is kept of a log is
//! therefore kept for a minute, no longer than a process goes on from the version it knows.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{CachedParquetFileReaderFactory, CachedParquetMetaData};
use datafusion::datasource::physical_plan::{ParquetFileMetrics, ParquetFileReaderFactory};
use datafusion::execution::cache::cache_manager::{CachedFileMetadataEntry, FileMetadataCache};
use datafusion::execution::cache::default_cache::DefaultCache;
use datafusion::execution::cache::{Cache, CacheValue};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use tokio::sync::OnceCell;

/// A data file up to this size is read whole, by one GET, and kept.
const SMALL_FILE_BYTES: u64 = 1 << 20;
/// What small files may take together.
const FILES_BYTES: usize = 64 << 20;
/// What the footers of files may take together.
const FOOTERS_BYTES: usize = 16 << 20;
/// What commits may take together.
const COMMITS_BYTES: usize = 16 << 20;
/// A commit above this size is not kept.
const COMMIT_BYTES: usize = 1 << 20;
/// How long a commit is kept.
const COMMITS_FOR: Duration = Duration::from_secs(60);

/// Data files that were read not long ago.
#[derive(Clone)]
pub(crate) struct DataFiles {
    small: Arc<DefaultCache<Path, SmallFile>>,
    footers: Arc<FileMetadataCache>,
}

/// A file that is read whole by whoever comes first.
#[derive(Clone)]
struct SmallFile {
    bytes: Arc<OnceCell<Bytes>>,
    size: usize,
}

impl CacheValue for SmallFile {
    fn size(&self) -> usize {
        self.size
    }
}

impl Default for DataFiles {
    fn default() -> Self {
        Self {
            small: Arc::new(DefaultCache::new(FILES_BYTES)),
            footers: Arc::new(DefaultCache::<Path, CachedFileMetadataEntry>::new(FOOTERS_BYTES)),
        }
    }
}

impl fmt::Debug for DataFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataFiles").field("small", &self.small.len()).field("footers", &self.footers.len()).finish()
    }
}

impl DataFiles {
    /// Readers of the files of `store`.
    pub(crate) fn readers(&self, store: &Arc<dyn ObjectStore>) -> Arc<dyn ParquetFileReaderFactory> {
        Arc::new(Readers {
            files: self.clone(),
            store: Arc::clone(store),
            large: CachedParquetFileReaderFactory::new(Arc::clone(store), Arc::clone(&self.footers)),
        })
    }

    fn small(&self, meta: &ObjectMeta) -> SmallFile {
        if let Some(known) = self.small.get(&meta.location) {
            return known;
        }
        let size = usize::try_from(meta.size).unwrap_or(usize::MAX);
        let file = SmallFile { bytes: Arc::default(), size };
        self.small.put(&meta.location, file.clone());
        file
    }
}

#[derive(Debug)]
struct Readers {
    files: DataFiles,
    store: Arc<dyn ObjectStore>,
    large: CachedParquetFileReaderFactory,
}

impl ParquetFileReaderFactory for Readers {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> datafusion::common::Result<Box<dyn AsyncFileReader + Send>> {
        if file.object_meta.size > SMALL_FILE_BYTES {
            return self.large.create_reader(partition_index, file, metadata_size_hint, metrics);
        }
        Ok(Box::new(SmallFileReader {
            metrics: ParquetFileMetrics::new(partition_index, file.object_meta.location.as_ref(), metrics),
            files: self.files.clone(),
            file: self.files.small(&file.object_meta),
            store: Arc::clone(&self.store),
            meta: file.object_meta,
        }))
    }
}

struct SmallFileReader {
    metrics: ParquetFileMetrics,
    files: DataFiles,
    file: SmallFile,
    store: Arc<dyn ObjectStore>,
    meta: ObjectMeta,
}

impl SmallFileReader {
    async fn bytes(&self) -> Result<Bytes, ParquetError> {
        let read = || async { self.store.get(&self.meta.location).await?.bytes().await };
        let bytes = self.file.bytes.get_or_try_init(read).await;
        bytes.cloned().map_err(|error| ParquetError::External(Box::new(error)))
    }

    fn part(&self, bytes: &Bytes, range: &Range<u64>) -> Result<Bytes, ParquetError> {
        let (start, end) = (usize::try_from(range.start)?, usize::try_from(range.end)?);
        if start > end || end > bytes.len() {
            let location = &self.meta.location;
            return Err(ParquetError::EOF(format!("{location} ends at {} and was to be read to {end}", bytes.len())));
        }
        self.metrics.bytes_scanned.add(end - start);
        Ok(bytes.slice(start..end))
    }
}

impl AsyncFileReader for SmallFileReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        async move { self.part(&self.bytes().await?, &range) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        async move {
            let bytes = self.bytes().await?;
            ranges.iter().map(|range| self.part(&bytes, range)).collect()
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            if let Some(known) = self.files.footers.get(&self.meta.location)
                && let Some(known) = known.file_metadata.as_any().downcast_ref::<CachedParquetMetaData>()
            {
                return Ok(Arc::clone(known.parquet_metadata()));
            }
            let bytes = self.bytes().await?;
            // All of it is at hand: page indexes cost no request.
            let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
            let footer = Arc::new(reader.parse_and_finish(&bytes)?);
            let kept = Arc::new(CachedParquetMetaData::new(Arc::clone(&footer)));
            self.files.footers.put(&self.meta.location, CachedFileMetadataEntry::new(self.meta.clone(), kept));
            Ok(footer)
        }
        .boxed()
    }
}

/// A store whose commits are kept for a minute after they were read or written.
pub(crate) struct KeptCommits {
    inner: Arc<dyn ObjectStore>,
    commits: Arc<DefaultCache<Path, Commit>>,
}

#[derive(Clone)]
struct Commit {
    meta: ObjectMeta,
    bytes: Bytes,
}

impl CacheValue for Commit {
    fn size(&self) -> usize {
        self.bytes.len() + size_of::<ObjectMeta>()
    }
}

impl KeptCommits {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, commits: Arc::new(DefaultCache::new_with_ttl(COMMITS_BYTES, Some(COMMITS_FOR))) }
    }

    fn keep(&self, meta: ObjectMeta, bytes: Bytes) {
        if bytes.len() <= COMMIT_BYTES {
            self.commits.put(&meta.location.clone(), Commit { meta, bytes });
        }
    }
}

/// Whether a path is that of a commit, `…/_delta_log/<20 digits>.json`.
fn is_commit(path: &Path) -> bool {
    let mut parts = path.as_ref().rsplit('/');
    let version = parts.next().and_then(|name| name.strip_suffix(".json"));
    version.is_some_and(|version| version.len() == 20 && version.bytes().all(|byte| byte.is_ascii_digit()))
        && parts.next() == Some("_delta_log")
}

fn is_plain(options: &GetOptions) -> bool {
    let GetOptions { if_match, if_none_match, if_modified_since, if_unmodified_since, range, version, head, .. } =
        options;
    let conditions = [if_match, if_none_match, version];
    conditions.iter().all(|condition| condition.is_none())
        && if_modified_since.is_none()
        && if_unmodified_since.is_none()
        && range.is_none()
        && !head
}

fn answer(meta: ObjectMeta, bytes: Bytes) -> GetResult {
    let range = 0..meta.size;
    let payload = GetResultPayload::Stream(futures::stream::once(async { Ok(bytes) }).boxed());
    GetResult { payload, meta, range, attributes: Attributes::new() }
}

impl fmt::Debug for KeptCommits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptCommits").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Display for KeptCommits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

#[async_trait]
impl ObjectStore for KeptCommits {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        // Only a PUT that creates says that what is there is what was sent.
        if !is_commit(location) || options.mode != PutMode::Create {
            return self.inner.put_opts(location, payload, options).await;
        }
        let bytes: Bytes = payload.clone().into();
        let put = self.inner.put_opts(location, payload, options).await?;
        let meta = ObjectMeta {
            location: location.clone(),
            // When commits were written is known from lists: nobody asks a commit itself.
            last_modified: chrono::DateTime::UNIX_EPOCH,
            size: bytes.len() as u64,
            e_tag: put.e_tag.clone(),
            version: put.version.clone(),
        };
        self.keep(meta, bytes);
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if !is_commit(location) || !is_plain(&options) {
            return self.inner.get_opts(location, options).await;
        }
        if let Some(Commit { meta, bytes }) = self.commits.get(location) {
            return Ok(answer(meta, bytes));
        }
        let found = self.inner.get_opts(location, options).await?;
        let meta = found.meta.clone();
        let bytes = found.bytes().await?;
        self.keep(meta.clone(), bytes.clone());
        Ok(answer(meta, bytes))
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        // Whoever deletes a table here and makes it anew is not to see the old one.
        let commits = Arc::clone(&self.commits);
        self.inner.delete_stream(locations.inspect_ok(move |path| drop(commits.remove(path))).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn only_commits_are_kept_and_only_what_is_asked_for_as_a_whole() {
        for commit in ["lake/core/events/_delta_log/00000000000000000012.json", "_delta_log/00000000000000000000.json"]
        {
            assert!(is_commit(&Path::from(commit)), "{commit}");
        }
        for other in [
            "lake/core/events/_delta_log/_last_checkpoint",
            "lake/core/events/_delta_log/00000000000000000012.checkpoint.parquet",
            "lake/core/events/_delta_log/00000000000000000012.json.tmp",
            "lake/core/events/_delta_log/12.json",
            "lake/_holdfast/runs/00000000000000000012.json",
        ] {
            assert!(!is_commit(&Path::from(other)), "{other}");
        }
        assert!(is_plain(&GetOptions::default()));
        assert!(!is_plain(&GetOptions { head: true, ..GetOptions::default() }));
        assert!(!is_plain(&GetOptions { range: Some((0..3).into()), ..GetOptions::default() }));
        assert!(!is_plain(&GetOptions { if_match: Some("x".to_owned()), ..GetOptions::default() }));
    }

    #[tokio::test]
    async fn a_commit_that_is_not_there_yet_is_found_once_it_is() -> object_store::Result<()> {
        let behind: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = KeptCommits::new(Arc::clone(&behind));
        let commit = Path::from("t/_delta_log/00000000000000000001.json");
        assert!(matches!(store.get(&commit).await, Err(object_store::Error::NotFound { .. })));
        // Another process makes it; a PUT of ours that is refused says nothing of what is there.
        behind.put(&commit, "theirs".into()).await?;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        assert!(store.put_opts(&commit, "ours".into(), create.clone()).await.is_err());
        assert_eq!(store.get(&commit).await?.bytes().await?, "theirs");
        behind.delete(&commit).await?;
        assert_eq!(store.get(&commit).await?.bytes().await?, "theirs", "what was read is kept");

        let next = Path::from("t/_delta_log/00000000000000000002.json");
        store.put_opts(&next, "ours".into(), create).await?;
        behind.delete(&next).await?;
        assert_eq!(store.get(&next).await?.bytes().await?, "ours", "what was written is kept");
        let _ = store.delete(&next).await;
        let _ = store.delete(&commit).await;
        assert!(
            matches!(store.get(&commit).await, Err(object_store::Error::NotFound { .. })),
            "what we deleted is gone"
        );
        Ok(())
    }
}
