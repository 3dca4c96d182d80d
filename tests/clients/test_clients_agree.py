"""Every client sees the same rows and sums in every published table."""

import deltalake
import pyarrow.flight
import pytest
from conftest import assert_same, flight_table, sums, sums_query

TABLES = [
    "raw.orders",
    "core.orders",
    "core.order_lines",
    "core.events",
    "identity.customers",
    "profile.customer_360",
    "risk.rfm_b",
    "profile.lifecycle",
    "features.churn_v1",
    "risk.churn_score",
]


@pytest.fixture(params=TABLES)
def name(request, published):
    if request.param not in published:
        pytest.skip(f"{request.param} is not in this lake")
    return request.param


def path_of(name):
    return pyarrow.flight.FlightDescriptor.for_path(*name.split("."))


def test_the_lake_has_most_of_these_tables(published):
    assert len([name for name in TABLES if name in published]) >= 6


def test_flight_matches_the_manifest(name, published, flight):
    assert flight_table(flight, path_of(name)).num_rows == published[name][1]


def test_deltalake_agrees_with_flight(name, lake, published, flight):
    delta = deltalake.DeltaTable(str(lake / name.replace(".", "/")), version=published[name][0])
    through_delta = delta.to_pyarrow_table()
    through_flight = flight_table(flight, path_of(name))
    assert sorted(through_delta.column_names) == sorted(through_flight.column_names)
    assert_same(sums(through_flight), sums(through_delta), f"deltalake on {name}")


def test_duckdb_agrees_with_flight(name, lake, published, flight, duck):
    newest = deltalake.DeltaTable(str(lake / name.replace(".", "/"))).version()
    if newest != published[name][0]:
        pytest.skip("the table has a version that is not published, and delta_scan reads the newest")
    through_flight = flight_table(flight, path_of(name))
    query = sums_query(through_flight.schema, f"delta_scan('{lake / name.replace('.', '/')}')")
    cursor = duck.execute(query)
    found = dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))
    assert found.pop("rows_") == through_flight.num_rows
    assert_same(sums(through_flight), found, f"DuckDB on {name}")


def test_adbc_agrees_with_flight(name, flight, adbc):
    through_flight = flight_table(flight, path_of(name))
    with adbc.cursor() as cursor:
        cursor.execute(f"select * from {name}")
        through_adbc = cursor.fetch_arrow_table()
    assert through_adbc.num_rows == through_flight.num_rows
    assert through_adbc.schema.names == through_flight.schema.names
    assert through_adbc.schema.types == through_flight.schema.types
    assert_same(sums(through_flight), sums(through_adbc), f"ADBC on {name}")


def test_sql_sums_agree_with_the_rows(name, flight, adbc):
    through_flight = flight_table(flight, path_of(name))
    with adbc.cursor() as cursor:
        cursor.execute(sums_query(through_flight.schema, name))
        found = cursor.fetch_arrow_table().to_pylist()[0]
    assert found.pop("rows_") == through_flight.num_rows
    assert_same(sums(through_flight), found, f"Flight SQL on {name}")


def test_holdfast_sql_agrees_with_flight(name, flight, holdfast_sql):
    through_flight = flight_table(flight, path_of(name))
    (found,) = holdfast_sql(sums_query(through_flight.schema, name))
    assert found.pop("rows_") == through_flight.num_rows
    assert_same(sums(through_flight), found, f"holdfast sql on {name}")
