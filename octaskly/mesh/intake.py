"""What a peer sends, taken in so that others get their turn.

A peer that floods this node with valid messages must neither keep clients waiting nor
fill the memory. So of what came at once a few messages are handled in each turn of the
event loop, and nothing more is read from it meanwhile. Who sends what is long to decode
rests for as long again; and who brings more than the disk takes waits for the disk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from octaskly.core.messages import Message
from octaskly.mesh.wire import Decoder

MESSAGES_PER_TURN: Final = 64  #: some milliseconds of work
DECODE_S: Final = 0.03  #: decoding that took longer is followed by a rest,
REST_TIMES: Final = 2  #: so many times as long
AHEAD_BYTES_MAX: Final = 4 << 20  #: that came since what is on disk
DISK_S: Final = 0.02  #: until the disk is looked at again

Progress = Callable[[], tuple[int, int]]
"""Returns the numbers of what was last given to the disk, and is on it."""


class Intake:
    """The receiving side of one link.

    Args:
        decoder: Turns bytes into messages.
        take: Gets messages in order, some at a time.
        progress: How far this node has written what it was told.
    """

    def __init__(
        self,
        decoder: Decoder,
        take: Callable[[Sequence[Message]], None],
        progress: Progress,
    ) -> None:
        self._decoder = decoder
        self._take = take
        self._progress = progress
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[Message] = deque()
        self._next: asyncio.Handle | None = None  #: set while nothing is read
        self._ahead_bytes = 0
        self._mark = 0  #: once this is on disk, so is what came before it was set

    def open(self, transport: asyncio.Transport) -> None:
        """Read from this transport."""
        self._transport = transport

    def receive(self, data: bytes) -> None:
        """Take what came.

        Raises:
            RemoteProtocolError: it is not what a peer of ours would send.
        """
        loop = asyncio.get_running_loop()
        self._count(len(data))
        begin_s = loop.time()
        self._waiting += self._decoder.receive_data(data)
        took_s = loop.time() - begin_s
        self._hand_over()
        if self._transport is None or not (
            self._waiting or took_s > DECODE_S or self._is_ahead
        ):
            return
        self._transport.pause_reading()
        rest_s = took_s * REST_TIMES if took_s > DECODE_S else 0.0
        self._next = loop.call_later(rest_s, self._go_on)

    def finish(self) -> None:
        """Take what is left at once: nothing more will come."""
        self._halt()
        while self._waiting:
            self._hand_over()

    def drop(self) -> None:
        """Take nothing any more."""
        self._halt()
        self._waiting.clear()

    @property
    def _is_ahead(self) -> bool:
        return self._ahead_bytes > AHEAD_BYTES_MAX

    def _hand_over(self) -> None:
        waiting = self._waiting
        some = [waiting.popleft() for _ in range(min(len(waiting), MESSAGES_PER_TURN))]
        if some:
            self._take(some)

    def _go_on(self) -> None:
        self._next = None
        self._hand_over()
        self._count(0)
        if self._transport is None:
            return
        if self._waiting or self._is_ahead:
            pause_s = 0.0 if self._waiting else DISK_S
            loop = asyncio.get_running_loop()
            self._next = loop.call_later(pause_s, self._go_on)
        else:
            self._transport.resume_reading()

    def _count(self, size_bytes: int) -> None:
        """Count what came and may not be on disk yet."""
        appended, persisted = self._progress()
        if persisted >= self._mark:
            self._mark, self._ahead_bytes = appended, 0
        self._ahead_bytes += size_bytes

    def _halt(self) -> None:
        self._transport = None
        if self._next is not None:
            self._next.cancel()
            self._next = None
