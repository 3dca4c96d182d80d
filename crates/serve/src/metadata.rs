//! What Flight SQL drivers ask before they ask for data. The layouts are those of Flight SQL's own specification,
//! `FlightSql.proto`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow_flight::sql::metadata::{XdbcTypeInfo, XdbcTypeInfoDataBuilder};
use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo, Nullable,
    Searchable, XdbcDataType, XdbcDatetimeSubcode,
};
use holdfast_engine::{Published, PublishedTable};
use holdfast_types::COMMENT_KEY;

use crate::answer::CATALOG;
use crate::wire::wire_schema;
use crate::{Result, ServeError};

const TABLE_TYPE: &str = "TABLE";

/// Which keys of a table are asked for. Tables of the lake declare none, so both answers are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeysOf {
    Primary,
    Foreign,
}

pub(crate) fn catalogs(command: CommandGetCatalogs) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    builder.append(CATALOG);
    builder.build().map_err(malformed)
}

pub(crate) fn schemas(command: CommandGetDbSchemas, run: &Published) -> Result<RecordBatch> {
    let names: BTreeSet<&str> = run.tables().iter().map(|table| table.name.schema()).collect();
    let mut builder = command.into_builder();
    for name in names {
        builder.append(CATALOG, name);
    }
    builder.build().map_err(malformed)
}

pub(crate) fn tables(command: CommandGetTables, run: &Published) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    for table in run.tables() {
        let schema = described_schema(table);
        builder.append(CATALOG, table.name.schema(), table.name.table(), TABLE_TYPE, &schema).map_err(malformed)?;
    }
    builder.build().map_err(malformed)
}

pub(crate) fn table_types(command: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    builder.append(TABLE_TYPE);
    builder.build().map_err(malformed)
}

pub(crate) fn type_info(command: CommandGetXdbcTypeInfo) -> Result<RecordBatch> {
    let mut types = XdbcTypeInfoDataBuilder::new();
    // Flight SQL wants them ordered by data type, then by name.
    let mut known = sql_types();
    known.sort_by(|a, b| (a.data_type as i32, &a.type_name).cmp(&(b.data_type as i32, &b.type_name)));
    for sql_type in known {
        types.append(sql_type);
    }
    let types = types.build().map_err(malformed)?;
    command.into_builder(&types).build().map_err(malformed)
}

pub(crate) fn keys(keys: KeysOf) -> RecordBatch {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let fields = match keys {
        KeysOf::Primary => vec![
            text("catalog_name", true),
            text("db_schema_name", true),
            text("table_name", false),
            text("column_name", false),
            text("key_name", true),
            Field::new("key_sequence", DataType::Int32, false),
        ],
        KeysOf::Foreign => vec![
            text("pk_catalog_name", true),
            text("pk_db_schema_name", true),
            text("pk_table_name", false),
            text("pk_column_name", false),
            text("fk_catalog_name", true),
            text("fk_db_schema_name", true),
            text("fk_table_name", false),
            text("fk_column_name", false),
            Field::new("key_sequence", DataType::Int32, false),
            text("fk_key_name", true),
            text("pk_key_name", true),
            Field::new("update_rule", DataType::UInt8, false),
            Field::new("delete_rule", DataType::UInt8, false),
        ],
    };
    RecordBatch::new_empty(Arc::new(Schema::new(fields)))
}

/// The table's schema, with what Flight SQL clients read from the metadata of a column: where it belongs, its type's
/// name in SQL and its comment.
fn described_schema(table: &PublishedTable) -> Schema {
    let schema = wire_schema(&table.schema);
    let fields: Fields = schema
        .fields()
        .iter()
        .map(|field| {
            let mut metadata: HashMap<String, String> = field.metadata().clone();
            let mut describe =
                |key: &str, value: &str| metadata.insert(format!("ARROW:FLIGHT:SQL:{key}"), value.to_owned());
            describe("CATALOG_NAME", CATALOG);
            describe("SCHEMA_NAME", table.name.schema());
            describe("TABLE_NAME", table.name.table());
            describe("IS_READ_ONLY", "1");
            describe("IS_AUTO_INCREMENT", "0");
            if let Some(name) = sql_type_name(field.data_type()) {
                describe("TYPE_NAME", name);
            }
            if let Some(comment) = field.metadata().get(COMMENT_KEY) {
                describe("REMARKS", comment);
            }
            field.as_ref().clone().with_metadata(metadata)
        })
        .collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}

