"""What happens in the mesh, from the log of the past to those who listen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from octaskly.core.merge import TaskRecord
from octaskly.core.model import StreamId, TaskId
from octaskly.core.timeline import History, News, Place, Reach

Ended = tuple[int, TaskRecord]
"""A member of an array that has ended: its place, and what is known but its envelope.
"""


class Past(Protocol):
    """The log in the order of timestamps."""

    async def reaches(self, hlc: int) -> tuple[int, tuple[Reach, ...]]:
        """Return how far each stream goes at that time: latest timestamp, streams."""

    async def history(self, vector: Mapping[StreamId, int], limit: int) -> History:
        """Read entries beyond `vector` across streams, in the order of timestamps."""

    async def ended(
        self, array: TaskId, first: int, last: int, limit: int
    ) -> tuple[Ended, ...]:
        """Read members that have ended, from a place to another, with outputs.

        In order; the members at both ends are included.
        """


class Listening(Protocol):
    """One reader of what happens."""

    async def more(self) -> Sequence[News]:
        """Wait for news; raise NotDispatcher if this reader is too slow for them."""


class Telling(Protocol):
    """An agent that tells what happens."""

    def listen(self, after: Place | None) -> AbstractAsyncContextManager[Listening]:
        """Hear what happens to tasks and nodes, from a place in the log or from now on.

        First comes how each node is now.

        Raises:
            NotDispatcher: another node is dispatcher.
        """

    async def ended(
        self, array: TaskId, first: int, last: int, limit: int
    ) -> tuple[Ended, ...]:
        """Read members that have ended; see `Past`."""
