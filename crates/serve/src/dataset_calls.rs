//! Training sets: made of a spine that a client sends, recorded in the lake, and given again to who had them made.

use std::time::Duration;

use arrow_flight::FlightData;
use futures::{StreamExt, TryStreamExt};
use holdfast_access::{Principal, Touched};
use holdfast_engine::FeatureReference;
use holdfast_feature_store::{
    Asked, DatasetRows, Datasets, HistoricalOptions, Retrieval, SentSpine, TrainingSetRequest, make_dataset_rows,
    replay_dataset_rows,
};
use holdfast_lake::Lake;
use tonic::Streaming;

use crate::answer::Answer;
use crate::feature_calls::{asked, options_of, sent_rows};
use crate::feature_rights::{FeatureGuard, SeenFeatures};
use crate::generated::v1::{CreateDataset, GetDataset};
use crate::wire::wire_schema;
use crate::{Result, ServeError, ServeSettings};

/// A training set that is asked for, as far as the caller may have it.
pub(crate) struct Wanted {
    asked: Asked,
    label: Option<(String, Duration)>,
    open_horizon: bool,
    options: HistoricalOptions,
    seen: Vec<SeenFeatures>,
}

impl Wanted {
    /// Finds out what is asked for, before the spine is read.
    ///
    /// # Errors
    /// What is not there, or not for the caller.
    pub(crate) async fn of(lake: &Lake, command: CreateDataset, guard: &FeatureGuard<'_>) -> Result<Self> {
        let features = command.features.unwrap_or_default();
        let asked = asked(&features.feature_service, &features.features)?;
        let options = options_of(&features)?;
        let label = match (command.label.as_str(), command.horizon_s) {
            ("", 0) => None,
            (label, 1..) if !label.is_empty() => Some((label.to_owned(), Duration::from_secs(command.horizon_s))),
            _ => {
                let text = "a label has a horizon of some seconds, and a horizon has a label: give both, or neither";
                return Err(ServeError::Request(text.to_owned()));
            }
        };
        let mut seen = vec![guard.of_retrieval(&Retrieval::of(lake, &asked).await?, options.full_names)?];
        if let Some((label, _)) = &label {
            seen.push(seen_of(lake, [label], guard, options.full_names).await?);
        }
        Ok(Self { asked, label, open_horizon: command.open_horizon, options, seen })
    }

    /// What is read for it.
    pub(crate) fn touched(&self) -> Touched {
        let mut all = Touched::default();
        for Touched { tables, columns } in self.seen.iter().map(SeenFeatures::touched) {
            all.tables.extend(tables);
            all.columns.extend(columns);
        }
        all
    }

    /// Takes the spine, makes and records the training set, and begins to answer with its rows.
    ///
    /// # Errors
    /// A spine that is too large or cannot be used; what the lake answers.
    pub(crate) async fn made(
        self,
        lake: &Lake,
        principal: &Principal,
        (first, messages): (FlightData, Streaming<FlightData>),
        settings: &ServeSettings,
    ) -> Result<Answer> {
        let (schema, rows) = sent_rows(first, messages).await?;
        let sent = SentSpine::of_rows(&schema, rows, settings.max_spine_bytes).await?;
        let request = TrainingSetRequest {
            asked: self.asked,
            label: self.label,
            open_horizon: self.open_horizon,
            spine: sent.spine.clone(),
            options: self.options,
            memory_bytes: settings.feature_memory_bytes,
            made_by: Some(maker(principal)),
        };
        Ok(answer(make_dataset_rows(lake, &request).await?, self.seen))
    }
}

/// The rows of a training set that the caller had made; of any, where there is no policy.
///
/// # Errors
/// [`ServeError::Forbidden`] for others: its spine is theirs. What is not there, or not for the caller any more.
pub(crate) async fn again(
    lake: &Lake,
    command: &GetDataset,
    (principal, has_policy): (&Principal, bool),
    settings: &ServeSettings,
    guard: &FeatureGuard<'_>,
) -> Result<Answer> {
    let dataset = Datasets::new(lake).get(&command.dataset_id).await?;
    if has_policy && dataset.made_by != Some(maker(principal)) {
        return Err(ServeError::Forbidden(
            "a training set is given again to who had it made: make it with your own spine, the id tells whether it is the same",
        ));
    }
    let full_names = dataset.options.full_names;
    let mut seen = vec![seen_of(lake, &dataset.features, guard, full_names).await?];
    if let Some(label) = &dataset.label {
        seen.push(seen_of(lake, &label.features, guard, full_names).await?);
    }
    let rows = replay_dataset_rows(lake, &dataset.id, command.skip_rows, settings.feature_memory_bytes).await?;
    Ok(answer(rows, seen))
}

/// Two of one name that came in otherwise are two.
fn maker(principal: &Principal) -> String {
    format!("{}/{}", principal.by.as_str(), principal.name)
}

async fn seen_of(
    lake: &Lake,
    references: impl IntoIterator<Item = &String>,
    guard: &FeatureGuard<'_>,
    full_names: bool,
) -> Result<SeenFeatures> {
    let references = references.into_iter().map(|reference| reference.parse::<FeatureReference>());
    let asked = Asked::Features(references.collect::<Result<_, _>>().map_err(ServeError::Request)?);
    guard.of_retrieval(&Retrieval::of(lake, &asked).await?, full_names)
}

fn answer(made: DatasetRows, seen: Vec<SeenFeatures>) -> Answer {
    let mut touched = Touched::default();
    for Touched { tables, columns } in seen.iter().map(SeenFeatures::touched) {
        touched.tables.extend(tables);
        touched.columns.extend(columns);
    }
    let schema = wire_schema(&made.schema);
    let rows = made.batches.map_err(ServeError::from).and_then(move |rows| {
        let masked = seen.iter().try_fold(rows, |rows, seen| seen.over(&rows));
        std::future::ready(masked)
    });
    Answer::batches(schema, rows.boxed()).reading(touched)
}
