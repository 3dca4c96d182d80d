#!/usr/bin/env python3
"""A spine joined with the history of feature views, each row at its own moment: by holdfast-features, DuckDB, polars and Feast.

Each side is a process of its own that reads Parquet files; the answers are compared before any figure is printed. Time and CPU are those of the join, from the
files to the last batch of the answer, without starting and importing; peak memory is each process's own, read from /proc (what the system counts for a child begins
with what its parent had).

    cargo build -p holdfast-features --example point_in_time_bench
    python tests/benches/point_in_time.py --runs 3 --views 25
    python tests/benches/point_in_time.py --runs 1 --big 100000000      # memory, and a day more of history

Needs numpy, pyarrow, duckdb and polars; for Feast a Python that has it, named with --feast.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from measure import machine, measure

YEAR = 365 * 86_400_000_000
BEGIN = 1_735_689_600_000_000
UTC = pa.timestamp("us", "UTC")

CHECK = """
def check(table, views):
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    present = weighed = 0
    weight = np.asarray(table["row"]) % 997 + 1
    for view in views:
        values = table[view]
        present += len(values) - values.null_count
        weighed += int((np.asarray(values.fill_null(0)).astype("int64") * weight).sum())
    return {"rows": len(table), "present": present, "check": weighed, "peak_mib": int(peak.split()[1]) / 1024}
"""

DUCKDB = CHECK + """
import json, sys, time
import duckdb, numpy as np
threads, loaded, spine, *histories = sys.argv[1:]
con = duckdb.connect()
con.execute(f"set threads = {threads}")
con.execute("set enable_progress_bar = false")
views = [f"v{n:02}" for n in range(len(histories))]
names = [f"'{history}'" for history in histories]
spine = f"'{spine}'"
if loaded == "loaded":
    con.execute(f"create table spine as select * from {spine}")
    for n, name in enumerate(names):
        con.execute(f"create table h{n} as select * from {name} order by key, event_timestamp")
    spine, names = "spine", [f"h{n}" for n in range(len(names))]
began, cpu = time.perf_counter(), time.process_time()
joins = " ".join(
    f"asof left join {name} h{n} on s.key = h{n}.key and s.at >= h{n}.event_timestamp" for n, name in enumerate(names)
)
columns = ", ".join(f"h{n}.v as {view}" for n, view in enumerate(views))
table = con.sql(f"select s.*, {columns} from {spine} s {joins}").to_arrow_table()
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, **check(table, views)}))
"""

POLARS = CHECK + """
import json, os, sys, time
threads, _, spine, *histories = sys.argv[1:]
os.environ["POLARS_MAX_THREADS"] = threads
import numpy as np, polars as pl
began, cpu = time.perf_counter(), time.process_time()
table = pl.read_parquet(spine).sort("at")
views = []
for n, history in enumerate(histories):
    view = f"v{n:02}"
    views.append(view)
    right = pl.read_parquet(history, columns=["key", "event_timestamp", "v"]).sort("event_timestamp")
    table = table.join_asof(
        right.rename({"v": view}), left_on="at", right_on="event_timestamp", by="key", check_sortedness=False,
    ).drop("event_timestamp", strict=False)
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, **check(table.to_arrow(), views)}))
"""

FEAST = CHECK + """
import json, os, pathlib, sys, time
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq
from datetime import timedelta
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Int64
_, _, spine, *histories = sys.argv[1:]
repo = pathlib.Path(os.getcwd())
store = FeatureStore(config=RepoConfig(
    project="bench", provider="local", registry=str(repo / "registry.db"), offline_store={"type": "duckdb"},
    online_store={"type": "sqlite", "path": str(repo / "online.db")}, entity_key_serialization_version=3,
))
entity = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
objects, views = [entity], []
for n, history in enumerate(histories):
    views.append(f"v{n:02}")
    source = FileSource(name=f"s{n}", path=history, timestamp_field="event_timestamp", created_timestamp_column="known_at")
    objects.append(FeatureView(name=views[-1], entities=[entity], ttl=timedelta(0), source=source,
                               schema=[Field(name="v", dtype=Int64)]))
