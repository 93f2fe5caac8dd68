"""The power cuts of the tests are realistic: flushed writes stay, all others go."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mesh import power

PROGRAM = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = wal")
db.execute("CREATE TABLE t (n INTEGER)")
db.execute("PRAGMA wal_checkpoint")
db.execute("PRAGMA synchronous = full")
db.execute("INSERT INTO t VALUES (1)")
db.execute(f"PRAGMA synchronous = {sys.argv[2]}")
db.execute("INSERT INTO t VALUES (2)")
os._exit(0)
"""


@pytest.mark.parametrize(("mode", "left"), [("full", [1, 2]), ("off", [1])])
def test_power_cut_loses_unflushed_writes(
    tmp_path: Path, mode: str, left: list[int]
) -> None:
    """SQLite loses no commit if it flushes each one, and loses some if it does not."""
    files, notes = tmp_path / "files", tmp_path / "notes"
    files.mkdir()
    environ = power.noting(power.build(tmp_path), files, notes)
    command = [sys.executable, "-c", PROGRAM, str(files / "log.db"), mode]
    subprocess.run(command, check=True, env={**os.environ, **environ})

    gone = power.cut(files, notes, _KeepsNothing())

    with sqlite3.connect(files / "log.db") as db:
        assert [n for (n,) in db.execute("SELECT n FROM t")] == left
    db.close()
    assert (gone > 0) == (mode == "off")


class _KeepsNothing(random.Random):
    """Keeps only flushed writes."""

    def randint(self, a: int, b: int) -> int:
        return a
