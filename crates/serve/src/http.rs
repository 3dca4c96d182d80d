//! Features from memory over HTTP, in the shape of Feast's server: for callers without Arrow, and for Feast's remote online store.
//!
//! `POST /get-online-features` with `{"entities": {"customer_id": ["c_1"]}, "features": ["view:feature"]}`, or `"feature_service"` instead of features. The answer has a result for
//! each key column and feature, with a value, a status and an event timestamp for each entity.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use arrow::util::display::array_value_to_string;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use holdfast_feature_store::{OnlineColumns, ValueStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::audited::{Audited, HTTP};
use crate::connections::{Door, Peer};
use crate::feature_calls::asked;
use crate::feature_rights::FeatureGuard;
use crate::generated::v1::KeyColumn;
use crate::online_calls::{answered, keys, plan_of};
use crate::rights::{Caller, Guard};
use crate::runs::Runs;
use crate::stream::within;
use crate::telemetry::{Call, OK, Sent, outcome};
use crate::{Result, ServeError, ServeSettings};

/// The longest body; 10,000 keys of a hundred bytes are a megabyte.
const BODY_BYTES_MAX: usize = 16 << 20;

/// What answers need.
pub(crate) struct Face {
    pub(crate) runs: Arc<Runs>,
    pub(crate) settings: Arc<ServeSettings>,
    pub(crate) guard: Guard,
}

/// Answers until told to stop; what is being answered then is answered.
pub(crate) async fn answer_until(door: Door, face: Face, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/get-online-features", post(online_features))
        .route("/health", get(async || StatusCode::OK))
        .with_state(Arc::new(face))
        .into_make_service_with_connect_info::<Peer>();
    axum::serve(door, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// As Feast's server takes it.
#[derive(Deserialize)]
struct OnlineRequest {
    entities: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    feature_service: Option<String>,
    #[serde(default)]
    features: Vec<String>,
    #[serde(default)]
    full_feature_names: bool,
    #[serde(default)]
    include_feature_view_version_metadata: bool,
}

#[derive(Serialize)]
struct OnlineResponse {
    metadata: Metadata,
    results: Vec<Column>,
}

#[derive(Serialize)]
struct Metadata {
    feature_names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    feature_view_metadata: Vec<ViewMetadata>,
}

#[derive(Serialize)]
struct ViewMetadata {
    name: String,
    version: u32,
}

/// A key column or a feature, with all entities.
#[derive(Serialize)]
struct Column {
    values: Vec<Value>,
    statuses: Vec<String>,
    event_timestamps: Vec<String>,
}

async fn online_features(
    State(face): State<Arc<Face>>,
    ConnectInfo(Peer(line)): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let call = Call::begin("POST /get-online-features");
    let timeout = face.settings.query_timeout;
    let work = async {
        let (parts, body) = request.into_parts();
        line.has_room()?;
        let caller = face.caller(&parts.headers).await?;
        let access = &face.guard.access;
        let _open = line.call(access, &caller.principal)?;
        let mut audited = Audited::new(access, &caller.principal, HTTP, "get_online_features");
        match answer(&face, &caller, body, &mut audited).await {
            Ok((rows, body)) => {
                audited.ended(rows, OK);
                Ok((rows, body))
            }
            Err(error) => Err(audited.refused(error)),
        }
    };
    let result = tokio::time::timeout(timeout, work)
        .instrument(call.span.clone())
        .await
        .unwrap_or(Err(ServeError::Deadline(timeout)));
    let sent =
        result.as_ref().map_or_else(|_| Sent::default(), |(rows, body)| Sent { rows: *rows, bytes: body.len() as u64 });
    call.end("get_online_features", sent, outcome(&result));
    match result {
        Ok((_, body)) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => refusal(&error),
    }
}

impl Face {
    async fn caller(&self, headers: &HeaderMap) -> Result<Caller> {
        let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let caller = self.guard.caller(sent, None).await?;
        caller.rights.to_read()?;
        Ok(caller)
    }
}

async fn answer(face: &Face, caller: &Caller, body: Body, audited: &mut Audited) -> Result<(u64, Vec<u8>)> {
    let access = &face.guard.access;
    let (_running, limits) = access.admit(&caller.principal)?;
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
        ServeError::Request(format!("the body was cut short, or has more than {} MiB", BODY_BYTES_MAX >> 20))
    })?;
    let request: OnlineRequest = serde_json::from_slice(&body)
        .map_err(|error| ServeError::Request(format!("the body is not understood: {error}")))?;
    // Under full names no column hides another: a feature may be called as its view.
    let columns = OnlineColumns { full_names: true, status: ValueStatus::Value, event_timestamps: true };
    let asked = asked(request.feature_service.as_deref().unwrap_or_default(), &request.features)?;
    let plan = plan_of(face.runs.online(), &asked, columns).await?;
    let entities =
        request.entities.iter().map(|(name, values)| key_column(name, values)).collect::<Result<Vec<_>>>()?;
    let keys = keys(&entities, &plan, face.settings.max_customer_ids)?;
    let run = face.runs.newest();
    audited.entry.run = run.sequence();
    let seen = FeatureGuard::new(access, &caller.principal, &run).of_plan(&plan)?;
    audited.entry.touched = seen.touched();
    audited.begin().await?;
    let rows = seen.over(&answered(&face.runs, &plan, &keys)?)?;
    within(&limits, rows.num_rows() as u64, 0)?;

    let mut response = OnlineResponse {
        metadata: Metadata { feature_names: Vec::new(), feature_view_metadata: Vec::new() },
        results: Vec::new(),
    };
    let epoch = "1970-01-01T00:00:00Z".to_owned();
    for (name, column) in plan.keys().iter().zip(rows.columns()) {
        response.metadata.feature_names.push(name.name().clone());
        response.results.push(Column {
            values: values(column)?,
            statuses: vec!["PRESENT".to_owned(); rows.num_rows()],
            event_timestamps: vec![epoch.clone(); rows.num_rows()],
        });
    }
    for view in plan.columns_by_view() {
        let moments = match &view.event_timestamp {
            Some(column) => texts(&rows, column)?,
            None => vec![String::new(); rows.num_rows()],
        };
        let moments: Vec<String> =
            moments.into_iter().map(|moment| if moment.is_empty() { epoch.clone() } else { moment }).collect();
        for (feature, column) in view.features {
            let name = if request.full_feature_names { column.clone() } else { feature };
            if response.metadata.feature_names.contains(&name) {
                return Err(ServeError::Request(format!(
                    "two features are called {name}: ask for full_feature_names, or for one of them"
                )));
            }
            let found = column_of(&rows, &column)?;
            response.results.push(Column {
                values: values(found)?,
                statuses: texts(&rows, &format!("{column}__status"))?,
                event_timestamps: moments.clone(),
            });
            response.metadata.feature_names.push(name);
        }
        if request.include_feature_view_version_metadata {
            response.metadata.feature_view_metadata.push(ViewMetadata { name: view.view, version: view.version });
        }
    }
    let body = serde_json::to_vec(&response).map_err(|error| ServeError::Request(error.to_string()))?;
    Ok((rows.num_rows() as u64, body))
}

