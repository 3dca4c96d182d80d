#!/usr/bin/env python3
"""Features from memory under load: by holdfast, by Redis with pipelined HMGET, and by Feast over Redis or SQLite.

A shop is made whose feature views are functions of a customer's number, so that every answer can be compared with what it should be: that is done first. Then each
side is asked in turn, in an open loop: requests begin at moments that were drawn beforehand (exponential gaps) whether or not earlier ones have ended, and latency counts from
that moment, so that a side that stalls pays for all who waited. Keys are drawn by Zipf's law. What the load generator itself takes is measured by asking for nothing, in
the same loop.

    cargo build && redis-server --version
    python tests/benches/online.py --holdfast target/debug/holdfast --customers 1000000 --views 25
    python tests/benches/online.py --holdfast target/release/holdfast --rate 200 --feast /path/to/python-with-feast

Needs numpy, pyarrow, redis and hiredis; redis-server in the path. For Feast a Python that has feast[redis], named with --feast.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv

from measure import machine

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "crates" / "serve" / "python"))

FEATURES = 10
MODULUS = 1_000_003


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast")
    options.add_argument("--customers", type=int, default=1_000_000)
    options.add_argument("--views", type=int, default=25, help="of ten features each")
    options.add_argument("--asked-views", type=int, default=5, help="of which so many are asked for")
    options.add_argument("--seconds", type=float, default=20)
    options.add_argument("--rate", type=float, default=50, help="requests a second for many keys")
    options.add_argument("--single-rate", type=float, default=500, help="requests a second for one key")
    options.add_argument("--keys", type=int, default=1_000)
    options.add_argument("--zipf", type=float, default=1.1)
    options.add_argument("--publish", type=int, default=2_000, help="customers of a run that is published meanwhile; 0 for none")
    options.add_argument("--feast", type=pathlib.Path, help="a Python with feast[redis]")
    options.add_argument("--feast-customers", type=int, default=20_000)
    options.add_argument("--work", type=pathlib.Path)
    options.add_argument("--shop", type=pathlib.Path, help="where the shop is kept: made if it is not there, for later runs with the same numbers")
    options.add_argument("--peers", default=True, action=argparse.BooleanOptionalAction, help="Redis beside us; filling it takes minutes")
    options.add_argument("--only-make", action="store_true", help="make the shop, and measure nothing")
    arguments = options.parse_args()
    arguments.holdfast = arguments.holdfast.resolve()
    if not arguments.holdfast.is_file():
        options.error(f"there is no {arguments.holdfast}: build it, or name another with --holdfast")
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-online-", dir=arguments.work)))
        shop = Shop(arguments.shop or folder, arguments)
        shop.make()
        if arguments.only_make:
            return
        port = stack.enter_context(shop.served())
        redis_port = None
        if arguments.peers:
            redis_port = stack.enter_context(redis_server(folder))
            fill_redis(redis_port, shop)
        feast = feast_sides(folder, arguments, redis_port, shop, stack) if arguments.feast else {}
        sides = {
            "holdfast, open line": (Exchange, port),
            "holdfast, a call each": (Call, port),
            **({"redis, pipelined HMGET": (Redis, redis_port), "redis, answers not parsed": (RedisRaw, redis_port)} if redis_port else {}),
            **feast,
        }
        print("\n| one after the other, answers a second | " + " | ".join(sides) + " |\n|---" + "|---" * len(sides) + "|")
        for keys in [arguments.keys, 1]:
            found = [run(side, where, shop, keys, None) for side, where in sides.values()]
            print(f"| {keys:,} keys x {arguments.asked_views * FEATURES} | " + " | ".join(f"{one['answered']:,.1f}" for one in found) + " |", flush=True)
        print(f"\n| | side | rate/s | p50 ms | p99 ms | p99.9 ms | most ms | answered/s | client CPU ms a request |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        for keys, rate in [(arguments.keys, arguments.rate), (1, arguments.single_rate)]:
            report(f"{keys:,} keys x {arguments.asked_views * FEATURES}", "the load generator alone", rate,
                   run(Nothing, 0, shop, keys, rate))
            for name, (side, where) in sides.items():
                slow = name.startswith("feast")
                report("", name, rate / 10 if slow else rate, run(side, where, shop, keys, rate / 10 if slow else rate))
        if arguments.publish:
            publish_meanwhile(shop, port, arguments)


class Shop:
    """Customers with numbers, and views whose features are functions of the number."""

    def __init__(self, folder, arguments):
        self.folder, self.arguments = folder, arguments
        self.round = 0
        self.views = [f"v{number:02}" for number in range(arguments.views)]
        self.asked = self.views[: arguments.asked_views]
        self.ids = None

    def command(self, *more):
        return [self.arguments.holdfast, "--project", self.folder, *map(str, more)]

    def make(self):
        write = self.write
        if (self.folder / "made").exists():
            # What was published meanwhile has changed nothing that is not published again.
            self.round = len(list((self.folder / "in" / "members").iterdir()))
            return
        write("holdfast.toml", '[lake]\nurl = "lake"\n')
        write("pipelines/churn/pipeline.toml", 'stages = "sql"\n')
        write("pipelines/churn/identity.toml", 'priority = ["member_id"]\n[types.member_id]\nunique = true\n')
        write("pipelines/churn/sources/members.toml",
              'kind = "crm"\npath = "members/*.csv"\nformat = "csv"\nevent_time = "at"\n'
              '[columns]\nmember = "string"\nnumber = "int64"\nshift = "int64"\nat = "timestamp"\n')
        write("sql/profile/members.sql",
              "-- The newest record of each member.\n-- @stage incremental key(customer_id)\n"
              "-- @expect fail one: count(*) = count(distinct customer_id)\n"
              "select member as customer_id, max(number) as number, max(shift) as shift\nfrom raw.members\n"
              "where member is not null\ngroup by member\n")
        for view, name in enumerate(self.views):
            columns = ",\n".join(
                f"    cast((number * {view * FEATURES + at + 7} + shift) % {MODULUS} as double) / 8 as f{view:02}_{at}" for at in range(FEATURES)
            )
            write(f"sql/features/{name}.sql",
                  f"-- Numbers.\n-- @stage incremental key(customer_id)\n-- @feature online\n"
                  f"-- @expect fail one: count(*) = count(distinct customer_id)\n"
                  f"select\n    customer_id,\n{columns}\nfrom profile.members\nwhere customer_id is not null\n")
        self.members(np.arange(self.arguments.customers), 0)
        began = time.perf_counter()
        self.run()
        print(f"\n{self.arguments.customers:,} customers x {len(self.views) * FEATURES} features ingested and run in {time.perf_counter() - began:.0f} s", flush=True)
        write("made", "")

    def write(self, path, text):
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def members(self, numbers, shift):
        """Records of members with a shift of all their features."""
        self.round += 1
        at = pa.array(["2026-01-01T00:00:00Z"] * len(numbers))
        table = pa.table({"member": self.names(numbers), "number": numbers, "shift": np.full(len(numbers), shift), "at": at})
        path = self.folder / "in" / "members" / f"{self.round:03}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.csv.write_csv(table, path)

    def run(self):
        for command in (["ingest", "--from", self.folder / "in"], ["run"]):
            done = subprocess.run(self.command("--quiet", *command), capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr}")

    def names(self, numbers):
        return [f"c_{number:012}" for number in numbers]

    def expected(self, numbers, shift=0):
        """The asked features of customers, a row each."""
        factors = np.array([view * FEATURES + at + 7 for view in range(len(self.asked)) for at in range(FEATURES)])
        return ((numbers[:, None] * factors[None, :] + shift) % MODULUS) / 8

    @contextlib.contextmanager
    def served(self):
        command = self.command("serve", "--listen", "127.0.0.1:0", "--reload-interval-ms", "500")
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        port = next(filter(None, (re.search("grpc://127.0.0.1:([0-9]+)", line) for line in process.stderr))).group(1)
        try:
            began = time.perf_counter()
            with holdfast(port) as client:
                # The first waits until all is in memory.
                client.get_online_features(self.names([0]), features=self.features).to_arrow()
            memory = next(line for line in open(f"/proc/{process.pid}/status") if line.startswith("VmRSS")).split()[1]
            print(f"in memory after {time.perf_counter() - began:.1f} s, {int(memory) / 1024:,.0f} MiB", flush=True)
            yield int(port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)

    @property
    def features(self):
        return [f"{view}:f{number:02}_{at}" for number, view in enumerate(self.asked) for at in range(FEATURES)]

    def draws(self, seed, count, keys):
        """Customers by Zipf's law, spread over all: the most wanted are not neighbours."""
        random = np.random.default_rng(seed)
        ranks = random.zipf(self.arguments.zipf, (count, keys)) % self.arguments.customers
        return (ranks * 2_654_435_761) % self.arguments.customers


