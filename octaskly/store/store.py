"""The durable store of a node in one SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from octaskly.core import effects as ef
from octaskly.core import events as ev
from octaskly.core.change_feed import FeedPage
from octaskly.core.log.facts import Entry
from octaskly.core.log.merge import TaskRecord
from octaskly.core.log.task_ages import ClockWatch, TaskAges
from octaskly.core.model.ids import Address, AttemptId, Epoch, NodeId, StreamId, TaskId
from octaskly.core.protocol.messages import PackedMessage, Report
from octaskly.ports.events import RecentAttempts
from octaskly.ports.store import (
    Clock,
    DisplayFacts,
    Packer,
    StoreStats,
    TaskListPage,
    TaskQuery,
)
from octaskly.store.reading import change_feed, pages, queries, queue, short_ids
from octaskly.store.reading.compaction_plan import plan_compaction
from octaskly.store.reading.display_facts import read_display_facts
from octaskly.store.reading.open_snapshots import OpenSnapshots
from octaskly.store.reading.reader_pool import ReaderPool
from octaskly.store.reading.snapshot import is_snapshot_needed
from octaskly.store.reading.unblocked_tasks import load_unblocked_tasks
from octaskly.store.tables import mesh_records, node_state, task_name_collisions
from octaskly.store.tables.database import (
    READ_ERRORS,
    DatabaseLock,
    build_store_error,
    default_size_max,
    disk_bytes,
    free_bytes,
    open_writer,
)
from octaskly.store.tables.node_state import (
    PeerContact,
    forget_visitors,
    read_saved,
    read_task_ages,
)
from octaskly.store.tables.staged_parts import drop_incomplete_snapshots
from octaskly.store.writing.commit_queue import ClockCheck, QueueItem
from octaskly.store.writing.stream_repair import repair_streams
from octaskly.store.writing.table_merge import finish_merges
from octaskly.store.writing.writer import Writer

FREE_BYTES_MIN: Final = 64 << 20  #: free space below which no new work is accepted
_READERS: Final = 2  #: connections for all but submissions and lists
CLOCK_CHECK_S: Final = 10.0  #: time until a step of the wall clock is stored
QUEUED_ENTRIES_MAX: Final = 200_000  #: entries that may wait for a stalled disk

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _query(
    function: Callable[Concatenate[sqlite3.Connection, _P], _T],
    pool: str = "_readers",
) -> Callable[Concatenate[Store, _P], Coroutine[None, None, _T]]:
    """Return a method that runs a query with a connection of this pool of `Store`."""

    @wraps(function)
    async def run(store: Store, /, *args: _P.args, **options: _P.kwargs) -> _T:
        readers: ReaderPool = getattr(store, pool)
        return await readers.run_query(function, *args, **options)

    return run


class Store:
    """Log, tasks, attempts, spool and peers in one file.

    Calls that write return at once, and one writer performs them in order. After the
    commit that makes `number` and all before it durable, `on_persisted(number)` is
    called on the event loop. Calls that read are coroutines. `open` may run in a
    thread.

    Args:
        path: The database file. Its folder is created if it is missing.
        packer: Converts facts and reports to bytes.
        on_persisted: Called on the event loop with the highest durable `number`.
        clock: Source of the time at which facts are stored.
        loop: The running event loop by default.
        free_bytes_min: Free disk space that must remain after new work is accepted.
        bytes_max: Size of the log above which the oldest ended tasks are purged.
            The default is 8 GB or a tenth of the disk, whichever is less.
    """

    def __init__(
        self,
        path: Path,
        packer: Packer,
        on_persisted: Callable[[int], None],
        clock: Clock,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        free_bytes_min: int = FREE_BYTES_MIN,
        bytes_max: int | None = None,
    ) -> None:
        self._path, self._folder = path, str(path.parent)
        self._packer = packer
        self._on_persisted = on_persisted
        self._clock = clock
        self._loop = loop or asyncio.get_running_loop()
        self._free_bytes_min = free_bytes_min
        self._bytes_max = bytes_max
        self._lock: DatabaseLock | None = None
        self._writer: Writer | None = None
        self._readers = ReaderPool(path, self._loop, "reader", _READERS)
        self._submission_reader = ReaderPool(path, self._loop, "submission-reader", 1)
        self._list_reader = ReaderPool(path, self._loop, "list-reader", 1)
        self._snapshots = OpenSnapshots(path, packer, self._loop, clock.now().wall_ms)
        self._pools = (
            self._readers,
            self._submission_reader,
            self._list_reader,
            self._snapshots,
        )
        self._merges_left = 0  #: complete snapshots that are not merged yet
        self._last_merges: deque[int] = deque()  #: numbers of their last merges
        self._has_merged = asyncio.Event()
        self._clock_watch = ClockWatch(clock.now())
        self._clock_check: asyncio.TimerHandle | None = None

    @property
    def write_failure(self) -> str | None:
        """The reason why writes fail now, or None while they succeed."""
        return None if self._writer is None else self._writer.write_failure

    @property
    def has_writer_stopped(self) -> bool:
        """Return True if the writer has stopped for good, so the process must end."""
        return self._writer is not None and self._writer.has_stopped

    @property
    def notification_count(self) -> int:
        """A counter that grows when `read_pending_notifications` may find new tasks."""
        return 0 if self._writer is None else self._writer.notification_count

    async def wait_until_purged(self) -> None:
        """Wait until no row below the compaction floor is left."""
        if self._writer is not None:
            await self._writer.wait_until_purged()

    def has_disk_room(self, needed_bytes: int = 0) -> bool:
        """Return True if the disk has room for new work and accepts writes."""
        return self.shortage_reason(needed_bytes) is None

    def shortage_reason(self, needed_bytes: int = 0) -> str | None:
        """Return why new work cannot be stored, or None if it can."""
        writer = self._writer
        if writer is None:
            return "the log is not open"
        if writer.write_failure:
            return writer.write_failure
        if writer.queued_entries > QUEUED_ENTRIES_MAX:
            return "the disk is too slow: too many entries wait to be written"
        free, needed = free_bytes(self._folder), self._free_bytes_min + needed_bytes
        if free >= needed:
            return None
        return f"{free >> 20} MiB are free where the log is, {needed >> 20} are needed"

    def open(self) -> ev.SavedState:
        """Open or create the database and return the node's saved state.

        Raises:
            StoreCorrupt: The file is damaged, belongs to another program, or was
                written by a newer version. It is left unchanged.
            StoreUnusable: The file cannot be opened, or another process uses it.
            StoreFull: The disk is full.
        """
        assert self._writer is None
        lock = DatabaseLock(self._path)
        try:
            connection = open_writer(self._path)
        except BaseException:
            lock.release()
            raise
        try:
            saved = self._start(connection)
        except BaseException:
            self._close_readers()
            connection.close()
            lock.release()
            raise
        self._lock = lock
        self._loop.call_soon_threadsafe(self._check_clock)
        return saved

    def append_entries(
        self,
        number: int,
        entries: Sequence[Entry],
        epochs: Sequence[tuple[StreamId, Epoch]] = (),
    ) -> None:
        """Queue entries for the next commit, which leaves out those already held."""
        self._queue_item(ef.Append(number, tuple(entries), tuple(epochs)))

    def stage_rows(self, item: ef.StageRows) -> None:
        """Queue a part of a snapshot, which is kept until it is merged.

        `open` drops incomplete snapshots, and merges complete ones.
        """
        if not item.part.has_more:
            self._merges_left += 1
            self._has_merged.clear()
        self._queue_item(item)

    def merge_rows(self, item: ef.MergeRows) -> None:
        """Queue the merge of the next part of a snapshot for the next commit."""
        if item.is_last:
            self._last_merges.append(item.number)
        self._queue_item(item)

    def save_node_state(self, item: ef.Save) -> None:
        """Queue node state for the next commit."""
        self._queue_item(item)

    def spool_results(self, reports: Sequence[Report]) -> None:
        """Queue results, which are kept until `unspool_results`."""
        self._queue_item(ef.Spool(tuple(reports)))

    def unspool_results(self, items: Sequence[tuple[TaskId, AttemptId]]) -> None:
        """Queue the deletion of spooled results."""
        self._queue_item(ef.Unspool(tuple(items)))

    def save_peer(self, peer: NodeId, name: str, addresses: Sequence[Address]) -> None:
        """Queue a peer's addresses."""
        self._queue_item(
            PeerContact(peer, name, tuple(addresses), self._clock.now().wall_ms)
        )

    # Queries that are neither for submissions nor for lists:
    load_live_tasks = _query(queue.load_live_tasks)
    load_tasks = _query(queue.load_tasks)
    read_vector = _query(node_state.read_vector)
    stream_extents_at = _query(change_feed.stream_extents_at)
    read_task = _query(queries.read_task)
    names_with_sequence = _query(short_ids.names_with_sequence)
    read_pending_notifications = _query(queries.read_pending_notifications)
    read_records = _query(mesh_records.read_page)
    count_failures = _query(queries.count_failures)
    read_needed_files = _query(queries.read_needed_files)
    find_forgotten = _query(queries.find_forgotten)
    count_webhooks = _query(queries.count_webhooks)
    read_queued_bytes = _query(queue.read_queued_bytes)

    # Queries for submissions, which do not wait for others:
    read_ids_by_name = _query(task_name_collisions.ids_of, "_submission_reader")
    read_tasks_by_name = _query(queries.read_tasks_by_name, "_submission_reader")
    streams_of_tasks = _query(queries.streams_of_tasks, "_submission_reader")
    count_queued_tasks = _query(queries.count_queued_tasks, "_submission_reader")
    find_name_collision = _query(
        task_name_collisions.find_name_collision, "_submission_reader"
    )

    # Queries for lists, which may take long:
    names_with_short_id = _query(short_ids.names_with_short_id, "_list_reader")
    incomplete_member_ranges = _query(queries.incomplete_member_ranges, "_list_reader")
    read_ended_members = _query(queries.read_ended_members, "_list_reader")

    async def load_queued_tasks(self, ask: ef.LoadQueued) -> ev.QueuedLoaded:
        """Read queued tasks of one lane with `ord > after_ord`, in order."""
        assert self._writer is not None, "the store is not open"
        reading = self._writer.queue_rows.reading

        def load(db: sqlite3.Connection) -> ev.QueuedLoaded:
            with reading() as keep_rows:
                answer, stored = queue.load_queued_tasks(db, ask)
                keep_rows(stored)
            return answer

        return await self._readers.run_query(load)

    async def load_unblocked_tasks(self, ask: ef.LoadUnblocked) -> ev.UnblockedLoaded:
        """Read tasks whose dependencies are met or broken, oldest first."""
        read_ages = self._ages_reader()
        return await self._readers.run_query(
            lambda db: load_unblocked_tasks(db, ask, read_ages(db))
        )

    async def read_pull_reply(
        self,
        pull: ef.ServePull,
        bytes_max: int,
    ) -> PackedMessage:
        """Read the reply to a `Pull`: `Entries`, or the next part of a `Snapshot`.

        It waits while a snapshot is merged here, if the reply is one.
        """
        packer, snapshots = self._packer, self._snapshots

        def entries(db: sqlite3.Connection) -> PackedMessage | None:
            if pull.cursor is not None or is_snapshot_needed(db, pull):
                return None
            return queries.pack_entries_beyond(db, packer, dict(pull.vector), bytes_max)

        while True:
            packed = await snapshots.read_next_part(pull, bytes_max)
            packed = packed or await self._readers.run_query(entries)
            packed = packed or await snapshots.start(
                pull, bytes_max, self._ages_reader()
            )
            if packed is not None:
                return packed
            await self._has_merged.wait()

    async def plan_compaction(self, ask: ef.PlanFloor) -> ev.FloorPlanned:
        """Find how far the compaction floor may rise."""
        read_ages = self._ages_reader()
        return await self._readers.run_query(
            lambda db: plan_compaction(
                db, self._packer, ask, self._size_max(), read_ages(db)
            )
        )

    async def read_feed_page(
        self, vector: Mapping[StreamId, int], limit: int
    ) -> FeedPage:
        """Read entries beyond `vector` from all streams, in timestamp order."""
        return await self._readers.run_query(
            change_feed.read_feed_page, self._packer, vector, limit
        )

    async def read_display_facts(
        self, records: Sequence[TaskRecord]
    ) -> Mapping[TaskId, DisplayFacts]:
        """Read what people see of these tasks, and what their records lack."""
        pool = self._readers if len(records) == 1 else self._list_reader
        return await pool.run_query(read_display_facts, records)

    async def read_task_page(self, query: TaskQuery) -> TaskListPage:
        """Read one page of tasks."""
        return await self._list_reader.run_query(
            pages.read_task_page, query, lambda: self._clock.now().mono_s
        )

    async def read_recent_attempts(self, since_ms: int, limit: int) -> RecentAttempts:
        """Read up to `limit` running attempts, and as many that ended since."""
        return await self._list_reader.run_query(
            change_feed.read_recent_attempts, self._packer, since_ms, limit
        )

    async def read_stats(self) -> StoreStats:
        """Read the counters."""
        stats, writer = await self._readers.run_query(queries.read_stats), self._writer
        assert writer is not None, "the store is not open"
        return replace(
            stats,
            disk_bytes=disk_bytes(self._path),
            free_bytes=free_bytes(self._folder),
            queued_entries=writer.queued_entries,
            committed_entries=writer.committed_entries,
            commit_s=writer.commit_s,
        )

    async def close(self) -> None:
        """Commit queued items, stop the writer and close the file.

        Raises:
            StoreError: Some items could not be written. They were never acknowledged.
        """
        if self._clock_check is not None:
            self._clock_check.cancel()
        self._record_clock_step()
        await asyncio.to_thread(self._close_all)

    def _start(self, connection: sqlite3.Connection) -> ev.SavedState:
        """Read the saved state and start the threads."""
        try:
            # A stream never resumes after a restart, so nothing follows in these.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM streams WHERE last_seq = 0")
            forget_visitors(connection, self._clock.now().wall_ms)
            repair_streams(connection)
            drop_incomplete_snapshots(connection)
            connection.execute("COMMIT")
            finish_merges(connection, self._packer, self._clock)
            saved = read_saved(connection, self._packer, self._clock.now().wall_ms)
            for pool in self._pools:
                pool.open()
            self._writer = Writer(
                self._path,
                connection,
                self._packer,
                self._clock,
                self._clock_watch,
                self._loop,
                self._report_persisted,
            )
        except READ_ERRORS as error:
            raise build_store_error(self._path, error) from error
        return saved

    def _report_persisted(self, number: int) -> None:
        while self._last_merges and self._last_merges[0] <= number:
            self._last_merges.popleft()
            self._merges_left -= 1
        if not self._merges_left:
            self._has_merged.set()
        self._on_persisted(number)

    def _ages_reader(self) -> Callable[[sqlite3.Connection], TaskAges]:
        """Return a function that reads, in a later transaction, what ages depend on."""
        now = self._clock.now()
        unrecorded = self._clock_watch.find_step(now)
        return lambda db: read_task_ages(db, now.wall_ms, unrecorded)

    def _check_clock(self) -> None:
        """Compare the clocks from time to time while the store is open."""
        if self._writer is not None:
            self._record_clock_step()
            self._clock_check = self._loop.call_later(CLOCK_CHECK_S, self._check_clock)

    def _record_clock_step(self) -> None:
        """Have a step of the wall clock stored, even if nothing else is written.

        Otherwise it would be unknown after a restart.
        """
        is_stepped = self._clock_watch.find_step(self._clock.now()) is not None
        if self._writer is not None and is_stepped and not self._writer.queued_entries:
            self._writer.queue_item(ClockCheck())

    def _queue_item(self, item: QueueItem) -> None:
        assert self._writer is not None, "the store is not open"
        self._writer.queue_item(item)

    def _size_max(self) -> int:
        return (
            default_size_max(self._path) if self._bytes_max is None else self._bytes_max
        )

    def _close_readers(self) -> None:
        for pool in self._pools:
            pool.close()

    def _close_all(self) -> None:
        self._close_readers()
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None
