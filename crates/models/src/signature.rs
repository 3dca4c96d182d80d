//! Which features a model was trained on, in which order, and how Arrow columns become its rows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float32Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Int32Type};
use serde::{Deserialize, Serialize};

use crate::{ModelError, Result};

/// What a feature's values are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FeatureKind {
    /// Integers, floats, decimals, booleans. Null is a missing value.
    Number,
    /// Text out of a list; a category's code is its place there. Null, and text that is not in the list, is a missing value.
    Category(Vec<String>),
    /// Codes of categories from 0, whose names the model does not hold.
    Code,
}

/// A feature: a column of the training table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    pub name: String,
    pub kind: FeatureKind,
}

/// The features of a model, in order. A model answers only for data that fits it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Feature>", into = "Vec<Feature>")]
pub struct Signature {
    features: Vec<Feature>,
}

/// Rows of features, row-major, NaN where a value is missing; what [`Signature::matrix`] makes.
#[derive(Debug, Clone)]
pub struct Matrix {
    values: Arc<Vec<f32>>,
    rows: usize,
    columns: usize,
}

impl TryFrom<Vec<Feature>> for Signature {
    type Error = ModelError;

    fn try_from(features: Vec<Feature>) -> Result<Self> {
        Self::new(features)
    }
}

impl From<Signature> for Vec<Feature> {
    fn from(signature: Signature) -> Self {
        signature.features
    }
}

impl Signature {
    /// A signature of these features.
    ///
    /// # Errors
    ///
    /// No feature, two of one name, or a name that XGBoost refuses: empty, or with one of `[`, `]`, `<`.
    pub fn new(features: Vec<Feature>) -> Result<Self> {
        if features.is_empty() {
            return Err(ModelError::Empty { what: "the list of features" });
        }
        let mut seen = HashSet::new();
        for feature in &features {
            let problem = match &*feature.name {
                "" => Some("has no name"),
                name if name.contains(['[', ']', '<']) => Some("a name must not contain [, ] or <"),
                name if !seen.insert(name) => Some("is there twice"),
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(ModelError::FeatureName { name: feature.name.clone(), problem });
            }
        }
        Ok(Self { features })
    }

    /// The signature of a training table: numbers are numbers, text columns are categories, sorted by name.
    ///
    /// # Errors
    ///
    /// A column of another type, or a name that cannot be used.
    pub fn of(batch: &RecordBatch) -> Result<Self> {
        let schema = batch.schema();
        let features = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
            let kind = if is_text(column.data_type()) {
                let text = text(column)?;
                let names: HashSet<&str> = text.as_string::<i32>().iter().flatten().collect();
                let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
                names.sort_unstable();
                FeatureKind::Category(names)
            } else if is_number(column.data_type()) {
                FeatureKind::Number
            } else {
                return Err(unusable(field.name(), column.data_type()));
            };
            Ok(Feature { name: field.name().clone(), kind })
        });
        Self::new(features.collect::<Result<_>>()?)
    }

    /// The features, in the order of a row's values.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// The rows of a batch whose columns are the features, all and in order.
    ///
    /// # Errors
    ///
    /// A column that is missing, too many, elsewhere or of a type that does not fit, named; an infinite value or a code that is none, with its
    /// row.
    pub fn matrix(&self, batch: &RecordBatch) -> Result<Matrix> {
        let schema = batch.schema();
        self.check_names(schema.fields().iter().map(|field| &**field.name()))?;
        let (rows, columns) = (batch.num_rows(), self.features.len());
        if rows == 0 {
            return Err(ModelError::Empty { what: "the table of features" });
        }
        let mut values = vec![f32::NAN; rows * columns];
        for (place, (feature, column)) in self.features.iter().zip(batch.columns()).enumerate() {
            let column = feature.values(column)?;
            for (row, value) in column.iter().enumerate() {
                if let Some(value) = value.filter(|value| !value.is_nan()) {
                    feature.check(row, value)?;
                    values[row * columns + place] = value;
                }
            }
        }
        Ok(Matrix { values: Arc::new(values), rows, columns })
    }

    /// Rows that are in order already: row-major, NaN where a value is missing, categories as codes.
    ///
    /// # Errors
    ///
    /// A number of values that is no number of rows, an infinite value, a code that is none.
    pub fn matrix_of(&self, values: Vec<f32>) -> Result<Matrix> {
        let columns = self.features.len();
        let rows = values.len() / columns;
        if rows == 0 {
            return Err(ModelError::Empty { what: "the table of features" });
        }
        if rows * columns != values.len() {
            return Err(ModelError::Length { what: "features", expected: (rows + 1) * columns, got: values.len() });
        }
        for (row, values) in values.chunks_exact(columns).enumerate() {
            for (feature, &value) in self.features.iter().zip(values) {
                if !value.is_nan() {
                    feature.check(row, value)?;
                }
            }
        }
        Ok(Matrix { values: Arc::new(values), rows, columns })
    }

    /// Refuses names that differ from the features', or come in another order, and says where.
    pub(crate) fn check_names<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<()> {
        let names: Vec<&str> = names.collect();
        for feature in &self.features {
            if !names.contains(&&*feature.name) {
                return Err(ModelError::Signature(format!("feature {:?} is missing", feature.name)));
            }
        }
        for (place, name) in names.iter().enumerate() {
            match self.features.get(place) {
                Some(feature) if feature.name == **name => {}
                _ if !self.features.iter().any(|feature| feature.name == **name) => {
                    return Err(ModelError::Signature(format!("column {name:?} is no feature of the model")));
                }
                Some(feature) => {
                    let place = place + 1;
                    return Err(ModelError::Signature(format!(
                        "column {place} is {name:?} where {:?} belongs",
                        feature.name
                    )));
                }
                None => return Err(ModelError::Signature(format!("column {name:?} is there twice"))),
            }
        }
        Ok(())
    }
}

