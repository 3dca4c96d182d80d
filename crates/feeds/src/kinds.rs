use std::path::PathBuf;
use std::sync::Arc;

use holdfast_ingest::FeedSpec;
use holdfast_lake::StoreOptions;

use crate::feed::Feed;
use crate::{Result, delta, kafka, postgres};

/// Makes a feed of a kind from its section of the contract, which it checks. Nothing is connected to yet.
type Open = fn(&FeedSpec, &Surroundings) -> Result<Arc<dyn Feed>>;

/// The kinds of feed, by the name that contracts have for them.
const KINDS: &[(&str, Open)] = &[("delta", delta::open), ("kafka", kafka::open), ("postgres", postgres::open)];

/// Answers with the value of an environment variable.
pub type Variables = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What a feed may ask for that is not in its contract.
#[derive(Clone)]
pub struct Surroundings {
    /// Where credentials come from.
    pub variable: Variables,
    /// How object stores are opened.
    pub store_options: StoreOptions,
    /// What local paths in contracts are relative to.
    pub folder: PathBuf,
}

impl std::fmt::Debug for Surroundings {
    /// Without the options of stores, in which there may be keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// The feed that a contract describes. Nothing is connected to yet.
///
/// # Errors
/// [`crate::FeedError::Ingest`] with the place of the first mistake in the contract.
pub fn open_feed(spec: &FeedSpec, surroundings: &Surroundings) -> Result<Arc<dyn Feed>> {
    match KINDS.iter().find(|(name, _)| *name == spec.kind()) {
        Some((_, open)) => open(spec, surroundings),
        None => {
            let known: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
            let message = format!("there is no kind of feed `{}`; there are {}", spec.kind(), known.join(", "));
            Err(spec.error("kind", &message).into())
        }
    }
}
