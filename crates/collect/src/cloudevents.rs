//! CloudEvents 1.0 over HTTP in its three modes.

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::json::Json;
use crate::message::{Line, MESSAGE_ID, Messages, RECEIVED_AT};
use crate::refusal::Refusal;
use crate::segment::Pushed;
use crate::settings::CollectSettings;

const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];
/// What headers of attributes begin with in binary mode.
const HEADER_PREFIX: &str = "ce-";

/// The events of a request to `/v1/events`. Each is stored in the JSON format, whatever mode it came in.
pub(crate) fn events(
    headers: &HeaderMap,
    body: &[u8],
    settings: &CollectSettings,
    received_at: &str,
) -> Result<Pushed, Refusal> {
    let media_type = media_type(headers);
    let mut messages = Messages::new(settings);
    match media_type.as_str() {
        "application/cloudevents+json" => {
            let event = Json::parse(body).map_err(Refusal::NotJson)?;
            structured(&mut messages, event, received_at)?;
        }
        "application/cloudevents-batch+json" => {
            let listed = Json::parse(body).map_err(Refusal::NotJson)?.elements();
            let listed = listed.ok_or_else(|| Refusal::Shape("a batch of CloudEvents is a JSON array".to_owned()))?;
            for event in listed {
                structured(&mut messages, event, received_at)?;
            }
        }
        _ if headers.contains_key("ce-specversion") => binary(&mut messages, headers, &media_type, body, received_at)?,
        _ => {
            return Err(Refusal::MediaType(
                "a CloudEvent has the content type application/cloudevents+json or application/cloudevents-batch+json, \
                 or the headers ce-specversion, ce-id, ce-source and ce-type"
                    .to_owned(),
            ));
        }
    }
    Ok(Pushed { key: None, messages })
}

/// Without parameters such as `charset`, in lower case.
fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn structured(messages: &mut Messages, event: Json<'_>, received_at: &str) -> Result<(), Refusal> {
    let at = messages.len();
    let wrong = |reason: String| Refusal::Message { at, reason };
    let members = event.members().ok_or_else(|| wrong("a CloudEvent is a JSON object".to_owned()))?;
    let mut line = Line::new();
    for (name, value) in &members {
        // Names of attributes are lower case: these two can only be ours.
        if name == MESSAGE_ID || name == RECEIVED_AT {
            return Err(wrong(format!("{name} is no attribute of a CloudEvent")));
        }
        line.field(name, *value);
    }
    let attribute = |name: &str| {
        let mut found = members.iter().filter(|(known, _)| known == name);
        match (found.next().and_then(|(_, value)| value.string()), found.next()) {
            (Some(text), None) if !text.is_empty() => Some(text),
            _ => None,
        }
    };
    finish(messages, line, |name| attribute(name).map(std::borrow::Cow::into_owned), received_at)
}

/// The event whose attributes are headers and whose data is the body.
fn binary(
    messages: &mut Messages,
    headers: &HeaderMap,
    media_type: &str,
    body: &[u8],
    received_at: &str,
) -> Result<(), Refusal> {
    let wrong = |reason: String| Refusal::Message { at: 0, reason };
    let mut attributes: Vec<(&str, String)> = Vec::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(HEADER_PREFIX) else { continue };
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Err(wrong("attributes of a CloudEvent have names of letters and digits".to_owned()));
        }
        // Values are percent-encoded: section 3.1.3.2 of the HTTP binding.
        let value = percent_encoding::percent_decode(value.as_bytes()).decode_utf8();
        let value = value.map_err(|_| wrong(format!("header ce-{name} is not UTF-8")))?.into_owned();
        if attributes.iter().any(|(known, _)| *known == name) || name == "datacontenttype" || name.starts_with("data_")
        {
            return Err(wrong(format!("header ce-{name} is there twice, or has a header of its own")));
        }
        attributes.push((name, value));
    }
    let mut line = Line::new();
    for (name, value) in &attributes {
        line.text(name, value);
    }
    if !media_type.is_empty() {
        line.text("datacontenttype", media_type);
    }
    if !body.is_empty() {
        // Data without a content type is JSON: section 3.1 of the JSON format.
        if media_type.is_empty() || media_type.ends_with("/json") || media_type.ends_with("+json") {
            line.field("data", Json::parse(body).map_err(Refusal::NotJson)?);
        } else {
            match std::str::from_utf8(body) {
                Ok(text) if media_type.starts_with("text/") => line.text("data", text),
                _ => line.text("data_base64", &STANDARD.encode(body)),
            }
        }
    }
    let attribute = |name: &str| {
        attributes.iter().find(|(known, value)| *known == name && !value.is_empty()).map(|(_, value)| value.clone())
    };
    finish(messages, line, attribute, received_at)
}

