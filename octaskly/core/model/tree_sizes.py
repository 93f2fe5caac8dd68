"""Sizes of the files in a tree, by which tasks are placed near their bytes.

The core knows neither contents nor manifests. The agent of the dispatcher reads a
manifest and passes on the sizes: each large file alone, all small files of a folder
together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from heapq import nlargest
from itertools import takewhile
from types import MappingProxyType
from typing import Annotated, Final, NamedTuple

from msgspec import Meta

from octaskly.core.model.field_types import Count
from octaskly.core.model.ids import NodeId

LARGE_BYTES: Final = 1 << 20  #: nodes report larger blobs
HELD_MAX: Final = 4096  #: blobs that a node reports, the last ones that it got
HOLDERS_MAX: Final = 8  #: nodes named to a worker as holders of one blob
WEIGHED_MAX: Final = 64  #: large files of a task that count alone; the largest
KEY_DIGITS: Final = 15

BlobKey = Count
"""The first 60 bits of a blob's SHA-256: enough to tell the blobs of a mesh apart."""

BlobKeys = Annotated[tuple[BlobKey, ...], Meta(max_length=HELD_MAX)]

HoldersByBlob = tuple[
    tuple[BlobKey, Annotated[tuple[NodeId, ...], Meta(max_length=HOLDERS_MAX)]], ...
]
"""Nodes that have a blob, or most bytes of the tree with this manifest."""


NO_HOLDERS: Final[Mapping[int, Sequence[NodeId]]] = MappingProxyType({})
"""Nothing is known of nodes that have blobs."""


def blob_key(name: str) -> int:
    """Return the key of a blob by its SHA-256 in hexadecimal, or of outputs."""
    return int(name[:KEY_DIGITS], 16)


def outputs_name(task: str, attempt: object) -> str:
    """Return the name by which nodes report that they hold an attempt's outputs."""
    return sha256(f"{task}/{attempt}".encode()).hexdigest()


class SizedPath(NamedTuple):
    """A large file of a tree, or all small files that are directly in one folder."""

    path: str  #: of the file, or of the folder with `/` at its end
    key: int  #: of the file's content; 0 for small files
    size_bytes: int


class NeededBytes(NamedTuple):
    """The bytes that a task needs of a tree."""

    total: int
    rest: int  #: of all but `blobs`; a node with the whole tree has them
    blobs: tuple[tuple[int, int], ...]  #: key and size of the largest files


class TreeSizes:
    """The sizes of one tree.

    Args:
        entries: Files and folders in any order.
    """

    def __init__(self, entries: Iterable[SizedPath]) -> None:
        self._entries = sorted(entries)
        self._whole = _needed(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def needed(self, folders: Sequence[str] = ()) -> NeededBytes:
        """Return what a task needs that gets these folders; without any, all."""
        if not folders:
            return self._whole
        return _needed(
            entry for folder in folders for entry in self._below(f"{folder}/")
        )

    def _below(self, prefix: str) -> Iterable[SizedPath]:
        start = bisect_left(self._entries, prefix, key=lambda entry: entry.path)
        return takewhile(
            lambda entry: entry.path.startswith(prefix), self._entries[start:]
        )


def _needed(entries: Iterable[SizedPath]) -> NeededBytes:
    rest = 0
    blobs: dict[int, int] = {}
    for _, key, size_bytes in entries:
        if key:
            blobs[key] = size_bytes
        else:
            rest += size_bytes
    total = rest + sum(blobs.values())
    weighed = nlargest(WEIGHED_MAX, blobs.items(), key=lambda blob: blob[1])
    rest = total - sum(size_bytes for _, size_bytes in weighed)
    return NeededBytes(total, rest, tuple(weighed))
