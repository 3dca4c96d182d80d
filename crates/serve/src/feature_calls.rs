//! Calls of the feature store: features as of the moments of a spine, features from memory, and what there is.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow_flight::FlightData;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use holdfast_engine::{FeatureReference, Registry, named};
use holdfast_feature_store::{
    Asked, Datasets, FeatureStoreError, HistoricalOptions, OnlineStore, Retrieval, ValueStatus, ViewInMemory,
    historical_features,
};
use holdfast_lake::Lake;
use prost::Message;
use serde_json::json;
use tonic::Streaming;

use crate::answer::Answer;
use crate::feature_rights::FeatureGuard;
use crate::generated::v1::{CreateDataset, GetHistoricalFeatures, GetOnlineFeatures, ScoreRows, StatusColumns};
use crate::put::decode::{Decoded, Decoder};
use crate::question::{message_name, unwrapped};
use crate::wire::wire_schema;
use crate::{Result, ServeError, ServeSettings};

/// What the dictionaries of a spine may hold.
const DICTIONARY_BYTES_MAX: usize = 64 << 20;

/// The rows that a client sends.
pub(crate) type SentRows = BoxStream<'static, Result<RecordBatch, ArrowError>>;

/// What an exchange is about: what its first message says.
#[derive(Debug)]
pub(crate) enum Exchange {
    /// A spine comes, its rows with features go back.
    Historical(GetHistoricalFeatures),
    /// A spine comes, a training set is made of it and goes back.
    Dataset(CreateDataset),
    /// Keys come for as long as the client likes, a batch each time; what is in memory for them goes back.
    Online(GetOnlineFeatures),
    /// Rows come for as long as the client likes, a batch each time; what a model says of them goes back.
    Scored(ScoreRows),
}

impl Exchange {
    /// The word for spans and metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Historical(_) => "get_historical_features",
            Self::Dataset(_) => "create_dataset",
            Self::Online(_) => "get_online_features",
            Self::Scored(_) => "score_rows",
        }
    }

    /// Reads the first message of a client.
    pub(crate) async fn begin(messages: &mut Streaming<FlightData>) -> Result<(Self, FlightData)> {
        let first = next(messages).await?.ok_or_else(|| {
            ServeError::Request(
                "nothing came: send GetHistoricalFeatures, CreateDataset, GetOnlineFeatures or ScoreRows in the descriptor, and the rows behind it"
                    .to_owned(),
            )
        })?;
        let command = first.flight_descriptor.as_ref().map(|descriptor| descriptor.cmd.clone()).unwrap_or_default();
        let any = unwrapped(&command)?;
        let cut = |name: &str| ServeError::Request(format!("the {name} cannot be decoded: it was cut short"));
        let exchange = match message_name(&any) {
            name if name == <GetHistoricalFeatures as prost::Name>::full_name() => {
                GetHistoricalFeatures::decode(any.value)
                    .map(Self::Historical)
                    .map_err(|_| cut("GetHistoricalFeatures"))?
            }
            name if name == <CreateDataset as prost::Name>::full_name() => {
                CreateDataset::decode(any.value).map(Self::Dataset).map_err(|_| cut("CreateDataset"))?
            }
            name if name == <GetOnlineFeatures as prost::Name>::full_name() => {
                GetOnlineFeatures::decode(any.value).map(Self::Online).map_err(|_| cut("GetOnlineFeatures"))?
            }
            name if name == <ScoreRows as prost::Name>::full_name() => {
                ScoreRows::decode(any.value).map(Self::Scored).map_err(|_| cut("ScoreRows"))?
            }
            _ => {
                return Err(ServeError::Unsupported(
                    "DoExchange answers GetHistoricalFeatures, CreateDataset, GetOnlineFeatures and ScoreRows alone"
                        .to_owned(),
                ));
            }
        };
        Ok((exchange, first))
    }
}

