#!/usr/bin/env python3
"""`holdfast demo` by step for shops of growing size: seconds and peak memory.

Ends with an error when time grows faster than the number of customers.

    python tests/benches/demo.py --holdfast target/release/holdfast
"""

import argparse
import json
import pathlib
import shutil
import tempfile

from measure import machine, measure

# What measuring itself may add to a factor.
TOLERANCE = 1.1


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--project", type=pathlib.Path, default=".", help="the folder with holdfast.toml")
    options.add_argument("--customers", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options.add_argument("--work", type=pathlib.Path, help="where the shops are made and removed")
    options.add_argument("--json", type=pathlib.Path, help="also writes all measurements to this file")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")

    print(machine(), flush=True)
    shops = []
    for customers in sorted(arguments.customers):
        with tempfile.TemporaryDirectory(prefix="holdfast-demo-", dir=arguments.work) as folder:
            shops.append(run(binary, arguments.project.resolve(), pathlib.Path(folder) / "demo", customers))
    report(shops)
    if arguments.json:
        arguments.json.write_text(json.dumps(shops, indent=1) + "\n")
    check_growth(shops)


def run(binary, project, folder, customers):
    command = [binary, "--project", project, "--quiet", "demo", "--no-serve", "--json"]
    command += ["--customers", customers, "--dir", folder]
    measured = measure([str(part) for part in command])
    told = json.loads(measured.stdout)
    rows = {name: count or 0 for name, count in told["tables"]}
    size = sum(file.stat().st_size for file in (folder / "lake").rglob("*") if file.is_file())
    sources = sum(file.stat().st_size for file in (folder / "sources").rglob("*") if file.is_file())
    again = measure([str(part) for part in command])
    shutil.rmtree(folder)
    print(f"  {customers:,} customers done in {measured.wall_seconds:.1f} s", flush=True)
    return {
        "customers": customers,
        "steps": dict(told["seconds"]),
        "wall_seconds": measured.wall_seconds,
        "cpu_seconds": measured.cpu_seconds,
        "peak_memory_mib": measured.peak_memory_mib,
        "sources_mb": sources / 1e6,
        "lake_mb": size / 1e6,
        "raw_rows": sum(count for name, count in rows.items() if name.startswith("raw.")),
        "again_seconds": again.wall_seconds,
    }


def report(shops):
    steps = list(shops[0]["steps"])
    heads = ["customers", "raw rows", "sources MB", *(f"{step} s" for step in steps)]
    heads += ["all s", "CPU s", "peak MiB", "lake MB", "second demo s"]
    print(f"\n| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for shop in shops:
        cells = [f"{shop['customers']:,}", f"{shop['raw_rows']:,}", f"{shop['sources_mb']:.0f}"]
        cells += [f"{shop['steps'][step]:.1f}" for step in steps]
        cells += [f"**{shop['wall_seconds']:.1f}**", f"{shop['cpu_seconds']:.1f}", f"{shop['peak_memory_mib']:.0f}"]
        cells += [f"{shop['lake_mb']:.0f}", f"{shop['again_seconds']:.1f}"]
        print(f"| {' | '.join(cells)} |")


def check_growth(shops):
    worse = []
    for small, large in zip(shops, shops[1:]):
        factor = large["customers"] / small["customers"]
        grown = large["wall_seconds"] / small["wall_seconds"]
        print(f"\n{small['customers']:,} to {large['customers']:,}: {factor:.0f} times the customers, {grown:.1f} times the time")
        if grown > factor * TOLERANCE:
            worse.append(f"{small['customers']:,} to {large['customers']:,}")
    if worse:
        raise SystemExit(f"time grew faster than the number of customers: {', '.join(worse)}")


if __name__ == "__main__":
    main()
