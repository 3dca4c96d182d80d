"""A topic as a source: Tansu as the broker, librdkafka as the producer, workers and broker killed at random."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter

import pytest

from conftest import environment
from services import Broker, Project, seaweedfs

SEED = 20261126
PACKINGS = ["none", "gzip", "snappy", "lz4", "zstd"]
CONTRACT = """
kind = "behaviour"
event_time = "_timestamp"
[feed]
kind = "kafka"
brokers = ["{broker}"]
topics = [{topics}]
{more}
[columns]
id = "string"
amount = "decimal(12,2)"
_topic = "string"
_partition = "int32"
_offset = "int64"
_timestamp = "timestamp"
_key = {{ type = "string", pii = true }}
_tombstone = "boolean"
_headers = "struct<trace string>"
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    environment("HOLDFAST_BIN")
    work = tmp_path_factory.mktemp("kafka")
    with seaweedfs(work, "topics") as (_, _, settings):
        broker = Broker(work, "s3://topics/", settings)
        broker.start()
        yield broker
        broker.kill()


def project(folder, broker, topics, more=""):
    names = ", ".join(f'"{topic}"' for topic in topics)
    return Project(folder, {"clicks": CONTRACT.format(broker=broker.address, topics=names, more=more)})


def make_topic(broker, name, partitions):
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": broker.address})
    admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1)])[name].result(30)


class Producer:
    """Sends records until it is told to stop, and remembers those that the broker has acknowledged with their places."""

    def __init__(self, broker, topic, partitions):
        self.broker, self.topic, self.partitions = broker, topic, partitions
        self.acknowledged = []
        self.sent = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        import confluent_kafka

        # Each packing in its turn. What a broker that dies has stored without an answer is sent again by the library, which is then
        # another record for Kafka, too: so records count by their offsets, and each of those is to be stored once.
        producers = [
            confluent_kafka.Producer({"bootstrap.servers": self.broker.address, "compression.type": packing, "linger.ms": 5})
            for packing in PACKINGS
        ]
        while not self.stopping.is_set():
            for producer in producers:
                for _ in range(20):
                    value = json.dumps({"id": f"r{self.sent}", "amount": f"{self.sent}.50"}, indent=1)
                    partition = self.sent % self.partitions
                    producer.produce(self.topic, value, f"k{self.sent}", partition=partition, on_delivery=self.delivered)
                    self.sent += 1
                producer.poll(0.01)
        for producer in producers:
            assert producer.flush(60) == 0

    def delivered(self, error, message):
        if error is None:
            self.acknowledged.append((message.partition(), message.offset()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(90)
        assert not self.thread.is_alive()


def places(lake):
    """How often each record is in `raw`."""
    rows = lake.ask("select _partition as p, _offset as o, count(*) as n from raw.clicks group by 1, 2")
    return {(row["p"], row["o"]): row["n"] for row in rows}


def consumed(broker, topic, partitions):
    """What librdkafka's own consumer finds in the topic."""
    import confluent_kafka

    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": broker.address, "group.id": "other", "auto.offset.reset": "earliest", "enable.partition.eof": True}
    )
    consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in range(partitions)])
    found, ended = {}, set()
    while len(ended) < partitions:
        message = consumer.poll(10)
        assert message is not None
        if message.error():
            ended.add(message.partition())
        else:
            ended.discard(message.partition())
            found[message.partition(), message.offset()] = json.loads(message.value())["id"]
    consumer.close()
    return found


def test_ing_1_and_ing_2_hold_when_workers_and_broker_are_killed(broker, tmp_path):
    print("seed", SEED)
    dice = random.Random(SEED)
    make_topic(broker, "clicks", 3)
    lake = project(tmp_path, broker, ["clicks"])
    ingest = ["ingest", "--raw-only", "--source", "clicks"]
    kills = 0
    with Producer(broker, "clicks", 3) as producer:
        for turn in range(8):
            workers = [lake.start(*ingest) for _ in range(1 + turn % 2)]
            time.sleep(0.1 + dice.random() * 0.9)
            if turn in (3, 6):
                broker.kill()
                broker.start()
            for worker in workers:
                kills += worker.poll() is None
                worker.kill()
                worker.wait()
                worker.stderr.close()
    lake.run(*ingest)
    stored = places(lake)
    expected = consumed(broker, "clicks", 3)
    assert kills > 5 and len(expected) > 1000, (kills, len(expected))
    assert set(producer.acknowledged) <= set(expected)
    assert set(stored) == set(expected), "a record is lost, or is none"
    assert set(stored.values()) == {1}, "a record is stored more than once"
    ids = {(row["p"], row["o"]): row["id"] for row in lake.ask("select _partition as p, _offset as o, id from raw.clicks")}
    assert ids == expected
    [refused] = lake.ask("select count(*) as n from quarantine.clicks")
    assert refused["n"] == 0
    # Nothing new: nothing is read again, nothing is committed.
    before = sorted(str(path) for path in tmp_path.rglob("*") if path.is_file())
    lake.run(*ingest)
    assert before == sorted(str(path) for path in tmp_path.rglob("*") if path.is_file())


