"""The lake, the service and one reader for each client, all asked for the same two things: rows and sums."""

import decimal
import json
import os
import pathlib
import subprocess
import tempfile

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import duckdb
import pyarrow
import pyarrow.compute
import pyarrow.flight
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Flight:
    """A pyarrow Flight client that gives every call the same options."""

    def __init__(self, client, options):
        self.client = client
        self.options = options

    def __getattr__(self, method):
        return lambda *arguments: getattr(self.client, method)(*arguments, self.options)


def environment(name):
    value = os.environ.get(name)
    if not value:
        pytest.skip(f"{name} is not set: see tests/clients/README.md")
    return value


@pytest.fixture(scope="session")
def lake():
    folder = pathlib.Path(environment("HOLDFAST_LAKE")).resolve()
    assert (folder / "_holdfast" / "lake.json").is_file(), f"{folder} is not a lake"
    return folder


@pytest.fixture(scope="session")
def published(lake):
    """The newest run: table name -> (version, rows)."""
    manifests = sorted((lake / "_holdfast" / "runs").glob("*.json"))
    manifest = json.loads(manifests[-1].read_text())
    return {table["name"]: (table["version"], table["rows"]) for table in manifest["tables"]}


@pytest.fixture(scope="session")
def address():
    return environment("HOLDFAST_FLIGHT")


@pytest.fixture(scope="session")
def token():
    return os.environ.get("HOLDFAST_TOKEN")


@pytest.fixture(scope="session")
def flight(address, token):
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    with pyarrow.flight.connect(f"grpc://{address}") as client:
        yield Flight(client, pyarrow.flight.FlightCallOptions(timeout=60, headers=headers))


@pytest.fixture(scope="session")
def adbc(address, token):
    options = {}
    if token:
        options[adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value] = f"Bearer {token}"
    with adbc_driver_flightsql.dbapi.connect(f"grpc://{address}", db_kwargs=options, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def duck():
    """DuckDB with the Delta extension from the `duckdb-ext-delta` wheel: nothing is downloaded."""
    import duckdb_ext

    folders = [pathlib.Path(folder) for folder in duckdb_ext.__path__]
    (extension,) = [file for folder in folders for file in folder.glob("extensions/*/*/delta.duckdb_extension")]
    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    connection.execute(f"load '{extension}'")
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def commands():
    """The messages of proto/holdfast/v1/flight.proto, compiled as any client would."""
    import importlib.util
    import sys

    import grpc_tools.protoc

    with tempfile.TemporaryDirectory() as out:
        arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}", "holdfast/v1/flight.proto"]
        assert grpc_tools.protoc.main(arguments) == 0
        path = pathlib.Path(out) / "holdfast" / "v1" / "flight_pb2.py"
        spec = importlib.util.spec_from_file_location("flight_pb2", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["flight_pb2"] = module
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="session")
def holdfast_sql(lake):
    """Runs `holdfast sql` and answers its rows."""
    binary = environment("HOLDFAST_BIN")

    def run(query):
        command = [binary, "sql", "--lake", str(lake), "--published", "--output", "json", query]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"holdfast sql failed: {done.stderr[:500]}"
        text = done.stdout.strip()
        if text.startswith("["):
            return json.loads(text, parse_float=decimal.Decimal)
        return [json.loads(line, parse_float=decimal.Decimal) for line in text.splitlines() if line.strip()]

    return run


def flight_table(client, descriptor):
    """Everything a descriptor describes, with the promises of GetFlightInfo checked on the way."""
    info = client.get_flight_info(descriptor)
    table = client.do_get(info.endpoints[0].ticket).read_all()
    assert table.schema == info.schema
    if info.total_records >= 0:
        assert table.num_rows == info.total_records
    return table


def sums(table):
    """The sum of each number column of an Arrow table, and how many values each other column has."""
    answer = {}
    for field in table.schema:
        column = table.column(field.name)
        if pyarrow.types.is_integer(field.type) or pyarrow.types.is_decimal(field.type):
            answer[field.name] = pyarrow.compute.sum(column).as_py()
        elif pyarrow.types.is_floating(field.type):
            answer[field.name] = pyarrow.compute.sum(column).as_py()
        else:
            answer[field.name] = len(column) - column.null_count
    return answer


def sums_query(schema, source):
    """The same in SQL."""
    parts = ["count(*) as rows_"]
    for field in schema:
        number = (
            pyarrow.types.is_integer(field.type)
            or pyarrow.types.is_decimal(field.type)
            or pyarrow.types.is_floating(field.type)
        )
        parts.append(f'{"sum" if number else "count"}("{field.name}") as "{field.name}"')
    return f"select {', '.join(parts)} from {source}"


def assert_same(expected, found, what):
    """Floats are added in another order by everybody; everything else is equal."""
    assert set(expected) == set(found), f"{what}: other columns"
    for name, value in expected.items():
        other = found[name]
        if isinstance(value, float):
            assert float(other) == pytest.approx(value, rel=1e-9, abs=1e-9), f"{what}: sum of {name} differs"
        elif value is None or other is None:
            assert value is other, f"{what}: {name} differs"
        else:
            # JSON has no decimals: `holdfast sql` writes them as text or as a number.
            assert type(value)(str(other)) == value, f"{what}: {name} differs"
