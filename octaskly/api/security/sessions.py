"""Codes that open a page: each is good once, soon, and on the node that made it."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

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


CODE_S: Final = 60.0
CODES_MAX: Final = 16
"""Of more, the oldest goes: whoever makes one wants the newest to work."""

CODE_CHARS_MAX: Final = 128
_RANDOM_BYTES: Final = 32
ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """Who made a code, and for whom."""

    principal: Principal
    user: int | None  #: who alone may bring it, through loopback; None: whoever has it
    until_s: float  #: on the monotonic clock

    def is_for(self, users: frozenset[int]) -> bool:
        """Whether it is good for who is at the other end of a loopback connection.

        Args:
            users: All who may be that; empty where the connection is another one.
        """
        # Root brings it where a relay does so for a user, as into a virtual machine.
        return self.user is None or (bool(users) and users <= {self.user, ROOT})


class Codes:
    """The codes of one node that are open."""

    def __init__(self) -> None:
        self._open: dict[str, Opened] = {}

    def make(self, principal: Principal, *, user: int | None, now_s: float) -> str:
        """Return a new code."""
        code = secrets.token_urlsafe(_RANDOM_BYTES)
        self._open[code] = Opened(principal, user, now_s + CODE_S)
        if len(self._open) > CODES_MAX:
            del self._open[next(iter(self._open))]
        return code

    def take(self, given: str, now_s: float) -> Opened | None:
        """Return what a code was made for, and burn it; None if there is none such."""
        found = None
        # All are compared, each in constant time: how long it takes tells nothing.
        for code in self._open:
            if hmac.compare_digest(code.encode(), given.encode("utf-8", "replace")):
                found = code
        opened = None if found is None else self._open.pop(found)
        return opened if opened is not None and now_s < opened.until_s else None
