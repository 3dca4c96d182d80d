"""ADBC Flight SQL: statements, prepared statements and the metadata that BI tools read."""

import adbc_driver_manager
import pyarrow
import pytest
from conftest import flight_table


def test_driver_and_vendor_are_known(adbc):
    info = adbc.adbc_get_info()
    assert info["vendor_name"] == "Holdfast"
    assert info["vendor_version"]


def test_catalogs_schemas_tables_and_columns_are_listed(adbc, published):
    objects = adbc.adbc_get_objects(depth="all").read_all().to_pylist()
    assert [catalog["catalog_name"] for catalog in objects] == ["holdfast"]
    found = {
        f"{schema['db_schema_name']}.{table['table_name']}": [column["column_name"] for column in table["table_columns"]]
        for schema in objects[0]["catalog_db_schemas"]
        for table in schema["db_schema_tables"]
    }
    assert set(found) == set(published)
    for name, columns in found.items():
        schema, table = name.split(".")
        expected = adbc.adbc_get_table_schema(table, db_schema_filter=schema).names
        assert columns == expected, name

    one = adbc.adbc_get_objects(depth="columns", db_schema_filter="risk", table_name_filter="churn_score").read_all()
    (schema,) = one.to_pylist()[0]["catalog_db_schemas"]
    (table,) = schema["db_schema_tables"]
    assert {"customer_id", "churn_probability"} <= {column["column_name"] for column in table["table_columns"]}


def test_columns_carry_their_comments(adbc):
    schema = adbc.adbc_get_table_schema("churn_score", db_schema_filter="risk")
    metadata = schema.field("customer_id").metadata
    assert metadata[b"ARROW:FLIGHT:SQL:REMARKS"]
    assert metadata[b"ARROW:FLIGHT:SQL:TYPE_NAME"] == b"VARCHAR"


def test_table_types(adbc):
    assert adbc.adbc_get_table_types() == ["TABLE"]


def test_a_prepared_statement_runs_again_and_again(adbc, published):
    with adbc.cursor() as cursor:
        for _ in range(3):
            cursor.execute("select count(*) as n from risk.churn_score")
            assert cursor.fetchone() == (published["risk.churn_score"][1],)
        schema = cursor.adbc_prepare("select customer_id from risk.churn_score")
        assert schema is None or schema.names in ([], ["customer_id"])


@pytest.mark.parametrize("value", ["a", "it's", "' or true --", "汉字", "", None])
def test_a_parameter_of_text_comes_back_as_it_is(adbc, value):
    with adbc.cursor() as cursor:
        cursor.execute("select ? as value", parameters=(value,))
        assert cursor.fetchone() == (value,)


def test_parameters_choose_rows_by_value(adbc, published):
    everybody = "select count(*) from risk.churn_score where churn_probability >= ? and customer_id <> ?"
    with adbc.cursor() as cursor:
        cursor.execute(everybody, parameters=(0.0, "nobody"))
        assert cursor.fetchone() == (published["risk.churn_score"][1],)
        # Of the other type, as a literal would be.
        cursor.execute(everybody, parameters=(2, "nobody"))
        assert cursor.fetchone() == (0,)
        cursor.execute("select customer_id from risk.churn_score order by 1 limit ?", parameters=(3,))
        customers = [customer for (customer,) in cursor.fetchall()]
        assert len(customers) == 3
        cursor.execute("select count(*) from risk.churn_score where customer_id = ?", parameters=(customers[0],))
        assert cursor.fetchone() == (1,)


def test_the_types_of_parameters_are_told(adbc):
    with adbc.cursor() as cursor:
        schema = cursor.adbc_prepare("select customer_id from risk.churn_score where churn_probability > ? and customer_id = ? limit ?")
    assert schema.types == [pyarrow.float64(), pyarrow.utf8(), pyarrow.int64()]


def test_a_statement_runs_once_for_each_row_of_values(adbc):
    rows = pyarrow.record_batch([pyarrow.array(["a", "b", None])], names=["0"])
    with adbc.cursor() as cursor:
        cursor.execute("select ? as value", parameters=rows)
        assert cursor.fetchall() == [("a",), ("b",), (None,)]


def test_without_autocommit_a_connection_reads_one_run(address, token):
    import adbc_driver_flightsql.dbapi

    options = {}
    if token:
        options[adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value] = f"Bearer {token}"
    with adbc_driver_flightsql.dbapi.connect(f"grpc://{address}", db_kwargs=options) as connection:
        with connection.cursor() as cursor:
            for _ in range(2):
                cursor.execute("select ? as value", parameters=("a",))
                assert cursor.fetchone() == ("a",)
                connection.commit()
            cursor.execute("select 1 as one")
            assert cursor.fetchone() == (1,)
        connection.rollback()


def test_a_schema_is_known_without_running(adbc):
    with adbc.cursor() as cursor:
        schema = cursor.adbc_execute_schema("select customer_id, churn_probability from risk.churn_score")
    assert schema.names == ["customer_id", "churn_probability"]
    assert schema.field("churn_probability").type == pyarrow.float64()


def test_rows_arrive_through_the_dbapi(adbc):
    with adbc.cursor() as cursor:
        cursor.execute("select 1 as one, 'two' as two, cast(3.50 as decimal(10, 2)) as three, null as four")
        one, two, three, four = cursor.fetchone()
    assert (one, two, str(three), four) == (1, "two", "3.50", None)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from risk.churn_score",
        "create table core.mine as select 1",
        "drop table risk.churn_score",
        "insert into risk.churn_score select * from risk.churn_score",
    ],
)
def test_nothing_can_be_written(adbc, statement):
    with adbc.cursor() as cursor, pytest.raises(adbc_driver_manager.Error, match="only queries|read-only"):
        cursor.execute(statement)
        cursor.fetchall()


def test_rows_cannot_be_ingested(adbc):
    table = pyarrow.table({"customer_id": ["x"]})
    with adbc.cursor() as cursor, pytest.raises(adbc_driver_manager.Error, match="read-only"):
        cursor.adbc_ingest("mine", table)


def test_a_mistake_has_its_place(adbc):
    with adbc.cursor() as cursor, pytest.raises(adbc_driver_manager.Error, match="line 2, column 8"):
        cursor.execute("select 1,\n       no_such_column from risk.churn_score")


def test_a_password_is_explained(address):
    import adbc_driver_flightsql.dbapi

    options = {"username": "somebody", "password": "something"}
    with pytest.raises(adbc_driver_manager.Error, match="authorization: Bearer"):
        with adbc_driver_flightsql.dbapi.connect(f"grpc://{address}", db_kwargs=options, autocommit=True) as connection:
            connection.adbc_get_table_types()


def test_flight_and_adbc_promise_the_same_schema(adbc, flight):
    import pyarrow.flight

    through_flight = flight_table(flight, pyarrow.flight.FlightDescriptor.for_path("risk", "churn_score")).schema
    through_adbc = adbc.adbc_get_table_schema("churn_score", db_schema_filter="risk")
    assert through_adbc.names == through_flight.names
    assert through_adbc.types == through_flight.types
