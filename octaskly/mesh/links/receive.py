"""What a peer sends, taken in so that others get their turn.

A peer that floods this node with valid messages must neither keep clients waiting nor
fill the memory. So of what came at once a few messages are handled in each turn of the
event loop, and nothing more is read from it meanwhile. Who sends what is long to decode
rests for it; who brings more than the disk takes waits for the disk.
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
DECODE_S_MAX: Final = (
    0.03  #: decoding that takes longer of a core is followed by a rest
)
PAUSE_FACTOR: Final = 2  #: so many times as long as what goes beyond that
UNPERSISTED_BYTES_MAX: Final = 4 << 20  #: that came since what is on disk,
UNPERSISTED_ENTRIES_MAX: Final = (
    1 << 11
)  #: and entries, of 2 kB each; an answer has less
DISK_POLL_S: Final = 0.02  #: until the disk is looked at again

DiskProgress = Callable[[], tuple[int, int]]
"""Returns the numbers of what was last given to the disk, and is on it."""


class Receiver:
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
        on_messages: Callable[[Sequence[Message]], None],
        on_violation: Callable[[RemoteProtocolError], None],
        progress: DiskProgress,
    ) -> None:
        self._decoder = decoder
        self._on_messages = on_messages
        self._on_violation = on_violation
        self._progress = progress
        self._transport: asyncio.Transport | None = None
        self._decoding: Iterator[Message] | None = None  #: None: all is decoded
        self._scheduled: asyncio.Handle | None = None  #: set while nothing is read
        self._on_drained: Callable[[], None] | None = None  #: once all is taken
        self._decode_s = 0.0  #: of a core, for decoding, less what was rested for
        self._unpersisted_bytes = 0
        self._unpersisted_entries = 0
        self._awaited_number = (
            0  #: once this is on disk, so is what came before it was set
        )

    def attach_transport(self, transport: asyncio.Transport) -> None:
        """Read from this transport."""
        self._transport = transport

    def receive_data(self, data: bytes) -> None:
        """Take what came."""
        self._count_bytes(len(data))
        self._decoder.add_data(data)
        if self._decoding is None:
            self._decoding = self._decoder.decode_messages()
        if self._scheduled is None:
            self._process()

    def drain(self, on_drained: Callable[[], None]) -> None:
        """Take what is left, as nothing more will come; then do what is given."""
        self._transport, self._on_drained = None, on_drained
        if self._scheduled is None:
            self._process()

    def stop(self) -> None:
        """Take nothing any more."""
        self._transport = self._decoding = None
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        then, self._on_drained = self._on_drained, None
        if then is not None:
            then()

    @property
    def _is_disk_behind(self) -> bool:
        """Whether the disk is waited for; for that of a lost connection it is not."""
        return self._transport is not None and (
            self._unpersisted_bytes > UNPERSISTED_BYTES_MAX
            or self._unpersisted_entries > UNPERSISTED_ENTRIES_MAX
        )

    def _process(self) -> None:
        """Take some of what came; then go on in a later turn, or read on."""
        self._scheduled = None
        try:
            some = self._decode_batch()
        except RemoteProtocolError as error:
            self._decoding = None
            self._on_violation(error)
            return
        if some:
            self._on_messages(some)
            self._await_entries(some)
        transport, pause_s = self._transport, self._pause_s()
        if transport is None and self._decoding is None:
            self.stop()
        elif pause_s is not None:
            if transport is not None:
                transport.pause_reading()
            self._scheduled = asyncio.get_running_loop().call_later(
                pause_s, self._resume
            )
        elif transport is not None:
            transport.resume_reading()

    def _resume(self) -> None:
        self._count_bytes(0)
        self._process()

    def _decode_batch(self) -> list[Message]:
        """Decode for a moment."""
        some: list[Message] = []
        if self._decoding is None or self._is_disk_behind:
            return some
        clock = asyncio.get_running_loop().time
        begin_s, begin_cpu_s = clock(), time.thread_time()
        for message in self._decoding:
            some.append(message)
            if type(message) is Entries:
                self._unpersisted_entries += len(message.entries)
            if (
                len(some) >= MESSAGES_PER_TURN
                or clock() > begin_s + TURN_S
                or self._is_disk_behind
            ):
                break
        else:
            self._decoding = None
        # Not what was waited for a core or Python's lock: that is no work of the peer,
        # and where it is long, a standby would rest behind each part of the log.
        self._decode_s += time.thread_time() - begin_cpu_s
        return some

    def _pause_s(self) -> float | None:
        """Return for how long nothing is done, or None: what comes may come."""
        over_s = self._decode_s - DECODE_S_MAX
        if over_s > 0.0:
            self._decode_s = DECODE_S_MAX
            return over_s * PAUSE_FACTOR
        if self._is_disk_behind:
            return DISK_POLL_S
        if self._decoding is not None:
            return 0.0
        self._decode_s = 0.0
        return None

    def _await_entries(self, messages: Sequence[Message]) -> None:
        """Note the append that brings the entries of these messages to the disk."""
        if any(type(message) is Entries for message in messages):
            self._awaited_number = self._progress()[0]

    def _count_bytes(self, size_bytes: int) -> None:
        """Count what came and may not be on disk yet."""
        appended, persisted = self._progress()
        if persisted >= self._awaited_number:
            self._awaited_number = appended
            self._unpersisted_bytes = self._unpersisted_entries = 0
        self._unpersisted_bytes += size_bytes
