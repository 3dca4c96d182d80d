#!/usr/bin/env python3
"""Tables over Flight `DoGet`: by holdfast from a Delta table and from memory, by a pyarrow server from memory, and what reading the files costs without any server.

A table of four doubles a row is made by a stage, and what arrives is compared with the files by its sums. All are taken in turn, by the same pyarrow client over one stream; what loopback and memory
give in the same minute stands beside them. Then a result that is many times as big: how long its first rows take, and what the server holds meanwhile.

    python tests/benches/flight.py --holdfast target/debug/holdfast
    python tests/benches/flight.py --holdfast target/debug/holdfast --rows 4000000 --runs 3

Needs numpy and pyarrow.
"""

import argparse
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.flight as flight
import pyarrow.parquet as pq

from measure import machine

COLUMNS = ["a", "b", "c", "d"]
GB = 1e9


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast")
    options.add_argument("--rows", type=int, default=16_000_000, help="of 32 bytes each")
    options.add_argument("--big", type=float, default=10, help="GB of the result whose first rows and memory are looked at; 0 for none")
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--work", type=pathlib.Path)
    arguments = options.parse_args()
    arguments.holdfast = arguments.holdfast.resolve()
    if not arguments.holdfast.is_file():
        options.error(f"there is no {arguments.holdfast}: build it, or name another with --holdfast")
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-flight-", dir=arguments.work) as folder:
        lake = Lake(pathlib.Path(folder), arguments)
        lake.make()
        with lake.served() as port, Pyarrow(lake) as peer:
            throughput(lake, port, peer, arguments)
            first_rows(lake, port, arguments)
            if arguments.big:
                big(lake, port, arguments)


class Lake:
    """A project whose stage makes the table `profile.wide`, by joining a column of numbers with itself."""

    def __init__(self, folder, arguments):
        self.folder, self.arguments = folder, arguments
        self.side = int(arguments.rows**0.5)
        self.rows = self.side**2
        self.process = None

    def command(self, *more):
        return [str(self.arguments.holdfast), "--project", str(self.folder), *map(str, more)]

    def write(self, path, text):
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def make(self):
        self.write("holdfast.toml", '[lake]\nurl = "lake"\n')
        self.write("pipelines/churn/pipeline.toml", 'stages = "sql"\n')
        self.write("pipelines/churn/identity.toml", 'priority = ["member_id"]\n[types.member_id]\nunique = true\n')
        self.write("pipelines/churn/sources/numbers.toml",
                   'kind = "crm"\npath = "numbers/*.csv"\nformat = "csv"\nevent_time = "at"\n'
                   '[columns]\nn = "int64"\nat = "timestamp"\n')
        # Values without a pattern that an encoding could use.
        hashed = ", ".join(
            f"cast((x.n * {self.side} + y.n) * {factor} % 1000003 as double) / 7 as {name}"
            for name, factor in zip(COLUMNS, [48271, 69621, 39373, 40692])
        )
        self.write("sql/profile/wide.sql",
                   f"-- Numbers.\n-- @stage full\nselect {hashed}\nfrom raw.numbers as x cross join raw.numbers as y\n")
        self.write("sql/profile/few.sql", "-- Few numbers.\n-- @stage full\nselect a, b, c, d\nfrom profile.wide\nlimit 1000\n")
        table = pa.table({"n": np.arange(self.side), "at": ["2026-01-01T00:00:00Z"] * self.side})
        path = self.folder / "in" / "numbers" / "all.csv"
        path.parent.mkdir(parents=True)
        pyarrow.csv.write_csv(table, path)
        for command in (["ingest", "--from", self.folder / "in"], ["run"]):
            done = subprocess.run(self.command("--quiet", *command), capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr}")
        self.files = sorted((self.folder / "lake" / "profile" / "wide").glob("**/*.parquet"))
        size = sum(file.stat().st_size for file in self.files)
        print(f"\n{self.rows:,} rows, {self.bytes / GB:.2f} GB of doubles, {size / GB:.2f} GB in {len(self.files)} files", flush=True)

    @property
    def bytes(self):
        return self.rows * 8 * len(COLUMNS)

    def served(self):
        lake = self

        class Served:
            def __enter__(self):
                command = lake.command("serve", "--listen", "127.0.0.1:0")
                lake.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
                found = (re.search("grpc://127.0.0.1:([0-9]+)", line) for line in lake.process.stderr)
                return int(next(filter(None, found)).group(1))

            def __exit__(self, *_):
                lake.process.send_signal(signal.SIGTERM)
                lake.process.wait(timeout=30)

        return Served()


