"""The feature store through its own client: then and now are the same numbers, and both are those of the tables."""

import datetime
import pathlib
import sys

import pyarrow
import pyarrow.compute
import pyarrow.flight
import pytest
from conftest import ROOT, flight_table

sys.path.insert(0, str(ROOT / "crates" / "serve" / "python"))

import holdfast  # noqa: E402
from holdfast.client import bucket_of  # noqa: E402


@pytest.fixture(scope="module")
def client(address, token):
    with holdfast.Client(address, token=token, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def view(flight):
    return flight_table(flight, pyarrow.flight.FlightDescriptor.for_path("features", "churn_v1"))


def moment():
    return datetime.datetime.now(datetime.timezone.utc)


def same(left, right):
    # Not written as a comparison of tables: a failure must not print a customer.
    assert left.num_rows == right.num_rows
    for name in left.column_names:
        assert left.column(name).combine_chunks().equals(right.column(name).combine_chunks()), f"{name} differs"


def test_then_and_now_are_the_numbers_of_the_table(client, view):
    """PIT-3, through the front door."""
    ids = [*view.column("customer_id").to_pylist()[:500], "no such customer", None]
    features = ["churn_v1:purchases", "churn_v1:spend_365d", "churn_score:risk_band"]
    spine = pyarrow.table({"customer_id": ids, "event_timestamp": [moment()] * len(ids), "row": range(len(ids))})
    then = client.get_historical_features(spine, features=features)
    assert then.provenance["features"] == [name.replace(":", "@v1:") for name in features]
    assert set(then.provenance["tables"]) == {"history.churn_v1_v1", "history.churn_score_v1"}
    then = then.to_arrow()
    assert then.column("row").to_pylist() == list(range(len(ids)))
    now = client.get_online_features(ids[:-1], features=features).to_arrow()
    same(now, then.slice(0, len(ids) - 1).select(now.column_names))
    assert then.column("churn_v1__status").to_pylist()[-2:] == ["NOT_FOUND"] * 2
    rows = {row["customer_id"]: row for row in view.select(["customer_id", "purchases", "spend_365d"]).to_pylist()}
    for row in now.to_pylist()[:-1]:
        for name in ("purchases", "spend_365d"):
            assert row[name] == rows[row["customer_id"]][name], f"{name} differs"
    assert set(now.column("churn_v1__status").to_pylist()[:-1]) == {"PRESENT"}


def test_an_open_line_answers_as_a_call_does(client, view):
    ids = view.column("customer_id").to_pylist()[:200]
    called = client.get_online_features(ids, service="churn", event_timestamps=True).to_arrow()
    with client.online(service="churn", event_timestamps=True) as line:
        for start in range(0, 200, 50):
            found = line.get({"customer_id": ids[start : start + 50]})
            same(pyarrow.table(found), called.slice(start, 50))
        assert line.get({"customer_id": []}).num_rows == 0
        assert line.get({"customer_id": ["no such customer"]}).column("churn_v1__status").to_pylist() == ["NOT_FOUND"]
    with pytest.raises(holdfast.FeatureError, match="no key column"), client.online(service="churn") as line:
        line.get({"customer": ["a"]})
    # Nothing was asked.
    client.online(service="churn").close()


def test_nothing_is_seen_before_it_was_known(client, view):
    ids = view.column("customer_id").to_pylist()[:10]
    early = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)
    spine = {"customer_id": ids, "event_timestamp": [early] * len(ids)}
    found = client.get_historical_features(spine, service="churn").to_arrow()
    assert set(found.column("churn_v1__status").to_pylist()) == {"NOT_FOUND"}
    assert found.column("purchases").null_count == len(ids)


