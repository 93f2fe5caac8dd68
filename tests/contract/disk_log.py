"""The simulation's disk as a `Store`, with the methods that the core uses.

It passes the suite of the store, or the simulation would prove things about a disk
that nobody has.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from octaskly.core.effects import (
    Append,
    LoadLive,
    LoadQueued,
    LoadTasks,
    MergeRows,
    PlanFloor,
    Save,
    ServePull,
    StageRows,
)
from octaskly.core.events import (
    FloorPlanned,
    LiveLoaded,
    QueuedLoaded,
    SavedState,
    TasksLoaded,
)
from octaskly.core.log.facts import Entry, Recorded
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.ids import AttemptId, Epoch, StreamId, TaskId, VectorItems
from octaskly.core.model.tasks import TaskState
from octaskly.core.protocol.messages import (
    Entries,
    PackedMessage,
    Report,
)
from octaskly.ports.store import (
    Clock,
    RecordQuery,
    StoreStats,
    TaskListPage,
    TaskParts,
    TaskQuery,
)
from tests.contract.log_kit import PicklePacker
from tests.simulation.store.disk import Disk
from tests.simulation.store.plan import plan_floor
from tests.simulation.store.queue import by_id, live, load
from tests.simulation.store.snapshot import entries_after, next_part

ENTRIES_MAX = 1000


class DiskLog:
    """Commits pending entries at the next turn of the event loop."""

    def __init__(self, disk: Disk, hear: Callable[[int], None], clock: Clock) -> None:
        self._disk = disk
        self._clock = clock
        self._hear = hear

    def open(self) -> SavedState:
        self._disk.start(self._clock.now())
        return self._disk.saved()

    def append_entries(
        self,
        number: int,
        entries: Sequence[Entry],
        epochs: Sequence[tuple[StreamId, Epoch]] = (),
    ) -> None:
        self._disk.append(Append(number, tuple(entries), tuple(epochs)))
        self._commit_soon()

    def stage_rows(self, item: StageRows) -> None:
        self._disk.stage(item)
        self._commit_soon()

    def merge_rows(self, item: MergeRows) -> None:
        self._disk.join(item)
        self._commit_soon()

    def save_node_state(self, item: Save) -> None:
        self._disk.save(item)
        self._commit_soon()

    def spool_results(self, reports: Sequence[Report]) -> None:
        self._disk.keep(tuple(reports))

    def unspool_results(self, items: Sequence[tuple[TaskId, AttemptId]]) -> None:
        self._disk.forget(tuple(items))

    async def load_queued_tasks(self, ask: LoadQueued) -> QueuedLoaded:
        return load(self._disk, ask)

    async def load_live_tasks(self, ask: LoadLive) -> LiveLoaded:
        return live(self._disk, ask)

    async def load_tasks(self, ask: LoadTasks) -> TasksLoaded:
        return by_id(self._disk, ask)

    async def read_pull_reply(
        self,
        pull: ServePull,
        bytes_max: int,
    ) -> PackedMessage:
        disk, pack = self._disk, PicklePacker().pack
        disk.record_clock_step(self._clock.now())
        part = next_part(disk, pull)
        if part is not None:
            return PackedMessage(pack(part))
        most = min(bytes_max, ENTRIES_MAX)
        entries, epochs, more = entries_after(disk, dict(pull.vector), most)
        message = Entries(entries, epochs, more, disk.vector(), disk.retired.digest)
        return PackedMessage(pack(message))

    async def plan_compaction(self, ask: PlanFloor) -> FloorPlanned:
        self._disk.record_clock_step(self._clock.now())
        return plan_floor(self._disk, ask)

    async def read_vector(self) -> VectorItems:
        return self._disk.vector()

    async def read_records(self, query: RecordQuery) -> tuple[Recorded, ...]:
        some = [
            ((r.hlc, r.key), r)
            for r in self._disk.committed_records()
            if r.kind in query.kinds and r.hlc >= query.since_hlc
            if query.keys is None or r.key in query.keys
        ]
        some.sort(key=lambda placed: placed[0], reverse=query.is_newest_first)
        if query.after is not None:
            is_first = query.is_newest_first
            some = [s for s in some if s[0] != query.after]
            some = [s for s in some if (s[0] < query.after) == is_first]
        return tuple(record for _, record in some[: query.limit])

    async def read_task(
        self, ref: str, parts: TaskParts = TaskParts.ALL
    ) -> TaskRecord | None:
        return self._disk.shown(TaskId(ref))

    async def read_task_page(self, query: TaskQuery) -> TaskListPage:
        order = sorted(self._disk.keys.items(), key=lambda item: item[1])
        records = tuple(self._disk.records[task] for task, _ in order)
        return TaskListPage(records[query.offset :][: query.limit], len(records))

    async def read_stats(self) -> StoreStats:
        states = [record.state for record in self._disk.records.values()]
        return StoreStats(
            counts={state: states.count(state) for state in TaskState},
            disk_bytes=0,
            sequence=self._disk.sequence,
        )

    async def count_webhooks(self, submitter: str) -> int:
        return sum(
            r.spec.submitter == submitter and bool(r.spec.options.notify_url)
            for r in self._disk.records.values()
            if r.spec is not None and r.spec.options is not None and not r.is_notified
        )

    async def read_queued_bytes(self, uncounted_bytes: int) -> Mapping[str, int]:
        counts: Counter[str] = Counter()
        for record in self._disk.records.values():
            if record.state is TaskState.QUEUED and record.spec is not None:
                options = record.spec.options
                size = len(record.spec.command) + (options.chars if options else 0)
                counts[record.spec.submitter] += max(0, size - uncounted_bytes)
        return +counts

    async def close(self) -> None:
        self._commit()

    def _commit_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._commit)

    def _commit(self) -> None:
        number = self._disk.commit(len(self._disk.waiting), self._clock.now())
        if number is not None:
            self._hear(number)
