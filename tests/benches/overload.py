#!/usr/bin/env python3
"""What one user feels while another asks for far more than the service can give.

    python tests/benches/overload.py --holdfast target/debug/holdfast --lake demo/lake --identity-key demo/identity.key

A `holdfast serve` with a policy: the role `calm` without limits, the role `flood` with a limit of queries at once. One client of `calm` asks the
same small question again and again, first alone, then while processes of `flood` ask for a join that takes seconds, each as fast as it is
answered or refused. Prints p50 and p99 of both, how many questions of the flood were answered and how many were shed, and by which error. Needs
pyarrow from PyPI.
"""

import argparse
import collections
import multiprocessing
import os
import pathlib
import re
import signal
import statistics
import subprocess
import tempfile
import time

import pyarrow
import pyarrow.flight as flight

from measure import machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
POLICY = """
[roles.calm]
tables = ["*"]

[roles.flood]
tables = ["*"]

[roles.flood.limits]
concurrency = {concurrency}
"""
LARGE = "select count(*) as n from core.events a join core.events b on a.customer_id = b.customer_id"


def command(query):
    from google.protobuf import any_pb2

    data = query.encode()
    length, varint = len(data), bytearray()
    while length > 127:
        varint.append(length & 127 | 128)
        length >>= 7
    message = any_pb2.Any(type_url="type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery")
    message.value = b"\x0a" + bytes(varint) + bytes([length]) + data
    return message.SerializeToString()


def options(token):
    return flight.FlightCallOptions(timeout=120, headers=[(b"authorization", f"Bearer {token}".encode())])


def ask_calmly(address, token, count):
    ticket = flight.Ticket(command("select customer_id, purchases from features.churn_v1 order by purchases desc limit 20"))
    seconds = []
    with flight.connect(f"grpc://{address}") as client:
        for _ in range(count + 20):
            began = time.perf_counter()
            client.do_get(ticket, options(token)).read_all()
            seconds.append(time.perf_counter() - began)
    return seconds[20:]


def flood(address, token, stop, counts):
    # Elsewhere these clients would have processors of their own.
    os.nice(19)
    outcomes = collections.Counter()
    ticket = flight.Ticket(command(LARGE))
    with flight.connect(f"grpc://{address}") as client:
        while not stop.is_set():
            try:
                client.do_get(ticket, options(token)).read_all()
                outcomes["answered"] += 1
            except (pyarrow.ArrowException, flight.FlightError) as error:
                found = re.search(r"[^.]*try again[^.]*|more than[^.]*", str(error))
                outcomes[re.sub(r"[0-9.]+", "N", found.group(0) if found else str(error))[:100]] += 1
                # As a client does that is told when to come back, if an impatient one.
                time.sleep(0.05)
    counts.put(outcomes)


def shown(seconds):
    ordered = sorted(seconds)
    return statistics.median(ordered) * 1000, ordered[int(len(ordered) * 0.99) - 1] * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--holdfast", type=pathlib.Path, required=True)
    parser.add_argument("--lake", type=pathlib.Path, required=True)
    parser.add_argument("--identity-key", type=pathlib.Path, required=True)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--questions", type=int, default=600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "holdfast.toml").write_text("")
        (folder / "pipelines").mkdir()
        subprocess.run(["cp", "-r", ROOT / "pipelines/churn", folder / "pipelines/churn"], check=True)
        os.symlink(ROOT / "sql", folder / "sql")
        (folder / "pipelines/churn/policy.toml").write_text(POLICY.format(concurrency=arguments.concurrency))
        base = [arguments.holdfast.resolve(), "--project", folder, "--lake", arguments.lake.resolve(), "--identity-key", arguments.identity_key.resolve()]
        tokens = {}
        for role in ("calm", "flood"):
            done = subprocess.run([*base, "access", "token", "add", role, "--role", role, "--users", folder / "users.toml"], check=True, capture_output=True, text=True)
            tokens[role] = done.stdout.strip()
        serve = [*base, "serve", "--audit", "off", "--users", folder / "users.toml", "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
        address = next(filter(None, (re.search(r"grpc://([0-9.:]+)", line) for line in process.stderr))).group(1)
        try:
            alone = ask_calmly(address, tokens["calm"], arguments.questions)
            stop, counts = multiprocessing.Event(), multiprocessing.Queue()
            floods = [multiprocessing.Process(target=flood, args=(address, tokens["flood"], stop, counts)) for _ in range(arguments.processes)]
            for one in floods:
                one.start()
            time.sleep(2)
            beside = ask_calmly(address, tokens["calm"], arguments.questions)
            stop.set()
            outcomes = sum((counts.get(timeout=180) for _ in floods), collections.Counter())
            for one in floods:
                one.join()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    print(machine())
    (alone_median, alone_p99), (beside_median, beside_p99) = shown(alone), shown(beside)
    print(f"{'':18}{'p50 ms':>10}{'p99 ms':>10}")
    print(f"{'alone':18}{alone_median:>10.2f}{alone_p99:>10.2f}")
    print(f"{'beside the flood':18}{beside_median:>10.2f}{beside_p99:>10.2f}   {beside_p99 / alone_p99:.2f}x")
    for outcome, count in outcomes.most_common():
        print(f"{count:>8} {outcome}")


if __name__ == "__main__":
    main()
