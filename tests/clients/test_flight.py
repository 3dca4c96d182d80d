"""pyarrow Flight: discovery, features and scores, as a notebook or a model server asks."""

import json

import pyarrow
import pyarrow.compute
import pyarrow.flight
import pytest
from conftest import flight_table
from google.protobuf import any_pb2


def command(message):
    wrapped = any_pb2.Any()
    wrapped.Pack(message)
    return wrapped.SerializeToString()


def ask(flight, message):
    return flight_table(flight, pyarrow.flight.FlightDescriptor.for_command(command(message)))


def test_every_published_table_is_listed(flight, published):
    listed = {}
    for info in flight.list_flights(b""):
        name = b".".join(info.descriptor.path).decode()
        listed[name] = (info.total_records, info.total_bytes, info.schema)
    assert set(listed) == set(published)
    for name, (records, size, schema) in listed.items():
        assert records == published[name][1], name
        assert size >= 0, name
        descriptor = pyarrow.flight.FlightDescriptor.for_path(*name.split("."))
        assert flight.get_schema(descriptor).schema == schema


def test_features_come_in_request_order(flight, commands):
    name = "features.churn_v1"
    view = flight_table(flight, pyarrow.flight.FlightDescriptor.for_path(*name.split(".")))
    ids = view.column("customer_id").to_pylist()
    asked = [ids[-1], "no such customer", ids[0], ids[len(ids) // 2], ids[0]]
    answer = ask(flight, commands.FeaturesForCustomers(feature_view=name, customer_ids=asked))
    assert answer.column("customer_id").to_pylist() == asked
    assert answer.column("status").to_pylist() == ["PRESENT", "NOT_FOUND", "PRESENT", "PRESENT", "PRESENT"]
    features = [column for column in view.column_names if column not in ("customer_id", "customer_bucket")]
    assert answer.column_names == ["customer_id", *features, "status"]
    rows = {row["customer_id"]: row for row in view.to_pylist()}
    for row in answer.to_pylist():
        for feature in features:
            expected = rows.get(row["customer_id"], {}).get(feature)
            # Not written as a comparison of rows: a failure must not print a customer.
            assert (row[feature] == expected) or (row[feature] != row[feature]), f"{feature} differs"

    # In one round trip, one feature.
    wanted = commands.FeaturesForCustomers(feature_view=name, customer_ids=[ids[0]], features=features[:1])
    reader = flight.do_get(pyarrow.flight.Ticket(command(wanted)))
    assert reader.read_all().column_names == ["customer_id", features[0], "status"]


def test_scores_above_are_the_highest_first(flight, commands):
    scores = flight_table(flight, pyarrow.flight.FlightDescriptor.for_path("risk", "churn_score"))
    probabilities = sorted(scores.column("churn_probability").to_pylist(), reverse=True)
    threshold = probabilities[len(probabilities) // 10]
    above = ask(flight, commands.ScoresAbove(threshold=threshold))
    expected = [probability for probability in probabilities if probability >= threshold]
    assert above.column("churn_probability").to_pylist() == expected
    top = ask(flight, commands.ScoresAbove(threshold=threshold, limit=3))
    assert top.column("customer_id").to_pylist() == above.column("customer_id").to_pylist()[:3]
    with pytest.raises(pyarrow.ArrowInvalid, match="0 to 1"):
        ask(flight, commands.ScoresAbove(threshold=2.0))


def test_health_tells_the_run(flight, published):
    (result,) = flight.do_action(pyarrow.flight.Action("health", b""))
    health = json.loads(result.body.to_pybytes())
    assert health["status"] == "serving"
    assert health["tables"] == len(published)
    assert {action.type for action in flight.list_actions()} >= {"health", "refresh"}


def test_an_unknown_table_is_explained(flight):
    with pytest.raises(pyarrow.ArrowKeyError, match="did you mean risk.churn_score"):
        flight.get_flight_info(pyarrow.flight.FlightDescriptor.for_path("risk", "churn_scores"))


def test_nothing_can_be_written(flight):
    table = pyarrow.table({"customer_id": ["x"]})
    with pytest.raises((pyarrow.ArrowNotImplementedError, pyarrow.flight.FlightError), match="read-only"):
        writer, _ = flight.do_put(pyarrow.flight.FlightDescriptor.for_path("risk", "churn_score"), table.schema)
        writer.write_table(table)
        writer.close()
