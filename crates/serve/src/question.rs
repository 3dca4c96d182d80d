//! What is asked, understood: descriptors and tickets become a [`Question`], and nothing below checks them again.

use arrow_flight::FlightDescriptor;
use arrow_flight::sql::{
    Any, Command, CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandGetXdbcTypeInfo,
};
use bytes::Bytes;
use holdfast_access::{made_secret, query_hash};
use holdfast_types::TableName;
use prost::Message;

use crate::generated::v1::{CreateDataset, GetDataset, GetHistoricalFeatures, GetOnlineFeatures, ScoreRows};
pub use crate::generated::v1::{FeaturesForCustomers, ScoresAbove};
use crate::generated::v1::{PreparedStatement, Ticket, Transaction};
use crate::json;
use crate::metadata::KeysOf;
use crate::parameters::Values;
use crate::seal::{SealKey, Sealed};
use crate::{Result, ServeError};

const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// A message that travels in `FlightDescriptor.cmd` or in a ticket, wrapped in `google.protobuf.Any`.
pub trait CommandMessage: Message + prost::Name + Sized {
    /// The bytes for `FlightDescriptor.cmd`; `DoGet` takes them as a ticket as well, and then answers from the newest run.
    fn to_command(&self) -> Bytes {
        let any =
            Any { type_url: format!("{TYPE_URL_PREFIX}{}", Self::full_name()), value: self.encode_to_vec().into() };
        any.encode_to_vec().into()
    }
}

impl CommandMessage for FeaturesForCustomers {}
impl CommandMessage for ScoresAbove {}
impl CommandMessage for GetHistoricalFeatures {}
impl CommandMessage for CreateDataset {}
impl CommandMessage for GetDataset {}
impl CommandMessage for GetOnlineFeatures {}
impl CommandMessage for ScoreRows {}
impl CommandMessage for Ticket {}

/// A statement, and what is bound to its parameters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    pub(crate) values: Option<Values>,
    /// Of its transaction.
    pub(crate) run: Option<u64>,
}

/// A question that came back in a ticket, or that a client made itself to stand for one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ticketed {
    pub(crate) question: Question,
    /// Of a ticket: the run it must be answered from, and where tables without a schema are.
    pub(crate) pinned: Option<(u64, String)>,
}

/// Everything that can be asked for with `GetFlightInfo`, `GetSchema` and `DoGet`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Question {
    Table(TableName),
    Features(FeaturesForCustomers),
    Online(GetOnlineFeatures),
    Dataset(GetDataset),
    Scores(ScoresAbove),
    Statement(Statement),
    Catalogs(CommandGetCatalogs),
    Schemas(CommandGetDbSchemas),
    Tables(CommandGetTables),
    TableTypes(CommandGetTableTypes),
    SqlInfo(CommandGetSqlInfo),
    TypeInfo(CommandGetXdbcTypeInfo),
    Keys(KeysOf),
}

impl Question {
    pub(crate) fn from_descriptor(descriptor: &FlightDescriptor, key: &SealKey) -> Result<Self> {
        match (descriptor.path.as_slice(), descriptor.cmd.as_ref()) {
            ([], []) => Err(ServeError::Request(
                "the descriptor is empty: give the path [\"schema\", \"table\"] or a command".to_owned(),
            )),
            ([], command) => Self::from_command(command, key),
            (path, []) => Self::from_path(path),
            _ => Err(ServeError::Request("the descriptor has both a path and a command: give one of them".to_owned())),
        }
    }

    /// The question in a ticket. A command that a client made itself may stand for a ticket: it asks nothing that `GetFlightInfo` would not be asked.
    pub(crate) fn from_ticket(bytes: &[u8], key: &SealKey) -> Result<Ticketed> {
        let any = unwrapped(bytes)?;
        if message_name(&any) != <Ticket as prost::Name>::full_name() {
            // A ticket of ours has a command in it: with a byte of it changed, a parser that skips what it does not know could find that one.
            if bytes.first() != Some(&b'{') && any.encode_to_vec() != bytes {
                return Err(ServeError::NotOurs { what: Ticket::WHAT, remedy: Ticket::REMEDY });
            }
            return Ok(Ticketed { question: Self::from_any(any, key)?, pinned: None });
        }
        let ticket: Ticket = key.open(&any.value)?;
        // What is around the seal is as we write it, too.
        if ticket.to_command() != bytes {
            return Err(ServeError::NotOurs { what: Ticket::WHAT, remedy: Ticket::REMEDY });
        }
        let question = match ticket.path.as_slice() {
            [] => Self::from_command(&ticket.command, key)?,
            path => Self::from_path(path)?,
        };
        Ok(Ticketed { question, pinned: Some((ticket.run_sequence, ticket.schema)) })
    }

