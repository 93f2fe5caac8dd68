"""Retired streams: all their entries are void, so no vector names them any more.

A vector has a pair for each stream, and each claim opens a stream. Without retirement
vectors would grow for ever. A `Floor` retires a stream once the compaction floor has
passed its last known entry. Each node keeps the set of retired streams, with the last
void entry of each, as pairs in the order in which it learnt them. Messages have only
the digest of that set.

Retirement changes nothing about what is void: a retired stream stands for its floor.
A later entry of a retired stream is new, and returns the stream to the vectors.

Source: docs/decisions/0031-retired-streams.md.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final, Self

from msgspec import Struct

from octaskly.core.model.field_types import COUNT_MAX, Count
from octaskly.core.model.ids import StreamId, VectorItems

EMPTY_DIGEST: Final = 0


class RetiredSummary(Struct, frozen=True, array_like=True):
    """Summary of the sender's retired streams in a message."""

    digest: Count = EMPTY_DIGEST
    """Digest of a set of retired streams that the sender knows.

    In a PULL it is the receiver's own digest, if the sender knows all of that set.
    """
    entries: Count = 0  #: in retired streams that the vector beside it does not name


NONE_RETIRED: Final = RetiredSummary()

LogExtent = tuple[VectorItems, RetiredSummary]
"""Extent of a node's log: its vector, and a summary of its retired streams."""


def pair_digest(stream: int, seq: int) -> int:
    """Return the digest of one stream up to `seq`."""
    hashed = blake2b(b"%x:%x" % (stream, seq), digest_size=8).digest()
    return int.from_bytes(hashed, "big") % COUNT_MAX


def add_digests(*digests: int) -> int:
    """Return the digest of a union of disjoint sets, whatever their order."""
    return sum(digests) % COUNT_MAX


class _SortedPairs:
    """Pairs of numbers sorted by the first, in 16 bytes each."""

    def __init__(self, pairs: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(pairs)
        self.keys = array("q", (key for key, _ in ordered))
        self.values = array("q", (value for _, value in ordered))

    def add(self, key: int, value: int) -> None:
        """Add one pair."""
        index = bisect_right(self.keys, key)
        self.keys.insert(index, key)
        self.values.insert(index, value)

    def values_of(self, key: int) -> array[int]:
        """Return all values of a key; mostly none or one."""
        first = bisect_left(self.keys, key)
        return self.values[first : bisect_right(self.keys, key, lo=first)]


class RetiredStreams:
    """The retired streams that one node knows, in the order in which it learnt them.

    The digest after each of them is kept. So a node recognises the set of another node
    that knew the same streams first, and knows fewer now.
    """

    def __init__(self, rows: Iterable[tuple[int, int, int]] = ()) -> None:
        """Use stored rows: stream, last void entry, digest of all rows up to this."""
        self._streams, self._ends = array("q"), array("q")
        self._digests = array("q", (EMPTY_DIGEST,))
        for stream, end, digest in rows:
            self._streams.append(stream)
            self._ends.append(end)
            self._digests.append(digest)
        ends = _SortedPairs(zip(self._streams, self._ends, strict=True))
        self._ends_by_stream = ends
        self._positions = _SortedPairs((d, n) for n, d in enumerate(self._digests))
        self._included: set[int] = set()
        self.entries = sum(dict(zip(ends.keys, ends.values, strict=True)).values())
        """Number of entries in these streams."""

    def __len__(self) -> int:
        return len(self._streams)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RetiredStreams)
            and self._streams == other._streams
            and self._ends == other._ends
        )

    __hash__ = None  # type: ignore[assignment]  # It changes.

    def __contains__(self, stream: StreamId) -> bool:
        return bool(self._ends_by_stream.values_of(stream))

    def copy(self) -> Self:
        """Return an independent copy of what is stored."""
        return type(self)(self.rows_after(0))

    @property
    def digest(self) -> int:
        """Digest of the whole set."""
        return self._digests[-1]

    def rows_after(self, position: int) -> list[tuple[int, int, int]]:
        """Return the rows after the first `position`, as the constructor takes them."""
        columns = (self._streams, self._ends, self._digests[1:])
        return list(zip(*(column[position:] for column in columns), strict=True))

    def end_of(self, stream: StreamId) -> int:
        """Return the last void entry of a retired stream, 0 for any other stream."""
        return max(self._ends_by_stream.values_of(stream), default=0)

    def add(self, stream: StreamId, end: int) -> bool:
        """Add a stream; return False if this pair is known.

        A pair with a lower end is added as well: equal sets need equal pairs.
        """
        known = self._ends_by_stream.values_of(stream)
        if end in known:
            return False
        self.entries += max(0, end - max(known, default=0))
        self._streams.append(stream)
        self._ends.append(end)
        self._ends_by_stream.add(stream, end)
        self._digests.append(add_digests(self.digest, pair_digest(stream, end)))
        self._positions.add(self.digest, len(self))
        return True

    def position_of(self, digest: int) -> int | None:
        """Return the number of first rows that have this digest, or None."""
        found = self._positions.values_of(digest)
        return found[0] if found else None

    def includes(self, digest: int) -> bool:
        """Return True if the set with this digest is known to be part of this one."""
        return digest in self._included or self.position_of(digest) is not None

    def note_included(self, digest: int) -> None:
        """Record that this set includes the set with this digest."""
        if self.position_of(digest) is None:
            self._included.add(digest)

    def are_held_after(self, position: int, held: Mapping[StreamId, int]) -> bool:
        """Return True if `held` names all rows after the first `position`."""
        return all(
            held.get(StreamId(self._streams[index]), 0) >= self._ends[index]
            for index in range(position, len(self))
        )
