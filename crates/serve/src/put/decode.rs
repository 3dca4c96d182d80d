//! Messages of a client become record batches: within limits, and whatever the bytes are.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{read_dictionary, read_record_batch};
use arrow::ipc::{Message, MessageHeader, root_as_message};
use bytes::Bytes;
use tokio::task::spawn_blocking;

use crate::{Result, ServeError};

/// Dictionaries of a stream that are kept at the same time.
const DICTIONARIES_MAX: usize = 1_024;

/// What a message was.
#[derive(Debug)]
pub(crate) enum Decoded {
    Schema(SchemaRef),
    /// By its id.
    Dictionary(i64),
    Batch(RecordBatch),
}

/// The messages so far, as far as the next ones need them.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    schema: Option<SchemaRef>,
    dictionaries: HashMap<i64, ArrayRef>,
    /// The size of the message that each dictionary came with.
    dictionary_bytes: HashMap<i64, usize>,
    dictionary_bytes_max: usize,
}

impl Decoder {
    /// Keeps dictionaries of at most so many bytes together.
    pub(crate) fn new(dictionary_bytes_max: usize) -> Self {
        Self { dictionary_bytes_max, ..Self::default() }
    }

    /// Decodes one message, on a thread where that may take its time, and where a panic over malformed bytes ends nothing
    /// but this.
    ///
    /// # Errors
    /// [`ServeError::Request`] when the bytes are no message, one that is not taken, or not one that can come here. The
    /// stream is over then.
    pub(crate) async fn decode(self, header: Bytes, body: Bytes) -> Result<(Self, Decoded)> {
        let decoding = spawn_blocking(move || {
            let mut decoder = self;
            decoder.take(&header, body).map(|decoded| (decoder, decoded))
        });
        match decoding.await {
            Ok(decoded) => decoded,
            Err(error) if error.is_panic() => Err(malformed("its types or buffers are not valid")),
            Err(_) => Err(ServeError::Stopping),
        }
    }

    fn take(&mut self, header: &[u8], body: Bytes) -> Result<Decoded> {
        let message = root_as_message(header).map_err(|_| malformed("it has no Arrow IPC message"))?;
        let version = message.version();
        match message.header_type() {
            MessageHeader::Schema => {
                if self.schema.is_some() {
                    return Err(ServeError::Request("a second schema came: one stream has one schema".to_owned()));
                }
                let schema = message.header_as_schema().ok_or_else(|| malformed("its schema cannot be read"))?;
                let schema = Arc::new(fb_to_schema(schema));
                self.schema = Some(Arc::clone(&schema));
                Ok(Decoded::Schema(schema))
            }
            MessageHeader::DictionaryBatch => {
                let schema = Arc::clone(self.schema()?);
                let batch =
                    message.header_as_dictionary_batch().ok_or_else(|| malformed("its dictionary cannot be read"))?;
                refuse_packed(batch.data().and_then(|data| data.compression()).is_some())?;
                // They would grow by and by, and clients send them only when asked to.
                if batch.isDelta() {
                    return Err(ServeError::Request(
                        "dictionaries that add to earlier ones are not taken: write whole ones, or columns without"
                            .to_owned(),
                    ));
                }
                self.make_room(batch.id(), body.len())?;
                read_dictionary(&Buffer::from(body), batch, &schema, &mut self.dictionaries, &version)
                    .map_err(|error| undecodable(&error))?;
                Ok(Decoded::Dictionary(batch.id()))
            }
            MessageHeader::RecordBatch => {
                let schema = Arc::clone(self.schema()?);
                let batch = self.record_batch(&message)?;
                let rows = read_record_batch(&Buffer::from(body), batch, schema, &self.dictionaries, None, &version);
                rows.map(Decoded::Batch).map_err(|error| undecodable(&error))
            }
            _ => Err(malformed("it is neither a schema nor a dictionary nor a record batch")),
        }
    }

    fn record_batch<'a>(&self, message: &Message<'a>) -> Result<arrow::ipc::RecordBatch<'a>> {
        let batch = message.header_as_record_batch().ok_or_else(|| malformed("its record batch cannot be read"))?;
        refuse_packed(batch.compression().is_some())?;
        if batch.length() < 0 {
            return Err(malformed("it has a negative number of rows"));
        }
        Ok(batch)
    }

    fn schema(&self) -> Result<&SchemaRef> {
        self.schema.as_ref().ok_or_else(|| ServeError::Request("rows came before their schema".to_owned()))
    }

    fn make_room(&mut self, dictionary: i64, bytes: usize) -> Result<()> {
        self.dictionary_bytes.insert(dictionary, bytes);
        let held: usize = self.dictionary_bytes.values().sum();
        if held > self.dictionary_bytes_max || self.dictionary_bytes.len() > DICTIONARIES_MAX {
            return Err(ServeError::Request(format!(
                "the dictionaries of this stream hold more than {} MiB, or are more than {DICTIONARIES_MAX}: send the \
                 columns without dictionaries",
                self.dictionary_bytes_max >> 20
            )));
        }
        Ok(())
    }
}

