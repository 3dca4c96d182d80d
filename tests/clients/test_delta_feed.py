"""Another Delta table as a source: written by PyPI `deltalake`, with and without its change data feed."""

import datetime
import decimal
import random
import shutil
import time

import deltalake
import pyarrow as pa
import pytest

from conftest import environment
from services import Project

SEED = 20261126
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("price", pa.decimal128(12, 2)),
        ("at", pa.timestamp("us", "UTC")),
        ("day", pa.date32()),
        ("share", pa.float64()),
        ("tags", pa.list_(pa.string())),
        ("shop", pa.string()),
    ]
)
CONTRACT = """
kind = "orders"
[feed]
kind = "delta"
table = "{table}"
{more}
[columns]
id = "int64"
name = "string"
price = "decimal(12,2)"
at = "timestamp"
day = "date"
share = "float64"
tags = "list<string>"
shop = "string"
_change_type = "string"
_commit_version = "int64"
_commit_timestamp = "timestamp"
"""
INGEST = ["ingest", "--raw-only", "--source", "goods"]


@pytest.fixture
def lake(tmp_path):
    environment("HOLDFAST_BIN")

    def make(more=""):
        folder = tmp_path / f"project-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return Project(folder, {"goods": CONTRACT.format(table=tmp_path / "goods", more=more)})

    return make


def rows(ids, name="good"):
    moment = datetime.datetime(2026, 2, 1, 10, 0, 0, 123456, datetime.timezone.utc)
    records = [
        {
            "id": one,
            "name": None if one % 7 == 3 else f'{name} "{one}"\n第',
            "price": decimal.Decimal(one) / 100,
            "at": moment + datetime.timedelta(microseconds=one),
            "day": datetime.date(2026, 2, 1) + datetime.timedelta(days=one % 5),
            "share": one / 3,
            "tags": [f"t{one}", None] if one % 2 else [],
            "shop": ["north", "south"][one % 2],
        }
        for one in ids
    ]
    return pa.Table.from_pylist(records, schema=SCHEMA)


def write(table, data, feed=True, **options):
    configuration = {"delta.enableChangeDataFeed": "true"} if feed else {}
    deltalake.write_deltalake(table, data, partition_by=["shop"], configuration=configuration, **options)


def stored(lake):
    """Every change in `raw`, read by delta-rs, in a form that compares."""
    table = deltalake.DeltaTable(str(lake.folder / "lake" / "raw" / "goods")).to_pyarrow_table()
    columns = [*SCHEMA.names, "_change_type", "_commit_version"]
    return sorted((tuple(str(row[name]) for name in columns) for row in table.to_pylist()))


def changes(table, first):
    """The same from delta-rs's own reader of the change data feed."""
    if first > deltalake.DeltaTable(table).version():
        return []
    feed = pa.table(deltalake.DeltaTable(table).load_cdf(starting_version=first).read_all())
    columns = [*SCHEMA.names, "_change_type", "_commit_version"]
    return sorted((tuple(str(row[name]) for name in columns) for row in feed.to_pylist()))


def snapshot(table, version):
    found = deltalake.DeltaTable(table, version=version).to_pyarrow_table().to_pylist()
    return [(*(str(row[name]) for name in SCHEMA.names), "insert", str(version)) for row in found]


def mutate(table, step):
    """Inserts, updates and deletes, one commit each, and a compaction that changes no row."""
    target = deltalake.DeltaTable(table)
    match step % 4:
        case 0:
            write(table, rows(range(1000 + step * 100, 1040 + step * 100)), mode="append")
        case 1:
            target.update(predicate=f"id % 5 = {step % 5}", updates={"name": f"'changed {step}'"})
        case 2:
            target.delete(f"id % 11 = {step % 11}")
        case 3:
            target.optimize.compact()