/// Begins to answer a spine: its columns are checked, and nothing of the join is done yet.
pub(crate) async fn historical(
    lake: &Lake,
    command: GetHistoricalFeatures,
    (first, messages): (FlightData, Streaming<FlightData>),
    settings: &ServeSettings,
    guard: &FeatureGuard<'_>,
) -> Result<Answer> {
    let (asked, options) = (asked(&command.feature_service, &command.features)?, options_of(&command)?);
    // What is not there is told before the spine is sent.
    let retrieval = Retrieval::of(lake, &asked).await?;
    let seen = guard.of_retrieval(&retrieval, options.full_names)?;
    let (schema, spine) = sent_rows(first, messages).await?;
    let answer = historical_features(
        lake,
        &retrieval,
        None,
        (&schema, spine),
        &options,
        settings.feature_memory_bytes,
        HashMap::new(),
    )?;
    let schema = wire_schema(answer.schema());
    let touched = seen.touched();
    let rows = answer.map_err(ServeError::from).and_then(move |rows| std::future::ready(seen.over(&rows)));
    Ok(Answer::batches(schema, rows.boxed()).reading(touched))
}

/// How a spine is to be joined.
pub(crate) fn options_of(command: &GetHistoricalFeatures) -> Result<HistoricalOptions> {
    Ok(HistoricalOptions {
        timestamp: match command.timestamp.as_str() {
            "" => HistoricalOptions::default().timestamp,
            named => named.to_owned(),
        },
        strict: command.strict,
        ignore_known_at: command.ignore_known_at,
        full_names: command.full_feature_names,
        status: status(command.status)?,
        event_timestamps: command.event_timestamps,
        zoneless_is_utc: command.timestamps_are_utc,
    })
}

/// The views and services of the lake, as JSON.
pub(crate) async fn list(lake: &Lake, store: &OnlineStore) -> Result<Bytes> {
    let registry = Registry::new(lake);
    let (views, services) = (registry.views().await?, registry.services().await?);
    let on_demand = registry.on_demands().await?;
    let online: HashMap<String, ViewInMemory> =
        store.views_in_memory().into_iter().map(|view| (view.name.clone(), view)).collect();
    let views: Vec<_> = views
        .iter()
        .map(|version| {
            json!({
                "view": version.view.name,
                "version": version.version,
                "table": version.view.table,
                "entity": version.view.entity,
                "ttl_s": version.view.ttl_s,
                "online": version.view.online,
                "rows_in_memory": online.get(&version.view.name).map(|view| view.rows),
                "buckets": online.get(&version.view.name).map(|view| view.buckets),
                "features": version.view.features,
                "description": version.view.description,
                "owner": version.view.owner,
            })
        })
        .collect();
    let services: Vec<_> = services
        .iter()
        .map(|version| {
            json!({
                "service": version.service.name,
                "version": version.version,
                "features": version.service.features,
                "description": version.service.description,
                "owner": version.service.owner,
            })
        })
        .collect();
    let on_demand: Vec<_> = on_demand
        .iter()
        .map(|version| {
            json!({
                "view": version.view.name,
                "version": version.version,
                "request": version.view.request,
                "features": version.view.features,
                "inputs": version.view.inputs,
                "description": version.view.description,
                "owner": version.view.owner,
            })
        })
        .collect();
    let share = json!({ "node": store.share().node(), "of": store.share().of() });
    Ok(json!({ "views": views, "on_demand": on_demand, "services": services, "online_share": share })
        .to_string()
        .into())
}

/// A view, an on-demand view or a service, `NAME` or `NAME@v3`, as JSON.
pub(crate) async fn describe(lake: &Lake, name: &[u8]) -> Result<Bytes> {
    let name = text(name, "the name of a view or service")?;
    let (name, version) = named(name).map_err(ServeError::Request)?;
    let registry = Registry::new(lake);
    if !registry.service_versions(&name).await?.is_empty() {
        return as_json(&registry.service(&name, version).await?);
    }
    if !registry.on_demand_versions(&name).await?.is_empty() {
        return as_json(&registry.on_demand(&name, version).await?);
    }
    as_json(&registry.view(&name, version).await?)
}

