"""The audit log: its entries are records, which the whole mesh keeps."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import msgspec

from octaskly.agent.gateway.mesh_records import Records
from octaskly.core.log.facts import Recorded
from octaskly.core.log.mesh_records import (
    AUDIT,
    AUDIT_KINDS,
    AUDIT_REFUSED,
    AUDIT_TASKS,
    AUDIT_UNAUTHENTICATED,
    KINDS,
    RecordDraft,
)
from octaskly.core.model.field_types import TIME_MS_MAX
from octaskly.core.model.hlc import HLC_MAX, hlc_of
from octaskly.core.model.ids import NodeId, TaskId, task_name
from octaskly.errors import OctasklyError, StoreFull
from octaskly.ports.audit import AuditEntry, AuditPage
from octaskly.ports.store import RecordQuery
from octaskly.system.clock import SystemClock

RETENTION_MS: Final = 90 * 86_400_000
TEXT_BYTES_MAX: Final = 160  #: of each text in an entry; clients may have chosen it
SUBJECT_BYTES_MAX: Final = 512
JOIN_ACTION: Final = "join"  #: the action of a node's first contact
VISIT_ACTION: Final = "run on visitor"
VISIT_TASKS_MAX: Final = 64  #: of one entry
ID_CHARS_MAX: Final = 120
RETRY_S: Final = 2.0  #: while the disk takes no writes
ABSENT_S: Final = 60.0  #: between two reads of a join time that was not found

_CURSOR: Final = re.compile(r"([0-9a-f]{1,16})-([\x20-\x7e]{1,200})")


class AgentAuditLog:
    """The audit log of one mesh, as one node has it.

    Args:
        records: Stores the entries.
        clock: Gives the time for entries and their expiry.
        node_id: This node.
        require_dispatcher: Raises NotDispatcher unless this node is dispatcher.
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
        self._join_times: dict[NodeId, int] = {}  #: known join times
        #: Read time by node without a join entry, such as the founder of the mesh.
        self._absent: dict[NodeId, float] = {}

    async def record_entries(self, entries: Sequence[AuditEntry]) -> None:
        """Write entries; return once they are replicated."""
        await self._records.write_records(*map(_record_of_entry, entries))

    async def record_join(self, node: NodeId, name: str) -> None:
        """Write an entry for a node that is new to the mesh."""
        now_ms = self._clock.now().wall_ms
        entry = AuditEntry(
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
            is_administrative=True,
        )
        with suppress(OctasklyError):  # The next dispatcher writes it.
            await self._record_with_retry(entry)
            self._absent.pop(node, None)

    async def record_visit(
        self, visitor: NodeId, name: str, tasks: Sequence[TaskId]
    ) -> None:
        """Write entries for the tasks that the dispatcher has given to a visitor."""
        now_ms = self._clock.now().wall_ms
        for first in range(0, len(tasks), VISIT_TASKS_MAX):
            some = tasks[first : first + VISIT_TASKS_MAX]
            entry = AuditEntry(
                id=f"{VISIT_ACTION}-{visitor}-{now_ms}-{some[0]}"[:ID_CHARS_MAX],
                at_ms=now_ms,
                subject=f"visitor:{name}",
                role=None,
                action=VISIT_ACTION,
                target=visitor,
                source="mesh",
                received_by=self._node_id,
                decided_by=self._node_id,
                status=200,
                tasks=tuple(map(task_name, some)),
                task_count=len(some),
            )
            with suppress(OctasklyError):  # The log has the attempts, too.
                await self._record_with_retry(entry)

    async def _record_with_retry(self, entry: AuditEntry) -> None:
        """Write an entry; retry while the disk is full: no caller does."""
        while True:
            with suppress(StoreFull):
                await self.record_entries([entry])
                return
            await asyncio.sleep(RETRY_S)

    async def join_times(self, nodes: Iterable[NodeId]) -> Mapping[NodeId, int]:
        """Return the known join times by node id, in wall-clock ms."""
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
        # Set before the read, so that a node that joins meanwhile is read again.
        self._absent |= dict.fromkeys(asked.values(), now_s)
        found = await self._records.read_page(
            RecordQuery(kinds=(AUDIT,), keys=tuple(asked), limit=len(asked))
        )
        for record in found:
            if (entry := _entry_of_record(record)) is not None:
                self._join_times[asked[record.key]] = entry.at_ms
        return self._join_times

    async def read_page(
        self, *, since_ms: int | None, after: str | None, limit: int
    ) -> AuditPage:
        """Read entries since a time or after a cursor; by default the latest."""
        self._require_dispatcher()
        oldest_ms = self._clock.now().wall_ms - RETENTION_MS
        since = hlc_of(max(oldest_ms, since_ms or 0))
        is_latest = since_ms is None and after is None
        beyond = None if after is None else _parse_cursor(after)
        found = await self._records.read_page(
            RecordQuery(
                kinds=AUDIT_KINDS,
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
        raise ValueError(f"{cursor[:80]!a} is not a cursor")
    return int(match[1], 16), match[2]


def _record_of_entry(entry: AuditEntry) -> RecordDraft:
    """Return an entry as a record; truncate it to the size limit of records."""
    brief = replace(
        entry,
        subject=_truncate(entry.subject, SUBJECT_BYTES_MAX),
        action=_truncate(entry.action) or "",
        target=_truncate(entry.target),
        source=_truncate(entry.source) or "",
    )
    kind = _kind_of_entry(entry)
    body = msgspec.msgpack.encode(brief)
    if len(body) > KINDS[kind].body_bytes_max:
        # Only another node can have sent lists that are longer than those of ours.
        command = _truncate(brief.command)
        brief = replace(brief, tasks=(), targets=(), command=command)
        body = msgspec.msgpack.encode(brief)
    return RecordDraft(kind, entry.id, body, entry.at_ms + RETENTION_MS)


def _kind_of_entry(entry: AuditEntry) -> str:
    if entry.is_refused:
        return AUDIT_UNAUTHENTICATED if entry.is_unauthenticated else AUDIT_REFUSED
    return AUDIT if entry.is_administrative else AUDIT_TASKS


def _entry_of_record(record: Recorded) -> AuditEntry | None:
    """Return the entry of a record; None if the record is not a valid entry.

    A newer version or a hostile member may have written the record.
    """
    try:
        entry = msgspec.msgpack.decode(record.body, type=AuditEntry)
    except (msgspec.DecodeError, ValueError):
        return None
    times = (entry.at_ms, entry.last_ms or 0)
    return entry if all(0 <= time < TIME_MS_MAX for time in times) else None


def _truncate(text: str | None, bytes_max: int = TEXT_BYTES_MAX) -> str | None:
    if text is None:
        return None
    return text.encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")
