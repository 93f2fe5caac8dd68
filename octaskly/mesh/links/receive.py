"""Receive side of a link, with flow control.

A peer that floods this node with valid messages must neither delay clients nor fill the
memory. Each turn of the event loop therefore handles a few messages, and reading from
the peer is paused meanwhile. After costly decoding, reading pauses in proportion. If
entries arrive faster than the disk writes them, reading waits for the disk. A peer with
few rights may send a number of bytes each second; reading waits for the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from octaskly.core.protocol.messages import Entries, Message
from octaskly.errors import RemoteProtocolError
from octaskly.mesh.wire import Decoder
from octaskly.system.byte_rate import ByteRate

MESSAGES_PER_TURN: Final = 64  #: takes some milliseconds
TURN_S: Final = 0.01  #: decoding time per turn of the event loop
DECODE_S_MAX: Final = 0.03  #: CPU time for decoding that causes no pause
PAUSE_FACTOR: Final = 2  #: seconds of pause per second of decoding above the maximum
UNMEASURED_BYTES: Final = 2048  #: of messages whose decoding is not measured
UNPERSISTED_BYTES_MAX: Final = 4 << 20  #: bytes received that may not be on disk yet
#: Entries received that may not be on disk yet, at 2 kB each. One answer has fewer.
UNPERSISTED_ENTRIES_MAX: Final = 1 << 11
DISK_POLL_S: Final = 0.02  #: time between two checks of the progress on disk

DiskProgress = Callable[[], tuple[int, int]]
"""Returns the numbers of the last write submitted to the disk and the last on disk."""


class Receiver:
    """The receiving side of one link.

    Args:
        decoder: Turns bytes into messages.
        on_messages: Called with some messages at a time, in order.
        on_violation: Called with the error if the peer breaks the protocol; no
            messages are delivered after that.
        progress: Returns how far this node has written received entries to disk.
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
        self._decoding: Iterator[Message] | None = None  #: None: nothing left to decode
        self._is_measured = False  #: more than `UNMEASURED_BYTES` are being decoded
        self._scheduled: asyncio.Handle | None = None  #: set while reading is paused
        self._on_drained: Callable[[], None] | None = None
        self._decode_s = 0.0  #: CPU time for decoding since the last pause
        self._unpersisted_bytes = 0
        self._unpersisted_entries = 0
        self._awaited_number = 0  #: once this is on disk, all counted entries are, too
        self._rate: ByteRate | None = None  #: None: it may send as fast as it can

    def restrict(
        self,
        allowed: frozenset[int],
        *,
        hello_bytes: int,
        frame_bytes: int,
        bytes_per_s: float | None = None,
    ) -> None:
        """Accept only some messages, and read at most so fast; see `Decoder.restrict`.

        TCP then slows the peer down.
        """
        self._decoder.restrict(
            allowed, hello_bytes=hello_bytes, frame_bytes=frame_bytes
        )
        if bytes_per_s is not None:
            clock = asyncio.get_running_loop().time
            self._rate = ByteRate(bytes_per_s, clock=clock)

    def attach_transport(self, transport: asyncio.Transport) -> None:
        """Set the transport whose reading is paused and resumed."""
        self._transport = transport

    def receive_data(self, data: bytes) -> None:
        """Buffer received bytes, and process them unless reading is paused."""
        self._count_bytes(len(data))
        if self._rate is not None:
            self._rate.add_bytes(len(data))
        self._decoder.add_data(data)
        if self._decoding is None:
            self._decoding = self._decoder.decode_messages()
            self._is_measured = False
        if self._decoder.buffered_bytes > UNMEASURED_BYTES:
            self._is_measured = True  # Until the last message, also of frames it took.
        if self._scheduled is None:
            self._process()

    def drain(self, on_drained: Callable[[], None]) -> None:
        """Process the remaining bytes of a lost connection, then call `on_drained`."""
        self._transport, self._on_drained = None, on_drained
        if self._scheduled is None:
            self._process()

    def stop(self) -> None:
        """Discard the remaining bytes."""
        self._transport = self._decoding = None
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        then, self._on_drained = self._on_drained, None
        if then is not None:
            then()

    @property
    def _is_disk_behind(self) -> bool:
        """Return True if reading must wait for the disk.

        The remaining bytes of a lost connection do not wait.
        """
        return self._transport is not None and (
            self._unpersisted_bytes > UNPERSISTED_BYTES_MAX
            or self._unpersisted_entries > UNPERSISTED_ENTRIES_MAX
        )

    def _process(self) -> None:
        """Deliver a batch, then schedule the next one or resume reading."""
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
        """Decode messages until one of the bounds of a turn is reached."""
        some: list[Message] = []
        if self._decoding is None or self._is_disk_behind:
            return some
        if not self._is_measured:
            return self._decode_few()
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
        # CPU time excludes waits for a core or for the GIL, which the peer does not
        # cause. On a busy machine they would slow down the catch-up of a standby.
        self._decode_s += time.thread_time() - begin_cpu_s
        return some

    def _decode_few(self) -> list[Message]:
        """Decode messages of a few bytes, which cost less than to measure that."""
        assert self._decoding is not None
        some = list(islice(self._decoding, MESSAGES_PER_TURN))
        if len(some) < MESSAGES_PER_TURN:
            self._decoding = None
        for message in some:
            if type(message) is Entries:
                self._unpersisted_entries += len(message.entries)
        return some

    def _pause_s(self) -> float | None:
        """Return the seconds to pause, or None to resume reading."""
        over_s = self._decode_s - DECODE_S_MAX
        if over_s > 0.0:
            self._decode_s = DECODE_S_MAX
            return over_s * PAUSE_FACTOR
        if self._is_disk_behind:
            return DISK_POLL_S
        if self._rate is not None and self._transport is not None:
            wait_s = self._rate.wait_s()
            if wait_s > 0.0:
                return wait_s
        if self._decoding is not None:
            return 0.0
        self._decode_s = 0.0
        return None

    def _await_entries(self, messages: Sequence[Message]) -> None:
        """Remember the append that writes the entries of these messages to disk."""
        if any(type(message) is Entries for message in messages):
            self._awaited_number = self._progress()[0]

    def _count_bytes(self, size_bytes: int) -> None:
        """Count received bytes; reset both counts once all of it is on disk."""
        appended, persisted = self._progress()
        if persisted >= self._awaited_number:
            self._awaited_number = appended
            self._unpersisted_bytes = self._unpersisted_entries = 0
        self._unpersisted_bytes += size_bytes
