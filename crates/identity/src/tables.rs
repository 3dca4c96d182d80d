use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::error::DataFusionError;
use holdfast_engine::{DeclaredTable, EngineError, LakeReader, SessionSettings, plan_read_only};
use holdfast_lake::{Lake, TableSpec};
use holdfast_types::{COMMENT_KEY, TableName};

use crate::Result;
use crate::error::IdentityError;

/// The position of the three resolved tables: they take one step together.
pub(crate) const RESOLVE_APP: &str = "identity/resolve";

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
            column(
                "replay",
                DataType::Int64,
                "The replay that brought it out of quarantine; null for what came by itself",
            ),
        ],
    )
}

pub(crate) fn identifiers() -> Result<TableSpec> {
    spec(
        "identifiers",
        "Identifiers and the customer each belongs to, one row a token; of one that changed hands, one row an owner",
        vec![
            text("identifier_type", "Such as phone or member_id"),
            text("token", "Keyed hash of the normalised value; unique, but where it changed hands"),
            text("customer_id", "Unified customer id"),
            column(
                "is_shared",
                DataType::Boolean,
                "Belongs to several people (a family, a kiosk) or to nobody, so it joins nobody",
            ),
            moment("first_seen_at", "Event time of the first record with it"),
            text("standing", "joins others, or joins nobody: shared, a hub, or blocked"),
            moment("valid_from", "From when on it is this customer's, where it was somebody else's before; else null"),
            moment("valid_to", "Until when, not included, where it is somebody else's afterwards; else null"),
        ],
    )
}

pub(crate) fn customers() -> Result<TableSpec> {
    spec(
        "customers",
        "Every customer id ever given, one row an id; ids are never reused",
        vec![
            text("customer_id", "Unified customer id"),
            text("founding_type", "Type of the identifier the customer is known by"),
            text("founding_token", "Keyed hash of that identifier"),
            moment("first_seen_at", "Event time of the first record of the founding identifier"),
            text(
                "merged_into",
                "The id in use that took its place; null while it is in use itself, or when nothing is left of it",
            ),
            text(
                "resolves_to",
                "The id in use that it answers to, itself while it is in use; null when nothing is left of it",
            ),
            moment("retired_at", "When it went out of use; null while it is in use"),
        ],
    )
}

pub(crate) fn history() -> Result<TableSpec> {
    spec(
        "history",
        "Every change of a customer id with its cause, append-only",
        vec![
            column("step", DataType::Int64, "The resolution that made the change, counting from 1"),
            text(
                "kind",
                "minted, merged, split, moved (some of its identifiers), ended (nothing is left of it), or undone: the step in the column identifiers never took effect",
            ),
            text("customer_id", "The id that was given, or that went on"),
            text("other_customer_id", "The id that was merged into it, or that identifiers were split or moved from"),
            text("cause_type", "Type of the identifier that caused it"),
            text("cause_token", "Keyed hash of that identifier"),
            moment("changed_at", "When it was done"),
            text(
                "cause",
                "evidence (of both identifiers), match (their records are alike), standing (the identifier became shared or a hub, or is so no more), link, unlink, block and their withdrawal, compared (the first time, or after other rules)",
            ),
            text("cause_other_type", "Type of the other identifier of the pair that caused it"),
            text("cause_other_token", "Keyed hash of that identifier"),
            text("cause_source", "The source of the evidence"),
            column("decision_id", DataType::Int64, "The decision of a person that caused it"),
            column(
                "identifiers",
                DataType::Int64,
                "How many identifiers the change is about; of a step that was undone, its number",
            ),
        ],
    )
}

pub(crate) fn decisions() -> Result<TableSpec> {
    spec(
        "decisions",
        "What people have decided about identity, append-only; a decision holds until another withdraws it",
        vec![
            column("decision_id", DataType::Int64, "Counts from 1"),
            text("kind", "link, unlink (never one customer), block (joins nobody), or withdraw"),
            text("left_type", "Type of the identifier it is about"),
            text("left_token", "Keyed hash of that identifier"),
            text("right_type", "Type of the other identifier of a link or unlink"),
            text("right_token", "Keyed hash of that identifier"),
            text("left_customer_id", "The customer that the identifier had then"),
            text("right_customer_id", "The customer that the other identifier had then"),
            column("withdraws", DataType::Int64, "The decision that is taken back"),
            text("decided_by", "Who"),
            text("reason", "Why"),
            moment("decided_at", "When"),
        ],
    )
}

