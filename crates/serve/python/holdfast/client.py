"""The client: one class, and the answers it gives."""

from __future__ import annotations

import concurrent.futures
import datetime
import json
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.flight

from holdfast import _messages

#: Rows that are sent at a time.
BATCH_ROWS = 65_536

#: Rows of a batch that a model scores: the service takes 10,000 unless it was set otherwise.
SCORED_ROWS = 8_192

#: Batches that are put before the first of them is known to be durable.
PUTS_ON_THEIR_WAY = 8


class FeatureError(Exception):
    """The service refused, with what to do about it."""


class Retrieval:
    """Features that were asked for. They are read once, by whichever method is called."""

    def __init__(self, schema: pyarrow.Schema, batches: Iterator[pyarrow.RecordBatch]):
        #: The columns. Their metadata is in :attr:`provenance`.
        self.schema = schema
        self._batches = batches

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the answer is from: ``feature_service``, ``features`` with the versions of their views, ``tables`` with theirs, ``run``."""
        found = {}
        for key, value in (self.schema.metadata or {}).items():
            name = key.decode()
            if name.startswith("holdfast."):
                found[name.removeprefix("holdfast.")] = value.decode()
        if "tables" in found:
            found["tables"] = json.loads(found["tables"])
        if "features" in found:
            found["features"] = found["features"].split(",")
        if "run" in found:
            found["run"] = int(found["run"])
        return found

    def to_batches(self) -> Iterator[pyarrow.RecordBatch]:
        """The rows as they arrive. Memory holds a batch; who stops reading stops the work."""
        return self._batches

    def to_arrow(self) -> pyarrow.Table:
        """All rows, as an Arrow table."""
        return pyarrow.Table.from_batches(list(self._batches), self.schema)

    def to_pandas(self, **options: Any) -> Any:
        """All rows, as a pandas data frame."""
        return self.to_arrow().to_pandas(**options)

    def to_polars(self) -> Any:
        """All rows, as a polars data frame."""
        import polars

        return polars.from_arrow(self.to_arrow())


class Client:
    """A connection to ``holdfast serve``.

    ``token`` is the token that the service requires, if it does. ``timeout`` is the limit of one call in seconds.
    """

    def __init__(self, address: str = "grpc://127.0.0.1:8815", token: str | None = None, timeout: float | None = None):
        if "://" not in address:
            address = f"grpc://{address}"
        self._client = pyarrow.flight.connect(address)
        self._headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
        self._options = pyarrow.flight.FlightCallOptions(timeout=timeout, headers=self._headers)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def get_historical_features(
        self,
        spine: Any,
        features: Sequence[str] | None = None,
        service: str | None = None,
        *,
        timestamp: str = "event_timestamp",
        strict: bool = False,
        ignore_known_at: bool = False,
        full_feature_names: bool = False,
        status: str = "view",
        event_timestamps: bool = False,
        timestamps_are_utc: bool = False,
    ) -> Retrieval:
        """Features as they were known: one row for each row of the spine, in its order.

        ``spine`` is an Arrow table, a record batch reader, a pandas or polars data frame or a mapping of columns, with the
        key columns and a moment in each row (the column ``timestamp``). Either ``service`` (``"churn"``, ``"churn@v3"``) or
        ``features`` (``"view:feature"``, ``"view"``, ``"view@v3:feature"``) says what is wanted. ``strict`` leaves out what
        happened exactly at the moment, ``ignore_known_at`` takes what became known later. ``status`` is ``"view"``,
        ``"value"`` or ``"none"``. Timestamps without a zone are refused unless ``timestamps_are_utc``.

        The spine is sent while the answer is read, so neither has to fit into memory.
        """
        rows = _reader(spine)
        command = _messages.historical(
            _service(service, features),
            list(features or []),
            timestamp,
            strict,
            ignore_known_at,
            full_feature_names,
            status,
            event_timestamps,
            timestamps_are_utc,
        )
        return self._exchange(command, rows)

    def create_training_set(
        self,
        spine: Any,
        features: Sequence[str] | None = None,
        service: str | None = None,
        *,
        label: str = "",
        horizon: datetime.timedelta | None = None,
        open_horizon: bool = False,
        timestamp: str = "event_timestamp",
        strict: bool = False,
        ignore_known_at: bool = False,
        full_feature_names: bool = False,
        status: str = "view",
        event_timestamps: bool = False,
        timestamps_are_utc: bool = False,
    ) -> Retrieval:
        """A training set, which the lake keeps under an id: ``provenance["dataset_id"]`` of the answer.

        The same request of the same lake has the same id and the same rows. ``label`` is ``"view"`` or ``"view:column"``, the latest row of
        the key behind the row's moment and within ``horizon``; rows whose horizon is not over are refused unless ``open_horizon``. The rest
        is as in :meth:`get_historical_features`, but that the whole spine is taken before the answer begins. When the answer was cut
        short, :meth:`training_set_rows` gives what is left.
        """
        if bool(label) != bool(horizon):
            raise ValueError("a label has a horizon, and a horizon a label: give both, or neither")
        asked = (
            _service(service, features),
            list(features or []),
            timestamp,
            strict,
            ignore_known_at,
            full_feature_names,
            status,
            event_timestamps,
            timestamps_are_utc,
        )
        seconds = int(horizon.total_seconds()) if horizon else 0
        return self._exchange(_messages.create_dataset(asked, label, seconds, open_horizon), _reader(spine))

    def training_set_rows(self, dataset_id: str, skip_rows: int = 0) -> Retrieval:
        """The rows of a training set that you had made, from what it was made from, but for the first ``skip_rows``."""
        if not dataset_id:
            raise ValueError("name a training set: training_sets() lists them")
        return self._get(_messages.get_dataset(dataset_id, skip_rows))

    def _exchange(self, command: bytes, rows: pyarrow.RecordBatchReader, rows_at_once: int = BATCH_ROWS) -> Retrieval:
        """Sends rows and answers those that come back meanwhile."""
        descriptor = pyarrow.flight.FlightDescriptor.for_command(command)
        with _told():
            writer, reader = self._client.do_exchange(descriptor, self._options)
            writer.begin(rows.schema)
        failed: list[BaseException] = []

        def send() -> None:
            try:
                for batch in rows:
                    # The service takes batches of limited size.
                    for start in range(0, batch.num_rows, rows_at_once):
                        writer.write_batch(batch.slice(start, rows_at_once))
            except pyarrow.ArrowException:
                # The service has refused: why, is what the answer says.
                pass
            except BaseException as error:  # noqa: BLE001 - the caller's own spine failed
                failed.append(error)
            finally:
                try:
                    writer.done_writing()
                except pyarrow.ArrowException:
                    pass

        sender = threading.Thread(target=send, name="holdfast-spine", daemon=True)
        sender.start()

        def batches() -> Iterator[pyarrow.RecordBatch]:
            try:
                with _told():
                    for chunk in reader:
                        if chunk.data is not None:
                            yield chunk.data
                sender.join()
                if failed:
                    raise failed[0]
            finally:
                # Who stops reading early ends the call: the service stops its work, and the thread that sends ends.
                if sender.is_alive():
                    reader.cancel()
                else:
                    writer.close()

        with _told():
            schema = reader.schema
        return Retrieval(schema, batches())

    def get_online_features(
        self,
        keys: Mapping[str, Sequence[str] | Sequence[int]] | Sequence[str] | Sequence[int],
        features: Sequence[str] | None = None,
        service: str | None = None,
        *,
        full_feature_names: bool = False,
        status: str = "view",
        event_timestamps: bool = False,
    ) -> Retrieval:
        """Features from memory, as they are known now: one row for each key, in their order.

        ``keys`` maps the key columns to their values; a list alone is the only key column. The rest is as in
        :meth:`get_historical_features`.
        """
        columns = dict(keys) if isinstance(keys, Mapping) else {"": list(keys)}
        command = _messages.online(
            _service(service, features),
            list(features or []),
            columns,
            full_feature_names,
            status,
            event_timestamps,
        )
        return self._get(command)

    def _get(self, command: bytes) -> Retrieval:
        with _told():
            reader = self._client.do_get(pyarrow.flight.Ticket(command), self._options)
            schema = reader.schema

        def batches() -> Iterator[pyarrow.RecordBatch]:
            with _told():
                for chunk in reader:
                    if chunk.data is not None:
                        yield chunk.data

        return Retrieval(schema, batches())

    def online(
        self,
        features: Sequence[str] | None = None,
        service: str | None = None,
        *,
        full_feature_names: bool = False,
        status: str = "view",
        event_timestamps: bool = False,
    ) -> OnlineFeatures:
        """An open line for features from memory: the service looks up once what is asked for, then answers keys for as long as
        the line is open. What it costs is the keys alone, so this is for who asks again and again. Arguments are those of
        :meth:`get_online_features`. Not for several threads at a time.
        """
        command = _messages.online(
            _service(service, features), list(features or []), {}, full_feature_names, status, event_timestamps
        )
        return OnlineFeatures(*self._line(command))

    def _line(self, command: bytes) -> tuple[Any, Any]:
        descriptor = pyarrow.flight.FlightDescriptor.for_command(command)
        with _told():
            # The limit of one call is not one of a line.
            return self._client.do_exchange(descriptor, pyarrow.flight.FlightCallOptions(headers=self._headers))

    def table(self, name: str) -> Retrieval:
        """The rows of a table of the newest run, such as ``"core.customers"``, as far as you see them."""
        descriptor = pyarrow.flight.FlightDescriptor.for_path(*name.split("."))
        with _told():
            info = self._client.get_flight_info(descriptor, self._options)
        return self._get(info.endpoints[0].ticket.ticket)

    def score(self, model: str, rows: Any, reasons: int = 0) -> pyarrow.Table:
        """Rows scored by a model: one row for each, in their order, as ``predict`` says of them in SQL.

        ``model`` is ``"churn"`` for its champion, ``"churn@challenger"`` or ``"churn@v3"``. ``rows`` is what
        :meth:`get_historical_features` takes as a spine, with the features of the model as columns, in any order; null and NaN are
        missing. Answers the columns that are no features as they came, then ``probability`` (calibrated), ``probability_raw`` and ``band``;
        with ``reasons`` also ``raises`` and ``lowers``, lists of so many texts at most, strongest first. Model and version are in the schema's
        metadata. :meth:`scoring` is for who asks again and again.
        """
        return self._exchange(_messages.score_rows(model, reasons), _reader(rows), SCORED_ROWS).to_arrow()

    def scoring(self, model: str, reasons: int = 0) -> Scoring:
        """An open line to a model, for who asks again and again: the version is the one of the beginning, for as long as the line is open.
        Arguments are those of :meth:`score`. Not for several threads at a time.
        """
        return Scoring(*self._line(_messages.score_rows(model, reasons)))

    def push(self, source: str, rows: Any, stream: str | None = None) -> dict[str, int]:
        """Puts rows into a source of the pipeline, ready-made features as well as events; answers when all of them are durable.

        ``rows`` is what :meth:`get_historical_features` takes as a spine, with the columns of the source. The service must have been
        started with ``--accept-puts``, and ``token`` must be the one for putting. Rows that were put under the same name of a
        ``stream`` before are not stored again, so a push that failed can be repeated under its name. Answers how many rows were
        ``stored`` and how many were ``known``. They are features once a run has made them: in seconds where one watches.
        """
        table = _reader(rows)
        stream = stream or uuid.uuid4().hex
        descriptor = pyarrow.flight.FlightDescriptor.for_path("raw", source.removeprefix("raw."))
        counts = {"stored": 0, "known": 0}
        with _told():
            writer, reader = self._client.do_put(descriptor, table.schema, self._options)
            with writer:
                waiting, number = 0, 0
                for batch in table:
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        position = json.dumps({"stream": stream, "batch": number})
                        writer.write_with_metadata(batch.slice(start, BATCH_ROWS), position.encode())
                        number, waiting = number + 1, waiting + 1
                        # Some on their way is what makes it fast, all of them on their way is not.
                        if waiting > PUTS_ON_THEIR_WAY and _acknowledged(reader, counts):
                            waiting -= 1
                writer.done_writing()
                while _acknowledged(reader, counts):
                    pass
        return counts

    def list_features(self) -> dict[str, Any]:
        """The feature views and services: ``{"views": [...], "services": [...]}``."""
        return self._ask("list_features", "")

    def describe(self, name: str) -> dict[str, Any]:
        """A feature view or service, ``"churn"`` or ``"churn@v3"``."""
        return self._ask("describe_features", name)

    def training_set(self, dataset_id: str) -> dict[str, Any]:
        """What a training set was made from. :meth:`training_set_rows` and ``holdfast features datasets replay`` give its rows again."""
        if not dataset_id:
            raise ValueError("name a training set: training_sets() lists them")
        return self._ask("get_dataset", dataset_id)

    def training_sets(self) -> list[dict[str, Any]]:
        """The training sets of the lake, the oldest first."""
        return self._ask("get_dataset", "")

    def health(self) -> dict[str, Any]:
        """The run that is served, and since when."""
        return self._ask("health", "")

    def _ask(self, action: str, body: str) -> Any:
        with _told():
            (result,) = self._client.do_action(pyarrow.flight.Action(action, body.encode()), self._options)
        return json.loads(result.body.to_pybytes())


class _Line:
    """An exchange that stays open: a batch goes in, a batch comes back."""

    def __init__(self, writer: Any, reader: Any):
        self._writer, self._reader, self._schema = writer, reader, None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, rows: Any) -> pyarrow.RecordBatch:
        batch = rows if isinstance(rows, pyarrow.RecordBatch) else pyarrow.RecordBatch.from_pydict(dict(rows), self._schema)
        with _told():
            try:
                if self._schema is None:
                    self._schema = batch.schema
                    self._writer.begin(self._schema)
                self._writer.write_batch(batch)
            except pyarrow.ArrowException:
                # The service has ended the line: why, is what the answer says.
                pass
            return self._reader.read_chunk().data

    def close(self) -> None:
        """Ends the line."""
        if self._schema is None:
            self._reader.cancel()
            return
        try:
            self._writer.close()
        except pyarrow.ArrowException:
            # It has ended already.
            pass


class OnlineFeatures(_Line):
    """Features from memory over an open line: :meth:`Client.online`."""

    def get(self, keys: Any) -> pyarrow.RecordBatch:
        """One row for each key, in their order. ``keys`` maps the key columns to their values, or is a record batch of them; each
        call has the same columns.
        """
        return self._answer(keys)


class Scoring(_Line):
    """A model over an open line: :meth:`Client.scoring`."""

    def score(self, rows: Any) -> pyarrow.RecordBatch:
        """One row for each, in their order, as :meth:`Client.score` answers. ``rows`` maps columns to their values, or is a record batch; each
        call has the same columns, and at most as many rows as the service takes in a batch (10,000).
        """
        return self._answer(rows)


class OnlineNodes:
    """Several nodes that hold a share of the online features each (``holdfast serve --online-share 1/3``), asked as if they were one.

    A key is asked for at the node that holds its bucket. ``addresses`` may come in any order; each node says which share it has.
    """

    def __init__(self, addresses: Sequence[str], token: str | None = None, timeout: float | None = None):
        self._nodes: dict[int, Client] = {}
        self._buckets: dict[str, int] = {}
        self._keys: dict[str, list[str]] = {}
        self._services: dict[str, list[str]] = {}
        self._inputs: dict[str, list[str]] = {}
        count = None
        for address in addresses:
            client = Client(address, token, timeout)
            told = client.list_features()
            share = told["online_share"]
            if count not in (None, share["of"]) or share["node"] in self._nodes:
                raise FeatureError(f"{address} is node {share['node']} of {share['of']}: each share once, all of as many nodes")
            count, self._nodes[share["node"]] = share["of"], client
            for view in told["views"]:
                self._buckets[view["view"]] = view["buckets"] or 0
                self._keys[view["view"]] = view["entity"]
            for view in told["on_demand"]:
                self._inputs[view["view"]] = [read["view"] for read in view["inputs"]]
            for service in told["services"]:
                self._services[service["service"]] = [feature["view"] for feature in service["features"]]
        missing = sorted(set(range(1, (count or 0) + 1)) - self._nodes.keys())
        if missing or not self._nodes:
            raise FeatureError(f"no address is that of node {', '.join(map(str, missing)) or 1}")

    def __enter__(self) -> OnlineNodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections."""
        for client in self._nodes.values():
            client.close()

    def get_online_features(
        self,
        keys: Mapping[str, Sequence[Any]] | Sequence[str] | Sequence[int],
        features: Sequence[str] | None = None,
        service: str | None = None,
        **options: Any,
    ) -> Retrieval:
        """As :meth:`Client.get_online_features`: one row for each key, in their order. All views must have the same key."""
        name, buckets = self._placed(features, service)
        columns = dict(keys) if isinstance(keys, Mapping) else {name[0]: list(keys)}
        try:
            rows = list(zip(*(columns[column] for column in name), strict=True))
        except KeyError as error:
            raise FeatureError(f"there is no key column {error}: the views have {', '.join(name)}") from None
        asked: dict[int, list[int]] = {}
        for row, key in enumerate(rows):
            asked.setdefault(bucket_of(key, buckets) % len(self._nodes) + 1, []).append(row)
        # Somebody must say which columns no rows have.
        asked = asked or {1: []}

        def of_node(node: int) -> pyarrow.Table:
            part = {column: [values[row] for row in asked[node]] for column, values in columns.items()}
            return self._nodes[node].get_online_features(part, features, service, **options).to_arrow()

        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            parts = list(pool.map(of_node, asked))
        schema = parts[0].schema
        found = pyarrow.concat_tables([part.cast(schema) for part in parts])
        order = [0] * len(rows)
        for place, row in enumerate(row for node in asked for row in asked[node]):
            order[row] = place
        return Retrieval(schema, iter(found.take(pyarrow.array(order, pyarrow.int64())).combine_chunks().to_batches()))

    def _placed(self, features: Sequence[str] | None, service: str | None) -> tuple[list[str], int]:
        """The key of all views that are asked, and the buckets that it is spread over."""
        names = [reference.split(":")[0].split("@")[0] for reference in features or []]
        names += self._services.get((service or "").split("@")[0], [])
        views = {view for name in names for view in self._inputs.get(name, [name])}
        placed = {(tuple(self._keys[view]), self._buckets[view]) for view in views if view in self._keys}
        if len(placed) != 1:
            raise FeatureError("the views that are asked have not one key: ask for those of one key at a time")
        ((key, buckets),) = placed
        if buckets == 0:
            raise FeatureError("a view that is asked is not in memory: is it `@feature online`, and was it run?")
        return list(key), buckets


