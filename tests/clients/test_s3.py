"""Sources and lake on an S3 server: SeaweedFS, which refuses a second PUT of the same name as S3 does."""

import json
import os
import pathlib
import subprocess
import urllib.request

import deltalake
import pyarrow.fs
import pytest

from conftest import ROOT, environment
from services import free_ports, seaweedfs

STEPS = ["raw_staged", "quarantine_staged", "planned", "quarantine_committed", "raw_committed", "batch_recorded"]
ORDERS = "select count(*) as n, cast(sum(line_amount) as double) as amount from core.order_lines"


class Bucket:
    """A bucket, and holdfast told where it is."""

    def __init__(self, endpoint, files, settings, work):
        self.endpoint = endpoint
        self.files = files
        self.settings = settings
        self.work = work
        self.binary = pathlib.Path(environment("HOLDFAST_BIN")).resolve()

    def holdfast(self, *arguments, lake, fails=False, **more):
        command = [self.binary, "--project", ROOT, "--quiet", "--lake", f"s3://shop/{lake}"]
        command += ["--identity-key", self.work / "identity.key", *arguments]
        environ = {**os.environ, **self.settings, **more}
        done = subprocess.run([str(part) for part in command], env=environ, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stdout

    def ask(self, lake, query):
        return json.loads(self.holdfast("sql", query, "--output", "json", lake=lake))

    def commits(self, lake):
        found = self.files.get_file_info(pyarrow.fs.FileSelector(f"shop/{lake}", recursive=True))
        return sorted(file.path for file in found if "/_delta_log/" in file.path or "/_holdfast/" in file.path)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    work = tmp_path_factory.mktemp("s3")
    with seaweedfs(work, "shop") as (endpoint, files, settings):
        bucket = Bucket(endpoint, files, settings, work)
        generate = [bucket.binary, "generate", "--quiet", "--out", work / "in", "--customers", "60", "--days", "120"]
        subprocess.run([str(part) for part in generate], check=True, stdout=subprocess.DEVNULL)
        pyarrow.fs.copy_files(str(work / "in"), "shop/in", destination_filesystem=bucket.files)
        yield bucket


@pytest.fixture(scope="module")
def whole(bucket):
    """A lake filled in one go."""
    bucket.holdfast("ingest", "--from", "s3://shop/in", lake="whole")
    return bucket.ask("whole", ORDERS)


def test_a_lake_on_s3_has_what_the_sources_on_s3_have(bucket, whole):
    lines = sum(len(file.read_text().splitlines()) for file in (bucket.work / "in" / "order_lines").glob("*.ndjson"))
    [stored] = bucket.ask("whole", "select count(*) as n from raw.order_lines")
    [refused] = bucket.ask("whole", "select count(*) as n from quarantine.order_lines")
    assert stored["n"] + refused["n"] == lines > 0
    assert whole[0]["n"] > 0


def test_nothing_new_commits_nothing(bucket, whole):
    before = bucket.commits("whole")
    bucket.holdfast("ingest", "--from", "s3://shop/in", lake="whole")
    assert bucket.commits("whole") == before


def test_ing_2_a_worker_killed_between_any_two_steps_loses_and_doubles_nothing(bucket, whole):
    from_here = ["ingest", "--from", "s3://shop/in"]
    for step in STEPS:
        bucket.holdfast(*from_here, "--raw-only", lake="killed", fails=True, HOLDFAST_ABORT_AFTER=step)
    bucket.holdfast(*from_here, lake="killed")
    assert bucket.ask("killed", ORDERS) == whole


def test_ing_1_and_ing_2_hold_for_pushes_to_a_server_that_is_killed(bucket):
    (port,) = free_ports(1)
    command = [bucket.binary, "--project", ROOT, "--lake", "s3://shop/pushed"]
    command += ["--identity-key", bucket.work / "identity.key", "collect", "--source", "events"]
    command += ["--listen", f"127.0.0.1:{port}", "--gather-ms", "10", "--ingest-interval-ms", "100"]
    last, sent = [], []

    def post(ids):
        messages = [{"type": "track", "messageId": one, "userId": "M1"} for one in ids]
        url = f"http://127.0.0.1:{port}/v1/batch"
        with urllib.request.urlopen(url, json.dumps({"batch": messages}).encode(), timeout=30) as answer:
            return json.load(answer)

    for turn in range(3):
        server = subprocess.Popen(
            [str(part) for part in command], env={**os.environ, **bucket.settings}, stderr=subprocess.PIPE, text=True
        )
        try:
            assert any("http://" in line for line in server.stderr), "it did not start"
            if last:
                assert post(last)["duplicates"] == len(last)
            for number in range(20):
                last = [f"{turn}-{number}-{one}" for one in range(3)]
                assert post(last)["accepted"] == len(last)
                sent += last
        finally:
            if turn < 2:
                server.kill()
            else:
                server.terminate()
            ended = server.wait(timeout=20)
            server.stderr.close()
    assert ended == 0
    rows = bucket.ask("pushed", 'select "messageId" as id from raw.events')
    assert sorted(row["id"] for row in rows) == sorted(sent)


def test_delta_rs_reads_the_lake(bucket, whole):
    table = deltalake.DeltaTable("s3://shop/whole/core/order_lines", storage_options=bucket.settings)
    assert table.to_pyarrow_dataset().count_rows() == whole[0]["n"]
