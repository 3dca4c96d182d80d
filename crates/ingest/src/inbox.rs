use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use globset::GlobBuilder;
use holdfast_lake::{Lake, ObjectLocation};
use holdfast_types::NoProgress;
use object_store::path::Path;
use uuid::{NoContext, Timestamp, Uuid};

use crate::Result;
use crate::discover::{FoundFile, discover_after};
use crate::error::IngestError;
use crate::ingest::{Books, IngestSettings, Source, SourceReport, told};
use crate::spec::{Compression, FileFormat, SourceSpec};

const SUFFIX: &str = ".ndjson";

/// How far behind the newest stored object [`Look::Back`] looks: longer than writing an object takes, and than the clocks
/// of two servers differ.
const LOOK_BACK: Duration = Duration::from_secs(3_600);

/// Where records that were pushed wait for `raw`: newline-delimited JSON at
/// `<lake>/_holdfast/inbox/<pipeline>/<source>/<day>/<UUID v7>.ndjson`. An object is written once and never changed, so
/// that its name says when it was written and its content is that of its name.
#[derive(Debug, Clone)]
pub struct Inbox {
    lake: Lake,
    pipeline: String,
    spec: Arc<SourceSpec>,
    from: ObjectLocation,
    /// Relative to `from`, with a slash at its end.
    folder: String,
}

impl Inbox {
    /// The inbox of a source. Nothing is read or written.
    ///
    /// # Errors
    /// [`IngestError::Layout`] when the source's records are not NDJSON.
    pub fn new(lake: &Lake, pipeline: &str, spec: &SourceSpec) -> Result<Self> {
        if spec.format != FileFormat::Ndjson {
            return Err(IngestError::Layout {
                file: format!("source {}", spec.name),
                message:
                    "only a source with format = \"ndjson\" has an inbox: name another, or write a contract for it"
                        .to_owned(),
            });
        }
        let folder = format!("inbox/{pipeline}/{}/", spec.name);
        let path = format!("{folder}*/*{SUFFIX}");
        let glob = GlobBuilder::new(&path).literal_separator(true).build().map_err(IngestError::internal)?;
        let spec = SourceSpec {
            path,
            glob: glob.compile_matcher(),
            compression: Some(Compression::None),
            encoding: None,
            // Many senders share an object: what one of them gets wrong must not keep the others' records out.
            max_quarantine_share: 1.0,
            ..spec.clone()
        };
        let from = lake.system_folder();
        Ok(Self { lake: lake.clone(), pipeline: pipeline.to_owned(), spec: Arc::new(spec), from, folder })
    }

    /// The source.
    pub fn source(&self) -> &str {
        &self.spec.name
    }

    /// The lake's store, in which [`Inbox::folder`] and [`Inbox::object`] are.
    pub fn lake(&self) -> &Lake {
        &self.lake
    }

    /// The folder that has a folder for each day.
    pub fn folder(&self) -> Path {
        self.folder
            .split('/')
            .filter(|part| !part.is_empty())
            .fold(self.from.path.clone(), |path, part| path.join(part))
    }

    /// The object for records of `moment`, with a name that nobody else has.
    pub fn object(&self, moment: DateTime<Utc>) -> Path {
        let seconds = u64::try_from(moment.timestamp()).unwrap_or(0);
        let name = Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, moment.timestamp_subsec_nanos()));
        self.folder().join(day_of(moment)).join(format!("{name}{SUFFIX}"))
    }

    /// When the object of this name was written; `None` for what is no name of ours.
    pub fn moment_of(name: &str) -> Option<DateTime<Utc>> {
        let (seconds, nanos) = Uuid::parse_str(name.strip_suffix(SUFFIX)?).ok()?.get_timestamp()?.to_unix();
        DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
    }

    /// What all objects of `moment` and later come behind, relative to the ingested folder.
    fn before(&self, moment: DateTime<Utc>) -> String {
        let millis = u128::try_from(moment.timestamp_millis()).unwrap_or(0);
        format!("{}{}/{}", self.folder, day_of(moment), Uuid::from_u128(millis << 80))
    }
}

fn day_of(moment: DateTime<Utc>) -> String {
    moment.format("%Y-%m-%d").to_string()
}

/// Which objects are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Those with names behind the newest stored one. Finds all that one server wrote, since its names only grow.
    Ahead,
    /// Also those of the hour before, for objects of other servers, whose clocks differ.
    Back,
}

/// Brings what is in an inbox into `raw` and `quarantine`, as [`crate::ingest_source`] does with files: by the same steps
/// and books, each record once.
///
/// It differs in what it looks at. A list of all objects, and the books of all of them, grow for ever; names that sort by
/// time make it enough to list, and to remember, what is behind the newest stored one.
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
        let (books, look) = match self.books.take() {
            Some(books) => (books, look),
            None => (Books::open(&inbox.lake, &inbox.pipeline, &inbox.spec).await?, Look::Back),
        };
        let after = newest(&inbox, &books).map(|newest| match look {
            Look::Ahead => newest.clone(),
            Look::Back => look_back(&inbox, &newest),
        });
        let found: Vec<FoundFile> = discover_after(&inbox.from, &inbox.spec, &inbox.folder(), after.as_deref()).await?;
        let mut source = Source::new(
            &inbox.lake,
            &inbox.pipeline,
            Arc::clone(&inbox.spec),
            &inbox.from,
            &self.settings,
            &NoProgress,
            books,
        );
        source.take_in(&found).await?;
        let (report, mut books) = source.into_report();
        if let Some(newest) = newest(&inbox, &books) {
            books.ledger.forget_before(&inbox.folder, &look_back(&inbox, &newest));
        }
        self.books = Some(books);
        Ok(report)
    }
}

/// The newest object that is stored, relative to the ingested folder.
fn newest(inbox: &Inbox, books: &Books) -> Option<String> {
    books.ledger.last_path_below(&inbox.folder).map(str::to_owned)
}

/// Where looking back from an object begins. A name that is not ours has no time: all is looked at.
fn look_back(inbox: &Inbox, newest: &str) -> String {
    let moment = newest.rsplit('/').next().and_then(Inbox::moment_of);
    moment.map_or_else(|| inbox.folder.clone(), |moment| inbox.before(moment - LOOK_BACK))
}