/// The training sets of the lake, as JSON; with a body, the one that it names.
pub(crate) async fn datasets(lake: &Lake, id: &[u8]) -> Result<Bytes> {
    let datasets = Datasets::new(lake);
    match text(id, "the id of a training set")? {
        "" => as_json(&datasets.list().await?),
        id => as_json(&datasets.get(id).await?),
    }
}

fn as_json(value: &impl serde::Serialize) -> Result<Bytes> {
    let body =
        serde_json::to_vec(value).map_err(|error| ServeError::Arrow(ArrowError::JsonError(error.to_string())))?;
    Ok(body.into())
}

fn text<'a>(body: &'a [u8], what: &str) -> Result<&'a str> {
    let text = std::str::from_utf8(body).map_err(|_| ServeError::Request(format!("the body is {what}, in UTF-8")))?;
    Ok(text.trim())
}

pub(crate) fn asked(service: &str, features: &[String]) -> Result<Asked> {
    match (service, features) {
        ("", []) => Err(ServeError::Request("name a feature_service or features".to_owned())),
        (service, []) => Ok(Asked::Service(service.to_owned())),
        ("", features) => {
            let references = features.iter().map(|reference| reference.parse::<FeatureReference>());
            Ok(Asked::Features(references.collect::<std::result::Result<_, _>>().map_err(ServeError::Request)?))
        }
        _ => Err(ServeError::Request("name either a feature_service or features, not both".to_owned())),
    }
}

pub(crate) fn status(status: i32) -> Result<ValueStatus> {
    match StatusColumns::try_from(status) {
        Ok(StatusColumns::View) => Ok(ValueStatus::View),
        Ok(StatusColumns::Value) => Ok(ValueStatus::Value),
        Ok(StatusColumns::None) => Ok(ValueStatus::None),
        Err(_) => Err(ServeError::Request(format!("{status} is no kind of status columns"))),
    }
}

/// What comes behind a first message: its columns, and its rows as they arrive.
pub(crate) async fn sent_rows(first: FlightData, mut messages: Streaming<FlightData>) -> Result<(SchemaRef, SentRows)> {
    let mut decoder = Decoder::new(DICTIONARY_BYTES_MAX);
    let mut message = Some(first);
    let schema = loop {
        let Some(FlightData { data_header, data_body, .. }) = message else {
            return Err(ServeError::Request("the stream ended before the schema of its rows came".to_owned()));
        };
        // The descriptor can come by itself.
        if !data_header.is_empty() {
            match decoder.decode(data_header, data_body).await? {
                (next, Decoded::Schema(schema)) => {
                    decoder = next;
                    break schema;
                }
                (next, _) => decoder = next,
            }
        }
        message = next(&mut messages).await?;
    };
    let rows = futures::stream::try_unfold((messages, Some(decoder)), |(mut messages, decoder)| async move {
        let Some(mut decoder) = decoder else { return Ok::<_, ServeError>(None) };
        loop {
            let Some(FlightData { data_header, data_body, .. }) = next(&mut messages).await? else { return Ok(None) };
            if data_header.is_empty() {
                continue;
            }
            let (next, decoded) = decoder.decode(data_header, data_body).await?;
            decoder = next;
            if let Decoded::Batch(batch) = decoded {
                return Ok(Some((batch, (messages, Some(decoder)))));
            }
        }
    });
    let named = Arc::clone(&schema);
    let rows = rows.map_err(|error| ArrowError::ExternalError(Box::new(error))).and_then(move |batch| {
        let named = Arc::clone(&named);
        async move { batch.with_schema(named) }
    });
    Ok((schema, rows.boxed()))
}

async fn next(messages: &mut Streaming<FlightData>) -> Result<Option<FlightData>> {
    messages
        .message()
        .await
        .map_err(|status| ServeError::Request(format!("the stream ended early: {}", status.message())))
}

impl From<FeatureStoreError> for ServeError {
    fn from(error: FeatureStoreError) -> Self {
        Self::Features(Box::new(error))
    }
}
