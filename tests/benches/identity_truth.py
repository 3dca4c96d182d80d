#!/usr/bin/env python3
"""Who is who, as a lake has it, against the truth that `holdfast generate` wrote beside the shop's files.

    holdfast generate --out shop --customers 20000
    holdfast --project project ingest --from shop
    python tests/benches/identity_truth.py --truth shop/truth --holdfast target/release/holdfast --project project

Pairs of records that core gives to one customer, against pairs that are one person's. Records of nobody, and records whose only identifiers join nobody (a family's phone), are
no customer's: each stands alone. Needs pandas.
"""

import argparse
import json
import pathlib
import subprocess

import pandas

# The records of a source in core, by the key that the truth has.
RECORDS = {
    "crm_contacts": "select crm_id as record_key, customer_id from core.contacts",
    "orders": "select order_id as record_key, customer_id from core.orders",
    "receipts": "select distinct receipt_id as record_key, customer_id from core.receipts",
    "tickets": "select ticket_id as record_key, customer_id from core.tickets",
    "reviews": "select review_id as record_key, customer_id from core.reviews",
    "social_posts": "select post_id as record_key, customer_id from core.social_posts",
}
# Customers of one identifier that joins nobody are nobody in particular.
NOBODY = "select customer_id from identity.identifiers group by customer_id having bool_and(is_shared)"


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--truth", type=pathlib.Path, required=True, help="the folder truth/ of a generated shop")
    options.add_argument("--holdfast", type=pathlib.Path, default="target/debug/holdfast", help="the binary")
    options.add_argument("--project", type=pathlib.Path, default=".", help="the folder with holdfast.toml")
    options.add_argument("--sources", nargs="+", default=list(RECORDS), choices=list(RECORDS))
    options.add_argument("--lost", type=int, default=0, help="also show so many lost and so many wrong pairs")
    options.add_argument("--json", type=pathlib.Path, help="also writes the figures to this file")
    arguments = options.parse_args()

    truth = pandas.read_csv(arguments.truth / "records.csv", dtype=str).dropna()
    cases = pandas.read_csv(arguments.truth / "hard_cases.csv", dtype=str)
    nobody = set(ask(arguments, NOBODY)["customer_id"])
    found = pandas.concat([ask(arguments, RECORDS[source]).assign(source=source) for source in arguments.sources])
    records = found.merge(truth, on=["source", "record_key"]).reset_index(drop=True)
    stands_alone = records["customer_id"].isna() | records["customer_id"].isin(nobody)
    records["cluster"] = records["customer_id"].where(~stands_alone, "alone " + records.index.astype(str))

    figures = {"records": len(records), "alone": int(stands_alone.sum()), **quality(records)}
    print(json.dumps(figures, indent=1))
    by_case(records, cases)
    if arguments.lost:
        examples(records, arguments.lost)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def ask(arguments, query):
    command = [arguments.holdfast, "--project", arguments.project, "sql", query, "--output", "json"]
    told = subprocess.run(command, check=True, capture_output=True).stdout
    return pandas.DataFrame(json.loads(told))


def pairs(sizes):
    return int((sizes * (sizes - 1) // 2).sum())


def quality(records):
    said = records.groupby("cluster").size()
    true = records.groupby("person_id").size()
    right = pairs(records.groupby(["cluster", "person_id"]).size())
    return {
        "precision": round(right / max(pairs(said), 1), 5),
        "recall": round(right / max(pairs(true), 1), 5),
        "largest": int(said.max()),
        "largest_true": int(true.max()),
        "wrong_pairs": pairs(said) - right,
        "lost_pairs": pairs(true) - right,
    }


def by_case(records, cases):
    """Pairs lost and wrong, by the hard cases of the people they are of: a person may have several."""
    print(f"{'hard case':<22}{'people':>8}{'recall':>9}{'lost pairs':>12}{'wrong pairs':>13}")
    wrong = wrong_pairs_of_people(records)
    for case, people in cases.groupby("hard_case")["person_id"]:
        people = set(people)
        of_case = records[records["person_id"].isin(people)]
        true = pairs(of_case.groupby("person_id").size())
        right = pairs(of_case.groupby(["cluster", "person_id"]).size())
        mixed = wrong[wrong.index.isin(people)].sum()
        print(f"{case:<22}{len(people):>8}{right / max(true, 1):>9.4f}{true - right:>12}{int(mixed):>13}")
    rest = records[~records["person_id"].isin(set(cases["person_id"]))]
    true = pairs(rest.groupby("person_id").size())
    right = pairs(rest.groupby(["cluster", "person_id"]).size())
    print(f"{'none':<22}{rest['person_id'].nunique():>8}{right / max(true, 1):>9.4f}{true - right:>12}")


def wrong_pairs_of_people(records):
    """How many wrong pairs the records of each person are in."""
    counts = records.groupby(["cluster", "person_id"]).size().rename("own").reset_index()
    counts["all"] = counts.groupby("cluster")["own"].transform("sum")
    counts["wrong"] = counts["own"] * (counts["all"] - counts["own"])
    return counts.groupby("person_id")["wrong"].sum()


def examples(records, most):
    mixed = records.groupby("cluster")["person_id"].nunique()
    print("customers of several people:")
    for cluster in mixed[mixed > 1].index[:most]:
        print(records[records["cluster"] == cluster].groupby(["person_id", "source"]).size().to_dict())
    split = records.groupby("person_id")["cluster"].nunique()
    print("people of several customers:")
    for person in split[split > 1].index[:most]:
        print(person, records[records["person_id"] == person].groupby(["cluster", "source"]).size().to_dict())


if __name__ == "__main__":
    main()
