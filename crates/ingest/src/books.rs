use holdfast_lake::{Lake, LakeError, Table, TableSpec};
use holdfast_types::TableName;

use crate::Result;
use crate::ledger::{Ledger, batches_table, files_table};
use crate::quality::Memory;
use crate::quarantine::quarantine_table;
use crate::refused::RefusedFiles;
use crate::spec::SourceSpec;

/// The tables of a source, and what they say of its files.
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) tables: Tables,
    pub(crate) ledger: Ledger,
    pub(crate) refused: RefusedFiles,
    /// Read when it is needed first.
    pub(crate) memory: Option<Memory>,
}

impl Books {
    /// Reads them, making tables that are missing.
    pub(crate) async fn open(lake: &Lake, pipeline: &str, spec: &SourceSpec) -> Result<Self> {
        let (tables, refused) =
            futures::try_join!(Box::pin(Tables::ensure(lake, spec)), RefusedFiles::load(lake, pipeline, &spec.name))?;
        let ledger = Ledger::open(lake, &tables.files, &tables.batches, pipeline, &spec.name).await?;
        Ok(Self { tables, ledger, refused, memory: None })
    }

    /// The books as they are now: what was known of files stays.
    pub(crate) async fn go_on(self, lake: &Lake, pipeline: &str, spec: &SourceSpec) -> Result<Self> {
        let Self { mut ledger, memory, .. } = self;
        let (tables, refused) =
            futures::try_join!(Box::pin(Tables::ensure(lake, spec)), RefusedFiles::load(lake, pipeline, &spec.name))?;
        let known = ledger.next_batch();
        ledger.go_on(lake, &tables.files, &tables.batches).await?;
        // What others stored meanwhile is not in it.
        let memory = memory.filter(|_| ledger.next_batch() == known);
        Ok(Self { tables, ledger, refused, memory })
    }

    /// As [`Books::open`], and all that was ever stored.
    pub(crate) async fn open_whole(lake: &Lake, pipeline: &str, spec: &SourceSpec) -> Result<Self> {
        let mut books = Self::open(lake, pipeline, spec).await?;
        books.learn_all(lake).await?;
        Ok(books)
    }

    /// Reads all that was ever stored, unless it is known.
    pub(crate) async fn learn_all(&mut self, lake: &Lake) -> Result<()> {
        if self.ledger.is_complete() {
            return Ok(());
        }
        self.ledger.learn_all(lake, &self.tables.files, &self.tables.batches).await
    }
}

#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) raw: Table,
    pub(crate) quarantine: Table,
    pub(crate) files: Table,
    pub(crate) batches: Table,
}

impl Tables {
    async fn ensure(lake: &Lake, spec: &SourceSpec) -> Result<Self> {
        let raw = raw_table(spec)?;
        let raw = match lake.ensure_table(&raw).await {
            Err(error @ LakeError::Schema { .. }) => {
                if let Some(raw) = lake.table(&raw.name).await? {
                    spec.check_types(raw.schema())?;
                }
                return Err(error.into());
            }
            ended => ended?,
        };
        let (quarantine, files, batches) = (quarantine_table(spec)?, files_table()?, batches_table()?);
        let (quarantine, files, batches) = futures::try_join!(
            Box::pin(lake.ensure_table(&quarantine)),
            Box::pin(lake.ensure_table(&files)),
            Box::pin(lake.ensure_table(&batches)),
        )?;
        Ok(Self { raw, quarantine, files, batches })
    }
}

/// `raw.<source>`.
pub(crate) fn raw_table(spec: &SourceSpec) -> Result<TableSpec> {
    Ok(TableSpec {
        name: TableName::new("raw", &spec.name)?,
        schema: spec.raw_schema(),
        partition_by: Vec::new(),
        comment: spec.description.clone().unwrap_or_else(|| format!("What arrived from {} ({})", spec.name, spec.kind)),
    })
}
