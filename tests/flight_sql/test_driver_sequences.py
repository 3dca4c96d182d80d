"""The calls that drivers make, in their order, as they come over the wire: what a driver expects of each answer, it expects of every server."""

import messages as m
import pyarrow
import pyarrow.flight as flight
from conftest import schema_of


def test_the_sequence_of_the_jdbc_driver(server, actions):
    """Apache Arrow's Flight SQL JDBC driver: everything is a prepared statement, and one without columns would be an update."""
    # DriverManager.getConnection("jdbc:arrow-flight-sql://host:port?catalog=…")
    if "SetSessionOptions" in actions:
        (catalog, *_) = server.ask(m.CommandGetCatalogs()).column("catalog_name").to_pylist()
        entry = m.OptionEntry(key="catalog", value=m.SessionOptionValue(string_value=catalog))
        (answer,) = server.action("SetSessionOptions", m.SetSessionOptionsRequest(session_options=[entry]).SerializeToString())
        assert not m.SetSessionOptionsResult.FromString(answer).errors

    # connection.getMetaData(): all infos at once, into a map; numbers are unboxed without a look, so each must be there.
    infos = server.sql_info()
    for name, kind in [
        *[(name, str) for name in (0, 1, 2, 504, 513, 514, 529, 530, 531)],
        *[(name, bool) for name in (3, 500, 501, 502, 506, 515, 516, 518, 519, 520, 521, 523, 524, 527, 532, 536, 537, 539, 556, 563, 565, 566, 572, 573, 574, 575, 576)],
        *[(name, int) for name in (503, 505, 507, 522, 525, 526, 528, 533, 534, 535, 538, 540, *range(541, 556), *range(557, 563), 564, 567)],
        *[(name, list) for name in (508, 509, 510, 511, 512, 517)],
    ]:
        assert isinstance(infos.get(name), kind), f"info {name} is {infos.get(name)!r}, and the driver wants {kind.__name__}"

    # getCatalogs(), getSchemas(), getTableTypes(), getTables(), getColumns(), getPrimaryKeys(), getTypeInfo()
    assert server.ask(m.CommandGetCatalogs()).num_rows > 0
    server.ask(m.CommandGetDbSchemas())
    types = server.ask(m.CommandGetTableTypes()).column("table_type").to_pylist()
    tables = server.ask(m.CommandGetTables(table_types=types, include_schema=False)).to_pylist()
    described = server.ask(m.CommandGetTables(include_schema=True))
    for row in described.to_pylist()[:20]:
        for field in schema_of(row["table_schema"]):
            # The driver reads precision, scale and nullability of each column from here.
            assert field.name
    for row in tables[:3]:
        named = {"catalog": row["catalog_name"], "db_schema": row["db_schema_name"], "table": row["table_name"]}
        for kind in (m.CommandGetPrimaryKeys, m.CommandGetExportedKeys, m.CommandGetImportedKeys):
            server.ask(kind(**named))
    assert server.ask(m.CommandGetXdbcTypeInfo()).num_rows > 0

    # connection.createStatement().executeQuery("select …")
    prepared = server.prepare("select 1 as one, cast(2.50 as decimal(10, 2)) as two, 'three' as three, null as four")
    assert len(schema_of(prepared.dataset_schema)) == 4
    command = m.CommandPreparedStatementQuery(prepared_statement_handle=prepared.prepared_statement_handle)
    info = server.info(command)
    assert info.schema.names == ["one", "two", "three", "four"]
    rows = server.read(info).to_pylist()
    assert [(row["one"], str(row["two"]), row["three"], row["four"]) for row in rows] == [(1, "2.50", "three", None)]
    close = m.ActionClosePreparedStatementRequest(prepared_statement_handle=prepared.prepared_statement_handle)
    server.action("ClosePreparedStatement", m.packed(close))

    # connection.close()
    if "CloseSession" in actions:
        (answer,) = server.action("CloseSession", m.CloseSessionRequest().SerializeToString())
        assert m.CloseSessionResult.FromString(answer).status in (1, 2, 3)


def test_the_sequence_of_a_jdbc_statement_with_parameters(server, pytestconfig):
    """prepareStatement("… ? …"), setString(1, …), executeQuery(), twice."""
    prepared = server.prepare(pytestconfig.getoption("--one-parameter"))
    handle = prepared.prepared_statement_handle
    (field,) = schema_of(prepared.parameter_schema)
    for value in ("a", "b"):
        handle = server.bind(handle, pyarrow.record_batch([pyarrow.array([value]).cast(field.type)], names=[field.name]))
        command = m.CommandPreparedStatementQuery(prepared_statement_handle=handle)
        (row,) = server.ask(command).to_pylist()
        assert list(row.values()) == [value]
    server.action("ClosePreparedStatement", m.packed(m.ActionClosePreparedStatementRequest(prepared_statement_handle=handle)))


def test_the_sequence_of_adbc(server):
    """ADBC's Flight SQL driver: it asks for one info without a look at the answer's type, and reads endpoints in any order."""
    rows = server.ask(m.CommandGetSqlInfo(info=[8]))
    for chunk in rows.column("value").chunks:
        # It takes the third child of the union for an int32.
        assert chunk.type.field(3).type == pyarrow.int32()
        assert set(chunk.type_codes.to_pylist()) <= {3}
    for depth in (m.CommandGetCatalogs(), m.CommandGetDbSchemas(), m.CommandGetTables(include_schema=True)):
        server.ask(depth)
    info = server.info(m.CommandStatementQuery(query="select 1 as one"))
    for endpoint in info.endpoints:
        # Without a location it is read where it was told of.
        assert not endpoint.locations or all(location.uri for location in endpoint.locations)
    descriptor = flight.FlightDescriptor.for_command(m.packed(m.CommandStatementQuery(query="select 1 as one")))
    assert server.client.get_schema(descriptor, server.options).schema.names == ["one"]
