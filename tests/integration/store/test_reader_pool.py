"""The pools of readers: what a failed query leaves behind."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from octaskly.errors import StoreError
from octaskly.store.reading.reader_pool import ReaderPool
from octaskly.store.tables.database import open_writer


async def test_an_error_that_ends_the_transaction_is_the_one_that_is_reported(
    tmp_path: Path,
) -> None:
    """SQLite ends it after an I/O error, and if a sort finds the disk full."""
    path = tmp_path / "log.db"
    pool = ReaderPool(path, asyncio.get_running_loop(), "reader", 1)

    def fail(db: sqlite3.Connection) -> None:
        db.rollback()
        raise sqlite3.OperationalError("disk I/O error")

    with closing(await asyncio.to_thread(open_writer, path)), closing(pool):
        await asyncio.to_thread(pool.open)
        with pytest.raises(StoreError, match="disk I/O error"):
            await pool.run_query(fail)
        assert await pool.run_query(lambda db: db.in_transaction)
