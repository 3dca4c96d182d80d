use std::future::Future;
use std::sync::Arc;
use std::time::Instant as Began;

use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::DoPutPreparedStatementResult;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, IpcMessage, PollInfo, PutResult, Result as ActionResult, SchemaAsIpc, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use holdfast_access::{Access, Limits, Running, SeenRuns};
use holdfast_engine::{LakeReader, Published, PublishedTable};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span};

use crate::answer::{Answer, View, bytes_of};
use crate::audited::{Audited, FLIGHT};
use crate::connections::Peer;
use crate::dataset_calls::{self, Wanted};
use crate::feature_calls::{self, Exchange};
use crate::feature_rights::FeatureGuard;
use crate::generated::v1::{PreparedStatement, Session};
use crate::online_calls::{self, Answers, Asking};
use crate::parameters::Values;
use crate::put::{self, Puts};
use crate::question::{Question, Ticketed};
use crate::rights::Caller;
use crate::runs::Runs;
use crate::score_calls;
use crate::seal::SealKey;
use crate::stream::{Bounds, Place, Streams};
use crate::telemetry::{Call, OK, Sent, outcome};
use crate::wire::wire_schema;
use crate::{Result, ServeError, ServeSettings, actions, handshake};

/// The word for spans and metrics.
const BIND: &str = "bind_parameters";
/// An exchange that has begun.
enum Begun {
    /// One answer.
    Answer(Answer, Place, Limits, Running),
    /// An answer to each batch of keys, or of rows to be scored.
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
    pub(crate) settings: Arc<ServeSettings>,
    pub(crate) access: Arc<Access>,
    pub(crate) key: SealKey,
    pub(crate) began: Began,
}

/// A put that has begun, or that is over already.
enum Put {
    /// What sources acknowledge.
    Taken(Receiver<Result<PutResult, Status>>),
    /// Values were bound to a prepared statement.
    Bound(PutResult),
}

