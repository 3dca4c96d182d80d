"""psql and the drivers of PostgreSQL, as they come from Debian and PyPI, asking a `holdfast serve` that speaks PostgreSQL's protocol."""

import asyncio
import contextlib
import datetime
import decimal
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time

import asyncpg
import pandas
import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy

from conftest import environment

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
day = "date"
amount = "decimal(12,2)"
quantity = "int32"
weight = "float64"
paid = "boolean"
lines = "list<struct<sku string, quantity int32>>"
tags = "list<string>"
""",
    "sql/core/orders.sql": """-- One row an order.
-- @owner shop team
-- @tag money
-- @tag pii(buyer)
select
    order_id,                                     -- The shop's number
    ordered_at,                                   -- When it was placed
    day,                                          -- The shop's day
    amount,                                       -- Paid in all
    quantity,                                     -- Pieces
    weight,                                       -- In kilograms
    paid,                                         -- Whether it is settled
    lines,                                        -- What was bought
    tags,                                         -- Labels
    'b' || order_id as buyer                      -- Who bought
from raw.orders
""",
    "sql/features/numbers.sql": """-- Many rows.
select cast(n.value as bigint) as n, cast(n.value % 7 as int) as k, 'row ' || cast(n.value as varchar) as name
from unnest(range(0, 200000)) as n(value)
""",
}

ORDERS = [
    '{"order_id": "o1", "ordered_at": "2026-01-02T03:04:05.678Z", "day": "2026-01-02", "amount": "12.50", "quantity": 3,'
    ' "weight": 1.25, "paid": true, "lines": [{"sku": "a", "quantity": 1}], "tags": ["new", "a b"]}',
    '{"order_id": "o2", "ordered_at": "2026-01-03T00:00:00Z", "day": "2026-01-03", "amount": "-0.05", "quantity": -7,'
    ' "weight": 1e-7, "paid": false, "lines": [], "tags": []}',
    '{"order_id": "o3"}',
]
USER, PASSWORD = "ana", "correct horse"


class Service:
    """A `holdfast serve` on a lake of its own."""

    def __init__(self, folder, *options):
        self.folder, self.options = folder, options
        for path, text in FILES.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        (folder / "in/orders").mkdir(parents=True, exist_ok=True)
        (folder / "in/orders/1.ndjson").write_text("\n".join(ORDERS) + "\n")
        binary = pathlib.Path(environment("HOLDFAST_BIN")).resolve()
        self.command = [binary, "--project", folder, "--lake", folder / "lake"]
        if not (folder / "lake").exists():
            for arguments in (["ingest", "--from", folder / "in"], ["run"]):
                done = subprocess.run([*self.command, *arguments], capture_output=True, text=True)
                assert done.returncode == 0, done.stderr

    def __enter__(self):
        command = [*self.command, "serve", "--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0", *self.options]
        command += ["--reload-interval-ms", "100"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        said = ""
        for line in self.process.stderr:
            said += line
            if found := re.search(r"postgresql://([0-9.]+):(\d+)/", line):
                self.host, self.port = found.group(1), int(found.group(2))
                # Nobody reads what it says from here on: it must not wait for it.
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return self
        raise AssertionError(f"it did not start: {said}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0

    def dsn(self, user=USER, password=None, **more):
        pairs = {"host": self.host, "port": self.port, "dbname": "holdfast", "user": user, **more}
        if password:
            pairs["password"] = password
        return " ".join(f"{name}='{value}'" for name, value in pairs.items())

    def psycopg(self, **options):
        return psycopg.connect(self.dsn(), autocommit=True, **options)

    def psql(self, *commands, **environment):
        psql = shutil.which("psql")
        if psql is None:
            pytest.skip("there is no psql")
        arguments = [psql, "--no-psqlrc", "--set=ON_ERROR_STOP=1", self.dsn()]
        for command in commands:
            arguments += ["--command", command]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(tmp_path_factory.mktemp("wire")) as service:
        yield service


def said(service, *commands):
    done = service.psql(*commands)
    # Of empty lists psql says so where errors are said.
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr
    return done.stdout


# psql


def test_psql_lists_what_there_is(service):
    assert "holdfast" in said(service, "\\l")
    schemas = said(service, "\\dn")
    assert "core" in schemas and "features" in schemas
    tables = said(service, "\\dt")
    assert re.search(r"core\s+\|\s+orders\s+\|\s+table\s+\|\s+shop team", tables), tables
    assert "numbers" in said(service, "\\dt features.*")
    assert "orders" in said(service, "\\d")
    for command in ("\\dv", "\\di", "\\ds", "\\df", "\\du", "\\dT", "\\dp", "\\dx", "\\conninfo", "\\encoding", "\\dt+", "\\l+", "\\dn+"):
        said(service, command)


def test_psql_describes_a_table(service):
    plain = said(service, "\\d orders")
    for column in ("order_id *\\| text", "ordered_at *\\| timestamp with time zone", "amount *\\| numeric\\(12,2\\)", "tags *\\| text\\[\\]"):
        assert re.search(column, plain), plain
    more = said(service, "\\d+ core.orders")
    assert "The shop's number" in more and "[personal data]" in more
    assert "One row an order. [money]" in said(service, "\\dt+ orders")
    assert "Did not find any relation" in service.psql("\\d nothing").stderr


def test_psql_asks_and_is_told_where_a_mistake_is(service):
    assert "(3 rows)" in said(service, "select order_id from orders order by 1")
    assert said(service, "\\copy (select order_id, amount from orders order by 1) to stdout with csv header") == (
        "order_id,amount\no1,12.50\no2,-0.05\no3,\n"
    )
    wrong = service.psql("\\set VERBOSITY verbose", "select order_id,\n  nonsense from orders").stderr
    assert "42703" in wrong and "LINE 2" in wrong, wrong
    assert "42P01" in service.psql("\\set VERBOSITY verbose", "select 1 from ordres").stderr
    assert "42601" in service.psql("\\set VERBOSITY verbose", "select 1 +").stderr
    assert "25006" in service.psql("\\set VERBOSITY verbose", "delete from orders").stderr


# psycopg


def test_psycopg_gets_every_type_in_text_and_in_binary(service):
    for binary in (False, True):
        with service.psycopg() as connection, connection.cursor(binary=binary) as cursor:
            cursor.execute(
                "select order_id, ordered_at, day, amount, quantity, weight, paid, lines, tags from core.orders order by 1"
            )
            rows = cursor.fetchall()
            utc = datetime.timezone.utc
            assert rows[0] == (
                "o1",
                datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, utc),
                datetime.date(2026, 1, 2),
                decimal.Decimal("12.50"),
                3,
                1.25,
                True,
                [{"sku": "a", "quantity": 1}],
                ["new", "a b"],
            ), binary
            assert rows[1][3:] == (decimal.Decimal("-0.05"), -7, 1e-7, False, [], []), binary
            assert rows[2][1:] == (None,) * 8
            cursor.execute("select '\\x00ff'::bytea, interval '1 day 2 hours', 1::int2, 1.5::float4, null, 'x'::name")
            assert cursor.fetchone() == (b"\0\xff", datetime.timedelta(days=1, hours=2), 1, 1.5, None, "x")


def test_psycopg_sends_parameters_of_every_type(service):
    with service.psycopg() as connection:
        asked = "select order_id from orders where {} order by 1"
        for condition, value, expected in [
            ("order_id = %s", "o1", ["o1"]),
            ("quantity > %s", 2, ["o1"]),
            ("amount = %s", decimal.Decimal("12.50"), ["o1"]),
            ("amount < %s", decimal.Decimal("-0.049"), ["o2"]),
            ("weight >= %s", 1.25, ["o1"]),
            ("paid = %s", False, ["o2"]),
            ("day = %s", datetime.date(2026, 1, 3), ["o2"]),
            ("ordered_at < %s", datetime.datetime(2026, 1, 3, tzinfo=datetime.timezone.utc), ["o1"]),
            ("order_id = any(%s)", ["o1", "o3"], ["o1", "o3"]),
            ("quantity = any(%s)", [3, -7], ["o1", "o2"]),
            ("order_id like %s", "o%", ["o1", "o2", "o3"]),
            ("order_id = %b", "o1", ["o1"]),
            ("day = %b", datetime.date(2026, 1, 3), ["o2"]),
            ("amount = %b", decimal.Decimal("-0.05"), ["o2"]),
            ("quantity = any(%b)", [3], ["o1"]),
        ]:
            rows = connection.execute(asked.format(condition), [value]).fetchall()
            assert [row[0] for row in rows] == expected, condition
        assert connection.execute("select %s::int8 + 1", [41]).fetchone() == (42,)
        assert connection.execute("select n from features.numbers order by n limit %s offset %s", [2, 5]).fetchall() == [(5,), (6,)]
        injected = "'; drop table orders; --"
        assert connection.execute("select %s::text", [injected]).fetchone() == (injected,)
        for _ in range(8):
            # Prepared from the sixth on.
            assert connection.execute("select count(*) from orders where quantity > %s", [-100]).fetchone() == (2,)


def test_psycopg_reads_through_a_cursor_of_the_server(service):
    with psycopg.connect(service.dsn()) as connection:
        with connection.cursor(name="many") as cursor:
            cursor.itersize = 1000
            cursor.execute("select n from features.numbers order by n")
            assert [row[0] for row in cursor.fetchmany(3)] == [0, 1, 2]
            assert sum(1 for _ in cursor) == 199_997
        with connection.cursor() as cursor:
            cursor.execute("declare c cursor for select n from features.numbers order by n")
            cursor.execute("move 10 in c")
            assert cursor.execute("fetch forward 2 from c").fetchall() == [(10,), (11,)]
            cursor.execute("close c")
            with pytest.raises(psycopg.errors.InvalidCursorName):
                cursor.execute("fetch 1 from c")


def test_psycopg_copies_out(service):
    with service.psycopg() as connection, connection.cursor() as cursor:
        with cursor.copy("copy (select order_id, amount, tags from orders order by 1) to stdout") as copy:
            assert list(copy.rows()) == [("o1", "12.50", '{new,"a b"}'), ("o2", "-0.05", "{}"), ("o3", None, None)]
        with cursor.copy("copy (select n, name from features.numbers) to stdout (format binary)") as copy:
            copy.set_types(["int8", "text"])
            rows = list(copy.rows())
        assert len(rows) == 200_000 and (7, "row 7") in rows
        with cursor.copy("copy orders (order_id) to stdout csv header") as copy:
            assert b"".join(copy) in (b"order_id\no1\no2\no3\n",)


def test_transactions_fail_as_they_do_elsewhere(service):
    with psycopg.connect(service.dsn()) as connection:
        with pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute("select nonsense from orders")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("select 1")
        connection.rollback()
        with connection.transaction():
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                with connection.transaction():
                    connection.execute("insert into core.orders (order_id) values ('x')")
            assert connection.execute("select 1").fetchone() == (1,)
    with service.psycopg() as connection:
        for sql in (
            "create table x (a int)",
            "copy orders from stdin",
            "create external table x stored as csv location '/etc/passwd'",
            "copy (select 1) to 'x'",
            "select * from '/etc/passwd'",
            "set datafusion.execution.batch_size = 1; select * from read_csv('/etc/passwd')",
        ):
            with pytest.raises(psycopg.Error):
                connection.execute(sql)
        assert connection.execute("select count(*) from orders").fetchone() == (3,)


def test_pipelines_are_answered_in_order(service):
    with service.psycopg() as connection:
        with connection.pipeline():
            cursors = [connection.execute("select %s::int4", [number]) for number in range(200)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(200))


def test_psycopg2_reads_and_copies(service, tmp_path):
    connection = psycopg2.connect(service.dsn())
    with connection, connection.cursor(cursor_factory=psycopg2.extras.DictCursor) as cursor:
        cursor.execute("select order_id, amount, count(*) from orders where order_id in %s group by 1, 2 order by 1", (("o1", "o2"),))
        rows = cursor.fetchall()
        assert [(row["order_id"], row["amount"], row["count"]) for row in rows] == [
            ("o1", decimal.Decimal("12.50"), 1),
            ("o2", decimal.Decimal("-0.05"), 1),
        ]
        with (tmp_path / "out").open("w") as out:
            cursor.copy_expert("copy (select order_id from orders order by 1) to stdout with csv", out)
        assert (tmp_path / "out").read_text() == "o1\no2\no3\n"
    with connection, connection.cursor(name="named") as cursor:
        cursor.execute("select n from features.numbers")
        assert len(cursor.fetchmany(10)) == 10
    connection.close()


# asyncpg


def test_asyncpg_with_its_introspection(service):
    async def ask():
        connection = await asyncpg.connect(host=service.host, port=service.port, user=USER, database="holdfast")
        rows = await connection.fetch("select order_id, amount, tags, ordered_at from orders where quantity > $1 order by 1", 0)
        assert [tuple(row) for row in rows] == [
            ("o1", decimal.Decimal("12.50"), ["new", "a b"], datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, datetime.timezone.utc))
        ]
        found = await connection.fetch("select order_id from orders where order_id = any($1) order by 1", ["o1", "o3"])
        assert [row[0] for row in found] == ["o1", "o3"]
        assert await connection.fetchval("select amount from orders where amount < $1", decimal.Decimal("0.001")) == decimal.Decimal("-0.05")
        await connection.set_type_codec("json", encoder=str, decoder=lambda text: text, schema="pg_catalog")
        assert "sku" in await connection.fetchval("select lines from orders where order_id = $1", "o1")
        async with connection.transaction():
            seen = 0
            async for _ in connection.cursor("select n from features.numbers", prefetch=500):
                seen += 1
            assert seen == 200_000
        types = await connection.fetch(INTROSPECTION, [1009, 114])
        assert {row["name"] for row in types} >= {"_text", "json", "text"}
        await connection.reset()
        await connection.close()

    asyncio.run(ask())


INTROSPECTION = """
with recursive typeinfo_tree(oid, ns, name, kind, elemtype) as (
    select ti.oid, ns.nspname, ti.typname, ti.typtype, ti.typelem
    from pg_catalog.pg_type ti join pg_catalog.pg_namespace ns on ns.oid = ti.typnamespace
    where ti.oid = any($1::oid[])
    union all
    select ti.oid, ns.nspname, ti.typname, ti.typtype, ti.typelem
    from pg_catalog.pg_type ti join pg_catalog.pg_namespace ns on ns.oid = ti.typnamespace
    join typeinfo_tree tt on ti.oid = tt.elemtype
)
select distinct oid, ns, name, kind, elemtype from typeinfo_tree order by oid
"""


# SQLAlchemy, pandas, ADBC


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_sqlalchemy_reflects_and_queries(service, driver):
    engine = sqlalchemy.create_engine(f"postgresql+{driver}://{USER}@{service.host}:{service.port}/holdfast")
    inspector = sqlalchemy.inspect(engine)
    assert inspector.default_schema_name == "core"
    assert {"core", "features"} <= set(inspector.get_schema_names())
    assert inspector.get_table_names() == ["orders"] and inspector.get_table_names("features") == ["numbers"]
    assert inspector.get_view_names() == []
    assert inspector.has_table("orders") and not inspector.has_table("nothing")
    columns = {column["name"]: column for column in inspector.get_columns("orders")}
    assert str(columns["amount"]["type"]) == "NUMERIC(12, 2)" and columns["order_id"]["comment"] == "The shop's number"
    assert isinstance(columns["ordered_at"]["type"], sqlalchemy.TIMESTAMP) and columns["ordered_at"]["type"].timezone
    assert inspector.get_table_comment("orders")["text"] == "One row an order. [money]"
    assert inspector.get_pk_constraint("orders")["constrained_columns"] == []
    assert inspector.get_foreign_keys("orders") == [] and inspector.get_indexes("orders") == []
    assert inspector.get_unique_constraints("orders") == [] and inspector.get_check_constraints("orders") == []
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine, schema="core")
    orders = metadata.tables["core.orders"]
    with engine.connect() as connection:
        query = sqlalchemy.select(orders.c.order_id, sqlalchemy.func.sum(orders.c.amount)).where(orders.c.quantity > 0)
        assert connection.execute(query.group_by(orders.c.order_id)).all() == [("o1", decimal.Decimal("12.50"))]
        frame = pandas.read_sql("select n, k, name from core.orders cross join features.numbers where order_id = 'o1'", connection)
        assert len(frame) == 200_000 and frame["n"].sum() == 199_999 * 100_000
        assert pandas.read_sql_table("orders", connection, schema="core").shape == (3, 10)
    engine.dispose()


def test_adbc_reads_arrow(service):
    dbapi = pytest.importorskip("adbc_driver_postgresql.dbapi")
    with dbapi.connect(f"postgresql://{USER}@{service.host}:{service.port}/holdfast") as connection:
        with connection.cursor() as cursor:
            cursor.execute("select n, k, name from features.numbers")
            table = cursor.fetch_arrow_table()
            assert table.num_rows == 200_000 and sum(table["n"].to_pylist()) == 199_999 * 100_000
            cursor.execute("select order_id, amount, tags, ordered_at from orders where quantity > $1", (0,))
            assert cursor.fetch_arrow_table().num_rows == 1
        assert "features" in str(connection.adbc_get_objects(depth="tables").read_all().to_pylist())


# What tools send when they connect


TOOLS = {
    "grafana": [
        "SELECT current_setting('server_version_num')::int/100",
        """SELECT quote_ident(table_name) FROM information_schema.tables
           WHERE quote_ident(table_schema) NOT IN ('information_schema', 'pg_catalog') ORDER BY 1""",
        """SELECT CASE WHEN quote_ident(table_schema) IN (
             SELECT CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
             FROM generate_series(
               array_lower(string_to_array(current_setting('search_path'),','),1),
               array_upper(string_to_array(current_setting('search_path'),','),1)
             ) as i, string_to_array(current_setting('search_path'),',') s
           ) THEN quote_ident(table_name) ELSE quote_ident(table_schema) || '.' || quote_ident(table_name) END AS "table"
           FROM information_schema.tables WHERE quote_ident(table_schema) NOT IN ('information_schema', 'pg_catalog')""",
        """SELECT quote_ident(column_name) AS "column", data_type AS "type" FROM information_schema.columns
           WHERE CASE WHEN array_length(parse_ident('core.orders'),1) = 2
             THEN quote_ident(table_schema) = (parse_ident('core.orders'))[1] AND quote_ident(table_name) = (parse_ident('core.orders'))[2]
             ELSE quote_ident(table_name) = 'core.orders' END""",
        "SELECT floor(extract(epoch from ordered_at)/86400)*86400 AS time, sum(amount) FROM core.orders GROUP BY 1 ORDER BY 1",
    ],
    "metabase": [
        "SET extra_float_digits = 3",
        "SET application_name = 'Metabase'",
        "SHOW TRANSACTION ISOLATION LEVEL",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
        """SELECT nspname AS "TABLE_SCHEM", current_database() AS "TABLE_CATALOG" FROM pg_catalog.pg_namespace
           WHERE nspname <> 'pg_toast' AND (nspname !~ '^pg_temp_' OR nspname = (pg_catalog.current_schemas(true))[1])
           AND (nspname !~ '^pg_toast_temp_' OR nspname = replace((pg_catalog.current_schemas(true))[1], 'pg_temp_', 'pg_toast_temp_'))
           ORDER BY "TABLE_SCHEM" """,
        """with table_privileges as (
             select NULL as role, t.schemaname as schema, t.objectname as table,
               pg_catalog.has_any_column_privilege(current_user, '"' || replace(t.schemaname, '"', '""') || '"."' || t.objectname || '"', 'select') as select,
               pg_catalog.has_table_privilege(current_user, '"' || replace(t.schemaname, '"', '""') || '"."' || t.objectname || '"', 'delete') as delete
             from (select schemaname, tablename as objectname from pg_catalog.pg_tables union
                   select schemaname, viewname as objectname from pg_catalog.pg_views union
                   select schemaname, matviewname as objectname from pg_catalog.pg_matviews) t
             where t.schemaname !~ '^pg_' and t.schemaname <> 'information_schema'
               and pg_catalog.has_schema_privilege(current_user, t.schemaname, 'usage'))
           select t.* from table_privileges t""",
        """SELECT "n"."nspname" AS "schema", "c"."relname" AS "name",
             CASE "c"."relkind" WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' ELSE NULL END AS "type",
             "d"."description" AS "description", "stat"."n_live_tup" AS "estimated_row_count"
           FROM "pg_catalog"."pg_class" AS "c" INNER JOIN "pg_catalog"."pg_namespace" AS "n" ON "c"."relnamespace" = "n"."oid"
           LEFT JOIN "pg_catalog"."pg_description" AS "d" ON ("c"."oid" = "d"."objoid") AND ("d"."objsubid" = '0')
             AND ("d"."classoid" = 'pg_class'::regclass)
           LEFT JOIN "pg_stat_user_tables" AS "stat" ON ("n"."nspname" = "stat"."schemaname") AND ("c"."relname" = "stat"."relname")
           WHERE ("n"."nspname" !~ '^pg_') AND c.relkind in ('r', 'p', 'v', 'f', 'm') ORDER BY "type" ASC, "schema" ASC, "name" ASC""",
    ],
    "dbeaver": [
        "SET extra_float_digits = 3",
        "SELECT current_schema(),session_user",
        """SELECT n.oid,n.*,d.description FROM pg_catalog.pg_namespace n LEFT OUTER JOIN pg_catalog.pg_description d
           ON d.objoid=n.oid AND d.objsubid=0 AND d.classoid='pg_namespace'::regclass ORDER BY nspname""",
        "SELECT n.nspname = ANY(current_schemas(true)), n.nspname, t.typname FROM pg_catalog.pg_type t"
        " JOIN pg_catalog.pg_namespace n ON t.typnamespace = n.oid WHERE t.oid = 1009",
        """SELECT typinput='pg_catalog.array_in'::regproc as is_array, typtype, typname, pg_type.oid FROM pg_catalog.pg_type
           LEFT JOIN (select ns.oid as nspoid, ns.nspname, r.r from pg_namespace as ns
             join (select s.r, (current_schemas(false))[s.r] as nspname from generate_series(1, array_upper(current_schemas(false), 1)) as s(r)) as r
             using (nspname)) as sp ON sp.nspoid = typnamespace
           WHERE pg_type.oid = 1009 ORDER BY sp.r, pg_type.oid DESC""",
        "SHOW search_path",
        "SELECT db.oid,db.* FROM pg_catalog.pg_database db WHERE datname='holdfast'",
        "SELECT * FROM pg_catalog.pg_settings where name='standard_conforming_strings'",
        "SELECT string_agg(word, ',') from pg_catalog.pg_get_keywords() where word <> ALL ('{a,abs,absolute}'::text[])",
        "SELECT version()",
        "SELECT * FROM pg_catalog.pg_enum WHERE 1<>1 LIMIT 1",
        """SELECT t.oid,t.*,c.relkind,format_type(nullif(t.typbasetype, 0), t.typtypmod) as base_type_name, d.description
           FROM pg_catalog.pg_type t LEFT OUTER JOIN pg_catalog.pg_type et ON et.oid=t.typelem
           LEFT OUTER JOIN pg_catalog.pg_class c ON c.oid=t.typrelid LEFT OUTER JOIN pg_catalog.pg_description d ON t.oid=d.objoid
           WHERE t.typname IS NOT NULL AND (c.relkind IS NULL OR c.relkind = 'c') AND (et.typcategory IS NULL OR et.typcategory <> 'C')""",
        """SELECT c.oid,c.*,d.description,pg_catalog.pg_get_expr(c.relpartbound, c.oid) as partition_expr, pg_catalog.pg_get_partkeydef(c.oid) as partition_key
           FROM pg_catalog.pg_class c LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid=c.oid AND d.objsubid=0 AND d.classoid='pg_class'::regclass
           WHERE c.relnamespace=(select oid from pg_namespace where nspname = 'core') AND c.relkind not in ('i','I','c')""",
        """SELECT c.relname,a.*,pg_catalog.pg_get_expr(ad.adbin, ad.adrelid, true) as def_value,dsc.description,dep.objid
           FROM pg_catalog.pg_attribute a INNER JOIN pg_catalog.pg_class c ON (a.attrelid=c.oid)
           LEFT OUTER JOIN pg_catalog.pg_attrdef ad ON (a.attrelid=ad.adrelid AND a.attnum = ad.adnum)
           LEFT OUTER JOIN pg_catalog.pg_description dsc ON (c.oid=dsc.objoid AND a.attnum = dsc.objsubid)
           LEFT OUTER JOIN pg_depend dep on dep.refobjid = a.attrelid AND dep.deptype = 'i' and dep.refobjsubid = a.attnum and dep.classid = dep.refclassid
           WHERE NOT a.attisdropped AND c.relkind not in ('i','I','c') ORDER BY a.attnum""",
        """SELECT i.*,i.indkey as keys,c.relname,c.relnamespace,dsc.description,pg_catalog.pg_get_expr(i.indpred, i.indrelid) as pred_expr,
             pg_catalog.pg_relation_size(i.indexrelid) as index_rel_size,pg_catalog.pg_stat_get_numscans(i.indexrelid) as index_num_scans
           FROM pg_catalog.pg_index i INNER JOIN pg_catalog.pg_class c ON c.oid=i.indexrelid
           LEFT OUTER JOIN pg_catalog.pg_description dsc ON i.indexrelid=dsc.objoid WHERE i.indrelid=1 ORDER BY c.relname""",
    ],
    "power bi": [
        "DISCARD ALL",
        """SELECT ns.nspname, t.oid, t.typname, t.typtype, t.typnotnull, t.elemtypoid
           FROM (
             SELECT typ.oid, typ.typnamespace, typ.typname, typ.typtype, typ.typrelid, typ.typnotnull, typ.relkind, elemtyp.oid AS elemtypoid,
               elemtyp.typname AS elemtypname, elemcls.relkind AS elemrelkind,
               CASE WHEN elemproc.proname='array_recv' THEN 'a' ELSE elemtyp.typtype END AS elemtyptype, typ.typcategory
             FROM (SELECT typ.oid, typnamespace, typname, typrelid, typnotnull, relkind, typelem AS elemoid, typcategory,
                     CASE WHEN proc.proname='array_recv' THEN 'a' ELSE typ.typtype END AS typtype
                   FROM pg_type AS typ LEFT JOIN pg_class AS cls ON (cls.oid = typ.typrelid)
                   LEFT JOIN pg_proc AS proc ON proc.proname = typ.typreceive) AS typ
             LEFT JOIN pg_type AS elemtyp ON elemtyp.oid = elemoid
             LEFT JOIN pg_class AS elemcls ON (elemcls.oid = elemtyp.typrelid)
             LEFT JOIN pg_proc AS elemproc ON elemproc.proname = elemtyp.typreceive
           ) AS t JOIN pg_namespace AS ns ON (ns.oid = typnamespace)
           WHERE typtype IN ('b', 'r', 'm', 'e', 'd') OR (typtype = 'c' AND relkind='c') OR (typtype = 'p' AND typname IN ('record', 'void', 'unknown'))
           ORDER BY CASE WHEN typtype IN ('b', 'e', 'p') THEN 0 WHEN typtype = 'c' THEN 1 ELSE 2 END""",
        "select character_set_name from INFORMATION_SCHEMA.character_sets",
        """select TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE from INFORMATION_SCHEMA.tables
           where TABLE_SCHEMA not in ('information_schema', 'pg_catalog') order by TABLE_SCHEMA, TABLE_NAME""",
        """select COLUMN_NAME, ORDINAL_POSITION, IS_NULLABLE, case when (data_type like '%unsigned%') then DATA_TYPE || ' unsigned' else DATA_TYPE end as DATA_TYPE
           from INFORMATION_SCHEMA.columns where TABLE_SCHEMA = 'core' and TABLE_NAME = 'orders' order by TABLE_SCHEMA, TABLE_NAME, ORDINAL_POSITION""",
        """select pkcol.COLUMN_NAME as PK_COLUMN_NAME, fkcol.TABLE_SCHEMA AS FK_TABLE_SCHEMA, fkcol.TABLE_NAME AS FK_TABLE_NAME, fkcol.COLUMN_NAME as FK_COLUMN_NAME,
             fkcol.ORDINAL_POSITION as ORDINAL, fkcon.CONSTRAINT_SCHEMA || '_' || fkcol.TABLE_NAME || '_' || fkcon.CONSTRAINT_NAME as FK_NAME
           from (select distinct constraint_catalog, constraint_schema, unique_constraint_schema, constraint_name, unique_constraint_name
                 from INFORMATION_SCHEMA.REFERENTIAL_CONSTRAINTS) fkcon
           inner join INFORMATION_SCHEMA.KEY_COLUMN_USAGE fkcol on fkcon.CONSTRAINT_SCHEMA = fkcol.CONSTRAINT_SCHEMA and fkcon.CONSTRAINT_NAME = fkcol.CONSTRAINT_NAME
           inner join INFORMATION_SCHEMA.KEY_COLUMN_USAGE pkcol on fkcon.UNIQUE_CONSTRAINT_NAME = pkcol.CONSTRAINT_NAME
           where pkcol.TABLE_SCHEMA = 'core' and pkcol.TABLE_NAME = 'orders' and pkcol.ORDINAL_POSITION = fkcol.ORDINAL_POSITION
           order by FK_NAME, fkcol.ORDINAL_POSITION""",
        """select i.CONSTRAINT_SCHEMA || '_' || i.CONSTRAINT_NAME as INDEX_NAME, ii.COLUMN_NAME, ii.ORDINAL_POSITION,
             case when i.CONSTRAINT_TYPE = 'PRIMARY KEY' then 'Y' else 'N' end as PRIMARY_KEY
           from INFORMATION_SCHEMA.table_constraints i inner join INFORMATION_SCHEMA.key_column_usage ii on i.CONSTRAINT_SCHEMA = ii.CONSTRAINT_SCHEMA
             and i.CONSTRAINT_NAME = ii.CONSTRAINT_NAME and i.TABLE_SCHEMA = ii.TABLE_SCHEMA and i.TABLE_NAME = ii.TABLE_NAME
           where i.TABLE_SCHEMA = 'core' and i.TABLE_NAME = 'orders' and i.CONSTRAINT_TYPE in ('PRIMARY KEY', 'UNIQUE')
           order by i.CONSTRAINT_SCHEMA || '_' || i.CONSTRAINT_NAME, ii.TABLE_SCHEMA, ii.TABLE_NAME, ii.ORDINAL_POSITION""",
        'select "$Ordered"."order_id", "$Ordered"."amount" from (select "_"."order_id", "_"."amount" from "core"."orders" "_") "$Ordered" order by "$Ordered"."order_id" limit 1000',
    ],
    "jdbc": [
        """SELECT NULL AS TABLE_CAT, n.nspname AS TABLE_SCHEM, c.relname AS TABLE_NAME,
             CASE n.nspname ~ '^pg_' OR n.nspname = 'information_schema'
               WHEN true THEN CASE WHEN n.nspname = 'pg_catalog' THEN CASE c.relkind WHEN 'r' THEN 'SYSTEM TABLE' ELSE NULL END ELSE NULL END
               WHEN false THEN CASE c.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' ELSE NULL END ELSE NULL END AS TABLE_TYPE,
             d.description AS REMARKS, '' as TYPE_CAT, '' as TYPE_SCHEM
           FROM pg_catalog.pg_namespace n, pg_catalog.pg_class c
           LEFT JOIN pg_catalog.pg_description d ON (c.oid = d.objoid AND d.objsubid = 0 and d.classoid = 'pg_class'::regclass)
           WHERE c.relnamespace = n.oid AND n.nspname LIKE 'core' AND (false OR (c.relkind = 'r' AND n.nspname !~ '^pg_'))
           ORDER BY TABLE_TYPE,TABLE_SCHEM,TABLE_NAME""",
        """SELECT * FROM (SELECT current_database() AS current_database, n.nspname,c.relname,a.attname,a.atttypid,a.attnotnull OR (t.typtype = 'd' AND t.typnotnull) AS attnotnull,
             a.atttypmod,a.attlen,t.typtypmod,row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum) AS attnum, nullif(a.attidentity, '') as attidentity,
             pg_catalog.pg_get_expr(def.adbin, def.adrelid) AS adsrc,dsc.description,t.typbasetype,t.typtype
           FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON (c.relnamespace = n.oid) JOIN pg_catalog.pg_attribute a ON (a.attrelid=c.oid)
           JOIN pg_catalog.pg_type t ON (a.atttypid = t.oid) LEFT JOIN pg_catalog.pg_attrdef def ON (a.attrelid=def.adrelid AND a.attnum = def.adnum)
           LEFT JOIN pg_catalog.pg_description dsc ON (c.oid=dsc.objoid AND a.attnum = dsc.objsubid)
           LEFT JOIN pg_catalog.pg_class dc ON (dc.oid=dsc.classoid AND dc.relname='pg_class')
           LEFT JOIN pg_catalog.pg_namespace dn ON (dc.relnamespace=dn.oid AND dn.nspname='pg_catalog')
           WHERE c.relkind in ('r','p','v','f','m') and a.attnum > 0 AND NOT a.attisdropped AND n.nspname LIKE 'core') c
           WHERE true ORDER BY nspname,c.relname,attnum""",
        """SELECT result.TABLE_CAT, result.TABLE_SCHEM, result.TABLE_NAME, result.COLUMN_NAME, result.KEY_SEQ, result.PK_NAME
           FROM (SELECT NULL AS TABLE_CAT, n.nspname AS TABLE_SCHEM, ct.relname AS TABLE_NAME, a.attname AS COLUMN_NAME,
                   (information_schema._pg_expandarray(i.indkey)).n AS KEY_SEQ, ci.relname AS PK_NAME, information_schema._pg_expandarray(i.indkey) AS KEYS, a.attnum AS A_ATTNUM
                 FROM pg_catalog.pg_class ct JOIN pg_catalog.pg_attribute a ON (ct.oid = a.attrelid) JOIN pg_catalog.pg_namespace n ON (ct.relnamespace = n.oid)
                 JOIN pg_catalog.pg_index i ON (a.attrelid = i.indrelid) JOIN pg_catalog.pg_class ci ON (ci.oid = i.indexrelid)
                 WHERE true AND i.indisprimary) result
           where result.A_ATTNUM = (result.KEYS).x ORDER BY result.table_name, result.pk_name, result.key_seq""",
    ],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_what_tools_send_at_their_start_is_answered(service, tool):
    failed = []
    with service.psycopg() as connection:
        for query in TOOLS[tool]:
            try:
                connection.execute(query.encode(), prepare=False)
            except psycopg.Error as error:
                failed.append(f"{query}\n    {error}")
    assert not failed, "\n".join(failed)


def test_tools_find_tables_and_columns(service):
    with service.psycopg() as connection:
        found = connection.execute(TOOLS["jdbc"][0].encode()).fetchall()
        assert [(row[1], row[2], row[3], row[4]) for row in found] == [("core", "orders", "TABLE", "One row an order. [money]")]
        columns = connection.execute(TOOLS["jdbc"][1].encode()).fetchall()
        assert [row[3] for row in columns][:3] == ["order_id", "ordered_at", "day"]
        assert connection.execute(TOOLS["jdbc"][2].encode()).fetchall() == []
        bi = connection.execute(TOOLS["power bi"][4].encode()).fetchall()
        assert bi[0][:2] == ("order_id", 1) and len(bi) == 10
        grafana = connection.execute(TOOLS["grafana"][2].encode()).fetchall()
        assert {row[0] for row in grafana} >= {"orders", "features.numbers"}


# Sessions


def test_a_session_keeps_its_run_until_it_asks_for_another(tmp_path):
    with Service(tmp_path / "runs") as service, service.psycopg() as old:
        (first,) = old.execute("show holdfast.run").fetchone()
        assert old.execute("select count(*) from orders").fetchone() == (3,)
        (service.folder / "in/orders/2.ndjson").write_text('{"order_id": "o4"}\n')
        for arguments in (["ingest", "--from", service.folder / "in"], ["run"]):
            subprocess.run([*service.command, *arguments], check=True, capture_output=True)
        assert old.execute("select count(*) from orders").fetchone() == (3,)
        with service.psycopg() as new:
            assert new.execute("select count(*) from orders").fetchone() == (4,)
            # Both runs in one statement.
            both = f"select o.order_id from orders o left join as_of('orders', {first}) b on b.order_id = o.order_id where b.order_id is null"
            assert new.execute(both).fetchall() == [("o4",)]
            with pytest.raises(psycopg.Error, match="no published run 999"):
                new.execute("select * from as_of('core.orders', 999)")
            new.execute(f"set holdfast.run = {first}")
            assert new.execute("select count(*) from orders").fetchone() == (3,)
        old.execute("set holdfast.run = 'latest'")
        assert old.execute("select count(*) from orders").fetchone() == (4,)
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="no published run 999"):
            old.execute("set holdfast.run = 999")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="no published run is of"):
            old.execute("set holdfast.as_of = '2001-01-01'")
        old.execute("set holdfast.as_of = '2999-01-01'")
        assert old.execute("select count(*) from orders").fetchone() == (4,)
        with psycopg.connect(service.dsn(options=f"-c holdfast.run={first}")) as pinned:
            assert pinned.execute("select count(*) from orders").fetchone() == (3,)


def test_settings_are_a_sessions_own(service):
    with service.psycopg() as one, service.psycopg() as other:
        one.execute("set search_path = features")
        assert one.execute("select count(*) from numbers").fetchone() == (200_000,)
        assert one.execute("select current_schema").fetchone() == ("features",)
        with pytest.raises(psycopg.errors.UndefinedTable):
            other.execute("select count(*) from numbers")
        one.execute("discard all")
        with pytest.raises(psycopg.errors.UndefinedTable):
            one.execute("select count(*) from numbers")
        with pytest.raises(psycopg.errors.UndefinedObject):
            one.execute("set nonsense = 1")
        assert one.info.parameter_status("server_version") == "15.0"


SLOW = "select count(*) from features.numbers a, features.numbers b, features.numbers c where (a.n * b.n + c.n) % 7 = 3"


def test_statements_end_when_they_take_too_long(service):
    with service.psycopg() as connection:
        connection.execute("set statement_timeout = '300ms'")
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
            connection.execute(SLOW)
        assert time.monotonic() - began < 3
        # Also when it is the client that is slow: rows wait for it.
        connection.execute("set statement_timeout = 0")
        assert connection.execute("select 1").fetchone() == (1,)


def test_statements_are_cancelled(service):
    with service.psycopg() as connection:
        threading.Timer(0.5, connection.cancel).start()
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled, match="user request"):
            connection.execute(SLOW)
        assert time.monotonic() - began < 3
        assert connection.execute("select 1").fetchone() == (1,)


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_who_leaves_has_the_query_stopped(service):
    connection = service.psycopg()
    raw = socket.socket(fileno=os.dup(connection.fileno()))
    connection.pgconn.send_query(SLOW.encode())
    time.sleep(0.7)
    connection.close()
    raw.shutdown(socket.SHUT_RDWR)
    raw.close()
    time.sleep(1)
    before = cpu_seconds(service.process.pid)
    time.sleep(1)
    assert cpu_seconds(service.process.pid) - before < 0.5


def test_rows_wait_for_a_slow_reader(service):
    """The server holds a part of a large answer, not all of it."""
    pages = lambda: int(pathlib.Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]) * 4096
    with service.psycopg() as other:
        other.execute("select count(*) from features.numbers")
    connection = service.psycopg()
    before = pages()
    connection.pgconn.send_query(b"select a.n, a.name, b.name from features.numbers a, features.numbers b")
    time.sleep(2)
    assert pages() - before < 400 << 20
    connection.close()


# Who comes in


def self_signed(folder):
    """A certificate for 127.0.0.1 and its key in three forms."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl")
    run = lambda *arguments: subprocess.run([openssl, *arguments], check=True, capture_output=True, cwd=folder)
    subject = ["-x509", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    run("genrsa", "-traditional", "-out", "pkcs1.key", "2048")
    run("req", *subject, "-key", "pkcs1.key", "-out", "rsa.crt")
    run("pkcs8", "-topk8", "-nocrypt", "-in", "pkcs1.key", "-out", "pkcs8.key")
    run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sec1.key")
    run("req", *subject, "-key", "sec1.key", "-out", "ec.crt")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, service):
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copytree(service.folder, folder, dirs_exist_ok=True)
    self_signed(folder)
    command = [*service.command, "access", "user", "add", USER, "--users", folder / "users.toml"]
    subprocess.run(command, input=PASSWORD + "\n", check=True, capture_output=True, text=True)
    kept = (folder / "users.toml").read_text()
    assert PASSWORD not in kept and re.search(r"SCRAM-SHA-256\$4096:[^$]+\$[^:]+:[^:]+", kept)
    options = ["--users", folder / "users.toml", "--tls-certificate", folder / "rsa.crt", "--tls-key", folder / "pkcs8.key"]
    with Service(folder, *options) as guarded:
        yield guarded


