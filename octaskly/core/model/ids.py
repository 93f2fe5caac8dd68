"""Ids of nodes, tasks, streams and attempts; epochs, log vectors and addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple, NewType

from msgspec import Meta, Struct

from octaskly.core.model.field_types import COUNT_MAX, Count, Host, Port

STREAMS_MAX = 1 << 15  #: per vector; each claim adds one stream
STREAMS_KEPT = 1000
"""Above this number, streams without facts about tasks are retired at any age."""
STREAMS_WARN = STREAMS_MAX // 4
"""Above this number there is a warning, and ended tasks are forgotten at any age."""
ADDRESSES_MAX = 64  #: per peer; a node announces at most 16

NodeId = NewType("NodeId", Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._-]{0,64}\Z")])
"""Base32 of the first 80 bits of SHA-256 of a node's Ed25519 public key: 16 chars.

That of a visitor has `VISITOR_PREFIX` before it.
"""

VISITOR_PREFIX: Final = "visitor-"
"""Start of the ids of visitors. No member's id has it, as base32 has no hyphen."""

TASK_ID_CHARS_MAX: Final = 96

TaskId = NewType("TaskId", Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._~-]{1,96}\Z")])
"""Id of a task in the log: its name, `[A-Za-z0-9._-]{1,64}`, if a node generated it.

If a client chose the name, `~` and a digest of the draft follow. So when both sides of
a network split accept different tasks under one name, the ids differ. Clients see these
tasks as `<name>` and `<name>~2`.
"""

StreamId = NewType("StreamId", Annotated[int, Meta(ge=0, le=(1 << 63) - 1)])
"""63-bit random number of a log stream, drawn at each claim, never zero."""

Vector = dict[StreamId, int]
"""For each stream, the sequence number up to which all entries are held."""

VectorItems = Annotated[
    tuple[tuple[StreamId, Count], ...], Meta(max_length=STREAMS_MAX)
]
"""A vector in a message."""


def is_visitor(node: NodeId) -> bool:
    """Return True if a node is a visitor: a worker that cannot give commands."""
    return node.startswith(VISITOR_PREFIX)


def task_name(task: TaskId, occurrence: int = 1) -> str:
    """Return the name for clients; `occurrence` counts tasks of one name from 1."""
    name = task.partition("~")[0] if "~" in task else task
    return name if occurrence == 1 else f"{name}~{occurrence}"


class Epoch(NamedTuple):
    """One node's time as dispatcher; compared by term, then by node id."""

    term: Count
    node: NodeId


NO_EPOCH = Epoch(0, NodeId(""))

Writers = Annotated[tuple[tuple[StreamId, Epoch], ...], Meta(max_length=STREAMS_MAX)]
"""The writer's epoch of each stream."""


class AttemptId(
    Struct, frozen=True, gc=False, array_like=True, order=True, cache_hash=True
):
    """Id of one run of a task: the position in the log at which it was assigned.

    No other run has it, not even one of a later task with the same id. Attempt ids are
    ordered: on all nodes the smallest successful attempt counts.
    """

    term: Count  #: of the stream
    stream: StreamId
    seq: Annotated[int, Meta(gt=0, lt=COUNT_MAX)]  #: of its `Assigned`
    n: Annotated[int, Meta(gt=0, lt=1 << 31)]
    """Number for people; it counts from 1 within the task."""

    def __str__(self) -> str:
        """Return the text that `parse_attempt_id` reads."""
        return f"{self.term}-{self.stream}-{self.seq}-{self.n}"


ATTEMPT_PATTERN: Final = r"\d{1,19}-\d{1,19}-\d{1,19}-\d{1,10}"
"""Regular expression of the text of an `AttemptId`."""


def parse_attempt_id(text: str) -> AttemptId:
    """Return the attempt of a text; raise ValueError if there is none."""
    if re.fullmatch(ATTEMPT_PATTERN, text, re.ASCII) is None:
        raise ValueError(text)
    term, stream, seq, n = map(int, text.split("-"))
    return AttemptId(term, StreamId(stream), seq, n)


class Moment(NamedTuple):
    """The two clocks at one instant, given to every step.

    `mono_s` never jumps and continues during suspend; all rules use it.
    `wall_ms` is milliseconds since 1970 (UTC), for timestamps that people read.
    """

    mono_s: float
    wall_ms: int


class Address(NamedTuple):
    """An address at which a peer may be dialled."""

    host: Host  #: IP address; a link-local IPv6 address includes its scope
    port: Port


Addresses = Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]
Hosts = Annotated[tuple[Host, ...], Meta(max_length=ADDRESSES_MAX)]


@dataclass(frozen=True, slots=True)
class DispatcherEpoch:
    """An epoch of this node, and the log stream that it writes in that epoch."""

    epoch: Epoch
    stream: StreamId


def covers(
    mine: Mapping[StreamId, int], theirs: Iterable[tuple[StreamId, int]]
) -> bool:
    """Return True if `mine` includes every entry that `theirs` includes."""
    return all(mine.get(stream, 0) >= seq for stream, seq in theirs)


def count_entries(vector: Iterable[tuple[StreamId, int]]) -> int:
    """Return the number of entries that a vector includes."""
    return sum(seq for _, seq in vector)
