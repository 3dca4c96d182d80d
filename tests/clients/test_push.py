"""Segment's and RudderStack's own libraries, as they come from PyPI, pushing to `holdfast collect`."""

import base64
import datetime
import pathlib
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request

import deltalake
import pytest
import rudderstack.analytics.client
import segment.analytics.client

from conftest import ROOT, environment

CALLS = ["alias", "group", "identify", "page", "screen", "track"]


class Collector:
    """A running `holdfast collect` with one write key, for the source `events`."""

    def __init__(self, work):
        self.work = work
        self.command = [pathlib.Path(environment("HOLDFAST_BIN")).resolve(), "--project", ROOT, "--lake", work / "lake"]
        self.command += ["--identity-key", work / "identity.key", "collect"]
        said = subprocess.run([*self.command, "--new-key", "events"], capture_output=True, text=True, check=True).stdout
        self.key = re.search("hfk_[0-9a-f]+", said).group()
        (work / "keys.toml").write_text(f"[keys]\n{said.splitlines()[-1]}\n")

    def __enter__(self):
        command = [*self.command, "--listen", "127.0.0.1:0", "--keys-file", self.work / "keys.toml"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search("http://[0-9.:]+", line):
                self.url = found.group()
                return self
        raise AssertionError("it did not start")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=20) == 0
        self.process.stderr.close()

    def rows(self):
        """What is in `raw.events`, read by delta-rs, sorted."""
        table = deltalake.DeltaTable(str(self.work / "lake" / "raw" / "events")).to_pyarrow_table()
        return sorted(table.to_pylist(), key=lambda row: row["messageId"])


@pytest.fixture
def collector(tmp_path):
    return Collector(tmp_path)


def say_everything(client):
    """Each call once, and many of one, so that the library cuts several batches."""
    at = datetime.datetime(2026, 2, 1, 10, 0, tzinfo=datetime.timezone.utc)
    context = {"channel": "web", "device": {"id": "device-1", "type": "phone"}, "ip": "192.0.2.1"}
    client.identify("M1", {"plan": "gold", "email": "somebody@example.com"}, context=context, timestamp=at)
    client.page("M1", "Shop", "Home", {"url": "https://shop.example/"}, context=context, timestamp=at)
    client.screen("M1", "Shop", "Cart", {"cart_id": "7"}, context=context, timestamp=at)
    client.group("M1", "family-1", {"size": 4}, context=context, timestamp=at)
    client.alias("anonymous-1", "M1", context=context, timestamp=at)
    for number in range(250):
        properties = {"product_id": f"P{number}", "price": 9.9, "quantity": 1}
        client.track("M1", "Product Viewed", properties, context=context, timestamp=at)


@pytest.mark.parametrize("library", [segment.analytics.client, rudderstack.analytics.client])
@pytest.mark.parametrize("gzip", [False, True])
def test_a_library_pushes_every_call(collector, library, gzip):
    errors = []
    with collector:
        client = library.Client(
            collector.key, host=collector.url, gzip=gzip, on_error=lambda error, _: errors.append(str(error))
        )
        say_everything(client)
        client.shutdown()
    assert errors == []
    rows = collector.rows()
    assert len(rows) == 255
    assert len({row["messageId"] for row in rows}) == 255
    assert sorted({row["type"] for row in rows}) == CALLS
    views = [row for row in rows if row["type"] == "track"]
    assert {row["properties"]["product_id"] for row in views} == {f"P{number}" for number in range(250)}
    for row in views:
        assert row["event"] == "Product Viewed"
        assert row["userId"] == "M1"
        assert row["timestamp"] == datetime.datetime(2026, 2, 1, 10, 0, tzinfo=datetime.timezone.utc)
        assert row["context"]["device"] == {"id": "device-1", "type": "phone"}
        assert str(row["properties"]["price"]) == "9.90"


@pytest.mark.parametrize("library", [segment.analytics.client, rudderstack.analytics.client])
def test_a_library_is_told_that_its_key_is_wrong(collector, library):
    errors = []
    with collector:
        client = library.Client(
            "hfk_wrong", host=collector.url, on_error=lambda error, _: errors.append(str(error)), max_retries=1
        )
        client.track("M1", "Product Viewed")
        client.shutdown()
    assert errors and "write key" in errors[0], errors


def test_a_library_sends_again_what_was_not_acknowledged(collector):
    """The server is started after the library's first try: what it sends again is stored once."""
    with collector:
        url = collector.url
    port = url.rsplit(":", 1)[1]
    errors = []
    client = segment.analytics.client.Client(collector.key, host=url, on_error=lambda error, _: errors.append(error))
    for number in range(20):
        client.track("M1", "Product Viewed", {"product_id": f"P{number}"})
    collector.command += ["--listen", f"127.0.0.1:{port}"]
    command = [*collector.command, "--keys-file", collector.work / "keys.toml"]
    # Long enough for the library to have tried.
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/health", timeout=5)
    time.sleep(1)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        client.shutdown()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    assert errors == []
    rows = collector.rows()
    assert sorted(row["properties"]["product_id"] for row in rows) == sorted(f"P{number}" for number in range(20))


def test_a_batch_that_is_posted_twice_is_stored_once(collector):
    body = b'{"batch": [{"type": "track", "messageId": "m1", "event": "Order Completed", "userId": "M1"}]}'
    secret = base64.b64encode(f"{collector.key}:".encode()).decode()
    with collector:
        for expected in (b'"accepted":1', b'"duplicates":1'):
            request = urllib.request.Request(f"{collector.url}/v1/batch", body)
            request.add_header("Authorization", f"Basic {secret}")
            assert expected in urllib.request.urlopen(request, timeout=10).read()
    assert len(collector.rows()) == 1
