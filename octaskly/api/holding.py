"""Ends what lasts under a token that is no good any more.

A request is judged when it comes in. What lasts longer, a stream or a long poll, is
judged again while it does; what changes something is left to finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from octaskly.ports import Principal

LOOK_S = 0.25

IsGood = Callable[[Principal], bool]


class TokenEnded(Exception):
    """The token under which a request lasts was revoked, or has expired."""


class Holding:
    """The requests of one API that may last; a timer runs only while there are some."""

    def __init__(self, is_good: IsGood) -> None:
        self._is_good = is_good
        self._limits: dict[asyncio.Timeout, Principal] = {}
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def held(self, principal: Principal) -> AsyncIterator[None]:
        """Raise TokenEnded in the block soon after the end of a principal's token."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limits[limit] = principal
                self._arm()
                try:
                    yield
                finally:
                    del self._limits[limit]
        except TimeoutError:
            if limit.expired():
                raise TokenEnded from None
            raise

    def _arm(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for limit, principal in self._limits.items():
            if not limit.expired() and not self._is_good(principal):
                limit.reschedule(now_s)
        if self._limits:
            self._arm()