def test_a_big_spine_streams_both_ways(client, view):
    ids = view.column("customer_id").to_pylist()
    at, batch_rows, batches = moment(), 50_000, 12
    schema = pyarrow.schema([("customer_id", pyarrow.string()), ("at", pyarrow.timestamp("us", "UTC")), ("row", pyarrow.int64())])

    def rows():
        for batch in range(batches):
            first = batch * batch_rows
            numbers = range(first, first + batch_rows)
            columns = [[ids[row % len(ids)] for row in numbers], [at] * batch_rows, numbers]
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema)]
            yield pyarrow.record_batch(arrays, schema=schema)

    spine = pyarrow.RecordBatchReader.from_batches(schema, rows())
    seen = 0
    retrieval = client.get_historical_features(spine, features=["churn_v1:purchases"], timestamp="at", status="none")
    for batch in retrieval.to_batches():
        numbers = batch.column("row").to_pylist()
        assert numbers == list(range(seen, seen + len(numbers)))
        assert batch.column("purchases").null_count == 0
        seen += len(numbers)
    assert seen == batches * batch_rows


def test_who_stops_reading_is_no_trouble(client, view):
    ids = view.column("customer_id").to_pylist()
    spine = {"customer_id": ids * 100, "event_timestamp": [moment()] * (len(ids) * 100)}
    batches = client.get_historical_features(spine, service="churn").to_batches()
    next(batches)
    batches.close()
    assert client.health()["status"] == "serving"


def test_a_training_set_is_kept_and_given_again(client, view):
    """PIT-4, over the wire."""
    ids = view.column("customer_id").to_pylist()[:200] + ["no such customer"]
    spine = pyarrow.table({"customer_id": ids, "event_timestamp": [moment()] * len(ids), "row": range(len(ids))})
    features = ["churn_v1:purchases", "churn_score:risk_band"]
    made = client.create_training_set(spine, features=features)
    dataset = made.provenance["dataset_id"]
    rows = made.to_arrow()
    same(rows, client.get_historical_features(spine, features=features).to_arrow())
    # However it is cut, the same rows are the same training set.
    again = client.create_training_set(pyarrow.table(spine).to_reader(max_chunksize=7), features=features)
    assert again.provenance["dataset_id"] == dataset
    same(again.to_arrow(), rows)
    assert client.training_set(dataset)["spine"]["rows"] == len(ids)
    assert dataset in [known["id"] for known in client.training_sets()]
    rest = client.training_set_rows(dataset, skip_rows=150)
    assert rest.provenance["dataset_id"] == dataset
    same(rest.to_arrow(), rows.slice(150))
    with pytest.raises(holdfast.FeatureError, match="no training set is called"):
        client.training_set_rows("ds_none")
    with pytest.raises(ValueError, match="a label has a horizon"):
        client.create_training_set(spine, features=features, label="churn_v1:purchases")


def test_refusals_say_what_to_do(client):
    spine = {"customer_id": ["a"], "event_timestamp": [moment()]}
    for ask, told in [
        (lambda: client.get_historical_features(spine, features=["churn_v1:purchase"]), "did you mean purchases"),
        (lambda: client.get_historical_features(spine, service="chrn"), "did you mean `churn`"),
        (lambda: client.get_historical_features({"customer_id": ["a"]}, service="churn"), "no column event_timestamp"),
        (
            lambda: client.get_historical_features(
                {"customer_id": ["a"], "event_timestamp": [datetime.datetime(2026, 1, 1)]}, service="churn"
            ),
            "a timestamp with a zone",
        ),
        (lambda: client.get_online_features(["a"], features=["churn_v1:purchase"]), "has no feature"),
        (lambda: client.get_online_features([1], service="churn"), "are texts"),
        (lambda: client.get_online_features({"shop": ["a"]}, service="churn"), "no key column `customer_id`"),
        (lambda: client.get_online_features(["a"] * 10_001, service="churn"), "ask in parts"),
        (lambda: client.describe("chrn"), "no feature view is called `chrn`"),
    ]:
        with pytest.raises(holdfast.FeatureError, match=told.replace("`", ".")):
            answer = ask()
            if isinstance(answer, holdfast.Retrieval):
                answer.to_arrow()
    with pytest.raises(ValueError, match="either a service or features"):
        client.get_online_features(["a"])


