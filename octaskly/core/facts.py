"""What the log says: facts about tasks, never orders and never overwritten.

An entry is one fact in one stream. Entries of a stream are written by one node in
one epoch, numbered from 1 without gaps, and never truncated.
"""

from __future__ import annotations

from dataclasses import dataclass

from octaskly.core.model import AttemptId, NodeId, Outcome, StreamId, TaskId, TaskSpec


@dataclass(frozen=True, slots=True)
class Submitted:
    """A task was accepted."""

    spec: TaskSpec

    @property
    def task(self) -> TaskId:
        """The task that this is about."""
        return self.spec.id


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Somebody cancelled the task; it wins over everything but success."""

    task: TaskId
    by: str


@dataclass(frozen=True, slots=True)
class Assigned:
    """An attempt was handed to a worker."""

    task: TaskId
    attempt: AttemptId
    node: NodeId


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt ended; `outcome.state` RELEASED means that another may follow."""

    task: TaskId
    attempt: AttemptId
    node: NodeId
    outcome: Outcome


Fact = Submitted | CancelAsked | Assigned | Finished


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact at its place in the log; identity is (stream, seq)."""

    stream: StreamId
    seq: int
    hlc: int  #: hybrid timestamp: milliseconds since 2020 << 15 | counter
    fact: Fact


HLC_EPOCH_MS = 1_577_836_800_000  #: 2020-01-01T00:00:00Z
HLC_COUNTER_BITS = 15
HLC_MAX = 1 << 62  #: no clock has gone so far; what is beyond cannot be counted on from
HLC_AHEAD_MS = 3_600_000  #: so far this node's clock follows one that is ahead of it


def hlc_of(wall_ms: int) -> int:
    """Return the first hybrid timestamp of a millisecond."""
    return (wall_ms - HLC_EPOCH_MS) << HLC_COUNTER_BITS


def hlc_ahead(wall_ms: int) -> int:
    """Return the latest hybrid timestamp that is taken over from others.

    A clock that is wrong somewhere must not carry all others along.
    """
    return hlc_of(wall_ms + HLC_AHEAD_MS)


def hlc_next(last: int, wall_ms: int) -> int:
    """Return a hybrid timestamp above `last` and not behind the wall clock."""
    return max(last + 1, hlc_of(wall_ms))
