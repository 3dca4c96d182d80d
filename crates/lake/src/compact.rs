use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use deltalake_core::kernel::Add;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use holdfast_types::Promise;
use serde_json::Map;

use crate::Result;
use crate::commit::{Change, ChangeKind, CommitOutcome, Position};
use crate::error::LakeError;
use crate::lake::Lake;
use crate::lease::Fence;
use crate::order::{ASCENDING, sort_columns};
use crate::provider::LakeTableProvider;
use crate::statistics::record_count;
use crate::table::{OWN_FILES, StagedFile, Table};
use crate::writer::{TableWriter, WriterSettings};

/// How many sorted files are open at the same time.
const SORTED_FILES_MAX: usize = 64;

/// Under which name rewrites leave the version they were decided on.
const REWRITER: &str = "compaction";

/// Small files of one partition that become one.
#[derive(Debug, Clone)]
pub struct Merge {
    files: Vec<Add>,
}

impl Merge {
    /// How many files it takes.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// What they hold together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(size).sum()
    }
}

/// Files that say the same as others, better: to be put in their place by [`Lake::commit_rewrite`].
#[derive(Debug)]
pub struct Rewrite {
    removed: Vec<String>,
    files: Vec<StagedFile>,
    /// The rows in them.
    pub rows: u64,
    /// Merges whose files were not sorted, though their table's are to be.
    pub merges_sorted: u64,
}

impl Rewrite {
    /// What it wrote.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The files it wrote.
    pub fn into_files(self) -> Vec<StagedFile> {
        self.files
    }
}

impl Table {
    /// Which of its files should be one: those below half of `target_bytes`, as many at a time as make about that, in the order in which they came. Empty
    /// when nothing is to be gained, and for tables of [`OWN_FILES`].
    pub fn merges(&self, target_bytes: u64) -> Vec<Merge> {
        if self.property(OWN_FILES).is_some() {
            return Vec::new();
        }
        let mut partitions: BTreeMap<Vec<(String, Option<String>)>, Vec<Add>> = BTreeMap::new();
        for add in self.files() {
            if size(&add) < target_bytes / 2 && add.deletion_vector.is_none() {
                let mut partition: Vec<_> = add.partition_values.clone().into_iter().collect();
                partition.sort();
                partitions.entry(partition).or_default().push(add);
            }
        }
        let is_sorted = !sort_columns(self.schema(), self.partition_columns()).is_empty();
        let files_max = if is_sorted { SORTED_FILES_MAX } else { usize::MAX };
        partitions.into_values().flat_map(|files| packed(files, target_bytes, files_max)).collect()
    }
}

/// Packs files in the order in which they came. What is closed because the next file did not fit is above half of the target, so that it stays as it is
/// from then on.
fn packed(mut files: Vec<Add>, target_bytes: u64, files_max: usize) -> Vec<Merge> {
    // Names of our files begin with the moment they were begun at.
    files.sort_by(|left, right| (left.modification_time, &left.path).cmp(&(right.modification_time, &right.path)));
    let mut merges = Vec::new();
    let (mut open, mut bytes) = (Vec::new(), 0);
    for file in files {
        if !open.is_empty() && (bytes + size(&file) > target_bytes || open.len() >= files_max) {
            merges.push(Merge { files: std::mem::take(&mut open) });
            bytes = 0;
        }
        bytes += size(&file);
        open.push(file);
    }
    merges.push(Merge { files: open });
    merges.retain(|merge| merge.files.len() > 1);
    merges
}

fn size(add: &Add) -> u64 {
    u64::try_from(add.size).unwrap_or(0)
}