def test_two_watching_workers_share_partitions_and_stop_when_told(broker, tmp_path):
    make_topic(broker, "watched", 4)
    lake = project(tmp_path, broker, ["watched", "later"])
    watch = ["ingest", "--raw-only", "--source", "clicks", "--watch", "--every", "0.5"]
    workers = [lake.start(*watch) for _ in range(2)]
    try:
        with Producer(broker, "watched", 4) as producer:
            time.sleep(3)
        # A topic that comes while they watch is found by itself.
        make_topic(broker, "later", 1)
        with Producer(broker, "later", 1) as later:
            time.sleep(0.5)
        wanted = len(producer.acknowledged) + len(later.acknowledged)
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            [stored] = lake.ask("select count(*) as n from raw.clicks")
            if stored["n"] >= wanted:
                break
            time.sleep(0.5)
        for worker in workers:
            began = time.monotonic()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=20) == 0, worker.stderr.read()
            assert time.monotonic() - began < 10
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stderr.close()
    rows = lake.ask("select _topic as t, _partition as p, _offset as o, count(*) as n from raw.clicks group by 1, 2, 3")
    stored = Counter({(row["t"], row["p"], row["o"]): row["n"] for row in rows})
    expected = Counter(("watched", *place) for place in producer.acknowledged)
    expected += Counter(("later", *place) for place in later.acknowledged)
    assert stored == expected


def test_every_message_becomes_a_row_or_a_refusal_with_its_place(broker, tmp_path):
    import confluent_kafka

    make_topic(broker, "odd", 1)
    lake = project(tmp_path, broker, ["odd"])
    producer = confluent_kafka.Producer({"bootstrap.servers": broker.address})
    messages = [
        ("plain", b'{"id": "a", "amount": 1.50}', None),
        (None, b'{\r\n  "id": "b\\n\xc3\xa9"\n}', None),
        ("gone", None, None),
        ("list", b"[1, 2]", None),
        ("half", b'{"id": "c"', None),
        ("bytes", b"\xff\xfe\x00", None),
        ("empty", b"", None),
        ("twice", b'{"id": "d", "_offset": 7}', None),
        ("header", b'{"id": "e"}', [("trace", b"t-1")]),
    ]
    for key, value, headers in messages:
        producer.produce("odd", value, key, partition=0, headers=headers)
    assert producer.flush(30) == 0
    lake.run("ingest", "--raw-only", "--source", "clicks")
    rows = lake.ask("select _offset as o, id, cast(amount as text) as amount, _key as k, _tombstone as gone, _headers['trace'] as trace from raw.clicks order by 1")
    got = [(row["o"], row["id"], row["amount"], row["k"], row["gone"], row["trace"]) for row in rows]
    assert got == [
        (0, "a", "1.50", "plain", None, None),
        (1, "b\né", None, None, None, None),
        (2, None, None, "gone", True, None),
        (8, "e", None, "header", None, "t-1"),
    ]
    refused = lake.ask("select reason, original from quarantine.clicks order by _source_line")
    offsets = [json.loads(row["original"])[0]["_offset"] for row in refused[:4]]
    assert offsets == [3, 4, 5, 6]
    assert "_offset" in refused[4]["original"]
    assert len(refused) == 5 and all(row["reason"] for row in refused)


def test_what_is_wrong_is_told_with_its_place_and_remedy(broker, tmp_path):
    def said(name, more="", topics=("odd",), address=None, **environ):
        folder = tmp_path / name
        folder.mkdir()
        contract = CONTRACT.format(broker=address or broker.address, topics=", ".join(f'"{one}"' for one in topics), more=more)
        lake = Project(folder, {"clicks": contract})
        return lake.run("ingest", "--raw-only", "--source", "clicks", fails=True, **environ)

    assert "clicks.toml:8:1: unknown field `strat`" in said("key", 'strat = "latest"')
    assert "unknown variant `lates`" in said("value", 'start = "lates"')
    assert "HOLDFAST_NO_SUCH_PASSWORD" in said("login", 'sasl = "plain"\nuser = "u"\npassword_env = "HOLDFAST_NO_SUCH_PASSWORD"')
    assert "belong together" in said("half", 'sasl = "plain"')
    assert "create it, or check `topics`" in said("topic", topics=("nosuch",))
    assert "Kafka broker 127.0.0.1:1:" in said("address", address="127.0.0.1:1")
    wrong = said("mechanism", 'sasl = "scram-sha-256"\nuser = "u"\npassword_env = "HOLDFAST_TEST_SECRET"', HOLDFAST_TEST_SECRET="s3cr3t")
    assert "Kafka broker" in wrong and "s3cr3t" not in wrong


def test_start_latest_begins_where_it_was_started_and_stays_there(broker, tmp_path):
    from confluent_kafka import Producer as Sender

    make_topic(broker, "tail", 1)
    sender = Sender({"bootstrap.servers": broker.address})

    def send(*names):
        for name in names:
            sender.produce("tail", json.dumps({"id": name}), partition=0)
            assert sender.flush(30) == 0

    send("before")
    lake = project(tmp_path, broker, ["tail"], 'start = "latest"')
    lake.run("ingest", "--raw-only", "--source", "clicks")
    # While nobody reads: the beginning was decided above.
    send("between", "after")
    lake.run("ingest", "--raw-only", "--source", "clicks")
    assert [row["id"] for row in lake.ask("select id from raw.clicks order by _offset")] == ["between", "after"]
