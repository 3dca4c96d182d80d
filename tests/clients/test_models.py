"""Models of ours and of PyPI's XGBoost: trained on the same data they rank alike, and each reads what the other wrote. LightGBM's text is read as
LightGBM reads it. The sequence model's files, read without us, give its answers.

Needs no lake: HOLDFAST_MODELS is the example `models` of holdfast-models; without it, the one beside HOLDFAST_BIN is taken.
"""

import json
import os
import pathlib
import subprocess

import lightgbm
import numpy
import pandas
import pyarrow
import pyarrow.ipc
import pytest
import xgboost

from conftest import environment

ROUNDS = 60
# Ours and XGBoost's names of the same settings; base_score is estimated from the data by both.
OURS = {"rounds": ROUNDS, "max_depth": 4, "learning_rate": 0.1, "min_child_weight": 1.0}
THEIRS = {"objective": "binary:logistic", "tree_method": "hist", "max_depth": 4, "eta": 0.1, "nthread": 2, "seed": 0}
NAMES = ["recency", "frequency", "spend", "coupons", "noise", "city"]
CITIES = [f"city {number:02}" for number in range(12)]


@pytest.fixture(scope="module")
def models():
    """Runs the example and answers what it printed."""
    if "HOLDFAST_MODELS" in os.environ:
        binary = pathlib.Path(environment("HOLDFAST_MODELS")).resolve()
    else:
        binary = pathlib.Path(environment("HOLDFAST_BIN")).resolve().parent / "examples" / "models"
    assert binary.is_file(), f"there is no {binary}: cargo builds it with the tests"

    def run(*arguments):
        command = [str(binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{command} failed: {done.stderr[:500]}"
        return json.loads(done.stdout)

    return run


class Customers:
    """Made-up customers: numbers of which a fifth is missing in two columns, a city, weights, and whether they left."""

    def __init__(self, rows, seed):
        random = numpy.random.default_rng(seed)
        self.numbers = random.gamma(2.0, 1.0, (rows, 5)).astype(numpy.float32)
        for column in (2, 3):
            self.numbers[random.random(rows) < 0.2, column] = numpy.nan
        self.city = random.integers(0, len(CITIES), rows)
        risk = 0.8 * self.numbers[:, 0] - 0.6 * self.numbers[:, 1] - 0.4 * numpy.nan_to_num(self.numbers[:, 2], nan=-1.0)
        risk += 0.5 * (self.numbers[:, 3] > 2) + numpy.where(numpy.isin(self.city, [1, 4, 7, 8]), 1.2, -0.4) - 0.5
        self.left = random.random(rows) < 1 / (1 + numpy.exp(-risk))
        self.weight = random.choice(numpy.array([0.5, 1.0, 3.0], numpy.float32), rows)

    def write(self, path, kinds="names", **more):
        """As an Arrow file: cities by name, or by code as XGBoost has them."""
        columns = {name: pyarrow.array(values, from_pandas=True) for name, values in zip(NAMES, self.numbers.T)}
        columns["city"] = pyarrow.array([CITIES[code] for code in self.city] if kinds == "names" else self.city)
        table = pyarrow.table({**columns, **more})
        with pyarrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
        return path

    def matrix(self, weight=None):
        values = numpy.column_stack([self.numbers, self.city.astype(numpy.float32)])
        types = ["float"] * 5 + ["c"]
        return xgboost.DMatrix(
            values, label=self.left, weight=weight, feature_names=NAMES, feature_types=types, enable_categorical=True
        )


def auc(scores, labels):
    """Rank sum; no two scores of these customers are equal often enough to matter, but ties count half all the same."""
    _, place, counts = numpy.unique(scores, return_inverse=True, return_counts=True)
    ends = numpy.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    positives = labels.sum()
    return (ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))


@pytest.fixture(scope="module")
def customers():
    return Customers(20_000, 1), Customers(20_000, 2)


def read(path):
    with pyarrow.ipc.open_file(path) as reader:
        return reader.read_all()


@pytest.mark.parametrize("weighted", [False, True])
def test_both_rank_alike(models, customers, tmp_path, weighted):
    train, test = customers
    columns = {"left": pyarrow.array(train.left)}
    arguments = []
    if weighted:
        columns["weight"] = pyarrow.array(train.weight)
        arguments = ["--weight", "weight"]
    train.write(tmp_path / "train.arrow", **columns)
    test.write(tmp_path / "test.arrow")
    model = tmp_path / "model.ubj"
    trained = models(
        "train", "--data", tmp_path / "train.arrow", "--label", "left", "--model", model, "--parameters", json.dumps(OURS), *arguments
    )
    assert trained["rounds"] == ROUNDS and trained["useless"] == []
    models("predict", "--data", tmp_path / "test.arrow", "--model", model, "--out", tmp_path / "scores.arrow")
    ours = read(tmp_path / "scores.arrow")["probability"].to_numpy()

    booster = xgboost.train(THEIRS, train.matrix(train.weight if weighted else None), ROUNDS)
    theirs = booster.predict(test.matrix())
    assert auc(theirs, test.left) > 0.8
    assert abs(auc(ours, test.left) - auc(theirs, test.left)) <= 0.005
    # Not only the order: the probabilities mean the same.
    assert abs(ours.mean() - theirs.mean()) <= 0.003


@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_xgboost_reads_what_we_write(models, customers, tmp_path, ending):
    train, test = customers
    train.write(tmp_path / "train.arrow", left=pyarrow.array(train.left))
    test.write(tmp_path / "test.arrow")
    model = tmp_path / f"model.{ending}"
    models("train", "--data", tmp_path / "train.arrow", "--label", "left", "--model", model, "--parameters", json.dumps(OURS))
    models("predict", "--data", tmp_path / "test.arrow", "--model", model, "--out", tmp_path / "scores.arrow", "--contributions")
    ours = read(tmp_path / "scores.arrow")

    booster = xgboost.Booster(model_file=str(model))
    assert booster.feature_names == NAMES and booster.feature_types == ["float"] * 5 + ["c"]
    assert json.loads(booster.attr("holdfast_categories")) == {"city": CITIES}
    matrix = test.matrix()
    assert numpy.abs(booster.predict(matrix, output_margin=True) - ours["margin"].to_numpy()).max() <= 1e-6
    assert numpy.abs(booster.predict(matrix) - ours["probability"].to_numpy()).max() <= 1e-6
    theirs = booster.predict(matrix, pred_contribs=True)
    contributions = numpy.column_stack([ours[f"of {name}"].to_numpy() for name in [*NAMES, "bias"]])
    assert numpy.abs(theirs - contributions).max() <= 1e-4
    assert numpy.abs(contributions.sum(axis=1) - ours["margin"].to_numpy()).max() <= 1e-4


@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_we_read_what_xgboost_writes(models, customers, tmp_path, ending):
    train, _ = customers
    # Explaining deep trees takes its time.
    test = Customers(1_000, 3)
    parameters = {**THEIRS, "max_depth": 6, "subsample": 0.7, "colsample_bytree": 0.7, "seed": 7}
    booster = xgboost.train(parameters, train.matrix(train.weight), ROUNDS)
    model = tmp_path / f"model.{ending}"
    booster.save_model(model)
    test.write(tmp_path / "test.arrow", kinds="codes")
    answer = models("predict", "--data", tmp_path / "test.arrow", "--model", model, "--out", tmp_path / "scores.arrow", "--contributions")
    assert answer["rounds"] == ROUNDS
    ours = read(tmp_path / "scores.arrow")
    matrix = test.matrix()
    assert numpy.abs(booster.predict(matrix, output_margin=True) - ours["margin"].to_numpy()).max() <= 1e-6
    contributions = numpy.column_stack([ours[f"of {name}"].to_numpy() for name in [*NAMES, "bias"]])
    assert numpy.abs(booster.predict(matrix, pred_contribs=True) - contributions).max() <= 1e-4


def frame(customers):
    """As LightGBM likes it: cities as a category of pandas."""
    columns = dict(zip(NAMES, customers.numbers.T))
    return pandas.DataFrame({**columns, "city": pandas.Categorical([CITIES[code] for code in customers.city], categories=CITIES)})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_missing": False},
        {"boosting": "dart", "drop_rate": 0.2},
        {"bagging_fraction": 0.6, "bagging_freq": 1, "is_unbalance": True},
        {"max_cat_to_onehot": 1, "min_data_per_group": 5, "num_leaves": 63},
    ],
    ids=["plain", "without missing", "dart", "bagging", "sets of categories"],
)
def test_we_read_what_lightgbm_writes(models, customers, tmp_path, settings):
    train, _ = customers
    test = Customers(1_000, 4)
    # Never seen in training: whether it is missing or 0 is the trees' word.
    test.numbers[::9, 0] = numpy.nan
    test.numbers[::7, 4] = 0
    test.write(tmp_path / "test.arrow")
    parameters = {"objective": "binary", "num_leaves": 15, "seed": 3, "num_threads": 2, "verbose": -1, **settings}
    booster = lightgbm.train(parameters, lightgbm.Dataset(frame(train), train.left, weight=train.weight), ROUNDS)
    booster.save_model(tmp_path / "model.txt")
    text = (tmp_path / "model.txt").read_text()
    assert "cat_threshold" in text, "a split by categories is to be read"
    command = ["predict", "--data", tmp_path / "test.arrow", "--model", tmp_path / "model.txt", "--out", tmp_path / "scores.arrow"]
    assert models(*command, "--contributions")["rounds"] == ROUNDS
    ours = read(tmp_path / "scores.arrow")
    theirs = booster.predict(frame(test))
    assert theirs.std() > 0.1
    assert numpy.abs(ours["probability"].to_numpy() - theirs).max() <= 1e-6
    contributions = numpy.column_stack([ours[f"of {name}"].to_numpy() for name in [*NAMES, "bias"]])
    assert numpy.abs(booster.predict(frame(test), pred_contrib=True) - contributions).max() <= 1e-4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"objective": "regression"}, "its objective is regression"),
        ({"objective": "lambdarank"}, "its objective is lambdarank"),
        ({"objective": "binary", "linear_tree": True}, "linear_tree"),
        ({"objective": "binary", "zero_as_missing": True}, "zero_as_missing|zero"),
    ],
    ids=["regression", "ranking", "linear", "zero is missing"],
)
def test_what_no_tree_of_ours_can_say_is_refused_by_name(models, customers, tmp_path, settings, told):
    train, test = customers
    test.write(tmp_path / "test.arrow")
    values = train.numbers - 1 if "zero_as_missing" in settings else train.numbers
    group = [100] * 200 if settings["objective"] == "lambdarank" else None
    data = lightgbm.Dataset(values, train.left.astype(int), group=group, feature_name=NAMES[:5])
    lightgbm.train({"num_threads": 2, "verbose": -1, **settings}, data, 3).save_model(tmp_path / "model.txt")
    with pytest.raises(AssertionError, match=told):
        models("predict", "--data", tmp_path / "test.arrow", "--model", tmp_path / "model.txt", "--out", tmp_path / "scores.arrow")


