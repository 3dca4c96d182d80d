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
use holdfast_types::TableName;

use super::as_of;
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

/// Each stage by its key: the inputs and what a change of them means, or why it is not by this key.
async fn judged(pipeline: &str, stages: &str, keys: &[(&str, &str, &str)]) -> Vec<String> {
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
    let settings = SessionSettings { functions: vec![Arc::new(tokens)], ..SessionSettings::default() };
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
        let key =
            keys.iter().find(|(name, _, _)| *name == stage.name.to_string()).map_or("customer_id", |(_, key, _)| key);
        let judged = match KeyPlan::derive(&state, &plan, key) {
            Ok(plan) => told(&plan),
            Err(refused) => format!("not: {}", refused.reason),
        };
        lines.push(format!("{} | {key} | {judged}", stage.name));
    }
    lines.sort();
    lines
}

async fn check(pipeline: &str, stages: &str, expected: &[(&str, &str, &str)]) {
    let judged = judged(pipeline, stages, expected).await;
    let mut wanted: Vec<String> =
        expected.iter().map(|(stage, key, told)| format!("{stage} | {key} | {told}")).collect();
    wanted.sort();
    assert_eq!(judged, wanted, "\n{}", judged.join("\n"));
}

#[tokio::test]
async fn stages_of_the_churn_pack() {
    check("churn", "sql", CHURN).await;
}

#[tokio::test]
async fn stages_of_the_online_retail_pipeline() {
    check("uci_online_retail", "sql/uci_online_retail", ONLINE_RETAIL).await;
}

#[tokio::test]
async fn stages_of_the_complete_journey_pipeline() {
    check("complete_journey", "sql/complete_journey", COMPLETE_JOURNEY).await;
}

