"""The public ADBC validation suite (github.com/adbc-drivers/validation), asked of a running `holdfast serve`: see README.md."""


import adbc_driver_flightsql
import pytest

pytest.importorskip("adbc_drivers_validation", reason="see tests/adbc_validation/README.md")

from adbc_drivers_validation import model  # noqa: E402
from adbc_drivers_validation.tests.conftest import (  # noqa: E402, F401
    conn,
    conn_factory,
    db_kwargs,
    manual_test,
    noci,
    pytest_addoption,
)


class Holdfast(model.DriverQuirks):
    name = "holdfast"
    driver = "adbc_driver_flightsql"
    driver_name = "ADBC Flight SQL Driver - Go"
    vendor_name = "Holdfast"
    vendor_version = "0.1.0"
    short_version = "0.1"
    features = model.DriverFeatures(
        connection_get_table_schema=True,
        connection_set_current_catalog=True,
        connection_set_current_schema=True,
        connection_transactions=True,
        get_objects=True,
        statement_bind=True,
        statement_execute_schema=True,
        statement_get_parameter_schema=True,
        statement_prepare=True,
        current_catalog="holdfast",
        current_schema="core",
        secondary_schema="risk",
        supported_xdbc_fields=[],
        quirk_foundry=False,
    )
    setup = model.DriverSetup(
        database={"uri": model.FromEnv("HOLDFAST_FLIGHT", template="grpc://{}"), "adbc.flight.sql.rpc.with_cookie_middleware": "true"},
        connection={},
        statement={},
    )

    @property
    def queries_paths(self):
        return ()

    def bind_parameter(self, index):
        return f"${index}"

    def quote_one_identifier(self, identifier):
        return '"' + identifier.replace('"', '""') + '"'

    def is_table_not_found(self, table_name, error):
        return "not found" in str(error)

    def split_statement(self, statement):
        return [statement]


QUIRKS = [Holdfast()]

# What the suite asks that this service does not do, and why. Whatever else fails is a fault.
WRITES = "it begins with `create table` or `insert`, and SQL is read-only here: tables are what stages publish"
EXCEPTIONS = {
    "test_query[": lambda name: WRITES if "/literal/" not in name else EXCEPTIONS_OF_TYPES.get(name.split("/")[-1].rstrip("]")),
    "test_execute_schema[": lambda name: WRITES if "/literal/" not in name else EXCEPTIONS_OF_TYPES.get(name.split("/")[-1].rstrip("]")),
    "test_query_bind_dictionary": lambda name: WRITES,
    "test_get_table_schema": lambda name: WRITES,
    "test_get_objects_table_": lambda name: WRITES,
    "test_get_objects_column_": lambda name: WRITES,
    "test_execute_schema_noalias": lambda name: WRITES,
    "test_get_objects_constraint": lambda name: "tables of the lake declare no keys",
    "test_get_info[": lambda name: "the driver on PyPI does not say which version it is, and the suite wants it to",
    "test_repl": lambda name: "it is no test",
    "test_parameter_null_typed": lambda name: WRITES,
    "test_rows_affected": lambda name: WRITES,
    "test_nonascii": lambda name: WRITES,
}
EXCEPTIONS_OF_TYPES = {
    "time": "times of literals are of nanoseconds here, and the suite wants microseconds",
    "timestamp": "moments of literals are of nanoseconds here, and the suite wants microseconds; those of tables are of microseconds",
    "timestamptz": "as `timestamp`",
    "binary": "there is no function `from_hex`: it is called `decode(…, 'hex')`",
}


def pytest_collection_modifyitems(items):
    for item in items:
        for beginning, reason in EXCEPTIONS.items():
            why = reason(item.name) if item.name.startswith(beginning) else None
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def driver(request):
    name, _, _ = request.param.partition(":")
    return next(quirks for quirks in QUIRKS if quirks.name == name)


@pytest.fixture(scope="session")
def driver_path():
    return adbc_driver_flightsql._driver_path()