def test_early_stopping_ends_where_xgboost_ends(models, customers, tmp_path):
    train, test = customers
    train.write(tmp_path / "train.arrow", left=pyarrow.array(train.left))
    test.write(tmp_path / "test.arrow", left=pyarrow.array(test.left))
    settings = {**OURS, "rounds": 500, "learning_rate": 0.3, "stop_after": 10}
    files = ["--data", tmp_path / "train.arrow", "--validation", tmp_path / "test.arrow", "--model", tmp_path / "model.ubj"]
    trained = models("train", *files, "--label", "left", "--parameters", json.dumps(settings))
    theirs = xgboost.train(
        {**THEIRS, "eta": 0.3, "eval_metric": "logloss"},
        train.matrix(),
        500,
        evals=[(test.matrix(), "validation")],
        early_stopping_rounds=10,
        verbose_eval=False,
    )
    # Trees differ in the last digits, and the loss is flat around its minimum.
    assert abs(trained["rounds"] - (theirs.best_iteration + 1)) <= 15
    booster = xgboost.Booster(model_file=str(tmp_path / "model.ubj"))
    assert booster.num_boosted_rounds() == trained["rounds"]
    loss = lambda p: -numpy.log(numpy.where(test.left, p, 1 - p)).mean()
    best = theirs.predict(test.matrix(), iteration_range=(0, theirs.best_iteration + 1))
    assert abs(loss(booster.predict(test.matrix())) - loss(best)) <= 0.002


