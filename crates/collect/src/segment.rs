//! Messages of the Segment spec, as its libraries and RudderStack's send them.

use std::borrow::Cow;

use uuid::Uuid;

use crate::json::Json;
use crate::message::{Line, MESSAGE_ID, Messages, RECEIVED_AT};
use crate::refusal::Refusal;
use crate::settings::CollectSettings;

/// The calls of the spec: what `type` can be.
pub(crate) const CALLS: [&str; 6] = ["track", "identify", "page", "screen", "group", "alias"];
/// What a batch may say once for all its messages.
const SHARED: [&str; 3] = ["context", "integrations", "sentAt"];
/// Fields that are read here, or written where they are missing. Each may be there once.
const OURS: [&str; 6] = [MESSAGE_ID, "type", RECEIVED_AT, "timestamp", "originalTimestamp", WRITE_KEY];
const WRITE_KEY: &str = "writeKey";

/// What a request holds.
#[derive(Debug)]
pub(crate) struct Pushed {
    /// The write key in the body.
    pub(crate) key: Option<String>,
    pub(crate) messages: Messages,
}

type Members<'a> = Vec<(Cow<'a, str>, Json<'a>)>;

/// The message that is the body of `/v1/<call>`.
pub(crate) fn one(call: &str, body: &[u8], settings: &CollectSettings, received_at: &str) -> Result<Pushed, Refusal> {
    let members = object(body)?;
    let key = key(&members);
    let mut messages = Messages::new(settings);
    add(&mut messages, &members, Some(call), &[], received_at)?;
    Ok(Pushed { key, messages })
}

/// The messages of a body `{"batch": […]}`.
pub(crate) fn batch(body: &[u8], settings: &CollectSettings, received_at: &str) -> Result<Pushed, Refusal> {
    let members = object(body)?;
    let listed = find(&members, "batch").and_then(Json::elements).ok_or_else(|| {
        Refusal::Shape(
            "a batch is an object with an array `batch` of messages: {\"batch\": [{\"type\": …}]}".to_owned(),
        )
    })?;
    let shared: Vec<(&str, Json<'_>)> =
        SHARED.into_iter().filter_map(|name| Some((name, find(&members, name)?))).collect();
    let mut messages = Messages::new(settings);
    for (at, element) in listed.into_iter().enumerate() {
        let message = element
            .members()
            .ok_or_else(|| Refusal::Message { at, reason: "a message is a JSON object".to_owned() })?;
        add(&mut messages, &message, None, &shared, received_at)?;
    }
    Ok(Pushed { key: key(&members), messages })
}

fn object(body: &[u8]) -> Result<Members<'_>, Refusal> {
    let json = Json::parse(body).map_err(Refusal::NotJson)?;
    json.members().ok_or_else(|| Refusal::Shape("the body is a JSON object".to_owned()))
}

/// The value of a member; null counts as missing.
fn find<'a>(members: &Members<'a>, name: &str) -> Option<Json<'a>> {
    members.iter().find(|(found, value)| found == name && !value.is_null()).map(|(_, value)| *value)
}

fn key(members: &Members<'_>) -> Option<String> {
    Some(find(members, WRITE_KEY)?.string()?.into_owned())
}

