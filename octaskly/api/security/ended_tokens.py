"""Ends running requests when their token is revoked or expires."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from octaskly.ports.tokens import Principal

CHECK_INTERVAL_S = 0.25

IsTokenValid = Callable[[Principal], bool]


class TokenEnded(Exception):
    """The token of a running request was revoked or has expired."""


class TokenMonitor:
    """Cancels long requests whose token has ended; its timer runs only if needed."""

    def __init__(self, is_token_valid: IsTokenValid) -> None:
        self._is_token_valid = is_token_valid
        self._timeouts: dict[asyncio.Timeout, Principal] = {}
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def cancel_when_token_ends(self, principal: Principal) -> AsyncIterator[None]:
        """Raise TokenEnded in the block soon after the principal's token ends."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._timeouts[limit] = principal
                self._schedule_check()
                try:
                    yield
                finally:
                    del self._timeouts[limit]
        except TimeoutError:
            if limit.expired():
                raise TokenEnded from None
            raise

    def _schedule_check(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(CHECK_INTERVAL_S, self._check_tokens)

    def _check_tokens(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for limit, principal in self._timeouts.items():
            if not limit.expired() and not self._is_token_valid(principal):
                limit.reschedule(now_s)
        if self._timeouts:
            self._schedule_check()
