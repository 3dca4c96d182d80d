#!/usr/bin/env python3
"""Runs the stages that a plan holds in DuckDB or in Spark, and prints the seconds of each as JSON. stages.py starts it, in an environment that has the peer.

    python stages_peers.py parquet|tables|spark plan.json

`parquet` reads and writes Parquet files with DuckDB, `tables` keeps the results in a DuckDB database; `spark` reads and writes Parquet files.
The plan: {"inputs": {table: file}, "stages": [{"name": …, "sql": …}], "out": folder, "threads": …}.
"""

import json
import pathlib
import sys
import time


def main():
    how, path = sys.argv[1:]
    plan = json.loads(pathlib.Path(path).read_text())
    out = pathlib.Path(plan["out"])
    out.mkdir(parents=True, exist_ok=True)
    seconds = (spark if how == "spark" else duckdb)(plan, out, how)
    print(json.dumps(seconds))


def duckdb(plan, out, how):
    import duckdb

    database = duckdb.connect(str(out / "tables.duckdb") if how == "tables" else ":memory:")
    database.execute(f"set threads = {plan['threads']}; set integer_division = true; set preserve_insertion_order = false")
    for name in [*plan["inputs"], *(stage["name"] for stage in plan["stages"])]:
        database.execute(f"create schema if not exists {name.split('.')[0]}")
    for name, path in plan["inputs"].items():
        database.execute(f"create view {name} as select * from read_parquet('{path}')")
    seconds = {}
    for stage in plan["stages"]:
        began = time.perf_counter()
        name, sql = stage["name"], stage["sql"]
        if how == "tables":
            database.execute(f"create table {name} as {sql}")
        else:
            path = out / f"{name}.parquet"
            database.execute(f"copy ({sql}) to '{path}' (format parquet)")
            database.execute(f"create view {name} as select * from read_parquet('{path}')")
        seconds[name] = time.perf_counter() - began
    database.close()
    return seconds


def spark(plan, out, _):
    from pyspark.sql import SparkSession

    from stages_sql import spark as translated

    session = (
        SparkSession.builder.master(f"local[{plan['threads']}]")
        .config("spark.driver.memory", plan.get("memory", "6g"))
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.warehouse.dir", str(out / "warehouse"))
        .config("spark.sql.shuffle.partitions", 2 * plan["threads"])
        .config("spark.ui.enabled", "false")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )
    for name in [*plan["inputs"], *(stage["name"] for stage in plan["stages"])]:
        session.sql(f"create database if not exists {name.split('.')[0]}")
    for name, path in plan["inputs"].items():
        session.catalog.createTable(name, path, "parquet")
    seconds, failed = {}, {}
    for stage in plan["stages"]:
        began = time.perf_counter()
        name = stage["name"]
        try:
            path = str(out / f"{name}.parquet")
            session.sql(translated(stage["sql"])).write.mode("overwrite").parquet(path)
            session.catalog.createTable(name, path, "parquet")
        except Exception as error:
            failed[name] = str(error).splitlines()[0]
            continue
        seconds[name] = time.perf_counter() - began
    session.stop()
    if failed:
        print(json.dumps(failed, indent=1), file=sys.stderr)
        sys.exit(1)
    return seconds


if __name__ == "__main__":
    main()
