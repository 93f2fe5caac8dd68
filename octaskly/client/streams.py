"""Server-sent events as a client reads them."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

LINE_BYTES_MAX = 4 << 20


class Event(NamedTuple):
    """One event of a stream."""

    kind: str  #: empty where only the id is new
    id: str  #: for `Last-Event-ID`, to get what follows
    data: dict[str, Any]


def events(response: http.client.HTTPResponse) -> Iterator[Event]:
    """Yield the events of a stream until it ends.

    Raises:
        http.client.HTTPException: the connection broke, or this is no such stream.
        OSError: the same.
    """
    fields: dict[str, str] = {}
    while line := response.readline(LINE_BYTES_MAX):
        if not line.endswith(b"\n"):
            raise http.client.IncompleteRead(line)
        name, _, value = line.decode("utf-8", "replace").rstrip("\n").partition(": ")
        if name:
            fields[name] = value
            continue
        if "event" in fields:
            yield Event(fields["event"], fields.get("id", ""), _data(fields))
        elif "id" in fields:
            yield Event("", fields["id"], {})
        fields = {}


def _data(fields: dict[str, str]) -> dict[str, Any]:
    try:
        return msgspec.json.decode(fields.get("data", ""), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise http.client.HTTPException(f"no event: {error}") from error
