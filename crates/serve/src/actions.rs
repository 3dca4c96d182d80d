//! Actions: all of Flight and Flight SQL that is neither a question nor a put, and a few of our own.

use arrow_flight::sql::{
    ActionBeginTransactionRequest, ActionBeginTransactionResult, ActionCancelQueryRequest, ActionCancelQueryResult,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    ActionEndTransactionRequest, Any, ProstMessageExt,
};
use arrow_flight::{Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo};
use bytes::Bytes;
use holdfast_access::query_hash;
use prost::Message;
use tracing::Span;

use crate::answer::prepare;
use crate::audited::Audited;
use crate::feature_calls;
use crate::feature_rights::FeatureNames;
use crate::generated::v1::{PreparedStatement, Session, Transaction};
use crate::question::run_of;
use crate::rights::Caller;
use crate::service::{HoldfastFlight, ipc_schema};
use crate::session::{
    CloseSessionResult, CloseStatus, GetSessionOptionsResult, SetSessionOptionsRequest, SetSessionOptionsResult,
};
use crate::{Result, ServeError};

const CREATE_PREPARED_STATEMENT: &str = "CreatePreparedStatement";
const CLOSE_PREPARED_STATEMENT: &str = "ClosePreparedStatement";
const BEGIN_TRANSACTION: &str = "BeginTransaction";
const END_TRANSACTION: &str = "EndTransaction";
const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";
const CANCEL_QUERY: &str = "CancelQuery";
const SET_SESSION_OPTIONS: &str = "SetSessionOptions";
const GET_SESSION_OPTIONS: &str = "GetSessionOptions";
const CLOSE_SESSION: &str = "CloseSession";
const HEALTH: &str = "health";
const REFRESH: &str = "refresh";
const LIST_FEATURES: &str = "list_features";
const DESCRIBE_FEATURES: &str = "describe_features";
const DATASETS: &str = "get_dataset";
/// The word for spans and metrics.
const PREPARE: &str = "prepare";

/// What came of an action.
pub(crate) struct Done {
    pub(crate) body: Option<Bytes>,
    /// What the client is to send with its next calls.
    pub(crate) cookie: Option<String>,
}

