#!/usr/bin/env python3
"""Record batches put into a source of `holdfast serve` over Flight: rows a second, and how soon each is acknowledged.

Streams put batches as fast as they are acknowledged, a few ahead. The same batches are then written as Parquet files by
pyarrow on this machine, for the same number of streams: what storing them costs without the service. Afterwards every row
has to be in `raw` once.

    python tests/benches/put.py --holdfast target/debug/holdfast

Needs the packages of tests/clients/requirements.txt.
"""

import argparse
import collections
import concurrent.futures
import json
import pathlib
import re
import signal
import subprocess
import tempfile
import time

import pyarrow
import pyarrow.compute
import pyarrow.dataset
import pyarrow.flight
import pyarrow.parquet

from measure import machine
from push import quantiles, usage

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = {
    "holdfast.toml": "",
    "pipelines/churn/pipeline.toml": 'stages = "sql"\n',
    "pipelines/churn/identity.toml": 'priority = ["phone"]\n[types.phone]\n',
    "pipelines/churn/sources/sales.toml": """
kind = "point_of_sale"
path = "sales/*.ndjson"
format = "ndjson"
event_time = "sold_at"

[columns]
id = "int64"
sold_at = "timestamp"
shop = "string"
product = "string"
quantity = "int32"
amount = "decimal(12,2)"
""",
    "sql/core/sales.sql": "select id, amount from raw.sales\n",
    "in/sales/1.ndjson": '{"id": -1}\n',
}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--rows", type=int, default=10_000_000, help="in all")
    options.add_argument("--batch", type=int, default=50_000, help="rows a batch")
    options.add_argument("--streams", type=int, default=2)
    options.add_argument("--ahead", type=int, default=4, help="batches that a stream sends before it waits")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")

    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as work:
        work = pathlib.Path(work)
        print(machine(), flush=True)
        for path, text in PROJECT.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text)
        command = [binary, "--project", work, "--lake", work / "lake"]
        for step in (["ingest", "--from", work / "in"], ["run"]):
            subprocess.run([*command, *step], check=True, capture_output=True)
        process = subprocess.Popen(
            [*command, "serve", "--accept-puts", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
        )
        uri = next(filter(None, (re.search("grpc://[0-9.:]+", line) for line in process.stderr))).group()

        share = arguments.rows // arguments.streams // arguments.batch
        streams = [
            [batch((stream * share + number) * arguments.batch, arguments.batch) for number in range(share)]
            for stream in range(arguments.streams)
        ]
        sent = sum(part.nbytes for stream in streams for part in stream)
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(arguments.streams) as pool:
            seconds = [second for found in pool.map(lambda stream: put(uri, arguments, stream), streams) for second in found]
        wall = time.perf_counter() - began
        rows = share * arguments.streams * arguments.batch
        caught_up = wait_for(work / "lake", rows, began)
        peak, cpu = usage(process.pid)
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=30) != 0:
            raise SystemExit(f"it ended with {process.returncode}: {process.stderr.read()}")
        check(work / "lake", rows)
        bare = write_parquet(work, streams)

        print(f"\n{rows:,} rows, {sent / 1e6:.0f} MB of Arrow, in {len(seconds)} batches of {arguments.batch:,} rows")
        print("\n| | rows/s | MB/s |")
        print("|---|---|---|")
        print(f"| put and acknowledged | {rows / wall:,.0f} | {sent / wall / 1e6:.0f} |")
        print(f"| the same written as Parquet by pyarrow | {rows / bare:,.0f} | {sent / bare / 1e6:.0f} |")
        print("\n| | p50 | p90 | p95 | p99 | max |")
        print("|---|---|---|---|---|---|")
        print(f"| acknowledgement, ms | {' | '.join(f'{value * 1e3:.0f}' for value in quantiles(seconds))} |")
        print(f"\nall in raw {caught_up:.1f} s after the first batch; peak memory {peak:.0f} MiB, CPU {cpu:.1f} s")
        print("every row is in raw once")


def batch(first, count):
    ids = pyarrow.array(range(first, first + count), pyarrow.int64())
    amounts = pyarrow.compute.cast(pyarrow.compute.divide(pyarrow.compute.cast(ids, "float64"), 64.0), pyarrow.decimal128(20, 6))
    return pyarrow.record_batch(
        {
            "id": ids,
            "sold_at": pyarrow.compute.cast(
                pyarrow.compute.add(pyarrow.compute.multiply(ids, 1_000), 1_769_904_000_000_000), pyarrow.timestamp("us", "UTC")
            ),
            "shop": pyarrow.array([f"shop {number % 97}" for number in range(count)]),
            "product": pyarrow.array([f"P{(first + number) * 7919 % 100_003:06}" for number in range(count)]),
            "quantity": pyarrow.array([1 + number % 5 for number in range(count)], pyarrow.int32()),
            "amount": pyarrow.compute.round(amounts, 2).cast(pyarrow.decimal128(12, 2)),
        }
    )


def put(uri, arguments, batches):
    """Puts a stream; the seconds from sending each batch to its acknowledgement."""
    descriptor = pyarrow.flight.FlightDescriptor.for_path("raw", "sales")
    seconds, open_since = [], collections.deque()

    def acknowledged():
        position = json.loads(reader.read().to_pybytes())
        if position["outcome"] != "stored":
            raise SystemExit(f"unexpected answer: {position}")
        seconds.append(time.perf_counter() - open_since.popleft())

    with pyarrow.flight.connect(uri) as client:
        writer, reader = client.do_put(descriptor, batches[0].schema)
        with writer:
            for part in batches:
                open_since.append(time.perf_counter())
                writer.write_batch(part)
                if len(open_since) >= arguments.ahead:
                    acknowledged()
            writer.done_writing()
            while open_since:
                acknowledged()
    return seconds


def stored(lake):
    """The Parquet files that `raw.sales` consists of."""
    table = lake / "raw" / "sales"
    logs = sorted((table / "_delta_log").glob("*.json"))
    lines = [line for log in logs for line in log.read_text().splitlines() if line.startswith('{"add"')]
    return [table / json.loads(line)["add"]["path"] for line in lines]


def wait_for(lake, rows, began):
    """Seconds until so many rows are in `raw`, and the one of the file."""
    while sum(pyarrow.parquet.read_metadata(path).num_rows for path in stored(lake)) < rows + 1:
        time.sleep(0.2)
    return time.perf_counter() - began


def check(lake, rows):
    ids = pyarrow.dataset.dataset(stored(lake)).to_table(columns=["id"])["id"]
    total = pyarrow.compute.sum(ids).as_py()
    if len(ids) != rows + 1 or len(pyarrow.compute.unique(ids)) != rows + 1 or total != rows * (rows - 1) // 2 - 1:
        raise SystemExit(f"{len(ids):,} rows are in raw, {rows + 1:,} were expected, each once")


def write_parquet(work, streams):
    """Seconds to write every batch as a file of its own, in as many threads as there were streams."""

    def write(stream):
        for number, part in enumerate(streams[stream]):
            table = pyarrow.Table.from_batches([part])
            pyarrow.parquet.write_table(table, work / f"{stream}-{number}.parquet", write_statistics=False)

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(streams)) as pool:
        list(pool.map(write, range(len(streams))))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
