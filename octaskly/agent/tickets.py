"""Requests that wait: for an answer of the core, or for a task to end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from octaskly.core.effects import NotHere, Reply
from octaskly.core.events import Event
from octaskly.core.merge import TaskRecord
from octaskly.core.model import TaskId
from octaskly.errors import NoDispatcher

TICKETS_MAX = 10_000  #: requests that wait for the core at once


class Tickets:
    """Pairs each question to the core with its answer."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        self._post = post
        self._open: dict[int, asyncio.Future[Reply]] = {}
        self._last = 0

    async def ask(self, event: Callable[[int], Event]) -> Reply:
        """Give the core an event with a fresh ticket and wait for its answer.

        Raises:
            NoDispatcher: too many requests wait already.
        """
        if len(self._open) >= TICKETS_MAX:
            raise NoDispatcher("too many requests wait", hint="retry in a second")
        self._last += 1
        ticket = self._last
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._open[ticket] = future
        self._post(event(ticket))
        try:
            return await future
        finally:
            self._open.pop(ticket, None)

    def answered(self, ticket: int, reply: Reply) -> None:
        """Release the request that waits for this ticket."""
        future = self._open.get(ticket)
        if future is not None and not future.done():
            future.set_result(reply)

    def close(self) -> None:
        """Tell everybody that this node answers no more."""
        for ticket in list(self._open):
            self.answered(ticket, NotHere())


class Waiters:
    """Long polls, woken when a task has a new durable state."""

    def __init__(self) -> None:
        self._events: dict[TaskId, set[asyncio.Event]] = {}

    def announced(self, tasks: tuple[TaskId, ...]) -> None:
        """Wake whoever waits for these tasks."""
        if not self._events:
            return
        for task in tasks:
            for event in self._events.get(task, ()):
                event.set()

    async def until_final(
        self,
        task: TaskId,
        read: Callable[[], Awaitable[TaskRecord]],
        timeout_s: float,
    ) -> TaskRecord:
        """Return what `read` returns once it is final, or when the time is over."""
        news = asyncio.Event()
        # Registered before the first read, so that no change falls between the two.
        self._events.setdefault(task, set()).add(news)
        try:
            async with asyncio.timeout(timeout_s):
                while not (record := await read()).state.is_final:
                    await news.wait()
                    news.clear()
                return record
        except TimeoutError:
            return await read()
        finally:
            events = self._events[task]
            events.discard(news)
            if not events:
                del self._events[task]
