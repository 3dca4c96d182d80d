"""Statements, prepared statements and their parameters, transactions, cancelling, sessions, and what is no message at all."""

import time

import messages as m
import pyarrow
import pyarrow.flight as flight
import pytest
from conftest import schema_of

REFUSED = (pyarrow.ArrowInvalid, flight.FlightError, pyarrow.ArrowNotImplementedError, KeyError, pyarrow.ArrowException)


def values(table):
    return [list(row.values()) for row in table.to_pylist()]


def is_unimplemented(error):
    return isinstance(error, (NotImplementedError, pyarrow.ArrowNotImplementedError))


def test_a_statement_gives_its_rows_and_their_schema(server):
    table = server.query("select 1 as one, 'two' as two")
    assert table.schema.names == ["one", "two"] and values(table) == [[1, "two"]]
    command = m.CommandStatementQuery(query="select 1 as one, 'two' as two")
    assert server.schema(command).equals(table.schema)


def test_a_ticket_can_be_read_by_another_connection(server, pytestconfig):
    from conftest import Server

    info = server.info(m.CommandStatementQuery(query="select 42 as answer"))
    other = Server(pytestconfig)
    assert values(other.read(info)) == [[42]]
    other.client.close()


def test_no_rows_have_a_schema(server):
    table = server.query("select 1 as one where 1 = 0")
    assert table.num_rows == 0 and table.schema.names == ["one"]


@pytest.mark.parametrize("query", ["selec 1", "", "select * from no_such_table_anywhere"])
def test_a_mistake_is_told_before_rows_are_read(server, query):
    with pytest.raises(REFUSED) as caught:
        server.info(m.CommandStatementQuery(query=query))
    assert not is_unimplemented(caught.value)
    assert values(server.query("select 1")) == [[1]], "the server goes on"


def test_a_prepared_statement_runs_again_and_again(server):
    prepared = server.prepare("select 1 as one")
    # An empty one would be taken for an update.
    assert schema_of(prepared.dataset_schema).names == ["one"]
    parameters = schema_of(prepared.parameter_schema)
    assert parameters is None or len(parameters) == 0
    command = m.CommandPreparedStatementQuery(prepared_statement_handle=prepared.prepared_statement_handle)
    for _ in range(3):
        assert values(server.ask(command)) == [[1]]
    assert server.schema(command).names == ["one"]
    request = m.ActionClosePreparedStatementRequest(prepared_statement_handle=prepared.prepared_statement_handle)
    assert server.action("ClosePreparedStatement", m.packed(request)) == []


def test_parameters_have_a_schema_and_take_values(server, pytestconfig):
    prepared = server.prepare(pytestconfig.getoption("--one-parameter"))
    assert len(schema_of(prepared.parameter_schema)) == 1
    assert len(schema_of(prepared.dataset_schema)) == 1
    for value in ["a", "it's", "汉字", None]:
        batch = pyarrow.record_batch([pyarrow.array([value], pyarrow.utf8())], names=["0"])
        handle = server.bind(prepared.prepared_statement_handle, batch)
        assert values(server.ask(m.CommandPreparedStatementQuery(prepared_statement_handle=handle))) == [[value]]


def test_a_parameter_without_a_value_is_refused(server, pytestconfig):
    prepared = server.prepare(pytestconfig.getoption("--one-parameter"))
    with pytest.raises(REFUSED) as caught:
        server.ask(m.CommandPreparedStatementQuery(prepared_statement_handle=prepared.prepared_statement_handle))
    assert not is_unimplemented(caught.value)


def test_a_mistake_is_told_when_a_statement_is_prepared(server):
    with pytest.raises(REFUSED) as caught:
        server.prepare("selec 1")
    assert not is_unimplemented(caught.value)


@pytest.mark.parametrize("handle", [b"", b"\xff\xff", b"no such handle"])
def test_a_handle_that_is_none_is_refused(server, handle):
    with pytest.raises(REFUSED) as caught:
        server.info(m.CommandPreparedStatementQuery(prepared_statement_handle=handle))
    assert not is_unimplemented(caught.value)


def test_what_writes_is_refused_by_a_server_that_says_it_is_read_only(server):
    if server.sql_info(3)[3] is not True:
        pytest.skip("the server takes writes")
    for command in [m.CommandStatementQuery(query="drop table no_such_table_anywhere")]:
        with pytest.raises(REFUSED):
            server.ask(command)
    descriptor = flight.FlightDescriptor.for_command(m.packed(m.CommandStatementUpdate(query="delete from no_such_table_anywhere")))
    with pytest.raises(REFUSED):
        writer, reader = server.client.do_put(descriptor, pyarrow.schema([]), server.options)
        with writer:
            writer.done_writing()
            reader.read()


