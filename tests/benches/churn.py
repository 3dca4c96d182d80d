"""What a trained model is worth on the generator's shop, whose truth it never sees.

    python tests/benches/churn.py --holdfast target/debug/holdfast --customers 8000 --days 730

Makes a demo lake, trains and promotes the shipped model, then looks at the moment that judged it as if it were today (`run --as-of`, `score`) and holds the
scores against

* what customers did: no purchase in the horizon, from core.purchases of the whole lake;
* the generator's truth: whether a customer was gone for good (customers.csv, churned_on) by the end of the horizon;
* an oracle that knows of each customer what nobody can: whether they are gone at the moment, have begun to leave, and how many purchases a year they are
  made for. It is no ceiling that could be reached, and not the best that could be known, but what the generator knows at that moment.

Prints one JSON document. Everything in it is of made-up data.
"""

import argparse
import csv
import datetime
import io
import json
import math
import pathlib
import subprocess
import tempfile


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--holdfast", required=True)
    parser.add_argument("--project", default=str(pathlib.Path(__file__).parents[2]))
    parser.add_argument("--customers", type=int, default=8000)
    parser.add_argument("--days", type=int, default=730)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dir", help="the demo's folder; one of its own without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        print(json.dumps(measure(options, pathlib.Path(options.dir or own)), indent=2))


def measure(options, folder):
    lake = ["--project", options.project, "--lake", str(folder / "lake"), "--identity-key", str(folder / "identity.key")]

    def holdfast(*arguments):
        command = [options.holdfast, "--quiet", *lake, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def rows(sql):
        return list(csv.DictReader(io.StringIO(holdfast("sql", "--output", "csv", sql))))

    subprocess.run(
        [options.holdfast, "--quiet", "--project", options.project, "demo", "--no-serve", "--dir", str(folder)]
        + ["--customers", str(options.customers), "--days", str(options.days), "--seed", str(options.seed)],
        check=True,
        capture_output=True,
    )
    trained = json.loads(holdfast("train", "--model", "churn", "--json"))
    if trained["outcome"] == "unchanged":
        trained = json.loads(holdfast("models", "show", "churn", "--json"))
        moment = trained["moments"]["test"][0]
    else:
        moment = trained["test_moments"][0]
    holdfast("models", "promote", "churn", str(trained["version"]))
    holdfast("run", "--as-of", moment)
    scored = json.loads(holdfast("score", "--model", "churn", "--json"))

    at = datetime.datetime.fromisoformat(moment.replace("Z", "+00:00"))
    begins, ends = at + datetime.timedelta(days=7), at + datetime.timedelta(days=97)
    scores = rows(
        "select p.customer_id, p.probability, p.probability_raw, s.churn_probability as scorecard, "
        "f.days_since_purchase as recency, c.member_no "
        "from risk.churn_probability p "
        "inner join features.churn_v1 f on f.customer_id = p.customer_id "
        "left join risk.churn_score s on s.customer_id = p.customer_id "
        "left join (select customer_id, min(member_no) as member_no from core.contacts group by customer_id) c "
        "on c.customer_id = p.customer_id"
    )
    stamp = "timestamp '{:%Y-%m-%dT%H:%M:%S}Z'"
    came_back = {
        row["customer_id"]
        for row in rows(
            "select distinct customer_id from core.purchases where not is_return and customer_id is not null "
            f"and purchased_at > {stamp.format(begins)} and purchased_at <= {stamp.format(ends)}"
        )
    }
    truth = {}
    with open(folder / "sources/truth/customers.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in ("member_no", "second_member_no"):
                if row[name]:
                    truth[digits(row[name])] = row
    known = [(row, truth[digits(row["member_no"])]) for row in scores if digits(row["member_no"] or "") in truth]

    def day(text):
        return datetime.datetime.fromisoformat(text + "T00:00:00+00:00") if text else None

    def oracle(person):
        rate = float(person["purchases_a_year"]) / 365
        gone, declines = day(person["churned_on"]), day(person["decline_began_on"])
        if gone and gone <= at:
            return 1.0
        quiet = math.exp(-rate * 90)
        return max(quiet, 0.5 + quiet / 2) if declines and declines <= at else quiet

    quiet = [row["customer_id"] not in came_back for row, _ in known]
    gone = [bool(day(person["churned_on"]) and day(person["churned_on"]) <= ends) for _, person in known]
    columns = {
        "model": [float(row["probability"]) for row, _ in known],
        "scorecard": [float(row["scorecard"] or 0.5) for row, _ in known],
        "recency": [float(row["recency"]) for row, _ in known],
        "oracle": [oracle(person) for _, person in known],
    }
    measures = {
        f"{label}": {name: round(auc(values, labels), 4) for name, values in columns.items()}
        for label, labels in (("no_purchase_in_horizon", quiet), ("gone_for_good_by_its_end", gone))
    }
    of = {
        row["measure"]: row
        for row in trained["measures"]
        if row["judged_on"] == "out_of_time" and row["baseline"] == "recency"
    }
    return {
        "customers": options.customers,
        "days": options.days,
        "seed": options.seed,
        "judged_at": moment,
        "train_rows": trained.get("rows"),
        "scored": scored["customers"] if scored["outcome"] == "made" else None,
        "matched_to_truth": len(known),
        "base_rate": round(sum(quiet) / len(quiet), 4),
        "gone_rate": round(sum(gone) / len(gone), 4),
        "auc": measures,
        "per_customer_r": round(pearson(columns["model"], [float(label) for label in quiet]), 4),
        "measures_out_of_time": {
            name: {key: row[key] and round(row[key], 4) for key in ("value", "low", "high", "baseline_value")}
            for name, row in of.items()
        },
        "majority_accuracy": round(of["auc"]["majority_accuracy"], 4),
    }


def digits(text):
    return "".join(character for character in text.upper() if character.isalnum())


def auc(scores, labels):
    """The chance that a positive's score is above a negative's, ties counted half."""
    order = sorted(zip(scores, labels))
    ranks, index = 0.0, 0
    while index < len(order):
        end = index
        while end < len(order) and order[end][0] == order[index][0]:
            end += 1
        ranks += sum(label for _, label in order[index:end]) * (index + 1 + end) / 2
        index = end
    positives = sum(labels)
    negatives = len(labels) - positives
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def pearson(left, right):
    mean_left, mean_right = sum(left) / len(left), sum(right) / len(right)
    both = sum((a - mean_left) * (b - mean_right) for a, b in zip(left, right))
    return both / math.sqrt(sum((a - mean_left) ** 2 for a in left) * sum((b - mean_right) ** 2 for b in right))


if __name__ == "__main__":
    main()
