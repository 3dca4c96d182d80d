//! Cases beside stages: given rows, expected rows. Files of data, read at run time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::{DateTime, Utc};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::prelude::DataFrame;
use holdfast_lake::Lake;
use holdfast_types::TableName;
use serde::Deserialize;

use crate::Result;
use crate::diagnostic::{Diagnostic, Diagnostics, line_and_column};
use crate::error::{EngineError, describe};
use crate::project::{CheckedStage, Project, Selection};
use crate::session::{SessionSettings, plan_as_of, session_with};
use crate::stage::Stage;

/// How the cases of a project did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaseReport {
    /// Cases whose rows were as expected.
    pub passed: usize,
    /// The others.
    pub failed: Vec<CaseFailure>,
    /// Stages without a case.
    pub stages_without: Vec<TableName>,
}

/// A case that did not come out as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseFailure {
    /// The stage.
    pub stage: TableName,
    /// The case's name.
    pub case: String,
    /// The file.
    pub file: PathBuf,
    /// What differs, row by row.
    pub difference: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    as_of: DateTime<Utc>,
    #[serde(rename = "case")]
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    as_of: Option<DateTime<Utc>>,
    #[serde(default)]
    given: BTreeMap<String, String>,
    expect: Expect,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    rows: String,
}

impl CaseFile {
    /// Reads a file of cases. The inner error is what is wrong with its text.
    fn read(file: &Path) -> Result<Result<Self, Box<Diagnostic>>> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| EngineError::Unreadable { path: file.to_owned(), source })?;
        Ok(toml::from_str(&text).map_err(|error| {
            let (line, column) = error.span().map_or((0, 0), |span| line_and_column(&text, span.start));
            Box::new(Diagnostic::at("E0401", error.message(), file, &text, line, column, 1))
        }))
    }
}

/// The names of the cases beside a stage, in their order.
///
/// # Errors
/// A file that cannot be read, or is no file of cases.
pub fn case_names(stage: &Stage) -> Result<Vec<String>> {
    let file = stage.file.with_extension("cases.toml");
    if !file.exists() {
        return Ok(Vec::new());
    }
    let parsed = CaseFile::read(&file)?.map_err(|wrong| mistake(*wrong))?;
    Ok(parsed.cases.into_iter().map(|case| case.name).collect())
}

/// What is wrong with the cases beside a stage, as far as it can be seen without running them.
///
/// # Errors
/// A file that cannot be read. What is wrong in it is in the answer.
pub(crate) fn mistakes(
    stage: &Stage,
    made: &SchemaRef,
    schemas: &BTreeMap<TableName, SchemaRef>,
) -> Result<Vec<Diagnostic>> {
    let file = stage.file.with_extension("cases.toml");
    if !file.exists() {
        return Ok(Vec::new());
    }
    let parsed = match CaseFile::read(&file)? {
        Ok(parsed) => parsed,
        Err(mistake) => return Ok(vec![*mistake]),
    };
    let text =
        std::fs::read_to_string(&file).map_err(|source| EngineError::Unreadable { path: file.clone(), source })?;
    let mut found = Vec::new();
    for case in &parsed.cases {
        let place = text.lines().position(|line| {
            line.split_once('=').is_some_and(|(key, value)| key.trim() == "name" && value.contains(&case.name))
        });
        let mut wrong = |message: String| {
            let message = format!("case {}: {message}", case.name);
            found.push(match place {
                Some(index) => {
                    let width = text.lines().nth(index).map_or(1, |line| line.trim_end().chars().count());
                    Diagnostic::at("E0402", message, &file, &text, index + 1, 1, width)
                }
                None => Diagnostic::of_file("E0402", message, &file),
            });
        };
        for (name, rows) in &case.given {
            let input = name.parse::<TableName>().ok().filter(|name| stage.inputs.contains_key(name));
            match input.as_ref().and_then(|input| schemas.get(input)) {
                None => wrong(format!("{name} is not read by {}", stage.name)),
                Some(schema) => {
                    if let Err(message) = given_rows(rows, schema) {
                        wrong(format!("{name}: {message}"));
                    }
                }
            }
        }
        if let Err(message) = given_rows(&case.expect.rows, made) {
            wrong(format!("expected rows: {message}"));
        }
    }
    Ok(found)
}

