//! `p_alive`, `expected_purchases` and `clv` in SQL: what the champion of the model of repeat buying says of a customer, who is three or four numbers.
//!
//! ```sql
//! select customer_id, p_alive(repeats, last_weeks, age_weeks), clv(repeats, last_weeks, age_weeks, mean_amount)
//! from profile.repeat_buying
//! ```

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::common::{Result, exec_err};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use holdfast_engine::{RowFunctions, SubjectVersion};
use holdfast_models::lifetime::History;

use super::LIFETIME;
use super::stored::{LoadedLifetime, Parameters};

/// Who knows of repeat buying in a session.
#[derive(Debug, Clone)]
pub(crate) enum Buyers {
    Champion(Arc<LoadedLifetime>),
    /// Nobody answers: why, and what to do.
    Silent(String),
}

impl Buyers {
    /// Adds the functions to those of a session.
    pub(crate) fn add_to(self, functions: &mut RowFunctions) {
        functions.versions.insert(LIFETIME.to_owned(), self.version());
        let buyers = Arc::new(self);
        for what in [What::Alive, What::Purchases, What::Value] {
            let function = Arc::new(ScalarUDF::from(OfBuyer::new(what, Arc::clone(&buyers))));
            functions.of_values.push((function, LIFETIME.to_owned()));
        }
    }

    fn version(&self) -> SubjectVersion {
        match self {
            Self::Champion(champion) => {
                let version = &champion.version;
                SubjectVersion {
                    told: format!("model {LIFETIME}: version {}", version.version),
                    exact: format!("{} {}", version.version, version.artefact_hash),
                }
            }
            Self::Silent(_) => SubjectVersion { told: format!("model {LIFETIME}: nobody"), exact: "nobody".to_owned() },
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    /// The probability that the customer has not stopped buying.
    Alive,
    /// Purchases expected in so many units.
    Purchases,
    /// The margin to come, discounted.
    Value,
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            Self::Alive => "p_alive",
            Self::Purchases => "expected_purchases",
            Self::Value => "clv",
        }
    }

    /// Repeats, time of the last, time observed; and units ahead, or the mean amount.
    const fn arguments(self) -> usize {
        match self {
            Self::Alive => 3,
            Self::Purchases | Self::Value => 4,
        }
    }
}

#[derive(Debug)]
struct OfBuyer {
    what: What,
    buyers: Arc<Buyers>,
    signature: Signature,
}

impl OfBuyer {
    fn new(what: What, buyers: Arc<Buyers>) -> Self {
        let signature = Signature::uniform(what.arguments(), vec![DataType::Float64], Volatility::Immutable);
        Self { what, buyers, signature }
    }
}

/// Sessions over the same model have the same functions.
impl PartialEq for OfBuyer {
    fn eq(&self, other: &Self) -> bool {
        self.what == other.what && Arc::ptr_eq(&self.buyers, &other.buyers)
    }
}

impl Eq for OfBuyer {}

impl Hash for OfBuyer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.what.hash(state);
        Arc::as_ptr(&self.buyers).hash(state);
    }
}

impl ScalarUDFImpl for OfBuyer {
    fn name(&self) -> &'static str {
        self.what.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let columns: Vec<ArrayRef> =
            arguments.args.iter().map(|argument| argument.to_array(rows)).collect::<Result<_>>()?;
        let columns: Vec<&Float64Array> = columns.iter().map(|column| column.as_primitive::<Float64Type>()).collect();
        let mut said: Vec<Option<f64>> = Vec::with_capacity(rows);
        for row in 0..rows {
            let values: Option<Vec<f64>> =
                columns.iter().map(|column| column.is_valid(row).then(|| column.value(row))).collect();
            said.push(match values {
                Some(values) => Some(self.said(&values, row)?),
                // What is not known of a customer is not known of what is to come.
                None => None,
            });
        }
        Ok(ColumnarValue::Array(Arc::new(said.into_iter().collect::<Float64Array>())))
    }
}

impl OfBuyer {
    /// What the champion says of a customer.
    fn said(&self, values: &[f64], row: usize) -> Result<f64> {
        let model: &Parameters = match self.buyers.as_ref() {
            Buyers::Champion(champion) => &champion.parameters,
            Buyers::Silent(why) => return exec_err!("{why}"),
        };
        let [repeats, last, observed, rest @ ..] = values else {
            return exec_err!("{} takes repeats, the time of the last and the time observed", self.what.name());
        };
        if !(*repeats >= 0.0 && *repeats <= 1e6 && repeats.fract().abs() < f64::EPSILON) {
            return exec_err!("{}: repeats are a whole number from 0 to 1000000", self.what.name());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "looked at above")]
        let history = History::new(*repeats as u32, *last, *observed, row);
        let failed = |error: String| DataFusionError::Execution(format!("{}: {error}", self.what.name()));
        let history = history.map_err(|error| failed(error.to_string()))?;
        let rest = rest.first().copied().unwrap_or_default();
        if !(rest >= 0.0 && rest.is_finite()) {
            let what = if self.what == What::Value { "the mean amount" } else { "the number of units" };
            return exec_err!("{}: {what} is below 0 or not finite", self.what.name());
        }
        match self.what {
            What::Alive => Ok(model.alive(&history)),
            What::Purchases => Ok(model.expected(&history, rest)),
            What::Value => model.value(&history, rest).map_err(|error| failed(error.to_string())),
        }
    }
}