impl Lake {
    /// Writes the merged files and leaves them staged. Rows of customer-keyed tables come out sorted, which is checked as they are written; rows of others
    /// keep the order in which their files came. Holds a few batches a file in memory, never a table; where files turn out not to be sorted, up to
    /// `memory_bytes`, and the rest on the local disk.
    ///
    /// # Errors
    /// [`LakeError::Merge`] when a file cannot be read, what the store answers, a broken promise when rows are missing or too many. Staged files are
    /// deleted then, unless the process dies.
    pub async fn stage_rewrite(&self, table: &Table, merges: &[Merge], memory_bytes: usize) -> Result<Rewrite> {
        let context = self.task_context(memory_bytes).map_err(LakeError::merge(table.name()))?;
        let mut rewrite = Rewrite { removed: Vec::new(), files: Vec::new(), rows: 0, merges_sorted: 0 };
        for merge in merges {
            match self.stage_merge(table, merge, &context).await {
                Ok((files, was_sorted)) => {
                    rewrite.merges_sorted += u64::from(!was_sorted);
                    rewrite.rows += files.iter().map(|file| file.rows).sum::<u64>();
                    rewrite.removed.extend(merge.files.iter().map(|add| add.path.clone()));
                    rewrite.files.extend(files);
                }
                Err(error) => {
                    self.discard(rewrite.files, table).await;
                    return Err(error);
                }
            }
        }
        Ok(rewrite)
    }

    /// Puts staged files in the place of those they were made from. `Conflicted` when one of those is gone: somebody replaced the rows, or merged them, too. The
    /// table is then as it was, and the staged files are deleted.
    ///
    /// # Errors
    /// Those of [`Lake::commit`].
    pub async fn commit_rewrite(&self, table: &Table, rewrite: Rewrite, fence: Option<Fence>) -> Result<CommitOutcome> {
        let files = rewrite.files.clone();
        let change = Change {
            table,
            position: Position {
                app_id: REWRITER.to_owned(),
                version: i64::try_from(table.version()).unwrap_or(i64::MAX),
            },
            fence,
            kind: ChangeKind::Rewrite { removed: rewrite.removed },
            files: rewrite.files,
            schema: None,
            comment: None,
            metadata: Map::new(),
        };
        let outcome = self.commit(change).await;
        let is_refused = matches!(outcome, Err(LakeError::Superseded { .. } | LakeError::LeaseOver { .. }));
        if is_refused || matches!(outcome, Ok(CommitOutcome::Conflicted { .. })) {
            self.discard(files, table).await;
        }
        outcome
    }

    /// The merged files, and whether those they were made from were in order.
    async fn stage_merge(
        &self,
        table: &Table,
        merge: &Merge,
        context: &Arc<TaskContext>,
    ) -> Result<(Vec<StagedFile>, bool)> {
        let failed = || LakeError::merge(table.name());
        let scan = LakeTableProvider::new(table.clone(), Arc::clone(table.schema()), merge.files.clone())
            .scan_each_file()
            .map_err(failed())?;
        let columns = sort_columns(table.schema(), table.partition_columns());
        let order = LexOrdering::new(columns.iter().map(|column| {
            PhysicalSortExpr::new(Arc::new(Column::new(table.schema().field(*column).name(), *column)), ASCENDING)
        }));
        let Some(order) = order else {
            let (files, _) = write(table, one_after_another(scan, context)).await?;
            return Ok((self.checked(table, merge, files).await?, true));
        };
        // The merge of sorted files is sorted, and only theirs: what comes out tells whether they were.
        let merged = SortPreservingMergeExec::new(order.clone(), Arc::clone(&scan));
        let rows = merged.execute(0, Arc::clone(context)).map_err(failed())?.boxed();
        let (files, was_sorted) = write(table, rows).await?;
        if was_sorted {
            return Ok((self.checked(table, merge, files).await?, true));
        }
        self.discard(files, table).await;
        tracing::debug!(table = %table.name(), files = merge.files.len(), "files are not sorted: sorting them");
        let sorted = SortExec::new(order, Arc::new(CoalescePartitionsExec::new(scan)));
        let rows = sorted.execute(0, Arc::clone(context)).map_err(failed())?.boxed();
        let (files, _) = write(table, rows).await?;
        Ok((self.checked(table, merge, files).await?, false))
    }