/// Adds a message as it came, with what is missing. The write key is a secret and is left out.
fn add(
    messages: &mut Messages,
    members: &Members<'_>,
    call: Option<&str>,
    shared: &[(&str, Json<'_>)],
    received_at: &str,
) -> Result<(), Refusal> {
    let at = messages.len();
    let wrong = |reason: String| Refusal::Message { at, reason };
    let text = |name: &str| match find(members, name) {
        None => Ok(None),
        Some(value) => match value.string() {
            Some(text) if !text.is_empty() => Ok(Some(text)),
            _ => Err(wrong(format!("{name} is a text of at least one letter"))),
        },
    };
    for name in OURS {
        if members.iter().filter(|(found, _)| found == name).count() > 1 {
            return Err(wrong(format!("{name} is there twice")));
        }
    }
    let kind = text("type")?;
    match (&kind, call) {
        (Some(kind), Some(call)) if kind != call => {
            return Err(wrong(format!("its type is another than that of /v1/{call}: send it to /v1/batch")));
        }
        (None, None) => return Err(wrong(format!("it has no type: there are {}", CALLS.join(", ")))),
        (Some(kind), _) if !CALLS.contains(&kind.as_ref()) => {
            return Err(wrong(format!("its type is none of {}", CALLS.join(", "))));
        }
        _ => {}
    }
    let id = text(MESSAGE_ID)?;

    let mut line = Line::new();
    for (name, value) in members {
        // A null of ours makes room for the value; twice the same field would be refused later.
        let replaced = value.is_null() && (OURS.contains(&name.as_ref()) || is_shared(shared, name));
        if name != WRITE_KEY && !replaced {
            line.field(name, *value);
        }
    }
    for (name, value) in shared {
        if find(members, name).is_none() {
            line.field(name, *value);
        }
    }
    if let (None, Some(call)) = (&kind, call) {
        line.text("type", call);
    }
    // When it happened, as its sender says in the one field or the other.
    match (find(members, "timestamp"), find(members, "originalTimestamp")) {
        (Some(_), _) => {}
        (None, Some(original)) => line.field("timestamp", original),
        (None, None) => line.text("timestamp", received_at),
    }
    if find(members, RECEIVED_AT).is_none() {
        line.text(RECEIVED_AT, received_at);
    }
    match id {
        Some(id) => messages.push(line, &id),
        None => {
            let id = Uuid::new_v4().to_string();
            line.text(MESSAGE_ID, &id);
            messages.push(line, &id)
        }
    }
}

fn is_shared(shared: &[(&str, Json<'_>)], name: &str) -> bool {
    shared.iter().any(|(known, _)| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-03-01T00:00:00.000Z";

    fn lines(pushed: &Pushed) -> Vec<String> {
        pushed.messages.iter().map(|(_, line)| String::from_utf8(line.to_vec()).unwrap()).collect()
    }

    #[test]
    fn a_message_is_stored_as_it_came_with_what_is_missing() {
        let body = b"{\"event\": \"Paid\",\n\"properties\": {\"price\": 19.90, \"big\": 12345678901234567890123},\
            \"writeKey\": \"hfk_1\", \"messageId\": null, \"timestamp\": \"2026-02-28T23:59:59Z\"}";
        let pushed = one("track", body, &CollectSettings::default(), NOW).unwrap();
        assert_eq!(pushed.key.as_deref(), Some("hfk_1"));
        let lines = lines(&pushed);
        let (before, id) = lines[0].split_once("\"messageId\":").unwrap();
        assert_eq!(
            before,
            "{\"event\":\"Paid\",\"properties\":{\"price\": 19.90, \"big\": 12345678901234567890123},\
             \"timestamp\":\"2026-02-28T23:59:59Z\",\"type\":\"track\",\"receivedAt\":\"2026-03-01T00:00:00.000Z\","
        );
        assert_eq!(id.len(), "\"01234567-89ab-cdef-0123-456789abcdef\"}\n".len());
    }

    #[test]
    fn a_batch_shares_what_its_messages_do_not_say() {
        let body = br#"{"batch":[{"type":"page","messageId":"a","context":{"ip":"1"}},
            {"type":"track","messageId":"b","receivedAt":"x","originalTimestamp":"y","context":null}],
            "context":{"ip":"2"},"sentAt":"z"}"#;
        let pushed = batch(body, &CollectSettings::default(), NOW).unwrap();
        assert_eq!(
            lines(&pushed),
            [
                "{\"type\":\"page\",\"messageId\":\"a\",\"context\":{\"ip\":\"1\"},\"sentAt\":\"z\",\
                 \"timestamp\":\"2026-03-01T00:00:00.000Z\",\"receivedAt\":\"2026-03-01T00:00:00.000Z\"}\n",
                "{\"type\":\"track\",\"messageId\":\"b\",\"receivedAt\":\"x\",\"originalTimestamp\":\"y\",\
                 \"context\":{\"ip\":\"2\"},\"sentAt\":\"z\",\"timestamp\":\"y\"}\n",
            ]
        );
    }

    #[test]
    fn what_is_no_message_is_refused_as_a_whole() {
        let settings = CollectSettings::default();
        for (body, reason) in [
            ("[]", "the body is a JSON object"),
            ("{}", "an array `batch`"),
            ("{\"batch\":[1]}", "message 0"),
            ("{\"batch\":[{\"type\":\"track\"},{}]}", "message 1"),
            ("{\"batch\":[{\"type\":\"buy\"}]}", "its type is none of"),
            ("{\"batch\":[{\"type\":\"track\",\"messageId\":7}]}", "messageId is a text"),
            ("{\"batch\":[{\"type\":\"track\",\"type\":\"track\"}]}", "type is there twice"),
        ] {
            let refusal = batch(body.as_bytes(), &settings, NOW).unwrap_err().to_string();
            assert!(refusal.contains(reason), "{body}: {refusal}");
        }
        let refusal = one("page", b"{\"type\":\"track\"}", &settings, NOW).unwrap_err().to_string();
        assert!(refusal.contains("/v1/batch"), "{refusal}");
    }

    #[test]
    fn what_is_shared_cannot_blow_up_a_request() {
        let settings = CollectSettings { request_bytes_max: 10_000, ..CollectSettings::default() };
        let messages = vec!["{\"type\":\"page\"}"; 100].join(",");
        let body = format!("{{\"batch\":[{messages}],\"context\":\"{}\"}}", "x".repeat(5_000));
        let refusal = batch(body.as_bytes(), &settings, NOW).unwrap_err();
        assert_eq!(refusal, Refusal::RequestTooLarge { max: 20_000 });
        let settings = CollectSettings { message_bytes_max: 5_000, ..CollectSettings::default() };
        let refusal = batch(body.as_bytes(), &settings, NOW).unwrap_err();
        assert_eq!(refusal, Refusal::MessageTooLarge { at: 0, max: 5_000 });
    }
}
