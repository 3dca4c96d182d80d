//! Calls of the feature store: features as of the moments of a spine, features from memory, and what there is.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_flight::FlightData;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use holdfast_engine::{FeatureReference, Registry, named};
use holdfast_feature_store::{
    Asked, Datasets, FeatureStoreError, HistoricalOptions, OnlineOptions, OnlineStore, Retrieval, ValueStatus,
    historical_features,
};
use holdfast_lake::Lake;
use prost::Message;
use serde_json::json;
use tonic::Streaming;

use crate::answer::Answer;
use crate::feature_rights::{AskedOfView, FeatureGuard};
use crate::generated::v1::{GetHistoricalFeatures, GetOnlineFeatures, KeyColumn, StatusColumns};
use crate::put::decode::{Decoded, Decoder};
use crate::question::{message_name, unwrapped};
use crate::wire::{to_wire, wire_schema};
use crate::{Result, ServeError, ServeSettings};

/// What the dictionaries of a spine may hold.
const DICTIONARY_BYTES_MAX: usize = 64 << 20;

/// The rows that a client sends.
type Spine = BoxStream<'static, Result<RecordBatch, ArrowError>>;

/// Begins to answer a spine: its first messages are read, its columns are checked, and nothing of the join is done yet.
pub(crate) async fn historical(
    lake: &Lake,
    mut messages: Streaming<FlightData>,
    settings: &ServeSettings,
    guard: &FeatureGuard<'_>,
) -> Result<Answer> {
    let first = next(&mut messages).await?.ok_or_else(|| {
        ServeError::Request(
            "nothing came: send GetHistoricalFeatures in the descriptor, and the spine behind it".to_owned(),
        )
    })?;
    let command = first.flight_descriptor.as_ref().map(|descriptor| descriptor.cmd.clone()).unwrap_or_default();
    let command = historical_command(&command)?;
    let asked = asked(&command.feature_service, &command.features)?;
    let options = HistoricalOptions {
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
    };
    // What is not there is told before the spine is sent.
    let retrieval = Retrieval::of(lake, &asked).await?;
    let asked_of = retrieval.views.iter().map(|view| AskedOfView {
        view: &view.view.view,
        label: &view.label,
        features: &view.features,
    });
    let seen = guard.seen(asked_of, options.full_names)?;
    let (schema, spine) = spine(first, messages).await?;
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

/// Answers keys from memory. Where no run is in memory yet, the newest is taken there first.
pub(crate) async fn online(
    store: &OnlineStore,
    command: &GetOnlineFeatures,
    settings: &ServeSettings,
    guard: &FeatureGuard<'_>,
) -> Result<Answer> {
    if store.run() == 0 {
        store.refresh().await?;
    }
    let asked = asked(&command.feature_service, &command.features)?;
    let views = store.views_of(&asked)?;
    let asked_of = views.iter().map(|(view, label, features)| AskedOfView { view, label, features });
    let seen = guard.seen(asked_of, command.full_feature_names)?;
    let keys = keys(&command.keys, store, &asked, settings.max_customer_ids)?;
    let options = OnlineOptions {
        full_names: command.full_feature_names,
        status: status(command.status)?,
        event_timestamps: command.event_timestamps,
        at: store.now(),
    };
    let rows = seen.over(&store.answer(&asked, &keys, &options)?.rows)?;
    let schema = wire_schema(&rows.schema());
    Ok(Answer::ready_batch(to_wire(&rows, &schema)?).reading(seen.touched()))
}

/// The views and services of the lake, as JSON.
pub(crate) async fn list(lake: &Lake, store: &OnlineStore) -> Result<Bytes> {
    let registry = Registry::new(lake);
    let (views, services) = (registry.views().await?, registry.services().await?);
    let online: HashMap<String, u64> = store.views().into_iter().collect();
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
                "rows_in_memory": online.get(&version.view.name),
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
    Ok(json!({ "views": views, "services": services }).to_string().into())
}

/// A view or service, `NAME` or `NAME@v3`, as JSON.
pub(crate) async fn describe(lake: &Lake, name: &[u8]) -> Result<Bytes> {
    let name = text(name, "the name of a view or service")?;
    let (name, version) = named(name).map_err(ServeError::Request)?;
    let registry = Registry::new(lake);
    if !registry.service_versions(&name).await?.is_empty() {
        return as_json(&registry.service(&name, version).await?);
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

fn historical_command(command: &[u8]) -> Result<GetHistoricalFeatures> {
    let any = unwrapped(command)?;
    if message_name(&any) != <GetHistoricalFeatures as prost::Name>::full_name() {
        return Err(ServeError::Unsupported("DoExchange answers GetHistoricalFeatures alone".to_owned()));
    }
    GetHistoricalFeatures::decode(any.value)
        .map_err(|_| ServeError::Request("the GetHistoricalFeatures cannot be decoded: it was cut short".to_owned()))
}

fn asked(service: &str, features: &[String]) -> Result<Asked> {
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

fn status(status: i32) -> Result<ValueStatus> {
    match StatusColumns::try_from(status) {
        Ok(StatusColumns::View) => Ok(ValueStatus::View),
        Ok(StatusColumns::Value) => Ok(ValueStatus::Value),
        Ok(StatusColumns::None) => Ok(ValueStatus::None),
        Err(_) => Err(ServeError::Request(format!("{status} is no kind of status columns"))),
    }
}

/// The keys as columns, with the names and types of the views' keys.
fn keys(columns: &[KeyColumn], store: &OnlineStore, asked: &Asked, rows_max: usize) -> Result<RecordBatch> {
    let expected = store.keys_of(asked)?;
    let names = || expected.iter().map(|key| key.name().clone()).collect::<Vec<_>>().join(", ");
    let rows = columns.iter().map(|column| column.texts.len().max(column.integers.len())).max().unwrap_or(0);
    if rows > rows_max {
        return Err(ServeError::Request(format!("{rows} keys were asked for, and may be {rows_max}: ask in parts")));
    }
    let (mut fields, mut arrays): (Vec<Field>, Vec<ArrayRef>) = (Vec::new(), Vec::new());
    for key in &expected {
        let is_it = |column: &&KeyColumn| column.name == *key.name() || (column.name.is_empty() && expected.len() == 1);
        let Some(column) = columns.iter().find(is_it) else {
            return Err(ServeError::Request(format!(
                "there is no key column `{}`: the views have {}",
                key.name(),
                names()
            )));
        };
        let array: ArrayRef = match key.data_type() {
            DataType::Int64 if column.texts.is_empty() => Arc::new(Int64Array::from(column.integers.clone())),
            DataType::Utf8 if column.integers.is_empty() => Arc::new(StringArray::from(column.texts.clone())),
            wanted => {
                let what = if *wanted == DataType::Int64 { "integers" } else { "texts" };
                return Err(ServeError::Request(format!("the keys of `{}` are {what}", key.name())));
            }
        };
        if array.len() != rows {
            return Err(ServeError::Request("the key columns have different lengths".to_owned()));
        }
        fields.push(key.as_ref().clone());
        arrays.push(array);
    }
    if columns.len() > expected.len() {
        return Err(ServeError::Request(format!("there are more key columns than the views have: {}", names())));
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}

/// The spine behind a first message: its columns, and its rows as they arrive.
async fn spine(first: FlightData, mut messages: Streaming<FlightData>) -> Result<(SchemaRef, Spine)> {
    let mut decoder = Decoder::new(DICTIONARY_BYTES_MAX);
    let mut message = Some(first);
    let schema = loop {
        let Some(FlightData { data_header, data_body, .. }) = message else {
            return Err(ServeError::Request("the stream ended before the spine's schema came".to_owned()));
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
        .map_err(|status| ServeError::Request(format!("the spine ended early: {}", status.message())))
}

impl From<FeatureStoreError> for ServeError {
    fn from(error: FeatureStoreError) -> Self {
        Self::Features(Box::new(error))
    }
}