    /// The files, if they hold as many rows as those they were made from; else they are deleted.
    async fn checked(&self, table: &Table, merge: &Merge, files: Vec<StagedFile>) -> Result<Vec<StagedFile>> {
        let before: Option<u64> = merge.files.iter().map(|add| record_count(add.stats.as_deref())).sum();
        let after: u64 = files.iter().map(|file| file.rows).sum();
        let held = Promise::Ing2.check(before.is_none_or(|before| before == after), || {
            format!("{} files of {} with {before:?} rows were merged to {after} rows", merge.files.len(), table.name())
        });
        if let Err(broken) = held {
            self.discard(files, table).await;
            return Err(broken.into());
        }
        Ok(files)
    }

    pub(crate) fn task_context(&self, memory_bytes: usize) -> Result<Arc<TaskContext>, DataFusionError> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(memory_bytes)))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::OsTmpDirectory))
            .build_arc()?;
        runtime.register_object_store(self.store_url().as_ref(), Arc::clone(self.store()));
        Ok(Arc::new(TaskContext::default().with_runtime(runtime)))
    }
}

/// The rows of the first file, then those of the second, and so on; one is open at a time.
fn one_after_another(
    scan: Arc<dyn ExecutionPlan>,
    context: &Arc<TaskContext>,
) -> BoxStream<'static, Result<RecordBatch, DataFusionError>> {
    let context = Arc::clone(context);
    let files = 0..scan.output_partitioning().partition_count();
    futures::stream::iter(files.map(move |file| scan.execute(file, Arc::clone(&context)))).try_flatten().boxed()
}

/// Writes the rows. Ends, with `false`, at one that breaks the order that the table's files are to have.
async fn write(
    table: &Table,
    mut rows: BoxStream<'static, Result<RecordBatch, DataFusionError>>,
) -> Result<(Vec<StagedFile>, bool)> {
    // Merges are planned to be of the right size: what they give is one file.
    let settings = WriterSettings { file_bytes_max: usize::MAX, ..WriterSettings::default() };
    let mut writer = TableWriter::new(table, settings);
    while let Some(batch) = rows.next().await {
        writer.write(&batch.map_err(LakeError::merge(table.name()))?).await?;
        if !writer.is_in_order() {
            return Ok((writer.close().await?, false));
        }
    }
    Ok((writer.close().await?, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, size: i64) -> Add {
        crate::changes::file_of(name.to_owned(), size, std::collections::HashMap::new())
    }

    #[test]
    fn files_are_packed_in_the_order_in_which_they_came_and_at_most_one_is_left_over() {
        for target in [50_u64, 100, 137, 1_000, 1_000_000] {
            let mut small: Vec<Add> = (0..97_i64)
                .map(|index| file(&format!("part-{index:03}"), 1 + index * 7919 % 24))
                .filter(|add| size(add) < target / 2)
                .collect();
            let names: Vec<String> = small.iter().map(|add| add.path.clone()).collect();
            small.reverse();
            let merges = packed(small.clone(), target, usize::MAX);
            let packed_names: Vec<String> =
                merges.iter().flat_map(|merge| merge.files.iter().map(|add| add.path.clone())).collect();
            assert!(names.len() - packed_names.len() <= 1);
            assert_eq!(packed_names, names[..packed_names.len()]);
            assert!(merges.iter().all(|merge| merge.bytes() <= target));
            // All but the last are done with.
            assert!(merges.iter().rev().skip(1).all(|merge| merge.bytes() > target / 2));
        }
    }

    #[test]
    fn never_more_files_at_once_than_may_be_open() {
        let merges = packed((0..200).map(|index| file(&format!("{index:03}"), 1)).collect(), 1_000_000, 64);
        assert_eq!(merges.iter().map(Merge::file_count).collect::<Vec<_>>(), [64, 64, 64, 8]);
    }
}
