"""What drivers ask before they ask for data: the layouts of FlightSql.proto, to the type and nullability of each column."""

import messages as m
import pyarrow
import pytest
from conftest import schema_of

TEXT, INT, BYTE = pyarrow.utf8(), pyarrow.int32(), pyarrow.uint8()


def fields(*columns):
    return pyarrow.schema([pyarrow.field(name, kind, nullable=nullable) for name, kind, nullable in columns])


CATALOGS = fields(("catalog_name", TEXT, False))
SCHEMAS = fields(("catalog_name", TEXT, True), ("db_schema_name", TEXT, False))
TABLES = fields(
    ("catalog_name", TEXT, True), ("db_schema_name", TEXT, True), ("table_name", TEXT, False), ("table_type", TEXT, False)
)
TABLES_WITH_SCHEMA = TABLES.append(pyarrow.field("table_schema", pyarrow.binary(), nullable=False))
TABLE_TYPES = fields(("table_type", TEXT, False))
PRIMARY_KEYS = fields(
    ("catalog_name", TEXT, True),
    ("db_schema_name", TEXT, True),
    ("table_name", TEXT, False),
    ("column_name", TEXT, False),
    ("key_name", TEXT, True),
    ("key_sequence", INT, False),
)
FOREIGN_KEYS = fields(
    ("pk_catalog_name", TEXT, True),
    ("pk_db_schema_name", TEXT, True),
    ("pk_table_name", TEXT, False),
    ("pk_column_name", TEXT, False),
    ("fk_catalog_name", TEXT, True),
    ("fk_db_schema_name", TEXT, True),
    ("fk_table_name", TEXT, False),
    ("fk_column_name", TEXT, False),
    ("key_sequence", INT, False),
    ("fk_key_name", TEXT, True),
    ("pk_key_name", TEXT, True),
    ("update_rule", BYTE, False),
    ("delete_rule", BYTE, False),
)
TYPE_INFO = [
    ("type_name", TEXT),
    ("data_type", INT),
    ("column_size", INT),
    ("literal_prefix", TEXT),
    ("literal_suffix", TEXT),
    ("create_params", pyarrow.list_(pyarrow.field("item", TEXT, nullable=False))),
    ("nullable", INT),
    ("case_sensitive", pyarrow.bool_()),
    ("searchable", INT),
    ("unsigned_attribute", pyarrow.bool_()),
    ("fixed_prec_scale", pyarrow.bool_()),
    ("auto_increment", pyarrow.bool_()),
    ("local_type_name", TEXT),
    ("minimum_scale", INT),
    ("maximum_scale", INT),
    ("sql_data_type", INT),
    ("datetime_subcode", INT),
    ("num_prec_radix", INT),
    ("interval_precision", INT),
]


def keys(kind):
    return getattr(m, kind)(table="no_such_table") if "Cross" not in kind else m.CommandGetCrossReference(pk_table="a", fk_table="b")


LAYOUTS = [
    (m.CommandGetCatalogs(), CATALOGS),
    (m.CommandGetDbSchemas(), SCHEMAS),
    (m.CommandGetTables(), TABLES),
    (m.CommandGetTables(include_schema=True), TABLES_WITH_SCHEMA),
    (m.CommandGetTableTypes(), TABLE_TYPES),
    (keys("CommandGetPrimaryKeys"), PRIMARY_KEYS),
    (keys("CommandGetExportedKeys"), FOREIGN_KEYS),
    (keys("CommandGetImportedKeys"), FOREIGN_KEYS),
    (keys("CommandGetCrossReference"), FOREIGN_KEYS),
]


@pytest.mark.parametrize(("command", "layout"), LAYOUTS, ids=lambda value: value.DESCRIPTOR.name if hasattr(value, "DESCRIPTOR") else "")
def test_metadata_has_the_specified_layout(server, command, layout):
    table = server.ask(command)
    assert table.schema.names == layout.names
    assert table.schema.types == layout.types
    for expected, found in zip(layout, table.schema):
        # What may not be null may not be declared as if it could.
        assert expected.nullable or not found.nullable, f"{found.name} is declared nullable"


@pytest.mark.parametrize("command", [command for command, _ in LAYOUTS], ids=lambda value: value.DESCRIPTOR.name)
def test_get_schema_and_get_flight_info_promise_the_same(server, command):
    assert server.schema(command).equals(server.info(command).schema)


def test_no_table_has_keys_when_there_is_no_such_table(server):
    for kind in ["CommandGetPrimaryKeys", "CommandGetExportedKeys", "CommandGetImportedKeys", "CommandGetCrossReference"]:
        assert server.ask(keys(kind)).num_rows == 0


