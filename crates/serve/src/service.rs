use std::future::Future;
use std::sync::Arc;
use std::time::Instant as Began;

use arrow::datatypes::Schema;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    Any, ProstMessageExt,
};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, IpcMessage, PollInfo, PutResult, Result as ActionResult, SchemaAsIpc, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use holdfast_engine::{LakeReader, Published, PublishedTable};
use prost::Message;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span};

use crate::answer::Answer;
use crate::feature_calls::{self, Exchange};
use crate::online_calls;
use crate::put::Puts;
use crate::question::{Question, prepared_handle, prepared_query};
use crate::rights::Rights;
use crate::runs::Runs;
use crate::stream::Streams;
use crate::telemetry::{Call, Sent, outcome};
use crate::wire::wire_schema;
use crate::{Result, ServeError, ServeSettings};

const CREATE_PREPARED_STATEMENT: &str = "CreatePreparedStatement";
const CLOSE_PREPARED_STATEMENT: &str = "ClosePreparedStatement";
const HEALTH: &str = "health";
const REFRESH: &str = "refresh";
const LIST_FEATURES: &str = "list_features";
const DESCRIBE_FEATURES: &str = "describe_features";
const DATASETS: &str = "get_dataset";

/// The messages of an answer.
type Messages = BoxStream<'static, Result<FlightData, Status>>;

/// Everything that can be asked of the service. What is put is handed on; nothing here changes the lake.
#[derive(Debug)]
pub(crate) struct HoldfastFlight {
    pub(crate) runs: Arc<Runs>,
    pub(crate) streams: Arc<Streams>,
    puts: Option<Arc<Puts>>,
    settings: Arc<ServeSettings>,
    began: Began,
}

impl HoldfastFlight {
    pub(crate) fn new(reader: Arc<LakeReader>, puts: Option<Arc<Puts>>, settings: Arc<ServeSettings>) -> Self {
        Self {
            runs: Arc::new(Runs::new(reader, &settings)),
            streams: Arc::new(Streams::new(Arc::clone(&settings))),
            puts,
            settings,
            began: Began::now(),
        }
    }

    /// One call that is answered at once: in its span, within the time a query may take, counted.
    async fn call<T>(&self, method: &'static str, work: impl Future<Output = Result<T>> + Send) -> Result<T, Status> {
        let call = Call::begin(method);
        let timeout = self.settings.query_timeout;
        let result = tokio::time::timeout(timeout, work.boxed())
            .instrument(call.span.clone())
            .await
            .unwrap_or(Err(ServeError::Deadline(timeout)));
        call.end("", Sent::default(), outcome(&result));
        result.map_err(|error| error.status())
    }

    /// When a call that begins at this moment must have sent its last message.
    fn deadline(&self) -> Instant {
        Instant::now() + self.settings.query_timeout
    }

    /// One call that is answered by a stream: begun in its span, within the time a query may take.
    async fn begun(
        &self,
        deadline: Instant,
        call: Call,
        begin: impl Future<Output = Result<Messages>> + Send,
    ) -> Result<Response<Messages>, Status> {
        let begun = tokio::time::timeout_at(deadline, begin.boxed())
            .instrument(call.span.clone())
            .await
            .unwrap_or(Err(ServeError::Deadline(self.settings.query_timeout)));
        // Once begun, the stream reports its own end.
        if begun.is_err() {
            call.end("", Sent::default(), outcome(&begun));
        }
        begun.map(Response::new).map_err(|error| error.status())
    }

    async fn plan(&self, question: Question, run: &Published) -> Result<Answer> {
        if let Question::Online(command) = &question {
            return online_calls::answer(&self.runs, command, &self.settings).await.map(Answer::ready_batch);
        }
        Answer::plan(question, run, &self.settings, self.puts.is_some()).await
    }

    async fn flight_info(&self, rights: Rights, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        let question = understand(Question::from_descriptor(&descriptor)?);
        rights.to_ask(&question)?;
        let run = self.newest_run();
        let answer = self.plan(question, &run).await?;
        info(descriptor, &answer.schema, answer.rows, answer.bytes, run.sequence())
    }

    async fn schema(&self, rights: Rights, descriptor: &FlightDescriptor) -> Result<SchemaResult> {
        let question = understand(Question::from_descriptor(descriptor)?);
        rights.to_ask(&question)?;
        let answer = self.plan(question, &self.newest_run()).await?;
        Ok(SchemaResult { schema: ipc_schema(&answer.schema)? })
    }

    async fn begin_stream(&self, rights: Rights, ticket: Ticket, deadline: Instant, call: Call) -> Result<Messages> {
        let (question, sequence) = Question::from_ticket(&ticket.ticket)?;
        let command = question.label();
        let question = understand(question);
        rights.to_ask(&question)?;
        let place = self.streams.admit().await?;
        let run = self.runs.pinned(sequence).await?;
        Span::current().record("run", run.sequence());
        let answer = self.plan(question, &run).await?;
        Ok(ReceiverStream::new(self.streams.start(answer, place, deadline, call, command)).boxed())
    }

