"""Ends long polls when their dispatcher is deposed, or when the API closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from octaskly.ports import DispatcherView

_CHECK_INTERVAL_S = 0.1
_DEPOSED_GRACE_S = 2.0
"""Seconds in which a deposed dispatcher still answers accepted requests.

Repeatable requests end at once: if its machine has failed, no response will come.
"""


class LongPolls:
    """The long polls of one API; a timer runs only while some wait for a node."""

    def __init__(self, dispatcher: Callable[[], DispatcherView | None]) -> None:
        self._dispatcher = dispatcher
        self._limits: set[asyncio.Timeout] = set()
        self._views: dict[asyncio.Timeout, tuple[DispatcherView, float]] = {}
        """The dispatcher that a long poll asks, and how long it may answer after it
        was deposed."""
        self._timer: asyncio.TimerHandle | None = None
        self.is_closing = False

    def limit(self, timeout_s: float | None) -> AbstractAsyncContextManager[None]:
        """Raise TimeoutError in the block on `close`, or after `timeout_s`."""
        return _LimitedBlock(self, 0 if self.is_closing else timeout_s)

    def cancel_when_dispatcher_ends(
        self, view: DispatcherView | None, *, is_repeatable: bool
    ) -> AbstractAsyncContextManager[None]:
        """Raise TimeoutError in the block on `close`, or soon after `view` ended."""
        grace_s = 0.0 if is_repeatable else _DEPOSED_GRACE_S
        asked = None if view is None else (view, grace_s)
        return _LimitedBlock(self, 0 if self.is_closing else None, asked)

    def add(
        self, limit: asyncio.Timeout, asked: tuple[DispatcherView, float] | None
    ) -> None:
        """Let a limit be reached early."""
        self._limits.add(limit)
        if asked is not None:
            self._views[limit] = asked
            self._schedule_check()

    def remove(self, limit: asyncio.Timeout) -> None:
        """Leave a limit alone, because its block has ended."""
        self._limits.discard(limit)
        self._views.pop(limit, None)

    def close(self) -> None:
        """End all long polls, now and in the future."""
        self.is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        now_s = asyncio.get_running_loop().time()
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(now_s)

    def _schedule_check(self) -> None:
        if self._timer is None and not self.is_closing:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_CHECK_INTERVAL_S, self._check_dispatcher)

    def _check_dispatcher(self) -> None:
        self._timer = None
        now = self._dispatcher()
        now_s = asyncio.get_running_loop().time()
        for limit, (view, grace_s) in self._views.items():
            if limit.expired():
                continue
            is_over = now is None or (now.node, now.epoch) != (view.node, view.epoch)
            if not is_over:
                limit.reschedule(None)
            elif limit.when() is None:
                limit.reschedule(now_s + grace_s)
        if self._views:
            self._schedule_check()


class _LimitedBlock:
    """A block with a time limit, which its `LongPolls` may bring forward."""

    def __init__(
        self,
        polls: LongPolls,
        timeout_s: float | None,
        asked: tuple[DispatcherView, float] | None = None,
    ) -> None:
        self._polls, self._asked = polls, asked
        self._limit = asyncio.timeout(timeout_s)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._polls.add(self._limit, self._asked)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._polls.remove(self._limit)
        await self._limit.__aexit__(kind, error, traceback)
