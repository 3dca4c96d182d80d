use arrow::datatypes::DataType;

use super::layout::FILLED;
use super::sheet::{Cell, Sheet};
use super::{DATABASE, OWNER, Relation, Snapshot, settings_of};
use crate::types::{self, ColumnType, modifier_of};

const NO: &str = "NO";

/// The rows of a system table.
pub(super) fn system(snapshot: &Snapshot, table: &str) -> Sheet {
    match table {
        "pg_am" => access_methods(),
        "pg_attribute" => attributes(snapshot),
        "pg_class" => classes(snapshot),
        "pg_database" => databases(snapshot),
        "pg_description" => descriptions(snapshot),
        "pg_get_keywords" => keywords(),
        "pg_namespace" => namespaces(snapshot),
        "pg_roles" => roles(snapshot),
        "pg_settings" => settings(snapshot),
        "pg_stat_activity" => activity(snapshot),
        "pg_stat_user_tables" => table_statistics(snapshot),
        "pg_tables" => plain_tables(snapshot),
        "pg_tablespace" => tablespaces(),
        "pg_type" => all_types(),
        "pg_user" => users(snapshot),
        other => {
            debug_assert!(!FILLED.contains(&other), "{other} is said to be filled");
            Sheet::new(&[])
        }
    }
}

/// The rows of a view of the information schema.
pub(super) fn information(snapshot: &Snapshot, view: &str) -> Sheet {
    match view {
        "columns" => information_columns(snapshot),
        "schemata" => schemata(snapshot),
        "tables" => information_tables(snapshot),
        "enabled_roles" | "applicable_roles" => {
            let mut sheet = Sheet::new(&["role_name", "grantee", "is_grantable"]);
            sheet.row(vec![snapshot.user.as_str().into(), snapshot.user.as_str().into(), NO.into()]);
            sheet
        }
        "table_privileges" | "role_table_grants" => privileges(snapshot),
        _ => Sheet::new(&[]),
    }
}

fn access_methods() -> Sheet {
    let mut sheet = Sheet::new(&["oid", "amname", "amhandler", "amtype"]);
    sheet.row(vec![2.into(), "heap".into(), "heap_tableam_handler".into(), "t".into()]);
    sheet.row(vec![403.into(), "btree".into(), "bthandler".into(), "i".into()]);
    sheet
}

fn attributes(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&[
        "attrelid",
        "attname",
        "atttypid",
        "attstattarget",
        "attlen",
        "attnum",
        "attndims",
        "attcacheoff",
        "atttypmod",
        "attbyval",
        "attalign",
        "attstorage",
        "attcompression",
        "attnotnull",
        "atthasdef",
        "atthasmissing",
        "attidentity",
        "attgenerated",
        "attisdropped",
        "attislocal",
        "attinhcount",
        "attcollation",
    ]);
    for table in &snapshot.tables {
        for (index, field) in table.columns.fields().iter().enumerate() {
            let column_type = ColumnType::of(field);
            let size = column_type.size();
            sheet.row(vec![
                table.oid.into(),
                field.name().as_str().into(),
                column_type.oid().into(),
                (-1).into(),
                i32::from(size).into(),
                number(index),
                i32::from(column_type.is_array).into(),
                (-1).into(),
                modifier_of(field.data_type()).into(),
                by_value(size).into(),
                alignment(size).into(),
                storage(size).into(),
                "".into(),
                (!field.is_nullable()).into(),
                false.into(),
                false.into(),
                "".into(),
                "".into(),
                false.into(),
                true.into(),
                0.into(),
                0.into(),
            ]);
        }
    }
    sheet
}

