"""Entries that cannot count yet: the submission that they are about is missing.

Either it comes on another stream, or it is gone: then they go when the floor passes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from octaskly.core.arrays import member_of
from octaskly.core.facts import Floor, Recorded, TaskFact
from octaskly.core.model import StreamId, TaskId
from octaskly.ports import Packer
from octaskly.store import bulk, rows


class Early(NamedTuple):
    """One entry without its output, and the number of that."""

    stream: StreamId
    seq: int
    hlc: int
    fact: TaskFact
    output: int | None
    is_held: bool = False  #: it is in the table


class Orphans:
    """The table `orphans`, seen by the writer."""

    def __init__(self, db: sqlite3.Connection, packer: Packer) -> None:
        self._db = db
        self._packer = packer
        self.is_any = False
        self.look()

    def look(self) -> None:
        """Find out whether there are any."""
        found = self._db.execute("SELECT 1 FROM orphans LIMIT 1").fetchone()
        self.is_any = found is not None

    def of(self, tasks: Iterable[TaskId]) -> Iterator[Early]:
        """Return the entries about these tasks that are not void."""
        for some in rows.chunks(tasks if self.is_any else ()):
            for stream, seq, hlc, body, output in self._db.execute(
                "SELECT stream, seq, hlc, body, output FROM orphans"  # noqa: S608
                " JOIN log USING (stream, seq) JOIN streams USING (stream)"
                f" WHERE orphans.task_id IN ({rows.marks(len(some))})"
                " AND seq > floor_seq",
                some,
            ).fetchall():
                fact = self._packer.unpack_entry(stream, seq, hlc, body).fact
                assert not isinstance(fact, Floor | Recorded), "it waits for no task"
                yield Early(stream, seq, hlc, fact, output, is_held=True)

    def members(self, array: TaskId) -> set[TaskId]:
        """Return the members of an array about which there are entries."""
        if not self.is_any:
            return set()
        name = array.partition("~")[0]
        found = self._db.execute(
            "SELECT task_id FROM orphans"
            " WHERE task_id > ? || '.' AND task_id < ? || '/'",
            (name, name),
        )
        return {id_ for (id_,) in found if (member_of(id_) or ("",))[0] == array}

    def write(self, held: Iterable[Early], counted: Iterable[Early]) -> None:
        """Hold what cannot count yet, let go of what does now."""
        gone = [(e.fact.task, e.stream, e.seq) for e in counted if e.is_held]
        fresh = [(e.fact.task, e.stream, e.seq) for e in held if not e.is_held]
        self._db.executemany(
            "DELETE FROM orphans WHERE task_id = ? AND stream = ? AND seq = ?", gone
        )
        bulk.ORPHAN_INSERT.run(self._db, fresh)
        self.is_any = self.is_any or bool(fresh)
