#!/usr/bin/env python3
"""From the arrival of an event to the feature that it changes, as it is served from memory.

One process watches a folder and brings stages up to date, another serves; both poll. Events come one every few seconds, each changes the features of one customer, and the time runs from the moment
their file is there until an open line answers with the new values.

    python tests/benches/freshness.py --holdfast target/debug/holdfast --customers 100000 --views 5

Needs numpy and pyarrow.
"""

import argparse
import pathlib
import signal
import subprocess
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv

from measure import machine
from online import Exchange, Shop


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast")
    options.add_argument("--customers", type=int, default=100_000)
    options.add_argument("--views", type=int, default=5, help="of ten features each")
    options.add_argument("--asked-views", type=int, default=5)
    options.add_argument("--events", type=int, default=30)
    options.add_argument("--gap", type=float, default=1.7, help="seconds between an event that is served and the next")
    options.add_argument("--zipf", type=float, default=1.1)
    options.add_argument("--work", type=pathlib.Path)
    arguments = options.parse_args()
    arguments.holdfast = arguments.holdfast.resolve()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-freshness-", dir=arguments.work) as folder:
        shop = Shop(pathlib.Path(folder), arguments)
        shop.make()
        with shop.served() as port:
            command = shop.command("ingest", "--from", shop.folder / "in", "--watch", "--every", "0.5", "--run")
            watching = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                time.sleep(3)
                watch(shop, port, arguments)
            finally:
                watching.send_signal(signal.SIGTERM)
                watching.wait(timeout=60)


def watch(shop, port, arguments):
    asker = Exchange(port, shop)
    took = []
    for event in range(1, arguments.events + 1):
        number = np.array([event * 7_919 % arguments.customers])
        arrive(shop, number, event)
        began = time.perf_counter()
        wanted = shop.expected(number, event)
        while not np.array_equal(asker.values(asker.ask(shop.names(number))), wanted):
            if time.perf_counter() - began > 60:
                raise SystemExit(f"event {event} is not served after a minute")
            time.sleep(0.02)
        took.append(time.perf_counter() - began)
        time.sleep(arguments.gap)
    p50, p95 = np.percentile(took, [50, 95])
    print(f"\n{len(took)} events, each served with its values: seconds from arrival p50 **{p50:.2f}**, p95 {p95:.2f}, most **{max(took):.2f}**", flush=True)


def arrive(shop, number, shift):
    """A file that is there as a whole, at once."""
    shop.round += 1
    table = pa.table({"member": shop.names(number), "number": number, "shift": [shift], "at": ["2026-01-02T00:00:00Z"]})
    coming = shop.folder / "coming.csv"
    pyarrow.csv.write_csv(table, coming)
    coming.rename(shop.folder / "in" / "members" / f"{shop.round:05}.csv")


if __name__ == "__main__":
    main()
