#!/usr/bin/env python3
"""The stages of the churn pack beside DuckDB, dbt, SQLMesh and Spark, on the same data, with the same answers.

    python tests/benches/stages.py --holdfast target/debug/holdfast --peers peers --customers 10000

Parts, of which `--parts` takes some:

    full     all stages in full by each; answers are compared first, table by table
    changed  one customer in a hundred has something new: by key, beside a full refresh and dbt's incremental models
    history  the same change where there is ten times the history
    nothing  a run of 50 stages with nothing to do
    check    a look at 200 stages without data
    bad      an order that no expectation allows: who can see it

Needs the packages of tests/clients/requirements.txt. The peers are put into environments of their own below `--peers`, where they are not yet:
dbt-core 1.11.16 with dbt-duckdb 1.11.1, SQLMesh 0.236.4 and pyspark 4.0.1 (with sqlglot 30.8.0); all that have it run DuckDB 1.5.6. dbt 2 and
dbt-core 1.12 need downloads from their makers at installation and are not compared. Spark needs Java 17.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import deltalake
import duckdb

import stages_projects
import stages_sql
from increments import AS_OF, ROOT, Shop, compare, deliver
from measure import machine, measure_tree

MOMENT = datetime.datetime.fromisoformat(AS_OF).replace(tzinfo=None)
HERE = pathlib.Path(__file__).resolve().parent
PACKAGES = {
    "dbt": ["dbt-core==1.11.16", "dbt-duckdb==1.11.1", "duckdb==1.5.6"],
    "sqlmesh": ["sqlmesh==0.236.4", "duckdb==1.5.6"],
    "spark": ["pyspark==4.0.1", "sqlglot==30.8.0"],
}
# How far sums of floats may be apart, of their size: they depend on the order of rows.
TOLERANCE = 1e-9


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--peers", type=pathlib.Path, required=True, help="a folder for the environments of the peers")
    options.add_argument("--customers", type=int, default=10_000)
    options.add_argument("--days", type=int, default=365)
    options.add_argument("--share", type=float, default=0.01, help="of the customers, how many have something new")
    options.add_argument("--runs", type=int, default=1, help="how often each side runs in full")
    options.add_argument("--parts", default="full,changed,history,nothing,check,bad")
    options.add_argument("--without", default="", help="peers to leave out: duckdb, dbt, sqlmesh, spark")
    options.add_argument("--in-turn", action="store_true", help="one stage at a time, so that seconds of stages can be compared")
    options.add_argument("--spark-memory", default="6g")
    options.add_argument("--work", type=pathlib.Path, help="where everything is made and removed")
    options.add_argument("--keep", action="store_true", help="do not remove it")
    options.add_argument("--again", type=pathlib.Path, help="a folder that a run with --keep left: its lake is used, not made")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")
    parts = {"full": full, "changed": changed, "history": history, "nothing": nothing, "check": check, "bad": bad}
    chosen = arguments.parts.split(",")
    if unknown := set(chosen) - set(parts):
        options.error(f"there is no part {', '.join(sorted(unknown))}: there are {', '.join(parts)}")

    work = arguments.again or pathlib.Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=arguments.work))
    arguments.keep = arguments.keep or bool(arguments.again)
    try:
        print(machine(), flush=True)
        bench = Bench(binary, work, arguments)
        for name in parts:
            if name in chosen:
                parts[name](bench)
    finally:
        if arguments.keep:
            print(f"kept in {work}")
        else:
            shutil.rmtree(work)


class Bench:
    def __init__(self, binary, work, arguments):
        self.binary, self.work, self.arguments = binary, work, arguments
        self.peers = [peer for peer in ("duckdb", *PACKAGES) if peer not in arguments.without.split(",")]
        self.project = work / "project"
        shutil.rmtree(self.project, ignore_errors=True)
        for name in ("sql", "pipelines"):
            shutil.copytree(ROOT / name, self.project / name)
        settings = (ROOT / "holdfast.toml").read_text()
        if arguments.in_turn:
            settings = re.sub(r"parallel_stages = \d+", "parallel_stages = 1", settings)
        (self.project / "holdfast.toml").write_text(settings)
        self.stages = stages_sql.read(self.project / "sql")
        self.shop = Shop(binary, work)

    def environment(self, peer):
        """The folder with the programs of a peer's environment, which is made if it is missing."""
        peer = "dbt" if peer == "duckdb" else peer
        folder = self.arguments.peers.resolve() / peer
        if not (folder / "made").is_file():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([folder / "bin/pip", "install", "--quiet", *PACKAGES[peer]], check=True)
            (folder / "made").touch()
        return folder / "bin"

    def holdfast(self, *arguments, lake=None, project=None, checked=True):
        """A command, measured; with what it printed read as JSON where it is."""
        command = [self.binary, "--project", project or self.project, "--identity-key", self.work / "key"]
        if lake:
            command += ["--lake", lake]
        return measure_tree([*command, *arguments], checked=checked)

    def lake(self):
        """A lake with a generated shop, all stages built."""
        lake = self.work / "lake"
        if not lake.exists():
            said = self.arguments
            self.holdfast("generate", "--customers", said.customers, "--days", said.days, "--out", self.work / "in", "--quiet")
            self.holdfast("ingest", "--from", self.work / "in", "--as-of", AS_OF, lake=lake)
            self.holdfast("run", "--json", "--as-of", AS_OF, lake=lake)
        return lake


