//! What customers did, step by step, up to a moment: rows of the stage of steps, and sequences out of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Float32Array, Int64Array, RecordBatch, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Float32Type, Int64Type, Schema, UInt64Type};
use holdfast_models::hybrid::SEQUENCE_FEATURE;
use holdfast_models::sequence::{Gaps, SequenceLayout, SequenceModel, Sequences};
use holdfast_types::{CUSTOMER_ID, TableName};

use super::spec::SequenceSection;
use crate::error::CliError;
use crate::models::leakage::TOLERANCE;
use crate::models::snapshots::{customer, quoted};

/// The columns of histories beside the channels: whose, as of when, and which step. Not ones that somebody calls a channel.
const CUSTOMER: &str = "\u{1}customer";
const MOMENT: &str = "\u{1}moment";
const STEP: &str = "\u{1}step";

/// Which steps of which channels.
#[derive(Debug, Clone)]
pub(crate) struct Steps {
    pub(crate) stage: TableName,
    ago: String,
    steps: usize,
    channels: Vec<String>,
}

impl Steps {
    pub(crate) fn new(section: &SequenceSection, channels: Vec<String>) -> Self {
        let (stage, ago) = (section.stage.get_ref().clone(), section.ago.get_ref().clone());
        Self { stage, ago, steps: *section.steps.get_ref(), channels }
    }

    /// The columns with what happened in a step.
    pub(crate) fn channels(&self) -> &[String] {
        &self.channels
    }

    /// The columns of the stage that are read beside the customer.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &str> {
        self.channels.iter().chain([&self.ago]).map(String::as_str)
    }

    /// The rows of a table or view of the stage, behind which a condition may be added.
    pub(crate) fn sql(&self) -> String {
        let ago = quoted(&self.ago);
        let channels: Vec<String> =
            self.channels.iter().map(|name| format!("arrow_cast({0}, 'Float32') as {0}", quoted(name))).collect();
        format!(
            "select {CUSTOMER_ID}, arrow_cast({ago}, 'Int64') as \"{STEP}\", {} from {} where {CUSTOMER_ID} is not null and {ago} >= 0 and {ago} < {}",
            channels.join(", "),
            self.stage,
            self.steps
        )
    }

    /// Rows that [`Steps::sql`] gave, of the customers that are wanted, as of a moment.
    pub(crate) fn history(
        &self,
        batch: &RecordBatch,
        moment: i64,
        is_wanted: impl Fn(u64) -> bool,
    ) -> Result<RecordBatch, CliError> {
        let ids = arrow::compute::cast(batch.column(0), &DataType::Utf8)?;
        let customers: UInt64Array = ids.as_string::<i32>().iter().map(|id| id.map(customer)).collect();
        let last = i64::try_from(self.steps).unwrap_or(i64::MAX) - 1;
        let ago = batch.column(1).as_primitive::<Int64Type>();
        let steps: Int64Array = ago.iter().map(|ago| ago.map(|ago| last - ago)).collect();
        let kept: BooleanArray = customers.iter().map(|id| Some(id.is_some_and(&is_wanted))).collect();
        let moments = Int64Array::from(vec![moment; batch.num_rows()]);
        let mut columns: Vec<ArrayRef> = vec![Arc::new(customers), Arc::new(moments), Arc::new(steps)];
        columns.extend(batch.columns()[2..].iter().map(Arc::clone));
        let mut fields = keys();
        fields.push(Field::new(STEP, DataType::Int64, true));
        fields.extend(self.channels.iter().map(|name| Field::new(name, DataType::Float32, true)));
        let whole = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        Ok(filter_record_batch(&whole, &kept)?)
    }

    /// The sequences of customers as of moments, in their order, out of histories; nothing of nobody.
    ///
    /// # Errors
    /// A step that is there twice for a customer, a channel that is null or not finite.
    pub(crate) fn sequences(
        &self,
        wanted: impl Iterator<Item = (u64, i64)>,
        histories: &[RecordBatch],
    ) -> Result<Option<Sequences>, CliError> {
        let (customers, moments): (Vec<u64>, Vec<i64>) = wanted.unzip();
        if customers.is_empty() {
            return Ok(None);
        }
        let columns: Vec<ArrayRef> = vec![Arc::new(UInt64Array::from(customers)), Arc::new(Int64Array::from(moments))];
        let wanted = RecordBatch::try_new(Arc::new(Schema::new(keys())), columns)?;
        let layout = SequenceLayout {
            keys: vec![CUSTOMER.to_owned(), MOMENT.to_owned()],
            step: STEP.to_owned(),
            channels: self.channels.clone(),
            steps: self.steps,
            gaps: Gaps::Quiet,
        };
        let made = Sequences::of_batches(&layout, &wanted, histories);
        made.map(Some).map_err(|error| {
            CliError::Training(format!(
                "{} does not make sequences: {}",
                self.stage,
                error.to_string().replace('\u{1}', "")
            ))
        })
    }
}

fn keys() -> Vec<Field> {
    vec![Field::new(CUSTOMER, DataType::UInt64, true), Field::new(MOMENT, DataType::Int64, true)]
}

