"""Lets requests start in turn, so that many of one client do not delay those of others.

All connections that have data are read in one turn of the event loop. A request that
does much passes through several turns, so it would be late by all that 500 connections
of one client ask meanwhile, though each of their requests is cheap.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from math import inf
from typing import Final, Self

STARTS_PER_TURN: Final = 1
"""Requests of one owner in a turn of the event loop, and parts of long responses.

With 8, the submissions of others took 12 times as long while a client listed tasks over
512 connections, with 1 less than 5 times; 64 busy connections of one client get 4 %
fewer answers.
"""
LIGHT_MAX: Final = 8
"""Light requests of one owner that are answered at a time.

They may all go on in one turn, after the commit that they have waited for. So many
share a commit if one client submits tasks over many connections.
"""
WORK_S_MAX: Final = 0.05
"""A request counts for at most this long.

One that takes longer waits for something: its client, another node, the end of a task.
"""
QUIET_S: Final = 0.005
"""Time from the last request of another owner until a heavy request begins.

A client that sends one request after the other sends the next one sooner.
"""
HEAVY_WAIT_S: Final = 0.25  #: longest wait of a heavy request for others
TURNS_BEFORE_HEAVY: Final = 6
"""Turns in which requests begin that arrived during the last heavy step."""


class _Counted:
    """A request that counts until it ends, but for at most `WORK_S_MAX`."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end: Callable[[], None] | None = end
        self.until_s = asyncio.get_running_loop().time() + WORK_S_MAX

    def end(self) -> None:
        """Count the request no longer."""
        end, self._end = self._end, None
        if end is not None:
            end()


class _TimeLimit:
    """Ends those that have counted for `WORK_S_MAX`.

    One timer serves all, as nearly every request ends long before.
    """

    def __init__(self) -> None:
        self._counted: deque[_Counted] = deque()  #: most have ended meanwhile

    def count(self, end: Callable[[], None]) -> _Counted:
        """Return a request that counts from now on; `end` is called once."""
        counted = _Counted(end)
        self._counted.append(counted)
        if len(self._counted) == 1:
            self._set_timer()
        return counted

    def _set_timer(self) -> None:
        first_s = self._counted[0].until_s
        asyncio.get_running_loop().call_at(first_s, self._end_late)

    def _end_late(self) -> None:
        now_s = asyncio.get_running_loop().time()
        while self._counted:
            first = self._counted[0]
            if first.until_s > now_s:
                self._set_timer()
                return
            self._counted.popleft()
            first.end()


class RequestWork:
    """Implements `handler_types.Work`, while it is entered."""

    def __init__(self, turns: RequestTurns, owner: str) -> None:
        self._turns, self._owner = turns, owner
        self._counted: _Counted | None = None

    async def __aenter__(self) -> Self:
        self._counted = await self._turns.begin_light(self._owner)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """See `handler_types.Work`."""
        assert self._counted is not None
        self._counted.end()

    async def turn(self) -> None:
        """See `handler_types.Work`."""
        await self._turns.wait(self._owner)

    def heavy(self) -> contextlib.AbstractAsyncContextManager[None]:
        """See `handler_types.Work`."""
        return self._turns.heavy(self._owner)