impl HoldfastFlight {
    pub(crate) fn new(
        reader: Arc<LakeReader>,
        puts: Option<Arc<Puts>>,
        settings: Arc<ServeSettings>,
        access: Arc<Access>,
        key: SealKey,
    ) -> Self {
        Self {
            runs: Arc::new(Runs::new(reader, &settings)),
            streams: Arc::new(Streams::new(Arc::clone(&settings))),
            puts,
            settings,
            access,
            key,
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

    async fn plan(&self, caller: &Caller, question: Question, view: &View) -> Result<Answer> {
        if let Question::Online(command) = &question {
            let newest = self.runs.newest();
            let guard = FeatureGuard::new(&self.access, &caller.principal, &newest);
            return online_calls::answer(&self.runs, command, &self.settings, &guard).await;
        }
        if let Question::Dataset(command) = &question {
            let newest = self.runs.newest();
            let guard = FeatureGuard::new(&self.access, &caller.principal, &newest);
            let asks = (caller.principal.as_ref(), self.access.policy().is_some());
            return dataset_calls::again(self.runs.lake(), command, asks, &self.settings, &guard).await;
        }
        Answer::plan(question, view, &self.settings, self.puts.is_some()).await
    }

    async fn flight_info(&self, caller: Caller, session: Session, descriptor: FlightDescriptor) -> Result<FlightInfo> {
        let question = understand(Question::from_descriptor(&descriptor, &self.key)?);
        let mut listed = self.listed(&caller, &question);
        let told = async {
            caller.rights.to_ask(&question)?;
            let (view, answer) = self.planned(&caller, session, question, &mut listed).await?;
            let ticket = Question::ticket(&descriptor, view.run.sequence(), &view.schema, &self.key)?;
            info(descriptor, ticket, &answer.schema, (answer.rows, answer.bytes))
        };
        let told = told.await;
        listed.told(told).await
    }

    /// What is to be written down of a call that tells of a question's answer and does not give it.
    fn listed(&self, caller: &Caller, question: &Question) -> Audited {
        let mut listed = Audited::list(&self.access, &caller.principal, question.label());
        listed.entry.query_hash = question.query_hash();
        listed
    }

    async fn planned(
        &self,
        caller: &Caller,
        session: Session,
        question: Question,
        listed: &mut Audited,
    ) -> Result<(View, Answer)> {
        if let Question::Dataset(_) = question {
            let text =
                "GetDataset is asked with DoGet, where it is the ticket: nothing of it is known before it is made";
            return Err(ServeError::Unsupported(text.to_owned()));
        }
        let view = self.view(caller, question.run().or(session.run()), session.schema).await?;
        listed.entry.run = view.run.sequence();
        let answer = self.plan(caller, question, &view).await?;
        listed.tells_of(&answer);
        Ok((view, answer))
    }

    async fn schema(&self, caller: Caller, session: Session, descriptor: &FlightDescriptor) -> Result<SchemaResult> {
        let question = understand(Question::from_descriptor(descriptor, &self.key)?);
        let mut listed = self.listed(&caller, &question);
        let told = async {
            caller.rights.to_ask(&question)?;
            let (_, answer) = self.planned(&caller, session, question, &mut listed).await?;
            Ok::<_, ServeError>(SchemaResult { schema: ipc_schema(&answer.schema)? })
        };
        let told = told.await;
        listed.told(told).await
    }

    /// A run as the caller sees it, the newest without a number.
    pub(crate) async fn view(&self, caller: &Caller, run: Option<u64>, schema: String) -> Result<View> {
        let run = self.runs.pinned(run).await?;
        Span::current().record("run", run.sequence());
        self.access.knows(&self.runs.newest());
        let run = self.access.view(&caller.principal, &run)?;
        let (reader, access) = (Arc::clone(self.runs.reader()), Arc::clone(&self.access));
        let earlier = Arc::new(SeenRuns::new(reader, access, Arc::clone(&caller.principal)));
        Ok(View { run, earlier, schema })
    }

    async fn begin_stream(
        &self,
        caller: Caller,
        session: Session,
        ticket: Ticket,
        (deadline, call): (Instant, Call),
    ) -> Result<Messages> {
        let Ticketed { question, pinned } = Question::from_ticket(&ticket.ticket, &self.key)?;
        let command = question.label();
        let question = understand(question);
        caller.rights.to_ask(&question)?;
        let mut audited = match question.is_list() {
            true => Audited::list(&self.access, &caller.principal, command),
            false => Audited::new(&self.access, &caller.principal, FLIGHT, command),
        };
        audited.entry.query_hash = question.query_hash();
        let begin = async {
            let (running, limits) = self.access.admit(&caller.principal)?;
            let place = self.streams.admit().await?;
            let cancel = pinned.is_some().then(|| self.streams.cancellable(&caller.principal, &ticket.ticket));
            // What a client made itself is asked as in GetFlightInfo.
            let (run, schema) = match pinned {
                Some((run, schema)) => (Some(run), schema),
                None => (question.run().or(session.run()), session.schema),
            };
            let view = self.view(&caller, run, schema).await?;
            audited.entry.run = view.run.sequence();
            let answer = self.plan(&caller, question, &view).await?;
            audited.reads(&answer)?;
            audited.begin().await?;
            Ok::<_, ServeError>((
                answer,
                place,
                Bounds { deadline: bounded(deadline, &limits), limits, cancel, _running: running },
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
                let bounds = Bounds { deadline: bounded(deadline, &limits), limits, cancel: None, _running: running };
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
            Exchange::Dataset(command) => {
                let place = self.streams.admit().await?;
                let guard = FeatureGuard::new(&self.access, &caller.principal, &run);
                let wanted = Wanted::of(self.runs.lake(), command, &guard).await?;
                // It is recorded before it is answered.
                audited.entry.touched = wanted.touched();
                audited.begin().await?;
                let answer = wanted.made(self.runs.lake(), &caller.principal, sent, &self.settings).await?;
                audited.reads(&answer)?;
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
            Exchange::Scored(command) => {
                let place = self.streams.admit_conversation()?;
                let streams = Arc::clone(&self.streams);
                let scoring = score_calls::converse(&run, command, sent, &self.settings, streams).await?;
                audited.entry.action = format!("{}:{}", audited.command, scoring.version);
                audited.begin().await?;
                Ok(Begun::Talk(scoring.schema, scoring.answers, (place, limits, running)))
            }
        }
    }

    /// Reads the first message of a put: it says what it is for.
    async fn begin_put(&self, request: Request<Streaming<FlightData>>, call: Call) -> Result<Put> {
        let caller = Caller::of(request.extensions())?;
        let (metadata, _, mut messages) = request.into_parts();
        let limit = self.puts.as_ref().map_or(self.settings.query_timeout, |puts| puts.settings().idle_timeout);
        let first = put::first(&mut messages, limit).await?;
        if let Some(statement) = put::prepared_statement(&first) {
            caller.rights.to_read()?;
            let timeout = self.settings.query_timeout;
            let bound = tokio::time::timeout(timeout, self.bind(&statement, first, messages)).await;
            return bound.unwrap_or(Err(ServeError::Deadline(timeout))).map(Put::Bound);
        }
        let Some(puts) = &self.puts else {
            return Err(ServeError::Unsupported(
                "this service is read-only: load data with `holdfast ingest`, or start the service with --accept-puts"
                    .to_owned(),
            ));
        };
        caller.rights.to_put()?;
        puts.begin(&metadata, first, messages, call).map(Put::Taken)
    }

    /// The handle of the statement with the values that come behind `first`.
    async fn bind(&self, handle: &[u8], first: FlightData, messages: Streaming<FlightData>) -> Result<PutResult> {
        let statement: PreparedStatement = self.key.open(handle)?;
        let values = Values::sent(first, messages).await?;
        let parameters = values.encode(self.settings.max_parameter_bytes)?;
        let bound = self.key.sealed(PreparedStatement { parameters, ..statement });
        let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(bound.encode_to_vec().into()) };
        Ok(PutResult { app_metadata: result.encode_to_vec().into() })
    }

    /// The published tables whose name is, or begins with, what the criteria say; all of them without criteria.
    async fn flights(&self, caller: &Caller, criteria: &Criteria) -> Result<Vec<FlightInfo>> {
        caller.rights.to_read()?;
        let mut listed = Audited::list(&self.access, &caller.principal, "flights");
        let told = self.flights_seen(caller, criteria, &mut listed);
        listed.told(told).await
    }

    fn flights_seen(&self, caller: &Caller, criteria: &Criteria, listed: &mut Audited) -> Result<Vec<FlightInfo>> {
        let wanted = std::str::from_utf8(&criteria.expression)
            .map_err(|_| ServeError::Request("criteria are the beginning of a table's name, in UTF-8".to_owned()))?;
        let run = self.newest_run(caller)?;
        listed.entry.run = run.sequence();
        let tables = run.tables().iter().filter(|table| table.name.to_string().starts_with(wanted));
        tables.map(|table| table_info(table, run.sequence(), &self.key)).collect()
    }

    /// The session of a call, in the caller's cookie.
    fn session<T>(&self, request: &Request<T>) -> Result<Session, Status> {
        Session::of(request.metadata(), &self.key).map_err(|error| error.status())
    }

    /// The newest run as the caller sees it.
    pub(crate) fn newest_run(&self, caller: &Caller) -> Result<Arc<Published>> {
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
        let from = Peer::of(request.extensions()).and_then(|Peer(line)| line.address).map(|address| address.ip());
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
        let flights = self.call("ListFlights", self.flights(&caller, &criteria)).await?;
        Ok(Response::new(all(flights)))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let (caller, session) = (caller(request.extensions())?, self.session(&request)?);
        self.call("GetFlightInfo", self.flight_info(caller, session, request.into_inner())).await.map(Response::new)
    }

    /// Planning is all that happens before `DoGet`, so the first poll has the final answer.
    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let (caller, session) = (caller(request.extensions())?, self.session(&request)?);
        let info = self.call("PollFlightInfo", self.flight_info(caller, session, request.into_inner())).await?;
        Ok(Response::new(PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() }))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let (caller, session) = (caller(request.extensions())?, self.session(&request)?);
        let descriptor = request.into_inner();
        self.call("GetSchema", self.schema(caller, session, &descriptor)).await.map(Response::new)
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let call = Call::begin("DoGet");
        let (caller, session) = (caller(request.extensions())?, self.session(&request)?);
        let deadline = self.deadline();
        let begin = self.begin_stream(caller, session, request.into_inner(), (deadline, call.clone()));
        self.begun(deadline, call, begin).await
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let call = Call::begin("DoPut");
        let begun = self.begin_put(request, call.clone()).boxed().instrument(call.span.clone()).await;
        match begun {
            // Once begun, the call reports its own end.
            Ok(Put::Taken(answers)) => Ok(Response::new(ReceiverStream::new(answers).boxed())),
            Ok(Put::Bound(result)) => {
                call.end(BIND, Sent::default(), OK);
                Ok(Response::new(all([result])))
            }
            Err(error) => {
                call.end("", Sent::default(), error.kind().as_str());
                Err(error.status())
            }
        }
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
        let session = Session::of(request.metadata(), &self.key);
        let done = self.call("DoAction", self.action(&caller, session, request.into_inner())).await?;
        let mut response = Response::new(all(done.body.map(|body| ActionResult { body })));
        if let Some(cookie) = done.cookie.and_then(|cookie| cookie.parse().ok()) {
            response.metadata_mut().insert("set-cookie", cookie);
        }
        Ok(response)
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(all(actions::offered())))
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

fn table_info(table: &PublishedTable, run_sequence: u64, key: &SealKey) -> Result<FlightInfo> {
    let path = vec![table.name.schema().to_owned(), table.name.table().to_owned()];
    let descriptor = FlightDescriptor::new_path(path);
    let ticket = Question::ticket(&descriptor, run_sequence, "", key)?;
    info(descriptor, ticket, &wire_schema(&table.schema), (table.rows, bytes_of(table)))
}

fn info(
    descriptor: FlightDescriptor,
    ticket: Bytes,
    schema: &Schema,
    (rows, bytes): (Option<u64>, Option<u64>),
) -> Result<FlightInfo> {
    // Flight says -1 for what is not known.
    let known = |count: Option<u64>| count.and_then(|count| i64::try_from(count).ok()).unwrap_or(-1);
    Ok(FlightInfo::new()
        .try_with_schema(schema)?
        .with_endpoint(FlightEndpoint::new().with_ticket(Ticket { ticket }))
        .with_descriptor(descriptor)
        .with_ordered(true)
        .with_total_records(known(rows))
        .with_total_bytes(known(bytes)))
}

pub(crate) fn ipc_schema(schema: &Schema) -> Result<Bytes> {
    let options = arrow::ipc::writer::IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options).try_into()?;
    Ok(bytes)
}

fn all<T: Send + 'static>(
    items: impl IntoIterator<Item = T, IntoIter: Send + 'static>,
) -> BoxStream<'static, Result<T, Status>> {
    futures::stream::iter(items.into_iter().map(Ok)).boxed()
}
