use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, Utc};
use futures::{StreamExt, TryStreamExt};
use holdfast_lake::Lake;
use object_store::ObjectStore;
use object_store::path::Path;

use crate::Result;
use crate::discover::FoundFile;
use crate::error::IngestError;
use crate::inbox::{Inbox, STREAM_DAYS, SourceFolder};
use crate::ledger::{Ledger, batches_table, files_table};

/// What of an inbox is no longer needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepSettings {
    /// Objects stay for so long at least.
    pub retention: Duration,
    /// Pushed records that stay whatever their age, the newest: a server that starts reads from them which messages it has.
    pub pushes_kept: u64,
    /// Only tell what would be done.
    pub is_dry_run: bool,
}

impl Default for SweepSettings {
    fn default() -> Self {
        Self { retention: Duration::from_secs(7 * 24 * 60 * 60), pushes_kept: 1_000_000, is_dry_run: false }
    }
}

/// What was deleted from an inbox, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many objects.
    pub objects: u64,
    /// Their size.
    pub bytes: u64,
}

/// Deletes the objects of an inbox whose rows are all in `raw` or `quarantine` and that are old. Of a feed's partition the last
/// object stays whatever its age: its name is how far the feed was read. So do objects that were refused as a whole: a corrected
/// contract may still read them.
///
/// Only folders that are old enough are listed. May be repeated after an error and dropped at any moment; other processes may take
/// records in, and sweep, at the same time.
///
/// # Errors
/// What the store and the tables answer.
pub async fn sweep_inbox(inbox: &Inbox, settings: &SweepSettings) -> Result<Swept> {
    let lake = inbox.lake();
    let (Some(files), Some(batches)) =
        (lake.table(&files_table()?.name).await?, lake.table(&batches_table()?.name).await?)
    else {
        return Ok(Swept::default());
    };
    let old = OldObjects::find(inbox, lake.clock().now() - settings.retention).await?;
    if old.objects.is_empty() {
        return Ok(Swept::default());
    }
    let mut ledger = Ledger::open(lake, &files, &batches, inbox.pipeline(), inbox.source()).await?;
    ledger.learn(lake, &files, &batches, &old.objects).await?;
    let done: HashMap<&str, u64> = ledger.done().map(|file| (file.path.as_str(), file.rows_read)).collect();
    let unneeded = old.unneeded(&done, settings.pushes_kept);
    if !settings.is_dry_run {
        delete(lake, &unneeded).await?;
    }
    Ok(Swept { objects: unneeded.len() as u64, bytes: unneeded.iter().map(|object| object.size).sum() })
}

/// Objects that were written before some moment.
struct OldObjects {
    /// Pushes first, oldest first; then those of streams, and of each partition without its last.
    objects: Vec<FoundFile>,
    /// How many of them are pushes.
    pushes: usize,
}

impl OldObjects {
    async fn find(inbox: &Inbox, before: DateTime<Utc>) -> Result<Self> {
        let last_day = before.date_naive();
        // A stream takes batches after the day of its folder, and knows by its objects which it has.
        let last_stream_day = last_day.checked_sub_days(Days::new(STREAM_DAYS)).unwrap_or(NaiveDate::MIN);
        let (mut pushes, mut others) = (Vec::new(), Vec::new());
        for folder in inbox.all_folders().await? {
            let (into, is_feed) = match &folder {
                SourceFolder::Pushes(day, _) if *day <= last_day => (&mut pushes, false),
                SourceFolder::Puts(day, _) if *day <= last_stream_day => (&mut others, false),
                SourceFolder::Feed(_) => (&mut others, true),
                SourceFolder::Pushes(..) | SourceFolder::Puts(..) => continue,
            };
            let mut listed = inbox.list(folder.path(), None).await?;
            listed.sort_by(|left, right| left.path.cmp(&right.path));
            if is_feed {
                listed.pop();
            }
            into.extend(listed.into_iter().filter(|object| object.modified < before));
        }
        pushes.sort_by(|left: &FoundFile, right| left.path.cmp(&right.path));
        let count = pushes.len();
        pushes.append(&mut others);
        Ok(Self { objects: pushes, pushes: count })
    }

    /// Those that nobody needs any more, given the records of those that are done.
    fn unneeded(&self, done: &HashMap<&str, u64>, pushes_kept: u64) -> Vec<&FoundFile> {
        let (pushes, others) = self.objects.split_at(self.pushes);
        let mut records = 0;
        let old_pushes = pushes.iter().rev().filter(|object| {
            let is_kept = records < pushes_kept;
            records += done.get(object.path.as_str()).copied().unwrap_or(0);
            !is_kept
        });
        old_pushes.chain(others).filter(|object| done.contains_key(object.path.as_str())).collect()
    }
}

/// One that is gone already was deleted by another sweep.
async fn delete(lake: &Lake, objects: &[&FoundFile]) -> Result<()> {
    let locations: Vec<object_store::Result<Path>> = objects.iter().map(|object| Ok(object.location.clone())).collect();
    let mut deleted = lake.store().delete_stream(futures::stream::iter(locations).boxed());
    loop {
        match deleted.try_next().await {
            Ok(Some(_)) | Err(object_store::Error::NotFound { .. }) => {}
            Ok(None) => return Ok(()),
            Err(error) => return Err(IngestError::store("old objects of an inbox")(error)),
        }
    }
}