def test_nodes_are_asked_as_if_they_were_one(client, address, token, view):
    ids = view.column("customer_id").to_pylist()[:200] + ["nobody"]
    expected = client.get_online_features(ids, service="churn").to_arrow()
    with holdfast.OnlineNodes([address], token=token) as nodes:
        assert nodes.get_online_features({"customer_id": ids}, service="churn").to_arrow().equals(expected)
        assert nodes.get_online_features([], service="churn").to_arrow().num_rows == 0
        with pytest.raises(holdfast.FeatureError, match="no key column"):
            nodes.get_online_features({"shop": ["a"]}, service="churn")
    with pytest.raises(holdfast.FeatureError, match="each share once"):
        holdfast.OnlineNodes([address, address], token=token)


def test_a_key_is_in_the_bucket_that_tables_have_it_in(view):
    ids, buckets = (view.column(name).to_pylist() for name in ["customer_id", "customer_bucket"])
    count = max(buckets) + 1
    assert [bucket_of([id], count) for id in ids] == buckets
    # Of several columns, each text behind its length; integers as they are.
    assert bucket_of(["a", 1], 1 << 32) != bucket_of(["a1"], 1 << 32)


def test_what_there_is_can_be_asked(client):
    listed = client.list_features()
    views = {view["view"]: view for view in listed["views"]}
    assert views["churn_v1"]["online"] and views["churn_v1"]["rows_in_memory"] > 0
    assert {service["service"] for service in listed["services"]} == {"churn", "retention"}
    described = client.describe("retention@v1")
    assert described["service"]["features"][0] == {
        "view": "churn_score",
        "version": 1,
        "feature": "churn_probability",
    }
    assert isinstance(client.training_sets(), list)
    names = {action.type for action in client._client.list_actions(client._options)}
    assert names >= {"list_features", "describe_features", "get_dataset"}


def test_messages_are_those_of_the_protobuf(commands):
    from google.protobuf import any_pb2
    from holdfast import _messages

    wrapped = any_pb2.Any()
    wrapped.ParseFromString(_messages.online("", ["a:b"], {"k": ["x", ""], "n": [1, -1]}, True, "value", True))
    message = commands.GetOnlineFeatures()
    assert wrapped.Unpack(message)
    assert list(message.features) == ["a:b"] and message.full_feature_names and message.event_timestamps
    assert message.status == commands.STATUS_COLUMNS_VALUE
    assert [(key.name, list(key.texts), list(key.integers)) for key in message.keys] == [
        ("k", ["x", ""], []),
        ("n", [], [1, -1]),
    ]
    wrapped.ParseFromString(_messages.historical("s@v2", [], "at", True, True, False, "none", False, True))
    message = commands.GetHistoricalFeatures()
    assert wrapped.Unpack(message)
    assert (message.feature_service, message.timestamp) == ("s@v2", "at")
    assert message.strict and message.ignore_known_at and message.timestamps_are_utc
    assert not message.full_feature_names and message.status == commands.STATUS_COLUMNS_NONE
    asked = ("s", [], "", False, False, True, "view", False, False)
    wrapped.ParseFromString(_messages.create_dataset(asked, "bought:amount", 86_400, True))
    message = commands.CreateDataset()
    assert wrapped.Unpack(message)
    assert message.features.feature_service == "s" and message.features.full_feature_names
    assert (message.label, message.horizon_s, message.open_horizon) == ("bought:amount", 86_400, True)
    wrapped.ParseFromString(_messages.get_dataset("ds_1", 7))
    message = commands.GetDataset()
    assert wrapped.Unpack(message) and (message.dataset_id, message.skip_rows) == ("ds_1", 7)


def test_the_client_needs_pyarrow_alone():
    folder = pathlib.Path(holdfast.__file__).parent
    imported = {
        line.split()[1].split(".")[0]
        for file in folder.glob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    standard = {"__future__", "collections", "concurrent", "datetime", "json", "struct", "threading", "typing", "uuid"}
    assert imported <= standard | {"holdfast", "pyarrow"}