fn sql_type_name(data_type: &DataType) -> Option<&'static str> {
    match data_type {
        DataType::Boolean => Some("BOOLEAN"),
        DataType::Int8 => Some("TINYINT"),
        DataType::Int16 => Some("SMALLINT"),
        DataType::Int32 => Some("INTEGER"),
        DataType::Int64 => Some("BIGINT"),
        DataType::Float32 => Some("REAL"),
        DataType::Float64 => Some("DOUBLE"),
        DataType::Decimal128(..) => Some("DECIMAL"),
        DataType::Utf8 | DataType::LargeUtf8 => Some("VARCHAR"),
        DataType::Binary | DataType::LargeBinary => Some("BYTEA"),
        DataType::Date32 => Some("DATE"),
        DataType::Timestamp(..) => Some("TIMESTAMP"),
        _ => None,
    }
}

/// The types that columns of the lake have, as SQL names them.
fn sql_types() -> Vec<XdbcTypeInfo> {
    let plain = |name: &str, data_type, size| XdbcTypeInfo {
        type_name: name.to_owned(),
        local_type_name: Some(name.to_owned()),
        data_type,
        sql_data_type: data_type,
        column_size: size,
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        ..XdbcTypeInfo::default()
    };
    let number = |name: &str, data_type, digits, radix| XdbcTypeInfo {
        unsigned_attribute: Some(false),
        auto_increment: Some(false),
        num_prec_radix: Some(radix),
        ..plain(name, data_type, Some(digits))
    };
    let text = |name: &str, data_type| XdbcTypeInfo {
        literal_prefix: Some("'".to_owned()),
        literal_suffix: Some("'".to_owned()),
        case_sensitive: true,
        ..plain(name, data_type, None)
    };
    vec![
        plain("BOOLEAN", XdbcDataType::XdbcBit, Some(1)),
        number("TINYINT", XdbcDataType::XdbcTinyint, 8, 2),
        number("SMALLINT", XdbcDataType::XdbcSmallint, 16, 2),
        number("INTEGER", XdbcDataType::XdbcInteger, 32, 2),
        number("BIGINT", XdbcDataType::XdbcBigint, 64, 2),
        number("REAL", XdbcDataType::XdbcReal, 24, 2),
        number("DOUBLE", XdbcDataType::XdbcDouble, 53, 2),
        XdbcTypeInfo {
            create_params: Some(vec!["precision".to_owned(), "scale".to_owned()]),
            minimum_scale: Some(0),
            maximum_scale: Some(38),
            ..number("DECIMAL", XdbcDataType::XdbcDecimal, 38, 10)
        },
        text("VARCHAR", XdbcDataType::XdbcVarchar),
        text("BYTEA", XdbcDataType::XdbcVarbinary),
        text("DATE", XdbcDataType::XdbcDate),
        XdbcTypeInfo {
            datetime_subcode: Some(XdbcDatetimeSubcode::XdbcSubcodeTimestampWithTimezone),
            ..text("TIMESTAMP", XdbcDataType::XdbcTimestamp)
        },
    ]
}

/// A builder fails on what the client sent, such as a pattern that is none.
pub(crate) fn malformed(error: impl std::fmt::Display) -> ServeError {
    ServeError::Request(format!("cannot answer the metadata request: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_listed_and_can_be_asked_for_alone() {
        assert_eq!(type_info(CommandGetXdbcTypeInfo { data_type: None }).unwrap().num_rows(), sql_types().len());
        let decimal = CommandGetXdbcTypeInfo { data_type: Some(XdbcDataType::XdbcDecimal as i32) };
        assert_eq!(type_info(decimal).unwrap().num_rows(), 1);
    }
}
