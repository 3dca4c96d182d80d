//! One view against one bucket of the spine: reads the bucket's files side by side with it.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray, UInt32Array, new_null_array};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::{concat, take};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use futures::StreamExt;
use holdfast_types::Promise;
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::sync::OnceCell;

use crate::history::{DELETED, EVENT_TIMESTAMP, HistoryFile, KNOWN_AT, VERSION};
use crate::keys::Keys;
use crate::merge::{Best, HistoryRows, Merge, NO_PICK, renumber};
use crate::open::{OpenFile, column};
use crate::request::CheckedView;
use crate::spine::{Layout, SpineBucket};
use crate::status::Status;
use crate::{FeatureError, Result};

/// Rows of history that are looked at together: their columns stay in a core's cache.
const READ_ROWS: usize = 16_384;

/// A view that is being asked. Footers are read once, however many parts the spine has.
#[derive(Debug)]
pub(crate) struct Lookup {
    store: Arc<dyn ObjectStore>,
    pub(crate) view: CheckedView,
    opened: HashMap<Path, OnceCell<OpenFile>>,
    event_timestamps: bool,
}

/// What a view has for the places of one bucket.
#[derive(Debug)]
pub(crate) struct Found {
    /// One array a feature; null where nothing counts.
    pub(crate) values: Vec<ArrayRef>,
    /// [`Status`] codes.
    pub(crate) status: Vec<i8>,
    /// When the row that counts happened.
    pub(crate) events: Option<ArrayRef>,
}

impl Found {
    /// About how much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.values.iter().chain(&self.events).map(|array| array.get_array_memory_size()).sum::<usize>()
            + self.status.len()
    }
}

