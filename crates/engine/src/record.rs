//! A case made from what is in the lake: the rows behind a few customers, masked, and what the stage makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{Field, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat, Utc};
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder, col};
use datafusion::prelude::DataFrame;
use holdfast_lake::Table;
use holdfast_types::{CUSTOMER_ID, TableName};
use serde_json::Value;

use crate::Result;
use crate::build::{NOTE_COMMITS_MAX, STAGE_NOTE, StageNote, StageWork, salt};
use crate::by_key::matching;
use crate::cases::{case_names, made_of};
use crate::error::EngineError;
use crate::project::{CheckedStage, Selection};
use crate::rows::{json_rows, pii_columns};
use crate::run::Runner;
use crate::session::session_with;
use crate::why::one_column;

/// Rows of one table in a case: more are read by nobody.
const ROWS_MAX: usize = 200;
/// How many customers a case is of where none are named.
const CUSTOMERS: usize = 2;

/// Which case to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordOptions {
    /// Of which stage.
    pub stage: TableName,
    /// Of which customers; some of the stage's table where none are named.
    pub customers: Vec<String>,
    /// The name of the case.
    pub name: String,
}

/// A case that was made. Nothing is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The file that it belongs into.
    pub file: PathBuf,
    /// The whole text of that file with the case at its end.
    pub text: String,
    /// How many rows of each input are in it.
    pub given: BTreeMap<TableName, usize>,
    /// How many rows are expected.
    pub expected: usize,
    /// What its author should know.
    pub remarks: Vec<String>,
}

impl Runner {
    /// A case of the rows that a stage's table was made from, as they were then: of some customers, of inputs that do not say whose their rows are all rows, with the
    /// columns that the stage reads. Customers are called c1, c2, …; personal data becomes made-up text, and is left out where it is no text. Expected is what
    /// the stage makes of these rows.
    ///
    /// # Errors
    /// Mistakes in stage files; a stage without customers, without a table, or whose query changed since its table was made; more rows than a case can have; a name that is taken.
    pub async fn record_case(&self, options: &RecordOptions) -> Result<Recorded> {
        let stage_name = &options.stage;
        let refused = |message: String| EngineError::Query { message };
        let checked = self.project.check(&self.lake, &self.settings, self.lake.clock().now()).await?;
        // Tells what it may be called instead.
        self.project.select(&Selection::Patterns(vec![stage_name.to_string()]))?;
        let schemas = self.schemas(&checked);
        let Some(stage) = checked.into_iter().find(|checked| checked.stage.name == *stage_name) else {
            return Err(EngineError::NoStage { name: stage_name.to_string(), hint: String::new() });
        };
        self.recordable(&stage, options)?;
        let Some(table) = self.lake.table(stage_name).await? else {
            return Err(refused(format!("{stage_name} was never made: use `holdfast run`")));
        };
        let note = table.commit_note(STAGE_NOTE, NOTE_COMMITS_MAX).await?.and_then(StageNote::read);
        let is_current = |note: &StageNote| {
            note.fingerprint == stage.stage.fingerprint(&salt(&self.lake, &self.settings, &stage.stage).whole)
        };
        let Some(note) = note.filter(is_current) else {
            return Err(refused(format!(
                "{stage_name} is another query than the one that its table was made by: use `holdfast run` first"
            )));
        };
        let runtime = self.settings.runtime(&self.lake)?;
        let work = self.work_as_made(stage.clone(), table.clone(), &note, &schemas, &runtime).await?;
        let state = session_with(&self.settings, &runtime, self.lake.settings().customer_buckets, [])?.state();
        let customers = match options.customers.as_slice() {
            [] => first_customers(&state, &table).await?,
            named => named.to_vec(),
        };
        let as_of = note.moment.or(note.as_of).unwrap_or_else(|| self.lake.clock().now());
        let recorder = Recorder { state: &state, stage: &stage, customers: &customers };
        let mut masks = Masks::new(&customers);
        let given = recorder.given(&work, &mut masks).await?;
        let live = recorder.live(&table).await?;
        let found = TextRows::of(&live, [CUSTOMER_ID], |_, _, cell| cell)?.rows;
        if let Some(nobody) = customers.iter().find(|id| found.iter().all(|row| row[0] != **id)) {
            return Err(refused(format!("{stage_name} has no row of a customer `{nobody}`")));
        }
        // The text of the case has to be what it is when it is read again.
        let texts: BTreeMap<String, String> =
            given.iter().map(|(name, rows)| (name.to_string(), rows.to_string())).collect();
        let made = made_of(&self.lake, &self.settings, &stage, &schemas, &texts, as_of).await?.map_err(refused)?;
        let columns = stage.lineage.columns.iter().map(|(name, _)| name.as_str());
        let expected = TextRows::of(&made, columns, |_, _, cell| cell)?;
        // What the lake has, with the same words for the same values.
        let live = masks.masked(&live, &stage.schema)?;
        let mut remarks = masks.remarks();
        remarks.extend(difference(&expected, &live, &pii_columns(&stage.schema)));
        let file = stage.stage.file.with_extension("cases.toml");
        let text = with_case(&file, &options.name, as_of, &texts, &expected)?;
        Ok(Recorded {
            file,
            text,
            given: given.iter().map(|(name, rows)| (name.clone(), rows.rows.len())).collect(),
            expected: expected.rows.len(),
            remarks,
        })
    }

