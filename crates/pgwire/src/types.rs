//! PostgreSQL's types, and which of them a column of the lake has.

use arrow::datatypes::{DataType, Field};

use crate::message::{Described, Format};

/// In the metadata of a catalog's column: the type's name, where the Arrow type does not say it.
pub(crate) const TYPE_KEY: &str = "postgres_type";

/// A type that PostgreSQL has, with the numbers that every installation gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PgType {
    pub(crate) oid: u32,
    pub(crate) name: &'static str,
    /// As SQL names it.
    pub(crate) sql_name: &'static str,
    /// Of one value in bytes; negative where values differ.
    pub(crate) size: i16,
    /// The kind, as `typcategory` has it.
    pub(crate) category: char,
    /// The array of it, and that type's name.
    pub(crate) array: (u32, &'static str),
}

const fn pg(
    oid: u32,
    name: &'static str,
    sql_name: &'static str,
    size: i16,
    category: char,
    array: (u32, &'static str),
) -> PgType {
    PgType { oid, name, sql_name, size, category, array }
}

pub(crate) const BOOL: PgType = pg(16, "bool", "boolean", 1, 'B', (1000, "_bool"));
pub(crate) const BYTEA: PgType = pg(17, "bytea", "bytea", -1, 'U', (1001, "_bytea"));
pub(crate) const CHAR: PgType = pg(18, "char", "\"char\"", 1, 'Z', (1002, "_char"));
pub(crate) const NAME: PgType = pg(19, "name", "name", 64, 'S', (1003, "_name"));
pub(crate) const INT8: PgType = pg(20, "int8", "bigint", 8, 'N', (1016, "_int8"));
pub(crate) const INT2: PgType = pg(21, "int2", "smallint", 2, 'N', (1005, "_int2"));
pub(crate) const INT2VECTOR: PgType = pg(22, "int2vector", "int2vector", -1, 'A', (1006, "_int2vector"));
pub(crate) const INT4: PgType = pg(23, "int4", "integer", 4, 'N', (1007, "_int4"));
pub(crate) const REGPROC: PgType = pg(24, "regproc", "regproc", 4, 'N', (1008, "_regproc"));
pub(crate) const TEXT: PgType = pg(25, "text", "text", -1, 'S', (1009, "_text"));
pub(crate) const OID: PgType = pg(26, "oid", "oid", 4, 'N', (1028, "_oid"));
pub(crate) const XID: PgType = pg(28, "xid", "xid", 4, 'U', (1011, "_xid"));
pub(crate) const JSON: PgType = pg(114, "json", "json", -1, 'U', (199, "_json"));
pub(crate) const FLOAT4: PgType = pg(700, "float4", "real", 4, 'N', (1021, "_float4"));
pub(crate) const FLOAT8: PgType = pg(701, "float8", "double precision", 8, 'N', (1022, "_float8"));
pub(crate) const UNKNOWN: PgType = pg(705, "unknown", "unknown", -2, 'X', (0, ""));
pub(crate) const BPCHAR: PgType = pg(1042, "bpchar", "character", -1, 'S', (1014, "_bpchar"));
pub(crate) const VARCHAR: PgType = pg(1043, "varchar", "character varying", -1, 'S', (1015, "_varchar"));
pub(crate) const DATE: PgType = pg(1082, "date", "date", 4, 'D', (1182, "_date"));
pub(crate) const TIME: PgType = pg(1083, "time", "time without time zone", 8, 'D', (1183, "_time"));
pub(crate) const TIMESTAMP: PgType = pg(1114, "timestamp", "timestamp without time zone", 8, 'D', (1115, "_timestamp"));
pub(crate) const TIMESTAMPTZ: PgType =
    pg(1184, "timestamptz", "timestamp with time zone", 8, 'D', (1185, "_timestamptz"));
pub(crate) const INTERVAL: PgType = pg(1186, "interval", "interval", 16, 'T', (1187, "_interval"));
pub(crate) const NUMERIC: PgType = pg(1700, "numeric", "numeric", -1, 'N', (1231, "_numeric"));
pub(crate) const REGCLASS: PgType = pg(2205, "regclass", "regclass", 4, 'N', (2210, "_regclass"));
pub(crate) const REGTYPE: PgType = pg(2206, "regtype", "regtype", 4, 'N', (2211, "_regtype"));
pub(crate) const UUID: PgType = pg(2950, "uuid", "uuid", 16, 'U', (2951, "_uuid"));
pub(crate) const JSONB: PgType = pg(3802, "jsonb", "jsonb", -1, 'U', (3807, "_jsonb"));

/// All that are known here; `pg_type` lists them.
pub(crate) const ALL: [PgType; 29] = [
    BOOL,
    BYTEA,
    CHAR,
    NAME,
    INT8,
    INT2,
    INT2VECTOR,
    INT4,
    REGPROC,
    TEXT,
    OID,
    XID,
    JSON,
    FLOAT4,
    FLOAT8,
    UNKNOWN,
    BPCHAR,
    VARCHAR,
    DATE,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    INTERVAL,
    NUMERIC,
    REGCLASS,
    REGTYPE,
    UUID,
    JSONB,
    VOID,
];
pub(crate) const VOID: PgType = pg(2278, "void", "void", 4, 'P', (0, ""));

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ColumnType {
    pub(crate) of: PgType,
    pub(crate) is_array: bool,
}

impl ColumnType {
    pub(crate) fn plain(of: PgType) -> Self {
        Self { of, is_array: false }
    }

    pub(crate) fn oid(self) -> u32 {
        if self.is_array { self.of.array.0 } else { self.of.oid }
    }

    pub(crate) fn size(self) -> i16 {
        if self.is_array { -1 } else { self.of.size }
    }

    /// The type of a column. What PostgreSQL has no type for, such as structs, is JSON.
    pub(crate) fn of(field: &Field) -> Self {
        if let Some(name) = field.metadata().get(TYPE_KEY)
            && let Some(found) = Self::named(name)
            && found.fits(field.data_type())
        {
            return found;
        }
        match field.data_type() {
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                match Self::of(item) {
                    Self { of, is_array: false } if of != JSON && of.array.0 != 0 => Self { of, is_array: true },
                    _ => Self::plain(JSON),
                }
            }
            DataType::Dictionary(_, value) => Self::of(&Field::new("", value.as_ref().clone(), true)),
            DataType::RunEndEncoded(_, value) => Self::of(value),
            plain => Self::plain(scalar(plain)),
        }
    }

    /// Whether values of the Arrow type can be of it: a cast or a function keeps the metadata of a column, and not its type.
    fn fits(self, data_type: &DataType) -> bool {
        use DataType::{LargeUtf8, Utf8, Utf8View};
        let data_type = match (self.is_array, data_type) {
            (true, DataType::List(item) | DataType::LargeList(item)) => item.data_type(),
            (false, plain) => plain,
            (true, _) => return false,
        };
        let is_text = matches!(data_type, Utf8 | LargeUtf8 | Utf8View);
        match self.of {
            NUMERIC => is_text || data_type.is_decimal(),
            REGPROC => is_text,
            of if of.category == 'S' || of == CHAR || of == INT2VECTOR => is_text,
            of => scalar(data_type) == of || (of == XID && *data_type == DataType::UInt32),
        }
    }

    /// By the name of a type or of an array type, as `pg_type` has it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        ALL.iter().find_map(|of| match () {
            () if of.name == name => Some(Self::plain(*of)),
            () if of.array.0 != 0 && of.array.1 == name => Some(Self { of: *of, is_array: true }),
            () => None,
        })
    }

    pub(crate) fn numbered(oid: u32) -> Option<Self> {
        ALL.iter().find_map(|of| match () {
            () if of.oid == oid => Some(Self::plain(*of)),
            () if oid != 0 && of.array.0 == oid => Some(Self { of: *of, is_array: true }),
            () => None,
        })
    }

    /// As SQL writes it, with the precision of decimals where it is known.
    pub(crate) fn sql_name(self, modifier: i32) -> String {
        let mut name = self.of.sql_name.to_owned();
        if self.of == NUMERIC && modifier >= 4 {
            let modifier = modifier - 4;
            name = format!("numeric({},{})", (modifier >> 16) & 0xffff, modifier & 0x7ff);
        }
        if self.is_array { name + "[]" } else { name }
    }

    pub(crate) fn described(self, name: &str, format: Format) -> Described {
        Described { name: name.to_owned(), type_oid: self.oid(), type_size: self.size(), format }
    }
}

