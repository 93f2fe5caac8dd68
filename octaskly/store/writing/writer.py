"""The writer thread: group commit of all queued items, with retries.

The first write after a pause is committed at once. While writes arrive faster than
commits finish, the thread waits up to a few milliseconds, so that a commit holds more
of them.

Facts without a waiting caller (an attempt was assigned) do not wake the thread. They
are committed with the next urgent item, or after `DEFERRED_S_MAX`. A short task then
costs two commits instead of three, and the thread does not take Python's global
lock while the attempt starts.

A failed write is retried until it is durable, and acknowledged only then.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from octaskly.core.effects import Append, MergeRows, Save, Spool, StageRows, Unspool
from octaskly.core.log.task_ages import ClockStep, ClockWatch
from octaskly.errors import StoreError
from octaskly.ports.histogram import Histogram
from octaskly.ports.store import Clock, Packer
from octaskly.store.tables import node_state
from octaskly.store.tables.database import (
    DatabaseFile,
    WalPreallocation,
    build_store_error,
    has_spare_pages,
    vacuum_some_pages,
)
from octaskly.store.tables.node_state import PeerContact
from octaskly.store.writing.commit_queue import (
    Batch,
    CommitQueue,
    QueueItem,
    TableItem,
    last_number,
)
from octaskly.store.writing.table_merge import TableWriter
from octaskly.system.clock import loop_time

BUSY_ITEMS: Final = 2  #: with this many urgent items after a commit, expect more
COALESCE_S: Final = 0.001  #: length of one wait for more items while busy
COALESCE_WAITS_MAX: Final = 5  #: number of these waits, while more items arrive
COALESCE_ENTRIES: Final = 256  #: number of entries that ends the wait
DEFERRED_S_MAX: Final = 0.005  #: longest delay of items that are not urgent
PURGE_ENTRIES_PER_STEP: Final = 128  #: added entries per purge step
PURGE_STEPS_MAX: Final = 16  #: purge steps after a commit; writes wait for them
SPARE_PAGES_CHECK_S: Final = 1.0  #: time between checks for spare pages without a purge
RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 2.0
COMMIT_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10)

_NEVER: Final = 1 << 62


class Writer:
    """Owns the writing connection and its thread."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        packer: Packer,
        clock: Clock,
        clock_watch: ClockWatch,
        loop: asyncio.AbstractEventLoop,
        on_commit: Callable[[int], None],
    ) -> None:
        self._path = path
        self._db = connection
        self._packer = packer
        self._loop = loop
        self._on_commit = on_commit
        self._tables = TableWriter(connection, packer, clock)
        self.queue_rows = self._tables.queue_rows
        self._wal_preallocation = WalPreallocation(path)
        self._file = DatabaseFile(path)
        self._queue = CommitQueue()
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        """Each makes the thread look at the queue again."""
        self._wake_entries = _NEVER  #: number of entries that wakes the thread
        self._is_deferral_scheduled = False  #: `_commit_deferred` will be called
        self._next_spare_check_s = 0.0  #: monotonic time of the next check
        self._is_closing = False
        self._has_purged = asyncio.Event()
        self._failure: str | None = None
        self._clock = clock
        self._clock_watch = clock_watch
        self.commit_s = Histogram(COMMIT_BOUNDS_S)
        self.committed_entries = 0
        self.notification_count = 0  #: grows with each pending notification
        self.has_stopped = False  #: for good, after an error that a retry cannot fix
        self._thread = threading.Thread(
            target=self._run, name="octaskly-writer", daemon=True
        )
        self._thread.start()

    @property
    def write_failure(self) -> str | None:
        """The reason why writes fail now, or None while they succeed."""
        if self._failure is None:
            try:
                self._file.require_present()
            except OSError as error:
                return self._file.describe_loss(error)
        return self._failure

    @property
    def queued_entries(self) -> int:
        """Entries that wait for the next commit."""
        return self._queue.entries

    def queue_item(self, item: QueueItem) -> None:
        """Queue one item without blocking."""
        if self._queue.add_item(item):
            if self._queue.entries >= self._wake_entries:
                self._wakeups.put(None)
        elif not self._is_deferral_scheduled:
            self._is_deferral_scheduled = True
            self._loop.call_later(DEFERRED_S_MAX, self._commit_deferred)

    def _commit_deferred(self) -> None:
        """Have the thread commit the items that are not urgent."""
        self._is_deferral_scheduled = False
        self._queue.set_due()
        self._wakeups.put(None)

    def close(self) -> None:
        """Commit queued items, checkpoint the write-ahead log, and stop the thread.

        Raises:
            StoreError: Some items could not be written. They were never acknowledged.
        """
        self._is_closing = True
        self._wakeups.put(None)
        self._thread.join()
        self._db.close()
        if self._failure is not None:
            raise StoreError(f"the last writes were not saved: {self._failure}")

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()).items:
                if not self._commit_with_retry(batch.items):
                    return
                self.committed_entries += batch.entries
                self._purge_in_proportion(batch.entries)
                self._free_stdin_in_proportion()
            with suppress(sqlite3.Error):  # Optional: the write-ahead log is durable.
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except BaseException as error:
            self._failure = f"{self._path}: the writer stopped: {error!r}"
            self.has_stopped = True
            raise

    def _next_batch(self) -> Batch:
        """Wait for items and return the next batch; it is empty after `close`."""
        while not (self._queue or self._is_closing) and (
            self._wal_preallocation.extend_wal()
            or self._purge_once()
            or self._free_stdin_once()
            or self._shrink_file()
        ):
            pass
        if self._queue.urgent_items >= BUSY_ITEMS:
            self._coalesce()
        else:
            self._wait_until_due()
        return self._queue.take_batch()

    def _wait_until_due(self) -> None:
        """Wait until an item is to be committed, or until `close`."""
        self._wake_entries = 1  # Before the first look, so that no item is missed.
        while not (self._queue.is_due or self._is_closing):
            self._wakeups.get()
        self._wake_entries = _NEVER

    def _coalesce(self) -> None:
        """Wait for more items while they arrive; blocked clients send none."""
        self._wake_entries = COALESCE_ENTRIES
        for _ in range(COALESCE_WAITS_MAX):
            before = self._queue.entries
            self._sleep(COALESCE_S, until_entries=COALESCE_ENTRIES)
            if not before < self._queue.entries < COALESCE_ENTRIES:
                break
        self._wake_entries = _NEVER

    def _sleep(self, timeout_s: float, *, until_entries: int = _NEVER) -> None:
        """Wait until there are so many entries, until `close`, or for this long."""
        until_s = loop_time() + timeout_s
        while not (self._queue.entries >= until_entries or self._is_closing):
            try:
                self._wakeups.get(timeout=max(0.0, until_s - loop_time()))
            except Empty:
                return

    def _commit_with_retry(self, batch: Sequence[QueueItem]) -> bool:
        """Commit a batch, with retries. Return False if `close` ended the retries."""
        delay_s = RETRY_S
        while True:
            is_last = self._is_closing
            if self._try_commit(batch):
                self._report_commit(last_number(batch))
                return True
            if is_last:
                return False
            self._sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_S_MAX)

    def _report_commit(self, number: int | None) -> None:
        """Report the durable number on the event loop."""
        if number is not None:
            self._call_in_loop(self._on_commit, number)

    def _call_in_loop(self, function: Callable[..., None], *args: object) -> None:
        try:  # noqa: SIM105  `suppress` takes longer than the call
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # The loop was closed before the store.
            pass

    async def wait_until_purged(self) -> None:
        """Wait until a commit has left no void row."""
        while not self._tables.is_purged:
            self._has_purged.clear()
            await self._has_purged.wait()

    def _purge_in_proportion(self, added: int) -> None:
        """Purge in proportion to the entries added, so that void rows never accumulate.

        The proportion deletes about twice as many entries as were added.
        """
        for _ in range(min(1 + added // PURGE_ENTRIES_PER_STEP, PURGE_STEPS_MAX)):
            if not self._purge_once():
                break

    def _purge_once(self) -> bool:
        """Run one purge step in its own commit. Return True if more is left."""
        if self._failure is not None or self._tables.is_purged:
            return False
        try:
            self._run_transaction(self._tables.purge_some)
        except (sqlite3.Error, OSError):
            self._tables.reload()
            return False  # The next commit is followed by a retry.
        self._next_spare_check_s = 0.0
        is_over = bool(self._tables.is_purged)
        if is_over:
            self._call_in_loop(self._has_purged.set)
        return not is_over

    def _free_stdin_in_proportion(self) -> None:
        """Free the stdin of ended tasks before it accumulates, while writes arrive."""
        for _ in range(PURGE_STEPS_MAX):
            if not (
                self._tables.stdin_freeing.is_step_full and self._free_stdin_once()
            ):
                break

    def _free_stdin_once(self) -> bool:
        """Free the stdin of some tasks in a commit. Return True if more is left."""
        freeing = self._tables.stdin_freeing
        if self._failure is not None or freeing.is_done:
            return False
        try:
            self._run_transaction(freeing.free_some)
        except (sqlite3.Error, OSError):
            self._tables.reload()
            return False  # The next commit is followed by a retry.
        self._next_spare_check_s = 0.0
        return not freeing.is_done

    def _shrink_file(self) -> bool:
        """Free some pages of the file. Return True if more may be left."""
        now_s = loop_time()
        if self._failure is not None or now_s < self._next_spare_check_s:
            return False
        try:
            if not has_spare_pages(self._db):
                self._next_spare_check_s = now_s + SPARE_PAGES_CHECK_S
                return False
            self._run_transaction(lambda: vacuum_some_pages(self._db))
        except (sqlite3.Error, OSError):
            return False  # The next commit is followed by a retry.
        return True

    def _try_commit(self, batch: Sequence[QueueItem]) -> bool:
        """Commit a batch. Return False on failure, and set `write_failure`."""
        try:
            self._commit(batch)
        except sqlite3.Error as error:
            self._failure = build_store_error(self._path, error).message
        except OSError as error:
            self._failure = self._file.describe_loss(error)
        else:
            return True
        return False

    def _commit(self, batch: Sequence[QueueItem]) -> None:
        began, began_s = self._clock.now(), loop_time()
        if self._failure is not None:
            self._tables.reload()
        step = self._clock_watch.find_step(began)
        self._run_transaction(lambda: self._write_batch(batch, step))
        self.queue_rows.note_commit()
        # Only now: until the step is stored, readers must take it from here.
        self._clock_watch.follow_clock(began)
        self._failure = None
        self.notification_count = self._tables.notification_count
        self.commit_s.observe(loop_time() - began_s)

    def _run_transaction(self, write: Callable[[], None]) -> None:
        db = self._db
        self._file.require_present()
        db.execute("BEGIN IMMEDIATE")
        try:
            write()
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        # Writes to a deleted file succeed, but are lost.
        self._file.require_present()

    def _write_batch(self, batch: Sequence[QueueItem], step: ClockStep | None) -> None:
        if step is not None:
            self._tables.add_clock_step(step)
        appends = [item for item in batch if isinstance(item, Append)]
        if len(appends) == len(batch):  # The usual batch of a dispatcher.
            self._tables.append_entries(appends)
            return
        saves = [item for item in batch if isinstance(item, Save)]
        spools = [item for item in batch if isinstance(item, Spool | Unspool)]
        peers = [item for item in batch if isinstance(item, PeerContact)]
        if saves:
            node_state.write_saves(self._db, saves)
            for stream in (save.stream for save in saves if save.stream):
                self._tables.add_stream(*stream)
        self._write_tables([item for item in batch if isinstance(item, TableItem)])
        if spools:
            node_state.write_spool(self._db, self._packer, spools)
        if peers:
            node_state.write_peers(self._db, peers)

    def _write_tables(self, items: Sequence[TableItem]) -> None:
        for kind, some in groupby(items, type):
            if kind is Append:
                self._tables.append_entries([i for i in some if isinstance(i, Append)])
                continue
            for item in some:
                if isinstance(item, StageRows):
                    self._tables.stage_rows(item)
                elif isinstance(item, MergeRows):
                    self._tables.merge_rows(item)
