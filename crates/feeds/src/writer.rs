use std::time::Duration;

use futures::TryStreamExt;
use holdfast_ingest::Inbox;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, PutMode, PutOptions};
use tokio::time::{sleep, timeout};

use crate::feed::{Chunk, FeedPosition};
use crate::object::{ChunkObject, HEAD_BYTES_MAX, Head};
use crate::{FeedError, Result};

/// The name of a partition's first object, whose records come behind nothing. It sorts before every position.
pub(crate) const BEGINNING: &str = "-";
/// How often an object is written before it is left to a later worker to look at what became of it.
const WRITES_MAX: u32 = 5;
const WRITE_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Packing this much takes long enough to hold up others.
const LARGE_BYTES: usize = 64 << 10;

/// The objects of one partition in the inbox: each begins where another ends.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) inbox: Inbox,
    pub(crate) partition: String,
    pub(crate) write_timeout: Duration,
}

/// What became of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It is durable.
    Ours,
    /// Another worker has stored records behind the same position: up to this one.
    Theirs(FeedPosition),
}

impl Chain {
    /// Where the partition stands: the end of its last object, `None` before the first.
    ///
    /// # Errors
    /// What the store answers; [`FeedError::Damaged`] when the last object has no head.
    pub(crate) async fn end(&self) -> Result<Option<FeedPosition>> {
        let folder = self.inbox.feed_folder(&self.partition);
        let failed = || FeedError::store(format!("cannot list {folder}"));
        let mut objects = self.inbox.lake().store().list(Some(&folder));
        let mut last: Option<Path> = None;
        while let Some(object) = objects.try_next().await.map_err(failed())? {
            if last.as_ref().is_none_or(|last| last.as_ref() < object.location.as_ref()) {
                last = Some(object.location);
            }
        }
        let Some(path) = last else { return Ok(None) };
        match self.head(&path).await? {
            Some(head) => Ok(Some(head.end(path.as_ref())?)),
            None => Err(FeedError::Damaged {
                path: path.to_string(),
                reason: "it was listed and then not there: the last object of a partition says where to go on"
                    .to_owned(),
            }),
        }
    }

    /// Stores the records that come behind `start`, once, whoever else does so.
    ///
    /// An error may mean that it was stored or still will be: then look at [`Chain::end`], and let the next object under the same name decide.
    ///
    /// # Errors
    /// What the store answers.
    pub(crate) async fn store(&self, start: Option<&FeedPosition>, chunk: &Chunk) -> Result<Stored> {
        let path = self.inbox.feed_object(&self.partition, start.map_or(BEGINNING, FeedPosition::as_str));
        let object = if chunk.lines.len() < LARGE_BYTES {
            ChunkObject::pack(chunk)?
        } else {
            let chunk = chunk.clone();
            tokio::task::spawn_blocking(move || ChunkObject::pack(&chunk)).await.map_err(FeedError::internal)??
        };
        let mut writes = 0;
        loop {
            let error = match self.create(&path, &object).await {
                Ok(()) => return Ok(Stored::Ours),
                Err(error) => error,
            };
            writes += 1;
            // Whatever the answer was, what is there decides: ours may have been stored and the answer lost.
            match self.head(&path).await {
                Ok(Some(head)) if head.writer == object.writer => return Ok(Stored::Ours),
                Ok(Some(head)) => return Ok(Stored::Theirs(head.end(path.as_ref())?)),
                Ok(None) | Err(_) if writes < WRITES_MAX => {}
                Ok(None) => return Err(error),
                Err(look) => return Err(look),
            }
            tracing::debug!(path = path.as_ref(), %error, "an object is written again");
            // Under the same name and with the same bytes: should the first write happen yet, one of them wins.
            sleep(WRITE_AGAIN_AFTER * 2_u32.pow(writes)).await;
        }
    }

    async fn create(&self, path: &Path, object: &ChunkObject) -> Result<()> {
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let what = format!("cannot write {path}");
        let put = self.inbox.lake().store().put_opts(path, object.bytes.clone().into(), create);
        match timeout(self.write_timeout, put).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(FeedError::store(what)(error)),
            Err(_) => Err(FeedError::NoAnswer { what, seconds: self.write_timeout.as_secs_f64() }),
        }
    }

    /// The head of an object, `None` when it is not there.
    async fn head(&self, path: &Path) -> Result<Option<Head>> {
        let what = || format!("cannot read {path}");
        let range = Some(GetRange::Bounded(0..u64::try_from(HEAD_BYTES_MAX).unwrap_or(u64::MAX)));
        let options = GetOptions { range, ..GetOptions::default() };
        let get = async {
            let found = self.inbox.lake().store().get_opts(path, options).await?;
            found.bytes().await
        };
        match timeout(self.write_timeout, get).await {
            Ok(Ok(beginning)) => Ok(Some(Head::parse(path.as_ref(), &beginning)?)),
            Ok(Err(object_store::Error::NotFound { .. })) => Ok(None),
            Ok(Err(error)) => Err(FeedError::store(what())(error)),
            Err(_) => Err(FeedError::NoAnswer { what: what(), seconds: self.write_timeout.as_secs_f64() }),
        }
    }
}
