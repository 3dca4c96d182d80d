use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use holdfast_lake::{Lake, ObjectLocation};
use holdfast_types::Progress;

use crate::Result;
use crate::books::Books;
use crate::discover::{FoundFile, discover, discover_after};
use crate::error::IngestError;
use crate::inbox::{Inbox, Look};
use crate::ingest::{Source, check_places, told};
use crate::origin::{FileGlob, Origin};
use crate::places::Places;
use crate::report::SourceReport;
use crate::settings::IngestSettings;
use crate::spec::{Discovery, SourceSpec};

/// Brings what is new of a source into `raw` and `quarantine` again and again, as [`crate::ingest_source`] does once.
///
/// Between two calls it keeps what it knows of the files that are there, so that they are not looked up again. Of a source whose names grow it does not even list
/// them again, but those behind the newest and the window before it; and all of them now and then.
#[derive(Debug)]
pub struct SourceReader {
    lake: Lake,
    pipeline: String,
    spec: Arc<SourceSpec>,
    from: ObjectLocation,
    /// Absent before the first round and after one that failed: what they say may then be behind the tables.
    books: Option<Books>,
    listed: Listed,
}

/// What listing has shown of a source whose names grow.
#[derive(Debug, Default)]
struct Listed {
    all_at: Option<Instant>,
    /// The newest names, as many as the window holds.
    newest: BTreeSet<String>,
}

impl SourceReader {
    /// A reader that has not looked yet.
    pub fn new(lake: &Lake, pipeline: &str, spec: &SourceSpec, from: &ObjectLocation) -> Self {
        Self {
            lake: lake.clone(),
            pipeline: pipeline.to_owned(),
            spec: Arc::new(spec.clone()),
            from: from.clone(),
            books: None,
            listed: Listed::default(),
        }
    }

    /// Stores what is new. May be called again after an error, and dropped at any moment; several workers may do so at once.
    ///
    /// # Errors
    /// As [`crate::ingest_source`].
    pub async fn advance(&mut self, settings: &IngestSettings, progress: &dyn Progress) -> Result<SourceReport> {
        let (pipeline, spec) = (self.pipeline.clone(), Arc::clone(&self.spec));
        told(&pipeline, &spec, self.round(settings, progress)).await
    }

    async fn round(&mut self, settings: &IngestSettings, progress: &dyn Progress) -> Result<SourceReport> {
        let books = self.books.take();
        if books.is_none() {
            self.listed = Listed::default();
        }
        let listed = self.list(settings).await?;
        let places = Places::new(&self.lake, &self.pipeline, Arc::clone(&self.spec), Some(self.from.clone()));
        check_places(&places, &listed)?;
        let mut books = match books {
            Some(books) => books.go_on(&self.lake, &self.pipeline, &self.spec).await?,
            None => Books::open(&self.lake, &self.pipeline, &self.spec).await?,
        };
        let inbox = Inbox::new(&self.lake, &self.pipeline, &self.spec);
        // What is looked for in an inbox depends on all that was stored from it.
        if inbox.is_used().await? {
            books.learn_all(&self.lake).await?;
        }
        let mut found = listed.clone();
        found.extend(inbox.refused_before(&books).await?);
        let mut source = Source::new(&self.lake, &self.pipeline, places, settings, progress, books);
        source.finish_open_batches().await?;
        found.extend(inbox.discover(Look::Back, &source.ledger).await?);
        source.ingest_new(&found).await?;
        let (report, mut books) = source.into_report();
        books.ledger.forget_others(&listed);
        self.books = Some(books);
        Ok(report)
    }

    async fn list(&mut self, settings: &IngestSettings) -> Result<Vec<FoundFile>> {
        let Origin::Files(glob) = &self.spec.origin else { return Ok(Vec::new()) };
        let Discovery::Growing { look_back } = self.spec.discovery else { return self.list_all(glob).await };
        let is_due = self.listed.all_at.is_none_or(|listed| listed.elapsed() >= settings.list_all_every);
        let found = match self.listed.newest.first().filter(|_| !is_due) {
            Some(oldest) => discover_after(&self.from, glob, oldest).await?,
            None => {
                let found = self.list_all(glob).await?;
                self.listed.all_at = Some(Instant::now());
                found
            }
        };
        self.listed.newest.extend(found.iter().map(|file| file.path.clone()));
        while self.listed.newest.len() > look_back.max(1) {
            self.listed.newest.pop_first();
        }
        Ok(found)
    }

    async fn list_all(&self, glob: &FileGlob) -> Result<Vec<FoundFile>> {
        match discover(&self.from, &self.spec.name, glob).await {
            Err(IngestError::MissingFolder { .. }) => Ok(Vec::new()),
            found => found,
        }
    }
}
