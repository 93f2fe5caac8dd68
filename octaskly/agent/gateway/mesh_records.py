"""Records of the mesh: writes, reads and subscriptions for the shell.

Components subscribe to a kind before the agent starts. At the first step of the core
they receive all stored records of that kind. Later they receive each record that
reaches this node's disk, from any node. See `octaskly.core.log.mesh_records`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from octaskly.agent.gateway.pending_requests import PendingRequests
from octaskly.agent.health import HealthChecks
from octaskly.core.events import RecordRequested
from octaskly.core.log.facts import Recorded
from octaskly.core.log.mesh_records import RecordDraft, is_valid_record
from octaskly.core.replies import RecordLimitReached, RecordsKept
from octaskly.errors import TooManyRecords
from octaskly.ports.store import RecordQuery
from octaskly.store import Store

RecordListener = Callable[[Recorded], None]


class Records:
    """The records of this node: named values that belong to no task."""

    def __init__(
        self,
        pending_requests: PendingRequests,
        store: Store,
        health_checks: HealthChecks,
    ) -> None:
        self._pending_requests = pending_requests
        self._health_checks = health_checks
        self._store = store
        self._listeners: dict[str, list[RecordListener]] = {}

    def subscribe(self, kind: str, listener: RecordListener) -> None:
        """Call `listener` with each record of a kind, on the event loop."""
        self._listeners.setdefault(kind, []).append(listener)

    def on_records(self, records: Sequence[Recorded]) -> None:
        """Pass records that are on this node's disk to their listeners."""
        for record in records:
            for listener in self._listeners.get(record.kind, ()):
                listener(record)

    async def write_records(self, *drafts: RecordDraft) -> RecordsKept:
        """Write all records or none; return the valid ones once replicated.

        If a record with the same kind and key exists, that one is returned.

        Raises:
            NotDispatcher: another node is dispatcher; nothing was recorded.
            NotDurable: durability is strict, and no standby acknowledges.
            TooManyRecords: the mesh has the maximum number of records of a kind.
            StoreFull: the disk takes no writes. If it stopped after the request, the
                records are written once it takes writes again.
        """
        assert all(is_valid_record(Recorded(*draft, hlc=0)) for draft in drafts)
        self._health_checks.require_writable_log()
        reply = await self._pending_requests.send_request(
            lambda ticket: RecordRequested(ticket, drafts),
            check=partial(
                self._health_checks.require_durable, "the record will be written later"
            ),
        )
        if isinstance(reply, RecordLimitReached):
            raise TooManyRecords(
                f"the mesh has {reply.count_max} records {reply.kind}, the maximum"
            )
        assert isinstance(reply, RecordsKept)
        return reply

    async def read_page(self, query: RecordQuery) -> tuple[Recorded, ...]:
        """Read records, including expired ones."""
        return await self._store.read_records(query)
