//! Whether features know what nobody could know at the moment.
//!
//! Three looks, each at another way: what contracts say changes later without a date; features that are others when what happened later is there to be seen; a
//! feature that alone tells the label as no feature does.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type};
use holdfast_engine::Sees;
use holdfast_models::{Measure, Scores};

use super::hybrid::history::differing;
use super::snapshots::{Asked, Snapshot};
use crate::error::CliError;

/// Sums of the same numbers in another order differ by less than this share.
pub(crate) const TOLERANCE: f32 = 1e-4;

/// Refuses features that rest on columns whose value at a moment nobody knows, unless the spec accepts them by name. Answers the columns that it accepts.
pub(crate) fn check_changed_later(asked: &Asked<'_>) -> Result<Vec<String>, CliError> {
    let section = &asked.spec.file.features;
    let mut origins = asked.past.changed_later(asked.spec.stage(), asked.features);
    if let Some(steps) = asked.steps {
        origins.extend(asked.past.changed_later(&steps.stage, steps.channels()));
    }
    let found: Vec<String> = origins.iter().map(ToString::to_string).collect();
    for accepted in &section.accept_changed_later {
        if !found.contains(accepted.get_ref()) {
            let message = format!(
                "no feature rests on `{}`, or its contract does not say that it is known later: take it out",
                accepted.get_ref()
            );
            return Err(asked.spec.mistake(accepted.span().start, message));
        }
    }
    let accepts = |name: &String| section.accept_changed_later.iter().any(|accepted| accepted.get_ref() == name);
    let (accepted, refused): (Vec<String>, Vec<String>) = found.into_iter().partition(accepts);
    if refused.is_empty() {
        return Ok(accepted);
    }
    let names: Vec<String> = refused.iter().map(|name| format!("{name:?}")).collect();
    let message = format!(
        "features of {} rest on {}, which their contracts say change later without a date: a moment in the past is shown what they became; \
         leave the columns out (`exclude`), or write `accept_changed_later = [{}]` and know that the measures may be too good",
        asked.spec.stage(),
        refused.join(", "),
        names.join(", ")
    );
    Err(asked.spec.mistake(section.stage.span().start, message))
}

/// Refuses features that are others once what happened after the moment may be seen: their query looks past `now()`.
pub(crate) async fn check_future(asked: &Asked<'_>, known: &Snapshot) -> Result<(), CliError> {
    let population: HashMap<u64, bool> = known.customers.iter().copied().zip(known.labels.iter().copied()).collect();
    let later = asked.snapshot(known.at, &population, Sees::LaterToo).await?;
    let place: HashMap<u64, usize> =
        later.customers.iter().enumerate().map(|(place, customer)| (*customer, place)).collect();
    let pairs: Vec<(usize, usize)> =
        known.customers.iter().enumerate().filter_map(|(row, customer)| Some((row, *place.get(customer)?))).collect();
    let mut seeing = Vec::new();
    for (name, (then, later)) in
        asked.features.iter().zip(known.features.columns().iter().zip(later.features.columns()))
    {
        let differing = pairs.iter().filter(|(then_row, later_row)| !same(then, *then_row, later, *later_row)).count();
        if differing > 0 {
            seeing.push(format!("{name} ({differing} of {} customers)", pairs.len()));
        }
    }
    if pairs.len() != known.customers.len() || pairs.len() != later.customers.len() {
        seeing.push("which customers there are".to_owned());
    }
    let others = differing(&known.history, &later.history);
    if let Some(steps) = asked.steps.filter(|_| others > 0) {
        seeing.push(format!("the steps of {} ({others} customers)", steps.stage));
    }
    if seeing.is_empty() {
        return Ok(());
    }
    Err(CliError::Training(format!(
        "features see the future: as of {}, with what happened later to be seen, these are others: {}; compare every time in {} and the stages it reads with now(), \
         or declare `known_at` in the contract of the column they read",
        known.at.date_naive(),
        seeing.join(", "),
        asked.spec.stage(),
    )))
}

fn same(left: &ArrayRef, left_row: usize, right: &ArrayRef, right_row: usize) -> bool {
    match (left.is_null(left_row), right.is_null(right_row)) {
        (false, false) => {}
        (left, right) => return left == right,
    }
    if *left.data_type() == DataType::Utf8 {
        return left.as_string::<i32>().value(left_row) == right.as_string::<i32>().value(right_row);
    }
    let (Some(left), Some(right)) = (left.as_primitive_opt::<Float32Type>(), right.as_primitive_opt::<Float32Type>())
    else {
        return false;
    };
    let (left, right) = (left.value(left_row), right.value(right_row));
    (left - right).abs() <= TOLERANCE * left.abs().max(right.abs()).max(1.0) || (left.is_nan() && right.is_nan())
}

/// Refuses a feature that alone has an AUC above the spec's bar: it knows what it cannot know. Answers the strongest feature with its AUC, 0.5 and more.
///
/// # Errors
/// Such a feature; labels of one class.
pub(crate) fn check_single_features(
    asked: &Asked<'_>,
    features: &RecordBatch,
    labels: &[bool],
) -> Result<Option<(String, f64)>, CliError> {
    let bar = &asked.spec.file.checks.single_feature_auc_max;
    let mut strongest: Option<(String, f64)> = None;
    for (name, column) in asked.features.iter().zip(features.columns()) {
        let Some(values) = column.as_primitive_opt::<Float32Type>() else { continue };
        // A missing value may tell as much as any other.
        let scores: Vec<f64> = values
            .iter()
            .map(|value| value.filter(|value| value.is_finite()).map_or(f64::from(f32::MIN), f64::from))
            .collect();
        let Some(auc) = Scores::ranking(&scores, labels)?.measure(Measure::Auc)? else { continue };
        let auc = auc.max(1.0 - auc);
        if strongest.as_ref().is_none_or(|(_, most)| auc > *most) {
            strongest = Some((name.clone(), auc));
        }
    }
    match &strongest {
        Some((name, auc)) if *auc > *bar.get_ref() => Err(CliError::Training(format!(
            "the feature `{name}` of {} alone has an AUC of {auc:.3} for the label, above the bar of {}: it knows what nobody could know at the moment; \
             name it in `exclude`, or raise `single_feature_auc_max` under [checks] in {} where it is honest",
            asked.spec.stage(),
            bar.get_ref(),
            asked.spec.path.display(),
        ))),
        _ => Ok(strongest),
    }
}
