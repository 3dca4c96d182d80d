#!/usr/bin/env python3
"""`holdfast ingest` of order lines, beside deltalake with pyarrow's readers and DuckDB writing plain Parquet.

All read the same file, in turn, several times in one run, and must agree on the rows and on the sum of `line_amount`
before anything is said about time. DuckDB is the floor: it checks less, keeps no ledger and writes no table.

    python tests/benches/ingest.py --holdfast target/release/holdfast

Needs the packages of tests/clients/requirements.txt.
"""

import argparse
import decimal
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from measure import machine, measure

# Arrow type, DuckDB type and the contract's type of each column.
COLUMNS = {
    "order_id": ("string", "varchar", "string"),
    "line_no": ("int32", "integer", "int32"),
    "ordered_at": ("timestamp", "timestamptz", "timestamp"),
    "product_id": ("string", "varchar", "string"),
    "product_name": ("string", "varchar", "string"),
    "category": ("string", "varchar", "string"),
    "brand": ("string", "varchar", "string"),
    "quantity": ("int32", "integer", "int32"),
    "unit_price": ("money", "decimal(12,2)", "decimal(12,2)"),
    "discount_amount": ("money", "decimal(12,2)", "decimal(12,2)"),
    "line_amount": ("money", "decimal(12,2)", "decimal(12,2)"),
}
FORMATS = ("ndjson", "csv")
CONTENDERS = ("holdfast", "deltalake", "duckdb")
CUSTOMERS_AT_ONCE = 20_000


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--runs", type=int, default=3, help="of each, in turn; the median counts")
    options.add_argument("--key", action="store_true", help="contracts name a key, so that duplicates are counted")
    options.add_argument("--only", choices=CONTENDERS, action="append", help="leave the others out")
    options.add_argument("--work", type=pathlib.Path, help="keeps the sources there for another time")
    options.add_argument("--json", type=pathlib.Path, help="also writes all measurements to this file")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")

    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as temporary:
        work = (arguments.work or pathlib.Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        print(machine(), flush=True)
        expected = make_sources(binary, work, arguments.rows)
        write_project(work / "project", arguments.key)
        contenders = arguments.only or CONTENDERS
        measurements = {}
        for file_format in FORMATS:
            size = source(work, file_format).stat().st_size / 1e6
            print(f"\n{file_format}: {arguments.rows:,} rows, {size:.0f} MB", flush=True)
            runs = {name: [] for name in contenders}
            for turn in range(arguments.runs):
                for name in contenders:
                    runs[name].append(contend(name, binary, work, file_format, expected))
                print(f"  turn {turn + 1} of {arguments.runs} done, all answers agree", flush=True)
            measurements[file_format] = runs
            report(runs, arguments.rows)
        if arguments.json:
            arguments.json.write_text(json.dumps(measurements, indent=1) + "\n")


def make_sources(binary, work, rows):
    """Clean generated order lines, one file a format; the answer that everybody must find."""
    ndjson, csv = source(work, "ndjson"), source(work, "csv")
    answer = work / f"answer-{rows}.json"
    if not answer.exists():
        for path in (ndjson, csv):
            path.parent.mkdir(parents=True, exist_ok=True)
        generate_lines(binary, work, ndjson, rows)
        total = convert_to_csv(ndjson, csv)
        answer.write_text(json.dumps({"rows": rows, "line_amount": str(total)}))
    found = json.loads(answer.read_text())
    return {"rows": found["rows"], "line_amount": decimal.Decimal(found["line_amount"])}


def source(work, file_format):
    return work / "sources" / f"order_lines_{file_format}" / f"lines.{file_format}"


def generate_lines(binary, work, target, rows):
    """Shop after shop, each with a seed of its own, until there are enough lines."""
    written, seed = 0, 1
    with target.open("wb") as out:
        while written < rows:
            shop = work / "shop"
            shutil.rmtree(shop, ignore_errors=True)
            command = [binary, "generate", "--quiet", "--out", shop, "--customers", CUSTOMERS_AT_ONCE]
            command += ["--seed", seed, "--dirty-share", 0]
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            for file in sorted((shop / "order_lines").glob("*.ndjson")):
                with file.open("rb") as lines:
                    for line in lines:
                        if written == rows:
                            break
                        out.write(line)
                        written += 1
            shutil.rmtree(shop)
            print(f"  generated {written:,} of {rows:,} order lines", flush=True)
            seed += 1


def convert_to_csv(ndjson, csv):
    import csv as writer

    total = decimal.Decimal(0)
    with ndjson.open(encoding="utf-8") as lines, csv.open("w", encoding="utf-8", newline="") as out:
        rows = writer.writer(out, lineterminator="\n")
        rows.writerow(COLUMNS)
        for line in lines:
            row = json.loads(line, parse_float=decimal.Decimal)
            total += row["line_amount"]
            rows.writerow(["" if row.get(name) is None else row[name] for name in COLUMNS])
    return total


def write_project(project, has_key):
    """A project of two sources and no stages."""
    for folder in ("pipelines/bench/sources", "sql"):
        (project / folder).mkdir(parents=True, exist_ok=True)
    (project / "holdfast.toml").write_text("")
    pipeline = project / "pipelines" / "bench"
    (pipeline / "pipeline.toml").write_text('stages = "sql"\n')
    (pipeline / "identity.toml").write_text('priority = ["member_id"]\n[types.member_id]\nunique = true\n')
    columns = "".join(f'{name} = "{contract}"\n' for name, (_, _, contract) in COLUMNS.items())
    for file_format in FORMATS:
        name = f"order_lines_{file_format}"
        head = f'kind = "orders"\npath = "{name}/*"\nformat = "{file_format}"\nevent_time = "ordered_at"\n'
        head += 'key = ["order_id", "line_no"]\n' if has_key else ""
        (pipeline / "sources" / f"{name}.toml").write_text(f"{head}\n[columns]\n{columns}")


def contend(name, binary, work, file_format, expected):
    """One measured run; the answer is looked up afterwards and by a process of its own."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if name == "holdfast":
        command = [binary, "--quiet", "--project", work / "project", "--pipeline", "bench", "--lake", out / "lake"]
        command += ["--identity-key", out / "identity.key", "ingest", "--raw-only"]
        command += ["--from", work / "sources", "--source", f"order_lines_{file_format}"]
    else:
        command = [sys.executable, __file__, f"as-{name}", file_format, source(work, file_format), out / "table"]
    measured = measure([str(part) for part in command], out)
    # A peer's interpreter and imports are not held against it; all of holdfast's process is.
    seconds = measured.wall_seconds if name == "holdfast" else json.loads(measured.stdout)["seconds"]

    table = out / "lake" / "raw" / f"order_lines_{file_format}" if name == "holdfast" else out / "table"
    check = [sys.executable, __file__, "answer", "parquet" if name == "duckdb" else "delta", table]
    found = json.loads(subprocess.run([str(part) for part in check], check=True, capture_output=True, text=True).stdout)
    if found["rows"] != expected["rows"] or decimal.Decimal(found["line_amount"]) != expected["line_amount"]:
        raise SystemExit(f"{name} found {found}, expected {expected}")
    size = sum(file.stat().st_size for file in table.rglob("*.parquet"))
    shutil.rmtree(out)
    return {
        "seconds": seconds,
        "cpu_seconds": measured.cpu_seconds,
        "peak_memory_mib": measured.peak_memory_mib,
        "written_mb": size / 1e6,
    }


def report(runs, rows):
    middle = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
    }
    print("\n| | wall s (all runs) | rows/s | CPU s | peak MiB | Parquet MB | wall, holdfast = 1 |")
    print("|---|---|---|---|---|---|---|")
    for name, found in middle.items():
        walls = " ".join(f"{run['seconds']:.2f}" for run in runs[name])
        print(
            f"| {name} | **{found['seconds']:.2f}** ({walls}) | {rows / found['seconds']:,.0f} "
            f"| {found['cpu_seconds']:.1f} | {found['peak_memory_mib']:.0f} | {found['written_mb']:.0f} "
            f"| {found['seconds'] / middle.get('holdfast', found)['seconds']:.2f} |",
            flush=True,
        )


def arrow_schema():
    import pyarrow

    types = {
        "string": pyarrow.string(),
        "int32": pyarrow.int32(),
        "timestamp": pyarrow.timestamp("us", tz="UTC"),
        "money": pyarrow.decimal128(12, 2),
    }
    return pyarrow.schema([(name, types[arrow]) for name, (arrow, _, _) in COLUMNS.items()])


def as_deltalake(file_format, path, table):
    """The other process: pyarrow reads, in batches where it can, and delta-rs writes."""
    import deltalake
    import pyarrow
    import pyarrow.csv
    import pyarrow.json

    schema = arrow_schema()
    began = time.perf_counter()
    if file_format == "csv":
        convert = pyarrow.csv.ConvertOptions(column_types=schema)
        rows = pyarrow.csv.open_csv(path, convert_options=convert)
    else:
        # Blocks of 1 MiB, as for CSV. The reader takes timestamps without a zone only, so they get theirs afterwards.
        local = schema.set(schema.get_field_index("ordered_at"), pyarrow.field("ordered_at", pyarrow.timestamp("us")))
        parse = pyarrow.json.ParseOptions(explicit_schema=local)
        reader = pyarrow.json.open_json(path, parse_options=parse)
        batches = (batch.cast(schema) for batch in reader)
        rows = pyarrow.RecordBatchReader.from_batches(schema, batches)
    deltalake.write_deltalake(table, rows)
    print(json.dumps({"seconds": time.perf_counter() - began}))


def as_duckdb(file_format, path, table):
    """The other process: DuckDB reads and writes plain Parquet."""
    import duckdb

    types = ", ".join(f"'{name}': '{duck}'" for name, (_, duck, _) in COLUMNS.items())
    reader = "read_csv" if file_format == "csv" else "read_ndjson"
    header = ", header = true, auto_detect = false" if file_format == "csv" else ""
    pathlib.Path(table).mkdir()
    began = time.perf_counter()
    duckdb.sql(
        f"copy (select * from {reader}('{path}', columns = {{{types}}}{header})) "
        f"to '{table}/rows.parquet' (format parquet)"
    )
    print(json.dumps({"seconds": time.perf_counter() - began}))


def answer(kind, table):
    """Rows and sum of what a contender wrote, read by delta-rs and pyarrow."""
    import deltalake
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    if kind == "delta":
        amounts = deltalake.DeltaTable(table).to_pyarrow_table(columns=["line_amount"])
    else:
        amounts = pyarrow.parquet.read_table(table, columns=["line_amount"])
    total = pyarrow.compute.sum(amounts["line_amount"].cast(pyarrow.decimal128(38, 2))).as_py()
    print(json.dumps({"rows": amounts.num_rows, "line_amount": str(total)}))


PROCESSES = {"as-deltalake": as_deltalake, "as-duckdb": as_duckdb, "answer": answer}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in PROCESSES:
        PROCESSES[sys.argv[1]](*sys.argv[2:])
    else:
        main()
