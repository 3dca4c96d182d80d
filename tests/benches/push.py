#!/usr/bin/env python3
"""Events pushed to `holdfast collect` at a steady rate: how soon they are acknowledged, and how soon they are in `raw`.

Connections send batches at times that were fixed before, whatever the answers do; an acknowledgement is counted from the
time at which its batch should have been sent, so that a slow answer cannot hide those behind it. Afterwards every event
has to be in `raw` once. When a row could be read is the time at which its commit appeared in the Delta log.

    python tests/benches/push.py --holdfast target/debug/holdfast

With `--core`, a watching `holdfast ingest` beside it takes the events on to identity and the core tables, and it is told
how soon they are in `core.events`.

The events are those of `--customers` people, each with a device and a member number, drawn at random.

With `--throttle 10` the lake is in an S3 server that answers ten of a hundred requests with 503; cargo builds it with the
tests, as target/debug/examples/s3_server.

Needs the packages of tests/clients/requirements.txt.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import tempfile
import time
import urllib.parse
import uuid

import pyarrow
import pyarrow.fs
import pyarrow.parquet

from measure import machine

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--rate", type=int, default=5_000, help="events a second")
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--batch", type=int, default=20, help="events a request")
    options.add_argument("--customers", type=int, default=50_000, help="whose events they are")
    options.add_argument("--connections", type=int, default=100)
    options.add_argument("--gather-ms", type=int, default=100, help="as of holdfast collect")
    options.add_argument("--core", action="store_true", help="on to core.events, by a watching ingest")
    options.add_argument("--throttle", type=int, help="requests of a hundred that the store refuses")
    options.add_argument("--s3-server", type=pathlib.Path, help="beside the binary, in examples, if not given")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    server = (arguments.s3_server or binary.parent / "examples" / "s3_server").resolve()
    for needed in [binary] + [server] * (arguments.throttle is not None):
        if not needed.is_file():
            options.error(f"there is no {needed}: build it with `cargo test --workspace --no-run`, or name another")

    with contextlib.ExitStack() as stack:
        work = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        print(f"{machine()}, load {os.getloadavg()[0]:.1f}", flush=True)
        if arguments.throttle is None:
            lake = Lake(work / "lake", work / "lake", pyarrow.fs.LocalFileSystem(), {})
        else:
            lake = stack.enter_context(throttled(server, arguments.throttle))
        common = [binary, "--project", ROOT, "--lake", lake.url, "--identity-key", work / "identity.key"]
        command = [*common, "collect", "--source", "events", "--listen", "127.0.0.1:0", "--gather-ms", str(arguments.gather_ms)]
        settings = {**os.environ, **lake.settings}
        process = subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True)
        host, port = next(filter(None, (re.search("http://([0-9.]+):([0-9]+)", line) for line in process.stderr))).groups()
        if arguments.core:
            (work / "in" / "events").mkdir(parents=True)
            # In a shop that has been open for a day all tables are there.
            warm_up(lake, common, settings, host, int(port), work / "in")
            watching = [*common, "--quiet", "ingest", "--watch", "--every", "1", "--from", work / "in", "--source", "events"]
            watcher = subprocess.Popen(watching, env=settings, stderr=subprocess.PIPE, text=True)
        load = asyncio.run(push(arguments, host, int(port)))
        peak, cpu = usage(process.pid)
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=30) != 0:
            raise SystemExit(f"it ended with {process.returncode}: {process.stderr.read()}")
        stopped = time.perf_counter() - began
        to_core = None
        if arguments.core:
            to_core = wait_for_core(lake, load["ids"], watcher)
        report(arguments, load, delays(lake, load["ids"]), to_core, peak, cpu, stopped)


def warm_up(lake, common, settings, host, port, folder):
    """One event on its way to all core tables."""

    async def send():
        reader, writer = await asyncio.open_connection(host, port)
        lake.passed_over, body = batch(1, 1)
        writer.write(f"POST /v1/batch HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the first event was not taken: {answer.decode()}")

    asyncio.run(send())
    ingest = [*common, "--quiet", "ingest", "--from", folder, "--source", "events"]
    subprocess.run(ingest, env=settings, check=True)


class Lake:
    """Where the lake is, and how it is read without holdfast."""

    def __init__(self, url, folder, files, settings):
        self.url, self.folder, self.files, self.settings = url, folder, files, settings
        # Events that were sent before the clock ran.
        self.passed_over = []

    def read(self, path):
        """A whole file. pyarrow does not ask again for all that a busy store refuses."""
        for attempt in range(20):
            try:
                with self.files.open_input_stream(path) as stream:
                    return stream.read()
            except FileNotFoundError:
                raise
            except OSError:
                time.sleep(0.02 * attempt)
        raise SystemExit(f"{path} cannot be read")


@contextlib.contextmanager
def throttled(server, percent):
    """A lake in an S3 server that refuses a share of what it is asked."""
    command = [server, "--throttle", str(percent)] + (["--log", os.environ["S3_LOG"]] if "S3_LOG" in os.environ else [])
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    endpoint, key, secret = re.search("(http://[^ ]+) .* key ([^,]+), secret (.+)", process.stdout.readline()).groups()
    settings = {
        "AWS_ENDPOINT": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
    }
    files = pyarrow.fs.S3FileSystem(
        access_key=key,
        secret_key=secret,
        endpoint_override=endpoint,
        region="us-east-1",
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=10),
    )
    yield Lake("s3://shop/lake", "shop/lake", files, settings)
    process.stdin.close()
    print(process.stdout.read().strip())
    process.wait(timeout=30)


async def push(arguments, host, port):
    """Sends for as long as asked; the acknowledgement times, the ids, and what was answered with another status."""
    interval = arguments.connections * arguments.batch / arguments.rate
    began = time.perf_counter() + 0.5
    load = {"seconds": [], "ids": set(), "refused": 0, "late": 0.0, "bytes": 0}
    senders = [
        sender(arguments, host, port, began + interval * number / arguments.connections, interval, load)
        for number in range(arguments.connections)
    ]
    await asyncio.gather(*senders)
    load["wall"] = time.perf_counter() - began
    return load


async def sender(arguments, host, port, began, interval, load):
    reader, writer = await asyncio.open_connection(host, port)
    for turn in range(int(arguments.seconds / interval)):
        due = began + turn * interval
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        load["late"] = max(load["late"], time.perf_counter() - due)
        ids, body = batch(arguments.batch, arguments.customers)
        head = f"POST /v1/batch HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer).group(1)))
        if answer.startswith(b"HTTP/1.1 200"):
            load["seconds"].append(time.perf_counter() - due)
            load["ids"].update(ids)
            load["bytes"] += len(body)
        else:
            load["refused"] += 1
    writer.close()


def batch(length, customers):
    """Events of random customers as Segment's library writes them, about 500 bytes each."""
    ids = [str(uuid.uuid4()) for _ in range(length)]
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1000 % 1_000_000:06}+00:00"
    messages = [
        {
            "integrations": {},
            "anonymousId": f"device-{number}",
            "properties": {"url": "https://shop.example/p/1234567", "product_id": identity[:8], "price": 19.9},
            "timestamp": now,
            "context": {
                "channel": "web",
                "device": {"id": f"device-{number}", "type": "phone"},
                "session_id": identity[-12:],
                "ip": "192.0.2.1",
                "library": {"name": "analytics-python", "version": "2.4.0"},
            },
            "userId": f"M{number:09}",
            "type": "track",
            "event": "Product Viewed",
            "messageId": identity,
        }
        for identity in ids
        for number in [random.randrange(customers)]
    ]
    return ids, json.dumps({"batch": messages, "sentAt": now}).encode()


