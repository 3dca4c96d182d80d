use std::sync::Arc;

use async_trait::async_trait;
use datafusion::error::DataFusionError;
use holdfast_engine::{EarlierRuns, EngineError, LakeReader, Published, WhichRun};

use crate::{Access, AccessError, Principal};

/// Runs that were published before, as a principal sees them: by the policy that is in force now.
#[derive(Debug)]
pub struct SeenRuns {
    reader: Arc<LakeReader>,
    access: Arc<Access>,
    principal: Arc<Principal>,
}

impl SeenRuns {
    /// Those of the reader's lake.
    pub fn new(reader: Arc<LakeReader>, access: Arc<Access>, principal: Arc<Principal>) -> Self {
        Self { reader, access, principal }
    }
}

#[async_trait]
impl EarlierRuns for SeenRuns {
    async fn run(&self, which: &WhichRun) -> Result<Option<Arc<Published>>, EngineError> {
        let Some(run) = self.reader.published(which).await? else { return Ok(None) };
        self.access.knows(&self.reader.current());
        let seen = self.access.view(&self.principal, &run).map_err(|error| match error {
            AccessError::Engine(error) => error,
            other => EngineError::Execution {
                what: "applying the policy to an earlier run".to_owned(),
                source: Box::new(DataFusionError::External(Box::new(other))),
            },
        })?;
        Ok(Some(seen))
    }
}