    /// The ticket that asks the same again of the same run. No two are alike.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub(crate) fn ticket(
        descriptor: &FlightDescriptor,
        run_sequence: u64,
        schema: &str,
        key: &SealKey,
    ) -> Result<Bytes> {
        let ticket = Ticket {
            run_sequence,
            command: descriptor.cmd.to_vec(),
            path: descriptor.path.clone(),
            schema: schema.to_owned(),
            id: made_secret()?,
            seal: Vec::new(),
        };
        Ok(key.sealed(ticket).to_command())
    }

    /// The run of the transaction that it is asked in.
    pub(crate) fn run(&self) -> Option<u64> {
        match self {
            Self::Statement(statement) => statement.run,
            _ => None,
        }
    }

    fn from_path(path: &[String]) -> Result<Self> {
        let name = match path {
            [schema, table] => TableName::new(schema, table),
            [name] => name.parse(),
            _ => return Err(ServeError::Request("a path names one table: [\"schema\", \"table\"]".to_owned())),
        };
        name.map(Self::Table).map_err(|error| ServeError::Request(error.to_string()))
    }

    fn from_command(command: &[u8], key: &SealKey) -> Result<Self> {
        Self::from_any(unwrapped(command)?, key)
    }

    fn from_any(any: Any, key: &SealKey) -> Result<Self> {
        if message_name(&any) == <FeaturesForCustomers as prost::Name>::full_name() {
            let command =
                FeaturesForCustomers::decode(any.value).map_err(|_| not_understood("FeaturesForCustomers"))?;
            return Ok(Self::Features(command));
        }
        if message_name(&any) == <ScoresAbove as prost::Name>::full_name() {
            return ScoresAbove::decode(any.value).map(Self::Scores).map_err(|_| not_understood("ScoresAbove"));
        }
        if message_name(&any) == <GetOnlineFeatures as prost::Name>::full_name() {
            return GetOnlineFeatures::decode(any.value)
                .map(Self::Online)
                .map_err(|_| not_understood("GetOnlineFeatures"));
        }
        if message_name(&any) == <GetDataset as prost::Name>::full_name() {
            return GetDataset::decode(any.value).map(Self::Dataset).map_err(|_| not_understood("GetDataset"));
        }
        for (exchange, sent) in [
            (<GetHistoricalFeatures as prost::Name>::NAME, "the spine"),
            (<CreateDataset as prost::Name>::NAME, "the spine"),
            (<ScoreRows as prost::Name>::NAME, "the rows"),
        ] {
            if message_name(&any).strip_suffix(exchange) == Some("holdfast.v1.") {
                return Err(ServeError::Unsupported(format!(
                    "{exchange} is an exchange: send it in the descriptor of DoExchange, and {sent} behind it"
                )));
            }
        }
        match Command::try_from(any).map_err(|_| not_understood("Flight SQL command"))? {
            Command::CommandStatementQuery(command) => {
                let run = run_of(command.transaction_id.as_deref(), key)?;
                Ok(Self::Statement(Statement { sql: command.query, values: None, run }))
            }
            Command::CommandPreparedStatementQuery(command) => {
                let prepared: PreparedStatement = key.open(&command.prepared_statement_handle)?;
                let values = (!prepared.parameters.is_empty()).then(|| Values::decode(&prepared.parameters));
                let run = (prepared.run_sequence > 0).then_some(prepared.run_sequence);
                Ok(Self::Statement(Statement { sql: prepared.query, values: values.transpose()?, run }))
            }
            Command::CommandGetCatalogs(command) => Ok(Self::Catalogs(command)),
            Command::CommandGetDbSchemas(command) => Ok(Self::Schemas(command)),
            Command::CommandGetTables(command) => Ok(Self::Tables(command)),
            Command::CommandGetTableTypes(command) => Ok(Self::TableTypes(command)),
            Command::CommandGetSqlInfo(command) => Ok(Self::SqlInfo(command)),
            Command::CommandGetXdbcTypeInfo(command) => Ok(Self::TypeInfo(command)),
            Command::CommandGetPrimaryKeys(_) => Ok(Self::Keys(KeysOf::Primary)),
            Command::CommandGetExportedKeys(_)
            | Command::CommandGetImportedKeys(_)
            | Command::CommandGetCrossReference(_) => Ok(Self::Keys(KeysOf::Foreign)),
            Command::CommandStatementSubstraitPlan(_) => {
                Err(ServeError::Unsupported("Substrait plans are not offered: send SQL".to_owned()))
            }
            other => Err(ServeError::Unsupported(format!(
                "the command `{}` is not offered",
                other.type_url().chars().take(120).collect::<String>()
            ))),
        }
    }

    /// A word for spans and metrics; never what was asked for.
    /// Whether its answer is what there is, and no rows of it.
    pub(crate) fn is_list(&self) -> bool {
        match self {
            Self::Table(_)
            | Self::Features(_)
            | Self::Online(_)
            | Self::Dataset(_)
            | Self::Scores(_)
            | Self::Statement(_) => false,
            Self::Catalogs(_)
            | Self::Schemas(_)
            | Self::Tables(_)
            | Self::TableTypes(_)
            | Self::SqlInfo(_)
            | Self::TypeInfo(_)
            | Self::Keys(_) => true,
        }
    }

    /// Of a statement, the hash that it is known by.
    pub(crate) fn query_hash(&self) -> Option<String> {
        match self {
            Self::Statement(asked) => Some(query_hash(&asked.sql)),
            _ => None,
        }
    }

    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Table(_) => "table",
            Self::Features(_) => "features_for_customers",
            Self::Online(_) => "get_online_features",
            Self::Dataset(_) => "get_dataset",
            Self::Scores(_) => "scores_above",
            Self::Statement(_) => "statement",
            Self::Catalogs(_) => "catalogs",
            Self::Schemas(_) => "schemas",
            Self::Tables(_) => "tables",
            Self::TableTypes(_) => "table_types",
            Self::SqlInfo(_) => "sql_info",
            Self::TypeInfo(_) => "type_info",
            Self::Keys(_) => "keys",
        }
    }
}