def usage(pid):
    """Peak memory in MiB and CPU seconds of a process that still runs."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    # Fields 14 and 15 of proc(5), in ticks of a hundredth of a second.
    return peak, (int(fields[11]) + int(fields[12])) / 100


def delays(lake, ids):
    """Seconds from sending an event to its being in `raw`, and how many commits brought them. Every event is there once."""
    table = f"{lake.folder}/raw/events"
    found, seconds, commits = set(), [], 0
    for visible, events in versions(lake, table, ("messageId", "timestamp"), set()):
        commits += 1
        for identity, sent in events:
            if identity in found:
                raise SystemExit(f"event {identity} is in raw twice")
            found.add(identity)
            seconds.append(visible - sent.timestamp())
    if not ids <= found:
        raise SystemExit(f"{len(ids - found)} acknowledged events are not in raw")
    # A refusal says that it is open whether the events are stored; a client that sends them again is told that they are.
    return seconds, commits, len(found - ids)


def wait_for_core(lake, ids, watcher):
    """Stops the watching ingest once all is in core; seconds from sending an event to its being there, commits, peak, CPU."""
    core = CoreEvents(lake)
    for _ in range(120):
        if watcher.poll() is not None:
            raise SystemExit(f"ingest ended with {watcher.returncode}: {watcher.stderr.read()}")
        with contextlib.suppress(FileNotFoundError):
            core.look()
        if ids <= core.found:
            break
        time.sleep(1)
    else:
        raise SystemExit(f"{len(ids - core.found)} acknowledged events are not in core after two minutes")
    peak, cpu = usage(watcher.pid)
    watcher.send_signal(signal.SIGTERM)
    if watcher.wait(timeout=30) != 0:
        raise SystemExit(f"ingest ended with {watcher.returncode}: {watcher.stderr.read()}")
    return core.seconds, core.commits, peak, cpu


class CoreEvents:
    """Of each event in `core.events`, the seconds from sending it to the first version of the table that has it."""

    def __init__(self, lake):
        self.lake, self.found, self.seconds, self.commits, self.logs = lake, set(), [], 0, set()

    def look(self):
        """Reads the versions that have come since the last look."""
        for visible, events in versions(self.lake, f"{self.lake.folder}/core/events", ("event_id", "occurred_at"), self.logs):
            self.commits += 1
            for identity, sent in events:
                if identity not in self.found:
                    self.found.add(identity)
                    self.seconds.append(visible - sent.timestamp())


def versions(lake, table, columns, passed):
    """When each commit that brought rows appeared in the table's log, and two columns of these rows; but for those passed before."""
    logs = lake.files.get_file_info(pyarrow.fs.FileSelector(f"{table}/_delta_log"))
    logs = sorted((log for log in logs if log.extension == "json"), key=lambda log: log.path)
    for log in logs:
        if log.path in passed:
            continue
        lines = lake.read(log.path).decode().splitlines()
        adds = [json.loads(line)["add"] for line in lines if line.startswith('{"add"')]
        # Files that only merge others bring no rows.
        passed.add(log.path)
        added = [urllib.parse.unquote(add["path"]) for add in adds if add["dataChange"]]
        if added:
            rows = itertools.chain.from_iterable(pairs(lake, f"{table}/{path}", columns) for path in added)
            yield log.mtime_ns / 1e9, ((identity, sent) for identity, sent in rows if identity not in lake.passed_over)