impl Lookup {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, view: CheckedView, event_timestamps: bool) -> Self {
        let opened = view.history.all_files().map(|file| (file.path.clone(), OnceCell::new())).collect();
        Self { store, view, opened, event_timestamps }
    }

    pub(crate) fn event_timestamps(&self) -> bool {
        self.event_timestamps
    }

    /// What the view has for each place of a bucket. Cancelled when dropped; reads only.
    pub(crate) async fn bucket(&self, layout: &Layout, bucket: usize) -> Result<Found> {
        let spine = layout.bucket(bucket);
        let mut gathered = Gathered::new(self.view.features.len(), spine.moments.len());
        let mut best = Best::new(spine.moments.len());
        let rules = self.view.rules;
        let mut files = Vec::new();
        for file in self.view.history.files(u32::try_from(bucket).unwrap_or(u32::MAX)) {
            if rules.as_of_version.is_none_or(|version| *file.versions.start() <= version) {
                files.push(self.open(file).await?);
            }
        }
        for file in &files {
            // With one file its order tells ties apart, and what was known before all moments was known at each.
            let is_known = file.known_last().is_some_and(|known| known <= spine.earliest);
            let needs_known = files.len() > 1 || (rules.known_only && !is_known);
            self.file(file, needs_known, spine, &mut best, &mut gathered).await?;
        }
        let early = best.first_ahead_of_time(spine, &rules);
        Promise::Pit1.check(early.is_none(), || {
            format!("view {}, bucket {bucket}, place {early:?} has a row from its future", self.view.schema.view())
        })?;
        self.finish(&best, gathered)
    }

    async fn open(&self, file: &HistoryFile) -> Result<&OpenFile> {
        match self.opened.get(&file.path) {
            Some(cell) => cell.get_or_try_init(|| OpenFile::open(&self.store, &self.view.schema, file)).await,
            // All files of the history have a cell.
            None => Err(FeatureError::File { file: file.path.to_string(), reason: "is not listed".to_owned() }),
        }
    }

    async fn file(
        &self,
        file: &OpenFile,
        needs_known: bool,
        spine: &SpineBucket,
        best: &mut Best,
        gathered: &mut Gathered,
    ) -> Result<()> {
        let rules = self.view.rules;
        let Some(plan) = file.plan(&self.view.schema, spine, &rules) else { return Ok(()) };
        let needs_version = rules.as_of_version.is_some_and(|version| version < file.versions_end());
        let needs_deleted = file.may_have_deletions();
        let is_feature = |name: &str| self.view.features.iter().any(|feature| feature.name() == name);
        let is_key = |name: &str| self.view.schema.keys().iter().any(|key| key.name() == name);
        let wanted = |name: &str| match name {
            EVENT_TIMESTAMP => true,
            KNOWN_AT => needs_known,
            VERSION => needs_version,
            DELETED => needs_deleted,
            name => is_key(name) || is_feature(name),
        };
        let mut batches = file.read(&self.store, plan, wanted, READ_ROWS)?;
        let mut merge = Merge::new(spine, rules);
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(FeatureError::parquet(file.path()))?;
            let of = |name: &str| column(&batch, file.path(), name);
            let keys = self.view.schema.keys().iter().map(|key| of(key.name()).cloned()).collect::<Result<Vec<_>>>()?;
            let keys = Keys::new(&keys)?;
            let known_at =
                if needs_known { Some(of(KNOWN_AT)?.as_primitive::<TimestampMicrosecondType>()) } else { None };
            let version = if needs_version { Some(of(VERSION)?.as_primitive::<Int64Type>()) } else { None };
            let rows = HistoryRows {
                keys: &keys,
                events: of(EVENT_TIMESTAMP)?.as_primitive::<TimestampMicrosecondType>().values(),
                knowns: known_at.map(|known_at| known_at.values().as_ref()),
                versions: version.map(|version| version.values().as_ref()),
                deleted: if needs_deleted { Some(of(DELETED)?.as_boolean()) } else { None },
            };
            let chosen = merge.batch(&rows, best, gathered.count);
            if !chosen.is_empty() {
                let chosen = UInt32Array::from(chosen);
                for (feature, arrays) in self.view.features.iter().zip(&mut gathered.values) {
                    arrays.push(take(of(feature.name())?, &chosen, None)?);
                }
                gathered.count += u32::try_from(chosen.len()).unwrap_or(0);
                gathered.drop_overtaken(best)?;
            }
            if merge.is_done() {
                break;
            }
        }
        Ok(())
    }

    fn finish(&self, best: &Best, gathered: Gathered) -> Result<Found> {
        let places = best.picks.len();
        let in_place = (0..).zip(&best.picks).all(|(place, &pick)| place == pick);
        let picked = BooleanBuffer::collect_bool(places, |place| best.picks[place] != NO_PICK);
        // What is not picked is null, wherever it points.
        let first = best.picks.iter().map(|&pick| if pick == NO_PICK { 0 } else { pick });
        let picks = UInt32Array::new(first.collect::<Vec<u32>>().into(), Some(NullBuffer::new(picked)));
        let mut values = Vec::with_capacity(gathered.values.len());
        for (feature, arrays) in self.view.features.iter().zip(gathered.values) {
            values.push(match joined(&arrays)? {
                Some(all) if in_place => all,
                Some(all) => take(&all, &picks, None)?,
                None => new_null_array(feature.data_type(), places),
            });
        }
        let events = self.event_timestamps.then(|| -> ArrayRef {
            let found = NullBuffer::from_iter(best.status.iter().map(|&status| status != Status::NotFound.code()));
            Arc::new(TimestampMicrosecondArray::new(best.events.clone().into(), Some(found)).with_timezone("UTC"))
        });
        Ok(Found { values, status: best.status.clone(), events })
    }
}

/// Values taken out of the history, in the order in which they were found.
struct Gathered {
    values: Vec<Vec<ArrayRef>>,
    count: u32,
    count_max: usize,
}

impl Gathered {
    fn new(features: usize, places: usize) -> Self {
        Self { values: vec![Vec::new(); features], count: 0, count_max: 2 * places + READ_ROWS }
    }

    /// Forgets values that better rows have taken the place of, once they are more than those that count. A key with more rows than a batch, and files that
    /// bring the same keys again and again, leave many.
    fn drop_overtaken(&mut self, best: &mut Best) -> Result<()> {
        let count = usize::try_from(self.count).unwrap_or(usize::MAX);
        if count <= self.count_max {
            return Ok(());
        }
        let kept = UInt32Array::from(renumber(best, count));
        for arrays in &mut self.values {
            if let Some(all) = joined(arrays)? {
                *arrays = vec![take(&all, &kept, None)?];
            }
        }
        self.count = u32::try_from(kept.len()).unwrap_or(u32::MAX);
        Ok(())
    }
}

/// The arrays as one.
pub(crate) fn joined(arrays: &[ArrayRef]) -> Result<Option<ArrayRef>> {
    Ok(match arrays {
        [] => None,
        [array] => Some(Arc::clone(array)),
        arrays => Some(concat(&arrays.iter().map(AsRef::as_ref).collect::<Vec<&dyn Array>>())?),
    })
}
