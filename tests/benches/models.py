#!/usr/bin/env python3
"""Models of ours beside PyPI's XGBoost in one run: the answers are compared first, then the time.

    python tests/benches/models.py --models target/debug/examples/models --telco Telco-Customer-Churn.csv

Telco churn in five folds, the same for both; made-up rows for training, scoring a row, many rows and SHAP; a million customers for the models of
repeat buying; a year of made-up weeks for the LSTM. Machines are shared: CPU time is told beside the time that passed, and the load before each step.

Needs the packages of tests/clients/requirements.txt and scikit-learn.
"""

import argparse
import csv
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy
import pyarrow
import pyarrow.ipc

from measure import machine, measure

FOLDS = 5
# Small data wants shallow trees.
TELCO = {"rounds": 200, "max_depth": 3, "learning_rate": 0.05, "subsample": 0.8, "column_sample": 0.8, "min_child_weight": 5.0}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", type=pathlib.Path, default="target/debug/examples/models", help="the example of holdfast-models")
    options.add_argument("--telco", type=pathlib.Path, help="Telco-Customer-Churn.csv; left out if not given")
    options.add_argument("--rows", type=int, default=100_000, help="made-up rows to train on")
    options.add_argument("--columns", type=int, default=100)
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--customers", type=int, default=1_000_000, help="for the models of repeat buying; 0 leaves them out")
    options.add_argument("--sequences", type=int, default=10_000, help="made-up customers by the week, for the LSTM; 0 leaves it out")
    options.add_argument("--epochs", type=int, default=5, help="of the LSTM")
    # How the other side is run: a process of its own, so that its CPU time and memory are its own.
    options.add_argument("--xgboost", nargs=3, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.xgboost:
        return theirs(*arguments.xgboost, arguments)
    arguments.models = arguments.models.resolve()
    if not arguments.models.is_file():
        options.error(f"there is no {arguments.models}: build it with `cargo test --workspace --no-run`, or name another")
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as work:
        work = pathlib.Path(work)
        if arguments.telco:
            telco(arguments, work)
        if arguments.rows:
            speed(arguments, work)
        if arguments.customers:
            lifetime(arguments, work)
        if arguments.sequences:
            sequences(arguments, work)


def ours(arguments, *command):
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    measured = measure([arguments.models, *map(str, command)])
    return json.loads(measured.stdout), measured


def write(path, columns):
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


def read(path):
    with pyarrow.ipc.open_file(path) as reader:
        return reader.read_all()


def telco(arguments, work):
    """Stratified folds, out-of-fold probabilities of both."""
    import xgboost
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    with arguments.telco.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    left = numpy.array([row["Churn"] == "Yes" for row in rows])
    columns, codes, kinds = {}, [], []
    for name in rows[0]:
        if name in ("customerID", "Churn"):
            continue
        cells = [row[name].strip() for row in rows]
        if name in ("SeniorCitizen", "tenure", "MonthlyCharges", "TotalCharges"):
            numbers = numpy.array([float(cell) if cell else numpy.nan for cell in cells], numpy.float32)
            columns[name] = pyarrow.array(numbers, from_pandas=True)
            codes.append(numbers)
            kinds.append("float")
        else:
            columns[name] = pyarrow.array(cells)
            codes.append(numpy.unique(cells, return_inverse=True)[1].astype(numpy.float32))
            kinds.append("c")
    values = numpy.column_stack(codes)
    of_us, of_them = numpy.zeros(len(left)), numpy.zeros(len(left))
    per_fold = []
    names = list(columns)
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(values, left):
        write(work / "train.arrow", {**{name: columns[name].take(train) for name in names}, "left": pyarrow.array(left[train])})
        write(work / "test.arrow", {name: columns[name].take(test) for name in names})
        command = ["train", "--data", work / "train.arrow", "--label", "left", "--model", work / "m.ubj"]
        ours(arguments, *command, "--parameters", json.dumps(TELCO))
        ours(arguments, "predict", "--data", work / "test.arrow", "--model", work / "m.ubj", "--out", work / "p.arrow")
        of_us[test] = read(work / "p.arrow")["probability"].to_numpy()
        matrix = lambda rows, label=None: xgboost.DMatrix(
            values[rows], label=label, feature_names=names, feature_types=kinds, enable_categorical=True
        )
        settings = {"objective": "binary:logistic", "tree_method": "hist", "nthread": arguments.threads, "max_depth": 3, "eta": 0.05}
        settings |= {"subsample": 0.8, "colsample_bytree": 0.8, "min_child_weight": 5.0}
        of_them[test] = xgboost.train(settings, matrix(train, left[train]), TELCO["rounds"]).predict(matrix(test))
        per_fold.append((roc_auc_score(left[test], of_us[test]), roc_auc_score(left[test], of_them[test])))
    base = left.mean()
    print(f"\nTelco, {len(left)} customers, {FOLDS} folds, base rate {base:.3f}, majority class right {max(base, 1 - base):.3f}")
    print("| | mean AUC of folds | AUC pooled | PR-AUC | Brier | accuracy at 0.5 | flagged at 0.70 | precision there |")
    print("|---|---|---|---|---|---|---|---|")
    for who, p, place in (("ours", of_us, 0), ("XGBoost", of_them, 1)):
        high = p >= 0.7
        print(
            f"| {who} | {numpy.mean([fold[place] for fold in per_fold]):.4f} | {roc_auc_score(left, p):.4f} | {average_precision_score(left, p):.3f} "
            f"| {brier_score_loss(left, p):.4f} | {((p >= 0.5) == left).mean():.3f} | {high.mean():.3f} | {left[high].mean():.3f} |"
        )
    tenure = -values[:, names.index("tenure")]
    print(f"| months with the company alone | | {roc_auc_score(left, tenure):.4f} | {average_precision_score(left, tenure):.3f} | | | | |")
    gaps = [abs(fold[0] - fold[1]) for fold in per_fold]
    print(f"largest |difference of AUC| in a fold: {max(gaps):.4f}", flush=True)


def made_up(rows, columns, seed):
    """Rows with a tenth missing in every third column; the label depends on a dozen of them."""
    random = numpy.random.default_rng(seed)
    values = random.standard_normal((rows, columns), numpy.float32)
    weights = numpy.random.default_rng(0).standard_normal(min(12, columns)).astype(numpy.float32)
    risk = values[:, : len(weights)] @ weights + values[:, 0] * values[:, 1] - 1
    left = random.random(rows, numpy.float32) < 1 / (1 + numpy.exp(-risk / 2))
    for column in range(0, columns, 3):
        values[random.random(rows, numpy.float32) < 0.1, column] = numpy.nan
    return values, left


def theirs(train, test, out, arguments):
    """The other side, as a process of its own."""
    import xgboost

    def matrix(path, label=True):
        table = read(path)
        names = [name for name in table.column_names if name != "left"]
        values = numpy.column_stack([table[name].to_numpy() for name in names])
        return names, values, table["left"].to_numpy() if label else None

    names, values, left = matrix(train)
    settings = {"objective": "binary:logistic", "tree_method": "hist", "max_depth": 6, "eta": 0.1, "nthread": arguments.threads}
    used = lambda: (lambda usage: usage.ru_utime + usage.ru_stime)(resource.getrusage(resource.RUSAGE_SELF))
    cpu, began = used(), time.perf_counter()
    booster = xgboost.train(settings, xgboost.QuantileDMatrix(values, label=left, feature_names=names, nthread=arguments.threads), arguments.rounds)
    answer = {"fit_seconds": time.perf_counter() - began, "fit_cpu_seconds": used() - cpu}
    del values
    _, values, _ = matrix(test, label=False)
    booster.save_model(out + ".ubj")
    booster.set_param({"nthread": arguments.threads})
    cpu, began = used(), time.perf_counter()
    margins = booster.inplace_predict(values, predict_type="margin", missing=numpy.nan)
    answer |= {"margin_seconds": time.perf_counter() - began, "margin_cpu_seconds": used() - cpu}
    few = xgboost.DMatrix(values[:20_000], feature_names=names, nthread=arguments.threads)
    cpu, began = used(), time.perf_counter()
    booster.predict(few, pred_contribs=True)
    answer |= {"contribution_seconds": time.perf_counter() - began, "contribution_cpu_seconds": used() - cpu}
    booster.set_param({"nthread": 1})
    one = values[:1]
    booster.inplace_predict(one, missing=numpy.nan)
    began = time.perf_counter()
    for _ in range(500):
        booster.inplace_predict(one, missing=numpy.nan)
    answer["row_seconds"] = (time.perf_counter() - began) / 500
    numpy.save(out, margins)
    json.dump(answer, sys.stdout)


def speed(arguments, work):
    from sklearn.metrics import roc_auc_score

    columns = lambda values: {f"f{place}": pyarrow.array(column, from_pandas=True) for place, column in enumerate(values.T)}
    values, left = made_up(arguments.rows, arguments.columns, 1)
    write(work / "train.arrow", {**columns(values), "left": pyarrow.array(left)})
    values, left = made_up(min(arguments.rows, 200_000), arguments.columns, 2)
    write(work / "test.arrow", columns(values))
    write(work / "few.arrow", {name: column[:20_000] for name, column in columns(values).items()})
    del values
    settings = {"rounds": arguments.rounds, "max_depth": 6, "learning_rate": 0.1, "threads": arguments.threads}
    print(f"\n{arguments.rows} × {arguments.columns}, {arguments.rounds} rounds of depth 6, {arguments.threads} threads", flush=True)

    loads = [os.getloadavg()[0]]
    train = ["train", "--data", work / "train.arrow", "--label", "left", "--model", work / "m.ubj", "--parameters", json.dumps(settings)]
    fitted, fit = ours(arguments, *train)
    loads.append(os.getloadavg()[0])
    command = [sys.executable, __file__, "--xgboost", work / "train.arrow", work / "test.arrow", work / "theirs.npy"]
    them = measure([*map(str, command), "--rounds", str(arguments.rounds), "--threads", str(arguments.threads)])
    other = json.loads(them.stdout)
    loads.append(os.getloadavg()[0])
    predict = ["predict", "--data", work / "test.arrow", "--model", work / "m.ubj", "--out", work / "p.arrow"]
    scored, _ = ours(arguments, *predict, "--rows-alone", 100_000)
    # The same trees on both sides.
    cross, _ = ours(arguments, "predict", "--data", work / "test.arrow", "--model", work / "theirs.npy.ubj", "--out", work / "x.arrow")
    explained, _ = ours(arguments, "predict", "--data", work / "few.arrow", "--model", work / "theirs.npy.ubj", "--out", work / "s.arrow", "--contributions")
    loads.append(os.getloadavg()[0])
    margins = numpy.load(work / "theirs.npy")
    apart = numpy.abs(read(work / "x.arrow")["margin"].to_numpy() - margins).max()
    mine, its = roc_auc_score(left, read(work / "p.arrow")["margin"].to_numpy()), roc_auc_score(left, margins)
    print(f"AUC {mine:.4f} and {its:.4f}; XGBoost's model read by us: margins at most {apart:.1e} apart; load {', '.join(f'{load:.1f}' for load in loads)}")
    print("| | ours | XGBoost |")
    print("|---|---|---|")
    print(f"| training, s (of all CPU time of the process: ours {fit.cpu_seconds:.1f}) | {fitted['fit_seconds']:.2f} | {other['fit_seconds']:.2f} ({other['fit_cpu_seconds']:.1f} CPU) |")
    print(f"| peak memory of the process, MiB | {fit.peak_memory_mib:.0f} | {them.peak_memory_mib:.0f} |")
    rows = scored["rows"]
    print(f"| {rows} rows, the same trees, s | {cross['margin_seconds']:.3f} | {other['margin_seconds']:.3f} ({other['margin_cpu_seconds']:.2f} CPU) |")
    print(f"| one row, µs | {scored['row_seconds'] * 1e6:.1f} | {other['row_seconds'] * 1e6:.0f} |")
    print(f"| SHAP of 20,000 rows, s | {explained['contribution_seconds']:.2f} | {other['contribution_seconds']:.2f} ({other['contribution_cpu_seconds']:.1f} CPU) |", flush=True)


def lifetime(arguments, work):
    """Customers of the BG/NBD model itself, by the day, first bought on any day of two years."""
    random = numpy.random.default_rng(3)
    count = arguments.customers
    truth = {"r": 0.6, "alpha": 12.0, "a": 0.8, "b": 2.5}
    rate = random.gamma(truth["r"], 1 / truth["alpha"], count)
    stops = random.beta(truth["a"], truth["b"], count)
    observed = random.integers(1, 731, count) / 7
    repeats, last, now, alive = (numpy.zeros(count) for _ in range(4))
    alive += 1
    while True:
        now += random.exponential(1 / rate)
        buys = (alive > 0) & (now < observed)
        if not buys.any():
            break
        alive = buys & (random.random(count) > stops)
        day = numpy.ceil(now * 7) / 7
        # Purchases of one day are one.
        new = buys & (day > last) & (day <= observed)
        repeats += new
        last = numpy.where(new, day, last)
    write(work / "buyers.arrow", {"repeats": repeats, "last": last, "observed": observed})
    print(f"\n{count} customers, made by BG/NBD with {truth}")
    print("| model | groups | grouping, s | fit, s | score all, s | CPU of the process, s | parameters | load |")
    print("|---|---|---|---|---|---|---|---|")
    for model in ("bg-nbd", "pareto-nbd"):
        load = os.getloadavg()[0]
        answer, measured = ours(arguments, "lifetime", "--data", work / "buyers.arrow", "--model", model)
        parameters = ", ".join(f"{name} {value:.3f}" for name, value in answer["parameters"].items())
        print(
            f"| {answer['model']} | {answer['groups']} | {answer['group_seconds']:.2f} | {answer['fit_seconds']:.2f} | {answer['score_seconds']:.2f} "
            f"| {measured.cpu_seconds:.1f} | {parameters} | {load:.1f} |",
            flush=True,
        )


def sequences(arguments, work):
    """Twelve channels of 52 weeks; customers whose orders come before their tickets stay, the others leave."""
    count, steps, channels = arguments.sequences, 52, 12
    random = numpy.random.default_rng(4)
    values = random.poisson(0.7, (count, steps, channels)).astype(numpy.float32)
    order, ticket = random.integers(0, steps, (2, count))
    rows = numpy.arange(count)
    values[rows, order, 0] += 5
    values[rows, ticket, 1] += 5
    left = (order > ticket) ^ (random.random(count) < 0.1)
    history = {"customer_id": pyarrow.array(numpy.repeat(rows, steps)), "week": pyarrow.array(numpy.tile(numpy.arange(steps), count))}
    history |= {f"channel_{channel}": pyarrow.array(values[:, :, channel].ravel()) for channel in range(channels)}
    write(work / "history.arrow", history)
    write(work / "rows.arrow", {"customer_id": pyarrow.array(rows), "left": pyarrow.array(left)})
    del values, history
    files = ["--rows", work / "rows.arrow", "--history", work / "history.arrow", "--model", work / "lstm"]
    settings = {"epochs": arguments.epochs, "patience": arguments.epochs, "threads": arguments.threads}
    load = os.getloadavg()[0]
    fitted, fit = ours(arguments, "train-sequence", *files, "--label", "left", "--parameters", json.dumps(settings))
    scored, score = ours(arguments, "predict-sequence", *files, "--out", work / "s.arrow", "--rows-alone", 1000)
    epochs = len(fitted["epochs"])
    print(f"\nLSTM of 32 units, {count} customers × {steps} weeks × {channels} channels, {arguments.threads} threads, load {load:.1f}")
    print("| reading, s | an epoch, s | sequences an epoch second | training, CPU s of the process | scoring, sequences a second | one sequence, µs | peak memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {fitted['read_seconds']:.2f} | {fitted['fit_seconds'] / epochs:.2f} | {count * epochs / fitted['fit_seconds']:.0f} | {fit.cpu_seconds:.1f} "
        f"| {scored['rows'] / scored['margin_seconds']:.0f} | {scored['row_seconds'] * 1e6:.0f} | {fit.peak_memory_mib:.0f}, {score.peak_memory_mib:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
