use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use holdfast_engine::DeclaredTable;
use holdfast_lake::TableSpec;
use holdfast_types::{COMMENT_KEY, TableName};

use crate::Result;
use crate::error::IdentityError;

fn column(name: &str, data_type: DataType, comment: &str) -> Field {
    Field::new(name, data_type, true).with_metadata(HashMap::from([(COMMENT_KEY.to_owned(), comment.to_owned())]))
}

fn moment(name: &str, comment: &str) -> Field {
    column(name, DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))), comment)
}

fn text(name: &str, comment: &str) -> Field {
    column(name, DataType::Utf8, comment)
}

fn spec(table: &str, comment: &str, fields: Vec<Field>) -> Result<TableSpec> {
    Ok(TableSpec {
        name: TableName::new("identity", table).map_err(|error| IdentityError::Damaged(error.to_string()))?,
        schema: Arc::new(Schema::new(fields)),
        partition_by: Vec::new(),
        comment: comment.to_owned(),
    })
}

pub(crate) fn edges() -> Result<TableSpec> {
    spec(
        "edges",
        "Evidence that two identifiers belong to one person, one row a pair, source and batch",
        vec![
            text("source", "The source whose records carried both"),
            column("batch", DataType::Int64, "The batch of the source that brought the evidence"),
            text("left_type", "Type of the identifier that speaks for the record"),
            text("left_token", "Its keyed hash"),
            text("right_type", "Type of the other identifier; the same as left when it came alone"),
            text("right_token", "Its keyed hash"),
            moment("first_seen_at", "Event time of the first record with both"),
            moment("last_seen_at", "Event time of the last record with both"),
            column("records", DataType::Int64, "How many records carried both"),
        ],
    )
}

pub(crate) fn identifiers() -> Result<TableSpec> {
    spec(
        "identifiers",
        "Identifiers and the customer each belongs to, one row a token",
        vec![
            text("identifier_type", "Such as phone or member_id"),
            text("token", "Keyed hash of the normalised value; unique"),
            text("customer_id", "Unified customer id"),
            column("is_shared", DataType::Boolean, "Belongs to several people (a family, a kiosk), so it joins nobody"),
            moment("first_seen_at", "Event time of the first record with it"),
            moment("last_seen_at", "Event time of the last record with it"),
            column("records", DataType::Int64, "How many pieces of evidence name it"),
        ],
    )
}

pub(crate) fn customers() -> Result<TableSpec> {
    spec(
        "customers",
        "Every customer id ever given, one row an id; ids are never reused",
        vec![
            text("customer_id", "Unified customer id"),
            text("founding_type", "Type of the identifier the id was given for"),
            text("founding_token", "Keyed hash of that identifier"),
            moment("first_seen_at", "Event time of the first record of the founding identifier"),
            text("merged_into", "The id that took its place in a merge; null while it is in use"),
        ],
    )
}

pub(crate) fn history() -> Result<TableSpec> {
    spec(
        "history",
        "Every change of a customer id with its cause, append-only",
        vec![
            column("step", DataType::Int64, "The resolution that made the change, counting from 1"),
            text("kind", "minted, merged or split"),
            text("customer_id", "The id that was given, or that went on"),
            text("other_customer_id", "The id that was merged into it, or that it was split from"),
            text("cause_type", "Type of the identifier that caused it"),
            text("cause_token", "Keyed hash of that identifier"),
            moment("changed_at", "When it was done"),
        ],
    )
}

/// The tables of this crate, for stages that read them.
///
/// # Errors
/// None in practice: the names are fixed.
pub fn declared_tables() -> Result<Vec<DeclaredTable>> {
    [edges()?, identifiers()?, customers()?, history()?]
        .into_iter()
        .map(|spec| {
            Ok(DeclaredTable { name: spec.name, schema: SchemaRef::clone(&spec.schema), identifiers: Vec::new() })
        })
        .collect()
}
