"""Tells those who asked for it that tasks have ended, until they have heard it.

The log says who was told. So the next dispatcher goes on where this one stopped, and
tells again only what this one had no time to write down.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from urllib.parse import urlsplit

from octaskly.agent.gateway.mesh_view import MeshView
from octaskly.api.webhook_sender import Poster
from octaskly.core.change_feed import TaskEvent, end_event
from octaskly.core.events import Event, TasksNotified
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.backoff import backoff
from octaskly.core.model.ids import NO_EPOCH
from octaskly.errors import MeshError, StoreError
from octaskly.ports import Clock, Log
from octaskly.system.log import Logger

HELD_MAX = 10_000  #: ended tasks in hand; others wait in the store
AT_ONCE = 8
AT_ONCE_PER_HOST = 2  #: so that one that never answers holds up nobody else
TRIES_MAX = 10
GIVE_UP_S = 3600.0
RETRY_BASE_S = 5.0
RETRY_CAP_S = 900.0
LOOK_S = 15.0  #: an end that nobody announced is found so soon
GATHER_S = 0.2  #: of tasks that end, before the store is asked which are meant
FRESH_MAX = 100  #: read from the store at a look


@dataclass(slots=True)
class _Notice:
    """One ended task."""

    key: int
    news: TaskEvent
    url: str
    host: str
    since_s: float
    tries: int = 0


class Webhooks:
    """Sends at most `AT_ONCE` messages at a time, while this node is dispatcher.

    Not before a standby has the ends, too: no failover takes back what was told.
    """

    def __init__(
        self,
        store: Log,
        view: MeshView,
        poster: Poster,
        clock: Clock,
        log: Logger,
        post: Callable[[Event], None],
        when_safe: Callable[[], Awaitable[object]],
    ) -> None:
        self._store = store
        self._view = view
        self._poster = poster
        self._clock = clock
        self._log = log
        self._post = post
        self._when_safe = when_safe
        self._epoch = NO_EPOCH
        self._held: set[int] = set()
        self._waiting: dict[str, list[tuple[float, int, _Notice]]] = {}
        """By host, the one that is due first at the front."""
        self._sending: Counter[str] = Counter()
        self._ended = asyncio.Event()
        self._moved = asyncio.Event()
        self._looked_s = 0.0
        self._found: int | None = None  #: the store's count, once all of it is in hand

    def ended(self) -> None:
        """Tasks have ended, or this node may be dispatcher since now."""
        if not self._ended.is_set():  # Else a look is coming, and need not be hurried.
            self._ended.set()
            self._moved.set()

    async def run(self) -> None:
        """Send for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._look()
                    for notice in self._due():
                        tasks.create_task(self._send(notice))
                    await self._rest()
        finally:
            await self._poster.close()

    async def _look(self) -> None:
        """Ask the store who is to be told, now and then."""
        now_s = self._clock.now().mono_s
        if not self._view.is_serving:
            self._forget()
            self._ended.clear()
            self._looked_s = now_s
            return
        if self._view.epoch != self._epoch:
            self._forget()
            self._epoch = self._view.epoch
        since_s = now_s - self._looked_s
        if since_s < (GATHER_S if self._ended.is_set() else LOOK_S):
            return
        self._ended.clear()
        self._looked_s = now_s
        count = self._store.ends_to_tell
        if count == self._found:
            return  # Of what ended since the last look, nobody is to be told.
        limit = min(FRESH_MAX, HELD_MAX - len(self._held))
        try:
            found = await self._store.to_notify(frozenset(self._held), limit)
            if found.fresh:
                await self._when_safe()
        except (StoreError, MeshError):
            # It is asked again; who cares for the disk says what is wrong, and another
            # dispatcher tells what this one cannot.
            return
        if self._view.epoch != self._epoch:
            return
        self._held &= found.keys
        for key, record in found.fresh:
            self._take(key, record, now_s)
        self._found = count if len(found.fresh) < limit else None
        if found.fresh and self._found is None:
            self._ended.set()  # There may be more.

    def _take(self, key: int, record: TaskRecord, now_s: float) -> None:
        assert record.spec is not None
        assert record.spec.options is not None
        url = record.spec.options.notify_url
        host = urlsplit(url).netloc
        self._held.add(key)
        news = end_event(record, self._clock.now().wall_ms)
        self._wait(_Notice(key, news, url, host, now_s), now_s)

    def _wait(self, notice: _Notice, due_s: float) -> None:
        heappush(self._waiting.setdefault(notice.host, []), (due_s, notice.key, notice))

    def _due(self) -> list[_Notice]:
        """Take those that can be sent now."""
        now_s = self._clock.now().mono_s
        due: list[_Notice] = []
        for host, waiting in self._waiting.items():
            while (
                waiting
                and waiting[0][0] <= now_s
                and self._sending[host] < AT_ONCE_PER_HOST
                and self._sending.total() < AT_ONCE
            ):
                due.append(heappop(waiting)[2])
                self._sending[host] += 1
        self._waiting = {host: w for host, w in self._waiting.items() if w}
        return due

    async def _rest(self) -> None:
        """Wait until there may be something to do."""
        now_s = self._clock.now().mono_s
        due_s = [self._looked_s + (GATHER_S if self._ended.is_set() else LOOK_S)]
        if self._sending.total() < AT_ONCE:
            due_s += [
                waiting[0][0]
                for host, waiting in self._waiting.items()
                if self._sending[host] < AT_ONCE_PER_HOST
            ]
        try:
            async with asyncio.timeout(max(0.0, min(due_s) - now_s)):
                await self._moved.wait()
        except TimeoutError:
            pass
        self._moved.clear()

    async def _send(self, notice: _Notice) -> None:
        epoch = self._epoch
        try:
            why = await self._poster.send(
                notice.url,
                notice.news,
                self._view.names,
                self._clock.now().wall_ms,
            )
        finally:
            self._sending -= Counter((notice.host,))  # Drops what is zero.
            self._moved.set()
        if epoch != self._epoch:
            return  # The next dispatcher tells it again.
        notice.tries += 1
        if why is not None and not self._is_hopeless(notice):
            wait_s = backoff(notice.tries, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
            now_s = self._clock.now().mono_s
            self._wait(notice, now_s + self._clock.draw() * wait_s)
            return
        if why is not None:
            self._log.warning(
                "webhook given up",
                task=notice.news.record.name,
                receiver=notice.host,
                tries=notice.tries,
                error=why,
            )
        self._post(TasksNotified((notice.news.record.id,)))

    def _is_hopeless(self, notice: _Notice) -> bool:
        late_s = self._clock.now().mono_s - notice.since_s
        return notice.tries >= TRIES_MAX or late_s >= GIVE_UP_S

    def _forget(self) -> None:
        """Another dispatcher tells from now on, or another one has told so far."""
        self._epoch = NO_EPOCH
        self._held.clear()
        self._waiting.clear()
        self._looked_s = 0.0
        self._found = None
