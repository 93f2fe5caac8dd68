"""Records, for the parts of the shell: to write one, to read them, to be told of one.

Whoever goes by records of a kind subscribes before the agent starts. It is told of all
that this node has kept once the core takes its first step, and then of each that is on
this node's disk, wherever it was written; see `core.records`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from octaskly.agent.gateway.health import HealthChecks
from octaskly.agent.gateway.pending_requests import PendingRequests
from octaskly.core.events import RecordDraft, RecordRequested
from octaskly.core.log.facts import Recorded
from octaskly.core.log.records import is_valid_record
from octaskly.core.replies import RecordLimitReached, RecordsKept
from octaskly.errors import TooManyRecords
from octaskly.ports import DurableStore, RecordQuery

RecordListener = Callable[[Recorded], None]


class Records:
    """What this node knows that is about no task."""

    def __init__(
        self,
        pending_requests: PendingRequests,
        store: DurableStore,
        health_checks: HealthChecks,
    ) -> None:
        self._pending_requests = pending_requests
        self._health_checks = health_checks
        self._store = store
        self._listeners: dict[str, list[RecordListener]] = {}

    def subscribe(self, kind: str, listener: RecordListener) -> None:
        """Call `heard` with each record of a kind, on the event loop."""
        self._listeners.setdefault(kind, []).append(listener)

    def on_records(self, records: Sequence[Recorded]) -> None:
        """Pass on what has come to this node's disk."""
        for record in records:
            for heard in self._listeners.get(record.kind, ()):
                heard(record)

    async def write_records(self, *drafts: RecordDraft) -> RecordsKept:
        """Record these, all or none, and return what counts when that is safe.

        Where kind and key were taken, that is the earlier record.

        Raises:
            NotDispatcher: another node is dispatcher; nothing was recorded.
            NotDurable: one copy is too few.
            TooManyRecords: the mesh keeps no more of a kind.
            StoreFull: the disk takes no writes. What was asked for when it stopped to
                do so is recorded once it does again.
        """
        assert all(is_valid_record(Recorded(*draft, hlc=0)) for draft in drafts)
        self._health_checks.require_writable_log()
        reply = await self._pending_requests.send_request(
            lambda ticket: RecordRequested(ticket, drafts),
            check=partial(self._health_checks.require_durable, "it is noted for later"),
        )
        if isinstance(reply, RecordLimitReached):
            raise TooManyRecords(
                f"the mesh keeps {reply.count_max} records {reply.kind}"
            )
        assert isinstance(reply, RecordsKept)
        return reply

    async def read_page(self, query: RecordQuery) -> tuple[Recorded, ...]:
        """Read records of one kind, also those that are over."""
        return await self._store.read_records(query)