store.apply(objects)
began, cpu = time.perf_counter(), time.process_time()
rows = pq.read_table(spine).rename_columns({"at": "event_timestamp"}).to_pandas()
job = store.get_historical_features(entity_df=rows, features=[f"{view}:v" for view in views], full_feature_names=True)
table = job.to_arrow()
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
table = table.rename_columns([name[:-3] if name.endswith("__v") else name for name in table.column_names])
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, **check(table, views)}))
"""


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--bench", type=pathlib.Path, default="target/debug/examples/point_in_time_bench")
    options.add_argument("--spine", type=int, default=1_000_000)
    options.add_argument("--history", type=int, default=5_000_000)
    options.add_argument("--keys", type=int, default=100_000)
    options.add_argument("--text", action="store_true", help="keys of 36 characters instead of integers")
    options.add_argument("--buckets", type=int, default=16)
    options.add_argument("--views", type=int, default=0, help="also that many views at once")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--memory", type=int, default=512, help="what the operator is allowed, MiB")
    options.add_argument("--feast", type=pathlib.Path, help="a Python with feast[duckdb]")
    options.add_argument("--big", type=int, default=0, help="rows of a history that is only read in bounded memory")
    options.add_argument("--work", type=pathlib.Path, help="where the files are made and removed")
    arguments = options.parse_args()
    arguments.bench = arguments.bench.resolve()
    if not arguments.bench.is_file():
        options.error(f"there is no {arguments.bench}: build it, or name another with --bench")
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-point-in-time-", dir=arguments.work) as folder:
        folder = pathlib.Path(folder)
        random = np.random.default_rng(42)
        spine = write_spine(folder / "spine.parquet", random, arguments, arguments.keys)
        if arguments.big:
            big(folder, spine, random, arguments)
        else:
            compare(folder, spine, random, arguments)


def write_spine(path, random, arguments, keys):
    rows = arguments.spine
    table = {
        "row": np.arange(rows),
        # One in fifty keys is unknown.
        "key": names(random.integers(0, keys + keys // 50, rows), arguments.text),
        "at": pa.array(BEGIN + random.integers(0, YEAR, rows), UTC),
    }
    pq.write_table(pa.table(table), path)
    return path


def write_history(path, random, rows, arguments, begin=BEGIN, length=YEAR):
    # As it came: by time. What happened was known at once, for the peers know only one time.
    events = np.sort(begin + random.integers(0, length, rows))
    table = {
        "key": names(random.integers(0, arguments.keys, rows), arguments.text),
        "event_timestamp": pa.array(events, UTC),
        "known_at": pa.array(events, UTC),
        "v": random.integers(0, 100_000, rows),
    }
    pq.write_table(pa.table(table), path, coerce_timestamps="us")
    return path


def names(numbers, text):
    if not text:
        return numbers
    # As long as a UUID, and as little in order.
    numbers = pa.array((numbers.astype("u8") * 0x9E3779B97F4A7C15))
    return pc.binary_join_element_wise(pc.utf8_lpad(numbers.cast(pa.string()), 20, "0"), "-1234-5678-abcd", "")


def keep(arguments, parquet, version=0, folder=None):
    """Writes changes as history; returns its folder and what was measured."""
    folder = folder or parquet.with_suffix("")
    command = [arguments.bench, "write", folder, arguments.buckets, version, parquet]
    measured = measure(list(map(str, command)))
    return folder, told(measured.stdout)


def side(arguments, name, spine, histories, kept):
    threads = str(arguments.threads)
    scripts = {"duckdb": (DUCKDB, ""), "duckdb, tables in memory": (DUCKDB, "loaded"), "polars": (POLARS, "")}
    if name == "holdfast":
        return [str(arguments.bench), "join", str(spine), threads, str(arguments.memory), *map(str, kept)]
    if name == "feast":
        return [str(arguments.feast), "-c", FEAST, threads, "", str(spine), *map(str, histories)]
    script, loaded = scripts[name]
    return [sys.executable, "-c", script, threads, loaded, str(spine), *map(str, histories)]


def told(stdout):
    """The JSON object at the end; Feast shows DuckDB's progress before it."""
    return json.loads(stdout[stdout.rindex("{"):])


