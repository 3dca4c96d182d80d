use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, Utc};
use futures::{StreamExt, TryStreamExt};
use holdfast_lake::{Lake, ObjectLocation};
use holdfast_types::NoProgress;
use object_store::ObjectStore;
use object_store::path::Path;
use uuid::{NoContext, Timestamp, Uuid};

use crate::Result;
use crate::books::Books;
use crate::discover::{FoundFile, look_up};
use crate::error::IngestError;
use crate::ingest::{Source, told};
use crate::ledger::Ledger;
use crate::places::{InboxForm, Places, inbox_folder};
use crate::report::SourceReport;
use crate::settings::IngestSettings;
use crate::spec::SourceSpec;

/// Where feeds and puts lie beside the days of pushes.
const FEED: &str = "feed";
const PUT: &str = "put";

/// How far behind the newest stored object [`Look::Back`] looks: longer than writing an object takes, and than the clocks
/// of two servers differ.
const LOOK_BACK: Duration = Duration::from_secs(3_600);
/// How many days behind that of the newest stored batch [`Look::Back`] looks: a stream takes batches on two days, and the
/// clocks of two servers differ.
const PUT_DAYS_BACK: u64 = 2;
/// A stream takes batches on the day it began and on the day after. So its objects are in a folder whose age is known, and
/// looking for new ones does not mean to list all that ever were.
pub(crate) const STREAM_DAYS: u64 = 2;
/// Lists that are under way at the same time.
const LISTS_AHEAD: usize = 8;

/// Where records that came by another way than files wait for `raw`: objects below
/// `<lake>/_holdfast/inbox/<pipeline>/<source>/`, in three kinds of rows.
///
/// | name | content | its order |
/// |---|---|---|
/// | `<day>/<UUID v7>.ndjson` | pushes | by time |
/// | `put/<day>/<stream>/<number>.parquet` | Arrow batches of a stream that began on that day | by day |
/// | `feed/<partition>/<position>.ndjson.zst` | records of a feed | by position |
///
/// An object is written once and never changed, so that its content is that of its name. The suffix says in which form it
/// is, whatever form the contract says the source's files have. An object must appear before any object that comes more than an
/// hour behind it in its row by name (for feeds, before any that comes behind it): what is older is not looked for.
#[derive(Debug, Clone)]
pub struct Inbox {
    lake: Lake,
    pipeline: String,
    spec: Arc<SourceSpec>,
    from: ObjectLocation,
    /// Relative to `from`, with a slash at its end.
    folder: String,
    /// Batches that were put here, by path relative to `from`. Streams are written beside each other and by no order of names,
    /// so that what comes behind the newest is not all that is new.
    announced: Arc<Mutex<Vec<String>>>,
}

impl Inbox {
    /// The inbox of a source. Nothing is read or written.
    pub fn new(lake: &Lake, pipeline: &str, spec: &SourceSpec) -> Self {
        Self {
            lake: lake.clone(),
            pipeline: pipeline.to_owned(),
            spec: Arc::new(spec.clone()),
            from: lake.system_folder(),
            folder: inbox_folder(pipeline, &spec.name),
            announced: Arc::default(),
        }
    }

    /// The source.
    pub fn source(&self) -> &str {
        &self.spec.name
    }

    /// The pipeline that the source is of.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// The lake's store, in which [`Inbox::folder`] and the objects are.
    pub fn lake(&self) -> &Lake {
        &self.lake
    }

    /// The folder that has a folder for each day of pushes.
    pub fn folder(&self) -> Path {
        self.folder
            .split('/')
            .filter(|part| !part.is_empty())
            .fold(self.from.path.clone(), |path, part| path.join(part))
    }

    /// The object for pushed records of `moment`, with a name that nobody else has.
    pub fn object(&self, moment: DateTime<Utc>) -> Path {
        let name = Self::name_at(moment);
        self.folder().join(day_of(moment)).join(format!("{name}{}", InboxForm::NDJSON))
    }

