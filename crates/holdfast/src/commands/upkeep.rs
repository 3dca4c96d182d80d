//! Maintenance beside a watching ingestion and behind one that ends: tables that became untidy are maintained, one after the other, under the leases that
//! `holdfast maintain` takes. A watching one also deletes old objects of inboxes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_engine::{compact_history, is_history};
use holdfast_ingest::SourceSpec;
use holdfast_lake::{Lake, MaintainSettings, Merge};
use holdfast_types::{ErrorKind, Progress, TableName};

use super::maintain::{kept_versions, line, maintain, record, sweep_inboxes};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::{MaintenanceSection, Project};

/// How long a table stays reserved when this process dies.
const LEASE: Duration = Duration::from_secs(60);

/// How often inboxes are looked through. They hold days.
const SWEEP_EVERY: Duration = Duration::from_secs(60 * 60);

pub(crate) struct Upkeep {
    lake: Lake,
    pipeline: String,
    sources: Vec<SourceSpec>,
    settings: MaintainSettings,
    when: MaintenanceSection,
    terminal: Arc<Terminal>,
    /// The version at which a table was maintained, or seen first.
    since: BTreeMap<TableName, u64>,
    swept: Option<Instant>,
}

impl Upkeep {
    pub(crate) fn new(project: &Project, lake: &Lake, sources: &[SourceSpec], terminal: &Arc<Terminal>) -> Self {
        // Half of the memory: ingestion and stages go on beside it.
        let settings = project.maintain_settings();
        let settings = MaintainSettings { memory_bytes: settings.memory_bytes / 2, ..settings };
        Self {
            lake: lake.clone(),
            pipeline: project.pipeline.clone(),
            sources: sources.to_vec(),
            settings,
            when: project.maintenance().clone(),
            terminal: Arc::clone(terminal),
            since: BTreeMap::new(),
            swept: None,
        }
    }

    /// Looks at the tables again and again; never ends by itself. May be dropped at any moment: tables stay whole.
    pub(crate) async fn go_on(mut self) {
        loop {
            tokio::time::sleep(self.when.check_every()).await;
            if let Err(error) = self.pass().await {
                let kind = error.kind();
                tracing::warn!(kind = kind.as_str(), %error, "maintenance failed and is tried again");
                if !matches!(kind, ErrorKind::Retry | ErrorKind::Conflict) {
                    self.terminal.problem(&format!("   Failed maintenance: {error}"));
                }
            }
        }
    }

    async fn pass(&mut self) -> Result<(), CliError> {
        let tables = self.lake.tables().await?;
        self.tidy(tables).await?;
        if self.swept.is_none_or(|swept| swept.elapsed() >= SWEEP_EVERY) {
            sweep_inboxes(&self.lake, &self.pipeline, &self.sources, &self.settings, &self.terminal).await?;
            self.swept = Some(Instant::now());
        }
        Ok(())
    }

    /// Maintains those of the tables that became untidy.
    pub(crate) async fn tidy(&mut self, tables: Vec<TableName>) -> Result<(), CliError> {
        let mut due = Vec::new();
        for name in tables {
            if self.is_due(&name).await? {
                due.push(name);
            }
        }
        self.maintain(due).await
    }

    async fn maintain(&mut self, due: Vec<TableName>) -> Result<(), CliError> {
        if due.is_empty() {
            return Ok(());
        }
        let kept = kept_versions(&self.lake, &self.settings).await?;
        for name in due {
            let began = Instant::now();
            if let Some(done) = maintain(&self.lake, &name, &self.settings, &kept, LEASE).await? {
                let seconds = began.elapsed().as_secs_f64();
                record(&done, seconds);
                if let Some(line) = line(&done, false, seconds) {
                    self.terminal.note(&line);
                }
            }
            // Also when somebody else is at it.
            if let Some(table) = self.lake.table(&name).await? {
                self.since.insert(name, table.version());
            }
        }
        Ok(())
    }

    async fn is_due(&mut self, name: &TableName) -> Result<bool, CliError> {
        let Some(table) = self.lake.table(name).await? else { return Ok(false) };
        let since = *self.since.entry(name.clone()).or_insert(table.version());
        if table.version().saturating_sub(since) >= self.when.commits_min.max(1) {
            return Ok(true);
        }
        if is_history(&table) {
            return Ok(compact_history(&self.lake, name, None, true).await?.files > 0);
        }
        let small: usize = table.merges(self.settings.target_bytes).iter().map(Merge::file_count).sum();
        Ok(small >= self.when.small_files_min.max(2))
    }
}
