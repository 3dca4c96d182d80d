//! Queries over small tables: refreshed by key they have to be what they are refreshed in full.

mod random;
mod shapes;
mod shipped;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::parser::DFParserBuilder;
use holdfast_types::TableName;

use super::{InputChange, KeyPlan, NotByKey};
use crate::session::{SessionSettings, plan_as_of, session_with};

/// A row, by the order of its table's columns.
type Row = Vec<ScalarValue>;

#[derive(Debug, Clone)]
struct Rows {
    schema: SchemaRef,
    rows: Vec<Row>,
}

type Tables = BTreeMap<TableName, Rows>;

/// What is told as removed and as added.
type Changes = BTreeMap<TableName, (Vec<Row>, Vec<Row>)>;

/// Numbers that look random and are the same for the same seed.
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    /// From 0 up to below `end`.
    fn below(&mut self, end: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn choice<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

impl Rows {
    fn provider(&self) -> Arc<dyn TableProvider> {
        let columns: Vec<ArrayRef> = (0..self.schema.fields().len())
            .map(|index| {
                let data_type = self.schema.field(index).data_type();
                let values: Vec<ScalarValue> = self.rows.iter().map(|row| row[index].clone()).collect();
                if values.is_empty() {
                    arrow::array::new_empty_array(data_type)
                } else {
                    ScalarValue::iter_to_array(values).unwrap()
                }
            })
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).unwrap();
        Arc::new(MemTable::try_new(Arc::clone(&self.schema), vec![vec![batch]]).unwrap())
    }

    fn with(&self, rows: Vec<Row>) -> Self {
        Self { schema: Arc::clone(&self.schema), rows }
    }
}

fn as_of() -> DateTime<Utc> {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn context(tables: &Tables) -> SessionContext {
    let settings = SessionSettings { target_partitions: 1, ..SessionSettings::default() };
    let providers = tables.iter().map(|(name, rows)| (name.clone(), rows.provider()));
    session_with(&settings, &Arc::new(RuntimeEnv::default()), 4, providers).unwrap()
}

async fn planned(context: &SessionContext, sql: &str) -> Result<(SessionState, LogicalPlan), String> {
    let statement = DFParserBuilder::new(sql).build().unwrap().parse_statements().map_err(|error| error.to_string())?;
    let statement = statement.into_iter().next().unwrap();
    plan_as_of(context, statement, as_of()).await.map_err(|error| error.to_string())
}

async fn derived(tables: &Tables, sql: &str, key: &str) -> Result<KeyPlan, NotByKey> {
    let (state, plan) = planned(&context(tables), sql).await.unwrap_or_else(|error| panic!("{sql}\n{error}"));
    KeyPlan::derive(&state, &plan, key)
}

async fn rows_of(state: &SessionState, plan: LogicalPlan) -> Result<Rows, String> {
    let frame = DataFrame::new(state.clone(), plan);
    let mut schema = Arc::clone(frame.schema().inner());
    let mut rows = Vec::new();
    for batch in frame.collect().await.map_err(|error| error.to_string())? {
        // Only the rows know the types that the analyser made of those in the query.
        schema = batch.schema();
        for row in 0..batch.num_rows() {
            let values = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, row).unwrap());
            rows.push(values.collect::<Row>());
        }
    }
    let fields: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    Ok(Rows { schema: Arc::new(Schema::new(fields)), rows })
}

fn sorted(rows: &[Row]) -> Vec<String> {
    let mut lines: Vec<String> =
        rows.iter().map(|row| row.iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(" | ")).collect();
    lines.sort();
    lines
}

/// How a refresh by key did.
#[derive(Debug, PartialEq, Eq)]
enum Refreshed {
    ByKey { keys: usize, differing: usize },
    InFull,
}

