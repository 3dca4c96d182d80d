//! Merges sorted files of a bucket into one.

use std::sync::Arc;

use arrow::array::RecordBatch;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::ObjectStore;
use object_store::path::Path;

use crate::history::{HistoryFile, HistorySchema};
use crate::open::OpenFile;
use crate::order::{Ordered, gather, sort};
use crate::write::{FileWriter, WriteSettings};
use crate::{FeatureError, Result};

/// How many rows of each file are in memory.
const READ_ROWS: usize = 8_192;

/// Merges files of one bucket, whose versions follow each other, into one file in `folder`. All rows are kept, in the order of history. Memory: a row group and a few
/// thousand rows a file, and the row group that is written. The files merged are left alone; whoever lists the new one stops listing them, and deletes them when no
/// reader has them any more. Merging the same files again writes the same rows to the same name.
///
/// # Errors
/// No file, files of several buckets, versions that overlap; a file that is not what it is listed as; what the store says.
pub async fn compact(
    store: &Arc<dyn ObjectStore>,
    folder: &Path,
    schema: &HistorySchema,
    files: &[HistoryFile],
    settings: &WriteSettings,
) -> Result<HistoryFile> {
    let refused = |reason: &str| FeatureError::Compaction { view: schema.view().to_owned(), reason: reason.to_owned() };
    let mut files = files.to_vec();
    files.sort_by_key(|file| *file.versions.start());
    let (Some(first), Some(last)) = (files.first(), files.last()) else {
        return Err(refused("there are no files to merge"));
    };
    if files.iter().any(|file| file.bucket != first.bucket) {
        return Err(refused("only files of one bucket can be merged"));
    }
    if files.windows(2).any(|pair| pair[1].versions.start() <= pair[0].versions.end()) {
        return Err(refused("two of the files to merge hold the same version"));
    }
    let versions = *first.versions.start()..=*last.versions.end();
    let mut output = FileWriter::create(store, folder, schema, first.bucket, versions, settings)?;
    let mut runs = Vec::with_capacity(files.len());
    for file in &files {
        let opened = OpenFile::open(store, schema, file).await?;
        runs.push(Run {
            schema: schema.clone(),
            batches: opened.read_all(store, schema, READ_ROWS)?,
            head: None,
            from: 0,
        });
    }
    loop {
        for run in &mut runs {
            run.fill().await?;
        }
        runs.retain(|run| run.head.is_some());
        let heads: Vec<&Ordered> = runs.iter().filter_map(|run| run.head.as_ref()).collect();
        if heads.is_empty() {
            break;
        }
        // What is not in memory yet comes no earlier than the last row of its file's head. Of the earliest of these rows, the one in the oldest file bounds what can be
        // written: rows that agree with it stay behind it when they are from newer files.
        let mut bound = 0;
        for at in 1..heads.len() {
            if heads[at].is_before(heads[at].rows() - 1, heads[bound], heads[bound].rows() - 1) {
                bound = at;
            }
        }
        let mut rows = Vec::new();
        let mut taken = Vec::with_capacity(heads.len());
        for (at, head) in heads.iter().enumerate() {
            let to = head.rows_before(runs[at].from, heads[bound], heads[bound].rows() - 1, at <= bound);
            rows.extend((runs[at].from..to).map(|row| (at, row)));
            taken.push(to);
        }
        sort(&heads, &mut rows);
        for rows in rows.chunks(READ_ROWS) {
            output.write(&gather(&heads, rows)?).await?;
        }
        for (run, to) in runs.iter_mut().zip(taken) {
            run.from = to;
        }
    }
    output.close().await
}

/// A file that is read from its beginning.
struct Run {
    schema: HistorySchema,
    batches: BoxStream<'static, Result<RecordBatch>>,
    head: Option<Ordered>,
    /// The first row of the head that was not written yet.
    from: usize,
}

impl Run {
    /// Makes sure that there is a row at hand, or that the file has ended.
    async fn fill(&mut self) -> Result<()> {
        while self.head.as_ref().is_none_or(|head| self.from == head.rows()) {
            self.from = 0;
            self.head = match self.batches.next().await {
                Some(batch) => Some(Ordered::new(&self.schema, batch?)?),
                None => None,
            };
            if self.head.is_none() {
                break;
            }
        }
        Ok(())
    }
}
