//! The system functions that tools call. Each works row by row on plain values: they are called on a few rows of system tables.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, ListBuilder, StringArray, StringBuilder,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, TimeUnit};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use datafusion::prelude::SessionContext;

use super::{DATABASE, SCHEMA, Snapshot, identifier_parts, is_granted};
use crate::types::{self, ColumnType};

/// What a function is given and gives.
#[derive(Debug, Clone, PartialEq)]
enum Plain {
    Null,
    Bool(bool),
    Number(i64),
    Text(String),
    Texts(Vec<String>),
}

impl Plain {
    fn oid(&self) -> Option<u32> {
        match self {
            Self::Number(number) => u32::try_from(*number).ok(),
            Self::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

impl From<Option<String>> for Plain {
    fn from(text: Option<String>) -> Self {
        text.map_or(Self::Null, Self::Text)
    }
}

impl From<&str> for Plain {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The type of what a function gives.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Gives {
    Bool,
    Int4,
    Int8,
    Oid,
    Text,
    Texts,
    Moment,
    /// Of a name its number, of a number its name.
    NameOrOid,
}

type Body = Arc<dyn Fn(&Snapshot, &[Plain]) -> Result<Plain> + Send + Sync>;

/// Registers all of them.
pub(super) fn register(context: &SessionContext, snapshot: &Arc<Snapshot>) {
    let add = |names: &[&'static str], gives: Gives, body: Body| {
        for name in names {
            let signature =
                Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], volatility(name));
            let function =
                SystemFunction { name, gives, signature, body: Arc::clone(&body), snapshot: Arc::clone(snapshot) };
            context.register_udf(ScalarUDF::from(function));
        }
    };
    let constant = |value: Plain| -> Body { Arc::new(move |_, _| Ok(value.clone())) };

    add(&["version"], Gives::Text, constant(crate::session::version().as_str().into()));
    add(&["current_user"], Gives::Text, Arc::new(|snapshot, _| Ok(snapshot.user.as_str().into())));
    add(&["current_database"], Gives::Text, constant(DATABASE.into()));
    add(
        &["current_schema"],
        Gives::Text,
        Arc::new(|snapshot, _| Ok(snapshot.shared.search_path().first().cloned().into())),
    );
    add(&["current_schemas"], Gives::Texts, Arc::new(current_schemas));
    add(&["current_setting"], Gives::Text, Arc::new(current_setting));
    add(&["set_config"], Gives::Text, Arc::new(set_config));
    add(&["pg_backend_pid"], Gives::Int4, Arc::new(|snapshot, _| Ok(Plain::Number(i64::from(snapshot.shared.pid())))));
    add(
        &["pg_postmaster_start_time", "pg_conf_load_time"],
        Gives::Moment,
        Arc::new(|snapshot, _| Ok(Plain::Number(snapshot.shared.began_microseconds()))),
    );
    add(
        &["pg_is_in_recovery", "pg_is_wal_replay_paused", "pg_relation_is_publishable", "pg_is_other_temp_schema"],
        Gives::Bool,
        constant(Plain::Bool(false)),
    );
    add(&["pg_my_temp_schema"], Gives::Oid, constant(Plain::Number(0)));
    add(&["pg_client_encoding", "pg_encoding_to_char"], Gives::Text, constant("UTF8".into()));
    add(&["pg_char_to_encoding"], Gives::Int4, constant(Plain::Number(6)));
    add(&["pg_relation_is_updatable", "pg_column_is_updatable"], Gives::Int4, constant(Plain::Number(0)));
    add(&["txid_current"], Gives::Int8, constant(Plain::Number(1)));
    add(
        &[
            "pg_get_expr",
            "pg_get_constraintdef",
            "pg_get_indexdef",
            "pg_get_viewdef",
            "pg_get_functiondef",
            "pg_get_function_result",
            "pg_get_function_arguments",
            "pg_get_function_identity_arguments",
            "pg_get_triggerdef",
            "pg_get_ruledef",
            "pg_get_partkeydef",
            "pg_get_partition_constraintdef",
            "pg_get_statisticsobjdef_columns",
            "pg_get_statisticsobjdef",
            "pg_get_serial_sequence",
            "shobj_description",
            "pg_tablespace_location",
            "inet_server_addr",
            "inet_client_addr",
            "pg_get_function_sqlbody",
            "pg_advisory_unlock_all",
        ],
        Gives::Text,
        constant(Plain::Null),
    );
    add(&["format_type"], Gives::Text, Arc::new(format_type));
    add(
        &["pg_get_userbyid"],
        Gives::Text,
        Arc::new(|snapshot, given| {
            let role = oid(given, 0).and_then(|oid| snapshot.roles.iter().find(|role| role.oid == oid));
            Ok(role.map(|role| role.name.clone()).into())
        }),
    );
    add(
        &["pg_table_is_visible"],
        Gives::Bool,
        Arc::new(|snapshot, given| {
            let search = snapshot.shared.search_path();
            let table = oid(given, 0).and_then(|oid| snapshot.table(oid));
            Ok(table.map_or(Plain::Null, |table| Plain::Bool(search.contains(&table.schema))))
        }),
    );
    add(
        &[
            "pg_type_is_visible",
            "pg_function_is_visible",
            "pg_operator_is_visible",
            "pg_opclass_is_visible",
            "pg_collation_is_visible",
            "pg_statistics_obj_is_visible",
            "pg_ts_config_is_visible",
            "pg_ts_dict_is_visible",
            "pg_conversion_is_visible",
        ],
        Gives::Bool,
        constant(Plain::Bool(true)),
    );
    add(
        &[
            "has_table_privilege",
            "has_schema_privilege",
            "has_database_privilege",
            "has_column_privilege",
            "has_any_column_privilege",
            "has_function_privilege",
            "has_language_privilege",
            "has_sequence_privilege",
            "has_tablespace_privilege",
            "has_type_privilege",
            "has_foreign_data_wrapper_privilege",
            "has_server_privilege",
        ],
        Gives::Bool,
        Arc::new(|_, given| {
            Ok(given.last().and_then(Plain::text).map_or(Plain::Null, |name| Plain::Bool(is_granted(name))))
        }),
    );
    add(
        &["pg_has_role"],
        Gives::Bool,
        Arc::new(|snapshot, given| {
            let role = given.len().checked_sub(2).map(|at| &given[at]);
            Ok(Plain::Bool(role.is_some_and(|role| {
                role.text() == Some(&snapshot.user) || role.oid() == Some(snapshot.role(&snapshot.user))
            })))
        }),
    );
    add(
        &["obj_description"],
        Gives::Text,
        Arc::new(|snapshot, given| {
            let is_class = given.get(1).and_then(Plain::text).is_none_or(|name| name == "pg_class");
            let table = oid(given, 0).filter(|_| is_class).and_then(|oid| snapshot.table(oid));
            Ok(table.and_then(|table| table.comment.clone()).into())
        }),
    );
    add(
        &["col_description"],
        Gives::Text,
        Arc::new(|snapshot, given| {
            let table = oid(given, 0).and_then(|oid| snapshot.table(oid));
            let index = oid(given, 1).and_then(|number| usize::try_from(number).ok()?.checked_sub(1));
            let comment = table.zip(index).filter(|(table, index)| *index < table.columns.fields().len());
            Ok(comment.and_then(|(table, index)| table.column_comment(index)).into())
        }),
    );
    add(
        &["pg_relation_size", "pg_total_relation_size", "pg_table_size"],
        Gives::Int8,
        Arc::new(|snapshot, given| {
            let table = oid(given, 0).and_then(|oid| snapshot.table(oid));
            Ok(table.map_or(Plain::Null, |table| {
                Plain::Number(i64::try_from(table.bytes.unwrap_or(0)).unwrap_or(i64::MAX))
            }))
        }),
    );
    add(&["pg_indexes_size"], Gives::Int8, constant(Plain::Number(0)));
    add(
        &["pg_database_size"],
        Gives::Int8,
        Arc::new(|snapshot, _| {
            let bytes: u64 = snapshot.tables.iter().filter_map(|table| table.bytes).sum();
            Ok(Plain::Number(i64::try_from(bytes).unwrap_or(i64::MAX)))
        }),
    );
    add(
        &["pg_size_pretty"],
        Gives::Text,
        Arc::new(|_, given| {
            Ok(match given.first() {
                Some(Plain::Number(bytes)) => Plain::Text(pretty(*bytes)),
                _ => Plain::Null,
            })
        }),
    );
    add(&["pg_stat_get_numscans", "pg_stat_get_live_tuples"], Gives::Int8, constant(Plain::Number(0)));
    add(
        &["quote_ident"],
        Gives::Text,
        Arc::new(|_, given| Ok(given.first().and_then(Plain::text).map(quote_ident).into())),
    );
    add(
        &["parse_ident"],
        Gives::Texts,
        Arc::new(|_, given| {
            Ok(given.first().and_then(Plain::text).map_or(Plain::Null, |name| Plain::Texts(identifier_parts(name))))
        }),
    );
    add(
        &["quote_literal"],
        Gives::Text,
        Arc::new(|_, given| {
            Ok(given.first().and_then(Plain::text).map(|text| format!("'{}'", text.replace('\'', "''"))).into())
        }),
    );
    add(
        &["regclass"],
        Gives::NameOrOid,
        Arc::new(|snapshot, given| {
            named(given, |name| snapshot.table_named(name), |oid| table_name(snapshot, oid), "relation", true)
        }),
    );
    add(
        &["to_regclass"],
        Gives::Oid,
        Arc::new(|snapshot, given| named(given, |name| snapshot.table_named(name), |_| None, "relation", false)),
    );
    add(&["regtype"], Gives::NameOrOid, Arc::new(|_, given| named(given, type_oid, type_name, "type", true)));
    add(&["to_regtype"], Gives::Oid, Arc::new(|_, given| named(given, type_oid, |_| None, "type", false)));
    // Functions have names here and no numbers.
    add(
        &["regproc"],
        Gives::Text,
        Arc::new(|_, given| {
            Ok(match given.first() {
                Some(Plain::Text(name)) => name.strip_prefix("pg_catalog.").unwrap_or(name).into(),
                Some(Plain::Number(0)) => "-".into(),
                Some(Plain::Number(number)) => Plain::Text(number.to_string()),
                _ => Plain::Null,
            })
        }),
    );
    add(
        &["regnamespace"],
        Gives::NameOrOid,
        Arc::new(|snapshot, given| {
            let by_name = |name: &str| {
                let name = identifier_parts(name).pop()?;
                snapshot.schemas.iter().find(|schema| schema.name == name).map(|schema| schema.oid)
            };
            let by_oid =
                |oid| snapshot.schemas.iter().find(|schema| schema.oid == oid).map(|schema| quote_ident(&schema.name));
            named(given, by_name, by_oid, "schema", true)
        }),
    );
    add(
        &["regrole"],
        Gives::NameOrOid,
        Arc::new(|snapshot, given| {
            let by_name = |name: &str| snapshot.roles.iter().find(|role| role.name == name).map(|role| role.oid);
            let by_oid = |oid| snapshot.roles.iter().find(|role| role.oid == oid).map(|role| quote_ident(&role.name));
            named(given, by_name, by_oid, "role", true)
        }),
    );
}

/// What a session can change between two statements is not worked out in advance.
fn volatility(name: &str) -> Volatility {
    match name {
        "set_config" => Volatility::Volatile,
        _ => Volatility::Stable,
    }
}

fn oid(given: &[Plain], at: usize) -> Option<u32> {
    given.get(at)?.oid()
}

fn current_schemas(snapshot: &Snapshot, given: &[Plain]) -> Result<Plain> {
    let mut schemas = snapshot.shared.search_path();
    if given.first() == Some(&Plain::Bool(true)) {
        schemas.insert(0, SCHEMA.to_owned());
    }
    Ok(Plain::Texts(schemas))
}

fn current_setting(snapshot: &Snapshot, given: &[Plain]) -> Result<Plain> {
    let Some(name) = given.first().and_then(Plain::text) else { return Ok(Plain::Null) };
    match snapshot.shared.get(name) {
        Some(value) => Ok(Plain::Text(value)),
        None if given.get(1) == Some(&Plain::Bool(true)) => Ok(Plain::Null),
        None => Err(DataFusionError::Plan(format!("unrecognized configuration parameter \"{name}\""))),
    }
}

fn set_config(snapshot: &Snapshot, given: &[Plain]) -> Result<Plain> {
    let (Some(name), value) = (given.first().and_then(Plain::text), given.get(1).and_then(Plain::text)) else {
        return Ok(Plain::Null);
    };
    snapshot
        .shared
        .set_plain(name, value.unwrap_or_default())
        .map_err(|problem| DataFusionError::Plan(problem.message))?;
    Ok(snapshot.shared.get(name).into())
}

fn format_type(_: &Snapshot, given: &[Plain]) -> Result<Plain> {
    let Some(number) = oid(given, 0) else { return Ok(Plain::Null) };
    let modifier = match given.get(1) {
        Some(Plain::Number(modifier)) => i32::try_from(*modifier).unwrap_or(-1),
        _ => -1,
    };
    Ok(match ColumnType::numbered(number) {
        Some(found) => Plain::Text(found.sql_name(modifier)),
        None if number == 0 => "-".into(),
        None => "???".into(),
    })
}

/// A name in quotation marks where it needs them.
fn quote_ident(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

fn table_name(snapshot: &Snapshot, oid: u32) -> Option<String> {
    let table = snapshot.table(oid)?;
    let name = quote_ident(&table.name);
    let is_visible = snapshot.shared.search_path().contains(&table.schema);
    Some(if is_visible { name } else { format!("{}.{name}", quote_ident(&table.schema)) })
}

fn type_oid(name: &str) -> Option<u32> {
    let name = name.trim().to_lowercase();
    let name = name.strip_prefix("pg_catalog.").unwrap_or(&name).trim_matches('"');
    let (bare, is_array) = match name.strip_suffix("[]") {
        Some(element) => (element, true),
        None => (name, false),
    };
    let found = ColumnType::named(bare)
        .or_else(|| types::ALL.iter().find(|of| of.sql_name == bare).map(|of| ColumnType::plain(*of)))?;
    Some(if is_array { ColumnType { is_array: true, ..found }.oid() } else { found.oid() })
}

fn type_name(oid: u32) -> Option<String> {
    ColumnType::numbered(oid).map(|found| found.sql_name(-1))
}

/// A cast to the name of an object: of a name its number, of a number its name, or the number where nothing has it.
fn named(
    given: &[Plain],
    by_name: impl Fn(&str) -> Option<u32>,
    by_oid: impl Fn(u32) -> Option<String>,
    what: &str,
    must_be: bool,
) -> Result<Plain> {
    Ok(match given.first() {
        Some(Plain::Text(text)) => match text.parse::<u32>().ok().or_else(|| by_name(text)) {
            Some(oid) => Plain::Number(i64::from(oid)),
            None if !must_be => Plain::Null,
            None => return Err(DataFusionError::Plan(format!("{what} \"{text}\" does not exist"))),
        },
        Some(Plain::Number(0)) => "-".into(),
        Some(Plain::Number(number)) => {
            let name = u32::try_from(*number).ok().and_then(by_oid);
            Plain::Text(name.unwrap_or_else(|| number.to_string()))
        }
        _ => Plain::Null,
    })
}

fn pretty(bytes: i64) -> String {
    let mut value = bytes;
    for unit in ["bytes", "kB", "MB", "GB", "TB"] {
        if value.abs() < 10_240 {
            return format!("{value} {unit}");
        }
        value /= 1_024;
    }
    format!("{value} PB")
}

struct SystemFunction {
    name: &'static str,
    gives: Gives,
    signature: Signature,
    body: Body,
    snapshot: Arc<Snapshot>,
}

impl std::fmt::Debug for SystemFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SystemFunction").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PartialEq for SystemFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.snapshot, &other.snapshot)
    }
}

impl Eq for SystemFunction {}

impl Hash for SystemFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for SystemFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(match self.gives {
            Gives::Bool => DataType::Boolean,
            Gives::Int4 => DataType::Int32,
            Gives::Int8 => DataType::Int64,
            Gives::Oid => DataType::UInt32,
            Gives::Text => DataType::Utf8,
            Gives::Texts => DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
            Gives::Moment => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Gives::NameOrOid if arguments.first().is_some_and(is_number) => DataType::Utf8,
            Gives::NameOrOid => DataType::UInt32,
        })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let is_constant = arguments.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let count = if is_constant { 1 } else { rows };
        let columns: Vec<Column> =
            arguments.args.iter().map(|arg| Column::of(&arg.to_array(count)?)).collect::<Result<_>>()?;
        let mut given = Vec::with_capacity(columns.len());
        let mut results = Vec::with_capacity(count);
        for row in 0..count {
            given.clear();
            given.extend(columns.iter().map(|column| column.plain(row)));
            results.push((self.body)(&self.snapshot, &given)?);
        }
        let array = array_of(&results, arguments.return_type());
        match is_constant {
            true => Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&array, 0)?)),
            false => Ok(ColumnarValue::Array(array)),
        }
    }
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_integer()
}