/// What a body holds unpacked is known only by unpacking it.
fn refuse_packed(packed: bool) -> Result<()> {
    if packed {
        return Err(ServeError::Request(
            "compressed record batches are not taken: write them without (in pyarrow: IpcWriteOptions(compression=None))"
                .to_owned(),
        ));
    }
    Ok(())
}

fn malformed(what: &str) -> ServeError {
    ServeError::Request(format!("a message cannot be decoded: {what}"))
}

/// The kernel's words are about types and lengths for these; others might quote a value.
fn undecodable(error: &ArrowError) -> ServeError {
    match error {
        ArrowError::IpcError(_) | ArrowError::SchemaError(_) | ArrowError::NotYetImplemented(_) => {
            malformed(&error.to_string().chars().take(200).collect::<String>())
        }
        _ => malformed("its buffers are not those of its schema"),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::ipc::CompressionType;
    use arrow::ipc::writer::IpcWriteOptions;
    use arrow_flight::FlightData;
    use arrow_flight::utils::batches_to_flight_data;

    use super::*;

    fn messages() -> (RecordBatch, Vec<FlightData>) {
        let schema =
            Schema::new(vec![Field::new("n", DataType::Int32, true), Field::new("text", DataType::Utf8, true)]);
        let columns: Vec<ArrayRef> =
            vec![Arc::new(Int32Array::from(vec![1, 2])), Arc::new(StringArray::from(vec![Some("one"), None]))];
        let rows = RecordBatch::try_new(Arc::new(schema.clone()), columns).unwrap();
        let messages = batches_to_flight_data(&schema, vec![rows.clone()]).unwrap();
        (rows, messages)
    }

    async fn decode(decoder: Decoder, message: &FlightData) -> Result<(Decoder, Decoded)> {
        decoder.decode(message.data_header.clone(), message.data_body.clone()).await
    }

    #[tokio::test]
    async fn batches_are_what_was_sent() {
        let (rows, messages) = messages();
        let (decoder, _) = decode(Decoder::new(1 << 20), &messages[0]).await.unwrap();
        let (_, decoded) = decode(decoder, &messages[1]).await.unwrap();
        assert!(matches!(decoded, Decoded::Batch(found) if found == rows));
    }

    #[tokio::test]
    async fn no_bytes_end_more_than_their_stream() {
        let (_, messages) = messages();
        let mut accepted = 0;
        // Every byte of both messages' headers turned over, and the body cut at every length.
        for at in 0..messages[1].data_header.len() {
            let mut header = messages[1].data_header.to_vec();
            header[at] ^= 0xff;
            let (decoder, _) = decode(Decoder::new(1 << 20), &messages[0]).await.unwrap();
            accepted += usize::from(decoder.decode(header.into(), messages[1].data_body.clone()).await.is_ok());
        }
        for at in 0..messages[0].data_header.len() {
            let mut header = messages[0].data_header.to_vec();
            header[at] ^= 0xff;
            let _ = Decoder::new(1 << 20).decode(header.into(), Bytes::new()).await;
        }
        for length in 0..messages[1].data_body.len() {
            let (decoder, _) = decode(Decoder::new(1 << 20), &messages[0]).await.unwrap();
            let body = messages[1].data_body.slice(..length);
            accepted += usize::from(decoder.decode(messages[1].data_header.clone(), body).await.is_ok());
        }
        assert!(accepted < messages[1].data_header.len(), "{accepted}");
    }

    #[tokio::test]
    async fn what_cannot_come_here_is_refused_with_its_reason() {
        let (rows, messages) = messages();
        let error = decode(Decoder::new(1 << 20), &messages[1]).await.unwrap_err().to_string();
        assert!(error.contains("before their schema"), "{error}");
        let (decoder, _) = decode(Decoder::new(1 << 20), &messages[0]).await.unwrap();
        let error = decode(decoder, &messages[0]).await.unwrap_err().to_string();
        assert!(error.contains("second schema"), "{error}");

        let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
        let generator = arrow::ipc::writer::IpcDataGenerator::default();
        let mut tracker = arrow::ipc::writer::DictionaryTracker::new(false);
        let mut context = arrow::ipc::writer::IpcWriteContext::default();
        let (_, packed) = generator.encode(&rows, &mut tracker, &options, &mut context).unwrap();
        let packed: FlightData = packed.into();
        let (decoder, _) = decode(Decoder::new(1 << 20), &messages[0]).await.unwrap();
        let error = decode(decoder, &packed).await.unwrap_err().to_string();
        assert!(error.contains("compression=None"), "{error}");
    }
}
