//! What customers did, beside a table of features that is scored: read for the buckets of a batch, so that no more than these are in memory.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use holdfast_engine::Published;
use holdfast_models::sequence::SequenceModel;
use holdfast_types::CUSTOMER_BUCKET;

use super::history::{Steps, said, with_probabilities};
use crate::error::CliError;
use crate::models::snapshots::{customer, moment_of};
use crate::models::spec::EVENT_TIMESTAMP;

/// Scores are of one moment, the newest.
const NOW: i64 = 0;

/// The histories of the customers that are scored, by the version that is told of them.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    steps: BTreeMap<i32, Steps>,
    held: BTreeMap<i32, Vec<RecordBatch>>,
    /// The first and the last bucket whose histories are held.
    buckets: Option<(i32, i32)>,
}

impl Histories {
    /// For versions that are told of steps; nothing is read yet.
    pub(crate) fn new(steps: BTreeMap<i32, Steps>) -> Self {
        Self { steps, ..Self::default() }
    }

    /// Refuses steps that were counted from another moment than that of the features.
    ///
    /// # Errors
    /// Such a table, with what to do; what the lake answers.
    pub(crate) async fn check_moment(&self, read: &Published, as_of: DateTime<Utc>) -> Result<(), CliError> {
        for steps in self.steps.values() {
            let sql = format!("select max({}) as as_of from {}", moment_of(EVENT_TIMESTAMP), steps.stage);
            let batches: Vec<RecordBatch> =
                read.rows("looking at the moment of steps", &sql).await?.try_collect().await?;
            let counted = batches.iter().find(|batch| batch.num_rows() > 0).and_then(|batch| {
                let column = batch.column(0).as_primitive_opt::<TimestampMicrosecondType>()?;
                column.is_valid(0).then(|| DateTime::from_timestamp_micros(column.value(0))).flatten()
            });
            if let Some(counted) = counted.filter(|counted| *counted != as_of) {
                return Err(CliError::NoModel(format!(
                    "{} counts steps from {}, and the features are of {}: bring both up to date with `holdfast run`",
                    steps.stage,
                    counted.to_rfc3339(),
                    as_of.to_rfc3339()
                )));
            }
        }
        Ok(())
    }

    /// Reads the histories of a batch's customers, whose second column is their bucket; batches come in the order of buckets.
    ///
    /// # Errors
    /// What the lake answers.
    pub(crate) async fn bring(&mut self, read: &Published, batch: &RecordBatch) -> Result<(), CliError> {
        if self.steps.is_empty() {
            return Ok(());
        }
        let buckets = arrow::compute::cast(batch.column(1), &DataType::Int32)?;
        let buckets = buckets.as_primitive::<Int32Type>();
        let (Some(first), Some(last)) = (arrow::compute::min(buckets), arrow::compute::max(buckets)) else {
            return Ok(());
        };
        if self.buckets.is_some_and(|(from, to)| from <= first && last <= to) {
            return Ok(());
        }
        self.held.clear();
        for (version, steps) in &self.steps {
            let sql = format!("{} and {CUSTOMER_BUCKET} between {first} and {last}", steps.sql());
            let mut rows = read.rows(&format!("reading {}", steps.stage), &sql).await?;
            let held = self.held.entry(*version).or_default();
            while let Some(batch) = rows.try_next().await? {
                held.push(steps.history(&batch, NOW, |_| true)?);
            }
        }
        self.buckets = Some((first, last));
        Ok(())
    }

    /// The features of customers, whose ids are the first column of `batch`, with what a version's sequence model says of them.
    ///
    /// # Errors
    /// Steps that make no sequences; a prediction that is no number.
    pub(crate) fn told(
        &self,
        model: &SequenceModel,
        version: i32,
        batch: &RecordBatch,
        features: &RecordBatch,
    ) -> Result<RecordBatch, CliError> {
        let Some(steps) = self.steps.get(&version) else {
            return with_probabilities(features, &vec![None; batch.num_rows()]);
        };
        let ids = arrow::compute::cast(batch.column(0), &DataType::Utf8)?;
        let wanted = ids.as_string::<i32>().iter().map(|id| (id.map_or(0, customer), NOW));
        let held = self.held.get(&version).map_or(&[][..], Vec::as_slice);
        let sequences = steps.sequences(wanted, held)?;
        with_probabilities(features, &said(model, sequences.as_ref(), batch.num_rows())?)
    }
}
