//! What was tried in an environment, for those who take it over into production.

use holdfast_lake::Lake;
use holdfast_types::TableName;
use serde::Serialize;

use crate::Result;
use crate::build::{NOTE_COMMITS_MAX, STAGE_NOTE, StageNote};
use crate::run::Runner;

/// The stages that the newest run of an environment has tables of its own of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// Those that are in the project as they were tried, inputs first.
    pub stages: Vec<TableName>,
    /// Those that are in the project, but not as they were tried: their files, or what these rest on, have changed since.
    pub changed: Vec<TableName>,
    /// Those whose files are gone.
    pub gone: Vec<TableName>,
}

impl Runner {
    /// Compares the stages of the project with those that were tried in an environment. Reads logs, no data.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn tried(&self, environment: &Lake) -> Result<Tried> {
        let contents = self.project.contents(&self.settings);
        let run = environment.latest_manifest().await?;
        let own = run.into_iter().flat_map(|run| run.tables).filter(|entry| !entry.is_of_production);
        let own: Vec<TableName> = own.map(|entry| entry.name).collect();
        let mut tried = Tried { stages: Vec::new(), changed: Vec::new(), gone: Vec::new() };
        for stage in self.project.stages().iter().filter(|stage| own.contains(&stage.name)) {
            let Some(table) = environment.table(&stage.name).await? else { continue };
            let note = table.commit_note(STAGE_NOTE, NOTE_COMMITS_MAX).await?.and_then(StageNote::read);
            let content = note.and_then(|note| note.checked);
            match content.is_some() && content.as_ref() == contents.get(&stage.name) {
                true => tried.stages.push(stage.name.clone()),
                false => tried.changed.push(stage.name.clone()),
            }
        }
        let is_gone = |name: &TableName| self.project.may_be_orphan(name);
        tried.gone = own.into_iter().filter(is_gone).collect();
        Ok(tried)
    }
}
