#!/usr/bin/env python3
"""Churn on CDNOW, out of time and a customer at a time: boosted trees and BG/NBD of holdfast-models beside recency alone.

    python tests/benches/cdnow.py --models target/debug/examples/models --data CDNOW_master.txt

23,570 customers who first bought in the first quarter of 1997. Churned: no purchase in the thirteen weeks behind the moment. Trees learn from earlier moments, whose labels were known by the
one that judges; BG/NBD is fitted to purchases up to it and says the chance of no purchase in closed form. Intervals are 95 %, customers drawn 1,000 times, the same for both scores.

Needs the packages of tests/clients/requirements.txt.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import tempfile

import numpy
import pyarrow
import pyarrow.ipc

HORIZON = 91
TREES = {"rounds": 300, "max_depth": 3, "learning_rate": 0.05, "subsample": 0.8, "column_sample": 0.8, "min_child_weight": 20.0, "l2": 5.0, "seed": 7}
# A moment that judges, and those that teach: the labels of all of them end by it.
JUDGED = {"1997-09-30": ["1997-04-30", "1997-05-31", "1997-07-01"], "1998-03-31": ["1997-07-01", "1997-08-31", "1997-10-31", "1997-12-30"]}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", type=pathlib.Path, default="target/debug/examples/models")
    options.add_argument("--data", type=pathlib.Path, required=True, help="CDNOW_master.txt")
    arguments = options.parse_args()
    bought = {}
    for line in arguments.data.read_text(encoding="ascii").splitlines():
        customer, day, pieces, amount = line.split()
        if not day.isdigit():
            continue
        day = datetime.datetime.strptime(day, "%Y%m%d").date().toordinal()
        bought.setdefault(customer, []).append((day, int(pieces), float(amount)))
    for purchases in bought.values():
        purchases.sort()
    with tempfile.TemporaryDirectory(prefix="holdfast-cdnow-") as work:
        for judged, taught in JUDGED.items():
            measure(arguments.models.resolve(), pathlib.Path(work), bought, judged, taught)


def ordinal(text):
    return datetime.date.fromisoformat(text).toordinal()


def snapshot(bought, at):
    """Features and labels as of the end of a day, and what BG/NBD asks of each customer, in weeks."""
    rows, churned, history = [], [], []
    for purchases in bought.values():
        past = [row for row in purchases if row[0] <= at]
        if not past:
            continue
        days = sorted({row[0] for row in past})
        first, last = days[0], days[-1]
        amounts = [row[2] for row in past]
        gaps = numpy.diff(days)
        usual = float(gaps.mean()) if len(gaps) else numpy.nan
        within = lambda span: float(sum(day > at - span for day in days))
        rows.append(
            [at - last, at - first, len(days), usual, (at - last) / usual if len(gaps) else numpy.nan, within(30), within(60), within(91)]
            + [sum(amounts), sum(amounts) / len(amounts), amounts[-1], sum(row[1] for row in past), float(gaps.std()) if len(gaps) > 1 else numpy.nan]
        )
        churned.append(not any(at < row[0] <= at + HORIZON for row in purchases))
        history.append(((len(days) - 1), (last - first) / 7, (at - first) / 7))
    return numpy.array(rows, numpy.float32), numpy.array(churned), numpy.array(history, float)


NAMES = ["recency", "tenure", "days_bought", "usual_gap", "overdue", "bought_30d", "bought_60d", "bought_91d"]
NAMES += ["spend", "mean_spend", "last_spend", "pieces", "gap_deviation"]


def write(path, columns):
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def ours(models, *command):
    return json.loads(subprocess.run([models, *map(str, command)], check=True, capture_output=True, text=True).stdout)


def measure(models, work, bought, judged, taught):
    columns = lambda values: {name: pyarrow.array(column, from_pandas=True) for name, column in zip(NAMES, values.T)}
    parts = [snapshot(bought, ordinal(day)) for day in taught]
    assert all(ordinal(day) + HORIZON <= ordinal(judged) for day in taught)
    values, churned, history = snapshot(bought, ordinal(judged))
    write(work / "train.arrow", {**columns(numpy.concatenate([part[0] for part in parts])), "churned": pyarrow.array(numpy.concatenate([part[1] for part in parts]))})
    write(work / "test.arrow", columns(values))
    ours(models, "train", "--data", work / "train.arrow", "--label", "churned", "--model", work / "m.ubj", "--parameters", json.dumps(TREES))
    ours(models, "predict", "--data", work / "test.arrow", "--model", work / "m.ubj", "--out", work / "p.arrow")
    with pyarrow.ipc.open_file(work / "p.arrow") as reader:
        trees = reader.read_all()["probability"].to_numpy()
    write(work / "buyers.arrow", dict(zip(("repeats", "last", "observed"), map(pyarrow.array, history.T))))
    fitted = ours(models, "lifetime", "--data", work / "buyers.arrow", "--model", "bg-nbd")["parameters"]
    scores = {"trees": trees, "BG/NBD": no_purchase(history, fitted), "recency": values[:, 0].astype(float)}
    random = numpy.random.default_rng(7)
    drawn = [random.multinomial(len(churned), numpy.full(len(churned), 1 / len(churned))) for _ in range(1000)]
    everybody = numpy.ones(len(churned))
    of = {name: auc_of(score, churned) for name, score in scores.items()}
    resampled = {name: numpy.array([measured(weights) for weights in drawn]) for name, measured in of.items()}
    base = churned.mean()
    print(f"\nJudged at {judged}: {len(churned)} customers, {base:.1%} churned (the majority class is right for {max(base, 1 - base):.1%}); learnt from {', '.join(taught)}")
    print("| | AUC | less recency | Brier | accuracy at 0.50 |\n|---|---|---|---|---|")
    interval = lambda values: "{:+.4f} to {:+.4f}".format(*numpy.quantile(values, [0.025, 0.975]))
    for name, score in scores.items():
        value, low, high = of[name](everybody), *numpy.quantile(resampled[name], [0.025, 0.975])
        less = "" if name == "recency" else f"{value - of['recency'](everybody):+.4f} ({interval(resampled[name] - resampled['recency'])})"
        is_probability = name != "recency"
        brier = f"{((score - churned) ** 2).mean():.4f}" if is_probability else ""
        right = f"{((score >= 0.5) == churned).mean():.3f}" if is_probability else ""
        print(f"| {name} | {value:.4f} ({low:.4f} to {high:.4f}) | {less} | {brier} | {right} |", flush=True)
    print(f"Brier of the base rate said of everybody: {base * (1 - base):.4f}")


def no_purchase(history, fitted):
    """The chance of no purchase in the horizon (docs/models.md, lifetime value)."""
    repeats, last, observed = history.T
    r, alpha, a, b = (fitted[name] for name in ("r", "alpha", "a", "b"))
    odds = a / (b + numpy.maximum(repeats, 1) - 1) * ((alpha + observed) / (alpha + last)) ** (r + repeats)
    alive = numpy.where(repeats > 0, 1 / (1 + odds), 1.0)
    return 1 - alive * (1 - ((alpha + observed) / (alpha + observed + HORIZON / 7)) ** (r + repeats))


def auc_of(score, labels):
    """AUC as a function of how often each customer counts, ties counted half."""
    order = numpy.argsort(score, kind="stable")
    _, group = numpy.unique(score[order], return_inverse=True)
    of_order = labels[order].astype(float)

    def value(weights):
        weights = weights[order].astype(float)
        positive = numpy.bincount(group, weights * of_order)
        negative = numpy.bincount(group, weights * (1 - of_order))
        below = numpy.cumsum(negative) - negative
        return (positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum())

    return value


if __name__ == "__main__":
    main()
