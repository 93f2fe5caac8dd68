"""What happens in the mesh, from the log of the past to those who listen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from octaskly.core.change_feed import FeedItem, FeedPage, FeedPosition, StreamExtent
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import StreamId, TaskId
from octaskly.core.model.tasks import Attempt

Ended = tuple[int, TaskRecord]
"""A member of an array that has ended: its place, and what is known but its envelope.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt, with its task."""

    record: TaskRecord
    attempt: Attempt
    assigned_ms: int | None = None  #: of one that runs; its worker tells of its start


@dataclass(frozen=True, slots=True)
class Lately:
    """What runs, and what ended of late."""

    running: tuple[Run, ...]  #: the oldest tasks first
    ended: tuple[Run, ...]  #: the latest first
    is_cut: bool  #: more may have ended in that time


class Past(Protocol):
    """The log in the order of timestamps."""

    async def reaches(self, hlc: int) -> tuple[int, tuple[StreamExtent, ...]]:
        """Return how far each stream goes at that time: latest timestamp, streams."""

    async def history(self, vector: Mapping[StreamId, int], limit: int) -> FeedPage:
        """Read entries beyond `vector` across streams, in the order of timestamps."""

    async def lately(self, since_ms: int, limit: int) -> Lately:
        """Read attempts that run, and those that ended since; so many of each."""

    async def ended(
        self, array: TaskId, first: int, last: int, limit: int
    ) -> tuple[Ended, ...]:
        """Read members that have ended, from a place to another, with outputs.

        In order; the members at both ends are included.
        """


class Listening(Protocol):
    """One reader of what happens."""

    async def more(self) -> Sequence[FeedItem]:
        """Wait for news; raise NotDispatcher if this reader is too slow for them."""


class Telling(Protocol):
    """An agent that tells what happens."""

    def listen(
        self, after: FeedPosition | None
    ) -> AbstractAsyncContextManager[Listening]:
        """Hear what happens to tasks and nodes, from a place in the log or from now on.

        First comes how each node is now.

        Raises:
            NotDispatcher: another node is dispatcher.
        """

    async def ended(
        self, array: TaskId, first: int, last: int, limit: int
    ) -> tuple[Ended, ...]:
        """Read members that have ended; see `Past`."""

    async def lately(self, since_ms: int, limit: int) -> Lately:
        """Read attempts that run, and those that ended since; so many of each.

        Raises:
            NotDispatcher: another node is dispatcher.
        """