def test_data_for_other_features_is_refused(models, customers, tmp_path):
    train, test = customers
    booster = xgboost.train(THEIRS, train.matrix(), 2)
    booster.save_model(tmp_path / "model.ubj")
    test.write(tmp_path / "test.arrow", kinds="codes", age=pyarrow.array(numpy.zeros(20_000)))
    with pytest.raises(AssertionError, match="is no feature of the model"):
        models("predict", "--data", tmp_path / "test.arrow", "--model", tmp_path / "model.ubj", "--out", tmp_path / "scores.arrow")
    bytes_of_model = (tmp_path / "model.ubj").read_bytes()
    (tmp_path / "cut.ubj").write_bytes(bytes_of_model[: len(bytes_of_model) // 2])
    with pytest.raises(AssertionError, match="needs 8 bytes, only|model format error"):
        models("predict", "--data", tmp_path / "test.arrow", "--model", tmp_path / "cut.ubj", "--out", tmp_path / "scores.arrow")


STEPS = 20
CHANNELS = ["orders", "spend", "tickets"]


class Weeks:
    """Made-up customers by the week, from some week on; who buys less and less has left."""

    def __init__(self, rows, seed):
        random = numpy.random.default_rng(seed)
        self.first = random.integers(0, STEPS, rows)
        self.left = random.random(rows) < 0.4
        fading = numpy.where(self.left, 1.0, 0.0)[:, None] * numpy.linspace(0, 1.5, STEPS)
        orders = random.poisson(numpy.exp(0.7 - fading))
        self.values = numpy.stack([orders, orders * random.gamma(3.0, 20.0, (rows, STEPS)), random.poisson(0.2, (rows, STEPS))], 2)
        self.values = self.values.astype(numpy.float32)

    def write(self, folder):
        keys = [f"c{row:05}" for row in range(len(self.left))]
        row, week = numpy.nonzero(numpy.arange(STEPS) >= self.first[:, None])
        # Quiet weeks need no row, but the first week does.
        told = (self.values[row, week].sum(axis=1) > 0) | (week == self.first[row])
        row, week = row[told], week[told]
        history = {"customer_id": pyarrow.array(keys).take(row), "week": pyarrow.array(week)}
        for channel, name in enumerate(CHANNELS):
            history[name] = pyarrow.array(self.values[row, week, channel])
        for name, columns in (("history", history), ("rows", {"customer_id": pyarrow.array(keys), "left": pyarrow.array(self.left)})):
            table = pyarrow.table(columns)
            with pyarrow.ipc.new_file(folder / f"{name}.arrow", table.schema) as writer:
                writer.write_table(table)
        return ["--rows", folder / "rows.arrow", "--history", folder / "history.arrow", "--steps", STEPS]


def tensors(path):
    """A safetensors file: the length of a header, the header in JSON, the bytes of the tensors."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = {name: about for name, about in json.loads(content[8:start]).items() if name != "__metadata__"}
    part = lambda begin, end: numpy.frombuffer(content[start + begin : start + end], numpy.float32)
    return {name: part(*about["data_offsets"]).reshape(about["shape"]).astype(float) for name, about in header.items()}


def lstm(weights, weeks):
    """PyTorch's LSTM and a linear layer in double precision: log-odds of customers from their first week on."""
    sigmoid = lambda x: 1 / (1 + numpy.exp(-x))
    values = numpy.copysign(numpy.log1p(numpy.abs(weeks.values.astype(float))), weeks.values)
    values = numpy.clip((values - weights["scale.mean"]) * weights["scale.factor"], -8, 8)
    size = weights["lstm.weight_hh_l0"].shape[1]
    h, c = numpy.zeros((2, len(values), size))
    for step in range(STEPS):
        gates = values[:, step] @ weights["lstm.weight_ih_l0"].T + h @ weights["lstm.weight_hh_l0"].T
        gates += weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]
        enter, forget, cell, out = numpy.split(gates, 4, axis=1)
        after = sigmoid(forget) * c + sigmoid(enter) * numpy.tanh(cell)
        there = (step >= weeks.first)[:, None]
        c, h = numpy.where(there, after, c), numpy.where(there, sigmoid(out) * numpy.tanh(after), h)
    return (h @ weights["head.weight"].T + weights["head.bias"])[:, 0]


def test_sequence_model_is_what_its_files_say(models, tmp_path):
    train, test = tmp_path / "train", tmp_path / "test"
    train.mkdir()
    test.mkdir()
    settings = json.dumps({"hidden": 12, "epochs": 12, "learning_rate": 0.02})
    command = ["--label", "left", "--model", tmp_path / "lstm", "--parameters", settings]
    answer = models("train-sequence", *Weeks(1500, 1).write(train), *command)
    assert answer["without_steps"] == 0 and answer["useless"] == []
    assert answer["epochs"][answer["best_epoch"] - 1]["best"]
    weeks = Weeks(800, 2)
    models("predict-sequence", *weeks.write(test), "--model", tmp_path / "lstm", "--out", tmp_path / "scores.arrow")
    scores = read(tmp_path / "scores.arrow")
    margins = scores["margin"].to_numpy()
    assert numpy.abs(lstm(tensors(tmp_path / "lstm.safetensors"), weeks) - margins).max() <= 1e-5
    assert numpy.abs(1 / (1 + numpy.exp(-margins.astype(float))) - scores["probability"].to_numpy()).max() <= 1e-6
    assert auc(margins, weeks.left) > 0.75
    signature = json.loads((tmp_path / "lstm.json").read_text())["signature"]
    assert signature["channels"] == CHANNELS and signature["steps"] == STEPS


def test_sequence_model_does_not_depend_on_threads(models, tmp_path, monkeypatch):
    files = Weeks(700, 3).write(tmp_path)
    # Large enough for the library to share single products of matrices among threads.
    settings = json.dumps({"hidden": 80, "epochs": 2})
    written = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("RAYON_NUM_THREADS", threads)
        models("train-sequence", *files, "--label", "left", "--model", tmp_path / "lstm", "--parameters", settings)
        written.append(((tmp_path / "lstm.safetensors").read_bytes(), (tmp_path / "lstm.json").read_bytes()))
    assert written[0] == written[1] == written[2]


def test_damaged_sequence_model_is_refused(models, tmp_path):
    files = Weeks(200, 4).write(tmp_path)
    models("train-sequence", *files, "--label", "left", "--model", tmp_path / "lstm", "--parameters", '{"epochs": 1}')
    score = ["predict-sequence", *files, "--model", tmp_path / "lstm", "--out", tmp_path / "scores.arrow"]
    weights = tmp_path / "lstm.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AssertionError, match="the weights are not those of the signature"):
        models(*score)
    weights.write_bytes(content)
    signature = (tmp_path / "lstm.json").read_text()
    (tmp_path / "lstm.json").write_text(signature.replace('"steps":20', '"steps":21'))
    with pytest.raises(AssertionError, match="the hash of its signature does not fit"):
        models(*score)