/// Refreshes a query by key after `changes` and compares with the full result.
///
/// What the query cannot be run for is an `Err` of its own kind: not a mistake of the rules.
async fn refresh(
    sql: &str,
    key: &str,
    old: &Tables,
    new: &Tables,
    changes: &Changes,
    dice: &mut Dice,
) -> Result<Refreshed, String> {
    let (old_state, old_plan) = planned(&context(old), sql).await?;
    let before = rows_of(&old_state, old_plan).await?;
    let (state, plan) = planned(&context(new), sql).await?;
    let after = rows_of(&state, plan.clone()).await?;
    let key_plan = KeyPlan::derive(&state, &plan, key).map_err(|refused| refused.to_string())?;

    let given = changes
        .iter()
        .map(|(name, (removed, added))| {
            let rows = &new[name];
            let (removed, added) = (rows.with(removed.clone()).provider(), rows.with(added.clone()).provider());
            (name.clone(), InputChange { removed, added })
        })
        .collect();
    // Some of the rows may be in quarantine.
    let (kept, quarantined): (Vec<Row>, Vec<Row>) = before.rows.iter().cloned().partition(|_| !dice.one_in(5));
    let own = [before.with(kept).provider(), before.with(quarantined).provider()];
    let current: &[Arc<dyn TableProvider>] = if dice.one_in(8) { &[] } else { &own };
    let affected = key_plan.affected(&state, &given, current).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    let Some(affected) = affected else { return Ok(Refreshed::InFull) };
    assert_eq!(affected.schema().fields().len(), 1, "{sql}");
    let shown = affected.display_indent().to_string();
    let keys = rows_of(&state, affected).await.unwrap_or_else(|error| panic!("{sql}\n{error}\n{shown}"));
    assert_eq!(sorted(&keys.rows).windows(2).filter(|two| two[0] == two[1]).count(), 0, "a key twice: {sql}");
    let restricted = key_plan.restricted(keys.provider()).unwrap();
    let shown_restricted = restricted.display_indent().to_string();
    let made = match rows_of(&state, restricted).await {
        Ok(made) => made,
        // The optimiser may lay a trap for itself, in which it stops: a constant column, sorted through a union.
        Err(error) if error.contains("SanityCheckPlan") => return Err(error),
        Err(error) => panic!("{sql}\n{error}\n{shown_restricted}"),
    };

    let at = before.schema.index_of(key).unwrap();
    let is_affected = |row: &Row| keys.rows.iter().any(|key| key[0] == row[at]);
    let foreign: Vec<Row> = made.rows.iter().filter(|row| !is_affected(row)).cloned().collect();
    assert!(foreign.is_empty(), "rows of other keys: {foreign:?}\n{sql}\n{shown_restricted}");
    let mut refreshed: Vec<Row> = before.rows.iter().filter(|row| !is_affected(row)).cloned().collect();
    refreshed.extend(made.rows);
    assert_eq!(
        sorted(&refreshed),
        sorted(&after.rows),
        "left by key, right in full\n{sql}\nkeys {:?}\nchanges {changes:?}\n{shown}\n{shown_restricted}",
        keys.rows,
    );
    let (one, other) = (sorted(&before.rows), sorted(&after.rows));
    let differing = one.iter().filter(|line| !other.contains(line)).count()
        + other.iter().filter(|line| !one.contains(line)).count();
    Ok(Refreshed::ByKey { keys: keys.rows.len(), differing })
}

/// Changes 1 to 3 rows of one or two tables. Some of what is told as changed did not.
fn changed(tables: &Tables, read: &[TableName], dice: &mut Dice) -> (Tables, Changes) {
    let mut new = tables.clone();
    let mut changes: Changes = BTreeMap::new();
    for _ in 0..=dice.below(2) {
        let name = dice.choice(read).clone();
        let table = new.get_mut(&name).unwrap();
        let (removed, added) = changes.entry(name).or_default();
        for _ in 0..=dice.below(3) {
            let fresh = random_row(&table.schema, dice);
            if dice.one_in(8) {
                // It came and went between the two versions.
                removed.push(fresh.clone());
                added.push(fresh);
                continue;
            }
            if table.rows.is_empty() || dice.one_in(3) {
                added.push(fresh.clone());
                table.rows.push(fresh);
                continue;
            }
            let at = usize::try_from(dice.below(table.rows.len() as u64)).unwrap();
            match dice.below(4) {
                0 => removed.push(table.rows.swap_remove(at)),
                1 => {
                    removed.push(table.rows[at].clone());
                    added.push(table.rows[at].clone());
                }
                _ => {
                    removed.push(table.rows[at].clone());
                    let column = usize::try_from(dice.below(fresh.len() as u64)).unwrap();
                    table.rows[at][column] = fresh[column].clone();
                    added.push(table.rows[at].clone());
                }
            }
        }
    }
    (new, changes)
}

fn random_row(schema: &Schema, dice: &mut Dice) -> Row {
    schema.fields().iter().map(|field| random_value(field, dice)).collect()
}

fn random_value(field: &Field, dice: &mut Dice) -> ScalarValue {
    let is_null = field.is_nullable() && dice.one_in(6);
    let number = i64::try_from(dice.below(5)).unwrap();
    match field.data_type() {
        DataType::Int64 => ScalarValue::Int64((!is_null).then_some(number)),
        DataType::Int32 => ScalarValue::Int32((!is_null).then(|| i32::try_from(number).unwrap())),
        DataType::Utf8 => {
            let texts = ["a", "b", "c", "A", " b"];
            ScalarValue::Utf8((!is_null).then(|| (*dice.choice(&texts)).to_owned()))
        }
        DataType::Boolean => ScalarValue::Boolean((!is_null).then_some(number > 1)),
        DataType::Float64 => {
            ScalarValue::Float64((!is_null).then(|| [0.0, -0.0, 1.0][usize::try_from(number).unwrap() % 3]))
        }
        other => panic!("{other}"),
    }
}

fn random_tables(schemas: &[(&str, SchemaRef)], dice: &mut Dice) -> Tables {
    schemas
        .iter()
        .map(|(name, schema)| {
            let rows = (0..dice.below(9)).map(|_| random_row(schema, dice)).collect();
            (name.parse().unwrap(), Rows { schema: Arc::clone(schema), rows })
        })
        .collect()
}

fn schema(columns: &[(&str, DataType)]) -> SchemaRef {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, data_type)| match name.strip_suffix('!') {
            Some(name) => Field::new(name, data_type.clone(), false),
            None => Field::new(*name, data_type.clone(), true),
        })
        .collect();
    Arc::new(Schema::new(fields))
}