def test_transactions_are_as_the_server_says(server, actions):
    supported = server.sql_info(8).get(8, 0)
    body = m.packed(m.ActionBeginTransactionRequest())
    if not supported:
        with pytest.raises(REFUSED):
            server.action("BeginTransaction", body)
        return
    assert {"BeginTransaction", "EndTransaction"} <= actions
    for end in (1, 2):
        (answer,) = server.action("BeginTransaction", body)
        transaction = m.unpacked(m.ActionBeginTransactionResult, answer).transaction_id
        assert transaction
        assert values(server.query("select 1", transaction)) == [[1]]
        assert server.action("EndTransaction", m.packed(m.ActionEndTransactionRequest(transaction_id=transaction, action=end))) == []
    with pytest.raises(REFUSED):
        server.query("select 1", b"no such transaction")


def test_a_query_is_cancelled(server, actions):
    if not {"CancelFlightInfo", "CancelQuery"} & actions:
        pytest.skip("the server cancels nothing")
    info = server.info(m.CommandStatementQuery(query="select 1"))
    if "CancelFlightInfo" in actions:
        (answer,) = server.action("CancelFlightInfo", m.CancelFlightInfoRequest(info=info.serialize()).SerializeToString())
        assert m.CancelFlightInfoResult.FromString(answer).status in (1, 2, 3)
    if "CancelQuery" in actions:
        (answer,) = server.action("CancelQuery", m.packed(m.ActionCancelQueryRequest(info=info.serialize())))
        assert m.unpacked(m.ActionCancelQueryResult, answer).result in (1, 2, 3)


def test_a_running_query_ends_when_it_is_cancelled(server, actions, pytestconfig):
    query = pytestconfig.getoption("--long-query")
    if not query or "CancelFlightInfo" not in actions:
        pytest.skip("--long-query is not given, or the server cancels nothing")
    info = server.info(m.CommandStatementQuery(query=query))
    reader = server.client.do_get(info.endpoints[0].ticket, server.options)
    reader.read_chunk()
    (answer,) = server.action("CancelFlightInfo", m.CancelFlightInfoRequest(info=info.serialize()).SerializeToString())
    assert m.CancelFlightInfoResult.FromString(answer).status in (1, 2)
    began = time.monotonic()
    with pytest.raises(REFUSED + (StopIteration,)):
        while True:
            reader.read_chunk()
    assert time.monotonic() - began < 5


def options_of(server):
    (answer,) = server.action("GetSessionOptions", m.GetSessionOptionsRequest().SerializeToString())
    return {entry.key: entry.value for entry in m.GetSessionOptionsResult.FromString(answer).session_options}


def set_option(server, name, **value):
    entry = m.OptionEntry(key=name, value=m.SessionOptionValue(**value))
    (answer,) = server.action("SetSessionOptions", m.SetSessionOptionsRequest(session_options=[entry]).SerializeToString())
    return {entry.key: entry.value.value for entry in m.SetSessionOptionsResult.FromString(answer).errors}


def test_a_session_keeps_its_options_and_refuses_others(server, actions):
    if not {"SetSessionOptions", "GetSessionOptions", "CloseSession"} <= actions:
        pytest.skip("the server has no sessions")
    assert set_option(server, "no such option", string_value="x") == {"no such option": 1}
    (schema, *_) = server.ask(m.CommandGetDbSchemas()).column("db_schema_name").to_pylist() or ["none"]
    if not set_option(server, "schema", string_value=schema):
        assert options_of(server)["schema"].string_value == schema
    (catalog, *_) = server.ask(m.CommandGetCatalogs()).column("catalog_name").to_pylist()
    if not set_option(server, "catalog", string_value=catalog):
        assert options_of(server)["catalog"].string_value == catalog
    (answer,) = server.action("CloseSession", m.CloseSessionRequest().SerializeToString())
    assert m.CloseSessionResult.FromString(answer).status in (1, 2, 3)


def test_the_default_schema_is_where_tables_are_looked_for(server, actions):
    tables = server.ask(m.CommandGetTables()).to_pylist()
    if "SetSessionOptions" not in actions or not tables:
        pytest.skip("the server has no sessions, or no tables")
    (quote,) = server.sql_info(504).values()
    for table in (tables[0], tables[-1]):
        if set_option(server, "schema", string_value=table["db_schema_name"]):
            pytest.skip("the server has no option `schema`")
        name = f"{quote}{table['table_name']}{quote}"
        assert server.query(f"select count(*) from {name}").num_rows == 1


def test_actions_that_are_listed_are_not_unimplemented(server, actions):
    for action in sorted(actions):
        try:
            server.action(action, b"\xff\xff\xff")
        except REFUSED as error:
            assert not is_unimplemented(error), f"{action} is listed and not implemented"
    with pytest.raises(REFUSED):
        server.action("no such action")


@pytest.mark.parametrize("command", [b"", b"\xff", b"select 1", b"\x0a\xff\xff\xff\x7f", b"\x0a\x03a/b\x12\x01\xff"])
def test_bytes_that_are_no_command_are_refused_and_the_server_goes_on(server, command):
    with pytest.raises(REFUSED):
        server.client.get_flight_info(flight.FlightDescriptor.for_command(command), server.options)
    with pytest.raises(REFUSED):
        server.client.do_get(flight.Ticket(command), server.options).read_all()
    assert values(server.query("select 1")) == [[1]]