    fn recordable(&self, stage: &CheckedStage, options: &RecordOptions) -> Result<()> {
        let refused = |message: String| Err(EngineError::Query { message });
        let name = &stage.stage.name;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if options.name.is_empty() || !options.name.chars().all(is_name) {
            return refused(format!("`{}` is no name for a case: use letters, digits and _", options.name));
        }
        if case_names(&stage.stage)?.contains(&options.name) {
            return refused(format!("{name} has a case `{}` already: give another name", options.name));
        }
        if stage.schema.field_with_name(CUSTOMER_ID).is_err() {
            return refused(format!("{name} has no column {CUSTOMER_ID}: write its cases by hand"));
        }
        let query = stage.stage.statement.to_string();
        let mut own = self.settings.functions.iter().chain(self.settings.row_functions.all());
        if let Some(function) = own.find(|own| query.contains(&format!("{}(", own.name()))) {
            let function = function.name();
            return refused(format!(
                "{name} calls {function}(), whose values cannot be masked: write its cases by hand"
            ));
        }
        Ok(())
    }
}

/// The text of a file of cases, which may be new, with another case at its end.
fn with_case(
    file: &Path,
    name: &str,
    as_of: DateTime<Utc>,
    given: &BTreeMap<String, String>,
    expected: &TextRows,
) -> Result<String> {
    let as_of = as_of.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let mut text = match std::fs::read_to_string(file) {
        Ok(text) => format!("{}\n", text.trim_end()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("as_of = \"{as_of}\"\n"),
        Err(source) => return Err(EngineError::Unreadable { path: file.to_owned(), source }),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n[[case]]\nname = \"{name}\"\nas_of = \"{as_of}\"\n[case.given]");
    for (table, rows) in given {
        let _ = writeln!(text, "\"{table}\" = \"\"\"\n{rows}\"\"\"");
    }
    let _ = writeln!(text, "[case.expect]\nrows = \"\"\"\n{expected}\"\"\"");
    Ok(text)
}

struct Recorder<'a> {
    state: &'a SessionState,
    stage: &'a CheckedStage,
    customers: &'a [String],
}

impl Recorder<'_> {
    /// Of each input the rows behind the customers, in the columns that are read.
    async fn given(&self, work: &StageWork, masks: &mut Masks) -> Result<BTreeMap<TableName, TextRows>> {
        let lineage = &self.stage.lineage;
        let read = lineage.columns.iter().flat_map(|(_, origins)| origins).chain(&lineage.rows);
        let mut columns: BTreeMap<&TableName, BTreeSet<&str>> = BTreeMap::new();
        for origin in read {
            columns.entry(&origin.table).or_default().insert(&origin.column);
        }
        let mut given = BTreeMap::new();
        for (name, table) in &work.inputs {
            let Some(table) = table else { continue };
            let mut wanted = columns.remove(name).unwrap_or_default();
            let is_of_customers = table.schema().field_with_name(CUSTOMER_ID).is_ok();
            if is_of_customers {
                wanted.insert(CUSTOMER_ID);
            }
            let failed = || EngineError::execution(format!("reading {name}"));
            let plan = if is_of_customers { self.of_customers(table) } else { whole(table) }.map_err(failed())?;
            let batches = self.rows(plan, name, &wanted).await?;
            let count: usize = batches.iter().map(RecordBatch::num_rows).sum();
            if count > ROWS_MAX {
                let remedy = if is_of_customers {
                    "name customers with fewer by --customer"
                } else {
                    "it does not say whose its rows are: write the case by hand"
                };
                return Err(EngineError::Query { message: format!("more than {ROWS_MAX} rows of {name}: {remedy}") });
            }
            given.insert(name.clone(), masks.masked(&batches, table.schema())?);
        }
        Ok(given)
    }

    /// The customers' rows of the stage's own table.
    async fn live(&self, table: &Table) -> Result<Vec<RecordBatch>> {
        let plan = self.of_customers(table).map_err(EngineError::execution(format!("reading {}", table.name())))?;
        let columns = self.stage.lineage.columns.iter().map(|(name, _)| name.as_str()).collect();
        self.rows(plan, table.name(), &columns).await
    }

    fn of_customers(&self, table: &Table) -> Result<LogicalPlan, DataFusionError> {
        let ids: ArrayRef = Arc::new(StringArray::from(self.customers.to_vec()));
        let ids = cast(&ids, table.schema().field_with_name(CUSTOMER_ID)?.data_type())?;
        matching(table, CUSTOMER_ID, one_column(CUSTOMER_ID, ids)?)
    }

    /// Rows in the order of all their columns, one more than a case may have at most.
    async fn rows(&self, plan: LogicalPlan, name: &TableName, columns: &BTreeSet<&str>) -> Result<Vec<RecordBatch>> {
        let failed = || EngineError::execution(format!("reading {name}"));
        let has = |field: &&Arc<Field>| columns.contains(field.name().as_str());
        let names: Vec<String> = plan.schema().fields().iter().filter(has).map(|field| field.name().clone()).collect();
        let select = names.iter().map(|name| col(datafusion::common::Column::from_name(name)));
        let frame = DataFrame::new(self.state.clone(), plan).select(select).map_err(failed())?;
        frame.limit(0, Some(ROWS_MAX + 1)).map_err(failed())?.collect().await.map_err(failed())
    }
}

