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

EndedMember = tuple[int, TaskRecord]
"""A member of an array that has ended: its place, and what is known but its envelope.
"""


@dataclass(frozen=True, slots=True)
class AttemptWithTask:
    """One attempt, with its task."""

    record: TaskRecord
    attempt: Attempt
    assigned_ms: int | None = None  #: of one that runs; its worker tells of its start


@dataclass(frozen=True, slots=True)
class RecentAttempts:
    """What runs, and what ended of late."""

    running: tuple[AttemptWithTask, ...]  #: the oldest tasks first
    ended: tuple[AttemptWithTask, ...]  #: the latest first
    is_truncated: bool  #: more may have ended in that time


class LogReader(Protocol):
    """The log in the order of timestamps."""

    async def stream_extents_at(self, hlc: int) -> tuple[int, tuple[StreamExtent, ...]]:
        """Return how far each stream goes at that time: latest timestamp, streams."""

    async def read_feed_page(
        self, vector: Mapping[StreamId, int], limit: int
    ) -> FeedPage:
        """Read entries beyond `vector` across streams, in the order of timestamps."""

    async def read_recent_attempts(self, since_ms: int, limit: int) -> RecentAttempts:
        """Read attempts that run, and those that ended since; so many of each."""

    async def read_ended_members(
        self, array: TaskId, first: int, last: int, limit: int
    ) -> tuple[EndedMember, ...]:
        """Read members that have ended, from a place to another, with outputs.

        In order; the members at both ends are included.
        """


class EventSubscription(Protocol):
    """One reader of what happens."""

    async def next_items(self) -> Sequence[FeedItem]:
        """Wait for news; raise NotDispatcher if this reader is too slow for them."""


class EventSource(Protocol):
    """An agent that tells what happens."""

    def subscribe(
        self, after: FeedPosition | None
    ) -> AbstractAsyncContextManager[EventSubscription]:
        """Hear what happens to tasks and nodes, from a place in the log or from now on.

        First comes how each node is now.

        Raises:
            NotDispatcher: another node is dispatcher.
        """

    async def read_ended_members(
        self, array: TaskId, first: int, last: int, limit: int
    ) -> tuple[EndedMember, ...]:
        """Read members that have ended; see `LogReader`."""

    async def read_recent_attempts(self, since_ms: int, limit: int) -> RecentAttempts:
        """Read attempts that run, and those that ended since; so many of each.

        Raises:
            NotDispatcher: another node is dispatcher.
        """
