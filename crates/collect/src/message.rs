use crate::json::Json;
use crate::refusal::Refusal;
use crate::seen::MessageKey;
use crate::settings::CollectSettings;

/// The field that makes a message the same message when it comes again.
pub(crate) const MESSAGE_ID: &str = "messageId";
/// The field that says when the server had it, UTC.
pub(crate) const RECEIVED_AT: &str = "receivedAt";

/// The messages of one request, each on the line that it is stored as.
#[derive(Debug)]
pub(crate) struct Messages {
    text: Vec<u8>,
    /// What tells each message from others, and where its line ends.
    ends: Vec<(MessageKey, usize)>,
    message_bytes_max: usize,
    text_bytes_max: usize,
}

impl Messages {
    pub(crate) fn new(settings: &CollectSettings) -> Self {
        Self {
            text: Vec::new(),
            ends: Vec::new(),
            message_bytes_max: settings.message_bytes_max,
            // What a batch says of all its messages is stored with each: a small request could become a large object.
            text_bytes_max: settings.request_bytes_max.saturating_mul(2),
        }
    }

    /// Adds a message that is identified by `id`.
    ///
    /// # Errors
    /// [`Refusal::MessageTooLarge`] and [`Refusal::RequestTooLarge`].
    pub(crate) fn push(&mut self, line: Line, id: &str) -> Result<(), Refusal> {
        let mut bytes = line.bytes;
        bytes.extend_from_slice(b"}\n");
        if bytes.len() > self.message_bytes_max {
            return Err(Refusal::MessageTooLarge { at: self.ends.len(), max: self.message_bytes_max });
        }
        if self.text.len() + bytes.len() > self.text_bytes_max {
            return Err(Refusal::RequestTooLarge { max: self.text_bytes_max });
        }
        self.text.append(&mut bytes);
        self.ends.push((MessageKey::of(id), self.text.len()));
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The length of all lines.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The lines, in the order of the request.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (MessageKey, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |(key, end)| {
            let line = &self.text[start..*end];
            start = *end;
            (*key, line)
        })
    }
}

/// A message as it is being written: a JSON object, field by field.
#[derive(Debug)]
pub(crate) struct Line {
    bytes: Vec<u8>,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![b'{'] }
    }

    /// A field as it came.
    pub(crate) fn field(&mut self, name: &str, value: Json<'_>) {
        self.name(name);
        value.write_to(&mut self.bytes);
    }

    /// A field of ours.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.bytes.extend_from_slice(quoted(value).as_bytes());
    }

    fn name(&mut self, name: &str) {
        if self.bytes.len() > 1 {
            self.bytes.push(b',');
        }
        self.bytes.extend_from_slice(quoted(name).as_bytes());
        self.bytes.push(b':');
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
