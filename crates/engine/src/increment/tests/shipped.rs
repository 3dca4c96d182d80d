//! What the shipped stages are by, and what a change of each of their inputs means.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::datasource::empty::EmptyTable;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
use datafusion::scalar::ScalarValue;
use holdfast_types::TableName;

use super::as_of;
use crate::directive::StageKind;
use crate::increment::{KeyPlan, Reach};
use crate::project::{DeclaredTable, Project};
use crate::session::{SessionSettings, plan_as_of, session_with};

/// Tables that no stage makes and no source brings, with the columns that stages read.
const OTHER_TABLES: &str = r#"
[identity.identifiers]
identifier_type = "string"
token = "string"
customer_id = "string"
is_shared = "bool"
valid_from = "timestamp"
valid_to = "timestamp"
[identity.customers]
customer_id = "string"
first_seen_at = "timestamp"
merged_into = "string"
[metric.ingest_batches]
pipeline = "string"
source = "string"
batch = "int64"
outcome = "string"
files = "int64"
bytes = "int64"
rows_read = "int64"
rows_stored = "int64"
rows_quarantined = "int64"
event_time_min = "timestamp"
event_time_max = "timestamp"
started_at = "timestamp"
finished_at = "timestamp"
rows_late = "int64"
duplicates_in_file = "int64"
duplicates_across_files = "int64"
column_nulls = "list<struct<column string, nulls int64>>"
[metric.ingest_replays]
pipeline = "string"
source = "string"
batch = "int64"
rows_replayed = "int64"
[metric.ingest_unknown_fields]
pipeline = "string"
source = "string"
batch = "int64"
field = "string"
rows = "int64"
seen_at = "timestamp"
[metric.ingest_alerts]
pipeline = "string"
source = "string"
rule = "string"
column_name = "string"
severity = "string"
since = "timestamp"
batch = "int64"
value = "float64"
allowed = "float64"
message = "string"
remedy = "string"
state = "string"
told = "timestamp"
[metric.model_quality]
model = "string"
version = "int32"
kind = "string"
subject = "string"
measure = "string"
moment = "timestamp"
customers = "int64"
value = "float64"
low = "float64"
high = "float64"
expected = "float64"
allowed = "float64"
is_alert = "bool"
message = "string"
watched_at = "timestamp"
[model.thresholds]
model = "string"
version = "int32"
segment = "string"
season = "string"
valid_from = "date"
valid_to = "date"
high = "float64"
medium = "float64"
[risk.churn_probability]
customer_id = "string"
model = "string"
model_version = "int32"
probability = "float64"
band = "string"
raises_1 = "string"
raises_2 = "string"
raises_3 = "string"
lowers_1 = "string"
lowers_2 = "string"
as_of = "timestamp"
"#;

/// What every raw table has besides its contract's columns.
const LINEAGE: [(&str, &str); 4] =
    [("_source_file", "string"), ("_source_line", "int64"), ("_batch", "int64"), ("_ingested_at", "timestamp")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The type of a column as source contracts spell it.
fn type_of(text: &str) -> DataType {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix("struct<").and_then(|text| text.strip_suffix('>')) {
        let fields: Vec<Field> = parts(inner)
            .into_iter()
            .map(|part| {
                let (name, data_type) = part.trim().split_once(' ').unwrap();
                Field::new(name, type_of(data_type), true)
            })
            .collect();
        return DataType::Struct(Fields::from(fields));
    }
    if let Some(inner) = text.strip_prefix("list<").and_then(|text| text.strip_suffix('>')) {
        return DataType::new_list(type_of(inner), true);
    }
    if let Some(inner) = text.strip_prefix("decimal(").and_then(|text| text.strip_suffix(')')) {
        let (precision, scale) = inner.split_once(',').unwrap();
        return DataType::Decimal128(precision.trim().parse().unwrap(), scale.trim().parse().unwrap());
    }
    match text {
        "string" => DataType::Utf8,
        "int32" => DataType::Int32,
        "int64" => DataType::Int64,
        "float64" => DataType::Float64,
        "bool" | "boolean" => DataType::Boolean,
        "date" => DataType::Date32,
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        other => panic!("type {other}"),
    }
}

/// What commas outside brackets separate.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, character) in text.char_indices() {
        match character {
            '<' | '(' => depth += 1,
            '>' | ')' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found
}

fn columns_of(table: &toml::Table) -> Vec<Field> {
    table
        .iter()
        .map(|(name, column)| {
            let data_type = column.as_str().or_else(|| column.get("type").and_then(toml::Value::as_str));
            Field::new(name, type_of(data_type.unwrap()), true)
        })
        .collect()
}

/// The tables that the stages of a pipeline read and do not make.
fn declared(pipeline: &str) -> Vec<DeclaredTable> {
    let table = |name: TableName, fields: Vec<Field>| DeclaredTable {
        name,
        schema: Arc::new(Schema::new(fields)),
        identifiers: Vec::new(),
    };
    let mut tables = Vec::new();
    let other: toml::Table = toml::from_str(OTHER_TABLES).unwrap();
    for (schema, named) in &other {
        for (name, columns) in named.as_table().unwrap() {
            tables.push(table(TableName::new(schema, name).unwrap(), columns_of(columns.as_table().unwrap())));
        }
    }
    for file in std::fs::read_dir(root().join("pipelines").join(pipeline).join("sources")).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let contract: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let mut fields = columns_of(contract["columns"].as_table().unwrap());
        fields.extend(LINEAGE.iter().map(|(name, data_type)| Field::new(*name, type_of(data_type), true)));
        let name = file.file_stem().unwrap().to_str().unwrap();
        tables.push(table(TableName::new("raw", name).unwrap(), fields));
    }
    tables
}

