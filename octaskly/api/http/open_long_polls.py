"""Ends long polls when their dispatcher is deposed, or when the API closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from octaskly.ports import DispatcherView

_CHECK_INTERVAL_S = 0.1
_DEPOSED_GRACE_S = 2.0
"""Seconds in which a deposed dispatcher still answers accepted requests.

Repeatable requests end at once: if its machine has failed, no response will come.
"""


class LongPolls:
    """The long polls of one API; a timer runs only while there are some."""

    def __init__(self, dispatcher: Callable[[], DispatcherView | None]) -> None:
        self._dispatcher = dispatcher
        self._timeouts: dict[asyncio.Timeout, tuple[DispatcherView | None, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.is_closing = False

    @asynccontextmanager
    async def cancel_when_dispatcher_ends(
        self, view: DispatcherView | None = None, *, is_repeatable: bool = False
    ) -> AsyncIterator[None]:
        """Raise TimeoutError in the block on `close`, or soon after `view` ended."""
        async with asyncio.timeout(0 if self.is_closing else None) as limit:
            self._timeouts[limit] = view, 0.0 if is_repeatable else _DEPOSED_GRACE_S
            self._schedule_check()
            try:
                yield
            finally:
                del self._timeouts[limit]

    def close(self) -> None:
        """End all long polls, now and in the future."""
        self.is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        now_s = asyncio.get_running_loop().time()
        for limit in self._timeouts:
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
        for limit, (view, grace_s) in self._timeouts.items():
            if view is None or limit.expired():
                continue
            is_over = now is None or (now.node, now.epoch) != (view.node, view.epoch)
            if not is_over:
                limit.reschedule(None)
            elif limit.when() is None:
                limit.reschedule(now_s + grace_s)
        if self._timeouts:
            self._schedule_check()
