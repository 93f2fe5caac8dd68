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

KEY_CHARS_MAX: Final = 200


class RecordKind(NamedTuple):
    """What holds for all records of a kind."""

    count_max: int  #: that are kept at a time
    body_bytes_max: int
    is_broadcast: bool = False
    """Every node goes by it, so followers are told, whether they keep a log or not."""
    is_list_only: bool = False
    """It is only ever listed, so no node has it in memory, and of more than `count_max` the
    oldest are forgotten. Of any other kind no more than `count_max` are accepted."""


TOKEN: Final = "token"  # noqa: S105  (the name of a kind)
TOKEN_REVOKED: Final = "token-revoked"  # noqa: S105
AUDIT: Final = "audit"
AUDIT_UNAUTHENTICATED: Final = "audit-strangers"
"""Refusals of who showed nobody that it is: apart, so that they push out no others."""
KEYS_HELD: Final = "keys-held"
"""A node has the newest generation of the secret, while another one is waited for."""

KINDS: Final[Mapping[str, RecordKind]] = {
    TOKEN: RecordKind(1000, 2048),
    TOKEN_REVOKED: RecordKind(10_000, 256, is_broadcast=True),
    AUDIT: RecordKind(20_000, 2048, is_list_only=True),
    AUDIT_UNAUTHENTICATED: RecordKind(2000, 2048, is_list_only=True),
    KEYS_HELD: RecordKind(10_000, 0, is_broadcast=True),
}


def earlier_record(a: Recorded, b: Recorded) -> Recorded:
    """Return the one that counts, of two with one kind and key."""
    assert (a.kind, a.key) == (b.kind, b.key)
    return min(a, b, key=lambda record: (record.hlc, record.expires_ms, record.body))


def is_valid_record(record: Recorded) -> bool:
    """Whether a node of ours could have written it."""
    kind = KINDS.get(record.kind)
    return (
        kind is not None
        and 0 < len(record.key) <= KEY_CHARS_MAX
        and record.key.isprintable()
        and len(record.body) <= kind.body_bytes_max
    )


def is_expired(record: Recorded, wall_ms: int) -> bool:
    """Whether a record may be forgotten."""
    return 0 < record.expires_ms <= wall_ms


class RecordTable:
    """The records that one node has in memory: all but those that are only listed."""

    def __init__(self, records: Iterable[Recorded]) -> None:
        self._records: dict[tuple[str, str], Recorded] = {}
        self._new_records: dict[tuple[str, str], Recorded] = {}
        self._logged: set[tuple[str, str]] = set()
        for record in records:
            self.add_record(record)

    def add_record(self, record: Recorded) -> bool:
        """Take a record in; return whether it changes what this node goes by."""
        kind = KINDS.get(record.kind)
        if kind is None or kind.is_list_only:
            return False
        key = (record.kind, record.key)
        known = self._records.get(key)
        if known is not None and earlier_record(known, record) == known:
            return False
        self._records[key] = self._new_records[key] = record
        self._logged.discard(key)
        return True

    def add_logged_record(self, record: Recorded) -> None:
        """Take in a record that the log of this node says."""
        self.add_record(record)
        if self.get(record.kind, record.key) == record:
            self._logged.add((record.kind, record.key))

    def is_logged(self, record: Recorded) -> bool:
        """Whether this process has seen in its log what counts here."""
        return (record.kind, record.key) in self._logged

    def get(self, kind: str, key: str) -> Recorded | None:
        """Return what counts."""
        return self._records.get((kind, key))

    def free_count(self, kind: str, wall_ms: int) -> int:
        """Return how many more of a kind may be kept; forget those that are over."""
        of_kind = [record for record in self._records.values() if record.kind == kind]
        over = [record for record in of_kind if is_expired(record, wall_ms)]
        for record in over:
            del self._records[record.kind, record.key]
            self._logged.discard((record.kind, record.key))
        return KINDS[kind].count_max - (len(of_kind) - len(over))

    def pop_new_records(self) -> tuple[Recorded, ...]:
        """Return once what was learnt since this was asked last."""
        if not self._new_records:
            return ()
        news, self._new_records = tuple(self._new_records.values()), {}
        return news