class _HeavyTurn:
    """The turn of one owner's heavy requests."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0  #: requests that have it or wait for it


class RequestTurns:
    """Lets a few requests of each owner start in each turn of the event loop.

    An owner is a user of this machine, a node, or an address of the LAN.
    """

    def __init__(self) -> None:
        self._started: Counter[str] = Counter()  #: in this turn, by owner
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._light: dict[str, int] = {}  #: requests that are answered, by owner
        self._waiting_light: dict[str, deque[asyncio.Future[None]]] = {}
        self._heavy: dict[str, _HeavyTurn] = {}
        self._time_limit = _TimeLimit()
        self._latest = ("", -inf)  #: owner and time of the latest request
        self._latest_other_s = -inf  #: the latest time of another owner than that

    async def wait(self, owner: str) -> None:
        """Return when a request of an owner may start or go on; in order of arrival."""
        loop = asyncio.get_running_loop()
        if not self._started:
            loop.call_soon(self._begin_turn)
        if self._started[owner] < STARTS_PER_TURN:
            self._started[owner] += 1
            return
        place: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(owner, deque()).append(place)
        await place

    def work(self, owner: str) -> RequestWork:
        """Let a request be answered by the block that enters this.

        While another owner has requests in progress, this one may have only as many.
        So a client that asks for little waits for little.
        """
        return RequestWork(self, owner)

    async def begin_light(self, owner: str) -> _Counted:
        """Return when a light request may be answered; it counts until its `end`."""
        is_next = owner not in self._waiting_light and self._may_begin(owner)
        if is_next:
            self._add_light(owner)
        else:
            await self._wait_for_light(owner)
        counted = self._time_limit.count(partial(self._end_light, owner))
        if not is_next:  # The end of one request may let several begin.
            try:
                await self.wait(owner)
            except asyncio.CancelledError:
                counted.end()
                raise
        return counted

    @contextlib.asynccontextmanager
    async def heavy(self, owner: str) -> AsyncIterator[None]:
        """Let a step of milliseconds be done by the block.

        An owner has one of these at a time, and the requests of others pass before it.
        """
        await self._begin_heavy(owner)
        counted = self._time_limit.count(partial(self._end_heavy, owner))
        try:
            yield
        finally:
            counted.end()

    async def _wait_for_light(self, owner: str) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_light.setdefault(owner, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # It was to begin just now.
                self._end_light(owner)
            raise

    def _may_begin(self, owner: str) -> bool:
        own = self._light.get(owner, 0)
        return not own or (own < LIGHT_MAX and own <= min(self._light.values()))

    def _add_light(self, owner: str) -> None:
        self._light[owner] = self._light.get(owner, 0) + 1

    def _end_light(self, owner: str) -> None:
        """Count a request of an owner no longer, and let the next one begin."""
        self._note_time(owner)
        self._light[owner] -= 1
        if not self._light[owner]:
            del self._light[owner]
        for waiting, places in list(self._waiting_light.items()):
            while places and self._may_begin(waiting):
                place = places.popleft()
                if not place.done():  # Else its client has left.
                    self._add_light(waiting)
                    place.set_result(None)
            if not places:
                del self._waiting_light[waiting]

    async def _begin_heavy(self, owner: str) -> None:
        turn = self._heavy.setdefault(owner, _HeavyTurn())
        turn.users += 1
        try:
            await turn.lock.acquire()
        except asyncio.CancelledError:
            self._leave_heavy(owner)
            raise
        try:
            await self._let_others_pass(owner)
        except asyncio.CancelledError:
            self._end_heavy(owner)
            raise

    async def _let_others_pass(self, owner: str) -> None:
        """Wait until no other owner's request is answered, or long enough."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + HEAVY_WAIT_S
        for _ in range(TURNS_BEFORE_HEAVY):
            await asyncio.sleep(0)
        while self._others_are_busy(owner):
            if loop.time() >= until_s:
                return
            await asyncio.sleep(QUIET_S)

    def _end_heavy(self, owner: str) -> None:
        self._note_time(owner)
        self._heavy[owner].lock.release()
        self._leave_heavy(owner)

    def _leave_heavy(self, owner: str) -> None:
        turn = self._heavy[owner]
        turn.users -= 1
        if not turn.users:
            del self._heavy[owner]

    def _note_time(self, owner: str) -> None:
        if owner != self._latest[0]:
            self._latest_other_s = self._latest[1]
        self._latest = (owner, asyncio.get_running_loop().time())

    def _others_are_busy(self, owner: str) -> bool:
        if len(self._light) > (owner in self._light):
            return True
        latest, latest_s = self._latest
        others_s = self._latest_other_s if latest == owner else latest_s
        return asyncio.get_running_loop().time() < others_s + QUIET_S

    def _begin_turn(self) -> None:
        self._started.clear()
        for owner, places in list(self._waiting.items()):
            while places and self._started[owner] < STARTS_PER_TURN:
                place = places.popleft()
                if not place.done():  # Else its client has left.
                    place.set_result(None)
                    self._started[owner] += 1
            if not places:
                del self._waiting[owner]
        if self._started:
            asyncio.get_running_loop().call_soon(self._begin_turn)