def test_users_come_in_with_their_password_over_tls(guarded):
    trusted = {"sslmode": "verify-full", "sslrootcert": guarded.folder / "rsa.crt"}
    with psycopg.connect(guarded.dsn(password=PASSWORD, **trusted)) as connection:
        assert connection.execute("select current_user, session_user").fetchone() == (USER, USER)
    psycopg2.connect(guarded.dsn(password=PASSWORD, **trusted)).close()

    async def ask():
        context = ssl.create_default_context(cafile=guarded.folder / "rsa.crt")
        # Who begins with TLS has to say what for.
        context.set_alpn_protocols(["postgresql"])
        options = {"host": guarded.host, "port": guarded.port, "user": USER, "database": "holdfast", "ssl": context}
        connection = await asyncpg.connect(password=PASSWORD, **options)
        assert await connection.fetchval("select 1") == 1
        await connection.close()
        for direct in (False, True):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(password="wrong", direct_tls=direct, **options)

    asyncio.run(ask())


def test_wrong_passwords_and_unknown_users_are_told_the_same(guarded):
    took = {}
    for user, password in ((USER, "wrong"), ("nobody", "wrong"), ("nobody", PASSWORD)):
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match=f'password authentication failed for user "{user}"'):
            psycopg.connect(guarded.dsn(user=user, password=password, sslmode="require"))
        took[user, password] = time.monotonic() - began
    assert max(took.values()) - min(took.values()) < 0.3, took


