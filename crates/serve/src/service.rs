use std::future::Future;
use std::sync::Arc;
use std::time::Instant as Began;

use arrow::datatypes::{Schema, SchemaRef};
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
use holdfast_access::{Access, Limits, Running, query_hash};
use holdfast_engine::{LakeReader, Published, PublishedTable};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span};

use crate::answer::{Answer, bytes_of};
use crate::audited::{Audited, FLIGHT};
use crate::feature_calls::{self, Exchange};
use crate::feature_rights::{FeatureGuard, FeatureNames};
use crate::online_calls::{self, Answers, Asking};
use crate::put::Puts;
use crate::question::{Question, prepared_handle, prepared_query};
use crate::rights::{Caller, Rights};
use crate::runs::Runs;
use crate::stream::{Bounds, Place, Streams};
use crate::telemetry::{Call, Sent, outcome};
use crate::wire::wire_schema;
use crate::{Result, ServeError, ServeSettings, handshake};

const CREATE_PREPARED_STATEMENT: &str = "CreatePreparedStatement";
const CLOSE_PREPARED_STATEMENT: &str = "ClosePreparedStatement";
const HEALTH: &str = "health";
const REFRESH: &str = "refresh";
const LIST_FEATURES: &str = "list_features";
const DESCRIBE_FEATURES: &str = "describe_features";
const DATASETS: &str = "get_dataset";

/// An exchange that has begun.
enum Begun {
    /// One answer.
    Answer(Answer, Place, Limits, Running),
    /// An answer to each batch of keys.
    Talk(SchemaRef, Answers, (OwnedSemaphorePermit, Limits, Running)),
}

/// The messages of an answer.
type Messages = BoxStream<'static, Result<FlightData, Status>>;

/// Everything that can be asked of the service. What is put is handed on; nothing here changes the lake.
#[derive(Debug)]
pub(crate) struct HoldfastFlight {
    pub(crate) runs: Arc<Runs>,
    pub(crate) streams: Arc<Streams>,
    puts: Option<Arc<Puts>>,
    settings: Arc<ServeSettings>,
    pub(crate) access: Arc<Access>,
    began: Began,
}