def test_lists_are_ordered_and_name_everything_once(server):
    catalogs = server.ask(m.CommandGetCatalogs()).column("catalog_name").to_pylist()
    assert catalogs == sorted(set(catalogs))
    schemas = [tuple(row.values()) for row in server.ask(m.CommandGetDbSchemas()).to_pylist()]
    assert schemas == sorted(set(schemas), key=lambda row: (row[0] or "", row[1]))
    tables = [tuple(row.values()) for row in server.ask(m.CommandGetTables()).to_pylist()]
    assert tables == sorted(set(tables), key=lambda row: (row[0] or "", row[1] or "", row[2], row[3]))
    types = set(server.ask(m.CommandGetTableTypes()).column("table_type").to_pylist())
    assert {row[3] for row in tables} <= types


def test_filters_are_patterns_of_like(server):
    tables = server.ask(m.CommandGetTables()).to_pylist()
    if not tables:
        pytest.skip("the server has no tables")
    first = tables[0]
    schema, name = first["db_schema_name"], first["table_name"]

    def found(**filters):
        return [row["table_name"] for row in server.ask(m.CommandGetTables(**filters)).to_pylist()]

    assert name in found(table_name_filter_pattern=name)
    assert name in found(table_name_filter_pattern=name[0] + "%")
    assert name in found(table_name_filter_pattern="_" * len(name))
    assert len(found(table_name_filter_pattern="%")) == len(tables)
    assert found(table_name_filter_pattern="no such table") == []
    assert found(catalog="no such catalog") == []
    assert found(table_types=["NO SUCH TYPE"]) == []
    assert name in found(table_types=[first["table_type"]])
    if schema is not None:
        assert name in found(db_schema_filter_pattern=schema[0] + "%")
        schemas = server.ask(m.CommandGetDbSchemas(db_schema_filter_pattern=schema[0] + "%"))
        assert schema in schemas.column("db_schema_name").to_pylist()


def test_the_schema_of_a_table_is_that_of_its_rows(server):
    (quote,) = server.sql_info(504).values()
    for row in server.ask(m.CommandGetTables(include_schema=True)).to_pylist()[:5]:
        schema = schema_of(row["table_schema"])
        parts = [row["db_schema_name"], row["table_name"]]
        name = ".".join(f"{quote}{part}{quote}" for part in parts if part)
        rows = server.info(m.CommandStatementQuery(query=f"select * from {name}")).schema
        assert schema.names == rows.names and schema.types == rows.types, name


def test_sql_info_is_a_union_of_the_specified_types(server):
    table = server.ask(m.CommandGetSqlInfo())
    name, value = table.schema
    assert (name.name, name.type, name.nullable) == ("info_name", pyarrow.uint32(), False)
    assert value.name == "value" and value.type.mode == "dense"
    kinds = [(value.type.type_codes[place], value.type.field(place).type) for place in range(value.type.num_fields)]
    assert kinds == [
        (0, TEXT),
        (1, pyarrow.bool_()),
        (2, pyarrow.int64()),
        (3, INT),
        (4, pyarrow.list_(TEXT)),
        (5, pyarrow.map_(INT, pyarrow.list_(INT))),
    ]
    codes = {}
    for chunk_names, chunk_values in zip(table.column(0).chunks, table.column(1).chunks):
        codes.update(zip(chunk_names.to_pylist(), chunk_values.type_codes.to_pylist()))
    texts, flags, numbers, lists, maps = {0, 1, 2, 504, 513, 529, 530, 531}, {3, 4, 5, 9, 10, 500, 501, 502}, {8, 503, 507}, {508, 509}, {517}
    for names, code in [(texts, 0), (flags, 1), (numbers, 3), (lists, 4), (maps, 5), (set(range(541, 556)), 2)]:
        for name in names & codes.keys():
            assert codes[name] == code, f"info {name} is of type {codes[name]} and specified as {code}"
    assert {0, 1, 2, 3} <= codes.keys(), "name, versions and whether it is read-only are always told"


def test_one_info_can_be_asked_for(server):
    infos = server.sql_info(0, 8)
    assert isinstance(infos[0], str) and infos[0]
    assert set(infos) <= {0, 8}
    if 8 in infos:
        assert infos[8] in (0, 1, 2)


def test_type_info_has_the_specified_layout_and_order(server):
    table = server.ask(m.CommandGetXdbcTypeInfo())
    assert [(field.name, field.type) for field in table.schema] == TYPE_INFO
    rows = table.to_pylist()
    assert rows == sorted(rows, key=lambda row: (row["data_type"], row["type_name"]))
    for row in rows:
        only = server.ask(m.CommandGetXdbcTypeInfo(data_type=row["data_type"])).to_pylist()
        assert only and {other["data_type"] for other in only} == {row["data_type"]}