fn told(plan: &KeyPlan) -> String {
    let mut text = String::new();
    for (input, reach) in plan.reach() {
        let separator = if text.is_empty() { "" } else { ", " };
        match reach {
            Reach::Key => write!(text, "{separator}{input} key"),
            Reach::Own { columns } => write!(text, "{separator}{input} own({})", columns.join(" ")),
            Reach::Join => write!(text, "{separator}{input} join"),
            Reach::Full { reason } => write!(text, "{separator}{input} full ({reason})"),
        }
        .unwrap();
    }
    text
}

/// Each stage that says it is by a key: its inputs and what a change of them means, or why it is not by this key.
async fn judged(pipeline: &str, stages: &str) -> Vec<String> {
    let project = Project::load(&root().join(stages), declared(pipeline)).unwrap_or_else(|error| panic!("{error}"));
    let text = DataType::Utf8;
    // Stands in for the function of identity: its value depends on its arguments and on nothing else.
    let tokens = create_udf(
        "identifier_token",
        vec![text.clone(), text.clone()],
        text,
        Volatility::Immutable,
        Arc::new(|arguments: &[ColumnarValue]| Ok(arguments[1].clone())),
    );
    // The same of the model of texts.
    let answer = ["score", "confidence", "tone", "language", "version"].into_iter().map(|name| match name {
        "tone" | "language" => Field::new(name, DataType::Utf8, true),
        "version" => Field::new(name, DataType::Int32, true),
        _ => Field::new(name, DataType::Float64, true),
    });
    let answer = DataType::Struct(answer.collect());
    let sentiment = create_udf(
        "sentiment",
        vec![DataType::Utf8, DataType::Utf8],
        answer.clone(),
        Volatility::Immutable,
        Arc::new(move |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(ScalarValue::try_from(&answer)?))),
    );
    let functions = vec![Arc::new(tokens), Arc::new(sentiment)];
    let settings = SessionSettings { functions, ..SessionSettings::default() };
    let runtime = Arc::new(RuntimeEnv::default());
    let mut known: BTreeMap<TableName, SchemaRef> = project.declared().clone();
    let mut lines = Vec::new();
    for stage in project.stages() {
        let tables = stage.inputs.keys().map(|input| {
            let schema = Arc::clone(known.get(input).unwrap_or_else(|| panic!("{input}")));
            (input.clone(), Arc::new(EmptyTable::new(schema)) as Arc<dyn TableProvider>)
        });
        let context = session_with(&settings, &runtime, 4, tables).unwrap();
        let (state, plan) = plan_as_of(&context, stage.statement.clone(), as_of())
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", stage.name));
        let made = state.optimize(&plan).unwrap();
        known.insert(stage.name.clone(), Arc::clone(made.schema().inner()));
        let StageKind::Incremental { key, .. } = &stage.directives.kind else { continue };
        let [key] = key.as_slice() else { panic!("{} has several keys", stage.name) };
        let judged = match KeyPlan::derive(&state, &plan, key) {
            Ok(plan) => told(&plan),
            Err(refused) => format!("not: {}", refused.reason),
        };
        lines.push(format!("{} | {key} | {judged}", stage.name));
    }
    lines.sort();
    lines
}

/// # Panics
/// When a stage that says it is brought up to date by a key cannot be, or an input of it always means a full refresh.
async fn check(pipeline: &str, stages: &str, by_key: usize) {
    let judged = judged(pipeline, stages).await;
    let wrong: Vec<&String> = judged.iter().filter(|line| line.contains("not:") || line.contains(" full (")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(judged.len(), by_key, "{judged:#?}");
}

#[tokio::test]
async fn stages_of_the_churn_pack() {
    check("churn", "sql", 43).await;
}

#[tokio::test]
async fn stages_of_the_online_retail_pipeline() {
    check("uci_online_retail", "sql/uci_online_retail", 6).await;
}

#[tokio::test]
async fn stages_of_the_complete_journey_pipeline() {
    check("complete_journey", "sql/complete_journey", 10).await;
}
