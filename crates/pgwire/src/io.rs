//! The two directions of a connection. Reading goes on while a query runs, so that who leaves is noticed; writing goes on where it was
//! when it was stopped, so that a message is never cut.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::error::{Problem, state};

/// How far reading goes ahead of answering.
const AHEAD_BYTES: usize = 1 << 20;
/// What is written at once.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// The longest message of a start-up, as PostgreSQL has it.
const STARTUP_BYTES: usize = 10_000;
/// How long a client may take to read what ends something.
const FAREWELL: Duration = Duration::from_secs(20);

/// What a connection is made of, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why something ends before its time.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The client is told.
    Told(Problem),
    /// There is nobody to tell.
    Gone,
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Told(problem)
    }
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) body: Bytes,
    /// The body was longer than it may be, and is not here.
    pub(crate) is_too_long: bool,
}

/// What ends a statement.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub(crate) cancelled: CancellationToken,
    pub(crate) aborted: CancellationToken,
    pub(crate) deadline: Instant,
    pub(crate) limit: Duration,
}

impl Watch {
    fn timeout(&self) -> Problem {
        let seconds = self.limit.as_secs_f64();
        Problem::new(state::QUERY_CANCELED, format!("canceling statement due to statement timeout, after {seconds} s"))
    }

    fn cancel() -> Problem {
        Problem::new(state::QUERY_CANCELED, "canceling statement due to user request")
    }

    fn shutdown() -> Problem {
        Problem::fatal(state::SHUTDOWN, "terminating connection: the service is shutting down, connect again later")
    }
}

pub(crate) struct Io {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    input: BytesMut,
    pub(crate) output: Vec<u8>,
    written: usize,
}

impl Io {
    pub(crate) fn new(stream: Box<dyn Stream>) -> Self {
        let (reader, writer) = split(stream);
        Self { reader, writer, input: BytesMut::new(), output: Vec::new(), written: 0 }
    }

    /// The stream again, to speak TLS over it; `None` when something came that was not asked for.
    pub(crate) fn into_stream(self) -> Option<Box<dyn Stream>> {
        self.input.is_empty().then(|| self.reader.unsplit(self.writer))
    }

    /// A message of the start-up, which has a length and no kind.
    pub(crate) async fn startup_frame(&mut self) -> Result<Bytes, Stop> {
        self.fill(4).await?;
        let length = self.length_at(0)?;
        if !(8..=STARTUP_BYTES).contains(&length) {
            return Err(Problem::fatal(state::PROTOCOL_VIOLATION, "invalid length of startup packet").into());
        }
        self.fill(length).await?;
        let mut frame = self.input.split_to(length).freeze();
        frame.advance(4);
        Ok(frame)
    }

    /// The next message. `max_bytes` is for its body; the rest of a longer one is read and forgotten. The first byte may take as long
    /// as `idle`, the rest `limit`.
    pub(crate) async fn frame(&mut self, max_bytes: usize, idle: Duration, limit: Duration) -> Result<Frame, Stop> {
        let ended = || {
            Problem::fatal(state::IDLE_SESSION, "terminating connection due to idle-session timeout")
                .with_hint(format!("nothing was asked for {} s: connect again", idle.as_secs_f64()))
        };
        timeout(idle, self.fill(1)).await.map_err(|_| Stop::from(ended()))??;
        let too_slow = || Problem::fatal(state::PROTOCOL_VIOLATION, "the rest of the message did not come in time");
        timeout(limit, self.rest_of_frame(max_bytes)).await.map_err(|_| Stop::from(too_slow()))?
    }

    async fn rest_of_frame(&mut self, max_bytes: usize) -> Result<Frame, Stop> {
        self.fill(5).await?;
        let (kind, length) = (self.input[0], self.length_at(1)?);
        if length < 4 {
            return Err(Problem::malformed("its length is shorter than itself").into());
        }
        let mut body = length - 4;
        self.input.advance(5);
        if body <= max_bytes {
            self.fill(body).await?;
            return Ok(Frame { kind, body: self.input.split_to(body).freeze(), is_too_long: false });
        }
        while body > 0 {
            self.fill(1).await?;
            let skipped = body.min(self.input.len());
            self.input.advance(skipped);
            body -= skipped;
        }
        Ok(Frame { kind, body: Bytes::new(), is_too_long: true })
    }

    fn length_at(&self, at: usize) -> Result<usize, Stop> {
        let mut bytes = &self.input[at..at + 4];
        usize::try_from(bytes.get_i32()).map_err(|_| Problem::malformed("its length is negative").into())
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), Stop> {
        while self.input.len() < bytes {
            // Room for what has come, not for what is said to come: a length alone takes no memory.
            self.input.reserve(8 << 10);
            match self.reader.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return Err(Stop::Gone),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Writes all that waits to be written, unless something ends it; then the rest waits on.
    pub(crate) async fn flush_watched(&mut self, watch: &Watch) -> Result<(), Stop> {
        let Self { reader, writer, input, output, written } = self;
        tokio::select! {
            biased;
            () = watch.aborted.cancelled() => Err(Watch::shutdown().into()),
            () = watch.cancelled.cancelled() => Err(Watch::cancel().into()),
            () = tokio::time::sleep_until(watch.deadline) => Err(watch.timeout().into()),
            () = left(reader, input) => Err(Stop::Gone),
            ended = write(writer, output, written) => ended,
        }
    }

    /// Writes all that waits to be written; a client that does not read is left.
    pub(crate) async fn flush(&mut self) -> Result<(), Stop> {
        let Self { writer, output, written, .. } = self;
        timeout(FAREWELL, write(writer, output, written)).await.unwrap_or(Err(Stop::Gone))
    }

    /// Does work while watching what may end it.
    pub(crate) async fn guarded<T>(
        &mut self,
        watch: &Watch,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Stop> {
        let Self { reader, input, .. } = self;
        tokio::select! {
            biased;
            () = watch.aborted.cancelled() => Err(Watch::shutdown().into()),
            () = watch.cancelled.cancelled() => Err(Watch::cancel().into()),
            () = left(reader, input) => Err(Stop::Gone),
            ended = timeout_at(watch.deadline, work) => match ended {
                Ok(ended) => ended.map_err(Stop::from),
                Err(_) => Err(watch.timeout().into()),
            },
        }
    }

    /// Says the last word and closes.
    pub(crate) async fn close(mut self) {
        let _ = self.flush().await;
        let _ = timeout(FAREWELL, self.writer.shutdown()).await;
    }
}

/// Writes the rest of the buffer. May be dropped at any moment: what was written is noted.
async fn write(writer: &mut WriteHalf<Box<dyn Stream>>, output: &mut Vec<u8>, written: &mut usize) -> Result<(), Stop> {
    while *written < output.len() {
        match writer.write(&output[*written..]).await {
            Ok(0) | Err(_) => return Err(Stop::Gone),
            Ok(count) => *written += count,
        }
    }
    output.clear();
    *written = 0;
    // A long row is no reason to keep its room.
    if output.capacity() > 4 * CHUNK_BYTES {
        output.shrink_to(CHUNK_BYTES);
    }
    poll_fn(|task| Pin::new(&mut *writer).poll_flush(task)).await.map_err(|_| Stop::Gone)
}

/// Returns when the other side has gone. What it sends meanwhile is kept, up to a limit.
async fn left(reader: &mut ReadHalf<Box<dyn Stream>>, input: &mut BytesMut) {
    while input.len() < AHEAD_BYTES {
        input.reserve(8 << 10);
        match reader.read_buf(input).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    pending().await
}
