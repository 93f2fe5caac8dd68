"""Server-sent events as a client reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from octaskly.client.errors import ReplyLost
from octaskly.rest.client_types import Task
from octaskly.rest.mesh import NodeInfo

EVENT_BYTES_MAX: Final = 8 << 20  #: a result has up to 2 MiB of output, in base64


class Event(msgspec.Struct, frozen=True):
    """One event of a stream; `data` has the fields that the REST reference lists."""

    kind: str  #: empty where only the id is new
    id: str  #: the stream goes on behind it, see `after`
    data: dict[str, Any]

    @property
    def task(self) -> Task | None:
        """The task that it tells of, as far as it does."""
        is_task = self.kind in ("task", "result", "end")
        return msgspec.convert(self.data, Task) if is_task else None

    @property
    def node(self) -> NodeInfo | None:
        """The node that it tells of, as far as it does."""
        return msgspec.convert(self.data, NodeInfo) if self.kind == "node" else None


class EventParser:
    """Turns the bytes of a stream into events, however they are cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that are complete by now.

        Raises:
            ReplyLost: this is no such stream.
        """
        seen = max(len(self._buffer) - 1, 0)  # The end of an event may be cut in two.
        self._buffer += data
        begin = 0
        while (end := self._buffer.find(b"\n\n", max(seen, begin))) >= 0:
            event = _event(self._buffer[begin:end])
            begin = end + 2
            if event is not None:
                yield event
        del self._buffer[:begin]
        if len(self._buffer) > EVENT_BYTES_MAX:
            raise ReplyLost(f"an event of over {EVENT_BYTES_MAX} bytes")


def _event(block: bytearray) -> Event | None:
    """Return an event from its lines; None: they are a sign of life."""
    fields: dict[str, str] = {}
    for line in block.decode("utf-8", "replace").split("\n"):
        name, _, value = line.partition(": ")
        fields[name] = value
    if "event" in fields:
        return Event(fields["event"], fields.get("id", ""), _data(fields))
    return Event("", fields["id"], {}) if "id" in fields else None


def _data(fields: dict[str, str]) -> dict[str, Any]:
    try:
        return msgspec.json.decode(fields.get("data", ""), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ReplyLost(f"no event: {error}") from error