/// Runs the cases of the selected stages: `<table>.cases.toml` beside `<table>.sql`.
///
/// # Errors
/// Mistakes in stages or case files. Rows that differ are in the report.
pub async fn run_cases(
    lake: &Lake,
    project: &Project,
    settings: &SessionSettings,
    as_of: DateTime<Utc>,
    selection: &Selection,
) -> Result<CaseReport> {
    let selected = project.select(selection)?;
    let checked = project.check(lake, settings, as_of).await?;
    let schemas: BTreeMap<TableName, SchemaRef> = project
        .declared()
        .iter()
        .map(|(name, schema)| (name.clone(), Arc::clone(schema)))
        .chain(checked.iter().map(|stage| (stage.stage.name.clone(), Arc::clone(&stage.schema))))
        .collect();
    let mut report = CaseReport::default();
    for stage in checked.iter().filter(|checked| selected.contains(&checked.stage.name)) {
        let file = stage.stage.file.with_extension("cases.toml");
        if !file.exists() {
            report.stages_without.push(stage.stage.name.clone());
            continue;
        }
        let parsed = CaseFile::read(&file)?.map_err(|wrong| mistake(*wrong))?;
        for case in &parsed.cases {
            let difference = run_case(lake, settings, stage, &schemas, case, parsed.as_of, &file).await?;
            match difference {
                None => report.passed += 1,
                Some(difference) => report.failed.push(CaseFailure {
                    stage: stage.stage.name.clone(),
                    case: case.name.clone(),
                    file: file.clone(),
                    difference,
                }),
            }
        }
    }
    Ok(report)
}

fn mistake(diagnostic: Diagnostic) -> EngineError {
    EngineError::Mistakes(Diagnostics(vec![diagnostic]))
}

async fn run_case(
    lake: &Lake,
    settings: &SessionSettings,
    stage: &CheckedStage,
    schemas: &BTreeMap<TableName, SchemaRef>,
    case: &Case,
    as_of: DateTime<Utc>,
    file: &Path,
) -> Result<Option<String>> {
    let wrong = |message: String| mistake(Diagnostic::of_file("E0402", format!("case {}: {message}", case.name), file));
    for name in case.given.keys() {
        let known = name.parse::<TableName>().is_ok_and(|name| stage.stage.inputs.contains_key(&name));
        if !known {
            return Err(wrong(format!("{name} is not read by {}", stage.stage.name)));
        }
    }
    let as_of = case.as_of.unwrap_or(as_of);
    let batches = made_of(lake, settings, stage, schemas, &case.given, as_of).await?.map_err(wrong)?;

    let differing = differing_rows(&case.expect.rows, &stage.schema, &batches);
    differing.map_err(|message| wrong(format!("{message} by {}", stage.stage.name)))
}

/// How rows differ from those that a case expects, in any order; `None` when they do not. Only the columns that it names are looked at.
///
/// # Errors
/// An expectation that cannot be read, or a column that is not there.
pub fn differing_rows(expected: &str, schema: &Schema, batches: &[RecordBatch]) -> Result<Option<String>, String> {
    let (names, expected) = parse_table(expected)?;
    let mut wanted = Vec::new();
    for name in &names {
        let field = schema.field_with_name(name).map_err(|_| format!("expected column {name} is not made"))?;
        wanted.push(field.clone());
    }
    let mut actual: Vec<Vec<String>> = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let mut cells = Vec::with_capacity(names.len());
            for field in &wanted {
                let column = batch.column_by_name(field.name()).ok_or("a column is missing")?;
                cells.push(shown(column, field, row)?);
            }
            actual.push(cells);
        }
    }
    let mut expected_rows = Vec::new();
    for cells in &expected {
        let mut row = Vec::with_capacity(names.len());
        for (cell, field) in cells.iter().zip(&wanted) {
            let column = typed(&[cell.as_deref()], field)?;
            row.push(shown(&column, field, 0)?);
        }
        expected_rows.push(row);
    }
    Ok(difference(&names, expected_rows, actual))
}

/// What a stage makes of given rows, by the names of its inputs; the others have none. The inner error is what is wrong with them.
pub(crate) async fn made_of(
    lake: &Lake,
    settings: &SessionSettings,
    stage: &CheckedStage,
    schemas: &BTreeMap<TableName, SchemaRef>,
    given: &BTreeMap<String, String>,
    as_of: DateTime<Utc>,
) -> Result<Result<Vec<RecordBatch>, String>> {
    let failed = || EngineError::execution(format!("a case of {}", stage.stage.name));
    let mut tables: Vec<(TableName, Arc<dyn TableProvider>)> = Vec::new();
    for input in stage.stage.inputs.keys() {
        let Some(schema) = schemas.get(input) else { continue };
        let rows = given.get(&input.to_string()).map_or("", String::as_str);
        let batch = match given_rows(rows, schema) {
            Ok(batch) => batch,
            Err(message) => return Ok(Err(format!("{input}: {message}"))),
        };
        let table = MemTable::try_new(Arc::clone(schema), vec![vec![batch]]).map_err(failed())?;
        tables.push((input.clone(), Arc::new(table)));
    }
    let runtime = settings.runtime(lake)?;
    let context = session_with(settings, &runtime, lake.settings().customer_buckets, tables)?;
    let (state, plan) = plan_as_of(&context, stage.stage.statement.clone(), as_of).await.map_err(failed())?;
    Ok(Ok(DataFrame::new(state, plan).collect().await.map_err(failed())?))
}

