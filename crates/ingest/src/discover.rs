use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt, TryStreamExt};
use holdfast_lake::ObjectLocation;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};

use crate::Result;
use crate::error::IngestError;
use crate::origin::FileGlob;

/// How much is asked of the store at once, and how many such requests are under way for one file.
const RANGE_BYTES: u64 = 2 << 20;
const RANGES_AHEAD: usize = 4;

/// A file of a source as the store shows it.
#[derive(Debug, Clone)]
pub(crate) struct FoundFile {
    /// Relative to the ingested folder, or for what is in the inbox to the lake's own.
    pub(crate) path: String,
    pub(crate) location: Path,
    pub(crate) size: u64,
    pub(crate) etag: Option<String>,
    pub(crate) modified: DateTime<Utc>,
}

impl FoundFile {
    /// An object below `from`, without those whose names, or whose folders' names, begin with a dot.
    pub(crate) fn in_folder(from: &ObjectLocation, object: object_store::ObjectMeta) -> Option<Self> {
        let parts: Vec<String> =
            object.location.prefix_match(&from.path)?.map(|part| part.as_ref().to_owned()).collect();
        let hidden = parts.iter().any(|part| part.starts_with('.'));
        (!hidden).then_some(Self {
            path: parts.join("/"),
            location: object.location,
            size: object.size,
            etag: object.e_tag,
            modified: object.last_modified,
        })
    }

    /// The file's bytes. A file that changes meanwhile ends the stream with [`IngestError::ChangedWhileRead`].
    pub(crate) fn bytes(&self, store: &Arc<dyn ObjectStore>) -> impl Stream<Item = Result<Bytes>> + Send + use<> {
        let (store, file, size) = (Arc::clone(store), self.clone(), self.size);
        let starts = (0..size).step_by(usize::try_from(RANGE_BYTES).unwrap_or(usize::MAX));
        futures::stream::iter(starts)
            .map(move |start| {
                let (store, file) = (Arc::clone(&store), file.clone());
                async move { file.range(&store, start..size.min(start + RANGE_BYTES)).await }
            })
            .buffered(RANGES_AHEAD)
    }

    /// A part of the file, as long as the file is the one that was found.
    pub(crate) async fn range(&self, store: &Arc<dyn ObjectStore>, range: Range<u64>) -> Result<Bytes> {
        let wanted = range.end - range.start;
        let options =
            GetOptions { if_match: self.etag.clone(), range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let failed = |error| match error {
            // It was listed a moment ago.
            object_store::Error::NotFound { .. } => IngestError::ChangedWhileRead { file: self.path.clone() },
            error => IngestError::store(&self.path)(error),
        };
        let bytes = store.get_opts(&self.location, options).await.map_err(failed)?.bytes().await.map_err(failed)?;
        if u64::try_from(bytes.len()).unwrap_or(0) == wanted {
            Ok(bytes)
        } else {
            Err(IngestError::ChangedWhileRead { file: self.path.clone() })
        }
    }

    /// BLAKE3 of its bytes, in hexadecimal.
    pub(crate) async fn content_hash(&self, store: &Arc<dyn ObjectStore>) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = std::pin::pin!(self.bytes(store));
        while let Some(chunk) = bytes.try_next().await? {
            hasher.update(&chunk);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// The files of a source, sorted by path. Names that begin with a dot are left out: they are other programs' unfinished
/// work.
///
/// # Errors
/// [`IngestError::MissingFolder`], and what the store answers.
pub(crate) async fn discover(from: &ObjectLocation, source: &str, glob: &FileGlob) -> Result<Vec<FoundFile>> {
    let prefix = folder_of(from, glob);
    let shown = format!("{}/{}", from.url.as_str().trim_end_matches('/'), glob.folder());
    let missing = || IngestError::MissingFolder {
        source_name: source.to_owned(),
        folder: shown.trim_end_matches('/').to_owned(),
    };
    // It does not look at the scheme by itself.
    if from.url.scheme() == "file"
        && let Ok(base) = from.url.to_file_path()
    {
        let folder = base.join(glob.folder());
        match tokio::fs::metadata(&folder).await {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(missing()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
            Err(source) => return Err(IngestError::Io { what: format!("cannot read {}", folder.display()), source }),
        }
    }
    let listed: Vec<object_store::ObjectMeta> =
        from.store.list(Some(&prefix)).try_collect().await.map_err(IngestError::store(&shown))?;
    // An object store has no folders: one that holds nothing is as good as missing.
    if listed.is_empty() && from.url.scheme() != "file" && is_empty(from).await? {
        return Err(missing());
    }
    Ok(matching(from, glob, listed))
}

/// The folder that all files of a source are below.
fn folder_of(from: &ObjectLocation, glob: &FileGlob) -> Path {
    glob.folder().split('/').filter(|part| !part.is_empty()).fold(from.path.clone(), |path, part| path.join(part))
}

/// As [`discover`], for the files whose paths come after `path` in the order of text. A store is asked for these alone. A folder that is not there holds nothing.
///
/// # Errors
/// What the store answers.
pub(crate) async fn discover_after(from: &ObjectLocation, glob: &FileGlob, path: &str) -> Result<Vec<FoundFile>> {
    let folder = folder_of(from, glob);
    let offset = path.split('/').fold(from.path.clone(), |path, part| path.join(part));
    let listed = from.store.list_with_offset(Some(&folder), &offset);
    let listed = listed.try_collect().await.map_err(IngestError::store(folder.as_ref()))?;
    Ok(matching(from, glob, listed))
}

fn matching(from: &ObjectLocation, glob: &FileGlob, listed: Vec<object_store::ObjectMeta>) -> Vec<FoundFile> {
    let mut files: Vec<FoundFile> = listed
        .into_iter()
        .filter_map(|object| FoundFile::in_folder(from, object))
        .filter(|file| glob.matcher.is_match(&file.path))
        .collect();
    files.sort_by(|left, right| left.path.cmp(&right.path));
    files
}

/// A file by its path relative to the ingested folder, as it is now.
pub(crate) async fn look_up(from: &ObjectLocation, path: &str) -> Result<Option<FoundFile>> {
    // Parsed, not joined part by part: the parts are encoded already.
    let location = Path::parse(format!("{}/{path}", from.path))
        .map_err(|error| IngestError::internal(format!("{path} is no object path: {error}")))?;
    match from.store.head(&location).await {
        Ok(object) => Ok(Some(FoundFile {
            path: path.to_owned(),
            location: object.location,
            size: object.size,
            etag: object.e_tag,
            modified: object.last_modified,
        })),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(IngestError::store(path)(error)),
    }
}

async fn is_empty(from: &ObjectLocation) -> Result<bool> {
    let mut objects = from.store.list(Some(&from.path));
    Ok(objects.try_next().await.map_err(IngestError::store(from.url.as_str()))?.is_none())
}
