"""Who should reign: ranks, the comparison of two dispatchers, the name of a reign.

Functions without state. Both sides of a meeting must come to the same result, so they
look only at values that both hold.

Source: docs/explanation/election.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from octaskly.core.messages import Hello
from octaskly.core.model import Epoch, NodeInfo, StreamId

BOOT_BUCKET_S = 600.0
"""Uptimes within ten minutes count as equal: a restart of all must not be a race."""

Standing = tuple[bool, int, bool, int, str]
"""Sorts the better candidate first."""


@dataclass(frozen=True, slots=True)
class Reign:
    """One claim of this node to be dispatcher."""

    epoch: Epoch
    stream: StreamId


def covers(
    mine: Mapping[StreamId, int], theirs: Iterable[tuple[StreamId, int]]
) -> bool:
    """Return whether `mine` holds every entry that `theirs` counts."""
    return all(mine.get(stream, 0) >= seq for stream, seq in theirs)


def log_size(vector: Iterable[tuple[StreamId, int]]) -> int:
    """Return how many entries a vector counts."""
    return sum(seq for _, seq in vector)


def standing(info: NodeInfo, entries: int, uptime_s: float) -> Standing:
    """Return the rank of a node as a key that sorts the best candidate first.

    Nodes that may not be elected come last; then decides the longer log, mains before
    battery, the longer uptime in steps of `BOOT_BUCKET_S`, and the smaller id.
    """
    bucket = int(uptime_s // BOOT_BUCKET_S)
    return (not info.electable, -entries, not info.on_mains, -bucket, info.id)


def beats(mine: Hello, theirs: Hello) -> bool:
    """Return whether the dispatcher that sent `mine` keeps the role.

    One that can read the other's log, if the other cannot read its own. Then more
    followers, then the higher term, then the higher id. Both sides compare the two
    HELLOs of one link, which nobody can change afterwards.
    """
    reads, is_read = mine.reads >= theirs.log_version, theirs.reads >= mine.log_version
    if reads != is_read:
        return reads
    return _score(mine) > _score(theirs)


def _score(hello: Hello) -> tuple[int, int, str]:
    return (hello.followers, hello.epoch.term, hello.node.id)


def mint_stream(info: NodeInfo, term: int, draw: float) -> StreamId:
    """Return the id of a new stream: 63 bits, never zero.

    `draw` brings the chance; node, boot and term keep two claims apart that were
    given the same one.
    """
    seed = f"{info.id}/{info.boot}/{term}/{draw!r}".encode()
    number = int.from_bytes(sha256(seed).digest()[:8], "big") >> 1
    return StreamId(number or 1)
