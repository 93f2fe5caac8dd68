"""Packs: contents in, the same contents out, wherever the stream is cut."""

from __future__ import annotations

import hashlib

import pytest

from octaskly.files.manifest import ManifestError
from octaskly.files.pack import (
    HEADER_BYTES,
    PACKED_BYTES_MAX,
    PackReader,
    pack_header,
)

CONTENTS = (b"", b"a", b"b" * 50, bytes(300), b"a")


def pack(*contents: bytes) -> bytes:
    return b"".join(
        pack_header(hashlib.sha256(content).digest(), len(content)) + content
        for content in contents
    )


def test_a_pack_is_read_wherever_it_is_cut() -> None:
    """Chunks of the network end anywhere, also inside a header."""
    data = pack(*CONTENTS)

    for cut in range(len(data) + 1):
        reader = PackReader()
        read = [*reader.add_data(data[:cut]), *reader.add_data(data[cut:])]
        reader.check_end()
        assert [content for _, content in read] == list(CONTENTS)
        assert [name for name, _ in read] == [
            hashlib.sha256(content).digest() for content in CONTENTS
        ]


def test_a_content_is_returned_as_soon_as_it_is_complete() -> None:
    """So a receiver holds one content at most, however long the pack is."""
    reader = PackReader()
    data = pack(b"first", b"second")
    first = len(pack(b"first"))

    assert list(reader.add_data(data[: first - 1])) == []
    assert [content for _, content in reader.add_data(data[first - 1 : -1])] == [
        b"first"
    ]
    assert [content for _, content in reader.add_data(data[-1:])] == [b"second"]


@pytest.mark.parametrize("kept", [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 2])
def test_a_pack_that_ends_inside_a_content_is_refused(kept: int) -> None:
    """A broken connection must not look like the end."""
    reader = PackReader()
    assert list(reader.add_data(pack(b"text")[:kept])) == []

    with pytest.raises(ManifestError, match="ended inside a content"):
        reader.check_end()


def test_a_content_of_a_pack_has_a_limited_size() -> None:
    """It is refused by its header, before its bytes are buffered."""
    largest = bytes(PACKED_BYTES_MAX)
    assert [len(one) for _, one in PackReader().add_data(pack(largest))] == [
        PACKED_BYTES_MAX
    ]
    header = pack_header(bytes(32), PACKED_BYTES_MAX)
    longer = header[:-4] + (PACKED_BYTES_MAX + 1).to_bytes(4, "big")

    with pytest.raises(ManifestError, match="up to 1048576 bytes, not 1048577"):
        list(PackReader().add_data(longer))
