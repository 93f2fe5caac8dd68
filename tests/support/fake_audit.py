"""An audit log in memory; it passes the contract tests of the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from octaskly.core.model.ids import NodeId
from octaskly.ports.audit import AuditEntry, AuditPage


class FakeAudit:
    """Keeps entries in order of arrival; a cursor is a position in it."""

    def __init__(self, require_dispatcher: Callable[[], None]) -> None:
        self.deeds: list[AuditEntry] = []
        self._require_dispatcher = require_dispatcher

    async def record_entries(self, deeds: Sequence[AuditEntry]) -> None:
        self._require_dispatcher()
        known = {deed.id for deed in self.deeds}
        self.deeds += [deed for deed in deeds if deed.id not in known]

    async def join_times(self, nodes: Iterable[NodeId]) -> Mapping[NodeId, int]:
        ids = {f"join-{node}": node for node in nodes}
        return {ids[d.id]: d.at_ms for d in self.deeds if d.id in ids}

    async def read_page(
        self, *, since_ms: int | None, after: str | None, limit: int
    ) -> AuditPage:
        self._require_dispatcher()
        start = 0 if after is None else int(after)
        if since_ms is None and after is None:
            start = max(0, len(self.deeds) - limit)
        found = [
            (place, deed)
            for place, deed in enumerate(self.deeds[start:], start + 1)
            if since_ms is None or deed.at_ms >= since_ms
        ][:limit]
        cursor = str(found[-1][0]) if found else after
        return AuditPage(tuple(deed for _, deed in found), cursor)