    /// Reads the beginning of what a client sends and starts to answer it.
    async fn begin_exchange(
        &self,
        rights: Rights,
        mut messages: Streaming<FlightData>,
        deadline: Instant,
        call: Call,
    ) -> Result<Messages> {
        rights.to_read()?;
        let (exchange, first) = Exchange::begin(&mut messages).await?;
        let label = exchange.label();
        Span::current().record("command", label);
        let answers = match exchange {
            Exchange::Historical(command) => {
                let place = self.streams.admit().await?;
                let sent = (first, messages);
                let answer = feature_calls::historical(self.runs.lake(), command, sent, &self.settings).await?;
                self.streams.start(answer, place, deadline, call, label)
            }
            Exchange::Online(command) => {
                let place = self.streams.admit_conversation()?;
                let (runs, settings) = (Arc::clone(&self.runs), Arc::clone(&self.settings));
                let (schema, answers) = online_calls::converse(runs, command, (first, messages), settings).await?;
                self.streams.converse(schema, answers, place, call, label)
            }
        };
        Ok(ReceiverStream::new(answers).boxed())
    }

    /// The published tables whose name is, or begins with, what the criteria say; all of them without criteria.
    fn flights(&self, rights: Rights, criteria: &Criteria) -> Result<Vec<FlightInfo>> {
        rights.to_read()?;
        let wanted = std::str::from_utf8(&criteria.expression)
            .map_err(|_| ServeError::Request("criteria are the beginning of a table's name, in UTF-8".to_owned()))?;
        let run = self.newest_run();
        let tables = run.tables().iter().filter(|table| table.name.to_string().starts_with(wanted));
        tables.map(|table| table_info(table, run.sequence())).collect()
    }

    async fn action(&self, rights: Rights, action: Action) -> Result<Option<Bytes>> {
        rights.to_read()?;
        match action.r#type.as_str() {
            CREATE_PREPARED_STATEMENT => {
                let request: ActionCreatePreparedStatementRequest = unpack(&action.body)?;
                let question = understand(Question::Statement(request.query.clone()));
                let answer = self.plan(question, &self.newest_run()).await?;
                let result = ActionCreatePreparedStatementResult {
                    prepared_statement_handle: prepared_handle(request.query),
                    dataset_schema: ipc_schema(&answer.schema)?,
                    parameter_schema: ipc_schema(&Schema::empty())?,
                };
                Ok(Some(result.as_any().encode_to_vec().into()))
            }
            CLOSE_PREPARED_STATEMENT => {
                let request: ActionClosePreparedStatementRequest = unpack(&action.body)?;
                // Nothing is kept for it; a handle that is none is still told.
                prepared_query(&request.prepared_statement_handle)?;
                Ok(None)
            }
            LIST_FEATURES => feature_calls::list(self.runs.lake(), self.runs.online()).await.map(Some),
            DESCRIBE_FEATURES => feature_calls::describe(self.runs.lake(), &action.body).await.map(Some),
            DATASETS => feature_calls::datasets(self.runs.lake(), &action.body).await.map(Some),
            HEALTH => Ok(Some(self.health(None))),
            REFRESH => {
                let swapped = self.runs.refresh().await?;
                Ok(Some(self.health(Some(swapped))))
            }
            other => Err(ServeError::Unsupported(format!(
                "the action `{}` is not offered: ListActions tells which are",
                other.chars().take(120).collect::<String>()
            ))),
        }
    }

    fn health(&self, swapped: Option<bool>) -> Bytes {
        let run = self.runs.newest();
        let mut health = serde_json::json!({
            "status": "serving",
            "version": env!("CARGO_PKG_VERSION"),
            "run_sequence": run.sequence(),
            "run_id": run.run_id(),
            "as_of": run.as_of().to_rfc3339(),
            "tables": run.tables().len(),
            "uptime_seconds": self.began.elapsed().as_secs(),
        });
        if let (Some(swapped), Some(fields)) = (swapped, health.as_object_mut()) {
            fields.insert("swapped".to_owned(), swapped.into());
        }
        health.to_string().into()
    }

    fn newest_run(&self) -> Arc<Published> {
        let run = self.runs.newest();
        Span::current().record("run", run.sequence());
        run
    }
}

#[tonic::async_trait]
impl FlightService for HoldfastFlight {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = Messages;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoActionStream = BoxStream<'static, Result<ActionResult, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;