def compare(folder, spine, random, arguments):
    history = write_history(folder / "h.parquet", random, arguments.history, arguments)
    kept, written = keep(arguments, history)
    print(f"\nhistory of {written['rows']:,} rows written in {written['seconds']:.2f} s ({written['cpu_seconds']:.1f} s CPU, "
          f"{written['bytes'] / 2**20:,.0f} MiB, {written['peak_mib']:,.0f} MiB peak)")
    cases = [(f"one view, {arguments.history:,} rows", [history], [kept], ["holdfast", "duckdb", "duckdb, tables in memory", "polars", "feast"])]
    if arguments.views:
        parts = [write_history(folder / f"p{n:02}.parquet", random, arguments.history // arguments.views, arguments)
                 for n in range(arguments.views)]
        kept_parts = [keep(arguments, part)[0] for part in parts]
        cases.append((f"{arguments.views} views, {arguments.history:,} rows in all", parts, kept_parts, ["holdfast", "duckdb", "polars"]))
        cases.append((f"{arguments.views} views, {arguments.history:,} rows each", [history] * arguments.views,
                      [kept] * arguments.views, ["holdfast"]))
    print(f"\n| {arguments.spine:,} spine rows, {arguments.keys:,} keys | side | seconds, median | all runs | CPU s | peak MiB | values found |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for title, histories, folders, sides in cases:
        runs, expected = {}, None
        for run in range(arguments.runs):
            for name in sides:
                if name == "feast" and (not arguments.feast or arguments.text or run > 0):
                    continue
                measured = measure(side(arguments, name, spine, histories, folders), folder)
                answer = told(measured.stdout)
                found = (answer["rows"], answer["present"], answer["check"])
                expected = expected or found
                if found != expected:
                    raise SystemExit(f"{title}: {name} found {found}, not {expected}")
                runs.setdefault(name, []).append((answer, measured))
        for name, results in runs.items():
            seconds, cpu = ([answer[key] for answer, _ in results] for key in ["seconds", "cpu_seconds"])
            print(f"| {title} | {name} | **{statistics.median(seconds):.2f}** | {' '.join(f'{s:.2f}' for s in seconds)} "
                  f"| {statistics.median(cpu):.2f} | {max(answer['peak_mib'] for answer, _ in results):,.0f} "
                  f"| {expected[1]:,} |", flush=True)


def big(folder, spine, random, arguments):
    """A history that is made a version at a time, read as it is and merged; and one more day on it and on a tenth of it."""
    print("\n| history | step | seconds | CPU s | peak MiB | |")
    print("|---|---|---|---|---|---|", flush=True)

    def step(title, what, command):
        measured = measure(list(map(str, command)))
        found = told(measured.stdout)
        seconds, cpu, peak = (found.pop(key) for key in ["seconds", "cpu_seconds", "peak_mib"])
        rest = ", ".join(f"{key} {value:,}" for key, value in found.items() if isinstance(value, int) and key != "check")
        print(f"| {title} | {what} | **{seconds:.2f}** | {cpu:.2f} | {peak:,.0f} | {rest} |", flush=True)
        return found

    keys = arguments.big // 50
    arguments.keys = keys
    spine = write_spine(folder / "big_spine.parquet", random, arguments, keys)
    day = write_history(folder / "day.parquet", random, 200_000, arguments, BEGIN + YEAR, 86_400_000_000)
    for rows in [arguments.big // 10, arguments.big]:
        title, kept = f"{rows:,} rows", folder / f"big{rows}"
        step(title, "made, 20 versions", [arguments.bench, "generate", kept, arguments.buckets, rows, keys, 20])
        join = [arguments.bench, "join", spine, arguments.threads, 192, kept]
        before = step(title, f"join {arguments.spine:,} rows, 20 files a bucket", join)
        step(title, "merged", [arguments.bench, "compact", kept, 2])
        after = step(title, f"join {arguments.spine:,} rows, one file a bucket", join)
        if before["check"] != after["check"]:
            raise SystemExit("merging files changed the answer")
        for run in range(arguments.runs):
            step(title, "200,000 rows of one more day", [arguments.bench, "write", kept, arguments.buckets, 20 + run, day])
        step(title, f"join {arguments.spine:,} rows, {arguments.runs + 1} files a bucket", join)


if __name__ == "__main__":
    main()