impl Feature {
    /// The column as numbers: codes for categories, null where a value is missing.
    fn values(&self, column: &ArrayRef) -> Result<Float32Array> {
        let wrong = || unusable(&self.name, column.data_type());
        match &self.kind {
            FeatureKind::Category(categories) if is_text(column.data_type()) => {
                let codes: HashMap<&str, f32> =
                    categories.iter().enumerate().map(|(code, name)| (&**name, code as f32)).collect();
                let text = text(column)?;
                Ok(text.as_string::<i32>().iter().map(|name| codes.get(name?).copied()).collect())
            }
            FeatureKind::Category(_) => {
                let kind = column.data_type();
                Err(ModelError::Signature(format!("column {:?} is {kind} where text is needed", self.name)))
            }
            FeatureKind::Number | FeatureKind::Code if is_number(column.data_type()) => {
                let numbers = cast(column, &DataType::Float32).map_err(|_| wrong())?;
                Ok(numbers.as_primitive::<Float32Type>().clone())
            }
            FeatureKind::Number | FeatureKind::Code => {
                let kind = column.data_type();
                Err(ModelError::Signature(format!("column {:?} is {kind} where a number is needed", self.name)))
            }
        }
    }

    /// Refuses what an engine could not use.
    fn check(&self, row: usize, value: f32) -> Result<()> {
        // Above 2²⁴ not every whole number is an f32.
        let is_code = |below: f32| value >= 0.0 && value < below && value.fract().abs() < f32::EPSILON;
        let problem = match &self.kind {
            _ if !value.is_finite() => "is infinite, or too large for 32 bits: make it null or finite",
            FeatureKind::Category(categories) if !is_code(categories.len() as f32) => "is no category's code",
            FeatureKind::Code if !is_code(16_777_216.0) => "is no code: a whole number from 0",
            _ => return Ok(()),
        };
        Err(ModelError::Value { what: format!("feature {:?}", self.name), row, problem })
    }
}

impl Matrix {
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The rows with one more value each, at the end: a copy. `None` is a missing value.
    ///
    /// # Errors
    ///
    /// Another number of values than of rows, a value that is not finite.
    pub fn with_column(&self, column: &[Option<f64>]) -> Result<Self> {
        if column.len() != self.rows {
            return Err(ModelError::Length { what: "a column of features", expected: self.rows, got: column.len() });
        }
        let mut values = Vec::with_capacity(self.rows * (self.columns + 1));
        for (row, (before, value)) in self.values.chunks_exact(self.columns).zip(column).enumerate() {
            #[expect(clippy::cast_possible_truncation, reason = "features are in single precision")]
            let value = value.map_or(f32::NAN, |value| value as f32);
            if value.is_infinite() || (value.is_nan() && column[row].is_some()) {
                let problem = "is not finite";
                return Err(ModelError::Value { what: "a column of features".to_owned(), row, problem });
            }
            values.extend_from_slice(before);
            values.push(value);
        }
        Ok(Self { values: Arc::new(values), rows: self.rows, columns: self.columns + 1 })
    }

    /// The values, shared without a copy.
    pub(crate) fn shared(&self) -> Arc<Vec<f32>> {
        Arc::clone(&self.values)
    }
}

fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn is_number(kind: &DataType) -> bool {
    kind.is_numeric() || matches!(kind, DataType::Boolean)
}

fn text(column: &ArrayRef) -> Result<ArrayRef> {
    cast(column, &DataType::Utf8).map_err(|error| ModelError::Signature(error.to_string()))
}

