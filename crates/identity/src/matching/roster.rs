//! The records to compare, read from `raw.*`: each different one once.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::compute::concat;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::error::DataFusionError;
use holdfast_engine::{EngineError, SessionSettings};
use holdfast_lake::Lake;
use holdfast_linkage::{ColumnKind, LinkageError, LinkageSpec, Records};

use super::config::{Matching, MatchingSource};
use crate::Result;
use crate::error::IdentityError;
use crate::evidence::IdentitySource;
use crate::identifier::{IdentifierTokens, normalise};
use crate::tables::{query, type_of};

/// How far the rows of a table in `raw` are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) batch: i64,
    pub(super) replay: i64,
}

impl Extent {
    fn rows(self, has_replays: bool) -> String {
        let Self { batch, replay } = self;
        if has_replays {
            format!("((_replay is null and _batch <= {batch}) or _replay <= {replay})")
        } else {
            format!("_batch <= {batch}")
        }
    }
}

/// Records, each with the identifier that speaks for it. Values are as the sources have them; they never leave the memory.
#[derive(Default)]
pub(super) struct Roster {
    pub(super) speakers: Vec<(u8, String)>,
    pub(super) sources: Vec<u32>,
    pub(super) first_seen: Vec<Option<i64>>,
    columns: BTreeMap<String, Vec<Option<String>>>,
}

impl std::fmt::Debug for Roster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Roster of {} records", self.len())
    }
}

impl Roster {
    pub(super) fn new(matching: &Matching) -> Self {
        let columns = matching.columns().into_keys().map(|name| (name.to_owned(), Vec::new())).collect();
        Self { columns, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.speakers.len()
    }

    /// In an order that depends on the records alone, whatever order they came in.
    pub(super) fn sort(&mut self) {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_unstable_by(|&one, &two| {
            let key = |row: usize| (&self.speakers[row], self.sources[row]);
            key(one).cmp(&key(two)).then_with(|| {
                self.columns
                    .values()
                    .map(|values| values[one].cmp(&values[two]))
                    .find(|o| o.is_ne())
                    .unwrap_or(std::cmp::Ordering::Equal)
            })
        });
        self.speakers = order.iter().map(|&row| std::mem::take(&mut self.speakers[row])).collect();
        self.sources = order.iter().map(|&row| self.sources[row]).collect();
        self.first_seen = order.iter().map(|&row| self.first_seen[row]).collect();
        for values in self.columns.values_mut() {
            *values = order.iter().map(|&row| std::mem::take(&mut values[row])).collect();
        }
    }

    fn arrays(&self) -> Vec<(&str, StringArray)> {
        self.columns
            .iter()
            .map(|(name, values)| (name.as_str(), values.iter().map(Option::as_deref).collect()))
            .collect()
    }

    /// These records, to be compared with each other.
    pub(super) fn records(&self, spec: &LinkageSpec) -> Result<Records, LinkageError> {
        let arrays = self.arrays();
        let columns: Vec<_> = arrays.iter().map(|(name, values)| (*name, values)).collect();
        Records::one_set(spec, &columns)
    }

    /// These records, to be compared with others.
    pub(super) fn records_with(&self, others: &Self, spec: &LinkageSpec) -> Result<Records, LinkageError> {
        let (left, right) = (self.arrays(), others.arrays());
        let columns = |arrays: &'_ [(&'_ str, StringArray)]| -> Vec<(String, StringArray)> {
            arrays.iter().map(|(name, values)| ((*name).to_owned(), values.clone())).collect()
        };
        let (left, right) = (columns(&left), columns(&right));
        fn named(columns: &[(String, StringArray)]) -> Vec<(&str, &StringArray)> {
            columns.iter().map(|(name, values)| (name.as_str(), values)).collect()
        }
        Records::two_sets(spec, &named(&left), &named(&right))
    }

    /// Adds the different records of a source up to `until`, to `new` those of which no row came up to `known`, to `old` the others.
    pub(super) async fn read(
        (lake, settings): (&Lake, &SessionSettings),
        tokens: &IdentifierTokens,
        (number, source): (u32, &IdentitySource),
        (known, until): (Extent, Extent),
        (new, old): (&mut Self, &mut Self),
    ) -> Result<()> {
        let Some(matching) = tokens.rules().matching.as_ref() else { return Ok(()) };
        let Some(described) = matching.sources.get(&source.name) else { return Ok(()) };
        let Some(raw) = lake.table(&source.table).await? else { return Ok(()) };
        let has_replays = raw.schema().field_with_name("_replay").is_ok();
        let (until, known) = (until.rows(has_replays), known.rows(has_replays));
        let Some(sql) = records_sql(tokens, source, described, &until, &known)? else { return Ok(()) };
        check_attributes((lake, settings), matching, described, source).await?;
        let kinds = matching.columns();
        for batch in query(lake, settings, &source.table, &sql).await? {
            let rank = batch.column(1).as_primitive::<Int64Type>();
            let seen = batch.column(2).as_primitive::<TimestampMicrosecondType>();
            let is_new = batch.column(3).as_boolean();
            let token = text(&batch, 0)?;
            let values: Vec<(&String, StringArray)> = described
                .attributes
                .keys()
                .enumerate()
                .map(|(at, name)| Ok((name, text(&batch, 4 + at)?)))
                .collect::<Result<_>>()?;
            for row in 0..batch.num_rows() {
                let roster = if is_new.value(row) { &mut *new } else { &mut *old };
                roster.speakers.push((u8::try_from(rank.value(row)).unwrap_or(u8::MAX), token.value(row).to_owned()));
                roster.sources.push(number);
                roster.first_seen.push(seen.is_valid(row).then(|| seen.value(row)));
                for (name, column) in &mut roster.columns {
                    let given = values.iter().find(|(known, _)| *known == name);
                    let value = given.and_then(|(_, values)| values.is_valid(row).then(|| values.value(row)));
                    column.push(value.and_then(|value| as_compared(tokens, kinds.get(name.as_str()), value)));
                }
            }
        }
        Ok(())
    }
}