/// `atttypmod`: of a decimal its precision and scale, of everything else nothing.
pub(crate) fn modifier_of(data_type: &DataType) -> i32 {
    match data_type {
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale)
            if *scale >= 0 =>
        {
            ((i32::from(*precision) << 16) | i32::from(*scale)) + 4
        }
        DataType::List(item) => modifier_of(item.data_type()),
        _ => -1,
    }
}

fn scalar(data_type: &DataType) -> PgType {
    match data_type {
        DataType::Boolean => BOOL,
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => INT2,
        DataType::UInt16 | DataType::Int32 => INT4,
        // No column of the lake is unsigned: only the catalog's are.
        DataType::UInt32 => OID,
        DataType::Int64 => INT8,
        DataType::UInt64 => NUMERIC,
        DataType::Float16 | DataType::Float32 => FLOAT4,
        DataType::Float64 => FLOAT8,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            NUMERIC
        }
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => TEXT,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => BYTEA,
        DataType::Date32 | DataType::Date64 => DATE,
        DataType::Time32(_) | DataType::Time64(_) => TIME,
        DataType::Timestamp(_, None) => TIMESTAMP,
        DataType::Timestamp(_, Some(_)) => TIMESTAMPTZ,
        DataType::Interval(_) | DataType::Duration(_) => INTERVAL,
        _ => JSON,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn numbers_and_names_are_each_of_one_type() {
        for of in ALL {
            assert_eq!(ColumnType::numbered(of.oid), Some(ColumnType::plain(of)));
            assert_eq!(ColumnType::named(of.name), Some(ColumnType::plain(of)));
            if of.array.0 != 0 {
                assert_eq!(ColumnType::named(of.array.1), ColumnType::numbered(of.array.0));
            }
        }
    }

    #[test]
    fn decimals_keep_their_precision_and_structs_are_json() {
        let amount = DataType::Decimal128(12, 2);
        assert_eq!(ColumnType::plain(NUMERIC).sql_name(modifier_of(&amount)), "numeric(12,2)");
        let list = |item| DataType::List(Arc::new(Field::new("item", item, true)));
        let of = |data_type| ColumnType::of(&Field::new("c", data_type, true));
        assert_eq!(of(list(DataType::Utf8)).oid(), 1009);
        assert_eq!(of(list(list(DataType::Utf8))).oid(), JSON.oid);
    }
}
