"""Ends long waits early: when the dispatcher they wait on is deposed, or at close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from octaskly.ports import DispatcherView

_LOOK_S = 0.1
_GRACE_S = 2.0
"""A dispatcher that hands over still answers what it has accepted.

What may be repeated does not wait for that: if the machine died, nothing would come.
"""


class Waits:
    """All waits of one API; a timer runs only while there are some."""

    def __init__(self, dispatcher: Callable[[], DispatcherView | None]) -> None:
        self._dispatcher = dispatcher
        self._limits: dict[asyncio.Timeout, tuple[DispatcherView | None, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.is_closing = False

    @asynccontextmanager
    async def bounded(
        self, view: DispatcherView | None = None, *, is_repeatable: bool = False
    ) -> AsyncIterator[None]:
        """Raise TimeoutError in the block at close, or soon after `view` is over."""
        async with asyncio.timeout(0 if self.is_closing else None) as limit:
            self._limits[limit] = view, 0.0 if is_repeatable else _GRACE_S
            self._arm()
            try:
                yield
            finally:
                del self._limits[limit]

    def close(self) -> None:
        """End all waits, now and in future."""
        self.is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        now_s = asyncio.get_running_loop().time()
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(now_s)

    def _arm(self) -> None:
        if self._timer is None and not self.is_closing:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._dispatcher()
        now_s = asyncio.get_running_loop().time()
        for limit, (view, grace_s) in self._limits.items():
            if view is None or limit.expired():
                continue
            is_over = now is None or (now.node, now.epoch) != (view.node, view.epoch)
            if not is_over:
                limit.reschedule(None)
            elif limit.when() is None:
                limit.reschedule(now_s + grace_s)
        if self._limits:
            self._arm()
