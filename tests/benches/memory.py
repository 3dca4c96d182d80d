#!/usr/bin/env python3
"""Peak memory of ingestion, for inputs from one small file to five gigabytes, a hundred thousand files and wide rows.

Every input is made, ingested into a lake of its own by a process of its own, counted, and removed. Ends with an error when one of
them takes more above the small file than allowed.

    python tests/benches/memory.py --holdfast target/release/holdfast
"""

import argparse
import gzip
import json
import pathlib
import subprocess
import tempfile

from measure import machine, measure

# What the largest input may take above the smallest.
OVER_BASE_MIB_MAX = 512

COLUMNS = {"order_id": "string", "member": "string", "at": "timestamp", "amount": "decimal(12,2)"}
# Rows that are made once and written again and again; more than any compressor's window.
BLOCK_ROWS = 40_000


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--gigabytes", type=float, default=5, help="size of the large files")
    options.add_argument("--files", type=int, default=100_000, help="number of small files")
    options.add_argument("--only", help="inputs whose names have this in them")
    options.add_argument("--work", type=pathlib.Path, help="where inputs and lakes are made and removed")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")

    size = int(arguments.gigabytes * 1e9)
    inputs = {
        "one file of 10 rows": lambda folder: one_file(folder, 10),
        f"one CSV of {arguments.gigabytes:g} GB": lambda folder: large(folder, size, open, "csv"),
        "the same, gzip": lambda folder: large(folder, size, packed, "csv.gz"),
        f"{arguments.files:,} files of 10 rows": lambda folder: many_files(folder, arguments.files),
        "1,000 columns, 100,000 rows": lambda folder: wide(folder, 1_000, 100_000),
        "1,000 fields of 1 MB": long_fields,
    }
    print(machine(), flush=True)
    print("| input | bytes | rows | wall s | CPU s | peak MiB | over base MiB |")
    print("|---|---|---|---|---|---|---|")
    base, worst = None, 0
    for name, make in inputs.items():
        if base is not None and arguments.only and arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="holdfast-memory-", dir=arguments.work) as folder:
            measured, size_read, rows = ingest(binary, pathlib.Path(folder), make)
        base = base if base is not None else measured.peak_memory_mib
        over = measured.peak_memory_mib - base
        worst = max(worst, over)
        print(
            f"| {name} | {size_read:,} | {rows:,} | {measured.wall_seconds:.1f} | {measured.cpu_seconds:.1f} "
            f"| {measured.peak_memory_mib:.0f} | {over:.0f} |",
            flush=True,
        )
    if worst > OVER_BASE_MIB_MAX:
        raise SystemExit(f"{worst:.0f} MiB above the smallest input, {OVER_BASE_MIB_MAX} are allowed")


def ingest(binary, folder, make):
    sources = folder / "in" / "orders"
    sources.mkdir(parents=True)
    columns, rows = make(sources)
    contract = 'kind = "orders"\npath = "orders/*"\nformat = "csv"\n'
    contract += "[columns]\n" + "".join(f'{name} = "{kind}"\n' for name, kind in columns.items())
    for path, text in [
        ("holdfast.toml", ""),
        ("pipelines/churn/pipeline.toml", 'stages = "sql"\n'),
        ("pipelines/churn/identity.toml", 'priority = ["member_id"]\n[types.member_id]\nunique = true\n'),
        ("pipelines/churn/sources/orders.toml", contract),
        ("sql/core/orders.sql", "-- One row an order.\nselect order_id from raw.orders\n"),
    ]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    size = sum(file.stat().st_size for file in sources.iterdir())
    command = [str(binary), "--project", str(folder), "--lake", str(folder / "lake"), "--quiet"]
    measured = measure([*command, "ingest", "--raw-only", "--json", "--from", str(folder / "in")])
    (source,) = json.loads(measured.stdout)["sources"]
    if source["rows_stored"] != rows or source["rows_quarantined"]:
        raise SystemExit(f"{source['rows_stored']} of {rows} rows were stored")
    count = [*command, "sql", "--output", "json", "select count(*) as n from raw.orders"]
    found = json.loads(subprocess.run(count, check=True, capture_output=True, text=True).stdout)
    if found != [{"n": rows}]:
        raise SystemExit(f"{found} of {rows} rows are in raw")
    return measured, size, rows


def lines(first, count):
    return "".join(
        f"o{row},M{row * 7919 % 1_000_003},2025-{row % 12 + 1:02}-{row % 28 + 1:02}T{row % 24:02}:00:00Z,{row % 9973}.25\n"
        for row in range(first, first + count)
    )


def header(columns=COLUMNS):
    return ",".join(columns) + "\n"


def one_file(folder, rows):
    (folder / "1.csv").write_text(header() + lines(0, rows))
    return COLUMNS, rows


def packed(path, mode):
    return gzip.open(path, mode, compresslevel=1)


def large(folder, size, opener, suffix):
    block = lines(0, BLOCK_ROWS).encode()
    times = max(1, size // len(block))
    with opener(folder / f"large.{suffix}", "wb") as out:
        out.write(header().encode())
        for _ in range(times):
            out.write(block)
    return COLUMNS, times * BLOCK_ROWS


def many_files(folder, files):
    for file in range(files):
        (folder / f"{file:07}.csv").write_text(header() + lines(file * 10, 10))
    return COLUMNS, files * 10


def wide(folder, columns, rows):
    names = {"order_id": "string"} | {f"c{index}": "string" if index % 2 else "int64" for index in range(columns - 1)}
    with (folder / "wide.csv").open("w") as out:
        out.write(header(names))
        for row in range(rows):
            values = (f"t{(row + index) % 1_000}" if index % 2 else str(row * index) for index in range(columns - 1))
            out.write(f"o{row}," + ",".join(values) + "\n")
    return names, rows


def long_fields(folder):
    text = "".join(chr(97 + index * 7919 % 26) for index in range(1_000_000))
    with (folder / "long.csv").open("w") as out:
        out.write("order_id,text\n")
        for row in range(1_000):
            out.write(f"o{row},{row}{text}\n")
    return {"order_id": "string", "text": "string"}, 1_000


if __name__ == "__main__":
    main()