impl HoldfastFlight {
    pub(crate) fn new(
        reader: Arc<LakeReader>,
        puts: Option<Arc<Puts>>,
        settings: Arc<ServeSettings>,
        access: Arc<Access>,
    ) -> Self {
        Self {
            runs: Arc::new(Runs::new(reader, &settings)),
            streams: Arc::new(Streams::new(Arc::clone(&settings))),
            puts,
            settings,
            access,
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

    /// `run` is as the caller sees it.
    async fn plan(&self, caller: &Caller, question: Question, run: &Published) -> Result<Answer> {
        if let Question::Online(command) = &question {
            let newest = self.runs.newest();
            let guard = FeatureGuard::new(&self.access, &caller.principal, &newest);
            return online_calls::answer(&self.runs, command, &self.settings, &guard).await;
        }
        Answer::plan(question, run, &self.settings, self.puts.is_some()).await
    }

    async fn flight_info(&self, caller: Caller, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        let question = understand(Question::from_descriptor(&descriptor)?);
        caller.rights.to_ask(&question)?;
        let run = self.newest_run(&caller)?;
        let answer = self.plan(&caller, question, &run).await?;
        info(descriptor, &answer.schema, answer.rows, answer.bytes, run.sequence())
    }

    async fn schema(&self, caller: Caller, descriptor: &FlightDescriptor) -> Result<SchemaResult> {
        let question = understand(Question::from_descriptor(descriptor)?);
        caller.rights.to_ask(&question)?;
        let run = self.newest_run(&caller)?;
        let answer = self.plan(&caller, question, &run).await?;
        Ok(SchemaResult { schema: ipc_schema(&answer.schema)? })
    }

    async fn begin_stream(&self, caller: Caller, ticket: Ticket, deadline: Instant, call: Call) -> Result<Messages> {
        let (question, sequence) = Question::from_ticket(&ticket.ticket)?;
        let command = question.label();
        let question = understand(question);
        caller.rights.to_ask(&question)?;
        let mut audited = Audited::new(&self.access, &caller.principal, FLIGHT, command);
        audited.entry.query_hash = match &question {
            Question::Statement(sql) => Some(query_hash(sql)),
            _ => None,
        };
        let begin = async {
            let (running, limits) = self.access.admit(&caller.principal)?;
            let place = self.streams.admit().await?;
            let run = self.runs.pinned(sequence).await?;
            let run = self.access.view(&caller.principal, &run)?;
            Span::current().record("run", run.sequence());
            audited.entry.run = run.sequence();
            let answer = self.plan(&caller, question, &run).await?;
            audited.reads(&answer)?;
            audited.begin().await?;
            Ok::<_, ServeError>((
                answer,
                place,
                Bounds { deadline: bounded(deadline, &limits), limits, _running: running },
            ))
        };
        let begun = begin.await;
        match begun {
            Ok((answer, place, bounds)) => {
                Ok(ReceiverStream::new(self.streams.start(answer, place, bounds, call, audited)).boxed())
            }
            Err(error) => Err(audited.refused(error)),
        }
    }

    /// Reads the beginning of what a client sends and starts to answer it.
    async fn begin_exchange(
        &self,
        caller: Caller,
        mut messages: Streaming<FlightData>,
        deadline: Instant,
        call: Call,
    ) -> Result<Messages> {
        caller.rights.to_read()?;
        let (exchange, first) = Exchange::begin(&mut messages).await?;
        let label = exchange.label();
        Span::current().record("command", label);
        let mut audited = Audited::new(&self.access, &caller.principal, FLIGHT, label);
        match self.begun_exchange(&caller, exchange, (first, messages), &mut audited).await {
            Ok(Begun::Answer(answer, place, limits, running)) => {
                let bounds = Bounds { deadline: bounded(deadline, &limits), limits, _running: running };
                Ok(ReceiverStream::new(self.streams.start(answer, place, bounds, call, audited)).boxed())
            }
            Ok(Begun::Talk(schema, answers, place)) => {
                Ok(ReceiverStream::new(self.streams.converse(schema, answers, place, call, audited)).boxed())
            }
            Err(error) => Err(audited.refused(error)),
        }
    }

    async fn begun_exchange(
        &self,
        caller: &Caller,
        exchange: Exchange,
        sent: (FlightData, Streaming<FlightData>),
        audited: &mut Audited,
    ) -> Result<Begun> {
        let (running, limits) = self.access.admit(&caller.principal)?;
        let run = self.runs.newest();
        Span::current().record("run", run.sequence());
        audited.entry.run = run.sequence();
        match exchange {
            Exchange::Historical(command) => {
                let place = self.streams.admit().await?;
                let guard = FeatureGuard::new(&self.access, &caller.principal, &run);
                let answer = feature_calls::historical(self.runs.lake(), command, sent, &self.settings, &guard).await?;
                audited.reads(&answer)?;
                audited.begin().await?;
                Ok(Begun::Answer(answer, place, limits, running))
            }
            Exchange::Online(command) => {
                let place = self.streams.admit_conversation()?;
                let (runs, settings) = (Arc::clone(&self.runs), Arc::clone(&self.settings));
                let asking = Asking { access: Arc::clone(&self.access), principal: Arc::clone(&caller.principal) };
                let (schema, touched, answers) = online_calls::converse(runs, command, sent, settings, asking).await?;
                audited.entry.touched = touched;
                audited.begin().await?;
                Ok(Begun::Talk(schema, answers, (place, limits, running)))
            }
        }
    }

    /// The published tables whose name is, or begins with, what the criteria say; all of them without criteria.
    fn flights(&self, caller: &Caller, criteria: &Criteria) -> Result<Vec<FlightInfo>> {
        caller.rights.to_read()?;
        let wanted = std::str::from_utf8(&criteria.expression)
            .map_err(|_| ServeError::Request("criteria are the beginning of a table's name, in UTF-8".to_owned()))?;
        let run = self.newest_run(caller)?;
        let tables = run.tables().iter().filter(|table| table.name.to_string().starts_with(wanted));
        tables.map(|table| table_info(table, run.sequence())).collect()
    }

    async fn action(&self, caller: &Caller, action: Action) -> Result<Option<Bytes>> {
        caller.rights.to_read()?;
        match action.r#type.as_str() {
            CREATE_PREPARED_STATEMENT => {
                let request: ActionCreatePreparedStatementRequest = unpack(&action.body)?;
                let question = understand(Question::Statement(request.query.clone()));
                let run = self.newest_run(caller)?;
                let answer = self.plan(caller, question, &run).await?;
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
            LIST_FEATURES => {
                let body = feature_calls::list(self.runs.lake(), self.runs.online()).await?;
                self.feature_names(caller).await?.of_list(body).map(Some)
            }
            DESCRIBE_FEATURES => {
                let body = feature_calls::describe(self.runs.lake(), &action.body).await?;
                self.feature_names(caller).await?.of_description(body).map(Some)
            }
            DATASETS => {
                let body = feature_calls::datasets(self.runs.lake(), &action.body).await?;
                self.feature_names(caller).await?.of_datasets(body).map(Some)
            }
            HEALTH => Ok(Some(self.health(caller, None)?)),
            REFRESH => {
                let swapped = self.runs.refresh().await?;
                Ok(Some(self.health(caller, Some(swapped))?))
            }
            other => Err(ServeError::Unsupported(format!(
                "the action `{}` is not offered: ListActions tells which are",
                other.chars().take(120).collect::<String>()
            ))),
        }
    }

    /// Which feature views the caller may know of.
    async fn feature_names(&self, caller: &Caller) -> Result<FeatureNames> {
        if self.access.policy().is_none() {
            return Ok(FeatureNames::all());
        }
        FeatureNames::seen(self.runs.lake(), self.newest_run(caller)?.as_ref()).await
    }

    fn health(&self, caller: &Caller, swapped: Option<bool>) -> Result<Bytes> {
        let run = self.newest_run(caller)?;
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
        Ok(health.to_string().into())
    }

    /// The newest run as the caller sees it.
    fn newest_run(&self, caller: &Caller) -> Result<Arc<Published>> {
        let run = self.runs.newest();
        Span::current().record("run", run.sequence());
        Ok(self.access.view(&caller.principal, &run)?)
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
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let from = request.remote_addr().map(|address| address.ip());
        let sent = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let messages = request.into_inner();
        let token = self.call("Handshake", handshake::token(&self.access, sent, messages, from)).await?;
        let mut response =
            Response::new(all([HandshakeResponse { protocol_version: 0, payload: token.clone().into_bytes().into() }]));
        if let Ok(value) = format!("Bearer {token}").parse() {
            response.metadata_mut().insert("authorization", value);
        }
        Ok(response)
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let caller = caller(request.extensions())?;
        let criteria = request.into_inner();
        let flights = self.call("ListFlights", async { self.flights(&caller, &criteria) }).await?;
        Ok(Response::new(all(flights)))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let caller = caller(request.extensions())?;
        self.call("GetFlightInfo", self.flight_info(caller, request.into_inner())).await.map(Response::new)
    }

    /// Planning is all that happens before `DoGet`, so the first poll has the final answer.
    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let caller = caller(request.extensions())?;
        let info = self.call("PollFlightInfo", self.flight_info(caller, request.into_inner())).await?;
        Ok(Response::new(PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() }))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let caller = caller(request.extensions())?;
        let descriptor = request.into_inner();
        self.call("GetSchema", self.schema(caller, &descriptor)).await.map(Response::new)
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let call = Call::begin("DoGet");
        let caller = caller(request.extensions())?;
        let deadline = self.deadline();
        let begin = self.begin_stream(caller, request.into_inner(), deadline, call.clone());
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
        let caller = caller(request.extensions())?;
        let deadline = self.deadline();
        let begin = self.begin_exchange(caller, request.into_inner(), deadline, call.clone());
        self.begun(deadline, call, begin).await
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let caller = caller(request.extensions())?;
        let result = self.call("DoAction", self.action(&caller, request.into_inner())).await?;
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

/// Who calls.
fn caller(extensions: &tonic::Extensions) -> Result<Caller, Status> {
    Caller::of(extensions).map_err(|error| error.status())
}

/// The sooner of the two.
fn bounded(deadline: Instant, limits: &Limits) -> Instant {
    limits.deadline.map_or(deadline, |limit| deadline.min(Instant::now() + limit))
}

/// Notes in the span what kind of question it is.
fn understand(question: Question) -> Question {
    Span::current().record("command", question.label());
    question
}

fn table_info(table: &PublishedTable, run_sequence: u64) -> Result<FlightInfo> {
    let path = vec![table.name.schema().to_owned(), table.name.table().to_owned()];
    info(FlightDescriptor::new_path(path), &wire_schema(&table.schema), table.rows, bytes_of(table), run_sequence)
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
