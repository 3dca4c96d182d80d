//! Commands as JSON, for clients without a protobuf library: what protobuf's own mapping makes of a message in `google.protobuf.Any`.
//!
//! ```json
//! {"@type": "holdfast.v1.GetOnlineFeatures", "feature_service": "churn", "keys": [{"name": "customer_id", "texts": ["c_1"]}]}
//! ```

use arrow_flight::sql::Any;
use prost::{Message, Name};
use serde::Deserialize;
use serde_json::Value;

use crate::generated::v1::{
    CreateDataset, FeaturesForCustomers, GetDataset, GetHistoricalFeatures, GetOnlineFeatures, KeyColumn, ScoreRows,
    ScoresAbove, StatusColumns,
};
use crate::{Result, ServeError};

/// The message that JSON says.
///
/// # Errors
/// [`ServeError::Request`] with the place in the text when it is no JSON, names no message, or has a field that the message has not.
pub(crate) fn any_of(bytes: &[u8]) -> Result<Any> {
    let wrong =
        |error: serde_json::Error| ServeError::Request(format!("the command is no JSON that is understood: {error}"));
    let mut command: serde_json::Map<String, Value> = serde_json::from_slice(bytes).map_err(wrong)?;
    if let Some(api) = command.get("api") {
        return of_feast(&api.clone(), command);
    }
    let Some(Value::String(name)) = command.remove("@type") else {
        return Err(ServeError::Request(format!(
            "the command is JSON without `@type`: it names the message that would be in google.protobuf.Any, one of {}",
            names().join(", ")
        )));
    };
    let (name, fields) = (name.rsplit('/').next().unwrap_or_default(), Value::Object(command));
    if name == FeaturesForCustomers::full_name() {
        let json: FeaturesForCustomersJson = serde_json::from_value(fields).map_err(wrong)?;
        let FeaturesForCustomersJson { feature_view, customer_ids, features } = json;
        return Ok(wrapped(&FeaturesForCustomers { feature_view, customer_ids, features }));
    }
    if name == ScoresAbove::full_name() {
        let ScoresAboveJson { threshold, limit } = serde_json::from_value(fields).map_err(wrong)?;
        return Ok(wrapped(&ScoresAbove { threshold, limit }));
    }
    if name == GetHistoricalFeatures::full_name() {
        let json: HistoricalJson = serde_json::from_value(fields).map_err(wrong)?;
        return Ok(wrapped(&json.message()));
    }
    if name == CreateDataset::full_name() {
        let json: CreateDatasetJson = serde_json::from_value(fields).map_err(wrong)?;
        return Ok(wrapped(&CreateDataset {
            features: Some(json.features.message()),
            label: json.label,
            horizon_s: json.horizon_s,
            open_horizon: json.open_horizon,
        }));
    }
    if name == GetDataset::full_name() {
        let GetDatasetJson { dataset_id, skip_rows } = serde_json::from_value(fields).map_err(wrong)?;
        return Ok(wrapped(&GetDataset { dataset_id, skip_rows }));
    }
    if name == ScoreRows::full_name() {
        let ScoreRowsJson { model, reasons } = serde_json::from_value(fields).map_err(wrong)?;
        return Ok(wrapped(&ScoreRows { model, reasons }));
    }
    if name == GetOnlineFeatures::full_name() {
        let json: OnlineJson = serde_json::from_value(fields).map_err(wrong)?;
        let keys = json.keys.into_iter().map(|KeyColumnJson { name, texts, integers, doubles, booleans }| KeyColumn {
            name,
            texts,
            integers,
            doubles,
            booleans,
        });
        return Ok(wrapped(&GetOnlineFeatures {
            feature_service: json.feature_service,
            features: json.features,
            keys: keys.collect(),
            full_feature_names: json.full_feature_names,
            status: json.status.code(),
            event_timestamps: json.event_timestamps,
        }));
    }
    let name: String = name.chars().take(120).collect();
    Err(ServeError::Unsupported(format!(
        "the command `{name}` is not offered as JSON: there are {}",
        names().join(", ")
    )))
}

