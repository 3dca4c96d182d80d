"""Feast's own client, as it comes from PyPI: its remote offline store over Flight and its remote online store over HTTP, both answered by a `holdfast serve`."""

import datetime
import pathlib
import re
import signal
import subprocess
import sys

import pandas
import pyarrow.flight
import pytest
from conftest import ROOT, environment, flight_table

feast = pytest.importorskip("feast", reason="pip install -r tests/clients/requirements.txt")

from feast.types import Float64, Int64, String  # noqa: E402

sys.path.insert(0, str(ROOT / "crates" / "serve" / "python"))

import holdfast  # noqa: E402

FEATURES = ["churn_v1:purchases", "churn_v1:spend_365d", "churn_score:risk_band"]


@pytest.fixture(scope="module")
def served(lake):
    """A service of its own on the same lake, with an address for HTTP: Flight's port, and HTTP's."""
    binary = pathlib.Path(environment("HOLDFAST_BIN")).resolve()
    command = [binary, "--lake", lake, "serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = "Serving run .* grpc://127.0.0.1:([0-9]+) and http://127.0.0.1:([0-9]+)"
    ports = next(filter(None, (re.search(said, line) for line in process.stderr))).groups()
    try:
        yield [int(port) for port in ports]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def store(served, tmp_path_factory):
    folder = tmp_path_factory.mktemp("feast")
    flight, http = served

    def opened(offline, online):
        return feast.FeatureStore(
            config=feast.RepoConfig(
                project="churn",
                provider="local",
                registry=str(folder / "registry.db"),
                offline_store=offline,
                online_store=online,
                entity_key_serialization_version=3,
            )
        )

    customer = feast.Entity(name="customer", join_keys=["customer_id"], value_type=feast.ValueType.STRING)

    def view(name, **features):
        source = feast.FileSource(name=f"{name}_source", path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp")
        schema = [feast.Field(name=feature, dtype=dtype) for feature, dtype in features.items()]
        return feast.FeatureView(name=name, entities=[customer], ttl=datetime.timedelta(0), source=source, schema=schema)

    views = [view("churn_v1", purchases=Int64, spend_365d=Float64), view("churn_score", risk_band=String)]
    # Feast's registry says what there is; nothing is stored with Feast.
    opened({"type": "dask"}, {"type": "sqlite", "path": str(folder / "none.db")}).apply([customer, *views])
    return opened(
        {"type": "remote", "host": "127.0.0.1", "port": flight},
        {"type": "remote", "path": f"http://127.0.0.1:{http}"},
    )


@pytest.fixture(scope="module")
def ids(flight):
    table = flight_table(flight, pyarrow.flight.FlightDescriptor.for_path("features", "churn_v1"))
    return [*table.column("customer_id").to_pylist()[:50], "no such customer"]


def test_the_remote_offline_store_gets_the_rows_of_our_own_client(served, store, ids):
    now = datetime.datetime.now(datetime.timezone.utc)
    early = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)
    spine = pandas.DataFrame({"customer_id": ids * 2, "event_timestamp": [now] * len(ids) + [early] * len(ids)})
    found = store.get_historical_features(entity_df=spine, features=FEATURES).to_df()
    with holdfast.Client(f"grpc://127.0.0.1:{served[0]}") as client:
        ours = client.get_historical_features(spine, features=FEATURES, status="none").to_pandas()
    assert len(found) == len(spine)
    for name in ("customer_id", "purchases", "spend_365d", "risk_band"):
        # Not written as a comparison of frames: a failure must not print a customer.
        assert found[name].equals(ours[name]), f"{name} differs"
    assert found["purchases"].notna().sum() == len(ids) - 1


def test_the_remote_online_store_gets_the_rows_of_our_own_client(served, store, ids):
    rows = [{"customer_id": customer} for customer in ids]
    found = store.get_online_features(features=FEATURES, entity_rows=rows).to_dict()
    with holdfast.Client(f"grpc://127.0.0.1:{served[0]}") as client:
        ours = client.get_online_features(ids, features=FEATURES, status="none").to_arrow().to_pydict()
    for name in ("customer_id", "purchases", "risk_band"):
        assert found[name] == ours[name], f"{name} differs"
    spend = [None if value is None else float(value) for value in ours["spend_365d"]]
    assert found["spend_365d"] == spend
    assert found["purchases"][-1] is None


def test_what_cannot_be_is_told(store, ids):
    spine = pandas.DataFrame({"customer": ids, "event_timestamp": [datetime.datetime.now(datetime.timezone.utc)] * len(ids)})
    with pytest.raises(Exception, match="customer_id"):
        store.get_historical_features(entity_df=spine, features=FEATURES).to_df()
    with pytest.raises(Exception, match="entity_df in SQL is not offered"):
        store.get_historical_features(entity_df="select 1", features=FEATURES).to_df()