def bucket_of(key: Sequence[str | int], buckets: int) -> int:
    """The bucket that a key is in: FNV-1a of its bytes (docs/point_in_time.md), modulo the number of buckets."""
    parts = []
    for value in key:
        if isinstance(value, str):
            text = value.encode()
            parts += [len(text).to_bytes(8, "little"), text] if len(key) > 1 else [text]
        elif value is not None:
            parts.append(value.to_bytes(8, "little", signed=True))
    found = 0xCBF29CE484222325
    for byte in b"".join(parts):
        found = ((found ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return found % buckets


def _acknowledged(reader: Any, counts: dict[str, int]) -> bool:
    """Waits for a batch to be durable; false when there are no more."""
    metadata = reader.read()
    if metadata is None:
        return False
    position = json.loads(metadata.to_pybytes())
    counts[position["outcome"]] += position["rows"]
    return True


def _service(service: str | None, features: Sequence[str] | None) -> str:
    if bool(service) == bool(features):
        raise ValueError("name either a service or features")
    return service or ""


def _reader(spine: Any) -> pyarrow.RecordBatchReader:
    if isinstance(spine, pyarrow.RecordBatchReader):
        return spine
    if isinstance(spine, pyarrow.RecordBatch):
        spine = pyarrow.Table.from_batches([spine])
    elif hasattr(spine, "__arrow_c_stream__") and not isinstance(spine, pyarrow.Table):
        return pyarrow.RecordBatchReader.from_stream(spine)
    elif type(spine).__module__.split(".")[0] == "pandas":
        spine = pyarrow.Table.from_pandas(spine, preserve_index=False)
    elif not isinstance(spine, pyarrow.Table):
        spine = pyarrow.table(spine)
    return spine.to_reader(max_chunksize=BATCH_ROWS)


class _told:
    """Errors of the service in its own words, without those of gRPC around them."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        if error is None or not isinstance(error, (pyarrow.ArrowException, pyarrow.flight.FlightError)):
            return False
        text = str(error)
        for marker in (". gRPC client debug context:", ". Detail: ", ". Client context:"):
            text = text.split(marker)[0]
        text = text.removeprefix("Flight error: ")
        raise FeatureError(text.split("with message: ")[-1]) from error