/// Phones and addresses of mail are compared as identifiers are; what the rules block says nothing of anybody.
fn as_compared(tokens: &IdentifierTokens, kind: Option<&ColumnKind>, value: &str) -> Option<String> {
    let name = match kind {
        Some(ColumnKind::Phone) => "phone",
        Some(ColumnKind::Email) => "email",
        _ => return Some(value.trim().to_owned()).filter(|value| !value.is_empty()),
    };
    let Some(normalised) = normalise(tokens.rules(), name, value) else {
        // A number that no plan knows may be the same one elsewhere.
        let digits: String = value.chars().filter(char::is_ascii_digit).collect();
        let is_filler = digits.len() < 6 || digits.bytes().all(|digit| digits.starts_with(char::from(digit)));
        return Some(digits).filter(|_| name == "phone" && !is_filler);
    };
    let is_blocked = tokens.rules().blocked.get(name).is_some_and(|blocked| blocked.holds(value.trim(), &normalised));
    (!is_blocked).then_some(normalised)
}

/// One row for each different record that has an identifier: token and rank of the one that speaks for it, first moment, whether all its rows are new, attributes.
fn records_sql(
    tokens: &IdentifierTokens,
    source: &IdentitySource,
    described: &MatchingSource,
    until: &str,
    known: &str,
) -> Result<Option<String>> {
    let mut ranked: Vec<(u8, usize)> = Vec::new();
    for (index, (name, _)) in source.identifiers.iter().enumerate() {
        ranked.extend(tokens.rules().rank(name).map(|rank| (rank, index)));
    }
    ranked.sort_unstable();
    if ranked.is_empty() {
        return Ok(None);
    }
    let quoted = |name: &str| name.replace('\'', "''");
    let join = |parts: Vec<String>, between: &str| parts.join(between);
    let speaking = join(ranked.iter().map(|(_, index)| format!("i{index}")).collect(), ", ");
    let ranks =
        join(ranked.iter().map(|(rank, index)| format!("when i{index} is not null then {rank}")).collect(), " ");
    let identifiers = join(
        source
            .identifiers
            .iter()
            .enumerate()
            .map(|(index, (name, value))| format!("identifier_token('{}', {value}) as i{index}", quoted(name)))
            .collect(),
        ", ",
    );
    let attributes: Vec<&str> = described.attributes.values().map(|attribute| attribute.value.as_str()).collect();
    let values = join(
        attributes.iter().enumerate().map(|(at, value)| format!("cast({value} as varchar) as a{at}")).collect(),
        ", ",
    );
    let names = join((0..attributes.len()).map(|at| format!("a{at}")).collect(), ", ");
    let at = match &source.event_time {
        Some(column) => format!("\"{}\"", column.replace('"', "\"\"")),
        None => "_ingested_at".to_owned(),
    };
    Ok(Some(format!(
        "select coalesce({speaking}) as token, cast(case {ranks} end as bigint) as rank, min(at) as first_seen_at, \
         bool_and(is_new) as is_new, {names} \
         from (select {identifiers}, {values}, {at} as at, not {known} as is_new from {} where {until}) as described \
         where coalesce({speaking}) is not null and coalesce({names}) is not null \
         group by coalesce({speaking}), case {ranks} end, {names}",
        source.table,
    )))
}

/// Attributes that do not fit the table are told with their place.
async fn check_attributes(
    (lake, settings): (&Lake, &SessionSettings),
    matching: &Matching,
    described: &MatchingSource,
    source: &IdentitySource,
) -> Result<()> {
    use arrow::datatypes::DataType;
    for (name, attribute) in &described.attributes {
        let told = |reason: String| matching.wrong_attribute(attribute, format!("{name} of {}: {reason}", source.name));
        let sql = format!("select {} as value from {} where false", attribute.value, source.table);
        let data_type = match type_of(lake, settings, &source.table, &sql).await {
            Ok(data_type) => data_type,
            Err(IdentityError::Engine(EngineError::Query { message })) => return Err(told(message)),
            Err(error) => return Err(error),
        };
        let is_text = matches!(
            data_type,
            DataType::Utf8
                | DataType::LargeUtf8
                | DataType::Utf8View
                | DataType::Date32
                | DataType::Date64
                | DataType::Timestamp(..)
                | DataType::Null
        ) || data_type.is_integer();
        if !is_text {
            return Err(told(format!(
                "a text, a date or a whole number is expected, and this is {data_type}: name a part of it, or cast it"
            )));
        }
    }
    Ok(())
}

fn text(batch: &RecordBatch, column: usize) -> Result<StringArray> {
    let cast = arrow::compute::cast(batch.column(column), &arrow::datatypes::DataType::Utf8).map_err(failed)?;
    let whole = concat(&[cast.as_ref()]).map_err(failed)?;
    Ok(whole.as_string::<i32>().clone())
}

fn failed(error: arrow::error::ArrowError) -> IdentityError {
    IdentityError::Engine(EngineError::Execution {
        what: "reading the records to compare".to_owned(),
        source: Box::new(DataFusionError::ArrowError(Box::new(error), None)),
    })
}
