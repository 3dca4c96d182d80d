#!/usr/bin/env python3
"""Connected components of the same edges by holdfast-graph and by scipy, and what a change costs in an identity graph.

Each side is a process of its own that reads the same files; the answers are compared before any figure is printed.

    cargo build -p holdfast-graph --example components_bench
    python tests/benches/components.py --edges 10000000 --runs 3

Needs numpy and scipy; with --splink also splink.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

import numpy as np

from measure import machine, measure

SHAPES = ["random", "chain", "power law"]

SCIPY = """
import json, sys, time
import numpy as np, scipy.sparse
nodes, left, right, labels = int(sys.argv[1]), *sys.argv[2:5]
left, right = np.fromfile(left, dtype="<u4").view("<i4"), np.fromfile(right, dtype="<u4").view("<i4")
began = time.perf_counter()
ones = np.ones(len(left), dtype=np.int8)
matrix = scipy.sparse.coo_matrix((ones, (left, right)), shape=(nodes, nodes)).tocsr()
built = time.perf_counter()
count, found = scipy.sparse.csgraph.connected_components(matrix, directed=False)
ended = time.perf_counter()
found.astype("<u4").tofile(labels)
print(json.dumps({"seconds": ended - began, "matrix_seconds": built - began, "components": int(count)}))
"""

SPLINK = """
import json, sys, time
import duckdb, numpy as np, pyarrow as pa
from splink import DuckDBAPI
from splink.clustering import cluster_pairwise_predictions_at_threshold
nodes, left, right, labels = int(sys.argv[1]), *sys.argv[2:5]
left, right = np.fromfile(left, dtype="<u4").astype("i8"), np.fromfile(right, dtype="<u4").astype("i8")
con = duckdb.connect()
con.register("e", pa.table({"id_l": left, "id_r": right}))
con.execute("create table edges as select id_l, id_r, 1.0::double as match_probability from e")
con.execute(f"create table nodes as select range as id from range({nodes})")
api = DuckDBAPI(con)
began = time.perf_counter()
clusters = cluster_pairwise_predictions_at_threshold(
    api.register("nodes"), api.register("edges"), api, node_id_column_name="id",
    edge_id_column_name_left="id_l", edge_id_column_name_right="id_r", threshold_match_probability=0.5,
)
ended = time.perf_counter()
found = con.sql(f"select cluster_id from {clusters.physical_name} order by id").fetchnumpy()["cluster_id"]
found.astype("<u4").tofile(labels)
print(json.dumps({"seconds": ended - began, "components": int(len(np.unique(found)))}))
"""


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--bench", type=pathlib.Path, default="target/debug/examples/components_bench")
    options.add_argument("--edges", type=int, default=10_000_000, help="half as many nodes")
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--graph", type=int, default=0, help="edges of an identity graph that is changed as well")
    options.add_argument("--splink", action="store_true", help="splink's clustering too, once a shape")
    options.add_argument("--work", type=pathlib.Path, help="where the files are made and removed")
    arguments = options.parse_args()
    bench = arguments.bench.resolve()
    if not bench.is_file():
        options.error(f"there is no {bench}: build it, or name another with --bench")

    print(machine(), flush=True)
    print(f"| {arguments.edges:,} edges | side | seconds, median | all runs | CPU s | peak MiB | components |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="holdfast-components-", dir=arguments.work) as folder:
        folder = pathlib.Path(folder)
        for shape in arguments.shapes:
            compare(shape, arguments, bench, folder)
    if arguments.graph:
        identity_graph(bench, arguments.graph)


def generate(shape, edges, folder):
    """Writes the ends of seeded edges; returns the number of nodes."""
    random = np.random.default_rng(42)
    nodes = edges // 2 if shape != "chain" else edges + 1
    if shape == "random":
        left, right = (random.integers(0, nodes, edges, dtype=np.uint32) for _ in range(2))
    elif shape == "chain":
        # Numbered and given in no order: the hard case for anything that passes labels on.
        names = random.permutation(nodes).astype(np.uint32)
        order = random.permutation(edges)
        left, right = names[:-1][order], names[1:][order]
    else:
        # A few hubs have most of the edges: the square of a uniform number, twice.
        left = (nodes * random.random(edges, dtype=np.float32).astype(np.float64) ** 4).astype(np.uint32)
        right = random.integers(0, nodes, edges, dtype=np.uint32)
    left.tofile(folder / "left.u32")
    right.tofile(folder / "right.u32")
    return nodes


def compare(shape, arguments, bench, folder):
    nodes = generate(shape, arguments.edges, folder)
    files = [folder / "left.u32", folder / "right.u32"]
    sides = {
        "holdfast, 2 threads": [bench, "components", nodes, 2, *files],
        "holdfast, 1 thread": [bench, "components", nodes, 1, *files],
        "scipy": [sys.executable, "-c", SCIPY, nodes, *files],
    }
    if arguments.splink:
        sides["splink"] = [sys.executable, "-c", SPLINK, nodes, *files]
    runs = {side: [] for side in sides}
    answers = {}
    for run in range(arguments.runs):
        for side, command in sides.items():
            if side == "splink" and run > 0:
                continue
            labels = folder / "labels.u32"
            measured = measure([*map(str, command), str(labels)])
            # Splink says more in the lines before.
            runs[side].append((json.loads(measured.stdout.splitlines()[-1]), measured))
            if side not in answers:
                answers[side] = named_by_smallest(np.fromfile(labels, dtype="<u4"))
                first = next(iter(answers.values()))
                if not np.array_equal(first, answers[side]):
                    raise SystemExit(f"{shape}: {side} found other components")
    for side, results in runs.items():
        seconds = [answer["seconds"] for answer, _ in results]
        print(
            f"| {shape} | {side} | **{statistics.median(seconds):.2f}** | {' '.join(f'{s:.2f}' for s in seconds)} "
            f"| {statistics.median(m.cpu_seconds for _, m in results):.1f} "
            f"| {max(m.peak_memory_mib for _, m in results):,.0f} | {results[0][0]['components']:,} |",
            flush=True,
        )


def named_by_smallest(labels):
    """Each label replaced by the first node that has it: the same for the same components."""
    first = np.full(int(labels.max()) + 1, len(labels), dtype=np.int64)
    np.minimum.at(first, labels, np.arange(len(labels)))
    return first[labels].astype(np.uint32)


def identity_graph(bench, edges):
    measured = measure([str(bench), "graph", str(edges), "2"])
    found = json.loads(measured.stdout)
    print(
        f"\nidentity graph: {found['nodes']:,} nodes, {found['edges']:,} edges, {found['clusters']:,} clusters; "
        f"state {found['memory_bytes'] / 2**20:,.0f} MiB, peak {measured.peak_memory_mib:,.0f} MiB; "
        f"tokens {found['nodes_seconds']:.2f} s, edges and clusters {found['build_seconds']:.2f} s, of which clusters "
        f"{found['resolve_seconds']:.2f} s; export {found['export_seconds']:.2f} s, import {found['import_seconds']:.2f} s\n"
    )
    print("| change | edges | seconds | CPU s | nodes gone through | edges looked at | groups that changed |")
    print("|---|---|---|---|---|---|---|")
    for step in found["steps"]:
        print(
            f"| {step['kind']} | {step['changes']:,} | **{step['seconds']:.3f}** | {step['cpu_seconds']:.3f} | {step['nodes']:,} "
            f"| {step['edges']:,} | {step['groups']:,} |"
        )


if __name__ == "__main__":
    main()
