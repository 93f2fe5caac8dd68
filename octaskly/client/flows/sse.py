"""Parser of server-sent events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from octaskly.client.errors import ReplyLost
from octaskly.rest.client_types import Task
from octaskly.rest.mesh import NodeInfo

EVENT_BYTES_MAX: Final = 8 << 20  #: a result has at most 2 MiB of output, in base64


class Event(msgspec.Struct, frozen=True):
    """One event of a stream; `data` has the fields that the REST reference lists."""

    kind: str  #: empty if the event only advances the id
    id: str  #: pass it as `after` to resume after this event
    data: dict[str, Any]

    @property
    def task(self) -> Task | None:
        """The task that the event describes, if any."""
        is_task = self.kind in ("task", "result", "end")
        return msgspec.convert(self.data, Task) if is_task else None

    @property
    def node(self) -> NodeInfo | None:
        """The node that the event describes, if any."""
        return msgspec.convert(self.data, NodeInfo) if self.kind == "node" else None


class EventParser:
    """Incremental parser: turns chunks of bytes into events."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that `data` completes.

        Raises:
            ReplyLost: the bytes are no event stream, or an event is too large.
        """
        # The separator may be split between two chunks.
        seen = max(len(self._buffer) - 1, 0)
        self._buffer += data
        begin = 0
        while (end := self._buffer.find(b"\n\n", max(seen, begin))) >= 0:
            event = _event(self._buffer[begin:end])
            begin = end + 2
            if event is not None:
                yield event
        del self._buffer[:begin]
        if len(self._buffer) > EVENT_BYTES_MAX:
            raise ReplyLost(f"an event has more than {EVENT_BYTES_MAX} bytes")


def _event(block: bytearray) -> Event | None:
    """Return the event in a block of lines, None for a keep-alive."""
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
        raise ReplyLost(f"an event has malformed data: {error}") from error
