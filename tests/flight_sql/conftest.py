"""Asks a Flight SQL server, whichever it is, over the wire: `pytest tests/flight_sql --server grpc://host:port`."""

import base64
import pathlib
import sys

import pyarrow
import pyarrow.flight as flight
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import messages as m  # noqa: E402


def pytest_addoption(parser):
    group = parser.getgroup("flight sql")
    group.addoption("--server", help="where the server is: grpc://host:port or grpc+tls://host:port")
    group.addoption("--server-user", help="a user name, for the handshake")
    group.addoption("--server-password", help="the password")
    group.addoption("--server-header", action="append", default=[], help="a header of each call, as name=value")
    group.addoption("--server-tls-roots", help="a file of certificates that are trusted, in PEM")
    group.addoption("--one-parameter", default="select ? as value", help="a query with one parameter, whose answer is its value")
    group.addoption("--long-query", help="a query that sends rows for minutes; without it nothing running is cancelled")


class Cookies(flight.ClientMiddlewareFactory):
    """Sends back what `set-cookie` has said, as drivers do."""

    def __init__(self):
        super().__init__()
        self.cookies = {}

    def start_call(self, info):
        return _CookiesOfCall(self.cookies)


class _CookiesOfCall(flight.ClientMiddleware):
    def __init__(self, cookies):
        super().__init__()
        self.cookies = cookies

    def sending_headers(self):
        if not self.cookies:
            return {}
        return {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}

    def received_headers(self, headers):
        for name, values in headers.items():
            if name.lower() != "set-cookie":
                continue
            for value in values:
                pair, *attributes = [part.strip() for part in (value.decode() if isinstance(value, bytes) else value).split(";")]
                key, _, content = pair.partition("=")
                if any(attribute.lower() == "max-age=0" for attribute in attributes):
                    self.cookies.pop(key, None)
                else:
                    self.cookies[key] = content


class Server:
    """A connection with the calls of Flight SQL."""

    def __init__(self, options):
        self.cookies = Cookies()
        roots = options.getoption("--server-tls-roots")
        extra = {"tls_root_certs": pathlib.Path(roots).read_bytes()} if roots else {}
        self.client = flight.connect(options.getoption("--server"), middleware=[self.cookies], **extra)
        headers = [tuple(header.split("=", 1)) for header in options.getoption("--server-header")]
        headers = [(name.lower().encode(), value.encode()) for name, value in headers]
        user = options.getoption("--server-user")
        if user:
            headers.append(self.client.authenticate_basic_token(user, options.getoption("--server-password") or ""))
        self.options = flight.FlightCallOptions(timeout=60, headers=headers)

    def info(self, command):
        return self.client.get_flight_info(flight.FlightDescriptor.for_command(m.packed(command)), self.options)

    def schema(self, command):
        return self.client.get_schema(flight.FlightDescriptor.for_command(m.packed(command)), self.options).schema

    def read(self, info):
        """All rows of all endpoints, with what GetFlightInfo has promised."""
        tables = [self.client.do_get(endpoint.ticket, self.options).read_all() for endpoint in info.endpoints]
        table = pyarrow.concat_tables(tables)
        assert table.schema.equals(info.schema), "DoGet sends another schema than GetFlightInfo has promised"
        if info.total_records >= 0:
            assert table.num_rows == info.total_records, "GetFlightInfo has promised another number of rows"
        return table

    def ask(self, command):
        return self.read(self.info(command))

    def query(self, sql, transaction=None):
        command = m.CommandStatementQuery(query=sql)
        if transaction is not None:
            command.transaction_id = transaction
        return self.ask(command)

    def action(self, name, body=b""):
        return [bytes(result.body) for result in self.client.do_action(flight.Action(name, body), self.options)]

    def sql_info(self, *names):
        rows = self.ask(m.CommandGetSqlInfo(info=list(names)))
        return dict(zip(rows.column("info_name").to_pylist(), rows.column("value").to_pylist()))

    def prepare(self, sql):
        (body,) = self.action("CreatePreparedStatement", m.packed(m.ActionCreatePreparedStatementRequest(query=sql)))
        return m.unpacked(m.ActionCreatePreparedStatementResult, body)

    def bind(self, handle, batch):
        """The handle to go on with."""
        command = m.CommandPreparedStatementQuery(prepared_statement_handle=handle)
        descriptor = flight.FlightDescriptor.for_command(m.packed(command))
        writer, reader = self.client.do_put(descriptor, batch.schema, self.options)
        with writer:
            writer.write_batch(batch)
            writer.done_writing()
            answer = reader.read()
        if answer is None:
            return handle
        result = m.DoPutPreparedStatementResult.FromString(answer.to_pybytes())
        return result.prepared_statement_handle if result.HasField("prepared_statement_handle") else handle


@pytest.fixture
def server(pytestconfig):
    if not pytestconfig.getoption("--server"):
        pytest.skip("--server is not given: see tests/flight_sql/README.md")
    server = Server(pytestconfig)
    yield server
    server.client.close()


@pytest.fixture
def actions(server):
    return {action.type for action in server.client.list_actions(server.options)}


def basic(user, password):
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


def schema_of(data):
    """The schema in IPC form; of nothing, none."""
    return pyarrow.ipc.read_schema(pyarrow.py_buffer(data)) if data else None
