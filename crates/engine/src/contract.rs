//! Contracts of tables: what a row is, and what each column holds, beside the stage that makes it.
//!
//! `<table>.contract.toml` beside `<table>.sql` is the only place that says so: it fills the table's and the columns' comments, marks
//! personal data, and implies expectations. The stage's query has to give exactly its columns.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use arrow::datatypes::{DataType, Schema};
use holdfast_lake::grammar::{parse_type, type_name};
use holdfast_types::PII_KEY;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, line_and_column, most_similar};
use crate::directive::{Expectation, Severity};

/// The expectation that a row has all columns of its key.
const KEY_PRESENT: &str = "key_present";
/// The expectation that no key is there twice.
pub(crate) const KEY_UNIQUE: &str = "key_unique";

/// The unit of an amount whose currency stands in the row.
pub const UNIT_CURRENCY: &str = "currency";

const KEYS: [&str; 8] = ["version", "grain", "description", "key", "event_time", "identifiers", "columns", "migration"];
const COLUMN_KEYS: [&str; 9] =
    ["type", "unit", "meaning", "required", "pii", "values", "otherwise", "known_at", "before"];
/// What `known_at` says of a value that comes at a time which nobody records.
const KNOWN_LATER: &str = "later";
const MIGRATION_KEYS: [&str; 2] = ["from", "how"];

/// What a table promises to those who read it.
#[derive(Debug, Clone)]
pub struct Contract {
    /// The file, as messages name it.
    pub file: PathBuf,
    /// Grows with every change of what it says; wording is free.
    pub version: u32,
    /// What one row is, such as `an order`.
    pub grain: String,
    /// What else there is to know about the table.
    pub description: String,
    /// The columns that tell its rows apart.
    pub key: Vec<String>,
    /// The column that says when the thing happened.
    pub event_time: Option<String>,
    /// The types of identifiers that the sources of the table bring.
    pub identifiers: Vec<String>,
    /// The columns, in the table's order.
    pub columns: Vec<ContractColumn>,
    /// How tables made under an earlier version come to this one.
    pub migration: Option<Migration>,
    text: String,
    version_place: Place,
    columns_place: Place,
    identifiers_place: Place,
}

/// One column of a contract.
#[derive(Debug, Clone)]
pub struct ContractColumn {
    /// Its name.
    pub name: String,
    /// Its type: one that contracts can spell.
    pub data_type: DataType,
    /// What its numbers count: `CNY`, `pieces`, or `currency` for amounts in the currency of the row.
    pub unit: Option<String>,
    /// What it means.
    pub meaning: String,
    /// Whether every row has a value.
    pub is_required: bool,
    /// Whether it holds personal data.
    pub is_pii: bool,
    /// The values it may have; empty when any.
    pub values: Vec<String>,
    /// What happens to rows with another value.
    pub otherwise: Severity,
    /// From when on the value is known, where that is not the row's event time.
    pub known_at: Option<KnownAt>,
    place: Place,
    type_place: Place,
}

/// From when on a value is known that its row does not begin with: what was known at a moment in the past rests on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownAt {
    /// From the time in this column of the row on. Before, and where that is null, the value is `before`, or null.
    Column {
        /// A timestamp or date of the table; the column itself for a time that says when something came to be.
        column: String,
        /// What stands there before.
        before: Option<String>,
    },
    /// From some later time on that nobody records: a state as it ended.
    Later,
}

/// How tables made under an earlier version of a contract come to the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// The earliest version that it covers.
    pub from: u32,
}

/// Line, column and width, from 1.
type Place = (usize, usize, usize);

impl ContractColumn {
    /// Its comment in the table: what it means, and its unit.
    pub fn comment(&self) -> String {
        match self.unit.as_deref() {
            None => self.meaning.clone(),
            Some(UNIT_CURRENCY) => format!("{}, in the row's currency", self.meaning),
            Some(unit) => format!("{}, {unit}", self.meaning),
        }
    }
}

