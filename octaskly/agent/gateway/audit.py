"""The audit log: deeds as records, which the whole mesh keeps and lists."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import msgspec

from octaskly.agent.gateway.records import Records
from octaskly.core.events import RecordDraft
from octaskly.core.log.facts import Recorded
from octaskly.core.log.records import AUDIT, AUDIT_UNAUTHENTICATED, KINDS
from octaskly.core.model.field_types import TIME_MS_MAX
from octaskly.core.model.hlc import HLC_MAX, hlc_of
from octaskly.core.model.ids import NodeId
from octaskly.errors import OctasklyError, StoreFull
from octaskly.ports import AuditEntry, AuditPage, RecordQuery
from octaskly.system.clock import SystemClock

RETENTION_MS: Final = 90 * 86_400_000
TEXT_BYTES_MAX: Final = 160  #: of each text in a deed, which others may have chosen
JOIN_ACTION: Final = "join"  #: a node was met for the first time
RETRY_S: Final = 2.0  #: while the disk takes no writes
ABSENT_S: Final = 60.0  #: a node without such a deed is asked for again after so long

_CURSOR: Final = re.compile(r"([0-9a-f]{1,16})-([\x21-\x7e]{1,200})")


class AgentAuditLog:
    """The deeds of one mesh, seen from one node.

    Args:
        records: Where they are kept.
        clock: The time by which they are forgotten.
        node_id: This node.
        require_dispatcher: Raises NotDispatcher unless this node reigns.
    """

    def __init__(
        self,
        records: Records,
        clock: SystemClock,
        node_id: NodeId,
        require_dispatcher: Callable[[], None],
    ) -> None:
        self._records = records
        self._clock = clock
        self._node_id = node_id
        self._require_dispatcher = require_dispatcher
        self._join_times: dict[NodeId, int] = {}  #: as far as they were asked for
        self._absent: dict[NodeId, float] = {}  #: who had none when, as the founder

    async def record_entries(self, entries: Sequence[AuditEntry]) -> None:
        """Write deeds, and return when they are safe."""
        await self._records.write_records(*map(_record_of_entry, entries))

    async def record_join(self, node: NodeId, name: str) -> None:
        """Write that a node is in the mesh that was never met before."""
        now_ms = self._clock.now().wall_ms
        deed = AuditEntry(
            id=f"{JOIN_ACTION}-{node}",
            at_ms=now_ms,
            subject=f"node:{name}",
            role=None,
            action=JOIN_ACTION,
            target=node,
            source="mesh",
            received_by=self._node_id,
            decided_by=self._node_id,
            status=200,
        )
        with suppress(OctasklyError):  # Another dispatcher will meet it, too.
            await self._record_with_retry(deed)
            self._absent.pop(node, None)

    async def _record_with_retry(self, entry: AuditEntry) -> None:
        """Write what nobody would tell again, once the disk takes writes."""
        while True:
            with suppress(StoreFull):
                await self.record_entries([entry])
                return
            await asyncio.sleep(RETRY_S)

    async def join_times(self, nodes: Iterable[NodeId]) -> Mapping[NodeId, int]:
        """Return of those that were met as new ones when that was, in wall-clock ms."""
        now_s = self._clock.now().mono_s
        unknown = {node for node in nodes if node not in self._join_times}
        since_s = now_s - ABSENT_S
        self._absent = {
            node: asked_s
            for node, asked_s in self._absent.items()
            if node in unknown and asked_s > since_s
        }
        asked = {
            f"{JOIN_ACTION}-{node}": node for node in unknown - self._absent.keys()
        }
        if not asked:
            return self._join_times
        # Set before the answer: who is met meanwhile is asked for again.
        self._absent |= dict.fromkeys(asked.values(), now_s)
        found = await self._records.read_page(
            RecordQuery(kinds=(AUDIT,), keys=tuple(asked), limit=len(asked))
        )
        for record in found:
            if (deed := _entry_of_record(record)) is not None:
                self._join_times[asked[record.key]] = deed.at_ms
        return self._join_times

    async def read_page(
        self, *, since_ms: int | None, after: str | None, limit: int
    ) -> AuditPage:
        """Read deeds since a time, or behind a cursor; by default the latest."""
        self._require_dispatcher()
        oldest_ms = self._clock.now().wall_ms - RETENTION_MS
        since = hlc_of(max(oldest_ms, since_ms or 0))
        is_latest = since_ms is None and after is None
        beyond = None if after is None else _parse_cursor(after)
        found = await self._records.read_page(
            RecordQuery(
                kinds=(AUDIT, AUDIT_UNAUTHENTICATED),
                limit=limit,
                since_hlc=since,
                after=beyond,
                is_newest_first=is_latest,
            )
        )
        if is_latest:
            found = found[::-1]
        cursor = f"{found[-1].hlc:x}-{found[-1].key}" if found else after
        return AuditPage(tuple(filter(None, map(_entry_of_record, found))), cursor)


def _parse_cursor(cursor: str) -> tuple[int, str]:
    match = _CURSOR.fullmatch(cursor)
    if match is None or int(match[1], 16) > HLC_MAX:
        raise ValueError(f"{cursor[:80]!a} is no cursor")
    return int(match[1], 16), match[2]


def _record_of_entry(entry: AuditEntry) -> RecordDraft:
    """Return a deed as a record, which has a bound on its size."""
    brief = replace(
        entry,
        subject=_truncate(entry.subject),
        action=_truncate(entry.action) or "",
        target=_truncate(entry.target),
        source=_truncate(entry.source) or "",
    )
    body = msgspec.json.encode(brief)
    if len(body) > KINDS[AUDIT].body_bytes_max:
        body = msgspec.json.encode(replace(brief, tasks=()))
    kind = AUDIT_UNAUTHENTICATED if entry.is_unauthenticated else AUDIT
    return RecordDraft(kind, entry.id, body, entry.at_ms + RETENTION_MS)


def _entry_of_record(record: Recorded) -> AuditEntry | None:
    """Return the deed of a record; None if it is none that can be shown.

    A newer version may have written something else, and a hostile member anything.
    """
    try:
        deed = msgspec.json.decode(record.body, type=AuditEntry)
    except (msgspec.DecodeError, ValueError):
        return None
    times = (deed.at_ms, deed.last_ms or 0)
    return deed if all(0 <= time < TIME_MS_MAX for time in times) else None


def _truncate(text: str | None) -> str | None:
    if text is None:
        return None
    return text.encode("utf-8", "replace")[:TEXT_BYTES_MAX].decode("utf-8", "ignore")