const CHURN: &[(&str, &str, &str)] = &[
    ("core.campaign_touches", "touch_id", "identity.identifiers own(customer_id), raw.campaign_touches key"),
    ("core.campaigns", "campaign_id", "core.campaign_touches key"),
    ("core.contact_history", "crm_id", "identity.identifiers own(customer_id), raw.crm_contacts key"),
    ("core.contacts", "crm_id", "core.contact_history key"),
    ("core.coupons", "event_id", "identity.identifiers own(customer_id), raw.coupons key"),
    ("core.events", "event_id", "core.sku_map own(product_id), identity.identifiers own(customer_id), raw.events key"),
    ("core.loyalty_ledger", "entry_id", "identity.identifiers own(customer_id), raw.loyalty_ledger key"),
    ("core.order_lines", "order_id", "core.orders key, core.sku_map own(product_id), raw.order_lines key"),
    ("core.orders", "order_id", "identity.identifiers own(customer_id), raw.orders key"),
    ("core.payments", "payment_id", "core.orders own(order_id), identity.identifiers join, raw.payments key"),
    ("core.products", "product_key", "raw.products key"),
    ("core.purchases", "purchase_id", "core.order_lines key, core.orders join, core.receipts key, core.refunds key"),
    (
        "core.receipts",
        "receipt_id",
        "core.sku_map own(product_id), identity.identifiers own(customer_id), raw.receipts key",
    ),
    ("core.refunds", "refund_id", "core.orders own(order_id), raw.refunds key"),
    (
        "core.reviews",
        "review_id",
        "core.orders own(order_id), core.sku_map own(product_id), identity.identifiers join, raw.reviews key",
    ),
    ("core.sessions", "customer_id", "core.events key"),
    ("core.shipments", "shipment_id", "core.orders own(order_id), identity.identifiers join, raw.shipments key"),
    ("core.sku_map", "code", "core.products key"),
    ("core.social_posts", "post_id", "identity.identifiers own(customer_id), raw.social_posts key"),
    ("core.ticket_messages", "message_id", "core.tickets own(ticket_id), raw.ticket_messages key"),
    ("core.tickets", "ticket_id", "identity.identifiers own(customer_id), raw.tickets key"),
    (
        "features.churn_v1",
        "customer_id",
        "profile.behaviour_summary key, profile.campaign_summary key, profile.category_summary key, profile.fulfilment_summary key, profile.lifecycle key, profile.loyalty_summary key, profile.payment_summary key, profile.price_summary key, profile.purchase_rhythm key, profile.purchase_summary key, profile.service_summary key, profile.voice_summary key",
    ),
    ("metric.alerts", "source", "metric.ingest_alerts key"),
    ("metric.churn_overview", "risk_band", "risk.churn_score key"),
    ("metric.column_quality", "source", "metric.ingest_batches key"),
    ("metric.data_quality", "source", "metric.ingest_batches key, metric.ingest_replays key"),
    ("metric.sku_matching", "table_name", "core.events key, core.order_lines key, core.receipts key, core.reviews key"),
    ("metric.source_freshness", "source", "metric.ingest_batches key"),
    ("metric.unknown_fields", "source", "metric.ingest_batches key, metric.ingest_unknown_fields key"),
    ("profile.behaviour_summary", "customer_id", "core.sessions key"),
    ("profile.campaign_summary", "customer_id", "core.campaign_touches key"),
    ("profile.category_summary", "customer_id", "core.order_lines key, core.orders key, core.receipts key"),
    ("profile.contact", "customer_id", "core.contact_history key"),
    (
        "profile.customer_360",
        "customer_id",
        "profile.behaviour_summary key, profile.campaign_summary key, profile.category_summary key, profile.contact key, profile.fulfilment_summary key, profile.identity_summary key, profile.lifecycle key, profile.loyalty_summary key, profile.payment_summary key, profile.price_summary key, profile.purchase_rhythm key, profile.purchase_summary key, profile.service_summary key, profile.voice_summary key",
    ),
    ("profile.fulfilment_summary", "customer_id", "core.shipments key"),
    ("profile.identity_summary", "customer_id", "identity.customers key, identity.identifiers key"),
    ("profile.lifecycle", "customer_id", "profile.purchase_rhythm key, profile.purchase_summary key"),
    ("profile.loyalty_summary", "customer_id", "core.loyalty_ledger key"),
    ("profile.payment_summary", "customer_id", "core.payments key, core.refunds key"),
    ("profile.price_summary", "customer_id", "core.coupons key, profile.purchase_summary key"),
    ("profile.purchase_rhythm", "customer_id", "core.purchases key"),
    ("profile.purchase_summary", "customer_id", "core.purchases key"),
    ("profile.service_summary", "customer_id", "core.ticket_messages key, core.tickets key"),
    ("profile.voice_summary", "customer_id", "core.orders key, core.reviews key, core.social_posts key"),
    (
        "risk.churn_score",
        "customer_id",
        "profile.behaviour_summary key, profile.campaign_summary key, profile.fulfilment_summary key, profile.lifecycle key, profile.loyalty_summary key, profile.payment_summary key, profile.price_summary key, profile.purchase_summary key, profile.service_summary key, profile.voice_summary key",
    ),
    (
        "risk.rfm_b",
        "customer_id",
        "profile.behaviour_summary key, profile.campaign_summary key, profile.lifecycle key, profile.purchase_summary key, profile.service_summary key",
    ),
];

const ONLINE_RETAIL: &[(&str, &str, &str)] = &[
    ("core.invoice_lines", "invoice_no", "identity.identifiers own(customer_id), raw.invoice_lines join"),
    ("core.invoices", "invoice_no", "core.invoice_lines key"),
    ("profile.customer_360", "customer_id", "core.invoice_lines key, core.invoices key"),
    ("risk.churn_score", "customer_id", "profile.customer_360 key"),
    ("risk.rfm", "customer_id", "profile.customer_360 key"),
];

const COMPLETE_JOURNEY: &[(&str, &str, &str)] = &[
    ("core.baskets", "basket_id", "core.transactions key"),
    (
        "core.campaign_touches",
        "campaign_id",
        "identity.identifiers own(household_id), raw.campaign_descriptions key, raw.campaigns key",
    ),
    (
        "core.coupon_redemptions",
        "household_id",
        "identity.identifiers own(household_id), raw.coupon_redemptions key, raw.coupons own(campaign_id coupon_upc)",
    ),
    ("core.households", "household_id", "identity.identifiers own(household_id), raw.demographics key"),
    ("core.products", "product_id", "raw.products key"),
    ("core.promoted_products", "product_id", "raw.promotions join, raw.transactions join"),
    (
        "core.transactions",
        "basket_id",
        "core.products own(product_id), core.promoted_products own(product_id store_id week), identity.identifiers own(customer_id), raw.transactions join",
    ),
    (
        "profile.customer_360",
        "customer_id",
        "core.baskets key, core.campaign_touches key, core.coupon_redemptions key, core.households key, core.transactions key",
    ),
    ("risk.churn_score", "customer_id", "profile.customer_360 key"),
];