/// A column of entities, or of values of the request: texts, numbers or booleans, all of one kind.
fn key_column(name: &str, values: &[Value]) -> Result<KeyColumn> {
    let mut column = KeyColumn { name: name.to_owned(), ..KeyColumn::default() };
    for value in values {
        match value {
            Value::String(text) => column.texts.push(text.clone()),
            Value::Number(number) if number.as_i64().is_some() => column.integers.extend(number.as_i64()),
            Value::Number(number) => column.doubles.extend(number.as_f64()),
            Value::Bool(value) => column.booleans.push(*value),
            _ => return Err(ServeError::Request(format!("the entities `{name}` are texts, numbers or booleans"))),
        }
    }
    // JSON writes 2 and 2.5 in one column.
    if !column.doubles.is_empty() && column.doubles.len() + column.integers.len() == values.len() {
        column.integers.clear();
        column.doubles = values.iter().filter_map(Value::as_f64).collect();
    }
    Ok(column)
}

fn column_of<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    rows.column_by_name(name).ok_or_else(|| ServeError::Request(format!("the answer has no column {name}")))
}

/// The cells of a column as text, nulls empty.
fn texts(rows: &RecordBatch, name: &str) -> Result<Vec<String>> {
    let column = column_of(rows, name)?;
    Ok((0..column.len()).map(|row| array_value_to_string(column, row)).collect::<std::result::Result<_, _>>()?)
}

/// The values as JSON has them: decimals become numbers, what JSON has no type for becomes text.
fn values(column: &ArrayRef) -> Result<Vec<Value>> {
    let data_type = column.data_type();
    if data_type.is_integer() && *data_type != DataType::UInt64 {
        let column = cast(column, &DataType::Int64)?;
        return Ok(column.as_primitive::<Int64Type>().iter().map(Value::from).collect());
    }
    if data_type.is_numeric() {
        let column = cast(column, &DataType::Float64)?;
        return Ok(column.as_primitive::<Float64Type>().iter().map(Value::from).collect());
    }
    match data_type {
        DataType::Boolean => Ok(column.as_boolean().iter().map(Value::from).collect()),
        DataType::List(_) => {
            let lists = column.as_list::<i32>();
            lists.iter().map(|list| list.map_or(Ok(Value::Null), |list| values(&list).map(Value::Array))).collect()
        }
        _ => {
            let text = |row| match column.is_null(row) {
                true => Ok(Value::Null),
                false => Ok(Value::String(array_value_to_string(column, row)?)),
            };
            (0..column.len()).map(text).collect()
        }
    }
}

/// As Feast's server refuses: the reason as `detail`.
fn refusal(error: &ServeError) -> Response {
    let code = match error.status().code() {
        tonic::Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        tonic::Code::PermissionDenied => StatusCode::FORBIDDEN,
        tonic::Code::NotFound => StatusCode::NOT_FOUND,
        tonic::Code::InvalidArgument => StatusCode::UNPROCESSABLE_ENTITY,
        tonic::Code::ResourceExhausted | tonic::Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        tonic::Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let body = serde_json::json!({ "detail": error.to_string() }).to_string();
    let mut response = (code, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    if code == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}