def full(bench):
    arguments = bench.arguments
    lake = bench.lake()
    ours = []
    for _ in range(arguments.runs):
        ours.append(bench.holdfast("run", "--full", "--json", "--as-of", AS_OF, lake=lake))
    report = {stage["stage"]: stage for stage in json.loads(ours[-1].stdout)["stages"]}
    inputs = export(bench, lake, bench.work / "inputs")
    plan = translate(bench, report, inputs)
    rows = {"raw": 0, "core.events": report["core.events"]["rows"]}
    for name in inputs:
        if name.startswith("raw."):
            rows["raw"] += deltalake.DeltaTable(str(lake / name.replace(".", "/"))).count()
    print(
        f"\n{arguments.customers:,} customers, {arguments.days} days, {rows['raw']:,} raw rows that stages read, {rows['core.events']:,} events; {len(plan['stages'])} stages\n",
        flush=True,
    )

    print("| | wall s | CPU s | peak MiB | of holdfast's wall | of its CPU | tables that differ |\n|---|---|---|---|---|---|---|")
    base = median(ours)
    line("holdfast run --full", ours, base, None)
    seconds = {"holdfast": {name: stage["seconds"] for name, stage in report.items()}}
    notes = []
    for label, run, tables in sides(bench, plan, report):
        done = [run() for _ in range(arguments.runs)]
        said = done[-1]
        if said.returncode:
            notes.append(f"{label} failed:\n{(said.stderr or said.stdout)[-3000:]}")
        differences = differing(lake, plan, tables) if tables else []
        line(label, done, base, differences)
        notes += [f"{label}: {name} {difference}" for name, difference in differences]
        if said.stdout.startswith("{") and not said.returncode:
            seconds[label] = json.loads(said.stdout)
    for name, missing in plan["left_out"].items():
        print(f"\nNot run by peers: {name}, whose {', '.join(missing)} has nothing yet.")
    print("\n" + "\n".join(notes) if notes else "\nEvery table is the same on all sides.")

    columns = list(seconds)
    told = "one stage at a time" if arguments.in_turn else "two stages at a time, so that each waits for the other"
    print(f"\nSeconds of stages; holdfast runs {told}.\n\n| stage | rows | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name in sorted(report, key=lambda name: -report[name]["seconds"]):
        times = " | ".join(f"{seconds[column].get(name, float('nan')):.3f}" for column in columns)
        print(f"| {name} | {report[name].get('rows', 0):,} | {times} |")
    sums = " | ".join(f"{sum(seconds[column].values()):.2f}" for column in columns)
    print(f"| all | | {sums} |", flush=True)


def sides(bench, plan, report):
    """Every way in which a peer runs the plan: a name, what runs it, and a query for its rows of a table."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}

    def script(peer, how, label):
        # Every run begins with nothing.
        out = bench.work / f"out-{how}"
        path = bench.work / f"plan-{how}.json"
        path.write_text(json.dumps({**plan, "out": str(out)}))

        def run():
            shutil.rmtree(out, ignore_errors=True)
            return measure_tree(
                [bench.environment(peer) / "python", HERE / "stages_peers.py", how, path], environment=environment, checked=False
            )

        if how == "tables":
            return label, run, lambda name: (out / "tables.duckdb", name)
        pattern = "*.parquet/*.parquet" if how == "spark" else "*.parquet"
        return label, run, lambda name: (None, f"read_parquet('{out / pattern.replace('*', name, 1)}')")

    if "duckdb" in bench.peers:
        yield script("duckdb", "parquet", "DuckDB, Parquet to Parquet")
        yield script("duckdb", "tables", "DuckDB, Parquet to its own tables")
    if "dbt" in bench.peers:
        for command, label in (("run", "dbt run"), ("build", "dbt build, expectations as tests")):
            folder = bench.work / f"dbt-{command}"

            def run(folder=folder, command=command):
                stages_projects.write_dbt(folder, plan, report, bench.stages, MOMENT)
                return measure_tree(
                    [bench.environment("dbt") / "dbt", "--quiet", command, "--threads", "2"],
                    folder,
                    {**environment, "DBT_PROFILES_DIR": str(folder)},
                    checked=False,
                )

            yield label, run, lambda name, folder=folder: (folder / "bench.duckdb", name)
    if "sqlmesh" in bench.peers:
        folder = bench.work / "sqlmesh"

        def run_mesh():
            stages_projects.write_sqlmesh(folder, plan, report, bench.stages, MOMENT)
            return measure_tree(
                [bench.environment("sqlmesh") / "sqlmesh", "plan", "--auto-apply", "--no-prompts"], folder, environment, checked=False
            )

        yield "SQLMesh plan, expectations as audits", run_mesh, lambda name: (folder / "bench.duckdb", name)
    if "spark" in bench.peers:
        yield script("spark", "spark", "Spark local[2], Parquet to Parquet")


def export(bench, lake, folder):
    """The tables that stages read and no stage makes, as one Parquet file each, with timestamps in UTC without a zone; the hashes of identifiers are made by stages."""
    folder.mkdir(exist_ok=True)
    hashed = {}
    for stage in bench.stages:
        raw, calls = stages_sql.tokens(stage)
        if raw:
            hashed[raw] = "peer." + raw.removeprefix("raw.")
            columns = ",\n".join(f"    {call} as _token_{place}" for place, call in enumerate(calls, 1))
            path = bench.project / f"sql/peer/{raw.removeprefix('raw.')}.sql"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"-- @stage full\n-- @owner nobody\nselect\n    *,\n{columns}\nfrom {raw}\n")
    bench.holdfast("run", "--select", "peer.*", "--as-of", AS_OF, lake=lake)
    shutil.rmtree(bench.project / "sql/peer")

    made = {stage.name for stage in bench.stages}
    read = sorted({name for stage in bench.stages for name in stage.reads} - made)
    inputs = {}
    for name in read:
        table = lake / hashed.get(name, name).replace(".", "/")
        if table.exists():
            inputs[name] = str(folder / f"{name.replace('.', '-')}.parquet")
            write_parquet(table, inputs[name])
    return inputs


def write_parquet(table, path):
    """A Delta table as one Parquet file."""
    database = duckdb.connect()
    database.execute("set TimeZone = 'UTC'; set preserve_insertion_order = true")
    view(database, "t", table)
    zoned = [name for name, kind, *_ in database.execute("describe t").fetchall() if kind == "TIMESTAMP WITH TIME ZONE"]
    casts = ", ".join(f'"{name}"::timestamp as "{name}"' for name in zoned)
    database.execute(f"copy (select * {f'replace ({casts})' if casts else ''} from t) to '{path}' (format parquet)")


def view(database, name, table):
    """A view of a Delta table, from its files: through a pyarrow dataset DuckDB 1.5.6 gives structs within structs to other rows."""
    table = deltalake.DeltaTable(str(table))
    if files := table.file_uris():
        database.execute(f"create view {name} as from read_parquet({files}, union_by_name = true, hive_partitioning = false)")
    else:
        database.register(name, table.to_pyarrow_dataset())


def translate(bench, report, inputs):
    """What peers run: the stages in DuckDB's SQL, with inputs under the names that it reads."""
    renamed = {stages_sql.tokens(stage)[0] for stage in bench.stages}
    inputs = {(name.replace("raw.", "peer.") if name in renamed else name): path for name, path in inputs.items()}
    return translate_only(bench, bench.stages, inputs, report)


def translate_only(bench, chosen, inputs, report):
    """As `translate`, of some stages, whose inputs are all there. HUGEINT columns are found by describing each query, in order."""
    database = duckdb.connect()
    database.execute("set integer_division = true")
    for schema in stages_sql.SCHEMAS:
        database.execute(f"create schema {schema}")
    for name, path in inputs.items():
        database.execute(f"create schema if not exists {name.split('.')[0]}")
        database.execute(f"create view {name} as select * from read_parquet('{path}')")
    stages, left_out = [], {}
    made = {stage.name for stage in chosen}
    for stage in chosen:
        missing = [name for name in stage.reads if name.replace("raw.", "peer.") not in inputs and name not in inputs and name not in made]
        if missing:
            # Nothing has been written there yet, and so there is nothing to compare.
            left_out[stage.name] = missing
            continue
        aside = [told["condition"] for told in report[stage.name]["expectations"] if told["severity"] == "quarantine"]
        sql = stages_sql.duckdb(stage, MOMENT, aside)
        columns = [row[:2] for row in database.execute(f"describe {sql}").fetchall()]
        sql = stages_sql.narrowed(sql, columns)
        # Empty, for the stages behind it.
        database.execute(f"create table {stage.name} as select * from ({sql}) limit 0")
        stages.append({"name": stage.name, "sql": sql, "key": stage.key})
    return {"inputs": inputs, "stages": stages, "left_out": left_out, "threads": 2, "memory": bench.arguments.spark_memory}


def differing(lake, plan, tables):
    """Which tables of a peer are not those of the lake, and how: rows, and a sum of each column."""
    found = []
    for stage in plan["stages"]:
        name = stage["name"]
        database = duckdb.connect()
        database.execute("set TimeZone = 'UTC'")
        file, theirs = tables(name)
        try:
            if file:
                # Under its own name, which views of SQLMesh say.
                database.execute(f"attach '{file}' as {file.stem} (read_only)")
                theirs = f"{file.stem}.{theirs}"
            columns = {row[0]: row[1] for row in database.execute(f"describe from {theirs}").fetchall()}
        except duckdb.Error as error:
            found.append((name, f"is not there ({str(error).splitlines()[0]})"))
            continue
        view(database, "ours", lake / name.replace(".", "/"))
        kinds = {row[0]: row[1] for row in database.execute("describe ours").fetchall()}
        left, right = (sums(database, table, columns, kinds) for table in ("ours", theirs))
        for column, (one, other) in ((column, (left[column], right[column])) for column in left):
            if not alike(one, other):
                found.append((name, f"{column}: {one} beside {other}"))
    return found


def sums(database, table, columns, kinds):
    """Rows, and of each column the values that are there and an order-free sum: of numbers as they are, else of hashes."""
    wanted = ["count(*)"]
    for name in columns:
        kind = kinds[name]
        if kind in ("DOUBLE", "FLOAT"):
            total = f'sum("{name}"::double)'
        elif re.match(r"(DECIMAL|U?(TINY|SMALL|BIG)?INT|HUGEINT)", kind):
            total = f'sum("{name}"::decimal(38, 6))'
        elif kind.startswith("TIMESTAMP"):
            total = f'sum(epoch_us("{name}"::timestamp)::hugeint)'
        else:
            total = f'sum(hash("{name}"::varchar)::hugeint)'
        wanted += [f'count("{name}")', total]
    values = database.execute(f"select {', '.join(wanted)} from {table}").fetchone()
    return {"rows": values[:1], **{name: values[1 + 2 * place : 3 + 2 * place] for place, name in enumerate(columns)}}


def alike(one, other):
    for left, right in zip(one, other):
        if isinstance(left, float) and isinstance(right, (int, float)):
            if abs(left - right) > TOLERANCE * max(abs(left), abs(right), 1):
                return False
        elif left != right:
            return False
    return True


def median(runs):
    return statistics.median(run.wall_seconds for run in runs), statistics.median(run.cpu_seconds for run in runs)


def line(label, runs, base, differences):
    wall, cpu = median(runs)
    peak = max(run.peak_memory_mib for run in runs)
    if runs[-1].returncode:
        label += " (failed)"
    told = "" if differences is None else len({name for name, _ in differences})
    print(f"| {label} | {wall:.2f} | {cpu:.1f} | {peak:,.0f} | {wall / base[0]:.2f} | {cpu / base[1]:.2f} | {told} |", flush=True)


def changed(bench):
    lake = bench.lake()
    before = bench.work / "before"
    behind = [stage for stage in bench.stages if stage.name.split(".")[0] in ("profile", "features", "risk")]
    inputs = sorted({name for stage in behind for name in stage.reads} - {stage.name for stage in behind})
    inputs = [name for name in inputs if (lake / name.replace(".", "/")).exists()]
    write_all(lake, inputs, before)
    customers, identity, by_key, full_run, stages, by_key_lake = change(bench, lake, bench.work / "in")
    kinds = [stage.get("refresh", {}).get("kind", "fresh") for stage in stages]
    told = f"{kinds.count('keys')} by key, {kinds.count('full')} in full, {kinds.count('fresh')} as they were"
    print(
        f"\n{customers:,} of {bench.arguments.customers:,} customers have a new order and five new events; every table is what a full refresh makes of it.\n"
    )
    print("| | wall s | CPU s | peak MiB |\n|---|---|---|---|")
    for label, run in (
        (f"full refresh of all {len(stages)} stages", full_run),
        ("who is who, and the core stages by key", identity),
        (f"the stages behind them ({told})", by_key),
    ):
        print(f"| {label} | {run.wall_seconds:.2f} | {run.cpu_seconds:.1f} | {run.peak_memory_mib:,.0f} |")
    both = identity.wall_seconds + by_key.wall_seconds
    print(
        f"\n{full_run.wall_seconds / both:.1f} times as fast, identity included; {full_run.wall_seconds / by_key.wall_seconds:.1f} times for the stages behind core."
    )
    print(
        f"By CPU {full_run.cpu_seconds / (identity.cpu_seconds + by_key.cpu_seconds):.1f} and {full_run.cpu_seconds / by_key.cpu_seconds:.1f} times.\n",
        flush=True,
    )
    if "dbt" in bench.peers:
        changed_dbt(bench, lake, by_key_lake, behind, inputs, before)


def changed_dbt(bench, lake, after_lake, behind, inputs, before):
    """The same stages behind core as incremental models by customer. Which customers changed is given to dbt, which cannot find out."""
    report = {stage["stage"]: stage for stage in json.loads(bench.holdfast("run", "--json", "--as-of", AS_OF, lake=lake).stdout)["stages"]}
    after = bench.work / "after"
    write_all(after_lake, inputs, after)
    database = duckdb.connect()
    database.execute(
        f"create view orders as from read_parquet('{after}/core-orders.parquet'); create view sessions as from read_parquet('{after}/core-sessions.parquet')"
    )
    changed_keys = after / "changed-customers.parquet"
    database.execute(
        "copy (select distinct customer_id from orders where order_id like 'new-%' and customer_id is not null union "
        f"select distinct customer_id from sessions where session_id like 'new-%') to '{changed_keys}' (format parquet)"
    )
    (before / "changed-customers.parquet").write_bytes(changed_keys.read_bytes())
    folder = bench.work / "dbt-incremental"
    environment = {**os.environ, "DBT_PROFILES_DIR": str(folder)}
    times = {}
    for label, inside, more in (("full", before, ()), ("incremental", after, ()), ("again in full", after, ("--full-refresh",))):
        plan = translate_only(
            bench, behind, {name: str(inside / f"{name.replace('.', '-')}.parquet") for name in [*inputs, "changed.customers"]}, report
        )
        stages_projects.write_dbt(folder, plan, report, behind, MOMENT, kept=label != "full", changed="changed.customers")
        times[label] = measure_tree([bench.environment("dbt") / "dbt", "--quiet", "run", "--threads", "2", *more], folder, environment)
        if label == "incremental":
            differences = differing(after_lake, plan, lambda name: (folder / "bench.duckdb", name))
    print(
        f"dbt, {len(behind)} models behind core: in full {times['again in full'].wall_seconds:.2f} s ({times['again in full'].cpu_seconds:.1f} s of CPU), incremental "
        f"{times['incremental'].wall_seconds:.2f} s ({times['incremental'].cpu_seconds:.1f} s of CPU); "
        + ("the same tables as ours" if not differences else f"differences: {differences}"),
        flush=True,
    )


def change(bench, lake, sources):
    """What it takes to bring a lake up to date by key after a change, and to refresh it in full. The lake stays as it was: copies are changed."""
    by_key, in_full, new = (bench.work / f"{lake.name}-{name}" for name in ("by-key", "in-full", "new"))
    for folder in (by_key, in_full, new):
        shutil.rmtree(folder, ignore_errors=True)
    customers = deliver(sources, max(1, int(bench.arguments.customers * bench.arguments.share)), new)
    shutil.copytree(lake, by_key)
    bench.holdfast("ingest", "--from", new, "--raw-only", "--as-of", AS_OF, lake=by_key)
    shutil.copytree(by_key, in_full)
    identity = bench.holdfast("ingest", "--from", new, "--as-of", AS_OF, lake=by_key)
    run = bench.holdfast("run", "--json", "--as-of", AS_OF, lake=by_key)
    bench.holdfast("ingest", "--from", new, "--as-of", AS_OF, lake=in_full)
    full_run = bench.holdfast("run", "--full", "--json", "--as-of", AS_OF, lake=in_full)
    compare(by_key, in_full)
    return customers, identity, run, full_run, json.loads(run.stdout)["stages"], by_key


def write_all(lake, names, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        write_parquet(lake / name.replace(".", "/"), folder / f"{name.replace('.', '-')}.parquet")


def history(bench):
    print(
        "\n| history, days | raw MB | who is who and core, wall s | CPU s | stages behind, wall s | CPU s | full refresh, wall s |\n|---|---|---|---|---|---|---|"
    )
    first = None
    for days in (bench.arguments.days, 10 * bench.arguments.days):
        lake, sources = bench.work / f"history-{days}", bench.work / f"history-{days}-in"
        bench.holdfast("generate", "--customers", bench.arguments.customers, "--days", days, "--out", sources, "--quiet")
        bench.holdfast("ingest", "--from", sources, "--as-of", AS_OF, lake=lake)
        bench.holdfast("run", "--json", "--as-of", AS_OF, lake=lake)
        size = sum(path.stat().st_size for path in (lake / "raw").rglob("*") if path.is_file()) / 1e6
        _, identity, run, full_run, _, _ = change(bench, lake, sources)
        print(
            f"| {days:,} | {size:,.0f} | {identity.wall_seconds:.2f} | {identity.cpu_seconds:.1f} | {run.wall_seconds:.2f} | {run.cpu_seconds:.1f} | {full_run.wall_seconds:.2f} |",
            flush=True,
        )
        if first:
            print(
                f"\nTen times the history: {(identity.wall_seconds + run.wall_seconds) / (first[0].wall_seconds + first[1].wall_seconds):.2f} times the time, "
                f"{(identity.cpu_seconds + run.cpu_seconds) / (first[0].cpu_seconds + first[1].cpu_seconds):.2f} times the CPU time; "
                f"the stages behind core {run.wall_seconds / first[1].wall_seconds:.2f} and {run.cpu_seconds / first[1].cpu_seconds:.2f}",
                flush=True,
            )
        first = first or (identity, run)


def nothing(bench):
    lake = bench.lake()
    project = bench.work / "fifty"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(bench.project, project)
    for place in range(50 - len(bench.stages)):
        (project / f"sql/metric/more_{place}.sql").write_text(
            "-- @stage full\n-- @owner nobody\nselect\n    count(*) as campaigns -- How many\nfrom core.campaigns\n"
        )
    bench.holdfast("run", "--as-of", AS_OF, lake=lake, project=project)

    def versions():
        return sum(1 for _ in lake.rglob("_delta_log/*.json"))

    before = versions()
    runs = [bench.holdfast("run", "--json", "--as-of", AS_OF, lake=lake, project=project) for _ in range(5)]
    report = json.loads(runs[-1].stdout)
    if versions() != before or any(stage["outcome"] != "fresh" for stage in report["stages"]):
        raise SystemExit("a run with nothing to do did something")
    print(
        f"\nA run of {len(report['stages'])} stages with nothing to do: {least(runs)}; the run itself {report['seconds'] * 1000:.0f} ms; nothing was committed.",
        flush=True,
    )
    folder = bench.work / "sqlmesh"
    if "sqlmesh" in bench.peers and folder.exists():
        runs = [measure_tree([bench.environment("sqlmesh") / "sqlmesh", "run"], folder) for _ in range(3)]
        print(f"`sqlmesh run` of 43 models with nothing to do: {least(runs)}.", flush=True)


def least(runs):
    walls = sorted(run.wall_seconds * 1000 for run in runs)
    return f"{walls[0]:.0f} to {walls[-1]:.0f} ms of {len(walls)}, CPU {statistics.median(run.cpu_seconds for run in runs) * 1000:.0f} ms, process included"


def check(bench):
    project = bench.work / "two-hundred"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(bench.project, project)
    for schema in stages_sql.SCHEMAS:
        if schema != "core":
            shutil.rmtree(project / "sql" / schema, ignore_errors=True)
    (project / "sql/stages.lock").unlink(missing_ok=True)
    for name in ("feature_services.toml", "models"):
        path = project / "pipelines/churn" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    there = sum(1 for _ in (project / "sql/core").glob("*.sql"))
    (project / "sql/profile").mkdir()
    for place in range(200 - there):
        below, amount = ("core.orders", "paid_amount") if place < 20 else (f"profile.s{place - 20}", "amount")
        (project / f"sql/profile/s{place}.sql").write_text(TWO_HUNDRED.format(below=below, amount=amount, place=place))
    runs = [bench.holdfast("check", project=project) for _ in range(5)]
    said = runs[-1].stderr.strip().splitlines()[-1].strip()
    if "200 stages" not in said:
        raise SystemExit(said)
    print(f"\n`holdfast check` of 200 stages, types and keys included ({said}): {least(runs)}.", flush=True)
    stages = stages_sql.read(project / "sql")
    inputs = sorted({name for stage in stages for name in stage.reads} - {stage.name for stage in stages})
    plan = {
        "inputs": {},
        "threads": 2,
        "stages": [{"name": stage.name, "sql": stages_sql.duckdb(stage, MOMENT), "key": None} for stage in stages],
    }
    report = {stage.name: {"expectations": []} for stage in stages}
    if "dbt" in bench.peers:
        folder = bench.work / "dbt-two-hundred"
        stages_projects.write_dbt(folder, plan, report, stages, MOMENT)
        runs = [
            measure_tree(
                [bench.environment("dbt") / "dbt", "--quiet", "--no-partial-parse", "parse"],
                folder,
                {**os.environ, "DBT_PROFILES_DIR": str(folder)},
            )
            for _ in range(2)
        ]
        print(f"`dbt parse` of the same 200 models, names of models alone: {least(runs)}.", flush=True)
    if "sqlmesh" in bench.peers:
        folder = bench.work / "sqlmesh-two-hundred"
        stages_projects.write_sqlmesh(folder, plan, report, stages, MOMENT)
        runs = [
            measure_tree([bench.environment("sqlmesh") / "sqlmesh", "info", "--skip-connection"], folder, checked=False) for _ in range(2)
        ]
        print(f"`sqlmesh info`, which reads the same 200 models: {least(runs)}{' (failed)' if runs[-1].returncode else ''}.", flush=True)


TWO_HUNDRED = """-- Spend and last order, one row a customer.
-- @stage      incremental key(customer_id)
-- @owner      retention
-- @expect     fail        has_customer:  customer_id is not null
-- @expect     warn        sane:          amount >= 0
with numbered as (
    select
        customer_id,
        order_id,
        ordered_at,
        {amount} as amount,
        row_number() over (
            partition by customer_id
            order by ordered_at desc, order_id
        ) as number
    from {below}
    where ordered_at <= now()
),

sums as (
    select
        customer_id,
        sum({amount}) as total,
        count(*) filter (where ordered_at >= now() - interval '90 days') as orders_90d,
        max(ordered_at) as last_at
    from {below}
    where customer_id is not null
    group by customer_id
)

select
    sums.customer_id as customer_id, -- Unified customer id
    numbered.order_id as order_id,   -- The last order
    sums.last_at as ordered_at,      -- When
    cast(sums.total + coalesce(numbered.amount, 0) as decimal(12, 2)) as amount, -- CNY
    case when sums.orders_90d > {place} then 'often' when sums.orders_90d > 0 then 'seldom' else 'never' end as rhythm -- How often
from sums
left join numbered
    on numbered.customer_id = sums.customer_id
    and numbered.number = 1
"""

# An amount that the contract of orders lets through, and the expectation added below does not.
TOO_MUCH = 9_999_999


def bad(bench):
    lake = bench.lake()
    copy, new, project = bench.work / "bad", bench.work / "bad-new", bench.work / "bad-project"
    for folder in (copy, new, project):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(lake, copy)
    shutil.copytree(bench.project, project)
    path = project / "sql/profile/purchase_summary.sql"
    rule = f"spend_365d < {TOO_MUCH - 1_000_000}"
    path.write_text(path.read_text().replace("with known as (", f"-- @expect     fail        plausible_spend:  {rule}\nwith known as (", 1))
    bench.holdfast("run", "--as-of", AS_OF, lake=copy, project=project)
    stage = next(stage for stage in stages_sql.read(project / "sql") if stage.name == "profile.purchase_summary")
    good = bench.work / "bad-before"
    write_all(copy, ["core.purchases"], good)
    deliver(bench.work / "in", 1, new)
    orders = new / "orders/new.ndjson"
    order = json.loads(orders.read_text())
    orders.write_text(
        json.dumps({**order, "goods_amount": TOO_MUCH, "paid_amount": TOO_MUCH, "discount_amount": 0, "currency": "CNY", "status": "paid"})
        + "\n"
    )
    bench.holdfast("ingest", "--from", new, "--as-of", AS_OF, lake=copy, project=project)
    seen, ended = [], threading.Event()

    def watch():
        while not ended.is_set():
            seen.append(worst(copy / "profile/purchase_summary"))
            ended.wait(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run = bench.holdfast("run", "--json", "--as-of", AS_OF, lake=copy, project=project, checked=False)
    ended.set()
    watcher.join()
    seen.append(worst(copy / "profile/purchase_summary"))
    outcomes = {stage["stage"]: stage["outcome"] for stage in json.loads(run.stdout)["stages"]}
    blocked = sorted(name for name, outcome in outcomes.items() if outcome == "blocked")
    print(
        "\nOne order of 9,999,999 arrives, and an expectation allows less:\n\n| | exit code | bad rows a reader can see after it |\n|---|---|---|"
    )
    visible = sum(1 for spend in seen if spend >= TOO_MUCH - 1_000_000)
    print(
        f"| holdfast run: profile.purchase_summary {outcomes['profile.purchase_summary']}, {len(blocked)} stages behind it blocked | {run.returncode} | "
        f"{'none in' if not visible else f'in {visible} of'} {len(seen)} looks during and after the run |",
        flush=True,
    )

    after = bench.work / "bad-after"
    write_all(copy, ["core.purchases"], after)
    told = {"expectations": [{"name": "plausible_spend", "severity": "fail", "condition": rule}]}
    shared = {"stages": [{"name": stage.name, "sql": stages_sql.duckdb(stage, MOMENT), "key": "customer_id"}], "threads": 2}
    plans = [{**shared, "inputs": {"core.purchases": str(folder / "core-purchases.parquet")}} for folder in (good, after)]
    count = f"select count(*) from profile.purchase_summary where not ({rule})"
    for peer in ("dbt", "sqlmesh"):
        if peer not in bench.peers:
            continue
        folder = bench.work / f"bad-{peer}"
        environment = {**os.environ, "DBT_PROFILES_DIR": str(folder)}
        if peer == "dbt":
            stages_projects.write_dbt(folder, plans[0], {stage.name: told}, [stage], MOMENT)
            commands = [["--quiet", "build"]] * 2
        else:
            stages_projects.write_sqlmesh(folder, plans[0], {stage.name: told}, [stage], MOMENT)
            commands = [["plan", "--auto-apply", "--no-prompts"], ["plan", "--auto-apply", "--no-prompts", "--restate-model", stage.name]]
        program = bench.environment(peer) / peer
        measure_tree([program, *commands[0]], folder, environment)
        shutil.copyfile(plans[1]["inputs"]["core.purchases"], plans[0]["inputs"]["core.purchases"])
        run = measure_tree([program, *commands[1]], folder, environment, checked=False)
        rows = duckdb.connect(str(folder / "bench.duckdb"), read_only=True).execute(count).fetchone()[0]
        write_all(lake, ["core.purchases"], good)
        print(f"| {peer} {' '.join(commands[1])} | {run.returncode} | {rows} |", flush=True)


def worst(table):
    spend = deltalake.DeltaTable(str(table)).to_pyarrow_dataset().to_table(columns=["spend_365d"])["spend_365d"]
    return max(value.as_py() for value in spend)


if __name__ == "__main__":
    main()
