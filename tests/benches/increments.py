#!/usr/bin/env python3
"""A run in which one customer in a hundred has something new, beside a full refresh of the same stages.

A generated shop is ingested and run. Then so many of its customers place an order and visit the app; who is who and the stages are brought up to date.
A copy of the lake is refreshed in full from the same raw tables, and every table that a stage makes has to be the same in both.

    python tests/benches/increments.py --holdfast target/debug/holdfast

Needs the packages of tests/clients/requirements.txt.
"""

import argparse
import json
import pathlib
import random
import re
import shutil
import subprocess
import tempfile
import time

import deltalake
import duckdb

from measure import machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
AS_OF = "2026-01-01T00:00:00Z"


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--customers", type=int, default=20_000)
    options.add_argument("--days", type=int, default=365)
    options.add_argument("--share", type=float, default=0.01, help="of the customers, how many have something new")
    options.add_argument("--work", type=pathlib.Path, help="where everything is made and removed")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")

    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir=arguments.work) as work:
        work = pathlib.Path(work)
        print(machine(), flush=True)
        shop = Shop(binary, work)
        shop.command("generate", "--customers", arguments.customers, "--days", arguments.days, "--out", work / "in", "--quiet")
        shop.ingest("lake")
        shop.run("lake")
        nothing, _ = shop.run("lake")
        changed = deliver(work / "in", max(1, int(arguments.customers * arguments.share)))
        shop.command("ingest", "--from", work / "in", "--raw-only", "--as-of", AS_OF, lake="lake")
        shutil.copytree(work / "lake", work / "full")
        print(f"{arguments.customers:,} customers, {arguments.days} days; {changed:,} of them with a new order and five new events\n", flush=True)

        first, _ = shop.ingest("lake")
        second, stages = shop.run("lake")
        shop.ingest("full")
        full, _ = shop.run("full", "--full")
        compare(work / "lake", work / "full")

        kinds = [stage.get("refresh", {}).get("kind", "fresh") for stage in stages]
        told = f"{kinds.count('keys')} by key, {kinds.count('full')} in full, {kinds.count('fresh')} as they were"
        print("| | s |\n|---|---|")
        print(f"| full refresh of all {len(stages)} stages | {full:.2f} |")
        print(f"| who is who, and the core stages by key | {first:.2f} |")
        print(f"| the stages behind them ({told}) | {second:.2f} |")
        print(f"| a run with nothing new | {nothing:.2f} |")
        print(f"\n{full / (first + second):.1f} times as fast, identity included; {full / second:.1f} times for the stages behind core; every table is the same")


class Shop:
    def __init__(self, binary, work):
        self.binary, self.work = binary, work

    def command(self, *arguments, lake=None):
        command = [self.binary, "--project", ROOT, "--identity-key", self.work / "key"]
        if lake:
            command += ["--lake", self.work / lake]
        began = time.perf_counter()
        done = subprocess.run([*map(str, command), *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{arguments[0]} ended with {done.returncode}:\n{done.stderr}")
        return time.perf_counter() - began, done.stdout

    def ingest(self, lake):
        return self.command("ingest", "--from", self.work / "in", "--as-of", AS_OF, lake=lake)

    def run(self, lake, *more):
        seconds, report = self.command("run", "--json", "--as-of", AS_OF, *more, lake=lake)
        return seconds, json.loads(report)["stages"]


def deliver(folder, customers, into=None):
    """New orders and events of so many members, told apart from those that were there by their ids; beside the others, or into another folder."""
    chosen = random.Random(1)
    orders, events, seen = [], [], set()
    for line in lines(folder / "orders"):
        order = json.loads(line)
        member = order.get("member_no")
        if not member or member in seen:
            continue
        seen.add(member)
        orders.append({**order, "order_id": f"new-{member}", "ordered_at": "2025-12-31T10:00:00Z"})
    orders = chosen.sample(orders, min(customers, len(orders)))
    for order in orders:
        for event in range(5):
            events.append(
                {
                    "messageId": f"new-{order['member_no']}-{event}",
                    "type": "screen",
                    "userId": order["member_no"],
                    "timestamp": f"2025-12-31T09:0{event}:00Z",
                    "context": {"channel": "app", "session_id": f"new-{order['member_no']}"},
                    "properties": {"url": "/", "duration_ms": 1000},
                }
            )
    for source, rows in (("orders", orders), ("events", events)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = (into or folder) / source / "new.ndjson"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if into:
        # Sources without anything new have a folder, too.
        for source in folder.iterdir():
            if source.is_dir() and source.name != "truth":
                (into / source.name).mkdir(exist_ok=True)
    return len(orders)


def lines(folder):
    for path in sorted(folder.iterdir()):
        for line in path.read_text(errors="ignore").splitlines():
            if re.match(r"^\{.*\}$", line):
                try:
                    json.loads(line)
                except ValueError:
                    continue
                yield line


def compare(one, other):
    """Ends unless every table that a stage makes has the same rows in both lakes."""
    database = duckdb.connect()
    for log in sorted(one.glob("*/*/_delta_log")):
        name = log.parent.relative_to(one)
        # History says when a row became known, which is another moment in every run.
        if name.parts[0] in ("raw", "identity", "history") or name.parts[1].startswith("ingest"):
            continue
        left = deltalake.DeltaTable(str(one / name)).to_pyarrow_dataset().to_table()
        if name.parts[0] == "history":
            # When a run made the rows known, which is not when the other did.
            left = left.drop_columns(["event_timestamp", "known_at", "_version"])
        right = deltalake.DeltaTable(str(other / name)).to_pyarrow_dataset().to_table().select(left.column_names)
        database.register("l", left)
        database.register("r", right)
        for first, second in (("l", "r"), ("r", "l")):
            rows = database.execute(f"select count(*) from (from {first} except all from {second})").fetchone()[0]
            if rows:
                raise SystemExit(f"{name} differs in {rows} rows")


if __name__ == "__main__":
    main()