impl HoldfastFlight {
    /// Does what an action says. `session` is the caller's, where it is one.
    ///
    /// # Errors
    /// [`ServeError::Unsupported`] for what is not offered; as of what is done.
    pub(crate) async fn action(&self, caller: &Caller, session: Result<Session>, action: Action) -> Result<Done> {
        caller.rights.to_read()?;
        match action.r#type.as_str() {
            // A session that is none any more must not be in the way of another, nor of its end.
            SET_SESSION_OPTIONS => return self.set_options(caller, session.unwrap_or_default(), &action.body).await,
            CLOSE_SESSION => {
                let result = CloseSessionResult { status: CloseStatus::Closed as i32 };
                return Ok(Done { body: Some(result.encode_to_vec().into()), cookie: Some(Session::forgotten()) });
            }
            _ => {}
        }
        let body = self.plain_action(caller, session?, action).await?;
        Ok(Done { body, cookie: None })
    }

    async fn plain_action(&self, caller: &Caller, session: Session, action: Action) -> Result<Option<Bytes>> {
        match action.r#type.as_str() {
            CREATE_PREPARED_STATEMENT => {
                let request: ActionCreatePreparedStatementRequest = unpack(&action.body)?;
                Span::current().record("command", PREPARE);
                let run = run_of(request.transaction_id.as_deref(), &self.key)?;
                let mut listed = Audited::list(&self.access, &caller.principal, "statement");
                listed.entry.query_hash = Some(query_hash(&request.query));
                let told = async {
                    let view = self.view(caller, run.or(session.run()), session.schema).await?;
                    listed.entry.run = view.run.sequence();
                    let prepared = prepare(&request.query, &view, &self.settings).await?;
                    listed.entry.touched.clone_from(&prepared.tables);
                    Ok::<_, ServeError>(prepared)
                };
                let told = told.await;
                let prepared = listed.told(told).await?;
                let statement = PreparedStatement {
                    query: request.query,
                    run_sequence: run.unwrap_or_default(),
                    ..PreparedStatement::default()
                };
                let result = ActionCreatePreparedStatementResult {
                    prepared_statement_handle: self.key.sealed(statement).encode_to_vec().into(),
                    dataset_schema: ipc_schema(&prepared.schema)?,
                    parameter_schema: ipc_schema(&prepared.parameters)?,
                };
                Ok(Some(result.as_any().encode_to_vec().into()))
            }
            CLOSE_PREPARED_STATEMENT => {
                let request: ActionClosePreparedStatementRequest = unpack(&action.body)?;
                // Nothing is kept for it; a handle that is none is still told.
                self.key.open::<PreparedStatement>(&request.prepared_statement_handle)?;
                Ok(None)
            }
            BEGIN_TRANSACTION => {
                unpack::<ActionBeginTransactionRequest>(&action.body)?;
                // Who begins wants what is newest, and not what was when somebody looked last.
                self.runs.refresh().await?;
                let run_sequence = session.run().unwrap_or_else(|| self.runs.newest().sequence());
                let transaction = self.key.sealed(Transaction { run_sequence, ..Transaction::default() });
                let result = ActionBeginTransactionResult { transaction_id: transaction.encode_to_vec().into() };
                Ok(Some(result.as_any().encode_to_vec().into()))
            }
            END_TRANSACTION => {
                let request: ActionEndTransactionRequest = unpack(&action.body)?;
                // Nothing is kept for it, and nothing was written.
                self.key.open::<Transaction>(&request.transaction_id)?;
                Ok(None)
            }
            CANCEL_FLIGHT_INFO => {
                let unread =
                    || ServeError::Request("the body of the action is not a CancelFlightInfoRequest".to_owned());
                let request = CancelFlightInfoRequest::decode(action.body).map_err(|_| unread())?;
                let status = self.cancel(caller, &request.info.ok_or_else(unread)?);
                Ok(Some(CancelFlightInfoResult::new(status).encode_to_vec().into()))
            }
            CANCEL_QUERY => {
                let request: ActionCancelQueryRequest = unpack(&action.body)?;
                let unread = |_| ServeError::Request("the info of the action is not a FlightInfo".to_owned());
                let status = self.cancel(caller, &FlightInfo::decode(request.info).map_err(unread)?);
                // The two enumerations have the same numbers.
                let result = ActionCancelQueryResult { result: status as i32 };
                Ok(Some(result.as_any().encode_to_vec().into()))
            }
            GET_SESSION_OPTIONS => {
                let view = self.view(caller, session.run(), String::new()).await?;
                let default = view.session()?.state().config_options().catalog.default_schema.clone();
                let result = GetSessionOptionsResult { session_options: session.options(&view.run, &default) };
                Ok(Some(result.encode_to_vec().into()))
            }
            LIST_FEATURES | DESCRIBE_FEATURES | DATASETS => self.features_told(caller, &action).await.map(Some),
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

    /// Feature views, services and training sets, those that the caller may know of.
    async fn features_told(&self, caller: &Caller, action: &Action) -> Result<Bytes> {
        let what = match action.r#type.as_str() {
            LIST_FEATURES => "features",
            DESCRIBE_FEATURES => "feature",
            _ => "datasets",
        };
        let mut listed = Audited::list(&self.access, &caller.principal, what);
        listed.entry.run = self.runs.newest().sequence();
        let told = async {
            let lake = self.runs.lake();
            match what {
                "features" => {
                    let body = feature_calls::list(lake, self.runs.online()).await?;
                    self.feature_names(caller).await?.of_list(body)
                }
                "feature" => {
                    let body = feature_calls::describe(lake, &action.body).await?;
                    self.feature_names(caller).await?.of_description(body)
                }
                _ => {
                    let body = feature_calls::datasets(lake, &action.body).await?;
                    self.feature_names(caller).await?.of_datasets(body)
                }
            }
        };
        let told = told.await;
        listed.told(told).await
    }

    async fn set_options(&self, caller: &Caller, mut session: Session, body: &[u8]) -> Result<Done> {
        let request = SetSessionOptionsRequest::decode(body)
            .map_err(|_| ServeError::Request("the body of the action is not a SetSessionOptionsRequest".to_owned()))?;
        let run = self.newest_run(caller)?;
        let errors = session.set(request.session_options, &self.runs, &run).await?;
        let result = SetSessionOptionsResult { errors };
        Ok(Done { body: Some(result.encode_to_vec().into()), cookie: Some(session.cookie(&self.key)) })
    }

    /// Ends what the caller is being sent for the tickets of the info.
    fn cancel(&self, caller: &Caller, info: &FlightInfo) -> CancelStatus {
        let tickets = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref());
        let cancelled = tickets.filter(|ticket| self.streams.cancel(&caller.principal, &ticket.ticket)).count();
        // What has ended, and what another replica sends, is not known here.
        if cancelled > 0 { CancelStatus::Cancelled } else { CancelStatus::NotCancellable }
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
}

