"""Output file of one attempt: bounded size, keeps the beginning and the end.

The file consists of blocks. Each block belongs to one stream. Its index entry has its
offset in the stream and the number of bytes used. When all blocks are taken, the oldest
block of the stream with the most blocks is reused, but never a block from the first MiB
of a stream. Therefore, a long stream never displaces the other one.

The launcher writes while agents read, without a lock. The writer clears an index entry
before it reuses the block. A reader compares the entry before and after reading.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from contextlib import suppress
from typing import NamedTuple

STREAMS = 2  #: stdout and stderr, by number
BLOCK_BYTES = 256 << 10
HEAD_BYTES = 1 << 20  #: bytes of each stream that are never overwritten
INDEX_BYTES = 64 << 10  #: size of the index, before the first block
BLOCKS_MAX = 4000  #: as many entries fit in the index
READ_BYTES_MAX = 16 << 10  #: bounds memory with many slow readers
BYTES_MIN = 4 << 20  #: two heads of 1 MiB, and as much for the ends

_MAGIC = b"octaskly-output1"
_ENTRY = struct.Struct("<QIB3x")  # offset in the stream, bytes used, stream
_EMPTY = bytes(_ENTRY.size)
_READS_MAX = 8  #: tries to read a block that is being reused


def count_blocks(bytes_max: int) -> int:
    """Return the number of blocks of a file of this size."""
    return min(BLOCKS_MAX, (bytes_max - INDEX_BYTES) // BLOCK_BYTES)


class OutputFileWriter:
    """Writes an output file, in the launcher; takes ownership of the descriptor.

    Args:
        fd: Descriptor of an empty file.
        bytes_max: Maximum size of the file, at least `BYTES_MIN`.
    """

    __slots__ = ("_allocated", "_blocks", "_current", "_fd", "_recyclable", "sizes")

    def __init__(self, fd: int, bytes_max: int) -> None:
        self._fd = fd
        self._blocks = count_blocks(bytes_max)
        self._allocated = 0
        self.sizes = [0, 0]  #: total size of each stream, including skipped bytes
        self._current: list[list[int] | None] = [None, None]  # [place, start, used]
        self._recyclable: tuple[deque[int], deque[int]] = (deque(), deque())

    def publish(self) -> None:
        """Write the magic number, which makes the file readable."""
        self._write(_MAGIC, 0)

    def skip_to(self, stream: int, offset: int) -> None:
        """Continue a stream at an offset; the bytes in between are missing."""
        if offset > self.sizes[stream]:
            self.sizes[stream] = offset
            self._current[stream] = None

    def write(self, stream: int, data: bytes | bytearray) -> None:
        """Append to a stream.

        Raises:
            OSError: the disk is full.
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
        """Close the file."""
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

    start: int  #: offset in the stream
    used: int  #: bytes
    position: int  #: number of the block in the file

    @property
    def end_offset(self) -> int:
        """Offset after its last byte."""
        return self.start + self.used


class OutputFileReader:
    """Reads an output file that may still be written; closes it when deleted.

    The content is not trusted: tasks of the agent's own user could have written it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._raw = b""
        self._blocks: tuple[list[OutputBlock], list[OutputBlock]] = ([], [])

    def __del__(self) -> None:
        # Not earlier: a thread may still read for a client that has disconnected.
        os.close(self._fd)

    def refresh_index(self) -> bool:
        """Read the index again; return True if the file is readable."""
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
        """Return the offset after the last byte in the index."""
        blocks = self._blocks[stream]
        return blocks[-1].end_offset if blocks else 0

    def read(self, stream: int, offset: int) -> tuple[int, bytes]:
        """Read up to `READ_BYTES_MAX` bytes from an offset on.

        Returns:
            The offset of the first byte, and the bytes. The offset is greater than
            `offset` if bytes are missing there. At the end there are no bytes.
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
