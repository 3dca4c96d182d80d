#!/usr/bin/env python3
"""A PostgreSQL table into `raw`: its snapshot, then its changes, beside what the server's own programs take to read the same.

    python tests/benches/postgres.py --holdfast target/debug/holdfast

The floor of a snapshot is `psql` with `COPY … TO STDOUT` into nothing; that of changes `pg_recvlogical` with the same plugin
into nothing. Neither makes JSON, stores or checks anything. Both sides run in turn, on the same rows; afterwards raw has to
hold every row once. Starts a server of its own; needs its programs (Debian: postgresql), no Python packages.
"""

import argparse
import json
import os
import pathlib
import pwd
import signal
import socket
import statistics
import subprocess
import tempfile
import time

from measure import machine, measure

CONTRACT = """
kind = "orders"

[feed]
kind = "postgres"
host = "127.0.0.1"
port = {port}
dbname = "postgres"
user = "postgres"
sslmode = "disable"
tables = ["public.order_lines"]

[columns]
order_id = "string"
line_no = "int32"
product_id = "string"
product_name = "string"
category = "string"
quantity = "int32"
unit_price = "decimal(12,2)"
discount = "decimal(12,2)"
line_amount = "decimal(12,2)"
currency = "string"
ordered_at = "timestamp"
_op = "string"
_position = "string"
"""

TABLE = """
create table order_lines (
    order_id text, line_no int, product_id text, product_name text, category text, quantity int, unit_price numeric(12,2),
    discount numeric(12,2), line_amount numeric(12,2), currency text, ordered_at timestamptz, primary key (order_id, line_no)
);
"""

ROWS = """
insert into order_lines
select '{tag}' || (n / 3), n % 3, 'P' || n % 5000, 'Product number ' || n % 5000, 'category ' || n % 40, 1 + n % 4,
    (n % 10000) / 100.0, (n % 7) / 10.0, (1 + n % 4) * (n % 10000) / 100.0, 'CNY', '2026-01-01'::timestamptz + n * interval '1 second'
from generate_series({first}, {last}) n
"""


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--rows", type=int, default=1_000_000, help="of the snapshot, and again of the changes")
    options.add_argument("--transaction", type=int, default=1_000, help="rows a transaction")
    options.add_argument("--runs", type=int, default=3)
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")

    print(machine(), flush=True)
    results = {}
    for run in range(arguments.runs):
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as work:
            with Server(pathlib.Path(work)) as server:
                for name, measured in one_run(arguments, binary, server, pathlib.Path(work)):
                    results.setdefault(name, []).append(measured)
                    rate = arguments.rows / measured.wall_seconds
                    print(f"run {run + 1}: {name}: {measured.wall_seconds:.2f} s, {rate:,.0f} rows/s", flush=True)
    print("\n| | wall s (all runs) | rows/s | CPU s | peak MiB |\n|---|---|---|---|---|")
    for name, runs in results.items():
        wall = statistics.median(run.wall_seconds for run in runs)
        every = " ".join(f"{run.wall_seconds:.2f}" for run in runs)
        cpu = statistics.median(run.cpu_seconds for run in runs)
        peak = max(run.peak_memory_mib for run in runs)
        print(f"| {name} | **{wall:.2f}** ({every}) | {arguments.rows / wall:,.0f} | {cpu:.1f} | {peak:.0f} |")


def one_run(arguments, binary, server, work):
    """The snapshot and the changes of one table, each by both sides, in turn."""
    rows, step = arguments.rows, arguments.transaction
    server.sql(TABLE)
    server.sql(ROWS.format(tag="a", first=1, last=rows))
    server.sql("vacuum analyze order_lines")
    project = work / "project"
    for path, text in {
        "holdfast.toml": '[lake]\nurl = "lake"\n',
        "pipelines/churn/pipeline.toml": 'stages = "sql"\n',
        "pipelines/churn/identity.toml": 'priority = ["member_id"]\n[types.member_id]\nunique = true\n',
        "pipelines/churn/sources/lines.toml": CONTRACT.format(port=server.port),
        "sql/.keep": "",
    }.items():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text(text)
    ingest = [binary, "--project", project, "--quiet", "ingest", "--raw-only", "--json"]

    copy = server.client("psql") + ["-qAtX", "-d", "postgres", "-c", "copy order_lines to stdout"]
    yield "psql copy, floor", measure(["sh", "-c", 'exec "$@" > /dev/null', "sh", *copy])
    yield "holdfast, snapshot", measure(ingest)
    in_raw(binary, project, "snapshot", rows)

    server.sql("select pg_create_logical_replication_slot('floor', 'pgoutput')")
    script = "".join(
        ROWS.format(tag="b", first=first, last=min(first + step - 1, rows)) + ";" for first in range(1, rows + 1, step)
    )
    server.sql_file(script)
    end = server.sql("select pg_current_wal_lsn()")
    receive = server.client("pg_recvlogical") + ["-d", "postgres", "--slot", "floor", "--start", "--endpos", end, "-f", "/dev/null"]
    receive += ["-o", "proto_version=1", "-o", "publication_names=holdfast_lines"]
    yield "pg_recvlogical, floor", measure(receive)
    yield "holdfast, changes", measure(ingest)
    in_raw(binary, project, "insert", rows)


def in_raw(binary, project, operation, rows):
    query = f"select count(*) as n, count(distinct _position) as places from raw.lines where _op = '{operation}'"
    answer = measure([binary, "--project", project, "sql", query, "--output", "json"])
    found = json.loads(answer.stdout)[0]
    if found != {"n": rows, "places": rows}:
        raise SystemExit(f"raw has {found}, {rows} rows were expected")


class Server:
    """A PostgreSQL of its own, ended at the end."""

    def __init__(self, folder):
        self.folder = folder / "server"
        self.folder.mkdir()
        folders = [pathlib.Path(path) for path in os.get_exec_path()]
        folders += sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        needed = ("initdb", "postgres", "psql", "pg_recvlogical")
        self.programs = next((path for path in folders if all((path / name).is_file() for name in needed)), None)
        if self.programs is None:
            raise SystemExit("there is no PostgreSQL server: apt-get install postgresql")
        self.runs_as = []
        if os.getuid() == 0:
            user = next(pwd.getpwnam(name) for name in ("postgres", "nobody"))
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            folder.chmod(0o711)
            self.runs_as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

    def __enter__(self):
        data = self.folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        make = [self.programs / "initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-D", data]
        subprocess.run(self.runs_as + make, check=True, stdout=subprocess.DEVNULL, cwd="/")
        settings = {"wal_level": "logical", "listen_addresses": "127.0.0.1", "max_wal_size": "8GB", "shared_buffers": "512MB"}
        settings |= {"port": self.port, "unix_socket_directories": self.folder}
        command = [self.programs / "postgres", "-D", data]
        command += [f"--{name}={value}" for name, value in settings.items()]
        log = open(self.folder.parent / "server.log", "w")
        self.process = subprocess.Popen(self.runs_as + command, stdout=log, stderr=log, cwd="/")
        for _ in range(300):
            if subprocess.run(self.client("psql") + ["-c", "select 1"], capture_output=True).returncode == 0:
                return self
            time.sleep(0.1)
        raise SystemExit("the server does not start")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def client(self, program):
        return [str(self.programs / program), "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]

    def sql(self, text):
        command = self.client("psql") + ["-qAtX", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", text]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def sql_file(self, text):
        command = self.client("psql") + ["-qAtX", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", "-"]
        subprocess.run(command, check=True, input=text, text=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
