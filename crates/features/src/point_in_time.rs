//! The operator: takes the spine part by part, asks the views, gives the answer in the spine's order.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::answer::{PartAnswer, ViewAnswer};
use crate::lookup::{Found, Lookup, joined};
use crate::moment::{Rounding, micros};
use crate::request::{Checked, FeatureView, Options, check};
use crate::spine::Layout;
use crate::write::fitted;
use crate::{FeatureError, Result};

/// A part of this many rows is not divided any more.
const PART_ROWS_MIN: usize = 1_024;

/// The rows of the spine with their features: a stream of batches with a schema that is known before.
pub struct FeatureStream {
    schema: SchemaRef,
    batches: BoxStream<'static, Result<RecordBatch>>,
}

impl FeatureStream {
    /// The spine's columns, then for each view, in the order asked for, its features with their statuses, its status and its event timestamp.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }
}

impl Stream for FeatureStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(context)
    }
}

impl std::fmt::Debug for FeatureStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FeatureStream").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// Joins each row of the spine with what every view had for its key at its moment (PIT-1), one row for each, in the spine's order (PIT-2).
///
/// Of a view's rows for the key, those count with `event_timestamp <= T` (`< T` when strict) and `known_at <= T` (unless switched off); of these the last one by event
/// time, known time, version and the order in which a version brought them. When it is a deletion, the view has nothing; when it is older than `T - ttl`, it is too old. A
/// row whose key has a null finds nothing.
///
/// Nothing happens before the stream is polled, and no more than a batch for each worker is made ahead of who reads it. It runs on the tokio runtime that polls it, with
/// several threads where that has them; dropped, it stops. Memory: `options.memory_bytes`, and for each worker a row group. It may be repeated.
///
/// # Errors
/// At once: a column, feature or version that is not there, a type that does not fit, two columns of one name. Later, as the last item of the stream: a null or
/// impossible timestamp, with its row; a file that is not what it is listed as; what the store says.
pub fn point_in_time<S>(
    store: Arc<dyn ObjectStore>,
    spine_schema: &SchemaRef,
    spine: S,
    views: Vec<FeatureView>,
    options: Options,
) -> Result<FeatureStream>
where
    S: Stream<Item = std::result::Result<RecordBatch, ArrowError>> + Send + 'static,
{
    let Checked { schema, timestamp, views } = check(spine_schema, views, &options)?;
    let mut layouts: Vec<LayoutKey> = Vec::new();
    let mut asked = Vec::with_capacity(views.len());
    for view in views {
        let types = view.schema.keys().iter().map(|key| key.data_type().clone());
        let key = LayoutKey { columns: view.keys.iter().copied().zip(types).collect(), buckets: view.schema.buckets() };
        let layout = layouts.iter().position(|other| *other == key).unwrap_or_else(|| {
            layouts.push(key);
            layouts.len() - 1
        });
        asked.push((layout, Arc::new(Lookup::new(Arc::clone(&store), view, options.event_timestamps))));
    }
    let operator = Arc::new(Operator {
        spine_schema: Arc::clone(spine_schema),
        schema: Arc::clone(&schema),
        timestamp,
        layouts,
        views: asked,
        options,
    });
    let state = State { operator, spine: spine.boxed(), read: 0, rest: None, waiting: VecDeque::new() };
    let parts = stream::try_unfold(state, |mut state| async move {
        Ok::<_, FeatureError>(state.next().await?.map(|part| (part, state)))
    });
    Ok(FeatureStream { schema, batches: parts.try_flatten().boxed() })
}

/// What views must agree in to share a [`Layout`].
#[derive(Debug, PartialEq)]
struct LayoutKey {
    columns: Vec<(usize, DataType)>,
    buckets: u32,
}

struct Operator {
    spine_schema: SchemaRef,
    schema: SchemaRef,
    timestamp: usize,
    layouts: Vec<LayoutKey>,
    /// Views with the number of their layout.
    views: Vec<(usize, Arc<Lookup>)>,
    options: Options,
}

/// Rows of the spine that are answered together.
#[derive(Default)]
struct Part {
    batches: Vec<RecordBatch>,
    moments: Vec<i64>,
}

struct State {
    operator: Arc<Operator>,
    spine: BoxStream<'static, std::result::Result<RecordBatch, ArrowError>>,
    /// How many rows of the spine have been taken.
    read: usize,
    /// The end of a batch that did not fit into a part.
    rest: Option<RecordBatch>,
    /// Parts that have been taken and not been answered.
    waiting: VecDeque<Part>,
}

