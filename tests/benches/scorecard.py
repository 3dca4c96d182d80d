"""What the scorecard risk.churn_score is worth against the generator's truth, which no stage sees: the table of docs/churn_pack.md.

    python tests/benches/scorecard.py --holdfast target/debug/holdfast --customers 4000 --days 365 --seed 4711

Makes a demo lake (or takes the one that is in --dir), looks at it from three moments (`run --as-of`) and holds scored customers, known by their member number, against customers.csv: "gone" are those
whose churn moment was before it. Prints one JSON document.
"""

import argparse
import csv
import datetime
import io
import json
import pathlib
import subprocess
import tempfile

from churn import auc, digits

BANDS = [0.1, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--holdfast", required=True)
    parser.add_argument("--project", default=str(pathlib.Path(__file__).parents[2]))
    parser.add_argument("--customers", type=int, default=4000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=4711)
    parser.add_argument("--dir", help="the demo's folder; one of its own without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        print(json.dumps(measure(options, pathlib.Path(options.dir or own)), indent=2))


def measure(options, folder):
    if not (folder / "sources/generation.json").is_file():
        made = [options.holdfast, "--quiet", "--project", options.project, "demo", "--no-serve", "--dir", str(folder)]
        made += ["--customers", str(options.customers), "--days", str(options.days), "--seed", str(options.seed)]
        subprocess.run(made, check=True, capture_output=True)
    written = json.loads((folder / "sources/generation.json").read_text(encoding="utf-8"))
    end = datetime.datetime.fromisoformat(written["options"]["end"])
    truth = {}
    with open(folder / "sources/truth/customers.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in ("member_no", "second_member_no"):
                if row[name]:
                    truth[digits(row[name])] = row
    moments = [end, end - datetime.timedelta(days=92), end - datetime.timedelta(days=184)]
    return {"format": written["version"], **written["options"], "moments": [at(options, folder, moment, truth) for moment in moments]}


def at(options, folder, moment, truth):
    lake = ["--project", options.project, "--lake", str(folder / "lake"), "--identity-key", str(folder / "identity.key")]

    def holdfast(*arguments):
        return subprocess.run([options.holdfast, "--quiet", *lake, *arguments], check=True, capture_output=True, text=True).stdout

    holdfast("run", "--as-of", f"{moment:%Y-%m-%dT%H:%M:%SZ}", "--select", "+risk.churn_score")
    asked = (
        "select s.churn_probability as p, c.member_no from risk.churn_score s "
        "inner join (select customer_id, min(member_no) as member_no from core.contacts group by customer_id) c on c.customer_id = s.customer_id"
    )
    rows = csv.DictReader(io.StringIO(holdfast("sql", "--output", "csv", asked)))
    known = [(float(row["p"]), truth[digits(row["member_no"])]) for row in rows if digits(row["member_no"] or "") in truth]
    day = lambda text: datetime.datetime.fromisoformat(text + "T00:00:00+00:00") if text else None
    left = [day(person["churned_on"]) for _, person in known]
    gone = [bool(on and on <= moment) for on in left]
    scores = [p for p, _ in known]
    flagged = [is_gone for p, is_gone in zip(scores, gone) if p >= 0.7]
    staying = [(p, on) for p, on, is_gone in zip(scores, left, gone) if not is_gone]
    soon = [bool(on and on <= moment + datetime.timedelta(days=90)) for _, on in staying]
    share = lambda part, whole: round(part / whole, 4) if whole else None
    bands = {}
    for low, high in zip([0.0, *BANDS], [*BANDS, 1.01]):
        within = [is_gone for p, is_gone in zip(scores, gone) if low <= p < high]
        bands[f"{low:.1f} to {min(high, 1.0):.1f}"] = {"customers": len(within), "gone": share(sum(within), len(within))}
    return {
        "as_of": f"{moment:%Y-%m-%d}",
        "customers": len(known),
        "gone": share(sum(gone), len(gone)),
        "auc_gone": round(auc(scores, gone), 4),
        "flagged_at_0.70": share(len(flagged), len(known)),
        "flagged_are_gone": share(sum(flagged), len(flagged)),
        "gone_are_flagged": share(sum(flagged), sum(gone)),
        "right_at_0.50": share(sum((p >= 0.5) == is_gone for p, is_gone in zip(scores, gone)), len(known)),
        "majority": share(max(sum(gone), len(gone) - sum(gone)), len(gone)),
        # Of those who are there, who leaves within 90 days; not known at the end of the window.
        "auc_leaving_in_90_days": round(auc([p for p, _ in staying], soon), 4) if any(soon) else None,
        "bands": bands,
    }


if __name__ == "__main__":
    main()