    async fn handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let refusal = "there are no users and passwords here: leave them out, and send the token as the header \
                       `authorization: Bearer <token>`";
        self.call("Handshake", async { Err(ServeError::Unsupported(refusal.to_owned())) }).await
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let rights = Rights::of(request.extensions());
        let criteria = request.into_inner();
        let flights = self.call("ListFlights", async { self.flights(rights, &criteria) }).await?;
        Ok(Response::new(all(flights)))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let rights = Rights::of(request.extensions());
        self.call("GetFlightInfo", self.flight_info(rights, request.into_inner())).await.map(Response::new)
    }

    /// Planning is all that happens before `DoGet`, so the first poll has the final answer.
    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let rights = Rights::of(request.extensions());
        let info = self.call("PollFlightInfo", self.flight_info(rights, request.into_inner())).await?;
        Ok(Response::new(PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() }))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let rights = Rights::of(request.extensions());
        let descriptor = request.into_inner();
        self.call("GetSchema", self.schema(rights, &descriptor)).await.map(Response::new)
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let call = Call::begin("DoGet");
        let rights = Rights::of(request.extensions());
        let deadline = self.deadline();
        let begin = self.begin_stream(rights, request.into_inner(), deadline, call.clone());
        self.begun(deadline, call, begin).await
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let Some(puts) = &self.puts else {
            let refusal = "this service is read-only and takes no parameters: write the values into the statement, and \
                           load data with `holdfast ingest`, or start the service with --accept-puts";
            return self.call("DoPut", async { Err(ServeError::Unsupported(refusal.to_owned())) }).await;
        };
        let call = Call::begin("DoPut");
        let rights = Rights::of(request.extensions());
        let begun = rights.to_put().and_then(|()| puts.begin(request, call.clone()));
        // Once begun, the call reports its own end.
        if begun.is_err() {
            call.end("", Sent::default(), outcome(&begun));
        }
        begun.map(|answers| Response::new(ReceiverStream::new(answers).boxed())).map_err(|error| error.status())
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        let call = Call::begin("DoExchange");
        let rights = Rights::of(request.extensions());
        let deadline = self.deadline();
        let begin = self.begin_exchange(rights, request.into_inner(), deadline, call.clone());
        self.begun(deadline, call, begin).await
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let rights = Rights::of(request.extensions());
        let result = self.call("DoAction", self.action(rights, request.into_inner())).await?;
        Ok(Response::new(all(result.map(|body| ActionResult { body }))))
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let action =
            |name: &str, description: &str| ActionType { r#type: name.to_owned(), description: description.to_owned() };
        Ok(Response::new(all([
            action(HEALTH, "The run that is served and since when, as JSON."),
            action(LIST_FEATURES, "The feature views and services, as JSON."),
            action(DESCRIBE_FEATURES, "A feature view or service, NAME or NAME@v3 in UTF-8, as JSON."),
            action(DATASETS, "The training sets of the lake, as JSON; with an id in UTF-8, that one."),
            action(REFRESH, "Looks for a newer run at once; answers as `health` does, with `swapped`."),
            action(
                CREATE_PREPARED_STATEMENT,
                "Prepares a query without parameters. Request: ActionCreatePreparedStatementRequest, response: \
                 ActionCreatePreparedStatementResult.",
            ),
            action(
                CLOSE_PREPARED_STATEMENT,
                "Closes a prepared query. Request: ActionClosePreparedStatementRequest, no response.",
            ),
        ])))
    }
}

/// Notes in the span what kind of question it is.
fn understand(question: Question) -> Question {
    Span::current().record("command", question.label());
    question
}

fn table_info(table: &PublishedTable, run_sequence: u64) -> Result<FlightInfo> {
    let path = vec![table.name.schema().to_owned(), table.name.table().to_owned()];
    info(FlightDescriptor::new_path(path), &wire_schema(&table.schema), table.rows, Some(table.bytes), run_sequence)
}

fn info(
    descriptor: FlightDescriptor,
    schema: &Schema,
    rows: Option<u64>,
    bytes: Option<u64>,
    run_sequence: u64,
) -> Result<FlightInfo> {
    let ticket = Ticket { ticket: Question::ticket(&descriptor, run_sequence) };
    // Flight says -1 for what is not known.
    let known = |count: Option<u64>| count.and_then(|count| i64::try_from(count).ok()).unwrap_or(-1);
    Ok(FlightInfo::new()
        .try_with_schema(schema)?
        .with_endpoint(FlightEndpoint::new().with_ticket(ticket))
        .with_descriptor(descriptor)
        .with_ordered(true)
        .with_total_records(known(rows))
        .with_total_bytes(known(bytes)))
}

fn ipc_schema(schema: &Schema) -> Result<Bytes> {
    let options = arrow::ipc::writer::IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options).try_into()?;
    Ok(bytes)
}

fn unpack<M: ProstMessageExt>(body: &[u8]) -> Result<M> {
    let unpacked = Any::decode(body).ok().and_then(|any| any.unpack::<M>().ok().flatten());
    unpacked.ok_or_else(|| ServeError::Request(format!("the body of the action is not a {}", M::type_url())))
}

fn all<T: Send + 'static>(
    items: impl IntoIterator<Item = T, IntoIter: Send + 'static>,
) -> BoxStream<'static, Result<T, Status>> {
    futures::stream::iter(items.into_iter().map(Ok)).boxed()
}
