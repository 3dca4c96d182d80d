#!/usr/bin/env python3
"""What an append costs in a table with a short and a ten times longer history, before and after maintenance.

A batch of the same rows is ingested into both lakes in turn, by a process of its own. Ends with an error when the long
history makes it slower than allowed after maintenance.

    python tests/benches/commits.py --holdfast target/release/holdfast
"""

import argparse
import json
import pathlib
import statistics
import tempfile

from measure import machine, measure

ROWS = 200

# How much slower an append may be in the table with ten times the history, once it is maintained.
FACTOR_MAX = 1.15

SOURCE = """kind = "orders"
path = "orders/*.csv"
format = "csv"
event_time = "at"
[columns]
order_id = "string"
member = "string"
at = "timestamp"
amount = "decimal(12,2)"
"""


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--history", type=int, default=50, help="batches in the short history")
    options.add_argument("--runs", type=int, default=15, help="appends to each table")
    options.add_argument("--work", type=pathlib.Path, help="where the lakes are made and removed")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")

    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-commits-", dir=arguments.work) as folder:
        shops = [
            Shop(binary, pathlib.Path(folder) / name, batches)
            for name, batches in [("short", arguments.history), ("long", arguments.history * 10)]
        ]
        print("| | batches | append, median s | least s | CPU, median s | long = short × | CPU |")
        print("|---|---|---|---|---|---|---|")
        compare("before maintenance", shops, arguments.runs)
        for shop in shops:
            shop.maintain()
        factor = compare("after maintenance", shops, arguments.runs)
    if factor > FACTOR_MAX:
        raise SystemExit(f"ten times the history makes an append {factor:.2f} times as slow, {FACTOR_MAX} is allowed")


def compare(when, shops, runs):
    taken = [[], []]
    for _ in range(runs):
        for index, shop in enumerate(shops):
            taken[index].append(shop.append())
    walls = [[measured.wall_seconds for measured in each] for each in taken]
    medians = [statistics.median(wall) for wall in walls]
    cpu = [statistics.median(measured.cpu_seconds for measured in each) for each in taken]
    factors = medians[1] / medians[0], cpu[1] / cpu[0]
    for index, shop in enumerate(shops):
        shown = " | ".join(f"{factor:.2f}" if index else "" for factor in factors)
        least = min(walls[index])
        print(f"| {when} | {shop.batches:,} | {medians[index]:.3f} | {least:.3f} | {cpu[index]:.3f} | {shown} |", flush=True)
    return factors[0]


class Shop:
    """A project with one source, whose table has so many batches."""

    def __init__(self, binary, folder, batches):
        self.command = [str(binary), "--project", str(folder), "--lake", str(folder / "lake"), "--quiet"]
        self.sources = folder / "in" / "orders"
        self.sources.mkdir(parents=True)
        self.batches = 0
        for path, text in [
            ("holdfast.toml", "[ingest]\nbatch_files_max = 1\n"),
            ("pipelines/churn/pipeline.toml", 'stages = "sql"\n'),
            ("pipelines/churn/identity.toml", 'priority = ["member_id"]\n[types.member_id]\nunique = true\n'),
            ("pipelines/churn/sources/orders.toml", SOURCE),
            ("sql/core/orders.sql", "-- One row an order.\nselect order_id from raw.orders\n"),
        ]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        self.write(batches)
        self.ingest()

    def write(self, batches):
        # What was read is taken away, as a landing folder is emptied: only the tables remember it.
        for path in self.sources.iterdir():
            path.unlink()
        for batch in range(self.batches, self.batches + batches):
            rows = "".join(f"o{batch}-{row},M{row},2025-06-01T00:00:00Z,{row}.25\n" for row in range(ROWS))
            (self.sources / f"{batch:06}.csv").write_text("order_id,member,at,amount\n" + rows)
        self.batches += batches

    def ingest(self):
        return measure([*self.command, "ingest", "--raw-only", "--json", "--from", str(self.sources.parent)])

    def append(self):
        self.write(1)
        measured = self.ingest()
        (source,) = json.loads(measured.stdout)["sources"]
        if source["rows_stored"] != ROWS:
            raise SystemExit(f"{source['rows_stored']} of {ROWS} rows were stored")
        return measured

    def maintain(self):
        measure([*self.command, "maintain"])


if __name__ == "__main__":
    main()