impl Contract {
    /// Reads a contract. All mistakes are reported that can be seen in the file alone.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let mut reader = Reader { file, text, mistakes: Vec::new() };
        let contract = reader.contract();
        match contract {
            Some(contract) if reader.mistakes.is_empty() => Ok(contract),
            _ => Err(reader.mistakes),
        }
    }

    /// The comment of the table.
    pub fn comment(&self) -> String {
        format!("One row is {}. {}", self.grain, self.description).trim_end().to_owned()
    }

    /// What the contract asks of every row. That keys are unique is asked of the table as a whole: [`KEY_UNIQUE`].
    pub(crate) fn expectations(&self) -> Vec<Expectation> {
        let place = (self.version_place.0, self.version_place.1);
        let expectation = |name: String, severity, condition| Expectation { name, severity, condition, place };
        let present = |name: &str| format!("{} is not null", quoted(name));
        // A row without its time is the record's fault and set aside; one without the rest of its key is the query's.
        let is_event_time = |name: &String| self.event_time.as_ref() == Some(name);
        let key: Vec<String> = self.key.iter().filter(|name| !is_event_time(name)).map(|name| present(name)).collect();
        let mut expectations = Vec::new();
        if !key.is_empty() {
            expectations.push(expectation(KEY_PRESENT.to_owned(), Severity::Fail, key.join(" and ")));
        }
        for column in &self.columns {
            if column.is_required && (!self.key.contains(&column.name) || is_event_time(&column.name)) {
                let name = format!("{}_present", column.name);
                expectations.push(expectation(name, Severity::Quarantine, present(&column.name)));
            }
            if !column.values.is_empty() {
                let values: Vec<String> = column
                    .values
                    .iter()
                    .map(|value| match column.data_type {
                        DataType::Utf8 => format!("'{}'", value.replace('\'', "''")),
                        _ => value.clone(),
                    })
                    .collect();
                let condition = format!("{} in ({})", quoted(&column.name), values.join(", "));
                expectations.push(expectation(format!("{}_known", column.name), column.otherwise, condition));
            }
        }
        expectations
    }

    /// The columns that hold personal data.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn pii(&self) -> Vec<String> {
        self.columns.iter().filter(|column| column.is_pii).map(|column| column.name.clone()).collect()
    }

    /// Where the columns that the stage makes, and those of the contract, differ. `made` are the stage's columns without those that
    /// the lake adds.
    pub(crate) fn differences(&self, made: &Schema) -> Vec<Diagnostic> {
        let mut mistakes = Vec::new();
        for column in &self.columns {
            let name = column.name.as_str();
            match made.field_with_name(name) {
                Err(_) => {
                    let unclaimed = made.fields().iter().map(|field| field.name().as_str());
                    let unclaimed = unclaimed.filter(|name| self.column(name).is_none());
                    let mistake = self.at("E0511", format!("the stage makes no column `{name}`"), column.place);
                    mistakes.push(match most_similar(name, unclaimed) {
                        Some(near) => mistake.with_help(format!("it makes `{near}`: one of the two is misspelt")),
                        None => mistake.with_help("add it to the query, or take it out and raise the version"),
                    });
                }
                Ok(field) if !field.data_type().equals_datatype(&column.data_type) => {
                    let (said, is) = (type_name(&column.data_type), type_name(field.data_type()));
                    let message = format!("`{name}` is {said} here and {is} in the stage");
                    let mistake = self.at("E0512", message, column.type_place);
                    mistakes.push(mistake.with_help("cast it in the query, or change the contract"));
                }
                Ok(field) if field.metadata().contains_key(PII_KEY) && !column.is_pii => {
                    let message = format!("`{name}` carries personal data of its source, which is not said here");
                    mistakes.push(self.at("E0514", message, column.place).with_help("add `pii = true`"));
                }
                Ok(_) => {}
            }
        }
        for field in made.fields().iter().filter(|field| self.column(field.name()).is_none()) {
            let message = format!("the stage makes a column `{}` that the contract does not have", field.name());
            let line = format!("{} = {{ type = {:?}, meaning = \"…\" }}", field.name(), type_name(field.data_type()));
            mistakes.push(self.at("E0511", message, self.columns_place).with_help(format!("add `{line}`")));
        }
        if mistakes.is_empty() {
            let out_of_order = self.columns.iter().zip(made.fields()).find(|(said, is)| said.name != *is.name());
            mistakes.extend(out_of_order.map(|(said, is)| {
                let message = format!("`{}` stands where the stage makes `{}`", said.name, is.name());
                self.at("E0513", message, said.place).with_help("bring the columns into one order")
            }));
        }
        mistakes
    }

    /// Where the identifiers that the sources bring, and those of the contract, differ.
    pub(crate) fn check_identifiers(&self, brought: &[String]) -> Option<Diagnostic> {
        let unsaid: Vec<&str> =
            brought.iter().filter(|name| !self.identifiers.contains(name)).map(String::as_str).collect();
        let unbrought: Vec<&str> =
            self.identifiers.iter().filter(|name| !brought.contains(name)).map(String::as_str).collect();
        if unsaid.is_empty() && unbrought.is_empty() {
            return None;
        }
        let mut parts = Vec::new();
        if !unsaid.is_empty() {
            parts.push(format!("the sources bring `{}`, which is not said here", unsaid.join("`, `")));
        }
        if !unbrought.is_empty() {
            parts.push(format!("no source of the table brings `{}`", unbrought.join("`, `")));
        }
        let names: Vec<String> = brought.iter().map(|name| format!("{name:?}")).collect();
        let help = format!("write `identifiers = [{}]`", names.join(", "));
        Some(self.at("E0515", parts.join("; "), self.identifiers_place).with_help(help))
    }

    /// A mistake where a column's type is written.
    pub(crate) fn at_type(&self, column: &ContractColumn, code: &'static str, message: String) -> Diagnostic {
        self.at(code, message, column.type_place)
    }

    /// A mistake where the version is written.
    pub(crate) fn at_version(&self, code: &'static str, message: String) -> Diagnostic {
        self.at(code, message, self.version_place)
    }

    /// One column.
    pub fn column(&self, name: &str) -> Option<&ContractColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    fn at(&self, code: &'static str, message: String, (line, column, width): Place) -> Diagnostic {
        Diagnostic::at(code, message, &self.file, &self.text, line, column, width)
    }
}

