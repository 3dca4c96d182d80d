//! Tables of `metric` that commands about features add rows to.

use arrow::array::RecordBatch;
use holdfast_lake::{Change, ChangeKind, CommitOutcome, Lake, Position, TableSpec, TableWriter, WriterSettings};
use holdfast_types::TableName;

use crate::error::CliError;
use crate::models::registry::publish;

/// Adds rows to a table of `metric`, which is made where there is none, and lets readers see them beside the run that they have.
///
/// # Errors
/// Somebody else adds to it at the same time; what the lake answers.
pub(super) async fn append(lake: &Lake, table: &str, comment: &str, rows: &RecordBatch) -> Result<(), CliError> {
    let name = TableName::new("metric", table).map_err(|error| CliError::Lake(error.into()))?;
    let spec =
        TableSpec { name: name.clone(), schema: rows.schema(), partition_by: Vec::new(), comment: comment.to_owned() };
    let found = lake.ensure_table(&spec).await?;
    let mut writer = TableWriter::new(&found, WriterSettings::default());
    writer.write(rows).await?;
    let files = writer.close().await?;
    let position = found.position(table).await?.unwrap_or(0) + 1;
    let staged = files.clone();
    let outcome = lake
        .commit(Change {
            table: &found,
            position: Position { app_id: table.to_owned(), version: position },
            fence: None,
            kind: ChangeKind::Append,
            files,
            schema: None,
            comment: None,
            metadata: std::iter::empty().collect(),
        })
        .await?;
    if !matches!(outcome, CommitOutcome::Applied { .. }) {
        lake.discard(staged, &found).await;
        return Err(CliError::Moved(format!("{name} was written by another command at the same time: try again")));
    }
    publish(lake, &[name]).await?;
    Ok(())
}
