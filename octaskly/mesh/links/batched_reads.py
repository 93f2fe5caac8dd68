"""Read events of the links, which the event loop handles together while many arrive.

To wake the event loop for one small frame costs more than to decrypt and decode it. A
hundred workers whose tasks last a second send some 1600 frames a second, each at
another time.

The rule: while `READS_MANY` reads take place within `WINDOW_S`, a node with at least
`LINKS_MANY` links reads them once in `BATCH_S`. Other events, such as requests of
clients, do not wait, and the links of a small or idle mesh are read at once.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final

BATCH_S: Final = 0.005  #: a report waits about as long for its step: see `gathering`
WINDOW_S: Final = 0.05
READS_MANY: Final = 20  #: fewer in a window would be one or two in a batch
LINKS_MANY: Final = 16


class BatchedReads:
    """Calls back the links that have received something.

    `add_reader` and `remove_reader` are as those of an event loop. The links are in a
    set of the kernel, which the event loop watches as one descriptor.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._readable = select.epoll()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._reads = 0  #: in the current window
        self._window_end_s = 0.0
        self._batch: asyncio.TimerHandle | None = None  #: the next one, while many come
        self._loop.add_reader(self._readable.fileno(), self._read)

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Call a function while a descriptor is readable; it replaces another."""
        if fd not in self._callbacks:
            self._readable.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def remove_reader(self, fd: int) -> bool:
        """Call no function for a descriptor; return True if there was one."""
        if self._callbacks.pop(fd, None) is None:
            return False
        self._readable.unregister(fd)
        return True

    def close(self) -> None:
        """Call back nothing any more."""
        if self._batch is not None:
            self._batch.cancel()
        self._loop.remove_reader(self._readable.fileno())
        self._readable.close()
        self._callbacks.clear()

    def _read(self) -> None:
        readable = self._readable.poll(0)
        self._reads += len(readable)
        self._plan_next()
        for fd, _ in readable:
            callback = self._callbacks.get(fd)
            if callback is None:
                continue  # Another one has removed it.
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - as for a reader of the loop
                context = {"message": "reading a link failed", "exception": error}
                self._loop.call_exception_handler(context)

    def _plan_next(self) -> None:
        """Read again after a batch, or as soon as a link is readable."""
        now_s, was_batching = self._loop.time(), self._batch is not None
        is_batching = was_batching
        if now_s >= self._window_end_s:
            has_many_links = len(self._callbacks) >= LINKS_MANY
            is_batching = has_many_links and self._reads >= READS_MANY
            self._reads, self._window_end_s = 0, now_s + WINDOW_S
        if is_batching:
            if not was_batching:
                self._loop.remove_reader(self._readable.fileno())
            self._batch = self._loop.call_later(BATCH_S, self._read)
        elif was_batching:
            self._batch = None
            self._loop.add_reader(self._readable.fileno(), self._read)
