"""Interfaces for the change feed: event source and subscriptions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from octaskly.core.change_feed import FeedItem, FeedPosition
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import TaskId
from octaskly.core.model.tasks import Attempt

EndedMember = tuple[int, TaskRecord]
"""Position and record of an ended member of an array. The record has no envelope."""


@dataclass(frozen=True, slots=True)
class AttemptWithTask:
    """One attempt, with its task."""

    record: TaskRecord
    attempt: Attempt
    assigned_ms: int | None = None  #: for a running attempt: when it was assigned


@dataclass(frozen=True, slots=True)
class RecentAttempts:
    """Running attempts, and those that ended recently."""

    running: tuple[AttemptWithTask, ...]  #: oldest task first
    ended: tuple[AttemptWithTask, ...]  #: latest end first
    is_truncated: bool  #: `ended` may be incomplete


class EventSubscription(Protocol):
    """One subscription to the change feed."""

    async def next_items(self) -> Sequence[FeedItem]:
        """Wait for the next items."""


class EventSource(Protocol):
    """The change feed of an agent."""

    def subscribe(
        self, after: FeedPosition | None
    ) -> AbstractAsyncContextManager[EventSubscription]:
        """Subscribe to changes of tasks and nodes, after a position or from now on.

        The first items are the current states of all nodes.

        Raises:
            NotDispatcher: Another node is dispatcher.
        """

    async def read_ended_members(
        self, array: TaskId, first: int, last: int, limit: int
    ) -> tuple[EndedMember, ...]:
        """Read ended members; see `Store`."""

    async def read_recent_attempts(self, since_ms: int, limit: int) -> RecentAttempts:
        """Read running and recently ended attempts; see `Store`.

        Raises:
            NotDispatcher: Another node is dispatcher.
        """
