"""From features over Flight to a model of PyPI's XGBoost that the lake scores with: the example of the Python package, then rows that are sent to what it
imported. It works in a project of its own, made of the demo's sources beside HOLDFAST_LAKE.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy
import pandas
import pyarrow
import pytest
import xgboost
from conftest import ROOT, environment

PACKAGE = ROOT / "crates" / "serve" / "python"
sys.path.insert(0, str(PACKAGE))

import holdfast  # noqa: E402

LABEL = """-- The last purchase of a customer.
-- @feature
-- @tag label(amount)
select
    customer_id,
    max(purchased_at) as event_timestamp,    -- When it was
    sum(net_amount) as amount                -- Spent until then, CNY
from core.purchases
where purchased_at <= now() and not is_return and customer_id is not null
group by customer_id
"""

# The demo ends with the year 2025; the last day closes the horizon of the one before.
DAYS = ["2025-07-04", "2025-10-02", "2025-12-31"]


@pytest.fixture(scope="module")
def project(lake, tmp_path_factory):
    """The shipped pack with a label view, run at three days in the past: its folder, and how it is asked."""
    sources = lake.resolve().parent / "sources"
    assert sources.is_dir(), f"there is no {sources}: `holdfast demo --dir` makes it beside the lake"
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "holdfast.toml", folder)
    for name in ("pipelines", "sql"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "sql" / "label").mkdir()
    (folder / "sql" / "label" / "bought.sql").write_text(LABEL)
    binary = pathlib.Path(environment("HOLDFAST_BIN")).resolve()

    def run(*arguments):
        done = subprocess.run([binary, "--project", folder, *arguments], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
        return done.stdout

    run("ingest", "--from", sources)
    for day in DAYS:
        run("run", "--as-of", f"{day}T00:00:00Z", "--select", "+features.churn_v1", "+label.bought")
    return folder, run


@pytest.fixture(scope="module")
def served(project):
    folder, _ = project
    binary = pathlib.Path(environment("HOLDFAST_BIN")).resolve()
    command = [binary, "--project", folder, "serve", "--listen", "127.0.0.1:0", "--reload-interval-ms", "50"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = re.compile("Serving run .* grpc://(127.0.0.1:[0-9]+)")
    yield next(filter(None, (said.search(line) for line in process.stderr)))[1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def booster(project, served):
    """The example, run as somebody would: what it trained is a version of the lake, and becomes its champion."""
    folder, run = project
    binary = pathlib.Path(environment("HOLDFAST_BIN")).resolve()
    path = os.pathsep.join([str(binary.parent), os.environ["PATH"]])
    script = PACKAGE / "examples" / "train_xgboost.py"
    assert len(script.read_text().splitlines()) < 30
    done = subprocess.run(
        [sys.executable, script, f"grpc://{served}", *DAYS[:2]],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows, left = re.search(r"ds_[0-9a-f]+: ([0-9]+) rows, ([0-9]+)% left", done.stdout).groups()
    assert int(rows) > 300 and 5 < int(left) < 70, done.stdout
    shown = json.loads(run("models", "show", "churn", "1", "--json"))
    assert (shown["engine"], shown["notes"]["imported"]["file"]) == ("xgboost, imported", "churn.ubj")
    run("models", "promote", "churn", "1")
    return xgboost.Booster(model_file=folder / "churn.ubj")


@pytest.fixture(scope="module")
def client(served, booster):
    with holdfast.Client(served, timeout=120) as client:
        # The promotion is published; the service looks every 50 ms.
        rows = {name: [1.0] for name in booster.feature_names}
        for attempt in range(200):
            try:
                client.score("churn", rows)
                break
            except holdfast.FeatureError:
                if attempt == 199:
                    raise
        yield client


@pytest.fixture(scope="module")
def rows(client):
    return client.table("features.churn_v1").to_arrow().sort_by("customer_id")


def test_rows_are_scored_as_xgboost_and_predict_have_it(client, booster, rows, project):
    _, run = project
    # Other columns first, features from the back.
    names = booster.feature_names
    sent = rows.select(["customer_id", *reversed(names)])
    found = client.score("churn", sent, reasons=2)
    assert found.column_names == ["customer_id", "probability", "probability_raw", "band", "raises", "lowers"]
    assert found.schema.metadata[b"holdfast.model"] == b"churn" and found.schema.metadata[b"holdfast.model_version"] == b"1"
    assert found["customer_id"].equals(rows["customer_id"])
    values = numpy.column_stack([rows[name].to_numpy() for name in names]).astype(numpy.float32)
    theirs = booster.predict(xgboost.DMatrix(values, feature_names=names))
    assert numpy.abs(found["probability_raw"].to_numpy() - theirs).max() <= 1e-6

    asked = "select predict('churn', f) as p, predict_reasons('churn', f)[1] as why from features.churn_v1 f order by customer_id"
    predicted = json.loads(run("sql", "--published", "--output", "json", asked))
    assert [row["p"] for row in predicted] == found["probability"].to_pylist()
    assert [row["why"] for row in predicted] == [reasons[0] if reasons else None for reasons in found["raises"].to_pylist()]
    for probability, band in zip(found["probability"].to_pylist(), found["band"].to_pylist()):
        assert band == ("high" if probability >= 0.7 else "medium" if probability >= 0.4 else "low")
    assert max(len(reasons) for reasons in found["raises"].to_pylist() + found["lowers"].to_pylist()) == 2


def test_frames_mappings_and_open_lines_are_scored_alike(client, booster, rows):
    few = rows.select(booster.feature_names).slice(0, 20)
    expected = client.score("churn", few)
    assert expected.column_names == ["probability", "probability_raw", "band"]
    assert client.score("churn@v1", few.to_pandas()).equals(expected)
    assert client.score("churn@challenger", few.to_pydict()).equals(expected)
    assert client.score("churn", few.slice(0, 0)).num_rows == 0
    # More than one batch on the wire.
    many = pyarrow.concat_tables([few] * 1_000)
    assert client.score("churn", many)["probability"].to_pylist() == expected["probability"].to_pylist() * 1_000
    with client.scoring("churn", reasons=1) as line:
        for start in range(0, 20, 7):
            part = few.slice(start, 7).combine_chunks().to_batches()[0]
            assert line.score(part).column("probability").to_pylist() == expected["probability"].to_pylist()[start : start + 7]
        nothing = few.slice(0, 0).to_pydict()
        assert line.score(nothing).num_rows == 0

    missing = few.to_pandas()
    missing["purchases_90d"] = [numpy.nan] * 10 + [None] * 10
    nulls = few.set_column(few.column_names.index("purchases_90d"), "purchases_90d", pyarrow.nulls(20))
    assert client.score("churn", missing).equals(client.score("churn", nulls))


def test_mistakes_are_told_with_what_to_do(client, booster, rows):
    few = rows.select(booster.feature_names).slice(0, 3)
    for model, told in [("chrn", "did you mean `churn`"), ("churn@v7", "there are 1"), ("churn@latest", "churn@v3")]:
        with pytest.raises(holdfast.FeatureError, match=told):
            client.score(model, few)
    with pytest.raises(holdfast.FeatureError, match="`purchases_90d` is missing"):
        client.score("churn", few.drop_columns(["purchases_90d"]))
    with pytest.raises(holdfast.FeatureError, match="`purchases_90d` is Utf8 where a number is needed"):
        client.score("churn", pandas.DataFrame(few.to_pandas()).assign(purchases_90d="many"))
    with pytest.raises(holdfast.FeatureError, match="a column `band` of its own"):
        client.score("churn", few.append_column("band", pyarrow.array(["a"] * 3)))
