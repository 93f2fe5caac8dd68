"""Snapshots that are being sent: each has a connection with one read transaction.

While it is open, SQLite keeps the state that it reads, so the write-ahead log grows by
what is written meanwhile. A snapshot ends with its last part, when its peer starts
another one, or when its peer asks for no part for a while.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

from octaskly.core.effects import ServePull
from octaskly.core.log.task_ages import TaskAges
from octaskly.core.model.ids import NodeId
from octaskly.core.protocol.messages import PackedMessage, Snapshot, SnapshotCursor
from octaskly.ports.store import Packer
from octaskly.store.reading.snapshot import read_snapshot_head, read_snapshot_part
from octaskly.store.tables.database import READ_ERRORS, build_store_error, open_reader
from octaskly.store.tables.staged_parts import is_merging

SNAPSHOTS_MAX: Final = 4  #: more peers wait
IDLE_S: Final = 30.0  #: without a request by its peer, a snapshot ends

_T = TypeVar("_T")


@dataclass(slots=True)
class _OpenSnapshot:
    """A snapshot with parts left to send."""

    id: int
    db: sqlite3.Connection
    ages: TaskAges  #: at the start, as later steps of the clock are not visible
    expiry: asyncio.TimerHandle | None = None


class OpenSnapshots:
    """The snapshots that are being sent, at most one for each peer.

    Args:
        path: The database file. It must exist before `open`.
        packer: Encodes the parts, in the thread that reads them.
        loop: The event loop of the callers.
        first_id: Greater than the ids of earlier processes.
    """

    def __init__(
        self,
        path: Path,
        packer: Packer,
        loop: asyncio.AbstractEventLoop,
        first_id: int,
    ) -> None:
        self._path = path
        self._packer = packer
        self._loop = loop
        self._ids = count(first_id)
        self._slots = asyncio.Semaphore(SNAPSHOTS_MAX)
        self._threads: ThreadPoolExecutor | None = None
        self._connections: list[sqlite3.Connection] = []
        self._idle: list[sqlite3.Connection] = []
        self._snapshots: dict[NodeId, _OpenSnapshot] = {}

    def open(self) -> None:
        """Open all connections now, while file descriptors are available.

        Raises:
            StoreError: A connection failed. Call `close` in this case as well.
        """
        for _ in range(SNAPSHOTS_MAX):
            self._connections.append(open_reader(self._path))
        self._idle = self._connections.copy()
        self._threads = ThreadPoolExecutor(1, "octaskly-snapshot-reader")

    def close(self) -> None:
        """Wait for running queries, and close the connections."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    async def start(
        self,
        pull: ServePull,
        bytes_max: int,
        read_ages: Callable[[sqlite3.Connection], TaskAges],
    ) -> PackedMessage | None:
        """Read the first part of a new snapshot, or None while one is merged here."""
        self.end(pull.peer)
        await self._slots.acquire()
        db = self._idle.pop()
        first = SnapshotCursor(next(self._ids), retired_key=pull.retired_count or 0)

        def read() -> tuple[TaskAges, Snapshot, PackedMessage] | None:
            db.execute("BEGIN")
            if is_merging(db):
                return None
            ages, head = read_ages(db), read_snapshot_head(db)
            part = read_snapshot_part(db, self._packer, first, bytes_max, ages, head)
            return ages, part, PackedMessage(self._packer.pack(part))

        found = None
        try:
            found = await self._run(read)
        finally:
            if found is None:
                self._release(db)
        if found is None:
            return None
        ages, part, packed = found
        self._snapshots[pull.peer] = _OpenSnapshot(first.snapshot_id, db, ages)
        self._keep_or_end(pull.peer, part)
        return packed

    async def read_next_part(
        self, pull: ServePull, bytes_max: int
    ) -> PackedMessage | None:
        """Read the part that a peer asks for, or None if the snapshot is not open."""
        cursor, snapshot = pull.cursor, self._snapshots.get(pull.peer)
        if cursor is None or snapshot is None or snapshot.id != cursor.snapshot_id:
            return None
        if snapshot.expiry is not None:
            snapshot.expiry.cancel()
        db, ages = snapshot.db, snapshot.ages

        def read() -> tuple[Snapshot, PackedMessage]:
            part = read_snapshot_part(db, self._packer, cursor, bytes_max, ages)
            return part, PackedMessage(self._packer.pack(part))

        try:
            part, packed = await self._run(read)
        except BaseException:
            self.end(pull.peer)
            raise
        self._keep_or_end(pull.peer, part)
        return packed

    def end(self, peer: NodeId) -> None:
        """End the snapshot of a peer, if it has one."""
        snapshot = self._snapshots.pop(peer, None)
        if snapshot is not None:
            if snapshot.expiry is not None:
                snapshot.expiry.cancel()
            self._release(snapshot.db)

    def _keep_or_end(self, peer: NodeId, part: Snapshot) -> None:
        if part.has_more:
            expiry = self._loop.call_later(IDLE_S, self.end, peer)
            self._snapshots[peer].expiry = expiry
        else:
            self.end(peer)

    def _release(self, db: sqlite3.Connection) -> None:
        if self._threads is not None:  # Else the connection is closed.
            self._threads.submit(db.rollback)  # Before any later read of it.
        self._idle.append(db)
        self._slots.release()

    async def _run(self, read: Callable[[], _T]) -> _T:
        assert self._threads is not None, "the store is not open"
        try:
            return await self._loop.run_in_executor(self._threads, read)
        except READ_ERRORS as error:
            raise build_store_error(self._path, error) from error