/// The features with what a sequence model says beside them, last; it is missing where nothing is known of a customer's steps.
pub(crate) fn with_probabilities(
    features: &RecordBatch,
    probabilities: &[Option<f64>],
) -> Result<RecordBatch, CliError> {
    #[expect(clippy::cast_possible_truncation, reason = "features are in single precision")]
    let said: Float32Array = probabilities.iter().map(|probability| probability.map(|said| said as f32)).collect();
    let mut fields: Vec<_> = features.schema().fields().iter().map(Arc::clone).collect();
    fields.push(Arc::new(Field::new(SEQUENCE_FEATURE, DataType::Float32, true)));
    let mut columns = features.columns().to_vec();
    columns.push(Arc::new(said));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// What a sequence model says of customers, and of those without a step nothing.
///
/// # Errors
/// Sequences of other channels or steps; a prediction that is no number.
pub(crate) fn said(
    model: &SequenceModel,
    sequences: Option<&Sequences>,
    rows: usize,
) -> Result<Vec<Option<f64>>, CliError> {
    match sequences {
        Some(sequences) => Ok(model.probabilities(sequences)?),
        None => Ok(vec![None; rows]),
    }
}

/// Customers whose steps are others in one of two histories, of one moment.
pub(crate) fn differing(one: &[RecordBatch], other: &[RecordBatch]) -> usize {
    let (one, other) = (by_customer(one), by_customer(other));
    let differs = one.iter().filter(|(customer, steps)| !other.get(*customer).is_some_and(|other| same(steps, other)));
    differs.count() + other.keys().filter(|customer| !one.contains_key(*customer)).count()
}

/// The channels of a customer's steps.
type ByStep = BTreeMap<i64, Vec<f32>>;

fn by_customer(histories: &[RecordBatch]) -> HashMap<u64, ByStep> {
    let mut found: HashMap<u64, ByStep> = HashMap::new();
    for batch in histories {
        let (customers, steps) =
            (batch.column(0).as_primitive::<UInt64Type>(), batch.column(2).as_primitive::<Int64Type>());
        for row in 0..batch.num_rows() {
            let channels = batch.columns()[3..].iter().map(|channel| channel.as_primitive::<Float32Type>().value(row));
            found.entry(customers.value(row)).or_default().insert(steps.value(row), channels.collect());
        }
    }
    found
}

/// Sums of the same numbers in another order differ in their last digits.
fn same(one: &ByStep, other: &ByStep) -> bool {
    let near = |(one, other): (&f32, &f32)| (one - other).abs() <= TOLERANCE * one.abs().max(other.abs()).max(1.0);
    one.keys().eq(other.keys()) && one.values().flatten().zip(other.values().flatten()).all(near)
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;

    use super::*;

    fn steps() -> Steps {
        Steps {
            stage: "features.weeks".parse().unwrap(),
            ago: "weeks_ago".to_owned(),
            steps: 4,
            channels: vec!["visits".to_owned()],
        }
    }

    fn asked(rows: &[(&str, i64, f32)]) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new(CUSTOMER_ID, DataType::Utf8, true),
            Field::new(STEP, DataType::Int64, true),
            Field::new("visits", DataType::Float32, true),
        ]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>()),
            Arc::new(rows.iter().map(|row| Some(row.1)).collect::<Int64Array>()),
            Arc::new(rows.iter().map(|row| Some(row.2)).collect::<Float32Array>()),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    #[test]
    fn the_last_step_is_the_one_that_ends_at_the_moment_and_quiet_steps_are_zeros() {
        let steps = steps();
        let batch = asked(&[("a", 0, 5.0), ("a", 2, 3.0), ("b", 1, 1.0)]);
        let histories = [steps.history(&batch, 7, |_| true).unwrap()];
        let wanted = [(customer("b"), 7), (customer("a"), 7), (customer("c"), 7), (customer("a"), 8)];
        let sequences = steps.sequences(wanted.into_iter(), &histories).unwrap().unwrap();
        let row = |row| (0..4).map(|step| sequences.step(row, step)[0]).collect::<Vec<f32>>();
        assert_eq!((row(0), sequences.length(0)), (vec![0.0, 0.0, 1.0, 0.0], 2));
        assert_eq!((row(1), sequences.length(1)), (vec![0.0, 3.0, 0.0, 5.0], 3));
        assert_eq!((sequences.length(2), sequences.length(3)), (0, 0), "nobody known, and another moment");
        assert!(steps.sequences([].into_iter(), &histories).unwrap().is_none());
        let twice = [steps.history(&asked(&[("a", 0, 5.0), ("a", 0, 3.0)]), 7, |_| true).unwrap()];
        let told = steps.sequences(wanted.into_iter(), &twice).unwrap_err().to_string();
        assert!(told.contains("features.weeks") && told.contains("there twice"), "{told}");
    }

    #[test]
    fn steps_that_differ_are_counted_by_customer() {
        let steps = steps();
        let of = |rows: &[(&str, i64, f32)]| [steps.history(&asked(rows), 7, |_| true).unwrap()];
        let one = of(&[("a", 0, 5.0), ("b", 1, 0.1 + 0.2)]);
        assert_eq!(differing(&one, &of(&[("b", 1, 0.3), ("a", 0, 5.0)])), 0, "rows in another order, sums too");
        assert_eq!(differing(&one, &of(&[("a", 0, 6.0), ("b", 1, 0.3)])), 1);
        assert_eq!(differing(&one, &of(&[("a", 0, 5.0), ("b", 1, 0.3), ("c", 3, 1.0)])), 1);
        assert_eq!(differing(&one, &of(&[("b", 1, 0.3)])), 1);
    }
}