/// The rows that a case gives of a table, in its columns; a column that is not there is null.
///
/// # Errors
/// What cannot be read.
pub fn given_rows(text: &str, schema: &SchemaRef) -> Result<RecordBatch, String> {
    let (names, rows) = if text.trim().is_empty() { (Vec::new(), Vec::new()) } else { parse_table(text)? };
    for name in &names {
        if schema.field_with_name(name).is_err() {
            return Err(format!("there is no column {name}"));
        }
    }
    let columns = schema
        .fields()
        .iter()
        .map(|field| match names.iter().position(|name| name == field.name()) {
            Some(index) => {
                let cells: Vec<Option<&str>> = rows.iter().map(|row| row[index].as_deref()).collect();
                typed(&cells, field)
            }
            None => Ok(new_null_array(field.data_type(), rows.len())),
        })
        .collect::<Result<Vec<_>, String>>()?;
    let nullable: Vec<_> =
        schema.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true))).collect();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(nullable)), columns, &options)
        .and_then(|batch| batch.with_schema(Arc::clone(schema)))
        .map_err(|error| error.to_string())
}

pub(crate) type TextTable = (Vec<String>, Vec<Vec<Option<String>>>);

/// `a | b` over `1 | x`: an empty cell is null, `''` an empty text.
pub(crate) fn parse_table(text: &str) -> Result<TextTable, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let header = lines.next().ok_or("a table needs a line of column names")?;
    let split = |line: &str| -> Vec<String> { line.split('|').map(|cell| cell.trim().to_owned()).collect() };
    let names = split(header);
    let rows = lines
        .map(|line| {
            let mut cells = split(line);
            // A table of one column may be written without separators, a row of nulls with them only.
            if cells.len() == names.len() + 1 && cells.last().is_some_and(String::is_empty) {
                cells.pop();
            }
            if cells.len() != names.len() {
                return Err(format!("`{line}` has {} cells, the header {}", cells.len(), names.len()));
            }
            Ok(cells
                .into_iter()
                .map(|cell| match cell.as_str() {
                    "" => None,
                    "''" => Some(String::new()),
                    _ => Some(cell),
                })
                .collect())
        })
        .collect::<Result<Vec<_>, String>>()?;
    Ok((names, rows))
}

/// Cells in a column's type. Nested values are written as JSON.
fn typed(cells: &[Option<&str>], field: &Field) -> Result<ArrayRef, String> {
    let unreadable = |error: arrow::error::ArrowError| format!("column {}: {error}", field.name());
    if field.data_type().is_nested() {
        let schema = Arc::new(Schema::new(vec![field.clone().with_nullable(true)]));
        let mut decoder = arrow::json::ReaderBuilder::new(schema)
            .with_batch_size(cells.len().max(1))
            .build_decoder()
            .map_err(unreadable)?;
        for cell in cells {
            let line = format!("{{{:?}: {}}}\n", field.name(), cell.unwrap_or("null"));
            decoder.decode(line.as_bytes()).map_err(unreadable)?;
        }
        return match decoder.flush().map_err(unreadable)? {
            Some(batch) => Ok(Arc::clone(batch.column(0))),
            None => Ok(new_null_array(field.data_type(), cells.len())),
        };
    }
    let text: ArrayRef = Arc::new(StringArray::from(cells.to_vec()));
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(&text, field.data_type(), &options).map_err(unreadable)
}

/// A cell as text in which equal values look equal; floating point to nine digits behind the point.
fn shown(column: &ArrayRef, field: &Field, row: usize) -> Result<String, String> {
    if column.is_null(row) {
        return Ok(String::new());
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let column =
        cast_with_options(&column.slice(row, 1), field.data_type(), &options).map_err(|error| error.to_string())?;
    let value = ScalarValue::try_from_array(&column, 0).map_err(|error| describe(&error))?;
    Ok(match (&value, field.data_type()) {
        (ScalarValue::Float64(Some(number)), _) => format!("{:.9}", number + 0.0),
        (ScalarValue::Float32(Some(number)), _) => format!("{:.6}", number + 0.0),
        (ScalarValue::Utf8(Some(text)), _) if text.is_empty() => "''".to_owned(),
        (_, DataType::Timestamp(_, _) | DataType::Date32) => {
            let formatter = arrow::util::display::ArrayFormatter::try_new(column.as_ref(), &Default::default())
                .map_err(|error| error.to_string())?;
            formatter.value(0).to_string()
        }
        _ => value.to_string(),
    })
}

fn difference(names: &[String], mut expected: Vec<Vec<String>>, mut actual: Vec<Vec<String>>) -> Option<String> {
    expected.sort();
    actual.sort();
    if expected == actual {
        return None;
    }
    let mut lines = vec![format!("  {}", names.join(" | "))];
    for row in &expected {
        match actual.iter().position(|other| other == row) {
            Some(index) => {
                actual.remove(index);
            }
            None => lines.push(format!("- {}", row.join(" | "))),
        }
    }
    lines.extend(actual.iter().map(|row| format!("+ {}", row.join(" | "))));
    Some(lines.join("\n"))
}