def pairs(lake, path, columns):
    # Not as a dataset: the folders' names would become columns.
    rows = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(lake.read(path))).read(columns=list(columns))
    return zip(*(rows[column].to_pylist() for column in columns))


def report(arguments, load, raw, to_core, peak, cpu, stopped):
    delay, commits, unanswered = raw
    events = len(load["ids"])
    print(f"\n{events:,} events in {load['wall']:.1f} s: {events / load['wall']:,.0f}/s, {load['bytes'] / 1e6:.0f} MB")
    print(f"other answers than 200: {load['refused']}; the latest batch was sent {load['late'] * 1e3:.0f} ms late")
    print("\n| | p50 | p90 | p95 | p99 | max |")
    print("|---|---|---|---|---|---|")
    print(f"| acknowledgement, ms | {' | '.join(f'{value * 1e3:.0f}' for value in quantiles(load['seconds']))} |")
    print(f"| event to raw, s | {' | '.join(f'{value:.2f}' for value in quantiles(delay))} |")
    if to_core:
        core, core_commits, core_peak, core_cpu = to_core
        print(f"| event to core, s | {' | '.join(f'{value:.2f}' for value in quantiles(core))} |")
        print(f"\ningest: peak memory {core_peak:.0f} MiB, CPU {core_cpu:.1f} s, {core_commits} versions of core.events")
    print(f"\npeak memory {peak:.0f} MiB, CPU {cpu:.1f} s, {commits} commits to raw, stopped in {stopped:.1f} s")
    print(f"every acknowledged event is in raw once, and {unanswered} of refused requests")


def quantiles(values):
    values = sorted(values)
    return [values[min(len(values) - 1, int(len(values) * share))] for share in (0.5, 0.9, 0.95, 0.99, 1.0)]


if __name__ == "__main__":
    main()