def holdfast(port):
    import holdfast

    return holdfast.Client(f"grpc://127.0.0.1:{port}")


class Nothing:
    """Asks nobody."""

    def __init__(self, where, shop):
        self.shop = shop

    def ask(self, names):
        return None

    def values(self, answer):
        return None


class Call(Nothing):
    """One call for each request."""

    def __init__(self, where, shop):
        super().__init__(where, shop)
        self.client = holdfast(where)

    def ask(self, names):
        return self.client.get_online_features({"customer_id": names}, features=self.shop.features, status="none").to_arrow()

    def values(self, answer):
        return np.column_stack([answer.column(at + 1).to_numpy() for at in range(answer.num_columns - 1)])


class Exchange(Call):
    """An open line."""

    def __init__(self, where, shop):
        super().__init__(where, shop)
        self.line = self.client.online(features=shop.features, status="none")

    def ask(self, names):
        return self.line.get({"customer_id": names})

    def values(self, answer):
        return super().values(pa.table(answer))


class Redis(Nothing):
    """A hash for each customer with a field for each feature, as Feast has it; HMGET for all keys in one pipeline. Numbers are packed."""

    def __init__(self, where, shop):
        super().__init__(where, shop)
        import redis

        self.client = redis.Redis(port=where)
        self.fields = [feature.split(":")[1] for feature in shop.features]

    def ask(self, names):
        pipeline = self.client.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(name, self.fields)
        return pipeline.execute()

    def values(self, answer):
        return np.frombuffer(b"".join(value for row in answer for value in row), dtype="<f8").reshape(len(answer), -1)


