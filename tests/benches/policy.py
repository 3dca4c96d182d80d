#!/usr/bin/env python3
"""What the policy costs: the same questions with the policy's filter and masks, and with the same written by hand.

One service has no policy; another has roles. Each question is asked of both in turn, over one table of people, and both must give the same
rows. Three pairs: a role that sees everything against no policy, a row filter against the same condition in the statement, and a mask
against the same expression in the statement. Printed is the median of the pairs' ratios, and the seconds.

    python tests/benches/policy.py --holdfast target/release/holdfast

Needs the packages of tests/clients/requirements.txt.
"""

import argparse
import pathlib
import re
import signal
import statistics
import subprocess
import tempfile
import time

import adbc_driver_flightsql.dbapi
import pyarrow
import pyarrow.parquet

from measure import machine

PROJECT = {
    "holdfast.toml": "",
    "pipelines/churn/pipeline.toml": 'stages = "sql"\n',
    "pipelines/churn/identity.toml": 'priority = ["phone"]\n[types.phone]\n',
    "pipelines/churn/sources/people.toml": """
kind = "crm"
path = "people/*.parquet"
format = "parquet"
event_time = "at"

[columns]
id = "int64"
at = "timestamp"
region = "string"
age = "int32"
mobile = { type = "string", pii = true }
amount = "float64"
""",
    "sql/core/people.sql": "-- @tag pii(mobile)\nselect id, region, age, mobile, amount from raw.people\n",
}
POLICY = """
[roles.everything]
tables = ["core.*"]
[[roles.everything.columns]]
tag = "pii"
mask = "show"

[roles.north]
tables = ["core.*"]
[[roles.north.rows]]
where = "region = 'north'"
[[roles.north.columns]]
tag = "pii"
mask = "show"

[roles.masked]
tables = ["core.*"]
[[roles.masked.columns]]
columns = ["age"]
mask = "range"
width = 10
[[roles.masked.columns]]
tag = "pii"
mask = "null"
"""
BY_HAND = {
    "everything": "(select id, region, age, mobile, amount from core.people)",
    "north": "(select id, region, age, mobile, amount from core.people where region = 'north')",
    "masked": "(select id, region, age / 10 * 10 as age, cast(null as varchar) as mobile, amount from core.people)",
}
QUESTIONS = [
    "select region, count(*) as n, sum(amount) as amount from {} p group by region order by region",
    "select age, avg(amount) as amount from {} p where id % 7 = 3 group by age order by age",
    "select count(distinct mobile) as n from {} p",
    "select id, region, age, mobile, amount from {} p where id < 100000 order by id",
]


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--rows", type=int, default=2_000_000)
    options.add_argument("--rounds", type=int, default=9)
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    if not binary.is_file():
        options.error(f"there is no binary {binary}: build it, or name another with --holdfast")

    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as work:
        work = pathlib.Path(work)
        print(machine(), flush=True)
        for path, text in PROJECT.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text)
        write_people(work / "in/people", arguments.rows)
        command = [binary, "--project", work]
        for step in (["ingest", "--from", work / "in"], ["run"]):
            subprocess.run([*command, *step], check=True, capture_output=True)
        tokens = {
            role: subprocess.run(
                [*command, "access", "token", "add", role, "--role", role], check=True, capture_output=True, text=True
            ).stdout.strip()
            for role in BY_HAND
        }
        open_service, open_uri = serve(command, [])
        (work / "pipelines/churn/policy.toml").write_text(POLICY)
        guarded_service, guarded_uri = serve(command, ["--users", work / "users.toml", "--audit", "off"])

        print(f"\n{arguments.rows:,} rows, {arguments.rounds} rounds\n")
        print("| role | question | by hand, s | by policy, s | ratio |")
        print("|---|---|---|---|---|")
        worst = 0.0
        with connect(open_uri, None) as by_hand:
            for role, table in BY_HAND.items():
                with connect(guarded_uri, tokens[role]) as by_policy:
                    for number, question in enumerate(QUESTIONS, 1):
                        pairs = [
                            (ask(by_hand, question.format(table)), ask(by_policy, question.format("core.people")))
                            for _ in range(arguments.rounds + 1)
                        ]
                        for (_, mine), (_, theirs) in pairs:
                            if not same(mine, theirs):
                                raise SystemExit(f"{role}, question {number}: the answers differ")
                        # The first pair warms both up.
                        hand = [hand for (hand, _), _ in pairs[1:]]
                        policy = [policy for _, (policy, _) in pairs[1:]]
                        ratio = statistics.median(ours / theirs for theirs, ours in zip(hand, policy))
                        worst = max(worst, ratio)
                        print(
                            f"| {role} | {number} | {statistics.median(hand):.3f} | {statistics.median(policy):.3f} "
                            f"| {ratio:.3f} |",
                            flush=True,
                        )
        for service in (open_service, guarded_service):
            service.send_signal(signal.SIGTERM)
            service.wait(timeout=60)
        print(f"\nall answers agree; the largest ratio is {worst:.3f}")


def write_people(folder, rows):
    folder.mkdir(parents=True)
    ids = range(rows)
    table = pyarrow.table(
        {
            "id": pyarrow.array(ids, pyarrow.int64()),
            "at": pyarrow.array([1_769_904_000_000_000] * rows, pyarrow.timestamp("us", "UTC")),
            "region": pyarrow.array([("north", "south", "east", "west")[number * 7919 % 4] for number in ids]),
            "age": pyarrow.array([18 + number * 31 % 70 for number in ids], pyarrow.int32()),
            "mobile": pyarrow.array([f"138{number * 7919 % 100_000_000:08}" for number in ids]),
            "amount": pyarrow.array([number * 104_729 % 100_000 / 64 for number in ids]),
        }
    )
    pyarrow.parquet.write_table(table, folder / "1.parquet")


def serve(command, arguments):
    process = subprocess.Popen(
        [*command, "serve", "--listen", "127.0.0.1:0", *arguments], stderr=subprocess.PIPE, text=True
    )
    said = next(filter(None, (re.search("grpc://[0-9.:]+", line) for line in process.stderr)), None)
    if said is None:
        raise SystemExit("the service did not start")
    return process, said.group()


def connect(uri, token):
    key = adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value
    options = {key: f"Bearer {token}"} if token else {}
    return adbc_driver_flightsql.dbapi.connect(uri, db_kwargs=options, autocommit=True)


def ask(connection, query):
    with connection.cursor() as cursor:
        began = time.perf_counter()
        cursor.execute(query)
        answer = cursor.fetch_arrow_table()
        return time.perf_counter() - began, answer


def same(mine, theirs):
    """Equal but for the order in which sums of floating point numbers were added."""
    if mine.column_names != theirs.column_names or mine.num_rows != theirs.num_rows:
        return False
    for ours, other in zip(mine.columns, theirs.columns):
        if pyarrow.types.is_floating(ours.type):
            if any(abs(a - b) > 1e-9 * max(abs(a), abs(b), 1.0) for a, b in zip(ours.to_pylist(), other.to_pylist())):
                return False
        elif ours.to_pylist() != other.to_pylist():
            return False
    return True


if __name__ == "__main__":
    main()
