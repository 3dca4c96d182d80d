"""The messages of proto/holdfast/v1/flight.proto, as their bytes: too few to ask for a protobuf library."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

_PREFIX = "type.googleapis.com/holdfast.v1."
_STATUSES = {"view": 0, "value": 1, "none": 2}


def historical(
    service: str,
    features: Sequence[str],
    timestamp: str,
    strict: bool,
    ignore_known_at: bool,
    full_feature_names: bool,
    status: str,
    event_timestamps: bool,
    timestamps_are_utc: bool,
) -> bytes:
    """A ``GetHistoricalFeatures`` in its wrapper."""
    asked = (service, features, timestamp, strict, ignore_known_at, full_feature_names, status, event_timestamps, timestamps_are_utc)
    return _wrapped("GetHistoricalFeatures", _historical(*asked))


def create_dataset(historical: tuple, label: str, horizon_s: int, open_horizon: bool) -> bytes:
    """A ``CreateDataset`` in its wrapper; ``historical`` is what :func:`historical` takes."""
    body = _bytes(1, _historical(*historical)) + _text(2, label) + _number(3, horizon_s) + _flag(4, open_horizon)
    return _wrapped("CreateDataset", body)


def get_dataset(dataset_id: str, skip_rows: int) -> bytes:
    """A ``GetDataset`` in its wrapper."""
    return _wrapped("GetDataset", _text(1, dataset_id) + _number(2, skip_rows))


def _historical(
    service: str,
    features: Sequence[str],
    timestamp: str,
    strict: bool,
    ignore_known_at: bool,
    full_feature_names: bool,
    status: str,
    event_timestamps: bool,
    timestamps_are_utc: bool,
) -> bytes:
    body = _text(1, service) + b"".join(_text(2, feature) for feature in features) + _text(3, timestamp)
    body += _flag(4, strict) + _flag(5, ignore_known_at) + _flag(6, full_feature_names)
    return body + _number(7, _status(status)) + _flag(8, event_timestamps) + _flag(9, timestamps_are_utc)


def online(
    service: str,
    features: Sequence[str],
    keys: Mapping[str, Sequence[str] | Sequence[int] | Sequence[float] | Sequence[bool]],
    full_feature_names: bool,
    status: str,
    event_timestamps: bool,
) -> bytes:
    """A ``GetOnlineFeatures`` in its wrapper."""
    body = _text(1, service) + b"".join(_text(2, feature) for feature in features)
    for name, values in keys.items():
        body += _bytes(3, _key_column(name, list(values)))
    body += _flag(4, full_feature_names) + _number(5, _status(status)) + _flag(6, event_timestamps)
    return _wrapped("GetOnlineFeatures", body)


def score_rows(model: str, reasons: int) -> bytes:
    """A ``ScoreRows`` in its wrapper."""
    return _wrapped("ScoreRows", _text(1, model) + _number(2, reasons))


def _key_column(name: str, values: list) -> bytes:
    body = _text(1, name)
    if all(isinstance(value, str) for value in values):
        # Of a list every value counts, an empty one as well.
        return body + b"".join(_bytes(2, value.encode()) for value in values)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return body + _bytes(3, b"".join(_varint(value & 0xFFFF_FFFF_FFFF_FFFF) for value in values))
    if all(isinstance(value, bool) for value in values):
        return body + _bytes(5, bytes(values))
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return body + _bytes(4, struct.pack(f"<{len(values)}d", *values))
    raise ValueError(f"the values of {name or 'the only column'} are not all texts, all numbers or all booleans")


def _status(status: str) -> int:
    if status not in _STATUSES:
        raise ValueError(f"status is one of {', '.join(_STATUSES)}, not {status!r}")
    return _STATUSES[status]


def _wrapped(name: str, body: bytes) -> bytes:
    return _text(1, _PREFIX + name) + _bytes(2, body)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode()) if value else b""


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value) if value else b""


def _flag(field: int, value: bool) -> bytes:
    return _number(field, int(bool(value)))