class RedisRaw(Redis):
    """The same commands over a socket, written at once; the answer is read to its last byte and not taken apart."""

    def __init__(self, where, shop):
        super().__init__(where, shop)
        self.socket = socket.create_connection(("127.0.0.1", where))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tail = b"".join(f"${len(field)}\r\n{field}\r\n".encode() for field in self.fields)
        # A number of 8 bytes is 14 on the wire, and each row has a head.
        self.row_bytes = len(f"*{len(self.fields)}\r\n") + 14 * len(self.fields)

    def ask(self, names):
        head = f"*{len(self.fields) + 2}\r\n$5\r\nHMGET\r\n".encode()
        self.socket.sendall(b"".join(head + f"${len(name)}\r\n{name}\r\n".encode() + self.tail for name in names))
        wanted, parts = self.row_bytes * len(names), []
        while wanted > 0:
            part = self.socket.recv(1 << 20)
            wanted -= len(part)
            parts.append(part)
        return parts

    def values(self, answer):
        return None


class Feast(Nothing):
    """Feast's own server, over HTTP with a connection that stays open."""

    def __init__(self, where, shop):
        super().__init__(where, shop)
        import http.client

        self.connection = http.client.HTTPConnection("127.0.0.1", where)
        self.features = shop.features

    def ask(self, names):
        body = json.dumps({"features": self.features, "entities": {"customer_id": names}})
        self.connection.request("POST", "/get-online-features", body, {"content-type": "application/json"})
        return json.loads(self.connection.getresponse().read())

    def values(self, answer):
        names = answer["metadata"]["feature_names"]
        by_name = dict(zip(names, (result["values"] for result in answer["results"])))
        return np.column_stack([by_name[feature.split(":")[1]] for feature in self.features])

    def draws(self, draws):
        return draws % self.shop.arguments.feast_customers