fn finish(
    messages: &mut Messages,
    mut line: Line,
    attribute: impl Fn(&str) -> Option<String>,
    received_at: &str,
) -> Result<(), Refusal> {
    let at = messages.len();
    let mut found = Vec::with_capacity(REQUIRED.len());
    for name in REQUIRED {
        found.push(attribute(name).ok_or_else(|| Refusal::Message {
            at,
            reason: format!("a CloudEvent has the attribute {name} once, a text of at least one letter"),
        })?);
    }
    let [version, id, source, _] = found.as_slice() else { return Err(Refusal::NotFound) };
    if version != "1.0" {
        return Err(Refusal::Message { at, reason: "only specversion 1.0 is taken".to_owned() });
    }
    // Producers make source and id together unique. Quoted, so that no two pairs give the same text.
    let message_id = serde_json::Value::from(vec![source.as_str(), id.as_str()]).to_string();
    line.text(RECEIVED_AT, received_at);
    line.text(MESSAGE_ID, &message_id);
    messages.push(line, &message_id)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    const NOW: &str = "2026-03-01T00:00:00.000Z";

    fn taken(headers: &[(&str, &str)], body: &[u8]) -> Result<Vec<serde_json::Value>, Refusal> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect();
        let pushed = events(&headers, body, &CollectSettings::default(), NOW)?;
        Ok(pushed.messages.iter().map(|(_, line)| serde_json::from_slice(line).unwrap()).collect())
    }

    #[test]
    fn an_event_is_the_same_in_all_three_modes() {
        let event = br#"{"specversion":"1.0","id":"1","source":"/till","type":"sale","datacontenttype":"application/json","data":{"total":1.50}}"#;
        let structured = taken(&[("content-type", "application/cloudevents+json; charset=UTF-8")], event).unwrap();
        let batched = [b"[".as_slice(), event, b"]"].concat();
        let batched = taken(&[("content-type", "application/cloudevents-batch+json")], &batched).unwrap();
        let headers = [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "%2Ftill"),
            ("ce-type", "sale"),
        ];
        let binary = taken(&headers, br#"{"total":1.50}"#).unwrap();
        assert_eq!(structured, batched);
        assert_eq!(structured, binary);
        assert_eq!(binary[0]["messageId"], "[\"/till\",\"1\"]");
        assert_eq!(binary[0]["receivedAt"], NOW);
    }

    #[test]
    fn data_that_is_no_json_is_text_or_base64() {
        let event = |media_type| {
            let headers = [
                ("content-type", media_type),
                ("ce-specversion", "1.0"),
                ("ce-id", "1"),
                ("ce-source", "till"),
                ("ce-type", "sale"),
            ];
            taken(&headers, b"paid").unwrap().remove(0)
        };
        assert_eq!(event("text/plain")["data"], "paid");
        assert_eq!(event("application/octet-stream")["data_base64"], "cGFpZA==");
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let json = [("content-type", "application/cloudevents+json")];
        for body in [
            "{}",
            r#"{"specversion":"0.3","id":"1","source":"s","type":"t"}"#,
            r#"{"specversion":"1.0","id":"","source":"s","type":"t"}"#,
            r#"{"specversion":"1.0","id":1,"source":"s","type":"t"}"#,
            r#"{"specversion":"1.0","id":"1","id":"2","source":"s","type":"t"}"#,
        ] {
            assert!(matches!(taken(&json, body.as_bytes()), Err(Refusal::Message { at: 0, .. })), "{body}");
        }
        assert!(matches!(taken(&json, b"{"), Err(Refusal::NotJson(_))));
        assert!(matches!(taken(&[("content-type", "application/json")], b"{}"), Err(Refusal::MediaType(_))));
    }
}
