"""Pools of read-only connections, each used by one thread at a time.

A pool answers in the order of its queries, so a long one delays those behind it. Three
pools keep apart what would otherwise wait for each other: submissions, lists, and the
rest, such as the reads of the dispatcher for its queue and its standbys.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Concatenate, ParamSpec, TypeVar

from octaskly.store.tables.database import READ_ERRORS, build_store_error, open_reader

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ReaderPool:
    """Runs queries in threads, each on one snapshot of the database.

    Args:
        path: The database file. It must exist before `open`.
        loop: The event loop of the callers.
        name: Name of the pool, for its threads.
        size: Number of connections and threads.
    """

    def __init__(
        self, path: Path, loop: asyncio.AbstractEventLoop, name: str, size: int
    ) -> None:
        self._path = path
        self._loop = loop
        self._name = name
        self._size = size
        self._slots = asyncio.Semaphore(size)
        self._pool: ThreadPoolExecutor | None = None
        self._idle: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._connections: list[sqlite3.Connection] = []

    def open(self) -> None:
        """Open all connections now, while file descriptors are available.

        Raises:
            StoreError, sqlite3.Error: A connection failed. Call `close` in this case
                as well.
        """
        self._idle = SimpleQueue()
        for _ in range(self._size):
            db = open_reader(self._path)
            self._connections.append(db)
            db.execute("SELECT 1 FROM meta").fetchone()  # Opens the write-ahead log.
            self._idle.put(db)
        self._pool = ThreadPoolExecutor(self._size, f"octaskly-{self._name}")

    def close(self) -> None:
        """Wait for running queries, and close the connections."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    async def run_query(
        self,
        query: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *arguments: _P.args,
        **options: _P.kwargs,
    ) -> _T:
        """Run a query with these arguments in a thread, in one read transaction.

        A thread begins the next query once the caller has taken the result of the last
        one, so that results do not pile up in memory before a busy event loop.
        """
        async with self._slots:
            assert self._pool is not None, "the store is not open"
            return await self._loop.run_in_executor(
                self._pool,
                self._run_in_thread,
                lambda db: query(db, *arguments, **options),
            )

    def _run_in_thread(self, query: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            db = self._idle.get()
            try:
                db.execute("BEGIN")
                try:
                    return query(db)
                finally:
                    if db.in_transaction:  # Some errors end it.
                        db.execute("COMMIT")
            finally:
                self._idle.put(db)
        except READ_ERRORS as error:
            raise build_store_error(self._path, error) from error
