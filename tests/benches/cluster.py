#!/usr/bin/env python3
"""The shipped stages embedded, and on a cluster of this machine: a scheduler and two executors of one task each.

A generated shop is ingested once. Copies of its lake are run in full, embedded and on the cluster in turn, and every table has to be the same in both.

    python tests/benches/cluster.py --holdfast target/debug/holdfast

Needs the packages of tests/clients/requirements.txt.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time

from increments import AS_OF, Shop, compare
from measure import machine


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--customers", type=int, default=10_000)
    options.add_argument("--days", type=int, default=365)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--executors", type=int, default=2)
    options.add_argument("--tasks", type=int, default=1, help="of each executor at once")
    options.add_argument("--partitions", type=int, default=4)
    options.add_argument("--memory-mb", type=int, default=1024, help="of each executor")
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
        programs, address = start(shop, arguments)
        try:
            there, here, said = [], [], ""
            for _ in range(arguments.runs):
                here.append(timed(shop, "embedded")[:3])
                *run, said = timed(shop, "cluster", "--cluster", address, "--cluster-partitions", arguments.partitions)
                there.append(run)
                compare(work / "embedded", work / "cluster")
        finally:
            for program in programs:
                program.terminate()
            for program in programs:
                program.wait()
        tell(arguments, here, there, said)


def start(shop, arguments):
    """The programs of the cluster, and the address of its scheduler."""
    programs = [begin(shop, "scheduler", "cluster", "scheduler", "--listen", "127.0.0.1:0")]
    address = re.search(r"df://[^,]+", waited(shop, "scheduler")).group()
    for number in range(arguments.executors):
        name = f"executor-{number}"
        flags = ["--scheduler", address, "--listen", "127.0.0.1:0", "--work-dir", shop.work / name]
        flags += ["--tasks", arguments.tasks, "--memory-mb", arguments.memory_mb]
        programs.append(begin(shop, name, "cluster", "executor", *flags))
        waited(shop, name)
    return programs, address


def begin(shop, name, *arguments):
    root = pathlib.Path(__file__).resolve().parents[2]
    command = [shop.binary, "--project", root, "--identity-key", shop.work / "key", *arguments]
    log = (shop.work / f"{name}.log").open("w")
    return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=log)


def waited(shop, name):
    for _ in range(600):
        said = (shop.work / f"{name}.log").read_text()
        if "Ctrl-C stops" in said:
            return said
        time.sleep(0.1)
    raise SystemExit(f"the {name} does not start:\n{said}")


def timed(shop, lake, *more):
    """A full run over a copy of the ingested lake: seconds, processor seconds of the driver, stages, and what was said."""
    shutil.rmtree(shop.work / lake, ignore_errors=True)
    shutil.copytree(shop.work / "lake", shop.work / lake)
    os.sync()
    root = pathlib.Path(__file__).resolve().parents[2]
    command = [shop.binary, "--project", root, "--identity-key", shop.work / "key", "--lake", shop.work / lake]
    command += ["run", "--json", "--as-of", AS_OF, "-v", *more]
    environment = {**os.environ, "HOLDFAST_LOG_FORMAT": "json"}
    began, worked = time.perf_counter(), processor_seconds()
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"the run on {lake} ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - began, processor_seconds() - worked, json.loads(done.stdout)["stages"], done.stderr


def processor_seconds():
    """Of all programs that have ended: those of the cluster are not among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tell(arguments, here, there, said):
    def median(runs):
        return statistics.median(seconds for seconds, *_ in runs)

    def of_stage(runs, name):
        return statistics.median(stage["seconds"] for *_, stages in runs for stage in stages if stage["stage"] == name)

    stages = there[-1][-1]
    sent = [stage["stage"] for stage in stages if stage.get("place", {}).get("kind") == "executor"]
    kept = [stage for stage in stages if stage.get("place", {}).get("kind") == "here"]
    jobs = []
    for line in said.splitlines():
        if '"a plan ran on the cluster"' in line:
            jobs.append(json.loads(line)["fields"])
    result = sum(job["monotonic_counter.holdfast_cluster_result_bytes"] for job in jobs)
    plans = [job["plan_bytes"] for job in jobs]
    more = sorted(of_stage(there, name) - of_stage(here, name) for name in sent)
    written = [stage["stage"] for stage in stages if stage.get("place", {}).get("written_by") == "executors"]
    print(f"{arguments.customers:,} customers, {arguments.days} days; {len(sent)} of {len(stages)} stages on the cluster")
    print(f"{len(written)} of them were written by executors")
    for stage in kept:
        print(f"here: {stage['stage']}: {stage['place']['reason']}")
    print("| | s (all runs) | processor of the driver, s |\n|---|---|---|")
    for name, runs in (("embedded", here), ("cluster", there)):
        all_runs = " ".join(f"{seconds:.2f}" for seconds, *_ in runs)
        worked = statistics.median(worked for _, worked, _ in runs)
        print(f"| {name} | **{median(runs):.2f}** ({all_runs}) | {worked:.2f} |")
    print(f"\n{median(there) / median(here):.2f} times the time; every table is the same")
    print(f"a stage takes {statistics.median(more):.2f} s longer there (median; {more[0]:.2f} to {more[-1]:.2f})")
    print(f"plans of {min(plans) / 1000:.0f} to {max(plans) / 1000:.0f} kB; {result / 1e6:.1f} MB held for the driver")


if __name__ == "__main__":
    main()