    /// The folder for what is put.
    pub(crate) fn puts_folder(&self) -> Path {
        self.folder().join(PUT)
    }

    /// The folder for the objects of a stream of Arrow batches that begins at `moment`, with a name that nobody else has.
    pub fn put_folder(&self, moment: DateTime<Utc>) -> Path {
        self.stream_folder(moment.date_naive(), &Self::name_at(moment).to_string())
    }

    /// The folder for the objects of a stream of this name that began on `day`.
    pub(crate) fn stream_folder(&self, day: NaiveDate, stream: &str) -> Path {
        self.puts_folder().join(day.to_string()).join(stream)
    }

    /// The object of batch `number`, from 0, in the folder of a stream.
    pub fn put_object(folder: &Path, number: u64) -> Path {
        folder.clone().join(format!("{number:020}{}", InboxForm::PARQUET))
    }

    /// Tells the readers of this inbox and its clones of an object that was put.
    pub(crate) fn announce(&self, object: &Path) {
        let parts: Option<Vec<String>> =
            object.prefix_match(&self.from.path).map(|parts| parts.map(|part| part.as_ref().to_owned()).collect());
        if let Some(parts) = parts {
            self.announced.lock().unwrap_or_else(PoisonError::into_inner).push(parts.join("/"));
        }
    }

    /// The objects that were announced since the last call.
    async fn announced(&self) -> Result<Vec<FoundFile>> {
        let paths = std::mem::take(&mut *self.announced.lock().unwrap_or_else(PoisonError::into_inner));
        let found = futures::stream::iter(paths).map(async |path| look_up(&self.from, &path).await);
        found.buffered(LISTS_AHEAD).try_filter_map(async |file| Ok(file)).try_collect().await
    }

    /// The folder for the records of a feed's partition.
    pub fn feed_folder(&self, partition: &str) -> Path {
        self.folder().join(FEED).join(partition)
    }

    /// The object for the records of a feed's partition that come behind `position`.
    pub fn feed_object(&self, partition: &str, position: &str) -> Path {
        self.feed_folder(partition).join(format!("{position}{}", InboxForm::PACKED_NDJSON))
    }

    /// Whether a folder of this name holds the pushes of a day.
    pub fn is_day(name: &str) -> bool {
        day_named(name).is_some()
    }

    /// When the pushed records' object of this name was written; `None` for what is no name of ours.
    pub fn moment_of(name: &str) -> Option<DateTime<Utc>> {
        moment_of(name.strip_suffix(InboxForm::NDJSON)?)
    }