/// What Feast's remote offline store sends: `{"api": "get_historical_features", "feature_refs": […], …}`, the spine behind it. Its times are in UTC, and its answers have no
/// statuses.
fn of_feast(api: &Value, command: serde_json::Map<String, Value>) -> Result<Any> {
    if api.as_str() != Some("get_historical_features") {
        let api: String = api.as_str().unwrap_or_default().chars().take(120).collect();
        return Err(ServeError::Unsupported(format!(
            "`{api}` of Feast's offline store is not offered: ask for get_historical_features, runs of the lake do the rest"
        )));
    }
    let json: FeastHistorical = serde_json::from_value(Value::Object(command))
        .map_err(|error| ServeError::Request(format!("Feast's command is not understood: {error}")))?;
    let refused =
        |what: &str| Err(ServeError::Unsupported(format!("{what} is not offered: send the entities as a data frame")));
    if json.entity_df_sql.is_some() {
        return refused("an entity_df in SQL");
    }
    if json.start_date.is_some() || json.end_date.is_some() {
        return refused("a range of time instead of entities");
    }
    if json.name_aliases.iter().any(Option::is_some) {
        return Err(ServeError::Unsupported(
            "views under another name are not offered: leave with_name out".to_owned(),
        ));
    }
    Ok(wrapped(&GetHistoricalFeatures {
        features: json.feature_refs,
        full_feature_names: json.full_feature_names,
        status: StatusColumns::None.into(),
        timestamps_are_utc: true,
        ..GetHistoricalFeatures::default()
    }))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FeastHistorical {
    feature_refs: Vec<String>,
    full_feature_names: bool,
    name_aliases: Vec<Option<String>>,
    entity_df_sql: Option<Value>,
    start_date: Option<Value>,
    end_date: Option<Value>,
}

fn names() -> [String; 7] {
    [
        GetOnlineFeatures::full_name(),
        GetHistoricalFeatures::full_name(),
        CreateDataset::full_name(),
        GetDataset::full_name(),
        ScoreRows::full_name(),
        FeaturesForCustomers::full_name(),
        ScoresAbove::full_name(),
    ]
}

fn wrapped<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec().into() }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FeaturesForCustomersJson {
    #[serde(alias = "featureView")]
    feature_view: String,
    #[serde(alias = "customerIds")]
    customer_ids: Vec<String>,
    features: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ScoresAboveJson {
    threshold: f64,
    limit: u32,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HistoricalJson {
    #[serde(alias = "featureService")]
    feature_service: String,
    features: Vec<String>,
    timestamp: String,
    strict: bool,
    #[serde(alias = "ignoreKnownAt")]
    ignore_known_at: bool,
    #[serde(alias = "fullFeatureNames")]
    full_feature_names: bool,
    status: StatusJson,
    #[serde(alias = "eventTimestamps")]
    event_timestamps: bool,
    #[serde(alias = "timestampsAreUtc")]
    timestamps_are_utc: bool,
}

impl HistoricalJson {
    fn message(self) -> GetHistoricalFeatures {
        GetHistoricalFeatures {
            feature_service: self.feature_service,
            features: self.features,
            timestamp: self.timestamp,
            strict: self.strict,
            ignore_known_at: self.ignore_known_at,
            full_feature_names: self.full_feature_names,
            status: self.status.code(),
            event_timestamps: self.event_timestamps,
            timestamps_are_utc: self.timestamps_are_utc,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CreateDatasetJson {
    features: HistoricalJson,
    label: String,
    #[serde(alias = "horizonS")]
    horizon_s: u64,
    #[serde(alias = "openHorizon")]
    open_horizon: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GetDatasetJson {
    #[serde(alias = "datasetId")]
    dataset_id: String,
    #[serde(alias = "skipRows")]
    skip_rows: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ScoreRowsJson {
    model: String,
    reasons: u32,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct OnlineJson {
    #[serde(alias = "featureService")]
    feature_service: String,
    features: Vec<String>,
    keys: Vec<KeyColumnJson>,
    #[serde(alias = "fullFeatureNames")]
    full_feature_names: bool,
    status: StatusJson,
    #[serde(alias = "eventTimestamps")]
    event_timestamps: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KeyColumnJson {
    name: String,
    texts: Vec<String>,
    integers: Vec<i64>,
    doubles: Vec<f64>,
    booleans: Vec<bool>,
}

/// By the name in the protobuf, or the word in it.
#[derive(Clone, Copy, Default, Deserialize)]
enum StatusJson {
    #[default]
    #[serde(rename = "STATUS_COLUMNS_VIEW", alias = "view")]
    View,
    #[serde(rename = "STATUS_COLUMNS_VALUE", alias = "value")]
    Value,
    #[serde(rename = "STATUS_COLUMNS_NONE", alias = "none")]
    None,
}

impl StatusJson {
    fn code(self) -> i32 {
        let status = match self {
            Self::View => StatusColumns::View,
            Self::Value => StatusColumns::Value,
            Self::None => StatusColumns::None,
        };
        status.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_what_the_protobuf_says() {
        let any = any_of(
            br#"{"@type": "type.googleapis.com/holdfast.v1.GetOnlineFeatures", "features": ["a:b"], "fullFeatureNames": true,
                "status": "STATUS_COLUMNS_NONE", "keys": [{"name": "k", "texts": ["x", ""]}, {"integers": [-1]}]}"#,
        )
        .unwrap();
        let expected = GetOnlineFeatures {
            features: vec!["a:b".to_owned()],
            full_feature_names: true,
            status: StatusColumns::None.into(),
            keys: vec![
                KeyColumn { name: "k".to_owned(), texts: vec!["x".to_owned(), String::new()], ..KeyColumn::default() },
                KeyColumn { integers: vec![-1], ..KeyColumn::default() },
            ],
            ..GetOnlineFeatures::default()
        };
        assert_eq!(any, wrapped(&expected));
        let any = any_of(br#"{"@type": "holdfast.v1.ScoresAbove", "threshold": 0.5, "limit": 3}"#).unwrap();
        assert_eq!(any, wrapped(&ScoresAbove { threshold: 0.5, limit: 3 }));
        let any =
            any_of(br#"{"@type": "holdfast.v1.GetHistoricalFeatures", "strict": true, "status": "value"}"#).unwrap();
        let status = StatusColumns::Value.into();
        let features = GetHistoricalFeatures { strict: true, status, ..GetHistoricalFeatures::default() };
        assert_eq!(any, wrapped(&features));
        let any = any_of(
            br#"{"@type": "holdfast.v1.CreateDataset", "features": {"strict": true, "status": "value"}, "label": "b:c", "horizonS": 60}"#,
        )
        .unwrap();
        let (features, label) = (Some(features), "b:c".to_owned());
        assert_eq!(any, wrapped(&CreateDataset { features, label, horizon_s: 60, open_horizon: false }));
        let any = any_of(br#"{"@type": "holdfast.v1.ScoreRows", "model": "churn@v2", "reasons": 2}"#).unwrap();
        assert_eq!(any, wrapped(&ScoreRows { model: "churn@v2".to_owned(), reasons: 2 }));
        let any = any_of(br#"{"@type": "holdfast.v1.FeaturesForCustomers", "customer_ids": ["a"]}"#).unwrap();
        let customer_ids = vec!["a".to_owned()];
        assert_eq!(any, wrapped(&FeaturesForCustomers { customer_ids, ..FeaturesForCustomers::default() }));
    }

    #[test]
    fn what_feast_sends_asks_for_the_same() {
        let any = any_of(
            br#"{"command_id": "x", "api": "get_historical_features", "feature_view_names": ["v"], "feature_refs": ["v:a", "v:b"],
                "project": "p", "full_feature_names": true, "name_aliases": [null]}"#,
        )
        .unwrap();
        let expected = GetHistoricalFeatures {
            features: vec!["v:a".to_owned(), "v:b".to_owned()],
            full_feature_names: true,
            status: StatusColumns::None.into(),
            timestamps_are_utc: true,
            ..GetHistoricalFeatures::default()
        };
        assert_eq!(any, wrapped(&expected));
        for (more, told) in [
            (r#""entity_df_sql": "select 1""#, "as a data frame"),
            (r#""name_aliases": ["w"]"#, "with_name"),
            (r#""start_date": "2026-01-01""#, "as a data frame"),
        ] {
            let error = any_of(format!("{{\"api\": \"get_historical_features\", {more}}}").as_bytes()).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
        let error = any_of(br#"{"api": "offline_write_batch"}"#).unwrap_err().to_string();
        assert!(error.contains("offline_write_batch"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_told_with_what_there_is() {
        for (text, told) in [
            (r#"{"features": []}"#, "holdfast.v1.GetOnlineFeatures"),
            (r#"{"@type": "holdfast.v1.GetOnline"}"#, "holdfast.v1.GetOnlineFeatures"),
            (r#"{"@type": "holdfast.v1.GetOnlineFeatures", "feature": []}"#, "unknown field `feature`, expected"),
            (r#"{"@type": "holdfast.v1.ScoresAbove", "limit": -1}"#, "expected u32"),
            ("{", "line 1 column 1"),
        ] {
            let error = any_of(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