def memory_mib(pid, what="VmRSS"):
    line = next(line for line in open(f"/proc/{pid}/status") if line.startswith(what))
    return int(line.split()[1]) / 1024


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


SERVER = """
import sys
import pyarrow as pa, pyarrow.flight as flight, pyarrow.parquet as pq
table = pa.concat_tables([pq.read_table(file, columns=["a", "b", "c", "d"]) for file in sys.argv[1:]])
batches = table.combine_chunks().to_batches(max_chunksize=16_384)
class Server(flight.FlightServerBase):
    def do_get(self, context, ticket):
        return flight.GeneratorStream(table.schema, iter(batches))
server = Server("grpc://127.0.0.1:0")
print(server.port, flush=True)
server.serve()
"""


class Pyarrow:
    """pyarrow's own server with the table in memory."""

    def __init__(self, lake):
        self.lake = lake

    def __enter__(self):
        import sys

        self.process = subprocess.Popen([sys.executable, "-c", SERVER, *map(str, self.lake.files)], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def statement(client, sql):
    """The ticket of a Flight SQL statement."""
    # CommandStatementQuery in google.protobuf.Any.
    name = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
    body = field(1, sql.encode())
    info = client.get_flight_info(flight.FlightDescriptor.for_command(field(1, name) + field(2, body)))
    return info.endpoints[0].ticket


def field(number, value):
    length, out = len(value), bytearray([number << 3 | 2])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(out) + bytes([length]) + value


def read(client, ticket):
    """Reads a stream to its end; seconds, rows, bytes, sums, and seconds until the first rows."""
    began, first, rows, size = time.perf_counter(), None, 0, 0
    batches = []
    for chunk in client.do_get(ticket):
        first = first or time.perf_counter() - began
        rows += chunk.data.num_rows
        size += chunk.data.num_rows * 8 * len(COLUMNS)
        if len(batches) < 2_000:
            batches.append(chunk.data)
    seconds = time.perf_counter() - began
    return seconds, rows, size, batches, first


def total(batches):
    table = pa.Table.from_batches(batches)
    return [round(pc.sum(table[name]).as_py(), 0) for name in COLUMNS]


def throughput(lake, port, peer, arguments):
    ours = flight.connect(f"grpc://127.0.0.1:{port}")
    theirs = flight.connect(f"grpc://127.0.0.1:{peer.port}")
    path = ours.get_flight_info(flight.FlightDescriptor.for_path("profile", "wide")).endpoints[0].ticket
    # The same amount from memory: few rows that are read once, many times over.
    times = lake.rows // 1_000
    memory = statement(ours, f"select f.a, f.b, f.c, f.d from profile.few as f cross join generate_series(1, {times}) as s")
    expected = None

    def decode():
        began = time.perf_counter()
        rows, batches = 0, []
        for file in lake.files:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=16_384, columns=COLUMNS, use_threads=False):
                rows += batch.num_rows
                batches.append(batch)
        return time.perf_counter() - began, rows, batches

    sides = {
        "holdfast, the Delta table": lambda: read(ours, path),
        "holdfast, from memory": lambda: read(ours, memory),
        "pyarrow server, from memory": lambda: read(theirs, flight.Ticket(b"")),
        "the files read by pyarrow, no server": decode,
    }
    seconds, server_cpu = {name: [] for name in sides}, {name: [] for name in sides}
    for run in range(arguments.runs + 1):
        for name, side in sides.items():
            pid = lake.process.pid if name.startswith("holdfast") else peer.process.pid
            before = cpu_seconds(pid)
            found = side()
            if name != "holdfast, from memory":
                batches = found[3] if len(found) > 3 else found[2]
                rows = found[1]
                if rows != lake.rows:
                    raise SystemExit(f"{name} gave {rows:,} rows of {lake.rows:,}")
                if run == 0 and len(batches) < 2_000:
                    sums = total(batches)
                    expected = expected or sums
                    if sums != expected:
                        raise SystemExit(f"{name} gave other values: {sums}, not {expected}")
            elif found[1] < times * 1_000:
                raise SystemExit(f"{name} gave {found[1]:,} rows")
            # The first is for the page cache.
            if run > 0:
                seconds[name].append(found[0])
                server_cpu[name].append(cpu_seconds(pid) - before)
    print("\n| one stream, 16,384 rows a batch | GB/s, median | all runs | server CPU s/GB |")
    print("|---|---|---|---|")
    for name, runs in seconds.items():
        rates = [lake.bytes / GB / second for second in runs]
        cpu = f"{statistics.median(server_cpu[name]) / (lake.bytes / GB):.2f}" if "no server" not in name else ""
        print(f"| {name} | **{statistics.median(rates):.2f}** | {' '.join(f'{rate:.2f}' for rate in rates)} | {cpu} |", flush=True)
    print(f"| raw loopback | {loopback():.2f} | | |\n| memory copied | {copied():.2f} | | |", flush=True)