    fn name_at(moment: DateTime<Utc>) -> Uuid {
        let seconds = u64::try_from(moment.timestamp()).unwrap_or(0);
        Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, moment.timestamp_subsec_nanos()))
    }

    /// The objects that `look` looks for, sorted by path, given what the books say is stored.
    ///
    /// # Errors
    /// What the store answers.
    pub(crate) async fn discover(&self, look: Look, ledger: &Ledger) -> Result<Vec<FoundFile>> {
        let marks = Marks::of(self, ledger);
        let (pushes, puts) = (marks.pushes.after(look), marks.puts.after(look));
        let puts_parent = format!("{}{PUT}/", self.folder);
        let lists = self.all_folders().await?.into_iter().filter_map(|folder| match folder {
            SourceFolder::Pushes(day, path) => from_day(day, path, &self.folder, pushes.as_deref()),
            SourceFolder::Puts(day, path) => from_day(day, path, &puts_parent, puts.as_deref()),
            SourceFolder::Feed(path) => {
                let after = path.filename().and_then(|partition| marks.feeds.get(partition)).cloned();
                Some((path, after))
            }
        });
        let listed: Vec<Vec<FoundFile>> = futures::stream::iter(lists)
            .map(|(path, after)| async move { self.list(&path, after.as_deref()).await })
            .buffer_unordered(LISTS_AHEAD)
            .try_collect()
            .await?;
        let mut found: Vec<FoundFile> = listed.into_iter().flatten().collect();
        found.extend(self.announced().await?);
        found.sort_by(|left, right| left.path.cmp(&right.path));
        found.dedup_by(|left, right| left.path == right.path);
        Ok(found)
    }

    /// The folders that objects lie in.
    pub(crate) async fn all_folders(&self) -> Result<Vec<SourceFolder>> {
        let mut found = Vec::new();
        for (name, path) in self.folders(&self.folder()).await? {
            match name.as_str() {
                FEED => found.extend(self.folders(&path).await?.into_iter().map(|(_, path)| SourceFolder::Feed(path))),
                PUT => {
                    let days = self.folders(&path).await?.into_iter();
                    found.extend(days.filter_map(|(day, path)| Some(SourceFolder::Puts(day_named(&day)?, path))));
                }
                day => found.extend(day_named(day).map(|day| SourceFolder::Pushes(day, path))),
            }
        }
        Ok(found)
    }

    /// Whether anything was ever put into it.
    pub(crate) async fn is_used(&self) -> Result<bool> {
        Ok(!self.folders(&self.folder()).await?.is_empty())
    }

    /// Objects that were refused as a whole under another contract than this one, which may read them.
    pub(crate) async fn refused_before(&self, books: &Books) -> Result<Vec<FoundFile>> {
        let mut found = Vec::new();
        for path in books.refused.under_other_contract(&self.folder, &self.spec) {
            if !books.ledger.has_stored(path) {
                found.extend(look_up(&self.from, path).await?);
            }
        }
        Ok(found)
    }

    /// The folders in a folder, by name. One that is not there holds none.
    async fn folders(&self, folder: &Path) -> Result<Vec<(String, Path)>> {
        let listed = match self.lake.store().list_with_delimiter(Some(folder)).await {
            Ok(listed) => listed.common_prefixes,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(IngestError::store(folder.as_ref())(error)),
        };
        Ok(listed.into_iter().filter_map(|path| Some((path.filename()?.to_owned(), path))).collect())
    }

    /// The objects in a folder whose paths come after `after`, relative to `from`, or all of them. A store is asked for these alone.
    pub(crate) async fn list(&self, folder: &Path, after: Option<&str>) -> Result<Vec<FoundFile>> {
        let listed = match after {
            Some(after) => {
                let offset = after.split('/').fold(self.from.path.clone(), |path, part| path.join(part));
                self.from.store.list_with_offset(Some(folder), &offset)
            }
            None => self.from.store.list(Some(folder)),
        };
        let listed: Vec<object_store::ObjectMeta> =
            listed.try_collect().await.map_err(IngestError::store(folder.as_ref()))?;
        Ok(listed
            .into_iter()
            .filter_map(|object| FoundFile::in_folder(&self.from, object))
            .filter(|file| InboxForm::of(&file.path).is_some())
            .collect())
    }

    /// Which row an object is in, by its path in the books.
    fn row_of<'a>(&self, path: &'a str) -> Option<Row<'a>> {
        let mut parts = path.strip_prefix(&self.folder)?.split('/');
        match parts.next()? {
            FEED => Some(Row::Feed(parts.next()?)),
            PUT => Some(Row::Put),
            _ => Some(Row::Push),
        }
    }
}

/// A folder of an inbox.
#[derive(Debug)]
pub(crate) enum SourceFolder {
    /// What was pushed on this day.
    Pushes(NaiveDate, Path),
    /// What was put into the streams that began on this day.
    Puts(NaiveDate, Path),
    /// A partition of a feed.
    Feed(Path),
}

impl SourceFolder {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Pushes(_, path) | Self::Puts(_, path) | Self::Feed(path) => path,
        }
    }
}

/// A day's folder, with what its objects must come after; `None` when all of them come before `after`. `parent` is the path of
/// what it is in.
fn from_day(day: NaiveDate, path: Path, parent: &str, after: Option<&str>) -> Option<(Path, Option<String>)> {
    let Some(after) = after else { return Some((path, None)) };
    let day = format!("{parent}{day}/");
    match after.starts_with(&day) {
        true => Some((path, Some(after.to_owned()))),
        false => (day.as_str() > after).then_some((path, None)),
    }
}