fn unusable(name: &str, kind: &DataType) -> ModelError {
    ModelError::Signature(format!("column {name:?} is {kind}; features are numbers or text"))
}

/// A column of labels as booleans.
///
/// # Errors
///
/// A column that is neither boolean nor of zeros and ones, a null.
pub fn labels_of(column: &ArrayRef) -> Result<Vec<bool>> {
    let wrong = |row, problem| ModelError::Value { what: "the label".to_owned(), row, problem };
    if let Some(labels) = column.as_any().downcast_ref::<BooleanArray>() {
        return labels.iter().enumerate().map(|(row, label)| label.ok_or_else(|| wrong(row, "is null"))).collect();
    }
    let numbers = cast(column, &DataType::Int32).map_err(|error| ModelError::Signature(error.to_string()))?;
    let numbers = numbers.as_primitive::<Int32Type>().iter().enumerate();
    let label = |(row, label): (usize, Option<i32>)| match label {
        Some(label @ (0 | 1)) => Ok(label == 1),
        Some(_) => Err(wrong(row, "is neither 0 nor 1")),
        None => Err(wrong(row, "is null")),
    };
    numbers.map(label).collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};

    use super::*;

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn training() -> RecordBatch {
        batch(vec![
            ("orders", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]))),
            ("tier", Arc::new(StringArray::from(vec![Some("silver"), Some("gold"), None]))),
        ])
    }

    #[test]
    fn columns_become_rows_with_missing_values() {
        let signature = Signature::of(&training()).unwrap();
        assert_eq!(signature.features()[1].kind, FeatureKind::Category(vec!["gold".to_owned(), "silver".to_owned()]));
        let matrix = signature.matrix(&training()).unwrap();
        assert_eq!((matrix.rows(), matrix.columns()), (3, 2));
        let expected = ["1.0 1.0", "NaN 0.0", "3.0 NaN"];
        let rows: Vec<String> = matrix.values().chunks(2).map(|row| format!("{:?} {:?}", row[0], row[1])).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_category_that_training_never_saw_is_missing() {
        let signature = Signature::of(&training()).unwrap();
        let later = batch(vec![
            ("orders", Arc::new(Int64Array::from(vec![1]))),
            ("tier", Arc::new(StringArray::from(vec!["platinum"]))),
        ]);
        assert!(signature.matrix(&later).unwrap().values()[1].is_nan());
    }

    #[track_caller]
    fn refused(columns: Vec<(&str, ArrayRef)>, because: &str) {
        let error = Signature::of(&training()).unwrap().matrix(&batch(columns)).unwrap_err().to_string();
        assert!(error.contains(because), "{error}");
    }

    #[test]
    fn data_that_does_not_fit_is_refused_by_name() {
        let orders = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
        let tier = || Arc::new(StringArray::from(vec!["gold"])) as ArrayRef;
        refused(vec![("orders", orders())], r#"feature "tier" is missing"#);
        refused(vec![("tier", tier()), ("orders", orders())], r#"column 1 is "tier" where "orders" belongs"#);
        refused(vec![("orders", orders()), ("tier", tier()), ("age", orders())], r#"column "age" is no feature"#);
        refused(vec![("orders", tier()), ("tier", tier())], r#"column "orders" is Utf8 where a number is needed"#);
        refused(vec![("orders", orders()), ("tier", orders())], r#"column "tier" is Int64 where text is needed"#);
        let infinite = Arc::new(Float64Array::from(vec![f64::INFINITY])) as ArrayRef;
        refused(vec![("orders", infinite), ("tier", tier())], r#"feature "orders": row 0 is infinite"#);
    }

    #[test]
    fn features_have_names_of_their_own_and_usable_types() {
        let feature = |name: &str| Feature { name: name.to_owned(), kind: FeatureKind::Number };
        assert!(Signature::new(vec![]).is_err());
        assert!(Signature::new(vec![feature("a"), feature("a")]).unwrap_err().to_string().contains("twice"));
        assert!(Signature::new(vec![feature("spend<30")]).is_err());
        let time = Arc::new(TimestampMicrosecondArray::from(vec![1])) as ArrayRef;
        let error = Signature::of(&batch(vec![("seen_at", time)])).unwrap_err().to_string();
        assert!(error.contains("features are numbers or text"), "{error}");
    }

    #[test]
    fn labels_are_zeros_and_ones() {
        let column = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
        assert_eq!(labels_of(&column(vec![Some(1), Some(0)])).unwrap(), [true, false]);
        assert!(labels_of(&column(vec![Some(1), Some(2)])).unwrap_err().to_string().contains("row 1 is neither"));
        assert!(labels_of(&column(vec![None])).unwrap_err().to_string().contains("row 0 is null"));
    }
}
