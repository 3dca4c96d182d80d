"""pyarrow Flight and ADBC, as they come from PyPI, putting record batches into sources of a `holdfast serve`."""

import decimal
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import deltalake
import pyarrow
import pyarrow.flight
import pytest

from conftest import ROOT, environment

sys.path.insert(0, str(ROOT / "crates" / "serve" / "python"))

import holdfast  # noqa: E402

FILES = {
    "holdfast.toml": "",
    "pipelines/churn/pipeline.toml": 'stages = "sql"\n',
    "pipelines/churn/identity.toml": 'priority = ["phone"]\n[types.phone]\n',
    "pipelines/churn/sources/orders.toml": """
kind = "orders"
path = "orders/*.ndjson"
format = "ndjson"

[columns]
order_id = "string"
ordered_at = "timestamp"
amount = "decimal(12,2)"
lines = "list<struct<sku string, quantity int32>>"
""",
    "sql/core/orders.sql": "select order_id, amount from raw.orders\n",
    "in/orders/1.ndjson": '{"order_id": "file"}\n',
}

READ, PUT = "a-token-for-reading", "a-token-for-putting"


class Service:
    """A `holdfast serve` on a lake of its own that takes puts."""

    def __init__(self, folder):
        self.folder = folder
        for path, text in FILES.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        (folder / "read.token").write_text(READ)
        (folder / "put.token").write_text(PUT)
        self.command = [pathlib.Path(environment("HOLDFAST_BIN")).resolve(), "--project", folder, "--lake", folder / "lake"]
        for arguments in (["ingest", "--from", folder / "in"], ["run"]):
            subprocess.run([*self.command, *arguments], check=True, capture_output=True)

    def __enter__(self):
        command = [*self.command, "serve", "--listen", "127.0.0.1:0", "--accept-puts", "--ingest-interval-ms", "100"]
        command += ["--token-file", self.folder / "read.token", "--put-token-file", self.folder / "put.token"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search("grpc://[0-9.:]+", line):
                self.uri = found.group()
                return self
        raise AssertionError("it did not start")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=20) == 0
        self.process.stderr.close()

    def adbc(self, token=PUT):
        options = {adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {token}"}
        return adbc_driver_flightsql.dbapi.connect(self.uri, db_kwargs=options, autocommit=True)

    def rows(self, table="raw/orders"):
        """What is in a table, read by delta-rs."""
        found = deltalake.DeltaTable(str(self.folder / "lake" / table)).to_pyarrow_table().to_pylist()
        return [row for row in found if row.get("order_id") != "file"]

    def ids(self):
        return sorted(row["order_id"] for row in self.rows())


@pytest.fixture
def service(tmp_path):
    return Service(tmp_path)


def orders(ids):
    lines = pyarrow.list_(pyarrow.struct([("sku", pyarrow.string()), ("quantity", pyarrow.int32())]))
    return pyarrow.table(
        {
            "order_id": pyarrow.array(ids),
            "ordered_at": pyarrow.array([1_769_904_000] * len(ids), pyarrow.timestamp("s", "UTC")),
            "amount": pyarrow.array([decimal.Decimal("19.90")] * len(ids), pyarrow.decimal128(12, 2)),
            "lines": pyarrow.array([[{"sku": "a", "quantity": 2}]] * len(ids), lines),
        }
    )


def options(token=PUT):
    return pyarrow.flight.FlightCallOptions(timeout=60, headers=[(b"authorization", f"Bearer {token}".encode())])


# The example of docs/put.md.
def put_orders(client, options, stream, batches):
    """Puts batches and answers the position of each, once it is durable."""
    descriptor = pyarrow.flight.FlightDescriptor.for_path("raw", "orders")
    writer, reader = client.do_put(descriptor, batches[0].schema, options)
    positions = []
    with writer:
        for number, batch in enumerate(batches):
            position = {"stream": stream, "batch": number}
            writer.write_with_metadata(batch, json.dumps(position).encode())
        writer.done_writing()
        while (metadata := reader.read()) is not None:
            positions.append(json.loads(metadata.to_pybytes()))
    return positions


def test_each_batch_is_acknowledged_with_its_position_and_can_be_put_again(service):
    batches = orders([f"o{number}" for number in range(5_000)]).to_batches(max_chunksize=1_000)
    with service, pyarrow.flight.connect(service.uri) as client:
        positions = put_orders(client, options(), "nightly-2026-11-26", batches)
        assert positions == [
            {"stream": "nightly-2026-11-26", "batch": number, "rows": 1_000, "outcome": "stored"} for number in range(5)
        ]
        again = put_orders(client, options(), "nightly-2026-11-26", batches)
        assert [position["outcome"] for position in again] == ["known"] * 5
    rows = service.rows()
    assert sorted(row["order_id"] for row in rows) == sorted(f"o{number}" for number in range(5_000))
    assert {str(row["amount"]) for row in rows} == {"19.90"}
    assert {row["ordered_at"].timestamp() for row in rows} == {1_769_904_000}
    assert rows[0]["lines"] == [{"sku": "a", "quantity": 2}]


def test_our_own_client_pushes_and_repeats(service):
    rows = orders([f"o{number}" for number in range(200_000)])
    with service, holdfast.Client(service.uri, token=PUT, timeout=60) as client:
        assert client.push("orders", rows, stream="nightly") == {"stored": 200_000, "known": 0}
        assert client.push("raw.orders", rows, stream="nightly") == {"stored": 0, "known": 200_000}
        assert client.push("orders", rows.slice(0, 3))["stored"] == 3
        with pytest.raises(holdfast.FeatureError, match="there is no source"):
            client.push("order", rows)
        with pytest.raises(holdfast.FeatureError, match="is missing"):
            client.push("orders", rows.drop_columns("amount"))
    assert len(service.ids()) == 200_003


def test_a_batch_is_durable_when_it_is_acknowledged(service):
    batches = orders(["a", "b"]).to_batches(max_chunksize=1)
    with pytest.raises(AssertionError), service, pyarrow.flight.connect(service.uri) as client:
        descriptor = pyarrow.flight.FlightDescriptor.for_path("raw", "orders")
        writer, reader = client.do_put(descriptor, batches[0].schema, options())
        writer.write_batch(batches[0])
        position = json.loads(reader.read().to_pybytes())
        assert (position["batch"], position["rows"], position["outcome"]) == (0, 1, "stored")
        service.process.kill()
        service.process.wait()
        with pytest.raises(pyarrow.ArrowException):
            writer.close()
    with service, pyarrow.flight.connect(service.uri) as client:
        assert put_orders(client, options(), position["stream"], batches)[0]["outcome"] == "known"
    assert service.ids() == ["a", "b"]


def test_what_does_not_fit_is_told(service):
    with service, pyarrow.flight.connect(service.uri) as client:
        table = orders(["a"]).drop_columns("amount").append_column("total", pyarrow.array([1.5]))
        with pytest.raises(pyarrow.ArrowInvalid, match=r"column `amount` \(decimal\(12,2\)\) is missing"):
            put_orders(client, options(), "wrong", table.to_batches())
        with pytest.raises(pyarrow.flight.FlightUnauthorizedError, match="for reading, not for putting"):
            put_orders(client, options(READ), "s", orders(["a"]).to_batches())
        big = pyarrow.table({"order_id": ["x" * (70 << 20)]})
        wide = orders(["a"]).set_column(0, "order_id", big.column(0))
        with pytest.raises(pyarrow.ArrowException, match="max_chunksize"):
            put_orders(client, options(), "big", wide.to_batches())
    assert service.ids() == []


@pytest.mark.parametrize("table", ["orders", "raw.orders"])
@pytest.mark.parametrize("mode", ["append", "create_append"])
def test_adbc_ingests_into_a_source(service, table, mode):
    with service, service.adbc() as connection, connection.cursor() as cursor:
        ids = [f"o{number}" for number in range(2_500)]
        assert cursor.adbc_ingest(table, orders(ids).to_reader(max_chunksize=1_000), mode=mode) == 2_500
        assert cursor.adbc_ingest("orders", orders(["last"]), mode="append", db_schema_name="raw") == 1
    assert service.ids() == sorted([*ids, "last"])


def test_adbc_ingests_again_under_a_name(service):
    header = f"{adbc_driver_flightsql.StatementOptions.RPC_CALL_HEADER_PREFIX.value}holdfast-stream"
    with service, service.adbc() as connection:
        for _ in range(2):
            with connection.cursor() as cursor:
                cursor.adbc_statement.set_options(**{header: "load-7"})
                reader = orders(["a", "b", "c"]).to_reader(max_chunksize=2)
                assert cursor.adbc_ingest("raw.orders", reader, mode="append") == 3
    assert service.ids() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "create"}, "cannot be created: use the mode `append`"),
        ({"mode": "replace"}, "never replaced: use the mode `append`"),
        ({"mode": "append", "temporary": True}, "no temporary tables"),
        ({"mode": "append", "db_schema_name": "core"}, "only the schema `raw`"),
        ({"mode": "append", "catalog_name": "other"}, "only catalog"),
    ],
)
def test_what_adbc_cannot_ingest_is_told(service, arguments, message):
    with service, service.adbc() as connection:
        with connection.cursor() as cursor, pytest.raises(adbc_driver_manager.Error, match=message):
            cursor.adbc_ingest("orders", orders(["a"]), **arguments)
        # Options stay with their cursor.
        with connection.cursor() as cursor, pytest.raises(adbc_driver_manager.Error, match="no source `ordres`: did you mean"):
            cursor.adbc_ingest("ordres", orders(["a"]), mode="append")
    assert service.ids() == []


def test_rows_that_do_not_fit_are_in_quarantine(service):
    table = orders(["a", "b", "c"])
    amounts = pyarrow.array([1.5, float("nan"), 1e12])
    table = table.set_column(table.schema.get_field_index("amount"), "amount", amounts)
    with service, service.adbc() as connection, connection.cursor() as cursor:
        assert cursor.adbc_ingest("orders", table, mode="append") == 3
        deadline = time.monotonic() + 20
        while service.ids() != ["a"]:
            assert time.monotonic() < deadline, "it does not reach raw"
            time.sleep(0.1)
    refused = service.rows("quarantine/orders")
    assert [row["column_name"] for row in refused] == ["amount", "amount"]