fn day_named(name: &str) -> Option<NaiveDate> {
    NaiveDate::parse_from_str(name, "%Y-%m-%d").ok().filter(|_| name.len() == 10)
}

fn day_of(moment: DateTime<Utc>) -> String {
    moment.format("%Y-%m-%d").to_string()
}

fn moment_of(uuid: &str) -> Option<DateTime<Utc>> {
    let (seconds, nanos) = Uuid::parse_str(uuid).ok()?.get_timestamp()?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
}

/// Objects whose names have one order.
enum Row<'a> {
    Push,
    Put,
    /// Of this partition.
    Feed(&'a str),
}

/// The newest stored object of a row that is ordered by time.
#[derive(Debug, Default)]
struct TimeMark {
    newest: Option<String>,
    look_back: Option<String>,
}

impl TimeMark {
    /// Of pushes, whose names say when they were written.
    fn of_pushes(newest: Option<String>, parent: &str) -> Self {
        let look_back = newest.as_deref().map(|newest| {
            let name = newest.rsplit('/').next().map(|name| name.split('.').next().unwrap_or(name));
            // A name that is not ours has no time: all is looked at.
            name.and_then(moment_of).map_or_else(
                || parent.to_owned(),
                |moment| {
                    let from = moment - LOOK_BACK;
                    let millis = u128::try_from(from.timestamp_millis()).unwrap_or(0);
                    format!("{parent}{}/{}", day_of(from), Uuid::from_u128(millis << 80))
                },
            )
        });
        Self { newest, look_back }
    }

    /// Of streams, which go on for days, the day is what counts.
    fn of_puts(newest: Option<String>, parent: &str) -> Self {
        let look_back = newest.as_deref().map(|newest| {
            let day = newest[parent.len()..].split('/').next().and_then(|day| day.parse::<NaiveDate>().ok());
            let from = day.and_then(|day| day.checked_sub_days(Days::new(PUT_DAYS_BACK)));
            // A name that is not ours has no day: all is looked at.
            from.map_or_else(|| parent.to_owned(), |from| format!("{parent}{from}"))
        });
        Self { newest, look_back }
    }

    fn after(&self, look: Look) -> Option<String> {
        match look {
            Look::Ahead => self.newest.clone(),
            Look::Back => self.look_back.clone(),
        }
    }
}

/// How far each row of an inbox is stored.
#[derive(Debug)]
struct Marks {
    pushes: TimeMark,
    puts: TimeMark,
    /// The newest stored object of each partition.
    feeds: BTreeMap<String, String>,
}

impl Marks {
    fn of(inbox: &Inbox, ledger: &Ledger) -> Self {
        let (mut pushes, mut puts, mut feeds) = (None, None, BTreeMap::<String, String>::new());
        for path in ledger.stored_paths() {
            let mark: &mut Option<String> = match inbox.row_of(path) {
                None => continue,
                Some(Row::Push) => &mut pushes,
                Some(Row::Put) => &mut puts,
                Some(Row::Feed(partition)) => {
                    if feeds.get(partition).is_none_or(|newest| newest.as_str() < path) {
                        feeds.insert(partition.to_owned(), path.to_owned());
                    }
                    continue;
                }
            };
            if mark.as_deref().is_none_or(|newest| newest < path) {
                *mark = Some(path.to_owned());
            }
        }
        let pushes = TimeMark::of_pushes(pushes, &inbox.folder);
        let puts = TimeMark::of_puts(puts, &format!("{}{PUT}/", inbox.folder));
        Self { pushes, puts, feeds }
    }

    /// Whether the books of a stored object are needed: to know it when it is found again, and how far its row is.
    fn need(&self, inbox: &Inbox, path: &str) -> bool {
        let (mark, path) = match inbox.row_of(path) {
            None => return false,
            Some(Row::Push) => (self.pushes.look_back.as_deref(), path),
            Some(Row::Put) => (self.puts.look_back.as_deref(), path),
            Some(Row::Feed(partition)) => (self.feeds.get(partition).map(String::as_str), path),
        };
        mark.is_none_or(|mark| path >= mark)
    }
}

