#!/usr/bin/env python3
"""Public sets whose truth is known through `holdfast ingest` with the rules that a user begins with: quality of the customers that come out. No set is named to the rules, and no truth is seen by them.

    cargo build --workspace --bins
    python tests/benches/identity_sets.py --data folder --holdfast target/debug/holdfast

The folder is that of linkage.py. Reading hist50k.parquet takes pyarrow. What each set's customers must reach is what Splink 5's models reach there (linkage.py runs them).
"""

import argparse
import csv
import json
import pathlib
import subprocess
import tempfile

from identity_records import pairs_found, write
from measure import machine, measure

FEBRL = {
    "given_name": "given_name",
    "family_name": "surname",
    "birth_date": "date_of_birth",
    "id_number": "soc_sec_id",
    "address": "street_number || ' ' || address_1",
    "postcode": "postcode",
    "city": "suburb",
    "region": "state",
}
HISTORICAL = {
    "given_name": "first_name",
    "family_name": "surname",
    "birth_date": "dob",
    "gender": "gender",
    "postcode": "postcode_fake",
    "city": "birth_place",
}
# Files, the record's own key, the person of a row, what is said of a person, and the F1 of Splink's customers.
SETS = {
    "febrl2": (["febrl2.csv"], "rec_id", lambda row: row["rec_id"].split("-")[1], FEBRL, 0.998),
    "febrl3": (["febrl3.csv"], "rec_id", lambda row: row["rec_id"].split("-")[1], FEBRL, 0.997),
    "febrl4": (["febrl4a.csv", "febrl4b.csv"], "rec_id", lambda row: row["rec_id"].split("-")[1], FEBRL, 0.999),
    "hist50k": (["hist50k.parquet"], "unique_id", lambda row: row["cluster"], HISTORICAL, 0.826),
}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=pathlib.Path, required=True, help="folder of the sets")
    options.add_argument("--sets", nargs="*", default=[*SETS], choices=[*SETS])
    options.add_argument("--twins", action="store_true", help="names that clearly differ are weighed as all else is: twins_apart = false")
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--work", type=pathlib.Path, help="where the lakes are made and removed")
    arguments = options.parse_args()
    print(machine())
    print("\n| | records | precision | recall | F1 | Splink's F1 | largest | truly | s | peak MiB |\n|---|" + "---|" * 9)
    for name in arguments.sets:
        with tempfile.TemporaryDirectory(prefix="holdfast-sets-", dir=arguments.work) as folder:
            resolve(name, arguments, pathlib.Path(folder))


def resolve(name, arguments, project):
    files, key, person, attributes, bar = SETS[name]
    rows = [row for file in files for row in read(arguments.data / file)]
    columns = list(rows[0])
    write(project / "holdfast.toml", "")
    write(project / "pipelines/people/pipeline.toml", 'stages = "sql"\n')
    said = "".join(f'{attribute} = "{value}"\n' for attribute, value in attributes.items())
    twins = "twins_apart = false\n" if arguments.twins else ""
    write(project / "pipelines/people/identity.toml", f'priority = ["record"]\n[types.record]\n[matching]\n{twins}[matching.sources.people]\n{said}')
    write(
        project / "pipelines/people/sources/people.toml",
        'kind = "crm"\npath = "people.csv"\nformat = "csv"\n[columns]\n'
        + "".join(f'{column} = "string"\n' for column in columns)
        + f'[[identifiers]]\ntype = "record"\nvalue = "{key}"\n',
    )
    write(
        project / "sql/core/people.sql",
        f"-- One row a record.\nselect i.customer_id, p.{key} from raw.people p\n"
        f"left join identity.identifiers i on i.token = identifier_token('record', p.{key})\n",
    )
    (project / "in").mkdir()
    with open(project / "in/people.csv", "w", newline="") as file:
        out = csv.DictWriter(file, columns)
        out.writeheader()
        out.writerows(rows)
    command = [str(arguments.holdfast.resolve()), "--project", str(project), "--pipeline", "people"]
    took = measure([*command, "ingest", "--from", str(project / "in"), "-q"])
    query = [*command, "sql", f"select {key}, customer_id from core.people", "--output", "json"]
    people = {row[key]: person(row) for row in rows}
    found = [(row["customer_id"], people[row[key]]) for row in json.loads(subprocess.run(query, check=True, capture_output=True).stdout)]
    if len(found) != len(rows):
        raise SystemExit(f"{name}: {len(rows):,} records went in and {len(found):,} came out")
    precision, recall, largest, truly = pairs_found(found)
    f1 = 2 * precision * recall / (precision + recall)
    cells = [name, f"{len(rows):,}", f"{precision:.4f}", f"{recall:.4f}", f"{f1:.4f}", f"{bar:.3f}", str(largest), str(truly)]
    print("| " + " | ".join([*cells, f"{took.wall_seconds:.1f}", f"{took.peak_memory_mib:,.0f}"]) + " |", flush=True)


def read(path):
    """The rows of a file, as texts; null is an empty one."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        rows = parquet.read_table(path).to_pylist()
    else:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    return [{name: "" if value is None else str(value).strip() for name, value in row.items()} for row in rows]


if __name__ == "__main__":
    main()
