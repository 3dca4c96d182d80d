//! What each customer did, step by step: from Arrow rows or as a dense block.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Int64Type};
use arrow::row::{RowConverter, Rows, SortField};
use serde::{Deserialize, Serialize};

use crate::{ModelError, Result};

/// Sequences, one a row: the same channels at the same number of steps, the latest step last. A step may be absent; then the state of the network
/// passes over it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequences {
    channels: Vec<String>,
    steps: usize,
    /// Row-major: row, step, channel; 0 where a step is absent.
    values: Vec<f32>,
    /// Row-major: row, step.
    present: Vec<bool>,
}

/// Where in Arrow rows sequences are: one row a key and step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceLayout {
    /// The columns that tell which sequence a row belongs to: the customer, or the customer and the snapshot's moment.
    pub keys: Vec<String>,
    /// The column with the step's number, from 0, the oldest, to `steps` − 1, the latest.
    pub step: String,
    /// The columns with what happened in the step: numbers.
    pub channels: Vec<String>,
    /// 52 for the weeks of a year.
    pub steps: usize,
    #[serde(default)]
    pub gaps: Gaps,
}

/// What a step without a row means. Before the first row of a sequence it is always absent: the customer was not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gaps {
    /// After the first row, nothing happened: all channels are 0.
    #[default]
    Quiet,
    /// It is not known what happened: the step is absent.
    Unknown,
}

impl Sequences {
    /// Sequences out of a dense block, row-major: row, step, channel. `present` tells which steps are there, row-major; all without. What stands in
    /// absent steps means nothing.
    ///
    /// # Errors
    ///
    /// No rows, steps or channels, two channels of one name, lengths that do not fit, a value that is not finite in a step that is there.
    pub fn dense(
        channels: Vec<String>,
        steps: usize,
        mut values: Vec<f32>,
        present: Option<Vec<bool>>,
    ) -> Result<Self> {
        check_names(&channels)?;
        if steps == 0 {
            return Err(ModelError::Parameter { name: "steps", value: 0.0, range: "at least 1" });
        }
        let width = steps * channels.len();
        let rows = values.len() / width;
        if rows == 0 {
            return Err(ModelError::Empty { what: "the table of sequences" });
        }
        if rows * width != values.len() {
            return Err(ModelError::Length { what: "sequences", expected: (rows + 1) * width, got: values.len() });
        }
        let present = present.unwrap_or_else(|| vec![true; rows * steps]);
        if present.len() != rows * steps {
            return Err(ModelError::Length {
                what: "steps that are there",
                expected: rows * steps,
                got: present.len(),
            });
        }
        for (place, (values, &present)) in values.chunks_exact_mut(channels.len()).zip(&present).enumerate() {
            if !present {
                values.fill(0.0);
            } else if let Some(channel) = values.iter().position(|value| !value.is_finite()) {
                return Err(not_finite(&channels[channel], place % steps, place / steps));
            }
        }
        Ok(Self { channels, steps, values, present })
    }

    /// The sequences of the rows of `wanted`, in their order, out of `history`. Rows of `history` for other keys are passed over, so that one
    /// history serves training and test rows; a wanted key without a row has no step.
    ///
    /// # Errors
    ///
    /// A column that is missing or of a type that does not fit, a key that is wanted twice, a step out of range or told twice, a channel that
    /// is null or not finite: say in the query what no value means.
    pub fn of_batches(layout: &SequenceLayout, wanted: &RecordBatch, history: &[RecordBatch]) -> Result<Self> {
        check_names(&layout.channels)?;
        if layout.keys.is_empty() {
            return Err(ModelError::Empty { what: "the list of key columns" });
        }
        let rows = wanted.num_rows();
        if rows == 0 {
            return Err(ModelError::Empty { what: "the table of sequences" });
        }
        let (steps, width) = (layout.steps, layout.channels.len());
        if steps == 0 {
            return Err(ModelError::Parameter { name: "steps", value: 0.0, range: "at least 1" });
        }
        let keys = Keys::new(layout, wanted)?;
        let mut values = vec![0.0; rows * steps * width];
        let mut present = vec![false; rows * steps];
        let mut first_row = 0;
        for batch in history {
            let row_of = keys.rows_of(batch)?;
            let step_of = numbers(column(batch, &layout.step)?, &layout.step, &DataType::Int64)?;
            let step_of = step_of.as_primitive::<Int64Type>();
            let channels = layout.channels.iter().map(|name| numbers(column(batch, name)?, name, &DataType::Float32));
            let channels: Vec<ArrayRef> = channels.collect::<Result<_>>()?;
            let channels: Vec<_> = channels.iter().map(|channel| channel.as_primitive::<Float32Type>()).collect();
            for (place, row) in row_of.into_iter().enumerate() {
                let Some(row) = row else { continue };
                let wrong = |problem| ModelError::Value {
                    what: format!("step {:?} of the history", layout.step),
                    row: first_row + place,
                    problem,
                };
                let step = if step_of.is_null(place) { None } else { usize::try_from(step_of.value(place)).ok() };
                let Some(step) = step.filter(|&step| step < steps) else {
                    return Err(wrong(
                        "is null, below 0 or not below the number of steps: narrow the query to the window",
                    ));
                };
                if std::mem::replace(&mut present[row * steps + step], true) {
                    return Err(wrong("is there twice for its key: group the query by key and step"));
                }
                for (channel, name) in layout.channels.iter().enumerate() {
                    let value = channels[channel].value(place);
                    if channels[channel].is_null(place) || !value.is_finite() {
                        return Err(not_finite(name, step, first_row + place));
                    }
                    values[(row * steps + step) * width + channel] = value;
                }
            }
            first_row += batch.num_rows();
        }
        if layout.gaps == Gaps::Quiet {
            for steps in present.chunks_exact_mut(steps) {
                if let Some(first) = steps.iter().position(|&step| step) {
                    steps[first..].fill(true);
                }
            }
        }
        Ok(Self { channels: layout.channels.clone(), steps, values, present })
    }

