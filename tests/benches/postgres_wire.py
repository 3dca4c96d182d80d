#!/usr/bin/env python3
"""The same rows over PostgreSQL's protocol, from `holdfast serve` and from PostgreSQL itself.

    python tests/benches/postgres_wire.py --holdfast target/release/holdfast --rows 500000

Both servers hold the same table, made once and checked to give the same answers; each client reads all of it from both in turn.
psycopg and asyncpg make Python objects of every value, which is most of their time; `psql … > /dev/null` and a copy in binary form show
more of the servers. The first row is timed on a connection that is open, of a query that reads a part of the table. The floor is the same
bytes from a server in this process that only sends them. Starts PostgreSQL itself and needs its programs (Debian: postgresql), and from
PyPI psycopg[binary], asyncpg and pyarrow.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time

import asyncpg
import psycopg

from measure import machine

CONTRACT = """
kind = "orders"
path = "orders/*.ndjson"
format = "ndjson"

[columns]
n = "int64"
"""

# What a row of the bench is: one query in words that both engines know the same values of.
COLUMNS = [
    ("order_id", "text", "'order-' || cast({n} as varchar)", "'order-' || n::text"),
    ("customer_id", "text", "'customer-' || cast({n} % 9973 as varchar)", "'customer-' || (n % 9973)::text"),
    ("quantity", "int", "cast({n} % 17 as int)", "(n % 17)::int"),
    ("amount", "numeric(12,2)", "cast({n} % 100000 as decimal(12,2)) / 4", "((n % 100000)::numeric / 4)"),
    ("points", "bigint", "{n} * 7919", "n * 7919"),
    ("score", "double precision", "cast({n} % 1000 as double) / 8", "(n % 1000)::double precision / 8"),
    ("is_paid", "boolean", "{n} % 3 = 0", "n % 3 = 0"),
    ("ordered_at", "timestamptz", "arrow_cast(to_timestamp_micros(1700000000000000 + {n} * 1000000), 'Timestamp(Microsecond, Some(\"UTC\"))')", "to_timestamp(1700000000 + n)"),
]


def stage(rows):
    selected = ",\n".join(
        f"    {holdfast.format(n='n')} as {name}" if name != "amount" else "    cast(cast(n % 100000 as decimal(14,2)) / 4 as decimal(12,2)) as amount"
        for name, _, holdfast, _ in COLUMNS
    )
    return f"with numbers as (select cast(value as bigint) as n from unnest(range(0, {rows})) as series(value))\nselect\n{selected}\nfrom numbers\n"


QUERY = f"select {', '.join(name for name, *_ in COLUMNS)} from {{table}}"
CHECK = (
    "select count(*), count(distinct order_id), count(distinct customer_id), sum(quantity), sum(amount), sum(points)::text, sum(score),"
    " sum(case when is_paid then 1 else 0 end), min(ordered_at), max(ordered_at) from {table}"
)
FIRST = QUERY + " where quantity = 5 limit 1"


@contextlib.contextmanager
def postgres(folder, rows):
    """A PostgreSQL with its own settings but for memory, without a socket file, and the table in it."""
    programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        raise SystemExit("PostgreSQL's programs are missing: apt install postgresql")
    bin_folder, data = programs[-1], folder / "postgres"
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    if user:
        os.chmod(folder, 0o755)
        data.mkdir()
        os.chown(data, user.pw_uid, user.pw_gid)
    subprocess.run(
        [bin_folder / "initdb", "--pgdata", data, "--auth", "trust", "--username", "postgres", "--no-sync", "--encoding", "UTF8"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", "unix_socket_directories=", "-c", "shared_buffers=1GB", "-c", "timezone=UTC"]
    server = subprocess.Popen([bin_folder / "postgres", "-D", data, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user)
    dsn = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    try:
        for attempt in range(100):
            try:
                connection = psycopg.connect(dsn, autocommit=True)
                break
            except psycopg.OperationalError:
                if attempt == 99:
                    raise
                time.sleep(0.1)
        with connection:
            columns = ", ".join(f"{name} {kind}" for name, kind, *_ in COLUMNS)
            connection.execute(f"create table orders ({columns})")
            selected = ", ".join(made for *_, made in COLUMNS)
            connection.execute(f"insert into orders select {selected} from generate_series(0::bigint, {rows - 1}) as g(n)")
            connection.execute("vacuum (analyze, freeze) orders")
            connection.execute("select sum(points) from orders")
        yield port
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


@contextlib.contextmanager
def holdfast(binary, folder, rows):
    files = {
        "holdfast.toml": "",
        "pipelines/churn/pipeline.toml": 'stages = "sql"\n',
        "pipelines/churn/identity.toml": 'priority = ["phone"]\n[types.phone]\n',
        "pipelines/churn/sources/orders.toml": CONTRACT,
        "sql/core/orders.sql": stage(rows),
        "in/orders/1.ndjson": '{"n": 1}\n',
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    command = [binary, "--project", folder, "--lake", folder / "lake"]
    for arguments in (["ingest", "--from", folder / "in"], ["run"]):
        subprocess.run([*command, *arguments], check=True, capture_output=True)
    server = subprocess.Popen(
        [*command, "serve", "--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    )
    try:
        for line in server.stderr:
            if found := re.search(r"postgresql://[0-9.]+:(\d+)/", line):
                break
        else:
            raise SystemExit("holdfast did not start")
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield int(found.group(1))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


class Server:
    def __init__(self, name, port, user, database, table):
        self.name, self.port, self.user, self.database, self.table = name, port, user, database, table
        self.dsn = f"host=127.0.0.1 port={port} user={user} dbname={database} sslmode=disable"
        self.query = QUERY.format(table=table)

    def psycopg_rows(self, binary):
        with psycopg.connect(self.dsn) as connection, connection.cursor(binary=binary) as cursor:
            cursor.execute(self.query)
            return len(cursor.fetchall())

    def asyncpg_rows(self):
        async def ask():
            connection = await asyncpg.connect(host="127.0.0.1", port=self.port, user=self.user, database=self.database, ssl=False)
            rows = await connection.fetch(self.query)
            await connection.close()
            return len(rows)

        return asyncio.run(ask())

    def psql_rows(self):
        """psql that prints nothing: the rows are parsed by libpq, a part at a time."""
        command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=FETCH_COUNT=10000", self.dsn, "--command", self.query]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def copied_bytes(self):
        with psycopg.connect(self.dsn) as connection, connection.cursor() as cursor:
            with cursor.copy(f"copy ({self.query}) to stdout (format binary)") as copy:
                return sum(len(part) for part in copy)

    def first_row_ms(self, times):
        with psycopg.connect(self.dsn) as connection, connection.cursor() as cursor:
            taken = []
            for _ in range(times):
                began = time.perf_counter()
                cursor.execute(FIRST.format(table=self.table))
                assert cursor.fetchone() is not None
                taken.append((time.perf_counter() - began) * 1000)
        return sorted(taken)

    def check(self):
        with psycopg.connect(self.dsn) as connection:
            sums = connection.execute(CHECK.format(table=self.table)).fetchone()
            some = connection.execute(f"{self.query} where quantity = 5 order by order_id limit 500").fetchall()
        return [str(value) for value in sums], some


def floor_seconds(size):
    """How long it takes a client in Python to read as many bytes that are only sent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def send():
        connection, _ = listener.accept()
        part = bytes(256 << 10)
        left = size
        with connection:
            while left > 0:
                connection.sendall(part[: min(left, len(part))])
                left -= len(part)

    threading.Thread(target=send, daemon=True).start()
    began = time.perf_counter()
    with socket.create_connection(listener.getsockname()) as connection:
        while connection.recv(256 << 10):
            pass
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--holdfast", type=pathlib.Path, required=True, help="the binary; of a release build")
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if shutil.which("psql") is None:
        raise SystemExit("psql is missing: apt install postgresql-client")
    print(machine())
    with tempfile.TemporaryDirectory() as work:
        folder = pathlib.Path(work)
        (folder / "holdfast").mkdir()
        with postgres(folder, arguments.rows) as postgres_port, holdfast(arguments.holdfast.resolve(), folder / "holdfast", arguments.rows) as port:
            ours = Server("holdfast", port, "bench", "holdfast", "core.orders")
            theirs = Server("postgresql", postgres_port, "postgres", "postgres", "orders")
            assert ours.check() == theirs.check(), f"the answers differ:\n{ours.check()[0]}\n{theirs.check()[0]}"
            print(f"{arguments.rows} rows of {len(COLUMNS)} columns, the same from both\n")
            cases = {
                "psycopg, text": lambda server: server.psycopg_rows(False),
                "psycopg, binary": lambda server: server.psycopg_rows(True),
                "asyncpg": lambda server: server.asyncpg_rows(),
                "psql": lambda server: server.psql_rows(),
                "copy, binary": lambda server: server.copied_bytes(),
            }
            result = {}
            for name, case in cases.items():
                taken = {ours: [], theirs: []}
                for _ in range(arguments.rounds):
                    for server in (ours, theirs):
                        began = time.perf_counter()
                        given = case(server)
                        taken[server].append(time.perf_counter() - began)
                        if name.startswith(("psycopg", "asyncpg")):
                            assert given == arguments.rows
                rate = {server: arguments.rows / statistics.median(taken[server]) for server in taken}
                result[name] = rate[ours] / rate[theirs]
                print(f"{name:16}  holdfast {rate[ours]:12,.0f} rows/s  postgresql {rate[theirs]:12,.0f} rows/s  ratio {result[name]:.2f}")
            size = ours.copied_bytes()
            seconds = floor_seconds(size)
            print(f"{'floor':16}  {size / 2**20:.0f} MiB read from a socket by Python in {seconds:.3f} s: {arguments.rows / seconds:,.0f} rows/s")
            for server in (ours, theirs):
                taken = server.first_row_ms(200)
                print(f"first row, {server.name:10}  median {statistics.median(taken):.2f} ms, 99 % {taken[int(len(taken) * 0.99)]:.2f} ms")
            print(json.dumps({"ratio": result}))


if __name__ == "__main__":
    main()
