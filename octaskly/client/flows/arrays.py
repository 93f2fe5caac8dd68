"""Flows that submit arrays and read the results of their members."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from octaskly.client.flows import rest_calls, tasks
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Call
from octaskly.client.flows.resumable import ResumableEvents
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.steps import CloseStream, Emit, EmittingFlow, Flow
from octaskly.client.flows.task_fields import (
    Durability,
    TaskFields,
    make_draft,
    ref_of,
)
from octaskly.client.flows.tasks import (
    AttachFiles,
    DraftWithFiles,
    attach_nothing,
)
from octaskly.core.model.placeholders import fill_placeholders
from octaskly.rest.client_types import Task, sent_with, with_sent
from octaskly.rest.tasks import Members

ITEMS_MAX: Final = 10_000  #: per array of a `map`, to bound the memory of the client
ITEMS_BYTES_MAX: Final = 1 << 20
ITEM_BYTES_MORE: Final = 6  #: overhead that the API counts for each item
ARRAYS_AHEAD_MAX: Final = 2  #: arrays of one `map` that run at the same time


def array(
    requests: RequestFlow,
    command: str,
    fields: TaskFields,
    *,
    attach_files: AttachFiles = attach_nothing,
    members: str | Iterable[object],
    max_fails: int | None,
    key: str | None,
    durability: Durability | None,
    deadline: Deadline,
) -> Flow[Task]:
    """Submit one array; `members` is a range or the items."""
    wanted: dict[str, Any] = {}
    if isinstance(members, str):
        wanted["range"] = members
    else:
        wanted["items"] = [str(item) for item in members]
    if max_fails is not None:
        wanted["max_fails"] = max_fails
    return (
        yield from tasks.submit(
            requests,
            command,
            fields,
            attach_files=attach_files,
            array=wanted,
            key=key,
            durability=durability,
            until=deadline,
        )
    )


def map_(
    requests: RequestFlow,
    command: str,
    items: Iterable[object],
    fields: TaskFields,
    *,
    attach_files: AttachFiles = attach_nothing,
    ordered: bool,
    deadline: Deadline,
) -> EmittingFlow[Task]:
    """Run a command for each item; cancel unfinished tasks if interrupted."""
    parts = _chunk_items(items)
    under_way: deque[_ItemChunk] = deque()
    try:
        while True:
            # No `while`, at whose jump back no handler would see a Ctrl-C.
            for part in islice(parts, ARRAYS_AHEAD_MAX - len(under_way)):
                draft = make_draft(command, fields, {"items": part.items})
                part.attached = yield from attach_files(requests, draft, deadline)
                under_way.append(part)
                part.task = yield from tasks.submit_cancellable(
                    requests, part.attached.draft, deadline=deadline
                )
                part.task = yield from part.attached.bind(part.task)
            if not under_way:
                return
            first = under_way[0]
            assert first.task is not None
            yield from results(
                requests,
                first.task,
                ordered=ordered,
                deadline=deadline,
                items=first.items,
                command=command,
            )
            yield from first.finish()
            under_way.popleft()
    except BaseException:
        yield CloseStream()
        for part in under_way:
            yield from part.abandon(requests)
        raise


class _ItemChunk:
    """The items of one array."""

    def __init__(self, items: list[str]) -> None:
        self.items = items
        self.attached: DraftWithFiles | None = None  #: once its files are known
        self.task: Task | None = None  #: once it is submitted

    def finish(self) -> Flow[None]:
        """End lending its files, after its end."""
        assert self.attached is not None
        yield from self.attached.finish()

    def abandon(self, requests: RequestFlow) -> Flow[None]:
        """Cancel what has not ended, and lend its files no longer."""
        if self.task is not None:
            yield from tasks.cancel_abandoned(requests, self.task)
        if self.attached is not None:
            yield from self.attached.close()


def _chunk_items(items: Iterable[object]) -> Iterator[_ItemChunk]:
    """Yield the items as texts, in chunks that fit into one array."""
    part: list[str] = []
    size = 0
    for item in items:
        text = str(item)
        cost = len(text.encode("utf-8", "surrogatepass")) + ITEM_BYTES_MORE
        if part and (len(part) == ITEMS_MAX or size + cost > ITEMS_BYTES_MAX):
            yield _ItemChunk(part)
            part, size = [], 0
        part.append(text)
        size += cost
    if part:
        yield _ItemChunk(part)


def results(
    requests: RequestFlow,
    array: str | Task,
    *,
    ordered: bool,
    deadline: Deadline,
    items: Sequence[str] = (),
    command: str = "",
) -> EmittingFlow[Task]:
    """Emit each member of an array once, in array order or as it ends.

    Results have neither item nor command: members get theirs if `items` has all items
    and `command` is the command of the array.
    """
    path = rest_calls.resource_path(rest_calls.ARRAYS, ref_of(array), "results")
    seen = _PositionSet()
    ended = 0

    def call(_last_id: str) -> Call:
        order = "number" if ordered else "end"
        return rest_calls.open_stream(
            path, {"order": order, "offset": seen.first_missing}
        )

    source = ResumableEvents(requests, call, deadline)
    while True:
        event = yield from source.next_event()
        if event.kind == "end":
            counts = msgspec.convert(event.data, Task).array or Members()
            if ended >= counts.completed + counts.failed:
                yield CloseStream()
                return
            yield from source.reopen()
        elif event.kind == "result" and seen.add(event.data["position"]):
            task = msgspec.convert(event.data, Task)
            ended += task.status != "cancelled"
            if items:
                item = items[position := event.data["position"]]
                own = fill_placeholders(command, item, position, is_quoted=True)
                task = msgspec.structs.replace(task, item=item, command=own)
            yield Emit(with_sent(task, sent_with(array)))


class _PositionSet:
    """Bitmap of received positions; all below `first_missing` were received."""

    def __init__(self) -> None:
        self.first_missing = 0
        self._bits = bytearray()

    def add(self, position: int) -> bool:
        """Add a position; return True if it is new."""
        if self._has(position):
            return False
        byte = position >> 3
        self._bits.extend(bytes(max(0, byte + 1 - len(self._bits))))
        self._bits[byte] |= 1 << (position & 7)
        while self._has(self.first_missing):
            self.first_missing += 1
        return True

    def _has(self, position: int) -> bool:
        byte = position >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & 1 << (position & 7))