/// The name as SQL reads it.
pub(crate) fn quoted(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

type Key<'a> = Spanned<Cow<'a, str>>;
type Item<'a> = Spanned<DeValue<'a>>;

/// Reads a contract and collects what is wrong with it. A part that is wrong is `None`.
struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    mistakes: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn contract(&mut self) -> Option<Contract> {
        let table = match DeTable::parse(self.text) {
            Ok(table) => table,
            Err(error) => {
                self.mistake("E0501", error.message(), error.span().unwrap_or(0..0));
                return None;
            }
        };
        let table = table.get_ref();
        self.known_keys(table, &KEYS, "a contract");
        let version = self.required(table, "version").and_then(|value| self.number(value));
        let grain = self.required(table, "grain").and_then(|value| self.text_of(value));
        let description = match table.get("description") {
            Some(value) => self.text_of(value),
            None => Some(String::new()),
        };
        let columns_at = self.required(table, "columns");
        let columns = columns_at.and_then(|value| self.columns(value));
        let names: Vec<&str> = columns.iter().flatten().map(|column| column.name.as_str()).collect();
        let key = self.required(table, "key").and_then(|value| {
            let key = self.names(value, &names, "column");
            if key.as_ref().is_some_and(Vec::is_empty) {
                self.mistake("E0502", "a key has at least one column", value.span());
            }
            key
        });
        let event_time = match table.get("event_time") {
            Some(value) => Some(self.event_time(value, columns.as_deref().unwrap_or_default())?),
            None => None,
        };
        let identifiers = match table.get("identifiers") {
            Some(value) => self.texts(value)?,
            None => Vec::new(),
        };
        let migration = match table.get("migration") {
            Some(value) => Some(self.migration(value, version)?),
            None => None,
        };
        let mut columns = columns?;
        self.check_units(&columns);
        self.check_known_at(columns_at, &columns);
        let key = key?;
        for column in &mut columns {
            column.is_required |= key.contains(&column.name) || Some(&column.name) == event_time.as_ref();
        }
        Some(Contract {
            file: self.file.to_owned(),
            version: version?,
            grain: grain?,
            description: description?,
            key,
            event_time,
            identifiers,
            columns,
            migration,
            text: self.text.to_owned(),
            version_place: self.place(table.get("version").map_or(0..1, Spanned::span)),
            columns_place: self.header_of("columns", columns_at.map_or(0..1, Spanned::span)),
            identifiers_place: self.place(table.get("identifiers").map_or(0..1, Spanned::span)),
        })
    }

    fn columns(&mut self, value: &Item<'_>) -> Option<Vec<ContractColumn>> {
        let Some(declared) = value.get_ref().as_table() else {
            self.mistake("E0502", "write the columns as a section `[columns]`", value.span());
            return None;
        };
        // The table sorts its keys by name; their places in the text give back the order of the contract.
        let mut entries: Vec<(&Key<'_>, &Item<'_>)> = declared.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        if entries.is_empty() {
            self.mistake("E0502", "a contract has at least one column", value.span());
        }
        let columns: Vec<Option<ContractColumn>> =
            entries.into_iter().map(|(key, value)| self.column(key, value)).collect();
        columns.into_iter().collect()
    }

    fn column(&mut self, key: &Key<'_>, value: &Item<'_>) -> Option<ContractColumn> {
        let Some(options) = value.get_ref().as_table() else {
            let message = format!("write `{} = {{ type = \"…\", meaning = \"…\" }}`", key.get_ref());
            self.mistake("E0502", message, value.span());
            return None;
        };
        self.known_keys(options, &COLUMN_KEYS, "a column");
        let mut missing = |wanted: &str| {
            if options.get(wanted).is_none() {
                self.mistake("E0502", format!("`{}` has no `{wanted}`", key.get_ref()), key.span());
            }
        };
        missing("type");
        missing("meaning");
        let type_at = options.get("type")?;
        let spelled = self.text_of(type_at)?;
        let data_type = match parse_type(&spelled) {
            Ok(data_type) => data_type,
            Err(error) => {
                // One byte further: the opening quote.
                let start = type_at.span().start + 1 + error.offset;
                self.mistake("E0502", error.message, start..start + 1);
                return None;
            }
        };
        let meaning = self.text_of(options.get("meaning")?)?;
        let unit = self.optional(options, "unit", Self::text_of)?;
        let is_pii = self.optional(options, "pii", Self::boolean)?.unwrap_or(false);
        let is_required = self.optional(options, "required", Self::boolean)?.unwrap_or(false);
        let values = match options.get("values") {
            Some(value) => self.values(value, &data_type)?,
            None => Vec::new(),
        };
        let otherwise = match options.get("otherwise") {
            Some(value) if values.is_empty() => {
                self.mistake(
                    "E0502",
                    "`otherwise` is about rows with other `values`, which are not said",
                    value.span(),
                );
                return None;
            }
            Some(value) => self.severity(value)?,
            None => Severity::Quarantine,
        };
        let known_at = self.known_at(options)?;
        Some(ContractColumn {
            name: key.get_ref().to_string(),
            data_type,
            unit,
            meaning,
            is_required,
            is_pii,
            values,
            otherwise,
            known_at,
            place: self.place(key.span()),
            type_place: self.place(type_at.span()),
        })
    }

    /// The outer `None` when it is wrong, the inner when the value is known as soon as the row is.
    fn known_at(&mut self, options: &DeTable<'_>) -> Option<Option<KnownAt>> {
        let before = self.optional(options, "before", Self::text_of)?;
        match self.optional(options, "known_at", Self::text_of)? {
            Some(column) if column == KNOWN_LATER && before.is_none() => Some(Some(KnownAt::Later)),
            Some(column) if column != KNOWN_LATER => Some(Some(KnownAt::Column { column, before })),
            None if before.is_none() => Some(None),
            _ => {
                let span = options.get("before").map_or(0..1, Spanned::span);
                self.mistake("E0502", "`before` is what stands there before the time in `known_at`", span);
                None
            }
        }
    }

    /// What `known_at` names has to be a time of the table.
    fn check_known_at(&mut self, columns_at: Option<&Item<'_>>, columns: &[ContractColumn]) {
        let is_time =
            |column: &ContractColumn| matches!(column.data_type, DataType::Timestamp(_, _) | DataType::Date32);
        let times: Vec<&str> =
            columns.iter().filter(|column| is_time(column)).map(|column| column.name.as_str()).collect();
        let declared = columns_at.and_then(|columns| columns.get_ref().as_table());
        for column in columns {
            let Some(KnownAt::Column { column: time, .. }) = &column.known_at else { continue };
            let said =
                declared.and_then(|declared| declared.get(column.name.as_str())?.get_ref().as_table()?.get("known_at"));
            if let Some(said) = said.filter(|_| !times.contains(&time.as_str())) {
                let known: Vec<&str> = times.iter().copied().chain([KNOWN_LATER]).collect();
                self.unknown(said, "time", time, &known);
            }
        }
    }

    /// A number without a unit is a riddle, unless it counts or numbers things.
    fn check_units(&mut self, columns: &[ContractColumn]) {
        let has_currency = columns.iter().any(|column| column.name == "currency");
        for column in columns {
            let is_measure = matches!(column.data_type, DataType::Decimal128(_, _) | DataType::Float64);
            let message = match &column.unit {
                None if is_measure => {
                    format!("`{}` has no unit: write unit = \"CNY\", \"kg\", \"share\" or what it is", column.name)
                }
                Some(unit) if unit == UNIT_CURRENCY && !has_currency => {
                    format!("`{}` is in the row's currency, and no column is called `currency`", column.name)
                }
                _ => continue,
            };
            self.mistakes.push(self.diagnostic("E0503", message, column.place));
        }
    }

    fn event_time(&mut self, value: &Item<'_>, columns: &[ContractColumn]) -> Option<String> {
        let name = self.text_of(value)?;
        match columns.iter().find(|column| column.name == name) {
            Some(column) if matches!(column.data_type, DataType::Timestamp(_, _) | DataType::Date32) => Some(name),
            Some(_) => {
                self.mistake("E0502", format!("`{name}` is no timestamp or date"), value.span());
                None
            }
            None => {
                let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
                self.unknown(value, "column", &name, &names);
                None
            }
        }
    }

    fn migration(&mut self, value: &Item<'_>, version: Option<u32>) -> Option<Migration> {
        let Some(fields) = value.get_ref().as_table() else {
            self.mistake("E0502", "write it as a section `[migration]`", value.span());
            return None;
        };
        self.known_keys(fields, &MIGRATION_KEYS, "a migration");
        let from_at = self.required(fields, "from")?;
        let from = self.number(from_at)?;
        if version.is_some_and(|version| from >= version) {
            self.mistake("E0502", "a migration begins at an earlier version", from_at.span());
        }
        let how_at = self.required(fields, "how")?;
        let how = self.text_of(how_at)?;
        if how != "rebuild" {
            self.unknown(how_at, "way", &how, &["rebuild"]);
        }
        Some(Migration { from })
    }

    fn values(&mut self, value: &Item<'_>, data_type: &DataType) -> Option<Vec<String>> {
        let DeValue::Array(items) = value.get_ref() else {
            self.mistake("E0502", "a list is expected here", value.span());
            return None;
        };
        let mut values = Vec::with_capacity(items.len());
        for item in items.iter() {
            match (item.get_ref(), data_type) {
                (DeValue::String(text), DataType::Utf8) => values.push(text.to_string()),
                (DeValue::Integer(number), DataType::Int32 | DataType::Int64) => {
                    values.push(number.as_str().to_owned())
                }
                _ => {
                    let message = format!("no value of type {}", type_name(data_type));
                    self.mistake("E0502", message, item.span());
                    return None;
                }
            }
        }
        if values.is_empty() {
            self.mistake("E0502", "a column without values would refuse every row", value.span());
        }
        Some(values)
    }

    fn severity(&mut self, value: &Item<'_>) -> Option<Severity> {
        let severities = [Severity::Fail, Severity::Warn, Severity::Quarantine];
        let said = self.text_of(value)?;
        let severity = severities.into_iter().find(|severity| severity.as_str() == said);
        if severity.is_none() {
            self.unknown(value, "severity", &said, &severities.map(Severity::as_str));
        }
        severity
    }

    /// Names that all have to be among `known`.
    fn names(&mut self, value: &Item<'_>, known: &[&str], what: &str) -> Option<Vec<String>> {
        let DeValue::Array(items) = value.get_ref() else {
            self.mistake("E0502", "a list of texts is expected here", value.span());
            return None;
        };
        let mut names = Vec::with_capacity(items.len());
        for item in items.iter() {
            let name = self.text_of(item)?;
            // Of a contract whose columns are wrong, only that is worth telling.
            if !known.is_empty() && !known.contains(&name.as_str()) {
                self.unknown(item, what, &name, known);
            }
            names.push(name);
        }
        Some(names)
    }

    fn texts(&mut self, value: &Item<'_>) -> Option<Vec<String>> {
        self.names(value, &[], "text")
    }

    fn text_of(&mut self, value: &Item<'_>) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.wrong_type(value, "a text in quotes");
        }
        text
    }

    fn boolean(&mut self, value: &Item<'_>) -> Option<bool> {
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.wrong_type(value, "true or false");
        }
        boolean
    }

    /// A whole number from 1.
    fn number(&mut self, value: &Item<'_>) -> Option<u32> {
        let number = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().parse().ok().filter(|number| *number >= 1),
            _ => None,
        };
        if number.is_none() {
            self.wrong_type(value, "a whole number from 1");
        }
        number
    }

    /// The outer `None` when the value is wrong, the inner when there is none.
    fn optional<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        read: impl FnOnce(&mut Self, &Item<'_>) -> Option<T>,
    ) -> Option<Option<T>> {
        match table.get(key) {
            None => Some(None),
            Some(value) => read(self, value).map(Some),
        }
    }

    fn required<'t, 'i>(&mut self, table: &'t DeTable<'i>, key: &str) -> Option<&'t Item<'i>> {
        let value = table.get(key);
        if value.is_none() {
            self.mistake("E0502", format!("the key `{key}` is missing"), 0..1);
        }
        value
    }

    fn known_keys(&mut self, table: &DeTable<'_>, known: &[&str], what: &str) {
        for (key, _) in table.iter() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let help = match most_similar(name, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("{what} has {}", known.join(", ")),
            };
            let mistake = self.diagnostic("E0502", format!("unknown key `{name}`"), self.place(key.span()));
            self.mistakes.push(mistake.with_help(help));
        }
    }

    fn unknown(&mut self, value: &Item<'_>, what: &str, given: &str, known: &[&str]) {
        let help = match most_similar(given, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known: {}", known.join(", ")),
        };
        let mistake = self.diagnostic("E0502", format!("unknown {what} `{given}`"), self.place(value.span()));
        self.mistakes.push(mistake.with_help(help));
    }

    fn wrong_type(&mut self, value: &Item<'_>, wanted: &str) {
        let message = format!("{wanted} is expected here, not a {}", value.get_ref().type_str());
        self.mistake("E0502", message, value.span());
    }

    fn mistake(&mut self, code: &'static str, message: impl Into<String>, span: std::ops::Range<usize>) {
        let mistake = self.diagnostic(code, message, self.place(span));
        self.mistakes.push(mistake);
    }

    fn diagnostic(&self, code: &'static str, message: impl Into<String>, (line, column, width): Place) -> Diagnostic {
        Diagnostic::at(code, message, self.file, self.text, line, column, width)
    }

    /// The place of the first line of a span.
    fn place(&self, span: std::ops::Range<usize>) -> Place {
        let (line, column) = line_and_column(self.text, span.start);
        let spanned = self.text.get(span).unwrap_or_default();
        (line, column, spanned.lines().next().unwrap_or_default().chars().count().max(1))
    }

    /// The place of a section's header; of `span` where the section is written otherwise.
    fn header_of(&self, section: &str, span: std::ops::Range<usize>) -> Place {
        let header = format!("[{section}]");
        match self.text.lines().position(|line| line.trim_end() == header) {
            Some(index) => (index + 1, 1, header.len()),
            None => self.place(span),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Field;

    const ORDERS: &str = "version = 2\ngrain = \"an order\"\nkey = [\"order_id\"]\nevent_time = \"at\"\n\n[columns]\norder_id = { type = \"string\", meaning = \"The key\" }\nat = { type = \"timestamp\", meaning = \"When\" }\nstatus = { type = \"string\", values = [\"paid\", \"it's\"], meaning = \"State\" }\nstars = { type = \"int32\", values = [1, 2], otherwise = \"warn\", meaning = \"Stars\" }\namount = { type = \"decimal(12,2)\", unit = \"CNY\", required = true, meaning = \"Paid\" }\nname = { type = \"string\", pii = true, meaning = \"Who\" }\n";

    fn parse(text: &str) -> Result<Contract, Vec<Diagnostic>> {
        Contract::parse(Path::new("sql/core/orders.contract.toml"), text)
    }

    #[test]
    fn a_contract_implies_expectations() {
        let contract = parse(ORDERS).unwrap();
        let shown: Vec<String> = contract
            .expectations()
            .iter()
            .map(|rule| format!("{} {}: {}", rule.severity.as_str(), rule.name, rule.condition))
            .collect();
        assert_eq!(
            shown,
            [
                "fail key_present: order_id is not null",
                "quarantine at_present: at is not null",
                "quarantine status_known: status in ('paid', 'it''s')",
                "warn stars_known: stars in (1, 2)",
                "quarantine amount_present: amount is not null",
            ]
        );
        assert_eq!(contract.pii(), ["name"]);
        assert_eq!(contract.comment(), "One row is an order.");
        assert_eq!(contract.column("amount").unwrap().comment(), "Paid, CNY");
    }

    #[test]
    fn a_key_that_is_a_time_is_set_aside_and_the_rest_of_the_key_fails() {
        let contract = parse(&ORDERS.replace("[\"order_id\"]", "[\"order_id\", \"at\"]")).unwrap();
        let conditions: Vec<String> = contract.expectations().into_iter().take(2).map(|rule| rule.condition).collect();
        assert_eq!(conditions, ["order_id is not null", "at is not null"]);
    }

    #[test]
    fn every_mistake_has_a_place_and_a_remedy() {
        for (from, to, place, told) in [
            ("version = 2", "version = 0", (1, 11), "a whole number from 1"),
            ("version = 2", "vresion = 2", (1, 1), "did you mean `version`?"),
            ("grain = \"an order\"", "", (1, 1), "`grain` is missing"),
            ("[\"order_id\"]", "[\"oder_id\"]", (3, 8), "did you mean `order_id`?"),
            ("[\"order_id\"]", "[]", (3, 7), "at least one column"),
            ("event_time = \"at\"", "event_time = \"status\"", (4, 14), "no timestamp or date"),
            ("\"timestamp\"", "\"timestmp\"", (8, 16), "did you mean `timestamp`?"),
            ("unit = \"CNY\", ", "", (11, 1), "has no unit"),
            ("\"CNY\"", "\"currency\"", (11, 1), "no column is called `currency`"),
            ("pii = true", "pi = true", (12, 27), "did you mean `pii`?"),
            ("otherwise = \"warn\"", "otherwise = \"wran\"", (10, 56), "did you mean `warn`?"),
            ("[1, 2]", "[\"1\"]", (10, 37), "no value of type int32"),
            (", meaning = \"Who\"", "", (12, 1), "no `meaning`"),
            ("[columns]", "[migration]\nfrom = 2\nhow = \"rebuild\"\n[columns]", (7, 8), "an earlier version"),
            ("[columns]", "[migration]\nfrom = 1\nhow = \"rebulid\"\n[columns]", (8, 7), "did you mean `rebuild`?"),
        ] {
            assert!(ORDERS.contains(from), "{from}");
            let mistakes = parse(&ORDERS.replacen(from, to, 1)).unwrap_err();
            let mistake = mistakes.iter().find(|mistake| mistake.to_string().contains(told));
            let mistake = mistake.unwrap_or_else(|| panic!("{told}: {mistakes:?}"));
            assert_eq!((mistake.line, mistake.column), place, "{mistake}");
        }
    }

    #[test]
    fn columns_that_differ_are_told_where_the_contract_says_so() {
        let contract = parse(ORDERS).unwrap();
        let field = |name: &str, data_type| Field::new(name, data_type, true);
        let time = || parse_type("timestamp").unwrap();
        let told = |fields: Vec<Field>| -> Vec<String> {
            let shown = |mistake: &Diagnostic| format!("{} {}:{}", mistake.code, mistake.line, mistake.message);
            contract.differences(&Schema::new(fields)).iter().map(shown).collect()
        };
        let all = || {
            vec![
                field("order_id", DataType::Utf8),
                field("at", time()),
                field("status", DataType::Utf8),
                field("stars", DataType::Int32),
                field("amount", DataType::Decimal128(12, 2)),
                field("name", DataType::Utf8),
            ]
        };
        assert!(told(all()).is_empty());

        let mut fields = all();
        fields[4] = field("amont", DataType::Decimal128(18, 2));
        fields[3] = field("stars", DataType::Int64);
        fields[2] = field("status", DataType::Utf8).with_metadata([(PII_KEY.to_owned(), "true".to_owned())].into());
        assert_eq!(
            told(fields),
            [
                "E0514 9:`status` carries personal data of its source, which is not said here",
                "E0512 10:`stars` is int32 here and int64 in the stage",
                "E0511 11:the stage makes no column `amount`",
                "E0511 6:the stage makes a column `amont` that the contract does not have",
            ]
        );
        let mut fields = all();
        fields.swap(4, 5);
        assert_eq!(told(fields), ["E0513 11:`amount` stands where the stage makes `name`"]);
    }

    #[test]
    fn identifiers_have_to_be_those_that_the_sources_bring() {
        let contract = parse(&ORDERS.replace("[columns]", "identifiers = [\"phone\"]\n[columns]")).unwrap();
        assert!(contract.check_identifiers(&["phone".to_owned()]).is_none());
        let mistake = contract.check_identifiers(&["phone".to_owned(), "email".to_owned()]).unwrap();
        assert_eq!((mistake.code, mistake.line), ("E0515", 6));
        assert!(mistake.message.contains("the sources bring `email`"), "{mistake}");
    }
}