fn whole(table: &Table) -> Result<LogicalPlan, DataFusionError> {
    LogicalPlanBuilder::scan("rows", provider_as_source(table.provider()), None)?.build()
}

/// Customers of the table. Their ids are digests, so that the first are any.
async fn first_customers(state: &SessionState, table: &Table) -> Result<Vec<String>> {
    let failed = || EngineError::execution(format!("reading {}", table.name()));
    let id = || col(CUSTOMER_ID);
    let frame = DataFrame::new(state.clone(), whole(table).map_err(failed())?);
    let frame = frame.filter(id().is_not_null()).and_then(|frame| frame.select([id()])).map_err(failed())?;
    let frame = frame.distinct().and_then(|frame| frame.sort(vec![id().sort(true, false)])).map_err(failed())?;
    let batches = frame.limit(0, Some(CUSTOMERS)).map_err(failed())?.collect().await.map_err(failed())?;
    let rows = TextRows::of(&batches, [CUSTOMER_ID], |_, _, cell| cell)?.rows;
    if rows.is_empty() {
        return Err(EngineError::Query { message: format!("{} has no customers: nothing to record", table.name()) });
    }
    Ok(rows.into_iter().flatten().collect())
}

/// What stands in the place of customers' ids and personal data: the same for the same value, in all tables.
struct Masks {
    customers: BTreeMap<String, String>,
    texts: BTreeMap<(String, String), String>,
    left_out: BTreeSet<String>,
}

impl Masks {
    fn new(customers: &[String]) -> Self {
        let named = customers.iter().enumerate().map(|(index, id)| (id.clone(), format!("c{}", index + 1)));
        Self { customers: named.collect(), texts: BTreeMap::new(), left_out: BTreeSet::new() }
    }

    fn masked(&mut self, batches: &[RecordBatch], schema: &SchemaRef) -> Result<TextRows> {
        let hidden = pii_columns(schema);
        let Some(first) = batches.first() else { return Ok(TextRows::default()) };
        let fields = first.schema();
        let names = fields.fields().iter().map(|field| field.name().as_str());
        TextRows::of(batches, names, |name, is_text, cell| self.mask(name, is_text, hidden.contains(name), cell))
    }

    fn mask(&mut self, column: &str, is_text: bool, is_hidden: bool, cell: String) -> String {
        if cell.is_empty() {
            return cell;
        }
        if column == CUSTOMER_ID {
            let next = format!("c{}", self.customers.len() + 1);
            return self.customers.entry(cell).or_insert(next).clone();
        }
        if !is_hidden {
            return cell;
        }
        if !is_text {
            self.left_out.insert(column.to_owned());
            return String::new();
        }
        let next = self.texts.keys().filter(|(of, _)| of == column).count() + 1;
        self.texts.entry((column.to_owned(), cell)).or_insert_with(|| format!("{column}_{next}")).clone()
    }

    fn remarks(&self) -> Vec<String> {
        let left_out = self.left_out.iter();
        left_out.map(|column| format!("{column} is personal data and no text: it is left out")).collect()
    }
}

/// Rows as cases have them.
#[derive(Debug, Default, PartialEq, Eq)]
struct TextRows {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl TextRows {
    /// The cells of these columns, each as `mask` leaves it: it is told the column and whether it has text.
    fn of<'a>(
        batches: &[RecordBatch],
        names: impl IntoIterator<Item = &'a str>,
        mut mask: impl FnMut(&str, bool, String) -> String,
    ) -> Result<Self> {
        let failed = |error: DataFusionError| EngineError::execution("writing rows as text")(error);
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut rows = Vec::new();
        for batch in batches {
            let mut columns = Vec::with_capacity(names.len());
            for name in &names {
                let cells = cells(batch, name).map_err(failed)?;
                let is_text = batch.schema().field_with_name(name).is_ok_and(is_text);
                columns.push(cells.into_iter().map(|cell| mask(name, is_text, cell)).collect::<Vec<String>>());
            }
            rows.extend((0..batch.num_rows()).map(|row| columns.iter().map(|cells| cells[row].clone()).collect()));
        }
        rows.sort_unstable();
        Ok(Self { names, rows })
    }
}

