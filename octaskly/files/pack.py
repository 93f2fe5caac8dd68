"""Packs: many small contents in one stream.

Each content is preceded by its SHA-256 and its size, so a stream may be cut into chunks
anywhere. The digests are checked by whoever stores the contents.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from octaskly.files.manifest import SHA256_BYTES, ManifestError

PACKED_BYTES_MAX: Final = 1 << 20  #: larger contents travel alone
ASKED_FILES_MAX: Final = 10_000  #: of one request; their digests fit into 1 MiB of JSON
_HEADER: Final = struct.Struct(f">{SHA256_BYTES}sI")
HEADER_BYTES: Final = _HEADER.size


def pack_header(sha256: bytes, size_bytes: int) -> bytes:
    """Return what precedes a content in a pack."""
    assert size_bytes <= PACKED_BYTES_MAX
    return _HEADER.pack(sha256, size_bytes)


class PackReader:
    """Takes the contents out of a pack; holds at most one of them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add_data(self, data: bytes | memoryview) -> Iterator[tuple[bytes, bytes]]:
        """Yield the SHA-256 and the bytes of each content that is complete now.

        Raises:
            ManifestError: a content is larger than packs may hold.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER_BYTES:
            sha256, size_bytes = _HEADER.unpack_from(self._buffer, start)
            if size_bytes > PACKED_BYTES_MAX:
                raise ManifestError(
                    f"a pack holds contents of up to {PACKED_BYTES_MAX} bytes,"
                    f" not {size_bytes}"
                )
            end = start + HEADER_BYTES + size_bytes
            if len(self._buffer) < end:
                break
            yield sha256, bytes(self._buffer[start + HEADER_BYTES : end])
            start = end
        del self._buffer[:start]

    def check_end(self) -> None:
        """Raise `ManifestError` if the stream ended inside a content."""
        if self._buffer:
            raise ManifestError("the pack ended inside a content")