fn classes(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&[
        "oid",
        "relname",
        "relnamespace",
        "reltype",
        "reloftype",
        "relowner",
        "relam",
        "relfilenode",
        "reltablespace",
        "relpages",
        "reltuples",
        "relallvisible",
        "reltoastrelid",
        "relhasindex",
        "relisshared",
        "relpersistence",
        "relkind",
        "relnatts",
        "relchecks",
        "relhasrules",
        "relhastriggers",
        "relhassubclass",
        "relrowsecurity",
        "relforcerowsecurity",
        "relispopulated",
        "relreplident",
        "relispartition",
        "relrewrite",
        "relfrozenxid",
        "relminmxid",
    ]);
    for table in &snapshot.tables {
        let pages = table.bytes.map_or(0, |bytes| i64::try_from(bytes.div_ceil(8_192)).unwrap_or(i64::MAX));
        sheet.row(vec![
            table.oid.into(),
            table.name.as_str().into(),
            table.schema_oid.into(),
            0.into(),
            0.into(),
            snapshot.role(&table.owner).into(),
            2.into(),
            table.oid.into(),
            0.into(),
            pages.min(i64::from(i32::MAX)).into(),
            // Not known.
            Cell::Real(table.rows.map_or(-1.0, |rows| rows as f32)),
            0.into(),
            0.into(),
            false.into(),
            false.into(),
            "p".into(),
            "r".into(),
            number(table.columns.fields().len().saturating_sub(1)),
            0.into(),
            false.into(),
            false.into(),
            false.into(),
            false.into(),
            false.into(),
            true.into(),
            "d".into(),
            false.into(),
            0.into(),
            0.into(),
            0.into(),
        ]);
    }
    sheet
}

fn databases(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&[
        "oid",
        "datname",
        "datdba",
        "encoding",
        "datlocprovider",
        "datistemplate",
        "datallowconn",
        "datconnlimit",
        "datfrozenxid",
        "datminmxid",
        "dattablespace",
        "datcollate",
        "datctype",
        "datlastsysoid",
    ]);
    sheet.row(vec![
        16_000.into(),
        DATABASE.into(),
        snapshot.role(OWNER).into(),
        6.into(),
        "c".into(),
        false.into(),
        true.into(),
        (-1).into(),
        0.into(),
        0.into(),
        1_663.into(),
        "C.UTF-8".into(),
        "C.UTF-8".into(),
        16_383.into(),
    ]);
    sheet
}

fn descriptions(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&["objoid", "classoid", "objsubid", "description"]);
    const PG_CLASS: i32 = 1_259;
    for table in &snapshot.tables {
        if let Some(comment) = &table.comment {
            sheet.row(vec![table.oid.into(), PG_CLASS.into(), 0.into(), comment.as_str().into()]);
        }
        for index in 0..table.columns.fields().len() {
            if let Some(comment) = table.column_comment(index) {
                sheet.row(vec![table.oid.into(), PG_CLASS.into(), number(index), comment.into()]);
            }
        }
    }
    sheet
}

fn keywords() -> Sheet {
    let mut sheet = Sheet::new(&["word", "catcode", "barelabel"]);
    for word in datafusion::sql::sqlparser::keywords::ALL_KEYWORDS {
        sheet.row(vec![word.to_lowercase().into(), "U".into(), true.into()]);
    }
    sheet
}

fn namespaces(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&["oid", "nspname", "nspowner"]);
    for schema in &snapshot.schemas {
        sheet.row(vec![schema.oid.into(), schema.name.as_str().into(), snapshot.role(OWNER).into()]);
    }
    sheet
}

fn roles(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&[
        "oid",
        "rolname",
        "rolsuper",
        "rolinherit",
        "rolcreaterole",
        "rolcreatedb",
        "rolcanlogin",
        "rolreplication",
        "rolconnlimit",
        "rolpassword",
        "rolbypassrls",
    ]);
    for role in &snapshot.roles {
        sheet.row(vec![
            role.oid.into(),
            role.name.as_str().into(),
            false.into(),
            true.into(),
            false.into(),
            false.into(),
            role.is_user.into(),
            false.into(),
            (-1).into(),
            "********".into(),
            false.into(),
        ]);
    }
    sheet
}

fn users(snapshot: &Snapshot) -> Sheet {
    let mut sheet =
        Sheet::new(&["usename", "usesysid", "usecreatedb", "usesuper", "userepl", "usebypassrls", "passwd"]);
    for role in snapshot.roles.iter().filter(|role| role.is_user) {
        sheet.row(vec![
            role.name.as_str().into(),
            role.oid.into(),
            false.into(),
            false.into(),
            false.into(),
            false.into(),
            "********".into(),
        ]);
    }
    sheet
}

fn settings(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&[
        "name",
        "setting",
        "category",
        "short_desc",
        "context",
        "vartype",
        "source",
        "boot_val",
        "reset_val",
        "pending_restart",
    ]);
    for (name, value) in settings_of(&snapshot.shared) {
        let about = if name == "holdfast.run" { format!("What is read: {}", snapshot.run) } else { String::new() };
        sheet.row(vec![
            name.into(),
            value.as_str().into(),
            "Session".into(),
            about.into(),
            "user".into(),
            "string".into(),
            "session".into(),
            value.as_str().into(),
            value.as_str().into(),
            false.into(),
        ]);
    }
    sheet
}

