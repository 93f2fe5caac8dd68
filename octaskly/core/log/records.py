"""Records: what the mesh keeps that is about no task, by kind and key.

Of all that were written with one kind and key the first one counts. That is a join:
commutative, associative and idempotent, so nodes that have heard the same go by the
same, in whatever order it came. Keys are never given twice, so nothing has to end for
another to count.

Source: docs/explanation/records.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from octaskly.core.log.facts import Recorded
from octaskly.core.model.hlc import HLC_MAX
from octaskly.core.model.tasks import TIME_MS_MAX

KEY_CHARS_MAX: Final = 200


class Kind(NamedTuple):
    """What holds for all records of a kind."""

    most: int  #: that are kept at a time
    body_bytes_max: int
    is_told: bool = False
    """Every node goes by it, so followers are told, whether they keep a log or not."""
    is_listed: bool = False
    """It is only ever listed, so no node has it in memory, and of more than `most` the
    oldest are forgotten. Of any other kind no more than `most` are accepted."""


TOKEN: Final = "token"  # noqa: S105  (the name of a kind)
TOKEN_REVOKED: Final = "token-revoked"  # noqa: S105
AUDIT: Final = "audit"
AUDIT_STRANGERS: Final = "audit-strangers"
"""Refusals of who showed nobody that it is: apart, so that they push out no others."""
KEYS_HELD: Final = "keys-held"
"""A node has the newest generation of the secret, while another one is waited for."""

KINDS: Final[Mapping[str, Kind]] = {
    TOKEN: Kind(1000, 2048),
    TOKEN_REVOKED: Kind(10_000, 256, is_told=True),
    AUDIT: Kind(20_000, 2048, is_listed=True),
    AUDIT_STRANGERS: Kind(2000, 2048, is_listed=True),
    KEYS_HELD: Kind(10_000, 0, is_told=True),
}


def first(a: Recorded, b: Recorded) -> Recorded:
    """Return the one that counts, of two with one kind and key."""
    assert (a.kind, a.key) == (b.kind, b.key)
    return min(a, b, key=lambda record: (record.at, record.until_ms, record.body))


def is_sane(record: Recorded) -> bool:
    """Whether a node of ours could have written it."""
    kind = KINDS.get(record.kind)
    return (
        kind is not None
        and 0 < len(record.key) <= KEY_CHARS_MAX
        and record.key.isprintable()
        and len(record.body) <= kind.body_bytes_max
        and 0 <= record.until_ms < TIME_MS_MAX
        and 0 <= record.at < HLC_MAX
    )


def is_over(record: Recorded, wall_ms: int) -> bool:
    """Whether a record may be forgotten."""
    return 0 < record.until_ms <= wall_ms


class Book:
    """The records that one node has in memory: all but those that are only listed."""

    def __init__(self, records: Iterable[Recorded]) -> None:
        self._records: dict[tuple[str, str], Recorded] = {}
        self._news: dict[tuple[str, str], Recorded] = {}
        self._logged: set[tuple[str, str]] = set()
        for record in records:
            self.learn(record)

    def learn(self, record: Recorded) -> bool:
        """Take a record in; return whether it changes what this node goes by."""
        kind = KINDS.get(record.kind)
        if kind is None or kind.is_listed:
            return False
        place = (record.kind, record.key)
        known = self._records.get(place)
        if known is not None and first(known, record) == known:
            return False
        self._records[place] = self._news[place] = record
        self._logged.discard(place)
        return True

    def log(self, record: Recorded) -> None:
        """Take in a record that the log of this node says."""
        self.learn(record)
        if self.get(record.kind, record.key) == record:
            self._logged.add((record.kind, record.key))

    def is_logged(self, record: Recorded) -> bool:
        """Whether this process has seen in its log what counts here."""
        return (record.kind, record.key) in self._logged

    def get(self, kind: str, key: str) -> Recorded | None:
        """Return what counts."""
        return self._records.get((kind, key))

    def room(self, kind: str, wall_ms: int) -> int:
        """Return how many more of a kind may be kept; forget those that are over."""
        of_kind = [record for record in self._records.values() if record.kind == kind]
        over = [record for record in of_kind if is_over(record, wall_ms)]
        for record in over:
            del self._records[record.kind, record.key]
            self._logged.discard((record.kind, record.key))
        return KINDS[kind].most - (len(of_kind) - len(over))

    def take_news(self) -> tuple[Recorded, ...]:
        """Return once what was learnt since this was asked last."""
        if not self._news:
            return ()
        news, self._news = tuple(self._news.values()), {}
        return news
