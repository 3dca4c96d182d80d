//! What a client wants to put where, understood: the descriptor, and what it says beside its batches.

use arrow_flight::FlightDescriptor;
use arrow_flight::sql::{Any, Command, CommandStatementIngest, TableExistsOption, TableNotExistOption};
use prost::Message;
use serde::Deserialize;

use crate::answer::CATALOG;
use crate::{Result, ServeError};

/// The schema of all that can be put.
const RAW: &str = "raw";

/// How batches are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Each by itself, with its position.
    Flight,
    /// All together at the end, by their number of rows, as Flight SQL says.
    Ingest,
}

impl Protocol {
    /// The word for spans and metrics.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Flight => "put",
            Self::Ingest => "statement_ingest",
        }
    }
}

/// What the first message asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) source: String,
    pub(super) protocol: Protocol,
}

impl Request {
    pub(super) fn from_descriptor(descriptor: Option<&FlightDescriptor>) -> Result<Self> {
        let Some(descriptor) = descriptor else {
            return Err(ServeError::Request(
                "the first message has no descriptor: give it the path [\"raw\", \"<source>\"]".to_owned(),
            ));
        };
        match (descriptor.path.as_slice(), descriptor.cmd.as_ref()) {
            ([], []) => {
                Err(ServeError::Request("the descriptor is empty: give the path [\"raw\", \"<source>\"]".to_owned()))
            }
            ([], command) => Self::from_command(command),
            (path, []) => {
                let source = match path {
                    [schema, table] if schema == RAW => table,
                    [name] => name.strip_prefix("raw.").unwrap_or(name),
                    _ => {
                        return Err(ServeError::Request(
                            "only sources take batches: give the path [\"raw\", \"<source>\"]".to_owned(),
                        ));
                    }
                };
                Ok(Self { source: source.to_owned(), protocol: Protocol::Flight })
            }
            _ => Err(ServeError::Request("the descriptor has both a path and a command: give one of them".to_owned())),
        }
    }

    fn from_command(command: &[u8]) -> Result<Self> {
        let any = Any::decode(command).map_err(|_| {
            ServeError::Request(
                "the command is not a protobuf message in google.protobuf.Any: give the path [\"raw\", \"<source>\"]"
                    .to_owned(),
            )
        })?;
        match Command::try_from(any) {
            Ok(Command::CommandStatementIngest(ingest)) => Self::from_ingest(&ingest),
            _ => Err(ServeError::Unsupported(
                "SQL is read-only here: rows are put into sources, with bulk ingestion or DoPut to the path [\"raw\", \
                 \"<source>\"]"
                    .to_owned(),
            )),
        }
    }

    fn from_ingest(ingest: &CommandStatementIngest) -> Result<Self> {
        let refused = |reason: &str| Err(ServeError::Request(format!("bulk ingestion: {reason}")));
        if ingest.temporary {
            return refused("there are no temporary tables: ingest into a source, raw.<source>");
        }
        if ingest.transaction_id.as_ref().is_some_and(|id| !id.is_empty()) {
            return refused("what is put is in no transaction: leave the transaction id out (turn autocommit on)");
        }
        if ingest.catalog.as_deref().is_some_and(|catalog| !catalog.is_empty() && catalog != CATALOG) {
            return refused("the only catalog is `holdfast`: leave it out");
        }
        if let Some(option) = ingest.options.keys().min() {
            let option: String = option.chars().filter(|c| !c.is_control()).take(120).collect();
            return refused(&format!("the option `{option}` is not known here: leave it out"));
        }
        let (missing, existing) = match &ingest.table_definition_options {
            Some(options) => (options.if_not_exist(), options.if_exists()),
            None => (TableNotExistOption::Unspecified, TableExistsOption::Unspecified),
        };
        match (missing, existing) {
            (_, TableExistsOption::Append) | (TableNotExistOption::Unspecified, TableExistsOption::Unspecified) => {}
            (_, TableExistsOption::Replace) => {
                return refused("what arrived in raw is never replaced: use the mode `append`");
            }
            _ => {
                return refused(
                    "a table of raw is there by its source's contract and cannot be created: use the mode `append`",
                );
            }
        }
        let source = match ingest.schema.as_deref().filter(|schema| !schema.is_empty()) {
            Some(RAW) => ingest.table.as_str(),
            Some(_) => return refused("only the schema `raw` takes rows: name a source, raw.<source>"),
            None => ingest.table.strip_prefix("raw.").unwrap_or(&ingest.table),
        };
        Ok(Self { source: source.to_owned(), protocol: Protocol::Ingest })
    }
}