impl State {
    /// The batches of the next part, or nothing at the end of the spine.
    async fn next(&mut self) -> Result<Option<BoxStream<'static, Result<RecordBatch>>>> {
        loop {
            let part = match self.waiting.pop_front() {
                Some(part) => part,
                None => self.take_part().await?,
            };
            if part.moments.is_empty() {
                return Ok(None);
            }
            match self.operator.answer(&part).await {
                Ok(answer) => return Ok(Some(self.operator.batches(part, answer))),
                Err(FeatureError::Memory { rows, .. }) if rows > PART_ROWS_MIN => {
                    let (first, second) = part.halves();
                    self.waiting.push_front(second);
                    self.waiting.push_front(first);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads rows of the spine until a part is full.
    async fn take_part(&mut self) -> Result<Part> {
        let operator = Arc::clone(&self.operator);
        let mut part = Part::default();
        loop {
            let batch = match self.rest.take() {
                Some(batch) => batch,
                None => match self.spine.next().await.transpose().map_err(FeatureError::Spine)? {
                    Some(batch) => batch,
                    None => return Ok(part),
                },
            };
            if batch.schema().fields() != operator.spine_schema.fields() {
                let (found, expected) = (batch.schema(), &operator.spine_schema);
                return Err(FeatureError::Request(format!(
                    "a batch of the spine has other columns than announced: {found:?} instead of {expected:?}"
                )));
            }
            if batch.num_rows() == 0 {
                continue;
            }
            let space = operator.part_rows(&batch).saturating_sub(part.moments.len());
            let rows = batch.num_rows().min(space);
            if rows < batch.num_rows() {
                self.rest = Some(batch.slice(rows, batch.num_rows() - rows));
            }
            if rows > 0 {
                let batch = batch.slice(0, rows);
                let options = &operator.options;
                let column = batch.column(operator.timestamp);
                let (name, zoneless) = (&options.timestamp, options.zoneless);
                part.moments.extend(micros("the spine", name, column, zoneless, Rounding::Down, self.read)?);
                part.batches.push(batch);
                self.read += rows;
            }
            if self.rest.is_some() {
                return Ok(part);
            }
        }
    }
}

impl Operator {
    /// How many rows a part has, going by the memory that one takes.
    fn part_rows(&self, batch: &RecordBatch) -> usize {
        // A batch may be a slice of something big.
        let sizes = batch.columns().iter().filter_map(|column| column.to_data().get_slice_memory_size().ok());
        let spine = sizes.sum::<usize>() / batch.num_rows().max(1);
        // Key, moment, number and place, while they are sorted.
        let layouts = 64 * self.layouts.len();
        let extra = 2 + if self.options.event_timestamps { 8 } else { 0 };
        let width = |data_type: &DataType| data_type.primitive_width().unwrap_or(32);
        let view = |lookup: &Lookup| {
            lookup.view.features.iter().map(|feature| width(feature.data_type())).sum::<usize>() + extra
        };
        let views: usize = self.views.iter().map(|(_, lookup)| view(lookup)).sum();
        // Places are counted in 32 bits.
        (self.options.memory_bytes / (spine + layouts + views)).clamp(PART_ROWS_MIN, 1 << 30)
    }

    /// Asks all views about a part.
    async fn answer(&self, part: &Part) -> Result<PartAnswer> {
        let moments: Arc<[i64]> = part.moments.as_slice().into();
        let layouts = self.layouts.iter().map(|key| Ok(Arc::new(part.layout(key, &moments)?)));
        let layouts = layouts.collect::<Result<Vec<_>>>()?;
        let mut jobs = self.views.iter().enumerate().flat_map(|(view, (layout, _))| {
            let layout = &layouts[*layout];
            (0..layout.buckets()).filter(|&bucket| !layout.places(bucket).is_empty()).map(move |bucket| (view, bucket))
        });
        let mut found: Vec<Vec<Option<Found>>> = Vec::new();
        let mut missing = Vec::new();
        for (layout, _) in &self.views {
            let layout = &layouts[*layout];
            found.push((0..layout.buckets()).map(|_| None).collect());
            missing.push((0..layout.buckets()).filter(|&bucket| !layout.places(bucket).is_empty()).count());
        }
        let mut answers: Vec<Option<ViewAnswer>> = self.views.iter().map(|_| None).collect();
        let mut bytes = 0;
        let mut tasks = JoinSet::new();
        let assemble = |view: usize, found: Vec<Option<Found>>, tasks: &mut JoinSet<_>| {
            let (layout, lookup) = &self.views[view];
            let (layout, lookup) = (Arc::clone(&layouts[*layout]), Arc::clone(lookup));
            tasks.spawn(async move { Ok(Done::View { view, answer: ViewAnswer::new(&lookup, &layout, found)? }) });
        };
        for view in (0..self.views.len()).filter(|&view| missing[view] == 0) {
            assemble(view, Vec::new(), &mut tasks);
        }
        loop {
            while tasks.len() < self.options.workers.get()
                && let Some((view, bucket)) = jobs.next()
            {
                let (layout, lookup) = &self.views[view];
                let (layout, lookup) = (Arc::clone(&layouts[*layout]), Arc::clone(lookup));
                tasks.spawn(async move {
                    Ok::<_, FeatureError>(Done::Bucket { view, bucket, found: lookup.bucket(&layout, bucket).await? })
                });
            }
            let Some(done) = tasks.join_next().await else { break };
            match done?? {
                Done::Bucket { view, bucket, found: of_bucket } => {
                    bytes += of_bucket.bytes();
                    if bytes > self.options.memory_bytes {
                        let (rows, memory_bytes) = (part.moments.len(), self.options.memory_bytes);
                        return Err(FeatureError::Memory { rows, memory_bytes });
                    }
                    found[view][bucket] = Some(of_bucket);
                    missing[view] -= 1;
                    if missing[view] == 0 {
                        assemble(view, std::mem::take(&mut found[view]), &mut tasks);
                    }
                }
                Done::View { view, answer } => answers[view] = Some(answer),
            }
        }
        let views = self.views.iter().zip(answers).filter_map(|((layout, _), answer)| Some((*layout, answer?)));
        Ok(PartAnswer {
            schema: Arc::clone(&self.schema),
            status: self.options.status,
            views: views.collect(),
            positions: layouts.iter().map(|layout| UInt32Array::from(layout.positions())).collect(),
        })
    }

    /// The part's rows with their features. As many batches are made at a time as there are workers.
    fn batches(&self, part: Part, answer: PartAnswer) -> BoxStream<'static, Result<RecordBatch>> {
        let rows_max = self.options.batch_rows.get();
        let mut slices = VecDeque::new();
        let mut from = 0;
        for batch in part.batches {
            for start in (0..batch.num_rows()).step_by(rows_max) {
                slices.push_back((from + start, batch.slice(start, rows_max.min(batch.num_rows() - start))));
            }
            from += batch.num_rows();
        }
        let answer = Arc::new(answer);
        stream::iter(slices)
            .map(move |(from, spine)| {
                let answer = Arc::clone(&answer);
                let task = AbortOnDropHandle::new(tokio::spawn(async move { answer.batch(&spine, from) }));
                async move { task.await? }
            })
            .buffered(self.options.workers.get())
            .boxed()
    }
}

enum Done {
    Bucket { view: usize, bucket: usize, found: Found },
    View { view: usize, answer: ViewAnswer },
}

impl Part {
    fn layout(&self, key: &LayoutKey, moments: &Arc<[i64]>) -> Result<Layout> {
        let mut columns = Vec::with_capacity(key.columns.len());
        for (at, expected) in &key.columns {
            let of = |batch: &RecordBatch| {
                let schema = batch.schema();
                fitted("the spine", schema.field(*at).name(), batch.column(*at), expected)
            };
            let arrays: Vec<ArrayRef> = self.batches.iter().map(of).collect::<Result<_>>()?;
            columns.extend(joined(&arrays)?);
        }
        Layout::new(&columns, Arc::clone(moments), key.buckets)
    }

    fn halves(self) -> (Self, Self) {
        let middle = self.moments.len() / 2;
        let (mut first, mut second) = (Self::default(), Self::default());
        first.moments = self.moments[..middle].to_vec();
        second.moments = self.moments[middle..].to_vec();
        let mut space = middle;
        for batch in self.batches {
            let rows = batch.num_rows().min(space);
            if rows > 0 {
                first.batches.push(batch.slice(0, rows));
            }
            if rows < batch.num_rows() {
                second.batches.push(batch.slice(rows, batch.num_rows() - rows));
            }
            space -= rows;
        }
        (first, second)
    }
}