/// A column of arguments.
enum Column {
    Bool(ArrayRef),
    Number(ArrayRef),
    Text(ArrayRef),
    Other,
}

impl Column {
    fn of(array: &ArrayRef) -> Result<Self> {
        Ok(match array.data_type() {
            DataType::Boolean => Self::Bool(Arc::clone(array)),
            number if number.is_numeric() => Self::Number(cast(array, &DataType::Int64)?),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text(cast(array, &DataType::Utf8)?),
            _ => Self::Other,
        })
    }

    fn plain(&self, row: usize) -> Plain {
        match self {
            Self::Bool(array) if array.is_valid(row) => Plain::Bool(array.as_boolean().value(row)),
            Self::Number(array) if array.is_valid(row) => Plain::Number(array.as_primitive::<Int64Type>().value(row)),
            Self::Text(array) if array.is_valid(row) => Plain::Text(array.as_string::<i32>().value(row).to_owned()),
            _ => Plain::Null,
        }
    }
}

fn array_of(values: &[Plain], data_type: &DataType) -> ArrayRef {
    let numbers = || values.iter().map(|value| if let Plain::Number(number) = value { Some(*number) } else { None });
    match data_type {
        DataType::Boolean => Arc::new(
            values
                .iter()
                .map(|value| if let Plain::Bool(value) = value { Some(*value) } else { None })
                .collect::<BooleanArray>(),
        ),
        DataType::Int32 => Arc::new(numbers().map(|number| number?.try_into().ok()).collect::<Int32Array>()),
        DataType::Int64 => Arc::new(numbers().collect::<Int64Array>()),
        DataType::UInt32 => Arc::new(numbers().map(|number| number?.try_into().ok()).collect::<UInt32Array>()),
        DataType::Timestamp(..) => Arc::new(numbers().collect::<TimestampMicrosecondArray>().with_timezone("UTC")),
        DataType::List(_) => {
            let mut lists = ListBuilder::new(StringBuilder::new());
            for value in values {
                match value {
                    Plain::Texts(texts) => lists.append_value(texts.iter().map(Some)),
                    _ => lists.append_null(),
                }
            }
            Arc::new(lists.finish())
        }
        _ => Arc::new(values.iter().map(Plain::text).collect::<StringArray>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_by_every_name_they_have() {
        for (name, oid) in
            [("int4", 23), ("integer", 23), ("pg_catalog.text", 25), ("text[]", 1009), ("_int8", 1016), ("json", 114)]
        {
            assert_eq!(type_oid(name), Some(oid), "{name}");
        }
        assert_eq!(type_oid("geometry"), None);
        assert_eq!(type_name(1184).as_deref(), Some("timestamp with time zone"));
    }

    #[test]
    fn names_are_quoted_where_they_need_it_and_sizes_are_rounded() {
        assert_eq!([quote_ident("a_1"), quote_ident("A\"b")], ["a_1", "\"A\"\"b\""]);
        assert_eq!([pretty(10), pretty(1 << 20), pretty(5 << 30)], ["10 bytes", "1024 kB", "5120 MB"]);
    }
}
