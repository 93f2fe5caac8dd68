"""Ends long polls: in time, after a change of dispatcher, or when the API closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from math import inf
from types import TracebackType

from octaskly.ports.gateway import DispatcherView
from octaskly.system.clock import loop_time

_CHECK_INTERVAL_S = 0.1
_DEPOSED_GRACE_S = 2.0
"""Seconds in which a deposed dispatcher still answers accepted requests.

Repeatable requests end at once: if its machine has failed, no response will come.
"""


class LongPolls:
    """The long polls of one API.

    One timer serves all. It may fire for a long poll that has ended, which is cheaper
    than a timer for each: most end long before their limit.
    """

    def __init__(self, dispatcher: Callable[[], DispatcherView | None]) -> None:
        self._dispatcher = dispatcher
        self._limits: dict[asyncio.Timeout, float] = {}
        """When each is reached, by `loop_time`; infinity if it has no limit yet."""
        self._views: dict[asyncio.Timeout, tuple[DispatcherView, float]] = {}
        """The dispatchers asked, and how long each may answer once it is deposed."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf
        self.is_closing = False

    def limit(self, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """Raise TimeoutError in the block after `timeout_s`, or on `close`."""
        return _LimitedBlock(self, timeout_s, None)

    def cancel_when_dispatcher_ends(
        self, view: DispatcherView | None, *, is_repeatable: bool
    ) -> AbstractAsyncContextManager[None]:
        """Raise TimeoutError in the block on `close`, or soon after `view` ended."""
        grace_s = 0.0 if is_repeatable else _DEPOSED_GRACE_S
        return _LimitedBlock(self, inf, None if view is None else (view, grace_s))

    def close(self) -> None:
        """End all long polls, now and in the future."""
        self.is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        now_s = loop_time()
        for limit in self._limits:
            _end(limit, now_s)

    def add(
        self,
        limit: asyncio.Timeout,
        timeout_s: float,
        asked: tuple[DispatcherView, float] | None,
    ) -> None:
        """End a block that has begun, unless `remove` is called before."""
        now_s = loop_time()
        at_s = self._limits[limit] = now_s + timeout_s
        if self.is_closing:
            limit.reschedule(now_s)
            return
        if asked is not None:
            self._views[limit] = asked
            at_s = min(at_s, now_s + _CHECK_INTERVAL_S)
        if at_s < self._timer_s:
            self._set_timer(at_s)

    def remove(self, limit: asyncio.Timeout) -> None:
        """Leave a limit alone, because its block has ended."""
        del self._limits[limit]
        self._views.pop(limit, None)

    def _set_timer(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = at_s
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(at_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_s = None, inf
        now_s = loop_time()
        self._compare_dispatchers(now_s)
        next_s = now_s + _CHECK_INTERVAL_S if self._views else inf
        for limit, at_s in self._limits.items():
            if at_s <= now_s:
                _end(limit, now_s)
            else:
                next_s = min(next_s, at_s)
        if next_s < inf:
            self._set_timer(next_s)

    def _compare_dispatchers(self, now_s: float) -> None:
        now = self._dispatcher() if self._views else None
        for limit, (view, grace_s) in self._views.items():
            is_over = now is None or (now.node, now.epoch) != (view.node, view.epoch)
            if not is_over:
                self._limits[limit] = inf
            elif self._limits[limit] == inf:
                self._limits[limit] = now_s + grace_s


def _end(limit: asyncio.Timeout, now_s: float) -> None:
    if limit.when() is None:  # Else it was reached already.
        limit.reschedule(now_s)


class _LimitedBlock:
    """A block that its `LongPolls` may end."""

    def __init__(
        self,
        polls: LongPolls,
        timeout_s: float,
        asked: tuple[DispatcherView, float] | None,
    ) -> None:
        self._polls, self._timeout_s, self._asked = polls, timeout_s, asked
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._polls.add(self._limit, self._timeout_s, self._asked)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._polls.remove(self._limit)
        await self._limit.__aexit__(kind, error, traceback)
