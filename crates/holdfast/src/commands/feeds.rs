//! The feeds of sources, for commands that ingest.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_feeds::{Feed, FeedSettings, follow_feed, open_feed, read_feed};
use holdfast_ingest::{Inbox, IngestSettings, Origin, SourceReport, SourceSpec, ingest_inbox};
use holdfast_lake::Lake;
use holdfast_types::Progress;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::error::CliError;
use crate::project::Project;

/// The feeds of some sources, by the source's name.
pub(crate) struct Feeds(BTreeMap<String, Arc<dyn Feed>>);

impl Feeds {
    /// Checks the contracts of the sources that are feeds. Nothing is connected to yet.
    pub(crate) fn open(project: &Project, sources: &[SourceSpec]) -> Result<Self, CliError> {
        let surroundings = project.surroundings();
        let mut feeds = BTreeMap::new();
        for source in sources {
            if let Origin::Feed(spec) = &source.origin {
                feeds.insert(source.name.clone(), open_feed(spec, &surroundings)?);
            }
        }
        Ok(Self(feeds))
    }

    /// No feeds, for what reads files alone.
    pub(crate) const fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// Brings all that a source's feed has now to raw, and what else is in its inbox.
    pub(crate) async fn read(
        &self,
        source: &SourceSpec,
        (lake, pipeline): (&Lake, &str),
        settings: &IngestSettings,
        progress: &dyn Progress,
    ) -> Result<SourceReport, CliError> {
        let mut report = ingest_inbox(lake, pipeline, source, settings, progress).await?;
        let Some(feed) = self.0.get(&source.name) else { return Ok(report) };
        let inbox = Inbox::new(lake, pipeline, source);
        loop {
            let read = Box::pin(read_feed(feed, &inbox, &FeedSettings::default())).await?;
            if read.records > 0 {
                report.merge(ingest_inbox(lake, pipeline, source, settings, progress).await?);
            }
            if read.caught_up {
                return Ok(report);
            }
        }
    }

    /// Reads all feeds, and brings what they give to raw, until told to stop.
    pub(crate) fn follow(
        &self,
        sources: &[SourceSpec],
        (lake, pipeline): (&Lake, &str),
        settings: &IngestSettings,
    ) -> Following {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let owner = format!("process {}", std::process::id());
        for source in sources {
            let Some(feed) = self.0.get(&source.name).map(Arc::clone) else { continue };
            let inbox = Inbox::new(lake, pipeline, source);
            let (settings, owner, stop) = ((FeedSettings::default(), settings.clone()), owner.clone(), stop.clone());
            let following = async move { Box::pin(follow_feed(feed, inbox, settings, &owner, stop)).await };
            tasks.spawn(following.in_current_span());
        }
        Following { tasks, stop }
    }
}

/// Feeds that are being read. They end with this.
pub(crate) struct Following {
    tasks: JoinSet<holdfast_feeds::Result<()>>,
    stop: CancellationToken,
}

impl Following {
    /// What ended one of them. Does not complete as long as all go well.
    pub(crate) async fn failed(&mut self) -> CliError {
        loop {
            match self.tasks.join_next().await {
                None => std::future::pending().await,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error.into(),
                Some(Err(error)) => return CliError::Argument(format!("a feed ended by itself: {error}")),
            }
        }
    }

    /// Lets them finish what they are at.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