    pub fn rows(&self) -> usize {
        self.present.len() / self.steps
    }

    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The channels, in the order of a step's values.
    pub fn channels(&self) -> &[String] {
        &self.channels
    }

    /// How many steps of a row are there.
    pub fn length(&self, row: usize) -> usize {
        self.present_steps(row).iter().filter(|&&present| present).count()
    }

    /// These rows, in this order.
    ///
    /// # Errors
    ///
    /// No rows, a row that there is not.
    pub fn take(&self, rows: &[usize]) -> Result<Self> {
        if rows.is_empty() {
            return Err(ModelError::Empty { what: "the table of sequences" });
        }
        if let Some(&got) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(ModelError::Length { what: "rows of sequences", expected: self.rows(), got });
        }
        let width = self.steps * self.channels.len();
        let values = rows.iter().flat_map(|&row| &self.values[row * width..][..width]).copied().collect();
        let present = rows.iter().flat_map(|&row| self.present_steps(row)).copied().collect();
        Ok(Self { channels: self.channels.clone(), steps: self.steps, values, present })
    }

    /// Which steps of a row are there.
    pub fn present_steps(&self, row: usize) -> &[bool] {
        &self.present[row * self.steps..][..self.steps]
    }

    /// The channels of a row's step: zeros where it is absent.
    pub fn step(&self, row: usize, step: usize) -> &[f32] {
        let width = self.channels.len();
        &self.values[(row * self.steps + step) * width..][..width]
    }
}

/// Which wanted row a row of history belongs to, whatever the keys' types.
struct Keys<'a> {
    layout: &'a SequenceLayout,
    types: Vec<DataType>,
    converter: RowConverter,
    row_of: HashMap<Box<[u8]>, usize>,
}

impl<'a> Keys<'a> {
    fn new(layout: &'a SequenceLayout, wanted: &RecordBatch) -> Result<Self> {
        let types = layout.keys.iter().map(|name| Ok(column(wanted, name)?.data_type().clone()));
        let types: Vec<DataType> = types.collect::<Result<_>>()?;
        let converter = RowConverter::new(types.iter().cloned().map(SortField::new).collect()).map_err(unusable)?;
        let mut keys = Self { layout, types, converter, row_of: HashMap::with_capacity(wanted.num_rows()) };
        let rows = keys.encoded(wanted)?;
        for (row, key) in rows.iter().enumerate() {
            match keys.row_of.entry(key.as_ref().into()) {
                Entry::Vacant(place) => place.insert(row),
                Entry::Occupied(_) => {
                    return Err(ModelError::Value { what: "the key".to_owned(), row, problem: "is wanted twice" });
                }
            };
        }
        Ok(keys)
    }

    fn rows_of(&self, history: &RecordBatch) -> Result<Vec<Option<usize>>> {
        let rows = self.encoded(history)?;
        // Histories come sorted by key: most rows have the key of the row before.
        let mut before: Option<(arrow::row::Row<'_>, Option<usize>)> = None;
        let found = rows.iter().map(|key| match before {
            Some((last, row)) if last == key => row,
            _ => {
                let row = self.row_of.get(key.as_ref()).copied();
                before = Some((key, row));
                row
            }
        });
        Ok(found.collect())
    }

    fn encoded(&self, batch: &RecordBatch) -> Result<Rows> {
        let columns = self.layout.keys.iter().zip(&self.types).map(|(name, kind)| {
            let column = column(batch, name)?;
            cast(column, kind).map_err(|_| {
                ModelError::Signature(format!("key {name:?} is {} where {kind} is needed", column.data_type()))
            })
        });
        self.converter.convert_columns(&columns.collect::<Result<Vec<_>>>()?).map_err(unusable)
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| ModelError::Signature(format!("column {name:?} is missing")))
}

fn numbers(column: &ArrayRef, name: &str, kind: &DataType) -> Result<ArrayRef> {
    let has = column.data_type();
    if !(has.is_numeric() || matches!(has, DataType::Boolean)) || (*kind == DataType::Int64 && !has.is_integer()) {
        let needed = if *kind == DataType::Int64 { "a whole number" } else { "a number" };
        return Err(ModelError::Signature(format!("column {name:?} is {has} where {needed} is needed")));
    }
    cast(column, kind).map_err(unusable)
}

fn unusable(error: arrow::error::ArrowError) -> ModelError {
    ModelError::Signature(error.to_string())
}

fn not_finite(channel: &str, step: usize, row: usize) -> ModelError {
    ModelError::Value {
        what: format!("channel {channel:?}, step {step}"),
        row,
        problem: "is null or not finite: say in the query what no value means",
    }
}

fn check_names(channels: &[String]) -> Result<()> {
    if channels.is_empty() {
        return Err(ModelError::Empty { what: "the list of channels" });
    }
    let mut seen = std::collections::HashSet::new();
    for name in channels {
        let problem = match &**name {
            "" => Some("has no name"),
            name if !seen.insert(name) => Some("is there twice"),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(ModelError::FeatureName { name: name.clone(), problem });
        }
    }
    Ok(())
}
