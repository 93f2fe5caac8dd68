"""Records of the mesh that belong to no task, by kind and key.

Of all records with one kind and key, the earliest counts. This rule is a join:
commutative, associative and idempotent. So nodes with the same records agree, in
whatever order the records arrived. Keys are never reused, so no record has to expire
before another one counts.

Source: docs/explanation/records.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from octaskly.core.log.facts import Recorded

KEY_CHARS_MAX: Final = 200


class RecordKind(NamedTuple):
    """Rules for all records of one kind."""

    count_max: int  #: records kept at a time
    body_bytes_max: int
    is_broadcast: bool = False
    """Every node applies it, so the dispatcher sends it even to nodes without a log."""
    is_list_only: bool = False
    """The records are only listed, so no node keeps them in memory.

    Beyond `count_max`, the oldest are forgotten. For all other kinds, further records
    are rejected.
    """


TOKEN: Final = "token"  # noqa: S105  (the name of a kind)
TOKEN_REVOKED: Final = "token-revoked"  # noqa: S105
AUDIT: Final = "audit"
"""Audit entries of changes that only an admin or a local user may make.

The other entries have kinds of their own, so that no flood displaces these.
"""
AUDIT_TASKS: Final = "audit-tasks"
"""Audit entries of changes that a client may make."""
AUDIT_REFUSED: Final = "audit-refused"
"""Audit entries of refused requests with credentials."""
AUDIT_UNAUTHENTICATED: Final = "audit-strangers"
"""Audit entries of refused requests without valid credentials."""
AUDIT_KINDS: Final = (AUDIT, AUDIT_TASKS, AUDIT_REFUSED, AUDIT_UNAUTHENTICATED)
KEYS_HELD: Final = "keys-held"
"""A node has the newest generation of the secret, while others do not yet have it."""
VISIT_ENDED: Final = "visit-ended"
"""An admin has ended a visit; kept for as long as its certificate may last."""

KINDS: Final[Mapping[str, RecordKind]] = {
    TOKEN: RecordKind(1000, 2048),
    TOKEN_REVOKED: RecordKind(10_000, 256, is_broadcast=True),
    AUDIT: RecordKind(20_000, 2048, is_list_only=True),
    # Larger, because it holds the command of a submission.
    AUDIT_TASKS: RecordKind(20_000, 9216, is_list_only=True),
    AUDIT_REFUSED: RecordKind(2000, 2048, is_list_only=True),
    AUDIT_UNAUTHENTICATED: RecordKind(2000, 2048, is_list_only=True),
    KEYS_HELD: RecordKind(10_000, 0, is_broadcast=True),
    VISIT_ENDED: RecordKind(10_000, 0, is_broadcast=True),
}


def earlier_record(a: Recorded, b: Recorded) -> Recorded:
    """Return the record that counts, of two with one kind and key."""
    assert (a.kind, a.key) == (b.kind, b.key)
    return min(a, b, key=lambda record: (record.hlc, record.expires_ms, record.body))


def is_valid_record(record: Recorded) -> bool:
    """Return True if the record has a known kind and respects the kind's bounds."""
    kind = KINDS.get(record.kind)
    return (
        kind is not None
        and 0 < len(record.key) <= KEY_CHARS_MAX
        and record.key.isprintable()
        and len(record.body) <= kind.body_bytes_max
    )


def is_expired(record: Recorded, wall_ms: int) -> bool:
    """Return True if the record has expired and may be forgotten."""
    return 0 < record.expires_ms <= wall_ms


class RecordDraft(NamedTuple):
    """A record that is not yet written; see `facts.Recorded`."""

    kind: str
    key: str
    body: bytes
    expires_ms: int = 0


class RecordTable:
    """The records that one node keeps in memory: all kinds that are not list-only."""

    def __init__(self, records: Iterable[Recorded]) -> None:
        self._records: dict[tuple[str, str], Recorded] = {}
        self._new_records: dict[tuple[str, str], Recorded] = {}
        self._logged: set[tuple[str, str]] = set()
        for record in records:
            self.add_record(record)

    def add_record(self, record: Recorded) -> bool:
        """Add a record; return True if it now counts for its kind and key."""
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
        """Add a record from this node's log."""
        self.add_record(record)
        if self.get(record.kind, record.key) == record:
            self._logged.add((record.kind, record.key))

    def is_logged(self, record: Recorded) -> bool:
        """Return True if this process has read the record from its log."""
        return (record.kind, record.key) in self._logged

    def get(self, kind: str, key: str) -> Recorded | None:
        """Return the record that counts, if any."""
        return self._records.get((kind, key))

    def free_count(self, kind: str, wall_ms: int) -> int:
        """Return how many more records of a kind fit, after dropping expired ones."""
        of_kind = [record for record in self._records.values() if record.kind == kind]
        over = [record for record in of_kind if is_expired(record, wall_ms)]
        for record in over:
            del self._records[record.kind, record.key]
            self._logged.discard((record.kind, record.key))
        return KINDS[kind].count_max - (len(of_kind) - len(over))

    def pop_new_records(self) -> tuple[Recorded, ...]:
        """Return the records that were added since the previous call."""
        if not self._new_records:
            return ()
        news, self._new_records = tuple(self._new_records.values()), {}
        return news