def test_a_snapshot_then_every_change_as_delta_rs_reads_them(lake, tmp_path):
    table = str(tmp_path / "goods")
    write(table, rows(range(300)))
    mutate(table, 1)
    lake = lake()
    lake.run(*INGEST)
    assert stored(lake) == sorted(snapshot(table, 1))
    for step in range(12):
        mutate(table, step)
        if step % 3 == 0:
            lake.run(*INGEST)
    lake.run(*INGEST)
    assert stored(lake) == sorted(snapshot(table, 1) + changes(table, 2))
    [refused] = lake.ask("select count(*) as n from quarantine.goods")
    assert refused["n"] == 0
    [row] = lake.ask("select count(*) as n from raw.goods where _commit_timestamp is null")
    assert row["n"] == 0
    before = sorted(str(path) for path in lake.folder.rglob("*") if path.is_file())
    lake.run(*INGEST)
    assert before == sorted(str(path) for path in lake.folder.rglob("*") if path.is_file()), "nothing new"


def test_ing_1_and_ing_2_hold_when_workers_are_killed(lake, tmp_path):
    print("seed", SEED)
    dice = random.Random(SEED)
    table = str(tmp_path / "goods")
    write(table, rows(range(20_000)))
    lake = lake()
    kills = 0
    for step in range(10):
        workers = [lake.start(*INGEST) for _ in range(1 + step % 2)]
        time.sleep(0.2 + dice.random() * 0.8)
        mutate(table, step)
        for worker in workers:
            kills += worker.poll() is None
            worker.kill()
            worker.wait()
            worker.stderr.close()
    lake.run(*INGEST)
    found = stored(lake)
    version = min(int(row[-1]) for row in found)
    assert kills > 3, kills
    assert found == sorted(snapshot(table, version) + changes(table, version + 1))


def test_without_change_data_appended_files_are_read_and_rewrites_are_an_error(lake, tmp_path):
    table = str(tmp_path / "goods")
    write(table, rows(range(50)), feed=False)
    strict, lenient = lake('start = "changes"\nversion = 0'), lake('start = "changes"\nversion = 0\non_gap = "skip"')
    write(table, rows(range(50, 60)), feed=False, mode="append")
    strict.run(*INGEST)
    assert [row[0] for row in stored(strict)] == sorted(map(str, range(60)))
    deltalake.DeltaTable(table).update(predicate="id < 5", updates={"name": "'x'"})
    write(table, rows([60]), feed=False, mode="append")
    said = strict.run(*INGEST, fails=True)
    assert "version 2" in said and "delta.enableChangeDataFeed" in said and "on_gap" in said
    assert len(stored(strict)) == 60, "nothing of it is stored"
    lenient.run(*INGEST)
    assert [row[0] for row in stored(lenient)] == sorted(map(str, range(61)))
    [gap] = lenient.ask("select original from quarantine.goods")
    assert '"_gap_from_version":2,"_gap_to_version":2' in gap["original"]


def test_what_was_vacuumed_or_cleaned_is_an_error_with_its_version(lake, tmp_path):
    table = tmp_path / "goods"
    write(str(table), rows(range(50)))
    vacuumed, cleaned = lake(), lake()
    for project in (vacuumed, cleaned):
        project.run(*INGEST)
    deltalake.DeltaTable(str(table)).update(predicate="id < 5", updates={"name": "'x'"})
    deltalake.DeltaTable(str(table)).update(predicate="id < 5", updates={"name": "'y'"})
    shutil.rmtree(table / "_change_data")
    said = vacuumed.run(*INGEST, fails=True)
    assert "version 1" in said and "vacuumed" in said and "another source name" in said
    deltalake.DeltaTable(str(table)).create_checkpoint()
    (table / "_delta_log" / f"{1:020}.json").unlink()
    said = cleaned.run(*INGEST, fails=True)
    assert "version 1" in said and "cleaned" in said and "another source name" in said


def test_what_is_wrong_is_told_with_its_place_and_remedy(lake, tmp_path):
    assert "there is no Delta table at" in lake().run(*INGEST, fails=True)
    write(str(tmp_path / "goods"), rows(range(5)))
    assert "goods.toml:6:1: unknown field `strat`" in lake('strat = "changes"').run(*INGEST, fails=True)
    assert "the newest is 0" in lake("version = 7").run(*INGEST, fails=True)


def test_changes_alone_begin_behind_the_newest_version(lake, tmp_path):
    table = str(tmp_path / "goods")
    write(table, rows(range(20)))
    lake = lake('start = "changes"')
    lake.run(*INGEST)
    write(table, rows([20, 21]), mode="append")
    lake.run(*INGEST)
    assert [row[0] for row in stored(lake)] == ["20", "21"]
