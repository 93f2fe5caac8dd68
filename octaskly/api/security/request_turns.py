"""Lets requests start in turn, so that many of one client do not delay those of others.

All connections that have data are read in one turn of the event loop. A request that
does much passes through several turns, so it would be late by all that 500 connections
of one client ask meanwhile, though each of their requests is cheap.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import takewhile
from math import inf
from typing import Final, Self

from octaskly.system.clock import loop_time

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


class RequestWork:
    """A request that is answered, while it counts among those of its client.

    It counts among those of its owner until it ends, but for at most `WORK_S_MAX`.
    While another owner has requests in progress, this one may have only as many. So a
    client that asks for little waits for little.
    """

    def __init__(self, turns: RequestTurns, owner: str) -> None:
        self._turns = turns
        self.owner = owner

    async def __aenter__(self) -> Self:
        if not self._turns.begin_light(self):
            await self._turns.wait_for_light(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._turns.end_light(self)

    def end(self) -> None:
        """Count it no longer, because it waits for an event."""
        self._turns.end_light(self)

    async def turn(self) -> None:
        """Wait until the next part of a long response may be written."""
        await self._turns.wait(self.owner)

    def heavy(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Let the requests of others pass before a step that takes milliseconds."""
        return self._turns.heavy(self.owner)


class _Once:
    """Calls a function once, however often it is called."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function

    def __call__(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()


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
        self._unanswered: dict[str, int] = {}  #: requests that have arrived, by owner
        self._started: Counter[str] = Counter()  #: in this turn, by owner
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._light: dict[str, int] = {}  #: requests that are answered, by owner
        self._counted: OrderedDict[RequestWork, float] = OrderedDict()
        """The same, as they began, and until when each counts, by `loop_time`.

        The late ones count until the next request looks, or the timer.
        """
        self._has_timer = False  #: only while some wait for the end of others
        self._waiting_light: dict[
            str, deque[tuple[RequestWork, asyncio.Future[None]]]
        ] = {}
        self._heavy: dict[str, _HeavyTurn] = {}
        self._latest = ("", -inf)  #: owner and time of the latest request
        self._latest_other_s = -inf  #: the latest time of another owner than that

    def add_unanswered(self, owner: str, count: int) -> None:
        """Note that the headers of requests of an owner have arrived."""
        self._unanswered[owner] = self._unanswered.get(owner, 0) + count

    def remove_unanswered(self, owner: str, count: int) -> None:
        """Note that requests of an owner are answered, or that their client left."""
        self._unanswered[owner] -= count
        if not self._unanswered[owner]:
            del self._unanswered[owner]

    def is_only_request(self, owner: str) -> bool:
        """Return True if a request of an owner delays no other by starting now."""
        return self._unanswered.get(owner) == 1

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

    def begin_light(self, work: RequestWork) -> bool:
        """Return True if a light request may be answered now; it counts from now on."""
        owner = work.owner
        if self._counted:
            self._end_late()
        if owner in self._waiting_light or not self._may_begin(owner):
            return False
        self._add_light(work)
        return True

    async def wait_for_light(self, work: RequestWork) -> None:
        """Return when a light request may be answered that had to wait."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_light.setdefault(work.owner, deque()).append((work, place))
        if not self._has_timer:
            self._set_timer()
        try:
            await place
            await self.wait(work.owner)  # The end of one may let several begin.
        except asyncio.CancelledError:
            self.end_light(work)  # It may have begun just now.
            raise

    @contextlib.asynccontextmanager
    async def heavy(self, owner: str) -> AsyncIterator[None]:
        """Let a step of milliseconds be done by the block.

        An owner has one of these at a time, and the requests of others pass before it.
        """
        await self._begin_heavy(owner)
        end = _Once(partial(self._end_heavy, owner))
        late = asyncio.get_running_loop().call_later(WORK_S_MAX, end)
        try:
            yield
        finally:
            late.cancel()
            end()

    def _may_begin(self, owner: str) -> bool:
        light = self._light
        if owner not in light:
            return True
        return light[owner] < LIGHT_MAX and light[owner] <= min(light.values())

    def _add_light(self, work: RequestWork) -> None:
        owner, light = work.owner, self._light
        light[owner] = light[owner] + 1 if owner in light else 1
        self._counted[work] = loop_time() + WORK_S_MAX

    def end_light(self, work: RequestWork) -> None:
        """Count a request no longer, if it still does, and let the next one begin."""
        if work not in self._counted:
            return
        del self._counted[work]
        owner, light = work.owner, self._light
        self._note_time(owner)
        light[owner] -= 1
        if not light[owner]:
            del light[owner]
        if self._waiting_light:
            self._begin_waiting()

    def _begin_waiting(self) -> None:
        for waiting, places in [*self._waiting_light.items()]:
            while places and self._may_begin(waiting):
                work, place = places.popleft()
                if not place.done():  # Else its client has left.
                    self._add_light(work)
                    place.set_result(None)
            if not places:
                del self._waiting_light[waiting]

    def _end_late(self) -> None:
        """Count no longer those that have counted for `WORK_S_MAX`."""
        now_s = loop_time()
        late = list(takewhile(lambda item: item[1] <= now_s, self._counted.items()))
        for work, _ in late:
            self.end_light(work)

    def _set_timer(self) -> None:
        self._has_timer = True
        delay_s = next(iter(self._counted.values())) - loop_time()
        asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._has_timer = False
        self._end_late()
        if self._waiting_light:
            self._set_timer()

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
        until_s = loop_time() + HEAVY_WAIT_S
        for _ in range(TURNS_BEFORE_HEAVY):
            await asyncio.sleep(0)
        while self._others_are_busy(owner):
            if loop_time() >= until_s:
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
        self._latest = (owner, loop_time())

    def _others_are_busy(self, owner: str) -> bool:
        self._end_late()
        if len(self._light) > (owner in self._light):
            return True
        latest, latest_s = self._latest
        others_s = self._latest_other_s if latest == owner else latest_s
        return loop_time() < others_s + QUIET_S

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