fn is_text(field: &Field) -> bool {
    use arrow::datatypes::DataType::{LargeUtf8, Utf8, Utf8View};
    matches!(field.data_type(), Utf8 | LargeUtf8 | Utf8View)
}

/// A column as a case writes it: null is nothing, an empty text `''`, what is nested JSON. Signs that mean something in a case's table are others here.
fn cells(batch: &RecordBatch, name: &str) -> Result<Vec<String>, DataFusionError> {
    let index = batch.schema().index_of(name)?;
    let column = batch.column(index);
    let plain = |text: &str| text.replace(['|', '\\'], "/").replace("\"\"\"", "'").replace(char::is_control, " ");
    if column.data_type().is_nested() {
        let rows = json_rows(&batch.project(&[index])?)?;
        let cell = |row: &serde_json::Map<String, Value>| match row.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(value) => plain(&value.to_string()),
        };
        return Ok(rows.iter().map(cell).collect());
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
    let has_text = is_text(batch.schema().field(index));
    Ok((0..batch.num_rows())
        .map(|row| match column.is_null(row) {
            true => String::new(),
            false => match plain(&formatter.value(row).to_string()).trim() {
                "" if has_text => "''".to_owned(),
                text => text.to_owned(),
            },
        })
        .collect())
}

/// `a | b` over `1 | x`, the separators below each other.
impl std::fmt::Display for TextRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.names.is_empty() {
            return Ok(());
        }
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.names[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.names.len()).map(width).collect();
        for row in [&self.names].into_iter().chain(&self.rows) {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            // A row that ends with a null ends with a separator, and one of nothing else is one.
            let line = cells.join(" | ");
            let line = line.trim_end();
            writeln!(f, "{}", if line.is_empty() { "|" } else { line })?;
        }
        Ok(())
    }
}

/// What the case makes that is not what the lake has.
fn difference(expected: &TextRows, live: &TextRows, hidden: &BTreeSet<String>) -> Option<String> {
    if expected.rows.len() != live.rows.len() {
        return Some(format!(
            "of these rows the stage makes {}, and its table has {} of these customers: rows of others matter, or expectations keep some out",
            expected.rows.len(),
            live.rows.len()
        ));
    }
    let values = |rows: &TextRows, name: &String| -> Option<Vec<String>> {
        let index = rows.names.iter().position(|column| column == name)?;
        let mut values: Vec<String> = rows.rows.iter().map(|row| row[index].clone()).collect();
        values.sort_unstable();
        Some(values)
    };
    let differs = |name: &&String| !hidden.contains(*name) && values(expected, name) != values(live, name);
    let names: Vec<&str> = expected.names.iter().filter(differs).map(String::as_str).collect();
    (!names.is_empty()).then(|| {
        format!("not as in the lake: {}; rows of other customers or masked data matter to them", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::parse_table;

    #[test]
    fn rows_are_written_so_that_they_are_read_as_the_same() {
        let field = |name: &str| Field::new(name, arrow::datatypes::DataType::Utf8, true);
        let schema = Arc::new(arrow::datatypes::Schema::new(vec![field("customer_id"), field("phone"), field("word")]));
        let column = |values: [Option<&str>; 3]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let batch = RecordBatch::try_new(
            schema,
            vec![
                column([Some("77aa"), Some("1b"), Some("77aa")]),
                column([Some("139"), None, Some("139")]),
                column([Some(" a|b\n\"\"\"\\"), Some(""), None]),
            ],
        )
        .unwrap();
        let mut masks = Masks::new(&["1b".to_owned()]);
        let fields = batch.schema();
        let names = fields.fields().iter().map(|field| field.name().as_str());
        let rows =
            TextRows::of(&[batch], names, |name, is_text, cell| masks.mask(name, is_text, name == "phone", cell))
                .unwrap();
        let text = rows.to_string();
        assert_eq!(
            text,
            "customer_id | phone   | word\nc1          |         | ''\nc2          | phone_1 |\nc2          | phone_1 | a/b '/\n"
        );
        let (names, read) = parse_table(&text).unwrap();
        assert_eq!(names, rows.names);
        assert_eq!(read[0], [Some("c1".to_owned()), None, Some(String::new())]);
        assert_eq!(read[1], [Some("c2".to_owned()), Some("phone_1".to_owned()), None]);
    }
}