/// What is offered, for those who ask.
pub(crate) fn offered() -> impl IntoIterator<Item = ActionType, IntoIter: Send + 'static> {
    let action =
        |name: &str, description: &str| ActionType { r#type: name.to_owned(), description: description.to_owned() };
    [
        action(HEALTH, "The run that is served and since when, as JSON."),
        action(LIST_FEATURES, "The feature views and services, as JSON."),
        action(DESCRIBE_FEATURES, "A feature view or service, NAME or NAME@v3 in UTF-8, as JSON."),
        action(DATASETS, "The training sets of the lake, as JSON; with an id in UTF-8, that one."),
        action(REFRESH, "Looks for a newer run at once; answers as `health` does, with `swapped`."),
        action(
            CREATE_PREPARED_STATEMENT,
            "Prepares a query, whose parameters get values by DoPut. Request: ActionCreatePreparedStatementRequest, response: \
             ActionCreatePreparedStatementResult.",
        ),
        action(
            CLOSE_PREPARED_STATEMENT,
            "Closes a prepared query. Request: ActionClosePreparedStatementRequest, no response.",
        ),
        action(
            BEGIN_TRANSACTION,
            "Pins the newest run for what is asked with the transaction's id. Request: ActionBeginTransactionRequest, \
             response: ActionBeginTransactionResult.",
        ),
        action(END_TRANSACTION, "Ends a transaction. Request: ActionEndTransactionRequest, no response."),
        action(
            CANCEL_FLIGHT_INFO,
            "Ends what is being sent for the tickets of a FlightInfo. Request: CancelFlightInfoRequest, response: \
             CancelFlightInfoResult.",
        ),
        action(
            CANCEL_QUERY,
            "The same, as Flight SQL had it before. Request: ActionCancelQueryRequest, response: \
             ActionCancelQueryResult.",
        ),
        action(
            SET_SESSION_OPTIONS,
            "Sets `run`, `as_of`, `schema` and `catalog` for the calls with the cookie that comes back. Request: \
             SetSessionOptionsRequest, response: SetSessionOptionsResult.",
        ),
        action(
            GET_SESSION_OPTIONS,
            "The options of the session. Request: GetSessionOptionsRequest, response: GetSessionOptionsResult.",
        ),
        action(
            CLOSE_SESSION,
            "Forgets the options of the session. Request: CloseSessionRequest, response: CloseSessionResult.",
        ),
    ]
}

fn unpack<M: ProstMessageExt>(body: &[u8]) -> Result<M> {
    let unpacked = Any::decode(body).ok().and_then(|any| any.unpack::<M>().ok().flatten());
    unpacked.ok_or_else(|| ServeError::Request(format!("the body of the action is not a {}", M::type_url())))
}
