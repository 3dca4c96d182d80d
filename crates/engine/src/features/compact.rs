//! Merges the files of kept history: sorted files into one, all rows kept, for whoever maintains the lake.

use holdfast_features::{WriteSettings, compact};
use holdfast_lake::{Change, ChangeKind, CommitOutcome, Fence, Lake, LakeError, OWN_FILES, Position, Table};
use holdfast_types::TableName;
use serde_json::Map;

use super::history::{HISTORY_SCHEMA, files, history_of, staged, unique};
use crate::Result;

/// A bucket's files are merged once so many follow each other that are worth it.
const FILES_MIN: usize = 4;

/// Under which name merges leave the version they were decided on.
const APP_ID: &str = "compaction";

/// What merging a history came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HistoryMerged {
    /// The files that were merged into others.
    pub files: u64,
    /// What they became.
    pub into: u64,
    /// The rows in them.
    pub rows: u64,
    /// How often others were quicker.
    pub conflicts: u32,
}

/// Whether a table is the history of a view, whose files are merged here and nowhere else.
pub fn is_history(table: &Table) -> bool {
    table.name().schema() == HISTORY_SCHEMA && table.property(OWN_FILES).is_some()
}

/// Merges what is worth it of a history's files, or only counts it. Each row is rewritten a number of times that grows with the logarithm of the history, in bounded memory; point-in-time
/// reads answer the same before and after. May be repeated; when the process dies in between, files that no commit names are left to vacuum.
///
/// # Errors
/// What the lake answers; a file that is not what it is listed as.
pub async fn compact_history(
    lake: &Lake,
    name: &TableName,
    fence: Option<Fence>,
    only_count: bool,
) -> Result<HistoryMerged> {
    let table = lake.table(name).await?.ok_or_else(|| LakeError::NoTable(name.clone()))?;
    let (schema, history) = history_of(&table)?;
    let paths: Vec<(String, holdfast_features::HistoryFile)> = files(&table)?;
    let mut merged = HistoryMerged::default();
    let (mut removed, mut written) = (Vec::new(), Vec::new());
    let folder = table.prefix().clone().join(format!("merged-{}", unique()));
    for stretch in history.compactions(FILES_MIN) {
        merged.files += stretch.len() as u64;
        merged.into += 1;
        merged.rows += stretch.iter().map(|file| file.rows).sum::<u64>();
        if only_count {
            continue;
        }
        let file = compact(lake.store(), &folder, &schema, &stretch, &WriteSettings::default()).await?;
        written.push(staged(&table, &file)?);
        let is_merged = |file: &holdfast_features::HistoryFile| stretch.iter().any(|merged| merged.path == file.path);
        removed.extend(paths.iter().filter(|(_, file)| is_merged(file)).map(|(path, _)| path.clone()));
    }
    if written.is_empty() {
        return Ok(merged);
    }
    let change = Change {
        table: &table,
        position: Position { app_id: APP_ID.to_owned(), version: i64::try_from(table.version()).unwrap_or(i64::MAX) },
        fence,
        kind: ChangeKind::Rewrite { removed },
        files: written.clone(),
        schema: None,
        comment: None,
        metadata: Map::new(),
    };
    match lake.commit(change).await {
        Ok(CommitOutcome::Applied { .. } | CommitOutcome::AlreadyApplied { .. }) => Ok(merged),
        Ok(CommitOutcome::Conflicted { .. }) => {
            lake.discard(written, &table).await;
            Ok(HistoryMerged { conflicts: 1, ..HistoryMerged::default() })
        }
        Err(error) => {
            if matches!(error, LakeError::Superseded { .. } | LakeError::LeaseOver { .. }) {
                lake.discard(written, &table).await;
            }
            Err(error.into())
        }
    }
}