/// Of sessions only the one that asks: others are nobody's business.
fn activity(snapshot: &Snapshot) -> Sheet {
    let mut sheet =
        Sheet::new(&["datid", "datname", "pid", "usesysid", "usename", "application_name", "state", "backend_type"]);
    sheet.row(vec![
        16_000.into(),
        DATABASE.into(),
        snapshot.shared.pid().into(),
        snapshot.role(&snapshot.user).into(),
        snapshot.user.as_str().into(),
        snapshot.shared.get("application_name").unwrap_or_default().into(),
        "active".into(),
        "client backend".into(),
    ]);
    sheet
}

fn table_statistics(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&["relid", "schemaname", "relname", "n_live_tup", "n_dead_tup"]);
    for table in &snapshot.tables {
        let rows = table.rows.and_then(|rows| i64::try_from(rows).ok());
        sheet.row(vec![
            table.oid.into(),
            table.schema.as_str().into(),
            table.name.as_str().into(),
            rows.map_or(Cell::Null, Cell::from),
            0.into(),
        ]);
    }
    sheet
}

fn plain_tables(snapshot: &Snapshot) -> Sheet {
    let mut sheet =
        Sheet::new(&["schemaname", "tablename", "tableowner", "hasindexes", "hasrules", "hastriggers", "rowsecurity"]);
    for table in &snapshot.tables {
        sheet.row(vec![
            table.schema.as_str().into(),
            table.name.as_str().into(),
            table.owner.as_str().into(),
            false.into(),
            false.into(),
            false.into(),
            false.into(),
        ]);
    }
    sheet
}

fn tablespaces() -> Sheet {
    let mut sheet = Sheet::new(&["oid", "spcname", "spcowner"]);
    sheet.row(vec![1_663.into(), "pg_default".into(), 10.into()]);
    sheet.row(vec![1_664.into(), "pg_global".into(), 10.into()]);
    sheet
}

fn all_types() -> Sheet {
    let mut sheet = Sheet::new(&[
        "oid",
        "typname",
        "typnamespace",
        "typowner",
        "typlen",
        "typbyval",
        "typtype",
        "typcategory",
        "typispreferred",
        "typisdefined",
        "typdelim",
        "typrelid",
        "typsubscript",
        "typelem",
        "typarray",
        "typinput",
        "typoutput",
        "typreceive",
        "typsend",
        "typalign",
        "typstorage",
        "typnotnull",
        "typbasetype",
        "typtypmod",
        "typndims",
        "typcollation",
    ]);
    let mut add = |oid: u32, name: &str, size: i16, category: char, element: u32, array: u32| {
        let kind = if category == 'P' || category == 'X' { "p" } else { "b" };
        let (input, output, receive, send) = match category {
            'A' if element != 0 && name.starts_with('_') => {
                ("array_in".into(), "array_out".into(), "array_recv".into(), "array_send".into())
            }
            _ => {
                // As history has it.
                let is_parted =
                    matches!(category, 'D' | 'T' | 'P') || matches!(name, "numeric" | "json" | "jsonb" | "uuid");
                let name = if is_parted { format!("{name}_") } else { name.to_owned() };
                (format!("{name}in"), format!("{name}out"), format!("{name}recv"), format!("{name}send"))
            }
        };
        sheet.row(vec![
            oid.into(),
            name.into(),
            11.into(),
            10.into(),
            i32::from(size).into(),
            by_value(size).into(),
            kind.into(),
            category.to_string().into(),
            matches!(name, "bool" | "text" | "float8" | "oid" | "timestamptz" | "interval").into(),
            true.into(),
            ",".into(),
            0.into(),
            (if category == 'A' { "array_subscript_handler" } else { "-" }).into(),
            element.into(),
            array.into(),
            input.into(),
            output.into(),
            receive.into(),
            send.into(),
            alignment(size).into(),
            storage(size).into(),
            false.into(),
            0.into(),
            (-1).into(),
            0.into(),
            0.into(),
        ]);
    };
    for of in types::ALL {
        let element = if of == types::INT2VECTOR { types::INT2.oid } else { 0 };
        add(of.oid, of.name, of.size, of.category, element, of.array.0);
        if of.array.0 != 0 {
            add(of.array.0, of.array.1, -1, 'A', of.oid, 0);
        }
    }
    sheet
}

