"""What one attempt wrote, in one file of bounded size: its beginning and its end.

The file is cut into blocks. Each belongs to one stream and has a place in the index:
where in its stream it starts, and how much of it is used. When all are taken, a new
one takes the place of the oldest of the stream that has most, but never of one from
the first MiB of a stream. So a flood on one stream does not push out the other.

The launcher writes and agents read at the same time, without a lock: an entry is
emptied before its block is written anew, and whoever reads a block looks at its entry
before and after.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from contextlib import suppress
from typing import NamedTuple

STREAMS = 2  #: stdout and stderr, by number
BLOCK_BYTES = 256 << 10
HEAD_BYTES = 1 << 20  #: of each stream stay, whatever follows
INDEX_BYTES = 64 << 10  #: before the first block
BLOCKS_MAX = 4000  #: that the index has room for
READ_BYTES_MAX = 16 << 10  #: at once: many may read slowly at the same time
BYTES_MIN = 4 << 20  #: both heads, and as much for the ends

_MAGIC = b"octaskly-output1"
_ENTRY = struct.Struct("<QIB3x")  # where it starts, bytes used, stream
_EMPTY = bytes(_ENTRY.size)
_READS_MAX = 8  #: tries to read a block that is being written anew


def count_blocks(bytes_max: int) -> int:
    """Return how many blocks a file of this size has."""
    return min(BLOCKS_MAX, (bytes_max - INDEX_BYTES) // BLOCK_BYTES)


class OutputFileWriter:
    """The launcher's side; the descriptor is its own from now on.

    Args:
        fd: An empty file.
        bytes_max: How large it may get, at least `BYTES_MIN`.
    """

    __slots__ = ("_allocated", "_blocks", "_current", "_fd", "_recyclable", "sizes")

    def __init__(self, fd: int, bytes_max: int) -> None:
        self._fd = fd
        self._blocks = count_blocks(bytes_max)
        self._allocated = 0
        self.sizes = [0, 0]  #: of each stream, written or not
        self._current: list[list[int] | None] = [None, None]  # [place, start, used]
        self._recyclable: tuple[deque[int], deque[int]] = (deque(), deque())

    def publish(self) -> None:
        """Let others read: what was written until now is complete."""
        self._write(_MAGIC, 0)

    def skip_to(self, stream: int, offset: int) -> None:
        """Go on at an offset; what is in between is not there."""
        if offset > self.sizes[stream]:
            self.sizes[stream] = offset
            self._current[stream] = None

    def write(self, stream: int, data: bytes | bytearray) -> None:
        """Add to a stream.

        Raises:
            OSError: the disk takes no more.
        """
        view = memoryview(data)
        while view:
            block = self._current[stream]
            if block is None or block[2] == BLOCK_BYTES:
                block = self._allocate_block(stream)
            place, start, used = block
            part = view[: BLOCK_BYTES - used]
            self._write(part, INDEX_BYTES + place * BLOCK_BYTES + used)
            block[2] = used + len(part)
            self.sizes[stream] = start + block[2]
            entry = _ENTRY.pack(start, block[2], stream)
            self._write(entry, _index_offset(place))
            view = view[len(part) :]

    def close(self) -> None:
        """Write no more."""
        with suppress(OSError):
            os.close(self._fd)

    def _allocate_block(self, stream: int) -> list[int]:
        start = self.sizes[stream]
        if self._allocated < self._blocks:
            place = self._allocated
            self._allocated += 1
        else:
            place = max(self._recyclable, key=len).popleft()
            self._write(_EMPTY, _index_offset(place))
        if start >= HEAD_BYTES:
            self._recyclable[stream].append(place)
        block = self._current[stream] = [place, start, 0]
        return block

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written


class OutputBlock(NamedTuple):
    """One entry of the index."""

    start: int
    used: int
    position: int

    @property
    def end_offset(self) -> int:
        """The offset behind its last byte."""
        return self.start + self.used


class OutputFileReader:
    """Reads a file that may still be written; closes the descriptor with itself.

    Nothing in the file is trusted further than that: tasks of the agent's own user
    could have written it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._raw = b""
        self._blocks: tuple[list[OutputBlock], list[OutputBlock]] = ([], [])

    def __del__(self) -> None:
        # So also a thread that still reads for somebody who is gone has it open.
        os.close(self._fd)

    def refresh_index(self) -> bool:
        """Read the index afresh; return whether the file can be read already."""
        made = -(-(os.fstat(self._fd).st_size - INDEX_BYTES) // BLOCK_BYTES)
        size = _index_offset(max(0, min(made, BLOCKS_MAX)))
        raw = os.pread(self._fd, size, 0)
        if not raw.startswith(_MAGIC):
            return False
        if raw != self._raw:
            self._raw = raw
            self._blocks = [], []
            used = len(raw) - len(raw) % _ENTRY.size
            entries = _ENTRY.iter_unpack(raw[len(_MAGIC) : used])
            for place, (start, used, stream) in enumerate(entries):
                if 0 < used <= BLOCK_BYTES and stream < STREAMS:
                    self._blocks[stream].append(OutputBlock(start, used, place))
            for found in self._blocks:
                found.sort()
        return True

    def stream_size(self, stream: int) -> int:
        """Return the offset behind the last byte that was written."""
        blocks = self._blocks[stream]
        return blocks[-1].end_offset if blocks else 0

    def read(self, stream: int, offset: int) -> tuple[int, bytes]:
        """Return the next bytes from an offset on, as many as fit one message.

        Returns:
            Where they begin, which is later than asked for where something is missing,
            and none at the end.
        """
        for _ in range(_READS_MAX):
            block = next(
                (b for b in self._blocks[stream] if b.end_offset > offset), None
            )
            if block is None:
                break
            start = max(offset, block.start)
            skipped = start - block.start
            data = os.pread(
                self._fd,
                min(block.used - skipped, READ_BYTES_MAX),
                INDEX_BYTES + block.position * BLOCK_BYTES + skipped,
            )
            if self._is_unchanged(stream, block):
                return start, data
            self.refresh_index()
        return max(offset, self.stream_size(stream)), b""

    def _is_unchanged(self, stream: int, block: OutputBlock) -> bool:
        raw = os.pread(self._fd, _ENTRY.size, _index_offset(block.position))
        if len(raw) < _ENTRY.size:
            return False
        start, used, owner = _ENTRY.unpack(raw)
        return bool((start, owner) == (block.start, stream) and used >= block.used)


def _index_offset(position: int) -> int:
    return len(_MAGIC) + position * _ENTRY.size