pub(crate) fn models() -> Result<TableSpec> {
    spec(
        "models",
        "What was learnt of how records of one person differ, append-only; the newest is in force",
        vec![
            column("model", DataType::Int64, "Counts from 1"),
            moment("fitted_at", "When it was learnt"),
            text("fitted_for", "Changes with what [matching] in identity.toml compares"),
            column("records", DataType::Int64, "Different records it was learnt from"),
            column("pairs", DataType::Int64, "Pairs of them that were compared"),
            column("expected_matches", DataType::Float64, "How many of these pairs are expected to be one person's"),
            column("guard_cap", DataType::Int64, "Identifiers that a customer may have before the bar is raised"),
            text("settings", "Weights and blocking rules, as TOML; no values of records"),
        ],
    )
}

pub(crate) fn match_terms() -> Result<TableSpec> {
    spec(
        "match_terms",
        "What was common when a model was learnt, one row a value or blocking key",
        vec![
            column("model", DataType::Int64, "The model"),
            text("attribute", "The attribute, or the number of the blocking rule"),
            column("token", DataType::Int64, "Keyed hash of the value or key; null for all values that are not listed"),
            column(
                "bits",
                DataType::Float64,
                "What an agreement on it weighs more or less than one on average; null for a key that gives no pairs",
            ),
        ],
    )
}

pub(crate) fn matches() -> Result<TableSpec> {
    spec(
        "matches",
        "Records that were found alike without sharing an identifier, one row a pair of identifiers, model and batch",
        vec![
            column("model", DataType::Int64, "The model that weighed it; rows of earlier ones count no more"),
            text("source", "The source whose newly arrived record is one of the two"),
            column("batch", DataType::Int64, "The batch that brought it"),
            column(
                "replay",
                DataType::Int64,
                "The replay that brought it out of quarantine; null for what came by itself",
            ),
            text("left_type", "Type of the identifier that speaks for one record"),
            text("left_token", "Its keyed hash"),
            text("right_type", "Type of the identifier that speaks for the other record"),
            text("right_token", "Its keyed hash"),
            text("other_source", "The source of the other record"),
            column("weight", DataType::Float64, "The logarithm to base 2 of the odds that both are one person's"),
            column(
                "names_differ",
                DataType::Boolean,
                "Their names are clearly different: for a person to decide, whatever the weight",
            ),
            text("comparison", "How each attribute compared, in words; no values"),
            moment("first_seen_at", "When both records were there"),
        ],
    )
}

/// The tables of this crate, for stages that read them.
///
/// # Errors
/// None in practice: the names are fixed.
pub fn declared_tables() -> Result<Vec<DeclaredTable>> {
    [edges()?, identifiers()?, customers()?, history()?, decisions()?, models()?, matches()?]
        .into_iter()
        .map(|spec| {
            Ok(DeclaredTable { name: spec.name, schema: SchemaRef::clone(&spec.schema), identifiers: Vec::new() })
        })
        .collect()
}

/// The rows of a query over the newest version of one table.
pub(crate) async fn query(
    lake: &Lake,
    settings: &SessionSettings,
    table: &TableName,
    sql: &str,
) -> Result<Vec<RecordBatch>> {
    let session = LakeReader::newest_of(lake, settings, std::slice::from_ref(table)).await?.session()?;
    let plan = plan_read_only(&session, sql).await?;
    let frame = session.execute_logical_plan(plan).await.map_err(failed)?;
    frame.collect().await.map_err(failed)
}

/// The type of the one column of a query, which is not run.
pub(crate) async fn type_of(lake: &Lake, settings: &SessionSettings, table: &TableName, sql: &str) -> Result<DataType> {
    let session = LakeReader::newest_of(lake, settings, std::slice::from_ref(table)).await?.session()?;
    let plan = plan_read_only(&session, sql).await?;
    Ok(plan.schema().field(0).data_type().clone())
}

fn failed(source: DataFusionError) -> IdentityError {
    IdentityError::Engine(EngineError::Execution { what: "resolving identity".to_owned(), source: Box::new(source) })
}

pub(crate) fn moments(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

/// Rows of one of these tables.
pub(crate) fn batch(spec: &TableSpec, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(Arc::clone(&spec.schema), columns)
        .map_err(|error| IdentityError::Damaged(format!("{}: {error}", spec.name)))
}