/// The run that a transaction reads; `None` without one.
///
/// # Errors
/// [`ServeError::NotOurs`] when no service of this lake has begun it.
pub(crate) fn run_of(transaction: Option<&[u8]>, key: &SealKey) -> Result<Option<u64>> {
    match transaction {
        None | Some([]) => Ok(None),
        Some(id) => Ok(Some(key.open::<Transaction>(id)?.run_sequence)),
    }
}

/// The message in a command: protobuf in `google.protobuf.Any`, or JSON.
pub(crate) fn unwrapped(bytes: &[u8]) -> Result<Any> {
    // A message begins with the number of a field, which is never a brace: field 15 as a group, which `Any` has not.
    if bytes.first() == Some(&b'{') {
        return json::any_of(bytes);
    }
    match Any::decode(bytes) {
        Ok(any) if any.type_url.contains('/') => Ok(any),
        _ => Err(ServeError::Request(
            "the command is not a protobuf message in google.protobuf.Any: see proto/holdfast/v1/flight.proto, or name a \
             table by the path [\"schema\", \"table\"]"
                .to_owned(),
        )),
    }
}

/// The full name of the message inside; the part of the URL before it carries no meaning.
pub(crate) fn message_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

fn not_understood(what: &str) -> ServeError {
    ServeError::Request(format!("the {what} cannot be decoded: it was cut short, or made for another version"))
}

#[cfg(test)]
mod tests {
    use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt};

    use super::*;

    #[test]
    fn a_ticket_asks_the_same_question_of_the_same_run() {
        let key = SealKey::of_test(1);
        let scores = ScoresAbove { threshold: 0.5, limit: 10 };
        let descriptors = [
            FlightDescriptor::new_cmd(scores.to_command()),
            FlightDescriptor::new_path(vec!["core".to_owned(), "orders".to_owned()]),
            FlightDescriptor::new_cmd(
                CommandStatementQuery { query: "select 1".to_owned(), transaction_id: None }.as_any().encode_to_vec(),
            ),
        ];
        for descriptor in descriptors {
            let asked = Question::from_descriptor(&descriptor, &key).unwrap();
            let ticket = Question::ticket(&descriptor, 7, "risk", &key).unwrap();
            let back = Ticketed { question: asked, pinned: Some((7, "risk".to_owned())) };
            assert_eq!(Question::from_ticket(&ticket, &key).unwrap(), back);
            assert_ne!(Question::ticket(&descriptor, 7, "risk", &key).unwrap(), ticket, "each can be cancelled alone");
        }
        let by_hand = Ticketed { question: Question::Scores(scores), pinned: None };
        assert_eq!(Question::from_ticket(&scores.to_command(), &key).unwrap(), by_hand);
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_the_way_to_ask() {
        let key = SealKey::of_test(1);
        for bytes in [&b""[..], b"\xff\xff", b"select 1", b"{\"table\":\"core.orders\"}"] {
            let error = Question::from_ticket(bytes, &key).unwrap_err();
            assert!(error.to_string().contains("google.protobuf.Any"), "{error}");
        }
        for path in [vec!["core"], vec!["a", "b", "c"], vec!["core", "Orders"], vec!["core/..", "x"]] {
            let path = path.into_iter().map(str::to_owned).collect();
            assert!(Question::from_descriptor(&FlightDescriptor::new_path(path), &key).is_err());
        }
        assert!(Question::from_descriptor(&FlightDescriptor::default(), &key).is_err());
    }
}
