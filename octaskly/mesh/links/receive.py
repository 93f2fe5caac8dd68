"""What a peer sends, taken in so that others get their turn.

A peer that floods this node with valid messages must neither keep clients waiting nor
fill the memory. So of what came at once a few messages are handled in each turn of the
event loop, and nothing more is read from it meanwhile. Long frames are decoded over
several turns, and who sends what is long to decode rests for it; who brings
more than the disk takes waits for the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from octaskly.core.protocol.messages import Entries, Message
from octaskly.errors import RemoteProtocolError
from octaskly.mesh.wire import Decoder

MESSAGES_PER_TURN: Final = 64  #: some milliseconds of work
TURN_S: Final = 0.01  #: of decoding, then others get their turn
DECODE_S: Final = 0.03  #: decoding that takes longer of a core is followed by a rest
REST_TIMES: Final = 2  #: so many times as long as what goes beyond that
AHEAD_BYTES_MAX: Final = 4 << 20  #: that came since what is on disk,
AHEAD_ENTRIES_MAX: Final = 1 << 11  #: and entries, of 2 kB each; an answer has less
DISK_S: Final = 0.02  #: until the disk is looked at again

Progress = Callable[[], tuple[int, int]]
"""Returns the numbers of what was last given to the disk, and is on it."""


class Intake:
    """The receiving side of one link.

    Args:
        decoder: Turns bytes into messages.
        take: Gets messages in order, some at a time.
        broken: Told what no peer of ours would send; nothing is taken after that.
        progress: How far this node has written what it was told.
    """

    def __init__(
        self,
        decoder: Decoder,
        take: Callable[[Sequence[Message]], None],
        broken: Callable[[RemoteProtocolError], None],
        progress: Progress,
    ) -> None:
        self._decoder = decoder
        self._take = take
        self._broken = broken
        self._progress = progress
        self._transport: asyncio.Transport | None = None
        self._coming: Iterator[Message | None] | None = None  #: None: all is decoded
        self._next: asyncio.Handle | None = None  #: set while nothing is read
        self._then: Callable[[], None] | None = None  #: once all is taken
        self._took_s = 0.0  #: of a core, for decoding, less what was rested for
        self._ahead_bytes = 0
        self._ahead_entries = 0
        self._mark = 0  #: once this is on disk, so is what came before it was set

    def open(self, transport: asyncio.Transport) -> None:
        """Read from this transport."""
        self._transport = transport

    def receive(self, data: bytes) -> None:
        """Take what came."""
        self._count(len(data))
        self._decoder.feed(data)
        if self._coming is None:
            self._coming = self._decoder.messages()
        if self._next is None:
            self._work()

    def finish(self, then: Callable[[], None]) -> None:
        """Take what is left, as nothing more will come; then do what is given."""
        self._transport, self._then = None, then
        if self._next is None:
            self._work()

    def drop(self) -> None:
        """Take nothing any more."""
        self._transport = self._coming = None
        if self._next is not None:
            self._next.cancel()
            self._next = None
        then, self._then = self._then, None
        if then is not None:
            then()

    @property
    def _is_ahead(self) -> bool:
        """Whether the disk is waited for; for that of a lost connection it is not."""
        return self._transport is not None and (
            self._ahead_bytes > AHEAD_BYTES_MAX
            or self._ahead_entries > AHEAD_ENTRIES_MAX
        )

    def _work(self) -> None:
        """Take some of what came; then go on in a later turn, or read on."""
        self._next = None
        try:
            some = self._some()
        except RemoteProtocolError as error:
            self._coming = None
            self._broken(error)
            return
        if some:
            self._take(some)
            self._await_disk(some)
        transport, pause_s = self._transport, self._pause_s()
        if transport is None and self._coming is None:
            self.drop()
        elif pause_s is not None:
            if transport is not None:
                transport.pause_reading()
            self._next = asyncio.get_running_loop().call_later(pause_s, self._go_on)
        elif transport is not None:
            transport.resume_reading()

    def _go_on(self) -> None:
        self._count(0)
        self._work()

    def _some(self) -> list[Message]:
        """Decode for a moment."""
        some: list[Message] = []
        if self._coming is None or self._is_ahead:
            return some
        clock = asyncio.get_running_loop().time
        begin_s, begin_cpu_s = clock(), time.thread_time()
        for message in self._coming:
            if message is not None:
                some.append(message)
            if len(some) >= MESSAGES_PER_TURN or clock() > begin_s + TURN_S:
                break
        else:
            self._coming = None
        # Not what was waited for a core or Python's lock: that is no work of the peer,
        # and where it is long, a standby would rest behind each part of the log.
        self._took_s += time.thread_time() - begin_cpu_s
        return some

    def _pause_s(self) -> float | None:
        """Return for how long nothing is done, or None: what comes may come."""
        over_s = self._took_s - DECODE_S
        if over_s > 0.0:
            self._took_s = DECODE_S
            return over_s * REST_TIMES
        if self._is_ahead:
            return DISK_S
        if self._coming is not None:
            return 0.0
        self._took_s = 0.0
        return None

    def _await_disk(self, some: Sequence[Message]) -> None:
        """Count entries, of which none more are taken until these are on disk."""
        told = sum(len(message.entries) for message in some if type(message) is Entries)
        if told:
            self._ahead_entries += told
            self._mark = self._progress()[0]

    def _count(self, size_bytes: int) -> None:
        """Count what came and may not be on disk yet."""
        appended, persisted = self._progress()
        if persisted >= self._mark:
            self._mark = appended
            self._ahead_bytes = self._ahead_entries = 0
        self._ahead_bytes += size_bytes