fn schemata(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&["catalog_name", "schema_name", "schema_owner"]);
    for schema in &snapshot.schemas {
        sheet.row(vec![DATABASE.into(), schema.name.as_str().into(), OWNER.into()]);
    }
    sheet
}

fn information_tables(snapshot: &Snapshot) -> Sheet {
    let mut sheet =
        Sheet::new(&["table_catalog", "table_schema", "table_name", "table_type", "is_insertable_into", "is_typed"]);
    for table in &snapshot.tables {
        let (schema, name) = place(table);
        sheet.row(vec![DATABASE.into(), schema, name, "BASE TABLE".into(), NO.into(), NO.into()]);
    }
    sheet
}

fn privileges(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&[
        "grantor",
        "grantee",
        "table_catalog",
        "table_schema",
        "table_name",
        "privilege_type",
        "is_grantable",
        "with_hierarchy",
    ]);
    for table in &snapshot.tables {
        let (schema, name) = place(table);
        sheet.row(vec![
            OWNER.into(),
            snapshot.user.as_str().into(),
            DATABASE.into(),
            schema,
            name,
            "SELECT".into(),
            NO.into(),
            "YES".into(),
        ]);
    }
    sheet
}

fn information_columns(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new(&[
        "table_catalog",
        "table_schema",
        "table_name",
        "column_name",
        "ordinal_position",
        "is_nullable",
        "data_type",
        "numeric_precision",
        "numeric_precision_radix",
        "numeric_scale",
        "datetime_precision",
        "udt_catalog",
        "udt_schema",
        "udt_name",
        "dtd_identifier",
        "is_self_referencing",
        "is_identity",
        "identity_cycle",
        "is_generated",
        "is_updatable",
    ]);
    for table in &snapshot.tables {
        for (index, field) in table.columns.fields().iter().enumerate() {
            let (schema, name) = place(table);
            let column_type = ColumnType::of(field);
            let (precision, radix, scale) = precision(field.data_type());
            let is_time =
                matches!(field.data_type(), DataType::Timestamp(..) | DataType::Time64(_) | DataType::Time32(_));
            let optional = |value: Option<i32>| value.map_or(Cell::Null, Cell::from);
            sheet.row(vec![
                DATABASE.into(),
                schema,
                name,
                field.name().as_str().into(),
                number(index),
                (if field.is_nullable() { "YES" } else { NO }).into(),
                (if column_type.is_array { "ARRAY" } else { column_type.of.sql_name }).into(),
                optional(precision),
                optional(radix),
                optional(scale),
                optional(is_time.then_some(6)),
                DATABASE.into(),
                "pg_catalog".into(),
                (if column_type.is_array { column_type.of.array.1 } else { column_type.of.name }).into(),
                (index + 1).to_string().into(),
                NO.into(),
                NO.into(),
                NO.into(),
                "NEVER".into(),
                NO.into(),
            ]);
        }
    }
    sheet
}

fn precision(data_type: &DataType) -> (Option<i32>, Option<i32>, Option<i32>) {
    match data_type {
        DataType::Int8 | DataType::Int16 => (Some(16), Some(2), Some(0)),
        DataType::Int32 => (Some(32), Some(2), Some(0)),
        DataType::Int64 => (Some(64), Some(2), Some(0)),
        DataType::Float32 => (Some(24), Some(2), None),
        DataType::Float64 => (Some(53), Some(2), None),
        DataType::Decimal128(precision, scale) => (Some(i32::from(*precision)), Some(10), Some(i32::from(*scale))),
        _ => (None, None, None),
    }
}

fn place(table: &Relation) -> (Cell, Cell) {
    (table.schema.as_str().into(), table.name.as_str().into())
}

/// Columns are counted from one.
fn number(index: usize) -> Cell {
    Cell::Number(i64::try_from(index + 1).unwrap_or(i64::MAX))
}

fn by_value(size: i16) -> bool {
    matches!(size, 1 | 2 | 4 | 8)
}

fn alignment(size: i16) -> &'static str {
    match size {
        1 | 64 => "c",
        2 => "s",
        8 | 16 => "d",
        _ => "i",
    }
}

fn storage(size: i16) -> &'static str {
    if size < 0 { "x" } else { "p" }
}