def first_rows(lake, port, arguments):
    client = flight.connect(f"grpc://127.0.0.1:{port}")
    print("\n| first rows of | rows | ms, median of 20 | most |\n|---|---|---|---|")
    for what, sql in [("a small table", "profile.few"), ("the big table", "profile.wide")]:
        ticket = client.get_flight_info(flight.FlightDescriptor.for_path(*sql.split("."))).endpoints[0].ticket
        times = []
        for _ in range(21):
            began = time.perf_counter()
            reader = client.do_get(ticket)
            rows = reader.read_chunk().data.num_rows
            times.append((time.perf_counter() - began) * 1e3)
            reader.cancel()
        times = times[1:]
        print(f"| {what} | {1_000 if 'few' in sql else lake.rows:,} | **{statistics.median(times):.1f}** | {max(times):.1f} |", flush=True)


def big(lake, port, arguments):
    """A result of many GB: what the server holds while it goes by."""
    client = flight.connect(f"grpc://127.0.0.1:{port}")
    times = max(1, round(arguments.big * GB / lake.bytes))
    ticket = statement(client, f"select w.a, w.b, w.c, w.d from generate_series(1, {times}) as s cross join profile.wide as w")
    before, seen, done = memory_mib(lake.process.pid), [], threading.Event()

    def look():
        while not done.is_set():
            seen.append(memory_mib(lake.process.pid))
            time.sleep(0.05)

    looking = threading.Thread(target=look)
    looking.start()
    began, first, rows = time.perf_counter(), None, 0
    for chunk in client.do_get(ticket):
        first = first or time.perf_counter() - began
        rows += chunk.data.num_rows
    seconds = time.perf_counter() - began
    done.set()
    looking.join()
    size = rows * 8 * len(COLUMNS) / GB
    half = len(seen) // 2
    print(f"\n{size:.1f} GB in one stream: first rows after {first * 1e3:.1f} ms, {size / seconds:.2f} GB/s; the server held {before:.0f} MiB before, "
          f"{max(seen):.0f} at most, {statistics.median(seen[:half]):.0f} in the first half and {statistics.median(seen[half:]):.0f} in the second (median)", flush=True)


def loopback():
    """GB/s of a socket on loopback, 2 GB."""
    server = socket.create_server(("127.0.0.1", 0))
    amount, piece = 2 << 30, 1 << 20

    def send(port):
        with socket.create_connection(("127.0.0.1", port)) as out:
            data = bytes(piece)
            for _ in range(amount // piece):
                out.sendall(data)

    process = multiprocessing.Process(target=send, args=(server.getsockname()[1],))
    process.start()
    connection, _ = server.accept()
    buffer, got, began = bytearray(piece), 0, time.perf_counter()
    while read := connection.recv_into(buffer):
        got += read
    seconds = time.perf_counter() - began
    process.join()
    return got / GB / seconds


def copied():
    source = np.ones(1 << 26)
    target = np.empty_like(source)
    np.copyto(target, source)
    began = time.perf_counter()
    for _ in range(4):
        np.copyto(target, source)
    return 4 * source.nbytes / GB / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
