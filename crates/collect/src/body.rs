//! Bodies of requests, never more of them than there is room for.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use flate2::read::MultiGzDecoder;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::refusal::Refusal;
use crate::settings::CollectSettings;

/// What is counted at once.
const UNIT_BYTES: usize = 1 << 10;
/// What is set aside for a body of unknown length to begin with, and unpacked at once.
const STEP_BYTES: usize = 64 << 10;
/// How much of a body that is not taken is read, for the client to see the answer instead of a broken connection.
const READ_ON_BYTES_MAX: usize = 16 << 20;
const READ_ON_MAX: Duration = Duration::from_secs(2);

/// The room for all requests that are not answered yet.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    units: Arc<Semaphore>,
}

/// A part of the room, given back when dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    room: Room,
    permit: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { units: Arc::new(Semaphore::new((bytes / UNIT_BYTES).min(Semaphore::MAX_PERMITS))) }
    }

    /// # Errors
    /// [`Refusal::Busy`] when there is not as much.
    pub(crate) fn take(&self, bytes: usize) -> Result<Hold, Refusal> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES).max(1)).map_err(|_| Refusal::Busy)?;
        let permit = Arc::clone(&self.units).try_acquire_many_owned(units).map_err(|_| Refusal::Busy)?;
        Ok(Hold { room: self.clone(), permit })
    }
}

impl Hold {
    /// # Errors
    /// [`Refusal::Busy`] when there is not as much.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let more = self.room.take(bytes)?;
        self.permit.merge(more.permit);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.permit.num_permits() * UNIT_BYTES
    }
}

/// Reads a body and unpacks it.
///
/// # Errors
/// [`Refusal::RequestTooLarge`], [`Refusal::Busy`], [`Refusal::Slow`], and what is wrong with the packing.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
    room: &Room,
    settings: &CollectSettings,
) -> Result<(Vec<u8>, Hold), Refusal> {
    let packed = is_gzip(headers)?;
    let mut stream = body.into_data_stream();
    match collect(headers, &mut stream, room, settings).await {
        Ok((bytes, hold)) if packed => unpack(&bytes, hold, settings.request_bytes_max),
        Ok(read) => Ok(read),
        Err(refusal) => {
            // A client that asks before it sends reads the answer first.
            if !headers.contains_key(header::EXPECT) {
                read_on(&mut stream).await;
            }
            Err(refusal)
        }
    }
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, Refusal> {
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else { return Ok(false) };
    match encoding.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(false),
        "gzip" | "x-gzip" => Ok(true),
        _ => Err(Refusal::MediaType("the content encoding is gzip or none".to_owned())),
    }
}

async fn collect(
    headers: &HeaderMap,
    stream: &mut BodyDataStream,
    room: &Room,
    settings: &CollectSettings,
) -> Result<(Vec<u8>, Hold), Refusal> {
    let too_large = Refusal::RequestTooLarge { max: settings.request_bytes_max };
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > settings.request_bytes_max) {
        return Err(too_large);
    }
    let mut hold = room.take(length.unwrap_or(STEP_BYTES))?;
    let mut bytes = Vec::with_capacity(length.unwrap_or(0));
    let deadline = Instant::now() + settings.body_timeout;
    loop {
        match timeout_at(deadline, stream.next()).await {
            Err(_) => return Err(Refusal::Slow),
            Ok(None) => return Ok((bytes, hold)),
            Ok(Some(Err(_))) => return Err(Refusal::Shape("the body broke off: send it again".to_owned())),
            Ok(Some(Ok(chunk))) => {
                if bytes.len() + chunk.len() > settings.request_bytes_max {
                    return Err(too_large);
                }
                if bytes.len() + chunk.len() > hold.bytes() {
                    hold.grow(chunk.len().max(STEP_BYTES))?;
                }
                bytes.extend_from_slice(&chunk);
            }
        }
    }
}

async fn read_on(stream: &mut BodyDataStream) {
    let deadline = Instant::now() + READ_ON_MAX;
    let mut read = 0;
    while let Ok(Some(Ok(chunk))) = timeout_at(deadline, stream.next()).await {
        read += chunk.len();
        if read > READ_ON_BYTES_MAX {
            return;
        }
    }
}

fn unpack(packed: &[u8], mut hold: Hold, bytes_max: usize) -> Result<(Vec<u8>, Hold), Refusal> {
    let mut decoder = MultiGzDecoder::new(packed);
    let mut bytes = Vec::new();
    let mut step = vec![0; STEP_BYTES];
    loop {
        let read = decoder
            .read(&mut step)
            .map_err(|_| Refusal::Shape("the body says it is gzip and cannot be unpacked".to_owned()))?;
        if read == 0 {
            return Ok((bytes, hold));
        }
        if bytes.len() + read > bytes_max {
            return Err(Refusal::RequestTooLarge { max: bytes_max });
        }
        hold.grow(read)?;
        bytes.extend_from_slice(&step[..read]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn room_is_given_back() {
        let room = Room::new(10 << 10);
        let mut hold = room.take(4 << 10).unwrap();
        hold.grow(6 << 10).unwrap();
        assert_eq!(hold.bytes(), 10 << 10);
        assert_eq!(room.take(1).unwrap_err(), Refusal::Busy);
        drop(hold);
        room.take(10 << 10).unwrap();
    }

    #[test]
    fn a_small_body_that_unpacks_to_a_large_one_is_refused_on_the_way() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&vec![b' '; 100 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        let room = Room::new(8 << 20);
        let refusal = unpack(&packed, room.take(packed.len()).unwrap(), 4 << 20).unwrap_err();
        assert_eq!(refusal, Refusal::RequestTooLarge { max: 4 << 20 });
        let refusal = unpack(&packed, room.take(packed.len()).unwrap(), 100 << 20).unwrap_err();
        assert_eq!(refusal, Refusal::Busy, "no more than there is room for");
        assert!(unpack(&packed[..100], room.take(100).unwrap(), 4 << 20).is_err());
    }
}
