//! A run that has nothing to do finds it out from what the commits of the tables say of themselves: no query is planned and no table is loaded.
//!
//! ```text
//! newest published run ──► are its versions still the newest, and are there no other tables?    a LIST each
//!                     └──► what was each stage's made from, and is it what it would be made from now?    a GET each
//! ```
//!
//! Whatever is not certain is left to the long way, which looks at everything.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use holdfast_lake::{CommitHead, Lake, ManifestEntry};
use holdfast_types::TableName;

use crate::Result;
use crate::build::{NOTE_COMMITS_MAX, STAGE_NOTE, StageNote, salt};
use crate::run::{RunOptions, RunReport, Runner, StageOutcome, StageReport};

/// How many tables are looked at at once.
const LOOKS: usize = 32;

/// What the log of a table says, of the version that was published.
struct Looked {
    /// The version whose rows it has.
    data_version: u64,
    /// What a stage noted of itself.
    note: Option<StageNote>,
}

impl Runner {
    /// The report of a run for which there is nothing to do: every selected stage is as it would be made, readers see all of it, and no stage of the project has to be
    /// checked, because all that a check looks at is as it was when the stages were made. `None`: the long way has to look.
    ///
    /// # Errors
    /// What the lake answers, and a selection that names nothing.
    pub(crate) async fn nothing_new(&self, options: &RunOptions) -> Result<Option<RunReport>> {
        let selected = self.project.select(&options.selection)?;
        let (manifest, names) = tokio::try_join!(self.lake.latest_manifest(), self.lake.tables())?;
        let Some(manifest) = manifest else { return Ok(None) };
        self.remember(&manifest);
        if options.full || options.range.is_some() {
            return Ok(None);
        }
        let published: BTreeSet<&TableName> = manifest.tables.iter().map(|entry| &entry.name).collect();
        if published != names.iter().collect() {
            return Ok(None);
        }
        let Some(looked) = self.look(&manifest.tables).await? else { return Ok(None) };
        let contents = self.project.contents(&self.settings);
        let mut stages = Vec::with_capacity(selected.len());
        for stage in self.project.stages() {
            let Some(note) = looked.get(&stage.name).and_then(|looked| looked.note.as_ref()) else { return Ok(None) };
            let entry = manifest.tables.iter().find(|entry| entry.name == stage.name);
            let looked_at = entry.map(|entry| entry.looked_at.clone()).filter(|inputs| !inputs.is_empty());
            let note = StageNote { looked_at, ..note.clone() };
            let content = contents.get(&stage.name);
            if note.checked.as_ref() != content {
                return Ok(None);
            }
            if !selected.contains(&stage.name) {
                continue;
            }
            let held = |input: &TableName| looked.get(input).map(|looked| looked.data_version);
            let inputs = stage.inputs.keys().map(|input| (input.clone(), held(input))).collect();
            let now = StageNote::of(
                stage,
                &salt(&self.lake, &self.settings, stage),
                options.as_of,
                inputs,
                content.map_or("", String::as_str),
            );
            let (true, Some(version)) = (note.is_as(&now), entry.map(|entry| entry.version)) else { return Ok(None) };
            stages.push(StageReport {
                stage: stage.name.clone(),
                outcome: StageOutcome::Fresh { version },
                expectations: Vec::new(),
                seconds: 0.0,
                place: None,
            });
        }
        let is_orphan = |name: &&TableName| looked.get(name).is_some_and(|looked| looked.note.is_some());
        let orphans =
            looked.keys().filter(|name| self.project.may_be_orphan(name) && self.lake.owns(name)).filter(is_orphan);
        Ok(Some(RunReport {
            run_id: options.run_id.clone(),
            as_of: options.as_of,
            published: None,
            stages,
            orphans: orphans.cloned().collect(),
            seconds: 0.0,
        }))
    }

    /// What the logs say; `None` when a version is not the newest any more, or its commit is not in the log.
    async fn look(&self, tables: &[ManifestEntry]) -> Result<Option<BTreeMap<TableName, Looked>>> {
        let inputs: BTreeSet<&TableName> = self.project.stages().iter().flat_map(|stage| stage.inputs.keys()).collect();
        let mut entries: Vec<&ManifestEntry> = tables.iter().collect();
        // Where there is news it is in tables that no stage makes: seen there, nothing else has to be looked at.
        entries.sort_by_key(|entry| self.project.stage(&entry.name).is_some());
        let look = |entry: &ManifestEntry| {
            let is_made = self.project.stage(&entry.name).is_some() || self.project.may_be_orphan(&entry.name);
            (self.lake.clone(), entry.clone(), inputs.contains(&entry.name), is_made)
        };
        let looks: Vec<_> = entries.into_iter().map(look).collect();
        let mut looks = futures::stream::iter(looks)
            // On all cores: there are many tables, and reading small files is work.
            .map(|(lake, entry, is_read, is_made)| {
                tokio::spawn(async move { look_at(&lake, entry, is_read, is_made).await })
            })
            .buffered(LOOKS);
        let mut found = BTreeMap::new();
        while let Some(looked) = looks.next().await {
            // Only the end of the process takes a task away.
            let Ok(looked) = looked else { return Ok(None) };
            let Some((name, looked)) = looked? else { return Ok(None) };
            found.insert(name, looked);
        }
        Ok(Some(found))
    }
}

async fn look_at(
    lake: &Lake,
    ManifestEntry { name, version, .. }: ManifestEntry,
    is_read: bool,
    is_made: bool,
) -> Result<Option<(TableName, Looked)>> {
    if !lake.is_newest(&name, version).await? {
        return Ok(None);
    }
    let mut looked = Looked { data_version: version, note: None };
    if !is_read && !is_made {
        return Ok(Some((name, looked)));
    }
    let mut head: Option<CommitHead> = lake.commit_head(&name, version).await?;
    let Some(newest) = &head else { return Ok(None) };
    looked.data_version = newest.data_version();
    if is_made {
        // Merges of files may have come after the commit of the stage.
        for before in (version.saturating_sub(NOTE_COMMITS_MAX as u64)..version).rev() {
            let Some(commit) = &head else { break };
            if let Some(note) = commit.note(STAGE_NOTE) {
                looked.note = StageNote::read(note.clone());
                break;
            }
            head = lake.commit_head(&name, before).await?;
        }
    }
    Ok(Some((name, looked)))
}