/// What a client says in the `app_metadata` of its messages, as JSON: `{"stream": "nightly-2026-11-26", "batch": 7}`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// The stream's name; with the first batch, or before it.
    pub(super) stream: Option<String>,
    /// The number of this batch, or of the next one when the message has none.
    pub(super) batch: Option<u64>,
}

impl Position {
    pub(super) fn parse(metadata: &[u8]) -> Result<Self> {
        if metadata.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(metadata).map_err(|error| {
            ServeError::Request(format!(
                "app_metadata cannot be understood at column {}: write JSON such as {{\"stream\": \"nightly-1\", \"batch\": 7}}",
                error.column()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow_flight::sql::{ProstMessageExt, TableDefinitionOptions};

    use super::*;

    fn path(parts: &[&str]) -> Result<Request> {
        let parts = parts.iter().map(|part| (*part).to_owned()).collect();
        Request::from_descriptor(Some(&FlightDescriptor::new_path(parts)))
    }

    fn ingest(change: impl FnOnce(&mut CommandStatementIngest)) -> Result<Request> {
        let mut command = CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: TableNotExistOption::Fail.into(),
                if_exists: TableExistsOption::Append.into(),
            }),
            table: "orders".to_owned(),
            schema: None,
            catalog: None,
            temporary: false,
            transaction_id: None,
            options: HashMap::new(),
        };
        change(&mut command);
        Request::from_descriptor(Some(&FlightDescriptor::new_cmd(command.as_any().encode_to_vec())))
    }

    fn modes(command: &mut CommandStatementIngest, if_not_exist: TableNotExistOption, if_exists: TableExistsOption) {
        command.table_definition_options =
            Some(TableDefinitionOptions { if_not_exist: if_not_exist.into(), if_exists: if_exists.into() });
    }

    #[test]
    fn a_source_is_named_by_path_or_by_table() {
        let flight = Request { source: "orders".to_owned(), protocol: Protocol::Flight };
        for parts in [&["raw", "orders"][..], &["orders"], &["raw.orders"]] {
            assert_eq!(path(parts).unwrap(), flight);
        }
        let sql = Request { source: "orders".to_owned(), protocol: Protocol::Ingest };
        assert_eq!(ingest(|_| {}).unwrap(), sql);
        assert_eq!(ingest(|command| command.table = "raw.orders".to_owned()).unwrap(), sql);
        assert_eq!(ingest(|command| command.schema = Some("raw".to_owned())).unwrap(), sql);
        assert_eq!(ingest(|command| command.catalog = Some("holdfast".to_owned())).unwrap(), sql);
        let create_append =
            ingest(|command| modes(command, TableNotExistOption::Create, TableExistsOption::Append)).unwrap();
        assert_eq!(create_append, sql);
        for wrong in [&["core", "orders"][..], &["raw", "orders", "x"]] {
            assert!(path(wrong).unwrap_err().to_string().contains("[\"raw\", \"<source>\"]"));
        }
        assert!(Request::from_descriptor(None).is_err());
    }

    #[test]
    fn what_bulk_ingestion_cannot_do_is_refused_with_its_reason() {
        let replace = ingest(|command| modes(command, TableNotExistOption::Create, TableExistsOption::Replace));
        let create = ingest(|command| modes(command, TableNotExistOption::Create, TableExistsOption::Fail));
        let temporary = ingest(|command| command.temporary = true);
        let transaction = ingest(|command| command.transaction_id = Some("t".into()));
        let schema = ingest(|command| command.schema = Some("core".to_owned()));
        let catalog = ingest(|command| command.catalog = Some("other".to_owned()));
        let option = ingest(|command| drop(command.options.insert("x".to_owned(), "y".to_owned())));
        for (refused, part) in [
            (replace, "never replaced"),
            (create, "cannot be created"),
            (temporary, "no temporary tables"),
            (transaction, "in no transaction"),
            (schema, "only the schema `raw`"),
            (catalog, "`holdfast`"),
            (option, "`x`"),
        ] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_position_is_json_and_nothing_else() {
        assert_eq!(Position::parse(b"").unwrap(), Position::default());
        let both = Position::parse(b"{\"stream\": \"a\", \"batch\": 7}").unwrap();
        assert_eq!(both, Position { stream: Some("a".to_owned()), batch: Some(7) });
        for wrong in [&b"7"[..], b"{\"batch\": -1}", b"{\"batch\": 1.5}", b"{\"sream\": \"a\"}", b"\xff"] {
            let error = Position::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("{\"stream\": \"nightly-1\", \"batch\": 7}"), "{error}");
        }
    }
}
