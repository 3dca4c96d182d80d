#!/usr/bin/env python3
"""Records through `holdfast ingest`, by identifiers and by likeness: learning, comparing, clusters and tables, then a second file that is compared with what is there. Seconds, memory, quality.

    cargo build --workspace --bins --example linkage_bench
    python tests/benches/identity_records.py --records 1000000 --holdfast target/debug/holdfast --bench target/debug/examples/linkage_bench

Half of the records have an e-mail address, which joins them for certain; `--email 0` leaves only likeness. With `--splink` a Python that has splink==5.0.0 links all records beside it, from the
same file, in memory.
"""

import argparse
import collections
import csv
import json
import pathlib
import subprocess
import tempfile
import zlib

from measure import machine, measure

RULES = """priority = ["record", "email"]
[types.record]
[types.email]
[matching]
[matching.sources.people]
given_name = "given_name"
family_name = "surname"
birth_date = "date_of_birth"
id_number = "soc_sec_id"
address = "street_number || ' ' || address_1"
postcode = "postcode"
region = "state"
"""
COLUMNS = ["rec_id", "given_name", "surname", "street_number", "address_1", "postcode", "state", "date_of_birth", "soc_sec_id", "email"]
# The truth is in the record's id, whose first two parts are the person's.
SOURCE = (
    'kind = "crm"\npath = "people/*.csv"\nformat = "csv"\n[columns]\n'
    + "".join(f'{name} = "string"\n' for name in COLUMNS)
    + '[[identifiers]]\ntype = "record"\nvalue = "rec_id"\n[[identifiers]]\ntype = "email"\nvalue = "email"\n'
)
STAGE = (
    "-- One row a record.\n-- @expect fail has_id: rec_id is not null\n"
    "select i.customer_id, p.rec_id from raw.people p "
    "left join identity.identifiers i on i.token = identifier_token('record', p.rec_id)\n"
)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--records", type=int, default=1_000_000)
    options.add_argument("--later", type=float, default=0.01, help="the share of records that come in a second file")
    options.add_argument("--email", type=float, default=0.5, help="the share of records with an e-mail address")
    options.add_argument("--splink", type=pathlib.Path, help="a Python that has splink==5.0.0, to run beside")
    options.add_argument("--threads", type=int, default=2, help="of Splink; holdfast takes all there are")
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--bench", type=pathlib.Path, default="target/debug/examples/linkage_bench", help="writes the records")
    options.add_argument("--work", type=pathlib.Path, help="where the lake is made and removed")
    arguments = options.parse_args()
    binary = arguments.holdfast.resolve()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-records-", dir=arguments.work) as folder:
        project = pathlib.Path(folder)
        write(project / "holdfast.toml", "")
        write(project / "pipelines/people/pipeline.toml", 'stages = "sql"\n')
        write(project / "pipelines/people/identity.toml", RULES)
        write(project / "pipelines/people/sources/people.toml", SOURCE)
        write(project / "sql/core/people.sql", STAGE)
        made = project / "made.csv"
        subprocess.run([arguments.bench, "--generate", str(arguments.records), "--data", made], check=True)
        header, *lines = with_email(made, arguments.email)
        later = max(1, int(len(lines) * arguments.later))
        # Every so-manieth record comes later: most of them are of people who are there.
        step = len(lines) // later
        second = lines[::step]
        first = [line for at, line in enumerate(lines) if at % step]
        (project / "in/people").mkdir(parents=True)
        for name, part in [("1", first), ("2", second)]:
            write(project / f"in/people/{name}.csv", "\n".join([header, *part]) + "\n")
            command = [binary, "--project", project, "--pipeline", "people", "ingest", "--from", project / "in", "-q"]
            took = measure([*map(str, command)])
            rate = len(part) / took.wall_seconds
            print(
                f"{len(part):>10,} records: {took.wall_seconds:8.1f} s, {rate:8,.0f} records/s, {took.cpu_seconds:8.1f} CPU s, peak {took.peak_memory_mib:,.0f} MiB",
                flush=True,
            )
        query = "select rec_id, customer_id from core.people"
        command = [binary, "--project", project, "--pipeline", "people", "sql", query, "--output", "json"]
        report(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        if arguments.splink:
            beside(arguments, made)


def with_email(made, share):
    """The lines of the file, each record with an e-mail address or none; the file is written anew with them."""
    header, *lines = made.read_text().splitlines()
    has = lambda record: zlib.crc32(record.encode()) < share * 2**32
    address = lambda record: f"{record.split('-')[1]}@mail.example" if has(record) else ""
    lines = [f"{header},email", *(f"{line},{address(next(csv.reader([line]))[0])}" for line in lines)]
    made.write_text("\n".join(lines) + "\n")
    return lines


def beside(arguments, made):
    script = pathlib.Path(__file__).with_name("linkage_splink.py")
    took = measure([str(arguments.splink), str(script), "synthetic with email", str(arguments.threads), str(made)])
    found = json.loads(took.stdout)
    records = found["records"]
    print(
        f"{records:>10,} records: {took.wall_seconds:8.1f} s, {records / took.wall_seconds:8,.0f} records/s, {took.cpu_seconds:8.1f} CPU s, "
        f"peak {took.peak_memory_mib:,.0f} MiB, by Splink"
    )
    best = max(found["results"], key=lambda result: result["cluster_f1"])
    print(
        f"Splink, {best['label']}, its best: precision {best['cluster_p']:.5f}, recall {best['cluster_r']:.5f}, largest {best['largest']}; "
        f"training {found['train_s']:.1f} s, predicting {found['predict_s']:.1f} s, clusters {best['cluster_s']:.1f} s"
    )


def report(rows):
    found = [(row["customer_id"], row["rec_id"].split("-")[1]) for row in rows]
    precision, recall, largest, truly = pairs_found(found)
    print(f"{len(rows):,} records: precision {precision:.5f}, recall {recall:.5f}, largest {largest}, truly {truly}")


def pairs_found(found):
    """Of records, each with the customer that was said and the person it is of: precision and recall of pairs, the largest customer and the one with most records in truth."""
    pairs = lambda counts: sum(count * (count - 1) // 2 for count in counts.values())
    said, true = (collections.Counter(row[side] for row in found) for side in (0, 1))
    right = pairs(collections.Counter(found))
    return right / max(pairs(said), 1), right / max(pairs(true), 1), max(said.values()), max(true.values())


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