def test_nobody_comes_in_without_tls(guarded):
    with pytest.raises(psycopg.OperationalError, match="TLS only"):
        psycopg.connect(guarded.dsn(password=PASSWORD, sslmode="disable"))


def test_what_is_set_up_wrongly_does_not_start(guarded):
    folder = guarded.folder
    (folder / "bad.key").write_text("no key")
    (folder / "bad.toml").write_text("ana = password\n")
    pem = lambda certificate, key: ["--tls-certificate", folder / certificate, "--tls-key", folder / key]
    listen = ["--pg-listen", "127.0.0.1:0"]
    for options, reason in [
        (["--pg-listen", "0.0.0.0:0"], "--users"),
        ([*listen, *pem("rsa.crt", "bad.key")], "private key"),
        ([*listen, *pem("rsa.crt", "sec1.key")], "cannot be used"),
        ([*listen, *pem("pkcs8.key", "pkcs8.key")], "no certificate"),
        ([*listen, *pem("missing.crt", "pkcs8.key")], "missing.crt"),
        ([*listen, "--tls-certificate", folder / "rsa.crt"], "--tls-key"),
        ([*listen, "--users", folder / "bad.toml"], "bad.toml:1"),
        ([*listen, "--users", folder / "none.toml"], "none.toml"),
    ]:
        command = [*guarded.command, "serve", "--listen", "127.0.0.1:0", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0 and reason in done.stderr, (options, done.stderr)
    for certificate, key in (("rsa.crt", "pkcs1.key"), ("ec.crt", "sec1.key")):
        with Service(folder, *pem(certificate, key)) as other:
            psycopg.connect(other.dsn(sslmode="verify-full", sslrootcert=folder / certificate)).close()


# Bad input


def raw(service):
    return socket.create_connection((service.host, service.port), timeout=30)


def startup(connection):
    body = struct.pack("!I", 3 << 16) + b"user\0ana\0database\0holdfast\0\0"
    connection.sendall(struct.pack("!I", len(body) + 4) + body)
    seen = b""
    while not seen.endswith(b"Z\0\0\0\x05I"):
        seen += connection.recv(65536)


def everything(connection):
    seen = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            seen += part
    return seen


def test_malformed_messages_harm_nobody_else(service):
    for bytes_sent in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x04",
        b"\xff\xff\xff\xff\0\0\0\0",
        struct.pack("!II", 8, 2 << 16),
        struct.pack("!II", 12, 3 << 16) + b"user",
        struct.pack("!IIII", 16, 80877102, 1, 1),
        b"\x16\x03\x01\x02\0\x01",
    ):
        with raw(service) as connection:
            connection.sendall(bytes_sent)
            # It may have gone already.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            everything(connection)
    for message in (b"Q\0\0\0\x03", b"Q\0\0\0\x08abcd", b"?\0\0\0\x04", b"B\0\0\0\x0c\0\0\xff\xff\0\0\0\0", b"Q\xff\xff\xff\xff"):
        with raw(service) as connection:
            startup(connection)
            connection.sendall(message)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            assert everything(connection)[:1] in (b"E", b""), message
    with service.psycopg() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_statement_of_a_hundred_megabytes_is_refused_and_the_session_goes_on(service):
    with service.psycopg() as connection:
        for sql in ("select '" + "x" * (100 << 20) + "'", "select '" + "x" * (2 << 20) + "'"):
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                connection.execute(sql)
        for sql in ("select " + "(" * 30_000 + "1" + ")" * 30_000, "select " + "1+" * 24_000 + "1", "select " + "not " * 40_000 + "true"):
            with contextlib.suppress(psycopg.Error):
                connection.execute(sql)
        assert connection.execute("select 1").fetchone() == (1,)
    assert service.process.poll() is None


def test_a_client_that_says_nothing_is_left(service):
    with raw(service) as silent:
        silent.sendall(b"\0\0\0")
        with service.psycopg() as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        silent.settimeout(30)
        began = time.monotonic()
        assert silent.recv(1) == b"" and time.monotonic() - began < 25


def test_more_connections_than_there_is_room_for_are_told_so(service):
    with contextlib.ExitStack() as stack:
        for _ in range(250):
            stack.enter_context(raw(service))
        time.sleep(0.5)
        with pytest.raises(psycopg.OperationalError, match="250 connections have not said yet whose they are"):
            psycopg.connect(service.dsn())
    time.sleep(0.5)
    with service.psycopg() as connection:
        assert connection.execute("select 1").fetchone() == (1,)