def run(side, where, shop, keys, rate):
    """Asks for a while from a process of its own, after a look at the answers."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(load, (side, where, shop, keys, rate))


def load(side, where, shop, keys, rate):
    """Without a rate one request after the other, for a third of the time: what a side can do at most for one client."""
    asker = side(where, shop)
    count = max(20, int(shop.arguments.seconds * rate)) if rate else 64
    draws = shop.draws(1, count, keys)
    if hasattr(asker, "draws"):
        draws = asker.draws(draws)
    requests = [shop.names(row) for row in draws]
    for row in range(min(5, count)):
        values = asker.values(asker.ask(requests[row]))
        if values is not None and not np.array_equal(values, shop.expected(draws[row])):
            raise SystemExit(f"{side.__name__} gave other values")
    if not rate:
        began = time.perf_counter()
        answered = 0
        while time.perf_counter() - began < shop.arguments.seconds / 3:
            asker.ask(requests[answered % count])
            answered += 1
        return {"answered": answered / (time.perf_counter() - began)}
    starts = np.cumsum(np.random.default_rng(2).exponential(1 / rate, count))
    latencies = np.empty(count)
    cpu, began = time.process_time(), time.perf_counter()
    for row in range(count):
        due = began + starts[row]
        while (wait := due - time.perf_counter()) > 0:
            # The last stretch is waited for awake: sleeping overshoots by more than an answer takes.
            if wait > 0.002:
                time.sleep(wait - 0.001)
        asker.ask(requests[row])
        latencies[row] = time.perf_counter() - due
    took = time.perf_counter() - began
    return {"latencies": latencies * 1e3, "answered": count / took, "cpu_ms": (time.process_time() - cpu) / count * 1e3}


def report(what, name, rate, found):
    p50, p99, p999 = np.percentile(found["latencies"], [50, 99, 99.9])
    print(f"| {what} | {name} | {rate:g} | {p50:.2f} | **{p99:.2f}** | {p999:.2f} | {found['latencies'].max():.2f} "
          f"| {found['answered']:.1f} | {found['cpu_ms']:.2f} |", flush=True)
    return p99


def publish_meanwhile(shop, port, arguments):
    """The same load while a run changes some customers, and is taken into memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        quiet = pool.apply(load, (Exchange, port, shop, arguments.keys, arguments.rate))
    shop.members(np.arange(arguments.publish), 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        busy = pool.apply_async(load_unchecked, (Exchange, port, shop, arguments.keys, arguments.rate))
        shop.run()
        busy = busy.get()
    client = holdfast(port)
    numbers = np.arange(min(arguments.publish, 1_000))
    for _ in range(100):
        answer = Call.values(None, client.get_online_features({"customer_id": shop.names(numbers)}, features=shop.features, status="none").to_arrow())
        if np.array_equal(answer, shop.expected(numbers, 1)):
            break
        time.sleep(0.2)
    else:
        raise SystemExit("what was published is not served")
    print("\nThe same while another process ingests and runs, and what it publishes is taken into memory (the two cores are theirs, too):\n", flush=True)
    print("| | side | rate/s | p50 ms | p99 ms | p99.9 ms | most ms | answered/s | client CPU ms a request |")
    print("|---|---|---|---|---|---|---|---|---|")
    report("quiet", "holdfast, open line", arguments.rate, quiet)
    report(f"{arguments.publish:,} customers published", "holdfast, open line", arguments.rate, busy)


def load_unchecked(side, where, shop, keys, rate):
    shop.expected = lambda numbers, shift=0: None
    side.values = lambda self, answer: None
    return load(side, where, shop, keys, rate)


@contextlib.contextmanager
def redis_server(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def fill_redis(port, shop):
    """The asked features alone: what is not asked for costs Redis memory and nothing else."""
    import redis

    client = redis.Redis(port=port)
    fields = [feature.split(":")[1] for feature in shop.features]
    began = time.perf_counter()
    for start in range(0, shop.arguments.customers, 2_000):
        numbers = np.arange(start, min(start + 2_000, shop.arguments.customers))
        rows = shop.expected(numbers).astype("<f8")
        pipeline = client.pipeline(transaction=False)
        for name, row in zip(shop.names(numbers), rows):
            packed = row.tobytes()
            pipeline.hset(name, mapping={field: packed[at * 8 : at * 8 + 8] for at, field in enumerate(fields)})
        pipeline.execute()
    memory = client.info("memory")["used_memory"] / 2**20
    print(f"redis filled with the {len(fields)} that are asked for in {time.perf_counter() - began:.0f} s, {memory:,.0f} MiB", flush=True)


FEAST = """
import os, pathlib, sys
from datetime import datetime, timedelta, timezone
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64
repo, online, data, views, features = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
entity = Entity(name="customer_id", join_keys=["customer_id"], value_type=ValueType.STRING)
objects = [entity]
for view in range(views):
    source = FileSource(name=f"s{view}", path=data, timestamp_field="event_timestamp")
    objects.append(FeatureView(name=f"v{view:02}", entities=[entity], ttl=timedelta(days=3650), source=source,
                               schema=[Field(name=f"f{view:02}_{at}", dtype=Float64) for at in range(features)]))
(repo / "feature_store.yaml").write_text(f'''project: bench
provider: local
registry: {{path: {repo}/registry.db}}
offline_store: {{type: dask}}
online_store: {online}
entity_key_serialization_version: 3
''')
store = FeatureStore(repo_path=str(repo))
store.apply(objects)
store.materialize(datetime(2025, 1, 1, tzinfo=timezone.utc), datetime(2026, 6, 1, tzinfo=timezone.utc))
"""


def feast_sides(folder, arguments, redis_port, shop, stack):
    """Feast's server over Redis and over SQLite, with fewer customers: filling it takes minutes."""
    import pyarrow.parquet as pq

    numbers = np.arange(arguments.feast_customers)
    columns = {"customer_id": shop.names(numbers), "event_timestamp": pa.array([1_767_225_600_000_000] * len(numbers), pa.timestamp("us", "UTC"))}
    values = shop.expected(numbers)
    for at, feature in enumerate(shop.features):
        columns[feature.split(":")[1]] = values[:, at]
    data = folder / "feast.parquet"
    pq.write_table(pa.table(columns), data)
    sides = {}
    for store, online in [("redis", f'{{type: redis, connection_string: "localhost:{redis_port}"}}'),
                          ("sqlite", f"{{type: sqlite, path: {folder}/feast-sqlite/online.db}}")]:
        repo = folder / f"feast-{store}"
        repo.mkdir()
        done = subprocess.run([arguments.feast, "-c", FEAST, repo, online, data, str(len(shop.asked)), str(FEATURES)], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"feast over {store} could not be filled, and is left out: {done.stderr.strip().splitlines()[-1]}")
            continue
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [arguments.feast.parent / "feast", "-c", repo, "serve", "-h", "127.0.0.1", "-p", str(port), "--workers", "-1", "--no-access-log"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.terminate)
        for _ in range(240):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.25)
        sides[f"feast over {store}, {arguments.feast_customers:,} customers"] = (Feast, port)
    return sides


if __name__ == "__main__":
    main()
