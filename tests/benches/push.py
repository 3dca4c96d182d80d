#!/usr/bin/env python3
"""Events pushed to `holdfast collect` at a steady rate: how soon they are acknowledged, and how soon they are in `raw`.

Connections send batches at times that were fixed before, whatever the answers do; an acknowledgement is counted from the
time at which its batch should have been sent, so that a slow answer cannot hide those behind it. Afterwards every event
has to be in `raw` once. When a row could be read is the time at which its commit appeared in the Delta log.

    python tests/benches/push.py --holdfast target/debug/holdfast

Needs the packages of tests/clients/requirements.txt.
"""

import argparse
import asyncio
import json
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import uuid

from measure import machine

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--rate", type=int, default=5_000, help="events a second")
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--batch", type=int, default=20, help="events a request")
    options.add_argument("--connections", type=int, default=100)
    options.add_argument("--gather-ms", type=int, default=100, help="as of holdfast collect")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")

    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as work:
        work = pathlib.Path(work)
        print(machine(), flush=True)
        command = [binary, "--project", ROOT, "--lake", work / "lake", "--identity-key", work / "identity.key"]
        command += ["collect", "--source", "events", "--listen", "127.0.0.1:0", "--gather-ms", str(arguments.gather_ms)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        host, port = next(filter(None, (re.search("http://([0-9.]+):([0-9]+)", line) for line in process.stderr))).groups()
        load = asyncio.run(push(arguments, host, int(port)))
        peak, cpu = usage(process.pid)
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=30) != 0:
            raise SystemExit(f"it ended with {process.returncode}: {process.stderr.read()}")
        stopped = time.perf_counter() - began
        report(arguments, load, delays(work / "lake", load["ids"]), peak, cpu, stopped)


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
        ids, body = batch(arguments.batch)
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


def batch(length):
    """Events as Segment's library writes them, about 500 bytes each."""
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
        for number, identity in enumerate(ids)
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
    import pyarrow.parquet

    table = lake / "raw" / "events"
    found, seconds, commits = set(), [], 0
    for log in sorted((table / "_delta_log").glob("*.json")):
        visible = log.stat().st_mtime
        added = [json.loads(line)["add"]["path"] for line in log.read_text().splitlines() if line.startswith('{"add"')]
        commits += bool(added)
        for path in added:
            rows = pyarrow.parquet.read_table(table / path, columns=["messageId", "timestamp"])
            for identity, sent in zip(rows["messageId"].to_pylist(), rows["timestamp"].to_pylist()):
                if identity in found:
                    raise SystemExit(f"event {identity} is in raw twice")
                found.add(identity)
                seconds.append(visible - sent.timestamp())
    if found != ids:
        raise SystemExit(f"{len(ids - found)} acknowledged events are not in raw, {len(found - ids)} others are")
    return seconds, commits


def report(arguments, load, raw, peak, cpu, stopped):
    delay, commits = raw
    events = len(load["ids"])
    print(f"\n{events:,} events in {load['wall']:.1f} s: {events / load['wall']:,.0f}/s, {load['bytes'] / 1e6:.0f} MB")
    print(f"other answers than 200: {load['refused']}; the latest batch was sent {load['late'] * 1e3:.0f} ms late")
    print("\n| | p50 | p90 | p99 | max |")
    print("|---|---|---|---|---|")
    print(f"| acknowledgement, ms | {' | '.join(f'{value * 1e3:.0f}' for value in quantiles(load['seconds']))} |")
    print(f"| event to raw, s | {' | '.join(f'{value:.2f}' for value in quantiles(delay))} |")
    print(f"\npeak memory {peak:.0f} MiB, CPU {cpu:.1f} s, {commits} commits to raw, stopped in {stopped:.1f} s")
    print("every acknowledged event is in raw once")


def quantiles(values):
    values = sorted(values)
    return [values[min(len(values) - 1, int(len(values) * share))] for share in (0.5, 0.9, 0.99, 1.0)]


if __name__ == "__main__":
    main()