/// Which objects are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Those with names behind the newest stored one of their row. Finds all that one server wrote, since its names only grow;
    /// of what is put, by what was announced.
    Ahead,
    /// Also those of the hour before, for objects of other servers, whose clocks differ.
    Back,
}

/// Brings what is in an inbox into `raw` and `quarantine`, as [`crate::ingest_source`] does with files: by the same steps
/// and books, each record once.
///
/// It differs in what it remembers. The books of all objects grow for ever; names that sort make it enough to know those that
/// are looked for again.
#[derive(Debug)]
pub struct InboxReader {
    inbox: Inbox,
    settings: IngestSettings,
    /// Absent before the first round and after one that failed: what they say may then be behind the tables.
    books: Option<Books>,
}

impl InboxReader {
    /// A reader that has not looked yet.
    pub fn new(inbox: Inbox, settings: IngestSettings) -> Self {
        Self { inbox, settings, books: None }
    }

    /// The source.
    pub fn source(&self) -> &str {
        self.inbox.source()
    }

    /// Stores what is new. The first call, and the first after an error, look back.
    ///
    /// May be called again after an error, and dropped at any moment; several servers may do so at once.
    ///
    /// # Errors
    /// As [`crate::ingest_source`].
    pub async fn advance(&mut self, look: Look) -> Result<SourceReport> {
        let (pipeline, spec) = (self.inbox.pipeline.clone(), Arc::clone(&self.inbox.spec));
        told(&pipeline, &spec, self.round(look)).await
    }

    async fn round(&mut self, look: Look) -> Result<SourceReport> {
        let inbox = self.inbox.clone();
        let (books, look, refused) = match self.books.take() {
            Some(books) => (books, look, Vec::new()),
            None => {
                let books = Books::open_whole(&inbox.lake, &inbox.pipeline, &inbox.spec).await?;
                let refused = inbox.refused_before(&books).await?;
                (books, Look::Back, refused)
            }
        };
        let places = Places::new(&inbox.lake, &inbox.pipeline, Arc::clone(&inbox.spec), None);
        let mut source = Source::new(&inbox.lake, &inbox.pipeline, places, &self.settings, &NoProgress, books);
        source.finish_open_batches().await?;
        let mut found = inbox.discover(look, &source.ledger).await?;
        found.extend(refused);
        source.ingest_new(&found).await?;
        let (report, mut books) = source.into_report();
        let marks = Marks::of(&inbox, &books.ledger);
        books.ledger.forget_unless(|path| marks.need(&inbox, path));
        self.books = Some(books);
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_days_from_the_mark_on_are_listed() {
        let days = |after: Option<&str>| -> Vec<(String, Option<String>)> {
            ["2026-01-01", "2026-01-02", "2026-01-03"]
                .into_iter()
                .filter_map(|day| from_day(day_named(day).unwrap(), Path::from(day), "inbox/p/s/", after))
                .map(|(path, after)| (path.to_string(), after))
                .collect()
        };
        let mark = "inbox/p/s/2026-01-02/x.ndjson";
        assert_eq!(
            days(Some(mark)),
            [("2026-01-02".to_owned(), Some(mark.to_owned())), ("2026-01-03".to_owned(), None)]
        );
        assert_eq!(days(None).len(), 3);
        assert_eq!(days(Some("inbox/p/s/")).len(), 3, "a mark without a time");
        assert!(days(Some("inbox/p/s/2026-02-01/x.ndjson")).is_empty());
    }

    #[test]
    fn only_a_date_names_a_day() {
        assert!(Inbox::is_day("2026-01-31"));
        for name in ["feed", "put", "2026-1-31", "2026-02-30", "2026-01-31x"] {
            assert!(!Inbox::is_day(name), "{name}");
        }
    }
}
